"""Commands as jobs: what they are given, what is shown of them, and what is said where a cluster fails."""

import asyncio
import json
import re
import shlex
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zipfile import ZipFile

import pytest
from ray._private.runtime_env.packaging import create_package
from ray.job_config import JobConfig
from ray.job_submission import JobStatus
from ray.runtime_env import RuntimeEnv

from mlops_ray import cli, keys
from mlops_ray.cluster import interrupt, jobs, local
from mlops_ray.cluster.jobs import Place
from mlops_ray.errors import ClusterError, JobError, PolicyError, UsageError
from mlops_ray.storage import Storage

from ..serving import packages

TOKEN = "0123456789abcdef"
#: Of 32 bytes.
KEY_CHARACTERS = 43
LOG = "one\ntwo\nthree\n"


@dataclass
class Fake:
    """A cluster's jobs, one of which is followed: each reading of its log goes as `readings` says."""

    readings: list[Any] = field(default_factory=list)
    submitted: list[dict[str, Any]] = field(default_factory=list)
    jobs: list[Any] = field(default_factory=list)
    is_over: bool = False
    is_away: bool = False

    def submit_job(self, **how: Any) -> str:
        self.submitted.append(how)
        return how["submission_id"] or "one"

    def get_job_info(self, id: str) -> Any:
        if self.is_away:
            raise ConnectionError("nobody there")
        status = JobStatus.FAILED if self.is_over else JobStatus.RUNNING
        return SimpleNamespace(status=status, driver_exit_code=3 if self.is_over else None, message="")

    async def tail_job_logs(self, id: str) -> AsyncIterator[str]:
        # The log from its beginning, until something happens.
        for each in self.readings.pop(0):
            if isinstance(each, BaseException):
                raise each
            yield each
        self.is_over = not self.readings

    def list_jobs(self) -> list[Any]:
        return self.jobs

    def stop_job(self, id: str) -> bool:
        self.is_over = True
        return True


def follow(fake: Fake, wait: Callable[[float], object] = lambda _: None) -> tuple[Any, list[str], list[str]]:
    """What followed a job found, what it showed, and what it told."""
    shown: list[str] = []
    told: list[str] = []
    return jobs.followed(fake, "one", shown.append, told.append, wait=wait), shown, told


# ---------------------------------------------------------------- where


def test_a_cluster_is_what_is_said_else_what_the_environment_names() -> None:
    environ = {"RAY_ADDRESS": "http://a:8265", "RAY_AUTH_TOKEN": TOKEN}
    assert Place.of(None, environ) == Place("http://a:8265", TOKEN)
    assert Place.of("http://b:1", environ) == Place("http://b:1", TOKEN)
    assert Place.of(None, environ | {"RAY_API_SERVER_ADDRESS": "http://c"}).address == "http://c"
    with pytest.raises(UsageError, match=r"--address \(or RAY_ADDRESS\) names its dashboard"):
        Place.of(None, {})


def test_the_folder_of_a_local_cluster_is_an_address_and_brings_its_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ray.token").write_text(TOKEN)
    environ = {"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "ray.token")}
    cluster = local.LocalCluster("m", 1, "127.0.0.1:1", "http://127.0.0.1:2", 3, environ, "")
    monkeypatch.setattr(local, "find", lambda folder: cluster if folder == tmp_path else None)
    assert Place.of(str(tmp_path), {"RAY_AUTH_TOKEN": "another"}) == Place("http://127.0.0.1:2", TOKEN)
    (tmp_path / "other").mkdir()
    with pytest.raises(ClusterError, match=r"no cluster of .*other runs; mlops-ray serve"):
        Place.of(str(tmp_path / "other"), {})


def test_the_token_is_looked_for_where_ray_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert Place.of("http://a", {}).token is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(f"{TOKEN}\n")
    assert Place.of("http://a", {}).token == TOKEN
    assert Place.of("http://a", {"RAY_AUTH_MODE": "disabled"}).token is None
    with pytest.raises(ClusterError, match=r"cannot read the token, /no/file: No such file"):
        Place.of("http://a", {"RAY_AUTH_TOKEN_PATH": "/no/file"})


# ---------------------------------------------------------------- what it is given


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a project file that asks for variables, one of them in a file that it includes."""
    (tmp_path / "shared.yaml").write_text("sources: {s: {sql: {connection: 'x://${DB_PASSWORD}'}}}\n")
    (tmp_path / "project.yaml").write_text(
        "project: p\ninclude: shared.yaml\nstorage: ${HOME}/${PLACE}\n"
        "monitoring: {alerts: [{webhook: '${ALERT_URL}'}]}\n"
    )
    return tmp_path


def test_a_project_file_of_this_folder_is_no_name_for_one_of_the_cluster(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    for command in (["mlops-ray", "train", "/shared/project.yaml"], ["mlops-ray", "train", "there.yaml"]):
        jobs.require_absolute(command)
    jobs.require_absolute(["mlops-ray", "train", str(project / "project.yaml")])
    with pytest.raises(UsageError, match=rf"write its whole path \({project}/project.yaml\), or take"):
        jobs.require_absolute(["mlops-ray", "train", "project.yaml"])


def test_what_project_files_ask_for_goes_along_by_name(project: Path) -> None:
    environ = {"DB_PASSWORD": "a", "PLACE": "b", "HOME": "/home/me", "MINE": "c", "OTHER": "d"}
    train = ["mlops-ray", "train", "project.yaml", "--json"]
    found = jobs.variables(train, ["MINE"], project, environ)
    # HOME is the node's, what is not set here may be, and nobody asked for OTHER.
    assert found == {"DB_PASSWORD": "a", "MINE": "c", "PLACE": "b"}
    assert jobs.variables(["python", "project.yaml"], [], project, environ) == {}
    with pytest.raises(UsageError, match="--env ABSENT: it is not set here"):
        jobs.variables(train, ["ABSENT"], project, environ)


def test_a_job_is_what_ray_would_be_told(tmp_path: Path) -> None:
    fake = Fake()
    assert jobs.submit(fake, ["sh", "-c", "echo 'a  b'"], {}, None, name="n-1.x", folder=tmp_path) == "n-1.x"
    (how,) = fake.submitted
    assert shlex.split(how["entrypoint"]) == ["sh", "-c", "echo 'a  b'"]
    assert (how["submission_id"], how["metadata"]) == ("n-1.x", None)
    assert how["runtime_env"]["working_dir"] == str(tmp_path)
    # By what Ray makes of it a folder is not brought to nodes where nothing of the job runs.
    said = how["runtime_env"] | {"working_dir": "gcs://_ray_pkg_0123456789abcdef.zip"}
    made = JobConfig.from_json({"runtime_env": RuntimeEnv(**said).to_dict()})._get_proto_job_config()
    assert not made.runtime_env_info.runtime_env_config.eager_install


def test_what_is_secret_does_not_go_along(tmp_path: Path) -> None:
    for name in ("a.py", "state/signing.key", "state/keys.json", ".env", ".mlops/local.key", "ray.token"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("s3cret")
    jobs.submit(fake := Fake(), ["true"], {}, None, folder=tmp_path)
    excluded = fake.submitted[0]["runtime_env"]["excludes"]
    packed = tmp_path.with_suffix(".zip")
    create_package(str(tmp_path), packed, include_gitignore=True, excludes=excluded)
    assert {name for name in ZipFile(packed).namelist() if not name.endswith("/")} == {"a.py"}


def bound(said: str, storage: str = "/elsewhere") -> str:
    """A project file, whose source reads there rows that are bound to regions."""
    source = f"s: {{{said}, policy: {{allowed_regions: [eu-de]}}}}"
    return f"project: p\nstorage: {storage}\nsources: {{{source}}}\n"


@pytest.mark.parametrize(
    ("project", "file"),
    [
        (bound("path: rows.csv"), "rows.csv"),
        (bound("path: [a.csv, {path: 'data/*.csv'}]"), "data/b.csv"),
        (bound("path: '${ROWS}/rows.csv'"), "data/rows.csv"),
        (bound("path: table"), "table/part.parquet"),
        (bound("sql: {connection: 'sqlite:///a.db'}"), "a.db"),
        (bound("path: /a.csv"), "asked.csv"),
        ("include: other/shared.yaml", "other/rows.csv"),
        ("storage: state", "state/history"),
        ("storage: '${ROWS}'", "data/history"),
    ],
)
def test_a_folder_with_rows_that_are_bound_to_regions_or_with_a_storage_stays_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: str, file: str
) -> None:
    monkeypatch.setenv("ROWS", str(tmp_path / "data"))
    shared = {"other/shared.yaml": bound("path: rows.csv")} if "include" in project else {}
    for name, content in {"project.yaml": project, file: "a\n1\n", **shared}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    command = ["mlops-ray", "predict", "project.yaml", "--input", "asked.csv"]
    with pytest.raises(PolicyError, match=f"{re.escape(file)} (holds rows that are bound|is of the storage)"):
        jobs.submit(fake := Fake(), command, {}, None, folder=tmp_path)
    assert fake.submitted == []


def test_rows_behind_a_link_stay_here_too(tmp_path: Path) -> None:
    rows, folder = tmp_path / "rows.csv", tmp_path / "folder"
    rows.write_text("a\n1\n")
    folder.mkdir()
    (folder / "linked.csv").symlink_to(rows)
    (folder / "project.yaml").write_text(bound(f"path: {rows}"))
    with pytest.raises(PolicyError, match=r"linked\.csv holds rows"):
        jobs.submit(Fake(), ["mlops-ray", "train", "project.yaml"], {}, None, folder=folder)


@pytest.mark.parametrize(
    "project",
    [
        bound("path: /shared/rows.csv"),
        bound("path: s3://bucket/rows.csv"),
        bound("path: package://not_installed_here/rows.csv"),
        bound("path: '${NOT_SET}/rows.csv'"),
        bound("path: rows.csv").replace("allowed_regions: [eu-de]", "minimum_count: 7"),
        # What Ray leaves out stays where it is.
        bound("path: ignored/rows.csv"),
        bound("path: /shared/rows.csv", storage=".mlops"),
    ],
)
def test_code_and_a_project_file_go_along(tmp_path: Path, project: str) -> None:
    for name in ("rows.csv", "ignored/rows.csv", ".mlops/history"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a\n1\n")
    (tmp_path / ".gitignore").write_text("ignored\n")
    (tmp_path / "project.yaml").write_text(project)
    command = ["mlops-ray", "train", "project.yaml"]
    assert jobs.submit(Fake(), command, {}, None, folder=tmp_path) == "one"


@pytest.mark.parametrize("name", ["", "a/b", "a b", "../x", "-a"])
def test_a_name_that_is_no_address_of_a_job_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="letters, digits, dots and dashes"):
        jobs.submit(Fake(), ["true"], {}, None, name=name)


def test_values_travel_sealed_and_open_where_the_token_is() -> None:
    fake = Fake()
    jobs.submit(fake, ["mlops-ray", "train"], {"DB_PASSWORD": "s3cret, ö"}, TOKEN)
    (how,) = fake.submitted
    assert "s3cret" not in json.dumps(how)
    assert TOKEN not in json.dumps(how)
    assert how["entrypoint"] == "python3 -P -m mlops_ray.cluster.jobs mlops-ray train"
    environ = {jobs.JOB: json.dumps({"metadata": how["metadata"]}), "RAY_AUTH_TOKEN": TOKEN}
    assert jobs.unsealed(environ) == {"DB_PASSWORD": "s3cret, ö"}
    with pytest.raises(ClusterError, match="its node has another token"):
        jobs.unsealed(environ | {"RAY_AUTH_TOKEN": "another"})
    assert jobs.unsealed({}) == jobs.unsealed({jobs.JOB: json.dumps({"metadata": {}})}) == {}


def test_without_a_token_nothing_is_passed_that_all_could_read() -> None:
    fake = Fake()
    with pytest.raises(UsageError, match="DB_PASSWORD would be readable by all"):
        jobs.submit(fake, ["mlops-ray", "train"], {"DB_PASSWORD": "a"}, None)
    assert fake.submitted == []


# ---------------------------------------------------------------- what is shown


def test_a_log_is_shown_as_it_comes() -> None:
    details, shown, told = follow(Fake([["one\n", "two\nthree\n"]]))
    assert (shown, told, details.driver_exit_code) == (["one\n", "two\nthree\n"], [], 3)


def test_a_cluster_that_comes_back_shows_nothing_twice_and_leaves_nothing_out() -> None:
    broken = RuntimeError("connection closed")
    fake = Fake([["one\n", "tw", broken], ["one\n", broken], ["one\ntwo\n", "three\n"]])
    _, shown, told = follow(fake)
    assert "".join(shown) == LOG
    # It went away twice, and was not back between: that is told once.
    assert told == ["the cluster is lost, and tried again: connection closed"]


def test_a_log_that_ends_before_the_job_is_read_on() -> None:
    _, shown, told = follow(Fake([["one\n"], ["one\n", "two\n"], [LOG]]))
    assert ("".join(shown), told) == (LOG, [])


def test_a_cluster_that_does_not_come_back_is_given_up_and_how_to_go_on_is_said() -> None:
    fake, time_of, waited = Fake([["one\n"]], is_away=True), iter(range(0, 10_000, 50)), []
    with pytest.raises(ClusterError, match=r"does not come back; when it does, mlops-ray jobs logs one"):
        jobs.followed(
            fake,
            "one",
            print,
            print,
            wait=waited.append,
            clock=lambda: float(next(time_of)),
        )
    assert waited == [jobs.AGAIN_S] * 2


def test_a_cluster_that_is_silent_is_asked_whether_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "SILENT_S", 0.01)
    fake = Fake()

    async def silent(id: str) -> AsyncIterator[str]:
        yield "one\n"
        fake.is_away = True
        await asyncio.sleep(3600)

    monkeypatch.setattr(fake, "tail_job_logs", silent)
    begin = time.monotonic()
    times = iter([0.0, jobs.PATIENCE_S + 1])
    with pytest.raises(ClusterError, match="does not come back"):
        jobs.followed(fake, "one", print, print, wait=lambda _: None, clock=lambda: next(times))
    assert time.monotonic() - begin < 60


def ended(status: JobStatus, code: int | None = None, message: str = "") -> Any:
    return SimpleNamespace(status=status, driver_exit_code=code, message=message)


@pytest.mark.parametrize(
    ("details", "exit_status", "says"),
    [
        (ended(JobStatus.FAILED, 2), 2, "one ended with exit status 2"),
        (ended(JobStatus.FAILED, -9), 137, "ended with exit status -9"),
        (ended(JobStatus.STOPPED), 1, "one was stopped"),
        (ended(JobStatus.FAILED, None, "no\nroom"), 1, "no exit status:\nno\nroom"),
        (ended(JobStatus.FAILED), 1, "Ray does not say why"),
    ],
)
def test_a_job_that_ends_badly_has_its_commands_exit_status(
    details: Any, exit_status: int, says: str
) -> None:
    with pytest.raises(JobError, match=says) as raised:
        jobs.require_well("one", details)
    assert raised.value.exit_status == exit_status


def test_a_job_that_ends_well_says_nothing() -> None:
    jobs.require_well("one", ended(JobStatus.SUCCEEDED, 0))


def test_jobs_are_listed_newest_first_by_the_commands_that_were_given() -> None:
    def job(id: str | None, began: int, ended: int | None, command: str) -> Any:
        return SimpleNamespace(
            submission_id=id,
            status=JobStatus.RUNNING,
            start_time=began,
            end_time=ended,
            entrypoint=command,
            driver_exit_code=None,
        )

    opened = "python3 -P -m mlops_ray.cluster.jobs mlops-ray train a.yaml"
    fake = Fake(
        jobs=[job("old", 1_000, 3_500, "true"), job("new", 60_000, 61_000, opened), job(None, 1, 1, "")]
    )
    found = jobs.listed(fake)
    assert [(each["id"], each["command"]) for each in found] == [
        ("new", "mlops-ray train a.yaml"),
        ("old", "true"),
    ]
    assert (found[0]["began"], found[0]["seconds"]) == ("1970-01-01T00:01:00Z", 1)


def test_a_stopped_job_is_waited_for_and_one_that_does_not_end_is_told() -> None:
    assert jobs.stopped(Fake(), "one") == "FAILED"
    stubborn = Fake()
    stubborn.stop_job = lambda id: True
    with pytest.raises(ClusterError, match="one does not end"):
        jobs.stopped(stubborn, "one", wait=lambda _: None)


# ---------------------------------------------------------------- the commands


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """A cluster for commands of this process."""
    fake = Fake()

    @contextmanager
    def connected(place: Place) -> Iterator[Fake]:
        yield fake

    monkeypatch.setattr(Place, "connected", connected)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    return fake


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit status of `mlops-ray` with these words."""
    monkeypatch.setattr("sys.argv", ["mlops-ray", *words])
    with pytest.raises(SystemExit) as raised:
        cli.main()
    return int(raised.value.code or 0)


def test_submit_shows_the_log_and_ends_as_the_command_did(
    there: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there.readings = [[LOG]]
    monkeypatch.setenv("PASSWORD", "s3cret")
    assert (
        run(monkeypatch, "submit", "--address", "http://a:1", "--env", "PASSWORD", "--", "false", "--x") == 3
    )
    seen = capsys.readouterr()
    assert seen.out == LOG
    assert "job one at http://a:1, with PASSWORD" in seen.err
    assert "error: the job one ended with exit status 3" in seen.err
    assert "s3cret" not in seen.err
    assert there.submitted[0]["entrypoint"].endswith(" false --x")


def test_ctrl_c_leaves_the_job_and_says_how_to_go_on(
    there: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there.readings = [["one\n", KeyboardInterrupt()]]
    assert run(monkeypatch, "jobs", "logs", "one", "--address", "http://a:1") == interrupt.INTERRUPTED
    seen = capsys.readouterr()
    assert seen.out == "one\n"
    assert "The job goes on: mlops-ray jobs logs one --address http://a:1 follows it again" in seen.err
    assert "mlops-ray jobs stop one --address http://a:1 stops it" in seen.err
    assert not there.is_over


def test_a_job_that_is_not_waited_for_is_told_by_its_id_alone(
    there: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "submit", "--address", "http://a:1", "--no-wait", "--", "true") == 0
    assert capsys.readouterr().out == "one\n"


def test_a_job_makes_no_key_that_its_log_would_keep_unless_it_is_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = packages.project(tmp_path / "state")
    monkeypatch.setattr(cli, "_open", lambda file: (project, Storage.open(project.storage)))
    monkeypatch.setenv(jobs.JOB, "{}")
    add = ("key", "add", "web", "project.yaml", "--role", "predict")
    assert run(monkeypatch, *add) == 2
    said = capsys.readouterr()
    assert (said.out, keys.names(Storage.open(project.storage))) == ("", {})
    assert "the log of this job would keep the key" in said.err
    assert run(monkeypatch, *add, "--into-log") == 0
    assert len(capsys.readouterr().out.strip()) == KEY_CHARACTERS
    monkeypatch.delenv(jobs.JOB)
    keys.revoke(Storage.open(project.storage), "web")
    assert run(monkeypatch, *add) == 0
