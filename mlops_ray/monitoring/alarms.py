"""Alarms within a budget: what a look may spend, when an episode opens, and when it is over.

The budget is an expected number: of a model that does not drift at most so many false episodes in a period.
A look that comes so long after the last one spends that share of it, whatever it finds; all tests of the look
share what it spends (`drift.holm`). So the expected number of looks that find what is not there is at most
the budget, however the looks depend on each other, and an episode opens with a look.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from mlops_ray.monitoring.drift import Drift

#: An episode is over after so many looks in a row in which nothing differs, at this level.
QUIET, QUIET_LEVEL = 2, 0.05
#: Looks and episodes that are kept to be read back.
MOST_LOOKS, MOST_EPISODES = 5_000, 500


@dataclass(frozen=True)
class Budget:
    """At most `most` false episodes are expected in `per_s` seconds."""

    most: float
    per_s: float

    def share(self, seconds: float) -> float:
        """The probability that a look may spend that comes so long after the last one.

        >>> Budget(1.0, 90 * 86_400).share(86_400) == 1 / 90
        True
        """
        return min(1.0, self.most * max(seconds, 0.0) / self.per_s)


@dataclass(frozen=True)
class Look:
    """What was tested at a time, and what it spent: columns with their p-values, adjusted for each other."""

    at: float
    spent: float
    tests: tuple[tuple[str, float], ...]
    found: tuple[str, ...] = ()

    def to_json(self) -> list[Any]:
        """Plain data that `from_json` reads again."""
        return [self.at, self.spent, [list(test) for test in self.tests], list(self.found)]

    @classmethod
    def from_json(cls, data: list[Any]) -> Self:
        """The look that `to_json` wrote."""
        at, spent, tests, found = data
        return cls(at, spent, tuple((name, p) for name, p in tests), tuple(found))


@dataclass
class Episode:
    """What goes on from `opened` until `resolved`: the columns that were found, with when they were first."""

    opened: float
    columns: dict[str, float] = field(default_factory=dict)
    resolved: float | None = None
    quiet: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads again."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The episode that `to_json` wrote."""
        return cls(**data)


@dataclass
class Alarms:
    """The looks at one version and the episodes that came of them, oldest first; at most one is open."""

    since: float
    looks: list[Look] = field(default_factory=list)
    episodes: list[Episode] = field(default_factory=list)

    @property
    def open(self) -> Episode | None:
        """The episode that goes on."""
        return next((last for last in self.episodes[-1:] if last.resolved is None), None)

    def share(self, now: float, budget: Budget) -> float:
        """What a look may spend now."""
        return budget.share(now - (self.looks[-1].at if self.looks else self.since))

    def look(self, now: float, spent: float, drifts: Iterable[Drift]) -> Episode | None:
        """Takes in what a look found; the episode that it opened, if it did."""
        tested = [drift for drift in drifts if drift.p_holm is not None]
        found = [drift.column for drift in tested if drift.drifted]
        tests = tuple((drift.column, drift.p_holm or 0.0) for drift in tested)
        self.looks = [*self.looks, Look(now, spent, tests, tuple(found))][-MOST_LOOKS:]
        going = self.open
        if going is None:
            if not found:
                return None
            self.episodes = [*self.episodes, Episode(now, dict.fromkeys(found, now))][-MOST_EPISODES:]
            return self.episodes[-1]
        going.columns = dict.fromkeys(found, now) | going.columns
        differs = any(drift.differs and (drift.p_holm or 0.0) <= QUIET_LEVEL for drift in tested)
        # A look that tested nothing tells nothing.
        going.quiet = 0 if differs else going.quiet + bool(tested)
        if going.quiet >= QUIET:
            going.resolved = now
        return None

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads again."""
        looks, episodes = ([each.to_json() for each in many] for many in (self.looks, self.episodes))
        return {"since": self.since, "looks": looks, "episodes": episodes}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The alarms that `to_json` wrote."""
        looks = [Look.from_json(look) for look in data["looks"]]
        return cls(data["since"], looks, [Episode.from_json(episode) for episode in data["episodes"]])
