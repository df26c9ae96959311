"""One trial: what Ray Tune runs in a worker for one family and one set of parameters.

A worker gets matrices, not frames: the driver encodes each fold once for each style of encoding, and every
trial reads the same copy in shared memory.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray import tune

from mlops_ray.registry.encoder import Matrix, Style
from mlops_ray.registry.models import Values
from mlops_ray.training import metrics
from mlops_ray.training.families import FAMILIES, How, Sample, TaskKind
from mlops_ray.training.leaderboard import FOLDS, SCORE, SECONDS


@dataclass(frozen=True)
class Fold:
    """A fold, encoded: what is fitted on, and what is scored."""

    train: Sample
    x_held_out: Matrix
    y_held_out: Values


@dataclass(frozen=True)
class Setting:
    """What is the same for all trials of a sweep."""

    metric: str
    task: TaskKind
    seed: int
    cpus: int
    clip: tuple[float | None, float | None]


def run(config: Mapping[str, Any], folds: Mapping[Style, list[Fold]], setting: Setting) -> None:
    """Fits and scores fold after fold and reports after each: the scheduler may stop it in between."""
    family = FAMILIES[config["family"]]
    scores: list[float] = []
    begin = time.perf_counter()
    for fold in folds[family.style]:
        scores.append(score(fold, config, setting))
        tune.report(
            {
                SCORE: sum(scores) / len(scores),
                FOLDS: list(scores),
                SECONDS: time.perf_counter() - begin,
            }
        )


def score(fold: Fold, config: Mapping[str, Any], setting: Setting) -> float:
    """The metric on a fold's held-out rows of a model fitted on its training rows."""
    family = FAMILIES[config["family"]]
    how = How(setting.metric, setting.seed, setting.cpus, setting.task)
    model = family.fit(fold.train, config.get(family.name, {}), how)
    predictions = metrics.clipped(model.predict(fold.x_held_out), setting.clip)
    return metrics.find(setting.metric, setting.task)(fold.y_held_out, predictions)
