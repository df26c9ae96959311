"""Gathers the rows of requests that wait into one batch, and gives each caller its own answers.

One batch is worked on at a time, and what comes meanwhile is the next: one row costs a model almost as much
as thirty. Beyond that an idle batcher waits only where it pays. With t(n) = a + b·n seconds for n rows, which
it learns, and a newcomer expected after g seconds, beginning now ends n requests g seconds sooner and the
newcomer a later: waiting pays while a > (n + 1)·g + b·n.
"""

import asyncio
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import polars as pl

from mlops_ray.data.error_log import DEFECTS
from mlops_ray.data.rows import Rows
from mlops_ray.errors import CallerGoneError, DeadlineError, StorageError
from mlops_ray.registry.models import Values
from mlops_ray.registry.predictor import Answer
from mlops_ray.serving.asgi import shown
from mlops_ray.serving.costs import Line

logger = logging.getLogger(__name__)

Work = Callable[[Sequence[Rows]], Answer]
#: A batch that takes longer is worked on in a thread, so that health checks and refusals go on; a shorter one
#: is not worth what a thread costs (a quarter of the requests a second, measured).
SLOW_S = 0.02
#: How much the latest gap between two requests counts for the next; a longer one than a second says no more.
LATEST, MOST_GAP_S = 0.1, 1.0


class Part(NamedTuple):
    """The rows [start, stop) of a batch's answer."""

    batch: Answer
    start: int
    stop: int

    @property
    def values(self) -> Values:
        """The answers, float64 (rows)."""
        return self.batch.values[self.start : self.stop]

    @property
    def failures(self) -> pl.DataFrame:
        """The failed checks of these rows, counted from the first of them."""
        failures = self.batch.failures
        if not failures.height or len(self.batch.values) == self.stop - self.start:
            return failures
        mine = failures["row"].is_between(self.start, self.stop, closed="left")
        return failures.filter(mine).with_columns(pl.col("row") - self.start)

    @property
    def features(self) -> pl.DataFrame:
        return self.batch.features.slice(self.start, self.stop - self.start)


@dataclass(slots=True, eq=False)
class _Waiting:
    """A request's rows, when it came, when its caller will have gone, and whether it has."""

    rows: Rows
    answer: asyncio.Future[Part]
    came: float
    until: float | None
    is_gone: Callable[[], bool]
    timer: asyncio.Handle | None = None

    @property
    def height(self) -> int:
        return self.rows.height

    def watch(self, now: float) -> None:
        """Tells the caller when the time is over, while a batch is worked on elsewhere."""
        if self.until is not None and self.timer is None and not self.answer.done():
            loop = asyncio.get_running_loop()
            self.timer = loop.call_later(max(self.until - now, 0.0), self.is_late, self.until)
            self.answer.add_done_callback(self._forget)

    def _forget(self, _: object) -> None:
        if self.timer is not None:
            self.timer.cancel()

    def is_late(self, now: float) -> bool:
        """Whether nobody waits for the answer any more; who waited too long is told."""
        if not self.answer.done():
            if self.until is not None and now >= self.until:
                self.answer.set_exception(DeadlineError("there was no answer before the deadline"))
            elif self.is_gone():
                self.answer.set_exception(CallerGoneError("the caller has gone"))
        return self.answer.done()


def _stays() -> bool:
    return False


@dataclass(eq=False)
class Batcher:
    """Batches for `work`, which answers the rows of several requests with one value a row, in order.

    All rows given to one batcher are of one schema. Use it from one event loop only; `work` is called in
    other threads too, one call at a time. `done` is told of each batch's answer, in the loop.
    """

    work: Work
    max_rows: int
    max_wait_s: float
    done: Callable[[Answer], None] = lambda _: None
    clock: Callable[[], float] = time.monotonic
    cost: Line = field(default_factory=Line)
    #: So many batches are worked on in a thread, whatever they may take.
    aside: int = 0
    #: How many batches there were, and rows in them.
    batches: int = 0
    rows: int = 0
    _waiting: deque[_Waiting] = field(default_factory=deque)
    _height: int = 0
    #: How many waited in the loop's last turn.
    _seen: int = 0
    _gap_s: float = MOST_GAP_S
    _came: float = float("-inf")
    _timer: asyncio.Handle | None = None
    #: Whether the timer is one that waits for the next request, rather than for the loop's next turn.
    _is_waiting: bool = False
    _slow: asyncio.Task[None] | None = None

    async def submit(
        self, rows: Rows, *, until: float | None = None, is_gone: Callable[[], bool] = _stays
    ) -> Part:
        """The answer to these rows.

        A caller that is cancelled, or `is_gone`, leaves the batch. Raises `DeadlineError` where the clock is
        past `until` before there is an answer, and what `work` raises for these rows.
        """
        # No name here may lead to the future: an error that it raises would hold itself, with all that is
        # asked, until Python looks for such garbage, which it seldom does.
        return await self._put(rows, until, is_gone)

    def _put(self, rows: Rows, until: float | None, is_gone: Callable[[], bool]) -> asyncio.Future[Part]:
        """Has these rows wait; what becomes their answer."""
        now = self.clock()
        waiting = _Waiting(rows, asyncio.get_running_loop().create_future(), now, until, is_gone)
        self._waiting.append(waiting)
        self._height += waiting.height
        self._gap_s += LATEST * (min(now - self._came, MOST_GAP_S) - self._gap_s)
        self._came = now
        if self._slow is not None:
            waiting.watch(now)
        elif self._timer is None or self._is_waiting:
            # Through the loop even when idle: all requests that it reads in one turn become one batch.
            self._again(0.0)
        return waiting.answer

    def _again(self, after_s: float) -> None:
        """Looks again at what waits: in the loop's next turn, or after so long."""
        if self._timer is not None:
            self._timer.cancel()
        loop, self._is_waiting = asyncio.get_running_loop(), after_s > 0
        self._timer = loop.call_later(after_s, self._start, True) if after_s else loop.call_soon(self._start)

    def _start(self, waited: bool = False) -> None:
        self._timer = None
        if self._slow is not None or not self._waiting:
            return
        if not waited and (wait_s := self._worth_waiting_s()):
            self._again(wait_s)
            return
        if not waited and self._others_come():
            self._again(0.0)
            return
        self._seen = 0
        batch = self._take()
        if batch and (self.aside or self.cost(sum(waiting.height for waiting in batch)) > SLOW_S):
            self.aside = max(0, self.aside - 1)
            self._slow = asyncio.get_running_loop().create_task(self._run_in_thread(batch))
            return
        if batch:
            self._run(batch)
        if self._waiting:
            self._again(0.0)

    def _others_come(self) -> bool:
        """Whether the loop is still taking in requests that are there: a batch would keep them out.

        So in an hour of many requests: else looking once more costs more than it brings.
        """
        before, self._seen = self._seen, len(self._waiting)
        return (
            before < self._seen
            and self._gap_s < self.cost.fixed
            and self._height < self.max_rows
            and self.clock() - self._waiting[0].came < self.max_wait_s
        )

    def _worth_waiting_s(self) -> float:
        """How long to wait for one more request; 0 where it does not pay, or somebody's time is over."""
        n, cost, now = len(self._waiting), self.cost, self.clock()
        if self._height >= self.max_rows or cost.fixed <= (n + 1) * self._gap_s + cost.each * n:
            return 0.0
        ends = [waiting.until for waiting in self._waiting if waiting.until is not None]
        left_s = min(ends, default=math.inf) - now - cost(self._height)
        # Twice the gap: about six in seven come within it.
        return max(0.0, min(2 * self._gap_s, self.max_wait_s - (now - self._waiting[0].came), left_s))

    def _take(self) -> list[_Waiting]:
        """The oldest requests up to `max_rows`, at least one; a larger request is a batch of its own."""
        batch: list[_Waiting] = []
        rows, now = 0, self.clock()
        while self._waiting and (not batch or rows + self._waiting[0].height <= self.max_rows):
            waiting = self._waiting.popleft()
            self._height -= waiting.height
            if not waiting.is_late(now):
                batch.append(waiting)
                rows += waiting.height
        return batch

    def _run(self, batch: Sequence[_Waiting]) -> None:
        """Works on a batch here and now."""
        if not self._settle(batch, self._tried(batch)):
            for waiting in batch:
                self._settle([waiting], self._tried([waiting]))

    async def _run_in_thread(self, batch: Sequence[_Waiting]) -> None:
        now = self.clock()
        for waiting in (*batch, *self._waiting):
            waiting.watch(now)
        try:
            if not self._settle(batch, await asyncio.to_thread(self._tried, batch)):
                for waiting in batch:
                    self._settle([waiting], await asyncio.to_thread(self._tried, [waiting]))
        finally:
            self._slow = None
            if self._waiting:
                self._again(0.0)

    def _tried(self, batch: Sequence[_Waiting]) -> Answer | BaseException:
        """What came of a batch, in this thread or another."""
        began = self.clock()
        try:
            return self.work([waiting.rows for waiting in batch])
        except DEFECTS as error:  # handed on to whoever waits
            return error
        finally:
            rows = sum(waiting.height for waiting in batch)
            self.cost.see(rows, self.clock() - began)
            self.batches += 1
            self.rows += rows

    def _settle(self, batch: Sequence[_Waiting], found: Answer | BaseException) -> bool:
        """Tells who waits what came of it; `False` where each must be tried alone first."""
        if not isinstance(found, BaseException):
            self._hand_out(batch, found)
        elif len(batch) == 1 or isinstance(found, StorageError):
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(found)
        else:
            return False
        return True

    def _hand_out(self, batch: Sequence[_Waiting], answer: Answer) -> None:
        ends = itertools.accumulate(waiting.height for waiting in batch)
        for waiting, stop in zip(batch, ends, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(Part(answer, stop - waiting.height, stop))
        try:
            self.done(answer)
        except DEFECTS as error:  # what is made of answers afterwards is no matter of who waits for them
            logger.error("a batch was answered and not counted", exc_info=shown(error))
