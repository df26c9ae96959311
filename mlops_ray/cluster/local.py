"""A Ray cluster of our own on this machine: start it, find it again, stop it.

Its head runs in a session of its own: it outlives the command that started it, and the terminal's Ctrl-C does
not reach it. Every process of it carries a marker in its environment; `stop` ends those and no others.

Its ports, and what guards each, are those of ports.py.
"""

import contextlib
import fcntl
import http.client
import json
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from mlops_ray import audit
from mlops_ray.cluster import head as heads
from mlops_ray.cluster.head import LOOPBACK, TOKEN
from mlops_ray.errors import ClusterError
from mlops_ray.storage import PRIVATE, Storage, replacing

RECORD, HEAD_LOG, NAMESPACE = "cluster.json", "head.log", "mlops_ray"
MARKER = "MLOPS_RAY_CLUSTER"

#: A start takes about 5 s on two free cores, and many times that on a busy machine.
START_TIMEOUT_S = 90.0
#: Of the time to stop, what Serve may take to let its replicas finish; it takes about 4 s. The rest is for
#: killing, which takes a fifth of a second.
GRACE_SHARE = 0.8
POLL_S = 0.05
#: On loopback an answer takes less than a millisecond, unless the machine is swamped.
ANSWER_TIMEOUT_S = 2.0
#: The path of a socket may have 107 bytes, and HAProxy and Ray need up to 89 of them below the root.
TEMP_ROOT_MAX_BYTES = 18
LOG_LINES = 15

#: Where those of them end up that cannot be changed any more once ray, or ray.serve, is imported.
FIXED_ON_IMPORT = {
    ("ray._private.ray_constants", "ENABLE_RAY_CLUSTER"): False,
    ("ray.serve._private.constants", "RAY_SERVE_ENABLE_HA_PROXY"): True,
    ("ray.serve._private.constants", "RAY_SERVE_THROUGHPUT_OPTIMIZED"): True,
}


@dataclass(frozen=True)
class LocalCluster:
    """How to reach a cluster: one of ours on this machine, or the one whose job this is (joined.py)."""

    marker: str  # stands in MLOPS_RAY_CLUSTER of the environment of each process of ours; else empty
    pid: int  # of the head, the leader of its session and process group
    address: str  # "127.0.0.1:PORT", for drivers
    dashboard: str  # "http://127.0.0.1:PORT", for jobs
    http_port: int  # Serve's front end
    environment: dict[str, str]  # what drivers and jobs must have set before they import ray
    temp_dir: str  # of Ray and HAProxy, removed by `stop`
    grpc_port: int = heads.GRPC_PORT  # the gateway's
    host: str = LOOPBACK  # where its nodes reach Serve's front end


def start(
    folder: Path, *, cpus: int | None = None, gpus: int | None = None, ports: Mapping[str, int] | None = None
) -> LocalCluster:
    """A new cluster, ready for drivers, jobs and Serve, recorded in `folder`: one cluster a folder.

    `cpus` and `gpus` are what Ray may give away; it counts the machine's where they are not given. `ports`
    are those that must be free for it, by what listens there. Raises `ClusterError` where one is in use,
    where a cluster runs or is being started already, and where Ray does not come up; then, and on Ctrl-C,
    nothing is left behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    with _locked(folder) as ours:
        if not ours:
            raise ClusterError(f"a cluster of {folder} is being started already; wait for it")
        if (running := find(folder)) is not None:
            raise ClusterError(f"a cluster of {folder} runs, at {running.address}: use it, or stop it first")
        stop(folder)
        try:
            return _start(folder, cpus, gpus, ports or {})
        except BaseException:
            stop(folder)
            raise


def find(folder: Path) -> LocalCluster | None:
    """The cluster that `folder` records, if its head lives and answers; ends what is left of a dead one."""
    if (known := _read(folder)) is None:
        return None
    cluster, ready = known
    if ready and any(process.pid == cluster.pid for process in carrying(cluster.marker)):
        return cluster if _answers(cluster.address) else None
    with _locked(folder) as ours:
        if ours:  # else it is not dead but being started
            stop(folder)
    return None


def recorded(folder: Path) -> LocalCluster | None:
    """The cluster that `folder` records, wherever it runs, and whether it does; nothing is ended."""
    known = _read(folder)
    return known[0] if known is not None else None


def stop(folder: Path, *, timeout_s: float = 8.0) -> bool:
    """Ends the cluster that `folder` records, also a half-started one; False if there is none.

    Replicas of Serve may finish what they do, within a share of `timeout_s`. Raises `ClusterError` if a
    process is still there when it is over.
    """
    if (cluster := recorded(folder)) is None:
        return False
    deadline = time.monotonic() + timeout_s
    served = _shut_serve_down(cluster, timeout_s * GRACE_SHARE)
    while left := carrying(cluster.marker):
        if time.monotonic() > deadline:
            raise ClusterError(f"processes of the cluster of {folder} do not end: {[p.pid for p in left]}")
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=POLL_S)
    shutil.rmtree(cluster.temp_dir, ignore_errors=True)
    (folder / TOKEN).unlink(missing_ok=True)
    (folder / RECORD).unlink(missing_ok=True)
    if served:
        # Afterwards: whatever cannot be written, a service can be stopped.
        about = {"cluster": cluster.address}
        audit.append(Storage(folder), "the service was stopped", audit.who(), about, is_done=True)
    return True


def connect(cluster: LocalCluster) -> None:
    """Makes this process a driver of the cluster.

    Raises `ClusterError` if the cluster does not answer, if the process is a driver of another one, and if it
    imported ray with settings that cannot be changed any more.
    """
    imported = sys.modules.get("ray")
    if imported is not None and imported.is_initialized():
        if imported.get_runtime_context().gcs_address != cluster.address:
            raise ClusterError("this process is connected to another cluster; call ray.shutdown() first")
        return
    for (module, name), value in FIXED_ON_IMPORT.items():
        if getattr(sys.modules.get(module), name, value) != value:
            raise ClusterError(
                f"ray was imported before its settings were made ({name} in {module}): connect before you"
                " import it, or put mlops_ray.cluster.head.SETTINGS into os.environ first"
            )
    if not _answers(cluster.address):
        raise ClusterError(f"no cluster answers at {cluster.address}; start one")
    os.environ.update(cluster.environment)
    import ray
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    # Ray reads mode and token once; this process may have been a driver of another cluster before.
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        ray.init(cluster.address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:
        raise ClusterError(f"cannot connect to the cluster at {cluster.address}: {error}") from error


def _start(folder: Path, cpus: int | None, gpus: int | None, wanted: Mapping[str, int]) -> LocalCluster:
    """Claims ports, runs the head and waits until it is ready; cleaning up is the caller's."""
    marker, root = secrets.token_hex(4), tempfile.gettempdir()
    if len(os.fsencode(root)) > TEMP_ROOT_MAX_BYTES:
        root = "/tmp"  # noqa: S108 - the folder in it is new and private
    temp_dir = Path(root, f"mlr-{marker}")
    ports, claims = heads.claim_ports(wanted)
    with contextlib.ExitStack() as claimed:
        for claim in claims:
            claimed.enter_context(claim)
        cluster = LocalCluster(
            marker=marker,
            pid=0,
            address=f"{LOOPBACK}:{ports['gcs']}",
            dashboard=f"http://{LOOPBACK}:{ports['dashboard']}",
            http_port=ports["http"],
            grpc_port=ports["grpc"],
            environment=heads.environment(folder / TOKEN, temp_dir, ports),
            temp_dir=str(temp_dir),
        )
        _write(folder, cluster, ready=False)
        with replacing(folder / TOKEN, mode=PRIVATE) as file:
            file.write_text(secrets.token_hex())
        temp_dir.mkdir(mode=0o700)  # HAProxy's admin socket, in it, is open to all who can get to it
        head = _run_head(cluster, heads.command(temp_dir, ports, cpus, gpus), claims)
    _wait_until_ready(cluster, head)
    cluster = replace(cluster, pid=head.pid)
    _write(folder, cluster, ready=True)
    head.returncode = 0  # it is meant to outlive us: Popen is not to warn of that
    return cluster


def _run_head(
    cluster: LocalCluster, command: list[str], claims: list[socket.socket]
) -> subprocess.Popen[bytes]:
    # For jobs: the `python` of their commands is ours.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with Path(cluster.temp_dir, HEAD_LOG).open("wb") as log:
        return subprocess.Popen(  # noqa: S603 - our own interpreter, and arguments that are ours
            command,
            env=inherited
            | cluster.environment
            | {"PATH": path, "TMPDIR": cluster.temp_dir, MARKER: cluster.marker},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[claim.fileno() for claim in claims],
        )


def _wait_until_ready(cluster: LocalCluster, head: subprocess.Popen[bytes]) -> None:
    """Returns when Ray has written its address, the last step; raises `ClusterError` if it does not."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not Path(cluster.temp_dir, "r", "ray_current_cluster").exists():
        if head.poll() is not None:
            raise ClusterError(f"Ray's head ended with status {head.returncode}; {_end_of_log(cluster)}")
        if time.monotonic() > deadline:
            raise ClusterError(
                f"Ray's head is not ready after {START_TIMEOUT_S:.0f} s; {_end_of_log(cluster)}"
            )
        time.sleep(POLL_S)


def _end_of_log(cluster: LocalCluster) -> str:
    try:
        lines = Path(cluster.temp_dir, HEAD_LOG).read_text(errors="replace").splitlines()[-LOG_LINES:]
    except FileNotFoundError:
        lines = []
    return "\n".join(["the end of its log:", *lines]) if lines else "its log is empty: was it stopped?"


def _shut_serve_down(cluster: LocalCluster, timeout_s: float) -> bool:
    """Lets replicas finish, in silence, for what does not end is killed next; whether anything was served."""
    # The kernel keeps 15 characters of a name.
    if not any("ray::ServeContr" in process.info["name"] for process in carrying(cluster.marker)):
        return False
    dashboard = http.client.HTTPConnection(cluster.dashboard.removeprefix("http://"), timeout=timeout_s)
    with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(dashboard):
        token = Path(cluster.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        dashboard.request("DELETE", "/api/serve/applications/", headers={"Authorization": f"Bearer {token}"})
        dashboard.getresponse()
    return True


def _read(folder: Path) -> tuple[LocalCluster, bool] | None:
    """The recorded cluster, and whether it had become ready."""
    try:
        document = json.loads((folder / RECORD).read_bytes())
        return LocalCluster(**document["cluster"]), document["ready"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ClusterError(f"{folder / RECORD} is damaged ({error}); delete it if no cluster runs") from error


def _write(folder: Path, cluster: LocalCluster, *, ready: bool) -> None:
    with replacing(folder / RECORD, mode=PRIVATE) as file:
        file.write_text(json.dumps({"ready": ready, "cluster": asdict(cluster)}, indent=1))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Keeps starts in the folder out; False if one is going on."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours = True
    except BlockingIOError:
        ours = False
    try:
        yield ours
    finally:
        os.close(descriptor)


def carrying(marker: str) -> list[psutil.Process]:
    """The processes that carry the marker, except this one; `info["name"]` is what each is called."""
    found = []
    for process in psutil.process_iter(["name"]):
        with contextlib.suppress(psutil.Error, OSError):  # it has gone, or is somebody else's
            if process.environ().get(MARKER) == marker and process.pid != os.getpid():
                found.append(process)
    return found


def _answers(address: str) -> bool:
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), ANSWER_TIMEOUT_S).close()
    except OSError:
        return False
    return True
