"""A family of the user's own: any estimator of scikit-learn, or a class beside the project file."""

import math
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops_ray.config import OwnFamily, Project
from mlops_ray.errors import ConfigError, MlopsError, PackageError, TrainingError
from mlops_ray.expressions import SEARCH_PATH
from mlops_ray.registry import estimator, models
from mlops_ray.registry.encoder import Matrix, Values
from mlops_ray.registry.models import Model
from mlops_ray.training import families, own
from mlops_ray.training.families import Family, How, Sample, TaskKind
from mlops_ray.training.space import narrowed
from tests.serving.packages import PROJECT

KD_TREE = {"sklearn.neighbors._kd_tree.KDTree", "sklearn.metrics._dist_metrics.EuclideanDistance64"}
TREE = {"sklearn.tree._tree.Tree"}
#: Estimators, and the types that they hold when they are fitted and that skops does not trust by itself.
REGRESSORS: dict[str, set[str]] = {
    "sklearn.neighbors.KNeighborsRegressor": KD_TREE,
    "sklearn.ensemble.GradientBoostingRegressor": TREE,
    "sklearn.linear_model.BayesianRidge": set(),
    "sklearn.neural_network.MLPRegressor": {"sklearn.neural_network._stochastic_optimizers.AdamOptimizer"},
    "sklearn.ensemble.ExtraTreesRegressor": TREE,
    "sklearn.kernel_ridge.KernelRidge": set(),
}
CLASSIFIERS: dict[str, set[str]] = {
    "sklearn.naive_bayes.GaussianNB": set(),
    "sklearn.neighbors.KNeighborsClassifier": KD_TREE,
    "sklearn.ensemble.GradientBoostingClassifier": TREE,
    "sklearn.discriminant_analysis.QuadraticDiscriminantAnalysis": set(),
}
ALL = REGRESSORS | CLASSIFIERS
#: What makes a fit slow, little.
FAST = {"n_estimators": 5, "max_iter": 20}


def _task(path: str) -> TaskKind:
    return "classification" if path in CLASSIFIERS else "regression"


def _data(task: TaskKind, seed: int = 7, count: int = 300) -> tuple[Matrix, Values]:
    """Rows as an encoder makes them, of which the labels can be learned."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(count, 7)).astype(np.float32)
    x[:, :3] = x[:, :3] > 0
    y = x[:, 0] + x[:, 4] + random.normal(scale=0.1, size=count)
    return x, (y > 0.5).astype(np.float64) if task == "classification" else y.astype(np.float64)


def _params(family: Family) -> dict[str, Any]:
    defaults = {name: dimension.default for name, dimension in family.space.items()}
    return defaults | {name: value for name, value in FAST.items() if name in defaults}


def _fit(path: str, params: Mapping[str, Any] | None = None, **changes: Any) -> Model:
    task = _task(path)
    family = own.find_own(OwnFamily(path=path))
    x, y = _data(task)
    how = {"metric": "mae", "seed": 7, "cpus": 1, "task": task} | changes
    return family.fit(Sample(x, y), _params(family) | dict(params or {}), How(**how))


@pytest.mark.parametrize("path", ALL)
def test_an_estimator_learns_and_answers_each_row_by_itself(path: str) -> None:
    model = _fit(path)
    x, y = _data(_task(path), seed=8, count=101)
    answers = model.predict(x)
    assert answers.tolist() == [model.predict(x[at : at + 1])[0] for at in range(len(x))]
    assert model.predict(x[::-1].copy()).tolist() == answers[::-1].tolist()
    assert (answers.dtype, model.predict(x[:0]).shape) == (np.float64, (0,))
    assert np.abs(answers - y).mean() < 0.7 * np.abs(np.median(y) - y).mean()
    if path in CLASSIFIERS:
        assert 0 <= answers.min() < 0.5 < answers.max() <= 1
    with pytest.raises(ValueError, match="reads 7 columns, not 6"):
        model.predict(x[:, :6])


@pytest.mark.parametrize("path", ALL)
def test_an_estimator_is_read_again_with_the_types_that_are_allowed_and_no_other_way(path: str) -> None:
    model = _fit(path)
    data = model.to_bytes()
    assert estimator.types_in(data) == ALL[path]
    read = models.load("estimator", data, frozenset(ALL[path]))
    x, _ = _data(_task(path), seed=8)
    assert read.predict(x).tolist() == model.predict(x).tolist()
    assert read.to_bytes() == data
    for missing in ALL[path]:
        with pytest.raises(PackageError, match=f"holds {missing}, which the project file does not allow"):
            models.load("estimator", data, frozenset(ALL[path] - {missing}))


@pytest.mark.parametrize("path", ALL)
def test_equal_arguments_give_the_same_file_and_other_cpus_the_same_answers(path: str) -> None:
    model = _fit(path)
    assert _fit(path).to_bytes() == model.to_bytes()
    x, _ = _data(_task(path), seed=8)
    # Linear algebra adds in another order.
    assert _fit(path, cpus=2).predict(x) == pytest.approx(model.predict(x), abs=1e-3)


def test_the_seed_is_the_sweeps() -> None:
    path = "sklearn.ensemble.ExtraTreesRegressor"
    assert _fit(path).to_bytes() != _fit(path, seed=8).to_bytes()


def test_the_project_file_says_what_is_searched_of_an_estimator() -> None:
    path = "sklearn.neighbors.KNeighborsRegressor"
    found = families.find([OwnFamily(path=path)], "regression")
    assert list(found) == ["KNeighborsRegressor"] == [family.name for family in found.values()]
    space = narrowed("KNeighborsRegressor", found["KNeighborsRegressor"].space, {"n_neighbors": [3, 9]})
    assert space["n_neighbors"].default == 3
    assert "n_jobs" not in space
    assert _fit(path, {"n_neighbors": 9}).to_bytes() != _fit(path, {"n_neighbors": 3}).to_bytes()
    with pytest.raises(TrainingError, match="has no parameter 'n_neighbours'; did you mean 'n_neighbors'"):
        narrowed("KNeighborsRegressor", space, {"n_neighbours": 3})
    for wrong in (
        [],
        {"min": 1},
        {"min": 0, "max": 9, "log": True},
        {"min": float("nan"), "max": 1.0},
        {"min": 1, "max": float("inf")},
        {"min": "a", "max": "b"},
        {"min": None, "max": 1},
        {"min": 9, "max": 1},
    ):
        with pytest.raises(TrainingError, match="must be a value, a list, or"):
            narrowed("KNeighborsRegressor", space, {"n_neighbors": wrong})


def test_weights_of_rows_count_where_the_estimator_takes_them_and_are_refused_elsewhere() -> None:
    x, y = _data("classification")
    how = How("log_loss", 7, 1, "classification")

    def answers(path: str, weights: Values | None) -> list[float]:
        family = own.find_own(OwnFamily(path=path))
        found: list[float] = family.fit(Sample(x, y, weights), _params(family), how).predict(x).tolist()
        return found

    weights = np.where(y == 1, 5.0, 1.0)
    path = "sklearn.naive_bayes.GaussianNB"
    assert sum(answers(path, weights)) > sum(answers(path, None))
    with pytest.raises(TrainingError, match="'KNeighborsClassifier' takes no weights of rows"):
        answers("sklearn.neighbors.KNeighborsClassifier", weights)


def test_labels_that_are_all_alike_are_learned_too() -> None:
    family = own.find_own(OwnFamily(path="sklearn.naive_bayes.GaussianNB"))
    x, y = _data("classification")
    model = family.fit(Sample(x, np.ones_like(y)), _params(family), How("log_loss", 7, 1, "classification"))
    assert model.predict(x[:2]).tolist() == [1.0, 1.0]


def test_is_fitted_on_shared_memory_that_nobody_may_write() -> None:
    family = own.find_own(OwnFamily(path="sklearn.ensemble.ExtraTreesRegressor"))
    x, y = _data("regression")
    x[5, 5] = np.nan
    before = family.fit(Sample(x, y), _params(family), How("mae", 7, 1)).to_bytes()
    x.flags.writeable = y.flags.writeable = False
    assert family.fit(Sample(x, y), _params(family), How("mae", 7, 1)).to_bytes() == before


#: What a user may keep beside the project file.
MODULE = '''
import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from mlops_ray.registry.models import LinearModel
from mlops_ray.training.space import Between

class Nearest(RegressorMixin, BaseEstimator):
    def __init__(self, shift=0.0):
        self.shift = shift

    def fit(self, x, y):
        self.middle_ = float(np.median(y))
        return self

    def predict(self, x):
        return np.full(len(x), self.middle_ + self.shift)

class Centred(Nearest):
    """Answers of the batch, not of the row."""
    def predict(self, x):
        return x[:, 4] - x[:, 4].mean()

class Lost(Nearest):
    def predict(self, x):
        return np.full(len(x), np.nan)

class Secretive(Nearest):
    """What skops cannot keep."""
    def fit(self, x, y):
        self.file_ = (step for step in x)
        return super().fit(x, y)

class Middle:
    tasks, devices, style = ("regression",), ("cpu",), "codes"
    space = {"share": Between(0.1, 0.9, 0.5)}

    def fit(self, sample, params, how):
        return LinearModel((0.0,) * sample.x.shape[1], float(np.quantile(sample.y, params["share"])))

class Half:
    space = {}

class Needs:
    def __init__(self, argument):
        pass

number = 5
'''


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module beside the project file; each test has its own."""
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.setenv(SEARCH_PATH, str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    return name


def test_an_estimator_beside_the_project_file_is_a_family_and_its_class_is_allowed(beside: str) -> None:
    model = _fit(f"{beside}.Nearest", {"shift": 1.0})
    _, y = _data("regression")
    assert model.predict(_data("regression")[0][:1]).tolist() == [np.median(y) + 1.0]
    training = {"families": ["ridge", {"path": f"{beside}.Nearest"}]}
    signing = {"trusted_types": "sklearn.tree._tree.Tree"}
    project = Project.model_validate(PROJECT | {"training": training, "signing": signing})
    allowed = estimator.allowed(project)
    assert allowed == {f"{beside}.Nearest", *TREE}
    assert models.load("estimator", model.to_bytes(), allowed).to_bytes() == model.to_bytes()


def test_other_code_is_another_family(beside: str, tmp_path: Path) -> None:
    """What was trained with it before is not taken for trained already."""
    training = Project.model_validate(
        PROJECT | {"training": {"families": [{"path": f"{beside}.Nearest"}]}}
    ).training
    before = own.code(training)
    assert own.code(training) == before == {f"{beside}.Nearest": before[f"{beside}.Nearest"]}
    (tmp_path / f"{beside}.py").write_text(MODULE + "# changed")
    assert own.code(training) != before


def _elsewhere(code: str, folder: Path, *arguments: str) -> str:
    """What a process says that knows of the project file's folder by the environment alone."""
    environ = os.environ | {SEARCH_PATH: str(folder)}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environ, cwd="/")
    return done.stdout


def test_a_replica_reads_what_lies_beside_the_project_file(beside: str, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(_fit(f"{beside}.Nearest").to_bytes())
    code = (
        "import pathlib, sys, numpy as np; from mlops_ray.registry import models;"
        "data = pathlib.Path(sys.argv[1]).read_bytes();"
        "print(models.load('estimator', data, frozenset({sys.argv[2]})).predict(np.ones((1, 7), 'f4'))[0])"
    )
    said = _elsewhere(code, tmp_path, str(tmp_path / "model"), f"{beside}.Nearest")
    assert float(said) == np.median(_data("regression")[1])


@pytest.mark.parametrize("name", ["Nearest", "Middle"])
def test_a_worker_fits_what_lies_beside_the_project_file(name: str, beside: str, tmp_path: Path) -> None:
    family = own.find_own(OwnFamily(path=f"{beside}.{name}"))
    (tmp_path / "family").write_bytes(pickle.dumps((family, _params(family))))
    code = (
        "import pathlib, pickle, sys, numpy as np; from mlops_ray.training.families import How, Sample;"
        "family, params = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes());"
        "x = np.ones((9, 2), 'f4');"
        "print(family.fit(Sample(x, np.arange(9.0)), params, How('mae', 7, 1)).predict(x[:1])[0])"
    )
    assert float(_elsewhere(code, tmp_path, str(tmp_path / "family"))) == 4.0


def test_a_class_may_be_a_family_whose_models_are_of_a_kind_that_is_known(beside: str) -> None:
    family = own.find_own(OwnFamily(path=f"{beside}.Middle"))
    assert (family.name, family.style) == ("Middle", "codes")
    x, y = _data("regression")
    model = family.fit(Sample(x, y), _params(family), How("mae", 7, 1))
    assert math.isclose(models.load(model.kind, model.to_bytes()).predict(x[:1])[0], np.quantile(y, 0.5))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Centred", "'Centred' does not answer each row by itself, with a number"),
        ("Lost", "'Lost' does not answer each row by itself, with a number"),
        ("Secretive", "a fitted Secretive cannot be kept: "),
    ],
)
def test_an_estimator_that_could_not_be_served_is_refused_when_it_is_fitted(
    name: str, says: str, beside: str
) -> None:
    with pytest.raises(TrainingError, match=says):
        _fit(f"{beside}.{name}")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("absent_module.Family", "the module of 'absent_module.Family' cannot be imported"),
        ("sklearn.neighbors.KNeighborsRegresor", "did you mean 'KNeighborsRegressor'?"),
        ("sklearn.linear_model.Perceptron", "gives no probabilities"),
        ("sklearn.ensemble.VotingRegressor", "cannot be made without arguments: .*'estimators'"),
        (
            "{beside}.Half",
            "neither a scikit-learn estimator nor a family: it lacks tasks, devices, style, fit",
        ),
        ("{beside}.Needs", "cannot be made without arguments"),
        ("{beside}.number", "has no function 'number'"),
        ("builtins.exit", "cannot be made without arguments"),
    ],
)
def test_a_path_that_leads_to_no_family_is_told_in_a_sentence(path: str, says: str, beside: str) -> None:
    with pytest.raises(MlopsError, match=says) as error:
        own.find_own(OwnFamily(path=path.format(beside=beside)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "keeps"),
    [
        ("sklearn.neighbors.KNeighborsRegressor", True),
        ("sklearn.svm.SVR", True),
        ("sklearn.cross_decomposition.PLSRegression", True),
        ("sklearn.linear_model.HuberRegressor", False),
        ("sklearn.ensemble.ExtraTreesRegressor", False),
    ],
)
def test_an_estimator_that_keeps_rows_is_refused_where_people_may_not_see_them(
    path: str, keeps: bool
) -> None:
    said = PROJECT | {
        "training": {"families": [{"path": path}]},
        "signing": {"trusted_types": sorted(KD_TREE | TREE)},
    }
    own.require_allowed(Project.model_validate(said))
    for policy in ({"machine_only": "load"}, {"curated": {"rows": 5}}):
        table = PROJECT["sources"]["table"] | {"policy": policy}  # type: ignore[index]
        hiding = Project.model_validate(said | {"sources": {"table": table}})
        with pytest.raises(ConfigError, match="keeps rows") if keeps else nullcontext():
            own.require_allowed(hiding)


@pytest.mark.parametrize("path", ALL)
def test_types_that_are_not_allowed_are_told_before_anything_is_trained(path: str) -> None:
    target = {**PROJECT["target"], "task": _task(path)}
    said = PROJECT | {"target": target, "training": {"families": [{"path": path}]}}
    trusting = said | {"signing": {"trusted_types": sorted(ALL[path])}}
    own.require_allowed(Project.model_validate(trusting))
    if ALL[path]:
        with pytest.raises(ConfigError) as error:
            own.require_allowed(Project.model_validate(said))
        assert f"signing: {{trusted_types: [{', '.join(sorted(ALL[path]))}]}}" in str(error.value)
