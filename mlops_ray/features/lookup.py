"""Features of the rows of a spine from tables at hand: in training, in batch scoring, and for a request.

Every stored feature is a range of positions in its source's table, found by binary search and read by the
kernel of `windows.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from math import isnan
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from mlops_ray.errors import DataError, one_line
from mlops_ray.features.definitions import FeatureSet, Stored, ViewTable
from mlops_ray.features.on_request import compute
from mlops_ray.features.resample import EVENT_TIME, KNOWN_AT, NEVER, PICKING, SEQUENCE, UNTIL
from mlops_ray.features.windows import (
    NONE,
    Floats,
    Numbers,
    Positions,
    after,
    aggregate,
    aggregate_active,
    aggregate_one,
    edges,
    newest_active,
    runs,
    totals,
)
from mlops_ray.schema import DTYPES, Column

Flags = npt.NDArray[np.bool_]
#: What an aggregate that is no fraction is in Arrow.
_ARROW = {"int": pa.int64(), "bool": pa.bool_()}
_PYTHON: dict[str, Callable[[float], Any]] = {"int": int, "bool": bool}
#: Fewer rows than these are a request.
FEW = 1024


#: A feature's values, one a row: float64 with NaN where one is missing, or a column of another type.
Values = Floats | pl.Series


def point_in_time(
    spine: pl.DataFrame, tables: Mapping[str, pl.DataFrame], features: FeatureSet
) -> pl.DataFrame:
    """One row a spine row, in the spine's order, with the columns `features.names`.

    `spine` has the columns of `features.request`; `tables` are what `history.read` gives for each source, by
    its name. Unknown and null keys give nulls. Raises `DataError` where the type of a key differs between
    the two.
    """
    found: dict[str, Values] = {}
    for view, on, wanted in features.reads:
        asked = spine.select(features.time, *on)
        found |= read_features(asked, tables[view.source], view, wanted, features)
    return assemble(spine, found, features)


def assemble(spine: pl.DataFrame, stored: Mapping[str, Values], features: FeatureSet) -> pl.DataFrame:
    """All features of the spine's rows: those read from histories, and those computed from the rows."""
    found: dict[str, pl.Series] = {}
    expressions = []
    for feature in features.computed:
        # A column as it is needs no query, which costs a request more than its model.
        values = spine.get_column(feature.name) if feature.is_own_column else compute(feature, spine)
        if isinstance(values, pl.Expr):
            expressions.append(values.alias(feature.name))
        else:
            found[feature.name] = values
    if expressions:
        # One query for all; over a few rows, sharing it among threads costs more than it saves.
        try:
            made = spine.select_seq(expressions) if spine.height < FEW else spine.select(expressions)
        except pl.exceptions.PolarsError as error:
            said = f": {one_line(error)}"
            raise DataError("a feature of the request cannot be computed", said=said) from error
        found |= {series.name: series for series in made.iter_columns()}
    frame = _frame(stored, features)
    if found:
        typed = [_typed(found[c.name], c) for c in features.columns if c.name in found]
        frame = frame.hstack(typed) if frame.width else pl.DataFrame(typed)
    return frame if frame.columns == list(features.names) else frame.select(features.names)


def _frame(stored: Mapping[str, Values], features: FeatureSet) -> pl.DataFrame:
    """The stored features as columns; of numbers, NaN becomes null. All of them are one array, sliced."""
    if stored and all(len(values) == 1 for values in stored.values()):
        return _frame_of_one(stored, features)
    floats = [values for values in stored.values() if isinstance(values, np.ndarray)]
    numbers = pa.array(np.concatenate(floats) if floats else np.empty(0), from_pandas=True)
    columns, at = [], 0
    for name, values in stored.items():
        if isinstance(values, pl.Series):
            columns.append(_typed(values, features.column(name)).to_arrow())
            continue
        part = numbers.slice(at, len(values))
        columns.append(
            part if features.column(name).type == "float" else part.cast(_ARROW[features.column(name).type])
        )
        at += len(values)
    return pl.DataFrame(pa.RecordBatch.from_arrays(columns, list(stored)))


def _frame_of_one(stored: Mapping[str, Values], features: FeatureSet) -> pl.DataFrame:
    """`_frame` of a single row, which is faster by way of Python's own values."""
    types = {name: features.column(name).type for name in stored}
    row = {name: values.item() for name, values in stored.items()}
    for name, type in types.items():
        if isinstance(stored[name], np.ndarray):
            row[name] = None if isnan(row[name]) else _PYTHON.get(type, float)(row[name])
    return pl.from_dicts([row], schema={name: DTYPES[type] for name, type in types.items()})


def _typed(values: pl.Series, column: Column) -> pl.Series:
    dtype = DTYPES[column.type]
    values = values if values.dtype == dtype else values.cast(dtype)
    return values if values.name == column.name else values.alias(column.name)


def read_features(
    spine: pl.DataFrame, table: pl.DataFrame, view: ViewTable, wanted: Sequence[Stored], features: FeatureSet
) -> dict[str, Values]:
    """These features, which read a table by the same keys, by name: one value a spine row, in its order."""
    first, end = _places(spine, table, wanted[0].on, view.keys)
    asked = Asked(Rows.of(table, view), first, end, instants(spine[features.time]), features.horizon_us)
    return {feature.name: asked.read(feature) for feature in wanted}


def check_keys(spine: pl.DataFrame, table: pl.DataFrame, on: Sequence[str], keys: Sequence[str]) -> None:
    """Raises `DataError` where the type of a key differs between the two."""
    for name, key in zip(on, keys, strict=True):
        if spine.schema[name] != table.schema[key]:
            raise DataError(
                f"the key is {spine.schema[name]} in the spine and {table.schema[key]} in the view",
                column=name,
            )


def _places(
    spine: pl.DataFrame, table: pl.DataFrame, on: Sequence[str], keys: Sequence[str]
) -> tuple[Positions, Positions]:
    """The range of each spine row's key in the table; a key that the table does not have owns no rows."""
    check_keys(spine, table, on, keys)
    if not keys:
        return np.zeros(spine.height, np.int64), np.full(spine.height, table.height)
    bounds = spine.select(on).join(
        runs(table, keys), left_on=list(on), right_on=list(keys), how="left", maintain_order="left"
    )
    return bounds["_first"].fill_null(0).to_numpy(), bounds["_end"].fill_null(0).to_numpy()


def instants(times: pl.Series) -> Positions:
    """Microseconds since 1970; `times` has no null."""
    return times.to_numpy().view(np.int64)


@dataclass(frozen=True)
class Rows:
    """The rows that features read, sorted by entity, event time and row id.

    `known` and `until` say between which moments a version is in force, where the question is strict and any
    row became known after its event or was superseded; `entity` numbers the entities then. `newest` has the
    positions in the order (entity, event time, known_at, sequence, row_id), where that is another.
    """

    times: Positions
    columns: Mapping[str, pa.Array]
    known: Positions | None = None
    until: Positions | None = None
    entity: Positions | None = None
    newest: Positions | None = None

    @classmethod
    def of(cls, table: pl.DataFrame, view: ViewTable) -> "Rows":
        """The rows of what `history.read` gives; strict where it was."""
        times = instants(table[EVENT_TIME])
        names = [column.name for column in view.columns if column.name in table.columns]
        columns = {name: table[name].to_arrow() for name in names}
        tied = SEQUENCE in table.columns and runs(table, [*view.keys, EVENT_TIME]).height < table.height
        newest = tie_order(table, view.keys, str(view.row_id)) if tied else None
        if UNTIL not in table.columns:
            return cls(times, columns, newest=newest)
        lengths = runs(table, view.keys).select(pl.col("_end") - pl.col("_first")).to_series().to_numpy()
        until = table[UNTIL].to_physical().fill_null(NEVER).to_numpy()
        return cls.of_versions(times, columns, instants(table[KNOWN_AT]), until, lengths, newest)

    @classmethod
    def of_versions(
        cls,
        times: Positions,
        columns: Mapping[str, pa.Array],
        known: Positions,
        until: Positions,
        lengths: Sequence[int] | Positions,
        newest: Positions | None,
    ) -> "Rows":
        """Rows that are in force from `known` until before `until`; entities have these numbers of rows."""
        if (known <= times).all() and (until == NEVER).all():
            return cls(times, columns, newest=newest)
        return cls(times, columns, known, until, np.repeat(np.arange(len(lengths)), lengths), newest)

    @cached_property
    def _numbers(self) -> dict[tuple[str, bool], Numbers]:
        return {}

    def numbers(self, name: str, agg: str = "") -> Numbers:
        """A column as float64, for an aggregate."""
        at = name, agg == "distinct_count"
        if at not in self._numbers:
            if self.is_float(name):
                self._numbers[at] = Numbers(self.columns[name].to_numpy(zero_copy_only=False))
            else:
                self._numbers[at] = Numbers.of(pl.Series(self.columns[name]), agg)
        return self._numbers[at]

    def is_float(self, name: str) -> bool:
        return bool(pa.types.is_floating(self.columns[name].type))


@dataclass(frozen=True)
class Asked:
    """Rows of a spine, each with the range of its entity's rows: what features are read for."""

    rows: Rows
    first: Positions
    end: Positions
    target: Positions
    horizon_us: int

    @cached_property
    def moment(self) -> Positions:
        return self.target - self.horizon_us

    @cached_property
    def _is_one_plain_row(self) -> bool:
        return len(self.first) == 1 and self.rows.known is None and self.rows.newest is None

    @cached_property
    def _after(self) -> Callable[[int], Any]:
        """The position behind the newest row of at most so long before P (negative: before T)."""
        # One for each row of the spine; of a single plain row it is a number.
        # Without `self` in them: what a task of the join held is freed when it ends, not when cycles are.
        times, first, end, moment = self.rows.times, self.first, self.end, self.moment
        if not self._is_one_plain_row:
            return cache(lambda ago_us: after(times, first, end, moment - ago_us))
        begin, p = int(first[0]), int(moment[0])
        own = times[begin : int(end[0])]
        return cache(lambda ago_us: begin + int(own.searchsorted(p - ago_us, side="right")))

    def _range(self, feature: Stored) -> tuple[Any, Any]:
        """The positions, from one to before another, of the rows that a feature reads."""
        if feature.kind == "window":
            return self._after(feature.over_us), self._after(0)
        # One microsecond is the unit of time here: [at - tolerance, at] is (at - tolerance - 1, at].
        if feature.kind == "value_at":
            ago = feature.ago_us - self.horizon_us
            return self._after(ago + feature.tolerance_us + 1), self._after(ago)
        if feature.ttl_us is not None:
            return self._after(feature.ttl_us + 1), self._after(0)
        return int(self.first[0]) if self._is_one_plain_row else self.first, self._after(0)

    def read(self, feature: Stored) -> Values:
        """The feature's values, one a row of the spine."""
        start, stop = self._range(feature)
        if self._is_one_plain_row:
            return self._read_one(feature, start, stop)
        if feature.kind == "window":
            return self._window(feature, start, stop)
        return self._gather(feature, self._newest(start, stop))

    def _read_one(self, feature: Stored, start: int, stop: int) -> Values:
        """What `read` gives for a single row: numbers instead of arrays of one are three times as fast."""
        if feature.agg is not None and feature.agg not in PICKING:
            numbers = self.rows.numbers(feature.of, feature.agg)
            return np.array([aggregate_one(numbers, start, stop, feature.agg, feature.quantile)])
        at = NONE if stop <= start else start if feature.agg == "first" else stop - 1
        if self.rows.is_float(feature.of):
            return np.array([np.nan if at == NONE else self.rows.numbers(feature.of).values[at]])
        return self._gather(feature, np.array([at]))

    def _window(self, feature: Stored, start: Positions, stop: Positions) -> Values:
        agg = str(feature.agg)
        if agg in PICKING:
            return self._gather(
                feature, edges(start, stop, agg, None if self.rows.known is None else self._in_force)
            )
        numbers = self.rows.numbers(feature.of, agg)
        if self.rows.known is None:
            return aggregate(numbers, start, stop, agg, feature.quantile)
        if agg == "count" or (agg in ("sum", "mean") and numbers.prefix is not None):
            return self._stabbed(numbers, feature.over_us, agg)
        return aggregate_active(numbers, start, stop, self._in_force, agg, feature.quantile)

    def _newest(self, start: Positions, stop: Positions) -> Positions:
        order = self.rows.newest
        if self.rows.known is None:
            found = np.where(stop > start, stop - 1, NONE)
        else:
            found = newest_active(start, stop, self._in_force if order is None else self._in_force_by_newest)
        return found if order is None else np.where(found == NONE, NONE, order[found])

    def _gather(self, feature: Stored, positions: Positions) -> Values:
        if self.rows.is_float(feature.of):
            values = self.rows.numbers(feature.of).values
            if not len(values):
                return np.full(len(positions), np.nan)
            return np.where(positions == NONE, np.nan, values[positions])
        at = pl.Series(positions)
        return pl.Series(self.rows.columns[feature.of]).gather(at.set(at == NONE, None))

    def _in_force(self, positions: Positions, rows: Positions) -> Flags:
        assert self.rows.known is not None
        assert self.rows.until is not None
        moment = self.moment[rows]
        return (self.rows.known[positions] <= moment) & (moment < self.rows.until[positions])

    def _in_force_by_newest(self, positions: Positions, rows: Positions) -> Flags:
        assert self.rows.newest is not None
        return self._in_force(self.rows.newest[positions], rows)

    def _stabbed(self, numbers: Numbers, over_us: int, agg: str) -> Floats:
        """Exact sums over the versions in force at P with an event in (P - over, P]."""
        # A version counts from max(event, known) until min(event + over, superseded): what has begun by P
        # less what has ended by P, without looking at any window's rows.
        rows = self.rows
        assert rows.known is not None
        assert rows.until is not None
        begins = np.maximum(rows.times, rows.known)
        ends = np.maximum(np.minimum(rows.times + over_us, rows.until), begins)
        given = ~np.isnan(numbers.values)
        counted = np.ones(len(begins)) if agg == "count" else given.astype(np.float64)
        values = np.where(given, numbers.values, 0.0)
        count = self._begun(begins, counted) - self._begun(ends, counted)
        if agg == "count":
            return count
        return totals(self._begun(begins, values) - self._begun(ends, values), count, agg)

    def _begun(self, moments: Positions, values: Floats) -> Floats:
        """For each row of the spine, the sum over its entity's rows whose moment is not after P."""
        assert self.rows.entity is not None
        order = np.lexsort((moments, self.rows.entity))
        total = np.concatenate([[0.0], np.cumsum(values[order])])
        begun: Floats = total[after(moments[order], self.first, self.end, self.moment)] - total[self.first]
        return begun


def tie_order(table: pl.DataFrame, entity: Sequence[str], row_id: str) -> Positions:
    """Positions in the order (entity, event time, known_at, sequence, row_id), the newest of a time last."""
    by = [*entity, EVENT_TIME, KNOWN_AT, SEQUENCE, row_id]
    return table.select(pl.arg_sort_by(by).cast(pl.Int64)).to_series().to_numpy()
