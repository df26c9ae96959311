"""CSV of any dialect: blocks of rows, each row with its number, parsed side by side.

The file is cut behind rows into pieces, each of which a thread parses by itself; so a row that has too many
columns or too few is known by its number, and costs no more than itself. The pieces come in the file's order.
"""

import codecs
import csv
import io
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv

from mlops_ray.config import Csv
from mlops_ray.data.ahead import ahead
from mlops_ray.data.inputs import escaped, opened
from mlops_ray.errors import DataError, one_line

#: What is parsed at a time; bounds the memory of a reader. Twice as much is no faster.
BLOCK_BYTES = 8 << 20
#: Of a file, what is read for its header, with the rows that are skipped before it.
HEADER_BYTES = 1 << 20
#: A longer row is taken for one with a quote that does not end.
LONGEST_ROW_BYTES = 64 << 20
#: Rows of a wrong width, one after another, at which a file is given up. More than a block can hold: it stops
#: no file in which right ones stand between.
WRONG_ROWS = BLOCK_BYTES
#: Rows that do not have the header's number of columns.
WRONG_WIDTH = "number_of_columns"
#: A row that could not even be split into columns.
REFUSED = {"_row": pl.Int64, "rule": pl.String, "value": pl.String}
UTF8 = ("utf-8", "utf-8-sig")
BOM = b"\xef\xbb\xbf"


class Block(NamedTuple):
    """Rows of an input: the columns asked for with `_file` and `_row`; and those that could not be split."""

    frame: pl.DataFrame
    refused: pl.DataFrame = pl.DataFrame(schema=REFUSED)


@dataclass(frozen=True)
class Delimited:
    """A CSV file; `start` is where its data rows begin, in bytes of UTF-8 without byte order mark."""

    path: str
    format: Csv
    names: list[str]
    start: int

    @classmethod
    def open(cls, path: str, format: Csv) -> "Delimited":
        """The file with its header read; raises `DataError` where it cannot be."""
        _check(path, format)
        names, start = _header(path, format)
        return cls(path, format, names, start)

    def blocks(self, wanted: Sequence[str]) -> Iterator[Block]:
        """Blocks of the file, the columns `wanted` as text; raises `DataError` where it is no such text."""
        row = right = 0
        try:
            for block in ahead(_Parser(self, list(wanted)), self._pieces()):
                # In place: an expression would copy all columns, whose chunks end elsewhere.
                for part in block:
                    part.replace_column(part.get_column_index("_row"), part["_row"] + row)
                row += block.frame.height + block.refused.height
                right = block.frame["_row"][-1] if block.frame.height else right
                if row - right >= WRONG_ROWS:
                    width = len(self.names)
                    why = f"{WRONG_ROWS} rows on end do not have {width} columns; is the delimiter right?"
                    raise DataError(why, file=escaped(self.path), row=right + 1)
                yield block
        except UnicodeError as error:
            raise _undecodable(error, row, self.path, self.format) from error

    def _pieces(self) -> Iterator[bytes]:
        with opened(self.path) as stream:
            text = utf8(stream, self.format.encoding, BLOCK_BYTES)
            yield from pieces(_after(self.start, text), _row_end(self.format))


def placed(frame: pl.DataFrame, name: str, numbers: pl.Series) -> pl.DataFrame:
    """Rows with their place: what the input is called, and their numbers in it."""
    file = pl.repeat(escaped(name), len(numbers), eager=True).alias("_file")
    # Made anew: a frame of no columns has lost its height.
    return pl.DataFrame([*frame.iter_columns(), file, numbers.alias("_row")])


def pieces(blocks: Iterable[bytes], row_end: Callable[[bytes], int]) -> Iterator[bytes]:
    """The same bytes, cut behind rows: at `row_end`, where the last whole one ends, 0 where none does.

    Raises `OSError` for a row that is longer than `LONGEST_ROW_BYTES`.
    """
    rest = b""
    for block in blocks:
        rest += block
        if end := row_end(rest):
            yield rest[:end]
            rest = rest[end:]
        elif len(rest) > LONGEST_ROW_BYTES:
            why = f"the next row does not end within {LONGEST_ROW_BYTES} bytes"
            raise OSError(f"{why}; are the format and its quote right?")
    if rest:
        yield rest


def line_end(data: bytes) -> int:
    """Where the last whole line ends."""
    return data.rfind(b"\n") + 1


def _row_end(format: Csv) -> Callable[[bytes], int]:
    """What finds where the last whole row ends in bytes that begin with a row: line breaks may be quoted."""
    if not format.quote:
        return line_end
    quote, before = format.quote, f"{format.delimiter}\r\n"
    begins = np.isin(np.arange(256), list((before + quote).encode()))
    # A quote begins a quoted field only where the field begins; two of them in it stand for one.
    q, opening_q = re.escape(quote), f"(?<![^{re.escape(before)}]){re.escape(quote)}"
    field = re.compile(rf"{opening_q}(?:[^{q}]++|{q}{q})*+(?:{q}|\Z)".encode())

    def end(data: bytes) -> int:
        if quote.encode() not in data:
            return line_end(data)
        text = np.frombuffer(data, np.uint8)
        marks = np.flatnonzero(text == ord(quote))
        opening = marks[2::2] if marks[0] == 0 else marks[::2]
        # Where each second quote stands where one may begin a field, or behind another, they are pairs.
        if not begins[text[opening - 1]].all():
            marks = np.array([at for match in field.finditer(data) for at in match.span()])
        return _end_outside(data, marks)

    return end


def _end_outside(data: bytes, marks: Any) -> int:
    """Where the last line ends that does not break within quotes; `marks` are where they open and close."""
    at = len(data)
    while (at := data.rfind(b"\n", 0, at)) >= 0:
        before = int(np.searchsorted(marks, at, side="right"))
        if before % 2 == 0:
            break
        at = int(marks[before - 1])
    return at + 1


def utf8(stream: Any, encoding: str, size: int) -> Iterator[bytes]:
    """The text of a stream as UTF-8 without byte order mark; what is said to be UTF-8 is not looked at."""
    blocks = parts(stream, size)
    if codecs.lookup(encoding).name not in UTF8:
        blocks = (text.encode() for text in codecs.iterdecode(blocks, encoding))
    yield next(blocks, b"").removeprefix(BOM)
    yield from blocks


def parts(stream: Any, size: int) -> Iterator[bytes]:
    """What a stream holds, so many bytes at a time."""
    return iter(partial(stream.read, size), b"")


def _after(start: int, blocks: Iterable[bytes]) -> Iterator[bytes]:
    for block in blocks:
        yield block[start:]
        start = max(0, start - len(block))


class _Parser:
    """Parses pieces of a file, each to its right rows and those of a wrong width, numbered from 1.

    Two parsers give the same rows. Polars' is the faster one where most columns are read, but it takes a
    short row for one with empty values, knows other line breaks, and ends at a long row: it gets what has
    none of these.
    """

    def __init__(self, file: Delimited, wanted: list[str]) -> None:
        self.path, self.names, self.format, self.wanted = file.path, file.names, file.format, wanted
        # In a single column nothing tells an empty line, which is no row, from an empty value.
        self.is_plain = 2 * len(wanted) > len(file.names) > 1

    def __call__(self, piece: bytes) -> Block:
        if piece.startswith(BOM):
            # A sign of the text here, which both parsers would take for a mark.
            piece = BOM + piece
        wrong, widths = array("q"), array("q")

        def put_aside(row: Any) -> str:
            wrong.append(row.number)
            widths.append(row.actual_columns)
            return "skip"

        frame = self._plain(piece)
        if frame is None:
            frame = self._exact(piece, put_aside)
        is_right = np.ones(frame.height + len(wrong), dtype=bool)
        is_right[np.array(wrong) - 1] = False
        numbers = pl.Series(np.flatnonzero(is_right) + 1, dtype=pl.Int64)
        return Block(placed(frame.select(self.wanted), self.path, numbers), self._refused(wrong, widths))

    def _refused(self, numbers: Sequence[int], widths: Sequence[int]) -> pl.DataFrame:
        said = pl.format("{} columns, not {}", pl.Series(widths, dtype=pl.Int64), pl.lit(len(self.names)))
        rows = pl.DataFrame({"_row": numbers}, schema={"_row": pl.Int64})
        return rows.with_columns(rule=pl.lit(WRONG_WIDTH), value=said)

    def _plain(self, piece: bytes) -> pl.DataFrame | None:
        """The rows by Polars, or `None` where it might read them otherwise."""
        quote = self.format.quote.encode()
        if not self.is_plain or b"\r" in piece or (quote and quote in piece):
            return None
        try:
            frame = pl.read_csv(
                piece,
                has_header=False,
                schema=dict.fromkeys(self.names, pl.String),
                separator=self.format.delimiter,
                quote_char=None,
                empty_string_is_null=False,
                glob=False,
            )
        except pl.exceptions.PolarsError:
            frame = pl.DataFrame()
        # None is too long; so if there are as many delimiters as there must be, none is too short.
        signs = np.count_nonzero(np.frombuffer(piece, np.uint8) == ord(self.format.delimiter))
        # A file with one such piece has others: from here on none is read twice.
        self.is_plain = frame.height > 0 and signs == frame.height * (len(self.names) - 1)
        return frame if self.is_plain else None

    def _exact(self, piece: bytes, put_aside: Callable[[Any], str]) -> pl.DataFrame:
        """The rows by Arrow, which calls `put_aside` for each of those of a wrong width."""
        # Raises where it is no UTF-8, also in columns that are not read: Arrow passes over a row like that.
        piece.decode()
        table = pa.csv.read_csv(
            pa.py_buffer(piece),
            # Row numbers are known to a single thread only; the piece is a single block.
            pa.csv.ReadOptions(use_threads=False, block_size=len(piece) + 1, column_names=self.names),
            pa.csv.ParseOptions(
                delimiter=self.format.delimiter,
                quote_char=self.format.quote or False,
                newlines_in_values=bool(self.format.quote),
                invalid_row_handler=put_aside,
            ),
            pa.csv.ConvertOptions(
                column_types=dict.fromkeys(self.names, pa.string()),
                # None at all would mean every one.
                include_columns=self.wanted or self.names[:1],
                strings_can_be_null=False,
            ),
        )
        return pl.DataFrame(table)


def _check(path: str, format: Csv) -> None:
    try:
        "".encode(format.encoding)
    except (LookupError, ValueError) as error:
        hint = "say format.csv.encoding, e.g. utf-8 or latin-1"
        raise DataError(f"no text is encoded as {format.encoding!r}; {hint}", file=escaped(path)) from error
    for key, sign in (("delimiter", format.delimiter), ("quote", format.quote)):
        if not sign.isascii() or sign in ("\r", "\n"):
            why = f"format.csv.{key}: {sign!r} can be none; it is one ASCII character"
            raise DataError(why, file=escaped(path))


def _header(path: str, format: Csv) -> tuple[list[str], int]:
    """The names of the columns, and where the rows behind them begin."""
    try:
        with opened(path) as stream:
            blocks = utf8(stream, format.encoding, HEADER_BYTES)
            # The last character may be cut in two.
            text = codecs.getincrementaldecoder("utf-8")().decode(next(blocks, b""))
            names, end = _names(text, format)
            is_cut = end == len(text) and bool(next(blocks, b""))
    except UnicodeError as error:
        before = format.skip_rows + (format.names is None)
        raise _undecodable(error, -before, path, format) from error
    except csv.Error as error:
        raise DataError(f"the header cannot be read: {one_line(error)[:200]}", file=escaped(path)) from error
    if is_cut:
        why = f"the header does not end within {HEADER_BYTES} bytes; is it a CSV file, with the right quote?"
        raise DataError(why, file=escaped(path))
    if names is None:
        raise DataError("the file is empty", file=escaped(path))
    return names, len(text[:end].encode())


def _names(text: str, format: Csv) -> tuple[list[str] | None, int]:
    """The names of the columns, and the character behind them."""
    lines = io.StringIO(text, newline="")
    for _ in range(format.skip_rows):
        lines.readline()
    if format.names is not None:
        return list(format.names), lines.tell()
    dialect: dict[str, Any] = {"delimiter": format.delimiter, "quoting": csv.QUOTE_NONE}
    if format.quote:
        dialect |= {"quotechar": format.quote, "quoting": csv.QUOTE_MINIMAL}
    return next((row for row in csv.reader(lines, **dialect) if row), None), lines.tell()


def _undecodable(error: UnicodeError, row: int, path: str, format: Csv) -> DataError:
    """The sentence for bytes that are no text, `row` rows behind the beginning of the file."""
    where = ""
    if isinstance(error, UnicodeDecodeError):
        row += error.object[: error.start].count(b"\n")
        where = f" near row {row + 1}" if row >= 0 else " in the header"
    why = f"not {format.encoding} text{where} ({one_line(error)[:100]})"
    return DataError(f"{why}; say format.csv.encoding, e.g. latin-1", file=escaped(path))
