"""History, training set and online store agree, and no feature is younger than P."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mlops_ray import config
from mlops_ray.config import Project
from mlops_ray.data import blocks, inputs
from mlops_ray.errors import ConfigError, StorageError
from mlops_ray.features import dataset
from mlops_ray.features.definitions import FeatureSet, compile_features
from mlops_ray.features.history import History, Snapshot, clock, read
from mlops_ray.features.lookup import point_in_time
from mlops_ray.features.materialize import materialize
from mlops_ray.features.online import OnlineStore
from mlops_ray.schema import INSTANT
from mlops_ray.storage import Storage

from ..conftest import EXAMPLE

HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def features(example: Project) -> FeatureSet:
    return compile_features(example)


@pytest.fixture(scope="module")
def raw(example: Project) -> pl.DataFrame:
    source = example.sources["meter"]
    files = inputs.find(source, "meter")
    return pl.concat([v.valid for file in files for v in blocks.check_file(file, source)])


@pytest.fixture(scope="module")
def snapshot(
    example: Project, features: FeatureSet, raw: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory
) -> Snapshot:
    history = History.of(tmp_path_factory.mktemp("features"), features.tables[0])
    history.append(raw, example.sources["meter"], "first")
    return history.snapshot()


@pytest.fixture(scope="module")
def hourly(snapshot: Snapshot) -> pl.DataFrame:
    return read(snapshot)


def test_a_year_has_8784_hours_for_each_site_and_none_twice(hourly: pl.DataFrame) -> None:
    counts = hourly.group_by("site").agg(pl.len(), pl.col("event_time").n_unique().alias("unique"))
    assert counts.select("len", "unique").unique().rows() == [(8784, 8784)]
    assert hourly["event_time"].min() == datetime(2016, 1, 1, 0, tzinfo=UTC)
    assert hourly["event_time"].max() == datetime(2016, 12, 31, 23, tzinfo=UTC)


def test_an_hour_is_the_mean_of_its_quarters_and_stamped_with_its_end(
    raw: pl.DataFrame, hourly: pl.DataFrame
) -> None:
    end = datetime(2016, 10, 30, 1, tzinfo=UTC)
    quarters = raw.filter((pl.col("event_time") >= end - HOUR) & (pl.col("event_time") < end))
    expected = quarters.group_by("site").agg(pl.col("load").mean()).sort("site")["load"].to_numpy()
    found = hourly.filter(pl.col("event_time") == end).sort("site")["load"].to_numpy()
    assert quarters.height == 4 * 21
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_no_feature_is_younger_than_p(
    example: Project, features: FeatureSet, raw: pl.DataFrame, snapshot: Snapshot, tmp_path: Path
) -> None:
    """For 50 random P, every raw value after P is changed; all features up to that P stay as they were."""
    spine_of = example.target.model_dump(mode="json", include={"expr", "where"})
    rows = dataset.spine(spine_of, snapshot, features).drop("label")
    generator = np.random.default_rng(7)
    before = point_in_time(rows, {"meter": read(snapshot)}, features)
    horizon = timedelta(microseconds=features.horizon_us)
    history = History.of(tmp_path, features.tables[0])
    for offset in generator.choice(8784 - 24, size=50, replace=False).tolist():
        p = datetime(2016, 1, 1, tzinfo=UTC) + offset * HOUR
        # Rows around P are those that a mistake would show in first.
        near = rows["time"].is_between(p + horizon - 40 * HOUR, p + horizon)
        seen = raw.filter(pl.col("event_time").is_between(p - 33 * 24 * HOUR, p + 48 * HOUR))
        changed = seen.with_columns(
            load=pl.col("load") + pl.when(pl.col("event_time") >= p).then(9).otherwise(0)
        )
        history.append(changed, example.sources["meter"], str(p))
        asked = rows.filter(near)
        found = point_in_time(asked, {"meter": read(history.snapshot(), columns=["load"])}, features)
        reached = asked["time"] >= datetime(2016, 2, 1, tzinfo=UTC)
        assert found.filter(reached).equals(before.filter(near).filter(reached)), p
        shutil.rmtree(history.folder)


@pytest.fixture
def held(example: Project, features: FeatureSet, raw: pl.DataFrame, storage: Storage) -> dict[str, Snapshot]:
    """The whole year's history under a storage of the test's own."""
    history = History.of(storage.path("features", "x").parent, features.tables[0])
    history.append(raw, example.sources["meter"], "first")
    return {"meter": history.snapshot()}


def test_online_at_p_equals_offline_at_p(
    example: Project, features: FeatureSet, raw: pl.DataFrame, storage: Storage
) -> None:
    now = datetime(2016, 11, 13, 10, tzinfo=UTC)
    history = History.of(storage.path("features", "x").parent, features.tables[0])
    history.append(raw.filter(pl.col("event_time") < now), example.sources["meter"], "until now")
    snapshot = history.snapshot()
    store = OnlineStore(storage.path("online.db"))
    assert materialize(store, features, {"meter": snapshot}) == {"meter": now}
    table = read(snapshot)
    last = table.filter(pl.col("event_time") > now - timedelta(hours=24))
    asked = last.select("site", (pl.col("event_time") + timedelta(hours=24)).alias("time"))
    asked = pl.concat([asked, asked.head(1).with_columns(pl.lit("unknown").alias("site"))]).sample(
        fraction=1, shuffle=True, seed=1
    )
    found, failures, _ = store.read(features, asked)
    assert failures.select("rule", "value", "severity").rows() == [("no_history", "unknown", "flag")]
    assert found.equals(point_in_time(asked, {"meter": table}, features))
    for index in (0, 7, asked.height - 1):
        assert store.read(features, asked[index : index + 1])[0].equals(found[index : index + 1])


def test_a_read_past_the_watermark_or_too_far_back_is_refused(
    features: FeatureSet, hourly: pl.DataFrame, held: dict[str, Snapshot], storage: Storage
) -> None:
    store = OnlineStore(storage.path("online.db"))
    row = pl.DataFrame(
        {"site": ["BL-H"], "time": [datetime(2017, 1, 1, tzinfo=UTC)]},
        schema_overrides={"time": hourly.schema["event_time"]},
    )
    with pytest.raises(StorageError, match="materialise first"):
        store.read(features, row)
    materialize(store, features, held)
    last = datetime(2017, 1, 1, 23, tzinfo=UTC)
    first = last - 48 * HOUR
    assert store.bounds(features) == (first, last)
    for time, rule in (
        (first - HOUR, "too_old"),
        (first, None),
        (last, None),
        (last + HOUR, "watermark"),
    ):
        _, failures, _ = store.read(
            features, row.with_columns(pl.lit(time).cast(row.schema["time"]).alias("time"))
        )
        assert failures["rule"].to_list() == ([rule] if rule else [])


def test_a_training_set_is_the_same_again_and_its_digest_sees_every_value(
    example: Project, features: FeatureSet, held: dict[str, Snapshot], storage: Storage
) -> None:
    first = dataset.build(example, features, held, storage)
    again = dataset.build(example, features, held, storage)
    assert first.manifest["digest"] == again.manifest["digest"]
    assert dataset.open_set(storage, first.path.name).frame.equals(first.frame)
    assert first.frame.null_count().sum_horizontal().item() == 0
    changed = first.frame.with_columns(
        label=pl.when(pl.int_range(pl.len()) == 5).then(0.5).otherwise("label")
    )
    assert dataset.values_digest(changed) != first.manifest["digest"]


def test_features_survive_json_and_their_digest_is_that_of_the_definitions(
    example: Project, features: FeatureSet
) -> None:
    assert FeatureSet.from_json(features.to_json()) == features
    assert FeatureSet.from_json(features.to_json()).digest == features.digest
    view = example.features["site_load"]
    other = example.model_copy(update={"features": {"renamed": view, "request": example.features["request"]}})
    assert compile_features(other).digest == features.digest


def test_a_request_cannot_read_what_it_does_not_hold(tmp_path: Path) -> None:
    wrong = EXAMPLE.read_text().replace("hour: {hour_of: time}", "hour: {expr: lod * 2}")
    (tmp_path / "project.yaml").write_text(wrong)
    with pytest.raises(ConfigError, match="reads 'lod', which a request does not hold; did you mean 'load'"):
        compile_features(config.load(tmp_path / "project.yaml", {}))


def test_an_interval_that_waits_for_rows_is_not_known_yet(
    example: Project, features: FeatureSet, raw: pl.DataFrame, tmp_path: Path
) -> None:
    history = History.of(tmp_path, features.tables[0])
    end = datetime(2016, 2, 1, 12, tzinfo=UTC)
    history.append(raw.filter(pl.col("event_time") <= end + HOUR / 4), example.sources["meter"], "a")
    snapshot = history.snapshot()
    assert clock(snapshot) == end + HOUR / 2
    labelled = dataset.spine({"expr": "load", "where": None}, snapshot, features)
    assert labelled["time"].max() == end


def test_a_target_time_between_two_intervals_is_refused(
    features: FeatureSet, held: dict[str, Snapshot], storage: Storage
) -> None:
    store = OnlineStore(storage.path("online.db"))
    materialize(store, features, held)
    times = [datetime(2017, 1, 1, 12, minute, tzinfo=UTC) for minute in (0, 20)]
    rows = pl.DataFrame({"site": ["BL-H"] * 2, "time": times}, schema_overrides={"time": INSTANT})
    _, failures, _ = store.read(features, rows)
    assert failures.select("row", "rule", "severity").rows() == [(1, "off_grid", "reject")]
