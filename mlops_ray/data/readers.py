"""Readers of every format: blocks of rows, each row with its place, in bounded memory.

Types are never guessed. Values come as text, or as what the file says they are, and a schema casts them
later; so a value of a wrong type costs its row, and never the file.
"""

import contextlib
import functools
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any
from urllib.parse import unquote

import orjson
import polars as pl

from mlops_ray.config import Csv, Delta, Excel, File, Format, JsonLines, Parquet, Source
from mlops_ray.data import databases, delimited, inputs, values
from mlops_ray.data.delimited import Block, Delimited
from mlops_ray.data.event_time import columns_of
from mlops_ray.data.inputs import escaped, opened, plainly
from mlops_ray.data.values import ROWS
from mlops_ray.errors import DataError

__all__ = ["Block", "Reader", "reader"]

#: Of a column of a Parquet file, what is read at a time: whole columns of a row group may be large.
COLUMN_BYTES = 1 << 20
#: A few bytes of a Parquet file can repeat a long text in each row: a block of it ends with so many bytes,
#: and so few rows are decoded at a time that the longest texts of a dictionary in each would not be more.
BATCH_BYTES = 32 << 20
#: Lines whose keys are taken for the columns of a JSON lines file.
SAMPLE_LINES = 1_000
#: A line that is no JSON object.
NOT_JSON = "not_json"
#: What Python writes for numbers that JSON has no words for.
NO_NUMBER = re.compile(rb"NaN|Infinity")
#: A line that is nested deeper is refused: Python, which writes values, ends at some more.
DEEPEST = 100
#: Of a workbook, what is unpacked at most, and the cells between its first and its last, which take memory.
BOOK_BYTES = 2 << 30
CELLS = 50_000_000
#: The last row and column that Excel knows.
LAST_ROW, LAST_COLUMN = 1_048_576, 16_384
#: Where rows and cells begin in a sheet, and where they say they lie.
PLACES = re.compile(rb"""<(?:[\w.-]+:)?(row|c)(?=[\s/>])|\sr\s*=\s*["']([A-Za-z]*)([0-9]+)["']""")
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
                row = max([row, *(part["_row"][-1] for part in block if part.height)])
        except inputs.UNREADABLE as error:
            said = f": {inputs.why(error)}"
            raise DataError(f"cannot be read after row {row}", file=self.name, said=said) from error


def reader(file: File, source: Source, after: object | None = None) -> Reader:
    """The reader of a file or query; `source` is as that file is to be read (`Source.of`).

    With `after`, only rows are read whose cursor is not before it; rows that do not compare with it come too.
    Raises `DataError` in one sentence where the input cannot be read.
    """
    name = inputs.shown(file)
    try:
        if file.sql is not None:
            return Reader(name, *_numbered(name, *databases.opened(file.sql, after)))
        return Reader(name, *_open(str(file.path), source))
    except inputs.UNREADABLE as error:
        raise DataError(f"cannot be read: {inputs.why(error)}", file=name) from error


def _open(path: str, source: Source) -> tuple[list[str], Read]:
    format = _format_of(path, source)
    if format.csv is not None:
        text = Delimited.open(path, format.csv)
        return text.names, text.blocks
    if format.jsonl is not None:
        return _json_lines(path, source)
    if format.excel is not None:
        return _excel(path, format.excel)
    return _numbered(path, *(_parquet(path) if format.parquet is not None else _delta(path)))


def _format_of(path: str, source: Source) -> Format:
    """The format that a file is read in: as its source says, else by what it is called after."""
    known = source.format or FORMATS.get(inputs.kind(path))
    return known or (Format(delta=Delta()) if inputs.is_delta(path) else FORMATS[".csv"])


def _numbered(name: str, names: list[str], frames: values.Frames) -> tuple[list[str], Read]:
    """The reader of an input of which no row is left out."""

    def read(wanted: Sequence[str]) -> Iterator[Block]:
        row = 0
        for frame in frames(wanted):
            numbers = pl.int_range(row + 1, row + frame.height + 1, eager=True)
            yield Block(delimited.placed(frame.select(wanted), name, numbers))
            row += frame.height

    return names, read


def needed_columns(source: Source) -> dict[str, str]:
    """The columns that an input must have, and the key of the project file that asks for each."""
    spec, time = source.unpivot, source.event_time
    made = ({spec.names, spec.values} if spec else set()) | set(source.derive)
    needed = dict.fromkeys(spec.keep if spec else (), "unpivot.keep")
    needed |= dict.fromkeys(columns_of(time) if time else (), "event_time")
    return needed | dict.fromkeys((name for name in source.columns if name not in made), "columns")


# ---------------------------------------------------------------- JSON lines


def _json_lines(path: str, source: Source) -> tuple[list[str], Read]:
    written = {column: name for name, column in source.rename.items()}
    needed = {written.get(column, column) for column in needed_columns(source)}
    names = _keys(path, None if source.unpivot else needed)

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


def _keys(path: str, expected: set[str] | None) -> list[str]:
    """The keys of the first lines, in order, and of the `expected` ones those that come only later."""
    # Where none is expected every key is a value, and all lines are looked at.
    keys: dict[str, None] = {}
    seen = 0
    for seen, line in enumerate(chain.from_iterable(_lines(path)), 1):
        asked = _object(line) or {}
        if seen > SAMPLE_LINES and expected is not None:
            if expected <= keys.keys():
                return list(keys)
            asked = {name: None for name in asked if name in expected}
        keys |= dict.fromkeys(asked)
    if not keys:
        why = "no line is a JSON object; is it JSON lines, an object a line?" if seen else "the file is empty"
        raise DataError(why, file=escaped(path))
    return list(keys)


def _lines(path: str) -> Iterator[list[bytes]]:
    with opened(path) as stream:
        blocks = delimited.utf8(stream, "utf-8", delimited.BLOCK_BYTES)
        for piece in delimited.pieces(blocks, delimited.line_end):
            lines = piece.removesuffix(b"\n").split(b"\n")
            # As many lines as there are bytes would each take more than themselves.
            for first in range(0, len(lines), ROWS):
                yield lines[first : first + ROWS]


def _object(line: bytes, exact: Sequence[str] = ()) -> dict[str, Any] | None:
    """The object of a line, if it is one; the fractions of the keys `exact` as they are written."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        row = _loosely(line) if NO_NUMBER.search(line) else None
    if not isinstance(row, dict):
        return None
    if line.count(b"[") + line.count(b"{") > DEEPEST and _is_deep(row):
        return None
    inexact = [name for name in exact if type(row.get(name)) is float]
    if inexact:
        # Raises for a number of thousands of digits.
        with contextlib.suppress(ValueError, RecursionError):
            written = json.loads(line, parse_float=str)
            return row | {name: written[name] for name in inexact}
        return None
    return row


def _loosely(line: bytes) -> Any:
    """An object in which Python wrote a number that is none, if that is all that is wrong with it."""
    with contextlib.suppress(ValueError, RecursionError):
        row = json.loads(line)
        # Half a sign would be no text.
        json.dumps(row, ensure_ascii=False).encode()
        return row


def _is_deep(value: Any, left: int = DEEPEST) -> bool:
    """Whether more than `left` objects and lists lie in one another."""
    if not isinstance(value, dict | list):
        return False
    nested = value.values() if isinstance(value, dict) else value
    return left == 0 or any(_is_deep(each, left - 1) for each in nested)


def _objects(path: str, lines: list[bytes], before: int, wanted: Sequence[str], exact: list[str]) -> Block:
    """The block of some lines, with `before` of them in the file; a line that is no object is refused."""
    numbers, rows, refused = [], [], []
    for number, line in enumerate(lines, before + 1):
        if (row := _object(line, exact)) is not None:
            numbers.append(number)
            rows.append(row)
        elif line.strip():
            length = len(line.decode(errors="replace").rstrip("\r"))
            refused.append((number, NOT_JSON, f"line of {length} characters"))
    frame = pl.DataFrame([values.series(name, [row.get(name) for row in rows]) for name in wanted])
    places = pl.Series(numbers, dtype=pl.Int64)
    aside = pl.DataFrame(refused, schema=delimited.REFUSED, orient="row")
    return Block(delimited.placed(frame, path, places), aside)


# ---------------------------------------------------------------- Arrow: Parquet, Delta


def _parquet(path: str) -> tuple[list[str], values.Frames]:
    def frames(wanted: Sequence[str]) -> Iterator[pl.DataFrame]:
        stream = inputs.seekable(path)
        with _parquet_file(stream) as file:
            yield from _frames(file.iter_batches(_rows_at_a_time(stream, wanted), columns=list(wanted)))

    with _parquet_file(inputs.seekable(path)) as file:
        return file.schema_arrow.names, frames


def _parquet_file(stream: Any, **options: Any) -> Any:
    from pyarrow import parquet

    return parquet.ParquetFile(
        stream, buffer_size=COLUMN_BYTES, pre_buffer=False, page_checksum_verification=True, **options
    )


def _rows_at_a_time(stream: Any, wanted: Sequence[str]) -> int:
    """How many rows of a Parquet file are decoded at a time."""
    from pyarrow import compute

    whole, asked, longest = _parquet_file(stream), set(wanted), 0
    columns = [whole.schema.column(at) for at in range(len(whole.schema))]
    texts = [at for at, c in enumerate(columns) if c.path in asked and c.physical_type == "BYTE_ARRAY"]
    file = _parquet_file(stream, read_dictionary=texts, metadata=whole.metadata)
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        names = [columns[at].path for at in texts if group.column(at).has_dictionary_page]
        # With its first row comes the whole dictionary of a row group.
        first = next(file.iter_batches(1, row_groups=[number], columns=names), None) if names else None
        held = [each.dictionary for each in first or () if hasattr(each, "dictionary")]
        longest = max(longest, sum(compute.max(compute.binary_length(each)).as_py() or 0 for each in held))
    return max(1, min(ROWS, BATCH_BYTES // max(1, longest)))


def _frames(batches: Iterator[Any]) -> Iterator[pl.DataFrame]:
    """The rows of Arrow's batches, as many together as a block holds."""
    from pyarrow import concat_batches

    held: list[Any] = []
    rows = size = 0
    for batch in map(values.decoded, batches):
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if held and (rows > ROWS or size > BATCH_BYTES):
            yield values.frame(concat_batches(held) if held[1:] else held[0])
            held, rows, size = [], batch.num_rows, batch.nbytes
        held.append(batch)
    if held:
        yield values.frame(concat_batches(held) if held[1:] else held[0])


def _delta(path: str) -> tuple[list[str], values.Frames]:
    """The table at its newest version, its files in the order of time: later rows correct older ones."""
    import deltalake
    from pyarrow import dataset

    with plainly(deltalake.exceptions.DeltaError):
        table = inputs.delta_table(path)
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
                batch_size=_rows_at_a_time(file.filesystem.open_input_file(file.path), wanted),
                batch_readahead=1,
                fragment_scan_options=options,
            )
            yield from _frames(batches)

    return rows.schema.names, frames


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
            yield Block(delimited.placed(frame, path, part["_row"]))

    return [name for name in header if name is not None], read


def _sheet(path: str, format: Excel) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The cells of a sheet from its header on, as texts and as numbers."""
    try:
        import fastexcel
    except ImportError as error:
        needs = "Excel needs fastexcel; pip install 'mlops_ray[excel]'"
        raise DataError(needs, file=escaped(path)) from error
    # By default, empty rows above the header are left out.
    options: dict[str, Any] = {"header_row": None, "skip_rows": format.skip_rows or None}
    with opened(path) as stream, plainly(fastexcel.FastExcelError):
        book = fastexcel.read_excel(_bounded(stream))
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
    for block in delimited.parts(stream, 1 << 20):
        book += block
        _require_unpacked(len(book))
    data = bytes(book)
    if zipfile.is_zipfile(io.BytesIO(data)):
        with plainly(RuntimeError, ValueError), zipfile.ZipFile(io.BytesIO(data)) as archive:
            _require_unpacked(sum(member.file_size for member in archive.infolist()))
            for member in archive.infolist():
                if member.compress_type == zipfile.ZIP_LZMA:
                    raise OSError("it is packed by LZMA, whose memory has no bound")
                with archive.open(member) as sheet:
                    _require_few_cells(sheet)
    return data


def _require_unpacked(size: int) -> None:
    if size > BOOK_BYTES:
        raise OSError(f"it has more than {BOOK_BYTES} bytes, or its files have; save it as CSV")


def _require_few_cells(sheet: Any) -> None:
    """Raises `OSError` where the rows and columns of a file of a workbook make too many cells."""
    row = column = rows = columns = 0
    # A place holds no <, so none is cut in two.
    for part in delimited.pieces(delimited.parts(sheet, 1 << 20), lambda data: max(0, data.rfind(b"<"))):
        for begun, letters, digits in PLACES.findall(part):
            if begun:
                row, column = (row + 1, 0) if begun == b"row" else (row, column + 1)
            elif len(letters) > 3 or len(digits) > 9:
                row, column = LAST_ROW + 1, LAST_COLUMN + 1
            else:
                row, column = int(digits), _number_of(letters) or column
            rows, columns = max(rows, row), max(columns, column)
        if rows > LAST_ROW or columns > LAST_COLUMN:
            raise OSError("a cell lies beyond XFD1048576, the last one of Excel")
        if rows * columns > CELLS:
            why = f"{rows} rows of {columns} columns are more than {CELLS} cells"
            raise OSError(f"{why}; delete what stands far off, or save it as CSV")


def _number_of(letters: bytes) -> int:
    """The number of a column that is called so: A is 1, AA is 27; 0 without a letter."""
    return functools.reduce(lambda number, sign: 26 * number + sign - ord("@"), letters.upper(), 0)


def _cells(texts: pl.Series, numbers: pl.Series) -> pl.Series:
    """A column's cells as text: numbers with all their digits, where fastexcel's text has nine decimals."""
    # Empty is null, and so is an error (#N/A, #DIV/0!): it says that the cell has no value.
    rounded = texts.cast(pl.Float64, strict=False)
    whole = numbers.cast(pl.Int64, strict=False)
    is_whole = (whole.cast(pl.Float64) == numbers).fill_null(False)
    digits = whole.cast(pl.String).zip_with(is_whole, numbers.cast(pl.String))
    # A text cell like 007 is its number, and stays; a time of day lies on the day before the first.
    texts = texts.str.replace(r"^1899-12-31 ", "")
    return digits.zip_with((rounded != numbers).fill_null(False), texts)
