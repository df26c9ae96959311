"""A user's own family, by the dotted path of its class: a `Family`, or a scikit-learn estimator."""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlops_ray.config import OwnFamily, Project, Training
from mlops_ray.errors import ConfigError, TrainingError, one_line
from mlops_ray.expressions import function_digest
from mlops_ray.registry import estimator
from mlops_ray.registry.encoder import Matrix, Style
from mlops_ray.registry.estimator import BLOCK, EstimatorModel
from mlops_ray.registry.models import Model
from mlops_ray.training import families
from mlops_ray.training.families import CPU, Device, Family, How, Params, Sample, TaskKind
from mlops_ray.training.space import OneOf, Space

#: What a class must have to be a family, and what an estimator.
FAMILY = ("tasks", "devices", "style", "space", "fit")
ESTIMATOR = ("get_params", "set_params", "fit", "predict")
#: Parameters that the sweep sets, or that say nothing of the model.
NOT_SEARCHED = ("random_state", "n_jobs", "verbose")
#: What a package's JSON keeps of parameters.
PLAIN = (bool, int, float, str, type(None))
#: Made-up rows, enough for every estimator of scikit-learn to be fitted as on many. Nothing else in one is of
#: this number: neither nodes of a tree, which are odd, nor what is usual for layers and bins.
TRIED_ROWS = 74


@dataclass(frozen=True)
class PathFamily:
    """A class that is a family itself; each worker imports it, also from beside the project file."""

    path: str
    tasks: tuple[TaskKind, ...]
    devices: tuple[Device, ...]
    style: Style
    space: Space

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    def fit(self, sample: Sample, params: Params, how: How) -> Model:
        model: Model = estimator.load_class(self.path)().fit(sample, params, how)
        return model


class EstimatorFamily(PathFamily):
    """A scikit-learn estimator class; its space holds its defaults, which the project file may replace."""

    @property
    def takes_weights(self) -> bool:
        """Whether rows can be weighted."""
        from sklearn.utils.validation import has_fit_parameter

        return bool(has_fit_parameter(estimator.load_class(self.path), "sample_weight"))

    def fit(self, sample: Sample, params: Params, how: How) -> Model:
        if constant := families.constant_label(sample, how):
            return constant
        from threadpoolctl import threadpool_limits

        fitted = estimator.load_class(self.path)(**params)
        known = fitted.get_params(deep=False)
        fixed = {"random_state": how.seed, "n_jobs": how.cpus}
        fitted.set_params(**{name: value for name, value in fixed.items() if name in known})
        weights = {} if sample.weights is None else {"sample_weight": sample.weights}
        if weights and not self.takes_weights:
            raise TrainingError(f"the model family {self.name!r} takes no weights of rows; leave them out")
        # A forest's look for missing values stops at shared memory, which nobody may write.
        x = np.require(sample.x, requirements="W")
        y = sample.y.astype(np.int64) if how.classifies else sample.y
        with threadpool_limits(how.cpus), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted.fit(x, y, **weights)
        # A replica answers on one thread, and trees' answers are added in the order of the threads.
        fitted.set_params(**{name: None for name in known if name == "n_jobs"})
        model = EstimatorModel.of(fitted)
        _require_row_by_row(self.name, model, x)
        return model


def find_own(own: OwnFamily) -> Family:
    """The family whose class stands at a dotted path, which may lie beside the project file.

    Raises `ConfigError` where there is none, `TrainingError` for a class that is neither a family nor an
    estimator that answers as one.
    """
    found = estimator.load_class(own.path)
    try:
        made = found()
    except (Exception, SystemExit) as error:
        # The class is the user's: making it may raise anything.
        raise TrainingError(f"{own.path} cannot be made without arguments: {one_line(error)}") from error
    if all(hasattr(made, name) for name in ESTIMATOR):
        return _estimator_family(own.path, made)
    if missing := ", ".join(name for name in FAMILY if not hasattr(made, name)):
        raise TrainingError(
            f"{own.path} is neither a scikit-learn estimator nor a family: it lacks {missing}"
        )
    return PathFamily(own.path, made.tasks, made.devices, made.style, made.space)


def code(training: Training) -> dict[str, str]:
    """What stands for the code of each of one's own families, by its path: another code is another model."""
    return {o.path: function_digest(o.path) for o in training.families if isinstance(o, OwnFamily)}


def _estimator_family(path: str, made: Any) -> EstimatorFamily:
    from sklearn.base import ClassifierMixin

    classifies = hasattr(made, "predict_proba")
    if isinstance(made, ClassifierMixin) and not classifies:
        raise TrainingError(f"{path} gives no probabilities (predict_proba); take a class that does")
    space = {
        name: OneOf((value,))
        for name, value in made.get_params(deep=False).items()
        if name not in NOT_SEARCHED and isinstance(value, PLAIN) and value != math.inf
    }
    tasks: tuple[TaskKind, ...] = ("classification",) if classifies else ("regression",)
    return EstimatorFamily(path, tasks, CPU, getattr(made, "style", "one_hot"), space)


def _require_row_by_row(name: str, model: EstimatorModel, x: Matrix) -> None:
    """Raises `TrainingError` where rows are answered otherwise side by side, or with what is no number."""
    rows = x[:BLOCK]
    together = model.predict(rows)
    alone = [model.predict(rows[at : at + 1])[0] for at in range(len(rows))]
    # What is no number equals nothing.
    if together.tolist() != alone:
        raise TrainingError(f"the model family {name!r} does not answer each row by itself, with a number")


def require_allowed(project: Project) -> None:
    """Raises `ConfigError` for an estimator that could not be read again, before anything is spent on it.

    So it does for one that keeps rows, where people may not see all of them. Each of one's own families is
    fitted with its defaults on made-up rows.
    """
    task, allowed = project.target.task, estimator.allowed(project)
    x = np.random.default_rng(0).random((TRIED_ROWS, 3), np.float32)
    y = (np.round(x[:, 0]) if task == "classification" else x[:, 0]).astype(np.float64)
    own = [family for family in project.training.families if isinstance(family, OwnFamily)]
    for name, family in families.find(own, task).items():
        params = {key: dimension.default for key, dimension in family.space.items()}
        try:
            data = family.fit(Sample(x, y), params, How("", 0, 1, task)).to_bytes()
            found, keeps = estimator.types_in(data), estimator.keeps_rows(data, x)
        except Exception:  # noqa: BLE001, S112 - it is no estimator, or fails on these rows alone
            continue
        if keeps and any(policy.restricts for policy in project.policies):
            raise ConfigError(
                f"a fitted {name} keeps rows that it was fitted on, and its package would tell what the"
                " policy of a source hides; take a family that keeps none",
                at=("training", "families"),
            )
        if unknown := ", ".join(sorted(found - allowed)):
            raise ConfigError(
                f"a fitted {name} holds types that are not allowed; if you trust those who sign, write"
                f" signing: {{trusted_types: [{unknown}]}}",
                at=("training", "families"),
            )
