"""Features as they were at P: against the oracle, and the same however the question is put.

Cases are many and small (cases.py): thousands over files read as a history's are, some over real histories,
and a handful on Ray (test_on_ray.py).
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_ray.errors import DataError
from mlops_ray.features import commits, history, windows
from mlops_ray.features.definitions import Stored, ViewTable
from mlops_ray.features.join import join
from mlops_ray.features.lookup import point_in_time
from mlops_ray.schema import INSTANT, Column

from .cases import (
    BASE,
    FAR,
    ROW_IDS,
    SITUATIONS,
    SPAN,
    Case,
    cases,
    check,
    clock_at,
    micros,
    random_case,
    situations,
)
from .oracle import Asked, Version
from .test_online import feature_set

#: In how many cases of a run each situation must have come up.
OFTEN = 20


def run(times: int) -> Callable[[Any], Any]:
    """So many cases, the same in every run: a test that fails now and then helps nobody."""
    return settings(max_examples=times, derandomize=True, database=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cases")


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Makes the kernel take what is small for large: it works in batches, and sums by prefixes."""
    patch.setattr(windows, "MANY", 1)
    patch.setattr(windows, "EXPANDED", 3)


# ---------------------------------------------------------------- against the oracle


def test_features_are_those_of_the_oracle_in_every_situation() -> None:
    met: Counter[str] = Counter()

    @run(2900)
    @given(case=cases(), small=st.booleans())
    def agrees(case: Case, small: bool) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if small:
                shrink(patch)
            check(case.found(), case)
        met.update(situations(case))

    agrees()
    assert {name: met[name] for name in SITUATIONS if met[name] < OFTEN} == {}


def test_a_history_cut_in_slices_and_buckets_gives_the_oracle_s_features(folder: Path) -> None:
    @run(120)
    @given(
        case=cases(tied=False),
        rows_a_task=st.sampled_from([2, 3, 1, 6]),
        buckets=st.sampled_from([3, 1, 16]),
        files=st.integers(1, 2),
    )
    def agrees(case: Case, rows_a_task: int, buckets: int, files: int) -> None:
        whole = case.found()
        check(whole, case)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(commits, "BUCKETS", buckets)
            snapshots = {"s": case.snapshot(folder, files)}
            cut = join(case.asked, snapshots, case.feature_set, on_ray=False, rows_a_task=rows_a_task)
        assert cut.equals(whole)

    agrees()


def test_the_newest_row_of_any_age_is_found_in_older_slices_though_rows_are_superseded_meanwhile(
    folder: Path,
) -> None:
    @run(120)
    @given(case=cases(tied=False), rows_a_task=st.sampled_from([3, 5, 2]))
    def agrees(case: Case, rows_a_task: int) -> None:
        # One entity, many of its rows deleted; strictly as known at each P that there can be.
        key = ("a", 1)[: len(case.keys)]
        case = replace(
            case,
            versions=tuple(replace(row, key=key, deleted=row.sequence % 3 == 0) for row in case.versions),
            spine=tuple((key, target) for target in range(BASE, BASE + SPAN + 4)),
            features=(Asked("n", "latest"),),
            question=replace(case.question, strict=True, known_at=FAR, committed_at=FAR),
        )
        snapshots = {"s": case.snapshot(folder)}
        check(join(case.asked, snapshots, case.feature_set, rows_a_task=rows_a_task), case)

    agrees()


# ---------------------------------------------------------------- what changes nothing


#: Rows that nobody must see: kind, times, identity, place in the file.
NOISE = st.lists(st.binary(min_size=6, max_size=6), min_size=1, max_size=8)


def unseen(case: Case, p: int, digits: bytes) -> Version:
    """A row that a prediction at `p` must not see, of the case's first entity."""
    kind, time, known, id_, sequence, _ = digits
    q, ids = case.question, ROW_IDS.get(str(case.row_id), [None])
    row = replace(
        case.versions[0],
        event=BASE + time % SPAN,
        known=BASE + known % SPAN,
        committed=min(BASE + known % SPAN, q.committed_at),
        sequence=sequence,
        row_id=ids[id_ % len(ids)],
        values={"x": 99.0, "i": 99, "b": True, "s": "noise", "n": 99},
        deleted=sequence % 4 == 0,
    )
    if kind % 3 == 0:
        # After P, of an identity of its own: a correction may well take away a row that P saw before.
        fresh = {None: None, "int": 1000 + id_, "str": f"z{id_}"}[case.row_id]
        return replace(row, event=p + 1 + time % 5, row_id=fresh)
    if kind % 3 == 1:
        known_at = min(p, q.known_at) if q.strict else q.known_at
        return replace(row, known=known_at + 1 + known % 5)
    return replace(row, committed=q.committed_at + 1 + known % 5)


@run(500)
@given(case=cases().filter(lambda case: bool(case.spine and case.versions)), rows=NOISE)
def test_rows_after_p_known_after_k_or_committed_after_c_change_nothing(
    case: Case, rows: list[bytes]
) -> None:
    one = replace(case, spine=case.spine[:1])
    p = case.spine[0][1] - case.question.horizon
    more = list(case.versions)
    for row in rows:
        more.insert(row[-1] % (len(more) + 1), unseen(case, p, row))
    assert replace(one, versions=tuple(more)).found().equals(one.found())


@run(400)
@given(case=cases(tied=False), seed=st.binary(min_size=8, max_size=8))
def test_neither_the_order_of_the_rows_nor_how_they_were_committed_changes_anything(
    case: Case, seed: bytes
) -> None:
    generator = random.Random(seed)
    case = replace(case, question=replace(case.question, committed_at=FAR))
    other = [replace(row, committed=generator.randrange(BASE, FAR)) for row in case.versions]
    generator.shuffle(other)
    assert replace(case, versions=tuple(other)).found().equals(case.found())


@run(250)
@given(case=cases(tied=False), seed=st.binary(min_size=8, max_size=8))
def test_a_row_of_the_spine_is_answered_alike_alone_or_among_many_others_in_any_order(
    case: Case, seed: bytes
) -> None:
    table = {"s": case.read()}
    whole = point_in_time(case.asked, table, case.feature_set)
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        assert point_in_time(case.asked, table, case.feature_set).equals(whole)
    order = list(range(len(case.spine)))
    random.Random(seed).shuffle(order)
    shuffled = point_in_time(case.asked[order], table, case.feature_set)
    assert shuffled.equals(whole[order])
    for row in order[:2]:
        assert point_in_time(case.asked[row : row + 1], table, case.feature_set).equals(whole[row : row + 1])


@run(500)
@given(case=cases(), begin=st.integers(-2, SPAN), length=st.integers(0, 12))
def test_a_table_read_between_two_times_is_that_part_of_the_whole_table(
    case: Case, begin: int, length: int
) -> None:
    whole = case.read()
    between = (micros(BASE + begin), micros(BASE + begin + length))
    inside = (pl.col("event_time") > between[0]) & (pl.col("event_time") <= between[1])
    order = [
        name for name in (*case.keys, "event_time", "_known_at", "_sequence", "r") if name in whole.columns
    ]
    assert case.read(between).sort(order).equals(whole.filter(inside).sort(order))


# ---------------------------------------------------------------- over real histories


@run(100)
@given(case=cases().filter(lambda case: bool(case.versions)), rows_a_task=st.sampled_from([1000, 3]))
def test_a_real_history_answers_as_the_oracle_and_the_same_after_more_commits_compaction_and_vacuum(
    case: Case, rows_a_task: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    history_ = case.delivered(tmp_path_factory.mktemp("real"))
    snapshot = history_.snapshot(case.as_of)
    found = join(case.asked, {"s": snapshot}, case.feature_set)
    check(found, case)
    with clock_at(FAR + 1):
        history_.append(case.raw.with_columns(x=pl.lit(77.0)), case.source, "later")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history, "FILES_A_BUCKET", 0)
        assert history_.maintain(vacuum_hours=0) == len(snapshot.buckets)
    assert len(list(history_.folder.rglob("*.parquet"))) == len(snapshot.buckets)
    compacted = history_.snapshot(case.as_of)
    again = join(case.asked, {"s": compacted}, case.feature_set, rows_a_task=rows_a_task)
    assert again.equals(found)


#: A case with many rows, and with a latest value of any age.
LARGE = max((random_case(seed) for seed in range(100)), key=lambda case: len(case.versions))
LARGE = replace(LARGE, features=(Asked("x", "latest"),))


# ---------------------------------------------------------------- single promises


def instants(*numbers: int) -> pl.Series:
    return pl.Series(numbers, dtype=pl.Int64).cast(INSTANT)


@pytest.mark.parametrize("rows_a_task", [1, 1000], ids=["in slices", "whole"])
def test_a_key_of_another_type_is_an_error_that_names_both(tmp_path: Path, rows_a_task: int) -> None:
    case = replace(LARGE, keys=("k",), versions=tuple(replace(row, key=("a",)) for row in LARGE.versions))
    asked = pl.DataFrame({"k": [1], "t": instants(1)})
    with pytest.raises(DataError, match="the key is Int64 in the spine and String in the view"):
        join(asked, {"s": case.snapshot(tmp_path)}, case.feature_set, rows_a_task=rows_a_task)


def test_the_keys_of_a_view_may_be_called_otherwise_in_the_spine() -> None:
    table = pl.DataFrame({"k": ["a", "b"], "event_time": instants(0, 0), "x": [1.0, 2.0]})
    asked = pl.DataFrame({"to": ["b", "a", "c"], "from": ["a", None, "b"], "t": instants(1, 1, 1)})
    here = Stored("here", "s", ("from",), "x", "latest")
    there = Stored("there", "s", ("to",), "x", "latest")
    view = ViewTable("s", "s-1", ("k",), (Column("x", "float"),), None, ())
    found = point_in_time(asked, {"s": table}, feature_set(view, here, there))
    assert found.rows() == [(1.0, 2.0), (None, 1.0), (2.0, None)]
