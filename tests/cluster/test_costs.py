"""The commands of costs: from a project's own words, what was measured and what ran, to tables and pages."""

import json
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import polars as pl
import pytest
import yaml

from mlops_ray import cli, config, keys
from mlops_ray.cluster import costs, loads, local, meter, service
from mlops_ray.config import Project
from mlops_ray.cost import prices
from mlops_ray.cost.holds import HOLDS
from mlops_ray.data import prediction_log
from mlops_ray.data.counts import Counts, Traffic
from mlops_ray.errors import ConfigError, DataError, ReleaseError, UsageError
from mlops_ray.instants import DAY_S
from mlops_ray.monitoring import callers, journal
from mlops_ray.monitoring.dashboard import parts
from mlops_ray.monitoring.state import Minute, ModelState, Watched, Window
from mlops_ray.serving import record
from mlops_ray.storage import Storage
from tests.cost.cases import measured
from tests.serving import packages

PRICES = """\
currency: EUR
source: a test
date: 2026-11-01
machines:
  - {type: small, vcpu: 2, per_hour: 0.1}
  - {type: other, vcpu: 8, per_hour: 0.01}
"""
#: The hour of which there is a journal, in seconds since 1970.
BEGIN = int(datetime(2026, 11, 2, 12, tzinfo=UTC).timestamp())
WORTH = {"value_per_prediction": {"amount": 0.001, "currency": "EUR"}}
LOAD = {"load": 50}
#: A cluster at an address where nobody answers.
CLUSTER = SimpleNamespace(host="127.0.0.1", http_port=1, environment={}, dashboard="http://127.0.0.1:1")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A project whose champion is version 3, measured on `small`, and prices that never get old."""
    (tmp_path / "prices.yaml").write_text(PRICES)
    write(tmp_path, LOAD | WORTH)
    project, storage = opened(tmp_path / "project.yaml")
    packed = packages.write(storage.path("packages", "three"), project, 2.0)
    packages.crown(storage, packages.NAME, 3, packed)
    storage.write_json(measured(model=packages.NAME).to_json(), costs.CAPACITY, packages.NAME, "one.json")
    return tmp_path / "project.yaml"


def write(folder: Path, cost: dict[str, Any]) -> Path:
    more: dict[str, Any] = {"serving": {"replicas": {"min": 1, "max": 4}}}
    more["cost"] = {"prices": "prices.yaml", "max_age": "36500d"} | cost
    (folder / "project.yaml").write_text(yaml.safe_dump(packages.PROJECT | more))
    return folder / "project.yaml"


def opened(file: Path) -> tuple[Project, Storage]:
    project = config.load(file, {})
    return project, Storage.open(project.storage)


def ran(storage: Storage, **more: Any) -> None:
    """An hour of one node with one replica, in two entries; the second is followed by half a line."""
    replicas = {packages.NAME: {"count": 1, "cpu": 1, "gpu": 0}}
    on = {"node": "n", "type": "small", "cpus": 2, "gpus": 0, "spot": False, "replicas": replicas, "jobs": {}}
    lines = [{"at": BEGIN + 1800 * half, "seconds": 1800, "nodes": [on | more]} for half in (1, 2)]
    storage.path("cost", f"{datetime.fromtimestamp(BEGIN, UTC).date()}.jsonl").write_bytes(
        b"\n".join(map(orjson.dumps, lines)) + b'\n{"at": 1, "sec'
    )


def answered(
    storage: Storage, counts: dict[str, int], route: str = prediction_log.CHAMPION, after: float = 1800
) -> None:
    """Rows that versions answered half an hour after the journal begins."""
    at = datetime.fromtimestamp(BEGIN + after, UTC)
    rows = [
        {"at": at, "request_id": f"{v}-{n}", "row": 0, "model_version": v, "route": route, "prediction": 1.0}
        for v, count in counts.items()
        for n in range(count)
    ]
    frame = pl.DataFrame(rows, schema={name: prediction_log.ABOUT[name] for name in rows[0]})
    day = f"date={at:%Y-%m-%d}"
    frame.write_parquet(storage.path(prediction_log.FOLDER, packages.NAME, day, f"{route}-{after}.parquet"))


def asked(storage: Storage, by: dict[str, dict[str, int]], at: int = BEGIN) -> None:
    """The monitor has written down an hour, with the rows of versions by the names of keys."""
    for version, names in by.items():
        hour = Minute(at, keys=Counter(names)).entry(version)
        journal.append(storage, packages.NAME, journal.TRAFFIC, hour)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    cli.app([*arguments, "--json"], standalone_mode=False)
    return json.loads(capsys.readouterr().out)


# ---------------------------------------------------------------- plan


def test_a_plan_is_of_the_live_version_and_prints_its_reasons(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = said(capsys, "cost", str(file), "--plan")
    assert (found["model"], found["version"], found["notes"]) == (packages.NAME, "3", [])
    chosen = found["options"][found["chosen"]]
    # 50 requests a second, at 70 % of 50 a replica: two, which one node of 0.10 EUR holds.
    assert (chosen["machine"], chosen["replicas"], chosen["nodes"]) == ("small", [2] * 24, [1] * 24)
    assert chosen["per_day"] == pytest.approx(2.4)
    cli.app(["cost", str(file), "--plan"], standalone_mode=False)
    out = capsys.readouterr().out
    assert "small is the cheapest" in out
    assert "Not measured, so not chosen: other." in out


def test_a_machine_that_was_never_measured_is_guessed_where_asked_for_and_not_chosen(file: Path) -> None:
    guessed = costs.plan(*opened(file), estimate=True)
    other = next(each for each in guessed["options"] if each["machine"] == "other")
    assert other["estimated"] == "measured on small, as if the cores of other were as fast"
    assert guessed["options"][guessed["chosen"]]["machine"] == "small"


def test_where_the_live_version_was_not_measured_the_plan_says_of_which_it_is(file: Path) -> None:
    project, storage = opened(file)
    (storage.root / costs.CAPACITY / packages.NAME / "one.json").unlink()
    assert "was not measured yet: mlops-ray loadtest" in costs.plan(project, storage)["notes"][0]
    older = measured(model=packages.NAME, version="2").to_json()
    storage.write_json(older, costs.CAPACITY, packages.NAME, "two.json")
    found = costs.plan(project, storage)
    assert found["notes"] == ["version 3, which is live, was not measured: this is of version 2"]


def test_a_target_of_requests_a_second_is_told_in_nodes_of_each_type_by_hand(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """10,000/s at 70 % of 50 each are 286 replicas of a CPU, on 143 nodes of two; the project allows 4."""
    plan = said(capsys, "cost", str(file), "--plan", "--rate", "10000")
    chosen = plan["options"][plan["chosen"]]
    assert (chosen["machine"], max(chosen["replicas"]), max(chosen["nodes"])) == ("small", 286, 143)
    assert chosen["per_day"] == pytest.approx(143 * 0.1 * 24)
    assert plan["load"] == {"mean": 10_000, "peak": 10_000}
    assert "serving.replicas.max is 4: raise it to 286 for this load" in plan["notes"]
    with pytest.raises(UsageError, match="add --plan"):
        cli.app(["cost", str(file), "--rate", "10"], standalone_mode=False)


def test_a_plan_and_a_bill_take_the_same_price_of_a_machine(file: Path) -> None:
    """It costs 0.1 EUR anywhere, and 0.2 in eu, where the project is."""
    of_eu = PRICES + "  - {type: small, vcpu: 2, per_hour: 0.2, region: eu}\n"
    (file.parent / "prices.yaml").write_text(of_eu)
    write(file.parent, LOAD | {"machine": "small", "region": "eu"})
    project, storage = opened(file)
    ran(storage)
    plan = costs.plan(project, storage)
    assert [o["per_day"] for o in plan["options"] if o["machine"] == "small"] == [pytest.approx(0.2 * 24)]
    assert costs.spent(project, storage, None, None)["total"] == pytest.approx(0.2)


def test_a_load_that_was_recorded_is_planned_for(file: Path) -> None:
    (file.parent / "load.csv").write_text("seconds,rate\n0,10\n3600,60\n")
    write(file.parent, {"load": {"recorded": "load.csv"}})
    assert costs.plan(*opened(file))["load"] == {"mean": 35, "peak": 60}
    for text in ("seconds,rate\n0,10\n3600,many\n", "seconds,rate\n0,1\n5,-1\n", "at,rate\n0,1\n"):
        (file.parent / "load.csv").write_text(text)
        with pytest.raises(
            DataError, match=r"load\.csv, row [23]: a recorded load has numbers in the columns"
        ):
            costs.plan(*opened(file))


def test_what_a_plan_needs_and_the_project_does_not_say_is_named_with_its_place(file: Path) -> None:
    write(file.parent, {})
    with pytest.raises(ConfigError, match=r"project.yaml:\d+: cost.load: no load is declared"):
        costs.plan(*opened(file))
    write(file.parent, LOAD | {"prices": None})
    with pytest.raises(ConfigError, match=r"cost.prices: no prices are named"):
        costs.plan(*opened(file))
    dollars = {"value_per_prediction": {"amount": 1, "currency": "USD"}}
    write(file.parent, LOAD | dollars)
    with pytest.raises(ConfigError, match=r"cost\.prices: are in EUR, and what else is said of money in USD"):
        costs.plan(*opened(file))


def test_old_prices_are_used_with_a_warning(file: Path) -> None:
    write(file.parent, LOAD | {"max_age": "1s"})
    (note,) = costs.plan(*opened(file))["notes"]
    # Who runs it is told as well.
    assert meter.notes(opened(file)[0]) == [note]
    assert note == "2 of 2 prices are older than 1s, or of the future; that of small is of 2026-11-01"


def test_a_damaged_record_of_a_capacity_is_an_error_with_its_file(file: Path) -> None:
    project, storage = opened(file)
    storage.write_json({"model": packages.NAME}, costs.CAPACITY, packages.NAME, "two.json")
    with pytest.raises(DataError, match=r"two\.json: this is no record of a capacity"):
        costs.plan(project, storage)


# ---------------------------------------------------------------- what was spent


def test_what_was_spent_is_told_by_version_and_machine_shadow_copies_left_out(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, storage = opened(file)
    ran(storage)
    answered(storage, {"2": 100, "3": 300})
    answered(storage, {"4": 50}, prediction_log.SHADOW)
    page = file.parent / "costs.html"
    found = said(capsys, "cost", str(file), "--html", str(page))
    assert (found["from"], found["to"]) == ("2026-11-02T12:00:00+00:00", "2026-11-02T13:00:00+00:00")
    assert found["total"] == pytest.approx(0.1)
    versions = [(v["version"], v["predictions"], round(v["cost"], 9)) for v in found["versions"]]
    assert versions == [("2", 100, 0.025), ("3", 300, 0.075)]
    assert [v["per_1000"] for v in found["versions"]] == [pytest.approx(0.25)] * 2
    assert found["shares"] == [
        {
            "kind": "model",
            "name": packages.NAME,
            "machine": "small",
            "spot": False,
            "node_hours": 1.0,
            "reserved_hours": 1.0,
            "cost": pytest.approx(0.1),
        }
    ]
    text = page.read_text()
    assert "0.25 EUR" in text
    assert "idle included" in text
    cli.app(["cost", str(file)], standalone_mode=False)
    assert "0.25 EUR" in capsys.readouterr().out


def test_jobs_are_told_apart_as_a_table_and_as_a_page(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two CPUs a replica holds one, a training a quarter, a load test, another job and others the rest."""
    _, storage = opened(file)
    half = {"count": 1, "cpu": 0.25, "gpu": 0}
    jobs = dict.fromkeys(("training rows", "rows.loadtest", "job nightly (fit.py)", "jobs"), half)
    ran(storage, jobs=jobs)
    page = file.parent / "costs.html"
    found = said(capsys, "cost", str(file), "--html", str(page))
    told = {each["name"]: each["cost"] for each in found["shares"] if each["kind"] == "job"}
    assert told == dict.fromkeys(jobs, pytest.approx(0.0125))
    cli.app(["cost", str(file)], standalone_mode=False)
    out = capsys.readouterr().out
    for name in ("training rows", "load test of rows", "job nightly (fit.py)", "other jobs"):
        assert name in page.read_text()
        assert name in out


def test_a_bill_names_as_many_jobs_as_people_read_and_adds_up(file: Path) -> None:
    project, storage = opened(file)
    ran(storage, jobs={f"job {n}": {"count": 1, "cpu": (n + 1) / 10_000, "gpu": 0} for n in range(120)})
    shares = [each for each in costs.spent(project, storage, None, None)["shares"] if each["kind"] == "job"]
    names = [each["name"] for each in shares]
    assert len(names) == costs.MOST_JOBS + 1
    assert names[:2] == ["jobs", "job 119"]
    # 0.726 CPUs beside the one of the replica bear so much of 0.10 EUR.
    assert sum(each["cost"] for each in shares) == pytest.approx(0.1 * 0.726 / 1.726)


def test_what_was_spent_is_told_by_key_also_of_one_that_is_gone(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, storage = opened(file)
    ran(storage)
    answered(storage, {"2": 100, "3": 300})
    assert said(capsys, "cost", str(file))["keys"] == []
    keys.add(storage, "till <b>", "predict")
    # Of version 3 the hour goes on, and a delta that came late is counted in the next.
    asked(storage, {"2": {"shop": 100}})
    state = ModelState(packages.NAME)
    hours = [Minute(BEGIN + 3600, keys=Counter({"shop": 100, "till <b>": 200}))]
    state.versions["3"] = Watched(Traffic(), Window(0.0, Counts.empty(())), hours=hours)
    storage.write_json(state.to_json(), journal.FOLDER, f"{packages.NAME}.json")
    keys.revoke(storage, "till <b>")
    page = file.parent / "costs.html"
    found = said(capsys, "cost", str(file), "--html", str(page))
    told = [(k["key"], k["version"], k["predictions"], round(k["cost"], 9)) for k in found["keys"]]
    assert told == [("shop", "2", 100, 0.025), ("shop", "3", 100, 0.025), ("till <b>", "3", 200, 0.05)]
    assert [v["predictions"] for v in found["versions"]] == [100, 300]
    assert sum(k["cost"] for k in found["keys"]) == pytest.approx(found["total"])
    assert [k["per_1000"] for k in found["keys"]] == [pytest.approx(0.25)] * 3
    assert "By key" in page.read_text()
    assert "till &lt;b&gt;" in page.read_text()
    cli.app(["cost", str(file)], standalone_mode=False)
    assert "till <b>" in capsys.readouterr().out


def test_a_bill_shares_out_each_hour_and_the_dashboard_each_day_as_both_say(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An hour of one node and an hour of four, each for 100 rows of another key: 0.1 and 0.4 EUR."""
    write(file.parent, LOAD | WORTH | {"machine": "small"})
    project, storage = opened(file)
    ran(storage)
    last = [*meter.entries(storage)][-1]
    meter.append(storage, last | {"at": BEGIN + 7200.0, "seconds": 3600.0, "nodes": last["nodes"] * 4})
    for hour, key in enumerate(("shop", "till")):
        answered(storage, {"3": 100}, after=hour * 3600 + 600)
        asked(storage, {"3": {key: 100}}, BEGIN + hour * 3600)
    page = file.parent / "costs.html"
    found = said(capsys, "cost", str(file), "--html", str(page))
    assert {k["key"]: k["cost"] for k in found["keys"]} == pytest.approx({"shop": 0.1, "till": 0.4})
    meter.settle(project, storage)
    midnight = int(BEGIN // DAY_S * DAY_S)
    settings = meter.settings(storage)[packages.NAME]
    day = meter.day([*meter.entries(storage)], meter.Day.empty(midnight), packages.NAME, settings)
    rows = callers.asked(journal.read(storage, packages.NAME, journal.TRAFFIC), {})
    by_day = parts.by_key([(midnight, day.cost, 200)], rows)
    assert {k["key"]: k["cost"] for k in by_day} == pytest.approx({"shop": 0.25, "till": 0.25})
    assert day.cost == pytest.approx(found["total"])
    # Who reads either learns of the other.
    cli.app(["cost", str(file)], standalone_mode=False)
    assert "the dashboard reckons by the day" in capsys.readouterr().out
    assert "the dashboard reckons by the day" in page.read_text()
    assert (
        "mlops-ray cost reckons by the hour" in (Path(parts.__file__).parent / "assets/model.js").read_text()
    )


def test_rows_of_before_keys_were_counted_are_of_no_key(file: Path) -> None:
    project, storage = opened(file)
    ran(storage)
    answered(storage, {"2": 100, "3": 300})
    # A line of before, and one of a request without a row.
    line = Minute(BEGIN).entry("2")
    del line["keys"]
    journal.append(storage, packages.NAME, journal.TRAFFIC, line)
    asked(storage, {"2": {"shop": 0}}, BEGIN + 3600)
    asked(storage, {"3": {"shop": 7}})
    found = costs.spent(project, storage, None, None)
    assert [(k["key"], k["version"], k["predictions"]) for k in found["keys"]] == [
        ("", "2", 100),
        ("shop", "3", 300),
    ]
    assert costs.key_rows(found)[0][0] == "not known"


def test_only_what_was_metered_in_the_time_asked_for_counts(file: Path) -> None:
    project, storage = opened(file)
    half = datetime.fromtimestamp(BEGIN + 1800, UTC)
    with pytest.raises(DataError, match="nothing was metered then"):
        costs.spent(project, storage, None, None)
    ran(storage)
    assert costs.spent(project, storage, half, None)["total"] == pytest.approx(0.05)
    assert costs.spent(project, storage, None, half)["total"] == pytest.approx(0.05)
    with pytest.raises(DataError, match="nothing was metered then"):
        costs.spent(project, storage, datetime.fromtimestamp(BEGIN + 3600, UTC), None)


def test_rows_that_were_answered_and_are_not_in_the_log_any_more_are_told(file: Path) -> None:
    project, storage = opened(file)
    ran(storage)
    (*_, last) = meter.entries(storage)
    meter.append(storage, last | {"at": BEGIN + 3660.0, "seconds": 60.0, "answered": {packages.NAME: 400}})
    answered(storage, {"3": 300}, after=600)
    answered(storage, {"3": 100}, after=1200)
    assert costs.spent(project, storage, None, None)["notes"] == []
    log = storage.root / prediction_log.FOLDER / packages.NAME
    (erased,) = log.glob("*/*-1200.parquet")
    erased.unlink()
    (note,) = costs.spent(project, storage, None, None)["notes"]
    assert note.startswith(f"100 of 400 rows that {packages.NAME} answered are not in its prediction log")
    assert note.endswith("and so 1,000 predictions cost less than this says")


def test_rows_of_hours_that_were_not_metered_are_not_counted(file: Path) -> None:
    project, storage = opened(file)
    ran(storage)
    answered(storage, {"3": 10})
    # Two hours without a meter, and a minute with one.
    for hours in (1, 2):
        answered(storage, {"3": 500}, after=hours * 3600 + 60)
    (*_, last) = meter.entries(storage)
    meter.append(storage, last | {"at": BEGIN + 3 * 3600.0, "seconds": 60.0})
    answered(storage, {"3": 5}, after=3 * 3600 - 30)
    found = costs.spent(project, storage, None, None)
    assert [(v["version"], v["predictions"]) for v in found["versions"]] == [("3", 15)]
    assert found["hours"] == pytest.approx(1 + 1 / 60)


def test_machines_without_a_price_are_told_and_not_counted(file: Path) -> None:
    project, storage = opened(file)
    ran(storage, type="odd<script>")
    found = costs.spent(project, storage, None, None)
    assert found["total"] == 0
    assert found["notes"] == ["not counted, since the prices have none, or several, of them: odd<script>"]
    assert "<script>" not in costs.html(found)
    answered(storage, {"3": 10})
    with pytest.raises(DataError, match="what serving has cost is not known: not counted, since"):
        costs.profit(project, storage, datetime.fromtimestamp(BEGIN, UTC), None)


def test_a_page_of_what_was_spent_is_not_one_of_a_plan(file: Path) -> None:
    with pytest.raises(UsageError, match="leave out --plan"):
        cli.app(["cost", str(file), "--plan", "--html", "a.html"], standalone_mode=False)


@pytest.mark.parametrize(
    ("cost", "said"),
    [
        (None, ""),
        ({"per_1000": None, "budget": None}, "cost       nothing was answered yet\n"),
        (
            {"per_1000": {"amount": 0.25, "currency": "EUR", "since": BEGIN}, "budget": None},
            "cost       0.25 EUR per 1,000 predictions since 2026-11-02, idle included\n",
        ),
        (
            {
                "per_1000": {"amount": 0.25, "currency": "EUR", "since": BEGIN},
                "budget": None,
                "oldest": "2026-05-01",
                "notes": ["1 of 2 prices are old"],
            },
            "cost       0.25 EUR per 1,000 predictions since 2026-11-02, idle included; "
            "by prices of 2026-05-01 and later; 1 of 2 prices are old\n",
        ),
        (
            {"per_1000": None, "budget": {"per_day": 5.0, "spent": 5.0, "holds": True}},
            "cost       nothing was answered yet; 5 of 5 EUR of today's budget spent (UTC); "
            "no replica is added, and nothing is trained by itself\n",
        ),
    ],
)
def test_the_status_says_what_predictions_cost_and_how_the_budget_stands(
    cost: Any,
    said: str,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, storage = opened(file)
    if cost is not None:
        cost |= {"at": BEGIN, "total": {"amount": 1.0, "currency": "EUR"}, "days": []}
        storage.write_json(cost, "cost", f"{packages.NAME}.json")
        if cost["budget"]:
            hold = {"most_replicas": 1, "until": time.time() + 60, "why": "5 EUR are spent"}
            storage.write_json(hold, HOLDS, f"{packages.NAME}.json")
    lists: dict[str, list[Any]] = {"drift": [], "alarms": [], "invalid": [], "history": []}
    model = lists | {"name": packages.NAME, "version": "3", "state": "champion", "since": "", "requests": {}}
    documents = {"models": [model | {"rows": 0, "challenger": None}]}
    monkeypatch.setattr(local, "find", lambda root: CLUSTER)
    monkeypatch.setattr(service, "_ask", lambda *of: documents)
    cli.app(["status", str(file)], standalone_mode=False)
    shown = capsys.readouterr().out
    assert [line + "\n" for line in shown.splitlines() if line.startswith("cost")] == [said] * bool(said)
    cli.app(["status", str(file), "--json"], standalone_mode=False)
    (told,) = json.loads(capsys.readouterr().out)["models"]
    assert told["cost"] == (
        cost
        and {
            "at": BEGIN,
            "currency": "EUR",
            "held": told["cost"]["held"],
            "oldest": cost.get("oldest"),
            "notes": cost.get("notes", []),
            **{key: cost[key] for key in ("per_1000", "budget")},
        }
    )


# ---------------------------------------------------------------- profit


def test_profit_by_the_plan_by_hand(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """4.32 million predictions of 0.001 EUR are 4,320 EUR a day; serving them costs 2.40 EUR."""
    found = said(capsys, "profit", str(file))
    assert (found["version"], found["by"], found["predictions"]) == ("3", "the plan", 4_320_000)
    assert found["profit"] == pytest.approx(4317.6)
    assert found["break_even_price"] == pytest.approx(2.4 / 4_320_000)
    assert found["break_even_volume"] == pytest.approx(2400)


def test_profit_by_what_was_spent_counts_what_errors_cost(file: Path) -> None:
    """300 of 400 in an hour are 7,200 a day, for 1.80 EUR; each loses 0.041 · 0.01 EUR of 0.001."""
    write(file.parent, WORTH | {"value": {"per_unit_of_error": {"amount": 0.01, "currency": "EUR"}}})
    project, storage = opened(file)
    ran(storage)
    answered(storage, {"2": 100, "3": 300})
    found = costs.profit(project, storage, datetime.fromtimestamp(BEGIN, UTC), None)
    assert (found["predictions"], found["serving"]) == (pytest.approx(7200), pytest.approx(1.8))
    assert found["worth"] == pytest.approx(0.00059)
    assert found["profit"] == pytest.approx(7200 * 0.00059 - 1.8)
    assert found["break_even_price"] == pytest.approx(0.00041 + 1.8 / 7200)


def test_profit_counts_training_over_its_life_and_what_is_stored(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """60 EUR over 30 days are 2 EUR a day; 10 GiB at 0.73 EUR a month of 730 hours are 0.24 EUR a day."""
    asked = dict[tuple[str, int], Any]()
    monkeypatch.setattr(loads, "registry", lambda *_: SimpleNamespace(cost=lambda *key: asked.get(key)))
    monkeypatch.setattr(Storage, "size", lambda self: 10 * 2**30)
    free = said(capsys, "profit", str(file))
    assert (free["training"], free["storage"], free["profit"]) == (0, 0, pytest.approx(4317.6))
    assert free["notes"] == [
        "version 3 was trained without prices: what that took costs nothing here",
        "storage has no price (cost.storage), and costs nothing here",
    ]
    asked[packages.NAME, 3] = {"amount": 60.0, "currency": "EUR"}
    write(file.parent, LOAD | WORTH | {"storage": {"amount": 0.73, "currency": "EUR"}})
    found = said(capsys, "profit", str(file))
    assert (found["training"], found["storage"], found["notes"]) == (2, pytest.approx(0.24), [])
    assert found["profit"] == pytest.approx(4317.6 - 2.24)
    assert found["break_even_volume"] == pytest.approx(4640)
    cli.app(["profit", str(file)], standalone_mode=False)
    assert "training    2 EUR a day\nstorage     0.24 EUR a day" in capsys.readouterr().out
    # Models of one storage bear it alike.
    record.write(Storage.open(config.load(file, {}).storage), record.new("other"))
    assert said(capsys, "profit", str(file))["storage"] == pytest.approx(0.12)
    asked[packages.NAME, 3] = {"amount": 60.0, "currency": "USD"}
    (note,) = said(capsys, "profit", str(file))["notes"]
    assert note == "training version 3 has cost USD, which is not counted here, in EUR"


def test_profit_without_a_worth_a_version_or_a_plan_says_what_is_missing(file: Path) -> None:
    project, storage = opened(file)
    write(file.parent, LOAD)
    with pytest.raises(ConfigError, match="it is not said what a prediction is worth"):
        costs.profit(*opened(file), None, None)
    (storage.root / costs.CAPACITY / packages.NAME / "one.json").unlink()
    with pytest.raises(DataError, match="Nothing that was measured can be chosen"):
        costs.profit(project, storage, None, None)
    with pytest.raises(ReleaseError, match="no version of 'rows' is live yet"):
        costs.profit(project, Storage.open(str(file.parent / "empty")), None, None)


# ---------------------------------------------------------------- prices


def test_prices_are_brought_in_as_a_file_that_a_project_can_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, output = tmp_path / "mine.csv", tmp_path / "prices.yaml"
    table.write_text("\ufefftype,vcpu,price,region\nsmall,2,0.1,eu\nbig,8,0.4,eu\nbig,8,0.3,us\n")
    arguments = ["--output", str(output), "--currency", "EUR", "--column", "per_hour=price", "--region", "eu"]
    command = ["prices", "import", "csv", str(table), *arguments, "--date", "2026-11-01"]
    found = said(capsys, *command)
    assert found == {"output": str(output), "prices": 2, "currency": "EUR", "notes": []}
    listed = prices.load(output)
    assert [(price.type, price.per_hour, price.source) for price in listed.prices] == [
        ("small", 0.1, "mine.csv"),
        ("big", 0.4, "mine.csv"),
    ]
    before = output.read_text()
    with pytest.raises(UsageError, match="is there already: name another, or say --replace"):
        cli.app(command, standalone_mode=False)
    assert output.read_text() == before


def test_what_cannot_be_read_or_written_is_said(tmp_path: Path) -> None:
    for arguments, says in (
        (["csv", str(tmp_path / "none.csv"), "--output", "x.yaml"], "none.csv: cannot be read"),
        (["csv", str(tmp_path / "a.csv"), "--output", str(tmp_path / "no" / "x.yaml")], "cannot write"),
        (
            ["csv", str(tmp_path / "a.csv"), "--output", "x.yaml", "--column", "a"],
            "says nothing on one side",
        ),
    ):
        (tmp_path / "a.csv").write_text("type,vcpu,per_hour,currency\na,1,1,EUR\n")
        with pytest.raises((DataError, UsageError), match=says):
            cli.app(["prices", "import", *arguments], standalone_mode=False)
