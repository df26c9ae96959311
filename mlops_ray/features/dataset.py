"""A training set: the spine with its labels and features, and a manifest from which it is made again.

The manifest says everything the values depend on: definitions, what was known and stored when, versions of
what computed them. `rebuild` makes the same set from it a year later, whatever was appended since.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from mlops_ray import audit
from mlops_ray.config import Policy, Project
from mlops_ray.errors import DataError, PolicyError, StorageError, first_line
from mlops_ray.expressions import compile_sql, function_digest
from mlops_ray.features import manifest
from mlops_ray.features.commits import BEGINNING
from mlops_ray.features.definitions import LABEL, FeatureSet
from mlops_ray.features.history import History, Snapshot, clock, read
from mlops_ray.features.join import join
from mlops_ray.features.manifest import Manifest
from mlops_ray.features.resample import EVENT_TIME
from mlops_ray.instants import EARLIEST, LATEST, to_micros
from mlops_ray.policy import label_selector, quoting_nothing, require_here
from mlops_ray.schema import DTYPES, INSTANT, Schema
from mlops_ray.storage import Storage, replacing

FOLDER = "datasets"
#: Types of columns without values that can be hashed.
NO_VALUES = (pl.Binary, pl.Decimal, pl.Object, pl.Int128, pl.UInt128)
LIBRARIES = ("mlops_ray", "polars", "numpy", "deltalake", "holidays")


@dataclass(frozen=True)
class TrainingSet:
    """Rows with features and label, where they lie, and what they were made from.

    `frame` holds entity keys, target time, every feature and, unless the spine was a file, `label` (Float64).
    """

    frame: pl.DataFrame
    manifest: dict[str, Any]
    path: Path

    @property
    def digest(self) -> str:
        """What the values hash to: the newest, where rows were erased from the set."""
        superseded = self.manifest.get(manifest.SUPERSEDED)
        return str((superseded[-1] if superseded else self.manifest)["digest"])


def build(
    project: Project,
    features: FeatureSet,
    held: Mapping[str, Snapshot],
    storage: Storage,
    on_node: Callable[[str], object] = lambda node: None,
) -> TrainingSet:
    """The training set of a project over these histories, by source; written as Parquet with its manifest.

    One row a labelled row of the target's source, sorted by time and key. Rows before the first event that
    any window or lag could reach are left out: their features are missing because the history begins, not
    because the value was. Where it is done by others `on_node` hears the ids of their nodes, again and again.
    """
    frame, target, begin = labelled(project, features, held, on_node)
    return _write(project, frame, features, held, {"target": target, "warm": begin}, storage)


def labelled(
    project: Project,
    features: FeatureSet,
    held: Mapping[str, Snapshot],
    on_node: Callable[[str], object] = lambda node: None,
) -> tuple[pl.DataFrame, dict[str, Any], datetime]:
    """The rows of `build`, what is predicted of them, and the instant from which on they have a look-back."""
    target = project.target.model_dump(mode="json", include={"source", "expr", "task", "positive", "where"})
    begin, policies = _warm(held, features), _policies(project)
    with quoting_nothing(policies.values()):
        rows = spine(target, held[project.target.source], features)
        frame = _joined(rows, begin, held, features, policies.values(), on_node)
    if not frame.height:
        raise DataError(
            f"no row of {project.target.source!r} has a full look-back; the longest window or lag "
            "is longer than the data"
        )
    return frame, target, begin


def get(
    project: Project, features: FeatureSet, rows: pl.DataFrame, held: Mapping[str, Snapshot], storage: Storage
) -> TrainingSet:
    """The features of a user's own rows, in their order; written as Parquet with its manifest.

    `rows` have the columns of a request, and whatever else, which is passed through. Raises `DataError` for
    a row that is no valid request.
    """
    kept = storage.path(FOLDER, spine_name(rows))
    policies = _policies(project)
    with quoting_nothing(policies.values()):
        frame = _answered(rows, held, features, policies.values())
    with replacing(kept) as new:
        rows.write_parquet(new)
    return _write(project, frame, features, held, {"spine": kept.name}, storage)


def rebuild(
    file: Path,
    functions: frozenset[str] = frozenset(),
    policies: Sequence[Policy] = (),
    on_node: Callable[[str], object] = lambda node: None,
) -> TrainingSet:
    """The training set of a manifest again, from the histories beside it; `on_node` as for `build`.

    `functions` are those that the operator's project file names: a manifest may call no other; `policies` are
    those of its sources today, which hold beside those that the set was made under. Raises `PolicyError`
    where this machine may not touch the rows, and `DataError` where the file is no whole manifest, or where
    the values are not those that it was made for.
    """
    recorded = _read_manifest(file)
    asked = manifest.parse(recorded, str(file))
    require_here(policies)
    require_computable(asked, functions)
    storage = Storage.open(str(file.absolute().parent.parent))
    with storage.steady(), quoting_nothing([*asked.policies.values(), *policies]):
        return _rebuilt(file, asked, recorded, storage, policies, on_node)


def _rebuilt(
    file: Path,
    asked: Manifest,
    recorded: Any,
    storage: Storage,
    policies: Sequence[Policy],
    on_node: Callable[[str], object],
) -> TrainingSet:
    frame = _made_again(asked, storage, file, policies, on_node)
    digest = values_digest(frame)
    wanted = asked.newest_digest
    if digest != wanted:
        raise DataError(
            f"the rebuilt values hash to {digest[:12]}, not {wanted[:12]}; {_what_changed(asked)}",
            file=file.name,
        )
    path = storage.path(FOLDER, asked.file)
    about = {"set": file.stem, "rows": frame.height}
    audit.append(storage, "a training set was rebuilt", audit.who(), about)
    with replacing(path) as new:
        frame.write_parquet(new)
    return TrainingSet(frame, recorded, path)


def _read_manifest(file: Path) -> Any:
    if not file.is_file():
        raise DataError("there is no such manifest", file=str(file))
    if file.suffix == ".parquet":
        raise DataError(f"is the set itself; its manifest is {file.stem}.json, beside it", file=str(file))
    if file.absolute().parent.name != FOLDER:
        raise DataError(
            f"a manifest is rebuilt from the histories beside it: it must lie in the folder "
            f"{FOLDER!r} of its storage",
            file=str(file),
        )
    return Storage(file.absolute().parent.parent).read_json(FOLDER, file.name)


def require_computable(asked: Manifest, functions: frozenset[str]) -> None:
    """Raises `PolicyError` where this machine may not touch the rows, `DataError` where functions are called
    that are not among these.
    """
    require_here(asked.policies.values())
    _require_own(asked.features, functions)


def _made_again(
    asked: Manifest,
    storage: Storage,
    file: Path,
    policies: Sequence[Policy],
    on_node: Callable[[str], object],
) -> pl.DataFrame:
    """As `made_again`; whatever breaks is told of the manifest's file."""
    try:
        return made_again(asked, storage, policies, on_node)
    except (DataError, PolicyError, StorageError):
        raise
    except Exception as error:
        # What somebody put together by hand may break anything below.
        why, said = f"its features cannot be computed: {type(error).__name__}", f": {first_line(error)}"
        raise DataError(why, file=str(file), said=said) from error


def made_again(
    asked: Manifest,
    storage: Storage,
    policies: Sequence[Policy] = (),
    on_node: Callable[[str], object] = lambda node: None,
) -> pl.DataFrame:
    """The values of a set, computed from the histories of a storage as they are now; `policies` hold too."""
    bound = [*asked.policies.values(), *policies]
    held = {
        name: History.of(storage.path("features", "x").parent, question.table).snapshot(question.as_of)
        for name, question in asked.as_of.items()
    }
    if asked.target is not None and asked.warm is not None:
        rows = spine(asked.target.model_dump(), held[asked.target.source], asked.features)
        return _joined(rows, asked.warm, held, asked.features, bound, on_node)
    path = storage.path(FOLDER, str(asked.newest_spine))
    rows = read_parquet(path)
    if path.name != spine_name(rows):
        raise DataError("the spine was changed since the set was made", file=path.name)
    return _answered(rows, held, asked.features, bound, on_node)


def spine_name(rows: pl.DataFrame) -> str:
    """What the file of a user's own rows is called."""
    return f"spine-{values_digest(rows)[:12]}.parquet"


def read_parquet(path: Path) -> pl.DataFrame:
    """The rows of a file; raises `DataError` where it is none."""
    try:
        return pl.read_parquet(path, glob=False, hive_partitioning=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"cannot be read: {first_line(error)}", file=str(path)) from error


def _require_own(features: FeatureSet, functions: frozenset[str]) -> None:
    """Raises `DataError` where a manifest calls a function of its own."""
    for feature in features.computed:
        if feature.kind == "function" and feature.argument not in functions:
            raise DataError(
                f"the manifest calls {feature.argument!r}: give the project file that names it, by --project"
            )


def _what_changed(asked: Manifest) -> str:
    """Why a set may not be the same again."""
    now = libraries()
    changed = [
        f"{k} {v} → {now.get(k, 'gone')}" for k, v in asked.newest_libraries.items() if now.get(k) != v
    ]
    changed += [
        f"the code of {feature.argument}"
        for feature in asked.features.computed
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
    return TrainingSet(read_parquet(path), storage.read_json(FOLDER, f"{path.stem}.json"), path)


def spine(target: Mapping[str, Any], snapshot: Snapshot, features: FeatureSet) -> pl.DataFrame:
    """One row a labelled row of the target's source: keys, target time, request inputs, label.

    `target` has the `expr` of the label, the `positive` class of a classification, and the `where` of the
    rows. An interval that still waits for rows has no label yet. Sorted by time, keys and inputs.
    """
    table = read(snapshot)
    if snapshot.view.every_us is not None:
        table = table.filter(pl.col(EVENT_TIME) <= clock(snapshot))
    rows = table.with_columns(pl.col(EVENT_TIME).alias(features.time))
    inputs = [name for name in features.request.names if name != features.time]
    _require_inputs(rows, inputs)
    try:
        where = target["where"]
        kept = rows.filter(compile_sql(where).polars.fill_null(False)) if where else rows
        label = kept.select(_label(target).alias(LABEL))
        _require_numbers(label[LABEL].dtype, target)
        labelled = kept.select(features.time, *inputs, label[LABEL].cast(pl.Float64))
    except pl.exceptions.PolarsError as error:
        raise DataError(f"the target {dict(target)} cannot be computed", said=f": {error}") from error
    return labelled.filter(pl.col(LABEL).is_not_null()).sort(features.time, *inputs, maintain_order=True)


def _label(target: Mapping[str, Any]) -> pl.Expr:
    """What is predicted: true for the positive class and false for others, where one is named."""
    expression = compile_sql(target["expr"]).polars
    if target.get("positive") is not None:
        expression = expression == pl.lit(target["positive"])
    return expression


def _require_numbers(dtype: pl.DataType, target: Mapping[str, Any]) -> None:
    if not (dtype.is_numeric() or dtype in (pl.Boolean, pl.Null)):
        raise DataError(
            f"target.expr: {target['expr']!r} gives {dtype}, no numbers; of a classification, name the class "
            "that counts as yes as target.positive"
        )


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
    policies: Iterable[Policy],
    on_node: Callable[[str], object] = lambda node: None,
) -> pl.DataFrame:
    """The spine's rows from an instant on, with their features and label."""
    rows = rows.filter(pl.col(features.time) >= begin)
    selector = label_selector(policies)
    joined = join(rows.drop(LABEL), held, features, selector=selector, on_node=on_node)
    return rows.hstack([joined[name] for name in joined.columns if name not in features.own_columns])


def _answered(
    rows: pl.DataFrame,
    held: Mapping[str, Snapshot],
    features: FeatureSet,
    policies: Iterable[Policy],
    on_node: Callable[[str], object] = lambda node: None,
) -> pl.DataFrame:
    """A user's rows with their features, in their order."""
    taken = [name for name in features.names if name in rows.columns and name not in features.own_columns]
    if taken:
        raise DataError(
            f"the spine has columns that are called like features: {', '.join(taken)}; rename them"
        )
    missing = [name for name in features.request.names if name not in rows.columns]
    if missing:
        # Without a header that is one, what is taken for it is data.
        known = f"; it has {', '.join(rows.columns)}"
        raise DataError(f"the spine lacks {', '.join(missing)}", said=known)
    _require_types(rows, features)
    asked = rows.select(features.request.names).with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String))
    typed, failures = features.request.check(asked)
    # A null key is unknown: its features are nulls.
    is_unknown = (pl.col("rule") == "required") & pl.col("column").is_in(list(_keys(features)))
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
    selector = label_selector(policies)
    joined = join(typed, held, features, selector=selector, on_node=on_node)
    return rows.with_columns(typed.iter_columns()).hstack(
        [joined[name] for name in joined.columns if name not in features.own_columns]
    )


def _keys(features: FeatureSet) -> set[str]:
    """What the keys of histories are called in a request."""
    return {name for feature in features.stored for name in feature.on}


def _require_types(rows: pl.DataFrame, features: FeatureSet) -> None:
    """Raises `DataError` for a column of a request that is of a type from which nothing should be guessed."""
    # A number does not say whether it counts seconds or milliseconds, nor a date where its day begins.
    keys = _keys(features)
    for column in features.request.columns:
        given, wanted = rows.schema[column.name], DTYPES[column.type]
        if given in (pl.String, pl.Categorical, pl.Enum, pl.Null):
            continue
        if column.type == "datetime":
            _require_instants(rows[column.name])
        elif column.name in keys and given != wanted:
            raise DataError(f"the key is {given} in the spine and {wanted} in the view", column=column.name)
        elif given.is_temporal():
            raise DataError(f"is {given} in the spine, and {column.type} in a request", column=column.name)


def _require_instants(times: pl.Series) -> None:
    if not isinstance(times.dtype, pl.Datetime):
        raise DataError(
            f"the times are {times.dtype}, which names no instant; write them as text with an offset, e.g. "
            "2026-11-01T00:00Z, or as Datetime with a time zone",
            column=times.name,
        )
    if times.dtype.time_zone is None:
        raise DataError("the times carry no offset; write them in UTC, or with one", column=times.name)
    a_unit = {"ms": 1_000, "us": 1, "ns": None}[times.dtype.time_unit]
    # Nanoseconds since 1970 do not reach the calendar's ends.
    if a_unit is not None:
        begin, end = (to_micros(edge) // a_unit for edge in (EARLIEST, LATEST))
        outside = ~times.to_physical().is_between(begin, end).fill_null(True)
        if outside.any():
            raise DataError(
                "the time lies outside the calendar (the years 1 to 9999)",
                row=int(outside.arg_true()[0]) + 1,
                column=times.name,
            )


def _policies(project: Project) -> dict[str, Policy]:
    return {name: source.policy for name, source in project.sources.items()}


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

    Whatever has no fixed length is preceded by its length, so that no two frames are the same bytes.

    >>> a = pl.DataFrame({"x": [1.0, None]})
    >>> values_digest(a) == values_digest(pl.concat([a[:1], a[1:]], rechunk=False))
    True
    """
    digest = hashlib.sha256(f"{frame.width}:{frame.height};".encode())
    for column in frame.iter_columns():
        if column.dtype in (pl.Categorical, pl.Enum):
            # Their codes depend on what else a process has seen.
            column = column.cast(pl.String)
        if column.dtype.is_nested() or column.dtype in NO_VALUES:
            raise DataError(f"a spine cannot hold {column.dtype}; leave it out", column=column.name)
        for part in (column.name.encode(), str(column.dtype).encode(), *_bytes(column)):
            digest.update(f"{len(part)}:".encode())
            digest.update(part)
    return digest.hexdigest()


def _bytes(column: pl.Series) -> tuple[bytes, bytes]:
    """Which values are missing, and the values."""
    missing = column.is_null().cast(pl.UInt8).to_numpy().tobytes()
    if column.dtype == pl.String:
        return missing, orjson.dumps(column.to_list())
    values = column.to_physical()
    return missing, values.fill_null(False if values.dtype == pl.Boolean else 0).to_numpy().tobytes()


def _write(
    project: Project,
    frame: pl.DataFrame,
    features: FeatureSet,
    held: Mapping[str, Snapshot],
    origin: Mapping[str, Any],
    storage: Storage,
) -> TrainingSet:
    recorded = {
        "format": manifest.FORMAT,
        "project": project.project,
        "rows": frame.height,
        "digest": values_digest(frame),
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
        "policies": {name: policy.model_dump(mode="json") for name, policy in _policies(project).items()},
        "libraries": libraries(),
    }
    recorded["file"] = manifest.name(recorded)
    path = storage.path(FOLDER, recorded["file"])
    with replacing(path) as new:
        frame.write_parquet(new)
    storage.write_json(recorded, FOLDER, f"{path.stem}.json")
    return TrainingSet(frame, recorded, path)


def keep_tested(training_set: TrainingSet, rows: pl.DataFrame) -> str:
    """Keeps what a version answered to rows of the test part beside the set; the name of the file.

    Whoever may read the set may read it. The same rows are one file.
    """
    path = training_set.path
    kept = path.with_name(f"{path.stem}-tested-{values_digest(rows)[:12]}.parquet")
    with replacing(kept) as new:
        rows.write_parquet(new)
    return kept.name


def libraries() -> dict[str, str]:
    """The versions of what computes features."""
    return {library: version(library) for library in LIBRARIES}
