"""What became of the requests of a version that is on trial, or stands beside one: counts that add up.

Of each figure the sums by bucket of the routing key (`comparison.Sums`), whatever the number of requests.
They travel and are kept like all counts, so that none counts twice.
"""

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from mlops_ray.monitoring.comparison import BUCKETS, Evidence, Sums, compare

#: How large a difference is to be found soon: shares of the requests, standard deviations of the answers.
ERRORS, SLOW, OUTPUT = "errors", "slow", "output"
EFFECTS = {ERRORS: 0.02, SLOW: 0.02, OUTPUT: 0.5}


@dataclass
class Trial:
    """The figures of a version in one release, `id`; of another release nothing is kept."""

    id: str
    figures: dict[str, Sums] = field(default_factory=dict)

    def add(self, key: str, figures: dict[str, float]) -> None:
        """Takes in a request of a routing key."""
        at = bucket(key)
        for name, value in figures.items():
            self.figures.setdefault(name, Sums.empty()).add(at, value)

    def merge(self, other: "Trial") -> None:
        """Adds what another process counted in the same release."""
        if other.id != self.id:
            raise ValueError(f"counts of the releases {self.id!r} and {other.id!r} cannot be merged")
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
        return {"id": self.id, "figures": figures}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The trial that `to_json` wrote."""
        found = cls(data["id"])
        for name, (at, *columns) in data["figures"].items():
            sums = found.figures[name] = Sums.empty()
            for cells, values in zip(vars(sums).values(), columns, strict=True):
                cells[at] = values
        return found


def bucket(key: str) -> int:
    """The bucket of a routing key, the same in every process and for every release."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % BUCKETS


def worse(champion: Trial, challenger: Trial, *, allowed_output: float) -> list[str]:
    """In what the challenger is worse than the champion, a sentence each; empty where nothing says so.

    Answers are in standard deviations of the champion's; they may move by `allowed_output` of them.
    """
    found = []
    for name, effect in EFFECTS.items():
        one, other = champion.figures.get(name, Sums.empty()), challenger.figures.get(name, Sums.empty())
        if name == OUTPUT:
            unit = math.sqrt(one.variance) if one.count else 1.0
            evidence = compare(
                one, other, effect=effect * unit, allowed=allowed_output * unit, either_way=True
            )
        else:
            unit, evidence = 1.0, compare(one, other, effect=effect)
        if evidence.is_worse:
            found.append(_said(name, evidence, unit, challenger.requests))
    return found


def _said(name: str, evidence: Evidence, unit: float, requests: int) -> str:
    """
    >>> _said("errors", Evidence(0.01, 0.04, 0.006, 250.0), 1.0, 900)
    'errors: 4.00 % of the requests against 1.00 % (± 0.60 %, 900 requests; by chance once in 250)'
    """
    odds = f"{requests:,} requests; by chance once in {min(evidence.e_value, 1e9):.0f}"
    if name == OUTPUT:
        moved = (evidence.challenger - evidence.champion) / unit
        return f"answers: moved by {moved:+.2f} standard deviations (± {evidence.error / unit:.2f}, {odds})"
    what = {ERRORS: "errors", SLOW: "latency above the champion's p99"}[name]
    return (
        f"{what}: {100 * evidence.challenger:.2f} % of the requests against {100 * evidence.champion:.2f} % "
        f"(± {100 * evidence.error:.2f} %, {odds})"
    )
