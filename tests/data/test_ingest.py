"""From a file to checked rows: rows in = valid + quarantine, and a clear sentence where it cannot be."""

import gzip
import io
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mlops_ray.config import Project, Source
from mlops_ray.data import blocks, delimited, inputs
from mlops_ray.data.validate import Report, Verdict
from mlops_ray.errors import DataError


def source(path: Path, **changes: Any) -> Source:
    return Source.model_validate(
        {
            "path": str(path),
            "format": {"csv": {"delimiter": ";"}},
            "entity": "site",
            "event_time": {"column": "time", "timezone": "UTC"},
            "columns": {
                "site": {"type": "category", "required": True},
                "load": {"type": "float", "min": 0, "max": 2},
            },
            "rules": [{"name": "steady", "require": "load < 1.5", "on_fail": "flag"}],
            **changes,
        }
    )


def verdicts(source: Source) -> list[Verdict]:
    return [v for file in inputs.find(source, "s") for v in blocks.check_file(file, source)]


def report(source: Source) -> Report:
    result = Report()
    for verdict in verdicts(source):
        result.add(verdict)
    return result


def failed(report: Report, severity: str) -> dict[str, int]:
    return {check.rule: check.failed for check in report.checks.values() if check.severity == severity}


DIRTY = """time;site;load
2016-01-01 00:00;a;0.5
2016-01-01 01:00;a;x
2016-01-01 02:00;;0.5
2016-01-01 03:00;a;9
2016-13-01 03:00;a;1
2016-01-01 04:00;a;1.7
2016-01-01 05:00;a
2016-01-01 06:00;b;
2016-01-01 07:00;b;y
2016-01-01 08:00;b;NaN
"""


def test_every_row_is_valid_or_in_quarantine_with_rule_and_value(tmp_path: Path) -> None:
    (tmp_path / "dirty.csv").write_text(DIRTY)
    result = report(source(tmp_path / "dirty.csv"))
    assert (result.rows_in, result.valid, result.quarantined) == (10, 4, 6)
    assert failed(result, "flag") == {"steady": 2}
    found = pl.concat([v.quarantine for v in verdicts(source(tmp_path / "dirty.csv"))])
    assert set(found.select("_row", "column", "rule", "value").rows()) == {
        (2, "load", "type", "x"),
        (3, "site", "required", ""),
        (4, "load", "max", "9.0"),
        (5, "time", "not_a_time", "2016-13-01 03:00"),
        (7, None, "number_of_columns", "2 columns, not 3"),
        (9, "load", "type", "y"),
    }


def test_a_wide_file_becomes_rows_and_the_quarantine_names_the_file_s_column(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv.gz"
    path.write_bytes(gzip.compress(b"time;a;b\n2016-01-01;1;x\n2016-01-02;0,5;2\n"))
    wide = source(
        path,
        format={"csv": {"delimiter": ";", "decimal": ","}},
        unpivot={"keep": "time", "names": "site", "values": "load"},
    )
    (verdict,) = verdicts(wide)
    assert verdict.valid.select("site", "load").rows() == [("a", 1.0), ("a", 0.5), ("b", 2.0)]
    assert verdict.quarantine.select("_row", "column", "rule", "value").rows() == [(1, "b", "type", "x")]


def zipped(*names: str, text: str = DIRTY) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, text)
    return packed.getvalue()


def test_a_zip_file_that_holds_one_file_is_read_like_that_file(tmp_path: Path) -> None:
    (tmp_path / "dirty.csv").write_text(DIRTY)
    (tmp_path / "dirty.csv.zip").write_bytes(zipped("folder/", "folder/dirty.csv"))
    apart = [report(source(tmp_path / name)) for name in ("dirty.csv", "dirty.csv.zip")]
    assert apart[0].files == apart[1].files
    counts = [{key: check.failed for key, check in one.checks.items()} for one in apart]
    assert counts[0] == counts[1]


def test_files_without_header_other_encodings_and_globs_are_read(tmp_path: Path) -> None:
    for index, site in enumerate(("Köln", "Zürich")):
        (tmp_path / f"{index}.csv").write_bytes(f"2016-01-01;{site};1\n".encode("latin-1"))
    names = {"csv": {"delimiter": ";", "encoding": "latin-1", "names": ["time", "site", "load"]}}
    rows = pl.concat([v.valid for v in verdicts(source(tmp_path / "*.csv", format=names))])
    assert rows["site"].to_list() == ["Köln", "Zürich"]


def test_a_filter_leaves_valid_rows_out_and_hides_no_broken_one(tmp_path: Path) -> None:
    (tmp_path / "dirty.csv").write_text(DIRTY)
    result = report(source(tmp_path / "dirty.csv", where="load > 1"))
    assert (result.rows_in, result.valid, result.quarantined, result.filtered) == (10, 1, 6, 3)


def test_a_datetime_column_is_read_with_its_offset(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(
        "time;site;load;seen\n2016-01-01;a;1;2016-01-01T01:00+01:00\n2016-01-01;a;1;x\n"
    )
    columns = {
        "site": {"type": "category"},
        "load": {"type": "float"},
        "seen": {"type": "datetime"},
    }
    (verdict,) = verdicts(source(tmp_path / "x.csv", columns=columns))
    assert verdict.valid["seen"].to_list() == [datetime(2016, 1, 1, tzinfo=UTC)]
    assert verdict.quarantine.select("column", "rule", "value").rows() == [("seen", "type", "x")]


def _flipped(packed: bytes) -> bytes:
    at = len(packed) // 2
    return packed[:at] + bytes(byte ^ 0xFF for byte in packed[at : at + 9]) + packed[at + 9 :]


def _encrypted(packed: bytes) -> bytes:
    """A zip file whose only member says that it is encrypted."""
    at = packed.index(b"PK\x01\x02") + 8
    return packed[:at] + b"\x01" + packed[at + 1 :]


#: A line of 100 MB.
ENDLESS = gzip.compress(b"x" * 1_000_000) * 100

BROKEN = {
    "wrong delimiter": ("x.csv", lambda p: p.write_text("time,site,load\n"), "is the delimiter right?"),
    "missing column": (
        "x.csv",
        lambda p: p.write_text("time;site\n2016-01-01;a\n"),
        "columns names the column 'load', which the file does not have",
    ),
    "wrong encoding": (
        "x.csv",
        lambda p: p.write_bytes(b"time;site;load\n2016-01-01;\xfc;1\n"),
        "not utf-8 text",
    ),
    "two in a zip": (
        "x.csv.zip",
        lambda p: p.write_bytes(zipped("a.csv", "b.csv")),
        "holds 2 files; a zip file must hold exactly one",
    ),
    "empty zip": ("x.csv.zip", lambda p: p.write_bytes(zipped()), "holds 0 files"),
    "no zip": (
        "x.csv.zip",
        lambda p: p.write_text("time;site;load\n"),
        "cannot be read: File is not a zip file",
    ),
    "damaged zip": (
        "x.csv.zip",
        lambda p: p.write_bytes(_flipped(zipped("a.csv", text=DIRTY * 9999))),
        "cannot be read after row",
    ),
    "encrypted zip": ("x.csv.zip", lambda p: p.write_bytes(_encrypted(zipped("a.csv"))), "is encrypted"),
    "not compressed": ("x.csv.gz", lambda p: p.write_text("time;site;load\n"), "cannot be read"),
    "twice in header": ("x.csv", lambda p: p.write_text("time;site;site\n"), "a name more than once: 'site'"),
    "endless header": ("x.csv.gz", lambda p: p.write_bytes(ENDLESS), "the header cannot be read: field"),
    "endless first line": (
        "x.csv",
        lambda p: p.write_text("time;site;load;" + "x;" * 999_999),
        "the header does not end within",
    ),
    "wide field in the header": (
        "x.csv",
        lambda p: p.write_text(f"time;site;load;{'x' * 200_000}\n"),
        "the header cannot be read: field larger",
    ),
    "no such file": ("x.csv", lambda p: None, "no such file"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_file_that_cannot_be_read_is_one_sentence_with_its_name(what: str, tmp_path: Path) -> None:
    name, write, says = BROKEN[what]
    write(tmp_path / name)
    with pytest.raises(DataError) as error:
        verdicts(source(tmp_path / name))
    assert says in str(error.value)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown encoding": ({"format": {"csv": {"encoding": "klingon"}}}, "no text is encoded as 'klingon'"),
    "encoding of no text": ({"format": {"csv": {"encoding": "rot13"}}}, "no text is encoded as 'rot13'"),
    "encoding without header": (
        {"format": {"csv": {"encoding": "klingon", "names": ["time", "site", "load"]}}},
        "no text is encoded as 'klingon'",
    ),
    "renamed to another": (
        {"rename": {"more": "load"}},
        "with rename, the header has a name more than once: 'load'",
    ),
    "unpivoted to another": (
        {"unpivot": {"keep": "time", "names": "more", "values": "load"}},
        "unpivot makes the column 'more', which the file has",
    ),
    "names twice": (
        {"format": {"csv": {"delimiter": ";", "names": ["time", "site", "load", "load"]}}},
        "has a name more than once: 'load'",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_a_source_says_wrongly_of_a_file_is_one_sentence_with_its_name(
    what: str, tmp_path: Path
) -> None:
    changes, says = WRONG[what]
    (tmp_path / "x.csv").write_text("time;site;load;more\n2016-01-01;a;1;2\n")
    with pytest.raises(DataError) as error:
        verdicts(source(tmp_path / "x.csv", **changes))
    assert str(error.value).startswith(str(tmp_path / "x.csv"))
    assert says in str(error.value)


@pytest.mark.parametrize("name", ['"note\nmore"', '"a\r\n\r\nb;c"', '"x\x00y"', "y\x00"])
def test_a_header_with_line_breaks_in_it_is_one_row_and_no_data(name: str, tmp_path: Path) -> None:
    rows = "2016-01-01;a;1;n\n2016-01-02;b\n2016-01-03;c;x;n\n"
    for before, skipped in (("", 0), ("written by hand\n\n", 2)):
        (tmp_path / "x.csv").write_text(f"{before}time;site;load;{name}\n{rows}", newline="")
        format = {"csv": {"delimiter": ";", "skip_rows": skipped}}
        found = verdicts(source(tmp_path / "x.csv", format=format))
        assert [v.valid["site"].to_list() for v in found if v.valid.width] == [["a"]]
        places = pl.concat([v.quarantine for v in found]).select("_row", "rule").sort("_row").rows()
        assert places == [(2, "number_of_columns"), (3, "type")]


@pytest.mark.parametrize("block_bytes", [64, 200, 8 << 20])
def test_rows_of_a_wrong_width_come_with_their_block_and_the_rest_keep_their_numbers(
    block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(blocks, "REFUSED_AT_A_TIME", 4)
    kinds = [7, *[n % 5 for n in range(60)], *[1] * 50, 2, *[1] * 9]
    lines = [
        "2016-01-01;a" if kind == 1 else f"2016-01-01;a;{number}" for number, kind in enumerate(kinds, 1)
    ]
    (tmp_path / "x.csv").write_text("time;site;load\n" + "\n".join(lines) + "\n")
    columns = {"site": {"type": "category"}, "load": {"type": "float", "max": 0}}
    found = verdicts(source(tmp_path / "x.csv", columns=columns, rules=[]))
    quarantine = pl.concat([v.quarantine for v in found])
    malformed = quarantine.filter(pl.col("rule") == "number_of_columns")
    assert malformed["_row"].to_list() == [number for number, kind in enumerate(kinds, 1) if kind == 1]
    assert malformed["value"].unique().to_list() == ["2 columns, not 3"]
    others = quarantine.filter(pl.col("rule") == "max")
    assert others["_row"].cast(pl.Float64).cast(pl.String).to_list() == others["value"].to_list()
    assert quarantine.height == len(kinds)
    assert max(v.rows_in for v in found if not v.valid.width) <= 4


def test_a_file_of_nothing_but_rows_of_a_wrong_width_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.csv").write_text("time;site;load\n2016-01-01;a;1\n" + "a\n" * 50)
    assert report(source(tmp_path / "x.csv")).quarantined == 50
    monkeypatch.setattr(delimited, "WRONG_ROWS", 50)
    with pytest.raises(
        DataError, match=r"row 2: 50 rows on end do not have 3 columns; is the delimiter right"
    ):
        verdicts(source(tmp_path / "x.csv"))


def test_columns_that_nobody_declared_may_be_called_as_they_like(tmp_path: Path) -> None:
    ours = "_file;_row;event_time;time_problem;time_written"
    (tmp_path / "x.csv").write_text(f"time;site;load;{ours}\n2016-01-01;a;1;F;9;x;y;z\n\n;a;1;F;9;x;y;z\n")
    (found,) = verdicts(source(tmp_path / "x.csv"))
    assert found.valid.rows() == [(datetime(2016, 1, 1, tzinfo=UTC), "a", 1.0)]
    assert found.quarantine.rows() == [(str(tmp_path / "x.csv"), 2, "time", "required", "")]
    (tmp_path / "x.csv").write_text(f"time;a;{ours}\n2016-01-01;1;F;9;x;y;z\n")
    (found,) = verdicts(
        source(tmp_path / "x.csv", unpivot={"keep": "time", "names": "site", "values": "load"})
    )
    assert found.valid.rows() == [(datetime(2016, 1, 1, tzinfo=UTC), "a", 1.0)]


def test_an_event_time_that_is_called_so_is_shown_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("event_time;site;load\nx;a;1\n2016-10-30 02:30;a;1\n")
    zone = {"column": "event_time", "timezone": "Europe/Berlin", "ambiguous": "infer"}
    (found,) = verdicts(source(tmp_path / "x.csv", event_time=zone))
    assert found.quarantine.select("column", "rule", "value").rows() == [("event_time", "not_a_time", "x")]
    assert found.valid["event_time"].to_list() == [datetime(2016, 10, 30, 0, 30, tzinfo=UTC)]


def test_a_decimal_comma_is_read_in_a_renamed_column(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("time;site;value\n2016-01-01;a;0,5\n")
    format = {"csv": {"delimiter": ";", "decimal": ","}}
    (found,) = verdicts(source(tmp_path / "x.csv", format=format, rename={"value": "load"}))
    assert found.valid["load"].to_list() == [0.5]


def test_an_ambiguous_hour_stops_the_job_and_names_the_row(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("time;site;load\n2016-01-01 00:00;a;1\n2016-10-30 02:30;a;1\n")
    local = source(tmp_path / "x.csv", event_time={"column": "time", "timezone": "Europe/Berlin"})
    with pytest.raises(DataError) as error:
        verdicts(local)
    assert "x.csv, row 2, column 'time': ambiguous_time: '2016-10-30 02:30'" in str(error.value)
    assert "event_time.ambiguous: infer" in str(error.value)


def test_the_example_has_8784_hours_a_site_and_none_twice(example: Project) -> None:
    rows = pl.concat([v.valid for v in verdicts(example.sources["meter"])])
    assert rows.height == 35_136 * 21
    assert rows.select("site", "event_time").n_unique() == rows.height
    quarters = rows.group_by("site").agg(pl.col("event_time").sort().diff().drop_nulls().unique())
    assert quarters["event_time"].list.len().to_list() == [1] * 21
