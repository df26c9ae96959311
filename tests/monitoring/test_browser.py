"""The page in a real browser: what it asks for and says, who can reach and read it, how it stays fresh."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from benchmarks import watched
from benchmarks.browser import PAINTED, Page, browser
from mlops_ray import keys
from mlops_ray.monitoring import journal
from mlops_ray.monitoring.alarms import Alarms, Episode
from mlops_ray.monitoring.dashboard import spans
from mlops_ray.serving.routes import Routes
from mlops_ray.storage import Storage
from tests.conftest import require, require_package
from tests.serving.live import listening

DAY = 86_400.0
MODEL = "#/models/north/"
#: Every part of the page, and how it may be asked for.
PAGES = (
    "#/?period=quarter",
    "#/errors?period=year",
    "#/models/north?period=30d",
    f"{MODEL}drift?period=quarter",
    f"{MODEL}drift?period=quarter&column=column_01",
    f"{MODEL}performance?period=quarter",
    f"{MODEL}alarms?period=year",
    f"{MODEL}errors?period=year",
    f"{MODEL}releases",
    f"{MODEL}features",
    f"{MODEL}runs",
    f"{MODEL}costs",
    "#/models/south/drift",
    "#/models/south/performance",
    "#/nowhere",
    "#/models/nobody",
)
WIDTHS = (390, 1024, 1920)


@dataclass
class Shown:
    """A tab in which somebody has logged in, the service's address, and what it shows."""

    page: Page
    url: str
    storage: Storage
    key: str
    now: float

    def go(self, address: str) -> None:
        self.page.go(f"{self.url}/dashboard{address}")

    @property
    def text(self) -> str:
        return str(self.page.run("document.querySelector('#main').innerText"))


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """A model with an alarm, two hundred windows and errors, and one that is new."""
    storage = Storage.open(str(tmp_path_factory.mktemp("shown")))
    now = float(spans.time.time())
    watched.made_up(storage, "north", 200, DAY, 12, now=now, busy=300)
    watched.made_up(storage, "south", 0, DAY, 3, now=now, busy=300)
    watched.errors(storage, "north", now)
    watched.loop(storage, "north", now)
    storage.write_json({"at": watched._iso(now), "runs": _runs(now)}, "runs", "north.json")
    storage.write_json(_cost(now), "cost", "north.json")
    _alarmed(storage, now)
    key = keys.add(storage, "keeper", "admin")
    with listening(Routes(storage, _snapshot)) as url, browser(require("chromium")) as tab, tab() as page:
        found = Shown(page, url, storage, key, now)
        page.size(1024, 800)
        page.log_in(url, key)
        yield found


def _runs(now: float) -> list[dict[str, Any]]:
    """A job and its trials, as `training.runs` writes them down."""
    job = {"run": "a" * 32, "parent": None, "started": watched._iso(now), "family": "hist_gradient_boosting"}
    job |= {"metric": "relative_mae", "score": 0.12, "folds": 4, "seconds": 93.0, "state": "finished"}
    job |= {"rows": 36_000, "dataset": "d" * 32, "predict_us": 12.3, "params": {}}
    params = {"learning_rate": 0.0512, "max_leaf_nodes": 31, "min_samples_leaf": 20, "max_iter": 800}
    trial = job | {"parent": "a" * 32, "params": params, "state": "complete", "currency": "EUR"}
    trials = [
        trial | {"run": f"{n}" * 32, "score": 0.12 + n / 100, "cost": 0.004 - n / 1000} for n in range(3)
    ]
    # An older one of before trials were priced, and one that was stopped.
    trials += [trial | {"run": "8" * 32, "cost": None}, trial | {"run": "9" * 32, "state": "stopped"}]
    return [job | {"cost": 0.01, "currency": "EUR"}, *trials]


def _cost(now: float) -> dict[str, Any]:
    """What a model costs, whose budget of the day is spent, as `cluster.meter` writes it down."""
    today = int(now // DAY * DAY)
    return {
        "at": now,
        "per_1000": {"amount": 0.003, "currency": "EUR", "since": today - DAY},
        "parts": [{"name": "replicas", "amount": 0.003}],
        "prices": ["a made-up list, 2026-11-01"],
        "notes": ["1 of 1 prices are older than 90d"],
        "days": [[today - DAY, 0.3, 7_000, {}, 0.0], [today, 0.4, 8_000, {}, 0.05, {"jobs": 0.05}]],
        "jobs": [{"name": f"job nightly_{n} (fit.py)", "amount": 0.05 / n} for n in range(1, 13)],
        "total": {"amount": 0.7, "currency": "EUR"},
        "budget": {"per_day": 0.4, "spent": 0.4, "holds": True},
    }


async def _snapshot() -> dict[str, Any]:
    return {}


def _alarmed(storage: Storage, now: float) -> None:
    document = storage.read_json(journal.FOLDER, "north.json")
    what = {"since": now - 3 * DAY, "kind": "input", "harm": 1.0}
    what |= {"evidence": "column_01 is larger: <b>half</b> lies above 0.7"}
    document["alarms"] = Alarms(now, [Episode(now - 3 * DAY, "1", {"column_01": what})]).to_json()
    storage.write_json(document, journal.FOLDER, "north.json")


@pytest.fixture(scope="module")
def axe() -> str:
    require_package("axe_core_python")
    return resources.files("axe_core_python").joinpath("axe.min.js").read_text("utf-8")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_is_drawn_without_an_error_and_asks_nobody_else(
    shown: Shown, width: int, dark: bool
) -> None:
    page = shown.page
    page.size(width, 900, dark=dark)
    for address in PAGES:
        page.asked.clear()
        shown.go(address)
        # What is not there is answered with 404, which is no error of the page.
        said = [text for text in page.said if "status of 404" not in text or "models/nobody" not in text]
        page.said.clear()
        assert said == [], address
        hosts = {urlsplit(url).netloc for url in page.asked if url.startswith("http")}
        assert hosts == {urlsplit(shown.url).netloc}, address
        page.run("document.querySelectorAll('details').forEach((each) => (each.open = true))")
        page.run(PAINTED)
        assert page.run("document.documentElement.scrollWidth <= window.innerWidth"), f"{address} is too wide"
        assert page.run(_HIDDEN_BY_ANOTHER) == [], address
        assert page.run("document.querySelector('#main h1').innerText.length > 0"), address


#: Texts that lie over the one that comes next, and the tab that is shown where it is out of sight.
_HIDDEN_BY_ANOTHER = """(() => {
  const box = (node) => node.getBoundingClientRect(), found = [];
  for (const each of document.querySelectorAll("summary > *, .cell > *, .found > li > *, .log li > *")) {
    const a = box(each), next = each.nextElementSibling, b = next && box(next);
    if (b && a.width && b.width && a.right > b.left + 1 && b.right > a.left + 1
      && a.bottom > b.top + 1 && b.bottom > a.top + 1) found.push(each.innerText);
    if (each.scrollWidth > each.clientWidth + 1 && getComputedStyle(each).display !== "inline"
      && getComputedStyle(each).overflowX === "visible") found.push(each.innerText);
  }
  const tab = document.querySelector(".tabs [aria-current]"), tabs = tab && box(tab.parentElement);
  if (tab && (box(tab).left < tabs.left - 1 || box(tab).right > tabs.right + 1)) found.push(tab.innerText);
  return found;
})()"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_everybody_can_read_and_reach_what_is_there(shown: Shown, axe: str, width: int, dark: bool) -> None:
    shown.page.size(width, 900, dark=dark)
    for address in PAGES:
        shown.go(address)
        shown.page.run("document.querySelectorAll('details').forEach((each) => (each.open = true))")
        assert _violations(shown.page, axe) == [], address


def test_everybody_can_log_in(shown: Shown, axe: str) -> None:
    page = shown.page
    page.call("Network.clearBrowserCookies")
    page.call("Page.navigate", url=f"{shown.url}/dashboard?login")
    page.until("document.querySelector('#key') !== null")
    assert _violations(page, axe) == []
    page.log_in(shown.url, shown.key)


def _violations(page: Page, axe: str) -> list[Any]:
    page.run(f"window.axe || ({{}}, (0, function () {{ {axe} }}).call(window)); true")
    found = page.run(
        "axe.run(document, {resultTypes: ['violations']})"
        ".then(({violations}) => violations.map(({id, nodes}) =>"
        " [id, nodes.slice(0, 3).map(({html, failureSummary}) => [html.slice(0, 200), failureSummary])]))"
    )
    return list(found)


def test_a_link_leads_where_it_says_also_after_the_login(shown: Shown) -> None:
    address = f"{MODEL}drift?period=quarter&column=column_01"
    shown.page.log_in(shown.url, shown.key, address)
    assert shown.page.run("location.hash") == address
    shown.page.until("document.querySelector('.side .distribution, .side .note') !== null")
    assert "column_01" in str(shown.page.run("document.querySelector('.side').innerText"))


@pytest.mark.parametrize("ends", ["from=x&to=y", "from=9e99&to=9e100", "from=2&to=1"])
def test_a_link_to_a_period_that_is_none_says_so(shown: Shown, ends: str) -> None:
    shown.go(f"#/models/north?{ends}")
    assert "seconds since 1970" in shown.text
    shown.page.said.clear()


def test_from_what_is_not_there_the_way_back_leads_to_what_was(shown: Shown) -> None:
    shown.go("#/models/south/runs")
    before = shown.text
    shown.page.run("location.hash = '#/models/nobody'")
    shown.page.until("document.querySelector('h1').innerText === 'Nothing here'")
    shown.page.run("history.back()")
    shown.page.until(f"document.querySelector('#main').innerText === {json.dumps(before)}")
    shown.page.said.clear()


def test_pages_follow_each_other_and_lead_back(shown: Shown) -> None:
    page = shown.page
    page.size(1024, 900)
    shown.go("#/")
    page.run("document.querySelector('.models a').click()")
    page.until("document.querySelector('h1').innerText === 'north'")
    page.run("[...document.querySelectorAll('.tabs a')].find((link) => link.innerText === 'Drift').click()")
    page.until("document.querySelector('.cells canvas') !== null")
    page.run("[...document.querySelectorAll('.periods a')].find((link) => link.innerText === 'Year').click()")
    page.until("location.hash.includes('period=year') && !document.querySelector('#main').ariaBusy")
    page.run("history.back()")
    page.until("location.hash === '#/models/north/drift'")
    page.run("history.back()")
    page.until("location.hash === '#/models/north' && document.querySelector('.tiles') !== null")
    page.run("history.back()")
    page.until("document.querySelector('h1').innerText === 'Models'")


def test_the_keyboard_reaches_everything_that_can_be_used(shown: Shown) -> None:
    page = shown.page
    page.size(1024, 900)
    for address in (f"{MODEL}drift?period=quarter", "#/errors?period=year", "#/"):
        shown.go(address)
        usable = "a[href], button, input, select, summary, [tabindex='0']"
        count = page.run(
            f'[...document.querySelectorAll("{usable}")].filter((each) => each.checkVisibility()).length'
        )
        reached: set[Any] = set()
        # One more is the browser's own.
        for _ in range(count + 1):
            page.press("Tab")
            reached.add(page.run(_WHICH))
        reached.discard("BODY")
        assert len(reached) == count, address


#: Something that tells the focused node from all others.
_WHICH = (
    "(() => { const it = document.activeElement; return it === document.body ? 'BODY' :"
    " [...document.querySelectorAll('*')].indexOf(it); })()"
)


def test_the_heat_map_is_walked_with_arrows_and_opened_with_enter(shown: Shown) -> None:
    page = shown.page
    page.size(1024, 900)
    shown.go(f"{MODEL}drift?period=quarter")
    page.run("document.querySelector('.cells').focus()")
    page.press("ArrowDown", "ArrowDown", "ArrowLeft")
    told = str(page.run("document.querySelector('.told').innerText"))
    name = page.run("document.querySelectorAll('.names .name')[1].innerText")
    assert told.startswith(f"{name}, ")
    assert "PSI" in told
    page.press("Enter")
    page.until(
        "location.hash.includes('column=') && document.querySelector('.side .distribution svg') !== null"
    )
    assert page.run("document.querySelector('.side h2').innerText") == name
    # The focus stays, so that the next cell is one key away.
    assert page.run("document.activeElement.classList.contains('cells')")
    page.press("ArrowUp", "Enter")
    page.until(f"document.querySelector('.side h2').innerText !== {json.dumps(name)}")


def test_what_came_since_is_shown_without_a_flicker(shown: Shown) -> None:
    page, storage = shown.page, shown.storage
    page.size(1024, 900)
    shown.go(f"{MODEL}drift?period=quarter")
    page.run(
        "document.querySelector('.cells').focus(); window.kept = document.querySelector('.cells canvas')"
    )
    page.run(
        "window.gone = 0;"
        "new MutationObserver((all) => all.forEach((each) => (gone += each.removedNodes.length)))"
        ".observe(document.querySelector('#main'), {childList: true, subtree: true})"
    )
    before = shown.text
    seen = watched._look(
        [f"column_{n:02d}" for n in range(12)], shown.now - DAY / 2, DAY / 4, 0, np.full(12, 0.6)
    )
    journal.append(storage, "north", journal.LOOKS, seen)
    # As it does every few seconds.
    page.run("dispatchEvent(new HashChangeEvent('hashchange'))")
    page.until(f"document.querySelector('#main').innerText !== {json.dumps(before)}")
    assert page.run("document.querySelector('.cells canvas') === kept")
    assert page.run("document.activeElement.classList.contains('cells')")
    assert page.run("gone") < 5


def test_a_search_finds_errors_and_its_address_can_be_shared(shown: Shown) -> None:
    page = shown.page
    page.size(1024, 900)
    shown.go("#/errors?period=year")
    page.run("document.querySelector('input').focus()")
    page.call("Input.insertText", text="No space left")
    page.until(
        "location.hash.includes('No+space+left') && document.querySelectorAll('.errors > li').length > 0"
        " && [...document.querySelectorAll('.errors .said')]"
        ".every((each) => /No space left/.test(each.innerText))"
    )
    assert page.run("document.activeElement.value") == "No space left"
    address, found = page.run("location.hash"), shown.text
    shown.go("#/")
    shown.go(address)
    assert shown.text == found


def test_what_others_wrote_is_text_and_no_markup(shown: Shown) -> None:
    shown.go("#/models/north")
    assert "<b>half</b> lies above" in shown.text


def test_costs_say_since_when_of_whom_and_that_the_budget_is_spent(shown: Shown) -> None:
    day = f"{datetime.fromtimestamp(shown.now // DAY * DAY - DAY):%-d %b}"
    shown.go("#/")
    assert f"0.003 EUR since {day}" in shown.text.replace("\n", "")
    shown.go("#/models/north")
    assert f"since {day}" in str(shown.page.run("document.querySelector('.tile:last-child').innerText"))
    shown.go(f"{MODEL}costs")
    table = str(shown.page.run("document.querySelector('[aria-label=Keys] tbody').innerText"))
    assert [line.split("\t")[:2] for line in table.splitlines()] == [
        ["not known", "–"],
        ["shop", "1"],
        ["till", "1"],
    ]
    jobs = str(shown.page.run("document.querySelector('[aria-label^=Trainings] tbody').innerText"))
    assert jobs.splitlines()[0].split("\t") == ["job nightly_1 (fit.py)", "0.05"]
    assert "2 more" in shown.text
    assert "0.4 of 0.4 EUR" in shown.text
    assert "By prices of: a made-up list, 2026-11-01" in shown.text
    assert "1 of 1 prices are older than 90d" in shown.text
    assert "no replica is added, nothing is trained by itself" in shown.text
    try:
        shown.page.log_in(shown.url, keys.add(shown.storage, "reader", "read"), f"{MODEL}costs")
        shown.page.until("/role admin/.test(document.querySelector('#main').innerText)")
        assert "shop" not in shown.text
    finally:
        shown.page.log_in(shown.url, shown.key)


def test_trials_are_shown_by_quality_against_cost(shown: Shown) -> None:
    shown.go(f"{MODEL}runs")
    shown.page.run("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    assert "93 s, 0.01 EUR, 36K rows" in shown.text
    table = str(shown.page.run("document.querySelector('[aria-label^=Trials] table').innerText"))
    head, first, *_ = (line.split("\t") for line in table.splitlines())
    assert (head[5], first[2], first[5]) == ("Cost, EUR", "0.12", "0.004")
    dots = str(
        shown.page.run("[...document.querySelectorAll('.scatter title')].map((e) => e.textContent).join()")
    )
    told = [f"{n * 8}, hist gradient boosting: cost of fits, EUR {c}, relative mae {s}" for n, c, s in DOTS]
    assert dots == ",".join(told)


#: Of each trial that ended: how it is called, its cost, its score.
DOTS = [("0", "0.004", "0.12"), ("1", "0.003", "0.13"), ("2", "0.002", "0.14")]


def test_an_empty_page_says_what_to_do(shown: Shown) -> None:
    for part, word in {
        "drift": "mlops-ray replay",
        "performance": "window",
        "runs": "mlops-ray train",
    }.items():
        shown.go(f"#/models/south/{part}")
        assert word in shown.text, part


def offline(page: Page, is_so: bool) -> None:
    """Takes the network from the browser, or gives it back."""
    unbounded = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.call("Network.emulateNetworkConditions", offline=is_so, **unbounded)


def test_a_service_that_is_away_is_said_to_be_and_what_was_there_stays(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = shown.page
    shown.go("#/")
    offline(page, True)
    try:
        page.run("dispatchEvent(new HashChangeEvent('hashchange'))")
        page.until("/trying again/.test(document.querySelector('#said').innerText)")
        assert "north" in shown.text
    finally:
        offline(page, False)
    page.run("dispatchEvent(new HashChangeEvent('hashchange'))")
    page.until("/^Live/.test(document.querySelector('#said').innerText)")
    page.said.clear()
