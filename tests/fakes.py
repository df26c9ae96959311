"""A cluster on this machine that grows and shrinks by the node types of a real file for `ray up`.

Its nodes are processes of this machine which say of themselves what the file says of its machines, resources
and labels. Ray's own autoscaler starts them by Ray's provider of fakes, and ends them. What a machine has
once, and nodes would share (ports and files of HAProxy), each is given for itself.
"""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FAKE_HEAD_NODE_TYPE,
    FakeMultiNodeProvider,
)
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE

from mlops_ray.cluster import head, local, node
from mlops_ray.cluster.head import LOOPBACK, TOKEN
from mlops_ray.cluster.local import LocalCluster

ROOT = Path(__file__).parent.parent
#: Nodes, and all that runs on them, start on two cores, which others use as well.
PATIENCE_S, POLL_S = 180.0, 0.1
#: Stands in the environment of each process of a node, and of nothing else: "3-gpu" is the third, a `gpu`.
NODE, FIRST = "MLOPS_FAKE_NODE", "0-head"
#: What a node has for objects: all take it from this machine's memory.
OBJECTS_BYTES = 10**8
#: Where the provider, in the autoscaler's process, reads what the cluster has: a folder and a block of ports,
#: of which each node is given two.
FOLDER, BLOCK, FIRST_PORT = "MLOPS_FAKE_FOLDER", "MLOPS_FAKE_BLOCK", 20
OWN_PORTS = ("HAPROXY_STATS_PORT", "HAPROXY_METRICS_PORT")
OWN_FILES = {
    "HAPROXY_CONFIG_FILE_LOC": "c",
    "HAPROXY_SOCKET_PATH": "s",
    "HAPROXY_METRICS_SOCKET_PATH": "m",
    "HAPROXY_SERVER_STATE_BASE": "",
    "HAPROXY_SERVER_STATE_FILE": "state",
}
#: What else differs from a cluster of machines.
SETTINGS = {
    "RAY_FAKE_CLUSTER": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    # As `ray up` has it.
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    # Serve's front ends share a port, as machines behind a load balancer do an address.
    "SERVE_SOCKET_REUSE_PORT_ENABLED": "1",
    # By default a front end on a node without a replica stays for 30 s.
    "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "2",
    # Else each node would start a worker for each of the CPUs that it says it has.
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
}


class Provider(FakeMultiNodeProvider):
    """What the autoscaler has start nodes and end them."""

    def _create_node_with_resources_and_labels(
        self,
        node_config: Any,
        tags: Mapping[str, str],
        count: int,
        resources: Mapping[str, float],
        labels: Mapping[str, str],
    ) -> None:
        number = self._next_node_id + 1
        own = {NODE: f"{number}-{tags[TAG_RAY_USER_NODE_TYPE]}", node.LABELS: json.dumps(labels)}
        before = dict(os.environ)
        os.environ.update(node.environment(before | own | _apart(number, before)))
        try:
            held = {**resources, "object_store_memory": OBJECTS_BYTES}
            super()._create_node_with_resources_and_labels(node_config, tags, count, held, labels)
        finally:
            os.environ.clear()
            os.environ.update(before)


def _apart(number: int, environ: Mapping[str, str]) -> dict[str, str]:
    """What a node has for itself."""
    folder, first = Path(environ[FOLDER], str(number)), int(environ[BLOCK]) + FIRST_PORT + 2 * number
    ports = {name: str(first + at) for at, name in enumerate(OWN_PORTS)}
    files = {name: str(folder / file) for name, file in OWN_FILES.items()}
    return {f"RAY_SERVE_{name}": value for name, value in (ports | files).items()}


@dataclass(frozen=True)
class Fakes:
    """A cluster of fakes that runs."""

    cluster: LocalCluster

    @property
    def environment(self) -> dict[str, str]:
        """Of a driver, which ends with the cluster."""
        own = {"PYTHONPATH": str(ROOT), local.MARKER: self.cluster.marker}
        return _without_ray() | self.cluster.environment | own

    def nodes(self, pool: str = "") -> list[str]:
        """Those that run, but for the head; of a type."""
        all_of = {environ.get(NODE) for process, environ in self._all() if process.info["name"] == "raylet"}
        return sorted(each for each in all_of - {None, FIRST} if each.endswith(f"-{pool}" if pool else ""))

    def titles(self, node: str) -> list[str]:
        """What the processes of a node call themselves."""
        found = []
        for process in self._of(node):
            with contextlib.suppress(psutil.Error):
                found += process.cmdline()[:1]
        return found

    def kill(self, node: str) -> None:
        """Ends a node as a machine that is taken away: at once, and nothing of it is told before."""
        end(lambda: self._of(node))

    def _of(self, node: str) -> list[psutil.Process]:
        return [process for process, environ in self._all() if environ.get(NODE) == node]

    def _all(self) -> Iterator[tuple[psutil.Process, dict[str, str]]]:
        for process in local.carrying(self.cluster.marker):
            with contextlib.suppress(psutil.Error, OSError):
                yield process, process.environ()


@contextlib.contextmanager
def running(file: Path, folder: Path, *, idle_s: float) -> Iterator[Fakes]:
    """A cluster by a file for `ray up` whose idle nodes go after so long; its head is up.

    It asks for a token, and all of its processes have the settings that the file has them started with.
    """
    marker = secrets.token_hex(4)
    temp_dir = Path(tempfile.gettempdir(), f"mlf-{marker}")
    ports, claims = head.claim_ports({})
    (folder / TOKEN).write_text(secrets.token_hex())
    cluster = LocalCluster(
        marker=marker,
        pid=0,
        address=f"{LOOPBACK}:{ports['gcs']}",
        dashboard="",
        http_port=ports["http"],
        environment=head.environment(folder / TOKEN, temp_dir, ports),
        temp_dir=str(temp_dir),
    )
    scaled = config(file, cluster.address, idle_s)
    top = scaled["available_node_types"][FAKE_HEAD_NODE_TYPE]
    (folder / "autoscaling.json").write_text(json.dumps(scaled))
    own = {local.MARKER: marker, NODE: FIRST, node.LABELS: json.dumps(top["labels"]), "PYTHONPATH": str(ROOT)}
    own |= {FOLDER: str(temp_dir), BLOCK: str(ports["claim"])}
    temp_dir.mkdir(mode=0o700)
    with contextlib.ExitStack() as claimed, (folder / "head.log").open("wb") as log:
        for claim in claims:
            claimed.enter_context(claim)
        process = subprocess.Popen(
            _command(temp_dir, folder / "autoscaling.json", ports, top["resources"]),
            env=_without_ray() | cluster.environment | SETTINGS | own | _apart(0, own),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[claim.fileno() for claim in claims],
        )
    try:
        # Ray writes it in the end.
        address = temp_dir / "r" / "ray_current_cluster"
        until(lambda: address.exists() or process.poll() is not None)
        assert process.poll() is None, (folder / "head.log").read_text()
        yield Fakes(cluster)
    finally:
        end(lambda: local.carrying(marker))
        process.wait()
        shutil.rmtree(temp_dir, ignore_errors=True)


def config(file: Path, address: str, idle_s: float) -> dict[str, Any]:
    """What a file for `ray up` says, for fakes: its types with their resources, labels, bounds and priority.

    Left out is what a cloud is told, and what is done on a machine to make a node of it.
    """
    said = yaml.safe_load(file.read_text())
    types = {
        FAKE_HEAD_NODE_TYPE if name == said["head_node_type"] else name: kind | {"node_config": {}}
        for name, kind in said["available_node_types"].items()
    }
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": said["cluster_name"],
        "max_workers": said["max_workers"],
        "upscaling_speed": said["upscaling_speed"],
        "idle_timeout_minutes": idle_s / 60,
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "available_node_types": types,
        "provider": {
            "type": "external",
            "module": f"{__name__}.{Provider.__name__}",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "gcs_address": address,
            "head_node_id": FAKE_HEAD_NODE_ID,
        },
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{f"{name}_commands": [] for name in commands},
        "cluster_synced_files": [],
    }


def _command(
    temp_dir: Path, scaled: Path, ports: Mapping[str, int], resources: Mapping[str, float]
) -> list[str]:
    """What runs the head in the foreground, by the module that the file starts all nodes by."""
    options = {
        "num-cpus": resources["CPU"],
        "num-gpus": resources.get("GPU", 0),
        "autoscaling-config": scaled,
        "temp-dir": temp_dir / "r",
        "object-store-memory": OBJECTS_BYTES,
        "port": ports["gcs"],
        "ray-client-server-port": ports["client"],
        "dashboard-agent-listen-port": ports["agent"],
        "dashboard-agent-grpc-port": ports["agent_grpc"],
        "runtime-env-agent-port": ports["runtime_env"],
        "metrics-export-port": ports["metrics"],
        "min-worker-port": 0,
        "max-worker-port": 0,
        "include-dashboard": False,
        "include-log-monitor": False,
    }
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"]
    arguments = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, "-P", "-m", node.__name__, *ray, *arguments]


def _without_ray() -> dict[str, str]:
    """This process' environment, without what it says of the cluster of other tests."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLOPS_"))}


def end(processes: Callable[[], list[psutil.Process]]) -> None:
    """Ends these, and those that come while they end."""
    while left := processes():
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=POLL_S)


def until(asked: Callable[[], Any]) -> Any:
    """What is answered as soon as that is anything."""
    last = time.monotonic() + PATIENCE_S
    while not (found := asked()):
        assert time.monotonic() < last, f"not within {PATIENCE_S} s"
        time.sleep(POLL_S)
    return found
