"""What the project file says of sources: where rows are read, what their columns are, and what must hold."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

import polars as pl
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_serializer, model_validator

from mlops_ray.config.values import (
    Aggregation,
    Duration,
    Function,
    Model,
    Names,
    Share,
    Sql,
    Step,
    Timezone,
    checked_sql,
    columns_of,
    require_known,
    wrong,
)
from mlops_ray.expressions import compile_sql
from mlops_ray.schema import DTYPES, INSTANT, Column, ColumnType, Rule, Schema, Severity

#: What reading puts beside a file's own columns.
OURS = frozenset({"_file", "_row", "time_problem", "time_written"})
#: What stands in a masked value's place: a hash that tells equal values within one page, or nothing.
MASKS = ("hash", "hide")
#: The columns that say an event time, by its granularity.
PARTS = {"day": 3, "hour": 4, "minute": 5}


class Csv(Model):
    """How a CSV file is written. `names` are the columns of a file without a header."""

    delimiter: str = Field(",", min_length=1, max_length=1)
    """What stands between two values."""
    quote: str = Field('"', max_length=1)
    """What encloses a value that holds the delimiter; an empty text for none."""
    decimal: str = Field(".", min_length=1, max_length=1)
    """What stands before the decimals of a number."""
    thousands: str | None = Field(None, min_length=1, max_length=1)
    """What groups the digits of a number, and is left out of it."""
    encoding: str = "utf-8"
    """How text is encoded, by Python's names, e.g. latin-1."""
    names: Names | None = None
    """The columns of a file without a header."""
    skip_rows: int = Field(0, ge=0)
    """Lines before the header that are no data."""


class JsonLines(Model):
    """One JSON object a line."""


class Parquet(Model):
    """Apache Parquet."""


class Excel(Model):
    """One sheet of a workbook, the first unless named; its first row is the header."""

    sheet: str | None = None
    """Its name; default: the first."""
    skip_rows: int = Field(0, ge=0)
    """Rows before the header that are no data."""


class Delta(Model):
    """A Delta table."""


class Format(Model):
    """One of the formats that can be read, with its options."""

    exactly_one = ("csv", "jsonl", "parquet", "excel", "delta")

    csv: Csv | None = None
    """Values by a delimiter, one row a line."""
    jsonl: JsonLines | None = None
    """One JSON object a line."""
    parquet: Parquet | None = None
    """Apache Parquet."""
    excel: Excel | None = None
    """One sheet of a workbook (extra `excel`)."""
    delta: Delta | None = None
    """A Delta table: a folder."""


def _by_name(value: object) -> object:
    return {value: {}} if isinstance(value, str) else value


#: A format, or its name alone.
AnyFormat = Annotated[Format, BeforeValidator(_by_name, json_schema_input_type=str | Format)]


class SqlQuery(Model):
    """A query and the database it runs on."""

    connection: str
    """`sqlite:///FILE` or `postgresql://USER@HOST/DATABASE`; a password comes by `${VAR}`."""
    query: str
    """What is asked: one SELECT, whose columns are those of a file."""
    cursor: str | None = None
    """A column that only grows (a time of change, a number): only rows from its newest stored value on are
    read."""


class File(Model):
    """One among several files or queries that make one table, where it differs from the others."""

    exactly_one = ("path", "sql")

    path: str | None = None
    """A path, a glob or a URL; relative to the project file."""
    sql: SqlQuery | None = None
    """A query in a file's place."""
    format: AnyFormat | None = None
    """Default: the source's."""
    rename: dict[str, str] = {}
    """Names of its columns in the file, and what they are called in the table; beside the source's."""
    null_values: Names | None = None
    """Default: the source's."""
    true_values: Names | None = None
    """Default: the source's."""
    false_values: Names | None = None
    """Default: the source's."""
    event_time: "EventTime | None" = None
    """Default: the source's."""
    columns: dict[str, "ColumnSpec"] = {}
    """Columns that only this file has, from which it derives columns of the table."""
    derive: dict[str, "Sql | Function"] = {}
    """Columns of the table that are computed of this file, beside those of the source."""


def _as_files(value: object) -> object:
    items = value if isinstance(value, list | tuple) else [value]
    return [{"path": item} if isinstance(item, str) else item for item in items]


Files = Annotated[
    tuple[File, ...], BeforeValidator(_as_files, json_schema_input_type=str | File | list[str | File])
]


class Unpivot(Model):
    """Columns other than `keep` become rows of (`names`, `values`)."""

    keep: Names
    """The columns that stay as they are, and stand in each row."""
    names: str
    """The column that says which column a value stood in."""
    values: str
    """The column of the values."""


class EventTime(Model):
    """When a row was true: a column, several (`columns`, with `granularity`), or the order of rows."""

    exactly_one = ("column", "columns", "order")

    column: str | None = None
    """The column that says it."""
    columns: Names | None = None
    """The columns that say it together, from the year on, e.g. [year, month, day]."""
    granularity: Literal["day", "hour", "minute"] | None = None
    """How far `columns` go: to the day, the hour, or the minute."""
    order: bool = False
    """Whether rows have no time and come in order, `every` so long."""
    every: Step | None = None
    """With `order`: the time between two rows."""
    format: str | None = None
    """How stamps are written, as strftime says it, e.g. %d.%m.%Y %H:%M; default: ISO 8601."""
    unit: Literal["s", "ms", "us", "ns"] | None = None
    """Of stamps that are numbers: what they count since 1970."""
    timezone: Timezone | None = None
    """Of stamps without an offset, e.g. Europe/Berlin."""
    ambiguous: Literal["raise", "infer"] = "raise"
    """What an hour is that a clock change repeats: an error, or told apart by the order of rows."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.columns is not None and len(self.columns) != PARTS.get(self.granularity or ""):
            raise ValueError(
                "columns needs granularity: day (year, month, day), hour (+ hour) or minute (+ minute)"
            )
        if self.order and self.every is None:
            raise ValueError("order needs every: the time between two rows, e.g. 30m")
        has_offset = self.columns is None and (self.format is None or "%z" in self.format)
        if self.timezone is None and not has_offset:
            raise ValueError("stamps without an offset need timezone, e.g. timezone: Europe/Berlin, or UTC")
        return self

    @property
    def reads(self) -> frozenset[str]:
        """The columns that say it."""
        return frozenset(name for name in (self.column, *(self.columns or ())) if name is not None)


class Resample(Model):
    """Aggregates over intervals of `every`, e.g. `load: mean`; each is stamped with the interval's end."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Aggregation]

    every: Step
    """How long an interval is."""

    @property
    def columns(self) -> dict[str, Aggregation]:
        """How each column is aggregated; others are left out."""
        return self.__pydantic_extra__

    @model_serializer
    def _apart(self) -> dict[str, Any]:
        return {"every": self.every, "columns": self.columns}


class KnownAt(Model):
    """A declared back-load: when the rows became known, instead of the time of the commit."""

    exactly_one = ("column", "after_event")

    column: str | None = None
    """The column that says it."""
    after_event: Duration | None = None
    """How long after its event time each row became known."""


class ColumnSpec(Model):
    """What the values of a column must be."""

    type: ColumnType
    """What values are read as; one that is no such value costs its row."""
    required: bool = False
    """Whether a missing value fails."""
    min: float | None = None
    """The least that passes."""
    max: float | None = None
    """The most that passes."""
    categories: tuple[str | int, ...] | None = None
    """The values that pass, and no others."""
    pattern: str | None = None
    """A regular expression that the whole of a text matches."""
    on_fail: Severity = "reject"
    """What befalls a row that fails: it is rejected, counted (`flag`), or stops the job."""


class RuleSpec(Model):
    """A condition that a row must hold."""

    name: str
    """What reports call it."""
    require: Sql
    """What must be true, in SQL over the columns of the row."""
    on_fail: Severity = "reject"
    """What befalls a row that fails: it is rejected, counted (`flag`), or stops the job."""
    nulls: Literal["pass", "fail"] = "pass"
    """What a rule comes to that cannot be known, since a value is missing."""


def _mask(text: str) -> str:
    return text if text in MASKS else checked_sql(text)


class Curated(Model):
    """The rows that people may see."""

    rows: int = Field(ge=0)
    """How many at most."""
    where: Sql | None = None
    """Which; default: any."""
    mask: dict[str, Annotated[str, AfterValidator(_mask)]] = {}
    """How columns are shown: `hash`, `hide`, or SQL over the column, e.g. `LEFT(zip, 2)`."""


class Policy(Model):
    """Where a source's rows may be, and who may see them."""

    allowed_regions: Names | None = None
    """The regions in which rows, and what is made of them row by row, may be; default: all."""
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
    """The fewest."""
    max: int | None = Field(None, ge=0)
    """The most."""


class TableChecks(Model):
    """What must hold of all rows together that an ingestion reads."""

    rows: RowCount | None = None
    """How many are valid."""
    freshness: Step | None = None
    """How old the newest may be."""
    missing: dict[str, Annotated[Share, Field(ge=0, le=1)]] = {}
    """The share of a column's values that may be missing."""
    on_fail: Literal["flag", "stop"] = "stop"
    """What a check that fails does: it is told (`flag`), or stops the job, which then stores nothing."""


def _require_condition(text: str, rows: pl.DataFrame, *at: object) -> None:
    try:
        dtype = rows.select(compile_sql(text).polars).dtypes[0]
    except pl.exceptions.PolarsError:
        # What is wrong is said where rows show it.
        return
    if dtype not in (pl.Boolean, pl.Null):
        raise wrong(f"{text!r} is no condition: it is of type {dtype}", *at)


def _behind(names: frozenset[str], derive: dict[str, "str | Function"]) -> frozenset[str]:
    """These columns, and those that they are derived from."""
    more = frozenset[str]().union(*(columns_of(how) for name, how in derive.items() if name in names))
    return names if more <= names else _behind(names | more, derive)


class Source(Model):
    """A table of rows: where it is read, what its columns are, and what must hold."""

    exactly_one = ("path", "sql")

    path: Files | None = None
    """A path, a glob, a URL, or a list of them; relative to this file, or `package://NAME/…`."""
    sql: SqlQuery | None = None
    """A query in the place of files."""
    ingestion: Literal["incremental", "full"] = "incremental"
    """`incremental` reads what is new or changed; `full` takes the files for the whole table, so that what is
    no longer in them is taken back."""
    format: AnyFormat | None = None
    """Default: what the file is called after, else CSV."""
    null_values: Names = ("",)
    """What stands in a file where a value is missing."""
    true_values: Names = Schema.true_values
    """What stands in a file for yes."""
    false_values: Names = Schema.false_values
    """What stands in a file for no."""
    rename: dict[str, str] = {}
    """Names of columns in the files, and what they are called here, e.g. {Zeit: time}."""
    unpivot: Unpivot | None = None
    """Makes rows of columns, where a file has one column for each entity."""
    derive: dict[str, "Sql | Function"] = {}
    """Declared columns that are computed from the others of their row."""
    where: Sql | None = None
    """Rows that do not fulfil it are left out."""
    entity: Names = ()
    """The key: whose rows they are."""
    time: Literal["none"] | None = None
    """`none` for a table that has keys alone."""
    event_time: EventTime | None = None
    """When a row was true."""
    resample: Resample | None = None
    """Rows are aggregated over intervals, before features and labels are made of them."""
    season: Duration | None = None
    """After how long the rows repeat themselves; the naive forecast is the value then."""
    known_at: KnownAt | None = None
    """When rows became known; default: when they were ingested."""
    row_id: str | None = None
    """The column that tells rows of one key and time apart; without it, a second one corrects the first."""
    sequence: str | None = None
    """The column that orders the versions of a row that become known at once; default: the file's order."""
    deleted: str | None = None
    """The column that says that a row is to be taken back."""
    columns: dict[str, ColumnSpec]
    """The columns that are kept, with their types; others are left in the file."""
    rules: tuple[RuleSpec, ...] = ()
    """What must hold of each row."""
    unique: Severity = "flag"
    """What befalls a row that another one of the same key and row id (or event time) follows; flagged, it is
    corrected by that one."""
    checks: TableChecks = TableChecks()
    policy: Policy = Policy()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        self._check_times()
        self._check_columns()
        self._check_named()
        self._check_reads(())
        for index, file in enumerate(self.path or ()):
            self._check_file(("path", index), file)
        return self

    def _check_times(self) -> None:
        time, known = self.event_time, self.known_at
        if (time is None) == (self.time is None):
            raise ValueError("say event_time, or time: none for a table without time")
        if time is None and known is not None and known.after_event is not None:
            raise wrong("rows of a table without time have no event to count from", "known_at", "after_event")
        if self.ingestion == "full" and known and (known.column or self.row_id or self.sequence):
            raise wrong("rows that say when they became known are taken back by deleted alone", "ingestion")
        if time is not None and time.ambiguous == "infer" and set(self.entity) & set(self.derive):
            raise wrong(
                "ambiguous: infer reads the file's order of each entity, before columns are derived; "
                "name the columns that the entity is made of",
                "entity",
            )

    def _check_columns(self) -> None:
        """Raises where a column cannot be called as it is."""
        time = self.event_time
        own = time.column if time else None
        for name in self.columns:
            if not name or name == "*" or (name[0] == "^" and name[-1] == "$"):
                raise wrong("is no name for a column", "columns", name)
            if name.startswith("_") or name in OURS or (name == "event_time" != own):
                other = f"{name.strip('_') or 'x'}_given"
                says = f"is a name of ours; call the column otherwise, e.g. by rename: {{{name}: {other}}}"
                raise wrong(says, "columns", name)
        unpivot = {self.unpivot.names, self.unpivot.values} if self.unpivot else set()
        for key, names in {"event_time": time.reads if time else set(), "unpivot": unpivot}.items():
            for taken in OURS & names:
                raise wrong(f"{taken!r} is a name of ours; call the column otherwise, by rename", key)
        if len(set(self.entity)) < len(self.entity):
            raise wrong("names a key twice", "entity")

    def _check_named(self) -> None:
        """Raises where a column is named that is not declared, or that is of another type than is needed."""
        curated, known_at = self.policy.curated, self.known_at
        named: list[tuple[tuple[str, ...], Iterable[str | None], ColumnType | None]] = [
            (("entity",), self.entity, None),
            (("resample",), tuple(self.resample.columns) if self.resample else (), None),
            (("derive",), self.derive, None),
            (("known_at", "column"), [known_at.column] if known_at else [], "datetime"),
            (("row_id",), [self.row_id], None),
            (("sequence",), [self.sequence], "int"),
            (("deleted",), [self.deleted], "bool"),
            (("policy", "machine_only"), self.policy.machine_only, None),
            (("policy", "curated", "mask"), curated.mask if curated else {}, None),
            (("checks", "missing"), self.checks.missing, None),
            (("sql", "cursor"), [file.sql.cursor for file in self.inputs if file.sql], None),
        ]
        for place, names, type in named:
            for name in names:
                if name is None:
                    continue
                at = (*place, name) if isinstance(names, dict) else place
                require_known("names", {name}, self.columns, "not among columns", *at)
                if type is not None and self.columns[name].type != type:
                    raise wrong(f"the column {name!r} is of type {self.columns[name].type}, not {type}", *at)

    def _check_file(self, place: tuple[object, ...], file: File) -> None:
        for name in file.columns:
            if name in self.columns:
                raise wrong("is a column of the table; give it another name", *place, "columns", name)
        for name in file.derive:
            require_known("computes", {name}, self.columns, "no column of the table", *place, "derive", name)
        if file.event_time is not None and self.event_time is None:
            raise wrong("the table has none (time: none)", *place, "event_time")
        if file.sql is not None and file.sql.cursor is not None:
            if self.ingestion == "full":
                raise wrong("ingestion: full reads everything", *place, "sql", "cursor")
            if len(self.inputs) > 1:
                # How far a query was read is told by what is stored, of which the others have a part.
                raise wrong("a query among others has no cursor; make it a source", *place, "sql")
        self.of(file)._check_reads(place)

    def _check_reads(self, at: tuple[object, ...]) -> None:
        """Raises for what reads a column that is not there, and for a condition that is none, by its type."""
        time = {"event_time": INSTANT} if self.event_time else {}
        known = self.columns.keys() - self.derive.keys() | time.keys()
        for name, how in self.derive.items():
            require_known("reads", columns_of(how), known, "no column", *at, "derive", name)
            known |= {name}
        curated = self.policy.curated
        conditions: list[tuple[tuple[object, ...], str, str | None]] = [
            *((("rules", i), f"{rule.name!r} reads", rule.require) for i, rule in enumerate(self.rules)),
            (("where",), "reads", self.where),
            (("policy", "curated", "where"), "reads", curated.where if curated else None),
        ]
        rows = pl.DataFrame(schema={name: DTYPES[spec.type] for name, spec in self.columns.items()} | time)
        for place, does, text in conditions:
            if text is not None:
                require_known(does, columns_of(text), known, "no column", *at, *place)
                _require_condition(text, rows, *at, *place)
        mask = ("policy", "curated", "mask")
        for name, how in curated.mask.items() if curated else ():
            if how not in MASKS:
                require_known("reads", columns_of(how), {name}, "no column", *at, *mask, name)

    @property
    def inputs(self) -> tuple[File, ...]:
        """The files and queries that make the table."""
        return self.path if self.path is not None else (File(sql=self.sql),)

    def of(self, file: File) -> Self:
        """The source as one of its files is to be read.

        Of the file's own columns those are hidden that a hidden one is made of, and so is its event time.
        """
        own = ("format", "null_values", "true_values", "false_values", "event_time")
        given = {name: getattr(file, name) for name in own if getattr(file, name) is not None}
        merged = {name: getattr(self, name) | getattr(file, name) for name in ("rename", "columns", "derive")}
        read = self.model_copy(update=given | merged)
        time = self.hidden & {"event_time"}
        reads = read.event_time.reads if time and read.event_time else frozenset[str]()
        behind = _behind(self.hidden | reads, read.derive) & file.columns.keys()
        only = {"machine_only": (*self.policy.machine_only, *time, *sorted(behind))}
        return read.model_copy(update={"policy": self.policy.model_copy(update=only)})

    @property
    def identity(self) -> tuple[str, ...]:
        """The columns without which a row has no place in the history, beside those of its entity."""
        known_at = self.known_at.column if self.known_at else None
        return tuple(name for name in (self.row_id, known_at) if name is not None)

    @property
    def hidden(self) -> frozenset[str]:
        """The columns whose values are never shown as they stand, and what is made of them."""
        hidden = self.policy.hidden
        if self.event_time is not None and hidden & self.event_time.reads:
            hidden |= {"event_time"}
        return self._with_derived(hidden)

    @property
    def machine_only(self) -> frozenset[str]:
        """The columns that code reads and people never see, and what is made of them."""
        return self._with_derived(frozenset(self.policy.machine_only))

    def _with_derived(self, names: frozenset[str]) -> frozenset[str]:
        """These columns, and those that are derived from them."""
        every = [*self.derive.items(), *(each for file in self.inputs for each in file.derive.items())]
        more = {name for name, how in every if names & columns_of(how)} - names
        return self._with_derived(names | more) if more else names

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
