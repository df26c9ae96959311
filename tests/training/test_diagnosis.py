"""What is said of a test part agrees with a plain count of its rows, and is said of enough of them."""

import itertools
import json
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from mlops_ray.registry import metrics
from mlops_ray.schema import INSTANT
from mlops_ray.training import diagnosis
from mlops_ray.training.diagnosis import HeldOut, diagnose

N = 1500
RNG = np.random.default_rng(3)
X, NOISE = RNG.normal(size=N), RNG.normal(size=N)
HOURS = np.arange(N, dtype=np.int64) * 3_600_000_000
FRAME = pl.DataFrame(
    {
        "x": X,
        "noise": NOISE,
        "unused": RNG.normal(size=N),
        "site": RNG.choice(["a", "b", "rare"], N, p=[0.6, 0.39, 0.01]),
        "hour": np.arange(N) % 24,
        "secret": RNG.choice(["canary-1", "canary-2"], N),
        "name": [f"row-{row}" for row in range(N)],
    }
).with_columns(pl.when(pl.col("x") < 1.5).then("site").alias("site"))


def predict(frame: pl.DataFrame) -> Any:
    return frame["x"].to_numpy() + 0.1 * frame["noise"].to_numpy()


def chance(frame: pl.DataFrame) -> Any:
    return np.round(1 / (1 + np.exp(-predict(frame))), 2)


def regression(**changes: Any) -> HeldOut:
    labels = X + np.random.default_rng(11).normal(scale=0.2, size=N)
    given = {"labels": labels, "predictions": predict(FRAME), "metric": metrics.find("mae", "regression")}
    return HeldOut(
        **{"frame": FRAME, "times": HOURS, "blocks": np.arange(N) // 24, "seed": 7, **given, **changes}
    )


def classification(**changes: Any) -> HeldOut:
    labels = (np.random.default_rng(12).random(N) < chance(FRAME)).astype(float)
    metric = metrics.find("average_precision", "classification")
    return regression(labels=labels, predictions=chance(FRAME), metric=metric, **changes)


def test_curves_are_those_of_scikit_learn() -> None:
    held = classification()
    found = diagnosis.curves(held.labels, held.predictions)
    false, true, _ = reference.roc_curve(held.labels, held.predictions, drop_intermediate=False)
    assert np.allclose(found["roc"], np.column_stack([false, true]))
    precision, recall, _ = reference.precision_recall_curve(held.labels, held.predictions)
    # It ends with a point that no threshold gives.
    assert np.allclose(found["precision_recall"], np.column_stack([recall, precision])[-2::-1])
    area = np.trapezoid([y for _, y in found["roc"]], [x for x, _ in found["roc"]])
    assert area == pytest.approx(metrics.METRICS["roc_auc"](held.labels, held.predictions))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), min_size=1, max_size=60))
def test_curves_of_any_rows_rise_to_all_of_them(rows: list[tuple[bool, int]]) -> None:
    labels, answers = (np.array([row[side] for row in rows], float) for side in (0, 1))
    found = diagnosis.curves(labels, answers)
    assert all(0 <= value <= 1 for points in found.values() for point in points for value in point)
    assert (np.diff(np.array(found["roc"]), axis=0) >= 0).all()
    assert found["roc"][-1] == (float(not labels.all()), float(labels.any()))


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    answers, others = np.random.default_rng(13).random((2, 5000))
    points = diagnosis.curves((answers > others).astype(float), answers)["roc"]
    assert (len(points), points[0], points[-1]) == (201, (0.0, 0.0), (1.0, 1.0))


def test_calibration_by_bins_adds_up_to_the_calibration_error() -> None:
    held = classification(least=1)
    bins = diagnose(held, chance, ["x", "noise"]).by_answer
    assert len(bins) == 10
    assert sum(each.rows for each in bins) == N
    gaps = sum(each.rows * abs(each.value - each.at) for each in bins) / N
    assert gaps == pytest.approx(metrics.METRICS["calibration_error"](held.labels, held.predictions))


def test_residuals_are_labels_less_answers() -> None:
    held = regression(labels=predict(FRAME) + 1.0, least=1)
    found = diagnose(held, predict, ["x", "noise"])
    assert [each.value for each in found.by_answer] == pytest.approx([1.0] * 10)
    edges, rows = zip(*found.curves["residuals"], strict=True)
    assert sum(rows) == N
    assert edges[0] < 1.0 < edges[-1]


def test_a_histogram_counts_every_row_and_is_not_stretched_by_a_far_one() -> None:
    points = diagnosis.histogram(np.append(np.random.default_rng(14).normal(size=9999), 1e9))
    assert sum(rows for _, rows in points) == 10_000
    assert points[-1][0] < 5


def test_a_cell_of_fewer_rows_than_may_be_told_of_is_empty() -> None:
    values = np.append(np.zeros(50), np.ones(9))
    assert [rows for _, rows in diagnosis.histogram(values, 10) if rows] == [50]
    held = regression(labels=predict(FRAME) + np.arange(N), fewest=10**6)
    assert not any(rows for _, rows in diagnose(held, predict, ["x", "noise"]).curves["residuals"])


def test_a_curve_begins_where_rows_enough_are_told_of() -> None:
    held = classification(fewest=100)
    found = diagnosis.curves(held.labels, held.predictions, held.fewest)
    whole = diagnosis.curves(held.labels, held.predictions)
    assert diagnose(held, chance, ["x", "noise"]).curves == found
    assert set(found["roc"]) - {(0.0, 0.0)} < set(whole["roc"])
    assert (
        found["precision_recall"][0][0] * held.labels.sum()
        > 30
        > whole["precision_recall"][0][0] * held.labels.sum()
    )
    assert diagnosis.curves(held.labels, held.predictions, 10**6)["roc"] == [(0.0, 0.0), (1.0, 1.0)]


def test_importance_is_what_shuffling_costs() -> None:
    found = {each.at: each for each in diagnosis.importance(regression(), predict, ["unused", "noise", "x"])}
    assert max(found, key=lambda name: found[name].value) == next(iter(found)) == "x"
    assert (found["unused"].value, found["unused"].low, found["unused"].high) == (0, 0, 0)
    assert found["x"].low <= found["x"].value <= found["x"].high
    # Two independent normals differ by 2/sqrt(pi) on average; the model's own error hardly counts beside.
    assert found["x"].value == pytest.approx(2 / np.sqrt(np.pi) - 0.18, abs=0.1)


def test_importance_of_what_is_better_when_higher_is_positive_too() -> None:
    found = diagnosis.importance(classification(), chance, ["x", "noise", "unused"])
    assert found[0].at == "x"
    assert found[0].value > 0.1


def test_importance_is_the_same_again_and_asks_for_a_bounded_number_of_rows() -> None:
    asked: list[int] = []

    def counted(frame: pl.DataFrame) -> Any:
        asked.append(frame.height)
        return predict(frame)

    held, many = regression(), [f"c{number}" for number in range(200)]
    wide = FRAME.with_columns(pl.lit(0).alias(name) for name in many)
    names = ["x", "noise", *many]
    first = diagnosis.importance(regression(frame=wide, labels=held.labels), counted, names)
    assert max(asked) * len(names) <= diagnosis.MOST_SHUFFLED
    assert 1 + len(names) <= len(asked) <= 1 + diagnosis.MOST_SHUFFLES
    assert first == diagnosis.importance(regression(frame=wide, labels=held.labels), predict, names)


def test_a_segment_is_the_metric_of_its_rows() -> None:
    held = regression()
    found = diagnose(held, predict, ["x", "noise", "site", "hour"], segments=["name", "absent"]).segments
    rows = FRAME.with_columns(error=np.abs(held.labels - held.predictions))
    for column, figures in found.items():
        for figure in figures:
            if figure.at == diagnosis.OTHERS:
                continue
            value = None if figure.at == diagnosis.MISSING else figure.at
            own = rows.filter(pl.col(column).cast(pl.String).eq_missing(pl.lit(value)))
            assert (figure.rows, figure.value) == (own.height, pytest.approx(own["error"].mean()))
            assert figure.low <= figure.value <= figure.high
    assert list(found) == ["name", "site", "hour"]
    # What is rare, and a name of each row, is said together or not at all.
    assert [each.at for each in found["site"]] == ["a", "b", diagnosis.MISSING]
    assert [each.at for each in found["hour"]] == [str(hour) for hour in range(24)]
    assert [(each.at, each.rows) for each in found["name"]] == [(diagnosis.OTHERS, N - diagnosis.MOST_VALUES)]


def test_hidden_columns_are_not_cut_by_and_no_value_of_them_is_said() -> None:
    found = diagnose(
        regression(), predict, ["x", "noise", "secret"], segments=["secret"], hidden=frozenset({"secret"})
    )
    assert found.segments == {}
    assert "secret" in [each.at for each in found.importance]
    assert "canary" not in json.dumps(found.to_json())


def test_nothing_is_said_of_fewer_rows_than_may_be() -> None:
    found = diagnose(regression(least=400), predict, ["x", "noise", "site", "hour"])
    said = [each for part in found.segments.values() for each in part]
    assert [(each.at, each.rows >= 400) for each in said] == [("a", True), ("b", True)]
    assert [each.rows for each in (*found.over_time, *found.by_answer)] == [N]


def test_stretches_of_time_are_equal_and_cover_every_row_once() -> None:
    held = regression(least=1)
    stretches = diagnose(held, predict, ["x", "noise"]).over_time
    begins = pl.Series([each.at for each in stretches]).str.to_datetime(time_zone="UTC").cast(INSTANT)
    assert len(stretches) == 30
    assert sum(each.rows for each in stretches) == N
    assert begins.to_physical()[0] == 0
    assert set(begins.diff().drop_nulls().dt.total_seconds()) == {(N - 1) * 3600 // 30}
    first = held.times < begins.to_physical()[1]
    error = np.abs(held.labels - held.predictions)[first].mean()
    assert stretches[0].value == pytest.approx(error)


def test_rows_of_one_instant_are_one_stretch() -> None:
    found = diagnose(regression(times=np.zeros(N, np.int64)), predict, ["x", "noise"]).over_time
    assert [(each.at, each.rows) for each in found] == [("1970-01-01T00:00:00+00:00", N)]


def test_a_segment_of_one_class_says_nothing_rather_than_not_a_number() -> None:
    held = classification()
    none = (FRAME["site"] == "b").fill_null(False).to_numpy()
    held.labels[none] = 0.0
    found = diagnose(held, chance, ["x", "noise", "site"])
    assert "b" not in [each.at for each in found.segments["site"]]
    json.dumps(found.to_json(), allow_nan=False)


def test_a_learning_curve_takes_growing_shares_of_the_same_rows() -> None:
    asked: list[Any] = []

    def fit_score(rows: Any) -> tuple[float, float]:
        asked.append(rows)
        return float(len(rows)), -float(len(rows))

    rows = np.arange(1000, 2003)
    found = diagnosis.learning(rows, fit_score, seed=7)
    assert [point[0] for point in found] == [201, 401, 602, 802, 1003]
    assert all(train == count == -valid for count, train, valid in found)
    for fewer, more in itertools.pairwise(asked):
        assert set(fewer) < set(more)
        assert (np.diff(fewer) > 0).all()
    assert asked[-1].tolist() == rows.tolist()
