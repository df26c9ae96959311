"""Offers requests at a rate and tells, second by second, what became of them: the program of `offering.py`.

Requests leave when they are due, over connections that are kept open; where none is free another is opened.
What it is told, and what it tells, are lines of JSON on its standard input and output: requests hold a key,
which no list of processes shows. It imports little, so that it starts at once, and ends with who started it.

    told                                                         tells
    {"host", "port", "requests": [base64], "late_s", "timeout_s"}
    {"connections", "seconds"}                                   {"answered", "failed", "seconds"}
    {"rate", "seed" (null: evenly)}                              {"due", "late", "failed", "took", "lag"} …
    {"rate": [one a second], "seed"}                             the same; the last one goes on
    stop                                                         {"ended": true}
"""

import asyncio
import base64
import gc
import json
import random
import re
import signal
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

#: Beyond so many connections requests wait here, which counts as waiting: 2,000 a second have enough of them
#: while each takes a quarter of a second.
MOST_CONNECTIONS = 512
#: How often it looks for requests that have waited too long, and whether it is to stop.
LOOK_S = 0.05
#: What it tells of latencies is in tenths of a millisecond.
TICKS_PER_S = 10_000
#: By how much a sum of gaps may miss a whole second: 20 of 0.05 s are 0.9999999999999999.
ROUNDING_S = 1e-9
#: What it may be told in one line: requests of many rows.
MOST_LINE = 2**28
#: Who could not be asked at all is not asked again at once.
PAUSE_S = 0.05
HEAD_END, CLOSES = b"\r\n\r\n", b"\r\nconnection: close"
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)")


@dataclass
class Tally:
    """What became of the requests that were due in one second."""

    due: int = 0
    late: int = 0
    failed: int = 0
    took: Counter[int] = field(default_factory=Counter)
    lag: Counter[int] = field(default_factory=Counter)
    #: How many of them have no answer yet.
    open: int = 0

    def told(self) -> dict[str, Any]:
        return {"due": self.due, "late": self.late, "failed": self.failed, "took": self.took, "lag": self.lag}


@dataclass(slots=True, eq=False)
class Asked:
    """A request on its way, counted in `tally`; `done` is called when all is over."""

    due: float
    tally: Tally
    done: Callable[[bool], None] | None = None
    is_over: bool = False


class Connection(asyncio.Protocol):
    """A connection that is kept open, with one request at a time."""

    def __init__(self, generator: "Generator", asked: Asked) -> None:
        self.asked: Asked | None = asked
        self._generator, self._buffer = generator, bytearray()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._generator.open.add(self)
        self._send()

    def ask(self, asked: Asked) -> None:
        self.asked = asked
        self._send()

    def _send(self) -> None:
        self._transport.write(next(self._generator.requests))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        reply = read(self._buffer)
        if reply is None:
            return
        status, closes = reply
        asked, self.asked = self.asked, None
        if closes or asked is None:
            self._transport.abort()
        if asked is not None:
            self._generator.answered(None if closes else self, asked, status)

    def abort(self) -> None:
        self._transport.abort()

    def connection_lost(self, _: Exception | None) -> None:
        asked, self.asked = self.asked, None
        self._generator.lost(self, asked)


def read(buffer: bytearray) -> tuple[int, bool] | None:
    """The status of a reply, and whether the connection ends, taken off the buffer; `None` of half a reply.

    Of one whose length is not said the status is 0, and the connection is of no more use.

    >>> buffer = bytearray(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{")
    >>> read(buffer)
    >>> buffer += b"}HTTP"
    >>> read(buffer), buffer
    ((200, False), bytearray(b'HTTP'))
    """
    end = buffer.find(HEAD_END)
    if end < 0:
        return None
    head = bytes(buffer[:end]).lower()
    length = LENGTH.search(head)
    if length is None:
        return 0, True
    whole = end + len(HEAD_END) + int(length[1])
    if len(buffer) < whole:
        return None
    del buffer[:whole]
    return int(head[9:12]), CLOSES in head


class Generator:
    """Offers requests, in turn, to one address; use it within one event loop."""

    def __init__(self, host: str, port: int, requests: list[str], late_s: float, timeout_s: float) -> None:
        self.requests = cycle([base64.b64decode(request) for request in requests])
        self._address, self._late_s, self._timeout_s = (host, port), late_s, timeout_s
        self._loop = asyncio.get_running_loop()
        self.open: set[Connection] = set()
        self._opening: dict[asyncio.Task[None], Asked] = {}
        self._idle: list[Connection] = []
        self._waiting: deque[Asked] = deque()
        self._is_stopped = False

    def stop(self) -> None:
        self._is_stopped = True

    async def offer(self, gap: Callable[[float], float], tell: Callable[[dict[str, Any]], None]) -> None:
        """Offers a request after each gap (s) until it is stopped; returns when none is open any more.

        A second is told when it is over, and all its requests are.
        """
        self._is_stopped, told = False, 0
        tallies: defaultdict[int, Tally] = defaultdict(Tally)
        # Counted from the beginning: added to the clock, the gaps of a second would be one more or less by
        # its rounding.
        begin, at = self._loop.time(), 0.0
        while not self._is_stopped:
            now = self._loop.time()
            while (due := begin + at) <= now:
                tally = tallies[int(at + ROUNDING_S)]
                tally.lag[round((now - due) * TICKS_PER_S)] += 1
                self._ask(Asked(due, tally))
                at += gap(at)
            self._give_up(now)
            while told < int(now - begin) and not tallies[told].open:
                tell(tallies.pop(told).told())
                told += 1
            await asyncio.sleep(min(max(due - now, 0.0), LOOK_S))
        while any(tally.open for tally in tallies.values()):
            self._give_up(self._loop.time())
            await asyncio.sleep(LOOK_S)

    async def closed(self, connections: int, seconds: float) -> dict[str, Any]:
        """What so many callers get who each wait for an answer before they ask again."""
        tally, begin = Tally(), self._loop.time()
        calling = asyncio.gather(*(self._call(tally, begin + seconds) for _ in range(connections)))
        while not calling.done():
            self._give_up(self._loop.time())
            await asyncio.wait([calling], timeout=LOOK_S)
        took_s = self._loop.time() - begin
        return {"answered": tally.due - tally.failed, "failed": tally.failed, "seconds": took_s}

    async def _call(self, tally: Tally, until: float) -> None:
        while (now := self._loop.time()) < until:
            answer: asyncio.Future[bool] = self._loop.create_future()
            self._ask(Asked(now, tally, answer.set_result))
            if not await answer:
                await asyncio.sleep(PAUSE_S)

    def _ask(self, asked: Asked) -> None:
        asked.tally.due += 1
        asked.tally.open += 1
        if self._idle:
            # The one that was used last: of many that are open few are kept busy.
            self._idle.pop().ask(asked)
        elif len(self.open) + len(self._opening) < MOST_CONNECTIONS:
            self._connect(asked)
        else:
            self._waiting.append(asked)

    def _connect(self, asked: Asked) -> None:
        task = self._loop.create_task(self._connected(asked))
        self._opening[task] = asked
        task.add_done_callback(self._opening.pop)

    async def _connected(self, asked: Asked) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._loop.create_connection(lambda: Connection(self, asked), *self._address)
        except (OSError, TimeoutError):
            self._end(asked, 0)

    def answered(self, connection: Connection | None, asked: Asked, status: int) -> None:
        """Counts an answer; the connection, if it is of use, takes the next request."""
        self._end(asked, status)
        if connection is None:
            return
        if self._waiting:
            connection.ask(self._waiting.popleft())
        else:
            self._idle.append(connection)

    def lost(self, connection: Connection, asked: Asked | None) -> None:
        """What was asked there has no answer; what waits for a connection gets another one."""
        self.open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if asked is not None:
            self._end(asked, 0)
        if self._waiting:
            self._connect(self._waiting.popleft())

    def _end(self, asked: Asked, status: int) -> None:
        """Counts, once, what became of a request; status 0 where it has no answer."""
        if asked.is_over:
            return
        asked.is_over = True
        tally, took_s = asked.tally, self._loop.time() - asked.due
        tally.open -= 1
        if status == 200:
            tally.took[round(took_s * TICKS_PER_S)] += 1
        else:
            tally.failed += 1
        tally.late += took_s > self._late_s or status == 0
        if asked.done is not None:
            asked.done(status == 200)

    def _give_up(self, now: float) -> None:
        """Ends what has waited too long."""
        long_ago = now - self._timeout_s
        for connection in [c for c in self.open if c.asked is not None and c.asked.due < long_ago]:
            connection.abort()
        while self._waiting and self._waiting[0].due < long_ago:
            self._end(self._waiting.popleft(), 0)


def gaps(rate: float | list[float], seed: int | None) -> Callable[[float], float]:
    """The seconds from a request to the next: as independent callers come, or evenly. `rate` may change.

    >>> gap = gaps([1.0, 4.0], None)
    >>> gap(0.0), gap(0.5), gap(1.0)
    (1.0, 0.625, 0.25)
    """
    chance = random.Random(seed)  # noqa: S311 - no secret

    def one() -> float:
        return 1.0 if seed is None else chance.expovariate(1.0)

    if not isinstance(rate, list):
        return lambda _: one() / rate
    return lambda at: _after(at, one(), rate)


def _after(at: float, requests: float, rates: list[float]) -> float:
    """The seconds from `at` in which so many requests are due."""
    begin = at
    while (second := int(at)) < len(rates) - 1:
        left = second + 1 - at
        if requests <= left * rates[second]:
            break
        requests -= left * rates[second]
        at = second + 1.0
    return at + requests / rates[min(second, len(rates) - 1)] - begin


def _say(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


async def main() -> None:
    """Does what it is told until nobody tells it any more."""
    loop, lines = asyncio.get_running_loop(), asyncio.StreamReader(limit=MOST_LINE)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    generator = Generator(**json.loads(await lines.readline()))
    # What is there now stays, and nothing that comes is part of a cycle for long: no pause for garbage.
    gc.freeze()
    gc.disable()
    while line := await lines.readline():
        asked = json.loads(line)
        if "rate" not in asked:
            _say(await generator.closed(**asked))
            continue
        offering = loop.create_task(generator.offer(gaps(**asked), _say))
        await lines.readline()
        generator.stop()
        await offering
        gc.collect()
        _say({"ended": True})


if __name__ == "__main__":
    # Who is interrupted ends it by the end of its input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(main())
