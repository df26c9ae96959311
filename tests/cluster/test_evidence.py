"""The audit record hears where rows that are bound to regions were worked on."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from mlops_ray import audit, config, placement
from mlops_ray.cluster import evidence
from mlops_ray.cluster.pipeline import Pipeline
from mlops_ray.config import Policy
from mlops_ray.data import ingest
from mlops_ray.errors import ClusterError, StorageError
from mlops_ray.features import dataset, join
from mlops_ray.policy import HERE
from mlops_ray.storage import Storage

from ..conftest import unrecordable

BOUND = Policy(allowed_regions=("eu-de",))
PROJECT = """
project: small
sources:
  meter:
    path: rows.csv
    entity: site
    event_time: {column: time, timezone: UTC}
    columns: {site: {type: category}, load: {type: float}}
    policy: {}
features:
  past: {source: meter, features: {before: {value_at: {of: load, ago: 2d}}}}
target: {source: meter, expr: load, horizon: 24h, task: regression}
training: {minimum_rows: 1, validation: {test: {share: 20%}}}
"""
JOINED = "rows were joined"


def named(ids: Iterable[str]) -> list[dict[str, str | None]]:
    return [{"node": id, "address": "10.0.0.7", "region": "eu-de"} for id in sorted(ids)]


def test_work_that_ends_badly_is_told_of_too(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "named", named)
    with (
        pytest.raises(ZeroDivisionError),
        evidence.telling(storage, [BOUND], "rows were trained on", {"model": "load"}) as nodes,
    ):
        nodes.add("n1")
        raise ZeroDivisionError
    (entry,) = audit.entries(storage)
    assert (entry["what"], entry["about"]["model"], entry["about"]["regions"]) == (
        "rows were trained on", "load", ["eu-de"],
    )  # fmt: skip
    assert entry["about"]["nodes"] == named({"n1"})


def test_work_that_ends_badly_and_cannot_be_told_of_ends_with_what_went_wrong(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(placement, "named", named)
    unrecordable(storage)
    with (
        pytest.raises(KeyboardInterrupt),
        evidence.telling(storage, [BOUND], "rows were trained on", {"model": "load"}) as nodes,
    ):
        nodes.add("n1")
        raise KeyboardInterrupt
    assert "'rows were trained on' is not in the audit record" in caplog.text
    assert "audit record cannot be written: No such file" in caplog.text


def test_of_work_that_is_done_and_cannot_be_told_of_nobody_says_that_it_is_not(storage: Storage) -> None:
    unrecordable(storage)
    said = "^rows were trained on, but the audit record cannot be written"
    with (
        pytest.raises(StorageError, match=said) as told,
        evidence.telling(storage, [BOUND], "rows were trained on", {"model": "load"}),
    ):
        pass
    assert "not done" not in str(told.value)


def test_of_rows_that_may_be_anywhere_nothing_is_told(storage: Storage) -> None:
    with evidence.telling(storage, [Policy()], "rows were trained on", {"model": "load"}) as nodes:
        nodes.add("n1")
    assert list(audit.entries(storage)) == []


# ---------------------------------------------------------------- the join

Made = Callable[[dict[str, Any]], Pipeline]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Makes a pipeline over a month of rows under a policy, which are read in this process."""
    monkeypatch.setattr(ingest, "on_ray", lambda task, selector: task.parts(range(len(task.inputs))))
    rows = [f"2016-01-{day:02d},{site},{day}" for day in range(1, 31) for site in "abcd"]
    (tmp_path / "rows.csv").write_text("\n".join(["time,site,load", *rows]))

    def make(policy: dict[str, Any]) -> Pipeline:
        document = yaml.safe_load(PROJECT)
        document["sources"]["meter"]["policy"] = policy
        (tmp_path / "project.yaml").write_text(yaml.safe_dump(document))
        project = config.load(tmp_path / "project.yaml", {})
        return Pipeline(project, Storage.open(project.storage))

    return make


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """The ids of nodes that the audit record would hear of, by what was done there."""
    heard: dict[str, set[str]] = {}

    def tell(_: object, policies: object, what: str, about: object, ids: Iterable[str]) -> None:
        heard[what] = set(ids)

    monkeypatch.setattr(evidence, "tell", tell)
    return heard


def test_a_join_of_bound_rows_is_told_of_with_the_region_that_it_was_made_in(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HERE, "eu-de")
    pipeline = made({"allowed_regions": ["eu-de"]})
    for _ in range(2):
        pipeline.build(pipeline.ingest())
    # The second time nothing had changed, and nothing was joined.
    (about,) = [entry["about"] for entry in audit.entries(pipeline.storage) if entry["what"] == JOINED]
    assert about == {
        "model": "small", "sources": ["meter"], "regions": ["eu-de"], "here": "eu-de", "nodes": [],
    }  # fmt: skip


def test_tasks_of_a_join_say_on_which_nodes_they_were(
    ray_cluster: object, made: Made, told: dict[str, set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join, "ROWS_IN_PROCESS", 0)
    pipeline = made({})
    pipeline.build(pipeline.ingest())
    assert told[JOINED] == {node["NodeID"] for node in ray.nodes()}


def test_a_join_that_fails_says_all_the_same_on_which_nodes_rows_were(
    made: Made, told: dict[str, set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object, on_node: Callable[[str], None], **how: object) -> None:
        on_node("n1")
        raise ClusterError("a task of the join was lost")

    monkeypatch.setattr(dataset, "join", lost)
    pipeline = made({})
    with pytest.raises(ClusterError, match="was lost"):
        pipeline.build(pipeline.ingest())
    assert told[JOINED] == {"n1"}
