"""Machine-only columns through all that users do: every file, answer and log is searched for their values.

A service as `mlops-ray run` brings it up, a second version that is released beside callers, and the commands
that look at all of it. What they wrote is searched with Parquet, gzip, archives, Delta and SQLite decoded.
"""

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mlops_ray.cluster import local
from mlops_ray.data import labels, prediction_log
from mlops_ray.data.prediction_log import CHALLENGER, CHAMPION, SHADOW
from mlops_ray.monitoring import journal
from mlops_ray.serving import record
from mlops_ray.storage import Storage

from ..e2e.conftest import COMMAND, clean_environment, processes_of
from ..servers import until
from .canaries import Canary, each_found_in

#: All of it takes two minutes on two free cores.
PATIENCE_S = 280.0
pytestmark = pytest.mark.timeout(3 * PATIENCE_S)
MODEL = "people"
PROJECT = """
project: people
sources:
  people:
    path: given/people-*.csv
    entity: person
    event_time: {column: time, timezone: UTC}
    known_at: {after_event: 0s}
    columns:
      person: {type: category}
      name: {type: string, pattern: "[A-Za-z0-9 ]+"}
      nick: {type: category}
      team: {type: category}
      salary: {type: float, max: 90000000}
      bonus: {type: float, max: 90000000}
      zip: {type: string}
      group: {type: category}
      amount: {type: float, max: 1000}
    derive: {nick: "LEFT(name, 8)"}
    rules:
      - {name: short, require: "LENGTH(name) < 40"}
      - {name: rich, require: "salary < 60000000 OR amount < 5", on_fail: flag}
    policy:
      machine_only: [person, name, team, salary, bonus]
      curated: {rows: 5, where: "amount > 20", mask: {zip: "LEFT(zip, 2)"}}
features:
  past:
    source: people
    features:
      paid: {latest: salary}
      called: {latest: nick}
      side: {latest: team}
      before: {value_at: {of: amount, ago: 2d}}
  row: {columns: [bonus, group]}
  more:
    on_request:
      double: {expr: bonus * 2}
      share: {function: {path: own.share, inputs: [bonus]}}
target: {source: people, expr: amount, horizon: 24h, task: regression}
training:
  families: [ridge]
  search: {trials: 1, scheduler: none, resources: {cpu: 0.5}}
  minimum_rows: 10
  validation: {test: {share: 20%}, folds: 1}
  gate: {better_than: []}
serving: {explain: on_request, replicas: {max: 1}, resources: {cpu: 0.5}}
release:
  shadow: {requests: 5, max_wait: 1m}
  canary: [{weight: 50, requests: 5, max_wait: 1m}]
  per_step: 1s
  effect: 50
monitoring:
  window: 3s
  false_alarms: {max: 1, per: 1d}
  segments: [group]
  alerts: [{log: true}]
cost:
  prices: prices.yaml
  machine: small
  load: 5
  max_age: 36500d
  value_per_prediction: {amount: 0.001, currency: EUR}
"""
PRICES = """
currency: EUR
source: a test
date: 2026-11-01
machines: [{type: small, vcpu: 2, per_hour: 0.1}]
"""
#: Fails on some rows, and quotes them.
OWN = """
def share(bonus):
    if (bonus > 80000000).any():
        raise ValueError(f"too much: {bonus.to_list()}")
    return bonus / 90000000
"""
PEOPLE = range(4)
KEYS = [f"CANARYkey{at}" for at in PEOPLE]
SALARIES = [71003218.4711815, 52017218.4711815, 64021218.4711815, 58030218.4711815]
BONUSES = [30031507.8150743, 20171507.8150743, 40211507.8150743, 10301507.8150743]
#: Of requests that are refused.
TOO_MUCH, FAR_TOO_MUCH = 85001507.8150743, 95001507.8150743
GIVEN, HISTORY, SETS, ONLINE, APART = "given", "features", "datasets", "online.db", "predictions_machine_only"


def stand(*canaries: Canary, at: Sequence[str]) -> dict[Canary, set[str]]:
    return {canary: {*at} for canary in canaries}


#: Where values of columns that nobody may see stand: in the input, in what code reads, and in no other place.
#: This is the control too: a search that was blind would find them nowhere.
PLACES: dict[Canary, set[str]] = {
    **stand(*KEYS, *SALARIES, at=(GIVEN, HISTORY, SETS, ONLINE, APART)),
    **stand(*(f"CANARYteam{at}" for at in PEOPLE), at=(GIVEN, HISTORY, SETS, ONLINE, APART)),
    # The first letters of names, which a column is derived from, and a feature made of.
    **stand(*(f"CANARYn{at}" for at in PEOPLE), at=(GIVEN, HISTORY, SETS, ONLINE, APART)),
    # Requests bring it along; twice as much is a feature.
    **stand(*BONUSES, at=(GIVEN, HISTORY, SETS, APART)),
    **stand(*(2 * bonus for bonus in BONUSES), at=(SETS, APART)),
    # People may see of them what the mask leaves, and no feature reads them.
    **stand("CANARYzip", at=(GIVEN, HISTORY)),
    # Of rows that fail their checks.
    **stand("CANARYbad", "CANARYwide", "CANARYlong", 987654321.25, at=(GIVEN,)),
    **stand("CANARYasked", "CANARYlabel", TOO_MUCH, FAR_TOO_MUCH, at=()),
}
#: What stands in the rows of one person alone, whose are erased.
THEIRS: list[Canary] = [KEYS[0], SALARIES[0], "CANARYteam0", "CANARYn0", BONUSES[0], 2 * BONUSES[0]]
#: Commands after one another in one process, which imports once; a line of each exit status.
DRIVER = """
import json, sys
from mlops_ray.cluster import joined
joined.settle()
from mlops_ray import cli
for words in json.loads(sys.argv[1]):
    sys.argv = ["mlops-ray", *words]
    try:
        cli.main()
        status = 0
    except SystemExit as end:
        status = end.code or 0
    print("ENDED WITH", status, flush=True)
"""
#: What asks for what is not as it should be, and is told so.
MISTAKES = (
    "features get project.yaml --spine given/headless.csv",
    "predict project.yaml --input given/headless.csv --output none",
    "labels load given/wrong.csv project.yaml",
    "labels load given/headless.csv project.yaml",
)
#: The documents of the dashboard about a model.
VIEWS = ("", "/drift", "/performance", "/alarms", "/releases", "/features", "/runs", "/costs")


def people(days: Sequence[int]) -> str:
    """A source's file: rows of four people, of which some fail each check."""
    lines = ["time,person,name,team,salary,bonus,zip,group,amount"]
    for day in days:
        for at in PEOPLE:
            name = f"CANARYn{at} ann{day}" + "!" * (day == 3) + " CANARYlong" * 5 * (day == 4)
            salary = {5: "CANARYbad", 6: "987654321.25"}.get(day, SALARIES[at])
            hidden = (KEYS[at], name, f"CANARYteam{at}", salary, BONUSES[at])
            shown = (f"99CANARYzip{day}", f"g{at % 2}", 2000 if day == 7 else day + at)
            lines.append(",".join(map(str, (f"2020-01-{day:02d}", *hidden, *shown))))
    # A line with a value too many, and a row that comes again.
    return "\n".join([*lines, f"{lines[1]},CANARYwide", lines[1]]) + "\n"


def asked(at: int, day: int) -> dict[str, Any]:
    """What is asked of somebody: the day after the last that is known."""
    time = f"2020-01-{day + 1:02d}T00:00:00Z"
    return {"person": KEYS[at], "time": time, "bonus": BONUSES[at], "group": f"g{at % 2}"}


def tensors(rows: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
    types = {"person": "BYTES", "time": "BYTES", "bonus": "FP64", "group": "BYTES"}
    inputs = [
        {"name": name, "datatype": type, "shape": [len(rows)], "data": [row[name] for row in rows]}
        for name, type in types.items()
    ]
    return {"inputs": inputs, **more}


def wrong(day: int) -> dict[str, tuple[str, Any]]:
    """Requests that are refused: where they go, and what they say."""
    row = asked(0, day)
    short, uneven = tensors([row]), tensors([row])
    short["inputs"][0]["data"] = KEYS
    uneven["inputs"][0] |= {"shape": [len(KEYS)], "data": KEYS}

    def records(**more: Any) -> tuple[str, Any]:
        return "/invocations", {"dataframe_records": [row | more]}

    return {
        "a number that is none": records(bonus="CANARYasked"),
        "a list": records(bonus=[BONUSES[0]]),
        "a number that is too large": records(bonus=FAR_TOO_MUCH),
        "a function that quotes what it was given": records(bonus=TOO_MUCH),
        "a key that is too long": records(person=KEYS[0] * 2_000),
        "a time that is not known yet": records(time="2020-03-01T00:00:00Z"),
        "another shape": ("/infer", short),
        "columns of several lengths": ("/infer", uneven),
        "no JSON": ("/infer", json.dumps(tensors([row])).encode()[:-9]),
        "no header": ("/invocations", f"{','.join(map(str, row.values()))}\n".encode()),
        "an object": ("/invocations", {"instances": {"person": {KEYS[0]: BONUSES[0]}}}),
        "labels without a header": ("/labels", f"{KEYS[0]},{BONUSES[0]}\n".encode()),
        "a label that is none": ("/labels", {"labels": [{"request_id": "r", "label": "CANARYlabel"}]}),
        "a label of a key": ("/labels", {"labels": [{"person": KEYS[0], "label": 3.0}]}),
    }


@dataclass
class World:
    """A project's folder, what was said and answered there, and where canaries were found when."""

    folder: Path
    url: str = ""
    #: The statuses of requests and of commands, by what they are.
    statuses: dict[str, list[int]] = field(default_factory=dict)
    #: Before somebody is erased, and after.
    found: dict[Canary, set[str]] = field(default_factory=dict)
    after: dict[Canary, set[str]] = field(default_factory=dict)
    #: Of Ray, Serve and HAProxy the files that were searched, and those in which a canary stands.
    logs: set[str] = field(default_factory=set)
    in_logs: set[Path] = field(default_factory=set)
    #: The checks that some row failed, and the rows that people see first.
    failed: set[str] = field(default_factory=set)
    preview: dict[str, Any] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=count)

    @cached_property
    def storage(self) -> Storage:
        return Storage.open(str(self.folder / ".mlops"))

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def keep(self, folder: str, what: str, status: int, said: bytes) -> None:
        """What was said, in a file that is searched like any other."""
        self.statuses.setdefault(what, []).append(status)
        path = self.folder / folder / what.replace("/", "_")
        path.parent.mkdir(exist_ok=True)
        with path.open("ab") as file:
            file.write(said)

    # ------------------------------------------------------------ what users do

    def run(self, what: str, *command: str) -> str:
        """What a program says, on a terminal: there progress is told too."""
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE_S,
            cwd=self.folder,
            env=clean_environment() | {"FORCE_COLOR": "1"},
        )
        self.keep("said", what, done.returncode, done.stdout)
        return done.stdout.decode()

    def commands(self, *commands: str) -> None:
        """Several commands in one process: what they import takes as long as what they do."""
        words = json.dumps([command.split() for command in commands])
        said = self.run("several commands", sys.executable, "-P", "-c", DRIVER, words)
        ended = [int(status) for status in re.findall(r"ENDED WITH (\d+)", said)]
        assert len(ended) == len(commands), said
        for command, status in zip(commands, ended, strict=True):
            self.statuses[command] = [status]

    def ask(self, what: str, path: str, body: Any = None, **headers: str) -> int:
        """The status of an answer."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        is_csv = isinstance(body, bytes) and not body.startswith(b"{")
        key = self.storage.path("local.key").read_text().strip()
        headers |= {"Content-Type": "text/csv" if is_csv else "application/json"}
        headers |= {"Authorization": f"Bearer {key}"}
        request = urllib.request.Request(self.url + path, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                status, said = reply.status, str(reply.headers).encode() + reply.read()
        except urllib.error.HTTPError as error:
            status, said = error.code, str(error.headers).encode() + error.read()
        self.keep("answered", what, status, said)
        return int(status)

    def predict(self, rows: Sequence[dict[str, Any]], id: str = "", **more: Any) -> int:
        # Whoever calls may route by what he asks of.
        headers = {"X-Routing-Key": f"{rows[0]['person']} {next(self.numbers)}"}
        headers |= {"X-Request-ID": id} if id else {}
        return self.ask("answers", f"/v2/models/{MODEL}/infer", tensors(rows, **more), **headers)

    # ------------------------------------------------------------ what came of it

    @property
    def is_logged(self) -> bool:
        """Whether every row that was answered is in the log."""
        rows = prediction_log.read(self.storage, MODEL).filter(pl.col("route") != SHADOW)
        return prediction_log.answered(self.storage, MODEL) == rows.select(pl.len()).collect().item()

    def searched(self) -> dict[Canary, set[str]]:
        """In which parts of the storage, and of the folder beside it, each canary stands."""
        found = each_found_in(self.folder, [*PLACES])
        return {canary: {self._place(path) for path in paths} for canary, paths in found.items()}

    def _place(self, path: Path) -> str:
        top, *rest = path.relative_to(self.folder).parts
        # What SQLite keeps beside a database is a part of it.
        return top if top != ".mlops" else rest[0].removesuffix("-wal").removesuffix("-shm")

    def search_logs(self) -> None:
        """What Ray, Serve and HAProxy have written, while it is there."""
        cluster = local.recorded(self.storage.root)
        assert cluster is not None
        self.logs |= {path.name for path in Path(cluster.temp_dir).rglob("*") if path.is_file()}
        self.in_logs |= set[Path]().union(*each_found_in(Path(cluster.temp_dir), [*PLACES]).values())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("people"))
    for name, text in {"project.yaml": PROJECT, "prices.yaml": PRICES, "own.py": OWN}.items():
        made.write(name, text)
    made.write("given/people-1.csv", people(range(1, 25)))
    try:
        learn(made)
        release(made)
        look(made)
        made.found = made.searched()
        erased = ("--source", "people", "--key", f"person={KEYS[0]}", "--reason", "request 17", "--yes")
        made.run("erase", COMMAND, "erase", "project.yaml", *erased)
        made.search_logs()
    finally:
        made.run("down", COMMAND, "down", "project.yaml")
        local.stop(made.storage.root)
    assert not processes_of(made.storage.root)
    made.after = made.searched()
    return made


def learn(world: World) -> None:
    """A first version is live and answers; then there are more rows, and a second version."""
    said = world.run("run", COMMAND, "run", "project.yaml", "--detach")
    assert world.statuses["run"] == [0], said
    cluster = local.recorded(world.storage.root)
    assert cluster is not None
    world.url = f"http://127.0.0.1:{cluster.http_port}"
    report = world.storage.read_json("reports", "validation-people.json")
    world.failed = {check["rule"] for check in report["checks"] if check["failed"]}
    ask_all(world, day=24)
    world.write("given/people-2.csv", people(range(25, 29)))
    world.commands(
        "validate project.yaml",
        "explore project.yaml",
        "rules mine project.yaml",
        "ingest project.yaml",
        "train project.yaml",
    )
    world.preview = world.storage.read_json("reports", "explore-people.json")["preview"]


def ask_all(world: World, day: int) -> None:
    """Requests of all kinds, answered, explained, refused and labelled: a window of the monitor."""
    for at in PEOPLE:
        assert world.predict([asked(at, day)], id=f"one-{day}-{at}") == 200
        # The same again and again: a column that stands still is a fault of which people are told.
        assert world.predict([asked(at, day)] * 60) == 200
    assert world.predict([asked(1, day)], id=f"why-{day}", parameters={"explain": True}) == 200
    records = {"dataframe_records": [asked(at, day) for at in PEOPLE]}
    assert world.ask("records", f"/v2/models/{MODEL}/invocations", records) == 200
    for what, (path, body) in wrong(day).items():
        world.ask(what, f"/v2/models/{MODEL}{path}", body)
    told = [{"request_id": f"one-{day}-{at}", "row": 0, "label": day + at} for at in PEOPLE]
    assert world.ask("labels", f"/v2/models/{MODEL}/labels", {"labels": told}) == 200


def release(world: World) -> None:
    """The second version goes live, in shadow and in a canary first, while others ask."""
    with subprocess.Popen(
        [COMMAND, "push", "latest", "project.yaml"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=world.folder,
        env=clean_environment(),
    ) as pushing:
        while pushing.poll() is None:
            assert world.predict([asked(next(world.numbers) % 4, day=28)]) == 200
        assert pushing.stdout is not None
        world.keep("said", "push", pushing.returncode, pushing.stdout.read())
    ask_all(world, day=28)
    until(lambda: world.is_logged, PATIENCE_S)
    until(lambda: journal.read(world.storage, MODEL, journal.LOOKS), PATIENCE_S)


def look(world: World) -> None:
    """All that people may look at, and what code makes of rows of their own."""
    row = asked(1, day=28)
    other = row | {"bonus": "CANARYbad"}
    lines = [",".join(map(str, each)) for each in (row, row.values(), other.values())]
    world.write("given/asked.csv", "\n".join(lines) + "\n")
    world.write("given/spine.csv", "\n".join(lines[:2]) + "\n")
    world.write("given/headless.csv", f"{lines[1]}\n")
    world.write("given/wrong.csv", f"request_id,row,label\none-28-0,0,{KEYS[0]}\n")
    world.write("truth.csv", "request_id,row,label\none-28-1,0,29.5\n")
    # Of four weeks in windows of three seconds there are too many.
    world.write("weeks.yaml", PROJECT.replace("window: 3s", "window: 7d"))
    manifest = next(world.storage.root.glob(f"datasets/{MODEL}-*.json"))
    world.commands(
        "features list project.yaml",
        "features describe paid project.yaml",
        "features get project.yaml --spine given/spine.csv",
        "features materialize project.yaml",
        f"dataset rebuild {manifest} --project project.yaml",
        "predict project.yaml --input given/asked.csv --output answers",
        "labels load truth.csv project.yaml",
        *MISTAKES,
        "runs project.yaml",
        "models project.yaml",
        "status project.yaml",
        "status project.yaml --json",
        "monitor report project.yaml",
        "replay weeks.yaml",
        "cost project.yaml",
        "profit project.yaml",
        "key list project.yaml",
        "audit list project.yaml",
        "audit verify project.yaml",
    )
    for path in (
        *("/v2", "/v2/models", f"/v2/models/{MODEL}", "/metrics", "/openapi.json"),
        *("/dashboard", "/dashboard/data.json", "/dashboard/data/models", "/dashboard/data/errors"),
        *(f"/dashboard/data/models/{MODEL}{view}" for view in VIEWS),
        *(f"/dashboard/data/models/{MODEL}/column?column={name}" for name in ("paid", "bonus", "before")),
    ):
        assert world.ask(path, path) == 200, path


def test_a_value_that_nobody_may_see_is_where_code_reads_it_and_nowhere_else(world: World) -> None:
    assert world.found == PLACES


def test_no_log_of_the_cluster_holds_one(world: World) -> None:
    assert world.in_logs == set()
    # The control: those of workers, and of the model's replica, were there.
    assert [name for name in world.logs if "worker" in name]
    assert [name for name in world.logs if MODEL in name]


def test_of_an_erased_person_the_input_alone_is_left(world: World) -> None:
    assert world.statuses["erase"] == [0]
    (told,) = labels.new(world.storage, MODEL)
    assert {*told["request_id"]} == {f"one-{day}-{at}" for day in (24, 28) for at in PEOPLE[1:]}
    assert world.after == {
        canary: places & {GIVEN} if canary in THEIRS else places for canary, places in PLACES.items()
    }


def test_requests_were_answered_refused_and_copied_to_the_second_version(world: World) -> None:
    """The control: what could have told a value was done."""
    assert world.failed == {
        "pattern", "short", "type", "max", "rich", "number_of_columns", "same_identity",
    }  # fmt: skip
    refused = {what: world.statuses[what] for what in wrong(28)}
    assert refused.pop("a function that quotes what it was given") == [500, 500]
    assert {status for statuses in refused.values() for status in statuses} <= {400, 422}, refused
    log = prediction_log.read(world.storage, MODEL)
    assert {*log.select("route").collect()["route"]} == {CHAMPION, CHALLENGER, SHADOW}
    turns = record.read(world.storage, MODEL)["history"]
    assert {turn["state"] for turn in turns if turn["version"] == "2"} >= {"shadow", "canary", "champion"}
    # What has not been measured has no profit, and a bill begins after a minute.
    may_fail = ("profit project.yaml", "cost project.yaml")
    commands = {what: statuses for what, statuses in world.statuses.items() if ".yaml" in what}
    assert {what for what, statuses in commands.items() if statuses != [0]} - {*may_fail} == {*MISTAKES}


def test_of_rows_people_see_what_the_policy_says_and_of_the_first_request_nothing(world: World) -> None:
    columns = world.preview["columns"]
    assert not {"person", "name", "nick", "team", "salary", "bonus"} & {*columns}
    assert 0 < len(world.preview["rows"]) <= 5
    assert {row[columns.index("zip")] for row in world.preview["rows"]} == {"99"}
    said = (world.folder / "said" / "run").read_text()
    assert "{'person': '…', 'bonus': '…', 'group': '…', 'time': '2020-01-25T00:00:00+00:00'} →" in said
