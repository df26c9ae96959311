"""A storage as monitor, replicas and reconciler leave it, for the dashboard: of a real replay, or made up."""

import math
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
import polars as pl

from mlops_ray.data import error_log
from mlops_ray.data.counts import REQUEST_US, Counts, Histogram
from mlops_ray.monitoring import journal, replay
from mlops_ray.monitoring.alarms import Alarms, Budget
from mlops_ray.monitoring.looks import Release
from mlops_ray.monitoring.replay import Replayed
from mlops_ray.monitoring.state import HOUR_S, Minute, ModelState, Watched, Window
from mlops_ray.registry.package import Package
from mlops_ray.serving import record, release
from mlops_ray.storage import Storage

DAY_S, WEEK_S = 86_400.0, 7 * 86_400.0
#: Requests an hour of a service that is busy by day.
BUSY = 3_600
RANDOM = np.random.default_rng(11)


def live(storage: Storage, name: str, version: int, package: Package, at: float) -> None:
    """The version is champion from then on."""
    document = record.read(storage, name) or record.new(name)
    entry = record.entry(storage, str(version), package)
    record.write(storage, release.crowned(document, entry, document["champion"], at))


def replayed(
    of: Release, rows: pl.DataFrame, window_s: float = DAY_S, budget: Budget | None = None
) -> tuple[Replayed, list[dict[str, Any]]]:
    """What the monitor would have seen of a log (`replay.log`): looks and alarms, and the windows."""
    windows = [
        {"version": window.version, "since": window.since, "until": window.until}
        | {"counts": window.counts.to_json()}
        for window, _ in replay._windows(of, rows, window_s)
    ]
    return replay.replay(of, rows, window_s, budget or Budget()), windows


def moved(found: Any, seconds: float) -> Any:
    """The same so much later: in whole weeks, so that a Sunday is one."""
    times = {"since", "until", "at", "opened", "resolved", "watermark"}

    def later(key: str, value: Any) -> Any:
        is_time = key in times and isinstance(value, int | float)
        return value + seconds if is_time else moved(value, seconds)

    if isinstance(found, dict):
        return {key: later(key, value) for key, value in found.items()}
    return [moved(each, seconds) for each in found] if isinstance(found, list) else found


def written(storage: Storage, name: str, file: str, entries: Iterable[dict[str, Any]]) -> None:
    """A whole journal at once."""
    path = storage.path(journal.FOLDER, name, file)
    path.write_bytes(b"\n".join(orjson.dumps(each, option=orjson.OPT_SERIALIZE_NUMPY) for each in entries))


def minute(at: int, requests: int, refused: int, failed: int, typical_us: int) -> Minute:
    """The traffic of a minute or of an hour, of requests that take about so long."""
    times = Histogram.empty(REQUEST_US)
    shares = RANDOM.multinomial(requests, [0.72, 0.2, 0.06, 0.02])
    for share, factor in zip(shares.tolist(), (0.8, 1.5, 3.0, 6.0), strict=True):
        times.cells[int(np.searchsorted(REQUEST_US, typical_us * factor))] += share
    return Minute(at, requests, refused, failed, times)


def hours(first: float, last: float, busy: int = BUSY) -> Iterable[Minute]:
    """The traffic of a span by the hour: little by night and on Sundays."""
    for at in range(int(first // HOUR_S) * HOUR_S, int(last), HOUR_S):
        when = datetime.fromtimestamp(at, UTC)
        day = 0.25 + 0.75 * math.exp(-(((when.hour - 13) / 4.5) ** 2))
        count = int(busy * day * (0.35 if when.weekday() == 6 else 1.0) * RANDOM.uniform(0.9, 1.1))
        refused, failed = RANDOM.binomial(count, 0.002), RANDOM.binomial(count, 0.0002)
        hour = minute(at, count, int(refused), int(failed), int(RANDOM.choice([2_000, 2_500, 3_000])))
        hour.keys.update(shop=count - count // 4, till=count // 4)
        yield hour


def _state(
    storage: Storage,
    version: str,
    name: str,
    alarms: Alarms,
    last: dict[str, Any],
    now: float,
    busy: int = BUSY,
) -> None:
    """The monitor's document of a model whose window is open for some hours."""
    counts = Counts.from_json(last["counts"])
    watched = Watched(traffic=_traffic(now), window=Window(last["until"], counts), rows=4_200_000)
    current = list(hours(now - HOUR_S, now, busy))[-1:]
    for at in range(int(now // 60) * 60 - 119 * 60, int(now), 60):
        watched.minutes[at] = minute(
            at, int(busy / 60 * RANDOM.uniform(0.8, 1.2)), int(RANDOM.random() < 0.1), 0, 2_000
        )
    watched.hours = current
    known = ModelState(name, alarms=alarms)
    known.versions[version], known.sources = watched, {uuid.uuid4().hex: (9, now - 2)}
    known.quality = last.get("quality") or {}
    storage.write_json(known.to_json(), journal.FOLDER, f"{name}.json")


def _traffic(now: float) -> Any:
    from mlops_ray.data.counts import Traffic

    traffic = Traffic()
    traffic.requests.update({"200": 4_190_000, "422": 8_100, "429": 900, "500": 14, "504": 31})
    traffic.rejected.update({"invalid_row": 8_100, "overloaded": 900, "deadline": 31, "unauthorized": 12})
    traffic.invalid.update({("load_1d_ago", "max"): 310, ("site", "category"): 7_600, ("", "type"): 190})
    return traffic


def loop(storage: Storage, name: str, now: float) -> None:
    """What the loop of retraining leaves: one that ended well, and one that its gate refused."""
    done = {
        "id": "retrain-1",
        "at": now - 60 * DAY_S,
        "reason": "the alarm of version 1 goes on",
        "state": "champion",
    }
    done |= {"version": 2, "said": "", "ended": now - 60 * DAY_S + 900}
    refused = {"id": "retrain-2", "at": now - 20 * DAY_S, "reason": "the alarm of version 2 goes on"}
    refused |= {
        "state": "refused",
        "version": None,
        "said": "it is no better than the champion",
        "ended": now - 20 * DAY_S + 700,
    }
    decided = {"version": "2", "opened": now - 3 * DAY_S, "what": "wait", "rule": "at_most", "evidence": []}
    decided |= {"reason": "at most one retraining in seven days", "since": now - 2 * DAY_S}
    found = {"model": name, "decided": decided, "next": now + DAY_S, "retrainings": [done, refused]}
    storage.write_json(found, "loop", f"{name}.json")


def errors(storage: Storage, name: str, now: float) -> None:
    """Lines as replicas, monitor and reconciler write them."""
    defect, store = "mlops_ray.serving.batcher:141", "the online store redis://cache:6379 does not answer"
    full = f"the prediction log of {name} cannot be written (OSError: No space left on device)"
    kinds = [
        ("error", "predict", "ZeroDivisionError", 500, "request failed: ZeroDivisionError", defect),
        ("error", "features", "StorageError", 503, store, "mlops_ray.features.shelves:362"),
        ("error", "predict", "deadline", 504, "the deadline was over before there was an answer", ""),
        ("warning", "decode", "invalid_row", 422, "row …, column …: … is none of the allowed values", ""),
        ("warning", "admission", "overloaded", 429, "… requests wait already; ask again later", ""),
        ("warning", "admission", "unauthorized", 401, "this key is not known", ""),
        ("error", "log", "OSError", None, full, "mlops_ray.serving.replica:130"),
        ("warning", "release", "timeout", None, "the registry is not told yet", ""),
    ]
    weights = np.array([4, 6, 20, 60, 25, 8, 2, 5]) / 130
    lines = []
    for back in sorted(RANDOM.exponential(9 * DAY_S, 600), reverse=True):
        level, stage, kind, status, said, where = kinds[int(RANDOM.choice(len(kinds), p=weights))]
        count = int(RANDOM.integers(1, 40)) if level == "warning" else 1
        lines.append(
            {"model": name, "process": "replica", "at": now - float(back), "level": level, "stage": stage}
            | {"version": "1", "request": RANDOM.bytes(16).hex(), "type": kind, "status": status}
            | {"said": said, "where": where, "count": count}
        )
    path = storage.path(error_log.FOLDER, f"replica-{uuid.uuid4().hex[:8]}-1.jsonl")
    path.write_bytes(b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines))


def keep(
    storage: Storage, of: Release, name: str, seen: Replayed, windows: Sequence[dict[str, Any]], *, now: float
) -> None:
    """Journals and state of a replay, as if its last window had closed some hours ago."""
    ended = windows[-1]["until"]
    later = math.floor((now - ended) / WEEK_S) * WEEK_S
    looked = moved(seen.looks, later)
    episodes = Alarms.from_json(moved(seen.alarms.to_json(), later))
    written(storage, name, journal.LOOKS, looked)
    counted = moved(list(windows), later)
    written(storage, name, journal.WINDOWS, counted)
    first = looked[0]["since"]
    written(storage, name, journal.TRAFFIC, (each.entry(of.version) for each in hours(first, now)))
    _state(
        storage,
        of.version,
        name,
        episodes,
        counted[-1]
        | {"quality": looked[-1]["quality"] | {"version": of.version, "until": looked[-1]["until"]}},
        now,
    )


def made_up(
    storage: Storage, name: str, windows: int, window_s: float, columns: int, *, now: float, busy: int = BUSY
) -> None:
    """A model with so many windows up to now, of which the second column drifts in the last quarter."""
    names = [f"column_{number:02d}" for number in range(columns)]
    edges = tuple(np.linspace(0, 1, 21).tolist())
    first = now - windows * window_s
    champion = {"version": "1", "digest": "0" * 64, "package": "artifacts/none", "family": "xgboost"}
    champion |= {"task": "regression", "created_at": _iso(first), "metrics": {"mae": 0.05}, "baselines": {}}
    record.write(storage, release.crowned(record.new(name), champion, None, first))
    psi = RANDOM.gamma(1.2, 0.01, (windows, columns))
    psi[-windows // 4 :, 1 % columns] += 0.3
    written(
        storage, name, journal.LOOKS, (_look(names, first, window_s, at, row) for at, row in enumerate(psi))
    )
    written(
        storage, name, journal.WINDOWS, (_window(names, edges, first, window_s, at) for at in range(windows))
    )
    written(storage, name, journal.TRAFFIC, (each.entry("1") for each in hours(first, now, busy)))
    alarms = Alarms(now)
    last = {"until": now - 60, "counts": _window(names, edges, first, window_s, windows - 1)["counts"]}
    _state(storage, "1", name, alarms, last, now, busy)


def _look(names: list[str], first: float, window_s: float, at: int, psi: Any) -> dict[str, Any]:
    since, until = first + at * window_s, first + (at + 1) * window_s
    findings = [
        {
            "about": name,
            "kind": "input",
            "p": 0.4,
            "matters": bool(value > 0.02),
            "evidence": "",
            "harm": 0.01,
        }
        | {"p_holm": 1.0, "tests": 1, "column": name}
        for name, value in zip(names, psi.tolist(), strict=True)
    ]
    quality = {
        "estimated": {"mae": 0.05 + 0.01 * psi[0]},
        "rows": 500,
        "realised": {"mae": 0.052},
        "labelled": 400,
    }
    reference = {how: {"mae": 0.05} for how in ("estimated", "realised")}
    return {
        "version": "1", "since": since, "until": until, "rows": 500,
        "columns": dict(zip(names, psi.tolist(), strict=True)),
        "quality": quality | {"reference": reference, "segments": [], "split": None},
        "integrity": {}, "outside": None, "at": until, "spent": 0.01, "findings": findings,
        "found": [names[1]] if psi[1] > 0.3 else [], "listed": [], "is_whole": True,
    }  # fmt: skip


def _window(names: list[str], edges: Any, first: float, window_s: float, at: int) -> dict[str, Any]:
    counts = {"rows": 500, "columns": [
        {"name": name, "kind": "numeric", "edges": list(edges), "categories": []}
        | {"counts": RANDOM.multinomial(500, [1 / 23] * 23).tolist()} for name in names
    ]}  # fmt: skip
    ends = {"since": first + at * window_s, "until": first + (at + 1) * window_s}
    return {"version": "1", **ends, "counts": counts}


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()
