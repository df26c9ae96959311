"""Every family answers alike through MLflow and through our replica, rows together and one by one."""

from typing import Any

import mlflow
import polars as pl
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mlops_ray import keys
from mlops_ray.config import Batching
from mlops_ray.data.prediction_log import PredictionLog
from mlops_ray.keys import Keyring
from mlops_ray.monitoring.deltas import Outbox
from mlops_ray.registry import signing
from mlops_ray.registry.outcome import Outcome
from mlops_ray.registry.package import TRUSTED_KEYS
from mlops_ray.registry.registry import Registry
from mlops_ray.serving.endpoint import Endpoint
from mlops_ray.serving.versions import Versions, loader
from mlops_ray.storage import Storage
from mlops_ray.training import tracking
from tests.conformance.test_families import PAIRS, Case
from tests.registry.made import requests, write
from tests.serving.calls import call
from tests.serving.packages import crown

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = signing.public(KEY)
#: An outcome that does something to each task's answers.
OUTCOMES = {"regression": Outcome(clip=(0.2, 1.5)), "classification": Outcome(threshold=0.4)}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return Storage.open(str(tmp_path_factory.mktemp("answers")))


@pytest.fixture(scope="module")
def experiment(storage: Storage) -> tuple[str, str]:
    """MLflow's address, and the id of an experiment there."""
    uri = f"sqlite:///{storage.path('mlflow.db')}"
    return uri, tracking.prepare(uri, "answers", str(storage.root / "artifacts"))


def _asked() -> pl.DataFrame:
    """Rows as a request holds them: of some columns nothing, of others what no training row had."""
    known = requests(40, seed=9)
    strange = known[:3].with_columns(
        lag=pl.lit(None, pl.Float64), hour=pl.lit(None, pl.Int64), holiday=pl.lit(None, pl.Boolean)
    )
    return pl.concat([known, strange, known[:2].with_columns(site=pl.lit("never seen"))])


def _answers(app: Endpoint, path: str, key: str, asked: pl.DataFrame) -> dict[str, list[Any]]:
    records = asked.with_columns(pl.col("time").dt.to_string("iso:strict")).to_dicts()
    reply = call(app, "POST", path, key=key, json={"dataframe_records": records})
    assert reply.status == 200, reply.body
    return {name: reply.json[name] for name in ("predictions", "decisions") if name in reply.json}


@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_mlflow_s_loader_and_our_replica_answer_alike_together_and_one_by_one(
    family: str, task: Any, storage: Storage, experiment: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, name, (uri, number) = Case.of(family, task), f"{family}-{task}", experiment
    packed = write(
        storage.path("packages", name),
        name=name,
        task=task,
        family=family,
        model=made.model,
        encoder=made.encoder,
        outcome=OUTCOMES[task],
        sign=KEY,
    )
    registry, asked = Registry(uri), _asked()
    with tracking.open_run(uri, number, name) as run:
        version = registry.register(packed, run_id=run.id)

    crown(storage, name, version, registry.package(name, version))
    load = loader(storage, str(storage.path("online.db")), frozenset(), frozenset({PUBLIC}), frozenset())
    versions = Versions(
        storage, name, load, Outbox(name), PredictionLog(storage, name, "r"), Batching(), frozenset()
    )
    versions.load()
    key = keys.add(storage, name, "predict")
    app, path = (
        Endpoint(name, versions, Keyring(storage), frozenset(), storage),
        f"/v2/models/{name}/invocations",
    )
    together = _answers(app, path, key, asked)
    alone = [_answers(app, path, key, asked[at]) for at in range(asked.height)]
    assert together == {said: [value for one in alone for value in one[said]] for said in together}
    assert set(together) == {"predictions", *(["decisions"] if task == "classification" else [])}

    monkeypatch.setenv(TRUSTED_KEYS, PUBLIC)
    mlflow.set_tracking_uri(uri)
    loaded = mlflow.pyfunc.load_model(f"models:/{name}/{version}")
    frame = asked.drop("time").to_pandas()
    assert loaded.predict(frame).tolist() == together["predictions"]
    assert [loaded.predict(frame[at : at + 1])[0] for at in range(len(frame))] == together["predictions"]
