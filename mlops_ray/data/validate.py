"""Every row is valid or in quarantine, with the rule and the value that put it there.

Plain functions over a block of rows; `ingest.py` runs them on Ray.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, Self

import polars as pl

from mlops_ray.config import Function, Source, duration_in_words
from mlops_ray.data.event_time import columns_of
from mlops_ray.errors import DataError, one_line
from mlops_ray.expressions import compile_sql, load_function
from mlops_ray.schema import FAILURES, Column

#: Where a row stood: the file, and its number among the file's data rows (from 1).
PLACE = {"_file": pl.String, "_row": pl.Int64}
#: A row of the quarantine: where it stood, what was wrong, and the value that was, where people may see it.
QUARANTINE = {**PLACE, "column": pl.String, "rule": pl.String, "value": pl.String}
#: A failed check of any severity.
FAILED = {**QUARANTINE, "severity": pl.String}
#: Of a value that failed, so much is kept.
MOST_CHARACTERS = 200
#: Of a failed check, so many rows are shown in a report.
EXAMPLES = 3

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
    """What became of a block of rows: each is valid, rejected, or left out by the source's `where`.

    `valid` holds the columns of the table, `rows` the number of each in its file; `failures` every check that
    failed, flagged ones among them.
    """

    rows_in: int
    valid: pl.DataFrame
    rows: pl.Series
    failures: pl.DataFrame
    rejected: int
    filtered: int
    #: The number of the last row that was looked at, whatever became of it.
    last: int = 0

    @property
    def quarantine(self) -> pl.DataFrame:
        """The failed checks that keep rows out."""
        return self.failures.filter(pl.col("severity") == "reject").select(*QUARANTINE)


def columns_of_table(source: Source) -> list[str]:
    """The columns of a valid row."""
    return list(dict.fromkeys([*([EVENT_TIME] if source.event_time else []), *source.columns]))


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
    found = _places(frame, failures, source, typed)
    stopping = found.filter(pl.col("severity") == "stop")
    if stopping.height:
        raise _stop(stopping)
    rejecting = failures.filter(pl.col("severity") == "reject")["row"]
    is_rejected = pl.repeat(False, frame.height, dtype=pl.Boolean, eager=True).scatter(rejecting, True)
    kept = wanted & ~is_rejected
    columns = columns_of_table(source)
    return Verdict(
        rows_in=frame.height,
        valid=typed.select(columns).filter(kept) if not kept.all() else typed.select(columns),
        rows=frame["_row"].filter(kept),
        failures=found,
        rejected=int(is_rejected.sum()),
        filtered=int((~is_rejected & ~wanted).sum()),
        last=int(frame["_row"][-1]),
    )


def _with_derived(frame: pl.DataFrame, source: Source) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A block with the source's derived columns as they were computed, and with declared types."""
    schema = source.row_schema
    read = [column for column in schema.columns if column.name not in source.derive]
    typed = frame.with_columns(schema.typed(frame, read))
    for name, how in source.derive.items():
        try:
            values = _derived(how, typed, schema.column(name)).alias(name)
            typed = typed.with_columns(schema.cast(values, schema.column(name)))
        except (pl.exceptions.PolarsError, DataError) as error:
            file = str(frame["_file"][0]) if frame.height else None
            why = f": {one_line(error)}"
            raise DataError("it cannot be derived", said=why, file=file, column=name) from error
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
    names = columns_of(source.event_time)
    shown = pl.lit(None, pl.String) if EVENT_TIME in source.hidden else pl.col("time_written")
    return (
        frame.with_row_index("_row_index")
        .filter(pl.col("time_problem").is_not_null())
        .select(
            pl.col("_row_index").cast(pl.UInt32).alias("row"),
            pl.lit("+".join(names)).alias("column"),
            pl.col("time_problem").alias("rule"),
            shown.alias("value"),
            pl.when(is_stop).then(pl.lit("stop")).otherwise(pl.lit("reject")).alias("severity"),
        )
    )


def _places(frame: pl.DataFrame, failures: pl.DataFrame, source: Source, typed: pl.DataFrame) -> pl.DataFrame:
    """Failures by the names that stand in the file, with the values of rows that people may see."""
    if failures.is_empty():
        return pl.DataFrame(schema=FAILED)
    places = frame.select(*PLACE)[failures["row"]]
    column, value = failures["column"], failures["value"]
    if source.unpivot is not None and source.unpivot.names not in source.hidden:
        written = frame[source.unpivot.names].cast(pl.String)[failures["row"]]
        column = column.zip_with((column != source.unpivot.values).fill_null(True), written)
    curated = source.policy.curated
    if curated is not None and not curated.rows:
        value = value.clear(len(value))
    elif curated is not None and curated.where is not None:
        shown = typed.select(shown=compile_sql(curated.where).polars.fill_null(False))["shown"]
        value = value.set(~shown.gather(failures["row"]), None)
    value = value.str.head(MOST_CHARACTERS)
    found = places.hstack([column.alias("column"), failures["rule"], value, failures["severity"]])
    return found.cast(FAILED)  # type: ignore[arg-type]


def _stop(places: pl.DataFrame) -> DataError:
    first = places.row(0, named=True)
    others = f" (and {places.height - 1} more)" if places.height > 1 else ""
    hint = STOPPING_TIME_PROBLEMS.get(first["rule"], "")
    return DataError(
        first["rule"],
        file=first["_file"],
        row=first["_row"],
        column=first["column"],
        said=quoted(first["value"]),
        then=f"{others}; this check stops the job{hint}",
    )


def quoted(value: str | None) -> str:
    """A value behind the rule that it fails; nothing where people may not see it.

    >>> quoted("9.0"), quoted(None)
    (": '9.0'", '')
    """
    return "" if value is None else f": {value!r}"


# ---------------------------------------------------------------- all rows together


def table_checks(
    source: Source,
    *,
    valid: int,
    repeated: int,
    newest: datetime | None,
    missing: Mapping[str, int],
    now: datetime,
) -> list[dict[str, Any]]:
    """What was found of the checks that a source has of all its rows together, each in words.

    `valid` and `repeated` are numbers of rows, `newest` the last event time, `missing` the number of missing
    values by column.
    """
    checks, on_fail = source.checks, source.checks.on_fail
    repeats = f"{repeated:,} rows are followed by another one of the same identity"
    found: list[tuple[str, str | None, str, bool, str]] = [
        ("unique", None, source.unique, not repeated, repeats)
    ]
    if checks.rows is not None:
        least, most = checks.rows.min or 0, checks.rows.max
        holds = least <= valid and (most is None or valid <= most)
        bounds = f"at least {least:,}" if most is None else f"{least:,} to {most:,}"
        found.append(("rows", None, on_fail, holds, f"{valid:,} rows are valid; {bounds} are asked for"))
    if checks.freshness is not None:
        age = now - newest if newest is not None else None
        holds = age is not None and age <= timedelta(microseconds=checks.freshness)
        last = "there is no row" if newest is None else f"the newest row is of {newest.isoformat()}"
        if source.policy.restricts and newest is not None:
            # It is the value of a single row.
            last = f"the newest row is {'not ' * (not holds)}new enough"
        asked = duration_in_words(checks.freshness)
        found.append(("freshness", None, on_fail, holds, f"{last}; it may be {asked} old"))
    for column, most_missing in checks.missing.items():
        share = missing[column] / valid if valid else 0.0
        words = f"{share:.2%} of {column!r} are missing; {most_missing:.2%} may be"
        found.append(("missing", column, on_fail, share <= most_missing, words))
    names = ("check", "column", "severity", "holds", "said")
    return [dict(zip(names, check, strict=True)) for check in found]


# ---------------------------------------------------------------- what all blocks add up to


@dataclass
class Counts:
    """The rows of one file."""

    rows_in: int = 0
    valid: int = 0
    quarantined: int = 0
    filtered: int = 0

    def add(self, other: Self) -> None:
        """Adds the counts of another part of it."""
        for name, count in vars(other).items():
            setattr(self, name, getattr(self, name) + count)


@dataclass
class Check:
    """A check that failed: how often, and the first rows that it did."""

    column: str | None
    rule: str
    severity: str
    failed: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)

    def add(self, failed: int, examples: Iterable[dict[str, Any]]) -> None:
        """Adds failures of the same check."""
        self.failed += failed
        self.examples += list(examples)[: EXAMPLES - len(self.examples)]


@dataclass
class Report:
    """Counts over all blocks of a source; two of different blocks add up to one."""

    files: dict[str, Counts] = field(default_factory=dict)
    checks: dict[tuple[str | None, str, str], Check] = field(default_factory=dict)

    def add(self, verdict: Verdict, file: str = "") -> None:
        """Adds the verdict over a block of a file."""
        rows = Counts(verdict.rows_in, verdict.valid.height, verdict.rejected, verdict.filtered)
        assert rows.rows_in == rows.valid + rows.quarantined + rows.filtered, "a row is unaccounted for"
        self.files.setdefault(file, Counts()).add(rows)
        self.note(verdict.failures)

    def _check(self, column: str | None, rule: str, severity: str) -> Check:
        return self.checks.setdefault((column, rule, severity), Check(column, rule, severity))

    def merge(self, other: Self) -> None:
        """Adds what was counted over later blocks."""
        for file, rows in other.files.items():
            self.files.setdefault(file, Counts()).add(rows)
        for key, check in other.checks.items():
            self._check(*key).add(check.failed, check.examples)

    def take_back(self, found: pl.DataFrame) -> None:
        """Moves rows that were taken for valid to the quarantine; `found` is of `FAILED`, one for each."""
        for file, count in found["_file"].value_counts().iter_rows():
            self.files[file].add(Counts(0, -count, count, 0))
        self.note(found)

    def note(self, found: pl.DataFrame) -> None:
        """Counts failed checks; `found` is of `FAILED`."""
        by = ["column", "rule", "severity"]
        for failed in found.partition_by(by, maintain_order=True) if found.height else ():
            examples = failed.head(EXAMPLES).select(file="_file", row="_row", value="value")
            self._check(*failed.select(by).row(0)).add(failed.height, examples.iter_rows(named=True))

    @property
    def rows_in(self) -> int:
        return sum(rows.rows_in for rows in self.files.values())

    @property
    def valid(self) -> int:
        return sum(rows.valid for rows in self.files.values())

    @property
    def quarantined(self) -> int:
        return sum(rows.quarantined for rows in self.files.values())

    @property
    def filtered(self) -> int:
        return sum(rows.filtered for rows in self.files.values())

    def to_json(self, most_values: int | None = None) -> dict[str, Any]:
        """Plain data that `from_json` reads again; with at most so many values of rows."""
        checks = [asdict(check) for check in self.checks.values()]
        shown = 0
        for example in (example for check in checks for example in check["examples"]):
            shown += example["value"] is not None
            if most_values is not None and shown > most_values:
                example["value"] = None
        return {
            "rows_in": self.rows_in,
            "valid": self.valid,
            "quarantined": self.quarantined,
            "filtered": self.filtered,
            "files": [{"file": file, **asdict(rows)} for file, rows in self.files.items()],
            "checks": checks,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The report that `to_json` wrote."""
        checks = [Check(**check) for check in data["checks"]]
        files = {item.pop("file"): Counts(**item) for item in map(dict, data["files"])}
        return cls(files, {(c.column, c.rule, c.severity): c for c in checks})
