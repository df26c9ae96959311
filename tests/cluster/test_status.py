"""What `status` says of a service that does not answer: that it starts, or that it was live and is gone."""

from typing import Any

import pytest

from mlops_ray import keys
from mlops_ray.cluster import joined, service
from mlops_ray.cluster.local import LocalCluster
from mlops_ray.config import Project
from mlops_ray.data import error_log
from mlops_ray.errors import StorageError
from mlops_ray.storage import Storage
from tests.servers import free_port
from tests.serving import packages


def cluster(marker: str) -> LocalCluster:
    """One at whose front end nobody listens; without a marker, the one of a job."""
    return LocalCluster(marker, 1, "127.0.0.1:6379", "", free_port(), {}, "")


@pytest.fixture
def project(storage: Storage) -> Project:
    keys.ensure_local(storage)
    return packages.project(storage.root)


def status(
    monkeypatch: pytest.MonkeyPatch, project: Project, storage: Storage, found: LocalCluster
) -> dict[str, Any]:
    monkeypatch.setattr(joined, "found", lambda *_: found)
    return service.status(project, storage)


@pytest.mark.parametrize("marker", ["m1", ""])
def test_a_service_that_was_live_and_does_not_answer_is_not_said_to_start(
    project: Project, storage: Storage, monkeypatch: pytest.MonkeyPatch, marker: str
) -> None:
    of = cluster(marker)
    assert status(monkeypatch, project, storage, of)["state"] == "starting"
    service._tell_live(storage, of, "http://ml.example.org")
    error_log.tell(storage, "m", "predict", StorageError("the store is away"))
    found = status(monkeypatch, project, storage, of)
    assert found["state"] == "unreachable"
    said, logged = found["wrong"]
    assert said.startswith("the service was live, and does not answer now (http://127.0.0.1:")
    assert "mlops-ray serve" in said
    assert "the store is away" in logged
    # Another than that one has not been live yet.
    another = LocalCluster("m2", 1, "127.0.0.1:6380", "", free_port(), {}, "")
    assert status(monkeypatch, project, storage, another)["state"] == "starting"


def test_a_service_that_a_job_has_stopped_starts_when_it_is_started_again(
    project: Project, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import serve

    of = cluster("")
    service._tell_live(storage, of, "http://ml.example.org")
    monkeypatch.setattr(joined, "found", lambda *_: of)
    monkeypatch.setattr(joined, "address", lambda: of.address)
    monkeypatch.setattr(serve, "status", lambda: type("Status", (), {"applications": {}}))
    monkeypatch.setattr(serve, "shutdown", lambda: None)
    service.down(project, storage)
    assert status(monkeypatch, project, storage, of)["state"] == "starting"
