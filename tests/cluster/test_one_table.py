"""Several sources of different formats, types and places make one table, with the types that it declares."""

import gzip
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import openpyxl
import polars as pl
import pytest

from mlops_ray import config
from mlops_ray.cluster.intake import Intake
from mlops_ray.cluster.stages import Stages
from mlops_ray.data import ingest
from mlops_ray.features.history import read
from mlops_ray.features.store import FeatureStore
from mlops_ray.storage import Storage

from ..servers import PostgresServer, postgres, s3_store

PROJECT = """
project: clinics
sources:
  stays:
    path:
      - {{path: {folder}/köln.csv, format: {{csv: {{delimiter: ";", decimal: ",", encoding: latin-1}}}}}}
      - {{path: {folder}/bonn.xlsx, rename: {{Patient: patient, Gewicht: weight}}}}
      - path: {folder}/essen.jsonl.gz
        rename: {{id: patient}}
        event_time: {{column: admitted, unit: s}}
        columns: {{grams: {{type: float}}}}
        derive: {{weight: grams / 1000}}
      - sql: {{connection: "{database}", query: "SELECT * FROM stays WHERE patient <> 'test'"}}
        true_values: [ja]
        false_values: [nein]
    entity: patient
    event_time: {{column: admitted, timezone: Europe/Berlin}}
    columns:
      patient: {{type: string}}
      weight: {{type: float, min: 0, max: 400}}
      children: {{type: int}}
      pregnant: {{type: bool}}
      ward: {{type: category, categories: [Süd, Nord]}}
features:
  past: {{source: stays, features: {{before: {{latest: weight}}}}}}
target: {{source: stays, expr: weight, horizon: 1h, task: regression}}
"""
#: Rows of the table as they must come out: patient, admitted in UTC, weight, children, pregnant, ward.
EXPECTED = [
    ("k1", datetime(2020, 7, 1, 8, tzinfo=UTC), 70.5, 0, False, "Süd"),
    ("k2", datetime(2020, 1, 1, 9, tzinfo=UTC), 1.25, None, True, "Nord"),
    ("007", datetime(2020, 7, 1, 8, tzinfo=UTC), 80.0, 2, None, "Süd"),
    ("e1", datetime(2020, 7, 1, 8, tzinfo=UTC), 61.25, 1, True, "Nord"),
    ("p1", datetime(2020, 7, 1, 8, tzinfo=UTC), 99.75, 3, True, "Süd"),
    ("p2", datetime(2020, 7, 1, 8, 0, 0, 250_000, tzinfo=UTC), None, 12, False, None),
]
#: Rows that are wrong, by the input that they stand in.
WRONG = {"köln.csv": 1, "bonn.xlsx": 1, "essen.jsonl.gz": 2, "stays": 1}


@pytest.fixture(scope="module")
def database() -> Iterator[PostgresServer]:
    with postgres() as server:
        server.run(
            "CREATE TABLE stays (patient text, admitted timestamptz, weight numeric(6,2), children smallint,"
            " pregnant text, ward text, note json)",
            "INSERT INTO stays VALUES ('p1', '2020-07-01 10:00+02', 99.75, 3, 'ja', 'Süd', '{}'),"
            " ('p2', '2020-07-01 10:00:00.25+02', NULL, 12, 'nein', NULL, NULL),"
            " ('p3', '2020-07-02 10:00+02', 999.5, 12, 'nein', NULL, NULL),"
            " ('test', '2020-07-01 10:00+02', 1, 1, 'ja', 'Süd', NULL)",
        )
        yield server


def write(folder: Path) -> None:
    """The three files."""
    lines = [
        "patient;admitted;weight;children;pregnant;ward",
        "k1;2020-07-01 10:00;70,5;0;no;Süd",
        "k2;2020-01-01 10:00;1,25;;yes;Nord",
        "k3;2020-01-01 10:00;1.25;;yes;Nord",
    ]
    (folder / "köln.csv").write_text("\r\n".join(lines), encoding="latin-1", newline="")
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.append(["Patient", "admitted", "Gewicht", "children", "pregnant", "ward"])
    sheet.append(["007", datetime(2020, 7, 1, 10), 80, 2.0, None, "Süd"])
    sheet.append(["008", datetime(2020, 7, 1, 10), 80, 2.0, None, "West"])
    book.save(folder / "bonn.xlsx")
    second = int(EXPECTED[3][1].timestamp())
    rows: list[Any] = [
        {"id": "e1", "admitted": second, "grams": 61250, "children": 1, "pregnant": True, "ward": "Nord"},
        {"id": "e2", "admitted": second, "grams": 61250, "children": 1.5, "pregnant": True, "ward": "Nord"},
        ["no object"],
    ]
    with gzip.open(folder / "essen.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def table(project_folder: Path, folder: str, server: PostgresServer) -> pl.DataFrame:
    """The table in force."""
    file = project_folder / "project.yaml"
    file.write_text(PROJECT.format(folder=folder, database=server.url()), encoding="utf-8")
    project = config.load(file, {})
    storage = Storage.open(project.storage)
    made = Intake(FeatureStore(project, storage), storage, Stages(storage))
    commit = made.ingest("stays")
    assert made.ingest("stays") == commit
    return read(made.store.history("stays").snapshot())


def check(rows: pl.DataFrame) -> None:
    assert rows.schema["weight"] == pl.Float64
    assert rows.schema["children"] == pl.Int64
    assert rows.schema["pregnant"] == pl.Boolean
    columns = ["patient", "event_time", "weight", "children", "pregnant", "ward"]
    assert sorted(rows.select(columns).rows()) == sorted(EXPECTED)


def test_a_latin_1_csv_an_excel_sheet_json_lines_and_a_postgresql_table_make_one_table(
    ray_cluster: object, tmp_path: Path, database: PostgresServer
) -> None:
    write(tmp_path)
    check(table(tmp_path, str(tmp_path), database))


def test_they_do_so_from_an_s3_store_and_the_report_counts_each(
    tmp_path: Path, database: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[dict[str, Any]] = []
    monkeypatch.setattr(ingest, "on_ray", lambda task, selector: counting(task, counted))
    (tmp_path / "files").mkdir()
    write(tmp_path / "files")
    with s3_store("clinic") as client:
        for file in (tmp_path / "files").iterdir():
            client.upload_file(str(file), "clinic", f"in/{file.name}")
        check(table(tmp_path, "s3://clinic/in", database))
    first = counted[0]["report"]
    wrong = {
        Path(item["file"].partition(" FROM ")[2] or item["file"]).name: item["quarantined"]
        for item in first["files"]
    }
    assert {name.split(" ")[0]: count for name, count in wrong.items()} == WRONG
    assert (first["rows_in"], first["valid"], first["quarantined"]) == (11, 6, 5)


def counting(task: ingest.Task, counted: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for part in task.parts(range(len(task.inputs))):
        counted.append(part)
        yield part
