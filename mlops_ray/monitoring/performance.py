"""How good a model is: estimated while there are no labels, measured when they have come.

A classification's quality is estimated from its own probabilities: once they are calibrated on rows that the
model did not learn from, each row counts as a yes with its probability and as a no with the rest, and every
metric follows (confidence-based performance estimation; Garg et al. 2022, arXiv:2201.04234, is its family). A
regression's is estimated by a model of its errors (direct loss estimation). Neither sees that what the same
features mean has changed; labels do.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy import stats

from mlops_ray.monitoring.alarms import Finding
from mlops_ray.registry import bootstrap, metrics
from mlops_ray.registry.bootstrap import Blocks
from mlops_ray.registry.models import Values
from mlops_ray.registry.outcome import Calibrator, TaskKind

#: A loss (what a metric is short of the best) matters that has grown by so much of itself.
FLOOR = 0.05
#: Beyond this nothing is worse; JSON must hold it.
MOST_HARM = 1e9
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

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Figure:
    """A metric over the labelled reference, and how much it varies from one sample of `rows` to the next.

    `freedom` are the degrees of freedom of that deviation: independent blocks, less one.
    """

    value: float
    deviation: float
    rows: int
    freedom: int

    def deviation_of(self, rows: int) -> float:
        """How much the metric varies over so many rows, which may all be of one block.

        However many rows a day has, it is one day.
        """
        of_a_block = self.rows / (self.freedom + 1)
        return float(
            self.deviation * np.sqrt(self.rows / (min(rows, of_a_block) if of_a_block > 1 else rows))
        )

    def worse(self, metric: str, value: float, rows: int) -> float:
        """How likely chance alone makes the metric of so many rows as bad as this; 1.0 where nobody knows."""
        spread = np.hypot(self.deviation, self.deviation_of(rows))
        if not np.isfinite(spread) or not spread or not np.isfinite(value):
            return 1.0
        return float(stats.t.sf((_loss(metric, value) - _loss(metric, self.value)) / spread, self.freedom))


@dataclass(frozen=True)
class Expected:
    """What the labelled reference says of a model: the rows of its test, which it did not learn from.

    `measured` are the metrics with the labels, `estimated` the same without them, by name. `calibrator` is
    that of a classification, `threshold` where its decisions lie.
    """

    task: TaskKind
    decides: str
    measured: Mapping[str, Figure]
    estimated: Mapping[str, Figure]
    calibrator: Calibrator | None = None
    threshold: float | None = None

    def estimate(self, answers: Values, errors: Mapping[str, Values]) -> dict[str, float]:
        """The metrics of rows without labels; `errors` are those that the model of errors expects of them."""
        if self.task == "regression":
            return _finite({metric: _of_rows(metric, expected) for metric, expected in errors.items()})
        chances = answers if self.calibrator is None else self.calibrator(answers)
        return _finite(_by_chance(chances, answers, self.threshold))

    def measure(self, labels: Values, answers: Values) -> dict[str, float]:
        """The metrics of labelled rows; those left out that these rows do not tell."""
        return _finite(_scores(self.task, labels, answers, self.threshold, np.ones(len(labels))))

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads again."""
        figures = {
            key: {name: list(vars(figure).values()) for name, figure in getattr(self, key).items()}
            for key in ("measured", "estimated")
        }
        line = self.calibrator and {"said": list(self.calibrator.said), "meant": list(self.calibrator.meant)}
        head = {"task": self.task, "decides": self.decides, "threshold": self.threshold}
        return {**head, **figures, "calibrator": line}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What `to_json` wrote."""
        measured, estimated = (
            {name: _figure(*figure) for name, figure in data[key].items()}
            for key in ("measured", "estimated")
        )
        line = data["calibrator"]
        calibrator = line and Calibrator(tuple(line["said"]), tuple(line["meant"]))
        return cls(data["task"], data["decides"], measured, estimated, calibrator, data["threshold"])


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
) -> tuple[Expected, dict[str, bytes]]:
    """What labelled rows say of a model, and the models of its errors by metric (XGBoost's .ubj).

    `blocks` tells which rows depend on each other; `matrix` are the encoded features of a regression's rows.
    """
    if task == "classification":
        # Metrics that sort are ten times as fast, some hundred times over, where all is in order.
        order = np.argsort(-answers, kind="stable")
        labels, answers, blocks = labels[order], answers[order], blocks[order]
    calibrator = _calibrator(answers, labels) if task == "classification" else None
    errors: dict[str, Values] = {}
    models: dict[str, bytes] = {}
    if task == "regression" and matrix is not None:
        for metric in {"mae", decides} & set(OF_ROWS):
            errors[metric], models[metric] = _learn_errors(matrix, answers, OF_ROWS[metric](labels - answers))
    chances = answers if calibrator is None else calibrator(answers)

    def measured(weights: Values) -> dict[str, float]:
        return _scores(task, labels, answers, threshold, weights)

    def estimated(weights: Values) -> dict[str, float]:
        if task == "classification":
            return _by_chance(chances, answers, threshold, weights)
        return {metric: _of_rows(metric, each, weights) for metric, each in errors.items()}

    figures = [_figures(blocks, seed, by) for by in (measured, estimated)]
    return Expected(task, decides, figures[0], figures[1], calibrator, threshold), models


def findings(expected: Expected, estimates: Mapping[str, float], rows: int) -> list[Finding]:
    """Whether the estimate of the metric that decides is worse than that of the reference."""
    return _finding(expected.decides, expected.estimated, estimates, rows, "estimated")


def realised(expected: Expected, measured: Mapping[str, float], rows: int) -> list[Finding]:
    """Whether the metric that decides, over so many labelled rows, is worse than in the reference."""
    return _finding(expected.decides, expected.measured, measured, rows, "realised")


def error_inputs(matrix: Matrix, answers: Values) -> Matrix:
    """What the model of errors is asked with: the encoded features, and the answer."""
    return np.column_stack([matrix, answers]).astype(np.float32)


def _finding(
    metric: str, reference: Mapping[str, Figure], values: Mapping[str, float], rows: int, how: str
) -> list[Finding]:
    if metric not in reference or metric not in values or not rows:
        return []
    figure, value = reference[metric], values[metric]
    before, now = _loss(metric, figure.value), _loss(metric, value)
    said = f"the {how} {metric} of {rows:,} rows is {value:.4g}, in the reference {figure.value:.4g}"
    matters = bool(now > before * (1 + FLOOR))
    harm = min((now - before) / max(before, 1e-12), MOST_HARM)
    p = figure.worse(metric, value, rows)
    return [Finding(f"{how} {metric}", "performance", p, matters, said, harm)]


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if np.isfinite(value)}


def _figure(value: float, deviation: float | None, rows: int, freedom: int) -> Figure:
    """What JSON, which knows no NaN, has of one."""
    return Figure(value, float("nan") if deviation is None else deviation, rows, freedom)


def _loss(metric: str, value: float) -> float:
    """The metric turned so that less is better, and 0 the best."""
    found = metrics.METRICS.get(metric)
    return value if found is not None and found.better == "lower" else 1.0 - value


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
    mass = np.ones(len(answers)) if weights is None else weights
    labels = np.tile([1.0, 0.0], len(answers))
    both = np.column_stack([mass * chances, mass * (1 - chances)]).ravel()
    found = _scores("classification", labels, np.repeat(answers, 2), threshold, both)
    # Calibrated by what it is measured with, it says nothing.
    return {name: value for name, value in found.items() if name != "calibration_error"}


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


def _calibrator(answers: Values, labels: Values) -> Calibrator | None:
    """How often it happens, by what was answered: rising, on all labelled rows (isotonic regression)."""
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(answers, labels)
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
