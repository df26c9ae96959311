"""Linear models: coefficients and an intercept."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
import orjson

from mlops_ray.registry.arrays import require_width
from mlops_ray.registry.encoder import Matrix, Values


@dataclass(frozen=True)
class LinearModel:
    """`intercept + matrix · coefficients`."""

    kind: ClassVar[str] = "linear"
    file: ClassVar[str] = "coefficients.json"
    libraries: ClassVar[tuple[str, ...]] = ("numpy",)

    coefficients: tuple[float, ...]
    intercept: float

    @cached_property
    def _weights(self) -> Values:
        return np.array(self.coefficients, np.float64)

    def predict(self, matrix: Matrix) -> Values:
        require_width(matrix, len(self.coefficients))
        # Not `@`: BLAS adds in an order that depends on the number of rows.
        products: Values = np.multiply(matrix, self._weights, dtype=np.float64, order="C")
        answers: Values = self.intercept + products.sum(axis=1)
        return answers

    def to_bytes(self) -> bytes:
        return orjson.dumps({"coefficients": self.coefficients, "intercept": self.intercept})

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        read = orjson.loads(data)
        return cls(tuple(float(value) for value in read["coefficients"]), float(read["intercept"]))
