"""From a model's number to the answer: transform undone, probability calibrated, bounds kept."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from mlops_ray.errors import PackageError
from mlops_ray.registry.encoder import Values
from mlops_ray.registry.probability import each

TaskKind = Literal["regression", "classification"]
Transform = Literal["log", "log1p"]
#: What undoes each transform of a label.
UNDO = {"log": math.exp, "log1p": math.expm1}


@dataclass(frozen=True)
class Calibrator:
    """A probability as it should have been said: straight lines between the points (`said`, `meant`).

    Both rise from 0 to 1; what is above another probability stays above it or equal.
    """

    said: tuple[float, ...]
    meant: tuple[float, ...]

    def __post_init__(self) -> None:
        points = np.array([self.said, self.meant]) if len(self.said) == len(self.meant) else np.zeros((0, 0))
        if points.size < 4 or not np.isfinite(points).all() or (np.diff(points) < 0).any():
            raise PackageError("the package's calibration is no rising line")

    def __call__(self, probabilities: Values) -> Values:
        return np.interp(probabilities, self.said, self.meant)


@dataclass(frozen=True)
class Outcome:
    """What happens to a model's numbers.

    Of a regression on a transformed label, the transform is undone; of a classification, `calibrator` is
    asked, and an answer that reaches `threshold` counts as a yes; it is `None` for a regression. `clip` are
    the bounds of every answer.

    >>> Outcome(transform="log1p", clip=(0.0, 2.0)).answers(np.array([0.0, 5.0])).tolist()
    [0.0, 2.0]
    """

    transform: Transform | None = None
    calibrator: Calibrator | None = None
    threshold: float | None = None
    clip: tuple[float | None, float | None] = (None, None)

    def answers(self, raw: Values) -> Values:
        """The answers to a model's numbers, float64 (rows)."""
        values = raw if self.transform is None else each(UNDO[self.transform], raw)
        if self.calibrator is not None:
            values = self.calibrator(values)
        return values if self.clip == (None, None) else np.clip(values, *self.clip)

    def to_json(self) -> dict[str, Any]:
        line = self.calibrator and {"said": list(self.calibrator.said), "meant": list(self.calibrator.meant)}
        return {
            "transform": self.transform,
            "calibrator": line,
            "threshold": self.threshold,
            "clip": list(self.clip),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Raises `PackageError` for what `to_json` does not make."""
        transform, line, threshold = data["transform"], data["calibrator"], data["threshold"]
        if transform is not None and transform not in UNDO:
            raise PackageError(f"the package transforms its label by {transform!r}, which is not known here")
        low, high = data["clip"]
        return cls(
            transform,
            line and Calibrator(tuple(map(float, line["said"])), tuple(map(float, line["meant"]))),
            None if threshold is None else float(threshold),
            (low, high),
        )
