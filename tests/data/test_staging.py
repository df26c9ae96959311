"""What is read of a source lies in files while somebody looks at it: the same on Ray and here, then gone."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mlops_ray.config import Source
from mlops_ray.data import blocks, ingest, inputs
from mlops_ray.data.ingest import Staged, Task
from mlops_ray.errors import DataError, safe
from mlops_ray.features.commits import buckets_of

from .test_ingest import DIRTY, failed, source


def here(task: Task, selector: dict[str, str]) -> Iterator[dict[str, Any]]:
    """What Ray Data does, in this process."""
    return task.parts(range(len(task.inputs)))


@contextmanager
def staged(source: Source, folder: Path, monkeypatch: pytest.MonkeyPatch | None = None) -> Iterator[Staged]:
    if monkeypatch is not None:
        monkeypatch.setattr(ingest, "on_ray", here)
    with ingest.staging(source, "s", inputs.find(source, "s"), folder) as found:
        ingest.read(found, partial(buckets_of, keys=source.entity))
        yield found


def rows_of(found: Staged) -> pl.DataFrame:
    return pl.concat(list(found.chunks())).sort("site", "event_time", "load")


@pytest.fixture
def dirty(tmp_path: Path) -> Source:
    (tmp_path / "a.csv").write_text(DIRTY)
    (tmp_path / "b.csv").write_text(DIRTY.replace("2016", "2017"))
    return source(tmp_path / "*.csv")


def test_ray_data_gives_the_same_rows_and_errors_as_one_process(
    ray_cluster: object, dirty: Source, tmp_path: Path
) -> None:
    apart = [v for file in inputs.find(dirty, "s") for v in blocks.check_file(file, dirty)]
    expected = pl.concat([v.valid for v in apart if v.valid.width]).sort("site", "event_time", "load")
    with staged(dirty, tmp_path) as found:
        assert rows_of(found).equals(expected)
        assert found.report.quarantined == sum(v.rejected for v in apart)
        assert [counts.rows_in for counts in found.report.files.values()] == [10, 10]
        found.write_quarantine(tmp_path / "q.parquet")
    rejected = pl.read_parquet(tmp_path / "q.parquet")
    assert rejected.sort("_file", "_row", "rule").equals(
        pl.concat([v.quarantine for v in apart]).sort("_file", "_row", "rule")
    )
    (tmp_path / "c.csv").write_text("time,site,load\n")
    with pytest.raises(DataError) as error, staged(dirty, tmp_path):
        pass
    assert "c.csv" in str(error.value)
    assert "is the delimiter right?" in str(error.value)
    assert "\n" not in str(error.value)
    assert left(tmp_path) == []


def left(folder: Path) -> list[Path]:
    """What is staged still."""
    return [path for path in (folder / "staging").iterdir() if path.is_dir()]


@pytest.mark.parametrize("part_bytes", [1, 300, 64 << 20])
@pytest.mark.parametrize("whole_rows", [0, 1_000_000])
def test_sizes_of_parts_and_pieces_change_nothing(
    part_bytes: int, whole_rows: int, dirty: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with staged(dirty, tmp_path, monkeypatch) as found:
        expected, report = rows_of(found), found.report.to_json()
    monkeypatch.setattr(ingest, "PART_BYTES", part_bytes)
    monkeypatch.setattr(ingest, "WHOLE_ROWS", whole_rows)
    with staged(dirty, tmp_path) as found:
        assert rows_of(found).equals(expected)
        assert found.report.to_json() == report
        if not whole_rows:
            keys = [set(rows["site"]) for rows in found.chunks()]
            assert len(keys) == 2
            assert not keys[0] & keys[1]


def repeated(folder: Path, **says: Any) -> Source:
    lines = ["time;site;load", "2016-01-01;a;1", "2016-01-01;b;1.1", "2016-01-01;a;1.2", "2016-01-02;a;1.3"]
    (folder / "a.csv").write_text("\n".join(lines))
    (folder / "b.csv").write_text("time;site;load\n2016-01-01;a;1.4\n2016-01-02;b;1\n")
    return source(folder / "*.csv", rules=[], **says)


@pytest.mark.parametrize("whole_rows", [0, 1_000_000])
def test_a_row_of_an_identity_that_came_before_is_flagged_rejected_or_stops(
    whole_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "WHOLE_ROWS", whole_rows)
    with staged(repeated(tmp_path), tmp_path, monkeypatch) as found:
        assert failed(found.report, "flag") == {"same_identity": 2}
        assert (found.report.valid, rows_of(found).height) == (6, 6)
        (check,) = found.table
        assert (check["check"], check["holds"]) == ("unique", False)
    with staged(repeated(tmp_path, unique="reject"), tmp_path) as found:
        assert (found.report.rows_in, found.report.valid, found.report.quarantined) == (6, 4, 2)
        assert [counts.quarantined for counts in found.report.files.values()] == [2, 0]
        assert rows_of(found)["load"].to_list() == [1.4, 1.3, 1.1, 1.0]
        found.write_quarantine(tmp_path / "q.parquet")
        places = pl.read_parquet(tmp_path / "q.parquet").select(pl.col("_file").str.slice(-5), "_row", "rule")
        assert sorted(places.rows()) == [("a.csv", 1, "same_identity"), ("a.csv", 3, "same_identity")]
    stops = pytest.raises(DataError, match=r"a.csv, row 1: same_identity: .*unique: stop ends the job")
    with stops as told, staged(repeated(tmp_path, unique="stop"), tmp_path):
        pass
    assert "(and 1 more such rows)" in str(told.value)
    assert safe(told.value).endswith("unique: stop ends the job"), "the log has no value of a row"


@pytest.mark.parametrize(("gone", "repeats"), [("no no", 1), ("no yes", 0), ("yes no", 0), ("no yes no", 1)])
def test_of_a_table_that_is_a_single_row_a_deletion_repeats_nothing(
    gone: str, repeats: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"{number},{is_gone}" for number, is_gone in enumerate(gone.split())]
    (tmp_path / "a.csv").write_text("\n".join(["load,gone", *lines]))
    columns = {"load": {"type": "float"}, "gone": {"type": "bool"}}
    single = {"path": str(tmp_path / "a.csv"), "time": "none", "columns": columns, "deleted": "gone"}
    with staged(Source.model_validate(single), tmp_path, monkeypatch) as found:
        assert failed(found.report, "flag").get("same_identity", 0) == repeats


def test_what_must_hold_of_the_whole_table_is_found_with_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.csv").write_text(
        "time;site;load\n2016-01-01;a;1\n2016-01-02;a;\n2016-01-03;a;\n2016-01-04;a;1\n"
    )
    checks = {"rows": {"min": 3, "max": 4}, "freshness": "1d", "missing": {"load": "50%", "site": 0}}
    with staged(source(tmp_path / "x.csv", checks=checks), tmp_path, monkeypatch) as found:
        holds = {(check["check"], check["column"]): check["holds"] for check in found.table}
    assert holds == {
        ("unique", None): True,
        ("rows", None): True,
        ("freshness", None): False,
        ("missing", "load"): True,
        ("missing", "site"): True,
    }
    checks = {"rows": {"min": 5}, "missing": {"load": "49%"}}
    with staged(source(tmp_path / "x.csv", checks=checks), tmp_path) as found:
        said = {check["check"]: check["said"] for check in found.table if not check["holds"]}
    assert said == {
        "rows": "4 rows are valid; at least 5 are asked for",
        "missing": "50.00% of 'load' are missing; 49.00% may be",
    }


def test_where_order_is_time_rows_follow_one_another_across_files_and_rejected_ones_leave_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.csv").write_text("price\n1\nx\n3\n4,5\n")
    (tmp_path / "b.csv").write_text("price\n5\n6\n")
    stream = Source.model_validate(
        {
            "path": str(tmp_path / "*.csv"),
            "event_time": {"order": True, "every": "30m"},
            "columns": {"price": {"type": "float"}},
        }
    )
    with staged(stream, tmp_path, monkeypatch) as found:
        rows = pl.concat(list(found.chunks()))
    places = (rows["event_time"].to_physical() // 1_800_000_000).to_list()
    assert list(zip(places, rows["price"].to_list(), strict=True)) == [(0, 1.0), (2, 3.0), (4, 5.0), (5, 6.0)]


def test_files_of_one_table_may_differ_in_format_names_words_times_and_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.csv").write_text("time;site;load\n2016-01-01 00:00;a;1,5\n", encoding="latin-1")
    (tmp_path / "b.jsonl").write_text('{"at": 1451610000, "place": "b", "kilo": 2500}\n')
    base = source(tmp_path / "a.csv").model_dump(mode="json", exclude_unset=True)
    base |= {
        "path": [
            {"path": str(tmp_path / "a.csv"), "format": {"csv": {"delimiter": ";", "decimal": ","}}},
            {
                "path": str(tmp_path / "b.jsonl"),
                "format": "jsonl",
                "rename": {"place": "site", "at": "time"},
                "event_time": {"column": "time", "unit": "s"},
                "columns": {"kilo": {"type": "int"}},
                "derive": {"load": "kilo / 1000.0 - 1"},
            },
        ]
    }
    with staged(Source.model_validate(base), tmp_path, monkeypatch) as found:
        rows = rows_of(found)
    assert rows.columns == ["event_time", "site", "load"]
    assert rows["load"].to_list() == [1.5, 1.5]
    assert rows["event_time"].dt.strftime("%d %H").to_list() == ["01 00", "01 01"]


KILLED = """
import sys, time
from pathlib import Path
from mlops_ray.config import Source
from mlops_ray.data import ingest
source = Source(path="x.csv", columns={}, time="none")
with ingest.staging(source, "s", [], Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_staged_is_taken_away_by_the_next_and_what_a_living_one_did_is_not(
    tmp_path: Path,
) -> None:
    def begin() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        return process

    dead = begin()
    os.kill(dead.pid, signal.SIGKILL)
    dead.communicate()
    assert len(left(tmp_path)) == 1
    living = begin()
    try:
        assert len(left(tmp_path)) == 1
        with ingest.staging(Source(path="x.csv", columns={}, time="none"), "s", [], tmp_path):
            assert len(left(tmp_path)) == 2
    finally:
        living.communicate("")
    assert left(tmp_path) == []


def test_a_disk_that_is_full_is_said_with_the_file_and_nothing_is_left(
    dirty: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    with pytest.raises(DataError, match="No space left on device"), staged(dirty, tmp_path, monkeypatch):
        pass
    assert left(tmp_path) == []
