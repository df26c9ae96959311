"""From a model's number to the answer, and through a file and back."""

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_ray.errors import PackageError
from mlops_ray.registry.outcome import UNDO, Calibrator, Outcome

LINE = Calibrator((0.0, 0.5, 1.0), (0.0, 0.2, 1.0))


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(),
        Outcome(transform="log1p", clip=(0.0, None)),
        Outcome(calibrator=LINE, threshold=0.3, clip=(0.1, 0.9)),
    ],
)
def test_comes_back_from_json(outcome: Outcome) -> None:
    assert Outcome.from_json(orjson.loads(orjson.dumps(outcome.to_json()))) == outcome


@pytest.mark.parametrize("name", ["log", "log1p"])
@given(values=st.lists(st.floats(0.01, 1e6), min_size=1, max_size=40))
def test_a_transform_is_undone_alike_for_one_and_for_many(name: str, values: list[float]) -> None:
    labels = np.array(values)
    done = {"log": np.log, "log1p": np.log1p}[name](labels)
    outcome = Outcome(transform=name)  # type: ignore[arg-type]
    assert outcome.answers(done) == pytest.approx(labels, rel=1e-9)
    assert [outcome.answers(done[at : at + 1])[0] for at in range(len(done))] == outcome.answers(
        done
    ).tolist()


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_calibration_keeps_the_order_and_answers_one_as_many(values: list[float]) -> None:
    said = np.sort(np.array(values))
    meant = LINE(said)
    assert (np.diff(meant) >= 0).all()
    assert [LINE(said[at : at + 1])[0] for at in range(len(said))] == meant.tolist()


@pytest.mark.parametrize(
    ("said", "meant"),
    [((0.0,), (0.0,)), ((0.0, 1.0), (1.0, 0.0)), ((0.0, 1.0), (0.0,)), ((0.0, float("nan")), (0.0, 1.0))],
)
def test_a_calibration_that_is_no_rising_line_is_refused(said: tuple[float], meant: tuple[float]) -> None:
    with pytest.raises(PackageError, match="no rising line"):
        Calibrator(said, meant)


def test_a_transform_that_is_not_known_is_refused() -> None:
    with pytest.raises(PackageError, match="'system'"):
        Outcome.from_json(Outcome().to_json() | {"transform": "system"})
    assert set(UNDO) == {"log", "log1p"}
