"""A service of replicas in simulated time: requests that come, queue, are answered late or refused, and cost.

Requests go to the replica that has the fewest, as HAProxy sends them (`leastconn`); a replica works on one
batch at a time, which takes `fixed_s + each_s * n`, and what comes meanwhile is the next one; who would wait
too long is refused at once, as in admission.py. A replica costs from its order to its end. Every second, as
Serve's controller does ten times, a policy is asked with what the replicas have told.
"""

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mlops_ray.serving.admission import LET_IN, PATIENCE, SPREAD
from mlops_ray.serving.costs import Line

Floats = npt.NDArray[np.float64]
TICK_S = 1.0
#: Serve takes a replica out at once, which then finishes what it has.
DRAIN_S = 2.0
#: One in so many batches tells the line of batches' costs: learning takes longer than simulating one.
LEARNS_FROM = 8


@dataclass(frozen=True)
class Shape:
    """What one replica takes for a batch, to start, and when an answer is late, seconds.

    `noise` draws by what factors so many batches take longer or shorter.
    """

    fixed_s: float
    each_s: float
    target_s: float
    start_s: float
    max_batch: int = 256
    patience: float = PATIENCE
    noise: Callable[[np.random.Generator, int], Floats] = lambda random, n: random.gamma(25.0, 1 / 25, n)


@dataclass(eq=False)
class Replica:
    """One replica: who waits, who is worked on, and what it has told."""

    ready_at: float
    waiting: list[float] = field(default_factory=list)
    batch: list[float] = field(default_factory=list)
    #: How many are there.
    n: int = 0
    ended_at: float = math.inf
    arrived: int = 0
    refused: int = 0
    late: int = 0
    batches: int = 0
    rows: int = 0
    busy_s: float = 0.0
    line: Line = field(default_factory=Line)


class Second(NamedTuple):
    """What happened in one second: requests that came, were late, were refused; replicas that were paid."""

    arrived: int
    late: int
    refused: int
    paid: int


#: Asked every second with the time and the replicas that run and that were ordered: how many there are to be.
Asked = Callable[[float, Sequence[Replica], int], int]


def arrivals(random: np.random.Generator, rates: Floats) -> Floats:
    """When requests come, in order, at so many a second in each second: a Poisson process."""
    counts = random.poisson(rates)
    at = np.repeat(np.arange(len(rates)), counts) + random.random(counts.sum())
    at.sort()
    return at


class Service:
    """Replicas that answer, from `replicas` that are there at the beginning on."""

    def __init__(self, shape: Shape, random: np.random.Generator, replicas: int) -> None:
        self._shape = shape
        self._noise = _drawn(shape, random)
        #: Requests that one who comes may find there, so that admission lets it in.
        patient_s = shape.patience * shape.target_s / SPREAD
        self._most = max(LET_IN, (patient_s - shape.fixed_s) / shape.each_s)
        self._ready = [Replica(0.0) for _ in range(replicas)]
        self._starting: list[Replica] = []
        self._leaving: list[Replica] = []
        self._ends: list[tuple[float, int, float, Replica]] = []
        self._pushed = 0
        #: Requests that came when there was no replica, which Serve keeps.
        self._held: list[float] = []
        self._late = self._refused = 0
        #: What each took, where it is asked for.
        self.took_s: list[float] | None = None

    def run(self, came: Floats, seconds: int, ask: Asked) -> list[Second]:
        """What happened in each second of so many, of requests that came at these times, in order."""
        at, edges = came.tolist(), np.searchsorted(came, np.arange(seconds + 1)).tolist()
        return [self._second(second, at[edges[second] : edges[second + 1]], ask) for second in range(seconds)]

    def _second(self, second: int, came: list[float], ask: Asked) -> Second:
        self._late = self._refused = 0
        self._begin(second)
        for at in came:
            self._take(at)
        now = second + TICK_S
        self._finish(now)
        paid = len(self._ready) + len(self._starting) + len(self._leaving)
        self._scale(now, ask(now, self._ready, len(self._ready) + len(self._starting)))
        return Second(len(came), self._late, self._refused, paid)

    def _begin(self, now: float) -> None:
        """Those that have started are there, and take what was kept for them."""
        started = [replica for replica in self._starting if replica.ready_at <= now]
        self._ready += started
        self._starting = [replica for replica in self._starting if replica.ready_at > now]
        self._leaving = [replica for replica in self._leaving if replica.ended_at > now]
        if self._ready and self._held:
            held, self._held = self._held, []
            for at in held:
                self._give(min(self._ready, key=_n), at, now)

    def _take(self, at: float) -> None:
        ends = self._ends
        if ends and ends[0][0] <= at:
            self._finish(at)
        if not self._ready:
            self._held.append(at)
            return
        least = self._ready[0]
        for replica in self._ready:
            if replica.n < least.n:
                least = replica
        least.arrived += 1
        if least.n > self._most:
            least.refused += 1
            self._refused += 1
        else:
            self._give(least, at, at)

    def _give(self, replica: Replica, at: float, now: float) -> None:
        replica.n += 1
        replica.waiting.append(at)
        if replica.n == len(replica.waiting):
            self._work(replica, now)

    def _work(self, replica: Replica, now: float) -> None:
        """Begins the next batch."""
        most, shape = self._shape.max_batch, self._shape
        replica.batch, replica.waiting = replica.waiting[:most], replica.waiting[most:]
        took_s = (shape.fixed_s + shape.each_s * len(replica.batch)) * next(self._noise)
        self._pushed += 1
        heapq.heappush(self._ends, (now + took_s, self._pushed, took_s, replica))

    def _finish(self, now: float) -> None:
        """What has ended until now."""
        target_s, ends = self._shape.target_s, self._ends
        while ends and ends[0][0] <= now:
            end, _, took_s, replica = heapq.heappop(ends)
            n, late = len(replica.batch), 0
            if end - replica.batch[0] > target_s:
                late = sum(end - at > target_s for at in replica.batch)
            if self.took_s is not None:
                self.took_s += [end - at for at in replica.batch]
            self._late += late
            replica.late += late
            replica.batches += 1
            replica.rows += n
            replica.busy_s += took_s
            replica.n -= n
            if replica.batches % LEARNS_FROM == 0:
                replica.line.see(n, took_s)
            if replica.waiting:
                self._work(replica, end)

    def _scale(self, now: float, wanted: int) -> None:
        there = len(self._ready) + len(self._starting)
        for _ in range(there, wanted):
            self._starting.append(Replica(now + self._shape.start_s))
        for _ in range(wanted, there):
            if self._starting:
                self._starting.pop()
                continue
            gone = min(self._ready, key=_n)
            self._ready.remove(gone)
            gone.ended_at = now + DRAIN_S
            self._leaving.append(gone)


def _n(replica: Replica) -> int:
    return replica.n


def _drawn(shape: Shape, random: np.random.Generator) -> Iterator[float]:
    while True:
        yield from shape.noise(random, 4096).tolist()
