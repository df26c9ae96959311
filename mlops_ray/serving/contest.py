"""Champion and challenger on the same service: who answers which request, and what became of both sides.

In a canary the challenger answers the keys of its share; where it fails the champion answers after all, so
that no caller is worse off. In shadow it is asked besides: copies wait in a short queue, are answered in a
thread for a tenth of its time, and are dropped where they are too many.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mlops_ray.data.counts import Counts
from mlops_ray.data.error_log import DEFECTS
from mlops_ray.data.rows import Rows, Values
from mlops_ray.errors import RequestError
from mlops_ray.monitoring.deltas import PREDICTION
from mlops_ray.monitoring.sides import ERRORS, OUTPUT, SLOW, Side
from mlops_ray.serving.asgi import shown
from mlops_ray.serving.batcher import Part
from mlops_ray.serving.routing import Split

if TYPE_CHECKING:
    from mlops_ray.serving.versions import Live

#: A version is to blame for what broke in it, or in what it reads; for rows that it refuses, and for what
#: it cannot do, as to tell why, only where the other does better.
BROKEN = frozenset({500, 503})
UNABLE, REFUSED, LATE = 400, 422, 504
#: Requests of the champion by which its p99 is known, and the rows that they have: while they come, the
#: challenger is warming up. Of larger requests latencies are not compared: a caller may send what it likes.
FIRST, USUAL = 200, 0.95
#: Beyond so many standard deviations an answer is simply far away: few requests decide nothing.
FAR = 5.0
#: Copies that may wait, their bytes, and how many are answered together.
MOST_COPIES, MOST_BYTES, TOGETHER = 64, 4 * 2**20, 16
#: How many times as long as it took to answer copies nothing is copied, and the least such pause.
REST, LEAST_REST_S = 9.0, 0.02

logger = logging.getLogger(__name__)


@dataclass
class Pace:
    """How long the champion takes: its p99 in microseconds, once `FIRST` of its requests were seen.

    Of requests of at most `rows` rows, as nearly all of those were.
    """

    slow_us: int | None = None
    rows: int = 0
    _first: list[tuple[int, int]] = field(default_factory=list)

    def see(self, latency_us: int, rows: int) -> None:
        self._first.append((latency_us, rows))
        if len(self._first) >= FIRST:
            self.rows = sorted(rows for _, rows in self._first)[math.ceil(USUAL * FIRST) - 1]
            usual = sorted(latency for latency, rows in self._first if rows <= self.rows)
            self.slow_us = usual[math.ceil(0.99 * len(usual)) - 1]
            self._first = []

    def is_slow(self, latency_us: int, rows: int) -> bool | None:
        """Whether a request took longer than that; `None` where it is not compared."""
        return None if self.slow_us is None or rows > self.rows else latency_us > self.slow_us


class Tried(NamedTuple):
    """What a version made of a request: the status, how long it took, its answers, where it has any.

    `is_late`: it took longer than any caller is made to wait; `is_worse`: the champion answered in its place.
    """

    status: int
    latency_us: int
    answers: Values | None
    is_late: bool = False
    is_worse: bool = False

    @property
    def rows(self) -> int:
        return 0 if self.answers is None else len(self.answers)


class Copy(NamedTuple):
    """A request that the champion has answered with this status, and with these answers where it did.

    `rows` reads it by a version's own schema, or raises what is wrong with it; `size` is that of its body;
    `bucket` that of its routing key.
    """

    bucket: int
    id: str
    rows: Callable[["Live"], Rows]
    status: int
    answers: Values | None
    size: int


class Contest:
    """One turn of a release in one replica; `sides` are where champion and challenger are counted now."""

    def __init__(
        self,
        turn: int,
        split: Split,
        champion: "Live",
        challenger: "Live",
        sides: Callable[[], tuple[Side, Side]],
        pace: Pace,
    ) -> None:
        self.turn, self._split, self.pace = turn, split, pace
        self.champion, self.challenger = champion, challenger
        self._sides = sides
        self._scale = scale(champion.served.reference)
        self._copies: deque[Copy] = deque()
        self._copied_bytes = 0
        self._copying: asyncio.Task[None] | None = None

    def picks(self, key: str) -> "Live":
        """The version that answers a key."""
        return self.challenger if self._split.tries(key) else self.champion

    def see(self, live: "Live", bucket: int, tried: Tried) -> None:
        """Counts what became of a request, its key in this bucket, that this version was to answer."""
        is_champion = live is self.champion
        if is_champion and tried.status == 200 and self.pace.slow_us is None:
            self.pace.see(tried.latency_us, tried.rows)
        # In shadow pairs are compared, and nothing else.
        is_blamed = tried.status in BROKEN or tried.is_late or (tried.is_worse and not is_champion)
        if not self._split.weight or not (tried.status == 200 or is_blamed):
            return
        mean = self._mean(tried.answers)
        figures = {ERRORS: float(is_blamed or mean is None)}
        if mean is not None:
            figures[OUTPUT] = mean
            is_slow = self.pace.is_slow(tried.latency_us, tried.rows)
            if is_slow is not None:
                figures[SLOW] = float(is_slow)
        self._sides()[not is_champion].add(bucket, figures, time.monotonic())

    def _mean(self, answers: Values | None) -> float | None:
        """The mean answer of a request in standard deviations from those of the champion's training.

        `None` where there is none that is a number.
        """
        if answers is None or not len(answers):
            return None
        mean = (float(answers.mean()) - self._scale[0]) / self._scale[1]
        return min(max(mean, -FAR), FAR) if math.isfinite(mean) else None

    # ------------------------------------------------------------ shadow

    def copies(self, key: str) -> bool:
        """Whether the challenger is to be asked besides."""
        return self._split.is_shadowed(key) and len(self._copies) < MOST_COPIES

    def copy(self, copy: Copy) -> None:
        """Has the challenger asked, some time; never waits, and drops what is too much."""
        if copy.status not in (200, REFUSED, *BROKEN) or self._copied_bytes + copy.size > MOST_BYTES:
            return
        self._copied_bytes += copy.size
        self._copies.append(copy)
        if self._copying is None:
            self._copying = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        try:
            while self._copies:
                batch = [self._copies.popleft() for _ in range(min(TOGETHER, len(self._copies)))]
                self._copied_bytes -= sum(copy.size for copy in batch)
                began = time.monotonic()
                found = await asyncio.to_thread(self._asked, batch)
                latency_us = round((time.monotonic() - began) * 1e6)
                for copy, part in found:
                    self._compare(copy, part, latency_us)
                await asyncio.sleep(max(REST * (time.monotonic() - began), LEAST_REST_S))
        except DEFECTS as error:
            logger.error("copies of requests were not compared", exc_info=shown(error))
        finally:
            self._copying = None

    def _asked(self, batch: Sequence[Copy]) -> list[tuple[Copy, Part | None]]:
        """What the challenger answers to copies, in another thread: together; where that fails, to each."""
        asked: list[tuple[Copy, Rows]] = []
        found: list[tuple[Copy, Part | None]] = []
        for copy in batch:
            try:
                asked.append((copy, copy.rows(self.challenger)))
            except RequestError:
                found.append((copy, None))
        try:
            return found + self._answered(asked)
        except DEFECTS:  # which of them it was is looked for
            return found + [pair for one in asked for pair in self._alone(one)]

    def _alone(self, one: tuple[Copy, Rows]) -> list[tuple[Copy, Part | None]]:
        try:
            return self._answered([one])
        except DEFECTS as error:
            logger.error(
                "request %s: the challenger does not answer its copy", one[0].id, exc_info=shown(error)
            )
            return [(one[0], None)]

    def _answered(self, asked: Sequence[tuple[Copy, Rows]]) -> list[tuple[Copy, Part | None]]:
        if not asked:
            return []
        answer = self.challenger.answer([rows for _, rows in asked])
        ends = accumulate(rows.height for _, rows in asked)
        return [
            (copy, Part(answer, stop - rows.height, stop))
            for (copy, rows), stop in zip(asked, ends, strict=True)
        ]

    def _compare(self, copy: Copy, part: Part | None, latency_us: int) -> None:
        """Counts the pair of answers to one request: the champion's is where the challenger's moves from."""
        ours, theirs = self._mean(copy.answers), self._mean(None if part is None else part.values)
        if ours is None and copy.status == REFUSED:
            # The row was bad, whatever the challenger says of it.
            return
        champion, challenger = {ERRORS: float(ours is None)}, {ERRORS: float(theirs is None)}
        if ours is not None and theirs is not None:
            champion[OUTPUT], challenger[OUTPUT] = 0.0, theirs - ours
        for side, figures in zip(self._sides(), (champion, challenger), strict=True):
            side.add(copy.bucket, figures)
        if part is not None and theirs is not None:
            self.challenger.keep_copy(part, copy.id, latency_us, copy.size, (self.turn, copy.bucket))


def scale(reference: Counts) -> tuple[float, float]:
    """Mean and standard deviation of the answers that a version was trained on, from their quantiles."""
    for spec, cells in zip(reference.specs, reference.cells, strict=True):
        if spec.name == PREDICTION and spec.kind == "numeric" and spec.edges:
            edges = np.array(spec.edges)
            middles = np.concatenate([edges[:1], (edges[1:] + edges[:-1]) / 2, edges[-1:]])
            shares = cells[:-1] / max(int(cells[:-1].sum()), 1)
            mean = float(shares @ middles)
            spread = math.sqrt(max(float(shares @ (middles - mean) ** 2), 0.0))
            return mean, spread or abs(mean) or 1.0
    return 0.0, 1.0
