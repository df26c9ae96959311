"""The project file: one YAML file as frozen, typed models.

An unknown key is an error that names the nearest known one, with file and line. A file holds only what
differs from the defaults that stand here. `load` is the only way in.
"""

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import polars as pl
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import PydanticCustomError, core_schema

from mlops_ray.errors import ConfigError, did_you_mean, one_line
from mlops_ray.expressions import compile_sql
from mlops_ray.schema import DTYPES, INSTANT, Column, ColumnType, Rule, Schema, Severity

MICROSECONDS = {
    "us": 1,
    "ms": 1_000,
    "s": 1_000_000,
    "m": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
    "w": 604_800_000_000,
}
#: So that no time minus a duration leaves the calendar.
LONGEST = 36_525 * MICROSECONDS["d"]
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h|d|w)")
#: What a project file may hold, aliases written out.
MOST_NODES, DEEPEST = 100_000, 50
_VARIABLE = re.compile(r"\$\{(\w+)\}")


def parse_duration(text: str) -> int:
    """A duration in microseconds; a day is 24 hours.

    >>> parse_duration("1h"), parse_duration("7d") // 1_000_000
    (3600000000, 604800)
    """
    match = _DURATION.fullmatch(str(text).strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration; write e.g. 15m, 24h, 7d")
    micros = round(float(match[1]) * MICROSECONDS[match[2]])
    if micros > LONGEST:
        raise ValueError(f"{text!r} is longer than a century")
    return micros


def duration_in_words(micros: int) -> str:
    """A duration as a project file says it.

    >>> duration_in_words(7 * MICROSECONDS["d"]), duration_in_words(90 * MICROSECONDS["m"])
    ('7d', '90m')
    """
    unit = next(unit for unit in ("d", "h", "m", "s", "ms", "us") if micros % MICROSECONDS[unit] == 0)
    return f"{micros // MICROSECONDS[unit]}{unit}"


def _some_time(micros: int) -> int:
    if micros == 0:
        raise ValueError("must be longer than nothing")
    return micros


def _parse_share(value: object) -> float:
    if isinstance(value, str) and value.strip().endswith("%"):
        return float(value.strip()[:-1]) / 100
    if isinstance(value, int | float):
        return float(value)
    raise ValueError(f"{value!r} is not a share; write e.g. 2% or 0.02")


def _checked_sql(text: str) -> str:
    try:
        compile_sql(text)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return text


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str | dict) else value


Duration = Annotated[int, BeforeValidator(parse_duration, json_schema_input_type=str)]
#: A duration that is not nothing.
Step = Annotated[Duration, AfterValidator(_some_time)]
Share = Annotated[float, BeforeValidator(_parse_share, json_schema_input_type=float | str)]
Sql = Annotated[str, AfterValidator(_checked_sql)]
Names = Annotated[tuple[str, ...], BeforeValidator(_as_list, json_schema_input_type=str | list[str])]
#: At most so many in so long, e.g. `1/7d`.
Rate = Annotated[str, Field(pattern=r"^\d+/\d+(\.\d+)?(s|m|h|d|w)$")]


class Model(BaseModel):
    """Frozen, and an unknown key is an error that names the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _unknown_keys(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or cls.model_config.get("extra") != "forbid":
            return data
        known = {field.alias or name for name, field in cls.model_fields.items()}
        for key in data:
            if key not in known:
                hint = did_you_mean(str(key), known)
                raise PydanticCustomError(
                    "unknown_key", "unknown key '{key}'{hint}", {"key": str(key), "hint": hint}
                )
        return data


def _wrong(message: str, *at: object) -> PydanticCustomError:
    """An error of a place below the model that finds it."""
    return PydanticCustomError("wrong", "{message}", {"message": message, "at": at})


def _exactly_one(model: BaseModel, names: tuple[str, ...]) -> None:
    given = [name for name in names if getattr(model, name) is not None]
    if len(given) != 1:
        raise ValueError(
            f"say exactly one of {', '.join(names)}" + (f", not {' and '.join(given)}" * bool(given))
        )


# ---------------------------------------------------------------- sources


class Csv(Model):
    """How a CSV file is written. `names` are the columns of a file without a header."""

    delimiter: str = Field(",", min_length=1, max_length=1)
    quote: str = Field('"', max_length=1)
    decimal: str = Field(".", min_length=1, max_length=1)
    thousands: str | None = Field(None, min_length=1, max_length=1)
    """What groups the digits of a number, and is left out of it."""
    encoding: str = "utf-8"
    names: Names | None = None
    skip_rows: int = Field(0, ge=0)


class JsonLines(Model):
    """One JSON object a line."""


class Parquet(Model):
    """Apache Parquet."""


class Excel(Model):
    """One sheet of a workbook, the first unless named; its first row is the header."""

    sheet: str | None = None
    skip_rows: int = Field(0, ge=0)


class Delta(Model):
    """A Delta table."""


class Format(Model):
    """One of the formats that can be read, with its options."""

    csv: Csv | None = None
    jsonl: JsonLines | None = None
    parquet: Parquet | None = None
    excel: Excel | None = None
    delta: Delta | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        _exactly_one(self, tuple(type(self).model_fields))
        return self


def _by_name(value: object) -> object:
    return {value: {}} if isinstance(value, str) else value


#: A format, or its name alone.
AnyFormat = Annotated[Format, BeforeValidator(_by_name, json_schema_input_type=str | Format)]


class SqlQuery(Model):
    """A query and the database it runs on."""

    connection: str
    """`sqlite:///FILE` or `postgresql://USER@HOST/DATABASE`; a password comes by `${VAR}`."""
    query: str
    cursor: str | None = None
    """A column that only grows (a time of change, a number): only rows from its newest stored value on are
    read."""


class File(Model):
    """One among several files or queries that make one table, where it differs from the others."""

    path: str | None = None
    sql: SqlQuery | None = None
    format: AnyFormat | None = None
    rename: dict[str, str] = {}
    null_values: Names | None = None
    true_values: Names | None = None
    false_values: Names | None = None
    event_time: "EventTime | None" = None
    columns: dict[str, "ColumnSpec"] = {}
    """Columns that only this file has, from which it derives columns of the table."""
    derive: dict[str, "Sql | Function"] = {}

    @model_validator(mode="after")
    def _one(self) -> Self:
        _exactly_one(self, ("path", "sql"))
        return self


def _as_files(value: object) -> object:
    items = value if isinstance(value, list | tuple) else [value]
    return [{"path": item} if isinstance(item, str) else item for item in items]


Files = Annotated[
    tuple[File, ...], BeforeValidator(_as_files, json_schema_input_type=str | File | list[str | File])
]


class Unpivot(Model):
    """Columns other than `keep` become rows of (`names`, `values`)."""

    keep: Names
    names: str
    values: str


class EventTime(Model):
    """When a row was true: a column, several (`columns`, with `granularity`), or the order of rows."""

    column: str | None = None
    columns: Names | None = None
    granularity: Literal["day", "hour", "minute"] | None = None
    order: bool = False
    every: Step | None = None
    format: str | None = None
    unit: Literal["s", "ms", "us", "ns"] | None = None
    timezone: str | None = None
    ambiguous: Literal["raise", "infer"] = "raise"

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.column is not None) + (self.columns is not None) + self.order != 1:
            raise ValueError("say exactly one of column, columns, order")
        parts = {"day": 3, "hour": 4, "minute": 5}
        if self.columns is not None and len(self.columns) != parts.get(self.granularity or ""):
            raise ValueError(
                "columns needs granularity: day (year, month, day), hour (+ hour) or minute (+ minute)"
            )
        if self.order and self.every is None:
            raise ValueError("order needs every: the time between two rows, e.g. 30m")
        if self.timezone is not None:
            _check_timezone(self.timezone)
        elif self.columns is not None or (self.format is not None and "%z" not in self.format):
            raise ValueError("stamps without an offset need timezone, e.g. timezone: Europe/Berlin, or UTC")
        return self


def _check_timezone(name: str) -> None:
    import zoneinfo

    if name not in zoneinfo.available_timezones():
        raise ValueError(f"no time zone {name!r}{did_you_mean(name, zoneinfo.available_timezones())}")


def _check_country(name: str) -> None:
    import holidays

    if name not in holidays.list_supported_countries():
        raise ValueError(f"no holidays of {name!r} are known; write the country as ISO 3166 does, e.g. DE")


Aggregation = Literal[
    "count", "sum", "mean", "min", "max", "std", "first", "last", "distinct_count", "quantile"
]


def _columns_beside_every(schema: dict[str, Any]) -> None:
    """A file says `{every: 1h, load: mean}`."""
    columns = schema["properties"].pop("columns")
    schema["additionalProperties"] = columns["additionalProperties"]


class Resample(Model):
    """Aggregates over intervals of `every`; each is stamped with the interval's end."""

    model_config = ConfigDict(json_schema_extra=_columns_beside_every)

    every: Step
    columns: dict[str, Aggregation] = {}

    @model_validator(mode="before")
    @classmethod
    def _columns(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "columns" in data:
            return data
        return {
            "every": data.get("every"),
            "columns": {key: value for key, value in data.items() if key != "every"},
        }


class KnownAt(Model):
    """A declared back-load: when the rows became known, instead of the time of the commit."""

    column: str | None = None
    """The column that says it."""
    after_event: Duration | None = None
    """How long after its event time each row became known."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        _exactly_one(self, ("column", "after_event"))
        return self


class ColumnSpec(Model):
    """What the values of a column must be."""

    type: ColumnType
    required: bool = False
    min: float | None = None
    max: float | None = None
    categories: tuple[str | int, ...] | None = None
    pattern: str | None = None
    on_fail: Severity = "reject"


class RuleSpec(Model):
    """A condition that a row must hold."""

    name: str
    require: Sql
    on_fail: Severity = "reject"
    nulls: Literal["pass", "fail"] = "pass"


def _mask(text: str) -> str:
    return text if text in MASKS else _checked_sql(text)


#: What stands in a masked value's place: a hash that tells equal values within one page, or nothing.
MASKS = ("hash", "hide")


class Curated(Model):
    """The rows that people may see."""

    rows: int = Field(ge=0)
    """How many at most."""
    where: Sql | None = None
    mask: dict[str, Annotated[str, AfterValidator(_mask)]] = {}
    """How columns are shown: `hash`, `hide`, or SQL over the column, e.g. `LEFT(zip, 2)`."""


class Policy(Model):
    """Where a source's rows may be, and who may see them."""

    allowed_regions: Names | None = None
    machine_only: Names = ()
    """Columns that code reads and people never see."""
    curated: Curated | None = None
    """The rows that people see at most; without it all rows, but for columns that are `machine_only`."""
    minimum_count: int = Field(10, ge=1)
    """Of how many rows at least people see a count, where the source has either of the two above."""

    @property
    def hidden(self) -> frozenset[str]:
        """The columns whose values are never shown as they stand."""
        return frozenset(self.machine_only) | frozenset(self.curated.mask if self.curated else ())

    @property
    def restricts(self) -> bool:
        """Whether there is anything that people may not see."""
        return bool(self.machine_only) or self.curated is not None


class RowCount(Model):
    """How many rows there must be, both ends included."""

    min: int | None = Field(None, ge=0)
    max: int | None = Field(None, ge=0)


class TableChecks(Model):
    """What must hold of all rows together that an ingestion reads."""

    rows: RowCount | None = None
    """How many are valid."""
    freshness: Step | None = None
    """How old the newest may be."""
    missing: dict[str, Annotated[Share, Field(ge=0, le=1)]] = {}
    """The share of a column's values that may be missing."""
    on_fail: Literal["flag", "stop"] = "stop"


#: What reading puts beside a file's own columns.
OURS = frozenset({"_file", "_row", "time_problem", "time_written"})


class Source(Model):
    """A table of rows: where it is read, what its columns are, and what must hold."""

    path: Files | None = None
    """A path, a glob, a URL, or a list of them; relative to this file, or `package://NAME/…`."""
    sql: SqlQuery | None = None
    ingestion: Literal["incremental", "full"] = "incremental"
    """`incremental` reads what is new or changed; `full` takes the files for the whole table, so that what is
    no longer in them is taken back."""
    format: AnyFormat | None = None
    """Default: what the file is called after, else CSV."""
    null_values: Names = ("",)
    """What stands in a file where a value is missing."""
    true_values: Names = Schema.true_values
    false_values: Names = Schema.false_values
    rename: dict[str, str] = {}
    unpivot: Unpivot | None = None
    derive: dict[str, "Sql | Function"] = {}
    """Declared columns that are computed from the others of their row."""
    where: Sql | None = None
    """Rows that do not fulfil it are left out."""
    entity: Names = ()
    """The key: whose rows they are."""
    time: Literal["none"] | None = None
    """`none` for a table that has keys alone."""
    event_time: EventTime | None = None
    resample: Resample | None = None
    season: Duration | None = None
    """After how long the rows repeat themselves; the naive forecast is the value then."""
    known_at: KnownAt | None = None
    row_id: str | None = None
    """The column that tells rows of one key and time apart; without it, a second one corrects the first."""
    sequence: str | None = None
    """The column that orders the versions of a row that become known at once; default: the file's order."""
    deleted: str | None = None
    """The column that says that a row is to be taken back."""
    columns: dict[str, ColumnSpec]
    """The columns that are kept, with their types; others are left in the file."""
    rules: tuple[RuleSpec, ...] = ()
    unique: Severity = "flag"
    """What befalls a row that another one of the same key and row id (or event time) follows; flagged, it is
    corrected by that one."""
    checks: TableChecks = TableChecks()
    policy: Policy = Policy()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        _exactly_one(self, ("path", "sql"))
        if (self.event_time is None) == (self.time is None):
            raise ValueError("say event_time, or time: none for a table without time")
        if self.time is not None and self.known_at is not None and self.known_at.column is None:
            raise _wrong(
                "rows of a table without time have no event to count from", "known_at", "after_event"
            )
        for name in self.columns:
            if not name or name == "*" or (name[0] == "^" and name[-1] == "$"):
                raise _wrong("is no name for a column", "columns", name)
            if name.startswith("_") or name in OURS or (name == "event_time" != self._time_column):
                raise _wrong(
                    "is a name of ours; call the column otherwise, e.g. by rename: {"
                    f"{name}: {name.strip('_') or 'x'}_given}}",
                    "columns",
                    name,
                )
        time = self.event_time
        read: dict[str, set[str | None]] = {
            "event_time": {time.column, *(time.columns or ())} if time else set(),
            "unpivot": {self.unpivot.names, self.unpivot.values} if self.unpivot else set(),
        }
        for key, names in read.items():
            for taken in OURS & names:
                raise _wrong(f"{taken!r} is a name of ours; call the column otherwise, by rename", key)
        if len(set(self.entity)) < len(self.entity):
            raise _wrong("names a key twice", "entity")
        known = self.known_at
        if self.ingestion == "full" and known and (known.column or self.row_id or self.sequence):
            raise _wrong("rows that say when they became known are taken back by deleted alone", "ingestion")
        for place, name, type in self._named():
            if name not in self.columns:
                hint = did_you_mean(name, self.columns)
                raise _wrong(f"names {name!r}, which is not among columns{hint}", *place)
            if type is not None and self.columns[name].type != type:
                raise _wrong(f"the column {name!r} is of type {self.columns[name].type}, not {type}", *place)
        if self.event_time and self.event_time.ambiguous == "infer" and set(self.entity) & set(self.derive):
            raise _wrong(
                "ambiguous: infer reads the file's order of each entity, before columns are derived; "
                "name the columns that the entity is made of",
                "entity",
            )
        self._check_reads(())
        self._check_conditions()
        for index, file in enumerate(self.path or ()):
            self._check_file(("path", index), file)
            if file.sql is not None and file.sql.cursor is not None and len(self.path or ()) > 1:
                # How far a query was read is told by what is stored, of which the others have a part.
                raise _wrong("a query among others has no cursor; make it a source", "path", index, "sql")
        return self

    def _check_conditions(self) -> None:
        """Raises where what must hold of a row is no condition, by the types of the columns."""
        types = {name: DTYPES[spec.type] for name, spec in self.columns.items()}
        rows = pl.DataFrame(schema=types | ({"event_time": INSTANT} if self.event_time else {}))
        conditions: dict[tuple[object, ...], str]
        conditions = {("rules", index): rule.require for index, rule in enumerate(self.rules)}
        conditions |= {("where",): self.where} if self.where is not None else {}
        for place, text in conditions.items():
            try:
                dtype = rows.select(compile_sql(text).polars).dtypes[0]
            except pl.exceptions.PolarsError:
                # What is wrong is said where rows show it.
                continue
            if dtype not in (pl.Boolean, pl.Null):
                raise _wrong(f"{text!r} is no condition: it is of type {dtype}", *place)

    def _check_file(self, place: tuple[object, ...], file: File) -> None:
        for name in file.columns:
            if name in self.columns:
                raise _wrong("is a column of the table; give it another name", *place, "columns", name)
        for name in file.derive:
            if name not in self.columns:
                hint = did_you_mean(name, self.columns)
                raise _wrong(f"is not among the columns of the table{hint}", *place, "derive", name)
        if file.event_time is not None and self.event_time is None:
            raise _wrong("the table has none (time: none)", *place, "event_time")
        if file.sql is not None and file.sql.cursor is not None and self.ingestion == "full":
            raise _wrong("ingestion: full reads everything", *place, "sql", "cursor")
        self.of(file)._check_reads(place)

    def _check_reads(self, at: tuple[object, ...]) -> None:
        for place, what, reads, known in self._reads():
            for name in sorted(reads - known):
                hint = did_you_mean(name, known)
                raise _wrong(f"{what}reads {name!r}, which is no column{hint}", *at, *place)

    @property
    def inputs(self) -> tuple[File, ...]:
        """The files and queries that make the table."""
        return self.path if self.path is not None else (File(sql=self.sql),)

    def of(self, file: File) -> Self:
        """The source as one of its files is to be read."""
        own = ("format", "null_values", "true_values", "false_values", "event_time")
        given = {name: getattr(file, name) for name in own if getattr(file, name) is not None}
        merged = {name: getattr(self, name) | getattr(file, name) for name in ("rename", "columns", "derive")}
        return self.model_copy(update=given | merged)

    @property
    def _time_column(self) -> str | None:
        return self.event_time.column if self.event_time else None

    def _named(self) -> Iterator[tuple[tuple[str, ...], str, ColumnType | None]]:
        """Where the source names a column, which, and the type that it must have there."""
        yield from ((("entity",), name, None) for name in self.entity)
        yield from ((("resample",), name, None) for name in (self.resample.columns if self.resample else ()))
        yield from ((("derive", name), name, None) for name in self.derive)
        if self.known_at is not None and self.known_at.column is not None:
            yield ("known_at", "column"), self.known_at.column, "datetime"
        types: dict[str, ColumnType | None] = {"row_id": None, "sequence": "int", "deleted": "bool"}
        for key, type in types.items():
            if (name := getattr(self, key)) is not None:
                yield (key,), name, type
        for name in self.policy.machine_only:
            yield ("policy", "machine_only"), name, None
        for name in self.policy.curated.mask if self.policy.curated else ():
            yield ("policy", "curated", "mask", name), name, None
        for name in self.checks.missing:
            yield ("checks", "missing", name), name, None
        for query in (self.sql, *(file.sql for file in self.path or ())):
            if query is not None and query.cursor is not None:
                yield ("sql", "cursor"), query.cursor, None

    def _reads(self) -> Iterator[tuple[tuple[str, ...], str, set[str], set[str]]]:
        """Where the source computes from columns, what does, which it reads, and which there are."""
        known = set(self.columns) - set(self.derive) | ({"event_time"} if self.event_time else set())
        for name, how in self.derive.items():
            inputs = compile_sql(how).columns if isinstance(how, str) else how.inputs
            yield ("derive", name), "", set(inputs), known
            known = known | {name}
        for rule in self.rules:
            yield ("rules",), f"{rule.name!r} ", set(compile_sql(rule.require).columns), known
        if self.where is not None:
            yield ("where",), "", set(compile_sql(self.where).columns), known
        curated = self.policy.curated
        if curated is not None and curated.where is not None:
            yield ("policy", "curated", "where"), "", set(compile_sql(curated.where).columns), known
        for name, how in curated.mask.items() if curated else ():
            reads = {name} if how in MASKS else set(compile_sql(how).columns)
            yield ("policy", "curated", "mask", name), "", reads, {name}

    @property
    def identity(self) -> tuple[str, ...]:
        """The columns without which a row has no place in the history, beside those of its entity."""
        known_at = self.known_at.column if self.known_at else None
        return tuple(name for name in (self.row_id, known_at) if name is not None)

    @property
    def hidden(self) -> frozenset[str]:
        """The columns whose values are never shown as they stand, and what is made of them."""
        hidden = set(self.policy.hidden)
        time = self.event_time
        if time is not None and hidden.intersection((time.column, *(time.columns or ()))):
            hidden.add("event_time")
        for name, how in self.derive.items():
            reads = compile_sql(how).columns if isinstance(how, str) else how.inputs
            if hidden.intersection(reads):
                hidden.add(name)
        return frozenset(hidden)

    @property
    def deriving(self) -> frozenset[str]:
        """The Python functions that it calls, by their dotted paths."""
        return frozenset(how.path for how in self.derive.values() if isinstance(how, Function))

    @property
    def row_schema(self) -> Schema:
        """The check that every row of the source goes through."""
        # A row of nobody helps nobody: what a row is known by is required, whatever its column says.
        asked = (*self.entity, *self.identity)
        hidden = self.hidden
        columns = tuple(
            Column(
                name, **{**dict(spec), "required": spec.required or name in asked, "hidden": name in hidden}
            )
            for name, spec in self.columns.items()
        )
        rules = tuple(Rule(**dict(rule)) for rule in self.rules)
        words = (self.true_values, self.false_values, self.null_values)
        csv = self.format.csv if self.format and self.format.csv else Csv()
        return Schema(columns, rules, *words, decimal=csv.decimal, thousands=csv.thousands)


# ---------------------------------------------------------------- features


class ValueAt(Model):
    """The newest value in [T - ago - tolerance, T - ago]."""

    of: str
    ago: Duration
    """Counted from the target time T; at least the horizon."""
    tolerance: Duration = 0


class Lag(Model):
    """The value so many rows before, for a source that has order only."""

    of: str
    rows: int = Field(ge=1)


class Window(Model):
    """An aggregate over the rows with event time in (P - over, P]."""

    of: str
    agg: Aggregation
    """Missing values are skipped, but by `count`, which counts rows, and by `first` and `last`."""
    over: Step
    quantile: float | None = Field(None, ge=0, le=1)
    """Which, for `agg: quantile`: 0.5 is the median."""

    @model_validator(mode="after")
    def _which(self) -> Self:
        if (self.quantile is not None) != (self.agg == "quantile"):
            raise ValueError("agg: quantile, and it alone, says which, e.g. quantile: 0.9")
        return self


class Function(Model):
    """A Python function from columns to a column, by its dotted path."""

    path: str
    inputs: Names


class Feature(Model):
    """One feature; exactly one of its kinds."""

    latest: str | None = None
    """The newest value of a column; missing where the newest row's is."""
    value_at: ValueAt | None = None
    lag: Lag | None = None
    window: Window | None = None
    expr: Sql | None = None
    """SQL over the columns of the request's row."""
    function: Function | None = None
    type: ColumnType = "float"
    """What a function returns."""
    hour_of: str | None = None
    """0 to 23, of a time of the request."""
    weekday_of: str | None = None
    """1 (Monday) to 7."""
    month_of: str | None = None
    holiday_of: str | None = None
    """Whether it is a public holiday in `country`."""
    country: str | None = None
    """ISO 3166, e.g. DE."""
    timezone: str | None = None
    """Of hours, weekdays, months and holidays; default: that of the target's source, or UTC."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        _exactly_one(self, FEATURE_KINDS)
        if self.holiday_of is not None and self.country is None:
            raise ValueError("holiday_of needs country, e.g. country: DE")
        if self.country is not None:
            _check_country(self.country)
        if self.timezone is not None:
            _check_timezone(self.timezone)
        return self


STORED_KINDS = ("latest", "value_at", "lag", "window")
CALENDAR_KINDS = ("hour_of", "weekday_of", "month_of", "holiday_of")
FEATURE_KINDS = (*STORED_KINDS, "expr", "function", *CALENDAR_KINDS)


class View(Model):
    """Features of a source's history, features of the request itself, or a row's own columns."""

    source: str | None = None
    features: dict[str, Feature] = {}
    ttl: Duration | None = None
    """How old a `latest` value may be; both ends count."""
    join_keys: dict[str, str] = {}
    """What the keys of the source are called in a request, e.g. `{origin: airport}` for its key `airport`."""
    on_request: dict[str, Feature] | None = None
    """Features that are computed from the request's own row: columns of the target's source."""
    columns: Names | None = None
    """Columns of the request's row that are features as they are."""
    exclude: Names = ()

    @model_validator(mode="after")
    def _one(self) -> Self:
        _exactly_one(self, ("source", "on_request", "columns"))
        for name, feature in self.features.items():
            if all(getattr(feature, kind) is None for kind in STORED_KINDS):
                raise ValueError(f"feature {name!r} of a source needs one of {', '.join(STORED_KINDS)}")
        for name, feature in (self.on_request or {}).items():
            if any(getattr(feature, kind) is not None for kind in STORED_KINDS):
                raise ValueError(f"feature {name!r} reads history; put it into a view with a source")
        return self


class LabelKnown(KnownAt):
    """When the label of a row becomes known."""


class Target(Model):
    """What is predicted, how far ahead, and when the truth becomes known."""

    source: str
    expr: Sql
    """What is predicted, over the columns of the source's row at T."""
    horizon: Annotated[
        tuple[Duration, ...], BeforeValidator(_as_list, json_schema_input_type=Duration | list[Duration])
    ] = (0,)
    """How far ahead: features see nothing younger than P = T - horizon."""
    task: Literal["regression", "classification"]
    positive: str | int | bool | None = None
    where: Sql | None = None
    label_known: LabelKnown | None = None
    known_at: Literal["event"] | None = None
    """`event`: features of a row see what was known at its P; default: all that is known when asked for."""
    transform: Literal["log", "log1p"] | None = None


# ---------------------------------------------------------------- training


class Resources(Model):
    """What one trial, or one replica, asks of Ray."""

    cpu: float = Field(1, gt=0)
    gpu: float = Field(0, ge=0)


class Search(Model):
    """How far and with what the sweep searches."""

    trials: int = Field(20, ge=1)
    algorithm: Literal["tpe", "random"] = "tpe"
    scheduler: Literal["asha", "none"] = "asha"
    time_limit: Duration | None = None
    resources: Resources = Resources()
    gpu: Literal["required", "preferred", "none"] = "none"
    seed: int = 0
    space: dict[str, dict[str, Any]] = {}


class HeldOut(Model):
    """The part of the data that only the winner sees: from a date on, or the last share."""

    from_: str | None = Field(None, alias="from")
    share: Share | None = None

    @model_validator(mode="before")
    @classmethod
    def _date(cls, data: Any) -> Any:
        # YAML reads a bare date as a date.
        if isinstance(data, Mapping) and data.get("from") is not None:
            return {**data, "from": str(data["from"])}
        return data

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.from_ is None) == (self.share is None):
            raise ValueError("say exactly one of from, share")
        return self


class Validation(Model):
    """How rows are split; data with a `group` never has the group on both sides."""

    by: Literal["time", "order", "random"] = "time"
    test: HeldOut = HeldOut(share=0.2)
    folds: int = Field(3, ge=1)
    group: str | None = None
    stratify: bool = False
    replay: bool = False


class Gate(Model):
    """What the winner must beat, and by how much, to go on."""

    better_than: tuple[Literal["naive", "champion"], ...] = ("naive", "champion")
    by: Share = 0.0


class ThresholdFor(Model):
    """What a decision threshold is chosen for."""

    recall: float | None = Field(None, ge=0, le=1)
    precision: float | None = Field(None, ge=0, le=1)
    cost: tuple[tuple[float, ...], ...] | None = None


class Threshold(Model):
    for_: Literal["f1", "accuracy"] | ThresholdFor = Field("f1", alias="for")


class Imbalance(Model):
    """Classes that are out of balance."""

    weights: Literal["balanced"] | dict[str, float] | None = None
    threshold: Threshold | None = None
    minimum_rows: int = Field(50, ge=1)


class OwnFamily(Model):
    """A model family of the user's own, by the dotted path of its class."""

    path: str


class Training(Model):
    """Which families compete, how they are searched, and what decides."""

    families: tuple[str | OwnFamily, ...] = ("ridge", "xgboost")
    search: Search = Search()
    metric: str = "mae"
    metrics: Names = ()
    validation: Validation = Validation()
    gate: Gate = Gate()
    imbalance: Imbalance | None = None
    minimum_rows: int = Field(100, ge=1)


# ---------------------------------------------------------------- serving and after


class Slo(Model):
    p99_ms: float = Field(50, gt=0)
    error_rate: Share = 0.001


class Replicas(Model):
    min: int = Field(1, ge=0)
    max: int = Field(8, ge=1)


class Batching(Model):
    max_rows: int = Field(256, ge=1)
    max_wait_ms: float = Field(2, ge=0)


class Machine(Model):
    """`auto`, or what one replica asks of Ray."""

    machine: str = "auto"
    cpu: float = Field(1, gt=0)
    gpu: float = Field(0, ge=0)


class Postprocess(Model):
    clip: tuple[float | None, float | None] | None = None
    function: str | None = None


class Serving(Model):
    """How predictions are answered."""

    slo: Slo = Slo()
    replicas: Replicas = Replicas()
    batching: Batching = Batching()
    resources: Machine = Machine()
    postprocess: Postprocess = Postprocess()
    explain: Literal["on_request", "never"] = "never"


class Shadow(Model):
    requests: int = Field(500, ge=0)
    max_wait: Duration = parse_duration("10m")


class CanaryStep(Model):
    weight: float = Field(gt=0, le=100)
    requests: int | None = Field(None, ge=1)
    max_wait: Duration | None = None


class Release(Model):
    """How a version goes live."""

    shadow: Shadow | None = None
    canary: tuple[float | CanaryStep, ...] = ()
    per_step: Duration = parse_duration("2m")
    when_quiet: Literal["inconclusive", "promote"] = "inconclusive"
    effect: float = Field(0.5, gt=0)
    profit_gate: Literal["refuse", "report", "off"] = "report"


class FalseAlarms(Model):
    max: float = Field(1, gt=0)
    per: Duration = parse_duration("90d")


class Labels(Model):
    delay: Duration = 0


class Alert(Model):
    """Where alarms go; exactly one route."""

    webhook: str | None = None
    email: str | None = None
    log: bool | None = None
    prometheus: bool | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        _exactly_one(self, ("webhook", "email", "log", "prometheus"))
        return self


class Retrain(Model):
    when: tuple[Literal["performance", "drift"], ...] = ("performance", "drift")
    at_most: Rate = "1/7d"


class Monitoring(Model):
    """What is watched, and how many false alarms are allowed."""

    window: Duration = parse_duration("1d")
    false_alarms: FalseAlarms = FalseAlarms()
    labels: Labels = Labels()
    segments: Names = ()
    alerts: tuple[Alert, ...] = ()
    retrain: Retrain | None = None


class Money(Model):
    amount: float
    currency: str = Field(pattern="^[A-Z]{3}$")


class Cost(Model):
    """Prices, and what a prediction is worth."""

    prices: str | None = None
    value_per_prediction: Money | None = None
    profit_margin: Share = 0.01
    training_life: Duration = parse_duration("30d")
    safety: float = Field(0.7, gt=0, le=1)
    budget: dict[str, Any] | None = None


#: Files and folders are called after sources.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]


class Project(Model):
    """The whole project file."""

    project: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")
    storage: str = ".mlops"
    tracking: str | None = None
    online: str | None = None
    include: Names = ()
    sources: dict[Name, Source]
    features: dict[str, View]
    target: Target
    training: Training = Training()
    serving: Serving = Serving()
    release: Release = Release()
    monitoring: Monitoring = Monitoring()
    cost: Cost = Cost()

    #: The file, and the line of each place in it.
    _origin: tuple[str | None, Mapping[tuple[Any, ...], int]] = PrivateAttr((None, {}))

    def located(self, error: ConfigError) -> ConfigError:
        """The error with file and line, for the place in this project that it is at."""
        file, lines = self._origin
        return ConfigError(error.message, file=file, line=_line(error.at, lines), at=error.at)

    @model_validator(mode="after")
    def _names(self) -> Self:
        places: list[tuple[tuple[str, ...], str]] = [(("target", "source"), self.target.source)]
        places += [
            (("features", name, "source"), view.source) for name, view in self.features.items() if view.source
        ]
        for place, source in places:
            if source not in self.sources:
                raise _wrong(
                    f"names {source!r}, which is no source{did_you_mean(source, self.sources)}", *place
                )
        known = set(self.sources[self.target.source].columns)
        for name in sorted(compile_sql(self.target.expr).columns - known):
            hint = did_you_mean(name, known)
            raise _wrong(
                f"reads {name!r}, which is no column of {self.target.source!r}{hint}", "target", "expr"
            )
        for name, view in self.features.items():
            for feature_name, feature in view.features.items():
                self._check_feature(("features", name, "features", feature_name), view, feature)
        return self

    def _check_feature(self, place: tuple[str, ...], view: View, feature: Feature) -> None:
        assert view.source is not None
        columns = self.sources[view.source].columns
        stored = feature.value_at or feature.window or feature.lag
        of = feature.latest if stored is None else stored.of
        if of not in columns:
            hint = did_you_mean(str(of), columns)
            raise _wrong(f"reads {of!r}, which is no column of {view.source!r}{hint}", *place)
        horizon = max(self.target.horizon)
        if feature.value_at is not None and feature.value_at.ago < horizon:
            raise _wrong("looks past the moment of prediction: ago is shorter than the horizon", *place)

    @property
    def functions(self) -> frozenset[str]:
        """The Python functions that features of the request call, by their dotted paths."""
        found = [f.function for view in self.features.values() for f in (view.on_request or {}).values()]
        return frozenset(function.path for function in found if function is not None)

    @property
    def deriving(self) -> frozenset[str]:
        """The Python functions that sources call, by their dotted paths."""
        return frozenset[str]().union(*(source.deriving for source in self.sources.values()))

    @property
    def label_delay(self) -> int:
        """Microseconds from a row's event time to the moment its label is known."""
        known = self.target.label_known
        return (known.after_event or 0) if known is not None else self.monitoring.labels.delay


class _JsonSchema(GenerateJsonSchema):
    """Says defaults as a file says them."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        made = super().default_schema(schema)
        default = made.get("default")
        if isinstance(default, dict):
            # Its own parts say theirs.
            return {key: value for key, value in made.items() if key != "default"}
        default = default[0] if isinstance(default, list) and len(default) == 1 else default
        if type(default) is int and "string" in (
            made.get("type"),
            *(t.get("type") for t in made.get("anyOf", ())),
        ):
            made["default"] = duration_in_words(default)
        return made


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a project file."""
    return Project.model_json_schema(by_alias=True, schema_generator=_JsonSchema)


# ---------------------------------------------------------------- reading the file


def load(path: str | Path, environ: Mapping[str, str] = os.environ) -> Project:
    """The project that a file describes, its paths absolute.

    Raises `ConfigError` in one sentence that says what is wrong and in which line.
    """
    file = Path(path)
    tree, lines = _parse(file)
    includes = _as_list(tree.get("include") or [])
    if not isinstance(includes, list):
        raise ConfigError(
            "a path, or a list of them, is needed", file=str(file), line=lines[("include",)], at=("include",)
        )
    for included in includes:
        other, _ = _parse(file.parent / str(included))
        for part in ("sources", "features"):
            shared = _resolve_paths(other, (file.parent / str(included)).parent).get(part, {})
            tree[part] = {**shared, **(tree.get(part) or {})}
    tree = _substitute(tree, environ, file, lines)
    try:
        project = Project.model_validate(_resolve_paths(tree, file.parent.resolve()))
        project._origin = str(file), lines
        return project
    except ValidationError as error:
        raise _first_error(error, file, lines) from None


def warnings(path: str | Path, environ: Mapping[str, str] = os.environ) -> list[str]:
    """What a person should know about a file that loads: alerts that are off, in sentences."""
    tree, _ = _parse(Path(path))
    alerts = (tree.get("monitoring") or {}).get("alerts") or []
    missing = [name for alert in alerts for name in _unset(alert, environ)]
    return [f"the alert that needs ${{{name}}} is off, since {name} is not set" for name in missing]


def _parse(file: Path) -> tuple[dict[str, Any], dict[tuple[Any, ...], int]]:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the project file {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 text (byte {error.start})", file=str(file)) from error
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _refuse_repetition(node, file)
        # Puts what `<<` merges into the nodes too, which then tell the line where it was written.
        tree = loader.construct_document(node) if node else None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise ConfigError(f"not YAML: {error.problem}", file=str(file), line=line) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"not YAML: {one_line(error)}", file=str(file)) from error
    if not isinstance(tree, dict):
        raise ConfigError("a project file is a mapping that begins with project: NAME", file=str(file))
    return tree, dict(_lines(node))


def _refuse_repetition(root: yaml.Node | None, file: Path) -> None:
    """Raises `ConfigError` for a key twice in a mapping, and for what grows without end by naming itself."""
    seen, pending = 0, [(root, 0)]
    while pending:
        node, depth = pending.pop()
        seen += 1
        if seen > MOST_NODES or depth > DEEPEST:
            raise ConfigError("too large, or an alias (*NAME) stands within what it names", file=str(file))
        if isinstance(node, yaml.MappingNode):
            keys: set[str] = set()
            for key, value in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    raise ConfigError("a key is a word", file=str(file), line=line)
                if key.value in keys and key.value != "<<":
                    raise ConfigError(f"the key {key.value!r} stands here twice", file=str(file), line=line)
                keys.add(key.value)
                pending.append((value, depth + 1))
        elif isinstance(node, yaml.SequenceNode):
            pending += [(value, depth + 1) for value in node.value]


def _lines(node: yaml.Node | None, at: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], int]]:
    """The line of every key and item."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*at, key.value), key.start_mark.line + 1
            yield from _lines(value, (*at, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*at, index), value.start_mark.line + 1
            yield from _lines(value, (*at, index))


def _first_error(error: ValidationError, file: Path, lines: Mapping[tuple[Any, ...], int]) -> ConfigError:
    details = error.errors()
    # A mistake inside one branch of a union is reported for every branch: the deepest place says most.
    detail = max(details, key=lambda d: (d["type"] == "unknown_key", len(_place(d["loc"], lines))))
    place = _place(detail["loc"], lines)
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "missing":
        message = f"the key {str(detail['loc'][-1])!r} is missing"
    if detail["type"] == "model_type":
        message = f"{detail['input']!r} stands where a mapping is needed, e.g. {{key: value}}"
    if detail["type"] == "wrong":
        place = (*place, *detail["ctx"]["at"])
    at = place
    if detail["type"] == "unknown_key":
        place = (*place, detail["ctx"]["key"])
    return ConfigError(message, file=str(file), line=_line(place, lines), at=at)


def _line(place: tuple[Any, ...], lines: Mapping[tuple[Any, ...], int]) -> int | None:
    """The line of a place in the file, or of the nearest thing around it that stands there."""
    return next((lines[place[:n]] for n in range(len(place), 0, -1) if place[:n] in lines), None)


def _place(loc: tuple[int | str, ...], lines: Mapping[tuple[Any, ...], int]) -> tuple[Any, ...]:
    """The part of an error's location that stands in the file (pydantic adds the names of union members)."""
    place: tuple[Any, ...] = ()
    for part in loc:
        if (*place, part) in lines:
            place = (*place, part)
    return place


def _unset(value: object, environ: Mapping[str, str]) -> list[str]:
    if isinstance(value, str):
        return [name for name in _VARIABLE.findall(value) if name not in environ]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [name for child in children for name in _unset(child, environ)]


def _substitute(
    tree: dict[str, Any], environ: Mapping[str, str], file: Path, lines: Mapping[tuple[Any, ...], int]
) -> dict[str, Any]:
    """The tree with every `${VAR}` replaced; an alert whose variable is unset is left out."""

    def walk(value: Any, at: tuple[Any, ...]) -> Any:
        if isinstance(value, dict):
            return {key: walk(child, (*at, key)) for key, child in value.items()}
        if isinstance(value, list):
            alerts = at == ("monitoring", "alerts")
            kept = [(i, child) for i, child in enumerate(value) if not (alerts and _unset(child, environ))]
            return [walk(child, (*at, i)) for i, child in kept]
        if not isinstance(value, str):
            return value
        for name in _unset(value, environ):
            why = f"the environment variable {name} is not set"
            raise ConfigError(why, file=str(file), line=lines.get(at), at=at)
        return _VARIABLE.sub(lambda match: environ[match[1]], value)

    return walk(tree, ())  # type: ignore[no-any-return]


def resolve(path: str, base: Path) -> str:
    """An absolute path or URL; `package://NAME/…` is a file of `mlops_ray.datasets`, else of a package.

    >>> resolve("data/a.csv", Path("/project"))
    '/project/data/a.csv'
    >>> resolve("s3://bucket/a.csv", Path("/project"))
    's3://bucket/a.csv'
    """
    if path.startswith("package://"):
        name, _, rest = path.removeprefix("package://").partition("/")
        return str(_package(name, path) / rest)
    return path if "://" in path else str((base / path).absolute())


def _package(name: str, path: str) -> Path:
    """The folder of a data set or of a package, which is not imported: that may take seconds."""
    own = Path(__file__).parent / "datasets" / name
    if own.is_dir():
        return own
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise ConfigError(
            f"no data set and no installed package is called {name!r} ({path}); install it first"
        )
    return Path(folders[0])


def _resolve_paths(tree: dict[str, Any], base: Path) -> dict[str, Any]:
    def files(path: Any) -> Any:
        if isinstance(path, list):
            return [files(item) for item in path]
        if isinstance(path, dict):
            return {**path, "path": files(path["path"])} if "path" in path else path
        return resolve(path, base) if isinstance(path, str) else path

    resolved = dict(tree)
    resolved["storage"] = files(tree.get("storage", ".mlops"))
    if isinstance(tree.get("sources"), dict):
        resolved["sources"] = {
            name: {**source, "path": files(source["path"])}
            if isinstance(source, dict) and "path" in source
            else source
            for name, source in tree["sources"].items()
        }
    if isinstance(tree.get("cost"), dict) and tree["cost"].get("prices"):
        resolved["cost"] = {**tree["cost"], "prices": files(tree["cost"]["prices"])}
    return resolved
