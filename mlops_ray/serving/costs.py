"""What work takes, learned from what it took: the latest counts most."""

import operator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

#: What an observation still counts when the next has come: about the last hundred decide, or twenty.
KEPT, KEPT_OF_LINE = 0.99, 0.95
#: A line takes an observation for at most this many times what it expects, once it has seen a few: a
#: moment in which the machine did something else is no cost of the work, and slower work shows soon.
MOST_TIMES, FEW = 3.0, 3.0
#: No wait is expected to be under a millisecond.
LEAST_S = 0.001
#: Observations between two solutions of the equations, which take 50 µs, and steps towards one.
SOLVED_EVERY, SWEEPS = 32, 10


@dataclass
class Line:
    """Seconds as a straight line, y = a + b · x, by least squares; neither a nor b is below zero.

    >>> cost = Line()
    >>> for rows in (1, 10, 100):
    ...     cost.see(rows, 0.002 + 0.0001 * rows)
    >>> round(cost(50), 6)
    0.007
    """

    fixed: float = 0.0
    each: float = 0.0
    _sums: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)

    def __call__(self, x: float) -> float:
        return self.fixed + self.each * x

    @property
    def is_told_apart(self) -> bool:
        """Whether what was seen says what more would cost: all of one size do not."""
        n, sx, _, sxx, _ = self._sums
        return n * sxx - sx * sx > 1e-6 * n * sxx

    def see(self, x: float, y: float) -> None:
        """Takes in one observation."""
        n, sx, sy, sxx, sxy = (KEPT_OF_LINE * each for each in self._sums)
        y = y if n < FEW else min(y, MOST_TIMES * self(x))
        n, sx, sy, sxx, sxy = self._sums = n + 1, sx + x, sy + y, sxx + x * x, sxy + x * y
        each = (n * sxy - sx * sy) / (n * sxx - sx * sx) if self.is_told_apart else 0.0
        fixed = (sy - each * sx) / n
        if each < 0:
            each, fixed = 0.0, sy / n
        elif fixed < 0:
            each, fixed = (sxy / sxx if sxx else 0.0), 0.0
        self.fixed, self.each = fixed, each


@dataclass
class Wait:
    """Seconds until a newcomer is answered, by the requests that were there before it, and their bytes.

    A plane through what it took those before, with all that the process does besides; none of its parts is
    below zero.
    """

    fixed: float = 0.0
    each_request: float = 0.0
    each_byte: float = 0.0
    _left: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((3, 3)))
    _right: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    _new: list[tuple[float, float, float, float]] = field(default_factory=list)
    _solved: int = 0

    def __call__(self, requests: int, size: int) -> float:
        return self.fixed + self.each_request * requests + self.each_byte * size

    def see(self, requests: int, size: int, seconds: float) -> None:
        """Takes in what it took one; of much more than was expected only some, as `Line` does."""
        if self._solved >= FEW:
            seconds = min(seconds, MOST_TIMES * max(self(requests, size), LEAST_S))
        self._new.append((1.0, requests, size, seconds))
        if len(self._new) >= SOLVED_EVERY:
            self._solve()

    def _solve(self) -> None:
        """Goes on from what was found before, one part after the other, to the least squares above zero.

        Where the same number of requests is always there, the parts cannot be told apart: what they come to
        is right after one sweep, and how they share it stays as it was.
        """
        seen = np.array(self._new)
        self._new = []
        self._solved += 1
        kept = KEPT ** len(seen)
        self._left = kept * self._left + seen[:, :3].T @ seen[:, :3]
        self._right = kept * self._right + seen[:, :3].T @ seen[:, 3]
        left, right = self._left.tolist(), self._right.tolist()
        found = [self.fixed, self.each_request, self.each_byte]
        for _ in range(SWEEPS):
            for at, row in enumerate(left):
                if row[at] > 0:
                    rest = right[at] - sum(map(operator.mul, row, found))
                    found[at] = max(0.0, found[at] + rest / row[at])
        self.fixed, self.each_request, self.each_byte = found
