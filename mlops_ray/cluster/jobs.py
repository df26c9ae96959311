"""Commands as jobs of a Ray cluster: what `mlops-ray submit` and `mlops-ray jobs` do.

A job is what `ray job submit` makes of the same command. Variables that it is to have travel among its
metadata, sealed with the token that the cluster asks for: neither what lists jobs nor Ray's logs show a
value, and who has the token could run anything there. In the job `python3 -m mlops_ray.cluster.jobs COMMAND…`
opens them, and becomes the command.
"""

import asyncio
import base64
import contextlib
import glob
import hashlib
import json
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.fernet import Fernet, InvalidToken

from mlops_ray import config
from mlops_ray.cluster import local
from mlops_ray.errors import ClusterError, JobError, PolicyError, UsageError, one_line

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient as Jobs

#: How long an answer may take, an upload's too; and a job's log be silent, before is asked if it is there.
ANSWER_S, SILENT_S = 30.0, 30.0
#: How often a cluster that is lost is tried again, and how long: a head that starts anew takes a minute.
AGAIN_S, PATIENCE_S = 2.0, 120.0
#: Ray gives a command three seconds to end, and then kills it.
STOP_S, POLL_S = 30.0, 0.2
#: Lines of what Ray says of a job that never began.
LINES = 10
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
#: What is no part of a project, or is secret; Ray leaves out what .gitignore and .rayignore name too.
EXCLUDED = (".mlops", ".git", ".venv", "__pycache__", "*.key", "keys.json", "ray.token", ".env")
#: Variables of which a node has its own.
OF_THE_NODE = frozenset({"HOME", "PATH", "PWD", "SHELL", "TMPDIR", "USER"})
#: Where the sealed variables are among a job's metadata, what opens them, and where Ray tells it of these.
SEALED, JOB = "mlops_ray.environment", "RAY_JOB_CONFIG_JSON_ENV_VAR"
OPENER = ("python3", "-P", "-m", "mlops_ray.cluster.jobs")
#: What Ray's client raises, of its own, and as `OSError` of what it asks by.
RAISED = (OSError, RuntimeError, ValueError, KeyError)
#: What it then says of a job that is not there.
UNKNOWN = "status code 404"


@dataclass(frozen=True)
class Place:
    """A cluster that takes jobs: its address, as Ray's client takes it, and the token, if one is known."""

    address: str
    token: str | None

    @classmethod
    def of(cls, said: str | None, environ: Mapping[str, str] = os.environ) -> "Place":
        """The cluster that is `said`, else the environment's; a folder is the storage of a local one."""
        said = said or environ.get("RAY_API_SERVER_ADDRESS") or environ.get("RAY_ADDRESS")
        if not said:
            raise UsageError(
                "which cluster? --address (or RAY_ADDRESS) names its dashboard, e.g. http://head:8265, or the"
                " storage folder of what runs on this machine, e.g. .mlops"
            )
        if not Path(said).is_dir():
            return cls(said, token_of(environ))
        cluster = local.find(Path(said).resolve())
        if cluster is None:
            raise ClusterError(f"no cluster of {said} runs; mlops-ray serve PROJECT.yaml --detach starts one")
        return cls(cluster.dashboard, token_of(cluster.environment))

    @contextlib.contextmanager
    def connected(self) -> Iterator["Jobs"]:
        """Ray's client; what it raises within the block is said in sentences, as a `ClusterError`."""
        # The environment's goes before whatever address a client is told; Ray reads the rest when imported.
        told = {"RAY_API_SERVER_ADDRESS": self.address}
        told |= {"RAY_AUTH_TOKEN": self.token, "RAY_AUTH_MODE": "token"} if self.token else {}
        before = {name: os.environ.get(name) for name in told}
        os.environ |= told
        from ray.exceptions import AuthenticationError, RayError
        from ray.job_submission import JobSubmissionClient

        for module in ("modules.job.sdk", "modules.dashboard_sdk"):
            logging.getLogger(f"ray.dashboard.{module}").setLevel(logging.WARNING)

        class Client(JobSubmissionClient):
            def _do_request(self, *args: Any, **how: Any) -> Any:
                return super()._do_request(*args, timeout=ANSWER_S, **how)

        headers = {"Authorization": f"Bearer {self.token}"} if self.token else None
        try:
            yield Client(self.address, headers=headers)
        except AuthenticationError as error:
            if self.token:
                raise ClusterError(f"{self.address} refuses the token: it is another cluster's") from error
            raise ClusterError(
                f"{self.address} asks for a token: put it into RAY_AUTH_TOKEN, or its file's path into"
                " RAY_AUTH_TOKEN_PATH (on the cluster, `ray get-auth-token` shows it)"
            ) from error
        except ConnectionError as error:
            raise ClusterError(f"no cluster answers at {self.address}; is that its dashboard?") from error
        except (*RAISED, RayError) as error:
            raise ClusterError(f"the cluster at {self.address}: {_last(error)}") from error
        finally:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def token_of(environ: Mapping[str, str]) -> str | None:
    """The token that Ray's own tools would send; `None` where there is none."""
    if environ.get("RAY_AUTH_MODE", "token") != "token":
        return None
    if said := environ.get("RAY_AUTH_TOKEN", "").strip():
        return said
    named = environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named or Path.home() / ".ray" / "auth_token")
    if not named and not file.exists():
        return None
    try:
        return file.read_text().strip() or None
    except OSError as error:
        raise ClusterError(f"cannot read the token, {file}: {error.strerror}") from error


def _last(error: BaseException) -> str:
    """What an answer says in the end: an error of the other side comes with its traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


# ---------------------------------------------------------------- what a job is given


def variables(
    command: Sequence[str], named: Iterable[str], base: Path, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """What a command is to find in its environment: what is named, and what its project files ask for.

    Their words are read from `base`; what they ask for and is not set here may be the nodes' own. Raises
    `UsageError` where a variable that is named is not set.
    """
    for name in named:
        if name not in environ:
            raise UsageError(f"--env {name}: it is not set here")
    asked = {name for file in _project_files(command, base) for name in config.variables(file)} - OF_THE_NODE
    return {name: environ[name] for name in sorted({*named, *asked}) if name in environ}


def require_absolute(command: Sequence[str]) -> None:
    """Raises `UsageError` where a command that takes no folder along names a project file from this one.

    A job begins in a folder of the cluster, which may hold another project's.
    """
    for file in _project_files(command, Path()):
        if not file.is_absolute():
            raise UsageError(
                f"{file} is a file of this folder, and the job begins in one of the cluster: write its whole"
                f" path ({file.resolve()}), or take the folder along (--working-dir .)"
            )


def _project_files(command: Sequence[str], base: Path) -> list[Path]:
    words = command if Path(command[0]).name == "mlops-ray" else ()
    return [base / word for word in words if word.endswith((".yaml", ".yml")) and (base / word).is_file()]


def require_apart(folder: Path, command: Sequence[str], environ: Mapping[str, str] = os.environ) -> None:
    """Raises `PolicyError` where a folder that goes along holds a storage, or rows that are bound to regions.

    Ray brings it to every node on which anything of the job starts, unless told otherwise to all, and leaves
    it there.
    """
    files = _project_files(command, folder)
    apart = {path: why for file in files for path, why in _apart(file, folder, command, environ)}
    for taken in _taken(folder) if apart else ():
        real = taken.resolve()
        why = next((apart[place] for place in (real, *real.parents) if place in apart), None)
        if why is not None and taken.is_file():
            raise PolicyError(
                f"--working-dir {folder}: {taken.relative_to(folder)} {why}, and Ray copies the folder to"
                " nodes whatever their region: put it outside, where the nodes that need it see it, and have"
                " the project file name that place"
            )


def _apart(
    file: Path, folder: Path, command: Sequence[str], environ: Mapping[str, str]
) -> Iterator[tuple[Path, str]]:
    storage, bound = config.at_rest(file, environ)
    yield Path(storage).resolve(), "is of the storage, where keys lie"
    # What the command names else is rows of theirs too, or made of them.
    named = [word for word in command if Path(word).suffix not in ("", ".yaml", ".yml")] if bound else []
    for address in (*bound, *named):
        path = config.local_path(address, folder)
        for found in glob.glob(str(path), recursive=True) if path else ():
            yield Path(found).resolve(), "holds rows that are bound to regions (allowed_regions)"


def _taken(folder: Path) -> list[Path]:
    """What Ray takes along of a folder, as it looks for it."""
    from ray._private import ray_constants
    from ray._private.runtime_env import packaging

    excluded = [*ray_constants.get_runtime_env_default_excludes(), *EXCLUDED]
    found: list[Path] = []
    packaging._dir_travel(
        folder,
        [packaging._get_excludes(folder, excluded)],
        found.append,
        include_gitignore=os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE) != "1",
        logger=logging.getLogger(__name__),
    )
    return found


def submit(
    jobs: "Jobs",
    command: Sequence[str],
    passed: Mapping[str, str],
    token: str | None,
    *,
    name: str | None = None,
    folder: Path | None = None,
) -> str:
    """Has a cluster, which asks for this token, run a command, with a folder's content; the id of its job.

    Raises `UsageError`, and `PolicyError` for a folder with what may not go along (`require_apart`).
    """
    if name is not None and not NAME.fullmatch(name):
        raise UsageError(f"--name {name!r}: letters, digits, dots and dashes make a name")
    if folder is not None and not folder.is_dir():
        raise UsageError(f"--working-dir {folder}: there is no such folder")
    if folder is not None:
        require_apart(folder, command)
    # Where nothing of the job runs the folder is not brought either.
    runtime = {"working_dir": str(folder), "excludes": list(EXCLUDED), "config": {"eager_install": False}}
    return jobs.submit_job(
        entrypoint=shlex.join([*OPENER, *command] if passed else command),
        submission_id=name,
        runtime_env=runtime if folder else None,
        metadata={SEALED: seal(passed, token)} if passed else None,
    )


def seal(variables: Mapping[str, str], token: str | None) -> str:
    """Variables that nobody reads without the token."""
    if token is None:
        raise UsageError(
            f"{', '.join(variables)} would be readable by all, since the cluster asks for no token: set what"
            " the job needs on the nodes, or have Ray ask (RAY_AUTH_MODE=token)"
        )
    return _box(token).encrypt(json.dumps(dict(variables)).encode()).decode()


def unsealed(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that came with the job whose command this process is."""
    sealed = json.loads(environ.get(JOB, "{}")).get("metadata", {}).get(SEALED)
    try:
        return dict(json.loads(_box(token_of(environ) or "").decrypt(sealed))) if sealed else {}
    except InvalidToken:
        raise ClusterError("the job's variables do not open: its node has another token") from None


def _box(token: str) -> Fernet:
    # The token is as long as chance made it: nothing has to be stretched.
    return Fernet(base64.urlsafe_b64encode(hashlib.sha256(f"mlops_ray job {token}".encode()).digest()))


def main(command: list[str]) -> None:
    """Becomes a job's command, with the variables that came with it."""
    os.environ |= unsealed(os.environ)
    try:
        os.execvp(command[0], command)  # noqa: S606 - the user's own command
    except OSError as error:
        raise ClusterError(f"cannot run {command[0]}: {error.strerror}") from error


# ---------------------------------------------------------------- what becomes of it


@dataclass
class Log:
    """A job's log on its way to a reader, who gets everything once, however often it is read anew."""

    write: Callable[[str], object]
    shown: int = 0

    async def read(self, chunks: AsyncIterator[str], is_there: Callable[[], object]) -> None:
        """Reads until the end; `is_there`, asked where nothing comes for long, raises where nothing will."""
        seen = 0
        while True:
            coming = asyncio.ensure_future(anext(chunks, None))
            while not (await asyncio.wait({coming}, timeout=SILENT_S))[0]:
                await asyncio.to_thread(is_there)
            if (chunk := coming.result()) is None:
                return
            if new := chunk[max(self.shown - seen, 0) :]:
                self.write(new)
            seen += len(chunk)
            self.shown = max(self.shown, seen)


def followed(
    jobs: "Jobs",
    id: str,
    write: Callable[[str], object],
    tell: Callable[[str], object],
    *,
    wait: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Any:
    """Writes a job's log as it comes, until the job is over; its details, as Ray has them.

    A cluster that is lost is tried again, which is told; then raises `ClusterError`.
    """
    import aiohttp

    log, lost_at = Log(write), None
    while True:
        before = log.shown
        try:
            details = jobs.get_job_info(id)
            asyncio.run(log.read(jobs.tail_job_logs(id), lambda: jobs.get_job_info(id)))
            details = jobs.get_job_info(id)
            if details.status.is_terminal():
                return details
        except (*RAISED, aiohttp.ClientError) as error:
            if UNKNOWN in str(error):
                raise
            if lost_at is None or log.shown > before:
                tell(f"the cluster is lost, and tried again: {_last(error)}")
                lost_at = clock()
            if clock() > lost_at + PATIENCE_S:
                raise ClusterError(
                    f"the cluster does not come back; when it does, mlops-ray jobs logs {id} follows the job"
                ) from error
        wait(AGAIN_S)


def require_well(id: str, details: Any) -> None:
    """Raises `JobError` with the command's exit status where a job did not end well."""
    code, status = details.driver_exit_code, details.status.value
    if status == "STOPPED":
        raise JobError(f"the job {id} was stopped", 1)
    if status != "SUCCEEDED" and code is None:
        # Its log need not say it.
        why = "\n".join((details.message or "Ray does not say why").strip().splitlines()[-LINES:])
        raise JobError(f"the job {id} failed, and its command has no exit status:\n{why}", 1)
    if status != "SUCCEEDED":
        # A command that a signal ended has a negative one, of which shells make this.
        raise JobError(f"the job {id} ended with exit status {code}", code if code > 0 else 128 - code)


def listed(jobs: "Jobs") -> list[dict[str, Any]]:
    """The cluster's jobs, the newest first: `{"id", "status", "began", "seconds", "exit", "command"}`."""
    found = [job for job in jobs.list_jobs() if job.submission_id]
    return [
        {
            "id": job.submission_id,
            "status": job.status.value,
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime((job.start_time or 0) / 1000)),
            "seconds": round((job.end_time or time.time() * 1000) / 1000 - (job.start_time or 0) / 1000),
            "exit": job.driver_exit_code,
            "command": job.entrypoint.removeprefix(shlex.join(OPENER) + " "),
        }
        for job in sorted(found, key=lambda job: job.start_time or 0, reverse=True)
    ]


def stopped(jobs: "Jobs", id: str, wait: Callable[[float], object] = time.sleep) -> str:
    """Has a job end, and waits until it has; how it did."""
    jobs.stop_job(id)
    for _ in range(int(STOP_S / POLL_S)):
        status = jobs.get_job_info(id).status
        if status.is_terminal():
            return str(status.value)
        wait(POLL_S)
    raise ClusterError(f"the job {id} does not end; its node may be gone")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ClusterError as error:
        sys.exit(f"error: {one_line(error)}")
