"""Who is let in: only who can be answered in time, and nobody more often than their key allows."""

import asyncio
import time
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_ray.errors import OverloadedError
from mlops_ray.serving.admission import Admission, Lag, Rates
from mlops_ray.serving.costs import Line, Wait


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def busy(clock: Clock, *, each_s: float) -> Admission:
    """An admission that has learned that each request there takes a newcomer so long more."""
    admission = Admission(1.0, clock)
    for ahead in range(4_000):
        admission.learn(ahead % 40, ahead % 40, clock.now - each_s * (1 + ahead % 40))
    return admission


def test_a_newcomer_is_refused_when_those_before_it_take_too_long() -> None:
    clock = Clock()
    admission = busy(clock, each_s=0.01)
    for _ in range(20):
        admission.take(None, 1)
    admission.take(clock.now + 0.5, 1).leave()
    with pytest.raises(
        OverloadedError, match=r"20 requests wait already: an answer may take 4\d\d ms"
    ) as refused:
        admission.take(clock.now + 0.1, 1)
    assert refused.value.retry_after_s == 1


def test_who_says_no_deadline_waits_for_as_long_as_the_service_says() -> None:
    admission = busy(Clock(), each_s=0.01)
    for _ in range(200):
        admission.take(1e9, 1)
    with pytest.raises(OverloadedError) as refused:
        admission.take(None, 1)
    assert refused.value.retry_after_s == 5


def test_the_first_two_are_let_in_whatever_was_learned() -> None:
    admission = busy(Clock(), each_s=10.0)
    admission.take(0.001, 1)
    admission.take(0.001, 1)
    with pytest.raises(OverloadedError):
        admission.take(0.001, 1)


def test_after_a_stall_it_soon_lets_others_in_again() -> None:
    """Though only two at a time are there to tell that it is over."""
    clock = Clock()
    admission = busy(clock, each_s=0.001)
    for ahead in range(64):
        admission.learn(ahead % 16, ahead % 16, clock.now - 20.0)
    for tries in range(2_000):
        admission.learn(tries % 2, tries % 2, clock.now - 0.002 * (1 + tries % 2))
    for _ in range(10):
        admission.take(None, 1)
    admission.take(1.0, 1)


def test_what_has_left_counts_no_more() -> None:
    admission = busy(Clock(), each_s=0.01)
    places = [admission.take(1e9, 3) for _ in range(100)]
    for place in places:
        place.tells = True
        place.leave()
        place.leave()
    assert (admission.requests, admission.size) == (0, 0)


def test_it_is_at_work_for_as_long_as_somebody_is_there() -> None:
    clock = Clock()
    admission = Admission(1.0, clock)
    clock.now = 5.0
    first = admission.take(None, 1)
    clock.now = 6.0
    second = admission.take(None, 1)
    clock.now = 8.0
    first.leave()
    first.leave()
    assert admission.busy_s == 3.0
    clock.now = 9.0
    second.leave()
    clock.now = 20.0
    assert admission.busy_s == 4.0


def test_who_sends_slowly_is_in_nobodys_way_meanwhile() -> None:
    admission = busy(Clock(), each_s=0.01)
    places = [admission.take(1e9, 3) for _ in range(100)]
    for place in places[:50]:
        place.leave()
    assert (admission.requests, admission.size) == (50, 150)
    for place in places[:50]:
        place.enter()
    assert (admission.requests, admission.size) == (100, 300)


def test_while_the_loop_is_late_what_it_has_not_seen_counts_too() -> None:
    clock = Clock()
    admission = busy(clock, each_s=0.01)
    for _ in range(3):
        admission.take(None, 1)
    admission.take(clock.now + 0.1, 1)
    admission.lag.seconds = 0.08
    with pytest.raises(OverloadedError, match=r"may take 2[4-6]. ms"):
        admission.take(clock.now + 0.1, 1)


def test_the_loops_lag_is_seen_while_requests_come_and_forgotten_after() -> None:
    async def held(lag: Lag, seconds: float) -> float:
        lag.watch()
        begun = time.monotonic()
        while time.monotonic() < begun + seconds:
            pass
        await until(lambda: not lag._is_wanted)
        return lag.seconds

    async def until(is_true: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not is_true():
                await asyncio.sleep(0)

    async def all_of_it() -> None:
        lag = Lag()
        assert 0.2 < await held(lag, 0.3) < 60
        await until(lambda: lag._timer is None)
        assert lag.seconds == 0.0

    asyncio.run(all_of_it())


def test_it_forgets_what_is_long_ago() -> None:
    clock = Clock()
    admission = busy(clock, each_s=1.0)
    for ahead in range(2_000):
        admission.learn(ahead % 40, ahead % 40, clock.now - 0.0001 * (1 + ahead % 40))
    for _ in range(20):
        admission.take(None, 1)
    admission.take(0.1, 1)


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 10_000)), min_size=64, max_size=300))
def test_an_expected_wait_is_never_below_zero_nor_less_for_a_longer_queue(
    seen: list[tuple[int, int]],
) -> None:
    wait = Wait()
    for requests, rows in seen:
        wait.see(requests, rows, 0.002 + 0.0001 * requests + 0.00001 * rows)
    for requests, rows in seen:
        assert 0 <= wait(requests, rows) <= wait(requests + 1, rows + 1)


def test_requests_and_their_bytes_are_told_apart() -> None:
    wait = Wait()
    for number in range(3_200):
        requests, rows = number % 37, (number * 7) % 1_001
        wait.see(requests, rows, 0.002 + 0.0001 * requests + 0.00001 * rows)
    assert wait(10, 500) == pytest.approx(0.008, rel=0.01)


def test_where_as_many_are_always_there_the_wait_is_what_it_took_them() -> None:
    wait, random = Wait(), Random(7)
    for _ in range(20_000):
        requests = random.choice((59, 60, 61))
        wait.see(requests, 18_500 * requests + random.randint(-500, 500), random.uniform(0.02, 0.05))
        if wait._solved > 3:
            assert 0.025 < wait(60, 18_500 * 60) < 0.045


@given(st.lists(st.tuples(st.floats(1, 1e4), st.floats(0, 1)), min_size=1, max_size=100))
def test_a_cost_is_never_below_zero_nor_less_for_more_rows(seen: list[tuple[float, float]]) -> None:
    cost = Line()
    for rows, seconds in seen:
        cost.see(rows, seconds)
    assert min(cost.fixed, cost.each) >= 0


def test_a_moment_in_which_the_machine_did_something_else_is_no_cost() -> None:
    cost = Line()
    for rows in [1, 2, 4, 8] * 10:
        cost.see(rows, 0.001)
    cost.see(1, 5.0)
    assert cost(1) < 0.002


def test_what_has_become_slower_is_soon_found_so() -> None:
    cost = Line()
    for seconds in [0.001] * 100 + [0.1] * 100:
        cost.see(1, seconds)
    assert cost(1) == pytest.approx(0.1, rel=0.05)


def test_a_key_may_ask_again_when_its_bucket_has_filled() -> None:
    clock = Clock()
    rates = Rates(clock)
    for _ in range(10):
        rates.take("batch", 10)
    with pytest.raises(OverloadedError):
        rates.take("batch", 10)
    rates.take("other", 10)
    clock.now += 0.1
    rates.take("batch", 10)
    clock.now += 100
    for _ in range(10):
        rates.take("batch", 10)
    with pytest.raises(OverloadedError, match="the key 'batch' may ask 10 times a second"):
        rates.take("batch", 10)


def test_a_slow_key_is_told_how_long_to_wait() -> None:
    rates = Rates(Clock())
    rates.take("slow", 0.1)
    with pytest.raises(OverloadedError) as refused:
        rates.take("slow", 0.1)
    assert refused.value.retry_after_s == 10


def test_of_keys_that_do_not_ask_any_more_little_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlops_ray.serving.admission.MOST_BUCKETS", 3)
    rates = Rates(Clock())
    for name in "abcab":
        rates.take(name, 5)
    rates.take("d", 5)
    assert list(rates._buckets) == ["a", "b", "d"]
