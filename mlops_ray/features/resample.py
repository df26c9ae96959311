"""Resampling: aggregates over intervals, each stamped with its interval's end (semantics.md section 1)."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from mlops_ray.features.windows import Active, Numbers, Positions, aggregate, aggregate_active, edges, runs
from mlops_ray.schema import DTYPES, INSTANT, Column, ColumnType

EVENT_TIME = "event_time"
#: When the store learned a row, in which order, and when it learned of the row's successor (null: not yet).
KNOWN_AT, SEQUENCE, UNTIL = "_known_at", "_sequence", "_until"

#: Later than anything, in microseconds.
NEVER = np.iinfo(np.int64).max

#: Aggregates that are one of the values, of whatever type.
PICKING = ("first", "last")
COUNTING = ("count", "distinct_count")


def aggregated_type(agg: str, column: ColumnType) -> ColumnType:
    """The type of an aggregate of a column of this type.

    >>> aggregated_type("mean", "int"), aggregated_type("last", "category")
    ('float', 'category')
    """
    if agg in PICKING:
        return column
    return "int" if agg in COUNTING else "float"


def resample(
    rows: pl.DataFrame,
    keys: Sequence[str],
    every_us: int,
    aggregations: Sequence[tuple[str, str]],
    columns: Sequence[Column],
) -> pl.DataFrame:
    """One row an interval of `every_us` and key, sorted by key and time; what an interval lacks is missing.

    `rows` are in force, sorted by key and event time. Intervals are aligned to the epoch; one without rows
    has no row. An interval is known when its newest row is. Where `rows` are versions (with `UNTIL`), so are
    the intervals: one from the interval's end on, and one more each time that a later row corrects it.

    >>> times = pl.Series([0, 45 * 60_000_000]).cast(INSTANT)
    >>> rows = pl.DataFrame({"event_time": times, "_known_at": times, "load": [1.0, 2.0]})
    >>> hours = resample(rows, [], 3_600_000_000, [("load", "mean")], [Column("load", "float")])
    >>> hours.select(pl.col("event_time").dt.to_string("%H:%M"), "load").rows()
    [('01:00', 1.5)]
    """
    micros = pl.col(EVENT_TIME).dt.timestamp("us")
    rows = rows.with_columns(((micros.floordiv(every_us) + 1) * every_us).cast(INSTANT).alias("_end_time"))
    found = runs(rows, [*keys, "_end_time"])
    is_strict = UNTIL in rows.columns
    found, active = _versions(rows, found) if is_strict else (found, None)
    start, stop = found["_first"].to_numpy(), found["_end"].to_numpy()
    made = []
    for (name, how), column in zip(aggregations, columns, strict=True):
        if how in PICKING:
            values = rows[name].gather(edges(start, stop, how, active))
        else:
            numbers = Numbers.of(rows[name], how)
            if active is None:
                amounts = aggregate(numbers, start, stop, how)
            else:
                amounts = aggregate_active(numbers, start, stop, active, how, None)
            values = pl.Series(amounts, nan_to_null=True)
        made.append(values.cast(DTYPES[column.type]).alias(name))
    if not is_strict:
        known = aggregate(Numbers.of(rows[KNOWN_AT]), start, stop, "max")
        made.append(pl.Series(KNOWN_AT, known).cast(pl.Int64).cast(INSTANT))
    return found.drop("_first", "_end").rename({"_end_time": EVENT_TIME}).hstack(made)


def _versions(rows: pl.DataFrame, found: pl.DataFrame) -> tuple[pl.DataFrame, Active]:
    """Each interval once for every version of it, with `KNOWN_AT` and `UNTIL`; and which rows that has."""
    # An interval is not looked at before its end: what was known by then makes its first version.
    begins = rows.select(pl.max_horizontal(KNOWN_AT, "_end_time")).to_series()
    ends = rows.select(
        pl.when(pl.col(UNTIL).is_not_null()).then(pl.max_horizontal(UNTIL, "_end_time"))
    ).to_series()
    interval = np.repeat(np.arange(found.height), (found["_end"] - found["_first"]).to_numpy())
    moments = pl.concat([pl.DataFrame({"_interval": interval, KNOWN_AT: at}) for at in (begins, ends)])
    versions = moments.drop_nulls(KNOWN_AT).unique().sort("_interval", KNOWN_AT)
    versions = versions.with_columns(pl.col(KNOWN_AT).shift(-1).over("_interval").alias(UNTIL))
    since, until = begins.to_physical().to_numpy(), ends.to_physical().fill_null(NEVER).to_numpy()
    found = found[versions["_interval"]].hstack(versions.select(KNOWN_AT, UNTIL))
    # Of a version whose rows are all deleted nothing is left.
    start, stop = found["_first"].to_numpy(), found["_end"].to_numpy()
    active = _active(since, until, found[KNOWN_AT])
    found = found[
        np.flatnonzero(aggregate_active(Numbers(np.empty(len(since))), start, stop, active, "count", None))
    ]
    return found, _active(since, until, found[KNOWN_AT])


def _active(since: Positions, until: Positions, moments: pl.Series) -> Active:
    """Which rows, in force from `since` until before `until`, are so at the moments that versions begin."""
    at = moments.to_physical().to_numpy()
    return lambda rows, versions: (since[rows] <= at[versions]) & (at[versions] < until[rows])
