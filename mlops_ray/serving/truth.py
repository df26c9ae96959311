"""The body of a request that tells what came true, as rows."""

from collections.abc import Collection, Iterable
from typing import Any

import orjson
import polars as pl

from mlops_ray.data.labels import SHOWN_CHARACTERS
from mlops_ray.errors import InvalidRowError, RequestError, TooLargeError, UnsupportedMediaTypeError
from mlops_ray.serving import documents, tables

JSON, CSV = "application/json", "text/csv"
#: Labels that one request may bring.
MOST_LABELS = 100_000
MOST_COLUMNS = 100
#: As `documents.MAX_BRACKETS`, some for the texts among the labels.
MOST_BRACKETS = 4 * MOST_LABELS


def decode(body: bytes, content_type: str) -> pl.DataFrame:
    """`{"labels": [{…}, …]}`, `{"labels": {"column": […], …}}`, or CSV with a header.

    Raises the `RequestError` of what is wrong with it.
    """
    kind = content_type.partition(";")[0].strip().lower() or JSON
    try:
        if kind == CSV:
            columns = tables.from_csv(body, MOST_LABELS)
            _limit_columns(columns)
            return _limited(pl.DataFrame([_text(name, values) for name, values in columns.items()]))
        if kind != JSON:
            raise UnsupportedMediaTypeError(f"labels come as {JSON} or {CSV}, not as {kind[:60]!r}")
        documents.limit_brackets(body, MOST_BRACKETS)
        found = orjson.loads(body)
        return _limited(_frame(found["labels"] if isinstance(found, dict) else None))
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is no JSON: {error}") from None
    except (KeyError, TypeError, ValueError, pl.exceptions.PolarsError):
        raise RequestError(
            'labels are {"labels": [{"request_id": …, "label": …}, …]}, or a list for each column, or CSV'
        ) from None


def _frame(given: Any) -> pl.DataFrame:
    """Columns of text, numbers or booleans alone; a column of several kinds is text."""
    if isinstance(given, dict):
        _limit_columns(given)
        columns = given
        if not columns or len({len(values) for values in columns.values()}) != 1:
            raise ValueError
    else:
        if isinstance(given, list) and len(given) > MOST_LABELS:
            raise TooLargeError(f"{len(given)} labels; at most {MOST_LABELS} at once")
        if not isinstance(given, list) or not given or not all(isinstance(row, dict) for row in given):
            raise ValueError
        names = {name: None for row in given for name in row}
        _limit_columns(names)
        columns = {name: [row.get(name) for row in given] for name in names}
    return pl.DataFrame([_series(str(name), list(values)) for name, values in columns.items()])


def _limit_columns(names: Collection[str]) -> None:
    if len(names) > MOST_COLUMNS:
        raise RequestError(f"labels have {len(names)} columns; at most {MOST_COLUMNS}")


def _series(name: str, values: list[Any]) -> pl.Series:
    for at, value in enumerate(values):
        if not isinstance(value, str | int | float | bool | None):
            raise InvalidRowError("is no plain value", row=at, column=name[:SHOWN_CHARACTERS])
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float}:
        return pl.Series(name, values, dtype=pl.Float64 if float in kinds else pl.Int64)
    if kinds == {bool}:
        return pl.Series(name, values, dtype=pl.Boolean)
    return pl.Series(name, [None if value is None else str(value) for value in values], dtype=pl.String)


def _text(name: str, values: Iterable[str]) -> pl.Series:
    """Of a CSV, in which what is empty is missing."""
    return pl.Series(name, [value or None for value in values], dtype=pl.String)


def _limited(rows: pl.DataFrame) -> pl.DataFrame:
    if not rows.height:
        raise ValueError
    _limit_columns(rows.columns)
    if rows.height > MOST_LABELS:
        raise TooLargeError(f"{rows.height} labels; at most {MOST_LABELS} at once")
    return rows
