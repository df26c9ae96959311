"""The page of a validation: its verdict first, every number from the document, nothing withheld told."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from mlops_ray.data.profile import View, profile
from mlops_ray.data.report import profile_findings, report_findings, report_page
from mlops_ray.schema import INSTANT, Column
from tests.test_pages import NASTY, assert_sound

START = datetime(2016, 1, 1, tzinfo=UTC)


def checked(**says: Any) -> dict[str, Any]:
    """A report of 1,234,567 rows."""
    counts = {"rows_in": 1_234_567, "valid": 1_234_000, "quarantined": 500, "filtered": 67}
    example = {"file": "a.csv", "row": 12_345, "value": "9831.3"}
    base = {
        "source": "meter",
        "made_at": "2026-01-02T03:04:05+00:00",
        "state": "committed",
        "said": None,
        **counts,
        "files": [{"file": "a.csv", **counts}],
        "checks": [
            {"column": "rain", "rule": "max", "severity": "reject", "failed": 500, "examples": [example]},
            {
                "column": "name",
                "rule": "category",
                "severity": "flag",
                "failed": 7,
                "examples": [example | {"value": None}],
            },
            {
                "column": "key",
                "rule": "required",
                "severity": "reject",
                "failed": 1,
                "examples": [example | {"value": None}],
            },
        ],
        "table": [
            {"check": "rows", "column": None, "severity": "stop", "holds": True, "said": "enough rows"},
            {"check": "unique", "column": "key", "severity": "flag", "holds": False, "said": "9 rows repeat"},
        ],
        "profile": None,
    }
    return base | says


def rows() -> dict[str, Any]:
    """The profile of two hourly months with a gap of 308 days, repeated rows, and 0 K."""
    hours = [*range(700), *range(700 + 308 * 24, 1400 + 308 * 24), 0, 1]
    frame = pl.DataFrame(
        {
            "event_time": [START + timedelta(hours=hour) for hour in hours],
            "temp": [0.0, *np.random.default_rng(0).normal(281, 13, len(hours) - 1)],
            "snow": [None, *[0.5] * (len(hours) - 1)],
            "void": [None] * len(hours),
        },
        {"event_time": INSTANT, "temp": pl.Float64, "snow": pl.Float64, "void": pl.Float64},
    )
    columns = [Column(name, "float") for name in ("temp", "snow", "void")]
    return json.loads(json.dumps(profile(frame.lazy(), View(columns, time="event_time"))))  # type: ignore[no-any-return]


def test_findings_name_gaps_repeated_rows_wild_and_missing_values() -> None:
    found = profile_findings(rows())
    assert [f["severity"] for f in found] == ["problem", "problem", "warning", "warning"]
    assert (
        "1 gap without any row, from 2016-01-30 03:00 to 2016-12-03 04:00 (308.04 days); 7,392"
        in found[0]["said"]
    )
    assert found[1]["said"].startswith("‘temp’: 1 row far below all others: 0; the next value is 2")
    assert found[2]["said"] == "2 rows repeat the ‘event_time’ of one before."
    assert found[3]["said"] == "Missing: ‘void’ (100 %)."


@pytest.mark.parametrize(
    ("says", "severity", "words"),
    [
        ({}, "warning", "Committed: of 1,234,567 rows, 1,234,000 are valid, 500 in quarantine, 67 left out"),
        ({"state": "checked", "quarantined": 0}, "ok", "Checked, nothing was committed"),
        (
            {"state": "refused", "said": "no such file."},
            "problem",
            "Refused, nothing was committed: no such file. ",
        ),
    ],
)
def test_the_verdict_comes_first(says: dict[str, Any], severity: str, words: str) -> None:
    first, second = report_findings(checked(**says))
    assert first["severity"] == severity
    assert words in first["said"]
    assert second == {"severity": "warning", "said": "‘key’: 9 rows repeat.", "column": "key"}
    text = assert_sound(report_page(checked(**says))).text
    assert text.index(words.strip()) < text.index("Failed checks")


def test_the_page_shows_every_count_and_example() -> None:
    text = assert_sound(report_page(checked(profile=rows()))).text
    for words in (
        "1,234,567",
        "1,234,000",
        "rain: max",
        "a.csv, row 12,345: 9831.3",
        "9 rows repeat",
        "enough rows",
    ):
        assert words in text
    for words in (
        "2016-01-30 03:00",
        "2016-12-03 04:00",
        "308.04 days",
        "Missing values",
        "temp",
        "2026-01-02 03:04:05",
    ):
        assert words in text


def test_a_withheld_value_is_said_to_be_withheld_and_a_missing_one_missing() -> None:
    text = assert_sound(report_page(checked())).text
    assert text.count("(withheld by the source's policy)") == 1
    assert text.count("(missing)") == 1


def test_hidden_columns_are_named_and_nothing_more() -> None:
    frame = pl.DataFrame({"name": ["canary"] * 5 + [None]})
    found = profile(frame.lazy(), View([Column("name", "string")], hidden=frozenset({"name"})))
    page = report_page(checked(profile=found))
    assert "canary" not in page
    assert "The source's policy shows this column to nobody." in assert_sound(page).text


@pytest.mark.parametrize("text", [text for text in NASTY if text])
def test_text_from_data_stays_text(text: str) -> None:
    example = {"file": text, "row": 1, "value": text}
    check = {"column": text, "rule": text, "severity": "flag", "failed": 3, "examples": [example]}
    verdict = {"check": text, "column": text, "severity": "stop", "holds": False, "said": text}
    frame = pl.DataFrame({text: [text] * 3 + ["b"], "y": [1.0, 2.0, 3.0, 4.0]})
    found = profile(frame.lazy(), View([Column(text, "category"), Column("y", "float")]))
    says = {"source": text, "said": text, "state": "refused", "checks": [check], "table": [verdict]}
    assert_sound(report_page(checked(**says, profile=found)))


def test_a_thousand_categories_checks_files_and_columns_fit_on_a_page() -> None:
    names = [f"{n:04d}" + "x" * 500 for n in range(1000)]
    frame = pl.DataFrame({"a": names})
    found = profile(frame.lazy(), View([Column("a", "category")]))
    wide = [{**found["columns"][0], "name": name} for name in names]
    check = {"column": None, "severity": "flag", "failed": 3, "examples": []}
    checks = [{**check, "rule": name} for name in names]
    files = [{"file": name, "rows_in": 1, "valid": 1, "quarantined": 0, "filtered": 0} for name in names]
    page = report_page(checked(profile={**found, "columns": wide}, checks=checks, files=files))
    assert "and 800 more" in assert_sound(page).text
    assert len(page) < 3_000_000
    assert "x" * 150 not in page


def test_the_same_document_is_the_same_page() -> None:
    document = checked(profile=rows())
    assert report_page(document) == report_page(json.loads(json.dumps(document)))
