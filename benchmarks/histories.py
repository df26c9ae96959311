"""Histories and spines that benchmarks share: random rows, stored by the store itself, the same each time.

Times lie anywhere in a year, to the microsecond. One row in ten corrects an earlier one, in a commit of its
own that comes last.
"""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mlops_ray.config import Project
from mlops_ray.features.definitions import compile_features
from mlops_ray.features.history import History, Snapshot
from mlops_ray.schema import INSTANT

KEYS = 10_000
#: What a spine asks for beside known keys, one row in a thousand.
UNKNOWN_SHARE = 0.001
#: Commits of first versions, each of the next part of the year.
COMMITS = 3
CORRECTED_SHARE = 0.1
BEGIN_US = 1_735_689_600_000_000
YEAR_US = 365 * 86_400_000_000
#: Amounts: far enough from 0 that a mean keeps its digits, whichever way it is summed.
MEAN, DEVIATION = 100.0, 15.0
HISTORY_SEED, SPINE_SEED = 1, 2
SOURCE, KEY, TIME, VALUE = "events", "key", "time", "value"


def project(features: dict[str, Any], columns: tuple[str, ...] = (VALUE,)) -> Project:
    """A project with these features of a source of numbers by one key, for a target of the same keys."""
    numbers = {name: {"type": "float"} for name in columns}
    key = {KEY: {"type": "category"}}
    return Project.model_validate(
        {
            "project": "benchmark",
            "sources": {
                SOURCE: {
                    "path": "events.parquet",
                    "entity": KEY,
                    "event_time": {"column": TIME},
                    "columns": {**key, **numbers},
                },
                "asked": {
                    "path": "asked.parquet",
                    "entity": KEY,
                    "event_time": {"column": TIME},
                    "columns": {**key, "label": {"type": "float"}},
                },
            },
            "features": {"view": {"source": SOURCE, "features": features}},
            "target": {"source": "asked", "expr": "label", "task": "regression"},
        }
    )


def build(folder: Path, project: Project, rows: int) -> History:
    """A history of so many rows, which `History.append` wrote."""
    history = open_history(folder, project)
    source = project.sources[SOURCE]
    generator = np.random.default_rng(HISTORY_SEED)
    corrections = int(rows * CORRECTED_SHARE)
    first = _events(generator, rows - corrections)
    for number in range(COMMITS):
        history.append(first[_share(first.height, number, COMMITS)], source, f"part {number}")
    corrected = first[generator.choice(first.height, corrections, replace=False)]
    corrected = corrected.with_columns(pl.Series(VALUE, generator.normal(MEAN, DEVIATION, corrections)))
    history.append(corrected, source, "corrections")
    return history


def open_history(folder: Path, project: Project) -> History:
    return History.of(folder, compile_features(project).tables[0])


def spine(rows: int) -> pl.DataFrame:
    """Rows that ask for features: `key` and `time`, in no order, and now and then a key that nobody knows."""
    generator = np.random.default_rng(SPINE_SEED)
    known = _names(generator.integers(0, KEYS, rows))
    keys = pl.select(
        pl.when(pl.Series(generator.random(rows) < UNKNOWN_SHARE)).then(pl.lit("nobody")).otherwise(known)
    ).to_series()
    times = pl.Series(generator.integers(BEGIN_US, BEGIN_US + YEAR_US, rows))
    return pl.DataFrame({KEY: keys, TIME: times.cast(INSTANT)})


def files(snapshot: Snapshot) -> list[str]:
    """All files of a history at a snapshot."""
    return [file for bucket in snapshot.buckets.values() for file in bucket.files]


def _events(generator: np.random.Generator, rows: int) -> pl.DataFrame:
    """First versions, in the order of their times, each of a moment of its own."""
    times = np.sort(generator.integers(BEGIN_US, BEGIN_US + YEAR_US, rows))
    return pl.DataFrame(
        {
            KEY: _names(generator.integers(0, KEYS, rows)),
            "event_time": pl.Series(times).cast(INSTANT),
            VALUE: generator.normal(MEAN, DEVIATION, rows),
        }
    )


def _names(numbers: np.ndarray[Any, np.dtype[np.int64]]) -> pl.Series:
    names = pl.Series([f"customer-{number:05d}" for number in range(KEYS)])
    return names.gather(numbers)


def _share(rows: int, number: int, parts: int) -> slice:
    return slice(rows * number // parts, rows * (number + 1) // parts)
