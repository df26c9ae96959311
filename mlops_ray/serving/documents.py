"""JSON documents of callers: parsed within limits, refused where they are of another shape."""

from collections.abc import Collection, Iterator
from typing import Any

import orjson

from mlops_ray.errors import RequestError, TooLargeError

#: The deepest form we read has 5 levels, parameters a few more; a parser's stack is not a caller's to fill.
MAX_DEPTH = 32
#: A replica answers from one event loop: so many rows hold it for about a tenth of a second.
MAX_ROWS = 10_000
#: Brackets in a body, which bound the objects that parsing makes: a list or an object a row, and some around.
MAX_BRACKETS = 4 * MAX_ROWS
#: Inputs or columns of one request.
MAX_COLUMNS = 1_000
#: Characters of a caller's value that an error shows: enough to find it, too few to flood a log.
SHOWN_CHARACTERS = 40

_INT64 = range(-(2**63), 2**63)


def parse(body: bytes) -> Any:
    """The document; raises `RequestError` where it is broken, empty or too deep."""
    if not body.strip():
        raise RequestError("the body is empty; send a JSON object")
    brackets = body.count(b"[") + body.count(b"{")
    if brackets > MAX_BRACKETS:
        raise TooLargeError(f"the JSON holds {brackets} lists and objects, more than {MAX_BRACKETS}")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is not JSON: {error}") from None
    if brackets > MAX_DEPTH:
        _check_depth(document)
    return document


def _check_depth(document: Any) -> None:
    level = [document]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _containers(parent)]
        if not level:
            return
    raise RequestError(f"the JSON is nested deeper than {MAX_DEPTH} levels")


def _containers(parent: Any) -> Iterator[Any]:
    children = parent.values() if isinstance(parent, dict) else parent if isinstance(parent, list) else ()
    return (child for child in children if isinstance(child, dict | list))


def as_object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{name} must be a JSON object, not {show(value)}")
    return value


def as_list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise RequestError(f"{name} must be a JSON list, not {show(value)}")
    return value


def limit_rows(rows: int) -> None:
    """Raises `TooLargeError` for more rows than one request may have."""
    if rows > MAX_ROWS:
        raise TooLargeError(f"{rows} rows are more than {MAX_ROWS}; send several requests")


def limit_columns(names: Collection[str]) -> None:
    """Raises `TooLargeError` for more columns than one request may have."""
    if len(names) > MAX_COLUMNS:
        raise TooLargeError(f"{len(names)} columns are more than {MAX_COLUMNS}")


def show(value: object) -> str:
    """A caller's value as an error shows it.

    >>> show("x" * 100)
    "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…"
    """
    if isinstance(value, int) and value not in _INT64:
        return "a huge number"  # Python refuses to print more than 4,300 digits.
    text = repr(value) if not isinstance(value, list | dict) else f"a {type(value).__name__}"
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"
