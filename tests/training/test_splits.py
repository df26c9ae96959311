"""Splits are by time, with a gap; nothing of the future is on the training side."""

import contextlib

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mlops_ray.errors import TrainingError
from mlops_ray.training.splits import Split, folds, test_split, test_start

# pytest would take the function for a test.
test_split.__test__ = False  # type: ignore[attr-defined]
test_start.__test__ = False  # type: ignore[attr-defined]

TIMES = st.lists(st.integers(0, 1000), min_size=40, max_size=200).map(np.array)


@given(TIMES, st.integers(300, 900), st.integers(0, 200))
def test_a_row_trains_only_if_it_lies_the_gap_before_the_test_part(
    times: np.ndarray, begin: int, gap: int
) -> None:
    try:
        split = test_split(times, begin, gap)
    except TrainingError:
        assert not (times >= begin).any() or not (times <= begin - gap).any()
        return
    assert set(split.held_out) == set(np.flatnonzero(times >= begin))
    assert set(split.train) == set(np.flatnonzero(times <= begin - gap))


@given(TIMES, st.integers(1, 4), st.integers(1, 100))
def test_folds_expand_do_not_overlap_and_keep_the_gap(times: np.ndarray, count: int, gap: int) -> None:
    train = np.flatnonzero(times < 800)
    parts: list[Split] = []
    with contextlib.suppress(TrainingError):
        parts = folds(times, train, count, gap)
    assume(parts)
    assert len(parts) == count
    seen: set[int] = set()
    for part in parts:
        assert set(part.train) | set(part.held_out) <= set(train)
        assert times[part.train].max() + gap <= times[part.held_out].min()
        assert not seen & set(part.held_out)
        seen |= set(part.held_out)
    sizes = [len(part.train) for part in parts]
    assert sizes == sorted(sizes)


def test_no_rows_at_all_are_an_error_and_no_crash() -> None:
    with pytest.raises(TrainingError, match="the test part is empty"):
        test_split(np.array([], np.int64), 5, 1)
    with pytest.raises(TrainingError, match="no row is left to train on"):
        test_split(np.array([5, 6]), 5, 1)


@given(TIMES, st.floats(0.01, 0.99))
def test_a_share_names_an_instant_of_the_data(times: np.ndarray, share: float) -> None:
    start = test_start(times, share)
    assert (times >= start).sum() >= int(share * len(times))
