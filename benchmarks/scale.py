"""What 10,000 requests a second and features of a billion rows would need: simulated, by measured unit costs.

Nobody has a hundred nodes at hand to try it. What is measured here is one replica of our service with
everything on: the highest rate at which its objective holds, and what a lone request takes; and the join of
the pieces of a history, one after the other. The rest is simulated, and these are its assumptions:

- Serving: nodes have cores as fast as this machine's, a replica on each and the front end on the last. A
  load balancer sends each request to the front end of any node, by chance; a front end sends it on to the
  replica with the fewest requests that this front end knows of, on whichever node; what the others send it
  does not know. A batch of n takes fixed + each · n, told apart so that one simulated replica bears what the
  real one bore. What the network and the load balancer take comes on top.
- Features: there are as many keys, each with so many times the rows. Buckets are cut into slices of time, as
  they would be; a piece takes what one here took on one CPU, times its rows, in the order in which they come,
  and so does the driver, which cuts and puts together alone. All read the files as fast as this
  machine reads its own; what Ray takes for a task, milliseconds, is not counted (`benchmarks.nodes`).

`--quick` measures a tenth of the history, searches the rate of a replica less closely, and simulates fewer
seconds.
"""

import argparse
import bisect
import heapq
import json
import math
import random
import sys
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import histories, ours
from benchmarks.measure import in_new_process, timed_run
from benchmarks.pit_join import FEATURES, PROJECT, SHARE
from benchmarks.report import Claim, finish
from mlops_ray.config.project import Cost
from mlops_ray.cost import model
from mlops_ray.cost.model import Capacity
from mlops_ray.features import join as joining
from mlops_ray.features.commits import BUCKETS
from mlops_ray.features.join import ROWS_A_TASK, answer, cut, join
from mlops_ray.serving import loadtest
from mlops_ray.serving.admission import LET_IN, PATIENCE, SPREAD
from mlops_ray.serving.loadtest import Objectives
from mlops_ray.serving.offering import Offering, request

#: What is to be borne, within an objective; and what a node has.
RATE, OBJECTIVE, CORES = 10_000.0, Objectives(p99_ms=50, error_rate=0.001), 8
SIMULATED_S, QUICK_SIMULATED_S = 60, 10
#: With `--quick`: how close a rate that holds and one that does not are, and for how long it is confirmed.
QUICK_PRECISION, QUICK_CONFIRM_S = 1.3, 10
#: A replica is simulated for so many requests to see what it bears; and what is found may be off by so much.
TRIED, STEPS = 30_000, 10
CLOSE = 0.03
BILLION, ROWS, QUICK_ROWS = 10**9, 10_000_000, 1_000_000
#: Of a bucket in what is measured: the second looks into the one before, as nearly all do there.
SLICES = 2
NODES = (1, 2, 4, 8, 16, 32)
SEED = 3
#: Batches of one size differ in what they take by this share.
VARIES = 0.2
MOST_BATCH = 256
MEASURED, SIMULATED = "measured", "simulated"
#: Of the table: a cell is empty where there is no such figure.
COLUMNS = (
    "what", "how", "nodes", "replicas", "requests/s", "p50_ms", "p99_ms", "refused",
    "tasks", "driver_s", "seconds",
)  # fmt: skip

Floats = npt.NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the history; fewer seconds")
    is_quick = parser.parse_args().quick
    if is_quick:
        loadtest.PRECISION, loadtest.CONFIRM_S = QUICK_PRECISION, QUICK_CONFIRM_S
    with tempfile.TemporaryDirectory() as folder:
        rows, claims = serving(Path(folder), QUICK_SIMULATED_S if is_quick else SIMULATED_S)
        rows += features(Path(folder), QUICK_ROWS if is_quick else ROWS)
    finish("scale", [dict.fromkeys(COLUMNS) | row for row in rows], claims)


# ---------------------------------------------------------------- requests


@dataclass(frozen=True)
class Shape:
    """What a replica takes for a batch, in seconds: `fixed_s`, and `each_s` for each request."""

    fixed_s: float
    each_s: float

    @property
    def most(self) -> float:
        """Requests that one who comes may find at a replica, so that admission lets it in."""
        patient_s = PATIENCE * OBJECTIVE.p99_ms / 1000 / SPREAD
        return max(LET_IN, (patient_s - self.fixed_s) / self.each_s)


@dataclass
class Replica:
    waiting: list[tuple[float, int]] = field(default_factory=list)
    batch: list[tuple[float, int]] = field(default_factory=list)

    @property
    def n(self) -> int:
        return len(self.waiting) + len(self.batch)


def simulated(shape: Shape, replicas: int, fronts: int, rate: float, count: int) -> tuple[Floats, float]:
    """The seconds that so many requests took, sorted, and the share that was refused."""
    chance = np.random.default_rng(SEED)
    came = np.cumsum(chance.exponential(1 / rate, count)).tolist()
    by = chance.integers(0, fronts, count).tolist()
    varied = chance.gamma(1 / VARIES**2, VARIES**2, count + 1).tolist()
    # Among those with as few, a front end takes turns.
    ties = chance.random((64, replicas))
    known, all_of = np.zeros((fronts, replicas)), [Replica() for _ in range(replicas)]
    ends: list[tuple[float, int]] = []
    took: list[float] = []
    begun = refused = 0

    def begin(at: float, number: int) -> None:
        nonlocal begun
        replica, begun = all_of[number], begun + 1
        replica.batch, replica.waiting = replica.waiting[:MOST_BATCH], replica.waiting[MOST_BATCH:]
        took_s = (shape.fixed_s + shape.each_s * len(replica.batch)) * varied[begun % len(varied)]
        heapq.heappush(ends, (at + took_s, number))

    def finish_until(at: float) -> None:
        while ends and ends[0][0] <= at:
            end, number = heapq.heappop(ends)
            replica = all_of[number]
            for since, front in replica.batch:
                took.append(end - since)
                known[front, number] -= 1
            replica.batch = []
            if replica.waiting:
                begin(end, number)

    for at, front in zip(came, by, strict=True):
        finish_until(at)
        number = int(np.argmin(known[front] + ties[begun % len(ties)]))
        replica = all_of[number]
        if replica.n > shape.most:
            refused += 1
            continue
        replica.waiting.append((at, front))
        known[front, number] += 1
        if not replica.batch:
            begin(at, number)
    finish_until(math.inf)
    return np.sort(took), refused / count


def holds(shape: Shape, replicas: int, fronts: int, rate: float, count: int = TRIED) -> bool:
    """Whether so many replicas answer that rate within the objective."""
    if rate * shape.each_s >= replicas:
        return False
    took, refused = simulated(shape, replicas, fronts, rate, count)
    return p99_ms(took) <= OBJECTIVE.p99_ms and refused <= OBJECTIVE.error_rate


def p99_ms(took: Floats) -> float:
    return 1000 * float(np.quantile(took, 0.99))


def bears(shape: Shape) -> float:
    """The highest rate that one simulated replica bears."""
    low, high = 0.0, 2 / shape.each_s
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(shape, 1, 1, middle) else (low, middle)
    return low


def like(alone_s: float, rate: float) -> Shape:
    """A replica that takes so long for a lone request, and bears that rate.

    The more of a lone request's time is for the batch, whoever is in it, the more it bears.
    """
    low, high = 0.0, 0.99
    for _ in range(STEPS):
        share = (low + high) / 2
        low, high = (share, high) if bears(parted(alone_s, share)) < rate else (low, share)
    return parted(alone_s, (low + high) / 2)


def parted(alone_s: float, share: float) -> Shape:
    return Shape(alone_s * share, alone_s * (1 - share))


def measured(folder: Path) -> tuple[float, float, str]:
    """The rate that one replica of ours bears, what a lone request takes, in seconds, and a note on these."""
    slo = {"p99_ms": OBJECTIVE.p99_ms, "error_rate": OBJECTIVE.error_rate}
    made = ours.Service(folder / "service", serving={**ours.ONE, "slo": slo})
    with made.up() as url:
        bodies = [json.dumps(ours.body(row)).encode() for row in ours.asked().tolist()]
        headers = made.headers | {"Content-Type": "application/json"}
        asked = [request(url, headers, body) for body in bodies]
        with Offering(url, asked, OBJECTIVE) as offering:
            offering.closed(8, 5.0)
            alone_s = 1 / offering.closed(1, 10.0)
            found = loadtest.search(offering.offer, 0.5 * offering.closed(8, 5.0), OBJECTIVE)
    return found.best.rate, alone_s, found.note


def nodes_of(replicas: int) -> int:
    """How many nodes hold so many replicas, each its own core, and a front end beside them."""
    return math.ceil(replicas / (CORES - 1))


def serving(folder: Path, seconds: int) -> tuple[list[dict[str, Any]], list[Claim]]:
    """What the plan says of the rate, and what comes of that in simulation."""
    rate, alone_s, note = measured(folder)
    if note:
        print(f"note: {note}", file=sys.stderr)
    shape = like(alone_s, rate)
    capacity = Capacity(
        model="bench", version="1", machine="here", cpu=1, gpu=0, max_rows=MOST_BATCH, rate=rate, high=rate,
        rows=1, p99_ms=OBJECTIVE.p99_ms, error_rate=0, slo={}, on="", at="",
    )  # fmt: skip
    replicas = model.replicas(RATE, capacity, Cost().safety)
    count = int(RATE * seconds)
    least = 1 + bisect.bisect_left(
        range(1, replicas), True, key=lambda n: holds(shape, n, nodes_of(n), RATE, count // 4)
    )
    borne = bears(shape)
    one = "one replica, at its limit"
    rows: list[dict[str, Any]] = [
        {
            "what": "one replica, one caller",
            "how": MEASURED,
            "replicas": 1,
            "requests/s": round(1 / alone_s),
        },
        {"what": one, "how": MEASURED, "replicas": 1, "requests/s": round(rate)},
        {"what": one, "how": SIMULATED, "replicas": 1, "requests/s": round(borne)},
    ]
    told = []
    for what, fronts, number in (
        ("as planned, a front end a node", nodes_of(replicas), replicas),
        ("as planned, one front end of all", 1, replicas),
        ("the fewest, a front end a node", nodes_of(least), least),
    ):
        took, refused = simulated(shape, number, fronts, RATE, count)
        told.append((p99_ms(took), refused))
        rows.append(
            {
                "what": what,
                "how": SIMULATED,
                "nodes": nodes_of(number),
                "replicas": number,
                "requests/s": round(RATE),
                "p50_ms": round(1000 * float(np.quantile(took, 0.5)), 2),
                "p99_ms": round(p99_ms(took), 2),
                "refused": refused,
            }
        )
    return rows, [
        Claim("a simulated replica bears over a real one, less 1", abs(borne / rate - 1), CLOSE),
        Claim("p99 as planned, ms", told[0][0], OBJECTIVE.p99_ms),
        Claim("share refused as planned", told[0][1], OBJECTIVE.error_rate),
    ]


# ---------------------------------------------------------------- features


@dataclass(frozen=True)
class Joined:
    """What a join took, in seconds: the driver alone, each piece, and of these each that is a later slice."""

    driver_s: float
    pieces_s: list[float]
    later_s: list[float]


def features(folder: Path, rows: int) -> list[dict[str, Any]]:
    """A billion rows on so many nodes, by what pieces take that are cut as theirs would be."""
    in_new_process(_build, folder / "history", rows)
    found = joined_apart(folder / "history", rows, rows // (BUCKETS * SLICES))
    # As `cut` does with buckets as large as these.
    count = BUCKETS * math.ceil(BILLION / BUCKETS / ROWS_A_TASK)
    larger = len(found.pieces_s) / count * BILLION / rows
    pieces = [larger * each for each in random.Random(SEED).choices(found.later_s, k=count)]
    driver_s = found.driver_s * BILLION / rows
    told: list[dict[str, Any]] = [
        {
            "what": f"features, {rows:,} rows, one CPU",
            "how": MEASURED,
            "tasks": len(found.pieces_s),
            "driver_s": round(found.driver_s, 2),
            "seconds": round(found.driver_s + sum(found.pieces_s), 2),
        }
    ]
    for nodes in NODES:
        seconds = driver_s + makespan(pieces, nodes * CORES)
        told.append(
            {
                "what": "features, a billion rows",
                "how": SIMULATED,
                "nodes": nodes,
                "tasks": count,
                "driver_s": round(driver_s),
                "seconds": round(seconds),
            }
        )
    return told


def makespan(pieces: list[float], cpus: int) -> float:
    """When the last piece is done, each taken in turn by the CPU that is free first.

    >>> makespan([3.0, 1.0, 1.0, 2.0], 2)
    4.0
    """
    free = [0.0] * cpus
    for each in pieces:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def _build(folder: Path, rows: int) -> None:
    histories.build(folder, PROJECT, rows)


def joined_apart(folder: Path, rows: int, rows_a_task: int) -> Joined:
    """What a join takes by itself, each piece on one CPU: Polars would have one on all."""
    made: Joined = in_new_process(_joined, folder, rows, rows_a_task, POLARS_MAX_THREADS="1")
    return made


def _joined(folder: Path, rows: int, rows_a_task: int) -> Joined:
    snapshot, spine = histories.open_history(folder, PROJECT).snapshot(), histories.spine(rows // SHARE)
    (read,) = FEATURES.reads
    view, _, wanted = read
    pieces = [*cut(spine, snapshot, wanted, FEATURES, rows_a_task)]
    timed = [timed_run(partial(answer, piece, FEATURES)) for piece in pieces]
    answers = iter([found for _, found in timed])
    # What is left is what the driver does.
    joining.answer = lambda piece, features: next(answers)
    driver_s, _ = timed_run(
        partial(join, spine, {view.source: snapshot}, FEATURES, on_ray=False, rows_a_task=rows_a_task)
    )
    seconds = [seconds for seconds, _ in timed]
    # The first edge of a bucket is its beginning.
    later = [took for took, piece in zip(seconds, pieces, strict=True) if len(piece.edges) > 2]
    return Joined(driver_s, seconds, later)


if __name__ == "__main__":
    main()
