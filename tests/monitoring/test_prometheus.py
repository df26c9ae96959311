"""A real Prometheus fires on what we export, by the rules in configs/, and the dashboard there shows it."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from mlops_ray import keys
from mlops_ray.monitoring import alarms, looks
from mlops_ray.monitoring.alarms import QUIET, Alarms, Finding
from mlops_ray.monitoring.deltas import Outbox
from mlops_ray.monitoring.metrics import metrics_text
from mlops_ray.monitoring.report import report
from mlops_ray.monitoring.state import ModelState
from mlops_ray.serving import record
from mlops_ray.serving.routes import Routes
from mlops_ray.storage import Storage
from tests.conftest import ROOT, require
from tests.servers import PrometheusServer, prometheus
from tests.serving import packages
from tests.serving.live import listening

NAME = packages.NAME
CONFIGS = ROOT / "configs"
RULES = CONFIGS / "prometheus" / "rules.yml"
RULE_TESTS = ROOT / "tests" / "fixtures" / "prometheus" / "rules_test.yml"
DASHBOARD = CONFIGS / "grafana" / "mlops_ray.json"
DAY = 86_400.0
#: Rows of a batch.
ROWS = 4


@dataclass
class World:
    """A released model, one that was sent back, and traffic, of which all metrics have something to say."""

    storage: Storage
    state: ModelState
    #: What was spent, which is 0.001 for each row that is answered.
    spent: float = 0.0

    async def snapshot(self) -> dict[str, Any]:
        """What the monitor answers."""
        self.answers()
        sent = [("webhook", "sent", 3), ("email", "failed", 2)]
        return {NAME: report(self.storage, self.state) | {"alerts": sent}}

    def answers(self) -> None:
        """More traffic comes in: answers, refusals, failures, values that fail a check; and it costs."""
        self.spent += 0.001 * ROWS
        self.storage.write_json(self.cost, "cost", f"{NAME}.json")
        amounts = np.full(60, 50.0)
        tally = Outbox(NAME).tally("1", self.specs)
        tally.observe(pl.DataFrame({"amount": amounts, "hour": np.arange(60) % 24}), amounts)
        tally.traffic.requests.update({"200": 60, "422": 3, "500": 2})
        tally.traffic.rejected.update({"invalid_row": 3})
        tally.traffic.invalid.update({("amount", "max"): 3})
        tally.traffic.request_us.update(1_500)
        tally.traffic.batch_rows.update(ROWS)
        sequence = max((number for number, _ in self.state.sources.values()), default=0) + 1
        head = {"model": NAME, "window_s": DAY, "false_alarms": [1.0, 90 * DAY], "source": "r"}
        self.state.receive(head | {"sequence": sequence, "versions": {"1": tally.to_json()}}, time.time())

    @property
    def cost(self) -> dict[str, Any]:
        money = {"amount": self.spent, "currency": "EUR"}
        counted = money | {"answered": 1000 * self.spent}
        return {"model": NAME, "at": 1.0, "total": money, "counted": counted}

    @property
    def specs(self) -> Any:
        return looks.releases(self.storage, NAME)["1"].reference.specs

    def look(self, *findings: Finding) -> None:
        self.state.alarms.take(alarms.look(time.time(), 0.01, findings), "1")


@pytest.fixture
def world(storage: Storage) -> World:
    packed = packages.write(storage.path("packages", "one"), packages.project(storage.root), 1.0)
    packages.crown(storage, NAME, 1, packed)
    document = record.read(storage, NAME)
    failed = {"turn": 9, "version": "2", "state": "rolled_back", "step": 0, "reason": "", "at": ""}
    record.write(storage, document | {"history": [*document["history"], failed]})
    quality = {how: {"mae": 1.5} for how in ("estimated", "realised")}
    return World(storage, ModelState(NAME, alarms=Alarms(time.time() - DAY), quality=quality))


@pytest.fixture
def server(world: World, tmp_path: Path) -> Iterator[PrometheusServer]:
    """Prometheus, which scrapes our own /metrics with a key, by the files in configs/ but every second."""
    require("prometheus")
    folder = tmp_path / "prometheus"
    shutil.copytree(CONFIGS / "prometheus", folder)
    (folder / "mlops.key").write_text(keys.add(world.storage, "prometheus", "read"))
    with listening(Routes(world.storage, world.snapshot)) as address:
        file = folder / "prometheus.yml"
        text = file.read_text().replace("127.0.0.1:8000", address.removeprefix("http://"))
        file.write_text(text.replace("15s", "1s"))
        with prometheus(folder) as running:
            yield running


def firing(found: Any) -> set[tuple[str, str]]:
    """The names of alerts that fire, with the kind or state that they are about."""
    return {
        (alert["labels"]["alertname"], alert["labels"].get("kind") or alert["labels"].get("state", ""))
        for alert in found["alerts"]
        if alert["state"] == "firing"
    }


ALARM = ("MlopsAlarm", "input")


def test_prometheus_fires_on_an_alarm_and_on_a_failed_release_until_they_are_over(
    world: World, server: PrometheusServer
) -> None:
    failed = ("MlopsReleaseFailed", "rolled_back")
    found = server.until(lambda found: failed in firing(found), "alerts")
    assert ALARM not in firing(found)
    world.look(Finding("amount", "input", 1e-9, True, "amount is larger", 1.0))
    found = server.until(lambda found: ALARM in firing(found), "alerts")
    (alert,) = [each for each in found["alerts"] if each["labels"]["alertname"] == "MlopsAlarm"]
    assert alert["labels"]["model"] == NAME
    assert alert["annotations"]["summary"] == f"{NAME}: 1 findings of kind input"
    for _ in range(QUIET):
        world.look(Finding("amount", "input", 0.9, False))
    server.until(lambda found: ALARM not in firing(found), "alerts")


def test_every_picture_of_the_dashboard_shows_something(world: World, server: PrometheusServer) -> None:
    world.look(Finding("amount", "input", 1e-9, True, "amount is larger", 1.0))
    for title, expression in pictures():
        asked = expression.replace("$model", ".+").replace("$__rate_interval", "1m")
        server.until(lambda found: found["result"], "query", query=asked)
        assert title


def test_a_thousand_predictions_are_drawn_at_what_they_cost(world: World, server: PrometheusServer) -> None:
    (expression,) = [each for title, each in pictures() if title == "Cost of 1,000 predictions"]

    def is_right(found: Any) -> bool:
        return any(
            (each["metric"], round(float(each["value"][1]))) == ({"model": NAME, "currency": "EUR"}, 1)
            for each in found["result"]
        )

    server.until(is_right, "query", query=expression.replace("$model", ".+"))


def pictures() -> list[tuple[str, str]]:
    """The titles of the dashboard, each with an expression."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [(panel["title"], target["expr"]) for panel in panels for target in panel["targets"]]


def test_each_rule_fires_on_what_it_is_for_and_on_no_less() -> None:
    program = require("promtool")
    for command in (["check", "rules", "--lint-fatal", RULES], ["test", "rules", RULE_TESTS]):
        done = subprocess.run([program, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    rules = set(re.findall(r"- alert: (\w+)", RULES.read_text()))
    assert rules == set(re.findall(r"alertname: (\w+)", RULE_TESTS.read_text()))


def test_rules_and_dashboard_ask_for_metrics_that_we_export(world: World) -> None:
    world.answers()
    documents = record.read_all(world.storage)
    snapshot = {NAME: report(world.storage, world.state) | {"alerts": [("webhook", "sent", 1)]}}
    text = metrics_text(snapshot, documents, [world.cost]).decode()
    exported = set(re.findall(r"^(mlops_\w+?)\{", text, re.MULTILINE))
    asked = {
        name
        for file in (RULES, RULE_TESTS, DASHBOARD)
        for name in re.findall(r"\bmlops_\w+\b(?=[\[{]|, model)", file.read_text())
    }
    assert len(asked) >= 12
    assert asked <= exported
    # What the interface says that there is.
    assert exported >= {
        "mlops_requests_total", "mlops_request_seconds_bucket", "mlops_batch_rows_count",
        "mlops_rejected_total", "mlops_drift_psi", "mlops_alarm", "mlops_estimated_metric",
        "mlops_realised_metric", "mlops_log_rows_lost_total", "mlops_cost_total",
    }  # fmt: skip


def test_a_damaged_document_of_costs_spoils_no_other_metric(world: World) -> None:
    whole = world.cost["counted"]
    damaged: list[Any] = [{}, [], {"model": NAME}, {"model": NAME, "counted": {"currency": "EUR"}}]
    damaged += [{"model": NAME, "counted": whole | {"amount": what}} for what in (None, "much")]
    text = metrics_text({}, [], [*damaged, world.cost]).decode()
    told = re.findall(r"^mlops_cost\w*_total.*", text, re.MULTILINE)
    assert told == [
        f'mlops_cost_total{{currency="EUR",model="{NAME}"}} 0.0',
        f'mlops_cost_predictions_total{{model="{NAME}"}} 0.0',
    ]


def test_a_version_s_role_is_that_of_the_release(world: World) -> None:
    world.answers()
    document = record.read(world.storage, NAME)
    challenger = {"version": "1", "state": "canary"}
    going = document | {
        "champion": document["champion"] | {"version": "7"},
        "challenger": challenger,
        "weight": 10.0,
    }
    text = metrics_text({NAME: report(world.storage, world.state)}, [going]).decode()
    assert f'mlops_requests_total{{code="200",model="{NAME}",role="challenger",version="1"}} 60.0' in text
    assert f'mlops_release{{model="{NAME}",state="canary",version="1"}} 0.1' in text
    assert f'mlops_release{{model="{NAME}",state="champion",version="7"}} 0.9' in text
    assert 'role="champion"' not in text
