"""What became of a version's requests while a release compares it with another, and which of two is worse.

Of each figure the sums by bucket of the routing key (`comparison.Sums`), whatever the number of requests.
They travel and are kept like all counts. Every step of a release is counted apart: as a canary's weight
grows, the challenger's requests are later ones than the champion's, and what changed for both meanwhile would
look like a difference.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import numpy as np

from mlops_ray.monitoring.comparison import BUCKETS, NONE, Evidence, Sums, compare

#: What is compared, and how large a difference is to be found soon: shares of the requests, answers in
#: standard deviations, less their mean, of those that the version was trained on, and losses in times the
#: reference's.
ERRORS, SLOW, OUTPUT, LOSS = "errors", "slow", "output", "loss"
EFFECTS = {ERRORS: 0.02, SLOW: 0.02, OUTPUT: 0.5, LOSS: 0.1}
#: Requests of one slice of time may be slow together, whatever their keys: they are counted by slices too.
SLOW_IN_TIME, SLICE_S = "slow in time", 1.0
#: One request's answer varies by this at least, in squared standard deviations.
LEAST_OUTPUT = 0.05**2
#: Of its requests so large a share more may be slower than the champion's p99: beside each other two versions
#: are not batched alike, and of many requests the least difference would be found.
ALLOWED_SLOW = 0.01
#: By so much of the reference's loss two fits to much the same rows differ by chance, and one request's loss
#: varies by so much at least, squared.
ALLOWED_LOSS, LEAST_LOSS = 0.02, 0.1**2
#: What may come by chance every other time needs no word.
LEAST_ODDS = 3.0


@dataclass
class Side:
    """The figures of one version in one step of a release, which `step` names."""

    step: str
    figures: dict[str, Sums] = field(default_factory=dict)

    def add(self, at: int, figures: dict[str, float], at_s: float = 0.0) -> None:
        """Takes in a request of a routing key in this bucket, at a time in seconds."""
        for name, value in figures.items():
            self.figures.setdefault(name, Sums.empty()).add(at, value)
        if SLOW in figures:
            at = bucket(str(int(at_s / SLICE_S)))
            self.figures.setdefault(SLOW_IN_TIME, Sums.empty()).add(at, figures[SLOW])

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
    """In what a challenger is worse, a sentence each, and whether this step could have told.

    `evidence` is the largest e-value of each figure, of all steps so far, in its part; but that of losses, of
    which all steps are looked at again; `said` what was seen in this step, and of losses in all.
    """

    worse: tuple[str, ...]
    is_told: bool
    evidence: dict[str, float]
    said: tuple[str, ...] = ()


def judge(
    champion: Side,
    challenger: Side,
    *,
    allowed_output: float,
    before: Mapping[str, float] | None = None,
    losses: Sequence[tuple[Sums, Sums]] = (),
    steps: int = 1,
) -> Verdict:
    """What a step of a release tells, after what the steps `before` have told, of so many in all.

    Answers may move by `allowed_output` standard deviations. `losses` are those of champion and challenger in
    each step so far: labels come late. Keys keep their side, so that what came by chance in one step comes in
    the next, too: e-values of steps may not be multiplied, but each step may err in its part of `ERROR`.
    Raises `ValueError` for sides of two steps.
    """
    _require_one_step(champion, challenger)
    is_told = False
    e_values, found = dict(before or {}), list[tuple[Evidence, str]]()
    for name in (ERRORS, SLOW, OUTPUT):
        evidence = _compared(name, champion, challenger, allowed_output)
        if evidence.is_told:
            e_values[name] = max(e_values.get(name, 0.0), evidence.e_value / steps)
            evidence = replace(evidence, e_value=e_values[name])
            found.append((evidence, _said(name, evidence, challenger.requests)))
            is_told |= name == ERRORS
    of_all = compare(losses, effect=EFFECTS[LOSS], least=LEAST_LOSS, allowed=ALLOWED_LOSS)
    if of_all.is_told:
        found.append((of_all, _said(LOSS, of_all, int(sum(theirs.count for _, theirs in losses)))))
    worse = tuple(sentence for evidence, sentence in found if evidence.is_worse)
    return Verdict(worse, is_told, e_values, tuple(sentence for _, sentence in found))


def _compared(name: str, champion: Side, challenger: Side, allowed_output: float) -> Evidence:
    if name not in champion.figures or name not in challenger.figures:
        return NONE
    sides = champion.figures[name], challenger.figures[name]
    slices = [side.figures[SLOW_IN_TIME] for side in (champion, challenger) if SLOW_IN_TIME in side.figures]
    return compare(
        [sides],
        effect=EFFECTS[name],
        least=LEAST_OUTPUT if name == OUTPUT else _least(*sides),
        also=slices if name == SLOW and len(slices) == 2 else (),
        allowed={OUTPUT: allowed_output, SLOW: ALLOWED_SLOW}.get(name, 0.0),
        either_way=name == OUTPUT,
    )


def _least(champion: Sums, challenger: Sums) -> float:
    """The variance of a share of which one more request of either kind is taken for seen (Laplace)."""
    share = (float(champion.total.sum() + challenger.total.sum()) + 1) / (
        champion.count + challenger.count + 2
    )
    return share * (1 - share)


def _require_one_step(one: Side, other: Side) -> None:
    if one.step != other.step:
        raise ValueError(f"counts of the steps {one.step!r} and {other.step!r} are not of one time")


def _said(name: str, evidence: Evidence, requests: int) -> str:
    """
    >>> _said("errors", Evidence(0.01, 0.04, 0.006, 250.0), 900)
    'errors: 4.00 % of the requests against 1.00 % (± 0.60 %, 900 requests; by chance at most once in 250)'
    >>> _said("loss", Evidence(1.01, 1.32, 0.05, 1.0), 900)
    "loss: 1.32 of the reference's against 1.01 (± 0.05, 900 labelled requests)"
    """
    odds = f"{requests:,} {'labelled ' if name == LOSS else ''}requests"
    if evidence.e_value >= LEAST_ODDS:
        odds += f"; by chance at most once in {min(evidence.e_value, 1e9):.0f}"
    if name == OUTPUT:
        moved = evidence.challenger - evidence.champion
        return f"answers: moved by {moved:+.2f} standard deviations (± {evidence.error:.2f}, {odds})"
    if name == LOSS:
        sides = f"{evidence.challenger:.2f} of the reference's against {evidence.champion:.2f}"
        return f"loss: {sides} (± {evidence.error:.2f}, {odds})"
    what = {ERRORS: "errors", SLOW: "latency above the champion's p99"}[name]
    return (
        f"{what}: {100 * evidence.challenger:.2f} % of the requests against {100 * evidence.champion:.2f} % "
        f"(± {100 * evidence.error:.2f} %, {odds})"
    )
