"""A small real package: a linear model of columns that the request holds, for a project of three lines."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mlops_ray.config import Project
from mlops_ray.data.counts import reference
from mlops_ray.features.definitions import FeatureSet, compile_features
from mlops_ray.registry import package as packages
from mlops_ray.registry import signing
from mlops_ray.registry.encoder import Encoder, NumericPart
from mlops_ray.registry.models import LinearModel
from mlops_ray.registry.outcome import Outcome
from mlops_ray.registry.package import Package
from mlops_ray.schema import Column
from mlops_ray.serving import record, release
from mlops_ray.storage import Storage

NAME = "rows"
PROJECT = {
    "project": NAME,
    "sources": {
        "table": {
            "path": "rows.csv",
            "entity": "site",
            "event_time": {"column": "time", "timezone": "UTC"},
            "columns": {
                "site": {"type": "category", "categories": ["a", "b"]},
                "time": {"type": "datetime"},
                "load": {"type": "float", "min": 0, "max": 1000},
                "cost": {"type": "float"},
            },
        }
    },
    "features": {"row": {"on_request": {"amount": {"expr": "load * 1.0"}, "hour": {"hour_of": "time"}}}},
    "target": {"source": "table", "expr": "cost", "task": "regression"},
    "serving": {"replicas": {"min": 1, "max": 1}, "resources": {"cpu": 0.5}},
}


#: A model of the request's own amounts, which is answered from arrays.
OF_AMOUNTS = {"features": {"row": {"columns": ["load"]}}}
#: What models answer in proportion to, by its names.
AMOUNTS = ("amount", "load")


def project(storage: Path, **more: Any) -> Project:
    return Project.model_validate(PROJECT | {"storage": str(storage)} | more)


def write(
    folder: Path, of: Project, factor: float, name: str = NAME, outcome: Outcome | None = None, **more: Any
) -> Package:
    """A package whose model answers `factor * load`; `more` is for `package.write`, and wins."""
    features = compile_features(of)
    rows = _rows(features)
    encoder = Encoder.fit(rows, features.columns, style="one_hot")
    watched = (*features.columns, Column("prediction", "float"))
    amount = next(name for name in rows.columns if name in AMOUNTS)
    predicted = rows.with_columns(prediction=factor * pl.col(amount))
    usual: dict[str, Any] = {
        "task": "regression",
        "family": "linear",
        "params": {},
        "target": {"source": "table", "expr": "cost"},
        "intervals": {},
        "origin": {},
        "metrics": {"mae": 0.041, "rmse": 0.06, "relative_mae": 0.118},
        "baselines": {"last_season": {"mae": 0.065, "relative_mae": 0.187}},
        "training_set": {"rows": rows.height},
        "reference": reference(predicted, watched, 7).to_json(),
        "created_at": datetime(2026, 11, 1, tzinfo=UTC),
        "sign": signing.own_key(of, Storage.open(of.storage)),
    }
    return packages.write(
        folder,
        name=name,
        model=_proportional(encoder, factor),
        encoder=encoder,
        feature_set=features,
        outcome=outcome or Outcome(),
        **usual | more,
    )


def crown(storage: Storage, name: str, version: int, package: Package) -> dict[str, Any]:
    """The release in which a version is champion at once, as no reconciler would have it."""
    document = record.read(storage, name) or record.new(name)
    entry = record.entry(storage, str(version), package)
    return record.write(storage, release.crowned(document, entry, document["champion"], time.time()))


def _proportional(encoder: Encoder, factor: float) -> LinearModel:
    amount = next(part for part in encoder.parts if isinstance(part, NumericPart) and part.name in AMOUNTS)
    weights = tuple(factor * amount.scale if name == amount.name else 0.0 for name in encoder.names)
    return LinearModel(weights, factor * amount.center)


def _rows(features: FeatureSet) -> pl.DataFrame:
    amounts = np.random.default_rng(7).normal(50, 10, 4_000)
    made = pl.DataFrame(
        {"amount": amounts, "load": amounts, "newest": amounts, "hour": np.arange(4_000) % 24}
    )
    made = made.with_columns(site=pl.Series(["a", "b"] * 2_000))
    return made.select(features.names)
