"""Work that takes so long that others are to be answered meanwhile: one piece at a time, in a thread.

What waits for its turn is held in memory, so no more of it may wait than is said; and nobody waits for longer
than he has time, behind whatever the turn before is busy with.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mlops_ray.errors import CallerGoneError, DeadlineError, OverloadedError

T = TypeVar("T")


@dataclass(eq=False)
class Bulkhead:
    """Room for so much that waits, of whatever `size` is said in; `what` is the name that an error gives it.

    Use it from one event loop only.
    """

    what: str
    most: int
    clock: Callable[[], float] = time.monotonic
    waiting: int = 0
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _at_work: "asyncio.Task[Any] | None" = None

    async def run(
        self,
        work: Callable[[], T],
        *,
        until: float | None,
        is_gone: Callable[[], bool],
        size: int = 1,
    ) -> T:
        """What `work` makes, in a thread, when its turn has come.

        Raises `OverloadedError` where too much waits already (one piece may, however large), `DeadlineError`
        where the clock is past `until` before it is made, `CallerGoneError` where its caller `is_gone` when
        its turn comes; and what `work` raises.
        """
        if self.waiting and self.waiting + size > self.most:
            raise OverloadedError(f"too many {self.what} wait already; ask again later")
        self.waiting += size
        # A task of its own: what has begun is not two at a time because who asked for the first has gone.
        task = asyncio.get_running_loop().create_task(self._in_turn(work, is_gone))
        try:
            await asyncio.wait([task], timeout=None if until is None else max(0.0, until - self.clock()))
            if not task.done():
                raise DeadlineError(f"the time was over before these {self.what} had been worked on")
            return task.result()
        finally:
            if task is self._at_work:
                task.add_done_callback(lambda ended: self._left(ended, size))
            else:
                task.cancel()
                self._left(task, size)
            # An error that it ended with would else hold itself, with all that is asked, by way of this name.
            del task

    async def _in_turn(self, work: Callable[[], T], is_gone: Callable[[], bool]) -> T:
        async with self._turn:
            if is_gone():
                raise CallerGoneError("the caller has gone")
            self._at_work = asyncio.current_task()
            try:
                return await asyncio.to_thread(work)
            finally:
                self._at_work = None

    def _left(self, task: "asyncio.Task[Any]", size: int) -> None:
        self.waiting -= size
        if task.done() and not task.cancelled():
            task.exception()  # Where nobody waits for it any more, Python would report it.
