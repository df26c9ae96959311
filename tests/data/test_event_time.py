"""Stamps become instants, through clock changes and in every unit."""

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_ray.config import EventTime
from mlops_ray.data.event_time import Clock
from mlops_ray.errors import DataError

BERLIN = ZoneInfo("Europe/Berlin")
EPOCH, MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)


def read(
    spec: EventTime, values: list[Any], dtype: Any = pl.String
) -> tuple[list[datetime | None], list[str | None]]:
    times, problems = Clock(spec).read(pl.DataFrame({"t": values}, schema={"t": dtype}), ())
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


CHANGES = {
    # Half a year and a hemisphere apart, and by half an hour only.
    "America/New_York": ("2016-03-13 01:59", "2016-03-13 02:00", "2016-03-13 03:00", "2016-11-06 01:30"),
    "Australia/Lord_Howe": ("2016-10-02 01:59", "2016-10-02 02:29", "2016-10-02 02:30", "2016-04-03 01:45"),
    # At midnight, and of the year of 1945.
    "America/Sao_Paulo": ("2016-10-15 23:59", "2016-10-16 00:30", "2016-10-16 01:00", "2016-02-20 23:30"),
    "Europe/Berlin": ("1945-05-24 01:59", "1945-05-24 02:30", "1945-05-24 04:00", "1945-11-18 02:30"),
}


@pytest.mark.parametrize("zone", CHANGES)
def test_clock_changes_of_every_zone_and_year_are_known(zone: str) -> None:
    before, skipped, after, repeated = CHANGES[zone]
    spec = EventTime(column="t", timezone=zone, ambiguous="infer")
    written = sorted([before, skipped, after, repeated, repeated])
    times, problems = read(spec, written)
    assert problems == [None if stamp != skipped else "nonexistent_time" for stamp in written]
    local = [datetime.fromisoformat(stamp).replace(tzinfo=ZoneInfo(zone)) for stamp in (before, after)]
    local += [datetime.fromisoformat(repeated).replace(tzinfo=ZoneInfo(zone), fold=fold) for fold in (0, 1)]
    assert [time for time in times if time] == sorted(time.astimezone(UTC) for time in local)


def test_an_offset_in_the_stamp_tells_the_repeated_hour_apart() -> None:
    expected = [datetime(2016, 10, 30, hour, 30, tzinfo=UTC) for hour in (0, 1)]
    iso = ["2016-10-30T02:30:00+02:00", "2016-10-30T02:30:00+01:00"]
    assert read(EventTime(column="t"), iso) == (expected, [None, None])
    spec = EventTime(column="t", format="%d.%m.%Y %H:%M %z")
    assert read(spec, ["30.10.2016 02:30 +0200", "30.10.2016 02:30 +0100"]) == (expected, [None, None])


INSTANTS = st.datetimes(datetime(1583, 1, 1), datetime(2399, 12, 31)).map(lambda t: t.replace(tzinfo=UTC))


@settings(max_examples=50, derandomize=True, database=None)
@given(st.lists(INSTANTS, min_size=1, max_size=5))
def test_an_instant_is_read_back_whatever_it_was_written_as(instants: list[datetime]) -> None:
    """To the microsecond, in every form that holds microseconds, before 1970 and after."""
    micros = [(time - EPOCH) // MICROSECOND for time in instants]
    west = timezone(-timedelta(hours=3, minutes=30))
    zoned, naive, any_zone = EventTime(column="t", timezone="UTC"), pl.Datetime("us"), EventTime(column="t")
    since_1970 = EventTime(column="t", unit="us")
    written: list[tuple[EventTime, list[Any], Any]] = [
        (since_1970, [str(m) for m in micros], pl.String),
        (since_1970, micros, pl.Int64),
        (any_zone, [time.isoformat() for time in instants], pl.String),
        (any_zone, [time.astimezone(west).isoformat() for time in instants], pl.String),
        (any_zone, [time.astimezone(BERLIN) for time in instants], pl.Datetime("us", "Europe/Berlin")),
        (zoned, [f"{time:%Y-%m-%d %H:%M:%S.%f}" for time in instants], pl.String),
        (zoned, [time.replace(tzinfo=None) for time in instants], naive),
    ]
    near = [m for m in micros if abs(m) < 2**63 // 1000]
    written.append((EventTime(column="t", unit="ns"), [str(m * 1000) for m in near], pl.String))
    written.append((EventTime(column="t", unit="ns"), [m * 1000 for m in near], pl.Int64))
    for spec, values, dtype in written:
        expected = [EPOCH + m * MICROSECOND for m in (near if spec.unit == "ns" else micros)]
        assert read(spec, values, dtype) == (expected, [None] * len(expected)), (spec, values)


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_numbers_may_be_of_any_type_with_spaces_around_them_and_fractions(unit: str, factor: int) -> None:
    spec = EventTime(column="t", unit=unit)  # type: ignore[arg-type]
    expected = [EPOCH + timedelta(seconds=seconds) for seconds in (1.5, -1.5, 0, 3)]
    numbers = [1.5 * factor, -1.5 * factor, 0.0, 3.0 * factor]
    assert read(spec, numbers, pl.Float64)[0] == expected
    whole = 1 if factor == 1 else factor // 1000
    assert read(spec, [whole, -whole], pl.Int64)[1] == [None, None]
    text = [f" {number:.3f}" if factor == 1 else f" {number:.0f} " for number in numbers]
    assert read(spec, text) == (expected, [None] * 4)


def test_a_number_that_no_calendar_reaches_is_not_a_time() -> None:
    """Milliseconds declared as seconds are the usual mistake; it must not come to light at the first plot."""
    for unit, values in {
        "s": [1_461_888_000_000, -(10**11), 10**18],
        "ms": [10**15, 10**18],
        "us": [3 * 10**17],
    }.items():
        spec = EventTime(column="t", unit=unit)  # type: ignore[arg-type]
        for dtype in (pl.Int64, pl.String):
            frame = pl.DataFrame({"t": pl.Series(values, dtype=pl.Int64).cast(dtype)})
            problems = Clock(spec).read(frame, ())[1].to_list()
            assert problems == ["not_a_time"] * len(values), (unit, dtype)


@pytest.mark.parametrize(
    ("says", "stamps"),
    [
        ({}, ["0000-12-31T23:59Z", "0001-01-01T00:00:00+23:59", "-0001-01-01T00:00Z", "+12345-01-01T00:00Z"]),
        ({}, ["9999-12-31T23:59:59-23:59", "9999-01-01T00:00:00Z", "0001-12-31T23:59:59.999999Z"]),
        ({"timezone": "America/New_York"}, ["9999-12-31 23:59", "0000-01-01 00:00", "9998-12-31 23:59"]),
        ({"timezone": "Europe/Berlin"}, ["0002-01-01 00:00", "+12345-01-01 00:00", "+262142-01-01 00:00"]),
        (
            {"timezone": "UTC", "format": "%Y-%m-%d"},
            ["0000-01-01", "0001-12-31", "9999-01-01", "12345-01-01"],
        ),
        ({"format": "%Y-%m-%d %H:%M %z"}, ["0002-01-01 00:00 +0001", "9998-12-31 23:59 -0001"]),
        ({"unit": "s"}, ["253402300799.9999999", "-62135596800", "9223372036854775807", "1e300", "nan"]),
        ({"unit": "ms"}, ["253370764800000", "-62104060800001", "-9223372036854775808"]),
        ({"unit": "us"}, ["253370764800000000", "-62104060800000001", "9223372036854775808"]),
    ],
)
def test_a_time_at_the_ends_of_the_calendar_or_beyond_is_not_a_time(
    says: dict[str, Any], stamps: list[str]
) -> None:
    """However it is written; else one such row makes every later question about its history fail."""
    spec = EventTime(column="t", **says)
    good = {"s": "0", "ms": "0", "us": "0"}.get(says.get("unit", ""), "2016-01-01")
    good += {"%Y-%m-%d %H:%M %z": " 00:00 +0000", None: ""}.get(says.get("format"), "")
    for stamp in stamps:
        times, problems = read(spec, [good if says else "2016-01-01T00:00Z", stamp])
        assert (times[1], problems) == (None, [None, "not_a_time"]), stamp


def test_typed_times_and_parts_at_the_ends_of_the_calendar_are_not_times() -> None:
    spec = EventTime(column="t", timezone="UTC")
    for dtype, ends in {
        pl.Date: (date(1, 1, 1), date(9999, 1, 1)),
        pl.Datetime("us"): (datetime(1, 12, 31), datetime(9999, 1, 1)),
        pl.Datetime("ms", "UTC"): (datetime(1, 12, 31, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)),
    }.items():
        assert read(spec, list(ends), dtype) == ([None, None], ["not_a_time"] * 2)
    far = pl.DataFrame({"t": pl.Series([2**60, -(2**60)]).cast(pl.Datetime("ms"))})
    assert Clock(spec).read(far, ())[1].to_list() == ["not_a_time"] * 2
    parts = pl.DataFrame({"y": ["0", "1", "9999", "2"], "m": ["1"] * 4, "d": ["1"] * 4})
    by_day = EventTime(columns=("y", "m", "d"), granularity="day", timezone="UTC")
    assert Clock(by_day).read(parts, ())[1].to_list() == ["not_a_time"] * 3 + [None]


@pytest.mark.parametrize(
    ("format", "stamps"),
    [
        (None, ["2016-05-05T12:30:60Z", "2016-12-31T23:59:60Z", "2016-05-05 12:30:60.5+02:00"]),
        (None, ["2016-05-05 12:30:60", "2016-12-31T23:59:60.25"]),
        ("%d.%m.%Y %H:%M:%S", ["05.05.2016 12:30:60"]),
        ("%Y%m%d%H%M%S", ["20160505123060"]),
        ("%F %T%.f", ["2016-05-05 12:30:60.5", "2016-05-05 12:30:60"]),
        ("%F %r", ["2016-05-05 12:30:60 PM"]),
        ("%c", ["Thu May  5 12:30:60 2016"]),
        ("%F %T %z", ["2016-05-05 12:30:60 +0200"]),
    ],
)
def test_a_second_60_is_refused_and_never_rolled_over(format: str | None, stamps: list[str]) -> None:
    spec = EventTime(column="t", timezone="UTC", format=format)
    assert read(spec, stamps) == ([None] * len(stamps), ["not_a_time"] * len(stamps))
    near = ["59".join(stamp.rsplit("60", 1)) for stamp in stamps]
    assert read(spec, near)[1] == [None] * len(stamps)


def test_a_time_of_day_is_read_however_the_format_pads_it() -> None:
    for format in ("%d.%m.%Y %-H:%M", "%d.%m.%Y %k:%M", "%d.%m.%Y %R"):
        spec = EventTime(column="t", timezone="UTC", format=format)
        assert read(spec, ["05.05.2016 7:05"])[0] == [datetime(2016, 5, 5, 7, 5, tzinfo=UTC)]


def test_a_stretch_without_any_time_costs_its_rows_and_not_the_file() -> None:
    clock = Clock(EventTime(column="t"))
    for stamps, expected in (
        (["", "x", "5"], ["required", "not_a_time", "not_a_time"]),
        (["2016-01-01T00:00Z"], [None]),
        (["", None], ["required", "required"]),
        (["1461888000", "2016-01-01 00:00"], ["not_a_time", "not_a_time"]),
        (["2016-01-01T00:00Z"], [None]),
    ):
        frame = pl.DataFrame({"t": stamps}, schema={"t": pl.String})
        assert clock.read(frame, ())[1].to_list() == expected


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_numbers_without_a_unit_are_an_error_that_suggests_it(unit: str, factor: int) -> None:
    for values, dtype in (
        ([1_461_888_000 * factor], pl.Int64),
        (["", str(1_461_888_000 * factor)], pl.String),
    ):
        with pytest.raises(DataError, match=f"say event_time.unit, here perhaps unit: {unit}"):
            read(EventTime(column="t"), values, dtype)


def test_the_first_stamp_of_a_file_tells_whether_they_carry_offsets() -> None:
    spec = EventTime(column="t", timezone="UTC")
    values = ["31-12-2016", "2016-01-01 00:00", "2016-01-01T00:00Z", "2016-01-02 00:00"]
    assert read(spec, values)[1] == ["not_a_time", None, "not_a_time", None]


DESCENDING = {
    "newest first": ["2016-10-30 03:00", "2016-10-30 02:30", "2016-10-30 02:00", "2016-10-30 02:30"],
    "newest first, from the hour on": ["2016-10-30 02:30", "2016-10-30 01:30"],
    "newest first, days apart": ["2016-10-30 02:10", "2016-10-30 02:40", "2016-10-29 12:00"],
    "newest first, within the hour": [f"2016-10-30 02:{minute}" for minute in (30, 0, 30, 0)],
    "two years, the later first": ["2017-10-29 02:30", "2016-10-30 02:30"],
    "unsorted": ["2016-05-05 12:00", "2016-05-04 12:00", "2016-10-30 02:30"],
}


@pytest.mark.parametrize("what", DESCENDING)
@pytest.mark.parametrize("block", [1, 2, 9])
def test_infer_refuses_a_file_whose_order_does_not_tell_the_hour_s_passes_apart(
    what: str, block: int
) -> None:
    stamps = [stamp if len(stamp) == 16 else stamp + "0" for stamp in DESCENDING[what]]
    clock = Clock(EventTime(column="t", timezone="Europe/Berlin", ambiguous="infer"))
    rows = pl.DataFrame({"t": stamps, "k": ["a"] * len(stamps)}).with_row_index("_row", 1)
    frame = rows.with_columns(pl.lit("x.csv").alias("_file"))
    with pytest.raises(
        DataError, match=r"x\.csv, row \d, column 't'.*rows of each entity in ascending order"
    ):
        for at in range(0, len(stamps), block):
            clock.read(frame[at : at + block], ("k",))


def test_infer_needs_no_order_where_no_hour_is_repeated_nor_between_entities() -> None:
    spec = EventTime(column="t", timezone="Europe/Berlin", ambiguous="infer")
    assert read(spec, ["2016-05-05 12:00", "2016-05-04 12:00", "x"])[1] == [None, None, "not_a_time"]
    stamps = ["2016-10-30 03:00", "2016-10-30 02:00", "2016-10-30 04:00", "2016-10-30 02:00"]
    frame = pl.DataFrame({"t": stamps, "k": ["a", "b", "a", "b"]})
    hours = Clock(spec).read(frame, ("k",))[0].dt.hour().to_list()
    assert hours == [2, 0, 3, 1]


def test_typed_stamps_and_dates_are_read_as_they_are() -> None:
    last = datetime(1969, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC)
    assert read(EventTime(column="t"), [last], pl.Datetime("ms", "UTC")) == ([last], [None])
    spec = EventTime(column="t", timezone="Europe/Berlin")
    naive = [datetime(2016, 7, 1, 12), datetime(2016, 10, 30, 2, 30), datetime(2016, 3, 27, 2, 30), None]
    times, problems = read(spec, naive, pl.Datetime("ns"))
    assert times[0] == datetime(2016, 7, 1, 10, tzinfo=UTC)
    assert problems == [None, "ambiguous_time", "nonexistent_time", "required"]
    # Berlin kept its own mean time then: 53 minutes and 28 seconds before Greenwich's.
    assert read(spec, [date(1821, 5, 5)], pl.Date)[0] == [datetime(1821, 5, 4, 23, 6, 32, tzinfo=UTC)]


def test_a_column_in_which_some_stamps_have_no_offset_is_refused_where_they_stand() -> None:
    spec = EventTime(column="t", timezone="UTC")
    times, problems = read(spec, ["2016-10-30T02:30:00+02:00", "2016-10-30 02:30"])
    assert times == [datetime(2016, 10, 30, 0, 30, tzinfo=UTC), None]
    assert problems == [None, "not_a_time"]
