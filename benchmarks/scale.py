"""What 10,000 requests a second and features of a billion rows would need: simulated, by measured unit costs.

Nobody has a hundred nodes at hand to try it. What is measured here is one replica of our service with
everything on: the highest rate at which its objective holds, and what a lone request takes; and the join of
the pieces of a history, one after the other. The rest is simulated, and these are its assumptions:

- Serving: nodes have cores as fast as this machine's, a replica on each and the front end on the last. A
  load balancer sends each request to the front end of any node, by chance; a front end sends it on to the
  replica with the fewest requests that this front end knows of, on whichever node; what the others send it
  does not know. A batch of n takes fixed + each · n, told apart so that one simulated replica bears what the
  real one bore. What the network and the load balancer take comes on top.
- Features: pieces of the join take what those here took, each on one CPU, in the order in which they come;
  the driver cuts and puts together alone, at its measured time a row of the spine. All read the files as fast
  as this machine reads its own; what Ray takes for a task, milliseconds, is not counted.

`--quick` measures a tenth of the history, and simulates fewer seconds.
"""

import argparse
import bisect
import heapq
import json
import math
import random
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import histories, ours
from benchmarks.measure import in_new_process
from benchmarks.pit_join import FEATURES, PROJECT, SHARE
from benchmarks.report import Claim, finish
from mlops_ray.config.project import Cost
from mlops_ray.cost import model
from mlops_ray.cost.model import Capacity
from mlops_ray.features.join import ROWS_A_TASK, answer, cut, join
from mlops_ray.serving.admission import LET_IN, PATIENCE, SPREAD
from mlops_ray.serving.loadtest import Objectives, search
from mlops_ray.serving.offering import Offering, request

#: What is to be borne, within an objective; and what a node has.
RATE, OBJECTIVE, CORES = 10_000.0, Objectives(p99_ms=50, error_rate=0.001), 8
SIMULATED_S, QUICK_SIMULATED_S = 60, 10
#: A replica is simulated for so many requests to see what it bears; and what is found may be off by so much.
TRIED, STEPS = 50_000, 10
CLOSE = 0.03
BILLION, ROWS, QUICK_ROWS = 10**9, 10_000_000, 1_000_000
NODES = (1, 2, 4, 8, 16, 32)
SEED = 3
#: Batches of one size differ in what they take by this share.
VARIES = 0.2
MOST_BATCH = 256

Floats = npt.NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the history; fewer seconds")
    is_quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as folder:
        rows, claims = serving(Path(folder), QUICK_SIMULATED_S if is_quick else SIMULATED_S)
        rows += features(Path(folder), QUICK_ROWS if is_quick else ROWS)
    finish("scale", rows, claims)


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


def measured(folder: Path) -> tuple[float, float]:
    """The rate that one replica of ours bears, and what a lone request takes, in seconds."""
    slo = {"p99_ms": OBJECTIVE.p99_ms, "error_rate": OBJECTIVE.error_rate}
    made = ours.Service(folder / "service", serving={**ours.ONE, "slo": slo})
    with made.up() as url:
        bodies = [json.dumps(ours.body(row)).encode() for row in ours.asked().tolist()]
        headers = made.headers | {"Content-Type": "application/json"}
        asked = [request(url, headers, body) for body in bodies]
        with Offering(url, asked, OBJECTIVE) as offering:
            offering.closed(8, 5.0)
            alone_s = 1 / offering.closed(1, 10.0)
            found = search(offering.offer, 0.5 * offering.closed(8, 5.0), OBJECTIVE)
    return found.best.rate, alone_s


def serving(folder: Path, seconds: int) -> tuple[list[dict[str, Any]], list[Claim]]:
    """What the plan says of the rate, and what comes of that in simulation."""
    rate, alone_s = measured(folder)
    shape = like(alone_s, rate)
    capacity = Capacity(
        model="bench", version="1", machine="here", cpu=1, gpu=0, max_rows=MOST_BATCH, rate=rate, high=rate,
        rows=1, p99_ms=OBJECTIVE.p99_ms, error_rate=0, slo={}, on="", at="",
    )  # fmt: skip
    replicas = model.replicas(RATE, capacity, Cost().safety)
    nodes = math.ceil(replicas / (CORES - 1))
    count = int(RATE * seconds)
    least = 1 + bisect.bisect_left(
        range(1, replicas), True, key=lambda n: holds(shape, n, nodes, RATE, count // 4)
    )
    rows = [
        {
            "what": "one replica, measured",
            "replicas": 1,
            "requests/s": round(rate),
            "alone_ms": 1000 * alone_s,
        },
        {"what": "one replica, simulated", "replicas": 1, "requests/s": round(bears(shape))},
    ]
    told = []
    for what, fronts, number in (
        ("as planned, a front end on each node", nodes, replicas),
        ("as planned, one front end that knows all", 1, replicas),
        ("the fewest that hold, a front end on each node", nodes, least),
    ):
        took, refused = simulated(shape, number, fronts, RATE, count)
        told.append((p99_ms(took), refused))
        rows.append(
            {
                "what": what,
                "replicas": number,
                "nodes": math.ceil(number / (CORES - 1)),
                "requests/s": round(RATE),
                "p50_ms": round(1000 * float(np.quantile(took, 0.5)), 2),
                "p99_ms": round(p99_ms(took), 2),
                "refused": refused,
            }
        )
    return rows, [
        Claim("a simulated replica bears over a real one, less 1", abs(bears(shape) / rate - 1), CLOSE),
        Claim("p99 as planned, ms", told[0][0], OBJECTIVE.p99_ms),
        Claim("share refused as planned", told[0][1], OBJECTIVE.error_rate),
    ]


# ---------------------------------------------------------------- features


@dataclass(frozen=True)
class Joined:
    """What a join took: the driver alone, and each of its pieces, in seconds; and their rows."""

    driver_s: float
    pieces_s: list[float]
    rows_a_piece: int


def features(folder: Path, rows: int) -> list[dict[str, Any]]:
    """A billion rows on so many nodes, by pieces as large as those that are cut there."""
    in_new_process(_build, folder / "history", rows)
    found: Joined = in_new_process(_joined, folder / "history", rows)
    scale = BILLION / rows
    each = np.array(found.pieces_s) * (ROWS_A_TASK / found.rows_a_piece)
    count = math.ceil(BILLION / ROWS_A_TASK)
    chance = random.Random(SEED)
    pieces = [chance.choice(each.tolist()) for _ in range(count)]
    told = [
        {
            "what": f"{rows:,} rows joined, measured",
            "pieces": len(found.pieces_s),
            "rows/s of a CPU": round(rows / sum(found.pieces_s)),
            "driver_s": round(found.driver_s, 2),
            "seconds": round(found.driver_s + sum(found.pieces_s), 2),
        }
    ]
    for nodes in NODES:
        seconds = found.driver_s * scale + makespan(pieces, nodes * CORES)
        told.append(
            {
                "what": "a billion rows, simulated",
                "nodes": nodes,
                "pieces": count,
                "driver_s": round(found.driver_s * scale),
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


def _joined(folder: Path, rows: int) -> Joined:
    """In pieces as large as there would be, or a tenth of the history."""
    snapshot, spine = histories.open_history(folder, PROJECT).snapshot(), histories.spine(rows // SHARE)
    rows_a_task = min(ROWS_A_TASK, rows // 10)
    (read,) = FEATURES.reads
    view, _, wanted = read
    pieces = [*cut(spine, snapshot, wanted, FEATURES, rows_a_task)]
    took = []
    for piece in pieces:
        begin = time.perf_counter()
        answer(piece, FEATURES)
        took.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    join(spine, {view.source: snapshot}, FEATURES, on_ray=False, rows_a_task=rows_a_task)
    whole_s = time.perf_counter() - begin
    return Joined(max(0.0, whole_s - sum(took)), took, rows // len(pieces))


if __name__ == "__main__":
    main()
