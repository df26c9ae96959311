"""A person's rows taken out of what the feature store keeps: histories, online stores and training sets.

Each part finds for itself what is left to do, and is safe to repeat: who was killed within begins again. A
source's history is erased first, since sets are recomputed from it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from mlops_ray.config import Source
from mlops_ray.data.erased import THEIRS, as_text, family
from mlops_ray.data.erasure import Key, is_of_any, remove_left
from mlops_ray.errors import DataError, UsageError, did_you_mean
from mlops_ray.features import dataset, manifest
from mlops_ray.features.dataset import FOLDER, values_digest
from mlops_ray.features.definitions import LABEL, FeatureSet, ViewTable
from mlops_ray.features.history import History
from mlops_ray.features.manifest import Manifest
from mlops_ray.schema import DTYPES, INSTANT
from mlops_ray.storage import Storage, replacing


@dataclass(frozen=True)
class Whose:
    """Whose rows of a source: `typed` is one row with the values of some of its keys."""

    source: str
    typed: pl.DataFrame

    @classmethod
    def of(cls, name: str, source: Source, given: Mapping[str, str]) -> "Whose":
        """Raises `UsageError` where a column is no key of the source, or a value is not of its type."""
        if not source.entity:
            raise UsageError(
                f"the rows of {name!r} are of nobody: the source has no entity, so nothing to erase by"
            )
        if not given:
            raise UsageError(f"say whose rows: --key {source.entity[0]}=VALUE")
        for column in given:
            if column not in source.entity:
                hint = did_you_mean(column, source.entity)
                raise UsageError(f"--key: {column!r} is no key of {name!r}{hint}")
        return cls(name, pl.DataFrame([_typed(column, text, source) for column, text in given.items()]))

    @property
    def key(self) -> Key:
        """The value of each column as text, as `data.erasure` compares it."""
        return {each.name: as_text(each).item() for each in self.typed.iter_columns()}

    @property
    def types(self) -> dict[str, str]:
        """The families of its columns' types (`erased.family`)."""
        return {each.name: family(each.dtype) for each in self.typed.iter_columns()}

    def called(self, names: Mapping[str, str]) -> Key:
        """The key where its columns have other names."""
        return {names[column]: text for column, text in self.key.items()}


def _typed(column: str, text: str, source: Source) -> pl.Series:
    kind = source.columns[column].type
    given = pl.Series(column, [text], dtype=pl.String)
    if kind == "datetime":
        typed = given.str.to_datetime(time_unit="us", time_zone="UTC", strict=False).cast(INSTANT)
    elif kind == "bool":
        typed = given.str.to_lowercase().replace_strict({"true": True, "false": False}, default=None)
    else:
        typed = given.cast(DTYPES[kind], strict=False)
    if not text or typed.null_count():
        raise UsageError(f"--key {column}={text}: {text!r} is not of the type {kind}, which {column!r} has")
    return typed.cast(DTYPES[kind])


# ---------------------------------------------------------------- histories


def histories(storage: Storage, view: ViewTable) -> list[History]:
    """All histories of a source: one that is defined anew leaves the one before."""
    features = storage.path("features", "x").parent
    folders = {path.name for path in features.glob(f"{view.source}-*") if path.is_dir()} | {view.table}
    own = [name for name in sorted(folders) if name == f"{view.source}-{name[-12:]}"]
    return [History(features / name, view) for name in own]


def keyed_otherwise(storage: Storage, whose: Whose, histories: list[History]) -> list[str]:
    """The histories and sets of the source, as it once was defined, without such columns of such types.

    Whose rows are in them nobody can say by this key.
    """
    found = [each.folder for each in histories if not each.has(whose.types)]
    for file, asked in manifests(storage):
        path = file.with_suffix(".parquet")
        if whose.source in asked.as_of and path.exists() and not _is_told(asked, whose, path):
            found.append(path)
    return [str(path.relative_to(storage.root)) for path in found]


def _is_told(asked: Manifest, whose: Whose, path: Path) -> bool:
    """Whether the rows of a set say whose they are."""
    if not set(whose.typed.columns) <= set(asked.as_of[whose.source].table.keys):
        return False
    schema = pl.read_parquet_schema(path)
    return all(
        family(schema[name]) == kind
        for key in keys_of(asked, whose)
        for name, kind in zip(key, whose.types.values(), strict=True)
    )


# ---------------------------------------------------------------- training sets


@dataclass(frozen=True)
class HeldSet:
    """A training set that holds rows of somebody, or features that were made of such."""

    file: Path
    asked: Manifest
    keys: tuple[Key, ...]
    rows: int

    @property
    def path(self) -> Path:
        return self.file.with_suffix(".parquet")


def manifests(storage: Storage) -> Iterator[tuple[Path, Manifest]]:
    """The manifests of all sets, of whatever project.

    Raises `DataError` for one that cannot be read: nobody could say whose rows are in its set.
    """
    for file in sorted((storage.root / FOLDER).glob("*.json")):
        yield file, manifest.parse(storage.read_json(FOLDER, file.name), str(file))


def keys_of(asked: Manifest, whose: Whose) -> tuple[Key, ...]:
    """How a set calls somebody: by the names of the keys in a request, of which there may be several."""
    if whose.source not in asked.as_of:
        return ()
    view = asked.as_of[whose.source].table
    is_target = asked.target is not None and asked.target.source == whose.source
    return called(asked.features, view, whose, is_target=is_target)


def called(features: FeatureSet, view: ViewTable, whose: Whose, *, is_target: bool) -> tuple[Key, ...]:
    """How the requests of a model call somebody."""
    ons = [dict(zip(view.keys, feature.on, strict=True)) for feature in features.of_table(whose.source)]
    ons += [{name: name for name in view.keys}] if is_target else []
    known = [on for on in ons if set(whose.typed.columns) <= set(on)]
    return tuple({tuple(key.items()): key for key in (whose.called(on) for on in known)}.values())


def held_sets(storage: Storage, whose: Whose, hashed: str | None, functions: frozenset[str]) -> list[HeldSet]:
    """The sets that hold rows of somebody; without those that were recomputed, whose manifests name `hashed`.

    Raises as `dataset.require_computable` does where one could not be computed again by these functions.
    """
    found = []
    for file, asked in manifests(storage):
        path = file.with_suffix(".parquet")
        keys = keys_of(asked, whose)
        if not path.exists() or not keys:
            continue
        rows = pl.scan_parquet(path, glob=False).filter(is_of_any(keys)).select(pl.len()).collect().item()
        if not rows or (hashed is not None and _is_done(asked, path, hashed)):
            continue
        try:
            dataset.require_computable(asked, functions)
        except DataError as error:
            raise DataError(
                f"could not be made again without these rows, by this project file: {error}; erase with the "
                "file of its project, or delete the set",
                file=str(file),
            ) from error
        found.append(HeldSet(file, asked, keys, rows))
    return found


def _is_done(asked: Manifest, path: Path, hashed: str) -> bool:
    """Whether it was recomputed, as where rows stay that others tell of: without what was erased."""
    if all(each.key != hashed for each in asked.superseded):
        return False
    return values_digest(dataset.read_parquet(path)) == asked.newest_digest


def supersede(storage: Storage, held: HeldSet, hashed: str, reason: str) -> None:
    """Recomputes a set without the rows; its manifest has the new hash, with the reason, before the set has.

    Rows that are kept beside it of a test have no key: those go that equal an erased one in all features.
    """
    old = dataset.read_parquet(held.path)
    theirs = old.filter(is_of_any(held.keys))
    for tested in sorted(held.path.parent.glob(f"{held.path.stem}-tested-*.parquet")):
        _take_out_equal(tested, theirs, [*held.asked.features.names, LABEL])
    recorded = storage.read_json(FOLDER, held.file.name)
    spine = _without(storage, held, old) if held.asked.spine is not None else None
    frame = _made_again(storage, held, spine, old)
    digest = values_digest(frame)
    if digest != held.asked.newest_digest or spine != held.asked.newest_spine:
        entry: dict[str, Any] = {
            "digest": digest,
            "rows": frame.height,
            "at": datetime.now(UTC).isoformat(),
            "reason": reason,
            "key": hashed,
            "libraries": dataset.libraries(),
            **({"spine": spine} if spine is not None else {}),
        }
        before = recorded.get(manifest.SUPERSEDED, [])
        storage.write_json(recorded | {manifest.SUPERSEDED: [*before, entry]}, FOLDER, held.file.name)
    with replacing(held.path) as new:
        frame.write_parquet(new)


def _made_again(storage: Storage, held: HeldSet, spine: str | None, old: pl.DataFrame) -> pl.DataFrame:
    asked = held.asked
    for question in asked.as_of.values():
        history = History.of(storage.path("features", "x").parent, question.table)
        if history.is_empty:
            # Nobody else was in it; what is computed of nothing waits for the next ingestion.
            return old.filter(~is_of_any(held.keys))
    return dataset.made_again(asked.asking(spine), storage)


def _without(storage: Storage, held: HeldSet, old: pl.DataFrame) -> str:
    """The user's own rows without these, written; the name of the file. The set has the same order."""
    rows = dataset.read_parquet(storage.path(FOLDER, str(held.asked.newest_spine)))
    # Of a run that was killed the rows are thinned out already, and the set is not.
    are_theirs = old.select(is_of_any(held.keys).alias(THEIRS))[THEIRS]
    kept = rows.filter(~are_theirs) if rows.height == old.height else rows
    name = dataset.spine_name(kept)
    with replacing(storage.path(FOLDER, name)) as new:
        kept.write_parquet(new)
    return name


def _take_out_equal(path: Path, theirs: pl.DataFrame, names: list[str]) -> None:
    rows = dataset.read_parquet(path)
    same = [name for name in names if name in rows.columns and name in theirs.columns]
    others = theirs.select(pl.col(name).cast(rows.schema[name]) for name in same)
    kept = rows.join(others, on=same, how="anti", nulls_equal=True, maintain_order="left")
    if kept.height < rows.height:
        with replacing(path) as new:
            kept.write_parquet(new)


def remove_spines(storage: Storage) -> None:
    """Removes users' own rows that no set is made from any more, and what killed writers had begun of a set.

    Nobody else may work on the storage meanwhile.
    """
    needed = {asked.newest_spine for _, asked in manifests(storage)}
    for path in sorted((storage.root / FOLDER).glob("spine-*.parquet")):
        if path.name not in needed:
            path.unlink()
    remove_left(storage.root / FOLDER, left_s=0)


def trained_before(storage: Storage, whose: Whose, hashed: str, held: list[HeldSet]) -> dict[str, set[str]]:
    """The digests of sets that held the rows, by project: what was trained on one learned from these."""
    found: dict[str, set[str]] = {}
    now_held = {each.file for each in held}
    for file, asked in manifests(storage):
        if whose.source not in asked.as_of:
            continue
        digests = [asked.digest, *(each.digest for each in asked.superseded)]
        at = next((n for n, each in enumerate(asked.superseded) if each.key == hashed), None)
        if at is not None:
            found.setdefault(asked.project, set()).update(digests[: at + 1])
        elif file in now_held:
            found.setdefault(asked.project, set()).update(digests)
    return found
