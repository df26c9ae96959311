"""The audit record: what was written stays, and whoever changes it is seen."""

import contextlib
import errno
import fcntl
import io
import multiprocessing
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

import orjson
import pytest

from mlops_ray import audit
from mlops_ray.errors import StorageError
from mlops_ray.storage import Storage

from .conftest import unrecordable


def written(storage: Storage, count: int = 5) -> Path:
    for number in range(count):
        audit.append(storage, "tested", "a test", {"step": number})
    (path,) = storage.root.joinpath("audit").glob("*.jsonl")
    return path


def test_what_was_done_is_read_back_in_its_order(storage: Storage) -> None:
    written(storage)
    found = list(audit.entries(storage))
    assert [(each["number"], each["what"], each["by"], each["about"]) for each in found] == [
        (number + 1, "tested", "a test", {"step": number}) for number in range(5)
    ]
    assert audit.verify(storage) == 5


def _changed(lines: list[bytes]) -> list[bytes]:
    return [line.replace(b'"step":2', b'"step":9') for line in lines]


def _forged(lines: list[bytes]) -> list[bytes]:
    """The last line made anew, with a digest that fits it."""
    entry = orjson.loads(lines[-1])
    entry["about"] = {"step": 9}
    sealed = {key: value for key, value in entry.items() if key != "digest"}
    return [*lines[:-1], orjson.dumps(sealed | {"digest": audit.digest(sealed)})]


TAMPERING: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "a changed line": (_changed, "entry 3 of the audit record was changed"),
    "a line less": (lambda lines: lines[:2] + lines[3:], "a gap before entry 4"),
    "two that changed places": (lambda lines: [lines[1], lines[0], *lines[2:]], "a gap before entry 2"),
    "a record cut short": (lambda lines: lines[:3], "cut short: 3 entries of 5"),
    "no record at all": (lambda lines: [], "cut short: 0 entries of 5"),
    "a last line made anew": (_forged, "entry 5 of the audit record is another than it was"),
    "no line": (lambda lines: [*lines[:2], b"{"], "is no entry of the audit record"),
    "what is about nothing": (
        lambda lines: [lines[0].replace(b'{"step":0}', b"[]"), *lines[1:]],
        "is no entry of the audit record",
    ),
    "a name that is there twice": (
        lambda lines: [lines[0].replace(b'"by":', b'"by":"mallory","by":'), *lines[1:]],
        "entry 1 of the audit record was changed",
    ),
    "another text of the same": (
        lambda lines: [lines[0].replace(b"{", b"{  ", 1), *lines[1:]],
        "entry 1 of the audit record was changed",
    ),
}


@pytest.mark.parametrize("how", TAMPERING)
def test_whoever_changes_takes_away_or_moves_lines_is_seen_also_after_more_was_written(
    storage: Storage, how: str
) -> None:
    change, said = TAMPERING[how]
    path = written(storage)
    path.write_bytes(b"".join(line + b"\n" for line in change(path.read_bytes().splitlines())))
    with pytest.raises(StorageError, match=said):
        audit.verify(storage)
    with pytest.raises(StorageError):
        audit.append(storage, "tested", "a test", {"step": 6})
        audit.verify(storage)


def test_a_writer_that_was_killed_costs_nothing_but_its_own_line(storage: Storage) -> None:
    path = written(storage)
    head = storage.read_json("audit", "head.json")
    audit.append(storage, "tested", "a test", {"step": 5})
    # Killed before the head was written, and another one within its line.
    storage.write_json(head, "audit", "head.json")
    with path.open("ab") as lines:
        lines.write(b'{"number": 7, "at"')
    audit.append(storage, "tested", "a test", {"step": 6})
    assert audit.verify(storage) == 7


def test_a_long_record_has_several_segments_and_one_chain(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "SEGMENT_BYTES", 500)
    for number in range(20):
        audit.append(storage, "tested", "a test", {"step": number})
    assert len(list(storage.root.joinpath("audit").glob("*.jsonl"))) > 3
    assert audit.verify(storage) == 20


def test_a_text_behind_the_last_line_of_a_segment_is_seen(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "SEGMENT_BYTES", 500)
    written(storage, 1)
    path = storage.path("audit", "000001.jsonl")
    for _ in range(5):
        audit.append(storage, "tested", "a test", {})
    with path.open("ab") as lines:
        lines.write(b'{"by": "mallory"}')
    with pytest.raises(StorageError, match=r"000001.jsonl is damaged: .*mallory.* is no entry"):
        audit.verify(storage)


def test_who_did_it_is_who_the_process_belongs_to_whatever_its_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "mallory")
    assert "mallory" not in audit.who()

    def nameless(_: int) -> NoReturn:
        raise KeyError

    # As in a container that runs by a number.
    monkeypatch.setattr(pwd, "getpwuid", nameless)
    assert audit.who().startswith(f"{os.getuid()} at ")


def _write(root: str) -> None:
    for number in range(20):
        audit.append(Storage.open(root), "tested", "a test", {"step": number})


def test_processes_that_write_at_once_lose_no_line(storage: Storage) -> None:
    writers = [multiprocessing.Process(target=_write, args=(str(storage.root),)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert audit.verify(storage) == 60


# ------------------------------------------------------------ a place outside


@pytest.fixture
def heads(storage: Storage, tmp_path: Path) -> Path:
    """A file outside the storage that hears of every line."""
    path = tmp_path / "outside" / "heads.jsonl"
    path.parent.mkdir()
    audit.settle(storage, "small", str(path))
    return path


def test_a_place_outside_hears_of_every_line_from_that_on_which_names_it(
    storage: Storage, heads: Path
) -> None:
    written(storage)
    told = [orjson.loads(line) for line in heads.read_bytes().splitlines()]
    found = list(audit.entries(storage))
    assert told == [{key: entry[key] for key in ("number", "digest", "at")} for entry in found]
    assert found[0]["about"] == {"project": "small", "before": None, "after": str(heads)}
    audit.settle(storage, "small", str(heads))
    assert audit.verify(storage, str(heads)) == 6


REPLACED = {
    "as long": (6, "entry 1 of the audit record is another than it was, as "),
    "longer": (9, "entry 1 of the audit record is another than it was, as "),
    "shorter": (3, "entry 1 of the audit record is another than it was, as "),
    "gone": (0, "cut short: 0 entries of 6 are there, as "),
}


@pytest.mark.parametrize("how", REPLACED)
def test_a_record_that_was_replaced_as_a_whole_is_seen_by_the_place_outside(
    storage: Storage, heads: Path, tmp_path: Path, how: str
) -> None:
    length, said = REPLACED[how]
    written(storage)
    other = Storage.open(str(tmp_path / "other"))
    for _ in range(length):
        audit.append(other, "tested", "a test", {"step": 9})
    shutil.rmtree(storage.root / "audit")
    if length:
        shutil.copytree(other.root / "audit", storage.root / "audit")
    assert audit.verify(storage) == length
    with pytest.raises(StorageError, match=f"{said}{heads} tells"):
        audit.verify(storage, str(heads))
    # What the next command does.
    audit.settle(storage, "small", str(heads))
    assert audit.verify(storage) == length + 1
    with pytest.raises(StorageError, match="is another than it was, as "):
        audit.verify(storage, str(heads))


def test_where_a_place_outside_cannot_be_reached_nothing_is_added(storage: Storage) -> None:
    before = unrecordable(storage)
    said = r"cannot be written: No such file or directory \(.*heads\); what it cannot tell is not done"
    with pytest.raises(StorageError, match=said):
        audit.require(storage)
    with pytest.raises(StorageError, match=said):
        audit.append(storage, "tested", "a test", {})
    assert audit.verify(storage) == 1
    assert not before.parent.exists()
    with pytest.raises(StorageError, match=r"heads \(audit.heads\) cannot be read: No such file"):
        audit.verify(storage, str(before))


def test_a_line_that_cannot_be_added_everywhere_is_added_nowhere(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    for project, place in zip("ab", heads, strict=True):
        audit.settle(storage, project, place)
    files = [*storage.root.joinpath("audit").glob("*.jsonl"), *map(Path, heads)]
    before, write = [file.read_bytes() for file in files], audit._write

    def full(file: IO[bytes], line: audit.Entry) -> None:
        """The last of the disks takes half a line."""
        if file.name != heads[1]:
            write(file, line)
            return
        file.write(b'{"number"')
        raise OSError(errno.ENOSPC, "No space left on device", file.name)

    monkeypatch.setattr(audit, "_write", full)
    with pytest.raises(
        StorageError, match=r"No space left on device \(.*b.jsonl\); what it cannot tell is not"
    ):
        audit.append(storage, "tested", "a test", {})
    assert [file.read_bytes() for file in files] == before
    monkeypatch.undo()
    audit.append(storage, "tested", "a test", {})
    assert [audit.verify(storage, place) for place in heads] == [3, 3]


class _AppendOnly(io.FileIO):
    """A file of which nothing can be taken back."""

    def truncate(self, size: int | None = None) -> NoReturn:
        raise PermissionError(errno.EPERM, "Operation not permitted", self.name)


@contextlib.contextmanager
def _append_only(place: str) -> Iterator[io.FileIO]:
    with _AppendOnly(place, "ab+") as file:
        yield file


def test_a_place_that_takes_nothing_back_hears_of_no_line_for_which_the_storage_has_no_room(
    storage: Storage, heads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(storage)
    before = heads.read_bytes()

    def full(**_: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(audit, "_outside", _append_only)
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "mkstemp", full)
        with pytest.raises(StorageError, match="No space left on device"):
            audit.append(storage, "tested", "a test", {})
    assert audit.verify(storage) == 6
    assert heads.read_bytes() == before
    audit.append(storage, "tested", "a test", {"step": 9})
    assert audit.verify(storage, str(heads)) == 7


def test_a_line_that_a_place_heard_of_and_does_not_take_back_stays_and_the_others_hear_of_it_next(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    for project, place in zip("ab", heads, strict=True):
        audit.settle(storage, project, place)
    write = audit._write

    def full(file: IO[bytes], line: audit.Entry) -> None:
        if file.name == heads[1]:
            raise OSError(errno.ENOSPC, "No space left on device", file.name)
        write(file, line)

    monkeypatch.setattr(audit, "_outside", _append_only)
    with monkeypatch.context() as patched:
        patched.setattr(audit, "_write", full)
        with pytest.raises(StorageError, match=r"No space left on device \(.*b.jsonl\)"):
            audit.append(storage, "tested", "a test", {})
    assert [audit.verify(storage, place) for place in heads] == [3, 3]
    audit.append(storage, "tested", "a test", {"step": 9})
    assert [audit.verify(storage, place) for place in heads] == [4, 4]


@pytest.mark.parametrize("covers_up", [True, False])
def test_lines_that_were_exchanged_while_a_place_was_told_of_none_are_seen(
    storage: Storage, heads: Path, covers_up: bool
) -> None:
    """Also where the next command finds that the place has to be named."""
    written(storage, 3)
    places, folder = storage.read_json("audit", "places.json"), storage.root / "audit"
    storage.write_json({}, "audit", "places.json")
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    for by, count in {"bob": 2, "mallory": 2}.items():
        for path, content in kept.items():
            path.write_bytes(content)
        for _ in range(count):
            audit.append(storage, "tested", by, {})
    if covers_up:
        storage.write_json(places, "audit", "places.json")
        audit.append(storage, "tested", "a test", {})
    else:
        audit.settle(storage, "small", str(heads))
    assert audit.verify(storage) == 7
    with pytest.raises(StorageError, match=r"\(audit.heads\) was not told of entry 5, and was of later ones"):
        audit.verify(storage, str(heads))


def test_a_place_that_is_left_hears_of_that_and_one_that_is_named_again_hears_first_of_the_line_that_says_so(
    storage: Storage, heads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit.settle(storage, "small", None)
    written(storage, 2)
    # The last one before was killed within.
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(audit, "_tell", _killed)
        audit.append(storage, "tested", "a test", {})
    audit.settle(storage, "small", str(heads))
    audit.append(storage, "tested", "a test", {})
    assert [orjson.loads(line)["number"] for line in heads.read_bytes().splitlines()] == [1, 2, 6, 7]
    assert audit.verify(storage, str(heads)) == 7


def test_who_is_killed_as_a_place_is_named_or_left_leaves_no_line_unheard(
    storage: Storage, heads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (None, str(heads)):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(audit, "_tell", _killed)
            audit.settle(storage, "small", place)
        audit.append(storage, "tested", "a test", {})
        audit.settle(storage, "small", place)
    # The second of each pair says nothing: what was begun was ended by who came next.
    assert [entry["about"].get("after", 0) for entry in audit.entries(storage)] == [
        *(str(heads), None, 0),
        *(str(heads), 0),
    ]
    assert audit.verify(storage, str(heads)) == 5


def test_a_place_that_is_gone_can_be_left_and_named_again_shows_that_it_missed_lines(
    storage: Storage, heads: Path, tmp_path: Path
) -> None:
    away = heads.parent.rename(tmp_path / "away")
    with pytest.raises(StorageError, match="cannot be written: No such file"):
        audit.append(storage, "tested", "a test", {})
    audit.settle(storage, "small", None)
    away.rename(heads.parent)
    audit.settle(storage, "small", str(heads))
    with pytest.raises(StorageError, match="was not told of entry 2, and was of later ones"):
        audit.verify(storage, str(heads))


def _killed(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def test_nobody_adds_a_line_of_which_the_wrong_place_hears(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = str(tmp_path / "first.jsonl"), str(tmp_path / "second.jsonl")
    lock, tell = audit._locked, audit._tell

    def another_before(path: Path) -> IO[str]:
        monkeypatch.setattr(audit, "_locked", lock)
        audit.settle(storage, "small", first)
        return lock(path)

    monkeypatch.setattr(audit, "_locked", another_before)
    audit.append(storage, "tested", "a test", {})
    assert len(Path(first).read_bytes().splitlines()) == 2

    def another_within(*told: Any) -> None:
        with pytest.raises(StorageError, match="another process has held it"):
            audit.append(storage, "tested", "a test", {})
        tell(*told)

    monkeypatch.setattr(audit, "WAIT_S", 0.0)
    monkeypatch.setattr(audit, "_tell", another_within)
    audit.settle(storage, "small", second)
    assert audit.verify(storage, second) == 3


def test_of_two_that_name_a_place_at_once_one_adds_the_line(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, lock = str(tmp_path / "heads.jsonl"), audit._locked

    def another_before(path: Path) -> IO[str]:
        monkeypatch.setattr(audit, "_locked", lock)
        audit.settle(storage, "small", place)
        return lock(path)

    monkeypatch.setattr(audit, "_locked", another_before)
    audit.settle(storage, "small", place)
    assert audit.verify(storage, place) == 1


def test_nobody_waits_for_ever_for_who_holds_the_record(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(storage)
    monkeypatch.setattr(audit, "WAIT_S", 0.0)
    with storage.path("audit", ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match=r"another process has held it for 0 s \(.*\.lock\)"):
            audit.append(storage, "tested", "a test", {})
    assert audit.append(storage, "tested", "a test", {})["number"] == 6


def test_that_the_note_of_its_length_is_gone_is_seen(storage: Storage) -> None:
    written(storage)
    storage.path("audit", "head.json").unlink()
    with pytest.raises(StorageError, match=r"audit/head.json is gone, which says how long"):
        audit.verify(storage)


HEADS = [{"number": 3}, {"number": "3", "digest": "a"}, [1], 7]


@pytest.mark.parametrize(
    ("file", "said"),
    [*(("head.json", said) for said in HEADS), *(("places.json", said) for said in ({"small": 3}, [1], 7))],
)
def test_a_note_that_nobody_of_ours_can_have_written_is_named(
    storage: Storage, file: str, said: object
) -> None:
    written(storage)
    storage.write_json(said, "audit", file)
    does = audit.verify if file == "head.json" else audit.require
    with pytest.raises(StorageError, match=f"audit/{file} is damaged: .* put a copy back"):
        does(storage)


def test_who_may_but_read_the_record_can_verify_it(
    storage: Storage, heads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(storage)

    def refused(*_: object, **__: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(audit, "locked", refused)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StorageError, match="is not writable"):
        Storage.open(str(storage.root))
    assert audit.verify(Storage.open(str(storage.root), reads=True), str(heads)) == 6
    with pytest.raises(StorageError, match="cannot be written: Permission denied"):
        audit.append(storage, "tested", "a test", {})


def test_a_writer_that_was_killed_may_owe_the_place_outside_its_own_line_and_no_more(
    storage: Storage, heads: Path
) -> None:
    written(storage)
    *lines, last = heads.read_bytes().splitlines(keepends=True)
    heads.write_bytes(b"".join(lines) + last[:20])
    head = storage.read_json("audit", "head.json")
    storage.write_json({"number": 5, "digest": orjson.loads(lines[-1])["digest"]}, "audit", "head.json")
    assert audit.verify(storage, str(heads)) == 6
    audit.append(storage, "tested", "a test", {"step": 6})
    assert audit.verify(storage, str(heads)) == 7
    storage.write_json(head, "audit", "head.json")
    heads.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(StorageError, match="was not told of the entries from 5 on"):
        audit.verify(storage, str(heads))


def test_writers_that_are_killed_one_after_the_other_take_nothing_from_what_is_known_of_the_record(
    storage: Storage, heads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell, told = audit._tell, set[int]()

    def killed(storage: Storage, entry: audit.Entry, outside: Iterable[IO[bytes]]) -> None:
        """As its own line is to be told of, for the first time; whoever comes next makes up for it."""
        if entry["number"] not in told:
            told.add(entry["number"])
            raise KeyboardInterrupt
        tell(storage, entry, outside)

    whole = audit.verify(storage, str(heads))
    with monkeypatch.context() as patched:
        patched.setattr(audit, "_tell", killed)
        for number in range(whole + 1, whole + 4):
            with pytest.raises(KeyboardInterrupt):
                audit.append(storage, "tested", "a test", {})
            assert audit.verify(storage) == audit.verify(storage, str(heads)) == number
    assert audit.append(storage, "tested", "a test", {})["number"] == audit.verify(storage, str(heads))


def test_projects_of_one_storage_name_a_place_each_and_that_one_has_none_any_more_is_a_line(
    storage: Storage, heads: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    audit.settle(storage, "large", str(other))
    audit.append(storage, "tested", "a test", {})
    assert audit.verify(storage, str(other)) == audit.verify(storage, str(heads)) == 3
    audit.settle(storage, "small", None)
    audit.settle(storage, "small", None)
    *_, last = audit.entries(storage)
    assert (last["number"], last["by"]) == (4, audit.who())
    assert last["about"] == {"project": "small", "before": str(heads), "after": None}
    assert audit.verify(storage, str(heads)) == audit.verify(storage, str(other)) == 4


# ------------------------------------------------------------ the commands

PROJECT = """
project: small
storage: {storage}
sources:
  meter: {{path: rows.csv, entity: site, event_time: {{column: time}}, columns: {{site: {{type: category}}}}}}
features: {{row: {{columns: [site]}}}}
target: {{source: meter, expr: site, task: classification}}
audit: {{heads: {heads}}}
"""
#: As the entry point does, where nothing of Ray can be imported.
OFFLINE = "import sys; sys.modules['ray'] = None; from mlops_ray.cli import main; main()"


def test_the_commands_tell_offline_whether_it_is_whole_and_what_it_says(
    storage: Storage, tmp_path: Path
) -> None:
    file, heads = tmp_path / "project.yaml", tmp_path / "heads.jsonl"
    file.write_text(PROJECT.format(storage=storage.root, heads=heads))

    def command(group: str, name: str, *arguments: str) -> tuple[int, str, str]:
        line = [sys.executable, "-c", OFFLINE, group, name, *arguments, str(file)]
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
        return done.returncode, done.stdout, done.stderr

    # Who but looks at it changes nothing; any other command has the place outside hear of it.
    assert "heads.jsonl (audit.heads) cannot be read: No such file" in command("audit", "verify")[2]
    assert command("key", "add", "web", "--role", "predict")[0] == 0
    written(storage)
    *_, last = found = list(audit.entries(storage))
    status, out, err = command("audit", "verify", "--json")
    assert status == 0, err
    assert orjson.loads(out) == {"entries": 7, "head": last["digest"], "compared_with": str(heads)}
    assert orjson.loads(command("audit", "list", "--json")[1]) == found
    assert orjson.loads(command("audit", "list", "--json", "--what", "key")[1]) == [found[1]]
    assert orjson.loads(command("audit", "list", "--json", "--since", last["at"])[1]) == [last]
    assert '"name": "web"' in command("audit", "list")[1]
    (path,) = storage.root.joinpath("audit").glob("*.jsonl")
    path.write_bytes(path.read_bytes().replace(b'"step":2', b'"step":9'))
    status, out, err = command("audit", "verify")
    assert (status, out, err) == (
        1,
        "",
        "error: entry 5 of the audit record was changed (audit/000001.jsonl)\n",
    )
