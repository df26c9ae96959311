"""A batch of n rows and n requests of one row get the same verdicts and values, whatever stands in them."""

from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_ray import schema
from mlops_ray.schema import Column, Rule, Schema

SCHEMA = Schema(
    (
        Column("f", "float", required=True, min=-1.5, max=100),
        Column("g", "float", on_fail="flag", max=5),
        Column("i", "int", min=0, hidden=True),
        Column("b", "bool"),
        Column("c", "category", categories=("a", "b", "1")),
        Column("s", "string", pattern="[a-z ]*", on_fail="flag"),
        Column("t", "datetime"),
    ),
    (
        Rule("order", "f <= g", nulls="fail"),
        Rule("pair", "NOT (b AND c = 'a')", on_fail="flag"),
        Rule("known", "i > 0 OR s = 'x'"),
    ),
    null_values=("", "?", "-9"),
)
WORDS = [
    "", "?", "-9", "-9.0", " 1", "1 ", "1e2", "1.5", "-1.5", "-1.6", "100", "100.0001", "NaN", "nan", "inf",
    "-inf", "0", "7", "007", "+3", "1_000", "1,5", "a", "b", "x", "true", "False", "yes", "TRUE", "é", "0x10",
    "9223372036854775807", "9223372036854775808", "1e400", "2020-01-01T00:00Z", "2020-01-01T00:00+02:00",
    "2020-01-01", "2020-13-01T00:00Z", "2016-12-31T23:59:60Z", " ", "null", "None", "٣",
]  # fmt: skip
cell = st.one_of(st.none(), st.sampled_from(WORDS), st.text(max_size=4))
row = st.fixed_dictionaries({column.name: cell for column in SCHEMA.columns})


def verdicts(given: Schema, frame: pl.DataFrame) -> tuple[list[Any], list[Any]]:
    typed, failures = given.check(frame)
    order = ["row", "column", "rule"]
    return typed.rows(), failures.sort(order, nulls_last=True, maintain_order=True).rows()


@pytest.mark.parametrize("many_rows", [0, 1_000])
@settings(max_examples=60)
@given(
    rows=st.lists(row, min_size=1, max_size=12),
    written=st.sampled_from([(".", None), (",", "."), (",", None)]),
)
def test_n_rows_at_once_and_one_by_one(
    many_rows: int, rows: list[dict[str, str | None]], written: tuple[str, str | None]
) -> None:
    decimal, thousands = written
    asked = Schema(
        SCHEMA.columns, SCHEMA.rules, null_values=SCHEMA.null_values, decimal=decimal, thousands=thousands
    )
    text = dict.fromkeys(SCHEMA.names, pl.String)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "MANY_ROWS", many_rows)
        values, failures = verdicts(asked, pl.DataFrame(rows, schema=text))
    alone = [verdicts(asked, pl.DataFrame([one], schema=text)) for one in rows]
    assert values == [typed[0] for typed, _ in alone]
    assert failures == [(number, *rest) for number, (_, found) in enumerate(alone) for _, *rest in found]
    hidden = [failure for failure in failures if failure[1] == "i"]
    assert all(failure[3] is None for failure in hidden)


typed_cell: dict[str, st.SearchStrategy[Any]] = {
    "f": st.one_of(st.none(), st.floats()),
    "g": st.one_of(st.none(), st.floats(width=32)),
    "i": st.one_of(st.none(), st.floats(), st.integers(-5, 5).map(float)),
    "b": st.one_of(st.none(), st.booleans()),
    "c": st.one_of(st.none(), st.sampled_from(["a", "b", "z", ""])),
    "s": st.one_of(st.none(), st.text(max_size=3)),
    "t": st.none(),
}


@settings(max_examples=60)
@given(rows=st.lists(st.fixed_dictionaries(typed_cell), min_size=1, max_size=12))
def test_n_typed_rows_at_once_and_one_by_one(rows: list[dict[str, Any]]) -> None:
    types = {"f": pl.Float64, "g": pl.Float64, "i": pl.Float64, "b": pl.Boolean, "c": pl.String}
    types |= {"s": pl.String, "t": pl.String}
    values, failures = verdicts(SCHEMA, pl.DataFrame(rows, schema=types))
    alone = [verdicts(SCHEMA, pl.DataFrame([one], schema=types)) for one in rows]
    assert values == [typed[0] for typed, _ in alone]
    assert failures == [(number, *rest) for number, (_, found) in enumerate(alone) for _, *rest in found]


def test_where_a_comma_begins_the_fraction_a_point_is_a_mistake_unless_it_groups_digits() -> None:
    text = pl.Series(["1,5", "1.5", "1.234,5", "1234", "-1,5", ",5", "1,5,0", "1.234.567"])
    column = Column("f", "float")
    comma = Schema((column,), decimal=",").cast(text, column).to_list()
    assert comma == [1.5, None, None, 1234.0, -1.5, 0.5, None, None]
    grouped = Schema((column,), decimal=",", thousands=".").cast(text, column).to_list()
    assert grouped == [1.5, 15.0, 1234.5, 1234.0, -1.5, 0.5, None, 1234567.0]
