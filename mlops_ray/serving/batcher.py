"""Gathers the rows of requests that wait into one batch, and gives each caller its own answers.

An idle replica answers at once; while a batch is worked on, what comes in waits for its end, at most
`max_wait_s`. One row costs a model almost as much as thirty: what waits together is answered together.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import polars as pl

from mlops_ray.registry.predictor import Answer

Work = Callable[[pl.DataFrame], Awaitable[Answer]]


@dataclass(frozen=True)
class _Waiting:
    rows: pl.DataFrame
    answer: asyncio.Future[Answer]


class Batcher:
    """Batches for `work`, which answers a frame with one value a row, in order.

    All frames given to one batcher have the same columns and types. Use it from one event loop only.
    """

    def __init__(self, work: Work, *, max_rows: int, max_wait_s: float) -> None:
        self._work = work
        self._max_rows = max_rows
        self._max_wait_s = max_wait_s
        self._waiting: deque[_Waiting] = deque()
        self._batches: set[asyncio.Task[None]] = set()
        self._wake: asyncio.Handle | None = None

    async def submit(self, rows: pl.DataFrame) -> Answer:
        """The answer to these rows alone; `failures` counts rows from the first of them.

        A caller that is cancelled leaves the batch. Raises what `work` raises for these rows.
        """
        waiting = _Waiting(rows, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._wake is None:
            self._schedule()
        return await waiting.answer

    def _schedule(self) -> None:
        loop = asyncio.get_running_loop()
        # Through the loop even when idle: all requests that it reads in one turn become one batch.
        self._wake = (
            loop.call_later(self._max_wait_s, self._start) if self._batches else loop.call_soon(self._start)
        )

    def _start(self) -> None:
        self._wake = None
        batch = self._take()
        if batch:
            task = asyncio.get_running_loop().create_task(self._run(batch))
            self._batches.add(task)
            task.add_done_callback(self._finished)
        if self._waiting:
            self._schedule()

    def _take(self) -> list[_Waiting]:
        """The oldest requests up to `max_rows`, at least one; a larger request is a batch of its own."""
        batch: list[_Waiting] = []
        rows = 0
        while self._waiting and (not batch or rows + self._waiting[0].rows.height <= self._max_rows):
            waiting = self._waiting.popleft()
            if not waiting.answer.done():
                batch.append(waiting)
                rows += waiting.rows.height
        return batch

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._batches.discard(task)
        if self._waiting:
            if self._wake is not None:
                self._wake.cancel()
            self._schedule()

    async def _run(self, batch: Sequence[_Waiting]) -> None:
        try:
            answer = await self._work(_together(batch))
        except Exception as error:  # noqa: BLE001 - handed on to whoever waits
            await self._run_apart(batch, error)
            return
        ends = list(itertools.accumulate(waiting.rows.height for waiting in batch))
        for waiting, end in zip(batch, ends, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(part(answer, end - waiting.rows.height, end))

    async def _run_apart(self, batch: Sequence[_Waiting], error: Exception) -> None:
        """After a batch failed as a whole: one by one, so that a caller fails for its own rows alone."""
        if len(batch) > 1:
            for waiting in batch:
                await self._run([waiting])
        elif not batch[0].answer.done():
            batch[0].answer.set_exception(error)


def _together(batch: Sequence[_Waiting]) -> pl.DataFrame:
    return batch[0].rows if len(batch) == 1 else pl.concat([waiting.rows for waiting in batch])


def part(answer: Answer, start: int, end: int) -> Answer:
    """The rows [start, end) of an answer, as if they had been asked alone."""
    if end - start == len(answer.values):
        return answer
    failures = answer.failures
    if failures.height:
        mine = failures["row"].is_between(start, end, closed="left")
        failures = failures.filter(mine).with_columns(pl.col("row") - start)
    return Answer(answer.values[start:end], failures, answer.features.slice(start, end - start))
