"""A past period through the monitor as if it were live: the command `replay`."""

from datetime import datetime
from typing import Any

import polars as pl

from mlops_ray.config import Project
from mlops_ray.errors import DataError, ReleaseError
from mlops_ray.features import dataset
from mlops_ray.features.store import FeatureStore
from mlops_ray.monitoring import joint, looks, period, replay
from mlops_ray.monitoring.alarms import Budget
from mlops_ray.monitoring.looks import Release
from mlops_ray.registry import estimator, signing
from mlops_ray.registry.predictor import Predictor
from mlops_ray.serving.replica import watched
from mlops_ray.storage import Storage


def run(project: Project, storage: Storage, begin: datetime | None, end: datetime | None) -> dict[str, Any]:
    """What the monitor would have seen of the live version, had it answered each row of [begin, end) in time.

    The document of `period.described`; nothing of the service's own record changes. Raises `ReleaseError`
    where no version is live, `DataError` where the histories have nothing of that time.
    """
    champion = next((r for r in looks.releases(storage, project.project).values() if r.is_champion), None)
    if champion is None:
        raise ReleaseError(f"no version of {project.project!r} is live yet; `run` brings one up")
    answered = pl.col(champion.package.feature_set.time) - pl.duration(
        microseconds=champion.package.feature_set.horizon_us
    )
    inside = [answered >= begin] if begin else []
    inside += [answered < end] if end else []
    rows = _rows(project, storage, champion).filter(*inside)
    predict = _predictor(project, storage, champion).predict_features
    log = replay.log(champion, rows, predict, project.label_delay)
    window_s, most, per_s, _ = watched(project)
    known = None if champion.has_seasons else joint.reference(storage.root, champion.package)
    replayed = replay.replay(champion, log, window_s, Budget(most, per_s), known)
    if not replayed.looks:
        raise DataError(
            f"no window of {project.project!r} closes then; one has monitoring.window and 50 rows"
        )
    return period.described(project.project, replayed.looks, looks.told(replayed.alarms))


def _rows(project: Project, storage: Storage, champion: Release) -> pl.DataFrame:
    """Every labelled row of the histories, with the features that the live version is made of."""
    features = champion.package.feature_set
    store = FeatureStore(project, storage)
    if {view.table for view in features.tables} != {view.table for view in store.views.values()}:
        raise DataError(
            f"version {champion.version} reads other tables than the project file says: train it again"
        )
    return dataset.build(project, features, store.snapshots(), storage).frame


def _predictor(project: Project, storage: Storage, champion: Release) -> Predictor:
    return Predictor.load(
        champion.package.folder,
        None,
        digest=champion.package.digest,
        functions=project.functions,
        trusted=signing.trusted(project, storage),
        types=estimator.allowed(project),
    )
