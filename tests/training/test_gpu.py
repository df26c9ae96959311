"""Sweeps on a cluster of two nodes of which one has a GPU, as far as Ray is told.

Run as a script (`test_gpu.py FOLDER`), this file is the driver: a process is of one cluster, and the other
tests' has no GPU.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from mlops_ray.errors import PolicyError, TrainingError
from mlops_ray.training import families, sweep
from mlops_ray.training.families import How, Params, Sample
from mlops_ray.training.space import OneOf
from tests.training.made import task

ROOT = Path(__file__).parent.parent.parent
#: A sweep's workers start on two cores, which others use as well.
PATIENCE_S = 120.0
GPU_NODE = {"region": "with-gpu"}
CASES: dict[str, dict[str, Any]] = {
    "halves": {"gpu": "required", "resources": {"cpu": 1, "gpu": 0.5}},
    "whole": {"gpu": "preferred"},
    "none": {"gpu": "none", "trials": 2},
}


class Spy:
    """A family that writes down what it was given; where `meet` is, two of its fits wait for each other."""

    name: ClassVar[str] = "spy"
    tasks: ClassVar[tuple[Any, ...]] = ("regression",)
    devices: ClassVar[tuple[Any, ...]] = ("cpu", "cuda")
    style: ClassVar[Any] = "codes"
    space: ClassVar[dict[str, OneOf]] = {"number": OneOf((1, 2, 3))}

    def __init__(self, folder: Path, *, meet: bool) -> None:
        self.folder, self.meet = folder, meet

    def fit(self, sample: Sample, params: Params, how: How) -> Any:
        import ray

        from mlops_ray.registry.models import ForestModel

        begin, context = time.time(), ray.get_runtime_context()
        self.folder.joinpath(f"began-{os.getpid()}").touch()
        while self.meet and len(list(self.folder.glob("began-*"))) < 2:
            assert time.time() < begin + PATIENCE_S, "no other trial ran beside this one"
            time.sleep(0.02)
        said = {
            "device": how.device,
            "gpus": ray.get_gpu_ids(),
            "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "node": context.get_node_id(),
            "begin": begin,
            "end": time.time(),
        }
        with self.folder.joinpath("fits").open("a") as file:
            file.write(json.dumps(said) + "\n")
        return ForestModel.constant(float(sample.y.mean()))


def _task(search: dict[str, Any]) -> Any:
    return task(
        {
            "families": ["spy"],
            "search": {"trials": 4, "scheduler": "none", **search},
            "validation": {"folds": 1, "test": {"share": 0.2}},
        }
    )


def main(folder: Path) -> None:
    """Runs the cases and writes what came of them."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    without = cluster.add_node(num_cpus=1, num_gpus=0, include_dashboard=False, object_store_memory=10**8)
    having = cluster.add_node(num_cpus=3, num_gpus=1, labels=GPU_NODE, object_store_memory=10**8)
    ray.init(cluster.address, log_to_driver=False)
    found: dict[str, Any] = {"node": having.node_id, "other": without.node_id}
    for name, search in CASES.items():
        case = folder / name
        case.mkdir()
        families.FAMILIES["spy"] = Spy(case, meet=name == "halves")
        made = sweep.run(_task(search), folder=case / "sweep", label_selector={})
        found[name] = {"states": [trial.state for trial in made.leaderboard]}
        if name == "whole":
            sweep.fit(_task(search), made.best.family, made.best.params, label_selector=GPU_NODE)
        found[name]["fits"] = [json.loads(line) for line in (case / "fits").read_text().splitlines()]
    found["refusals"] = [_refusal(*asked) for asked in _hopeless()]
    found["settled_for"] = sweep.resources(_task({"gpu": "preferred", "resources": {"gpu": 2}}), {})
    found["elsewhere"] = _refusal({"gpu": "preferred"}, {"region": "in(another)"})
    (folder / "found.json").write_text(json.dumps(found))
    ray.shutdown()
    cluster.shutdown()


def _hopeless() -> list[tuple[dict[str, Any], dict[str, str]]]:
    return [
        ({"gpu": "required", "resources": {"gpu": 2}}, {}),
        ({"gpu": "required"}, {"region": "!with-gpu"}),
    ]


def _refusal(search: dict[str, Any], label_selector: dict[str, str]) -> str:
    try:
        return str(sweep.resources(_task(search), label_selector))
    except (TrainingError, PolicyError) as error:
        return str(error)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("gpu")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, __file__, str(folder)], env=inherited | own, check=True, timeout=2 * PATIENCE_S
    )
    return json.loads((folder / "found.json").read_text())


def _most_at_once(fits: list[dict[str, Any]]) -> int:
    return max(sum(a["begin"] <= b["begin"] < a["end"] for a in fits) for b in fits)


def test_two_trials_share_a_gpu_by_halves_and_never_three(found: dict[str, Any]) -> None:
    case = found["halves"]
    assert case["states"] == ["complete"] * 4
    assert _most_at_once(case["fits"]) == 2


def test_trials_queue_for_the_one_gpu(found: dict[str, Any]) -> None:
    case = found["whole"]
    assert case["states"] == ["complete"] * 4
    assert _most_at_once(case["fits"]) == 1


@pytest.mark.parametrize("name", ["halves", "whole"])
def test_a_trial_with_a_gpu_runs_where_there_is_one_and_computes_on_it(
    found: dict[str, Any], name: str
) -> None:
    fits = found[name]["fits"]
    assert {fit["node"] for fit in fits} == {found["node"]}
    assert {fit["device"] for fit in fits} == {"cuda"}
    assert all(fit["gpus"] and fit["visible"] == "0" for fit in fits)


def test_the_winner_is_fitted_as_its_trial_was(found: dict[str, Any]) -> None:
    # Four trials of one fold, and the last fit.
    assert len(found["whole"]["fits"]) == 5


def test_without_a_gpu_wanted_none_is_used(found: dict[str, Any]) -> None:
    fits = found["none"]["fits"]
    assert len(fits) == 2
    assert {fit["device"] for fit in fits} == {"cpu"}
    assert not any(fit["gpus"] for fit in fits)


def test_a_gpu_that_no_node_has_is_refused_or_done_without(found: dict[str, Any]) -> None:
    too_many, elsewhere = found["refusals"]
    assert "no node of the cluster has 1 CPUs and 2 GPUs" in too_many
    assert "no node of the cluster has the label region other than with-gpu, 1 CPU and 1 GPU" in elsewhere
    assert found["settled_for"] == {"CPU": 1.0}
    assert "no node of the cluster has the label region in (another) and 1 CPU" in found["elsewhere"]


def test_on_a_cluster_without_a_gpu_a_search_that_requires_one_does_not_begin(
    ray_cluster: object, tmp_path: Path
) -> None:
    asks = task({"families": ["xgboost"], "search": {"trials": 2, "gpu": "required"}})
    with pytest.raises(TrainingError, match="gpu is required, but no node of the cluster has a GPU"):
        sweep.run(asks, folder=tmp_path / "sweep", label_selector={})
    assert not (tmp_path / "sweep").exists()
    large = task({"search": {"resources": {"cpu": 4}}})
    with pytest.raises(TrainingError, match="no node of the cluster has the 4 CPUs"):
        sweep.resources(large, {})
    linear = task({"search": {"gpu": "required"}})
    with pytest.raises(TrainingError, match=r"none of training\.families computes on one"):
        sweep.resources(linear, {})
    unclear = task({"search": {"resources": {"gpu": 0.5}}})
    with pytest.raises(TrainingError, match=r"gpu is 0\.5, but training\.search\.gpu is none"):
        sweep.resources(unclear, {})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
