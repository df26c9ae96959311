"""A materialisation that is killed leaves each entity old or new, and the next one completes it."""

import pickle
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from mlops_ray.features.commits import buckets_of
from mlops_ray.features.definitions import FeatureSet, Stored, ViewTable
from mlops_ray.features.history import AsOf, Bucket, Snapshot
from mlops_ray.features.materialize import materialize
from mlops_ray.features.online import OnlineStore
from mlops_ray.schema import INSTANT, Column, Schema

from .worlds import offline
from .writers import Writers

NOON, HOUR, MICROSECOND = datetime(2020, 6, 1, 12, tzinfo=UTC), timedelta(hours=1), timedelta(microseconds=1)
#: So many that writing them takes as long as all the rest.
ENTITIES = 600
#: At how many moments a writer is killed, and how many of it die with a record in hand.
MOMENTS, DEATHS = 50, 8
VIEW = ViewTable("s", "s-1", ("k",), (Column("x", "float"),), None, ())
FEATURES = FeatureSet(
    request=Schema((Column("k", "int"), Column("t", "datetime"))),
    columns=(
        Column("sum", "float"),
        Column("count", "float"),
        Column("first", "float"),
        Column("last", "float"),
    ),
    stored=tuple(
        Stored(agg, "s", ("k",), "x", "window", agg=agg, over_us=24 * 3_600_000_000)
        for agg in ("sum", "count", "first", "last")
    ),
    computed=(),
    tables=(VIEW,),
    horizon_us=0,
    time="t",
)
ASKED = pl.DataFrame({"k": range(ENTITIES)}).with_columns(pl.lit(NOON + 9 * HOUR).cast(INSTANT).alias("t"))


def commit(folder: Path, number: int) -> Snapshot:
    """A history in which every entity has other rows than before, and some have none any more."""
    hours = pl.DataFrame({"hour": [0, 1, 2]})
    rows = (
        pl.DataFrame({"k": range(ENTITIES)})
        .join(hours, how="cross")
        .select(
            "k",
            (pl.lit(NOON) + pl.duration(hours="hour")).cast(INSTANT).alias("event_time"),
            (pl.col("hour") + 10.0 * number).alias("x"),
            pl.lit(NOON + number * MICROSECOND).cast(INSTANT).alias("_known_at"),
            pl.lit(NOON + number * MICROSECOND).cast(INSTANT).alias("_committed_at"),
            pl.lit(0, pl.Int64).alias("_sequence"),
            ((pl.col("k") + number) % 7 == 0).alias("_deleted"),
        )
    )
    moment = NOON + number * MICROSECOND
    buckets = {}
    for (bucket,), part in rows.group_by(buckets_of(rows, VIEW.keys), maintain_order=True):
        path = folder / f"{number}-{bucket}.parquet"
        part.write_parquet(path)
        buckets[int(bucket)] = Bucket((str(path),), part.height, NOON, NOON + 2 * HOUR)
    return Snapshot(VIEW, AsOf(moment, moment), True, buckets)


@dataclass
class Store:
    """An online store that some process brings from one commit to the next."""

    place: str
    folder: Path
    number: int = 0

    def __post_init__(self) -> None:
        self.online = OnlineStore(self.place)
        self.snapshot = commit(self.folder, 0)
        self.states = [offline(ASKED, {"s": self.snapshot}, FEATURES).rows()]
        materialize(self.online, FEATURES, {"s": self.snapshot})

    def advance(self) -> Path:
        """The next commit; returns the file that tells a writer of it."""
        self.number += 1
        self.snapshot = commit(self.folder, self.number)
        self.states = [self.states[-1], offline(ASKED, {"s": self.snapshot}, FEATURES).rows()]
        what = self.folder / f"{self.number}.pickle"
        what.write_bytes(pickle.dumps((FEATURES, {"s": self.snapshot})))
        return what

    def check(self) -> int:
        """Every entity is old or new; returns how many are new. The next materialisation makes all so."""
        found, failures, _ = self.online.read(FEATURES, ASKED)
        assert set(failures["severity"]) <= {"flag"}
        news = 0
        for row, old, new in zip(found.rows(), *self.states, strict=True):
            assert row in (old, new)
            news += row == new
        materialize(self.online, FEATURES, {"s": self.snapshot})
        assert self.online.read(FEATURES, ASKED)[0].rows() == self.states[-1]
        return news


@pytest.fixture(scope="module")
def processes() -> Iterator[Writers]:
    with Writers.started("tests.features.materializers") as writers:
        yield writers


def test_killed_at_any_moment_each_entity_is_old_or_new_and_the_next_run_completes_it(
    place: str, tmp_path: Path, processes: Writers
) -> None:
    store, chance = Store(place, tmp_path), random.Random(3)
    job = {"do": "materialize", "place": place}
    for _ in range(2):
        # The first time the process still imports.
        begin = time.monotonic()
        assert processes.wait(processes.start(**job, what=str(store.advance()))) == 0
        whole_s = time.monotonic() - begin
        assert store.check() == ENTITIES
    ends = []
    for _ in range(MOMENTS):
        moment = chance.uniform(0, whole_s)
        pid = processes.start(**job, what=str(store.advance()), killed_after_s=moment)
        assert processes.wait(pid) in (0, -signal.SIGKILL)
        ends.append(store.check())
    print(f"{place}: {whole_s:.3f} s whole; new after each: {ends}")


def test_killed_with_a_record_in_hand_each_entity_is_old_or_new(
    place: str, tmp_path: Path, processes: Writers
) -> None:
    store, chance = Store(place, tmp_path), random.Random(4)
    for dies_after in [0, 1, ENTITIES - 1, *chance.sample(range(ENTITIES), DEATHS)]:
        what = str(store.advance())
        pid = processes.start("materialize", place=place, what=what, dies_after=dies_after)
        assert processes.wait(pid) == -signal.SIGKILL
        news = store.check()
        assert news == 0 if place.endswith(".db") else news <= dies_after
