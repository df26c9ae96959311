"""The process of the loop: one deployment of Serve without a route, whose retrainings are Ray jobs.

It stands on nobody's path, and needs no CPU of its own. A job outlives it; who comes after finds the job by
its id.
"""

import os
import shlex
import sys
from dataclasses import dataclass
from functools import cached_property

import ray
from ray import serve
from ray.job_submission import JobSubmissionClient

from mlops_ray.cluster.loop import FOLDER, Loop, Settings
from mlops_ray.cluster.retraining import GIVES_WAY
from mlops_ray.errors import ClusterError, one_line
from mlops_ray.serving.reconciler import Single, single

#: The Serve application, and how soon a dead process is noticed; nothing hurries.
APPLICATION, HEALTH_CHECK_S = "loop", 10.0
#: How often is looked for what there is to do.
POLL_S = 2.0


class Looping(Single):
    """The process that closes the loop of a storage's models for as long as it lives."""

    LOCK, PROCESS = (FOLDER, ".lock"), "loop"

    def _work(self) -> None:
        os.nice(GIVES_WAY)
        loop = Loop(self._storage, RayJobs(str(self._storage.root)))
        while not self._ended.wait(POLL_S):
            loop.tick()


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
        free = ray.available_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
        all_of = ray.cluster_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
        grown = ray._private.state.state.get_max_resources_from_cluster_config() or {}
        if free >= settings.cpus or grown.get("CPU", 0.0) > all_of:
            return ""
        return (
            f"a trial needs {settings.cpus:g} CPUs (training.search.resources), and {all_of - free:g} of "
            f"{all_of:g} are held by replicas (serving.resources) and others: it begins when they are free"
        )


def deployment(storage_root: str, label_selector: dict[str, str]) -> serve.Application:
    """The loop's application; it has no route, and one replica."""
    return single(Looping, "Loop", storage_root, label_selector, HEALTH_CHECK_S)
