"""A version that earns less than the champion is refused with the sentence that says why."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from mlops_ray import cli, config
from mlops_ray.cluster import costs, front, loads, looper, profitable, service
from mlops_ray.cluster.pipeline import Pipeline
from mlops_ray.cluster.sizing import Machines
from mlops_ray.cluster.stages import Silent, Stages
from mlops_ray.config import Project
from mlops_ray.errors import ReleaseError
from mlops_ray.serving import record
from mlops_ray.serving.heartbeats import Following
from mlops_ray.serving.reconcile import Reconciler
from mlops_ray.storage import Storage
from tests.cost.cases import measured
from tests.serving import packages
from tests.serving.test_reconciler import AtOnce, Registry, Trusting

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
        "and it costs 7.2 EUR more (no training is counted: that of 2 and 1 has no known cost in EUR)",
    )


def test_a_version_that_earns_more_is_let_through(world: World) -> None:
    world.train(0.002)
    world.measure("2", "big", 4.0)
    refused, said = world.judge()
    assert not refused
    assert said.startswith("version 2 earns 1.44 EUR a day more than version 1")


def test_what_an_error_costs_is_what_the_project_says_as_the_version_is_pushed(world: World) -> None:
    """A tenth of what it cost when the version was trained: 0.864 EUR a day more, for 7.2."""
    world.train(0.002)
    world.measure("2", "big", 4.0)
    little = {"per_unit_of_error": {"amount": 0.0001, "currency": "EUR"}}
    refused, said = world.judge(value=little, profit_margin=0)
    assert refused
    assert said.startswith(
        "version 2 earns 6.336 EUR a day less than version 1: its answers are worth 0.864 EUR"
    )
    # A champion that earns 3,885 EUR a day allows as much as a hundredth of that less.
    assert world.judge(value=little) == (False, said)
    assert "its answers are worth 0 EUR more" in world.judge(value=None)[1]
    refused, said = world.judge(value=None, value_per_prediction=None)
    assert refused
    assert said.startswith("its profit is not known: whether version 2 earns more than 1 is known where the")
    # The other way round a gain is let through.
    world.train(0.0002)
    assert world.judge()[0]
    assert not world.judge(value={"per_unit_of_error": {"amount": 0.01, "currency": "EUR"}})[0]


def test_money_of_two_currencies_is_never_added(world: World) -> None:
    """All is said in USD since: prices twice as high, and an error at one and a half of what it was."""
    world.train(0.002)
    world.measure("2", "big", 4.0)
    (world.folder / "prices.yaml").write_text(
        PRICES.replace("EUR", "USD").replace("0.1}", "0.2}").replace("0.4}", "0.8}")
    )
    amount = {"amount": 0.0015, "currency": "USD"}
    assert world.judge(value_per_prediction=amount, value={"per_unit_of_error": amount}) == (
        True,
        "version 2 earns 1.44 USD a day less than version 1: its answers are worth 12.96 USD more, "
        "and it costs 14.4 USD more (no training is counted: that of 2 and 1 has no known cost in USD)",
    )


def test_what_was_compared_by_the_worth_of_then_is_not_known_and_told_with_what_to_do(world: World) -> None:
    world.measure("2", "big", 4.0)
    before = {"against": "1", "currency": "EUR", "worth": 2.0, "theirs": 1.0, "difference": [1.0, 0.0, 399]}
    world.storage.write_json(before, profitable.WORTHS, NAME, "2.json")
    refused, said = world.judge()
    assert refused
    assert said.startswith("its profit is not known: version 2 was not compared with version 1")
    assert said.endswith("another training.search.seed has it trained again")
    (told,) = profitable.missed(world.project, world.storage, 2, has_cost=True)
    assert "its answers are not compared by worth with those of version 1" in told


def test_a_version_that_was_dear_to_train_is_refused_while_it_earns_less(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8.64 EUR a day more, for 360 EUR of training over 30 days where the champion's took 60."""
    trained = dict[tuple[str, int], Any]()
    monkeypatch.setattr(loads, "registry", lambda *_: SimpleNamespace(cost=lambda *key: trained.get(key)))
    world.train(0.002)
    trained[NAME, 2] = {"amount": 360.0, "currency": "EUR"}
    # What is not known of the champion is taken to be the same, as what was paid in another currency.
    for unknown in (None, {"amount": 60.0, "currency": "USD"}):
        trained[NAME, 1] = unknown
        refused, said = world.judge()
        assert not refused
        assert " (no training is counted: that of 1 has no known cost in EUR)" in said
    trained[NAME, 1] = {"amount": 60.0, "currency": "EUR"}
    assert world.judge() == (
        True,
        "version 2 earns 1.36 EUR a day less than version 1: its answers are worth 8.64 EUR more, "
        "and it costs 10 EUR more (version 2 was not measured by loadtest: it is taken to be as fast as 1)",
    )
    assert world.judge(training_life="90d")[0] is False


def test_a_version_that_was_not_measured_is_taken_to_cost_what_the_champion_does(world: World) -> None:
    world.train(0.0005)
    refused, said = world.judge()
    assert not refused
    assert "was not measured by loadtest: it is taken to be as fast as 1" in said
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


def test_what_was_trained_before_the_project_spoke_of_money_is_told_with_what_to_do(world: World) -> None:
    (said,) = profitable.missed(world.project, world.storage, 2, has_cost=False)
    lacks = (
        "what that took is not known, and counts as nothing; its answers are not compared by worth with those"
    )
    assert f": {lacks} of version 1. It is not trained again for that; another training.search.seed" in said
    (said,) = profitable.missed(world.project, world.storage, 2, has_cost=True)
    assert "not known" not in said
    # Its training has said already why it could not be compared.
    assert profitable.missed(world.project, world.storage, 2, has_cost=True, has_reason=True) == []
    # The champion is compared with nobody.
    assert profitable.missed(world.project, world.storage, 1, has_cost=True) == []
    world.train(better=0.5)
    assert profitable.missed(world.project, world.storage, 2, has_cost=True) == []


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


# ---------------------------------------------------------------- as a person asks


#: Better by a hair on four times the machine, and by more than that costs.
SAID = {
    0.0005: "version 2 earns 5.04 EUR a day less than version 1: its answers are worth 2.16 EUR more, and it",
    0.002: "version 2 earns 1.44 EUR a day more than version 1: its answers are worth 8.64 EUR more, and it",
}


@contextmanager
def reconciled(world: World) -> Iterator[None]:
    """Version 2 is registered; somebody looks for pushes, and a replica holds what it is asked to."""
    packed = packages.write(world.storage.path("packages", "two"), world.project, 2.0)
    record.settle(world.storage, NAME, record.Settings("", ""))
    registry, verifier, aside = Registry({2: packed}), Trusting(packages={"2": packed}), AtOnce()
    told: dict[str, Any] = dict.fromkeys(("_aside", "_telling", "_calling"), aside)
    reconciler = Reconciler(world.storage, lambda _: registry, verifier, **told)
    champion = record.read(world.storage, NAME)["champion"]
    replica, stop = Following(world.storage, NAME, "replica"), threading.Event()

    def work() -> None:
        while not stop.wait(0.01):
            replica.say(1_000, (record.key(champion), f"2 {packed.digest}"), {})
            reconciler.tick()

    reconciler.tick()
    working = threading.Thread(target=work)
    working.start()
    try:
        yield
    finally:
        stop.set()
        working.join()
        replica.close()


@pytest.mark.parametrize("flags", [(), ("--json",)])
@pytest.mark.parametrize("better", SAID)
def test_a_push_says_what_a_version_earns_and_is_refused_where_that_is_less(
    world: World, better: float, flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    world.train(better)
    world.measure("2", "big", 4.0)
    push = partial(cli.app, ["push", "2", str(world.folder / "project.yaml"), *flags], standalone_mode=False)
    with reconciled(world):
        if better == min(SAID):
            with pytest.raises(ReleaseError, match=f"version 2 is refused: {SAID[better]}"):
                push()
        else:
            push()
    state = "refused" if better == min(SAID) else "champion"
    shown = capsys.readouterr().out
    if flags:
        found = json.loads(shown)
        assert (found["state"], found["profit"].startswith(SAID[better])) == (state, True)
    else:
        assert f"profit: {SAID[better]}" in shown
        assert f"version 2 is {state} after" in shown
    live = "1" if state == "refused" else "2"
    assert record.read(world.storage, NAME)["champion"]["version"] == live


@pytest.mark.parametrize("better", SAID)
def test_a_run_says_what_the_version_that_it_has_trained_earns(
    world: World, better: float, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.train(better)
    world.measure("2", "big", 4.0)
    for name in ("require_token", "apply"):
        monkeypatch.setattr(front, name, lambda *of: [])
    monkeypatch.setattr(service, "predict", lambda *of: {"outputs": [{"data": [1.0]}]})
    monkeypatch.setattr(looper, "machines", lambda project: Machines(frozenset(), "small"))
    pipeline: Any = SimpleNamespace(project=world.said(), storage=world.storage, progress=Silent())
    pipeline.stages, pipeline.push = Stages(world.storage), partial(Pipeline.push, pipeline)
    pipeline.prepare = pipeline.ingest = lambda: None
    pipeline.build, pipeline.train = lambda _: None, lambda _: {"version": 2, "refused": []}
    pipeline.serve, pipeline.example_request = lambda *of: "http://127.0.0.1:1", lambda: {"load": 1.0}
    cluster: Any = SimpleNamespace(host="127.0.0.1", http_port=1, grpc_port=2, marker="ours")
    with reconciled(world):
        live = service._bring_up(pipeline, cluster, True, train=True)
    assert live.to_json()["profit"].startswith(SAID[better])
    assert live.version == (1 if better == min(SAID) else 2)
    assert any(SAID[better] in note for note in live.notes) == (better == min(SAID))
    cli._print_live(replace(live, trained=None, plan=None))
    assert f"profit: {SAID[better]}" in capsys.readouterr().out
