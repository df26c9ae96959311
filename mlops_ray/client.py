"""A client of the endpoint: sends rows, waits so long and no longer, and asks again where that helps.

It needs nothing but orjson and numpy, and imports nothing of the package but its errors.
"""

import http.client
import math
import random
import ssl
import threading
import time
import urllib.parse
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from mlops_ray.errors import RequestError, ServiceError, request_error

#: What may be another answer a moment later; a prediction asked for twice does no harm. Of 504 the time has
#: passed already.
PASSING = (408, 429, 500, 502, 503)
#: Seconds of the first pause between two tries, doubled each time, and of the longest.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0
#: The most that the service lets a caller say of its time, ten minutes.
MOST_MS = 600_000

Rows = Sequence[Mapping[str, Any]] | Any
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """The answers to some rows, in their order.

    `predictions` are float64 (rows), of a classification the probability of a yes; `decisions` are bool
    (rows), `None` in a regression.
    """

    predictions: Values
    decisions: npt.NDArray[np.bool_] | None
    version: str
    id: str


@dataclass
class Client:
    """Asks one model at `url`; may be used by several threads, each of which keeps a connection.

    `key` is one of the role `predict`. `timeout_s` is for an answer with all its tries, of which there are at
    most `tries`; the service is told of it. `context` is that of TLS.

    >>> Client("http://127.0.0.1:8000", "factory-load", key="…").path
    '/v2/models/factory-load'
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout_s: float = 5.0
    tries: int = 4
    context: ssl.SSLContext | None = field(default=None, repr=False)
    _local: threading.local = field(default_factory=threading.local, init=False, repr=False)

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            # What is before an @ is a password.
            raise ValueError(f"an address is http://HOST:PORT, not {self.url.rpartition('@')[2]!r:.80}")
        self._host, self._port, self._secure = parts.hostname, parts.port, parts.scheme == "https"
        self._base = parts.path.rstrip("/")

    @property
    def path(self) -> str:
        return f"{self._base}/v2/models/{urllib.parse.quote(self.model, safe='')}"

    def predict(self, rows: Rows, *, version: str | int | None = None) -> Answers:
        """The answers to rows: mappings, a pandas or a Polars frame; instants carry an offset, or are UTC.

        Raises `TypeError` for what is no rows, the `RequestError` of what is wrong with them, with row and
        column in its sentence, and `ServiceError` where nobody answers in time.
        """
        body = orjson.dumps({"inputs": columns(rows)}, option=orjson.OPT_SERIALIZE_NUMPY)
        named = "" if version is None else f"/versions/{urllib.parse.quote(str(version), safe='')}"
        said = self._ask("POST", f"{self.path}{named}/invocations", body)
        return Answers(
            np.array(said["predictions"], np.float64),
            np.array(said["decisions"], np.bool_) if "decisions" in said else None,
            str(said["model_version"]),
            str(said["id"]),
        )

    def label(self, rows: Rows) -> int:
        """Tells what came true, and returns how many labels were taken; the key is one of the role `label`.

        Each row has a `label`, and says what it is of: a `request_id` (`Answers.id`), of several rows with
        their `row` from 0, or columns of the request. Raises as `predict` does.
        """
        body = orjson.dumps({"labels": columns(rows)}, option=orjson.OPT_SERIALIZE_NUMPY)
        return int(self._ask("POST", f"{self.path}/labels", body)["labels"])

    def metadata(self) -> dict[str, Any]:
        """The versions that answer, and what a row holds."""
        return self._ask("GET", self.path)

    def close(self) -> None:
        """Ends this thread's connection; the next question opens another one."""
        connection = self._local.__dict__.pop("connection", None)
        if connection is not None:
            connection.close()

    def _ask(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        until, pause_s, id = time.monotonic() + self.timeout_s, FIRST_PAUSE_S, uuid.uuid4().hex
        error: Exception = ServiceError(f"no answer within {self.timeout_s:g} s")
        for _ in range(self.tries):
            left_s = until - time.monotonic()
            if left_s <= 0:
                break
            try:
                status, headers, data = self._once(method, path, body, left_s, id)
            except (OSError, http.client.HTTPException) as failed:
                self.close()
                error = ServiceError(f"{self.url} does not answer: {failed or type(failed).__name__}")
                wait_s = 0.0
            else:
                if status < 400:
                    return dict(orjson.loads(data))
                error = _error(status, data)
                if _knows_no_model(status, headers):
                    # The next connection may come to another front end.
                    self.close()
                elif status not in PASSING:
                    raise error
                wait_s = _seconds(headers.get("retry-after"))
            # Who all come back at once are turned away at once.
            wait_s, pause_s = max(wait_s, pause_s * random.uniform(0.5, 1)), min(2 * pause_s, LONGEST_PAUSE_S)  # noqa: S311
            if time.monotonic() + wait_s >= until:
                break
            time.sleep(wait_s)
        raise error

    def _once(
        self, method: str, path: str, body: bytes | None, left_s: float, id: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = self._connection(left_s)
        left_ms = min(max(1, int(1000 * left_s)), MOST_MS)
        headers = {"X-Timeout-Ms": str(left_ms), "X-Request-ID": id}
        headers |= {"Content-Type": "application/json"} if body is not None else {}
        headers |= {"Authorization": f"Bearer {self.key}"} if self.key is not None else {}
        connection.request(method, path, body, headers)
        reply = connection.getresponse()
        return reply.status, reply.headers, reply.read()

    def _connection(self, left_s: float) -> http.client.HTTPConnection:
        """This thread's connection, which waits at most so long for each of its steps."""
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = (
                http.client.HTTPSConnection(self._host, self._port, timeout=left_s, context=self.context)
                if self._secure
                else http.client.HTTPConnection(self._host, self._port, timeout=left_s)
            )
            self._local.connection = connection
        connection.timeout = left_s
        if connection.sock is not None:
            connection.sock.settimeout(left_s)
        return connection


def columns(rows: Rows) -> dict[str, list[Any]]:
    """Rows as columns of plain values, missing ones as `None`.

    >>> columns([{"site": "a", "load": 1.0}, {"site": "b", "load": None}])
    {'site': ['a', 'b'], 'load': [1.0, None]}
    """
    if hasattr(rows, "sink_parquet"):
        # A lazy frame of Polars.
        frame: Any = rows
        rows = frame.collect()
    if hasattr(rows, "get_columns"):
        return {str(column.name): _plain(column.to_list()) for column in rows.get_columns()}
    if hasattr(rows, "columns"):
        return {str(name): _plain(rows[name].tolist()) for name in rows.columns}
    if isinstance(rows, Mapping | str) or not all(isinstance(row, Mapping) for row in rows):
        raise TypeError("rows are a list of mappings, one for each row, or a frame of pandas or Polars")
    names = {name: None for row in rows for name in row}
    return {name: _plain([row.get(name) for row in rows]) for name in names}


def _plain(values: list[Any]) -> list[Any]:
    return [None if _is_missing(value) else _text(value) for value in values]


def _is_missing(value: Any) -> bool:
    # NaN, and pandas' own missing values, equal nothing, and its NA is neither true nor false.
    return value is None or type(value).__name__ in ("NAType", "NaTType") or value != value


def _text(value: Any) -> Any:
    """An instant as text with its offset; one without is in UTC. Days and times of day have none."""
    if isinstance(value, float | np.floating) and math.isinf(value):
        # JSON would make it a missing value; by its name it is refused.
        return repr(float(value))
    if not hasattr(value, "isoformat"):
        return value
    said = str(value.isoformat())
    return f"{said}Z" if isinstance(value, datetime) and value.tzinfo is None else said


def _error(status: int, data: bytes) -> RequestError | ServiceError:
    try:
        said = str(orjson.loads(data)["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        said = data[:200].decode(errors="replace") or http.client.responses.get(status, "")
    return request_error(status, said) if status < 500 else ServiceError(f"status {status}: {said}")


def _knows_no_model(status: int, headers: http.client.HTTPMessage) -> bool:
    """Whether a front end answered that has just started and was told of no model: the service says JSON."""
    return status == 404 and headers.get_content_type() == "text/plain"


def _seconds(said: str | None) -> float:
    """What `Retry-After` says, where it says seconds.

    >>> _seconds("2"), _seconds(None), _seconds("Wed, 21 Oct 2026 07:28:00 GMT")
    (2.0, 0.0, 0.0)
    """
    return float(said) if said is not None and said.isascii() and said.isdecimal() else 0.0
