"""Derived columns, and the columns by which a row finds its place in the history."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from mlops_ray.config import Source
from mlops_ray.data import blocks, inputs
from mlops_ray.data.validate import Report, Verdict
from mlops_ray.errors import ConfigError, DataError

ROWS = """time,site,load,seen
2016-01-01,a,1,2016-01-01T06:00Z
2016-01-02,a,3,
2016-01-03,a,x,2016-01-03T06:00Z
2016-01-04,b,,
"""
COLUMNS: dict[str, Any] = {
    "site": {"type": "category"},
    "load": {"type": "float"},
    "seen": {"type": "datetime"},
}

#: A module of a user's own.
OWN = """
import polars as pl

def doubled(load):
    return load * 2

def short(load):
    return load.head(1)

def raises(load):
    raise KeyError("no such thing")

def local(load):
    return pl.repeat(None, len(load), dtype=pl.Datetime("us"), eager=True)

def listed(load):
    return load.to_list()
"""


@pytest.fixture(autouse=True)
def _own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_functions.py").write_text(OWN)
    (tmp_path / "broken_functions.py").write_text("def (")
    monkeypatch.syspath_prepend(tmp_path)


def verdict(
    tmp_path: Path, rows: str = ROWS, *, derived: dict[str, Any] | None = None, **says: Any
) -> Verdict:
    """The verdict over these rows, by a source with the columns of `ROWS` and these derived ones."""
    (tmp_path / "rows.csv").write_text(rows)
    base = {"path": str(tmp_path / "rows.csv"), "entity": "site", "columns": COLUMNS | (derived or {})}
    base |= {} if "time" in says else {"event_time": {"column": "time", "timezone": "UTC"}}
    source = Source.model_validate(base | says)
    (file,) = inputs.find(source, "s")
    (found,) = blocks.check_file(file, source)
    Report().add(found)
    return found


def rejected(found: Verdict) -> list[tuple[Any, ...]]:
    return found.quarantine.select("_row", "column", "rule", "value").rows()


def test_columns_are_derived_from_typed_columns_and_from_one_another(tmp_path: Path) -> None:
    derive = {
        "high": "load > 2",
        "twice": {"path": "own_functions.doubled", "inputs": ["load"]},
        "half": "twice / 4",
        "day": "DATE_PART('day', event_time)",
    }
    types = {"high": "bool", "twice": "float", "half": "float", "day": "int"}
    derived = {name: {"type": type} for name, type in types.items()}
    found = verdict(tmp_path, derive=derive, derived=derived)
    assert found.valid.select("high", "twice", "half", "day").rows() == [
        (False, 2.0, 0.5, 1),
        (True, 6.0, 1.5, 2),
        (None, None, None, 4),
    ]
    assert rejected(found) == [(3, "load", "type", "x")]


def test_a_derived_column_is_checked_like_any_other(tmp_path: Path) -> None:
    derived = {"twice": {"type": "float", "max": 5}, "name": {"type": "float"}}
    derive = {"twice": "load * 2", "name": "CASE WHEN load < 2 THEN site ELSE '7' END"}
    rule = {"name": "small", "require": "twice < 2 OR load IS NULL", "on_fail": "flag"}
    found = verdict(tmp_path, derive=derive, derived=derived, rules=[rule], where="twice IS NULL")
    assert rejected(found) == [(1, "name", "type", "a"), (2, "twice", "max", "6.0"), (3, "load", "type", "x")]
    assert found.failures.filter(pl.col("severity") == "flag")["rule"].to_list() == ["small"] * 2
    assert (found.valid.height, found.filtered) == (1, 0)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (
            {"path": "own_functions.short", "inputs": ["load"]},
            "own_functions.short returned 1 values for 4 rows",
        ),
        (
            {"path": "own_functions.raises", "inputs": ["load"]},
            "own_functions.raises failed: KeyError: 'no such",
        ),
        ({"path": "own_functions.listed", "inputs": ["load"]}, "own_functions.listed returned a list, not a"),
        (
            {"path": "own_functions.local", "inputs": ["load"]},
            "a stamp needs its time zone",
        ),
        ("seen - event_time", "a number or duration its unit"),
        ("site > 2", "cannot compare string with numeric type"),
    ],
)
def test_what_goes_wrong_in_deriving_a_column_names_it(how: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        verdict(tmp_path, derive={"more": how}, derived={"more": {"type": "float"}})
    assert str(error.value).startswith(f"{tmp_path}/rows.csv, column 'more': it cannot be derived: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_function_that_is_not_there_is_found_with_the_header(tmp_path: Path) -> None:
    for path, says in {
        "own_functions.doubld": "'own_functions' has no function 'doubld'; did you mean 'doubled'?",
        "own_function.doubled": "'own_function.doubled' cannot be imported: ModuleNotFoundError",
        "broken_functions.doubled": "cannot be imported: SyntaxError",
        "doubled": "cannot be imported",
    }.items():
        with pytest.raises(ConfigError, match=says):
            verdict(
                tmp_path,
                derive={"more": {"path": path, "inputs": "load"}},
                derived={"more": {"type": "float"}},
            )


def test_a_row_without_its_identity_is_rejected_unless_it_is_left_out_anyway(tmp_path: Path) -> None:
    known = {"known_at": {"column": "seen"}}
    assert rejected(verdict(tmp_path, **known))[0] == (2, "seen", "required", "")
    found = verdict(tmp_path, where="load = 1", **known)
    assert found.valid["seen"].to_list() == [datetime(2016, 1, 1, 6, tzinfo=UTC)]
    assert (rejected(found), found.filtered) == ([(3, "load", "type", "x")], 2)
    flagged = COLUMNS | {"seen": {"type": "datetime", "on_fail": "flag"}}
    assert len(rejected(verdict(tmp_path, columns=flagged, row_id="seen"))) == 3


def test_known_at_row_id_sequence_and_deleted_are_columns_of_the_valid_rows(tmp_path: Path) -> None:
    rows = "time,site,id,n,gone,seen\n2016-01-01,a,i1,7,true,2016-01-01T06:00Z\n"
    types = {"site": "category", "id": "string", "n": "int", "gone": "bool", "seen": "datetime"}
    says = {"row_id": "id", "sequence": "n", "deleted": "gone", "known_at": {"column": "seen"}}
    found = verdict(tmp_path, rows, columns={name: {"type": type} for name, type in types.items()}, **says)
    assert found.valid.drop("event_time", "site").rows() == [
        ("i1", 7, True, datetime(2016, 1, 1, 6, tzinfo=UTC))
    ]


def test_a_table_without_time_has_no_event_time(tmp_path: Path) -> None:
    found = verdict(tmp_path, time="none")
    assert found.valid.columns == ["site", "load", "seen"]
    assert (found.rows_in, found.valid.height, found.rejected) == (4, 3, 1)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "row_id of no column": (
        {"row_id": "sit"},
        "names 'sit', which is not among columns; did you mean 'site'?",
    ),
    "known_at of no column": ({"known_at": {"column": "sen"}}, "did you mean 'seen'?"),
    "known_at of another type": (
        {"known_at": {"column": "load"}},
        "the column 'load' is of type float, not datetime",
    ),
    "sequence of another type": ({"sequence": "load"}, "the column 'load' is of type float, not int"),
    "deleted of another type": ({"deleted": "load"}, "the column 'load' is of type float, not bool"),
    "undeclared": ({"derive": {"more": "load * 2"}}, "names 'more', which is not among columns"),
    "derived from itself": ({"derive": {"load": "load * 2"}}, "reads 'load', which is no column"),
    "derived from no column": ({"derive": {"load": "sit"}}, "did you mean 'site'?"),
    "function of no column": (
        {"derive": {"load": {"path": "own_functions.doubled", "inputs": ["sit"]}}},
        "did you mean 'site'?",
    ),
    "derived from other rows": ({"derive": {"load": "SUM(site)"}}, "reads other rows than its own"),
    "filter of no column": ({"where": "lod > 1"}, "did you mean 'load'?"),
    "known after no event": (
        {"time": "none", "known_at": {"after_event": "1h"}},
        "without time have no event to count from",
    ),
    "event time of no time": (
        {"time": "none", "derive": {"load": "event_time"}},
        "reads 'event_time', which is",
    ),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_source_that_names_what_is_not_there_is_refused(what: str, tmp_path: Path) -> None:
    changes, says = MISTAKES[what]
    with pytest.raises(ValidationError) as error:
        verdict(tmp_path, **changes)
    assert says in str(error.value)
