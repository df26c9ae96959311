"""The stages of `run`, from raw rows to a served and monitored model.

Each stage is recorded when it is whole (stages.py), so that a run continues where the one before it stopped
and does only what changed.
"""

import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from mlops_ray import audit
from mlops_ray.cluster import evidence, joined, loop, looper, meter, profitable, releases, training
from mlops_ray.cluster.intake import Intake, require_readable
from mlops_ray.cluster.local import LocalCluster
from mlops_ray.cluster.stages import Progress, Silent, Stages
from mlops_ray.cluster.training import Trainer
from mlops_ray.config import Project, Source
from mlops_ray.errors import ConfigError, PackageError, StorageError, TrainingError, did_you_mean
from mlops_ray.features import dataset
from mlops_ray.features.dataset import TrainingSet
from mlops_ray.features.definitions import FeatureSet
from mlops_ray.features.history import Snapshot, read
from mlops_ray.features.shelves import ONLINE
from mlops_ray.features.store import FeatureStore
from mlops_ray.registry import metrics, signing
from mlops_ray.registry.registry import Registry
from mlops_ray.serving import deploy, record
from mlops_ray.serving.rpc import Listener
from mlops_ray.storage import Storage, replacing
from mlops_ray.training import families, own, sweep, tracking

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
        self._require_segments()
        self.intake = Intake(self.store, self.storage, self.stages)
        _ = self.test_from

    def require_supported(self) -> None:
        """Raises `ConfigError` where a project asks for what is not built yet, rather than ignore it."""
        known = self.project.target.label_known
        if known is not None and known.column:
            raise ConfigError("target.label_known by a column is not supported yet; leave it out")
        if self.project.cost.prices is not None:
            meter.priced(self.project)
        families.find(self.project.training.families, self.project.target.task)
        own.require_allowed(self.project)
        metrics.find(self.project.training.metric, self.project.target.task)

    def _require_segments(self) -> None:
        """A segment that cuts nothing would never be missed."""
        source = self.target_source
        types = {key: source.columns[key].type for key in source.entity}
        types |= {column.name: column.type for column in self.features.columns}
        hidden = {column.name for column in self.features.columns if column.hidden}
        hidden |= {name for source in self.project.sources.values() for name in source.hidden}
        for name in self.project.monitoring.segments:
            why = None
            if name not in types:
                why = f"is neither a feature nor a key of the target's rows{did_you_mean(name, types)}"
            elif name in hidden:
                why = "is for machines alone, and a segment shows its values"
            elif types[name] == "datetime":
                why = "is a time, of which each row has its own"
            if why is not None:
                raise ConfigError(f"{name!r} {why}", at=("monitoring", "segments"))

    @property
    def tracking_uri(self) -> str:
        return deploy.tracking_uri(self.project, self.storage)

    @cached_property
    def registry(self) -> Registry:
        return Registry(self.tracking_uri)

    @cached_property
    def trainer(self) -> Trainer:
        return Trainer(
            self.project,
            self.storage,
            self.features,
            self.registry,
            self.tracking_uri,
            self._experiment,
            self.progress,
        )

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
            "code": deploy.code_digest(),
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
        about = {"model": self.project.project, "sources": [*self.store.views]}
        with evidence.telling(self.storage, self.project.policies, "rows were joined", about) as nodes:
            made = self.store.build(self.snapshots, nodes.add)
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

    def train(self, training_set: TrainingSet, **how: Any) -> dict[str, Any]:
        """Sweeps, fits and tests the winner, packs and registers it; `how` as `Trainer.train` takes it."""
        task = training.task(self.project, self.features, training_set, self.test_from)
        project = self.project
        made_from = {
            "data": training_set.digest,
            "features": self.features.digest,
            "target": project.target.model_dump(mode="json"),
            "training": [
                project.training.model_dump(mode="json", exclude=sweep.PLACED),
                own.code(project.training),
            ],
            "label_delay": project.label_delay,
            "season": task.season_us,
            "test_from": task.test_from,
            "postprocess": task.outcome.to_json(),
            "code": deploy.code_digest(),
        }
        spent = meter.held(self.storage, project.project, time.time())
        trained = self.stages.run(
            self._stage("train"),
            made_from,
            lambda: self._trained(task, training_set, **how),
            say=_say_train,
            still_there=lambda r: self._is_registered(r["version"]),
        )
        told = [*self._missed(trained), *self._held(spent), *self._quarantined()]
        return {**trained, "notes": [*trained["notes"], *told]}

    def _held(self, spent: str) -> list[str]:
        """That a version was trained though the budget was `spent`: only what begins by itself is held."""
        if not spent or self._stage("train") in self.stages.unchanged:
            return []
        return [f"{spent}; this training is not held for that, and adds to it"]

    def _missed(self, trained: dict[str, Any]) -> list[str]:
        """What a version lacks that was trained before its project spoke of money."""
        if self._stage("train") not in self.stages.unchanged:
            return []
        # Where prices did not fit, and still may not, that is said already.
        has_cost = trained.get("cost") is not None or any(
            n.startswith(training.UNKNOWN) for n in trained["notes"]
        )
        has_reason = any(training.UNCOMPARED in note for note in trained["notes"])
        version = int(trained["version"])
        return profitable.missed(
            self.project, self.storage, version, has_cost=has_cost, has_reason=has_reason
        )

    def _trained(self, task: Any, training_set: TrainingSet, **how: Any) -> dict[str, Any]:
        """What the trainer makes; a version that its gate refuses is so in the registry, for all to see."""
        trained = self.trainer.train(task, training_set, **how)
        if trained["refused"]:
            reason = "; ".join(trained["refused"])
            self.registry.set_state(self.project.project, trained["version"], "refused", reason)
        return trained

    def _quarantined(self) -> list[str]:
        """Of each source that is learned from, how many rows the last reading of it kept out."""
        reports = {n: self.storage.read_json("reports", f"validation-{n}.json") for n in self.store.views}
        return [
            f"{report['quarantined']:,} of the {report['rows_in']:,} rows of {name} read last are in "
            f"quarantine: see {self.storage.path('reports', f'validation-{name}.html')}"
            for name, report in reports.items()
            if report and report["quarantined"]
        ]

    def _is_registered(self, version: int) -> bool:
        return any(known["version"] == version for known in self.registry.versions(self.project.project))

    # ------------------------------------------------------------ live

    def push(self, trained: dict[str, Any]) -> int | None:
        """Pushes the trained version if it passed the gate, and returns it; `None` where the champion stays.

        It is loaded, and people are told, as the project was deployed last (`deploy.settle`).
        Raises `TrainingError` where it did not pass and there is no champion to stay.
        """
        name, version = self.project.project, int(trained["version"])
        with self.stages.timed("push", lambda r: r["said"]) as result:
            champion = (record.read(self.storage, name).get("champion") or {}).get("version")
            if champion == str(version):
                result["said"] = f"version {version} is champion already"
                return None
            if trained["refused"]:
                if champion is None:
                    raise TrainingError(f"nothing goes live: {'; '.join(trained['refused'])}")
                result["said"] = f"version {champion} stays champion: {'; '.join(trained['refused'])}"
                return None
            before = releases.outcome(record.read(self.storage, name) or record.new(name), version)
            if champion is not None and before["state"] in releases.SENT_BACK:
                # The same version again would fare no better; who thinks so pushes it.
                said = f"version {version} was {before['state'].replace('_', ' ')}: {before['reason']}"
                result["said"] = f"version {champion} stays champion: {said}"
                return None
            releases.push(self.project, self.storage, version)
            result["said"] = f"version {version} is pushed"
        return version

    def serve(self, cluster: LocalCluster, project: Project) -> str:
        """Serves the champion on the connected cluster as the project says; returns the service's address."""
        listen = project.serving.listen
        listener = Listener(
            listen.host, listen.grpc_port or cluster.grpc_port, listen.certificate, listen.key
        )
        with self.stages.timed("serve", lambda r: r["said"]) as result:
            loops, meters = loop.settle(project, self.storage), meter.settle(project, self.storage)
            deployed = deploy.deploy(
                project,
                self.storage,
                http_port=cluster.http_port,
                host=joined.binds(project, cluster),
                reached=cluster.host,
                listener=listener,
                beside={looper.APPLICATION: looper.deployment} if loops or meters else {},
            )
            about = {"model": project.project, "started": deployed.started}
            about |= evidence.where(project.policies, evidence.serving(project))
            audit.append(self.storage, "a model is served", audit.who(), about, is_done=True)
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


def registered(project: Project, storage: Storage) -> list[dict[str, Any]]:
    """The registered versions of a project's model, newest first, as `Registry.versions` gives them."""
    return Registry(deploy.tracking_uri(project, storage)).versions(project.project)


def inside(project: Project, storage: Storage, version: int) -> dict[str, Any]:
    """What is inside a registered version, as CycloneDX 1.6 (`mlops_ray.sbom`).

    Raises `NotFoundError` for a version that there is not, and `PackageError` for a package that is damaged,
    not signed by somebody trusted, or of before packages said it.
    """
    registry = Registry(deploy.tracking_uri(project, storage))
    found = registry.package(project.project, version, trusted=signing.trusted(project, storage)).sbom
    if found is None:
        raise PackageError(
            f"version {version} of {project.project!r} was packed before packages listed what is inside; "
            "mlops-ray train makes one that does"
        )
    return found
