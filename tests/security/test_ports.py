"""Every socket that a running service listens on is in our table, and is guarded as it says.

It starts a cluster, and so runs after those that share the `ray_cluster`, not beside them. Run as a script
(`test_ports.py FOLDER`), this file is the driver that deploys.
"""

import http.client
import json
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
import pytest

from mlops_ray import keys
from mlops_ray.client import Client
from mlops_ray.cluster import front, local, ports
from mlops_ray.cluster.local import LocalCluster
from mlops_ray.config import Project
from mlops_ray.storage import Storage
from tests.cluster import certificates
from tests.servers import free_port
from tests.serving import packages

PATIENCE_S = 90.0
MODEL = f"/v2/models/{packages.NAME}"
#: What is served by HTTP of that which asks for Ray's token; the rest is gRPC.
BY_HTTP = ("dashboard", "agent", "runtime_env")
#: One call of each service of Ray; who has none of them answers that it does not know it.
CALLS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.RayletDriver/ClusterInfo",
    "/ray.rpc.ReporterService/GetTraceback",
    "/ray.serve.ASGIService/HandleRequestWithRejection",
)
#: A value of the one row that is predicted.
CANARY = 778.25


def project(folder: Path) -> Project:
    listen = json.loads((folder / "listen.json").read_text())
    serving = packages.PROJECT["serving"] | {"listen": listen}  # type: ignore[operator]
    return Project.model_validate(packages.PROJECT | {"storage": str(folder / "storage"), "serving": serving})


def deploy(folder: Path) -> None:
    """The model, the monitor and the gateway, on the cluster of the folder."""
    cluster = local.find(folder)
    assert cluster is not None
    local.connect(cluster)
    from mlops_ray.serving import deploy
    from mlops_ray.serving.rpc import Listener

    of = project(folder)
    listen = of.serving.listen
    listener = Listener(listen.host, listen.grpc_port or cluster.grpc_port, listen.certificate, listen.key)
    deploy.deploy(of, Storage.open(of.storage), http_port=cluster.http_port, listener=listener)


@dataclass(frozen=True)
class Service:
    project: Project
    cluster: LocalCluster
    key: str

    def sockets(self) -> list[tuple[str, str, int, list[ports.Port]]]:
        """Process, address and number of every listening socket, and what the table says of it."""
        table = ports.table(self.project, self.cluster)
        return [
            (process.name(), at.ip, at.port, [p for p in table if p.is_of(process.name(), at.ip, at.port)])
            for process in local.carrying(self.cluster.marker)
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
            for at in [connection.laddr]
        ]

    def guarded(self, guard: str) -> list[tuple[ports.Port, int]]:
        return [(of[0], number) for _, _, number, of in self.sockets() if of and of[0].guard == guard]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A model that is served to all who have a key, by TLS, and was asked once."""
    folder = tmp_path_factory.mktemp("ports")
    certificate, key_file = certificates.write(folder)
    numbers = {"port": free_port(), "grpc_port": free_port()}
    listen = {"host": "0.0.0.0", "certificate": certificate, "key": key_file} | numbers
    (folder / "listen.json").write_text(json.dumps(listen))
    of = project(folder)
    storage = Storage.open(of.storage)
    key = keys.add(storage, "web", "predict")
    packages.crown(storage, packages.NAME, 1, packages.write(storage.path("artifacts", "v1"), of, 1.0))
    cluster = local.start(folder, cpus=2, gpus=0, ports=front.wanted(of))
    try:
        command = [sys.executable, "-m", "tests.security.test_ports", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 0, done.stderr
        front.apply(of, cluster)
        made = Service(of, cluster, key)
        client = Client(
            f"https://127.0.0.1:{numbers['port']}",
            packages.NAME,
            key,
            PATIENCE_S,
            context=ssl.create_default_context(cafile=certificate),
        )
        row = {"site": "a", "time": "2016-11-02T10:00:00Z", "load": CANARY}
        assert client.predict([row]).predictions == pytest.approx([CANARY], abs=1e-3)
        client.close()
        yield made
    finally:
        local.stop(folder)


def get(service: Service, port: ports.Port, number: int, path: str, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", number, timeout=PATIENCE_S)
    if port.name == "front":
        context = ssl.create_default_context(cafile=service.project.serving.listen.certificate)
        connection = http.client.HTTPSConnection("127.0.0.1", number, timeout=PATIENCE_S, context=context)
    try:
        connection.request("GET", path, headers=headers)
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    finally:
        connection.close()


def call(number: int, method: str) -> grpc.StatusCode:
    with grpc.insecure_channel(f"127.0.0.1:{number}") as channel:
        return status_of(channel, method)


def status_of(channel: grpc.Channel, method: str) -> grpc.StatusCode:
    """What is said to a caller of this method who brings nothing."""
    try:
        channel.unary_unary(method)(b"", timeout=PATIENCE_S)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


def test_every_listening_socket_is_in_the_table(service: Service) -> None:
    found = service.sockets()
    unknown = [(process, host, number) for process, host, number, of in found if not of]
    assert unknown == []
    here = {of[0].name for *_, of in found}
    assert {port.name for port in ports.table(service.project, service.cluster)} <= here


def test_what_our_code_answers_wants_a_key(service: Service) -> None:
    found = service.guarded("key")
    assert {port.name for port, _ in found} >= {"front", "http", "grpc", "fallback_http", "replicas_http"}
    for port, number in found:
        if port.name == "grpc":
            trusted = Path(str(service.project.serving.listen.certificate)).read_bytes()
            with grpc.secure_channel(f"127.0.0.1:{number}", grpc.ssl_channel_credentials(trusted)) as channel:
                code = status_of(channel, "/inference.GRPCInferenceService/ModelInfer")
            assert code == grpc.StatusCode.UNAUTHENTICATED
            continue
        # A replica knows the paths of its own application alone.
        statuses = {
            get(service, port, number, path)[0] for path in (MODEL, "/metrics", "/dashboard/data.json")
        }
        if "null" in get(service, port, number, "/-/routes")[1]:
            assert statuses == {500}, port  # the monitor has no HTTP, and Serve gives it a port all the same
            continue
        assert 401 in statuses, port
        assert statuses <= {401, 404}, port
        assert get(service, port, number, MODEL, Authorization="Bearer x")[0] in (401, 404)


def test_serve_s_list_of_routes_is_shown_on_this_machine_alone(service: Service) -> None:
    for port, number in service.guarded("key"):
        if port.name == "front":
            assert get(service, port, number, "/-/routes") == (404, '{"error":"no such path"}')
        elif port.name != "grpc":
            status, routes = get(service, port, number, "/-/routes")
            assert (status, port.host) == (200, ports.LOOPBACK)
            assert set(json.loads(routes)) <= {"/", MODEL, "null"}


def test_ray_s_own_ports_ask_for_its_token(service: Service) -> None:
    found = service.guarded("token")
    for port, number in found:
        if port.name in BY_HTTP:
            assert get(service, port, number, "/api/version")[0] == 401, port
        else:
            answers = {call(number, method) for method in CALLS}
            assert grpc.StatusCode.UNAUTHENTICATED in answers, port
            assert answers <= {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED}, port
    beyond = {port.process for port, _ in found if port.host != ports.LOOPBACK}
    assert beyond == {"ray::ServeRepli"}


def test_what_asks_for_nothing_shows_figures_alone(service: Service) -> None:
    found = service.guarded("loopback") + service.guarded("firewall")
    assert {port.name for port, _ in found if port.host != ports.LOOPBACK} == {
        "haproxy_stats",
        "haproxy_metrics",
    }
    for port, number in found:
        for path in ("/", "/metrics", "/stats"):
            said = get(service, port, number, path)[1]
            assert service.key not in said
            assert str(CANARY) not in said


def test_whoever_starts_it_is_told_of_what_can_be_reached(service: Service) -> None:
    said = "\n".join(front.apply(service.project, service.cluster))
    block = int(service.cluster.address.rsplit(":", 1)[1]) - 1
    for words in (
        f"our own front end (0.0.0.0, port: {service.project.serving.listen.port}), which answers who",
        f"HAProxy's statistics (0.0.0.0, port: {block + 9}), which asks for nothing",
        f"HAProxy's metrics (0.0.0.0, port: {block + 10}), which asks for nothing",
        "calls from replica to replica (0.0.0.0, port: any free), which asks for Ray's token",
    ):
        assert words in said


if __name__ == "__main__":
    deploy(Path(sys.argv[1]))
