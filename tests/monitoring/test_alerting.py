"""Whatever happens, people hear of each trouble, together, and of its end; and nobody waits for them."""

import asyncio
import json
import socket
import stat
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mlops_ray.cluster import loop
from mlops_ray.cluster.loop import Retraining
from mlops_ray.data import prediction_log
from mlops_ray.monitoring import alarms, alerting, alerts, journal
from mlops_ray.monitoring.alarms import Alarms, Finding
from mlops_ray.monitoring.alerting import FOLDER, LEAST_PAUSE_S, MOST_PAUSE_S, TOLD, Alerting
from mlops_ray.monitoring.alerts import GROUP_WAIT_S, REMIND_S, Seen
from mlops_ray.monitoring.metrics import metrics_text
from mlops_ray.monitoring.monitor import Monitor
from mlops_ray.monitoring.state import ModelState
from mlops_ray.serving import record
from mlops_ray.storage import Storage
from tests import receivers

DAY = 86_400.0
NOW = 1_800_000_000.0
STEP = 5.0


@dataclass
class World:
    """Models with alarms, projects that say who hears of them, and the process that tells."""

    storage: Storage
    now: float = NOW
    states: dict[str, Alarms] = field(default_factory=dict)
    alerting: Alerting | None = None

    def deploy(self, model: str, *alerts: dict[str, Any]) -> None:
        """As a project file whose alerts are these has it."""
        none = dict.fromkeys(("webhook", "email", "log", "prometheus"))
        said = tuple(none | alert for alert in alerts)
        record.settle(self.storage, model, record.Settings("", "", alerts=said))
        self.states.setdefault(model, Alarms(self.now - DAY))

    def look(self, model: str, *about: str, quiet: int = 0) -> None:
        """The model is looked at: these differ, or nothing does, so often."""
        findings = [Finding(each, "input", 1e-6, True, f"{each} differs", 1.0) for each in about]
        for _ in range(quiet or 1):
            asked = findings or [Finding("x", "input", 0.9, False)]
            self.states[model].take(alarms.look(self.now, 0.01, asked), "1")

    @property
    def running(self) -> Alerting:
        if self.alerting is None:
            self.alerting = Alerting(self.storage, clock=lambda: self.now)
        return self.alerting

    def tick(self, seconds: float = 0.0) -> None:
        """So much time passes, in which the process ticks; what it sends is sent before the next tick."""
        end = self.now + seconds
        while True:
            self.running.tick(
                Seen(model, tuple(alerts.of_alarms(model, state))) for model, state in self.states.items()
            )
            wait([line.going for line in self.running._lines.values() if line.going], timeout=60)
            if self.now >= end:
                return
            self.now = min(self.now + STEP, end)

    def die(self) -> None:
        """The process ends as it stands, and is forgotten."""
        self.running.close()
        self.alerting = None


@pytest.fixture
def world(storage: Storage) -> Iterator[World]:
    storage.write_json({"url": "http://ml.example.org:8000"}, "address.json")
    made = World(storage)
    yield made
    made.die()


@contextmanager
def receiving(world: World, *models: str) -> Iterator[tuple[receivers.Web, receivers.Post]]:
    """Models whose projects name the same webhook and the same mailbox, which both work."""
    with receivers.web() as web, receivers.post() as post:
        address = f"smtp://127.0.0.1:{post.port}/ops@example.org?tls=no"
        for model in models:
            world.deploy(model, {"webhook": web.url}, {"email": address})
        world.tick()
        yield web, post


def said(web: receivers.Web) -> list[list[tuple[str, str]]]:
    """Of each message the models, and why."""
    return [[(alert["model"], alert["why"]) for alert in message["alerts"]] for message in web.got]


def test_several_models_are_one_message_a_route_and_so_is_their_end(world: World) -> None:
    with receiving(world, "a", "b") as (web, post):
        world.look("a", "x")
        world.tick(GROUP_WAIT_S - STEP)
        world.look("b", "y", "z")
        assert (web.got, post.got) == ([], [])
        world.tick(2 * STEP)
        assert said(web) == [[("a", "begun"), ("b", "begun")]]
        assert [finding["about"] for finding in web.got[0]["alerts"][1]["findings"]] == ["y", "z"]
        assert [letter.text["subject"] for letter in post.got] == ["[firing] 2 models: a, b: alarm"]
        world.now += REMIND_S / 2
        for model in "ab":
            world.look(model, quiet=alarms.QUIET)
        world.tick(2 * GROUP_WAIT_S)
        assert said(web)[1:] == [[("a", "over"), ("b", "over")]]
        assert web.got[1]["status"] == "resolved"
        assert [letter.text["subject"] for letter in post.got[1:]] == ["[resolved] 2 models: a, b: alarm"]
        world.now += 10 * REMIND_S
        world.tick(60)
        assert (len(web.got), len(post.got)) == (2, 2)


def test_what_joins_and_what_goes_on_is_told_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.monitoring.test_alerting.STEP", 600.0)
    with receiving(world, "a") as (web, _):
        world.look("a", "x")
        world.tick(3_600)
        world.look("a", "x", "y")
        world.tick(3 * REMIND_S + 3_600)
        assert said(web) == [[("a", why)] for why in ("begun", "more", "reminder", "reminder")]


def test_what_was_said_is_not_said_again_by_another_process(world: World) -> None:
    with receiving(world, "a") as (web, post):
        world.look("a", "x")
        world.tick(60)
        for _ in range(3):
            world.die()
            world.tick(60)
        assert (len(web.got), len(post.got)) == (1, 1)
        world.look("a", quiet=alarms.QUIET)
        world.die()
        world.tick(60)
        assert said(web)[1:] == [[("a", "over")]]


def test_a_route_that_fails_is_tried_until_it_works_and_holds_up_no_other(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with receivers.web(*[503] * 6) as sick, receivers.web() as well:
        secret = sick.url.replace("http://", "http://ann:s3cret@") + "?token=s3cret"
        world.deploy("a", {"webhook": secret}, {"webhook": well.url})
        world.look("a", "x")
        world.tick(GROUP_WAIT_S)
        assert said(well) == [[("a", "begun")]]
        assert len(sick.heads) == 1
        began = world.now
        while not sick.got:
            world.tick(1)
        # 1, 2, 4, 8, 16, 32 seconds lie between the tries.
        assert world.now - began == pytest.approx(63 * LEAST_PAUSE_S, abs=8)
        assert sick.got == well.got
        # And then it is at rest.
        world.tick(600)
        assert len(sick.heads) == 7
    # What is an error is what `status` tells.
    assert [(each.levelname, each.message) for each in caplog.records if "taken" in each.message] == [
        ("ERROR", "alerts by webhook are not taken (status 503); tried again until they are"),
        ("WARNING", "alerts by webhook are taken again"),
    ]
    assert "s3cret" not in caplog.text
    assert sorted(world.running.counted("a")) == [("webhook", "failed", 6), ("webhook", "sent", 2)]


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_message_whose_words_are_refused_goes_without_what_callers_wrote(world: World, status: int) -> None:
    with receivers.web(status) as web:
        world.deploy("a", {"webhook": web.url})
        world.look("a", "x", "y")
        world.tick(60)
        (message,) = web.got
        (alert,) = message["alerts"]
        assert (alert["why"], alert["findings"], alert["more"]) == ("begun", [], 2)
        assert "differs" not in message["text"]
        assert "- 2 that the page shows" in message["text"]
        # And it holds up nothing that follows.
        world.look("a", quiet=alarms.QUIET)
        world.tick(60)
        assert said(web)[1:] == [[("a", "over")]]
        assert len(web.got[1]["alerts"][0]["findings"]) == 2


def test_a_receiver_that_is_away_for_long_is_asked_now_and_then(world: World) -> None:
    with receivers.web(*[500] * 10_000) as away:
        world.deploy("a", {"webhook": away.url})
        world.look("a", "x")
        world.tick(GROUP_WAIT_S)
        world.now += DAY
        world.tick(2 * 3_600)
        tries = len(away.heads)
        world.tick(3_600)
        assert len(away.heads) - tries == pytest.approx(3_600 / MOST_PAUSE_S, abs=1)


def test_one_that_never_answers_holds_up_nobody(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, receivers.web() as well:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        world.deploy("a", {"webhook": address}, {"webhook": well.url})
        world.look("a", "x")
        seen = [Seen("a", tuple(alerts.of_alarms("a", world.states["a"])))]
        world.running.tick(seen)
        world.now += GROUP_WAIT_S
        world.running.tick(seen)
        slow, quick = (line.going for line in world.running._lines.values())
        wait([quick], timeout=60)
        assert not slow.done()
        world.running.tick(seen)
        assert said(well) == [[("a", "begun")]]


class KilledError(Exception):
    """The process dies."""


class Dying(Storage):
    """Kills the process at its so-manyth write of what was told, before or after it."""

    def __init__(self, root: Path, at: int, *, before: bool) -> None:
        super().__init__(root)
        object.__setattr__(self, "left", [at])
        object.__setattr__(self, "before", before)

    def write_json(self, document: Any, *parts: str, mode: int = 0o644) -> None:
        self.left[0] -= parts == (FOLDER, TOLD)  # type: ignore[attr-defined]
        is_now = self.left[0] == 0 and parts == (FOLDER, TOLD)  # type: ignore[attr-defined]
        if is_now and self.before:  # type: ignore[attr-defined]
            raise KilledError
        super().write_json(document, *parts, mode=mode)
        if is_now:
            raise KilledError


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("at", range(1, 8))
def test_killed_at_any_write_it_loses_nothing_and_repeats_at_most_one_message(
    world: World, at: int, before: bool
) -> None:
    root, healthy = world.storage.root, world.storage
    with receivers.web() as web:
        world.deploy("a", {"webhook": web.url})
        # A route that was there before all of it.
        world.tick()
        world.die()
        world.storage = Dying(root, at, before=before)

        def lives() -> None:
            try:
                world.tick(60)
            except KilledError:
                world.storage = healthy
                world.die()
                world.tick(60)

        for about in (["x"], ["x", "y"], []):
            world.look("a", *about, quiet=0 if about else alarms.QUIET)
            lives()
        ids = [message["id"] for message in web.got]
        # Who gets a message twice can tell by its id.
        once = {id: message["alerts"] for id, message in zip(ids, web.got, strict=True)}
        assert [[alert["why"] for alert in each] for each in once.values()] == [["begun"], ["more"], ["over"]]
        assert len(ids) - len(once) <= 1
        assert all(message["alerts"] == once[message["id"]] for message in web.got)


def test_what_is_sent_again_is_the_same_though_more_has_happened_since(world: World) -> None:
    healthy = world.storage
    with receivers.web() as web:
        for model in "ab":
            world.deploy(model, {"webhook": web.url})
        world.tick()
        world.die()
        # It is sent, and that it was taken is not noted any more.
        world.storage = Dying(healthy.root, 2, before=True)
        world.look("a", "x")
        with pytest.raises(KilledError):
            world.tick(60)
        world.storage = healthy
        world.die()
        world.look("a", "x", "y")
        world.look("b", "x")
        world.tick(60)
        assert said(web) == [[("a", "begun")], [("a", "begun")], [("a", "more"), ("b", "begun")]]
        assert web.got[0] == web.got[1]


def test_of_two_processes_one_tells(world: World) -> None:
    with receiving(world, "a") as (web, _):
        second = World(world.storage, world.now, world.states)
        world.look("a", "x")
        second.tick(60)
        assert web.got == []
        world.tick(60)
        assert len(web.got) == 1
        world.die()
        second.look("a", quiet=alarms.QUIET)
        second.tick(120)
        second.die()
        assert said(web) == [[("a", "begun")], [("a", "over")]]


def test_only_who_is_named_hears_and_only_of_his_models(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with receivers.web() as ours, receivers.web() as theirs:
        world.deploy("a", {"webhook": ours.url}, {"prometheus": True}, {"log": False})
        world.deploy("b", {"webhook": ours.url}, {"webhook": theirs.url})
        world.deploy("c")
        for model in "abc":
            world.look(model, "x")
        world.tick(60)
        assert (said(ours), said(theirs)) == ([[("a", "begun"), ("b", "begun")]], [[("b", "begun")]])
        # Who is not named any more hears no more, and the model's end is told to who is.
        world.deploy("b", {"log": True})
        world.look("b", quiet=alarms.QUIET)
        world.tick(60)
        assert len(ours.got) == len(theirs.got) == 1
        (line,) = [json.loads(text) for text in caplog.messages if text.startswith("{")]
        assert (line["model"], line["why"]) == ("b", "over")


def test_what_is_kept_is_the_owner_s_and_holds_no_address(world: World) -> None:
    with receiving(world, "a") as (web, _):
        world.look("a", "x")
        world.tick(60)
        path = world.storage.root / FOLDER / TOLD
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert web.url.partition("//")[2] not in path.read_text()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"format": 2}',
        '{"format": 1, "lines": {"x": 1}}',
        '{"format": 1, "lines": []}',
        '{"format": 1, "lines": {}, "kept": {"a": [{}]}}',
        '{"format": 1, "lines": {}, "kept": {}}',
        '{"format": 1, "lines": {}, "kept": {}, "lost": {"a": "b"}}',
    ],
)
def test_a_damaged_record_is_put_aside_and_what_goes_on_is_told(world: World, text: str) -> None:
    world.storage.path(FOLDER, TOLD).write_text(text)
    with receivers.web() as web:
        world.deploy("a", {"webhook": web.url})
        world.look("a", "x")
        world.tick(60)
        assert said(web) == [[("a", "begun")]]
    assert (world.storage.root / FOLDER / "told.damaged").read_text() == text


def test_a_document_that_is_damaged_hides_no_other_model(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with receiving(world, "a", "b") as (web, _):
        world.storage.write_json({"history": [{"state": "refused"}]}, record.FOLDER, "a.json")
        world.storage.write_json([1], record.SETTINGS, "c.json")
        for model in "ab":
            world.look(model, "x")
        world.tick(60)
        assert said(web) == [[("b", "begun")]]
        assert caplog.text.count("what is wrong with a is not known") == 1
        world.storage.path(record.FOLDER, "a.json").unlink()
        world.tick(60)
        assert said(web)[1:] == [[("a", "begun")]]


def test_a_release_that_failed_and_rows_that_were_lost_are_told(world: World) -> None:
    counters = world.storage.path(prediction_log.FOLDER, "a", prediction_log.COUNTERS, "one")
    counters.write_bytes(prediction_log.COUNTS.pack(10, 8, 0, 0))
    with receiving(world, "a") as (web, _):
        world.tick(60)
        assert web.got == []
        # What is lost, also while nobody looks, is told by who comes next.
        world.die()
        counters.write_bytes(prediction_log.COUNTS.pack(1_000, 900, 0, 0))
        turn = {"turn": 1, "version": "2", "state": "refused", "step": 0, "reason": "it is not signed"}
        world.now += 1
        document = record.new("a") | {"history": [turn | {"at": alerts.iso(world.now)}]}
        record.write(world.storage, document)
        failed = Retraining("r", world.now, "", "failed", said="Ray says FAILED", ended=world.now)
        world.storage.write_json({"retrainings": [asdict(failed)]}, loop.FOLDER, "a.json")
        world.tick(60)
        world.die()
        world.tick(7_200)
        assert said(web) == [[("a", "happened")] * 3]
        text = web.got[0]["text"]
        assert "98 answered rows are not in the prediction log, 100 in all" in text
        assert "version 2 is refused: it is not signed" in text
        assert "failed: Ray says FAILED" in text


def test_a_clock_that_was_ahead_and_is_set_back_silences_nobody(world: World) -> None:
    world.now += 365 * DAY
    with receivers.web(500) as web:
        world.deploy("a", {"webhook": web.url})
        world.look("a", "x")
        # It waits for others, or for another try, when the clock is set back.
        world.tick(GROUP_WAIT_S)
        assert len(web.heads) == 1
        world.now = NOW
        turn = {"turn": 1, "version": "2", "state": "refused", "step": 0, "reason": "it is not signed"}
        world.tick()
        world.now += 1
        record.write(world.storage, record.new("a") | {"history": [turn | {"at": alerts.iso(world.now)}]})
        world.tick(MOST_PAUSE_S + 2 * GROUP_WAIT_S)
        assert said(web) == [[("a", "begun")], [("a", "happened"), ("a", "reminder")]]
        (line,) = world.running._lines.values()
        line.news_since = world.now + DAY
        world.look("a", "x", "y")
        world.tick(2 * GROUP_WAIT_S)
        assert said(web)[2:] == [[("a", "more")]]


def test_errors_are_told_until_they_are_over_also_by_another_process(world: World) -> None:
    with receiving(world, "a") as (web, _):
        for state, minutes in (("begun", 60), ("", 61), ("over", 90)):
            at = [int(NOW) + 60 * minute for minute in range(minutes)]
            world.now = NOW + 60 * minutes
            counts = tuple((each, 100, 10 if each < NOW + 3_600 else 0) for each in at[-60:])
            for _ in range(2):
                world.running.tick([Seen("a", (), counts)])
                wait([line.going for line in world.running._lines.values() if line.going], timeout=60)
                world.now += GROUP_WAIT_S
            world.running.tick([Seen("a", (), counts)])
            assert [why for message in said(web) for _, why in message][-1:] == [state or "begun"]
            world.die()
        assert [message["alerts"][0]["what"] for message in web.got] == ["errors", "errors"]


def test_the_monitor_tells_of_its_episodes_and_counts_what_it_sent(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "GROUP_WAIT_S", 0.0)
    world = World(storage)
    with receivers.web(500) as web:
        world.deploy("a", {"webhook": web.url})
        world.look("a", "x")
        state = ModelState("a", alarms=world.states["a"])
        storage.write_json(state.to_json(), journal.FOLDER, "a.json")
        monkeypatch.setattr(alerting, "LEAST_PAUSE_S", 0.0)

        async def lives() -> dict[str, Any]:
            watcher = Monitor(str(storage.root))
            while not web.got:
                await watcher._alert()
                await asyncio.sleep(0.01)
            while not any("sent" in each for each in watcher._alerting.counted("a")):
                await watcher._alert()
                await asyncio.sleep(0.01)
            return await watcher.snapshot()

        snapshot = asyncio.run(asyncio.wait_for(lives(), 60))
    assert said(web) == [[("a", "begun")]]
    text = metrics_text(snapshot, []).decode()
    for outcome in ("failed", "sent"):
        assert f'mlops_alerts_total{{model="a",outcome="{outcome}",route="webhook"}} 1.0' in text
