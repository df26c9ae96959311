"""Rows of a key leave the prediction log and the labels, in whatever file they stand; others stay."""

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mlops_ray.data import erasure, labels, prediction_log
from mlops_ray.data.erased import Erased
from mlops_ray.errors import DataError, StorageError
from mlops_ray.storage import Storage

MODEL = "m"
KEYS = [{"site": "theirs"}]
DAY = "date=2026-01-01"


def log(storage: Storage, name: str, machine: str = prediction_log.FOLDER, **columns: list[object]) -> Path:
    """A file of the log with these columns, the request's by their names there."""
    names = {"id": "request_id", "row": "row"}
    rows = pl.DataFrame(
        {names.get(key, prediction_log.ASKED + key): values for key, values in columns.items()}
    )
    path = storage.path(machine, MODEL, DAY, f"{name}.parquet")
    rows.with_columns(pl.col("row").cast(pl.Int32), prediction=pl.lit(1.0)).write_parquet(path)
    return path


def ids(path: Path) -> list[str]:
    return pl.read_parquet(path)["request_id"].to_list()


def test_a_row_that_says_whose_it_is_is_told_from_another_request_of_the_same_name(storage: Storage) -> None:
    seen = log(storage, "a", id=["x", "x", "y"], row=[0, 0, 0], site=["theirs", "other", "other"])
    apart = log(storage, "a", prediction_log.MACHINE, id=["x", "x", "y"], row=[0, 0, 0], age=[1, 2, 3])
    labels.write(storage, MODEL, pl.DataFrame({"request_id": ["x", "y"], "row": [0, 0], "label": [1.0, 2.0]}))
    assert erasure.found(storage, MODEL, KEYS) == (1, 1)
    assert erasure.erase(storage, MODEL, KEYS) == (1, 1)
    assert pl.read_parquet(seen).select("request_id", "request.site").rows() == [
        ("x", "other"),
        ("y", "other"),
    ]
    assert ids(apart) == ["y"], "of what only machines may read nobody knows which of the two it is"
    (kept,) = labels.new(storage, MODEL)
    assert kept["request_id"].to_list() == ["y"]


def test_a_key_of_two_columns_is_found_though_one_is_for_machines_alone(storage: Storage) -> None:
    seen = log(storage, "a", id=["x", "y", "z"], row=[0, 0, 0], site=["theirs", "theirs", "other"])
    apart = log(storage, "a", prediction_log.MACHINE, id=["x", "y", "z"], row=[0, 0, 0], floor=[1, 2, 1])
    assert erasure.erase(storage, MODEL, [{"site": "theirs", "floor": "1"}]) == (1, 0)
    assert ids(seen) == ids(apart) == ["y", "z"]


def test_files_that_were_joined_and_those_that_they_replace_are_both_looked_at(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [log(storage, name, id=[name, f"{name}2"], row=[0, 0], site=["theirs", name]) for name in "ab"]

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", killed)
        prediction_log.compact(storage, MODEL, older_than_s=-1)
    assert erasure.erase(storage, MODEL, KEYS).predictions == 4
    assert [ids(path) for path in small] == [["a2"], ["b2"]]
    assert prediction_log.read(storage, MODEL).collect()["request_id"].sort().to_list() == ["a2", "b2"]
    assert len(prediction_log.files(storage, MODEL)) == 1, "it still says whose place it took"


def test_a_file_without_a_row_left_goes_and_so_does_what_a_killed_writer_had_begun(storage: Storage) -> None:
    path = log(storage, "a", id=["x"], row=[0], site=["theirs"])
    old, new = path.with_name(".a.parquet.old"), path.with_name(".a.parquet.new")
    for begun in (old, new):
        begun.write_text("theirs")
    os.utime(old, (time.time() - 2 * erasure.LEFT_S,) * 2)
    erasure.erase(storage, MODEL, KEYS)
    assert [each.name for each in path.parent.iterdir()] == [new.name]


def test_who_may_read_a_file_stays(storage: Storage) -> None:
    rows = pl.DataFrame({"site": ["theirs", "other"], "label": [1.0, 2.0]})
    labels.write(storage, MODEL, rows)
    assert erasure.erase(storage, MODEL, KEYS) == (0, 1)
    (file,) = (storage.root / labels.FOLDER / MODEL).rglob("*.parquet")
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_run_that_was_killed_between_two_parts_of_a_row_is_gone_on_with(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the key is for machines alone, the other part and the label do not say whose they are."""
    seen = log(storage, "a", id=["x", "y"], row=[0, 0])
    apart = log(storage, "a", prediction_log.MACHINE, id=["x", "y"], row=[0, 0], site=["theirs", "other"])
    original = erasure.take_out

    def dies(path: Path, theirs: pl.Expr) -> int:
        original(path, theirs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(erasure, "take_out", dies)
        erasure.erase(storage, MODEL, KEYS)
    assert (ids(apart), ids(seen)) == (["y"], ["x", "y"])
    (note,) = (storage.root / prediction_log.FOLDER / MODEL).glob("erasing*")
    assert note.stat().st_mode & 0o777 == 0o600
    assert erasure.found(storage, MODEL, [{"site": "other"}]) == (1, 0)
    assert erasure.erase(storage, MODEL, KEYS) == (1, 0)
    assert ids(apart) == ids(seen) == ["y"]
    assert not note.exists()


def test_a_model_that_never_answered_has_nothing_and_is_not_made(storage: Storage) -> None:
    assert erasure.erase(storage, MODEL, KEYS) == erasure.found(storage, MODEL, KEYS) == (0, 0)
    assert [path.name for path in storage.root.iterdir()] == ["format.json"]


def test_nobody_writes_files_anew_while_others_do(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one has read, and the other erased meanwhile, would come back."""
    held = []

    def watched(original: Callable[..., Any]) -> Callable[..., Any]:
        def looks(*given: Any, **named: Any) -> Any:
            with storage.path(prediction_log.FOLDER, MODEL, prediction_log.LOCK).open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    held.append(original.__name__)
            return original(*given, **named)

        return looks

    for owner, name in ((prediction_log, "_join"), (labels, "_of_day"), (erasure, "take_out")):
        monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
    log(storage, "a", id=["x", "y"], row=[0, 0], site=["theirs", "other"])
    day = storage.path(labels.FOLDER, MODEL, DAY, "a.parquet")
    pl.DataFrame({"site": ["other"], "label": [1.0]}).write_parquet(day)
    prediction_log.compact(storage, MODEL)
    labels.compact(storage, MODEL)
    erasure.erase(storage, MODEL, KEYS)
    assert sorted(set(held)) == ["_join", "_of_day", "take_out"]


# ---------------------------------------------------------------- who is kept out


def test_rows_of_erased_keys_are_told_by_a_hash_with_a_salt_of_its_own(tmp_path: Path) -> None:
    rows = pl.DataFrame({"k": [1, 2, None, 1], "site": ["a", "b", "a", "b"], "x": [1.0, 2.0, 3.0, 4.0]})
    one, other = Erased.of(tmp_path, "one"), Erased.of(tmp_path, "other")
    assert one.without(rows).equals(rows)
    assert not one.path.exists()
    types = {"k": "number", "site": "text"}
    one.add({"k": "1", "site": "a"}, "why", types)
    one.add({"site": "a", "k": "1"}, "again", types)
    one.add({"k": "2"}, "why", types)
    assert one.without(rows)["x"].to_list() == [3.0, 4.0]
    assert one.without(rows.drop("site"))["x"].to_list() == [1.0, 3.0, 4.0], "a table without the column"
    assert (one.find({"k": "2"}) or {})["reason"] == "why"
    assert one.find({"k": "3"}) is None
    other.add({"k": "2"}, "why", types)
    assert one.hash({"k": "2"}) != other.hash({"k": "2"})
    assert len(one.path.read_text().split("hash")) == 3


@pytest.mark.parametrize("text", ["7", "7.0"])
def test_a_number_is_the_same_key_in_a_column_of_whole_numbers_and_in_one_of_others(
    text: str, tmp_path: Path
) -> None:
    erased = Erased.of(tmp_path, "s")
    erased.add({"k": text, "site": "a"}, "why", {"k": "number", "site": "text"})
    for rows in (pl.DataFrame({"k": [7, 8, None]}), pl.DataFrame({"k": [7.0, 7.5, None]})):
        rows = rows.with_columns(site=pl.lit("a"))
        assert erased.are_theirs(rows).to_list() == [True, False, False]
        assert rows.select(theirs=erasure.is_of({"k": text}))["theirs"].to_list() == [True, False, False]
    large = pl.DataFrame({"k": [2**53, 2**53 + 1]})
    assert large.select(theirs=erasure.is_of({"k": f"{2.0**53}"}))["theirs"].to_list() == [True, False]


def test_a_source_whose_columns_do_not_tell_erased_keys_is_refused_until_each_is_erased_by_others(
    tmp_path: Path,
) -> None:
    erased = Erased.of(tmp_path, "s")
    erased.require_told("s", {})
    erased.add({"k": "7", "site": "a"}, "request 17", {"k": "text", "site": "text"})
    was, renamed = {"k": "text", "site": "text"}, {"key": "number", "site": "text"}
    for types in (renamed, {"site": "text"}, was | {"k": "number"}):
        with pytest.raises(
            DataError, match=r"by which that was done \(k, site\).*1 erased .*request 17"
        ) as told:
            erased.require_told("s", types)
        assert "request 17" not in str(told.value.without_data())
    erased.require_told("s", was)
    erased.add({"key": "8", "site": "a"}, "another", renamed)
    with pytest.raises(DataError, match="of 1 erased keys"):
        erased.require_told("s", renamed)
    erased.add({"site": "a", "key": "7"}, "the same", renamed)
    erased.require_told("s", renamed)
    erased.add({"k": "7", "site": "a"}, "of another type", was | {"k": "number"})
    erased.require_told("s", was | {"k": "number"} | {"key": "number"})
    with pytest.raises(DataError, match=r"that was done \(key, site\)"):
        erased.require_told("s", was)


def test_where_it_cannot_be_read_whose_rows_were_erased_nothing_is_let_in(tmp_path: Path) -> None:
    erased = Erased.of(tmp_path, "s")
    erased.add({"k": "1"}, "why", {"k": "number"})
    erased.path.write_text("{}")
    with pytest.raises(StorageError, match="says whose rows were erased, is damaged; restore it"):
        erased.without(pl.DataFrame({"k": [1]}))
