"""Requests reach our application before Serve's code, and Serve keeps what is its own."""

import asyncio
import contextlib
import select
import socket
import threading
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPResponse

import pytest
import uvicorn

from mlops_ray.serving import direct
from mlops_ray.serving.asgi import App, Application, Call, Message, Receive, Reply, Scope, Send
from tests.serving.calls import call

TIMEOUT_S, STUCK_S = 60.0, 1.0
LARGE, UNREAD = 8 * 2**20, 150_000


@dataclass
class Ours(Application):
    """Answers with its name and what it was sent; refuses what says so."""

    reached: list[str] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)
    refused: int = 0

    def take(self, call: Call) -> Reply | Awaitable[Reply]:
        if call.header("x-vain"):
            self.refused += 1
            return Reply(429, b"refused")
        return self._reply(call)

    async def _reply(self, call: Call) -> Reply:
        self.reached.append(call.path)
        if call.path == "/early":
            return Reply(401, b"")
        body = await call.body(LARGE)
        if call.path == "/dies":
            raise asyncio.CancelledError
        if call.path == "/large":
            return Reply(200, bytes(LARGE))
        if call.path == "/waits":
            async with asyncio.timeout(TIMEOUT_S):
                while not call.is_gone():
                    await asyncio.sleep(0)
            self.gone.set()
        return Reply(200, b"ours: " + body)


async def serves(scope: Scope, receive: Receive, send: Send) -> None:
    """An application as Serve's."""
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
    await send({"type": "http.response.body", "body": b"serves"})


async def nothing() -> None:
    """There is nothing to start."""


def _config(app: App, keep_alive_s: int) -> uvicorn.Config:
    quiet = {"lifespan": "off", "log_level": "critical", "timeout_keep_alive": keep_alive_s}
    return uvicorn.Config(app, **quiet)  # type: ignore[arg-type]


@contextlib.contextmanager
def listening(app: App, keep_alive_s: int = 60) -> Iterator[socket.socket]:
    """A connection to a server as Serve starts them."""
    direct.middlewares()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(_config(app, keep_alive_s))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            with socket.create_connection(listener.getsockname(), timeout=TIMEOUT_S) as connection:
                yield connection
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    answering, protocols = direct._answering[:], dict(uvicorn.config.HTTP_PROTOCOLS)
    direct._answering.clear()
    yield
    direct._answering[:] = answering
    uvicorn.config.HTTP_PROTOCOLS.update(protocols)


@pytest.fixture
def ours() -> Ours:
    """An application that is up, as Serve brings it up, before the first request."""
    messages = [{"type": "lifespan.shutdown"}, {"type": "lifespan.startup"}]

    async def receive() -> Message:
        return messages.pop()

    async def send(message: Message) -> None:
        assert message["type"].endswith("complete")

    app = Ours()
    asyncio.run(direct.by_serve(app, nothing, nothing)({"type": "lifespan"}, receive, send))  # type: ignore[arg-type]
    return app


def request(path: str, *headers: str, body: bytes = b"", method: str = "POST", version: str = "1.1") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: here", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def reply(connection: socket.socket, method: str = "POST") -> tuple[int, dict[str, str], bytes]:
    """The next reply of a connection."""
    found = HTTPResponse(connection, method=method)
    found.begin()
    return found.status, {name.lower(): value for name, value in found.getheaders()}, found.read()


def asked(connection: socket.socket, path: str, *headers: str, body: bytes = b"") -> bytes:
    connection.sendall(request(path, *headers, body=body))
    return reply(connection)[2]


def test_until_the_application_is_up_requests_are_serves() -> None:
    with listening(serves) as connection:
        assert asked(connection, "/v2/models/m/infer") == b"serves"
        direct._answering.append(Ours())
        assert asked(connection, "/v2/models/m/infer", body=b"a row") == b"ours: a row"


@pytest.mark.parametrize("path", ["/-/healthz", "/-/routes"])
def test_health_checks_go_on_to_serve(ours: Ours, path: str) -> None:
    with listening(serves) as connection:
        assert asked(connection, path) == b"serves"
    assert ours.reached == []


@pytest.mark.parametrize("path", ["/%2d/routes", "/-%2Froutes", "/%2D/healthz", "//-/routes"])
def test_what_only_looks_like_a_path_of_serves_when_decoded_is_ours(ours: Ours, path: str) -> None:
    with listening(serves) as connection:
        assert asked(connection, path) == b"ours: "
    assert len(ours.reached) == 1


def test_who_comes_in_vain_is_refused_before_the_body_is_there_and_may_ask_again(ours: Ours) -> None:
    with listening(serves) as connection:
        whole = request("/v2", "X-Vain: yes", body=b"a row")
        connection.sendall(whole[:-5])
        assert reply(connection)[::2] == (429, b"refused")
        connection.sendall(whole[-5:])
        assert asked(connection, "/v2", body=b"a row") == b"ours: a row"
    assert ours.reached == ["/v2"]


def test_who_waits_for_a_word_before_the_body_gets_it_or_a_last_reply(ours: Ours) -> None:
    with listening(serves) as connection:
        whole = request("/v2", "Expect: 100-continue", body=b"a row")
        connection.sendall(whole[:-5])
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(whole[-5:])
        assert reply(connection)[2] == b"ours: a row"
        connection.sendall(request("/v2", "X-Vain: yes", "Expect: 100-continue", body=b"a row")[:-5])
        assert reply(connection)[::2] == (429, b"refused")
        assert connection.recv(1) == b""


def test_who_waits_for_a_word_and_is_answered_in_a_task_before_it_may_not_go_on(ours: Ours) -> None:
    with listening(serves) as connection:
        connection.sendall(request("/early", "Expect: 100-continue", body=b"a row")[:-5])
        assert reply(connection)[1]["connection"] == "close"
        assert connection.recv(1) == b""


def test_requests_that_come_at_once_are_answered_in_their_order(ours: Ours) -> None:
    with listening(serves) as connection:
        bodies = [b"%d" % number for number in range(20)]
        connection.sendall(b"".join(request("/v2", body=body) for body in bodies))
        found = HTTPResponses(connection)
        assert [found.next() for _ in bodies] == [b"ours: " + body for body in bodies]


def test_thousands_that_come_at_once_and_in_vain_are_all_refused(ours: Ours) -> None:
    with listening(serves) as connection:
        vain = [b"GET / HTTP/1.1\r\nX-Vain: 1\r\n\r\n"] * 2_000
        connection.sendall(request("/v2", body=b"a row") + b"".join(vain))
        found = HTTPResponses(connection)
        assert [found.next() for _ in range(2_001)] == [b"ours: a row"] + [b"refused"] * 2_000


def test_more_than_any_proxy_sends_at_once_is_cut_off(ours: Ours) -> None:
    with listening(serves) as connection:
        connection.sendall(request("/waits") + b"GET / HTTP/1.1\r\n\r\n" * (2 * direct.MOST_PIPELINED))
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""
        assert ours.gone.wait(TIMEOUT_S)
    assert ours.reached == ["/waits"]


@pytest.mark.parametrize("late", [b"", b"x"])
def test_what_follows_an_upgrade_is_no_request_of_somebody_elses(ours: Ours, late: bytes) -> None:
    inner = request("/smuggled")
    with listening(serves) as connection:
        head = request("/v2", "Connection: Upgrade", "Upgrade: x", body=inner)[: -len(inner)]
        connection.sendall(head + late)
        assert reply(connection)[1]["connection"] == "close"
        with contextlib.suppress(ConnectionError):
            connection.sendall(inner)
            assert connection.recv(1) == b""
    assert ours.reached == ["/v2"]


def test_a_connection_that_was_refused_before_its_body_came_does_not_stay_for_ever(ours: Ours) -> None:
    with listening(serves, keep_alive_s=1) as connection:
        whole = request("/v2", "X-Vain: yes", body=b"a row")
        connection.sendall(whole[:-5])
        assert reply(connection)[0] == 429
        connection.sendall(whole[-5:])
        assert connection.recv(1) == b""


class HTTPResponses:
    """Replies that come at once, read from one buffer."""

    def __init__(self, connection: socket.socket) -> None:
        self._file = connection.makefile("rb")

    def next(self) -> bytes:
        assert self._file.readline().startswith(b"HTTP/1.1 ")
        length = 0
        while (line := self._file.readline()) != b"\r\n":
            name, _, value = line.partition(b":")
            length = int(value) if name == b"content-length" else length
        return self._file.read(length)


@pytest.mark.parametrize(("version", "header"), [("1.1", "Connection: close"), ("1.0", "X-Nothing: 1")])
def test_a_connection_that_is_not_to_be_kept_is_closed_and_says_so(
    ours: Ours, version: str, header: str
) -> None:
    with listening(serves) as connection:
        connection.sendall(request("/v2", header, body=b"a row", version=version))
        status, headers, body = reply(connection)
        assert (status, headers["connection"], body) == (200, "close", b"ours: a row")
        assert connection.recv(1) == b""


def test_a_reply_to_head_has_the_length_and_no_body(ours: Ours) -> None:
    with listening(serves) as connection:
        connection.sendall(request("/v2", method="HEAD"))
        _, headers, body = reply(connection, "HEAD")
        assert (headers["content-length"], body) == ("6", b"")
        assert asked(connection, "/v2", body=b"a row") == b"ours: a row"


def test_a_reply_names_the_request_and_the_time(ours: Ours) -> None:
    with listening(serves) as connection:
        connection.sendall(request("/v2", "X-Request-ID: mine"))
        _, headers, _ = reply(connection)
        assert headers["x-request-id"] == "mine"
        assert "date" in headers
        # What is no text to print is no id.
        connection.sendall(request("/v2", "X-Request-ID: ")[:-8] + b"X-Request-ID: a\x85b\r\n\r\n")
        assert len(reply(connection)[1]["x-request-id"]) == 32


def test_an_application_learns_that_the_caller_has_gone(ours: Ours) -> None:
    with listening(serves) as connection:
        connection.sendall(request("/waits"))
        connection.close()
        assert ours.gone.wait(TIMEOUT_S)


def test_who_asks_in_vain_and_reads_no_reply_is_soon_not_read_from(ours: Ours) -> None:
    with listening(serves) as connection:
        connection.setblocking(False)
        heads, refused = request("/v2", "X-Vain: yes") * 1_000, -1
        left = heads
        # Where thousands wait for each other, the connection is cut off besides.
        with contextlib.suppress(ConnectionError):
            while refused < ours.refused < UNREAD:
                refused = ours.refused
                if select.select([], [connection], [], STUCK_S)[1]:
                    with contextlib.suppress(BlockingIOError):
                        left = left[connection.send(left) :] or heads
                    refused = -1
        # Not more than the kernel's buffers hold; replies would otherwise gather without an end.
        assert 0 < ours.refused < UNREAD


def test_a_reply_larger_than_fits_waits_for_its_reader(ours: Ours) -> None:
    with listening(serves) as connection:
        connection.sendall(request("/large") + request("/large"))
        found = HTTPResponses(connection)
        assert [len(found.next()), len(found.next())] == [LARGE, LARGE]


def test_a_connection_whose_answer_will_never_come_is_closed(ours: Ours) -> None:
    with listening(serves) as connection:
        connection.sendall(request("/dies"))
        assert connection.recv(1) == b""


def test_a_request_that_comes_by_way_of_serve_gets_its_id_from_serve_alone() -> None:
    app = direct.by_serve(Ours(), nothing, nothing)
    assert "x-request-id" not in call(app, "POST", "/v2").headers
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app({"type": "websocket"}, None, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_every_cluster_of_ours_puts_the_protocol_where_serve_takes_it() -> None:
    from ray._common.utils import import_attr

    from mlops_ray.cluster.head import SETTINGS

    assert import_attr(SETTINGS["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"])() == []
    config = uvicorn.Config(serves)  # type: ignore[arg-type]
    config.load()
    assert config.http_protocol_class is direct.Direct
