"""The winner is tested once, on rows it never saw, beside forecasts that anyone could make."""

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from mlops_ray.config import Gate, Postprocess
from mlops_ray.registry import metrics
from mlops_ray.training import evaluate
from mlops_ray.training.evaluate import Report
from tests.training.made import DAY, classification, frame, task


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
    made = task({"families": ["xgboost"]}, frame=frame().sample(fraction=0.9, seed=7).sort("time", "site"))
    report = evaluate.test(made, evaluate.refit(made, "xgboost", {"n_estimators": 40}, cpus=1), None)
    assert report.rows == len(made.test.held_out)
    for name, naive in report.baselines.items():
        assert naive["rows"] < report.rows
        assert report.beside[name]["mae"] < naive["mae"]
    assert report.metrics["relative_mae"] == pytest.approx(
        report.metrics["mae"] / np.abs(made.labels[made.test.held_out]).mean()
    )


def test_predictions_are_clipped_as_they_will_be_answered() -> None:
    made = task(postprocess=Postprocess(clip=(0.4, 0.5)))
    predictions = evaluate.refit(made, "ridge", {"alpha": 1.0}, cpus=1).predict(made.frame)
    assert (predictions.min(), predictions.max()) == (0.4, 0.5)


def _report(own: float, name: str = "mae", **rivals: float) -> Report:
    baselines = {rival: {name: value, "rows": 9.0} for rival, value in rivals.items()}
    return Report(9, {name: own}, baselines, {rival: {name: own} for rival in rivals}, {}, {})


def _gate(report: Report, metric: str = "mae", **config: Any) -> list[str]:
    return evaluate.gate(report, Gate(**{"by": 0.02} | config), metrics.METRICS[metric])


def test_the_gate_wants_the_margin_over_every_rival() -> None:
    assert _gate(_report(0.97, no_change=1.0, champion=1.0)) == []
    assert _gate(_report(0.99, no_change=1.0)) == [
        "the winner's mae 0.99 is not 2.0% below that of the naive forecast 'no_change', 1"
    ]
    assert _gate(_report(0.5, no_change=1.0, champion=0.5)) == [
        "the winner's mae 0.5 is not 2.0% below that of the champion, 0.5"
    ]
    assert _gate(_report(0.5, no_change=1.0, champion=0.1), better_than=("naive",)) == []
    assert _gate(_report(float("nan"), no_change=1.0))


def test_who_is_as_good_as_a_guess_is_refused_without_a_margin_too() -> None:
    assert _gate(_report(1.0, no_change=1.0), by=0.0)
    assert _gate(_report(0.99, no_change=1.0, champion=0.99), by=0.0) == []


def test_where_more_is_better_the_margin_is_of_what_is_missing() -> None:
    assert _gate(_report(0.43, "average_precision", prevalence=0.4), "average_precision") == []
    assert _gate(_report(0.41, "average_precision", prevalence=0.4), "average_precision") == [
        "the winner's average_precision 0.41 is not 2.0% of the way to 1 above that of the naive forecast "
        "'prevalence', 0.4"
    ]


def test_the_champion_is_compared_on_the_same_rows_with_the_interval_of_the_lead() -> None:
    made = task()
    fitted = evaluate.refit(made, "ridge", {"alpha": 1.0}, cpus=1)
    rows = made.test.held_out
    worse = fitted.predict(made.frame[rows]) + 0.1
    report = evaluate.test(made, fitted, worse)
    assert report.baselines["champion"]["mae"] == pytest.approx(np.abs(worse - made.labels[rows]).mean())
    assert report.beside["champion"] == {name: report.metrics[name] for name in report.beside["champion"]}
    low, high = report.leads["champion"]
    assert 0 < low < report.baselines["champion"]["mae"] - report.metrics["mae"] < high
    for name, (low, high) in report.intervals.items():
        assert low < report.metrics[name] < high


def test_a_transformed_label_is_learned_and_answered_in_its_own_unit() -> None:
    made = task({"families": ["ridge"]}, transform="log1p", frame=frame().with_columns(pl.col("label").exp()))
    fitted = evaluate.refit(made, "ridge", {"alpha": 1.0}, cpus=1)
    assert fitted.outcome.transform == "log1p"
    report = evaluate.test(made, fitted, None)
    assert report.metrics["mae"] < report.baselines["no_change"]["mae"]


# ---------------------------------------------------------------- classification


@pytest.mark.parametrize("family", ["logistic", "xgboost"])
def test_a_classification_is_weighted_calibrated_and_decided(family: str) -> None:
    imbalance = {"weights": {"positive": 8.0}, "threshold": {"for": {"recall": 0.9}}}
    made = classification({"families": [family], "imbalance": imbalance})
    params = {"n_estimators": 40} if family == "xgboost" else {"C": 1.0}
    fitted = evaluate.refit(made, family, params, cpus=1)
    report = evaluate.test(made, fitted, None)
    raw = fitted.model.predict(fitted.encoder.transform(made.frame[made.test.held_out]))
    labels, answers = made.labels[made.test.held_out], fitted.predict(made.frame[made.test.held_out])
    ece = metrics.METRICS["calibration_error"]
    # Weights said too much; what is answered does not.
    assert ece(labels, raw) > 0.04
    assert report.metrics["calibration_error"] < 0.04
    assert report.metrics["average_precision"] > 2 * report.baselines["prevalence"]["average_precision"]
    assert report.metrics["recall"] >= 0.85
    yes = answers >= (fitted.outcome.threshold or 0)
    assert report.metrics["recall"] == metrics.decided(labels, yes, np.ones(len(labels)))["recall"]


def test_what_a_decision_costs_is_reported_where_costs_are_given() -> None:
    wish = {"threshold": {"for": {"cost": [[0, 1], [5, 0]]}}}
    made = classification({"families": ["logistic"], "imbalance": wish})
    report = evaluate.test(made, evaluate.refit(made, "logistic", {"C": 1.0}, cpus=1), None)
    assert report.intervals["cost"][0] < report.metrics["cost"] < report.intervals["cost"][1]


def test_a_change_of_the_test_labels_changes_no_calibration_and_no_threshold() -> None:
    made = classification({"families": ["logistic"], "imbalance": {"threshold": {"for": "f1"}}})
    later = pl.int_range(pl.len()).is_in(made.test.held_out.tolist())
    turned = made.frame.with_columns(
        pl.when(later).then(1 - pl.col("label")).otherwise("label").alias("label")
    )
    changed = classification(
        {"families": ["logistic"], "imbalance": {"threshold": {"for": "f1"}}}, frame=turned
    )
    fitted = [evaluate.refit(one, "logistic", {"C": 1.0}, cpus=1) for one in (made, changed)]
    assert fitted[0].outcome == fitted[1].outcome
