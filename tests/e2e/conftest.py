"""The real thing, started once: `mlops-ray run --detach` on the example, in a folder of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlops_ray.storage import Storage

from ..conftest import EXAMPLE

COMMAND = str(Path(sys.executable).parent / "mlops-ray")


def mlops(
    *arguments: str | Path, cwd: Path | None = None, timeout_s: float = 280, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Runs the command as a user would, with these variables, not as a child of this session's Ray."""
    return subprocess.run(
        [COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=cwd,
        env=clean_environment() | environ,
    )


def clean_environment() -> dict[str, str]:
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLOPS_", "TUNE_"))
    }


def processes_of(storage: Path) -> list[psutil.Process]:
    """Every process that belongs to a cluster of this storage."""
    token = str(storage.resolve() / "ray.token")
    return [process for process in psutil.process_iter() if token in _environment(process).values()]


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return dict(process.environ())
    except (psutil.Error, OSError):
        return {}


@dataclass(frozen=True)
class Service:
    """A running service, and how to talk to it."""

    file: Path
    storage: Storage
    result: dict[str, Any]
    wall_s: float

    @property
    def url(self) -> str:
        return str(self.result["url"])

    @property
    def key(self) -> str:
        return self.storage.path("local.key").read_text().strip()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("e2e")
    file = folder / "project.yaml"
    file.write_text(EXAMPLE.read_text())
    begin = time.monotonic()
    done = mlops("run", file, "--detach", "--json")
    wall_s = time.monotonic() - begin
    try:
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout.splitlines()[-1])
        yield Service(file, Storage.open(str(folder / ".mlops")), result, wall_s)
    finally:
        mlops("down", file)
    assert not processes_of(folder / ".mlops")
