"""Simulated canaries: an equal version stays, a worse one goes, whatever clusters errors come in."""

import math
import os
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_ray.monitoring.comparison import BUCKETS, ERROR, LEAST_BUCKETS, NONE, Sums, _mixture, compare

#: A thousand of each on demand.
RUNS = 1_000 if os.environ.get("MLOPS_WHOLE") else 200
KEYS, LOOKS, A_LOOK = 3_000, 40, 2_500
WEIGHT = 0.1
#: Of a figure whose requests differ by far more.
LEAST = 1e-6
Numbers = npt.NDArray[np.float64]


def most(share: float) -> float:
    """How many of the runs a probability allows, at four standard deviations."""
    return RUNS * share + 4 * math.sqrt(RUNS * share * (1 - share))


class Service:
    """Keys that ask unequally often, some of which fail far more often than others."""

    def __init__(self, seed: int, base: float) -> None:
        self.random = np.random.default_rng(seed)
        asks = self.random.lognormal(0.0, 1.0, KEYS)
        self.asks = asks / asks.sum()
        # Most never fail, a few often.
        self.fails = self.random.beta(0.05, 0.05 * (1 / base - 1), KEYS)
        self.level = self.random.normal(0.0, 1.0, KEYS)
        self.bucket = self.random.integers(0, BUCKETS, KEYS)
        self.tries = self.random.random(KEYS) < WEIGHT

    def look(self) -> npt.NDArray[np.int64]:
        """How often each key has asked meanwhile."""
        return self.random.multinomial(A_LOOK, self.asks)

    def errors(self, asked: npt.NDArray[np.int64], more: float) -> Numbers:
        share = np.minimum(self.fails + np.where(self.tries, more, 0.0), 1.0)
        return self.random.binomial(asked, share).astype(float)

    def outputs(self, asked: npt.NDArray[np.int64], moved: float) -> tuple[Numbers, Numbers]:
        """Sums and squares of answers, half of whose variance is the key's own."""
        mean = self.level * math.sqrt(0.5) + np.where(self.tries, moved, 0.0)
        noise = self.random.normal(0.0, math.sqrt(0.5), KEYS) * np.sqrt(np.maximum(asked, 1))
        total = asked * mean + np.where(asked > 0, noise, 0.0)
        return total, asked * (mean**2 + 0.5)


def take(sums: Sums, service: Service, mine: npt.NDArray[np.bool_], *of: Numbers) -> None:
    for cells, values in zip(vars(sums).values(), of, strict=True):
        np.add.at(cells, service.bucket[mine], values[mine])


def found(
    of: Callable[[Service, npt.NDArray[np.int64]], tuple[Numbers, Numbers]], base: float, **how: float
) -> list[float]:
    """For each run after how many of the challenger's requests it was found worse, or infinity."""
    after = []
    for seed in range(RUNS):
        service, champion, challenger = Service(seed, base), Sums.empty(), Sums.empty()
        after.append(math.inf)
        for _ in range(LOOKS):
            asked = service.look()
            total, squares = of(service, asked)
            take(champion, service, ~service.tries, asked.astype(float), total, squares)
            take(challenger, service, service.tries, asked.astype(float), total, squares)
            if compare([(champion, challenger)], least=LEAST, **how).is_worse:  # type: ignore[arg-type]
                after[-1] = challenger.count
                break
    return after


def failing(more: float) -> Callable[[Service, npt.NDArray[np.int64]], tuple[Numbers, Numbers]]:
    def of(service: Service, asked: npt.NDArray[np.int64]) -> tuple[Numbers, Numbers]:
        errors = service.errors(asked, more)
        return errors, errors

    return of


def moved(by: float) -> Callable[[Service, npt.NDArray[np.int64]], tuple[Numbers, Numbers]]:
    return lambda service, asked: service.outputs(asked, by)


@pytest.mark.parametrize("base", [0.01, 0.001])
def test_an_equal_version_is_seldom_found_worse_by_its_errors(base: float) -> None:
    assert sum(map(math.isfinite, found(failing(0.0), base, effect=0.02))) <= most(ERROR)


def test_an_equal_version_is_seldom_found_to_answer_otherwise() -> None:
    after = found(moved(0.0), 0.01, effect=0.5, allowed=0.0, either_way=True)
    assert sum(map(math.isfinite, after)) <= most(ERROR)


@pytest.mark.parametrize("base", [0.01, 0.001])
def test_two_points_more_errors_are_found(base: float) -> None:
    assert np.quantile(found(failing(0.02), base, effect=0.02), 0.95) < WEIGHT * LOOKS * A_LOOK


def test_answers_moved_by_a_standard_deviation_are_found_and_smaller_moves_than_allowed_are_not() -> None:
    how = {"effect": 0.5, "allowed": 0.5, "either_way": True}
    for by in (1.0, -1.0):
        assert np.isfinite(found(moved(by), 0.01, **how)).mean() >= 0.95
    assert sum(map(math.isfinite, found(moved(0.4), 0.01, **how))) <= most(ERROR)


@given(st.floats(-8, 8), st.floats(0.1, 1e4), st.floats(0.01, 2))
def test_the_mixture_is_the_average_over_effects(
    deviations: float, information: float, effect: float
) -> None:
    score = deviations * math.sqrt(information)
    grid = np.linspace(0, 12 * effect, 400_001)
    prior = np.exp(-((grid / effect) ** 2) / 2)
    likelihood = np.exp(grid * score - grid**2 * information / 2)
    average = float(np.trapezoid(prior * likelihood) / np.trapezoid(prior))
    assert _mixture(score, information, effect) == pytest.approx(average, rel=0.02)


def test_a_walk_without_a_drift_seldom_comes_to_a_rollback_and_about_as_often_as_it_may() -> None:
    random, runs, looks = np.random.default_rng(3), 4_000, 200
    information = np.geomspace(0.1, 1e6, looks)
    steps = random.normal(size=(runs, looks)) * np.sqrt(np.diff(information, prepend=0.0))
    scores = steps.cumsum(axis=1)
    crossed = sum(
        any(_mixture(s, i, 0.5) >= 1 / ERROR for s, i in zip(walk, information, strict=True))
        for walk in scores
    )
    assert 0.15 * ERROR < crossed / runs < ERROR + 4 * math.sqrt(ERROR / runs)


def test_nothing_is_said_of_few_keys() -> None:
    champion, challenger = Sums.empty(), Sums.empty()
    for bucket in range(BUCKETS):
        champion.add(bucket, 0.0)
    for bucket in range(int(LEAST_BUCKETS) - 1):
        challenger.add(bucket, 1.0)
    assert compare([(champion, challenger)], effect=0.02, least=LEAST) is NONE
    challenger.add(int(LEAST_BUCKETS), 1.0)
    assert compare([(champion, challenger)], effect=0.02, least=LEAST).is_worse


def test_one_busy_key_is_no_more_than_one() -> None:
    champion, challenger = Sums.empty(), Sums.empty()
    for bucket in range(BUCKETS):
        champion.add(bucket, 0.0)
        challenger.add(bucket, 0.0)
    for _ in range(100_000):
        challenger.add(0, 1.0)
    assert compare([(champion, challenger)], effect=0.02, least=LEAST) is NONE


def test_counts_of_several_processes_add_up() -> None:
    whole, parts = Sums.empty(), [Sums.empty(), Sums.empty()]
    for number in range(100):
        for sums in (whole, parts[number % 2]):
            sums.add(number % 7, float(number))
    parts[0].merge(parts[1])
    for mine, theirs in zip(vars(whole).values(), vars(parts[0]).values(), strict=True):
        assert np.array_equal(mine, theirs)
