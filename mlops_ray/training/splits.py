"""Which rows train, which validate and which test, by time alone.

Between the rows that train and those that are predicted lies a gap: at the moment of the first prediction, a
horizon before its target time, labels are known only up to the label delay. A row trains for a part that
begins at B only if its target time is at most B - horizon - label delay.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlops_ray.errors import TrainingError

#: Instants are microseconds since 1970, UTC.
Instants = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int64]

#: The share of the training rows that the validation parts of the folds cover, the latest ones: the first
#: fold then trains on the first half, enough for a season or two of most data.
VALIDATION_SHARE = 0.5


@dataclass(frozen=True)
class Split:
    """Positions of rows: `train` is learned from, `held_out` is predicted."""

    train: Rows
    held_out: Rows


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


def folds(times: Instants, train: Rows, count: int, gap: int) -> list[Split]:
    """Expanding windows over the rows `train`: each fold trains on all that lies a gap before its own part.

    The held-out parts follow one another without overlap and together cover the last `VALIDATION_SHARE` of
    the rows. Rows of one instant are never on both sides. Raises `TrainingError` where a fold would be empty.

    >>> parts = folds(np.arange(12), np.arange(12), count=3, gap=2)
    >>> [(len(part.train), part.held_out.tolist()) for part in parts]
    [(5, [6, 7]), (7, [8, 9]), (9, [10, 11])]
    """
    ordered = np.sort(times[train])
    shares = 1 - VALIDATION_SHARE + VALIDATION_SHARE * np.arange(count) / count
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
    return Split(rows[at <= begin - gap], rows[held_out])
