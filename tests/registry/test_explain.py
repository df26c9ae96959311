"""Contributions are Shapley values: their sum is the model's own number, whatever the family."""

import itertools
import math
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from mlops_ray.errors import PackageError, RequestError
from mlops_ray.registry import models
from mlops_ray.registry.encoder import Encoder, Matrix, Values
from mlops_ray.registry.estimator import EstimatorModel
from mlops_ray.registry.explain import MOST_CELLS, Explainable
from mlops_ray.registry.models import (
    BoostedModel,
    ForestModel,
    LinearModel,
    Model,
    NetworkModel,
    XgboostModel,
)
from mlops_ray.registry.outcome import Outcome
from mlops_ray.registry.predictor import Predictor
from mlops_ray.registry.probability import probability
from mlops_ray.registry.trees import LEAF, NODE, Trees, new_tree
from mlops_ray.training.families import EXTRAS, FAMILIES, How, Sample
from tests.conformance.test_families import PAIRS, Case
from tests.registry.made import COLUMNS, FEATURES, rows, write

EXPLAINED = [pair for pair in PAIRS if pair[0] != "mlp"]


@pytest.fixture(params=EXPLAINED, ids="-".join)
def case(request: pytest.FixtureRequest) -> Case:
    return Case.of(*request.param)


def _asked(case: Case, count: int = 60) -> Matrix:
    """Rows that the model was not fitted on, some with missing and unseen values."""
    unseen = rows(2).with_columns(site=pl.lit("never seen"))
    return case.encoder.transform(pl.concat([rows(3).clear(2), unseen, rows(count, seed=8)]))


def _contributions(model: Model, x: Matrix) -> tuple[Values, float]:
    assert isinstance(model, Explainable)
    return model.contributions(x)


def _raw(model: Any, x: Matrix) -> Values:
    """What the model says before it makes a probability of it."""
    if isinstance(model, XgboostModel):
        import xgboost

        booster = xgboost.Booster(model_file=bytearray(model.data))
        return np.asarray(booster.predict(xgboost.DMatrix(x), output_margin=True), np.float64)
    model = getattr(model, "_answering", model)
    raw: Values = (replace(model, classifies=False) if hasattr(model, "classifies") else model).predict(x)
    return raw


def test_they_and_the_base_come_to_what_the_model_says(case: Case) -> None:
    model, x = case.model, _asked(case)
    values, base = _contributions(model, x)
    raw = _raw(model, x)
    within: dict[str, Any] = {"rel": 1e-5, "abs": 1e-5} if model.kind == "xgboost" else {"rel": 1e-9}
    assert values.shape == x.shape
    assert values.dtype == np.float64
    assert base + values.sum(axis=1) == pytest.approx(raw, **within)
    is_probability = case.classifies and model.kind != "forest"
    assert model.predict(x) == pytest.approx(probability(raw) if is_probability else raw, rel=1e-5)


def test_n_rows_at_once_are_told_what_each_is_alone(case: Case) -> None:
    model, x = case.model, _asked(case)
    values, base = _contributions(model, x)
    alone = [_contributions(model, x[at : at + 1]) for at in range(len(x))]
    assert [each.tolist() for (each,), _ in alone] == values.tolist()
    assert {own for _, own in alone} == {base}
    none, own = _contributions(model, x[:0])
    assert none.shape == (0, x.shape[1])
    assert own == base


@pytest.mark.parametrize("name", ["ridge", "logistic", "hist_gradient_boosting"])
def test_the_base_is_the_mean_over_the_training_rows(name: str) -> None:
    case = Case.of(name, FAMILIES[name].tasks[-1])
    x, _ = case.data()
    assert _contributions(case.model, x)[1] == pytest.approx(_raw(case.model, x).mean(), rel=1e-6)


def test_the_mean_of_a_linear_model_goes_by_the_rows_weights() -> None:
    case = Case.of("ridge", "regression")
    x, y = case.data()
    weights = np.where(x[:, 0] > 0, 5.0, 1.0)
    model = case.fitted(x, y, weights=weights)
    mean = np.average(_raw(model, x), weights=weights)
    assert _contributions(model, x)[1] == pytest.approx(mean, rel=1e-9)


def _coded(count: int, seed: int = 7) -> tuple[Matrix, Values]:
    """Two columns of categories' positions and two amounts, with missing values, and labels."""
    random = np.random.default_rng(seed)
    x = random.random((count, 4)).astype(np.float32)
    x[:, 0], x[:, 1] = random.integers(0, 12, count), random.integers(0, 2, count)
    y = x[:, 2] + (x[:, 0] % 3 == 1) + x[:, 1] * x[:, 3] + x[:, 2] * x[:, 3]
    x[random.random(x.shape) < 0.1] = np.nan
    return x, y.astype(np.float64)


def _goes_left(trees: Trees, at: int, value: float) -> bool:
    node, row = trees.nodes[at], trees.sets[at]
    if row >= 0:
        bits = np.unpackbits(trees.bits[row], bitorder="little")
        return bool(not np.isnan(value) and value < len(bits) and bits[int(value)])
    return bool(node["missing_left"] if np.isnan(value) else value <= node["threshold"])


def _expected(trees: Trees, x: Values, known: frozenset[int], at: int) -> float:
    """A tree's value where only these columns are known: other nodes go both ways, as training rows did."""
    node = trees.nodes[at]
    if node["left"] == LEAF:
        return float(node["value"])
    sides, feature = (int(node["left"]), int(node["right"])), int(node["feature"])
    if feature in known:
        return _expected(trees, x, known, sides[0 if _goes_left(trees, at, x[feature]) else 1])
    cover = trees.nodes["cover"]
    return float(sum(cover[side] / cover[at] * _expected(trees, x, known, side) for side in sides))


def _shapley(trees: Trees, x: Values) -> list[float]:
    """By their definition, over all sets of columns (Shapley, 1953)."""
    roots, width = np.flatnonzero(np.diff(trees.nodes["tree"], prepend=-1)).tolist(), len(x)
    sets = [frozenset(s) for size in range(width + 1) for s in itertools.combinations(range(width), size)]
    worth = {known: sum(_expected(trees, x, known, root) for root in roots) for known in sets}
    share = {size: 1 / (width * math.comb(width - 1, size)) for size in range(width)}
    return [
        sum(share[len(s)] * (worth[s | {column}] - worth[s]) for s in sets if column not in s)
        for column in range(width)
    ]


@pytest.mark.parametrize("classifies", [False, True])
def test_of_a_forest_they_are_shapley_values(classifies: bool) -> None:
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    x, y = _coded(300)
    x = np.column_stack([x, x[:, 2] * x[:, 3]])
    weights = np.linspace(0.5, 2.0, len(y))
    kind = RandomForestClassifier if classifies else RandomForestRegressor
    estimator = kind(4, max_depth=5, random_state=7).fit(x, y > 1 if classifies else y, weights)
    fitted = [tree.tree_ for tree in estimator.estimators_]
    forest = ForestModel.from_sklearn(fitted)
    asked, _ = _coded(8, seed=8)
    asked = np.column_stack([asked, asked[:, 2] * asked[:, 3]])
    values, base = forest.contributions(asked)
    # What scikit-learn says of a root is the weighted mean of the rows.
    assert base == pytest.approx(np.mean([tree.value[0, 0, -1] for tree in fitted]), rel=1e-12)
    for row, own in zip(asked, values, strict=True):
        assert own * len(fitted) == pytest.approx(_shapley(Trees.of(forest.nodes), row), abs=1e-12)


@pytest.mark.parametrize("discrete", [(), (0, 1)])
def test_of_boosted_trees_with_categories_and_missing_values_they_are_shapley_values(
    discrete: tuple[int, ...],
) -> None:
    from sklearn.ensemble import HistGradientBoostingRegressor

    x, y = _coded(600)
    estimator = HistGradientBoostingRegressor(
        max_iter=6, max_leaf_nodes=12, min_samples_leaf=5, categorical_features=discrete or None
    )
    model = BoostedModel.from_sklearn(estimator.fit(x, y), discrete)
    assert bool(len(model.trees.bits)) == bool(discrete)
    asked, _ = _coded(8, seed=8)
    asked[0], asked[1, 0] = np.nan, 99.0
    for row, own in zip(asked, model.contributions(asked)[0], strict=True):
        assert own == pytest.approx(_shapley(model.trees, row), abs=1e-12)


def _fitted(name: str, task: Any, params: dict[str, Any], metric: str) -> tuple[Any, Matrix]:
    x, y = _coded(1500)
    y = (y > 1).astype(np.float64) if task == "classification" else y
    weights = np.linspace(0.5, 2.0, len(y))
    how = How(metric, seed=7, cpus=1, task=task)
    asked, _ = _coded(200, seed=8)
    asked[:3, 0] = 99.0
    return FAMILIES[name].fit(Sample(x, y, weights, (0, 1)), params, how), asked


LOSSES = [("regression", "mae"), ("regression", "rmse"), ("classification", "log_loss")]


@pytest.mark.parametrize(("task", "metric"), LOSSES)
def test_they_are_lightgbms_own(task: str, metric: str) -> None:
    import lightgbm

    params = {"n_estimators": 20, "num_leaves": 31, "bagging_fraction": 0.6, "min_data_in_leaf": 5}
    model, asked = _fitted("lightgbm", task, params, metric)
    own = lightgbm.Booster(model_str=model.data.decode()).predict(asked, pred_contrib=True)
    values, base = model.contributions(asked)
    assert values == pytest.approx(own[:, :-1], rel=1e-9, abs=1e-12)
    assert base == pytest.approx(own[0, -1], rel=1e-9)


@pytest.mark.parametrize(("task", "metric"), LOSSES)
def test_they_are_catboosts_own(task: str, metric: str, tmp_path: Path) -> None:
    import catboost
    import pandas as pd

    model, asked = _fitted("catboost", task, {"iterations": 20, "depth": 6, "learning_rate": 0.3}, metric)
    (tmp_path / "model.json").write_bytes(model.data)
    library = catboost.CatBoost().load_model(str(tmp_path / "model.json"), format="json")
    frame = pd.DataFrame(asked).fillna({0: -1, 1: -1}).astype({0: int, 1: int})
    pool = catboost.Pool(frame, cat_features=[0, 1])
    own = library.get_feature_importance(pool, type="ShapValues", thread_count=1)
    values, base = model.contributions(asked)
    # Leaves that no training row came to are among those of full trees.
    assert (model._answering.trees.nodes["cover"] < 1e-90).any()
    assert values == pytest.approx(own[:, :-1], rel=1e-9, abs=1e-12)
    assert base == pytest.approx(own[0, -1], rel=1e-9)


@pytest.mark.parametrize(("task", "metric"), LOSSES)
def test_they_are_xgboosts_own(task: str, metric: str) -> None:
    import xgboost

    model, asked = _fitted("xgboost", task, {"n_estimators": 20, "max_depth": 6}, metric)
    booster = xgboost.Booster(model_file=bytearray(model.data))
    own = booster.predict(xgboost.DMatrix(asked), pred_contribs=True)
    values, base = model.contributions(asked)
    assert values == pytest.approx(own[:, :-1], rel=1e-5, abs=1e-6)
    assert base == pytest.approx(own[0, -1], rel=1e-5)


def test_shares_at_the_ends_of_numbers_give_numbers() -> None:
    """A column is asked again and again, by nodes of which almost all or almost no rows went left."""
    steps, nodes = 40, np.zeros(81, NODE)
    nodes["left"], nodes["right"] = LEAF, LEAF
    nodes["left"][:-1:2], nodes["right"][:-1:2] = np.arange(steps) * 2 + 1, np.arange(steps) * 2 + 2
    nodes["feature"], nodes["value"] = np.arange(81) // 2 % 3, np.arange(81.0)
    nodes["cover"] = np.where(np.arange(81) % 4 < 2, 1e-300, 1e299)
    forest = ForestModel.from_bytes(ForestModel(nodes).to_bytes())
    x = np.random.default_rng(7).normal(size=(50, 3)).astype(np.float32)
    values, base = forest.contributions(x)
    assert base + values.sum(axis=1) == pytest.approx(forest.predict(x), rel=1e-9)


def test_a_constant_owes_nothing_to_any_column() -> None:
    values, base = ForestModel.constant(0.25).contributions(np.ones((3, 2), np.float32))
    assert values.tolist() == [[0.0, 0.0]] * 3
    assert base == 0.25


def test_trees_of_one_leaf_stand_among_others() -> None:
    both = Trees.joined(
        [
            (new_tree([LEAF], [LEAF], value=[1.0]), {}),
            (new_tree([1, LEAF, LEAF], [2, LEAF, LEAF], value=[0.0, 2.0, 6.0], cover=[4, 3, 1]), {}),
            (new_tree([LEAF], [LEAF], value=[5.0]), {}),
        ]
    ).check()
    values, base = both.contributions(np.array([[-1.0], [1.0]], np.float32))
    assert (values.tolist(), base) == ([[-1.0], [3.0]], 9.0)


@pytest.mark.parametrize("name", ["random_forest", "ridge", "xgboost"])
def test_a_matrix_of_too_few_columns_is_refused(name: str) -> None:
    case = Case.of(name, "regression")
    with pytest.raises(ValueError, match="columns, not 1"):
        _contributions(case.model, _asked(case)[:, :1])


def test_memory_does_not_grow_with_the_rows() -> None:
    from sklearn.ensemble import RandomForestRegressor

    x, y = _coded(1000)
    fitted = RandomForestRegressor(10, max_depth=6, random_state=7).fit(x, y).estimators_
    forest, many = ForestModel.from_sklearn([tree.tree_ for tree in fitted]), np.tile(x, (5, 1))
    _ = forest.contributions(x[:1])
    tracemalloc.start()
    try:
        values, _ = forest.contributions(many)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # All at once would take 8 bytes a node and row in each of several arrays.
    assert peak < 2 * values.nbytes + 16 * 8 * MOST_CELLS < len(forest.nodes) * len(many) * 8


def _predictor(folder: Path, **changes: Any) -> Predictor:
    write(folder, **changes)
    return Predictor.load(folder, None)


def test_a_predictor_tells_of_features_and_not_of_the_columns_of_a_matrix(tmp_path: Path) -> None:
    case = Case.of("ridge", "regression")
    model, encoder = case.model, case.encoder
    assert isinstance(model, LinearModel)
    told = _predictor(tmp_path / "demo", model=model, encoder=encoder).explain(rows(30, seed=8))
    assert told.names == FEATURES.names
    assert told.scale == "answer"
    x = encoder.transform(rows(30, seed=8))
    assert told.base + told.values.sum(axis=1) == pytest.approx(model.predict(x), rel=1e-9)
    sites = [at for at, name in enumerate(encoder.names) if name.startswith("site=")]
    assert len(sites) == 3
    weights, means = np.array(model.coefficients)[sites], np.array(model.means)[sites]
    assert told.values[:, 0] == pytest.approx((x[:, sites] - means) @ weights, rel=1e-9)


@pytest.mark.parametrize("hidden", [("site", "holiday"), ("lag",)])
def test_what_nobody_may_see_is_told_of_as_one(hidden: tuple[str, ...], tmp_path: Path) -> None:
    columns = tuple(replace(column, hidden=column.name in hidden) for column in COLUMNS)
    encoder = Encoder.fit(rows(600), columns, style="codes")
    case = Case.of("hist_gradient_boosting", "regression")
    model = case.fitted(encoder.transform(rows(600)), case.data()[1])
    shown, withheld = (
        _predictor(tmp_path / name, model=model, encoder=encoder, feature_set=replace(FEATURES, columns=own))
        for name, own in (("a", COLUMNS), ("b", columns))
    )
    every, told = (predictor.explain(rows(40, seed=8)) for predictor in (shown, withheld))
    assert told.names == (*(name for name in FEATURES.names if name not in hidden), "withheld")
    parts = dict(zip(every.names, every.values.T, strict=True))
    assert told.values[:, -1] == pytest.approx(sum(parts[name] for name in hidden), rel=1e-12)
    for name, own in zip(told.names[:-1], told.values.T, strict=False):
        assert own.tolist() == parts[name].tolist()
    assert told.base == every.base
    # Today's policy counts beside that of the day on which it was trained.
    today = shown.explain(rows(40, seed=8), frozenset(hidden))
    assert (today.names, today.values.tolist()) == (told.names, told.values.tolist())


SCALES = [
    ("ridge", "regression", None, "answer"),
    ("random_forest", "regression", "log1p", "log1p"),
    ("xgboost", "regression", "log", "log"),
    ("random_forest", "classification", None, "probability"),
    *((name, "classification", None, "log-odds") for name in ("logistic", "xgboost", "lightgbm", "catboost")),
]


@pytest.mark.parametrize(("name", "task", "transform", "scale"), SCALES)
def test_a_predictor_says_what_they_come_to(
    name: str, task: Any, transform: Any, scale: str, tmp_path: Path
) -> None:
    case, outcome = Case.of(name, task), Outcome(transform=transform)
    given = {"model": case.model, "encoder": case.encoder, "task": task, "outcome": outcome}
    predictor = _predictor(tmp_path / "demo", **given)
    told = predictor.explain(rows(20, seed=8))
    undo = {"log-odds": probability, "log": np.exp, "log1p": np.expm1}.get(scale, np.positive)
    answers = predictor.predict_features(rows(20, seed=8))
    assert undo(told.base + told.values.sum(axis=1)) == pytest.approx(answers, rel=1e-4)
    assert told.scale == scale


def test_a_family_that_cannot_tell_says_so(tmp_path: Path) -> None:
    case = Case.of("mlp", "regression")
    assert isinstance(case.model, NetworkModel)
    predictor = _predictor(tmp_path / "demo", family="mlp", model=case.model, encoder=case.encoder)
    with pytest.raises(RequestError, match="the family mlp gives no contributions"):
        predictor.explain(rows(1))
    assert not issubclass(EstimatorModel, Explainable)


@pytest.mark.parametrize("name", ["random_forest", "hist_gradient_boosting", "lightgbm", "catboost"])
def test_a_damaged_file_that_gives_numbers_gives_them_for_contributions_too(name: str) -> None:
    case = Case.of(name, FAMILIES[name].tasks[-1])
    data, x, told = case.model.to_bytes(), _asked(case, 10), 0
    random = np.random.default_rng(7)
    for _ in range(100):
        changed = bytearray(data)
        # Text stays text where a digit takes a place.
        changed[random.integers(len(data))] = random.integers(*((48, 58) if name in EXTRAS else (0, 256)))
        try:
            model = models.load(case.model.kind, bytes(changed))
            raw = _raw(model, x)
        except (PackageError, ValueError):
            continue
        # Larger sums than these are no numbers themselves.
        if np.abs(raw).max() < 1e200:
            values, base = _contributions(model, x)
            assert np.isfinite(values).all()
            assert np.isfinite(base)
            told += 1
    assert told > 10
