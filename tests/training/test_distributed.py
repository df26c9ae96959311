"""XGBoost on two workers: each sees half of the rows, and together they make the model of all."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops_ray.registry.metrics import mae
from mlops_ray.training import distributed, evaluate, sweep
from mlops_ray.training.families import Sample
from mlops_ray.training.leaderboard import Trial
from tests.training.made import task

BEST = Trial("0000", "xgboost", {"n_estimators": 30, "max_depth": 6}, 0.1, (0.1,), 1.0, "complete")
TRAINING = {"families": ["xgboost"], "metric": "rmse"}


def test_two_workers_are_as_good_as_one_and_count_every_row(ray_cluster: object, tmp_path: Path) -> None:
    import xgboost

    alone, shared = task(TRAINING), task({**TRAINING, "search": {"workers": 2}})
    held_out = alone.test.held_out
    errors, before = [], signal.getsignal(signal.SIGINT)
    for fitted in (
        evaluate.refit(alone, BEST.family, BEST.params, cpus=1),
        sweep.fit(shared, BEST.family, BEST.params, label_selector={}),
    ):
        predictions = fitted.predict(alone.frame[held_out])
        errors.append(mae(alone.labels[held_out], predictions, np.ones(len(held_out))))
        booster = xgboost.Booster(model_file=bytearray(fitted.model.to_bytes()))
        first = json.loads(booster.get_dump(dump_format="json", with_stats=True)[0])
        # Of a squared error each row has the weight 1; half of them saw each of the two.
        assert first["cover"] == len(alone.test.train)
    assert errors[1] == pytest.approx(errors[0], rel=0.02)
    assert errors[0] != errors[1]
    assert signal.getsignal(signal.SIGINT) is before


class Asked(Exception):  # noqa: N818 - it ends what Ray would begin
    """What Ray Train is asked for."""


def test_workers_are_asked_for_on_nodes_where_the_rows_may_be_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray.train.v2.xgboost import xgboost_trainer

    def trainer(*_: object, scaling_config: Any, **more: object) -> None:
        raise Asked(scaling_config.num_workers, scaling_config.label_selector)

    labels = {"region": "eu-de"}
    nodes = [{"Alive": True, "Labels": labels, "Resources": {"CPU": 4.0, "memory": 1e12}}]
    monkeypatch.setattr(xgboost_trainer, "XGBoostTrainer", trainer)
    monkeypatch.setattr(distributed.ray, "put", lambda part: part)
    monkeypatch.setattr(sweep.ray, "nodes", lambda: nodes)
    shared = task({**TRAINING, "search": {"workers": 2}})
    with pytest.raises(Asked) as asked:
        sweep.fit(shared, BEST.family, BEST.params, label_selector={"region": "in(eu-de)"})
    assert asked.value.args == (2, {"region": "in(eu-de)"})


def test_no_row_is_dealt_out_twice_or_lost_and_each_part_has_every_label() -> None:
    labels = np.array([0.0] * 97 + [1.0] * 4)
    sample = Sample(np.arange(101, dtype=np.float32)[:, None], labels, np.arange(101.0))
    parts = distributed.parts(sample, 4)
    assert sorted(np.concatenate([part.x[:, 0] for part in parts]).tolist()) == list(range(101))
    assert all((part.weights == part.x[:, 0]).all() for part in parts)
    assert [len(part.y) for part in parts] == [26, 25, 25, 25]
    assert all(part.y.sum() == 1 for part in parts)


def test_more_workers_are_taken_where_a_node_is_too_small_for_the_rows() -> None:
    asks = task(TRAINING)
    matrix_bytes = len(asks.test.train) * 3 * 4
    assert distributed.workers(asks, [matrix_bytes * 4.0, matrix_bytes * 4.0]) == 1
    assert distributed.workers(asks, [matrix_bytes * 2.0, matrix_bytes * 2.0]) == 2
    assert distributed.workers(asks, [matrix_bytes * 2.0]) == 1
    assert distributed.workers(task({**TRAINING, "search": {"workers": 3}}), [1e12]) == 3
