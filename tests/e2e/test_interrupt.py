"""Ctrl-C at any moment leaves no process behind, and the next run continues."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import EXAMPLE
from .conftest import COMMAND, clean_environment, mlops, processes_of

#: Seconds after which each of ten runs is interrupted: on starting Ray, reading, sweeping, fitting, serving.
#: Every other one, unless all are asked for; by the last one, reading is over.
ALL_MOMENTS_S = (0.4, 1.5, 3, 5, 7, 9, 12, 16, 20, 26)
MOMENTS_S = ALL_MOMENTS_S if os.environ.get("MLOPS_WHOLE") else ALL_MOMENTS_S[1::2]


def interrupt_after(seconds: float, file: Path) -> subprocess.CompletedProcess[str]:
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
        output, errors = run.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGINT)
        try:
            output, errors = run.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            run.kill()
            mlops("down", file)
            raise
    return subprocess.CompletedProcess(run.args, run.returncode, output, errors)


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
    for seconds in MOMENTS_S:
        done = interrupt_after(seconds, file)
        # Before the command's first line, the signal's default action ends it.
        assert done.returncode in (130, -signal.SIGINT), (seconds, done.stderr)
        assert "Traceback" not in done.stderr, (seconds, done.stderr)
        assert not processes_of(storage), seconds
        assert not (storage / "cluster.json").exists(), seconds
    finished = mlops("run", file, "--detach", "--json")
    try:
        assert finished.returncode == 0, finished.stderr
        result = json.loads(finished.stdout.splitlines()[-1])
        assert result["version"] >= 1
        assert result["seconds"]["ingest meter"] == 0
    finally:
        mlops("down", file)
    assert not processes_of(storage)
