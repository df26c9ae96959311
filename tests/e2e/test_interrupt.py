"""Ctrl-C at any moment leaves no process behind, and the next run continues."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import EXAMPLE
from .conftest import COMMAND, clean_environment, mlops, processes_of

#: When each of ten runs is interrupted: so many seconds after its start, on starting Ray, reading, sweeping,
#: fitting, serving; and once a stage is recorded. Every other one, unless all are asked for.
ALL_MOMENTS = (0.4, 1.5, 3, 5, 7, 9, 12, 16, 25, "ingest meter")
MOMENTS = ALL_MOMENTS if os.environ.get("MLOPS_WHOLE") else ALL_MOMENTS[1::2]


def interrupt_after(moment: float | str, file: Path, record: Path) -> subprocess.CompletedProcess[str]:
    """A run that its terminal interrupts, as Ctrl-C does: the whole process group gets the signal."""
    run = subprocess.Popen(
        [COMMAND, "run", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
        process_group=0,
    )
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.wait(timeout=moment if isinstance(moment, float | int) else 0)
        while isinstance(moment, str) and run.poll() is None and moment not in contents(record):
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.wait(timeout=0.1)
        os.killpg(run.pid, signal.SIGINT)
        output, errors = run.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        run.kill()
        mlops("down", file)
        raise
    return subprocess.CompletedProcess(run.args, run.returncode, output, errors)


def contents(record: Path) -> str:
    """What a run has recorded so far."""
    return record.read_text() if record.exists() else ""


@pytest.fixture
def terminal() -> Iterator[None]:
    """In the background a suite and its children ignore SIGINT from the start; on a terminal none does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.timeout(600)
def test_ctrl_c_at_any_moment_leaves_no_process_and_the_next_run_continues(
    terminal: None, tmp_path: Path
) -> None:
    file, storage = tmp_path / "project.yaml", tmp_path / ".mlops"
    file.write_text(EXAMPLE.read_text().replace("trials: 20", "trials: 4"))
    for moment in MOMENTS:
        done = interrupt_after(moment, file, storage / "pipeline.json")
        # Before the command's first line, the signal's default action ends it.
        assert done.returncode in (130, -signal.SIGINT), (moment, done.stderr)
        assert "Traceback" not in done.stderr, (moment, done.stderr)
        assert not processes_of(storage), moment
        assert not (storage / "cluster.json").exists(), moment
    finished = mlops("run", file, "--detach", "--json")
    try:
        assert finished.returncode == 0, finished.stderr
        result = json.loads(finished.stdout.splitlines()[-1])
        assert result["version"] >= 1
        assert result["seconds"]["ingest meter"] == 0
    finally:
        mlops("down", file)
    assert not processes_of(storage)
