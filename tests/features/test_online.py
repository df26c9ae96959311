"""What is answered online is what the join gives, on SQLite and on a real Redis, whoever writes when."""

import random
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import combinations
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings

from mlops_ray import config
from mlops_ray.config import Source
from mlops_ray.errors import DataError, StorageError
from mlops_ray.features import shelves
from mlops_ray.features.definitions import FeatureSet, Stored, ViewTable
from mlops_ray.features.history import History, Snapshot
from mlops_ray.features.materialize import OvertakenError, materialize
from mlops_ray.features.online import OnlineStore
from mlops_ray.features.shelves import Record, RedisShelf, Shelf, Write
from mlops_ray.features.store import FeatureStore
from mlops_ray.instants import to_micros
from mlops_ray.schema import INSTANT, Column, Schema
from mlops_ray.storage import Storage

from .conftest import NewPlace, RedisServer
from .worlds import STRANGER, World, offline, worlds

MICROSECOND, HOUR, DAY = timedelta(microseconds=1), timedelta(hours=1), timedelta(days=1)
HOUR_US, DAY_US = 3_600_000_000, 86_400_000_000
#: A microsecond in hours.
US = 1 / HOUR_US
NOON = datetime(2020, 6, 1, 12, tzinfo=UTC)


def refused(failures: pl.DataFrame) -> dict[int, str]:
    """Why rows were refused, by their number."""
    return dict(failures.filter(pl.col("severity") == "reject").select("row", "rule").iter_rows())


def flagged(failures: pl.DataFrame) -> list[tuple[int, str]]:
    """Rows of whom nothing is known, and the column with their key."""
    return failures.filter(pl.col("rule") == "no_history").select("row", "column").rows()


# ---------------------------------------------------------------- at random


@settings(
    max_examples=100,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(world=worlds())
def test_after_every_commit_online_at_p_equals_offline_at_p(new_place: NewPlace, world: World) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = OnlineStore(new_place(Path(folder)))
        for commit in world.commits:
            snapshots = world.snapshots(Path(folder), commit)
            if world.is_known(commit):
                materialize(store, world.features, snapshots)
                check(store, world, snapshots)
            else:
                with pytest.raises(DataError, match="become known later"):
                    materialize(store, world.features, snapshots)
        store.close()


def check(store: OnlineStore, world: World, snapshots: dict[str, Snapshot]) -> None:
    features = world.features
    first, last = (to_micros(bound) for bound in store.bounds(features) or ())
    edges = {first - DAY_US, first - 1, first, last, last + 1}
    asked = world.asked(sorted(edges.union(world.times())))
    found, failures, _ = store.read(features, asked)
    no = refused(failures)
    answered = [row for row in range(asked.height) if row not in no]
    assert found[answered].equals(offline(asked, snapshots, features)[answered])
    # What is live goes on: there is no telling when exactly it was asked.
    goes_on = all(not view.back_loaded for view in features.tables)
    for row, time in enumerate(asked["t"].to_physical()):
        assert first <= time <= last or no.get(row) != "watermark" or time > last
        assert not (first <= time <= last and row in no), "within its bounds every time is answered"
        assert goes_on or time <= last or no[row] == "watermark"
        assert time > first - DAY_US or no[row] == "too_old"
    _check_unknown(features, asked, found, flagged(failures))
    _check_alone(store, features, asked, found, failures)


def _check_unknown(
    features: FeatureSet, asked: pl.DataFrame, found: pl.DataFrame, said: list[tuple[int, str]]
) -> None:
    """Of whom nothing is known is told, and answered all the same: with what nothing adds up to."""
    counts = {stored.name for stored in features.stored if stored.agg == "count"}
    for view in features.tables:
        names = [stored.name for stored in features.of_table(view.source)]
        of_strangers = [asked[key] == STRANGER[key] for key in view.keys]
        rows = [row for flags in of_strangers for row in flags.fill_null(False).arg_true()]
        assert {(row, view.keys[0]) for row in rows} <= set(said)
        nothing = {tuple(0 if name in counts else None for name in names)}
        assert set(found[rows].select(names).rows()) <= nothing


def _check_alone(
    store: OnlineStore, features: FeatureSet, asked: pl.DataFrame, found: pl.DataFrame, failures: pl.DataFrame
) -> None:
    """Rows at once are as rows alone, in whatever order."""
    assert store.read(features, asked.reverse())[0].equals(found.reverse())
    for row in (0, asked.height // 3, asked.height // 2, asked.height - 1):
        alone, refusals, _ = store.read(features, asked[row : row + 1])
        assert alone.equals(found[row : row + 1])
        assert refusals.drop("row").equals(failures.filter(pl.col("row") == row).drop("row"))


# ---------------------------------------------------------------- by hand

SOURCE = Source(
    path="x.csv",  # type: ignore[arg-type]
    entity=("k",),
    event_time={"column": "t", "timezone": "UTC"},  # type: ignore[arg-type]
    deleted="gone",
    columns={
        name: {"type": type}
        for name, type in (("k", "category"), ("x", "float"), ("y", "float"), ("gone", "bool"))
    },  # type: ignore[misc]
)
BACK_LOADED = SOURCE.model_copy(update={"known_at": config.KnownAt(after_event="0s")})  # type: ignore[arg-type]
LATEST = Stored("latest", "s", ("k",), "x", "latest")
FRESH = Stored("fresh", "s", ("k",), "x", "latest", ttl_us=DAY_US)
SUM = Stored("sum", "s", ("k",), "x", "window", agg="sum", over_us=DAY_US)
COUNT = Stored("count", "s", ("k",), "x", "window", agg="count", over_us=DAY_US)
#: Key, hours after noon, value, and whether the row is deleted.
Row = tuple[str, float, float | None, bool] | tuple[str, float, float | None]


@dataclass(frozen=True)
class Growing:
    """A history that grows: back-loaded, with rows known when they happen, or live."""

    folder: Path
    source: Source = BACK_LOADED
    begin: datetime = NOON
    name: str = "s"

    @property
    def view(self) -> ViewTable:
        columns = (Column("x", "float"), Column("y", "float"), Column("gone", "bool"))
        back_loaded = self.source.known_at is not None
        return ViewTable(
            self.name, f"{self.name}-1", self.source.entity, columns, None, (), back_loaded=back_loaded
        )

    def commit(self, *rows: Row) -> Snapshot:
        whole = [
            (k, self.begin + hours * HOUR, x, None if x is None else 10 * x, bool(gone))
            for k, hours, x, *gone in rows
        ]
        schema = {"k": pl.String, "event_time": INSTANT, "x": pl.Float64, "y": pl.Float64, "gone": pl.Boolean}
        history = History(self.folder / self.name, self.view)
        history.append(pl.DataFrame(whole, schema=schema, orient="row"), self.source, f"{history.commit}+")
        return history.snapshot()


def feature_set(view: ViewTable, *stored: Stored) -> FeatureSet:
    request = Schema((Column("k", "category"), Column("t", "datetime")))
    columns = tuple(Column(feature.name, "float") for feature in stored)
    return FeatureSet(request, columns, stored, (), (view,), 0, "t")


def asked(*rows: tuple[str, datetime]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"k": pl.String, "t": INSTANT}, orient="row")


def at(hours: float) -> datetime:
    return NOON + hours * HOUR


class Watched:
    """A shelf that remembers the keys of the records that were put on it."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self.written: list[str] = []
        self.about, self.get, self.close = shelf.about, shelf.get, shelf.close

    def put(self, table: str, write: Write) -> bool:
        records = list(write.records)
        self.written += [key for key, _, _ in records]
        return self._shelf.put(table, write._replace(records=records))

    def taken(self) -> list[str]:
        """The keys that were written since the last time, sorted."""
        taken, self.written = sorted(self.written), []
        return taken


def watched(store: OnlineStore) -> Watched:
    store._shelf = Watched(store._shelf)
    return store._shelf


def test_only_entities_that_learned_something_are_written(place: str, tmp_path: Path) -> None:
    history = Growing(tmp_path)
    features = feature_set(history.view, LATEST, SUM)
    store = OnlineStore(place)
    shelf = watched(store)
    first = history.commit(("a", 0, 1.0), ("b", 0, 2.0), ("c", 0, 3.0))
    assert materialize(store, features, {"s": first}) == {"s": at(0)}
    assert shelf.taken() == ['["a"]', '["b"]', '["c"]']
    second = history.commit(("b", 5, 4.0))
    assert materialize(store, features, {"s": second}) == {"s": at(5)}, "the watermark is everybody's"
    assert shelf.taken() == ['["b"]']
    for unchanged in ("a", "c"):
        found, failures, _ = store.read(features, asked((unchanged, at(5))))
        assert failures.is_empty()
        assert found.equals(offline(asked((unchanged, at(5))), {"s": second}, features))
    assert materialize(store, features, {"s": second}) == {"s": at(5)}
    assert shelf.taken() == []


def test_a_quiet_table_does_not_make_another_be_written_whole(place: str, tmp_path: Path) -> None:
    """Airports change once a year: their last commit must not hold on to a year of everybody else's rows."""
    quiet, busy = (
        Growing(tmp_path, SOURCE, datetime.now(UTC), "q"),
        Growing(tmp_path, SOURCE, datetime.now(UTC)),
    )
    features = feature_set(busy.view, SUM, replace(FRESH, name="q", source="q"))
    features = replace(features, tables=(quiet.view, busy.view))
    store = OnlineStore(place)
    shelf = watched(store)
    held = {"q": quiet.commit(("a", 0, 1.0)), "s": busy.commit(("a", 0, 1.0), ("b", 0, 2.0))}
    materialize(store, features, held)
    shelf.taken()
    for number in range(3):
        materialize(store, features, {**held, "s": busy.commit(("a", number, 1.0))})
        assert shelf.taken() == ['["a"]']


def test_a_table_that_runs_ahead_of_another_is_not_written_whole_at_each_commit(
    place: str, tmp_path: Path
) -> None:
    slow, fast = Growing(tmp_path, name="q"), Growing(tmp_path)
    features = feature_set(fast.view, SUM, replace(FRESH, name="q", source="q"))
    features = replace(features, tables=(slow.view, fast.view))
    store = OnlineStore(place)
    shelf = watched(store)
    held = {"q": slow.commit(("a", 0, 1.0)), "s": fast.commit(("b", 0, 1.0))}
    materialize(store, features, held)
    shelf.taken()
    whole = 0
    for hour in range(1, 40):
        materialize(store, features, {**held, "s": fast.commit(("a", hour, 1.0))})
        whole += shelf.taken() == ['["a"]', '["b"]']
        first, last = store.bounds(features) or (at(0), at(0))
        assert (first <= at(0), last) == (True, at(0)), "what the slow one knows is answered"
    assert 1 <= whole <= 7


def saying_when(source: config.Source) -> config.Source:
    """The source, with a column that says when a row became known."""
    columns = {**source.columns, "known": config.ColumnSpec(type="datetime")}
    return source.model_copy(update={"known_at": config.KnownAt(column="known"), "columns": columns})


def test_a_row_that_becomes_known_after_its_commit_is_taken_in_then(place: str, tmp_path: Path) -> None:
    source, now = saying_when(SOURCE), datetime.now(UTC)
    view = replace(
        Growing(tmp_path, source).view, columns=(Column("x", "float"), Column("known", "datetime"))
    )
    features, store = feature_set(view, FRESH), OnlineStore(place)
    rows = pl.DataFrame(
        {
            "k": ["a", "b"],
            "event_time": [now] * 2,
            "known": [now + 50 * timedelta(milliseconds=1), now],
            "x": [1.0, 2.0],
        },
        schema_overrides={"event_time": INSTANT, "known": INSTANT},
    )
    rows = rows.with_columns(gone=pl.lit(False), y=pl.lit(None, pl.Float64))
    history = History(tmp_path / "s", view)
    history.append(rows, source, "both")
    early = history.snapshot()
    # As it stands now, and as the next commit finds it, whenever that comes.
    materialize(store, features, {"s": early})
    commit = max(now + DAY, early.as_of.committed_at)
    late = replace(early, as_of=replace(early.as_of, known_at=commit, committed_at=commit), is_newest=False)
    materialize(store, features, {"s": late})
    one = asked(("a", now + 50 * timedelta(milliseconds=1)))
    assert store.read(features, one)[0].equals(offline(one, {"s": late}, features))
    assert store.read(features, one)[0]["fresh"].to_list() == [1.0]


@pytest.mark.parametrize("kept", [LATEST, SUM], ids=["of any age", "of a window"])
def test_a_deleted_row_vanishes(place: str, tmp_path: Path, kept: Stored) -> None:
    history = Growing(tmp_path)
    features, store = feature_set(history.view, kept, COUNT), OnlineStore(place)
    materialize(store, features, {"s": history.commit(("a", 0, 1.0), ("b", 0, 2.0), ("b", 1, 3.0))})
    gone = history.commit(("a", 0, None, True), ("b", 1, None, True))
    materialize(store, features, {"s": gone})
    both = asked(("a", at(1)), ("b", at(1)))
    found, failures, _ = store.read(features, both)
    assert refused(failures) == {}
    assert found.rows() == [(None, 0), (2.0, 1)]
    assert found.equals(offline(both, {"s": gone}, features))


def test_the_rows_of_a_table_without_keys_vanish_too(place: str, tmp_path: Path) -> None:
    history = Growing(tmp_path, BACK_LOADED.model_copy(update={"entity": ()}))
    features, store = (
        feature_set(history.view, replace(SUM, on=()), replace(LATEST, on=())),
        OnlineStore(place),
    )
    materialize(store, features, {"s": history.commit(("", 0, 1.0))})
    materialize(store, features, {"s": history.commit(("", 0, None, True))})
    assert store.read(features, asked(("", at(0))))[0].rows() == [(None, None)]


def test_an_entity_whose_key_is_its_row_id_is_read_as_offline(place: str, tmp_path: Path) -> None:
    """An order happens once: a row that moves its time corrects it."""
    history = Growing(tmp_path, BACK_LOADED.model_copy(update={"row_id": "k"}))
    view = replace(history.view, row_id="k")
    features, store = feature_set(view, LATEST, COUNT), OnlineStore(place)
    snapshot = replace(history.commit(("a", 0, 1.0), ("a", 5, 2.0), ("b", 5, 3.0)), view=view)
    materialize(store, features, {"s": snapshot})
    ask = asked(("a", at(5)), ("b", at(5)))
    found, failures, _ = store.read(features, ask)
    assert failures.is_empty()
    assert found.rows() == [(2.0, 1), (3.0, 1)]
    assert found.equals(offline(ask, {"s": snapshot}, features))


# ---------------------------------------------------------------- what is kept, and for how long


def test_rows_expire_by_ttl_and_by_look_back(place: str, tmp_path: Path) -> None:
    """A ttl counts both its ends, a window only the newer: on the edge one is left of two, then none."""
    history = Growing(tmp_path)
    features, store = feature_set(history.view, FRESH, SUM), OnlineStore(place)
    materialize(store, features, {"s": history.commit(("old", 0, 1.0))})
    gone = (None, None)
    answers = [(24 - US, (1.0, 1.0)), (24, (1.0, None)), (24 + US, gone), (48, gone), (48 + US, gone)]
    for hours, answer in answers:
        snapshot = history.commit(("a", hours, 2.0))
        assert materialize(store, features, {"s": snapshot}) == {"s": at(hours)}
        ask = asked(("old", at(hours)), ("a", at(hours)))
        found, failures, _ = store.read(features, ask)
        assert found.row(0) == answer
        assert found.equals(offline(ask, {"s": snapshot}, features))
        is_kept = hours <= 48
        assert flagged(failures) == ([] if is_kept else [(0, "k")])
        assert (store._shelf.get(history.view.table, ['["old"]'])[1] != [None]) == is_kept


@pytest.mark.parametrize("at_once", [False, True])
def test_the_newest_row_of_a_latest_value_without_ttl_never_expires(
    place: str, tmp_path: Path, at_once: bool
) -> None:
    history = Growing(tmp_path)
    features, store = feature_set(history.view, LATEST, SUM), OnlineStore(place)
    early = history.commit(("old", -1, 0.0), ("old", 0, 1.0), ("a", 0, 2.0))
    if not at_once:
        materialize(store, features, {"s": early})
    materialize(store, features, {"s": history.commit(("a", 9_999, 3.0))})
    found, failures, _ = store.read(features, asked(("old", at(9_999))))
    assert (found.rows(), failures.height) == ([(1.0, None)], 0)


def test_a_read_before_what_is_kept_or_after_what_is_known_is_refused(place: str, tmp_path: Path) -> None:
    history = Growing(tmp_path)
    features, store = feature_set(history.view, SUM), OnlineStore(place)
    materialize(store, features, {"s": history.commit(*(("a", hour, 1.0) for hour in range(100)))})
    assert store.bounds(features) == (at(99) - DAY, at(99)), "of the newest moments a day"
    times = (at(99) - DAY - MICROSECOND, at(99) - DAY, at(99), at(99) + MICROSECOND)
    _, failures, _ = store.read(features, asked(*(("a", time) for time in times)))
    assert refused(failures) == {0: "too_old", 3: "watermark"}
    assert failures["value"].to_list() == [
        "2020-06-04T14:59:59.999999Z",
        "2020-06-05T15:00:00.000001Z; 's' is known up to 2020-06-05T15:00:00Z",
    ]
    longer = feature_set(history.view, replace(SUM, over_us=3 * DAY_US))
    materialize(store, longer, {"s": history.commit(("a", 99, 2.0))})
    first, last = store.bounds(features)  # type: ignore[misc]
    assert (first, last) == (at(99 - 72), at(99)), "what the longer window needs serves the shorter one"
    times = (first - MICROSECOND, first)
    assert refused(store.read(features, asked(*(("a", time) for time in times)))[1]) == {0: "too_old"}


def test_a_live_source_is_answered_up_to_now_and_not_later(place: str, tmp_path: Path) -> None:
    """What nobody has stored by now is not known now; what is known in an hour is."""
    history = Growing(tmp_path, SOURCE, datetime.now(UTC) - 3 * HOUR)
    features, store = feature_set(history.view, COUNT, FRESH), OnlineStore(place)
    snapshot = history.commit(("a", 0, 1.0))
    watermark = materialize(store, features, {"s": snapshot})["s"]
    assert watermark == snapshot.as_of.committed_at
    now = datetime.now(UTC)
    assert now > watermark
    ask = asked(("a", watermark), ("a", now), ("a", now + HOUR), ("stranger", now))
    found, failures, _ = store.read(features, ask)
    assert refused(failures) == {2: "watermark"}
    assert flagged(failures) == [(3, "k")]
    assert found[[0, 1, 3]].equals(offline(ask, {"s": snapshot}, features)[[0, 1, 3]])
    last = store.bounds(features)[1]  # type: ignore[index]
    assert now <= last <= datetime.now(UTC)


def test_no_rows_are_answered_with_none(place: str, tmp_path: Path) -> None:
    history = Growing(tmp_path)
    features, store = feature_set(history.view, FRESH), OnlineStore(place)
    materialize(store, features, {"s": history.commit(("a", 0, 1.0))})
    found, failures, _ = store.read(features, asked())
    assert (found.schema, found.height, failures.height) == ({"fresh": pl.Float64}, 0, 0)


@pytest.mark.parametrize("year", [1, 1582, 1821, 1969, 2300])
def test_every_century_is_kept(place: str, tmp_path: Path, year: int) -> None:
    """A watermark, and what is kept before it, may have more digits than today's, and a sign."""
    history = Growing(tmp_path, begin=datetime(year, 5, 5, tzinfo=UTC))
    features, store = feature_set(history.view, SUM), OnlineStore(place)
    # The last but one row of two thousand years ahead of us is not known yet.
    if year > 2200:
        with pytest.raises(DataError, match="become known later"):
            materialize(store, features, {"s": history.commit(("a", 0, 1.0))})
        return
    snapshot = history.commit(("a", 0, 1.0), ("a", 1, 2.0), ("b", -30, 2.0))
    end = materialize(store, features, {"s": snapshot})["s"]
    assert end == history.begin + HOUR
    ask = asked(("a", end), ("b", end))
    assert store.read(features, ask)[0].rows() == [(3.0,), (None,)]


# ---------------------------------------------------------------- several writers


class Steps:
    """Work in a thread of its own that goes on to its next `pause` when it is told to, and not before."""

    def __init__(self, work: Callable[[Callable[[], None]], None]) -> None:
        self._go, self._rested = threading.Semaphore(0), threading.Semaphore(0)
        self.done, self.error = False, None
        threading.Thread(target=self._run, args=(work,), daemon=True).start()

    def _run(self, work: Callable[[Callable[[], None]], None]) -> None:
        self._go.acquire()
        try:
            work(self._pause)
        except BaseException as error:  # noqa: BLE001  (told to the test's thread)
            self.error = error
        self.done = True
        self._rested.release()

    def _pause(self) -> None:
        self._rested.release()
        self._go.acquire()

    def step(self) -> None:
        if not self.done:
            self._go.release()
            self._rested.acquire()
        if self.error is not None:
            raise self.error

    def finish(self) -> None:
        while not self.done:
            self.step()


class Pausing:
    """A shelf that pauses before each call; and before each record, where others can write meanwhile."""

    def __init__(self, shelf: Shelf, pause: Callable[[], None]) -> None:
        self._shelf, self._pause = shelf, pause
        self.get, self.close = shelf.get, shelf.close

    def about(self, table: str) -> bytes | None:
        self._pause()
        return self._shelf.about(table)

    def put(self, table: str, write: Write) -> bool:
        self._pause()
        if isinstance(self._shelf, RedisShelf):
            write = write._replace(records=self._one_by_one(list(write.records)))
        return self._shelf.put(table, write)

    def _one_by_one(self, records: list[Record]) -> Iterator[Record]:
        for record in records:
            yield record
            self._pause()


class Blind(Watched):
    """A shelf of which its writer saw nothing when it looked first."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__(shelf)
        self.about = self._nothing

    def _nothing(self, _: str) -> None:
        self.about = self._shelf.about


def writer(place: str, features: FeatureSet, snapshot: Snapshot) -> Steps:
    def work(pause: Callable[[], None]) -> None:
        store = OnlineStore(place)
        store._shelf = Pausing(store._shelf, pause)
        with suppress(OvertakenError):
            materialize(store, features, {"s": snapshot})
        store.close()

    return Steps(work)


def orders(steps: int, most: int) -> list[list[int]]:
    """In which order two writers of so many steps take turns: all, or a choice that never changes."""
    every = [
        [int(turn in chosen) for turn in range(2 * steps)] for chosen in combinations(range(2 * steps), steps)
    ]
    return every if len(every) <= most else [every[0], *random.Random(5).sample(every, most - 2), every[-1]]


#: Steps of a writer: from call to call on SQLite; on Redis also from record to record.
STEPS = {"sqlite": 4, "redis": 8}


@dataclass(frozen=True)
class Race:
    """Three commits of a history, and two writers over a store that has the first."""

    new_place: NewPlace
    folder: Path
    snapshots: list[Snapshot]

    def run(
        self,
        first: FeatureSet,
        writers: Sequence[tuple[FeatureSet, Snapshot]],
        look: Callable[[OnlineStore], None],
        done: Callable[[OnlineStore], None],
    ) -> None:
        """After the first materialisation two writers take turns; what stands there is looked at."""
        kind = "redis" if self.new_place(self.folder).startswith("redis") else "sqlite"
        for number, order in enumerate(orders(STEPS[kind], 24)):
            folder = self.folder / str(number)
            folder.mkdir()
            place = self.new_place(folder)
            store = OnlineStore(place)
            materialize(store, first, {"s": self.snapshots[0]})
            at_work = [writer(place, *what) for what in writers]
            for turn in order:
                at_work[turn].step()
                look(store)
            for one in at_work:
                one.finish()
            done(store)
            store.close()


@pytest.fixture
def race(new_place: NewPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Race:
    monkeypatch.setattr(shelves, "BATCH", 1)
    history = Growing(tmp_path, SOURCE, datetime.now(UTC) - 10 * HOUR)
    commits: list[list[Row]] = [
        [("a", 0, 1.0), ("b", 0, 1.0), ("c", 0, 1.0), ("z", 0, 1.0), ("old", -500, 1.0)],
        [("a", 1, 2.0), ("b", 0, 1.5), ("c", 0, None, True)],
        [("a", 1, 3.0), ("a", 2, 3.0), ("b", 0, None, True), ("c", 0, 7.0), ("z", 2, 1.0)],
    ]
    return Race(new_place, tmp_path, [history.commit(*rows) for rows in commits])


def states(race: Race, features: FeatureSet, ask: pl.DataFrame) -> list[list[tuple[object, ...]]]:
    """For each row what it looks like after each commit."""
    whole = [offline(ask, {"s": snapshot}, features).rows() for snapshot in race.snapshots]
    return [list(of_row) for of_row in zip(*whole, strict=True)]


def test_a_late_writer_overwrites_nothing_newer_in_any_order_of_steps(race: Race) -> None:
    view = race.snapshots[0].view
    features = feature_set(view, SUM, FRESH, COUNT)
    ask = asked(*((key, datetime.now(UTC)) for key in ("a", "b", "c", "z", "old")))
    expected = states(race, features, ask)
    seen = [0] * ask.height

    def look(store: OnlineStore) -> None:
        found, failures, _ = store.read(features, ask)
        assert refused(failures) == {}
        for row, answer in enumerate(found.rows()):
            assert answer in expected[row], "never a mixture"
            newest = max(number for number, state in enumerate(expected[row]) if state == answer)
            assert newest >= seen[row], "never back"
            seen[row] = expected[row].index(answer)

    def done(store: OnlineStore) -> None:
        assert store.read(features, ask)[0].rows() == [of_row[-1] for of_row in expected]
        assert store.watermarks(features) == {"s": race.snapshots[-1].as_of.committed_at}
        seen[:] = [0] * ask.height

    race.run(features, [(features, snapshot) for snapshot in race.snapshots[1:]], look, done)


def test_what_was_deleted_long_ago_does_not_come_back_by_a_very_late_writer(
    place: str, tmp_path: Path
) -> None:
    """Nothing in the store tells of the deletion any more, but that it knows more than the writer."""
    history = Growing(tmp_path)
    features, store = feature_set(history.view, replace(SUM, over_us=90 * DAY_US)), OnlineStore(place)
    commits: list[list[Row]] = [
        [("a", 0, 1.0)],
        [("a", 0, None, True)],
        [("b", 9_999, 1.0)],
        [("b", 99, 1.0)],
    ]
    snapshots = [history.commit(*rows) for rows in commits]
    shelf = watched(store)
    for snapshot in snapshots:
        materialize(store, features, {"s": snapshot})
    assert shelf.get(history.view.table, ['["a"]'])[1] == [None]
    before = store.about(history.view)
    # As a writer that began when the store was empty, and was held up until now.
    late = OnlineStore(place)
    late._shelf = Blind(late._shelf)
    materialize(late, features, {"s": snapshots[0]})
    assert shelf.get(history.view.table, ['["a"]'])[1] == [None]
    assert store.about(history.view) == before


@pytest.mark.parametrize("commits", [(1, 2), (2, 1), (2, 2)], ids=["earlier", "later", "the same commit"])
def test_a_wider_writer_beside_another_makes_nobody_read_wrongly(
    race: Race, commits: tuple[int, int]
) -> None:
    """While records are as before, a reader of more is told to wait, or answered right."""
    view = race.snapshots[0].view
    narrow = feature_set(view, SUM, COUNT)
    wide = feature_set(view, LATEST, replace(SUM, name="sum_y", of="y", over_us=100 * DAY_US))
    ask = asked(*((key, datetime.now(UTC)) for key in ("a", "b", "c", "z", "old")))
    expected = {name: states(race, features, ask) for name, features in (("narrow", narrow), ("wide", wide))}
    told: dict[str, set[str]] = {"narrow": set(), "wide": set()}

    def look(store: OnlineStore) -> None:
        for name, features in (("narrow", narrow), ("wide", wide)):
            try:
                found, failures, _ = store.read(features, ask)
            except StorageError as error:
                told[name].add(str(error))
                continue
            no = refused(failures)
            assert name == "wide" or not no
            for row, answer in enumerate(found.rows()):
                assert row in no or answer in expected[name][row]

    def done(store: OnlineStore) -> None:
        look(store)
        if commits[0] == 2:
            newest = [of_row[-1] for of_row in expected["wide"]]
            assert store.read(wide, ask)[0].rows() == newest, "of two writers both get what they want"
        for features in (narrow, wide):
            materialize(store, features, {"s": race.snapshots[-1]})
        for name, features in (("narrow", narrow), ("wide", wide)):
            found, failures, _ = store.read(features, ask)
            assert refused(failures) == {}
            assert found.rows() == [of_row[-1] for of_row in expected[name]]

    made_from = [race.snapshots[commit] for commit in commits]
    race.run(narrow, list(zip((wide, narrow), made_from, strict=True)), look, done)
    assert not told["narrow"]
    assert all("of 's' yet; materialise first" in error for error in told["wide"])


def test_a_batch_sees_one_state_of_the_file(tmp_path: Path) -> None:
    """A writer between two statements of a reader could take away a record that the reader still needs."""
    history = Growing(tmp_path)
    features = feature_set(history.view, FRESH)
    store, other = OnlineStore(tmp_path / "online.db"), OnlineStore(tmp_path / "online.db")
    materialize(store, features, {"s": history.commit(("a", 0, 1.0), ("b", 0, 1.0), ("c", 1, 1.0))})
    later = history.commit(("c", 40, 1.0))
    statements = 0

    def between(_: str) -> None:
        nonlocal statements
        statements += 1
        if statements == 2:
            materialize(other, features, {"s": later})

    store._shelf._connection.set_trace_callback(between)  # type: ignore[attr-defined]
    found, failures, _ = store.read(features, asked(("a", at(1)), ("b", at(1)), ("c", at(1))))
    assert (found["fresh"].to_list(), failures.height) == ([1.0] * 3, 0)


# ---------------------------------------------------------------- several projects


def test_a_store_widened_by_another_project_answers_both_and_keeps_all(place: str, tmp_path: Path) -> None:
    history = Growing(tmp_path)
    store = OnlineStore(place)
    narrow = feature_set(history.view, FRESH)
    wide = feature_set(history.view, replace(SUM, of="y", over_us=5 * DAY_US), replace(LATEST, of="y"))
    first = history.commit(
        *((key, hour, float(hour)) for key in "ab" for hour in range(-100, 1)), ("old", -999, 1.0)
    )
    materialize(store, narrow, {"s": first})
    ask = asked(("a", at(0)), ("old", at(0)))
    with pytest.raises(StorageError, match="does not hold y of 's' yet; materialise first"):
        store.read(wide, ask)
    shelf = watched(store)
    materialize(store, wide, {"s": first})
    assert shelf.taken() == ['["a"]', '["b"]', '["old"]'], "every record is widened"
    for snapshot in (first, history.commit(("a", 0, -1.0), ("b", 1, 4.0))):
        for features in (narrow, wide, narrow):
            kept = store.about(history.view)
            materialize(store, features, {"s": snapshot})
            about = store.about(history.view)
            assert about is not None
            assert kept is not None
            assert set(about.columns) >= set(kept.columns)
            assert about.keep_us >= kept.keep_us
            assert about.is_unbounded >= kept.is_unbounded
        for features in (narrow, wide):
            end = store.bounds(features)[1]  # type: ignore[index]
            ask = asked(*((key, end) for key in ("a", "b", "old", "stranger")))
            found, failures, _ = store.read(features, ask)
            assert refused(failures) == {}
            assert found.equals(offline(ask, {"s": snapshot}, features))


def test_who_wants_more_of_an_earlier_commit_than_is_stored_is_told(place: str, tmp_path: Path) -> None:
    history, store = Growing(tmp_path), OnlineStore(place)
    narrow, wide = feature_set(history.view, FRESH), feature_set(history.view, FRESH, replace(SUM, of="y"))
    early, late = history.commit(("a", 0, 1.0)), history.commit(("a", 1, 2.0))
    materialize(store, narrow, {"s": late})
    with pytest.raises(OvertakenError, match=r"a later commit of 's' .* materialise again"):
        materialize(store, wide, {"s": early})
    materialize(store, wide, {"s": late})
    assert store.read(wide, asked(("a", at(1))))[0].rows() == [(2.0, 30.0)]


def known_when(folder: Path, *versions: tuple[str, float, float, float | None, bool]) -> History:
    """A history of these rows, a commit each: key, hours of event and of knowledge, value, and deleted."""
    source = saying_when(SOURCE)
    columns = (Column("x", "float"), Column("gone", "bool"), Column("known", "datetime"))
    history = History(folder / "s", replace(Growing(folder, source).view, columns=columns))
    schema = {"k": pl.String, "event_time": INSTANT, "known": INSTANT, "x": pl.Float64, "gone": pl.Boolean}
    for number, (k, event, known, x, gone) in enumerate(versions):
        row = pl.DataFrame([(k, at(event), at(known), x, gone)], schema=schema, orient="row")
        history.append(row, source, f"{number}")
    return history


@pytest.mark.parametrize("late", [True, False], ids=["learned of late", "deleted since"])
def test_strict_latest_values_of_any_age_are_those_of_each_p(place: str, tmp_path: Path, late: bool) -> None:
    """The newest of the rows that are older than anything kept is another one before hour 5."""
    if late:
        newer = [("a", -400, 5, 2.0, False)]
    else:
        newer = [("a", -400, -400, 2.0, False), ("a", -400, 5, None, True)]
    history = known_when(tmp_path, ("a", -500, -500, 1.0, False), *newer, ("b", 10, 10, 9.0, False))
    features, store = replace(feature_set(history.view, LATEST), strict=True), OnlineStore(place)
    snapshot = {"s": history.snapshot()}
    materialize(store, replace(features, horizon_us=DAY_US), snapshot)
    ask = asked(*(("a", at(hours)) for hours in (4, 5 - US, 5, 6)))
    found, failures, _ = store.read(features, ask)
    assert not failures.height
    assert found.rows() == [(1.0,), (1.0,), (2.0,), (2.0,)] if late else [(2.0,), (2.0,), (1.0,), (1.0,)]
    assert found.equals(offline(ask, snapshot, features))


def test_strict_features_are_answered_as_known_at_each_p_beside_others_that_are_not(
    place: str, tmp_path: Path
) -> None:
    """A row known an hour after its event, corrected ten hours later, and a day later deleted."""
    history = known_when(
        tmp_path, ("a", 0, 1, 1.0, False), ("a", 0, 10, 2.0, False), ("a", 0, 24, None, True)
    )
    features = feature_set(history.view, replace(LATEST, name="newest"), replace(COUNT, over_us=2 * DAY_US))
    strict, store = replace(features, strict=True), OnlineStore(place)
    snapshot = {"s": history.snapshot()}
    materialize(store, features, snapshot)
    ask = asked(*(("a", at(hours)) for hours in (0.5, 1, 10 - US, 10, 24 - US, 24)))
    with pytest.raises(StorageError, match="does not hold what was known when of 's' yet"):
        store.read(strict, ask)
    materialize(store, strict, snapshot)
    seen = [(None, 0), (1.0, 1), (1.0, 1), (2.0, 1), (2.0, 1), (None, 0)]
    assert store.read(strict, ask)[0].rows() == seen == offline(ask, snapshot, strict).rows()
    for row in range(ask.height):
        assert store.read(strict, ask[row : row + 1])[0].rows() == [seen[row]]
    assert store.read(features, ask)[0].rows() == [(None, 0)] * 6


def test_a_latest_value_of_any_age_is_not_read_from_records_that_end_somewhere(
    place: str, tmp_path: Path
) -> None:
    history = Growing(tmp_path)
    store = OnlineStore(place)
    snapshot = history.commit(("a", 0, 1.0), ("b", 100, 1.0))
    materialize(store, feature_set(history.view, FRESH), {"s": snapshot})
    with pytest.raises(StorageError, match="latest values of any age of 's' yet; materialise first"):
        store.read(feature_set(history.view, LATEST), asked(("a", at(100))))


PROJECT = """
project: {name}
sources:
  {source}: &source
    path: rows.csv
    entity: k
    event_time: {{column: t}}
    columns: {{k: {{type: category}}, x: {{type: float}}, y: {{type: float}}, z: {{type: float}}}}
features:
  {view}:
    source: {source}
    features: {{{feature}}}
target: {{source: {source}, expr: z, task: regression}}
"""


def project(folder: Path, name: str, view: str, feature: str, source: str = "shop") -> FeatureStore:
    file = folder / f"{name}.yaml"
    file.write_text(PROJECT.format(name=name, view=view, feature=feature, source=source))
    opened = config.load(file, {})
    return FeatureStore(opened, Storage.open(opened.storage))


def test_two_projects_with_one_definition_share_its_history_and_its_records(tmp_path: Path) -> None:
    window = "{window: {of: x, agg: sum, over: 1d}}"
    one = project(tmp_path, "one", "sales", f"sum_1d: {window}")
    two = project(tmp_path, "two", "turnover", f"last_day: {window}")
    rows = pl.DataFrame(
        {
            "k": ["a", "b"],
            "event_time": [datetime.now(UTC)] * 2,
            "x": [1.0, 2.0],
            "y": [1.0, 2.0],
            "z": [0.0] * 2,
        }
    )
    one.history("shop").append(rows.cast({"event_time": INSTANT}), one.project.sources["shop"], "first")
    assert len(list((tmp_path / ".mlops" / "features").iterdir())) == 1
    assert two.history("shop").commit == "first"
    assert one.features.identity("sum_1d") == two.features.identity("last_day")
    one.materialize()
    store = two.online()
    shelf = watched(store)
    materialize(store, two.features, two.snapshots())
    assert shelf.taken() == []
    ask = asked(("a", datetime.now(UTC))).rename({"t": "t"})
    assert store.read(two.features, ask)[0].rows() == [(1.0,)]


def test_a_feature_s_identity_is_that_of_all_it_is_made_of(tmp_path: Path) -> None:
    window = "f: {{window: {{of: {of}, agg: {agg}, over: {over}}}}}"
    same = project(tmp_path, "same", "v", window.format(of="x", agg="sum", over="1d")).features
    again = project(tmp_path, "again", "w", window.format(of="x", agg="sum", over="24h")).features
    assert same.identity("f") == again.identity("f")
    for number, other in enumerate((("y", "sum", "1d"), ("x", "mean", "1d"), ("x", "sum", "2d"))):
        changed = dict(zip(("of", "agg", "over"), other, strict=True))
        assert project(tmp_path, f"p{number}", "v", window.format(**changed)).features.identity(
            "f"
        ) != same.identity("f")


# ---------------------------------------------------------------- when the place does not answer


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own, which asks for a password."""
    server = RedisServer(tmp_path, password="hush-hush")
    server.start()
    yield server
    server.stop()


def test_a_redis_that_goes_away_is_said_in_a_sentence_and_comes_back(
    guarded: RedisServer, tmp_path: Path
) -> None:
    history = Growing(tmp_path)
    features, snapshot = feature_set(history.view, FRESH), history.commit(("a", 0, 1.0))
    ask = asked(("a", at(0)))
    store = OnlineStore(guarded.url)
    materialize(store, features, {"s": snapshot})
    answer = store.read(features, ask)[0]
    guarded.stop()
    calls = (
        lambda: store.read(features, ask),
        lambda: materialize(store, features, {"s": snapshot}),
        lambda: store.bounds(features),
        lambda: OnlineStore(guarded.url),
    )
    for call in calls:
        with pytest.raises(StorageError, match=r"the online store .* does not answer") as raised:
            call()
        assert f"127.0.0.1:{guarded.port}" in str(raised.value)
        assert "hush" not in str(raised.value)
    guarded.start()
    with pytest.raises(StorageError, match="holds nothing of 's'; materialise first") as raised:
        store.read(features, ask)
    assert "hush" not in str(raised.value)
    materialize(store, features, {"s": snapshot})
    assert store.read(features, ask)[0].equals(answer)


@pytest.mark.parametrize(
    "url",
    [
        "redis://somebody:hush-hush@127.0.0.1:{port}/0",
        "redis://127.0.0.1:{port}/0?username=somebody&password=hush-hush",
    ],
)
def test_a_server_that_cannot_be_used_is_said_without_its_secrets(guarded: RedisServer, url: str) -> None:
    guarded.password = "another"
    guarded.stop()
    guarded.start()
    with pytest.raises(StorageError) as raised:
        OnlineStore(url.format(port=guarded.port))
    assert "hush" not in str(raised.value)
    assert "somebody" not in str(raised.value)


def test_a_file_that_cannot_be_used_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database, however long it is" * 100)
    for path in (tmp_path / "text.db", tmp_path / "absent" / "online.db", tmp_path):
        with pytest.raises(StorageError, match=f"the online store {path} cannot be used"):
            OnlineStore(path)


def test_a_writer_that_waits_too_long_for_another_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelves, "BUSY_S", 0.01)
    history = Growing(tmp_path)
    features, snapshot = feature_set(history.view, FRESH), history.commit(("a", 0, 1.0))
    store = OnlineStore(tmp_path / "online.db")
    with sqlite3.connect(tmp_path / "online.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="cannot be used: database is locked"):
            materialize(store, features, {"s": snapshot})
        other.execute("ROLLBACK")
    assert materialize(store, features, {"s": snapshot}) == {"s": at(0)}
