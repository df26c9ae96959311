"""The highest rate within the objectives, of simulated servers whose limit is known, on their own clock."""

import math
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass
from decimal import Decimal, localcontext
from itertools import count

import numpy as np
import numpy.typing as npt
import pytest

from mlops_ray.errors import ServiceError
from mlops_ray.serving import loadtest
from mlops_ray.serving.loadtest import (
    CONFIRM_S,
    ERROR,
    LATE,
    SETTLE,
    TICK_MS,
    Found,
    Objectives,
    Probe,
    Second,
    looks,
    search,
)

ALLOWED = Objectives(p99_ms=50, error_rate=0.001)
SEEDS = range(12)


@dataclass
class Server:
    """One that serves one after the other, and is offered requests by chance (M/M/1, or M/D/1).

    It answers `per_s`, in times that vary exponentially or not at all; `fails` is the share that fails at a
    rate, `slow_probe` the one in which it does something else, `lag_ms` how late requests leave.
    """

    per_s: float
    seed: int
    varies: bool = True
    most: float = math.inf
    fails: float = 0.0
    slow_probe: int = 0
    lag_ms: float = 0.0
    seconds: int = 0
    probes: int = 0

    def __call__(self, rate: float) -> Generator[Second]:
        self.probes += 1
        random, scale = np.random.default_rng([self.seed, self.probes]), 1 / self.per_s
        wait, left = 0.0, random.exponential(1 / rate)
        while True:
            self.seconds += 1
            due, left = _due(random, rate, left)
            took = random.exponential(scale, due.size) if self.varies else np.full(due.size, scale)
            waits, wait = _waits(due, took, wait)
            latency_ms = 1000 * (waits + took) + self.lag_ms + 1000 * (self.probes == self.slow_probe)
            yield self._second(random, rate, latency_ms)

    def _second(
        self, random: np.random.Generator, rate: float, latency_ms: npt.NDArray[np.float64]
    ) -> Second:
        refused = max(self.fails, 1 - self.most / rate)
        ticks = np.round(latency_ms / TICK_MS).astype(int).tolist()
        return Second(
            len(ticks),
            int((latency_ms > ALLOWED.p99_ms).sum()),
            random.binomial(len(ticks), refused),
            Counter(ticks),
            Counter({round(self.lag_ms / TICK_MS): len(ticks)}),
        )


def _due(random: np.random.Generator, rate: float, first: float) -> tuple[npt.NDArray[np.float64], float]:
    """When requests come within a second, and how long after it the next."""
    enough = int(rate + 10 * math.sqrt(rate) + 50)
    due = first + np.concatenate([[0.0], np.cumsum(random.exponential(1 / rate, enough))])
    inside = int((due < 1).sum())
    return due[:inside], due[inside] - 1


def _waits(
    due: npt.NDArray[np.float64], took: npt.NDArray[np.float64], work: float
) -> tuple[npt.NDArray[np.float64], float]:
    """How long each waits where so much work was there before, and the work that is left after a second.

    Lindley's recursion, wait = max(0, wait before + service before - gap), summed up.
    """
    steps = np.concatenate([[work], took]) - np.diff(np.concatenate([[0.0], due, [1.0]]))
    sums = np.cumsum(steps)
    waits = sums - np.minimum(np.minimum.accumulate(sums), 0.0)
    return waits[:-1], float(waits[-1])


def limit_of_exponential(per_s: float) -> float:
    """The rate at which 99 in 100 are answered in time: P(T > t) = exp(-(per_s - rate) t)."""
    return per_s + math.log(LATE) / (ALLOWED.p99_ms / 1000)


def limit_of_constant(per_s: float) -> float:
    """The same of M/D/1, by Erlang's formula for who waits at most t = p99 - service.

    P(W <= t) = (1 - ρ) Σ_k (-ρ x)^k e^(ρ x) / k!, with x = t per_s - k, for k from 0 to t per_s.
    """
    t = Decimal(ALLOWED.p99_ms / 1000 * per_s) - 1

    def in_time(load: Decimal) -> Decimal:
        terms = (
            (-load * (t - k)) ** k * (load * (t - k)).exp() / math.factorial(k) for k in range(int(t) + 1)
        )
        return (1 - load) * sum(terms, Decimal(0))

    # Its terms are large, and cancel.
    with localcontext(prec=80):
        low, high = Decimal("0.5"), Decimal(1)
        while high - low > Decimal("1e-4"):
            middle = (low + high) / 2
            low, high = (middle, high) if in_time(middle) >= 1 - Decimal(str(LATE)) else (low, middle)
        return per_s * float(low)


def found(server: Server, first: float) -> Found:
    return search(server, first, ALLOWED)


@pytest.mark.parametrize("varies", [True, False])
@pytest.mark.parametrize("first", [0.1, 3.0], ids=["from below", "from above"])
def test_the_rate_that_is_found_is_within_the_limit_and_close_to_it(varies: bool, first: float) -> None:
    per_s = 800.0
    limit = limit_of_exponential(per_s) if varies else limit_of_constant(per_s)
    results = [found(Server(per_s, seed, varies), first * per_s) for seed in SEEDS]
    ratios = sorted(result.best.rate / limit for result in results)
    # Each may err one time in 25.
    assert ratios[-3] <= 1
    assert ratios[-1] <= 1.05
    assert ratios[0] >= 0.75
    assert ratios[len(ratios) // 2] >= 0.85
    assert sum(result.best.rate <= limit <= result.high for result in results) >= len(results) - 2


def test_at_the_limit_itself_a_probe_errs_no_more_often_than_it_may() -> None:
    rate = limit_of_exponential(500.0)
    states = Counter(loadtest.probe(Server(500.0, seed), rate, ALLOWED).state for seed in range(100))
    most = 100 * ERROR + 3 * math.sqrt(100 * ERROR * (1 - ERROR))
    assert states["holds"] <= most
    assert states["fails"] <= most


def test_where_requests_fail_before_they_are_late_the_share_of_errors_is_the_limit() -> None:
    """A service that refuses whom it has no time for is quick, and yet at its limit."""
    result = found(Server(5_000.0, 1, most=400.0), 100.0)
    assert 0.85 * 400 <= result.best.rate <= 400 * 1.002 <= result.high
    assert result.best.error_rate <= ALLOWED.error_rate


def test_a_moment_in_which_the_machine_did_something_else_is_no_limit() -> None:
    limit = limit_of_exponential(800.0)
    usual, disturbed = found(Server(800.0, 1), 300.0), found(Server(800.0, 1, slow_probe=1), 300.0)
    assert disturbed.probes[0].state == "fails"
    assert disturbed.probes[0].rate < disturbed.best.rate
    assert min(usual.best.rate, disturbed.best.rate) >= 0.8 * limit


def test_the_best_rate_was_held_twice_the_second_time_for_long() -> None:
    result = found(Server(800.0, 2), 100.0)
    held = [probe for probe in result.probes if probe.rate == result.best.rate]
    assert [probe.state for probe in held] == ["holds", "holds"]
    assert held[1] is result.best
    assert result.best.requests >= 0.9 * CONFIRM_S * result.best.rate
    assert result.best.p99_ms <= ALLOWED.p99_ms


@pytest.mark.parametrize("server", [Server(70.0, 1), Server(800.0, 1, fails=0.05)], ids=["slow", "broken"])
def test_where_no_rate_holds_it_says_what_was_seen_at_the_lowest(server: Server) -> None:
    with pytest.raises(ServiceError, match=r"no rate holds: at 0\.\d+ requests/s.*p99 was .*% failed"):
        found(server, 200.0)


@pytest.mark.parametrize("first", [0.0, 0.4, 0.5])
def test_of_a_service_too_slow_to_be_measured_it_is_said_what_was_seen(first: float) -> None:
    """Who waits for each answer asked it less than twice in a second."""
    told: list[Probe] = []
    with pytest.raises(ServiceError, match=r"no rate holds: at 0\.5 requests/s.*failed.*allow more"):
        search(Server(0.2, 1), first, ALLOWED, told.append)
    assert {probe.rate for probe in told} == {loadtest.LEAST_RATE}
    patient = Objectives(p99_ms=10_000, error_rate=0.001)
    server = Server(1.0, 1, varies=False)
    with pytest.raises(ServiceError, match=r"is known to hold: at 0\.5 .*1\d\d requests are too few to tell"):
        search(lambda rate: _as_late_as(server(rate), patient), first, patient)


def test_a_service_that_never_holds_for_long_is_given_up() -> None:
    def offer(rate: float) -> Generator[Second]:
        for second in count():
            yield Second(1_000, 1_000 * (second > loadtest.LEAST_S + 5), 0, Counter({10: 1_000}))

    with pytest.raises(ServiceError, match=r"no rate was held again that held before, in 4\d probes"):
        search(offer, 1_000.0, ALLOWED)


def test_a_slow_service_is_given_the_time_that_it_needs() -> None:
    """Twelve a second, each within 10 s: 500 requests take longer than a probe usually does."""
    allowed = Objectives(p99_ms=10_000, error_rate=0.001)
    server = Server(12.0, 1, varies=False)
    result = search(lambda rate: _as_late_as(server(rate), allowed), 2.0, allowed)
    assert 4 <= result.best.rate <= 12


def _as_late_as(seconds: Generator[Second], allowed: Objectives) -> Generator[Second]:
    for second in seconds:
        late = sum(n for ticks, n in second.took.items() if ticks * TICK_MS > allowed.p99_ms)
        yield second._replace(late=late)


def test_what_is_clear_is_over_soon() -> None:
    over = Server(800.0, 1)
    assert loadtest.probe(over, 1_600.0, ALLOWED).state == "fails"
    assert over.seconds == SETTLE + loadtest.FIRST_LOOK
    under = Server(800.0, 1)
    assert loadtest.probe(under, 300.0, ALLOWED).state == "holds"
    assert under.seconds <= SETTLE + next(look for look in looks(300) if look >= loadtest.LEAST_S)


def test_what_the_rate_before_left_behind_is_not_counted() -> None:
    def offer(rate: float) -> Generator[Second]:
        yield Second(100, 100, 100)
        yield from Server(800.0, 1)(rate)

    assert loadtest.probe(offer, 300.0, ALLOWED).error_rate == 0


def test_each_probe_is_told_as_it_ends_and_its_offer_is_closed() -> None:
    told: list[Probe] = []
    open_now = 0

    def offer(rate: float) -> Generator[Second]:
        nonlocal open_now
        open_now += 1
        assert open_now == 1
        try:
            yield from Server(800.0, len(told))(rate)
        finally:
            open_now -= 1

    result = search(offer, 300.0, ALLOWED, told.append)
    assert tuple(told) == result.probes
    assert open_now == 0


def test_where_the_generator_is_late_itself_that_is_said() -> None:
    assert found(Server(800.0, 1), 300.0).note == ""
    assert "requests left up to 20 ms late" in found(Server(800.0, 1, lag_ms=20.0), 300.0).note


def test_an_offer_that_ends_by_itself_is_an_error() -> None:
    def offer(rate: float) -> Generator[Second]:
        yield from [Second(1, 0, 0)] * 2

    with pytest.raises(ServiceError, match="the generator ended while it offered 10 requests/s"):
        loadtest.probe(offer, 10.0, ALLOWED)
