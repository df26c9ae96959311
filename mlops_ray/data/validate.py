"""Every row is valid or in quarantine, with the rule and the value that put it there.

Plain functions over a block of rows; `ingest.py` runs them on Ray.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from mlops_ray.config import Function, Source
from mlops_ray.data.event_time import columns_of
from mlops_ray.errors import DataError, one_line
from mlops_ray.expressions import compile_sql, load_function
from mlops_ray.schema import FAILURES, Column

#: Where a row stood: the file, and its number among the file's data rows (from 1).
PLACE = {"_file": pl.String, "_row": pl.Int64}
#: A row of the quarantine: where it stood, what was wrong, and the value that was.
QUARANTINE = {**PLACE, "column": pl.String, "rule": pl.String, "value": pl.String}

EVENT_TIME = "event_time"
#: A row of the same key and row id (or event time) as another of the same reading: the last one counts.
REPEATED = "same_identity"
#: What a block says about time: the instant, what is wrong with it, and what stood in the file.
TIME = (EVENT_TIME, "time_problem", "time_written")
#: Ambiguous stamps end the job: guessing one would put every later hour in doubt.
STOPPING_TIME_PROBLEMS = {
    "ambiguous_time": " (a clock change repeats this hour: where rows are in ascending order, "
    "event_time.ambiguous: infer tells the two apart)"
}


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
    """The verdict over a block with the columns of the source, `TIME` and `PLACE`.

    Valid rows come back typed, with the derived columns, in their order. Raises `DataError` where a check of
    severity `stop` fails, or a derived column cannot be computed.
    """
    frame, typed = _with_derived(frame, source)
    where = compile_sql(source.where).polars if source.where else pl.lit(True)
    wanted = typed.with_columns(_wanted=where.fill_null(False))["_wanted"]
    failures = _identified(source.row_schema.failures(frame, typed), wanted, source)
    if source.deleted is not None:
        # What is to go need not be right: it is enough to know which row is meant.
        gone = typed[source.deleted].fill_null(False)
        wanted = wanted | gone
        names = [*source.entity, *source.identity]
        is_named = pl.col("column").is_in(names) & pl.col("rule").is_in(["required", "type"])
        failures = failures.filter(
            ~pl.col("row").is_in(gone.arg_true().implode()) | is_named.fill_null(False)
        )
    failures = pl.concat([_time_failures(frame, source), failures])
    stopping = failures.filter(pl.col("severity") == "stop")
    if stopping.height:
        raise _stop(_places(frame, stopping, source))
    rejecting = failures.filter(pl.col("severity") == "reject")
    is_rejected = pl.Series(range(frame.height), dtype=pl.UInt32).is_in(rejecting["row"].implode())
    flags = failures.filter(pl.col("severity") == "flag")
    kept = typed.filter(~is_rejected & wanted)
    columns = [EVENT_TIME] if source.event_time else []
    columns += [name for name in source.columns if name not in columns]
    return Verdict(
        rows_in=frame.height,
        valid=kept.select(columns),
        quarantine=_places(frame, rejecting, source),
        rejected=int(is_rejected.sum()),
        filtered=int((~is_rejected & ~wanted).sum()),
        flags=dict(flags.group_by("rule").len().sort("rule").iter_rows()),
    )


def _with_derived(frame: pl.DataFrame, source: Source) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A block with the source's derived columns as they were computed, and with declared types."""
    schema = source.row_schema
    read = [column for column in schema.columns if column.name not in source.derive]
    typed = frame.with_columns(schema.cast(frame[column.name], column) for column in read)
    for name, how in source.derive.items():
        try:
            values = _derived(how, typed, schema.column(name)).alias(name)
            typed = typed.with_columns(schema.cast(values, schema.column(name)))
        except (pl.exceptions.PolarsError, DataError) as error:
            raise DataError(f"it cannot be derived: {one_line(error)}", column=name) from error
        frame = frame.with_columns(values)
    return frame, typed


def _derived(how: str | Function, typed: pl.DataFrame, column: Column) -> pl.Series:
    if isinstance(how, str):
        values = typed.with_columns(_derived=compile_sql(how).polars)["_derived"]
    else:
        values = load_function(how.path)(*(typed[name] for name in how.inputs))
    dtype = values.dtype
    is_instant = isinstance(dtype, pl.Datetime) and dtype.time_zone is not None
    if not is_instant and (dtype.is_temporal() or (column.type == "datetime" and dtype.is_numeric())):
        raise DataError(f"it is of type {dtype}: a stamp needs its time zone, a number or duration its unit")
    return values


def _identified(failures: pl.DataFrame, wanted: pl.Series, source: Source) -> pl.DataFrame:
    """Failures by which a row without its identity is rejected, but only where it would have been kept."""
    lacks = (pl.col("rule") == "required") & pl.col("column").is_in(source.identity).fill_null(False)
    rejects = pl.when(lacks & (pl.col("severity") == "flag")).then(pl.lit("reject"))
    return failures.filter(~lacks | wanted.gather(failures["row"])).with_columns(
        rejects.otherwise("severity").alias("severity")
    )


def _time_failures(frame: pl.DataFrame, source: Source) -> pl.DataFrame:
    if source.event_time is None or "time_problem" not in frame.columns:
        return pl.DataFrame(schema=FAILURES)
    is_stop = pl.col("time_problem").is_in(list(STOPPING_TIME_PROBLEMS))
    return (
        frame.with_row_index("_row_index")
        .filter(pl.col("time_problem").is_not_null())
        .select(
            pl.col("_row_index").cast(pl.UInt32).alias("row"),
            pl.lit("+".join(columns_of(source.event_time))).alias("column"),
            pl.col("time_problem").alias("rule"),
            pl.col("time_written").alias("value"),
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
    hint = STOPPING_TIME_PROBLEMS.get(first["rule"], "")
    return DataError(
        f"{first['rule']}: {first['value']!r}{others}; this check stops the job{hint}",
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

    def add_repeated(self, valid: pl.DataFrame, identity: Sequence[str]) -> None:
        """Counts the valid rows that another one with the same identity supersedes at once."""
        # A table without time has none in its identity; one without keys as well is a single row.
        names = [name for name in identity if name in valid.columns]
        repeated = valid.height - (valid.select(names).n_unique() if names else 1)
        if repeated:
            self.flagged_by[REPEATED] = repeated

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))
