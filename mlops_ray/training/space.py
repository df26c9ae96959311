"""The space that a sweep searches, as plain data: for each family, for each parameter, what it may be."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mlops_ray.errors import TrainingError, did_you_mean


class Suggests(Protocol):
    """What Optuna's trial offers."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...
    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...
    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


@dataclass(frozen=True)
class Between:
    """A number from `low` to `high`, both inclusive; whole if both are; `default` is what is tried first."""

    low: float
    high: float
    default: float
    log: bool = False

    def suggest(self, trial: Suggests, name: str) -> float:
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)


@dataclass(frozen=True)
class OneOf:
    """One of a list; the first is the default."""

    choices: tuple[Any, ...]

    @property
    def default(self) -> Any:
        return self.choices[0]

    def suggest(self, trial: Suggests, name: str) -> Any:
        return trial.suggest_categorical(name, list(self.choices))


Space = Mapping[str, Between | OneOf]


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
    if isinstance(value, list):
        return OneOf(tuple(value))
    if not isinstance(value, Mapping):
        return OneOf((value,))
    if not {"min", "max"} <= set(value) <= {"min", "max", "log"} or value["min"] > value["max"]:
        raise TrainingError(
            f"training.search.space: {place} must be a value, a list, or e.g. {{min: 1, max: 9, log: true}}"
        )
    return Between(value["min"], value["max"], value["min"], bool(value.get("log", False)))


def suggest(trial: Suggests, spaces: Mapping[str, Space]) -> None:
    """Asks a trial for a family and then for that family's parameters alone, as `family/parameter`."""
    family = trial.suggest_categorical("family", list(spaces))
    for name, dimension in spaces[family].items():
        dimension.suggest(trial, f"{family}/{name}")


def defaults(spaces: Mapping[str, Space]) -> list[dict[str, Any]]:
    """Each family's default, in the names of `suggest`.

    >>> defaults({"ridge": {"alpha": Between(0.1, 10.0, 1.0)}})
    [{'family': 'ridge', 'ridge/alpha': 1.0}]
    """
    return [
        {"family": family} | {f"{family}/{name}": dimension.default for name, dimension in space.items()}
        for family, space in spaces.items()
    ]
