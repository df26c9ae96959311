"""What a difference is said to be: a fault of the data is named as such, a world that moved is not."""

import numpy as np
import polars as pl
import pytest

from mlops_ray.data import counts
from mlops_ray.monitoring.attribution import Sight, sight
from mlops_ray.schema import Column

RANDOM = np.random.default_rng(7)
LOAD = RANDOM.gamma(3.0, 2.0, 20_000)
SITE = RANDOM.choice(["north", "south", "east"], 20_000, p=[0.6, 0.3, 0.1])
LATER = RANDOM.gamma(3.0, 2.0, 1_000)
LATER_SITE = RANDOM.choice(["north", "south", "east"], 1_000, p=[0.6, 0.3, 0.1])


def seen(reference: np.ndarray, current: list | np.ndarray, kind: str) -> Sight:  # type: ignore[type-arg]
    made = counts.reference(pl.DataFrame({"x": reference}), [Column("x", kind)], 7)  # type: ignore[arg-type]
    spec, cells = made.by_name["x"]
    values = current if isinstance(current, np.ndarray) and kind == "float" else None
    return sight(spec, cells, spec.count(pl.Series(current)), values)


@pytest.mark.parametrize(
    ("current", "said"),
    [
        (np.where(RANDOM.random(1_000) < 0.2, np.nan, LATER), "of x are missing"),
        (np.zeros(1_000), "it stands still"),
        (np.full(1_000, 6.0), "it stands still"),
        (1_000 * LATER, "times 1000: another unit?"),
        (900 * LATER, "above"),
        (LATER / 1_000, "times 0.001: another unit?"),
        (LATER - 40, "below"),
        (3.6 * LATER, "times 3.6: another unit?"),
        (1.8 * LATER + 32, "times 1.8 and 32: another unit?"),
    ],
)
def test_faults_of_numbers_are_named(current: np.ndarray, said: str) -> None:
    found = seen(LOAD, current, "float")
    assert found.kind == "data"
    assert said in found.evidence


@pytest.mark.parametrize(
    ("current", "said"),
    [
        ([None if at % 5 == 0 else site for at, site in enumerate(LATER_SITE)], "of x are missing"),
        ([site[0].upper() for site in LATER_SITE], "of categories that the reference hardly has"),
        ([{"north": "east", "east": "north"}.get(site, site) for site in LATER_SITE], "changed places"),
        (["east"] * 1_000, "it stands still"),
    ],
)
def test_faults_of_categories_are_named(current: list[str], said: str) -> None:
    found = seen(SITE, current, "category")
    assert found.kind == "data"
    assert said in found.evidence


@pytest.mark.parametrize("current", [LATER + 1.0, 0.7 * LATER, 1.5 * LATER, LATER[LATER < 5]])
def test_numbers_that_moved_are_no_fault(current: np.ndarray) -> None:
    found = seen(LOAD, current, "float")
    assert found.kind == "input"
    assert "x is" in found.evidence


def test_categories_that_became_commoner_are_no_fault() -> None:
    current = RANDOM.choice(["north", "south", "east"], 1_000, p=[0.4, 0.3, 0.3])
    assert seen(SITE, current, "category").kind == "input"
