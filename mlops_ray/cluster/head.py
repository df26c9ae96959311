"""What a head of our own is started with: its ports, its environment, its command line."""

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from mlops_ray.errors import ClusterError
from mlops_ray.policy import HERE, REGION

LOOPBACK = "127.0.0.1"
TOKEN = "ray.token"  # noqa: S105 - a file's name

#: Where Serve's front end, and the gateway's gRPC, listen unless somebody else does.
HTTP_PORT, GRPC_PORT = 8000, 8001
USUAL = {"http": HTTP_PORT, "grpc": GRPC_PORT}
#: Each cluster takes a block of ports, so that projects run side by side: above those that Ray gives to
#: workers by default (10002 to 19999) and below those that Linux gives to outgoing connections (32768).
FIRST_PORT, LAST_PORT, BLOCK_PORTS = 20000, 30000, 500
#: The port of a replica that has gone rests for 150 s, so they need many.
REPLICA_PORTS = 200
#: What is where in a block. HAProxy's log goes to the claim's UDP port, where nobody reads it.
OFFSETS = {
    "claim": 0, "gcs": 1, "dashboard": 2, "client": 3, "agent": 4, "agent_grpc": 5, "runtime_env": 6,
    "metrics": 7, "dashboard_metrics": 8, "haproxy_stats": 9, "haproxy_metrics": 10, "fallback_http": 11,
    "fallback_grpc": 12, "http": 13, "grpc": 14, "replicas_http": 100, "replicas_grpc": 300,
}  # fmt: skip

#: HAProxy's log cannot be switched off; a datagram for one request in a thousand costs nothing. On a node of
#: a cluster it goes where a syslog would listen, and mostly none does.
SAMPLED, LOG_PORT = "sample 1:1000", 514

#: A laptop must cope: what does not fit is spilled to disk.
OBJECT_STORE_SHARE, OBJECT_STORE_MAX_BYTES = 0.25, 2 * 1024**3
#: What keeps Ray and MLflow from telling their makers what is done with them.
SILENT = {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
#: What drivers, jobs and every process of a cluster must have set before they import ray.
SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "",  # would go before the file that RAY_AUTH_TOKEN_PATH names
    **SILENT,
    # Whatever its name says: on Linux too, "0" makes Ray take 127.0.0.1 for this machine's address.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # A caller that says nothing, or half a request, holds one of so many connections for an hour by default.
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
    # A replica that dies with a request in its hands has said nothing yet: another may be asked. Asking for a
    # prediction twice does no harm.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    # A dead front end is noticed at the third look, until when nobody is answered: 10 s apart by default.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    # Requests go to our application before Serve looks at them: see there.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "mlops_ray.serving.direct:middlewares",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # else a process parses a datagram for every request
    # By default a replica waits 30 s before it goes; HAProxy has dropped it within 1 s.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    # When all stops, callers go before those whom they call, this much before; 30 s by default.
    "RAY_SERVE_SHUTDOWN_TIER_TIMEOUT_S": "1",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    # By default workers make way for all else on the machine, replicas and their proxy too; here only those
    # that train do (training.trial).
    "RAY_worker_niceness": "0",
    # Threads that wait for work sleep: spinning ones take the cores from whoever shares them.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Ray's processes set their titles; without this a title overwrites the environment, marker and all.
    "SPT_NOENV": "1",
}
#: What of them is of one machine alone: where there are several, addresses are needed, and the token may
#: stand in its variable.
OF_ONE_MACHINE = {"RAY_AUTH_TOKEN", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}
#: How long a node that is to go lets replicas end what they do while others are started elsewhere, which
#: takes seconds. Kubernetes kills after 30 s.
DRAIN_S = 25
#: `ray start` without the subcommands that it would import and not use, which took 1 to 2 of 6 s.
RAY_START = """
import sys
unused = "ray.serve.scripts", "ray.util.state.state_cli", "ray.dashboard.modules.job.cli"
sys.modules.update(dict.fromkeys(unused))
from ray.scripts.scripts import main
main()
"""


def claim_ports(wanted: Mapping[str, int]) -> tuple[dict[str, int], list[socket.socket]]:
    """Free ports by their names, ours while the sockets are open, here or in the head that inherits them.

    Raises `ClusterError` where one of those `wanted` is in use.
    """
    for base in range(FIRST_PORT, LAST_PORT, BLOCK_PORTS):
        ports = {name: base + offset for name, offset in OFFSETS.items()}
        if block := _claim(*ports.values()):
            claims = [block]
            for name, port in {**wanted, **{n: p for n, p in USUAL.items() if n not in wanted}}.items():
                if (claim := _claim(port)) is not None:
                    ports[name] = port
                    claims.append(claim)
                elif name in wanted:
                    raise ClusterError(
                        f"port {port} is in use by another program: stop it, or say another port under"
                        " serving.listen"
                    )
            return ports, claims
    raise ClusterError(
        f"no block of {BLOCK_PORTS} ports is free from {FIRST_PORT} to {LAST_PORT}; stop something"
    )


def _claim(*ports: int) -> socket.socket | None:
    """The first port's UDP twin, kept from others who claim; None if one of the TCP ports is in use."""
    claim = socket.socket(type=socket.SOCK_DGRAM)
    try:
        claim.bind((LOOPBACK, ports[0]))
        for port in ports:
            with socket.socket() as probe:
                # As the servers do: a port is free while its last connections are being forgotten.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("", port))
    except OSError:
        claim.close()
        return None
    return claim


def environment(token: Path, temp_dir: Path, ports: dict[str, int]) -> dict[str, str]:
    """What every process of one cluster must have set; `token` is the file with its token."""
    haproxy, serve = temp_dir / "ha", "RAY_SERVE_"
    per_cluster = {
        "RAY_AUTH_TOKEN_PATH": token,
        "DASHBOARD_METRIC_PORT": ports["dashboard_metrics"],
        serve + "HAPROXY_CONFIG_FILE_LOC": haproxy / "haproxy.cfg",
        serve + "HAPROXY_SOCKET_PATH": haproxy / "s",
        serve + "HAPROXY_METRICS_SOCKET_PATH": haproxy / "m",
        serve + "HAPROXY_SERVER_STATE_BASE": haproxy,
        serve + "HAPROXY_SERVER_STATE_FILE": haproxy / "server-state",
        serve + "HAPROXY_LOG_TARGET": f"{LOOPBACK}:{ports['claim']} {SAMPLED}",
        serve + "HAPROXY_STATS_PORT": ports["haproxy_stats"],
        serve + "HAPROXY_METRICS_PORT": ports["haproxy_metrics"],
        serve + "FALLBACK_PROXY_HTTP_PORT": ports["fallback_http"],
        serve + "FALLBACK_PROXY_GRPC_PORT": ports["fallback_grpc"],
        serve + "DIRECT_INGRESS_MIN_HTTP_PORT": ports["replicas_http"],
        serve + "DIRECT_INGRESS_MAX_HTTP_PORT": ports["replicas_http"] + REPLICA_PORTS,
        serve + "DIRECT_INGRESS_MIN_GRPC_PORT": ports["replicas_grpc"],
        serve + "DIRECT_INGRESS_MAX_GRPC_PORT": ports["replicas_grpc"] + REPLICA_PORTS,
    }
    return SETTINGS | {name: str(value) for name, value in per_cluster.items()}


def of_nodes() -> dict[str, str]:
    """What every process on the nodes of a cluster of machines must have set; its token lies elsewhere."""
    return {name: value for name, value in SETTINGS.items() if name not in OF_ONE_MACHINE} | {
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(DRAIN_S),
        "RAY_SERVE_HAPROXY_LOG_TARGET": f"{LOOPBACK}:{LOG_PORT} {SAMPLED}",
    }


def command(temp_dir: Path, ports: dict[str, int], cpus: int | None, gpus: int | None) -> list[str]:
    """The command that runs a head in the foreground."""
    options: dict[str, object] = {
        "temp-dir": temp_dir / "r",  # Ray opens its folder to all: ours around it stays private
        "object-store-memory": min(
            int(psutil.virtual_memory().total * OBJECT_STORE_SHARE), OBJECT_STORE_MAX_BYTES
        ),
        "port": ports["gcs"],
        "dashboard-host": LOOPBACK,
        "dashboard-port": ports["dashboard"],
        "include-dashboard": True,
        "ray-client-server-port": ports["client"],
        # With these four given, the node does not wait for its agents to say which ports they found.
        "dashboard-agent-listen-port": ports["agent"],
        "dashboard-agent-grpc-port": ports["agent_grpc"],
        "runtime-env-agent-port": ports["runtime_env"],
        "metrics-export-port": ports["metrics"],
        # Any free port: a worker that is given one of a range and finds it taken dies.
        "min-worker-port": 0,
        "max-worker-port": 0,
        "include-log-monitor": False,  # it sends workers' output to drivers, which do not want it
        "log-color": False,
    }
    options |= {name: n for name, n in {"num-cpus": cpus, "num-gpus": gpus}.items() if n is not None}
    if here := os.environ.get(HERE):
        options["labels"] = f"{REGION}={here}"
    arguments = [f"--{name}={value}" for name, value in options.items()]
    # The monitor would add nodes, of which there are none here. -P: a ray.py in the user's folder is not Ray.
    return [sys.executable, "-P", "-c", RAY_START, "start", "--head", "--block", "--no-monitor", *arguments]
