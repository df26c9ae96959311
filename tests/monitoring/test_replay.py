"""A past period through the monitor: it sees what it would have seen, and a course of time is no alarm."""

import io
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from mlops_ray.data import labels, prediction_log
from mlops_ray.data.counts import Counts, reference
from mlops_ray.monitoring import journal, looks, performance, period, replay, seasons
from mlops_ray.monitoring.alarms import Alarms, Budget
from mlops_ray.monitoring.looks import Evidence, Release
from mlops_ray.monitoring.seasons import Watch
from mlops_ray.monitoring.state import Closed, ModelState, Outlook
from mlops_ray.registry.predictor import Predictor
from mlops_ray.schema import Column
from mlops_ray.storage import Storage
from tests.serving import packages

BEGIN = datetime(2026, 1, 5, tzinfo=UTC)  # Monday
WEEKS, DAY_S, HOUR_US = 12, 86_400.0, 3_600_000_000
EDGE = BEGIN + timedelta(weeks=WEEKS)


def rows(begin: datetime, days: int, seed: int) -> pl.DataFrame:
    """Three sites that rest at night and on Sundays; what is predicted is what they have, roughly."""
    random = np.random.default_rng(seed)
    times = pl.datetime_range(
        begin, begin + timedelta(days=days), "1h", closed="left", time_unit="us", eager=True
    )
    rests = (times.dt.weekday() == 7) | (times.dt.hour() < 6)
    parts = []
    for site, level in (("a", 10.0), ("b", 30.0), ("c", 20.0)):
        load = np.where(rests, 0.2, 1.0) * level + random.normal(0, 0.5, len(times))
        label = load + random.normal(0, 1.0, len(times))
        parts.append(pl.DataFrame({"site": site, "time": times, "load": load, "label": label}))
    frame = pl.concat(parts).sort("time", "site")
    return frame.with_columns(amount="load", hour=pl.col("time").dt.hour().cast(pl.Int64))


@dataclass
class World:
    storage: Storage
    release: Release
    predictor: Predictor

    def log(self, frame: pl.DataFrame) -> pl.DataFrame:
        return replay.log(self.release, frame, self.predictor.predict_features, 24 * HOUR_US)

    def replay(self, frame: pl.DataFrame) -> replay.Replayed:
        return replay.replay(self.release, self.log(frame), DAY_S, Budget())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("replay")
    storage, project = Storage.open(str(folder)), packages.project(folder)
    known = rows(BEGIN, 7 * WEEKS, seed=1).with_columns(prediction="load")
    plain = packages.write(storage.path("packages", "plain"), project, 1.0)
    expected, errors = performance.expect(
        "regression",
        "mae",
        known["label"].to_numpy(),
        known["prediction"].to_numpy(),
        known["time"].dt.ordinal_day().cast(pl.Int64).to_numpy(),
        matrix=plain.encoder.transform(known),
    )
    watch = Watch.of(plain.feature_set, ["site"])
    usual = io.BytesIO()
    seasons.learn(watch, known, known).write_parquet(usual)
    columns = [*plain.feature_set.columns, Column("prediction", "float")]
    packed = packages.write(
        storage.path("packages", "one"),
        project,
        1.0,
        expected=replace(expected, importance={"amount": 3.0, "hour": 1.0}).to_json(),
        errors=errors,
        seasons=usual.getvalue(),
        origin={"keys": ["site"]},
        reference=reference(known, columns, 7).to_json(),
    )
    packages.crown(storage, packages.NAME, 1, packed)
    release = looks.releases(storage, packages.NAME)["1"]
    return World(storage, release, Predictor.load(packed.folder, None))


def test_nights_and_sundays_open_no_alarm(world: World) -> None:
    found = world.replay(rows(EDGE, 21, seed=2))
    assert len(found.looks) == 21
    assert found.alarms.episodes == []
    asked = {finding["about"]: finding["p"] for look in found.looks for finding in look["findings"]}
    assert {"amount by site", "prediction by site", "realised mae"} <= set(asked)
    assert {look["outside"] for look in found.looks} == {0.0}


def test_a_site_that_has_half_opens_one_on_the_day_and_is_named(world: World) -> None:
    frame = rows(EDGE, 10, seed=3)
    is_half = (pl.col("site") == "b") & (pl.col("time") >= EDGE + timedelta(days=4))
    halved = [
        pl.when(is_half).then(pl.col(name) / 2).otherwise(name).alias(name) for name in ("load", "amount")
    ]
    (episode, *_) = world.replay(frame.with_columns(halved)).alarms.episodes
    assert datetime.fromtimestamp(episode.opened, UTC) == EDGE + timedelta(days=5)
    assert episode.found["amount by site"]["evidence"].startswith("amount of b is ")
    assert " of a " not in episode.found["amount by site"]["evidence"]


def test_a_column_does_as_much_harm_as_the_model_makes_of_it(world: World) -> None:
    frame = rows(EDGE, 1, seed=7).with_columns(pl.col("amount") * 2, pl.col("load") * 2)
    found = {each["about"]: each for each in world.replay(frame).looks[0]["findings"]}
    even = replace(world.release, expected=replace(world.release.expected, importance={}))
    plain = replay.replay(even, world.log(frame), DAY_S, Budget()).looks[0]["findings"]
    harms = {each["about"]: each["harm"] for each in plain}
    assert found["amount by site"]["harm"] == pytest.approx(1.5 * harms["amount by site"])
    assert found["prediction by site"]["harm"] == harms["prediction by site"] > 0


def test_a_replay_sees_what_the_live_monitor_saw(world: World) -> None:
    frame = rows(EDGE, 9, seed=4).with_columns(amount=pl.col("amount") * 1.5)
    seen = world.replay(frame)
    live = live_looks(world, frame)
    assert len(live) == len(seen.looks)
    for one, other in zip(live, seen.looks, strict=True):
        for key in ("since", "until", "rows", "columns", "outside"):
            assert one[key] == pytest.approx(other[key]), key
        assert one["found"] == list(other["found"])
        for asked, again in zip(one["findings"], other["findings"], strict=True):
            assert (asked["about"], asked["evidence"]) == (again["about"], again["evidence"])
            assert asked["p"] == pytest.approx(again["p"])
        assert one["quality"]["realised"] == pytest.approx(other["quality"]["realised"])


def live_looks(world: World, frame: pl.DataFrame) -> list[dict[str, object]]:
    """The same rows in the log and the labels, and the windows closed one after another."""
    log = world.log(frame)
    numbered = (
        log.drop("label", "known_at")
        .with_row_index("request_id")
        .with_columns(
            pl.col("request_id").cast(pl.String),
            row=pl.lit(0, pl.Int32),
            model_version=pl.lit("1"),
            route=pl.lit("champion"),
            latency_us=pl.lit(100),
        )
    )
    for (day,), part in numbered.group_by(pl.col("at").dt.date()):
        path = world.storage.path(prediction_log.FOLDER, packages.NAME, f"date={day}", "one.parquet")
        part.write_parquet(path)
    true = log.with_row_index("request_id").select(
        pl.col("request_id").cast(pl.String), "label", "known_at", row=pl.lit(0, pl.Int32)
    )
    for (day,), part in true.group_by(pl.col("known_at").dt.date()):
        part.write_parquet(world.storage.path(labels.FOLDER, packages.NAME, f"date={day}", "one.parquet"))
    state = ModelState(packages.NAME, alarms=Alarms(EDGE.timestamp()))
    for day in range(9):
        since = EDGE.timestamp() + day * DAY_S
        inside = frame.filter(pl.col("time").dt.timestamp() // 1_000_000 >= since)
        inside = inside.filter(pl.col("time").dt.timestamp() // 1_000_000 < since + DAY_S)
        counts = Counts.empty(world.release.reference.specs)
        counts.update(inside.with_columns(prediction="amount"))
        window = Closed("1", since, since + DAY_S, counts)
        outlook = Outlook(packages.NAME, Budget(), state.alarms.looked_at if state.alarms else 0.0)
        looks.settle(world.storage, state, window, looks.see(world.storage, outlook, window))
    return journal.read(world.storage, packages.NAME, journal.LOOKS)


def test_a_window_of_few_rows_goes_on_and_an_empty_period_has_none(world: World) -> None:
    frame = rows(EDGE, 4, seed=5).filter(pl.col("time").dt.hour() % 2 == 0)
    found = world.replay(frame)
    # 36 rows a day: a window closes with 50, after two days.
    assert [(look["until"] - look["since"]) / DAY_S for look in found.looks] == [2.0, 2.0]
    assert world.replay(frame.clear()).looks == []


def test_its_page_needs_no_outside_address(world: World) -> None:
    found = world.replay(rows(EDGE, 5, seed=6).with_columns(amount=pl.col("amount") * 3))
    page = period.html(period.described(packages.NAME, found.looks, looks.told(found.alarms)))
    assert "amount of " in page
    assert "Outside the reference" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def test_a_log_without_rows_leaves_the_counts_to_be_asked(world: World) -> None:
    counts = Counts.empty(world.release.reference.specs)
    counts.update(rows(EDGE, 3, seed=8).with_columns(amount=pl.lit(None, pl.Float64), prediction=pl.lit(1.0)))
    window = Closed("1", EDGE.timestamp() + 40 * DAY_S, EDGE.timestamp() + 41 * DAY_S, counts)
    outlook = Outlook(packages.NAME, Budget(), EDGE.timestamp() + 40 * DAY_S)
    seen = looks.see(world.storage, outlook, window)
    assert seen.look.found == ("amount",)


def test_what_only_machines_may_read_since_is_not_told_of_entities(world: World) -> None:
    frame = rows(EDGE, 7, seed=9).with_columns(pl.col("amount") * 3)
    log = world.log(frame)
    shown = [name for name in log.columns if name != "feature.amount"]
    given = Evidence(log, log, shown, None, ({}, []), None, None)
    counts = Counts.empty(world.release.reference.specs)
    counts.update(frame.with_columns(prediction="amount"))
    until = EDGE.timestamp() + 8 * DAY_S
    seen = looks.judge(world.release, Closed("1", until - DAY_S, until, counts), 0.01, given)
    assert "amount by site" not in {finding.about for finding in seen.look.findings}
    assert "prediction by site" in {finding.about for finding in seen.look.findings}
