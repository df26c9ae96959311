"""Models as plain data: what their own library says is what they say, and a strange file is refused."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from mlops_ray.errors import PackageError
from mlops_ray.registry import models
from mlops_ray.registry.arrays import pack, unpack
from mlops_ray.registry.encoder import Matrix, Values
from mlops_ray.registry.models import NODE, BoostedModel, ForestModel, LinearModel, NetworkModel
from mlops_ray.registry.probability import probability
from mlops_ray.registry.ubjson import check_xgboost


def _matrix(rows: int, seed: int = 7) -> Matrix:
    random = np.random.default_rng(seed)
    matrix = random.random((rows, 4)).astype(np.float32)
    matrix[random.random(matrix.shape) < 0.1] = np.nan
    return matrix


def _coded(rows: int, seed: int = 7, codes: int = 40, missing: float = 0.1) -> tuple[Matrix, Values]:
    """A matrix whose first two columns are categories' positions, and labels that follow them."""
    random = np.random.default_rng(seed)
    matrix = random.random((rows, 5)).astype(np.float32)
    matrix[:, 0], matrix[:, 1] = random.integers(0, codes, rows), random.integers(0, 2, rows)
    labels = matrix[:, 2] + (matrix[:, 0] % 3 == 1) + matrix[:, 1] * matrix[:, 3]
    matrix[random.random(matrix.shape) < missing] = np.nan
    return matrix, labels.astype(np.float64)


def test_a_probability_is_the_same_alone_and_among_many() -> None:
    sums = np.concatenate([np.random.default_rng(7).normal(0, 20, 5000), [-np.inf, -750, 0, 750, np.inf]])
    answers = probability(sums)
    assert [probability(sums[at : at + 1])[0] for at in range(len(sums))] == answers.tolist()
    assert probability(np.repeat(sums, 3)[::3]).tolist() == answers.tolist()
    assert ((answers >= 0) & (answers <= 1)).all()
    assert (np.diff(answers[np.argsort(sums)]) >= 0).all()
    assert probability(-sums) == pytest.approx(1 - answers, abs=1e-15)


@pytest.mark.parametrize("missing_in_training", [False, True])
def test_a_forest_answers_as_scikit_learn_does(missing_in_training: bool) -> None:
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    matrix = _matrix(400)
    fitted_on = matrix if missing_in_training else np.nan_to_num(matrix, nan=0.5)
    labels = np.nan_to_num(matrix[:, 0]) + np.random.default_rng(1).normal(size=400)
    estimator = RandomForestRegressor(10, random_state=7).fit(fitted_on, labels)
    forest = ForestModel.from_sklearn([tree.tree_ for tree in estimator.estimators_])
    unseen = _matrix(300, seed=8)
    assert forest.predict(unseen) == pytest.approx(estimator.predict(unseen), rel=1e-12)
    classifier = RandomForestClassifier(10, random_state=7, class_weight={False: 1, True: 3})
    classifier.fit(fitted_on, labels > 1)
    forest = ForestModel.from_sklearn([tree.tree_ for tree in classifier.estimators_])
    assert forest.predict(unseen) == pytest.approx(classifier.predict_proba(unseen)[:, 1], rel=1e-12)


def test_a_forest_of_bare_roots_answers() -> None:
    nodes = np.zeros(2, NODE)
    nodes["tree"], nodes["left"], nodes["right"], nodes["value"] = [0, 1], -1, -1, [1.0, 3.0]
    assert ForestModel(nodes).predict(_matrix(2)).tolist() == [2.0, 2.0]
    assert ForestModel(nodes).predict(_matrix(0)).tolist() == []


@pytest.mark.parametrize("discrete", [(), (0, 1), (1,)])
@pytest.mark.parametrize("missing_in_training", [0.0, 0.1])
def test_boosted_trees_answer_as_scikit_learn_does(
    discrete: tuple[int, ...], missing_in_training: float
) -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    matrix, labels = _coded(2000, missing=missing_in_training)
    known, labels = matrix[~(matrix[:, 0] > 30)], labels[~(matrix[:, 0] > 30)]
    estimator = HistGradientBoostingRegressor(max_iter=20, categorical_features=discrete or None)
    estimator.fit(known, labels)
    unseen, _ = _coded(500, seed=8)
    model = BoostedModel.from_sklearn(estimator, discrete)
    assert model.predict(unseen) == pytest.approx(estimator.predict(unseen), rel=1e-10)
    classifier = HistGradientBoostingClassifier(max_iter=20, categorical_features=discrete or None)
    classifier.fit(known, labels > 1)
    model = BoostedModel.from_sklearn(classifier, discrete)
    assert model.predict(unseen) == pytest.approx(classifier.predict_proba(unseen)[:, 1], rel=1e-10)


@pytest.mark.parametrize("discrete", [[], [0, 1]])
@pytest.mark.parametrize("missing_in_training", [0.0, 0.1])
@pytest.mark.parametrize("objective", ["regression", "binary"])
def test_lightgbms_text_answers_as_lightgbm_does(
    objective: str, discrete: list[int], missing_in_training: float
) -> None:
    import lightgbm

    matrix, labels = _coded(2000, missing=missing_in_training)
    given = {"verbosity": -1, "num_threads": 1, "objective": objective}
    labels = (labels > 1).astype(np.float64) if objective == "binary" else labels
    data = lightgbm.Dataset(matrix, labels, categorical_feature=discrete, params=given)
    fitted = lightgbm.train(given, data, num_boost_round=20)
    unseen, _ = _coded(500, seed=8, codes=60)
    model = models.load("lightgbm", fitted.model_to_string().encode())
    assert model.predict(unseen) == pytest.approx(fitted.predict(unseen), rel=1e-10)


@pytest.mark.parametrize("loss", ["MAE", "RMSE", "Logloss"])
@pytest.mark.parametrize("discrete", [(), (0, 1)])
def test_catboosts_json_answers_as_catboost_does(
    loss: str, discrete: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import catboost
    import pandas as pd

    from mlops_ray.training.families import FAMILIES, How, Sample

    kept: list[Any] = []
    fit = catboost.CatBoost.fit
    monkeypatch.setattr(catboost.CatBoost, "fit", lambda self, pool: kept.append(fit(self, pool)) or kept[-1])
    matrix, labels = _coded(2000)
    params = {"iterations": 20, "depth": 5, "learning_rate": 0.3}
    how = {
        "MAE": How("mae", seed=7, cpus=1),
        "RMSE": How("rmse", seed=7, cpus=1),
        "Logloss": How("log_loss", seed=7, cpus=1, task="classification"),
    }[loss]
    labels = (labels > 1).astype(np.float64) if how.classifies else labels
    fitted = FAMILIES["catboost"].fit(Sample(matrix, labels, discrete=discrete), params, how)
    unseen, _ = _coded(500, seed=8, codes=60)
    frame = pd.DataFrame(unseen)
    for at in discrete:
        frame[at] = frame[at].fillna(-1).astype(np.int64)
    answers = kept[0].predict(frame)
    if how.classifies:
        answers = kept[0].predict(frame, prediction_type="Probability")[:, 1]
    assert fitted.predict(unseen) == pytest.approx(answers, rel=1e-10)
    # What was left out of its file does not keep CatBoost from reading it.
    (tmp_path / "model.json").write_bytes(fitted.to_bytes())
    again = catboost.CatBoost().load_model(str(tmp_path / "model.json"), format="json")
    assert again.predict(frame) == pytest.approx(kept[0].predict(frame), rel=1e-12)


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_a_network_answers_as_scikit_learn_does() -> None:
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    matrix = np.nan_to_num(_matrix(400))
    estimator = MLPRegressor(hidden_layer_sizes=(8, 5), max_iter=30, random_state=7).fit(matrix, matrix[:, 0])
    model = NetworkModel.from_sklearn(estimator, center=2.0, scale=3.0)
    assert model.predict(matrix) == pytest.approx(2.0 + 3.0 * estimator.predict(matrix), rel=1e-4)
    precise = matrix.astype(np.float64)
    classifier = MLPClassifier(hidden_layer_sizes=(8, 5), max_iter=30, random_state=7)
    classifier.fit(precise, matrix[:, 0] > 0.5)
    model = NetworkModel.from_sklearn(classifier)
    assert model.predict(matrix) == pytest.approx(classifier.predict_proba(precise)[:, 1], rel=1e-10)


def test_a_logistic_regression_answers_as_scikit_learn_does() -> None:
    from sklearn.linear_model import LogisticRegression

    from mlops_ray.training.families import LOGISTIC, How, Sample

    matrix = np.nan_to_num(_matrix(400))
    labels, weights = (
        (matrix[:, 0] + matrix[:, 1] > 1).astype(np.float64),
        1.0 + matrix[:, 2].astype(np.float64),
    )
    how = How("log_loss", seed=7, cpus=1, task="classification")
    fitted = LOGISTIC.fit(Sample(matrix, labels, weights), {"C": 2.0}, how)
    estimator = LogisticRegression(C=2.0, tol=1e-9, max_iter=1000)
    estimator.fit(matrix.astype(np.float64), labels, weights)
    unseen = np.nan_to_num(_matrix(300, seed=8))
    wanted = estimator.predict_proba(unseen.astype(np.float64))[:, 1]
    assert fitted.predict(unseen) == pytest.approx(wanted, rel=1e-2)
    coefficients = estimator.coef_[0].tolist(), float(estimator.intercept_[0])
    model = LinearModel(tuple(coefficients[0]), coefficients[1], classifies=True)
    assert model.predict(unseen) == pytest.approx(wanted, rel=1e-12)
    assert models.load("linear", model.to_bytes()) == model


def test_a_forest_that_was_written_before_is_read() -> None:
    file = io.BytesIO()
    np.save(file, unpack(_nodes())[0], allow_pickle=False)
    assert models.load("forest", file.getvalue()).to_bytes() == file.getvalue()


def _nodes(**fields: object) -> bytes:
    nodes = np.zeros(3, NODE)
    nodes["left"], nodes["right"], nodes["cover"] = [1, -1, -1], [2, -1, -1], [3, 2, 1]
    for name, value in fields.items():
        nodes[name] = value
    return ForestModel(nodes).to_bytes()


def _chain(steps: int) -> bytes:
    """A tree of which every node has a leaf on its left and the rest on its right."""
    nodes = np.zeros(2 * steps + 1, NODE)
    nodes["left"], nodes["right"], nodes["cover"] = -1, -1, 1.0
    nodes["left"][:-1:2], nodes["right"][:-1:2] = np.arange(steps) * 2 + 1, np.arange(steps) * 2 + 2
    return ForestModel(nodes).to_bytes()


def _pickled() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return file.getvalue()


def _boosted(sets: list[int], bits: list[list[int]], nodes: bytes = b"") -> bytes:
    return (nodes or _nodes()) + pack(np.array(sets, np.int32), np.array(bits, np.uint8), np.array(0.5))


def _layers(*shapes: tuple[int, int], dtype: str = "f8") -> bytes:
    return pack(*(np.zeros(s, dtype) for shape in shapes for s in (shape, shape[:1])))


def _catboost(**changes: object) -> bytes:
    tree = {
        "leaf_values": [0.0, 1.0],
        "leaf_weights": [2.0, 0.0],
        "splits": [{"split_type": "OneHotFeature", "cat_feature_index": 0, "value": 5}],
    }
    features = {
        "categorical_features": [{"flat_feature_index": 1}],
        "cat_features_hash": [{"hash": 5, "value": "3"}],
    }
    given = {"oblivious_trees": [tree], "features_info": features, "scale_and_bias": [1.0, [0.5]]}
    return orjson.dumps({**given, **changes})


def test_sound_files_are_read() -> None:
    asked = np.array([[0, 3, 0], [0, 4, 0], [0, np.nan, 0], [0, 9000, 0]], np.float32)
    assert models.load("catboost", _catboost()).predict(asked).tolist() == [1.5, 0.5, 0.5, 0.5]
    # The root asks whether column 0 is category 3.
    boosted = models.load("boosted", _boosted([0, -1, -1], [[8, 0]], _nodes(value=[0.0, 2.0, 3.0])))
    assert boosted.predict(asked.take([1, 0, 2], axis=1)).tolist() == [2.5, 3.5, 3.5, 3.5]
    assert models.load("network", _layers((3, 3), (1, 3))).predict(asked[:2]).tolist() == [0.0, 0.0]


def test_a_file_says_that_its_model_classifies() -> None:
    asked = np.zeros((2, 3), np.float32)
    flag = pack(np.array(True))
    assert models.load("network", _layers((3, 3), (1, 3)) + flag).predict(asked).tolist() == [0.5, 0.5]
    nodes = _nodes(value=[0.0, -0.5, -0.5])
    assert models.load("boosted", _boosted([-1] * 3, [[0]], nodes) + flag).predict(asked).tolist() == [
        0.5,
        0.5,
    ]
    linear = b'{"coefficients": [1, 2, 3], "intercept": 0, "classifies": true}'
    assert models.load("linear", linear).predict(asked).tolist() == [0.5, 0.5]
    losses = {"params": {"loss_function": {"type": "Logloss"}}}
    catboost = models.load("catboost", _catboost(model_info=losses, scale_and_bias=[1.0, [0.0]]))
    assert catboost.predict(asked).tolist() == [0.5, 0.5]


def test_a_constant_answers_every_row_alike() -> None:
    constant = ForestModel.constant(0.1)
    assert constant.predict(_matrix(3)).tolist() == [0.1] * 3
    assert models.load("forest", constant.to_bytes()).predict(_matrix(2)).tolist() == [0.1] * 2


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("boosted", _nodes()),
        ("boosted", _boosted([1, -1, -1], [[8, 0]])),
        ("boosted", _boosted([0, -1, -1], [[8, 128]])),
        ("boosted", _boosted([0, -1], [[8, 0]])),
        ("boosted", _boosted([0, -1, -1], [[8, 0]], _nodes(left=[0, -1, -1]))),
        ("boosted", _boosted([0, -1, -1], [[8, 0]]) + pack(np.array([True]))),
        ("boosted", _boosted([0, -1, -1], [[8, 0]]) + pack(np.array(1))),
        ("network", b""),
        ("network", _layers((1, 3)) + pack(np.array(1.0))),
        ("network", pack(np.array(True))),
        ("network", _layers((3, 3), (1, 2))),
        ("network", _layers((3, 3), (2, 3))),
        ("network", _layers((1, 3), dtype="f4")),
        ("network", _layers((1, 0))),
        ("lightgbm", b"tree\nversion=v4\n"),
        ("catboost", _catboost(oblivious_trees=[{"leaf_values": [0.0], "splits": [{}]}])),
        ("catboost", _catboost(oblivious_trees=[])),
        ("catboost", _catboost(oblivious_trees=[{"leaf_values": [0.0], "leaf_weights": [1.0, 1.0]}])),
        ("catboost", _catboost(oblivious_trees=[{"leaf_values": [0.0]}])),
        ("catboost", _catboost(scale_and_bias=[1.0, [0.5, 0.5]])),
        ("catboost", _catboost(model_info={"params": {"loss_function": {"type": "Poisson"}}})),
        ("catboost", _catboost(features_info={"cat_features_hash": [{"hash": 5, "value": "99999999999"}]})),
        ("forest", _nodes(left=[0, -1, -1])),
        ("forest", _nodes(right=[7, -1, -1])),
        ("forest", _nodes(feature=-1)),
        ("forest", _nodes(left=[2, -1, -1])),
        ("forest", _nodes(tree=[0, 0, 1])),
        ("forest", _nodes(cover=[1, 1, 0])),
        ("forest", _nodes(cover=[1, -1, 2])),
        ("forest", _nodes(cover=[1, np.nan, 1])),
        ("forest", _nodes(cover=[1, np.inf, 1])),
        ("forest", _chain(2000)),
        ("forest", _pickled()),
        ("forest", b"PK\x03\x04"),
        ("linear", b"{}"),
        ("linear", b'{"coefficients": [1, 2], "intercept": 0, "means": [1]}'),
        ("linear", b"\x80\x04."),
        ("xgboost", b"no booster"),
        ("pickle", b""),
    ],
)
def test_a_file_that_is_no_such_model_is_a_package_error(kind: str, data: bytes) -> None:
    with pytest.raises(PackageError):
        models.load(kind, data)


@pytest.mark.parametrize("mark", ["left_children", "right_children", "parents", "split_indices"])
def test_an_xgboost_file_with_a_wrong_number_never_reaches_the_library(mark: str) -> None:
    import xgboost

    matrix = _matrix(400)
    trained = xgboost.train({"nthread": 1}, xgboost.DMatrix(matrix, np.nan_to_num(matrix[:, 0])), 3)
    data = bytes(trained.save_raw("ubj"))
    check_xgboost(data)
    # After the name, "[$l#L" and 8 bytes of a length come the root's 4 bytes.
    at = data.index(mark.encode()) + len(mark) + 13
    for wrong in (b"\x00\x00\x00\x00", b"\x00\xff\xff\xff", b"\x80\x00\x00\x00"):
        if mark == "split_indices" and wrong == bytes(4):
            continue
        with pytest.raises(ValueError, match="leads nowhere"):
            check_xgboost(data[:at] + wrong + data[at + 4 :])


def test_a_matrix_that_is_too_narrow_is_refused() -> None:
    with pytest.raises(ValueError, match="reads 4 columns, not 3"):
        models.load("forest", _nodes(feature=3)).predict(_matrix(2)[:, :3])


@pytest.mark.parametrize("columns", [1, 5])
def test_a_matrix_of_another_width_is_refused_and_not_repeated(columns: int) -> None:
    of_three = [
        models.load("network", _layers((1, 3))),
        models.load("linear", b'{"coefficients": [1, 2, 3], "intercept": 0}'),
    ]
    for model in of_three:
        with pytest.raises(ValueError, match=f"reads 3 columns, not {columns}"):
            model.predict(np.ones((2, columns), np.float32))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("objective=regression", "objective=poisson"),
        ("objective=regression", "objective=regression sqrt"),
        ("objective=regression", "objective=binary sigmoid:2"),
        ("label_index", "average_output\nlabel_index"),
        ("is_linear=0", "is_linear=1"),
        ("cat_boundaries=0 ", "cat_boundaries=0 2000 "),
    ],
)
def test_a_lightgbm_text_of_another_meaning_or_with_a_set_without_end_is_refused(
    right: str, wrong: str
) -> None:
    import lightgbm

    matrix, labels = _coded(2000)
    data = lightgbm.Dataset(matrix, labels, categorical_feature=[0, 1], params={"verbosity": -1})
    text = lightgbm.train({"verbosity": -1, "num_threads": 1}, data, num_boost_round=2).model_to_string()
    models.load("lightgbm", text.encode())
    assert right in text
    with pytest.raises(PackageError):
        models.load("lightgbm", text.replace(right, wrong, 1).encode())


def test_a_sound_forest_is_read_again() -> None:
    assert models.load("forest", _nodes()).predict(_matrix(1)).tolist() == [0.0]
    assert models.load("forest", _chain(200)).predict(_matrix(1)).tolist() == [0.0]


@pytest.mark.parametrize("objective", ["reg:squarederror", "binary:logistic"])
def test_a_booster_answers_as_xgboost_does(objective: str) -> None:
    import xgboost

    matrix, unseen = _matrix(400), _matrix(300, seed=8)
    labels = np.nan_to_num(matrix[:, 0])
    data = xgboost.DMatrix(matrix, labels > 0.5 if objective == "binary:logistic" else labels)
    given = {"max_depth": 4, "nthread": 1, "objective": objective}
    trained = xgboost.train(given, data, num_boost_round=20)
    model = models.load("xgboost", bytes(trained.save_raw("ubj")))
    assert model.predict(unseen).tolist() == trained.inplace_predict(unseen).tolist()
    assert model.predict(unseen[::2, :]).tolist() == trained.inplace_predict(unseen).tolist()[::2]
    with pytest.raises(ValueError, match="reads 4 columns, not 3"):
        model.predict(unseen[:, :3])
