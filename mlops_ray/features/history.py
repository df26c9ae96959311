"""The history of a source: an append-only Delta table of what was known, and when (semantics.md section 2).

Nothing is updated in place: a correction is a new row of the same identity, and of an identity's rows the one
known last is in force. Rows lie in buckets by a hash of their key. A commit is visible whole or not at all,
the same commit is stored once, and commits come one after the other, whoever makes them.
"""

import contextlib
import random
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import orjson
import polars as pl
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction

from mlops_ray.config import Source
from mlops_ray.data.erased import Erased, family
from mlops_ray.data.erasure import LEFT_S, Key, is_of
from mlops_ray.errors import DataError, StorageError, first_line
from mlops_ray.features.commits import (
    BUCKET,
    BUCKETS,
    COMMITTED_AT,
    DELETED,
    Batch,
    Stamp,
    buckets_of,
    empty,
    last_sequence,
    rows_of,
    write,
)
from mlops_ray.features.definitions import ViewTable
from mlops_ray.features.resample import EVENT_TIME, KNOWN_AT, SEQUENCE, UNTIL, resample
from mlops_ray.features.windows import runs
from mlops_ray.instants import EARLIEST, LATEST, MICROSECOND, from_micros, to_micros
from mlops_ray.schema import INSTANT
from mlops_ray.storage import replacing

T = TypeVar("T")
TableT = TypeVar("TableT", bound=DeltaTable | None)

#: Each commit is a step of two transactions, so that two writers at once conflict: the newest commit's time
#: (microseconds since 1970), and the last sequence number given out. Delta keeps both with a table's state.
CLOCK, COUNTER = "mlops_ray.committed_at", "mlops_ray.sequence"
#: What a commit says of itself in the log: its id and time.
ID, TIME = "mlops.commit", "mlops.committed_at"
#: How the id begins of a commit by which rows were erased.
ERASED = "erased-"
#: How often a writer that lost to another tries again; each loss means that somebody else's commit is in.
TRIES = 50
#: The folder with what was read until a commit, a file each, and the transaction that says which is in force.
#: Vacuum leaves alone what begins with an underscore.
INPUTS = "_inputs"
#: Delta keeps signed numbers of 64 bits.
INPUTS_BITS = 62
#: Longer than any writer is between writing such a file and committing it.
INPUTS_KEPT_S = 86_400
#: With so many digits the name of a file of Delta's log begins.
LOG_DIGITS = 20
#: Above so many files a bucket, compaction pays.
FILES_A_BUCKET = 8
#: What to do about a history of which something is lost.
RESTORE = "restore the folder from a copy, or delete it and ingest again"


@dataclass(frozen=True)
class AsOf:
    """What is asked of a history: rows known at `known_at` among those stored by `committed_at`."""

    known_at: datetime
    committed_at: datetime

    def to_json(self) -> dict[str, str]:
        return {"known_at": self.known_at.isoformat(), "committed_at": self.committed_at.isoformat()}


@dataclass(frozen=True)
class Commit:
    """A commit of a history: the table's version, its id and time, and the last sequence number given out."""

    version: int
    id: str
    committed_at: datetime
    sequence: int


@dataclass(frozen=True)
class Bucket:
    """The files of one bucket at a snapshot, their rows, and between which event times they lie."""

    files: tuple[str, ...]
    rows: int
    begin: datetime
    end: datetime


@dataclass(frozen=True)
class Snapshot:
    """A history as it stood when the question was first asked; plain data, the same wherever it is read."""

    view: ViewTable
    as_of: AsOf
    #: Whether `as_of` leaves out rows that the files hold.
    is_newest: bool
    buckets: dict[int, Bucket]

    @property
    def rows(self) -> int:
        return sum(bucket.rows for bucket in self.buckets.values())


@dataclass(frozen=True)
class History:
    """The history that a view reads, under the feature store's folder."""

    folder: Path
    view: ViewTable

    @classmethod
    def of(cls, features: Path, view: ViewTable) -> "History":
        return cls(features / view.table, view)

    @property
    def newest(self) -> Commit | None:
        """The newest commit; `None` before the first."""
        with _readable(self.folder):
            table = self._table()
            return _newest(table) if table else None

    @property
    def erased(self) -> Erased:
        """Whose rows are kept out, since they were erased."""
        return Erased.of(self.folder.parent, self.view.source)

    @property
    def commit(self) -> str | None:
        """The id of the newest commit; `None` before the first."""
        return self.newest.id if self.newest else None

    # ------------------------------------------------------------ writing

    def append(self, rows: pl.DataFrame, source: Source, commit_id: str) -> Commit:
        """Stores rows (`event_time` but for a table without time, keys and values) in one commit.

        Returns the newest commit: one that is in already is not stored again. Raises `StorageError` where
        other writers do not let this one through.
        """
        return self.store(Batch(lambda: [rows], rows.height), source, commit_id)

    def store(self, batch: Batch, source: Source, commit_id: str) -> Commit:
        """Like `append`, of rows that need not fit into memory, and may be stored already."""

        def once(table: DeltaTable) -> Commit:
            with _readable(self.folder):
                last, held = _newest(table), self._inputs_of(table)
            if last is not None and table.transaction_version(commit_id) is not None:
                return last
            if last and batch.inputs and not batch.is_known and batch.inputs.items() <= held.items():
                # Another writer has just stored the same.
                return last
            return self._store(table, last, replace(batch, inputs=held | batch.inputs), source, commit_id)

        # Made before the newest commit is looked up: another writer may have made it, and more, just now.
        return self._in_turn(lambda: self._table() or self._create(source), once)

    def _in_turn(self, opened: Callable[[], TableT], once: Callable[[TableT], T]) -> T:
        """What `once` answers of the table, asked again as long as another commit comes before its own."""
        # Times and numbers of a commit follow those of the one that came first, which may have brought more.
        for attempt in range(TRIES):
            with _readable(self.folder):
                table = opened()
            try:
                return once(table)
            except DeltaError as error:
                if table is None or not self._has_lost(table, error):
                    raise
                time.sleep(random.uniform(0, 0.01 * (attempt + 1)))  # noqa: S311
        raise StorageError(f"{self.folder}: other writers were faster {TRIES} times; try again")

    def _store(
        self, table: DeltaTable, last: Commit | None, batch: Batch, source: Source, commit_id: str
    ) -> Commit:
        now = datetime.now(UTC)
        if last is not None:
            now = max(now, last.committed_at + MICROSECOND)
        stamp = Stamp(self.view, source, now, last.sequence + 1 if last else 0)
        stored = {number: bucket.files for number, bucket in _files(table).items()} if batch.is_known else {}
        given = batch.chunks
        batch = replace(batch, chunks=lambda: map(self.erased.without, given()))
        added: list[AddAction] = []
        # Of this try alone: a writer that loses must not write over what the winner says.
        number = secrets.randbits(INPUTS_BITS) if batch.inputs else None
        with self._withdrawn(added):
            for file in write(self.folder, rows_of(batch, stamp, stored)):
                added.append(file)
            if last is not None and batch.is_known and not added and batch.inputs == self._inputs_of(table):
                return last
            if number is not None:
                (self.folder / INPUTS).mkdir(exist_ok=True)
                with replacing(self.folder / INPUTS / f"{number}.json") as new:
                    new.write_bytes(orjson.dumps(batch.inputs))
            commit = Commit(table.version() + 1, commit_id, now, last_sequence(batch, stamp))
            _write_commit(table, added, commit, number)
        self._forget_inputs(number)
        return commit

    @contextlib.contextmanager
    def _withdrawn(self, actions: Sequence[AddAction | RemoveAction]) -> Iterator[None]:
        """Removes the files that were added where they are not committed."""
        try:
            yield
        except BaseException:
            for action in actions:
                if isinstance(action, AddAction):
                    (self.folder / action.path).unlink(missing_ok=True)
            raise

    def _has_lost(self, table: DeltaTable, error: DeltaError) -> bool:
        """Whether another commit came first: it conflicts, or is an erasure that forgot the log before it."""
        return isinstance(error, CommitFailedError) or not self._log(table).exists()

    def _log(self, table: DeltaTable) -> Path:
        return self.folder / "_delta_log" / f"{table.version():0{LOG_DIGITS}}.json"

    def _create(self, source: Source) -> DeltaTable:
        """The table, still empty: two writers that both began it would not notice each other."""
        schema = Schema.from_arrow(empty(self.view, source).to_arrow().schema)
        try:
            return DeltaTable.create(
                self.folder, schema, mode="ignore", partition_by=[BUCKET], name=self.view.source
            )
        except DeltaError:
            # Of two that make it at the same moment one is told of a conflict.
            if (made := self._table()) is None:
                raise
            return made

    @property
    def inputs(self) -> dict[str, int]:
        """The number that each input had when it was last stored."""
        with _readable(self.folder):
            table = self._table()
            return self._inputs_of(table) if table else {}

    def _inputs_of(self, table: DeltaTable) -> dict[str, int]:
        """What the file that a commit names says: to look each up among Delta's transactions takes 2 ms."""
        number = table.transaction_version(INPUTS)
        if number is None:
            return {}
        try:
            return dict(orjson.loads((self.folder / INPUTS / f"{number}.json").read_bytes()))
        except orjson.JSONDecodeError as error:
            raise StorageError(f"the history {self.folder} cannot be read: {error}; {RESTORE}") from error

    def _forget_inputs(self, number: int | None) -> None:
        """Removes what older commits said, but for what another process may be about to read or to commit."""
        old = time.time() - INPUTS_KEPT_S
        for file in (self.folder / INPUTS).glob("*.json"):
            if number is not None and file.stem != str(number) and file.stat().st_mtime < old:
                file.unlink(missing_ok=True)

    def greatest(self, column: str) -> object:
        """The greatest value of a column among all rows; `None` where there is none."""
        with _readable(self.folder):
            table = self._table()
            files = [file for bucket in _files(table).values() for file in bucket.files] if table else []
            rows = pl.scan_parquet(files, hive_partitioning=False, glob=False) if files else None
            return rows.select(pl.col(column).max()).collect().item() if rows is not None else None

    def maintain(self, *, vacuum_hours: int | None = None) -> int:
        """Merges small files, where there are many; returns how many files there are. No answer changes.

        With `vacuum_hours`, files that no version has needed for so long are deleted.
        """
        with _readable(self.folder):
            table = self._table()
            if table is None:
                return 0
            if len(table.file_uris()) > FILES_A_BUCKET * BUCKETS:
                table.optimize.compact()
            if vacuum_hours is not None:
                table.vacuum(
                    retention_hours=vacuum_hours,
                    dry_run=False,
                    enforce_retention_duration=False,
                )
            return len(table.file_uris())

    # ------------------------------------------------------------ erasing

    @property
    def is_empty(self) -> bool:
        """Whether it holds no row."""
        with _readable(self.folder):
            table = self._table()
            return table is None or not table.file_uris()

    def has(self, types: Mapping[str, str]) -> bool:
        """Whether its rows have these columns, of these families of types, as in another definition not."""
        with _readable(self.folder):
            table = self._table()
            return table is None or types.items() <= _families(table).items()

    def count(self, key: Key) -> int:
        """How many rows of a key it holds, superseded ones too; `key` has the text of some of its columns."""
        with _readable(self.folder):
            table = self._table()
            found = _holding(table, key) if table else {}
            return sum(rows for rows, _ in found.values())

    def erase(self, key: Key, commit_id: str, left_s: float = LEFT_S) -> int:
        """Takes the rows of a key out for good, in one commit, and returns how many there were.

        The commit has the time of the newest, since nothing new is known, and an id of its own, so that what
        was made of the history is made anew. Every file that holds such rows is removed at once, those that
        were merged before among them, and so is the log of what files held, and what a writer had begun that
        has not been written to for `left_s`. Safe to repeat; who was killed within calls it again.
        """

        def once(table: DeltaTable | None) -> dict[str, tuple[int, int]] | None:
            with _readable(self.folder):
                last = _newest(table) if table else None
                found = _holding(table, key) if table and last else {}
            if table is None or last is None or not key.keys() <= _families(table).keys():
                return None
            if found:
                self._take_out(table, last, found, key, commit_id)
            return found

        found = self._in_turn(self._table, once)
        if found is None:
            return 0
        self._remove(key, left_s)
        self._forget_log()
        return sum(rows for rows, _ in found.values())

    def _take_out(
        self, table: DeltaTable, last: Commit, found: dict[str, tuple[int, int]], key: Key, commit_id: str
    ) -> None:
        actions: list[AddAction | RemoveAction] = []
        now_ms = int(time.time() * 1000)
        with self._withdrawn(actions):
            for name, (_, bucket) in found.items():
                kept = _file(self.folder / name).filter(~is_of(key)).collect()
                actions += write(self.folder, [(bucket, kept.with_columns(pl.lit(bucket).alias(BUCKET)))])
                size = (self.folder / name).stat().st_size
                actions.append(RemoveAction(name, True, now_ms, size, {BUCKET: str(bucket)}))
            _write_commit(table, actions, replace(last, version=table.version() + 1, id=commit_id), None)

    def _remove(self, key: Key, left_s: float) -> None:
        """Removes files that no version needs any more and that hold rows of a key."""
        # Another writer's, not yet committed, holds none: who began before our commit begins again behind it.
        with _readable(self.folder):
            table = self._table()
            needed = {_name(uri) for uri in table.file_uris()} if table else set()
        for path in sorted(self.folder.glob(f"{BUCKET}=*/*.parquet")):
            if _name(str(path)) in needed:
                continue
            with contextlib.suppress(FileNotFoundError):
                try:
                    holds = _file(path).select(is_of(key).any()).collect().item()
                except pl.exceptions.PolarsError:
                    # What a writer that was killed had begun, unless somebody writes it now.
                    holds = path.stat().st_mtime <= time.time() - left_s
                if holds:
                    path.unlink()

    def _forget_log(self) -> None:
        """Removes the log before the newest commit: it says between which values the rows of files lay."""
        with _readable(self.folder):
            table = self._table()
            if table is None:
                return
            table.create_checkpoint()
            for path in sorted((self.folder / "_delta_log").iterdir()):
                number = path.name[:LOG_DIGITS]
                if number.isdigit() and int(number) < table.version():
                    path.unlink(missing_ok=True)

    # ------------------------------------------------------------ reading

    def snapshot(
        self,
        as_of: AsOf | None = None,
        *,
        known_at: datetime | None = None,
        latest: datetime | None = None,
    ) -> Snapshot:
        """The history as it stands now: `as_of` an earlier question, or as known at an instant.

        Raises `DataError` where there is no history yet, or `known_at` is later than its newest commit, or
        than `latest`, the newest of all the histories that are asked together.
        """
        with _readable(self.folder):
            table = self._table()
            last = _newest(table) if table else None
            buckets = _files(table) if table and last and table.file_uris() else None
        if last is None or buckets is None:
            raise DataError(f"there is no history of {self.view.source!r} yet; ingest it first")
        newest = last.committed_at
        if as_of is None:
            if known_at is not None and known_at > (latest or newest):
                raise DataError(
                    f"{known_at.isoformat()} is after the newest commit of {self.view.source!r} "
                    f"({newest.isoformat()}): what is known by then may still come in; leave the instant out "
                    "for all that is stored"
                )
            as_of = AsOf(known_at or newest, newest)
        is_newest = as_of.known_at >= newest and as_of.committed_at >= newest
        return Snapshot(self.view, as_of, is_newest, buckets)

    def _table(self) -> DeltaTable | None:
        if DeltaTable.is_deltatable(str(self.folder)):
            table = DeltaTable(self.folder)
            log = self._log(table)
            # Delta takes an empty log for a commit of nothing; a crash of the machine leaves such.
            if log.exists() and not log.stat().st_size:
                raise StorageError(
                    f"the history {self.folder} cannot be read: {log.name} is empty; {RESTORE}"
                )
            return table
        if any(self.folder.glob(f"{BUCKET}=*")):
            raise StorageError(f"the history {self.folder} cannot be read: its log is gone; {RESTORE}")
        return None


def _write_commit(
    table: DeltaTable, actions: Sequence[AddAction | RemoveAction], commit: Commit, inputs: int | None
) -> None:
    """Raises `DeltaError` where another commit came first."""
    steps = {CLOCK: to_micros(commit.committed_at), COUNTER: commit.sequence, commit.id: 0}
    steps |= {INPUTS: inputs} if inputs is not None else {}
    table.create_write_transaction(
        list(actions),
        mode="append",
        schema=table.schema(),
        partition_by=[BUCKET],
        commit_properties=CommitProperties(
            custom_metadata={ID: commit.id, TIME: commit.committed_at.isoformat()},
            app_transactions=[Transaction(name, number) for name, number in steps.items()],
        ),
    )


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Says of what goes wrong within that the history cannot be read."""
    try:
        yield
    except (DeltaError, pl.exceptions.PolarsError, OSError) as error:
        why = first_line(error)
        raise StorageError(f"the history {folder} cannot be read: {why}; {RESTORE}") from error


def _newest(table: DeltaTable) -> Commit | None:
    clock, counter = table.transaction_version(CLOCK), table.transaction_version(COUNTER)
    if clock is None or counter is None:
        # A writer may have died between making the table and its first commit.
        return None
    committed_at = from_micros(clock)
    return Commit(table.version(), _id(table, committed_at), committed_at, counter)


def _id(table: DeltaTable, committed_at: datetime) -> str:
    """The id of a commit; empty where Delta has dropped its log of that time."""
    # Before it stand what merged files since, and commits since the table was looked up.
    for limit in (1, 16, None):
        for entry in table.history(limit):
            if entry.get(TIME) == committed_at.isoformat():
                return str(entry[ID])
    return ""


def _files(table: DeltaTable) -> dict[int, Bucket]:
    actions = pl.DataFrame(table.get_add_actions(flatten=True))
    root = table.table_uri.rstrip("/")
    rows = actions.select(
        pl.col(f"partition.{BUCKET}").cast(pl.Int64).alias("bucket"),
        pl.format("{}/{}", pl.lit(root), "path").alias("path"),
        pl.col("num_records").cast(pl.Int64),
        pl.col(f"min.{EVENT_TIME}").cast(INSTANT).alias("begin"),
        pl.col(f"max.{EVENT_TIME}").cast(INSTANT).alias("end"),
    ).sort("bucket", "path")
    grouped = rows.group_by("bucket", maintain_order=True).agg(
        "path", pl.col("num_records").sum(), pl.col("begin").min(), pl.col("end").max()
    )
    return {b: Bucket(tuple(paths), n, begin, end) for b, paths, n, begin, end in grouped.iter_rows()}


def _families(table: DeltaTable) -> dict[str, str]:
    return {name: family(dtype) for name, dtype in pl.Schema(table.schema()).items()}


def _holding(table: DeltaTable, key: Key) -> dict[str, tuple[int, int]]:
    """The files that hold rows of a key, by name: how many, and in which bucket they lie."""
    if not key.keys() <= _families(table).keys():
        return {}
    found = {}
    for number, bucket in _files(table).items() if table.file_uris() else ():
        for path in bucket.files:
            rows = _file(path).filter(is_of(key)).select(pl.len()).collect().item()
            if rows:
                found[_name(path)] = (rows, number)
    return found


def _file(path: Path | str) -> pl.LazyFrame:
    return pl.scan_parquet(path, hive_partitioning=False, glob=False)


def _name(path: str) -> str:
    """What the log calls a file: its bucket's folder and its name."""
    return "/".join(path.rsplit("/", 2)[-2:])


# ---------------------------------------------------------------- what is in force


def clock(snapshot: Snapshot) -> datetime:
    """Up to when everything known has come in.

    Where rows become known by being stored, that is the newest commit. A back-load's clock is that of its
    rows: the newest `known_at`, and for a resampled source the usual step to the next row more, since the
    newest stands for the time until then.
    """
    view, as_of = snapshot.view, snapshot.as_of
    if not view.back_loaded:
        return min(as_of.known_at, as_of.committed_at)
    rows = _known(snapshot, [file for bucket in snapshot.buckets.values() for file in bucket.files])
    newest: datetime | None = _collect(rows.select(pl.col(KNOWN_AT).max()), snapshot).item()
    if newest is None:
        raise DataError(
            f"no row of {view.source!r} is known by {as_of.known_at.isoformat()} yet: all become known later"
        )
    if view.every_us is None:
        return newest
    step = _collect(rows.select(pl.col(EVENT_TIME).unique().sort().diff().median()), snapshot).item()
    return newest + (step or timedelta())


def changed_since(snapshot: Snapshot, committed_at: datetime) -> pl.DataFrame:
    """The keys of rows that were stored after a commit, or stored before but known only later."""
    files = [file for bucket in snapshot.buckets.values() for file in bucket.files]
    is_news = (pl.col(COMMITTED_AT) > committed_at) | (pl.col(KNOWN_AT) > committed_at)
    return _collect(_known(snapshot, files).filter(is_news).select(snapshot.view.keys).unique(), snapshot)


def _known(snapshot: Snapshot, files: list[str]) -> pl.LazyFrame:
    """The rows of files that the question admits."""
    as_of = snapshot.as_of
    admitted = pl.col(KNOWN_AT) <= as_of.known_at
    if not snapshot.is_newest:
        admitted &= pl.col(COMMITTED_AT) <= as_of.committed_at
    return pl.scan_parquet(files, hive_partitioning=False, glob=False).filter(admitted)


def _collect(rows: pl.LazyFrame, snapshot: Snapshot) -> pl.DataFrame:
    """What a query over the files of a snapshot finds."""
    some = next(file for bucket in snapshot.buckets.values() for file in bucket.files)
    with _readable(Path(some.removeprefix("file://")).parent.parent):
        return rows.collect()


def read(
    snapshot: Snapshot,
    buckets: Sequence[int] | None = None,
    *,
    columns: Sequence[str] | None = None,
    strict: bool = False,
    between: tuple[datetime, datetime] | None = None,
) -> pl.DataFrame:
    """The table that features read: rows in force, resampled where the source says so.

    Columns: keys, `event_time`, `KNOWN_AT`, the view's `columns` (all unless given); sorted by key, event
    time and row id. With `strict`, every version of a row that was ever in force, with `UNTIL`. With
    `between`, only rows with an event time in (begin, end].
    """
    chosen = [snapshot.buckets[b] for b in (snapshot.buckets if buckets is None else buckets)]
    files = [file for bucket in chosen for file in bucket.files]
    rows = _versions(snapshot, files, _raw(snapshot.view, columns), between)
    made = table(_collect(rows, snapshot), snapshot.view, columns, strict=strict)
    if between is not None:
        made = made.filter((pl.col(EVENT_TIME) > between[0]) & (pl.col(EVENT_TIME) <= between[1]))
    return made


def versions(
    snapshot: Snapshot, entities: pl.DataFrame, columns: Sequence[str], between: tuple[datetime, datetime]
) -> pl.LazyFrame:
    """All that was stored of these entities, of which `table` makes what was known at an earlier moment.

    `entities` has the view's keys. Of identities that have a row in the interval, and intervals in whole.
    """
    keys = list(snapshot.view.keys)
    numbers = set(buckets_of(entities, keys).to_list()) if keys else set(snapshot.buckets)
    # A key in a bucket without rows is unknown, wherever it is looked up.
    some = numbers & set(snapshot.buckets) or {next(iter(snapshot.buckets))}
    files = [file for number in sorted(some) for file in snapshot.buckets[number].files]
    rows = _versions(snapshot, files, _raw(snapshot.view, columns), between)
    if not keys:
        return rows
    known = entities.lazy().select(keys).unique()
    return rows.join(known, on=keys, how="semi", maintain_order="left")


def table(
    rows: pl.DataFrame, view: ViewTable, columns: Sequence[str] | None = None, *, strict: bool = False
) -> pl.DataFrame:
    """What `read` gives, of versions of rows: those in force, resampled where the source says so."""
    wanted = [c for c in view.columns if columns is None or c.name in columns]
    aggregations = tuple(pair for pair in view.aggregations if pair[0] in {c.name for c in wanted})
    rows = in_force(rows, view.keys, view.row_id, strict=strict)
    if view.every_us is not None:
        rows = resample(rows, view.keys, view.every_us, aggregations, wanted)
    ties = (SEQUENCE, view.row_id) if view.row_id and view.every_us is None else ()
    names = [*view.keys, EVENT_TIME, KNOWN_AT, *ties, *([UNTIL] if strict else []), *(c.name for c in wanted)]
    return rows.select(list(dict.fromkeys(names)))


def _raw(view: ViewTable, columns: Sequence[str] | None) -> list[str]:
    """The columns of rows of which the view's are made."""
    wanted = [c.name for c in view.columns if columns is None or c.name in columns]
    return list(dict.fromkeys(n for n, _ in view.aggregations if n in wanted)) if view.every_us else wanted


def _versions(
    snapshot: Snapshot, files: list[str], columns: list[str], between: tuple[datetime, datetime] | None
) -> pl.LazyFrame:
    """All rows of the files that the question admits, of identities that have one in the interval."""
    view = snapshot.view
    names = dict.fromkeys([*view.identity, EVENT_TIME, KNOWN_AT, SEQUENCE, DELETED, *columns])
    rows = _known(snapshot, files)
    if between is not None:
        begin, end = _whole_intervals(between, view.every_us)
        within = (pl.col(EVENT_TIME) >= begin) & (pl.col(EVENT_TIME) <= end)
        if view.row_id is None:
            rows = rows.filter(within)
        else:
            # A correction may have moved an identity's event time out of the interval.
            touched = rows.filter(within).select(view.identity).unique()
            rows = rows.join(touched, on=list(view.identity), how="semi")
    return rows.select([*names, COMMITTED_AT])


def _whole_intervals(between: tuple[datetime, datetime], every_us: int | None) -> tuple[datetime, datetime]:
    """Where the rows lie from which the intervals that end in between are made."""
    if every_us is None:
        return between
    first, last = (to_micros(edge) // every_us for edge in between)
    # The calendar ends somewhere.
    edges = (first * every_us, (last + 1) * every_us)
    begin, end = (min(max(edge, to_micros(EARLIEST)), to_micros(LATEST)) for edge in edges)
    return from_micros(begin), from_micros(end)


def in_force(
    rows: pl.DataFrame, keys: Sequence[str], row_id: str | None, *, strict: bool = False
) -> pl.DataFrame:
    """Of all rows of an identity, the one greatest by (known_at, sequence), unless it is deleted.

    With `strict`, every version that was in force for a while, and `UNTIL` when. Sorted by key, event time
    and row id.
    """
    if row_id is None and _is_settled(rows, keys):
        return rows.with_columns(pl.lit(None, INSTANT).alias(UNTIL)) if strict else rows
    identity = [*keys, row_id or EVENT_TIME]
    rows = rows.sort(*identity, KNOWN_AT, SEQUENCE, COMMITTED_AT, maintain_order=True)
    if strict:
        same = pl.all_horizontal(pl.col(name).eq_missing(pl.col(name).shift(-1)) for name in identity)
        rows = rows.with_columns(pl.when(same).then(pl.col(KNOWN_AT).shift(-1)).alias(UNTIL))
        # A version that was superseded when it came, or before its event, was never looked at.
        seen = pl.col(UNTIL).is_null() | (pl.col(UNTIL) > pl.max_horizontal(KNOWN_AT, EVENT_TIME))
    else:
        seen = ~pl.all_horizontal(pl.col(name).eq_missing(pl.col(name).shift(-1)) for name in identity)
        seen = seen.fill_null(True)
    rows = rows.filter(seen & ~pl.col(DELETED))
    return rows if row_id is None else rows.sort(*keys, EVENT_TIME, row_id, KNOWN_AT, SEQUENCE)


def _is_settled(rows: pl.DataFrame, keys: Sequence[str]) -> bool:
    """Whether rows are sorted, one an identity, and none deleted: as one commit without corrections lies."""
    if rows[DELETED].any():
        return False
    found = runs(rows, keys)
    if found.height > 1 and found.select(keys).is_duplicated().any():
        return False
    micros = rows[EVENT_TIME].dt.timestamp("us")
    ascends = (micros.diff() > 0).fill_null(True)
    starts = found["_first"]
    return bool(ascends.sum() + int((~ascends.gather(starts)).sum()) == rows.height)
