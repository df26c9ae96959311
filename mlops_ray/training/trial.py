"""One trial: what Ray Tune runs in a worker for one family and one set of parameters.

A worker gets matrices, not frames: the driver encodes each fold once for each style of encoding, and every
trial reads the same copy in shared memory.
"""

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.tune.result import DONE

from mlops_ray import placement
from mlops_ray.errors import first_line
from mlops_ray.registry import metrics
from mlops_ray.registry.encoder import Matrix, Style
from mlops_ray.registry.models import Model, Values
from mlops_ray.registry.outcome import Outcome
from mlops_ray.training.calibration import unweighted
from mlops_ray.training.families import Device, Family, How, Params, Sample, TaskKind
from mlops_ray.training.leaderboard import (
    ERROR,
    FAMILY,
    FOLDS,
    NODE,
    PARAMS,
    PREDICT_US,
    SCORE,
    SECONDS,
    mean,
)

#: How often a trial, or the winner's fit, begins again because a worker died.
RETRIES = 3
#: Rows that a model is asked for, one after another, to tell how long an answer takes.
ASKED = 9


@dataclass(frozen=True)
class Fold:
    """A fold, encoded: what is fitted on, and what is scored."""

    train: Sample
    x_held_out: Matrix
    y_held_out: Values


@dataclass(frozen=True)
class Setting:
    """What is the same for all trials of a sweep; trials report after each so many folds.

    Where `restricts`, nothing is told of what an error says: it may quote values.
    """

    metric: str
    task: TaskKind
    seed: int
    cpus: int
    outcome: Outcome
    report_every: int = 1
    restricts: bool = False


#: The nice value of a worker that trains: who else wants the processor goes first.
GIVES_WAY = 15


class Trainable(tune.Trainable):
    """Fits and scores fold after fold, and reports in between, where it may be stopped.

    A class, not a function: a function runs in a thread of its own, which Tune waits for in steps of 0.2 s.
    """

    def setup(  # type: ignore[override] # `tune.with_parameters` gives the rest
        self,
        config: dict[str, Any],
        folds: Mapping[Style, Sequence[Fold]],
        families: Mapping[str, Family],
        setting: Setting,
    ) -> None:
        self._folds, self._families, self._setting = folds, families, setting
        # Replicas on the same machine answer somebody who waits.
        os.setpriority(os.PRIO_PROCESS, 0, GIVES_WAY)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The same worker takes the next trial."""
        self._config, self._scores, self._seconds = new_config, list[float](), 0.0
        self._predict_us: float | None = None
        return True

    def step(self) -> dict[str, Any]:
        begin, error = time.perf_counter(), ""
        family, params = self._families[self._config[FAMILY]], self._config[PARAMS]
        folds = self._folds[family.style]
        try:
            for fold in folds[len(self._scores) :][: self._setting.report_every]:
                scored, model = score(fold, family, params, self._setting, device(family))
                if not self._scores:
                    self._predict_us = answer_us(model, fold.x_held_out)
                self._scores.append(scored)
        except Exception as raised:  # noqa: BLE001 - a library may raise anything, which ends this trial alone
            error = told(raised, self._setting.restricts)
        self._seconds += time.perf_counter() - begin
        return {
            SCORE: mean(self._scores),
            FOLDS: list(self._scores),
            SECONDS: self._seconds,
            PREDICT_US: self._predict_us,
            ERROR: error,
            NODE: placement.here(),
            DONE: bool(error) or len(self._scores) == len(folds),
        }


def told(error: Exception, restricts: bool) -> str:
    """What is told of a library's error."""
    return type(error).__name__ + ("" if restricts else f": {first_line(error)}")


def device(family: Family) -> Device:
    """What a family computes on in this worker: the GPU, or the share of one, that Ray gave to it, if any."""
    return "cuda" if ray.get_gpu_ids() and "cuda" in family.devices else "cpu"


def score(
    fold: Fold, family: Family, params: Params, setting: Setting, on: Device = "cpu"
) -> tuple[float, Model]:
    """The metric on a fold's held-out rows of a model fitted on its training rows, and the model."""
    how = How(setting.metric, setting.seed, setting.cpus, setting.task, on)
    model = family.fit(fold.train, params, how)
    predictions = setting.outcome.answers(unweighted(model.predict(fold.x_held_out), fold.train))
    return metrics.find(setting.metric, setting.task)(fold.y_held_out, predictions), model


def answer_us(model: Model, x: Matrix) -> float:
    """Microseconds that the model alone takes for one row: the median of some of these."""
    took = []
    for row in range(min(ASKED, len(x))):
        begin = time.perf_counter()
        model.predict(x[row : row + 1])
        took.append(time.perf_counter() - begin)
    return 1e6 * statistics.median(took)
