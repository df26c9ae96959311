"""The history of a source: an append-only Delta table of what was known, and when (semantics.md section 2).

Nothing is updated in place: a correction is a new row of the same identity, and the row in force is the one
known last. Rows lie in buckets by a hash of their key; one commit is visible whole or not at all, and the
same commit is stored once.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake.exceptions import TableNotFoundError

from mlops_ray.config import Source
from mlops_ray.features.definitions import ViewTable
from mlops_ray.features.windows import resample
from mlops_ray.schema import DTYPES, INSTANT

#: Enough for a node's cores to share a join, few enough that a small history is not a heap of tiny files.
BUCKETS = 16

#: Where a commit of the Delta table carries the id of what it stored.
COMMIT = "mlops.commit"
BOOKKEEPING = {
    "bucket": pl.Int32,
    "known_at": INSTANT,
    "committed_at": INSTANT,
    "sequence": pl.Int64,
    "deleted": pl.Boolean,
}


@dataclass(frozen=True)
class History:
    """The history of one source, at a folder."""

    folder: Path
    keys: tuple[str, ...]

    @classmethod
    def of(cls, features: Path, view: ViewTable) -> "History":
        """The history that a view reads, under the store's folder."""
        return cls(features / view.table, view.keys)

    @property
    def version(self) -> int:
        """The number of the newest commit; -1 before the first."""
        table = self._table()
        return table.version() if table else -1

    @property
    def commit(self) -> str | None:
        """The id of the newest commit; `None` before the first."""
        table = self._table()
        return table.history(1)[0].get(COMMIT) if table else None

    def append(self, rows: pl.DataFrame, source: Source, commit_id: str) -> int:
        """Stores rows (`event_time`, keys and values) in one commit; returns the history's version.

        What the newest commit holds is not stored again; what an older one held is: it is news once more.
        """
        if self.commit == commit_id:
            return self.version
        write_deltalake(
            self.folder,
            self._with_bookkeeping(rows, source),
            mode="append",
            partition_by=["bucket"],
            commit_properties=CommitProperties(custom_metadata={COMMIT: commit_id}),
        )
        return self.version

    def _with_bookkeeping(self, rows: pl.DataFrame, source: Source) -> pl.DataFrame:
        now = max(datetime.now(UTC), self._last_commit() + timedelta(microseconds=1))
        known = source.known_at
        if known is not None and known.after_event is not None:
            known_at = pl.col("event_time") + pl.duration(microseconds=known.after_event)
        else:
            known_at = pl.lit(now)
        return rows.with_columns(
            _buckets(rows, self.keys),
            known_at.cast(INSTANT).alias("known_at"),
            pl.lit(now).cast(INSTANT).alias("committed_at"),
            pl.int_range(pl.len(), dtype=pl.Int64).alias("sequence"),
            pl.lit(False).alias("deleted"),
        ).sort("bucket", *self.keys, "event_time", maintain_order=True)

    def _last_commit(self) -> datetime:
        rows = self._scan()
        newest = rows.select(pl.col("committed_at").max()).collect().item() if rows is not None else None
        return newest or datetime(1970, 1, 1, tzinfo=UTC)

    def in_force(self) -> pl.DataFrame:
        """The rows in force, without bookkeeping but `known_at`, sorted by key and event time.

        Of all rows of an identity (key and event time) the one known last counts.
        """
        rows = self._scan()
        if rows is None:
            raise TableNotFoundError(f"no history at {self.folder}")
        identity = [*self.keys, "event_time"]
        return (
            rows.sort(*identity, "known_at", "committed_at", "sequence")
            .unique(identity, keep="last", maintain_order=True)
            .filter(~pl.col("deleted"))
            .drop(name for name in BOOKKEEPING if name != "known_at")
            .collect()
        )

    def _table(self) -> DeltaTable | None:
        return DeltaTable(self.folder) if DeltaTable.is_deltatable(str(self.folder)) else None

    def _scan(self) -> pl.LazyFrame | None:
        table = self._table()
        return pl.scan_delta(table) if table else None


def read_view(history: History, view: ViewTable) -> pl.DataFrame:
    """The table that a view's features read: rows in force, resampled where the source says so.

    An interval that still waits for rows is left out: its aggregate is not known yet.
    Columns: keys, `event_time`, the view's columns; sorted by key and event time.
    """
    rows = history.in_force()
    if view.every_us is not None:
        complete = _complete_until(rows["event_time"])
        rows = resample(rows, view.keys, view.every_us, view.aggregations)
        rows = rows.filter(pl.col("event_time") <= complete)
    values = [pl.col(column.name).cast(DTYPES[column.type]) for column in view.columns]
    return rows.select(*view.keys, "event_time", *values)


def _complete_until(times: pl.Series) -> datetime | None:
    """Up to when raw rows have come in: the newest one's time and the usual step to the next."""
    known = times.unique().sort()
    step = known.diff().median() if len(known) > 1 else timedelta()
    return known.max() + step  # type: ignore[operator, return-value]


def _buckets(rows: pl.DataFrame, keys: Sequence[str]) -> pl.Series:
    """The bucket of each row. The hash must never change: rows of a key stay in one bucket for good."""
    if not keys:
        return pl.repeat(0, rows.height, dtype=pl.Int32, eager=True).alias("bucket")
    text = rows.select(
        pl.concat_str([pl.col(k).cast(pl.String).fill_null("") for k in keys], separator="\x1f")
    )
    names = text.to_series()
    buckets = {name: zlib.crc32(name.encode()) % BUCKETS for name in names.unique().to_list()}
    return names.replace_strict(buckets, return_dtype=pl.Int32).alias("bucket")
