"""The online store: what requests read. SQLite by default, one file under `storage`.

It keeps, for each table that features read, the rows that a request may still look back to, and computes
features from them by the same join as offline: what an endpoint answers is what training saw.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from mlops_ray.errors import StorageError
from mlops_ray.features.definitions import NUMERIC, FeatureSet, ViewTable
from mlops_ray.features.join import EVENT_TIME, point_in_time
from mlops_ray.schema import DTYPES, FAILURES, INSTANT, Column

#: A reader that meets a writer waits; one transaction of the writer takes far less.
BUSY_S = 5.0

_CREATE = """
CREATE TABLE IF NOT EXISTS tables (
    name TEXT PRIMARY KEY, watermark INTEGER NOT NULL, oldest INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rows (
    name TEXT, key TEXT, event_time INTEGER, vals TEXT NOT NULL, PRIMARY KEY (name, key, event_time)
) WITHOUT ROWID;
"""


class OnlineStore:
    """The online store at a path; a process opens its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = sqlite3.connect(
            path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
        )
        with closing(self._connection.cursor()) as cursor:
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.executescript(_CREATE)

    def close(self) -> None:
        self._connection.close()

    def write(self, view: ViewTable, rows: pl.DataFrame, watermark: datetime, keep_us: int) -> None:
        """Takes in a table's rows (of `history.read_view`) up to the watermark, in one transaction.

        Rows older than `keep_us` before the watermark are dropped; a read that would need them is refused.
        """
        newest, span = _micros(watermark), self._span(view)
        # What another version still reads stays: a store never keeps less than it did.
        oldest = newest - max(keep_us, span[0] - span[1] if span else 0)
        times = rows[EVENT_TIME].dt.timestamp("us")
        kept = rows.filter((times > oldest) & (times <= newest))
        keys = _keys(kept, view)
        values = kept.select(column.name for column in _numeric(view)).rows()
        stamps = kept[EVENT_TIME].dt.timestamp("us").to_list()
        records = ((view.table, k, t, _text(v)) for k, t, v in zip(keys, stamps, values, strict=True))
        with self._transaction() as cursor:
            cursor.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?)", records)
            cursor.execute("DELETE FROM rows WHERE name = ? AND event_time <= ?", (view.table, oldest))
            cursor.execute("INSERT OR REPLACE INTO tables VALUES (?, ?, ?)", (view.table, newest, oldest))

    def watermark(self, features: FeatureSet) -> datetime | None:
        """Up to when everything known is in the store; `None` before the first write."""
        spans = [self._span(view) for view in features.tables]
        if not spans or None in spans:
            return None
        return _instant(min(span[0] for span in spans if span))

    def features(self, features: FeatureSet, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The features of typed request rows, and the rows that cannot be answered (`schema.FAILURES`).

        The first result has one row a request row, in order. Raises `StorageError` where the store holds
        nothing for these features yet.
        """
        with self._transaction("BEGIN"):
            outside = self._outside(features, rows)
            tables = {view.source: self._read(view, rows, features) for view in features.tables}
        unknown = [_without_history(rows, tables[view.source], view) for view in features.tables]
        return point_in_time(rows, tables, features), pl.concat([outside, *unknown])

    def _outside(self, features: FeatureSet, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows whose moment of prediction the store cannot see."""
        if not features.tables:
            return pl.DataFrame(schema=FAILURES)
        spans = [self._require_span(view) for view in features.tables]
        watermark, oldest = min(span[0] for span in spans), max(span[1] for span in spans)
        target = rows[features.time].dt.timestamp("us")
        moment = target - features.horizon_us
        late = rows.with_row_index("row").select(
            pl.col("row").cast(pl.UInt32),
            pl.lit(features.time).alias("column"),
            pl.when(target % (features.every_us or 1) != 0)
            .then(pl.lit("off_grid"))
            .when(moment > watermark)
            .then(pl.lit("watermark"))
            .when(moment - features.lookback_us <= oldest)
            .then(pl.lit("too_old"))
            .alias("rule"),
            pl.col(features.time).dt.strftime("%Y-%m-%dT%H:%M:%S%.fZ").alias("value"),
            pl.lit("reject").alias("severity"),
        )
        return late.filter(pl.col("rule").is_not_null())

    def bounds(self, features: FeatureSet) -> tuple[datetime, datetime] | None:
        """The first and last target time that can be answered now; `None` where no history is read."""
        if not features.tables:
            return None
        spans = [self._require_span(view) for view in features.tables]
        last = min(span[0] for span in spans) + features.horizon_us
        first = max(span[1] for span in spans) + features.lookback_us + features.horizon_us + 1
        return _instant(first), _instant(last)

    def _read(self, view: ViewTable, rows: pl.DataFrame, features: FeatureSet) -> pl.DataFrame:
        """The rows of a table that features of these requests can see, sorted by key and event time."""
        self._require_span(view)
        keys = list(dict.fromkeys(_keys(rows, view)))
        moments = rows[features.time].dt.timestamp("us").drop_nulls()
        first = int(moments.min() or 0) - features.horizon_us - features.lookback_us - 1  # type: ignore[arg-type]
        last = int(moments.max() or 0) - features.horizon_us  # type: ignore[arg-type]
        found = self._select(view, keys, first, last)
        schema = {column.name: DTYPES[column.type] for column in _numeric(view)}
        values = pl.DataFrame([orjson.loads(v) for _, _, v in found], schema=schema, orient="row")
        key_types = {key: rows.schema[key] for key in view.keys}
        key_values = pl.DataFrame([orjson.loads(k) for k, _, _ in found], schema=key_types, orient="row")
        times = pl.Series(EVENT_TIME, [t for _, t, _ in found], dtype=pl.Int64).cast(INSTANT)
        table = pl.DataFrame([times]).hstack(values)
        return (table.hstack(key_values) if view.keys else table).sort(*view.keys, EVENT_TIME)

    def _select(
        self, view: ViewTable, keys: Iterable[str], first: int, last: int
    ) -> list[tuple[str, int, str]]:
        query = (
            "SELECT key, event_time, vals FROM rows WHERE name = ? AND key = ? AND event_time BETWEEN ? AND ?"
        )
        return [
            record
            for key in keys
            for record in self._connection.execute(query, (view.table, key, first, last)).fetchall()
        ]

    def _span(self, view: ViewTable) -> tuple[int, int] | None:
        query = "SELECT watermark, oldest FROM tables WHERE name = ?"
        return self._connection.execute(query, (view.table,)).fetchone()  # type: ignore[no-any-return]

    def _require_span(self, view: ViewTable) -> tuple[int, int]:
        span = self._span(view)
        if span is None:
            raise StorageError(
                f"the online store {self._path} holds nothing of {view.source!r}; materialise first"
            )
        return span

    @contextmanager
    def _transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[sqlite3.Cursor]:
        with closing(self._connection.cursor()) as cursor:
            cursor.execute(begin)
            try:
                yield cursor
            except BaseException:
                cursor.execute("ROLLBACK")
                raise
            cursor.execute("COMMIT")


def _without_history(rows: pl.DataFrame, table: pl.DataFrame, view: ViewTable) -> pl.DataFrame:
    """Requests of keys of which the store holds nothing in reach: answered, as offline, but not silently."""
    if not view.keys:
        return pl.DataFrame(schema=FAILURES)
    numbered = rows.select(view.keys).with_row_index("row")
    unknown = numbered.join(table.select(view.keys).unique(), on=list(view.keys), how="anti")
    return unknown.select(
        pl.col("row").cast(pl.UInt32),
        pl.lit(view.keys[0]).alias("column"),
        pl.lit("no_history").alias("rule"),
        pl.concat_str([pl.col(key).cast(pl.String) for key in view.keys], separator=", ").alias("value"),
        pl.lit("flag").alias("severity"),
    )


def _numeric(view: ViewTable) -> list[Column]:
    """The columns that features can read."""
    return [column for column in view.columns if column.type in NUMERIC]


def _keys(rows: pl.DataFrame, view: ViewTable) -> list[str]:
    """The key of each row as text; JSON keeps 1 and "1" apart."""
    return [_text(key) for key in rows.select(view.keys).rows()] if view.keys else ["[]"] * rows.height


def _text(values: tuple[Any, ...]) -> str:
    return orjson.dumps(values).decode()


def _micros(instant: datetime) -> int:
    return int(pl.Series([instant], dtype=INSTANT).dt.timestamp("us")[0])


def _instant(micros: int) -> datetime:
    return pl.Series([micros], dtype=pl.Int64).cast(INSTANT)[0].astimezone(UTC)  # type: ignore[no-any-return]
