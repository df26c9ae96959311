"""Does the current window look like the reference? Statistics of counts, column by column.

Pure functions of `data.counts.Counts`. Drift is said only where a difference is both too large for chance,
over all columns together, and large enough to matter.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.special import gammaincc

from mlops_ray.data.counts import Counts, CountSpec
from mlops_ray.monitoring import tails
from mlops_ray.monitoring.several import holm

#: A window says nothing about a column before so many rows.
MIN_ROWS = 50
#: Cells that expect fewer rows than this fold into one: below it the χ² tail is hardly a guess
#: (Cochran 1954, Biometrics 10, 417-451).
MIN_EXPECTED = 5.0
#: Why a column is untested whose every cell is too small: all would be one.
TOO_THIN = f"no category expects {MIN_EXPECTED:.0f} rows yet"
#: Bias-corrected PSI from which on a difference matters: a shift of about 0.14 standard deviations.
EFFECT_FLOOR = 0.02
#: Family-wise chance of calling drift in one look where there is none.
ALPHA = 1e-4

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Drift:
    """How one column of the current window differs from the reference.

    `g`, its degrees of freedom and `p` are those of the likelihood-ratio test of homogeneity; `p_holm` is `p`
    adjusted for all columns tested in the same look. `psi` and `psi_corrected` are population stability
    indices, `js` the Jensen-Shannon distance in [0, 1]. All are `None` where `untested` says why.
    """

    column: str
    rows: int
    reference_rows: int
    untested: str | None = None
    g: float | None = None
    degrees: int | None = None
    p: float | None = None
    p_holm: float | None = None
    psi: float | None = None
    psi_corrected: float | None = None
    js: float | None = None
    drifted: bool = False

    @property
    def differs(self) -> bool:
        """Whether the difference would be large enough to matter, were it none of chance."""
        return (self.psi_corrected or 0.0) > EFFECT_FLOOR


def compare(
    reference: Counts,
    current: Counts,
    clock: Collection[str] = (),
    alpha: float = ALPHA,
    *,
    exactly: bool = True,
) -> list[Drift]:
    """The drift of each column that both have with the same cells, in the reference's order.

    `clock` are columns that only tell the time: they differ with the hour the window was open, and are not
    tested. Of looks without drift at most the share `alpha` calls any; where not `exactly`, which may take a
    second, up to twice as many.
    """
    known = dict(zip(current.specs, current.cells, strict=True))
    # As much as the least p-value may be to be told.
    share = alpha / max(1, len(reference.specs)) if exactly else 0.0
    found = [
        _untested(spec, cells, known[spec], clock) or column_drift(spec, cells, known[spec], share)
        for spec, cells in zip(reference.specs, reference.cells, strict=True)
        if spec in known
    ]
    adjusted = iter(holm([drift.p for drift in found if drift.p is not None]))
    return [drift if drift.p is None else _judged(drift, next(adjusted), alpha) for drift in found]


def column_drift(
    spec: CountSpec, reference: npt.NDArray[np.int64], current: npt.NDArray[np.int64], alpha: float
) -> Drift:
    """The statistics of one column, not yet adjusted for others; `p` is right where it is near `alpha`.

    With `alpha` 0 it is that of χ².
    """
    ordered = spec.kind == "numeric"
    ours, theirs = fold(reference.astype(float), current.astype(float), ordered=ordered)
    statistic, degrees = g_test(ours, theirs)
    if not degrees and np.count_nonzero(reference + current) > 1:
        return Drift(spec.name, int(current.sum()), int(reference.sum()), untested=TOO_THIN)
    index = psi(ours, theirs)
    bias = (len(ours) - 1) * (1 / theirs.sum() + 1 / ours.sum())
    p = float(gammaincc(degrees / 2, statistic / 2)) if degrees else 1.0
    # The tail of G is rather heavier than that of χ², so that little is missed where that calls nothing.
    if alpha > 0 and p <= alpha and index - bias > EFFECT_FLOOR:
        p = tails.p_value(ours, theirs, statistic, below=alpha)
    return Drift(
        column=spec.name,
        rows=int(current.sum()),
        reference_rows=int(reference.sum()),
        g=statistic,
        degrees=degrees,
        p=p,
        psi=index,
        psi_corrected=index - bias,
        js=jensen_shannon(ours, theirs),
    )


def fold(reference: Numbers, current: Numbers, *, ordered: bool) -> tuple[Numbers, Numbers]:
    """The same counts in fewer cells; all but three expect `MIN_EXPECTED` rows in the smaller sample.

    Neighbours join where cells are `ordered`, but for the last, *missing*, which has none; elsewhere all
    small cells become one, but for the last two, *other* and *missing*: nobody sees a new one in a crowd.

    >>> fold(np.array([97.0, 2.0, 1.0, 900.0, 0, 0]), np.array([8.0, 2.0, 0.0, 90.0, 5, 0]), ordered=False)
    (array([ 97., 900.,   0.,   3.]), array([ 8., 90.,  5.,  2.]))
    >>> fold(np.array([0.0, 40.0, 40.0, 1.0, 0.0]), np.array([0.0, 4.0, 4.0, 7.0, 0.0]), ordered=True)
    (array([40., 41.]), array([ 4., 11.]))
    """
    both = reference + current
    expected = both * min(reference.sum(), current.sum()) / both.sum()
    groups = _neighbours(expected) if ordered else _small_ones(expected)
    size = groups.max() + 1
    ours: Numbers = np.bincount(groups, weights=reference, minlength=size).astype(float)
    theirs: Numbers = np.bincount(groups, weights=current, minlength=size).astype(float)
    some = ours + theirs > 0
    return ours[some], theirs[some]


def _small_ones(expected: Numbers) -> npt.NDArray[np.int64]:
    """The group of each cell: its own, or that of all small ones."""
    kept = expected >= MIN_EXPECTED
    kept[-2:] = True
    return np.where(kept, np.cumsum(kept) - 1, kept.sum())


def _neighbours(expected: Numbers) -> npt.NDArray[np.int64]:
    """The group of each cell: from left to right until a group is large enough; the rest joins the last."""
    groups, gathered, group = [], 0.0, 0
    for amount in expected[:-1]:
        groups.append(group)
        gathered += amount
        if gathered >= MIN_EXPECTED:
            group, gathered = group + 1, 0.0
    last = max(0, group - 1)
    return np.array([*(min(found, last) for found in groups), last + 1])


def g_test(reference: Numbers, current: Numbers) -> tuple[float, int]:
    """The G statistic of homogeneity of two samples, and its degrees of freedom.

    G = 2 Σ O ln(O / E) over the cells of both samples, E from the pooled shares; χ² with (cells - 1) degrees
    where they are the same (Wilks 1935, Annals of Mathematical Statistics 6, 190-196).
    """
    table = np.stack([reference, current])
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    terms = np.where(table > 0, table * np.log(np.where(table > 0, table, 1) / expected), 0.0)
    return max(0.0, 2 * float(terms.sum())), table.shape[1] - 1


def psi(reference: Numbers, current: Numbers) -> float:
    """The population stability index Σ (p - q) ln(p / q), both with half a row added to each cell.

    It is the symmetrised Kullback-Leibler divergence (Jeffreys 1946, Proc. Royal Society A 186, 453-461).
    Where nothing differs, it is about (cells - 1)(1/n + 1/N) all the same: subtract that before judging.
    """
    p, q = _shares(current), _shares(reference)
    return float(((p - q) * np.log(p / q)).sum())


def jensen_shannon(reference: Numbers, current: Numbers) -> float:
    """The Jensen-Shannon distance, base 2, in [0, 1] (Endres, Schindelin 2003, IEEE Trans. IT 49, 1858)."""
    p, q = current / current.sum(), reference / reference.sum()
    middle = (p + q) / 2
    divergence = (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2
    return math.sqrt(min(1.0, max(0.0, divergence)))


def _untested(
    spec: CountSpec, reference: npt.NDArray[np.int64], current: npt.NDArray[np.int64], clock: Collection[str]
) -> Drift | None:
    rows, reference_rows = int(current.sum()), int(reference.sum())
    if spec.name in clock:
        return Drift(spec.name, rows, reference_rows, untested="it only tells the time")
    if min(rows, reference_rows) < MIN_ROWS:
        return Drift(spec.name, rows, reference_rows, untested=f"fewer than {MIN_ROWS} rows")
    return None


def _judged(drift: Drift, p_holm: float, alpha: float) -> Drift:
    return replace(drift, p_holm=p_holm, drifted=p_holm <= alpha and drift.differs)


def _shares(counts: Numbers) -> Numbers:
    smoothed = counts + 0.5
    shares: Numbers = smoothed / smoothed.sum()
    return shares


def _relative_entropy(p: Numbers, q: Numbers) -> float:
    some = p > 0
    return float((p[some] * np.log2(p[some] / q[some])).sum())
