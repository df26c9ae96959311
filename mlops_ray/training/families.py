"""The model families: what each searches, and how it is fitted. They are found by `FAMILIES`.

A fitted model is one of `registry.models`: fitting needs the family's library, answering may not.
"""

import importlib
import importlib.util
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import orjson

from mlops_ray.config import OwnFamily
from mlops_ray.errors import TrainingError, did_you_mean
from mlops_ray.registry.booster import patient_threads
from mlops_ray.registry.boosters import MISSING_CODE, MOST_CODES
from mlops_ray.registry.encoder import Matrix, Style
from mlops_ray.registry.models import (
    BoostedModel,
    CatboostModel,
    ForestModel,
    LightgbmModel,
    LinearModel,
    Model,
    NetworkModel,
    Values,
    XgboostModel,
)
from mlops_ray.registry.outcome import TaskKind as TaskKind
from mlops_ray.training import boost
from mlops_ray.training.space import Between, OneOf, Space

#: Families whose library comes with an extra of this package of the same name.
EXTRAS = ("lightgbm", "catboost")
#: What decides, and which of a library's losses minimises it.
ABSOLUTE = ("mae", "relative_mae")

#: Of trees that grow leaf by leaf: an answer takes as many steps as the deepest tree. 63 leaves come to 20;
#: 10 cost half the time and no accuracy on the example.
DEPTH = Between(6, 14, 10)

Params = Mapping[str, Any]
#: The columns of a matrix that are a category's position (`Encoder.discrete`).
Codes = Sequence[int]
#: What a library computes on; "cuda" is the first GPU that the process sees.
Device = Literal["cpu", "cuda"]
BOTH: tuple[TaskKind, ...] = ("regression", "classification")
CPU: tuple[Device, ...] = ("cpu",)
CPU_OR_GPU: tuple[Device, ...] = ("cpu", "cuda")


@dataclass(frozen=True)
class Sample:
    """What a model is fitted on.

    `x` is an encoder's matrix (rows × columns), `y` the labels, which are 0 and 1 for a classification,
    `weights` how much each row counts, `None` where all count alike; `discrete` as in `Encoder.discrete`: a
    family that can, takes those columns as names.
    """

    x: Matrix
    y: Values
    weights: Values | None = None
    discrete: Codes = ()


@dataclass(frozen=True)
class How:
    """How a model is fitted: for which metric, which a family that can, minimises, and with what.

    A classification minimises log loss, whatever the metric. A family that cannot compute on the device
    computes on the CPU.
    """

    metric: str
    seed: int
    cpus: int
    task: TaskKind = "regression"
    device: Device = "cpu"

    @property
    def classifies(self) -> bool:
        return self.task == "classification"


class Family(Protocol):
    """A kind of model that can be searched and fitted: for which tasks, and on what it can compute."""

    @property
    def name(self) -> str: ...
    @property
    def tasks(self) -> tuple[TaskKind, ...]: ...
    @property
    def devices(self) -> tuple[Device, ...]: ...
    @property
    def style(self) -> Style: ...
    @property
    def space(self) -> Space: ...

    def fit(self, sample: Sample, params: Params, how: How) -> Model:
        """The model of these parameters; equal arguments give equal models.

        A classification's model answers with the probability of the label 1. Raises `TrainingError` where the
        family's library is not installed.
        """
        ...


@dataclass(frozen=True)
class Linear:
    """A sum of the columns with a penalty, fitted by scikit-learn's class `estimator`, `fixed` arguments."""

    name: str
    space: Space
    estimator: str
    fixed: Params
    tasks: tuple[TaskKind, ...] = ("regression",)
    devices: tuple[Device, ...] = CPU
    style: Style = "one_hot"

    def fit(self, sample: Sample, params: Params, how: How) -> Model:
        if constant := constant_label(sample, how):
            return constant
        import warnings

        from sklearn import linear_model
        from sklearn.exceptions import ConvergenceWarning
        from threadpoolctl import threadpool_limits

        estimator = getattr(linear_model, self.estimator)(**params, **self.fixed)
        with threadpool_limits(how.cpus), warnings.catch_warnings():
            # A model that is not at its optimum is judged by its score like any other.
            warnings.simplefilter("ignore", ConvergenceWarning)
            estimator.fit(sample.x, sample.y.astype(sample.x.dtype), sample_weight=sample.weights)
        # A classifier has one row of them.
        coefficients = np.asarray(estimator.coef_, np.float64).ravel()
        intercept = float(np.asarray(estimator.intercept_).item())
        weights = np.ones(len(sample.x)) if sample.weights is None else sample.weights
        # Not `numpy.average`, which makes a float64 matrix of all rows on the way.
        means = np.einsum("ij,i->j", sample.x, weights) / weights.sum()
        return LinearModel(tuple(coefficients.tolist()), intercept, how.classifies, tuple(means.tolist()))


#: Coordinate descent mostly ends after some tens of rounds; more buys digits that no prediction shows.
DESCENT = {"precompute": True, "max_iter": 300, "tol": 1e-3}
#: A penalty on the squares of the coefficients; on their sizes, so that many become 0; and on both.
RIDGE = Linear("ridge", {"alpha": Between(1e-2, 1e3, 1.0, log=True)}, "Ridge", {"solver": "cholesky"})
LASSO = Linear("lasso", {"alpha": Between(1e-5, 1e-1, 1e-4, log=True)}, "Lasso", DESCENT)
ELASTIC_NET = Linear(
    "elasticnet",
    {"alpha": Between(1e-5, 1e-1, 2e-4, log=True), "l1_ratio": Between(0.05, 0.95, 0.5)},
    "ElasticNet",
    DESCENT,
)
#: `C` is the inverse of the penalty on the squares of the coefficients.
LOGISTIC = Linear(
    "logistic",
    {"C": Between(1e-4, 1e2, 1.0, log=True)},
    "LogisticRegression",
    {"max_iter": 300},
    tasks=("classification",),
)


class Usual:
    """What most families are: for both tasks, on a CPU, of names as their codes."""

    tasks: ClassVar[tuple[TaskKind, ...]] = BOTH
    devices: ClassVar[tuple[Device, ...]] = CPU
    style: ClassVar[Style] = "codes"


class RandomForest(Usual):
    """The mean of trees, each grown on a random share of the rows."""

    name: ClassVar[str] = "random_forest"
    #: 40 trees are within 2 % of the error of 200 at a fifth of the time; each sees a third of the rows.
    space: ClassVar[Space] = {
        "n_estimators": OneOf((40,)),
        "max_samples": Between(0.1, 0.4, 0.3),
        "max_features": Between(0.4, 1.0, 0.7),
        "min_samples_leaf": Between(2, 30, 5, log=True),
    }

    def fit(self, sample: Sample, params: Params, how: How) -> ForestModel:
        if constant := constant_label(sample, how):
            return constant
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

        given = {**params, "random_state": how.seed, "n_jobs": how.cpus}
        estimator = (
            RandomForestClassifier(**given, criterion="log_loss")
            if how.classifies
            else RandomForestRegressor(**given)
        )
        # Each tree draws a share of the sum of the weights, which is to be a share of the rows.
        weights = None if sample.weights is None else sample.weights / sample.weights.mean()
        # Its look for missing values stops at shared memory, which nobody may write.
        estimator.fit(np.require(sample.x, requirements="W"), sample.y, weights)
        return ForestModel.from_sklearn([tree.tree_ for tree in estimator.estimators_])


class HistGradientBoosting(Usual):
    """Gradient-boosted trees, scikit-learn's."""

    name: ClassVar[str] = "hist_gradient_boosting"
    space: ClassVar[Space] = {
        "max_iter": Between(80, 200, 150),
        "max_leaf_nodes": Between(15, 127, 63, log=True),
        "max_depth": DEPTH,
        "learning_rate": Between(0.04, 0.2, 0.1, log=True),
        "min_samples_leaf": Between(5, 60, 20, log=True),
        "max_features": Between(0.4, 1.0, 0.7),
        "l2_regularization": Between(1e-3, 10.0, 0.1, log=True),
    }

    def fit(self, sample: Sample, params: Params, how: How) -> Model:
        if constant := constant_label(sample, how):
            return constant
        patient_threads()
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
        from threadpoolctl import threadpool_limits

        x, native = sample.x, _named(sample)
        loss = "absolute_error" if how.metric in ABSOLUTE else "squared_error"
        given = {
            **params,
            "categorical_features": native or None,
            "early_stopping": False,
            "random_state": how.seed,
        }
        estimator = (
            HistGradientBoostingClassifier(**given)
            if how.classifies
            else HistGradientBoostingRegressor(**given, loss=loss)
        )
        with threadpool_limits(how.cpus):
            # A column of which nothing is known would be refused; one that never changes is not asked.
            known = np.where(np.isnan(x).all(axis=0), np.float32(0), x)
            estimator.fit(known, sample.y, sample.weights)
        return BoostedModel.from_sklearn(estimator, native)


class Mlp(Usual):
    """A multilayer perceptron."""

    name: ClassVar[str] = "mlp"
    style: ClassVar[Style] = "one_hot"
    space: ClassVar[Space] = {
        "units": OneOf((64, 32, 128)),
        "layers": OneOf((2, 1)),
        "alpha": Between(1e-6, 1e-1, 1e-4, log=True),
        "learning_rate_init": Between(5e-4, 1e-2, 2e-3, log=True),
        "batch_size": OneOf((256, 128)),
    }

    #: Fitting ends when 6 rounds over the rows brought nothing on the tenth that is held back; few reach 60.
    FIXED: ClassVar[Params] = {"n_iter_no_change": 6, "max_iter": 60}

    def fit(self, sample: Sample, params: Params, how: How) -> Model:
        if constant := constant_label(sample, how):
            return constant
        import warnings

        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPRegressor
        from threadpoolctl import threadpool_limits

        own, y = dict(params), sample.y
        shape = (own.pop("units"),) * own.pop("layers")
        own["batch_size"] = max(1, min(own["batch_size"], len(sample.x) * 9 // 10))
        # The part that is held back needs two rows, and both parts a row of each label.
        rarest = np.bincount(y.astype(np.int64)).min() if how.classifies else len(y)
        own["early_stopping"] = len(y) > 10 and bool(rarest > 1)
        own |= {**self.FIXED, "random_state": how.seed, "hidden_layer_sizes": shape}
        center, scale = (0.0, 1.0) if how.classifies else (float(y.mean()), float(y.std()))
        estimator = _network_classifier(own) if how.classifies else MLPRegressor(**own)
        # BLAS adds in an order that depends on the number of its threads; for these sizes one is fastest.
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            target = ((y - center) / (scale or 1.0)).astype(sample.x.dtype)
            estimator.fit(sample.x, target, sample.weights)
        return NetworkModel.from_sklearn(estimator, center=center, scale=scale)


class Xgboost(Usual):
    """Gradient-boosted trees."""

    name: ClassVar[str] = "xgboost"
    devices: ClassVar[tuple[Device, ...]] = CPU_OR_GPU
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

    def fit(self, sample: Sample, params: Params, how: How) -> Model:
        if constant := constant_label(sample, how):
            return constant
        own = dict(params)
        rounds = own.pop("n_estimators")
        fixed = {
            "objective": "binary:logistic" if how.classifies else self.OBJECTIVES[how.metric],
            "tree_method": "hist",
            "device": how.device,
            "nthread": how.cpus,
            "seed": how.seed,
        }
        # As it will be read again: the answers of one and the other are then the same to the bit.
        return XgboostModel.from_bytes(
            boost.fit(sample.x, sample.y, sample.weights, {**own, **fixed}, rounds)
        )


class Lightgbm(Usual):
    """Gradient-boosted trees that grow leaf by leaf."""

    name: ClassVar[str] = "lightgbm"
    space: ClassVar[Space] = {
        "n_estimators": Between(80, 200, 150),
        "num_leaves": Between(15, 127, 63, log=True),
        "max_depth": DEPTH,
        "learning_rate": Between(0.04, 0.2, 0.1, log=True),
        "min_data_in_leaf": Between(5, 60, 20, log=True),
        "feature_fraction_bynode": Between(0.4, 1.0, 0.7),
        "bagging_fraction": Between(0.5, 1.0, 0.9),
        "lambda_l2": Between(1e-3, 10.0, 0.1, log=True),
    }

    #: Equal arguments give equal models only so.
    FIXED: ClassVar[Params] = {
        "deterministic": True,
        "force_row_wise": True,
        "bagging_freq": 1,
        "verbosity": -1,
    }

    def fit(self, sample: Sample, params: Params, how: How) -> Model:
        if constant := constant_label(sample, how):
            return constant
        patient_threads()
        lightgbm = _library(self.name)
        own = dict(params)
        rounds = own.pop("n_estimators")
        objective = "regression_l1" if how.metric in ABSOLUTE else "regression"
        own |= {**self.FIXED, "num_threads": how.cpus, "seed": how.seed}
        own["objective"] = "binary" if how.classifies else objective
        data = lightgbm.Dataset(
            sample.x, sample.y, weight=sample.weights, categorical_feature=_named(sample), params=own
        )
        booster = lightgbm.train(own, data, num_boost_round=rounds)
        return LightgbmModel.from_bytes(booster.model_to_string().encode())


class Catboost(Usual):
    """Gradient-boosted symmetric trees.

    A split asks for one category. Counting the labels of each, CatBoost's other way, took five times as long
    on the example's 20,000 rows for a larger error (0.0480 to 0.0454).
    """

    name: ClassVar[str] = "catboost"
    devices: ClassVar[tuple[Device, ...]] = CPU_OR_GPU
    space: ClassVar[Space] = {
        "iterations": Between(100, 300, 200),
        "depth": Between(5, 8, 7),
        "learning_rate": Between(0.05, 0.3, 0.15, log=True),
        "l2_leaf_reg": Between(0.5, 10.0, 3.0, log=True),
        "border_count": OneOf((64, 128, 32)),
    }

    FIXED: ClassVar[Params] = {
        "one_hot_max_size": MOST_CODES,
        "allow_writing_files": False,
        "logging_level": "Silent",
    }

    def fit(self, sample: Sample, params: Params, how: How) -> Model:
        catboost = _library(self.name)
        import pandas as pd

        x, y = sample.x, sample.y
        if not any(len(np.unique(values)) > 1 for values in x.T) or len(np.unique(y)) == 1:
            # CatBoost stops where there is nothing to learn.
            return ForestModel.constant(_middle(sample, how))
        native = _named(sample)
        frame = pd.DataFrame(x)
        frame = frame.fillna(dict.fromkeys(native, MISSING_CODE)).astype(dict.fromkeys(native, np.int64))
        pool = catboost.Pool(frame, y, cat_features=native, weight=sample.weights, thread_count=how.cpus)
        loss = "MAE" if how.metric in ABSOLUTE else "RMSE"
        own = {**params, **self.FIXED, "loss_function": "Logloss" if how.classifies else loss}
        if own["loss_function"] == "MAE" and sample.weights is not None:
            # Its default, the exact median of a leaf, takes no notice of weights.
            own["leaf_estimation_method"] = "Gradient"
        own |= {"task_type": "GPU", "devices": "0"} if how.device == "cuda" else {}
        model = catboost.CatBoost({**own, "thread_count": how.cpus, "random_seed": how.seed}).fit(pool)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, CatboostModel.file)
            model.save_model(str(file), format="json", pool=pool)
            return CatboostModel.from_bytes(_without_stamps(file.read_bytes()))


_ALL: tuple[Family, ...] = (
    RIDGE,
    LASSO,
    ELASTIC_NET,
    LOGISTIC,
    RandomForest(),
    HistGradientBoosting(),
    Mlp(),
    Xgboost(),
    Lightgbm(),
    Catboost(),
)
FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}

#: What is searched otherwise for log loss, which small leaves of one label, sure of themselves, make large.
#: Where 1.4 % of 5,000 rows were positive, three of these were worse by their defaults for regression than a
#: constant (0.087 to 0.094 to its 0.066; now 0.056 to 0.063). XGBoost's `min_child_weight` is of this kind.
LOG_LOSS: dict[str, Space] = {
    "random_forest": {"min_samples_leaf": Between(5, 200, 30, log=True)},
    "hist_gradient_boosting": {"l2_regularization": Between(1.0, 100.0, 30.0, log=True)},
    "lightgbm": {"min_sum_hessian_in_leaf": Between(1.0, 60.0, 15.0, log=True)},
    "catboost": {"l2_leaf_reg": Between(3.0, 100.0, 20.0, log=True)},
}


def space(family: Family, task: TaskKind) -> Space:
    """What a search tries of a family for a task."""
    return {**family.space, **(LOG_LOSS.get(family.name, {}) if task == "classification" else {})}


def find(wanted: Iterable[str | OwnFamily], task: TaskKind) -> dict[str, Family]:
    """The families that the project file names, in its order; one's own by the last part of its path.

    Raises `TrainingError` for one that is unknown, whose library is not installed, or that is for another
    task.
    """
    found: dict[str, Family] = {}
    for each in wanted:
        if isinstance(each, OwnFamily):
            from mlops_ray.training import own

            name, family = each.path.rpartition(".")[2], own.find_own(each)
        else:
            name, family = each, _known(each)
        if task not in family.tasks:
            does, use = ("numbers", "logistic") if task == "classification" else ("classes", "ridge")
            raise TrainingError(
                f"the model family {name!r} predicts {does}; target.task is {task}: use e.g. {use}"
            )
        if name in found:
            raise TrainingError(f"training.families names {name!r} twice")
        found[name] = family
    return found


def _known(name: str) -> Family:
    if name not in FAMILIES:
        raise TrainingError(f"there is no model family {name!r}{did_you_mean(name, FAMILIES)}")
    if name in EXTRAS and importlib.util.find_spec(name) is None:
        raise _not_installed(name)
    return FAMILIES[name]


def _named(sample: Sample) -> list[int]:
    """The columns of which something is known and whose codes fit into a small set."""
    x = sample.x
    return [
        at
        for at in sample.discrete
        if 0 <= np.max(x[:, at], initial=-1, where=~np.isnan(x[:, at])) < MOST_CODES
    ]


def _library(name: str) -> Any:
    """The library of a family in `EXTRAS`: imported where it fits, and nowhere else."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise _not_installed(name) from error


def _not_installed(name: str) -> TrainingError:
    return TrainingError(
        f"the model family {name!r} needs a library that is not installed: pip install 'mlops_ray[{name}]'"
    )


def constant_label(sample: Sample, how: How) -> ForestModel | None:
    """The model of a classification whose rows all have one label, which most libraries refuse to fit."""
    is_constant = how.classifies and len(np.unique(sample.y)) == 1
    return ForestModel.constant(float(sample.y[0])) if is_constant else None


def _middle(sample: Sample, how: How) -> float:
    """The one answer that is best for all rows."""
    if how.metric in ABSOLUTE and not how.classifies:
        return float(np.quantile(sample.y, 0.5, weights=sample.weights, method="inverted_cdf"))
    return float(np.average(sample.y, weights=sample.weights))


def _network_classifier(arguments: Params) -> Any:
    """scikit-learn's, which judges the rows that are held back by log loss.

    It judges by accuracy, which stays the same for many rounds where one label is rare.
    """
    from sklearn.neural_network import MLPClassifier

    from mlops_ray.registry.metrics import log_loss

    class Network(MLPClassifier):  # type: ignore[misc]
        def _score(self, x: Matrix, y: Values, sample_weight: Values | None = None) -> float:
            probabilities = self._forward_pass_fast(x, check_input=False)[:, 0].astype(np.float64)
            return -log_loss(y, probabilities, np.ones(len(y)) if sample_weight is None else sample_weight)

    return Network(**arguments)


def _without_stamps(data: bytes) -> bytes:
    """CatBoost's file without what differs between equal fits: when it was made, and a random name."""
    read = orjson.loads(data)
    stamps = ("model_guid", "train_finish_time")
    read["model_info"] = {name: value for name, value in read["model_info"].items() if name not in stamps}
    return orjson.dumps(read)
