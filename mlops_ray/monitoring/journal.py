"""What the monitor has seen, for good: a line for each window that closed, for each look, and each hour.

    monitor/MODEL/windows.jsonl   version, since, until, counts
    monitor/MODEL/looks.jsonl     version, since, until, rows, at, spent, findings, found, listed, columns,
                                  quality, integrity; resolved, the episode that it ended, and why
    monitor/MODEL/traffic.jsonl   version, since, until, requests, refused, failed, cells, total, keys

One process writes. A line that was begun and not ended is no line; one that was written twice, since the
writer died before it had saved that it was, counts once.
"""

import os
from typing import Any

import orjson

from mlops_ray.storage import Storage

FOLDER = "monitor"
WINDOWS, LOOKS, TRAFFIC = "windows.jsonl", "looks.jsonl", "traffic.jsonl"


def append(storage: Storage, model: str, file: str, entry: dict[str, Any]) -> None:
    """Adds a line, which is on disk when this returns."""
    with storage.path(FOLDER, model, file).open("ab") as lines:
        # After a line without an end, that of a writer that was killed, begins a new one.
        lines.write((b"\n" if lines.tell() else b"") + orjson.dumps(entry, option=orjson.OPT_SERIALIZE_NUMPY))
        lines.flush()
        os.fsync(lines.fileno())


def read(storage: Storage, model: str, file: str, most_bytes: int | None = None) -> list[dict[str, Any]]:
    """The entries, oldest first; of a long journal those of the last so many bytes."""
    path = storage.root / FOLDER / model / file
    if not path.exists():
        return []
    found = {}
    with path.open("rb") as lines:
        if most_bytes is not None:
            lines.seek(max(0, path.stat().st_size - most_bytes))
        for line in lines:
            try:
                entry = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            found[entry["version"], entry["since"]] = entry
    return list(found.values())
