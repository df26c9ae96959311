"""Every job and trial in MLflow: one run for the job, one nested run for each trial. Only the driver writes.

A run is looked for by its key before it is made, and what is written twice stands there once: a driver that
goes on after it was killed writes again whatever it is not sure of, and nothing is lost or doubled.
"""

import contextlib
import logging
import math
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
import polars as pl
import psutil
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

from mlops_ray.registry.registry import answering, is_there
from mlops_ray.storage import digest
from mlops_ray.training.leaderboard import NODE, Trial

#: Tags: what makes a run this one and no other, which process writes it, and what became of a trial.
KEY, DRIVER, STATE, ERROR = "mlops.key", "mlops.driver", "mlops.state", "mlops.error"
#: Tags of a job by which runs on like data are found (runs.py).
DATASET, ROWS, COLUMNS = "mlops.dataset", "mlops.rows", "mlops.columns"
TARGET, TASK, METRIC = "mlops.target", "mlops.task", "mlops.metric"
RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"
#: What a job, or a trial, has cost: a metric, and a tag of the job that says of which currency. Metrics of
#: decisions have one called `cost`.
COST, CURRENCY = "training_cost", "mlops.currency"
#: MLflow's limits: characters of a parameter and of a tag; of each at most 100 a call, in 1 MB together.
LONGEST_PARAM, LONGEST_TAG, MOST_A_CALL = 6000, 8000, 50
#: Columns that the tag has room for: of more, those with the smallest digests, which is a fair sample.
MOST_COLUMNS = 800
#: Seconds by which two readings of when a process began may differ: the clock may have been set meanwhile.
SAME_BEGIN_S = 5.0

#: Names, values and steps.
Numbers = Sequence[tuple[str, float, int]]


def prepare(tracking_uri: str, experiment: str, artifacts: str | None) -> str:
    """The id of the project's experiment, made where it is missing; a new SQLite database takes seconds.

    `artifacts` is where its artifacts lie; `None` leaves that to the tracking server. Raises `StorageError`
    where MLflow does not answer.
    """
    for name in ("mlflow.store.db.utils", "mlflow.tracking", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with answering():
        client = MlflowClient(tracking_uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            # Another process may be quicker.
            with contextlib.suppress(MlflowException):
                return str(client.create_experiment(experiment, artifact_location=artifacts))
            found = client.get_experiment_by_name(experiment)
    return str(found.experiment_id if found else "")


# ---------------------------------------------------------------- writing


@dataclass(frozen=True)
class Run:
    """A job's run that is open; `began_ms` is the time of all that is written, so that it is written once."""

    id: str
    experiment_id: str
    began_ms: int
    _client: MlflowClient

    def log_trial(self, trial: Trial) -> None:
        """Writes a trial as a nested run: its parameters, each fold's score as a step, its mean and state.

        A trial that is there already, and closed, stays as it is.
        """
        name, why = f"{trial.family}-{trial.id}", {ERROR: trial.error} if trial.error else {}
        tags = {MLFLOW_PARENT_RUN_ID: self.id, MLFLOW_RUN_NAME: name, STATE: trial.state}
        nested = _once(self._client, self.experiment_id, f"{self.id}/{trial.id}", tags).info
        if nested.status in (FINISHED, FAILED):
            return
        figures = {"score": trial.score, "seconds": trial.seconds, "folds": len(trial.fold_scores)}
        measured = {"predict_us": trial.predict_us, COST: trial.cost}
        figures |= {name: value for name, value in measured.items() if value is not None}
        numbers = [(name, value, 0) for name, value in figures.items()]
        numbers += [("fold_score", score, step) for step, score in enumerate(trial.fold_scores)]
        own = Run(nested.run_id, self.experiment_id, nested.start_time, self._client)
        own._write({"family": trial.family, **trial.params}, numbers, why)
        self._client.set_terminated(own.id, FAILED if trial.state == "failed" else FINISHED)

    def log_params(self, params: Mapping[str, Any]) -> None:
        self._write(params, [], {})

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Numbers by name; what is not finite is left out."""
        self._write({}, [(name, value, 0) for name, value in metrics.items()], {})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._write({}, [], tags)

    def log_files(self, files: Mapping[str, Any]) -> None:
        """Artifacts by their path: text as it is, plain data as JSON."""
        for name, content in files.items():
            self._client.log_text(self.id, content if isinstance(content, str) else _said(content), name)

    def log_origin(self, manifest: Mapping[str, Any], metric: str, environment: Mapping[str, Any]) -> None:
        """What the job learns from (the training set's manifest), what decides, and what it is made with."""
        target, git = manifest["target"], environment["git"]
        where = f" WHERE {target['where']}" if target["where"] else ""
        tags = {DATASET: manifest["digest"], ROWS: str(manifest["rows"]), TARGET: target["expr"] + where}
        tags |= {TASK: target.get("task", "regression"), METRIC: metric, MLFLOW_GIT_COMMIT: git["commit"]}
        tags |= {COLUMNS: " ".join(column_digests(manifest["columns"])), "mlops.git.dirty": git["dirty"]}
        self.set_tags(tags | {f"mlops.{name}": environment[name] for name in ("code", "python")})
        files = {"training_set.json": manifest, "environment.json": environment}
        self.log_files(files | {"requirements.txt": "\n".join(environment["requirements"])})

    def log_leaderboard(self, trials: Sequence[Trial]) -> None:
        """All trials in their order, as JSON and as CSV."""
        # Where a trial ran is no part of what came of it.
        rows = [{name: each for name, each in asdict(trial).items() if name != NODE} for trial in trials]
        table = pl.DataFrame([{name: _said(value) for name, value in row.items()} for row in rows])
        self.log_files({"leaderboard.json": rows, "leaderboard.csv": table.write_csv()})

    def _write(self, params: Mapping[str, Any], numbers: Numbers, tags: Mapping[str, str]) -> None:
        metrics = [Metric(n, float(v), self.began_ms, step) for n, v, step in numbers if math.isfinite(v)]
        texts = [Param(name, _fitting(_said(value), LONGEST_PARAM)) for name, value in params.items()]
        marks = [RunTag(name, _fitting(value, LONGEST_TAG)) for name, value in tags.items()]
        for first in range(0, max(len(metrics), len(texts), len(marks)), MOST_A_CALL):
            part = slice(first, first + MOST_A_CALL)
            self._client.log_batch(self.id, metrics[part], texts[part], marks[part])


def column_digests(columns: Sequence[Mapping[str, Any]]) -> list[str]:
    """What stands for columns with their types: short digests in order, at most `MOST_COLUMNS`.

    >>> column_digests([{"name": "load", "type": "float"}])
    ['1bb18ae3']
    """
    return sorted(digest([column["name"], column["type"]])[:8] for column in columns)[:MOST_COLUMNS]


def _said(value: Any) -> str:
    """A value as text that `_meant` reads again."""
    written = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode()
    return value if isinstance(value, str) else written


def _meant(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _fitting(text: str, most: int) -> str:
    """Text that MLflow takes; of a longer one the beginning, and a digest by which it is told from others."""
    return text if len(text) <= most else f"{text[: most - 21]}… sha256:{digest(text)[:12]}"


def _once(client: MlflowClient, experiment_id: str, key: str, tags: Mapping[str, str]) -> Any:
    """The run with this key, made where it is missing.

    A request that MLflow's client repeats, because the first answer got lost, makes a second run: that one is
    deleted.
    """

    def found() -> list[Any]:
        runs = client.search_runs([experiment_id], f"tags.`{KEY}` = '{key}'")
        return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))

    known = found()
    if not known:
        client.create_run(experiment_id, tags={**tags, KEY: key})
        known = found()
    for double in known[1:]:
        client.delete_run(double.info.run_id)
    return known[0]


@contextlib.contextmanager
def open_run(tracking_uri: str, experiment_id: str, name: str, *, resume: str | None = None) -> Iterator[Run]:
    """A run that is closed as finished, as failed after an error, as killed after Ctrl-C.

    With `resume` it is the run of that id, which goes on. Other runs of the project whose driver died on this
    machine are closed as killed. Raises `StorageError` where there is no such run, or MLflow does not answer.
    """
    # What a command prints is its own.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    tags = {MLFLOW_RUN_NAME: name, DRIVER: _driver()}
    with answering():
        client = MlflowClient(tracking_uri)
        _close_orphans(client, experiment_id, resume)
        made = client.get_run(resume) if resume else _once(client, experiment_id, uuid.uuid4().hex, tags)
        run = Run(made.info.run_id, experiment_id, made.info.start_time, client)
        client.update_run(run.id, RUNNING)
        run.set_tags(tags)
    status = KILLED
    try:
        with answering():
            yield run
        status = FINISHED
    except Exception:
        status = FAILED
        raise
    finally:
        # What went wrong before is what is to be told.
        with contextlib.suppress(MlflowException) if status != FINISHED else answering():
            for left in _running(client, experiment_id, f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run.id}'"):
                client.set_terminated(left.info.run_id, KILLED)
            client.set_terminated(run.id, status)


def _close_orphans(client: MlflowClient, experiment_id: str, resume: str | None) -> None:
    found = {run.info.run_id: run.data.tags for run in _running(client, experiment_id, f"tags.`{KEY}` != ''")}
    dead = {run_id for run_id, tags in found.items() if DRIVER in tags and _is_gone(tags[DRIVER])} - {resume}
    for run_id, tags in found.items():
        if dead & {run_id, tags.get(MLFLOW_PARENT_RUN_ID)}:
            client.set_terminated(run_id, KILLED)


def _running(client: MlflowClient, experiment_id: str, which: str) -> list[Any]:
    asked = f"attributes.status = '{RUNNING}' AND {which}"
    return list(_pages(lambda token: client.search_runs([experiment_id], asked, page_token=token)))


def _driver() -> str:
    return f"{os.uname().nodename} {os.getpid()} {psutil.Process().create_time()}"


def _is_gone(driver: str) -> bool:
    """Whether it was a process of this machine, and is no more."""
    try:
        host, pid, began = driver.split(" ")
        is_it = abs(psutil.Process(int(pid)).create_time() - float(began)) < SAME_BEGIN_S
    except psutil.NoSuchProcess:
        is_it = False
    except ValueError:
        # Not as we write it.
        return False
    return host == os.uname().nodename and not is_it


# ---------------------------------------------------------------- reading


@dataclass(frozen=True)
class Recorded:
    """A run as MLflow has it: of a trial where it has a `parent`, else of a job.

    `seconds` is how long it was open, `None` while it is; parameters have the types they had.
    """

    id: str
    project: str
    parent: str | None
    status: str
    started: datetime
    seconds: float | None
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]


def recorded(tracking_uri: str, project: str | None = None) -> list[Recorded]:
    """The runs of a project, jobs and trials, newest first; without a project the jobs alone, of all.

    Raises `StorageError` where MLflow does not answer.
    """
    if not is_there(tracking_uri):
        return []
    with answering():
        client = MlflowClient(tracking_uri)
        held = _pages(lambda token: client.search_experiments(page_token=token))
        names = {e.experiment_id: e.name for e in held if project in (None, e.name)}
        asked = f"tags.`{KEY if project else METRIC}` != ''"
        found = _pages(lambda token: client.search_runs([*names], asked, page_token=token)) if names else ()
        return [_recorded(run, names[run.info.experiment_id]) for run in found]


def _pages(search: Callable[[str | None], Any]) -> Iterator[Any]:
    page = search(None)
    yield from page
    while page.token:
        page = search(page.token)
        yield from page


def _recorded(run: Any, project: str) -> Recorded:
    info, tags = run.info, dict(run.data.tags)
    started = datetime.fromtimestamp(info.start_time / 1000, UTC)
    seconds = None if info.status == RUNNING else (info.end_time - info.start_time) / 1000
    params = {name: _meant(value) for name, value in run.data.params.items()}
    own = (info.run_id, project, tags.get(MLFLOW_PARENT_RUN_ID), info.status, started, seconds)
    # What others wrote there may be anything.
    metrics = {name: value for name, value in run.data.metrics.items() if math.isfinite(value)}
    return Recorded(*own, params, metrics, tags)
