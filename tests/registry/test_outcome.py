"""From a model's number to the answer, and through a file and back."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_ray.config import Postprocess, Project
from mlops_ray.errors import DataError, PackageError
from mlops_ray.expressions import SEARCH_PATH
from mlops_ray.registry import outcome as outcomes
from mlops_ray.registry import package as packages
from mlops_ray.registry.outcome import UNDO, Calibrator, Called, Outcome
from mlops_ray.registry.predictor import Predictor
from mlops_ray.training import evaluate
from tests.registry.made import requests, rows, write
from tests.serving.packages import PROJECT
from tests.training.made import classification, task

LINE = Calibrator((0.0, 0.5, 1.0), (0.0, 0.2, 1.0))


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(),
        Outcome(transform="log1p", clip=(0.0, None)),
        Outcome(calibrator=LINE, threshold=0.3, clip=(0.1, 0.9)),
        Outcome(threshold=0.3, function=Called("a.b", "digest"), labels=("stays", "goes")),
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


# ---------------------------------------------------------------- functions and labels

OWN = """
def halved(values):
    return values / 2

def short(values):
    return values[:-1]

def named(values):
    return values.cast(str)

def raises(values):
    raise KeyError("no such thing")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of the project's, beside its file."""
    (tmp_path / "own_answers.py").write_text(OWN)
    monkeypatch.setenv(SEARCH_PATH, str(tmp_path))
    yield "own_answers"
    sys.path.remove(str(tmp_path))
    del sys.modules["own_answers"]
    outcomes._function.cache_clear()


@given(values=st.lists(st.floats(-1e6, 1e6), max_size=40))
def test_a_function_answers_one_as_many_behind_the_calibration_and_before_the_bounds(
    values: list[float],
) -> None:
    outcome = Outcome(calibrator=LINE, function=Called.now("operator.neg"), clip=(-0.5, 0.0))
    raw = np.array(values)
    found = outcome.answers(raw)
    assert found.dtype == np.float64
    assert found.tolist() == np.clip(-LINE(raw), -0.5, 0.0).tolist()
    assert [outcome.answers(raw[at : at + 1])[0] for at in range(len(raw))] == found.tolist()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("short", "returned 1 values for 2 rows"),
        ("named", "returned values of type String, not numbers"),
        ("raises", "failed: KeyError: 'no such thing'"),
    ],
)
def test_a_function_that_does_not_answer_every_row_with_a_number_is_told(
    own: str, name: str, said: str
) -> None:
    with pytest.raises(DataError, match=f"the function {own}.{name} {said}"):
        Outcome(function=Called.now(f"{own}.{name}")).answers(np.array([1.0, 2.0]))


def test_a_package_s_function_is_called_only_where_the_operator_names_it_and_its_code_is_the_same(
    own: str, tmp_path: Path
) -> None:
    path = f"{own}.halved"
    plain = Predictor.load(write(tmp_path / "plain", outcome=Outcome()).folder, None)
    folder = write(tmp_path / "demo", outcome=Outcome(function=Called.now(path))).folder
    with pytest.raises(PackageError, match=f"calls '{path}', which the project file does not"):
        Predictor.load(folder, None)
    halved = Predictor.load(folder, None, functions=frozenset({path}))
    rows = requests(20)
    assert halved.predict(rows).values.tolist() == (plain.predict(rows).values / 2).tolist()
    (tmp_path / "own_answers.py").write_text(OWN.replace("/ 2", "/ 3"))
    with pytest.raises(PackageError, match="is not what the model of"):
        Predictor.load(folder, None, functions=frozenset({path}))


def test_where_mlflow_serves_a_package_its_environment_names_the_functions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "demo", outcome=Outcome(function=Called.now("operator.neg"))).folder
    with pytest.raises(PackageError, match=r"calls 'operator\.neg'"):
        packages._load_pyfunc(str(folder))
    monkeypatch.setenv(packages.TRUSTED_FUNCTIONS, "operator.neg")
    served = Predictor.load(folder, None, functions=frozenset({"operator.neg"}))
    frame = rows(20)
    found = packages._load_pyfunc(str(folder)).predict(frame.to_pandas())
    assert found.tolist() == served.predict_features(frame).tolist()


@pytest.mark.parametrize("labels", [["a"], ["a", "a"], ["a", ""], ["a", 1], "ab", ["a", "b", "c"]])
def test_labels_that_are_not_two_names_are_refused(labels: object) -> None:
    with pytest.raises(PackageError, match="two names that differ"):
        Outcome.from_json(Outcome().to_json() | {"labels": labels})


def test_what_the_project_file_says_of_answers_is_what_is_trained_and_packed() -> None:
    said = {"function": "operator.neg", "clip": [None, -0.4]}
    made = task(postprocess=Postprocess.model_validate(said))
    assert made.outcome == Outcome(function=Called.now("operator.neg"), clip=(None, -0.4))
    plain = evaluate.refit(task(), "ridge", {"alpha": 1.0}, cpus=1)
    fitted = evaluate.refit(made, "ridge", {"alpha": 1.0}, cpus=1)
    assert fitted.predict(made.frame).tolist() == np.minimum(-plain.predict(made.frame), -0.4).tolist()


def test_a_classification_s_threshold_is_that_of_its_answers_and_its_labels_are_kept() -> None:
    said = {"function": "operator.neg", "labels": ["low", "high"]}
    wish = {"imbalance": {"threshold": {"for": "f1"}}}
    made = classification(wish, postprocess=Postprocess.model_validate(said))
    outcome = evaluate.refit(made, "xgboost", {"n_estimators": 5}, cpus=1).outcome
    assert outcome.labels == ("low", "high")
    assert outcome.function == Called.now("operator.neg")
    assert outcome.threshold is not None
    assert outcome.threshold <= 0


@pytest.mark.parametrize(
    ("postprocess", "task", "said"),
    [
        ({"labels": ["a", "a"]}, "classification", "labels are two names that differ"),
        ({"labels": ["a", "b"]}, "regression", "target.task is regression"),
        ({"function": "halved"}, "regression", "String should match pattern"),
    ],
)
def test_a_project_file_that_says_what_cannot_be_is_refused(
    postprocess: dict[str, Any], task: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        Project.model_validate(
            PROJECT | {"target": PROJECT["target"] | {"task": task}, "serving": {"postprocess": postprocess}}  # type: ignore[operator]
        )


def test_the_function_of_answers_is_one_that_the_project_file_names() -> None:
    serving = {"postprocess": {"function": "operator.neg"}}
    assert Project.model_validate(PROJECT | {"serving": serving}).functions == {"operator.neg"}
