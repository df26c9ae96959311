"""Replicas have the size of the cheapest machine that was measured to be fast enough, with the reasons."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mlops_ray import config
from mlops_ray.cluster import costs, sizing
from mlops_ray.cluster.sizing import Sized
from mlops_ray.storage import Storage
from tests.cost.cases import measured
from tests.serving import packages

NAME = packages.NAME
PRICES = """\
currency: EUR
source: a test
date: 2026-11-01
machines:
  - {type: small, vcpu: 2, per_hour: 0.1}
  - {type: big, vcpu: 8, per_hour: 0.3}
"""


def size(
    folder: Path, load: Any = 50, resources: Any = None, known: bool = True, here: set[str] | None = None
) -> Sized:
    """A project with prices, of which `big` does four times as much with a replica of four CPUs."""
    (folder / "prices.yaml").write_text(PRICES)
    serving = {"replicas": {"min": 1, "max": 8}} | ({"resources": resources} if resources else {})
    cost = {"prices": "prices.yaml", "max_age": "36500d", "load": load}
    (folder / "project.yaml").write_text(
        yaml.safe_dump(packages.PROJECT | {"serving": serving, "cost": cost})
    )
    project = config.load(folder / "project.yaml", {})
    storage = Storage.open(project.storage)
    if known:
        for machine, rate, cpu in (("small", 50, 1.0), ("big", 200, 4.0)):
            found = measured(machine, rate, model=NAME, cpu=cpu, max_rows=64).to_json()
            storage.write_json(found, costs.CAPACITY, NAME, f"{machine}.json")
    return sizing.sized(project, storage, None if here is None else lambda: here)


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
    found = size(tmp_path, load=240, here={"small"})
    assert found.project.serving.resources.cpu == 1.0
    assert found.plan is not None
    assert found.plan["options"][found.plan["chosen"]]["machine"] == "small"
    assert found.notes == [
        "big is the cheapest, of which there is none here: replicas are of a size for small"
    ]
    nowhere = size(tmp_path, load=240, here={"other"})
    (note,) = nowhere.notes
    assert nowhere.project.serving.resources.machine == "auto"
    assert "big is the cheapest, of which there is none here" in note


@pytest.mark.parametrize("resources", [{"cpu": 0.5}, {"machine": "auto", "cpu": 2}, {"machine": "big"}])
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
