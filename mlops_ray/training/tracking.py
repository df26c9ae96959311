"""Every trial in MLflow: one run for the job, one nested run for each trial. Only the driver writes."""

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from mlops_ray.training.leaderboard import Trial

STATE = "mlops.state"
FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"


def prepare(tracking_uri: str, experiment: str, artifacts: str | None) -> str:
    """The id of the project's experiment, made where it is missing; a new SQLite database takes seconds.

    `artifacts` is where its artifacts lie; `None` leaves that to the tracking server.
    """
    for name in ("mlflow.store.db.utils", "mlflow.tracking", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    client = MlflowClient(tracking_uri)
    found = client.get_experiment_by_name(experiment)
    if found is not None:
        return str(found.experiment_id)
    return str(client.create_experiment(experiment, artifact_location=artifacts))


@dataclass(frozen=True)
class Run:
    """A run of the job that is open."""

    id: str
    experiment_id: str
    _client: MlflowClient

    def log_trial(self, trial: Trial) -> None:
        """Writes a trial as a nested run: its parameters, each fold's score as a step, its mean and state."""
        tags = {MLFLOW_PARENT_RUN_ID: self.id, STATE: trial.state}
        run = self._client.create_run(self.experiment_id, tags=tags, run_name=f"{trial.family}-{trial.id}")
        scores = [("fold_score", score, step) for step, score in enumerate(trial.fold_scores)]
        scores += [("score", trial.score, 0), ("seconds", trial.seconds, 0)]
        self._write(run.info.run_id, {"family": trial.family, **trial.params}, scores)
        self._client.set_terminated(run.info.run_id, FAILED if trial.state == "failed" else FINISHED)

    def log_params(self, params: Mapping[str, Any]) -> None:
        self._write(self.id, params, [])

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        self._write(self.id, {}, [(name, value, 0) for name, value in metrics.items()])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._client.log_batch(self.id, tags=[RunTag(name, value) for name, value in tags.items()])

    def _write(self, run_id: str, params: Mapping[str, Any], scores: list[tuple[str, float, int]]) -> None:
        now_ms = int(time.time() * 1000)
        metrics = [Metric(n, value, now_ms, step) for n, value, step in scores if math.isfinite(value)]
        self._client.log_batch(run_id, metrics, [Param(name, str(value)) for name, value in params.items()])


@contextlib.contextmanager
def open_run(tracking_uri: str, experiment_id: str, name: str) -> Iterator[Run]:
    """A run that is closed as finished, as failed after an error, as killed after Ctrl-C."""
    client = MlflowClient(tracking_uri)
    run = Run(client.create_run(experiment_id, run_name=name).info.run_id, experiment_id, client)
    status = KILLED
    try:
        yield run
        status = FINISHED
    except Exception:
        status = FAILED
        raise
    finally:
        client.set_terminated(run.id, status)
