"""What the monitor knows of a model: the merged counts of all replicas, by version and window.

Plain state: deltas in, documents out, the time as an argument. Memory grows with columns and versions, both
bounded, never with rows.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from mlops_ray.data.counts import REQUEST_US, Counts, Histogram, Traffic
from mlops_ray.monitoring.alarms import Alarms, Budget
from mlops_ray.monitoring.deltas import Tally
from mlops_ray.monitoring.drift import MIN_ROWS
from mlops_ray.monitoring.sides import Side

FORMAT_VERSION = 2
#: Minutes of traffic that the page draws; of longer ago it has hours.
MINUTES, HOUR_S = 120, 3600
#: Versions of one model whose counts are kept: the newest that had traffic.
MAX_VERSIONS = 20
#: Seconds after which a silent sender is forgotten; a living one repeats what was not acknowledged every few
#: seconds.
FORGET_SOURCE_S = 86_400.0


@dataclass
class Window:
    """Counts of the rows answered since an instant (seconds since the epoch); `until` when it has closed.

    `invalid` are the values that failed a check meanwhile, by (column, rule).
    """

    since: float
    counts: Counts
    until: float | None = None
    invalid: Counter[tuple[str, str]] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        ends = {"since": self.since, "until": self.until}
        return {**ends, "counts": self.counts.to_json(), "invalid": listed(self.invalid)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        # Earlier documents do not say what was invalid.
        invalid = counter(data.get("invalid", []))
        return cls(data["since"], Counts.from_json(data["counts"]), data["until"], invalid)


@dataclass
class Closed:
    """A window of a version that has closed, and how often a look at it has failed."""

    version: str
    since: float
    until: float
    counts: Counts
    tries: int = 0
    invalid: Counter[tuple[str, str]] = field(default_factory=Counter)

    def to_json(self) -> list[Any]:
        counts, invalid = self.counts.to_json(), listed(self.invalid)
        return [self.version, self.since, self.until, counts, self.tries, invalid]

    @classmethod
    def from_json(cls, data: list[Any]) -> Self:
        version, since, until, counts, tries, *more = data
        # Earlier documents do not say what was invalid.
        invalid = counter(more[0]) if more else Counter()
        return cls(version, since, until, Counts.from_json(counts), tries, invalid)


class Outlook(NamedTuple):
    """What a look has to know of a model: its budget, the last look, and how fresh its sources must be."""

    model: str
    budget: Budget
    looked_at: float
    #: How old the newest row of a source may be, in seconds, where the project says so.
    fresh_s: Mapping[str, float] = MappingProxyType({})


@dataclass
class Minute:
    """The traffic of a minute or of an hour: requests, those answered with 4xx and 5xx, microseconds each.

    Of an hour also `keys`, the rows that were answered, by the name of the key that asked.
    """

    at: int
    requests: int = 0
    refused: int = 0
    failed: int = 0
    request_us: Histogram = field(default_factory=lambda: Histogram.empty(REQUEST_US))
    keys: Counter[str] = field(default_factory=Counter)

    def add(self, traffic: Traffic) -> None:
        """Adds what a delta counted."""
        self.requests += traffic.requests.total()
        self.refused += _with_status(traffic, "4")
        self.failed += _with_status(traffic, "5")
        self.request_us.merge(traffic.request_us)

    def to_json(self) -> list[Any]:
        counts = self.requests, self.refused, self.failed
        return [self.at, *counts, self.request_us.cells, self.request_us.total, dict(self.keys)]

    def entry(self, version: str) -> dict[str, Any]:
        """An hour as the journal of traffic has it."""
        counts = {"requests": self.requests, "refused": self.refused, "failed": self.failed}
        times = {"cells": self.request_us.cells, "total": self.request_us.total}
        ends = {"version": version, "since": self.at, "until": self.at + HOUR_S}
        return {**ends, **counts, **times, "keys": dict(self.keys)}

    @classmethod
    def from_json(cls, data: list[Any]) -> Self:
        at, requests, refused, failed, cells, total, *more = data
        # Earlier documents do not say who asked.
        keys = Counter(more[0]) if more else Counter()
        return cls(at, requests, refused, failed, Histogram(REQUEST_US, list(cells), total), keys)


@dataclass
class Watched:
    """One version: all its traffic, the window that is open, the last that closed, the latest minutes."""

    traffic: Traffic
    window: Window
    last: Window | None = None
    rows: int = 0
    minutes: OrderedDict[int, Minute] = field(default_factory=OrderedDict)
    #: The hour that goes on, and those that are over and not in the journal yet.
    hours: list[Minute] = field(default_factory=list)

    def add(self, tally: Tally, now: float) -> None:
        """Adds a tally; one of other cells begins a window of its own."""
        self.traffic.merge(tally.traffic)
        self._minute(now).add(tally.traffic)
        hour = self._hour(now)
        hour.add(tally.traffic)
        hour.keys.update(tally.keys)
        if self.window.counts.specs != tally.counts.specs:
            self.window, self.last = Window(now, Counts.empty(tally.counts.specs)), None
        self.window.counts.merge(tally.counts)
        self.window.invalid.update(tally.traffic.invalid)
        self.rows += tally.counts.rows

    def close(self, now: float, window_s: float) -> Window | None:
        """The window that has closed now: after its time, and with at least `MIN_ROWS` rows."""
        if now - self.window.since < window_s or self.window.counts.rows < MIN_ROWS:
            return None
        self.window.until, self.last = now, self.window
        self.window = Window(now, Counts.empty(self.window.counts.specs))
        return self.last

    def judged(self) -> Window:
        """The window that says something: the open one from `MIN_ROWS` rows on, before that the last."""
        return self.last if self.last is not None and self.window.counts.rows < MIN_ROWS else self.window

    def _minute(self, now: float) -> Minute:
        at = int(now // 60) * 60
        minute = self.minutes.setdefault(at, Minute(at))
        while len(self.minutes) > MINUTES:
            self.minutes.popitem(last=False)
        return minute

    def _hour(self, now: float) -> Minute:
        at = int(now // HOUR_S) * HOUR_S
        if not self.hours or self.hours[-1].at < at:
            self.hours.append(Minute(at))
        return self.hours[-1]

    def to_json(self) -> dict[str, Any]:
        return {
            "traffic": self.traffic.to_json(),
            "window": self.window.to_json(),
            "last": self.last.to_json() if self.last else None,
            "rows": self.rows,
            "minutes": [minute.to_json() for minute in self.minutes.values()],
            "hours": [hour.to_json() for hour in self.hours],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        minutes = [Minute.from_json(minute) for minute in data["minutes"]]
        return cls(
            Traffic.from_json(data["traffic"]),
            Window.from_json(data["window"]),
            Window.from_json(data["last"]) if data["last"] else None,
            data["rows"],
            OrderedDict((minute.at, minute) for minute in minutes),
            # Earlier documents have none.
            [Minute.from_json(hour) for hour in data.get("hours", [])],
        )


@dataclass
class ModelState:
    """All that is known of a model; `sources` are the senders: last number and when it came.

    `sides` are those of champion and challenger in the latest turn of a release that was heard of.
    `window_s`, `budget` and `fresh_s` are what the latest delta said; `alarms` begin with the first. `unseen`
    are windows that have closed, by version, and were not looked at yet. `quality` is what the last look
    said of the live version's quality.
    """

    model: str
    versions: OrderedDict[str, Watched] = field(default_factory=OrderedDict)
    sources: dict[str, tuple[int, float]] = field(default_factory=dict)
    turn: int = -1
    sides: tuple[Side, Side] | None = None
    window_s: float = 86_400.0
    budget: Budget = field(default_factory=Budget)
    alarms: Alarms | None = None
    unseen: list[Closed] = field(default_factory=list)
    quality: dict[str, Any] = field(default_factory=dict)
    fresh_s: dict[str, float] = field(default_factory=dict)

    def receive(self, delta: dict[str, Any], now: float) -> bool:
        """Closes windows, adds a replica's delta, unless it came before; whether it was new."""
        self.window_s, self.budget = delta["window_s"], Budget(*delta["false_alarms"])
        self.fresh_s = delta.get("fresh_s", {})
        self.alarms = self.alarms or Alarms(now)
        # What comes after a window's time counts in the next.
        self.close(now)
        source, sequence = delta["source"], delta["sequence"]
        new: bool = sequence > self.sources.get(source, (0, now))[0]
        self.sources[source] = (max(sequence, self.sources.get(source, (0, now))[0]), now)
        if new:
            for version, tally in delta["versions"].items():
                self._add(version, Tally.from_json(tally), now)
            for turn, *sides in delta.get("sides", ()):
                self._compare(turn, *map(Side.from_json, sides))
        self.sources = {s: seen for s, seen in self.sources.items() if now - seen[1] < FORGET_SOURCE_S}
        return new

    @property
    def outlook(self) -> Outlook:
        looked_at = self.alarms.looked_at if self.alarms else math.inf
        return Outlook(self.model, self.budget, looked_at, self.fresh_s)

    def close(self, now: float) -> None:
        """Closes the windows whose time is over, once a delta has said how long that is."""
        if self.alarms is None:
            return
        for version, watched in self.versions.items():
            window = watched.close(now, self.window_s)
            if window is not None:
                self.unseen.append(Closed(version, window.since, now, window.counts, invalid=window.invalid))

    def hours(self, now: float) -> list[tuple[str, Minute]]:
        """The hours that are over and not in the journal yet, by version."""
        over = [(version, hour) for version, watched in self.versions.items() for hour in watched.hours]
        return [(version, hour) for version, hour in over if hour.at + HOUR_S <= now]

    def _add(self, version: str, tally: Tally, now: float) -> None:
        if version not in self.versions:
            self.versions[version] = Watched(Traffic(), Window(now, Counts.empty(tally.counts.specs)))
        self.versions[version].add(tally, now)
        self.versions.move_to_end(version)
        while len(self.versions) > MAX_VERSIONS:
            self.versions.popitem(last=False)

    def _compare(self, turn: int, champion: Side, challenger: Side) -> None:
        """Adds what a turn counted; an earlier one has been judged."""
        if turn > self.turn:
            self.turn, self.sides = turn, (champion, challenger)
        elif turn == self.turn and self.sides is not None:
            self.sides[0].merge(champion)
            self.sides[1].merge(challenger)

    def to_json(self) -> dict[str, Any]:
        """The document that lies on disk."""
        return {
            "format": FORMAT_VERSION,
            "model": self.model,
            "sources": {source: list(seen) for source, seen in self.sources.items()},
            "versions": [[version, watched.to_json()] for version, watched in self.versions.items()],
            "turn": self.turn,
            "sides": None if self.sides is None else [side.to_json() for side in self.sides],
            "window_s": self.window_s,
            "false_alarms": [self.budget.most, self.budget.per_s],
            "alarms": self.alarms and self.alarms.to_json(),
            "unseen": [window.to_json() for window in self.unseen],
            "quality": self.quality,
            "fresh_s": self.fresh_s,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        versions = OrderedDict((version, Watched.from_json(watched)) for version, watched in data["versions"])
        sources = {s: (seen[0], seen[1]) for s, seen in data["sources"].items()}
        turn, sides = counted(data)
        state = cls(data["model"], versions, sources, turn, sides)
        # Not in what version 1 of the format wrote.
        if data.get("alarms"):
            state.window_s, state.budget = data["window_s"], Budget(*data["false_alarms"])
            state.alarms = Alarms.from_json(data["alarms"])
            state.quality, state.fresh_s = data["quality"], data.get("fresh_s", {})
            state.unseen = [Closed.from_json(window) for window in data["unseen"]]
        return state


def counted(data: dict[str, Any]) -> tuple[int, tuple[Side, Side] | None]:
    """The turn that a state on disk compares champion and challenger in, and their sides."""
    sides = data.get("sides")
    return data.get("turn", -1), sides and (Side.from_json(sides[0]), Side.from_json(sides[1]))


def listed(invalid: Counter[tuple[str, str]]) -> list[list[Any]]:
    """Counts by column and rule as plain data, which `counter` reads again."""
    return [[*key, count] for key, count in sorted(invalid.items())]


def counter(listed: list[list[Any]]) -> Counter[tuple[str, str]]:
    """Counts by column and rule."""
    return Counter({(column, rule): count for column, rule, count in listed})


def _with_status(traffic: Traffic, first_digit: str) -> int:
    return sum(count for status, count in traffic.requests.items() if status.startswith(first_digit))
