"""What is to be learned: the labelled rows, their features, and how they may be split."""

from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

import polars as pl

from mlops_ray.config import Postprocess, Training
from mlops_ray.errors import TrainingError
from mlops_ray.features.definitions import LABEL
from mlops_ray.registry.models import Values
from mlops_ray.schema import INSTANT, Column
from mlops_ray.training import families, metrics, splits
from mlops_ray.training.families import TaskKind
from mlops_ray.training.splits import Instants, Split


@dataclass(frozen=True)
class Task:
    """A training set and what the project file says about learning from it.

    `frame` has the columns `keys`, `time` (instants), every feature of `columns`, and `label`. `test_from` is
    the first target time of the test part. `season_us` is the season of the naive forecast, `None` where
    there is none. `postprocess` is what happens to every prediction before it counts.
    """

    frame: pl.DataFrame
    columns: tuple[Column, ...]
    keys: tuple[str, ...]
    time: str
    kind: TaskKind
    training: Training
    horizon_us: int
    label_delay_us: int
    test_from: datetime
    season_us: int | None = None
    postprocess: Postprocess = field(default_factory=Postprocess)

    def __post_init__(self) -> None:
        """Raises `TrainingError` for what cannot be learned, before anything is spent on it."""
        _refuse_unsupported(self)
        families.find(self.training.families)
        for metric in (self.training.metric, *self.training.metrics):
            metrics.find(metric, self.kind)
        minimum = self.training.minimum_rows
        if self.frame.height < minimum:
            raise TrainingError(
                f"the training set has {self.frame.height} rows, fewer than training.minimum_rows: {minimum}"
            )

    @cached_property
    def times(self) -> Instants:
        """Target times, microseconds."""
        return self.frame[self.time].cast(INSTANT).to_physical().to_numpy()

    @cached_property
    def labels(self) -> Values:
        return self.frame[LABEL].to_numpy()

    @property
    def gap_us(self) -> int:
        """How long before the first prediction's target time the last label is known."""
        return self.horizon_us + self.label_delay_us

    @cached_property
    def test(self) -> Split:
        """The rows to train on at the end, and the test part."""
        start = pl.Series([self.test_from], dtype=INSTANT).to_physical()[0]
        return splits.test_split(self.times, start, self.gap_us)

    @cached_property
    def folds(self) -> list[Split]:
        """Training and validation rows, all before the test part."""
        return splits.folds(self.times, self.test.train, self.training.validation.folds, self.gap_us)

    @property
    def clip(self) -> tuple[float | None, float | None]:
        """The bounds of every prediction."""
        return self.postprocess.clip or (None, None)


def _refuse_unsupported(task: Task) -> None:
    training, validation = task.training, task.training.validation
    asks = {
        f"target.task: {task.kind}": task.kind != "regression",
        "training.imbalance": training.imbalance is not None,
        f"training.validation.by: {validation.by}": validation.by != "time",
        "training.validation.group": validation.group is not None,
        "training.validation.stratify": validation.stratify,
        "training.validation.replay": validation.replay,
        "training.search.gpu: required": training.search.gpu == "required",
        "training.search.resources.gpu": training.search.resources.gpu > 0,
        "serving.postprocess.function": task.postprocess.function is not None,
    }
    for what, asked in asks.items():
        if asked:
            raise TrainingError(f"{what} is not supported yet")
