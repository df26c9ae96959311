"""What the intake stores of sources that change: what is new, once, or nothing at all with a reason."""

import sqlite3
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest

from mlops_ray import audit, config
from mlops_ray.cluster.intake import STORED, Intake
from mlops_ray.cluster.stages import Stages
from mlops_ray.data import ingest
from mlops_ray.errors import DataError, MlopsError, StorageError, safe
from mlops_ray.features import history
from mlops_ray.features.history import History, read
from mlops_ray.features.store import FeatureStore
from mlops_ray.storage import Storage

from ..conftest import unrecordable

PROJECT = """
project: small
sources:
  meter:
    {where}
    entity: site
    event_time: {{column: time, timezone: UTC}}
    columns: {{site: {{type: category}}, load: {{type: float, max: 9000}}}}
    {more}
features:
  past: {{source: meter, features: {{before: {{value_at: {{of: load, ago: 2d}}}}}}}}
target: {{source: meter, expr: load, horizon: 24h, task: regression}}
"""
HEADER = "time,site,load\n"


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "on_ray", lambda task, selector: task.parts(range(len(task.inputs))))


def intake(folder: Path, where: str = "path: rows/*.csv", more: str = "", text: str = PROJECT) -> Intake:
    (folder / "project.yaml").write_text(text.format(where=where, more=more))
    project = config.load(folder / "project.yaml", {})
    storage = Storage.open(project.storage)
    return Intake(FeatureStore(project, storage), storage, Stages(storage))


def in_force(made: Intake) -> list[tuple[Any, ...]]:
    snapshot = made.store.history("meter").snapshot()
    return sorted(read(snapshot).select(pl.col("event_time").dt.day(), "site", "load").rows())


def stored(made: Intake) -> int:
    return made.store.history("meter").snapshot().rows


def report(made: Intake) -> dict[str, Any]:
    return dict(orjson.loads((made.storage.root / "reports" / "validation-meter.json").read_bytes()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "1.csv").write_text(f"{HEADER}2020-01-01,a,1\n2020-01-02,a,2\n")
    made = intake(tmp_path)
    made.ingest("meter")
    assert in_force(made) == [(1, "a", 1.0), (2, "a", 2.0)]
    return tmp_path


def test_a_new_file_adds_its_rows_and_the_others_are_not_read_again(folder: Path) -> None:
    (folder / "rows" / "2.csv").write_text(f"{HEADER}2020-01-03,a,3\n")
    made = intake(folder)
    made.ingest("meter")
    assert report(made)["rows_in"] == 1
    assert in_force(made) == [(1, "a", 1.0), (2, "a", 2.0), (3, "a", 3.0)]
    first = made.store.history("meter").commit
    assert intake(folder).ingest("meter") == first


def test_a_changed_file_adds_the_rows_that_changed(folder: Path) -> None:
    (folder / "rows" / "1.csv").write_text(f"{HEADER}2020-01-01,a,1\n2020-01-02,a,5\n2020-01-03,b,7\n")
    made = intake(folder)
    made.ingest("meter")
    assert stored(made) == 4
    assert in_force(made) == [(1, "a", 1.0), (2, "a", 5.0), (3, "b", 7.0)]


def test_a_row_that_is_gone_stays_in_force_unless_the_files_are_the_whole_table(folder: Path) -> None:
    (folder / "rows" / "1.csv").write_text(f"{HEADER}2020-01-01,a,1\n")
    made = intake(folder)
    made.ingest("meter")
    assert in_force(made) == [(1, "a", 1.0), (2, "a", 2.0)]


def test_where_the_files_are_the_whole_table_a_row_or_file_that_is_gone_is_taken_back(folder: Path) -> None:
    (folder / "rows" / "2.csv").write_text(f"{HEADER}2020-01-03,c,3\n")
    made = intake(folder, more="ingestion: full")
    made.ingest("meter")
    assert in_force(made) == [(1, "a", 1.0), (2, "a", 2.0), (3, "c", 3.0)]
    (folder / "rows" / "1.csv").write_text(f"{HEADER}2020-01-01,a,1\n")
    (folder / "rows" / "2.csv").unlink()
    made.ingest("meter")
    assert in_force(made) == [(1, "a", 1.0)]
    before = made.store.history("meter").commit
    assert made.ingest("meter") == before
    (folder / "rows" / "2.csv").write_text(f"{HEADER}2020-01-03,c,3\n")
    made.ingest("meter")
    assert in_force(made) == [(1, "a", 1.0), (3, "c", 3.0)]


def test_a_query_reads_on_from_the_newest_value_of_its_cursor_and_makes_no_commit_of_nothing(
    tmp_path: Path,
) -> None:
    database = sqlite3.connect(tmp_path / "rows.db")
    database.execute("CREATE TABLE rows (time TEXT, site TEXT, load REAL)")

    def add(*values: tuple[str, str, float]) -> None:
        with database:
            database.executemany("INSERT INTO rows VALUES (?, ?, ?)", values)

    add(("2020-01-01", "a", 1.0), ("2020-01-02", "a", 2.0))
    query = f"connection: 'sqlite:///{tmp_path}/rows.db', query: SELECT * FROM rows, cursor: load"
    made = intake(tmp_path, where=f"sql: {{{query}}}")
    first = made.ingest("meter")
    assert made.ingest("meter") == first
    assert report(made)["rows_in"] == 1
    assert len(recorded(made, STORED)) == 1
    add(("2020-01-03", "b", 2.0), ("2020-01-04", "b", 4.0))
    made.ingest("meter")
    assert report(made)["rows_in"] == 3
    assert in_force(made) == [(1, "a", 1.0), (2, "a", 2.0), (3, "b", 2.0), (4, "b", 4.0)]
    assert stored(made) == 4


REFUSED: dict[str, tuple[str, str, str]] = {
    "too few rows": ("checks: {rows: {min: 3}}", "2020-01-05,a,1\n", "1 rows are valid; at least 3"),
    "too many missing": (
        "checks: {missing: {load: 10%}}",
        "2020-01-05,a,\n",
        "100.00% of 'load' are missing",
    ),
    "rows too old": ("checks: {freshness: 1d}", "2020-01-05,a,1\n", "it may be 1d old"),
    "most rows wrong": (
        "",
        "2020-01-05,a,x\n2020-01-06,a,y\n2020-01-07,a,1\n",
        "2 of 3 rows of 'meter' are in",
    ),
    "a rule that stops": (
        "rules: [{name: small, require: load < 5, on_fail: stop}]",
        "2020-01-05,a,7\n",
        "row 1, column 'load': small: '7.0'; this check stops the job",
    ),
    "a row that repeats another": (
        "unique: stop",
        "2020-01-05,a,7\n2020-01-05,a,8\n",
        "unique: stop ends the job",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_must_not_be_stored_is_not_and_the_report_says_why(what: str, tmp_path: Path) -> None:
    more, rows, says = REFUSED[what]
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "1.csv").write_text(HEADER + rows)
    made = intake(tmp_path, more=more)
    with pytest.raises(DataError) as told:
        made.ingest("meter")
    assert says in str(told.value)
    assert made.store.history("meter").commit is None
    assert report(made)["state"] == "refused"
    assert says in report(made)["said"]


BAD: dict[str, tuple[str, bytes, str]] = {
    "a truncated gzip": ("2.csv.gz", b"", "cannot be read"),
    "wrong encoding": ("2.csv", HEADER.encode() + b"2020-01-05,a,1\n" * 9 + b"2020-01-06,\xfc,1\n", "utf-8"),
    "a column missing": ("2.csv", b"time,site\n2020-01-05,a\n", "'load', which the file does not have"),
}


@pytest.mark.parametrize("what", BAD)
def test_one_bad_file_among_several_is_one_sentence_with_its_name_and_nothing_is_committed(
    what: str, folder: Path
) -> None:
    import gzip

    name, content, says = BAD[what]
    if name.endswith(".gz"):
        text = HEADER + "".join(f"2020-01-05,a,{number / 7}\n" for number in range(50_000))
        content = gzip.compress(text.encode())[:-5_000]
    (folder / "rows" / name).write_bytes(content)
    (folder / "rows" / "3.csv").write_text(f"{HEADER}2020-01-09,a,3\n")
    made = intake(folder, where="path: rows/*")
    before = made.store.history("meter").commit
    with pytest.raises(MlopsError) as told:
        made.ingest("meter")
    assert str(folder / "rows" / name) in str(told.value)
    assert says in str(told.value)
    assert "\n" not in str(told.value)
    assert made.store.history("meter").commit == before
    (folder / "rows" / name).unlink()
    made.ingest("meter")
    assert (9, "a", 3.0) in in_force(made)


def test_validate_stores_nothing_and_says_what_would_be_refused(folder: Path) -> None:
    (folder / "rows" / "2.csv").write_text(f"{HEADER}2020-01-03,a,99999\n")
    made = intake(folder)
    before = made.store.history("meter").commit
    found = made.validate("meter")
    assert (found["state"], found["rows_in"], found["quarantined"]) == ("checked", 3, 1)
    assert intake(folder, more="checks: {rows: {min: 9}}").validate("meter")["state"] == "refused"
    assert made.store.history("meter").commit == before
    page = (made.storage.root / "reports" / "validation-meter.html").read_text()
    assert "at least 9" in page
    assert not [path for path in (made.storage.root / "staging").iterdir() if path.is_dir()]


STREAM = """
project: stream
sources:
  meter:
    {where}
    event_time: {{order: true, every: 30m}}
    columns: {{price: {{type: float}}}}
    {more}
features:
  lags:
    source: meter
    features: {{before: {{lag: {{of: price, rows: 1}}}}, third: {{lag: {{of: price, rows: 3}}}}}}
target: {{source: meter, expr: price, horizon: 30m, task: regression}}
"""


def test_a_stream_that_knows_order_alone_has_lags_in_rows_and_grows_at_its_end(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    prices = [float(n * n % 17) for n in range(40)]
    for number, part in enumerate((prices[:25], prices[25:])):
        lines = "".join(f"{price}\n" for price in part)
        (tmp_path / "rows" / f"{number}.csv").write_text(f"price\n{lines}")
        made = intake(tmp_path, text=STREAM)
        made.ingest("meter")
    assert stored(made) == 40
    frame = made.store.build(made.store.snapshots()).frame
    expected = pl.DataFrame(
        {"before": [None, *prices[:-1]], "third": [None] * 3 + prices[:-3], "label": prices}
    )
    # The first rows have no third before them.
    assert frame.sort("time").select("before", "third", "label").equals(expected.slice(3))


def test_a_file_that_is_read_again_does_not_take_back_what_a_later_one_corrected(folder: Path) -> None:
    (folder / "rows" / "2.csv").write_text(f"{HEADER}2020-01-02,a,99\n")
    made = intake(folder)
    made.ingest("meter")
    assert in_force(made) == [(1, "a", 1.0), (2, "a", 99.0)]
    (folder / "rows" / "1.csv").write_text(f"{HEADER}2020-01-01,a,1\n2020-01-02,a,2\n2020-01-07,a,7\n")
    made.ingest("meter")
    assert in_force(made) == [(1, "a", 1.0), (2, "a", 99.0), (7, "a", 7.0)]
    assert stored(made) == 4


def test_where_a_second_row_is_rejected_the_last_stands_whatever_is_read_together(tmp_path: Path) -> None:
    for order in (["1", "2"], ["12"]):
        folder = tmp_path / order[0]
        (folder / "rows").mkdir(parents=True)
        for names in order:
            for name in names:
                (folder / "rows" / f"{name}.csv").write_text(f"{HEADER}2020-01-01,a,{name}\n")
            made = intake(folder, more="unique: reject")
            made.ingest("meter")
        assert in_force(made) == [(1, "a", 2.0)]


def test_a_row_that_takes_another_back_does_not_repeat_it(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "1.csv").write_text(
        "time,site,load,gone\n2020-01-01,a,1,\n2020-01-01,a,,true\n2020-01-02,a,2,\n"
    )
    made = intake(tmp_path, more="unique: reject\n    deleted: gone", text=PROJECT.replace(
        "load: {{type: float, max: 9000}}", "load: {{type: float, max: 9000}}, gone: {{type: bool}}"
    ))  # fmt: skip
    made.ingest("meter")
    assert in_force(made) == [(2, "a", 2.0)]
    assert report(made)["quarantined"] == 0


def cut_off(folder: Path, monkeypatch: pytest.MonkeyPatch, where: type, step: str) -> None:
    """Ingests until this step, in which it is killed."""

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(where, step, dies)
        with pytest.raises(KeyboardInterrupt):
            intake(folder).ingest("meter")


def test_a_run_that_was_cut_off_behind_its_commit_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "rows" / "2.csv").write_text(f"{HEADER}2020-01-03,a,3\n")

    cut_off(folder, monkeypatch, History, "maintain")
    (folder / ".mlops" / "reports" / "validation-meter.json").unlink()
    made = intake(folder)
    made.ingest("meter")
    assert in_force(made) == [(1, "a", 1.0), (2, "a", 2.0), (3, "a", 3.0)]
    assert [about["after"] for about in recorded(made, STORED)][1:] == [made.store.history("meter").commit]


def test_what_breaks_a_library_is_one_sentence_with_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlops_ray.data.validate.check", lambda *_: {}["no such"])
    (folder / "rows" / "2.csv").write_text(f"{HEADER}2020-01-03,a,3\n")
    with pytest.raises(DataError, match=r"2\.csv: cannot be read: KeyError"):
        intake(folder).ingest("meter")


def test_one_file_may_be_read_in_two_ways_and_a_changed_way_adds_what_it_changes(folder: Path) -> None:
    (folder / "rows" / "1.csv").write_text("time,site,load,more\n2020-01-01,a,1,5\n2020-01-02,a,2,2\n")
    entry = "{path: rows/1.csv, rename: {REN}}"
    both = f"path: [{entry.replace('REN', '')}, {entry.replace('REN', 'site: x, more: site')}]"
    made = intake(folder, where=both)
    made.ingest("meter")
    assert in_force(made) == [(1, "5", 1.0), (1, "a", 1.0), (2, "2", 2.0), (2, "a", 2.0)]
    first, count = made.store.history("meter").commit, stored(made)
    assert made.ingest("meter") == first
    other = both.replace("{}", "{load: old, more: load}")
    made = intake(folder, where=other)
    made.ingest("meter")
    assert (1, "a", 5.0) in in_force(made)
    # Of the first way one row changed; the second is read again behind it, and says nothing new.
    assert stored(made) == count + 1


# ------------------------------------------------------------ what is recorded


def recorded(made: Intake, what: str) -> list[dict[str, Any]]:
    """What the audit record has of it, all of it by who runs this."""
    found = [each for each in audit.entries(made.storage) if each["what"] == what]
    assert {each["by"] for each in found} <= {audit.who()}
    return [each["about"] for each in found]


def test_each_commit_is_recorded_with_the_one_before_it_and_its_rows(folder: Path) -> None:
    made = intake(folder)
    first = made.store.history("meter").newest
    assert first is not None
    (folder / "rows" / "2.csv").write_text(f"{HEADER}2020-01-03,a,3\n2020-01-04,a,99999\n")
    made.ingest("meter")
    second = made.store.history("meter").newest
    assert second is not None
    intake(folder).ingest("meter")
    assert recorded(made, STORED) == [
        {
            "source": "meter", "before": None, "after": first.id, "version": first.version,
            "rows_in": 2, "valid": 2, "quarantined": 0,
        },
        {
            "source": "meter", "before": first.id, "after": second.id, "version": second.version,
            "rows_in": 2, "valid": 1, "quarantined": 1,
        },
    ]  # fmt: skip


def test_a_commit_that_a_killed_run_did_not_tell_is_told_once_by_the_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "rows" / "2.csv").write_text(f"{HEADER}2020-01-03,a,3\n")

    cut_off(folder, monkeypatch, Intake, "_tell_stored")
    made = intake(folder)
    assert len(recorded(made, STORED)) == 1
    for _ in range(2):
        made.ingest("meter")
        (made.storage.root / "pipeline.json").unlink()
    assert [about["after"] for about in recorded(made, STORED)][1:] == [made.store.history("meter").commit]


def test_a_commit_of_which_delta_has_dropped_the_log_is_told_no_second_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = intake(folder)
    made.ingest("meter")
    told = recorded(made, STORED)
    monkeypatch.setattr(history, "_id", lambda *_: "")
    made.ingest("meter")
    (made.storage.root / "pipeline.json").unlink()
    made.ingest("meter")
    assert recorded(made, STORED) == told


def test_a_look_at_rows_is_recorded_with_how_many_were_shown_and_none_of_them(folder: Path) -> None:
    (folder / "rows" / "2.csv").write_text(f"{HEADER}2020-01-03,a,99999\n2020-01-04,a,88888\n")
    made = intake(folder, more="policy: {curated: {rows: 1}}")
    made.explore("meter")
    made.validate("meter")
    proposed = made.mine("meter")
    assert recorded(made, "rows were shown") == [
        {"source": "meter", "in": "a first look", "rows": 1},
        {"source": "meter", "in": "a report", "rows": 1},
        {"source": "meter", "in": "proposed rules", "rows": len(proposed)},
    ]
    assert not any("99999" in str(each) for each in audit.entries(made.storage))


def test_what_cannot_be_recorded_is_neither_stored_nor_shown(folder: Path) -> None:
    (folder / "rows" / "2.csv").write_text(f"{HEADER}2020-01-03,a,3\n")
    made = intake(folder)
    before = made.store.history("meter").commit
    reports = {path: path.read_bytes() for path in made.storage.path("reports", "x").parent.iterdir()}
    unrecordable(made.storage)
    with pytest.raises(StorageError, match="audit record cannot be written"):
        made.ingest("meter")
    (folder / "rows" / "2.csv").write_text(f"{HEADER}2020-01-03,a,99999\n")
    for act in (made.ingest, made.validate, made.explore, made.mine):
        with pytest.raises(StorageError, match="audit record cannot be written"):
            act("meter")
    assert made.store.history("meter").commit == before
    assert reports == {path: path.read_bytes() for path in made.storage.path("reports", "x").parent.iterdir()}


@pytest.mark.parametrize("stops", [True, False])
def test_the_error_log_leaves_out_the_value_that_a_refusal_shows(stops: bool, folder: Path) -> None:
    rule = "rules: [{name: small, require: load < 5, on_fail: " + ("stop}]" if stops else "reject}]")
    (folder / "rows" / "2.csv").write_text(f"{HEADER}2020-01-03,a,7.25\n2020-01-04,a,8\n2020-01-05,a,8\n")
    with pytest.raises(DataError, match=r"'7\.25'") as told:
        intake(folder, more=rule).ingest("meter")
    assert "small" in safe(told.value)
    assert "7.25" not in safe(told.value)


def test_what_a_library_quotes_of_the_data_is_told_and_not_logged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise ValueError("not 'CANARY'")

    (folder / "rows" / "2.csv").write_text(f"{HEADER}2020-01-03,a,3\n")
    monkeypatch.setattr(ingest, "check_file", fails)
    with pytest.raises(DataError, match=r"2\.csv: cannot be read: ValueError: not 'CANARY'") as told:
        intake(folder).ingest("meter")
    assert safe(told.value).endswith("2.csv: cannot be read: ValueError")
