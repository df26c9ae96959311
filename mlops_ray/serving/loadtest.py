"""The highest rate of requests at which a service keeps its objectives, found by offering it more and less.

Requests leave when they are due, whether or not those before them were answered, and a latency is counted
from the moment that was meant: who waits for an answer before asking again asks the less the slower it gets,
and misses just the waiting (Tene's "coordinated omission").

Whether the objectives hold at a rate is a test of two shares, each with its interval: at most one request in
a hundred is later than the p99 that is allowed, and at most so many fail. A probe goes on until the intervals
tell, or its time is over. Latencies near the limit come in clusters, of which each counts for one.
"""

import math
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Literal, NamedTuple

from scipy.special import betaincinv

from mlops_ray.errors import ServiceError

#: Of requests that may be later than the p99, by its definition.
LATE = 0.01
#: Of requests that are slow for a service, also where none is late.
SLOW = 0.1
#: How often a probe of a rate exactly at the limit may say that it holds, or that it does not. Either is
#: believed when two probes say so: one time in 25.
ERROR = 0.2
#: Seconds of a probe that are not counted: what the rate before has left behind is still there.
SETTLE = 1
#: Seconds that are counted at the first look; each look comes after so many times what was seen at the last.
#: Each costs some certainty, which they share.
FIRST_LOOK, LOOKS_GROW = 3, 1.5
#: How much more than a second's requests vary, few seconds do not tell.
LEAST_S = 10
#: At its longest a probe takes so many seconds, or what it takes until so many requests have come (of which
#: 320 are needed where none is late and each counts for one), but no longer than five minutes.
LONGEST_S, ENOUGH, MOST_S = 40, 2_000, 300
#: The rate that is found is offered once more, for so long at least: a backlog may grow slowly.
CONFIRM_S = 30
#: The limit is known well enough when a rate that holds, and one that does not, are this close.
PRECISION = 1.05
#: How far the next rate is while there is no bound on that side: far above the limit a probe leaves thousands
#: of requests behind.
UP, DOWN = 1.6, 0.6
#: And where only the upper bound is sought.
BEYOND = 1.2
#: Halving between two rates takes about ten; more were needed only by a service that changes meanwhile.
MOST_PROBES = 40
#: Below this rate a load test is of no use: a hundred requests would take minutes.
LEAST_RATE = 0.5
#: At this share of the allowed p99 the generator's own lateness (of its p99) is to blame for what is found.
BLAME = 0.1
#: Latencies are told in tenths of a millisecond.
TICK_MS = 0.1

Ticks = Counter[int]


@dataclass(frozen=True)
class Objectives:
    """What has to hold: 99 in 100 requests within so many milliseconds, at most a share `error_rate` fail."""

    p99_ms: float
    error_rate: float


class Second(NamedTuple):
    """What became of the requests that were due in one second of a probe.

    `late` ones were answered after the allowed p99, or not at all; `failed` ones with another status than
    200, or not at all. `took` counts answers by their latency, `lag` requests by how late they left through
    the generator's fault; both in ticks of `TICK_MS`.
    """

    due: int
    late: int
    failed: int
    took: Ticks = Ticks()
    lag: Ticks = Ticks()


State = Literal["holds", "fails", "unclear"]
#: Offers a rate, and yields what becomes of it, second by second, until it is closed.
Offer = Callable[[float], Generator[Second]]


@dataclass(frozen=True)
class Probe:
    """What a rate (requests/s) came to; `lag_p99_ms` is the generator's own lateness."""

    rate: float
    state: State
    requests: int
    p99_ms: float
    error_rate: float
    lag_p99_ms: float


@dataclass(frozen=True)
class Found:
    """The highest rate that held, confirmed, and the lowest that clearly did not; the probes in their order.

    `note` says where the generator, and not the service, may be what ended the search.
    """

    best: Probe
    high: float
    probes: tuple[Probe, ...]
    note: str


# ---------------------------------------------------------------- one rate


def share(hits: int, of: int, error: float, worth: float = 1.0) -> tuple[float, float]:
    """The lower and the upper bound of a share, each wrong with probability `error` (Clopper and Pearson).

    `worth` requests count for one.

    >>> low, high = share(0, 300, 0.05)
    >>> low, round(high, 4)  # the rule of three: 3 / 300
    (0.0, 0.0099)
    """
    k, n = hits / worth, of / worth
    low = float(betaincinv(k, n - k + 1, error)) if k > 0 else 0.0
    return low, float(betaincinv(k + 1, n - k, 1 - error)) if k < n else 1.0


def spread(hits: Sequence[int], of: Sequence[int]) -> float:
    """How many times a share varies between seconds as much as if requests were independent; 1 at least.

    The design effect of a sample of clusters (Kish, Survey Sampling, 1965).

    >>> spread([1, 0, 1, 1], [100] * 4), round(spread([9, 0, 0, 0], [100] * 4), 1)
    (1.0, 9.2)
    """
    mean = sum(hits) / max(sum(of), 1)
    expected = sum(of) * mean * (1 - mean)
    if len(of) < 2 or expected == 0:
        return 1.0
    seen = sum((k - n * mean) ** 2 for k, n in zip(hits, of, strict=True))
    return max(1.0, seen / expected * len(of) / (len(of) - 1))


def clusters(seconds: Sequence[Second]) -> float:
    """How many late requests count for one: those that wait behind the same others are late together.

    Where none was late yet, the slow ones tell: a queue is as long above one mark as above another.
    """
    due = [second.due for second in seconds]
    mark = quantile((second.took for second in seconds), 1 - SLOW)
    slow = [sum(n for ticks, n in second.took.items() if ticks > mark) for second in seconds]
    return max(spread(slow, due), spread([second.late for second in seconds], due))


def judged(seconds: Sequence[Second], allowed: Objectives, error: float) -> State:
    """Whether the objectives held; errors are too rare to be proved absent, so what was seen of them counts.

    (That less than one in a thousand fails would take 5,000 requests without one.)
    """
    due, late = sum(second.due for second in seconds), sum(second.late for second in seconds)
    failures = [second.failed for second in seconds]
    failed = sum(failures)
    late_low, late_high = share(late, due, error, clusters(seconds))
    failed_low, _ = share(failed, due, error, spread(failures, [second.due for second in seconds]))
    if late_low > LATE or failed_low > allowed.error_rate:
        return "fails"
    return "holds" if late_high <= LATE and failed <= allowed.error_rate * due else "unclear"


def looks(rate: float, least_s: float = 0) -> list[int]:
    """After how many counted seconds a probe is judged that goes on for `least_s` at least.

    >>> looks(100), looks(10)[-1], looks(1)[-1]
    ([3, 5, 8, 12, 18, 27, 40], 200, 300)
    """
    last = min(max(LONGEST_S, math.ceil(ENOUGH / rate), math.ceil(2 * least_s)), MOST_S)
    found = [FIRST_LOOK]
    while found[-1] < last:
        found.append(min(math.ceil(found[-1] * LOOKS_GROW), last))
    return found


def probe(offer: Offer, rate: float, allowed: Objectives, least_s: float = 0) -> Probe:
    """Offers a rate until it is clear whether the objectives hold; that they do, after `least_s` at least.

    Raises `ServiceError` where what is offered ends before that.
    """
    least_s = max(least_s, LEAST_S)
    at, seen = looks(rate, least_s), list[Second]()
    state: State = "unclear"
    with closing(offer(rate)) as coming:
        for second in islice(coming, SETTLE, None):
            seen.append(second)
            if len(seen) in at:
                state = judged(seen, allowed, ERROR / len(at))
            if len(seen) == at[-1] or state == "fails" or (state == "holds" and len(seen) >= least_s):
                return _summed(rate, state, seen)
    raise ServiceError(f"the generator ended while it offered {rate:g} requests/s")


def _summed(rate: float, state: State, seconds: Sequence[Second]) -> Probe:
    requests = sum(second.due for second in seconds)
    failed = sum(second.failed for second in seconds)
    return Probe(
        rate,
        state,
        requests,
        p99(second.took for second in seconds),
        failed / max(requests, 1),
        p99(second.lag for second in seconds),
    )


def p99(counted: Iterable[Ticks]) -> float:
    """The milliseconds within which 99 in 100 came; 0 of none.

    >>> p99([Counter({10: 98}), Counter({50: 1, 70: 1})])
    5.0
    """
    return round(quantile(counted, 1 - LATE) * TICK_MS, 1)


def quantile(counted: Iterable[Ticks], share: float) -> int:
    """The ticks within which this share of all came; 0 of none."""
    together = Ticks()
    for each in counted:
        together.update(each)
    ticks, rank = sorted(together.items()), share * together.total()
    below = accumulate(n for _, n in ticks)
    return next((at for (at, _), n in zip(ticks, below, strict=True) if n >= rank), 0)


# ---------------------------------------------------------------- the highest rate


def search(
    offer: Offer, first: float, allowed: Objectives, say: Callable[[Probe], None] = lambda _: None
) -> Found:
    """The highest rate at which the objectives hold, beginning at `first`, but not below `LEAST_RATE`.

    `say` is told of each probe. A rate that fails is offered once more: a machine that did something else
    for a moment shows no limit. Raises `ServiceError` where no rate holds.
    """
    seen = _Seen()

    def tried(rate: float, least_s: float = 0) -> Probe:
        for _ in range(2):
            found = probe(offer, rate, allowed, least_s)
            seen.probes.append(found)
            say(found)
            if found.state != "fails":
                break
        return found

    while True:
        if seen.is_narrow:
            best = tried(seen.held[-1], CONFIRM_S)
            seen.take(best)
            if best.state == "holds":
                break
            continue
        rate = seen.next_rate(max(first, LEAST_RATE))
        if rate < LEAST_RATE:
            raise ServiceError(seen.hopeless(allowed))
        if len(seen.probes) > MOST_PROBES:
            raise ServiceError(
                f"no rate was held again that held before, in {len(seen.probes)} probes: the service, or "
                "what else runs on this machine, changes too much meanwhile; stop what else runs and try "
                "again, or allow more (serving.slo)"
            )
        seen.take(tried(rate))
    # Where all was unclear that did not hold, the limit may be above it.
    while math.isinf(seen.failing):
        seen.take(tried(seen.probes[-1].rate * BEYOND))
    return Found(best, seen.failing, tuple(seen.probes), seen.blamed(allowed))


@dataclass
class _Seen:
    """What is known in a search: the rates that held, ascending, all below `top`, the lowest that did not.

    `failing` is the lowest that clearly did not.
    """

    probes: list[Probe] = field(default_factory=list)
    held: list[float] = field(default_factory=list)
    top: float = math.inf
    failing: float = math.inf

    @property
    def is_narrow(self) -> bool:
        return bool(self.held) and self.top <= PRECISION * self.held[-1]

    def take(self, probe: Probe) -> None:
        """What was unclear does not hold, and is no proof of the contrary."""
        if probe.state == "holds":
            self.held = sorted([*self.held, probe.rate])
            return
        self.top = min(self.top, probe.rate)
        self.held = [rate for rate in self.held if rate < self.top]
        if probe.state == "fails":
            self.failing = min(self.failing, probe.rate)

    def next_rate(self, first: float) -> float:
        """In the middle, as ratios go, of what holds and what does not; a step on where one is missing."""
        if not self.held:
            return first if math.isinf(self.top) else self.top * DOWN
        return self.held[-1] * UP if math.isinf(self.top) else math.sqrt(self.held[-1] * self.top)

    def blamed(self, allowed: Objectives) -> str:
        """What to say where requests left late at the rates that did not hold; empty where they did not."""
        worst = max((p.lag_p99_ms for p in self.probes if p.state != "holds"), default=0.0)
        if worst < BLAME * allowed.p99_ms:
            return ""
        return (
            f"the generator could not keep its schedule (requests left up to {worst:g} ms late): "
            "the service may bear more than it could offer"
        )

    def hopeless(self, allowed: Objectives) -> str:
        worst = min(self.probes, key=lambda probe: probe.rate)
        seen = (
            f"at {worst.rate:.3g} requests/s, the lowest that was tried, the p99 was "
            f"{worst.p99_ms:g} ms (allowed {allowed.p99_ms:g}) and {worst.error_rate:.2%} failed "
            f"(allowed {allowed.error_rate:.2%})"
        )
        if worst.p99_ms <= allowed.p99_ms and worst.error_rate <= allowed.error_rate:
            return (
                f"no rate is known to hold: {seen}, but {worst.requests} requests are too few to tell; load "
                "more replicas together (--replicas), or ask for fewer rows at a time (--rows)"
            )
        return f"no rate holds: {seen}; allow more under serving.slo, or look at one request first"
