"""Linear models: coefficients and an intercept."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
import orjson

from mlops_ray.registry.arrays import require_width
from mlops_ray.registry.encoder import Matrix, Values
from mlops_ray.registry.probability import probability


@dataclass(frozen=True)
class LinearModel:
    """`intercept + matrix · coefficients`, or where it `classifies` the probability this sum stands for."""

    kind: ClassVar[str] = "linear"
    file: ClassVar[str] = "coefficients.json"
    libraries: ClassVar[tuple[str, ...]] = ("numpy",)

    coefficients: tuple[float, ...]
    intercept: float
    classifies: bool = False

    @cached_property
    def _weights(self) -> Values:
        return np.array(self.coefficients, np.float64)

    def predict(self, matrix: Matrix) -> Values:
        require_width(matrix, len(self.coefficients))
        # Not `@`: BLAS adds in an order that depends on the number of rows.
        products: Values = np.multiply(matrix, self._weights, dtype=np.float64, order="C")
        answers: Values = self.intercept + products.sum(axis=1)
        return probability(answers) if self.classifies else answers

    def to_bytes(self) -> bytes:
        kept = {"coefficients": self.coefficients, "intercept": self.intercept}
        return orjson.dumps(kept | ({"classifies": True} if self.classifies else {}))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        read = orjson.loads(data)
        coefficients = tuple(float(value) for value in read["coefficients"])
        return cls(coefficients, float(read["intercept"]), read.get("classifies") is True)
