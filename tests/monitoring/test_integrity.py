"""Rules that nothing innocent breaks, and figures that alarm where they differ grossly from what is usual."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from mlops_ray.data import prediction_log
from mlops_ray.data.counts import Counts
from mlops_ray.features.store import FeatureStore
from mlops_ray.monitoring import alarms, integrity, journal, looks, period, skew
from mlops_ray.monitoring.alarms import Alarms, Budget, Finding
from mlops_ray.monitoring.deltas import Outbox
from mlops_ray.monitoring.integrity import FEWEST, comparable
from mlops_ray.monitoring.skew import Skew
from mlops_ray.monitoring.state import Closed, ModelState, Outlook
from mlops_ray.schema import INSTANT
from mlops_ray.serving import replica
from mlops_ray.storage import Storage
from tests.serving import packages

HOUR, DAY = 3_600.0, 86_400.0
#: A Monday, midnight in UTC.
MONDAY = datetime(2026, 11, 2, tzinfo=UTC).timestamp()


def figures(**more: Any) -> dict[str, Any]:
    usual = {"rows": 24_000, "per_hour": 1_000.0, "age_s": HOUR, "watermark": MONDAY, "moves": True}
    usual |= {"repeats": 100, "asked": 10_000, "is_whole": True, "invalid": [], "skew": {}, "untold": ""}
    return usual | more


def look(number: int, **more: Any) -> dict[str, Any]:
    """That at the window of a day after that Monday."""
    ends = {"version": "1", "since": MONDAY + number * DAY, "until": MONDAY + (number + 1) * DAY}
    return ends | {"rows": 24_000, "integrity": figures(**more)}


def only(found: list[Finding]) -> Finding:
    (finding,) = found
    return finding


# ---------------------------------------------------------------- rules


@pytest.mark.parametrize(("differ", "rows", "is_found"), [(0, 200, 0), (1, 200, 0), (2, 200, 1), (2, 201, 0)])
def test_a_feature_is_skewed_from_two_rows_and_one_in_a_hundred_on(
    differ: int, rows: int, is_found: int
) -> None:
    found = integrity.skewed([Skew("load", rows, differ)])
    assert [(each.p, each.kind, each.matters) for each in found] == [(0.0, "data", True)] * is_found


def test_a_rule_takes_nothing_of_the_budget_from_the_tests() -> None:
    test = Finding("load", "input", 0.004, matters=True)
    others = [Finding(f"x{number}", "input", 0.5, matters=False) for number in range(1)]
    alone = alarms.look(0.0, 0.01, [test, *others])
    beside = alarms.look(0.0, 0.01, [test, *others, *integrity.skewed([Skew("load", 100, 100)])])
    assert (alone.found, beside.found) == (("load",), ("load", "skew of load"))
    assert [each.p_holm for each in beside.findings[:2]] == [each.p_holm for each in alone.findings]


def test_a_source_that_is_older_than_it_may_be_is_named() -> None:
    newest = {"loads": MONDAY + 12 * HOUR, "sites": datetime(1, 1, 2, tzinfo=UTC).timestamp()}
    until = MONDAY + 38 * HOUR
    found = only(integrity.stale(newest, {"loads": 2 * HOUR, "sites": HOUR, "unread": HOUR}, until))
    assert found.evidence == (
        "the newest row of loads is of 2026-11-02T12:00, 1.08 days before the window's end; "
        "it may be as old as 2 hours"
    )
    assert (found.p, found.about) == (0.0, "freshness of loads")
    assert integrity.stale(newest, {"loads": 26 * HOUR}, until) == []
    # What lies ahead, as a forecast does, is fresh.
    assert integrity.stale({"loads": until + DAY}, {"loads": HOUR}, until) == []


def test_what_the_project_says_of_freshness_reaches_a_look(tmp_path: Path) -> None:
    table = packages.PROJECT["sources"]["table"] | {"checks": {"freshness": "2h"}}  # type: ignore[index]
    watched = replica.watched(packages.project(tmp_path, sources={"table": table}))
    assert watched == (DAY, 1.0, 90 * DAY, {"table": 2 * HOUR})
    outbox, state = Outbox("m", DAY, Budget(), watched[3]), ModelState("m")
    outbox.tally("1").traffic.invalid["load", "max"] += 3
    state.receive(outbox.delta(), MONDAY)  # type: ignore[arg-type]
    again = ModelState.from_json(state.to_json())
    assert state.outlook.fresh_s == again.outlook.fresh_s == {"table": 2 * HOUR}
    # A replica of before says nothing of it.
    old = {key: value for key, value in outbox.delta().items() if key != "fresh_s"}  # type: ignore[union-attr]
    state.receive(old, MONDAY)
    assert state.outlook.fresh_s == {}


def test_a_window_knows_its_invalid_values_and_documents_of_before_are_read() -> None:
    state = ModelState("m", alarms=Alarms(MONDAY))
    for number, count in enumerate((3, 5)):
        outbox = Outbox("m")
        tally = outbox.tally("1")
        tally.traffic.invalid["load", "max"] += count
        tally.counts.rows += 60
        state.receive(outbox.delta(), MONDAY + number * DAY)  # type: ignore[arg-type]
    state.close(MONDAY + 2 * DAY)
    state = ModelState.from_json(state.to_json())
    assert [window.invalid for window in state.unseen] == [{("load", "max"): 3}, {("load", "max"): 5}]
    assert state.versions["1"].traffic.invalid == {("load", "max"): 8}
    document = state.to_json()
    document["unseen"] = [window[:5] for window in document["unseen"]]
    del document["versions"][0][1]["window"]["invalid"], document["fresh_s"]
    old = ModelState.from_json(document)
    assert [window.invalid for window in old.unseen] == [Counter(), Counter()]


# ---------------------------------------------------------------- like times


def test_working_days_are_compared_with_such_and_nothing_before_a_week_was_seen() -> None:
    days = [look(number) for number in range(40)]
    assert comparable(MONDAY, MONDAY + DAY, []) == []
    # The first Saturday after five working days, and the Sunday, are like nothing yet.
    for number in range(5, 8):
        assert comparable(days[number]["since"], days[number]["until"], days[:number]) == []
    eighth = days[8]
    assert comparable(eighth["since"], eighth["until"], days[:8]) == days[:8]
    tuesday = days[36]
    like = comparable(tuesday["since"], tuesday["until"], days[:36])
    assert {datetime.fromtimestamp(each["since"], UTC).weekday() for each in like} == {0, 1, 2, 3, 4}
    assert len(like) == 26
    saturday = days[33]
    assert comparable(saturday["since"], saturday["until"], days[:33]) == days[5:33]


def test_hours_are_compared_with_the_same_hour() -> None:
    hours = [
        {"since": MONDAY + number * HOUR, "until": MONDAY + (number + 1) * HOUR} for number in range(24 * 12)
    ]
    night = hours[-24 + 3]
    assert comparable(night["since"], night["until"], hours[:20]) == []
    like = comparable(night["since"], night["until"], hours[: -24 + 3])
    assert [round((night["since"] - each["since"]) / HOUR) % 24 for each in like] == [0] * len(like)
    assert len(like) >= FEWEST


# ---------------------------------------------------------------- figures beside earlier ones


def test_a_fall_in_the_rows_of_an_hour_is_found_however_long_the_window_stays_open() -> None:
    rates = 1_000 + 20.0 * np.arange(-6, 6)
    earlier = [look(n, per_hour=rate) for n, rate in enumerate(rates)]
    for hours in (24, 240):
        now = figures(rows=50 * hours, per_hour=50.0)
        found = only(integrity.volume(now, earlier))
        assert found.matters
        assert found.p < 1e-3
    found = only(integrity.volume(figures(rows=1_200, per_hour=50.0), earlier))
    assert found.evidence == "1,200 rows where 23,702 are usual (21,120 to 26,400 in 12 windows)"
    assert not only(integrity.volume(figures(per_hour=600.0), earlier)).matters
    assert only(integrity.volume(figures(per_hour=1_010.0), earlier)).p > 0.5
    assert integrity.volume(figures(per_hour=50.0), earlier[:7]) == []
    assert only(integrity.volume(figures(rows=480_000, per_hour=20_000.0), earlier)).p < 1e-3


def test_features_that_stand_still_are_found_and_a_history_that_never_moved_is_not() -> None:
    earlier = [look(n, age_s=HOUR * (1 + n % 3 / 10)) for n in range(12)]
    stopped = figures(age_s=26 * HOUR, moves=False, watermark=MONDAY + 12 * HOUR)
    found = only(integrity.age(stopped, earlier))
    assert found.matters
    assert found.p < 1e-3
    assert found.evidence == (
        "the features of the store end 1.08 days before their rows are asked for; "
        "earlier windows' 1.1 hours before"
    )
    assert not only(integrity.age(figures(age_s=26 * HOUR), earlier)).matters
    still = [look(n, age_s=3e8 + n * DAY, moves=False) for n in range(12)]
    assert integrity.age(figures(age_s=3.02e8, moves=False), still) == []
    # One weekend in which nothing was fed, and others are no alarm.
    some = [look(n, age_s=HOUR, moves=n != 6) for n in range(12)]
    assert integrity.age(stopped, some) == []
    assert integrity.age(figures(age_s=None), earlier) == []


def test_more_invalid_values_than_usual_are_found_and_the_worst_check_is_named() -> None:
    few = [["load", "max", 20], ["site", "category", 400]]
    earlier = [look(n, rows=20_000, invalid=few) for n in range(12)]
    now = figures(rows=14_000, invalid=[["load", "max", 6_000], ["site", "category", 300]])
    found = only(integrity.invalid(now, earlier))
    assert found.matters
    assert found.p < 1e-2
    assert found.evidence == (
        "6,000 values of load fail 'max' beside 14,000 answered rows; before, 240 beside 240,000"
    )
    calm = only(integrity.invalid(figures(rows=20_000, invalid=few), earlier))
    assert (calm.matters, calm.p > 0.1) == (False, True)
    assert not only(integrity.invalid(figures(rows=20_000), earlier)).matters
    # Looks of before did not count them.
    for each in earlier:
        del each["integrity"]["invalid"]
    assert integrity.invalid(now, earlier) == []


def test_rows_that_repeat_others_are_found_where_all_are_at_hand() -> None:
    earlier = [look(n) for n in range(12)]
    found = only(integrity.repeated(figures(repeats=5_000), earlier))
    assert found.matters
    assert found.p < 1e-3
    assert found.evidence == "50 % of the rows repeat another one, 1 % in 12 windows before"
    assert not only(integrity.repeated(figures(repeats=1_000), earlier)).matters
    assert integrity.repeated(figures(repeats=5_000, is_whole=False), earlier) == []
    assert integrity.repeated(figures(repeats=5_000), [look(n, is_whole=False) for n in range(12)]) == []


# ---------------------------------------------------------------- chance


def even(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return random.normal(0, 0.3, size)


def heavy(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return random.laplace(0, 0.3, size)


def slow(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Each window is half like the one before."""
    noise = random.normal(0, 0.3, size)
    for at in range(1, size[1]):
        noise[:, at] += 0.5 * noise[:, at - 1]
    return noise


def extreme(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Its tail falls with the third power."""
    return 0.2 * random.standard_t(3, size)


def wandering(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return random.normal(0, 0.3, size).cumsum(axis=1)


def upper(drawn: np.ndarray, least: float) -> np.ndarray:
    """`integrity.above` of the last of each row beside the others, for all rows at once."""
    earlier, now = drawn[:, :-1], drawn[:, -1]
    number = earlier.shape[1]
    spread = np.maximum(earlier.std(axis=1, ddof=1), least) * math.sqrt(1 + 1 / number)
    freedom = min(number - 1, integrity.MOST_FREEDOM)
    return integrity.stats.t.sf((now - earlier.mean(axis=1)) / spread, freedom)  # type: ignore[no-any-return]


@pytest.mark.parametrize("windows", [FEWEST, 28])
@pytest.mark.parametrize("draw", [even, heavy, extreme, slow, wandering])
def test_chance_makes_no_smaller_p_values_than_it_says(
    draw: Callable[[np.random.Generator, tuple[int, int]], np.ndarray], windows: int
) -> None:
    random = np.random.default_rng(11)
    drawn = draw(random, (100_000, windows + 1))
    p = upper(drawn, integrity.RATE_SPREAD)
    for row in drawn[:20]:
        assert integrity.above(row[-1], row[:-1].tolist(), integrity.RATE_SPREAD) == pytest.approx(
            upper(row[None], integrity.RATE_SPREAD)[0]
        )
    for level in (1e-2, 1e-3, 1e-4, 1e-5):
        most = level * len(p) + 3 * math.sqrt(level * len(p))
        assert (p <= level).sum() <= most, level


def test_counts_make_no_smaller_p_values_than_they_say() -> None:
    """Shares of few and of many, also where hardly anything fails and most windows have none."""
    random = np.random.default_rng(12)
    cells = ((100, 0.001), (100, 0.05), (10_000, 0.0001), (10_000, 0.02))
    for (rows, share), spread in itertools.product(cells, (0.0, 0.7)):
        # Also where shares differ from window to window by more than chance.
        shares = np.minimum(share * np.exp(random.normal(0, spread, (50_000, FEWEST + 1))), 1.0)
        counts = random.binomial(rows, shares)
        odds = np.log((counts + 0.5) / (rows - counts + 0.5))
        p = upper(odds, integrity.SHARE_SPREAD)
        for level in (1e-2, 1e-3, 1e-4, 1e-5):
            assert (p <= level).sum() <= level * len(p) + 3 * math.sqrt(level * len(p)), (rows, share, level)


# ---------------------------------------------------------------- from a history to an alarm


class Stored:
    """A model whose `amount` is the newest load of a site in the history, and what it has answered."""

    def __init__(self, folder: Path, **policies: Any) -> None:
        past = {"source": "table", "features": {"amount": {"latest": "load"}}}
        row = {"on_request": {"hour": {"hour_of": "time"}}}
        self.project = packages.project(folder, features={"past": past, "row": row})
        self.storage = Storage.open(str(folder))
        self.store = FeatureStore(self.project, self.storage)
        made_of = {"rows": 400, "policies": policies}
        packed = packages.write(self.storage.path("packages", "one"), self.project, 1.0, training_set=made_of)
        packages.crown(self.storage, packages.NAME, 1, packed)
        self.package = packed
        self.specs = looks._known(packed.folder, packed.digest)[1].specs
        begin = datetime.now(UTC) - timedelta(hours=1)
        random = np.random.default_rng(3)
        loads = pl.DataFrame(
            {
                "site": ["a", "b"] * 200,
                "event_time": pl.Series(
                    [begin - timedelta(minutes=number // 2 * 5) for number in range(400)], dtype=INSTANT
                ),
                "load": random.normal(50, 10, 400),
            }
        )
        self.store.history("table").append(loads, self.project.sources["table"], "one")
        self.store.materialize()
        self.asked = loads.select("site", time="event_time", load=pl.lit(1.0))

    def answered(self) -> pl.DataFrame:
        """The log of the rows that the online store answers."""
        online = self.store.online()
        features = self.store.features
        asked = self.asked.select(features.request.names)
        found, failures, watermark_us = online.read(features, asked)
        online.close()
        assert set(failures["severity"]) <= {"flag"}
        at = datetime.now(UTC)
        rows = pl.DataFrame([c.alias(f"request.{c.name}") for c in asked]).with_columns(
            pl.lit(at).cast(INSTANT).alias("at"),
            pl.format("r{}", pl.int_range(pl.len())).alias("request_id"),
            pl.lit(0, pl.Int32).alias("row"),
            pl.lit("1").alias("model_version"),
            pl.lit("champion").alias("route"),
            pl.lit(100, pl.Int64).alias("latency_us"),
            pl.lit(watermark_us, pl.Int64).cast(INSTANT).alias("watermark"),
            found["amount"].alias("prediction"),
        )
        return rows.hstack([c.alias(f"feature.{c.name}") for c in found])

    def look(self, log: pl.DataFrame, hidden: Sequence[str] = ()) -> looks.Seen:
        at = log["at"][0]
        place = packages.NAME, f"date={at:%Y-%m-%d}", "one.parquet"
        log.drop(hidden).write_parquet(self.storage.path(prediction_log.FOLDER, *place))
        if hidden:
            apart = log.select("request_id", "row", *hidden)
            apart.write_parquet(self.storage.path(prediction_log.MACHINE, *place))
        counts = Counts.empty(self.specs)
        counts.update(log.select(amount="feature.amount", hour="feature.hour", prediction="prediction"))
        window = Closed("1", at.timestamp() - HOUR, at.timestamp() + HOUR, counts)
        seen = looks.see(self.storage, Outlook(packages.NAME, Budget(), window.since), window)
        state = ModelState(packages.NAME, alarms=Alarms(window.since))
        looks.settle(self.storage, state, window, seen)
        return seen


def test_features_that_were_served_otherwise_than_the_history_says_open_an_alarm(tmp_path: Path) -> None:
    model = Stored(tmp_path)
    log = model.answered()
    seen = model.look(log)
    assert seen.integrity["skew"] == {"amount": [0, 200]}
    assert "skew of amount" not in seen.look.found
    (entry,) = journal.read(model.storage, packages.NAME, journal.LOOKS)
    assert entry["integrity"]["per_hour"] == 200.0
    assert entry["integrity"]["repeats"] == 0
    # A tenth of the rows get what nobody has stored.
    wrong = pl.when(pl.int_range(pl.len()) % 10 == 0).then(pl.col("feature.amount") + 1)
    tampered = log.with_columns(wrong.otherwise("feature.amount").alias("feature.amount"))
    (finding,) = [each for each in model.look(tampered).look.findings if each.about == "skew of amount"]
    assert (finding.kind, finding.p_holm, finding.matters) == ("data", 0.0, True)
    said = re.match(r"amount served differs from the history in (\d+) of 200 rows: ", finding.evidence)
    differ = int(said[1])
    assert 10 <= differ <= 30
    told = period.document(model.storage, packages.NAME, None, None)
    assert told["skew"] == {"amount": (differ, 200)}
    page = period.html(told)
    assert "Served beside computed again" in page
    assert "Age of the features" in page


def test_of_a_feature_for_machines_alone_only_the_number_of_rows_is_told(tmp_path: Path) -> None:
    model = Stored(tmp_path)
    log = model.answered()
    hidden = ["feature.amount", "request.site"]
    assert model.look(log, hidden).integrity["skew"] == {"amount": [0, 200]}
    seen = model.look(log.with_columns(pl.col("feature.amount") + 1), hidden)
    (finding,) = [each for each in seen.look.findings if each.about == "skew of amount"]
    assert finding.evidence == "amount served differs from the history in 200 of 200 rows"


@pytest.mark.parametrize("is_hidden", [False, True])
def test_when_the_newest_row_happened_is_told_where_people_may_see_all(
    is_hidden: bool, tmp_path: Path
) -> None:
    model = Stored(tmp_path, **{"table": {"machine_only": ["time"]}} if is_hidden else {})
    log = model.answered()
    newest: datetime = model.asked["time"].max()  # type: ignore[assignment]
    window = Closed("1", newest.timestamp(), newest.timestamp() + DAY, Counts.empty(model.specs))
    asked = Outlook(packages.NAME, Budget(), 0.0, {"table": 2 * HOUR})
    _, found = integrity.see(model.storage, asked, model.package, window, log)
    (stale,) = [each.evidence for each in found if each.about == "freshness of table"]
    when = f"of {newest:%Y-%m-%dT%H:%M}, 1 day before the window's end"
    assert stale == (
        f"the newest row of table is {'not new enough' if is_hidden else when}; it may be as old as 2 hours"
    )


def test_data_that_come_late_open_no_alarm(tmp_path: Path) -> None:
    model = Stored(tmp_path)
    log = model.answered()
    corrected = model.asked.head(100).select(
        "site", event_time="time", load=pl.int_range(100).cast(pl.Float64)
    )
    model.store.history("table").append(corrected, model.project.sources["table"], "two")
    assert model.look(log).integrity["skew"] == {"amount": [0, 200]}


def test_a_monitor_without_the_histories_sees_the_rest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Stored(tmp_path)
    log = model.answered()
    (tmp_path / "features").rename(tmp_path / "elsewhere")
    seen = model.look(log)
    assert seen.integrity["skew"] == {}
    assert "there is no history of 'table' yet" in seen.integrity["untold"]
    assert seen.integrity["rows"] == 400
    assert "computed again" not in caplog.text

    def damaged(*_: object) -> None:
        raise ValueError("41.5 is not a number")

    monkeypatch.setattr(skew, "snapshots", damaged)
    assert model.look(log).integrity["untold"] == "ValueError, see the log of the monitor"
    assert "are not computed again" in caplog.text


def test_the_figures_of_an_earlier_version_are_not_looked_at(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    for number in range(12):
        for version in "12":
            rate = 1_000.0 if version == "1" else 50.0
            entry = look(number, per_hour=rate) | {"version": version}
            journal.append(storage, "m", journal.LOOKS, entry)
    packed = packages.write(tmp_path / "one", packages.project(tmp_path), 1.0)
    counts = replace(Counts.empty(()), rows=1_200)
    rows = pl.DataFrame({"at": [], "prediction": []})
    for version, is_found in (("1", True), ("2", False), ("3", None)):
        window = Closed(version, MONDAY + 14 * DAY, MONDAY + 15 * DAY, counts)
        _, found = integrity.see(storage, Outlook("m", Budget(), 0.0), packed, window, rows)
        assert {each.about: each.matters for each in found}.get("volume") is is_found


def test_only_the_end_of_a_long_journal_is_read(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    for number in range(100):
        journal.append(storage, "m", journal.LOOKS, look(number))
    whole = journal.read(storage, "m", journal.LOOKS)
    end = journal.read(storage, "m", journal.LOOKS, 5_000)
    assert 5 < len(end) < 50
    assert end == whole[-len(end) :]
    assert journal.read(storage, "m", journal.LOOKS, 10**9) == whole
    assert journal.read(storage, "nobody", journal.LOOKS, 10) == []
