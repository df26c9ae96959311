"""State is written whole or not at all."""

import sys
from pathlib import Path

import pytest

from mlops_ray import cli
from mlops_ray import storage as storages
from mlops_ray.errors import StorageError
from mlops_ray.storage import FORMAT, MARK, Storage, replacing
from tests.conftest import EXAMPLE

Capsys = pytest.CaptureFixture[str]


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


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_storage_of_a_newer_format_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    Storage.open(str(tmp_path)).write_json({"format": FORMAT + 1}, MARK)
    before = contents(tmp_path)
    said = (
        rf"is of format {FORMAT + 1}, of a newer version of mlops_ray; .* reads {FORMAT}: update it, or name"
    )
    with pytest.raises(StorageError, match=said):
        Storage.open(str(tmp_path))
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("status", ()),
        ("models", ()),
        ("down", ()),
        ("ingest", ()),
        ("predict", ("--input", "x", "--output", "y")),
    ],
)
def test_no_command_touches_a_storage_of_a_newer_format(
    command: str, more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    file = tmp_path / "project.yaml"
    file.write_text(EXAMPLE.read_text())
    Storage.open(str(tmp_path / ".mlops")).write_json({"format": FORMAT + 1}, MARK)
    before = contents(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mlops-ray", command, str(file), *more])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert "of a newer version of mlops_ray" in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("marked", [True, False])
def test_an_older_storage_is_read_and_refused_by_its_own_version_from_then_on(
    marked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = Storage.open(str(tmp_path))
    older.write_json({"n": 1}, "a.json")
    if not marked:
        # Nobody wrote a format down before there was one.
        (tmp_path / MARK).unlink()
    monkeypatch.setattr(storages, "FORMAT", FORMAT + 1)
    assert Storage.open(str(tmp_path)).read_json("a.json") == {"n": 1}
    monkeypatch.undo()
    with pytest.raises(StorageError, match="of a newer version"):
        Storage.open(str(tmp_path))
    # Who had opened it before, as a service that runs, is not told.
    older.write_json({"n": 2}, "a.json")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": "1"}', '{"format": true}'])
def test_a_damaged_format_is_an_error_that_names_the_file(text: str, tmp_path: Path) -> None:
    (tmp_path / MARK).write_text(text)
    with pytest.raises(StorageError, match=r"format\.json is damaged"):
        Storage.open(str(tmp_path))
