"""What becomes of a service when nodes go: the head dies and comes again, and a node is drained.

The head keeps its state in a Redis server, as that of configs/kuberay does. The nodes are fakes on this
machine (fakes.py); commands run as on a node of a cluster, by `RAY_ADDRESS`.
"""

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from mlops_ray import keys
from mlops_ray.client import Client
from mlops_ray.storage import Storage
from tests import fakes
from tests.e2e import load
from tests.e2e.conftest import COMMAND
from tests.e2e.load import Seen
from tests.fakes import FIRST, PATIENCE_S, Standing, until
from tests.features.conftest import RedisServer
from tests.serving import packages

pytestmark = pytest.mark.timeout(3 * PATIENCE_S)
CALLERS = 2
#: Of the head's state in Redis.
USER, PASSWORD = "user", "s3cret"
#: What KubeRay sets on all nodes of a cluster whose head keeps its state: how long they wait for a head.
KUBERAY = {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"}


@dataclass(frozen=True)
class Service:
    """A model that is served on a cluster."""

    cluster: Standing
    file: Path
    storage: Storage

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.cluster.cluster.http_port}"

    @property
    def key(self) -> str:
        return Path(keys.ensure_local(self.storage)).read_text().strip()

    def run(self, *command: str) -> Any:
        """What a command answers."""
        return json.loads(self.done(*command, "--json").splitlines()[-1])

    def done(self, *command: str) -> str:
        """What a command writes."""
        done = subprocess.run(
            [COMMAND, *command, str(self.file)],
            env=self.cluster.joined,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ask(self) -> list[float]:
        """What our client is answered."""
        client = Client(self.url, packages.NAME, self.key, timeout_s=30, tries=8)
        try:
            return list(client.predict([{"site": "a", "time": load.TIME, "load": 2.0}]).predictions)
        finally:
            client.close()

    def loaded(self, stop: threading.Event) -> tuple[Seen, Callable[[], Seen]]:
        """What callers of both kinds meet until `stop`, from now on, and what waits for them."""
        seen = Seen()
        return seen, load.steady(
            self.url, self.key, packages.NAME, 2.0, stop, CALLERS, balanced=True, seen=seen
        )

    def replicas(self, node: str) -> list[psutil.Process]:
        """Who answers for the model on a node."""
        return self.cluster.titled(node, f"ServeReplica:{packages.NAME}:")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A model with a replica on the one node beside the head, which keeps its state in Redis."""
    folder = tmp_path_factory.mktemp("head")
    server = RedisServer(tmp_path_factory.mktemp("redis"), PASSWORD)
    server.start()
    redis = {"redis-username": USER, "redis-password": PASSWORD}
    place = {"RAY_REDIS_ADDRESS": f"127.0.0.1:{server.port}", "RAY_external_storage_namespace": "head"}
    try:
        with fakes.standing(folder, redis, **KUBERAY, **place) as cluster:
            cluster.add(1)
            serving = {
                "replicas": {"min": 1, "max": 1},
                "resources": {"cpu": 0.5},
                "listen": {"port": cluster.cluster.http_port},
            }
            said = packages.PROJECT | {"storage": str(folder / "storage"), "serving": serving}
            (folder / "rows.csv").write_text("site,time,load,cost\na,2016-01-01T00:00:00Z,1.0,2.0\n")
            (folder / "project.yaml").write_text(yaml.safe_dump(said))
            made = Service(cluster, folder / "project.yaml", Storage.open(str(folder / "storage")))
            of = packages.project(made.storage.root, serving=serving)
            packed = packages.write(made.storage.path("packed"), of, 2.0)
            packages.crown(made.storage, packages.NAME, 1, packed)
            until(lambda: cluster.nodes() == ["1-node"])
            made.run("ingest")
            made.run("deploy")
            yield made
    finally:
        server.stop()


def answered(seen: Seen) -> None:
    """Returns when callers of both kinds have been answered who asked after this was called."""
    for kind in ("plain", "client"):
        before = seen.statuses[kind, 200]
        until(lambda kind=kind, before=before: seen.statuses[kind, 200] > before + CALLERS)


def test_requests_are_answered_while_the_head_is_gone_and_the_service_is_whole_when_it_is_back(
    service: Service,
) -> None:
    cluster, stop = service.cluster, threading.Event()
    seen, joined = service.loaded(stop)
    try:
        cluster.kill(FIRST)
        with_no_head = service.ask()
        answered(seen)
        assert cluster.titles(FIRST) == []
        cluster.start_head()
        until(lambda: any("ServeController" in title for title in cluster.titles(FIRST)))
        until(lambda: service.run("status")["state"] == "live")
    finally:
        stop.set()
        joined()
    assert with_no_head == pytest.approx([4.0])
    assert seen.wrong == []
    # Who does not ask again may have lost what was in the head's hands.
    assert sum(seen.statuses.values()) - seen.statuses["plain", 200] - seen.statuses["client", 200] <= CALLERS
    (replica,) = service.replicas("1-node")
    replica.kill()
    until(lambda: [each.pid for each in service.replicas("1-node")] not in ([], [replica.pid]))
    assert service.ask() == pytest.approx([4.0])


def test_no_request_is_lost_when_a_node_is_told_to_end(service: Service) -> None:
    cluster, stop = service.cluster, threading.Event()
    other = cluster.add(1)
    until(lambda: other in cluster.nodes())
    seen, joined = service.loaded(stop)
    try:
        # It has 25 s, and no other is told that it goes than Ray.
        cluster.terminate("1-node")
        assert len(service.replicas(other)) == 1
        answered(seen)
    finally:
        stop.set()
        joined()
    assert seen.wrong == []
    assert set(seen.statuses) == {("plain", 200), ("client", 200)}


def test_replicas_are_spread_over_the_nodes(service: Service) -> None:
    cluster = service.cluster
    service.done("down")
    cluster.add(1)
    until(lambda: len(cluster.nodes()) == 2)
    said = yaml.safe_load(service.file.read_text())
    said["serving"]["replicas"] = {"min": 2, "max": 2}
    service.file.write_text(yaml.safe_dump(said))
    service.run("deploy")
    until(lambda: sum(len(service.replicas(node)) for node in cluster.nodes()) == 2)
    assert [len(service.replicas(node)) for node in cluster.nodes()] == [1, 1]
