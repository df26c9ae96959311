"""The winner is tested once, on rows it never saw, beside forecasts that anyone could make."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from mlops_ray.config import Gate, Postprocess
from mlops_ray.training import evaluate
from mlops_ray.training.evaluate import Report
from tests.training.made import DAY, frame, task


def _oracle(shift: timedelta, data: pl.DataFrame, rows: list[tuple[str, datetime]]) -> list[float | None]:
    """Row by row, with a dictionary."""
    known = {(site, time): label for site, time, label in data.select("site", "time", "label").rows()}
    return [known.get((site, time - shift)) for site, time in rows]


def test_naive_forecasts_are_the_labels_a_season_and_a_horizon_before() -> None:
    data = frame().sample(fraction=0.9, seed=7).sort("time", "site")
    made = task(frame=data)
    rows = data[made.test.held_out].select("site", "time").rows()
    forecasts = evaluate.naive_forecasts(made)
    for name, days in (("last_season", 7), ("no_change", 1)):
        expected = [np.nan if v is None else v for v in _oracle(timedelta(days=days), data, rows)]
        assert np.array_equal(forecasts[name], expected, equal_nan=True)
        assert np.isnan(forecasts[name]).any()


def test_a_season_shorter_than_the_horizon_is_no_forecast() -> None:
    assert list(evaluate.naive_forecasts(task(season_us=DAY // 2))) == ["no_change"]


def test_without_season_and_horizon_the_median_is_the_forecast() -> None:
    made = task(season_us=None, horizon_us=0)
    forecasts = evaluate.naive_forecasts(made)
    assert list(forecasts) == ["median"]
    assert set(forecasts["median"]) == {np.median(made.labels[made.test.train])}


def test_a_change_of_the_test_labels_changes_no_model() -> None:
    made = task()
    later = pl.int_range(pl.len()).is_in(made.test.held_out.tolist())
    changed = task(frame=made.frame.with_columns(pl.when(later).then(-9.0).otherwise("label").alias("label")))
    fitted = [evaluate.refit(one, "ridge", {"alpha": 1.0}, cpus=1) for one in (made, changed)]
    assert fitted[0].model.to_bytes() == fitted[1].model.to_bytes()


def test_the_report_compares_on_the_same_rows() -> None:
    made = task(frame=frame().sample(fraction=0.9, seed=7).sort("time", "site"))
    report = evaluate.test(made, evaluate.refit(made, "xgboost", {"n_estimators": 40}, cpus=1))
    assert report.rows == len(made.test.held_out)
    for name, naive in report.baselines.items():
        assert naive["rows"] < report.rows
        assert report.beside[name]["mae"] < naive["mae"]
    assert report.metrics["relative_mae"] == pytest.approx(
        report.metrics["mae"] / np.abs(made.labels[made.test.held_out]).mean()
    )


def test_predictions_are_clipped_as_they_will_be_answered() -> None:
    made = task(postprocess=Postprocess(clip=(0.4, 0.5)))
    predictions = evaluate.refit(made, "ridge", {"alpha": 1.0}, cpus=1).predict(made, made.test.held_out)
    assert (predictions.min(), predictions.max()) == (0.4, 0.5)


def _report(own: float, naive: float) -> Report:
    return Report(9, {"mae": own}, {"no_change": {"mae": naive, "rows": 9}}, {"no_change": {"mae": own}})


def test_the_gate_wants_the_margin_over_every_rival() -> None:
    config = Gate(by=0.02)
    assert evaluate.gate(_report(0.97, 1.0), {"mae": 1.0}, config, "mae") == []
    assert evaluate.gate(_report(0.99, 1.0), None, config, "mae") == [
        "the winner's mae 0.99 is not 2.0% below that of the naive forecast 'no_change', 1"
    ]
    assert evaluate.gate(_report(0.5, 1.0), {"mae": 0.5}, config, "mae") == [
        "the winner's mae 0.5 is not 2.0% below that of the champion, 0.5"
    ]
    assert evaluate.gate(_report(0.5, 1.0), {"mae": 0.1}, Gate(better_than=("naive",)), "mae") == []
    assert evaluate.gate(_report(float("nan"), 1.0), None, config, "mae")
