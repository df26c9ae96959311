"""Requests leave when they are due, whatever the server does, and what became of each is told."""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_ray.errors import ServiceError
from mlops_ray.serving import generator
from mlops_ray.serving.loadtest import Objectives, Second, p99
from mlops_ray.serving.offering import Arrivals, Offering, request
from tests.servers import free_port

ALLOWED = Objectives(p99_ms=50, error_rate=0.001)
#: A slow machine is not late.
PATIENT = Objectives(p99_ms=60_000, error_rate=0.001)
RATE = 200.0

#: What a server does before it answers a request, by its number; what it gives back is the whole answer.
Answer = Callable[[int], Awaitable[bytes | None]]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is offered after what is looked at."""
    monkeypatch.setattr("mlops_ray.serving.offering.MOST_REST_S", 0.0)


def reply(status: int = 200, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} Said", *headers, "Content-Length: 2", "", "{}"]).encode()


async def at_once(number: int) -> bytes:
    return reply()


@contextlib.contextmanager
def server(answer: Answer) -> Iterator[str]:
    """The address of a server that answers requests whose body is {}."""
    loop, count = asyncio.new_event_loop(), iter(range(10**9))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n{}"):
                said = await answer(next(count))
                if said is not None:
                    writer.write(said)
                if said is None or b"Connection: close" in said:
                    break
        writer.close()

    listening = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v2"
    finally:
        asyncio.run_coroutine_threadsafe(end(listening), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def end(listening: asyncio.Server) -> None:
    """Nobody is answered any more, and nothing is left of those who were."""
    listening.close()
    serving = asyncio.all_tasks() - {asyncio.current_task()}
    for task in serving:
        task.cancel()
    await asyncio.gather(*serving, return_exceptions=True)


def offering(url: str, allowed: Objectives = ALLOWED, arrivals: Arrivals = "even") -> Offering:
    return Offering(url, [request(url, {}, b"{}")], allowed, arrivals)


def seconds(url: str, count: int, rate: float = RATE, **how: Any) -> list[Second]:
    with offering(url, **how) as process, contextlib.closing(process.offer(rate)) as coming:
        return list(islice(coming, count))


def test_as_many_as_are_asked_for_are_offered_evenly_or_by_chance() -> None:
    with server(at_once) as url:
        even, chance = seconds(url, 3), seconds(url, 3, arrivals="poisson")
    assert all(abs(second.due - RATE) <= 1 for second in even)
    assert all(abs(second.due - RATE) < 6 * RATE**0.5 for second in chance)
    assert len({second.due for second in chance}) > 1
    assert sum(second.failed for second in even + chance) == 0
    assert all(second.took.total() == second.due == second.lag.total() for second in even + chance)


@settings(max_examples=100, derandomize=True)
@given(st.lists(st.floats(0.1, 50), min_size=1, max_size=8), st.floats(0, 12), st.floats(0.01, 30))
def test_of_a_rate_that_changes_the_next_request_is_due_when_as_much_of_it_has_come(
    rates: list[float], begin: float, requests: float
) -> None:
    def come(until: float) -> float:
        whole = sum(rate * max(0.0, min(until, second + 1) - second) for second, rate in enumerate(rates))
        return whole + rates[-1] * max(0.0, until - len(rates))

    after = generator._after(begin, requests, rates)
    assert come(begin + after) - come(begin) == pytest.approx(requests)


def test_all_that_come_while_a_server_stands_still_are_late_and_not_those_alone_that_it_holds() -> None:
    """Half a second; who waits for the answer to one before the next would count one, or a few."""
    stands = asyncio.Lock()

    async def answer(number: int) -> bytes:
        if number == int(1.2 * RATE):
            async with stands:
                await asyncio.sleep(0.5)
        async with stands:
            return reply()

    with server(answer) as url:
        found = seconds(url, 3)
    late = sum(second.late for second in found)
    assert late >= 0.8 * (0.5 - ALLOWED.p99_ms / 1000) * RATE
    assert sum(second.failed for second in found) == 0
    assert p99(second.took for second in found) >= 400


def test_refused_ones_failed_and_are_not_late() -> None:
    async def answer(number: int) -> bytes:
        return reply(429 if number % 2 else 200)

    with server(answer) as url:
        (second,) = seconds(url, 1, allowed=PATIENT)
    assert abs(second.failed - second.due / 2) <= 1
    assert second.late == 0


@pytest.mark.parametrize("said", [None, b"HTTP/1.1 200 OK\r\n\r\n{}"], ids=["nothing", "no length"])
def test_what_has_no_whole_answer_failed_and_is_late(said: bytes | None) -> None:
    async def answer(number: int) -> bytes | None:
        return said

    with server(answer) as url:
        (second,) = seconds(url, 1)
    assert second.failed == second.late == second.due > 0


def test_what_is_never_answered_is_given_up() -> None:
    async def answer(number: int) -> bytes:
        await asyncio.sleep(3600)
        return reply()

    with server(answer) as url:
        (second,) = seconds(url, 1, rate=10.0)
    assert second.failed == second.late == second.due > 0


def test_a_server_that_ends_connections_is_asked_over_new_ones() -> None:
    async def answer(number: int) -> bytes:
        return reply(200, "Connection: close")

    with server(answer) as url:
        (second,) = seconds(url, 1)
    assert second.failed == 0
    assert second.took.total() == second.due


def test_one_that_cannot_keep_its_schedule_says_so() -> None:
    """As one that stood still for a while, or has no processor."""
    with server(at_once) as url, offering(url) as process, contextlib.closing(process.offer(RATE)) as coming:
        on_time = next(coming)
        os.kill(process._process.pid, signal.SIGSTOP)
        threading.Event().wait(4 * ALLOWED.p99_ms / 1000)
        os.kill(process._process.pid, signal.SIGCONT)
        late = [next(coming), next(coming)]
    assert p99(second.lag for second in late) > max(ALLOWED.p99_ms, p99([on_time.lag]))


def test_as_much_is_got_as_callers_get_who_wait() -> None:
    async def answer(number: int) -> bytes:
        await asyncio.sleep(0.02)
        return reply()

    with server(answer) as url, offering(url) as process:
        rate = process.closed(4, 1.0)
        again = process.closed(8, 1.0)
    assert rate <= 4 / 0.02
    assert again > rate


def test_where_nobody_listens_it_says_that_none_was_answered() -> None:
    url = f"http://127.0.0.1:{free_port()}/v2"
    with offering(url) as process, pytest.raises(ServiceError, match=r"none of \d+ requests was answered"):
        process.closed(2, 0.2)


def test_one_rate_follows_the_other_and_the_process_ends_with_its_block() -> None:
    with server(at_once) as url, offering(url) as process:
        for rate in (50.0, 100.0):
            with contextlib.closing(process.offer(rate)) as coming:
                assert abs(next(coming).due - rate) <= 1
    assert process._process.poll() == 0


def test_the_next_rate_comes_when_a_single_caller_is_answered_in_time_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mlops_ray.serving.offering.MOST_REST_S", 60.0)
    inside, alone = 0, 0

    async def answer(number: int) -> bytes:
        """Slow until some have come who found nobody else."""
        nonlocal inside, alone
        alone += inside == 0
        inside += 1
        await asyncio.sleep(0.2 if alone <= 5 else 0)
        inside -= 1
        return reply()

    with server(answer) as url, offering(url) as process:
        with contextlib.closing(process.offer(100.0)) as coming:
            assert next(coming).late > 0
        assert alone > 5


def test_where_it_is_killed_what_it_offers_ends_and_it_is_said_of_the_next_thing_asked() -> None:
    with server(at_once) as url, offering(url) as process:
        with contextlib.closing(process.offer(50.0)) as coming:
            next(coming)
            os.kill(process._process.pid, signal.SIGKILL)
            assert len(list(coming)) <= 2
        with pytest.raises(ServiceError, match="the generator ended"):
            process.closed(1, 0.1)
