"""From the sum a classifier makes to the probability of the label 1, and how its file says that it does."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from mlops_ray.registry.arrays import Array
from mlops_ray.registry.encoder import Values

#: Farther from 0 the probability stays where it is, and the exponential would be too large a number.
FARTHEST = 700.0


def probability(sums: Values) -> Values:
    """`1 / (1 + exp(-sum))` of each.

    Not `numpy.exp`: which code it runs, and so the last digit, may depend on how many numbers there are.

    >>> probability(np.array([0.0, np.inf, -800.0])).round(3).tolist()
    [0.5, 1.0, 0.0]
    """
    probabilities: Values = 1.0 / (1.0 + each(math.exp, -sums))
    return probabilities


def each(function: Callable[[float], float], values: Values) -> Values:
    """`function` of each value, which counts for at most `FARTHEST`."""
    found = map(function, np.clip(values, -FARTHEST, FARTHEST).tolist())
    return np.fromiter(found, np.float64, count=len(values))


def flag(classifies: bool) -> list[Array]:
    """What a file of arrays ends with where its model classifies; nothing where it does not."""
    return [np.array(True)] if classifies else []


def take_flag(arrays: Sequence[Array]) -> tuple[Sequence[Array], bool]:
    """The arrays before the `flag`, and whether it is there."""
    is_there = bool(arrays) and arrays[-1].dtype == np.bool_ and arrays[-1].ndim == 0 and bool(arrays[-1])
    return (arrays[:-1], True) if is_there else (arrays, False)
