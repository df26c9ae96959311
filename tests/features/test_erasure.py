"""What is erased from a history or an online store is gone to the last byte; all else answers as before."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable

from mlops_ray.config import Source
from mlops_ray.data.erased import Erased
from mlops_ray.data.erasure import is_of
from mlops_ray.errors import DataError, StorageError, UsageError
from mlops_ray.features import erasure, history
from mlops_ray.features.definitions import Stored
from mlops_ray.features.erasure import Whose
from mlops_ray.features.history import History
from mlops_ray.features.materialize import materialize
from mlops_ray.features.online import OnlineStore
from mlops_ray.features.shelves import SqliteShelf, Write, open_shelf, sealed
from mlops_ray.features.store import FeatureStore
from tests.security.canaries import found_in

from .cases import clock_at, micros
from .test_dataset import opened
from .test_history import history_at, raw, rows, source, values
from .test_online import NOON, Growing, asked, at, feature_set

WHO = "CANARYann"
KEY = {"k": WHO}


def ours(stored: History) -> pl.DataFrame:
    """All rows of others, as they lie in the files."""
    return raw(stored).filter(pl.col("k") != WHO).sort("_sequence", "k")


@pytest.fixture
def stored(tmp_path: Path) -> History:
    """Three commits, each with a row of theirs, and of others in the same buckets."""
    made = history_at(tmp_path)
    for number in range(3):
        others = [(f"k{other}", number, float(other)) for other in range(40)]
        with clock_at(100 * (number + 1)):
            made.append(rows((WHO, number, 87_654.25), *others), source(), str(number))
    return made


def test_no_byte_of_a_key_stays_in_the_folder_and_other_rows_are_the_same(stored: History) -> None:
    before, newest = ours(stored), stored.newest
    assert found_in(stored.folder, [WHO])
    assert stored.count(KEY) == 3
    assert stored.erase(KEY, "erased") == 3
    assert found_in(stored.folder, [WHO]) == set()
    assert ours(stored).equals(before)
    assert stored.count(KEY) == 0
    found = stored.newest
    assert newest is not None
    assert found is not None
    assert (found.committed_at, found.sequence, found.id) == (newest.committed_at, newest.sequence, "erased")


def test_a_log_that_says_between_which_values_rows_lay_is_forgotten(
    stored: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Delta writes the least and the greatest value of each column of files that it merges."""
    monkeypatch.setattr(history, "FILES_A_BUCKET", 0)
    stored.maintain()
    log = stored.folder / "_delta_log"
    assert found_in(log, [WHO]), "the control"
    assert found_in(stored.folder, [WHO]) - found_in(log, [WHO]), "and the files that were merged are there"
    stored.erase(KEY, "erased")
    assert found_in(stored.folder, [WHO]) == set()


def test_what_was_asked_of_an_earlier_commit_is_answered_for_all_others(stored: History) -> None:
    earlier = stored.snapshot(known_at=micros(200))
    before = [value for value in values(earlier) if value[0] != WHO]
    assert len(before) == 80
    stored.erase(KEY, "erased")
    assert values(stored.snapshot(earlier.as_of)) == before
    assert values(stored.snapshot(known_at=micros(200))) == before


def test_commits_go_on_behind_it_and_those_before_are_still_stored_once(stored: History) -> None:
    stored.erase(KEY, "erased")
    newest, count = stored.newest, raw(stored).height
    for number in range(3):
        assert stored.append(rows(("z", 0, 1.0)), source(), str(number)) == newest
    with clock_at(50):
        made = stored.append(rows(("z", 0, 1.0), ("y", 0, 1.0)), source(), "next")
    assert stored.commit == "next"
    assert made.sequence == 3 * 41 + 1
    assert raw(stored).height == count + 2
    stored.maintain(vacuum_hours=0)
    assert stored.commit == "next"
    # So many that Delta folds its log.
    for number in range(110):
        stored.append(rows(("z", number, 1.0)), source(), f"later {number}")
    assert stored.commit == "later 109"


def test_a_key_that_is_kept_out_is_never_stored(stored: History) -> None:
    stored.erased.add(KEY, "why", {"k": "text"})
    stored.erase(KEY, "erased")
    stored.append(rows((WHO, 9, 1.0), ("z", 9, 1.0)), source(), "again")
    assert found_in(stored.folder, [WHO]) == set()
    assert stored.snapshot().rows == 3 * 40 + 1


@pytest.mark.parametrize("who_is_first", ["the other", "the erasure"])
def test_rows_of_a_writer_who_began_before_do_not_come_back(
    who_is_first: str, stored: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever loses begins again: the erasure finds the new rows, and the writer who is kept out."""
    begun = DeltaTable.create_write_transaction
    more = rows((WHO, 9, 1.0), ("z", 9, 1.0))

    def meanwhile(self: DeltaTable, *given: Any, **named: Any) -> None:
        monkeypatch.setattr(DeltaTable, "create_write_transaction", begun)
        if who_is_first == "the other":
            stored.append(more, source(), "meanwhile")
        stored.erased.add(KEY, "why", {"k": "text"})
        if who_is_first == "the erasure":
            stored.erase(KEY, "erased")
        begun(self, *given, **named)

    monkeypatch.setattr(DeltaTable, "create_write_transaction", meanwhile)
    if who_is_first == "the other":
        assert stored.erase(KEY, "erased") == 4
    else:
        stored.append(more, source(), "meanwhile")
    assert found_in(stored.folder, [WHO]) == set()
    assert stored.snapshot().rows == 3 * 40 + 1
    assert not [path for path in stored.folder.rglob("*.parquet") if not pl.read_parquet(path).width]


def test_a_history_of_nobody_else_is_empty_and_takes_others_in(tmp_path: Path) -> None:
    stored = history_at(tmp_path)
    assert stored.erase(KEY, "of nothing") == 0
    stored.append(rows((WHO, 1, 1.0)), source(), "1")
    assert stored.erase(KEY, "erased") == 1
    assert stored.is_empty
    with pytest.raises(DataError, match="there is no history of 's' yet"):
        stored.snapshot()
    stored.append(rows(("a", 1, 1.0)), source(), "2")
    assert values(stored.snapshot()) == [("a", 1, 1.0)]


def test_a_history_that_cannot_be_read_is_not_half_erased(stored: History) -> None:
    next(iter(stored.folder.glob("*/*.parquet"))).write_bytes(b"none")
    with pytest.raises(StorageError, match="cannot be read"):
        stored.erase(KEY, "erased")


# ---------------------------------------------------------------- online


def test_an_online_record_is_gone_to_the_last_byte_and_others_are_answered(
    place: str, tmp_path: Path
) -> None:
    grown = Growing(tmp_path / "history")
    features = feature_set(grown.view, Stored("latest", "s", ("k",), "x", "latest"))
    store, table = OnlineStore(place), grown.view.table
    for hours in (0, 1, 2):
        many = [(f"k{number}", hours, 1.0 + number) for number in range(300)]
        materialize(store, features, {"s": grown.commit((WHO, hours, 87_654.25 + hours), *many)})
    wanted = pl.DataFrame({"k": [WHO]})
    assert store.held(table, ("k",), wanted) == store.held(table, (), wanted) == [f'["{WHO}"]']
    assert store.held(table, ("k",), pl.DataFrame({"k": ["k"]})) == []
    others = asked(*((f"k{number}", at(2)) for number in range(300)))
    before = store.read(features, others).features
    reader = OnlineStore(place)
    assert reader.about(grown.view) is not None, "who reads holds nobody up"
    store.erase(table, store.held(table, ("k",), wanted))
    assert store.held(table, ("k",), wanted) == []
    assert store.read(features, others).features.equals(before)
    gone = store.read(features, asked((WHO, at(2))))
    assert gone.features["latest"].to_list() == [None]
    assert gone.failures["rule"].to_list() == ["no_history"]
    assert found_in(tmp_path, [WHO]) <= found_in(tmp_path / "history", [WHO])
    reader.close()
    store.close()


def test_what_a_file_still_holds_of_an_earlier_and_larger_record_goes_too(tmp_path: Path) -> None:
    shelf = open_shelf(tmp_path / "online.db")
    assert isinstance(shelf, SqliteShelf)
    # Some builds of SQLite overwrite what is replaced, others do not.
    shelf._connection.execute("PRAGMA secure_delete=OFF").close()
    seen = None
    for stamp, content in ((1, b"CANARY" * 20_000), (2, b"small")):
        about = sealed(stamp, b"about")
        records = [('["ann"]', 0, sealed(stamp, content)), ('["bob"]', 0, sealed(stamp, b"other"))]
        assert shelf.put("t", Write(about, stamp, records, None, seen))
        seen = about
    assert any(b"CANARY" in each.read_bytes() for each in tmp_path.iterdir()), "the control"
    shelf.erase("t", ['["ann"]'])
    assert not any(b"CANARY" in each.read_bytes() for each in tmp_path.iterdir())
    assert list(shelf.keys("t")) == ['["bob"]']
    shelf.close()


# ---------------------------------------------------------------- training sets


PROJECT = """
project: p
sources:
  s:
    path: s.csv
    entity: k
    event_time: {column: t}
    columns: {k: {type: int}, x: {type: float}, y: {type: float}}
features:
  v: {source: s, features: {last: {latest: x}}}
target: {source: s, expr: y, task: regression}
"""


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    made = opened(tmp_path, PROJECT)
    given = pl.DataFrame({"k": [7, 8], "event_time": [NOON] * 2, "x": [1.0, 2.0], "y": [3.0, 4.0]})
    made.history("s").append(given, made.project.sources["s"], "first")
    return made


def whose(store: FeatureStore) -> Whose:
    return Whose.of("s", store.project.sources["s"], {"k": "7"})


def test_a_users_own_rows_that_write_the_key_otherwise_are_found_by_what_they_mean(
    store: FeatureStore,
) -> None:
    spine = pl.DataFrame({"k": ["07", "8"], "t": ["2026-01-08T12:00Z"] * 2})
    made = store.get(spine)
    old = made.manifest["spine"]
    (held,) = erasure.held_sets(store.storage, whose(store), None, frozenset())
    store.history("s").erase({"k": "7"}, "erased")
    erasure.supersede(store.storage, held, "hash", "why")
    erasure.remove_spines(store.storage)
    manifest = made.path.with_suffix(".json")
    document = json.loads(manifest.read_bytes())
    assert document["file"] == made.path.name, "a set keeps its name"
    (told,) = document["superseded"]
    assert (told["reason"], told["rows"], told["key"]) == ("why", 1, "hash")
    again = erasure.dataset.rebuild(manifest)
    assert again.frame["k"].to_list() == [8]
    assert again.digest == told["digest"] != made.manifest["digest"]
    assert told["spine"] != old
    assert pl.read_parquet(made.path.with_name(told["spine"]))["k"].to_list() == ["8"]


def test_a_rebuild_must_match_the_newest_hash(store: FeatureStore) -> None:
    made = store.get(pl.DataFrame({"k": ["7", "8"], "t": ["2026-01-08T12:00Z"] * 2}))
    (held,) = erasure.held_sets(store.storage, whose(store), None, frozenset())
    store.history("s").erase({"k": "7"}, "erased")
    erasure.supersede(store.storage, held, "hash", "why")
    manifest = made.path.with_suffix(".json")
    document = json.loads(manifest.read_bytes())
    document["superseded"][0]["digest"] = made.manifest["digest"]
    manifest.write_text(json.dumps(document))
    with pytest.raises(DataError, match=f"not {made.manifest['digest'][:12]}"):
        erasure.dataset.rebuild(manifest)


def test_a_set_that_cannot_be_computed_again_is_told_before_anything_is_erased(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("def same(y):\n    return y\n")
    monkeypatch.syspath_prepend(tmp_path)
    more = "features:\n  r: {on_request: {same: {function: {path: mine.same, inputs: [k]}, type: int}}}\n"
    other = opened(tmp_path, PROJECT.replace("features:\n", more))
    other.get(pl.DataFrame({"k": ["7"], "t": ["2026-01-08T12:00Z"]}))
    with pytest.raises(DataError, match="erase with the file of its project, or delete the set"):
        erasure.held_sets(store.storage, whose(store), None, frozenset())
    assert len(erasure.held_sets(store.storage, whose(store), None, other.project.functions)) == 1


def test_a_set_of_an_older_form_is_told_rather_than_passed_over(store: FeatureStore) -> None:
    store.storage.write_json({"project": "p"}, "datasets", "p-000000000000.json")
    with pytest.raises(DataError, match="names no format"):
        erasure.held_sets(store.storage, whose(store), None, frozenset())


def test_rows_of_a_time_when_a_key_was_text_are_named_and_those_of_other_numbers_found(
    store: FeatureStore, tmp_path: Path
) -> None:
    made = store.get(pl.DataFrame({"k": ["7"], "t": ["2026-01-08T12:00Z"]}))
    before = store.history("s")
    for kind, text, named in (
        ("float", "7.0", []),
        ("string", "7", [f"features/{before.folder.name}", f"datasets/{made.path.name}"]),
    ):
        anew = opened(tmp_path, PROJECT.replace("k: {type: int}", f"k: {{type: {kind}}}"))
        theirs = Whose.of("s", anew.project.sources["s"], {"k": text})
        every = erasure.histories(store.storage, anew.history("s").view)
        assert sum(each.count(theirs.key) for each in every) == 1
        assert erasure.keyed_otherwise(store.storage, theirs, every) == named


@pytest.mark.parametrize(
    ("kind", "text", "means"),
    [
        ("int", "07", "7"),
        ("float", "1", "1.0"),
        ("bool", "True", "true"),
        ("datetime", "2026-01-01T01:00+01:00", "2026-01-01 00:00:00.000000+00:00"),
        ("category", "ann", "ann"),
        ("int", "x", None),
        ("datetime", "yesterday", None),
        ("string", "", None),
    ],
)
def test_a_key_is_of_the_type_of_its_column(kind: str, text: str, means: str | None) -> None:
    declared = Source(path="x.csv", entity="k", time="none", columns={"k": {"type": kind}})  # type: ignore[arg-type]
    if means is None:
        with pytest.raises(UsageError, match=f"is not of the type {kind}"):
            Whose.of("s", declared, {"k": text})
    else:
        assert Whose.of("s", declared, {"k": text}).key == {"k": means}


@pytest.mark.parametrize("text", ["-0.0", "0"])
def test_the_two_zeros_are_one_key(text: str, tmp_path: Path) -> None:
    declared = Source(path="x.csv", entity="k", time="none", columns={"k": {"type": "float"}})  # type: ignore[arg-type]
    key = Whose.of("s", declared, {"k": text}).key
    kept_out = Erased.of(tmp_path, "s")
    kept_out.add(key, "why", {"k": "number"})
    rows = pl.DataFrame({"k": [0.0, -0.0, 1.0, None]})
    expected = [True, True, False, False]
    assert kept_out.are_theirs(rows).to_list() == expected
    assert rows.select(theirs=is_of(key))["theirs"].to_list() == expected
    rows.write_parquet(tmp_path / "rows.parquet")
    assert pl.scan_parquet(tmp_path / "rows.parquet").filter(is_of(key)).collect().height == 2
    words = pl.DataFrame({"k": ["0.0", "-0.0"]})
    assert words.select(theirs=is_of(key))["theirs"].to_list() == [True, False]


def test_rows_of_nobody_cannot_be_erased_by_whose_they_are() -> None:
    declared = Source(
        path="x.csv", event_time={"column": "t", "timezone": "UTC"}, columns={"x": {"type": "int"}}
    )  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the rows of 's' are of nobody: the source has no entity"):
        Whose.of("s", declared, {"x": "1"})
