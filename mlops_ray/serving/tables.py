"""MLflow's forms of a table → columns."""

import codecs
import csv
import io
import itertools
from collections.abc import Sequence
from typing import Any

from mlops_ray.errors import RequestError
from mlops_ray.serving.documents import MAX_ROWS, as_list, as_object, limit_columns, limit_rows

FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")


def from_document(document: dict[str, Any], names: Sequence[str]) -> dict[str, Sequence[Any]]:
    """The columns of the one form that the document holds; `names` are the columns that a request has."""
    given = [form for form in FORMS if form in document]
    if len(given) != 1:
        raise RequestError(
            f"say exactly one of {', '.join(FORMS)}, not {' and '.join(given) or 'none of them'}"
        )
    table = document[given[0]]
    match given[0]:
        case "dataframe_split":
            return _split(table)
        case "dataframe_records":
            return _records(table, names)
    return _instances(table, names)


def _by_position(
    table: list[Any], names: Sequence[str], form: str, most: int = MAX_ROWS
) -> dict[str, Sequence[Any]]:
    """Rows that are lists → columns."""
    limit_rows(len(table), most)
    limit_columns(names)
    for row, values in enumerate(table):
        if not isinstance(values, list) or len(values) != len(names):
            raise RequestError(f"{form}: row {row} is not a list of {len(names)} values")
    return {name: [values[at] for values in table] for at, name in enumerate(names)}


def _split(document: Any) -> dict[str, Sequence[Any]]:
    form = as_object(document, "dataframe_split")
    columns = as_list(form.get("columns"), "dataframe_split.columns")
    if not all(isinstance(name, str) for name in columns) or len(set(columns)) != len(columns):
        raise RequestError("dataframe_split.columns must be names, each once")
    return _by_position(as_list(form.get("data"), "dataframe_split.data"), columns, "dataframe_split.data")


def _records(document: Any, names: Sequence[str]) -> dict[str, Sequence[Any]]:
    """A key that a record lacks is null in its row; one that all lack is a missing column."""
    limit_rows(len(as_list(document, "the rows")))
    records = [as_object(record, f"row {row}") for row, record in enumerate(as_list(document, "the rows"))]
    given: dict[str, None] = {}
    for record in records:
        given.update(dict.fromkeys(record))
    wanted = [name for name in given if name in names] or list(given)[:1]
    return {name: [record.get(name) for record in records] for name in wanted}


def _instances(document: Any, names: Sequence[str]) -> dict[str, Sequence[Any]]:
    """`instances` and `inputs`: records, rows of values in the order of the columns, or columns by name."""
    if isinstance(document, dict):
        limit_columns(document)
        return {name: _flat(values, name) for name, values in document.items()}
    rows = as_list(document, "the rows")
    return (
        _records(rows, names) if rows and isinstance(rows[0], dict) else _by_position(rows, names, "the rows")
    )


def _flat(values: Any, name: str) -> list[Any]:
    listed = values if isinstance(values, list) else [values]
    return [v[0] if isinstance(v, list) and len(v) == 1 else v for v in listed]


def from_csv(body: bytes, most: int = MAX_ROWS) -> dict[str, Sequence[Any]]:
    """The columns of a CSV whose first line names them, all values as text; `most` rows of it."""
    try:
        text = body.removeprefix(codecs.BOM_UTF8).decode()
        lines = (row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row)
        # One more than may be there, and the header: enough to see that it is too many.
        header, *table = itertools.islice(lines, most + 2)
    except UnicodeDecodeError:
        raise RequestError("the CSV is not UTF-8") from None
    except csv.Error as error:
        raise RequestError(f"the CSV cannot be read: {error}") from None
    except ValueError:
        raise RequestError("the CSV is empty; its first line names the columns") from None
    limit_columns(header)
    if len(set(header)) != len(header):
        raise RequestError("the CSV names a column twice")
    return _by_position(table, header, "the CSV", most)
