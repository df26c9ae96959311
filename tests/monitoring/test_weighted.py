"""Where inputs have moved the weighted estimate is nearer the truth; else it is the plain one."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from mlops_ray.features import dataset
from mlops_ray.monitoring import joint, known, performance, quality, weighted
from mlops_ray.monitoring.performance import Expected
from mlops_ray.monitoring.weighted import Weighted
from mlops_ray.registry.package import Package
from mlops_ray.storage import Storage
from tests.serving import packages

SET, TESTED = "of-rows-0123456789ab.parquet", "of-rows-0123456789ab-tested-0123456789ab.parquet"


def world(seed: int, rows: int, at_b: float = 0.5) -> pl.DataFrame:
    """Answers that come true as often as they say at site a, and seldom at site b."""
    random = np.random.default_rng(seed)
    answers, is_b = random.beta(2, 2, rows), random.random(rows) < at_b
    labels = random.random(rows) < np.where(is_b, answers**3, answers)
    sites = np.where(is_b, "b", "a")
    return pl.DataFrame(
        {"load": random.normal(50, 10, rows), "site": sites, "prediction": answers, "label": labels * 1.0}
    )


def expect(rows: pl.DataFrame) -> Expected:
    labels, answers = rows["label"].to_numpy(), rows["prediction"].to_numpy()
    return performance.expect("classification", "brier", labels, answers, np.arange(rows.height))[0]


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return written(tmp_path, {"file": SET, "tested": TESTED})


def written(folder: Path, training_set: dict[str, Any], **policy: Any) -> Package:
    table = packages.PROJECT["sources"]["table"] | policy  # type: ignore[index]
    project = packages.project(
        folder, features={"row": {"columns": ["load", "site"]}}, sources={"table": table}
    )
    return packages.write(folder / "one", project, 1.0, training_set=training_set)


def logged(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select("prediction", pl.col("load", "site").name.prefix("request."))


def compared(package: Package, at_b: float) -> tuple[Weighted, dict[str, float], dict[str, float]]:
    """The weighted estimate of a window, the plain one, and what came true."""
    reference, window = world(1, 5_000), world(2, 20_000, at_b)
    expected, answers = expect(reference), window["prediction"].to_numpy()
    found = weighted.of_log(package, expected, reference, logged(window))
    return found, expected.estimate(answers, {}), expected.measure(window["label"].to_numpy(), answers)


def test_where_inputs_have_moved_it_is_nearer_the_truth(package: Package) -> None:
    found, plain, true = compared(package, at_b=0.95)
    for metric in ("average_precision", "roc_auc", "log_loss", "brier"):
        assert abs(found.metrics[metric] - true[metric]) < abs(plain[metric] - true[metric]) / 2
    assert abs(plain["roc_auc"] - true["roc_auc"]) > 0.05
    assert found.rows < 4_000


def test_where_nothing_has_moved_it_is_the_plain_one(package: Package) -> None:
    found, plain, _ = compared(package, at_b=0.5)
    assert found.metrics.keys() == plain.keys()
    assert all(abs(found.metrics[metric] - plain[metric]) < 0.01 for metric in plain)
    assert found.rows > 4_000


def test_chance_that_few_rows_take_for_knowledge_does_not_flatter() -> None:
    """A calibration of 1,000 rows alone would estimate a ROC AUC that is 0.01 too high."""
    expected, reference, window = expect(world(1, 50_000)), world(3, 1_000), world(2, 20_000)
    said, labels = reference["prediction"].to_numpy(), reference["label"].to_numpy()
    weights = np.random.default_rng(6).exponential(size=1_000)
    answers = window["prediction"].to_numpy()
    found = weighted.estimate(expected, said, labels, weights / weights.mean(), answers)
    assert found.metrics["roc_auc"] == pytest.approx(expected.estimate(answers, {})["roc_auc"], abs=0.006)


def test_rows_weigh_as_often_as_they_come_in_the_window() -> None:
    random = np.random.default_rng(3)
    reference = random.normal(size=(5_000, 2)).astype(np.float32)
    window = random.normal([0.7, 0.0], size=(5_000, 2)).astype(np.float32)
    weights = weighted.weigh(reference, window)
    assert weights.mean() == pytest.approx(1)
    # The density ratio of two normal distributions (Sugiyama et al. 2012, section 1.3).
    true = np.exp(0.7 * reference[:, 0] - 0.7**2 / 2)
    assert np.corrcoef(np.log(weights), np.log(true))[0, 1] > 0.85
    assert weights @ reference[:, 0] / len(weights) == pytest.approx(0.7, abs=0.1)


def test_no_row_of_the_test_is_judged_by_a_model_that_has_seen_it() -> None:
    """A window of the very same rows: a model that knew them by heart would tell nothing else."""
    rows = np.random.default_rng(4).normal(size=(2_000, 3)).astype(np.float32)
    weights = weighted.weigh(rows, np.random.default_rng(5).normal(size=(2_000, 3)).astype(np.float32))
    assert np.square(weights - 1).mean() < 0.1


def test_where_hardly_a_row_of_the_test_is_like_the_windows_nothing_is_said() -> None:
    rows, weights = world(1, 1_000), np.zeros(1_000)
    weights[:150] = 1
    values = (rows[name].to_numpy() for name in ("prediction", "label"))
    assert weighted.estimate(expect(rows), *values, weights, np.full(9, 0.5)) is None


def test_of_few_rows_and_of_regressions_nothing_is_said(package: Package) -> None:
    reference, window = world(1, 5_000), world(2, joint.MIN_ROWS - 1)
    expected = expect(reference)
    assert weighted.of_log(package, expected, reference, logged(window)) is None
    assert weighted.of_log(package, expected, world(1, joint.MIN_ROWS - 1), logged(reference)) is None
    regression, _ = performance.expect(
        "regression",
        "mae",
        reference["label"].to_numpy(),
        reference["prediction"].to_numpy(),
        np.arange(reference.height),
        matrix=package.encoder.transform(reference),
    )
    assert weighted.of_log(package, regression, reference, logged(world(2, 5_000))) is None


def test_a_look_shows_it_beside_the_plain_one(package: Package, tmp_path: Path) -> None:
    storage, reference = Storage.open(str(tmp_path)), world(1, 5_000)
    reference.with_columns(more=1).write_parquet(storage.path(dataset.FOLDER, TESTED))
    tested = known.tested(storage.root, package)
    assert set(tested.columns) == {"load", "site", "prediction", "label"}
    rows = logged(world(2, 5_000, 0.9))
    said, found = quality.judge(package, expect(reference), rows, rows.columns, None, tested)
    assert said["weighted"]["metrics"].keys() == said["estimated"].keys()
    assert said["weighted"]["metrics"]["brier"] != said["estimated"]["brier"]
    # Alarms are of the plain one alone.
    again, plain = quality.judge(package, expect(reference), rows, rows.columns, None, None)
    assert again == said | {"weighted": None}
    assert plain == found


def test_where_it_cannot_be_made_the_rest_is_said(
    package: Package, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(*_: object) -> None:
        raise ValueError("no such line")

    reference, rows = world(1, 5_000), logged(world(2, 5_000))
    whole, found = quality.judge(package, expect(reference), rows, rows.columns, None, None)
    monkeypatch.setattr(weighted, "of_log", breaks)
    assert quality.judge(package, expect(reference), rows, rows.columns, None, reference) == (whole, found)
    assert "the weighted estimate of rows is not known (ValueError)" in caplog.text


def test_features_that_the_log_lacks_weigh_nothing(package: Package) -> None:
    """Trees would tell all of its rows from all others."""
    reference, window = world(1, 5_000), logged(world(2, 5_000, at_b=0.9)).drop("request.site")
    expected = expect(reference)
    found = weighted.of_log(package, expected, reference, window)
    assert found.rows > 4_000
    assert weighted.of_log(package, expected, reference, window.select("prediction")) is None


def test_of_many_columns_there_are_fewer_rows(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, window = world(1, 5_000), logged(world(2, 5_000))
    width = sum(len(part.names) for part in package.encoder.parts)
    monkeypatch.setattr(weighted, "MOST_VALUES", 1_000 * width)
    found = weighted.of_log(package, expect(reference), reference, window)
    assert found.rows <= 1_000


def test_a_version_whose_test_is_not_kept_has_none(tmp_path: Path) -> None:
    older = written(tmp_path, {"file": SET})
    assert known.tested(tmp_path, older) is None
    gone = written(tmp_path / "gone", {"file": SET, "tested": TESTED})
    assert known.tested(tmp_path, gone) is None


def test_a_row_whose_machine_only_values_are_not_known_weighs_nothing(tmp_path: Path) -> None:
    """Those of two requests of one name lie in a log of their own, and are not told apart."""
    package = written(tmp_path, {"file": SET, "tested": TESTED}, policy={"machine_only": ["site"]})
    reference, window = world(1, 5_000), world(2, 5_000)
    unknown = window.with_columns(site=pl.when(pl.int_range(pl.len()) % 2 > 0).then("site"))
    expected = expect(reference)
    found = weighted.of_log(package, expected, reference, logged(unknown))
    assert found.rows > 4_000


def test_rows_that_were_erased_from_a_test_are_not_remembered(package: Package, tmp_path: Path) -> None:
    storage, reference = Storage.open(str(tmp_path)), world(1, 50)
    file = storage.path(dataset.FOLDER, TESTED)
    for number, rows in enumerate((reference, reference.head(49))):
        rows.write_parquet(file)
        os.utime(file, (number, number))
        found = known.tested(storage.root, package)
        assert found.height == rows.height
