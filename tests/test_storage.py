"""State is written whole or not at all."""

from pathlib import Path

import pytest

from mlops_ray.errors import StorageError
from mlops_ray.storage import Storage, replacing


def test_a_reader_sees_the_old_or_the_new_document(storage: Storage) -> None:
    assert storage.read_json("a", "b.json") is None
    storage.write_json({"n": 1}, "a", "b.json")
    with pytest.raises(KeyboardInterrupt), replacing(storage.path("a", "b.json")) as new:
        new.write_text('{"n": ')
        raise KeyboardInterrupt
    assert storage.read_json("a", "b.json") == {"n": 1}
    assert [path.name for path in storage.path("a", "b.json").parent.iterdir()] == ["b.json"]


def test_a_damaged_document_is_an_error_that_names_the_file(storage: Storage) -> None:
    storage.path("x.json").write_text("{")
    with pytest.raises(StorageError, match=r"x\.json is damaged"):
        storage.read_json("x.json")


@pytest.mark.parametrize("name", ["a%20b", "a[1]"])
def test_a_path_that_delta_tables_do_not_bear_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError, match="which Delta tables do not bear"):
        Storage.open(str(tmp_path / name))
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot make the storage folder"):
        Storage.open(str(tmp_path / "file" / "below"))
    with pytest.raises(StorageError, match="object stores are not supported yet"):
        Storage.open("s3://bucket/prefix")


def test_its_size_is_that_of_all_its_files(storage: Storage) -> None:
    before = storage.size()
    storage.path("a", "b", "one").write_bytes(b"x" * 1000)
    storage.path("two").write_bytes(b"x" * 24)
    # What it leads to elsewhere is not in it.
    storage.path("link").symlink_to("/proc")
    assert storage.size() - before == 1024
