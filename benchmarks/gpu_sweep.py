"""A sweep of XGBoost on a GPU beside the same on the CPUs of its machine, and the winner's fit likewise.

Trials fit a quarter of a million rows of 50 columns. On the CPUs each has one; on the GPU they share it by
one, two and four at a time. Where there is no GPU it says so, and claims nothing. `--quick` takes a tenth.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import polars as pl
import ray

from benchmarks.report import Claim, finish
from mlops_ray.config import Training
from mlops_ray.schema import Column
from mlops_ray.training import sweep
from mlops_ray.training.leaderboard import Sweep
from mlops_ray.training.task import Task

TRIALS, ROWS, COLUMNS, QUICK_SHARE = 8, 250_000, 50, 0.1
WARM_ROWS = 2_000
#: How many trials share the GPU.
SHARED = (1, 2, 4)
#: The errors of the same trials may differ by so much of them: a GPU adds in another order.
LIMIT_DIFFERENCE = 0.02
#: No rows or columns are drawn: a GPU draws others.
SPACE = {
    "n_estimators": 200,
    "max_depth": {"min": 6, "max": 9},
    "max_bin": 256,
    "subsample": 1.0,
    "colsample_bynode": 1.0,
}
START = datetime(2026, 1, 1, tzinfo=UTC)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows")
    rows = int(ROWS * (QUICK_SHARE if parser.parse_args().quick else 1))
    if not gpu():
        print("no GPU here: nothing was measured")
        return
    ray.init(num_cpus=os.cpu_count(), num_gpus=1, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as name:
        finish("gpu_sweep", *measured(rows, Path(name)))


def gpu() -> str:
    """The first GPU of this machine by its name; empty where there is none."""
    if shutil.which("nvidia-smi") is None:
        return ""
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split("\n")[0]


def made(rows: int, search: dict[str, Any]) -> Task:
    """A regression of which the one fold trains on `rows` rows."""
    random, count = np.random.default_rng(0), int(rows / 0.45)
    x = random.normal(size=(count, COLUMNS)).astype(np.float32)
    label = 2 * x[:, 0] + np.sin(3 * x[:, 1]) + x[:, 2] * x[:, 3] + random.normal(scale=0.3, size=count)
    names = [f"x{number}" for number in range(COLUMNS)]
    end = START + timedelta(minutes=count - 1)
    times = pl.datetime_range(START, end, "1m", time_zone="UTC", eager=True)
    frame = pl.DataFrame(x, schema=names).cast(pl.Float64)
    given = {
        "trials": TRIALS,
        "algorithm": "random",
        "scheduler": "none",
        "rows": rows,
        "seed": 7,
        "space": {"xgboost": SPACE},
    }
    training = {"families": ["xgboost"], "metric": "rmse", "validation": {"folds": 1}}
    return Task(
        frame=frame.with_columns(time=times, key=pl.lit("a"), label=pl.Series(label, dtype=pl.Float64)),
        columns=tuple(Column(name, "float") for name in names),
        keys=("key",),
        time="time",
        kind="regression",
        training=Training.model_validate({**training, "search": {**given, **search}}),
        horizon_us=0,
        label_delay_us=0,
        test_from=START + timedelta(minutes=int(0.9 * count)),
    )


def measured(rows: int, folder: Path) -> tuple[list[dict[str, Any]], list[Claim]]:
    ways: dict[str, dict[str, Any]] = {"CPU, one a trial": {}} | {
        f"GPU, {shared} trials at a time": {
            "gpu": "required",
            "resources": {"cpu": 1, "gpu": 1 / shared},
        }
        for shared in SHARED
    }
    shown: list[dict[str, Any]] = []
    found: dict[str, Sweep] = {}
    for way, search in ways.items():
        task = made(rows, search)
        # The library makes itself ready on the GPU.
        swept(made(WARM_ROWS, search | {"trials": 2}), folder)
        seconds, found[way] = timed(partial(swept, task, folder))
        trials = found[way].leaderboard
        shown.append(
            _row(f"{TRIALS} trials: {way}", rows, seconds, statistics.median(t.seconds for t in trials))
        )
    best = found["CPU, one a trial"].best
    cores = os.cpu_count() or 1
    for way, cpus in (("CPU, one a trial", 1), ("CPU, one a trial", cores), ("GPU, 1 trials at a time", 1)):
        task = made(rows, ways[way])
        seconds, _ = timed(partial(sweep.fit, task, best.family, best.params, label_selector={}, cpus=cpus))
        called = way.partition(",")[0] + (f", {cpus} threads" if way.startswith("CPU") else "")
        shown.append(_row(f"the winner's fit: {called}", len(task.test.train), seconds, None))
    return [{"gpu": gpu(), **row} for row in shown], [
        Claim(
            "the largest difference of a trial's error, as a share of it",
            _difference(found),
            LIMIT_DIFFERENCE,
        )
    ]


def _row(what: str, rows: int, seconds: float, fit_s: float | None) -> dict[str, Any]:
    return {"what": what, "rows": rows, "columns": COLUMNS, "seconds": seconds, "median_fit_s": fit_s}


def swept(task: Task, folder: Path) -> Sweep:
    return sweep.run(task, folder=folder / "sweep", label_selector={})


def timed(do: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    answer = do()
    return time.perf_counter() - begin, answer


def _difference(found: dict[str, Sweep]) -> float:
    """Between the errors that the same trial has on the CPU and on the GPU."""
    first, *others = ({trial.id: trial.score for trial in each.leaderboard} for each in found.values())
    return max(
        abs(other[id] - score) / score for other in others for id, score in first.items() if id in other
    )


if __name__ == "__main__":
    main()
