"""The loop that closes: whether an alarm asks for a retraining, and what became of those that were asked for.

`decide` is a pure function of the alarm that is open, of what the loop has done, and of the time. `Loop` does
what it says; it holds nothing that is not on disk, and may be killed at any moment.

    loop/MODEL.json            what was decided last, the retrainings, when the next may be
    loop/settings/MODEL.json   what the model's project says of it
    loop/jobs/ID.json          what the job of a retraining says of itself (retraining.py)
    loop/jobs/ID.begun         is there once it has begun
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from mlops_ray import audit
from mlops_ray.cluster import meter, releases
from mlops_ray.config import MICROSECONDS, Project, parse_duration
from mlops_ray.data.error_log import DEFECTS
from mlops_ray.errors import ClusterError, ConfigError, Once, safe
from mlops_ray.monitoring import journal
from mlops_ray.monitoring.alarms import QUIET, Alarms, Episode, Finding
from mlops_ray.monitoring.drift import EFFECT_FLOOR
from mlops_ray.pages import lasting
from mlops_ray.policy import label_selector
from mlops_ray.serving import record
from mlops_ray.storage import Storage

FOLDER = "loop"
SETTINGS, JOBS = f"{FOLDER}/settings", f"{FOLDER}/jobs"
FORMAT_VERSION = 1
#: Who did it, in the audit record.
BY = "the loop"
#: What is confirmed by labels begins so (monitoring.figures); an estimate is no proof, and never asks.
REALISED = "realised "
#: Bytes of the journal's end that hold the last looks, of a model with hundreds of columns.
MOST_BYTES = 4 * 2**20
#: Retrainings that are kept to be read back, if no more are needed to count.
KEPT = 100

Document = dict[str, Any]
#: What a project can ask by, in words.
ASKING = {"performance": "a loss that labels show", "drift": "a harmful move of inputs"}
#: How a state is told in the audit record; all others are an end.
TOLD = {"asked": "retraining asked", "running": "retraining started", "releasing": "retraining pushed"}
#: Sentences, which may quote rows: they stand in the loop's own documents, and never in the audit record.
QUOTING = frozenset({"reason", "said", "evidence"})

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What a project says: its file, what asks for a retraining, and how many may be in so many seconds.

    `cpus` are what one trial needs, `selector` the labels of nodes that may see the rows, `labels` those
    that trials want besides.
    """

    file: str
    when: tuple[str, ...]
    number: int
    per_s: float
    cpus: float
    selector: Mapping[str, str]
    labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, project: Project) -> "Settings | None":
        """Those of a project; `None` where it asks for no retraining. Raises `ConfigError` without a file."""
        retrain = project.monitoring.retrain
        if retrain is None:
            return None
        if project.file is None:
            raise ConfigError("monitoring.retrain: a job reads the project's file, and this one has none")
        number, _, per = retrain.at_most.partition("/")
        return cls(
            str(Path(project.file).absolute()),
            retrain.when,
            int(number),
            parse_duration(per) / MICROSECONDS["s"],
            project.training.search.resources.cpu,
            label_selector(project.policies),
            project.training.search.resources.labels,
        )


@dataclass(frozen=True)
class Retraining:
    """One that was asked for, or begun, `at` a time (seconds since the epoch): why, and what became of it.

    `id` is that of its Ray job; `said` what the job, or the release of the `version`, said last. It is
    `asked`, `running`, `releasing`, and ends as `champion`, or as `refused` by its gate, `rolled_back`,
    `inconclusive`, `unchanged` (there was nothing new to learn), `failed`, `withdrawn` (it was not begun).
    """

    id: str
    at: float
    reason: str
    state: str = "asked"
    version: int | None = None
    said: str = ""
    ended: float | None = None


@dataclass(frozen=True)
class Seen:
    """What is known of a live version: its open alarm, the looks at it, oldest first, as the journal says.

    `releasing` says of which version a release is under way, if one is; `held` why nothing is to be spent.
    """

    version: str | None = None
    episode: Episode | None = None
    looks: Sequence[Mapping[str, Any]] = ()
    releasing: str | None = None
    held: str = ""


@dataclass(frozen=True)
class Decision:
    """Whether to train again, by which `rule`, and why in a sentence; `evidence` is what the alarm found.

    Refused is what data forbid that are not whole; what waits may come about by itself.
    """

    what: Literal["retrain", "wait", "refuse"]
    rule: str
    reason: str
    evidence: tuple[dict[str, Any], ...] = ()


# ---------------------------------------------------------------- what to do


def decide(seen: Seen, past: Sequence[Retraining], settings: Settings, now: float) -> Decision:
    """Whether the live version is to be trained again now.

    It is where labels show that it has become worse, or where inputs have moved by which it goes, and a later
    look has not taken that back; never where one of the last looks saw a fault of the data.
    """
    if going := under_way(past):
        return Decision("wait", "running", f"the retraining of {when(going.at)} goes on")
    if not is_of_live(seen):
        return Decision("wait", "quiet", "no alarm of the live version is open")
    assert seen.episode is not None
    found = tuple({"about": about, **what} for about, what in seen.episode.ranked)
    if seen.releasing is not None:
        return Decision("wait", "release", f"version {seen.releasing} is being released", found)
    if broken := faults(seen):
        return Decision("refuse", "data", f"the data are not whole: {'; '.join(broken)}", found)
    asking = causes(seen, settings.when)
    if not asking:
        wanted = " or ".join(ASKING[kind] for kind in settings.when) or "nothing"
        said = f"the alarm is of nothing that asks for a retraining, as {wanted} does"
        return Decision("wait", "no cause", said, found)
    because = "; ".join(what["evidence"] for what in asking)
    if not any(look["at"] > max(what["since"] for what in asking) for look in seen.looks):
        return Decision("wait", "unconfirmed", f"the next look is to confirm it: {because}", found)
    if seen.held:
        return Decision("wait", "budget", seen.held, found)
    if (due := next_at(past, settings, now)) > now:
        return Decision("wait", "too soon", _not_before(due, past, settings), found)
    return Decision("retrain", "cause", because, found)


def is_of_live(seen: Seen) -> bool:
    """Whether an alarm is open, and of the version that is live: one of another is as good as over."""
    return seen.episode is not None and seen.episode.version == seen.version


def under_way(past: Sequence[Retraining]) -> Retraining | None:
    """The retraining that has not ended."""
    return next((last for last in past[-1:] if last.ended is None), None)


def faults(seen: Seen) -> list[str]:
    """What is wrong with the data, in sentences: what one of the last looks saw, as many as end an alarm.

    Where there were fewer, what the alarm found of it stands.
    """
    recent = seen.looks[-QUIET:]
    told = {each["about"]: str(each["evidence"]) for look in recent for each in _broken(look)}
    if len(recent) < QUIET and seen.episode is not None:
        told |= {about: what["evidence"] for about, what in seen.episode.ranked if what["kind"] == "data"}
    return list(told.values())


def _broken(look: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    return (each for each in look["findings"] if each["kind"] == "data" and Finding(**each).differs)


def causes(seen: Seen, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """What the alarm found that a retraining may mend, and that the newest look which asked it still sees.

    That is a loss by labels, and a move of inputs that does more harm, weighed by what the model makes of the
    column, than what matters of an average one. Predictions that moved, and rows as a whole, are weighed by
    nothing, and ask for nothing by themselves.
    """
    asking = []
    for about, what in seen.episode.ranked if seen.episode else ():
        is_loss = what["kind"] == "performance" and about.startswith(REALISED)
        is_harm = what["kind"] == "input" and what["harm"] > EFFECT_FLOOR
        if ((is_loss and "performance" in kinds) or (is_harm and "drift" in kinds)) and _stands(about, seen):
            asking.append(what)
    return asking


def _stands(about: str, seen: Seen) -> bool:
    asked = (each for look in reversed(seen.looks) for each in look["findings"] if each["about"] == about)
    return next((Finding(**each).differs for each in asked), True)


def next_at(past: Sequence[Retraining], settings: Settings, now: float) -> float:
    """When the next retraining may be, at the earliest; infinite where none is allowed.

    At most so many begin in any time of that length. After one that did not help a share of it is waited: of
    a second one at once no more is to be expected.
    """
    if not settings.number:
        return math.inf
    counted = [each for each in past if each.state != "withdrawn"]
    times, due = sorted(each.at for each in counted), [now]
    if len(times) >= settings.number:
        due.append(times[-settings.number] + settings.per_s)
    if counted and counted[-1].ended is not None and counted[-1].state != "champion":
        due.append(counted[-1].at + settings.per_s / settings.number)
    return max(due)


def _not_before(due: float, past: Sequence[Retraining], settings: Settings) -> str:
    allowed = f"at most {settings.number} in {lasting(settings.per_s)}"
    if due == math.inf:
        return f"{allowed}: none is allowed (monitoring.retrain.at_most)"
    last = next(each for each in reversed(past) if each.state != "withdrawn")
    became = "" if last.state == "champion" else f", of which nothing came ({last.state}: {last.said})"
    return f"the next may be at {when(due)}, {allowed}; the last was of {when(last.at)}{became}"


def when(second: float) -> str:
    """An instant in words, UTC."""
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%SZ}"


# ---------------------------------------------------------------- what is known, and written down


def settle(project: Project, storage: Storage) -> bool:
    """Has the loop do as the project file says now; whether that is anything."""
    wanted = Settings.of(project)
    path = storage.path(SETTINGS, f"{project.project}.json")
    if wanted is None:
        path.unlink(missing_ok=True)
        return False
    storage.write_json(asdict(wanted), SETTINGS, path.name)
    return True


def notes(project: Project) -> list[str]:
    """What who starts a service is to know of its loop."""
    date = project.training.validation.test.from_
    if project.monitoring.retrain is None or date is None:
        return []
    return [
        f"a retraining learns nothing of what came after {date} (training.validation.test.from): a share of "
        "the rows, e.g. 20%, moves with them"
    ]


def read(storage: Storage, name: str) -> Document:
    """What the loop did for a model; of one that it never looked at, an empty beginning."""
    empty = {"format": FORMAT_VERSION, "model": name, "decided": None, "next": None, "retrainings": []}
    return empty | {"untold": []} | (storage.read_json(FOLDER, f"{name}.json") or {})


def see(storage: Storage, name: str, now: float) -> Seen:
    """What is known of a model now."""
    # In this order: a wish that is gone has been taken up.
    pushed = [ask.version for ask in record.asked(storage, name) if ask.what == "push"]
    document = record.read(storage, name) or record.new(name)
    champion, challenger = ((document[place] or {}).get("version") for place in ("champion", "challenger"))
    state = storage.read_json(journal.FOLDER, f"{name}.json") or {}
    episode = Alarms.from_json(state["alarms"]).open if state.get("alarms") else None
    looks = journal.read(storage, name, journal.LOOKS, MOST_BYTES) if episode else []
    of_champion = [look for look in looks if look["version"] == champion]
    releasing = next(iter(pushed), challenger)
    return Seen(champion, episode, of_champion, releasing, meter.held(storage, name, now))


def begun(storage: Storage, id: str) -> Path:
    """The file that is there once the job of a retraining has begun; its folder is made."""
    return storage.path(JOBS, f"{id}.begun")


# ---------------------------------------------------------------- doing it


class Jobs(Protocol):
    """Where retrainings run (looper.RayJobs)."""

    def submit(self, id: str, settings: Settings) -> None:
        """Has the job of this id run, once; raises `ClusterError` where nobody takes it."""

    def state(self, id: str) -> str | None:
        """What Ray says of a job: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED; `None` of one unknown."""

    def lacks(self, settings: Settings) -> str:
        """What keeps trials from running, in a sentence; empty where nothing does."""


@dataclass
class Loop:
    """`tick` does what there is to do for every model of a storage; what it waits for is asked next time."""

    storage: Storage
    jobs: Jobs
    clock: Callable[[], float] = time.time
    #: What is wrong, by model.
    _wrong: Once = field(default_factory=Once)

    def tick(self) -> None:
        """Once for every model; what is wrong with one hinders no other."""
        for path in sorted(self.storage.root.joinpath(SETTINGS).glob("[!.]*.json")):
            try:
                found = self.storage.read_json(SETTINGS, path.name)
                if found is not None:
                    self._turn(path.stem, Settings(**found | {"when": tuple(found["when"])}))
                self._wrong.over(path.stem)
            except DEFECTS as error:  # the next turn tries again
                if self._wrong.is_news(path.stem, said := safe(error)):
                    logger.error("the loop of %s does not go on (%s)", path.stem, said)

    def _turn(self, name: str, settings: Settings) -> None:
        document = self._told(read(self.storage, name))
        if (going := under_way(retrainings(document))) is not None:
            after = self._after(name, going, settings)
            if going.state == "asked" != after.state:
                # Where it waited for somebody to take it: what is counted is when it began.
                after = replace(after, at=self.clock())
            document = self._told(self._write(_moved(document, after), document))
        # What is seen may have changed by what has ended.
        past, now = retrainings(document), self.clock()
        seen = see(self.storage, name, now)
        decision = decide(seen, past, settings, now)
        if decision.what == "retrain" and (lack := self.jobs.lacks(settings)):
            decision = replace(decision, what="wait", rule="no room", reason=lack)
        decided = _decided(document, decision, seen, now)
        if decision.what == "retrain":
            decided = _asked(decided, decision, seen, now, most=max(KEPT, settings.number))
        due = next_at(retrainings(decided), settings, now)
        decided |= {"next": due if now < due < math.inf else None}
        # Before anything follows from it: whoever comes after finds the job by its id.
        self._told(self._write(decided, document))

    def _after(self, name: str, going: Retraining, settings: Settings) -> Retraining:
        """A retraining a moment later; the same where nothing has happened."""
        if going.state == "releasing":
            return self._released(name, going)
        # In this order: a job that has ended has said what it had to say.
        state = self.jobs.state(going.id)
        told = self.storage.read_json(JOBS, f"{going.id}.json") or {}
        if "outcome" in told:
            return self._ended(going, told)
        if state is None and not begun(self.storage, going.id).exists():
            return self._submitted(name, going, settings)
        if state in ("PENDING", "RUNNING"):
            return replace(going, state="running", said=told.get("said", state.lower()))
        lost = "the cluster that it ran on has stopped" if state is None else f"Ray says {state}, see its log"
        said = f"the job did not come to its end: {lost}"
        return replace(going, state="failed", said=said, ended=self.clock())

    def _submitted(self, name: str, going: Retraining, settings: Settings) -> Retraining:
        seen = see(self.storage, name, self.clock())
        if seen.releasing is not None:
            return replace(going, said=f"not begun yet: version {seen.releasing} is being released")
        if seen.held:
            return replace(going, said=f"not begun yet: {seen.held}")
        # It may have waited for long: what it was asked for by may be over.
        why = [] if is_of_live(seen) else ["no alarm of the live version is open any more"]
        if why := why or faults(seen):
            said = f"not begun: {'; '.join(why)}"
            return replace(going, state="withdrawn", said=said, ended=self.clock())
        try:
            self.jobs.submit(going.id, settings)
        except ClusterError as error:
            return replace(going, said=f"not begun yet: {error}")
        return replace(going, state="running", said="submitted")

    def _ended(self, going: Retraining, said: Mapping[str, Any]) -> Retraining:
        """A retraining whose job has ended; of a version that it pushed the release tells the rest."""
        found = replace(going, version=said.get("version"), said=said["said"], state=said["outcome"])
        return found if found.state == "releasing" else replace(found, ended=self.clock())

    def _released(self, name: str, going: Retraining) -> Retraining:
        assert going.version is not None
        # In this order: a wish that is gone has been taken up.
        waits = any(ask.version == str(going.version) for ask in record.asked(self.storage, name))
        found = releases.outcome(record.read(self.storage, name) or record.new(name), going.version)
        if waits or found["state"] in releases.GOING_ON:
            return going
        # Who is retired by now has been champion.
        state = "champion" if found["state"] in ("champion", "retired") else found["state"]
        state = "failed" if state == "unknown" else state
        said = (
            f"version {going.version}: {found['reason']}" if found["reason"] else f"version {going.version}"
        )
        return replace(going, state=state, said=said, ended=self.clock())

    def _write(self, document: Document, before: Document) -> Document:
        if document != before:
            self.storage.write_json(document, FOLDER, f"{document['model']}.json")
        return document

    def _told(self, document: Document) -> Document:
        """Has the audit record hear of what it has not heard of; a kill in between tells it twice."""
        for told in document["untold"]:
            audit.append(self.storage, told["what"], BY, told["about"])
        return self._write(document | {"untold": []}, document)


def retrainings(document: Document) -> list[Retraining]:
    """Those of a document, oldest first."""
    return [Retraining(**each) for each in document["retrainings"]]


def _moved(document: Document, after: Retraining) -> Document:
    """The document with its last retraining as it is now; the audit record is to hear of another state."""
    *others, before = document["retrainings"]
    news = []
    if before["state"] != after.state:
        news.append(_news(document, TOLD.get(after.state, "retraining ended"), asdict(after)))
    untold = [*document["untold"], *news]
    return document | {"retrainings": [*others, asdict(after)], "untold": untold}


def _decided(document: Document, decision: Decision, seen: Seen, now: float) -> Document:
    """The document with a decision; the audit record is to hear of one that differs from the last."""
    opened = seen.episode.opened if seen.episode else None
    told = {"version": seen.version, "opened": opened, **asdict(decision)}
    last = document["decided"] or {}
    is_new = any(last.get(key) != told[key] for key in ("version", "opened", "what", "rule"))
    said = told | {"since": now if is_new else last["since"]}
    document = document | {"decided": said | {"evidence": list(decision.evidence)}}
    if is_new and decision.evidence and decision.what != "retrain":
        what = {"refuse": "retraining refused", "wait": "retraining waits"}[decision.what]
        return document | {"untold": [*document["untold"], _news(document, what, document["decided"])]}
    return document


def _asked(document: Document, decision: Decision, seen: Seen, now: float, *, most: int) -> Document:
    """The document with a retraining more."""
    id = f"retrain-{document['model']}-{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%S%f}"
    made = asdict(Retraining(id, now, decision.reason))
    kept = [*document["retrainings"], made][-most:]
    evidence = list(decision.evidence)
    about = made | {"rule": decision.rule, "of_version": seen.version, "evidence": evidence}
    untold = [*document["untold"], _news(document, TOLD["asked"], about)]
    return document | {"retrainings": kept, "untold": untold}


def _news(document: Document, what: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """What the audit record is to hear: by which rule, what was found to differ, how much, and since when."""
    evidence = [_unquoting(each) for each in about.get("evidence", ())]
    told = {"model": document["model"], **_unquoting(about)}
    return {"what": what, "about": told | ({"evidence": evidence} if evidence else {})}


def _unquoting(about: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in about.items() if name not in QUOTING}
