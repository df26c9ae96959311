"""The space that a sweep searches, as plain data: for each family, for each parameter, what it may be."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlops_ray.errors import TrainingError, did_you_mean

if TYPE_CHECKING:
    from optuna.trial import Trial


@dataclass(frozen=True)
class Between:
    """A number from `low` to `high`, both inclusive; whole if both are; `default` is what is tried first."""

    low: float
    high: float
    default: float
    log: bool = False

    def has(self, value: Any) -> bool:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not self.low <= value <= self.high:
            return False
        return isinstance(value, int) or not self.is_whole

    @property
    def is_whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def suggest(self, trial: "Trial", name: str) -> float:
        if self.is_whole:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)


@dataclass(frozen=True)
class OneOf:
    """One of a list; the first is the default."""

    choices: tuple[Any, ...]

    @property
    def default(self) -> Any:
        return self.choices[0]

    def has(self, value: Any) -> bool:
        return value in self.choices

    def suggest(self, trial: "Trial", name: str) -> Any:
        return trial.suggest_categorical(name, list(self.choices))


Space = Mapping[str, Between | OneOf]
#: A family and parameters of it.
Point = tuple[str, Mapping[str, Any]]


def narrowed(family: str, space: Space, given: Mapping[str, Any]) -> dict[str, Between | OneOf]:
    """The space with what the project file gives for a family in place of the default.

    A parameter is given as a value (then it is fixed), a list, or `{min: 1, max: 9, log: true}`. Raises
    `TrainingError` for a parameter that the family does not have.

    >>> narrowed("ridge", {"alpha": Between(0.1, 10.0, 1.0)}, {"alpha": {"min": 2.0, "max": 4.0}})
    {'alpha': Between(low=2.0, high=4.0, default=2.0, log=False)}
    """
    for name in given:
        if name not in space:
            raise TrainingError(
                f"training.search.space: {family} has no parameter {name!r}{did_you_mean(name, space)}"
            )
    return {**space, **{name: _dimension(f"{family}.{name}", value) for name, value in given.items()}}


def _dimension(place: str, value: Any) -> Between | OneOf:
    if not isinstance(value, Mapping | list):
        return OneOf((value,))
    if isinstance(value, list) and value:
        return OneOf(tuple(value))
    if isinstance(value, Mapping) and {"min", "max"} <= set(value) <= {"min", "max", "log"}:
        low, high, log = value["min"], value["max"], bool(value.get("log", False))
        # A bool is a number too, and what is none is in no order.
        if {type(low), type(high)} <= {int, float} and (0 if log else -math.inf) < low <= high < math.inf:
            return Between(low, high, low, log)
    raise TrainingError(
        f"training.search.space: {place} must be a value, a list, or e.g. {{min: 1, max: 9, log: true}}; "
        "the ends are numbers, with log above 0"
    )


def suggest(trial: "Trial", spaces: Mapping[str, Space]) -> Point:
    """Asks a trial for a family and then for that family's parameters alone, as `family/parameter`."""
    family = trial.suggest_categorical("family", list(spaces))
    return family, {
        name: dimension.suggest(trial, f"{family}/{name}") for name, dimension in spaces[family].items()
    }


def first(spaces: Mapping[str, Space], start: Iterable[Point] = ()) -> list[dict[str, Any]]:
    """What is tried first, in the names of `suggest`: each family's default, then what of `start` can be.

    >>> spaces = {"ridge": {"alpha": Between(0.1, 10.0, 1.0)}}
    >>> first(spaces, [("ridge", {"alpha": 2.0}), ("ridge", {"alpha": 20.0}), ("lasso", {"alpha": 2.0})])
    [{'family': 'ridge', 'ridge/alpha': 1.0}, {'family': 'ridge', 'ridge/alpha': 2.0}]
    """
    points: list[Point] = [(family, {}) for family in spaces]
    points += [(family, params) for family, params in start if _is_in(spaces.get(family, {}), params)]
    found = []
    for family, params in points:
        values = {name: params.get(name, dimension.default) for name, dimension in spaces[family].items()}
        point = {"family": family} | {f"{family}/{name}": value for name, value in values.items()}
        if point not in found:
            found.append(point)
    return found


def _is_in(space: Space, params: Mapping[str, Any]) -> bool:
    return bool(params) and all(name in space and space[name].has(value) for name, value in params.items())
