"""Windows of 30 days at a million points over five million rows, beside raw Polars on the same files.

Polars alone has them in two ways, and both are measured: sums up to both ends of each window, found by
`join_asof`, and `rolling_mean_by` with the points among the rows. The claim is against whichever is faster.
Sums up to a row round otherwise than sums of a window, so that equal means equal to nine digits. Feast
offers no windows at arbitrary points. `--quick` takes a tenth of the rows.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks import histories, raw_polars
from benchmarks.histories import SOURCE, VALUE
from benchmarks.measure import Grown, alternate, growth, in_new_process, peak, repeat, shown
from benchmarks.report import Claim, finish
from mlops_ray.config import parse_duration
from mlops_ray.features.definitions import compile_features
from mlops_ray.features.history import History
from mlops_ray.features.join import join

ROWS, QUICK_ROWS = 5_000_000, 500_000
#: Rows of the history for each point.
SHARE = 5
PAIRS = 5
SIZES = (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
QUICK_SIZES = SIZES[:3]
RUNS = 3
OVER = "30d"
#: The claim is about the mean; what else a window can say is shown.
AGGREGATES: dict[str, dict[str, Any]] = {
    "mean": {},
    "count": {},
    "max": {},
    "std": {},
    "quantile": {"quantile": 0.9},
}
PROJECTS = {
    agg: histories.project({agg: {"window": {"of": VALUE, "agg": agg, "over": OVER, **more}}})
    for agg, more in AGGREGATES.items()
}
FEATURES = {agg: compile_features(project) for agg, project in PROJECTS.items()}
WAYS = {"sums and join_asof": raw_polars.means, "rolling_mean_by": raw_polars.rolling_means}
LIMIT_RATIO = 2.0
TOLERANCE = 1e-9

Raw = Callable[[Sequence[str], pl.DataFrame, int], pl.Series]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows")
    is_quick = parser.parse_args().quick
    size = QUICK_ROWS if is_quick else ROWS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        growing = grow(folder / "growing", QUICK_SIZES if is_quick else SIZES)
        history = histories.build(folder / "features", PROJECTS["mean"], size)
        points = histories.spine(size // SHARE)
        beside, claims = beside_polars(history, points)
        others = [
            shown(f"ours: {agg}", size, repeat(partial(ours, history, points, agg), RUNS))
            for agg in PROJECTS
            if agg != "mean"
        ]
    finish("windows", [*beside, *others, *growing], claims)


def ours(history: History, points: pl.DataFrame, agg: str = "mean") -> pl.Series:
    """From the files on disk: the snapshot is part of it."""
    return join(points, {SOURCE: history.snapshot()}, FEATURES[agg], on_ray=False)[agg]


def raw(history: History, points: pl.DataFrame, way: Raw) -> pl.Series:
    return way(histories.files(history.snapshot()), points, parse_duration(OVER))


def beside_polars(history: History, points: pl.DataFrame) -> tuple[list[dict[str, Any]], list[Claim]]:
    size = history.snapshot().rows
    timed = {
        name: alternate(partial(ours, history, points), partial(raw, history, points, way), PAIRS)
        for name, way in WAYS.items()
    }
    fastest = min(WAYS, key=lambda name: statistics.median(timed[name].theirs))
    rows = [
        row
        for name, pairs in timed.items()
        for row in (
            shown(f"ours: mean, in turn with {name}", size, pairs.ours, ratio=pairs.ratio),
            shown(f"raw Polars: mean, {name}", size, pairs.theirs),
        )
    ]
    differ = sum(differing(*pairs.answers) for pairs in timed.values())
    return rows, [
        Claim(f"ours over raw Polars ({fastest})", timed[fastest].ratio, LIMIT_RATIO),
        Claim("means that differ from raw Polars'", differ, 0),
    ]


def differing(ours: pl.Series, theirs: pl.Series) -> int:
    """How many means are not equal to nine digits, or missing on one side alone."""
    if len(ours) != len(theirs):
        return max(len(ours), len(theirs))
    # Missing is NaN here, and equal to itself.
    same = np.isclose(ours.to_numpy(), theirs.to_numpy(), rtol=TOLERANCE, atol=0, equal_nan=True)
    return int((~same).sum())


def grow(folder: Path, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Ours, each size in a process of its own."""
    for size in sizes:
        in_new_process(_build, folder / str(size), size)
    grown = [in_new_process(_grown, folder / str(size), size) for size in sizes]
    return growth("ours: mean, growing", grown)


def _build(folder: Path, size: int) -> None:
    histories.build(folder, PROJECTS["mean"], size)


def _grown(folder: Path, size: int) -> Grown:
    history = histories.open_history(folder, PROJECTS["mean"])
    return peak(size, partial(ours, history, histories.spine(size // SHARE)), RUNS)


if __name__ == "__main__":
    main()
