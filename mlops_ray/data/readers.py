"""Readers of every format: blocks of rows, each row with its place, in bounded memory.

Types are never guessed. Values come as text, or as what the file says they are, and a schema casts them
later; so a value of a wrong type costs its row, and never the file.
"""

import contextlib
import json
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote
from uuid import UUID

import orjson
import polars as pl
import pyarrow as pa

from mlops_ray.config import Csv, Delta, Excel, File, Format, JsonLines, Parquet, Source, SqlQuery
from mlops_ray.data import delimited
from mlops_ray.data.delimited import REFUSED, Block, Delimited, line_end, pieces, placed, utf8
from mlops_ray.data.event_time import columns_of
from mlops_ray.data.inputs import CONNECT_S, UNREADABLE, delta_table, is_delta, kind, opened, seekable, shown
from mlops_ray.errors import DataError, one_line

__all__ = ["Block", "Reader", "reader"]

#: Rows of a typed input that are read at a time.
ROWS = 65_536
#: Of a column of a Parquet file, what is read at a time: whole columns of a row group may be large.
COLUMN_BYTES = 1 << 20
#: Lines whose keys are taken for the columns of a JSON lines file.
SAMPLE_LINES = 1_000
#: A line that is no JSON object.
NOT_JSON = "not_json"
#: What Python writes for numbers that JSON has no words for.
NO_NUMBER = re.compile(rb"NaN|Infinity")
#: From here on not every whole number is a float of its own.
EXACT_FLOATS = 2**53
#: Zeros that end the digits behind the point, and say nothing of the value: 2.00 is whole.
ENDING_ZEROS = re.compile(r"\.0+$|(\.\d*[1-9])0+$").pattern
#: Types of Arrow, by their names, that come as text.
UNTYPED = re.compile("binary|interval|uuid")
#: Types of PostgreSQL that come as what they are; the server writes the others as text.
TYPED = frozenset(
    {"bool", "int2", "int4", "int8", "float4", "float8", "text", "varchar", "bpchar", "name"}
    | {"date", "timestamp", "timestamptz"}
)
#: What a file is called after tells its format.
FORMATS = (
    dict.fromkeys((".csv", ".txt"), Format(csv=Csv()))
    | {".tsv": Format(csv=Csv(delimiter="\t"))}
    | dict.fromkeys((".jsonl", ".ndjson", ".json"), Format(jsonl=JsonLines()))
    | dict.fromkeys((".parquet", ".pq"), Format(parquet=Parquet()))
    | dict.fromkeys((".xlsx", ".xls", ".xlsb", ".ods"), Format(excel=Excel()))
)

#: The columns that are wanted, to the blocks of an input.
Read = Callable[[Sequence[str]], Iterator[Block]]
#: The columns that are wanted, to the input's rows, no row left out.
Frames = Callable[[Sequence[str]], Iterator[pl.DataFrame]]


@dataclass(frozen=True)
class Reader:
    """An input and the names of its columns as they stand there."""

    name: str
    names: list[str]
    read: Read

    def blocks(self, wanted: Sequence[str]) -> Iterator[Block]:
        """The input's rows, in order; `wanted` are among `names`.

        Raises `DataError` where it cannot be read, with the row behind which it ends.
        """
        row = 0
        try:
            for block in self.read(wanted):
                yield block
                row = max(row, *(part["_row"][-1] for part in (block.frame, block.refused) if part.height))
        except UNREADABLE as error:
            said = f": {one_line(error)[:200]}"
            raise DataError(f"cannot be read after row {row}", file=self.name, said=said) from error


def reader(file: File, source: Source, after: object | None = None) -> Reader:
    """The reader of a file or query; `source` is as that file is to be read (`Source.of`).

    With `after`, only rows are read whose cursor is not before it; rows that do not compare with it come too.
    Raises `DataError` in one sentence where the input cannot be read.
    """
    name = shown(file)
    try:
        if file.sql is not None:
            opener = _sqlite if file.sql.connection.startswith("sqlite:") else _postgres
            return Reader(name, *_numbered(name, *opener(file.sql, after)))
        format = _format_of(name, source)
        if format.csv is not None:
            text = Delimited.open(name, format.csv)
            return Reader(name, text.names, text.blocks)
        if format.jsonl is not None:
            return Reader(name, *_json_lines(name, source))
        if format.excel is not None:
            return Reader(name, *_excel(name, format.excel))
        typed = _parquet(name) if format.parquet is not None else _delta(name)
        return Reader(name, *_numbered(name, *typed))
    except UNREADABLE as error:
        raise DataError(f"cannot be read: {one_line(error)[:200]}", file=name) from error


def _format_of(path: str, source: Source) -> Format:
    """The format that a file is read in: as its source says, else by what it is called after."""
    if source.format is not None:
        return source.format
    known = FORMATS.get(kind(path))
    return known or (Format(delta=Delta()) if is_delta(path) else FORMATS[".csv"])


def _numbered(name: str, names: list[str], frames: Frames) -> tuple[list[str], Read]:
    """The reader of an input of which no row is left out."""

    def read(wanted: Sequence[str]) -> Iterator[Block]:
        row = 0
        for frame in frames(wanted):
            numbers = pl.int_range(row + 1, row + frame.height + 1, eager=True)
            yield Block(placed(frame.select(wanted), name, numbers))
            row += frame.height

    return names, read


# ---------------------------------------------------------------- JSON lines


def _json_lines(path: str, source: Source) -> tuple[list[str], Read]:
    names = _keys(path, _expected(source))

    def read(wanted: Sequence[str]) -> Iterator[Block]:
        # Their text may be asked for, of which a float keeps 17 digits.
        exact = [name for name in wanted if not _is_number(name, source)]
        row = 0
        for lines in _lines(path):
            yield _objects(path, lines, row, wanted, exact)
            row += len(lines)

    return names, read


def _is_number(name: str, source: Source) -> bool:
    """Whether a column of a file is one of numbers, or of truth."""
    column = source.rename.get(name, name)
    if source.unpivot is not None and column not in source.unpivot.keep:
        column = source.unpivot.values
    return column in source.columns and source.columns[column].type in ("float", "int", "bool")


def _expected(source: Source) -> set[str]:
    """The keys that must be found, if only in a late line."""
    made = set(source.derive) | ({source.unpivot.names, source.unpivot.values} if source.unpivot else set())
    written = {column: name for name, column in source.rename.items()}
    time = columns_of(source.event_time) if source.event_time else ()
    return {written.get(name, name) for name in (*source.columns, *time) if name not in made}


def _keys(path: str, expected: set[str]) -> list[str]:
    """The keys of the first lines, in order, and of the expected ones those that come only later."""
    keys: dict[str, None] = {}
    seen = 0
    for lines in _lines(path):
        for line in lines:
            if seen >= SAMPLE_LINES and expected <= keys.keys():
                return list(keys)
            row = _object(line) or {}
            keys |= dict.fromkeys(row if seen < SAMPLE_LINES else expected & row.keys())
            seen += 1
    if not keys:
        why = "no line is a JSON object; is it JSON lines, an object a line?" if seen else "the file is empty"
        raise DataError(why, file=path)
    return list(keys)


def _lines(path: str) -> Iterator[list[bytes]]:
    with opened(path) as stream:
        for piece in pieces(utf8(stream, "utf-8", delimited.BLOCK_BYTES), line_end):
            yield piece.removesuffix(b"\n").split(b"\n")


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        row = _loosely(line) if NO_NUMBER.search(line) else None
    return row if isinstance(row, dict) else None


def _loosely(line: bytes) -> Any:
    """An object in which Python wrote a number that is none, if that is all that is wrong with it."""
    try:
        row = json.loads(line)
        # Half a sign would be no text.
        json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return row


def _objects(path: str, lines: list[bytes], before: int, wanted: Sequence[str], exact: list[str]) -> Block:
    """The block of some lines, with `before` of them in the file; a line that is no object is refused."""
    numbers, rows, refused = [], [], []
    for number, line in enumerate(lines, before + 1):
        row = _object(line)
        if row is not None:
            if inexact := [name for name in exact if type(row.get(name)) is float]:
                written = json.loads(line, parse_float=str)
                row |= {name: written[name] for name in inexact}
            numbers.append(number)
            rows.append(row)
        elif line.strip():
            length = len(line.decode(errors="replace").rstrip("\r"))
            refused.append((number, NOT_JSON, f"line of {length} characters"))
    frame = pl.DataFrame([_series(name, [row.get(name) for row in rows]) for name in wanted])
    places = pl.Series(numbers, dtype=pl.Int64)
    return Block(placed(frame, path, places), pl.DataFrame(refused, schema=REFUSED, orient="row"))


def _series(name: str, values: list[Any]) -> pl.Series:
    """A column of Python values as what they are, or as text where they are of several kinds."""
    kinds = set(map(type, values)) - {type(None)}
    if kinds == {int, float} and all(abs(v) <= EXACT_FLOATS for v in values if type(v) is int):
        values = [None if value is None else float(value) for value in values]
        kinds = {float}
    dtypes: dict[type, Any] = {str: pl.String, bool: pl.Boolean, int: pl.Int64, float: pl.Float64}
    dtype = dtypes.get(*kinds) if len(kinds) == 1 else None if kinds else pl.Null
    # A number beyond 64 bits is text.
    with contextlib.suppress(OverflowError, TypeError):
        if dtype is not None:
            return pl.Series(name, values, dtype=dtype)
    return pl.Series(name, list(map(_text, values)), dtype=pl.String)


def _text(value: Any) -> str | None:
    """What a value among those of other kinds is written like."""
    if value is None or isinstance(value, str | UUID):
        return None if value is None else str(value)
    if isinstance(value, bytes):
        # Text, which some writers call bytes.
        with contextlib.suppress(UnicodeDecodeError):
            return value.decode()
        return value.hex()
    if isinstance(value, float):
        # An id read as 7.0 must not become another id than 7.
        return repr(value).removesuffix(".0")
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


# ---------------------------------------------------------------- Arrow: Parquet, Delta


def _parquet(path: str) -> tuple[list[str], Frames]:
    from pyarrow import parquet

    def opened_file() -> Any:
        return parquet.ParquetFile(
            seekable(path), buffer_size=COLUMN_BYTES, pre_buffer=False, page_checksum_verification=True
        )

    def frames(wanted: Sequence[str]) -> Iterator[pl.DataFrame]:
        with opened_file() as file:
            for batch in file.iter_batches(ROWS, columns=list(wanted)):
                yield _frame(batch)

    with opened_file() as file:
        return file.schema_arrow.names, frames


def _delta(path: str) -> tuple[list[str], Frames]:
    """The table at its newest version, its files in the order of time: later rows correct older ones."""
    import deltalake
    from pyarrow import dataset

    with _plainly(deltalake.exceptions.DeltaError):
        table = delta_table(path)
        rows = table.to_pyarrow_dataset()
        files = pl.DataFrame(table.get_add_actions()).select("path", "modification_time").reverse().rows()
    written = {unquote(file): (time, number) for number, (file, time) in enumerate(files)}
    options = dataset.ParquetFragmentScanOptions(
        use_buffered_stream=True, buffer_size=COLUMN_BYTES, pre_buffer=False
    )

    def frames(wanted: Sequence[str]) -> Iterator[pl.DataFrame]:
        for file in sorted(rows.get_fragments(), key=lambda file: written[file.path]):
            batches = file.to_batches(
                schema=rows.schema,
                columns=list(wanted),
                batch_size=ROWS,
                batch_readahead=1,
                fragment_scan_options=options,
            )
            yield from map(_frame, batches)

    return rows.schema.names, frames


def _frame(batch: pa.RecordBatch) -> pl.DataFrame:
    """Typed rows, each column of a type that a schema casts without losing what it says."""
    columns = [_plain(column) for column in batch.columns]
    frame = pl.DataFrame(pa.Table.from_arrays(columns, names=batch.schema.names))
    return frame.with_columns(
        pl.col(field.name).str.replace(ENDING_ZEROS, "$1")
        for field in batch.schema
        if pa.types.is_decimal(field.type)
    )


def _plain(column: pa.Array) -> pa.Array:
    type = column.type
    if pa.types.is_dictionary(type):
        return _plain(column.dictionary_decode())
    if isinstance(type, pa.BaseExtensionType) and not isinstance(type, pa.UuidType):
        return _plain(column.storage)
    if pa.types.is_decimal(type):
        return column.cast(pa.string())
    if pa.types.is_timestamp(type) and type.tz is not None:
        return column.cast(pa.timestamp(type.unit, "UTC"))
    if pa.types.is_nested(type) or UNTYPED.search(str(type)):
        return pa.array(list(map(_text, column.to_pylist())), pa.string())
    return column


# ---------------------------------------------------------------- Excel


def _excel(path: str, format: Excel) -> tuple[list[str], Read]:
    """The reader of a sheet, which is read whole; an empty row is none, but counts."""
    texts, numbers = _sheet(path, format)
    header = texts.row(0)
    places = {name: texts.columns[index] for index, name in enumerate(header) if name is not None}
    rows = pl.DataFrame([_cells(texts.to_series(i), numbers.to_series(i))[1:] for i in range(texts.width)])
    rows = rows.with_columns(_row=pl.int_range(1, pl.len() + 1, dtype=pl.Int64))
    rows = rows.filter(~pl.all_horizontal(pl.col(texts.columns).is_null()))

    def read(wanted: Sequence[str]) -> Iterator[Block]:
        for part in rows.iter_slices(ROWS):
            frame = part.select(pl.col(places[name]).alias(name) for name in wanted)
            yield Block(placed(frame, path, part["_row"]))

    return [name for name in header if name is not None], read


def _sheet(path: str, format: Excel) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The cells of a sheet from its header on, as texts and as numbers."""
    try:
        import fastexcel
    except ImportError as error:
        raise DataError("Excel needs fastexcel; pip install 'mlops_ray[excel]'", file=path) from error
    # By default, empty rows above the header are left out.
    options: dict[str, Any] = {"header_row": None, "skip_rows": format.skip_rows or None}
    with opened(path) as stream, _plainly(fastexcel.FastExcelError):
        book = fastexcel.read_excel(stream.read())
        name = format.sheet or book.sheet_names[0]
        if name not in book.sheet_names:
            raise DataError(f"has no sheet {name!r}; it has {', '.join(book.sheet_names)}", file=path)
        texts = book.load_sheet(name, dtypes="string", **options).to_polars()
        numbers = book.load_sheet(name, dtypes="float", **options).to_polars()
    if not texts.height:
        raise DataError(f"the sheet {name!r} has no header in row {format.skip_rows + 1}", file=path)
    return texts, numbers


def _cells(texts: pl.Series, numbers: pl.Series) -> pl.Series:
    """A column's cells as text: numbers with all their digits, of which fastexcel's text has nine decimals.

    Empty is null, and so is an error (#N/A, #DIV/0!): it says that the cell has no value.
    """
    rounded = texts.cast(pl.Float64, strict=False)
    whole = numbers.cast(pl.Int64, strict=False)
    is_whole = (whole.cast(pl.Float64) == numbers).fill_null(False)
    digits = whole.cast(pl.String).zip_with(is_whole, numbers.cast(pl.String))
    # A text cell like 007 is its number, and stays; a time of day lies on the day before the first.
    texts = texts.str.replace(r"^1899-12-31 ", "")
    return digits.zip_with((rounded != numbers).fill_null(False), texts)


# ---------------------------------------------------------------- SQL


def _sqlite(sql: SqlQuery, after: object | None) -> tuple[list[str], Frames]:
    """By Python's own driver: ADBC's takes a column's type from the first rows, and ends at another one."""
    query, bound = sql.query, []
    if after is not None and sql.cursor is not None:
        value, column = _comparable(after, True), f"q.{_quoted(sql.cursor)}"
        kinds = "'text'" if isinstance(value, str) else "'integer', 'real'"
        # Values of other kinds lie before all others or behind them: they are read rather than missed.
        newer = f"{column} >= ? OR ({column} IS NOT NULL AND typeof({column}) NOT IN ({kinds}))"
        query = f"SELECT * FROM ({_bare(query)}) AS q WHERE {newer} ORDER BY {column}"  # noqa: S608
        bound = [value]

    def frames(wanted: Sequence[str]) -> Iterator[pl.DataFrame]:
        with _sqlite_session(sql.connection) as connection:
            rows = connection.execute(query, bound)
            places = [names.index(name) for name in wanted]
            while some := rows.fetchmany(max(1, ROWS // len(names))):
                columns = list(zip(*some, strict=True))
                yield pl.DataFrame([_series(names[place], list(columns[place])) for place in places])

    with _sqlite_session(sql.connection) as connection:
        described = connection.execute(f"SELECT * FROM ({_bare(sql.query)}) LIMIT 0").description  # noqa: S608
        names = [column[0] for column in described]
    return names, frames


@contextlib.contextmanager
def _sqlite_session(connection: str) -> Iterator[sqlite3.Connection]:
    path = connection.removeprefix("sqlite:///")
    if path == connection or not Path(path).is_file():
        raise OSError(f"no such database file: {path}; a connection is sqlite:///FILE")
    with (
        _plainly(sqlite3.Error),
        contextlib.closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)) as database,
    ):
        yield database


def _postgres(sql: SqlQuery, after: object | None) -> tuple[list[str], Frames]:
    rows = f"FROM ({_bare(sql.query)}) AS q"
    with _postgres_session(sql.connection) as cursor:
        cursor.execute(f"SELECT * {rows} LIMIT 0")
        schema = cursor.fetch_record_batch().schema
    kinds = {f.name: (f.metadata or {}).get(b"POSTGRESQL:type", b"").decode() for f in schema}

    def frames(wanted: Sequence[str]) -> Iterator[pl.DataFrame]:
        with _postgres_session(sql.connection) as cursor:
            newer = ""
            if after is not None and sql.cursor is not None:
                column, least = f"q.{_quoted(sql.cursor)}", _literal(cursor, after, kinds[sql.cursor])
                newer = f"WHERE {column} >= {least} ORDER BY {column}"
            asked = ", ".join(_asked(name, kinds[name]) for name in wanted)
            cursor.execute(f"SELECT {asked} {rows} {newer}")
            numerics = [name for name in wanted if kinds[name] == "numeric"]
            for batch in cursor.fetch_record_batch():
                yield _frame(batch).with_columns(pl.col(numerics).str.replace(ENDING_ZEROS, "$1"))

    return schema.names, frames


@contextlib.contextmanager
def _postgres_session(connection: str) -> Iterator[Any]:
    """A cursor that can only read, in one transaction."""
    try:
        import adbc_driver_postgresql  # type: ignore[import-untyped]
        from adbc_driver_postgresql import dbapi
    except ImportError as error:
        raise DataError("databases need drivers; pip install 'mlops_ray[sql]'") from error
    address, secrets = _address(connection)
    size = {adbc_driver_postgresql.StatementOptions.BATCH_SIZE_HINT_BYTES.value: str(delimited.BLOCK_BYTES)}
    with (
        _plainly(dbapi.Error, *UNREADABLE, secrets=secrets),
        dbapi.connect(address) as database,
        database.cursor(adbc_stmt_kwargs=size) as cursor,
    ):
        cursor.execute("SET TRANSACTION READ ONLY")
        yield cursor


def _address(connection: str) -> tuple[str, list[str]]:
    """A connection as the driver takes it, and what of it stands in no message."""
    scheme, _, rest = connection.partition("://")
    if scheme not in ("postgresql", "postgres"):
        raise OSError("a connection is sqlite:///FILE or postgresql://USER@HOST/DATABASE")
    head, _, options = rest.partition("?")
    who, at, place = head.rpartition("@")
    if "@" in options:
        raise OSError("in a connection, a ? in the password is written %3F, and an @ behind the ? %40")
    user, colon, password = who.partition(":")
    given = dict(parse_qsl(options))
    # A password as a person writes it may have signs that would end it.
    who = user + colon + quote(unquote(password), safe="")
    options += "" if "connect_timeout" in given else f"{'&' * bool(options)}connect_timeout={CONNECT_S}"
    secrets = [password, unquote(password), given.get("password", "")]
    return f"{scheme}://{who}{at}{place}?{options}", [secret for secret in secrets if secret]


def _asked(name: str, kind: str) -> str:
    column = f"q.{_quoted(name)}"
    if kind in TYPED:
        return column
    # The type of an array is called after that of its values.
    return f"{f'to_json({column})' if kind.startswith('_') else column}::text AS {_quoted(name)}"


def _literal(cursor: Any, after: object, kind: str) -> str:
    """A value as a part of a query, written by the server: what is bound would not be streamed."""
    is_text = kind in ("text", "varchar", "bpchar", "name")
    if is_text and isinstance(after, int | float):
        raise OSError("the cursor is text, in which 9 comes after 10; cast it in the query")
    cursor.execute("SELECT quote_literal($1)", [str(_comparable(after, is_text))])
    return str(cursor.fetchone()[0])


def _comparable(after: object, is_text: bool) -> Any:
    """A stored value as a database compares it; of a time that is text there, a day before it in any zone."""
    if is_text and isinstance(after, datetime):
        return (after - timedelta(days=1)).date().isoformat()
    if isinstance(after, date):
        return after.isoformat()
    return after if isinstance(after, int | float | str) else str(after)


def _bare(query: str) -> str:
    """A query as a part of another one."""
    return f"\n{query.strip().rstrip(';')}\n"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@contextlib.contextmanager
def _plainly(*errors: type[Exception], secrets: Sequence[str] = ()) -> Iterator[None]:
    """Errors of a library as `OSError`, without what nobody may see."""
    try:
        yield
    except errors as error:
        text = one_line(error)
        for secret in secrets:
            text = text.replace(secret, "…")
        # The original would be shown with it, and holds it.
        raise OSError(text) from None
