"""Parts of the documents of `views`: plain functions of what lies in the storage."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from mlops_ray.cost.actual import NOBODY, Share, Use, by_version
from mlops_ray.data.counts import Counts
from mlops_ray.instants import DAY_S
from mlops_ray.monitoring import looks, period
from mlops_ray.monitoring.alarms import Alarms
from mlops_ray.monitoring.callers import Asked
from mlops_ray.monitoring.dashboard.history import NOTHING, Matrix, Seen
from mlops_ray.monitoring.dashboard.spans import Span
from mlops_ray.monitoring.drift import EFFECT_FLOOR
from mlops_ray.monitoring.figures import Figure
from mlops_ray.monitoring.looks import Release
from mlops_ray.monitoring.performance import Expected

#: Of 100 windows that chance alone makes, so many lie within the band.
WITHIN, SIGMAS = 95, 1.96
#: Retrainings that are told, the newest.
MOST_RETRAININGS = 30

Document = dict[str, Any]


class Group(NamedTuple):
    """Windows that a picture shows as one step."""

    since: float
    until: float
    looks: Sequence[Seen]


def grouped(span: Span, seen: Sequence[Seen]) -> list[Group]:
    """Each window by itself where there is room, else those that ended in the same step together."""
    inside = [each for each in seen if each.until <= span.until]
    if len(inside) <= span.steps:
        return [Group(each.since, each.until, [each]) for each in inside]
    groups = []
    for _, members in groupby(inside, key=lambda each: span.place(each.until)):
        together = list(members)
        groups.append(Group(together[0].since, together[-1].until, together))
    return groups


def course(
    metric: str, groups: Sequence[Group], releases: Mapping[str, Release], expected: Expected | None
) -> Document:
    """A metric step by step: by estimate, by labels, half the widths of their bands, and the reference."""
    return {
        how: _course(metric, groups, releases, expected, how, rows)
        for how, rows in (("estimated", "rows"), ("realised", "labelled"))
    }


def _course(
    metric: str,
    groups: Sequence[Group],
    releases: Mapping[str, Release],
    expected: Expected | None,
    how: str,
    rows: str,
) -> Document:
    """As it is known (`how`), of so many `rows` of a look."""
    values, bands = [], []
    for group in groups:
        known = [look for look in group.looks if metric in look.quality.get(how, {})]
        weights = [look.quality.get(rows, 1) for look in known]
        told = [look.quality[how][metric] for look in known]
        values.append(number(np.average(told, weights=weights)) if known else None)
        release = releases.get(known[-1].version) if known else None
        figure = _figure(release.expected if release else None, how, metric)
        bands.append(number(SIGMAS * figure.deviation_of(max(1, sum(weights)))) if figure else None)
    figure = _figure(expected, how, metric)
    typical = [s.quality[rows] for group in groups for s in group.looks if s.quality.get(rows)]
    usual = None
    if figure is not None and typical:
        half = SIGMAS * math.hypot(figure.deviation, figure.deviation_of(int(np.median(typical))))
        usual = [number(figure.value - half), number(figure.value + half)]
    return {"values": values, "bands": bands, "reference": figure and number(figure.value), "usual": usual}


def _figure(expected: Expected | None, how: str, metric: str) -> Figure | None:
    return None if expected is None else expected.figures(how).get(metric)


def only(counts: Counts, column: str) -> Counts:
    spec, cells = counts.by_name[column]
    return Counts((spec,), [cells], counts.rows)


def challenger(release: Document) -> Document | None:
    found = release.get("challenger")
    if not found:
        return None
    told = {key: found.get(key) for key in ("version", "state", "since")}
    return told | {"weight": release.get("weight")}


def episodes(state: Document) -> list[Document]:
    alarms = state.get("alarms")
    return looks.told(Alarms.from_json(alarms)) if alarms else []


def going(episodes: Sequence[Document]) -> Document | None:
    """The episode that goes on, in a line."""
    last = next((each for each in episodes if each["resolved"] is None), None)
    if last is None:
        return None
    first = last["found"][0] if last["found"] else {"kind": "", "evidence": ""}
    said = period.KINDS.get(first["kind"], first["kind"])
    return {
        "opened": last["opened"],
        "said": said,
        "evidence": first["evidence"],
        "count": len(last["found"]),
    }


def moved(seen: Seen) -> Document:
    moved = [c for c, psi in zip(seen.columns, seen.psi, strict=True) if psi > EFFECT_FLOOR]
    tested = sum(not math.isnan(psi) for psi in seen.psi)
    found = [column for column in seen.columns if column in seen.found]
    return {"columns": tested, "moved": len(moved), "found": found}


def quality(state: Document) -> Document | None:
    """The metric that decides, as the last look has it."""
    said = state.get("quality") or {}
    reference = said.get("reference") or {}
    decided = [each["metric"] for each in said.get("segments") or ()]
    names = [m for how in ("realised", "estimated") for m in said.get(how) or {}]
    metric = next((m for m in (*decided, *names) if m in names), None)
    if metric is None:
        return None
    return {
        "metric": metric,
        **{how: number((said.get(how) or {}).get(metric)) for how in ("estimated", "realised")},
        "reference": number((reference.get("realised") or {}).get(metric)),
    }


def by_key(days: Sequence[Sequence[Any]], asked: Asked) -> list[Document]:
    """What the predictions of days (when they began, cost, rows) came to, by key, the dearest first.

    Each bears of a day's cost what it had of the day's rows; rows of which it is not known are of no key. A
    bill (`mlops_ray.cluster.costs`) has the hours of both, and shares out each hour's.
    """
    began = {at for at, *_ in days}
    uses = [
        Use(day, "", version, key, rows)
        for (version, hour), names in asked.items()
        if (day := hour // DAY_S * DAY_S) in began
        for key, rows in names.items()
    ]
    known: Counter[int] = Counter()
    for use in uses:
        known[use.since] += int(use.predictions)
    uses += [Use(at, "", NOBODY, NOBODY, max(0, rows - known[at])) for at, _, rows, *_ in days]
    costs = [Share(at, "model", "", "", False, 0.0, 0.0, cost) for at, cost, *_ in days]
    spent = [each for each in by_version(costs, uses) if each.predictions]
    told = [{"key": s.key, "version": s.version, "rows": s.predictions, "cost": s.cost} for s in spent]
    return sorted(told, key=lambda each: -each["cost"])


def loop(found: Any) -> Document | None:
    """What the loop of retraining decided last, and what it did (`cluster.loop`)."""
    if not isinstance(found, dict):
        return None
    retrainings = found.get("retrainings") or []
    return {
        "decided": found.get("decided"),
        "next": found.get("next"),
        "retrainings": retrainings[-MOST_RETRAININGS:],
    }


def watched(state: Document) -> Document | None:
    if not state.get("alarms"):
        return None
    return {"window_s": state["window_s"], "false_alarms": state["false_alarms"]}


def per_second(state: Document, now: float) -> float | None:
    """Requests a second in the last minute that is over."""
    minutes = counted(state, "minutes")
    last = minutes[minutes[:, 0] == now // 60 * 60 - 60]
    return float(last[:, 1].sum()) / 60 if len(minutes) else None


def second(iso: str) -> float:
    return datetime.fromisoformat(iso).timestamp()


def counted(state: Document, place: str) -> Matrix:
    """The minutes or the hours of a monitor's document, of all versions."""
    found = [
        (at, requests, refused, failed, *cells)
        for _, watched in state.get("versions", [])
        for at, requests, refused, failed, cells, *_ in watched.get(place, [])
    ]
    return np.array(found, np.float64).reshape(-1, NOTHING.shape[1])


def number(value: Any) -> float | None:
    """Six significant digits, and no NaN: pictures need no more."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")


def rounded(values: Iterable[float]) -> list[float | None]:
    return [None if math.isnan(value) else round(float(value), 4) for value in values]
