"""Under load of every kind, with replicas killed: everybody gets their own answer, or a clear refusal."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from mlops_ray import keys
from mlops_ray.client import Client
from mlops_ray.cluster.local import LocalCluster
from mlops_ray.config import Project
from mlops_ray.data import prediction_log
from mlops_ray.data.prediction_log import COUNTERS, COUNTS, FLUSH_S
from mlops_ray.monitoring import journal
from mlops_ray.monitoring.state import ModelState
from mlops_ray.serving import deploy
from mlops_ray.storage import Storage
from tests.e2e import load
from tests.serving import packages

#: The whole soak is of 30 minutes, on demand.
SECONDS = 1_800.0 if os.environ.get("MLOPS_WHOLE") else 20.0
KILLS = 20 if os.environ.get("MLOPS_WHOLE") else 2
CALLERS, WARM_UP_S = 8, 20.0
MODELS = {"rows": 2.0, "others": 3.0}
pytestmark = pytest.mark.timeout(300 + 2 * SECONDS)
#: What a replica's memory may grow by under load, of some 350 MB, from the first third to the last. In the
#: first minute libraries lay by what they keep; after it only a leak grows, by no more than 1 MB a minute.
GROWTH_BYTES = (20 if os.environ.get("MLOPS_WHOLE") else 60) * 2**20
#: How often memory is taken: what is in use at one moment, of requests of 10,000 rows, is up to 50 MB more.
SAMPLES = 90


@dataclass(frozen=True)
class Served:
    url: str
    key: str
    storage: Storage
    cluster: LocalCluster


def project(name: str, storage: Path) -> Project:
    """The first with two replicas, the second a model that is answered from arrays."""
    count = 2 if name == "rows" else 1
    serving = {"replicas": {"min": count, "max": count}, "resources": {"cpu": 0.2}}
    features = {} if name == "rows" else packages.OF_AMOUNTS
    return packages.project(storage, project=name, serving=serving, **features)


def start(name: str, factor: float, storage: Storage, port: int) -> deploy.Deployed:
    of = project(name, storage.root)
    package = packages.write(storage.path("artifacts", name), of, factor, name)
    packages.crown(storage, name, 1, package)
    return deploy.deploy(of, storage, http_port=port)


@pytest.fixture(scope="module")
def served(ray_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two models in one service, the first with two replicas."""
    from ray import serve

    storage = Storage.open(str(tmp_path_factory.mktemp("load") / "storage"))
    key = Path(keys.ensure_local(storage)).read_text().strip()
    for name, factor in MODELS.items():
        deployed = start(name, factor, storage, ray_cluster.http_port)
    yield Served(deployed.url, key, storage, ray_cluster)
    for name in (*MODELS, "third", "watched"):
        serve.delete(name)


def replicas(cluster: LocalCluster, name: str) -> list[psutil.Process]:
    """The processes that answer for a model."""
    return titled(cluster, f"ray::ServeReplica:{name}:{name}")


def titled(cluster: LocalCluster, title: str) -> list[psutil.Process]:
    """The processes of a cluster, of which this machine may have several, whose titles have such a part."""
    found = [
        each
        for each in psutil.process_iter(["cmdline", "environ"])
        if title in (each.info["cmdline"] or [""])[0]
    ]
    return [each for each in found if cluster.marker in (each.info["environ"] or {}).values()]


def test_every_model_of_a_service_answers_for_itself_and_one_more_restarts_no_other(
    served: Served, ray_cluster: LocalCluster
) -> None:
    before = {name: {p.pid for p in replicas(ray_cluster, name)} for name in MODELS}
    assert {name: len(pids) for name, pids in before.items()} == {"rows": 2, "others": 1}
    started = start("third", 5.0, served.storage, ray_cluster.http_port)
    assert started.started == ("third",)
    assert {name: {p.pid for p in replicas(ray_cluster, name)} for name in MODELS} == before
    for name, factor in (MODELS | {"third": 5.0}).items():
        answers = Client(served.url, name, served.key).predict(
            [{"site": "a", "time": load.TIME, "load": 7.0}]
        )
        assert answers.predictions.tolist() == [pytest.approx(7 * factor, abs=0.01)]


def test_under_mixed_load_nobody_gets_anothers_answer_and_nothing_grows(served: Served) -> None:
    port = int(served.url.rpartition(":")[2])
    # What is made once is made: buffers, caches, compiled queries, the allocator's arenas.
    load.mixed(port, served.key, MODELS, WARM_UP_S, CALLERS, seed=1)
    all_is_written(served.storage)
    every = [process for name in MODELS for process in replicas(served.cluster, name)]
    handles = [process.num_fds() for process in every]
    with held(every) as memory:
        seen = load.mixed(port, served.key, MODELS, SECONDS, CALLERS, seed=2)
    all_is_written(served.storage)
    assert seen.wrong == []
    assert by_kind(seen) == {
        "valid": {200},
        "bad value": {422},
        "bad row": {422},
        "no json": {400},
        "no key": {401},
        "too many": {413},
        "meddling": {200},
    }
    # Nothing is ours to blame but a deadline that has passed.
    assert {status for _, status in seen.statuses if status >= 500} <= {504}
    assert {status for (kind, status) in seen.statuses if kind == "hurried"} <= {200, 429, 504}
    assert {status for (kind, status) in seen.statuses if kind in ("slow", "huge")} <= {200, 429}
    third = len(memory) // 3
    first, last = (np.median(each, axis=0) for each in (memory[:third], memory[-third:]))
    print(f"memory of each replica: {first / 2**20} MB in the first third, {last / 2**20} in the last")
    assert (last - first < GROWTH_BYTES).all()
    assert all(process.num_fds() <= fds + CALLERS for process, fds in zip(every, handles, strict=True))


@contextmanager
def held(processes: Sequence[psutil.Process]) -> Iterator[list[list[int]]]:
    """Bytes that processes hold, taken time and again while the block runs: one list each time."""
    taken: list[list[int]] = []
    stop = threading.Event()

    def take() -> None:
        while not stop.wait(SECONDS / SAMPLES):
            taken.append([resident(process) for process in processes])

    taking = threading.Thread(target=take)
    taking.start()
    try:
        yield taken
    finally:
        stop.set()
        taking.join()


def resident(process: psutil.Process) -> int:
    """Bytes of memory without those that were given back, and that the kernel has not needed yet."""
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    kilobytes = {parts[0]: int(parts[1]) for parts in map(str.split, lines[1:])}
    return 1024 * (kilobytes["Rss:"] - kilobytes["LazyFree:"])


def by_kind(seen: load.Seen) -> dict[str, set[int]]:
    """The statuses of each kind of request whose fate is no matter of time; any may get a 429."""
    matters = ("hurried", "slow", "huge")
    kinds = {kind for kind, _ in seen.statuses if kind not in matters}
    return {kind: {s for (k, s) in seen.statuses if k == kind and s != 429} for kind in kinds}


def all_is_written(storage: Storage) -> None:
    """Waits until no row waits for the prediction log, which holds up to 64 MB for a few seconds."""
    end = time.monotonic() + 60.0
    while not all(map(is_written, (storage.root / prediction_log.FOLDER).glob(f"*/{COUNTERS}/*"))):
        assert time.monotonic() < end, "the prediction log does not come to its end"
        threading.Event().wait(0.1)


def is_written(counters: Path) -> bool:
    answered, written, lost, _ = COUNTS.unpack(counters.read_bytes())
    return bool(answered == written + lost)


def test_replicas_killed_under_load_fail_only_what_they_held_and_our_client_mends_that(
    served: Served,
) -> None:
    """And each row that was answered is in the log, or is counted as lost."""
    before = logged(served)
    stop = threading.Event()
    joined = load.steady(served.url, served.key, "rows", MODELS["rows"], stop, callers=3)
    try:
        for _ in range(KILLS):
            running = wait_for_two(served.cluster)
            running[0].send_signal(signal.SIGKILL)
            running[0].wait(30)
        wait_for_two(served.cluster)
    finally:
        stop.set()
        seen = joined()
    assert seen.wrong == []
    failed = sum(count for (_, status), count in seen.statuses.items() if status != 200)
    # Of three plain callers each has one request on its way when a replica is killed.
    assert failed <= 3 * KILLS
    answered = sum(count for (_, status), count in seen.statuses.items() if status == 200)
    assert seen.statuses["client", 200] > 0
    # What a killed replica had answered, and its caller did not get, was asked for again.
    assert answered <= logged(served) - before <= answered + 6 * KILLS


def test_the_monitor_killed_under_load_counts_every_row_once(
    served: Served, ray_cluster: LocalCluster
) -> None:
    # A model of its own, whose every row has a caller who waits for it.
    start("watched", 7.0, served.storage, ray_cluster.http_port)
    stop = threading.Event()
    joined = load.steady(served.url, served.key, "watched", 7.0, stop, callers=2)
    try:
        for _ in range(KILLS):
            (monitor,) = until_there(lambda: monitors(ray_cluster))
            monitor.send_signal(signal.SIGKILL)
            monitor.wait(30)
            # It counts again before it is killed again.
            seen_before = counted(served, "watched")
            until_there(lambda least=seen_before: counted(served, "watched") > least)
    finally:
        stop.set()
        seen = joined()
    assert seen.wrong == []
    answered = sum(
        COUNTS.unpack(path.read_bytes())[0]
        for path in (served.storage.root / prediction_log.FOLDER / "watched" / COUNTERS).glob("*")
    )
    assert answered > 0
    until_there(lambda: counted(served, "watched") >= answered)
    assert counted(served, "watched") == answered


def counted(served: Served, model: str) -> int:
    """The rows of a model that the monitor has on disk."""
    kept = served.storage.read_json(journal.FOLDER, f"{model}.json")
    return sum(watched.rows for watched in ModelState.from_json(kept).versions.values()) if kept else 0


def monitors(cluster: LocalCluster) -> list[psutil.Process]:
    """The monitor's process in this cluster, once its constructor has run."""
    return titled(cluster, ":ServeReplica:monitor:")


def until_there(ask: Callable[[], Any]) -> Any:
    """What is asked for, when it is there."""
    end = time.monotonic() + 60.0
    while not (found := ask()):
        assert time.monotonic() < end, "the monitor does not come back"
        threading.Event().wait(0.1)
    return found


def logged(served: Served) -> int:
    """Rows of the log, each there once, and rows that are lost; when all that was answered is written."""
    last = -1
    while True:
        rows = prediction_log.read(served.storage, "rows").select("request_id", "row").collect()
        assert rows.height == rows.unique().height
        found = rows.height + prediction_log.lost(served.storage, "rows")
        if found == last:
            return found
        last = found
        threading.Event().wait(1.5 * FLUSH_S)


def wait_for_two(cluster: LocalCluster) -> list[psutil.Process]:
    """Both replicas, when they answer health checks."""
    from ray import serve

    end = time.monotonic() + 120
    while time.monotonic() < end:
        status = serve.status().applications["rows"].deployments["rows"]
        found = replicas(cluster, "rows")
        if status.status == "HEALTHY" and status.replica_states.get("RUNNING") == 2 and len(found) == 2:
            return found
        threading.Event().wait(0.2)
    raise AssertionError("the replicas do not come back")
