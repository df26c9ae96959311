"""`loadtest`: what is asked for, that nobody is disturbed by it or takes it for traffic, and what is kept."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import polars as pl
import pytest

from mlops_ray import cli, keys
from mlops_ray.client import Client
from mlops_ray.cluster import joined, loads, looper, meter, releases
from mlops_ray.cluster.loads import Size, Wanted
from mlops_ray.cluster.local import LocalCluster
from mlops_ray.cluster.stages import Silent
from mlops_ray.config import File, Project
from mlops_ray.cost.model import Capacity
from mlops_ray.data import error_log, prediction_log
from mlops_ray.data.blocks import check_file
from mlops_ray.data.prediction_log import Entry, PredictionLog, Shape
from mlops_ray.data.rows import Rows, together
from mlops_ray.errors import ClusterError, DataError, ServiceError, StorageError
from mlops_ray.features.definitions import compile_features
from mlops_ray.features.store import FeatureStore
from mlops_ray.registry.predictor import Answer
from mlops_ray.registry.registry import Registry
from mlops_ray.schema import NO_FAILURES
from mlops_ray.serving import deploy, loadtest, offering, record
from mlops_ray.serving.loadtest import Objectives
from mlops_ray.serving.offering import Offering, request
from mlops_ray.serving.replica import Probe
from mlops_ray.storage import Storage
from mlops_ray.training import tracking
from tests.cost import cases
from tests.registry import made
from tests.serving import packages
from tests.serving.live import listening, service

ROW = {"site": "a", "time": "2016-11-02T10:00:00Z", "load": 3.0}
REQUEST = orjson.dumps({"inputs": {name: [value] for name, value in ROW.items()}})
HISTORY = "".join(f"{'ab'[n % 2]},2016-11-02T{n:02d}:00:00Z,{n},1\n" for n in range(10))
#: A slow machine is no service that is too slow.
SLO = {"p99_ms": 400, "error_rate": 0.01}
OURS = LocalCluster("0123", 1, "127.0.0.1:6379", "", 8000, {}, "")


def project(storage: Storage) -> Project:
    """Its source has ten rows, which are stored where `stored` says so."""
    source = storage.path("rows.csv")
    source.write_text(f"site,time,load,cost\n{HISTORY}")
    table: Any = packages.PROJECT["sources"]["table"]  # type: ignore[index]
    serving: Any = packages.PROJECT["serving"]
    sources = {"table": table | {"path": str(source)}}
    return packages.project(storage.root, sources=sources, serving=serving | {"slo": SLO})


def stored(of: Project, storage: Storage) -> None:
    source = of.sources["table"]
    for verdict in check_file(File(path=str(storage.path("rows.csv"))), source):
        FeatureStore(of, storage).history("table").append(verdict.valid, source, "first")


def crowned(of: Project, storage: Storage) -> dict[str, Any]:
    """The entry of version 1, champion, which answers the load."""
    package = packages.write(storage.path("made", "1"), of, 1.0)
    entry: dict[str, Any] = packages.crown(storage, of.project, 1, package)["champion"]
    return entry


def registered(of: Project, storage: Storage) -> None:
    """Has version 1 of the model in the registry."""
    uri = deploy.tracking_uri(of, storage)
    experiment = tracking.prepare(uri, of.project, str(storage.root / "artifacts"))
    package = packages.write(storage.path("made", "v1"), of, 1.0)
    with tracking.open_run(uri, experiment, of.project) as run:
        assert Registry(uri).register(package, run_id=run.id) == 1


def answered(of: Project, storage: Storage, sites: list[str]) -> None:
    """Has a row of each site in the prediction log, of just now."""
    request = compile_features(of).request
    now_us = time.time_ns() // 1000
    values = {"site": sites, "time": [now_us] * len(sites), "load": [7.0] * len(sites)}
    asked = together([Rows(request, [values[name] for name in request.names])])
    batch = Answer(
        np.zeros(len(sites)), NO_FAILURES, pl.DataFrame({"amount": [7.0] * len(sites)}), asked=asked
    )
    log = PredictionLog(storage, of.project, "one")
    log.add(Shape("1", "champion"), Entry("id", batch, 0, len(sites), now_us, 1_000, 100))
    log.close()


def asked(of: Project, storage: Storage, rows: int = 1) -> list[dict[str, list[Any]]]:
    """The columns of each request."""
    bodies = loads.asked(of, storage, Silent(), crowned(of, storage), rows)
    return [orjson.loads(body)["inputs"] for body in bodies]


def test_rows_of_the_history_are_asked_for_in_requests_of_the_size_that_is_wanted(storage: Storage) -> None:
    of = project(storage)
    stored(of, storage)
    requests = asked(of, storage, 4)
    assert len(requests) == loads.REQUESTS
    assert all(len(values) == 4 for request in requests for values in request.values())
    assert {load for request in requests for load in request["load"]} == set(range(10))
    assert {site for request in requests for site in request["site"]} == {"a", "b"}


def test_what_callers_asked_for_of_late_goes_before_the_history(storage: Storage) -> None:
    of = project(storage)
    stored(of, storage)
    answered(of, storage, ["a", "b", "a"])
    assert {load for request in asked(of, storage) for load in request["load"]} == {7.0}


def test_where_there_is_no_row_it_says_so(storage: Storage) -> None:
    with pytest.raises(DataError, match="there is no history of 'table' yet"):
        asked(project(storage), storage)


def test_one_load_test_keeps_others_out_and_takes_away_what_a_killed_one_left(storage: Storage) -> None:
    left = storage.path(loads.ASIDE, "tmp1", "keys.json")
    left.write_text("{}")
    storage.path(loads.ASIDE, "tmpfile").write_text("")
    storage.path(loads.ASIDE, "tmplink").symlink_to(storage.root)
    with loads._alone(storage):
        assert list(storage.root.joinpath(loads.ASIDE).glob("tmp*")) == []
        assert storage.root.exists()
        with pytest.raises(StorageError, match="another load test runs"), loads._alone(storage):
            pass
    with loads._alone(storage):
        pass


def test_each_size_is_measured_with_each_other_and_what_is_not_said_is_the_projects_own(
    storage: Storage,
) -> None:
    of = project(storage)
    assert Wanted().sizes(of) == [Size(0.5, 0, 256)]
    both = Wanted(cpus=(1, 2), max_rows=(64, 128)).sizes(of)
    assert [(size.cpu, size.max_rows) for size in both] == [(1, 64), (1, 128), (2, 64), (2, 128)]


def test_what_our_service_refuses_is_left_out_and_what_it_answers_is_understood(tmp_path: Path) -> None:
    served = service(tmp_path)
    rows = made.requests(2)
    good, bad = loads.body(rows), loads.body(rows.with_columns(lag=pl.lit("much")))
    headers = {"Authorization": f"Bearer {served.keys['predict']}", "Content-Type": "application/json"}
    allowed = Objectives(p99_ms=60_000, error_rate=0.001)
    with listening(served) as at:
        url = f"{at}/v2/models/{served.model}/invocations"
        with pytest.raises(ServiceError, match=r"no request is answered: status 422: .*'lag'"):
            loads.answered(url, headers, [bad])
        requests = loads.answered(url, headers, [good, bad])
        with Offering(url, [*requests, request(url, headers, bad)], allowed, "even") as process:
            assert process.closed(2, 0.5) > 0
            with contextlib.closing(process.offer(20.0)) as coming:
                second = next(coming)
    assert len(requests) == 1
    assert (second.due, second.failed, second.late) == (20, 10, 0)


# ---------------------------------------------------------------- replicas in this process


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found is not of interest here, but that it is: coarsely, and from few requests."""
    monkeypatch.setattr(loads, "WARM_UP_S", 1.0)
    monkeypatch.setattr(offering, "MOST_REST_S", 1.0)
    short = {
        "LEAST_S": 3,
        "CONFIRM_S": 3,
        "LONGEST_S": 5,
        "ENOUGH": 50,
        "LATE": 0.2,
        "UP": 4.0,
        "PRECISION": 5.0,
    }
    for name, value in short.items():
        monkeypatch.setattr(loadtest, name, value)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[Probe]:
    """The replicas that a load test starts, each in this process; nothing is asked of Ray."""
    started: list[Probe] = []

    @contextlib.contextmanager
    def lent(name: str, route: str, build: Callable[[], Any], **at: Any) -> Iterator[str]:
        started.append(Probe(*build()._bound_deployment.init_args))
        with listening(started[-1]._endpoint) as url:
            yield f"{url}{route}"
        started[-1]._log.close()

    monkeypatch.setattr(deploy, "lent", lent)
    monkeypatch.setattr(error_log, "install", lambda *_: None)
    monkeypatch.setattr(deploy, "forget", lambda _: None)
    monkeypatch.setattr(loads, "_require_room", lambda *_: None)
    nodes = [meter.Node("a", {"machine": "m7.large"}, 2, 0, 2, 0), meter.Node("b", {}, 2, 0, 2, 0)]
    on = [meter.Replica("a", "rows.loadtest", 0.5, 0), meter.Replica("b", "rows", 0.5, 0)]
    monkeypatch.setattr(
        looper, "RayCluster", lambda: SimpleNamespace(nodes=lambda: nodes, replicas=lambda: on)
    )
    return started


def test_what_is_found_is_kept_and_what_was_asked_is_in_nobodys_log(
    storage: Storage, short: None, here: list[Probe]
) -> None:
    of = project(storage)
    registered(of, storage)
    entry = crowned(of, storage)
    found = loads.LoadTest(of, storage, Silent(), OURS, entry, Wanted(max_rows=(16,))).run([REQUEST])
    (document,), (file,) = found["capacities"], found["files"]
    capacity = Capacity.from_json(document)
    assert 0 < capacity.rate < capacity.high
    assert (capacity.model, capacity.version, capacity.slo) == ("rows", "1", SLO)
    assert (capacity.machine, capacity.cpu, capacity.max_rows) == ("m7.large", 0.5, 16)
    assert orjson.loads(Path(file).read_bytes()) == document
    assert loads.registry(of, storage).versions(of.project)[0]["capacities"] == found["capacities"]
    assert [probe._versions._batching.max_rows for probe in here] == [16]
    assert prediction_log.files(storage, of.project) == []
    assert list(storage.root.joinpath(loads.ASIDE).glob("tmp*")) == []
    assert not storage.root.joinpath(keys.FILE).exists()


def test_what_a_replica_under_load_counts_is_let_go(storage: Storage, here: list[Probe]) -> None:
    of = project(storage)
    test = loads.LoadTest(of, storage, Silent(), OURS, crowned(of, storage), Wanted())
    with test._replicas(Size(0.5, 0, 16)) as (url, headers):
        loads.answered(url, headers, [REQUEST])
        assert here[0]._outbox._tallies
        asyncio.run(here[0]._flush())
        assert here[0]._outbox.delta() is None


def test_on_a_cluster_of_several_nodes_its_replicas_are_reached_as_those_of_a_service(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Any] = []
    monkeypatch.setattr(deploy.serve, "start", lambda **how: heard.append(how["http_options"]))
    monkeypatch.setattr(deploy.serve, "delete", heard.append)
    monkeypatch.setattr(deploy, "_run", lambda applications: None)
    monkeypatch.setattr(deploy, "_wait_until_ready", lambda url, hopeless: heard.append(url))
    monkeypatch.setattr(deploy, "forget", lambda _: None)
    monkeypatch.setattr(loads, "_require_room", lambda *_: None)
    monkeypatch.setattr(joined, "_serves_at", lambda: None)
    of = project(storage)
    listen = of.serving.listen.model_copy(update={"host": "0.0.0.0", "tls": "elsewhere"})
    of = of.model_copy(update={"serving": of.serving.model_copy(update={"listen": listen})})
    at = LocalCluster("", 0, "10.0.0.5:6379", "", 8000, {}, "", host="10.0.0.5")
    test = loads.LoadTest(of, storage, Silent(), at, crowned(of, storage), Wanted())
    below = "http://10.0.0.5:8000/v2/models/rows.loadtest"
    with test._replicas(Size(0.5, 0, 16)) as (url, _):
        assert url == f"{below}/invocations"
    assert heard == [{"host": "0.0.0.0", "port": 8000}, f"{below}/ready", "rows.loadtest"]


def test_of_replicas_on_machines_of_two_types_nothing_is_told(
    storage: Storage, short: None, here: list[Probe]
) -> None:
    looper.RayCluster().replicas().append(meter.Replica("b", "rows.loadtest", 0.5, 0))  # type: ignore[attr-defined]
    of = project(storage)
    test = loads.LoadTest(of, storage, Silent(), OURS, crowned(of, storage), Wanted(max_rows=(16,)))
    with pytest.raises(ClusterError, match=r"several types \(local, m7\.large\): say --machine"):
        test.run([REQUEST])


# ---------------------------------------------------------------- beside a live service


@pytest.fixture
def live(storage: Storage, ray_cluster: LocalCluster) -> Iterator[tuple[Project, str]]:
    """A service whose registry holds version 1, which is champion; and its address."""
    from ray import serve

    of = project(storage)
    registered(of, storage)
    releases.push(of, storage, 1)
    keys.ensure_local(storage)
    yield of, deploy.deploy(of, storage, http_port=ray_cluster.http_port).url
    for application in ("gateway", "reconciler", of.project):
        serve.delete(application)


def test_what_a_replica_bears_is_found_beside_a_live_service_that_does_not_feel_it(
    live: tuple[Project, str], storage: Storage, ray_cluster: LocalCluster, short: None
) -> None:
    from ray import serve

    of, url = live
    entry = record.read(storage, of.project)["champion"]
    since = serve.status().applications[of.project].last_deployed_time_s

    def measured(wanted: Wanted, body: bytes = REQUEST) -> dict[str, Any]:
        return loads.LoadTest(of, storage, Silent(), ray_cluster, entry, wanted).run([body])

    with asking(url, storage) as answers:
        with pytest.raises(ClusterError, match=r"1 x 64 CPU are asked for, and there is room for 0 beside"):
            measured(Wanted(cpus=(64.0,)))
        with pytest.raises(ServiceError, match=r"no request is answered: status 422: .*'z' is none"):
            measured(Wanted(), REQUEST.replace(b'"a"', b'"z"'))
        left = serve.deployment(Left, ray_actor_options={"num_cpus": 1.5}).bind()
        serve.run(left, name=f"{of.project}{loads.SUFFIX}", route_prefix=None)
        found = measured(Wanted(max_rows=(32,)))

    (document,), (file,) = found["capacities"], found["files"]
    capacity = Capacity.from_json(document)
    assert (capacity.model, capacity.version, capacity.cpu, capacity.max_rows) == ("rows", "1", 0.5, 32)
    assert 0 < capacity.rate < capacity.high
    assert capacity.slo == SLO
    assert orjson.loads(Path(file).read_bytes()) == document
    assert Path(file).is_relative_to(storage.root / "capacity" / "rows")
    assert loads.registry(of, storage).versions(of.project)[0]["capacities"] == [document]

    # Whoever called meanwhile was answered, by the same replicas; and theirs alone is the traffic.
    applications = serve.status().applications
    assert applications[of.project].last_deployed_time_s == since
    assert not [name for name in applications if name.endswith(loads.SUFFIX)]
    assert list(storage.root.joinpath(loads.ASIDE).glob("tmp*")) == []
    assert len(answers) > 0
    assert {round(answer, 4) for answer in answers} == {3.0}
    serve.delete(of.project)  # it writes its log
    assert prediction_log.read(storage, of.project).collect().height == len(answers)


class Left:
    """A replica that holds all that is free: of a load test that was killed."""

    def __call__(self) -> None: ...


@contextlib.contextmanager
def asking(url: str, storage: Storage) -> Iterator[list[float]]:
    """The answers to a row that is asked for again and again meanwhile; an error ends it."""
    answers: list[float] = []
    ended = threading.Event()
    key = storage.path("local.key").read_text().strip()

    def ask() -> None:
        with contextlib.closing(Client(url, packages.NAME, key, timeout_s=30, tries=1)) as client:
            while not ended.wait(0.1):
                try:
                    answers.append(float(client.predict([ROW]).predictions[0]))
                except Exception:  # noqa: BLE001 - whatever it is, the test fails by it
                    answers.append(float("nan"))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        ended.set()
        thread.join()


def test_a_terminal_shows_what_a_replica_bears(capsys: pytest.CaptureFixture[str]) -> None:
    found = cases.measured(rate=120.0, high=220.0).to_json()
    cli._print_capacities({"capacities": [found], "notes": ["a note"], "files": ["a.json"]})
    shown = capsys.readouterr().out
    assert all(each in shown for each in ("120", "220", "note: a note", "record      a.json"))
