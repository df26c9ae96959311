"""Whether a challenger does worse than the champion, told at any time, however often one looks.

Requests of one key are alike, and errors come in clusters, so that not requests but keys are compared: they
are counted in buckets by a hash, and what buckets differ by says how sure the difference of the sides is. The
more is counted, the surer; of a difference that is none, such a walk through information is a Brownian motion
[1], on which a mixture over effects makes a test martingale: `Evidence.e_value`. That of a challenger that is
no worse comes to 1 / ERROR with a probability of at most ERROR, ever [2]: as far as the variance, which is
estimated, is right, hence `LEAST_BUCKETS`.

[1] Jennison and Turnbull, Group Sequential Methods (2000), chapter 11: the canonical joint distribution.
[2] Robbins, Statistical methods related to the law of the iterated logarithm (1970): half-normal mixtures.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

#: Of each of errors, latency, output and loss: together an equal challenger is sent back in at most 5 %.
ERROR = 0.0125
BUCKETS = 1_024
#: Of each side so many buckets must count, were they all of one size, before anything is said.
LEAST_BUCKETS = 20.0

#: Deviations beyond which nothing is surer; their square must stay a number.
MOST_AT = 1e100

Cells = npt.NDArray[np.float64]


@dataclass
class Sums:
    """What one side came to, by bucket: the requests, the sum of a figure of theirs and of its square."""

    requests: Cells
    total: Cells
    squares: Cells

    @classmethod
    def empty(cls) -> Self:
        return cls(*(np.zeros(BUCKETS) for _ in range(3)))

    @classmethod
    def of(cls, buckets: npt.NDArray[np.integer], values: Cells) -> Self:
        """Of requests in these buckets, with these figures, which are numbers."""
        sums, ones = cls.empty(), np.ones(len(values))
        for cells, part in zip(vars(sums).values(), (ones, values, values * values), strict=True):
            np.add.at(cells, buckets, part)
        return sums

    def add(self, bucket: int, value: float) -> None:
        """Takes in one request with a figure of about one in size; `ValueError` where it is no number."""
        if not math.isfinite(value):
            raise ValueError(f"{value} is no figure of a request")
        self.requests[bucket] += 1
        self.total[bucket] += value
        self.squares[bucket] += value * value

    def merge(self, other: Self) -> None:
        """Adds what another process counted."""
        for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True):
            mine += theirs

    @property
    def count(self) -> float:
        return float(self.requests.sum())

    @property
    def mean(self) -> float:
        """The figure of a request; NaN of none."""
        return float(self.total.sum() / self.count) if self.count else math.nan

    @property
    def variance(self) -> float:
        """Of one request's figure, whatever its key."""
        return max(0.0, float(self.squares.sum() / self.count) - self.mean**2) if self.count else math.nan

    @property
    def buckets(self) -> float:
        """How many buckets would tell as much, were they all of one size."""
        squares = float((self.requests**2).sum())
        return self.count**2 / squares if squares else 0.0


@dataclass(frozen=True)
class Evidence:
    """How much speaks for a challenger that is worse by more than `allowed`; figures are means a request."""

    champion: float
    challenger: float
    error: float
    e_value: float

    @property
    def is_worse(self) -> bool:
        return self.e_value >= 1 / ERROR

    @property
    def is_told(self) -> bool:
        """Whether enough was counted of both sides to say anything."""
        return not math.isnan(self.error)


#: Of too little: it speaks neither for nor against.
NONE = Evidence(math.nan, math.nan, math.nan, 1.0)


def compare(
    steps: Iterable[tuple[Sums, Sums]],
    *,
    effect: float,
    least: float,
    allowed: float = 0.0,
    either_way: bool = False,
    also: Iterable[Sums] = (),
) -> Evidence:
    """The evidence of steps that the challenger's figure is higher by more than `allowed`.

    Or lower, `either_way`. Sides are compared within each step, since what a service gets changes with time,
    and each weighs by what it tells. Keys are alike in all of them: what a key adds to the difference, it
    adds in all steps as one. `effect` is about how large a difference is to be found soon; any other is found
    too, only later. One request's figure varies by `least` at least: of errors that have not come yet nothing
    is sure. `also` are the sums of the same requests by other buckets, in which they may be alike too.
    Nothing is said of a step before `LEAST_BUCKETS` of each side count.
    """
    told = [sides for sides in steps if min(side.buckets for side in sides) >= LEAST_BUCKETS]
    if not told:
        return NONE
    spread = np.array([1 / ours.count + 1 / theirs.count for ours, theirs in told])
    shares = 1 / spread / (1 / spread).sum()
    varies = np.array([max(_pooled(*sides), least) for sides in told])
    sides = list(zip(*told, strict=True))
    # As much as requests of one key apart from another differ, at least.
    variance = max(
        sum(_spread(shares, side) for side in sides),
        sum(_spread(np.ones(1), [side]) for side in also),
        float(shares**2 @ (varies * spread)),
    )
    champion, challenger = (float(shares @ np.array([sums.mean for sums in side])) for side in sides)
    above, below = (
        _mixture((moved - allowed) / variance, 1 / variance, effect)
        for moved in (challenger - champion, champion - challenger)
    )
    e_value = (above + below) / 2 if either_way else above
    return Evidence(champion, challenger, math.sqrt(variance), e_value)


def _pooled(champion: Sums, challenger: Sums) -> float:
    """The variance of one request's figure, whoever answered it."""
    parts = [side.variance * side.count for side in (champion, challenger)]
    return sum(parts) / (champion.count + challenger.count)


def _spread(shares: Cells, steps: Sequence[Sums]) -> float:
    """The variance of a side's mean over steps of these shares, by what buckets add to all of it."""
    added = [
        share * (each.total - each.mean * each.requests) / each.count
        for share, each in zip(shares, steps, strict=True)
    ]
    filled = np.any([each.requests > 0 for each in steps], axis=0)
    number = int(filled.sum())
    return float(np.square(np.sum(added, axis=0)[filled]).sum()) * number / max(number - 1, 1)


def _mixture(score: float, information: float, effect: float) -> float:
    """exp(θ · score − θ² · information / 2), averaged over a half-normal θ ≥ 0 of scale `effect`."""
    spread = 1 + effect**2 * information
    at = min(max(score * effect / math.sqrt(spread), -MOST_AT), MOST_AT)
    logarithm = math.log(2) - math.log(spread) / 2 + at**2 / 2 + _log_normal(at)
    return math.exp(min(logarithm, 700.0))


def _log_normal(at: float) -> float:
    """The logarithm of the standard normal distribution function, whose tail is bounded from above."""
    below = 0.5 * math.erfc(-at / math.sqrt(2))
    return math.log(below) if below > 0 else -(at**2) / 2 - math.log(-at * math.sqrt(2 * math.pi))
