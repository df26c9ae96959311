"""Files of a storage that name somebody: what is kept when rows are erased is looked through for the key."""

import contextlib
import html
import json
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import polars as pl
from markupsafe import escape

from mlops_ray.data.erasure import LEFT_S
from mlops_ray.data.error_log import DEFECTS
from mlops_ray.errors import safe
from mlops_ray.features.shelves import ONLINE
from mlops_ray.pages import LONGEST_VALUE, cut, plain

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
#: So much of a file is looked through at once.
PIECE_BYTES = 64 * 2**20

#: How a SQLite database begins, and how many of its rows are looked through at once.
SQLITE, MOST_ROWS = b"SQLite format 3\0", 10_000

#: Of what stands beside a value it is seen that it ends there.
AROUND_BYTES = 8
NOT_LOOKED_AT = "{} could not be looked at ({}): whether it names the key is not known"


def named(root: Path, files: Iterable[Path], key: Iterable[str]) -> tuple[list[str], list[str]]:
    """Those of the files that name the key, by all of its values, and a note of each that could not be read.

    They name it with counts, figures of a group, or what a model knows.
    """
    forms = [_forms(text) for text in key if len(text) >= LEAST_CHARACTERS]
    wanted = [token(*each) for each in forms]
    reach = max((len(form.encode()) for each in forms for form in each), default=0) + AROUND_BYTES
    found, unread = list[str](), list[str]()
    for path in files if wanted else ():
        name = str(path.relative_to(root))
        # A service that runs makes files and removes them.
        with contextlib.suppress(FileNotFoundError):
            try:
                is_named = all(any(each.search(text) for text in _texts(path, reach)) for each in wanted)
            except FileNotFoundError:
                raise
            except DEFECTS as error:  # whatever a file may do to a library, the others are looked at
                unread.append(NOT_LOOKED_AT.format(name, safe(error)))
            else:
                found += [name] if is_named else []
    return found, unread


def token(*forms: str) -> re.Pattern[str]:
    """One of some texts, where it is not a part of a longer word."""
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, forms))})(?!\w)")


def _forms(text: str) -> list[str]:
    """How a value of a key is written: in tables, documents and pages."""
    shown = plain(text)
    written = {text, shown, cut(shown), cut(shown, LONGEST_VALUE)}
    written |= {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
    if (whole := text.removesuffix(".0")).removeprefix("-").isdecimal():
        written |= {whole, f"{int(whole):,}"}
    escapes: tuple[Callable[[str], str], ...] = (escape, html.escape, partial(html.escape, quote=False))
    return sorted(written | {str(each(form)) for form in written for each in escapes})


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


def _texts(path: Path, reach: int) -> Iterator[str]:
    """What a file says, by pieces; what is cut, and is no longer than `reach`, is whole in one of them."""
    with path.open("rb") as file:
        before, is_database = b"", file.read(len(SQLITE)) == SQLITE
        file.seek(0)
        while piece := file.read(PIECE_BYTES):
            read = before + piece
            yield read.decode("utf-8", errors="replace")
            before = read[-reach:]
    if is_database:
        yield from _cells(path)
    if path.suffix == ".parquet":
        for name, dtype in pl.read_parquet_schema(path).items():
            column = pl.read_parquet(path, columns=[name], glob=False, hive_partitioning=False)[name]
            if dtype.is_nested():
                yield "\n".join(map(str, column.to_list()))
            else:
                yield "\n".join(column.cast(pl.String, strict=False).drop_nulls().unique().to_list())


def _cells(path: Path) -> Iterator[str]:
    """What the tables of a database say: its file has nothing between the columns of a row."""
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        database.text_factory = _decoded
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            quoted = name.replace('"', '""')
            rows = database.execute(f'SELECT * FROM "{quoted}"')  # noqa: S608 - a table's own name, quoted
            while some := rows.fetchmany(MOST_ROWS):
                yield "\n".join(_decoded(x) if isinstance(x, bytes) else str(x) for row in some for x in row)


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", errors="replace")
