"""How many replicas a model needs: the fewest with which its objective holds, before too many callers come.

Serve counts the requests that it has on their way; those that come directly it does not see (direct.py). So
each replica tells what came, what that took, and whom it answered too late or turned away; the controller
asks `Policy`. A replica is worked out to bear so many requests a second (`most_rate`), and what surely comes,
or will have come when one more has started, is divided by that. More are started at once. One too many goes
when it has stood idle for as long as starting it again is worth (`hold_s`), by the price of a replica and the
value of a prediction where the project says them (`worth`).
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlops_ray.cost.holds import HOLDS, SETTINGS
from mlops_ray.cost.model import SECONDS_AN_HOUR
from mlops_ray.errors import StorageError
from mlops_ray.storage import Storage

#: What a replica tells, counted since its start: requests that came, of them those that were refused and
#: those that were answered too late, seconds with a request in hand, batches, rows; and what a batch takes
#: beside its rows; and for how long it may have counted.
COUNTED = ("arrived", "refused", "late", "busy_s", "batches", "rows")
FIXED_S, AGE_S = "fixed_s", "age_s"
TOLD = (*COUNTED, FIXED_S, AGE_S)
#: How often it is looked at; replicas tell as often.
LOOK_S = 1.0
#: So much older than the last look may be what a replica counted that was not there then: what it tells is
#: as old as a look, and comes a look later.
LAG_S = 2 * LOOK_S
#: What comes is the mean of a minute, in which 40 requests/s are known to 2.5 %; or more where the latest
#: seconds alone tell, by 2.5 times what chance adds, that it surely is more.
STEADY_S, LATEST_S, SURELY = 60.0, (3.0, 12.0), 2.5
#: The seconds from whose two halves it is seen how fast it grows, and the most that is added for it: where
#: many come from one second to the next it looks like growth, too.
TREND_S, MOST_AHEAD = 20.0, 0.25
#: Of 100 requests one may be late: what p99 says.
LATE = 0.01
#: So many standard deviations above the mean they are. And by so much batches of one size differ: in time
#: that the machine gives to others.
Z, VARIES = 2.326, 0.2
#: A p99 of so many times that of a lone request is within reach of any model: beyond it no more are started
#: than those of whom one always has nothing to do.
EASY = 2.0
#: What a replica takes to start, until one has.
START_S = 15.0
#: Between them lies what is believed of a start; a node that has to come first takes minutes.
LEAST_START_S, MOST_START_S = 5.0, 300.0
#: One idle replica is kept for so many times what its start takes, where nobody says what predictions are
#: worth, and for ten minutes at most.
HOLD, MOST_HOLD_S = 10.0, 600.0
#: Where the objective is missed all the same, a replica bears so much less than was worked out, which is
#: believed again within an hour; and to ten replicas three more are started.
TRUST, LEAST_TRUST, TRUST_S, GROWTH = 0.93, 0.5, 3600.0, 0.3
#: After more have come, what had waited before is answered for so long.
SETTLED_S = 20.0
#: Replicas that are less busy are not late because there are too few of them.
IDLE = 0.3
#: What of a lone request's time batches save is known from few of them, and badly: it is the mean of so many
#: looks, of which the first are taken to have seen a third. Were it taken for nothing there would be so many
#: replicas that none ever had two requests at once, and it would not be learned.
SHARE, LEAST_LOOKS, MOST_LOOKS = 1 / 3, 30, 600
#: Requests from which it can be told what one takes.
ENOUGH = 20
#: Each halves what is not known of a rate; these leave 0.02 %.
STEPS = 12
#: Replicas, dead ones too, of which is known what they told last.
MOST_KNOWN = 1000

logger = logging.getLogger(__name__)


def p99_s(rate: float, fixed_s: float, each_s: float) -> float:
    """The time within which a replica answers 99 of 100 of so many requests a second; infinite beyond it.

    A batch of n takes fixed + each · n, and the n that come meanwhile are the next one: with busy = rate ·
    each and `VARIES` = v its mean m is fixed / (1 - busy), or that of one request, and its variance, of n by
    chance and of batches that vary, (each · busy · m + v² m²) / (1 - busy² (1 + v²)). Who comes finds long
    batches more often than short ones: of a gamma distribution with one more in its shape. It waits for
    nearly the whole of that batch, and then for its own, of those who came meanwhile: fixed + busy · that.

    >>> [round(p99_s(rate, 0.002, 0.008), 3) for rate in (1.0, 60.0, 100.0, 125.0)]
    [0.018, 0.069, 0.209, inf]
    """
    busy = rate * each_s
    left = 1 - busy**2 * (1 + VARIES**2)
    if busy >= 1 or left <= 0:
        return math.inf
    mean_s = max(fixed_s + each_s, fixed_s / (1 - busy))
    if mean_s <= 0:
        return 0.0
    scale = (each_s * busy + VARIES**2 * mean_s) / left
    shape = mean_s / scale + 1
    # The quantile of a gamma distribution (Wilson and Hilferty, The distribution of chi-square, 1931).
    found_s = scale * shape * (1 - 1 / (9 * shape) + Z / (3 * math.sqrt(shape))) ** 3
    return (1 + busy) * found_s + fixed_s


def most_rate(fixed_s: float, each_s: float, target_s: float) -> float:
    """The requests a second of one replica with which p99 is within the target; 0 where it never is.

    >>> round(most_rate(0.0, 0.010, 0.050), 1)
    32.7
    """
    if each_s <= 0:
        return math.inf
    low, high = 0.0, 1 / each_s
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if p99_s(middle, fixed_s, each_s) <= target_s else (low, middle)
    return low if p99_s(0.0, fixed_s, each_s) <= target_s else 0.0


def hold_s(start_s: float, starts: float | None = None) -> float:
    """How long a replica is kept that is one too many, seconds: as long as so many starts take (`HOLD`).

    To keep it costs its price a second; to be without it when it is needed costs what `worth` says. Who waits
    until the one is as much as the other never pays twice what was needed (Karlin et al., Competitive snoopy
    caching, 1988).
    """
    return min((HOLD if starts is None else starts) * start_s, MOST_HOLD_S)


def worth(per_hour: float, value: float, rate: float) -> float:
    """What it costs to be without a replica when it is needed, in what an idle one costs while it starts.

    That is the start itself, which is paid second by second, and the value of the predictions, `rate` a
    second, that it would have answered meanwhile: late, they are taken to be worth nothing.

    At 0.36 EUR an hour one is 0.0001 EUR a second; 100 predictions a second of 0.000002 EUR are 0.0002 EUR:

    >>> round(worth(0.36, 0.000002, 100), 9)
    3.0
    """
    return 1 + value * rate * SECONDS_AN_HOUR / per_hour if per_hour > 0 else math.inf


@dataclass(frozen=True)
class Told:
    """What all replicas have told until `at`, added up since the first look; `COUNTED` says of what."""

    at: float
    arrived: float = 0.0
    refused: float = 0.0
    late: float = 0.0
    busy_s: float = 0.0
    batches: float = 0.0
    rows: float = 0.0

    def after(self, at: float, more: Mapping[str, float]) -> "Told":
        sums = {name: getattr(self, name) + more.get(name, 0.0) for name in COUNTED}
        return Told(at, **sums)

    def since(self, before: "Told") -> "Told":
        """What came between: `at` are its seconds."""
        return Told(self.at - before.at, **{n: getattr(self, n) - getattr(before, n) for n in COUNTED})


def surely(count: float, seconds: float) -> float:
    """The rate that there is at least, of so many that came in so long.

    >>> surely(100, 10), surely(0, 10)
    (7.5, 0.0)
    """
    return max(0.0, count - SURELY * math.sqrt(count)) / seconds if seconds > 0 else 0.0


def growth(before: float, after: float, seconds: float) -> float:
    """By how much the rate surely grows a second, from what came in two times of so many seconds.

    >>> round(growth(100, 200, 10), 3), growth(100, 120, 10)
    (0.567, 0.0)
    """
    return max(0.0, after - before - SURELY * math.sqrt(before + after)) / seconds**2 if seconds > 0 else 0.0


@dataclass
class Autoscaler:
    """Keeps in mind what was told; `look` says how many replicas there are to be.

    `target_s` is the objective's p99, `max_rows` how many one batch may hold.
    """

    target_s: float
    max_rows: float = math.inf
    start_s: float = START_S
    #: How much of what was worked out a replica bears.
    trust: float = 1.0
    #: What a batch takes, and each request of it besides, known when there were enough; and the share of the
    #: former in what one request alone takes.
    fixed_s: float = 0.0
    each_s: float = 0.0
    share: float = SHARE
    #: What a replica costs an hour, and a prediction is worth, where both are known.
    money: tuple[float, float] | None = None
    _told: deque[Told] = field(default_factory=deque)
    #: How many were needed, at each look for as long as one too many is kept.
    _needed: deque[tuple[float, int]] = field(default_factory=deque)
    _looks: int = LEAST_LOOKS
    _wanted: int = 0
    #: Since when so many run; how many were ordered, and when, while some of them are still to come.
    _running: tuple[float, int] = (-math.inf, 0)
    _target: int = 0
    _ordered_at: float | None = None

    def anew(self) -> "Autoscaler":
        """One that has learned the same of the model, and has looked at nothing yet."""
        learned = (self.start_s, self.trust, self.fixed_s, self.each_s, self.share, self.money)
        return Autoscaler(self.target_s, self.max_rows, *learned, _looks=self._looks)

    def look(self, told: Told, fixed_s: float | None, running: int, target: int) -> int:
        """How many replicas are needed, of which so many run, and `target` were asked for last.

        `fixed_s` is what a batch takes beside its rows, where that is known.
        """
        self._remember(told, running, target)
        self._learn(fixed_s)
        needed = self._for_rate()
        if needed <= running and self._is_missed(running, target):
            self.trust = max(self.trust * TRUST, LEAST_TRUST)
            needed = running + math.ceil(GROWTH * running)
            # Whether that is enough, or more may not be, is not known before long.
            self._running = told.at, running
        # Those that Serve has by itself, at first, or for the first caller after a rest: whom they are for is
        # not told yet.
        needed = max(needed, target if target > self._wanted else 0)
        self._needed.append((told.at, needed))
        since = told.at - self.hold_s
        while self._needed[0][0] < since:
            self._needed.popleft()
        self._wanted = max(needed for _, needed in self._needed)
        return self._wanted

    @property
    def hold_s(self) -> float:
        """How long one too many is kept."""
        if self.money is None:
            return hold_s(self.start_s)
        last = self._last(STEADY_S)
        each = most_rate(self.fixed_s, self.each_s, self.target_s)
        rows = last.rows / last.arrived if last.arrived else 1.0
        # Where it is not known yet what one bears it bears what comes.
        rate = each if 0 < each < math.inf else last.arrived / max(last.at, LOOK_S)
        return hold_s(self.start_s, worth(*self.money, rate * self.trust * rows))

    def _remember(self, told: Told, running: int, target: int) -> None:
        before_at = self._told[-1].at if self._told else told.at
        self.trust += (1 - self.trust) * min(1.0, (told.at - before_at) / TRUST_S)
        self._time(told.at, before_at, running, target)
        self._told.append(told)
        while len(self._told) > 1 and self._told[1].at <= told.at - STEADY_S:
            self._told.popleft()
        if running != self._running[1]:
            self._running = told.at, running

    def _time(self, now: float, before_at: float, running: int, target: int) -> None:
        """Learns what a start takes: from the look at which more were asked for until all of them run."""
        if target > self._target > 0:
            self._ordered_at = before_at
        elif target < self._target:
            self._ordered_at = None
        self._target = target
        if self._ordered_at is not None and running >= target:
            took_s = min(max(now - self._ordered_at, LEAST_START_S), MOST_START_S)
            self.start_s, self._ordered_at = (self.start_s + took_s) / 2, None

    def _last(self, seconds: float) -> Told:
        """What came in the last seconds, or in as many as are known."""
        begin = self._told[-1].at - seconds - LOOK_S / 2
        return self._told[-1].since(next(each for each in self._told if each.at >= begin))

    def _learn(self, fixed_s: float | None) -> None:
        last = self._last(STEADY_S)
        answered = last.arrived - last.refused
        if answered >= ENOUGH and last.busy_s > 0:
            if fixed_s is not None:
                each_s = max(0.0, last.busy_s - fixed_s * last.batches) / answered
                share = fixed_s / (fixed_s + each_s) if fixed_s > 0 else 0.0
                self._looks = min(self._looks + 1, MOST_LOOKS)
                self.share += (share - self.share) / self._looks
            # Of requests in batches as large as now.
            alone_s = last.busy_s / (self.share * last.batches + (1 - self.share) * answered)
            most = max(1.0, self.max_rows * answered / max(last.rows, 1.0))
            self.fixed_s = self.share * alone_s * (1 - 1 / most)
            self.each_s = alone_s - self.fixed_s

    def _for_rate(self) -> int:
        """As many as hold the objective, and no more than can help it.

        Where a lone request takes nearly all of it the former grow beyond all bounds, and one that no number
        could hold is no measure.
        """
        rate = self.rate() / self.trust
        useful = max(self._bear(rate, EASY * p99_s(0.0, self.fixed_s, self.each_s)), self._idle(rate))
        needed = math.ceil(min(self._bear(rate, self.target_s), useful))
        return max(needed, 1 if self._last(STEADY_S).arrived else 0)

    def _bear(self, rate: float, target_s: float) -> float:
        """How many bear the rate with such a p99, each with its share; infinite where none could."""
        each = most_rate(self.fixed_s, self.each_s, target_s)
        return rate / each if each else math.inf

    def _idle(self, rate: float) -> float:
        """How many there are to be so that 99 of 100 requests find one that has nothing to do.

        With enough of them those at work are a Poisson number, whose mean is what comes in the time of one
        request; who comes goes to the one that has the fewest, and needs one more than are at work.
        """
        at_work = rate * (self.fixed_s + self.each_s)
        return at_work + Z * math.sqrt(at_work) + 1

    def rate(self) -> float:
        """The requests/s that come, or will have come when one more replica has started."""
        steady, long, half = (self._last(seconds) for seconds in (STEADY_S, TREND_S, TREND_S / 2))
        rates = [surely(last.arrived, last.at) for last in map(self._last, LATEST_S)]
        rates.append(steady.arrived / max(steady.at, STEADY_S / 2))
        if long.at > TREND_S - LOOK_S:
            grows = growth(long.arrived - half.arrived, half.arrived, half.at)
            now = half.arrived / half.at if grows else 0.0
            # The mean of the latter half is that of its middle.
            rates.append(now + min(grows * (self.start_s + half.at / 2), MOST_AHEAD * now))
        return max(rates)

    def _is_missed(self, running: int, target: int) -> bool:
        """Whether those that have been there for a while miss the objective, and are not idle."""
        since = self._last(LATEST_S[-1])
        has_settled = self._told[-1].at - self._running[0] >= SETTLED_S and running >= target
        missed = since.late + since.refused
        is_missed = missed - SURELY * math.sqrt(missed) > LATE * since.arrived
        is_idle = since.busy_s < IDLE * since.at * running
        return has_settled and is_missed and not is_idle


class Policy:
    """What Serve's controller asks, with its `AutoscalingContext`, for the model of a storage."""

    def __init__(self, root: str, model: str, p99_ms: float, max_rows: int) -> None:
        self._storage, self._model = Storage(Path(root)), model
        self._autoscaler = Autoscaler(p99_ms / 1000, max_rows)
        self._told = Told(-math.inf)
        #: What each replica told last.
        self._last: dict[Any, dict[str, float]] = {}
        self._hold: dict[str, Any] = {}
        #: When it was last looked for what things are worth.
        self._valued_at = -math.inf
        #: What went wrong last, which is told once.
        self._failed: type[Exception] | None = None

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """The number of replicas that there are to be; Serve keeps its bounds.

        Whatever goes wrong, there are as many as before: Serve would look at no other model in that turn.
        """
        try:
            return self._wanted(context), {}
        except Exception as error:
            if type(error) is not self._failed:
                logger.exception("replicas of %s: as many as before", self._model)
            self._failed, self._told = type(error), Told(-math.inf)
            return context.target_num_replicas, {}

    def _wanted(self, context: Any) -> int:
        now = context.current_time
        since_s = now - self._told.at
        if 0 <= since_s < LOOK_S:
            return int(context.target_num_replicas)
        if not 0 <= since_s <= STEADY_S:
            # The clock was set, or nobody looked for long: what was before is no measure of what comes.
            self._autoscaler = self._autoscaler.anew()
        told, fixed_s = self._take(context.raw_metrics or {}, since_s)
        self._told = self._told.after(now, told)
        running, target = context.current_num_replicas, context.target_num_replicas
        if not 0 <= now - self._valued_at < STEADY_S:
            self._valued_at, self._autoscaler.money = now, self._money()
        wanted = self._autoscaler.look(self._told, fixed_s, running, target)
        most = self._most(now)
        return wanted if most is None else min(wanted, most)

    def _take(
        self, series: Mapping[str, Mapping[Any, Any]], since_s: float
    ) -> tuple[dict[str, float], float | None]:
        """What was told since the last time, of all replicas together, and the mean of what a batch takes.

        Of a replica that is seen for the first time all counts where it began since then: one that is older
        was told to another controller.
        """
        latest: dict[Any, dict[str, float]] = {}
        for name in TOLD:
            for replica, points in series.get(name, {}).items():
                # What is no number is not told.
                if points and 0 <= points[-1].value < math.inf:
                    latest.setdefault(replica, {})[name] = points[-1].value
        more = dict.fromkeys(COUNTED, 0.0)
        for replica, told in latest.items():
            is_new = told.get(AGE_S, math.inf) < since_s + LAG_S
            before = self._last.get(replica, dict.fromkeys(COUNTED, 0.0) if is_new else told)
            for name in COUNTED:
                # What a version has counted goes with it.
                if name in told and name in before:
                    more[name] += max(0.0, told[name] - before[name])
        # What is not told for a moment is not new after it.
        known = {replica: self._last.get(replica, {}) | told for replica, told in latest.items()}
        self._last = known if len(self._last) > MOST_KNOWN else self._last | known
        fixed_s = [told[FIXED_S] for told in latest.values() if FIXED_S in told]
        return more, sum(fixed_s) / len(fixed_s) if fixed_s else None

    def _money(self) -> tuple[float, float] | None:
        """What a replica costs an hour and a prediction is worth; `None` where not both are said."""
        try:
            said = self._storage.read_json(SETTINGS, f"{self._model}.json") or {}
            per_hour, value = float(said["replica_per_hour"]), float(said["value"])
        except (StorageError, OSError, TypeError, ValueError, LookupError):
            return None
        return (per_hour, value) if 0 <= per_hour < math.inf and 0 <= value < math.inf else None

    def _most(self, now: float) -> int | None:
        """The most replicas that there may be; what says so is told once, and so is its end.

        It ends by itself: who wrote it may be gone.
        """
        try:
            hold = checked(self._storage.read_json(HOLDS, f"{self._model}.json") or {})
        except (StorageError, OSError) as error:
            hold = self._hold | {"damaged": str(error)}
        # What is damaged has no end, before a whole one was read.
        if hold.get("until", math.inf) <= now:
            hold = {}
        if hold != self._hold:
            logger.warning("replicas of %s: %s", self._model, _said(hold))
            self._hold = hold
        return hold.get("most_replicas")


def checked(hold: Any) -> dict[str, Any]:
    """What is written of a hold; raises `StorageError` where that is none."""
    if isinstance(hold, dict):
        # One without an end would be for good, if nobody is left to end it.
        most, until = hold.get("most_replicas"), hold.get("until")
        if not hold or (type(most) is int and most >= 1 and type(until) in (int, float)):
            return hold
    meant = "{most_replicas: a whole number, why: words, until: seconds since 1970}"
    raise StorageError(f"a hold is {meant}, and not {str(hold)[:100]}")


def _said(hold: Mapping[str, Any]) -> str:
    """What a person is told of a hold."""
    if "damaged" in hold:
        return f"{hold['damaged']}; what it said before holds"
    why = hold.get("why", "no reason is given")
    return f"at most {hold['most_replicas']}: {why}" if hold else "as many as are needed"


@dataclass
class Load:
    """The requests for a prediction that a replica has seen; `late_s` is from when on an answer is late."""

    late_s: float
    arrived: int = 0
    refused: int = 0
    late: int = 0
    clock: Callable[[], float] = time.monotonic
    #: When it told last that nobody had come.
    _nobody_at: float = field(init=False)

    def __post_init__(self) -> None:
        self._nobody_at = self.clock()

    def answered(self, seconds: float) -> None:
        """Counts one that took so long, where that was too long."""
        self.late += seconds > self.late_s

    def told(self, busy_s: float, batches: int, rows: int, fixed_s: float | None) -> dict[str, float]:
        """What a replica tells: how often and for how long it was at work, besides what is counted here.

        Of what a batch takes beside its rows nothing where that is not known. It is as old as what it has
        counted: it may have loaded a model for minutes before somebody could come.
        """
        now = self.clock()
        if not self.arrived:
            self._nobody_at = now
        counted = (self.arrived, self.refused, self.late, busy_s, batches, rows)
        told = dict(zip(COUNTED, counted, strict=True)) | {AGE_S: now - self._nobody_at}
        return told | ({} if fixed_s is None else {FIXED_S: fixed_s})
