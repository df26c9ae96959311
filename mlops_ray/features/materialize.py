"""Brings the online store up to what the history knows."""

from collections.abc import Mapping
from datetime import datetime

import polars as pl

from mlops_ray.errors import DataError
from mlops_ray.features.definitions import FeatureSet
from mlops_ray.features.join import EVENT_TIME
from mlops_ray.features.online import OnlineStore


def materialize(
    store: OnlineStore, features: FeatureSet, tables: Mapping[str, pl.DataFrame]
) -> datetime | None:
    """Writes the rows that requests may look back to; returns the store's watermark.

    A request's moment of prediction lies up to a horizon before the watermark, so the store keeps a horizon
    more than the longest look-back.
    """
    for view in features.tables:
        table = tables[view.source]
        newest = table[EVENT_TIME].max()
        if not isinstance(newest, datetime):
            raise DataError(f"the source {view.source!r} has no rows to materialise")
        # One interval more, since look-back windows are open at their older end.
        keep_us = features.lookback_us + features.horizon_us + 1
        store.write(view, table, newest, keep_us)
    return store.watermark(features)
