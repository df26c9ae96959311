"""Quality is estimated well where only inputs moved, measured where labels came, and judged by chance."""

import json

import numpy as np
import orjson
import pytest
from scipy.special import expit
from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score

from mlops_ray.monitoring import figures, performance
from mlops_ray.monitoring.performance import Expected
from mlops_ray.registry.booster import Booster

RANDOM = np.random.default_rng(11)


def classified(rows: int, at: float = 0.0, flip: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and answers; a model that is too sure, and of whose rows some share has changed its meaning."""
    x = RANDOM.normal(at, 1.5, rows)
    chance = expit(x)
    labels = (RANDOM.random(rows) < np.where(RANDOM.random(rows) < flip, 1 - chance, chance)).astype(float)
    return labels, expit(2 * x)


def regressed(rows: int, at: float = 0.0, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, answers, and the one feature, with which the noise grows."""
    x = RANDOM.uniform(at, at + 2, rows)
    return 3 * x + RANDOM.normal(0, 0.2 + x, rows) * noise, 3 * x, x[:, None].astype(np.float32)


LABELS, ANSWERS = classified(20_000)
CLASSES, NO_MODELS = performance.expect(
    "classification", "roc_auc", LABELS, ANSWERS, np.arange(20_000), threshold=0.5
)
TRUE, SAID, MATRIX = regressed(20_000)
NUMBERS, MODELS = performance.expect("regression", "mae", TRUE, SAID, np.arange(20_000), matrix=MATRIX)


def errors_of(matrix: np.ndarray, answers: np.ndarray) -> dict[str, np.ndarray]:
    inputs = performance.error_inputs(matrix, answers)
    return {metric: Booster(model).predict(inputs).astype(float) for metric, model in MODELS.items()}


@pytest.mark.parametrize("at", [0.0, 0.8, -1.2])
def test_a_classification_whose_inputs_moved_is_estimated_as_it_is(at: float) -> None:
    labels, answers = classified(20_000, at)
    estimated = CLASSES.estimate(answers, {})
    says_yes = answers >= 0.5
    true = {
        "roc_auc": roc_auc_score(labels, answers),
        "accuracy": accuracy_score(labels, says_yes),
        "f1": f1_score(labels, says_yes),
        "log_loss": log_loss(labels, answers),
    }
    for metric, value in true.items():
        assert estimated[metric] == pytest.approx(value, abs=0.02), metric


def test_estimates_are_the_mean_of_what_the_chances_would_come_to() -> None:
    chances, answers = RANDOM.random(400), np.sort(RANDOM.random(400))[::-1]
    known = Expected("classification", "roc_auc", {}, {}, None, 0.5)
    estimated = performance._by_chance(chances, answers, 0.5)
    drawn = [known.measure((RANDOM.random(400) < chances).astype(float), answers) for _ in range(2_000)]
    for metric in ("accuracy", "brier", "roc_auc", "average_precision", "f1"):
        assert estimated[metric] == pytest.approx(np.mean([each[metric] for each in drawn]), abs=0.006), (
            metric
        )


@pytest.mark.parametrize("at", [0.0, 0.5])
def test_a_regression_whose_inputs_moved_is_estimated_as_it_is(at: float) -> None:
    true, said, matrix = regressed(10_000, at)
    inside = matrix[:, 0] <= 2.0
    true, said, matrix = true[inside], said[inside], matrix[inside]
    estimated = NUMBERS.estimate(said, errors_of(matrix, said))
    assert estimated["mae"] == pytest.approx(np.abs(true - said).mean(), rel=0.05)


def test_the_reference_is_estimated_by_models_that_have_not_seen_it() -> None:
    assert NUMBERS.estimated["mae"].value == pytest.approx(NUMBERS.measured["mae"].value, rel=0.02)
    assert CLASSES.estimated["roc_auc"].value == pytest.approx(CLASSES.measured["roc_auc"].value, abs=0.005)


def test_what_the_same_inputs_mean_now_is_seen_by_labels_alone() -> None:
    labels, answers = classified(2_000, flip=0.2)
    estimated, measured = CLASSES.estimate(answers, {}), CLASSES.measure(labels, answers)
    assert performance.findings(CLASSES, "estimated", estimated, 2_000)[0].p > 0.001
    (found,) = performance.findings(CLASSES, "realised", measured, 2_000)
    assert (found.about, found.kind, found.matters) == ("realised roc_auc", "performance", True)
    assert found.p < 1e-6
    assert "2,000 rows" in found.evidence


@pytest.mark.parametrize("rows", [100, 1_000])
def test_quiet_windows_are_called_worse_as_often_as_said(rows: int) -> None:
    called = {0.01: 0, 0.1: 0}
    for _ in range(1_000):
        measured = CLASSES.measure(*classified(rows))
        (found,) = performance.findings(CLASSES, "realised", measured, rows)
        for level in called:
            called[level] += found.p <= level
    assert called[0.1] <= 150
    assert called[0.01] <= 30


def test_a_single_bad_window_of_a_regression_is_found() -> None:
    true, said, matrix = regressed(500, noise=1.5)
    (found,) = performance.findings(NUMBERS, "realised", NUMBERS.measure(true, said), 500)
    assert found.p < 1e-6
    assert found.matters
    estimated = NUMBERS.estimate(said, errors_of(matrix, said))
    assert performance.findings(NUMBERS, "estimated", estimated, 500)[0].p > 0.001


def test_what_too_few_blocks_say_calls_nothing() -> None:
    known, _ = performance.expect("regression", "mae", TRUE, SAID, np.zeros(20_000, np.int64), matrix=MATRIX)
    for told in (known, Expected.from_json(orjson.loads(orjson.dumps(known.to_json())))):
        assert performance.findings(told, "realised", {"mae": 100.0}, 500)[0].p == 1.0


def test_a_day_is_one_day_however_many_rows_it_has() -> None:
    """Errors of one day have something in common; a window of one day varies as days do."""
    called = 0
    for _ in range(200):
        days = np.repeat(RANDOM.normal(0, 1, 30), 168)
        errors = np.exp(0.3 * days) * RANDOM.normal(0, 1, len(days))
        known, _ = performance.expect(
            "regression", "mae", errors, np.zeros(len(days)), np.arange(len(days)) // 168
        )
        window = np.exp(0.3 * RANDOM.normal()) * RANDOM.normal(0, 1, 5_000)
        (found,) = performance.findings(known, "realised", known.measure(window, np.zeros(5_000)), 5_000)
        called += found.p <= 0.01
    assert called <= 10


def test_labels_of_one_class_tell_what_they_tell_and_no_more() -> None:
    measured = CLASSES.measure(np.ones(5), np.linspace(0.2, 0.9, 5))
    assert "roc_auc" not in measured
    assert "accuracy" in measured
    assert performance.findings(CLASSES, "realised", measured, 5) == []


def test_what_is_beyond_all_measure_is_still_a_number() -> None:
    (found,) = performance.findings(NUMBERS, "realised", {"mae": 1e300}, 1)
    assert orjson.loads(orjson.dumps(found.harm)) == figures.MOST_HARM


def test_what_is_known_travels_as_json() -> None:
    for known in (CLASSES, NUMBERS):
        assert Expected.from_json(json.loads(json.dumps(known.to_json()))) == known
    assert NO_MODELS == {}


def test_a_column_weighs_what_the_model_makes_of_it() -> None:
    of = Expected("regression", "mae", {}, {}, importance={"a": 3.0, "b": 1.0, "c": -0.5, "d": 0.0})
    assert [of.weight(name) for name in ("a", "b", "c", "unknown")] == [3.0, 1.0, 0.0, 1.0]
    assert Expected.from_json(of.to_json()).importance == of.importance
    assert Expected("regression", "mae", {}, {}).weight("a") == 1.0
