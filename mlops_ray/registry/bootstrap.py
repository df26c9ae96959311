"""How sure a measured figure is: confidence intervals by drawing blocks of rows again and again.

Rows that depend on each other (one time, one patient) are drawn together, as a block: drawn one by one they
would make every figure look surer than it is (Künsch, "The jackknife and the bootstrap for general stationary
observations", 1989).
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from mlops_ray.registry.models import Values

Blocks = npt.NDArray[np.int64]
Interval = tuple[float, float]

DRAWS = 400
#: A bound of the time: values that are drawn in all, unless that leaves too few draws.
MOST_VALUES, FEWEST_DRAWS = 40_000_000, 60
#: Fewer blocks say nothing of how figures vary.
FEWEST_BLOCKS = 5
#: The share of draws that an interval covers.
COVERED = 0.95


def weights(blocks: Blocks, seed: int, draws: int = DRAWS) -> Iterator[Values]:
    """How often each row is drawn, draw by draw: as many blocks as there are, with replacement.

    >>> drawn = list(weights(np.array([0, 0, 1]), seed=7, draws=3))
    >>> [(w[0] == w[1], w[0] + w[2]) for w in drawn] == [(True, 2.0)] * 3
    True
    """
    names, own = np.unique(blocks, return_inverse=True)
    random = np.random.default_rng(seed)
    for _ in range(draws):
        yield random.multinomial(len(names), np.full(len(names), 1 / len(names))).astype(np.float64)[own]


def interval(values: list[float]) -> Interval:
    """The middle `COVERED` of the draws, NaN where one could not be computed in any of them."""
    known = np.array(values)[np.isfinite(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - COVERED) / 2, (1 + COVERED) / 2])
    return float(low), float(high)


def intervals(
    blocks: Blocks, seed: int, figures: Callable[[Values], dict[str, float]], draws: int = DRAWS
) -> dict[str, Interval]:
    """The interval of each figure, NaN where there are too few blocks to say.

    `figures` computes them from the rows' weights. Of very many rows fewer draws are taken.
    """
    if len(np.unique(blocks)) < FEWEST_BLOCKS:
        return dict.fromkeys(figures(np.ones(len(blocks))), (float("nan"), float("nan")))
    draws = max(FEWEST_DRAWS, min(draws, MOST_VALUES // len(blocks)))
    drawn = [figures(each) for each in weights(blocks, seed, draws)]
    return {name: interval([figure[name] for figure in drawn]) for name in drawn[0]}
