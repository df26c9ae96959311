"""The point-in-time join: features of each row as they were at its moment of prediction P = T - horizon.

Every stored feature is a range of positions in its source's table, found by binary search and read by the
kernel of `windows.py`; so training, batch scoring and a request of one row run the same code.
"""

from collections.abc import Mapping, Sequence
from datetime import date
from functools import lru_cache

import holidays
import numpy as np
import polars as pl

from mlops_ray.errors import DataError
from mlops_ray.features.definitions import Computed, FeatureSet, Stored, ViewTable
from mlops_ray.features.windows import Floats, Positions, aggregate
from mlops_ray.schema import DTYPES

EVENT_TIME = "event_time"


def point_in_time(
    spine: pl.DataFrame, tables: Mapping[str, pl.DataFrame], features: FeatureSet
) -> pl.DataFrame:
    """One row a spine row, in the spine's order, with the columns `features.names`.

    `spine` has the columns of `features.request`. `tables` are the rows of each source, by its name, sorted
    by key and event time. Unknown and null keys give nulls. Raises `DataError` where the type of a key
    differs between the two.
    """
    stored: dict[str, pl.Series] = {}
    for view in features.tables:
        wanted = [feature for feature in features.stored if feature.source == view.source]
        stored |= _read_view(spine, tables[view.source], view, wanted, features)
    computed = {f.name: compute(f, spine) for f in features.computed}
    found = stored | computed
    typed = [found[c.name].cast(DTYPES[c.type]).alias(c.name) for c in features.columns]
    return pl.DataFrame(typed)


def _read_view(
    spine: pl.DataFrame, table: pl.DataFrame, view: ViewTable, wanted: list[Stored], features: FeatureSet
) -> dict[str, pl.Series]:
    _check_key_types(spine, table, view.keys)
    index = _Index(spine, table, view.keys)
    target = spine[features.time].dt.timestamp("us").to_numpy().astype(np.int64)
    moment = target - features.horizon_us
    values = {name: _floats(table[name]) for name in {feature.of for feature in wanted}}
    return {
        feature.name: pl.Series(
            feature.name, _read_feature(feature, index, values[feature.of], target, moment), nan_to_null=True
        )
        for feature in wanted
    }


def _read_feature(
    feature: Stored, index: "_Index", values: Floats, target: Positions, moment: Positions
) -> Floats:
    if feature.kind == "window":
        start, stop = index.after(moment - feature.over_us), index.after(moment)
        return aggregate(values, start, stop, str(feature.agg), feature.quantile)
    if feature.kind == "value_at":
        at = target - feature.ago_us
        # One microsecond is the unit of time here: [at - tolerance, at] is (at - tolerance - 1, at].
        start, stop = index.after(at - feature.tolerance_us - 1), index.after(at)
    else:
        start, stop = index.first, index.after(moment)
    return aggregate(values, start, stop, "last")


class _Index:
    """Finds positions in a table sorted by key and event time, for all rows of a spine at once."""

    def __init__(self, spine: pl.DataFrame, table: pl.DataFrame, keys: Sequence[str]) -> None:
        self._times = table[EVENT_TIME].dt.timestamp("us").to_numpy().astype(np.int64)
        bounds = _bounds(table, keys)
        if keys:
            bounds = spine.select(keys).join(bounds, on=list(keys), how="left", maintain_order="left")
        else:
            bounds = pl.concat([bounds] * spine.height) if spine.height else bounds.clear()
        # A key that the table does not have owns no rows.
        self.first: Positions = bounds["_first"].fill_null(0).to_numpy()
        self._end: Positions = bounds["_end"].fill_null(0).to_numpy()
        # Rows of one key are searched together.
        order = np.lexsort((self._end, self.first))
        starts = np.flatnonzero(np.diff(self.first[order]) | np.diff(self._end[order])) + 1
        self._groups = np.split(order, starts) if len(order) else []

    def after(self, moments: Positions) -> Positions:
        """For each spine row, the position behind the last row of its key with event time ≤ its moment."""
        found = np.empty(len(moments), dtype=np.int64)
        for rows in self._groups:
            low, high = self.first[rows[0]], self._end[rows[0]]
            found[rows] = low + np.searchsorted(self._times[low:high], moments[rows], side="right")
        return np.where(self._end > self.first, found, self.first)


def _bounds(table: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """The range of positions of each key in a sorted table."""
    rows = table.select(*keys).with_row_index("_at") if keys else pl.DataFrame({"_at": range(table.height)})
    edges = [
        pl.col("_at").min().cast(pl.Int64).alias("_first"),
        (pl.col("_at").max().cast(pl.Int64) + 1).alias("_end"),
    ]
    return rows.group_by(keys).agg(edges) if keys else rows.select(edges)


def _check_key_types(spine: pl.DataFrame, table: pl.DataFrame, keys: Sequence[str]) -> None:
    for key in keys:
        if spine.schema[key] != table.schema[key]:
            raise DataError(
                f"the key is {spine.schema[key]} in the spine and {table.schema[key]} in the view", column=key
            )


def _floats(values: pl.Series) -> Floats:
    return values.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def compute(feature: Computed, rows: pl.DataFrame) -> pl.Series:
    """A feature of the request itself, one value a row."""
    if feature.kind == "expr":
        return rows.select(pl.sql_expr(feature.argument).alias(feature.name))[feature.name]
    local = _shifted(rows[feature.argument], feature.shift_us).dt.convert_time_zone(feature.timezone)
    if feature.kind == "holiday_of":
        return _is_holiday(local.dt.date(), str(feature.country))
    parts = {"hour_of": local.dt.hour, "weekday_of": local.dt.weekday, "month_of": local.dt.month}
    return parts[feature.kind]()


def _shifted(times: pl.Series, shift_us: int) -> pl.Series:
    return (times.dt.timestamp("us") + shift_us).cast(times.dtype)


def _is_holiday(dates: pl.Series, country: str) -> pl.Series:
    years = dates.dt.year().drop_nulls().unique().to_list()
    return dates.is_in([day for year in years for day in _public_holidays(country, year)])


@lru_cache(maxsize=4096)
def _public_holidays(country: str, year: int) -> tuple[date, ...]:
    """Made once a process: a calendar takes a millisecond, as much as all other features of a request."""
    return tuple(holidays.country_holidays(country, years=year))
