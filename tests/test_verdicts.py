"""A batch of n rows and n requests of one row get the same verdicts and values, whatever stands in them."""

import itertools
from datetime import datetime, time, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_ray import schema
from mlops_ray.errors import InvalidRowError
from mlops_ray.schema import Column, Rule, Schema
from mlops_ray.serving.columns import Reader

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
    # Groups are of three digits: "1.5" is no fifteen.
    grouped = Schema((column,), decimal=",", thousands=".").cast(text, column).to_list()
    assert grouped == [1.5, None, 1234.5, 1234.0, -1.5, 0.5, None, 1234567.0]


def test_an_instant_or_duration_is_no_number() -> None:
    column = Column("f", "float")
    for values in (
        pl.Series([timedelta(seconds=1)]),
        pl.Series([datetime(2020, 1, 1)]),
        pl.Series([time(1)]),
    ):
        typed, failures = Schema((column,)).check(values.alias("f").to_frame())
        assert typed["f"].to_list() == [None]
        assert failures["rule"].to_list() == ["type"]


def test_n_requests_get_the_verdicts_of_a_batch_of_n_rows() -> None:
    """Through what reads the bodies of requests."""
    asked = Schema(
        (Column("f", "float", min=0, max=5), Column("i", "int"), Column("b", "bool"), Column("c", "category"))
    )
    reader = Reader(asked)
    rows = list(
        itertools.product([1, 1.5, "2", "x", -1, None], [1, "3", 1.5, None], [True, "no", "?"], ["a", ""])
    )
    batch = pl.DataFrame(
        {
            name: [None if row[n] is None else _text(row[n]) for row in rows]
            for n, name in enumerate(asked.names)
        },
        schema=dict.fromkeys(asked.names, pl.String),
    )
    typed, failures = verdicts(asked, batch)
    for number, row in enumerate(rows):
        here = [(column, rule) for at, column, rule, *_ in failures if at == number]
        request = {name: [value] for name, value in zip(asked.names, row, strict=True)}
        if broken := [column for column, rule in here if rule == "type"]:
            with pytest.raises(InvalidRowError) as told:
                reader.read(request)
            assert (told.value.row, told.value.column) == (0, next(n for n in asked.names if n in broken))
            continue
        one, found = verdicts(asked, reader.read(request).frame)
        assert one == [typed[number]], row
        assert [(column, rule) for _, column, rule, *_ in found] == here, row


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
