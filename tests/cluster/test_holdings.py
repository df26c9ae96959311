"""Who holds what of a real cluster is known by name."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import serve
from ray.job_submission import JobSubmissionClient
from ray.util.placement_group import placement_group, remove_placement_group

from mlops_ray.cluster import evidence, head, holdings, meter
from mlops_ray.cluster.local import LocalCluster
from mlops_ray.cluster.looper import RayCluster
from mlops_ray.serving import deploy
from tests.cluster.test_local import until

#: Holds so many CPUs with an actor, or with a task, until it is killed: nobody writes to the pipe.
HOLDS = """
import sys
import ray

what, cpus, pipe, address = sys.argv[1:5]
ray.init(address, log_to_driver=False)


def wait(pipe):
    open(pipe).read()


class Waits:
    def wait(self, pipe):
        wait(pipe)


if what == "actor":
    actor = ray.remote(Waits).options(num_cpus=float(cpus)).remote()
    ray.get(actor.wait.remote(pipe))
else:
    ray.get(ray.remote(wait).options(num_cpus=float(cpus)).remote(pipe))
"""
SECRET = "AKIA0SECRET"


class _Inside:
    def is_there(self) -> bool:
        return True


def held(*names: str) -> dict[str, float]:
    """The CPUs of each of these names, once all of them hold some."""

    def found() -> dict[str, float] | None:
        cpus = {each.name: each.cpu for each in holdings.works()}
        return cpus if {*names} <= {*cpus} else None

    return {name: cpus for name, cpus in until(found).items() if name in names}


def test_jobs_that_hold_half_a_cpu_and_a_whole_one_bear_each_its_own(
    ray_cluster: LocalCluster, tmp_path: Path
) -> None:
    """Of two CPUs one job holds a half, another one a whole, and a trial of a training a quarter."""
    (tmp_path / "hold.py").write_text(HOLDS)
    os.mkfifo(pipe := tmp_path / "pipe")
    jobs = JobSubmissionClient(ray_cluster.dashboard)
    command = f"python {tmp_path}/hold.py actor 0.5 {pipe} {ray_cluster.address} {SECRET}"
    jobs.submit_job(entrypoint=command, submission_id="nightly-fit")
    arguments = [tmp_path / "hold.py", "task", "1", pipe, ray_cluster.address, SECRET]
    own = subprocess.Popen([sys.executable, *map(str, arguments)], env=os.environ | ray_cluster.environment)
    try:
        with holdings.training("churn"):
            trial = placement_group([{"CPU": 0.25}])
            # What runs in it holds no more than it.
            inside: Any = ray.remote(num_cpus=0.25)(_Inside).options(placement_group=trial).remote()
            assert ray.get(inside.is_there.remote())
            named = "job nightly-fit (hold.py actor)", "job hold.py task", "training churn"
            cpus = dict(zip(named, (0.5, 1.0, 0.25), strict=True))
            assert held(*named) == cpus
            line = meter.entry(60.0, 60.0, RayCluster().nodes(), [], "m", {}, RayCluster().works())
        (node,) = line["nodes"]
        assert {name: node["jobs"][name]["cpu"] for name in named} == cpus
        assert SECRET not in str(line)
        # The training is over; who trained holds it still.
        assert "training churn" not in {each.name for each in holdings.works()}
        remove_placement_group(trial)
    finally:
        jobs.stop_job("nightly-fit")
        own.kill()
        own.wait()


@serve.deployment(num_replicas=3, ray_actor_options={"num_cpus": 0.9})
class Large:
    """Of which two find room on two CPUs."""


def test_replicas_that_wait_for_room_keep_nobody_from_seeing_those_that_run(
    ray_cluster: LocalCluster,
) -> None:
    serve.start(http_options={"host": head.LOOPBACK, "port": ray_cluster.http_port})
    target = serve.RunTarget(Large.bind(), name="large", route_prefix=None)
    serve.run_many([target], wait_for_applications_running=False)

    def seen() -> int:
        details = serve.context._get_global_client().get_serve_details()  # type: ignore[union-attr]
        deployments = details["applications"].get("large", {}).get("deployments", {})
        return sum(len(each["replicas"]) for each in deployments.values())

    try:
        until(lambda: seen() == 3)
        until(lambda: sum(each.model == "large" for each in RayCluster().replicas()) == 2)
        assert seen() == 3
        assert sum(name == "large" for name, _ in deploy.nodes()) == 2
        token = Path(ray_cluster.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        places = evidence.places(["large"], {}, ray_cluster.dashboard, token)["large"]
        assert sum(each["replicas"] for each in places["nodes"]) == 2
    finally:
        serve.delete("large")


def test_what_ends_a_training_is_told_also_where_its_cluster_is_gone(
    ray_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as gone, holdings.training("churn"):
        gone.setattr(holdings.internal_kv, "_internal_kv_del", None)
        raise KeyboardInterrupt
    # Here it goes on.
    with holdings.training("churn"):
        pass
