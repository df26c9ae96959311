"""Periods, and what lies in them put together into as many steps as a picture has room for."""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mlops_ray.data.counts import REQUEST_US, Histogram
from mlops_ray.errors import RequestError
from mlops_ray.instants import DAY_S
from mlops_ray.monitoring.dashboard.history import Matrix

HOUR_S = 3600
#: What can be chosen, in seconds.
PERIODS = {
    "1h": HOUR_S,
    "24h": DAY_S,
    "7d": 7 * DAY_S,
    "30d": 30 * DAY_S,
    "quarter": 91 * DAY_S,
    "year": 365 * DAY_S,
}
DEFAULT = "7d"
#: Lengths of a step that people read easily, in seconds.
STEPS = (
    *(60, 300, 900, HOUR_S, 2 * HOUR_S, 3 * HOUR_S, 6 * HOUR_S, 12 * HOUR_S, DAY_S),
    *(days * DAY_S for days in (2, 4, 7, 14, 30, 61, 122)),
)
#: Steps of a picture: what a page may ask for, and what it gets that does not ask.
FEWEST, MOST, USUAL = 12, 400, 120


class Span(NamedTuple):
    """From `since` to `until` (seconds since the epoch) in steps of `step` seconds."""

    since: float
    until: float
    step: int

    @property
    def steps(self) -> int:
        return max(1, int(np.ceil((self.until - self.since) / self.step)))

    @property
    def starts(self) -> list[int]:
        """Where the steps begin."""
        return [int(self.since + place * self.step) for place in range(self.steps)]

    def by_the_hour(self) -> "Span":
        """The same in whole hours, for what is known by the hour alone."""
        step = max(self.step, HOUR_S)
        return Span(self.since // step * step, self.until, step)

    def place(self, at: float) -> int:
        """The step in which an instant lies; its ends count as inside."""
        return min(max(int((at - self.since) // self.step), 0), self.steps - 1)


def asked(query: Mapping[str, str], now: float | None = None, *, cells: int = USUAL) -> Span:
    """The span that `period`, or `from` and `to`, ask for, in at most `cells` steps.

    Steps begin at multiples of their length, so that what is over stays as it is from one look to the next.
    """
    since, until = ends(query, now)
    cells = min(max(_whole(query.get("cells"), cells), FEWEST), MOST)
    step = next((step for step in STEPS if (until - since) / step <= cells), STEPS[-1])
    step = max(step, int(np.ceil((until - since) / MOST)))
    return Span(since // step * step, until, step)


def ends(query: Mapping[str, str], now: float | None = None) -> tuple[float, float]:
    """Where a span begins and ends; raises `RequestError` where that is no period."""
    until = time.time() if now is None else now
    if "from" in query or "to" in query:
        since, until = (_instant(query, key, other) for key, other in (("from", 0.0), ("to", until)))
        if not since < until:
            raise RequestError("`from` must lie before `to`; both are seconds since 1970")
        return since, until
    name = query.get("period", DEFAULT)
    if name not in PERIODS:
        raise RequestError(f"no period is called {name[:20]!r}; there is {', '.join(PERIODS)}")
    return until - PERIODS[name], until


def _instant(query: Mapping[str, str], key: str, other: float) -> float:
    try:
        found = float(query.get(key, other))
    except ValueError:
        found = float("nan")
    # Nothing was before 1970, and nobody counts beyond the year 9999.
    if not 0 <= found < 253_402_300_800:
        raise RequestError(f"`{key}` must be seconds since 1970")
    return found


def _whole(text: str | None, other: int) -> int:
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 6 else other


def traffic(span: Span, hours: Matrix) -> dict[str, Any]:
    """Requests, those refused and those failed, and microseconds (p50, p99), step by step and in all."""
    inside = hours[(hours[:, 0] >= span.since) & (hours[:, 0] < span.until)]
    counts = np.zeros((span.steps, hours.shape[1] - 1))
    np.add.at(counts, ((inside[:, 0] - span.since) // span.step).astype(int), inside[:, 1:])
    requests, refused, failed = counts[:, :3].T.astype(int).tolist()
    times = [Histogram(REQUEST_US, cells) for cells in counts[:, 3:].astype(int).tolist()]
    whole = Histogram(REQUEST_US, counts[:, 3:].sum(axis=0).astype(int).tolist())
    return {
        "step": span.step,
        "at": span.starts,
        "requests": requests,
        "refused": refused,
        "failed": failed,
        "p50_us": [each.quantile(0.5) for each in times],
        "p99_us": [each.quantile(0.99) for each in times],
        "total": {
            "requests": sum(requests),
            "refused": sum(refused),
            "failed": sum(failed),
            "p50_us": whole.quantile(0.5),
            "p99_us": whole.quantile(0.99),
        },
    }
