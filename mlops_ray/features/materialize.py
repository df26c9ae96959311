"""Brings the online store up to what the history knows."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import polars as pl

from mlops_ray.features.definitions import FeatureSet
from mlops_ray.features.history import Snapshot, buckets_of, changed_since, clock, read
from mlops_ray.features.online import About, OnlineStore

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: The lowest edge of an interval of time: nothing lies before it.
EARLIEST = datetime(1, 1, 1, tzinfo=UTC)


def materialize(
    store: OnlineStore, features: FeatureSet, snapshots: Mapping[str, Snapshot]
) -> datetime | None:
    """Takes in what the histories, by source, learned since the last time; returns the store's watermark.

    Only entities with new rows are written. What another version still reads stays: a store never keeps less
    than it did.
    """
    clocks = {view.source: clock(snapshots[view.source]) for view in features.tables}
    for view in features.tables:
        snapshot = snapshots[view.source]
        old = store.about(view)
        new = _about(snapshot, features, old, clocks)
        since = None if old is None or _is_wider(new, old) else old.stamp
        store.write(view, _rows(snapshot, new, since), new)
    return store.watermark(features)


def _about(
    snapshot: Snapshot, features: FeatureSet, old: About | None, clocks: Mapping[str, datetime]
) -> About:
    """What the store will hold of a table.

    A request's moment of prediction lies up to a horizon before the last one that all tables know of, and its
    features reach back from there. One microsecond more, since windows are open at their older end.
    """
    view = snapshot.view
    wanted = features.of_table(view.source)
    watermark = _micros(clocks[view.source])
    behind = watermark - _micros(min(clocks.values()))
    keep_us = behind + features.table_reach_us(view.source) + features.horizon_us + 1
    keep_us = max(keep_us, old.keep_us if old else 0)
    columns = {feature.of for feature in wanted} | set(old.columns if old else ())
    return About(
        stamp=_micros(snapshot.as_of.committed_at),
        watermark=watermark,
        oldest=max(watermark - keep_us, _micros(EARLIEST)),
        columns=tuple(sorted(columns)),
        is_unbounded=any(f.kind == "latest" and f.ttl_us is None for f in wanted)
        or (old is not None and old.is_unbounded),
        is_live=not view.back_loaded,
    )


def _is_wider(new: About, old: About) -> bool:
    """Whether records hold less than is now wanted of them."""
    return (
        new.columns != old.columns or new.keep_us > old.keep_us or (new.is_unbounded and not old.is_unbounded)
    )


def _rows(snapshot: Snapshot, about: About, since: int | None) -> pl.DataFrame:
    """All that the store keeps of the entities that learned something after the commit of `since`."""
    view = snapshot.view
    oldest = EPOCH + timedelta(microseconds=about.oldest)
    within = None if about.is_unbounded else (oldest, datetime(9999, 12, 31, tzinfo=UTC))
    changed = None if since is None else changed_since(snapshot, EPOCH + timedelta(microseconds=since))
    if changed is None or not view.keys:
        return read(snapshot, columns=about.columns, between=within)
    buckets = buckets_of(changed, view.keys).unique().to_list()
    rows = read(snapshot, buckets or [next(iter(snapshot.buckets))], columns=about.columns, between=within)
    return rows.join(changed, on=list(view.keys), how="semi", maintain_order="left")


def _micros(instant: datetime) -> int:
    return (instant - EPOCH) // timedelta(microseconds=1)
