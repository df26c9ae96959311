"""A history keeps what it was given: each commit whole, once, in order, whoever writes, whenever they die."""

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable

from mlops_ray.config import Source
from mlops_ray.errors import DataError, StorageError
from mlops_ray.features import history
from mlops_ray.features.commits import buckets_of
from mlops_ray.features.definitions import Stored, ViewTable
from mlops_ray.features.history import AsOf, History, Snapshot, read
from mlops_ray.features.join import join
from mlops_ray.schema import INSTANT, Column

from .cases import clock_at, micros
from .test_online import feature_set

MICROSECOND = timedelta(microseconds=1)
COLUMNS = {"x": "float", "known": "datetime", "seq": "int", "gone": "bool", "r": "int"}


def source(**declared: Any) -> Source:
    types = {"k": "category", **COLUMNS}
    if "time" not in declared:
        declared["event_time"] = {"column": "time", "timezone": "UTC"}
    columns = {name: {"type": kind} for name, kind in types.items()}
    return Source(path="x.csv", entity="k", columns=columns, **declared)  # type: ignore[arg-type]


def history_at(folder: Path, row_id: str | None = None) -> History:
    return History.of(folder, ViewTable("s", "s-1", ("k",), (Column("x", "float"),), None, (), row_id))


def rows(*given: tuple[str, int, float | None], **more: list[Any]) -> pl.DataFrame:
    """Rows of (key, event time, value), and more columns."""
    frame = pl.DataFrame(
        {"k": [g[0] for g in given], "event_time": [g[1] for g in given], "x": [g[2] for g in given], **more},
        schema_overrides={"k": pl.String, "event_time": pl.Int64, "x": pl.Float64, "gone": pl.Boolean},
    )
    return frame.with_columns(
        pl.col(name).cast(INSTANT) for name in ("event_time", "known") if name in frame.columns
    )


def values(snapshot: Snapshot, **asked: Any) -> list[tuple[Any, ...]]:
    """The rows in force as (key, event time, value)."""
    table = read(snapshot, **asked).sort("k", "event_time")
    return table.select("k", pl.col("event_time").to_physical(), "x").rows()


def raw(stored: History) -> pl.DataFrame:
    """All rows of a history, as they lie in its files."""
    buckets = stored.snapshot().buckets.values()
    return pl.read_parquet([f for bucket in buckets for f in bucket.files], hive_partitioning=False)


# ---------------------------------------------------------------- known at


def test_a_row_is_known_at_its_commit_and_commits_follow_each_other_though_the_clock_goes_back(
    tmp_path: Path,
) -> None:
    stored = history_at(tmp_path)
    for number, clock in enumerate([100, 90, 90, 200]):
        with clock_at(clock):
            stored.append(rows(("a", number, 1.0)), source(), str(number))
    found = raw(stored).sort("event_time")
    assert found["_known_at"].to_physical().to_list() == [100, 101, 102, 200]
    assert found["_committed_at"].equals(found["_known_at"].alias("_committed_at"))


def test_a_back_load_says_when_its_rows_became_known_and_never_when_they_were_committed(
    tmp_path: Path,
) -> None:
    declared = {"after": {"after_event": "0.000005s"}, "column": {"column": "known"}}
    for name, known_at in declared.items():
        stored = history_at(tmp_path / name)
        with clock_at(1000):
            stored.append(
                rows(("a", -3, 1.0), ("b", 7, 2.0), known=[40, -50]), source(known_at=known_at), "1"
            )
        found = raw(stored).sort("k")
        assert found["_known_at"].to_physical().to_list() == {"after": [2, 12], "column": [40, -50]}[name]
        assert found["_committed_at"].to_physical().to_list() == [1000, 1000]


def test_k_later_than_the_newest_commit_is_an_error_and_k_before_the_first_knows_nothing(
    tmp_path: Path,
) -> None:
    stored = history_at(tmp_path)
    with pytest.raises(DataError, match="no history of 's' yet; ingest it first"):
        stored.snapshot()
    with clock_at(100):
        stored.append(rows(("a", 1, 1.0)), source(), "1")
    with pytest.raises(
        DataError, match=r"000101\+00:00 is after the newest commit of 's' \(.*000100\+00:00\)"
    ):
        stored.snapshot(known_at=micros(101))
    assert values(stored.snapshot(known_at=micros(100))) == [("a", 1, 1.0)]
    assert values(stored.snapshot(known_at=micros(99))) == []


def test_without_k_the_newest_commit_is_pinned_and_what_is_committed_later_changes_nothing(
    tmp_path: Path,
) -> None:
    stored = history_at(tmp_path)
    declared = source(known_at={"column": "known"})
    with clock_at(100):
        stored.append(rows(("a", 1, 1.0), known=[10]), declared, "1")
    first = stored.snapshot()
    assert first.as_of == AsOf(micros(100), micros(100))
    # A back-load that says that it was known all the time.
    with clock_at(200):
        stored.append(rows(("a", 1, 2.0), ("b", 1, 2.0), known=[20, 5]), declared, "2")
    assert values(stored.snapshot(first.as_of)) == [("a", 1, 1.0)]
    assert values(first) == [("a", 1, 1.0)]
    assert values(stored.snapshot()) == [("a", 1, 2.0), ("b", 1, 2.0)]
    assert values(stored.snapshot(known_at=micros(15))) == [("a", 1, 1.0), ("b", 1, 2.0)]


def test_rows_of_a_back_load_that_are_known_after_the_newest_commit_are_not_known_yet(tmp_path: Path) -> None:
    stored = history_at(tmp_path)
    with clock_at(100):
        stored.append(
            rows(("a", 99, 1.0), ("a", 90, 0.5)), source(known_at={"after_event": "0.000005s"}), "1"
        )
    assert values(stored.snapshot()) == [("a", 90, 0.5)]
    with clock_at(104):
        stored.append(rows(("b", 0, 0.0)), source(known_at={"after_event": "0.000005s"}), "2")
    assert values(stored.snapshot()) == [("a", 90, 0.5), ("a", 99, 1.0), ("b", 0, 0.0)]


# ---------------------------------------------------------------- commits and identities


def test_of_rows_of_one_commit_the_greatest_sequence_counts_and_without_one_the_last_in_the_file(
    tmp_path: Path,
) -> None:
    given = rows(("a", 1, 1.0), ("b", 1, 5.0), ("a", 1, 2.0), ("a", 1, 3.0), seq=[9, 0, 8, 9])
    for name, declared, expected in (("file", {}, 3.0), ("sequence", {"sequence": "seq"}, 3.0)):
        stored = history_at(tmp_path / name)
        stored.append(given, source(**declared), "1")
        assert values(stored.snapshot()) == [("a", 1, expected), ("b", 1, 5.0)]
    stored = history_at(tmp_path / "first")
    stored.append(given.head(3), source(sequence="seq"), "1")
    assert values(stored.snapshot()) == [("a", 1, 1.0), ("b", 1, 5.0)]


def test_a_correction_may_move_the_event_time_and_a_deletion_takes_the_row_away(tmp_path: Path) -> None:
    stored = history_at(tmp_path, row_id="r")
    declared = source(row_id="r", deleted="gone")
    steps = [(5, 1.0, False), (9, 2.0, False), (9, None, True), (7, 3.0, None)]
    for number, (event, x, gone) in enumerate(steps):
        with clock_at(10 * number):
            stored.append(rows(("a", event, x), r=[1], gone=[gone]), declared, str(number))
    seen = [values(stored.snapshot(known_at=micros(at))) for at in (0, 10, 20, 29, 30)]
    assert seen == [[("a", 5, 1.0)], [("a", 9, 2.0)], [], [], [("a", 7, 3.0)]]


def test_the_same_commit_is_stored_once_also_long_after(tmp_path: Path) -> None:
    """Delta folds its log into a checkpoint each hundred commits: ids must come through."""
    stored = history_at(tmp_path)
    first = stored.append(rows(("a", 0, 1.0)), source(), "0")
    assert stored.append(rows(("a", 0, 1.0)), source(), "0") == first
    for number in range(1, 120):
        stored.append(rows(("a", number, 1.0)), source(), str(number))
    assert list((stored.folder / "_delta_log").glob("*.checkpoint*")), "there is a checkpoint"
    newest = stored.newest
    for number in (0, 50, 119):
        assert stored.append(rows(("a", number, 2.0)), source(), str(number)) == newest
    assert raw(stored).height == 120


def test_there_is_no_newest_commit_before_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = history_at(tmp_path)
    assert stored.newest is None
    assert stored.commit is None

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DeltaTable, "create_write_transaction", dies)
        with pytest.raises(KeyboardInterrupt):
            stored.append(rows(("a", 0, 1.0)), source(), "1")
    # The table is there by now, but nothing in it.
    assert stored.newest is None
    assert stored.commit is None
    with pytest.raises(DataError, match="no history"):
        stored.snapshot()
    stored.append(rows(("a", 0, 1.0)), source(), "1")
    assert stored.commit == "1"


def test_a_commit_without_rows_is_a_commit(tmp_path: Path) -> None:
    stored = history_at(tmp_path)
    with clock_at(10):
        stored.append(rows(("a", 1, 1.0)), source(), "1")
    with clock_at(20):
        stored.append(rows(), source(), "2")
    assert stored.commit == "2"
    assert values(stored.snapshot(known_at=micros(20))) == [("a", 1, 1.0)]


@pytest.mark.parametrize("name", ["plain", "with a space", "50%", "Zürich", "a+b#c?d*e"])
def test_a_history_lies_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    stored = history_at(tmp_path / name)
    stored.append(rows(("a", 1, 1.0)), source(), "1")
    stored.append(rows(("a", 2, 2.0)), source(), "2")
    assert values(stored.snapshot()) == [("a", 1, 1.0), ("a", 2, 2.0)]


def test_rows_of_a_table_without_time_have_latest_values_also_in_slices(tmp_path: Path) -> None:
    stored = history_at(tmp_path)
    declared = source(time="none")
    for number, x in enumerate([1.0, 2.0]):
        with clock_at(10 * number):
            given = rows(*((key, 0, x) for key in "abcdefgh")).drop("event_time")
            stored.append(given.head(8 - 4 * number), declared, str(number))
    features = feature_set(stored.view, Stored("f", "s", ("k",), "x", "latest"))
    asked = rows(("a", -(10**9), None), ("h", 0, None), ("none", 5, None)).rename({"event_time": "t"})
    for rows_a_task in (1, 100):
        found = join(asked, {"s": stored.snapshot()}, features, rows_a_task=rows_a_task)
        assert found["f"].to_list() == [2.0, 1.0, None]


# ---------------------------------------------------------------- maintenance


def test_maintenance_leaves_the_newest_commit_the_newest_and_the_clock_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "FILES_A_BUCKET", 0)
    stored = history_at(tmp_path)
    for number in range(3):
        with clock_at(100 + number):
            newest = stored.append(rows(("a", number, 1.0), ("b", number, 1.0)), source(), str(number))
    before = stored.snapshot()
    stored.maintain()
    stored.maintain(vacuum_hours=0)
    found = stored.newest
    assert found is not None
    assert (found.id, found.committed_at, found.sequence) == (newest.id, newest.committed_at, newest.sequence)
    assert stored.snapshot().as_of == before.as_of
    with clock_at(0):
        stored.append(rows(("a", 9, 1.0)), source(), "next")
    found = raw(stored).sort("_sequence")
    assert found["_known_at"].to_physical().to_list() == [100, 100, 101, 101, 102, 102, 103]
    assert found["_sequence"].to_list() == list(range(7))


def test_a_commit_that_comes_while_files_are_merged_stays_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "FILES_A_BUCKET", 0)
    stored = history_at(tmp_path)
    for number in range(3):
        stored.append(rows(("a", number, 1.0)), source(), str(number))
    table = History._table

    def before_a_commit(self: History) -> Any:
        """The table as maintenance finds it, after which somebody else is faster."""
        found = table(self)
        monkeypatch.setattr(History, "_table", table)
        stored.append(rows(("a", 9, 1.0)), source(), "meanwhile")
        return found

    monkeypatch.setattr(History, "_table", before_a_commit)
    stored.maintain(vacuum_hours=1)
    assert stored.commit == "meanwhile"
    assert len(values(stored.snapshot())) == 4
    stored.append(rows(("a", 10, 1.0)), source(), "next")
    assert raw(stored).sort("_known_at")["_sequence"].to_list() == list(range(5))


def test_a_writer_that_found_no_table_follows_one_that_was_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = history_at(tmp_path)
    with clock_at(100):
        stored.append(rows(("a", 1, 1.0)), source(), "faster")
    table = History._table

    def not_yet(_: History) -> None:
        monkeypatch.setattr(History, "_table", table)

    monkeypatch.setattr(History, "_table", not_yet)
    with clock_at(50):
        stored.append(rows(("a", 1, 2.0)), source(), "slower")
    assert values(stored.snapshot()) == [("a", 1, 2.0)]
    found = raw(stored).sort("_sequence")
    assert found["_sequence"].to_list() == [0, 1]
    assert found["_known_at"].to_physical().to_list() == [100, 101]


def test_a_commit_that_comes_while_a_snapshot_is_taken_is_in_it_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = history_at(tmp_path)
    with clock_at(100):
        stored.append(rows(("a", 1, 1.0)), source(), "1")
    table = History._table

    def meanwhile(self: History) -> Any:
        found = table(self)
        monkeypatch.setattr(History, "_table", table)
        with clock_at(200):
            stored.append(rows(("a", 2, 2.0)), source(), "2")
        return found

    monkeypatch.setattr(History, "_table", meanwhile)
    snapshot = stored.snapshot()
    assert (snapshot.as_of.known_at, values(snapshot)) == (micros(100), [("a", 1, 1.0)])
    assert values(stored.snapshot(snapshot.as_of)) == values(snapshot)


# ---------------------------------------------------------------- what is damaged


def _logs(folder: Path) -> list[Path]:
    return sorted((folder / "_delta_log").glob("*.json"))


def _rows(folder: Path) -> Path:
    return next(folder.glob("*/*.parquet"))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a truncated log": lambda folder: _logs(folder)[-1].write_bytes(_logs(folder)[-1].read_bytes()[:100]),
    "an empty log": lambda folder: _logs(folder)[-1].write_bytes(b""),
    "a log of something else": lambda folder: _logs(folder)[-1].write_bytes(b"\xff\xfe"),
    "a log without its beginning": lambda folder: _logs(folder)[0].unlink(),
    "no log": lambda folder: shutil.rmtree(folder / "_delta_log"),
}
DAMAGED_ROWS: dict[str, Callable[[Path], object]] = {
    "a missing file": lambda folder: _rows(folder).unlink(),
    "a truncated file": lambda folder: _rows(folder).write_bytes(_rows(folder).read_bytes()[:200]),
    "a file of something else": lambda folder: pl.DataFrame({"q": [1]}).write_parquet(_rows(folder)),
}


@pytest.mark.parametrize("what", [*DAMAGES, *DAMAGED_ROWS])
def test_a_damaged_history_is_said_with_its_folder_and_nothing_is_begun_anew(
    what: str, tmp_path: Path
) -> None:
    stored = history_at(tmp_path)
    stored.append(rows(("a", 1, 1.0)), source(), "1")
    (DAMAGES | DAMAGED_ROWS)[what](stored.folder)
    asks: list[Callable[[], object]] = [
        lambda: read(stored.snapshot()),
        lambda: history.changed_since(stored.snapshot(), micros(0)),
    ]
    if what in DAMAGES:
        asks += [
            lambda: stored.newest,
            lambda: stored.maintain(vacuum_hours=1),
            lambda: stored.append(rows(("a", 2, 2.0)), source(), "2"),
        ]
    for ask in asks:
        with pytest.raises(StorageError) as told:
            ask()
        assert str(told.value).startswith(f"the history {stored.folder} cannot be read: ")
        assert "\n" not in str(told.value)


def test_keys_that_are_equal_lie_in_one_bucket_and_no_hash_ever_changes() -> None:
    keys = pl.DataFrame({"k": [0.0, -0.0, 1.5, -2.0, None, float("nan")]})
    found = buckets_of(keys, ["k"]).to_list()
    assert found[0] == found[1]
    assert found == [2, 2, 10, 1, 0, 9]
    texts = pl.DataFrame({"k": ["a", "-0.0", "0.0"], "n": [1, 0, None]})
    assert buckets_of(texts, ["k", "n"]).to_list() == [1, 2, 1]
