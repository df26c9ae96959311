"""What nodes cost: the point-in-time join, batch scoring and a service on 1 to 4 nodes of one cluster.

The nodes are fakes, processes of this machine that say of themselves that they have a CPU each: more of them
make nothing faster here. The same small work is done on 1, 2, 3 and 4, and a straight line through the times
tells what is there anyway from what each further node adds: tasks that start on it, workers, a replica. What
nodes save by sharing large work, two cores cannot show; `benchmarks.scale` simulates it. `--quick` takes
2 nodes and one run.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks import histories, ours
from benchmarks import scoring as scored
from benchmarks.load import target
from benchmarks.measure import in_new_process, line, repeat, timed_run
from benchmarks.pit_join import FEATURES, PROJECT, SHARE
from benchmarks.report import Claim, finish
from mlops_ray.cluster import local
from mlops_ray.cluster.local import LocalCluster
from mlops_ray.config import Project
from mlops_ray.features.join import join
from mlops_ray.serving import score
from mlops_ray.storage import Storage
from tests import fakes
from tests.fakes import Standing, until

NODES, QUICK_NODES = (1, 2, 3, 4), (1, 2)
RUNS, QUICK_RUNS = 5, 1
#: Of the history, which is cut into so many pieces that four nodes have some each, and of the scored file.
ROWS, PIECES, SCORED_ROWS = 1_000_000, 16, 100_000
#: Of a node: one replica finds room on each, and no second.
CPUS, REPLICA_CPUS = 1, 0.6
ASKED_S = 5
#: What is measured, and in what.
UNITS = {"features": "s", "scoring": "s", "service up": "s", "a request": "ms"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 nodes, one run")
    is_quick = parser.parse_args().quick
    runs = QUICK_RUNS if is_quick else RUNS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        in_new_process(_build, folder / "history")
        project, storage, _ = scored.prepare(folder / "storage")
        scored.write(folder / "rows", SCORED_ROWS)
        (folder / "cluster").mkdir()
        found, differing = list[dict[str, float]](), 0
        with fakes.standing(folder / "cluster") as cluster:
            os.environ.update(cluster.joined)
            for count in QUICK_NODES if is_quick else NODES:
                added = cluster.add(CPUS)
                until(lambda added=added: added in cluster.nodes())
                joined, differs = in_new_process(_joined, cluster.cluster, folder / "history", count, runs)
                differing += differs
                scores = in_new_process(_scored, project, storage, folder / "rows", runs)
                found.append({"features": joined, "scoring": scores, **_served(cluster, folder, count)})
    finish("nodes", _rows(found), [Claim("features that differ from one process'", differing, 0)])


def _rows(found: Sequence[dict[str, float]]) -> list[dict[str, Any]]:
    """For each kind of work its seconds by the number of nodes, and the line through them."""
    counts, rows = range(1, len(found) + 1), []
    for what, unit in UNITS.items():
        times = [each[what] for each in found]
        fixed, more = line(counts, times)
        by = {f"on {count}": each for count, each in zip(counts, times, strict=True)}
        rows.append({"what": what, "unit": unit, **by, "fixed": fixed, "each node": more})
    return rows


# ---------------------------------------------------------------- features


def _build(folder: Path) -> None:
    histories.build(folder, PROJECT, ROWS)


def _joined(cluster: LocalCluster, folder: Path, nodes: int, runs: int) -> tuple[float, int]:
    """Median seconds of a join on Ray, and how many features differ from those of this process."""
    local.connect(cluster)
    _all_there(nodes)
    snapshots = {histories.SOURCE: histories.open_history(folder, PROJECT).snapshot()}
    spine = histories.spine(ROWS // SHARE)
    run: Callable[..., pl.DataFrame] = partial(join, spine, snapshots, FEATURES, rows_a_task=ROWS // PIECES)
    seconds = repeat(partial(run, on_ray=True), runs)
    differing = run(on_ray=True)[histories.VALUE].ne_missing(run(on_ray=False)[histories.VALUE]).sum()
    return statistics.median(seconds), int(differing)


def _all_there(nodes: int) -> None:
    import ray

    until(lambda: ray.cluster_resources().get("CPU", 0) >= CPUS * nodes)


# ---------------------------------------------------------------- scoring


def _scored(project: Project, storage: Storage, given: Path, runs: int) -> float:
    """Median seconds from files to files through Ray Data."""
    score.SMALL_ROWS = 0
    return statistics.median(repeat(partial(scored.score, project, storage, given), runs))


# ---------------------------------------------------------------- service


def _served(cluster: Standing, folder: Path, nodes: int) -> dict[str, float]:
    """A replica on each node: what `run` takes to bring a trained model live, and a lone request."""
    serving = {
        "replicas": {"min": nodes, "max": nodes, "initial": nodes},
        "resources": {"cpu": REPLICA_CPUS},
        "listen": {"port": cluster.cluster.http_port},
    }
    service = ours.Service(folder / "service", serving=serving)
    # The first trains it.
    service.run()
    subprocess.run([ours.COMMAND, "down", str(service.file)], capture_output=True, check=True)
    seconds, url = timed_run(service.run)
    until(lambda: all(cluster.titled(node, f"ServeReplica:{service.name}:") for node in cluster.nodes()))
    bodies = map(ours.body, ours.asked().tolist())
    asked = target(url, bodies, folder / f"{nodes}.requests", service.headers)
    asked.closed(1, ASKED_S)
    return {"service up": seconds, "a request": asked.closed(1, ASKED_S).p50_ms}


if __name__ == "__main__":
    main()
