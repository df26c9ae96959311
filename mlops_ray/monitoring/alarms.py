"""Alarms within a budget: what a look may spend, when an episode opens, and when it is over.

The budget is an expected number: of a model that does not drift at most so many false episodes in a period.
A look that comes so long after the last one spends that share of it, whatever it finds; all that it asks
shares what it spends (`holm`). So the expected number of looks that find what is not there is at most the
budget, however the looks depend on each other, and an episode opens with a look.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from mlops_ray.monitoring.several import benjamini_hochberg, holm

#: An episode is over after so many looks in a row in which nothing differs, at this level.
QUIET, QUIET_LEVEL = 2, 0.05
#: What is listed in an alarm beside what was found: as much as one in ten of it may be chance.
LISTED = 0.1
#: What chance makes oftener than so is no evidence, however much of the budget is left.
MOST_SHARE = 0.05
#: A part of the budget is left: p-values are right to the last, and what holds is shown to hold by simulation
#: only with room for its noise, the largest of a hundred cells.
SPENT = 0.85
#: Episodes that are kept to be read back.
MOST_EPISODES = 500

#: Kinds that are told before others, and after them.
RANKS = {"data": 0, "joint": 2}
Kind = Literal["data", "input", "prediction", "joint", "performance"]


@dataclass(frozen=True)
class Budget:
    """At most `most` false episodes are expected in `per_s` seconds."""

    most: float = 1.0
    per_s: float = 90 * 86_400.0

    def share(self, seconds: float) -> float:
        """The probability that a look may spend that comes so long after the last one, at most `MOST_SHARE`.

        >>> round(Budget(1.0, 90 * 86_400).share(86_400), 4)
        0.0094
        """
        return min(MOST_SHARE, SPENT * self.most * max(seconds, 0.0) / self.per_s)


@dataclass(frozen=True)
class Finding:
    """What a look asked about a column, or about a metric, and the answer.

    `p` is how likely chance alone makes what was seen, where it is the least of so many `tests`; `p_holm` the
    same, adjusted for all that the look asked. `matters` says whether it would be large enough to matter,
    `harm` orders what was found; `column` is the feature that it is about, where it is one.
    """

    about: str
    kind: Kind
    p: float
    matters: bool
    evidence: str = ""
    harm: float = 0.0
    p_holm: float = 1.0
    tests: int = 1
    column: str = ""

    @property
    def differs(self) -> bool:
        """Whether it keeps a look from being quiet: large enough to matter, and hardly chance."""
        return self.matters and self.p_holm <= QUIET_LEVEL

    @property
    def p_of_tests(self) -> float:
        """`p`, paid for all of its own tests."""
        return min(1.0, self.p * self.tests)


@dataclass(frozen=True)
class Look:
    """What was asked at a time, what it spent, and what of it was `found`; `listed` is likely besides.

    It `is_whole` where nothing waits for another day to be asked.
    """

    at: float
    spent: float
    findings: tuple[Finding, ...]
    found: tuple[str, ...] = ()
    listed: tuple[str, ...] = ()
    is_whole: bool = True

    @property
    def is_quiet(self) -> bool:
        """Whether nothing differs; a look that asked nothing, or not all that is usual, tells nothing."""
        return self.is_whole and bool(self.findings) and not any(finding.differs for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Episode:
    """What goes on from `opened` until `resolved`: what was found, when it was first, as it was last seen.

    `found` maps what a finding is about to `{"since", "kind", "evidence", "harm", "p"}`, the last as adjusted
    for all that the look asked which found it (an earlier document lacks it); `why` says why it was resolved.
    """

    opened: float
    version: str
    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    resolved: float | None = None
    quiet: int = 0
    why: str = ""

    @property
    def ranked(self) -> list[tuple[str, dict[str, Any]]]:
        """What was found: faults of the data first, then by likely harm; rows as a whole say least."""

        def place(item: tuple[str, dict[str, Any]]) -> tuple[int, float]:
            return RANKS.get(item[1]["kind"], 1), -item[1]["harm"]

        return sorted(self.found.items(), key=place)


@dataclass
class Alarms:
    """The episodes of a model, oldest first, of which at most one is open; `looked_at` is the last look."""

    looked_at: float
    episodes: list[Episode] = field(default_factory=list)

    @property
    def open(self) -> Episode | None:
        """The episode that goes on."""
        return next((last for last in self.episodes[-1:] if last.resolved is None), None)

    def take(self, look: Look, version: str) -> Episode | None:
        """Takes in a look at the live version; the episode that it opened, if it did.

        An episode ends with the version that it was about.
        """
        self.looked_at = look.at
        going = self.open
        if going is not None and going.version != version:
            going.why = f"version {version} is live"
            going.resolved, going = look.at, None
        opened = None
        if going is None:
            if not look.found:
                return None
            going = opened = Episode(look.at, version)
            self.episodes = [*self.episodes, going][-MOST_EPISODES:]
        for finding in look.findings:
            before = going.found.get(finding.about)
            if finding.about in look.found:
                going.found[finding.about] = {
                    "since": before["since"] if before is not None else look.at,
                    "kind": finding.kind,
                    "evidence": finding.evidence,
                    "harm": finding.harm,
                    "p": finding.p_holm,
                }
            elif before is not None and finding.matters:
                # It goes on; what is said of it stays that of a look which found it.
                before["harm"] = finding.harm
        if look.is_quiet:
            going.quiet += 1
        elif look.findings and look.is_whole:
            going.quiet = 0
        if going.quiet >= QUIET:
            going.resolved, going.why = look.at, f"{QUIET} looks in a row found no difference"
        return opened

    def to_json(self) -> dict[str, Any]:
        return {"looked_at": self.looked_at, "episodes": [dict(vars(each)) for each in self.episodes]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        return cls(data["looked_at"], [Episode(**episode) for episode in data["episodes"]])


def look(at: float, spent: float, findings: Iterable[Finding], *, is_whole: bool = True) -> Look:
    """The look that asked these, and what it found for what it may spend."""
    asked = list(findings)
    tests = [finding.tests for finding in asked]
    paid = [finding.p_of_tests for finding in asked]
    judged = tuple(
        Finding(**{**vars(finding), "p_holm": p_holm})
        for finding, p_holm in zip(asked, holm([each.p for each in asked], tests), strict=True)
    )
    found = tuple(finding.about for finding in judged if finding.matters and finding.p_holm <= spent)
    likely = [
        finding.about
        for finding, q in zip(asked, benjamini_hochberg(paid), strict=True)
        if finding.matters and q <= LISTED and finding.about not in found
    ]
    return Look(at, spent, judged, found, tuple(likely), is_whole)
