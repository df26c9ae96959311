"""Whatever rows are split by: none is on both sides, no group is, and nothing of the future trains."""

import contextlib
from collections import Counter
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from mlops_ray.config import Validation
from mlops_ray.errors import TrainingError
from mlops_ray.training import splits
from mlops_ray.training.splits import Plan, Split, folds, test_split, test_start

# pytest would take the function for a test.
test_split.__test__ = False  # type: ignore[attr-defined]
test_start.__test__ = False  # type: ignore[attr-defined]

DAY = 86_400_000_000
TIMES = st.lists(st.integers(0, 1000), min_size=40, max_size=200).map(np.array)
SEEDS = st.integers(0, 2**32)


def make(said: dict[str, Any], times: np.ndarray, gap: int = 0, seed: int = 7, **also: Any) -> Plan:
    """The plan of a `validation:` section, as the project file says it."""
    how = Validation.model_validate(said)
    return splits.make(how, times=times, gap=gap, seed=seed, test_from=also.pop("test_from", None), **also)


def rows(seed: int, count: int = 200, groups: int = 30, positive: float = 0.3) -> dict[str, np.ndarray]:
    """Random rows: few large groups and many small ones, which differ in how often they are positive."""
    random = np.random.default_rng(seed)
    group = np.minimum(random.geometric(3 / groups, count), groups)
    rate = positive * random.uniform(0.5, 1.5, groups + 1)
    return {
        "times": random.integers(0, 1000, count),
        "groups": np.array([f"p{number}" for number in group]),
        "classes": (random.random(count) < rate[group]).astype(np.int64),
    }


# ---------------------------------------------------------------- by time


@given(TIMES, st.integers(300, 900), st.integers(0, 200))
def test_a_row_trains_only_if_it_lies_the_gap_before_the_test_part(
    times: np.ndarray, begin: int, gap: int
) -> None:
    # Where there is no gap, the rows of the part's first instant are still on one side alone.
    may_train = (times <= begin - gap) & (times < begin)
    try:
        split = test_split(times, begin, gap)
    except TrainingError:
        assert not (times >= begin).any() or not may_train.any()
        return
    assert set(split.held_out) == set(np.flatnonzero(times >= begin))
    assert set(split.train) == set(np.flatnonzero(may_train))


@given(TIMES, st.integers(1, 4), st.integers(0, 100))
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
        assert times[part.train].max() + max(gap, 1) <= times[part.held_out].min()
        assert not seen & set(part.held_out)
        seen |= set(part.held_out)
    sizes = [len(part.train) for part in parts]
    assert sizes == sorted(sizes)


def test_no_rows_at_all_are_an_error_and_no_crash() -> None:
    with pytest.raises(TrainingError, match="the test part is empty"):
        test_split(np.array([], np.int64), 5, 1)
    with pytest.raises(TrainingError, match="no row is left to train on"):
        test_split(np.array([5, 6]), 5, 1)
    for by in ("time", "order", "random"):
        with pytest.raises(TrainingError, match="there are no rows to split"):
            make({"by": by}, np.array([], np.int64))


@given(TIMES, st.floats(0.01, 0.99))
def test_a_share_names_an_instant_of_the_data(times: np.ndarray, share: float) -> None:
    start = test_start(times, share)
    assert (times >= start).sum() >= int(share * len(times))


def may_train(times: np.ndarray, groups: np.ndarray | None, held_out: set[int], gap: int) -> set[int]:
    """Slow and obvious: rows a gap before the first of the held-out ones, and of no group of theirs."""
    begin = min(times[row] for row in held_out)
    found = set()
    for row, time in enumerate(times):
        known = time < begin and time <= begin - gap
        is_purged = groups is not None and any(groups[row] == groups[other] for other in held_out)
        if known and not is_purged:
            found.add(row)
    return found


@given(SEEDS, st.integers(0, 60), st.booleans(), st.booleans())
def test_by_time_with_groups_all_and_only_what_was_known_of_others_trains(
    seed: int, gap: int, has_groups: bool, replay: bool
) -> None:
    made = rows(seed, groups=60)
    groups = made["groups"] if has_groups else None
    said = {"folds": 3, "replay": replay, "test": {"share": 0.2}} | ({"group": "g"} if has_groups else {})
    try:
        plan = make(said, made["times"], gap, groups=groups)
    except TrainingError:
        assume(False)
    held_out = set(plan.test.held_out)
    # From a date that is an instant of the data the gap is the same; of what trains nothing is left out.
    train = may_train(made["times"], groups, held_out, gap)
    assert set(plan.test.train) == train
    for part in plan.folds:
        expected = may_train(made["times"], groups, set(part.held_out), gap)
        assert set(part.train) == expected & train
        assert set(part.held_out) <= train


def test_a_patient_who_comes_back_in_the_test_part_does_not_train() -> None:
    times = np.arange(10)
    groups = np.array(["a", "b", "c", "a", "d", "e", "f", "g", "a", "h"])
    plan = make({"group": "patient", "folds": 1}, times, groups=groups)
    assert plan.test.held_out.tolist() == [8, 9]
    assert plan.test.train.tolist() == [1, 2, 4, 5, 6, 7]


def test_replayed_parts_go_through_all_but_the_first_fifth() -> None:
    plan = make({"replay": True, "folds": 8, "by": "order"}, np.arange(102))
    assert np.concatenate([part.held_out for part in plan.folds]).tolist() == list(range(16, 81))
    for part in plan.folds:
        assert part.train.tolist() == list(range(part.held_out[0])), "tested first, then learned from"


def test_the_test_part_begins_at_its_date_whatever_rows_are_split_by() -> None:
    times = np.arange(0, 1000, 10)
    for by, date in product(("time", "order", "random"), (791, 800)):
        plan = make({"by": by, "test": {"from": "2016-11-01"}}, times, test_from=date)
        assert plan.test.held_out.tolist() == list(range(80, 100)), by
        assert plan.test.train.tolist() == list(range(80)), by


# ---------------------------------------------------------------- by order


@given(SEEDS, st.integers(0, 60), st.floats(0.1, 0.4))
def test_by_order_parts_are_cut_at_a_row_and_keep_the_gap(seed: int, gap: int, share: float) -> None:
    times = np.sort(rows(seed)["times"])
    plan = make({"by": "order", "test": {"share": share}}, times, gap)
    count = int(len(times) * (1 - share))
    assert plan.test.held_out.tolist() == list(range(count, len(times))), "also within one instant"
    for part in (plan.test, *plan.folds):
        first, last = part.held_out[0], part.train[-1]
        assert part.train.tolist() == list(range(last + 1))
        assert times[last] + gap <= times[first]
        assert gap or last + 1 == first


@given(st.integers(0, 40), st.integers(1, 30))
def test_by_order_a_stream_that_flows_evenly_is_split_as_by_time(gap: int, step: int) -> None:
    times = np.arange(200) * step
    found = [make({"by": by, "folds": 2}, times, gap) for by in ("order", "time")]
    for one, other in zip(*([plan.test, *plan.folds] for plan in found), strict=True):
        assert one.train.tolist() == other.train.tolist()
        assert one.held_out.tolist() == other.held_out.tolist()


# ---------------------------------------------------------------- at random


@given(SEEDS, st.integers(2, 5), st.floats(0.1, 0.5), st.booleans(), st.booleans())
def test_at_random_every_row_is_tested_or_validated_once_and_groups_stay_whole(
    seed: int, count: int, share: float, has_groups: bool, stratify: bool
) -> None:
    made = rows(seed)
    said: dict[str, Any] = {"by": "random", "folds": count, "test": {"share": share}, "stratify": stratify}
    said |= {"group": "g"} if has_groups else {}
    groups = made["groups"] if has_groups else None
    try:
        plan = make(said, made["times"], groups=groups, classes=made["classes"])
    except TrainingError:
        # Where the few positives are of fewer groups than there are parts.
        assume(False)
    held_out = [plan.test.held_out, *(part.held_out for part in plan.folds)]
    assert sorted(np.concatenate(held_out).tolist()) == list(range(200))
    assert sorted([*plan.test.train, *plan.test.held_out]) == list(range(200))
    for part in plan.folds:
        assert sorted([*part.train, *part.held_out]) == plan.test.train.tolist()
    if has_groups:
        require_apart(plan, made["groups"])


def require_apart(plan: Plan, groups: np.ndarray) -> None:
    for part in (plan.test, *plan.folds):
        assert not set(groups[part.train]) & set(groups[part.held_out])


@given(SEEDS, st.integers(2, 5), st.floats(0.1, 0.5), st.integers(1, 4))
def test_stratified_parts_have_each_class_by_its_share_to_within_a_row(
    seed: int, count: int, share: float, kinds: int
) -> None:
    classes = np.random.default_rng(seed).choice(
        kinds, 200, p=np.arange(1, kinds + 1) / sum(range(kinds + 1))
    )
    said = {"by": "random", "stratify": True, "folds": count, "test": {"share": share}}
    plan = make(said, np.zeros(200, np.int64), classes=classes)
    tested = Counter(classes[plan.test.held_out].tolist())
    for kind, whole in Counter(classes.tolist()).items():
        assert abs(tested[kind] - share * whole) <= 1
        in_folds = [int((classes[part.held_out] == kind).sum()) for part in plan.folds]
        assert max(in_folds) - min(in_folds) <= 1


@pytest.mark.parametrize("stratify", [False, True])
def test_groups_at_random_are_balanced_by_rows_and_by_class(stratify: bool) -> None:
    made = rows(5, count=5000, groups=300, positive=0.1)
    said = {"by": "random", "group": "g", "folds": 5, "stratify": stratify, "test": {"share": 0.25}}
    plan = make(said, made["times"], groups=made["groups"], classes=made["classes"])
    sizes = [len(part.held_out) for part in plan.folds]
    assert max(sizes) - min(sizes) <= 0.01 * sum(sizes)
    assert len(plan.test.held_out) == pytest.approx(1250, rel=0.01)
    if stratify:
        rates = [made["classes"][part.held_out].mean() for part in (plan.test, *plan.folds)]
        assert max(rates) - min(rates) <= 0.005, rates


@given(SEEDS)
def test_a_large_group_is_made_up_for_by_small_ones(seed: int) -> None:
    groups = np.array([0] * 50 + list(range(1, 51)))
    said = {"by": "random", "group": "g", "folds": 2, "test": {"from": "2016"}}
    times, groups = np.append(np.zeros(100, np.int64), 9), np.append(groups, 51)
    plan = make(said, times, seed=seed, groups=groups, test_from=9)
    assert [len(part.held_out) for part in plan.folds] == [50, 50]


@settings(max_examples=50)
@given(SEEDS)
def test_stratified_groups_are_split_as_validly_as_by_the_peer(seed: int) -> None:
    """Of the same rows, by the same check; and as evenly, but for at most the largest group."""
    made = rows(seed)
    said = {"by": "random", "group": "g", "folds": 4, "stratify": True, "test": {"share": 0.2}}
    plan = Plan(Split(np.array([]), np.array([])), [])
    with contextlib.suppress(TrainingError):
        plan = make(said, made["times"], groups=made["groups"], classes=made["classes"])
    assume(plan.folds)
    among = plan.test.train
    peer = StratifiedGroupKFold(4, shuffle=True, random_state=0)
    positions = peer.split(among, made["classes"][among], made["groups"][among])
    theirs = [Split(among[train], among[held_out]) for train, held_out in positions]
    spreads = []
    for parts in (plan.folds, theirs):
        require_apart(Plan(plan.test, parts), made["groups"])
        assert sorted(np.concatenate([part.held_out for part in parts])) == sorted(among)
        spreads.append(np.ptp([made["classes"][part.held_out].sum() for part in parts]))
    assert spreads[0] <= spreads[1] + max(Counter(made["groups"].tolist()).values())


@pytest.mark.parametrize("grouped", [False, True])
def test_the_seed_alone_decides_at_random(grouped: bool) -> None:
    made = rows(3)
    said = {"by": "random"} | ({"group": "g"} if grouped else {})
    groups = made["groups"] if grouped else None
    first, again, other = (make(said, made["times"], seed=seed, groups=groups) for seed in (1, 1, 2))
    for one, same in zip([first.test, *first.folds], [again.test, *again.folds], strict=True):
        assert one.train.tolist() == same.train.tolist()
        assert one.held_out.tolist() == same.held_out.tolist()
    assert first.test.held_out.tolist() != other.test.held_out.tolist()


# ---------------------------------------------------------------- what cannot be


YES_AND_NO = np.array([0, 1] * 50)
ONE_CLASS_LATE = np.array([0, 1] * 40 + [0] * 20)


@pytest.mark.parametrize(
    ("said", "also", "sentence"),
    [
        ({"stratify": True}, {"classes": YES_AND_NO}, "goes with by: random alone; by: time keeps the rows"),
        ({"by": "random", "stratify": True}, {}, "stratify needs classes, and the target is a number"),
        ({"by": "random", "replay": True}, {}, "replay goes through the rows in order; say by: time"),
        ({"by": "random", "folds": 1}, {}, "each fold trains on the others; say folds: 2 or more"),
        ({"test": {"share": 0}}, {}, "share is 0.0; a share lies between 0 and 1"),
        ({"by": "random", "test": {"share": "120%"}}, {}, "share is 1.2; a share lies between 0 and 1"),
        (
            {"by": "random", "group": "g"},
            {"groups": np.arange(100) // 34},
            "tells 2 groups apart, fewer than the 3 parts",
        ),
        (
            {"group": "g"},
            {"groups": np.arange(100) % 7},
            r"test part has no row to train on: whole groups \(g\)",
        ),
        ({"test": {"from": "2016"}}, {"test_from": 200}, "no row has a target time so late"),
        ({"folds": 90}, {}, "fold 1 of 90 does not fit before the test part"),
        (
            {"by": "random", "test": {"share": 0.001}},
            {"seed": 1},
            "test part has no row to predict: there are too",
        ),
        ({}, {"classes": ONE_CLASS_LATE}, "the test part has no row of the class 1 to predict"),
        (
            {"by": "random", "stratify": True, "folds": 5},
            {"classes": np.array([1] * 4 + [0] * 96)},
            "has no row of the class 1 to predict; use fewer folds or more data",
        ),
        (
            {"by": "random", "stratify": True},
            {"classes": np.array([0, 1] * 49 + [2, 2])},
            "has no row of the class 2 to predict",
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else "",
)
def test_what_cannot_be_split_so_is_said_in_a_sentence(
    said: dict[str, Any], also: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(TrainingError, match=sentence):
        make(said, np.arange(100), **also)


# ---------------------------------------------------------------- blocks of the bootstrap


@given(TIMES, st.integers(1, 300))
def test_a_block_is_a_stretch_of_time(times: np.ndarray, length: int) -> None:
    blocks = splits.block_ids(times, length)
    assert sorted(set(blocks)) == list(range(blocks.max() + 1))
    for block in set(blocks):
        assert np.ptp(times[blocks == block]) < length
    edges = [(times[blocks == block].min(), times[blocks == block].max()) for block in sorted(set(blocks))]
    assert all(last < first for (_, last), (first, _) in pairwise(edges)), "nor does it reach into the next"


@pytest.mark.parametrize(
    ("days", "gap", "season", "length", "why"),
    [
        (400, 1, 7, 7, "a season"),
        (100, 1, None, 1, "a day"),
        (100, 3, None, 3, "the gap"),
        (60, 1, 7, 3, "of seasons there would be 9 alone"),
        (60, 5, 7, 5, "the gap, though there are but 12"),
        (10, 0, None, 0.5, "of days there would be 10 alone"),
    ],
)
def test_blocks_are_as_long_as_rows_depend_on_each_other_where_twenty_are_left(
    days: int, gap: int, season: int | None, length: float, why: str
) -> None:
    times = np.arange(0, days * DAY + 1, DAY // 24)
    rows = np.arange(0, len(times), 3)
    blocks = splits.blocks(Validation(), rows, times=times, gap=gap * DAY, season=season and season * DAY)
    assert blocks.tolist() == (times[rows] // int(length * DAY)).tolist(), why


def test_blocks_are_groups_where_there_are_and_rows_where_they_are_in_no_order() -> None:
    rows = np.array([5, 1, 3])
    groups = np.array(["a", "b", "c", "b", "a", "a"])
    asked: dict[str, Any] = {"times": np.arange(6), "gap": 1}
    for by in ("time", "order", "random"):
        how = Validation.model_validate({"by": by, "group": "g"})
        assert splits.blocks(how, rows, **asked, groups=groups).tolist() == [0, 1, 1]
    how = Validation.model_validate({"by": "random"})
    assert splits.blocks(how, rows, **asked).tolist() == [0, 1, 2]
