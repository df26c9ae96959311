"""Ray's autoscaler by the node types of cluster.yaml: nodes come for what is asked, die in use, and go idle.

The nodes are fakes on this machine (fakes.py), and all that runs on them is the product's own; the tests are
in the order of a day. Run as a script (`test_autoscaler.py CLUSTER FOLDER WHAT`), this file is a driver: a
process is of one cluster.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlops_ray import keys
from mlops_ray.cluster import local
from mlops_ray.cluster.local import LocalCluster
from mlops_ray.config import Project
from mlops_ray.cost.holds import HOLDS
from mlops_ray.data import prediction_log
from mlops_ray.data.prediction_log import COUNTERS, COUNTS
from mlops_ray.errors import MlopsError
from mlops_ray.storage import Storage
from mlops_ray.training import families, sweep
from mlops_ray.training.families import CPU_OR_GPU, Family, How, Params, Sample
from tests import fakes
from tests.conftest import ROOT
from tests.e2e import load
from tests.fakes import NODE, PATIENCE_S, Fakes, until
from tests.serving import packages
from tests.training.made import task

FILE = ROOT / "cluster.yaml"
pytestmark = pytest.mark.timeout(3 * PATIENCE_S)
#: In the file it is ten minutes.
IDLE_S = 5.0
#: How often a spot node is taken away in serving.
KILLS = 5 if os.environ.get("MLOPS_WHOLE") else 1
#: The nodes that are always there.
LEAST = ["1-cpu", "2-cpu"]
#: Two trials find room on a node of eight CPUs, by halves of its GPU, and none beside a replica.
CPUS, OF_REPLICAS = {"cpu": 4}, {"cpu": 6}
GPUS = {"gpu": "required", "resources": {**CPUS, "gpu": 0.5}}
SEARCHES: dict[str, dict[str, Any]] = {"gpu": GPUS, "spot": {"resources": CPUS}}
#: What no type of node has: so many GPUs, CPUs, and that region.
HOPELESS: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({"gpu": "required", "resources": {"gpu": 2}}, {}),
    ({"resources": {"cpu": 9}}, {}),
    (GPUS, {"region": "in(xx-far)"}),
]
TRIALS, CALLERS = 5, 2
#: While the one lies in a driver's folder fits wait; with the other begins a file for each node with fits.
PAUSE, BEGUN, HOUR_S = "pause", "begun-on-", 3600


@dataclass(frozen=True)
class Pausing:
    """Another family, which computes on a CPU whatever it is given, and may be made to wait."""

    inner: Family
    folder: Path
    devices: Any = CPU_OR_GPU

    def __getattr__(self, name: str) -> Any:
        if name in ("name", "tasks", "style", "space"):
            return getattr(self.inner, name)
        raise AttributeError(name)

    def fit(self, sample: Sample, params: Params, how: How) -> Any:
        (self.folder / f"{BEGUN}{os.environ[NODE]}").touch()
        until(lambda: not (self.folder / PAUSE).exists())
        return self.inner.fit(sample, params, replace(how, device="cpu"))


def main(cluster: LocalCluster, folder: Path, what: str) -> None:
    local.connect(cluster)
    if what == "serve":
        _serve(folder, cluster.http_port)
    elif what == "down":
        from ray import serve

        # As `mlops-ray down` does it in a job.
        serve.shutdown()
    else:
        _sweep(folder, SEARCHES[what])


def _sweep(folder: Path, asked: dict[str, Any]) -> None:
    import ray

    families.FAMILIES["xgboost"] = Pausing(families.FAMILIES["xgboost"], folder)
    search = {"trials": TRIALS, "seed": 7, "space": {"xgboost": {"n_estimators": 40}}, **asked}
    made = task({"families": ["ridge", "xgboost"], "search": search})
    found = sweep.run(made, folder=folder / "sweep", label_selector={})
    rows = [
        [trial.id, trial.family, dict(trial.params), list(trial.fold_scores), trial.score, trial.state]
        for trial in found.leaderboard
    ]
    kinds = [[node["Labels"], node["Resources"]] for node in ray.nodes()]
    refusals = [_refusal(*hopeless) for hopeless in HOPELESS] if "gpu" in asked else []
    (folder / "made.json").write_text(json.dumps({"rows": rows, "nodes": kinds, "refusals": refusals}))


def _refusal(asked: dict[str, Any], selector: dict[str, str]) -> str:
    try:
        return str(sweep.resources(task({"families": ["xgboost"], "search": asked}), selector))
    except MlopsError as error:
        return str(error)


def _serve(folder: Path, port: int) -> None:
    from mlops_ray.serving import deploy

    of, storage = project(folder), Storage.open(str(folder))
    packages.crown(storage, packages.NAME, 1, packages.write(storage.path("packed"), of, 2.0))
    deploy.deploy(of, storage, http_port=port)


def project(folder: Path) -> Project:
    """A model of which a node has room for one replica, and of which a few callers want three."""
    serving = {"replicas": {"min": 2, "max": 3}, "resources": OF_REPLICAS, "slo": {"p99_ms": 5}}
    return packages.project(folder, serving=serving)


@dataclass
class Driver:
    """A process that works on the cluster, in a folder."""

    process: subprocess.Popen[bytes]
    folder: Path

    def until(self, asked: Callable[[], Any]) -> Any:
        """What is answered as soon as that is anything, while it works."""

        def look() -> Any:
            assert self.process.poll() in (None, 0), "the driver has failed"
            return asked()

        return until(look)

    def made(self) -> Any:
        """What it has made, in the end."""
        assert self.process.wait(PATIENCE_S) == 0
        return json.loads((self.folder / "made.json").read_text())

    def begun_on(self) -> list[str]:
        """The nodes on which fits have begun."""
        return [path.name.removeprefix(BEGUN) for path in self.folder.glob(f"{BEGUN}*")]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fakes]:
    """A cluster by cluster.yaml, whose least nodes run."""
    with fakes.running(FILE, tmp_path_factory.mktemp("fakes"), idle_s=IDLE_S) as made:
        until(lambda: made.nodes() == LEAST)
        yield made


def drive(cluster: Fakes, folder: Path, what: str) -> Driver:
    command = [sys.executable, __file__, json.dumps(asdict(cluster.cluster)), str(folder), what]
    return Driver(subprocess.Popen(command, env=cluster.environment), folder)


@pytest.fixture(scope="module")
def undisturbed(cluster: Fakes, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What came of the sweep on GPUs, and on which nodes that was; they have gone since."""
    driver = drive(cluster, tmp_path_factory.mktemp("gpu"), "gpu")
    driver.until(lambda: cluster.nodes("gpu"))
    made = driver.made() | {"on": driver.begun_on()}
    until(lambda: cluster.nodes() == LEAST)
    return made


@pytest.fixture(scope="module")
def served(cluster: Fakes, undisturbed: Any, tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """A model with two replicas, one on each of the least nodes."""
    folder = tmp_path_factory.mktemp("serve")
    assert drive(cluster, folder, "serve").process.wait(PATIENCE_S) == 0
    return Storage.open(str(folder))


def test_a_sweep_that_requires_gpus_has_nodes_with_gpus_brought_which_go_when_idle(undisturbed: Any) -> None:
    kind = yaml.safe_load(FILE.read_text())["available_node_types"]["gpu"]
    there = [has for labels, has in undisturbed["nodes"] if labels.items() >= kind["labels"].items()]
    assert there[0].items() >= kind["resources"].items()
    assert {node.partition("-")[2] for node in undisturbed["on"]} == {"gpu"}
    assert {state for *_, state in undisturbed["rows"]} <= {"complete", "stopped"}


def test_what_no_type_of_node_has_is_refused_before_the_sweep_begins(undisturbed: Any) -> None:
    gpus, cpus, elsewhere = undisturbed["refusals"]
    assert "no node of the cluster has the 9 CPUs of training.search.resources" in cpus
    assert "training.search.gpu is required, but no node of the cluster has " in gpus
    assert "no node of the cluster has the label region in (xx-far), " in elsewhere


def test_a_spot_node_that_is_taken_away_in_a_sweep_changes_nothing_of_it(
    cluster: Fakes, undisturbed: Any, served: Storage, tmp_path: Path
) -> None:
    # No trial has room beside the replicas.
    assert {node: replicas(cluster, node) for node in cluster.nodes()} == dict.fromkeys(LEAST, 1)
    (tmp_path / PAUSE).touch()
    driver = drive(cluster, tmp_path, "spot")
    (taken, *_) = driver.until(driver.begun_on)
    assert taken in cluster.nodes("spot")
    cluster.kill(taken)
    (tmp_path / PAUSE).unlink()
    assert driver.made()["rows"] == undisturbed["rows"]
    assert set(driver.begun_on()) > {taken}


def test_load_brings_a_node_for_one_more_replica_and_nobody_misses_it_when_it_is_taken_away(
    cluster: Fakes, served: Storage
) -> None:
    key = Path(keys.ensure_local(served)).read_text().strip()
    url, stop = f"http://127.0.0.1:{cluster.cluster.http_port}", threading.Event()
    joined = load.steady(url, key, packages.NAME, 2.0, stop, CALLERS)
    try:
        until(lambda: answering(served) >= 3)
        for kills in range(KILLS):
            (taken,) = (node for node in cluster.nodes("spot") if replicas(cluster, node))
            cluster.kill(taken)
            # Another one comes, which answers too.
            until(lambda so_far=kills + 1: answering(served) >= 3 + so_far)
    finally:
        stop.set()
        seen = joined()
    assert seen.wrong == []
    assert seen.statuses["client", 200] > 0
    # Who does not ask again may have lost what was in the node's hands.
    plain = {status: count for (kind, status), count in seen.statuses.items() if kind == "plain"}
    assert sum(count for status, count in plain.items() if status not in (200, 429)) <= KILLS * CALLERS


def test_nodes_without_work_go_and_the_least_stay(cluster: Fakes, served: Storage) -> None:
    # Else a replica too many would be kept for some minutes. Which one goes is Serve's choice.
    hold = {"most_replicas": 2, "until": time.time() + HOUR_S, "why": "a test"}
    served.write_json(hold, HOLDS, f"{packages.NAME}.json")
    until(lambda: sum(replicas(cluster, node) for node in cluster.nodes()) == 2)
    until(lambda: all(node in LEAST or replicas(cluster, node) for node in cluster.nodes()))
    assert drive(cluster, served.root, "down").process.wait(PATIENCE_S) == 0
    until(lambda: cluster.nodes() == LEAST)


def replicas(cluster: Fakes, node: str) -> int:
    """How many answer for the model on a node."""
    return sum(f"ServeReplica:{packages.NAME}:" in title for title in cluster.titles(node))


def answering(storage: Storage) -> int:
    """How many replicas have answered since the first, dead ones too."""
    counters = storage.root / prediction_log.FOLDER / packages.NAME / COUNTERS
    return sum(COUNTS.unpack(path.read_bytes())[0] > 0 for path in counters.glob("*"))


if __name__ == "__main__":
    main(LocalCluster(**json.loads(sys.argv[1])), Path(sys.argv[2]), sys.argv[3])
