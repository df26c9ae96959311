"""Fixtures that tests share. Ray is started once a session, and only if a test needs it."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import settings

from mlops_ray import audit, config
from mlops_ray.cluster import head, local
from mlops_ray.cluster.local import LocalCluster
from mlops_ray.config import Project
from mlops_ray.storage import Storage

# A slow machine is no defect.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

# Ray reads these once, when the first test module imports it.
os.environ.update(head.SETTINGS)

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "configs" / "factory_load.yaml"
#: The states of the test modules' sources of random numbers once the modules were imported, by `id`.
BEGINNINGS: dict[int, Any] = {}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of the two processes that share the tests one has all that start Ray; a file is never shared out."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "ray" if _starts_ray(file) else file

    return ByFile(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A module's source of random numbers gives each test the same ones, whichever ran before it."""
    module = getattr(item, "module", None)
    for source in vars(module).values() if module is not None else ():
        if isinstance(source, np.random.Generator):
            state = BEGINNINGS.setdefault(id(source), source.bit_generator.state)
            source.bit_generator.state = state


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints what tests have measured, `record_property("row", {column: text})`, as tables in Markdown."""
    reports = [each for end in ("passed", "failed") for each in terminalreporter.stats.get(end, [])]
    tables: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for report in reports:
        for name, row in getattr(report, "user_properties", []):
            if name == "row":
                tables.setdefault(tuple(row), []).append(row)
    for columns, rows in tables.items():
        lines = [columns, ["---"] * len(columns), *(row.values() for row in rows)]
        for cells in ([], *lines):
            terminalreporter.line(f"| {' | '.join(cells)} |" if cells else "")


@cache
def _starts_ray(file: str) -> bool:
    path = ROOT / file
    return path.parent.name in ("cluster", "e2e", "chaos") or "ray_cluster" in path.read_text()


@pytest.fixture(scope="session")
def example() -> Project:
    """The project file of the README."""
    return config.load(EXAMPLE, {})


def require(program: str) -> str:
    """The path of a program; without it the test skips, or fails where all must be there."""
    found = shutil.which(program)
    return found if found is not None else _absent(program)


def require_package(name: str) -> None:
    """Without the Python package the test skips, or fails where all must be there; it is not imported."""
    if importlib.util.find_spec(name) is None:
        _absent(name)


def _absent(what: str) -> NoReturn:
    if os.environ.get("MLOPS_REQUIRE_SERVERS"):
        pytest.fail(f"{what} is not installed")
    pytest.skip(f"{what} is not installed")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.open(str(tmp_path / "storage"))


def unrecordable(storage: Storage) -> Path:
    """Nothing can be recorded any more: the file outside the storage that hears of it, this, is gone."""
    path = storage.root.parent / "away" / "heads"
    path.parent.mkdir()
    audit.settle(storage, "away", str(path))
    shutil.rmtree(path.parent)
    return path


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A cluster of our own with two CPUs, connected, with Serve in HAProxy mode."""
    folder = tmp_path_factory.mktemp("cluster")
    before = dict(os.environ)
    cluster = local.start(folder, cpus=2, gpus=0)
    try:
        local.connect(cluster)
        yield cluster
    finally:
        import ray

        ray.shutdown()
        local.stop(folder)
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a tracking server over SQLite that keeps artifacts itself, as a team's does."""
    from tests.servers import mlflow_command

    folder = tmp_path_factory.mktemp("mlflow")
    database = f"sqlite:///{folder / 'mlflow.db'}"
    stores = ("--backend-store-uri", database, "--artifacts-destination", str(folder / "artifacts"))
    with mlflow_command("server", "--workers", "1", *stores, folder=folder) as url:
        yield url
