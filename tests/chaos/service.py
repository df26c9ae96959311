"""A service as users start it, on a cluster of its own, and what its files say of what it has answered."""

import contextlib
import copy
import fcntl
import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import psutil
import redis
import yaml

from mlops_ray import config
from mlops_ray.cluster import local
from mlops_ray.cluster.local import LocalCluster
from mlops_ray.cluster.service import fetched
from mlops_ray.config import File, Project
from mlops_ray.data import prediction_log
from mlops_ray.data.blocks import check_file
from mlops_ray.data.prediction_log import COUNTERS, FOLDER
from mlops_ray.errors import MlopsError
from mlops_ray.features.store import FeatureStore
from mlops_ray.monitoring import journal
from mlops_ray.monitoring.state import ModelState
from mlops_ray.storage import Storage
from tests import fakes, servers
from tests.e2e import processes
from tests.e2e.conftest import mlops, processes_of
from tests.fakes import Standing
from tests.features.conftest import RedisServer
from tests.serving import packages

MODEL, FACTOR = packages.NAME, 3.0
REPLICAS = 2
#: What is to come back takes seconds, and a busy machine many times that.
PATIENCE_S = 120.0
until = partial(servers.until, patience_s=PATIENCE_S)
#: An answer is the load times the factor; the site is looked up in the online store all the same.
FEATURES = {
    "row": {"on_request": {"amount": {"expr": "load * 1.0"}}},
    "past": {"source": "table", "features": {"newest": {"latest": "load"}}},
}
#: Known as of their time, which is around that of the requests (`tests.e2e.load.TIME`).
ROWS = """site,time,load,cost
a,2016-11-02T09:00:00Z,5.0,2.0
a,2016-11-02T12:00:00Z,6.0,2.0
b,2016-11-02T09:00:00Z,7.0,2.0
b,2016-11-02T12:00:00Z,8.0,2.0
"""
#: How a counter of the service's metrics stands there.
LOST = f'mlops_log_rows_lost_total{{model="{MODEL}"}} '


class Counters(NamedTuple):
    """What a replica has counted for the prediction log, and whether it lives."""

    replica: str
    is_alive: bool
    answered: int
    written: int
    lost: int


@dataclass(frozen=True)
class Service:
    """A running service, and the servers that it was given, if any."""

    file: Path
    storage: Storage
    url: str
    cluster: LocalCluster
    online: RedisServer | None
    tracking: str | None

    @property
    def key(self) -> str:
        return self.storage.path("local.key").read_text().strip()

    @property
    def replicas(self) -> list[psutil.Process]:
        return processes.replicas(self.cluster, MODEL)

    def titled(self, title: str) -> list[psutil.Process]:
        return processes.titled(self.cluster, title)

    @property
    def ingress(self) -> list[psutil.Process]:
        """Every HAProxy in front of the replicas."""
        return [each for each in local.carrying(self.cluster.marker) if each.info["name"] == "haproxy"]

    @property
    def counters(self) -> list[Counters]:
        """Those of all replicas that there have been."""
        found = []
        for path in sorted((self.storage.root / FOLDER / MODEL / COUNTERS).glob("*")):
            with path.open("rb") as file:
                counts = prediction_log.counted(file.read())
                if counts is not None:
                    found.append(Counters(path.name, _is_locked(file.fileno()), *counts[:3]))
        return found

    @property
    def living(self) -> list[Counters]:
        return [each for each in self.counters if each.is_alive]

    @property
    def is_whole(self) -> bool:
        """Whether there are as many replicas as there should be, each of which has answered somebody."""
        return [each.answered > 0 for each in self.living] == [True] * REPLICAS

    @property
    def is_logged(self) -> bool:
        """Whether nothing that living replicas have answered still waits for the log."""
        return all(each.answered == each.written + each.lost for each in self.living)

    def logged(self) -> list[str]:
        """The ids of the requests of all rows of the log, one a row."""
        rows = prediction_log.read(self.storage, MODEL).select("request_id").collect()
        return list(rows["request_id"])

    def last_written(self, replica: str) -> float:
        """When the last row of a replica that is in the log was answered, in seconds since 1970."""
        files = list((self.storage.root / FOLDER / MODEL).glob(f"date=*/{replica}-*.parquet"))
        at = pl.scan_parquet(files).select(pl.col("at").max()).collect().item()
        return float(at.timestamp())

    @property
    def counted(self) -> int:
        """The rows that the monitor has on disk."""
        kept = self.storage.read_json(journal.FOLDER, f"{MODEL}.json")
        versions = ModelState.from_json(kept).versions.values() if kept else ()
        return sum(watched.rows for watched in versions)

    @property
    def is_counted(self) -> bool:
        """Whether the monitor has every row of living replicas, and those of the dead at most once."""
        every = self.counters
        least = sum(each.answered for each in every if each.is_alive)
        return least <= self.counted <= sum(each.answered for each in every)

    def answers(self, path: str) -> str:
        """What the gateway answers; nothing where it does not."""
        try:
            return fetched(f"{self.url}{path}", self.storage, PATIENCE_S).decode()
        except MlopsError:
            return ""

    def lost(self) -> int:
        """The rows that the service says the log lacks."""
        text = until(lambda: self.answers("/metrics"))
        lines = [line for line in text.splitlines() if line.startswith(LOST)]
        return int(float(lines[0].removeprefix(LOST))) if lines else 0


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def kill(found: list[psutil.Process]) -> None:
    """Ends processes at once, without a word."""
    assert found, "there is nothing to kill"
    for process in found:
        process.kill()
    psutil.wait_procs(found, timeout=PATIENCE_S)


@contextlib.contextmanager
def full_disk(found: list[psutil.Process]) -> Iterator[None]:
    """Meanwhile nothing that these processes write to files is taken, as where the disk is full.

    It is the kernel that refuses, by the limit on the size of files; it says EFBIG, where a full disk says
    ENOSPC. What was mapped before, as the counters, goes on, as on a full disk.
    """
    assert found, "there is nobody who writes"
    before = [(process, process.rlimit(psutil.RLIMIT_FSIZE)) for process in found]
    for process, (_, most) in before:
        process.rlimit(psutil.RLIMIT_FSIZE, (0, most))
    try:
        yield
    finally:
        for process, limits in before:
            process.rlimit(psutil.RLIMIT_FSIZE, limits)


def end_server(url: str) -> None:
    """Ends an MLflow server of ours (`tests.servers.mlflow_command`) with all that it started."""
    port = url.rpartition(":")[2]
    for process in psutil.process_iter(["cmdline"]):
        said = process.info["cmdline"] or []
        if "mlflow" in said and "server" in said and port in said:
            os.killpg(os.getpgid(process.pid), signal.SIGKILL)
            return
    raise AssertionError(f"no server of ours listens on {port}")


def save(server: RedisServer) -> None:
    """Has what a Redis server holds be there again when it is."""
    with redis.Redis.from_url(server.url) as client:
        client.save()


@contextlib.contextmanager
def suspended(server: RedisServer) -> Iterator[None]:
    """Meanwhile a Redis server does nothing; who asks it waits."""
    assert server._process is not None
    process = psutil.Process(server._process.pid)
    process.suspend()
    try:
        yield
    finally:
        process.resume()


@contextlib.contextmanager
def running(folder: Path, tracking: str | None) -> Iterator[Service]:
    """Two replicas of a model that looks up a feature, brought up by `mlops-ray serve`.

    In a Redis server, where one is installed; and of a tracking server, where one is given, which is told of
    the version first.
    """
    file = folder / "project.yaml"
    with _online(folder) as server:
        try:
            storage = _prepared(file, _said(server, tracking))
            done = mlops("serve", file, "--detach", "--json")
            assert done.returncode == 0, done.stderr
            cluster = local.recorded(storage.root)
            assert cluster is not None
            url = json.loads(done.stdout.splitlines()[-1])["url"]
            yield Service(file, storage, url, cluster, server, tracking)
        finally:
            mlops("down", file)
    assert not processes_of(storage.root)


@contextlib.contextmanager
def on_nodes(folder: Path) -> Iterator[tuple[Service, Standing]]:
    """The same on a cluster: a replica on each of two nodes, and a third node, which has room for one.

    The nodes are fakes on this machine, and stand beside a head on which no replica runs.
    """
    file = folder / "project.yaml"
    with _online(folder) as server, fakes.standing(folder) as cluster:
        # One after the other: each takes ports that are free as it starts.
        for count in range(1, REPLICAS + 2):
            cluster.add(1)
            until(lambda count=count: len(cluster.nodes()) == count)
        said = _said(server, None)
        said["serving"] |= {"resources": {"cpu": 0.6}, "listen": {"port": cluster.cluster.http_port}}
        storage = _prepared(file, said)
        done = mlops("deploy", file, "--json", **cluster.joined)
        assert done.returncode == 0, done.stderr
        url = json.loads(done.stdout.splitlines()[-1])["url"]
        yield Service(file, storage, url, cluster.cluster, server, None), cluster


@contextlib.contextmanager
def _online(folder: Path) -> Iterator[RedisServer | None]:
    """A Redis server, where one is installed."""
    server = RedisServer(folder) if shutil.which("redis-server") else None
    if server is not None:
        server.start()
    try:
        yield server
    finally:
        if server is not None:
            server.stop()


def _prepared(file: Path, said: dict[str, Any]) -> Storage:
    """A project's storage, with what its model looks up, and a champion."""
    file.write_text(yaml.safe_dump(said))
    (file.parent / "rows.csv").write_text(ROWS)
    project = config.load(file, {})
    storage = Storage.open(project.storage)
    _store(project, storage)
    _release(project, storage)
    return storage


def _said(server: RedisServer | None, tracking: str | None) -> dict[str, Any]:
    said: dict[str, Any] = copy.deepcopy(packages.PROJECT)
    said["sources"]["table"]["known_at"] = {"after_event": "0s"}
    said["features"] = FEATURES
    said["serving"] = {"replicas": {"min": REPLICAS, "max": REPLICAS}, "resources": {"cpu": 0.2}}
    said |= {"online": server.url} if server is not None else {}
    return said | ({"tracking": tracking} if tracking is not None else {})


def _store(project: Project, storage: Storage) -> None:
    """What the model looks up is in the history, and online."""
    store, source = FeatureStore(project, storage), project.sources["table"]
    assert source.path is not None
    for verdict in check_file(File(path=source.path[0].path), source):
        store.history("table").append(verdict.valid, source, "first")
    store.materialize()


def _release(project: Project, storage: Storage) -> None:
    """Version 1 is champion: in the registry, where there is a tracking server, else in the release alone."""
    package = packages.write(storage.path("packed"), project, FACTOR)
    if project.tracking is None:
        packages.crown(storage, MODEL, 1, package)
        return
    from mlops_ray.registry.registry import Registry
    from mlops_ray.training import tracking

    registry, experiment = Registry(project.tracking), tracking.prepare(project.tracking, MODEL, None)
    with tracking.open_run(project.tracking, experiment, MODEL) as run:
        version = registry.register(package, run_id=run.id)
    registry.set_champion(MODEL, version)
