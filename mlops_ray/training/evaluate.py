"""The winner's last steps: fitted on all training rows, tested once, compared, let through.

The test part is looked at by `test` alone, for one model; what was chosen was chosen by validation before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from mlops_ray.config import Gate
from mlops_ray.features.definitions import LABEL
from mlops_ray.registry.encoder import Encoder
from mlops_ray.registry.models import Model, Values
from mlops_ray.training import families, metrics
from mlops_ray.training.families import How, Sample
from mlops_ray.training.splits import Rows
from mlops_ray.training.task import Task

#: Naive forecasts: the value a season ago, the newest value known, and where there is neither, the median.
LAST_SEASON, NO_CHANGE, MEDIAN = "last_season", "no_change", "median"


@dataclass(frozen=True)
class Fitted:
    """A family's model with these parameters, and the encoder that goes with it."""

    family: str
    params: Mapping[str, Any]
    encoder: Encoder
    model: Model

    def predict(self, task: Task, rows: Rows) -> Values:
        """The answers to these rows of the task, as they would be given: float64 (rows)."""
        return metrics.clipped(self.model.predict(self.encoder.transform(task.frame[rows])), task.clip)


@dataclass(frozen=True)
class Report:
    """What the test part showed.

    `metrics`: every metric of the winner over all test rows. `baselines`: for each naive forecast, every
    metric over the `rows` for which it exists. `beside`: the winner's metrics over those same rows.
    """

    rows: int
    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]
    beside: dict[str, dict[str, float]]


def refit(task: Task, family: str, params: Mapping[str, Any], *, cpus: int) -> Fitted:
    """The family's model fitted on every row that may train for the test part."""
    found, how = families.FAMILIES[family], How(task.training.metric, task.training.search.seed, cpus)
    train = task.test.train
    rows = task.frame[train]
    encoder = Encoder.fit(rows, task.columns, style=found.style)
    sample = Sample(encoder.transform(rows), task.labels[train], discrete=encoder.discrete)
    return Fitted(family, dict(params), encoder, found.fit(sample, params, how))


def test(task: Task, fitted: Fitted) -> Report:
    """Looks at the test part."""
    rows = task.test.held_out
    labels, predictions = task.labels[rows], fitted.predict(task, rows)
    baselines, beside = {}, {}
    for name, forecast in naive_forecasts(task).items():
        known = np.isfinite(forecast)
        if known.any():
            theirs = metrics.score_all(task.kind, labels[known], forecast[known])
            baselines[name] = theirs | {"rows": int(known.sum())}
            beside[name] = metrics.score_all(task.kind, labels[known], predictions[known])
    return Report(len(rows), scores(task, predictions), baselines, beside)


def scores(task: Task, predictions: Values) -> dict[str, float]:
    """Every metric of predictions for the test rows, in their order: for the champion, beside the winner."""
    return metrics.score_all(task.kind, task.labels[task.test.held_out], predictions)


def naive_forecasts(task: Task) -> dict[str, Values]:
    """Each naive forecast of the test rows, NaN where it has no value."""
    shifts = {LAST_SEASON: task.season_us or 0, NO_CHANGE: task.horizon_us}
    # A value that is younger than the horizon is not known when the forecast is made.
    found = {
        name: _shifted(task, shift) for name, shift in shifts.items() if shift and shift >= task.horizon_us
    }
    if found:
        return found
    return {MEDIAN: np.full(len(task.test.held_out), np.median(task.labels[task.test.train]))}


def _shifted(task: Task, shift_us: int) -> Values:
    """The label of the same keys exactly `shift_us` before each test row, NaN where there is none."""
    by = [*task.keys, task.time]
    labels = task.frame.select(*by, LABEL).unique(by, keep="last", maintain_order=True)
    earlier = labels.with_columns(pl.col(task.time) + pl.duration(microseconds=shift_us))
    wanted = task.frame[task.test.held_out].select(by)
    found = wanted.join(earlier, on=by, how="left", maintain_order="left")[LABEL]
    return found.fill_null(float("nan")).to_numpy()


def gate(report: Report, champion: Mapping[str, float] | None, config: Gate, metric: str) -> list[str]:
    """Why the winner must not go on, in sentences; empty where it may.

    `champion` are the present champion's metrics on the same test rows, `None` where there is no champion.
    """
    rivals: list[tuple[str, float, float]] = []
    if "naive" in config.better_than:
        rivals += [
            (f"the naive forecast {name!r}", report.beside[name][metric], theirs[metric])
            for name, theirs in report.baselines.items()
        ]
    if "champion" in config.better_than and champion is not None:
        rivals.append(("the champion", report.metrics[metric], champion[metric]))
    return [
        f"the winner's {metric} {own:.4g} is not {config.by:.1%} below that of {rival}, {theirs:.4g}"
        for rival, own, theirs in rivals
        # Written so that NaN does not pass.
        if not own <= theirs * (1 - config.by)
    ]
