"""A version that earns less than the champion is refused with the sentence that says why."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mlops_ray import config
from mlops_ray.cluster import costs, profitable
from mlops_ray.config import Project
from mlops_ray.serving import record
from mlops_ray.storage import Storage
from tests.cost.cases import measured
from tests.serving import packages

NAME = packages.NAME
#: A machine that holds four replicas of one CPU, or one of four, at 0.4 EUR an hour; 50 requests a second.
PRICES = """\
currency: EUR
source: a test
date: 2026-11-01
machines:
  - {type: small, vcpu: 1, per_hour: 0.1}
  - {type: big, vcpu: 4, per_hour: 0.4}
"""
#: An answer brings 0.001 EUR, which is what an error of 1, as the champion's are, takes from it.
WORTH = {
    "value_per_prediction": {"amount": 0.001, "currency": "EUR"},
    "value": {"per_unit_of_error": {"amount": 0.001, "currency": "EUR"}},
}
#: Predictions a day.
ASKED = 50 * 86_400


class World:
    """A project whose champion is version 1, measured on one CPU of `small`."""

    def __init__(self, folder: Path) -> None:
        (folder / "prices.yaml").write_text(PRICES)
        self.folder = folder
        self.project = self.said()
        self.storage = Storage.open(self.project.storage)
        packed = packages.write(self.storage.path("packages", "one"), self.project, 2.0)
        packages.crown(self.storage, NAME, 1, packed)
        self.measure("1", "small", 1.0)

    def said(self, gate: str = "refuse", **cost: Any) -> Project:
        more: dict[str, Any] = {"release": {"profit_gate": gate}}
        more["serving"] = {"replicas": {"min": 1, "max": 4}}
        # One replica bears all that comes.
        more["cost"] = {"prices": "prices.yaml", "max_age": "36500d", "load": 50, "safety": 1} | WORTH | cost
        (self.folder / "project.yaml").write_text(yaml.safe_dump(packages.PROJECT | more))
        return config.load(self.folder / "project.yaml", {})

    def measure(self, version: str, machine: str, cpu: float) -> None:
        found = measured(machine, model=NAME, version=version, cpu=cpu).to_json()
        self.storage.write_json(found, costs.CAPACITY, NAME, f"{version}.json")

    def train(self, better: float, noise: float = 0.0) -> None:
        """Version 2, whose answers to 400 rows of the test are so much nearer on average, give or take."""
        random = np.random.default_rng(7)
        labels = np.zeros(400)
        theirs = np.full(400, 1.0)
        ours = theirs - better + noise * random.normal(size=400)
        found = profitable.compared(self.project, labels, ours, theirs, np.arange(400), (None, None))
        assert found is not None
        profitable.keep(self.storage, NAME, 2, 1, found)

    def judge(self, **cost: Any) -> tuple[bool, str]:
        said = profitable.judge(self.said(**cost), self.storage, 2)
        told = self.storage.read_json(record.VERDICTS, NAME, "2.json")
        assert (told["said"], told["against"]) == (said, "1")
        return told["refused"], said


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_version_better_by_a_hair_on_four_times_the_machine_is_refused(world: World) -> None:
    # 0.0005 · 0.001 EUR · 4,320,000 a day are 2.16 EUR; the machine costs 7.2 EUR more.
    world.train(0.0005)
    world.measure("2", "big", 4.0)
    assert world.judge() == (
        True,
        "version 2 earns 5.04 EUR a day less than version 1: its answers are worth 2.16 EUR more, "
        "and it costs 7.2 EUR more",
    )


def test_a_version_that_earns_more_is_let_through(world: World) -> None:
    world.train(0.002)
    world.measure("2", "big", 4.0)
    refused, said = world.judge()
    assert not refused
    assert said.startswith("version 2 earns 1.44 EUR a day more than version 1")


def test_a_version_that_was_not_measured_is_taken_to_cost_what_the_champion_does(world: World) -> None:
    world.train(0.0005)
    assert world.judge()[0] is False
    world.train(-0.1)
    assert world.judge()[0] is True


def test_what_is_better_by_chance_alone_is_not_let_through(world: World) -> None:
    """The bound counts: better on average, and unsure by a hundred times as much."""
    world.train(0.01, noise=1.0)
    refused, said = world.judge()
    assert refused
    assert "with 95% confidence it earns at least" in said


@pytest.mark.parametrize(
    ("cost", "says"),
    [
        ({"prices": None}, "no prices are named"),
        ({"load": None}, "no load is declared"),
    ],
)
def test_what_is_not_known_is_refused_in_a_sentence(world: World, cost: dict[str, Any], says: str) -> None:
    world.train(0.01)
    refused, said = world.judge(**cost)
    assert refused
    assert said.startswith("its profit is not known: ")
    assert says in said


def test_a_version_that_was_compared_with_another_champion_is_not_known(world: World) -> None:
    assert "was not compared with version 1" in world.judge()[1]
    world.train(0.01)
    worth = world.storage.read_json(profitable.WORTHS, NAME, "2.json")
    world.storage.write_json(worth | {"against": "7"}, profitable.WORTHS, NAME, "2.json")
    assert "was not compared with version 1" in world.judge()[1]


def test_without_any_measure_nothing_is_known(world: World) -> None:
    world.train(0.01)
    (world.storage.root / costs.CAPACITY / NAME / "1.json").unlink()
    refused, said = world.judge()
    assert refused
    assert "what version 2 costs is not known" in said


def test_who_asks_for_no_profit_works_none_out(world: World) -> None:
    assert profitable.judge(world.said("off"), world.storage, 2) == ""
    assert profitable.said(world.storage, NAME, 2) == ""


def test_where_nothing_says_what_an_answer_is_worth_nothing_is_compared(world: World) -> None:
    project = world.said(value=None, value_per_prediction=None)
    few = np.zeros(2)
    assert profitable.compared(project, few, few, few, np.arange(2), (None, None)) is None
    # Nor where the champion answered none of the rows.
    nothing = np.full(2, np.nan)
    assert profitable.compared(world.project, few, few, nothing, np.arange(2), (None, None)) is None
