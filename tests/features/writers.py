"""Processes that write to stores until they are done or killed.

A Python process that has Polars and Delta takes a second to start. So one is started, imports everything and
uses nothing (their threads would not survive a fork), and forks the writers. All speak on one pipe, in
whole lines of JSON: what a writer said before it died is there before the news of its death.
"""

import fcntl
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from mlops_ray.config import Source
from mlops_ray.features.definitions import ViewTable
from mlops_ray.features.history import History
from mlops_ray.schema import Column

ROOT = Path(__file__).parent.parent.parent
#: Rows of a commit, and the keys that they are spread over: a commit is several files.
ROWS, KEYS = 24, 3
BEGIN = datetime(2016, 1, 1, tzinfo=UTC)

SOURCE = Source(
    path="x.csv",
    entity="k",
    event_time={"column": "time", "timezone": "UTC"},  # type: ignore[arg-type]
    columns={"k": {"type": "category"}, "who": {"type": "category"}, "number": {"type": "int"}},  # type: ignore[dict-item]
)
VIEW = ViewTable(
    "s", "s-1", ("k",), (Column("who", "category"), Column("number", "int")), every_us=None, aggregations=()
)


def rows(who: str, number: int) -> pl.DataFrame:
    """The rows of a writer's commit of this number: no other commit has their identities."""
    times = [BEGIN + timedelta(hours=number, minutes=minute) for minute in range(ROWS)]
    return pl.DataFrame(
        {"k": [f"{who}{i % KEYS}" for i in range(ROWS)], "event_time": times, "who": who, "number": number},
        schema_overrides={"number": pl.Int64, "event_time": pl.Datetime("us", "UTC")},
    )


# ---------------------------------------------------------------- what a writer does


def commit(say: Callable[[Any], None], *, folder: str, who: str, count: int, shared: str = "") -> None:
    """Commits so many times; commits of writers that share a name are the same commits."""
    history = History.of(Path(folder), VIEW)
    for number in range(count):
        history.append(rows(shared or who, number), SOURCE, f"{shared or who}-{number}")
        say(number)


def maintain(say: Callable[[Any], None], *, folder: str, count: int) -> None:
    """Merges files so many times, however few there are."""
    from mlops_ray.features import history

    history.FILES_A_BUCKET = 0
    for number in range(count):
        History.of(Path(folder), VIEW).maintain()
        say(number)


#: What a writer can be asked to do; it says each number when that is done for good.
JOBS: dict[str, Callable[..., None]] = {"commit": commit, "maintain": maintain}


# ---------------------------------------------------------------- the process that forks them


def main() -> None:
    waiting = selectors.DefaultSelector()
    waiting.register(sys.stdin.buffer, selectors.EVENT_READ)
    deadlines: dict[int, float] = {}
    while True:
        left = min(deadlines.values(), default=math.inf) - time.monotonic()
        for key, _ in waiting.select(max(left, 0) if deadlines else None):
            if key.fileobj is sys.stdin.buffer:
                line = sys.stdin.buffer.readline()
                if not line:
                    return
                _begin(json.loads(line), waiting, deadlines)
            else:
                waiting.unregister(key.fileobj)
                os.close(key.fd)
                deadlines.pop(key.data, None)
                _, status = os.waitpid(key.data, 0)
                _say(key.data, "dead", os.waitstatus_to_exitcode(status))
        for pid in [pid for pid, deadline in deadlines.items() if deadline <= time.monotonic()]:
            # It was not waited for yet, so that nobody else has its number.
            os.kill(pid, signal.SIGKILL)
            del deadlines[pid]


def _begin(job: dict[str, Any], waiting: selectors.DefaultSelector, deadlines: dict[int, float]) -> None:
    killed_after_s = job.pop("killed_after_s", None)
    pid = os.fork()
    if pid == 0:
        _work(job)
    if killed_after_s is not None:
        deadlines[pid] = time.monotonic() + killed_after_s
    _say(pid, "born", None)
    waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)


def _work(job: dict[str, Any]) -> None:
    pid = os.getpid()
    try:
        if gate := job.pop("gate", None):
            with open(gate) as file:
                _say(pid, "ready", None)
                fcntl.flock(file, fcntl.LOCK_SH)
        JOBS[job.pop("do")](lambda done: _say(pid, "done", done), **job)
    except BaseException as error:  # noqa: BLE001  # whatever it is, the test must hear of it
        _say(pid, "failed", f"{type(error).__name__}: {error}")
        os._exit(1)
    os._exit(0)


def _say(pid: int, what: str, told: Any) -> None:
    os.write(1, json.dumps([pid, what, told]).encode() + b"\n")


# ---------------------------------------------------------------- what a test holds


class Writers:
    """Starts writers and hears what they say."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._born: list[int] = []
        self._ready: set[int] = set()
        self._exits: dict[int, int] = {}
        #: What each writer said that it had done.
        self.done: dict[int, list[Any]] = {}

    @classmethod
    @contextmanager
    def started(cls, module: str = "tests.features.writers") -> Iterator["Writers"]:
        command = [sys.executable, "-m", module]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
            yield cls(process)
            assert process.stdin is not None
            process.stdin.close()

    def start(self, do: str, **job: Any) -> int:
        """Starts a writer, `killed_after_s` if so; returns its process id."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **job}) + "\n")
        self._process.stdin.flush()
        while not self._born:
            self._listen()
        return self._born.pop()

    def run(self, *jobs: dict[str, Any]) -> list[list[Any]]:
        """What writers that begin at the same moment get done."""
        gate = Path(jobs[0]["folder"]).with_suffix(".gate")
        with gate.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            pids = [self.start(**job, gate=str(gate)) for job in jobs]
            while not self._ready.issuperset(pids):
                self._listen()
            fcntl.flock(file, fcntl.LOCK_UN)
        for pid in pids:
            assert self.wait(pid) == 0
        return [self.done.get(pid, []) for pid in pids]

    def wait(self, pid: int) -> int:
        """The exit status of a writer, once it has ended."""
        while pid not in self._exits:
            self._listen()
        return self._exits[pid]

    def _listen(self) -> None:
        """Takes in one line of what is said."""
        assert self._process.stdout is not None
        pid, what, told = json.loads(self._process.stdout.readline())
        if what == "born":
            self._born.append(pid)
        elif what == "ready":
            self._ready.add(pid)
        elif what == "done":
            self.done.setdefault(pid, []).append(told)
        elif what == "dead":
            self._exits[pid] = told
        else:
            raise AssertionError(told)


if __name__ == "__main__":
    main()
