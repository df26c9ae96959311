"""What the counts of a model amount to: a document of traffic, invalid values and drift by version."""

from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from mlops_ray.data import prediction_log
from mlops_ray.data.counts import Counts
from mlops_ray.errors import MlopsError
from mlops_ray.monitoring.drift import Drift, compare
from mlops_ray.monitoring.state import Minute, ModelState, Watched, Window
from mlops_ray.storage import Storage

#: Where the release of a model says which package a version is (written by serving.record).
RELEASES = "release"


def report(storage: Storage, state: ModelState) -> dict[str, Any]:
    """`{"versions": {version: …}, "lost": …}`; drift is there where the version's reference is at hand.

    `lost` are rows that were answered and will not be found in the prediction log.
    """
    entries = releases(storage, state.model)
    return {
        "versions": {
            version: _version(watched, storage, entries.get(version))
            for version, watched in state.versions.items()
        },
        "lost": prediction_log.lost(storage, state.model),
    }


def releases(storage: Storage, model: str) -> dict[str, dict[str, Any]]:
    """The entries of the release document by version: champion, and the one before it."""
    document = storage.read_json(RELEASES, f"{model}.json") or {}
    entries = [document.get(place) for place in ("champion", "previous", "challenger")]
    return {entry["version"]: entry for entry in entries if entry}


def _version(watched: Watched, storage: Storage, entry: dict[str, Any] | None) -> dict[str, Any]:
    window = watched.judged()
    return {
        "traffic": watched.traffic.to_json(),
        "rows": watched.rows,
        "latency": _latency(watched),
        "minutes": [_minute(minute) for minute in watched.minutes.values()],
        "window": {"since": window.since, "until": window.until, "rows": window.counts.rows},
        "drift": _drift(storage, entry, window) if entry else [],
    }


def _latency(watched: Watched) -> dict[str, int | None]:
    """Microseconds within which half, and 99 of 100 requests were answered, rounded up to a cell's end."""
    times = watched.traffic.request_us
    return {"p50_us": times.quantile(0.5), "p99_us": times.quantile(0.99)}


def _minute(minute: Minute) -> dict[str, Any]:
    counts = {"requests": minute.requests, "refused": minute.refused, "failed": minute.failed}
    return {"at": minute.at, **counts, "p99_us": minute.request_us.quantile(0.99)}


def _drift(storage: Storage, entry: dict[str, Any], window: Window) -> list[dict[str, Any]]:
    try:
        reference = _reference(storage.root / entry["package"] / "reference.json")
    except (OSError, MlopsError, ValueError, KeyError):
        return []
    return [
        _column(drift, reference, window.counts)
        for drift in compare(reference, window.counts, entry["clock"])
    ]


@lru_cache(maxsize=8)
def _reference(path: Path) -> Counts:
    """A package never changes, so its reference is read once."""
    return Counts.from_json(orjson.loads(path.read_bytes()))


def _column(drift: Drift, reference: Counts, current: Counts) -> dict[str, Any]:
    spec = next(spec for spec in reference.specs if spec.name == drift.column)
    return asdict(drift) | {
        "kind": spec.kind,
        "labels": spec.labels,
        "reference": _shares(reference, drift.column),
        "current": _shares(current, drift.column),
    }


def _shares(counts: Counts, column: str) -> list[float]:
    cells = next(c for spec, c in zip(counts.specs, counts.cells, strict=True) if spec.name == column)
    shares: list[float] = np.round(cells / max(1, cells.sum()), 6).tolist()
    return shares
