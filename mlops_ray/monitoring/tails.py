"""How likely chance alone makes two samples as different as these, where the χ² tail is not to be trusted.

Far out the tail of G with small counts is up to twice as heavy as that of χ², and alarms live out there. Two
answers are right for any counts: a bound where the difference is great, and draws where it is not.
"""

import math

import numpy as np
import numpy.typing as npt
from scipy.special import xlogy

#: Draws are made so many at a time, as many as fit the cache; it ends when so many were as different.
TOGETHER, ENOUGH = 20_000, 20
#: Draws of one test at most; a smaller share of the budget than of one in these is not told apart.
MOST_DRAWS = 2_000_000

Numbers = npt.NDArray[np.float64]


def p_value(reference: Numbers, current: Numbers, statistic: float, *, below: float) -> float:
    """A p-value of the G statistic of two samples, by cell, that is never too small.

    It is precise where it is near `below`: one that is far smaller may be told as `below` / 2. The same
    counts give the same value. Where the bound decides, draws would have: it is far above the truth.
    """
    bound = most(statistic, len(reference))
    return bound if bound <= below else drawn(reference, current, statistic, below=below)


def most(statistic: float, cells: int) -> float:
    """The most that the probability of such a G can be, for samples of any size.

    Half of G is at most the sum of both samples' n · D(observed ‖ true), and of each of them the mean of
    exp(t · n · D) is at most (1 - t)^(1 - cells), t in [0, 1) (Agrawal 2020, Finite-sample concentration of
    the multinomial in relative entropy, IEEE Trans. Information Theory 66). With the best t that is a bound.

    >>> most(160.0, 20) < 1e-5 < most(140.0, 20)
    True
    """
    half, freedom = statistic / 2, 2.0 * (cells - 1)
    if half <= freedom or not freedom:
        return 1.0
    return math.exp(freedom - half + freedom * math.log(half / freedom))


def drawn(reference: Numbers, current: Numbers, statistic: float, *, below: float, seed: int = 0) -> float:
    """A p-value by draws of both samples from all rows of them together, of any counts right.

    It ends early where it is clear that it is above `below` (Besag and Clifford 1991, Sequential Monte Carlo
    p-values, Biometrika 78).

    Each pair of samples has draws of its own: were they the same for all, chance that makes one test too
    liberal would make every test of a model so, look by look.
    """
    both = (reference + current).astype(np.int64)
    random = np.random.default_rng([seed, *both.tolist(), *current.astype(np.int64).tolist()])
    rows = int(current.sum())
    # Of so many draws one may be as different, by chance.
    draws = min(math.ceil(2 / below), MOST_DRAWS)
    seen = exceeded = 0
    # What differs by rounding alone is as different.
    least = statistic * (1 - 1e-9)
    while seen < draws:
        number = min(TOGETHER, draws - seen)
        windows = random.multivariate_hypergeometric(both, rows, size=number, method="marginals")
        as_different = np.flatnonzero(statistics(both, windows) >= least)
        if exceeded + len(as_different) >= ENOUGH:
            return ENOUGH / (seen + int(as_different[ENOUGH - exceeded - 1]) + 1)
        exceeded += len(as_different)
        seen += number
    return (exceeded + 1) / (seen + 1)


def statistics(both: npt.NDArray[np.int64], windows: npt.NDArray[np.int64]) -> Numbers:
    """The G statistics (windows) of windows (windows, cells), each against the rest of `both` (cells)."""
    rest = both - windows
    total, rows = float(both.sum()), float(windows[0].sum())
    cells = (xlogy(windows, windows) + xlogy(rest, rest)).sum(axis=1)
    edges = xlogy(both, both).sum() + xlogy(rows, rows) + xlogy(total - rows, total - rows)
    found: Numbers = 2 * (cells - edges + xlogy(total, total))
    return found
