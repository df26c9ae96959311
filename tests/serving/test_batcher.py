"""What waits together is answered together, and each caller gets its own."""

import asyncio

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_ray.registry.predictor import Answer
from mlops_ray.schema import DTYPES
from mlops_ray.serving.batcher import Batcher
from tests.serving.standin import REQUEST, StandIn

MAX_ROWS = 8


def rows(*loads: float | None) -> pl.DataFrame:
    hour = pl.datetime(2016, 1, 1, 0, time_zone="UTC")
    return pl.DataFrame({"load": loads}, schema={"load": pl.Float64}).select(
        pl.lit("a").alias("site"),
        hour.alias("time"),
        "load",
        pl.lit(1).cast(pl.Int64).alias("n"),
        pl.lit(None, DTYPES["bool"]).alias("open"),
    )


class Gate:
    """Work that waits until it is let go, so that a test decides what a batch meets."""

    def __init__(self) -> None:
        self.model = StandIn()
        self.open = asyncio.Event()

    async def __call__(self, frame: pl.DataFrame) -> Answer:
        answer = self.model.predict(frame)
        await self.open.wait()
        return answer


async def at_once(frame: pl.DataFrame) -> Answer:
    return StandIn().predict(frame)


def batcher(work: object, wait_s: float = 60.0) -> Batcher:
    return Batcher(work, max_rows=MAX_ROWS, max_wait_s=wait_s)  # type: ignore[arg-type]


async def turns(count: int = 5) -> None:
    """Lets the loop run what is ready."""
    for _ in range(count):
        await asyncio.sleep(0)


def test_the_columns_are_those_of_the_stand_in() -> None:
    assert rows(1.0).columns == list(REQUEST.names)


@given(st.lists(st.lists(st.floats(0, 1000), min_size=1, max_size=12), min_size=1, max_size=20))
def test_no_caller_gets_another_callers_row(requests: list[list[float]]) -> None:
    async def run() -> list[Answer]:
        batches = batcher(at_once)
        return await asyncio.gather(*(batches.submit(rows(*loads)) for loads in requests))

    for loads, answer in zip(requests, asyncio.run(run()), strict=True):
        assert answer.values.tolist() == [2 * load for load in loads]
        assert answer.features["load"].to_list() == loads


def test_an_idle_batcher_answers_at_once() -> None:
    async def run() -> None:
        await asyncio.wait_for(batcher(at_once, wait_s=3600).submit(rows(1.0)), timeout=10)

    asyncio.run(run())


def test_what_waits_while_a_batch_is_worked_on_becomes_one_batch() -> None:
    async def run() -> list[int]:
        gate = Gate()
        batches = batcher(gate)
        first = asyncio.ensure_future(batches.submit(rows(1.0)))
        await turns()
        later = [asyncio.ensure_future(batches.submit(rows(float(i)))) for i in range(5)]
        await turns()
        gate.open.set()
        await asyncio.gather(first, *later)
        return gate.model.batches

    assert asyncio.run(run()) == [1, 5]


def test_waiting_ends_after_its_longest_time_even_if_the_batch_before_has_not() -> None:
    async def run() -> list[int]:
        gate = Gate()
        batches = batcher(gate, wait_s=0.0)
        tasks = [asyncio.ensure_future(batches.submit(rows(1.0)))]
        await turns()
        tasks.append(asyncio.ensure_future(batches.submit(rows(2.0))))
        while len(gate.model.batches) < 2:
            await turns()
        gate.open.set()
        await asyncio.gather(*tasks)
        return gate.model.batches

    assert asyncio.run(asyncio.wait_for(run(), 10)) == [1, 1]


def test_a_batch_holds_whole_requests_up_to_its_most_rows() -> None:
    async def run() -> list[int]:
        gate = Gate()
        gate.open.set()
        batches = batcher(gate)
        sizes = [3, 4, 2, 20, 1]
        await asyncio.gather(*(batches.submit(rows(*[1.0] * size)) for size in sizes))
        return gate.model.batches

    assert asyncio.run(run()) == [7, 2, 20, 1]


def test_a_bad_row_fails_its_caller_alone_and_is_numbered_as_the_caller_sees_it() -> None:
    async def run() -> list[Answer]:
        batches = batcher(at_once)
        return await asyncio.gather(
            batches.submit(rows(1.0)), batches.submit(rows(2.0, -5.0)), batches.submit(rows(3.0))
        )

    good, bad, last = asyncio.run(run())
    assert good.failures.height == last.failures.height == 0
    assert bad.failures.select("row", "column", "rule").rows() == [(1, "load", "min")]
    assert (good.values[0], bad.values[0], last.values[0]) == (2.0, 4.0, 6.0)


def test_a_defect_that_one_request_hits_fails_that_request_alone() -> None:
    async def run() -> list[Answer | BaseException]:
        batches = batcher(at_once)
        loads = (1.0, 666.0, 3.0)
        return await asyncio.gather(*(batches.submit(rows(load)) for load in loads), return_exceptions=True)

    first, second, third = asyncio.run(run())
    assert isinstance(second, ZeroDivisionError)
    assert isinstance(first, Answer)
    assert isinstance(third, Answer)
    assert third.values.tolist() == [6.0]


def test_cancelled_requests_leave_the_batch() -> None:
    async def run() -> list[int]:
        gate = Gate()
        batches = batcher(gate)
        first = asyncio.ensure_future(batches.submit(rows(1.0)))
        await turns()
        gone, stays = (asyncio.ensure_future(batches.submit(rows(load))) for load in (2.0, 3.0))
        await turns()
        gone.cancel()
        gate.open.set()
        answers = await asyncio.gather(first, stays)
        assert [answer.values[0] for answer in answers] == [2.0, 6.0]
        with pytest.raises(asyncio.CancelledError):
            await gone
        return gate.model.batches

    assert asyncio.run(run()) == [1, 1]


def test_a_request_cancelled_while_its_batch_is_worked_on_harms_no_other() -> None:
    async def run() -> float:
        gate = Gate()
        batches = batcher(gate)
        gone, stays = (asyncio.ensure_future(batches.submit(rows(load))) for load in (2.0, 3.0))
        await turns()
        gone.cancel()
        gate.open.set()
        return float((await stays).values[0])

    assert asyncio.run(run()) == 6.0
