"""Features as they were at P: compared with a short, slow, obviously right oracle."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_ray.errors import DataError
from mlops_ray.features.definitions import FeatureSet, Stored, ViewTable
from mlops_ray.features.join import point_in_time
from mlops_ray.schema import INSTANT, Column, Schema

EPOCH = datetime(1969, 12, 31, 23, 59, 59, 999_980, tzinfo=UTC)
KEYS = ("k",)
Row = tuple[str | None, int, float | None]


def feature_set(*stored: Stored, horizon: int = 0, keys: tuple[str, ...] = KEYS) -> FeatureSet:
    request = Schema((*(Column(key, "category") for key in keys), Column("t", "datetime")))
    table = ViewTable("s", "s-1", keys, (Column("x", "float"),), None, ())
    columns = tuple(Column(feature.name, "float") for feature in stored)
    return FeatureSet(request, columns, stored, (), (table,), horizon, "t")


def instants(micros: list[int]) -> pl.Series:
    return pl.Series([EPOCH + timedelta(microseconds=m) for m in micros], dtype=INSTANT)


def table(rows: list[Row]) -> pl.DataFrame:
    frame = pl.DataFrame(
        {"k": [r[0] for r in rows], "x": [r[2] for r in rows]}, schema={"k": pl.String, "x": pl.Float64}
    )
    return frame.with_columns(instants([r[1] for r in rows]).alias("event_time")).sort("k", "event_time")


def spine(rows: list[tuple[str | None, int]]) -> pl.DataFrame:
    frame = pl.DataFrame({"k": [r[0] for r in rows]}, schema={"k": pl.String})
    return frame.with_columns(instants([r[1] for r in rows]).alias("t"))


def oracle(feature: Stored, key: str | None, target: int, horizon: int, rows: list[Row]) -> float | None:
    """Sections 3 and 4 of the semantics, read aloud."""
    mine = sorted((t, x) for k, t, x in rows if k == key and key is not None)
    p = target - horizon
    if feature.kind == "latest":
        seen = [x for t, x in mine if t <= p]
        return seen[-1] if seen else None
    if feature.kind == "value_at":
        at = target - feature.ago_us
        seen = [x for t, x in mine if at - feature.tolerance_us <= t <= at]
        return seen[-1] if seen else None
    inside = [x for t, x in mine if p - feature.over_us < t <= p]
    return _aggregate(str(feature.agg), inside)


def _aggregate(agg: str, inside: list[float | None]) -> float | None:
    if agg == "count":
        return float(len(inside))
    if agg in ("first", "last"):
        return (inside[0] if agg == "first" else inside[-1]) if inside else None
    values = [x for x in inside if x is not None]
    if not values:
        return None
    if agg == "std":
        mean = sum(values) / len(values)
        return (
            math.sqrt(sum((x - mean) ** 2 for x in values) / (len(values) - 1)) if len(values) > 1 else None
        )
    simple: dict[str, Any] = {
        "sum": sum,
        "mean": lambda v: sum(v) / len(v),
        "min": min,
        "max": max,
        "distinct_count": lambda v: float(len(set(v))),
        "quantile": lambda v: (
            sorted(v)[len(v) // 2] if len(v) % 2 else sum(sorted(v)[len(v) // 2 - 1 :][:2]) / 2
        ),
    }
    return float(simple[agg](values))


AGGS = ["count", "sum", "mean", "min", "max", "std", "first", "last", "distinct_count", "quantile"]
FEATURES = st.one_of(
    st.builds(Stored, st.just("f"), st.just("s"), st.just("x"), st.just("latest")),
    st.builds(
        Stored,
        st.just("f"),
        st.just("s"),
        st.just("x"),
        st.just("value_at"),
        ago_us=st.integers(4, 9),
        tolerance_us=st.integers(0, 3),
    ),
    st.builds(
        Stored,
        st.just("f"),
        st.just("s"),
        st.just("x"),
        st.just("window"),
        agg=st.sampled_from(AGGS),
        over_us=st.integers(1, 8),
    ),
)
MICROS = st.integers(0, 30)
NAMES = st.sampled_from(["a", "b"])
VALUES = st.one_of(st.none(), st.integers(-3, 3).map(float))
HISTORY = st.lists(st.tuples(NAMES, MICROS, VALUES), max_size=25, unique_by=lambda r: r[:2])
SPINE = st.lists(st.tuples(st.sampled_from(["a", "b", "unknown", None]), MICROS), max_size=12)


@given(FEATURES, st.integers(0, 4), HISTORY, SPINE)
def test_the_join_agrees_with_the_oracle(
    feature: Stored, horizon: int, rows: list[Row], asked: list[tuple[str | None, int]]
) -> None:
    features = feature_set(feature, horizon=horizon)
    found = point_in_time(spine(asked), {"s": table(rows)}, features)["f"].to_list()
    expected = [oracle(feature, key, target, horizon, rows) for key, target in asked]
    assert found == pytest.approx(expected, nan_ok=False)


@given(FEATURES, st.integers(0, 4), HISTORY, SPINE)
def test_rows_after_p_change_nothing(
    feature: Stored, horizon: int, rows: list[Row], asked: list[tuple[str | None, int]]
) -> None:
    features = feature_set(feature, horizon=horizon)
    for key, target in asked:
        one = spine([(key, target)])
        future = [(k, t, 99.0 if t > target - horizon else x) for k, t, x in rows]
        future += [(k, t, 99.0) for k in ("a", "b") for t in range(target - horizon + 1, target + 3)]
        future = list({(k, t): (k, t, x) for k, t, x in future}.values())
        before = point_in_time(one, {"s": table(rows)}, features)
        assert point_in_time(one, {"s": table(future)}, features).equals(before)


def test_a_source_without_keys_is_one_series() -> None:
    features = feature_set(Stored("f", "s", "x", "window", agg="sum", over_us=10), keys=())
    rows = table([("a", 1, 1.0), ("a", 2, 2.0)]).drop("k")
    asked = spine([("a", 0), ("a", 1), ("a", 5)]).drop("k")
    assert point_in_time(asked, {"s": rows}, features)["f"].to_list() == [None, 1.0, 3.0]


def test_a_key_of_another_type_is_an_error_that_names_both() -> None:
    features = feature_set(Stored("f", "s", "x", "latest"))
    asked = spine([("a", 1)]).with_columns(pl.lit(1).alias("k"))
    with pytest.raises(DataError, match="Int32 in the spine and String in the view"):
        point_in_time(asked, {"s": table([("a", 1, 1.0)])}, features)
