"""The client against servers of this machine that answer as they are told: it waits, asks again, gives up."""

import http.server
import json
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from datetime import time as time_of_day
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from mlops_ray.client import Client, columns
from mlops_ray.errors import (
    ForbiddenError,
    InvalidRowError,
    RequestError,
    ServiceError,
    UnauthorizedError,
)

GOOD = {"predictions": [1.5, None], "decisions": [True, False], "model_version": "3", "id": "x"}


@dataclass
class Server:
    """Answers each request with the next of `script`: a status and headers, or "close", or "hang"."""

    script: list[Any] = field(default_factory=list)
    seen: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""
    over: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.seen.append({"path": self.path, "body": json.loads(body), **dict(self.headers.items())})
            self._answer(made.script.pop(0) if made.script else (200, {}))

        def do_GET(self) -> None:
            made.seen.append({"path": self.path, **dict(self.headers.items())})
            self._answer((200, {}))

        def _answer(self, told: Any) -> None:
            if told == "close":
                self.close_connection = True
                return
            if told == "hang":
                made.over.wait(30)
                return
            status, headers = told
            body = json.dumps(GOOD if status == 200 else {"error": f"it is {status}"}).encode()
            self.send_response(status)
            told_of = {"Content-Length": str(len(body)), "Content-Type": "application/json"} | headers
            for name, value in told_of.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    made.url = f"http://127.0.0.1:{served.server_port}"
    try:
        yield made
    finally:
        made.over.set()
        served.shutdown()
        served.server_close()
        thread.join()


ROWS = [{"site": "a", "load": 1.0}, {"site": "b", "load": None}]


def test_rows_are_sent_with_key_and_deadline_and_answered_as_arrays(server: Server) -> None:
    client = Client(server.url, "a b", key="secret", timeout_s=3)
    found = client.predict(ROWS)
    assert np.array_equal(found.predictions, [1.5, np.nan], equal_nan=True)
    assert found.decisions is not None
    assert found.decisions.tolist() == [True, False]
    assert (found.version, found.id) == ("3", "x")
    (seen,) = server.seen
    assert seen["path"] == "/v2/models/a%20b/invocations"
    assert seen["body"] == {"inputs": {"site": ["a", "b"], "load": [1.0, None]}}
    assert seen["Authorization"] == "Bearer secret"
    assert 1000 < int(seen["X-Timeout-Ms"]) <= 3000
    client.predict(ROWS, version="7")
    assert server.seen[-1]["path"] == "/v2/models/a%20b/versions/7/invocations"
    assert "secret" not in repr(client)


def test_pandas_polars_and_rows_are_the_same_columns() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [
        {"site": "a", "load": 1.5, "n": 1, "open": True, "at": at},
        {"site": None, "load": None, "n": None, "open": None, "at": None},
    ]
    expected = {
        "site": ["a", None],
        "load": [1.5, None],
        "n": [1, None],
        "open": [True, None],
        "at": ["2026-01-01T00:00:00+00:00", None],
    }
    typed = pd.DataFrame(rows).astype({"n": "Int64", "open": "boolean"})
    assert columns(rows) == columns(pl.DataFrame(rows)) == columns(typed) == expected
    naive = [{"at": datetime(2026, 1, 1)}, {"at": datetime(2026, 1, 2)}]
    assert columns(naive)["at"] == columns(pd.DataFrame(naive))["at"]
    assert columns(naive)["at"][0] == "2026-01-01T00:00:00Z"
    assert columns([{"a": 1}, {"b": 2}]) == {"a": [1, None], "b": [None, 2]}


def test_days_and_times_of_day_are_no_instants_and_get_no_offset() -> None:
    rows = [{"day": date(2025, 12, 31), "at": time_of_day(12)}]
    expected = {"day": ["2025-12-31"], "at": ["12:00:00"]}
    assert columns(rows) == columns(pl.DataFrame(rows)) == columns(pd.DataFrame(rows)) == expected


@pytest.mark.parametrize("infinite", [math.inf, -math.inf, np.float32("inf")])
def test_an_infinite_number_is_not_sent_as_a_missing_one(infinite: float, server: Server) -> None:
    """JSON has no infinities: as text the service refuses them, with row and column."""
    Client(server.url, "m").predict([{"load": 1.0}, {"load": infinite}])
    assert server.seen[0]["body"] == {"inputs": {"load": [1.0, repr(float(infinite))]}}


def test_who_waits_longer_than_the_service_lets_anybody_is_told_of_the_most(server: Server) -> None:
    Client(server.url, "m", timeout_s=3600).predict(ROWS)
    assert int(server.seen[0]["X-Timeout-Ms"]) == 600_000


@pytest.mark.parametrize(
    "passing",
    # The last is a front end that has just started, and knows of no model.
    [(429, {"Retry-After": "0"}), (503, {}), (500, {}), "close", (404, {"Content-Type": "text/plain"})],
)
def test_what_passes_is_asked_again_under_the_same_id(passing: Any, server: Server) -> None:
    server.script = [passing, passing, (200, {})]
    assert Client(server.url, "m").predict(ROWS).version == "3"
    assert len(server.seen) == 3
    assert len({seen["X-Request-ID"] for seen in server.seen}) == 1


def test_a_connection_is_kept(server: Server) -> None:
    client = Client(server.url, "m")
    client.predict(ROWS)
    socket = client._local.connection.sock
    client.predict(ROWS)
    assert client.metadata() == GOOD
    assert client._local.connection.sock is socket
    client.close()
    client.predict(ROWS)


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, UnauthorizedError), (403, ForbiddenError), (404, RequestError), (422, InvalidRowError)],
)
def test_what_the_caller_has_to_mend_is_raised_at_once_with_what_the_service_says(
    status: int, error: type[Exception], server: Server
) -> None:
    server.script = [(status, {})]
    with pytest.raises(error, match=f"it is {status}"):
        Client(server.url, "m").predict(ROWS)
    assert len(server.seen) == 1


def test_after_so_many_tries_it_says_what_the_last_one_said(server: Server) -> None:
    server.script = [(503, {})] * 9
    with pytest.raises(ServiceError, match="status 503: it is 503"):
        Client(server.url, "m", tries=3).predict(ROWS)
    assert len(server.seen) == 3


@pytest.mark.parametrize("slow", ["hang", (429, {"Retry-After": "60"})])
def test_it_waits_for_its_time_and_no_longer(slow: Any, server: Server) -> None:
    server.script = [slow] * 9
    begin = time.monotonic()
    with pytest.raises((ServiceError, RequestError), match=r"does not answer|it is 429"):
        Client(server.url, "m", timeout_s=0.3).predict(ROWS)
    assert time.monotonic() - begin < 5
    assert len(server.seen) == 1


def test_nobody_there_is_said_in_a_sentence(server: Server) -> None:
    away = Client("http://127.0.0.1:1", "m", timeout_s=1)
    with pytest.raises(ServiceError, match=r"http://127\.0\.0\.1:1 does not answer: .*refused"):
        away.predict(ROWS)


@pytest.mark.parametrize("rows", [ROWS[0], "rows", ["row"], [1]])
def test_what_is_no_rows_is_said_in_a_sentence(rows: Any, server: Server) -> None:
    with pytest.raises(TypeError, match="rows are a list of mappings"):
        Client(server.url, "m").predict(rows)
    assert server.seen == []


def test_a_version_may_be_a_number_and_a_frame_lazy(server: Server) -> None:
    Client(server.url, "m").predict(pl.DataFrame(ROWS).lazy(), version=3)
    assert columns(pd.DataFrame({"collect": [1.0]})) == {"collect": [1.0]}
    assert server.seen[0]["path"] == "/v2/models/m/versions/3/invocations"


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://bob:hunter2@host", "http://"])
def test_an_address_that_is_none_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match="an address is http://HOST:PORT") as error:
        Client(url, "m")
    assert "hunter2" not in str(error.value)
