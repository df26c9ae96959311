"""What was predicted, from what, and for which request: rows that replicas write off the path of requests.

    predictions/MODEL/date=YYYY-MM-DD/REPLICA-NUMBER.parquet   what people may see
    predictions_machine_only/MODEL/date=…/…                    values of machine-only columns, row by row
    predictions/MODEL/counters/REPLICA                         answered, written, lost, copied rows

A replica appends to a list, and a thread writes what has gathered every few seconds. What is lost is counted:
rows beyond those that may wait, and, after a hard kill, those that were answered and not written, which the
counters tell: they lie in a mapped file, which outlives the process.
"""

import contextlib
import fcntl
import io
import logging
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt
import polars as pl

from mlops_ray.data.rows import Table, joined
from mlops_ray.instants import from_micros
from mlops_ray.schema import INSTANT
from mlops_ray.storage import PRIVATE, Storage, replacing

FOLDER, MACHINE, COUNTERS = "predictions", "predictions_machine_only", "counters"
#: Held by who writes files anew.
LOCK = ".lock"
#: Bytes of bodies whose rows may wait to be written; decoded they take two or three times as much.
MOST_WAITING = 64 * 2**20
#: How often a replica writes: what a hard kill loses is at most this much, and it is counted.
FLUSH_S = 5.0
#: Requests of which a file's rows are made at once: about a millisecond of work.
SLICE = 1_000
#: Answered, written, lost, and of those that were answered shadow copies; the last is not in older files.
COUNTS = struct.Struct("<qqqq")
OLD_SIZE = 24
#: What a file that took the place of others is called, and where in its metadata their names stand.
COMPACT, REPLACES = "compact-", "replaces"
#: Of files that are joined: about ten times as much in memory.
MOST_JOINED_BYTES = 64 * 2**20
#: A column that stands beside a log's for a moment.
_POSITION = "position of the row"
#: In which columns of the request, and features that are not such columns, stand.
ASKED, FEATURE = "request.", "feature."
#: How requests come to a version: as its own, or as copies of the champion's, which nobody is told.
CHAMPION, CHALLENGER, SHADOW = "champion", "challenger", "shadow"
#: Of rows that a release compares: its turn, and the bucket of the routing key (`monitoring.sides.bucket`).
TURN, BUCKET = "turn", "key_bucket"

#: What is written of every row, beside what was asked.
ABOUT = {
    "at": INSTANT,
    "request_id": pl.String(),
    "row": pl.Int32(),
    "model_version": pl.String(),
    "route": pl.String(),
    "latency_us": pl.Int64(),
    "watermark": INSTANT,
    "prediction": pl.Float64(),
    TURN: pl.Int32(),
    BUCKET: pl.Int16(),
}

logger = logging.getLogger(__name__)


class Batch(Protocol):
    """The answers of a batch, one a row, and the rows; M where features were read from elsewhere (µs).

    `given` is a frame where features are no columns of the request.
    """

    @property
    def values(self) -> npt.NDArray[np.float64]: ...

    @property
    def asked(self) -> Table | None: ...

    @property
    def given(self) -> object: ...

    @property
    def watermark_us(self) -> int | None: ...


class Entry(NamedTuple):
    """A request that was answered: its rows are [start, stop) of a batch's; times are microseconds.

    `size` are the bytes of its body, `compared` the turn and the bucket, where a release compares it.
    """

    id: str
    batch: Batch
    start: int
    stop: int
    at_us: int
    latency_us: int
    size: int
    compared: tuple[int, int] | None = None


@dataclass(frozen=True)
class Shape:
    """How the rows of a version are written.

    `threshold` is that of a classification; `features` are those that are no column of the request as it is;
    `hidden_asked` and `hidden_features` are columns of the request, and features, that nobody may see.
    """

    version: str
    route: str
    threshold: float | None = None
    features: tuple[str, ...] = ()
    hidden_asked: frozenset[str] = frozenset()
    hidden_features: frozenset[str] = frozenset()


@dataclass(eq=False)
class PredictionLog:
    """The log of one replica of a model; `add` in one thread, `flush` in another."""

    storage: Storage
    model: str
    replica: str
    most_waiting: int = MOST_WAITING
    _entries: list[tuple[Shape, Entry]] = field(default_factory=list)
    _answered: int = 0
    _copied: int = 0
    _taken_bytes: int = 0
    _written_bytes: int = 0
    _lost: int = 0
    _written: int = 0
    _files: int = 0
    _one_flush: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._counters = _Counters(self.storage.path(FOLDER, self.model, COUNTERS, self.replica))

    def add(self, shape: Shape, entry: Entry) -> None:
        """Takes in an answered request; where too much waits, its rows are lost, and counted."""
        rows = entry.stop - entry.start
        self._answered += rows
        self._copied += rows if shape.route == SHADOW else 0
        if self._taken_bytes + entry.size - self._written_bytes > self.most_waiting:
            self._lost += rows
        else:
            self._taken_bytes += entry.size
            self._entries.append((shape, entry))
        self._counters.write(self._answered, self._written, self._lost, self._copied)

    def flush(self, pause_s: float = 0.0) -> int:
        """Writes what has gathered, and returns the number of rows. What cannot be written waits further on.

        With a pause after each `SLICE` of requests, so that another thread answers meanwhile. Raises
        `OSError` where the disk does not take it.
        """
        with self._one_flush:
            before, entries, self._entries = self._written, self._entries, []
            try:
                while entries:
                    shape = entries[0][0]
                    own = [entry for of, entry in entries if of is shape]
                    self._written += self._write(shape, own, pause_s)
                    self._written_bytes += sum(entry.size for entry in own)
                    entries = [each for each in entries if each[0] is not shape]
            finally:
                self._entries = entries + self._entries
                self._counters.write(self._answered, self._written, self._lost, self._copied)
            return self._written - before

    def close(self) -> None:
        """Writes what has gathered; the counters stay, and say that nothing is amiss."""
        self.flush()
        self._counters.close()

    def rehearse(self, shape: Shape, entry: Entry) -> None:
        """Does in memory what `flush` does: the first time takes half a second."""
        _frame(shape, [entry]).write_parquet(io.BytesIO())

    def _write(self, shape: Shape, entries: Sequence[Entry], pause_s: float) -> int:
        frames = []
        for at in range(0, len(entries), SLICE):
            frames.append(_frame(shape, entries[at : at + SLICE]))
            time.sleep(pause_s)
        return self._write_file(shape, pl.concat(frames), entries[0].at_us)

    def _write_file(self, shape: Shape, rows: pl.DataFrame, at_us: int) -> int:
        # Tried again, both files take the places that they had.
        name = f"{self.replica}-{self._files}.parquet"
        date = f"date={from_micros(at_us):%Y-%m-%d}"
        hidden = [ASKED + name for name in sorted(shape.hidden_asked)]
        hidden += [FEATURE + name for name in sorted(shape.hidden_features)]
        hidden = [name for name in hidden if name in rows.columns]
        if hidden:
            path = self.storage.path(MACHINE, self.model, date, name)
            with replacing(path, mode=PRIVATE) as file:
                rows.select("request_id", "row", *hidden).write_parquet(file)
        with replacing(self.storage.path(FOLDER, self.model, date, name)) as file:
            rows.drop(hidden).write_parquet(file)
        self._files += 1
        return rows.height


def _frame(shape: Shape, entries: Sequence[Entry]) -> pl.DataFrame:
    """One row for each row that was answered."""
    batches = list({id(entry.batch): entry.batch for entry in entries}.values())
    begins = np.cumsum([0, *(len(batch.values) for batch in batches)])
    begin = dict(zip(map(id, batches), begins.tolist(), strict=False))
    heights = np.array([entry.stop - entry.start for entry in entries])
    of = np.repeat(np.arange(len(entries)), heights)
    row = np.arange(len(of)) - (np.cumsum(heights) - heights)[of]
    # Where each row stands among those of all batches: as they are, as a rule.
    at = np.array([begin[id(entry.batch)] + entry.start for entry in entries])[of] + row

    def each(values: Sequence[Any], dtype: Any) -> pl.Series:
        return pl.Series(values, dtype=dtype).gather(of)

    values = np.concatenate([batch.values for batch in batches])[at]
    about = {
        "at": each([entry.at_us for entry in entries], pl.Int64).cast(INSTANT),
        "request_id": each([entry.id for entry in entries], pl.String),
        "row": pl.Series(row, dtype=pl.Int32),
        "model_version": pl.Series([shape.version], dtype=pl.String).new_from_index(0, len(row)),
        "route": pl.Series([shape.route], dtype=pl.String).new_from_index(0, len(row)),
        "latency_us": each([entry.latency_us for entry in entries], pl.Int64),
        "watermark": each([entry.batch.watermark_us for entry in entries], pl.Int64).cast(INSTANT),
        "prediction": pl.Series(values),
        TURN: each([entry.compared and entry.compared[0] for entry in entries], ABOUT[TURN]),
        BUCKET: each([entry.compared and entry.compared[1] for entry in entries], ABOUT[BUCKET]),
    }
    if shape.threshold is not None:
        about["decision"] = pl.Series(values >= shape.threshold)
    asked = joined(cast(list[Table], [batch.asked for batch in batches])).frame[at]
    columns = [column.alias(ASKED + column.name) for column in asked]
    if shape.features:
        given = pl.concat(cast(list[pl.DataFrame], [batch.given for batch in batches]))[at]
        columns += [given[name].alias(FEATURE + name) for name in shape.features]
    return pl.DataFrame(about).hstack(columns)


class _Counters:
    """`COUNTS` in a mapped file, locked by the process that counts for as long as it lives."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._file.truncate(COUNTS.size)
        self._map = mmap.mmap(self._file.fileno(), COUNTS.size)

    def write(self, *counts: int) -> None:
        COUNTS.pack_into(self._map, 0, *counts)

    def close(self) -> None:
        self._map.close()
        self._file.close()


def counted(kept: bytes) -> tuple[int, ...] | None:
    """`COUNTS` as a file has them; `None` of one that was just begun.

    >>> counted(struct.pack("<qqq", 9, 8, 1))
    (9, 8, 1, 0)
    """
    return COUNTS.unpack(kept.ljust(COUNTS.size, b"\0")) if len(kept) >= OLD_SIZE else None


def answered(storage: Storage, model: str) -> int:
    """Rows that somebody was told, by all replicas there have been: shadow copies are none."""
    total = 0
    for path in (storage.root / FOLDER / model / COUNTERS).glob("*"):
        with contextlib.suppress(FileNotFoundError):
            if (counts := counted(path.read_bytes())) is not None:
                total += counts[0] - counts[3]
    return total


def lost(storage: Storage, model: str, since: float = 0.0) -> int:
    """Rows that were answered and will not be found in the log: those of the living and of the dead.

    Not of those that have counted nothing `since` then, in seconds since 1970.
    """
    folder = storage.root / FOLDER / model / COUNTERS
    return sum(_lost_of(path, since) for path in folder.glob("*")) if folder.is_dir() else 0


def _lost_of(path: Path, since: float) -> int:
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        if os.fstat(file.fileno()).st_mtime < since:
            return 0
        is_alive = False
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            is_alive = True
        if (counts := counted(file.read(COUNTS.size))) is not None:
            answered, written, lost_rows, _ = counts
            return int(lost_rows if is_alive else answered - written)
    return 0


def files(
    storage: Storage,
    model: str,
    since: datetime | None = None,
    until: datetime | None = None,
    *,
    machine: bool = False,
) -> list[Path]:
    """The log's files by name; each row that was written stands in one of them, and in one alone.

    Of the days of this time: a request that begins before midnight may be written after it.
    """
    folder = storage.root / (MACHINE if machine else FOLDER) / model
    first = f"date={since - timedelta(days=1):%Y-%m-%d}" if since else ""
    dates = [date for date in sorted(folder.glob("date=*")) if date.name >= first]
    if until:
        dates = [date for date in dates if date.name <= f"date={until:%Y-%m-%d}"]
    found: list[Path] = []
    for date in dates:
        every = sorted(date.glob("[!.]*.parquet"))
        replaced = {name for path in every if path.name.startswith(COMPACT) for name in _replaced(path)}
        found += [path for path in every if path.name not in replaced]
    return found


def read(storage: Storage, model: str) -> pl.LazyFrame:
    """The rows that people may see, of all versions; a column that a version does not have is null.

    Raises `FileNotFoundError` where nothing was written yet.
    """
    found = files(storage, model)
    if not found:
        raise FileNotFoundError(f"nothing was predicted by {model!r} yet")
    return pl.concat([pl.scan_parquet(path) for path in found], how="diagonal_relaxed")


def between(storage: Storage, model: str, version: str, since: float, until: float) -> pl.LazyFrame:
    """What a version answered from `since` up to before `until` (seconds since the epoch).

    Shadow copies, which nobody was told, are left out. No rows where nothing was written.
    """
    ends = [from_micros(int(at * 1e6)) for at in (since, until)]
    found = files(storage, model, *ends)
    if not found:
        return pl.LazyFrame(schema=ABOUT)
    return pl.concat([pl.scan_parquet(path) for path in found], how="diagonal_relaxed").filter(
        pl.col("at") >= ends[0],
        pl.col("at") < ends[1],
        pl.col("model_version") == version,
        pl.col("route") != SHADOW,
    )


def since(storage: Storage, model: str, at: float) -> list[Path]:
    """The log's files whose rows may be of that time or later, seconds since the epoch."""
    return files(storage, model, from_micros(int(at * 1e6)))


def scan(paths: Sequence[Path], also: Iterable[str] = ()) -> pl.LazyFrame:
    """What these files say of all rows, shadow copies too, and those columns of `also` that they have."""
    names = {*ABOUT, *also}
    own = [pl.scan_parquet(path) for path in paths]
    kept = [each.select(name for name in each.collect_schema().names() if name in names) for each in own]
    return pl.concat([pl.LazyFrame(schema=ABOUT), *kept], how="diagonal_relaxed")


def sample(storage: Storage, model: str, version: str, since: float, until: float, most: int) -> pl.DataFrame:
    """At most so many rows of `between`, as `spread`, with what only machines may read of them."""
    rows = spread(between(storage, model, version, since, until), most)
    return _whole(storage, model, rows, since, until)


def rows_of(
    storage: Storage, model: str, version: str, since: float, until: float, named: pl.DataFrame
) -> pl.DataFrame:
    """Those rows of `between` that `named` names by `request_id` and `row`, as `sample` has them."""
    keys = ["request_id", "row"]
    log = between(storage, model, version, since, until).join(named.lazy().select(keys), on=keys, how="semi")
    return _whole(storage, model, log.collect(engine="streaming").unique(keys, keep="none"), since, until)


def _whole(storage: Storage, model: str, rows: pl.DataFrame, since: float, until: float) -> pl.DataFrame:
    """Rows of the log with what only machines may read of them."""
    hidden = _apart(storage, model, since, until)
    if not hidden or rows.is_empty():
        return rows
    apart = pl.concat([pl.scan_parquet(path) for path in hidden], how="diagonal_relaxed")
    keys = ["request_id", "row"]
    return rows.join(
        # Callers name requests: of two that have one name nobody knows which is which.
        apart.join(rows.lazy().select(keys), on=keys, how="semi")
        .collect(engine="streaming")
        .unique(keys, keep="none"),
        on=keys,
        how="left",
        maintain_order="left",
    )


def machine_only(storage: Storage, model: str, since: float, until: float) -> frozenset[str]:
    """The columns of the log that only machines may read, of these days."""
    found = _apart(storage, model, since, until)
    names = {name for path in found for name in pl.read_parquet_schema(path)}
    return frozenset(names - {"request_id", "row"})


def _apart(storage: Storage, model: str, since: float, until: float) -> list[Path]:
    """The files of what only machines may read, of these days."""
    ends = [from_micros(int(at * 1e6)) for at in (since, until)]
    return files(storage, model, *ends, machine=True)


def spread(rows: pl.LazyFrame, most: int) -> pl.DataFrame:
    """At most so many rows, evenly spread and in their order, the same ones each time: one of each stretch.

    Which one is drawn: every n-th would be of the same site, or hour, where these come in turns.
    """
    number = rows.select(pl.len()).collect(engine="streaming").item()
    if number <= most:
        return rows.collect(engine="streaming")
    ends = np.linspace(0, number, most + 1).astype(np.int64)
    chosen = np.random.default_rng(0).integers(ends[:-1], ends[1:])
    is_chosen = pl.col(_POSITION).is_in(chosen.tolist())
    return rows.with_row_index(_POSITION).filter(is_chosen).drop(_POSITION).collect(engine="streaming")


@contextlib.contextmanager
def rewriting(storage: Storage, model: str) -> Iterator[None]:
    """Within, nobody else writes files of the model's log or labels anew; waits for who does."""
    with storage.path(FOLDER, model, LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def compact(storage: Storage, model: str, *, older_than_s: float = 3600.0) -> int:
    """Makes large files of a day's small ones that are old enough, and returns how many are gone.

    A kill in between leaves both the new file and those that it names, which readers then pass over.
    """
    before = time.time() - older_than_s
    gone = 0
    with rewriting(storage, model):
        for top in (FOLDER, MACHINE):
            for date in sorted((storage.root / top / model).glob("date=*")):
                old = [path for path in sorted(date.glob("[!.]*.parquet")) if path.stat().st_mtime < before]
                gone += _join(old, PRIVATE if top == MACHINE else 0o644)
    return gone


def _join(old: list[Path], mode: int) -> int:
    done = {name for path in old if path.name.startswith(COMPACT) for name in _replaced(path)}
    gone = [path for path in old if path.name in done]
    for group in _groups([path for path in old if path.name not in done]):
        rows = pl.concat([pl.read_parquet(path) for path in group], how="diagonal_relaxed")
        names = "\n".join(path.name for path in group)
        with replacing(group[0].with_name(f"{COMPACT}{time.time_ns()}.parquet"), mode=mode) as file:
            rows.write_parquet(file, metadata={REPLACES: names})
        gone += group
    for path in gone:
        path.unlink(missing_ok=True)
    return len(gone)


def _groups(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Files that fit into memory together, two at least."""
    group: list[Path] = []
    size = 0
    for path in paths:
        if size + path.stat().st_size > MOST_JOINED_BYTES:
            if len(group) > 1:
                yield group
            group, size = [], 0
        group.append(path)
        size += path.stat().st_size
    if len(group) > 1:
        yield group


def _replaced(path: Path) -> list[str]:
    return pl.read_parquet_metadata(path).get(REPLACES, "").split("\n")
