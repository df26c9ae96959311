"""When the loop trains again, when it waits and when it refuses; whatever is killed, never twice."""

import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_ray import audit, config
from mlops_ray.cluster import loop, service
from mlops_ray.cluster.loop import Loop, Retraining, Seen, Settings
from mlops_ray.cost.holds import HOLDS
from mlops_ray.errors import ClusterError
from mlops_ray.monitoring import alarms, integrity, journal
from mlops_ray.monitoring.alarms import Alarms, Finding
from mlops_ray.monitoring.skew import Skew
from mlops_ray.serving import record
from mlops_ray.storage import Storage

MODEL, WEEK = "m", 7 * 86_400.0
NOW = 1_800_000_000.0
SETTINGS = Settings("/p.yaml", ("performance", "drift"), 1, WEEK, 1.0, {})

LOSS = Finding("realised mae", "performance", 1e-9, True, "the realised mae is 3, in the reference 1", 2.0)
ESTIMATE = replace(LOSS, about="estimated mae", evidence="the estimated mae is 3, in the reference 1")
SEGMENT = replace(LOSS, about="realised mae by site", evidence="the realised mae of site a is 9")
DRIFT = Finding("x", "input", 1e-9, True, "x is larger", 0.3)
HARMLESS = replace(DRIFT, harm=0.001)
ANSWERS = replace(DRIFT, about="prediction", kind="prediction", evidence="prediction is larger")
ROWS = replace(DRIFT, about="rows as a whole", kind="joint", evidence="rows are told from the reference's")
STILL = replace(DRIFT, kind="data", evidence="it stands still: 100 % of x are 0")
STALE = Finding("freshness of meter", "data", 0.0, True, "the newest row of meter is old", 0.05)
FINE = Finding("y", "input", 0.7, False)


def healed(finding: Finding) -> Finding:
    return replace(finding, p=0.8, matters=False)


def seen(*looks: list[Finding], version: str = "1", releasing: str | None = None, held: str = "") -> Seen:
    """A live version, looked at every day; what each look asked."""
    state, entries = Alarms(NOW), []
    for day, findings in enumerate(looks, 1):
        look = alarms.look(NOW + 86_400 * day, 0.01, [*findings, FINE])
        state.take(look, "1")
        entries.append({"version": "1", **look.to_json()})
    return Seen(version, state.open, entries, releasing, held)


def past(*ends: str, ago: float = 86_400.0) -> list[Retraining]:
    """Retrainings, the last `ago` seconds; an empty end goes on."""
    times = [NOW - ago * (len(ends) - number) for number in range(len(ends))]
    return [
        Retraining(f"r{at}", at, "", end or "running", None, "why", at + 60 if end else None)
        for at, end in zip(times, ends, strict=True)
    ]


TWICE = [[LOSS], [LOSS]]
#: What is seen, what was done, the settings; and what is decided, by which rule, with which words.
CASES: dict[str, tuple[Seen, list[Retraining], Settings, str, str, str]] = {
    "no alarm": (seen([], []), [], SETTINGS, "wait", "quiet", "no alarm"),
    "a loss by labels": (seen(*TWICE), [], SETTINGS, "retrain", "cause", "realised mae is 3"),
    "of a segment": (seen([SEGMENT], [SEGMENT]), [], SETTINGS, "retrain", "cause", "of site a is 9"),
    "a loss and no labels since": (seen([LOSS], []), [], SETTINGS, "retrain", "cause", "realised mae"),
    "one look": (seen([LOSS]), [], SETTINGS, "wait", "unconfirmed", "the next look is to confirm it"),
    "a loss that has gone": (seen([LOSS], [healed(LOSS)]), [], SETTINGS, "wait", "no cause", ""),
    "an estimate": (seen([ESTIMATE], [ESTIMATE]), [], SETTINGS, "wait", "no cause", "nothing that asks"),
    "harmful drift": (seen([DRIFT], [DRIFT]), [], SETTINGS, "retrain", "cause", "x is larger"),
    "harmless drift": (seen([HARMLESS], [HARMLESS]), [], SETTINGS, "wait", "no cause", ""),
    "moved answers": (seen([ANSWERS], [ANSWERS]), [], SETTINGS, "wait", "no cause", ""),
    "rows as a whole": (seen([ROWS], [ROWS]), [], SETTINGS, "wait", "no cause", ""),
    "drift, asked by loss alone": (
        seen([DRIFT], [DRIFT]), [], replace(SETTINGS, when=("performance",)), "wait", "no cause", "labels",
    ),
    "loss, asked by drift alone": (
        seen(*TWICE), [], replace(SETTINGS, when=("drift",)), "wait", "no cause", "harmful move",
    ),
    "a fault": (seen([STILL], [STILL]), [], SETTINGS, "refuse", "data", "not whole: it stands still"),
    "a loss and a fault": (seen([LOSS, STALE], [LOSS]), [], SETTINGS, "refuse", "data", "newest row"),
    "a fault that began within a window": (
        seen([LOSS, DRIFT], [LOSS, STILL]), [], SETTINGS, "refuse", "data", "stands still",
    ),
    "a fault that is too small for an alarm": (
        seen([LOSS], [LOSS, replace(STALE, p=0.001)]), [], SETTINGS, "refuse", "data", "newest row",
    ),
    "a fault that one look did not see": (seen([LOSS, STILL], [LOSS]), [], SETTINGS, "refuse", "data", ""),
    "a fault that is over": (seen([LOSS, STALE], [LOSS], [LOSS]), [], SETTINGS, "retrain", "cause", "mae"),
    "another version": (seen(*TWICE, version="2"), [], SETTINGS, "wait", "quiet", ""),
    "a budget": (seen(*TWICE, held="9 EUR are spent"), [], SETTINGS, "wait", "budget", "9 EUR are spent"),
    "a release": (seen(*TWICE, releasing="3"), [], SETTINGS, "wait", "release", "version 3 is being"),
    "one that goes on": (seen(*TWICE), past(""), SETTINGS, "wait", "running", "goes on"),
    "one in this week": (
        seen(*TWICE), past("champion"), SETTINGS, "wait", "too soon", "2027-01-21T08:00:00Z, at most 1",
    ),
    "one that did not help": (
        seen(*TWICE), past("rolled_back"), SETTINGS, "wait", "too soon", "nothing came (rolled_back: why)",
    ),
    "one a week ago": (seen(*TWICE), past("champion", ago=WEEK), SETTINGS, "retrain", "cause", ""),
    "one that was not begun": (seen(*TWICE), past("withdrawn"), SETTINGS, "retrain", "cause", ""),
    "two of three": (
        seen(*TWICE), past("refused", "champion"), replace(SETTINGS, number=3), "retrain", "cause", "",
    ),
    "three of three": (
        seen(*TWICE), past(*["champion"] * 3), replace(SETTINGS, number=3), "wait", "too soon", "at most 3",
    ),
    "two of three, the last in vain": (
        seen(*TWICE), past("champion", "failed"), replace(SETTINGS, number=3), "wait", "too soon", "failed",
    ),
    "none allowed": (seen(*TWICE), [], replace(SETTINGS, number=0), "wait", "too soon", "none is allowed"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_done_about_an_alarm(case: str) -> None:
    found, done, how, what, rule, words = CASES[case]
    decision = loop.decide(found, done, how, NOW)
    assert (decision.what, decision.rule) == (what, rule), decision
    assert words in decision.reason
    assert bool(decision.evidence) == (rule not in ("quiet", "running"))


def test_without_the_journal_a_fault_that_the_alarm_found_stands() -> None:
    found = replace(seen([LOSS, STILL], [LOSS], [LOSS]), looks=())
    assert loop.decide(found, [], SETTINGS, NOW).what == "refuse"


def test_the_project_file_says_what_asks_for_a_retraining_and_how_often(tmp_path: Path) -> None:
    text = """
project: m
storage: state
sources: {s: {path: a.csv, time: none, columns: {x: {type: float}, y: {type: float}}}}
features: {row: {columns: [x]}}
target: {source: s, expr: y, horizon: 0s, task: regression}
training: {search: {resources: {cpu: 2}}}
"""
    file = tmp_path / "p.yaml"
    storage = Storage.open(str(tmp_path / "state"))
    file.write_text(text + "monitoring: {retrain: {when: [performance], at_most: 3/12h}}\n")
    asked = config.load(file, {})
    assert Settings.of(asked) == Settings(str(file), ("performance",), 3, 43_200.0, 2.0, {})
    assert loop.settle(asked, storage)
    assert loop.notes(asked) == []
    file.write_text(
        file.read_text().replace("training: {", "training: {validation: {test: {from: 2026-01-01}}, ")
    )
    assert "learns nothing of what came after 2026-01-01" in loop.notes(config.load(file, {}))[0]
    assert [path.name for path in (storage.root / loop.SETTINGS).iterdir()] == ["m.json"]
    file.write_text(text)
    assert not loop.settle(config.load(file, {}), storage)
    assert loop.notes(config.load(file, {})) == []
    assert list((storage.root / loop.SETTINGS).iterdir()) == []


# ---------------------------------------------------------------- over time


class KilledError(BaseException):
    """The process ends here."""


class Crashing(Storage):
    """A storage whose user is killed at one of its writes, before it or after."""

    def arm(self, writes: int | None) -> None:
        object.__setattr__(self, "left", writes)

    def write_json(self, document: Any, *parts: str, mode: int = 0o644) -> None:
        if self.strikes():
            raise KilledError
        super().write_json(document, *parts, mode=mode)
        if self.strikes():
            raise KilledError

    def strikes(self) -> bool:
        left: int | None = getattr(self, "left", None)
        if left is not None:
            object.__setattr__(self, "left", left - 1)
        return left == 0


@dataclass
class World:
    """A model with its monitor, its releases and a cluster, as far as the loop sees them."""

    storage: Crashing
    now: float = NOW
    version: int = 1
    room: str = ""
    #: What the cluster knows of its jobs, and all that ever began: when, and what stood in its way.
    jobs: dict[str, str] = field(default_factory=dict)
    began: list[tuple[str, float]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    last: list[Finding] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(2))
    is_away: bool = False

    def __post_init__(self) -> None:
        self.alarms = Alarms(self.now)
        self.loop = Loop(self.storage, self, lambda: self.now)
        self.say(SETTINGS)
        self.released(champion={"version": "1"}, challenger=None)

    def say(self, how: Settings) -> None:
        Storage.write_json(self.storage, vars(how) | {"selector": {}}, loop.SETTINGS, f"{MODEL}.json")

    def released(self, **document: Any) -> None:
        known = record.read(self.storage, MODEL) or record.new(MODEL)
        Storage.write_json(self.storage, known | document, record.FOLDER, f"{MODEL}.json")

    # what the loop asks of a cluster

    def submit(self, id: str, how: Settings) -> None:
        if self.is_away:
            raise ClusterError("nobody answers")
        if self.storage.strikes():
            raise KilledError
        assert id not in self.jobs
        self.jobs[id] = "RUNNING"
        self.begins(id)
        if self.storage.strikes():
            raise KilledError

    def begins(self, id: str) -> None:
        """As the job itself does."""
        try:
            loop.begun(self.storage, id).touch(exist_ok=False)
        except FileExistsError:
            self.wrong.append(f"{id} was submitted twice")
            return
        self.began.append((id, self.now))
        going = [other for other, state in self.jobs.items() if state == "RUNNING" and other != id]
        self.wrong += [f"{id} runs beside {other}" for other in going]
        self.wrong += [f"{id} while {finding.evidence}" for finding in self.last if finding.kind == "data"]
        self.wrong += [f"{id} while a release is under way"] * (
            loop.see(self.storage, MODEL, NOW).releasing is not None
        )

    def state(self, id: str) -> str | None:
        return self.jobs.get(id)

    def lacks(self, how: Settings) -> str:
        return self.room

    # what happens

    def tick(self, crash: int | None = None) -> None:
        self.now += 5
        self.storage.arm(crash)
        try:
            self.loop.tick()
        except KilledError:
            self.loop = Loop(self.storage, self, lambda: self.now)
        self.storage.arm(None)

    def look(self, *findings: Finding, days: float = 1.0) -> None:
        """A window closes in which the live version is looked at."""
        self.now += days * 86_400
        self.last = list(findings)
        look = alarms.look(self.now, 0.01, [*findings, FINE])
        self.alarms.take(look, str(self.version))
        ends = {"version": str(self.version), "since": self.now - 86_400, "until": self.now}
        journal.append(self.storage, MODEL, journal.LOOKS, ends | look.to_json())
        state = {"alarms": self.alarms.to_json()}
        Storage.write_json(self.storage, state, journal.FOLDER, f"{MODEL}.json")

    def job_ends(self, outcome: str) -> None:
        """The job that runs comes to an end: of its own, or with the cluster."""
        for id in [id for id, state in self.jobs.items() if state == "RUNNING"]:
            if outcome == "cluster":
                self.jobs.clear()
                return
            if outcome == "killed":
                self.jobs[id] = "FAILED"
                return
            self.jobs[id] = "SUCCEEDED"
            version = next(self.numbers)
            said = {"outcome": outcome, "version": version, "said": f"it is {outcome}"}
            if outcome == "releasing":
                self.released(challenger={"version": str(version)})
                self.note(version, "canary")
            Storage.write_json(self.storage, said, loop.JOBS, f"{id}.json")

    def note(self, version: int, state: str) -> None:
        history = (record.read(self.storage, MODEL) or record.new(MODEL))["history"]
        turn = {"version": str(version), "state": state, "step": 0, "reason": f"it is {state}"}
        self.released(history=[*history, turn])

    def push(self) -> None:
        """Somebody pushes a version, which ends the release of another."""
        self.release_ends("inconclusive")
        self.released(challenger={"version": "99"})

    def release_ends(self, state: str) -> None:
        going = record.read(self.storage, MODEL)["challenger"]
        if going is None:
            return
        self.note(int(going["version"]), state)
        if state == "champion":
            self.version = int(going["version"])
            self.released(champion={"version": going["version"]})
        self.released(challenger=None)

    @property
    def document(self) -> dict[str, Any]:
        return loop.read(self.storage, MODEL)

    @property
    def told(self) -> list[str]:
        return [entry["what"] for entry in audit.entries(self.storage)]


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Processes are killed here, machines are not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(Crashing(tmp_path))


def asked_for(world: World) -> World:
    """A loss that two looks have seen, whose retraining runs."""
    world.look(LOSS)
    world.tick()
    world.look(LOSS)
    world.tick()
    world.tick()
    return world


def test_a_loss_is_mended_without_a_person_and_the_audit_record_tells_each_step(world: World) -> None:
    asked_for(world)
    (going,) = loop.retrainings(world.document)
    assert (going.state, going.reason) == ("running", LOSS.evidence)
    world.job_ends("releasing")
    world.tick()
    assert loop.retrainings(world.document)[0].state == "releasing"
    world.release_ends("champion")
    world.tick()
    world.look()
    world.tick()
    (done,) = loop.retrainings(world.document)
    assert (done.state, done.version, done.said) == ("champion", 2, "version 2: it is champion")
    assert world.alarms.episodes[0].why == "version 2 is live"
    assert world.document["decided"]["rule"] == "quiet"
    assert world.told == [
        "retraining waits", "retraining asked", "retraining started", "retraining pushed", "retraining ended",
    ]  # fmt: skip
    entries = list(audit.entries(world.storage))
    assert entries[1]["about"]["rule"] == "cause"
    (found,) = entries[1]["about"]["evidence"]
    how = {"kind": "performance", "since": NOW + 86_400, "harm": LOSS.harm, "p": 2 * LOSS.p}
    assert found == {"about": LOSS.about, **how}
    assert {entry["about"]["model"] for entry in entries} == {MODEL}
    assert audit.verify(world.storage) == 5


def test_a_refusal_is_told_once_however_often_it_is_looked_at_and_when_it_changes(world: World) -> None:
    for _ in range(3):
        world.look(LOSS, STILL)
        for _ in range(3):
            world.tick()
    assert world.began == []
    (entry,) = audit.entries(world.storage)
    assert (entry["what"], entry["about"]["rule"]) == ("retraining refused", "data")
    assert [each["about"] for each in entry["about"]["evidence"]] == ["x", "realised mae"]
    for _ in range(2):
        world.look(LOSS)
        world.tick()
    assert world.told == ["retraining refused", "retraining asked"]


def test_the_audit_record_holds_nothing_of_rows_that_an_alarm_quotes(world: World) -> None:
    # As a feature is found that was served otherwise than the history says.
    (skew,) = integrity.skewed([Skew("x", 200, 12, "20 instead of 35.5 for annabel at 2026-03-08T09:30")])
    segment = replace(SEGMENT, evidence="the realised mae of 20 rows where name is annabel is 9")
    for findings in ([skew, LOSS], [segment], [segment], [segment]):
        world.look(*findings)
        world.tick()
    world.tick()
    said = {"outcome": "failed", "version": None, "said": "annabel is no number"}
    Storage.write_json(world.storage, said, loop.JOBS, f"{world.began[0][0]}.json")
    world.tick()
    words = {f"retraining {what}" for what in ("refused", "waits", "asked", "started", "ended")}
    assert set(world.told) == words
    files = list((world.storage.root / audit.FOLDER).rglob("*.json*"))
    assert files
    assert [file for file in files if "annabel" in file.read_text()] == []
    # People read it where it is erased, or erasing tells of it.
    assert "annabel" in world.storage.path(loop.FOLDER, f"{MODEL}.json").read_text()


@pytest.mark.parametrize("outcome", ["refused", "unchanged", "failed", "killed", "cluster"])
def test_a_job_that_brings_nothing_is_an_outcome_after_which_the_loop_waits_and_says_so(
    world: World, outcome: str
) -> None:
    asked_for(world)
    world.job_ends(outcome)
    world.tick()
    (done,) = loop.retrainings(world.document)
    assert done.state == {"killed": "failed", "cluster": "failed"}.get(outcome, outcome)
    reason = world.document["decided"]["reason"]
    assert f"nothing came ({done.state}: {done.said})" in reason
    assert world.document["next"] == done.at + WEEK
    for _ in range(5):
        world.look(LOSS)
        world.tick()
    assert len(world.began) == 1
    world.look(LOSS, days=2)
    world.tick()
    world.tick()
    assert len(world.began) == 2


def test_one_that_is_rolled_back_is_an_outcome_with_its_reason(world: World) -> None:
    asked_for(world)
    world.job_ends("releasing")
    world.tick()
    world.release_ends("rolled_back")
    world.tick()
    (done,) = loop.retrainings(world.document)
    assert (done.state, done.said) == ("rolled_back", "version 2: it is rolled_back")
    assert "(rolled_back: version 2: it is rolled_back)" in world.document["decided"]["reason"]


class Pushing:
    """The part of a pipeline that pushes what was trained."""

    def __init__(self, storage: Storage, *, is_live: bool = False) -> None:
        self.storage, self.project, self.is_live = storage, SimpleNamespace(project=MODEL), is_live
        self.pushed: list[int] = []

    def push(self, trained: dict[str, Any]) -> int | None:
        self.pushed.append(trained["version"])
        return None if self.is_live else trained["version"]


def pushed_again(of: Pushing, *refused: str) -> dict[str, Any]:
    return service.pushed_again(of, {"version": 2, "refused": list(refused)})  # type: ignore[arg-type]


def test_what_was_trained_is_pushed_if_its_gate_lets_it_and_it_is_new(world: World) -> None:
    made = pushed_again(asked_for(world) and Pushing(world.storage))
    assert made == {"outcome": "releasing", "version": 2, "said": "version 2 is pushed"}
    assert pushed_again(Pushing(world.storage, is_live=True))["outcome"] == "unchanged"
    assert pushed_again(Pushing(world.storage), "worse", "slower")["said"] == "worse; slower"


def test_what_was_trained_is_not_pushed_where_the_data_turned_out_bad_or_another_is_released(
    world: World,
) -> None:
    asked_for(world)
    world.look(LOSS, STILL)
    of = Pushing(world.storage)
    found = pushed_again(of)
    assert (found["outcome"], of.pushed) == ("refused", [])
    assert "not pushed, since the data are not whole: it stands still" in found["said"]
    world.push()
    found = pushed_again(of)
    assert (found["outcome"], of.pushed) == ("refused", [])
    assert "since version 99 is being released" in found["said"]


def test_without_room_for_a_trial_it_waits_and_says_so(world: World) -> None:
    world.room = "a trial needs 1 CPUs, and 2 of 2 are held"
    asked_for(world)
    assert (world.began, world.document["decided"]["rule"]) == ([], "no room")
    assert world.document["retrainings"] == []
    world.room = ""
    world.tick()
    world.tick()
    assert len(world.began) == 1


def test_what_was_asked_for_is_not_begun_on_data_that_have_become_bad(world: World) -> None:
    world.is_away = True
    asked_for(world)
    assert "nobody answers" in loop.retrainings(world.document)[0].said
    world.look(LOSS, STILL)
    world.is_away = False
    world.tick()
    (done,) = loop.retrainings(world.document)
    assert (done.state, world.began) == ("withdrawn", [])
    assert "it stands still" in done.said


def test_what_was_asked_for_is_not_begun_for_an_alarm_that_is_over(world: World) -> None:
    world.is_away = True
    asked_for(world)
    for _ in range(alarms.QUIET):
        world.look()
    world.is_away = False
    world.tick()
    (done,) = loop.retrainings(world.document)
    assert (done.state, world.began) == ("withdrawn", [])
    assert "no alarm of the live version is open any more" in done.said


def test_what_was_asked_for_is_not_begun_while_the_budget_is_spent(world: World) -> None:
    world.is_away = True
    asked_for(world)
    hold = {"most_replicas": 1, "until": world.now + 3600, "why": "9 EUR are spent"}
    Storage.write_json(world.storage, hold, HOLDS, f"{MODEL}.json")
    world.is_away = False
    world.tick()
    (waits,) = loop.retrainings(world.document)
    assert (waits.said, world.began) == ("not begun yet: 9 EUR are spent", [])
    world.storage.path(HOLDS, f"{MODEL}.json").unlink()
    world.tick()
    assert len(world.began) == 1


def test_what_was_asked_for_waits_for_the_end_of_a_release_and_counts_from_when_it_began(
    world: World,
) -> None:
    world.is_away = True
    asked_for(world)
    world.push()
    world.is_away = False
    world.tick()
    assert world.began == []
    assert "version 99 is being released" in loop.retrainings(world.document)[0].said
    world.release_ends("rolled_back")
    world.now += WEEK / 2
    world.tick()
    world.job_ends("unchanged")
    world.tick()
    assert world.document["next"] == world.began[0][1] + WEEK


def test_an_alarm_of_the_version_before_asks_for_nothing_also_where_its_release_ends_in_between(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.say(replace(SETTINGS, number=5))
    asked_for(world)
    world.job_ends("releasing")
    world.tick()
    outcome = loop.releases.outcome

    def ends(*_: Any) -> dict[str, Any]:
        world.release_ends("champion")
        return outcome(record.read(world.storage, MODEL), 2)

    monkeypatch.setattr(loop.releases, "outcome", ends)
    world.tick()
    assert [each.state for each in loop.retrainings(world.document)] == ["champion"]
    # Nobody has looked at the new version yet.
    assert world.alarms.open is not None


def test_a_damaged_document_of_one_model_hinders_no_other_and_is_told_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    Storage.write_json(world.storage, {"when": 3}, loop.SETTINGS, "a.json")
    asked_for(world)
    assert len(world.began) == 1
    assert len([line for line in caplog.messages if "the loop of a does not go on" in line]) == 1


def test_a_panic_over_one_model_hinders_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.storage.write_json(world.storage.read_json(loop.SETTINGS, f"{MODEL}.json"), loop.SETTINGS, "a.json")
    turn = Loop._turn

    def panics(self: Loop, name: str, settings: Settings) -> None:
        if name == "a":
            raise pl.exceptions.PanicException("at the disco")
        turn(self, name, settings)

    monkeypatch.setattr(Loop, "_turn", panics)
    asked_for(world)
    assert len(world.began) == 1
    assert "the loop of a does not go on (PanicException)" in caplog.text


EVENTS = st.one_of(
    st.tuples(st.just("tick"), st.one_of(st.none(), st.integers(0, 12))),
    st.tuples(
        st.just("look"), st.lists(st.sampled_from([LOSS, DRIFT, STILL, STALE]), unique=True, max_size=2)
    ),
    st.tuples(
        st.just("job"), st.sampled_from(["releasing", "refused", "unchanged", "failed", "killed", "cluster"])
    ),
    st.tuples(st.just("release"), st.sampled_from(["champion", "rolled_back", "inconclusive", "push"])),
    st.tuples(st.just("days"), st.floats(0, 4)),
    st.tuples(st.just("away"), st.booleans()),
)
#: What usually comes after one another, so that something happens.
STORY: list[tuple[str, Any]] = [
    ("look", [LOSS]), ("look", [LOSS]), ("tick", None), ("tick", None), ("job", "refused"), ("tick", None),
]  # fmt: skip


@settings(max_examples=40)
@given(
    st.lists(st.one_of(EVENTS, st.sampled_from(STORY)), max_size=40),
    st.integers(1, 3),
    st.lists(st.integers(0, 14), min_size=12, max_size=12),
)
def test_whatever_happens_and_whoever_is_killed_none_runs_on_bad_data_beside_another_or_too_often(
    events: list[tuple[str, Any]], number: int, crashes: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Crashing(Path(folder)))
        world.say(replace(SETTINGS, number=number))
        does: dict[str, Callable[[Any], None]] = {
            "tick": world.tick,
            "look": lambda found: world.look(*found),
            "job": world.job_ends,
            "release": lambda state: world.push() if state == "push" else world.release_ends(state),
            "days": lambda days: setattr(world, "now", world.now + days * 86_400),
            "away": lambda is_away: setattr(world, "is_away", is_away),
        }
        # A story in which each turn is killed somewhere, and then whatever comes.
        killed = [("tick", crash) for crash in crashes]
        for what, how in (*killed[:2], *STORY[:2], *killed[2:], *events):
            does[what](how)
        times = [at for _, at in world.began]
        assert world.wrong == []
        assert all(later - first >= WEEK - 1e-3 for first, later in zip(times, times[number:], strict=False))
        audit.verify(world.storage)
        # It has not come to a stop: what is asked for again after a time is begun.
        world.is_away = False
        world.job_ends("refused")
        world.release_ends("rolled_back")
        world.tick()
        world.release_ends("rolled_back")
        for _ in range(4):
            world.look(LOSS, days=WEEK)
            world.tick()
            world.tick()
            world.job_ends("refused")
        assert len(world.began) > len(times)
