"""Models as plain data: what their own library says is what they say, and a strange file is refused."""

import io

import numpy as np
import pytest

from mlops_ray.errors import PackageError
from mlops_ray.registry import models
from mlops_ray.registry.encoder import Matrix
from mlops_ray.registry.models import NODE, ForestModel


def _matrix(rows: int, seed: int = 7) -> Matrix:
    random = np.random.default_rng(seed)
    matrix = random.random((rows, 4)).astype(np.float32)
    matrix[random.random(matrix.shape) < 0.1] = np.nan
    return matrix


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


@pytest.mark.parametrize(
    ("kind", "data"),
    [
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
