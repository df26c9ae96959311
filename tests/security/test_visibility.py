"""A machine-only column leaves as a value nowhere; people see curated rows and masks alone."""

import traceback
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import yaml

from mlops_ray import config
from mlops_ray.cluster import front, service
from mlops_ray.cluster.intake import Intake
from mlops_ray.cluster.pipeline import Pipeline
from mlops_ray.cluster.stages import Silent, Stages
from mlops_ray.config import Policy, Project
from mlops_ray.data import blocks, ingest
from mlops_ray.errors import DataError, InvalidRowError, MlopsError, PolicyError
from mlops_ray.features import dataset
from mlops_ray.features.definitions import Computed, compile_features
from mlops_ray.features.on_request import compute
from mlops_ray.features.store import FeatureStore
from mlops_ray.policy import curated, machine_only, require_here
from mlops_ray.serving.asgi import shown
from mlops_ray.serving.columns import Reader
from mlops_ray.storage import Storage
from tests.serving import packages

from .canaries import found_in

PROJECT = """
project: people
sources:
  people:
    path: people.csv
    entity: person
    event_time: {column: time, timezone: UTC}
    columns:
      person: {type: category}
      name: {type: string, pattern: "[A-Za-z0-9 ]+"}
      salary: {type: float, max: 90000000}
      zip: {type: string}
      group: {type: category}
      amount: {type: float, max: 1000}
    rules:
      - {name: short, require: "LENGTH(name) < 40"}
      - {name: rich, require: "salary < 80000000 OR amount < 5", on_fail: flag}
    policy:
      machine_only: [name, salary]
      curated: {rows: 5, where: "amount > 20", mask: {zip: "LEFT(zip, 2)", person: hash}}
features:
  past: {source: people, features: {before: {value_at: {of: amount, ago: 2d}}}}
target: {source: people, expr: amount, horizon: 24h, task: regression}
training:
  families: [ridge]
  search: {trials: 1}
  minimum_rows: 1
  validation: {test: {share: 20%}, folds: 2}
  gate: {better_than: []}
"""
#: Of the columns that nobody may see, in every form in which a value may be written.
CANARIES = ["CANARYname", "87654321", "8.7654321", "CANARYbad", "CANARYzip", "CANARYwide"]


def rows() -> str:
    lines = ["time,person,name,salary,zip,group,amount"]
    for day in range(1, 29):
        for number, person in enumerate(("ann", "bob", "cid", "dan")):
            name = f"CANARYname {person}{day}" + "!" * (day == 3) + " x" * 40 * (day == 4)
            salary = {5: "CANARYbad", 6: "987654321.25"}.get(day, "87654321.25")
            amount = 2000 if day == 7 else day + number
            lines.append(
                f"2020-01-{day:02d},{person},{name},{salary},99CANARYzip{day},g{number % 2},{amount}"
            )
    lines.append("2020-02-01,ann,CANARYname,87654321.25,99CANARYzip,g0,1,CANARYwide")
    lines.append("2020-01-01,ann,CANARYname again,87654321.25,99CANARYzip1,g0,1")
    return "\n".join(lines) + "\n"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "people.csv").write_text(rows())
    (tmp_path / "project.yaml").write_text(PROJECT)
    return config.load(tmp_path / "project.yaml", {})


def test_a_report_shows_values_of_curated_rows_only_and_so_many_at_most(project: Project) -> None:
    source = project.sources["people"]
    quarantine = _quarantine(project)
    shown = quarantine.filter(pl.col("value").is_not_null())
    assert set(shown["rule"]) <= {"max", "number_of_columns"}
    assert shown.height <= source.policy.curated.rows  # type: ignore[union-attr]
    assert shown.filter(pl.col("rule") == "max")["value"].to_list() == ["2000.0"] * 4
    assert quarantine.filter(pl.col("column").is_in(["name", "salary"]))["value"].null_count() == 16


def _quarantine(project: Project) -> pl.DataFrame:
    storage = Storage.open(project.storage)
    source = project.sources["people"]
    with ingest.staging(source, "people", source.inputs, storage.root) as staged:
        task = ingest.Task(source, tuple(staged.inputs), str(staged.folder), _one_bucket, {})
        for part in task.parts([0]):
            staged.failures += part["failed"]
        staged.write_quarantine(storage.path("q.parquet"))
    return pl.read_parquet(storage.path("q.parquet"))


def _one_bucket(rows: pl.DataFrame) -> pl.Series:
    return pl.repeat(0, rows.height, dtype=pl.Int32, eager=True)


BROKEN: dict[str, tuple[str, str]] = {
    "a function that quotes what it was given": (
        "derive: {amount: {path: quoting.amount, inputs: [name]}}",
        "it cannot be derived",
    ),
    "a rule that stops": ("rules: [{name: short, require: LENGTH(name) < 5, on_fail: stop}]", "short"),
    "times that are numbers": ("event_time: {column: salary}", "the stamps are numbers"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_an_error_says_what_and_where_and_quotes_nothing_that_nobody_may_see(
    what: str, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "quoting.py").write_text("def amount(name):\n    raise ValueError(name.to_list())\n")
    monkeypatch.syspath_prepend(tmp_path)
    change, says = BROKEN[what]
    key = change.partition(":")[0]
    document: dict[str, Any] = project.sources["people"].model_dump(mode="json", exclude_unset=True)
    document[key] = yaml.safe_load(change)[key]
    (tmp_path / "people.csv").write_text(
        rows().replace("CANARYbad", "1087654321").replace("87654321.25", "1087654321")
    )
    source = config.Source.model_validate(document)
    with pytest.raises(DataError) as told:
        for file in source.inputs:
            list(blocks.check_file(file, source))
    assert says in str(told.value)
    assert "people.csv" in str(told.value)
    assert not [canary for canary in CANARIES if canary in str(told.value)]


def test_equal_values_have_equal_hashes_within_one_look_and_tell_nothing_else() -> None:
    policy = Policy.model_validate({"curated": {"rows": 10, "mask": {"k": "hash", "n": "hide"}}})
    rows = pl.DataFrame({"k": ["a", "b", "a", None], "n": [1, 2, 3, 4]})
    first, second = curated(rows, policy), curated(rows, policy)
    assert first["k"][0] == first["k"][2] != first["k"][1]
    assert first["k"][3] is None
    assert first["k"][0] != second["k"][0]
    assert set(first["n"]) == {"…"}


def test_rows_of_a_region_are_not_read_on_a_machine_of_another(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = PROJECT.replace("machine_only:", "allowed_regions: [eu-de]\n      machine_only:")
    (tmp_path / "project.yaml").write_text(text)
    bounded = config.load(tmp_path / "project.yaml", {})
    for here in ("us-east", ""):
        monkeypatch.setenv("MLOPS_REGION", here)
        with pytest.raises(PolicyError, match="eu-de only"):
            Pipeline(bounded, Storage.open(bounded.storage))
    require_here([source.policy for source in bounded.sources.values()], "eu-de")


def test_a_mask_or_machine_only_column_that_is_no_column_is_a_mistake(tmp_path: Path) -> None:
    for change in ("machine_only: [nam]", "curated: {rows: 5, mask: {zop: hash}}"):
        key = change.partition(":")[0]
        lines = [
            f"      {change}" if line.strip().startswith(f"{key}:") else line for line in PROJECT.splitlines()
        ]
        (tmp_path / "project.yaml").write_text("\n".join(lines))
        with pytest.raises(MlopsError, match="not among columns"):
            config.load(tmp_path / "project.yaml", {})


def _replaced(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text


#: Ways by which a value that nobody may see could come out, and what it would look like.
WAYS: dict[str, tuple[tuple[tuple[str, str], ...], list[str]]] = {
    "a time that is hidden": (
        (("machine_only: [name, salary]", "machine_only: [name, salary, time]"),
         (
                "    columns:\n",
                "    checks: {freshness: 1d, on_fail: flag}\n    columns:\n      time: {type: string}\n",
            )),
        ["2020-01-0", "2020-01-1", "2020-01-2"],
    ),
    "a column that is derived from a hidden one": (
        (("      amount: {type: float", "      nick: {type: category}\n      amount: {type: float"),
         ("    columns:\n", "    derive: {nick: 'LEFT(name, 14)'}\n    columns:\n")),
        CANARIES,
    ),
    "a preview of masked columns": ((("rows: 5", "rows: 50"),), CANARIES),
    "no row that people may see": ((("rows: 5", "rows: 0"),), [*CANARIES, "2000.0", "2,000"]),
}  # fmt: skip


@pytest.mark.parametrize("what", WAYS)
def test_no_page_report_or_preview_tells_by_another_way(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "on_ray", lambda task, selector: task.parts(range(len(task.inputs))))
    changes, canaries = WAYS[what]
    (tmp_path / "people.csv").write_text(rows())
    (tmp_path / "project.yaml").write_text(_replaced(PROJECT, *changes))
    project = config.load(tmp_path / "project.yaml", {})
    storage = Storage.open(project.storage)
    intake = Intake(FeatureStore(project, storage), storage, Stages(storage))
    intake.validate("people")
    document = intake.explore("people")
    intake.mine("people")
    assert found_in(storage.root, canaries) == set()
    if what == "a preview of masked columns":
        shown = dict(zip(document["preview"]["columns"], document["preview"]["rows"][0], strict=True))
        assert shown["zip"] == "99"
        assert len(shown["person"]) == 12
        assert not {"name", "salary"} & shown.keys()


def test_a_first_row_that_is_taken_for_a_header_is_not_quoted(tmp_path: Path) -> None:
    for text in ("2020-01-01;a;CANARYname;1\n", "time,CANARYname,CANARYname\n"):
        (tmp_path / "x.csv").write_text(text)
        source = config.Source.model_validate(
            {
                "path": str(tmp_path / "x.csv"),
                "event_time": {"column": "time", "timezone": "UTC"},
                "columns": {"name": {"type": "string"}},
                "policy": {"machine_only": "name"},
            }
        )
        with pytest.raises(DataError) as told:
            blocks.check_header(source.inputs[0], source)
        assert "CANARY" not in str(told.value)


def test_columns_that_are_made_of_hidden_names_do_not_name_them(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("time,CANARYann,CANARYbob\n2020-01-01,1,x\n")
    source = config.Source.model_validate(
        {
            "path": str(tmp_path / "x.csv"),
            "unpivot": {"keep": "time", "names": "person", "values": "load"},
            "entity": "person",
            "event_time": {"column": "time", "timezone": "UTC"},
            "columns": {"person": {"type": "category"}, "load": {"type": "float"}},
            "policy": {"machine_only": "person"},
        }
    )
    (verdict,) = blocks.check_file(source.inputs[0], source)
    assert verdict.quarantine.select("column", "rule", "value").rows() == [("load", "type", "x")]


def test_what_hidden_columns_are_made_of_in_one_file_is_hidden_too(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(
        "time,stamp,raw,other\n1,CANARY,1,x\n1,2020-01-01,CANARY 99kg,x\n1,2020-01-02,7,x\n"
    )
    document = {
        "path": {
            "path": str(tmp_path / "x.csv"),
            "event_time": {"column": "stamp", "timezone": "UTC"},
            "columns": {
                "stamp": {"type": "string", "pattern": "2020-01-0[02-9]"},
                "raw": {"type": "float", "max": 5},
                "other": {"type": "float"},
            },
            "derive": {"grams": "raw * 1", "weight": "grams / 1000"},
        },
        "event_time": {"column": "time", "timezone": "UTC"},
        "columns": {name: {"type": "float"} for name in ("time", "grams", "weight")},
        "policy": {"machine_only": ["weight", "time"]},
    }
    source = config.Source.model_validate(document)
    (verdict,) = blocks.check_file(source.inputs[0], source)
    told = verdict.quarantine.select("column", "rule", "value").rows()
    assert set(told) == {
        ("stamp", "not_a_time", None),
        ("stamp", "pattern", None),
        ("raw", "type", None),
        ("raw", "max", None),
        ("other", "type", "x"),
    }


#: Functions of a project that quote what they are given, or give it back.
TELLING = "def raises(name): raise ValueError(name.to_list())\ndef texts(name): return name\n"


@pytest.mark.parametrize(
    ("function", "says"),
    [("raises", "telling.raises failed: ValueError"), ("texts", "values of type String that are no float")],
)
def test_of_an_error_of_a_function_a_log_has_no_value(
    function: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "telling.py").write_text(TELLING)
    monkeypatch.syspath_prepend(tmp_path)
    feature = Computed("feature", "function", f"telling.{function}", inputs=("name",), type="float")
    rows = pl.DataFrame({"name": ["CANARYname"]})
    with pytest.raises(DataError) as told:
        compute(feature, rows)
    assert "CANARYname" in str(told.value)
    logged = "".join(traceback.format_exception(shown(told.value)))
    assert says in logged
    assert "CANARY" not in logged


def test_a_spine_without_a_header_is_not_quoted(project: Project) -> None:
    headless = pl.DataFrame({"CANARYname": ["x"], "87654321.25": ["y"]})
    with pytest.raises(DataError) as told:
        dataset.get(project, compile_features(project), headless, {}, Storage.open(project.storage))
    assert str(told.value) == "the spine lacks person, time"


def test_features_of_a_column_that_is_derived_from_a_hidden_one_are_kept_apart(tmp_path: Path) -> None:
    changes = (
        ("      amount: {type: float", "      nick: {type: category}\n      amount: {type: float"),
        ("    columns:\n", "    derive: {nick: 'LEFT(name, 14)'}\n    columns:\n"),
        ("features:\n", "features:\n  more: {source: people, features: {called: {latest: nick}}}\n"),
        ("  past:", "  row: {columns: [nick]}\n  past:"),
    )
    (tmp_path / "project.yaml").write_text(_replaced(PROJECT, *changes))
    project = config.load(tmp_path / "project.yaml", {})
    features, hidden = compile_features(project), machine_only(project)
    assert features.made_of(hidden) == {"called", "nick"}
    with pytest.raises(InvalidRowError, match="the value is not a name"):
        Reader(features.request, hidden).read(
            {"person": ["ann"], "time": ["2020-01-01T00:00Z"], "nick": [[7]]}
        )


@dataclass
class Told(Silent):
    """Progress of a run, as a terminal has it."""

    said: list[str] = field(default_factory=list)

    def end(self, stage: str, message: str, seconds: float | None) -> None:
        self.said.append(message)


def test_the_first_request_of_a_service_is_of_a_real_row_and_not_shown(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {**packages.PROJECT["sources"]["table"], "policy": {"machine_only": ["site", "load"]}}  # type: ignore[index]
    project = packages.project(storage.root, sources={"table": table})
    packages.crown(storage, project.project, 1, packages.write(storage.path("one"), project, 2.0))
    for name in ("require_token", "apply"):
        monkeypatch.setattr(front, name, lambda *of: [])
    asked: list[Any] = []
    answer = {"outputs": [{"data": [14.5]}]}
    monkeypatch.setattr(service, "predict", lambda url, name, row, of: asked.append(row) or answer)
    row, progress = {"site": "CANARYa", "load": 7.25, "time": "2020-01-01"}, Told()
    pipeline: Any = SimpleNamespace(project=project, storage=storage, progress=progress)
    pipeline.stages, pipeline.prepare = Stages(storage, progress), lambda: None
    pipeline.serve, pipeline.example_request = lambda *of: "http://127.0.0.1:1", lambda: row
    cluster: Any = SimpleNamespace(host="127.0.0.1", http_port=1, grpc_port=2, marker="ours")
    live = service._bring_up(pipeline, cluster, True, train=False)
    assert asked == [row]
    assert "{'site': '…', 'load': '…', 'time': '2020-01-01'} → 14.5" in progress.said
    assert "…" in live.curl
    assert not [said for said in (*progress.said, live.curl) if "CANARY" in said or "7.25" in said]
