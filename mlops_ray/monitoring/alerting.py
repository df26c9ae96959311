"""Tells people of troubles, over the routes of all projects of a storage: one process does, the monitor.

    alerts/told.json   what each route has said of which trouble, and the message that is on its way

A message is on disk before it is sent, and what it says counts as said after it was taken: a process that is
killed between sends the same again, and nothing is lost. One that is not taken is tried for as long as it
takes, with growing pauses, and holds up neither other routes nor the monitor.
"""

import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import IO, Any

from mlops_ray.cost import holds
from mlops_ray.data import prediction_log
from mlops_ray.data.error_log import DEFECTS
from mlops_ray.errors import Once, StorageError, safe
from mlops_ray.monitoring import alerts
from mlops_ray.monitoring.alerts import Seen, Told, Trouble
from mlops_ray.monitoring.looks import LOOP, RELEASES, SETTINGS
from mlops_ray.monitoring.sending import Route, is_of_content, reason, routes, send
from mlops_ray.storage import PRIVATE, Storage, digest, locked

FOLDER, TOLD, LOCK = "alerts", "told.json", ".lock"
FORMAT_VERSION = 1
#: Where people look, written by cluster.service.
ADDRESS = "address.json"
#: Of a project that was deployed before it said so.
ALLOWED_ERRORS = 0.001
#: Pauses between two tries: a receiver that restarts is there again within seconds, one that is away for a
#: night is not asked a thousand times.
LEAST_PAUSE_S, MOST_PAUSE_S = 1.0, 600.0
#: Routes that are slow at the same time.
WORKERS = 8

logger = logging.getLogger(__name__)


@dataclass
class _Line:
    """A route at work, since it was first there.

    `told` is what it has said; `pending` is on its way, and when that was taken, `after` is told.
    """

    route: Route
    since: float
    told: dict[str, Told] = field(default_factory=dict)
    pending: dict[str, Any] | None = None
    after: dict[str, Told] = field(default_factory=dict)
    #: Not kept on disk.
    models: frozenset[str] = frozenset()
    news_since: float | None = None
    going: Future[None] | None = None
    again_at: float = 0.0
    pause_s: float = 0.0
    #: What it says was refused; without what was found it may not be.
    is_brief: bool = False

    def to_json(self) -> dict[str, Any]:
        told, after = ({id: list(what) for id, what in each.items()} for each in (self.told, self.after))
        return {"since": self.since, "told": told, "pending": self.pending, "after": after}

    @classmethod
    def from_json(cls, route: Route, data: Mapping[str, Any]) -> "_Line":
        return cls(route, data["since"], _told(data["told"]), data["pending"], _told(data["after"]))


@dataclass
class Alerting:
    """`tick` does what there is to do, and waits for nobody."""

    storage: Storage
    clock: Callable[[], float] = time.time
    _counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    _mine: IO[str] | None = None
    _lines: dict[str, _Line] = field(default_factory=dict)
    #: Of each model, what was lost of the prediction log when that was last told.
    _lost: dict[str, int] = field(default_factory=dict)
    #: Of each model, troubles with errors and losses, which nobody else remembers.
    _kept: dict[str, list[Trouble]] = field(default_factory=dict)
    #: Of each model, why nothing is known of it.
    _unknown: Once = field(default_factory=Once)
    _sending: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(WORKERS, "alerts"))

    def tick(self, seen: Iterable[Seen]) -> None:
        """Takes up what came of messages, and sends what is due; a second process does nothing."""
        if self._mine is None:
            mine = locked(self.storage.path(FOLDER, LOCK))
            if mine is None:
                return
            self._read()
            self._mine = mine
        now = self.clock()
        settings = self._settings()
        self._open_lines(settings, now)
        known = {each.model: each for each in seen}
        troubles = []
        for model, said in settings.items():
            allowed = said.get("error_rate", ALLOWED_ERRORS)
            try:
                troubles += self._troubles(known.get(model, Seen(model)), allowed, now)
                self._unknown.over(model)
            except DEFECTS as error:  # what is wrong with one document hides no other model
                if self._unknown.is_news(model, why := safe(error)):
                    logger.error("what is wrong with %s is not known (%s)", model, why)
        for line in self._lines.values():
            self._tend(line, [trouble for trouble in troubles if trouble.model in line.models], now)

    def counted(self, model: str) -> list[tuple[str, str, int]]:
        """How many messages of a model were `sent` and tries `failed`, by route."""
        # Another thread may count meanwhile.
        counts = list(self._counts.items())
        return [(kind, outcome, count) for (of, kind, outcome), count in counts if of == model]

    def close(self) -> None:
        """Ends; what is on its way is sent again by who comes next."""
        self._sending.shutdown(wait=False, cancel_futures=True)
        if self._mine is not None:
            self._mine.close()

    # ------------------------------------------------------------ what is wrong

    def _troubles(self, seen: Seen, allowed: float, now: float) -> list[Trouble]:
        release = self._document(RELEASES, f"{seen.model}.json")
        version = str((release.get("champion") or {}).get("version", ""))
        own, lost = self._own(seen, version, allowed, now)
        if lost != self._lost.get(seen.model) or _ends(own) != _ends(self._kept.get(seen.model, [])):
            self._kept[seen.model], self._lost[seen.model] = own, lost
            self._write()
        self._kept[seen.model] = own
        history = release.get("history", [])
        trained = self._document(LOOP, f"{seen.model}.json").get("retrainings", [])
        told = (
            alerts.of_release(seen.model, history),
            alerts.of_retrainings(seen.model, trained, history),
            alerts.of_budget(holds.checked(self._document(holds.FOLDER, f"{seen.model}.json")) or {}),
        )
        return [*seen.alarms, *own, *itertools.chain(*told)]

    def _own(self, seen: Seen, version: str, allowed: float, now: float) -> tuple[list[Trouble], int]:
        """Troubles that nobody else remembers, and what was lost of the prediction log when that was told."""
        kept = self._kept.get(seen.model, [])
        going = next((each for each in kept if each.what == "errors" and not each.is_over), None)
        errors = alerts.of_errors(going, seen, version, allowed, now)
        kept = [*(each for each in kept if each is not going), *([errors] if errors else [])]
        lost = prediction_log.lost(self.storage, seen.model)
        before = self._lost.get(seen.model, lost)
        losses = alerts.of_losses(kept, seen.model, version, lost, before, now)
        own = [*kept, *([losses] if losses else [])][-alerts.MOST_KEPT :]
        return own, lost if losses else before

    # ------------------------------------------------------------ what is said

    def _tend(self, line: _Line, troubles: Sequence[Trouble], now: float) -> None:
        # A clock that was wrong, and has been set back, silences nobody until then.
        line.since, line.again_at = min(line.since, now), min(line.again_at, now + MOST_PAUSE_S)
        self._heard(line, now)
        if line.pending is None:
            self._gather(line, troubles, now)
        if line.pending is not None and line.going is None and now >= line.again_at:
            message = alerts.brief(line.pending) if line.is_brief else line.pending
            line.going = self._sending.submit(send, line.route, message)

    def _gather(self, line: _Line, troubles: Sequence[Trouble], now: float) -> None:
        """Makes the next message, once its news have waited for others."""
        news = alerts.news(troubles, line.told, line.since, now)
        if not news:
            line.news_since = None
            return
        line.news_since = min(now, line.news_since or now)
        if now - line.news_since >= alerts.GROUP_WAIT_S:
            base = self._document(ADDRESS).get("url", "")
            line.pending = alerts.message(news, base, now)
            line.after, line.news_since = alerts.said(news, line.told, troubles, now), None
            self._write()

    def _heard(self, line: _Line, now: float) -> None:
        """Takes up what came of a message."""
        if line.going is None or not line.going.done() or line.pending is None:
            return
        error, models = line.going.exception(), {alert["model"] for alert in line.pending["alerts"]}
        line.going = None
        line.is_brief = error is not None and is_of_content(error) and not line.is_brief
        self._counts.update((model, line.route.kind, "failed" if error else "sent") for model in models)
        if error is not None:
            if not line.pause_s:
                said = reason(error) if isinstance(error, Exception) else type(error).__name__
                logger.error(
                    "alerts by %s are not taken (%s); tried again until they are", line.route.kind, said
                )
            line.pause_s = min(max(2 * line.pause_s, LEAST_PAUSE_S), MOST_PAUSE_S)
            line.again_at = now + line.pause_s
            return
        if line.pause_s:
            logger.warning("alerts by %s are taken again", line.route.kind)
        line.pending, line.told, line.pause_s = None, line.after, 0.0
        self._write()

    # ------------------------------------------------------------ what is on disk

    def _settings(self) -> dict[str, dict[str, Any]]:
        """How each project was deployed (serving.record.Settings); one that is damaged hides no other."""
        names = sorted(path.stem for path in self.storage.root.joinpath(SETTINGS).glob("[!.]*.json"))
        return {name: self._document(SETTINGS, f"{name}.json") for name in names}

    def _document(self, *parts: str) -> dict[str, Any]:
        """An empty one where there is none, or it is damaged, which its owner says."""
        try:
            found = self.storage.read_json(*parts)
        except StorageError:
            return {}
        return found if isinstance(found, dict) else {}

    def _open_lines(self, settings: Mapping[str, Mapping[str, Any]], now: float) -> None:
        """Has a line for each route that a project names, and none for others."""
        models: dict[Route, set[str]] = {}
        for model, said in settings.items():
            for route in routes(said.get("alerts", [])):
                models.setdefault(route, set()).add(model)
        known, lines = dict(self._lines), {}
        for route, names in models.items():
            key = digest([*route])[:16]
            line = lines[key] = known.get(key) or _Line(route, now)
            line.route, line.models = route, frozenset(names)
        self._lines = lines
        if lines.keys() != known.keys():
            self._write()

    def _write(self) -> None:
        """All of it; nobody else may read it: what is pending says what the page says, which wants a key."""
        document = {
            "format": FORMAT_VERSION,
            "lines": {key: line.to_json() for key, line in self._lines.items()},
            "lost": self._lost,
            "kept": {model: list(map(asdict, troubles)) for model, troubles in self._kept.items()},
        }
        self.storage.write_json(document, FOLDER, TOLD, mode=PRIVATE)

    def _read(self) -> None:
        """What was on disk; a damaged document is set aside with a word, and what goes on is told again."""
        try:
            document = self.storage.read_json(FOLDER, TOLD)
            if document is None:
                return
            if document["format"] != FORMAT_VERSION:
                raise ValueError
            unknown = Route("log")
            lines = {key: _Line.from_json(unknown, line) for key, line in document["lines"].items()}
            kept = {model: list(map(Trouble.from_json, each)) for model, each in document["kept"].items()}
            lost = {model: int(rows) for model, rows in document["lost"].items()}
        except (StorageError, AttributeError, KeyError, TypeError, ValueError) as error:
            path = self.storage.root / FOLDER / TOLD
            logger.error("%s cannot be read (%s); what goes on is told again", path, type(error).__name__)
            path.replace(path.with_suffix(".damaged"))
            return
        self._lines, self._kept, self._lost = lines, kept, lost


def _ends(troubles: Iterable[Trouble]) -> list[tuple[str, float | None]]:
    return [(trouble.id, trouble.until) for trouble in troubles]


def _told(data: Mapping[str, Sequence[Any]]) -> dict[str, Told]:
    return {id: Told(tuple(about), *rest) for id, (about, *rest) in data.items()}
