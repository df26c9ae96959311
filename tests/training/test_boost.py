"""XGBoost fitted through its C interface is what its Python package fits, to the byte, and without it."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from mlops_ray.training import boost

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3000, 6)).astype(np.float32)
X[RNG.random(X.shape) < 0.1] = np.nan
Y = np.nan_to_num(X[:, 0]) + np.nan_to_num(X[:, 1]) ** 2
SAMPLED = {"subsample": 0.8, "colsample_bynode": 0.7, "max_bin": 64, "max_depth": 6}


@pytest.mark.parametrize("weights", [None, RNG.random(len(Y)) + 0.5], ids=["alike", "weighted"])
@pytest.mark.parametrize("objective", ["reg:absoluteerror", "reg:squarederror", "binary:logistic"])
@pytest.mark.parametrize("more", [SAMPLED, {"learning_rate": 0.07}], ids=["sampled", "defaults"])
def test_the_model_is_that_of_the_python_package_to_the_byte(
    objective: str, weights: Any, more: dict[str, Any]
) -> None:
    import xgboost

    labels = (Y > 1).astype(np.float64) if objective.startswith("binary") else Y
    params = {**more, "objective": objective, "tree_method": "hist", "device": "cpu", "nthread": 1, "seed": 7}
    bins = {"max_bin": more["max_bin"]} if "max_bin" in more else {}
    data = xgboost.QuantileDMatrix(X, labels, weight=weights, nthread=1, **bins)
    expected = bytes(xgboost.train(params, data, num_boost_round=20).save_raw("ubj"))
    assert boost.fit(X, labels, weights, params, 20) == expected


def test_columns_in_another_order_of_memory_are_read_alike() -> None:
    params = {"nthread": 1, "seed": 7}
    expected = boost.fit(X, Y, None, params, 5)
    assert boost.fit(np.asfortranarray(X), Y, None, params, 5) == expected
    assert boost.fit(X.astype(np.float64), Y.astype(np.float32), None, params, 5) == expected


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"max_depth": "deep"}, "Invalid Parameter format for max_depth"),
        ({"objective": "x"}, "Unknown objective"),
    ],
)
def test_what_the_library_refuses_is_said(params: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        boost.fit(X, Y, None, {"nthread": 1, **params}, 2)


def test_a_fit_imports_neither_the_python_package_nor_what_it_brings() -> None:
    code = (
        "import sys, numpy as np; from mlops_ray.training.families import FAMILIES, How, Sample\n"
        "x = np.random.default_rng(0).random((99, 3), np.float32)\n"
        "how = How('mae', 7, 1, 'regression')\n"
        "FAMILIES['xgboost'].fit(Sample(x, x[:, 0].astype(float)), {'n_estimators': 2}, how)\n"
        "print([name for name in ('xgboost', 'sklearn', 'scipy', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
