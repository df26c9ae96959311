"""A person's rows taken out of the prediction log and the labels, which otherwise only ever grow.

Files are replaced whole, one after the other, while replicas write new ones and others read. Which rows go is
noted first, readable by the owner alone and gone at the end: a label, and what only machines may read, name
their row by the request alone, so that after a kill nobody could find them again.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial, reduce
from operator import or_
from pathlib import Path
from typing import NamedTuple

import polars as pl

from mlops_ray.data import labels
from mlops_ray.data.erased import equal
from mlops_ray.data.labels import BY_REQUEST
from mlops_ray.data.prediction_log import ASKED, FOLDER, MACHINE, rewriting
from mlops_ray.storage import PRIVATE, Storage, digest, replacing

#: The rows that are being erased, of keys with this digest.
NOTE = "erasing-{}.parquet"
#: What a writer that was killed has begun is not younger than this, and no file takes as long.
LEFT_S = 3600.0

#: What columns are of a key: their names, and the value of each as text.
Key = Mapping[str, str]


class Erased(NamedTuple):
    """How many rows of the log, whose parts count once, and how many labels."""

    predictions: int
    labels: int


def is_of(key: Key) -> pl.Expr:
    """Whether a row is of a key.

    >>> pl.DataFrame({"k": [1, 2, None]}).select(is_of({"k": "2"}).alias("theirs"))["theirs"].to_list()
    [False, True, False]
    """
    return pl.all_horizontal(_is(name, text) for name, text in key.items())


def _is(name: str, text: str) -> pl.Expr:
    if not _is_number(text):
        return pl.col(name).cast(pl.String).eq_missing(pl.lit(text))
    # Only of values is it known whether they are numbers, which are equal however they are written.
    return pl.col(name).map_batches(partial(equal, text=text), return_dtype=pl.Boolean, is_elementwise=True)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def is_of_any(keys: Sequence[Key]) -> pl.Expr:
    """Whether a row is of one of the keys."""
    return reduce(or_, map(is_of, keys), pl.lit(False))


def found(storage: Storage, model: str, keys: Sequence[Key]) -> Erased:
    """How many rows and labels of a model are of one of the keys, which are columns of its request."""
    if not _is_there(storage, model):
        return Erased(0, 0)
    with rewriting(storage, model):
        ids = _ids(storage, model, keys)
        told = sum(_count(path, theirs) for path, theirs in _of_labels(storage, model, keys, ids))
        log = sum(_count(p, theirs) for p, theirs in _of_log(storage, model, keys, ids) if _is_seen(p))
    return Erased(log, told)


def erase(storage: Storage, model: str, keys: Sequence[Key]) -> Erased:
    """Takes the rows and labels out that `found` counts, and returns how many.

    Of two requests of one name nobody knows which is which: what only machines may read of either, and labels
    that name it, are erased with those of the key; rows that say themselves whose they are stay.
    """
    if not _is_there(storage, model):
        return Erased(0, 0)
    with rewriting(storage, model):
        ids, note = _ids(storage, model, keys), _note(storage, model, keys)
        with replacing(note, mode=PRIVATE) as file:
            ids.write_parquet(file)
        told = sum(take_out(path, theirs) for path, theirs in _of_labels(storage, model, keys, ids))
        gone = [(path, take_out(path, theirs)) for path, theirs in _of_log(storage, model, keys, ids)]
        for folder in (FOLDER, MACHINE, labels.FOLDER):
            remove_left(storage.root / folder / model)
        note.unlink()
    return Erased(sum(rows for path, rows in gone if _is_seen(path)), told)


def _is_there(storage: Storage, model: str) -> bool:
    return any((storage.root / top / model).is_dir() for top in (FOLDER, MACHINE, labels.FOLDER))


def _is_seen(path: Path) -> bool:
    """Whether a file is of the part that people may see."""
    return path.parts[-4] == FOLDER


def _count(path: Path, theirs: pl.Expr) -> int:
    return int(pl.scan_parquet(path).filter(theirs).select(pl.len()).collect().item())


def take_out(path: Path, theirs: pl.Expr) -> int:
    """Replaces a file by one without some rows, where it has such, and returns how many it had.

    What its metadata says, and who may read it, stays; a file without a row left is removed.
    """
    metadata = {name: said for name, said in pl.read_parquet_metadata(path).items() if name != "ARROW:schema"}
    rows = pl.read_parquet(path, glob=False, hive_partitioning=False)
    kept = rows.filter(~theirs)
    if kept.height == rows.height:
        return 0
    if kept.is_empty():
        path.unlink()
        return rows.height
    with replacing(path, mode=path.stat().st_mode & 0o777) as new:
        kept.write_parquet(new, metadata=metadata)
    return rows.height - kept.height


def begun(folder: Path) -> list[Path]:
    """What writers have begun below a folder, and, where they were killed, left."""
    return sorted(folder.rglob(".*.parquet.*"))


def remove_left(folder: Path, left_s: float = LEFT_S) -> None:
    """Removes what writers have begun below a folder, and have not written to for so long."""
    before = time.time() - left_s
    for path in begun(folder):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime <= before:
                path.unlink()


def _ids(storage: Storage, model: str, keys: Sequence[Key]) -> pl.DataFrame:
    """Which rows of the log are of the keys, by request and row; a run that was killed has noted its own."""
    note = _note(storage, model, keys)
    noted = [pl.read_parquet(note)] if note.exists() else []
    every = [_ids_of(storage, model, key) for key in keys]
    return pl.concat([_no_ids(), *noted, *every]).unique()


def _note(storage: Storage, model: str, keys: Sequence[Key]) -> Path:
    return storage.path(FOLDER, model, NOTE.format(digest([dict(key) for key in keys])[:12]))


def _ids_of(storage: Storage, model: str, key: Key) -> pl.DataFrame:
    """Those of one key, whose columns may stand in different parts of the log."""
    matching = []
    for name, text in key.items():
        column = {ASKED + name: text}
        own = [
            pl.scan_parquet(path).filter(is_of(column)).select(BY_REQUEST).collect()
            for path in _files(storage, model)
            if ASKED + name in pl.read_parquet_schema(path)
        ]
        matching.append(pl.concat([_no_ids(), *own]).unique())
    return reduce(lambda some, others: some.join(others, on=BY_REQUEST, how="semi"), matching)


def _no_ids() -> pl.DataFrame:
    return pl.DataFrame(schema={"request_id": pl.String, "row": pl.Int32})


def _files(storage: Storage, model: str) -> list[Path]:
    """All files of the log, those too whose place another took and that are still there."""
    return [
        path
        for top in (MACHINE, FOLDER)
        for path in sorted((storage.root / top / model).glob("date=*/[!.]*.parquet"))
    ]


def _of_log(
    storage: Storage, model: str, keys: Sequence[Key], ids: pl.DataFrame
) -> Iterator[tuple[Path, pl.Expr]]:
    """The files of the log that hold rows of the keys, and which of their rows these are."""
    named = _named(ids)
    for path in _files(storage, model):
        schema = pl.read_parquet_schema(path)
        # A column that is not in this part, or that this version hid, does not speak against it.
        may_be = [
            pl.all_horizontal(
                pl.lit(True),
                *(
                    pl.col(ASKED + name).is_null() | is_of({ASKED + name: text})
                    for name, text in key.items()
                    if ASKED + name in schema
                ),
            )
            for key in keys
        ]
        theirs = named & reduce(or_, may_be, pl.lit(False))
        if pl.scan_parquet(path).select(theirs.any()).collect().item():
            yield path, theirs


def _of_labels(
    storage: Storage, model: str, keys: Sequence[Key], ids: pl.DataFrame
) -> Iterator[tuple[Path, pl.Expr]]:
    """The files of labels of the keys, and which of their rows these are."""
    for path in sorted((storage.root / labels.FOLDER / model).glob("date=*/[!.]*.parquet")):
        schema = pl.read_parquet_schema(path)
        if "request_id" in schema:
            theirs = _named(ids)
        else:
            theirs = is_of_any([key for key in keys if set(key) <= set(schema)])
        if pl.scan_parquet(path).select(theirs.any()).collect().item():
            yield path, theirs


def _named(ids: pl.DataFrame) -> pl.Expr:
    """Whether a row is one of those that are named by request and row."""
    names = ids.select(_name().alias("name"))["name"]
    return _name().is_in(names.implode()).fill_null(False)


def _name() -> pl.Expr:
    # The number first: a request may be called anything.
    return pl.concat_str([pl.col("row").cast(pl.String), pl.col("request_id")], separator=" ")
