"""The model families: what each searches, and how it is fitted. One class a family, found by `FAMILIES`.

A fitted model is one of `registry.models`: fitting needs the family's library, answering may not.
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Protocol

import numpy as np

from mlops_ray.config import OwnFamily
from mlops_ray.errors import TrainingError, did_you_mean
from mlops_ray.registry.booster import patient_threads
from mlops_ray.registry.encoder import Matrix, Style
from mlops_ray.registry.models import ForestModel, LinearModel, Model, Values, XgboostModel
from mlops_ray.training.space import Between, OneOf, Space

#: Families that the project file may name and that later parts of the system bring.
PLANNED = ("elasticnet", "logistic", "hist_gradient_boosting", "mlp", "catboost", "lightgbm")


class Family(Protocol):
    """A kind of model that can be searched and fitted."""

    name: ClassVar[str]
    style: ClassVar[Style]
    space: ClassVar[Space]

    def fit(
        self, x: Matrix, y: Values, params: Mapping[str, Any], *, metric: str, seed: int, cpus: int
    ) -> Model:
        """The model of these parameters on an encoder's matrix and the labels, using so many threads.

        Equal arguments give equal models. `metric` is what will decide: a family that can, minimises it.
        """
        ...


class Ridge:
    """Least squares with a penalty on the squares of the coefficients."""

    name: ClassVar[str] = "ridge"
    style: ClassVar[Style] = "one_hot"
    space: ClassVar[Space] = {"alpha": Between(1e-2, 1e3, 1.0, log=True)}

    def fit(
        self, x: Matrix, y: Values, params: Mapping[str, Any], *, metric: str, seed: int, cpus: int
    ) -> LinearModel:
        from sklearn.linear_model import Ridge as Estimator

        return _linear(Estimator(**params, solver="cholesky").fit(x, y))


class Lasso:
    """Least squares with a penalty on the sizes of the coefficients, many of which become 0."""

    name: ClassVar[str] = "lasso"
    style: ClassVar[Style] = "one_hot"
    space: ClassVar[Space] = {"alpha": Between(1e-5, 1e-1, 1e-4, log=True)}

    #: Coordinate descent mostly ends after some tens of rounds; more buys digits that no prediction shows.
    MOST_ROUNDS: ClassVar[int] = 300
    TOLERANCE: ClassVar[float] = 1e-3

    def fit(
        self, x: Matrix, y: Values, params: Mapping[str, Any], *, metric: str, seed: int, cpus: int
    ) -> LinearModel:
        import warnings

        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import Lasso as Estimator

        estimator = Estimator(**params, precompute=True, max_iter=self.MOST_ROUNDS, tol=self.TOLERANCE)
        with warnings.catch_warnings():
            # A model that is not at its optimum is judged by its score like any other.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return _linear(estimator.fit(x, y.astype(x.dtype)))


class RandomForest:
    """The mean of trees, each grown on a random share of the rows."""

    name: ClassVar[str] = "random_forest"
    style: ClassVar[Style] = "codes"
    #: 40 trees are within 2 % of the error of 200 at a fifth of the time; each sees a third of the rows.
    space: ClassVar[Space] = {
        "n_estimators": OneOf((40,)),
        "max_samples": Between(0.1, 0.4, 0.3),
        "max_features": Between(0.4, 1.0, 0.7),
        "min_samples_leaf": Between(2, 30, 5, log=True),
    }

    def fit(
        self, x: Matrix, y: Values, params: Mapping[str, Any], *, metric: str, seed: int, cpus: int
    ) -> ForestModel:
        from sklearn.ensemble import RandomForestRegressor

        estimator = RandomForestRegressor(**params, random_state=seed, n_jobs=cpus).fit(x, y)
        return ForestModel.from_sklearn([tree.tree_ for tree in estimator.estimators_])


class Xgboost:
    """Gradient-boosted trees."""

    name: ClassVar[str] = "xgboost"
    style: ClassVar[Style] = "codes"
    space: ClassVar[Space] = {
        "n_estimators": Between(80, 160, 120),
        "max_depth": Between(7, 10, 10),
        "learning_rate": Between(0.06, 0.15, 0.1, log=True),
        # Rows in a leaf, where the error is absolute: each has the weight 1.
        "min_child_weight": Between(10.0, 60.0, 25.0, log=True),
        "subsample": Between(0.5, 1.0, 0.9),
        "colsample_bynode": Between(0.5, 1.0, 0.65),
        "max_bin": OneOf((64, 32, 128)),
    }

    #: What is minimised for what decides.
    OBJECTIVES: ClassVar[dict[str, str]] = {
        "mae": "reg:absoluteerror",
        "relative_mae": "reg:absoluteerror",
        "rmse": "reg:squarederror",
    }

    def fit(
        self, x: Matrix, y: Values, params: Mapping[str, Any], *, metric: str, seed: int, cpus: int
    ) -> XgboostModel:
        patient_threads()
        import xgboost

        own = dict(params)
        rounds = own.pop("n_estimators")
        fixed = {"objective": self.OBJECTIVES[metric], "tree_method": "hist", "nthread": cpus, "seed": seed}
        bins = {"max_bin": own["max_bin"]} if "max_bin" in own else {}
        data = xgboost.QuantileDMatrix(x, y, nthread=cpus, **bins)
        booster = xgboost.train({**own, **fixed}, data, num_boost_round=rounds)
        # As it will be read again: the answers of one and the other are then the same to the bit.
        return XgboostModel.from_bytes(bytes(booster.save_raw("ubj")))


_ALL: tuple[Family, ...] = (Ridge(), Lasso(), RandomForest(), Xgboost())
FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}


def find(wanted: Iterable[str | OwnFamily]) -> dict[str, Family]:
    """The families that the project file names, in its order.

    Raises `TrainingError` for one that is unknown.
    """
    found: dict[str, Family] = {}
    for name in wanted:
        if isinstance(name, OwnFamily):
            raise TrainingError(f"a model family of one's own ({name.path}) is not supported yet")
        if name in PLANNED:
            raise TrainingError(f"the model family {name!r} is not supported yet")
        if name not in FAMILIES:
            raise TrainingError(f"there is no model family {name!r}{did_you_mean(name, FAMILIES)}")
        found[name] = FAMILIES[name]
    return found


def _linear(estimator: Any) -> LinearModel:
    coefficients = np.asarray(estimator.coef_, np.float64)
    return LinearModel(tuple(coefficients.tolist()), float(estimator.intercept_))
