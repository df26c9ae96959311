"""Values as callers send them → typed columns, by the schema of the request.

Everything is checked here that decides whether a value *is* a number, an instant or a name; whether it is a
plausible one is left to `Schema.check`, which the predictor runs.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import polars as pl

from mlops_ray.data.rows import Rows
from mlops_ray.errors import InvalidRowError
from mlops_ray.instants import FIRST_US, LAST_US, to_micros
from mlops_ray.schema import Column, ColumnType, Schema
from mlops_ray.serving.documents import INT64, show
from mlops_ray.serving.tensors import DATATYPES

_NONE = type(None)
#: Values of these Python types go into a column as they are.
_AS_IS: dict[ColumnType, set[type]] = {
    "float": {float, int, _NONE},
    "int": {int, _NONE},
    "bool": {bool, _NONE},
    "string": {str, _NONE},
    "category": {str, _NONE},
}
_A: dict[ColumnType, str] = {
    "float": "a number",
    "int": "a whole number that 64 bits hold",
    "bool": "true or false",
    "string": "text",
    "category": "a name",
    "datetime": "an instant: ISO 8601 with an offset or Z, or whole microseconds since 1970 in UTC",
}


#: Characters of a text: what is longer is no name, and would be kept in the prediction log.
MOST_TEXT = 10_000
#: Of a caller's own column names, what an error looks at and shows.
SHOWN_NAMES, SHOWN_NAME = 10, 40


@dataclass(frozen=True)
class Reader:
    """Reads columns by a schema; values of `hidden` columns are shown in no error."""

    schema: Schema
    hidden: frozenset[str] = frozenset()

    def read(self, values: Mapping[str, Sequence[Any]]) -> Rows:
        """The schema's columns in its order; other columns are left out.

        Raises `InvalidRowError` for a column that is missing and a value that is of another type.

        >>> reader = Reader(Schema((Column("site", "category"), Column("load", "float"))))
        >>> reader.read({"load": [1, "2.5"], "site": ["a", None], "more": [0, 0]}).frame.rows()
        [('a', 1.0), (None, 2.5)]
        """
        try:
            return Rows(self.schema, [self._typed(column, values[name]) for name, column in self._columns])
        except KeyError:
            raise self._missing(values) from None

    def one_row(self, inputs: Any) -> Rows | None:
        """The row of a v2 request as nearly all are: one value of the right type an input, in plain JSON.

        `None` for any other, which is to be looked at closely.
        """
        found: list[list[Any]] = []
        try:
            given = {tensor["name"]: tensor for tensor in inputs}
            if not len(given) == len(inputs) == len(self._columns):
                return None
            for name, column in self._columns:
                tensor = given[name]
                data, (rows,) = tensor["data"], tensor["shape"]
                (value,) = data
                is_plain = type(data) is list and type(rows) is int and rows == 1 and len(tensor) == 4
                if not is_plain or tensor["datatype"] not in DATATYPES:
                    return None
                if column.type == "datetime":
                    value = self._instant(column, 0, value)
                elif (
                    type(value) not in _AS_IS[column.type]
                    or (type(value) is int and value not in INT64)
                    or (type(value) is str and len(value) > MOST_TEXT)
                ):
                    return None
                found.append([float(value) if type(value) is int and column.type == "float" else value])
        except (KeyError, TypeError, ValueError, InvalidRowError):
            return None
        return Rows(self.schema, found)

    @cached_property
    def _columns(self) -> list[tuple[str, Column]]:
        return [(column.name, column) for column in self.schema.columns]

    def _missing(self, values: Mapping[str, Sequence[Any]]) -> InvalidRowError:
        name = next(name for name in self.schema.names if name not in values)
        unknown = sorted(set(values) - set(self.schema.names))
        # What is not nearly the column's name may be a value: of a CSV without its first line.
        near = difflib.get_close_matches(name, [name[:SHOWN_NAME] for name in unknown[:SHOWN_NAMES]], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return InvalidRowError(
            f"is missing; a request holds {', '.join(self.schema.names)}{hint}", column=name
        )

    def _typed(self, column: Column, values: Sequence[Any]) -> list[Any]:
        if column.type == "datetime":
            return [self._instant(column, row, value) for row, value in enumerate(values)]
        found = set(map(type, values))
        if found <= _AS_IS[column.type]:
            if str in found:
                self._limit(column, values)
            if int not in found:
                return values if type(values) is list else list(values)
            # Nothing takes a whole number beyond 64 bits.
            if all(value is None or type(value) is float or value in INT64 for value in values):
                is_float = column.type == "float"
                return [v if v is None else float(v) for v in values] if is_float else list(values)
        texts = [self._text(column, row, value) for row, value in enumerate(values)]
        self._limit(column, texts)
        return self._from_text(column, texts)

    def _limit(self, column: Column, values: Sequence[Any]) -> None:
        for row, value in enumerate(values):
            if value is not None and len(value) > MOST_TEXT:
                said = f"has {len(value)} characters; at most {MOST_TEXT} are read"
                raise InvalidRowError(said, row=row, column=column.name)

    def _from_text(self, column: Column, texts: list[str | None]) -> list[Any]:
        typed, failures = self.bare[column.name].check(
            pl.DataFrame([pl.Series(column.name, texts, dtype=pl.String)])
        )
        for row in failures["row"].to_list():
            raise self._wrong(column, row, texts[row])
        return typed[column.name].to_list()

    @cached_property
    def bare(self) -> dict[str, Schema]:
        """For each column a schema that checks its type alone."""
        words = (self.schema.true_values, self.schema.false_values, self.schema.null_values)
        return {c.name: Schema((Column(c.name, c.type),), (), *words) for c in self.schema.columns}

    def _text(self, column: Column, row: int, value: object) -> str | None:
        """A value that did not fit as it is, as the text that a file would hold."""
        if value is None or isinstance(value, str):
            return value
        if column.type == "bool" and value in (False, True):
            return (self.schema.true_values if value else self.schema.false_values)[0]
        if isinstance(value, bool) and column.type in ("string", "category"):
            return str(value).lower()
        if isinstance(value, float) and math.isnan(value):
            return None
        if isinstance(value, int | float) and not isinstance(value, bool) and column.type != "bool":
            return str(int(value)) if float(value).is_integer() else repr(value)
        raise self._wrong(column, row, value)

    def _instant(self, column: Column, row: int, value: object) -> int | None:
        if value is None or (isinstance(value, str) and value in self.schema.null_values):
            return None
        try:
            instant = _microseconds(value)
        except (ValueError, OverflowError):
            raise self._wrong(column, row, value) from None
        if not FIRST_US <= instant <= LAST_US:
            raise self._wrong(column, row, value)
        return instant

    def _wrong(self, column: Column, row: int, value: object) -> InvalidRowError:
        shown = "the value" if column.name in self.hidden else show(value)
        return InvalidRowError(f"{shown} is not {_A[column.type]}", row=row, column=column.name)


def _microseconds(value: object) -> int:
    """Microseconds since the epoch; raises `ValueError` for what names no instant."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, str):
        raise ValueError("neither text nor a whole number")
    stamp = datetime.fromisoformat(value.strip())
    if stamp.tzinfo is None:
        raise ValueError("no offset")
    return to_micros(stamp)
