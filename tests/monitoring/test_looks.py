"""A window that has closed is looked at once; what differs opens an episode, and can be read back."""

import asyncio
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from mlops_ray.data import labels, prediction_log
from mlops_ray.data.counts import Counts
from mlops_ray.errors import DataError
from mlops_ray.monitoring import journal, looks, monitor, performance, period, report
from mlops_ray.monitoring.alarms import SPENT, Alarms
from mlops_ray.monitoring.deltas import Outbox
from mlops_ray.monitoring.metrics import metrics_text
from mlops_ray.monitoring.monitor import Monitor
from mlops_ray.monitoring.state import Closed, ModelState, Outlook
from mlops_ray.registry.predictor import Predictor
from mlops_ray.schema import INSTANT
from mlops_ray.storage import Storage
from tests.serving import packages

DAY = 86_400.0
#: Midnight in UTC.
NOW = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
RANDOM = np.random.default_rng(5)
NUMBERS = itertools.count()


@dataclass
class Live:
    """A model that answers `load`, of whose labels it knows that they lie 2 around it."""

    storage: Storage
    predictor: Predictor
    state: ModelState

    def window(self, at: float, amounts: np.ndarray, version: str = "1") -> Closed:
        """A day whose rows had these amounts, as the counts and the log have it."""
        rows = frame(amounts)
        counts = Counts.empty(
            looks._known(self.predictor.package.folder, self.predictor.package.digest)[1].specs
        )
        counts.update(rows)
        features = {"feature.amount": rows["amount"], "feature.hour": rows["hour"]}
        told = {"prediction": rows["prediction"], "request.load": rows["amount"]} | features
        answered(self.storage, at, told, version)
        return Closed(version, at, at + DAY, counts)

    def look(self, day: int, amounts: np.ndarray, version: str = "1") -> Any:
        window = self.window(NOW + day * DAY, amounts, version)
        return looks.settle(
            self.storage, self.state, window, looks.see(self.storage, self.state.outlook, window)
        )


def answered(
    storage: Storage, at: float, told: dict[str, Any], version: str = "1", hidden: Sequence[str] = ()
) -> None:
    """A day's rows in the log, with these columns, of which `hidden` ones are for machines only."""
    count = len(told["prediction"])
    log = pl.DataFrame(
        {
            "at": pl.Series(((at + DAY * np.arange(count) / count) * 1e6).astype(np.int64)).cast(INSTANT),
            "request_id": [f"r{next(NUMBERS)}" for _ in range(count)],
            "row": pl.Series(np.zeros(count), dtype=pl.Int32),
            "model_version": [version] * count,
            "route": ["champion"] * count,
            "latency_us": [100] * count,
            **told,
        }
    )
    date = datetime.fromtimestamp(at, UTC).strftime("date=%Y-%m-%d")
    place = packages.NAME, date, f"{next(NUMBERS)}.parquet"
    log.drop(hidden).write_parquet(storage.path(prediction_log.FOLDER, *place))
    if hidden:
        apart = log.select("request_id", "row", *hidden)
        apart.write_parquet(storage.path(prediction_log.MACHINE, *place))


def frame(amounts: np.ndarray) -> pl.DataFrame:
    hours, answers = np.arange(len(amounts)) % 24, np.where(np.isnan(amounts), 50.0, amounts)
    return pl.DataFrame({"amount": amounts, "hour": hours, "prediction": answers})


def normal(rows: int = 500, mean: float = 50.0) -> np.ndarray:
    return RANDOM.normal(mean, 10, rows)


@pytest.fixture
def live(tmp_path: Path) -> Live:
    storage, project = Storage.open(str(tmp_path)), packages.project(tmp_path)
    answers = normal(4_000)
    plain = packages.write(storage.path("packages", "plain"), project, 1.0)
    expected, errors = performance.expect(
        "regression",
        "mae",
        answers + RANDOM.normal(0, 2, 4_000),
        answers,
        np.arange(4_000),
        matrix=plain.encoder.transform(frame(answers)),
    )
    packed = packages.write(
        storage.path("packages", "one"), project, 1.0, expected=expected.to_json(), errors=errors
    )
    packages.crown(storage, packages.NAME, 1, packed)
    predictor = Predictor.load(packed.folder, None)
    return Live(storage, predictor, ModelState(packages.NAME, alarms=Alarms(NOW)))


def read(live: Live, file: str) -> list[dict[str, Any]]:
    return journal.read(live.storage, packages.NAME, file)


def test_a_quiet_window_opens_nothing_and_can_be_read_back(live: Live) -> None:
    assert live.look(0, normal()) is None
    (look,), (window,) = read(live, journal.LOOKS), read(live, journal.WINDOWS)
    assert (look["found"], look["rows"], look["spent"]) == ([], 500, pytest.approx(SPENT / 90))
    assert {finding["about"] for finding in look["findings"]} >= {"amount", "prediction", "estimated mae"}
    assert look["quality"]["estimated"]["mae"] == pytest.approx(1.6, abs=0.2)
    assert Counts.from_json(window["counts"]).rows == 500


def test_a_window_that_moved_opens_an_episode_that_says_what_moved(live: Live) -> None:
    opened = live.look(0, normal(mean=65))
    about = dict(opened.ranked)
    assert about["amount"]["kind"] == "input"
    assert "amount is larger" in about["amount"]["evidence"]
    assert about["prediction"]["kind"] == "prediction"
    assert live.look(1, normal(mean=65)) is None
    assert [live.look(day, normal()) for day in (2, 3)] == [None, None]
    (episode,) = looks.told(live.state.alarms)
    assert (episode["opened"], episode["resolved"]) == (NOW + DAY, NOW + 4 * DAY)


def test_entities_in_the_course_of_time_open_no_alarm_for_the_time_of_day(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looks.Release, "has_seasons", True)
    assert live.look(0, normal(mean=65)) is None
    # Nor does a night, in which a column stands still.
    assert live.look(1, np.full(500, 50.0)) is None
    opened = live.look(2, normal() / 60)
    assert {about: what["kind"] for about, what in opened.found.items()} == {"amount": "data"}
    for day in (3, 4):
        live.look(day, normal(mean=65))
    assert live.state.alarms.open is None
    # What lacks values lacks them at any hour.
    opened = live.look(5, np.where(np.arange(500) % 4 == 0, np.nan, normal()))
    assert "of amount are missing" in opened.found["amount"]["evidence"]


def test_another_unit_is_seen_by_the_rows(live: Live) -> None:
    opened = live.look(0, normal() / 60)
    assert opened.found["amount"]["kind"] == "data"
    assert "times 0.01667" in opened.found["amount"]["evidence"]


def test_labels_that_show_a_worse_model_open_an_episode(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    live.look(0, normal())
    rows = prediction_log.read(live.storage, packages.NAME).collect()
    monkeypatch.setattr(labels.time, "time", lambda: NOW + 2 * DAY - 1)
    truth = rows["prediction"] + pl.Series(RANDOM.normal(0, 4, rows.height))
    labels.write(
        live.storage,
        packages.NAME,
        pl.DataFrame({"request_id": rows["request_id"], "row": rows["row"], "label": truth}),
    )
    opened = live.look(1, normal())
    assert list(opened.found) == ["realised mae"]
    assert opened.found["realised mae"]["kind"] == "performance"
    look = read(live, journal.LOOKS)[-1]
    assert look["quality"]["labelled"] == 500
    assert look["quality"]["realised"]["mae"] == pytest.approx(3.2, abs=0.4)
    # A label is judged once.
    live.look(2, normal())
    assert read(live, journal.LOOKS)[-1]["quality"]["labelled"] == 0


def test_a_version_that_is_not_live_opens_nothing(live: Live) -> None:
    assert live.look(0, normal(mean=65), version="2") is None
    assert len(read(live, journal.WINDOWS)) == 1
    assert read(live, journal.LOOKS) == []


def test_the_first_look_at_another_live_version_ends_the_alarm_of_the_one_before_and_the_journal_says_why(
    live: Live,
) -> None:
    live.look(0, normal(mean=65))
    packages.crown(live.storage, packages.NAME, 2, live.predictor.package)
    live.look(1, normal(), version="2")
    resolved = read(live, journal.LOOKS)[-1]["resolved"]
    assert (resolved["version"], resolved["why"]) == ("1", "version 2 is live")
    assert [look.get("resolved") for look in read(live, journal.LOOKS)[:-1]] == [None]


def test_a_look_that_cannot_be_written_down_is_not_taken_in(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(journal, "append", full)
    with pytest.raises(OSError, match="no space"):
        live.look(0, normal(mean=65))
    assert live.state.alarms == Alarms(NOW)


def test_a_line_that_was_begun_is_none_and_one_written_twice_counts_once(live: Live) -> None:
    live.look(0, normal())
    path = live.storage.path(journal.FOLDER, packages.NAME, journal.LOOKS)
    whole = path.read_bytes()
    path.write_bytes(whole + b"\n" + whole[:50])
    live.look(0, normal())
    live.look(1, normal())
    assert [look["since"] for look in read(live, journal.LOOKS)] == [NOW, NOW + DAY]


def observed(live: Live, at: float, sequence: int, rows: int = 60) -> dict[str, Any]:
    return {
        "model": packages.NAME,
        "source": "r",
        "sequence": sequence,
        "window_s": DAY,
        "false_alarms": [1.0, 90 * DAY],
        "versions": {"1": tally(live, normal(rows))},
    }


@pytest.mark.parametrize("raised", [OSError("no space left"), pl.exceptions.PanicException("no space left")])
def test_a_window_that_cannot_be_looked_at_holds_up_no_counts_and_is_given_up_in_the_end(
    live: Live, monkeypatch: pytest.MonkeyPatch, raised: BaseException
) -> None:
    """What is still to be looked at lies on disk, also for another process."""
    clock = [NOW]
    monkeypatch.setattr(monitor.time, "time", lambda: clock[0])
    tries: list[float] = []

    def see(storage: Storage, of: Outlook, window: Closed) -> None:
        tries.append(window.since)
        raise raised

    monkeypatch.setattr(looks, "see", see)

    async def lives() -> None:
        watcher = Monitor(str(live.storage.root))
        for sequence, at in enumerate((0.0, DAY, DAY + looks.SETTLED_S), 1):
            clock[0] = NOW + at
            await watcher.record(observed(live, at, sequence))
            await watcher._look(watcher._models[packages.NAME])
        watcher = Monitor(str(live.storage.root))
        state = watcher._models[packages.NAME]
        assert len(state.unseen) == 1
        while state.unseen:
            await watcher._look(state)
        assert state.versions["1"].rows == 180

    asyncio.run(lives())
    assert tries == [NOW] * (monitor.MOST_TRIES + 1)
    assert [window["since"] for window in read(live, journal.WINDOWS)] == [NOW]
    assert read(live, journal.LOOKS) == []


def test_the_monitor_looks_by_itself_once_the_log_is_written(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [NOW]
    monkeypatch.setattr(monitor.time, "time", lambda: clock[0])

    async def lives() -> None:
        watcher = Monitor(str(live.storage.root))
        await watcher.record(observed(live, 0.0, 1))
        for at in (DAY - 1, DAY, DAY + looks.SETTLED_S - 1, DAY + looks.SETTLED_S):
            assert read(live, journal.LOOKS) == []
            clock[0] = NOW + at
            await watcher._look(watcher._models[packages.NAME])

    asyncio.run(lives())
    (look,) = read(live, journal.LOOKS)
    assert (look["since"], look["until"], look["rows"]) == (NOW, NOW + DAY, 60)
    assert on_disk(live).alarms.looked_at == NOW + DAY  # type: ignore[union-attr]


def test_each_hour_of_traffic_is_a_line_once_also_after_a_kill(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [NOW]
    monkeypatch.setattr(monitor.time, "time", lambda: clock[0])
    hours = lambda: [(e["since"], e["requests"], e["failed"]) for e in read(live, journal.TRAFFIC)]  # noqa: E731

    async def lives() -> None:
        watcher = Monitor(str(live.storage.root))
        for sequence, minute in enumerate((0, 59, 61, 150), 1):
            clock[0] = NOW + 60 * minute
            delta = observed(live, 0.0, sequence)
            delta["versions"]["1"]["traffic"]["requests"] = {"200": 5, "500": 1}
            await watcher.record(delta)
        kept = live.storage.read_json(journal.FOLDER, f"{packages.NAME}.json")
        await watcher._keep(watcher._models[packages.NAME])
        assert hours() == [(NOW, 12, 2), (NOW + 3600, 6, 1)]
        # As if it had died before it could save that it has written them.
        live.storage.write_json(kept, journal.FOLDER, f"{packages.NAME}.json")
        watcher = Monitor(str(live.storage.root))
        await watcher._keep(watcher._models[packages.NAME])
        assert hours() == [(NOW, 12, 2), (NOW + 3600, 6, 1)]
        # The last hour ends also where nobody asks any more.
        clock[0] = NOW + 3 * 3600
        await watcher._keep(watcher._models[packages.NAME])
        assert hours()[2:] == [(NOW + 7200, 6, 1)]

    asyncio.run(lives())
    assert on_disk(live).versions["1"].hours == []


def on_disk(live: Live) -> ModelState:
    return ModelState.from_json(live.storage.read_json(journal.FOLDER, f"{packages.NAME}.json"))


def test_labels_that_cannot_be_read_hold_up_nothing(live: Live) -> None:
    path = live.storage.path(labels.FOLDER, packages.NAME, "date=2026-11-01", "broken.parquet")
    path.write_bytes(b"")
    live.look(0, normal())
    assert read(live, journal.LOOKS)[0]["quality"]["estimated"]["mae"] == pytest.approx(1.6, abs=0.2)


def test_the_open_window_is_shown_however_far_it_has_moved(live: Live) -> None:
    live.state.receive(observed(live, NOW, 1) | {"versions": {"1": tally(live, np.full(5_000, 1e6))}}, NOW)
    (column,) = [
        column
        for column in report.report(live.storage, live.state)["versions"]["1"]["drift"]
        if column["column"] == "amount"
    ]
    assert column["drifted"]
    assert column["p"] == 0.0
    assert "another unit?" in column["evidence"]


def tally(live: Live, amounts: np.ndarray) -> dict[str, Any]:
    known = looks._known(live.predictor.package.folder, live.predictor.package.digest)[1]
    made = Outbox(packages.NAME).tally("1", known.specs)
    made.observe(frame(amounts).drop("prediction"), amounts)
    return json.loads(json.dumps(made.to_json()))  # type: ignore[no-any-return]


def test_a_period_is_one_page_with_its_alarms_quality_and_drift(live: Live) -> None:
    for day, amounts in enumerate((normal(), normal(mean=65), normal(), normal(), normal())):
        live.look(day, amounts)
    live.storage.write_json(live.state.to_json(), journal.FOLDER, f"{packages.NAME}.json")
    begin, end = (datetime.fromtimestamp(NOW + days * DAY + 1, UTC) for days in (1, 3))
    found = period.document(live.storage, packages.NAME, begin, end)
    assert [look["until"] for look in found["looks"]] == [
        "2026-11-03T00:00:00+00:00",
        "2026-11-04T00:00:00+00:00",
    ]
    assert (found["rows"], found["spent"]) == (1_000, pytest.approx(2 * SPENT / 90))
    assert [alarm["resolved"] for alarm in found["alarms"]] == ["2026-11-05T00:00:00+00:00"]
    assert [psi > 0.1 for _, psi in found["columns"]["amount"]] == [True, False]
    text = period.html(found)
    assert "amount is larger" in text
    assert text.count("<svg") == 6
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert period.html(json.loads(json.dumps(found))) == text
    # Over before it began.
    later = period.document(live.storage, packages.NAME, datetime.fromtimestamp(NOW + 4.5 * DAY, UTC), None)
    assert later["alarms"] == []
    with pytest.raises(DataError, match="no window of 'rows' was looked at then"):
        period.document(live.storage, packages.NAME, None, datetime.fromtimestamp(NOW, UTC))


def test_what_a_look_said_is_told_to_people_and_to_prometheus(
    live: Live, caplog: pytest.LogCaptureFixture
) -> None:
    live.look(0, normal(mean=65))
    # The log of errors, which names no evidence, keeps it.
    assert "alarm: rows, version 1: amount, prediction\n" in caplog.text
    told = report.report(live.storage, live.state)
    assert told["alarms"][0]["found"][0]["about"] in ("amount", "prediction")
    text = metrics_text({packages.NAME: told}, []).decode()
    assert 'mlops_alarm{kind="input",model="rows"} 1.0' in text
    assert 'mlops_alarm{kind="data",model="rows"} 0.0' in text
    assert 'mlops_estimated_metric{metric="mae",model="rows"}' in text
    caplog.clear()
    for day in (1, 2):
        live.look(day, normal())
    assert "resolved: the alarm of rows" in caplog.text
    told = report.report(live.storage, live.state)
    assert 'mlops_alarm{kind="input",model="rows"} 0.0' in metrics_text({packages.NAME: told}, []).decode()
    again = ModelState.from_json(json.loads(json.dumps(live.state.to_json())))
    assert report.report(live.storage, again) == told
