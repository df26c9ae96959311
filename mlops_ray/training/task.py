"""What is to be learned: the labelled rows, their features, and how they may be split."""

from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

import numpy as np
import polars as pl

from mlops_ray.config import ClassWeights, Imbalance, Postprocess, Threshold, Training
from mlops_ray.errors import TrainingError
from mlops_ray.features.definitions import LABEL
from mlops_ray.registry import metrics
from mlops_ray.registry.bootstrap import Blocks
from mlops_ray.registry.encoder import Encoder, Style
from mlops_ray.registry.metrics import Metric
from mlops_ray.registry.models import Values
from mlops_ray.registry.outcome import Called, Outcome, Transform
from mlops_ray.schema import INSTANT, Column
from mlops_ray.training import families, splits
from mlops_ray.training.families import Family, Sample, TaskKind
from mlops_ray.training.splits import Instants, Plan, Rows, Split

#: What a transform does to a label, and from which one on it can.
TRANSFORMS = {"log": (np.log, 0.0), "log1p": (np.log1p, -1.0)}


@dataclass(frozen=True)
class Task:
    """A training set and what the project file says about learning from it.

    `frame` has the columns `keys`, `time` (instants), every feature of `columns`, and `label`, which is 0 or
    1 in a classification. `test_from` is the first target time of the test part, `None` where a share of the
    rows is held back. `season_us` is the season of the naive forecast, `None` where there is none.
    `postprocess` is what happens to every prediction before it counts. Where `restricts`, errors of libraries
    are told without what they say.
    """

    frame: pl.DataFrame
    columns: tuple[Column, ...]
    keys: tuple[str, ...]
    time: str
    kind: TaskKind
    training: Training
    horizon_us: int
    label_delay_us: int
    test_from: datetime | None
    season_us: int | None = None
    transform: Transform | None = None
    postprocess: Postprocess = field(default_factory=Postprocess)
    restricts: bool = False

    def __post_init__(self) -> None:
        """Raises `TrainingError` for what cannot be learned, before anything is spent on it."""
        _ = self.families, self.outcome
        metrics.find(self.training.metric, self.kind)
        for metric in self.training.metrics:
            if self.kind == "regression" or metric not in metrics.DECISIONS:
                metrics.find(metric, self.kind)
        minimum = self.training.minimum_rows
        if self.frame.height < minimum:
            raise TrainingError(
                f"the training set has {self.frame.height} rows, fewer than training.minimum_rows: {minimum}"
            )
        if self.kind == "classification":
            self._require_classes()
        elif self.training.imbalance is not None:
            raise TrainingError("training.imbalance is for a classification; target.task is regression")
        if self.transform is not None:
            self._require_transformable(self.transform)

    def _require_classes(self) -> None:
        positives = float(self.labels.sum())
        if self.transform is not None:
            raise TrainingError("target.transform is for a regression; target.task is classification")
        if not np.isin(self.labels, (0.0, 1.0)).all():
            raise TrainingError(
                "the target of a classification is not yes or no: name its positive class as target.positive"
            )
        weighted = self.training.imbalance is not None and self.training.imbalance.weights is not None
        for name, family in self.families.items():
            if weighted and not getattr(family, "takes_weights", True):
                raise TrainingError(
                    f"the model family {name!r} takes no weights of rows: leave out it, or "
                    "training.imbalance.weights"
                )
        fewest = (self.training.imbalance or Imbalance()).minimum_rows
        for name, rows in (("positive", positives), ("negative", self.frame.height - positives)):
            if rows < fewest:
                raise TrainingError(
                    f"the {name} class has {rows:.0f} of {self.frame.height} rows, fewer than "
                    f"training.imbalance.minimum_rows: {fewest}"
                )

    def _require_transformable(self, transform: Transform) -> None:
        _, bound = TRANSFORMS[transform]
        outside = int((self.labels <= bound).sum())
        if outside:
            raise TrainingError(
                f"target.transform: {transform} needs labels above {bound:g}; {outside} of "
                f"{self.frame.height} are not"
            )

    @cached_property
    def times(self) -> Instants:
        """Target times, microseconds."""
        return self.frame[self.time].cast(INSTANT).to_physical().to_numpy()

    @cached_property
    def labels(self) -> Values:
        return self.frame[LABEL].to_numpy()

    @cached_property
    def families(self) -> dict[str, Family]:
        """The families that compete, by name."""
        return families.find(self.training.families, self.kind)

    @cached_property
    def outcome(self) -> Outcome:
        """What happens to every number of a model, but for what a classification learns of its validation."""
        said = self.postprocess
        return Outcome(
            transform=self.transform,
            clip=said.clip or (None, None),
            function=Called.now(said.function) if said.function is not None else None,
            labels=said.labels,
        )

    @property
    def metric(self) -> Metric:
        """The metric that decides."""
        return metrics.find(self.training.metric, self.kind)

    @property
    def threshold(self) -> Threshold | None:
        """What the threshold of a classification is to be chosen for."""
        return self.training.imbalance.threshold if self.training.imbalance else None

    @property
    def gap_us(self) -> int:
        """How long before the first prediction's target time the last label is known."""
        return self.horizon_us + self.label_delay_us

    @cached_property
    def groups(self) -> Blocks | None:
        """A number for each row's group, `None` where rows are not grouped."""
        name = self.training.validation.group
        if name is None:
            return None
        if name not in self.frame.columns:
            raise TrainingError(
                f"training.validation.group: the training set has no column {name!r}; name an entity's key, "
                "or a feature"
            )
        return self.frame[name].rank("dense").fill_null(0).cast(pl.Int64).to_numpy()

    @cached_property
    def plan(self) -> Plan:
        """The rows to train on at the end, the test part, and the folds before it."""
        start, minimum = None, self.training.minimum_rows
        if self.test_from is not None:
            start = int(pl.Series([self.test_from], dtype=INSTANT).to_physical()[0])
        made = splits.make(
            self.training.validation,
            times=self.times,
            gap=self.gap_us,
            test_from=start,
            seed=self.training.search.seed,
            groups=self.groups,
            classes=self.labels.astype(np.int64) if self.kind == "classification" else None,
        )
        if len(made.test.train) < minimum:
            raise TrainingError(
                f"{len(made.test.train)} rows are left to train on beside the test part, fewer than "
                f"training.minimum_rows: {minimum}; move training.validation.test"
            )
        return made

    @property
    def test(self) -> Split:
        """The rows to train on at the end, and the test part."""
        return self.plan.test

    @property
    def folds(self) -> list[Split]:
        """Training and validation rows, all of those that train for the test part."""
        return self.plan.folds

    def blocks(self, rows: Rows) -> Blocks:
        """For each of these rows the block that a bootstrap draws it with: see `splits.blocks`."""
        return splits.blocks(
            self.training.validation,
            rows,
            times=self.times,
            gap=self.gap_us,
            season=self.season_us,
            groups=self.groups,
        )

    def encoded(self, rows: Rows, style: Style) -> tuple[Encoder, Sample]:
        """The encoder learned on these rows, and they as a family is fitted on them.

        Their labels are transformed, and they are weighted.
        """
        frame, labels = self.frame[rows], self.labels[rows]
        encoder = Encoder.fit(frame, self.columns, style=style)
        if self.transform is not None:
            labels = TRANSFORMS[self.transform][0](labels)
        return encoder, Sample(encoder.transform(frame), labels, self._weights(labels), encoder.discrete)

    def _weights(self, labels: Values) -> Values | None:
        """What each row counts, learned on these labels; `None` where all count alike."""
        given = self.training.imbalance.weights if self.training.imbalance else None
        if given is None:
            return None
        if given == "balanced":
            positives = min(max(float(labels.sum()), 1.0), len(labels) - 1.0)
            given = ClassWeights(
                negative=len(labels) / (2 * (len(labels) - positives)),
                positive=len(labels) / (2 * positives),
            )
        return np.where(labels > 0, given.positive, given.negative)
