"""In a job, commands use the cluster that it is of, touch no other, and say what it cannot do."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlops_ray import config
from mlops_ray.cluster import front, head, joined, local, ports
from mlops_ray.cluster.local import LocalCluster
from mlops_ray.config import Policy, Project
from mlops_ray.errors import ClusterError, ConfigError, PolicyError, StorageError
from mlops_ray.storage import Storage

JOB, OTHER = "10.0.0.5:6379", "127.0.0.1:20001"
PROJECT = """
project: m
sources: {s: {path: a.csv, time: none, columns: {x: {type: float}, y: {type: float}}}}
features: {row: {columns: [x]}}
target: {source: s, expr: y, horizon: 0s, task: regression}
"""


def project(folder: Path, text: str = "", begin: str = PROJECT) -> Project:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "project.yaml").write_text(begin + text)
    return config.load(folder / "project.yaml", {})


def listening(folder: Path, **said: object) -> Project:
    return project(folder, f"serving: {{listen: {json.dumps(said)}}}\n")


@pytest.fixture
def in_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is the command of a job on nodes that were started with our settings."""
    monkeypatch.setenv("RAY_ADDRESS", JOB)
    for name in joined.NEEDED:
        monkeypatch.setenv(name, head.SETTINGS[name])
    monkeypatch.setattr(joined, "_serves_at", lambda: None)


def cluster(address: str = JOB, marker: str = "") -> LocalCluster:
    return LocalCluster(
        marker, 1, address, "http://10.0.0.5:8265", 8000, {}, "", host=address.partition(":")[0]
    )


def record(storage: Storage, of: LocalCluster) -> Path:
    path = storage.path(local.RECORD)
    path.write_text(json.dumps({"ready": True, "cluster": asdict(of)}))
    return path


def test_a_job_starts_nothing_and_leaves_what_another_machine_recorded(
    in_job: None, storage: Storage
) -> None:
    kept = record(storage, cluster(OTHER, "0123"))
    assert not joined.is_missing(storage)
    assert kept.exists()


def test_outside_a_job_what_is_recorded_and_gone_is_missing(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    kept = record(storage, cluster(OTHER, "0123"))
    assert joined.is_missing(storage)
    assert not kept.exists()


def test_a_job_on_this_machines_own_cluster_uses_it_as_commands_do(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", OTHER)
    ours = cluster(OTHER, "0123")
    record(storage, ours)
    monkeypatch.setattr(local, "find", lambda folder: ours)
    assert joined.found(project(tmp_path), storage) == ours


def test_what_nodes_say_of_ray_is_left_to_them(in_job: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the nodes' own")
    before = dict(os.environ)
    joined.settle()
    assert dict(os.environ) == before
    monkeypatch.delenv("RAY_ADDRESS")
    for name, value in head.SETTINGS.items():
        monkeypatch.setenv(name, f"not {value}")
    joined.settle()
    assert head.SETTINGS.items() <= os.environ.items()


def test_a_ray_client_is_told_where_commands_run() -> None:
    with pytest.raises(ClusterError, match=r"run them as jobs, mlops-ray submit -- "):
        joined.address({"RAY_ADDRESS": "ray://head:10001"})


def test_what_would_go_with_the_upload_is_refused_with_what_to_write(in_job: None, tmp_path: Path) -> None:
    upload = tmp_path / joined.UPLOADS / "working_dir_files" / "_ray_pkg_1"
    with pytest.raises(ConfigError, match=r"\.mlops is a copy .* e\.g\. storage: /mnt/shared/m$"):
        joined.require_lasting(project(upload))
    lasting = f"storage: {tmp_path}\n"
    joined.require_lasting(project(upload, lasting))
    retrain = lasting + "monitoring: {retrain: {when: [drift], at_most: 1/7d}}\n"
    with pytest.raises(ConfigError, match=r"monitoring\.retrain: a retraining reads this file"):
        joined.require_lasting(project(upload, retrain))
    joined.require_lasting(project(tmp_path / "shared", retrain))


@pytest.mark.parametrize("said", ["path: a.csv", "sql: {connection: 'sqlite:///a.db', query: SELECT 1}"])
def test_rows_of_a_region_that_came_with_the_upload_are_refused(
    in_job: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    upload = tmp_path / joined.UPLOADS / "working_dir_files" / "_ray_pkg_1"
    text = PROJECT.replace("path: a.csv", said).replace(
        "time: none", "policy: {allowed_regions: eu-de}, time: none"
    )
    made = project(upload, f"storage: {tmp_path}\n", text)
    monkeypatch.chdir(upload)
    with pytest.raises(PolicyError, match=r"'s' may be in eu-de only, and came with this job"):
        joined.require_lasting(made)
    joined.require_lasting(project(upload, f"storage: {tmp_path}\n", text.replace("a.", "s3://b/a.")))
    monkeypatch.delenv("RAY_ADDRESS")
    joined.require_lasting(made)


def test_outside_a_job_any_folder_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    joined.require_lasting(project(tmp_path / joined.UPLOADS))


def test_a_cluster_serves_callers_from_beyond_its_nodes_or_says_what_it_lacks(
    in_job: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beyond = {"host": "0.0.0.0", "tls": "elsewhere"}
    joined.require_serving(listening(tmp_path, **beyond), cluster())
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1 lets no other node .*{host: 0\.0\.0\.0, tls: else"):
        joined.require_serving(project(tmp_path), cluster())
    with pytest.raises(ClusterError, match="Serve runs there on port 8000: for port 9000, stop it"):
        joined.require_serving(listening(tmp_path, port=9000, **beyond), cluster())
    tls = {"certificate": "a.crt", "key": "a.key"}
    with pytest.raises(ConfigError, match="on a cluster TLS ends in what stands in front"):
        joined.require_serving(listening(tmp_path, host="0.0.0.0", **tls), cluster())
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY")
    with pytest.raises(ClusterError, match=r"were started without RAY_SERVE_ENABLE_HA_PROXY='1': Serve"):
        joined.require_serving(listening(tmp_path, **beyond), cluster())
    joined.require_serving(project(tmp_path), cluster(OTHER, "0123"))


def test_a_serve_that_listens_elsewhere_than_is_wished_is_refused_and_left_as_it_is(
    in_job: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = SimpleNamespace(host="127.0.0.1", port=8000)
    monkeypatch.setattr(joined, "_serves_at", lambda: at)
    beyond, local_only = listening(tmp_path / "a", host="0.0.0.0", tls="elsewhere"), project(tmp_path / "b")
    for require in (joined.require_serving, joined.require_lending):
        with pytest.raises(ClusterError, match=r"listens there on 127\.0\.0\.1: for 0\.0\.0\.0, stop it"):
            require(beyond, cluster())
    assert joined.binds(beyond, cluster()) == "127.0.0.1"
    at.host = "0.0.0.0"
    joined.require_serving(beyond, cluster())
    # Who said loopback is not to be open to others because somebody else was.
    with pytest.raises(ClusterError, match=r"listens there on 0\.0\.0\.0: for 127\.0\.0\.1, stop it"):
        joined.require_serving(local_only, cluster(OTHER))
    # A load test's replicas answer nobody but itself.
    joined.require_lending(local_only, cluster())
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY")
    with pytest.raises(ClusterError, match="were started without RAY_SERVE_ENABLE_HA_PROXY"):
        joined.require_lending(local_only, cluster())


def test_what_is_lent_before_anything_is_served_lets_all_nodes_in(in_job: None, tmp_path: Path) -> None:
    beyond = listening(tmp_path, host="0.0.0.0", tls="elsewhere")
    joined.require_lending(beyond, cluster())
    assert joined.binds(beyond, cluster()) == "0.0.0.0"
    assert joined.binds(beyond, cluster(OTHER, "0123")) == "127.0.0.1"
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1 lets no other node"):
        joined.require_lending(project(tmp_path), cluster())


def test_on_a_cluster_of_one_machine_loopback_will_do(in_job: None, tmp_path: Path) -> None:
    joined.require_serving(project(tmp_path), cluster(OTHER))


def test_where_a_cluster_not_ours_is_asked_and_what_it_opens(in_job: None, tmp_path: Path) -> None:
    beyond = listening(tmp_path, host="0.0.0.0", tls="elsewhere")
    assert front.url(beyond, cluster()) == "http://10.0.0.5:8000"
    # No proxy of ours is started there.
    assert [said.split(" (")[0] for said in front.apply(beyond, cluster())] == [
        "open beyond this machine: Serve's front end",
        "open beyond this machine: the gateway's gRPC",
    ]
    assert [port.host for port in ports.table(beyond, cluster())] == ["0.0.0.0", "0.0.0.0"]
    here = project(tmp_path)
    assert front.url(here, cluster(OTHER)) == "http://127.0.0.1:8000"
    assert front.apply(here, cluster(OTHER)) == []


def test_a_storage_that_a_node_does_not_see_is_told(
    ray_cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    here = ray.get_runtime_context().get_node_id()
    joined.require_seen(tmp_path, {here: "10.0.0.7"})
    # A path that is another folder for each process: the node's does not find what this one writes there.
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match=r"10\.0\.0\.7 do not see the storage .* mount it on every node"):
        joined.require_seen(Path("/proc/self/cwd"), {here: "10.0.0.7"})
    assert list(Path.cwd().glob(".seen-*")) == []


def test_a_node_that_cannot_answer_is_told_unless_it_is_gone(
    ray_cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    silent = {"a" * 56: "10.0.0.8"}
    joined.require_seen(tmp_path, silent)
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": id, "Alive": True, "Labels": {}} for id in silent])
    with pytest.raises(ClusterError, match=r"10\.0\.0\.8 does not say whether it sees"):
        joined.require_seen(tmp_path, silent)


def test_only_nodes_that_may_see_the_rows_are_asked(ray_cluster: LocalCluster) -> None:
    assert joined.others([Policy()]) == {}
