"""Work on what comes next while somebody is busy with what came before; everything stays in its order."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Threads that work; what they do (Polars, Arrow) lets others go on. More hold more blocks in memory.
WORKERS = min(4, os.cpu_count() or 1)


def ahead(work: Callable[[Item], Result], items: Iterable[Item], workers: int = WORKERS) -> Iterator[Result]:
    """The results of `work` in the order of items, of which a few are worked on at a time, in threads.

    What making an item raises comes after the results of those before it.

    >>> list(ahead(abs, [-1, 2, -3]))
    [1, 2, 3]
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for future in _submitted(pool, work, items):
                pending.append(future)
                if len(pending) > workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _submitted(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[Future[Result]]:
    """Each item's work; an item that cannot be made is one whose work fails."""
    try:
        for item in items:
            yield pool.submit(work, item)
    except Exception as error:  # noqa: BLE001 - raised again in its turn
        failed: Future[Result] = Future()
        failed.set_exception(error)
        yield failed
