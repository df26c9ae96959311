"""Counts of columns and of traffic, against a naive oracle."""

import math
from collections import Counter

import numpy as np
import orjson
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_ray.data.counts import BINS, MAX_CATEGORIES, Counts, CountSpec, Histogram, Traffic, reference
from mlops_ray.schema import Column

EDGES = (0.0, 1.0, 2.5, 4.0)
SPECS = (
    CountSpec("load", "numeric", edges=EDGES),
    CountSpec("site", "categorical", categories=("a", "b")),
)
COLUMNS = (Column("load", "float"), Column("site", "category"))

loads = st.one_of(st.none(), st.just(math.nan), st.sampled_from([*EDGES, -0.0]), st.floats(-2, 6))
sites = st.sampled_from(["a", "b", "c", "", None])
rows = st.lists(st.tuples(loads, sites), max_size=30)


def frame(of: list) -> pl.DataFrame:
    return pl.DataFrame(of, schema={"load": pl.Float64, "site": pl.String}, orient="row")


def counted(of: list) -> Counts:
    counts = Counts.empty(SPECS)
    counts.update(frame(of))
    return counts


def cells(counts: Counts) -> list[list[int]]:
    return [column.tolist() for column in counts.cells]


def naive_cell(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "missing"
    if value < EDGES[0]:
        return "< 0"
    if value == EDGES[0]:
        return "0 – 1"
    return {0: "0 – 1", 1: "1 – 2.5", 2: "2.5 – 4"}.get(
        next((i for i in range(3) if EDGES[i] < value <= EDGES[i + 1]), 3), "> 4"
    )


@given(rows)
def test_counts_equal_a_naive_count(of: list) -> None:
    counts = counted(of)
    found = dict(zip(SPECS[0].labels, counts.cells[0].tolist(), strict=True))
    expected = Counter(naive_cell(load) for load, _ in of)
    assert found == {label: expected[label] for label in SPECS[0].labels}
    named = Counter("missing" if s is None else s if s in "ab" and s else "other" for _, s in of)
    assert counts.cells[1].tolist() == [named[label] for label in SPECS[1].labels]
    assert counts.rows == len(of)


@given(rows)
def test_a_batch_of_n_counts_like_n_batches_of_one(of: list) -> None:
    one_by_one = Counts.empty(SPECS)
    for row in of:
        one_by_one.update(frame([row]))
    assert one_by_one.to_json() == counted(of).to_json()


@given(rows, rows, rows)
def test_merging_is_associative_commutative_and_loses_nothing(a: list, b: list, c: list) -> None:
    left, right, backwards = counted(a), counted(b), counted(c)
    left.merge(counted(b))
    left.merge(counted(c))
    right.merge(counted(c))
    first = counted(a)
    first.merge(right)
    backwards.merge(counted(b))
    backwards.merge(counted(a))
    assert left.to_json() == first.to_json() == backwards.to_json() == counted(a + b + c).to_json()


@given(rows)
def test_json_gives_back_the_same_counts(of: list) -> None:
    again = Counts.from_json(orjson.loads(orjson.dumps(counted(of).to_json())))
    assert again.specs == SPECS
    assert cells(again) == cells(counted(of))


def test_counts_of_different_cells_do_not_merge() -> None:
    with pytest.raises(ValueError, match="different cells"):
        Counts.empty(SPECS).merge(Counts.empty(SPECS[:1]))


@given(st.lists(st.tuples(loads, sites), max_size=200), st.integers(0, 3))
def test_the_reference_counts_one_half_and_chooses_its_cells_on_the_other(of: list, seed: int) -> None:
    counts = reference(frame(of), COLUMNS, seed)
    assert counts.rows == len(of) - len(of) // 2
    assert all(column.sum() == counts.rows for column in counts.cells)
    assert reference(frame(of), COLUMNS, seed).to_json() == counts.to_json()


def test_a_reference_has_bins_of_equal_weight() -> None:
    values = np.random.default_rng(1).normal(size=40_000)
    counts = reference(frame([(v, "a") for v in values.tolist()]), COLUMNS, seed=7)
    bins = counts.cells[0][1:-2]
    assert len(bins) == BINS
    assert abs(bins / counts.rows - 1 / BINS).max() < 0.01


@pytest.mark.parametrize("value", [0.0, -3.5])
def test_a_constant_has_a_bin_of_its_own(value: float) -> None:
    counts = reference(frame([(value, "a")] * 10), COLUMNS, seed=7)
    assert counts.cells[0].tolist() == [0, 5, 0, 0]
    counts.update(frame([(value - 1, "a"), (value + 1, "a")]))
    assert counts.cells[0].tolist() == [1, 5, 1, 0]


def test_ties_are_merged() -> None:
    counts = reference(frame([(float(i % 3), "a") for i in range(900)]), COLUMNS, seed=7)
    assert counts.specs[0].edges == (0.0, 1.0, 2.0)


def test_a_column_of_many_names_costs_bounded_memory() -> None:
    counts = reference(frame([(0.0, f"site {i}") for i in range(5_000)]), COLUMNS, seed=7)
    assert len(counts.cells[1]) == MAX_CATEGORIES + 2


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        (Column("x", "int", categories=(1, 2)), pl.Series([1, 2, 3]), [1, 1, 1, 0]),
        (Column("x", "float", categories=(1, 2)), pl.Series([1.0, 2.5, math.nan]), [1, 0, 1, 1]),
        (Column("x", "bool", categories=("true", "false")), pl.Series([True, None]), [1, 0, 0, 1]),
    ],
)
def test_discrete_values_are_told_apart_by_name(column: Column, values: pl.Series, expected: list) -> None:
    counts = Counts.empty(reference(pl.DataFrame({"x": values}), (column,), seed=7).specs)
    counts.update(pl.DataFrame({"x": values}))
    assert cells(counts) == [expected]


def test_instants_and_empty_columns_do_no_harm() -> None:
    columns = (Column("time", "datetime"), Column("load", "float"), Column("site", "category"))
    data = frame([(None, None)] * 4).with_columns(time=pl.datetime(2016, 1, 1, time_zone="UTC"))
    counts = reference(data, columns, seed=7)
    assert [spec.name for spec in counts.specs] == ["load", "site"]
    assert [column.tolist()[-1] for column in counts.cells] == [2, 2]


traffic = st.builds(
    lambda codes, amounts, invalid: (codes, amounts, invalid),
    st.lists(st.sampled_from(["200", "422", "401"])),
    st.lists(st.integers(0, 20_000_000)),
    st.lists(st.tuples(st.sampled_from(["load", "site"]), st.sampled_from(["type", "max"]))),
)


def traffic_of(codes: list, amounts: list, invalid: list) -> Traffic:
    found = Traffic(requests=Counter(codes), invalid=Counter(invalid))
    for amount in amounts:
        found.request_us.update(amount)
    return found


@given(traffic, traffic)
def test_traffic_merges_to_the_count_of_all(a: tuple, b: tuple) -> None:
    merged = traffic_of(*a)
    merged.merge(Traffic.from_json(orjson.loads(orjson.dumps(traffic_of(*b).to_json()))))
    assert merged.to_json() == traffic_of(*(x + y for x, y in zip(a, b, strict=True))).to_json()


@given(st.lists(st.integers(0, 3_000), min_size=1), st.floats(0.01, 1))
def test_a_histogram_quantile_is_the_end_of_the_cell_of_the_exact_one(amounts: list, share: float) -> None:
    ends = tuple(range(0, 3_001, 100))
    histogram = Histogram.empty(ends)
    for amount in amounts:
        histogram.update(amount)
    exact = sorted(amounts)[math.ceil(share * len(amounts)) - 1]
    assert histogram.quantile(share) == next(end for end in ends if end >= exact)
