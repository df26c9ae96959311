"""What is live is a document; what runs is started only when it differs."""

import contextlib
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest

from mlops_ray import keys
from mlops_ray.client import Client
from mlops_ray.cluster import joined, local, releases, service
from mlops_ray.cluster.local import LocalCluster
from mlops_ray.cluster.stages import Silent
from mlops_ray.config import Project, Release
from mlops_ray.errors import ClusterError, MlopsError, ReleaseError, StorageError, UsageError
from mlops_ray.registry.outcome import Called, Outcome
from mlops_ray.registry.registry import Registry
from mlops_ray.serving import record
from mlops_ray.storage import Storage
from mlops_ray.training import tracking
from tests.serving import packages

CRASHING = "tests.serving.hostile.crash_when_large"
ROW = {"site": "a", "time": "2016-11-02T10:00:00Z", "load": 3.0}
#: A promotion is to be live everywhere within two seconds; a busy machine gets more.
LIVE_S = 30.0


def test_the_champion_before_is_remembered(storage: Storage) -> None:
    project = packages.project(storage.root)
    first = packages.write(storage.path("artifacts", "v1"), project, 1.0)
    second = packages.write(storage.path("artifacts", "v2"), project, 2.0)
    packages.crown(storage, packages.NAME, 1, first)
    packages.crown(storage, packages.NAME, 2, second)
    released = record.read(storage, packages.NAME)
    assert (released["champion"]["version"], released["previous"]["version"]) == ("2", "1")
    assert released["champion"]["package"] == "artifacts/v2"
    assert [document["model"] for document in record.read_all(storage)] == [packages.NAME]


def test_a_package_outside_the_storage_is_refused(storage: Storage, tmp_path: Path) -> None:
    package = packages.write(tmp_path / "elsewhere", packages.project(storage.root), 1.0)
    with pytest.raises(StorageError, match="lies outside the storage"):
        record.entry(storage, "1", package)


def test_a_release_of_another_format_is_refused_and_one_of_the_first_goes_on(storage: Storage) -> None:
    storage.write_json({"format": 99}, "release", "m.json")
    with pytest.raises(StorageError, match="not of format 2"):
        record.read(storage, "m")
    champion = {"version": "3", "digest": "d"}
    storage.write_json({"format": 1, "champion": champion, "previous": None}, "release", "m.json")
    assert record.read(storage, "m") == record.new("m") | {"champion": champion}


def test_settings_may_hold_passwords_and_are_their_owners_alone(storage: Storage) -> None:
    settings = record.Settings("http://u:secret@mlflow", "", hooks=({"webhook": "http://u:p@h", "on": ()},))
    record.settle(storage, "m", settings)
    path = storage.path(record.SETTINGS, "m.json")
    assert path.stat().st_mode & 0o777 == 0o600
    assert record.settings(storage, "m").tracking == settings.tracking  # type: ignore[union-attr]


@pytest.fixture
def http_port(ray_cluster: LocalCluster) -> int:
    """Serve is started once in a cluster, and keeps its port."""
    return ray_cluster.http_port


def predict(url: str, key: str) -> dict[str, object]:
    request = urllib.request.Request(
        f"{url}/v2/models/{packages.NAME}/invocations",
        data=orjson.dumps({"dataframe_records": [ROW]}),
        headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as reply:
        return orjson.loads(reply.read())  # type: ignore[no-any-return]


def metrics(url: str, key: str) -> str:
    request = urllib.request.Request(f"{url}/metrics", headers={"authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        return str(reply.read().decode())


def states(live: "Live") -> dict[int, str]:
    """What the registry says of each version."""
    return {each["version"]: each["state"] for each in live.registry.versions(packages.NAME)}


def eventually(condition: object) -> None:
    end = time.monotonic() + LIVE_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end


@dataclass(frozen=True)
class Live:
    """A service whose registry holds four versions: the first was pushed, the last crashes at some rows."""

    project: Project
    storage: Storage
    registry: Registry
    url: str
    key: str

    @property
    def answer(self) -> tuple[str, float]:
        """The version that answers, and a third of what it answers to `ROW`."""
        found: Any = predict(self.url, self.key)
        return found["model_version"], round(found["predictions"][0] / 3, 2)

    def push(self, version: int, **release: Any) -> dict[str, Any]:
        project = self.project.model_copy(update={"release": Release.model_validate(release)})
        found = releases.pushed(project, self.storage, Silent(), version)
        releases.require_live(found)
        return found


@pytest.fixture
def live(storage: Storage, http_port: int) -> Iterator[Live]:
    from ray import serve

    from mlops_ray.serving import deploy

    postprocess = {"postprocess": {"function": CRASHING}}
    project = packages.project(storage.root, serving=packages.PROJECT["serving"] | postprocess)  # type: ignore[operator]
    uri = deploy.tracking_uri(project, storage)
    experiment = tracking.prepare(uri, packages.NAME, str(storage.root / "artifacts"))
    registry = Registry(uri)
    for version in (1, 2, 3, 4):
        outcome = Outcome(function=Called.now(CRASHING)) if version == 4 else None
        package = packages.write(
            storage.path("made", f"v{version}"), project, float(version), outcome=outcome
        )
        with tracking.open_run(uri, experiment, packages.NAME) as run:
            assert registry.register(package, run_id=run.id) == version
    releases.push(project, storage, 1)
    key = Path(keys.ensure_local(storage)).read_text().strip()
    started = deploy.deploy(project, storage, http_port=http_port)
    assert set(started.started) == {"monitor", "gateway", "reconciler", packages.NAME}
    assert deploy.deploy(project, storage, http_port=http_port).started == ()
    yield Live(project, storage, registry, started.url, key)
    for application in ("gateway", "reconciler", packages.NAME):
        serve.delete(application)


def test_a_cluster_serves_one_storage_and_another_neither_takes_its_service_over_nor_stops_it(
    live: Live, ray_cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlops_ray.serving import deploy

    other = Storage.open(str(tmp_path / "other"))
    of = packages.project(other.root, project="others")
    made = packages.write(other.path("artifacts", "v1"), of, 5.0, "others")
    packages.crown(other, "others", 1, made)
    whose = f"is that of the storage {live.storage.root.resolve()}, and a cluster runs one: mlops-ray down"
    with pytest.raises(ClusterError, match=whose):
        deploy.deploy(of, other, http_port=ray_cluster.http_port)
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster.address)
    monkeypatch.setattr(joined, "found", lambda *_: replace(ray_cluster, marker=""))
    with pytest.raises(ClusterError, match=whose):
        service.down(of, other)
    assert live.answer == ("1", 1.0)


def test_a_service_that_is_gone_or_of_the_same_folder_keeps_nobody_out(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlops_ray.serving import deploy

    known: dict[bytes, bytes] = {}
    running = {"gateway": None}
    kv = SimpleNamespace(
        _internal_kv_get=lambda key, namespace: known.get(key),
        _internal_kv_put=lambda key, value, namespace: known.update({key: value}),
    )
    monkeypatch.setattr(deploy, "internal_kv", kv)
    monkeypatch.setattr(deploy.serve, "status", lambda: SimpleNamespace(applications=running))
    other = Storage.open(str(tmp_path / "other"))
    (tmp_path / "link").symlink_to(storage.root)
    # Of a service that an older version started nobody said whose it is.
    deploy.require_ours(other)
    deploy.claim(storage)
    deploy.require_ours(Storage(tmp_path / "link"))
    with pytest.raises(ClusterError, match="any other wants a cluster of its own"):
        deploy.require_ours(other)
    running.clear()
    deploy.require_ours(other)


def test_what_is_pushed_is_live_without_a_deployment_and_goes_back_at_once(live: Live) -> None:
    from ray import serve

    before = serve.status().applications[packages.NAME].last_deployed_time_s
    assert live.answer == ("1", 1.0)
    assert live.push(2)["state"] == "champion"
    eventually(lambda: live.answer == ("2", 2.0))
    eventually(lambda: live.registry.champion(packages.NAME) == 2)
    one = 'mlops_requests_total{code="200",model="rows",role="retired",version="1"}'
    eventually(lambda: one in metrics(live.url, live.key))

    assert releases.rollback(live.project, live.storage) == {"version": "1", "rolled_back": "2"}
    eventually(lambda: live.answer == ("1", 1.0))
    eventually(lambda: live.registry.champion(packages.NAME) == 1)
    eventually(lambda: states(live)[2] == "rolled_back")
    assert states(live)[3] == "registered"

    with pytest.raises(ReleaseError, match="version 9 is refused: the registry has no version 9"):
        live.push(9)
    with pytest.raises(UsageError, match="version 3 is no challenger"):
        releases.promote(live.project, live.storage, 3)
    assert live.answer == ("1", 1.0)
    assert serve.status().applications[packages.NAME].last_deployed_time_s == before


def test_a_canary_in_the_service_ends_by_what_was_seen_even_if_the_reconciler_is_killed(
    live: Live, ray_cluster: LocalCluster
) -> None:
    """Version 3 answers far from what version 1 does; half of the keys ask it until that is found."""
    pool = ThreadPoolExecutor(1)
    with asked(live):
        killed = pool.submit(kill_reconciler_in_canary, live.storage, ray_cluster)
        with pytest.raises(ReleaseError, match="version 3 is rolled back: answers: moved by"):
            live.push(3, canary=[50], per_step="60s", effect=0.5)
    killed.result()
    pool.shutdown()
    eventually(lambda: live.answer == ("1", 1.0))


@contextlib.contextmanager
def asked(live: Live, *, large: float = 0.0) -> Iterator[None]:
    """Requests of ever new keys meanwhile, of which this share is for more than any example was."""
    stop = threading.Event()
    asking = threading.Thread(target=ask, args=(live, stop, large))
    asking.start()
    try:
        yield
    finally:
        stop.set()
        asking.join()


def ask(live: Live, stop: threading.Event, large: float) -> None:
    random = np.random.default_rng(1)
    with contextlib.closing(Client(live.url, packages.NAME, live.key)) as client:
        while not stop.is_set():
            load = 900.0 if random.random() < large else random.normal(50, 10)
            # A replica that dies of a large one takes its callers' answers with it.
            with contextlib.suppress(MlopsError) if large else contextlib.nullcontext():
                client.predict([ROW | {"load": load}])


def kill_reconciler_in_canary(storage: Storage, cluster: LocalCluster) -> None:
    end = time.monotonic() + LIVE_S
    while time.monotonic() < end:
        if (record.read(storage, packages.NAME).get("challenger") or {}).get("state") == "canary":
            for process in local.carrying(cluster.marker):
                if (process.cmdline() or [""])[0].startswith("ray::ServeReplica:reconciler"):
                    process.kill()
                    return
        threading.Event().wait(0.05)
    raise AssertionError("there was no canary, or no reconciler to kill in it")


def test_a_challenger_that_crashes_at_some_rows_takes_two_replicas_with_it_and_is_sent_back(
    live: Live,
) -> None:
    died = "rolled back: 2 replicas died while they held it"
    with asked(live, large=0.05), pytest.raises(ReleaseError, match=died):
        live.push(4, canary=[50], per_step="60s", effect=1e6)
    # Another replica may die of a row that was on its way to it, and take this question with it.
    with contextlib.closing(Client(live.url, packages.NAME, live.key)) as client:
        eventually(lambda: client.predict([ROW]).version == "1")
