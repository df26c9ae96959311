"""A p-value is never too small, for any counts: against all tables that there are."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import multivariate_hypergeom

from mlops_ray.monitoring import tails
from mlops_ray.monitoring.drift import g_test

REFERENCE, WINDOW = np.array([30.0, 12.0, 6.0, 2.0]), np.array([2.0, 4.0, 1.0, 5.0])


def exactly(reference: np.ndarray, current: np.ndarray, statistic: float) -> float:
    """The share of all windows of these margins that are as different, by their probability."""
    both, rows = (reference + current).astype(int), int(current.sum())
    total = 0.0
    for cells in itertools.product(*(range(min(rows, most) + 1) for most in both[:-1])):
        last = rows - sum(cells)
        if 0 <= last <= both[-1]:
            window = np.array([*cells, last], float)
            if g_test(both - window, window)[0] >= statistic * (1 - 1e-9):
                total += float(multivariate_hypergeom.pmf(window.astype(int), both, rows))
    return total


def test_each_pair_of_samples_has_draws_of_its_own() -> None:
    """With the same draws for all tests, the chance of one of them would be that of a model's every look."""
    random = np.random.default_rng(9)
    both = 1_000 * REFERENCE
    found = []
    for _ in range(40):
        current = random.multivariate_hypergeometric(both.astype(np.int64), 200).astype(float)
        # The same difference asked about, whatever the samples: only their draws differ.
        found.append(tails.drawn(both - current, current, 14.0, below=1e-3))
    assert len(set(found)) > 4
    again = tails.drawn(both - current, current, 14.0, below=1e-3)
    assert again == found[-1]


@pytest.mark.parametrize("window", [WINDOW, [6, 3, 2, 1], [4, 4, 2, 2], [3, 5, 3, 1]])
def test_draws_come_to_what_all_tables_say(window: list[float]) -> None:
    current = np.array(window, float)
    statistic, _ = g_test(REFERENCE, current)
    expected = exactly(REFERENCE, current, statistic)
    found = [tails.drawn(REFERENCE, current, statistic, below=1e-4, seed=seed) for seed in range(40)]
    # Twenty exceedances, or a draw too few: their mean is a little above.
    assert np.mean(found) == pytest.approx(expected, rel=0.2, abs=1e-4)


def test_the_statistics_of_draws_are_those_of_the_test() -> None:
    both = (REFERENCE + WINDOW).astype(np.int64)
    windows = np.array([[2, 4, 1, 5], [12, 0, 0, 0], [6, 3, 2, 1]])
    expected = [g_test((both - window).astype(float), window.astype(float))[0] for window in windows]
    assert tails.statistics(both, windows) == pytest.approx(expected)


@pytest.mark.parametrize(("reference", "rows"), [(REFERENCE, 12), (np.array([9.0, 9.0, 9.0]), 9)])
def test_no_table_is_likelier_than_the_bound(reference: np.ndarray, rows: int) -> None:
    for statistic in np.linspace(1, 60, 12):
        current = np.zeros_like(reference)
        current[0] = rows
        assert exactly(reference, current, statistic) <= tails.most(statistic, len(reference)) + 1e-12


def test_what_is_far_out_costs_no_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tails, "drawn", None)
    reference, current = np.full(20, 500.0), np.array([200.0] + [0.0] * 19)
    statistic, _ = g_test(reference, current)
    assert tails.p_value(reference, current, statistic, below=1e-6) < 1e-6


def test_the_same_counts_give_the_same_p_value() -> None:
    statistic, _ = g_test(REFERENCE, WINDOW)
    first, second = (tails.p_value(REFERENCE, WINDOW, statistic, below=1e-3) for _ in range(2))
    assert first == second
    assert math.isfinite(first)
