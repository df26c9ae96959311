"""The error logs of all processes searched: the newest lines, and counts of what was found."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from mlops_ray.data import error_log
from mlops_ray.monitoring.dashboard.spans import Span
from mlops_ray.storage import Storage

#: Bytes of the newest files that are searched: some 25,000 lines.
MOST_READ = 8 * 2**20
#: Lines that are shown, the newest; counts are of all.
MOST_SHOWN = 200
#: What can be asked for by its whole value, and how many values of each are counted by name.
FIELDS = ("model", "stage", "type", "version", "level", "process")
MOST_NAMED = 30
#: Where a text is looked for.
SEARCHED = ("said", "type", "request", "run", "stage", "where", "model", "version")


class Errors:
    """The lines of the logs of a storage; of a file only what came since is read."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._files: dict[Path, tuple[int, list[error_log.Line]]] = {}

    def search(self, span: Span, query: Mapping[str, str]) -> dict[str, Any]:
        """`{"lines": […], "count", "by": {field: {value: count}}, "at", "errors", "warnings", "is_cut"}`.

        `query` has a text `q`, and exact values of `FIELDS`; `is_cut` where older lines were not searched.
        """
        lines, is_cut = self._lines()
        text = query.get("q", "").strip().lower()
        inside = [line for line in lines if span.since <= line["at"] <= span.until]
        found = [line for line in inside if _fits(line, text, query)]
        found.sort(key=lambda line: line["at"], reverse=True)
        steps = {"error": [0] * span.steps, "warning": [0] * span.steps}
        for line in found:
            steps["warning" if line["level"] == "warning" else "error"][span.place(line["at"])] += line[
                "count"
            ]
        return {
            "lines": found[:MOST_SHOWN],
            "count": sum(line["count"] for line in found),
            "by": {field: _counted(found, field) for field in FIELDS},
            "step": span.step,
            "at": span.starts,
            "errors": steps["error"],
            "warnings": steps["warning"],
            "is_cut": is_cut,
        }

    def _lines(self) -> tuple[list[error_log.Line], bool]:
        known = []
        for path in self._storage.root.glob(f"{error_log.FOLDER}/*.jsonl"):
            try:
                known.append((path.stat().st_mtime, path.stat().st_size, path))
            except FileNotFoundError:
                continue
        total, lines, read = 0, list[error_log.Line](), dict[Path, tuple[int, list[error_log.Line]]]()
        for _, size, path in sorted(known, reverse=True):
            total += size
            if total > MOST_READ and read:
                break
            read[path] = self._read(path)
            lines += read[path][1]
        self._files = read
        return lines, len(read) < len(known)

    def _read(self, path: Path) -> tuple[int, list[error_log.Line]]:
        end, lines = self._files.get(path, (0, []))
        try:
            with path.open("rb") as file:
                file.seek(end)
                data = file.read()
        except FileNotFoundError:
            return end, lines
        whole = data[: data.rfind(b"\n") + 1]
        return end + len(whole), lines + [line for line in map(_parsed, whole.splitlines()) if line]


def _parsed(line: bytes) -> error_log.Line | None:
    try:
        found: error_log.Line = orjson.loads(line)
        numbers = isinstance(found["at"], int | float), isinstance(found["count"], int)
        return found if all(numbers) and {"level", "type", "stage"} <= found.keys() else None
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None


def _fits(line: error_log.Line, text: str, query: Mapping[str, str]) -> bool:
    if any(query.get(field) and str(line.get(field, "")) != query[field] for field in FIELDS):
        return False
    return not text or any(text in str(line.get(field, "")).lower() for field in SEARCHED)


def _counted(lines: list[error_log.Line], field: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for line in lines:
        counts[str(line.get(field) or "")] += line["count"]
    counts.pop("", None)
    return dict(counts.most_common(MOST_NAMED))
