"""Two clusters of our own, side by side: started for real, once for the whole file.

Run as a script (`test_local.py FOLDER NOTE`), this file is the driver that deploys on one of them.
"""

import http.client
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlops_ray.cluster import head, local
from mlops_ray.cluster.local import LocalCluster
from mlops_ray.errors import ClusterError

#: Two clusters start on two cores, which others use as well.
PATIENCE_S = 90.0
#: By then a command that stops a cluster has to be done.
STOP_S = 10.0


def until(condition: Callable[[], Any]) -> Any:
    """The first true value of the condition."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s"
        time.sleep(0.02)
    return value


def deploy(folder: Path, note: Path) -> None:
    """A model and a gateway in raw ASGI; the gateway asks the model."""
    cluster = local.find(folder)
    assert cluster is not None
    local.connect(cluster)
    from ray import serve

    async def live(receive: Any, send: Any) -> None:
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})

    async def answer(send: Any, text: str) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": text.encode()})

    @serve.deployment(ray_actor_options={"num_cpus": 0.1})
    @serve.ingress()
    class Model:
        async def marker(self) -> str:
            return os.environ[local.MARKER]

        def __serve_build_asgi_app__(self) -> Any:
            async def app(scope: Any, receive: Any, send: Any) -> None:
                if scope["type"] == "lifespan":
                    await live(receive, send)
                    note.write_text("finished")
                else:
                    await answer(send, f"model {await self.marker()}")

            return app

    @serve.deployment(ray_actor_options={"num_cpus": 0.1})
    @serve.ingress()
    class Gateway:
        def __serve_build_asgi_app__(self) -> Any:
            model = serve.get_deployment_handle("Model", app_name="x")

            async def app(scope: Any, receive: Any, send: Any) -> None:
                if scope["type"] == "lifespan":
                    await live(receive, send)
                else:
                    await answer(send, f"gateway {await model.marker.remote()}")

            return app

    serve.start(http_options={"host": head.LOOPBACK, "port": cluster.http_port})
    serve.run_many(
        [
            serve.RunTarget(Model.bind(), name="x", route_prefix="/v2/models/x"),
            serve.RunTarget(Gateway.bind(), name="gateway", route_prefix="/"),
        ]
    )


def run(script: str, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, *([script] if script.endswith(".py") else ["-c", script])]
    return subprocess.Popen([*command, *map(str, arguments)], text=True, stderr=subprocess.PIPE, **options)


START = (
    "import sys, pathlib; from mlops_ray.cluster import local; local.start(pathlib.Path(sys.argv[1]), cpus=1)"
)


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[Path, LocalCluster]]]:
    """Two folders, each with a cluster that serves."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "other")]
    try:
        found = [(folder, local.start(folder, cpus=1, gpus=0)) for folder in folders]
        drivers = [run(__file__, folder, folder / "note") for folder in folders]
        for driver in drivers:
            assert driver.wait(PATIENCE_S) == 0, driver.communicate()[1]
        yield found
    finally:
        for folder in folders:
            local.stop(folder)


def ask(
    port: int | str, path: str, method: str = "GET", body: Any = None, token: str = ""
) -> tuple[int, str]:
    connection = http.client.HTTPConnection(head.LOOPBACK, int(port), timeout=PATIENCE_S)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    connection.request(method, path, json.dumps(body) if body else None, headers)
    reply = connection.getresponse()
    return reply.status, reply.read().decode()


def nothing_is_left(folder: Path, marker: str, temp_dir: str) -> bool:
    carriers = [process for process in psutil.process_iter() if carries(process, marker)]
    """But for the record that it was stopped."""
    return not carriers and not os.path.exists(temp_dir) and not {*os.listdir(folder)} - {"note", "audit"}


def carries(process: psutil.Process, marker: str) -> bool:
    try:
        return marker in process.environ().values()
    except psutil.Error:
        return False


def test_two_clusters_answer_side_by_side_each_for_itself(clusters: list[tuple[Path, LocalCluster]]) -> None:
    for _, cluster in clusters:
        assert ask(cluster.http_port, "/v2/models/x/infer") == (200, f"model {cluster.marker}")
        assert ask(cluster.http_port, "/anything") == (200, f"gateway {cluster.marker}")


def test_dashboard_and_jobs_ask_for_the_token(clusters: list[tuple[Path, LocalCluster]]) -> None:
    folder, cluster = clusters[0]
    port = cluster.dashboard.rsplit(":", 1)[1]
    assert ask(port, "/api/version")[0] == 401
    assert ask(port, "/api/jobs/", "POST", {"entrypoint": "true"})[0] == 401
    assert ask(port, "/api/version", token=(folder / head.TOKEN).read_text())[0] == 200


def test_a_job_runs_in_our_python_on_its_own_cluster(clusters: list[tuple[Path, LocalCluster]]) -> None:
    folder, cluster = clusters[1]
    port, token = cluster.dashboard.rsplit(":", 1)[1], (folder / head.TOKEN).read_text()
    code = f"import ray; ray.init(); assert ray.get_runtime_context().gcs_address == '{cluster.address}'"
    job = json.loads(ask(port, "/api/jobs/", "POST", {"entrypoint": f'python -c "{code}"'}, token)[1])
    path = f"/api/jobs/{job['submission_id']}"

    def ended() -> str | None:
        status = json.loads(ask(port, path, token=token)[1])["status"]
        return status if status in {"SUCCEEDED", "FAILED", "STOPPED"} else None

    assert until(ended) == "SUCCEEDED", ask(port, f"{path}/logs", token=token)


def test_only_the_ports_that_we_name_listen_beyond_loopback(
    clusters: list[tuple[Path, LocalCluster]],
) -> None:
    for _, cluster in clusters:
        open_to_all = {
            (process.name(), connection.laddr.port)
            for process in psutil.process_iter()
            if carries(process, cluster.marker)
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
            and connection.laddr.ip.removeprefix("::ffff:") != head.LOOPBACK
        }
        figures = {
            int(cluster.environment[f"RAY_SERVE_HAPROXY_{name}_PORT"]) for name in ("STATS", "METRICS")
        }
        assert {port for name, port in open_to_all if name == "haproxy"} == figures
        rest = {name for name, _ in open_to_all if name != "haproxy"}
        assert all(name.startswith("ray::ServeRepli") for name in rest), rest


def test_what_is_secret_is_the_owners_alone(clusters: list[tuple[Path, LocalCluster]]) -> None:
    folder, cluster = clusters[0]
    modes = [stat.S_IMODE((folder / name).stat().st_mode) for name in (local.RECORD, head.TOKEN)]
    assert [*modes, stat.S_IMODE(os.stat(cluster.temp_dir).st_mode)] == [0o600, 0o600, 0o700]


def test_a_running_cluster_is_found_and_not_started_twice(clusters: list[tuple[Path, LocalCluster]]) -> None:
    folder, cluster = clusters[0]
    assert local.find(folder) == cluster
    with pytest.raises(ClusterError, match=f"runs, at {cluster.address}"):
        local.start(folder)


def test_the_terminals_ctrl_c_does_not_reach_a_cluster(clusters: list[tuple[Path, LocalCluster]]) -> None:
    _, cluster = clusters[0]
    assert os.getsid(cluster.pid) == os.getpgid(cluster.pid) == cluster.pid != os.getsid(0)


def test_stop_lets_replicas_finish_and_leaves_nothing(clusters: list[tuple[Path, LocalCluster]]) -> None:
    (folder, cluster), (_, other) = clusters
    began = time.monotonic()
    assert local.stop(folder)
    assert time.monotonic() - began < STOP_S
    assert nothing_is_left(folder, cluster.marker, cluster.temp_dir)
    assert (folder / "note").read_text() == "finished"
    assert not local.stop(folder)
    assert ask(other.http_port, "/v2/models/x/infer") == (200, f"model {other.marker}")


def test_find_ends_what_is_left_when_the_head_was_killed(clusters: list[tuple[Path, LocalCluster]]) -> None:
    folder, cluster = clusters[1]
    os.kill(cluster.pid, signal.SIGKILL)
    until(lambda: not carries(psutil.Process(cluster.pid), cluster.marker))
    assert local.find(folder) is None
    assert nothing_is_left(folder, cluster.marker, cluster.temp_dir)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_start_that_is_broken_off_leaves_nothing_after_stop(tmp_path: Path, how: signal.Signals) -> None:
    starter = run(START, tmp_path)
    record = until(
        lambda: (tmp_path / local.RECORD).exists() and json.loads((tmp_path / local.RECORD).read_text())
    )
    marker, temp_dir = record["cluster"]["marker"], record["cluster"]["temp_dir"]
    until(lambda: any(carries(process, marker) for process in psutil.process_iter()))
    assert local.find(tmp_path) is None
    starter.send_signal(how)
    starter.communicate()
    assert local.stop(tmp_path) == (how == signal.SIGKILL)
    assert nothing_is_left(tmp_path, marker, temp_dir)


def test_a_head_that_does_not_come_up_is_reported_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "RAY_START", "raise SystemExit('no room')")
    with pytest.raises(ClusterError, match=r"Ray's head ended with status 1; the end of its log:\nno room"):
        local.start(tmp_path)
    assert not list(tmp_path.iterdir())


def test_importing_the_module_does_not_import_ray() -> None:
    check = run("import sys, mlops_ray.cluster.local; sys.exit('ray' in sys.modules)")
    assert check.wait() == 0, check.communicate()[1]


def test_connect_refuses_after_an_import_under_other_settings(tmp_path: Path) -> None:
    code = """import ray
from mlops_ray.cluster import head, local
local.connect(local.LocalCluster('', 0, '', '', 0, {}, ''))"""
    environment = {name: value for name, value in os.environ.items() if name not in head.SETTINGS}
    _, message = run(code, env=environment).communicate()
    assert "ClusterError: ray was imported before its settings were made" in message


def test_a_folder_without_a_cluster_has_nothing_to_find_or_stop(tmp_path: Path) -> None:
    assert local.find(tmp_path) is None
    assert not local.stop(tmp_path)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / local.RECORD).write_text("{")
    with pytest.raises(ClusterError, match=r"cluster\.json is damaged"):
        local.find(tmp_path)


if __name__ == "__main__":
    deploy(Path(sys.argv[1]), Path(sys.argv[2]))
