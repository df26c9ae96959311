"""What was served is compared with the history as it was known then: only what was never right differs."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings

from mlops_ray.data.prediction_log import ASKED, FEATURE
from mlops_ray.features.definitions import FeatureSet, Stored
from mlops_ray.features.history import Snapshot
from mlops_ray.features.materialize import materialize
from mlops_ray.features.online import OnlineStore
from mlops_ray.monitoring import skew
from mlops_ray.schema import INSTANT, Schema
from tests.features.cases import micros
from tests.features.test_online import (
    BACK_LOADED,
    COUNT,
    FRESH,
    LATEST,
    NOON,
    SOURCE,
    SUM,
    Growing,
    asked,
    at,
    feature_set,
    refused,
)
from tests.features.worlds import World, worlds

NOTHING, HOUR = timedelta(0), timedelta(hours=1)
#: A value that no history of these tests has, nor any sum of such.
FOREIGN = 123_456.789


def logged(store: OnlineStore, features: FeatureSet, rows: pl.DataFrame, at: datetime) -> pl.DataFrame:
    """What the log has of the rows that the store answers, at a moment."""
    found, failures, watermark_us = store.read(features, rows)
    answered = [row for row in range(rows.height) if row not in refused(failures)]
    columns = [column.alias(ASKED + column.name) for column in rows]
    columns += [column.alias(FEATURE + column.name) for column in found]
    return pl.DataFrame(columns)[answered].with_columns(
        pl.lit(at).cast(INSTANT).alias("at"),
        pl.lit(watermark_us, pl.Int64).cast(INSTANT).alias("watermark"),
        pl.lit(1.0).alias("prediction"),
    )


def counts(found: Sequence[skew.Skew]) -> dict[str, tuple[int, int]]:
    return {each.column: (each.differ, each.rows) for each in found}


# ---------------------------------------------------------------- at random


@settings(
    max_examples=25,
    derandomize=True,
    database=None,
    deadline=None,
    # A world takes a tenth of a second: to find the smallest that fails would take minutes.
    phases=(Phase.generate,),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(world=worlds())
def test_whatever_was_stored_and_asked_when_no_value_that_was_served_differs_and_a_foreign_one_does(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Live and back-loaded, late, corrected and deleted, resampled, strict, by ttl, with and without keys."""
    monkeypatch.setattr(skew, "SAMPLE", 100_000)
    known = [commit for commit in world.commits if world.is_known(commit)]
    assume(known)
    with tempfile.TemporaryDirectory() as folder:
        store, log = OnlineStore(str(Path(folder) / "online.db")), []
        for commit in known:
            materialize(store, world.features, world.snapshots(Path(folder), commit))
            rows = world.asked(sorted(world.times()))
            log.append(logged(store, world.features, rows, micros(commit)))
        held = world.snapshots(Path(folder), known[-1])
        rows = pl.concat(log)
        assume(rows.height)
        found = skew.compare(world.features, held, rows, clocks=NOTHING)
        assert [each for each in found if each.differ] == []
        assert all(each.rows == rows.height for each in found)
        numbers = [c.name for c in world.features.columns if c.type == "float"]
        foreign = rows.with_columns(pl.lit(FOREIGN).alias(FEATURE + name) for name in numbers)
        tampered = counts(skew.compare(world.features, held, foreign, clocks=NOTHING))
        assert {tampered[name] for name in numbers} <= {(rows.height, rows.height)}
        store.close()


# ---------------------------------------------------------------- by hand


def live(folder: Path, *stored: Stored) -> tuple[Growing, FeatureSet, OnlineStore]:
    history = Growing(folder, SOURCE, datetime.now(UTC) - 3 * HOUR)
    return history, feature_set(history.view, *stored), OnlineStore(folder / "online.db")


def now() -> datetime:
    return datetime.now(UTC)


def test_a_value_that_was_tampered_with_is_found_and_named(tmp_path: Path) -> None:
    history, features = Growing(tmp_path), feature_set(Growing(tmp_path).view, LATEST, SUM)
    store = OnlineStore(tmp_path / "online.db")
    held = {"s": history.commit(*(("a", hour, 0.25 + hour) for hour in range(30)))}
    materialize(store, features, held)
    log = logged(store, features, asked(*(("a", at(hour)) for hour in range(20, 30))), now())
    assert counts(skew.compare(features, held, log)) == {"latest": (0, 10), "sum": (0, 10)}
    wrong = pl.when(pl.col("request.t") >= at(28)).then(0.3).otherwise("feature.latest")
    latest, total = skew.compare(features, held, log.with_columns(wrong.alias("feature.latest")))
    assert (latest.column, latest.rows, latest.differ, total.differ) == ("latest", 10, 2, 0)
    assert latest.example in (
        "0.3 instead of 28.25 for a at 2020-06-02T16:00",
        "0.3 instead of 29.25 for a at 2020-06-02T17:00",
    )
    # What is missing in both is the same; what float32 rounds is.
    none = logged(store, features, asked(("stranger", at(29))), now())
    assert counts(skew.compare(features, held, none)) == {"latest": (0, 1), "sum": (0, 1)}
    rounded = log.with_columns(pl.col("feature.sum").cast(pl.Float32).cast(pl.Float64))
    assert counts(skew.compare(features, held, rounded))["sum"] == (0, 10)
    lost = log.with_columns(pl.lit(None, pl.Float64).alias("feature.sum"))
    assert counts(skew.compare(features, held, lost))["sum"] == (10, 10)


def test_data_that_come_late_are_no_skew_and_a_record_that_was_left_behind_is(tmp_path: Path) -> None:
    history, features, store = live(tmp_path, SUM, COUNT)
    early = history.commit(("a", 0, 1.0))
    materialize(store, features, {"s": early})
    log = logged(store, features, asked(("a", now())), now())
    late = history.commit(("a", 1, 2.0), ("a", 0, None, True))
    held = {"s": late}
    assert counts(skew.compare(features, held, log, clocks=NOTHING)) == {"sum": (0, 1), "count": (0, 1)}
    # A store that says it knows the second commit, and serves the first.
    behind = log.with_columns(pl.lit(late.as_of.committed_at).alias("watermark"), pl.lit(now()).alias("at"))
    (total, count) = skew.compare(features, held, behind, clocks=NOTHING)
    assert (total.differ, count.differ) == (1, 0)
    assert total.example.startswith("1 instead of 2 for a at ")


def test_what_a_store_may_have_known_between_its_watermark_and_the_answer_is_no_skew(tmp_path: Path) -> None:
    """Of several tables the log has the least watermark: each state since then may have been served."""
    history, features, store = live(tmp_path, SUM)
    states, moment = [], now()
    for number in range(5):
        held = {"s": history.commit(("a", number / 10, 2.0**number))}
        materialize(store, features, held)
        states.append(logged(store, features, asked(("a", moment)), now()))
    assert [log["feature.sum"].item() for log in states] == [1.0, 3.0, 7.0, 15.0, 31.0]
    last = states[-1].select("at").to_series()
    since = states[0]["watermark"]
    for log in states:
        row = log.with_columns(last, since)
        assert counts(skew.compare(features, held, row, clocks=NOTHING)) == {"sum": (0, 1)}
    wrong = states[2].with_columns(last, since, pl.lit(8.0).alias("feature.sum"))
    assert counts(skew.compare(features, held, wrong, clocks=NOTHING)) == {"sum": (1, 1)}


def test_a_history_that_was_made_anew_since_tells_nothing(tmp_path: Path) -> None:
    history, features, store = live(tmp_path, SUM)
    materialize(store, features, {"s": history.commit(("a", 0, 1.0))})
    log = logged(store, features, asked(("a", now())), now())
    (tmp_path / "other").mkdir()
    anew = Growing(tmp_path / "other", SOURCE, history.begin)
    held = {"s": anew.commit(("a", 0, 2.0))}
    assert skew.compare(features, held, log, clocks=NOTHING) == []


def test_back_loaded_rows_that_are_stored_later_are_no_skew(tmp_path: Path) -> None:
    history = Growing(tmp_path)
    features, store = feature_set(history.view, SUM, FRESH), OnlineStore(tmp_path / "online.db")
    materialize(store, features, {"s": history.commit(("a", 0, 1.0), ("a", 2, 4.0))})
    log = logged(store, features, asked(("a", at(2))), now())
    # It happened before the watermark, and was stored after the answer.
    held = {"s": history.commit(("a", 1, 2.0), ("a", 3, 8.0))}
    assert counts(skew.compare(features, held, log, clocks=NOTHING)) == {"sum": (0, 1), "fresh": (0, 1)}
    nothing = log.with_columns(pl.lit(None, pl.Float64).alias("feature.sum"))
    assert counts(skew.compare(features, held, nothing, clocks=NOTHING))["sum"] == (1, 1)


def held_with_an_error(
    tmp_path: Path, hide: Sequence[str]
) -> tuple[FeatureSet, dict[str, Snapshot], pl.DataFrame]:
    history = Growing(tmp_path)
    features, store = feature_set(history.view, LATEST), OnlineStore(tmp_path / "online.db")
    held = {"s": history.commit(("secret", 0, 41.5))}
    materialize(store, features, held)
    log = logged(store, features, asked(("secret", at(0)), ("secret", at(0))), now())
    request = Schema(tuple(replace(c, hidden=c.name in hide) for c in features.request.columns))
    columns = tuple(replace(c, hidden=c.name in hide) for c in features.columns)
    features = replace(features, request=request, columns=columns)
    return features, held, log.with_columns(pl.lit(77.7).alias("feature.latest"))


def test_no_value_of_a_machine_only_column_is_told(tmp_path: Path) -> None:
    for number, (hide, example) in enumerate(
        [
            ((), "77.7 instead of 41.5 for secret at 2020-06-01T12:00"),
            (("k",), "77.7 instead of 41.5 at 2020-06-01T12:00"),
            (("k", "t"), "77.7 instead of 41.5"),
            (("latest",), ""),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        features, held, log = held_with_an_error(folder, hide)
        assert skew.compare(features, held, log) == [skew.Skew("latest", 2, 2, example)]
        # Also what the package does not know to be hidden, and the log does.
        plain = replace(features, columns=tuple(replace(c, hidden=False) for c in features.columns))
        (found,) = skew.compare(plain, held, log, frozenset({"request.k", "feature.latest"}))
        assert (found.differ, found.example) == (2, "")


def test_a_machine_only_value_that_the_log_does_not_know_is_no_null(tmp_path: Path) -> None:
    features, held, log = held_with_an_error(tmp_path, ("latest", "k"))
    unknown = log.with_columns(pl.lit(None, pl.Float64).alias("feature.latest"))
    assert skew.compare(features, held, unknown) == [skew.Skew("latest", 0, 0)]
    nobody = log.with_columns(pl.lit(None, pl.String).alias("request.k"))
    assert skew.compare(features, held, nobody) == []


def test_no_more_of_a_history_is_held_than_there_is_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = Growing(tmp_path)
    features, store = feature_set(history.view, SUM), OnlineStore(tmp_path / "online.db")
    held = {"s": history.commit(*((key, hour, 1.0) for key in "ab" for hour in range(10)))}
    materialize(store, features, held)
    log = logged(store, features, asked(*(("ab"[row % 2], at(9)) for row in range(20))), now())
    assert counts(skew.compare(features, held, log)) == {"sum": (0, 20)}
    monkeypatch.setattr(skew, "MOST_VERSIONS", 5 * 10 * skew.ENDS)
    assert counts(skew.compare(features, held, log)) == {"sum": (0, 5)}
    monkeypatch.setattr(skew, "MOST_VERSIONS", 10)
    assert skew.compare(features, held, log) == []
    monkeypatch.setattr(skew, "MOST_ROWS", 19)
    assert skew.compare(features, held, log) == []


def test_logs_without_what_is_needed_ask_nothing(tmp_path: Path) -> None:
    history = Growing(tmp_path)
    features = feature_set(history.view, SUM)
    held = {"s": history.commit(("a", 0, 1.0))}
    empty = pl.DataFrame(schema={"at": INSTANT, "watermark": INSTANT, "prediction": pl.Float64})
    assert skew.compare(features, held, empty) == []
    assert skew.compare(features, held, empty.clear(3).with_columns(pl.lit("a").alias("request.k"))) == []
    assert BACK_LOADED.known_at is not None
    assert skew.newest(held) == {"s": NOON.timestamp()}
