"""What is wrong with predictions, as one number; smaller is better."""

from collections.abc import Callable

import numpy as np

from mlops_ray.errors import TrainingError, did_you_mean
from mlops_ray.registry.models import Values

Metric = Callable[[Values, Values], float]


def mae(labels: Values, predictions: Values) -> float:
    """The mean absolute error, in the label's unit.

    >>> mae(np.array([1.0, 3.0]), np.array([2.0, 3.0]))
    0.5
    """
    return float(np.abs(predictions - labels).mean())


def rmse(labels: Values, predictions: Values) -> float:
    """The root of the mean squared error, in the label's unit.

    >>> rmse(np.array([1.0, 3.0]), np.array([2.0, 4.0]))
    1.0
    """
    return float(np.sqrt(np.square(predictions - labels).mean()))


def relative_mae(labels: Values, predictions: Values) -> float:
    """The mean absolute error over the mean absolute label; NaN where all labels are 0.

    >>> relative_mae(np.array([1.0, 3.0]), np.array([2.0, 3.0]))
    0.25
    """
    mean = float(np.abs(labels).mean())
    return mae(labels, predictions) / mean if mean else float("nan")


REGRESSION: dict[str, Metric] = {"mae": mae, "rmse": rmse, "relative_mae": relative_mae}


def find(name: str) -> Metric:
    """The metric of this name; raises `TrainingError` where there is none.

    >>> find("rsme")
    Traceback (most recent call last):
    mlops_ray.errors.TrainingError: there is no metric 'rsme' for a regression; did you mean 'rmse'?
    """
    if name not in REGRESSION:
        raise TrainingError(f"there is no metric {name!r} for a regression{did_you_mean(name, REGRESSION)}")
    return REGRESSION[name]


def clipped(predictions: Values, clip: tuple[float | None, float | None]) -> Values:
    """Predictions as they would be answered: between the bounds that are given.

    >>> clipped(np.array([-1.0, 2.0]), (0.0, None)).tolist()
    [0.0, 2.0]
    """
    return predictions if clip == (None, None) else np.clip(predictions, *clip)


def score_all(labels: Values, predictions: Values) -> dict[str, float]:
    """Every metric by its name."""
    return {name: metric(labels, predictions) for name, metric in REGRESSION.items()}
