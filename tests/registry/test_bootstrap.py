"""Intervals cover the truth as often as they say, also where rows depend on each other."""

import numpy as np
import pytest

from mlops_ray.registry import bootstrap


def _mean(values: np.ndarray) -> bootstrap.Interval:
    return bootstrap.intervals(
        np.arange(len(values)), 7, lambda weights: {"mean": float(np.average(values, weights=weights))}, 200
    )["mean"]


def test_the_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    values = np.random.default_rng(7).normal(3.0, 2.0, 900)
    low, high = _mean(values)
    error = values.std() / 30
    assert (low, high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.4 * error
    )


def _covered(blocked: bool) -> float:
    """Of 200 samples of 40 blocks of 10 rows alike, the share whose interval holds the true mean, 0."""
    hits = 0
    for seed in range(200):
        values = np.repeat(np.random.default_rng(seed).normal(size=40), 10)
        blocks = np.arange(400) // 10 if blocked else np.arange(400)
        figures = lambda w, v=values: {"mean": float(np.average(v, weights=w))}  # noqa: E731
        low, high = bootstrap.intervals(blocks, seed, figures, draws=100)["mean"]
        hits += low <= 0 <= high
    return hits / 200


def test_blocks_keep_the_promise_that_single_rows_break() -> None:
    assert _covered(blocked=True) > 0.85
    assert _covered(blocked=False) < 0.6


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(7).normal(size=50)
    assert _mean(values) == _mean(values)


def test_a_figure_that_no_draw_has_is_nan() -> None:
    low, high = bootstrap.intervals(np.arange(3), 7, lambda weights: {"x": float("nan")}, 5)["x"]
    assert np.isnan([low, high]).all()
