"""A metric of reference rows, how much it varies, and whether that of other rows is worse."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import special

from mlops_ray.monitoring.alarms import Finding
from mlops_ray.registry import metrics
from mlops_ray.registry.bootstrap import FEWEST_BLOCKS, Blocks
from mlops_ray.registry.models import Values

#: A loss (what a metric is short of the best) matters that has grown by so much of itself.
FLOOR = 0.05
#: Beyond this nothing is worse; JSON must hold it.
MOST_HARM = 1e9
#: Blocks are left out one by one, or, of more, in so many groups: a bound of the time. A deviation is
#: believed to be known by no more of them.
GROUPS = 500
#: A distribution less skewed is normal as far as a double knows; p-values below the other are all the same.
LEAST_SKEW, LEAST_P = 1e-3, 1e-300


@dataclass(frozen=True)
class Figure:
    """A metric over the labelled reference, and how much it varies from one sample of `rows` to the next.

    `freedom` are the degrees of freedom of that deviation: independent blocks, less one. `skew` is that of
    the metric's loss over such samples.
    """

    value: float
    deviation: float
    rows: int
    freedom: int
    skew: float = 0.0

    def deviation_of(self, rows: int) -> float:
        """How much the metric varies over so many rows, which may all be of one block.

        However many rows a day has, it is one day.
        """
        of_a_block = self.rows / (self.freedom + 1)
        return float(
            self.deviation * np.sqrt(self.rows / (min(rows, of_a_block) if of_a_block > 1 else rows))
        )

    def worse(self, metric: str, value: float, rows: int) -> float:
        """How likely chance alone makes the metric of so many rows as bad as this; 1.0 where nobody knows."""
        own = self.deviation_of(rows)
        spread = np.hypot(self.deviation, own)
        if not np.isfinite(spread) or not spread or not np.isfinite(value):
            return 1.0
        # The third cumulant of a mean goes by the square of its variance. A reference that was lucky knows a
        # deviation that is too small, besides: three times their covariance (Hall, The Bootstrap and
        # Edgeworth Expansion, 1992, section 2.6).
        cubes = (own**4 / self.deviation - self.deviation**3) / spread**3
        skew = self.skew * (cubes + 3 * self.deviation / spread)
        at = (loss(metric, value) - loss(metric, self.value)) / spread
        return float(special.stdtr(self._known, -straightened(at, skew)))

    @property
    def _known(self) -> float:
        """The degrees of freedom of the deviation: fewer where the blocks' parts have long tails.

        A variance of n parts of this kurtosis has 2 n / (2 + kurtosis) (O'Neill 2014, The American
        Statistician 68, 282-296); it is 3/2 of the squared skew in Pearson's third type.
        """
        blocks = self.freedom + 1
        return min(float(self.freedom), GROUPS - 1.0, 2 * blocks / (2 + 1.5 * self.skew**2 * blocks))


def straightened(at: float, skew: float) -> float:
    """The deviation that is as rare in a normal distribution as `at` is in one with this skew.

    That is Pearson's third type, a gamma distribution moved: a sum of few squares or absolute errors is one
    very nearly. Skewed to the left, it is taken for normal: large losses are rarer still.

    >>> straightened(3.0, 0.0), round(straightened(3.0, 1.0), 1)
    (3.0, 2.3)
    """
    if not skew > LEAST_SKEW:
        return at
    shape = 4 / skew**2
    rarity = special.gammaincc(shape, max(0.0, shape + at * np.sqrt(shape)))
    return float(-special.ndtri(max(LEAST_P, rarity)))


def of_mean(losses: Values, blocks: Blocks, *, is_root: bool = False) -> Figure | None:
    """The figure of the mean of rows' losses, or of the root of it; `None` where there are too few blocks.

    Its deviation and its skew are those of what each block adds to it, so that no draws are needed, and no
    noise of theirs is in its tails (linearisation of a ratio; Shao and Tu, The Jackknife and Bootstrap,
    1995, section 2.1).
    """
    names, own = np.unique(blocks, return_inverse=True)
    mean = float(losses.mean()) if len(losses) else float("nan")
    if len(names) < FEWEST_BLOCKS or not np.isfinite(mean) or (is_root and mean <= 0):
        return None
    slope = 0.5 / np.sqrt(mean) if is_root else 1.0
    parts = slope * np.bincount(own, losses - mean) / len(losses)
    return _figure(float(np.sqrt(mean)) if is_root else mean, parts, len(losses), len(names))


def jackknifed(metric: str, blocks: Blocks, score: Callable[[Values], float]) -> Figure | None:
    """The figure of any metric of rows, `score` by their weights; `None` where they do not say it.

    As `of_mean`, what a block adds being what is lacking without it (the grouped jackknife, ibid., 2.3).
    """
    names, own = np.unique(blocks, return_inverse=True)
    count, value = len(names), score(np.ones(len(blocks)))
    if count < FEWEST_BLOCKS or not np.isfinite(value):
        return None
    # Blocks that follow each other resemble each other, and stay together.
    groups = own * min(count, GROUPS) // count
    without = np.array([score((groups != group).astype(np.float64)) for group in range(groups.max() + 1)])
    if not np.isfinite(without).all():
        return None
    added = [loss(metric, each) for each in without.tolist()]
    return _figure(float(value), np.mean(added) - np.array(added), len(blocks), count)


def _figure(value: float, parts: Values, rows: int, blocks: int) -> Figure:
    """A figure whose loss is the sum of these parts, which are independent and 0 on average."""
    count, squares = len(parts), float(np.square(parts).sum())
    if squares <= 0:
        return Figure(value, 0.0, rows, blocks - 1)
    skew = float((parts**3).sum()) / squares**1.5
    if count == blocks:
        # Of a longer tail than that of Pearson's third type so much is believed as makes its kurtosis, which
        # of groups of blocks nobody knows.
        kurtosis = max(0.0, count * float((parts**4).sum()) / squares**2 - 3)
        skew = max(skew, np.sqrt(kurtosis / 1.5 / count))
    # The skew of few is known badly, and as a rule too small: one standard error more is believed.
    skew += np.sqrt(6.0) / count
    return Figure(value, float(np.sqrt(squares * count / (count - 1))), rows, blocks - 1, float(skew))


def finding(metric: str, figure: Figure, value: float, rows: int, how: str) -> Finding:
    """Whether a metric, `how` it is known ("estimated", "realised"), is worse than in the reference."""
    before, now = loss(metric, figure.value), loss(metric, value)
    said = f"the {how} {metric} of {rows:,} rows is {value:.4g}, in the reference {figure.value:.4g}"
    matters = bool(now > before * (1 + FLOOR))
    harm = min((now - before) / max(before, 1e-12), MOST_HARM)
    p = figure.worse(metric, value, rows)
    return Finding(f"{how} {metric}", "performance", p, matters, said, harm)


def loss(metric: str, value: float) -> float:
    """The metric turned so that less is better, and 0 the best."""
    found = metrics.METRICS.get(metric)
    return value if found is not None and found.better == "lower" else 1.0 - value


def of_json(
    value: float, deviation: float | None, rows: int, freedom: int, skew: float | None = 0.0
) -> Figure:
    """What JSON, which knows no NaN, has of one; older packages know nothing of its skew."""
    return Figure(value, float("nan") if deviation is None else deviation, rows, freedom, skew or 0.0)
