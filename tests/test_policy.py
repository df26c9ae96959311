"""Where rows may be, by this machine, stores and the nodes of a cluster; and what of them people see."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlops_ray import placement
from mlops_ray.cluster import evidence, looper
from mlops_ray.config import Policy, Project, Source
from mlops_ray.errors import ClusterError, ConfigError, PolicyError
from mlops_ray.policy import machine_only, require_stores, withheld
from mlops_ray.schema import WITHHELD
from mlops_ray.serving import deploy, record
from mlops_ray.storage import Storage

SOURCE = {"path": "a.csv", "time": "none", "columns": {"x": {"type": "float"}, "y": {"type": "float"}}}
HEAD = {placement.HEAD: 1.0}


def project(**more: Any) -> Project:
    document = {
        "project": "m",
        "sources": {"s": SOURCE | {"policy": {"allowed_regions": ["eu-de", "eu-fr"]}}},
        "features": {"row": {"columns": ["x"]}},
        "target": {"source": "s", "expr": "y", "horizon": "0s", "task": "regression"},
    }
    return Project.model_validate(document | more)


STORES: dict[str, dict[str, Any]] = {
    "tracking": {"tracking": "http://mlflow:5000"},
    "online": {"online": "redis://host:6379/0"},
    "storage": {},
}


@pytest.mark.parametrize("name", STORES)
def test_of_a_store_elsewhere_the_project_says_the_region_and_rows_go_to_those_allowed_only(
    name: str,
) -> None:
    shared = name == "storage"
    with pytest.raises(ConfigError, match=rf"regions: .*nobody says where .* e\.g\. {{{name}: eu-de}}"):
        require_stores(project(**STORES[name]), is_shared=shared)
    require_stores(project(**STORES[name], regions={name: "eu-fr"}), is_shared=shared)
    with pytest.raises(PolicyError, match=rf"the store {name} stands in us-east \(regions\.{name}\)"):
        require_stores(project(**STORES[name], regions={name: "us-east"}), is_shared=shared)
    # Rows that may be anywhere may be in any store.
    require_stores(project(**STORES[name], sources={"s": SOURCE}), is_shared=shared)


def test_what_lies_on_this_machine_stands_where_it_does() -> None:
    require_stores(project())


# ---------------------------------------------------------------- nodes


def node(id: str, region: str | None, **resources: float) -> placement.Node:
    labels = {"region": region} if region else {}
    return {"NodeID": id, "Alive": True, "Labels": labels, "NodeManagerAddress": id, "Resources": resources}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> list[placement.Node]:
    """The nodes that Ray tells of; `a`, the head, is this process'."""
    nodes = [node("a", "eu-de", CPU=2.0, **HEAD), node("b", "us-east", CPU=8.0), node("c", None, GPU=1.0)]
    monkeypatch.setattr(placement.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(placement, "here", lambda: "a")
    monkeypatch.setattr(placement, "comes", lambda *_: False)
    return nodes


def bound(*regions: str) -> list[Policy]:
    return [Policy(allowed_regions=regions), Policy()]


def test_head_and_driver_stand_where_rows_may_be(
    cluster: list[placement.Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    placement.require(bound("eu-de"))
    placement.require([Policy()])
    with pytest.raises(
        PolicyError, match="us-east only, and the head of the cluster is the node a, in eu-de"
    ):
        placement.require(bound("us-east"))
    monkeypatch.setattr(placement, "here", lambda: "c")
    with pytest.raises(
        PolicyError, match="eu-de only, and what starts it is the node c, in no region: it has"
    ):
        placement.require(bound("eu-de"))
    with pytest.raises(
        PolicyError, match=r"no node of the cluster has the label region in \(eu-fr\), and rows"
    ):
        placement.require(bound("eu-fr"))


def test_what_no_node_that_may_is_large_enough_for_is_refused_at_once(cluster: list[placement.Node]) -> None:
    selector = {"region": "in(eu-de)"}
    placement.require_room(selector, {"CPU": 2.0})
    with pytest.raises(ClusterError, match="no node of the cluster has 64 CPU: start one, or ask for less"):
        placement.require_room({}, {"CPU": 64.0})
    for request, said in (({"CPU": 3.0}, " and 3 CPU"), ({"CPU": 1.0, "GPU": 1.0}, ", 1 CPU and 1 GPU")):
        with pytest.raises(PolicyError, match=rf"has the label region in \(eu-de\){said}, and rows may"):
            placement.require_room(selector, request)
    cluster[0]["Alive"] = False
    with pytest.raises(PolicyError, match=r"region in \(eu-de\)"):
        placement.require_room(selector, {"CPU": 1.0})


@pytest.mark.parametrize("comes", [True, False])
def test_where_no_node_is_there_the_autoscaler_is_asked_for_one(
    comes: bool, cluster: list[placement.Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what may come nobody but it knows the labels."""
    asked: list[Any] = []
    monkeypatch.setattr(placement, "comes", lambda *what: asked.append(what) or comes)
    selector, request = {"region": "in(eu-fr)"}, {"CPU": 4.0}
    if comes:
        placement.require_room(selector, request)
    else:
        with pytest.raises(PolicyError, match=r"region in \(eu-fr\) and 4 CPU"):
            placement.require_room(selector, request)
    assert asked == [(request, selector)]


def test_of_a_cluster_that_does_not_tell_the_status_says_so() -> None:
    (found,) = evidence.places(["m"], {"m": ["eu-de"]}, "http://127.0.0.1:9", None).values()
    assert (found["allowed"], found["nodes"]) == (["eu-de"], None)
    assert found["said"] == "not known: the cluster's dashboard does not tell (URLError)"


def test_a_front_end_that_may_not_pass_rows_on_is_found_and_only_for_who_is_bound(
    cluster: list[placement.Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "nodes", lambda: [(deploy.FRONT, "a"), (deploy.FRONT, "b"), ("other", "b")])
    # Who may be anywhere is served again, and moves.
    deploy._require_fronts({})
    with pytest.raises(PolicyError, match="front end on the node b would pass requests on"):
        deploy._require_fronts({"region": "in(eu-de)"})


def test_a_model_keeps_to_the_regions_of_all_that_are_served_beside_it(
    cluster: list[placement.Node], tmp_path: Path
) -> None:
    storage = Storage.open(str(tmp_path))
    free = project(project="n", sources={"s": SOURCE})
    assert deploy.where(free, storage) == {}
    storage.write_json({"cluster": "a", "regions": {"m": ["eu-de"]}}, deploy.DEPLOYED)
    assert deploy.where(free, storage) == {"region": "in(eu-de)"}
    assert deploy.where(project(project="k"), storage) == {"region": "in(eu-de)"}


def test_all_that_serves_and_looks_after_a_model_is_asked_for_where_its_rows_may_be(
    cluster: list[placement.Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: dict[str, Any] = {}
    monkeypatch.setattr(deploy, "serve", SimpleNamespace(start=lambda **_: None))
    for ready in ("require_ours", "claim", "_wait_until_ready"):
        monkeypatch.setattr(deploy, ready, lambda *_: None)
    monkeypatch.setattr(deploy, "_running", set)
    monkeypatch.setattr(deploy, "nodes", list)
    monkeypatch.setattr(placement, "require_room", lambda *_: None)
    monkeypatch.setattr(deploy, "_run", started.update)
    monkeypatch.setattr(record, "names", lambda _: ["m"])
    of, storage = project(), Storage.open(str(tmp_path))
    storage.write_json({"cluster": "a", "regions": {"n": ["eu-fr"]}}, deploy.DEPLOYED)
    deploy.deploy(of, storage, http_port=0, beside={looper.APPLICATION: looper.deployment})
    assert started.keys() == {"reconciler", "monitor", "gateway", "loop", "m"}
    for name, application in started.items():
        asked = application.build()._bound_deployment.ray_actor_options
        assert asked["label_selector"] == {"region": "in(eu-fr)"}, name


def test_a_service_that_runs_keeps_its_replicas_and_does_not_begin_anew() -> None:
    asked = project(serving={"replicas": {"initial": 4}})
    assert deploy.begun(asked).serving.replicas.initial is None
    assert deploy.begun(asked).serving.replicas.max == asked.serving.replicas.max


# ---------------------------------------------------------------- what people may see


def seen(**more: Any) -> Source:
    """A source of names that nobody may see, and of what is made of them."""
    document = {
        "path": [{"path": "a.csv"}, {"path": "b.csv", "derive": {"sign": "UPPER(nick)"}}],
        "event_time": {"column": "time", "timezone": "UTC"},
        "columns": {name: {"type": "string"} for name in ("time", "name", "nick", "sign", "zip", "town")},
        "derive": {"nick": "LEFT(name, 2)"},
        "policy": {"machine_only": ["name"], "curated": {"rows": 5, "mask": {"zip": "hide"}}},
    }
    return Source.model_validate(document | more)


def test_what_is_derived_from_what_nobody_may_see_is_hidden_too_also_where_one_file_derives_it() -> None:
    assert seen().machine_only == {"name", "nick", "sign"}
    assert seen().hidden == {"name", "nick", "sign", "zip"}
    document = {"sources": {"s": seen().model_dump(mode="json", exclude_unset=True), "t": SOURCE}}
    target = {"source": "t", "expr": "y", "horizon": "0s", "task": "regression"}
    assert machine_only(project(**document, target=target, features={"row": {"columns": ["x"]}})) == {
        "name", "nick", "sign",
    }  # fmt: skip


def test_of_a_row_that_nobody_asked_for_people_see_what_no_policy_keeps_from_them() -> None:
    row = {"time": "2020", "name": "Ann", "nick": "An", "zip": "1234", "town": "Ulm"}
    assert withheld(row, seen()) == dict.fromkeys(row, WITHHELD) | {"time": "2020"}
    assert withheld(row, seen(policy={"machine_only": ["name"]})) == row | {"name": "…", "nick": "…"}
    assert withheld(row, seen(policy={"machine_only": ["time"]})) == row | {"time": "…"}
    assert withheld(row, seen(policy={})) == row
