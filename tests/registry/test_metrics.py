"""Metrics say what scikit-learn's of the same name say, with weights and ties; NaN where rows do not say."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as peer

from mlops_ray.errors import TrainingError
from mlops_ray.registry import metrics

PEERS: dict[str, Callable[..., float]] = {
    "mae": peer.mean_absolute_error,
    "rmse": peer.root_mean_squared_error,
    "average_precision": peer.average_precision_score,
    "roc_auc": peer.roc_auc_score,
    "log_loss": peer.log_loss,
    "brier": peer.brier_score_loss,
}


def _rows(seed: int, count: int, kind: str) -> tuple[Any, Any, Any]:
    """Labels, predictions of few values so that many are tied, and weights of which some are 0."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count).astype(np.float64)
    labels[:2] = 0.0, 1.0
    predictions = np.clip(random.integers(1, 9, count) / 10 + 0.1 * labels, 0.05, 0.95)
    weights = random.integers(0, 4, count).astype(np.float64)
    weights[:2] = 1.0
    return (labels if kind == "classification" else labels + random.random(count)), predictions, weights


@pytest.mark.parametrize("name", sorted(PEERS))
@given(seed=st.integers(0, 10_000), count=st.integers(2, 60))
def test_agrees_with_scikit_learn(name: str, seed: int, count: int) -> None:
    metric = metrics.METRICS[name]
    labels, predictions, weights = _rows(seed, count, metric.task)
    ours, theirs = metric(labels, predictions, weights), PEERS[name]
    assert ours == pytest.approx(theirs(labels, predictions, sample_weight=weights), rel=1e-9)
    assert metric(labels, predictions) == pytest.approx(theirs(labels, predictions), rel=1e-9)


@pytest.mark.parametrize("name", sorted(metrics.METRICS))
@given(seed=st.integers(0, 10_000))
def test_a_weight_of_two_is_a_row_twice_and_of_none_no_row(name: str, seed: int) -> None:
    metric = metrics.METRICS[name]
    labels, predictions, weights = _rows(seed, 40, metric.task)
    if name == "calibration_error":
        predictions = np.unique(predictions, return_inverse=True)[1] / 10  # rows of one value share a bin
    repeated = np.repeat(np.arange(40), weights.astype(int))
    assert metric(labels, predictions, weights) == pytest.approx(
        metric(labels[repeated], predictions[repeated]), rel=1e-9
    )


def test_calibration_error_is_the_mean_gap_of_ten_equal_bins() -> None:
    random = np.random.default_rng(7)
    predictions = random.random(10_000)
    assert (
        metrics.METRICS["calibration_error"]((random.random(10_000) < predictions) * 1.0, predictions) < 0.02
    )
    labels = (random.random(10_000) < predictions**2) * 1.0
    bins = np.array_split(np.argsort(predictions), 10)
    expected = np.mean([abs(labels[rows].mean() - predictions[rows].mean()) for rows in bins])
    assert metrics.METRICS["calibration_error"](labels, predictions) == pytest.approx(expected, rel=1e-6)


@given(seed=st.integers(0, 10_000))
def test_decisions_agree_with_scikit_learn(seed: int) -> None:
    labels, predictions, weights = _rows(seed, 50, "classification")
    yes = predictions >= 0.5
    ours = metrics.decided(labels, yes, weights)
    theirs = {
        "accuracy": peer.accuracy_score(labels, yes, sample_weight=weights),
        "precision": peer.precision_score(labels, yes, sample_weight=weights, zero_division=np.nan),
        "recall": peer.recall_score(labels, yes, sample_weight=weights),
        "f1": peer.f1_score(labels, yes, sample_weight=weights),
    }
    assert ours == pytest.approx(theirs, nan_ok=True)


@pytest.mark.parametrize("name", ["average_precision", "roc_auc", "relative_mae"])
def test_rows_that_do_not_say_are_nan(name: str) -> None:
    assert np.isnan(metrics.METRICS[name](np.zeros(3), np.array([0.1, 0.2, 0.3])))


@pytest.mark.parametrize("name", sorted(metrics.METRICS))
def test_which_way_is_better_is_one_thing_in_loss_mode_and_margin(name: str) -> None:
    metric = metrics.METRICS[name]
    better, worse = (0.2, 0.4) if metric.mode == "min" else (0.4, 0.2)
    assert metric.loss(better) < metric.loss(worse)
    assert metric.is_better(better, worse)
    assert not metric.is_better(worse, better)
    assert not metric.is_better(better, worse, by=0.9)
    assert not metric.is_better(float("nan"), worse)
    assert not metric.is_better(better, float("nan"))


def test_what_takes_a_threshold_does_not_decide_a_search() -> None:
    with pytest.raises(TrainingError, match=r"f1 takes a threshold.*training\.metrics"):
        metrics.find("f1", "classification")
    with pytest.raises(TrainingError, match="no metric 'mae' for a classification"):
        metrics.find("mae", "classification")
