"""Pictures of any numbers lie within their frame, and stand as files of their own."""

import re
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from mlops_ray import pictures

#: Each is parsed, which takes longer than drawing it.
FEW = settings(max_examples=15)
NUMBERS = st.floats(-1e12, 1e12, allow_nan=False)
FOUND = st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.integers(0, 10**9))
VALUES = NUMBERS | st.booleans() | st.integers(-(10**6), 10**6) | st.text(max_size=9)


def assert_within(svg: Markup) -> None:
    """All of it is numbers, and lies in the picture or at most a sign's width beside it."""
    root = ElementTree.fromstring(pictures.standalone(svg))
    *_, width, height = map(float, str(root.get("viewBox")).split())
    for element in root.iter():
        place = [element.get(name, "") for name in ("x", "y", "x1", "x2", "y1", "y2", "d")]
        assert not re.search(r"nan|inf", " ".join(place))
        for x, y in re.findall(r"[ML]([-\d.e]+) ([-\d.e]+)", element.get("d", "")):
            assert -10 <= float(x) <= width + 10
            assert -10 <= float(y) <= height + 10


@FEW
@given(st.lists(st.tuples(st.text(max_size=9), FOUND), min_size=1, max_size=9), NUMBERS)
def test_whiskers_of_any_numbers_are_drawn(found: list[Any], line: float) -> None:
    assert_within(pictures.whiskers("t", [(name, *rest[1:]) for name, rest in found], line, "axis"))


@FEW
@given(
    st.dictionaries(st.text(max_size=5), st.lists(FOUND, min_size=1, max_size=30), min_size=1, max_size=6),
    NUMBERS,
)
def test_lines_of_any_numbers_are_drawn(drawn: dict[str, list[Any]], at: float) -> None:
    assert_within(pictures.lines("t", drawn, ("across", "up"), ("all", at, -at)))


@FEW
@given(
    st.dictionaries(
        st.text(max_size=5), st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1), min_size=1, max_size=9
    )
)
def test_points_of_any_kinds_are_drawn(kinds: dict[str, list[Any]]) -> None:
    assert_within(pictures.scatter("t", kinds, ("across", "up")))


@FEW
@given(
    st.integers(1, 8).flatmap(
        lambda size: st.tuples(
            st.lists(st.lists(VALUES, min_size=size, max_size=size), min_size=1, max_size=5),
            st.lists(NUMBERS, min_size=size, max_size=size),
        )
    ),
    st.booleans(),
)
def test_parameters_of_any_kind_are_drawn(rows: tuple[list[list[Any]], list[float]], lower: bool) -> None:
    columns = {f"p{number}": values for number, values in enumerate(rows[0])} | {"metric": rows[1]}
    assert_within(pictures.parallel("t", columns, lower))


def test_the_best_row_is_the_deepest_and_lies_above_the_others() -> None:
    columns = {"alpha": [1.0, 2.0, 3.0], "mae": [0.2, 0.1, 0.3]}
    for lower, best in ((True, 0.1), (False, 0.3)):
        paths = re.findall(
            r'd="M([^"]+)"[^>]*stroke-opacity="([\d.]+)"', pictures.parallel("t", columns, lower)
        )
        heights = [float(places.split()[-1]) for places, _ in paths]
        depths = [float(depth) for _, depth in paths]
        assert depths == sorted(depths)
        assert depths[-1] == 1.0
        assert (heights[-1] == max(heights)) is (best == 0.1)


def test_a_logarithmic_axis_is_marked_in_powers_of_ten() -> None:
    svg = pictures.parallel("t", {"alpha": [0.001, 0.1, 10.0], "mae": [0.1, 0.2, 0.3]}, True)
    assert {">0.001<", ">0.1<", ">10<"} <= set(re.findall(r">[\d.]+<", svg))


def test_lines_over_time_are_dated() -> None:
    days = [(f"2016-11-0{day}T00:00:00+00:00", 0.1 * day) for day in range(1, 8)]
    svg = pictures.lines("t", {"": days}, ("time", "mae"))
    assert "Nov" in svg
    assert_within(svg)


@pytest.mark.parametrize("nothing", [{"a": []}, {"a": [(1.0, 2.0)], "b": []}])
def test_nothing_is_drawn_of_nothing(nothing: dict[str, Any]) -> None:
    assert pictures.lines("t", nothing, ("x", "y")) == ""
    assert pictures.whiskers("t", [], 0.0, "x") == ""


def test_a_picture_alone_brings_the_colours_of_a_page_light_and_dark() -> None:
    text = pictures.standalone(pictures.whiskers("t", [("a", 1.0, 0.5, 1.5, 9)], 0.0, "axis"))
    assert "prefers-color-scheme: dark" in text
    assert set(re.findall(r"var\((--\w+)\)", text)) <= set(re.findall(r"(--\w+):", text))
    assert not re.search(r"href|url\(|<script|@import", text)
