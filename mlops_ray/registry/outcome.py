"""From a model's number to the answer: transform undone, probability calibrated, function called, clipped."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Self

import numpy as np
import polars as pl

from mlops_ray.errors import DataError, PackageError
from mlops_ray.expressions import function_digest, load_function
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
class Called:
    """A Python function of the project by its dotted path, and the digest of its code (`function_digest`).

    It takes the answers so far, a float64 Series, and returns as many numbers. Each must come from its own
    row alone: rows of several requests are answered together.

    >>> Called.now("operator.neg")(np.array([1.0, -2.0])).tolist()
    [-1.0, 2.0]
    """

    path: str
    code: str

    @classmethod
    def now(cls, path: str) -> Self:
        """The function as it is now; raises `ConfigError` where there is none."""
        return cls(path, function_digest(path))

    def __call__(self, values: Values) -> Values:
        """Float64 (rows), NaN where it answered nothing.

        Raises `DataError` where it fails, or answers with something else than a number a row.
        """
        if not len(values):
            return values
        found = _function(self.path)(pl.Series("prediction", values))
        if not found.dtype.is_numeric():
            raise DataError(f"the function {self.path} returned values of type {found.dtype}, not numbers")
        return found.cast(pl.Float64).fill_null(float("nan")).to_numpy()


_function = lru_cache(maxsize=256)(load_function)


@dataclass(frozen=True)
class Outcome:
    """What happens to a model's numbers.

    Of a regression on a transformed label, the transform is undone; of a classification, `calibrator` is
    asked, and an answer that reaches `threshold` counts as a yes; it is `None` for a regression. `function`
    is then called, and `clip` are the bounds of every answer. `labels` are what no and yes are called.

    >>> Outcome(transform="log1p", clip=(0.0, 2.0)).answers(np.array([0.0, 5.0])).tolist()
    [0.0, 2.0]
    """

    transform: Transform | None = None
    calibrator: Calibrator | None = None
    threshold: float | None = None
    clip: tuple[float | None, float | None] = (None, None)
    function: Called | None = None
    labels: tuple[str, str] | None = None

    def answers(self, raw: Values) -> Values:
        """The answers to a model's numbers, float64 (rows)."""
        values = raw if self.transform is None else each(UNDO[self.transform], raw)
        if self.calibrator is not None:
            values = self.calibrator(values)
        if self.function is not None:
            values = self.function(values)
        return values if self.clip == (None, None) else np.clip(values, *self.clip)

    def to_json(self) -> dict[str, Any]:
        line = self.calibrator and {"said": list(self.calibrator.said), "meant": list(self.calibrator.meant)}
        return {
            "transform": self.transform,
            "calibrator": line,
            "threshold": self.threshold,
            "clip": list(self.clip),
            "function": self.function and vars(self.function),
            "labels": self.labels and list(self.labels),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Raises `PackageError` for what `to_json` does not make."""
        transform, line, threshold = data["transform"], data["calibrator"], data["threshold"]
        if transform is not None and transform not in UNDO:
            raise PackageError(f"the package transforms its label by {transform!r}, which is not known here")
        low, high = data["clip"]
        function, labels = data["function"], data["labels"]
        if labels is not None and not _are_labels(labels):
            raise PackageError("the package's labels are not two names that differ")
        return cls(
            transform,
            line and Calibrator(tuple(map(float, line["said"])), tuple(map(float, line["meant"]))),
            None if threshold is None else float(threshold),
            (low, high),
            function and Called(str(function["path"]), str(function["code"])),
            None if labels is None else (labels[0], labels[1]),
        )


def _are_labels(given: Any) -> bool:
    return (
        isinstance(given, list)
        and len(set(map(str, given))) == 2 == len(given)
        and all(isinstance(name, str) and name for name in given)
    )
