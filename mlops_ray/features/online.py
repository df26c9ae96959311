"""The online store: what requests read.

For each entity of a table it keeps the rows that a request may still look back to, in one record, and
computes features from them by the same kernel as offline: what an endpoint answers is what training saw.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
from pydantic import ConfigDict, Field, TypeAdapter

from mlops_ray.errors import StorageError
from mlops_ray.features.definitions import FeatureSet, Stored, ViewTable
from mlops_ray.features.lookup import Asked, Flags, Rows, Values, assemble, instants, tie_order
from mlops_ray.features.resample import EVENT_TIME, KNOWN_AT, NEVER, SEQUENCE, UNTIL
from mlops_ray.features.shelves import Record, Write, open_shelf, opened, sealed, shown
from mlops_ray.features.windows import Positions, runs
from mlops_ray.instants import EARLIEST, LATEST, from_micros, to_micros
from mlops_ray.schema import DTYPES, INSTANT, NO_FAILURES

#: Characters of an instant (of the year 1 too), and of the length of the columns' names, in a record's head.
DIGITS, LENGTH = 18, 5
HEAD = 2 * DIGITS + 1 + LENGTH
ISO = "%Y-%m-%dT%H:%M:%S%.fZ"
#: What reading a record raises that is not as `_records` made it.
UNREADABLE = (ValueError, KeyError, TypeError, EOFError, OSError, pa.ArrowException)
#: An instant of the calendar.
Micros = Annotated[int, Field(ge=to_micros(EARLIEST), le=to_micros(LATEST))]


@dataclass(frozen=True)
class About:
    """What the store holds of a table: everything known at `watermark`, of rows after `oldest`.

    Times are microseconds. `stamp` is the commit that it was taken from. `columns` are those kept; with
    `UNTIL`, superseded rows are too. `is_unbounded` where each entity's newest row is kept however old it is;
    `is_live` where rows become known by being stored, so that what nobody has stored by now is not known now.
    """

    stamp: int
    watermark: Micros
    oldest: Micros
    columns: tuple[str, ...]
    is_unbounded: bool
    is_live: bool

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    def to_bytes(self) -> bytes:
        return sealed(self.stamp, orjson.dumps(vars(self)))

    @classmethod
    def from_bytes(cls, kept: bytes) -> "About":
        """Raises `ValueError` where it is not what `to_bytes` makes."""
        return _ABOUT.validate_json(opened(kept))

    @property
    def until(self) -> datetime:
        return from_micros(self.watermark)

    @property
    def keep_us(self) -> int:
        return self.watermark - self.oldest


_ABOUT = TypeAdapter(About)


class Read(NamedTuple):
    """A row of features a row, failed checks (`schema.FAILURES`), and up to when all was known (µs)."""

    features: pl.DataFrame
    failures: pl.DataFrame
    watermark_us: int | None


class UnreadableError(StorageError):
    """What the store holds is damaged, or of another format."""


class OnlineStore:
    """The online store at a path or an address (`shelves.open_shelf`); a process opens its own."""

    def __init__(self, location: str | Path) -> None:
        self._shelf = open_shelf(location)
        self._location = shown(location)

    def close(self) -> None:
        self._shelf.close()

    def about(self, view: ViewTable) -> About | None:
        """What the store holds of a table; `None` before the first write.

        Raises `StorageError` where that cannot be read: it is damaged, or of another format.
        """
        return self._parsed(view, self._shelf.about(view.table))

    def renewable(self, view: ViewTable) -> About | None:
        """`about`, for who writes: `None` too where it cannot be read; then it is forgotten."""
        kept = self._shelf.about(view.table)
        try:
            return self._parsed(view, kept)
        except UnreadableError:
            self._shelf.forget(view.table, kept or b"")
            return None

    def write(
        self, view: ViewTable, rows: pl.DataFrame, entities: pl.DataFrame, about: About, seen: About | None
    ) -> bool:
        """Takes in all rows (of `history.read`) of these entities, by their keys; others stay as they are.

        An entity whose record was made from a later commit keeps it. Returns whether the table is now what
        `about` says, or of a later commit; not so where another writer changed it since it was `seen`.
        """
        expired = None if about.is_unbounded else about.oldest
        records = _records(view, rows, entities, about)
        before = seen.to_bytes() if seen else None
        return self._shelf.put(view.table, Write(about.to_bytes(), about.stamp, records, expired, before))

    def held(self, table: str, keys: Sequence[str], key: pl.DataFrame) -> list[str]:
        """The records of a table that are of a key: one row, of some of the table's `keys`.

        Of a table of which nobody knows the keys any more (none are given), those with these values anywhere.
        """
        asked = {name: orjson.loads(str(_keys(key, [name])[0]))[0] for name in key.columns}
        return [text for text in self._shelf.keys(table) if _is_of(orjson.loads(text), keys, asked)]

    def erase(self, table: str, records: Sequence[str]) -> None:
        """Removes records for good. No other depends on them: each is made of its own entity's rows."""
        self._shelf.erase(table, records)

    def watermarks(self, features: FeatureSet) -> dict[str, datetime]:
        """Up to when everything known of each source is in the store; without those that nobody wrote yet."""
        found = {view.source: self.about(view) for view in features.tables}
        return {source: about.until for source, about in found.items() if about}

    def bounds(self, features: FeatureSet) -> tuple[datetime, datetime] | None:
        """The first and last target time that can be answered now; `None` where no history is read."""
        if not features.tables:
            return None
        found = {v.source: self._require(v, self.about(v)) for v in features.tables}
        last = min(_latest(about, about.watermark) for about in found.values()) + features.horizon_us
        first = max(about.oldest + features.table_reach_us(source) for source, about in found.items())
        first += features.horizon_us + 1
        every = features.every_us or 1
        first, last = first + -first % every, last - last % every
        return from_micros(first), from_micros(last)

    def read(self, features: FeatureSet, rows: pl.DataFrame) -> "Read":
        """The features of typed request rows, in their order, and the rows that cannot be answered.

        Raises `StorageError` where the store holds nothing for these features yet, or does not answer.
        """
        target = instants(rows[features.time])
        found: dict[str, Values] = {}
        failures: list[pl.DataFrame] = []
        watermarks: list[int] = []
        if features.every_us and (off_grid := target % features.every_us != 0).any():
            failures.append(_refused(rows, off_grid, "off_grid", (features.time,)))
        for view, on, wanted in features.reads:
            held = self._read(view, _keys(rows, on), wanted, features.strict)
            asked = Asked(held.rows, held.first, held.end, target, features.horizon_us)
            found |= {feature.name: asked.read(feature) for feature in wanted}
            failures += held.failures(features, view, on, asked.moment, rows)
            watermarks.append(held.about.watermark)
        answers, watermark_us = assemble(rows, found, features), min(watermarks, default=None)
        if not failures:
            return Read(answers, NO_FAILURES, watermark_us)
        # Of a row's time the first failure alone is told.
        first = pl.concat(failures).unique(["row", "column"], keep="first", maintain_order=True)
        return Read(answers, first.sort("row"), watermark_us)

    def _read(
        self, view: ViewTable, keys: list[str | None], wanted: Sequence[Stored], strict: bool
    ) -> "_Held":
        distinct = list(dict.fromkeys(key for key in keys if key is not None))
        about, kept = self._shelf.get(view.table, distinct)
        table = self._require(view, self._parsed(view, about))
        try:
            # A key with a null in it is nobody's.
            records: dict[str | None, _Decoded | None] = {None: None} if None in keys else {}
            for key, record in zip(distinct, kept, strict=True):
                records[key] = None if record is None else _decoded(view, opened(record))
        except UNREADABLE:
            remedy = f"{self._shelf.remedy(view.table)} and materialise again"
            raise self._unreadable(view, remedy) from None
        try:
            return _Held.of(view, table, wanted, records, keys, strict)
        except KeyError as lacking:
            raise StorageError(
                f"the online store {self._location} does not hold {lacking.args[0]} of {view.source!r} yet; "
                "materialise first"
            ) from None

    def _parsed(self, view: ViewTable, about: bytes | None) -> About | None:
        try:
            return None if about is None else About.from_bytes(about)
        except ValueError:
            raise self._unreadable(view, "materialise again") from None

    def _require(self, view: ViewTable, about: About | None) -> About:
        if about is None:
            raise StorageError(
                f"the online store {self._location} holds nothing of {view.source!r}; materialise first"
            )
        return about

    def _unreadable(self, view: ViewTable, remedy: str) -> "UnreadableError":
        return UnreadableError(
            f"what the online store {self._location} holds of {view.source!r} is damaged, or was written by "
            f"another version of mlops_ray; {remedy}"
        )


# ---------------------------------------------------------------- records


def _records(view: ViewTable, rows: pl.DataFrame, entities: pl.DataFrame, about: About) -> list[Record]:
    """One record an entity: its head, and the rows that the store keeps, if any, as an Arrow record batch."""
    kept = rows.filter(_is_kept(view, rows, about))
    names = _columns(view, about.columns)
    written = orjson.dumps(names)
    edges = f"{about.watermark:0{DIGITS}d}{about.oldest:0{DIGITS}d}{about.is_unbounded:d}"
    head = f"{edges}{len(written):0{LENGTH}d}".encode() + written
    batches = kept.select(names).rechunk().to_arrow().to_batches()
    records = []
    found = runs(kept, view.keys)
    keys = _keys(found, view.keys)
    times = instants(kept[EVENT_TIME])
    for key, first, end in zip(keys, found["_first"].to_list(), found["_end"].to_list(), strict=True):
        if key is not None:
            body = head + batches[0].slice(first, end - first).serialize().to_pybytes()
            records.append((key, int(times[end - 1]), sealed(about.stamp, body)))
    every = set(_keys(entities, view.keys)) if view.keys else {"[]"}
    gone = sealed(about.stamp, head)
    return records + [(key, about.oldest, gone) for key in every - {None, *keys} if key is not None]


@lru_cache(maxsize=1024)
def _schema(view: ViewTable, written: bytes) -> pa.Schema:
    """The Arrow schema of records with these columns."""
    types = {column.name: DTYPES[column.type] for column in view.columns}
    types |= {EVENT_TIME: INSTANT, KNOWN_AT: INSTANT, UNTIL: INSTANT, SEQUENCE: pl.Int64}
    return pl.DataFrame(schema={name: types[name] for name in orjson.loads(written)}).to_arrow().schema


class _Decoded(NamedTuple):
    """A record's watermark, its oldest edge, whether it has the newest row before that, and any rows."""

    watermark: int
    oldest: int
    is_unbounded: bool
    batch: pa.RecordBatch | None


def _decoded(view: ViewTable, record: bytes) -> _Decoded:
    """What a record holds. Raises `UNREADABLE` where `_records` did not make it."""
    # Whoever can write the store can seal anything, so that what Arrow would follow blindly is checked too.
    end = HEAD + int(record[HEAD - LENGTH : HEAD])
    batch = None
    if len(record) > end:
        batch = pa.ipc.read_record_batch(pa.py_buffer(record[end:]), _schema(view, record[HEAD:end]))
        batch.validate(full=True)
    is_unbounded = record[2 * DIGITS : 2 * DIGITS + 1] == b"1"
    return _Decoded(int(record[:DIGITS]), int(record[DIGITS : 2 * DIGITS]), is_unbounded, batch)


def _is_kept(view: ViewTable, rows: pl.DataFrame, about: About) -> pl.Expr:
    """Rows that a request may look back to, and each entity's newest before them where that may be one."""
    # Before a row that is in force for as long as anybody asks, nobody looks for a newer one.
    micros = pl.col(EVENT_TIME).dt.timestamp("us")
    recent = micros > about.oldest
    if not about.is_unbounded:
        return recent
    lasting = ~recent
    if UNTIL in rows.columns:
        lasting &= pl.col(UNTIL).is_null() & (pl.col(KNOWN_AT).dt.timestamp("us") <= about.oldest)
    newest_old = pl.col(EVENT_TIME).filter(lasting).max()
    since = newest_old.over(view.keys) if view.keys else newest_old
    return (pl.col(EVENT_TIME) >= since).fill_null(True)


def _columns(view: ViewTable, columns: Sequence[str]) -> list[str]:
    """The columns of a record that holds these, and those that tell its rows and their versions apart."""
    # Of an entity that is told apart from others by its row id there is one row.
    can_tie = view.row_id not in (None, *view.keys) and view.every_us is None
    ties = (KNOWN_AT, SEQUENCE, view.row_id) if can_tie else ()
    versions = (KNOWN_AT, UNTIL) if UNTIL in columns else ()
    return list(dict.fromkeys(str(name) for name in (EVENT_TIME, *ties, *versions, *columns)))


@dataclass(frozen=True)
class _Held:
    """The rows of the entities that a batch of requests asks for, and where each request finds its own."""

    rows: Rows
    first: Positions
    end: Positions
    watermark: Positions
    oldest: Positions
    is_unknown: Flags
    about: About

    @classmethod
    def of(
        cls,
        view: ViewTable,
        about: About,
        wanted: Sequence[Stored],
        records: dict[str | None, _Decoded | None],
        keys: list[str | None],
        strict: bool,
    ) -> "_Held":
        """Raises `KeyError` with what a record lacks, or what the table says of itself that it lacks."""
        columns = _columns(view, [feature.of for feature in wanted] + [UNTIL] * strict)
        lacking = set(columns) - set(_columns(view, about.columns))
        if lacking:
            raise KeyError(", ".join(sorted(lacking - {KNOWN_AT, UNTIL})) or "what was known when")
        needs_all = any(feature.is_unbounded for feature in wanted)
        places: dict[str | None, tuple[int, int, int, int]] = {}
        nothing = _Decoded(about.watermark, about.oldest, about.is_unbounded, None)
        batches, at = [], 0
        for key, record in records.items():
            watermark, oldest, is_unbounded, batch = record or nothing
            if needs_all and not is_unbounded:
                raise KeyError("latest values of any age")
            if batch and not strict and UNTIL in batch.schema.names:
                batch = batch.filter(batch.column(UNTIL).is_null())
            length = batch.num_rows if batch else 0
            # A record that is newer than what the table says of itself knows more.
            places[key] = (at, at + length, max(watermark, about.watermark), oldest)
            batches += [batch] if batch else []
            at += length
        held = {name: _column(name, batches, view) for name in columns}
        lengths = [end - first for first, end, *_ in places.values()]
        first, end, watermarks, olds = np.array([places[key] for key in keys], np.int64).reshape(-1, 4).T
        unknown = np.array([records[key] is None for key in keys], np.bool_)
        return cls(_rows(held, view, lengths, strict), first, end, watermarks, olds, unknown, about)

    def failures(
        self,
        features: FeatureSet,
        view: ViewTable,
        on: tuple[str, ...],
        moment: Positions,
        rows: pl.DataFrame,
    ) -> Iterator[pl.DataFrame]:
        """Requests that the store cannot answer, and those of whom it knows nothing, as `schema.FAILURES`."""
        latest = _latest(self.about, self.watermark)
        late = moment > latest
        old = (moment - features.table_reach_us(view.source) <= self.oldest) & ~late
        if late.any():
            until = pl.Series(latest[late], dtype=pl.Int64).cast(INSTANT).dt.strftime(ISO)
            known = f"; {view.source!r} is known up to " + until
            yield _refused(rows, late, "watermark", (features.time,), known)
        if old.any():
            yield _refused(rows, old, "too_old", (features.time,))
        if on and self.is_unknown.any():
            # Answered, as offline, but not silently.
            yield _refused(rows, self.is_unknown, "no_history", on, severity="flag")


def _refused(
    rows: pl.DataFrame,
    is_refused: Flags,
    rule: str,
    columns: tuple[str, ...],
    note: pl.Series | str = "",
    severity: str = "reject",
) -> pl.DataFrame:
    """Rows that fail a check of these columns, as `schema.FAILURES`; their notes stand behind the value."""
    places = np.flatnonzero(is_refused)
    texts = [
        pl.col(name).dt.strftime(ISO) if rows.schema[name] == INSTANT else pl.col(name).cast(pl.String)
        for name in columns
    ]
    return rows[places].select(
        pl.Series("row", places, pl.UInt32),
        pl.lit(columns[0]).alias("column"),
        pl.lit(rule).alias("rule"),
        (pl.concat_str(texts, separator=", ") + pl.lit(note)).alias("value"),
        pl.lit(severity).alias("severity"),
    )


def _column(name: str, batches: list[pa.RecordBatch], view: ViewTable) -> pa.Array:
    """A column of several records, one after the other. Raises `KeyError` with its name if one lacks it."""
    if not batches:
        return pa.array([], _schema(view, orjson.dumps([name])).field(0).type)
    try:
        columns = [batch.column(name) for batch in batches]
    except KeyError:
        raise KeyError(name) from None
    return columns[0] if len(columns) == 1 else pa.concat_arrays(columns)


def _rows(columns: dict[str, pa.Array], view: ViewTable, lengths: list[int], strict: bool) -> Rows:
    """The rows of entities, of whom each has so many."""
    times = _micros(columns[EVENT_TIME])
    newest = None
    if SEQUENCE in columns and (times[1:] == times[:-1]).any():
        table = pl.DataFrame(pa.table(columns)).with_columns(
            pl.Series("_entity", np.repeat(np.arange(len(lengths)), lengths))
        )
        newest = tie_order(table, ["_entity"], str(view.row_id))
    if not strict:
        return Rows(times, columns, newest=newest)
    until = columns[UNTIL].cast(pa.int64()).fill_null(NEVER)
    return Rows.of_versions(times, columns, _micros(columns[KNOWN_AT]), _micros(until), lengths, newest)


def _micros(instants: pa.Array) -> Positions:
    micros: Positions = instants.to_numpy(zero_copy_only=False).view(np.int64)
    return micros


def _latest(about: About, watermark: Any) -> Any:
    """The last moment of prediction that can be answered."""
    # What becomes known by being stored, and is not stored, is not known now; but now has no later.
    if not about.is_live:
        return watermark
    return np.maximum(watermark, to_micros(datetime.now(UTC)))


def _keys(rows: pl.DataFrame, names: Sequence[str]) -> list[str | None]:
    """The key of each row as text, `None` where a part of it is missing; JSON keeps 1 and "1" apart."""
    if not names:
        return ["[]"] * rows.height
    keys = zip(*(_comparable(rows[name]).to_list() for name in names), strict=True)
    return [None if None in key else orjson.dumps(key).decode() for key in keys]


def _is_of(entity: Sequence[Any], keys: Sequence[str], asked: Mapping[str, Any]) -> bool:
    if not keys:
        return all(value in entity for value in asked.values())
    own = dict(zip(keys, entity, strict=True))
    return all(own[name] == value for name, value in asked.items())


def _comparable(values: pl.Series) -> pl.Series:
    """Values of which equal ones look the same, of whatever year."""
    if values.dtype == INSTANT:
        return values.to_physical()
    # The two zeros of floating point are equal.
    return values.set(values == 0, 0.0) if values.dtype.is_float() else values
