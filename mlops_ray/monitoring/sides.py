"""What became of a version's requests while a release compares it with another, and which of two is worse.

Of each figure the sums by bucket of the routing key (`comparison.Sums`), whatever the number of requests.
They travel and are kept like all counts. Every step of a release is counted apart: as a canary's weight
grows, the challenger's requests are later ones than the champion's, and what changed for both meanwhile would
look like a difference.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import numpy as np

from mlops_ray.monitoring.comparison import BUCKETS, NONE, Evidence, Sums, compare

#: What is compared, and how large a difference is to be found soon: shares of the requests, and answers in
#: standard deviations, less their mean, of those that the version was trained on.
ERRORS, SLOW, OUTPUT = "errors", "slow", "output"
EFFECTS = {ERRORS: 0.02, SLOW: 0.02, OUTPUT: 0.5}


@dataclass
class Side:
    """The figures of one version in one step of a release, which `step` names."""

    step: str
    figures: dict[str, Sums] = field(default_factory=dict)

    def add(self, key: str, figures: dict[str, float]) -> None:
        """Takes in a request of a routing key."""
        at = bucket(key)
        for name, value in figures.items():
            self.figures.setdefault(name, Sums.empty()).add(at, value)

    def merge(self, other: "Side") -> None:
        """Adds what another process counted in the same step."""
        _require_one_step(self, other)
        for name, sums in other.figures.items():
            self.figures.setdefault(name, Sums.empty()).merge(sums)

    @property
    def requests(self) -> int:
        """How many were counted."""
        return int(max((sums.count for sums in self.figures.values()), default=0))

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads again, to the bit; buckets without a request are left out."""
        figures = {}
        for name, sums in self.figures.items():
            at = np.flatnonzero(sums.requests)
            figures[name] = [at.tolist(), *(cells[at].tolist() for cells in vars(sums).values())]
        return {"step": self.step, "figures": figures}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The side that `to_json` wrote."""
        found = cls(data["step"])
        for name, (at, *columns) in data["figures"].items():
            sums = found.figures[name] = Sums.empty()
            for cells, values in zip(vars(sums).values(), columns, strict=True):
                cells[at] = values
        return found


def bucket(key: str) -> int:
    """The bucket of a routing key, the same in every process and for every release."""
    return hashed(key) % BUCKETS


def hashed(key: str, person: bytes = b"") -> int:
    """Eight bytes of a routing key's hash, evenly spread, for each `person` others; not what Python's is."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8, person=person).digest()
    return int.from_bytes(digest, "big")


class Verdict(NamedTuple):
    """In what a challenger is worse, a sentence each, and whether the last step could have told."""

    worse: tuple[str, ...]
    is_told: bool


def judge(steps: Sequence[tuple[Side, Side]], *, allowed_output: float) -> Verdict:
    """What the steps of a release tell so far, each of which has a champion's side and a challenger's.

    Answers may move by `allowed_output` standard deviations. Raises `ValueError` for sides of two steps.
    """
    for sides in steps:
        _require_one_step(*sides)
    requests = sum(challenger.requests for _, challenger in steps)
    found, is_told = [], False
    for name in EFFECTS:
        every = [_compared(name, *sides, allowed_output) for sides in steps]
        told = [evidence for evidence in every if evidence.is_told]
        is_told |= name == ERRORS and every[-1:] == told[-1:] != []
        if told:
            product = math.prod(evidence.e_value for evidence in told)
            evidence = replace(told[-1], e_value=product)
            if evidence.is_worse:
                found.append(_said(name, evidence, requests))
    return Verdict(tuple(found), is_told)


def _compared(name: str, champion: Side, challenger: Side, allowed_output: float) -> Evidence:
    if name not in champion.figures or name not in challenger.figures:
        return NONE
    is_output = name == OUTPUT
    return compare(
        champion.figures[name],
        challenger.figures[name],
        effect=EFFECTS[name],
        allowed=allowed_output if is_output else 0.0,
        either_way=is_output,
    )


def _require_one_step(one: Side, other: Side) -> None:
    if one.step != other.step:
        raise ValueError(f"counts of the steps {one.step!r} and {other.step!r} are not of one time")


def _said(name: str, evidence: Evidence, requests: int) -> str:
    """
    >>> _said("errors", Evidence(0.01, 0.04, 0.006, 250.0), 900)
    'errors: 4.00 % of the requests against 1.00 % (± 0.60 %, 900 requests; by chance at most once in 250)'
    """
    odds = f"{requests:,} requests; by chance at most once in {min(evidence.e_value, 1e9):.0f}"
    if name == OUTPUT:
        moved = evidence.challenger - evidence.champion
        return f"answers: moved by {moved:+.2f} standard deviations (± {evidence.error:.2f}, {odds})"
    what = {ERRORS: "errors", SLOW: "latency above the champion's p99"}[name]
    return (
        f"{what}: {100 * evidence.challenger:.2f} % of the requests against {100 * evidence.champion:.2f} % "
        f"(± {100 * evidence.error:.2f} %, {odds})"
    )
