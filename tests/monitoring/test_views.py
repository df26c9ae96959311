"""What the page is told: as much as a picture has room for, the worst of each step, and nothing hidden."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from benchmarks import watched
from mlops_ray.config import Project
from mlops_ray.data.counts import Counts
from mlops_ray.errors import NotFoundError, RequestError, StorageError
from mlops_ray.monitoring import journal, looks
from mlops_ray.monitoring.dashboard import spans
from mlops_ray.monitoring.dashboard.views import AWAY_S, MOST_COLUMNS, Views
from mlops_ray.monitoring.state import Minute, ModelState
from mlops_ray.storage import Storage
from tests.serving import packages

DAY, HOUR = 86_400.0, 3_600.0
#: A Friday, at noon in UTC.
NOW = 1_795_780_800.0


@pytest.fixture
def views(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> Views:
    """A model of 30 columns with 400 windows of a day, of which the second column drifts in the last 100."""
    monkeypatch.setattr(spans.time, "time", lambda: NOW)
    watched.made_up(storage, "m", 400, DAY, 30, now=NOW, busy=100)
    return Views(storage)


def ask(views: Views, path: str, **query: Any) -> dict[str, Any]:
    found = views.answer(path.split("/"), {key.rstrip("_"): str(value) for key, value in query.items()})
    return dict(orjson.loads(orjson.dumps(found, option=orjson.OPT_SERIALIZE_NUMPY)))


def entries(storage: Storage, file: str) -> list[dict[str, Any]]:
    return journal.read(storage, "m", file)


@pytest.mark.parametrize("period", spans.PERIODS)
@pytest.mark.parametrize("cells", [12, 60, 120])
def test_a_heat_map_has_the_largest_psi_of_each_step_and_no_more_steps_than_room(
    views: Views, storage: Storage, period: str, cells: int
) -> None:
    found = ask(views, "models/m/drift", period=period, cells=cells)
    assert len(found["at"]) <= cells + 1
    looked = entries(storage, journal.LOOKS)
    for column in found["columns"][:3]:
        for (since, until), told in zip(found["at"], column["psi"], strict=True):
            inside = [look for look in looked if since <= look["since"] and look["until"] <= until]
            assert told == pytest.approx(max(look["columns"][column["name"]] for look in inside), abs=1e-4)
    begins = spans.asked({"period": period}, NOW, cells=cells).since
    assert sum(found["windows"]) == sum(begins <= look["until"] <= NOW for look in looked)


def test_what_a_test_has_found_comes_first_and_is_marked(views: Views) -> None:
    found = ask(views, "models/m/drift", period="year")
    first, *others = found["columns"]
    assert first["name"] == "column_01"
    assert first["found"]
    assert all(column["found"] == [] for column in others)


def test_of_many_columns_those_that_moved_most_are_shown_and_the_others_found(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans.time, "time", lambda: NOW)
    watched.made_up(storage, "m", 10, DAY, 99, now=NOW, busy=10)
    views = Views(storage)
    found = ask(views, "models/m/drift", period="30d")
    peaks = [max(column["psi"]) for column in found["columns"]]
    assert (len(peaks), found["total"]) == (MOST_COLUMNS, 99)
    assert peaks[1:] == sorted(peaks[1:], reverse=True)
    assert [column["name"] for column in ask(views, "models/m/drift", q="_98")["columns"]] == ["column_98"]


def test_a_step_opens_the_counts_of_its_windows(views: Views, storage: Storage) -> None:
    since, until = NOW - 5 * DAY, NOW - 2 * DAY
    found = ask(views, "models/m/column", column="column_03", from_=since, to=until)
    inside = [each for each in entries(storage, journal.WINDOWS) if since < each["until"] <= until]
    cells = sum(Counts.from_json(each["counts"]).by_name["column_03"][1] for each in inside)
    assert found["windows"] == len(inside) == 3
    assert found["current"] == pytest.approx(np.array(cells) / np.sum(cells), abs=1e-6)
    # The package of this version is not at hand.
    assert found["reference"] is None


def test_the_open_window_is_compared_with_the_package_of_the_live_version(tmp_path: Path) -> None:
    storage, _ = released(tmp_path)
    found = ask(Views(storage), "models/rows/column", column="amount")
    assert found["psi"] > 0.02
    assert sum(found["reference"]) == pytest.approx(1, abs=1e-4)
    assert ask(Views(storage), "models/rows/drift")["open"]["psi"]["amount"] > 0.02


def test_of_a_column_for_machines_only_nothing_but_its_drift_is_told(tmp_path: Path) -> None:
    storage, _ = released(tmp_path, policy={"machine_only": ["load"]})
    views = Views(storage)
    # An older package may have counted it: also then its values are no one's to see.
    seen = watched._look(["amount", "hour"], NOW - DAY, DAY, 0, np.array([0.4, 0.1]))
    watched.written(storage, "rows", journal.LOOKS, [seen])
    drift = ask(views, "models/rows/drift", from_=NOW - 2 * DAY, to=NOW + DAY)
    amount = next(column for column in drift["columns"] if column["name"] == "amount")
    assert (amount["is_hidden"], amount["psi"]) == (True, [0.4])
    for query in ({}, {"from_": NOW - 2 * DAY, "to": NOW}):
        assert ask(views, "models/rows/column", column="amount", **query) == {
            "column": "amount", "is_hidden": True,
        }  # fmt: skip
    (told,) = [each for each in ask(views, "models/rows/features")["features"] if each["name"] == "amount"]
    assert told["is_hidden"]


def test_a_store_that_does_not_answer_is_not_asked_by_every_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def away(location: str) -> None:
        asked.append(location)
        raise StorageError("it does not answer")

    monkeypatch.setattr("mlops_ray.monitoring.dashboard.views.OnlineStore", away)
    storage, _ = released(tmp_path)
    storage.write_json({"online": "redis://away:6379/0"}, "release", "settings", "rows.json")
    views = Views(storage)
    for _ in range(3):
        ask(views, "models/rows/features")
    assert len(asked) == 1
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + AWAY_S)
    ask(views, "models/rows/features")
    assert len(asked) == 2


def released(folder: Path, **source: Any) -> tuple[Storage, Project]:
    """A real package that is live, and an open window whose amounts are twice those of the reference."""
    table = packages.PROJECT["sources"]["table"] | source  # type: ignore[index]
    project = packages.project(folder, sources={"table": table})
    storage = Storage.open(str(folder))
    packed = packages.write(storage.path("packages", "one"), project, 1.0)
    packages.crown(storage, packages.NAME, 1, packed)
    known = looks.releases(storage, packages.NAME)["1"].reference
    counts = Counts.empty(known.specs)
    counts.merge(known)
    for spec, cells in zip(counts.specs, counts.cells, strict=True):
        cells[:] = 2 * np.roll(cells, 3) if spec.name == "amount" else cells
    last = {"until": NOW - HOUR, "counts": counts.to_json()}
    watched._state(storage, "1", packages.NAME, watched.Alarms(NOW), last, NOW, 10)
    return storage, project


def test_traffic_is_counted_once_whatever_the_period(views: Views, storage: Storage) -> None:
    hours = entries(storage, journal.TRAFFIC)
    going = storage.read_json("monitor", "m.json")["versions"][0][1]["hours"]
    for period in ("24h", "7d", "30d", "quarter", "year"):
        span = spans.asked({"period": period}, NOW)
        expected = sum(hour["requests"] for hour in hours if hour["since"] >= span.since)
        expected += sum(hour[1] for hour in going if hour[0] not in {each["since"] for each in hours})
        total = ask(views, "models/m", period=period)["traffic"]["total"]
        assert total["requests"] == pytest.approx(expected, abs=max(hour[1] for hour in going))


def test_the_last_hour_is_shown_by_the_minute(views: Views, storage: Storage) -> None:
    minutes = storage.read_json("monitor", "m.json")["versions"][0][1]["minutes"]
    traffic = ask(views, "models/m", period="1h")["traffic"]
    assert traffic["step"] == 60
    assert traffic["total"]["requests"] == sum(each[1] for each in minutes if each[0] >= traffic["at"][0])


def test_two_hours_of_long_ago_are_shown_by_the_hour(views: Views, storage: Storage) -> None:
    since, until = NOW - 3 * DAY, NOW - 3 * DAY + 2 * HOUR
    hours = [hour["requests"] for hour in entries(storage, journal.TRAFFIC) if since <= hour["since"] < until]
    assert ask(views, "models/m", from_=since, to=until)["traffic"]["requests"] == hours


def test_requests_a_second_are_those_of_the_last_minute(
    views: Views, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    minutes = {
        each[0]: each[1] for each in storage.read_json("monitor", "m.json")["versions"][0][1]["minutes"]
    }
    assert ask(views, "models/m")["now"] == minutes[NOW - 60] / 60 > 0
    monkeypatch.setattr(spans.time, "time", lambda: NOW + HOUR)
    assert ask(views, "models/m")["now"] == 0
    assert ask(views, "models/m", period="1h")["traffic"]["total"]["requests"] == 0


def test_performance_is_the_mean_by_rows_and_none_where_nothing_is_known(
    views: Views, storage: Storage
) -> None:
    found = ask(views, "models/m/performance", period="year", cells=12)
    told = found["metrics"]["mae"]["estimated"]["values"]
    looked = entries(storage, journal.LOOKS)
    for (since, until), value in zip(found["at"], told, strict=True):
        inside = [look["quality"] for look in looked if since <= look["since"] and look["until"] <= until]
        weights = [each["rows"] for each in inside]
        expected = np.average([each["estimated"]["mae"] for each in inside], weights=weights)
        assert value == pytest.approx(expected, rel=1e-5)


def test_costs_have_a_place_only_where_somebody_wrote_them(views: Views, storage: Storage) -> None:
    assert ask(views, "models")["models"][0]["cost"] is None
    assert ask(views, "models/m")["has"] == {"costs": False}
    money = {"amount": 0.003, "currency": "EUR"}
    cost = {"at": NOW, "per_1000": money, "total": money}
    storage.write_json(cost, "cost", "m.json")
    assert ask(views, "models")["models"][0]["cost"] == cost["per_1000"]
    assert ask(views, "models/m/costs") == {"cost": cost, "keys": None}
    assert ask(views, "models/m")["has"] == {"costs": True}


def test_each_key_bears_what_it_had_of_a_day_s_rows_and_names_are_for_some_alone(
    views: Views, storage: Storage
) -> None:
    today = NOW // DAY * DAY
    ago = [(40, 9.0), (2, 3.0), (0, 1.0)]
    days = [[today - day * DAY, cost, 100, {}, 0.0] for day, cost in ago]
    total = {"amount": 13.0, "currency": "EUR"}
    storage.write_json({"at": NOW, "days": days, "total": total}, "cost", "m.json")
    # A day of before keys were counted, an hour that is over, and one that goes on.
    lines = [Minute(int(today), keys=Counter(shop=10)).entry("1"), Minute(int(today - 40 * DAY)).entry("1")]
    storage.path(journal.FOLDER, "m", journal.TRAFFIC).write_bytes(b"\n".join(map(orjson.dumps, lines)))
    state = ModelState.from_json(storage.read_json(journal.FOLDER, "m.json"))
    state.versions["1"].hours = [Minute(int(today + HOUR), keys=Counter(shop=10, till=20))]
    storage.write_json(state.to_json(), journal.FOLDER, "m.json")

    def told(period: str) -> list[Any]:
        found = views.answer(["models", "m", "costs"], {"period": period}, names=True)["keys"]
        return [(each["key"], each["version"], each["rows"], each["cost"]) for each in found]

    # Of 60 of today's 100 rows it is not known whose they are, and no key bears what they cost.
    known = [("shop", "1", 20, pytest.approx(0.2)), ("till", "1", 20, pytest.approx(0.2))]
    assert told("24h") == [("", "", 60, pytest.approx(0.6)), *known]
    assert told("7d") == [("", "", 160, pytest.approx(3.6)), *known]
    assert told("year")[0] == ("", "", 260, pytest.approx(12.6))
    assert "shop" not in str(views.answer(["models", "m", "costs"], {"period": "24h", "names": "True"}))
    assert "shop" not in str(views.answer(["models", "m"], {}, names=True))


def test_errors_are_searched_by_text_and_by_what_they_are(views: Views, storage: Storage) -> None:
    watched.errors(storage, "m", NOW)
    every = ask(views, "errors", period="year")
    assert every["count"] == sum(every["by"]["level"].values()) == sum(every["errors"] + every["warnings"])
    for field in ("stage", "type", "level"):
        for value, count in every["by"][field].items():
            found = ask(views, "errors", period="year", **{field: value})
            assert found["count"] == count
            assert {line[field] for line in found["lines"]} == {value}
    assert {line["type"] for line in ask(views, "errors", period="year", q="no space LEFT")["lines"]} == {
        "OSError"
    }
    one = every["lines"][0]["request"]
    assert [line["request"] for line in ask(views, "errors", period="year", q=one)["lines"]] == [one]
    assert ask(views, "errors", q="nothing like it")["lines"] == []


@pytest.mark.parametrize(
    "path",
    [
        *("models/x", "models/..", "models/../secrets", "models/m\0", f"models/{'m' * 300}", "models/M"),
        *("models/m/nothing", "models/m/drift/more", "", "x"),
    ],
)
def test_what_is_not_there_is_not_found(views: Views, storage: Storage, path: str) -> None:
    storage.write_json({"champion": {"version": "1"}}, "secrets.json")
    with pytest.raises(NotFoundError):
        views.answer(path.split("/"), {})


@pytest.mark.parametrize(
    "query",
    [
        {"period": "aeon"},
        {"from": "x", "to": "1"},
        {"from": "2", "to": "1"},
        {"from": "-1"},
        {"to": "nan"},
        {"to": "inf"},
        {"to": "9e99"},
    ],
)
def test_a_period_that_is_none_is_refused_with_a_sentence(views: Views, query: dict[str, str]) -> None:
    with pytest.raises(RequestError):
        views.answer(["models", "m", "drift"], query)


@pytest.mark.parametrize("cells", ["0", "-5", "9" * 30, "x", "1e9", "²"])
def test_nobody_gets_more_steps_than_a_picture_has(views: Views, cells: str) -> None:
    assert len(ask(views, "models/m/drift", period="year", cells=cells)["at"]) <= spans.MOST


def test_a_damaged_document_hides_no_other_model(views: Views, storage: Storage) -> None:
    storage.path("release", "broken.json").write_text("{")
    storage.path("monitor", "m.json").write_text("{")
    (model,) = ask(views, "models")["models"]
    assert (model["name"], model["alarm"], model["now"]) == ("m", None, None)


def test_damaged_lines_hide_no_other(views: Views, storage: Storage) -> None:
    watched.errors(storage, "m", NOW)
    paths = ("drift", "performance", "alarms", "column", "")
    since = {"from_": NOW - 9 * DAY, "to": NOW, "column": "column_03"}
    before = [ask(views, f"models/m/{path}".strip("/"), **since) for path in paths]
    errors = ask(views, "errors", **since)
    for file, old, new in (
        (journal.LOOKS, b'"columns":{', b'"columns":[{'),
        (journal.LOOKS, b'"quality":{', b'"quality":3,"x":{'),
        (journal.TRAFFIC, b'"cells":[', b'"cells":[1,'),
        (journal.TRAFFIC, b'"requests":', b'"requests":-'),
        (journal.WINDOWS, b'"counts":[', b'"counts":[1,'),
        (journal.WINDOWS, b'"edges":[', b'"edges":[\0'),
        (journal.WINDOWS, b'"since":', b'"since":"x","y":'),
    ):
        path = storage.path(journal.FOLDER, "m", file)
        lines = path.read_bytes().split(b"\n")
        # Before the last but one the same, damaged.
        path.write_bytes(b"\n".join([*lines[:-2], lines[-2].replace(old, new), *lines[-2:]]))
    (log,) = storage.root.glob("errors/*.jsonl")
    first = log.read_bytes().splitlines()[0]
    for old, new in ((b'"at":', b'"at":"x","y":'), (b'"count":', b'"count":[],"y":'), (first, b"[1]")):
        with log.open("ab") as file:
            file.write(first.replace(old, new) + b"\n")
    views = Views(storage)
    assert [ask(views, f"models/m/{path}".strip("/"), **since) for path in paths] == before
    assert ask(views, "errors", **since) == errors


def test_what_came_since_is_shown(views: Views, storage: Storage) -> None:
    before = ask(views, "models/m/drift", period="30d")
    seen = watched._look(["column_00", "column_01"], NOW - HOUR, HOUR / 2, 0, np.array([0.7, 0.01]))
    journal.append(storage, "m", journal.LOOKS, seen)
    after = ask(views, "models/m/drift", period="30d")
    assert sum(after["windows"]) == sum(before["windows"]) + 1
    (column,) = [each for each in after["columns"] if each["name"] == "column_00"]
    assert column["psi"][-1] == pytest.approx(0.7, abs=1e-4)
