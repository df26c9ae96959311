"""How counts travel from replicas to the monitor: each exactly once, while both live.

A replica gathers into an outbox. What it sends carries a number and is kept until acknowledged; the monitor
remembers the last number of each sender, so that what comes twice counts once.
"""

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import polars as pl

from mlops_ray.data.counts import Counts, CountSpec, Traffic
from mlops_ray.data.rows import Values
from mlops_ray.monitoring.alarms import Budget
from mlops_ray.monitoring.sides import Side
from mlops_ray.registry.predictor import Amounts

#: The Serve application and deployment to which the deltas go.
APPLICATION = "monitor"
DEPLOYMENT = "Monitor"
#: The column of the model's answers, beside those of its features.
PREDICTION = "prediction"
#: Answered rows are counted together: one row costs the counting almost as much as these many. They are also
#: all that a replica keeps in memory before it counts.
COUNTED_TOGETHER = 512


@dataclass
class Tally:
    """What one version did since it was last asked: traffic, and counts of the rows that it answered.

    `keys` are the rows by the name of the key that asked for them.
    """

    traffic: Traffic
    counts: Counts
    keys: Counter[str] = field(default_factory=Counter)
    _uncounted: list[tuple[pl.DataFrame | Amounts, Values]] = field(default_factory=list)
    _rows: int = 0

    @classmethod
    def empty(cls, specs: Sequence[CountSpec]) -> Self:
        return cls(Traffic(), Counts.empty(specs))

    def observe(self, features: pl.DataFrame | Amounts, values: Values) -> None:
        """Takes in the rows of a batch: features and answers, NaN where there is none."""
        self._uncounted.append((features, values))
        self._rows += len(values)
        if self._rows >= COUNTED_TOGETHER:
            self.count()

    def count(self) -> None:
        """Counts the rows that were taken in and are not counted yet; rows without an answer are left out."""
        batches, self._uncounted, self._rows = self._uncounted, [], 0
        # Arrays are counted as such, which costs far less than as frames.
        arrays = [(given, values) for given, values in batches if isinstance(given, Amounts)]
        frames = [(given, values) for given, values in batches if isinstance(given, pl.DataFrame)]
        if arrays:
            values = np.concatenate([values for _, values in arrays])
            given = np.column_stack([np.concatenate([given.values for given, _ in arrays]), values])
            answered = given[~np.isnan(values)].T
            columns = dict(zip((*arrays[0][0].names, PREDICTION), answered, strict=True))
            self.counts.add(columns, answered.shape[1])
        if frames:
            values = np.concatenate([values for _, values in frames])
            rows = pl.concat([given for given, _ in frames]).with_columns(pl.Series(PREDICTION, values))
            self.counts.update(rows.filter(rows[PREDICTION].is_not_nan()))

    def to_json(self) -> dict[str, Any]:
        self.count()
        counted = {"traffic": self.traffic.to_json(), "counts": self.counts.to_json()}
        return counted | {"keys": dict(self.keys)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        traffic, counts = Traffic.from_json(data["traffic"]), Counts.from_json(data["counts"])
        # What a replica of before sent has none.
        return cls(traffic, counts, Counter(data.get("keys", {})))


@dataclass
class Outbox:
    """What a replica has to tell about a model, which is watched in windows of `window_s`, within a budget.

    `fresh_s` says how old the newest row of a source may be, by source. `source` names the replica for as
    long as it lives.
    """

    model: str
    window_s: float = 86_400.0
    budget: Budget = field(default_factory=Budget)
    fresh_s: Mapping[str, float] = field(default_factory=dict)
    source: str = field(default_factory=lambda: uuid.uuid4().hex)
    _tallies: dict[str, Tally] = field(default_factory=dict)
    _sides: dict[int, tuple[Side, Side]] = field(default_factory=dict)
    _sent: dict[str, Any] | None = None
    _sequence: int = 0

    def tally(self, version: str, specs: Sequence[CountSpec] = ()) -> Tally:
        """Where a version's requests are counted now; `specs` say how, when it is a new one."""
        if version not in self._tallies:
            self._tallies[version] = Tally.empty(specs)
        return self._tallies[version]

    def sides(self, turn: int) -> tuple[Side, Side]:
        """Where champion and challenger are counted now, in this turn of their release."""
        if turn not in self._sides:
            self._sides[turn] = Side(str(turn)), Side(str(turn))
        return self._sides[turn]

    def delta(self) -> dict[str, Any] | None:
        """The delta to send: the last one again until it is acknowledged; `None` where nothing happened."""
        if self._sent is None and (self._tallies or self._sides):
            self._sequence += 1
            versions = {version: tally.to_json() for version, tally in self._tallies.items()}
            sides = [[turn, *(side.to_json() for side in pair)] for turn, pair in self._sides.items()]
            self._tallies, self._sides = {}, {}
            head: dict[str, Any] = {"model": self.model, "window_s": self.window_s}
            head |= {"false_alarms": [self.budget.most, self.budget.per_s]}
            head |= {"fresh_s": dict(self.fresh_s)}
            head |= {"source": self.source, "sequence": self._sequence}
            self._sent = {**head, "versions": versions, "sides": sides}
        return self._sent

    def acknowledge(self, sequence: int) -> None:
        """Forgets the delta that the monitor has stored."""
        if self._sent is not None and self._sent["sequence"] == sequence:
            self._sent = None
