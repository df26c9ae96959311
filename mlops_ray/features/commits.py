"""What a commit writes: rows with their bookkeeping, a file for each bucket, and, where asked, only news."""

import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import orjson
import polars as pl
from deltalake.transaction import AddAction

from mlops_ray.config import Source
from mlops_ray.errors import StorageError, first_line
from mlops_ray.features.definitions import ViewTable
from mlops_ray.features.resample import EVENT_TIME, KNOWN_AT, SEQUENCE
from mlops_ray.schema import DTYPES, INSTANT

#: Enough for a node's cores to share a join, few enough that a small history is not a heap of tiny files.
BUCKETS = 16
#: Where the row of a table without time stands: before everything else that has a date.
BEGINNING = datetime(1, 1, 2, tzinfo=UTC)

BUCKET = "mlops_bucket"
COMMITTED_AT, DELETED = "_committed_at", "_deleted"
#: What is ours about a row, and says nothing of what it holds.
BOOKKEEPING = (BUCKET, KNOWN_AT, COMMITTED_AT, SEQUENCE)

#: Rows that are skipped together where a reader asks for a time.
ROW_GROUP = 128 * 1024


@dataclass(frozen=True)
class Batch:
    """The rows of a commit, `rows` at most.

    `chunks` yields them each time that it is called, in frames with all rows of their keys each. `inputs` are
    numbers by the names of what they were read from, kept with the commit. With `is_known`, rows that
    are stored already are left out; with `is_whole`, what is stored and not among them is taken back.
    """

    chunks: Callable[[], Iterable[pl.DataFrame]]
    rows: int
    inputs: dict[str, int] = field(default_factory=dict)
    is_known: bool = False
    is_whole: bool = False


@dataclass(frozen=True)
class Stamp:
    """What the rows of one commit have in common: its time, and the first sequence number that is free."""

    view: ViewTable
    source: Source
    now: datetime
    sequence: int


def empty(view: ViewTable, source: Source) -> pl.DataFrame:
    """The columns of a history, without a row."""
    return _bookkept(pl.DataFrame(schema={EVENT_TIME: INSTANT}), Stamp(view, source, datetime.now(UTC), 0))


def rows_of(
    batch: Batch, stamp: Stamp, stored: Mapping[int, Sequence[str]]
) -> Iterator[tuple[int, pl.DataFrame]]:
    """The rows that a commit adds, by bucket; `stored` are the files of each that are there already."""
    seen = set()
    for chunk in batch.chunks():
        for (bucket, *_), rows in _bookkept(chunk, stamp).partition_by(BUCKET, as_dict=True).items():
            seen.add(bucket)
            yield bucket, news(rows, stored.get(bucket, ()), batch, stamp) if batch.is_known else rows
    for bucket in sorted(stored.keys() - seen) if batch.is_whole else ():
        yield bucket, news(empty(stamp.view, stamp.source), stored[bucket], batch, stamp)


def write(folder: Path, rows: Iterable[tuple[int, pl.DataFrame]]) -> Iterator[AddAction]:
    """Writes one file for the rows of each bucket; no reader sees it before it is committed."""
    for bucket, frame in rows:
        if frame.is_empty():
            continue
        name = f"{BUCKET}={bucket}/{uuid.uuid4()}.parquet"
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            frame.drop(BUCKET).write_parquet(path, row_group_size=ROW_GROUP)
        except (OSError, pl.exceptions.PolarsError) as error:
            path.unlink(missing_ok=True)
            raise StorageError(f"{path} cannot be written: {first_line(error)}") from error
        size = path.stat()
        yield AddAction(
            name, size.st_size, {BUCKET: str(bucket)}, int(size.st_mtime * 1000), True, _stats(frame)
        )


def _stats(frame: pl.DataFrame) -> str:
    """What Delta's log says of a file: readers skip those without a row in their interval."""
    times = frame.select(EVENT_TIME, KNOWN_AT)
    ends = {"minValues": times.min(), "maxValues": times.max()}
    said = {end: dict(zip(times.columns, _iso(found), strict=True)) for end, found in ends.items()}
    return orjson.dumps({"numRecords": frame.height, **said, "nullCount": {}}).decode()


def _iso(times: pl.DataFrame) -> tuple[str, ...]:
    return times.select(pl.all().dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")).row(0)


def _bookkept(rows: pl.DataFrame, stamp: Stamp) -> pl.DataFrame:
    """Rows as they lie in a file: with what is ours, sorted, one of each that nothing tells apart."""
    source, view = stamp.source, stamp.view
    if EVENT_TIME not in rows.columns:
        rows = rows.with_columns(pl.lit(BEGINNING).cast(INSTANT).alias(EVENT_TIME))
    absent = [c for c in source.row_schema.columns if c.name not in rows.columns]
    rows = rows.with_columns(pl.lit(None, DTYPES[c.type]).alias(c.name) for c in absent)
    number = pl.int_range(stamp.sequence, stamp.sequence + pl.len(), dtype=pl.Int64)
    own = pl.col(source.sequence).cast(pl.Int64) if source.sequence else number
    marked = pl.col(source.deleted).fill_null(False) if source.deleted else pl.lit(False)
    return (
        rows.with_columns(
            buckets_of(rows, view.keys).alias(BUCKET),
            _known_at(source, stamp.now).cast(INSTANT).alias(KNOWN_AT),
            pl.lit(stamp.now).cast(INSTANT).alias(COMMITTED_AT),
            own.alias(SEQUENCE),
            marked.alias(DELETED),
        )
        # Of rows that nothing tells apart the last in the file counts.
        .unique([*view.identity, KNOWN_AT, SEQUENCE], keep="last", maintain_order=True)
        .sort(BUCKET, *view.keys, EVENT_TIME, maintain_order=True)
    )


def _known_at(source: Source, now: datetime) -> pl.Expr:
    known = source.known_at
    if known is None:
        return pl.lit(now)
    if known.column is not None:
        return pl.col(known.column)
    return pl.col(EVENT_TIME) + pl.duration(microseconds=known.after_event or 0)


def buckets_of(rows: pl.DataFrame, keys: Sequence[str]) -> pl.Series:
    """The bucket of each row. The hash must never change: rows of a key stay in one bucket for good."""
    if not keys:
        return pl.repeat(0, rows.height, dtype=pl.Int32, eager=True).alias(BUCKET)
    # -0.0 and 0.0 are one key, so they have one text.
    plain = [
        pl.when(pl.col(k) == 0).then(0.0).otherwise(k) if rows.schema[k].is_float() else pl.col(k)
        for k in keys
    ]
    text = rows.select(pl.concat_str([k.cast(pl.String).fill_null("") for k in plain], separator="\x1f"))
    names = text.to_series()
    unique = names.unique()
    hashed = [zlib.crc32(name.encode()) % BUCKETS for name in unique.to_list()]
    found = names.replace_strict(unique, hashed, return_dtype=pl.Int32)
    # Nothing replaced keeps its type.
    return found.cast(pl.Int32).alias(BUCKET)


# ---------------------------------------------------------------- what is news


def news(rows: pl.DataFrame, files: Sequence[str], batch: Batch, stamp: Stamp) -> pl.DataFrame:
    """Of the rows of a bucket those that say something else than what its files say already.

    Where the batch is the whole table, with a deletion for each row in force that is not among them.
    """
    view = stamp.view
    # A declared back-load holds several versions of a row, told apart by when they became known.
    identity = [*view.identity, *([KNOWN_AT] if view.back_loaded else [])]
    rows = _last(rows, identity, [KNOWN_AT, SEQUENCE])
    if not files:
        return rows.filter(~pl.col(DELETED))
    stored = pl.scan_parquet(list(files), hive_partitioning=False, glob=False)
    if view.row_id is None and not batch.is_whole:
        # Rows of an identity share its event time, so that most files need not be read.
        stored = stored.filter(pl.col(EVENT_TIME).is_between(rows[EVENT_TIME].min(), rows[EVENT_TIME].max()))
    held = _last(stored.collect(), identity, [KNOWN_AT, SEQUENCE, COMMITTED_AT]).filter(~pl.col(DELETED))
    same = [name for name in held.columns if name not in (*BOOKKEEPING, DELETED, *identity)]
    given, deleted = rows.filter(~pl.col(DELETED)), rows.filter(DELETED)
    found = [
        given.join(held, on=[*identity, *same], how="anti", nulls_equal=True),
        deleted.join(held, on=identity, how="semi", nulls_equal=True),
    ]
    if batch.is_whole:
        gone = held.join(rows, on=identity, how="anti", nulls_equal=True)
        found.append(_taken_back(gone, batch, stamp).select(rows.columns))
    return pl.concat(found).sort(*view.keys, EVENT_TIME, maintain_order=True)


def _last(rows: pl.DataFrame, identity: Sequence[str], order: Sequence[str]) -> pl.DataFrame:
    return rows.sort(order, maintain_order=True).unique(identity, keep="last", maintain_order=True)


def _taken_back(rows: pl.DataFrame, batch: Batch, stamp: Stamp) -> pl.DataFrame:
    """Deletions of rows, known from now on; those of a back-load were never there."""
    known = pl.col(KNOWN_AT) if stamp.view.back_loaded else pl.lit(stamp.now).cast(INSTANT)
    bucket = buckets_of(rows, stamp.view.keys)
    return rows.with_columns(
        bucket.alias(BUCKET),
        known.alias(KNOWN_AT),
        pl.lit(stamp.now).cast(INSTANT).alias(COMMITTED_AT),
        pl.lit(stamp.sequence + batch.rows, pl.Int64).alias(SEQUENCE),
        pl.lit(True).alias(DELETED),
    )


def last_sequence(batch: Batch, stamp: Stamp) -> int:
    """The greatest sequence number that a commit of these rows may have given out."""
    return stamp.sequence + batch.rows - 1 + batch.is_whole
