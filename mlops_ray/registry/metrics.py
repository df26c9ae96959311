"""How good answers are, as numbers. Rows can be weighted, which is how confidence intervals are made.

A classification's predictions are probabilities of the positive class, its labels 0 and 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from mlops_ray.errors import TrainingError, did_you_mean
from mlops_ray.registry.models import Values
from mlops_ray.registry.outcome import TaskKind

#: Metrics of decisions, which take a threshold: it is chosen after the search.
DECISIONS = ("accuracy", "precision", "recall", "f1")

#: Labels, predictions and the rows' weights to a number; NaN where the rows do not say.
Function = Callable[[Values, Values, Values], float]


@dataclass(frozen=True)
class Metric:
    """A metric by the name that the project file calls it.

    `about` says what it tells, for people; `better` which way is better.
    """

    name: str
    task: TaskKind
    better: Literal["lower", "higher"]
    about: str
    function: Function

    def __call__(self, labels: Values, predictions: Values, weights: Values | None = None) -> float:
        """The metric over all rows; without weights all count alike. NaN where the rows do not say."""
        return self.function(labels, predictions, np.ones(len(labels)) if weights is None else weights)

    @property
    def mode(self) -> Literal["min", "max"]:
        """What a search does with it."""
        return "min" if self.better == "lower" else "max"

    def loss(self, value: float) -> float:
        """The value turned so that smaller is better."""
        return value if self.better == "lower" else -value

    def is_better(self, value: float, than: float, by: float = 0.0) -> bool:
        """Whether a value is better than another by at least this share of it; false where one is NaN.

        Where higher is better, the share is of what is missing to 1.

        >>> find("mae", "regression").is_better(0.97, than=1.0, by=0.02)
        True
        >>> find("roc_auc", "classification").is_better(0.91, than=0.9, by=0.2)
        False
        """
        if self.better == "lower":
            return value <= than * (1 - by)
        return value >= than + (1 - than) * by


def average(values: Values, weights: Values) -> float:
    """The weighted mean; NaN where nothing weighs."""
    total = weights.sum()
    return float((values * weights).sum() / total) if total else float("nan")


def mae(labels: Values, predictions: Values, weights: Values) -> float:
    """The mean absolute error, in the label's unit.

    >>> mae(np.array([1.0, 3.0]), np.array([2.0, 3.0]), np.ones(2))
    0.5
    """
    return average(np.abs(predictions - labels), weights)


def rmse(labels: Values, predictions: Values, weights: Values) -> float:
    """The root of the mean squared error, in the label's unit.

    >>> rmse(np.array([1.0, 3.0]), np.array([2.0, 4.0]), np.ones(2))
    1.0
    """
    return float(np.sqrt(average(np.square(predictions - labels), weights)))


def relative_mae(labels: Values, predictions: Values, weights: Values) -> float:
    """The mean absolute error over the mean absolute label; NaN where all labels are 0.

    >>> relative_mae(np.array([1.0, 3.0]), np.array([2.0, 3.0]), np.ones(2))
    0.25
    """
    mean = average(np.abs(labels), weights)
    return mae(labels, predictions, weights) / mean if mean else float("nan")


def log_loss(labels: Values, predictions: Values, weights: Values) -> float:
    """Minus the mean logarithm of the probability given to what happened, at most that of 1e-12.

    >>> round(log_loss(np.array([1.0, 0.0]), np.array([0.5, 0.5]), np.ones(2)), 4)
    0.6931
    """
    given = np.where(labels > 0, predictions, 1 - predictions)
    return average(-np.log(np.clip(given, 1e-12, 1.0)), weights)


def brier(labels: Values, predictions: Values, weights: Values) -> float:
    """The mean squared difference of probability and outcome.

    >>> brier(np.array([1.0, 0.0]), np.array([1.0, 0.5]), np.ones(2))
    0.125
    """
    return average(np.square(predictions - labels), weights)


def roc_auc(labels: Values, predictions: Values, weights: Values) -> float:
    """The share of pairs of a positive and a negative that are in order, ties counting half.

    >>> roc_auc(np.array([0.0, 1.0, 1.0]), np.array([0.2, 0.2, 0.9]), np.ones(3))
    0.75
    """
    positive, negative = _by_score(labels, predictions, weights)
    above = np.cumsum(positive) - positive / 2
    pairs = positive.sum() * negative.sum()
    return float((negative * above).sum() / pairs) if pairs else float("nan")


def average_precision(labels: Values, predictions: Values, weights: Values) -> float:
    """The precision at every threshold, weighted by the recall that it adds.

    Without interpolation, as scikit-learn's `average_precision_score`.

    >>> round(average_precision(np.array([0.0, 1.0, 1.0]), np.array([0.8, 0.2, 0.9]), np.ones(3)), 4)
    0.8333
    """
    positive, negative = _by_score(labels, predictions, weights)
    found = np.cumsum(positive)
    if not positive.sum():
        return float("nan")
    precision = found / np.maximum(found + np.cumsum(negative), np.finfo(float).tiny)
    return float((precision * positive).sum() / positive.sum())


def _by_score(labels: Values, predictions: Values, weights: Values) -> tuple[Values, Values]:
    """The weight of the positives and of the negatives at each distinct prediction, the highest first."""
    order = np.argsort(-predictions, kind="stable")
    ordered = predictions[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=np.inf)) if len(ordered) else np.zeros(0, np.int64)
    is_positive, mass = labels[order] > 0, weights[order]
    sums = [np.add.reduceat(np.where(side, mass, 0.0), starts) for side in (is_positive, ~is_positive)]
    return sums[0], sums[1]


def calibration_error(labels: Values, predictions: Values, weights: Values) -> float:
    """How far probabilities are from how often it happens: the mean over ten bins of equally many rows.

    Expected calibration error with bins of equal mass (Nixon et al., "Measuring Calibration in Deep
    Learning", 2019).

    >>> calibration_error(np.array([1.0, 0.0]), np.array([0.5, 0.5]), np.ones(2))
    0.0
    """
    order = np.argsort(predictions, kind="stable")
    mass = weights[order]
    reached = np.cumsum(mass)
    if not mass.sum():
        return float("nan")
    # Rows of one probability stay in one bin.
    ordered = predictions[order]
    first = np.searchsorted(ordered, ordered, side="left")
    bins = np.minimum((10 * (reached[first] - mass[first]) / reached[-1]).astype(np.int64), 9)
    gaps = np.bincount(bins, mass * (labels[order] - ordered), minlength=10)
    return float(np.abs(gaps).sum() / mass.sum())


def decided(labels: Values, says_yes: npt.NDArray[np.bool_], weights: Values) -> dict[str, float]:
    """What comes of decisions (`DECISIONS`); NaN where nothing was to be found or said.

    >>> decided(np.array([1.0, 0.0]), np.array([True, True]), np.ones(2))["precision"]
    0.5
    """
    positive = labels > 0
    both, said, real = (weights[rows].sum() for rows in (positive & says_yes, says_yes, positive))
    return {
        "accuracy": average((positive == says_yes).astype(np.float64), weights),
        "precision": _share(both, said),
        "recall": _share(both, real),
        "f1": _share(2 * both, said + real),
    }


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


_ALL = (
    Metric("mae", "regression", "lower", "the mean absolute error, in the label's unit", mae),
    Metric("rmse", "regression", "lower", "the root of the mean squared error: large ones count more", rmse),
    Metric("relative_mae", "regression", "lower", "the mean absolute error by the mean label", relative_mae),
    Metric(
        "average_precision",
        "classification",
        "higher",
        "the precision over all thresholds; a model that knows nothing has the share of the positive class, "
        "so that it tells something where that is rare",
        average_precision,
    ),
    Metric("roc_auc", "classification", "higher", "the share of pairs in order; 0.5 knows nothing", roc_auc),
    Metric("log_loss", "classification", "lower", "how surprising what happened was, in nats", log_loss),
    Metric("brier", "classification", "lower", "the mean squared error of the probabilities", brier),
    Metric(
        "calibration_error",
        "classification",
        "lower",
        "how far probabilities are from how often it happens",
        calibration_error,
    ),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}


def find(name: str, task: TaskKind) -> Metric:
    """The metric of this name; raises `TrainingError` where a task has none such.

    >>> find("rsme", "regression")
    Traceback (most recent call last):
    mlops_ray.errors.TrainingError: there is no metric 'rsme' for a regression; did you mean 'rmse'?
    """
    known = {metric.name: metric for metric in _ALL if metric.task == task}
    if task == "classification" and name in DECISIONS:
        raise TrainingError(
            f"{name} takes a threshold, which is chosen after the search: let another metric decide, such as "
            f"average_precision, and name {name} in training.metrics"
        )
    if name not in known:
        raise TrainingError(f"there is no metric {name!r} for a {task}{did_you_mean(name, known)}")
    return known[name]


def names(task: TaskKind) -> list[str]:
    """The metrics that can decide for a task.

    >>> names("regression")
    ['mae', 'rmse', 'relative_mae']
    """
    return [metric.name for metric in _ALL if metric.task == task]


def score_all(
    task: TaskKind, labels: Values, predictions: Values, weights: Values | None = None
) -> dict[str, float]:
    """Every metric of a task by its name."""
    return {name: METRICS[name](labels, predictions, weights) for name in names(task)}
