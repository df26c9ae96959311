"""What the counts of a model amount to: a document of traffic, invalid values and drift by version."""

from dataclasses import asdict
from typing import Any

import numpy as np

from mlops_ray.data import prediction_log
from mlops_ray.data.counts import Cells, CountSpec
from mlops_ray.monitoring import looks
from mlops_ray.monitoring.attribution import sight
from mlops_ray.monitoring.drift import Drift, compare
from mlops_ray.monitoring.looks import Release
from mlops_ray.monitoring.state import Minute, ModelState, Watched, Window
from mlops_ray.storage import Storage


def report(storage: Storage, state: ModelState) -> dict[str, Any]:
    """`{"versions": {version: …}, "lost": …, "alarms": […], "watched": {…}}`.

    Drift is there where the version's reference is at hand. `lost` are rows that were answered and will not
    be found in the prediction log; `alarms` are the episodes, the newest first; `watched` says in which
    windows (seconds), and how many false alarms may be in how many seconds; `quality` is what the last look
    said of the live version's, by estimate and by labels.
    """
    known = looks.releases(storage, state.model)
    return {
        "versions": {
            version: _version(watched, known.get(version)) for version, watched in state.versions.items()
        },
        "lost": prediction_log.lost(storage, state.model),
        "alarms": looks.told(state.alarms),
        "quality": state.quality,
        "watched": {"window_s": state.window_s, "false_alarms": [state.budget.most, state.budget.per_s]},
    }


def _version(watched: Watched, release: Release | None) -> dict[str, Any]:
    window, times = watched.judged(), watched.traffic.request_us
    return {
        "traffic": watched.traffic.to_json(),
        "rows": watched.rows,
        # Microseconds within which half, and 99 of 100 requests were answered, rounded up to a cell's end.
        "latency": {"p50_us": times.quantile(0.5), "p99_us": times.quantile(0.99)},
        "minutes": [_minute(minute) for minute in watched.minutes.values()],
        "window": {"since": window.since, "until": window.until, "rows": window.counts.rows},
        "drift": _drift(release, window) if release else [],
    }


def _minute(minute: Minute) -> dict[str, Any]:
    counts = {"requests": minute.requests, "refused": minute.refused, "failed": minute.failed}
    return {"at": minute.at, **counts, "p99_us": minute.request_us.quantile(0.99)}


def _drift(release: Release, window: Window) -> list[dict[str, Any]]:
    ours, theirs = release.reference.by_name, window.counts.by_name
    return [
        column(drift, *ours[drift.column], theirs[drift.column][1])
        for drift in compare(release.reference, window.counts, release.clock, exactly=False)
    ]


def column(drift: Drift, spec: CountSpec, reference: Cells, current: Cells) -> dict[str, Any]:
    """How a column differs, with the shares of its cells in both."""
    return asdict(drift) | {
        "kind": spec.kind,
        "labels": spec.labels,
        "evidence": sight(spec, reference, current).evidence if drift.drifted else "",
        "reference": shares(reference),
        "current": shares(current),
    }


def shares(cells: Cells) -> list[float]:
    """Each cell's share of the rows."""
    found: list[float] = np.round(cells / max(1, cells.sum()), 6).tolist()
    return found
