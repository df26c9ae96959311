"""Twice the requests that ours can answer: how many are answered in time, how the others are refused.

Requests are of 256 rows: of smaller ones a replica answers more than two cores can offer besides. Capacity is
what 64 connections get that wait for their answers. Twice that is then offered over so many connections that
few requests wait for one to be free (how many were sent is shown: they are fewer where a service answers them
all late). Every request says in X-Timeout-Ms how long its caller waits. A single connection sees how long the
service takes to be its old self. `--quick` takes two short rounds.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import ours
from benchmarks.load import Bench, Caller, Load, Target, wrk
from benchmarks.ours import Service
from benchmarks.report import Claim, finish

ROUNDS, SECONDS = 5, 10
QUICK_ROUNDS, QUICK_SECONDS = 2, 4
CAPACITY_CONNECTIONS = 64
#: Each sends every quarter of a second at 4,000 requests/s.
OFFERING_CONNECTIONS = 1024
OFFERED = 2.0
#: How long a caller waits, and how soon one is refused for whom there is no time.
DEADLINE_MS, REFUSE_MS = 100, 50
ROWS = 256
LIMIT_GOOD, LIMIT_RECOVERY_S = 0.9, 5.0
#: Less than is meant to be offered, since connections do wait; of less than this nothing is claimed.
LIMIT_OFFERED = 1.8
#: The answers of so many seconds are looked at together. The service is its old self where all are given,
#: and their median is at most so many times that before.
WINDOW_S, SLOW, GIVE_UP_S = 0.25, 1.5, 30.0


@dataclass(frozen=True)
class Round:
    """Capacity before and after, requests/s; what wrk says of the overload; how long it was felt."""

    before: Load
    during: dict[str, Any]
    recovery_s: float
    after: Load

    @property
    def good(self) -> float:
        """Requests/s that were answered in time, over the capacity."""
        return float(self.during["good"] / self.during["seconds"] / self.before.rate)

    @property
    def offered(self) -> float:
        return float(self.during["requests"] / self.during["seconds"] / self.before.rate)

    @property
    def lost(self) -> int:
        """Requests that were neither answered in time nor refused soon."""
        return sum(self.during[kind] for kind in ("late", "refused_late", "other", "broken"))

    def shown(self) -> dict[str, Any]:
        names = {
            "answered_p99_ms": "p99_ms",
            "late": "late",
            "refused": "429",
            "refused_p99_ms": "429_p99_ms",
            "worst_refused_ms": "429_max_ms",
            "refused_late": "429_late",
            "other": "other",
            "broken": "broken",
        }
        return {
            "capacity": round(self.before.rate),
            "offered": round(self.offered, 2),
            "good": round(self.good, 3),
            **{name: self.during[what] for what, name in names.items()},
            "back_s": round(self.recovery_s, 2),
            "after": round(self.after.rate),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two rounds of four seconds")
    is_quick = parser.parse_args().quick
    rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if is_quick else (ROUNDS, SECONDS)
    with tempfile.TemporaryDirectory() as name:
        service = Service(Path(name, "ours"), serving=ours.ONE)
        with service.up() as url:
            bench = Bench(Path(name), seconds, ours.asked(), ours.expected(service.model, ours.asked()))
            ours.target(bench, "ours", url, service)
            closed = bench.target("closed", url, body, service.headers)
            hurried = {"X-Timeout-Ms": str(DEADLINE_MS), "X-Request-ID": "0"}
            offering = bench.target("offering", url, body, service.headers | hurried)
            caller = Caller(url, service.headers)
            closed.closed(CAPACITY_CONNECTIONS, seconds)
            found = [one_round(closed, offering, caller, seconds) for _ in range(rounds)]
    medians = {what: statistics.median(getattr(each, what) for each in found) for what in ("good", "offered")}
    after = statistics.median(each.after.rate / each.before.rate for each in found)
    finish(
        "overload",
        [each.shown() for each in found],
        [
            Claim("requests/s offered over the capacity", medians["offered"], LIMIT_OFFERED, True),
            Claim("requests/s answered in time over the capacity", medians["good"], LIMIT_GOOD, True),
            Claim("requests neither answered in time nor refused soon", sum(r.lost for r in found), 0),
            Claim("longest recovery, seconds", max(r.recovery_s for r in found), LIMIT_RECOVERY_S),
            Claim("capacity after over that before", after, LIMIT_GOOD, True),
            *bench.correct(sum(r.before.errors + r.after.errors for r in found)),
        ],
    )


def body(row: list[float]) -> dict[str, Any]:
    return ours.body(row, ROWS)


def one_round(closed: Target, offering: Target, caller: Caller, seconds: float) -> Round:
    before = closed.closed(CAPACITY_CONNECTIONS, seconds)
    _, normal_ms = probe(caller)
    rate = OFFERED * before.rate
    during = wrk(
        "open.lua",
        offering,
        OFFERING_CONNECTIONS,
        seconds,
        rate,
        OFFERING_CONNECTIONS,
        DEADLINE_MS,
        REFUSE_MS,
    )
    recovery_s = recovery(caller, SLOW * normal_ms)
    return Round(before, during, recovery_s, closed.closed(CAPACITY_CONNECTIONS, seconds))


def recovery(caller: Caller, limit_ms: float) -> float:
    """Seconds from now to the end of the first window in which all is as before."""
    begin = time.monotonic()
    while (passed_s := time.monotonic() - begin) < GIVE_UP_S:
        all_answered, median_ms = probe(caller)
        if all_answered and median_ms <= limit_ms:
            return time.monotonic() - begin
    return passed_s


def probe(caller: Caller) -> tuple[bool, float]:
    """Whether all requests of a window were answered, and the median of what they took, milliseconds."""
    end, asked = time.monotonic() + WINDOW_S, body(ours.asked()[0].tolist())
    took_ms, all_answered = [], True
    while time.monotonic() < end:
        begin = time.perf_counter()
        all_answered &= caller.answers(asked)
        took_ms.append(1000 * (time.perf_counter() - begin))
    return all_answered, statistics.median(took_ms)


if __name__ == "__main__":
    main()
