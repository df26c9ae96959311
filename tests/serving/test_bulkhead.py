"""What takes long is worked on one at a time, few wait for it, and nobody longer than he has time."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from functools import partial

import pytest

from mlops_ray.errors import CallerGoneError, DeadlineError, OverloadedError
from mlops_ray.serving.bulkhead import Bulkhead
from tests.serving.calls import run


class Held:
    """Work that begins, and goes on until it is let go."""

    def __init__(self) -> None:
        self.begun, self.end = threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.end.wait(60)
        return "held"


def stays() -> bool:
    return False


async def going(bulkhead: Bulkhead, work: Held) -> "asyncio.Task[str]":
    """The task of work that has begun."""
    task = asyncio.ensure_future(bulkhead.run(work, until=None, is_gone=stays))
    assert await asyncio.to_thread(work.begun.wait, 60)
    return task


def asked(bulkhead: Bulkhead, work: Callable[[], str], **more: object) -> "asyncio.Task[str]":
    return asyncio.ensure_future(bulkhead.run(work, **({"until": None, "is_gone": stays} | more)))  # type: ignore[arg-type]


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_each_gets_its_own_in_the_order_in_which_they_came() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        return number

    async def everyone() -> list[int]:
        bulkhead = Bulkhead("pieces", 100)
        pieces = (bulkhead.run(partial(work, number), until=None, is_gone=stays) for number in range(50))
        return await asyncio.gather(*pieces)

    assert run(everyone()) == begun == [*range(50)]


def test_no_more_waits_than_there_is_room_for_and_one_piece_may_be_larger() -> None:
    async def everyone() -> None:
        bulkhead, first = Bulkhead("pieces", 10), Held()
        large = asyncio.ensure_future(bulkhead.run(first, until=None, is_gone=stays, size=11))
        await turns()
        with pytest.raises(OverloadedError, match="too many pieces wait already"):
            await bulkhead.run(lambda: "", until=None, is_gone=stays)
        first.end.set()
        assert await large == "held"
        assert bulkhead.waiting == 0

    run(everyone())


def test_a_deadline_ends_the_wait_and_what_had_not_begun_never_does() -> None:
    async def everyone() -> None:
        bulkhead, first = Bulkhead("pieces", 10, clock=lambda: 0.0), Held()
        before, begun = await going(bulkhead, first), threading.Event()
        with pytest.raises(DeadlineError, match="these pieces"):
            await bulkhead.run(begun.set, until=0.001, is_gone=stays)
        assert bulkhead.waiting == 1
        first.end.set()
        await before
        assert await bulkhead.run(lambda: "next", until=None, is_gone=stays) == "next"
        assert not begun.is_set()

    run(everyone())


def test_what_has_begun_keeps_its_turn_though_nobody_waits_for_it() -> None:
    async def everyone() -> None:
        bulkhead, first = Bulkhead("pieces", 10), Held()
        gone = await going(bulkhead, first)
        gone.cancel()
        await turns()
        assert gone.cancelled()
        after = asked(bulkhead, lambda: "after")
        await turns()
        assert not after.done()
        assert bulkhead.waiting == 2
        first.end.set()
        assert await after == "after"
        assert bulkhead.waiting == 0

    run(everyone())


def test_who_has_gone_when_the_turn_comes_is_not_worked_for() -> None:
    async def everyone() -> None:
        bulkhead, first, is_gone = Bulkhead("pieces", 10), Held(), False
        before, begun = await going(bulkhead, first), threading.Event()
        leaving = asked(bulkhead, begun.set, is_gone=lambda: is_gone)  # type: ignore[arg-type]
        await turns()
        is_gone = True
        first.end.set()
        await before
        with pytest.raises(CallerGoneError):
            await leaving
        assert not begun.is_set()

    run(everyone())


@pytest.mark.parametrize("fails", [True, False])
def test_what_is_over_is_held_by_nobody_whatever_came_of_it(fails: bool) -> None:
    class Piece:
        def __call__(self) -> int:
            if fails:
                raise ValueError("no")
            return 1

    async def one() -> "weakref.ref[Piece]":
        bulkhead, piece = Bulkhead("pieces", 10), Piece()
        try:
            await bulkhead.run(piece, until=None, is_gone=stays)
        except ValueError:
            assert fails
        known = weakref.ref(piece)
        del piece
        await turns()
        return known

    gc.disable()
    try:
        assert run(one())() is None
    finally:
        gc.enable()
