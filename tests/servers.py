"""Real servers for tests, each on a free port: PostgreSQL, Prometheus, an S3 store and MLflow's."""

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from .conftest import require, require_package

#: Where Debian puts PostgreSQL, which is on no path there.
DEBIAN = "/usr/lib/postgresql/*/bin"
#: A PostgreSQL server refuses to run as root.
OTHER_USER = "postgres"
READY = "database system is ready to accept connections"
PROMETHEUS_READY = "Server is ready to receive web requests"
#: How long a server may take for what it is to do at once, or within half a minute; how often we look.
PATIENCE_S, POLL_S = 60.0, 0.1
#: Another program may take a port between our looking for a free one and the server's taking it.
TRIES = 5
#: Has signs that an address writes otherwise; no message may show it.
PASSWORD = "s3cret/p@ss?w%rd"


@dataclass
class PostgresServer:
    """A server whose superuser `owner` may come in without a password, and `guest` only with `PASSWORD`."""

    folder: Path
    port: int = 0
    _process: subprocess.Popen[str] | None = field(default=None, repr=False)

    def url(self, user: str = "owner", database: str = "postgres") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def init(self) -> None:
        """Makes the data folder."""
        options = ["-D", str(self.folder / "data"), "-U", "owner", "--auth=trust", "--no-sync", "-E", "UTF8"]
        subprocess.run(
            [_program("initdb"), *options, "--locale=C"], check=True, stdout=subprocess.DEVNULL, **_user()
        )

    def start(self) -> None:
        """Returns when the server takes connections, on the port that it had before, if any."""
        for _ in range(TRIES):
            port = self.port or free_port()
            command = [_program("postgres"), "-D", str(self.folder / "data"), "-p", str(port), "-F"]
            command += ["-k", str(self.folder), "-c", "listen_addresses=127.0.0.1"]
            process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **_user())
            assert process.stderr is not None
            if any(READY in line for line in process.stderr):
                self.port, self._process = port, process
                return
            process.wait()
        pytest.fail(f"postgres did not start in {TRIES} tries")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Ends the server, its sessions first; with `SIGQUIT` at once."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.communicate()
            self._process = None

    def run(self, *statements: str) -> None:
        """Runs statements as the superuser."""
        import adbc_driver_postgresql.dbapi as dbapi  # type: ignore[import-untyped]

        with dbapi.connect(self.url(), autocommit=True) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
                # Only what is fetched is sure to have run.
                cursor.fetchall()


@contextlib.contextmanager
def postgres() -> Iterator[PostgresServer]:
    """A server with an empty database."""
    require_package("adbc_driver_postgresql")
    _program("initdb")
    # Not pytest's own folder, which is closed to other users.
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    if os.geteuid() == 0:
        shutil.chown(folder, OTHER_USER)
    server = PostgresServer(folder)
    try:
        server.init()
        server.start()
        quoted = PASSWORD.replace("'", "''")
        server.run(f"CREATE ROLE guest LOGIN PASSWORD '{quoted}'")
        hba = folder / "data" / "pg_hba.conf"
        hba.write_text(f"host all guest 127.0.0.1/32 scram-sha-256\n{hba.read_text()}")
        server.run("SELECT pg_reload_conf()")
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def s3_store(bucket: str) -> Iterator[Any]:
    """A client of a store with one bucket, and the environment that leads there."""
    require_package("moto")
    import boto3  # type: ignore[import-untyped]
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    said = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": PASSWORD,
        "AWS_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in said.items():
            patch.setenv(name, value)
        try:
            client = boto3.client("s3", region_name="us-east-1")
            client.create_bucket(Bucket=bucket)
            yield client
        finally:
            server.stop()


@contextlib.contextmanager
def mlflow_command(*arguments: str, folder: Path, **environ: str) -> Iterator[str]:
    """The address of what `mlflow ARGUMENTS` serves, run in a folder and ended with all that it started."""
    for _ in range(TRIES):
        port = free_port()
        command = [sys.executable, "-m", "mlflow", *arguments, "--host", "127.0.0.1", "--port", str(port)]
        # It starts others of its environment by their names alone.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        said = {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "PATH": path,
        }
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | said | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        before: list[str] = []
        ready = any(before.append(line) or "Uvicorn running on" in line for line in lines)
        # Nobody may wait for us to read what else it says.
        rest = threading.Thread(target=lambda lines=lines: list(lines), daemon=True)
        rest.start()
        try:
            if ready:
                yield f"http://127.0.0.1:{port}"
                return
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            rest.join()
    pytest.fail(f"mlflow {arguments[0]} did not start in {TRIES} tries: {''.join(before)}")


@dataclass(frozen=True)
class PrometheusServer:
    """A server that scrapes, evaluates and answers at `url`."""

    url: str

    def ask(self, path: str, **query: str) -> Any:
        """What it answers to a question of its API; raises what HTTP says of a bad one."""
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urlencode(query)}", timeout=30) as reply:
            return json.load(reply)["data"]

    def until(self, holds: Callable[[Any], Any], path: str, **query: str) -> Any:
        """What it answers, once that is as it is to be."""
        return until(lambda: (found := self.ask(path, **query)) and holds(found) and found)


@contextlib.contextmanager
def prometheus(folder: Path) -> Iterator[PrometheusServer]:
    """A server by the `prometheus.yml` of a folder, in which it keeps what it scrapes."""
    program = require("prometheus")
    for _ in range(TRIES):
        port = free_port()
        process = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        before: list[str] = []
        ready = any(before.append(line) or PROMETHEUS_READY in line for line in lines)
        rest = threading.Thread(target=lambda lines=lines: list(lines), daemon=True)
        rest.start()
        try:
            if ready:
                yield PrometheusServer(f"http://127.0.0.1:{port}")
                return
        finally:
            process.kill()
            process.wait()
            rest.join()
    pytest.fail(f"prometheus did not start in {TRIES} tries: {''.join(before)}")


def until(asked: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """What is answered as soon as that is anything."""
    end = time.monotonic() + patience_s
    while not (found := asked()):
        assert time.monotonic() < end, f"not within {patience_s:g} s"
        time.sleep(POLL_S)
    return found


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _program(name: str) -> str:
    """The path of a program of PostgreSQL, of the newest one that is installed."""
    found = sorted(glob(f"{DEBIAN}/{name}"))
    return require(found[-1] if found else name)


def _user() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    group = pwd.getpwnam(OTHER_USER).pw_gid
    return {"user": OTHER_USER, "group": group, "extra_groups": [], "cwd": "/"}
