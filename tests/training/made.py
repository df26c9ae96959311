"""A small forecast that can be learned: two sites, hourly, with a daily and a weekly rhythm."""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from mlops_ray.config import MICROSECONDS, Training
from mlops_ray.schema import Column
from mlops_ray.training.task import Task

DAY = MICROSECONDS["d"]
START = datetime(2016, 1, 1, tzinfo=UTC)
COLUMNS = (
    Column("site", "category"),
    Column("yesterday", "float"),
    Column("hour", "int", categories=tuple(range(24))),
)


def frame(days: int = 60, seed: int = 7) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    hours = np.arange(days * 24)
    parts = []
    for number, site in enumerate(("a", "b")):
        rhythm = 0.5 + 0.3 * np.sin(hours * 2 * np.pi / 24 + number) + 0.1 * (hours // 24 % 7 == 6)
        label = rhythm + random.normal(scale=0.05, size=len(hours))
        parts.append(
            pl.DataFrame(
                {
                    "site": [site] * len(hours),
                    "time": [START + timedelta(hours=int(hour)) for hour in hours],
                    "yesterday": np.concatenate([np.full(24, np.nan), label[:-24]]),
                    "hour": hours % 24,
                    "label": label,
                },
                schema_overrides={"time": pl.Datetime("us", "UTC")},
            )
        )
    return pl.concat(parts).with_columns(pl.col("yesterday").fill_nan(None)).sort("time", "site")


def classification(training: dict[str, Any] | None = None, **changes: Any) -> Task:
    """Whether the label is among the highest fifth."""
    data = frame()
    high = (pl.col("label") > data["label"].quantile(0.8)).cast(pl.Float64)
    given = {"families": ["xgboost"], "metric": "average_precision", **(training or {})}
    changes = {"frame": data.with_columns(high.alias("label")), "kind": "classification", **changes}
    return task(given, **changes)


def task(training: dict[str, Any] | None = None, **changes: Any) -> Task:
    """The day-ahead forecast of those sites, the last ten days as the test part."""
    given = {"families": ["ridge"], "search": {"trials": 4, "seed": 7}, **(training or {})}
    fields: dict[str, Any] = {
        "frame": frame(),
        "columns": COLUMNS,
        "keys": ("site",),
        "time": "time",
        "kind": "regression",
        "training": Training.model_validate(given),
        "horizon_us": DAY,
        "label_delay_us": 0,
        "test_from": START + timedelta(days=50),
        "season_us": 7 * DAY,
    }
    return Task(**{**fields, **changes})
