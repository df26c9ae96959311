"""Versions in MLflow: registered, promoted, read back, and the same to MLflow's own loader and server."""

import signal
import tempfile
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import orjson
import pandas as pd
import polars as pl
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mlflow.exceptions import MlflowException
from requests.exceptions import ConnectionError

from mlops_ray.cluster.pipeline import inside
from mlops_ray.config import Project
from mlops_ray.config.project import Signing
from mlops_ray.cost.model import Capacity
from mlops_ray.errors import NotFoundError, PackageError, StorageError, UsageError
from mlops_ray.registry import package as packages
from mlops_ray.registry import signing
from mlops_ray.registry.package import TRUSTED_KEYS, Package
from mlops_ray.registry.predictor import Predictor
from mlops_ray.registry.registry import CAPACITY, COST, STATES, Registry
from mlops_ray.storage import Storage
from mlops_ray.training import tracking
from tests.features.writers import Writers
from tests.registry.made import rows, write
from tests.servers import free_port, mlflow_command

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
COSTS = {"amount": 0.25, "currency": "EUR", "fit": 0.05}
TRUSTED = frozenset({signing.public(KEY)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="module", params=["sqlite", "http"])
def uri(request: pytest.FixtureRequest, folder: Path) -> str:
    if request.param == "http":
        return str(request.getfixturevalue("mlflow_server"))
    return f"sqlite:///{folder / 'mlflow.db'}"


@pytest.fixture(scope="module")
def package(folder: Path) -> Package:
    return write(folder / "packages" / "demo", sign=KEY)


@pytest.fixture(scope="module")
def registry(uri: str, folder: Path, package: Package) -> Registry:
    """A registry with two versions of `demo`."""
    local = str(folder / "artifacts") if uri.startswith("sqlite") else None
    experiment = tracking.prepare(uri, "demo", local)
    registry = Registry(uri)
    with tracking.open_run(uri, experiment, "demo") as run:
        assert registry.register(package, run_id=run.id, metric="mae", cost=COSTS) == 1
        assert registry.register(package, run_id=run.id) == 2
    return registry


def test_a_registration_killed_before_any_step_leaves_no_version_or_a_whole_one(tmp_path: Path) -> None:
    uri, packed = f"sqlite:///{tmp_path / 'mlflow.db'}", write(tmp_path / "packages" / "demo", sign=KEY)
    experiment, registry = tracking.prepare(uri, "demo", str(tmp_path / "artifacts")), Registry(uri)
    steps, status, registered = 0, -signal.SIGKILL, list[int]()
    with (
        tracking.open_run(uri, experiment, "demo") as run,
        Writers.started("tests.registry.registrars") as registrars,
    ):
        asked = {"folder": str(tmp_path), "packed": str(packed.folder), "run": run.id}
        # Each begins beside what those before it have left, and the last one ends.
        while status == -signal.SIGKILL:
            steps += 1
            pid = registrars.start("register", **asked, killed_before=steps)
            status = registrars.wait(pid)
            registered += registrars.done.get(pid, [])
            for found in registry.versions("demo"):
                folder = registry.package_folder("demo", found["version"])
                assert (found["state"], found["family"]) == ("registered", packed.family)
                assert Predictor.load(folder, None, trusted=TRUSTED).package.digest == found["digest"]
    assert status == 0
    assert [each["version"] for each in registry.versions("demo")][:1] == registered
    assert steps > 12


def test_promoting_moves_the_champion_and_retires_the_one_before(registry: Registry) -> None:
    assert registry.champion("demo") is None
    registry.set_champion("demo", 1)
    registry.set_champion("demo", 2)
    registry.set_champion("demo", 2)
    assert registry.champion("demo") == 2
    listed = [(v["version"], v["state"], v["champion"]) for v in registry.versions("demo")]
    assert listed == [(2, "champion", True), (1, "retired", False)]
    registry.set_state("demo", 2, "rolled_back", "it was worse")
    registry.set_champion("demo", 1)
    listed = [(v["version"], v["state"], v["champion"]) for v in registry.versions("demo")]
    assert listed == [(2, "rolled_back", False), (1, "champion", True)]
    with pytest.raises(NotFoundError, match="no version 9"):
        registry.set_champion("demo", 9)


def test_a_version_goes_through_every_state_and_a_reason_lasts_as_long_as_its_state(
    registry: Registry,
) -> None:
    for state in reversed(STATES):
        registry.set_state("demo", 1, state, f"because of {state}")
        found = registry.versions("demo")[1]
        assert (found["state"], found["reason"]) == (state, f"because of {state}")
    registry.set_state("demo", 1, "retired")
    assert registry.versions("demo")[1]["reason"] == ""


def test_a_state_that_does_not_exist_is_refused_and_changes_nothing(registry: Registry) -> None:
    registry.set_state("demo", 1, "retired")
    with pytest.raises(UsageError, match="no release state 'live'; there are registered, verified"):
        registry.set_state("demo", 1, "live")
    with pytest.raises(NotFoundError, match="no version 9 of 'demo'"):
        registry.set_state("demo", 9, "retired")
    assert registry.versions("demo")[1]["state"] == "retired"


def test_a_version_says_what_it_is_without_its_package(registry: Registry, package: Package) -> None:
    second, first = registry.versions("demo")
    names = ("family", "metric", "value", "dataset", "signer", "digest")
    said = {"family": "ridge", "dataset": "ab" * 32, "signer": signing.public(KEY), "digest": package.digest}
    assert {name: first[name] for name in names} == {**said, "metric": "mae", "value": 0.1}
    assert {name: second[name] for name in names} == {**said, "metric": None, "value": None}


def test_a_version_says_what_training_it_has_cost(registry: Registry) -> None:
    assert registry.cost("demo", 1) == {"amount": 0.25, "currency": "EUR"}
    assert registry.cost("demo", 2) is None
    assert [found["cost"] for found in registry.versions("demo")] == [None, registry.cost("demo", 1)]
    with pytest.raises(NotFoundError, match="no version 9"):
        registry.cost("demo", 9)
    for by_hand in ("much", "[]", '{"amount": "Infinity", "currency": "EUR"}', '{"amount": 1}'):
        registry._client.set_model_version_tag("demo", "2", COST, by_hand)
        assert registry.cost("demo", 2) is None


def test_a_version_says_what_its_replicas_bear_by_the_last_test_of_each_size(registry: Registry) -> None:
    one, other, later = (capacity(rate) for rate in (100.0, 200.0, 300.0))
    for key, each in (("local-cpu1", one), ("local-cpu2", other), ("local-cpu1", later)):
        registry.set_capacity("demo", 1, key, each)
    second, first = registry.versions("demo")
    assert [Capacity.from_json(found) for found in first["capacities"]] == [later, other]
    assert second["capacities"] == []
    registry._client.set_model_version_tag("demo", "2", f"{CAPACITY}by hand", "no record")
    assert registry.versions("demo")[0]["capacities"] == []
    with pytest.raises(NotFoundError, match="no version 9"):
        registry.set_capacity("demo", 9, "local", one)


def capacity(rate: float) -> Capacity:
    slo = {"p99_ms": 50.0, "error_rate": 0.001}
    return Capacity(
        "demo", "1", "local", 1, 0, 256, rate, 1.1 * rate, 1, 20.0, 0.0, slo, "a processor", "2026"
    )


def test_a_version_is_the_package_that_was_registered(registry: Registry, package: Package) -> None:
    found = registry.package("demo", 1, trusted=TRUSTED)
    assert (found.digest, found.signer) == (package.digest, signing.public(KEY))
    assert found.folder != package.folder
    assert {file.name for file in found.folder.iterdir()} == {
        *package.files,
        "digests.json",
        "signature.json",
    }
    with pytest.raises(PackageError, match="does not name this key"):
        registry.package("demo", 1, trusted=frozenset({"other"}))


def test_mlflow_loads_the_version_and_answers_the_same(
    registry: Registry, uri: str, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow.set_tracking_uri(uri)
    monkeypatch.setenv(TRUSTED_KEYS, f"{'A' * 43}=, {signing.public(KEY)}")
    loaded = mlflow.pyfunc.load_model("models:/demo/1")
    frame = rows(100).with_columns(pl.col("hour").fill_null(0))
    expected = Predictor.load(package.folder, None).predict_features(frame)
    assert loaded.predict(frame.to_pandas().astype({"site": object, "holiday": "boolean"})).tolist() == (
        expected.tolist()
    )


def test_mlflow_refuses_a_version_that_was_not_signed_by_a_trusted_key(
    registry: Registry, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow.set_tracking_uri(uri)
    for keys in ("", f"{'A' * 43}="):
        monkeypatch.setenv(TRUSTED_KEYS, keys)
        with pytest.raises(PackageError, match="does not name this key"):
            mlflow.pyfunc.load_model("models:/demo/1")


@pytest.mark.parametrize("asked", ["champion", "versions", "package"])
def test_a_server_that_is_away_is_no_answer_and_its_password_is_told_to_nobody(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody says that there is no champion, none may be taken to be absent."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = Registry(f"http://bob:hunter2@127.0.0.1:{free_port()}")
    with pytest.raises(StorageError, match="MLflow") as error:
        getattr(away, asked)("demo", *([1] if asked == "package" else []))
    assert "hunter2" not in str(error.value)
    assert error.value.__cause__ is None


def test_names_and_versions_that_do_not_exist_are_none_or_an_error(registry: Registry) -> None:
    assert registry.champion("other") is None
    assert registry.versions("other") == []
    with pytest.raises(NotFoundError, match="no version 9 of 'demo'"):
        registry.package_folder("demo", 9)


@pytest.fixture(scope="module")
def local(folder: Path, package: Package) -> Registry:
    """A registry of `own`, whose artifacts lie in a folder that anybody may change."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    registry = Registry(uri)
    with tracking.open_run(uri, tracking.prepare(uri, "own", str(folder / "own")), "own") as run:
        registry.register(write(folder / "packages" / "own", name="own", sign=KEY), run_id=run.id)
    mlflow.set_tracking_uri(uri)
    return registry


def test_a_package_of_another_model_or_from_elsewhere_is_not_the_version(
    local: Registry, folder: Path
) -> None:
    """Who may write to MLflow, and has no key, gives a version the tags of another one."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    other, client = write(folder / "packages" / "other", name="other", sign=KEY), mlflow.MlflowClient(uri)
    with tracking.open_run(uri, tracking.prepare(uri, "own", None), "other") as run:
        given = local.register(other, run_id=run.id)
    told = dict(client.get_model_version("other", str(given)).tags)
    source = client.get_model_version("other", str(given)).source
    version = int(client.create_model_version("own", source, run.id, tags=told).version)
    try:
        with pytest.raises(PackageError, match="is one of 'other'"):
            local.package("own", version)
        for elsewhere in ("data/../../x", "data/..", "/etc", "data/a/b", ""):
            client.set_model_version_tag("own", str(version), "mlops.folder", elsewhere)
            with pytest.raises(PackageError, match="lie outside its place"):
                local.package("own", version)
    finally:
        client.delete_model_version("own", str(version))


def test_a_package_that_is_gone_is_told_from_a_store_that_is_away(
    registry: Registry, uri: str, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is surely gone may be done without."""
    mlflow.MlflowClient(uri).set_model_version_tag("demo", "2", "mlops.folder", "data/gone")
    with pytest.raises(PackageError, match="the artifact store has no package of 'demo' version 2"):
        registry.package("demo", 2)
    mlflow.MlflowClient(uri).set_model_version_tag("demo", "2", "mlops.folder", f"data/{package.folder.name}")
    for error in (MlflowException("a gateway is away"), ConnectionError("https://bob:hunter2@store is away")):
        monkeypatch.setattr(mlflow.artifacts, "download_artifacts", _raises(error))
        with pytest.raises(StorageError, match="is away") as told:
            registry.package("demo", 2)
        assert "hunter2" not in str(told.value)


def _raises(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


def test_a_version_is_brought_into_the_storage_once_and_nothing_is_left_elsewhere(
    registry: Registry, storage: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder, digest = registry.stored(storage, "demo", 1)
    assert folder.is_relative_to(storage.root.resolve())
    assert packages.read(folder, digest=digest).name == "demo"
    assert list(tmp_path.iterdir()) == [storage.root]
    assert list(folder.parent.iterdir()) == [folder]
    monkeypatch.setattr(Registry, "package_folder", _raises(AssertionError("it is there already")))
    assert registry.stored(storage, "demo", 1) == (folder, digest)


def test_mlflows_own_server_gives_the_same_answers(local: Registry, package: Package, tmp_path: Path) -> None:
    model = local.package_folder("own", 1).parent.parent
    frame = rows(20)
    expected = Predictor.load(package.folder, None).predict_features(frame)
    body = orjson.dumps({"dataframe_split": {"columns": frame.columns, "data": frame.rows()}})
    serve = ("models", "serve", "--env-manager", "local", "--model-uri", str(model))
    with mlflow_command(*serve, folder=tmp_path, **{TRUSTED_KEYS: signing.public(KEY)}) as url:
        request = urllib.request.Request(
            f"{url}/invocations", body, {"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            answers = orjson.loads(reply.read())["predictions"]
    assert answers == expected.tolist()


def test_a_hostile_mlmodel_is_never_read_and_a_pickle_beside_the_data_is_refused(
    local: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, digest = local.package_folder("own", 1), local.package("own", 1).digest
    (tmp_path / "evil.py").write_text("open(__file__ + '.ran', 'w')\n_load_pyfunc = print\n")
    monkeypatch.syspath_prepend(tmp_path)
    top = folder.parent.parent
    mlmodel = (top / "MLmodel").read_text()
    (top / "MLmodel").write_text(mlmodel.replace("mlops_ray.registry.package", "evil"))
    pd.to_pickle(object(), top / "python_model.pkl")
    try:
        assert local.package("own", 1, trusted=TRUSTED).digest == digest
        pd.to_pickle(object(), folder / "python_model.pkl")
        with pytest.raises(PackageError, match=r"does not list: 'python_model\.pkl'"):
            local.package("own", 1, trusted=TRUSTED)
    finally:
        (folder / "python_model.pkl").unlink(missing_ok=True)
        (top / "MLmodel").write_text(mlmodel)
    assert not (tmp_path / "evil.py.ran").exists()


def test_a_folder_changed_in_the_artifact_store_is_not_the_version(local: Registry) -> None:
    write(local.package_folder("own", 1), name="own", params={"alpha": 9.0})
    with pytest.raises(PackageError, match="not the one that was registered"):
        local.package("own", 1)


def test_mlflow_refuses_a_changed_package(local: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = local.package_folder("own", 1)
    monkeypatch.setenv(TRUSTED_KEYS, signing.public(KEY))
    write(folder, params={"alpha": 9.0})
    with pytest.raises(PackageError, match="is not signed"):
        mlflow.pyfunc.load_model("models:/own/1")
    monkeypatch.delenv(TRUSTED_KEYS)
    (folder / "encoder.json").write_text("{}")
    with pytest.raises(PackageError, match=r"is damaged: encoder\.json"):
        mlflow.pyfunc.load_model("models:/own/1")


def test_what_is_inside_a_version_is_asked_for_by_its_number(
    registry: Registry, uri: str, package: Package, storage: Storage, example: Project
) -> None:
    asked = {"project": "demo", "tracking": uri, "signing": Signing(trusted=(signing.public(KEY),))}
    assert inside(example.model_copy(update=asked), storage, 2) == package.sbom
    with pytest.raises(PackageError, match="does not name this key"):
        inside(example.model_copy(update=asked | {"signing": Signing()}), storage, 2)


def test_a_version_of_before_lists_were_made_is_told_so(
    example: Project, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = replace(write(tmp_path / "demo"), files={})
    monkeypatch.setattr(Registry, "package", lambda *_, **__: old)
    with pytest.raises(
        PackageError, match=r"version 1 of .* was packed before packages listed what is inside"
    ):
        inside(example, storage, 1)
