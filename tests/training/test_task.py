"""Wrong use is answered with one sentence, before anything is spent on it."""

from datetime import timedelta
from typing import Any

import pytest

from mlops_ray.config import Postprocess
from mlops_ray.errors import TrainingError
from mlops_ray.training import sweep
from tests.training.made import START, frame, task


@pytest.mark.parametrize(
    ("training", "changes", "sentence"),
    [
        ({"metric": "r2"}, {}, "there is no metric 'r2'.*known here: mae, relative_mae, rmse"),
        ({"metrics": ["rsme"]}, {}, "there is no metric 'rsme'.*did you mean 'rmse'"),
        ({"families": ["rigde"]}, {}, "there is no model family 'rigde'; did you mean 'ridge'"),
        ({"families": ["logistic"]}, {}, "'logistic' is not supported yet"),
        ({"families": [{"path": "my.Model"}]}, {}, r"own \(my.Model\) is not supported yet"),
        ({"imbalance": {}}, {}, "training.imbalance is not supported yet"),
        ({"validation": {"group": "site"}}, {}, "training.validation.group is not supported yet"),
        ({"validation": {"by": "random"}}, {}, "training.validation.by: random is not supported yet"),
        ({"search": {"resources": {"gpu": 1}}}, {}, "training.search.resources.gpu is not supported yet"),
        ({}, {"kind": "classification"}, "target.task: classification is not supported yet"),
        ({}, {"postprocess": Postprocess(function="f")}, "serving.postprocess.function is not supported yet"),
        ({}, {"frame": frame()[:99]}, "has 99 rows, fewer than training.minimum_rows: 100"),
    ],
)
def test_what_cannot_be_learned_is_refused(
    training: dict[str, Any], changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(TrainingError, match=sentence):
        task(training, **changes)


def test_an_empty_test_part_and_folds_that_do_not_fit_are_named() -> None:
    with pytest.raises(TrainingError, match="the test part is empty"):
        _ = task(test_from=START + timedelta(days=100)).test
    with pytest.raises(TrainingError, match="no row is left to train on"):
        _ = task(test_from=START).test
    with pytest.raises(TrainingError, match="fold 1 of 3 does not fit before the test part: it has 0 rows"):
        _ = task(test_from=START + timedelta(days=2)).folds


@pytest.mark.parametrize(
    ("search", "sentence"),
    [
        ({"trials": 1}, "trials is 1, fewer than the 2 families"),
        ({"space": {"xgboost": {}}}, "'xgboost' is none of training.families"),
        ({"space": {"ridge": {"alhpa": 1}}}, "ridge has no parameter 'alhpa'; did you mean 'alpha'"),
        ({"space": {"ridge": {"alpha": {"min": 2, "max": 1}}}}, "ridge.alpha must be a value, a list, or"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_it_begins(
    search: dict[str, Any], sentence: str, tmp_path: Any
) -> None:
    wrong = task({"families": ["ridge", "lasso"], "search": {"trials": 4, **search}})
    with pytest.raises(TrainingError, match=sentence):
        sweep.run(wrong, folder=tmp_path / "sweep", label_selector={})


def test_the_gap_is_horizon_and_label_delay() -> None:
    made = task(label_delay_us=3_600_000_000)
    assert made.gap_us == made.horizon_us + 3_600_000_000
    assert made.times[made.test.train].max() + made.gap_us <= made.times[made.test.held_out].min()


def test_nothing_of_the_test_part_is_in_a_fold() -> None:
    made = task()
    held_out = set(made.test.held_out)
    for part in made.folds:
        assert not held_out & (set(part.train) | set(part.held_out))
