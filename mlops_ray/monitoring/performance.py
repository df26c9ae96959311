"""How good a model is: estimated while there are no labels, measured when they have come.

A classification's quality is estimated from its own probabilities: once they are calibrated on rows that the
model did not learn from, each row counts as a yes with its probability and as a no with the rest, and every
metric follows (confidence-based performance estimation; Garg et al. 2022, arXiv:2201.04234, is its family). A
regression's is estimated by a model of its errors (direct loss estimation). Neither sees that what the same
features mean has changed; labels do.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from mlops_ray.monitoring import losses, segments
from mlops_ray.monitoring.alarms import Finding
from mlops_ray.monitoring.figures import Figure, finding, of_json
from mlops_ray.monitoring.losses import Losses, Split
from mlops_ray.monitoring.segments import Cut, Places, Score, Segment
from mlops_ray.registry import bootstrap, metrics
from mlops_ray.registry.bootstrap import Blocks
from mlops_ray.registry.models import Values
from mlops_ray.registry.outcome import Calibrator, TaskKind

#: Half the width of an interval that covers 95 %, in standard deviations.
HALF_WIDTH = 1.96
#: Rows of a window that are looked at, and of the reference that errors are learned from; evenly spread.
MOST_ROWS = 20_000
#: The model of errors: shallow, slow, the same every time.
ERRORS = {"max_depth": 4, "eta": 0.1, "min_child_weight": 20, "nthread": 1, "seed": 0}
ROUNDS = 60
#: Errors that are estimated are known from a model that has seen none of them.
FOLDS = 4
#: Of a regression the metrics that are a mean of something of each row.
OF_ROWS = {"mae": np.abs, "rmse": np.square}
#: Metrics of the order of rows say something of so many rows of either class, or such as are expected.
RANKS, LEAST_OF_A_CLASS = ("roc_auc", "average_precision"), 30
#: It is the larger the fewer rows there are, however good they are: a part's is compared with nothing.
NOT_OF_PARTS = ("calibration_error",)

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Expected:
    """What the labelled reference says of a model: the rows of its test, which it did not learn from.

    `measured` are the metrics with the labels, `estimated` the same without them, by name. `calibrator` is
    that of a classification, `threshold` where its decisions lie. `cuts` are the figures of segments by
    column, `losses` those by label, `importance` by how much the metric that decides worsens where a column
    is shuffled; older packages have none.
    """

    task: TaskKind
    decides: str
    measured: Mapping[str, Figure]
    estimated: Mapping[str, Figure]
    calibrator: Calibrator | None = None
    threshold: float | None = None
    cuts: Mapping[str, Cut] = field(default_factory=dict)
    losses: Losses | None = None
    importance: Mapping[str, float] = field(default_factory=dict)

    def weight(self, column: str) -> float:
        """How much the model makes of a column, beside the average one; 1.0 where that is not known."""
        known = {name: max(value, 0.0) for name, value in self.importance.items()}
        total = sum(known.values())
        return known[column] * len(known) / total if total and column in known else 1.0

    def chances(self, answers: Values) -> Values:
        """How likely a classification's rows are a yes."""
        return answers if self.calibrator is None else self.calibrator(answers)

    def figures(self, how: str) -> Mapping[str, Figure]:
        """The reference's metrics as they are known: "estimated", or "realised" by labels."""
        return self.estimated if how == "estimated" else self.measured

    def estimate(self, answers: Values, errors: Mapping[str, Values]) -> dict[str, float]:
        """The metrics of rows without labels; `errors` are those that the model of errors expects of them."""
        if self.task == "regression":
            return _finite({metric: _of_rows(metric, expected) for metric, expected in errors.items()})
        return _finite(_by_chance(self.chances(answers), answers, self.threshold))

    def measure(self, labels: Values, answers: Values) -> dict[str, float]:
        """The metrics of labelled rows; those left out that these rows do not tell."""
        return _finite(_scores(self.task, labels, answers, self.threshold, np.ones(len(labels))))

    def segments(
        self, columns: Mapping[str, pl.Series], answers: Values, errors: Mapping[str, Values]
    ) -> list[Segment]:
        """The segments of rows without labels, of which `errors` are expected as `estimate` has them."""
        chances = self.chances(answers) if self.task == "classification" else None
        score = _estimated(self.decides, answers, chances, errors)
        return segments.look(self.cuts, "estimated", columns, score) if score else []

    def labelled_segments(
        self, columns: Mapping[str, pl.Series], labels: Values, answers: Values
    ) -> list[Segment]:
        """The segments of labelled rows."""
        score = _realised(self.decides, labels, answers)
        return segments.look(self.cuts, "realised", columns, score)

    def split(self, labels: Values, answers: Values, estimates: Mapping[str, float]) -> Split | None:
        """What of a loss that has grown is what; `estimates` are those of the labelled rows.

        `None` where it has not grown, or nobody knows.
        """
        if self.losses is None or self.losses.loss not in estimates or not len(labels):
            return None
        chances = self.chances(answers) if self.task == "classification" else None
        split = losses.split(self.losses, labels, answers, chances, estimates[self.losses.loss])
        return split if split.now > split.before else None

    def to_json(self) -> dict[str, Any]:
        line = self.calibrator and {"said": list(self.calibrator.said), "meant": list(self.calibrator.meant)}
        return {
            "task": self.task,
            "decides": self.decides,
            "threshold": self.threshold,
            "measured": {name: list(vars(figure).values()) for name, figure in self.measured.items()},
            "estimated": {name: list(vars(figure).values()) for name, figure in self.estimated.items()},
            "calibrator": line,
            "cuts": {name: cut.to_json() for name, cut in self.cuts.items()},
            "losses": self.losses and self.losses.to_json(),
            "importance": {**self.importance},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        measured, estimated = (
            {name: of_json(*figure) for name, figure in data[key].items()}
            for key in ("measured", "estimated")
        )
        line = data["calibrator"]
        calibrator = line and Calibrator(tuple(line["said"]), tuple(line["meant"]))
        # Not in packages that are older.
        cuts = {name: Cut.from_json(cut) for name, cut in data.get("cuts", {}).items()}
        own = data.get("losses")
        return cls(
            data["task"],
            data["decides"],
            measured,
            estimated,
            calibrator,
            data["threshold"],
            cuts,
            own and Losses.from_json(own),
            data.get("importance", {}),
        )


def expect(
    task: TaskKind,
    decides: str,
    labels: Values,
    answers: Values,
    blocks: Blocks,
    *,
    threshold: float | None = None,
    matrix: Matrix | None = None,
    seed: int = 0,
    by: segments.Asked | None = None,
) -> tuple[Expected, dict[str, bytes]]:
    """What labelled rows say of a model, and the models of its errors by metric (XGBoost's .ubj).

    `blocks` tells which rows depend on each other; `matrix` are the encoded features of a regression's rows;
    `by` says what they are cut by.
    """
    if task == "classification":
        # Metrics that sort are ten times as fast, some hundred times over, where all is in order.
        order = np.argsort(-answers, kind="stable")
        labels, answers, blocks = labels[order], answers[order], blocks[order]
        by = by and by._replace(columns=by.columns[order])
    line = calibrator(answers, labels) if task == "classification" else None
    errors: dict[str, Values] = {}
    models: dict[str, bytes] = {}
    if task == "regression" and matrix is not None:
        for metric in {"mae", decides} & set(OF_ROWS):
            errors[metric], models[metric] = _learn_errors(matrix, answers, OF_ROWS[metric](labels - answers))
    chances = answers if line is None else line(answers)
    known = chances if task == "classification" else None

    def measured(weights: Values) -> dict[str, float]:
        return _scores(task, labels, answers, threshold, weights)

    def estimated(weights: Values) -> dict[str, float]:
        if task == "classification":
            return _by_chance(chances, answers, threshold, weights)
        return {metric: _of_rows(metric, each, weights) for metric, each in errors.items()}

    figures = [_figures(blocks, seed, each) for each in (measured, estimated)]
    scores = {
        "estimated": _estimated(decides, answers, known, errors),
        "realised": _realised(decides, labels, answers),
    }
    cuts = segments.cut(by, blocks, scores, seed) if by and decides not in NOT_OF_PARTS else {}
    own = losses.learn(decides, labels, answers, known, errors)
    return Expected(task, decides, figures[0], figures[1], line, threshold, cuts, own), models


def findings(expected: Expected, how: str, values: Mapping[str, float], rows: int) -> list[Finding]:
    """Whether the metric that decides, over so many rows, is worse than in the reference.

    `how` it is known is "estimated" or "realised"; nothing where it is not.
    """
    metric, reference = expected.decides, expected.figures(how)
    if metric not in reference or metric not in values or not rows:
        return []
    return [finding(metric, reference[metric], values[metric], rows, how)]


def error_inputs(matrix: Matrix, answers: Values) -> Matrix:
    """What the model of errors is asked with: the encoded features, and the answer."""
    return np.column_stack([matrix, answers]).astype(np.float32)


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if np.isfinite(value)}


def _realised(metric: str, labels: Values, answers: Values) -> Score:
    """A metric of some of these rows, with their labels."""
    found = metrics.METRICS[metric]

    def score(rows: Places, weights: Values) -> float:
        if metric in RANKS and _is_thin(labels[rows], weights):
            return float("nan")
        return found(labels[rows], answers[rows], weights)

    own = losses.OF_ROW.get(metric)
    return Score(metric, score, own and own(labels, answers))


def _estimated(
    metric: str, answers: Values, chances: Values | None, errors: Mapping[str, Values]
) -> Score | None:
    """A metric of some of these rows, by estimate; `None` of one that is not estimated."""
    found = metrics.METRICS[metric]

    def score(rows: Places, weights: Values) -> float:
        if chances is None or (metric in RANKS and _is_thin(chances[rows], weights)):
            return float("nan")
        labels, both = _twice(chances[rows], weights)
        return found(labels, np.repeat(answers[rows], 2), both)

    each = losses.expected(metric, answers, chances, errors)
    return None if chances is None and each is None else Score(metric, score, each)


def _is_thin(chances: Values, weights: Values) -> bool:
    """Whether a class has too few rows for their order to say something."""
    positive = float((chances * weights).sum())
    return min(positive, float(weights.sum()) - positive) < LEAST_OF_A_CLASS


def _scores(
    task: TaskKind, labels: Values, answers: Values, threshold: float | None, weights: Values
) -> dict[str, float]:
    found = metrics.score_all(task, labels, answers, weights)
    if threshold is not None:
        found |= metrics.decided(labels, answers >= threshold, weights)
    return found


def _by_chance(
    chances: Values, answers: Values, threshold: float | None, weights: Values | None = None
) -> dict[str, float]:
    """The metrics where each row is a yes with its chance: it counts twice, once as each, by how likely."""
    labels, both = _twice(chances, np.ones(len(answers)) if weights is None else weights)
    found = _scores("classification", labels, np.repeat(answers, 2), threshold, both)
    # Calibrated by what it is measured with, it says nothing.
    return {name: value for name, value in found.items() if name != "calibration_error"}


def _twice(chances: Values, weights: Values) -> tuple[Values, Values]:
    """The labels of rows that each count as a yes and as a no, and how much."""
    both = np.column_stack([weights * chances, weights * (1 - chances)]).ravel()
    return np.tile([1.0, 0.0], len(chances)), both


def _of_rows(metric: str, errors: Values, weights: Values | None = None) -> float:
    mean = metrics.average(errors, np.ones(len(errors)) if weights is None else weights)
    return float(np.sqrt(max(mean, 0.0))) if metric == "rmse" else mean


def _figures(blocks: Blocks, seed: int, by: Any) -> dict[str, Figure]:
    rows, freedom = len(blocks), len(np.unique(blocks)) - 1
    values = by(np.ones(rows))
    spreads = bootstrap.intervals(blocks, seed, by)
    return {
        name: Figure(float(value), (spreads[name][1] - spreads[name][0]) / (2 * HALF_WIDTH), rows, freedom)
        for name, value in values.items()
        if np.isfinite(value)
    }


def calibrator(answers: Values, labels: Values, weights: Values | None = None) -> Calibrator | None:
    """How often it happens, by what was answered: rising, on all labelled rows (isotonic regression).

    `None` where that is no line, as of answers that are all the same.
    """
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(answers, labels, weights)
    said, meant = fitted.X_thresholds_, fitted.y_thresholds_
    if len(said) < 2:
        return None
    return Calibrator(tuple(said.tolist()), tuple(meant.tolist()))


def _learn_errors(matrix: Matrix, answers: Values, errors: Values) -> tuple[Values, bytes]:
    """What a model expects the errors to be that has not seen them, and the model that has seen all."""
    import xgboost

    inputs = error_inputs(matrix, answers)
    step = max(1, len(inputs) // MOST_ROWS)
    # Rows that follow each other resemble each other, and stay together.
    folds = np.arange(len(inputs)) * FOLDS // max(1, len(inputs))

    def fit(rows: npt.NDArray[np.int64]) -> Any:
        chosen = rows[::step]
        data = xgboost.DMatrix(inputs[chosen], errors[chosen])
        return xgboost.train(ERRORS, data, num_boost_round=ROUNDS)

    unseen = np.empty(len(inputs))
    for fold in range(FOLDS):
        held = np.flatnonzero(folds == fold)
        if len(held):
            unseen[held] = fit(np.flatnonzero(folds != fold)).predict(xgboost.DMatrix(inputs[held]))
    return unseen, bytes(fit(np.arange(len(inputs))).save_raw("ubj"))
