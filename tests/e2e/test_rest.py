"""A model that nobody asks takes no replica, and whoever asks first is answered when one has started."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlops_ray import keys
from mlops_ray.client import Client
from mlops_ray.cluster.local import LocalCluster
from mlops_ray.serving import autoscaling, deploy
from mlops_ray.storage import Storage
from tests.e2e import load
from tests.e2e.processes import replicas
from tests.serving import packages

NAME, FACTOR = "rests", 4.0
#: Far more than a start takes on a machine that does much else.
PATIENCE_S = 120.0
ROW = {"site": "a", "time": load.TIME, "load": 7.0}


@pytest.fixture
def client(ray_cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    from ray import serve

    # The policy goes to the controller with what its module says here: it is to rest within seconds.
    monkeypatch.setattr(autoscaling, "HOLD", 0.2)
    monkeypatch.setattr(autoscaling, "STEADY_S", 4.0)
    storage = Storage.open(str(tmp_path / "storage"))
    serving = {"replicas": {"min": 0, "max": 2}, "resources": {"cpu": 0.2}}
    of = packages.project(storage.root, project=NAME, serving=serving)
    packages.crown(storage, NAME, 1, packages.write(storage.path("artifacts", NAME), of, FACTOR, NAME))
    key = Path(keys.ensure_local(storage)).read_text().strip()
    deployed = deploy.deploy(of, storage, http_port=ray_cluster.http_port)
    yield Client(deployed.url, NAME, key, timeout_s=PATIENCE_S, tries=1)
    for application in ("gateway", NAME):
        serve.delete(application)


def until(condition: Callable[[], object]) -> float:
    """The seconds until it holds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < PATIENCE_S, "it does not come"
        time.sleep(0.1)
    return time.monotonic() - began


def test_a_model_at_rest_has_no_replica_and_its_first_caller_waits_for_one(
    client: Client, ray_cluster: LocalCluster
) -> None:
    for _ in range(2):
        until(lambda: not replicas(ray_cluster, NAME))
        began = time.monotonic()
        assert client.predict([ROW]).predictions.tolist() == [pytest.approx(7 * FACTOR, abs=0.01)]
        first_s, began = time.monotonic() - began, time.monotonic()
        assert client.predict([ROW]).predictions.tolist() == [pytest.approx(7 * FACTOR, abs=0.01)]
        # Who comes then waits for nobody.
        assert time.monotonic() - began < first_s
        assert len(replicas(ray_cluster, NAME)) == 1
        print(f"the first waited for {first_s:.1f} s")
