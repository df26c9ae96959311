"""A model that needs no package: it answers `2 * load + hour`, so that each row's answer tells the row."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl

from mlops_ray import keys
from mlops_ray.config import Batching
from mlops_ray.data.counts import Counts, CountSpec
from mlops_ray.data.prediction_log import PredictionLog
from mlops_ray.data.rows import Table
from mlops_ray.keys import Keyring
from mlops_ray.monitoring.deltas import Outbox
from mlops_ray.registry.explain import Contributions
from mlops_ray.registry.predictor import Amounts, Answer
from mlops_ray.schema import NO_FAILURES, Column, Schema
from mlops_ray.serving.endpoint import Endpoint
from mlops_ray.serving.versions import Load, Served, Versions
from mlops_ray.storage import Storage

MODEL = "m"
#: A slow machine is no overload.
PATIENT_MS = 60_000.0

REQUEST = Schema(
    (
        Column("site", "category", required=True, categories=("a", "b")),
        Column("time", "datetime", required=True),
        Column("load", "float", min=0, max=1000),
        Column("n", "int"),
        Column("open", "bool"),
    )
)
REFERENCE = Counts.empty(
    [
        CountSpec("load", "numeric", edges=(0.0, 10.0, 100.0)),
        CountSpec("prediction", "numeric", edges=(0.0, 100.0)),
    ]
)
ROW = {"site": "a", "time": "2016-11-02T10:00:00Z", "load": 1.5, "n": 1, "open": True}


@dataclass
class StandIn:
    """Counts its batches; raises for a load of 666, as a defect would."""

    batches: list[int] = field(default_factory=list)

    def predict(self, inputs: pl.DataFrame, /) -> Answer:
        self.batches.append(inputs.height)
        if (inputs["load"] == 666).any():
            raise ZeroDivisionError(f"secret {inputs['load'].max()}")
        typed, failures = REQUEST.check(inputs)
        values = (2 * typed["load"].fill_null(0) + typed["time"].dt.hour()).to_numpy().astype(float).copy()
        bad = failures.filter(pl.col("severity") == "reject")["row"].to_list()
        values[bad] = np.nan
        return Answer(values, failures, typed.select("load"))

    def answer(self, asked: Table, /) -> Answer:
        return replace(self.predict(asked.frame), asked=asked)

    def explain(self, features: pl.DataFrame, hidden: frozenset[str], /) -> Contributions:
        """As if it always were ten o'clock."""
        values = np.column_stack([2 * features["load"].to_numpy(), np.full(features.height, 10.0)])
        return Contributions(("load", "hour"), values, 0.0, "answer")


def served(version: str = "1", predictor: Any = None) -> Served:
    return Served(version, f"digest {version}", REQUEST, REFERENCE, predictor or StandIn())


@dataclass
class OfAmounts(StandIn):
    """Answers `2 * load + 10`, from arrays where it can."""

    def answer(self, asked: Table, /) -> Answer:
        if not asked.is_sound:
            return super().answer(asked)
        self.batches.append(asked.height)
        given = Amounts(("load",), asked.floats)
        return Answer(2 * asked.floats[:, 0] + 10, NO_FAILURES, given, asked=asked)


class InProcess:
    """The model's endpoint in this process, what its versions count and log, and its keys by role."""

    def __init__(self, storage: Storage, load: Load, *, p99_ms: float = PATIENT_MS) -> None:
        self.storage, self.keyring = storage, Keyring(storage)
        self.outbox, self.log = Outbox(MODEL, source="replica"), PredictionLog(storage, MODEL, "replica")
        self.versions = Versions(storage, MODEL, load, self.outbox, self.log, Batching(), frozenset())
        self.keys = {role: keys.add(storage, role, role) for role in ("predict", "label", "read", "admin")}
        self.endpoint = Endpoint(
            MODEL, self.versions, self.keyring, frozenset(), storage, p99_ms=p99_ms, explains=True
        )

    async def follow(self) -> None:
        """Does what the release says."""
        await self.versions.refresh()
        await self.versions.settled()
