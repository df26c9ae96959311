"""A training set: the spine with its labels, joined with the features, and a manifest that identifies it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from mlops_ray.config import Project
from mlops_ray.errors import DataError
from mlops_ray.features.definitions import FeatureSet
from mlops_ray.features.join import EVENT_TIME, point_in_time
from mlops_ray.schema import Schema
from mlops_ray.storage import Storage, replacing

LABEL = "label"
LIBRARIES = ("mlops_ray", "polars", "numpy", "deltalake", "holidays")


@dataclass(frozen=True)
class TrainingSet:
    """Rows with features and label, where they lie, and what they were made from.

    `frame` holds entity keys, target time, every feature and `label` (Float64), sorted by time and key.
    """

    frame: pl.DataFrame
    manifest: dict[str, Any]
    path: Path


def spine(project: Project, table: pl.DataFrame, features: FeatureSet) -> pl.DataFrame:
    """One row a labelled row of the target's table: keys, target time, request inputs, label."""
    label = pl.sql_expr(project.target.expr).cast(pl.Float64, strict=True).alias(LABEL)
    rows = table.with_columns(pl.col(EVENT_TIME).alias(features.time))
    inputs = [name for name in features.request.names if name != features.time]
    _require_inputs(rows, inputs)
    try:
        labelled = rows.select(features.time, *inputs, label)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"target.expr {project.target.expr!r} cannot be computed: {error}") from error
    return labelled.filter(pl.col(LABEL).is_not_null()).sort(features.time, *inputs)


def _require_inputs(rows: pl.DataFrame, inputs: list[str]) -> None:
    for name in inputs:
        if name not in rows.columns:
            raise DataError(
                f"a feature reads {name!r} from the request, but the target's table does not keep it: "
                f"it has {', '.join(rows.columns)}"
            )


def build(
    project: Project,
    features: FeatureSet,
    target_table: pl.DataFrame,
    tables: Mapping[str, pl.DataFrame],
    versions: Mapping[str, int],
    storage: Storage,
) -> TrainingSet:
    """Joins, writes Parquet and manifest, and returns the training set.

    Spine rows before the first event that any window or lag could reach are left out: their features are
    missing because the history begins, not because the value was.
    """
    rows = spine(project, target_table, features)
    joined = point_in_time(rows.drop(LABEL), tables, features)
    frame = rows.hstack([joined[name] for name in joined.columns if name not in rows.columns])
    frame = frame.filter(pl.col(features.time) >= _warm(tables, features))
    if not frame.height:
        raise DataError(
            f"no row of {project.target.source!r} has a full look-back; the longest window or lag "
            "is longer than the data"
        )
    digest = values_digest(frame)
    path = storage.path("datasets", f"{project.project}-{digest[:12]}.parquet")
    manifest = _manifest(project, features, versions, frame, digest, path.name)
    with replacing(path) as new:
        frame.write_parquet(new)
    storage.write_json(manifest, "datasets", f"{path.stem}.json")
    return TrainingSet(frame, manifest, path)


def open_set(storage: Storage, name: str) -> TrainingSet:
    """The training set whose Parquet file has this name."""
    path = storage.path("datasets", name)
    return TrainingSet(pl.read_parquet(path), storage.read_json("datasets", f"{path.stem}.json"), path)


def _warm(tables: Mapping[str, pl.DataFrame], features: FeatureSet) -> pl.Expr:
    """The first target time whose features see a full look-back in every table."""
    begins = [table[EVENT_TIME].min() for table in tables.values() if table.height]
    if not begins:
        return pl.lit(None).fill_null(True)
    return pl.lit(max(begins)) + pl.duration(microseconds=features.lookback_us + features.horizon_us)  # type: ignore[type-var]


def values_digest(frame: pl.DataFrame) -> str:
    """SHA-256 over the canonical values: names, types, and each column's values in Arrow's layout.

    >>> a = pl.DataFrame({"x": [1.0, None]})
    >>> values_digest(a) == values_digest(pl.concat([a[:1], a[1:]], rechunk=False))
    True
    """
    digest = hashlib.sha256()
    for column in frame.iter_columns():
        digest.update(f"{column.name}:{column.dtype}:{len(column)};".encode())
        digest.update(column.is_null().cast(pl.UInt8).to_numpy().tobytes())
        if column.dtype == pl.String:
            digest.update(orjson.dumps(column.to_list()))
        else:
            physical = column.to_physical()
            digest.update(
                physical.fill_null(0 if physical.dtype != pl.Boolean else False).to_numpy().tobytes()
            )
    return digest.hexdigest()


def _manifest(
    project: Project,
    features: FeatureSet,
    versions: Mapping[str, int],
    frame: pl.DataFrame,
    digest: str,
    name: str,
) -> dict[str, Any]:
    times = frame[features.time]
    return {
        "file": name,
        "project": project.project,
        "rows": frame.height,
        "digest": digest,
        "from": times.min(),
        "to": times.max(),
        "columns": Schema(features.columns).to_json()["columns"],
        "features": features.to_json(),
        "features_digest": features.digest,
        "target": project.target.model_dump(mode="json"),
        "horizon_us": features.horizon_us,
        "history_versions": dict(versions),
        "libraries": libraries(),
    }


def libraries() -> dict[str, str]:
    """The versions of what computes features."""
    return {library: version(library) for library in LIBRARIES}
