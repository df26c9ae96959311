"""Jobs on a cluster that asks for a token: the commands find that cluster, by Ray's own tool and by ours.

The cluster is nobody's: no storage of a project has started it, as with one that others look after.
"""

import json
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlops_ray.client import Client
from mlops_ray.cluster import jobs, local
from mlops_ray.cluster.local import LocalCluster
from mlops_ray.errors import ClusterError

from ..servers import until
from .conftest import COMMAND, clean_environment, processes_of

#: A job does nothing in 8 s on two free cores, and `run` takes 25 s.
PATIENCE_S = 280.0
pytestmark = pytest.mark.timeout(2 * PATIENCE_S)
SECRET = "s3cret-value-of-a-variable"
PROJECT = """
project: small
storage: {storage}
sources:
  meter:
    path: rows.csv
    entity: site
    event_time: {{column: time, timezone: UTC}}
    known_at: {{after_event: 0s}}
    columns: {{site: {{type: category}}, load: {{type: float, max: 9000}}}}
features:
  past: {{source: meter, features: {{before: {{value_at: {{of: load, ago: 2d}}}}}}}}
target: {{source: meter, expr: load, horizon: 24h, task: regression}}
training:
  families: [ridge]
  search: {{trials: 1, scheduler: none}}
  minimum_rows: 10
  validation: {{test: {{share: 20%}}, folds: 1}}
  gate: {{better_than: []}}
serving: {{replicas: {{max: 1}}, listen: {{port: {port}, grpc_port: {grpc_port}}}}}
monitoring: {{alerts: [{{webhook: "${{ALERT_URL}}"}}]}}
"""


@dataclass(frozen=True)
class Cluster:
    """A cluster of its own, and a project in a folder that its nodes see."""

    cluster: LocalCluster
    folder: Path

    @property
    def place(self) -> jobs.Place:
        """Where jobs go."""
        return jobs.Place.of(self.cluster.dashboard, self.environment)

    @property
    def environment(self) -> dict[str, str]:
        """What Ray's documentation has people set to use it."""
        token = self.cluster.environment["RAY_AUTH_TOKEN_PATH"]
        return clean_environment() | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token}

    def run(self, *words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        """A command of this machine's, with more of an environment."""
        return subprocess.run(
            [*map(str, words)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            cwd=self.folder,
            env=self.environment | more,
        )

    def submit(self, *words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        return self.run(COMMAND, "submit", *words, RAY_ADDRESS=self.cluster.dashboard, **more)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    home, folder = tmp_path_factory.mktemp("cluster"), tmp_path_factory.mktemp("shared")
    days = [f"2016-{m:02d}-{d:02d},a,{(m * 31 + d) % 17 + d}" for m in range(1, 5) for d in range(1, 29)]
    (folder / "rows.csv").write_text("\n".join(["time,site,load", *days]) + "\n")
    try:
        made = local.start(home, cpus=2, gpus=0)
        ports = {"port": made.http_port, "grpc_port": made.grpc_port}
        (folder / "project.yaml").write_text(PROJECT.format(storage=folder / "state", **ports))
        (folder / "within.yaml").write_text(PROJECT.format(storage=".mlops", **ports))
        yield Cluster(made, folder)
    finally:
        local.stop(home)
    assert not processes_of(home)


def test_a_plain_ray_job_trains_and_serves_and_the_endpoint_outlives_it(there: Cluster) -> None:
    ray = Path(sys.executable).parent / "ray"
    words = ("--address", there.cluster.dashboard, "--", "mlops-ray", "run", there.folder / "project.yaml")
    done = there.run(ray, "job", "submit", *words, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"url"')))
    assert found["url"] == f"http://127.0.0.1:{there.cluster.http_port}"
    # The job has started no cluster of its own.
    assert f"cluster at {there.cluster.address}" in done.stdout
    assert not (there.folder / "state" / local.RECORD).exists()
    request = urllib.request.Request(f"{found['url']}/v2/models/small/infer", b"{}")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request, timeout=60)
    key = (there.folder / "state" / "local.key").read_text().strip()
    client = Client(found["url"], "small", key=key, timeout_s=60)
    answer = client.predict([{"site": "a", "time": "2016-04-28T00:00:00Z"}])
    client.close()
    assert (answer.version, len(answer.predictions)) == ("1", 1)


def test_a_submitted_command_shows_its_log_and_finds_what_the_one_before_left(there: Cluster) -> None:
    train = ("mlops-ray", "train", there.folder / "project.yaml")
    done = there.submit("--", *train, ALERT_URL=f"http://a/{SECRET}")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("train small") and "unchanged" in line for line in lines), done.stdout
    assert f"at {there.cluster.dashboard}, with ALERT_URL" in done.stderr
    listed = there.run(COMMAND, "jobs", "list", "--json", RAY_ADDRESS=there.cluster.dashboard)
    first = json.loads(listed.stdout)[0]
    assert (first["status"], first["exit"]) == ("SUCCEEDED", 0)
    assert first["command"] == shlex.join(map(str, train))
    # What went along stands neither there, nor in what Ray keeps of jobs, nor in the log of any process.
    with there.place.connected() as client:
        kept = str([job.dict() for job in client.list_jobs()])
    assert "mlops_ray.environment" in kept
    assert SECRET not in done.stdout + done.stderr + listed.stdout + kept
    logs = [path for path in Path(there.cluster.temp_dir).rglob("*") if path.is_file()]
    assert logs
    assert [path for path in logs if SECRET.encode() in path.read_bytes()] == []


def test_a_storage_within_the_upload_is_refused_and_the_exit_status_is_the_commands(there: Cluster) -> None:
    done = there.submit(
        "--working-dir", ".", "--env", "MINE", "--", "mlops-ray", "train", "within.yaml", MINE="1"
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert ".mlops is a copy for this job on one node" in done.stdout
    assert "ended with exit status 2" in done.stderr


def test_a_variable_reaches_a_command_that_is_not_ours_and_a_job_can_be_stopped(there: Cluster) -> None:
    with there.place.connected() as client:
        command = ["sh", "-c", "echo $MINE; exec sleep 600"]
        id = jobs.submit(client, command, {"MINE": "it is there"}, there.place.token)
        until(lambda: "it is there" in client.get_job_logs(id))
        assert jobs.stopped(client, id) == "STOPPED"
        found = {job["id"]: job for job in jobs.listed(client)}[id]
        assert (found["status"], found["command"]) == ("STOPPED", shlex.join(command))
    with pytest.raises(ClusterError, match="nope does not exist"), there.place.connected() as client:
        jobs.followed(client, "nope", print, print)


def test_a_job_tells_of_the_service_of_its_cluster_and_takes_it_down(there: Cluster) -> None:
    file = there.folder / "project.yaml"
    done = there.submit("--", "sh", "-c", f"mlops-ray status {file} --json && mlops-ray down {file}")
    assert done.returncode == 0, done.stdout + done.stderr
    *_, told, said = done.stdout.splitlines()
    state = json.loads(told)
    assert (state["state"], state["models"][0]["version"]) == ("live", "1")
    assert said == "stopped"
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{state['url']}/v2/health/live", timeout=60)


def test_a_token_that_is_wrong_or_missing_costs_a_sentence(there: Cluster, tmp_path: Path) -> None:
    address = ("jobs", "list", "--address", there.cluster.dashboard)
    wrong = there.run(COMMAND, *address, RAY_AUTH_TOKEN="of-another-cluster")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert f"{there.cluster.dashboard} refuses the token: it is another cluster's" in wrong.stderr
    missing = there.run(COMMAND, *address, RAY_AUTH_TOKEN_PATH="", HOME=str(tmp_path))
    assert missing.returncode == 1
    assert "asks for a token: put it into RAY_AUTH_TOKEN" in missing.stderr
