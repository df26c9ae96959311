"""Makes what replicas serve equal to what was pushed: verifies, compares, and tells others.

It holds nothing that is not on disk. What it does next follows from a model's release (release.py), which it
writes before anything else; registry and hooks are told afterwards, again and again until they have heard.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from mlops_ray import audit
from mlops_ray.config import Release
from mlops_ray.data.error_log import DEFECTS
from mlops_ray.errors import MlopsError, NotFoundError, PackageError, StorageError, one_line, safe
from mlops_ray.monitoring import outcomes
from mlops_ray.monitoring.outcomes import Compared, Known
from mlops_ray.monitoring.sides import Side, Verdict, judge
from mlops_ray.monitoring.state import counted
from mlops_ray.schema import Schema
from mlops_ray.serving import heartbeats, hooks, record, release, steps
from mlops_ray.serving.asgi import shown
from mlops_ray.serving.heartbeats import Follower
from mlops_ray.serving.record import Document, Settings
from mlops_ray.serving.steps import Seen, Standing
from mlops_ray.serving.verify import LOAD_S, Verifier, incompatible
from mlops_ray.storage import Storage

#: Where the monitor keeps what replicas count.
MONITOR = "monitor"
#: How often the comparison is looked at.
JUDGE_S = 1.0
#: How often it is looked for labels of what was compared, and how many times as long as the last look took:
#: replicas need the processors.
LABELS_S, REST = 5.0, 9.0
#: Who did it, in the audit record, and what.
BY, TURNED = "the service", "a version changed its state"
#: Replicas that die while they hold a challenger may do so by chance once.
MOST_DEATHS = 1
#: A worker whose node has died ends within a second, each at a moment of its own.
CERTAIN_S = 3.0
#: Pauses between two tries to reach a registry that does not answer.
LEAST_PAUSE_S, MOST_PAUSE_S = 1.0, 60.0

logger = logging.getLogger(__name__)


class Registry(Protocol):
    """What is asked of a registry (registry.Registry)."""

    def stored(self, storage: Storage, name: str, version: int, /) -> tuple[Path, str]: ...

    def set_champion(self, name: str, version: int, /) -> None: ...

    def set_state(self, name: str, version: int, state: str, reason: str = "", /) -> None: ...


@dataclass
class _Telling:
    """The telling of somebody, a turn at a time; where that fails it is tried again, less and less often."""

    going: Future[int] | None = None
    again_at: float = 0.0
    pause_s: float = LEAST_PAUSE_S

    def failed(self, now: float) -> None:
        self.again_at, self.pause_s = now + self.pause_s, min(2 * self.pause_s, MOST_PAUSE_S)


@dataclass
class _Labels:
    """What labels say of a challenger, which was pushed in this turn, as far as they were read."""

    turn: int = -1
    known: Known = field(default_factory=Known)
    going: Future[tuple[Known | BaseException, float]] | None = None
    again_at: float = 0.0
    has_failed: bool = False


@dataclass
class _Work:
    """What goes on for a model beside its release."""

    verifying: Future[dict[str, Any]] | None = None
    #: The turn whose challenger is verified.
    turn: int = -1
    #: A store or a registry that is away refuses nobody.
    verify: _Telling = field(default_factory=_Telling)
    recorded: _Telling = field(default_factory=_Telling)
    #: Whether the audit record is known to have heard of the turn before.
    has_heard: bool = False
    told: _Telling = field(default_factory=_Telling)
    called: _Telling = field(default_factory=_Telling)
    #: In which turn, and since when, replicas are waited for.
    waited_from: tuple[int, float] | None = None
    judged_at: float = 0.0
    labels: _Labels = field(default_factory=_Labels)


@dataclass
class Reconciler:
    """`tick` does what there is to do for every model of a storage, and never waits for anybody."""

    storage: Storage
    registry: Callable[[str], Registry]
    verifier: Verifier
    clock: Callable[[], float] = time.time
    _work: dict[str, _Work] = field(default_factory=dict)
    #: Verifications, and the reading of labels, wait for no hook, and no registry for either.
    _aside: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(8, "verifies"))
    _telling: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(8, "tells"))
    _calling: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(8, "calls"))
    _absent_s: float | None = None

    def tick(self) -> None:
        """Once for every model; what is wrong with one hinders no other."""
        if self._absent_s is None:
            # When a service has been down, who was there before has not died of anything.
            silent_s = heartbeats.silent_s(self.storage)
            self._absent_s = silent_s if heartbeats.DEAD_S < silent_s < math.inf else 0.0
        self._reconcile_all()
        self._absent_s = 0.0
        heartbeats.reconciles(self.storage)

    def _reconcile_all(self) -> None:
        for name in record.names(self.storage):
            try:
                self._reconcile(name, self._work.setdefault(name, _Work()))
            except DEFECTS as error:
                logger.error("the release of %s does not go on", name, exc_info=shown(error))

    def close(self) -> None:
        """Ends what goes on beside; it is begun again by the next one."""
        for executor in (self._aside, self._telling, self._calling):
            executor.shutdown(wait=False, cancel_futures=True)
        self.verifier.close()

    def _reconcile(self, name: str, work: _Work) -> None:
        document = record.read(self.storage, name) or record.new(name)
        if self._absent_s and document["challenger"] is not None:
            document = self._write(document, release.delayed(document, self._absent_s))
        for ask in record.asked(self.storage, name, tidy=True):
            document = self._write(document, release.taken(document, ask, self.clock()))
            record.forget(self.storage, name, ask.id)
        replicas = heartbeats.followers(self.storage, name)
        # Who dies with a whole node is no witness: the one that reconciles is to outlive them.
        dead = [each for each in replicas if not each.is_alive and each.silent_s > CERTAIN_S]
        document = self._buried(document, dead)
        alive = [each for each in replicas if each.is_alive]
        at = release.standing(document)
        if at is not None and at.state == "registered":
            document = self._write(document, self._verified(document, work))
        elif at is not None:
            document = self._write(document, self._stepped(document, at, alive, work))
        self._tell(document, work)

    def _write(self, before: Document, document: Document) -> Document:
        return document if document == before else record.write(self.storage, document)

    # ------------------------------------------------------------ verification

    def _verified(self, document: Document, work: _Work) -> Document:
        """Begins the verification of the challenger, or takes up what came of it."""
        name, challenger, now = document["model"], document["challenger"], self.clock()
        if work.turn == document["turn"] and work.verifying is None and now < work.verify.again_at:
            return document
        if work.verifying is None or work.turn != document["turn"]:
            work.turn = document["turn"]
            work.verifying = self._aside.submit(self._verify, name, document["champion"], challenger)
        if not work.verifying.done():
            return document
        found, work.verifying = work.verifying, None
        try:
            return release.verified(document, found.result(), now)
        except StorageError as error:
            logger.warning("version %s of %s cannot be verified yet: %s", challenger["version"], name, error)
            work.verify.failed(now)
            return document
        except MlopsError as error:
            return release.moved(document, Standing("refused", reason=str(error)), now)
        except Exception as error:  # whatever it was, the champion goes on
            told = challenger["version"], name
            logger.error("version %s of %s cannot be verified", *told, exc_info=shown(error))
            return release.moved(document, Standing("refused", reason=one_line(error)), now)

    def _verify(self, name: str, champion: Document | None, challenger: Document) -> Document:
        """The entry of a registered version; raises where it must not be served."""
        version, how = challenger["version"], Release.model_validate(challenger["release"])
        settings = self._settings(name)
        folder, digest = self.registry(settings.tracking).stored(self.storage, name, int(version))
        entry = self.verifier.verify(self.storage, name, version, folder, digest, settings)
        if champion is not None:
            told = incompatible(Schema.from_json(champion["request"]), Schema.from_json(entry["request"]))
            if told is not None:
                raise PackageError(told)
            if lost := sorted({*champion["outputs"]} - {*entry["outputs"]}):
                raise PackageError(f"callers read {lost[0]!r}, which it does not answer")
            if settings.explains and champion.get("explains") and not entry["explains"]:
                raise PackageError(
                    "callers may ask why (serving.explain: on_request), "
                    f"which the family {entry['family']} cannot tell"
                )
            if how.profit_gate == "refuse" and (told := self._unprofitable(name, champion, version)):
                raise PackageError(told)
        return entry

    def _unprofitable(self, name: str, champion: Document, version: str) -> str:
        """Why a version must not take the champion's place by what it earns; empty where it may."""
        verdict = self.storage.read_json(record.VERDICTS, name, f"{version}.json")
        if verdict is None or verdict["against"] != champion["version"]:
            return (
                f"what it earns beside version {champion['version']} is to be known (release.profit_gate), "
                "and was not worked out: push it again"
            )
        return str(verdict["said"]) if verdict["refused"] else ""

    def _settings(self, name: str) -> Settings:
        found = record.settings(self.storage, name)
        if found is None:
            raise PackageError(f"{name!r} is not deployed here: mlops-ray serve")
        return found

    # ------------------------------------------------------------ steps

    def _stepped(self, document: Document, at: Standing, alive: Sequence[Follower], work: _Work) -> Document:
        """The challenger's next place, where it is time for it."""
        name, challenger, now = document["model"], document["challenger"], self.clock()
        if trouble := _trouble(document["challenger"], alive):
            state: steps.State = "refused" if at.state == "verified" else "rolled_back"
            return release.moved(document, Standing(state, reason=trouble), now)
        is_first = document["champion"] is None
        if at.state == "verified" and not _is_held(document["challenger"], alive):
            return self._waited(document, alive, work)
        if at.state != "verified" and now - work.judged_at < JUDGE_S:
            return document
        settings, work.judged_at = release.settings(document), now
        verdict, requests = self._judged(document, settings, work)
        seen = Seen(now - challenger["at"], requests, verdict.worse, verdict.is_told)
        if at.state != "verified":
            told = {"turn": document["turn"], "requests": requests, "said": verdict.said}
            self.storage.write_json(told, record.SEEN, f"{name}.json")
        following = steps.after(at, seen, settings, is_first=is_first)
        if following == at:
            return document
        return release.moved(document, following, now, verdict.evidence)

    def _waited(self, document: Document, alive: Sequence[Follower], work: _Work) -> Document:
        """For as long as replicas may take to load a version, nothing happens."""
        now, turn = self.clock(), document["turn"]
        if work.waited_from is None or work.waited_from[0] != turn:
            work.waited_from = turn, now
        if now - work.waited_from[1] < LOAD_S:
            return document
        if not alive:
            # Nobody serves, and there is nothing to lose: as where the champion cannot be loaded any more.
            following = steps.after(Standing("verified"), Seen(), release.settings(document), is_first=True)
            return release.moved(document, following, now)
        reason = f"the replicas did not load it within {LOAD_S:.0f} s"
        return release.moved(document, Standing("refused", reason=reason), now)

    def _judged(self, document: Document, settings: Release, work: _Work) -> tuple[Verdict, int]:
        """What is known of the present step, and of how many requests of the challenger."""
        before = document["challenger"]["evidence"]
        state = self.storage.read_json(MONITOR, f"{document['model']}.json") or {}
        turn, sides = counted(state)
        if sides is None or turn != document["turn"]:
            # Labels of the steps before may come all the same.
            sides = Side(""), Side("")
        losses = self._labelled(document, work).steps
        verdict = judge(
            *sides,
            allowed_output=settings.effect,
            before=before,
            losses=losses,
            steps=steps.compared(settings),
        )
        return verdict, sides[1].requests

    def _labelled(self, document: Document, work: _Work) -> Known:
        """What labels say of the challenger's steps so far, as far as it was read; has it read on."""
        turn, now = document["challenger"]["turn"], self.clock()
        if work.labels.turn != turn:
            work.labels = _Labels(turn)
        told = work.labels
        if told.going is None and now >= told.again_at and document["champion"] is not None:
            of = Compared(document["model"], document["champion"], turn, release.pushed_at(document))
            told.going = self._aside.submit(self._read, of, told.known)
        if told.going is None or not told.going.done():
            return told.known
        (found, took_s), told.going = told.going.result(), None
        if isinstance(found, Known):
            told.known = found
        elif not told.has_failed:
            logger.error("the labels of %s are not compared: %s", document["model"], safe(found))
        told.has_failed = not isinstance(found, Known)
        told.again_at = now + max(LABELS_S, REST * took_s)
        return told.known

    def _read(self, of: Compared, before: Known) -> tuple[Known | BaseException, float]:
        """The losses, or why they are not known, and how long it took; whatever is there, releases go on."""
        began = time.monotonic()
        try:
            found: Known | BaseException = outcomes.read(self.storage, of, before)
        except DEFECTS as error:
            found = error
        return found, time.monotonic() - began

    def _buried(self, document: Document, dead: Sequence[Follower]) -> Document:
        """What dead replicas said is taken away; that they held the challenger is told against it."""
        challenger = document["challenger"]
        key = record.key(challenger) if challenger and "digest" in challenger else ""
        held = set() if self._absent_s else {each.id for each in dead if key in each.loaded}
        if challenger and held - {*challenger["dead"]}:
            known = sorted({*challenger["dead"], *held})
            document = self._write(document, document | {"challenger": challenger | {"dead": known}})
        for follower in dead:
            heartbeats.bury(self.storage, document["model"], follower.id)
        return document

    # ------------------------------------------------------------ audit record, registry and hooks

    def _tell(self, document: Document, work: _Work) -> None:
        """Has audit record, registry and hooks told of turns that they have not heard of, in their order."""
        if document["turn"] <= min(document[place] for place in ("recorded", "told", "called")):
            return
        # A rollback waits for nobody: what cannot be recorded now is recorded later.
        recorded = partial(self._recorded, document, work)
        document = self._told_of(document, "recorded", work.recorded, self._telling, recorded)
        settings = record.settings(self.storage, document["model"])
        if settings is not None:
            told = partial(self._told, document["model"], settings)
            document = self._told_of(document, "told", work.told, self._telling, told)
            called = partial(self._called, document["model"], settings)
            self._told_of(document, "called", work.called, self._calling, called)

    def _told_of(
        self,
        document: Document,
        place: str,
        telling: _Telling,
        executor: ThreadPoolExecutor,
        tell: Callable[[dict[str, Any]], int],
    ) -> Document:
        """Takes up what came of the last telling, or begins the next; `place` holds the last turn told."""
        now = self.clock()
        if telling.going is not None and telling.going.done():
            going, telling.going = telling.going, None
            try:
                document = self._write(document, document | {place: going.result()})
                telling.pause_s = LEAST_PAUSE_S
            except Exception as error:  # noqa: BLE001 - who is told waits, the release does not
                who = {"recorded": "the audit record", "told": "the registry"}.get(place, "a hook")
                logger.error("%s is not told of %s yet: %s", who, document["model"], one_line(error))
                telling.failed(now)
        news = [turn for turn in document["history"] if turn["turn"] > document[place]]
        if news and telling.going is None and now >= telling.again_at:
            telling.going = executor.submit(tell, news[0])
        return document

    def _recorded(self, document: Document, work: _Work, turn: dict[str, Any]) -> int:
        about, is_sure = release.told(document, turn), work.has_heard
        work.has_heard = False
        told = (each["about"] for each in audit.entries(self.storage) if each["what"] == TURNED)
        # Who died before that was noted in the release may have told it.
        if is_sure or about not in told:
            audit.append(self.storage, TURNED, BY, about)
        work.has_heard = True
        return int(turn["turn"])

    def _told(self, name: str, settings: Settings, turn: dict[str, Any]) -> int:
        registry, version = self.registry(settings.tracking), int(turn["version"])
        try:
            if turn["state"] == "champion":
                registry.set_champion(name, version)
            else:
                registry.set_state(name, version, turn["state"], turn["reason"])
        except NotFoundError:
            logger.warning("%s has no version %d that could be told %s", name, version, turn["state"])
        return int(turn["turn"])

    def _called(self, name: str, settings: Settings, turn: dict[str, Any]) -> int:
        hooks.call(settings.hooks, {"model": name, **turn})
        return int(turn["turn"])


def _is_held(challenger: dict[str, Any], alive: Sequence[Follower]) -> bool:
    """Whether every replica that lives has the challenger in memory, and there is one."""
    key = record.key(challenger)
    return bool(alive) and all(key in each.loaded for each in alive)


def _trouble(challenger: dict[str, Any], alive: Sequence[Follower]) -> str | None:
    """What replicas tell against the challenger, whatever its answers."""
    for follower in alive:
        # What one said of an earlier push of this version counts no more.
        said = follower.errors.get(record.key(challenger))
        if said and follower.turn > challenger["turn"]:
            return f"a replica cannot load it: {said}"
    deaths = len(challenger["dead"])
    return f"{deaths} replicas died while they held it" if deaths > MOST_DEATHS else None
