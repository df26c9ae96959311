"""Whom there is time for: a request that cannot be answered before its deadline is refused as it comes.

Refused at once it costs little, and its caller may ask elsewhere; answered too late it would cost as much as
one that is of use.
"""

import asyncio
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
#: An answer may take so many times what is expected, which is a mean; the way to and from us comes besides.
SPREAD = 2.0
#: Requests that may always be there.
LET_IN = 2
#: How often the loop's lag is looked at.
LOOK_S = 0.01
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
class Lag:
    """How late the event loop is: so long what comes may lie in the socket before it is seen.

    A timer tells, which is late by what the loop did meanwhile.
    """

    seconds: float = 0.0
    _timer: asyncio.Handle | None = None
    _is_wanted: bool = False

    def watch(self) -> None:
        """Looks at it for as long as this is called again and again, in the loop."""
        self._is_wanted = True
        if self._timer is None:
            self._look_again()

    def _look_again(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look, time.monotonic() + LOOK_S)

    def _look(self, due: float) -> None:
        self.seconds = max(0.0, time.monotonic() - due)
        if self._is_wanted:
            self._is_wanted = False
            self._look_again()
        else:
            self._timer, self.seconds = None, 0.0


@dataclass
class Admission:
    """The requests that are being answered, and what it takes to answer one more.

    `patience_s` is how long callers wait who do not say; `size` are the bytes of the bodies.
    """

    patience_s: float
    clock: Clock = time.monotonic
    requests: int = 0
    size: int = 0
    lag: Lag = field(default_factory=Lag)
    _wait: Wait = field(default_factory=Wait)
    _seen: int = 0
    _busy_s: float = 0.0
    _busy_since: float = 0.0

    @property
    def busy_s(self) -> float:
        """For how long there has been a request that was being answered, all in all."""
        return self._busy_s + (self.clock() - self._busy_since if self.requests else 0.0)

    def enter(self, size: int) -> None:
        """One more is being answered."""
        if not self.requests:
            self._busy_since = self.clock()
        self.requests += 1
        self.size += size

    def leave(self, size: int) -> None:
        """One has been answered."""
        if self.requests == 1:
            self._busy_s = self.busy_s
        self.requests -= 1
        self.size -= size

    def take(self, until: float | None, size: int) -> "Place":
        """Takes a request in, with a body of so many bytes; `Place.leave` when it has been answered.

        Raises `OverloadedError` where it would be answered too late. Who would be the first or the second is
        let in: what these take tells when it has become less.
        """
        if self.requests >= LET_IN:
            needed_s = SPREAD * (self.lag.seconds + self._wait(self.requests, self.size))
            left_s = self.patience_s if until is None else until - self.clock()
            if needed_s > left_s:
                raise OverloadedError(
                    f"{self.requests} requests wait already: an answer may take {1000 * needed_s:.0f} ms, "
                    f"and there are {1000 * max(left_s, 0.0):.0f}; ask again later, or elsewhere",
                    retry_after_s=math.ceil(needed_s),
                )
        self._seen += 1
        place = Place(self, size, learns=self._seen % LEARNS_FROM == 0)
        place.enter()
        return place

    def learn(self, requests: int, size: int, since: float) -> None:
        """Takes in what it took one who found so many there."""
        self._wait.see(requests, size, self.clock() - since)


@dataclass(slots=True)
class Place:
    """A request that is being answered, and what it found when it came.

    `tells`, set when it was answered, or too late: from that is learned what one takes.
    """

    admission: Admission
    size: int
    learns: bool = False
    tells: bool = False
    _since: float = 0.0
    _requests_before: int = 0
    _size_before: int = 0
    _is_in: bool = False

    def enter(self) -> None:
        """Counts as one that waits, from now on."""
        admission = self.admission
        if self.learns:
            self._since = admission.clock()
            self._requests_before, self._size_before = admission.requests, admission.size
        admission.enter(self.size)
        self._is_in = True

    def leave(self) -> None:
        """Makes room."""
        if self._is_in:
            self._is_in = False
            self.admission.leave(self.size)
            if self.tells and self.learns:
                self.admission.learn(self._requests_before, self._size_before, self._since)


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
