"""Resampling, and aggregates over ranges of a sorted table: one kernel, offline and online.

A window is a range of positions in a table sorted by key and time. The same rows in the same order give the
same bits, whether they are a slice of a year or all that an online store returned.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mlops_ray.schema import INSTANT

Floats = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]

AGGREGATIONS: dict[str, Callable[[pl.Expr], pl.Expr]] = {
    "count": lambda _: pl.len(),
    "sum": lambda c: c.sum(),
    "mean": lambda c: c.mean(),
    "min": lambda c: c.min(),
    "max": lambda c: c.max(),
    "std": lambda c: c.std(ddof=1),
    "first": lambda c: c.first(),
    "last": lambda c: c.last(),
    "distinct_count": lambda c: c.drop_nulls().n_unique(),
    "quantile": lambda c: c.quantile(0.5, interpolation="linear"),
}


def resample(
    rows: pl.DataFrame, keys: Sequence[str], every_us: int, aggregations: Sequence[tuple[str, str]]
) -> pl.DataFrame:
    """One row an interval of `every_us` and key, stamped with the interval's **end**, sorted by key and time.

    Intervals are aligned to the epoch. An interval without rows has no row.

    >>> from datetime import datetime, UTC
    >>> times = [datetime(2016, 1, 1, 0, 0, tzinfo=UTC), datetime(2016, 1, 1, 0, 45, tzinfo=UTC)]
    >>> types = {"event_time": INSTANT}
    >>> rows = pl.DataFrame({"event_time": times, "load": [1.0, 2.0]}, schema_overrides=types)
    >>> hours = resample(rows, [], 3_600_000_000, [("load", "mean")])
    >>> hours.select(pl.col("event_time").dt.to_string("%H:%M"), "load").rows()
    [('01:00', 1.5)]
    """
    micros = pl.col("event_time").dt.timestamp("us")
    end = ((micros.floordiv(every_us) + 1) * every_us).cast(INSTANT).alias("event_time")
    return (
        rows.sort("event_time", maintain_order=True)
        .group_by([*keys, end], maintain_order=True)
        .agg(AGGREGATIONS[how](pl.col(name)).alias(name) for name, how in aggregations)
        .sort([*keys, "event_time"])
    )


def aggregate(
    values: Floats, start: Positions, stop: Positions, agg: str, quantile: float | None = None
) -> Floats:
    """The aggregate of `values[start[i]:stop[i]]` for each i; NaN is a missing value, in and out.

    `count` counts rows, and of nothing it is 0; any other aggregate of nothing is NaN. Missing values are
    skipped, but by `count`, `first` and `last`.

    >>> aggregate(np.array([1.0, np.nan, 3.0]), np.array([0, 1, 3]), np.array([3, 2, 3]), "mean")
    array([ 2., nan, nan])
    >>> aggregate(np.array([1.0, np.nan, 3.0]), np.array([0, 1, 3]), np.array([3, 2, 3]), "count")
    array([3., 1., 0.])
    """
    if agg == "count":
        return (stop - start).astype(np.float64)
    if agg in _REDUCTIONS:
        return _reduced(values, start, stop, agg)
    if agg in ("first", "last"):
        return _edge(values, start, stop, agg)
    return _sliced(values, start, stop, _SLICES[agg](quantile))


def _reduced(values: Floats, start: Positions, stop: Positions, agg: str) -> Floats:
    given = ~np.isnan(values)
    count = _reduce(np.add, given.astype(np.float64), start, stop, 0.0)
    ufunc, neutral = _REDUCTIONS[agg]
    result = _reduce(ufunc, np.where(given, values, neutral), start, stop, neutral)
    if agg == "mean":
        result = result / np.maximum(count, 1)
    return np.where(count > 0, result, np.nan)


def _reduce(ufunc: Any, values: Floats, start: Positions, stop: Positions, neutral: float) -> Floats:
    if not len(start):
        return np.empty(0)
    # reduceat wants indices inside the array, and takes an empty range for its first element.
    padded = np.append(values, neutral)
    pairs = np.stack([start, stop], axis=1).ravel()
    result = ufunc.reduceat(padded, pairs)[::2]
    return np.where(stop > start, result, neutral)


def _edge(values: Floats, start: Positions, stop: Positions, agg: str) -> Floats:
    padded = np.append(values, np.nan)
    at = start if agg == "first" else stop - 1
    return np.where(stop > start, padded[np.where(stop > start, at, len(values))], np.nan)


def _sliced(values: Floats, start: Positions, stop: Positions, function: Callable[[Floats], float]) -> Floats:
    out = np.full(len(start), np.nan)
    for i, (low, high) in enumerate(zip(start.tolist(), stop.tolist(), strict=True)):
        piece = values[low:high]
        out[i] = function(piece[~np.isnan(piece)])
    return out


def _std(_: float | None) -> Callable[[Floats], float]:
    return lambda piece: float(np.std(piece, ddof=1)) if len(piece) > 1 else np.nan


def _quantile(q: float | None) -> Callable[[Floats], float]:
    return lambda piece: float(np.quantile(piece, 0.5 if q is None else q)) if len(piece) else np.nan


def _distinct(_: float | None) -> Callable[[Floats], float]:
    return lambda piece: float(len(np.unique(piece))) if len(piece) else np.nan


_REDUCTIONS: dict[str, tuple[Any, float]] = {
    "sum": (np.add, 0.0),
    "mean": (np.add, 0.0),
    "min": (np.minimum, np.inf),
    "max": (np.maximum, -np.inf),
}
_SLICES = {"std": _std, "quantile": _quantile, "distinct_count": _distinct}
