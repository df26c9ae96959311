"""What the page shows, as one JSON document made of what others wrote: releases and the monitor's report."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

#: Turns of a release that the document tells.
HISTORY = 50
NO_TRAFFIC: dict[str, Any] = {
    "traffic": {"requests": {}, "rejected": {}, "invalid": []},
    "rows": 0,
    "latency": {"p50_us": None, "p99_us": None},
    "minutes": [],
    "window": None,
    "drift": [],
}


def overview(releases: Iterable[Mapping[str, Any]], snapshot: Mapping[str, Any] | None) -> dict[str, Any]:
    """`{"at", "monitor", "models": […]}`; `snapshot` is `None` where the monitor does not answer."""
    reports = snapshot or {}
    models = [
        _model(release, reports.get(release["model"], {})) for release in releases if release.get("champion")
    ]
    return {"at": datetime.now(UTC).isoformat(), "monitor": snapshot is not None, "models": models}


def _challenger(release: Mapping[str, Any]) -> dict[str, Any] | None:
    """The version that is being released, and of 100 keys how many it answers, or is asked besides."""
    found = release.get("challenger")
    if not found:
        return None
    told = {key: found[key] for key in ("version", "state", "step", "since")}
    return told | {key: release[key] for key in ("weight", "shadow", "turn")}


def _model(release: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    champion, previous = release["champion"], release.get("previous") or {}
    told = ("version", "state", "since", "family", "task", "created_at", "metrics", "baselines")
    watched = report.get("versions", {}).get(champion["version"], NO_TRAFFIC)
    traffic = watched["traffic"]
    return {
        "name": release["model"],
        **{key: champion[key] for key in told},
        "previous": previous.get("version"),
        "challenger": _challenger(release),
        "history": release.get("history", [])[-HISTORY:],
        "requests": traffic["requests"],
        "rejected": traffic["rejected"],
        "invalid": [{"column": c, "rule": r, "count": n} for c, r, n in traffic["invalid"]],
        "lost": report.get("lost", 0),
        "alarms": report.get("alarms", []),
        "quality": report.get("quality", {}),
        "watched": report.get("watched"),
        **{key: watched[key] for key in ("rows", "latency", "minutes", "window", "drift")},
    }
