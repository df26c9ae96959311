"""The ports of a cluster of ours: who answers there, from where he can be reached, and what guards it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from mlops_ray.cluster.head import LOOPBACK, OFFSETS, REPLICA_PORTS
from mlops_ray.cluster.local import LocalCluster
from mlops_ray.config import Project

ALL = "0.0.0.0"  # noqa: S104 - what is said here of others' ports binds none
#: Who asks for nothing, and shows figures alone, is guarded by its address, or by a firewall.
Guard = Literal["key", "token", "loopback", "firewall"]


@dataclass(frozen=True)
class Port:
    """A port, or several of a kind; `numbers` is empty where it is any that is free and of no other entry."""

    name: str
    who: str
    numbers: range
    guard: Guard
    host: str = LOOPBACK
    process: str = ""  # how the name of one begins that listens on a free port

    def is_of(self, process: str, host: str, number: int) -> bool:
        """Whether a process of this name may listen on this address and number by this entry."""
        at = host.removeprefix("::ffff:")
        here = at == self.host or (self.host == ALL and at == "::")
        return here and (
            number in self.numbers
            if self.numbers
            else bool(self.process) and process.startswith(self.process)
        )

    def to_json(self) -> dict[str, str]:
        """The entry in words."""
        first, last = (self.numbers[0], self.numbers[-1]) if self.numbers else (None, None)
        numbers = "any free" if first is None else str(first) if first == last else f"{first} to {last}"
        return {"name": self.name, "who": self.who, "host": self.host, "port": numbers, "guard": self.guard}


#: What is in a block, and what guards it. The guards "token" and "loopback" are Ray's, on our settings.
_BLOCK: dict[str, tuple[str, Guard, str]] = {
    "gcs": ("Ray's control store", "token", LOOPBACK),
    "dashboard": ("Ray's dashboard and jobs", "token", LOOPBACK),
    "client": ("Ray's client server", "token", LOOPBACK),
    "agent": ("the node's agent", "token", LOOPBACK),
    "agent_grpc": ("the node's agent", "token", LOOPBACK),
    "runtime_env": ("the agent of runtime environments", "token", LOOPBACK),
    "metrics": ("Ray's figures", "loopback", LOOPBACK),
    "dashboard_metrics": ("figures of Ray's dashboard", "loopback", LOOPBACK),
    "haproxy_stats": ("HAProxy's statistics", "firewall", ALL),
    "haproxy_metrics": ("HAProxy's metrics", "firewall", ALL),
    "fallback_http": ("Serve's fallback proxy", "key", LOOPBACK),
}
#: Who listens on ports that are free: Ray's own processes, and replicas for each other.
_FREE = (
    ("raylet", "Ray's node and its objects", LOOPBACK),
    ("ray::", "Ray's workers", LOOPBACK),
    ("ray::ServeRepli", "calls from replica to replica", ALL),
)


def table(project: Project, cluster: LocalCluster) -> list[Port]:
    """Every port that listens when a project's service runs; on a cluster not ours, those of our code."""
    listen = project.serving.listen
    if not cluster.marker:
        return [
            Port("http", "Serve's front end", _one(cluster.http_port), "key", listen.host),
            Port(
                "grpc", "the gateway's gRPC", _one(listen.grpc_port or cluster.grpc_port), "key", listen.host
            ),
        ]
    base = int(cluster.address.rsplit(":", 1)[1]) - OFFSETS["gcs"]
    replicas = base + OFFSETS["replicas_http"]
    found = [
        Port("http", "Serve's front end", _one(cluster.http_port), "key"),
        Port("grpc", "the gateway's gRPC", _one(listen.grpc_port or cluster.grpc_port), "key", listen.host),
        Port("replicas_http", "replicas", range(replicas, replicas + REPLICA_PORTS + 1), "key"),
    ]
    if listen.front_port is not None:
        found.insert(0, Port("front", "our own front end", _one(listen.front_port), "key", listen.host))
    found += [
        Port(name, who, _one(base + OFFSETS[name]), guard, host)
        for name, (who, guard, host) in _BLOCK.items()
    ]
    return [*found, *(Port(p, who, range(0), "token", host, p) for p, who, host in _FREE)]


def _one(number: int) -> range:
    return range(number, number + 1)


def exposed(ports: Iterable[Port]) -> list[str]:
    """What those who start a service are told of the ports that can be reached from beyond this machine."""
    said = {
        "key": "answers who has a key, but for /v2/health and the page of the login",
        "token": "asks for Ray's token",
        "firewall": "asks for nothing, whatever one sets: keep it behind a firewall",
    }
    return [
        f"open beyond this machine: {port.who} ({port.host}, port: {port.to_json()['port']}), which"
        f" {said[port.guard]}"
        for port in ports
        if port.host != LOOPBACK
    ]
