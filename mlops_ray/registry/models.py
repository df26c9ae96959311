"""Fitted models as plain data: what each kind is, its file, and how it answers.

No file of these can run code when it is read, and none is compressed, so that what is read is as large as the
file. A kind answers without the library that fitted it where that is light: a replica that serves a linear
model or a random forest holds neither scikit-learn nor XGBoost in memory.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt
import orjson

from mlops_ray.errors import PackageError, did_you_mean
from mlops_ray.registry.booster import Booster
from mlops_ray.registry.encoder import Matrix

Values = npt.NDArray[np.float64]

#: Rows that a forest answers at once: rows × trees of 8-byte positions stay within a core's cache.
FOREST_ROWS = 2048
#: A node without children.
LEAF = -1


class Model(Protocol):
    """A fitted model: answers float64 (rows) to an encoder's matrix, n rows as n times one row."""

    #: The name under which `KINDS` finds it, its file, and the libraries whose versions are recorded.
    kind: ClassVar[str]
    file: ClassVar[str]
    libraries: ClassVar[tuple[str, ...]]

    def predict(self, matrix: Matrix) -> Values: ...

    def to_bytes(self) -> bytes: ...

    @classmethod
    def from_bytes(cls, data: bytes) -> Self: ...


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


#: One node of a tree. A row goes left where its value is at most the threshold; `missing_left` says where a
#: missing value goes. `left` and `right` are positions in the whole forest.
NODE = np.dtype(
    [
        ("tree", "<i4"),
        ("feature", "<i4"),
        ("threshold", "<f8"),
        ("left", "<i4"),
        ("right", "<i4"),
        ("missing_left", "?"),
        ("value", "<f8"),
    ]
)


@dataclass(frozen=True)
class ForestModel:
    """The mean of regression trees, all their nodes in one array of `NODE`."""

    kind: ClassVar[str] = "forest"
    file: ClassVar[str] = "forest.npy"
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "scikit-learn")

    nodes: npt.NDArray[np.void]

    @classmethod
    def from_sklearn(cls, trees: Sequence[Any]) -> Self:
        """The forest of fitted scikit-learn `Tree` objects (`estimator.tree_`)."""
        sizes = [tree.node_count for tree in trees]
        nodes = np.zeros(sum(sizes), NODE)
        start = 0
        for number, (tree, size) in enumerate(zip(trees, sizes, strict=True)):
            _fill_tree(nodes[start : start + size], tree, number, start)
            start += size
        return cls(nodes)

    @cached_property
    def _arrays(self) -> "_Arrays":
        return _Arrays.of(self.nodes)

    def predict(self, matrix: Matrix) -> Values:
        parts = [self._predict(matrix[at : at + FOREST_ROWS]) for at in range(0, len(matrix), FOREST_ROWS)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def _predict(self, matrix: Matrix) -> Values:
        """Walks every row down every tree, one level a step, until all stand on leaves."""
        arrays = self._arrays
        at = np.tile(arrays.roots, len(matrix))
        cells = matrix.ravel()
        rows = np.repeat(np.arange(len(matrix)) * matrix.shape[1], len(arrays.roots))
        has_missing = bool(np.isnan(cells).any())
        for _ in range(arrays.depth):
            values = cells.take(rows + arrays.feature.take(at))
            left = values <= arrays.threshold.take(at)
            if has_missing:
                left |= np.isnan(values) & arrays.missing_left.take(at)
            at = arrays.children.take(2 * at + left)
        answers: Values = arrays.value.take(at).reshape(len(matrix), -1).mean(axis=1)
        return answers

    def to_bytes(self) -> bytes:
        file = io.BytesIO()
        np.save(file, self.nodes, allow_pickle=False)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        nodes = np.load(io.BytesIO(data), allow_pickle=False)
        if nodes.dtype != NODE or nodes.ndim != 1:
            raise ValueError("not an array of tree nodes")
        inner = nodes[nodes["left"] != LEAF]
        own = np.flatnonzero(nodes["left"] != LEAF)
        for side in ("left", "right"):
            # Children come after their parent, so that every walk ends.
            if not ((inner[side] > own) & (inner[side] < len(nodes))).all():
                raise ValueError("a tree's node leads nowhere")
        if (inner["feature"] < 0).any():
            raise ValueError("a tree's node asks for no column")
        return cls(nodes)


@dataclass(frozen=True)
class _Arrays:
    """The fields of nodes, each by itself: what is read together lies together.

    `children[2 * node + goes_left]` is the next node; a leaf leads to itself.
    """

    roots: npt.NDArray[np.int64]
    depth: int
    feature: npt.NDArray[np.int64]
    threshold: Values
    missing_left: npt.NDArray[np.bool_]
    children: npt.NDArray[np.int64]
    value: Values

    @classmethod
    def of(cls, nodes: npt.NDArray[np.void]) -> Self:
        own = np.arange(len(nodes))
        leaf = nodes["left"] == LEAF
        children = np.column_stack([np.where(leaf, own, nodes["right"]), np.where(leaf, own, nodes["left"])])
        roots = np.flatnonzero(np.diff(nodes["tree"], prepend=-1))
        fields = {name: np.ascontiguousarray(nodes[name]) for name in ("threshold", "missing_left", "value")}
        feature = nodes["feature"].astype(np.int64)
        return cls(roots, _depth(roots, children), feature, children=children.ravel(), **fields)


def _depth(roots: npt.NDArray[np.int64], children: npt.NDArray[np.int64]) -> int:
    """The number of steps from the roots to the farthest leaf."""
    level, depth = roots, 0
    while True:
        below = np.unique(children[level])
        level = below[(children[below] != below[:, None]).any(axis=1)]
        depth += 1
        if not len(level):
            return depth


def _fill_tree(nodes: npt.NDArray[np.void], tree: Any, number: int, start: int) -> None:
    state = tree.__getstate__()["nodes"]
    leaf = tree.children_left == LEAF
    nodes["tree"] = number
    nodes["feature"] = np.where(leaf, 0, tree.feature)
    nodes["threshold"] = np.where(leaf, 0.0, tree.threshold)
    nodes["left"] = np.where(leaf, LEAF, tree.children_left + start)
    nodes["right"] = np.where(leaf, LEAF, tree.children_right + start)
    nodes["missing_left"] = state["missing_go_to_left"].astype(bool)
    nodes["value"] = tree.value[:, 0, 0]


@dataclass(frozen=True)
class XgboostModel:
    """Gradient-boosted trees, as XGBoost's own file holds them."""

    kind: ClassVar[str] = "xgboost"
    file: ClassVar[str] = "model.ubj"
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "xgboost")

    data: bytes

    @cached_property
    def _booster(self) -> Booster:
        return Booster(self.data)

    def predict(self, matrix: Matrix) -> Values:
        return self._booster.predict(matrix).astype(np.float64)

    def to_bytes(self) -> bytes:
        return self.data

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        model = cls(data)
        _ = model._booster
        return model


KINDS: dict[str, type[Model]] = {model.kind: model for model in (LinearModel, ForestModel, XgboostModel)}


def load(kind: str, data: bytes) -> Model:
    """The model of this kind from the bytes of its file; raises `PackageError` where they are none."""
    if kind not in KINDS:
        raise PackageError(f"the package's model is of an unknown kind {kind!r}{did_you_mean(kind, KINDS)}")
    read: Callable[[bytes], Model] = KINDS[kind].from_bytes
    try:
        return read(data)
    except Exception as error:
        # Each library has errors of its own for a damaged file.
        raise PackageError(f"the package's {KINDS[kind].file} cannot be read: {error}") from error
