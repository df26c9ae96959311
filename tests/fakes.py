"""Clusters of several nodes on this machine: one that grows and shrinks by a real file for `ray up`, and one
whose nodes come and go as they are told.

Nodes are processes of this machine which say of themselves what machines would, resources and labels; of the
first cluster what the file says, and Ray's own autoscaler starts them by Ray's provider of fakes, and ends
them. What a machine has once, and nodes would share (ports and files of HAProxy), each is given for itself.
"""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import yaml
from ray._private.node import Node
from ray._private.parameter import RayParams
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
#: What else differs from a cluster of machines; and of one that the autoscaler grows.
SETTINGS = {
    # Serve's front ends share a port, as machines behind a load balancer do an address.
    "SERVE_SOCKET_REUSE_PORT_ENABLED": "1",
    # By default a front end on a node without a replica stays for 30 s.
    "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "2",
    # Else each node would start a worker for each of the CPUs that it says it has.
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
}
AUTOSCALED = {
    "RAY_FAKE_CLUSTER": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    # As `ray up` has it.
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
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

    @property
    def joined(self) -> dict[str, str]:
        """Of a command that is to run on the cluster."""
        return self.environment | {"RAY_ADDRESS": self.cluster.address}

    def nodes(self, pool: str = "") -> list[str]:
        """Those that run, but for the head; of a type."""
        all_of = {
            environ.get(NODE, "") for process, environ in self._all() if process.info["name"] == "raylet"
        }
        return sorted(each for each in all_of - {"", FIRST} if each.endswith(f"-{pool}" if pool else ""))

    def titles(self, node: str) -> list[str]:
        """What the processes of a node call themselves."""
        found = []
        for process in self._of(node):
            with contextlib.suppress(psutil.Error):
                found += process.cmdline()[:1]
        return found

    def titled(self, node: str, part: str) -> list[psutil.Process]:
        """The processes of a node that call themselves so."""
        found = []
        for process in self._of(node):
            with contextlib.suppress(psutil.Error):
                found += [process] if any(part in title for title in process.cmdline()[:1]) else []
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


@dataclass(frozen=True)
class Place:
    """Where a cluster is started: a folder for logs, ports kept for it, and what started its nodes."""

    cluster: LocalCluster
    folder: Path
    ports: Mapping[str, int]
    claims: Sequence[socket.socket]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, node_name: str, command: Sequence[str], **own: str) -> None:
        """Starts a node in the foreground, by the module that cluster.yaml starts all nodes by."""
        own |= {NODE: node_name, local.MARKER: self.cluster.marker, "PYTHONPATH": str(ROOT)}
        own |= {FOLDER: self.cluster.temp_dir, BLOCK: str(self.ports["claim"])}
        own |= _apart(int(node_name.partition("-")[0]), own)
        with (self.folder / f"{node_name}.log").open("ab") as log:
            self.processes[node_name] = subprocess.Popen(
                [sys.executable, "-P", "-m", node.__name__, *command],
                env=_without_ray() | self.cluster.environment | SETTINGS | own,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[claim.fileno() for claim in self.claims],
            )

    def start_head(self, options: Mapping[str, object], **own: str) -> None:
        """Starts a head, which is up when this returns."""
        # Ray writes it in the end.
        address = Path(self.cluster.temp_dir, "r", "ray_current_cluster")
        address.unlink(missing_ok=True)
        ray = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"]
        arguments = [f"--{name}={value}" for name, value in {**self._of_head(), **options}.items()]
        self.start(FIRST, [*ray, *arguments], **own)
        process = self.processes[FIRST]
        until(lambda: address.exists() or process.poll() is not None)
        assert process.poll() is None, (self.folder / f"{FIRST}.log").read_text()

    def _of_head(self) -> dict[str, object]:
        return {
            "temp-dir": Path(self.cluster.temp_dir, "r"),
            "object-store-memory": OBJECTS_BYTES,
            "port": self.ports["gcs"],
            "ray-client-server-port": self.ports["client"],
            "dashboard-agent-listen-port": self.ports["agent"],
            "dashboard-agent-grpc-port": self.ports["agent_grpc"],
            "runtime-env-agent-port": self.ports["runtime_env"],
            "metrics-export-port": self.ports["metrics"],
            "min-worker-port": 0,
            "max-worker-port": 0,
            "include-log-monitor": False,
        }


@dataclass(frozen=True)
class Standing(Fakes):
    """A cluster of fakes without an autoscaler: nodes come and go as they are told."""

    place: Place
    #: Of the head, beside those of all heads: options of `ray start`, and environment.
    options: Mapping[str, object]
    own: Mapping[str, str]

    def start_head(self) -> None:
        """Starts the head, or starts it again in the same way; it is up when this returns."""
        self.place.start_head(self.options, **self.own)

    def add(self, cpus: float) -> str:
        """A new node with so many CPUs, by its name; it comes up later."""
        name = f"{len(self.place.processes)}-node"
        # `ray start` refuses a second node where a machine is 127.0.0.1 (head.SETTINGS).
        self.place.start(name, [sys.executable, "-m", "tests.fakes", self.cluster.address, str(cpus)])
        return name

    def terminate(self, node: str) -> None:
        """Tells a node to end, as Kubernetes does, by SIGTERM to what started it; returns when it has."""
        self.place.processes[node].terminate()
        self.place.processes[node].wait(PATIENCE_S)


@contextlib.contextmanager
def standing(
    folder: Path, options: Mapping[str, object] = MappingProxyType({}), **own: str
) -> Iterator[Standing]:
    """A cluster whose head is up, without CPUs, with a dashboard, and no other node."""
    with _placed(folder) as place:
        usual = {"num-cpus": 0, "num-gpus": 0, "dashboard-port": place.ports["dashboard"]}
        made = Standing(place.cluster, place, {**usual, **options}, own)
        made.start_head()
        yield made


@contextlib.contextmanager
def running(file: Path, folder: Path, *, idle_s: float) -> Iterator[Fakes]:
    """A cluster by a file for `ray up` whose idle nodes go after so long; its head is up.

    It asks for a token, and all of its processes have the settings that the file has them started with.
    """
    with _placed(folder) as place:
        scaled = config(file, place.cluster.address, idle_s)
        top = scaled["available_node_types"][FAKE_HEAD_NODE_TYPE]
        (folder / "autoscaling.json").write_text(json.dumps(scaled))
        options = {
            "num-cpus": top["resources"]["CPU"],
            "num-gpus": top["resources"].get("GPU", 0),
            "autoscaling-config": folder / "autoscaling.json",
            "include-dashboard": False,
        }
        place.start_head(options, **AUTOSCALED, **{node.LABELS: json.dumps(top["labels"])})
        yield Fakes(place.cluster)


@contextlib.contextmanager
def _placed(folder: Path) -> Iterator[Place]:
    """Where a cluster can be started; all that carries its marker ends with it."""
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
    place = Place(cluster, folder, ports, claims)
    temp_dir.mkdir(mode=0o700)
    try:
        with contextlib.ExitStack() as claimed:
            for claim in claims:
                claimed.enter_context(claim)
            yield place
    finally:
        end(lambda: local.carrying(marker))
        for process in place.processes.values():
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


def main(address: str, cpus: float) -> None:
    """Runs a node of a cluster until it is told to end, or is drained, as `ray start --block` does."""
    params = RayParams(
        gcs_address=address,
        redis_address=address,
        num_cpus=cpus,
        num_gpus=0,
        object_store_memory=OBJECTS_BYTES,
        min_worker_port=0,
        max_worker_port=0,
        dashboard_port=None,
        dashboard_agent_listen_port=0,
    )
    started = Node(params, head=False, shutdown_at_exit=True, spawn_reaper=True)
    started.all_processes["raylet"][0].process.wait()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
