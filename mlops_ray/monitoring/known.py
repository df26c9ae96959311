"""Rows that a version was made from, and those that it was tested on; a package itself holds none.

They lie among the training sets, and a set changes only where somebody's rows are erased from it, so each is
read once.
The digest is of all values: to compare it would be to read all of them, and who can write there could write
the log as well.
"""

import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import polars as pl

from mlops_ray.data import prediction_log
from mlops_ray.errors import PolicyError, safe
from mlops_ray.features.dataset import FOLDER
from mlops_ray.features.definitions import LABEL
from mlops_ray.monitoring import skew
from mlops_ray.monitoring.deltas import PREDICTION
from mlops_ray.policy import require_here
from mlops_ray.registry.package import Package

#: Rows that are looked at, evenly spread: of a training set, and of a test, which calibrates.
MOST_ROWS, MOST_TESTED = 5_000, 20_000

logger = logging.getLogger(__name__)


def learned(storage_root: Path, package: Package) -> pl.DataFrame | None:
    """The features of rows of the training set, the test part's among them; `None` where it is not there."""
    return _read(storage_root, package, "file", package.feature_set.names, MOST_ROWS)


def tested(storage_root: Path, package: Package) -> pl.DataFrame | None:
    """Features, answer and label of rows that a version was tested on; `None` where there are none.

    They are kept of classifications (`dataset.keep_tested`); of versions that are older they are not.
    """
    return _read(
        storage_root, package, "tested", (*package.feature_set.names, PREDICTION, LABEL), MOST_TESTED
    )


def whole(rows: pl.DataFrame, package: Package) -> pl.DataFrame:
    """Without the rows of which nothing is known that only machines may read.

    Such values lie in a log of their own, in which two requests of one name are not told apart.
    """
    hidden = [each.name for each in package.feature_set.columns if each.hidden and each.name in rows.columns]
    return rows.filter(~pl.all_horizontal(pl.col(hidden).is_null())) if hidden else rows


def _read(
    storage_root: Path, package: Package, which: str, columns: Sequence[str], most: int
) -> pl.DataFrame | None:
    recorded = package.manifest["training_set"]
    if which not in recorded:
        return None
    try:
        require_here(skew.policies(package))
        file = storage_root / FOLDER / Path(recorded[which]).name
        return _rows(file, tuple(columns), most, file.stat().st_mtime_ns if file.is_file() else 0)
    except (PolicyError, OSError, pl.exceptions.PolarsError) as error:
        # What can be known of the rest is not held up.
        logger.error("the training set of %s cannot be read (%s)", package.name, safe(error))
        return None


@lru_cache(maxsize=16)
def _rows(file: Path, columns: tuple[str, ...], most: int, _: int) -> pl.DataFrame | None:
    if not file.is_file():
        logger.warning("rows are not compared with the training set %s, which is gone", file.name)
        return None
    return prediction_log.spread(pl.scan_parquet(file, glob=False).select(columns), most)
