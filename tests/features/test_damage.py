"""What lies in an online store may be damaged, of another version, or made up: then it is not believed."""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pytest
import redis

from mlops_ray.errors import StorageError
from mlops_ray.features.definitions import FeatureSet, Stored, ViewTable
from mlops_ray.features.history import AsOf, Bucket, Snapshot
from mlops_ray.features.materialize import materialize
from mlops_ray.features.online import DIGITS, HEAD, LENGTH, About, OnlineStore
from mlops_ray.features.shelves import SEAL, STAMP, opened, sealed
from mlops_ray.schema import INSTANT, Column, Schema

from .test_online import DAY_US, NOON

KEY = '["a"]'
VIEW = ViewTable(
    "s", "s-1", ("k",), (Column("x", "float"), Column("c", "string")), None, (), back_loaded=True
)
STORED = (
    Stored("sum", "s", ("k",), "x", "window", agg="sum", over_us=DAY_US),
    Stored("newest", "s", ("k",), "c", "latest"),
)
FEATURES = FeatureSet(
    Schema((Column("k", "category"), Column("t", "datetime"))),
    (Column("sum", "float"), Column("newest", "string")),
    STORED,
    (),
    (VIEW,),
    0,
    "t",
)
ASKED = pl.DataFrame({"k": ["a", "b"], "t": [NOON, NOON]}, schema_overrides={"t": INSTANT})
ANSWERS = [(3.0, "second"), (4.0, "other")]


@dataclass
class Place:
    """A store with two entities, and what lies in it as bytes."""

    address: str
    snapshot: Snapshot

    def __post_init__(self) -> None:
        self.store = OnlineStore(self.address)
        self.materialize()

    def materialize(self) -> None:
        materialize(self.store, FEATURES, {"s": self.snapshot})

    def answers(self) -> list[tuple[Any, ...]]:
        return self.store.read(FEATURES, ASKED)[0].rows()

    @property
    def is_redis(self) -> bool:
        return self.address.startswith("redis")

    def read(self, key: str | None) -> bytes:
        """A record, or without a key what the table says of itself."""
        about, records = self.store._shelf.get(VIEW.table, [key] if key else [])
        found = records[0] if key else about
        assert found is not None
        return found

    def put(self, key: str | None, value: bytes | str) -> None:
        """Puts anything there, past the store; text stands for something of another type."""
        if self.is_redis:
            with redis.Redis.from_url(self.address) as client:
                name = self.name(key)
                client.delete(name)
                client.set(name, value) if isinstance(value, bytes) else client.rpush(name, value)
            return
        statement = (
            "UPDATE records SET record = ?1 WHERE key = ?2" if key else "UPDATE shelves SET about = ?1"
        )
        with sqlite3.connect(self.address) as file:
            file.execute(statement, (value, key)[: statement.count("?")])

    def name(self, key: str | None) -> str:
        return f"mlops::{VIEW.table}:key:{key}" if key else f"mlops::{VIEW.table}"

    def refuses(self, remedy: str) -> None:
        """Nobody is answered, and what is said is where, of what, and what to do."""
        with pytest.raises(
            StorageError, match=r"what the online store .* holds of 's' is damaged, or"
        ) as raised:
            self.answers()
        assert str(raised.value).endswith(remedy)
        assert self.address in str(raised.value)

    def refuses_record(self) -> None:
        remedy = f"delete its keys mlops::{VIEW.table}*" if self.is_redis else "delete the file"
        self.refuses(f"{remedy} and materialise again")


@pytest.fixture
def kept(place: str, tmp_path: Path) -> Place:
    rows = pl.DataFrame(
        {"k": ["a", "a", "b"], "x": [1.0, 2.0, 4.0], "c": ["first", "second", "other"]}
    ).with_columns(
        pl.Series("event_time", [NOON.replace(hour=3), NOON, NOON], INSTANT),
        pl.lit(0, pl.Int64).alias("_sequence"),
        pl.lit(False).alias("_deleted"),
        **{name: pl.lit(NOON).cast(INSTANT) for name in ("_known_at", "_committed_at")},
    )
    rows.write_parquet(tmp_path / "rows.parquet")
    bucket = Bucket((str(tmp_path / "rows.parquet"),), rows.height, NOON.replace(hour=3), NOON)
    return Place(place, Snapshot(VIEW, AsOf(NOON, NOON), True, {0: bucket}))


def test_whatever_byte_of_a_record_is_changed_it_is_not_answered_from(kept: Place) -> None:
    record = kept.read(KEY)
    assert kept.answers() == ANSWERS
    for at in range(0, len(record), 1 + len(record) // 100):
        kept.put(KEY, record[:at] + bytes([record[at] ^ 1]) + record[at + 1 :])
        kept.refuses_record()
    kept.put(KEY, record)
    assert kept.answers() == ANSWERS


@pytest.mark.parametrize("value", [b"", b"123", b"\xff" * 60, "a list, or text"])
def test_what_is_no_record_is_not_taken_for_an_entity_that_nobody_knows(
    kept: Place, value: bytes | str
) -> None:
    kept.put(KEY, value)
    kept.refuses_record()
    record = sealed(int(NOON.timestamp()), b"")
    for cut in (record, record[:-1], kept.read('["b"]')[:-8]):
        kept.put(KEY, cut)
        kept.refuses_record()


def json_of(**changed: object) -> Callable[[dict[str, Any]], bytes]:
    return lambda about: sealed(about["stamp"], orjson.dumps(about | changed))


#: What a table may say of itself that nobody can read: damaged, of another type, or of another version.
UNREADABLE: dict[str, Callable[[dict[str, Any]], bytes | str]] = {
    "empty": lambda _: b"",
    "cut": lambda _: b"123",
    "garbage": lambda _: b"\xff" * 50,
    "another type": lambda _: "a list, or text",
    "a changed stamp": lambda about: b"9" * STAMP + sealed(about["stamp"], orjson.dumps(about))[STAMP:],
    "a stamp that is none": lambda about: b"x" * STAMP + sealed(about["stamp"], orjson.dumps(about))[STAMP:],
    "no object": lambda _: sealed(0, b"[1]"),
    "no JSON": lambda _: sealed(0, b"\x80\x04pickle"),
    "a key lacks": lambda _: sealed(0, b'{"watermark": 1}'),
    "a key that nobody knows": json_of(new=1),
    "a key of another type": json_of(columns=5),
    "a number as text": json_of(watermark="x"),
    "a time after the calendar": json_of(watermark=2**62),
    "as before checksums, in SQLite": lambda about: orjson.dumps(about),
    "as before checksums, in Redis": lambda about: b"%016d" % about["stamp"] + orjson.dumps(about),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_table_that_cannot_be_read_says_so_and_is_written_anew(kept: Place, what: str) -> None:
    about = orjson.loads(opened(kept.read(None)))
    kept.put(None, UNREADABLE[what](about))
    kept.refuses("materialise again")
    for call in (kept.store.about, lambda view: kept.store.bounds(FEATURES)):
        with pytest.raises(StorageError, match="materialise again"):
            call(VIEW)
    # Records of entities without news are damaged too: all are written, not these alone.
    kept.put(KEY, b"123")
    kept.materialize()
    assert kept.answers() == ANSWERS


def test_a_record_of_an_older_format_and_a_later_stamp_is_written_over(kept: Place) -> None:
    content = opened(kept.read(KEY))
    for key in (KEY, None):
        kept.put(key, b"9" * STAMP + content)
    kept.materialize()
    assert kept.answers() == ANSWERS


def test_in_redis_an_order_of_records_that_is_none_is_made_anew(kept: Place) -> None:
    if kept.is_redis:
        with redis.Redis.from_url(kept.address) as client:
            client.delete(kept.name(None))
            client.set(f"{kept.name(None)}:order", "text")
            kept.materialize()
            assert client.zcard(f"{kept.name(None)}:order") == 2


def crafted(record: bytes, change: Callable[[bytearray], None]) -> bytes:
    """A record that is changed by one who can seal it."""
    content = bytearray(opened(record))
    change(content)
    return sealed(int(record[:STAMP]), bytes(content))


@pytest.mark.parametrize("last", [10**6, 10**12, -5, 2**62, 2**63 - 1])
def test_a_record_that_points_outside_itself_is_refused(kept: Place, last: int) -> None:
    """Followed, these offsets of text end the process."""
    offsets = np.array([0, 5, 11], "<i8").tobytes()

    def change(content: bytearray) -> None:
        assert content.count(offsets) == 1
        at = content.index(offsets)
        content[at : at + 24] = np.array([0, 5, last], "<i8").tobytes()

    kept.put(KEY, crafted(kept.read(KEY), change))
    kept.refuses_record()


@pytest.mark.parametrize(
    "head",
    [
        pytest.param((0, b"x" * DIGITS), id="an instant that is none"),
        pytest.param((HEAD - LENGTH, b"00005[1,2]"), id="names that are no text"),
        pytest.param((HEAD - LENGTH, b"00001{"), id="names that are no JSON"),
        pytest.param((HEAD - LENGTH, b'00009["other"]'), id="a column that the view does not have"),
        pytest.param((HEAD - LENGTH, b"00010[[1], [2]]"), id="lists for names"),
        pytest.param((HEAD - LENGTH, b"000017"), id="a number for names"),
    ],
)
def test_a_head_that_was_made_up_is_refused(kept: Place, head: tuple[int, bytes]) -> None:
    at, value = head
    kept.put(
        KEY, crafted(kept.read(KEY), lambda content: content.__setitem__(slice(at, at + len(value)), value))
    )
    kept.refuses_record()


def test_rows_that_were_made_up_are_refused(kept: Place) -> None:
    """Of other types than the head says, or none at all."""
    content = opened(kept.read(KEY))
    head = content[: HEAD + int(content[HEAD - LENGTH : HEAD])]
    other = pa.record_batch({"x": pa.array([1], pa.int8())}).serialize().to_pybytes()
    for body in (other, b"\xff" * 40, other[: len(other) // 2], b"\x00" * 64):
        kept.put(KEY, sealed(int(kept.read('["b"]')[:STAMP]), head + body))
        kept.refuses_record()


def test_what_is_sealed_opens_and_nothing_else_does() -> None:
    for stamp in (-10, 0, 2**50):
        for content in (b"", b"\x00" * 9, bytes(range(256))):
            whole = sealed(stamp, content)
            assert opened(whole) == content
            for other in (whole[:-1], whole + b"\x00", whole[1:], whole[: SEAL - 1], b""):
                with pytest.raises(ValueError, match="damaged"):
                    opened(other)


def test_what_a_table_says_of_itself_is_read_as_it_was_written() -> None:
    about = About(5, -(10**15), -(2 * 10**15), ("x", "_until"), is_unbounded=True, is_live=False)
    assert About.from_bytes(about.to_bytes()) == about
