"""What probabilities mean, and from which on the answer is yes: both learned on validation rows alone.

Validation rows were predicted by models that had not seen them, fold by fold, so that what holds in every
fold can be told from what holds on average.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlops_ray.config import Threshold, ThresholdFor
from mlops_ray.registry import metrics
from mlops_ray.registry.models import Values
from mlops_ray.registry.outcome import Calibrator
from mlops_ray.registry.probability import probability
from mlops_ray.training.families import Sample

#: Logits at which Platt's curve is kept, as a line between points: its error is below 0.1 % of a probability.
LOGITS = np.linspace(-16.0, 16.0, 513)
#: Probabilities this near 0 and 1 have no larger logit.
NEAREST = 1e-7
#: A more flexible calibration must lower the log loss by this share of it.
WORTH = 0.001
#: Thresholds that are tried: so many quantiles of the predictions.
TRIED = 2000


@dataclass(frozen=True)
class Predicted:
    """A fold's validation rows: 0 and 1, and the probabilities of a model that has not seen them."""

    labels: Values
    probabilities: Values


def calibrate(folds: Sequence[Predicted]) -> Calibrator | None:
    """How the probabilities are to be read; `None` where they are best left alone.

    Platt's sigmoid and isotonic regression are each learned on all folds but one and judged on that one by
    the log loss, fold by fold; the winner is then learned on all (Niculescu-Mizil and Caruana, "Predicting
    good probabilities with supervised learning", 2005). A single fold is cut in two.
    """
    parts = list(folds) if len(folds) > 1 else _halves(folds[0])
    best, made = _judged(parts, lambda rows: None), None
    for fit in (_platt, _isotonic):
        loss = _judged(parts, fit)
        if loss < best * (1 - WORTH):
            best, made = loss, fit
    return made(_joined(folds)) if made else None


def _halves(fold: Predicted) -> list[Predicted]:
    """Every other row each."""
    return [Predicted(fold.labels[at::2], fold.probabilities[at::2]) for at in (0, 1)]


def _joined(folds: Sequence[Predicted]) -> Predicted:
    return Predicted(
        np.concatenate([fold.labels for fold in folds]),
        np.concatenate([fold.probabilities for fold in folds]),
    )


def _judged(parts: Sequence[Predicted], fit: Callable[[Predicted], Calibrator | None]) -> float:
    """The log loss over all rows, each calibrated by what was learned without its part."""
    losses, rows = 0.0, 0
    for at, part in enumerate(parts):
        learned = fit(_joined([other for place, other in enumerate(parts) if place != at]))
        meant = learned(part.probabilities) if learned else part.probabilities
        losses += len(part.labels) * metrics.METRICS["log_loss"](part.labels, meant)
        rows += len(part.labels)
    return losses / rows


def _platt(rows: Predicted) -> Calibrator | None:
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(rows.labels)) < 2:
        return None
    clipped = np.clip(rows.probabilities, NEAREST, 1 - NEAREST)
    learned = LogisticRegression(C=np.inf).fit(np.log(clipped / (1 - clipped))[:, None], rows.labels)
    slope, offset = float(learned.coef_.item()), float(learned.intercept_.item())
    if slope <= 0:
        return None
    return _line(probability(LOGITS), probability(slope * LOGITS + offset))


def _isotonic(rows: Predicted) -> Calibrator | None:
    from sklearn.isotonic import IsotonicRegression

    learned = IsotonicRegression(y_min=0.0, y_max=1.0).fit(rows.probabilities, rows.labels)
    said, meant = learned.X_thresholds_, learned.y_thresholds_
    return _line(said, meant) if len(said) > 1 else None


def _line(said: Values, meant: Values) -> Calibrator:
    return Calibrator(tuple(said.tolist()), tuple(np.maximum.accumulate(meant).tolist()))


def unweighted(probabilities: Values, sample: Sample) -> Values:
    """The probabilities of a model as if its rows had not been weighted by class.

    Weights multiply the odds by their ratio (Elkan, "The foundations of cost-sensitive learning", 2001): this
    makes models that were fitted with them comparable before they are calibrated.
    """
    if sample.weights is None:
        return probabilities
    positive = sample.y > 0
    if positive.all() or not positive.any():
        return probabilities
    ratio = float(sample.weights[positive].mean() / sample.weights[~positive].mean())
    return probabilities / (probabilities + ratio * (1 - probabilities))


# ---------------------------------------------------------------- threshold


@dataclass(frozen=True)
class Chosen:
    """A threshold, and in a sentence what it does not reach on validation; empty where it reaches all."""

    value: float
    missed: str = ""


def threshold(how: Threshold | None, folds: Sequence[Predicted]) -> Chosen:
    """From which calibrated probability on the answer is yes.

    For f1, accuracy and costs the best over all validation rows. A recall must be reached in every fold, by
    the highest threshold that does; a precision likewise, by the lowest. Without a wish it is 0.5.
    """
    if how is None:
        return Chosen(0.5)
    rows = _joined(folds)
    tried = np.unique(np.quantile(rows.probabilities, np.linspace(0, 1, TRIED), method="nearest"))
    counts = [_Counts.of(fold, tried) for fold in folds]
    wish = how.for_
    if isinstance(wish, ThresholdFor) and wish.recall is not None:
        worst = np.min([one.recall for one in counts], axis=0)
        return _reaching(tried, worst, wish.recall, "recall", highest=True)
    if isinstance(wish, ThresholdFor) and wish.precision is not None:
        worst = np.min([one.precision for one in counts], axis=0)
        return _reaching(tried, worst, wish.precision, "precision", highest=False)
    # Above the highest probability the answer is always no.
    tried = np.append(tried, np.nextafter(tried[-1], np.inf))
    whole = _Counts.of(rows, tried)
    if isinstance(wish, ThresholdFor):
        return Chosen(float(tried[np.argmin(whole.cost(wish.cost or ()))]))
    return Chosen(float(tried[np.argmax(whole.f1 if wish == "f1" else whole.accuracy)]))


def _reaching(tried: Values, worst: Values, wanted: float, name: str, *, highest: bool) -> Chosen:
    reached = np.flatnonzero(worst >= wanted)
    if len(reached):
        return Chosen(float(tried[reached[-1 if highest else 0]]))
    at = int(np.argmax(worst))
    return Chosen(
        float(tried[at]),
        f"no threshold reaches the {name} {wanted:g} in every fold of the validation; "
        f"the best has {worst[at]:.3g} in its worst fold",
    )


@dataclass(frozen=True)
class _Counts:
    """At each threshold: rows that are and count as positive, that count as such, that are; and all rows."""

    both: Values
    said: Values
    real: float
    rows: int

    @classmethod
    def of(cls, fold: Predicted, tried: Values) -> "_Counts":
        order = np.argsort(fold.probabilities, kind="stable")
        below = np.searchsorted(fold.probabilities[order], tried, side="left")
        positives = np.concatenate([[0.0], np.cumsum(fold.labels[order])])
        return cls(
            positives[-1] - positives[below],
            (len(order) - below).astype(np.float64),
            float(positives[-1]),
            len(order),
        )

    @property
    def recall(self) -> Values:
        return self.both / max(self.real, 1.0)

    @property
    def precision(self) -> Values:
        return self.both / np.maximum(self.said, 1.0)

    @property
    def f1(self) -> Values:
        return 2 * self.both / np.maximum(self.said + self.real, 1.0)

    @property
    def accuracy(self) -> Values:
        return (self.rows - self.said - self.real + 2 * self.both) / self.rows

    def cost(self, matrix: Sequence[Sequence[float]]) -> Values:
        """The mean cost of an answer, by what is (rows) and what was said (columns), no before yes."""
        (quiet, alarm), (miss, hit) = matrix
        wrong = self.said - self.both
        right = self.rows - self.real - wrong
        return (right * quiet + wrong * alarm + (self.real - self.both) * miss + self.both * hit) / self.rows


Decisions = npt.NDArray[np.bool_]


def cost(matrix: Sequence[Sequence[float]], labels: Values, yes: Decisions, weights: Values) -> float:
    """The mean cost of decisions, by what is (rows) and what was said (columns), no before yes.

    >>> cost([[0, 1], [10, 0]], np.array([1.0, 0.0]), np.array([False, True]), np.ones(2))
    5.5
    """
    each = np.array(matrix, np.float64)[(labels > 0).astype(np.int64), yes.astype(np.int64)]
    return metrics.average(each, weights)
