"""Wrong use is answered with one sentence, before anything is spent on it."""

from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from mlops_ray.errors import TrainingError
from mlops_ray.training import sweep
from tests.training.made import DAY, START, classification, frame, task

#: One label too low for a logarithm.
LOW = (
    frame()
    .with_columns(pl.col("label").clip(0.001))
    .with_columns(label=pl.when(pl.int_range(pl.len()) == 5).then(-1.0).otherwise("label"))
)


@pytest.mark.parametrize(
    ("training", "changes", "sentence"),
    [
        ({"metric": "r2"}, {}, "there is no metric 'r2'.*known here: mae, relative_mae, rmse"),
        ({"metrics": ["rsme"]}, {}, "there is no metric 'rsme'.*did you mean 'rmse'"),
        ({"families": ["rigde"]}, {}, "there is no model family 'rigde'; did you mean 'ridge'"),
        ({"families": ["logistic"]}, {}, "'logistic' .*target.task is regression"),
        ({"imbalance": {}}, {}, "training.imbalance is for a classification"),
        ({}, {"transform": "log", "frame": LOW}, "log needs labels above 0; 1 of 2880 are not"),
        ({"metric": "roc_auc"}, {}, "there is no metric 'roc_auc' for a regression"),
        ({}, {"frame": frame()[:99]}, "has 99 rows, fewer than training.minimum_rows: 100"),
    ],
)
def test_what_cannot_be_learned_is_refused(
    training: dict[str, Any], changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(TrainingError, match=sentence):
        task(training, **changes)


@pytest.mark.parametrize(
    ("training", "changes", "sentence"),
    [
        ({"families": ["ridge"]}, {}, "'ridge' .*target.task is classification"),
        ({"metric": "mae"}, {}, "there is no metric 'mae' for a classification"),
        ({"metric": "f1"}, {}, "f1 takes a threshold"),
        ({}, {"transform": "log"}, "target.transform is for a regression"),
        ({}, {"frame": frame()}, "not yes or no: name its positive class as target.positive"),
        ({"imbalance": {"minimum_rows": 577}}, {}, "the positive class has 576 of 2880 rows, fewer than"),
        ({}, {"frame": frame().with_columns(label=pl.lit(1.0))}, "the negative class has 0 of 2880 rows"),
    ],
)
def test_a_classification_that_cannot_be_learned_is_refused(
    training: dict[str, Any], changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(TrainingError, match=sentence):
        classification(training, **changes)


def test_a_group_that_no_column_has_is_named() -> None:
    with pytest.raises(TrainingError, match=r"validation\.group: the training set has no column 'patient'"):
        _ = task({"validation": {"group": "patient"}}).folds


def test_weights_balance_the_classes_of_the_rows_that_are_learned_from() -> None:
    made = classification({"imbalance": {"weights": "balanced"}})
    rows = made.folds[0].train
    _, sample = made.encoded(rows, "codes")
    assert sample.weights is not None
    assert sample.weights[sample.y > 0].sum() == pytest.approx(sample.weights[sample.y == 0].sum())
    assert sample.weights.sum() == pytest.approx(len(rows))
    given = classification({"imbalance": {"weights": {"positive": 3.0}}}).encoded(rows, "codes")[1].weights
    assert given is not None
    assert set(given[sample.y > 0]) == {3.0}
    assert set(given[sample.y == 0]) == {1.0}


def test_a_block_is_a_group_else_a_stretch_of_time_else_a_row() -> None:
    rows = np.arange(0, 2880, 7)
    by_site = task({"validation": {"group": "site"}}).blocks(rows)
    assert len(set(by_site)) == 2
    by_time = task().blocks(rows)
    times = task().times[rows]
    assert all(np.ptp(times[by_time == block]) <= 3 * DAY for block in set(by_time))
    assert 20 <= len(set(by_time)) <= 21
    assert len(set(task({"validation": {"by": "random"}}).blocks(rows))) == len(rows)


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
