"""The stages of `run`, from raw rows to a served and monitored model.

Each stage is recorded when it is whole (stages.py), so that a run continues where the one before it stopped
and does only what changed.
"""

import os
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl

from mlops_ray import __version__
from mlops_ray.cluster.intake import Intake, require_readable
from mlops_ray.cluster.stages import Progress, Silent, Stages
from mlops_ray.config import Project, Source
from mlops_ray.data import counts
from mlops_ray.errors import ConfigError, StorageError, TrainingError
from mlops_ray.features import dataset
from mlops_ray.features.dataset import TrainingSet
from mlops_ray.features.definitions import FeatureSet
from mlops_ray.features.history import Snapshot, read
from mlops_ray.features.shelves import ONLINE
from mlops_ray.features.store import FeatureStore
from mlops_ray.monitoring.deltas import PREDICTION
from mlops_ray.policy import label_selector
from mlops_ray.registry import package
from mlops_ray.registry.predictor import Predictor
from mlops_ray.registry.registry import Registry
from mlops_ray.schema import Column
from mlops_ray.serving import record, release
from mlops_ray.storage import Storage, replacing
from mlops_ray.training import evaluate, families, metrics, splits, sweep, tracking
from mlops_ray.training.sweep import Trial
from mlops_ray.training.task import Task

#: How a database file begins.
SQLITE = b"SQLite format 3\0"


@dataclass
class Pipeline:
    """One run over a project: its stages in their order, everything they share built here."""

    project: Project
    storage: Storage
    progress: Progress = field(default_factory=Silent)

    def __post_init__(self) -> None:
        """Raises `ConfigError` and `DataError` for what cannot be run, before anything is started."""
        _require_sqlite(self.storage.path(ONLINE), "features are then materialised again")
        _require_sqlite(self.storage.path("mlflow.db"), "runs and versions are then lost")
        self.stages = Stages(self.storage, self.progress)
        self._preparing: threading.Thread | None = None
        self.store = FeatureStore(self.project, self.storage)
        require_readable(self.project)
        self.features: FeatureSet = self.store.features
        self.intake = Intake(self.store, self.storage, self.stages)
        _ = self.test_from

    def require_supported(self) -> None:
        """Raises `ConfigError` where a project asks for what is not built yet, rather than ignore it."""
        asks = {
            "release.shadow and release.canary": self.project.release.shadow is not None
            or bool(self.project.release.canary),
            "target.label_known by a column": bool(
                self.project.target.label_known and self.project.target.label_known.column
            ),
            "target.transform": self.project.target.transform is not None,
            f"target.task: {self.project.target.task}": self.project.target.task != "regression",
            "training.search.gpu": self.project.training.search.gpu != "none",
            "monitoring.retrain": self.project.monitoring.retrain is not None,
            "serving.explain": self.project.serving.explain != "never",
            "cost.prices": self.project.cost.prices is not None,
        }
        for what, asked in asks.items():
            if asked:
                raise ConfigError(f"{what} is not supported yet; leave it out")
        families.find(self.project.training.families)
        metrics.find(self.project.training.metric, self.project.target.task)

    @property
    def tracking_uri(self) -> str:
        return tracking_uri(self.project, self.storage)

    @cached_property
    def registry(self) -> Registry:
        return Registry(self.tracking_uri)

    @property
    def target_source(self) -> Source:
        return self.project.sources[self.project.target.source]

    @cached_property
    def snapshots(self) -> dict[str, Snapshot]:
        """The histories as this run sees them: whatever others store meanwhile."""
        return self.store.snapshots()

    @property
    def test_from(self) -> datetime | None:
        """The first target time of the test part, or `None` where a share says it.

        A date is local and names the start of a row's interval; a row is stamped with its end.
        """
        date = self.project.training.validation.test.from_
        if date is None:
            return None
        spec = self.target_source.event_time
        zone = ZoneInfo((spec.timezone if spec else None) or "UTC")
        try:
            begin = datetime.fromisoformat(date)
        except ValueError:
            raise ConfigError(
                f"training.validation.test.from: {date!r} is no date; write e.g. 2016-11-01"
            ) from None
        begin = begin if begin.tzinfo else begin.replace(tzinfo=zone)
        resample = self.target_source.resample
        return begin.astimezone(UTC) + timedelta(microseconds=resample.every if resample else 0)

    def prepare(self) -> None:
        """Makes the tracking database in the background: a new one takes seconds that reading can use."""
        if self.project.tracking is None:
            self._preparing = threading.Thread(target=self._make_database, daemon=True)
            self._preparing.start()

    def _make_database(self) -> None:
        """A process that dies within leaves no half-made database: it is made beside and takes its place."""
        path = self.storage.path("mlflow.db")
        if not path.exists():
            with replacing(path) as new:
                new.unlink()
                tracking.prepare(f"sqlite:///{new}", self.project.project, self._artifacts)

    @property
    def _artifacts(self) -> str | None:
        return str(self.storage.root / "artifacts") if self.project.tracking is None else None

    def _experiment(self) -> str:
        if self._preparing is not None:
            self._preparing.join()
        return tracking.prepare(self.tracking_uri, self.project.project, self._artifacts)

    # ------------------------------------------------------------ data

    def ingest(self) -> dict[str, str]:
        """Brings every source into its history; the id of the newest commit of each that features read."""
        commits = {name: self.intake.ingest(name) for name in self.project.sources}
        return {name: commits[name] for name in self.store.views}

    # ------------------------------------------------------------ features

    def build(self, commits: dict[str, str]) -> TrainingSet:
        """The training set over these histories, and the online store brought up to them."""
        made_from = {
            "features": self.features.digest,
            "target": self.project.target.model_dump(mode="json"),
            "tables": {name: view.table for name, view in self.store.views.items()},
            "commits": commits,
            "libraries": dataset.libraries(),
            "code": release.code_digest(),
        }
        result = self.stages.run(
            self._stage("features"),
            made_from,
            self._build,
            say=_say_features,
            still_there=self._is_built,
        )
        return dataset.open_set(self.storage, result["file"])

    def _stage(self, name: str) -> str:
        """A stage's name in the record: projects may share a storage."""
        return f"{name} {self.project.project}"

    def _build(self) -> dict[str, Any]:
        made = self.store.build(self.snapshots)
        watermarks = {
            source: until.isoformat() for source, until in self.store.materialize(self.snapshots).items()
        }
        columns = list(self.features.names)
        return {
            "file": made.path.name,
            "rows": made.frame.height,
            "columns": columns,
            "watermarks": watermarks,
        }

    def _is_built(self, result: dict[str, Any]) -> bool:
        if not self.storage.path("datasets", result["file"]).exists():
            return False
        return not self.features.tables or len(self.store.online().watermarks(self.features)) == len(
            self.features.tables
        )

    # ------------------------------------------------------------ training

    def train(self, training_set: TrainingSet) -> dict[str, Any]:
        """Sweeps, fits and tests the winner, packs and registers it."""
        task = self._task(training_set)
        project = self.project
        made_from = {
            "data": training_set.manifest["digest"],
            "features": self.features.digest,
            "target": project.target.model_dump(mode="json"),
            "training": project.training.model_dump(mode="json"),
            "label_delay": project.label_delay,
            "season": task.season_us,
            "test_from": task.test_from,
            "postprocess": project.serving.postprocess.model_dump(mode="json"),
            "code": release.code_digest(),
        }
        return self.stages.run(
            self._stage("train"),
            made_from,
            lambda: self._train(task, training_set),
            say=_say_train,
            still_there=lambda r: self._is_registered(r["version"]),
        )

    def _task(self, training_set: TrainingSet) -> Task:
        project, frame = self.project, training_set.frame
        begin, share = self.test_from, project.training.validation.test.share
        if begin is None:
            micros = splits.test_start(frame[self.features.time].to_physical().to_numpy(), share or 0.0)
            begin = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=micros)
        return Task(
            frame=frame,
            columns=self.features.columns,
            keys=self.target_source.entity,
            time=self.features.time,
            kind=project.target.task,
            training=project.training,
            horizon_us=self.features.horizon_us,
            label_delay_us=project.label_delay,
            test_from=begin,
            season_us=self.target_source.season,
            postprocess=project.serving.postprocess,
        )

    def _is_registered(self, version: int) -> bool:
        if self.project.tracking is None and not self.storage.path("mlflow.db").exists():
            return False
        return any(known["version"] == version for known in self.registry.versions(self.project.project))

    def _train(self, task: Task, training_set: TrainingSet) -> dict[str, Any]:
        with tracking.open_run(self.tracking_uri, self._experiment(), self.project.project) as run:
            run.set_tags({"mlops.dataset": training_set.manifest["digest"], "mlops.code": __version__})
            found = sweep.run(
                task,
                folder=self.storage.path("sweep", "x").parent,
                label_selector=label_selector(s.policy for s in self.project.sources.values()),
                on_progress=lambda done, total, what: self.progress.update(
                    f"trial {done} of {total}: {what}"
                ),
                on_trial=run.log_trial,
            )
            best = found.best
            self.progress.update(f"fitting {best.family} on all training rows")
            fitted = evaluate.refit(task, best.family, best.params, cpus=os.cpu_count() or 1)
            report = evaluate.test(task, fitted)
            run.log_params({"family": best.family, **best.params})
            run.log_metrics(report.metrics)
            reasons = self._gate(task, report)
            packed = self._pack(task, fitted, report, training_set)
            version = self.registry.register(packed, name=self.project.project, run_id=run.id)
        return {
            "version": version,
            "run_id": run.id,
            "family": best.family,
            "params": best.params,
            "leaderboard": [_row(trial) for trial in found.leaderboard],
            "metrics": report.metrics,
            "baselines": report.baselines,
            "refused": reasons,
        }

    def _gate(self, task: Task, report: evaluate.Report) -> list[str]:
        """Why the winner must not go live; compared with the champion's answers to the same test rows."""
        name, champion = self.project.project, None
        version = self.registry.champion(name)
        if version is not None:
            champion = self._champion_metrics(task, version)
        return evaluate.gate(report, champion, self.project.training.gate, self.project.training.metric)

    def _champion_metrics(self, task: Task, version: int) -> dict[str, float] | None:
        packed = self.registry.package(self.project.project, version)
        functions = self.project.functions
        predictor = Predictor.load(packed.folder, None, digest=packed.digest, functions=functions)
        if _meaning(packed.feature_set) != _meaning(self.features):
            # Its features are not in this training set, so that the two cannot be compared row by row.
            return None
        rows = task.frame[task.test.held_out].select(self.features.names)
        return evaluate.scores(task, predictor.predict_features(rows))

    def _pack(
        self, task: Task, fitted: evaluate.Fitted, report: evaluate.Report, training_set: TrainingSet
    ) -> package.Package:
        rows = task.test.train
        known = task.frame[rows].select(self.features.names)
        known = known.with_columns(pl.Series(PREDICTION, fitted.predict(task, rows)))
        columns = (*self.features.columns, Column(PREDICTION, "float"))
        seed = self.project.training.search.seed
        return package.write(
            self.storage.path("artifacts", "packages", self.project.project),
            name=self.project.project,
            task=self.project.target.task,
            family=fitted.family,
            params=fitted.params,
            model=fitted.model,
            encoder=fitted.encoder,
            feature_set=self.features,
            target=self.project.target.model_dump(mode="json"),
            postprocess=self.project.serving.postprocess,
            metrics=report.metrics,
            baselines=report.baselines,
            training_set={k: training_set.manifest[k] for k in ("file", "digest", "rows", "as_of")},
            reference=counts.reference(known, columns, seed).to_json(),
            created_at=datetime.now(UTC),
        )

    # ------------------------------------------------------------ live

    def push(self, trained: dict[str, Any]) -> package.Package:
        """Makes the trained version the champion if it passed the gate; returns the champion's package.

        Raises `TrainingError` where it did not pass and there is no champion to stay.
        """
        name = self.project.project
        with self.stages.timed("push", lambda r: r["said"]) as result:
            champion = self.registry.champion(name)
            if trained["refused"] and trained["version"] != champion:
                if champion is None:
                    raise TrainingError(f"nothing goes live: {'; '.join(trained['refused'])}")
                result["said"] = f"version {champion} stays champion: {'; '.join(trained['refused'])}"
            else:
                self.registry.set_champion(name, trained["version"])
                result["said"] = (
                    f"version {trained['version']} is champion already"
                    if champion == trained["version"]
                    else f"version {trained['version']} is champion now"
                )
                champion = int(trained["version"])
            packed = self.registry.package(name, champion)
            record.set_champion(self.storage, name, champion, packed)
        return packed

    def serve(self, http_port: int) -> str:
        """Serves the champion on the connected cluster; returns the service's address."""
        with self.stages.timed("serve", lambda r: r["said"]) as result:
            deployed = release.deploy(self.project, self.storage, http_port=http_port)
            started = ", ".join(deployed.started)
            result["said"] = (
                f"{deployed.url}: {f'started {started}' if started else 'all of it runs already'}"
            )
        return deployed.url

    def example_request(self) -> dict[str, Any]:
        """A row that the service can answer now: the last target time, and the first entity."""
        bounds = self.store.online().bounds(self.features)
        snapshot = self.snapshots[self.project.target.source]
        table = read(snapshot, [next(iter(snapshot.buckets))])
        row = table.select(n for n in self.features.request.names if n in table.columns).row(0, named=True)
        last = bounds[1] if bounds else datetime.now(UTC)
        return {**row, self.features.time: last.isoformat()}


def _meaning(features: FeatureSet) -> tuple[Any, ...]:
    """What makes the features of two versions the same columns."""
    return features.columns, features.stored, features.computed, features.horizon_us


def _require_sqlite(path: Path, loss: str) -> None:
    """Raises `StorageError` where a file of ours is no database any more."""
    if path.exists() and path.stat().st_size:
        with path.open("rb") as file:
            if file.read(len(SQLITE)) != SQLITE:
                raise StorageError(f"{path} is damaged; put a copy back, or delete it ({loss})")


def _say_features(result: dict[str, Any]) -> str:
    untils = result["watermarks"]
    said = [f"{source} up to {until}" for source, until in untils.items()]
    if len(set(untils.values())) == 1:
        said = [f"online up to {until}" for until in set(untils.values())]
    return ", ".join([f"{result['rows']:,} rows × {len(result['columns'])} features", *said])


def _say_train(result: dict[str, Any]) -> str:
    trials, version = len(result["leaderboard"]), result["version"]
    return f"{trials} trials, {result['family']} wins and is registered as version {version}"


def _row(trial: Trial) -> dict[str, Any]:
    return {
        "family": trial.family,
        "params": dict(trial.params),
        "score": trial.score,
        "folds": list(trial.fold_scores),
        "seconds": trial.seconds,
        "state": trial.state,
    }


def tracking_uri(project: Project, storage: Storage) -> str:
    """Where runs and versions are recorded: MLflow's address, by default a file of the storage."""
    return project.tracking or f"sqlite:///{storage.path('mlflow.db')}"


def registered(project: Project, storage: Storage) -> list[dict[str, Any]]:
    """The registered versions of a project's model, newest first, with what their packages say."""
    if project.tracking is None and not storage.path("mlflow.db").exists():
        return []
    registry = Registry(tracking_uri(project, storage))
    found = registry.versions(project.project)
    return [_version(registry.package(project.project, v["version"]), v) for v in found]


def _version(packed: package.Package, version: dict[str, Any]) -> dict[str, Any]:
    return {
        "version": version["version"],
        "state": version["state"],
        "family": packed.family,
        "metrics": packed.metrics,
        "created_at": packed.manifest["created_at"],
    }
