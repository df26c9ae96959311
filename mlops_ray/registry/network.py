"""Neural networks: layers of weights, answered without the library that fitted them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from mlops_ray.registry.arrays import pack, require_width, unpack
from mlops_ray.registry.encoder import Matrix, Values
from mlops_ray.registry.probability import flag, probability, take_flag

#: Products that a layer makes at once: 8 bytes each, they stay within a core's cache.
PRODUCTS = 65_536


@dataclass(frozen=True)
class NetworkModel:
    """A multilayer perceptron with rectified linear units: `layers` are (weights, offsets) pairs.

    Weights are (outputs × inputs), float64; the last layer has one output and no unit behind it. Where the
    network `classifies`, the answer is the probability that this output stands for.
    """

    kind: ClassVar[str] = "network"
    file: ClassVar[str] = "layers.npy"
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "scikit-learn")

    layers: tuple[tuple[Values, Values], ...]
    classifies: bool = False

    @classmethod
    def from_sklearn(cls, estimator: Any, *, center: float = 0.0, scale: float = 1.0) -> Self:
        """The network (relu) of a fitted `MLPRegressor` whose target was `(label - center) / scale`.

        Or that of an `MLPClassifier` of two classes.
        """
        weights = [np.ascontiguousarray(w.T, np.float64) for w in estimator.coefs_]
        offsets = [np.asarray(b, np.float64) for b in estimator.intercepts_]
        weights[-1], offsets[-1] = weights[-1] * scale, offsets[-1] * scale + center
        layers = tuple(zip(weights, offsets, strict=True))
        return cls(layers, classifies=estimator.out_activation_ == "logistic")

    def predict(self, matrix: Matrix) -> Values:
        require_width(matrix, self.layers[0][0].shape[1])
        values: Values = matrix.astype(np.float64)
        for at, (weights, offsets) in enumerate(self.layers):
            values = _layer(np.maximum(values, 0.0) if at else values, weights, offsets)
        return probability(values[:, 0]) if self.classifies else values[:, 0]

    def to_bytes(self) -> bytes:
        return pack(*(array for layer in self.layers for array in layer), *flag(self.classifies))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        arrays, classifies = take_flag(unpack(data))
        layers = tuple(zip(arrays[::2], arrays[1::2], strict=True))
        _check(layers)
        return cls(layers, classifies)


def _layer(values: Values, weights: Values, offsets: Values) -> Values:
    """`values · weights + offsets`, each row's sums in the same order however many rows there are."""
    rows = max(1, PRODUCTS // weights.size)
    out = np.empty((len(values), len(weights)))
    for at in range(0, len(values), rows):
        # Not `@`: BLAS adds in an order that depends on the number of rows.
        products = np.multiply(values[at : at + rows, None, :], weights, order="C")
        out[at : at + rows] = products.sum(axis=2) + offsets
    return out


def _check(layers: Sequence[tuple[Values, Values]]) -> None:
    if any(w.ndim != 2 or not w.size or b.shape != w.shape[:1] for w, b in layers):
        raise ValueError("a layer's weights and offsets do not fit")
    if any(array.dtype != np.float64 for layer in layers for array in layer):
        raise ValueError("a layer is not of float64")
    if [len(w) for w, _ in layers] != [*(w.shape[1] for w, _ in layers[1:]), 1]:
        raise ValueError("a layer does not fit the one before it")
