"""One check for batches and requests."""

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from mlops_ray.data.rows import Rows, together
from mlops_ray.schema import INSTANT, Column, Rule, Schema

SCHEMA = Schema(
    (
        Column("load", "float", required=True, min=0, max=1.5),
        Column("count", "int"),
        Column("on", "bool"),
        Column("site", "category", categories=("a", "b"), on_fail="flag"),
        Column("code", "string", pattern=r"[A-Z]\d"),
        Column("at", "datetime"),
    ),
    (Rule("small_a", "load < 1 OR site = 'b'"), Rule("known", "count > 0", nulls="fail", on_fail="flag")),
)

CELLS = {
    "load": st.sampled_from(["0.5", "1.2", "-1", "2", "x", "", "nan", "inf", " 1 ", None]),
    "count": st.sampled_from(["1", "0", "1.5", "x", "", None]),
    "on": st.sampled_from(["true", "no", "maybe", None]),
    "site": st.sampled_from(["a", "b", "c", "", None]),
    "code": st.sampled_from(["A1", "a1", "A11", None]),
    "at": st.sampled_from(["2016-01-01T01:00+01:00", "2016-01-01T00:00:00Z", "2016-01-01", "x", None]),
}
ROWS = st.lists(st.fixed_dictionaries(CELLS), min_size=1, max_size=6)


@given(ROWS)
def test_no_value_outside_its_column_s_range_passes(rows: list[dict[str, str | None]]) -> None:
    frame = pl.DataFrame(rows, schema=dict.fromkeys(SCHEMA.names, pl.String))
    typed, failures = SCHEMA.check(frame)
    rejected = set(failures.filter(pl.col("severity") == "reject")["row"])
    for index, value in enumerate(typed["load"]):
        if index not in rejected:
            assert value is not None
            assert 0 <= value <= 1.5


def test_nan_is_missing_and_infinity_is_of_the_wrong_type() -> None:
    frame = pl.DataFrame({"x": [float("nan"), float("inf"), 1.0]})
    typed, failures = Schema((Column("x", "float"),)).check(frame)
    assert typed["x"].to_list() == [None, None, 1.0]
    assert failures.select("row", "rule").rows() == [(1, "type")]


def test_an_instant_at_the_ends_of_the_calendar_or_beyond_is_of_the_wrong_type() -> None:
    schema = Schema((Column("at", "datetime"),))
    text = ["0000-12-31T23:59Z", "0001-12-31T23:59Z", "9999-01-01T00:00Z", "+12345-01-01T00:00Z"]
    text += ["9999-12-31T23:59:59-23:59", "2016-05-05T12:30:60Z", "2016-05-05T12:30Z"]
    typed, failures = schema.check(pl.DataFrame({"at": text}))
    assert failures.select("row", "rule").rows() == [(row, "type") for row in range(len(text) - 1)]
    assert typed["at"].null_count() == len(text) - 1
    numbers = pl.Series("at", [-62_104_060_800_000_001, 253_370_764_800_000_000, 0])
    for values in (numbers, numbers.cast(INSTANT), numbers.cast(INSTANT).cast(pl.Datetime("ms", "UTC"))):
        assert schema.check(pl.DataFrame([values]))[1]["row"].to_list() == [0, 1]


def test_a_fraction_is_no_integer() -> None:
    typed, failures = Schema((Column("x", "int"),)).check(pl.DataFrame({"x": [1.0, 1.5]}))
    assert typed["x"].to_list() == [1, None]
    assert failures.select("row", "rule", "value").rows() == [(1, "type", "1.5")]


def test_an_id_that_was_read_as_a_number_keeps_its_name_whatever_stands_beside_it() -> None:
    schema = Schema((Column("id", "category"),))
    for values, expected in (([7.0], ["7"]), ([7.0, 7.5, None], ["7", "7.5", None]), ([7], ["7"])):
        assert schema.check(pl.DataFrame({"id": values}))[0]["id"].to_list() == expected


def test_an_unknown_rule_passes_unless_it_says_otherwise() -> None:
    frame = pl.DataFrame({"x": [None, 1.0]}, schema={"x": pl.Float64})
    for nulls, rows in (("pass", [1]), ("fail", [0, 1])):
        schema = Schema((Column("x", "float"),), (Rule("r", "x > 5", nulls=nulls),))  # type: ignore[arg-type]
        assert schema.check(frame)[1]["row"].to_list() == rows


def test_a_schema_survives_json() -> None:
    assert Schema.from_json(SCHEMA.to_json()) == SCHEMA


def test_a_rule_over_hidden_columns_alone_names_each_row_and_no_value() -> None:
    columns = (Column("a", "int", hidden=True), Column("b", "int", hidden=True))
    schema = Schema(columns, (Rule("apart", "a < b"),))
    _, failures = schema.check(pl.DataFrame({"a": [2, 0, 1], "b": [1, 1, 1]}))
    assert failures.select("row", "value").rows() == [(0, "a=…, b=…"), (2, "a=…, b=…")]


SOUND = Schema(
    (
        Column("load", "float", min=0, max=10),
        Column("cost", "float", required=True),
        Column("site", "category", required=True, categories=("a", "b")),
        Column("n", "int"),
        Column("level", "int", min=0),
        Column("open", "bool"),
        Column("time", "datetime", required=True),
        Column("word", "string", pattern="[a-z]+"),
        Column("name", "string", required=True),
        Column("grade", "float", pattern="[0-9.]+"),
    ),
    null_values=("", "NA"),
)
typed_values = {
    "load": st.none() | st.floats(-1, 11) | st.just(float("inf")) | st.just(float("nan")),
    "cost": st.none() | st.floats(allow_nan=True),
    "site": st.sampled_from(["a", "b", "c", None]),
    "n": st.none() | st.integers(-5, 5),
    "level": st.none() | st.integers(-1, 5),
    "open": st.none() | st.booleans(),
    "time": st.none() | st.integers(0, 10**15),
    "word": st.sampled_from(["x", "X", None]),
    "name": st.sampled_from(["x", "", "NA", None]),
    "grade": st.none() | st.floats(-2, 2),
}


@given(
    st.lists(st.sampled_from(sorted(typed_values)), unique=True, min_size=1),
    st.data(),
)
def test_what_is_sound_at_a_glance_passes_every_check_as_it_is(names: list[str], data: st.DataObject) -> None:
    schema = Schema(tuple(SOUND.column(name) for name in names), null_values=SOUND.null_values)
    height = data.draw(st.integers(1, 4))
    columns = [data.draw(st.lists(typed_values[n], min_size=height, max_size=height)) for n in names]
    asked = Rows(schema, columns)
    table = together([asked])
    typed, failures = schema.check(asked.frame)
    if not table.is_sound:
        return
    assert failures.height == 0
    assert typed.equals(asked.frame)
    floats = [name for name in names if SOUND.column(name).type == "float"]
    assert np.array_equal(table.floats, typed.select(floats).to_numpy().reshape(height, -1), equal_nan=True)


def test_an_infinity_is_sound_under_no_bound() -> None:
    schema = Schema((Column("load", "float", min=-float("inf"), max=float("inf")),))
    assert together([Rows(schema, [[1e308]])]).is_sound
    assert not together([Rows(schema, [[float("inf")]])]).is_sound


@given(st.floats(0, 10), st.sampled_from(["a", "b"]), st.integers(0, 10**15))
def test_plain_values_within_their_bounds_are_sound_at_a_glance(load: float, site: str, time: int) -> None:
    schema = Schema(tuple(SOUND.column(name) for name in ("load", "cost", "site", "time", "open")))
    assert together([Rows(schema, [[load], [load], [site], [time], [None]])]).is_sound
