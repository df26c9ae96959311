"""Entities in the course of time: a night, a Sunday and a holiday are none of them an alarm; a change is."""

import io
import math
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import polars.testing
import pytest

from mlops_ray.features.definitions import Computed, FeatureSet, Stored
from mlops_ray.monitoring import seasons
from mlops_ray.monitoring.seasons import Calendar, Watch
from mlops_ray.schema import Column, Schema

BEGIN = datetime(2016, 1, 3, 23, tzinfo=UTC)  # Monday, 0:00 in Berlin
DAY_US = 86_400_000_000
WEEKS = 26
BERLIN = Calendar("Europe/Berlin", "DE")
WATCH = Watch(("site",), "time", {"load": 0}, BERLIN)
#: By day of the week: what a site needs then.
NEEDS = np.array([1.0, 1.1, 1.1, 1.05, 0.9, 0.4, 0.2, 0.2, 0.6])
SPENT = 0.009
#: When somebody looks.
TUESDAY = datetime(2016, 7, 19, 3, tzinfo=UTC)


def rows(
    days: int, seed: int, *, sites: int = 3, begin: datetime = BEGIN, noise: float = 0.05
) -> pl.DataFrame:
    """Hours of some sites, each with a course of the day and the week; a day's noise is of all its hours."""
    random = np.random.default_rng(seed)
    times = pl.datetime_range(begin, begin + timedelta(days=days), "1h", closed="left", eager=True)
    placed = BERLIN.placed(pl.DataFrame({seasons.TIME: times}))
    kinds, hours = placed["kind"].to_numpy(), placed["hour"].to_numpy()
    day = placed["date"].rank("dense").to_numpy().astype(int)
    course = NEEDS[kinds - 1] * (1 + 0.5 * np.sin(hours / 24 * 2 * np.pi))
    parts = []
    for site in range(sites):
        common = random.normal(0, noise, day.max() + 1)[day]
        load = (1 + site) * (course + common + random.normal(0, noise, len(times)))
        parts.append(pl.DataFrame({"site": f"S{site}", "time": times, "load": load}))
    return pl.concat(parts)


@pytest.fixture(scope="module")
def usual() -> pl.DataFrame:
    return learned(rows(7 * WEEKS, seed=1))


def learned(frame: pl.DataFrame, watch: Watch = WATCH) -> pl.DataFrame:
    return seasons.learn(watch, frame, frame.clear().with_columns(prediction=pl.lit(0.0)))


def found(usual: pl.DataFrame, window: pl.DataFrame, watch: Watch = WATCH) -> dict[str, Any]:
    compared, _ = seasons.compare(watch, usual, window, window, TUESDAY)
    return {finding.about: finding for finding in seasons.findings(watch, compared, SPENT)}


def day(at: int, seed: int = 2, **how: Any) -> pl.DataFrame:
    """A day so many days after the reference's end."""
    return rows(1, seed, begin=BEGIN + timedelta(days=7 * WEEKS + at), **how)


def test_neither_a_night_nor_a_sunday_is_a_difference(usual: pl.DataFrame) -> None:
    for at in range(14):
        for finding in found(usual, day(at, seed=at)).values():
            assert finding.p_of_tests > 0.01 or not finding.matters
    night = day(0).filter(pl.col("time").dt.hour().is_in([0, 1, 2]))
    (finding,) = found(usual, night).values()
    assert finding.p_of_tests > 0.01 or not finding.matters


def test_a_site_that_needs_half_is_found_at_once_and_named(usual: pl.DataFrame) -> None:
    halved = pl.when(pl.col("site") == "S1").then(pl.col("load") / 2).otherwise(pl.col("load"))
    finding = found(usual, day(1).with_columns(halved.alias("load")))["load by site"]
    assert (finding.kind, finding.matters, finding.p < 1e-5) == ("input", True, True)
    pattern = r"load of S1 is 1\.\d+; on a Tuesday 2\.2\d? is usual, give or take 0\.\d+ \(of 25 such days\)"
    assert re.fullmatch(pattern, finding.evidence)


def test_sites_that_all_have_one_value_stand_still_which_is_a_fault(usual: pl.DataFrame) -> None:
    finding = found(usual, day(1).with_columns(load=pl.lit(0.0)))["load by site"]
    assert (finding.kind, finding.matters) == ("data", True)
    assert finding.evidence.startswith("it stands still; load of S0 is 0; on a Tuesday ")
    # What is one for all sites by its nature, as the weather is, may be unusual and no fault.
    weather = rows(7 * WEEKS, seed=1, sites=1)
    everywhere = pl.concat([weather.with_columns(site=pl.lit(site)) for site in ("S0", "S1")])
    hot = pl.concat([day(1, sites=1).with_columns(pl.col("load") * 3, site=pl.lit(s)) for s in ("S0", "S1")])
    assert found(learned(everywhere), hot)["load by site"].kind == "input"


def test_all_sites_a_thousand_times_as_large_are_another_unit() -> None:
    many = learned(rows(7 * WEEKS, seed=1, sites=6))
    finding = found(many, day(1, sites=6).with_columns(pl.col("load") * 1_000))["load by site"]
    assert finding.kind == "data"
    assert finding.evidence.startswith(
        "it is about 1000 times what is usual: another unit?; load of all lies"
    )
    # A world that needs twice as much is none, nor sites that each change in their own way.
    assert found(many, day(1, sites=6).with_columns(pl.col("load") * 2))["load by site"].kind == "input"
    each = pl.col("load") * pl.col("site").str.tail(1).cast(pl.Int64) ** 3 * 40
    assert found(many, day(1, sites=6).with_columns(each))["load by site"].kind == "input"


def test_days_of_rest_are_not_asked_about_by_themselves_nor_on_one(usual: pl.DataFrame) -> None:
    frame = rows(14, seed=3, begin=BEGIN + timedelta(days=7 * WEEKS)).with_columns(pl.col("load") * 2)
    for days, kinds in ((13, {6, None}), (14, {None}), (8, {1, None})):
        end = BEGIN + timedelta(days=7 * WEEKS + days)
        ends = [(end - timedelta(days=of), end) for of in (1, 7)]
        window, week = (frame.filter(pl.col("time").is_between(*each, "left")) for each in ends)
        compared, _ = seasons.compare(WATCH, usual, window, week, TUESDAY)
        assert set(compared["kind"]) == kinds
    # The second of October is a Sunday, the third a holiday; in Berlin both begin at 22:00 of the day before.
    for at, asks in ((1, True), (2, False), (3, False), (4, True)):
        look = datetime(2016, 10, at, 3, tzinfo=UTC)
        assert bool(seasons.compare(WATCH, usual, window, week, look)[0].height) == asks


def test_what_all_do_is_told_as_that_and_what_one_does_alone_the_sooner() -> None:
    frame = rows(7 * WEEKS + 7, seed=1, sites=8)
    # A season that nobody expects: all rise and fall together, from week to week.
    week = pl.col("time").dt.ordinal_day() // 7
    swing = 1 + 0.3 * (week * 2.4).sin()
    edge = BEGIN + timedelta(days=7 * WEEKS)
    moved = frame.with_columns(pl.col("load") * swing)
    usual = learned(moved.filter(pl.col("time") < edge))
    today = moved.filter(pl.col("time") >= edge, pl.col("time") < edge + timedelta(days=1))
    one = pl.when(pl.col("site") == "S3").then(pl.col("load") * 0.7).otherwise("load")
    alone = found(usual, today.with_columns(load=one))["load by site"]
    assert alone.p < 1e-4
    assert alone.evidence.startswith("load of S3 is ")
    assert "load of all" not in alone.evidence
    together = found(usual, today.with_columns(pl.col("load") * 3))["load by site"]
    assert together.p < 1e-3
    assert "load of all lies" in together.evidence


def test_a_caller_cannot_name_an_entity_as_all_of_them_are_called(usual: pl.DataFrame) -> None:
    window = pl.concat([day(1), day(1).with_columns(site=pl.lit(seasons.ALL), load=pl.lit(1e9))])
    assert seasons.compare(WATCH, usual, window, window, TUESDAY)[0]["value"].max() < 10


def test_a_sunday_is_asked_about_the_saturday_before_it_where_a_feature_is_of_then() -> None:
    lagged = WATCH._replace(lags_us={"load_1d_ago": DAY_US})
    frame = rows(7 * WEEKS + 7, seed=3)
    ago = frame.select("site", pl.col("time") + timedelta(days=1), load_1d_ago="load")
    sunday = BEGIN + timedelta(days=7 * WEEKS + 6)
    usual = learned(ago.filter(pl.col("time") < BEGIN + timedelta(days=7 * WEEKS)), lagged)
    window = ago.filter(pl.col("time") >= sunday, pl.col("time") < sunday + timedelta(days=1))
    compared, outside = seasons.compare(lagged, usual, window, window, TUESDAY)
    assert (compared["kind"].to_list(), outside) == ([6, 6, 6], 0.0)
    assert compared["p"].to_numpy().min() > 0.001


def test_a_day_that_the_reference_hardly_had_lies_outside_and_is_no_alarm() -> None:
    # Two holidays alone: Good Friday and Easter Monday.
    frame = rows(120, seed=4).filter(pl.col("time") < datetime(2016, 4, 20, tzinfo=UTC))
    frame = frame.filter(pl.col("time") > datetime(2016, 1, 8, tzinfo=UTC))
    usual = learned(frame)
    holiday = rows(1, seed=5, begin=datetime(2016, 10, 2, 22, tzinfo=UTC)).with_columns(pl.col("load") * 9)
    compared, outside = seasons.compare(WATCH, usual, holiday, holiday, TUESDAY)
    assert (outside, compared.height) == (1.0, 0)
    assert seasons.findings(WATCH, compared, SPENT) == []


@pytest.mark.parametrize("hours", [24, 1, 6, 168], ids="{}h".format)
def test_p_values_of_undisturbed_windows_are_never_too_small(hours: int) -> None:
    asked = []
    for seed in range(6):
        frame = rows(7 * WEEKS + 14, seed=100 + seed, sites=8)
        edge = BEGIN + timedelta(days=7 * WEEKS)
        usual = learned(frame.filter(pl.col("time") < edge))
        for at in range(0, 14 * 24 - hours + 1, max(24, hours)):
            since = edge + timedelta(hours=at)
            window = frame.filter(pl.col("time") >= since, pl.col("time") < since + timedelta(hours=hours))
            week = frame.filter(pl.col("time") >= since + timedelta(hours=hours - 168))
            week = week.filter(pl.col("time") < since + timedelta(hours=hours))
            compared, _ = seasons.compare(WATCH, usual, window, week, TUESDAY)
            asked += compared["p"].to_list()
    p = np.array(asked)
    # A difference that does not matter is asked with 1.0: what is below must be rarer than it says.
    for level in (0.05, 0.01, 0.001):
        assert (p <= level).mean() <= level + 3 * np.sqrt(level / len(p))


@pytest.mark.parametrize(("hours", "begins"), [(24, 1), (1, 0), (6, 3)], ids="{}h".format)
def test_p_values_hold_where_windows_begin_at_any_hour_and_hours_are_alike(hours: int, begins: int) -> None:
    """Hours that follow each other resemble each other, and a window has parts of two days."""
    asked, random = [], np.random.default_rng(3)
    for seed in range(4):
        frame = rows(7 * WEEKS + 14, seed=200 + seed, sites=8, noise=0.0).sort("site", "time")
        steps = random.normal(0, 0.05, (8, frame.height // 8))
        noise = np.zeros_like(steps)
        for at in range(1, steps.shape[1]):
            noise[:, at] = 0.95 * noise[:, at - 1] + steps[:, at]
        frame = frame.with_columns(load=pl.col("load") + pl.Series(noise.ravel()))
        edge = BEGIN + timedelta(days=7 * WEEKS)
        usual = learned(frame.filter(pl.col("time") < edge))
        for at in range(begins, 13 * 24, 24 if hours == 24 else 13):
            ends = [edge + timedelta(hours=at), edge + timedelta(hours=at + hours)]
            window = frame.filter(pl.col("time").is_between(*ends, "left"))
            week = frame.filter(pl.col("time").is_between(ends[1] - timedelta(days=7), ends[1], "left"))
            asked += seasons.compare(WATCH, usual, window, week, TUESDAY)[0]["p"].to_list()
    p = np.array(asked)
    for level in (0.05, 0.01, 0.001):
        assert (p <= level).mean() <= level + 3 * np.sqrt(level / len(p))


def test_p_values_hold_where_fewer_rows_are_asked_for_than_there_were() -> None:
    random = np.random.default_rng(5)

    def many(days: int, begin: datetime, of_an_hour: int) -> pl.DataFrame:
        frame = rows(days, seed=int(random.integers(1_000)), begin=begin, sites=6, noise=0.02)
        often = frame.select(pl.all().repeat_by(of_an_hour).explode())
        shift = pl.int_range(often.height) % of_an_hour * (3_600 // of_an_hour)
        load = pl.col("load") + pl.Series(random.normal(0, 1.0, often.height))
        return often.select("site", pl.col("time") + pl.duration(seconds=shift), load.alias("load"))

    usual = learned(many(70, BEGIN, 20))
    asked: list[float] = []
    for at in range(40):
        window = many(1, BEGIN + timedelta(days=71 + at), 1)
        asked += seasons.compare(WATCH, usual, window, window, TUESDAY)[0]["p"].to_list()
    p = np.array(asked)
    for level in (0.05, 0.01, 0.001):
        assert (p <= level).mean() <= level + 3 * np.sqrt(level / len(p))


def test_what_is_no_number_and_what_is_of_no_time_is_left_out(usual: pl.DataFrame) -> None:
    odd = [(math.inf, 0), (-math.inf, 0), (math.nan, 0), (9e9, 365 * 40)]
    rows_of = [
        day(1)
        .filter(pl.col("time").dt.hour() == 5)
        .with_columns(load=pl.lit(value), time=pl.col("time") + timedelta(days=days))
        for value, days in odd
    ]
    early = rows_of[0].with_columns(time=pl.lit(datetime(2, 1, 1, tzinfo=UTC)).cast(pl.Datetime("us", "UTC")))
    window = pl.concat([day(1), *rows_of, early.with_columns(load=pl.lit(7e7))], how="vertical_relaxed")
    plain, found_ = (seasons.compare(WATCH, usual, each, each, TUESDAY) for each in (day(1), window))
    polars.testing.assert_frame_equal(plain[0], found_[0])


def test_however_often_a_row_is_asked_for_it_is_one(usual: pl.DataFrame) -> None:
    window = day(2)
    often = pl.concat([window, *[window.filter(pl.col("time").dt.hour() == 12)] * 50])
    one, other = (seasons.compare(WATCH, usual, each, each, TUESDAY)[0] for each in (window, often))
    polars.testing.assert_frame_equal(one, other)


def test_a_constant_is_no_difference_until_it_changes() -> None:
    usual = learned(rows(7 * WEEKS, seed=1).with_columns(load=pl.lit(0.3)))
    same = found(usual, day(0).with_columns(load=pl.lit(0.3)))["load by site"]
    other = found(usual, day(0).with_columns(load=pl.lit(0.4)))["load by site"]
    # Of weeks in which nothing ever changed, so many: it may be the first time.
    assert (same.matters, other.matters, other.p) == (False, True, 1 / 25)


def test_missing_hours_and_entities_never_seen_are_left_out(usual: pl.DataFrame) -> None:
    window = day(3).with_columns(pl.when(pl.col("site") == "S0").then(None).otherwise("load").alias("load"))
    window = pl.concat([window, window.with_columns(site=pl.lit("new"), load=pl.lit(1e6))])
    compared, outside = seasons.compare(WATCH, usual, window, window, TUESDAY)
    assert compared[seasons.ENTITY].to_list() == ["S1", "S2"]
    assert outside == pytest.approx(1 / 3)


def test_what_is_usual_is_the_same_after_it_was_written(usual: pl.DataFrame) -> None:
    file = io.BytesIO()
    usual.write_parquet(file)
    assert pl.read_parquet(io.BytesIO(file.getvalue())).equals(usual)


def test_a_window_of_nothing_asks_nothing(usual: pl.DataFrame) -> None:
    compared, outside = seasons.compare(WATCH, usual, day(0).clear(), day(0).clear(), TUESDAY)
    assert (compared.height, outside) == (0, 0.0)


def test_entities_that_come_once_are_rows_that_could_change_places() -> None:
    frame = rows(30, seed=1)
    assert seasons.recurs(WATCH, frame)
    each = frame.with_row_index().with_columns(site=pl.col("index").cast(pl.String))
    assert not seasons.recurs(WATCH, each)


def feature_set(**hidden: bool) -> FeatureSet:
    columns = (
        Column("site", "category", hidden=hidden.get("site", False)),
        Column("load_3d_ago", "float"),
        Column("load_2d_ago", "float"),
        Column("salary", "float", hidden=True),
        Column("mean_7d", "float"),
        Column("price", "float"),
        Column("ratio", "float"),
        Column("hour", "int"),
        Column("kind", "category"),
    )
    return FeatureSet(
        request=Schema((columns[0], Column("time", "datetime"))),
        columns=columns,
        stored=(
            Stored("load_3d_ago", "meter", ("site",), "load", "value_at", ago_us=3 * DAY_US),
            Stored("load_2d_ago", "meter", ("site",), "load", "value_at", ago_us=2 * DAY_US),
            Stored("salary", "staff", ("site",), "salary", "latest"),
            Stored("price", "market", ("site",), "price", "latest"),
            Stored("mean_7d", "meter", ("site",), "load", "window", "mean", over_us=7 * DAY_US),
        ),
        computed=(
            Computed("ratio", "expr", "load / 2"),
            Computed("hour", "hour_of", "time", "Europe/Berlin", shift_us=-3_600_000_000),
            Computed("off", "holiday_of", "time", "Europe/Berlin", "DE", -3_600_000_000),
        ),
        tables=(),
        horizon_us=DAY_US,
        time="time",
    )


def test_amounts_that_people_may_see_are_watched_each_of_its_own_time() -> None:
    watch = Watch.of(feature_set(), ["site"])
    # The mean of seven days says later what the load of two days ago does.
    assert watch.lags_us == {"load_2d_ago": 2 * DAY_US, "price": DAY_US, "ratio": 0, "prediction": 0}
    assert watch.calendar == Calendar("Europe/Berlin", "DE", -3_600_000_000)


def test_of_entities_that_people_may_not_see_nothing_is_kept() -> None:
    watch = Watch.of(feature_set(site=True), ["site"])
    assert watch.lags_us == {}
    assert learned(rows(60, seed=1), watch).is_empty()
