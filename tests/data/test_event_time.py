"""Stamps become instants, through clock changes and in every unit."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import polars as pl
import pytest

from mlops_ray.config import EventTime
from mlops_ray.data.event_time import Clock
from mlops_ray.errors import DataError

BERLIN = ZoneInfo("Europe/Berlin")


def read(spec: EventTime, values: list[str | None]) -> tuple[list[datetime | None], list[str | None]]:
    times, problems = Clock(spec).read(pl.DataFrame({"t": values}, schema={"t": pl.String}), ())
    return times.to_list(), problems.to_list()


@pytest.mark.parametrize("block", [1, 3, 7, 1000])
def test_both_clock_changes_are_read_right_whatever_the_block_size(block: int) -> None:
    begin = datetime(2016, 3, 1, tzinfo=UTC)
    truth = [begin + timedelta(minutes=15 * i) for i in range(4 * 24 * 245)]
    written = [t.astimezone(BERLIN).strftime("%d.%m.%Y %H:%M") for t in truth]
    clock = Clock(EventTime(column="t", format="%d.%m.%Y %H:%M", timezone="Europe/Berlin", ambiguous="infer"))
    # The hours around the changes, in blocks, so that a block ends inside the repeated hour.
    for day in (datetime(2016, 3, 27, tzinfo=UTC), datetime(2016, 10, 30, tzinfo=UTC)):
        first = truth.index(day - timedelta(hours=1))
        last = first + 24
        found = [
            time
            for at in range(first, last, block)
            for time in clock.read(pl.DataFrame({"t": written[at : min(at + block, last)]}), ())[0]
        ]
        assert found == truth[first:last]


def test_interleaved_entities_are_told_apart_in_the_repeated_hour() -> None:
    stamps = ["02:00", "02:00", "02:30", "02:30", "02:00", "02:00"]
    frame = pl.DataFrame({"t": [f"2016-10-30 {s}" for s in stamps], "k": ["a", "b"] * 3})
    clock = Clock(EventTime(column="t", timezone="Europe/Berlin", ambiguous="infer"))
    hours = [t.strftime("%H:%M") for t in clock.read(frame, ("k",))[0]]
    assert hours == ["00:00", "00:00", "00:30", "00:30", "01:00", "01:00"]


def test_an_ambiguous_stamp_is_named_unless_the_source_says_infer() -> None:
    spec = EventTime(column="t", timezone="Europe/Berlin")
    assert read(spec, ["2016-10-30 02:30"]) == ([None], ["ambiguous_time"])


def test_what_does_not_exist_is_refused_and_never_rolled_over() -> None:
    spec = EventTime(column="t", timezone="Europe/Berlin", ambiguous="infer")
    values = ["2016-03-27 02:30", "2015-02-29", "2016-02-29", "nonsense", "", None]
    times, problems = read(spec, values)
    assert problems == ["nonexistent_time", "not_a_time", None, "not_a_time", "required", "required"]
    assert times[2] == datetime(2016, 2, 28, 23, tzinfo=UTC)


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_numbers_are_read_in_every_unit_before_1970_too(unit: str, factor: int) -> None:
    for seconds in (1_461_888_000, -4_691_952_000):
        spec = EventTime(column="t", unit=unit)  # type: ignore[arg-type]
        expected = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
        assert read(spec, [str(seconds * factor)]) == ([expected], [None])


def test_napoleon_died_on_a_saturday() -> None:
    times, _ = read(EventTime(column="t", timezone="UTC"), ["1821-05-05 17:49"])
    assert [time.isoweekday() for time in times if time] == [6]


def test_a_date_in_three_columns_is_one_date() -> None:
    spec = EventTime(columns=("y", "m", "d"), granularity="day", timezone="UTC")
    frame = pl.DataFrame({"y": ["2016", "2016"], "m": ["2", "2"], "d": ["29", "30"]})
    times, problems = Clock(spec).read(frame, ())
    assert times.to_list() == [datetime(2016, 2, 29, tzinfo=UTC), None]
    assert problems.to_list() == [None, "not_a_time"]


def test_a_stamp_without_offset_needs_a_time_zone() -> None:
    with pytest.raises(DataError, match="names no timezone; add"):
        read(EventTime(column="t"), ["2016-01-01 00:00"])
    assert read(EventTime(column="t"), ["2016-01-01T01:00:00+01:00"])[0] == [datetime(2016, 1, 1, tzinfo=UTC)]
