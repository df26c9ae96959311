"""XGBoost on several workers at once, for training sets that one node should not hold: Ray Train."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError

from mlops_ray.errors import TrainingError
from mlops_ray.registry.models import Model
from mlops_ray.training.families import How, Params, Sample, Xgboost, constant_label
from mlops_ray.training.task import Task
from mlops_ray.training.trial import RETRIES, device, told

#: What a matrix may take of a node's memory: libraries make copies of theirs, and others want some too.
SHARE = 0.3


def workers(task: Task, memory_bytes: Sequence[float]) -> int:
    """On how many workers XGBoost is to be fitted on all rows of a task, given each node's memory.

    As many as the project file says, or else as are needed, where there are more nodes than one.
    """
    matrix_bytes = len(task.test.train) * len(task.columns) * np.dtype(np.float32).itemsize
    needed = math.ceil(matrix_bytes / (SHARE * max(memory_bytes, default=math.inf)))
    return max(task.training.search.workers, min(needed, len(memory_bytes)))


@dataclass(frozen=True)
class DistributedXgboost(Xgboost):
    """XGBoost whose fit is shared by workers, each with a part of the rows and with `resources`."""

    workers: int
    resources: Mapping[str, float]
    label_selector: Mapping[str, str]
    restricts: bool = False

    def fit(self, sample: Sample, params: Params, how: How) -> Model:
        """The model of all rows, which no worker sees; raises `TrainingError` where a worker fails."""
        # It imports xgboost, which takes a second.
        from ray.train.v2.xgboost.xgboost_trainer import XGBoostTrainer

        if (constant := constant_label(sample, how)) is not None:
            # Else a part with some label alone would wait for nobody, and the others for it.
            return constant
        fewest = min(int(sample.y.sum()), int((1 - sample.y).sum())) if how.classifies else self.workers
        count = min(self.workers, max(1, fewest))
        given = {"parts": list(map(ray.put, parts(sample, count))), "params": params, "how": how}
        scaling = ScalingConfig(
            num_workers=count,
            use_gpu="GPU" in self.resources,
            resources_per_worker=dict(self.resources),
            placement_strategy="SPREAD",
            label_selector=dict(self.label_selector) or None,
        )
        with tempfile.TemporaryDirectory() as folder:
            run = RunConfig(storage_path=folder, failure_config=FailureConfig(max_failures=RETRIES))
            trainer: Any = XGBoostTrainer(
                _fit, train_loop_config=given, scaling_config=scaling, run_config=run
            )
            # Its handler would outlive it, and end the process as if all were well: Ctrl-C stays Ctrl-C.
            trainer._register_sigint_handler = lambda controller: None
            try:
                fitted = trainer.fit()
            except TrainingFailedError as error:
                failures = getattr(error, "worker_failures", {})
                why = told(next(iter(failures.values()), error), self.restricts)
                raise TrainingError(f"{count} workers could not fit: {why}") from error
        return fitted.return_value  # type: ignore[no-any-return] # the first worker's


def _fit(given: dict[str, Any]) -> Model:
    """In a worker: XGBoost adds up what all of them count, so that each has the model of all rows."""
    sample = ray.get(given["parts"][ray.train.get_context().get_world_rank()])
    family = Xgboost()
    return family.fit(sample, given["params"], replace(given["how"], device=device(family)))


def parts(sample: Sample, count: int) -> list[Sample]:
    """The rows dealt out in the order of their labels, so that each part has some of every label.

    >>> [part.y.tolist() for part in parts(Sample(np.zeros((4, 1)), np.array([1.0, 0.0, 0.0, 1.0])), 2)]
    [[0.0, 1.0], [0.0, 1.0]]
    """
    order = np.argsort(sample.y, kind="stable")
    dealt = [order[first::count] for first in range(count)]
    weights = sample.weights
    return [
        replace(
            sample, x=sample.x[rows], y=sample.y[rows], weights=None if weights is None else weights[rows]
        )
        for rows in dealt
    ]
