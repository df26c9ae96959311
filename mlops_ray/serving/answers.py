"""What the endpoint would answer to each of many rows alone: its answer, or its error.

Values that are plainly of a column's type are read all at once; each other one by the endpoint's own reader.
"""

from dataclasses import dataclass
from datetime import date, datetime, time
from functools import cached_property
from typing import Any

import polars as pl
import pyarrow as pa

from mlops_ray.data.values import frame as plain_frame
from mlops_ray.errors import InvalidRowError
from mlops_ray.registry.models import Values
from mlops_ray.schema import DTYPES, FAILURES, INSTANT, Column, Schema, read_iso
from mlops_ray.serving.columns import MOST_TEXT, Reader
from mlops_ray.serving.protocol import DECISION, LABEL, OUTPUT
from mlops_ray.serving.refusals import refuse_rejected
from mlops_ray.serving.versions import Served

#: Columns of the output beside the input's, which give way where they are called so too.
VERSION, ERROR = "model_version", "error"
ANSWERS = (OUTPUT, DECISION, LABEL, VERSION, ERROR)
#: Instants that are read at once, to the same as one at a time; others of ISO 8601 are looked at alone.
PLAIN_INSTANT = (
    r"^\d{4}-\d\d-\d\d[T ]([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)$"
)


@dataclass(frozen=True)
class Answers:
    """A loaded model over tables of rows; values of `hidden` columns are neither shown nor passed on."""

    served: Served
    hidden: frozenset[str]

    def to(self, table: pa.Table, refused: dict[int, str]) -> pa.Table:
        """The rows with the columns `ANSWERS`, as far as the model has them.

        `refused` says of rows that could not even be read what is wrong with them.
        """
        request = self.served.request
        batches = table.select(request.names).combine_chunks().to_batches()
        empty = pl.DataFrame(schema=dict.fromkeys(request.names, pl.String))
        raw = plain_frame(batches[0]) if batches else empty
        columns, unread = [], dict[int, str]()
        for column in request.columns:
            values, sentences = self._typed(raw[column.name], column)
            columns.append(values)
            unread = sentences | unread
        answer = self.served.predictor.predict(pl.DataFrame(columns))
        # The endpoint checks a row only where it could read it.
        errors = _sentences(answer.failures, request, self.hidden) | unread | refused
        return self._together(table, answer.values, errors)

    def _together(self, table: pa.Table, values: Values, errors: dict[int, str]) -> pa.Table:
        at = pl.Series(list(errors), dtype=pl.UInt32)
        is_wrong = pl.repeat(False, len(values), eager=True).scatter(at, True)
        found = {name: pl.Series(name, answers) for name, answers in self.served.answers(values).items()}
        found[OUTPUT] = found[OUTPUT].fill_nan(None)
        found = {name: answers.set(is_wrong, None) for name, answers in found.items()}
        nothing = pl.repeat(None, len(values), dtype=pl.String, eager=True)
        found[VERSION] = nothing.fill_null(self.served.version)
        found[ERROR] = nothing.scatter(at, list(errors.values()))
        away = {*ANSWERS, *self.hidden, *(c.name for c in self.served.request.columns if c.hidden)}
        kept = table.select([name for name in table.column_names if name not in away])
        for name, answers in found.items():
            arrow = answers.to_arrow()
            kept = kept.append_column(
                name, arrow.cast(pa.large_string()) if answers.dtype == pl.String else arrow
            )
        return kept.replace_schema_metadata(None)

    def _typed(self, raw: pl.Series, column: Column) -> tuple[pl.Series, dict[int, str]]:
        """A column as the endpoint reads it, and of rows that it would not read the sentences."""
        # That is how pandas says that there is no number.
        raw = raw.fill_nan(None) if raw.dtype.is_float() and column.type != "float" else raw
        typed = self._plain(raw, column).alias(column.name)
        if raw.dtype == pl.String:
            typed = typed.set((raw.str.len_chars() > MOST_TEXT).fill_null(False), None)
        odd = (raw.is_not_null() & typed.is_null()).arg_true()
        if not len(odd):
            return typed, {}
        values = raw.gather(odd).to_list()
        known = {value: self._read(_as_sent(value), column) for value in set(values)}
        read = [known[value] for value in values]
        typed = typed.scatter(odd, pl.Series([value for value, _ in read], dtype=typed.dtype))
        return typed, {row: said for row, (_, said) in zip(odd.to_list(), read, strict=True) if said}

    def _plain(self, raw: pl.Series, column: Column) -> pl.Series:
        """The values of which there is no question what they are; null for the others."""
        given, wanted = raw.dtype, DTYPES[column.type]
        if given == wanted:
            return raw
        if given == pl.String and column.type == "datetime":
            return read_iso(raw.set(~raw.str.contains(PLAIN_INSTANT), None))
        if given == pl.String:
            return self._reader.bare[column.name].check(raw.to_frame(column.name))[0].to_series()
        if column.type == "datetime" and isinstance(given, pl.Datetime) and given.time_zone is not None:
            return raw.dt.convert_time_zone("UTC").cast(INSTANT)
        if column.type == "int" and given.is_float():
            return raw.set((raw != raw.round(0)).fill_null(False), None).cast(wanted, strict=False)
        is_number = column.type in ("float", "int") and given.is_numeric()
        is_text = wanted == pl.String and (given.is_integer() or given == pl.Boolean)
        if is_number or is_text:
            return raw.cast(wanted, strict=False)
        return pl.repeat(None, len(raw), dtype=wanted, eager=True)

    def _read(self, value: Any, column: Column) -> tuple[Any, str]:
        """A value by the endpoint's reader, and what it says where it does not read it."""
        reader = Reader(self._reader.bare[column.name], self.hidden)
        try:
            return reader.read({column.name: [value]}).frame[column.name][0], ""
        except InvalidRowError as error:
            return None, _alone(error)

    @cached_property
    def _reader(self) -> Reader:
        return Reader(self.served.request, self.hidden)


def _as_sent(value: Any) -> Any:
    """A value as a caller would send it."""
    return value.isoformat() if isinstance(value, datetime | date | time) else value


def _alone(error: InvalidRowError) -> str:
    """What is said of a row, without its number in a request: it stands beside the row."""
    return str(error).removeprefix("row 0").removeprefix(", ").removeprefix(": ")


def _sentences(failures: pl.DataFrame, schema: Schema, hidden: frozenset[str]) -> dict[int, str]:
    """What the endpoint would say of each row that it refuses."""
    rejected = failures.filter(pl.col("severity") != "flag").unique("row", keep="first", maintain_order=True)
    said: dict[tuple[Any, ...], str] = {}
    found = {}
    for row, *failure in rejected.select(*FAILURES).rows():
        alike = tuple(failure)
        if alike not in said:
            try:
                refuse_rejected(pl.DataFrame([(0, *failure)], FAILURES, orient="row"), schema, hidden)
            except InvalidRowError as error:
                said[alike] = _alone(error)
        found[row] = said[alike]
    return found
