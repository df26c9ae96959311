"""False alarms in simulated quarters without drift, and how soon drift is found.

Every quarter has a reference of its own, half of which makes the cells and half of which is counted, as in
`data.counts.reference`; its windows are drawn from the same distribution, multinomially, so that thousands of
quarters run. They are judged by the service's own rules: the G test with exact tails, a share of the
budget for each look, Holm over the columns, episodes that open once and end. The arithmetic of many windows
at a time is compared with `drift.compare` on some of them. Beside it stand the usual defaults. `--quick`
takes 40 quarters of a few cells, and claims nothing that needs more.
"""

import argparse
import itertools
import math
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.special import gammaincc, xlogy

from benchmarks.report import Claim, finish
from mlops_ray.data.counts import BINS, Counts, CountSpec
from mlops_ray.monitoring import alarms, drift, tails
from mlops_ray.monitoring.alarms import Alarms, Budget, Finding

QUARTERS, QUICK_QUARTERS = 1_000, 40
ROWS = (50, 200, 1_000, 10_000)
REFERENCES = (1_000, 100_000)
KINDS = ("numeric", "skewed", "ties", "long tail")
#: Looks a quarter, and with how many columns.
RHYTHMS = ((90, 5), (90, 100), (2_160, 5))
#: Looks of a cell that are judged again by `drift.compare`.
COMPARED = 20
#: Shifts of one of five columns, in standard deviations; for the smallest the floor is 0.
SHIFTS = (0.1, 0.25, 0.5, 1.0)
#: Windows within which a shift is to be found, in what share of the runs.
WITHIN, FOUND = 3, 0.95

Numbers = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Cell:
    """One cell of the table: rows of a window, of the reference, kind and number of columns, looks."""

    rows: int
    reference: int
    kind: str
    columns: int
    looks: int


@dataclass(frozen=True)
class Shape:
    """A column's cells: their true probabilities, and the reference's counts; the last is *missing*."""

    chances: Numbers
    counted: Whole
    ordered: bool


def _numeric(random: np.random.Generator, reference: int, missing: float = 0.0) -> Shape:
    """Any continuous distribution: what lies between quantiles of a sample is Dirichlet's."""
    half = reference // 2
    ranks = np.maximum(1, np.ceil(half * np.arange(BINS + 1) / BINS)).astype(int)
    steps = np.diff([0, *ranks, half + 1])
    chances = np.append(random.dirichlet(steps) * (1 - missing), missing)
    return Shape(chances, random.multinomial(reference - half, chances), ordered=True)


def _ties(random: np.random.Generator, reference: int) -> Shape:
    """Whole numbers, of which 0 is the commonest: several quantiles are the same."""
    values = stats.nbinom.pmf(np.arange(40), 1.2, 0.3)
    values /= values.sum()
    half = reference // 2
    reached = np.cumsum(random.multinomial(half, values))
    edges = np.unique(np.searchsorted(reached, np.maximum(1, np.ceil(half * np.arange(BINS + 1) / BINS))))
    cell = np.searchsorted(edges, np.arange(len(values)), side="left") + (np.arange(len(values)) == edges[0])
    chances = np.append(np.bincount(cell, values, minlength=len(edges) + 1), 0.0)
    return Shape(chances, random.multinomial(reference - half, chances), ordered=True)


def _long_tail(random: np.random.Generator, reference: int) -> Shape:
    """Categories by Zipf's law; those that the first half did not have are *other*."""
    values = 1 / np.arange(1, 121) ** 1.3
    values /= values.sum()
    half = reference // 2
    known = random.multinomial(half, values) > 0
    chances = np.array([*values[known], values[~known].sum(), 0.0])
    return Shape(chances, random.multinomial(reference - half, chances), ordered=False)


def shape(random: np.random.Generator, kind: str, reference: int) -> Shape:
    """A column of a kind with a reference of its own."""
    if kind == "ties":
        return _ties(random, reference)
    if kind == "long tail":
        return _long_tail(random, reference)
    return _numeric(random, reference, missing=0.03 if kind == "skewed" else 0.0)


@dataclass(frozen=True)
class Judged:
    """Of many windows of one column: the p-value, and whether the difference would matter."""

    p: Numbers
    matters: npt.NDArray[np.bool_]


def judge(column: Shape, windows: Whole, below: float, floor: float = drift.EFFECT_FLOOR) -> Judged:
    """What `drift.column_drift` says of each window (windows, cells); p is right where it is near `below`."""
    ours, theirs = _fold(column, windows.astype(float))
    some = ours + theirs > 0
    cells = some.sum(axis=1)
    total, rows = ours.sum(axis=1), theirs.sum(axis=1)
    both = ours + theirs
    terms = xlogy(ours, ours) + xlogy(theirs, theirs) - xlogy(both, both)
    edges = xlogy(total, total) + xlogy(rows, rows) - xlogy(total + rows, total + rows)
    g = np.maximum(0.0, 2 * (terms.sum(axis=1) - edges))
    p = np.where(cells > 1, gammaincc((cells - 1) / 2, g / 2), 1.0)
    share = np.where(some, theirs + 0.5, 0) / (rows + 0.5 * cells)[:, None]
    before = np.where(some, ours + 0.5, 0) / (total + 0.5 * cells)[:, None]
    ratio = np.log(np.where(some, share, 1) / np.where(some, before, 1))
    index = ((share - before) * ratio).sum(axis=1) - (cells - 1) * (1 / rows + 1 / total)
    matters = index > floor
    for at in np.flatnonzero((p <= below) & matters):
        kept = some[at]
        p[at] = tails.p_value(ours[at, kept], theirs[at, kept], float(g[at]), below=below)
    return Judged(p, matters)


def _fold(column: Shape, windows: Numbers) -> tuple[Numbers, Numbers]:
    """`drift.fold` of each window."""
    number, cells = windows.shape
    reference = np.broadcast_to(column.counted.astype(float), windows.shape)
    both = reference + windows
    smaller = min(float(column.counted.sum()), float(windows[0].sum()))
    expected = both * smaller / both[0].sum()
    if column.ordered:
        groups = _neighbours(expected)
    else:
        kept = expected >= drift.MIN_EXPECTED
        kept[:, -2:] = True
        groups = np.where(kept, np.cumsum(kept, axis=1) - 1, kept.sum(axis=1, keepdims=True))
    places = (groups + np.arange(number)[:, None] * cells).ravel()
    folded = [
        np.bincount(places, each.ravel(), number * cells).reshape(number, cells)
        for each in (reference, windows)
    ]
    return folded[0], folded[1]


def _neighbours(expected: Numbers) -> Whole:
    number, cells = expected.shape
    groups = np.zeros((number, cells), np.int64)
    gathered, group = np.zeros(number), np.zeros(number, np.int64)
    for at in range(cells - 1):
        groups[:, at] = group
        gathered += expected[:, at]
        full = gathered >= drift.MIN_EXPECTED
        group, gathered = group + full, np.where(full, 0.0, gathered)
    last = np.maximum(0, group - 1)
    groups = np.minimum(groups, last[:, None])
    groups[:, -1] = last + 1
    return groups


def episodes(cell: Cell, seed: int) -> int:
    """The false episodes of one quarter."""
    random = np.random.default_rng(seed)
    columns = [shape(random, cell.kind, cell.reference) for _ in range(cell.columns)]
    share = Budget(1.0, cell.looks).share(1.0)
    judged = [
        judge(each, random.multinomial(cell.rows, each.chances, size=cell.looks), share / cell.columns)
        for each in columns
    ]
    p = np.stack([each.p for each in judged])
    matters = np.stack([each.matters for each in judged])
    # A look at which nothing is as unlikely finds nothing, and is passed over while no episode goes on.
    candidates = np.flatnonzero(((p * cell.columns <= share) & matters).any(axis=0))
    state, at = Alarms(0.0), 0
    while True:
        if state.open is None:
            later = candidates[candidates >= at]
            at = int(later[0]) if len(later) else cell.looks
        if at >= cell.looks:
            break
        asked = [
            Finding(str(number), "input", float(p[number, at]), bool(matters[number, at]))
            for number in range(cell.columns)
        ]
        state.take(alarms.look(float(at), share, asked), "1")
        at += 1
    return len(state.episodes)


def differing(cell: Cell, seed: int) -> int:
    """Windows that `drift.compare` judges otherwise than `judge`."""
    random = np.random.default_rng(seed)
    column = shape(random, cell.kind, cell.reference)
    windows = random.multinomial(cell.rows, column.chances, size=COMPARED)
    below = 0.05
    judged = judge(column, windows, below)
    cells = len(column.chances)
    spec = (
        CountSpec("x", "numeric", edges=tuple(map(float, range(cells - 2))))
        if column.ordered
        else CountSpec("x", "categorical", categories=tuple(map(str, range(cells - 2))))
    )
    reference = Counts((spec,), [column.counted], int(column.counted.sum()))
    wrong = 0
    for at, window in enumerate(windows):
        (found,) = drift.compare(reference, Counts((spec,), [window], cell.rows), alpha=below)
        if found.untested is None:
            wrong += (
                not math.isclose(found.p or 0.0, judged.p[at], rel_tol=1e-6)
                or found.differs != judged.matters[at]
            )
    return wrong


def _cells(quick: bool) -> Iterator[Cell]:
    for kind, rows, reference, (looks, columns) in itertools.product(KINDS, ROWS, REFERENCES, RHYTHMS):
        if not quick or (columns == 5 and looks == 90 and reference == 1_000):
            yield Cell(rows, reference, kind, columns, looks)


def _of_cell(asked: tuple[Cell, int]) -> tuple[Cell, list[int], int]:
    cell, quarters = asked
    return cell, [episodes(cell, seed) for seed in range(quarters)], differing(cell, 1_000_000)


def upper(counts: list[int]) -> float:
    """The upper 99 % bound of their mean."""
    mean, spread = float(np.mean(counts)), float(np.std(counts, ddof=1))
    return mean + float(stats.norm.ppf(0.99)) * spread / math.sqrt(len(counts))


def found_within(rows: int, shift: float | str, runs: int) -> list[float]:
    """Of so many runs, the share in which a change is found in the first window, ... in the third.

    A day's look at five columns of numbers, reference 100,000; one has moved by so many standard deviations,
    or lacks values in one row of twenty, or is one of categories of which one is new.
    """
    random = np.random.default_rng(3)
    below = Budget(1.0, 90).share(1.0) / 5
    first = []
    for _ in range(runs):
        column = shape(random, "long tail" if shift == "new category" else "numeric", 100_000)
        chances = column.chances
        if isinstance(shift, float):
            # Between the quantiles of a standard normal, moved.
            ends = stats.norm.ppf(np.cumsum(chances[:-2]))
            chances = np.append(np.diff([0, *stats.norm.cdf(ends - shift), 1]), 0.0)
        else:
            chances = chances * 0.95
            chances[-1 if shift == "5 % missing" else -2] += 0.05
        windows = random.multinomial(rows, chances, size=WITHIN)
        judged = judge(column, windows, below, 0.0 if shift == SHIFTS[0] else drift.EFFECT_FLOOR)
        found = np.flatnonzero((judged.p <= below) & judged.matters)
        first.append(found[0] if len(found) else WITHIN)
    return [float(np.mean(np.array(first) <= at)) for at in range(WITHIN)]


def usual(rows: int, runs: int) -> dict[str, float]:
    """In what share of quiet looks at five normal columns the usual defaults say drift."""
    random = np.random.default_rng(4)
    reference = random.normal(size=10_000)
    ends = np.quantile(reference, np.linspace(0, 1, 11))[1:-1]
    before = np.bincount(np.searchsorted(ends, reference), minlength=10) / len(reference)
    called = dict.fromkeys(("PSI > 0.1", "JS > 0.1", "Wasserstein > 0.1 SD", "KS p < 0.05"), 0)
    for _ in range(runs):
        says = dict.fromkeys(called, False)
        for _ in range(5):
            window = random.normal(size=rows)
            now = np.bincount(np.searchsorted(ends, window), minlength=10) / rows
            p, q = np.maximum(now, 1e-4), np.maximum(before, 1e-4)
            says["PSI > 0.1"] |= float(((p - q) * np.log(p / q)).sum()) > 0.1
            says["JS > 0.1"] |= drift.jensen_shannon(before, now) > 0.1
            says["Wasserstein > 0.1 SD"] |= stats.wasserstein_distance(reference, window) > 0.1
            says["KS p < 0.05"] |= stats.ks_2samp(reference, window, method="asymp").pvalue < 0.05
        for name, said in says.items():
            called[name] += said
    return {name: number / runs for name, number in called.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few quarters of few cells")
    quick = parser.parse_args().quick
    quarters = QUICK_QUARTERS if quick else QUARTERS
    rows: list[dict[str, Any]] = []
    claims: list[Claim] = []
    wrong = 0
    with multiprocessing.get_context("spawn").Pool() as pool:
        asked = [(cell, quarters) for cell in _cells(quick)]
        # The longest first, so that no processor waits for the last.
        asked.sort(key=lambda each: -each[0].looks * each[0].columns)
        for done, (cell, counts, differs) in enumerate(pool.imap_unordered(_of_cell, asked), 1):
            wrong += int(differs)
            print(f"{done} of {len(asked)}: {cell}: {np.mean(counts):.3f}", flush=True)
            rows.append(
                {
                    **vars(cell),
                    "episodes": round(float(np.mean(counts)), 3),
                    "upper_99": round(upper(counts), 3),
                    "most": max(counts),
                }
            )
    rows.sort(key=lambda row: (row["kind"], row["rows"], row["reference"], row["looks"], row["columns"]))
    claims.append(Claim("windows judged otherwise than by drift.compare", wrong, 0))
    if not quick:
        worst = max(row["upper_99"] for row in rows)
        claims.append(Claim("false episodes a quarter, upper 99 % bound, the worst cell", worst, 1.0))
    runs = 200 if quick else 1_000
    for size, shift in itertools.product(ROWS, (*SHIFTS, "new category", "5 % missing")):
        shares = found_within(size, shift, runs)
        rows.append(
            {
                "rows": size,
                "kind": f"{shift} σ" if isinstance(shift, float) else shift,
                "within_3": shares[-1],
                "at_once": shares[0],
            }
        )
        if (size, shift) in ((200, 1.0), (1_000, 0.5)):
            claims.append(
                Claim(
                    f"{shift} σ at {size} rows found within {WITHIN} windows",
                    shares[-1],
                    FOUND,
                    at_least=True,
                )
            )
    for size in ROWS:
        rows.append({"rows": size, "kind": "usual defaults, quiet windows", **usual(size, runs // 4)})
    finish("false_alarms", rows, claims)


if __name__ == "__main__":
    main()
