"""A classification's quality without labels where its inputs have moved: the estimate weighted for that.

The plain estimate (performance.py) is calibrated on all rows of the test. How often a probability comes true
may differ from one part of the inputs to another, though, and a window may have more of the one. Here each
row of the test counts as often as a row like it comes in the window, and the calibration is made anew with
these weights (importance weighting: Shimodaira 2000, Improving predictive inference under covariate shift,
Journal of Statistical Planning and Inference 90, 227-244). The weight is the odds by which a classifier takes
the row for the window's (Sugiyama, Suzuki and Kanamori 2012, Density Ratio Estimation in Machine Learning).
Like the plain one it cannot see that what the same inputs mean has changed.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import polars as pl

from mlops_ray.data import prediction_log
from mlops_ray.features.definitions import LABEL
from mlops_ray.monitoring import joint, known, logged
from mlops_ray.monitoring.deltas import PREDICTION
from mlops_ray.monitoring.performance import Expected, calibrator
from mlops_ray.registry.encoder import Matrix
from mlops_ray.registry.models import Values
from mlops_ray.registry.package import Package

#: What a row counts at most beside the average one: the estimate may not hang on a few.
MOST_WEIGHT = 20.0
#: Values of a side that are looked at: of many columns there are fewer rows, which takes a second at most.
MOST_VALUES = 4_000_000
#: As many rows of one weight must tell as much, or none of the test's is like the window's.
LEAST_EFFECTIVE = 200.0
#: How often the weights are dealt out by chance.
DEALS = 5


class Weighted(NamedTuple):
    """The metrics as they are estimated, and how many rows of one weight would tell as much."""

    metrics: dict[str, float]
    rows: float


def of_log(package: Package, expected: Expected, tested: pl.DataFrame, rows: pl.DataFrame) -> Weighted | None:
    """The weighted estimate of rows of the log, by rows `tested` (`known.tested`).

    Features that only tell the time weigh nothing, and those that the log does not have. `None` of a
    regression, whose errors are estimated row by row from the inputs already, where either side has fewer
    than `joint.MIN_ROWS`, and where the test has hardly a row that is like the window's.
    """
    if expected.task == "regression":
        return None
    window = logged.features(package, rows).with_columns(rows[PREDICTION])
    ours, theirs = known.whole(tested, package), known.whole(window, package)
    if min(ours.height, theirs.height) < joint.MIN_ROWS:
        return None
    encoder = logged.encoder(package, rows.columns)
    width = sum(len(part.names) for part in encoder.parts)
    if not width:
        return None
    most = max(joint.MIN_ROWS, MOST_VALUES // width)
    ours = prediction_log.spread(ours.lazy(), most)
    theirs = prediction_log.spread(theirs.lazy(), min(most, known.MOST_ROWS))
    weights = weigh(encoder.transform(ours), encoder.transform(theirs))
    return estimate(expected, logged.answers(ours), ours[LABEL].to_numpy(), weights, logged.answers(rows))


def weigh(reference: Matrix, window: Matrix, seed: int = 0) -> Values:
    """How often each row of the reference comes in the window, beside how often it comes here; 1 on average.

    Each half of the rows is judged by a model that has seen the other.
    """
    columns = joint.liveliest(np.concatenate([reference, window]))
    reference, window = reference[:, columns], window[:, columns]
    random = np.random.default_rng(seed)
    halves = [np.array_split(random.permutation(len(each)), 2) for each in (reference, window)]
    weights = np.empty(len(reference))
    for asked in (0, 1):
        ours, theirs = (each[1 - asked] for each in halves)
        rows = halves[0][asked]
        (margins,), _ = joint.learned([reference[ours], window[theirs]], [reference[rows]])
        weights[rows] = np.exp(margins)
    capped: Values = np.minimum(weights / weights.mean(), MOST_WEIGHT)
    capped /= capped.mean()
    return capped


def estimate(
    expected: Expected, said: Values, labels: Values, weights: Values, answers: Values
) -> Weighted | None:
    """The metrics of rows with these `answers`: the plain ones, and by how much the weights move them.

    `said` and `labels` are of the weighted rows. A calibration of few rows takes some chance for knowledge,
    and every metric looks better for it; so it is compared with those by the same weights dealt by chance.
    """
    effective = float(weights.sum() ** 2 / np.square(weights).sum())
    if effective < LEAST_EFFECTIVE:
        return None
    random = np.random.default_rng(0)
    by = [weights, *(random.permutation(weights) for _ in range(DEALS))]
    moved, *others = (
        replace(expected, calibrator=calibrator(said, labels, each)).estimate(answers, {}) for each in by
    )
    found = {
        metric: _within(metric, plain + moved[metric] - float(np.mean([each[metric] for each in others])))
        for metric, plain in expected.estimate(answers, {}).items()
    }
    return Weighted(found, effective)


def _within(metric: str, value: float) -> float:
    """A difference of estimates may lead a little beyond what there is; a logarithm has no upper end."""
    return max(value, 0.0) if metric == "log_loss" else min(max(value, 0.0), 1.0)
