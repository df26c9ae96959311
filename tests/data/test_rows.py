"""Rows of requests are the same however they are kept."""

from collections.abc import Sequence

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from mlops_ray.data.rows import MANY, Rows, Table, joined, together
from mlops_ray.schema import Column, Schema

SCHEMA = Schema(
    (
        Column("site", "category"),
        Column("load", "float"),
        Column("time", "datetime"),
        Column("n", "int"),
        Column("open", "bool"),
    )
)


def table(height: int, begin: int) -> Table:
    at = range(begin, begin + height)
    values = [[f"s{n}" for n in at], [n / 2 for n in at], [*at], [-n for n in at], [n % 2 == 0 for n in at]]
    return together([Rows(SCHEMA, [[None if n % 7 == 3 else v for n, v in enumerate(of)] for of in values])])


@given(st.lists(st.sampled_from((1, 5, MANY - 1, MANY, 3 * MANY)), min_size=1, max_size=6))
def test_packed_or_not_they_make_the_same_frame(heights: Sequence[int]) -> None:
    tables = [table(height, 1_000 * place) for place, height in enumerate(heights)]
    kept = [each.packed() for each in tables]
    plain = pl.concat([each.frame for each in tables])
    assert_frame_equal(joined(tables).frame, plain)
    assert_frame_equal(joined(kept).frame, plain)
    assert_frame_equal(joined(kept).packed().frame, plain)


@pytest.mark.parametrize(("height", "is_list"), [(1, True), (MANY - 1, True), (MANY, False)])
def test_many_rows_are_packed_and_few_are_not(height: int, is_list: bool) -> None:
    packed = table(height, 0).packed()
    assert {isinstance(values, list) for values in packed.others} == {is_list}
    # The checks that `is_sound` makes at a glance know nothing of Arrow's values.
    assert packed.is_sound is is_list
