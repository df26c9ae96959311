"""A training set: the spine with its labels and features, and a manifest from which it is made again.

The manifest says everything the values depend on: definitions, what was known and stored when, versions of
what computed them. `rebuild` makes the same set from it a year later, whatever was appended since.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from mlops_ray.config import Policy, Project
from mlops_ray.errors import DataError
from mlops_ray.expressions import function_digest
from mlops_ray.features.definitions import LABEL, FeatureSet, ViewTable
from mlops_ray.features.history import BEGINNING, AsOf, History, Snapshot, clock, read
from mlops_ray.features.join import join
from mlops_ray.features.resample import EVENT_TIME
from mlops_ray.policy import label_selector
from mlops_ray.schema import DTYPES, INSTANT, Schema
from mlops_ray.storage import Storage, replacing

FOLDER = "datasets"
LIBRARIES = ("mlops_ray", "polars", "numpy", "deltalake", "holidays")


@dataclass(frozen=True)
class TrainingSet:
    """Rows with features and label, where they lie, and what they were made from.

    `frame` holds entity keys, target time, every feature and, unless the spine was a file, `label` (Float64).
    """

    frame: pl.DataFrame
    manifest: dict[str, Any]
    path: Path


def build(
    project: Project, features: FeatureSet, held: Mapping[str, Snapshot], storage: Storage
) -> TrainingSet:
    """The training set of a project over these histories, by source; written as Parquet with its manifest.

    One row a labelled row of the target's source, sorted by time and key. Rows before the first event that
    any window or lag could reach are left out: their features are missing because the history begins, not
    because the value was.
    """
    target = project.target.model_dump(mode="json", include={"source", "expr", "where"})
    rows = spine(target, held[project.target.source], features)
    begin = _warm(held, features)
    policies = _policies(project)
    frame = _joined(rows, begin, held, features, policies)
    if not frame.height:
        raise DataError(
            f"no row of {project.target.source!r} has a full look-back; the longest window or lag "
            "is longer than the data"
        )
    return _write(
        project.project, frame, features, held, {"target": target, "warm": begin}, policies, storage
    )


def get(
    project: Project, features: FeatureSet, rows: pl.DataFrame, held: Mapping[str, Snapshot], storage: Storage
) -> TrainingSet:
    """The features of a user's own rows, in their order; written as Parquet with its manifest.

    `rows` have the columns of a request, and whatever else, which is passed through. Raises `DataError` for
    a row that is no valid request.
    """
    digest = values_digest(rows)
    kept = storage.path(FOLDER, f"spine-{digest[:12]}.parquet")
    with replacing(kept) as new:
        rows.write_parquet(new)
    policies = _policies(project)
    frame = _answered(rows, held, features, policies)
    return _write(project.project, frame, features, held, {"spine": kept.name}, policies, storage)


def rebuild(manifest: Path, functions: frozenset[str] = frozenset()) -> TrainingSet:
    """The training set of a manifest again, from the histories beside it.

    `functions` are those that the operator's project file names: a manifest may call no other. Raises
    `DataError` where its values are not those of the newest hash in the manifest.
    """
    if not manifest.is_file():
        raise DataError("there is no such manifest", file=str(manifest))
    storage = Storage.open(str(manifest.absolute().parent.parent))
    recorded = storage.read_json(FOLDER, manifest.name)
    try:
        features = FeatureSet.from_json(recorded["features"])
        _require_own(recorded, features, functions)
    except (KeyError, TypeError) as error:
        why = f"no manifest of a training set that this version reads ({error!r})"
        raise DataError(why, file=str(manifest)) from error
    held = {}
    for name, question in recorded["as_of"].items():
        history = History.of(storage.path("features", "x").parent, ViewTable.from_json(question["table"]))
        held[name] = history.snapshot(AsOf.from_json(question))
    if "target" in recorded:
        target = recorded["target"]
        rows = spine(target, held[target["source"]], features)
        begin = datetime.fromisoformat(recorded["warm"])
        frame = _joined(rows, begin, held, features, recorded["policies"])
    else:
        rows = _kept_spine(storage.path(FOLDER, recorded["spine"]))
        frame = _answered(rows, held, features, recorded["policies"])
    digest = values_digest(frame)
    if digest != recorded["digest"]:
        raise DataError(
            f"the rebuilt values hash to {digest[:12]}, not {recorded['digest'][:12]}; "
            f"{_what_changed(recorded, features)}",
            file=manifest.name,
        )
    path = storage.path(FOLDER, recorded["file"])
    with replacing(path) as new:
        frame.write_parquet(new)
    return TrainingSet(frame, recorded, path)


def _kept_spine(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"the spine cannot be read: {' '.join(str(error).split())[:200]}", file=path.name
        ) from error


def _require_own(recorded: Mapping[str, Any], features: FeatureSet, functions: frozenset[str]) -> None:
    """Raises `DataError` where a manifest names a path outside its storage, or a function of its own."""
    names = [recorded["file"], recorded.get("spine", recorded["file"])]
    names += [question["table"]["table"] for question in recorded["as_of"].values()]
    for name in names:
        if Path(name).name != name:
            raise DataError(f"the manifest names {name!r}, which is no plain name")
    for feature in features.computed:
        if feature.kind == "function" and feature.argument not in functions:
            raise DataError(
                f"the manifest calls {feature.argument!r}: give the project file that names it, by --project"
            )


def _what_changed(recorded: Mapping[str, Any], features: FeatureSet) -> str:
    """Why a set may not be the same again."""
    now = libraries()
    changed = [f"{k} {v} → {now.get(k, 'gone')}" for k, v in recorded["libraries"].items() if now.get(k) != v]
    changed += [
        f"the code of {feature.argument}"
        for feature in features.computed
        if feature.kind == "function" and function_digest(feature.argument) != feature.code
    ]
    return (
        f"since then changed: {', '.join(changed)}"
        if changed
        else "the libraries are the same: the history changed"
    )


def open_set(storage: Storage, name: str) -> TrainingSet:
    """The training set whose Parquet file has this name."""
    path = storage.path(FOLDER, name)
    return TrainingSet(pl.read_parquet(path), storage.read_json(FOLDER, f"{path.stem}.json"), path)


def spine(target: Mapping[str, Any], snapshot: Snapshot, features: FeatureSet) -> pl.DataFrame:
    """One row a labelled row of the target's source: keys, target time, request inputs, label.

    `target` has the `expr` of the label and the `where` of the rows. An interval that still waits for rows
    has no label yet. Sorted by time, keys and inputs.
    """
    table = read(snapshot)
    if snapshot.view.every_us is not None:
        table = table.filter(pl.col(EVENT_TIME) <= clock(snapshot))
    rows = table.with_columns(pl.col(EVENT_TIME).alias(features.time))
    inputs = [name for name in features.request.names if name != features.time]
    _require_inputs(rows, inputs)
    label = pl.sql_expr(target["expr"]).cast(pl.Float64, strict=True).alias(LABEL)
    try:
        kept = rows.filter(pl.sql_expr(target["where"]).fill_null(False)) if target["where"] else rows
        labelled = kept.select(features.time, *inputs, label)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"the target {dict(target)} cannot be computed: {error}") from error
    return labelled.filter(pl.col(LABEL).is_not_null()).sort(features.time, *inputs, maintain_order=True)


def _require_inputs(rows: pl.DataFrame, inputs: list[str]) -> None:
    for name in inputs:
        if name not in rows.columns:
            raise DataError(
                f"a feature reads {name!r} from the request, but the target's table does not keep it: "
                f"it has {', '.join(rows.columns)}"
            )


def _joined(
    rows: pl.DataFrame,
    begin: datetime,
    held: Mapping[str, Snapshot],
    features: FeatureSet,
    policies: Mapping[str, Any],
) -> pl.DataFrame:
    """The spine's rows from an instant on, with their features and label."""
    rows = rows.filter(pl.col(features.time) >= begin)
    joined = join(rows.drop(LABEL), held, features, selector=_selector(policies))
    return rows.hstack([joined[name] for name in joined.columns if name not in features.own_columns])


def _answered(
    rows: pl.DataFrame, held: Mapping[str, Snapshot], features: FeatureSet, policies: Mapping[str, Any]
) -> pl.DataFrame:
    """A user's rows with their features, in their order."""
    taken = [name for name in features.names if name in rows.columns and name not in features.own_columns]
    if taken:
        raise DataError(
            f"the spine has columns that are called like features: {', '.join(taken)}; rename them"
        )
    missing = [name for name in features.request.names if name not in rows.columns]
    if missing:
        raise DataError(f"the spine lacks {', '.join(missing)}; it has {', '.join(rows.columns)}")
    naive = [
        name for name, dtype in rows.schema.items() if isinstance(dtype, pl.Datetime) and not dtype.time_zone
    ]
    if features.time in naive:
        raise DataError("the times carry no offset; write them in UTC, or with one", column=features.time)
    keys = {name for feature in features.stored for name in feature.on}
    for column in features.request.columns:
        given, wanted = rows.schema[column.name], DTYPES[column.type]
        if column.name in keys and given not in (wanted, pl.String, pl.Categorical, pl.Null):
            raise DataError(f"the key is {given} in the spine and {wanted} in the view", column=column.name)
    typed, failures = features.request.check(rows.select(features.request.names))
    # A null key is unknown: its features are nulls.
    is_unknown = (pl.col("rule") == "required") & pl.col("column").is_in(list(keys))
    failures = failures.filter((pl.col("severity") != "flag") & ~is_unknown)
    if failures.height:
        first = failures.row(0, named=True)
        is_naive = (first["column"], first["rule"]) == (features.time, "type")
        hint = "; a time is written with its offset, e.g. 2026-11-01T00:00Z" if is_naive else ""
        more = f" (and {failures.height - 1} more)" if failures.height > 1 else ""
        raise DataError(
            f"fails {first['rule']!r} with {first['value']!r}{more}{hint}",
            row=first["row"] + 1,
            column=first["column"],
        )
    joined = join(typed, held, features, selector=_selector(policies))
    return rows.with_columns(typed.iter_columns()).hstack(
        [joined[name] for name in joined.columns if name not in features.own_columns]
    )


def _policies(project: Project) -> dict[str, Any]:
    """The policies of the sources, as a manifest keeps them."""
    return {name: source.policy.model_dump(mode="json") for name, source in project.sources.items()}


def _selector(policies: Mapping[str, Any]) -> dict[str, str]:
    return label_selector(Policy.model_validate(policy) for policy in policies.values())


def _warm(held: Mapping[str, Snapshot], features: FeatureSet) -> datetime:
    """The first target time whose features see a full look-back in every table."""
    warm = [BEGINNING]
    for view in features.tables:
        begin = min(bucket.begin for bucket in held[view.source].buckets.values())
        reach = features.table_reach_us(view.source)
        if begin > BEGINNING:
            # The first interval of a resampled source ends, and is stamped, with its length.
            step = view.every_us or 0
            warm.append(begin + timedelta(microseconds=step + reach + features.horizon_us))
    return max(warm)


def values_digest(frame: pl.DataFrame) -> str:
    """SHA-256 over the canonical values: names, types, and each column's values in Arrow's layout.

    >>> a = pl.DataFrame({"x": [1.0, None]})
    >>> values_digest(a) == values_digest(pl.concat([a[:1], a[1:]], rechunk=False))
    True
    """
    digest = hashlib.sha256()
    for column in frame.iter_columns():
        if column.dtype in (pl.Categorical, pl.Enum):
            # Their codes depend on what else a process has seen.
            column = column.cast(pl.String)
        if column.dtype.is_nested() or column.dtype in (pl.Binary, pl.Decimal, pl.Object):
            raise DataError(f"a spine cannot hold {column.dtype}; leave it out", column=column.name)
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


def _write(
    name: str,
    frame: pl.DataFrame,
    features: FeatureSet,
    held: Mapping[str, Snapshot],
    origin: Mapping[str, Any],
    policies: Mapping[str, Any],
    storage: Storage,
) -> TrainingSet:
    digest = values_digest(frame)
    path = storage.path(FOLDER, f"{name}-{digest[:12]}.parquet")
    manifest = {
        "file": path.name,
        "project": name,
        "rows": frame.height,
        "digest": digest,
        "from": frame[features.time].cast(INSTANT).min(),
        "to": frame[features.time].cast(INSTANT).max(),
        "columns": Schema(features.columns).to_json()["columns"],
        "features": features.to_json(),
        "features_digest": features.digest,
        "horizon_us": features.horizon_us,
        **origin,
        "as_of": {
            source: {**snapshot.as_of.to_json(), "table": snapshot.view.to_json()}
            for source, snapshot in held.items()
        },
        "policies": dict(policies),
        "libraries": libraries(),
    }
    with replacing(path) as new:
        frame.write_parquet(new)
    storage.write_json(manifest, FOLDER, f"{path.stem}.json")
    return TrainingSet(frame, manifest, path)


def libraries() -> dict[str, str]:
    """The versions of what computes features."""
    return {library: version(library) for library in LIBRARIES}
