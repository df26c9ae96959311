"""JSON documents of callers: parsed within limits, refused where they are of another shape."""

import json
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

INT64 = range(-(2**63), 2**63)
_NO_BRACKETS = bytes({*range(256)} - {*b"[]{}"})


def parse(body: bytes) -> Any:
    """The document; raises `RequestError` where it is broken, empty or too deep.

    NaN is null: it is no JSON, but MLflow's and Triton's clients write it for a value that is missing.

    >>> parse(b'{"load": [1.5, NaN]}')
    {'load': [1.5, None]}
    """
    if not body.strip():
        raise RequestError("the body is empty; send a JSON object")
    brackets = limit_brackets(body)
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if b"NaN" not in body:
            raise RequestError(f"the body is not JSON: {error}") from None
        document = _parse_with_nan(body)
    if brackets > MAX_DEPTH and not _is_shallow(body):
        _check_depth(document)
    return document


def limit_brackets(body: bytes, most: int = MAX_BRACKETS) -> int:
    """How many lists and objects a body holds at most; raises `TooLargeError` before any of them is made."""
    brackets = body.count(b"[") + body.count(b"{")
    if brackets > most:
        raise TooLargeError(f"the JSON holds {brackets} lists and objects, more than {most}")
    return brackets


def _is_shallow(body: bytes) -> bool:
    """Whether its brackets alone say that nothing is nested too deep: those in texts may say otherwise."""
    left = body.translate(None, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        if not left:
            break
        left = left.replace(b"[]", b"").replace(b"{}", b"")
    return not left


def _parse_with_nan(body: bytes) -> Any:
    try:
        document = json.loads(body.decode(), parse_constant=_nan)
        orjson.dumps(document)  # Python reads text that is no Unicode, and numbers of any length.
    except (ValueError, TypeError, RecursionError):
        raise RequestError("the body is not JSON, of which NaN alone may differ") from None
    return document


def _nan(word: str) -> None:
    if word != "NaN":
        raise ValueError(word)


def _check_depth(document: Any) -> None:
    level = [document] if isinstance(document, dict | list) else []
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _containers(parent)]
        if not level:
            return
    raise RequestError(f"the JSON is nested deeper than {MAX_DEPTH} levels")


def _containers(parent: Any) -> Iterator[Any]:
    children = parent.values() if isinstance(parent, dict) else parent
    # Of a long list of numbers the types alone are looked at, which is done a hundred times as fast.
    if {dict, list}.isdisjoint(map(type, children)):
        return iter(())
    return (child for child in children if isinstance(child, dict | list))


_KINDS = {str: "text", bool: "true or false", dict: "an object", list: "a list", type(None): "null"}


def _kind(value: Any) -> str:
    """What a value is; which one it is may be nobody's to see, and here no column is known yet."""
    return _KINDS.get(type(value), "a number")


def as_object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{name} must be a JSON object, not {_kind(value)}")
    return value


def as_list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise RequestError(f"{name} must be a JSON list, not {_kind(value)}")
    return value


def limit_rows(rows: int, most: int = MAX_ROWS) -> None:
    """Raises `TooLargeError` for more rows than one request may have."""
    if rows > most:
        raise TooLargeError(f"{rows} rows are more than {most}; send several requests")


def limit_columns(names: Collection[str]) -> None:
    """Raises `TooLargeError` for more columns than one request may have."""
    if len(names) > MAX_COLUMNS:
        raise TooLargeError(f"{len(names)} columns are more than {MAX_COLUMNS}")


def show(value: object) -> str:
    """A caller's value as an error shows it.

    >>> show("x" * 100)
    "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…'"
    """
    if isinstance(value, int) and value not in INT64:
        return "a huge number"  # Python refuses to print more than 4,300 digits.
    text = repr(value) if not isinstance(value, list | dict) else f"a {type(value).__name__}"
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…{text[-1]}"
