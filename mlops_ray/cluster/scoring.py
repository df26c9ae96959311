"""Batch scoring of a project's model: the command `predict`."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlops_ray.cluster import evidence, interrupt, joined, service
from mlops_ray.cluster.local import LocalCluster
from mlops_ray.cluster.stages import Progress, Stages, alone
from mlops_ray.config import Project
from mlops_ray.errors import StorageError
from mlops_ray.features.shelves import online_location
from mlops_ray.policy import label_selector, machine_only, quoting_nothing, require_here, require_stores
from mlops_ray.registry import estimator, signing
from mlops_ray.serving import record, score
from mlops_ray.serving.score import Job, Scoring
from mlops_ray.serving.versions import loader
from mlops_ray.storage import Storage


def predict(
    project: Project,
    storage: Storage,
    progress: Progress,
    given: str,
    output: Path,
    version: int | None = None,
) -> dict[str, Any]:
    """Answers the rows of files as the endpoint would; see `Job.run` for what comes back.

    By the champion, or by a registered `version`. What is small is scored in this process, else it runs on
    the cluster of this storage, or on one that is started for it and stopped again. Raises what
    `score.opened` raises, and `PolicyError` where rows may not be on this machine.
    """
    require_here(project.policies)
    require_stores(project)
    load = loader(
        storage,
        online_location(project, storage),
        project.functions,
        signing.trusted(project, storage),
        estimator.allowed(project),
    )
    scoring = Scoring(
        load,
        entry(project, storage, progress, version),
        machine_only(project),
        str(score.parts_folder(output.absolute())),
        any(policy.restricts for policy in project.policies),
    )
    with quoting_nothing(project.policies), score.opened(scoring, given, output.absolute()) as job:
        if job.is_small:
            return _score(project, job, Stages(storage, progress), on_ray=False)
        stages = Stages(storage, progress)
        with connected(project, storage, stages):
            return _score(project, job, stages, on_ray=True)


@contextlib.contextmanager
def connected(project: Project, storage: Storage, stages: Stages) -> Iterator[LocalCluster]:
    """The cluster of this storage, or one for the block, connected.

    Not a pipeline's: that reads what a model is trained on, which need not be there any more.
    """
    with contextlib.ExitStack() as lock:
        lock.enter_context(alone(storage))
        ours = joined.is_missing(storage)
        if not ours:
            # One that is there for others holds nobody up.
            lock.close()
        with interrupt.stops(storage.root if ours else None):
            # Ray reads these when it is imported.
            joined.settle()
            with service.leaving(storage, ours=ours):
                yield service.connect(project, storage, stages, ours)


def _score(project: Project, job: Job, stages: Stages, *, on_ray: bool) -> dict[str, Any]:
    about: dict[str, Any] = {"model": project.project}
    with evidence.telling(stages.storage, project.policies, "rows were scored", about) as nodes:
        with stages.timed("score", _said) as result:
            result |= job.run(
                on_ray=on_ray,
                selector=label_selector(project.policies),
                on_progress=lambda rows: stages.progress.update(f"{rows:,} rows"),
                on_node=nodes.add,
            )
        about |= {"version": result["version"], "rows": result["scored"]}
    return result


def _said(result: dict[str, Any]) -> str:
    return f"{result['rows']:,} rows, {result['errors']:,} without an answer"


def entry(project: Project, storage: Storage, progress: Progress, version: int | None) -> dict[str, Any]:
    """What the release document says of the champion, or would say of a version."""
    champion: dict[str, Any] | None = record.read(storage, project.project).get("champion")
    if champion is not None and version in (None, int(champion["version"])):
        return champion
    if version is None:
        raise StorageError(f"{project.project!r} has no champion; `run` makes one, or name --version")
    registry = service._pipeline(project, storage, progress).registry
    folder, digest = registry.stored(storage, project.project, version)
    return {"version": str(version), "digest": digest, "package": str(folder)}
