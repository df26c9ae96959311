"""What a table holds: counts, ranges, shapes and gaps, as one plain JSON document.

Columns are read one at a time, names as 64-bit hashes, so that memory grows with the longest column and never
with the table. Two of five million names share a hash in one table of a million.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mlops_ray.instants import EARLIEST, LATEST, from_micros, to_micros
from mlops_ray.pages import cut
from mlops_ray.schema import Column

#: Cells of a histogram, at least half as many: fine enough to see two humps, wide enough to see at all.
BINS = 30
SHARES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
#: The bulk of a histogram lies between these quantiles; the second where the first are one value.
TAILS = (0.01, 0.001)
#: Values listed with their rows, and a column of numbers with at most so many has them listed too.
TOP = 20
#: The commonest values among which spellings are compared.
SHORTLIST = 1_000
#: Characters of a value that are kept.
LONGEST_VALUE = 120
#: Far outside: so many interquartile ranges beyond the quartiles, and so many times as far from the median as
#: the next value. Of a million rows of a lognormal, 3 tables in 1,000 have such a value; of a normal, none.
FAR_IQR, ISOLATION = 5.0, 3.0
#: No value is far outside of so few.
FEWEST_FOR_OUTLIERS = 20
#: Above, halves are no longer told apart from whole numbers.
LARGEST_EXACT = 2**52
#: Seconds; a cell of the coverage over time is the first of which at most `CELLS` are needed. The last covers
#: the calendar.
WIDTHS_S = (1, 10, 60, 600, 3600, 6 * 3600, *(days * 86_400 for days in (1, 7, 28, 91, 365, 3652, 36525)))
CELLS = 100
#: A series is regular where so many of its steps are the usual one.
REGULAR = 0.8
#: A regular series has a gap where an interval is longer than so many steps; any other where it is longer
#: than so many times the 99th percentile of its intervals.
GAP_STEPS, GAP_TIMES = 1.5, 10
GAPS = 10

Ordered = npt.NDArray[Any]


@dataclass(frozen=True)
class View:
    """What a table has, and what of it may be said: of `hidden` columns only type and missing values.

    `time` is the column of instants (UTC), where there is one. With `minimum_count`, nothing is said that
    fewer rows share: rarer values are in `other`, cells of histograms are merged, extremes and quantiles of
    single rows are null.
    """

    columns: Sequence[Column]
    time: str | None = None
    keys: Sequence[str] = ()
    hidden: frozenset[str] = frozenset()
    minimum_count: int | None = None

    @property
    def least(self) -> int:
        """Rows that share whatever is said."""
        return self.minimum_count or 1


def profile(rows: pl.LazyFrame, view: View) -> dict[str, Any]:
    """The facts about the rows, typed, as plain JSON, without NaN and infinities.

    >>> rows = pl.LazyFrame({"load": [1.0, 2.0, None], "site": ["a", "a", "b"]})
    >>> found = profile(rows, View([Column("load", "float"), Column("site", "category")]))
    >>> found["columns"][0]["max"], found["columns"][1]["top"][0]
    (2.0, {'value': 'a', 'rows': 2})
    """
    return {
        "rows": _collect(rows.select(pl.len())).item(),
        "minimum_count": view.minimum_count,
        "columns": [_column(rows, column, view) for column in view.columns],
        **_places(rows, view),
    }


def _collect(rows: pl.LazyFrame) -> pl.DataFrame:
    return rows.collect(engine="streaming")


def _column(rows: pl.LazyFrame, column: Column, view: View) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": column.name, "type": column.type}
    if column.is_discrete or column.name in view.hidden:
        total, missing = _collect(rows.select(pl.len(), m=pl.col(column.name).null_count())).row(0)
        if column.name in view.hidden:
            return facts | {"missing": missing, "hidden": True}
        found = _names(rows, column.name, total - missing, view.least)
    else:
        values = _collect(rows.select(column.name)).to_series()
        if values.dtype.is_float():
            values = values.set(~values.is_finite(), None)
        total, missing = len(values), values.null_count()
        ordered = values.drop_nulls().to_physical().sort().to_numpy()
        describe = _instants if column.type == "datetime" else _numbers
        found = describe(ordered, view.least)
    return facts | {"missing": missing, "constant": found["distinct"] == 1 and not missing} | found


# ---------------------------------------------------------------- numbers


def _numbers(ordered: Ordered, least: int) -> dict[str, Any]:
    distinct, zeros = _distinct(ordered), _count(ordered, 0)
    if len(ordered) < least:
        return {"distinct": distinct}
    with np.errstate(all="ignore"):
        mean, std = ordered.mean(), ordered.std(ddof=1) if len(ordered) > 1 else math.nan
    return {
        "distinct": distinct,
        "min": _shared(ordered, 0, least),
        "max": _shared(ordered, len(ordered) - 1, least),
        "mean": _finite(mean),
        "std": _finite(std),
        "quantiles": {str(share): _shared(ordered, _at(ordered, share), least) for share in SHARES},
        "zeros": None if 0 < zeros < least else zeros / len(ordered),
        "histogram": _histogram(ordered, least),
        "outliers": _outliers(ordered, least),
        **(_few(ordered, least) if distinct <= TOP else {}),
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _distinct(ordered: Ordered) -> int:
    return int(np.count_nonzero(ordered[1:] != ordered[:-1])) + bool(len(ordered))


def _at(ordered: Ordered, share: float) -> int:
    """The position of a quantile: the inverse of the distribution function (Hyndman & Fan 1996, type 1)."""
    return max(math.ceil(share * len(ordered)) - 1, 0)


def _shared(ordered: Ordered, position: int, least: int) -> Any:
    """The value there, where enough rows have it."""
    value = ordered[position].item()
    return value if _count(ordered, value) >= least else None


def _count(ordered: Ordered, value: float) -> int:
    return int(np.searchsorted(ordered, value, "right") - np.searchsorted(ordered, value, "left"))


def _few(ordered: Ordered, least: int) -> dict[str, Any]:
    values, counts = np.unique(ordered, return_counts=True)
    texts = [str(value) if isinstance(value, int) else f"{value:.12g}" for value in values.tolist()]
    counted = list(zip(texts, counts.tolist(), strict=True))
    return commonest(counted, len(ordered), least)


def _histogram(ordered: Ordered, least: int) -> dict[str, Any] | None:
    """Rows of the cells [e0, e1], (e1, e2], …, and of all below and above; none where cells make no sense."""
    # Edges are round numbers around the bulk, so that one wild value does not squeeze all others into a cell.
    edges = _edges(*_bulk(ordered), whole=ordered.dtype.kind == "i")
    if not len(edges):
        return None
    ends = [np.searchsorted(ordered, edges[0], "left"), *np.searchsorted(ordered, edges[1:], "right")]
    cells = np.diff([0, *ends, len(ordered)]).tolist()
    return _cells(edges.tolist(), cells, least)


def _bulk(ordered: Ordered) -> tuple[float, float]:
    least, most = float(ordered[0]), float(ordered[-1])
    for tail in TAILS:
        low, high = float(ordered[_at(ordered, tail)]), float(ordered[_at(ordered, 1 - tail)])
        if low < high:
            return max(least, low - (high - low)), min(most, high + (high - low))
    return least, most


def _edges(low: float, high: float, *, whole: bool) -> npt.NDArray[np.float64]:
    """Edges a round number apart, of whole numbers halfway between two; none where floats are too coarse."""
    rough = (high - low) / BINS
    if not 1e-300 < rough < 1e300 or (whole and max(abs(low), abs(high)) > LARGEST_EXACT):
        return np.array([])
    power = math.floor(math.log10(rough))
    width = next(unit * 10.0**power for unit in (1, 2, 5, 10) if unit * 10.0**power >= rough)
    width = max(width, 1.0) if whole else width
    first, last = math.floor(low / width), math.floor(high / width) + 1
    # Multiples of 0.1 are to read 0.3, not 0.30000000000000004.
    edges = np.array([round(cell * width, 1 - power) for cell in range(first, last + 1)])
    edges = edges - 0.5 if whole else edges
    return edges if (np.diff(edges) > 0).all() else np.array([])


def _cells(edges: list[Any], cells: list[int], least: int) -> dict[str, Any] | None:
    """Cells below, between and above the edges, neighbours merged until each has none or enough rows."""
    kept, counts = [], [cells[0]]
    for edge, count in zip(edges, cells[1:], strict=True):
        if 0 < counts[-1] < least:
            counts[-1] += count
        else:
            kept.append(edge)
            counts.append(count)
    while 0 < counts[-1] < least and kept:
        kept.pop()
        counts[-2:] = [counts[-2] + counts[-1]]
    if len(kept) < 2:
        return None
    return {"edges": kept, "counts": counts[1:-1], "below": counts[0], "above": counts[-1]}


def _outliers(ordered: Ordered, least: int) -> dict[str, Any]:
    """Values far outside the bulk and alone there, by side: rows, which, and the nearest other value."""
    if len(ordered) < FEWEST_FOR_OUTLIERS:
        return {}
    middle = ordered[_at(ordered, 0.5)]
    spread = ordered
    if ordered[_at(ordered, 0.25)] == ordered[_at(ordered, 0.75)]:
        # Most rain is none: what falls is judged beside what falls.
        spread = ordered[ordered != middle]
    if len(spread) < FEWEST_FOR_OUTLIERS:
        return {}
    low, high = (float(spread[_at(spread, share)]) for share in (0.25, 0.75))
    reach = FAR_IQR * (high - low)
    begin, end = (
        np.searchsorted(ordered, low - reach, "left"),
        np.searchsorted(ordered, high + reach, "right"),
    )
    # Tails outward, each behind the last value before it.
    tails = {"low": ordered[: begin + 1][::-1], "high": ordered[max(end - 1, 0) :]}
    found = {side: _isolated(tail, float(middle), high - low, least) for side, tail in tails.items()}
    return {side: facts for side, facts in found.items() if facts}


def _isolated(tail: Ordered, middle: float, spread: float, least: int) -> dict[str, Any] | None:
    with np.errstate(all="ignore"):
        distance = np.abs(tail.astype(float) - middle)
        alone = distance[1:] >= ISOLATION * np.maximum(distance[:-1], spread)
    if not spread or not math.isfinite(spread) or not alone.any():
        return None
    first = int(np.argmax(alone)) + 1
    count = len(tail) - first
    if least > 1:
        return {"count": count} if count >= least else None
    values, nearest = np.unique(tail[first:]), tail[first - 1].item()
    return {"count": count, "distinct": len(values), "values": values[:5].tolist(), "nearest": nearest}


# ---------------------------------------------------------------- names


def _names(rows: pl.LazyFrame, name: str, present: int, least: int) -> dict[str, Any]:
    given = rows.select(value=pl.col(name)).drop_nulls()
    hashed = pl.col("value").hash().alias("hash")
    counted = _collect(given.select(hashed)).to_series().value_counts(name="rows")
    common = counted.top_k(SHORTLIST, by=["rows", "hash"])
    is_common = pl.col("hash").is_in(common["hash"].implode())
    values = _collect(given.with_columns(hashed).filter(is_common).unique())
    found = values.with_columns(pl.col("value").cast(pl.String)).join(common, on="hash")
    pairs = sorted(found.select("value", "rows").rows(), key=lambda pair: (-pair[1], pair[0]))
    return {"distinct": counted.height, **commonest(pairs, present, least), "alike": _alike(pairs, least)}


def commonest(counted: list[tuple[str, int]], present: int, least: int) -> dict[str, Any]:
    """The commonest values, and the rows of all others together; never a remainder below `least`."""
    ranked = sorted(counted, key=lambda pair: -pair[1])
    top = [pair for pair in ranked[:TOP] if pair[1] >= least]
    while top and 0 < present - sum(count for _, count in top) < least:
        top.pop()
    other = present - sum(count for _, count in top)
    listed = [{"value": cut(value, LONGEST_VALUE), "rows": count} for value, count in top]
    return {"top": listed, "other": other if other == 0 or other >= least else None}


def _alike(pairs: list[tuple[str, int]], least: int) -> list[list[str]]:
    """Groups of values that differ in case or space alone."""
    groups = defaultdict(list)
    for value, count in pairs:
        if count >= least:
            groups[" ".join(value.casefold().split())].append(cut(value, LONGEST_VALUE))
    return [group for group in groups.values() if len(group) > 1][:5]


# ---------------------------------------------------------------- time and identity


def _instants(ordered: Ordered, least: int) -> dict[str, Any]:
    ends = [_shared(ordered, at, least) if len(ordered) else None for at in (0, -1)]
    begin, end = (None if at is None else _iso(at) for at in ends)
    return {"distinct": _distinct(ordered), "begin": begin, "end": end, "coverage": _coverage(ordered, least)}


def _iso(micros: int) -> str:
    return from_micros(micros).isoformat()


def _coverage(ordered: Ordered, least: int) -> dict[str, Any] | None:
    """Rows by cells [e0, e1), [e1, e2), … of one width, with edges as ISO instants."""
    if not len(ordered):
        return None
    begin, end = int(ordered[0]), int(ordered[-1])
    width = next((w for w in WIDTHS_S if end - begin <= w * 1_000_000 * CELLS), WIDTHS_S[-1]) * 1_000_000
    edges = np.arange(begin // width, end // width + 2) * width
    counts = np.diff(np.searchsorted(ordered, edges, "left")).tolist()
    shown = np.clip(edges, to_micros(EARLIEST), to_micros(LATEST)).tolist()
    return _cells([_iso(edge) for edge in shown], [0, *counts, 0], least)


def _places(rows: pl.LazyFrame, view: View) -> dict[str, Any]:
    """The `identity` (rows a key, repeated identities) and the `time` of the rows; null without them."""
    if not view.keys and view.time is None:
        return {"identity": None, "time": None}
    key = pl.struct(view.keys).hash() if view.keys else pl.lit(0, pl.UInt64)
    at = pl.col(view.time).to_physical() if view.time else pl.lit(0, pl.Int64)
    placed = _collect(rows.select(key=key, at=at))
    missing = placed["at"].null_count()
    is_same = pl.col("key") == pl.col("key").shift()
    placed = placed.drop_nulls("at").sort("key", "at")
    placed = placed.with_columns(step=pl.when(is_same).then(pl.col("at").diff()))
    identity = {"keys": list(view.keys), "time": view.time, "duplicates": int((placed["step"] == 0).sum())}
    is_counted = view.keys and not view.hidden & set(view.keys)
    identity |= _rows_per_key(placed, view.least) if is_counted else {"count": None, "rows_per_key": None}
    is_shown = view.time is not None and view.time not in view.hidden
    facts = {"column": view.time, "missing": missing, **_time(placed, view.least)} if is_shown else None
    return {"identity": identity, "time": facts}


def _rows_per_key(placed: pl.DataFrame, least: int) -> dict[str, Any]:
    sizes = placed["key"].value_counts(name="rows")["rows"].sort()
    if sizes.is_empty():
        return {"count": 0, "rows_per_key": None}
    picked = {"min": sizes[0], "median": sizes[(len(sizes) - 1) // 2], "max": sizes[-1]}
    # A key of few rows is nearly a row.
    shown = {name: size if size >= least else None for name, size in picked.items()}
    return {"count": len(sizes), "rows_per_key": shown}


def _time(placed: pl.DataFrame, least: int) -> dict[str, Any]:
    """When rows were, the usual step of a key, and intervals of the whole table without any row."""
    stamps = placed["at"].sort().to_numpy()
    steps = placed["step"].filter(placed["step"] > 0).sort()
    step = steps[(len(steps) - 1) // 2] if len(steps) else None
    is_regular = step is not None and bool((steps == step).sum() >= REGULAR * len(steps))
    described = _instants(stamps, least)
    return {
        **{name: described[name] for name in ("begin", "end", "coverage")},
        "step_s": step / 1e6 if step else None,
        "regular": is_regular,
        **_gaps(stamps, step, least, is_regular=is_regular),
        **_own_gaps(placed, step if is_regular else None),
    }


def _gaps(stamps: Ordered, step: int | None, least: int, *, is_regular: bool) -> dict[str, Any]:
    if step is None:
        return {"gap_count": 0, "missing_steps": None, "gaps": []}
    instants = np.unique(stamps)
    between = np.diff(instants)
    longest = GAP_STEPS * step
    if not is_regular:
        longest = max(longest, GAP_TIMES * float(np.sort(between)[_at(between, 0.99)]))
    at = np.flatnonzero(between > longest)
    lost = np.rint(between[at] / step).astype(int) - 1
    listed = []
    for i in np.argsort(-between[at], kind="stable")[:GAPS]:
        begin, end = instants[at[i] : at[i] + 2].tolist()
        if min(_count(stamps, begin), _count(stamps, end)) >= least:
            gap = {"begin": _iso(begin), "end": _iso(end), "seconds": (end - begin) / 1e6}
            listed.append(gap | ({"missing_steps": int(lost[i])} if is_regular else {}))
    return {"gap_count": len(at), "missing_steps": int(lost.sum()) if is_regular else None, "gaps": listed}


def _own_gaps(placed: pl.DataFrame, step: int | None) -> dict[str, Any]:
    """Steps that are missing within keys, over all of them and of the one that misses most."""
    if step is None:
        return {"missing_in_keys": None, "most_missing": None}
    lost = (pl.col("step") / step).round(mode="half_to_even").cast(pl.Int64).sum() - pl.len()
    of_keys = placed.filter(pl.col("step") > GAP_STEPS * step).group_by("key").agg(lost=lost)["lost"]
    return {"missing_in_keys": int(of_keys.sum()), "most_missing": of_keys.max() or 0}
