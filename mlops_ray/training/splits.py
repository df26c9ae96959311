"""Which rows train, which validate and which test: by time, by their order, or at random.

By time, between the rows that train and those that are predicted lies a gap: at the moment of the first
prediction, a horizon before its target time, labels are known only up to the label delay. A row trains for a
part that begins at B only if its target time is at most B - horizon - label delay. By order, the same holds
of row numbers. Rows of one group (a patient) are never on both sides, however rows are split.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlops_ray.config import MICROSECONDS, Validation
from mlops_ray.errors import TrainingError

#: Instants are microseconds since 1970, UTC.
Instants = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int64]
#: Whole numbers from 0 on that tell groups, classes, parts or blocks apart, one a row.
Codes = npt.NDArray[np.int64]
Column = npt.NDArray[Any]

#: The share of the training rows that the validation parts of the folds cover, the latest ones: the first
#: fold then trains on the first half, enough for a season or two of most data.
VALIDATION_SHARE = 0.5
#: The same where a stream is replayed, each part first predicted and then learned from: all but a fifth.
REPLAY_SHARE = 0.8
#: Of how many blocks a bootstrap draws at least, where it can: of fewer, its intervals come out too narrow.
FEWEST_BLOCKS = 20


@dataclass(frozen=True)
class Split:
    """Positions of rows: `train` is learned from, `held_out` is predicted."""

    train: Rows
    held_out: Rows


@dataclass(frozen=True)
class Plan:
    """How all rows are split: for the test, which only the winner sees, and for validation before it."""

    test: Split
    folds: list[Split]


def make(
    how: Validation,
    *,
    times: Instants,
    gap: int,
    test_from: int | None,
    seed: int,
    groups: Column | None = None,
    classes: Column | None = None,
) -> Plan:
    """The split of rows with these target times, and the groups and classes that they are of.

    `gap` is horizon plus label delay. `test_from` is the first instant of the test part, `None` where
    `how.test.share` says how many rows it has. The folds are made of the rows that train for the test. The
    same arguments give the same plan. Raises `TrainingError` for what does not go together, and where a part
    would lack rows, or a class.
    """
    _refuse(how, len(times), test_from, classes)
    grouped = None if groups is None else _codes(groups)
    strata = _codes(classes) if how.stratify and classes is not None else np.zeros(len(times), np.int64)
    random = np.random.default_rng(seed)
    if how.by == "order":
        test_from = None if test_from is None else int((times < test_from).sum())
        times, gap = _numbered(times, gap)
    share, count = how.test.share or 0.0, how.folds

    def dealt(rows: Rows, shares: list[float]) -> list[Split]:
        parts = _deal(shares, strata[rows], None if grouped is None else grouped[rows], random)
        return [Split(rows[parts != part], rows[parts == part]) for part in range(len(shares))]

    if how.by == "random" and test_from is None:
        test = dealt(np.arange(len(times)), [share, 1 - share])[0]
    else:
        test = test_split(times, test_start(times, share) if test_from is None else test_from, gap)
    test = _whole(_purged(test, grouped), "the test part", how, classes)
    if how.by == "random":
        parts = dealt(test.train, [1 / count] * count)
    else:
        parts = folds(times, test.train, count, gap, REPLAY_SHARE if how.replay else VALIDATION_SHARE)
    named = [(f"fold {number} of {count}", _purged(part, grouped)) for number, part in enumerate(parts, 1)]
    return Plan(test, [_whole(part, name, how, classes) for name, part in named])


def _refuse(how: Validation, rows: int, test_from: int | None, classes: Column | None) -> None:
    """Raises `TrainingError` for what does not go together."""
    share = how.test.share
    wrong = {
        "there are no rows to split": not rows,
        f"training.validation.test.share is {share}; a share lies between 0 and 1": (
            test_from is None and not 0 < (share or 0) < 1
        ),
        f"training.validation.stratify goes with by: random alone; by: {how.by} keeps the rows in order": (
            how.stratify and how.by != "random"
        ),
        "training.validation.stratify needs classes, and the target is a number; leave it out": (
            how.stratify and classes is None
        ),
        "training.validation.replay goes through the rows in order; say by: time, or by: order": (
            how.replay and how.by == "random"
        ),
        "with training.validation.by: random, each fold trains on the others; say folds: 2 or more": (
            how.by == "random" and how.folds < 2
        ),
    }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise TrainingError(message)


def _whole(split: Split, name: str, how: Validation, classes: Column | None) -> Split:
    """The split itself; raises `TrainingError` where a side lacks rows, or rows of a class.

    Stratified, each side has every class; else two, without which there is nothing to tell apart.
    """
    for rows, use in ((split.train, "to train on"), (split.held_out, "to predict")):
        if not len(rows):
            grouped = how.group is not None
            hint = f"whole groups ({how.group}) on one side leave none" if grouped else "there are too few"
            raise TrainingError(f"{name} has no row {use}: {hint}; use fewer folds or more data")
        if classes is not None:
            lacking = np.setdiff1d(classes, classes[rows])
            if len(lacking) and (how.stratify or len(np.unique(classes[rows])) < 2):
                raise TrainingError(
                    f"{name} has no row of the class {lacking[0]} {use}; use fewer folds or more data"
                )
    return split


def _codes(values: Column) -> Codes:
    """Numbers from 0 on in place of the different values, in their order."""
    return np.unique(values, return_inverse=True)[1]


# ---------------------------------------------------------------- by time, or by order


def test_split(times: Instants, test_from: int, gap: int) -> Split:
    """The rows from `test_from` on as the test part, and those that may train for it.

    Raises `TrainingError` where either is empty.

    >>> split = test_split(np.arange(6), test_from=4, gap=2)
    >>> split.train.tolist(), split.held_out.tolist()
    ([0, 1, 2], [4, 5])
    """
    split = _split(times, test_from, None, gap)
    if not len(split.held_out):
        raise TrainingError(
            "the test part is empty: no row has a target time so late; move training.validation.test"
        )
    if not len(split.train):
        raise TrainingError(
            "no row is left to train on before the test part and the gap of horizon and label delay; "
            "move training.validation.test"
        )
    return split


def test_start(times: Instants, share: float) -> int:
    """The instant from which on the last `share` of the rows lies.

    >>> test_start(np.array([0, 10, 20, 30]), share=0.25)
    30
    """
    ordered = np.sort(times)
    return int(ordered[min(int(len(ordered) * (1 - share)), len(ordered) - 1)])


def folds(times: Instants, train: Rows, count: int, gap: int, share: float = VALIDATION_SHARE) -> list[Split]:
    """Expanding windows over the rows `train`: each fold trains on all that lies a gap before its own part.

    The held-out parts follow one another without overlap and together cover the last `share` of the rows.
    Rows of one instant are never on both sides. Raises `TrainingError` where a fold would be empty.

    >>> parts = folds(np.arange(12), np.arange(12), count=3, gap=2)
    >>> [(len(part.train), part.held_out.tolist()) for part in parts]
    [(5, [6, 7]), (7, [8, 9]), (9, [10, 11])]
    """
    ordered = np.sort(times[train])
    shares = 1 - share + share * np.arange(count) / count
    begins = [int(ordered[int(share * len(ordered))]) for share in shares]
    ends = [*begins[1:], None]
    parts = [_split(times, begin, end, gap, among=train) for begin, end in zip(begins, ends, strict=True)]
    for number, part in enumerate(parts, 1):
        if not len(part.train) or not len(part.held_out):
            raise TrainingError(
                f"fold {number} of {count} does not fit before the test part: it has {len(part.train)} rows "
                f"to train on and {len(part.held_out)} to validate; use fewer folds or more data"
            )
    return parts


def _split(times: Instants, begin: int, end: int | None, gap: int, among: Rows | None = None) -> Split:
    rows = np.arange(len(times)) if among is None else among
    at = times[rows]
    held_out = (at >= begin) if end is None else (at >= begin) & (at < end)
    # Without a gap, what happens as the part begins is of the part alone.
    return Split(rows[at <= begin - max(gap, 1)], rows[held_out])


def _numbered(times: Instants, gap: int) -> tuple[Instants, int]:
    """The row numbers in order of time, and the gap in rows: the most that lie within it anywhere."""
    order = np.argsort(times, kind="stable")
    numbers = np.empty_like(order)
    numbers[order] = np.arange(len(times))
    ordered = times[order]
    known = np.searchsorted(ordered, ordered - gap, side="right")
    return numbers, int((np.arange(len(times)) - known).max()) + 1 if gap else 0


def _purged(split: Split, groups: Codes | None) -> Split:
    """Without the training rows of groups that are also held out."""
    if groups is None:
        return split
    return Split(split.train[~np.isin(groups[split.train], groups[split.held_out])], split.held_out)


# ---------------------------------------------------------------- at random


def _deal(shares: list[float], strata: Codes, groups: Codes | None, random: np.random.Generator) -> Codes:
    """The part of each row, one of as many as there are shares, which add up to 1.

    Ungrouped, each part has its share of every stratum's rows to within one. Raises `TrainingError` where
    there are fewer groups than parts.
    """
    if groups is not None:
        return _deal_groups(shares, strata, _codes(groups), random)
    order = random.permutation(len(strata))
    order = order[np.argsort(strata[order], kind="stable")]
    ordered, sizes = strata[order], np.bincount(strata)
    # Where each row stands among those of its stratum, of which each part takes a stretch.
    rank = np.arange(len(order)) - (np.cumsum(sizes) - sizes)[ordered]
    place = (rank + random.random(len(sizes))[ordered]) / sizes[ordered]
    parts = np.empty(len(order), np.int64)
    parts[order] = np.searchsorted(np.cumsum(shares)[:-1], place, side="right")
    return parts


def _deal_groups(shares: list[float], strata: Codes, groups: Codes, random: np.random.Generator) -> Codes:
    """The part of each row, whole groups in one: the largest first, each where its rows are most wanting.

    Greedy, as in scikit-learn's StratifiedGroupKFold; rows are balanced within each stratum.
    """
    count = int(groups.max()) + 1
    if count < len(shares):
        raise TrainingError(
            f"training.validation.group tells {count} groups apart, fewer than the {len(shares)} parts into "
            "which they are to go; use fewer folds or more data"
        )
    sizes = np.zeros((count, int(strata.max()) + 1))
    np.add.at(sizes, (groups, strata), 1)
    sizes /= np.maximum(sizes.sum(axis=0), 1)
    shuffled = random.permutation(count)
    # What each part has too much of; a group goes where that is least, weighed by what the group is made of.
    excess = np.repeat(-np.array(shares)[:, None], sizes.shape[1], axis=1)
    parts = np.empty(count, np.int64)
    for group in shuffled[np.argsort(-np.linalg.norm(sizes[shuffled], axis=1), kind="stable")]:
        parts[group] = np.argmin(excess @ sizes[group])
        excess[parts[group]] += sizes[group]
    return parts[groups]


# ---------------------------------------------------------------- for the bootstrap


def blocks(
    how: Validation,
    rows: Rows,
    *,
    times: Instants,
    gap: int,
    season: int | None = None,
    groups: Column | None = None,
) -> Codes:
    """The block of each of these rows, of which a bootstrap draws whole ones.

    That is its group where there are groups, and the row itself where rows are split at random. Rows in order
    of time depend on those near them: blocks are then stretches of target time of at least `gap`, and of a
    day and of a season, unless that would leave fewer than `FEWEST_BLOCKS`.
    """
    if groups is not None:
        return _codes(groups[rows])
    if how.by == "random":
        return np.arange(len(rows))
    at = times[rows]
    longest = int(at.max() - at.min()) // FEWEST_BLOCKS
    return block_ids(at, max(gap, min(max(MICROSECONDS["d"], season or 0), longest), 1))


def block_ids(times: Instants, length_us: int) -> Codes:
    """Which stretch of time of this length, from the earliest time on, each time lies in; empty ones skipped.

    >>> block_ids(np.array([5, 9, 10, 31]), 5).tolist()
    [0, 0, 1, 2]
    """
    return _codes((times - times.min()) // length_us)
