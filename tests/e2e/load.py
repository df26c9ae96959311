"""Callers of all kinds, in threads: what they sent, what they got, and whether it was theirs."""

import http.client
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mlops_ray.client import Client
from mlops_ray.errors import MlopsError

HOST = "127.0.0.1"
TIME = "2016-11-02T10:00:00Z"
#: What a caller who was not answered waits before he asks for something else.
PAUSE_S = 0.05


class Answer(NamedTuple):
    """When an answer was there (seconds since 1970), and the id of its request."""

    at: float
    id: str


@dataclass
class Seen:
    """What callers met: statuses by kind of request, and sentences about what must not be.

    Of steady callers also each answer, and how many requests had one because they were sent again.
    """

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    answered: list[Answer] = field(default_factory=list)
    mended: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def status(self, kind: str, status: int) -> None:
        with self._lock:
            self.statuses[kind, status] += 1

    def answer(self, id: str, *, is_mended: bool = False) -> None:
        with self._lock:
            self.answered.append(Answer(time.time(), id))
            self.mended += is_mended

    def found(self, sentence: str) -> None:
        with self._lock:
            self.wrong.append(sentence)


@dataclass
class Caller:
    """One connection, kept open and opened again, to a model that answers `factor * load`."""

    port: int
    key: str
    model: str
    factor: float
    seen: Seen
    random: random.Random
    _connection: http.client.HTTPConnection | None = None

    def ask(self, kind: str, rows: list[float], **headers: str) -> str | None:
        """One request; an answer must be that of its own rows. Returns the id of one that was answered."""
        body = {"dataframe_records": [{"site": "a", "time": TIME, "load": load} for load in rows]}
        status, said = self.post(json.dumps(body).encode(), **headers)
        self.seen.status(kind, status)
        if status != 200:
            return None
        expected = [self.factor * load for load in rows]
        given = said["predictions"]
        if len(given) != len(expected) or any(
            abs(a - b) > 0.01 for a, b in zip(given, expected, strict=True)
        ):
            self.seen.found(f"{self.model}: {rows[:3]} got {given[:3]}")
        return str(said["id"])

    def post(self, body: bytes, **headers: str) -> tuple[int, Any]:
        """Status and document; 0 where the connection broke."""
        sent = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"} | headers
        try:
            if self._connection is None:
                self._connection = http.client.HTTPConnection(HOST, self.port, timeout=30)
            self._connection.request("POST", f"/v2/models/{self.model}/invocations", body, sent)
            reply = self._connection.getresponse()
            return reply.status, json.loads(reply.read() or b"null")
        except (OSError, http.client.HTTPException, ValueError):
            self.close()
            return 0, None

    def get(self, path: str) -> int:
        """The status of another address, asked over the same connection; raises what `http.client` does."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection(HOST, self.port, timeout=30)
        self._connection.request("GET", path)
        reply = self._connection.getresponse()
        reply.read()
        return reply.status

    def is_well(self) -> bool:
        """Whether the front end at the other end of the connection says so, and keeps it.

        One that is replaced by its next self closes it with its answer; what comes then over another
        connection may reach another front end, which nobody has asked.
        """
        try:
            says_so = self.get("/-/healthz") == 200
            return says_so and self._connection is not None and self._connection.sock is not None
        except (OSError, http.client.HTTPException):
            return False

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    # What callers do.

    def valid(self) -> None:
        self.ask("valid", [self.random.uniform(1, 900) for _ in range(self.random.choice((1, 1, 1, 7, 100)))])

    def invalid(self) -> None:
        kind = self.random.choice(("bad value", "bad row", "no json", "no key"))
        if kind == "bad value":
            self.ask(kind, [1.0, -5.0])
        elif kind == "bad row":
            self.seen.status(kind, self.post(b'{"dataframe_records": [{"site": 1}]}')[0])
        elif kind == "no json":
            self.seen.status(kind, self.post(b"[[[[{")[0])
        else:
            self.seen.status(kind, self.post(b"{}", Authorization="Bearer nobody")[0])

    def huge(self) -> None:
        rows = self.random.choice((10_000, 10_001))
        self.ask("huge" if rows == 10_000 else "too many", [float(n % 900 + 1) for n in range(rows)])

    def hurried(self) -> None:
        self.ask("hurried", [5.0] * 100, **{"X-Timeout-Ms": str(self.random.choice((1, 5, 1000)))})

    def meddling(self) -> None:
        """With the headers by which Serve would be told what to do."""
        self.ask(
            "meddling",
            [7.0],
            **{
                "x-request-timeout-seconds": "0.000001",
                "x-request-disconnect-disabled": "?1",
                "serve_multiplexed_model_id": "other",
                "x-serve-session-id": "1",
            },
        )

    def slow(self) -> None:
        """Half a request, a while, and the rest; or never the rest."""
        body = json.dumps({"dataframe_records": [{"site": "a", "time": TIME, "load": 2.0}]}).encode()
        head = self._head(len(body), "Connection: close\r\n")
        with socket.create_connection((HOST, self.port), timeout=30) as raw:
            raw.sendall(head + body[:10])
            if self.random.random() < 0.5:
                return
            threading.Event().wait(0.2)
            raw.sendall(body[10:])
            status = raw.makefile("rb").readline().split()
            self.seen.status("slow", int(status[1]) if len(status) > 1 else 0)

    def cancelled(self) -> None:
        """A request whose caller does not wait for the answer."""
        body = json.dumps({"dataframe_records": [{"site": "a", "time": TIME, "load": 2.0}] * 1000}).encode()
        head = self._head(len(body))
        with socket.create_connection((HOST, self.port), timeout=30) as raw:
            raw.sendall(head + body)

    def _head(self, length: int, more: str = "") -> bytes:
        return (
            f"POST /v2/models/{self.model}/invocations HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {self.key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {length}\r\n{more}\r\n"
        ).encode()


#: What callers do, and how often.
KINDS: list[tuple[Callable[[Caller], None], int]] = [
    (Caller.valid, 60),
    (Caller.invalid, 10),
    (Caller.hurried, 10),
    (Caller.meddling, 5),
    (Caller.cancelled, 5),
    (Caller.slow, 3),
    (Caller.huge, 1),
]


def mixed(port: int, key: str, models: dict[str, float], seconds: float, callers: int, seed: int) -> Seen:
    """All kinds of requests to all models for so long; `models` are their factors."""
    seen, end = Seen(), time.monotonic() + seconds

    def run(number: int) -> None:
        chance = random.Random(seed + number)
        model = sorted(models)[number % len(models)]
        caller = Caller(port, key, model, models[model], seen, chance)
        kinds, weights = zip(*KINDS, strict=True)
        try:
            while time.monotonic() < end:
                chance.choices(kinds, weights)[0](caller)
        except Exception as error:  # noqa: BLE001 - told by the test
            seen.found(f"a caller ended: {error!r}")
        finally:
            caller.close()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


@dataclass
class Patient(Client):
    """Our client, which says how often it has asked."""

    asked: int = 0

    def _once(self, *question: Any) -> Any:
        self.asked += 1
        return super()._once(*question)


def steady(
    url: str,
    key: str,
    model: str,
    factor: float,
    stop: threading.Event,
    callers: int,
    *,
    balanced: bool = False,
    timeout_s: float = 30.0,
    tries: int = 8,
    seen: Seen | None = None,
) -> Callable[[], Seen]:
    """Callers with our client, and as many without retries, until `stop`; what comes back waits for them.

    Those without retries are `balanced` where they ask as what is in front of nodes does: only a front end
    that just has said that it is well. `timeout_s` and `tries` are the client's. What they meet is in `seen`
    at once.
    """
    seen = seen or Seen()
    port = int(url.rpartition(":")[2])

    def patient(number: int) -> None:
        client, load = Patient(url, model, key, timeout_s=timeout_s, tries=tries), float(number + 1)
        while not stop.is_set():
            before = client.asked
            try:
                answers = client.predict([{"site": "a", "time": TIME, "load": load}])
            except MlopsError as error:
                seen.found(f"the client gave up: {error}")
                continue
            seen.status("client", 200)
            seen.answer(answers.id, is_mended=client.asked > before + 1)
            if abs(answers.predictions[0] - factor * load) > 0.01:
                seen.found(f"{load} got {answers.predictions[0]}")
        client.close()

    def plain(number: int) -> None:
        caller = Caller(port, key, model, factor, seen, random.Random(number))
        while not stop.is_set():
            if balanced and not caller.is_well():
                caller.close()
            elif (id := caller.ask("plain", [float(number + 1)])) is not None:
                seen.answer(id)
            else:
                stop.wait(PAUSE_S)
        caller.close()

    threads = [threading.Thread(target=kind, args=(n,)) for kind in (patient, plain) for n in range(callers)]
    for thread in threads:
        thread.start()

    def joined() -> Seen:
        for thread in threads:
            thread.join()
        return seen

    return joined
