"""Values as callers send them → typed columns, by the schema of the request.

Everything is checked here that decides whether a value *is* a number, an instant or a name; whether it is a
plausible one is left to `Schema.check`, which the predictor runs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import polars as pl

from mlops_ray.errors import InvalidRowError, did_you_mean
from mlops_ray.instants import FIRST_US, LAST_US, to_micros
from mlops_ray.schema import DTYPES, Column, ColumnType, Schema
from mlops_ray.serving.documents import show

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


#: Of a caller's own column names, what an error looks at and shows.
SHOWN_NAMES, SHOWN_NAME = 10, 40


@dataclass(frozen=True)
class Reader:
    """Reads columns by a schema; values of `hidden` columns are shown in no error."""

    schema: Schema
    hidden: frozenset[str] = frozenset()

    def frame(self, values: Mapping[str, Sequence[Any]]) -> pl.DataFrame:
        """The schema's columns with their declared types, in its order; other columns are left out.

        Raises `InvalidRowError` for a column that is missing and a value that is of another type.

        >>> reader = Reader(Schema((Column("site", "category"), Column("load", "float"))))
        >>> reader.frame({"load": [1, "2.5"], "site": ["a", None], "more": [0, 0]}).rows()
        [('a', 1.0), (None, 2.5)]
        """
        for column in self.schema.columns:
            if column.name not in values:
                unknown = sorted(set(values) - set(self.schema.names))
                hint = did_you_mean(column.name, [name[:SHOWN_NAME] for name in unknown[:SHOWN_NAMES]])
                needed = ", ".join(self.schema.names)
                raise InvalidRowError(f"is missing; a request holds {needed}{hint}", column=column.name)
        return pl.DataFrame([self._series(column, values[column.name]) for column in self.schema.columns])

    def _series(self, column: Column, values: Sequence[Any]) -> pl.Series:
        if column.type == "datetime":
            instants = [self._instant(column, row, value) for row, value in enumerate(values)]
            return pl.Series(column.name, instants, dtype=pl.Int64).cast(DTYPES["datetime"])
        if set(map(type, values)) <= _AS_IS[column.type]:
            try:
                return pl.Series(column.name, values, dtype=DTYPES[column.type], strict=True)
            except (TypeError, ValueError, OverflowError):
                pass  # An integer beyond 64 bits; the way below finds it.
        texts = [self._text(column, row, value) for row, value in enumerate(values)]
        return self._from_text(column, texts)

    def _from_text(self, column: Column, texts: list[str | None]) -> pl.Series:
        typed, failures = self._bare[column.name].check(
            pl.DataFrame([pl.Series(column.name, texts, dtype=pl.String)])
        )
        for row in failures["row"].to_list():
            raise self._wrong(column, row, texts[row])
        return typed[column.name]

    @cached_property
    def _bare(self) -> dict[str, Schema]:
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
