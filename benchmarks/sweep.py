"""A sweep of 100 small trials beside the same fits in a loop, divided by the cores.

A trial is three fits of XGBoost on 20,000 rows, one for each fold, on one thread; the loop does them in this
process, one after the other, from the same matrices. A sweep of as many trials as there are cores shows what
is there anyway: workers that start and import. `--quick` takes one pair instead of five.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from mlops_ray.cluster import head, local

# Ray reads these once, when it is first imported. Its workers let others go first; the loop does not either.
os.environ.update(head.SETTINGS | {"RAY_worker_niceness": "0"})

import numpy as np
import polars as pl
import ray

from benchmarks.measure import Pairs, alternate, repeat
from benchmarks.report import Claim, finish
from mlops_ray.config import Training
from mlops_ray.schema import Column
from mlops_ray.training import sweep, trial
from mlops_ray.training.leaderboard import Sweep
from mlops_ray.training.task import Task
from mlops_ray.training.trial import Setting

TRIALS, PAIRS, QUICK_PAIRS = 100, 5, 1
#: Of them the first fold trains on half, more than the 20,000 that a trial takes.
ROWS, COLUMNS = 60_000, 12
LIMIT_RATIO = 1.3
#: Fits of about 0.2 s on one thread; a family's own space takes five times as long.
SPACE = {"n_estimators": {"min": 30, "max": 60}, "max_depth": {"min": 4, "max": 6}}
START = datetime(2026, 1, 1, tzinfo=UTC)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one pair instead of five")
    pairs, cores = QUICK_PAIRS if parser.parse_args().quick else PAIRS, os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cluster = local.start(folder, cpus=cores, gpus=0)
        try:
            local.connect(cluster)
            task, few = made(TRIALS), made(cores)
            fixed = repeat(partial(swept, few, folder / "few"), pairs)
            encoding = repeat(partial(sweep.encode_folds, task), pairs)
            timed = alternate(partial(swept, task, folder / "sweep"), partial(loop, task), pairs)
        finally:
            ray.shutdown()
            local.stop(folder)
    rows, claims = compared(timed, fixed, encoding, cores)
    finish("sweep", rows, claims)


def made(trials: int) -> Task:
    """A regression with `ROWS` rows, of which a trial sees 20,000; nothing stops early."""
    random = np.random.default_rng(0)
    x = random.normal(size=(ROWS, COLUMNS))
    label = 2 * x[:, 0] + np.sin(3 * x[:, 1]) + x[:, 2] * x[:, 3] + random.normal(scale=0.3, size=ROWS)
    names = [f"x{number}" for number in range(COLUMNS)]
    times = pl.datetime_range(
        START, START + timedelta(minutes=ROWS - 1), "1m", time_zone="UTC", eager=True
    ).alias("time")
    search = {"trials": trials, "scheduler": "none", "seed": 7, "space": {"xgboost": SPACE}}
    return Task(
        frame=pl.DataFrame(x, schema=names).with_columns(times, key=pl.lit("a"), label=pl.Series(label)),
        columns=tuple(Column(name, "float") for name in names),
        keys=("key",),
        time="time",
        kind="regression",
        training=Training.model_validate({"families": ["xgboost"], "metric": "rmse", "search": search}),
        horizon_us=0,
        label_delay_us=0,
        test_from=START + timedelta(minutes=int(0.9 * ROWS)),
    )


#: What the last sweep tried, for the loop to try it too.
LAST: list[Sweep] = []


def swept(task: Task, folder: Path) -> Sweep:
    LAST[:] = [sweep.run(task, folder=folder, label_selector={})]
    return LAST[0]


def loop(task: Task) -> list[tuple[float, ...]]:
    """The scores of the last sweep's trials, from fits in this process; the matrices are made here too."""
    folds = sweep.encode_folds(task)
    setting = Setting(task.training.metric, task.kind, task.training.search.seed, 1, task.outcome)
    return [
        tuple(
            trial.score(fold, task.families[made.family], made.params, setting)[0]
            for fold in folds[task.families[made.family].style]
        )
        for made in LAST[0].leaderboard
    ]


def compared(
    timed: Pairs, fixed: Sequence[float], encoding: Sequence[float], cores: int
) -> tuple[list[dict[str, Any]], list[Claim]]:
    found, scores = timed.answers
    ours, few = statistics.median(timed.ours), statistics.median(fixed)
    # The first trial of each worker imports XGBoost.
    later = sorted(found.leaderboard, key=lambda made: made.id)[cores:]
    trial_s = statistics.mean(made.seconds for made in later)
    each_s = cores * (ours - few) / len(later)
    differ = sum(made.fold_scores != here for made, here in zip(found.leaderboard, scores, strict=True))
    parts = {
        f"ours: a sweep of {TRIALS} trials": timed.ours,
        f"the same fits in a loop, divided by {cores} cores": [s / cores for s in timed.theirs],
        f"a sweep of {cores} trials: workers start, import, fit once": fixed,
        "a trial in a worker, all cores busy": [trial_s],
        "a trial in the loop, the other cores idle": [s / TRIALS for s in timed.theirs],
        "of a worker, between two trials": [each_s - trial_s],
        "of the driver, encoding the folds": encoding,
    }
    rows = [
        {"what": what, "median_s": statistics.median(s), "min_s": min(s), "max_s": max(s)}
        for what, s in parts.items()
    ]
    return rows, [
        Claim("the sweep over the loop divided by the cores", timed.ratio * cores, LIMIT_RATIO),
        Claim("trials whose scores differ from the loop's", differ, 0),
    ]


if __name__ == "__main__":
    main()
