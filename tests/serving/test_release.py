"""What is live is a document; what runs is started only when it differs."""

import time
import urllib.request
from pathlib import Path

import orjson
import pytest

from mlops_ray import keys
from mlops_ray.cluster.local import LocalCluster
from mlops_ray.errors import StorageError
from mlops_ray.serving import record
from mlops_ray.storage import Storage
from tests.serving import packages

ROW = {"site": "a", "time": "2016-11-02T10:00:00Z", "load": 3.0}
#: A promotion is to be live everywhere within two seconds; a busy machine gets more.
LIVE_S = 30.0


def test_the_champion_before_is_remembered_and_repeating_changes_nothing(storage: Storage) -> None:
    project = packages.project(storage.root)
    first = packages.write(storage.path("artifacts", "v1"), project, 1.0)
    second = packages.write(storage.path("artifacts", "v2"), project, 2.0)
    record.set_champion(storage, packages.NAME, 1, first)
    released = record.set_champion(storage, packages.NAME, 2, second)
    assert (
        record.set_champion(storage, packages.NAME, 2, second)
        == released
        == record.read(storage, packages.NAME)
    )
    assert (released["champion"]["version"], released["previous"]["version"]) == ("2", "1")
    assert released["champion"]["clock"] == ["hour"]
    assert released["champion"]["package"] == "artifacts/v2"
    assert [document["model"] for document in record.read_all(storage)] == [packages.NAME]


def test_a_package_outside_the_storage_is_refused(storage: Storage, tmp_path: Path) -> None:
    package = packages.write(tmp_path / "elsewhere", packages.project(storage.root), 1.0)
    with pytest.raises(StorageError, match="lies outside the storage"):
        record.set_champion(storage, packages.NAME, 1, package)
    assert record.read(storage, packages.NAME) == {}


def test_a_release_of_another_format_is_refused(storage: Storage) -> None:
    storage.write_json({"format": 99}, "release", "m.json")
    with pytest.raises(StorageError, match="not of format 1"):
        record.read(storage, "m")


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


def eventually(condition: object) -> None:
    end = time.monotonic() + LIVE_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end


def test_a_model_is_served_swapped_without_a_deployment_and_counted(storage: Storage, http_port: int) -> None:
    from ray import serve

    from mlops_ray.serving import release

    project = packages.project(storage.root)
    key = Path(keys.ensure_local(storage)).read_text().strip()
    for version in (1, 2):
        package = packages.write(storage.path("artifacts", f"v{version}"), project, float(version))
        if version == 1:
            record.set_champion(storage, packages.NAME, version, package)
    started = release.deploy(project, storage, http_port=http_port)
    assert set(started.started) == {"monitor", "gateway", packages.NAME}
    assert predict(started.url, key)["predictions"] == [pytest.approx(3.0, abs=1e-3)]

    record.set_champion(storage, packages.NAME, 2, package)
    eventually(lambda: predict(started.url, key)["model_version"] == "2")
    assert predict(started.url, key)["predictions"] == [pytest.approx(6.0, abs=1e-3)]
    assert release.deploy(project, storage, http_port=http_port).started == ()

    one = 'mlops_requests_total{code="200",model="rows",role="retired",version="1"}'
    eventually(lambda: one in metrics(started.url, key))
    serve.delete(packages.NAME)
