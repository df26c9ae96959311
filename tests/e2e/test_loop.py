"""The loop that closes, live: the world changes, and without a person the model; bad data change nothing.

A service as `mlops-ray run` brings it up, callers who ask it and tell what came true, and a business that
adds what it learns to its file. Windows of seconds stand for days.
"""

import csv
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops_ray import audit
from mlops_ray.client import Client
from mlops_ray.cluster import local, loop
from mlops_ray.cluster.loop import Retraining
from mlops_ray.monitoring import journal
from mlops_ray.monitoring.alarms import Episode
from mlops_ray.monitoring.state import ModelState
from mlops_ray.serving import record
from mlops_ray.storage import Storage

from .conftest import mlops, processes_of

MODEL = "demand"
PROJECT = """
project: demand
sources:
  sales:
    path: sales.csv
    event_time: {column: time, timezone: UTC}
    known_at: {after_event: 0s}
    columns: {price: {type: float}, weather: {type: float}, sold: {type: float}}
features: {row: {columns: [price, weather]}}
target: {source: sales, expr: sold, horizon: 0s, task: regression}
training:
  families: [ridge]
  search: {trials: 1, scheduler: none}
  validation: {test: {share: 20%}, folds: 1}
release: {canary: [{weight: 50, requests: 20, max_wait: 2m}], per_step: 1s}
serving: {replicas: {max: 1}}
monitoring:
  window: 4s
  false_alarms: {max: 1, per: 1d}
  retrain: {when: [performance, drift], at_most: 5/1d}
"""
#: What one more unit of the price makes of what is sold, before the world changes and after.
BEFORE, AFTER = 2.0, -3.0
#: A window, its look and a job take tens of seconds on a busy machine; what comes later does not come.
PATIENCE_S = 200.0
#: Rows of a request, and between two: a window has some hundred rows, and training finds a free processor.
ROWS, PAUSE_S = 10, 0.1
pytestmark = pytest.mark.timeout(2 * PATIENCE_S + 200)


@dataclass
class World:
    """The file of a business, and callers who ask without a pause and tell soon what came true."""

    folder: Path
    effect: float = BEFORE
    is_broken: bool = False
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(3))
    written: int = 0
    over: threading.Event = field(default_factory=threading.Event)
    failed: list[str] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.folder / "project.yaml"

    @property
    def storage(self) -> Storage:
        return Storage.open(str(self.folder / ".mlops"))

    def rows(self, count: int) -> list[dict[str, float]]:
        found = self.random.normal(0, 1, (count, 2))
        return [{"price": price, "weather": weather} for price, weather in found.tolist()]

    def sold(self, row: dict[str, float]) -> float:
        return float(10 + self.effect * row["price"] + row["weather"] + self.random.normal(0, 0.3))

    def learn(self, count: int) -> None:
        """Rows of so many hours more are in the business' file."""
        begin = datetime(2026, 1, 1, tzinfo=UTC)
        hours = range(self.written, self.written + count)
        with (self.folder / "sales.csv").open("a", newline="") as file:
            lines = csv.writer(file)
            lines.writerows([] if self.written else [["time", "price", "weather", "sold"]])
            for hour, row in zip(hours, self.rows(count), strict=True):
                lines.writerow([(begin + timedelta(hours=hour)).isoformat(), *row.values(), self.sold(row)])
        self.written += count

    def ask(self, client: Client) -> None:
        """Callers, until it is over."""
        try:
            while not self.over.wait(PAUSE_S):
                rows, now = self.rows(ROWS), datetime.now(UTC)
                price = {"price": 0.0} if self.is_broken else {}
                sent = [{"time": now, **row, **price} for row in rows]
                answer = client.predict(sent)
                true = [
                    {"request_id": answer.id, "row": at, "label": self.sold(row)}
                    for at, row in enumerate(rows)
                ]
                client.label(true)
        except Exception as error:  # noqa: BLE001 - it is told where the test waits
            self.failed.append(repr(error))

    def until(self, what: str, holds: Callable[[], Any]) -> Any:
        """What `holds` says, as soon as it is something."""
        end = time.monotonic() + PATIENCE_S
        while not (found := holds()):
            assert not self.failed, self.failed
            assert time.monotonic() < end, f"it does not come about: {what}; {self.told}"
            self.over.wait(0.2)
        return found

    @property
    def release(self) -> dict[str, Any]:
        return record.read(self.storage, MODEL)

    @property
    def episodes(self) -> list[Episode]:
        found = self.monitor.alarms
        return found.episodes if found else []

    @property
    def closed(self) -> bool:
        """Whether a window has, looked at or not."""
        return bool(self.monitor.unseen or _looks(self))

    @property
    def monitor(self) -> ModelState:
        state = self.storage.read_json(journal.FOLDER, f"{MODEL}.json")
        return ModelState.from_json(state) if state else ModelState(MODEL)

    @property
    def retrainings(self) -> list[Retraining]:
        return loop.retrainings(loop.read(self.storage, MODEL))

    @property
    def told(self) -> list[dict[str, Any]]:
        """Of retrainings, in the audit record."""
        return [each for each in audit.entries(self.storage) if each["what"].startswith("retraining")]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("loop"))
    made.file.write_text(PROJECT)
    made.learn(600)
    try:
        done = mlops("run", made.file, "--detach", "--json")
        assert done.returncode == 0, done.stderr
        key = made.storage.path("local.key").read_text().strip()
        client = Client(json.loads(done.stdout.splitlines()[-1])["url"], MODEL, key=key, timeout_s=60)
        callers = threading.Thread(target=made.ask, args=(client,), daemon=True)
        callers.start()
        yield made
        made.over.set()
        callers.join()
        assert made.failed == []
    finally:
        made.over.set()
        mlops("down", made.file)
        local.stop(made.storage.root)
    assert not processes_of(made.storage.root)


def test_a_world_that_has_changed_is_learned_and_goes_live_without_a_person(world: World) -> None:
    world.until("a window in which the model is right", lambda: world.closed)
    world.effect = AFTER
    world.learn(6_000)
    alarm = world.until("an alarm", lambda: world.episodes)[0]
    assert any(about.startswith("realised mae") for about in alarm.found)
    assert _looks(world)[0]["found"] == []
    world.until("a retraining", lambda: world.retrainings)
    world.until("its end", lambda: world.retrainings[0].ended)
    (done,) = world.retrainings
    assert (done.state, done.version) == ("champion", 2), done
    assert "realised mae" in done.reason
    assert world.release["champion"]["version"] == "2"
    states = [(turn["version"], turn["state"]) for turn in world.release["history"]]
    assert states[-3:] == [("2", "canary"), ("1", "retired"), ("2", "champion")]
    resolved = world.until("the end of the alarm", lambda: world.episodes[0].resolved and world.episodes[0])
    assert (resolved.version, resolved.why) == ("1", "version 2 is live")
    looks = world.until("its line", lambda: [look for look in _looks(world) if look["version"] == "2"])
    assert looks[0]["resolved"]["why"] == "version 2 is live"
    assert looks[0]["quality"]["realised"]["mae"] < 2 * world.release["champion"]["metrics"]["mae"]
    told = [entry for entry in world.told if entry["what"] != "retraining waits"]
    assert [entry["what"] for entry in told] == [
        "retraining asked",
        "retraining started",
        "retraining pushed",
        "retraining ended",
    ]
    assert "realised mae" in [each["about"] for each in told[0]["about"]["evidence"]]
    audit.verify(world.storage)
    said = mlops("status", world.file).stdout
    assert "the last was champion: version 2" in said


def _looks(world: World) -> list[dict[str, Any]]:
    return journal.read(world.storage, MODEL, journal.LOOKS)


def _of_loss(decided: dict[str, Any]) -> dict[str, Any] | None:
    """A decision about an alarm that labels have confirmed."""
    return decided if any(each["about"] == "realised mae" for each in decided["evidence"]) else None


def test_data_that_are_broken_open_an_alarm_and_nothing_is_learned_from_them(world: World) -> None:
    before, episodes, told = world.retrainings, len(world.episodes), len(world.told)
    world.is_broken = True
    world.until("an alarm", lambda: world.episodes[episodes:])
    refused = world.until(
        "a refusal",
        lambda: [entry for entry in world.told[told:] if entry["what"] == "retraining refused"],
    )
    assert refused[0]["about"]["rule"] == "data"
    # That labels show a loss too changes nothing.
    decided = world.until("a loss", lambda: _of_loss(loop.read(world.storage, MODEL)["decided"]))
    assert (decided["what"], decided["rule"]) == ("refuse", "data")
    assert "it stands still" in decided["reason"]
    assert world.retrainings == before
    assert "the data are not whole" in mlops("status", world.file).stdout
