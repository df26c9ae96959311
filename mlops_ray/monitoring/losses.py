"""What of a loss that has grown is what: other inputs, other labels, or another relation of the two.

The loss is a mean of the rows'. Labels stand in bins: two classes, or equally many rows of the reference
each. With the reference's loss by bin, and with what answers say of the bin that a row's label is in, the
whole rise is the sum of three parts, with nothing over (`split`):

- inputs: what the estimate, which sees inputs alone, has risen by, less what moved labels make of it;
- labels: their shares moved where the same label still comes with the same inputs (label shift), times the
  loss of each bin;
- what is left: the same inputs come with other labels (concept drift).

Labels also move because inputs have, and inputs because labels have; nothing of it may count twice. The
shares of labels moved by d. As far as inputs moved them (covariate shift), answers say so: the shares that
they expect move by d too. As far as labels moved by themselves, answers follow by K d only, where K says what
the reference's answers expect of rows of each label: the equation by which Lipton, Wang and Smola tell a
label shift ("Detecting and Correcting for Label Shift with Black Box Predictors", 2018). Where another
relation moved them, answers do not follow. What answers do follow by, t d along d, lies between: from t = 1
(inputs) over t = k, k d being K d along d (labels), down to t = 0 (the relation). Between two of these the
part of a label shift, w, is what mixes them: min((1 - t) / (1 - k), t / k), within 0 and 1. A model whose
answers say hardly anything of labels (k near 0) cannot tell a label shift from another relation, one that is
hardly ever wrong (k near 1) not from moved inputs.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from mlops_ray.registry.models import Values

#: Bins of equally many labels; of answers more, so that within one hardly anything moves.
LABEL_BINS, ANSWER_BINS = 10, 40
#: Fewer rows fill no bins.
LEAST_ROWS = 200
#: How near the answers to a label's rows may come to knowing nothing of it, and all.
LEAST_KNOWN, MOST_KNOWN = 1e-6, 1 - 1e-6

Pair = Callable[[Values, Values], Values]


def _surprise(labels: Values, answers: Values) -> Values:
    surprise: Values = -np.log(np.clip(np.where(labels > 0, answers, 1 - answers), 1e-12, 1.0))
    return surprise


def _square(labels: Values, answers: Values) -> Values:
    return np.square(labels - answers)


def _distance(labels: Values, answers: Values) -> Values:
    return np.abs(labels - answers)


#: The loss of each row, by the metric that is its mean (of "rmse" the root of it).
OF_ROW: dict[str, Pair] = {"mae": _distance, "rmse": _square, "log_loss": _surprise, "brier": _square}
#: The loss that is split where a metric that decides is no mean of rows.
INSTEAD = {
    "relative_mae": "mae",
    "roc_auc": "brier",
    "average_precision": "brier",
    "calibration_error": "brier",
}
#: What a loss is called where it is not the metric that decides.
NAMES = {"mae": "the mean absolute error", "brier": "the Brier score"}


@dataclass(frozen=True)
class Losses:
    """The reference by the bins of its labels: their `shares`, the mean `realised` and `estimated` loss.

    `edges` are the ends between bins of labels. `shown` are, for each bin, the shares of bins that answers
    expect of its rows. Of a regression `said` are the ends between bins of answers, `meant` the shares of
    labels in each.
    """

    loss: str
    edges: tuple[float, ...]
    shares: tuple[float, ...]
    realised: tuple[float, ...]
    estimated: tuple[float, ...]
    shown: tuple[tuple[float, ...], ...]
    said: tuple[float, ...] = ()
    meant: tuple[tuple[float, ...], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        tables = {"shown", "meant"}
        read = {name: tuple(map(tuple, data[name]) if name in tables else data[name]) for name in data}
        return cls(**read | {"loss": data["loss"]})


class Split(NamedTuple):
    """A loss before and now, and what of the rise is by moved inputs, by other labels, and what is left."""

    loss: str
    before: float
    now: float
    inputs: float
    labels: float
    rest: float

    def sentence(self, decides: str) -> str:
        """What it says, to follow what is said of the metric that decides.

        >>> Split("mae", 1.0, 1.2, 0.01, 0.02, 0.17).sentence("mae")
        'of the rise of 0.2, 0.01 by moved inputs, 0.02 by other labels, 0.17 by another relation of the two:
        concept drift'
        """
        of = "" if self.loss == decides else f"{NAMES[self.loss]} by "
        parts = [f"{each:.2g}" for each in (self.now - self.before, self.inputs, self.labels, self.rest)]
        return (
            f"of the rise of {of}{parts[0]}, {parts[1]} by moved inputs, {parts[2]} by other labels, "
            f"{parts[3]} by another relation of the two: concept drift"
        )


def learn(
    decides: str, labels: Values, answers: Values, chances: Values | None, errors: Mapping[str, Values]
) -> Losses | None:
    """What the reference says; `None` where it has too few rows, or no estimate of its loss.

    `chances` are how likely a classification's rows are a yes; `errors` what is expected of a regression's
    loss, row by row, by metric.
    """
    name = INSTEAD.get(decides, decides)
    estimated = expected(name, answers, chances, errors)
    if estimated is None or len(labels) < LEAST_ROWS:
        return None
    edges = _ends(labels, LABEL_BINS) if chances is None else np.array([0.5])
    bins, count = np.searchsorted(edges, labels), len(edges) + 1
    said, meant = _meant(answers, bins, count) if chances is None else (np.array([]), np.zeros((0, count)))
    shares = np.bincount(bins, minlength=count) / len(bins)
    if shares.min() <= 0:
        return None
    tables = [_means(each, bins, count) for each in (OF_ROW[name](labels, answers), estimated)]
    told = _shares(answers, chances, said, meant)
    shown = np.column_stack([_means(each, bins, count) for each in told.T])
    return Losses(
        loss=name,
        edges=_tuple(edges),
        shares=_tuple(shares),
        realised=_tuple(tables[0]),
        estimated=_tuple(tables[1]),
        shown=_table(shown),
        said=_tuple(said),
        meant=_table(meant),
    )


def expected(
    name: str, answers: Values, chances: Values | None, errors: Mapping[str, Values]
) -> Values | None:
    """The loss that is expected of each row, without its label; `None` of what is no mean of rows.

    >>> expected("brier", np.array([0.5]), np.array([0.8]), {}).tolist()
    [0.25]
    """
    if chances is None or name not in OF_ROW:
        return errors.get(name)
    ones = np.ones(len(answers))
    both: Values = chances * OF_ROW[name](ones, answers) + (1 - chances) * OF_ROW[name](0 * ones, answers)
    return both


def split(before: Losses, labels: Values, answers: Values, chances: Values | None, estimate: float) -> Split:
    """What of the loss of labelled rows, less the reference's, is what; the parts add up to the whole.

    `estimate` is the metric that was expected of these rows (of "rmse" the root, too).
    """
    is_root = before.loss == "rmse"
    shares, realised, estimated = (
        np.array(each) for each in (before.shares, before.realised, before.estimated)
    )
    now, was = float(OF_ROW[before.loss](labels, answers).mean()), float(shares @ realised)
    rise = (estimate**2 if is_root else estimate) - float(shares @ estimated)
    moved, part = _moved(before, labels, answers, chances)
    by_labels = part * float(moved @ realised)
    by_inputs = rise - part * float(moved @ estimated)
    parts = np.array([by_inputs, by_labels, now - was - by_inputs - by_labels])
    if is_root:
        # a² - b² is a - b, times their sum: what adds up to the one adds up to the other.
        was, now = was**0.5, now**0.5
        parts = parts / max(was + now, 1e-300)
    return Split(before.loss, was, now, *parts.tolist())


def _moved(before: Losses, labels: Values, answers: Values, chances: Values | None) -> tuple[Values, float]:
    """By how much the shares of labels have moved, and what part of it is a label shift."""
    shares, shown = np.array(before.shares), np.array(before.shown)
    bins = np.searchsorted(np.array(before.edges), labels)
    moved = np.bincount(bins, minlength=len(shares)) / len(bins) - shares
    # By the variance of a share: common and rare labels weigh alike.
    along = moved / shares
    length = float(along @ moved)
    if length <= 0:
        return moved, 0.0
    told = _shares(answers, chances, np.array(before.said), np.array(before.meant)).mean(axis=0)
    follows = float(along @ (told - shares @ shown)) / length
    known = min(MOST_KNOWN, max(LEAST_KNOWN, float(along @ (moved @ shown)) / length))
    return moved, max(0.0, min(1.0, (1 - follows) / (1 - known), follows / known))


def _shares(answers: Values, chances: Values | None, said: Values, meant: Values) -> npt.NDArray[np.float64]:
    """The shares of bins of labels that are expected of each row."""
    if chances is not None:
        return np.column_stack([1 - chances, chances])
    expected: npt.NDArray[np.float64] = meant[np.searchsorted(said, answers)]
    return expected


def _meant(answers: Values, bins: npt.NDArray[np.int64], count: int) -> tuple[Values, Values]:
    """The ends between bins of answers, and the shares of the bins of labels in each."""
    ends = _ends(answers, ANSWER_BINS)
    at = np.searchsorted(ends, answers)
    table = np.zeros((len(ends) + 1, count))
    np.add.at(table, (at, bins), 1.0)
    return ends, table / np.maximum(table.sum(axis=1, keepdims=True), 1.0)


def _ends(values: Values, count: int) -> Values:
    """Values between bins of equally many; each bin holds its upper end, and none is empty."""
    inner = np.quantile(values, np.arange(1, count) / count, method="inverted_cdf")
    ends: Values = np.unique(inner[inner < values.max()])
    return ends


def _means(values: Values, bins: npt.NDArray[np.int64], count: int) -> Values:
    means: Values = np.bincount(bins, values, minlength=count) / np.bincount(bins, minlength=count)
    return means


def _tuple(values: Values) -> tuple[float, ...]:
    return tuple(values.tolist())


def _table(values: Values) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, values.tolist()))
