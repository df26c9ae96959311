"""What waits together is answered together, and each caller gets its own."""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_ray.data.rows import Rows, together
from mlops_ray.errors import CallerGoneError, DeadlineError, StorageError
from mlops_ray.registry.predictor import Answer
from mlops_ray.serving.batcher import SLOW_S, Batcher, Part, Work
from mlops_ray.serving.costs import Line
from tests.conftest import require_package
from tests.serving.standin import REQUEST, StandIn

MAX_ROWS = 8


def rows(*loads: float | None) -> Rows:
    count = len(loads)
    return Rows(REQUEST, [["a"] * count, [0] * count, list(loads), [1] * count, [None] * count])


@dataclass
class Clock:
    """Time that goes on when told."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Slow:
    """Work that runs in a thread until it is let go."""

    model: StandIn = field(default_factory=StandIn)
    begun: threading.Event = field(default_factory=threading.Event)
    open: threading.Event = field(default_factory=threading.Event)

    def __call__(self, batch: Sequence[Rows]) -> Answer:
        self.begun.set()
        assert self.open.wait(60)
        return self.model.answer(together(batch))


def batcher(work: Work, clock: Clock | None = None, cost: Line | None = None) -> Batcher:
    return Batcher(work, MAX_ROWS, 60.0, clock=clock or Clock(), cost=cost or Line())


def answered(model: StandIn) -> Work:
    return lambda batch: model.answer(together(batch))


def slow(work: Slow) -> Batcher:
    """A batcher that knows its work to be slow."""
    return batcher(work, cost=Line(fixed=2 * SLOW_S))


async def begun(work: Slow) -> None:
    assert await asyncio.to_thread(work.begun.wait, 60)


async def turns(count: int = 5) -> None:
    """Lets the loop run what is ready."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("aside", [0, 2])
def test_a_panic_of_a_library_is_told_to_the_one_whose_rows_it_panics_at(aside: int) -> None:
    def panics(batch: Sequence[Rows]) -> Answer:
        table = together(batch)
        if (table.frame["load"] == 77).any():
            raise pl.exceptions.PanicException("index out of bounds")
        return StandIn().answer(table)

    async def run() -> list[Part | BaseException]:
        batches = batcher(panics)
        batches.aside = aside
        both = (asyncio.ensure_future(batches.submit(rows(load))) for load in (1, 77))
        async with asyncio.timeout(60):
            return await asyncio.gather(*both, return_exceptions=True)

    right, wrong = asyncio.run(run())
    assert isinstance(right, Part)
    assert right.values.tolist() == [2]
    assert isinstance(wrong, pl.exceptions.PanicException)


@given(st.lists(st.lists(st.floats(0, 1000), min_size=1, max_size=12), min_size=1, max_size=20))
def test_no_caller_gets_another_callers_row(requests: list[list[float]]) -> None:
    async def run() -> list[Part]:
        batches = batcher(answered(StandIn()))
        return await asyncio.gather(*(batches.submit(rows(*loads)) for loads in requests))

    for loads, answer in zip(requests, asyncio.run(run()), strict=True):
        assert answer.values.tolist() == [2 * load for load in loads]
        assert answer.features["load"].to_list() == loads


def test_what_comes_in_one_turn_of_the_loop_becomes_one_batch() -> None:
    async def run() -> list[int]:
        model = StandIn()
        batches = batcher(answered(model))
        await asyncio.gather(*(batches.submit(rows(float(i))) for i in range(5)))
        return model.batches

    assert asyncio.run(run()) == [5]


def test_an_idle_batcher_answers_at_once_where_waiting_does_not_pay() -> None:
    async def run() -> None:
        await asyncio.wait_for(
            batcher(answered(StandIn()), cost=Line(fixed=0.01)).submit(rows(1.0)), timeout=10
        )

    asyncio.run(run())


def test_it_waits_for_the_next_request_while_that_saves_more_than_it_costs() -> None:
    """Of 10 s a batch, with requests a second apart, (n + 1) · 1 s is less until the ninth; eight fill it."""

    async def run() -> list[int]:
        clock, model = Clock(), StandIn()
        batches = batcher(answered(model), clock, Line(fixed=10.0))
        batches._came, batches._gap_s = 0.0, 1.0
        tasks = []
        for load in range(MAX_ROWS):
            assert model.batches == []
            clock.now += 1.0
            tasks.append(asyncio.ensure_future(batches.submit(rows(float(load)))))
            await turns()
        await asyncio.gather(*tasks)
        return model.batches

    assert asyncio.run(run()) == [MAX_ROWS]


@pytest.mark.parametrize(("gap_s", "sizes"), [(0.0001, [5]), (0.1, [1] * 5)])
def test_where_requests_come_fast_those_at_the_door_are_let_in_before_a_batch_begins(
    gap_s: float, sizes: list[int]
) -> None:
    async def run() -> list[int]:
        clock, model = Clock(), StandIn()
        # A row costs as much as a batch, so that waiting does not pay.
        batches = batcher(answered(model), clock, Line(fixed=0.001, each=0.001))
        tasks = []
        for load in range(5):  # one in each turn of the loop, after what it waits for
            clock.now, batches._came, batches._gap_s = 0.0, 0.0, gap_s
            tasks.append(asyncio.ensure_future(batches.submit(rows(float(load)))))
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        return model.batches

    assert asyncio.run(run()) == sizes


@pytest.mark.parametrize(
    ("fixed_s", "gap_s", "max_wait_s", "left_s"),
    [(0.01, 0.001, 60.0, None), (100.0, 20.0, 0.0, None), (100.0, 20.0, 60.0, 100.0)],
    ids=["twice what is expected", "what it may at most", "what a deadline leaves"],
)
def test_it_waits_for_another_request_no_longer_than(
    fixed_s: float, gap_s: float, max_wait_s: float, left_s: float | None
) -> None:
    async def run() -> list[int]:
        clock, model = Clock(gap_s), StandIn()
        batches = batcher(answered(model), clock, Line(fixed=fixed_s))
        batches._came, batches._gap_s, batches.max_wait_s = 0.0, gap_s, max_wait_s
        until = None if left_s is None else clock.now + left_s
        await asyncio.wait_for(batches.submit(rows(1.0), until=until), timeout=10)
        return model.batches

    assert asyncio.run(run()) == [1]


def test_a_batch_holds_whole_requests_up_to_its_most_rows() -> None:
    async def run() -> list[int]:
        model = StandIn()
        batches = batcher(answered(model))
        sizes = [3, 4, 2, 20, 1]
        await asyncio.gather(*(batches.submit(rows(*[1.0] * size)) for size in sizes))
        return model.batches

    assert asyncio.run(run()) == [7, 2, 20, 1]


def test_a_bad_row_fails_its_caller_alone_and_is_numbered_as_the_caller_sees_it() -> None:
    async def run() -> list[Part]:
        batches = batcher(answered(StandIn()))
        asked = (rows(1.0), rows(2.0, -5.0), rows(3.0))
        return await asyncio.gather(*map(batches.submit, asked))

    good, bad, last = asyncio.run(run())
    assert good.failures.height == last.failures.height == 0
    assert bad.failures.select("row", "column", "rule").rows() == [(1, "load", "min")]
    assert (good.values[0], bad.values[0], last.values[0]) == (2.0, 4.0, 6.0)


@pytest.mark.parametrize("cost", [0.0, 2 * SLOW_S])
def test_a_defect_that_one_request_hits_fails_that_request_alone(cost: float) -> None:
    async def run() -> list[object]:
        batches = batcher(answered(StandIn()), cost=Line(fixed=cost))
        asked = (batches.submit(rows(load)) for load in (1.0, 666.0, 3.0))
        return await asyncio.gather(*asked, return_exceptions=True)

    first, second, third = asyncio.run(run())
    assert isinstance(second, ZeroDivisionError)
    assert first.values.tolist() == [2.0]  # type: ignore[attr-defined]
    assert third.values.tolist() == [6.0]  # type: ignore[attr-defined]


def test_what_waits_while_a_slow_batch_is_worked_on_becomes_one_batch_and_the_loop_goes_on() -> None:
    async def run() -> list[int]:
        work = Slow()
        batches = slow(work)
        first = asyncio.ensure_future(batches.submit(rows(1.0)))
        await begun(work)
        later = [asyncio.ensure_future(batches.submit(rows(float(i)))) for i in range(5)]
        await turns()
        work.open.set()
        await asyncio.gather(first, *later)
        return work.model.batches

    assert asyncio.run(run()) == [1, 5]


def test_cancelled_requests_and_those_whose_callers_have_gone_leave_the_batch() -> None:
    async def run() -> list[int]:
        work = Slow()
        batches = slow(work)
        first = asyncio.ensure_future(batches.submit(rows(1.0)))
        await begun(work)
        cancelled = asyncio.ensure_future(batches.submit(rows(2.0)))
        gone = asyncio.ensure_future(batches.submit(rows(2.5), is_gone=lambda: True))
        stays = asyncio.ensure_future(batches.submit(rows(3.0)))
        await turns()
        cancelled.cancel()
        work.open.set()
        parts = await asyncio.gather(first, stays)
        assert [part.values[0] for part in parts] == [2.0, 6.0]
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        with pytest.raises(CallerGoneError):
            await gone
        return work.model.batches

    assert asyncio.run(run()) == [1, 1]


def test_a_request_cancelled_while_its_batch_is_worked_on_harms_no_other() -> None:
    async def run() -> float:
        work = Slow()
        batches = slow(work)
        gone, stays = (asyncio.ensure_future(batches.submit(rows(load))) for load in (2.0, 3.0))
        await begun(work)
        gone.cancel()
        work.open.set()
        return float((await stays).values[0])

    assert asyncio.run(run()) == 6.0


def test_who_waited_past_the_deadline_is_told_and_costs_no_work() -> None:
    async def run() -> list[int]:
        clock, model = Clock(5.0), StandIn()
        batches = batcher(answered(model), clock)
        late, other = batches.submit(rows(1.0), until=4.0), batches.submit(rows(2.0), until=6.0)
        first, second = await asyncio.gather(late, other, return_exceptions=True)
        assert isinstance(first, DeadlineError)
        assert second.values.tolist() == [4.0]  # type: ignore[union-attr]
        return model.batches

    assert asyncio.run(run()) == [1]


def test_a_deadline_is_kept_while_a_slow_batch_is_worked_on() -> None:
    async def run() -> None:
        work = Slow()
        batches = slow(work)
        inside = asyncio.ensure_future(batches.submit(rows(1.0), until=0.0001))
        await begun(work)
        behind = asyncio.ensure_future(batches.submit(rows(2.0), until=0.0002))
        for waiting in (inside, behind):
            with pytest.raises(DeadlineError):
                await asyncio.wait_for(waiting, timeout=10)
        work.open.set()

    asyncio.run(run())


def test_it_learns_what_a_batch_takes() -> None:
    async def run() -> Line:
        clock = Clock()

        def work(batch: Sequence[Rows]) -> Answer:
            clock.now += 0.001 + 0.0001 * sum(each.height for each in batch)
            return answered(StandIn())(batch)

        batches = batcher(work, clock)
        for size in (1, 2, 3, 1, 2, 3):
            await batches.submit(rows(*[1.0] * size))
        return batches.cost

    cost = asyncio.run(run())
    assert (cost.fixed, cost.each) == pytest.approx((0.001, 0.0001))


def test_an_error_of_a_store_is_everybodys_and_is_met_once() -> None:
    calls: list[int] = []

    def away(batch: Sequence[Rows]) -> Answer:
        calls.append(len(batch))
        raise StorageError("the store does not answer")

    async def run() -> list[object]:
        batches = batcher(away)
        return await asyncio.gather(*(batches.submit(rows(1.0)) for _ in range(8)), return_exceptions=True)

    assert [type(error) for error in asyncio.run(run())] == [StorageError] * 8
    assert calls == [8]


@pytest.mark.parametrize("raised", [ZeroDivisionError, pl.exceptions.PanicException])
def test_what_fails_in_counting_fails_no_answer_and_is_not_tried_again(raised: type[BaseException]) -> None:
    counted: list[int] = []

    def broken(answer: Answer) -> None:
        counted.append(len(answer.values))
        raise raised

    async def run() -> list[Part]:
        batches = batcher(answered(StandIn()))
        batches.done = broken
        return await asyncio.gather(*(batches.submit(rows(load)) for load in (1.0, 2.0)))

    assert [part.values[0] for part in asyncio.run(run())] == [2.0, 4.0]
    assert counted == [2]


def test_a_failed_batch_teaches_what_it_took() -> None:
    clock = Clock()

    def slow_to_fail(batch: Sequence[Rows]) -> Answer:
        clock.now += 1.0
        raise StorageError("not in time")

    async def run() -> Line:
        batches = batcher(slow_to_fail, clock)
        with pytest.raises(StorageError):
            await batches.submit(rows(1.0))
        return batches.cost

    assert asyncio.run(run())(1) == 1.0


def test_of_an_answered_request_nothing_waits_for_its_deadline() -> None:
    async def run() -> None:
        work = Slow()
        batches = slow(work)
        first = asyncio.ensure_future(batches.submit(rows(1.0), until=1e6))
        await begun(work)
        second = asyncio.ensure_future(batches.submit(rows(2.0), until=1e6))
        await turns()
        (waiting,) = batches._waiting
        work.open.set()
        await asyncio.gather(first, second)
        await turns()
        assert waiting.timer is not None
        assert waiting.timer.cancelled()

    asyncio.run(run())


def test_a_full_batch_does_not_sit_out_its_time_under_the_loop_that_replicas_run_in() -> None:
    require_package("uvloop")
    import uvloop

    async def run() -> None:
        batches = batcher(answered(StandIn()), Clock(), Line(fixed=100.0))
        batches.max_wait_s, batches._came, batches._gap_s = 3600.0, 0.0, 1.0
        asked = (batches.submit(rows(float(load))) for load in range(MAX_ROWS))
        # The first waits for the next; the last fills the batch.
        first = asyncio.ensure_future(next(asked))
        await turns()
        await asyncio.wait_for(asyncio.gather(first, *asked), timeout=60)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
