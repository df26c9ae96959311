"""The process that trains again and counts costs: one deployment of Serve without a route.

Retrainings are Ray jobs. It stands on nobody's path, and needs no CPU of its own. A job outlives it; who
comes after finds the job by its id.
"""

import math
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import ray
from ray import serve
from ray.job_submission import JobSubmissionClient

from mlops_ray import placement
from mlops_ray.cluster import holdings, node
from mlops_ray.cluster.loop import FOLDER, Loop, Settings
from mlops_ray.cluster.meter import MACHINE, MARKET, SPOT, Meter, Node, Replica
from mlops_ray.cluster.retraining import GIVES_WAY
from mlops_ray.cluster.sizing import Machines
from mlops_ray.cluster.works import Work
from mlops_ray.config import Project
from mlops_ray.cost.model import ROUNDING
from mlops_ray.errors import ClusterError, one_line
from mlops_ray.placement import admits
from mlops_ray.policy import label_selector
from mlops_ray.serving.reconciler import Single, single

#: The Serve application, and how soon a dead process is noticed; nothing hurries.
APPLICATION, HEALTH_CHECK_S = "loop", 10.0
#: How often is looked for what there is to do.
POLL_S = 2.0


class Looping(Single):
    """The process that closes the loop of a storage's models, and meters them, for as long as it lives."""

    LOCK, PROCESS = (FOLDER, ".lock"), "loop"

    def _work(self) -> None:
        os.nice(GIVES_WAY)
        loop = Loop(self._storage, RayJobs(str(self._storage.root)))
        meter = Meter(self._storage, RayCluster())
        while not self._ended.wait(POLL_S):
            loop.tick()
            meter.tick()


@dataclass
class RayJobs:
    """Jobs of the cluster that this process belongs to (loop.Jobs)."""

    storage_root: str

    @cached_property
    def _client(self) -> JobSubmissionClient:
        return JobSubmissionClient(ray.get_runtime_context().gcs_address)

    def submit(self, id: str, settings: Settings) -> None:
        """Has a job run `retraining` on the project's file, on a node that may see its rows."""
        # -P: a ray.py beside the file is not Ray.
        command = [sys.executable, "-P", "-m", "mlops_ray.cluster.retraining"]
        command += [settings.file, id, self.storage_root]
        labels = dict(settings.selector) or None
        try:
            self._client.submit_job(
                entrypoint=shlex.join(command), submission_id=id, entrypoint_label_selector=labels
            )
        except (RuntimeError, OSError) as error:
            raise ClusterError(f"the job cannot be submitted: {one_line(error)}") from error

    def state(self, id: str) -> str | None:
        """What Ray says of a job; `None` of one that it does not know."""
        # Asked of one job, Ray has no other answer to "unknown" than an error's text.
        found = {job.submission_id: job.status.value for job in self._client.list_jobs()}
        return found.get(id)

    def lacks(self, settings: Settings) -> str:
        """What keeps a trial from running now, unless nodes are added to the cluster by themselves."""
        selector = {**settings.selector, **settings.labels}
        free = sum(node.get("CPU", 0.0) for node in placement.free(selector))
        all_of = sum(node["Resources"].get("CPU", 0.0) for node in placement.living(selector))
        if free >= settings.cpus or placement.grows():
            return ""
        return (
            f"a trial needs {settings.cpus:g} CPUs (training.search.resources), and {all_of - free:g} of "
            f"{all_of:g} are held by replicas (serving.resources) and others: it begins when they are free"
        )


class RayCluster:
    """What runs on the cluster that this process belongs to (meter.Cluster)."""

    def nodes(self) -> list[Node]:
        free = ray._private.state.available_resources_per_node()  # type: ignore[no-untyped-call]
        return [
            Node(
                node["NodeID"],
                node["Labels"],
                *(node["Resources"].get(what, 0.0) for what in ("CPU", "GPU")),
                *(free.get(node["NodeID"], {}).get(what, 0.0) for what in ("CPU", "GPU")),
            )
            for node in placement.living({})
        ]

    def replicas(self) -> list[Replica]:
        """Those that have their node: what Serve says of the models of this service."""
        details = serve.context._get_global_client().get_serve_details()  # type: ignore[union-attr]
        found = []
        for model, application in details["applications"].items():
            for id, deployment in placement.replicas(application):
                held = deployment["deployment_config"]["ray_actor_options"]
                size = float(held.get("num_cpus", 1.0)), float(held.get("num_gpus", 0.0))
                found.append(Replica(id, model, *size))
        return found

    def works(self) -> list[Work]:
        """What jobs hold beside them, by name."""
        return holdings.works()


def machines(project: Project) -> Machines:
    """The types of the connected cluster's machines on which replicas may run, as they are known.

    That is by the labels of its nodes, by its autoscaler, and by what the project says of nodes without one.
    """
    selector = label_selector(project.policies)
    nodes = [
        each for each in RayCluster().nodes() if (each.cpus or each.gpus) and admits(selector, each.labels)
    ]
    # Of machines that may be taken away there are none for who does not plan with them.
    lasting = [each for each in nodes if project.cost.spot or each.labels.get(MARKET) != SPOT]
    types = {each.labels.get(MACHINE) for each in lasting}
    unlabelled = (project.cost.machine or "") if None in types else None
    known = {machine for machine in types if machine is not None} | node.machines(os.environ)
    return Machines(
        frozenset(known), unlabelled, lambda cpu, gpu, labels: room(cpu, gpu, {**selector, **labels})
    )


def room(cpu: float, gpu: float, selector: Mapping[str, str]) -> int:
    """How many replicas of so many CPUs and GPUs find room now on nodes with these labels."""
    return sum(_room(each, cpu, gpu) for each in RayCluster().nodes() if admits(selector, each.labels))


def _room(node: Node, cpu: float, gpu: float) -> int:
    """How many replicas of so many CPUs and GPUs a node has free; none lies on parts of two GPUs.

    >>> _room(Node("a", {}, 2, 2, 0.3, 2), 0.1, 0), _room(Node("a", {}, 4, 2, 4, 2), 1, 0.6)
    (3, 2)
    """
    by_cpu = math.inf if not cpu else node.free_cpus / cpu + ROUNDING
    by_gpu = math.inf if not gpu else node.free_gpus / gpu + ROUNDING
    if 0 < gpu < 1:
        by_gpu = math.floor(node.free_gpus + ROUNDING) * math.floor(1 / gpu + ROUNDING)
    return int(min(by_cpu, by_gpu))


def deployment(storage_root: str, label_selector: dict[str, str]) -> serve.Application:
    """The loop's application; it has no route, and one replica."""
    return single(Looping, "Loop", storage_root, label_selector, HEALTH_CHECK_S)
