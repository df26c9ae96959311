"""What README.md shows is what comes out."""

import io
import re
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from mlops_ray import config
from mlops_ray.cluster.intake import Intake
from mlops_ray.cluster.stages import Stages
from mlops_ray.config import File
from mlops_ray.data import ingest
from mlops_ray.data.blocks import check_file
from mlops_ray.features.store import FeatureStore, read_spine
from mlops_ray.storage import Storage

from .conftest import ROOT


def blocks(language: str) -> list[str]:
    """The blocks of code in a language, in their order."""
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_example_of_the_feature_store_gives_the_answers_that_stand_below_it(tmp_path: Path) -> None:
    project = blocks("yaml")[1]
    orders, rows, answers = blocks("csv")[2:]
    for name, text in (("project.yaml", project), ("orders.csv", orders), ("rows.csv", rows)):
        (tmp_path / name).write_text(text)
    opened = config.load(tmp_path / "project.yaml", {})
    store = FeatureStore(opened, Storage.open(opened.storage))
    source = opened.sources["orders"]
    for verdict in check_file(File(path=str(tmp_path / "orders.csv")), source):
        assert verdict.valid.height == 4
        store.history("orders").append(verdict.valid, source, "first")
    made = store.get(read_spine(tmp_path / "rows.csv")).frame
    expected = pl.read_csv(io.StringIO(answers))
    found = made.select(expected.columns).with_columns(
        pl.col("at").dt.strftime("%Y-%m-%dT%H:%MZ"), pl.col("customer").cast(pl.String)
    )
    assert_frame_equal(found, expected, check_dtypes=False)


def test_the_example_of_alerts_is_a_part_of_a_project_file(tmp_path: Path) -> None:
    (alerts,) = [block for block in blocks("yaml") if "alerts:" in block]
    file = tmp_path / "project.yaml"
    text = (ROOT / "configs" / "factory_load.yaml").read_text()
    file.write_text(text.partition("monitoring:\n")[0] + alerts)
    environ = {"ALERT_URL": "https://hooks.example.org", "SMTP_URL": "smtp://localhost/ops@example.org"}
    assert len(config.load(file, environ).monitoring.alerts) == 4


def test_the_example_of_costs_is_a_part_of_a_project_file(tmp_path: Path) -> None:
    (costs,) = [block for block in blocks("yaml") if block.startswith("cost:")]
    file = tmp_path / "project.yaml"
    file.write_text((ROOT / "configs" / "factory_load.yaml").read_text() + costs)
    found = config.load(file, {}).cost
    assert (found.load, found.prices) == (40, str(tmp_path / "prices.yaml"))


def test_the_example_of_data_has_the_valid_rows_and_the_quarantine_that_stand_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "on_ray", lambda task, selector: task.parts(range(len(task.inputs))))
    project, (stays, quarantine), (lines,) = blocks("yaml")[0], blocks("csv")[:2], blocks("json")
    for name, text in (("project.yaml", project), ("koeln.csv", stays), ("bonn.jsonl", lines)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    opened = config.load(tmp_path / "project.yaml", {})
    storage = Storage.open(opened.storage)
    intake = Intake(FeatureStore(opened, storage), storage, Stages(storage))
    report = intake.validate("stays")
    assert (report["state"], report["rows_in"], report["valid"]) == ("checked", 8, 4)
    found = pl.read_parquet(storage.root / "reports" / "quarantine-stays.parquet").sort("_row")
    found = found.with_columns(pl.col("_file").str.split("/").list.last())
    expected = pl.read_csv(io.StringIO(quarantine))
    assert_frame_equal(found, expected, check_dtypes=False)
    assert all(check["holds"] for check in report["table"] if check["check"] != "unique")
