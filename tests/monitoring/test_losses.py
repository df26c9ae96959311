"""What of a loss that has grown is what: moved inputs, moved labels, another relation; in all, the whole."""

import json

import numpy as np
import pytest
from scipy.special import expit

from mlops_ray.monitoring import losses, performance
from mlops_ray.monitoring.losses import Losses, Split
from mlops_ray.monitoring.performance import Expected

RANDOM = np.random.default_rng(21)
ROWS = 20_000

Rows = tuple[np.ndarray, np.ndarray]


def classified(rows: int, at: float = -1.0) -> Rows:
    """Labels and answers of a model that is right as often as it says, with a rare yes."""
    x = RANDOM.normal(at, 1.0, rows)
    return (RANDOM.random(rows) < expit(1.5 * x)).astype(float), expit(1.5 * x)


def regressed(rows: int, at: float = 0.0) -> Rows:
    """Labels and answers; noise and errors grow with the answer, and it knows half of a label."""
    x = RANDOM.uniform(at, at + 4, rows)
    return x + RANDOM.normal(0, 0.3 + 0.3 * x, rows), x


def errors_of(answers: np.ndarray) -> dict[str, np.ndarray]:
    """What a model of errors that knows all would say."""
    spread = 0.3 + 0.3 * answers
    return {"mae": spread * np.sqrt(2 / np.pi), "rmse": spread**2}


def class_reference(decides: str) -> Expected:
    labels, answers = classified(3 * ROWS)
    known = performance.calibrator(answers, labels)
    own = losses.learn(decides, labels, answers, known(answers), {})
    return Expected("classification", decides, {}, {}, known, 0.5, losses=own)


def number_reference(decides: str) -> Expected:
    labels, answers = regressed(3 * ROWS)
    own = losses.learn(decides, labels, answers, None, errors_of(answers))
    return Expected("regression", decides, {}, {}, losses=own)


REFERENCES = {name: class_reference(name) for name in ("log_loss", "brier", "roc_auc")} | {
    name: number_reference(name) for name in ("mae", "rmse", "relative_mae")
}
CASES = list(REFERENCES)


def split(of: Expected, labels: np.ndarray, answers: np.ndarray) -> Split:
    errors = {} if of.task == "classification" else errors_of(answers)
    found = of.split(labels, answers, of.estimate(answers, errors))
    parts = found.inputs + found.labels + found.rest
    assert parts == pytest.approx(found.now - found.before, abs=1e-12)
    return found


def rows_of(of: Expected, rows: int = ROWS, moved: bool = False) -> Rows:
    if of.task == "classification":
        return classified(rows, -0.2 if moved else -1.0)
    return regressed(rows, 0.8 if moved else 0.0)


@pytest.mark.parametrize("decides", CASES)
def test_moved_inputs_alone_are_called_moved_inputs(decides: str) -> None:
    of = REFERENCES[decides]
    labels, answers = rows_of(of, moved=True)
    if of.task == "regression":
        # Where the reference has been: a model of errors knows nothing of other places.
        inside = answers <= 4
        labels, answers = labels[inside], answers[inside]
    found = split(of, labels, answers)
    whole = found.now - found.before
    assert found.inputs == pytest.approx(whole, abs=0.15 * whole)
    assert abs(found.labels) < 0.15 * whole
    assert abs(found.rest) < 0.15 * whole


@pytest.mark.parametrize("decides", CASES)
def test_other_shares_of_the_same_labels_are_called_labels(decides: str) -> None:
    of = REFERENCES[decides]
    labels, answers = rows_of(of, 6 * ROWS)
    # Large ones, and yes, come three times as often as they did.
    weights = np.where(labels > np.quantile(labels, 0.7), 3.0, 1.0)
    drawn = RANDOM.choice(len(labels), 3 * ROWS, p=weights / weights.sum())
    found = split(of, labels[drawn], answers[drawn])
    whole = found.now - found.before
    assert found.labels == pytest.approx(whole, abs=0.2 * whole)
    assert abs(found.inputs) < 0.15 * whole
    assert abs(found.rest) < 0.15 * whole


@pytest.mark.parametrize("decides", CASES)
def test_another_relation_of_inputs_and_labels_is_called_concept_drift(decides: str) -> None:
    """Also where more labels are large, or a yes, than were: no answer has followed."""
    of = REFERENCES[decides]
    labels, answers = rows_of(of)
    other = np.where(RANDOM.random(ROWS) < 0.2, 1 - labels, labels)
    found = split(of, other if of.task == "classification" else 1.5 * labels, answers)
    whole = found.now - found.before
    assert found.rest == pytest.approx(whole, abs=0.1 * whole)


def test_what_moved_with_a_relation_is_told_apart_from_it() -> None:
    of = REFERENCES["brier"]
    labels, answers = classified(ROWS, -0.2)
    moved = split(of, labels, answers)
    both = split(of, np.where(RANDOM.random(ROWS) < 0.1, 1 - labels, labels), answers)
    assert both.inputs == pytest.approx(moved.inputs, rel=0.05)
    assert both.rest == pytest.approx(both.now - moved.now, rel=0.2)


def test_the_parts_of_a_root_are_in_its_unit() -> None:
    of = REFERENCES["rmse"]
    labels, answers = regressed(ROWS)
    found = split(of, 1.5 * labels, answers)
    assert found.now == pytest.approx(np.sqrt(np.square(1.5 * labels - answers).mean()))
    assert found.before == pytest.approx(np.sqrt(np.mean((0.3 + 0.3 * answers) ** 2)), rel=0.03)


def test_a_metric_that_is_no_mean_of_rows_is_split_by_one_that_is_and_says_so() -> None:
    found = split(REFERENCES["roc_auc"], *classified(ROWS, -0.2))
    assert found.loss == "brier"
    assert found.sentence("roc_auc").startswith("of the rise of the Brier score by 0.0")
    assert split(REFERENCES["relative_mae"], *regressed(ROWS, 0.5)).loss == "mae"


def test_a_loss_that_has_not_grown_is_not_split() -> None:
    of = REFERENCES["mae"]
    labels, answers = regressed(ROWS)
    assert of.split(answers, answers, of.estimate(answers, errors_of(answers))) is None
    assert of.split(labels, answers, {}) is None
    assert of.split(np.array([]), np.array([]), {"mae": 1.0}) is None


def test_what_the_reference_does_not_say_splits_nothing() -> None:
    labels, answers = regressed(losses.LEAST_ROWS)
    assert losses.learn("mae", labels, answers, None, {}) is None
    assert losses.learn("mae", labels[1:], answers[1:], None, errors_of(answers[1:])) is None
    assert losses.learn("brier", np.ones(500), np.full(500, 0.5), np.full(500, 0.5), {}) is None


def test_labels_of_few_values_are_split_all_the_same() -> None:
    labels, answers = regressed(ROWS)
    own = losses.learn("mae", labels.round(), answers, None, errors_of(answers))
    assert len(own.edges) < losses.LABEL_BINS - 1
    assert sum(own.shares) == pytest.approx(1.0)
    found = losses.split(own, 2 * labels.round(), answers, None, errors_of(answers)["mae"].mean())
    assert found.rest > 0.8 * (found.now - found.before)


def test_one_label_never_seen_before_is_still_a_number() -> None:
    for decides, label in (("brier", 1.0), ("mae", 1e9)):
        of = REFERENCES[decides]
        answers = rows_of(of, 50)[1]
        found = split(of, np.full(50, label), answers)
        assert np.isfinite(found[1:]).all()


@pytest.mark.parametrize("decides", ["brier", "mae"])
def test_what_is_known_travels_as_json(decides: str) -> None:
    own = REFERENCES[decides].losses
    assert Losses.from_json(json.loads(json.dumps(own.to_json()))) == own
