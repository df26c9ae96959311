"""Boosted trees in the files of the libraries that fitted them, which can be opened there too.

XGBoost's answers come from its C library. LightGBM's and CatBoost's files are text, which is read here into
`Trees`: their Python packages bring pandas and SciPy into the process, which takes 4 to 6 s.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import orjson

from mlops_ray.registry.booster import Booster
from mlops_ray.registry.encoder import Matrix, Values
from mlops_ray.registry.trees import BoostedModel, Tree, Trees, code_bits, grown_tree
from mlops_ray.registry.ubjson import check_xgboost

#: LightGBM's bits of `decision_type`: it asks for a category, a missing value goes left, and two for what
#: counts as missing: nothing (NaN is then 0), zero (which we never ask for), NaN.
CATEGORY, DEFAULT_LEFT, MISSING, ZERO = 1, 2, 12, 4
#: With which a whole text of LightGBM's begins and ends.
FIRST_LINES, LAST_LINE = "tree\nversion=v4\nnum_class=1\n", "\npandas_categorical:null\n"
#: What LightGBM (in its head) and CatBoost call what they minimised, and whether the sum of the trees then
#: stands for a probability. Others answer with something else made of the sum.
LIGHTGBM_CLASSIFIES = {"regression": False, "regression_l1": False, "binary sigmoid:1": True}
CATBOOST_CLASSIFIES = {"RMSE": False, "MAE": False, "Logloss": True}
#: What a missing category is called in CatBoost's training rows; others are their codes.
MISSING_CODE = -1
#: What a leaf that no training row came to counts, so that its share of rows is a number.
NO_ROWS = 1e-100
#: More categories in a column are taken as amounts by those whose sets of codes are small.
MOST_CODES = 255


@dataclass(frozen=True)
class _Native:
    """A model that is kept as its library's own file."""

    data: bytes

    @cached_property
    def _answering(self) -> Booster | BoostedModel:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        """The file alone: what answers from it holds memory of a C library."""
        return {"data": self.data}

    def predict(self, matrix: Matrix) -> Values:
        return self._answering.predict(matrix).astype(np.float64, copy=False)

    def contributions(self, matrix: Matrix) -> tuple[Values, float]:
        return self._answering.contributions(matrix)

    def to_bytes(self) -> bytes:
        return self.data

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        model = cls(data)
        _ = model._answering
        return model


class XgboostModel(_Native):
    """Gradient-boosted trees, as XGBoost's own file holds them."""

    kind: ClassVar[str] = "xgboost"
    file: ClassVar[str] = "model.ubj"
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "xgboost")

    @cached_property
    def _answering(self) -> Booster:
        check_xgboost(self.data)
        return Booster(self.data)


class LightgbmModel(_Native):
    """Gradient-boosted trees, as LightGBM's own text (`Booster.model_to_string`) holds them."""

    kind: ClassVar[str] = "lightgbm"
    file: ClassVar[str] = "model.txt"
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "lightgbm")

    @cached_property
    def _answering(self) -> BoostedModel:
        text = self.data.decode()
        head, *trees = text.split("\nTree=")
        fields = dict(line.partition("=")[::2] for line in head.splitlines())
        is_whole = text.startswith(FIRST_LINES) and text.endswith(LAST_LINE)
        is_whole &= len(trees) == len(fields["tree_sizes"].split())
        classifies = LIGHTGBM_CLASSIFIES.get(fields["objective"])
        if not is_whole or classifies is None or "average_output" in fields:
            raise ValueError("not the whole text of a LightGBM model (v4) that answers one number")
        return BoostedModel(Trees.joined(map(_lightgbm_tree, trees)).check(), 0.0, classifies)


class CatboostModel(_Native):
    """Gradient-boosted symmetric trees, as CatBoost's own JSON holds them; its .cbm is for its library alone.

    Splits ask for an amount or for one category.
    """

    kind: ClassVar[str] = "catboost"
    file: ClassVar[str] = "model.json"
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "catboost")

    @cached_property
    def _answering(self) -> BoostedModel:
        read = orjson.loads(self.data)
        scale, (base,) = read["scale_and_bias"]
        features = read["features_info"]
        hashes = {int(each["value"]): each["hash"] for each in features.get("cat_features_hash") or []}
        if max(hashes, default=0) > MOST_CODES:
            raise ValueError("a category's code is too large")
        trees = (_catboost_tree(tree, features, hashes, scale) for tree in read["oblivious_trees"])
        # A constant that was written before says nothing of itself.
        loss = read["model_info"]["params"]["loss_function"]["type"] if "model_info" in read else "RMSE"
        return BoostedModel(Trees.joined(trees).check(), float(base), CATBOOST_CLASSIFIES[loss])


def _lightgbm_tree(text: str) -> Tree:
    fields = dict(line.partition("=")[::2] for line in text.partition("\n\n")[0].splitlines()[1:])

    def numbers(name: str, dtype: type = np.int64) -> Any:
        return np.array(fields.get(name, "").split(), dtype)

    kinds, values = numbers("decision_type"), numbers("leaf_value", np.float64)
    thresholds, sides = numbers("threshold", np.float64), [numbers(f"{s}_child") for s in ("left", "right")]
    count, leaves = len(kinds), len(values)
    fit = leaves == count + 1 and all(len(side) == count and (side >= -leaves).all() for side in sides)
    ends = numbers("cat_boundaries")
    if not fit or (kinds & ZERO).any() or int(fields.get("is_linear", 0)):
        raise ValueError("a tree's fields do not fit each other")
    if (np.diff(ends) > MOST_CODES // 32 + 1).any():
        raise ValueError("a set of categories is too large")
    asks = (kinds & CATEGORY) != 0
    own_sets = thresholds[asks].astype(np.int64).tolist()
    # NaN is 0 where the training rows had none.
    missing_left = np.where(kinds & MISSING, kinds & DEFAULT_LEFT, thresholds >= 0) != 0

    # Leaf n is child -1 - n there.
    left, right = (np.where(side < 0, count - 1 - side, side) for side in sides)
    thresholds = np.where(asks, -np.inf, thresholds)
    # A tree of one leaf says nothing of its rows.
    cover = np.append(numbers("internal_count"), numbers("leaf_count")) if count else 0
    nodes = grown_tree(left, right, numbers("split_feature"), thresholds, missing_left & ~asks, values, cover)
    words = numbers("cat_threshold", np.uint32).astype("<u4")
    asked = zip(np.flatnonzero(asks).tolist(), own_sets, strict=True)
    return nodes, {at: words[ends[own] : ends[own + 1]].view(np.uint8) for at, own in asked}


def _catboost_tree(tree: Mapping[str, Any], features: Any, hashes: Mapping[int, int], scale: float) -> Tree:
    """A full tree, level by level, the children of node n at 2n + 1 and 2n + 2, the last split on top."""
    splits = [_catboost_split(split, features, hashes) for split in reversed(tree.get("splits") or [])]
    values = np.array(tree["leaf_values"], np.float64) * scale
    levels = [np.maximum(np.array(tree["leaf_weights"], np.float64), NO_ROWS)]
    if not len(values) == len(levels[0]) == 2 ** len(splits):
        raise ValueError("a tree's splits and leaves do not fit")
    for _ in splits:
        levels.insert(0, levels[0].reshape(-1, 2).sum(axis=1))
    every = [split for depth, split in enumerate(splits) for _ in range(2**depth)]
    inner = np.arange(len(every))
    feature, threshold, missing_left, swapped, codes = ([split[n] for split in every] for n in range(5))
    swap = np.array(swapped, np.int64)
    sides = (2 * inner + 1 + swap, 2 * inner + 2 - swap)
    nodes = grown_tree(*sides, feature, threshold, missing_left, values, np.concatenate(levels))
    return nodes, {at: bits for at, bits in enumerate(codes) if bits is not None}


def _catboost_split(split: Mapping[str, Any], features: Any, hashes: Mapping[int, int]) -> tuple[Any, ...]:
    """Feature, threshold, whether a missing value goes left, whether the sides are swapped, the codes."""
    if split["split_type"] == "FloatFeature":
        amount = features["float_features"][split["float_feature_index"]]
        missing_left = amount["nan_value_treatment"] != "AsTrue"
        return amount["flat_feature_index"], float(np.float32(split["border"])), missing_left, False, None
    column = features["categorical_features"][split["cat_feature_index"]]["flat_feature_index"]
    asked = [code for code, known in hashes.items() if (known - split["value"]) % 2**32 == 0]
    # Right goes the one that is asked for. A missing one goes right here, so that the sides are swapped
    # unless it is the one; then all codes go left.
    is_missing = MISSING_CODE in asked
    goes_left = np.full(MOST_CODES, is_missing)
    goes_left[[code for code in asked if code != MISSING_CODE]] = not is_missing
    return column, -np.inf, False, not is_missing, code_bits(goes_left)
