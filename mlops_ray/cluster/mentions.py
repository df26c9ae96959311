"""Files of a storage that name somebody: what is kept when rows are erased is looked through for the key."""

import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import polars as pl

from mlops_ray.data.erasure import LEFT_S
from mlops_ray.errors import safe
from mlops_ray.features.shelves import ONLINE

#: What is erased itself, or names nobody: all else of a storage is looked through for the key.
ERASED = (
    "features",
    "datasets",
    "predictions",
    "predictions_machine_only",
    "labels",
    "audit",
    "staging",
    "loadtest",
    ONLINE,
)
#: Of a value with fewer characters it would be said everywhere.
LEAST_CHARACTERS = 4
#: Of a file no more is looked through; none of ours that is text is as large.
MOST_BYTES = 64 * 2**20

NOT_LOOKED_AT = "{} could not be looked at ({}): whether it names the key is not known"


def named(root: Path, files: Iterable[Path], key: Iterable[str]) -> tuple[list[str], list[str]]:
    """Those of the files that name the key, by all of its values, and a note of each that could not be read.

    They name it with counts, figures of a group, or what a model knows.
    """
    wanted = [token(text) for text in key if len(text) >= LEAST_CHARACTERS]
    found, unread = list[str](), list[str]()
    for path in files if wanted else ():
        name = str(path.relative_to(root))
        # A service that runs makes files and removes them.
        with contextlib.suppress(FileNotFoundError):
            try:
                is_named = all(any(each.search(text) for text in _texts(path)) for each in wanted)
            except FileNotFoundError:
                raise
            except (OSError, pl.exceptions.PolarsError) as error:
                unread.append(NOT_LOOKED_AT.format(name, safe(error)))
            else:
                found += [name] if is_named else []
    return found, unread


def token(text: str) -> re.Pattern[str]:
    """The text, where it is not a part of a longer word."""
    return re.compile(rf"(?<!\w){re.escape(text)}(?!\w)")


def kept(root: Path, but: Sequence[str]) -> list[Path]:
    """The files of a storage in which nothing is erased, without some."""
    tops = sorted(each for each in root.iterdir() if each.name not in ERASED and not each.is_symlink())
    below = [each for top in tops for each in ([top] if top.is_file() else files_of(top))]
    files = [each for each in below if not each.name.startswith(ONLINE) and not _is_begun(each)]
    return [each for each in files if each.is_file() and str(each.relative_to(root)) not in but]


def _is_begun(path: Path) -> bool:
    """Whether somebody may be writing it, who takes the dot away at its end (`storage.replacing`)."""
    if not path.name.startswith("."):
        return False
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime > time.time() - LEFT_S
    return True


def files_of(folder: Path) -> list[Path]:
    """All files below a folder."""
    # Unlike `rglob` it bears that a folder goes meanwhile.
    return sorted(Path(at) / name for at, _, names in os.walk(folder) for name in names)


def _texts(path: Path) -> Iterator[str]:
    if path.stat().st_size > MOST_BYTES:
        return
    yield path.read_bytes().decode("utf-8", errors="replace")
    if path.suffix == ".parquet":
        rows = pl.read_parquet(path, glob=False, hive_partitioning=False)
        for name, dtype in rows.schema.items():
            if dtype in (pl.String, pl.Categorical) or isinstance(dtype, pl.Enum):
                yield "\n".join(rows[name].cast(pl.String).drop_nulls().unique().to_list())
