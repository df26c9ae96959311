"""Versions in MLflow: registered, promoted, read back, and the same to MLflow's own loader."""

from pathlib import Path

import mlflow
import pytest

from mlops_ray.errors import NotFoundError, PackageError
from mlops_ray.registry.package import Package
from mlops_ray.registry.predictor import Predictor
from mlops_ray.registry.registry import Registry
from mlops_ray.training import tracking
from tests.registry.made import rows, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="module")
def uri(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


@pytest.fixture(scope="module")
def package(folder: Path) -> Package:
    return write(folder / "packages" / "demo")


@pytest.fixture(scope="module")
def registry(uri: str, folder: Path, package: Package) -> Registry:
    """A registry with two versions of `demo`."""
    experiment = tracking.prepare(uri, "demo", str(folder / "artifacts"))
    registry = Registry(uri)
    with tracking.open_run(uri, experiment, "demo") as run:
        assert registry.register(package, name="demo", run_id=run.id) == 1
        assert registry.register(package, name="demo", run_id=run.id) == 2
    return registry


def test_promoting_moves_the_champion_and_retires_the_one_before(registry: Registry) -> None:
    assert registry.champion("demo") is None
    registry.set_champion("demo", 1)
    registry.set_champion("demo", 2)
    registry.set_champion("demo", 2)
    assert registry.champion("demo") == 2
    listed = [(v["version"], v["state"], v["champion"]) for v in registry.versions("demo")]
    assert listed == [(2, "champion", True), (1, "retired", False)]


def test_a_version_is_the_package_that_was_registered(registry: Registry, package: Package) -> None:
    found = registry.package("demo", 1)
    assert found.digest == package.digest
    assert found.folder != package.folder
    assert {file.name for file in found.folder.iterdir()} == {*package.files, "digests.json"}


def test_mlflow_loads_the_version_and_answers_the_same(
    registry: Registry, uri: str, package: Package
) -> None:
    mlflow.set_tracking_uri(uri)
    loaded = mlflow.pyfunc.load_model("models:/demo/1")
    frame = rows(100).drop_nulls()
    expected = Predictor.load(package.folder, None).predict_features(frame)
    assert loaded.predict(frame.to_pandas()).tolist() == expected.tolist()


def test_names_and_versions_that_do_not_exist_are_none_or_an_error(registry: Registry) -> None:
    assert registry.champion("other") is None
    assert registry.versions("other") == []
    with pytest.raises(NotFoundError, match="no version 9 of 'demo'"):
        registry.package_folder("demo", 9)


def test_a_folder_changed_in_the_artifact_store_is_not_the_version(registry: Registry, folder: Path) -> None:
    changed = registry.package_folder("demo", 2)
    write(changed, params={"alpha": 9.0})
    with pytest.raises(PackageError, match="not the one that was registered"):
        registry.package("demo", 2)
