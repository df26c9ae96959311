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
from mlops_ray.registry.models import NODE, BoostedModel, ForestModel, NetworkModel
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


@pytest.mark.parametrize("missing_in_training", [False, True])
def test_a_forest_answers_as_scikit_learn_does(missing_in_training: bool) -> None:
    from sklearn.ensemble import RandomForestRegressor

    matrix = _matrix(400)
    fitted_on = matrix if missing_in_training else np.nan_to_num(matrix, nan=0.5)
    labels = np.nan_to_num(matrix[:, 0]) + np.random.default_rng(1).normal(size=400)
    estimator = RandomForestRegressor(10, random_state=7).fit(fitted_on, labels)
    forest = ForestModel.from_sklearn([tree.tree_ for tree in estimator.estimators_])
    unseen = _matrix(300, seed=8)
    assert forest.predict(unseen) == pytest.approx(estimator.predict(unseen), rel=1e-12)


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
    from sklearn.ensemble import HistGradientBoostingRegressor

    matrix, labels = _coded(2000, missing=missing_in_training)
    known = matrix[~(matrix[:, 0] > 30)]
    estimator = HistGradientBoostingRegressor(max_iter=20, categorical_features=discrete or None)
    estimator.fit(known, labels[~(matrix[:, 0] > 30)])
    unseen, _ = _coded(500, seed=8)
    model = BoostedModel.from_sklearn(estimator, discrete)
    assert model.predict(unseen) == pytest.approx(estimator.predict(unseen), rel=1e-10)


@pytest.mark.parametrize("discrete", [[], [0, 1]])
@pytest.mark.parametrize("missing_in_training", [0.0, 0.1])
def test_lightgbms_text_answers_as_lightgbm_does(discrete: list[int], missing_in_training: float) -> None:
    import lightgbm

    matrix, labels = _coded(2000, missing=missing_in_training)
    data = lightgbm.Dataset(matrix, labels, categorical_feature=discrete, params={"verbosity": -1})
    fitted = lightgbm.train({"verbosity": -1, "num_threads": 1}, data, num_boost_round=20)
    unseen, _ = _coded(500, seed=8, codes=60)
    model = models.load("lightgbm", fitted.model_to_string().encode())
    assert model.predict(unseen) == pytest.approx(fitted.predict(unseen), rel=1e-10)


@pytest.mark.parametrize("loss", ["MAE", "RMSE"])
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
    metric = {"MAE": "mae", "RMSE": "rmse"}[loss]
    fitted = FAMILIES["catboost"].fit(
        Sample(matrix, labels, discrete=discrete), params, How(metric, seed=7, cpus=1)
    )
    unseen, _ = _coded(500, seed=8, codes=60)
    frame = pd.DataFrame(unseen)
    for at in discrete:
        frame[at] = frame[at].fillna(-1).astype(np.int64)
    assert fitted.predict(unseen) == pytest.approx(kept[0].predict(frame), rel=1e-10)
    # What was left out of its file does not keep CatBoost from reading it.
    (tmp_path / "model.json").write_bytes(fitted.to_bytes())
    again = catboost.CatBoost().load_model(str(tmp_path / "model.json"), format="json")
    assert again.predict(frame) == pytest.approx(kept[0].predict(frame), rel=1e-12)


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_a_network_answers_as_scikit_learn_does() -> None:
    from sklearn.neural_network import MLPRegressor

    matrix = np.nan_to_num(_matrix(400))
    estimator = MLPRegressor(hidden_layer_sizes=(8, 5), max_iter=30, random_state=7).fit(matrix, matrix[:, 0])
    model = NetworkModel.from_sklearn(estimator, center=2.0, scale=3.0)
    assert model.predict(matrix) == pytest.approx(2.0 + 3.0 * estimator.predict(matrix), rel=1e-4)


def test_a_forest_that_was_written_before_is_read() -> None:
    file = io.BytesIO()
    np.save(file, unpack(_nodes())[0], allow_pickle=False)
    assert models.load("forest", file.getvalue()).to_bytes() == file.getvalue()


def _nodes(**fields: object) -> bytes:
    nodes = np.zeros(3, NODE)
    nodes["left"], nodes["right"] = [1, -1, -1], [2, -1, -1]
    for name, value in fields.items():
        nodes[name] = value
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


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("boosted", _nodes()),
        ("boosted", _boosted([1, -1, -1], [[8, 0]])),
        ("boosted", _boosted([0, -1, -1], [[8, 128]])),
        ("boosted", _boosted([0, -1], [[8, 0]])),
        ("boosted", _boosted([0, -1, -1], [[8, 0]], _nodes(left=[0, -1, -1]))),
        ("network", b""),
        ("network", _layers((3, 3), (1, 2))),
        ("network", _layers((3, 3), (2, 3))),
        ("network", _layers((1, 3), dtype="f4")),
        ("network", _layers((1, 0))),
        ("lightgbm", b"tree\nversion=v4\n"),
        ("catboost", _catboost(oblivious_trees=[{"leaf_values": [0.0], "splits": [{}]}])),
        ("catboost", _catboost(oblivious_trees=[])),
        ("catboost", _catboost(scale_and_bias=[1.0, [0.5, 0.5]])),
        ("catboost", _catboost(features_info={"cat_features_hash": [{"hash": 5, "value": "99999999999"}]})),
        ("forest", _nodes(left=[0, -1, -1])),
        ("forest", _nodes(right=[7, -1, -1])),
        ("forest", _nodes(feature=-1)),
        ("forest", _pickled()),
        ("forest", b"PK\x03\x04"),
        ("linear", b"{}"),
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


def test_a_booster_answers_as_xgboost_does() -> None:
    import xgboost

    matrix, unseen = _matrix(400), _matrix(300, seed=8)
    data = xgboost.DMatrix(matrix, np.nan_to_num(matrix[:, 0]))
    trained = xgboost.train({"max_depth": 4, "nthread": 1}, data, num_boost_round=20)
    model = models.load("xgboost", bytes(trained.save_raw("ubj")))
    assert model.predict(unseen).tolist() == trained.inplace_predict(unseen).tolist()
    assert model.predict(unseen[::2, :]).tolist() == trained.inplace_predict(unseen).tolist()[::2]
    with pytest.raises(ValueError, match="reads 4 columns, not 3"):
        model.predict(unseen[:, :3])
