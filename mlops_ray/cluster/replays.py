"""A past period through the monitor as if it were live: the command `replay`."""

from datetime import datetime
from typing import Any

import polars as pl

from mlops_ray.cluster.training import asked
from mlops_ray.config import Project
from mlops_ray.errors import DataError, ReleaseError, UsageError
from mlops_ray.features import dataset
from mlops_ray.features.store import FeatureStore
from mlops_ray.monitoring import known, looks, period, replay
from mlops_ray.monitoring.alarms import Budget
from mlops_ray.monitoring.looks import Release
from mlops_ray.registry import estimator, signing
from mlops_ray.registry.predictor import Predictor
from mlops_ray.serving import record
from mlops_ray.serving.replica import watched
from mlops_ray.storage import Storage


def run(project: Project, storage: Storage, begin: datetime | None, end: datetime | None) -> dict[str, Any]:
    """What the monitor would have seen of the live version, had it answered each row of [begin, end) in time.

    The document of `period.described`; nothing of the service's own record changes. Raises `ReleaseError`
    where no version is live, `DataError` where the histories have nothing of that time.
    """
    if begin and end and begin >= end:
        raise UsageError(f"--from {begin.isoformat()} is not before --to {end.isoformat()}")
    champion = _champion(project, storage)
    features = champion.package.feature_set
    answered = pl.col(features.time) - pl.duration(microseconds=features.horizon_us)
    inside = [answered >= begin] if begin else []
    inside += [answered < end] if end else []
    rows = _rows(project, storage, champion).filter(*inside)
    predict = _predictor(project, storage, champion).predict_features
    log = replay.log(champion, rows, predict, project.label_delay)
    window_s, most, per_s, _ = watched(project)
    learned = None if champion.has_seasons else known.learned(storage.root, champion.package)
    tested = known.tested(storage.root, champion.package)
    replayed = replay.replay(champion, log, window_s, Budget(most, per_s), learned, tested)
    if not replayed.looks:
        raise DataError(
            f"no window of {project.project!r} closes then; one has monitoring.window and 50 rows"
        )
    found = period.described(project.project, replayed.looks, looks.told(replayed.alarms))
    return found | {"notes": _notes(champion, rows)}


def _notes(champion: Release, rows: pl.DataFrame) -> list[str]:
    learned = champion.package.origin.get("test_from")
    if learned is None:
        return []
    early = rows.filter(pl.col(champion.package.feature_set.time) < datetime.fromisoformat(learned))
    if early.is_empty():
        return []
    return [f"Rows before {learned} were learned from: of them the model knows too much."]


def _rows(project: Project, storage: Storage, champion: Release) -> pl.DataFrame:
    """Every labelled row of the histories, with the features that the live version is made of."""
    features, target = champion.package.feature_set, project.target.model_dump(mode="json")
    store = FeatureStore(project, storage)
    known = {view.table for view in store.views.values()}
    if not {view.table for view in features.tables} <= known:
        raise DataError(
            f"version {champion.version} reads other tables than the project file says: train it again"
        )
    if asked(champion.package.manifest["target"]) != asked(target):
        raise DataError(
            f"version {champion.version} answers another question than the project file asks: train it again"
        )
    return dataset.labelled(project, features, store.snapshots())[0]


def _champion(project: Project, storage: Storage) -> Release:
    entry = record.read(storage, project.project).get("champion")
    if entry is None:
        raise ReleaseError(f"no version of {project.project!r} is live yet; `run` brings one up")
    return looks.released(entry["version"], storage.root / entry["package"], entry["digest"])


def _predictor(project: Project, storage: Storage, champion: Release) -> Predictor:
    return Predictor.load(
        champion.package.folder,
        None,
        digest=champion.package.digest,
        functions=project.functions,
        trusted=signing.trusted(project, storage),
        types=estimator.allowed(project),
    )
