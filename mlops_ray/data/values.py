"""Values of files and databases as columns of types that a schema casts without losing what they say."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from uuid import UUID

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from mlops_ray.data.inputs import plainly

#: Rows of a typed input that are read at a time.
ROWS = 65_536
#: From here on not every whole number is a float of its own.
EXACT_FLOATS = 2**53
#: Zeros that end the digits behind the point, and say nothing of the value: 2.00 is whole.
ENDING_ZEROS = re.compile(r"\.0+$|(\.\d*[1-9])0+$").pattern
#: Types of Arrow, by their names, that come as text.
UNTYPED = re.compile("binary|interval|uuid")
#: The kinds of Python's values that make a column of a type.
KINDS = {str: pl.String, bool: pl.Boolean, int: pl.Int64, float: pl.Float64}
DTYPES: dict[tuple[type, ...], Any] = {(): pl.Null} | {(kind,): dtype for kind, dtype in KINDS.items()}
#: The years that Python and Polars both know, by the units of Arrow.
DAYS = (-719_162, 2_932_896)
SECONDS = (DAYS[0] * 86_400, (DAYS[1] + 1) * 86_400 - 1)
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
#: The columns that are wanted, to the input's rows, no row left out.
Frames = Callable[[Sequence[str]], Iterator[pl.DataFrame]]


def series(name: str, values: list[Any]) -> pl.Series:
    """A column of Python values as what they are, or as text where they are of several kinds."""
    kinds = set(map(type, values)) - {type(None)}
    if kinds == {int, float} and all(abs(v) <= EXACT_FLOATS for v in values if type(v) is int):
        values = [None if value is None else float(value) for value in values]
        kinds = {float}
    # A number beyond 64 bits is text, and so is what is of several kinds.
    with contextlib.suppress(OverflowError, TypeError, KeyError):
        return pl.Series(name, values, dtype=DTYPES[tuple(kinds)])
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


def decoded(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Rows whose size is that of their values, of which no two share one."""
    if not any(map(pa.types.is_dictionary, batch.schema.types)):
        return batch
    batch.validate(full=True)
    columns = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def frame(batch: pa.RecordBatch) -> pl.DataFrame:
    """Typed rows, each column of a type that a schema casts without losing what it says."""
    # What is no text would end the process later, or worse.
    batch.validate(full=True)
    with plainly(ValueError):
        columns = [_plain(column) for column in batch.columns]
        frame = pl.DataFrame(pa.Table.from_arrays(columns, names=batch.schema.names))
    decimals = [field.name for field in batch.schema if pa.types.is_decimal(field.type)]
    return without_ending_zeros(frame, decimals)


def without_ending_zeros(frame: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    """Columns of numbers that are written as text, of which no whole one has a point: 2.00 is 2."""
    return frame.with_columns(pl.col(names).str.replace(ENDING_ZEROS, "$1"))


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
