"""Who holds what of the connected cluster, as Ray's global store knows it, and says that it trains.

It knows of which job each actor, placement group (every trial is in one) and running task is. The store is
asked itself: the dashboard, which also tells, may be off.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import ray
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import common_pb2, gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc
from ray.experimental import internal_kv

from mlops_ray.cluster.works import SUBMITTED, TRAINING, Work, named
from mlops_ray.serving.deploy import SPACE

#: What Ray's store speaks; its types are made as it is imported.
GCS, ASKED, STORE, COMMON = (
    cast(Any, each) for each in (gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc, common_pb2)
)
#: Where a driver says of what model the training is that it runs, by the id of its job.
KEY, MODEL = "training/{}", re.compile(rb"[a-z0-9][a-z0-9-]{0,199}")
#: Who runs Serve, and the commands of jobs: replicas are counted by themselves.
SERVE, SUPERVISORS, SUPERVISOR = "serve", "SUPERVISOR_ACTOR_RAY_NAMESPACE", "_ray_internal_job_actor_"
#: Tasks that are asked for at most, and how long the answer may take: it comes within hundredths of a second.
MOST_TASKS, ANSWER_S = 10_000, 5.0


@contextlib.contextmanager
def training(model: str) -> Iterator[None]:
    """Within the block, what this process' job holds of the cluster is of the training of a model."""
    key = KEY.format(ray.get_runtime_context().get_job_id()).encode()
    # A name is not worth a training.
    with contextlib.suppress(Exception):
        internal_kv._internal_kv_put(key, model.encode(), namespace=SPACE)
    try:
        yield
    finally:
        # Where the cluster is gone so is the key; what ended the training is what is to be told.
        with contextlib.suppress(Exception):
            internal_kv._internal_kv_del(key, namespace=SPACE)


def works() -> list[Work]:
    """What jobs hold beside replicas, by their names; of tasks those that began a second ago or earlier."""
    found = [*_actors(), *_groups(), *_tasks()]
    holding = [each for each in found if each.size.get("CPU") or each.size.get("GPU")]
    names = _names() if holding else {}
    return [
        Work(each.node, names[each.job], each.size.get("CPU", 0.0), each.size.get("GPU", 0.0))
        for each in holding
        if each.job in names
    ]


class _Held(NamedTuple):
    """What holds something of a node, and for which job: its id, or what it was submitted as."""

    node: str
    job: str
    size: Mapping[str, float]


def _store() -> Any:
    return ray._private.state.state._connect_and_get_accessor()


def _actors() -> Iterator[_Held]:
    """Actors; those in a placement group ask for a resource of its own name, and hold none of the node."""
    for raw in _store().get_actor_table(None, "ALIVE"):
        actor = GCS.ActorTableData.FromString(raw)
        if actor.ray_namespace == SERVE:
            continue
        is_command = actor.ray_namespace == SUPERVISORS
        job = actor.name.removeprefix(SUPERVISOR) if is_command else actor.job_id.hex()
        yield _Held(actor.address.node_id.hex(), job, actor.required_resources)


def _groups() -> Iterator[_Held]:
    """The bundles of placement groups, which hold what is in them whether it is used or not."""
    for raw in _store().get_placement_group_table():
        group = GCS.PlacementGroupTableData.FromString(raw)
        if group.state == GCS.PlacementGroupTableData.CREATED:
            job = group.creator_job_id.hex()
            yield from (_Held(bundle.node_id.hex(), job, bundle.unit_resources) for bundle in group.bundles)


def _tasks() -> Iterator[_Held]:
    """Tasks that run; one that waits for another is in another state, and holds nothing meanwhile."""
    asked = ASKED.GetTaskEventsRequest(limit=MOST_TASKS)
    asked.filters.exclude_driver = True
    asked.filters.state_filters.add(state="RUNNING", predicate=ASKED.FilterPredicate.EQUAL)
    with contextlib.closing(init_grpc_channel(ray.get_runtime_context().gcs_address)) as channel:
        store = STORE.TaskInfoGcsServiceStub(channel)
        found = store.GetTaskEvents(asked, timeout=ANSWER_S)
    for task in found.events_by_task:
        # What an actor does holds no more than the actor.
        if task.task_info.type == COMMON.TaskType.NORMAL_TASK:
            size = task.task_info.required_resources
            yield _Held(task.state_updates.node_id.hex(), task.job_id.hex(), size)


def _names() -> dict[str, str]:
    """The names of jobs, by their ids and by what they were submitted as."""
    raws = _store().get_job_table(skip_submission_job_info_field=True, skip_is_running_tasks_field=True)
    names = {}
    for job in map(GCS.JobTableData.FromString, raws):
        id, told = job.job_id.hex(), dict(job.config.metadata)
        model = _trained(id)
        names[id] = f"{TRAINING} {model}" if model else named(id, job.entrypoint, told)
        if SUBMITTED in told:
            names[told[SUBMITTED]] = names[id]
    return names


def _trained(id: str) -> str:
    """The model whose training a job says to be; empty of one that says none, or what is no model's name."""
    said = internal_kv._internal_kv_get(KEY.format(id).encode(), namespace=SPACE) or b""
    return said.decode() if MODEL.fullmatch(said) else ""
