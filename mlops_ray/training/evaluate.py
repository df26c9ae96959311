"""The winner's last steps: fitted on all training rows, tested once, compared, let through.

The test part is looked at by `test` alone, for one model; what was chosen was chosen by validation before.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from mlops_ray.config import Gate
from mlops_ray.features.definitions import LABEL
from mlops_ray.registry import bootstrap, metrics
from mlops_ray.registry.bootstrap import Interval
from mlops_ray.registry.encoder import Encoder
from mlops_ray.registry.models import Model, Values
from mlops_ray.registry.outcome import Outcome
from mlops_ray.training import calibration
from mlops_ray.training.calibration import Predicted
from mlops_ray.training.diagnosis import Learned, learning
from mlops_ray.training.families import Device, Family, How, Sample
from mlops_ray.training.splits import Rows
from mlops_ray.training.task import Task

#: Naive forecasts: the value a season ago, the newest value known, and where there is neither, the median.
LAST_SEASON, NO_CHANGE, MEDIAN = "last_season", "no_change", "median"
#: Of a classification: the share of the positive class, for every row.
PREVALENCE = "prevalence"
CHAMPION = "champion"


class Held(NamedTuple):
    """So many CPUs and GPUs, for so many seconds."""

    seconds: float
    cpu: float
    gpu: float


@dataclass(frozen=True)
class Fitted:
    """A family's model with these parameters, the encoder before it and the outcome after it.

    `missed` says in a sentence what the threshold does not reach on validation; it is empty where it reaches
    what was asked for. `held` is what the fit held, and for how long, `node` the id
    of the node that it ran on, if it was one.
    """

    family: str
    params: Mapping[str, Any]
    encoder: Encoder
    model: Model
    outcome: Outcome
    missed: str = ""
    held: Held | None = None
    node: str = ""

    def predict(self, frame: pl.DataFrame) -> Values:
        """The answers to these rows, as they would be given: float64 (rows)."""
        return self.outcome.answers(self.model.predict(self.encoder.transform(frame)))


@dataclass(frozen=True)
class Report:
    """What the test part showed.

    `metrics`: every metric of the winner over all test rows, and what its decisions come to; `intervals`: of
    each, where it lies with 95 % confidence. `baselines`: for each naive forecast, and for the champion where
    there is one, every metric over the `rows` for which it exists. `beside`: the winner's metrics over those
    same rows. `leads`: by how much the winner is better than each of them in the metric that decides, with
    95 % confidence; both bounds above 0 are more than chance.
    """

    rows: int
    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]
    beside: dict[str, dict[str, float]]
    intervals: dict[str, Interval]
    leads: dict[str, Interval]


def refit(
    task: Task,
    family: str,
    params: Mapping[str, Any],
    *,
    cpus: int,
    device: Device = "cpu",
    by: Family | None = None,
) -> Fitted:
    """The family's model fitted on every row that may train for the test part, by itself or what stands in.

    A classification's calibration and threshold are learned on the validation rows of the folds, each
    predicted by a model of these parameters that was fitted on its fold alone.
    """
    found = by or task.families[family]
    how = How(task.training.metric, task.training.search.seed, cpus, task.kind, device)
    outcome, missed = task.outcome, ""
    if task.kind == "classification":
        outcome, missed = _decided(task, found, params, how, outcome)
    encoder, _, model = _fit(task, found, params, how, task.test.train)
    return Fitted(family, dict(params), encoder, model, outcome, missed)


def _fit(
    task: Task, family: Family, params: Mapping[str, Any], how: How, rows: Rows
) -> tuple[Encoder, Sample, Model]:
    """The encoder of these rows, what the family was fitted on, and its model."""
    encoder, sample = task.encoded(rows, family.style)
    return encoder, sample, family.fit(sample, params, how)


def _decided(
    task: Task, family: Family, params: Mapping[str, Any], how: How, outcome: Outcome
) -> tuple[Outcome, str]:
    """The outcome with its calibration and threshold, and what the threshold does not reach."""
    said = []
    for fold in task.folds:
        encoder, _, model = _fit(task, family, params, how, fold.train)
        probabilities = model.predict(encoder.transform(task.frame[fold.held_out]))
        said.append(Predicted(task.labels[fold.held_out], probabilities))
    calibrator = calibration.calibrate(said)
    outcome = replace(outcome, calibrator=calibrator)
    meant = [Predicted(fold.labels, outcome.answers(fold.probabilities)) for fold in said]
    chosen = calibration.threshold(task.threshold, meant)
    return replace(outcome, threshold=chosen.value), chosen.missed


def test(task: Task, fitted: Fitted, champion: Values | None) -> Report:
    """Looks at the test part; `champion` are the present champion's answers to the same rows."""
    rows = task.test.held_out
    predictions = fitted.predict(task.frame[rows])
    # Metrics that sort are ten times as fast, some hundred times over, where all is in order.
    order = np.argsort(-predictions, kind="stable")
    rivals = naive_forecasts(task) | ({} if champion is None else {CHAMPION: champion})
    rows, predictions = rows[order], predictions[order]
    rivals = {name: forecast[order] for name, forecast in rivals.items()}
    labels = task.labels[rows]
    known = {name: np.isfinite(forecast) for name, forecast in rivals.items()}
    rivals = {name: forecast for name, forecast in rivals.items() if known[name].any()}

    def figures(weights: Values) -> dict[str, float]:
        return scores(task, labels, predictions, fitted.outcome, weights)

    def leads(weights: Values) -> dict[str, float]:
        own, theirs = {}, {}
        for name, forecast in rivals.items():
            among = known[name]
            own[name] = task.metric(labels[among], predictions[among], weights[among])
            theirs[name] = task.metric(labels[among], forecast[among], weights[among])
        return {name: task.metric.loss(theirs[name]) - task.metric.loss(own[name]) for name in rivals}

    baselines, beside = {}, {}
    for name, forecast in rivals.items():
        among = known[name]
        theirs = metrics.score_all(task.kind, labels[among], forecast[among])
        baselines[name] = theirs | {"rows": int(among.sum())}
        beside[name] = metrics.score_all(task.kind, labels[among], predictions[among])
    blocks, seed = task.blocks(rows), task.training.search.seed
    return Report(
        len(rows),
        figures(np.ones(len(rows))),
        baselines,
        beside,
        bootstrap.intervals(blocks, seed, figures),
        bootstrap.intervals(blocks, seed, leads) if rivals else {},
    )


def learned(task: Task, fitted: Fitted) -> list[Learned]:
    """How much there is to learn from more rows: fits on shares of the last fold's, tried on its own part."""
    fold, family, seed = task.folds[-1], task.families[fitted.family], task.training.search.seed
    how = How(task.training.metric, seed, 1, task.kind)

    def fit_score(rows: Rows) -> tuple[float, float]:
        encoder, sample, model = _fit(task, family, fitted.params, how, rows)

        def tried(on: Rows) -> float:
            said = calibration.unweighted(model.predict(encoder.transform(task.frame[on])), sample)
            return task.metric(task.labels[on], task.outcome.answers(said))

        return tried(rows), tried(fold.held_out)

    return learning(fold.train, fit_score, seed)


def scores(
    task: Task, labels: Values, predictions: Values, outcome: Outcome, weights: Values
) -> dict[str, float]:
    """Every metric of the answers, and of a classification what its decisions come to."""
    found = metrics.score_all(task.kind, labels, predictions, weights)
    if outcome.threshold is None:
        return found
    yes = predictions >= outcome.threshold
    found |= metrics.decided(labels, yes, weights)
    wish = task.threshold.for_ if task.threshold else None
    if not isinstance(wish, str | None) and wish.cost is not None:
        found["cost"] = calibration.cost(wish.cost, labels, yes, weights)
    return found


def naive_forecasts(task: Task) -> dict[str, Values]:
    """Each naive forecast of the test rows, NaN where it has no value."""
    train, count = task.labels[task.test.train], len(task.test.held_out)
    if task.kind == "classification":
        return {PREVALENCE: np.full(count, train.mean())}
    shifts = {LAST_SEASON: task.season_us or 0, NO_CHANGE: task.horizon_us}
    # A value that is younger than the horizon is not known when the forecast is made.
    found = {
        name: _shifted(task, shift) for name, shift in shifts.items() if shift and shift >= task.horizon_us
    }
    return found or {MEDIAN: np.full(count, np.median(train))}


def _shifted(task: Task, shift_us: int) -> Values:
    """The label of the same keys exactly `shift_us` before each test row, NaN where there is none."""
    by = [*task.keys, task.time]
    labels = task.frame.select(*by, LABEL).unique(by, keep="last", maintain_order=True)
    earlier = labels.with_columns(pl.col(task.time) + pl.duration(microseconds=shift_us))
    wanted = task.frame[task.test.held_out].select(by)
    found = wanted.join(earlier, on=by, how="left", maintain_order="left")[LABEL]
    return found.fill_null(float("nan")).to_numpy()


def gate(report: Report, config: Gate, metric: metrics.Metric) -> list[str]:
    """Why the winner must not go on, in sentences; empty where it may."""
    way = "below" if metric.better == "lower" else "of the way to 1 above"
    reasons = []
    for name, theirs in report.baselines.items():
        if ("champion" if name == CHAMPION else "naive") not in config.better_than:
            continue
        own, rival = report.beside[name][metric.name], theirs[metric.name]
        # Without a margin, who is as good as the champion may take its place; a guess is no model.
        is_guess = name != CHAMPION and own == rival
        if is_guess or not metric.is_better(own, rival, config.by):
            called = "the champion" if name == CHAMPION else f"the naive forecast {name!r}"
            reasons.append(
                f"the winner's {metric.name} {own:.4g} is not {config.by:.1%} {way} that of {called}, "
                f"{rival:.4g}"
            )
    return reasons
