"""Requests in great number over real connections, kept open, several at a time; and what was wrong."""

import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from random import Random
from urllib.parse import urlsplit

from tests.security.guided import wrongly_said
from tests.security.samples import Sample, changed_bytes, mutated

#: Far longer than an answer takes, and shorter than a hang.
LIMIT_S = 30.0
#: Of one that is damaged the server may await more: so long the server is given before it is told otherwise.
PATIENCE_S = 0.1
CALLERS = 8
#: Of all requests so many are right, and have a right answer; and so many are damaged, head and all.
RIGHT, DAMAGED = 0.04, 0.05
#: What is in heads.
WORDS = (
    *(
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b" ",
        b":",
        b"\0",
        b"HTTP/1.0",
        b"HTTP/2.0",
        b"GET ",
        b"HEAD ",
        b"%2f",
        b"../",
    ),
    *(b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"0\r\n\r\n"),
    *(
        b"Connection: close\r\n",
        b"Upgrade: websocket\r\n",
        b"Expect: 100-continue\r\n",
        b"X: " + b"y" * 9_000,
    ),
)
TIMEOUT = b"x-timeout-ms"
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) [^\r\n]*\r\n")


@dataclass
class Seen:
    """How often each status was met, how many requests of each kind there were, and what was wrong."""

    statuses: Counter[int] = field(default_factory=Counter)
    found: dict[str, bytes] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def see(self, kind: str, statuses: Sequence[int], why: str, raw: bytes) -> None:
        with self._lock:
            self.statuses.update(statuses)
            self.kinds[kind] += 1
            if why:
                self.found.setdefault(why, raw)


@dataclass(frozen=True)
class Server:
    """Where a model answers, and with which key."""

    url: str
    model: str
    key: str

    def raw(self, sample: Sample, *more: bytes) -> bytes:
        """The bytes of a request."""
        head = [
            f"POST /v2/models/{self.model}{sample.action} HTTP/1.1".encode(),
            b"Host: here",
            f"Authorization: Bearer {self.key}".encode(),
            b"Content-Length: %d" % len(sample.body),
            *(b"%b: %b" % header for header in sample.headers),
            *more,
        ]
        return b"%b\r\n\r\n%b" % (b"\r\n".join(head), sample.body)

    def connect(self) -> socket.socket:
        address = urlsplit(self.url)
        return socket.create_connection((address.hostname, address.port), timeout=LIMIT_S)


@dataclass
class Caller:
    """One connection, kept open for as long as the server does."""

    server: Server
    _open: socket.socket | None = None

    def ask(self, raw: bytes) -> tuple[int, str, bytes]:
        """Status, content type and body of a reply; raises `OSError` or `HTTPException` where none came."""
        try:
            return self._ask(raw)
        except (ConnectionError, HTTPException):
            # A connection that was idle may be closed while a request is on its way; a new one is not.
            self.close()
            return self._ask(raw)

    def _ask(self, raw: bytes) -> tuple[int, str, bytes]:
        if self._open is None:
            self._open = self.server.connect()
        self._open.sendall(raw)
        reply = HTTPResponse(self._open, method="POST")
        reply.begin()
        body = reply.read()
        if reply.will_close:
            self.close()
        return reply.status, reply.getheader("content-type", ""), body

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
        self._open = None


def flood(server: Server, corpus: Sequence[Sample], right: Sample, count: int, seed: int) -> Seen:
    """Sends so many requests made of a corpus; `right` is one that is answered, always alike."""
    seen, first = Seen(), Caller(server)
    expected = _answer(first.ask(server.raw(right)))
    first.close()

    def calls(number: int) -> None:
        random, caller = Random(f"{seed} {number}"), Caller(server)
        for _ in range(number, count, CALLERS):
            draw = random.random()
            if draw < RIGHT:
                _right(seen, caller, server.raw(right), expected)
            elif draw < RIGHT + DAMAGED:
                _damaged(seen, server, random.choice(corpus), random)
            else:
                _one(seen, caller, mutated(random.choice(corpus), random.choice(corpus), random))
        caller.close()

    threads = [threading.Thread(target=calls, args=(number,)) for number in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


def _one(seen: Seen, caller: Caller, sample: Sample) -> None:
    raw = caller.server.raw(sample)
    try:
        status, kind, body = caller.ask(raw)
    except (OSError, HTTPException) as error:
        caller.close()
        seen.see("changed", [], f"no reply: {type(error).__name__}", raw)
        return
    seen.see("changed", [status], wrong_reply(status, kind, body, sample), raw)


def wrong_reply(status: int, kind: str, body: bytes, sample: Sample) -> str:
    """What is wrong with a reply; empty where nothing is."""
    if status == 200:
        return ""
    if not _may_be(status, any(name == TIMEOUT for name, _ in sample.headers)):
        return f"status {status}"
    if not kind.startswith("application/json"):
        # What is no HTTP the server itself refuses.
        return "" if status == 400 else f"{status} as {kind}"
    try:
        ((name, said),) = json.loads(body).items()
    except (ValueError, AttributeError):
        name, said = "", ""
    return wrongly_said(said, sample) if name == "error" else f"{status} in another form"


def _may_be(status: int, is_in_a_hurry: bool) -> bool:
    """Whether a request may have it; a deadline is the caller's own."""
    return status // 100 in (2, 4) or (status == 504 and is_in_a_hurry)


def _right(seen: Seen, caller: Caller, raw: bytes, expected: object) -> None:
    try:
        given = _answer(caller.ask(raw))
    except (OSError, HTTPException) as error:
        caller.close()
        given = type(error).__name__
    seen.see("right", [], "" if given == expected else f"a right request got {given}", raw)


def _answer(reply: tuple[int, str, bytes]) -> object:
    status, _, body = reply
    return json.loads(body)["outputs"] if status == 200 else status


def _damaged(seen: Seen, server: Server, sample: Sample, random: Random) -> None:
    """A request whose head, too, is damaged: some answer or none, but an end of the connection in time."""
    raw = server.raw(sample, b"Connection: close")
    for _ in range(random.choice((1, 1, 2, 4))):
        raw = changed_bytes(raw, random.choice(WORDS), random, WORDS)
    try:
        said = alone(server, raw)
    except TimeoutError:
        seen.see("damaged", [], "a damaged request hangs", raw)
        return
    statuses = statuses_of(said)
    seen.see("damaged", statuses, wrong_statuses(statuses, raw), raw)


def wrong_statuses(statuses: Sequence[int], raw: bytes) -> str:
    """What is wrong with the statuses that came of a damaged request; empty where nothing is.

    Who expects to be told to go on may be, where the body comes late (RFC 9110, 10.1.1).
    """
    asked = {100} if b"100-continue" in raw.lower() else set()
    wrong = [each for each in statuses if each not in asked and not _may_be(each, TIMEOUT in raw)]
    return f"status {wrong[0]} for a damaged request" if wrong else ""


def statuses_of(said: bytes) -> list[int]:
    return [int(status) for status in _STATUS.findall(said)]


def alone(server: Server, raw: bytes) -> bytes:
    """All that comes back on a connection of its own; raises `TimeoutError` where it is left open."""
    parts: list[bytes] = []
    # The server may have enough of it.
    with server.connect() as connection, suppress(ConnectionError):
        connection.sendall(raw)
        connection.settimeout(PATIENCE_S)
        try:
            _read(connection, parts)
        except TimeoutError:
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(LIMIT_S)
            _read(connection, parts)
    return b"".join(parts)


def _read(connection: socket.socket, parts: list[bytes]) -> None:
    while part := connection.recv(65_536):
        parts.append(part)
