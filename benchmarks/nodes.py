"""What nodes cost: the point-in-time join, batch scoring and a service on 1 to 4 nodes of one cluster.

The nodes are fakes, processes of this machine each of which says that it has all of its cores. The same small
work is done on 1, 2, 3 and 4: more of them make nothing faster here, and a straight line through the times
tells what is there anyway from what each further node adds: processes that start on it, tasks that are sent
to it, a replica. All start on the same cores, where on machines of their own they would side by side: a node
costs at most what stands there.

What nodes save, cores that they share cannot show. One row is simulated, and says so: the same join if each
had cores of its own, by what its pieces take on one CPU. `benchmarks.scale` simulates what is larger.
`--quick` takes 2 nodes, and one run of each.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks import histories, ours, scale
from benchmarks import scoring as scored
from benchmarks.load import target
from benchmarks.measure import in_new_process, line, timed_run
from benchmarks.pit_join import FEATURES, PROJECT, SHARE, differing
from benchmarks.report import Claim, finish
from mlops_ray import keys
from mlops_ray.cluster import local
from mlops_ray.cluster.local import LocalCluster
from mlops_ray.cluster.service import infer_body
from mlops_ray.config import Project
from mlops_ray.features.join import join
from mlops_ray.serving import score
from mlops_ray.storage import Storage
from tests import fakes
from tests.fakes import Standing, until

NODES, QUICK_NODES = (1, 2, 3, 4), (1, 2)
RUNS, QUICK_RUNS = 5, 1
#: How often the service is brought up: half a minute each, with its end.
STARTS, QUICK_STARTS = 2, 1
#: Of the history, and more than any of its buckets has: each is a piece of its own.
ROWS = 1_000_000
ROWS_A_PIECE = ROWS // 10
#: Of what is scored: enough that all nodes have some.
FILES, FILE_ROWS = 16, 50_000
#: Of a node. A replica takes them all, so that there is one on each.
CPUS = os.cpu_count() or 1
ASKED_S, ASKED_ROWS = 5, 256
#: What is measured, in what, and what is told of it.
UNITS = {
    "first": (f"features of {ROWS:,} rows, first call", "s"),
    "features": (f"features of {ROWS:,} rows", "s"),
    "scoring": (f"scoring of {FILES * FILE_ROWS:,} rows", "s"),
    "up": ("a service brought up, a replica a node", "s"),
    "request": ("a lone request to it", "ms"),
}

Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 nodes, one run")
    is_quick = parser.parse_args().quick
    runs, starts = (QUICK_RUNS, QUICK_STARTS) if is_quick else (RUNS, STARTS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        in_new_process(_build, folder / "history")
        alone = scale.joined_apart(folder / "history", ROWS, ROWS_A_PIECE)
        project, storage, _ = scored.prepare(folder / "storage")
        _write(folder)
        (folder / "cluster").mkdir()
        found = list[Figures]()
        with fakes.standing(folder / "cluster") as cluster:
            os.environ.update(cluster.joined)
            for count in QUICK_NODES if is_quick else NODES:
                cluster.add(CPUS)
                until(lambda count=count: len(cluster.nodes()) == count)
                seen = in_new_process(_joined, cluster.cluster, folder / "history", count, runs)
                seen |= in_new_process(
                    _scored, cluster.cluster, project, storage, folder / "rows", count, runs
                )
                found.append(seen | _served(cluster, folder, storage, count, starts))
    finish("nodes", _rows(found, alone.pieces_s), _claims(found))


def _write(folder: Path) -> None:
    """What is scored, and a few rows for the history of the model that is served."""
    (folder / "rows").mkdir()
    for number in range(FILES):
        scored.made(FILE_ROWS, number + 1).write_parquet(folder / "rows" / f"{number:03}.parquet")
    few = scored.made(ASKED_ROWS, 0)
    few.with_columns(label=1.0).write_csv(folder / scored.TABLE, datetime_format="%Y-%m-%dT%H:%M:%SZ")


def _rows(found: Sequence[Figures], pieces_s: list[float]) -> list[dict[str, Any]]:
    """For each kind of work what it took by the number of nodes, and the line through that."""
    counts, rows = range(1, len(found) + 1), []
    for name, (what, unit) in UNITS.items():
        times = [each[name] for each in found]
        fixed, more = line(counts, times)
        rows.append(_row(what, scale.MEASURED, unit, times) | {"fixed": fixed, "each node": more})
        if name == "features":
            here_s = scale.makespan(pieces_s, CPUS)
            own = [
                took - here_s + scale.makespan(pieces_s, n * CPUS)
                for n, took in zip(counts, times, strict=True)
            ]
            rows.append(_row(f"{what}, cores of its own", scale.SIMULATED, unit, own))
    return rows


def _row(what: str, how: str, unit: str, times: Sequence[float]) -> dict[str, Any]:
    by = {f"on {count}": each for count, each in enumerate(times, 1)}
    return {"what": what, "how": how, "unit": unit, **by, "fixed": None, "each node": None}


def _claims(found: Sequence[Figures]) -> list[Claim]:
    names = {
        "differing": "features that differ from one process'",
        "idle": "nodes that joined nothing",
        "unanswered": "rows that were not scored",
        "refused": "requests that were not answered",
    }
    return [Claim(said, sum(each[name] for each in found), 0) for name, said in names.items()]


def _free(nodes: int) -> None:
    """Waits until all nodes are there, and nobody holds anything of them."""
    import ray

    until(lambda: ray.available_resources().get("CPU", 0) >= CPUS * nodes)


# ---------------------------------------------------------------- features


def _build(folder: Path) -> None:
    histories.build(folder, PROJECT, ROWS)


def _joined(cluster: LocalCluster, folder: Path, nodes: int, runs: int) -> Figures:
    """Seconds of the first join of a driver on Ray, and the median of those that follow."""
    local.connect(cluster)
    _free(nodes)
    snapshots = {histories.SOURCE: histories.open_history(folder, PROJECT).snapshot()}
    spine, seen = histories.spine(ROWS // SHARE), set[str]()
    run = partial(join, spine, snapshots, FEATURES, rows_a_task=ROWS_A_PIECE, on_node=seen.add)
    timed = [timed_run(partial(run, on_ray=True)) for _ in range(1 + runs)]
    (first_s, answer), again = timed[0], [seconds for seconds, _ in timed[1:]]
    differ = differing(answer[histories.VALUE], run(on_ray=False)[histories.VALUE])
    idle = nodes - len(seen)
    return {"first": first_s, "features": statistics.median(again), "differing": differ, "idle": idle}


# ---------------------------------------------------------------- scoring


def _scored(
    cluster: LocalCluster, project: Project, storage: Storage, given: Path, nodes: int, runs: int
) -> Figures:
    """Median seconds from files to files through Ray Data, each time by a pool of its own."""
    import ray

    score.SMALL_ROWS = 0
    took, missing = list[float](), 0
    for _ in range(runs):
        local.connect(cluster)
        _free(nodes)
        ray.shutdown()
        seconds, output = timed_run(partial(scored.score, project, storage, given))
        took.append(seconds)
        missing += FILES * FILE_ROWS - scored.answered(output)
    return {"scoring": statistics.median(took), "unanswered": missing}


# ---------------------------------------------------------------- service


def _served(cluster: Standing, folder: Path, storage: Storage, nodes: int, starts: int) -> Figures:
    """A replica on each node: what it takes until a champion is live, and a lone request."""
    serving = {
        "replicas": {"min": nodes, "max": nodes},
        "resources": {"cpu": CPUS},
        "listen": {"port": cluster.cluster.http_port},
    }
    file = folder / "project.yaml"
    file.write_text(yaml.safe_dump(scored.document(storage.root) | {"serving": serving}))
    _command("ingest", file)
    # The very first makes what the storage lacks, and is not counted.
    tries, took = starts + (nodes == 1), list[float]()
    for _ in range(tries):
        seconds, _ = timed_run(partial(_command, "deploy", file))
        took.append(seconds)
        until(lambda: all(cluster.titled(node, f"ServeReplica:{scored.NAME}:") for node in cluster.nodes()))
        if len(took) < tries:
            _command("down", file)
    headers = {"Authorization": f"Bearer {Path(keys.ensure_local(storage)).read_text().strip()}"}
    rows = [row | {"time": scored.NOW.isoformat()} for row in scored.made(ASKED_ROWS, 1).to_dicts()]
    url = f"http://{local.LOOPBACK}:{cluster.cluster.http_port}/v2/models/{scored.NAME}/infer"
    asked = target(url, map(infer_body, rows), folder / f"{nodes}.requests", headers)
    asked.closed(1, ASKED_S)
    load = asked.closed(1, ASKED_S)
    _command("down", file)
    return {"up": statistics.median(took[-starts:]), "request": load.p50_ms, "refused": load.errors}


def _command(name: str, file: Path) -> None:
    """A command of ours, on the cluster that the environment names."""
    done = subprocess.run([ours.COMMAND, name, str(file)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr}")


if __name__ == "__main__":
    main()
