"""What an expert would write in Polars alone over the files of a history: the peer of our joins.

Written for these data: a key becomes the code of its category, and code and time together one integer, which
Polars sorts and joins several times faster than a string beside a time. That asks for fewer than 2^17 keys
and for times within 2^46 µs, two years. Corrections are resolved for whatever order the rows come in.
"""

from collections.abc import Sequence

import polars as pl

from benchmarks.histories import BEGIN_US, KEY, TIME, VALUE

TIME_BITS = 46
#: Before the first moment that a window begins at.
ORIGIN_US = BEGIN_US - 90 * 86_400_000_000
#: Of two rows with the same key and event time the one greatest by these counts, unless it is deleted.
KNOWN, DELETED = ["_known_at", "_sequence"], "_deleted"


def latest(files: Sequence[str], spine: pl.DataFrame) -> pl.Series:
    """The newest value of each spine row's key at its time."""
    asked = _coded(spine)
    found = _points(asked).join_asof(in_force(files), on="at", check_sortedness=False)
    # Where a key has nothing before the time, the nearest row before is another key's.
    value = pl.when(pl.col("code") == pl.col("code_right")).then(VALUE).alias(VALUE)
    return _in_order(found.select("row", value))


def means(files: Sequence[str], spine: pl.DataFrame, over_us: int) -> pl.Series:
    """The mean over (time - over, time] of each spine row's key: by sums up to both ends.

    Sums run over all keys: up to both ends of a window, they hold the same of every other key. They are of
    what differs from the mean of all, so that they stay small and keep their digits.
    """
    asked = _coded(spine)
    rows = in_force(files)
    usual = rows[VALUE].mean()
    sums = rows.select(
        "at",
        total=(pl.col(VALUE) - usual).fill_null(0).cum_sum(),
        count=pl.col(VALUE).cum_count().cast(pl.Int64),
    )
    points = _points(asked)
    ends = points.join_asof(sums, on="at", check_sortedness=False)
    begins = points.with_columns(pl.col("at") - over_us).join_asof(sums, on="at", check_sortedness=False)
    total, count = (ends[name].fill_null(0) - begins[name].fill_null(0) for name in ("total", "count"))
    mean = pl.select(pl.when(count > 0).then(total / count + usual)).to_series().alias(VALUE)
    return _in_order(pl.DataFrame([points["row"], mean]))


def rolling_means(files: Sequence[str], spine: pl.DataFrame, over_us: int) -> pl.Series:
    """The same by `rolling_mean_by`, with the spine's rows among those of the history."""
    asked = _coded(spine)
    nothing = pl.lit(None, pl.Float64).alias(VALUE)
    both = pl.concat([in_force(files), _points(asked).with_columns(nothing)], how="diagonal").sort("at")
    mean = pl.col(VALUE).rolling_mean_by("at", window_size=f"{over_us}i", closed="right").over("code")
    return _in_order(both.with_columns(mean).drop_nulls("row").select("row", VALUE))


def in_force(files: Sequence[str]) -> pl.DataFrame:
    """The rows in force: `at` (key and time), `code` (key), and the value; sorted by `at`."""
    scanned = pl.scan_parquet(list(files), hive_partitioning=False)
    read = scanned.select(KEY, "event_time", *KNOWN, DELETED, VALUE).with_columns(_category())
    # Sorting by one number is fast, by several it is not: only rows that share their `at` need the others.
    rows = read.select(_at("event_time"), _code(), *KNOWN, DELETED, VALUE).collect().sort("at")
    shared = pl.col("at") == pl.col("at").shift(-1)
    is_tied = (shared | (pl.col("at") == pl.col("at").shift())).fill_null(False)
    tied = rows.filter(is_tied).sort("at", *KNOWN).filter(~shared.fill_null(False))
    return (
        pl.concat([rows.filter(~is_tied), tied])
        .filter(~pl.col(DELETED))
        .select("at", "code", VALUE)
        .sort("at")
    )


def _coded(spine: pl.DataFrame) -> pl.DataFrame:
    """The spine with its keys as categories; as long as it lives, its codes are those of the history too."""
    return spine.with_columns(_category())


def _points(asked: pl.DataFrame) -> pl.DataFrame:
    return asked.select(_at(TIME), _code(), row=pl.int_range(pl.len())).sort("at")


def _in_order(found: pl.DataFrame) -> pl.Series:
    return found.sort("row")[VALUE]


def _category() -> pl.Expr:
    return pl.col(KEY).cast(pl.Categorical)


def _code() -> pl.Expr:
    return pl.col(KEY).to_physical().cast(pl.Int64).alias("code")


def _at(time: str) -> pl.Expr:
    micros = pl.col(time).dt.timestamp("us") - ORIGIN_US
    return (pl.col(KEY).to_physical().cast(pl.Int64) * (1 << TIME_BITS) + micros).alias("at")
