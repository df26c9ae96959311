"""Small models, encoders and packages for tests, made from a seed."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mlops_ray.features.definitions import Computed, FeatureSet
from mlops_ray.registry import package
from mlops_ray.registry.encoder import Encoder
from mlops_ray.registry.models import LinearModel
from mlops_ray.registry.outcome import Outcome
from mlops_ray.registry.package import Package
from mlops_ray.schema import Column, Schema

SITES = ("a", "b", "c")
COLUMNS = (
    Column("site", "category"),
    Column("lag", "float"),
    Column("hour", "int", categories=tuple(range(24))),
    Column("holiday", "bool"),
)
REQUEST = Schema(
    (
        Column("site", "category", required=True),
        Column("time", "datetime", required=True),
        Column("lag", "float", max=10.0),
        Column("hour", "int"),
        Column("holiday", "bool"),
    )
)
#: Without history: every feature is a column of the request.
FEATURES = FeatureSet(
    request=REQUEST,
    columns=COLUMNS,
    stored=(),
    computed=tuple(Computed(column.name, "expr", column.name) for column in COLUMNS),
    tables=(),
    horizon_us=0,
    time="time",
)


def rows(count: int, seed: int = 7) -> pl.DataFrame:
    """Feature rows with missing values."""
    random = np.random.default_rng(seed)
    lag = random.random(count)
    return pl.DataFrame(
        {
            "site": random.choice([*SITES, None], count).tolist(),
            "lag": np.where(random.random(count) < 0.1, np.nan, lag),
            "hour": random.integers(0, 24, count),
            "holiday": random.random(count) < 0.1,
        },
        schema={"site": pl.String, "lag": pl.Float64, "hour": pl.Int64, "holiday": pl.Boolean},
        strict=False,
    ).with_columns(pl.col("lag").fill_nan(None))


def requests(count: int, seed: int = 7) -> pl.DataFrame:
    """Request rows that hold the features themselves."""
    return rows(count, seed).with_columns(
        pl.lit(datetime(2016, 11, 1, tzinfo=UTC)).alias("time"), pl.col("site").fill_null("a")
    )


def linear(width: int, seed: int = 7) -> LinearModel:
    return LinearModel(tuple(np.random.default_rng(seed).normal(size=width).tolist()), 0.5)


def write(folder: Path, **changes: Any) -> Package:
    """A package of a linear model."""
    encoder = Encoder.fit(rows(200), COLUMNS, style="one_hot")
    given: dict[str, Any] = {
        "name": "demo",
        "task": "regression",
        "family": "ridge",
        "params": {"alpha": 1.0},
        "model": linear(len(encoder.names)),
        "encoder": encoder,
        "feature_set": FEATURES,
        "target": {"source": "meter", "expr": "load"},
        "outcome": Outcome(clip=(0.0, 1.5)),
        "metrics": {"mae": 0.1},
        "baselines": {"no_change": {"mae": 0.2}},
        "intervals": {"mae": (0.09, 0.11)},
        "origin": {},
        "training_set": {"digest": "ab" * 32, "rows": 200},
        "reference": {"rows": 0, "columns": []},
        "created_at": datetime(2016, 11, 1, tzinfo=UTC),
    }
    return package.write(folder, **{**given, **changes})
