"""What a difference looks like: a fault of the data, or a world that has changed, in a sentence.

From counts alone, which every column has. Where the reference is known only by its cells, "the reference's
largest value" is the largest of the half of it that the cells were chosen on.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mlops_ray.data.counts import BINS, Cells, CountSpec
from mlops_ray.monitoring.alarms import Finding, Kind
from mlops_ray.monitoring.deltas import PREDICTION
from mlops_ray.monitoring.drift import Drift, jensen_shannon
from mlops_ray.registry.models import Values

#: A cell that explains so much of a difference is what it is about.
MOST_OF_IT = 0.5
#: Values nearly all in one cell that held at most `SCATTERED` of the reference: a column that stands still.
ONE_CELL, SCATTERED = 0.95, 0.5
#: Of values that lie outside the reference so many are no tail of it.
OUTSIDE = 0.3
#: Shares of categories that are so close once they are sorted are the same under other names.
SAME_SHARES, OTHER_NAMES = 0.1, 0.3

#: Usual conversions, factor and summand: decimal prefixes, minutes and hours, inches, feet and miles, ounces
#: and pounds, degrees.
_FACTORS = (10, 100, 1_000, 1e6, 1e9, 12, 24, 60, 3_600, 2.54, 25.4, 3.28084, 1.609344, 28.3495, 2.20462, 3.6)
CONVERSIONS = (
    *((float(factor), 0.0) for factor in _FACTORS),
    *((1 / factor, 0.0) for factor in _FACTORS),
    (1.8, 32.0),
    (1 / 1.8, -32 / 1.8),
    (1.0, 273.15),
    (1.0, -273.15),
)
#: How near quantiles must be, as a share of what they span, and of how many values they are.
NEAR, FEWEST = 0.05, 200
#: Factors that quantiles of few values do not tell from a column that has grown.
MILD = 3.0

Shares = npt.NDArray[np.float64]


class Sight(NamedTuple):
    """What a column's difference is, the sentence that says so, and whether a calendar could make it."""

    kind: Kind
    evidence: str
    is_timely: bool = True


def finding(
    drift: Drift,
    spec: CountSpec,
    reference: Cells,
    current: Cells,
    values: Values | None = None,
    *,
    has_seasons: bool = False,
) -> Finding:
    """A tested column as an answer to "does it differ?", with a sentence where it does.

    Where the rows have seasons, what a calendar could make is no answer.
    """
    name, p, harm = drift.column, drift.p or 0.0, drift.psi or 0.0
    if not drift.differs:
        return Finding(name, "input", p, matters=False, harm=harm, column=name)
    kind, evidence, is_timely = sight(spec, reference, current, values)
    if has_seasons and is_timely:
        return Finding(name, kind, 1.0, matters=False, harm=harm, column=name)
    if spec.name == PREDICTION and kind == "input":
        kind = "prediction"
    return Finding(name, kind, p, matters=True, evidence=evidence, harm=harm, column=name)


def sight(spec: CountSpec, reference: Cells, current: Cells, values: Values | None = None) -> Sight:
    """What the difference of one column looks like; with the window's `values` also a change of unit is seen.

    >>> site = CountSpec("site", "categorical", categories=("a", "b"))
    >>> sight(site, np.array([500, 500, 0, 0]), np.array([40, 40, 0, 20]))
    Sight(kind='data', evidence='20 % of site are missing, 0 % in the reference', is_timely=False)
    """
    ours, theirs = _shares(reference), _shares(current)
    if _of_difference(ours, theirs)[-1] > MOST_OF_IT and theirs[-1] > ours[-1]:
        said = f"{percent(theirs[-1])} of {spec.name} are missing, {percent(ours[-1])} in the reference"
        return Sight("data", said, is_timely=False)
    if spec.kind == "categorical":
        return _categories(spec, ours, theirs)
    return (None if values is None else _by_values(spec, ours, values)) or _numbers(spec, ours, theirs)


def _by_values(spec: CountSpec, ours: Shares, values: Values) -> Sight | None:
    """What the values of a column of numbers show that its cells do not."""
    known = values[np.isfinite(values)]
    if len(known):
        found, times = np.unique(known, return_counts=True)
        share, at = times.max() / len(known), found[times.argmax()]
        if share > ONE_CELL and ours[int(spec.count(found[[times.argmax()]]).argmax())] < SCATTERED:
            return Sight("data", f"it stands still: {percent(share)} of {spec.name} are {at:.4g}")
    unit = _conversion(spec, known)
    if unit is None:
        return None
    factor, shift = unit
    added = f" and {shift:g}" if shift else ""
    return Sight(
        "data", f"{spec.name} is as it was, times {factor:.4g}{added}: another unit?", is_timely=False
    )


def _categories(spec: CountSpec, ours: Shares, theirs: Shares) -> Sight:
    name, other = spec.name, len(spec.categories)
    if _of_difference(ours, theirs)[other] > MOST_OF_IT and theirs[other] > ours[other]:
        said = f"{percent(theirs[other])} of {name} are of categories that the reference hardly has"
        return Sight("data", f"{said} ({percent(ours[other])})", is_timely=False)
    largest = int(np.argmax(theirs))
    if theirs[largest] > ONE_CELL and ours[largest] < SCATTERED:
        return Sight("data", _still(spec, largest, ours, theirs))
    far = jensen_shannon(ours, theirs)
    if far > OTHER_NAMES and jensen_shannon(np.sort(ours), np.sort(theirs)) < SAME_SHARES * far:
        moved = sorted(np.argsort(-abs(theirs - ours))[:2].tolist())
        names = " and ".join(spec.labels[at] for at in moved)
        return Sight("data", f"the categories of {name} have changed places, {names} first of all: recoded?")
    return Sight("input", _most_moved(spec, ours, theirs))


def _numbers(spec: CountSpec, ours: Shares, theirs: Shares) -> Sight:
    name, present = spec.name, theirs[:-1].sum()
    for at, side, end in ((0, "below", "least"), (-2, "above", "largest")):
        if spec.edges and present and theirs[at] / present > OUTSIDE:
            edge = spec.edges[0 if at == 0 else -1]
            said = f"{percent(theirs[at])} of {name} lie {side} {edge:.4g}, the {end} of the reference"
            return Sight("data", f"{said}: another unit?")
    largest = int(np.argmax(theirs[:-1]))
    if present and theirs[largest] / present > ONE_CELL and ours[largest] < SCATTERED:
        return Sight("data", _still(spec, largest, ours, theirs))
    return Sight("input", _most_moved(spec, ours, theirs))


def _conversion(spec: CountSpec, known: Values) -> tuple[float, float] | None:
    """The factor and the summand of a usual conversion that makes the reference's quantiles the window's."""
    if len(spec.edges) != BINS + 1 or len(known) < FEWEST:
        return None
    middle = np.arange(2, BINS - 1)
    before = np.array(spec.edges)[middle]
    now = np.quantile(known, middle / BINS)
    spread = before[-1] - before[0]
    slope, _ = np.polyfit(before, now, 1)
    for factor, shift in CONVERSIONS:
        # A column may become half as large again of itself, hardly a hundredth.
        near = NEAR if 1 / MILD < factor < MILD else max(NEAR, 2 / len(known) ** 0.5)
        if abs(slope / factor - 1) < near and np.abs((now - shift) / factor - before).max() < near * spread:
            return factor, shift
    return None


def _still(spec: CountSpec, at: int, ours: Shares, theirs: Shares) -> str:
    return f"it stands still: {_cell(spec, at, ours, theirs)}"


def _most_moved(spec: CountSpec, ours: Shares, theirs: Shares) -> str:
    """Which way a column of numbers went, which category did."""
    if spec.kind == "numeric" and spec.edges:
        rank = np.arange(len(ours) - 1)
        moved = _mean(rank, theirs[:-1]) - _mean(rank, ours[:-1])
        halves = [_middle(spec, shares) for shares in (ours, theirs)]
        if halves[0] != halves[1]:
            way = "larger" if moved > 0 else "smaller"
            return f"{spec.name} is {way}: half lies below {halves[1]}, of the reference below {halves[0]}"
    return _cell(spec, int(np.argmax(_of_difference(ours, theirs))), ours, theirs)


def _cell(spec: CountSpec, at: int, ours: Shares, theirs: Shares) -> str:
    label = spec.labels[at]
    place = label if spec.kind == "categorical" or label[0] in "<>m" else f"in {label}"
    return f"{percent(theirs[at])} of {spec.name} are {place}, {percent(ours[at])} in the reference"


def _middle(spec: CountSpec, shares: Shares) -> str:
    """The end of the cell in which the median lies."""
    cumulated = np.cumsum(shares[:-1])
    at = int(np.searchsorted(cumulated, cumulated[-1] / 2)) if cumulated[-1] else 0
    return f"{spec.edges[min(at, len(spec.edges) - 1)]:.4g}"


def _of_difference(ours: Shares, theirs: Shares) -> Shares:
    """Each cell's part in the population stability index, in all 1."""
    parts: Shares = (theirs - ours) * np.log((theirs + 1e-4) / (ours + 1e-4))
    total = parts.sum()
    return parts / total if total > 0 else parts


def _mean(values: npt.NDArray[np.int64], weights: Shares) -> float:
    return float((values * weights).sum() / max(weights.sum(), 1e-12))


def _shares(cells: Cells) -> Shares:
    shares: Shares = cells / max(1, cells.sum())
    return shares


def percent(share: float) -> str:
    """A share in two digits.

    >>> percent(0.25), percent(0.0123)
    ('25 %', '1.2 %')
    """
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"
