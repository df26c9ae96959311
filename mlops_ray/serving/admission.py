"""Whom there is time for: a request that cannot be answered before its deadline is refused as it comes.

Refused at once it costs little, and its caller may ask elsewhere; answered too late it would cost as much as
one that is of use.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mlops_ray.errors import OverloadedError, RequestError
from mlops_ray.serving.costs import Wait

#: The header with the milliseconds that a caller waits.
TIMEOUT = "x-timeout-ms"
#: Who says nothing waits this many times the objective's p99 while the service is busy.
PATIENCE = 20
#: The most that a caller may say, ten minutes.
MOST_MS = 600_000
#: One in so many requests tells what waiting took: learning costs more than it would add.
LEARNS_FROM = 4
#: Requests that may always be there.
LET_IN = 2
#: Keys that are remembered; the longest unused is forgotten first.
MOST_BUCKETS = 10_000

Clock = Callable[[], float]


def deadline(said: str | None, now: float) -> float | None:
    """When a caller will have gone, on the clock of `now`; `None` where it does not say.

    >>> deadline("250", 10.0), deadline(None, 10.0)
    (10.25, None)
    """
    if said is None:
        return None
    if not (said.isascii() and said.isdecimal() and 0 < len(said) < 8 and 0 < int(said) <= MOST_MS):
        raise RequestError(f"X-Timeout-Ms must be a whole number of milliseconds, from 1 to {MOST_MS}")
    return now + int(said) / 1000


@dataclass
class Admission:
    """The requests that are being answered, and what it takes to answer one more.

    `patience_s` is how long callers wait who do not say.
    """

    patience_s: float
    clock: Clock = time.monotonic
    requests: int = 0
    rows: int = 0
    _wait: Wait = field(default_factory=Wait)
    _seen: int = 0

    def require_time(self, until: float | None) -> None:
        """Raises `OverloadedError` where a newcomer would be answered too late.

        Who would be the first or the second is let in: what these take tells when it has become less.
        """
        if self.requests < LET_IN:
            return
        needed_s = self._wait(self.requests, self.rows)
        left_s = self.patience_s if until is None else until - self.clock()
        if needed_s > left_s:
            raise OverloadedError(
                f"{self.requests} requests wait already: an answer would take {1000 * needed_s:.0f} ms, and "
                f"there are {1000 * max(left_s, 0.0):.0f}; ask again later, or elsewhere",
                retry_after_s=math.ceil(needed_s),
            )

    def enter(self, rows: int) -> "Place":
        """Takes a request in; `Place.leave` when it has been answered."""
        self._seen += 1
        learns = self._seen % LEARNS_FROM == 0
        place = Place(self, rows, self.clock() if learns else None, self.requests, self.rows)
        self.requests += 1
        self.rows += rows
        return place

    def learn(self, requests: int, rows: int, since: float) -> None:
        """Takes in what it took one who found so many there."""
        self._wait.see(requests, rows, self.clock() - since)


@dataclass(slots=True)
class Place:
    """A request that is being answered, and what it found when it came."""

    admission: Admission
    rows: int
    since: float | None
    requests_before: int
    rows_before: int

    def leave(self, *, tells: bool) -> None:
        """Makes room; `tells` where it was answered, or too late: from that is learned what one takes."""
        self.admission.requests -= 1
        self.admission.rows -= self.rows
        if tells and self.since is not None:
            self.admission.learn(self.requests_before, self.rows_before, self.since)


@dataclass
class Rates:
    """How often each key has asked of late: a bucket of a second's worth, which fills by the second."""

    clock: Clock = time.monotonic
    _buckets: dict[str, tuple[float, float]] = field(default_factory=dict)

    def take(self, name: str, per_s: float) -> None:
        """Takes one request of the caller's; raises `OverloadedError` where it has asked too often.

        >>> rates = Rates(clock=lambda: 0.0)
        >>> rates.take("batch", 2), rates.take("batch", 2)
        (None, None)
        >>> rates.take("batch", 2)
        Traceback (most recent call last):
        mlops_ray.errors.OverloadedError: the key 'batch' may ask 2 times a second; ask again later
        """
        now, most = self.clock(), max(per_s, 1.0)
        left, at = self._buckets.pop(name, (most, now))
        left = min(most, left + (now - at) * per_s)
        # Put in again at the end: the first is the one that was longest unused.
        self._buckets[name] = (left - 1 if left >= 1 else left, now)
        if len(self._buckets) > MOST_BUCKETS:
            del self._buckets[next(iter(self._buckets))]
        if left < 1:
            raise OverloadedError(
                f"the key {name!r} may ask {per_s:g} times a second; ask again later",
                retry_after_s=math.ceil((1 - left) / per_s),
            )
