"""What was done, by whom and why: a record that is only ever added to, whose lines seal those before them.

    audit/000001.jsonl   {"number", "at", "by", "what", "about", "before", "digest"}, a line each
    audit/head.json      number and digest of the last line

`digest` is SHA-256 of the rest of a line, to which `before` belongs, the digest of the line before: whoever
changes a line, takes one out or moves it has to change all that follow, and the head. Several processes may
write.
"""

import fcntl
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from mlops_ray.errors import StorageError
from mlops_ray.storage import Storage, digest

FOLDER, HEAD, LOCK = "audit", "head.json", ".lock"
#: A segment that is so large is followed by another; whoever writes reads the last one.
SEGMENT_BYTES = 1 << 20

Entry = dict[str, Any]


def append(storage: Storage, what: str, by: str, about: Mapping[str, Any]) -> Entry:
    """Adds a line, which is on disk when this returns: the plain data of `what` happened, and who did it."""
    with storage.path(FOLDER, LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        head, last = _head(storage), _last(storage)
        # Where lines are gone, or others than there were, the chain goes on from what was: the gap shows.
        before = last if last["number"] > head["number"] else head
        entry = {
            "number": before["number"] + 1,
            "at": datetime.now(UTC).isoformat(),
            "by": by,
            "what": what,
            "about": dict(about),
            "before": before["digest"],
        }
        entry["digest"] = digest(entry)
        with _segment(storage).open("ab") as lines:
            lines.write(orjson.dumps(entry) + b"\n")
            lines.flush()
            os.fsync(lines.fileno())
        storage.write_json({"number": entry["number"], "digest": entry["digest"]}, FOLDER, HEAD)
        return entry


def entries(storage: Storage) -> Iterator[Entry]:
    """The lines, oldest first; raises `StorageError` where one cannot be read."""
    for path in _segments(storage):
        # What has no end yet is being written, or never was.
        for line in path.read_bytes().split(b"\n")[:-1]:
            yield _entry(path, line)


def verify(storage: Storage) -> int:
    """How many lines the record has; raises `StorageError` where any was changed, moved or taken away."""
    before, head, count = "", _head(storage), 0
    for entry in entries(storage):
        count += 1
        sealed = {key: value for key, value in entry.items() if key != "digest"}
        if (entry.get("number"), entry.get("before")) != (count, before):
            raise StorageError(f"the audit record has a gap before entry {entry.get('number')}")
        if entry.get("digest") != digest(sealed):
            raise StorageError(f"entry {count} of the audit record was changed")
        before = entry["digest"]
        if count == head["number"] and before != head["digest"]:
            raise StorageError(f"entry {count} of the audit record is another than it was")
    if count < head["number"]:
        raise StorageError(f"the audit record was cut short: {count} entries of {head['number']} are there")
    return count


def _head(storage: Storage) -> Entry:
    return dict(storage.read_json(FOLDER, HEAD) or {"number": 0, "digest": ""})


def _last(storage: Storage) -> Entry:
    """The last line; what a writer that was killed had begun is taken away, which nobody was told of."""
    for path in reversed(_segments(storage)):
        *whole, rest = path.read_bytes().split(b"\n")
        if rest:
            os.truncate(path, path.stat().st_size - len(rest))
        if whole:
            return _entry(path, whole[-1])
    return {"number": 0, "digest": ""}


def _entry(path: Path, line: bytes) -> Entry:
    try:
        return dict(orjson.loads(line))
    except (orjson.JSONDecodeError, TypeError, ValueError):
        raise StorageError(f"{path} is damaged: {line[:60]!r} is no entry of the audit record") from None


def _segment(storage: Storage) -> Path:
    """Where the next line goes."""
    found = _segments(storage)
    if found and found[-1].stat().st_size < SEGMENT_BYTES:
        return found[-1]
    return storage.path(FOLDER, f"{len(found) + 1:06}.jsonl")


def _segments(storage: Storage) -> list[Path]:
    return sorted(storage.root.joinpath(FOLDER).glob("[0-9]*.jsonl"))
