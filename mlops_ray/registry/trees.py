"""Trees, whoever grew them: nodes in arrays, and one walk down all of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from mlops_ray.registry.arrays import pack, unpack
from mlops_ray.registry.encoder import Matrix, Values
from mlops_ray.registry.explain import MOST_CELLS, Paths
from mlops_ray.registry.probability import flag, probability, take_flag

Nodes = npt.NDArray[np.void]
Positions = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]

#: Rows that are walked at once: rows × trees of 8-byte positions stay within a core's cache.
FOREST_ROWS = 2048
#: A node without children.
LEAF = -1
#: Of a node that compares with its threshold.
NO_SET = -1
#: More rows than any node counts; sums of such numbers are finite.
MOST_COVER = 1e300
#: Steps from a root to a leaf; a file of more would keep a replica busy for ever, or end with its stack the
#: library that goes down by calls, as XGBoost does.
MOST_DEPTH = 1_000

#: One node of a tree. A row goes left where its value is at most the threshold; `missing_left` says where a
#: missing value goes. `left` and `right` are positions among all nodes; `cover` is how many training rows
#: came to the node, or their weight.
NODE = np.dtype(
    [
        ("tree", "<i4"),
        ("feature", "<i4"),
        ("threshold", "<f8"),
        ("left", "<i4"),
        ("right", "<i4"),
        ("missing_left", "?"),
        ("value", "<f8"),
        ("cover", "<f8"),
    ]
)
#: A tree by itself: its nodes, in which children are positions in this tree, and for each node that asks for
#: a category, by its position, the codes that go left (see `code_bits`).
Tree = tuple[Nodes, Mapping[int, Bits]]


def code_bits(goes_left: Flags) -> Bits:
    """For each code from 0 whether it goes left, 8 a byte, the lowest first."""
    return np.packbits(goes_left, bitorder="little")


def new_tree(left: Any, right: Any, **fields: Any) -> Nodes:
    """A tree's nodes from the fields of `NODE`; what a leaf has for feature and threshold is passed over."""
    nodes = np.zeros(len(left), NODE)
    leaf = np.asarray(left) == LEAF
    fields = fields | {"left": left, "right": np.where(leaf, LEAF, right)}
    for name, values in fields.items():
        nodes[name] = np.where(leaf, 0, values) if name in ("feature", "threshold") else values
    return nodes


def grown_tree(
    left: Any, right: Any, feature: Any, threshold: Any, missing_left: Any, leaves: Values, cover: Any
) -> Nodes:
    """A tree's nodes where all leaves come after the inner nodes.

    All is of the inner nodes but `leaves`, the values of leaves, and `cover`, which is of all nodes.
    """
    inner, count = len(left), len(leaves)
    nodes = np.zeros(inner + count, NODE)
    nodes["left"], nodes["right"], nodes["value"][inner:], nodes["cover"] = LEAF, LEAF, leaves, cover
    fields = {"left": left, "right": right, "feature": feature, "threshold": threshold}
    for name, values in (fields | {"missing_left": missing_left}).items():
        nodes[name][:inner] = values
    return nodes


@dataclass(frozen=True)
class Trees:
    """All trees of a model.

    `sets` gives each node the row of `bits` with the codes that go left; a missing or unseen category goes
    right. It is `NO_SET` where the node compares with its threshold. The last bit of a row is never set.
    """

    nodes: Nodes
    sets: npt.NDArray[np.int32]
    bits: Bits

    @classmethod
    def of(cls, nodes: Nodes) -> Self:
        """Trees that ask for no category."""
        return cls(nodes, np.full(len(nodes), NO_SET, np.int32), np.zeros((0, 1), np.uint8))

    @classmethod
    def joined(cls, trees: Iterable[Tree]) -> Self:
        """All these trees, in their order."""
        grown = list(trees)
        sizes = [len(nodes) for nodes, _ in grown]
        nodes = np.concatenate([nodes for nodes, _ in grown] or [np.zeros(0, NODE)])
        starts = np.cumsum([0, *sizes])[:-1]
        nodes["tree"] = np.repeat(np.arange(len(grown)), sizes)
        for side in ("left", "right"):
            nodes[side] += np.where(nodes["left"] == LEAF, 0, np.repeat(starts, sizes)).astype(np.int32)
        owns = zip(starts, grown, strict=True)
        found = [(start + at, bits) for start, (_, own) in owns for at, bits in own.items()]
        sets = np.full(len(nodes), NO_SET, np.int32)
        table = np.zeros((len(found), 1 + max((len(bits) for _, bits in found), default=0)), np.uint8)
        for row, (at, bits) in enumerate(found):
            sets[at], table[row, : len(bits)] = row, bits
        return cls(nodes, sets, table)

    def check(self) -> Self:
        """Itself; raises `ValueError` where a walk could end nowhere, or a share of rows be no number."""
        nodes, sets, bits = self.nodes, self.sets, self.bits
        if nodes.dtype != NODE or nodes.ndim != 1 or not len(nodes):
            raise ValueError("not an array of tree nodes")
        own = np.flatnonzero(nodes["left"] != LEAF)
        # Children come after their parent, so that every walk ends.
        sides = [nodes[side][own] for side in ("left", "right")]
        if any((side <= own).any() or (side >= len(nodes)).any() for side in sides):
            raise ValueError("a tree's node leads nowhere")
        # Each node has one way from a root: what is told of all ways would have no end otherwise.
        reached = np.bincount(np.concatenate([_roots(nodes), *sides]), minlength=len(nodes))
        if (reached != 1).any():
            raise ValueError("a tree's node has two parents, or none")
        below = nodes["cover"][np.concatenate(sides)]
        if not ((below > 0) & (below < MOST_COVER)).all():
            raise ValueError("a tree's node counts no rows")
        if (nodes["feature"][own] < 0).any():
            raise ValueError("a tree's node asks for no column")
        if sets.dtype != np.int32 or sets.shape != nodes.shape or bits.dtype != np.uint8 or bits.ndim != 2:
            raise ValueError("not an array of sets of categories")
        known = (sets >= NO_SET) & (sets < len(bits))
        if not known.all() or not bits.shape[1] or (bits[:, -1] > 127).any():
            raise ValueError("a tree's node asks for a set of categories that there is not")
        if self._arrays.depth > MOST_DEPTH:
            raise ValueError(f"a tree is deeper than {MOST_DEPTH:,} nodes")
        return self

    @cached_property
    def _arrays(self) -> "_Arrays":
        return _Arrays.of(self.nodes)

    @cached_property
    def _flat_sets(self) -> Positions | None:
        return self.sets.astype(np.int64) if (self.sets != NO_SET).any() else None

    def walk(self, matrix: Matrix, combine: Callable[[Values], Values]) -> Values:
        """What `combine` makes of the trees' values (rows × trees), for all rows.

        Raises `ValueError` where the matrix is narrower than what the trees ask for.
        """
        self._require_width(matrix)
        parts = [
            combine(self._values(matrix[at : at + FOREST_ROWS])) for at in range(0, len(matrix), FOREST_ROWS)
        ]
        return np.concatenate(parts) if parts else np.zeros(0)

    def contributions(self, matrix: Matrix) -> tuple[Values, float]:
        """By how much each column moves the sum of the trees' values (rows × columns) from that of all rows.

        Raises `ValueError` as `walk` does.
        """
        self._require_width(matrix)
        paths, width = self._paths, matrix.shape[1]
        rows = max(1, MOST_CELLS // len(paths.node))
        parts = [
            paths.contributions(self._turns(matrix[at : at + rows]), width)
            for at in range(0, len(matrix), rows)
        ]
        return np.concatenate([np.zeros((0, width)), *parts]), paths.base

    @cached_property
    def _paths(self) -> Paths:
        arrays = self._arrays
        children = arrays.children.reshape(-1, 2)
        return Paths.of(arrays.roots, children, arrays.feature, self.nodes["cover"], arrays.value)

    def _turns(self, matrix: Matrix) -> Flags:
        """Whether each row would go left at the node of each place of `_paths` (places × rows)."""
        node = self._paths.node
        values = matrix.T.take(self._arrays.feature.take(node), axis=0)
        left = self._goes_left(values.ravel(), np.repeat(node, len(matrix)), bool(np.isnan(matrix).any()))
        return left.reshape(values.shape)

    def _require_width(self, matrix: Matrix) -> None:
        if matrix.shape[1] < self._arrays.width:
            raise ValueError(f"the model reads {self._arrays.width} columns, not {matrix.shape[1]}")

    def _values(self, matrix: Matrix) -> Values:
        """Walks every row down every tree, one level a step, until all stand on leaves."""
        arrays = self._arrays
        at = np.tile(arrays.roots, len(matrix))
        cells = matrix.ravel()
        rows = np.repeat(np.arange(len(matrix)) * matrix.shape[1], len(arrays.roots))
        has_missing = bool(np.isnan(cells).any())
        for _ in range(arrays.depth):
            left = self._goes_left(cells.take(rows + arrays.feature.take(at)), at, has_missing)
            at = arrays.children.take(2 * at + left)
        return arrays.value.take(at).reshape(len(matrix), -1)

    def _goes_left(self, values: Matrix, at: Positions, has_missing: bool) -> Flags:
        """Whether each of these values goes left at its node."""
        left: Flags = values <= self._arrays.threshold.take(at)
        if has_missing:
            left |= np.isnan(values) & self._arrays.missing_left.take(at)
        if self._flat_sets is not None:
            asked = self._flat_sets.take(at)
            some = np.flatnonzero(asked != NO_SET)
            left[some] = self._contains(asked[some], values[some])
        return left

    def _contains(self, sets: Positions, codes: Matrix) -> Flags:
        stride = self.bits.shape[1]
        # `fmin` passes over NaN: a missing code stands at the last bit, and so does one beyond.
        # None is negative but in a file that somebody made by hand.
        places = np.fmin(np.abs(codes), np.float64(8 * stride - 1)).astype(np.int64)
        found = self.bits.ravel().take(sets * stride + (places >> 3)) >> (places & 7).astype(np.uint8)
        contains: Flags = (found & 1).astype(np.bool_)
        return contains


@dataclass(frozen=True)
class _Arrays:
    """The fields of nodes, each by itself: what is read together lies together.

    `children[2 * node + goes_left]` is the next node; a leaf leads to itself. `width`: columns asked for.
    """

    roots: Positions
    depth: int
    width: int
    feature: Positions
    threshold: Values
    missing_left: Flags
    children: Positions
    value: Values

    @classmethod
    def of(cls, nodes: Nodes) -> Self:
        own = np.arange(len(nodes))
        leaf = nodes["left"] == LEAF
        children = np.column_stack([np.where(leaf, own, nodes["right"]), np.where(leaf, own, nodes["left"])])
        roots = _roots(nodes)
        fields = {name: np.ascontiguousarray(nodes[name]) for name in ("threshold", "missing_left", "value")}
        feature = np.where(leaf, 0, nodes["feature"]).astype(np.int64)
        width = 0 if leaf.all() else int(feature.max()) + 1
        return cls(roots, depth(roots, children), width, feature, children=children.ravel(), **fields)


def _roots(nodes: Nodes) -> Positions:
    return np.flatnonzero(np.diff(nodes["tree"], prepend=-1))


def depth(roots: Positions, children: Positions) -> int:
    """The number of steps from the roots to the farthest leaf, or one that is over `MOST_DEPTH`."""
    level, steps = roots, 0
    while True:
        below = np.unique(children[level])
        level = below[(children[below] != below[:, None]).any(axis=1)]
        steps += 1
        if not len(level) or steps > MOST_DEPTH:
            return steps


@dataclass(frozen=True)
class ForestModel:
    """The mean of trees, all their nodes in one array of `NODE`.

    A classifier's leaves hold the share of the label 1, so that the mean is a probability.
    """

    kind: ClassVar[str] = "forest"
    file: ClassVar[str] = "forest.npy"
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "scikit-learn")

    nodes: Nodes

    @classmethod
    def from_sklearn(cls, trees: Sequence[Any]) -> Self:
        """The forest of fitted scikit-learn `Tree` objects (`estimator.tree_`)."""
        return cls(Trees.joined((_sklearn_tree(tree), {}) for tree in trees).nodes)

    @classmethod
    def constant(cls, answer: float) -> Self:
        """The model that answers every row with this: one tree of one leaf."""
        return cls(new_tree([LEAF], [LEAF], value=[answer]))

    @cached_property
    def _trees(self) -> Trees:
        return Trees.of(self.nodes)

    def predict(self, matrix: Matrix) -> Values:
        return self._trees.walk(matrix, lambda values: values.mean(axis=1))

    def contributions(self, matrix: Matrix) -> tuple[Values, float]:
        values, base = self._trees.contributions(matrix)
        count = len(self._trees._arrays.roots)
        return values / count, base / count

    def to_bytes(self) -> bytes:
        return pack(self.nodes)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        (nodes,) = unpack(data)
        return cls(Trees.of(nodes).check().nodes)


@dataclass(frozen=True)
class BoostedModel:
    """`base` and the sum of trees; where it `classifies`, the probability that this sum stands for."""

    kind: ClassVar[str] = "boosted"
    file: ClassVar[str] = "trees.npy"
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "scikit-learn")

    trees: Trees
    base: float
    classifies: bool = False

    @classmethod
    def from_sklearn(cls, estimator: Any, discrete: Sequence[int]) -> Self:
        """The trees of a fitted `HistGradientBoostingRegressor` that took these columns as categories.

        Or those of a `HistGradientBoostingClassifier` of two classes.
        """
        seen = estimator._preprocessor.named_transformers_["encoder"].categories_ if discrete else []
        codes = [known[~np.isnan(known)].astype(np.int64) for known in seen]
        # Its trees see the columns of categories first.
        others = [at for at in range(estimator.n_features_in_) if at not in discrete]
        order = np.array([*discrete, *others])
        trees = [_hist_tree(stage[0], order, codes) for stage in estimator._predictors]
        base = float(estimator._baseline_prediction.item())
        return cls(Trees.joined(trees), base, classifies=hasattr(estimator, "classes_"))

    def predict(self, matrix: Matrix) -> Values:
        sums = self.trees.walk(matrix, lambda values: self.base + values.sum(axis=1))
        return probability(sums) if self.classifies else sums

    def contributions(self, matrix: Matrix) -> tuple[Values, float]:
        values, base = self.trees.contributions(matrix)
        return values, self.base + base

    def to_bytes(self) -> bytes:
        trees = self.trees
        return pack(trees.nodes, trees.sets, trees.bits, np.array(self.base), *flag(self.classifies))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        (nodes, sets, bits, base), classifies = take_flag(unpack(data))
        return cls(Trees(nodes, sets, bits).check(), float(base.item()), classifies)


def _sklearn_tree(tree: Any) -> Nodes:
    return new_tree(
        tree.children_left,
        tree.children_right,
        feature=tree.feature,
        threshold=tree.threshold,
        missing_left=tree.__getstate__()["nodes"]["missing_go_to_left"].astype(bool),
        # Of a classifier the share of the last class, which is 1.
        value=tree.value[:, 0, -1],
        cover=tree.weighted_n_node_samples,
    )


def _hist_tree(tree: Any, order: Positions, codes: Sequence[Positions]) -> Tree:
    """One of the trees of `BoostedModel.from_sklearn`; `codes` are those it has seen, by category column."""
    nodes, bits = tree.nodes, tree.raw_left_cat_bitsets
    inner, asks = nodes["is_leaf"] == 0, nodes["is_categorical"].astype(bool)
    # A missing category goes right here: where it went left, the sides change their places.
    swapped = asks & nodes["missing_go_to_left"].astype(bool)
    left, right = (nodes[side].astype(np.int64) for side in ("left", "right"))
    made = new_tree(
        np.where(inner, np.where(swapped, right, left), LEAF),
        np.where(swapped, left, right),
        feature=order[np.where(inner, nodes["feature_idx"], 0)],
        threshold=np.where(asks, -np.inf, nodes["num_threshold"]),
        missing_left=nodes["missing_go_to_left"].astype(bool) & ~asks,
        value=nodes["value"],
        cover=nodes["count"],
    )
    sets = {}
    for at in np.flatnonzero(asks & inner).tolist():
        known = codes[nodes["feature_idx"][at]]
        goes_left = np.zeros(int(known.max(initial=-1)) + 1, np.bool_)
        ordinals = np.unpackbits(bits[nodes["bitset_idx"][at]].view(np.uint8), bitorder="little")
        goes_left[known] = ordinals[: len(known)].astype(bool) != swapped[at]
        sets[at] = code_bits(goes_left)
    return made, sets
