"""p-values adjusted for being several."""

from collections.abc import Sequence


def holm(p_values: Sequence[float], tests: Sequence[int] | None = None) -> list[float]:
    """The p-values adjusted for being several (Holm 1979, Scandinavian Journal of Statistics 6, 65-70).

    Where one is the least of so many `tests`, all of them count.

    >>> holm([0.01, 0.04, 0.02])
    [0.03, 0.04, 0.04]
    >>> holm([0.01, 0.04], [10, 1])
    [0.11, 0.4]
    """
    adjusted = [0.0] * len(p_values)
    largest, left = 0.0, len(p_values) if tests is None else sum(tests)
    for at in sorted(range(len(p_values)), key=p_values.__getitem__):
        largest = max(largest, min(1.0, left * p_values[at]))
        adjusted[at], left = largest, left - 1
    return adjusted


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """The share of false ones among those at most as large (Benjamini, Hochberg 1995, JRSS B 57, 289-300).

    >>> benjamini_hochberg([0.01, 0.04, 0.02])
    [0.03, 0.04, 0.03]
    """
    adjusted = [1.0] * len(p_values)
    least = 1.0
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, at in reversed(list(enumerate(order, 1))):
        least = min(least, p_values[at] * len(p_values) / rank)
        adjusted[at] = least
    return adjusted
