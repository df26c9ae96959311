"""Retrainings as Ray jobs: found by their ids, begun once, with a reason where they fail."""

import json
import logging
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from mlops_ray import config
from mlops_ray.cluster import loop, looper, retraining, service
from mlops_ray.cluster.local import LocalCluster
from mlops_ray.cluster.loop import Retraining, Settings
from mlops_ray.cluster.looper import Looping, RayCluster, RayJobs
from mlops_ray.cluster.meter import MARKET, SPOT, Node
from mlops_ray.cluster.sizing import Machines
from mlops_ray.config import Project
from mlops_ray.data import error_log
from mlops_ray.errors import ClusterError
from mlops_ray.expressions import SEARCH_PATH
from mlops_ray.storage import Storage, locked
from tests.cluster.test_joined import PROJECT

#: A job that does nothing takes 10 s on a free machine.
PATIENCE_S = 200.0
WRONG = "project: m\nsources: {}\nfaetures: {}\n"


def settings(file: Path, cpus: float = 1.0) -> Settings:
    return Settings(str(file), ("performance",), 1, 60.0, cpus, {})


def test_a_job_is_found_by_its_id_and_says_why_it_fails(
    ray_cluster: LocalCluster, storage: Storage, tmp_path: Path
) -> None:
    file = tmp_path / "a project.yaml"
    file.write_text(WRONG)
    jobs = RayJobs(str(storage.root))
    assert jobs.state("retrain-m-1") is None
    jobs.submit("retrain-m-1", settings(file))
    with pytest.raises(ClusterError, match="already exists"):
        RayJobs(str(storage.root)).submit("retrain-m-1", settings(file))
    end = time.monotonic() + PATIENCE_S
    while (state := RayJobs(str(storage.root)).state("retrain-m-1")) in ("PENDING", "RUNNING"):
        assert time.monotonic() < end
    assert state == "FAILED"
    said = storage.read_json(loop.JOBS, "retrain-m-1.json")
    assert said["outcome"] == "failed"
    assert "a project.yaml" in said["said"]
    assert loop.begun(storage, "retrain-m-1").exists()


def test_a_retraining_s_job_runs_on_a_node_that_may_see_the_rows(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = yaml.safe_load(PROJECT)
    document["sources"]["s"]["policy"] = {"allowed_regions": ["eu-de", "eu-fr"]}
    document["monitoring"] = {"retrain": {"when": ["drift"], "at_most": "1/7d"}}
    (tmp_path / "project.yaml").write_text(yaml.safe_dump(document))
    how = Settings.of(config.load(tmp_path / "project.yaml", {}))
    assert how is not None
    heard: list[Any] = []
    client = SimpleNamespace(submit_job=lambda **job: heard.append(job["entrypoint_label_selector"]))
    monkeypatch.setattr(RayJobs, "_client", client)
    RayJobs(str(storage.root)).submit("retrain-m-1", how)
    assert heard == [{"region": "in(eu-de,eu-fr)"}]


def test_what_keeps_a_trial_from_running_is_said(ray_cluster: LocalCluster, tmp_path: Path) -> None:
    jobs = RayJobs(str(tmp_path))
    assert jobs.lacks(settings(tmp_path, cpus=0.001)) == ""
    assert "of 2 are held by replicas" in jobs.lacks(settings(tmp_path, cpus=3.0))


def test_what_goes_wrong_in_the_loop_is_told_as_the_loop_s(storage: Storage) -> None:
    # Another one does the work, which lowers the priority of its process.
    with locked(storage.path(*Looping.LOCK)) or pytest.fail("it is locked"):
        waiting = Looping(str(storage.root))
        logging.getLogger("mlops_ray.cluster.loop").error("it does not go on")
        for log in error_log._installed:
            log.flush()
        waiting._ended.set()
        waiting._thread.join()
    (path,) = (storage.root / error_log.FOLDER).glob("*.jsonl")
    (line,) = map(json.loads, path.read_text().splitlines())
    assert (line["process"], line["stage"], line["said"]) == ("loop", "retraining", "it does not go on")


def test_a_file_that_is_of_another_model_by_now_trains_nothing(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SEARCH_PATH, "")
    trained: list[str] = []

    def retrained(project: Project, *_: Any) -> dict[str, Any]:
        trained.append(project.project)
        return {"outcome": "unchanged"}

    monkeypatch.setattr(service, "retrained", retrained)
    asked = asdict(Retraining("one", 0.0, ""))
    storage.write_json({"model": "m", "retrainings": [asked]}, loop.FOLDER, "m.json")
    file = tmp_path / "project.yaml"
    file.write_text(PROJECT.replace("project: m", "project: other"))
    assert retraining.run(file, "one", storage) == 2
    assert "other is not the model that is to be trained" in storage.read_json(loop.JOBS, "one.json")["said"]
    file.write_text(PROJECT)
    assert retraining.run(file, "two", storage) == 2
    assert trained == []
    loop.begun(storage, "one").unlink()
    assert retraining.run(file, "one", storage) == 0
    assert trained == ["m"]


def test_a_job_begins_once_whoever_submits_it_again(
    storage: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Set by the job, for itself alone.
    monkeypatch.setenv(SEARCH_PATH, "")
    file = tmp_path / "project.yaml"
    file.write_text(WRONG)
    assert retraining.run(file, "one", storage) == 2
    said: Any = storage.read_json(loop.JOBS, "one.json")
    file.write_text("")
    assert retraining.run(file, "one", storage) == 0
    assert "one has begun before" in capsys.readouterr().out
    assert storage.read_json(loop.JOBS, "one.json") == said


# ---------------------------------------------------------------- machines


def of(id: str, cpus: float = 8.0, gpus: float = 0.0, **labels: str) -> Node:
    return Node(id, labels, cpus, gpus, cpus, gpus)


def machines(monkeypatch: pytest.MonkeyPatch, nodes: list[Node], spot: bool = False, **cost: Any) -> Machines:
    """Of a project whose rows may be in eu-de only, on a cluster of these nodes."""
    document = yaml.safe_load(PROJECT)
    document["sources"]["s"]["policy"] = {"allowed_regions": "eu-de"}
    project = Project.model_validate(document | {"cost": cost | {"spot": spot}})
    monkeypatch.setattr(RayCluster, "nodes", lambda _: nodes)
    return looper.machines(project)


def test_a_type_of_machine_is_there_where_rows_may_be_and_nodes_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        of("a", cpus=0, region="eu-de", machine="head"),
        of("b", region="eu-de", machine="small"),
        of("c", region="us-east", machine="big"),
        of("d", **{"region": "eu-de", "machine": "cheap", MARKET: SPOT}),
    ]
    found = machines(monkeypatch, nodes)
    assert [name in found for name in ("small", "big", "cheap", "head")] == [True, False, False, False]
    assert "cheap" in machines(monkeypatch, nodes, spot=True)
    monkeypatch.setenv("MLOPS_MACHINES", "big,gpu")
    assert "gpu" in machines(monkeypatch, nodes)


def test_nodes_that_say_no_type_are_of_the_one_that_the_project_says(monkeypatch: pytest.MonkeyPatch) -> None:
    found = machines(
        monkeypatch, [of("a", region="eu-de"), of("b", region="eu-de", machine="big")], machine="own"
    )
    assert (found.unlabelled, found.labels("own", spot=False)) == ("own", {"machine": "!in(big)"})


def test_there_is_room_for_what_is_free_on_nodes_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        of("a", cpus=3, gpus=2, region="eu-de", pool="gpu"),
        of("b", cpus=3, region="eu-de", pool="cpu"),
        of("c", cpus=8, region="us-east", pool="cpu"),
    ]
    room = machines(monkeypatch, nodes).room
    assert [room(1.0, 0.0, labels) for labels in ({}, {"pool": "cpu"}, {"pool": "!gpu"})] == [6, 3, 3]
    # Of two GPUs none is shared by parts.
    assert (room(1.0, 0.6, {}), room(0.5, 0.5, {}), room(0.0, 2.0, {})) == (2, 4, 1)
