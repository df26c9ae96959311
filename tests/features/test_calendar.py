"""Hour, weekday, month and holiday of an instant, in the time zone and country that the feature names."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_ray.features.definitions import Computed
from mlops_ray.features.on_request import compute
from mlops_ray.schema import INSTANT


def calendar(
    kind: str, *times: datetime, zone: str = "UTC", country: str | None = None, shift: timedelta = timedelta()
) -> list[Any]:
    rows = pl.DataFrame({"t": pl.Series(times, dtype=INSTANT)})
    feature = Computed("f", kind, "t", zone, country, shift // timedelta(microseconds=1))
    return rows.select(compute(feature, rows)).to_series().to_list()


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type, misc]


def test_dates_before_1970_have_their_weekday_hour_and_month() -> None:
    last = utc(1969, 12, 31, 23, 59, 59, 999_999)
    assert calendar("weekday_of", utc(1821, 5, 5, 17, 49), last, utc(1582, 10, 15)) == [6, 3, 5]
    assert calendar("hour_of", last, zone="Europe/Berlin") == [0]
    assert calendar("month_of", last, zone="Europe/Berlin") == [1]
    assert calendar("month_of", last) == [12]
    # The mean time of Berlin, 53:28 from Greenwich.
    assert calendar("hour_of", utc(1821, 5, 5, 17, 6), utc(1821, 5, 5, 17, 7), zone="Europe/Berlin") == [
        17,
        18,
    ]


@settings(max_examples=200, derandomize=True, database=None)
@given(
    time=st.datetimes(datetime(1583, 1, 1), datetime(2099, 12, 1)),
    zone=st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "UTC"]),
    shift=st.sampled_from([0, -15, -60, -1440, -10080]),
)
def test_the_calendar_is_that_of_the_zone_and_of_the_interval_s_start(
    time: datetime, zone: str, shift: int
) -> None:
    # Polars knows clock changes up to 2099.
    moved = timedelta(minutes=shift)
    local = (time.replace(tzinfo=UTC) + moved).astimezone(ZoneInfo(zone))
    found = [
        calendar(kind, time.replace(tzinfo=UTC), zone=zone, shift=moved)[0]
        for kind in ("hour_of", "weekday_of", "month_of")
    ]
    assert found == [local.hour, local.isoweekday(), local.month]


def test_a_clock_change_moves_the_hour_of_the_instants_after_it() -> None:
    times = [utc(2016, 3, 27, hour) for hour in (0, 1)] + [utc(2016, 10, 30, hour) for hour in (0, 1, 2)]
    assert calendar("hour_of", *times, zone="Europe/Berlin") == [1, 3, 2, 2, 3]


@pytest.mark.parametrize(
    ("time", "zone", "country", "expected"),
    [
        (utc(2016, 10, 2, 22), "UTC", "DE", False),
        (utc(2016, 10, 2, 22), "Europe/Berlin", "DE", True),
        (utc(2016, 10, 3, 22), "Europe/Berlin", "DE", False),
        (utc(2015, 12, 31, 23), "Europe/Berlin", "DE", True),
        (utc(1969, 7, 4, 12), "America/New_York", "US", True),
        (utc(1969, 7, 5, 3), "America/New_York", "US", True),
        (utc(1969, 7, 5, 4), "America/New_York", "US", False),
    ],
)
def test_a_holiday_is_one_of_the_country_by_the_zone_s_date(
    time: datetime, zone: str, country: str, expected: bool
) -> None:
    assert calendar("holiday_of", time, zone=zone, country=country) == [expected]


def test_the_holiday_of_an_interval_is_that_of_its_start_also_in_the_year_before() -> None:
    week = timedelta(days=-7)
    assert calendar("holiday_of", utc(2017, 1, 2), utc(2017, 1, 3), country="DE", shift=week) == [True, False]


def test_a_time_s_answer_does_not_depend_on_the_other_rows() -> None:
    times = [utc(2016, 12, 25), utc(1821, 12, 25), utc(2017, 5, 1), utc(2017, 5, 2)]
    together = calendar("holiday_of", *times, country="DE")
    assert together == [calendar("holiday_of", time, country="DE")[0] for time in times]
    assert calendar("holiday_of", country="DE") == []
