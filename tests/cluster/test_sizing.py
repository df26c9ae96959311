"""Replicas have the size of the cheapest machine that was measured to be fast enough, with the reasons."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mlops_ray import config
from mlops_ray.cluster import costs, sizing
from mlops_ray.cluster.sizing import Machines, Sized
from mlops_ray.errors import ConfigError
from mlops_ray.serving import deploy, replica
from mlops_ray.storage import Storage
from tests.cost.cases import measured
from tests.serving import packages

NAME = packages.NAME
BOTH = Machines(frozenset({"small", "big"}), room=lambda *_: 99)
PRICES = """\
currency: EUR
source: a test
date: 2026-11-01
machines:
  - {type: small, vcpu: 2, per_hour: 0.1}
  - {type: big, vcpu: 8, per_hour: 0.3}
  - {type: big, vcpu: 8, per_hour: 0.1, spot: true}
"""


def size(
    folder: Path,
    load: Any = 50,
    resources: Any = None,
    known: bool = True,
    here: Machines = BOTH,
    spot: bool = False,
) -> Sized:
    """A project with prices, of which `big` does four times as much with a replica of four CPUs."""
    (folder / "prices.yaml").write_text(PRICES)
    serving = {"replicas": {"min": 1, "max": 8}} | ({"resources": resources} if resources else {})
    cost = {"prices": "prices.yaml", "max_age": "36500d", "load": load, "spot": spot}
    (folder / "project.yaml").write_text(
        yaml.safe_dump(packages.PROJECT | {"serving": serving, "cost": cost})
    )
    project = config.load(folder / "project.yaml", {})
    storage = Storage.open(project.storage)
    if known:
        for machine, rate, cpu in (("small", 50, 1.0), ("big", 200, 4.0)):
            found = measured(machine, rate, model=NAME, cpu=cpu, max_rows=64).to_json()
            storage.write_json(found, costs.CAPACITY, NAME, f"{machine}.json")
    return sizing.sized(project, storage, lambda: here)


@pytest.mark.parametrize(("load", "machine", "cpu"), [(50, "small", 1.0), (280, "big", 4.0)])
def test_the_cheapest_machine_that_was_measured_gives_the_size(
    tmp_path: Path, load: float, machine: str, cpu: float
) -> None:
    """280 requests a second are eight small replicas, on four nodes of 0.1 EUR; or two big ones, on one."""
    found = size(tmp_path, load)
    resources = found.project.serving.resources
    assert (resources.machine, resources.cpu, resources.gpu) == (machine, cpu, 0.0)
    assert found.project.serving.batching.max_rows == 64
    assert found.plan is not None
    assert f"{machine} is the cheapest" in found.plan["said"][0]


def test_of_what_is_not_here_no_replica_has_the_size(tmp_path: Path) -> None:
    """Of a size for `big` none would ever start on a cluster of small machines."""
    found = size(tmp_path, load=240, here=Machines(frozenset(), "small"))
    assert found.project.serving.resources.cpu == 1.0
    assert found.plan is not None
    assert found.plan["options"][found.plan["chosen"]]["machine"] == "small"
    assert found.notes == [
        "big is the cheapest, of which there is none here: replicas are of a size for small"
    ]
    nowhere = size(tmp_path, load=240, here=Machines(frozenset({"other"})))
    (note,) = nowhere.notes
    assert nowhere.project.serving.resources.machine == "auto"
    assert "big is the cheapest, of which there is none here" in note


@pytest.mark.parametrize("resources", [{"cpu": 0.5}, {"machine": "auto", "cpu": 2}])
def test_who_says_how_large_a_replica_is_gets_that(tmp_path: Path, resources: dict[str, Any]) -> None:
    found = size(tmp_path, resources=resources)
    assert found.project.serving.resources.cpu == resources.get("cpu", 1)
    assert (found.plan, found.notes) == (None, [])


def test_what_was_never_measured_has_one_cpu_and_says_so(tmp_path: Path) -> None:
    found = size(tmp_path, known=False)
    assert found.project.serving.resources.cpu == 1
    (note,) = found.notes
    assert note.startswith("1 CPU a replica (serving.resources.machine: auto): Nothing that was measured")


def test_who_asks_for_it_in_so_many_words_is_told_what_is_missing(tmp_path: Path) -> None:
    found = size(tmp_path, load=None, resources={"machine": "auto"})
    (note,) = found.notes
    assert "no load is declared" in note
    assert size(tmp_path, load=None).notes == []


def test_replicas_run_where_they_were_planned_as_many_as_were_and_find_room(tmp_path: Path) -> None:
    """280 requests a second are two replicas on `big`: 280 of 200 · 0.7 each."""
    serving = size(tmp_path, load=280).project.serving
    assert serving.resources.labels == {"machine": "big", "ray.io/market-type": "!spot"}
    assert serving.replicas.initial == 2
    tight = Machines(frozenset({"big"}), room=lambda cpu, gpu, labels: int(labels["machine"] == "big"))
    assert size(tmp_path, load=280, here=tight).project.serving.replicas.initial == 1
    # Where no node says its type, the project does, and any node is one.
    assert size(tmp_path, load=280, here=Machines(frozenset(), "big")).project.serving.resources.labels == {}


def test_where_spot_machines_were_planned_with_replicas_may_be_on_them(tmp_path: Path) -> None:
    found = size(tmp_path, load=280, spot=True)
    assert found.project.serving.resources.labels == {"machine": "big"}


def test_of_a_type_that_is_named_replicas_have_its_size_and_its_nodes(tmp_path: Path) -> None:
    """`small` would be cheaper for 50 requests a second."""
    found = size(tmp_path, resources={"machine": "big"})
    resources = found.project.serving.resources
    assert (resources.machine, resources.cpu, resources.labels["machine"]) == ("big", 4.0, "big")
    assert found.notes == ["small is the cheapest, and another is named: replicas are of a size for big"]
    own = size(tmp_path, resources={"machine": "big", "cpu": 0.5}).project.serving.resources
    assert (own.cpu, own.labels["machine"]) == (0.5, "big")


def test_what_the_project_says_of_labels_counts_before_what_is_planned(tmp_path: Path) -> None:
    resources = {"labels": {"pool": "cpu", "ray.io/market-type": "spot"}}
    found = size(tmp_path, load=280, resources=resources).project.serving.resources
    assert found.labels == {"machine": "big", "pool": "cpu", "ray.io/market-type": "spot"}


def test_of_a_type_that_is_named_and_not_there_nothing_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"machine of type 'huge' here, and none may come: there are big"):
        size(tmp_path, resources={"machine": "huge"}, here=Machines(frozenset({"big"})))
    with pytest.raises(ConfigError, match=r"label `machine`, nor the project by cost.machine"):
        size(tmp_path, resources={"machine": "huge"}, here=Machines(frozenset(), ""))


def test_ray_is_told_where_replicas_are_to_run_and_with_how_many_they_begin(tmp_path: Path) -> None:
    found = size(tmp_path, load=280).project
    storage = Storage.open(found.storage)
    regions = {"region": "in(eu-de)"}
    bound = replica.deployment(found, storage, regions, frozenset())._bound_deployment
    asked = bound.ray_actor_options
    assert asked["label_selector"] == regions | {"machine": "big", "ray.io/market-type": "!spot"}
    assert asked["num_cpus"] == 4.0
    assert bound._deployment_config.autoscaling_config.initial_replicas == 2


def test_another_number_of_replicas_to_begin_with_starts_none_anew_and_another_place_does(
    tmp_path: Path,
) -> None:
    def digest(**serving: Any) -> str:
        of = packages.project(tmp_path, serving=serving)
        return deploy.applications(of, Storage.open(of.storage), {}, {}, None)[of.project].digest

    assert digest(replicas={"initial": 2}) == digest(replicas={"initial": 3})
    assert digest(resources={"labels": {"pool": "cpu"}}) != digest()
