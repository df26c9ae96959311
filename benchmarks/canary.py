"""A thousand simulated canaries of each kind: how many go back, and after how many of their requests.

Keys ask unequally often; some fail far more often than others, are slower, and get other answers, so that
errors come in clusters. The steps are 10 and 50 of 100 keys, two minutes each, and are looked at every six
seconds, by the code that decides in the service. Labels come a minute after their requests, also those of a
step that has ended. `--quick` runs a hundred of each.
"""

import argparse
import math
import statistics
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from benchmarks.report import Claim, finish
from mlops_ray.config import Release
from mlops_ray.monitoring.comparison import BUCKETS, Sums
from mlops_ray.monitoring.sides import ERRORS, LOSS, OUTPUT, SLOW, Side, judge
from mlops_ray.serving import steps
from mlops_ray.serving.contest import FIRST
from mlops_ray.serving.steps import Seen, Standing

RUNS, QUICK_RUNS = 1_000, 100
RELEASE = Release.model_validate({"canary": [10, 50], "per_step": "2m"})
LOOK_S, KEYS, A_LOOK = 6.0, 3_000, 1_000
#: The logarithms of latencies vary by so much from key to key, and from request to request.
BY_KEY, BY_REQUEST = 0.3, 0.5
#: So do losses from key to key; a label comes after so many looks.
LOSS_BY_KEY, LABELLED_AFTER = 0.5, 10
#: At most so many of equal versions may go back, and at least so many of worse ones must.
EQUAL, WORSE = 0.05, 0.95

Numbers = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Kind:
    """What a canary is like: the service's share of errors, and what is worse about the challenger.

    `more` errors (a share), latencies `times` as long, answers `moved` by standard deviations, `losing` so
    many times as much; of `asked` requests between two looks.
    """

    name: str
    base: float = 0.01
    more: float = 0.0
    times: float = 1.0
    moved: float = 0.0
    losing: float = 1.0
    asked: int = A_LOOK
    is_equal: bool = False


KINDS = (
    Kind("equal, 1 % errors", is_equal=True),
    Kind("equal, 0.1 % errors", base=0.001, is_equal=True),
    Kind("2 points more errors, of 1 %", more=0.02),
    Kind("2 points more errors, of 0.1 %", base=0.001, more=0.02),
    Kind("latencies × 1.5", times=1.5),
    Kind("answers moved by 1 SD", moved=1.0),
    Kind("answers moved by −1 SD", moved=-1.0),
    Kind("losses × 1.3", losing=1.3),
)
QUIET = Kind("quiet: a request a minute", asked=0, is_equal=True)


class Simulated:
    """A service in which a challenger may be worse."""

    def __init__(self, kind: Kind, seed: int) -> None:
        self.kind, self.random = kind, np.random.default_rng(seed)
        asks = self.random.lognormal(0.0, 1.0, KEYS)
        self.asks = asks / asks.sum()
        # Most never fail, a few often.
        self.fails = self.random.beta(0.05, 0.05 * (1 / kind.base - 1), KEYS)
        self.level = self.random.normal(0.0, math.sqrt(0.5), KEYS)
        self.pace = self.random.normal(0.0, BY_KEY, KEYS)
        self.loses = self.random.lognormal(-(LOSS_BY_KEY**2) / 2, LOSS_BY_KEY, KEYS)
        self.bucket = self.random.integers(0, BUCKETS, KEYS)
        self.place = 100 * self.random.random(KEYS)
        first = self.random.choice(KEYS, FIRST, p=self.asks)
        slow = self.pace[first] + self.random.normal(0.0, BY_REQUEST, FIRST)
        #: What the champion's p99 was measured to be, in logarithms.
        self.slow = np.sort(slow)[math.ceil(0.99 * FIRST) - 1]
        #: The losses of champion and challenger in each step, and those whose labels are still to come.
        self.losses: list[tuple[Sums, Sums]] = []
        self.coming: deque[tuple[tuple[Sums, Sums], tuple[Sums, Sums]]] = deque()

    def look(self, champion: Side, challenger: Side, weight: float) -> None:
        """Adds what became of the requests since the last look."""
        # A quiet service is asked once in ten looks.
        number = self.kind.asked or int(self.random.random() < 0.1)
        asked = self.random.multinomial(number, self.asks)
        tries = self.place < weight
        new = Sums.empty(), Sums.empty()
        for name, (total, squares) in self.figures(asked, tries).items():
            for side, late, mine in ((champion, new[0], ~tries), (challenger, new[1], tries)):
                sums = late if name == LOSS else side.figures.setdefault(name, Sums.empty())
                for cells, values in zip(vars(sums).values(), (asked, total, squares), strict=True):
                    np.add.at(cells, self.bucket[mine], values[mine])
        self.coming.append((self.losses[-1], new))
        if len(self.coming) > LABELLED_AFTER:
            for sums, come in zip(*self.coming.popleft(), strict=True):
                sums.merge(come)

    def figures(self, asked: Counts, tries: npt.NDArray[np.bool_]) -> dict[str, tuple[Numbers, Numbers]]:
        """The sums of each key's figures, and of their squares."""
        kind, random = self.kind, self.random
        errors = random.binomial(asked, np.minimum(self.fails + np.where(tries, kind.more, 0.0), 1.0))
        longer = self.pace + np.where(tries, math.log(kind.times), 0.0)
        slow = random.binomial(asked, norm.sf((self.slow - longer) / BY_REQUEST))
        mean = self.level + np.where(tries, kind.moved, 0.0)
        total = asked * mean + random.normal(0.0, math.sqrt(0.5), KEYS) * np.sqrt(asked)
        shares = {name: (found.astype(float),) * 2 for name, found in ((ERRORS, errors), (SLOW, slow))}
        # As absolute errors are spread about: exponentially.
        lose = self.loses * np.where(tries, kind.losing, 1.0)
        lost = lose * random.standard_gamma(asked), 2 * asked * lose**2
        return {**shares, OUTPUT: (total, asked * (mean**2 + 0.5)), LOSS: lost}


def canary(kind: Kind, seed: int) -> tuple[str, int, int]:
    """How a canary ends, and how many requests the challenger had got, and how many of them with a label."""
    service, standing, seen = Simulated(kind, seed), Standing("canary"), 0
    evidence: dict[str, float] = {}
    while True:
        seconds, champion, challenger = 0.0, Side(str(standing.step)), Side(str(standing.step))
        service.losses.append((Sums.empty(), Sums.empty()))
        following = standing
        while following == standing:
            service.look(champion, challenger, steps.weight(standing, RELEASE))
            seconds += LOOK_S
            verdict = judge(
                champion,
                challenger,
                allowed_output=RELEASE.effect,
                before=evidence,
                losses=service.losses,
                steps=steps.compared(RELEASE),
            )
            now = Seen(seconds, challenger.requests, verdict.worse, verdict.is_told)
            following = steps.after(standing, now, RELEASE)
        seen, standing, evidence = seen + challenger.requests, following, verdict.evidence
        if standing.has_ended:
            return standing.state, seen, int(sum(theirs.count for _, theirs in service.losses))


def canaries(kind: Kind, runs: int) -> list[tuple[str, int, int]]:
    with ProcessPoolExecutor() as pool:
        return list(pool.map(partial(canary, kind), range(runs), chunksize=10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a hundred of each")
    runs = QUICK_RUNS if parser.parse_args().quick else RUNS
    rows, claims = [], []
    for kind in KINDS:
        found = canaries(kind, runs)
        back = [numbers for state, *numbers in found if state == "rolled_back"]
        rows.append(_row(kind, found, back))
        share = len(back) / runs
        claims.append(
            Claim(f"{kind.name}: sent back", share, EQUAL if kind.is_equal else WORSE, not kind.is_equal)
        )
    quiet = canaries(QUIET, runs // 10)
    rows.append(_row(QUIET, quiet, []))
    inconclusive = sum(state == "inconclusive" for state, *_ in quiet) / len(quiet)
    claims.append(Claim(f"{QUIET.name}: inconclusive", inconclusive, 1.0, at_least=True))
    finish("canary", rows, claims)


def _row(kind: Kind, found: Sequence[tuple[str, int, int]], back: Sequence[Sequence[int]]) -> dict[str, Any]:
    requests, labelled = zip(*back, strict=True) if back else ((), ())
    return {
        "challenger": kind.name,
        "canaries": len(found),
        "sent back": len(back),
        "champion": sum(state == "champion" for state, *_ in found),
        "inconclusive": sum(state == "inconclusive" for state, *_ in found),
        "its requests until sent back, median": statistics.median(requests) if back else None,
        "of 95 in 100": float(np.quantile(requests, 0.95)) if back else None,
        "labelled, median": statistics.median(labelled) if back else None,
        "labelled, 95 in 100": float(np.quantile(labelled, 0.95)) if back else None,
    }


if __name__ == "__main__":
    main()
