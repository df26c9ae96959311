"""Probabilities mean what they say after calibration, and a threshold does what it was chosen for."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mlops_ray.config import Threshold
from mlops_ray.registry import metrics
from mlops_ray.training import calibration
from mlops_ray.training.calibration import Predicted
from mlops_ray.training.families import Sample

LOG_LOSS, ECE = metrics.METRICS["log_loss"], metrics.METRICS["calibration_error"]


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def _folds(seed: int = 7, folds: int = 3, rows: int = 4000, stretch: float = 1.0) -> list[Predicted]:
    """Rows whose true probability is known, and is said with its logit stretched."""
    made = []
    for part in range(folds):
        random = np.random.default_rng([seed, part])
        logits = random.normal(-1, 1.5, rows)
        labels = (random.random(rows) < _sigmoid(logits)) * 1.0
        made.append(Predicted(labels, _sigmoid(stretch * logits + (stretch - 1))))
    return made


@pytest.mark.parametrize("stretch", [0.4, 3.0])
def test_probabilities_that_say_too_much_or_too_little_are_mended(stretch: float) -> None:
    calibrator = calibration.calibrate(_folds(stretch=stretch))
    assert calibrator is not None
    (fresh,) = _folds(seed=8, folds=1, rows=20_000, stretch=stretch)
    assert ECE(fresh.labels, fresh.probabilities) > 0.05
    assert ECE(fresh.labels, calibrator(fresh.probabilities)) < 0.015


def _bent(said: np.ndarray) -> np.ndarray:
    return np.sqrt(said) * 0.5 + (said > 0.3) * 0.4


def test_a_bend_that_no_sigmoid_has_is_mended_too() -> None:
    folds = [
        Predicted(f.labels, np.sqrt(f.probabilities) * 0.5 + (f.probabilities > 0.3) * 0.4) for f in _folds()
    ]
    calibrator = calibration.calibrate(folds)
    assert calibrator is not None
    assert ECE(folds[0].labels, calibrator(folds[0].probabilities)) < 0.02


def test_probabilities_that_are_right_are_left_alone() -> None:
    assert calibration.calibrate(_folds()) is None


def test_a_single_fold_is_enough() -> None:
    assert calibration.calibrate(_folds(folds=1, stretch=3.0)) is not None


def test_what_orders_rows_the_wrong_way_round_is_not_turned() -> None:
    turned = [Predicted(fold.labels, 1 - fold.probabilities) for fold in _folds()]
    calibrator = calibration.calibrate(turned)
    said = np.linspace(0, 1, 101)
    assert calibrator is None or (np.diff(calibrator(said)) >= 0).all()


def test_nothing_but_one_class_in_a_fold_is_no_failure() -> None:
    folds = [Predicted(np.zeros(50), np.linspace(0.1, 0.9, 50)), *_folds(folds=1, rows=200)]
    calibrator = calibration.calibrate(folds)
    assert calibrator is None or np.isfinite(calibrator(np.array([0.5]))).all()


@given(probability=st.floats(0.001, 0.999), ratio=st.floats(0.01, 100))
def test_weights_by_class_are_taken_out_of_the_odds(probability: float, ratio: float) -> None:
    sample = Sample(np.zeros((2, 1), np.float32), np.array([0.0, 1.0]), np.array([1.0, ratio]))
    odds = probability / (1 - probability) * ratio
    said = calibration.unweighted(np.array([odds / (1 + odds)]), sample)
    assert said[0] == pytest.approx(probability, rel=1e-6)


# ---------------------------------------------------------------- threshold


def _threshold(wish: object) -> Threshold:
    return Threshold.model_validate({"for": wish})


def _decided(fold: Predicted, threshold: float) -> dict[str, float]:
    return metrics.decided(fold.labels, fold.probabilities >= threshold, np.ones(len(fold.labels)))


def _every(folds: list[Predicted]) -> np.ndarray:
    return np.unique(np.concatenate([fold.probabilities for fold in folds]))


def _together(folds: list[Predicted]) -> Predicted:
    return Predicted(*(np.concatenate([getattr(f, n) for f in folds]) for n in ("labels", "probabilities")))


@pytest.mark.parametrize("name", ["f1", "accuracy"])
def test_the_best_threshold_is_found(name: str) -> None:
    folds = _folds(rows=150)
    chosen = calibration.threshold(_threshold(name), folds)
    whole = _together(folds)
    best = max(_decided(whole, one)[name] for one in _every(folds))
    assert _decided(whole, chosen.value)[name] == best
    assert chosen.missed == ""


@given(wanted=st.floats(0.05, 1.0), seed=st.integers(0, 500))
def test_a_recall_is_reached_in_every_fold_by_the_highest_threshold_that_does(
    wanted: float, seed: int
) -> None:
    folds = _folds(seed, rows=30)
    chosen = calibration.threshold(_threshold({"recall": wanted}), folds)

    def reached(threshold: float) -> bool:
        return all(_decided(fold, threshold)["recall"] >= wanted for fold in folds)

    assert reached(chosen.value)
    assert not any(reached(one) for one in _every(folds) if one > chosen.value)


@given(seed=st.integers(0, 500))
def test_a_precision_is_reached_in_every_fold_by_the_lowest_threshold_that_does(seed: int) -> None:
    folds = _folds(seed, rows=30)
    chosen = calibration.threshold(_threshold({"precision": 0.5}), folds)
    assume(not chosen.missed)

    def reached(threshold: float) -> bool:
        return all(_decided(fold, threshold)["precision"] >= 0.5 for fold in folds)

    assert reached(chosen.value)
    assert not any(reached(one) for one in _every(folds) if one < chosen.value)


def test_a_precision_that_no_threshold_reaches_is_said_with_the_best_there_is() -> None:
    random = np.random.default_rng(7)
    folds = [Predicted((random.random(500) < 0.2) * 1.0, random.random(500)) for _ in range(2)]
    chosen = calibration.threshold(_threshold({"precision": 0.999}), folds)
    assert "no threshold reaches the precision 0.999 in every fold of the validation" in chosen.missed


@pytest.mark.parametrize("matrix", [((0, 1), (10, 0)), ((0, 5), (1, 0)), ((-1, 2), (8, -3))])
def test_costs_are_the_least_there_are(matrix: tuple[tuple[float, float], tuple[float, float]]) -> None:
    folds = _folds(rows=150)
    chosen = calibration.threshold(_threshold({"cost": matrix}), folds)
    whole = _together(folds)

    def cost(threshold: float) -> float:
        return sum(
            matrix[int(label)][int(said >= threshold)]
            for label, said in zip(whole.labels, whole.probabilities, strict=True)
        ) / len(whole.labels)

    yes = whole.probabilities >= chosen.value
    ones = np.ones(len(whole.labels))
    assert calibration.cost(matrix, whole.labels, yes, ones) == pytest.approx(cost(chosen.value))
    assert cost(chosen.value) == pytest.approx(min(cost(one) for one in _every(folds)))


def test_without_a_wish_the_answer_is_yes_from_one_half_on() -> None:
    assert calibration.threshold(None, _folds(rows=50)).value == 0.5


def test_a_dear_miss_lowers_the_threshold() -> None:
    folds = _folds()
    chosen = [
        calibration.threshold(_threshold({"cost": ((0, 1), (miss, 0))}), folds).value for miss in (1, 5, 25)
    ]
    assert all(before > after for before, after in itertools.pairwise(chosen))
