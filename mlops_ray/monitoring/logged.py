"""What the prediction log says of rows: the model's features, who they are of, its answers."""

from collections.abc import Collection, Sequence

import polars as pl

from mlops_ray.data.prediction_log import ASKED, FEATURE
from mlops_ray.monitoring.deltas import PREDICTION
from mlops_ray.registry.encoder import Encoder
from mlops_ray.registry.models import Values
from mlops_ray.registry.package import Package
from mlops_ray.schema import DTYPES, Column

#: Where a column stands: as the model was given it, else as it was asked with.
PLACES = (FEATURE, ASKED)


def features(package: Package, rows: pl.DataFrame) -> pl.DataFrame:
    """The model's features as the log has them; those that it lacks are null."""
    return _select(rows, package.feature_set.columns, PLACES)


def named(package: Package, rows: pl.DataFrame) -> pl.DataFrame:
    """Besides the features whose the rows are, their time, and the answer; null where the log lacks them."""
    given, request = features(package, rows), package.feature_set.request.columns
    asked = _select(rows, [column for column in request if column.name not in given.columns], (ASKED,))
    return given.hstack(asked.get_columns()).with_columns(rows[PREDICTION])


def encoder(package: Package, names: Collection[str]) -> Encoder:
    """That of a version, of the features that a log with columns of these names has, and no clock's."""
    clock, whole = package.feature_set.clock, package.encoder
    held = {name.removeprefix(place) for name in names for place in PLACES if name.startswith(place)}
    return Encoder(whole.style, tuple(part for part in whole.parts if part.name in held - clock))


def column(rows: pl.DataFrame, name: str) -> pl.Series | None:
    """A column as the log has it."""
    found = next((place + name for place in PLACES if place + name in rows.columns), None)
    return None if found is None else rows[found]


def amounts(rows: pl.DataFrame, name: str) -> Values | None:
    """The values of a feature, NaN where one is missing, where they are numbers."""
    found = column(rows, name)
    if found is None or not found.dtype.is_numeric():
        return None
    return found.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def answers(rows: pl.DataFrame) -> Values:
    """What was predicted."""
    return rows[PREDICTION].to_numpy()


def _select(rows: pl.DataFrame, columns: Sequence[Column], places: tuple[str, ...]) -> pl.DataFrame:
    """As many rows as there are, also of columns that the log lacks."""
    return pl.DataFrame([_typed(rows, each, places) for each in columns])


def _typed(rows: pl.DataFrame, of: Column, places: tuple[str, ...]) -> pl.Series:
    name = next((place + of.name for place in places if place + of.name in rows.columns), None)
    dtype = DTYPES[of.type]
    found = pl.Series([None] * rows.height, dtype=dtype) if name is None else rows[name].cast(dtype)
    return found.alias(of.name)
