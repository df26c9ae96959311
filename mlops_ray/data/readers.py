"""Readers of every format: blocks of rows, each row with its place, in bounded memory.

Types are never guessed. Values come as text, or as what the file says they are, and a schema casts them
later; so a value of a wrong type costs its row, and never the file.
"""

import contextlib
import io
import json
import re
import sqlite3
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, unquote, unquote_plus
from uuid import UUID

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from mlops_ray.config import Csv, Delta, Excel, File, Format, JsonLines, Parquet, Source, SqlQuery
from mlops_ray.data import delimited
from mlops_ray.data.delimited import (
    LONGEST_ROW_BYTES,
    REFUSED,
    Block,
    Delimited,
    line_end,
    pieces,
    placed,
    utf8,
)
from mlops_ray.data.event_time import columns_of
from mlops_ray.data.inputs import (
    CONNECT_S,
    UNREADABLE,
    delta_table,
    escaped,
    is_delta,
    kind,
    opened,
    seekable,
    shown,
)
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
#: A line that is nested deeper is refused: Python, which writes values, ends at some more.
DEEPEST = 100
#: The years that Python and Polars both know, by the units of Arrow.
DAYS = (-719_162, 2_932_896)
SECONDS = (DAYS[0] * 86_400, (DAYS[1] + 1) * 86_400 - 1)
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
#: Of a workbook, what is unpacked at most, and the cells between its first and its last, which take memory.
BOOK_BYTES = 2 << 30
CELLS = 50_000_000
#: The last row and column that Excel knows.
LAST_ROW, LAST_COLUMN = 1_048_576, 16_384
#: Where rows and cells begin in a sheet, and where they say they lie.
PLACES = re.compile(rb"""<(?:[\w.-]+:)?(row|c)(?=[\s/>])|\sr\s*=\s*["']([A-Za-z]*)([0-9]+)["']""")
#: What a hostile input raises beyond what a damaged one does.
HOSTILE = (UnicodeError, OverflowError, MemoryError, RecursionError, pl.exceptions.PanicException)
#: A secret that is shorter is part of many words.
SHORTEST_SECRET = 3
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
                parts = (part for part in (block.frame, block.refused) if part.height)
                row = max([row, *(part["_row"][-1] for part in parts)])
        except (*UNREADABLE, *HOSTILE) as error:
            said = f": {_why(error)}"
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
        path = str(file.path)
        format = _format_of(path, source)
        if format.csv is not None:
            text = Delimited.open(path, format.csv)
            return Reader(name, text.names, text.blocks)
        if format.jsonl is not None:
            return Reader(name, *_json_lines(path, source))
        if format.excel is not None:
            return Reader(name, *_excel(path, format.excel))
        typed = _parquet(path) if format.parquet is not None else _delta(path)
        return Reader(name, *_numbered(name, *typed))
    except (*UNREADABLE, *HOSTILE) as error:
        raise DataError(f"cannot be read: {_why(error)}", file=name) from error


def _why(error: BaseException) -> str:
    return one_line(error)[:200] or "it takes more memory than there is"


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


def _expected(source: Source) -> set[str] | None:
    """The keys that must be found, if only in a late line; `None` where every key is a value."""
    if source.unpivot is not None:
        return None
    made = set(source.derive)
    written = {column: name for name, column in source.rename.items()}
    time = columns_of(source.event_time) if source.event_time else ()
    return {written.get(name, name) for name in (*source.columns, *time) if name not in made}


def _keys(path: str, expected: set[str] | None) -> list[str]:
    """The keys of the first lines, in order, and of the expected ones those that come only later."""
    keys: dict[str, None] = {}
    seen = 0
    for lines in _lines(path):
        for line in lines:
            if seen >= SAMPLE_LINES and expected is not None and expected <= keys.keys():
                return list(keys)
            row = _object(line) or {}
            asked = row if seen < SAMPLE_LINES or expected is None else expected & row.keys()
            keys |= dict.fromkeys(asked)
            seen += 1
    if not keys:
        why = "no line is a JSON object; is it JSON lines, an object a line?" if seen else "the file is empty"
        raise DataError(why, file=escaped(path))
    return list(keys)


def _lines(path: str) -> Iterator[list[bytes]]:
    with opened(path) as stream:
        for piece in pieces(utf8(stream, "utf-8", delimited.BLOCK_BYTES), line_end):
            lines = piece.removesuffix(b"\n").split(b"\n")
            # As many lines as there are bytes would each take more than themselves.
            for first in range(0, len(lines), ROWS):
                yield lines[first : first + ROWS]


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        row = _loosely(line) if NO_NUMBER.search(line) else None
    return row if isinstance(row, dict) and not _is_deep(line, row) else None


def _is_deep(line: bytes, row: dict[str, Any]) -> bool:
    if line.count(b"[") + line.count(b"{") <= DEEPEST:
        return False
    level: list[Any] = [row]
    for _ in range(DEEPEST):
        nested = (value.values() if isinstance(value, dict) else value for value in level)
        level = [value for values in nested for value in values if isinstance(value, dict | list)]
    return bool(level)


def _exactly(line: bytes, row: dict[str, Any], exact: list[str]) -> dict[str, Any] | None:
    """An object with the digits of its numbers as they are written, of which a float keeps 17."""
    inexact = [name for name in exact if type(row.get(name)) is float]
    if not inexact:
        return row
    try:
        written = json.loads(line, parse_float=str)
    except (ValueError, RecursionError):
        # A number of thousands of digits.
        return None
    return row | {name: written[name] for name in inexact}


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
        row = _exactly(line, row, exact) if row else row
        if row is not None:
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
    # What is no text would end the process later, or worse.
    batch.validate(full=True)
    try:
        columns = [_plain(column) for column in batch.columns]
        frame = pl.DataFrame(pa.Table.from_arrays(columns, names=batch.schema.names))
    except (ValueError, *HOSTILE) as error:
        raise OSError(one_line(error)) from error
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
    if pa.types.is_duration(type):
        return pc.binary_join_element_wise(column.cast(pa.int64()).cast(pa.string()), type.unit, " ")
    if pa.types.is_time(type):
        return pc.replace_substring_regex(column.cast(pa.string()), ENDING_ZEROS, r"\1")
    if pa.types.is_date32(type) and not _are_within(column.view(pa.int32()), DAYS):
        raise ValueError("a date lies outside the years 1 to 9999")
    if pa.types.is_timestamp(type) or pa.types.is_date64(type):
        unit = "ms" if pa.types.is_date64(type) else type.unit
        if pa.types.is_timestamp(type) and type.tz is not None:
            column = column.cast(pa.timestamp(unit, "UTC"))
        least, most = (second * PER_SECOND[unit] for second in SECONDS)
        known = (max(least, -(2**63) + 1), min(most, 2**63 - 1))
        return _dated(column, column.view(pa.int64()), known)
    if pa.types.is_nested(type) or UNTYPED.search(str(type)):
        return pa.array(list(map(_text, column.to_pylist())), pa.string())
    return column


def _dated(column: pa.Array, numbers: pa.Array, known: tuple[int, int]) -> pa.Array:
    """Times as they are, or as text where a year has more digits than four: of that one, its number."""
    if _are_within(numbers, known):
        return column
    is_known = pc.and_(pc.greater_equal(numbers, known[0]), pc.less_equal(numbers, known[1]))
    times = pc.if_else(is_known, column, pa.scalar(None, column.type)).cast(pa.string())
    return pc.if_else(is_known, times, numbers.cast(pa.string()))


def _are_within(numbers: pa.Array, known: tuple[int, int]) -> bool:
    least, most = pc.min_max(numbers).as_py().values()
    return least is None or known[0] <= least <= most <= known[1]


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
        raise DataError(
            "Excel needs fastexcel; pip install 'mlops_ray[excel]'", file=escaped(path)
        ) from error
    # By default, empty rows above the header are left out.
    options: dict[str, Any] = {"header_row": None, "skip_rows": format.skip_rows or None}
    with opened(path) as stream, _plainly(fastexcel.FastExcelError):
        data = _bounded(stream)
        book = fastexcel.read_excel(data)
        name = format.sheet or book.sheet_names[0]
        if name not in book.sheet_names:
            raise DataError(
                f"has no sheet {name!r}; it has {escaped(', '.join(book.sheet_names))}", file=escaped(path)
            )
        texts = book.load_sheet(name, dtypes="string", **options).to_polars()
        numbers = book.load_sheet(name, dtypes="float", **options).to_polars()
    if not texts.height:
        raise DataError(f"the sheet {name!r} has no header in row {format.skip_rows + 1}", file=escaped(path))
    return texts, numbers


def _bounded(stream: Any) -> bytes:
    """A workbook; raises `OSError` where its sheets would take more memory than there is: a few bytes may."""
    book = bytearray()
    while block := stream.read(1 << 20):
        book += block
        if len(book) > BOOK_BYTES:
            raise OSError(f"it has more than {BOOK_BYTES} bytes")
    data = bytes(book)
    if zipfile.is_zipfile(io.BytesIO(data)):
        _require_bounded(data)
    return data


def _require_bounded(data: bytes) -> None:
    """Raises `OSError` for a workbook of Excel whose sheets unpack to too much, or have too many cells."""
    left = BOOK_BYTES
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.infolist():
                if member.compress_type == zipfile.ZIP_LZMA:
                    raise OSError("it is packed by LZMA, whose memory has no bound")
                with archive.open(member) as stream:
                    left -= _require_sheet(stream, left)
    except (RuntimeError, ValueError, OverflowError, MemoryError) as error:
        raise OSError(one_line(error)) from error


def _require_sheet(stream: Any, left: int) -> int:
    """The bytes of a file of a workbook; raises `OSError` where its rows and columns make too many cells."""
    size, rest = 0, b""
    row = column = rows = columns = 0
    while block := stream.read(1 << 20):
        size += len(block)
        rest += block
        if size > left:
            raise OSError(f"its files have more than {BOOK_BYTES} bytes; save it as CSV")
        # A place holds no <, so none is cut in two.
        end = rest.rfind(b"<")
        if end <= 0 and len(rest) > LONGEST_ROW_BYTES:
            raise OSError("a text in it does not end")
        if end <= 0:
            continue
        part, rest = rest[:end], rest[end:]
        for found in PLACES.finditer(part):
            row, column = _place(found, row, column)
            rows, columns = max(rows, row), max(columns, column)
        _require_few(rows, columns)
    for found in PLACES.finditer(rest):
        row, column = _place(found, row, column)
        rows, columns = max(rows, row), max(columns, column)
    _require_few(rows, columns)
    return size


def _place(found: re.Match[bytes], row: int, column: int) -> tuple[int, int]:
    """The row and column that a sheet is at, from those before."""
    begun, letters, digits = found.groups()
    if begun is not None:
        return (row + 1, 0) if begun == b"row" else (row, column + 1)
    if len(letters) > 3 or len(digits) > 9:
        return LAST_ROW + 1, LAST_COLUMN + 1
    if letters:
        column = 0
        for sign in letters.upper():
            column = 26 * column + sign - ord("A") + 1
    return int(digits), column


def _require_few(rows: int, columns: int) -> None:
    if rows > LAST_ROW or columns > LAST_COLUMN:
        raise OSError("a cell lies beyond XFD1048576, the last one of Excel")
    if rows * columns > CELLS:
        why = f"{rows} rows of {columns} columns are more than {CELLS} cells"
        raise OSError(f"{why}; delete what stands far off, or save it as CSV")


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
    given = dict(option.partition("=")[::2] for option in options.split("&"))
    # A password as a person writes it may have signs that would end it.
    who = user + colon + quote(unquote(password), safe="")
    options += "" if "connect_timeout" in given else f"{'&' * bool(options)}connect_timeout={CONNECT_S}"
    address = f"{scheme}://{who}{at}{place}?{options}"
    hidden = [
        password,
        *(value for name, value in given.items() if unquote(name).lower().endswith("password")),
    ]
    forms = {form for secret in hidden for form in _forms(secret)} - {""}
    return address, [connection, address, *sorted(forms, key=len, reverse=True)]


def _forms(secret: str) -> set[str]:
    """A secret in every way in which a driver may write it."""
    plain = {secret, unquote(secret), unquote_plus(secret)}
    encoded = {encode(form, safe="") for form in plain for encode in (quote, quote_plus)}
    return plain | encoded | {re.sub("%..", lambda code: code[0].lower(), form) for form in encoded}


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
            if len(secret) < SHORTEST_SECRET and secret in text:
                text = "the database cannot be read; what its driver says may hold the password"
                break
            text = text.replace(secret, "…")
        # The original would be shown with it, and holds it.
        raise OSError(text) from None
