"""The kernel of all stored features: aggregates and newest rows over ranges of a sorted table.

A window is a range of positions in a table sorted by entity, event time and row id. The same rows in the same
order give the same bits, whether they are a slice of a year or all that an online store returned.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

Floats = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]
#: Which of these table positions (first argument) count for these rows of the spine (second).
Active = Callable[[Positions, Positions], npt.NDArray[np.bool_]]

#: No such row.
NONE = -1
#: Elements that an intermediate array may have: 32 MiB of float64.
EXPANDED = 1 << 22
#: Integers up to here are exact as float64, and so are their sums in any order.
EXACT = float(1 << 53)
#: Up to so many windows, one after the other is faster than all at once.
FEW = 4
#: From so many windows on it pays to look whether prefix sums are exact.
MANY = 64


@dataclass(frozen=True)
class Numbers:
    """A column as float64, NaN where a value is missing."""

    values: Floats

    @classmethod
    def of(cls, series: pl.Series, agg: str = "") -> "Numbers":
        """The numbers of a column, for an aggregate.

        Text counts by its rank, which tells equal from different, and so do numbers to be told apart that
        float64 does not.
        """
        if series.dtype.is_temporal():
            series = series.to_physical()
        if series.dtype == pl.String or (agg == "distinct_count" and _is_wide(series)):
            series = series.rank("dense")
        if series.dtype != pl.Float64 or series.null_count():
            series = series.cast(pl.Float64).fill_null(float("nan"))
        return cls(series.to_numpy())

    @cached_property
    def missing(self) -> npt.NDArray[np.bool_] | None:
        """Which values are missing; `None` where none is."""
        missing = np.isnan(self.values)
        return missing if missing.any() else None

    @cached_property
    def prefix(self) -> tuple[Positions, Positions] | None:
        """Sums of the values, and counts of them, before each position; `None` where a sum could round."""
        given = ~np.isnan(self.values)
        whole = np.where(given, self.values, 0.0)
        if not (np.rint(whole) == whole).all() or np.abs(whole).sum() >= EXACT:
            return None
        return _cumulated(whole.astype(np.int64)), _cumulated(given.astype(np.int64))

    def __getitem__(self, positions: Positions) -> "Numbers":
        return Numbers(self.values[positions])


def aggregate(
    numbers: Numbers, start: Positions, stop: Positions, agg: str, quantile: float | None = None
) -> Floats:
    """The aggregate of `values[start[i]:stop[i]]` for each i; NaN is a missing value, in and out.

    `count` counts rows, and of nothing it is 0; any other aggregate of nothing is NaN. Missing values are
    skipped, but by `count`.

    >>> numbers = Numbers(np.array([1.0, np.nan, 4.0]))
    >>> start, stop = np.array([0, 1, 3]), np.array([3, 2, 3])
    >>> aggregate(numbers, start, stop, "mean")
    array([2.5, nan, nan])
    """
    if agg == "count":
        return (stop - start).astype(np.float64)
    if len(start) <= FEW:
        ranges = zip(start.tolist(), stop.tolist(), strict=True)
        return np.array([aggregate_one(numbers, a, b, agg, quantile) for a, b in ranges], np.float64)
    if agg in ("sum", "mean") and len(start) >= MANY and numbers.prefix is not None:
        total, count = (cumulated[stop] - cumulated[start] for cumulated in numbers.prefix)
        return totals(total.astype(np.float64), count, agg)
    if agg in _REDUCTIONS:
        return _reduced(numbers.values, start, stop, agg)
    return _expanded(numbers.values, start, stop, _SEGMENTS[agg], _MEDIAN if quantile is None else quantile)


def aggregate_one(numbers: Numbers, start: int, stop: int, agg: str, quantile: float | None = None) -> float:
    """`aggregate` of `values[start:stop]`, to the bit.

    >>> aggregate_one(Numbers(np.array([1.0, np.nan, 4.0])), 0, 3, "mean")
    2.5
    """
    if agg == "count":
        return float(stop - start)
    values, count = numbers.values[start:stop], stop - start
    missing = None if numbers.missing is None else numbers.missing[start:stop]
    if missing is not None:
        count -= int(np.count_nonzero(missing))
    if not count:
        return np.nan
    if agg in _REDUCTIONS:
        ufunc, neutral = _REDUCTIONS[agg]
        filled = values if missing is None else np.where(missing, neutral, values)
        total = float(ufunc.reduceat(filled, _WHOLE)[0]) + 0.0
        return total / count if agg == "mean" else total
    given = values if missing is None else values[~missing]
    return float(_SEGMENTS[agg](given, np.array([count]), _MEDIAN if quantile is None else quantile)[0])


def aggregate_active(
    numbers: Numbers, start: Positions, stop: Positions, active: Active, agg: str, quantile: float | None
) -> Floats:
    """`aggregate` over those rows of each range that are active for its row of the spine."""
    out = np.empty(len(start))
    for rows in _chunks(stop - start):
        flat, row = _expand(start[rows], stop[rows])
        kept = active(flat, row + rows.start)
        counts = np.bincount(row[kept], minlength=len(start[rows]))
        ends = np.cumsum(counts)
        out[rows] = aggregate(numbers[flat[kept]], ends - counts, ends, agg, quantile)
    return out


def edges(start: Positions, stop: Positions, agg: str, active: Active | None = None) -> Positions:
    """The `first` or the `last` position of each range, of those that are active, else `NONE`."""
    if active is None:
        return np.where(stop > start, start if agg == "first" else stop - 1, NONE)
    places = Numbers(np.arange(stop.max(initial=0), dtype=np.float64))
    found = aggregate_active(places, start, stop, active, "min" if agg == "first" else "max", None)
    return np.where(np.isnan(found), NONE, found).astype(np.int64)


def newest_active(start: Positions, stop: Positions, active: Active) -> Positions:
    """The last position of each range that is active for its row of the spine, else `NONE`.

    Looks back in steps that double, so that a row which is found soon costs little.
    """
    found = np.full(len(start), NONE)
    high = stop.copy()
    pending, width = np.flatnonzero(stop > start), 1
    while len(pending):
        low = np.maximum(start[pending], high[pending] - width)
        flat, row = _expand(low, high[pending])
        seen = active(flat, pending[row])
        # Of several positions of a row the last is kept: numpy assigns in order.
        found[pending[row[seen]]] = flat[seen]
        high[pending] = low
        pending = pending[(found[pending] == NONE) & (low > start[pending])]
        width = max(1, min(2 * width, EXPANDED // max(len(pending), 1)))
    return found


def runs(table: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """The runs of equal `by` in a table: one row a run, with `_first` and `_end`, the position past its last.

    >>> runs(pl.DataFrame({"k": ["a", "a", "b"]}), ["k"]).rows()
    [('a', 0, 2), ('b', 2, 3)]
    """
    differs = pl.any_horizontal(False, *(pl.col(name).ne_missing(pl.col(name).shift()) for name in by))
    is_start = differs | (pl.int_range(pl.len()) == 0)
    starts = table.select(is_start.arg_true().cast(pl.Int64)).to_series()
    ends = starts.shift(-1, fill_value=table.height)
    # Column by column: a table without keys has none, and a frame without columns has no rows.
    found = [table[name].gather(starts) for name in by]
    return pl.DataFrame([*found, starts.alias("_first"), ends.alias("_end")])


def after(times: Positions, first: Positions, end: Positions, moments: Positions) -> Positions:
    """For each row of the spine the position behind the last of `times[first:end]` that is ≤ its moment.

    `times` ascend within each range; a row with an empty range gets its `first`.

    >>> times = np.array([10, 20, 20, 5])
    >>> after(times, np.array([0, 0, 3]), np.array([3, 3, 4]), np.array([9, 20, 7]))
    array([0, 3, 4])
    """
    if len(first) and (first == first[0]).all() and (end == end[0]).all():
        return first + times[first[0] : end[0]].searchsorted(moments, side="right")
    low, high = first.copy(), np.maximum(end, first)
    for _ in range(int((high - low).max(initial=0)).bit_length()):
        middle = (low + high) >> 1
        # Where the search has ended, any position will do: it is not looked at.
        early = (times[np.minimum(middle, len(times) - 1)] <= moments) & (low < high)
        low = np.where(early, middle + 1, low)
        high = np.where(early, high, middle)
    return low


def totals(total: Floats, count: Positions | Floats, agg: str) -> Floats:
    """The sums, or the means, that these sums of so many values are; of nothing there is none."""
    # Adding 0 turns -0 into 0, which is what integers add up to.
    total = total + 0.0
    return np.where(count > 0, total / np.maximum(count, 1) if agg == "mean" else total, np.nan)


def _is_wide(series: pl.Series) -> bool:
    """Whether there are integers that float64 rounds."""
    return series.dtype.is_integer() and bool(((series > int(EXACT)) | (series < -int(EXACT))).any())


def _cumulated(values: Positions) -> Positions:
    return np.concatenate([[0], np.cumsum(values)])


def _reduced(values: Floats, start: Positions, stop: Positions, agg: str) -> Floats:
    given = ~np.isnan(values)
    ufunc, neutral = _REDUCTIONS[agg]
    if given.all():
        count, result = stop - start, _reduce(ufunc, values, start, stop, neutral)
    else:
        count = _reduce(np.add, given.astype(np.int64), start, stop, 0)
        result = _reduce(ufunc, np.where(given, values, neutral), start, stop, neutral)
    return totals(result, count, agg)


def _reduce(ufunc: Any, values: Any, start: Positions, stop: Positions, neutral: float) -> Any:
    if not len(start):
        return np.empty(0, values.dtype)
    # reduceat also folds what lies between one range and the next: in order, that is little.
    order = np.argsort(start, kind="stable") if (start[1:] < start[:-1]).any() else None
    pairs = np.stack([start, stop] if order is None else [start[order], stop[order]], axis=1).ravel()
    # It wants indices inside the array, and takes an empty range for its first element.
    result = ufunc.reduceat(np.append(values, values.dtype.type(neutral)), pairs)[::2]
    if order is not None:
        unsorted = np.empty_like(result)
        unsorted[order] = result
        result = unsorted
    return np.where(stop > start, result, neutral)


def _expanded(
    values: Floats,
    start: Positions,
    stop: Positions,
    function: Callable[[Floats, Positions, float], Floats],
    q: float,
) -> Floats:
    """`function` over the given values of each range, laid out one after the other, and their counts."""
    out = np.full(len(start), np.nan)
    for rows in _chunks(stop - start):
        flat, row = _expand(start[rows], stop[rows])
        given = ~np.isnan(values[flat])
        counts = np.bincount(row[given], minlength=len(start[rows]))
        full = counts > 0
        out[rows.start + np.flatnonzero(full)] = function(values[flat[given]], counts[full], q)
    return out


def _chunks(lengths: Positions) -> Iterator[slice]:
    """Rows of the spine whose ranges together have at most `EXPANDED` positions, or a single row."""
    ends = np.cumsum(lengths)
    begin = 0
    while begin < len(lengths):
        before = ends[begin - 1] if begin else 0
        stop = max(int(np.searchsorted(ends, before + EXPANDED, side="right")), begin + 1)
        yield slice(begin, stop)
        begin = stop


def _expand(start: Positions, stop: Positions) -> tuple[Positions, Positions]:
    """All positions of all ranges, one after the other, and the number of the range that each is of."""
    lengths = stop - start
    row = np.repeat(np.arange(len(start)), lengths)
    before = np.cumsum(lengths) - lengths
    return np.arange(len(row)) + (start - before)[row], row


def _std(values: Floats, counts: Positions, _: float) -> Floats:
    """The sample standard deviation: two passes, as the textbook has it, so that nothing cancels."""
    starts = np.cumsum(counts) - counts
    mean = np.add.reduceat(values, starts) / counts
    squares = np.add.reduceat((values - np.repeat(mean, counts)) ** 2, starts)
    return np.where(counts > 1, np.sqrt(squares / np.maximum(counts - 1, 1)), np.nan)


def _quantile(values: Floats, counts: Positions, q: float) -> Floats:
    """The exact quantile, linear between neighbours (method 7 of Hyndman and Fan, 1996)."""
    starts, ranked = np.cumsum(counts) - counts, _sorted_within(values, counts)
    place = q * (counts - 1)
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, counts - 1)
    below, above = ranked[starts + low], ranked[starts + high]
    exact: Floats = below + (above - below) * (place - low)
    return exact


def _distinct(values: Floats, counts: Positions, _: float) -> Floats:
    starts, ranked = np.cumsum(counts) - counts, _sorted_within(values, counts)
    is_new = np.append(True, ranked[1:] != ranked[:-1])
    is_new[starts] = True
    counted: Floats = np.add.reduceat(is_new.astype(np.float64), starts)
    return counted


def _sorted_within(values: Floats, counts: Positions) -> Floats:
    return values[np.lexsort((values, np.repeat(np.arange(len(counts)), counts)))]


_WHOLE = np.array([0])
_MEDIAN = 0.5
_REDUCTIONS: dict[str, tuple[Any, float]] = {
    "sum": (np.add, 0.0),
    "mean": (np.add, 0.0),
    "min": (np.minimum, np.inf),
    "max": (np.maximum, -np.inf),
}
_SEGMENTS = {"std": _std, "quantile": _quantile, "distinct_count": _distinct}
