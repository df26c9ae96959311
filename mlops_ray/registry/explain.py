"""By how much each feature moves a row's answer: Shapley values of trees, and what is made of them.

Path-dependent TreeSHAP (Lundberg et al., "From local explanations to global understanding with explainable AI
for trees", 2020), in the form of Linear TreeSHAP (Yu et al., 2022). For one leaf the value of a column is

    v · (o − z) · ∫₀¹ ∏ over the other columns of its path ((1 − u)·z + u·o) du

where v is the leaf's value, o whether the row meets all that the path asks of the column, and z the share of
training rows that do. The product is a polynomial in u, for which Gauss's quadrature with half as many points
as the path has columns is exact. At one point a node's product is its parent's with one factor changed, and a
subtree is the sum of its leaves: so each node is passed twice, however long the paths are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from mlops_ray.registry.encoder import Encoder, Matrix, Values
from mlops_ray.schema import Column

Positions = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
#: What a sum of contributions is: the answer, a logarithm of it (of 1 and it), or what a classifier says.
Scale = Literal["answer", "log", "log1p", "log-odds", "probability"]

#: What columns that nobody may see do together.
WITHHELD = "withheld"
#: Nodes × rows that are worked on at once: 8 bytes each, in some arrays.
MOST_CELLS = 2**15
#: A smaller share of the rows counts as this one, by which can be divided.
SMALLEST_SHARE = 1e-100


@dataclass(frozen=True)
class Contributions:
    """By how much each feature moves each row's answer away from `base`, float64 (rows × `names`).

    `base` and a row's values come to the model's own number, before a transform is undone, a probability
    calibrated and bounds kept: `scale` says what it is. `base` is the mean of these numbers over the training
    rows, for trees as their nodes count or weigh them.
    """

    names: tuple[str, ...]
    values: Values
    base: float
    scale: Scale

    @property
    def about(self) -> dict[str, Any]:
        """All but the values, as plain data."""
        return {"features": self.names, "base": self.base, "scale": self.scale}


@runtime_checkable
class Explainable(Protocol):
    """A model that tells what each column of its matrix contributes."""

    def contributions(self, matrix: Matrix) -> tuple[Values, float]:
        """Float64 (rows, columns), and the base: what a row's own come to with it is the model's sum."""
        ...


def by_feature(
    values: Values, encoder: Encoder, columns: Sequence[Column], hidden: frozenset[str]
) -> tuple[tuple[str, ...], Values]:
    """What columns of a matrix contribute, summed by feature; hidden ones together, as the last."""
    shown = [column.name for column in columns if not (column.hidden or column.name in hidden)]
    names = (*shown, *([WITHHELD] if len(shown) < len(columns) else []))
    place = {name: at for at, name in enumerate(shown)}
    owners = [place.get(part.name, len(shown)) for part in encoder.parts for _ in part.names]
    summed = np.zeros((len(values), len(names)))
    for at, owner in enumerate(owners):
        summed[:, owner] += values[:, at]
    return names, summed


@dataclass(frozen=True)
class Paths:
    """The nodes of trees by their depth, which are places: all roots, then what is below them.

    A place has its `node`, the place of its `parent` and the `column` that the parent asks for. `above` is
    the nearest place on the way up whose parent asks for it too, or the first place, a root, where there is
    none. `share` is z up to here, `value` that of a leaf, else 0. After `roots` places of roots come the
    `levels`, each of one depth: right and left child in turn. `points` are those of the quadrature.
    """

    node: Positions
    parent: Positions
    column: Positions
    above: Positions
    share: Values
    value: Values
    levels: tuple[slice, ...]
    roots: int
    points: int
    base: float

    @classmethod
    def of(
        cls, roots: Positions, children: Positions, feature: Positions, cover: Values, value: Values
    ) -> Self:
        """From the nodes' right and left child (a leaf's are itself), column, rows counted and value."""
        node, parent, levels = _by_depth(roots, children)
        end = len(node)
        column = np.where(np.arange(end) < len(roots), -1, feature[node[parent]])
        above = _nearest(parent, column, len(roots))
        pairs = cover[node[len(roots) :]].reshape(-1, 2)
        reached = np.ones(end)
        reached[len(roots) :] = (pairs / pairs.sum(axis=1, keepdims=True)).ravel()
        share, asked = reached.copy(), (above == 0).astype(np.int64)
        asked[: len(roots)] = 0
        for level in levels:
            share[level] *= share[above[level]]
            reached[level] *= reached[parent[level]]
            asked[level] += asked[parent[level]]
        values = np.where(children[node, 0] == node, value[node], 0.0)
        base, points = float((reached * values).sum()), (int(asked.max(initial=1)) + 1) // 2
        share = np.maximum(share, SMALLEST_SHARE)
        column = np.maximum(column, 0)
        return cls(node, parent, column, above, share, values, levels, len(roots), points, base)

    def contributions(self, goes_left: Flags, width: int) -> Values:
        """Float64 (rows, width) from whether each row goes left at the node of each place (places × rows)."""
        met = goes_left.take(self.parent, axis=0)
        met[: self.roots] = True
        met[self.roots :: 2] ^= True
        for level in self.levels:
            met[level] &= met[self.above[level]]
        share, total = self.share[:, None], np.zeros(met.shape)
        points, weights = np.polynomial.legendre.leggauss(self.points)
        for u, weight in zip((points + 1) / 2, weights / 2, strict=True):
            factor = (1 - u) * share + u * met
            gain = (met - share) / factor
            total += weight * self._sums(factor) * (gain - gain.take(self.above, axis=0))
        return np.stack([np.bincount(self.column, moved, minlength=width) for moved in total.T])

    def _sums(self, factor: Values) -> Values:
        """At each place, the sum of the leaves below: value times the product of its path's factors."""
        sums = factor / factor.take(self.above, axis=0)
        for level in self.levels:
            sums[level] *= sums.take(self.parent[level], axis=0)
        sums *= self.value[:, None]
        for level in reversed(self.levels):
            right_and_left = sums[level]
            sums[self.parent[level][::2]] = right_and_left[::2] + right_and_left[1::2]
        return sums


def _by_depth(roots: Positions, children: Positions) -> tuple[Positions, Positions, tuple[slice, ...]]:
    """What `node`, `parent` and `levels` of `Paths` are."""
    nodes, parents, levels, end = [roots], [np.zeros(len(roots), np.int64)], [], len(roots)
    while len(inner := np.flatnonzero(children[nodes[-1], 0] != nodes[-1])):
        parents.append(np.repeat(end - len(nodes[-1]) + inner, 2))
        nodes.append(children[nodes[-1][inner]].ravel())
        levels.append(slice(end, end + len(nodes[-1])))
        end += len(nodes[-1])
    return np.concatenate(nodes), np.concatenate(parents), tuple(levels)


def _nearest(parent: Positions, column: Positions, roots: int) -> Positions:
    """What `Paths.above` is: up from place to place, as far as needed, all at once."""
    above = parent.copy()
    while len(on := np.flatnonzero((above >= roots) & (column[above] != column))):
        above[on] = parent[above[on]]
    return np.where(above < roots, 0, above)
