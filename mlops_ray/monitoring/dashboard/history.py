"""What the journals hold, in memory as far as it is drawn: each line is read once, however often is asked.

A page that is opened reads the end of a journal, as far back as its period goes; one that is refreshed reads
what came since. Of a look nothing is kept that is not drawn: a year of hours is 8,760 of them.
"""

import os
from array import array
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl

from mlops_ray.data.counts import REQUEST_US, Counts
from mlops_ray.errors import StorageError
from mlops_ray.monitoring import integrity, journal
from mlops_ray.monitoring.state import HOUR_S
from mlops_ray.storage import Storage

#: Bytes that are read at first from a file's end; each further step back reads twice as many.
FIRST_BYTES = 2**18
#: Lines of looks and windows that are kept: a kB each at most, and several models' years of hours.
MOST_LINES = 60_000
NAN = float("nan")
#: When an hour began, its requests, those refused, those failed, and the cells of `counts.REQUEST_US`.
Matrix = npt.NDArray[np.float64]
CELLS = 1 + len(REQUEST_US)
NOTHING: Matrix = np.zeros((0, 4 + CELLS))
#: What of a line of traffic is drawn.
COUNTED = ("requests", "refused", "failed")
#: What makes an entry of a line that stands from byte to byte.
Parse = Callable[[bytes, tuple[int, int]], Any]
HOUR: dict[str, pl.DataType] = {
    "version": pl.String(),
    "since": pl.Float64(),
    **dict.fromkeys(COUNTED, pl.UInt64()),
    "cells": pl.List(pl.UInt64()),
}


class Seen(NamedTuple):
    """A look, as far as it is drawn: the PSI of each column (NaN where untested), and which were found.

    `quality` has the metrics "estimated" and "realised" of so many `rows` and `labelled` ones, `figures` are
    those of `integrity.drawn`; `place` is where the whole line stands, from byte to byte.
    """

    version: str
    since: float
    until: float
    rows: int
    spent: float
    columns: tuple[str, ...]
    psi: array  # type: ignore[type-arg]
    found: tuple[str, ...]
    quality: dict[str, Any]
    figures: dict[str, float]
    skew: dict[str, Any]
    outside: float | None
    place: tuple[int, int]


class Counted(NamedTuple):
    """Where the counts of a window stand, from byte to byte."""

    version: str
    since: float
    until: float
    place: tuple[int, int]


class Grown:
    """The lines of a file that grows at its end alone, each parsed once.

    What is parsed has a `version`, and the window's ends `since` and `until`.
    """

    def __init__(self, path: Path, parse: Parse) -> None:
        self._path, self._parse = path, parse
        self._file, self._begin, self._end = -1, 0, 0
        self.lines: list[Any] = []

    def since(self, first: float) -> list[Any]:
        """The entries of windows that ended at `first` or later, oldest first; of two alike the later one."""
        self.read(first)
        found = {(line.version, line.since): line for line in self.lines if line.until >= first}
        return list(found.values())

    def read(self, first: float) -> None:
        """Has all lines among `lines` of windows that ended at `first` or later."""
        try:
            with self._path.open("rb") as file:
                self._forward(file)
                self._back(file, first)
        except FileNotFoundError:
            self._file, self.lines = -1, []
        except OSError as error:
            raise StorageError(f"cannot read {self._path}: {error.strerror}") from error

    def whole(self, place: tuple[int, int]) -> Any:
        """The document of a line."""
        with self._path.open("rb") as file:
            file.seek(place[0])
            return orjson.loads(file.read(place[1] - place[0]))

    def _forward(self, file: Any) -> None:
        """What has come since; a last line that is not whole waits."""
        known = os.fstat(file.fileno())
        if known.st_ino != self._file or known.st_size < self._end:
            self._file, self.lines = known.st_ino, []
            self._begin = self._end = _last_line(file, known.st_size)
        if known.st_size > self._end:
            file.seek(self._end)
            data = file.read(known.st_size - self._end)
            added, self._end = self._parsed(data, self._end)
            self.lines += added

    def _back(self, file: Any, first: float) -> None:
        size = FIRST_BYTES
        while self._begin > 0 and not (self.lines and self.lines[0].until < first):
            at = max(0, self._begin - size)
            file.seek(at)
            data = file.read(self._begin - at)
            cut = data.find(b"\n") + 1 if at else 0
            size *= 2
            if at and not cut:
                continue
            added, _ = self._parsed(data[cut:], at + cut)
            self.lines, self._begin = added + self.lines, at + cut

    def _parsed(self, data: bytes, at: int) -> tuple[list[Any], int]:
        """The entries of these bytes, and where the first line begins that is not whole."""
        found, rest = [], at + len(data)
        pieces = data.split(b"\n")
        for number, piece in enumerate(pieces):
            end = at + len(piece)
            if piece:
                try:
                    found.append(self._parse(piece, (at, end)))
                except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
                    # A line that was begun and not ended, or is damaged, is no line.
                    if number == len(pieces) - 1:
                        rest = at
            at = end + 1
        return found, rest


def _last_line(file: Any, size: int) -> int:
    """Where the last line begins."""
    at = size
    while at > 0:
        start = max(0, at - FIRST_BYTES)
        file.seek(start)
        found = int(file.read(at - start).rfind(b"\n"))
        if found >= 0:
            return start + found + 1
        at = start
    return 0


class Hours:
    """A journal of traffic, each line of which is read once; the first page shows all of all models."""

    def __init__(self, path: Path) -> None:
        self._path, self._file, self._end = path, -1, 0
        self._known = pl.DataFrame(schema=HOUR)
        self.matrix = NOTHING

    def read(self) -> Matrix:
        """All hours, of two that are of one version and begin together the later one."""
        try:
            with self._path.open("rb") as file:
                data = self._new(file)
        except FileNotFoundError:
            self._file, self._known, self.matrix = -1, pl.DataFrame(schema=HOUR), NOTHING
            return NOTHING
        except OSError as error:
            raise StorageError(f"cannot read {self._path}: {error.strerror}") from error
        if data:
            known = pl.concat([self._known, _hours(data)])
            self._known = known.unique(["version", "since"], keep="last", maintain_order=True)
            cells = self._known["cells"].explode(empty_as_null=False).to_numpy().reshape(-1, CELLS)
            self.matrix = np.hstack([self._known.select("since", *COUNTED).to_numpy(), cells])
        return self.matrix

    def _new(self, file: Any) -> bytes:
        """The lines that have come since; a last line that is not whole waits."""
        known = os.fstat(file.fileno())
        if known.st_ino != self._file or known.st_size < self._end:
            self._file, self._end, self._known = known.st_ino, 0, pl.DataFrame(schema=HOUR)
        file.seek(self._end)
        data: bytes = file.read(known.st_size - self._end)
        if not _is_whole(data[data.rfind(b"\n") + 1 :]):
            data = data[: data.rfind(b"\n") + 1]
        self._end += len(data)
        return data


def _is_whole(line: bytes) -> bool:
    """Whether a last line is one: what ends it comes with the next (`journal.append`)."""
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False


def _hours(data: bytes) -> pl.DataFrame:
    """The hours of these lines; what is damaged, or was counted in other cells, is none."""
    try:
        found = pl.read_ndjson(data, schema=HOUR)
    except pl.exceptions.PolarsError:
        lines = data.splitlines()
        if len(lines) == 1:
            return pl.DataFrame(schema=HOUR)
        halves = lines[: len(lines) // 2], lines[len(lines) // 2 :]
        return pl.concat([_hours(b"\n".join(half)) for half in halves])
    is_whole = pl.col("cells").list.len() == CELLS, ~pl.col("cells").list.contains(None)
    return found.drop_nulls().filter(*is_whole)


class History:
    """The journals of all models of a storage."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._grown: OrderedDict[tuple[str, str], Grown] = OrderedDict()
        self._hours: dict[str, Hours] = {}
        self._names: dict[tuple[str, ...], tuple[str, ...]] = {}

    def looks(self, model: str, first: float) -> list[Seen]:
        """The looks at windows that ended at `first` or later, oldest first."""
        return self._of(model, journal.LOOKS, self._look).since(first)

    def latest(self, model: str) -> Seen | None:
        """The last look."""
        grown = self._of(model, journal.LOOKS, self._look)
        grown.since(float("inf"))
        return grown.lines[-1] if grown.lines else None

    def look(self, model: str, seen: Seen) -> dict[str, Any]:
        """All that a look wrote down."""
        found: dict[str, Any] = self._of(model, journal.LOOKS, self._look).whole(seen.place)
        return found

    def windows(self, model: str, first: float) -> list[Counted]:
        """The windows that ended at `first` or later, oldest first."""
        return self._of(model, journal.WINDOWS, _window).since(first)

    def counts(self, model: str, window: Counted) -> Counts | None:
        """The counts of a window; `None` where they are damaged."""
        try:
            found = Counts.from_json(self._of(model, journal.WINDOWS, _window).whole(window.place)["counts"])
        except (ValueError, KeyError, TypeError):
            return None
        sizes = [len(spec.labels) for spec in found.specs]
        return found if [cells.size for cells in found.cells] == sizes else None

    def traffic(self, model: str, first: float) -> Matrix:
        """The hours that ended at `first` or later: when they began, and the counts of each (`Matrix`)."""
        path = self._storage.root / journal.FOLDER / model / journal.TRAFFIC
        matrix = self._hours.setdefault(model, Hours(path)).read()
        return matrix[matrix[:, 0] + HOUR_S >= first]

    def _of(self, model: str, file: str, parse: Parse) -> Grown:
        """The journal; those that nobody asked for longest are forgotten where there are too many lines."""
        path = self._storage.root / journal.FOLDER / model / file
        grown = self._grown.setdefault((model, file), Grown(path, parse))
        self._grown.move_to_end((model, file))
        while len(self._grown) > 1 and sum(len(each.lines) for each in self._grown.values()) > MOST_LINES:
            self._grown.popitem(last=False)
        return grown

    def _look(self, line: bytes, place: tuple[int, int]) -> Seen:
        entry = orjson.loads(line)
        columns = tuple(entry["columns"])
        quality, whole = entry["quality"] or {}, entry.get("integrity") or {}
        found = set(entry["found"])
        told = ("estimated", "realised", "rows", "labelled")
        return Seen(
            entry["version"],
            float(entry["since"]),
            float(entry["until"]),
            entry["rows"],
            entry["spent"],
            self._names.setdefault(columns, columns),
            array("f", [NAN if psi is None else psi for psi in entry["columns"].values()]),
            tuple({f.get("column") or f["about"] for f in entry["findings"] if f["about"] in found}),
            {key: quality[key] for key in told if quality.get(key)},
            integrity.drawn(whole),
            whole.get("skew") or {},
            entry.get("outside"),
            place,
        )


def _window(line: bytes, place: tuple[int, int]) -> Counted:
    """Of a window the head alone is parsed: its counts are a hundred times as long."""
    head, _, rest = line.partition(b',"counts":')
    # Half a line has a head too.
    if not rest.endswith(b"}}"):
        raise ValueError("not whole")
    entry = orjson.loads(head + b"}")
    return Counted(entry["version"], float(entry["since"]), float(entry["until"]), place)
