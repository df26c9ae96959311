"""Our service with a made-up model, as users start it: 12 numbers in, 300 trees of depth 6, everything on."""

import importlib
import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import xgboost
import yaml

from benchmarks.load import Bench, Caller, Rows, Target
from benchmarks.measure import in_new_process
from mlops_ray.cluster import head, local
from mlops_ray.config import load
from mlops_ray.registry.boosters import XgboostModel
from mlops_ray.serving import record
from mlops_ray.storage import Storage

COMMAND = str(Path(sys.executable).parent / "mlops-ray")
COLUMNS = tuple(f"x{number}" for number in range(12))
LABEL, TIME = "label", "time"
TREES, DEPTH = 300, 6
TRAINED_ROWS, ASKED_ROWS = 20_000, 256
START = datetime(2026, 1, 1, tzinfo=UTC)
SEED = 0
#: What is compared is a replica: as many as the load asks for would share the same two cores.
ONE: Mapping[str, Any] = {"replicas": {"min": 1, "max": 1}}


@dataclass(frozen=True)
class Service:
    """A project in a folder; services of one folder share a cluster. `serving` is a part of its file."""

    folder: Path
    name: str = "bench"
    serving: Mapping[str, Any] = field(default_factory=dict)
    depth: int = DEPTH

    @contextmanager
    def up(self) -> Iterator[str]:
        """The URL that answers predictions; the cluster of the folder is taken down at the end."""
        try:
            yield self.run()
        finally:
            subprocess.run([COMMAND, "down", str(self.file)], capture_output=True, check=True)

    def run(self) -> str:
        """Brings it up, trained where it is not yet, and returns the URL that answers predictions."""
        self.folder.mkdir(exist_ok=True)
        if not self.table.exists():
            made().write_parquet(self.table)
        self.file.write_text(yaml.safe_dump(project(self.name, self.table.name, self.serving, self.depth)))
        command = [COMMAND, "run", str(self.file), "--detach", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
        url = json.loads(done.stdout.splitlines()[-1])["url"]
        return f"{url}/v2/models/{self.name}/infer"

    @property
    def file(self) -> Path:
        return self.folder / f"{self.name}.yaml"

    @property
    def table(self) -> Path:
        return self.folder / "rows.parquet"

    @property
    def storage(self) -> Storage:
        return Storage.open(str(self.folder / ".mlops"))

    @property
    def headers(self) -> dict[str, str]:
        """What a caller must say of himself."""
        return {"Authorization": f"Bearer {self.storage.path('local.key').read_text().strip()}"}

    @property
    def model(self) -> Path:
        """The model in XGBoost's own file; raises `RuntimeError` where it has not the trees asked for."""
        champion = record.read(self.storage, self.name)["champion"]
        file = Path(self.storage.root, champion["package"], XgboostModel.file)
        trees = xgboost.Booster(model_file=file).num_boosted_rounds()
        if trees != TREES:
            raise RuntimeError(f"the model has {trees} trees, not {TREES}")
        return file


def project(name: str, table: str, serving: Mapping[str, Any], depth: int = DEPTH) -> dict[str, Any]:
    """The project file: a row is all that is known, and one point is all that is searched."""
    columns = {column: {"type": "float"} for column in COLUMNS}
    point = {"n_estimators": TREES, "max_depth": depth, "min_child_weight": 1}
    return {
        "project": name,
        "sources": {
            "table": {
                "path": table,
                "event_time": {"column": TIME},
                "known_at": {"after_event": "0s"},
                "columns": {**columns, LABEL: {"type": "float", "required": True}},
            }
        },
        "features": {"row": {"columns": list(COLUMNS)}},
        "target": {"source": "table", "expr": LABEL, "task": "regression"},
        "training": {
            "families": ["xgboost"],
            "metric": "rmse",
            "search": {"trials": 1, "scheduler": "none", "space": {"xgboost": point}},
            "validation": {"by": "random"},
            "gate": {"better_than": ["naive"]},
        },
        "serving": dict(serving),
    }


def made() -> pl.DataFrame:
    """Rows to train on."""
    random = np.random.default_rng(SEED)
    x = random.normal(size=(TRAINED_ROWS, len(COLUMNS)))
    noise = random.normal(scale=0.3, size=TRAINED_ROWS)
    label = 2 * x[:, 0] + np.sin(3 * x[:, 1]) + x[:, 2] * x[:, 3] + noise
    last = START + timedelta(minutes=TRAINED_ROWS - 1)
    times = pl.datetime_range(START, last, "1m", time_zone="UTC", eager=True).alias(TIME)
    return pl.DataFrame(x, schema=COLUMNS).with_columns(times, pl.Series(LABEL, label))


def asked() -> Rows:
    """Rows to ask about: numbers that 32 bits hold, so that all servers read the same."""
    return np.random.default_rng(SEED + 1).normal(size=(ASKED_ROWS, len(COLUMNS))).astype(np.float32)


def body(row: Sequence[float], times: int = 1) -> dict[str, Any]:
    """A row so many times in the form of the Open Inference Protocol: an input a column, and a time."""
    values = {TIME: ("BYTES", START.isoformat())} | {
        name: ("FP64", value) for name, value in zip(COLUMNS, row, strict=True)
    }
    return {
        "inputs": [
            {"name": name, "datatype": datatype, "shape": [times], "data": [value] * times}
            for name, (datatype, value) in values.items()
        ]
    }


def answer(reply: Mapping[str, Any]) -> float:
    """The prediction in a reply of ours."""
    return float(reply["outputs"][0]["data"][0])


def expected(model: Path, rows: Rows) -> Rows:
    """What the model answers in this process, by XGBoost's own package."""
    booster = xgboost.Booster({"nthread": 1}, model_file=model)
    return np.asarray(booster.inplace_predict(rows), np.float32)


def target(bench: Bench, name: str, url: str, service: Service) -> Target:
    """A target for all rows of a service whose answers were looked at."""
    bench.check(Caller(url, service.headers), body, answer)
    return bench.target(name, url, body, service.headers)


def replicas(service: Service, deployment: str) -> list[psutil.Process]:
    """The processes of a deployment, in this service's cluster alone."""
    title, cluster = f"ray::ServeReplica:{deployment}:", local.find(service.storage.root)
    found = local.carrying(cluster.marker) if cluster is not None else []
    return [process for process in found if _command(process).startswith(title)]


def _command(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def deploy(service: Service, module: str) -> str:
    """Runs `application(service)` of a module beside the service, below its own NAME; the URL to ask.

    In a process of its own: it is a driver of the cluster no longer than it takes.
    """
    # Ray reads these once, when it is first imported, as by the benchmark itself it may be.
    return str(in_new_process(_deploy, service, module, **head.SETTINGS))


def beside(service: Service, name: str, kind: Any) -> Any:
    """The application of the service's champion under another name, its replicas of another kind."""
    from mlops_ray.serving import replica

    storage = service.storage
    storage.write_json(record.read(storage, service.name) | {"model": name}, record.FOLDER, f"{name}.json")
    replica.Replica = kind  # type: ignore[misc]
    project = load(service.file).model_copy(update={"project": name})
    return replica.deployment(project, storage, {}, frozenset())


def _deploy(service: Service, module: str) -> str:
    cluster = local.find(service.storage.root)
    assert cluster is not None
    local.connect(cluster)
    import ray
    from ray import cloudpickle, serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    made = importlib.import_module(module)
    # Replicas can import our package, and not the benchmarks.
    cloudpickle.register_pickle_by_value(made)  # type: ignore[no-untyped-call]
    serve.run(made.application(service), name=made.NAME, route_prefix=f"/v2/models/{made.NAME}")
    ray.shutdown()
    return f"http://{head.LOOPBACK}:{cluster.http_port}/v2/models/{made.NAME}/infer"
