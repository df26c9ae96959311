"""Journals are read once, from their end, as far back as is asked; half a line is none."""

from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest

from mlops_ray.monitoring import journal
from mlops_ray.monitoring.dashboard import history
from mlops_ray.monitoring.dashboard.history import CELLS, Grown, Hours
from mlops_ray.storage import Storage


class Line(NamedTuple):
    version: str
    since: float
    until: float
    said: str


class Read:
    """A journal that counts how often a line is parsed."""

    def __init__(self, path: Path) -> None:
        self.path, self.parsed = path, 0
        self.grown = Grown(path, self._parse)

    def _parse(self, line: bytes, place: tuple[int, int]) -> Line:
        entry = orjson.loads(line)
        self.parsed += 1
        return Line("1", entry["since"], entry["since"] + 1, entry["said"])

    def since(self, first: float) -> list[float]:
        return [line.since for line in self.grown.since(first)]


def line(since: int, said: str = "x" * 200) -> bytes:
    return orjson.dumps({"since": since, "said": said})


@pytest.fixture
def read(tmp_path: Path) -> Read:
    return Read(tmp_path / "looks.jsonl")


def add(read: Read, data: bytes) -> None:
    """As `journal.append` does: what ends a line comes with the next one."""
    with read.path.open("ab") as file:
        file.write((b"\n" if file.tell() else b"") + data)


def test_a_line_is_parsed_once_however_often_is_asked(read: Read) -> None:
    for at in range(3):
        add(read, line(at))
    assert [read.since(0) for _ in range(3)] == [[0, 1, 2]] * 3
    add(read, line(3))
    assert read.since(0) == [0, 1, 2, 3]
    assert read.parsed == 4


def test_only_as_much_of_the_end_is_read_as_is_asked_for(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "FIRST_BYTES", 1_000)
    read.path.write_bytes(b"\n".join(line(at) for at in range(1_000)))
    assert read.since(995.5) == [995, 996, 997, 998, 999]
    assert read.parsed < 20
    assert read.since(500.5) == list(range(500, 1_000))
    assert read.parsed < 1_000
    assert read.since(0) == list(range(1_000))
    assert read.parsed == 1_000


def test_a_line_longer_than_what_is_read_at_first_is_whole(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "FIRST_BYTES", 10)
    for at in range(5):
        add(read, line(at))
    assert read.since(0) == [0, 1, 2, 3, 4]


def test_half_a_line_waits_for_its_end(read: Read) -> None:
    add(read, line(0))
    whole = line(1)
    add(read, whole[:20])
    assert read.since(0) == [0]
    with read.path.open("ab") as file:
        file.write(whole[20:])
    assert read.since(0) == [0, 1]


def test_a_line_that_a_killed_writer_left_is_left_out(read: Read) -> None:
    add(read, line(0))
    add(read, line(1)[:20])
    assert read.since(0) == [0]
    add(read, line(2))
    assert read.since(0) == [0, 2]


def test_of_a_window_that_was_written_twice_the_later_line_counts(read: Read) -> None:
    add(read, line(0, "first"))
    add(read, line(0, "second"))
    assert [found.said for found in read.grown.since(0)] == ["second"]


def test_another_file_of_the_name_is_read_anew(read: Read) -> None:
    add(read, line(0))
    assert read.since(0) == [0]
    new = read.path.with_suffix(".new")
    new.write_bytes(line(7))
    new.replace(read.path)
    assert read.since(0) == [7]


def test_a_journal_that_is_not_there_has_no_lines(read: Read) -> None:
    assert read.since(0) == []


@pytest.mark.parametrize("cut", [0, 1, 30])
def test_of_a_window_the_head_alone_is_parsed_and_only_a_whole_line_counts(cut: int) -> None:
    data: dict[str, Any] = {"version": "1", "since": 1.0, "until": 2.0, "counts": {"rows": 0, "columns": []}}
    text = orjson.dumps(data)
    if cut:
        with pytest.raises(ValueError, match="not whole"):
            history._window(text[:-cut], (0, 0))
    else:
        assert history._window(text, (0, 9)) == ("1", 1.0, 2.0, (0, 9))


# ---------------------------------------------------------------- hours of traffic


def hour(at: int, requests: int, version: str = "1", cells: int = CELLS) -> bytes:
    counts = {"requests": requests, "refused": 1, "failed": 2, "cells": [requests] * cells, "total": 7}
    return orjson.dumps({"version": version, "since": at, "until": at + 3600, **counts}) + b"\n"


def requests(hours: Hours) -> list[tuple[float, float]]:
    return [(at, count) for at, count in hours.read()[:, :2].tolist()]


def test_hours_are_read_once_and_the_later_of_two_alike_counts(tmp_path: Path) -> None:
    storage, path = Storage.open(str(tmp_path)), tmp_path / journal.FOLDER / "m" / journal.TRAFFIC
    hours = Hours(path)
    assert requests(hours) == []
    for line in (hour(0, 5), hour(3600, 6), hour(3600, 7, version="2")):
        journal.append(storage, "m", journal.TRAFFIC, orjson.loads(line))
    # The last one, too, whose end comes with the next.
    assert requests(hours) == [(0, 5), (3600, 6), (3600, 7)]
    assert hours.read()[0].tolist() == [0, 5, 1, 2, *[5] * CELLS]
    journal.append(storage, "m", journal.TRAFFIC, orjson.loads(hour(3600, 8)))
    with path.open("ab") as file:
        file.write(b"\n" + hour(7200, 9)[:-9])
    assert requests(hours) == [(0, 5), (3600, 7), (3600, 8)]
    # What was not whole is, in the end.
    with path.open("ab") as file:
        file.write(hour(7200, 9)[-9:])
    assert requests(hours)[-1] == (7200, 9)


def test_a_damaged_hour_hides_no_other(tmp_path: Path) -> None:
    path = tmp_path / "traffic.jsonl"
    damaged = [
        b'{"version": "1", "sin\n',
        b"\xff\xfe\n",
        b"[]\n",
        hour(1, 1, cells=CELLS - 1),
        hour(1, 1).replace(b'"requests":1', b'"requests":-1'),
        hour(1, 1).replace(b"[1,", b"[null,"),
        hour(1, 1).replace(b'"since":1,', b""),
    ]
    for each in damaged:
        path.write_bytes(hour(0, 5) + each + hour(3600, 6))
        assert requests(Hours(path)) == [(0, 5), (3600, 6)], each
    path.write_bytes(hour(0, 5) + b"".join(damaged) + hour(3600, 6))
    assert requests(Hours(path)) == [(0, 5), (3600, 6)]


def test_a_journal_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "traffic.jsonl"
    path.write_bytes(hour(0, 5) + hour(3600, 6))
    hours = Hours(path)
    assert len(hours.read()) == 2
    path.unlink()
    assert requests(hours) == []
    path.write_bytes(hour(7200, 7))
    assert requests(hours) == [(7200, 7)]
