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
    """`intercept + matrix · coefficients`, or where it `classifies` the probability this sum stands for.

    `means` are those of the matrix's columns over the training rows; without, each counts as 0.
    """

    kind: ClassVar[str] = "linear"
    file: ClassVar[str] = "coefficients.json"
    libraries: ClassVar[tuple[str, ...]] = ("numpy",)

    coefficients: tuple[float, ...]
    intercept: float
    classifies: bool = False
    means: tuple[float, ...] = ()

    @cached_property
    def _weights(self) -> Values:
        return np.array(self.coefficients, np.float64)

    def predict(self, matrix: Matrix) -> Values:
        require_width(matrix, len(self.coefficients))
        # Not `@`: BLAS adds in an order that depends on the number of rows.
        products: Values = np.multiply(matrix, self._weights, dtype=np.float64, order="C")
        answers: Values = self.intercept + products.sum(axis=1)
        return probability(answers) if self.classifies else answers

    def contributions(self, matrix: Matrix) -> tuple[Values, float]:
        require_width(matrix, len(self.coefficients))
        means = np.array(self.means) if self.means else np.zeros(len(self.coefficients))
        return (matrix - means) * self._weights, self.intercept + float((means * self._weights).sum())

    def to_bytes(self) -> bytes:
        kept = {"coefficients": self.coefficients, "intercept": self.intercept, "means": self.means}
        return orjson.dumps(kept | ({"classifies": True} if self.classifies else {}))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        read = orjson.loads(data)
        coefficients = tuple(float(value) for value in read["coefficients"])
        means = tuple(float(value) for value in read.get("means", ()))
        if means and len(means) != len(coefficients):
            raise ValueError("there is not one mean a coefficient")
        return cls(coefficients, float(read["intercept"]), read.get("classifies") is True, means)
