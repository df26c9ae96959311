"""What is pushed is live or safely back, whoever dies; and registry and hooks hear of every turn."""

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from mlops_ray import audit
from mlops_ray.cluster import releases
from mlops_ray.cluster.stages import Silent
from mlops_ray.config import Project
from mlops_ray.data import labels, prediction_log
from mlops_ray.errors import NotFoundError, PackageError, StorageError
from mlops_ray.monitoring import outcomes
from mlops_ray.monitoring.losses import Losses
from mlops_ray.monitoring.sides import ERRORS, OUTPUT, SLOW, Side, bucket
from mlops_ray.registry.package import Package
from mlops_ray.schema import Column, Schema
from mlops_ray.serving import heartbeats, reconcile, reconciler, record, release
from mlops_ray.serving.heartbeats import Following
from mlops_ray.serving.reconcile import Reconciler
from mlops_ray.serving.record import Document, Settings
from mlops_ray.serving.verify import LOAD_S
from mlops_ray.storage import Storage
from tests import receivers
from tests.conftest import unrecordable
from tests.serving import packages

NAME = packages.NAME
STEPS = {"shadow": {"requests": 50, "max_wait": "10m"}, "canary": [10, 50], "per_step": "2m"}


@dataclass
class Registry:
    """MLflow's part: packages by version, their states, the champion, and all that it was told."""

    packages: dict[int, Package]
    champion: int | None = None
    states: dict[int, str] = field(default_factory=dict)
    is_away: bool = False

    def stored(self, storage: Storage, name: str, version: int, /) -> tuple[Path, str]:
        if version not in self.packages:
            raise NotFoundError(f"the registry has no version {version} of {name!r}")
        return self.packages[version].folder, self.packages[version].digest

    def set_champion(self, name: str, version: int, /) -> None:
        self.set_state(name, version, "champion")
        self.champion = version

    def set_state(self, name: str, version: int, state: str, reason: str = "", /) -> None:
        if self.is_away:
            raise StorageError("MLflow does not answer")
        if version not in self.packages:
            raise NotFoundError("no such version")
        self.states[version] = state


@dataclass
class Trusting:
    """Verifies a version in no time."""

    refuses: dict[str, str] = field(default_factory=dict)
    packages: dict[str, Package] = field(default_factory=dict)
    unexplained: set[str] = field(default_factory=set)

    def verify(
        self, storage: Storage, model: str, version: str, package: Path, digest: str, settings: Settings
    ) -> dict[str, Any]:
        if version in self.refuses:
            raise PackageError(self.refuses[version])
        entry = record.entry(storage, version, self.packages[version])
        return entry | {"explains": version not in self.unexplained}

    def close(self) -> None: ...


class AtOnce:
    """An executor that has done everything before it is asked for it."""

    def submit(self, do: Any, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(do(*args))
        except Exception as error:  # noqa: BLE001 - handed on, as an executor does
            future.set_exception(error)
        return future

    def shutdown(self, **how: Any) -> None: ...


@dataclass
class World:
    """A storage with two versions of a model, a clock, and a reconciler that may be started anew."""

    storage: Storage
    project: Project
    registry: Registry
    verifier: Trusting
    now: float = 1_000_000.0
    reconciler: Reconciler = field(init=False)
    replicas: dict[str, Following] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        aside: Any = AtOnce()
        self.reconciler = Reconciler(
            self.storage,
            lambda _: self.registry,
            self.verifier,
            lambda: self.now,
            _aside=aside,
            _telling=aside,
            _calling=aside,
        )

    def push(self, version: int, **how: Any) -> None:
        record.ask(self.storage, NAME, "push", version, by="ci", release=how)

    def tick(self, times: int = 1, seconds: float = 2.0) -> Document:
        for _ in range(times):
            self.reconciler.tick()
            self.now += seconds
        return self.document

    @property
    def document(self) -> Document:
        return record.read(self.storage, NAME)

    @property
    def told(self) -> list[tuple[str, str]]:
        return [(turn["version"], turn["state"]) for turn in self.document["history"]]

    def holds(self, *keys: str, **more: Any) -> Path:
        """A replica says what it has in memory, in this file."""
        id = more.pop("id", "replica")
        self.replicas.setdefault(id, Following(self.storage, NAME, id))
        self.replicas[id].say(more.get("turn", 1_000), keys, more.get("errors", {}))
        return self.storage.path(heartbeats.FOLDER, NAME, f"{id}.json")

    def count(self, champion: dict[str, float], challenger: dict[str, float], requests: int = 2_000) -> None:
        """The monitor has heard of so many requests of either side in the present turn."""
        turn, random = self.document["turn"], np.random.default_rng(5)
        sides = []
        for means in (champion, challenger):
            side = Side(str(turn))
            for number in range(requests):
                figures = {name: float(random.random() < means.get(name, 0.01)) for name in (ERRORS, SLOW)}
                side.add(bucket(f"key-{number}"), figures | {OUTPUT: random.normal(means.get(OUTPUT, 0.0))})
            sides.append(side.to_json())
        self.storage.write_json({"turn": turn, "sides": sides}, "monitor", f"{NAME}.json")

    def log(self, champion: float, challenger: float, requests: int = 2_000) -> None:
        """The log holds so many requests of either side in the present turn; all labels will be 0."""
        document, random = self.document, np.random.default_rng(5)
        turn, is_shadow = document["turn"], bool(document["shadow"])
        lost = random.exponential(1.0, requests)
        for version, mean, route in (("1", champion, "champion"), ("2", challenger, "challenger")):
            ids = [f"{turn}-{'' if is_shadow else version}-{number}" for number in range(requests)]
            rows = {"request_id": ids, "row": 0, "model_version": version, "turn": turn}
            rows |= {"route": "shadow" if is_shadow and version == "2" else route}
            rows |= {"key_bucket": np.arange(requests) % 1_024, "prediction": mean * lost}
            path = self.storage.path(
                prediction_log.FOLDER, NAME, "date=1970-01-12", f"{turn}-{version}.parquet"
            )
            pl.DataFrame(rows).cast({name: prediction_log.ABOUT[name] for name in rows}).write_parquet(path)

    def label(self) -> None:
        """What came true of all that was logged comes now."""
        ids = prediction_log.read(self.storage, NAME).select("request_id").unique().collect()
        found = labels.parse(ids.with_columns(label=pl.lit(0.0)), (), "regression")
        labels.write(self.storage, NAME, found)

    def to(self, state: str, step: int = 0) -> Document:
        """The challenger stands there, after steps in which both were counted alike."""
        for _ in range(200):
            challenger = self.tick()["challenger"]
            if challenger is None or (challenger["state"], challenger["step"]) == (state, step):
                return self.document
            self.count({}, {}, requests=200)
        raise AssertionError(f"{state} was not reached")

    def key(self, version: int) -> str:
        return f"{version} {self.registry.packages[version].digest}"


def made(storage: Storage, **package: Any) -> World:
    project = packages.project(storage.root)
    found = {
        v: packages.write(storage.path("artifacts", f"v{v}"), project, float(v), **package) for v in (1, 2, 3)
    }
    record.settle(storage, NAME, Settings("", ""))
    by_name = {str(version): package for version, package in found.items()}
    return World(storage, project, Registry(found), Trusting(packages=by_name))


@pytest.fixture
def world(storage: Storage) -> World:
    return made(storage)


@pytest.fixture
def live(world: World) -> World:
    """Version 1 is champion, and a replica holds everything that it is asked to."""
    return crowned(world)


def crowned(world: World) -> World:
    world.holds(*(world.key(version) for version in (1, 2, 3)))
    world.push(1)
    world.tick(6)
    return world


def test_the_first_version_goes_from_verified_to_champion_whatever_the_steps(world: World) -> None:
    world.push(1, **STEPS)
    assert world.tick(4)["challenger"]["state"] == "verified"
    world.holds(world.key(1))
    document = world.tick(6)
    assert world.told == [("1", "registered"), ("1", "verified"), ("1", "champion")]
    assert record.key(document["champion"]) == world.key(1)
    assert (world.registry.champion, world.registry.states) == (1, {1: "champion"})
    assert record.asked(world.storage, NAME) == []


def test_a_good_version_goes_all_its_steps_and_the_one_before_stays(live: World) -> None:
    live.push(2, **STEPS)
    weights = []
    for _ in range(40):
        document = live.tick(seconds=30.0)
        if document["challenger"] is None:
            break
        weights.append((document["weight"], document["shadow"]))
        live.count({}, {})
    assert sorted(set(weights)) == [(0.0, 0.0), (0.0, 100.0), (10.0, 0.0), (50.0, 0.0)]
    assert live.told[3:] == [
        ("2", "registered"), ("2", "verified"), ("2", "shadow"), ("2", "canary"), ("2", "canary"),
        ("1", "retired"), ("2", "champion"),
    ]  # fmt: skip
    assert (document["champion"]["version"], document["previous"]["version"]) == ("2", "1")
    live.tick(9)
    assert (live.registry.champion, live.registry.states) == (2, {1: "retired", 2: "champion"})


@pytest.mark.parametrize(
    ("worse", "said"),
    [
        ({ERRORS: 0.05}, "errors"),
        ({SLOW: 0.10}, "latency above the champion's p99"),
        ({OUTPUT: 1.0}, "answers: moved"),
    ],
)
def test_a_worse_one_goes_back_with_the_evidence_and_the_champion_is_untouched(
    live: World, worse: dict[str, float], said: str
) -> None:
    champion = live.document["champion"]
    live.push(2, canary=[10])
    live.tick(3)
    live.count({}, worse)
    document = live.tick(2)
    assert live.told[-1] == ("2", "rolled_back")
    assert said in document["history"][-1]["reason"]
    assert (document["champion"], document["challenger"], document["weight"]) == (champion, None, 0.0)
    live.tick(6)
    assert (live.registry.champion, live.registry.states[2]) == (1, "rolled_back")


#: Of absolute errors, 1 in the mean.
LOSSES = Losses("mae", (), (1.0,), (1.0,), (1.0,), ((1.0,),)).to_json()


@pytest.fixture
def measured(storage: Storage) -> World:
    """As `live`, and the packages say what they lose."""
    return crowned(made(storage, expected={"losses": LOSSES}))


@pytest.mark.parametrize(
    ("at", "later", "challenger"),
    [
        (("canary", 0), ("canary", 0), 1.5),
        (("canary", 0), ("canary", 1), 1.5),
        (("shadow", 0), ("shadow", 0), 1.1),
        (("shadow", 0), ("canary", 1), 1.1),
    ],
)
def test_a_version_whose_labels_say_that_it_is_worse_goes_back_however_late_they_come(
    measured: World, at: tuple[str, int], later: tuple[str, int], challenger: float
) -> None:
    measured.push(2, **STEPS)
    measured.to(*at)
    measured.log(1.0, challenger)
    assert measured.tick(4)["challenger"]["state"] == at[0]
    if later != at:
        measured.to(*later)
    measured.label()
    document = measured.tick(6)
    assert measured.told[-1] == ("2", "rolled_back")
    reason = document["history"][-1]["reason"]
    assert reason.startswith(f"loss: {challenger:.1f}"[:-1])
    assert "of the reference's against" in reason
    assert "2,000 labelled requests" in reason
    assert (document["champion"]["version"], document["challenger"]) == ("1", None)


def test_a_version_that_loses_no_more_goes_live_and_what_labels_say_is_told(measured: World) -> None:
    measured.push(2, **STEPS)
    for at in (("shadow", 0), ("canary", 0), ("canary", 1)):
        measured.to(*at)
        measured.log(1.0, 0.9)
        measured.label()
    measured.tick(6)
    seen = measured.storage.read_json(record.SEEN, f"{NAME}.json")
    assert seen["said"][-1].startswith("loss: 0.87 of the reference's against 0.97")
    assert "6,000 labelled requests" in seen["said"][-1]
    assert measured.to("champion")["champion"]["version"] == "2"


@pytest.mark.parametrize("known", [True, False])
def test_without_labels_or_a_known_loss_nothing_is_said_of_it(
    storage: Storage, known: bool, caplog: pytest.LogCaptureFixture
) -> None:
    world = crowned(made(storage, expected={"losses": LOSSES if known else None}))
    world.push(2, canary=[10])
    world.to("canary")
    world.log(1.0, 9.0)
    if not known:
        world.label()
    assert world.to("champion")["champion"]["version"] == "2"
    assert "loss" not in str(world.storage.read_json(record.SEEN, f"{NAME}.json"))
    assert caplog.records == []


def test_a_log_that_cannot_be_read_is_told_once_and_what_was_known_stays(
    measured: World, caplog: pytest.LogCaptureFixture
) -> None:
    measured.push(2, canary=[10, 50])
    measured.to("canary")
    measured.log(1.0, 0.5)
    measured.label()
    measured.tick(4)
    day = measured.storage.path(prediction_log.FOLDER, NAME, "date=1970-01-12", "x").parent
    (day / "broken.parquet").write_bytes(b"no log")
    assert measured.to("champion")["champion"]["version"] == "2"
    (told,) = [record for record in caplog.records if "labels" in record.getMessage()]
    assert "are not compared: ComputeError" in told.getMessage()
    assert "2,000 labelled requests" in str(measured.storage.read_json(record.SEEN, f"{NAME}.json"))


def test_a_log_that_makes_polars_panic_holds_no_release_up(
    measured: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its panics are no `Exception`."""

    def panics(*_: object) -> None:
        raise pl.exceptions.PanicException("index out of bounds")

    monkeypatch.setattr(outcomes, "read", panics)
    measured.push(2, canary=[10])
    measured.to("canary")
    assert measured.to("champion")["champion"]["version"] == "2"
    assert caplog.text.count("are not compared: PanicException") == 1


def test_nobody_waits_for_labels_that_are_being_read(measured: World) -> None:
    measured.push(2, canary=[10])
    measured.to("canary")
    asked: list[Future[Any]] = []

    class Never(AtOnce):
        def submit(self, do: Any, *args: Any) -> Future[Any]:
            asked.append(Future())
            return asked[-1]

    never: Any = Never()
    measured.reconciler._aside = never
    # What it was asked before, while the log was read at once, may be again.
    assert measured.to("champion")["champion"]["version"] == "2"
    assert len(asked) == 1


def test_what_nobody_asks_is_inconclusive(live: World) -> None:
    live.push(2, canary=[{"weight": 10, "max_wait": "5m"}])
    live.tick(10, seconds=60.0)
    assert live.told[-1] == ("2", "inconclusive")
    assert "0 of 100 requests" in live.document["history"][-1]["reason"]
    assert live.document["champion"]["version"] == "1"


@pytest.mark.parametrize(
    "reason", ["it does not answer its own examples", "the process that loaded it died of SIGSEGV"]
)
def test_what_is_not_verified_is_refused_with_the_reason(live: World, reason: str) -> None:
    live.verifier.refuses["2"] = reason
    live.push(2)
    live.tick(4)
    assert live.told[-1] == ("2", "refused")
    assert live.document["history"][-1]["reason"] == reason
    assert (live.registry.champion, live.registry.states[2]) == (1, "refused")


def test_a_version_that_is_not_there_is_refused(live: World) -> None:
    live.push(9)
    live.tick(4)
    assert live.told[-1] == ("9", "refused")
    assert "no version 9" in live.document["history"][-1]["reason"]
    assert live.document["told"] == live.document["turn"]


@pytest.mark.parametrize(
    ("explains", "unexplained", "state"),
    [(True, {"2"}, "refused"), (False, {"2"}, "champion"), (True, {"1", "2"}, "champion")],
)
def test_one_that_cannot_explain_is_refused_where_callers_may_ask_and_the_champion_can(
    world: World, explains: bool, unexplained: set[str], state: str
) -> None:
    record.settle(world.storage, NAME, Settings("", "", explains=explains))
    world.verifier.unexplained = unexplained
    crowned(world)
    world.push(2)
    last = world.tick(6)["history"][-1]
    assert (last["version"], last["state"]) == ("2", state)
    if state == "refused":
        assert last["reason"] == (
            "callers may ask why (serving.explain: on_request), which the family linear cannot tell"
        )


def test_one_that_asks_for_what_callers_do_not_send_is_refused(
    live: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wider(*asked: Any) -> dict[str, Any]:
        entry = Trusting.verify(live.verifier, *asked)
        request = Schema.from_json(entry["request"])
        return entry | {"request": Schema((*request.columns, Column("cost", "float"))).to_json()}

    monkeypatch.setattr(live.verifier, "verify", wider)
    live.push(2)
    live.tick(4)
    assert live.told[-1] == ("2", "refused")
    assert live.document["history"][-1]["reason"] == "callers do not send 'cost', which it asks for"


def test_no_replica_is_sent_anybody_before_all_of_them_hold_the_version(world: World) -> None:
    world.push(1)
    world.holds(world.key(1), world.key(2))
    world.holds(world.key(1), id="slow")
    world.tick(3)
    world.push(2)
    assert world.tick(5)["challenger"]["state"] == "verified"
    assert world.document["champion"]["version"] == "1"
    world.holds(world.key(1), world.key(2), id="slow")
    assert world.tick()["champion"]["version"] == "2"


def test_what_replicas_do_not_load_is_refused_at_once_or_after_a_while(world: World) -> None:
    world.push(1)
    world.holds(world.key(1))
    world.tick(3)
    world.holds(world.key(1), errors={world.key(2): "no memory"}, turn=5)
    world.push(2)
    world.tick(3)
    assert world.told[-1] == ("2", "refused")
    assert "a replica cannot load it: no memory" in world.document["history"][-1]["reason"]
    # It may fare better when it is pushed again.
    world.push(2)
    assert world.tick(3)["challenger"]["state"] == "verified"
    world.now += LOAD_S
    world.tick()
    assert world.told[-1] == ("2", "refused")
    assert "did not load it within 60 s" in world.document["history"][-1]["reason"]


def test_where_no_replica_lives_for_long_there_is_nothing_to_lose(world: World) -> None:
    world.push(1)
    assert world.tick(5)["challenger"]["state"] == "verified"
    world.now += LOAD_S
    assert world.tick()["champion"]["version"] == "1"


def test_a_version_that_replicas_die_of_goes_back(live: World) -> None:
    live.push(2, canary=[10])
    live.tick(3)
    assert live.told[-1] == ("2", "canary")
    for number, state in enumerate(("canary", "rolled_back")):
        os.utime(live.holds(live.key(1), live.key(2), id=f"died-{number}"), (0, 0))
        live.tick(2)
        assert live.told[-1] == ("2", state)
    assert "2 replicas died while they held it" in live.document["history"][-1]["reason"]
    assert [follower.id for follower in heartbeats.followers(live.storage, NAME)] == ["replica"]


def test_a_rollback_brings_the_version_before_back_and_says_who_asked(live: World) -> None:
    live.push(2)
    live.tick(3)
    record.ask(live.storage, NAME, "rollback", by="ann")
    document = live.tick()
    assert (document["champion"]["version"], document["previous"]) == ("1", None)
    assert live.told[-2:] == [("2", "rolled_back"), ("1", "champion")]
    assert document["history"][-2]["reason"] == "rolled back by ann"
    live.tick(6)
    assert (live.registry.champion, live.registry.states) == (1, {1: "champion", 2: "rolled_back"})
    asked = record.ask(live.storage, NAME, "rollback", by="ann")
    answer = live.tick()["answers"][asked.id]
    assert (answer["done"], answer["said"].split(":")[0]) == (False, "there is no version to go back to")


def test_a_rollback_of_a_challenger_leaves_the_champion(live: World) -> None:
    live.push(2, canary=[10])
    live.tick(3)
    record.ask(live.storage, NAME, "rollback", by="ann")
    document = live.tick()
    assert (document["champion"]["version"], document["challenger"]) == ("1", None)
    assert live.told[-1] == ("2", "rolled_back")


def test_a_person_ends_a_step_and_not_the_verification(live: World) -> None:
    live.verifier.packages.pop("2")
    early = record.ask(live.storage, NAME, "promote", 2, by="ann")
    assert live.tick()["answers"][early.id]["said"] == "version 2 is no challenger; push it first"
    live.verifier.packages["2"] = live.registry.packages[2]
    live.push(2, **STEPS)
    live.tick(1)
    early = record.ask(live.storage, NAME, "promote", 2, by="ann")
    assert "nobody can skip that" in live.tick()["answers"][early.id]["said"]
    live.tick(3)
    for state in ("canary", "canary", "champion"):
        record.ask(live.storage, NAME, "promote", 2, by="ann")
        live.tick()
        assert live.told[-1] == ("2", state)
    assert live.document["champion"]["reason"] == "canary ended by ann"


def test_a_newer_push_takes_the_place_of_a_challenger(live: World) -> None:
    live.push(2, canary=[10])
    live.tick(3)
    live.push(3)
    live.tick(4)
    assert ("2", "inconclusive") in live.told
    assert live.document["champion"]["version"] == "3"


def test_what_is_champion_or_on_its_way_is_not_pushed_twice(live: World) -> None:
    turn = live.document["turn"]
    live.push(1)
    assert live.tick(2)["turn"] == turn
    live.push(2, canary=[10])
    turn = live.tick(3)["turn"]
    live.push(2)
    assert live.tick(2)["turn"] == turn


def test_what_goes_live_already_is_not_pushed_by_other_steps(live: World) -> None:
    live.push(2, canary=[10])
    live.tick(3)
    asked = record.ask(live.storage, NAME, "push", 2, by="ci", release={"canary": [50]})
    answer = live.tick()["answers"][asked.id]
    assert (answer["done"], "by the steps that it was pushed with" in answer["said"]) == (False, True)
    assert live.document["weight"] == 10


def test_a_version_is_refused_whose_profit_is_too_low_or_not_known_where_the_project_asks_for_it(
    live: World,
) -> None:
    def verdict(against: str, refused: bool) -> None:
        told = {"refused": refused, "said": "version 2 earns less", "against": against}
        live.storage.write_json(told, record.VERDICTS, NAME, "2.json")

    def reason() -> str:
        live.push(2, profit_gate="refuse")
        live.tick(3)
        assert live.told[-1] == ("2", "refused")
        return str(live.document["history"][-1]["reason"])

    assert "beside version 1 is to be known" in reason()
    # Of another champion than the one that is live.
    verdict("7", False)
    assert "beside version 1 is to be known" in reason()
    verdict("1", True)
    assert reason() == "version 2 earns less"
    verdict("1", False)
    live.push(2, profit_gate="refuse")
    live.tick(6)
    assert live.told[-1] == ("2", "champion")
    # Who only reports asks for nothing.
    live.push(3, profit_gate="report")
    live.tick(6)
    assert live.told[-1] == ("3", "champion")


def test_the_death_of_a_replica_on_this_machine_is_known_at_once(live: World) -> None:
    live.holds(live.key(1), id="other")
    live.replicas["other"]._life.close()  # type: ignore[union-attr]
    assert {one.id: one.is_alive for one in heartbeats.followers(live.storage, NAME)} == {
        "other": False, "replica": True,
    }  # fmt: skip
    os.utime(live.storage.path(heartbeats.FOLDER, NAME, "other.json"), (0, 0))
    live.tick()
    assert [one.id for one in heartbeats.followers(live.storage, NAME)] == ["replica"]
    assert list(live.storage.path(heartbeats.FOLDER, NAME, "x").parent.glob(".other*")) == []


def test_who_dies_just_now_is_no_witness_yet(live: World) -> None:
    """A node that dies takes all with it, not at one moment; who reconciles is to outlive them."""
    live.push(2, canary=[10])
    live.tick(3)
    for number in range(3):
        live.holds(live.key(1), live.key(2), id=f"died-{number}")
        live.replicas[f"died-{number}"]._life.close()  # type: ignore[union-attr]
    live.tick(2)
    assert live.told[-1] == ("2", "canary")
    for number in range(3):
        path = live.storage.path(heartbeats.FOLDER, NAME, f"died-{number}.json")
        os.utime(path, (1, time.time() - reconcile.CERTAIN_S - 0.1))
    live.tick(2)
    assert live.told[-1] == ("2", "rolled_back")


def test_a_replica_that_has_ended_says_nothing_more(live: World) -> None:
    live.replicas["replica"].close()
    live.replicas["replica"].say(9, [live.key(2)], {})
    assert heartbeats.followers(live.storage, NAME) == []


def test_a_push_by_steps_that_are_none_is_refused(live: World) -> None:
    """Of another release of this software, for instance."""
    live.push(2, canary=[10], colour="blue")
    live.tick(3)
    assert live.told[-1] == ("2", "refused")
    assert "colour" in live.document["history"][-1]["reason"]


def test_the_lock_of_a_replica_elsewhere_tells_nothing(live: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(heartbeats, "_machine", lambda: "another")
        path = live.holds(live.key(1), id="other")
    live.replicas["other"]._life.close()  # type: ignore[union-attr]
    assert all(one.is_alive for one in heartbeats.followers(live.storage, NAME))
    os.utime(path, (0, 0))
    assert [one.is_alive for one in heartbeats.followers(live.storage, NAME)] == [False, True]


def test_a_registry_that_is_away_hinders_no_release_and_hears_of_it_later(live: World) -> None:
    live.registry.is_away = True
    live.push(2)
    assert live.tick(4)["champion"]["version"] == "2"
    assert live.registry.champion == 1
    live.registry.is_away = False
    document = live.tick(9, seconds=120.0)
    assert (live.registry.champion, live.registry.states[1]) == (2, "retired")
    assert document["told"] == document["turn"]


def turns(storage: Storage) -> list[dict[str, Any]]:
    """What the audit record has of them."""
    found = [each for each in audit.entries(storage) if each["what"] == reconcile.TURNED]
    assert {each["by"] for each in found} <= {reconcile.BY}
    return [each["about"] for each in found]


def test_every_turn_is_recorded_from_where_to_where_and_why(live: World) -> None:
    live.push(2)
    live.tick(9)
    record.ask(live.storage, NAME, "rollback", by="ann")
    live.tick(9)
    assert [(each["version"], each["before"], each["after"], each["reason"]) for each in turns(live.storage)][
        3:
    ] == [
        ("2", at(None, "1"), at("registered", "1"), "pushed by ci"),
        ("2", at("registered", "1"), at("verified", "1"), ""),
        ("1", at("champion", "1"), at("retired", "1"), "version 2 is champion"),
        ("2", at("verified", "1"), at("champion", "2"), ""),
        ("2", at("champion", "2"), at("rolled_back", "2"), "rolled back by ann"),
        ("1", at("retired", "2"), at("champion", "1"), "rolled back by ann"),
    ]
    assert [each["turned_at"] for each in turns(live.storage)] == [
        turn["at"] for turn in live.document["history"]
    ]
    assert {each["model"] for each in turns(live.storage)} == {NAME}


def at(state: str | None, champion: str) -> dict[str, str | None]:
    return {"state": state, "champion": champion}


def test_where_nothing_can_be_recorded_releases_go_on_and_it_hears_of_them_later(
    live: World, caplog: pytest.LogCaptureFixture
) -> None:
    live.tick(9)
    place = unrecordable(live.storage)
    live.push(2)
    assert live.tick(9)["champion"]["version"] == "2"
    record.ask(live.storage, NAME, "rollback", by="ann")
    assert live.tick()["champion"]["version"] == "1"
    assert len(turns(live.storage)) == 3
    # Which `status` tells, as it does all errors.
    assert ("ERROR", "the audit record") in {(each.levelname, each.message[:16]) for each in caplog.records}
    place.parent.mkdir()
    live.tick(20, seconds=120.0)
    recorded = [(each["version"], each["after"]["state"]) for each in turns(live.storage)]
    assert recorded == live.told


def test_a_registry_that_is_away_at_a_push_refuses_nobody(
    live: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> Any:
        raise StorageError("MLflow does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(live.registry, "stored", away)
        live.push(2)
        assert live.tick(4)["challenger"]["state"] == "registered"
    assert live.tick(8, seconds=30.0)["champion"]["version"] == "2"


@pytest.mark.parametrize("version", [0, 10**20, -1])
def test_a_number_that_no_version_has_is_refused_at_once(live: World, version: int) -> None:
    asked = record.ask(live.storage, NAME, "push", version, by="ci")
    assert not live.tick()["answers"][asked.id]["done"]


def test_a_service_that_was_down_goes_on_where_it_was(live: World) -> None:
    """Who was there before has not died of the challenger, and nobody could ask meanwhile."""
    live.push(2, canary=[{"weight": 10, "max_wait": "5m"}])
    document = live.tick(4)
    for number in range(3):
        os.utime(live.holds(live.key(1), live.key(2), id=f"gone-{number}"), (0, 0))
    os.utime(live.storage.path(record.FOLDER, ".reconciler"), (1, time.time() - 3_000))
    live.now += 3_000
    live.restart()
    after = live.tick(3)
    assert after["challenger"]["state"] == "canary"
    assert after["challenger"]["dead"] == []
    assert after["challenger"]["at"] == pytest.approx(document["challenger"]["at"] + 3_000, abs=60)


def test_one_damaged_release_hinders_no_other(live: World) -> None:
    live.storage.path(record.FOLDER, "broken.json").write_text("{")
    live.push(2)
    live.tick(4)
    assert live.document["champion"]["version"] == "2"


def test_a_wish_that_is_none_is_put_aside(live: World) -> None:
    path = live.storage.path(record.ASKED, NAME, "1.json")
    path.write_text(json.dumps({"id": "1", "what": "burn"}))
    live.storage.path(record.ASKED, NAME, "2.json").write_text("[")
    live.push(2)
    live.tick(4)
    assert live.document["champion"]["version"] == "2"
    assert [p.suffix for p in sorted(path.parent.iterdir())] == [".damaged", ".damaged"]


def test_who_waits_for_an_outcome_waits_until_every_replica_follows(live: World) -> None:
    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(0.02):
            live.tick()
            if live.document["champion"]["version"] == "2":
                live.holds(live.key(2), turn=live.document["turn"])

    live.holds(*(live.key(version) for version in (1, 2)), turn=live.document["turn"])
    working = threading.Thread(target=follow)
    working.start()
    try:
        live.push(2)
        document = releases.followed(live.storage, NAME, Silent(), 2)
    finally:
        stop.set()
        working.join()
    (told,) = heartbeats.followers(live.storage, NAME)
    assert document["champion"]["version"] == "2"
    assert told.turn >= document["turn"]


# ------------------------------------------------------------ whoever dies


class KilledError(Exception):
    """The process that reconciled is dead."""


@dataclass
class Dying:
    """Kills its process before or after the so-manyth time that something is written or told."""

    at: int
    before: bool
    count: int = 0

    def around(self, do: Any) -> Any:
        def dying(*args: Any, **named: Any) -> Any:
            if self.count == self.at and self.before:
                os.kill(os.getpid(), signal.SIGKILL)
            done = do(*args, **named)
            if self.count == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1
            return done

        return dying


@dataclass
class OnDisk(Registry):
    """A registry that outlives who tells it."""

    path: Path = Path()

    def __post_init__(self) -> None:
        if self.path.exists():
            kept = json.loads(self.path.read_text())
            self.champion = kept["champion"]
            self.states = {int(version): state for version, state in kept["states"].items()}

    def set_champion(self, name: str, version: int, /) -> None:
        super().set_champion(name, version)
        self._keep()

    def set_state(self, name: str, version: int, state: str, reason: str = "", /) -> None:
        super().set_state(name, version, state, reason)
        self._keep()

    def _keep(self) -> None:
        self.path.write_text(json.dumps({"champion": self.champion, "states": self.states}))


@dataclass
class Apart(World):
    """A world whose reconciler is a process, the first of which may die."""

    dying: Dying | None = None
    has_died: bool = False
    process: Any = None
    pipe: Any = None

    def restart(self) -> None:
        self.pipe, theirs = FORKS.Pipe()
        dying = None if self.has_died else self.dying
        registry = OnDisk(self.registry.packages, path=self.storage.path("registry.json"))
        world = (self.storage, self.project, registry, self.verifier)
        self.process = FORKS.Process(target=reconciles, args=(world, dying, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def tick(self, times: int = 1, seconds: float = 2.0) -> Document:
        # Replicas outlive who reconciles.
        assert all(replica.beat() for replica in self.replicas.values())
        self.pipe.send(self.now)
        try:
            self.pipe.recv()
        except EOFError:
            self.process.join()
            assert self.process.exitcode == -signal.SIGKILL
            self.has_died = True
            raise KilledError from None
        self.now += seconds
        return self.document

    def end(self) -> None:
        self.pipe.send(None)
        self.process.join()
        self.registry = OnDisk(self.registry.packages, path=self.storage.path("registry.json"))


def reconciles(world: tuple[Any, ...], dying: Dying | None, pipe: Any) -> None:
    """What the process does: a turn of work each time that it is told what time it is."""
    made = World(*world)
    if dying is not None:
        for place, name in (
            (record, "write"),
            (record, "forget"),
            (made.registry, "set_state"),
        ):
            setattr(place, name, dying.around(getattr(place, name)))
    while (now := pipe.recv()) is not None:
        made.now = now
        made.reconciler.tick()
        pipe.send(None)


#: Processes are forked from one that has imported this module, and nothing more.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])


def story(world: World) -> Iterator[None]:
    """A life: two versions live, one back by its errors, one by a person; yields at every tick."""
    world.push(1, **STEPS)
    world.holds(*(world.key(version) for version in (1, 2, 3)))
    yield from [None] * 6
    world.push(2, canary=[10, 50], per_step="1s")
    for _ in range(12):
        yield
        if (world.document["challenger"] or {}).get("state") == "canary":
            world.count({}, {})
    world.push(3, shadow={"requests": 10}, canary=[5])
    for _ in range(8):
        yield
        if (world.document["challenger"] or {}).get("state") == "canary":
            world.count({}, {ERRORS: 0.2})
        elif (world.document["challenger"] or {}).get("state") == "shadow":
            world.count({}, {})
    record.ask(world.storage, NAME, "rollback", by="ann")
    yield from [None] * 4


def lived(folder: Path, dying: Dying | None = None) -> tuple[bool, tuple[Any, ...]]:
    """Whether a reconciler died, and how it ended with another in its place."""
    one = made(Storage.open(str(folder)))
    world = Apart(one.storage, one.project, one.registry, one.verifier, dying=dying)
    for _ in story(world):
        try:
            world.tick()
        except KilledError:
            world.restart()
            world.tick()
    world.end()
    document = world.document
    live = [
        document[place] and document[place]["version"] for place in ("champion", "previous", "challenger")
    ]
    assert record.asked(world.storage, NAME) == []
    recorded = [(about["version"], about["after"]["state"]) for about in turns(world.storage)]
    assert recorded == world.told
    told = world.told, world.registry.champion, world.registry.states, document["told"]
    return world.has_died, (live, *told)


@pytest.mark.parametrize("before", [True, False])
def test_a_reconciler_killed_at_any_step_comes_to_the_same_end(tmp_path: Path, before: bool) -> None:
    has_died, undisturbed = lived(tmp_path / "undisturbed")
    assert not has_died
    assert undisturbed[0] == ["1", None, None]
    assert [turn for turn in undisturbed[1] if turn[1] in ("champion", "rolled_back")] == [
        ("1", "champion"), ("2", "champion"), ("3", "rolled_back"), ("2", "rolled_back"), ("1", "champion"),
    ]  # fmt: skip
    at, has_died = 0, True
    while has_died:
        has_died, end = lived(tmp_path / str(at), Dying(at, before))
        assert end == undisturbed
        at += 1
    # As often as something was written, or told.
    assert at > 30


def test_one_reconciler_works_and_another_waits_for_its_end(storage: Storage) -> None:
    mine = reconciler.lock(storage)
    assert mine is not None
    assert reconciler.lock(storage) is None
    mine.close()
    again = reconciler.lock(storage)
    assert again is not None
    again.close()


# ------------------------------------------------------------ hooks


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A web server that keeps what is posted to it; at first it fails."""
    with receivers.web(500) as there:
        yield there.url, there.got


def test_hooks_hear_of_the_states_that_they_ask_for(
    world: World, receiver: tuple[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    address, got = receiver
    said = tmp_path / "said"
    command = f"python3 -c \"import os, sys; open('{said}', 'a').write(os.environ['MLOPS_STATE'] + ' ')\""
    hooks = (
        {"webhook": address, "command": None, "on": ("champion", "refused")},
        {"webhook": None, "command": command, "on": ()},
        {"webhook": None, "command": "/nowhere", "on": ()},
    )
    record.settle(world.storage, NAME, Settings("", "", hooks=hooks))
    world.holds(world.key(1))
    world.push(1)
    world.tick(9)
    assert [(event["version"], event["state"]) for event in got] == [("1", "champion")]
    assert set(got[0]) >= {"model", "version", "state", "reason", "at", "turn"}
    assert said.read_text().split() == ["registered", "verified", "champion"]


def test_the_release_keeps_a_bounded_history(live: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "ANSWERS", 50)
    for number in range(release.HISTORY):
        live.push(2 + number % 2)
        live.tick(2)
    assert len(live.document["history"]) == release.HISTORY
    assert len(live.document["answers"]) == release.ANSWERS
