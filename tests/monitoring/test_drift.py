"""Drift statistics against formulas written out, against scipy, and on samples that differ or do not."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import jensenshannon

from mlops_ray.data.counts import Counts, reference
from mlops_ray.monitoring import drift
from mlops_ray.monitoring.drift import ALPHA, EFFECT_FLOOR, MIN_EXPECTED, MIN_ROWS, compare
from mlops_ray.schema import Column

COLUMNS = (
    Column("x", "float"),
    Column("site", "category"),
    Column("hour", "int", categories=tuple(range(24))),
)
tables = st.integers(2, 8).flatmap(
    lambda cells: st.tuples(
        *(st.lists(st.integers(0, 300), min_size=cells, max_size=cells).map(lambda c: np.array(c, float)),)
        * 2
    )
)


def frame(seed: int, rows: int, shift: float = 0.0, sites: str = "ab") -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    values = {
        "x": rng.normal(shift, 1, rows),
        "site": rng.choice(list(sites), rows),
        "hour": rng.integers(0, 24, rows),
    }
    return pl.DataFrame(values)


REFERENCE = reference(frame(0, 20_000), COLUMNS, seed=7)


def window(of: pl.DataFrame) -> Counts:
    counts = Counts.empty(REFERENCE.specs)
    counts.update(of)
    return counts


def drifted(of: pl.DataFrame, clock: tuple[str, ...] = ("hour",)) -> set[str]:
    return {found.column for found in compare(REFERENCE, window(of), clock) if found.drifted}


@given(tables)
def test_g_is_that_of_scipy(table: tuple[np.ndarray, np.ndarray]) -> None:
    counts = np.stack(table)
    assume((counts.sum(axis=0) > 0).all())
    assume((counts.sum(axis=1) > 0).all())
    expected = stats.chi2_contingency(counts, correction=False, lambda_="log-likelihood")
    statistic, degrees = drift.g_test(*table)
    assert math.isclose(statistic, expected.statistic, rel_tol=1e-9, abs_tol=1e-9)
    assert degrees == expected.dof


@given(tables)
def test_jensen_shannon_is_that_of_scipy_and_between_0_and_1(table: tuple[np.ndarray, np.ndarray]) -> None:
    assume(table[0].sum() > 0)
    assume(table[1].sum() > 0)
    found = drift.jensen_shannon(*table)
    assert math.isclose(found, jensenshannon(*table, base=2), abs_tol=1e-6)
    assert 0 <= found <= 1


@given(tables)
def test_psi_is_its_formula_and_symmetric(table: tuple[np.ndarray, np.ndarray]) -> None:
    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in table)
    expected = sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert math.isclose(drift.psi(*table), expected, abs_tol=1e-9)
    assert math.isclose(drift.psi(*table), drift.psi(*table[::-1]), abs_tol=1e-9)


@given(tables, st.booleans())
def test_folding_keeps_every_row_and_leaves_few_small_cells(
    table: tuple[np.ndarray, np.ndarray], ordered: bool
) -> None:
    ours, theirs = table
    assume(ours.sum() >= MIN_ROWS)
    assume(theirs.sum() >= MIN_ROWS)
    folded = drift.fold(ours, theirs, ordered=ordered)
    assert [cells.sum() for cells in folded] == [ours.sum(), theirs.sum()]
    both = folded[0] + folded[1]
    expected = both * min(ours.sum(), theirs.sum()) / both.sum()
    # The rest of the small ones, *missing*, and of categories *other*.
    assert (expected < MIN_EXPECTED).sum() <= (1 if ordered else 3)
    assert (both > 0).all()


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_rejects_what_its_step_down_procedure_rejects(p_values: list[float]) -> None:
    adjusted = drift.holm(p_values)
    for level in (0.01, 0.05, 0.5):
        rejected: set[float] = set()
        for rank, p in enumerate(sorted(p_values)):
            if p * (len(p_values) - rank) > level:
                break
            rejected.add(p)
        assert [a <= level for a in adjusted] == [p in rejected for p in p_values]


def test_rows_of_the_same_kind_do_not_drift() -> None:
    for seed in range(1, 41):
        assert drifted(frame(seed, rows=(60, 200, 1_000, 5_000)[seed % 4])) == set()


def test_the_bias_of_psi_is_taken_off() -> None:
    found = [compare(REFERENCE, window(frame(seed, 200)), ())[0] for seed in range(1, 201)]
    assert np.mean([f.psi for f in found]) > 3 * EFFECT_FLOOR
    assert abs(np.mean([f.psi_corrected for f in found])) < EFFECT_FLOOR / 2


@pytest.mark.parametrize(("shift", "rows"), [(1.0, 200), (0.5, 1_000)])
def test_a_shift_is_found_and_named(shift: float, rows: int) -> None:
    for seed in range(1, 11):
        assert drifted(frame(seed, rows, shift)) == {"x"}


def test_a_new_category_is_found() -> None:
    assert drifted(frame(1, 500, sites="abbbc")) == {"site"}


def test_missing_values_are_found() -> None:
    some = pl.int_range(500, eager=True) % 10 == 0
    assert drifted(frame(1, 500).with_columns(x=pl.when(some).then(None).otherwise(pl.col("x")))) == {"x"}


def test_a_difference_too_small_to_matter_is_no_drift_however_sure() -> None:
    found = compare(REFERENCE, window(frame(1, 100_000, shift=0.08)), ())[0]
    assert found.p_holm < ALPHA
    assert not found.drifted


def test_a_column_says_nothing_before_its_least_rows() -> None:
    for found in compare(REFERENCE, window(frame(1, MIN_ROWS - 1, shift=5)), ()):
        assert found.untested == f"fewer than {MIN_ROWS} rows"
        assert (found.p, found.psi, found.drifted) == (None, None, False)
    assert "x" in drifted(frame(1, MIN_ROWS, shift=5))


def test_columns_that_only_tell_the_clock_are_not_tested() -> None:
    night = frame(1, 2_000).with_columns(hour=pl.lit(3))
    assert drifted(night) == set()
    assert drifted(night, clock=()) == {"hour"}


def test_a_constant_column_does_not_drift_from_itself() -> None:
    constant = pl.DataFrame({"x": [1.0] * 200})
    counts = reference(constant, COLUMNS[:1], seed=7)
    found = compare(counts, counts, ())[0]
    assert (found.degrees, found.p, found.drifted) == (0, 1.0, False)
