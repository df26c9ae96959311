"""The service of benchmarks.replicas is as queues are known to be; our policy does better than Serve's."""

import math

import numpy as np
import pytest

from benchmarks import autoscaling
from benchmarks.replicas import Asked, Replica, Service, Shape, arrivals
from mlops_ray.serving.autoscaling import p99_s

NEVER_S, ENDLESS = 1e9, 1e9
SERVICE_S = 0.1


def exponential(random: np.random.Generator, n: int) -> np.ndarray:
    return random.exponential(1.0, n)


def same(random: np.random.Generator, n: int) -> np.ndarray:
    return np.ones(n)


def as_they_are(now: float, running: object, target: int) -> int:
    return target


def took(shape: Shape, rate: float, requests: int, replicas: int = 1) -> np.ndarray:
    """What each of about so many requests took, seconds."""
    random = np.random.default_rng(7)
    service, seconds = Service(shape, random, replicas), int(requests / rate)
    service.took_s = []
    service.run(arrivals(random, np.full(seconds, rate)), seconds, as_they_are)
    return np.array(service.took_s)


def one_by_one(noise: object) -> Shape:
    return Shape(0.0, SERVICE_S, NEVER_S, 10.0, max_batch=1, patience=ENDLESS, noise=noise)  # type: ignore[arg-type]


def test_one_replica_that_takes_a_random_time_is_an_m_m_1_queue() -> None:
    """Time in the system is exponential with mean s / (1 - busy)."""
    found, mean_s = took(one_by_one(exponential), 7.0, 100_000), SERVICE_S / (1 - 0.7)
    assert found.mean() == pytest.approx(mean_s, rel=0.05)
    assert np.quantile(found, 0.99) == pytest.approx(mean_s * math.log(100), rel=0.1)


def test_one_replica_that_always_takes_the_same_is_an_m_d_1_queue() -> None:
    """The mean is s + busy s / (2 (1 - busy)): Pollaczek and Khinchine."""
    assert took(one_by_one(same), 7.0, 100_000).mean() == pytest.approx(
        SERVICE_S * (1 + 0.7 / (2 * (1 - 0.7))), rel=0.04
    )


@pytest.mark.parametrize(("replicas", "busy"), [(2, 0.7), (4, 0.8)])
def test_several_come_near_one_queue_for_all_and_are_never_better(replicas: int, busy: float) -> None:
    """The fewest in hand is a little worse than M/M/c, where nobody waits behind another replica's queue."""
    found = took(one_by_one(exponential), replicas * busy / SERVICE_S, 100_000, replicas).mean()
    best_s = erlang_mean_s(replicas, busy)
    assert 0.97 * best_s < found < 1.25 * best_s


def erlang_mean_s(servers: int, busy: float) -> float:
    """The mean time in an M/M/c queue, by Erlang's C.

    >>> round(erlang_mean_s(1, 0.5), 3), round(erlang_mean_s(2, 0.5), 4)
    (0.2, 0.1333)
    """
    offered = servers * busy
    free = sum(offered**k / math.factorial(k) for k in range(servers))
    full = offered**servers / math.factorial(servers) / (1 - busy)
    return SERVICE_S * (1 + full / (free + full) / (servers * (1 - busy)))


@pytest.mark.parametrize("busy", [0.2, 0.4, 0.6, 0.75])
@pytest.mark.parametrize(("fixed_s", "each_s"), [(0.0, 0.075), (0.03, 0.045), (0.06, 0.015)])
def test_the_p99_that_is_worked_out_is_that_of_batches(fixed_s: float, each_s: float, busy: float) -> None:
    shape = Shape(fixed_s, each_s, NEVER_S, 10.0, patience=ENDLESS)
    found = float(np.quantile(took(shape, busy / each_s, 40_000), 0.99))
    assert 0.85 * found < p99_s(busy / each_s, fixed_s, each_s) < 1.4 * found


def test_who_cannot_be_answered_in_time_is_refused_and_nobody_is_lost() -> None:
    random = np.random.default_rng(7)
    shape = Shape(0.0, SERVICE_S, 1.0, 10.0, max_batch=1, patience=4.0, noise=same)
    service = Service(shape, random, 1)
    service.took_s = []
    seconds = service.run(arrivals(random, np.full(600, 20.0)), 600, as_they_are)
    refused = sum(each.refused for each in seconds)
    assert sum(each.arrived for each in seconds) - refused - len(service.took_s) in range(22)
    assert 600 * 10 - 22 < len(service.took_s) <= 600 * 10
    assert max(service.took_s) < 2.3  # twice what is expected, at most: patience and SPREAD


def test_a_replica_costs_from_its_order_on_and_answers_when_it_has_started() -> None:
    random = np.random.default_rng(7)
    shape = Shape(0.0, SERVICE_S, 1.0, 10.0)
    asked: Asked = lambda now, running, target: 1 if now >= 5 else 0  # noqa: E731
    seconds = Service(shape, random, 0).run(np.array([2.5]), 20, asked)
    assert [each.paid for each in seconds] == [0] * 5 + [1] * 15
    # Serve keeps whoever comes while there is none: answered, and late.
    assert [at for at, each in enumerate(seconds) if each.late] == [15]


def test_where_many_come_at_once_ours_misses_fewer_than_serves_and_costs_no_more() -> None:
    rates = autoscaling.bursts(2 * autoscaling.HOUR_S)
    ours, theirs = autoscaling.day(rates, autoscaling.ours()), autoscaling.day(rates, autoscaling.theirs())
    assert ours.missed < autoscaling.FEWER * theirs.missed
    assert ours.cost <= theirs.cost


def test_serves_policy_is_given_what_serve_gives_it() -> None:
    """Two requests in hand for a replica: of a steady 4 in hand of one it makes 2, after its 30 s."""
    theirs, target = autoscaling.theirs(), 1

    running = [Replica(0.0, n=4)]
    found = []
    for second in range(120):
        target = theirs(float(second), running, target)
        found.append(target)
    first = found.index(2)
    assert set(found) == {1, 2}
    assert 30 <= first <= 50
