"""Every row is valid or in quarantine, with the rule and the value that put it there.

Plain functions over a block of rows; `ingest.py` runs them on Ray.
"""

from dataclasses import dataclass, field
from typing import Any

import polars as pl

from mlops_ray.config import Source
from mlops_ray.errors import DataError
from mlops_ray.schema import FAILURES

#: Where a row stood: the file, and its number among the file's data rows (from 1).
PLACE = {"_file": pl.String, "_row": pl.Int64}
#: A row of the quarantine: where it stood, what was wrong, and the value that was.
QUARANTINE = {**PLACE, "column": pl.String, "rule": pl.String, "value": pl.String}

EVENT_TIME = "event_time"
#: Ambiguous stamps end the job: guessing one would put every later hour in doubt.
STOPPING_TIME_PROBLEMS = ("ambiguous_time",)


@dataclass(frozen=True)
class Verdict:
    """What became of a block of rows: each is valid, rejected, or left out by the source's `where`."""

    rows_in: int
    valid: pl.DataFrame
    quarantine: pl.DataFrame
    rejected: int
    filtered: int
    flags: dict[str, int]


def check(frame: pl.DataFrame, source: Source) -> Verdict:
    """The verdict over a block with the columns of the source, `event_time`, `time_problem` and `PLACE`.

    Valid rows come back typed, in their order. Raises `DataError` where a check of severity `stop` fails.
    """
    typed, failures = source.row_schema.check(frame)
    failures = pl.concat([_time_failures(frame, source), failures])
    stopping = failures.filter(pl.col("severity") == "stop")
    if stopping.height:
        raise _stop(_places(frame, stopping, source))
    rejecting = failures.filter(pl.col("severity") == "reject")
    is_rejected = pl.Series(range(frame.height), dtype=pl.UInt32).is_in(rejecting["row"].implode())
    flags = failures.filter(pl.col("severity") == "flag")
    passed = typed.filter(~is_rejected)
    kept = passed.filter(pl.sql_expr(source.where).fill_null(False)) if source.where else passed
    columns = [EVENT_TIME] if source.event_time else []
    columns += [name for name in source.columns if name not in columns]
    return Verdict(
        rows_in=frame.height,
        valid=kept.select(columns),
        quarantine=_places(frame, rejecting, source),
        rejected=int(is_rejected.sum()),
        filtered=passed.height - kept.height,
        flags=dict(flags.group_by("rule").len().sort("rule").iter_rows()),
    )


def _time_failures(frame: pl.DataFrame, source: Source) -> pl.DataFrame:
    if source.event_time is None or "time_problem" not in frame.columns:
        return pl.DataFrame(schema=FAILURES)
    spec = source.event_time
    columns = spec.columns or (spec.column or "",)
    written = pl.concat_str(
        [pl.col(name).cast(pl.String) for name in columns], separator="-", ignore_nulls=True
    )
    is_stop = pl.col("time_problem").is_in(STOPPING_TIME_PROBLEMS)
    return (
        frame.with_row_index("row")
        .filter(pl.col("time_problem").is_not_null())
        .select(
            pl.col("row").cast(pl.UInt32),
            pl.lit("+".join(columns)).alias("column"),
            pl.col("time_problem").alias("rule"),
            written.alias("value"),
            pl.when(is_stop).then(pl.lit("stop")).otherwise(pl.lit("reject")).alias("severity"),
        )
    )


def _places(frame: pl.DataFrame, failures: pl.DataFrame, source: Source) -> pl.DataFrame:
    """Failures as rows of the quarantine, by the names that stand in the file."""
    places = frame.select(*PLACE)[failures["row"]]
    column = failures["column"]
    if source.unpivot is not None:
        written = frame[source.unpivot.names].cast(pl.String)[failures["row"]]
        column = column.zip_with((column != source.unpivot.values).fill_null(True), written)
    found = places.hstack([column.alias("column"), failures["rule"], failures["value"]])
    return found.cast(QUARANTINE)  # type: ignore[arg-type]


def _stop(places: pl.DataFrame) -> DataError:
    first = places.row(0, named=True)
    others = f" (and {places.height - 1} more)" if places.height > 1 else ""
    return DataError(
        f"{first['rule']}: {first['value']!r}{others}; this check stops the job",
        file=first["_file"],
        row=first["_row"],
        column=first["column"],
    )


@dataclass
class Report:
    """Counts over all blocks of a source."""

    rows_in: int = 0
    valid: int = 0
    quarantined: int = 0
    filtered: int = 0
    rejected_by: dict[str, int] = field(default_factory=dict)
    flagged_by: dict[str, int] = field(default_factory=dict)

    def add(self, verdict: Verdict) -> None:
        self.rows_in += verdict.rows_in
        self.valid += verdict.valid.height
        self.quarantined += verdict.rejected
        self.filtered += verdict.filtered
        assert self.rows_in == self.valid + self.quarantined + self.filtered, "a row is unaccounted for"
        for rule, count in verdict.quarantine["rule"].value_counts().iter_rows():
            self.rejected_by[rule] = self.rejected_by.get(rule, 0) + count
        for rule, count in verdict.flags.items():
            self.flagged_by[rule] = self.flagged_by.get(rule, 0) + count

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))
