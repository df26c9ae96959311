"""Resampling: aggregates over intervals, each stamped with its interval's end (semantics.md section 1)."""

from collections.abc import Sequence

import polars as pl

from mlops_ray.features.windows import Numbers, aggregate, runs
from mlops_ray.schema import DTYPES, INSTANT, Column, ColumnType

EVENT_TIME = "event_time"
#: When the store learned a row, in which order, and when it learned of the row's successor (null: not yet).
KNOWN_AT, SEQUENCE, UNTIL = "_known_at", "_sequence", "_until"

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

    >>> from datetime import datetime, UTC
    >>> times = [datetime(2016, 1, 1, 0, 0, tzinfo=UTC), datetime(2016, 1, 1, 0, 45, tzinfo=UTC)]
    >>> types = {"event_time": INSTANT, "_known_at": INSTANT}
    >>> rows = pl.DataFrame({"event_time": times, "_known_at": times}, schema=types)
    >>> rows = rows.with_columns(load=pl.Series([1.0, 2.0]))
    >>> hours = resample(rows, [], 3_600_000_000, [("load", "mean")], [Column("load", "float")])
    >>> hours.select(pl.col("event_time").dt.to_string("%H:%M"), "load").rows()
    [('01:00', 1.5)]
    """
    micros = pl.col(EVENT_TIME).dt.timestamp("us")
    rows = rows.with_columns(((micros.floordiv(every_us) + 1) * every_us).cast(INSTANT).alias("_end_time"))
    by = [*keys, "_end_time"]
    if UNTIL in rows.columns:
        rows, by = _versions(rows, by), [*by, KNOWN_AT, UNTIL]
    found = runs(rows, by)
    start, stop = found["_first"].to_numpy(), found["_end"].to_numpy()
    made = []
    for (name, how), column in zip(aggregations, columns, strict=True):
        if how in PICKING:
            values = rows[name].gather(start if how == "first" else stop - 1)
        else:
            values = pl.Series(aggregate(Numbers.of(rows[name], how), start, stop, how), nan_to_null=True)
        made.append(values.cast(DTYPES[column.type]).alias(name))
    if UNTIL not in rows.columns:
        known = aggregate(Numbers.of(rows[KNOWN_AT]), start, stop, "max")
        made.append(pl.Series(KNOWN_AT, known).cast(pl.Int64).cast(INSTANT))
    return found.drop("_first", "_end").rename({"_end_time": EVENT_TIME}).hstack(made)


def _versions(rows: pl.DataFrame, interval: list[str]) -> pl.DataFrame:
    """The rows of each version of each interval; sorted by interval, version, and as they were.

    An interval is not looked at before its end: what was known by then makes its first version.
    """
    begins = pl.max_horizontal(KNOWN_AT, "_end_time")
    ends = pl.when(pl.col(UNTIL).is_not_null()).then(pl.max_horizontal(UNTIL, "_end_time"))
    moments = pl.concat(
        [
            rows.select(*interval, begins.alias("_at")),
            rows.select(*interval, ends.alias("_at")).drop_nulls("_at"),
        ]
    )
    versions = moments.unique().sort(*interval, "_at", nulls_last=False)
    versions = versions.with_columns(pl.col("_at").shift(-1).over(interval).alias("_next"))
    numbered = rows.with_row_index("_order")
    found = numbered.join(versions, on=interval, nulls_equal=True).filter(
        (begins <= pl.col("_at")) & (ends > pl.col("_at")).fill_null(True)
    )
    found = found.sort(*interval, "_at", "_order")
    return found.drop(KNOWN_AT, UNTIL, "_order").rename({"_at": KNOWN_AT, "_next": UNTIL})
