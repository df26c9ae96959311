"""The audit record: what was written stays, and whoever changes it is seen."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from mlops_ray import audit
from mlops_ray.errors import StorageError
from mlops_ray.storage import Storage


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
