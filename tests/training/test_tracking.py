"""Whatever happens to the driver or to a request, each trial is in MLflow once and whole."""

import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from mlops_ray.errors import StorageError
from mlops_ray.training import tracking
from mlops_ray.training.environment import environment, git_state
from mlops_ray.training.leaderboard import Trial
from tests.servers import free_port

TRIALS = [
    Trial(
        str(number),
        "ridge",
        {"alpha": 0.5 * number},
        0.2 + number,
        (0.1 + number, 0.3 + number),
        1.5,
        "complete",
    )
    for number in range(4)
]
MANIFEST: dict[str, Any] = {
    "digest": "d" * 64,
    "rows": 1234,
    "columns": [{"name": "load", "type": "float"}, {"name": "site", "type": "category"}],
    "target": {"source": "meter", "expr": "load", "where": None, "task": "regression"},
}
ENVIRONMENT = {
    "code": "0.1.0",
    "python": "3.11.0",
    "requirements": ["numpy==2.4.6"],
    "git": {"commit": "none", "dirty": "none"},
}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=["sqlite", "http"])
def uri(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where MLflow is: a file, then a server."""
    if request.param == "http":
        return str(request.getfixturevalue("mlflow_server"))
    return f"sqlite:///{tmp_path_factory.mktemp('sqlite') / 'mlflow.db'}"


@pytest.fixture
def project(request: pytest.FixtureRequest) -> str:
    """A project's name that no other test has."""
    return f"{request.node.name}"


def _prepared(uri: str, project: str, folder: Path) -> str:
    return tracking.prepare(uri, project, str(folder / "artifacts") if uri.startswith("sqlite") else None)


def _nested(uri: str, project: str, run_id: str) -> list[tracking.Recorded]:
    found = [run for run in tracking.recorded(uri, project) if run.parent == run_id]
    return sorted(found, key=lambda run: run.params.get("alpha", -1.0))


def _assert_whole(uri: str, nested: list[tracking.Recorded], trials: list[Trial]) -> None:
    """Each trial once, with all that there is of it."""
    client = MlflowClient(uri)
    assert [(run.status, run.params) for run in nested] == [
        ("FINISHED", {"family": "ridge", **trial.params}) for trial in trials
    ]
    for run, trial in zip(nested, trials, strict=True):
        assert run.metrics["score"] == trial.score
        steps = client.get_metric_history(run.id, "fold_score")
        assert [(step.step, step.value) for step in steps] == list(enumerate(trial.fold_scores))


def test_a_job_holds_all_that_it_was_made_from_and_what_came_of_it(
    uri: str, project: str, tmp_path: Path
) -> None:
    failed = Trial("9", "lasso", {"alpha": 9.0}, float("nan"), (), 0.0, "failed", "boom")
    with tracking.open_run(uri, _prepared(uri, project, tmp_path), project) as run:
        run.log_origin(MANIFEST, "mae", ENVIRONMENT)
        for trial in (*TRIALS, failed):
            run.log_trial(trial)
        run.log_trial(replace(TRIALS[0], id="8", params={"alpha": 8.0}, cost=0.125))
        run.log_params({"family": "ridge", "shape": (64, 32), "none": None, "text": "sqrt"})
        run.log_metrics({"mae": 0.25, "roc_auc": float("nan")})
        run.log_leaderboard([*TRIALS, failed])
        run.log_files({"plots/roc.svg": "<svg/>", "card.md": "# Ü"})
    job = next(found for found in tracking.recorded(uri, project) if found.parent is None)
    assert (job.id, job.project, job.status) == (run.id, project, "FINISHED")
    assert job.params == {"family": "ridge", "shape": [64, 32], "none": None, "text": "sqrt"}
    assert job.metrics == {"mae": 0.25}
    assert job.seconds is not None
    assert (job.tags["mlops.dataset"], job.tags["mlops.rows"]) == ("d" * 64, "1234")
    assert (job.tags["mlops.target"], job.tags["mlops.metric"]) == ("load", "mae")
    nested = _nested(uri, project, run.id)
    _assert_whole(uri, nested[:4], TRIALS)
    assert nested[4].metrics[tracking.COST] == 0.125
    assert tracking.COST not in nested[0].metrics
    assert (nested[5].status, nested[5].tags["mlops.error"]) == ("FAILED", "boom")
    client = MlflowClient(uri)
    folder = Path(client.download_artifacts(run.id, "", str(tmp_path)))
    assert json.loads((folder / "training_set.json").read_text()) == MANIFEST
    assert (folder / "requirements.txt").read_text() == "numpy==2.4.6"
    assert (folder / "plots" / "roc.svg").read_text() == "<svg/>"
    assert (folder / "card.md").read_text() == "# Ü"
    assert len(json.loads((folder / "leaderboard.json").read_text())) == 5
    table = (folder / "leaderboard.csv").read_text().splitlines()
    assert table[0] == "id,family,params,score,fold_scores,seconds,state,error,predict_us,cost"
    assert len(table) == 6


def test_what_is_written_again_stands_there_once(uri: str, project: str, tmp_path: Path) -> None:
    with tracking.open_run(uri, _prepared(uri, project, tmp_path), project) as run:
        for trial in TRIALS * 2:
            run.log_trial(trial)
        for _ in range(2):
            run.log_metrics({"mae": 0.25})
            run.log_params({"alpha": 1.0})
    _assert_whole(uri, _nested(uri, project, run.id), TRIALS)
    assert len(MlflowClient(uri).get_metric_history(run.id, "mae")) == 1


#: Drivers that are killed: between two trials, or just before one of MLflow's calls.
STEPS = ("between", "log_batch", "set_terminated")
DRIVER = """
import os, signal, sys
from mlflow.tracking import MlflowClient
from mlops_ray.training import tracking
from tests.training.test_tracking import TRIALS

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def drive(uri, experiment, project, step):
    with tracking.open_run(uri, experiment, project) as run:
        for trial in TRIALS[:2]:
            run.log_trial(trial)
        if step != "between":
            setattr(MlflowClient, step, die)
            run.log_trial(TRIALS[2])
        die()

uri, *steps = sys.argv[1:]
for step in steps:
    experiment = tracking.prepare(uri, "killed-" + step, None)
    child = os.fork()
    if not child:
        drive(uri, experiment, "killed-" + step, step)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
"""


@pytest.fixture(scope="module")
def killed(uri: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where drivers wrote that were killed, one for each of `STEPS`, in the project `killed-STEP`."""
    command = [sys.executable, "-c", DRIVER, uri, *STEPS]
    subprocess.run(command, check=True, cwd=tmp_path_factory.mktemp("killed"), env=_environment())
    return uri


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_driver_that_goes_on_loses_and_doubles_no_trial(killed: str, step: str) -> None:
    project = f"killed-{step}"
    experiment = tracking.prepare(killed, project, None)
    before = next(run for run in tracking.recorded(killed, project) if run.parent is None)
    assert before.status == "RUNNING"
    with tracking.open_run(killed, experiment, project, resume=before.id) as run:
        for trial in TRIALS:
            run.log_trial(trial)
    _assert_whole(killed, _nested(killed, project, run.id), TRIALS)
    jobs = [job for job in tracking.recorded(killed, project) if job.parent is None]
    assert [(job.id, job.status) for job in jobs] == [(before.id, "FINISHED")]


def test_a_killed_run_that_nobody_resumes_is_closed_as_killed_with_its_open_trial(
    mlflow_server: str, project: str, tmp_path: Path
) -> None:
    experiment = _prepared(mlflow_server, project, tmp_path)
    client = MlflowClient(mlflow_server)
    with tracking.open_run(mlflow_server, experiment, project) as dead:
        for trial in TRIALS[:2]:
            dead.log_trial(trial)
    client.update_run(dead.id, "RUNNING")
    client.update_run(_nested(mlflow_server, project, dead.id)[1].id, "RUNNING")
    host, pid, _ = tracking._driver().split(" ")
    # The same number, of a process that began long ago.
    client.set_tag(dead.id, tracking.DRIVER, f"{host} {pid} 1.0")
    with tracking.open_run(mlflow_server, experiment, project) as run:
        states = {found.id: found.status for found in tracking.recorded(mlflow_server, project)}
    assert states.pop(run.id) == "RUNNING"
    assert states.pop(dead.id) == "KILLED"
    assert sorted(states.values()) == ["FINISHED", "KILLED"]


def test_a_run_that_another_process_writes_stays_open(
    mlflow_server: str, project: str, tmp_path: Path
) -> None:
    experiment = _prepared(mlflow_server, project, tmp_path)
    with (
        tracking.open_run(mlflow_server, experiment, project) as one,
        tracking.open_run(mlflow_server, experiment, project) as two,
    ):
        # As if this one ran elsewhere.
        MlflowClient(mlflow_server).set_tag(two.id, tracking.DRIVER, "another-machine 1 0.0")
        with tracking.open_run(mlflow_server, experiment, project) as three:
            found = {run.id: run.status for run in tracking.recorded(mlflow_server, project)}
    assert found == dict.fromkeys([one.id, two.id, three.id], "RUNNING")


WRITERS = """
import os, sys
from tests.training.test_tracking import many
from mlops_ray.training import tracking

def write(project):
    with tracking.open_run(uri, tracking.prepare(uri, project, None), project) as run:
        for trial in many(6):
            run.log_trial(trial)

uri, *projects = sys.argv[1:]
children = {}
for project in projects:
    child = os.fork()
    if not child:
        write(project)
        sys.exit()
    children[child] = project
for child in children:
    assert os.waitpid(child, 0)[1] == 0
"""


def many(count: int) -> list[Trial]:
    return [replace(TRIALS[1], id=str(number), params={"alpha": float(number)}) for number in range(count)]


def test_two_projects_write_to_one_server_at_once(mlflow_server: str) -> None:
    command = [sys.executable, "-c", WRITERS, mlflow_server, "left", "right"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=_environment(), check=True)
    # MLflow's client would print where to look.
    assert done.stdout == ""
    for project in ("left", "right"):
        job = next(run for run in tracking.recorded(mlflow_server, project) if run.parent is None)
        assert job.status == "FINISHED"
        _assert_whole(mlflow_server, _nested(mlflow_server, project, job.id), many(6))


def _unsure(address: str, is_lost: Callable[[str], bool]) -> ThreadingHTTPServer:
    """A way to the server that does what is asked and loses the first answer to what `is_lost` names."""
    lost: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked = urllib.request.Request(
                address + self.path, body or None, {"Content-Type": "application/json"}, method=self.command
            )
            with urllib.request.urlopen(asked) as reply:
                said = reply.read()
            is_lost_now = is_lost(self.path) and not lost
            if is_lost_now:
                lost.append(self.path)
            self.send_response(503 if is_lost_now else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        do_GET = do_POST = do_PATCH = _pass_on  # noqa: N815

        def log_message(self, *args: Any) -> None:
            """Says nothing."""

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    return proxy


@pytest.mark.parametrize("call", ["runs/create", "runs/log-batch", "runs/update"])
def test_a_request_that_is_repeated_since_its_answer_was_lost_doubles_nothing(
    mlflow_server: str, project: str, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    experiment = _prepared(mlflow_server, project, tmp_path)
    opened: list[str] = []
    proxy = _unsure(mlflow_server, lambda path: bool(opened) and path.endswith(call))
    try:
        with tracking.open_run(f"http://127.0.0.1:{proxy.server_port}", experiment, project) as run:
            opened.append(run.id)
            for trial in TRIALS:
                run.log_trial(trial)
    finally:
        proxy.shutdown()
        proxy.server_close()
    _assert_whole(mlflow_server, _nested(mlflow_server, project, run.id), TRIALS)


def test_long_values_and_many_values_are_kept_apart(uri: str, project: str, tmp_path: Path) -> None:
    params = {f"p{number}": "x" * 7000 + str(number) for number in range(150)}
    with tracking.open_run(uri, _prepared(uri, project, tmp_path), project) as run:
        run.log_params(params)
        run.log_metrics({f"m{number}": float(number) for number in range(1200)})
        run.set_tags({"long": "y" * 9000})
    job = tracking.recorded(uri, project)[0]
    assert len(job.metrics) == 1200
    assert len(set(job.params.values())) == 150
    assert all(len(value) == 6000 for value in job.params.values())
    assert len(job.tags["long"]) == 8000


@pytest.mark.parametrize(("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_how_a_job_ended_is_recorded(
    mlflow_server: str, project: str, tmp_path: Path, error: type[BaseException], status: str
) -> None:
    with (
        pytest.raises(error),
        tracking.open_run(mlflow_server, _prepared(mlflow_server, project, tmp_path), project),
    ):
        raise error
    assert [run.status for run in tracking.recorded(mlflow_server, project)] == [status]


def test_what_is_not_there_is_said_in_a_sentence(
    mlflow_server: str, project: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracking.recorded(mlflow_server, "nobody") == []
    with (
        pytest.raises(StorageError, match=r"Run with id=0{32} not found"),
        tracking.open_run(
            mlflow_server, _prepared(mlflow_server, project, tmp_path), project, resume="0" * 32
        ),
    ):
        pass
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(StorageError, match=r"MLflow \(tracking\) does not do what it is asked"):
        tracking.prepare(f"http://127.0.0.1:{free_port()}", project, None)


def test_the_state_of_the_projects_folder_is_that_of_git(tmp_path: Path) -> None:
    none = {"commit": "none", "dirty": "none"}
    assert git_state(tmp_path) == git_state(tmp_path / "absent") == none
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=b"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert git_state(tmp_path)["commit"] == "none"
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert git_state(tmp_path) == {"commit": commit.strip(), "dirty": "false"}
    (tmp_path / "new").write_text("")
    assert git_state(tmp_path)["dirty"] == "true"


def test_no_program_that_a_repository_names_is_run(tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "data.txt").write_text("1")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "first"], check=True)
    (tmp_path / ".gitattributes").write_text("* filter=evil\n")
    for kind in ("clean", "process"):
        evil = f"sh -c 'touch {tmp_path}/ran; cat'"
        subprocess.run([*git, "config", f"filter.evil.{kind}", evil], check=True)
    (tmp_path / "data.txt").write_text("2")
    found = git_state(tmp_path)
    assert (len(found["commit"]), found["dirty"]) == (40, "none")
    assert not (tmp_path / "ran").exists()


def test_no_program_that_a_part_of_a_repository_names_is_run(tmp_path: Path) -> None:
    """A submodule has settings of its own, which the whole knows nothing of."""
    for name in ("part", "whole"):
        git = ["git", "-C", str(tmp_path / name), "-c", "user.name=a", "-c", "user.email=b"]
        git += ["-c", "protocol.file.allow=always"]
        subprocess.run(["git", "init", "-q", str(tmp_path / name)], check=True)
        (tmp_path / name / "data.txt").write_text("1")
        if name == "whole":
            subprocess.run([*git, "submodule", "-q", "add", str(tmp_path / "part"), "s"], check=True)
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-q", "-m", "first"], check=True)
    inner = tmp_path / "whole" / "s"
    subprocess.run(
        ["git", "-C", str(inner), "config", "filter.evil.clean", f"touch {tmp_path}/ran"], check=True
    )
    (inner / ".gitattributes").write_text("* filter=evil\n")
    (inner / "data.txt").write_text("2")
    assert git_state(tmp_path / "whole")["dirty"] == "false"
    assert not (tmp_path / "ran").exists()


def test_without_git_there_is_no_commit_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = environment(tmp_path)
    assert found["git"] == {"commit": "none", "dirty": "none"}
    assert f"mlflow=={version('mlflow')}" in found["requirements"]
