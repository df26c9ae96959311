"""What runs is written down minute by minute, and comes to the bill, whoever dies."""

import datetime as dt
import itertools
import json
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_ray.cluster import loads, loop, meter, training
from mlops_ray.cluster.loop import Decision
from mlops_ray.cluster.meter import LONGEST_S, Meter, Node, Replica
from mlops_ray.cluster.pipeline import Pipeline
from mlops_ray.cluster.stages import Stages
from mlops_ray.cluster.works import JOBS, MOST_NAMES, Work
from mlops_ray.cost import actual, prices
from mlops_ray.cost.holds import HOLDS
from mlops_ray.data import prediction_log
from mlops_ray.data.prediction_log import COUNTERS, COUNTS, Entry, Shape
from mlops_ray.errors import ClusterError, ConfigError
from mlops_ray.instants import DAY_S
from mlops_ray.serving.autoscaling import Policy
from mlops_ray.storage import Storage
from tests import receivers
from tests.cluster.test_loop import NOW, SETTINGS, TWICE, seen
from tests.cost.cases import listed, machine
from tests.monitoring import test_alerting
from tests.serving import packages
from tests.serving.test_autoscaling import TARGET_S, asked, rate_for

NAME = packages.NAME
OLD = "1 of 1 prices are older than 90d, or of the future; that of small is of 2026-11-01"
#: A midnight, and what the one node costs an hour.
MIDNIGHT, PER_HOUR = 20_000 * DAY_S, 0.6


@dataclass
class Running:
    """A node of two CPUs with a replica that holds one."""

    on: Sequence[Node] = (Node("a", {}, 2.0, 0.0, 1.0, 0.0),)
    held: Sequence[Replica] = (Replica("a", NAME, 1.0, 0.0),)
    done: Sequence[Work] = ()

    def nodes(self) -> Sequence[Node]:
        return self.on

    def replicas(self) -> Sequence[Replica]:
        return self.held

    def works(self) -> Sequence[Work]:
        return self.done


@dataclass
class World:
    storage: Storage
    now: float = MIDNIGHT + 3600
    running: Running = field(default_factory=Running)

    def __post_init__(self) -> None:
        self.settle()
        self.start()

    def settle(
        self,
        serving: Any = packages.PROJECT["serving"],
        per_hour: float = PER_HOUR,
        currency: str = "EUR",
        **more: Any,
    ) -> None:
        """The project is deployed, with more said of its costs."""
        file = self.storage.path("prices.yaml")
        file.write_text(prices.text([machine("small", per_hour=per_hour, currency=currency)]))
        cost = {"machine": "small", "prices": str(file)} | more
        project = packages.project(self.storage, cost=cost, serving=serving)
        assert meter.settle(project, self.storage)

    def start(self) -> None:
        """Another process takes over."""
        self.meter = Meter(self.storage, self.running, lambda: self.now)

    def tick(self, minutes: int = 0) -> None:
        """A look, and one after each of so many minutes."""
        self.meter.tick()
        for _ in range(minutes):
            self.now += 60
            self.meter.tick()

    def answered(self, rows: int, replica: str = "one", copied: int = 0) -> None:
        """So many rows in all, by a replica, shadow copies among them."""
        path = self.storage.path(prediction_log.FOLDER, NAME, COUNTERS, replica)
        path.write_bytes(COUNTS.pack(rows, rows, 0, copied))

    @property
    def cost(self) -> dict[str, Any]:
        return dict(self.storage.read_json(meter.FOLDER, f"{NAME}.json"))

    @property
    def hold(self) -> dict[str, Any]:
        return dict(self.storage.read_json(HOLDS, f"{NAME}.json"))

    @property
    def held(self) -> str:
        return meter.held(self.storage, NAME, self.now)

    def journal(self) -> list[dict[str, Any]]:
        return list(meter.entries(self.storage))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(Storage.open(str(tmp_path)))


def test_each_minute_is_a_line_and_the_replicas_bear_the_whole_bill(world: World) -> None:
    world.tick(60)
    assert [line["seconds"] for line in world.journal()] == [60.0] * 60
    assert world.journal()[0]["nodes"] == [
        {
            "type": "small",
            "spot": False,
            "cpus": 2.0,
            "gpus": 0.0,
            "replicas": {NAME: {"count": 1, "cpu": 1.0, "gpu": 0.0}},
            "jobs": {},
        }
    ]
    # Half of the node is nobody's, and is paid too.
    assert world.cost["total"] == {"amount": pytest.approx(PER_HOUR), "currency": "EUR"}
    assert world.cost["parts"] == [{"name": "small", "amount": pytest.approx(PER_HOUR)}]
    assert world.cost["prices"] == ["test, 2026-11-01"]
    assert world.cost["per_1000"] is None


DAMAGED = (b"{", b"[]", b"null", b'{"at": 1, "days": [[1]]}', b'{"at": "x", "days": []}')


@pytest.mark.parametrize("damaged", DAMAGED)
def test_a_damaged_document_is_made_anew_from_the_journal(world: World, damaged: bytes) -> None:
    world.tick(60)
    world.start()
    world.storage.path(meter.FOLDER, f"{NAME}.json").write_bytes(damaged)
    world.tick(1)
    assert world.cost["total"]["amount"] == pytest.approx(PER_HOUR * 61 / 60)


@pytest.mark.parametrize(
    "damaged", [b"5", b'{"at": 1}', b'{"at": 1e300, "seconds": 60, "nodes": []}', b'{"nodes": [{}]}', b"[]"]
)
def test_a_damaged_line_of_the_journal_is_not_counted_and_others_are(world: World, damaged: bytes) -> None:
    world.tick(30)
    with meter.journal_of(world.storage, world.now).open("ab") as lines:
        lines.write(damaged + b"\n")
    world.tick(30)
    assert world.cost["total"]["amount"] == pytest.approx(PER_HOUR)
    world.start()
    world.tick(1)
    assert world.cost["total"]["amount"] == pytest.approx(PER_HOUR * 61 / 60)


def test_another_models_damaged_settings_or_costs_keep_no_model_from_being_metered(world: World) -> None:
    world.storage.path(meter.SETTINGS, "a.json").write_text("{")
    world.storage.path(meter.FOLDER, "a.json").write_text("{")
    world.tick(60)
    assert world.cost["total"]["amount"] == pytest.approx(PER_HOUR)


def test_a_machine_without_a_price_is_told(world: World) -> None:
    world.running.on = (Node("a", {"machine": "smal"}, 2.0, 0.0, 1.0, 0.0),)
    world.tick(2)
    assert world.cost["total"]["amount"] == 0.0
    (note,) = world.cost["notes"]
    assert note == "smal has no price, or several: what runs on it counts as nothing, for the budget too"


def test_a_day_is_read_once_and_then_what_was_added_to_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = list[int]()
    real = meter.journal
    monkeypatch.setattr(
        meter, "journal", lambda path, begin=0: iter(read.append(len(got := list(real(path, begin)))) or got)
    )
    world.tick(60)
    assert read == [1] * 60
    world.start()
    world.tick(1)
    assert read[60:] == [61]


def test_looks_in_between_write_nothing(world: World) -> None:
    for _ in range(100):
        world.meter.tick()
        world.now += 1
    assert [line["seconds"] for line in world.journal()] == [60.0]


def test_a_thousand_predictions_cost_what_was_spent_for_them_idle_included(world: World) -> None:
    world.answered(500)
    world.tick()
    # Of two replicas, one of which has died; what was answered before is of another time.
    world.answered(1_500)
    world.answered(2_000, "two")
    world.tick(60)
    assert world.cost["answered"] == 3_000
    told = {"amount": pytest.approx(PER_HOUR / 3), "currency": "EUR", "since": MIDNIGHT}
    assert world.cost["per_1000"] == told


def test_shadow_copies_are_no_predictions_as_in_the_bill(world: World) -> None:
    world.tick()
    log = prediction_log.PredictionLog(world.storage, NAME, "one")
    for route, rows in ((prediction_log.CHAMPION, 3), (prediction_log.SHADOW, 2)):
        log.add(Shape("1", route), Entry("a", None, 0, rows, 1, 1, 1))  # type: ignore[arg-type]
    world.answered(40, "two", copied=10)
    # One that was written before copies were told apart.
    old = world.storage.path(prediction_log.FOLDER, NAME, COUNTERS, "old")
    old.write_bytes(struct.pack("<qqq", 100, 100, 0))
    world.tick(1)
    assert world.cost["answered"] == 3 + 30 + 100
    assert world.cost["counted"]["answered"] == 133
    assert prediction_log.lost(world.storage, NAME) == 0


def test_what_prometheus_is_told_never_falls_also_where_prices_do(world: World) -> None:
    world.tick(30)
    world.settle(per_hour=PER_HOUR / 10)
    world.tick(1)
    assert world.cost["total"]["amount"] == pytest.approx(31 * PER_HOUR / 600)
    assert world.cost["counted"] == {"amount": pytest.approx(PER_HOUR / 2), "currency": "EUR", "answered": 0}
    world.settle(per_hour=PER_HOUR, currency="USD")
    world.tick(1)
    assert world.cost["counted"] == {
        "amount": pytest.approx(32 * PER_HOUR / 60),
        "currency": "USD",
        "answered": 0,
    }


def test_days_of_another_currency_are_counted_anew_and_those_without_a_journal_are_gone(world: World) -> None:
    world.now = MIDNIGHT - DAY_S - 120
    world.tick(2)
    world.now = MIDNIGHT - 120
    world.tick(2)
    (world.storage.root / meter.FOLDER / "2024-10-02.jsonl").unlink()
    world.settle(per_hour=2 * PER_HOUR, currency="USD")
    world.now = MIDNIGHT + 60
    world.tick(1)
    # The line of an hour ago, and those of today; of the day before nobody knows what it is in dollars.
    assert [day[0] for day in world.cost["days"]] == [MIDNIGHT - DAY_S, MIDNIGHT]
    lines = sum(line["seconds"] for line in world.journal()) / 60
    total = {"amount": pytest.approx(lines * 2 * PER_HOUR / 60), "currency": "USD"}
    assert world.cost["total"] == total
    world.tick(1)
    assert world.cost["total"]["amount"] == pytest.approx((lines + 1) * 2 * PER_HOUR / 60)


def test_who_takes_over_goes_on_and_what_nobody_saw_is_not_counted(world: World) -> None:
    world.tick(30)
    world.now += 3600
    world.start()
    world.tick(30)
    assert world.cost["total"]["amount"] == pytest.approx(PER_HOUR)
    # One that was only held up has seen that the same runs, but not for hours.
    world.now += 3600
    world.meter.tick()
    assert world.journal()[-1]["seconds"] == LONGEST_S


def test_a_clock_that_is_set_back_counts_nothing_twice(world: World) -> None:
    world.tick(30)
    world.now -= 600
    world.tick(1)
    assert len(world.journal()) == 31


def test_days_stay_when_their_journals_are_gone(world: World) -> None:
    world.now = MIDNIGHT - 120
    world.tick(4)
    days = world.cost["days"]
    assert [day[0] for day in days] == [MIDNIGHT - DAY_S, MIDNIGHT]
    # A line is of the day on which it ends.
    assert [day[1] for day in days] == pytest.approx([PER_HOUR / 60, 3 * PER_HOUR / 60])
    (world.storage.root / meter.FOLDER / "2024-10-03.jsonl").unlink()
    world.tick(1)
    assert [day[1] for day in world.cost["days"]] == pytest.approx([PER_HOUR / 60, 4 * PER_HOUR / 60])
    assert world.cost["total"]["amount"] == pytest.approx(5 * PER_HOUR / 60)


def test_a_line_that_was_begun_and_not_ended_is_none_and_spoils_no_other(world: World) -> None:
    world.tick(2)
    (path,) = (world.storage.root / meter.FOLDER).glob("*.jsonl")
    with path.open("ab") as file:
        file.write(b'{"at": 1, "seco')
    world.tick(2)
    assert len(world.journal()) == 4
    assert world.cost["total"]["amount"] == pytest.approx(4 * PER_HOUR / 60)


def test_a_node_says_what_it_is_and_jobs_bear_their_share(world: World) -> None:
    labels = {meter.MACHINE: "big", meter.MARKET: meter.SPOT}
    world.running.on = [Node("a", {}, 2.0, 0.0, 0.0, 0.0), Node("b", labels, 8.0, 1.0, 2.0, 0.0)]
    world.running.held = [*Running.held, Replica("b", NAME, 2.0, 0.5), Replica("b", NAME, 1.0, 0.5)]
    world.tick(1)
    (line,) = world.journal()
    small, big = line["nodes"]
    assert small["jobs"] == {JOBS: {"count": 1, "cpu": 1.0, "gpu": 0.0}}
    assert (big["type"], big["spot"]) == ("big", True)
    assert big["replicas"] == {NAME: {"count": 2, "cpu": 1.5, "gpu": 0.5}}
    assert big["jobs"] == {JOBS: {"count": 1, "cpu": 3.0, "gpu": 0.0}}
    # Half of the small node; the big one has no price.
    assert world.cost["total"]["amount"] == pytest.approx(PER_HOUR / 60 / 2)


def budget(amount: float) -> dict[str, Any]:
    return {"per_day": {"amount": amount, "currency": "EUR"}, "then": "hold"}


def test_replicas_that_are_measured_are_a_job_and_count_against_the_budget(world: World) -> None:
    world.settle(budget=budget(0.0))
    world.running.on = [Node("a", {}, 2.0, 0.0, 0.0, 0.0)]
    world.running.held = [*Running.held, Replica("a", f"{NAME}{loads.SUFFIX}", 1.0, 0.0)]
    world.tick(1)
    ((_, cost, _, _, jobs, named),) = world.cost["days"]
    assert named == {f"{NAME}{loads.SUFFIX}": jobs}
    assert (cost, jobs) == (pytest.approx(PER_HOUR / 120), pytest.approx(PER_HOUR / 120))
    assert world.cost["budget"]["spent"] == pytest.approx(PER_HOUR / 60)
    assert [*world.journal()[0]["nodes"][0]["jobs"]] == [f"{NAME}.loadtest"]
    # One that has no prices is a model all the same, and no job of those that do.
    world.running.held = [*Running.held, Replica("a", "other", 1.0, 0.0)]
    world.tick(1)
    assert world.cost["budget"]["jobs"] == pytest.approx(PER_HOUR / 120)


def test_figures_say_nothing_of_prices_by_which_nothing_was_counted(world: World) -> None:
    old = machine("small", per_hour=0.01, region="else", date=dt.date(2020, 1, 1))
    here = machine("small", per_hour=PER_HOUR, region="here")
    world.storage.path("prices.yaml").write_text(prices.text([old, here]))
    cost = {"machine": "small", "prices": str(world.storage.path("prices.yaml")), "region": "here"}
    meter.settle(packages.project(world.storage, cost=cost), world.storage)
    world.tick(1)
    assert (world.cost["prices"], world.cost["oldest"]) == (["test, 2026-11-01"], "2026-11-01")


def test_figures_say_of_when_their_prices_are_and_that_they_are_old(world: World) -> None:
    # Two days after the prices were read, and half a year.
    for days, told in ((760, []), (180, [OLD])):
        world.now += days * DAY_S
        world.start()
        world.tick(1)
        assert (world.cost["oldest"], world.cost["notes"]) == ("2026-11-01", told)
    world.settle(max_age="365d")
    world.tick(1)
    assert world.cost["notes"] == []


def test_autoscaling_reads_what_the_meter_was_told_that_replicas_cost_and_predictions_are_worth(
    world: World,
) -> None:
    """A replica of one of the two CPUs costs half the machine; of no type, nothing is known."""
    policy = Policy(str(world.storage.root), NAME, 1000 * TARGET_S, 1)
    assert policy._money() is None
    value = {"amount": 0.002, "currency": "EUR"}
    world.settle(serving={"resources": {"cpu": 1}}, value_per_prediction=value)
    assert policy._money() == (pytest.approx(PER_HOUR / 2), 0.002)
    world.settle(machine="unknown", value_per_prediction=value)
    assert policy._money() is None


FIT, OTHER = f"training {NAME}", "job fit.py"
#: A node of four CPUs, all held: by a replica one, and three beside it.
FULL = Node("a", {}, 4.0, 0.0, 0.0, 0.0)


def test_jobs_are_told_apart_by_hand(world: World) -> None:
    """0.60 EUR an hour for 4 CPUs: a replica has one, a training 1.5, a job a half, and one is not known."""
    world.running.on = [FULL]
    world.running.done = [Work("a", FIT, 1.0, 0.0), Work("a", OTHER, 0.5, 0.0), Work("a", FIT, 0.5, 0.0)]
    world.settle(budget=budget(0.0))
    world.tick(60)
    assert world.journal()[0]["nodes"][0]["jobs"] == {
        OTHER: {"count": 1, "cpu": 0.5, "gpu": 0.0},
        FIT: {"count": 1, "cpu": 1.5, "gpu": 0.0},
        JOBS: {"count": 1, "cpu": 1.0, "gpu": 0.0},
    }
    told = [(each["name"], round(each["amount"], 9)) for each in world.cost["jobs"]]
    assert told == [(FIT, 0.225), (OTHER, 0.075), ("other jobs", 0.15)]
    assert world.cost["total"]["amount"] == pytest.approx(0.15)
    assert world.cost["budget"]["spent"] == pytest.approx(0.6)
    # It was written when the budget was spent first, after a minute.
    names = f"{FIT}: 0.00375 EUR, {OTHER}: 0.00125 EUR"
    assert world.held.endswith(f", of which 0.0075 EUR were trainings and other jobs ({names})")


def test_a_training_of_another_model_is_its_own_and_spends_no_budget_but_its_own(world: World) -> None:
    world.running.on = [FULL]
    world.running.done = [Work("a", "training other", 3.0, 0.0)]
    world.running.held = [*Running.held, Replica("a", "other.loadtest", 1.0, 0.0)]
    world.settle(budget=budget(1.0))
    world.tick(60)
    assert world.cost["jobs"] == []
    assert world.cost["budget"]["spent"] == world.cost["total"]["amount"] == pytest.approx(PER_HOUR / 4)


def test_where_ray_does_not_say_who_runs_what_runs_is_counted_all_the_same(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.running.on = [FULL]
    world.running.works = None  # type: ignore[method-assign, assignment]
    world.tick(60)
    assert [(each["name"], round(each["amount"], 9)) for each in world.cost["jobs"]] == [("other jobs", 0.45)]
    assert caplog.text.count("jobs are metered without their names") == 1


def test_many_jobs_have_few_names_and_cost_as_much(world: World) -> None:
    world.running.on = [FULL._replace(cpus=1001.0)]
    for minute in range(10):
        world.running.done = [Work("a", f"job {minute}-{at}", 10.0, 0.0) for at in range(100)]
        world.tick(1)
    assert {len(line["nodes"][0]["jobs"]) for line in world.journal()} == {MOST_NAMES + 1}
    ((*_, jobs, named),) = world.cost["days"]
    assert len(named) == meter.MOST_NAMED + 1
    assert jobs == sum(named.values()) == pytest.approx(PER_HOUR / 6 * 1000 / 1001)


def test_what_was_written_before_jobs_had_names_is_read(world: World) -> None:
    world.running.on = [FULL]
    world.now = MIDNIGHT - 120
    world.tick(2)
    old = world.cost
    old["days"] = [day[:-1] for day in old["days"]]
    del old["jobs"]
    world.storage.write_json(old, meter.FOLDER, f"{NAME}.json")
    world.start()
    world.tick(2)
    assert [day[4:] for day in world.cost["days"]] == [
        [pytest.approx(0.75 * PER_HOUR / 60), {}],
        [pytest.approx(2.25 * PER_HOUR / 60), {JOBS: pytest.approx(2.25 * PER_HOUR / 60)}],
    ]
    assert world.cost["total"]["amount"] == pytest.approx(PER_HOUR / 4 * 4 / 60)


def test_of_days_long_ago_jobs_have_no_names_any_more(world: World) -> None:
    world.running.on = [FULL]
    for _ in range(4):
        world.tick(1)
        world.now += DAY_S
    assert [[*named] for *_, named in world.cost["days"]] == [[], [], [JOBS], [JOBS]]


Held = list[tuple[str, float]]


HELD = st.lists(st.tuples(st.sampled_from("xyz"), st.floats(0, 2)))


@given(st.lists(st.tuples(st.floats(0.25, 8), HELD, HELD), min_size=1))
def test_whatever_runs_the_shares_are_the_hours_of_the_nodes(running: list[tuple[float, Held, Held]]) -> None:
    nodes = [Node(str(at), {}, cpus, 0.0, cpus / 3, 0.0) for at, (cpus, *_) in enumerate(running)]
    replicas = [Replica(str(at), name, cpu, 0.0) for at, (_, on, _) in enumerate(running) for name, cpu in on]
    works = [Work(str(at), name, cpu, 0.0) for at, (*_, done) in enumerate(running) for name, cpu in done]
    line = json.loads(json.dumps(meter.entry(3600.0, 3600.0, nodes, replicas, "small", {}, works)))
    for node in line["nodes"]:
        # Beside replicas as much is held as is not free.
        by_replicas = sum(each["count"] * each["cpu"] for each in node["replicas"].values())
        beside = max(0.0, node["cpus"] * 2 / 3 - by_replicas)
        assert sum(each["cpu"] for each in node["jobs"].values()) == pytest.approx(beside, abs=0.01)
    shares = actual.metered([line], listed(machine("small", per_hour=PER_HOUR)))
    assert sum(share.node_hours for share in shares) == pytest.approx(len(nodes))
    assert sum(share.cost or 0 for share in shares) == pytest.approx(len(nodes) * PER_HOUR)


def test_a_budget_that_is_spent_holds_replicas_and_training_until_the_next_day(world: World) -> None:
    world.settle(budget=budget(PER_HOUR))
    world.running.held = [*Running.held, *Running.held]
    world.tick(59)
    assert world.held == ""
    world.tick(1)
    why = "0.6 EUR of 0.6 EUR that cost.budget allows were spent on this day (UTC)"
    until = MIDNIGHT + DAY_S
    assert world.hold == {"most_replicas": 2, "until": until, "per_day": PER_HOUR, "why": why}
    spent = {"per_day": PER_HOUR, "spent": pytest.approx(PER_HOUR), "jobs": 0.0, "named": {}}
    assert world.cost["budget"] == spent | {"holds": True}
    # Fewer may run later, and come back.
    world.running.held = Running.held
    world.tick(5)
    assert world.hold["most_replicas"] == 2
    assert world.held == why
    world.now = MIDNIGHT + DAY_S + 60
    world.tick(1)
    assert world.held == ""


def test_a_budget_that_only_warns_holds_nothing_and_jobs_count(world: World) -> None:
    world.settle(budget={"per_day": {"amount": PER_HOUR / 60, "currency": "EUR"}})
    world.running.on = [Node("a", {}, 2.0, 0.0, 0.0, 0.0)]
    world.tick(2)
    assert world.cost["total"]["amount"] == pytest.approx(PER_HOUR / 60)
    assert world.cost["budget"] == {
        "per_day": PER_HOUR / 60,
        "spent": pytest.approx(2 * PER_HOUR / 60),
        "jobs": pytest.approx(PER_HOUR / 60),
        "named": {},
        "holds": False,
    }
    assert world.held == ""


@pytest.mark.parametrize("then", ["no budget", "a higher one", "no prices"])
def test_a_hold_ends_where_the_project_file_says_so(world: World, then: str) -> None:
    world.settle(budget=budget(0.0))
    world.tick(1)
    assert world.held
    assert world.cost["budget"] == {
        "per_day": 0.0,
        "spent": pytest.approx(PER_HOUR / 60),
        "jobs": 0.0,
        "named": {},
        "holds": True,
    }
    if then == "no prices":
        # Nothing is metered any more.
        assert not meter.settle(packages.project(world.storage), world.storage)
    else:
        world.settle(**({"budget": budget(1.0)} if then == "a higher one" else {}))
        world.tick(1)
    assert not world.held


def test_a_hold_is_over_at_midnight_also_where_nobody_ends_it_and_damaged_it_is_none(world: World) -> None:
    world.settle(budget=budget(0.0))
    world.tick(1)
    world.now = MIDNIGHT + DAY_S - 1
    assert world.held
    world.now += 1
    assert not world.held
    # On the next day too the budget is spent: it is held until another midnight.
    world.start()
    world.tick(1)
    assert world.held
    assert world.hold["until"] == MIDNIGHT + 2 * DAY_S
    for damaged in (b"{", b"[]", b'{"until": "never", "why": "all"}', b'{"why": "all"}'):
        world.storage.path(HOLDS, f"{NAME}.json").write_bytes(damaged)
        assert not world.held
        world.tick(1)
        assert world.held


def test_a_budget_that_was_changed_and_is_spent_again_is_told_as_it_is(world: World) -> None:
    world.settle(budget=budget(0.0))
    world.tick(1)
    assert "of 0 EUR" in world.held
    world.settle(budget=budget(0.01))
    world.tick(1)
    assert "of 0.01 EUR" in world.held


def test_who_trains_though_the_budget_is_spent_is_told_and_not_held(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain: Any = SimpleNamespace(to_json=dict, digest="", season_us=None, test_from=None, outcome=None)
    plain.outcome = plain
    monkeypatch.setattr(training, "task", lambda *of: plain)
    ours: Any = SimpleNamespace(project=packages.project(world.storage), features=plain, test_from=None)
    ours.storage, ours.stages = world.storage, Stages(world.storage)
    ours._stage, ours._held = str, partial(Pipeline._held, ours)
    ours._missed, ours._quarantined, ours._is_registered = lambda _: [], list, lambda _: True
    ours._trained = lambda *of: {"version": 1, "family": "mean", "leaderboard": [], "notes": []}

    def notes(data: str) -> list[str]:
        """What is told of a version that is trained of this."""
        plain.digest = data
        return list(Pipeline.train(ours, plain)["notes"])

    monkeypatch.setattr(time, "time", lambda: world.now)
    assert notes("monday") == []
    world.settle(budget=budget(0.0))
    world.tick(1)
    (note,) = notes("tuesday")
    assert note.startswith(f"{world.held}; this training is not held for that")
    # Nothing has changed since, and nothing is trained.
    assert notes("tuesday") == []


def test_a_hold_says_what_of_the_budget_jobs_have_spent(world: World) -> None:
    world.settle(budget=budget(0.0))
    world.running.on = [Node("a", {}, 2.0, 0.0, 0.0, 0.0)]
    world.tick(1)
    said = "0.01 EUR of 0 EUR that cost.budget allows were spent on this day (UTC)"
    assert world.held == f"{said}, of which 0.005 EUR were trainings and other jobs"


def test_a_clock_that_was_a_day_ahead_does_not_hide_what_is_spent_today(world: World) -> None:
    world.settle(budget=budget(PER_HOUR / 60))
    world.tick(2)
    world.now += DAY_S
    world.tick(1)
    world.now -= DAY_S
    world.tick(1)
    assert world.cost["budget"]["spent"] == pytest.approx(3 * PER_HOUR / 60)
    assert world.cost["parts"] == [{"name": "small", "amount": pytest.approx(3 * PER_HOUR / 60)}]
    assert world.held


def test_a_budget_of_another_currency_than_the_prices_is_refused(world: World) -> None:
    with pytest.raises(
        ConfigError, match="are in EUR, and what else is said of money in JPY: say both in one"
    ):
        world.settle(budget={"per_day": {"amount": 0.61, "currency": "JPY"}, "then": "hold"})


def test_a_look_that_falls_into_a_redeployment_takes_no_replica_away_for_the_day(world: World) -> None:
    """Five run, but for the minute in which the budget was spent; of ten minutes before there were eight."""
    world.settle(budget=budget(PER_HOUR / 60 * 14.5))
    for count, minutes in ((8, 2), (5, 12)):
        world.running.held = [Replica("a", NAME, 0.2, 0.0)] * count
        world.tick(minutes)
    assert not world.held
    # Another process looks on.
    world.start()
    world.running.held, world.running.on = [], [*world.running.on, Node("b", {}, 8.0, 0.0, 0.0, 0.0)]
    world.tick(1)
    assert world.hold["most_replicas"] == 5


def test_where_no_replica_runs_a_hold_lets_the_first_caller_be_answered(world: World) -> None:
    world.settle(serving={"replicas": {"min": 0, "max": 4}}, budget=budget(0.0))
    world.running.held = []
    world.running.on = [Node("a", {}, 2.0, 0.0, 1.0, 0.0)]
    world.tick(1)
    assert world.hold["most_replicas"] == 1


def test_the_day_s_budget_reached_holds_scaling_and_training_and_the_alert_says_so_until_the_next_day(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.settle(budget=budget(PER_HOUR))
    policy, looks = Policy(str(world.storage.root), NAME, 1000 * TARGET_S, 1), itertools.count(0.0, 100.0)

    def replicas() -> int:
        """What is wanted for a load that nine bear, after a while."""
        return list(asked(policy, rate_for(9), 100, running=1, begin=next(looks)))[-1]

    def decision() -> Decision:
        """What is done about a loss that two looks have seen."""
        held = loop.see(world.storage, NAME, world.now).held
        return loop.decide(seen(*TWICE, held=held), [], SETTINGS, NOW)

    with receivers.web() as web:
        telling = test_alerting.World(world.storage, now=world.now)
        telling.deploy(NAME, {"webhook": web.url})
        world.tick(47)
        telling.now = world.now
        telling.tick(60)
        assert (replicas(), decision().what, web.got) == (9, "retrain", [])
        world.tick(13)
        telling.now = world.now
        telling.tick(60)
        why = "0.6 EUR of 0.6 EUR that cost.budget allows were spent on this day (UTC)"
        assert (replicas(), decision().what, decision().reason) == (1, "wait", why)
        world.tick(30)
        telling.now = world.now
        telling.tick(60)
        telling.die()
    assert [record.message for record in caplog.records if why in record.message] == [
        f"replicas of {NAME}: at most 1: {why}"
    ]
    (message,) = web.got
    assert "0.6 of 0.6 EUR that may be spent a day are spent; no replica is added, and nothing" in str(
        message
    )
    world.now = MIDNIGHT + DAY_S
    world.tick(1)
    assert (replicas(), decision().what) == (9, "retrain")


@pytest.mark.parametrize("raised", [ClusterError("gone"), pl.exceptions.PanicException("gone")])
def test_what_cannot_be_asked_is_told_once_and_asked_again(
    world: World, caplog: pytest.LogCaptureFixture, raised: BaseException
) -> None:
    def fails() -> Any:
        raise raised

    world.tick(1)
    nodes, world.running.nodes = world.running.nodes, fails  # type: ignore[method-assign]
    world.answered(30)
    world.tick(2)
    assert caplog.text.count("what runs is not metered") == 1
    world.running.nodes = nodes  # type: ignore[method-assign]
    world.tick()
    # What nobody could say for some minutes is counted when somebody can.
    assert [line["seconds"] for line in world.journal()] == [60.0, 120.0]
    assert [line["answered"][NAME] for line in world.journal()] == [0, 30]


def test_of_a_gap_only_so_many_rows_count_as_have_their_cost(world: World) -> None:
    world.tick(1)
    world.answered(100_000)
    world.now += 3600
    world.meter.tick()
    (_, line) = world.journal()
    assert (line["seconds"], line["answered"][NAME]) == (LONGEST_S, 100_000 * LONGEST_S / 3600)


def test_without_prices_nothing_is_metered(world: World) -> None:
    assert not meter.settle(packages.project(world.storage), world.storage)
    world.tick(3)
    assert world.journal() == []
