"""Under load of every kind everybody gets their own answer, or a clear refusal, and nothing grows."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest

from mlops_ray import keys
from mlops_ray.client import Client
from mlops_ray.cluster.local import LocalCluster
from mlops_ray.config import Project
from mlops_ray.data import prediction_log
from mlops_ray.data.prediction_log import COUNTERS, COUNTS
from mlops_ray.serving import deploy
from mlops_ray.storage import Storage
from tests.e2e import load
from tests.e2e.processes import replicas
from tests.serving import packages

#: The whole soak is of half an hour, on demand; `make soak` says how many seconds.
SECONDS = float(os.environ.get("MLOPS_SOAK_S", 1_800 if os.environ.get("MLOPS_WHOLE") else 20))
IS_WHOLE = SECONDS >= 1_800
CALLERS, WARM_UP_S = 8, 20.0
MODELS = {"rows": 2.0, "others": 3.0}
pytestmark = pytest.mark.timeout(300 + 2 * SECONDS)
#: What a replica's memory may grow by under load, of some 350 MB, from the first third to the last. In the
#: first minute libraries lay by what they keep; after it only a leak grows, by no more than 1 MB a minute.
GROWTH_BYTES = (20 if IS_WHOLE else 60) * 2**20
#: How often memory is taken: what is in use at one moment, of requests of 10,000 rows, is up to 50 MB more.
SAMPLES = 90
THIRDS = ("first", "second", "last")


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
    for name in ("gateway", *MODELS, "third"):
        serve.delete(name)


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


def test_under_mixed_load_nobody_gets_anothers_answer_and_nothing_grows(
    served: Served, record_property: Callable[[str, object], None]
) -> None:
    port = int(served.url.rpartition(":")[2])
    # What is made once is made: buffers, caches, compiled queries, the allocator's arenas.
    load.mixed(port, served.key, MODELS, WARM_UP_S, CALLERS, seed=1)
    all_is_written(served.storage)
    every = {
        f"{name} {number}": process
        for name in MODELS
        for number, process in enumerate(replicas(served.cluster, name), 1)
    }
    handles = [process.num_fds() for process in every.values()]
    with held(list(every.values())) as taken:
        seen = load.mixed(port, served.key, MODELS, SECONDS, CALLERS, seed=2)
    all_is_written(served.storage)
    # Of each third, and of each process: bytes, and handles.
    thirds = np.array([np.median(part, axis=0) for part in np.array_split(np.array(taken), 3)])
    for name, of_process in zip(every, thirds.swapaxes(0, 1), strict=True):
        record_property("row", by_thirds(name, of_process))
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
    assert (thirds[2, :, 0] - thirds[0, :, 0] < GROWTH_BYTES).all()
    after = [process.num_fds() for process in every.values()]
    assert all(now <= before + CALLERS for now, before in zip(after, handles, strict=True))


def by_thirds(name: str, found: npt.NDArray[np.float64]) -> dict[str, str]:
    """A row of the soak's table, of the bytes and handles (3 × 2) of a process."""
    return (
        {f"replica, after {SECONDS:,.0f} s": name}
        | {f"MB, {third} third": f"{found[at, 0] / 2**20:.0f}" for at, third in enumerate(THIRDS)}
        | {f"handles, {third} third": f"{found[at, 1]:.0f}" for at, third in enumerate(THIRDS)}
    )


@contextmanager
def held(processes: Sequence[psutil.Process]) -> Iterator[list[list[tuple[int, int]]]]:
    """Bytes and handles that processes hold, taken time and again while the block runs: a list each time."""
    taken: list[list[tuple[int, int]]] = []
    stop = threading.Event()

    def take() -> None:
        while not stop.wait(SECONDS / SAMPLES):
            taken.append([(resident(process), process.num_fds()) for process in processes])

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
