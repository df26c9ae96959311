"""`mlops-ray serve`, as a user runs it: what was trained once is live again, to callers who come by TLS."""

import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlops_ray import audit, keys
from mlops_ray.client import Client
from mlops_ray.cluster import local
from mlops_ray.serving import record
from mlops_ray.storage import Storage
from tests import receivers
from tests.cluster import certificates
from tests.e2e.conftest import mlops, processes_of
from tests.servers import free_port, until

PATIENCE_S = 60.0
PROJECT = """
project: small
sources:
  meter:
    path: rows.csv
    entity: site
    event_time: {column: time, timezone: UTC}
    known_at: {after_event: 0s}
    columns: {site: {type: category}, load: {type: float, max: 9000}}
features:
  past: {source: meter, features: {before: {value_at: {of: load, ago: 2d}}}}
target: {source: meter, expr: load, horizon: 24h, task: regression}
training:
  families: [ridge]
  search: {trials: 1, scheduler: none}
  minimum_rows: 10
  validation: {test: {share: 20%}, folds: 1}
  gate: {better_than: []}
"""


@dataclass(frozen=True)
class Trained:
    folder: Path
    storage: Storage

    @property
    def file(self) -> Path:
        return self.folder / "project.yaml"

    def listen(self, *alerts: dict[str, object], **said: object) -> None:
        """Writes the project file, which says this of where it listens, and who hears of alarms."""
        more = {"serving": {"listen": said}, "monitoring": {"alerts": alerts}}
        self.file.write_text(
            PROJECT + json.dumps(more)[1:-1].replace(', "monitoring"', '\n"monitoring"') + "\n"
        )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """A project with a champion, and nothing that runs."""
    folder = tmp_path_factory.mktemp("serve")
    made = Trained(folder, Storage.open(str(folder / ".mlops")))
    days = [f"2016-{m:02d}-{d:02d},a,{(m * 31 + d) % 17 + d}" for m in range(1, 5) for d in range(1, 29)]
    (folder / "rows.csv").write_text("\n".join(["time,site,load", *days]) + "\n")
    made.file.write_text(PROJECT)
    try:
        refused = mlops("serve", made.file, "--json")
        assert refused.returncode == 1
        assert "error: 'small' has no champion to serve; mlops-ray run trains one" in refused.stderr
        assert processes_of(made.storage.root) == []
        done = mlops("run", made.file, "--detach", "--json")
        assert done.returncode == 0, done.stderr
        mlops("down", made.file)
        yield made
    finally:
        local.stop(made.storage.root)


def test_all_that_was_done_is_recorded_in_its_order_by_whom(trained: Trained) -> None:
    found = list(audit.entries(trained.storage))
    assert [each["what"] for each in found if each["by"] == audit.who()] == [
        "a key was made", "rows were stored", "a training was begun", "a version was registered",
        "a push was asked for", "a model is served", "the service was stopped",
    ]  # fmt: skip
    turns = [each["about"]["after"]["state"] for each in found if each["by"] == "the service"]
    assert turns == ["registered", "verified", "champion"]
    assert audit.verify(trained.storage) == 10


def test_nothing_starts_for_callers_beyond_this_machine_before_they_have_a_key(trained: Trained) -> None:
    trained.listen(host="0.0.0.0", tls="elsewhere")
    done = mlops("serve", trained.file, "--detach")
    assert done.returncode == 2
    assert "nothing listens on 0.0.0.0 before callers have a key of their own" in done.stderr
    assert processes_of(trained.storage.root) == []


@pytest.fixture
def hearing() -> Iterator[receivers.Web]:
    """Who hears of alarms."""
    with receivers.web() as web:
        yield web


def test_the_champion_is_live_again_by_tls_nothing_is_trained_and_alerts_arrive(
    trained: Trained, hearing: receivers.Web
) -> None:
    certificate, key_file = certificates.write(trained.folder)
    port, grpc_port = free_port(), free_port()
    alerts: tuple[dict[str, object], ...] = ({"webhook": hearing.url}, {"prometheus": True})
    place = {"port": port, "grpc_port": grpc_port, "certificate": certificate, "key": key_file}
    trained.listen(*alerts, host="127.0.0.1", **place)
    key = keys.add(trained.storage, "web", "predict")
    before = [path.name for path in trained.storage.path("reports").iterdir()]
    done = mlops("serve", trained.file, "--detach", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["url"], found["version"]) == (f"https://127.0.0.1:{port}", 1)
    assert set(found["seconds"]) == {"ray", "serve", "first prediction"}
    assert [path.name for path in trained.storage.path("reports").iterdir()] == before
    context = ssl.create_default_context(cafile=certificate)
    client = Client(found["url"], "small", key, PATIENCE_S, context=context)
    answer = client.predict([{"site": "a", "time": "2016-04-28T00:00:00Z"}])
    assert (answer.version, len(answer.predictions)) == ("1", 1)
    client.close()
    state = json.loads(mlops("status", trained.file, "--json").stdout)
    assert (state["state"], state["url"]) == ("live", found["url"])
    running = local.recorded(trained.storage.root)
    assert running is not None
    assert trained.storage.read_json("address.json") == {"url": found["url"], "cluster": running.marker}

    # Who is to hear of alarms does, and is led to where the service is.
    tested = json.loads(mlops("alerts", "test", trained.file, "--json").stdout)
    assert [(each["route"], each["works"]) for each in tested] == [("webhook", True), ("prometheus", True)]
    until(lambda: (trained.storage.read_json("alerts", "told.json") or {}).get("lines"))
    record.ask(trained.storage, "small", "push", 99, by="test")

    listed = json.loads(mlops("status", trained.file, "--ports", "--json").stdout)
    guards = {entry["name"]: (entry["port"], entry["guard"]) for entry in listed}
    assert (guards["front"], guards["haproxy_stats"][1]) == ((str(port), "key"), "firewall")

    # A service that runs takes over what the project says now; all who start it are told what is open.
    trained.listen(*alerts, host="0.0.0.0", **place)
    again = mlops("serve", trained.file, "--detach", "--json")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("our own front end (0.0.0.0, port: ") == 1
    assert again.stderr.count("asks for nothing, whatever one sets: keep it behind a firewall") == 2
    until(lambda: len(hearing.got) == 2)
    (test,), (refused,) = (message["alerts"] for message in hearing.got)
    assert (test["what"], refused["what"], refused["version"]) == ("test", "release", "99")
    assert "version 99 is refused: " in refused["text"]
    assert test["link"] == f"{found['url']}/dashboard#/models/small"
    assert "stopped" in mlops("down", trained.file).stdout
    assert processes_of(trained.storage.root) == []
