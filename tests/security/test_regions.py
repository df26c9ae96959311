"""Rows stay in their region: a cluster of two regions and a node of none, and all that each of them holds."""

import json
import re
import shlex
import struct
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlops_ray import audit
from mlops_ray.cluster import jobs, local
from mlops_ray.cluster.jobs import Place
from mlops_ray.cluster.local import LocalCluster
from mlops_ray.policy import HERE
from mlops_ray.storage import Storage

from ..e2e.conftest import clean_environment, processes_of
from ..servers import until
from . import nodes
from .canaries import found_in
from .nodes import Node

#: All stages take a minute on two free cores.
PATIENCE_S = 280.0
pytestmark = pytest.mark.timeout(3 * PATIENCE_S)
HOME, ELSEWHERE = "eu-de", "us-east"
#: Of keys, and of numbers that a model learns from, as text and as memory has them.
CANARIES = ["CANARYsite", ".4711815"]
BINARY = [CANARIES[0].encode(), struct.pack("<d", 5.4711815)]
PROJECT = """
project: small
sources:
  meter:
    path: rows-*.csv
    entity: site
    event_time: {column: time, timezone: UTC}
    known_at: {after_event: 0s}
    columns: {site: {type: category}, load: {type: float, max: 9000}}
    policy: {allowed_regions: [eu-de]}
features:
  past: {source: meter, features: {before: {value_at: {of: load, ago: 2d}}}}
  row: {columns: [site]}
target: {source: meter, expr: load, horizon: 24h, task: regression}
training:
  families: [ridge]
  search: {trials: 2, scheduler: none, resources: {cpu: 0.5}}
  minimum_rows: 10
  validation: {test: {share: 20%}, folds: 1}
  gate: {better_than: []}
serving: {replicas: {max: 1}}
"""
#: Commands after one another in one process, each of a machine in some region, with everything on Ray that
#: may be; a line of each exit status.
DRIVER = """
import json, os, sys
from mlops_ray.cluster import joined
joined.settle()
from mlops_ray import cli
from mlops_ray.features import join
from mlops_ray.serving import score
join.ROWS_IN_PROCESS = score.SMALL_ROWS = 0
for region, *words in json.loads(sys.argv[1]):
    os.environ["MLOPS_REGION"], sys.argv = region, ["mlops-ray", *words]
    try:
        cli.main()
        status = 0
    except SystemExit as end:
        status = end.code
    print("ended with", status, flush=True)
"""
#: Holds rows in the object store until they lie on the disk. Every node hears of a driver's command line.
HOLDER = """
import sys, time
from pathlib import Path
from mlops_ray.cluster import joined
joined.settle()
import ray
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
canary = b"CANARY" + b"site"
held = [ray.put(canary * 400_000) for _ in range(4)]
end = time.monotonic() + 60
while not (found := [p for p in Path(sys.argv[2]).rglob("ray_spilled_objects*/*") if p.is_file()]):
    assert time.monotonic() < end, "nothing is spilled"
    time.sleep(0.1)
print(any(canary in path.read_bytes() for path in found), flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Borders:
    """The cluster, its nodes beside the head, and a project's folder in the head's region."""

    cluster: LocalCluster
    others: tuple[Node, ...]
    folder: Path

    def driver(self, code: str, *words: str) -> subprocess.Popen[str]:
        """A driver on the head's machine."""
        said = self.cluster.environment | {"RAY_ADDRESS": self.cluster.address, HERE: HOME}
        return subprocess.Popen(
            [sys.executable, "-P", "-c", code, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            env=clean_environment() | said | {"HOME": str(self.folder / "home")},
        )

    def commands(self, *commands: list[str]) -> list[str]:
        """What commands say, one after the other, with which status each ends; first stands a region."""
        with self.driver(DRIVER, json.dumps(commands)) as process:
            said = process.communicate(timeout=PATIENCE_S)[0]
        # Both streams are one, and what was put out comes when it ends.
        parts = re.split(r"(?<=ended with \d)\n", said)
        assert len(parts) == len(commands) + 1, said
        return parts[:-1]

    def write(self, name: str, **more: Any) -> str:
        """A project file, its name."""
        document = yaml.safe_load(PROJECT)
        document["serving"]["listen"] = {"port": self.cluster.http_port, "grpc_port": self.cluster.grpc_port}
        document["sources"]["meter"]["policy"]["allowed_regions"] = more.pop("allowed", [HOME])
        (self.folder / name).write_text(yaml.safe_dump(document | more))
        return name

    def listed(self, what: str) -> list[dict[str, Any]]:
        """What Ray's dashboard says of all tasks, actors or nodes that there were."""
        token = Path(self.cluster.environment["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
        asked = urllib.request.Request(
            f"{self.cluster.dashboard}/api/v0/{what}?detail=1&limit=10000",
            headers={"Authorization": f"Bearer {token}"},
        )
        with urllib.request.urlopen(asked, timeout=60) as reply:
            return list(json.load(reply)["data"]["result"]["result"])


@pytest.fixture(scope="module")
def borders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Borders]:
    """The head has one CPU, where rows may be; others have many."""
    home, folder = tmp_path_factory.mktemp("cluster"), tmp_path_factory.mktemp("shared")
    for month in range(1, 5):
        rows = [
            f"2016-{month:02d}-{d:02d},CANARYsite{s},{d % 17 + s}.4711815"
            for d in range(1, 29)
            for s in range(3)
        ]
        (folder / f"rows-{month}.csv").write_text("\n".join(["time,site,load", *rows]) + "\n")
    asked = [f"CANARYsite{s},2016-04-28T0{s}:00:00Z" for s in range(3)]
    (folder / "asked.csv").write_text("\n".join(["site,time", *asked]) + "\n")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(HERE, HOME)
            # What is kept for somebody is put on the disk at once.
            patch.setenv("RAY_object_spilling_threshold", "0.001")
            patch.setenv("RAY_min_spilling_size", "1")
            cluster = local.start(home, cpus=1, gpus=0)
            others = (
                nodes.add(cluster, "127.0.0.2", ELSEWHERE, cpus=2),
                nodes.add(cluster, "127.0.0.3", None, cpus=2),
            )
        made = Borders(cluster, others, folder)
        until(lambda: sum(node["state"] == "ALIVE" for node in made.listed("nodes")) == 3)
        yield made
    finally:
        local.stop(home)
    assert not processes_of(home)


@pytest.fixture(scope="module")
def said(borders: Borders) -> dict[str, list[str]]:
    """What commands said: where all may be done, and of regions that no node, or not the head, is of."""
    ours = borders.write("ours.yaml", storage="state")
    asked = ["--input", "asked.csv", "--output"]
    new = borders.write("none.yaml", storage="none", allowed=["eu-fr"])
    old = borders.write("moved.yaml", storage="state", allowed=["eu-fr"])
    shared = borders.write("shared.yaml", storage="none", allowed=[ELSEWHERE])
    told = borders.write("told.yaml", storage="none", allowed=[ELSEWHERE], regions={"storage": ELSEWHERE})
    commands = {
        "where all may be": [
            [HOME, "run", ours, "--detach"],
            [HOME, "predict", ours, *asked, "answers"],
            [HOME, "status", ours],
        ],
        "where no node is": [
            ["eu-fr", "ingest", new],
            ["eu-fr", "train", new],
            ["eu-fr", "run", new],
            ["eu-fr", "serve", old],
            ["eu-fr", "predict", old, *asked, "others"],
            ["eu-fr", "loadtest", old],
        ],
        "where the head is not": [[ELSEWHERE, "ingest", shared], [ELSEWHERE, "ingest", told]],
    }
    found = iter(borders.commands(*(words for group in commands.values() for words in group)))
    return {what: [next(found) for _ in group] for what, group in commands.items()}


@pytest.fixture(scope="module")
def done(borders: Borders, said: dict[str, list[str]]) -> Borders:
    """All stages have run, from a driver in the region of the rows."""
    assert all(each.endswith("ended with 0") for each in said["where all may be"]), said
    return borders


def test_every_task_trial_and_replica_ran_on_the_node_that_may(done: Borders) -> None:
    names = {node["node_id"]: node["node_ip"] for node in done.listed("nodes")}
    assert sorted(names.values()) == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    tasks, actors = done.listed("tasks"), done.listed("actors")
    ran = Counter(task["name"] for task in tasks)
    # Reading, the join, trials, the fit of the winner, scoring.
    for what in ("ReadRange->MapBatches(Task)", "answer", "_Inner.train", "_refit"):
        assert ran[what] > 0, ran
    kinds = {actor["class_name"] for actor in actors}
    assert {"ServeReplica:small:small", "ServeReplica:monitor:Monitor", "HAProxyManager"} <= kinds, kinds
    assert any(kind.startswith("MapWorker(") for kind in kinds), kinds
    # By this one a command asks a node of its regions whether it sees the storage; no row goes with it.
    tasks = [task for task in tasks if task["name"] != "<lambda>"]
    where = {
        (names.get(each["node_id"]), each.get("name") or each["class_name"]) for each in (*tasks, *actors)
    }
    assert {address for address, _ in where} <= {"127.0.0.1", None}, where


def test_a_row_is_found_in_its_region_and_nowhere_else(done: Borders) -> None:
    # The control: what the same search finds where rows may be.
    folder, head = done.folder, Path(done.cluster.temp_dir, "r")
    stores = {path.relative_to(folder).parts[1] for path in found_in(folder / "state", CANARIES)}
    assert {"features", "datasets", "online.db"} <= stores
    with done.driver(HOLDER, done.cluster.address, str(head)) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        spilled = holder.stdout.readline()
        raylets = {p.pid for p in local.carrying(done.cluster.marker) if p.info["name"] == "raylet"}
        outside = {p.pid for node in done.others for p in node.processes} & raylets
        assert len(outside) == len(done.others)
        in_memory = {pid: nodes.stored(pid, BINARY) for pid in raylets}
        remembered = {node.address: node.remembers(BINARY) for node in done.others}
        holder.stdin.close()
        assert spilled.strip() == "True", holder.stdout.read()
    assert in_memory == {pid: pid not in outside for pid in raylets}
    assert remembered == {node.address: [] for node in done.others}
    for node in done.others:
        assert list(node.folder.rglob("raylet.out"))
        assert found_in(node.folder, CANARIES) == set()


def test_the_audit_record_and_the_status_say_where_it_was(done: Borders, said: dict[str, list[str]]) -> None:
    storage = Storage.open(str(done.folder / "state"))
    entries = list(audit.entries(storage))
    assert audit.verify(storage) == len(entries)
    told = {entry["what"]: entry["about"] for entry in entries if "regions" in entry["about"]}
    done_with = ("read", "joined", "trained on", "scored")
    assert set(told) == {"a model is served", *(f"rows were {what}" for what in done_with)}
    for about in told.values():
        assert (about["regions"], about["here"]) == ([HOME], HOME)
        assert [(node["address"], node["region"]) for node in about["nodes"]] == [("127.0.0.1", HOME)]
    assert "1 in eu-de, as they must be: rows may be in eu-de only" in said["where all may be"][-1]


def test_without_a_node_that_may_each_command_ends_at_once_and_says_which_label_is_missing(
    done: Borders, said: dict[str, list[str]]
) -> None:
    for each in said["where no node is"]:
        assert "no node of the cluster has the label region in (eu-fr), and rows may be on no other" in each
        assert each.endswith("ended with 1")
    assert not found_in(done.folder / "none", CANARIES)


def test_a_head_in_another_region_is_refused_although_nodes_would_be_there(
    said: dict[str, list[str]],
) -> None:
    """It hears what tasks say when they fail, and its front end passes requests on."""
    shared, told = said["where the head is not"]
    assert "regions: rows may be in us-east only, and nobody says where this store stands" in shared
    assert "us-east only, and the head of the cluster is the node 127.0.0.1, in eu-de" in told


def test_what_comes_with_a_job_is_brought_to_no_node_where_nothing_of_it_runs(
    borders: Borders, tmp_path: Path
) -> None:
    """Ray, left alone, brings it to every node when the job's driver begins: that is the control."""
    begin, elsewhere = "import ray; ray.init()", [node.folder for node in borders.others]
    for name in ("CANARYsite", "CANARYcontrol"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
    place = Place.of(borders.cluster.dashboard, clean_environment() | borders.cluster.environment)
    with place.connected() as client:
        ours = jobs.submit(
            client, [sys.executable, "-c", begin], {}, place.token, folder=tmp_path / "CANARYsite"
        )
        until(lambda: client.get_job_status(ours).is_terminal(), PATIENCE_S)
        jobs.require_well(ours, client.get_job_info(ours))
        client.submit_job(
            entrypoint=shlex.join([sys.executable, "-c", begin]),
            runtime_env={"working_dir": str(tmp_path / "CANARYcontrol")},
        )
        until(lambda: all(found_in(folder, ["CANARYcontrol"]) for folder in elsewhere), PATIENCE_S)
    assert found_in(Path(borders.cluster.temp_dir, "r"), CANARIES)
    assert [found_in(folder, CANARIES) for folder in elsewhere] == [set(), set()]
