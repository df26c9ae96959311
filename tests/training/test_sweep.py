"""The sweep on a real cluster: every family is tried, the best complete trial wins, a failure is a row."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mlops_ray.config import Training
from mlops_ray.errors import TrainingError
from mlops_ray.registry.models import Model
from mlops_ray.training import sweep, tracking
from mlops_ray.training.families import Family, How, Params, Sample
from mlops_ray.training.journal import FILE
from mlops_ray.training.leaderboard import Sweep, Trial
from mlops_ray.training.trial import Setting, score
from tests.training.made import classification, task

FAMILIES = ["lasso", "ridge", "random_forest", "xgboost"]
#: Little work: these tests are about the sweep, not about errors.
SMALL = {"random_forest": {"n_estimators": 4}, "xgboost": {"n_estimators": 4}}


def _training(**search: Any) -> dict[str, Any]:
    return {"families": FAMILIES, "search": {"trials": 8, "seed": 7, "space": SMALL, **search}}


@pytest.fixture(scope="module")
def swept(
    ray_cluster: object, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Sweep, list[Any], list[Trial]]:
    folder = tmp_path_factory.mktemp("sweep") / "tune"
    said: list[Any] = []
    told: list[Trial] = []
    found = sweep.run(
        task(_training()),
        folder=folder,
        label_selector={},
        on_progress=lambda *progress: said.append(progress),
        on_trial=told.append,
    )
    assert not folder.exists()
    return found, said, told


def test_every_family_is_tried_its_default_first(swept: tuple[Sweep, list[Any], list[Trial]]) -> None:
    found, _, told = swept
    assert len(found.leaderboard) == len(told) == 8
    assert {trial.family for trial in found.leaderboard} == set(FAMILIES)
    assert {"alpha": 1.0} in [trial.params for trial in told if trial.family == "ridge"]
    assert {trial.params["n_estimators"] for trial in told if trial.family == "xgboost"} == {4}


def test_the_best_is_the_complete_trial_with_the_smallest_score(
    swept: tuple[Sweep, list[Any], list[Trial]],
) -> None:
    found, _, _ = swept
    complete = [trial for trial in found.leaderboard if trial.state == "complete"]
    assert found.best.score == min(trial.score for trial in complete)
    assert all(len(trial.fold_scores) == 3 for trial in complete)
    assert all(len(trial.fold_scores) < 3 for trial in found.leaderboard if trial.state == "stopped")


def test_a_trial_scores_what_the_same_fit_scores_here(swept: tuple[Sweep, list[Any], list[Trial]]) -> None:
    best = swept[0].best
    made = task(_training())
    fold = sweep.encode_folds(made)[sweep.families.FAMILIES[best.family].style][0]
    setting = Setting(metric="mae", task="regression", seed=7, cpus=1, outcome=made.outcome)
    here, _ = score(fold, made.families[best.family], best.params, setting)
    assert best.fold_scores[0] == pytest.approx(here, rel=1e-6)


def test_a_trial_tells_how_long_its_model_takes_for_an_answer(
    swept: tuple[Sweep, list[Any], list[Trial]],
) -> None:
    took = {trial.family: trial.predict_us for trial in swept[0].leaderboard}
    assert all(value is not None and 0 < value < 1e6 for value in took.values())


@pytest.mark.parametrize("restricts", [False, True])
def test_where_values_are_hidden_an_error_is_told_without_its_words(
    restricts: bool, ray_cluster: object, tmp_path: Path
) -> None:
    search = {"trials": 1, "seed": 7, "space": {"logistic": {"C": -1.0}}}
    made = classification({"families": ["logistic"], "search": search}, restricts=restricts)
    (trial,) = sweep.run(made, folder=tmp_path / "tune", label_selector={}).leaderboard
    said = "InvalidParameterError"
    assert trial.error == said if restricts else trial.error.startswith(f"{said}: The 'C' parameter")
    said = f"logistic could not be fitted on all rows: {said}"
    with pytest.raises(TrainingError, match=f"^{said}$" if restricts else f"^{said}: The 'C' parameter"):
        sweep.fit(made, "logistic", {"C": -1.0}, label_selector={})


@pytest.mark.parametrize(("free", "is_told"), [(0.0, True), (1.0, False)])
def test_a_sweep_that_has_to_wait_for_what_others_hold_says_so(
    free: float, is_told: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sweep, "_free", lambda _: [{"CPU": free}])
    sweep._tell_of_waiting({"CPU": 1.0}, {})
    assert ("wait until a node has 1 CPU free" in caplog.text) == is_told


def test_free_cpus_are_those_of_nodes_that_may_be_used(ray_cluster: object) -> None:
    assert sweep.free_cpus({"region": "nowhere"}) == 1
    assert 1 <= sweep.free_cpus({}) <= 2


@dataclass(frozen=True)
class Watching:
    """Another family; each fit says whether its rows are memory of its own, and which process it is."""

    inner: Family
    folder: Path

    def __getattr__(self, name: str) -> Any:
        if name in ("name", "tasks", "devices", "style", "space"):
            return getattr(self.inner, name)
        raise AttributeError(name)

    def fit(self, sample: Sample, params: Params, how: How) -> Model:
        own = [part.flags.writeable or part.flags.owndata for part in (sample.x, sample.y)]
        self.folder.joinpath(f"{any(own)}-{time.time_ns()}-{os.getpid()}").touch()
        return self.inner.fit(sample, params, how)


def test_every_trial_reads_the_same_copy_of_the_data(
    ray_cluster: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is put into the object store once, and mapped by each worker."""
    fits = tmp_path / "fits"
    fits.mkdir()
    known = sweep.families.FAMILIES
    monkeypatch.setitem(known, "ridge", Watching(known["ridge"], fits))
    made = task({"search": {"trials": 4, "scheduler": "none"}})
    sweep.run(made, folder=tmp_path / "tune", label_selector={})
    said = [file.name.split("-") for file in fits.iterdir()]
    assert len(said) == 4 * 3
    assert {own for own, *_ in said} == {"False"}


def test_a_search_ends_with_its_time(ray_cluster: object, tmp_path: Path) -> None:
    search = {"trials": 100_000, "time_limit": "1s"}
    found = sweep.run(task({"search": search}), folder=tmp_path / "tune", label_selector={})
    assert len(found.leaderboard) < 100_000


def test_progress_counts_to_the_end(swept: tuple[Sweep, list[Any], list[Trial]]) -> None:
    _, said, _ = swept
    assert [(done, total) for done, total, _ in said] == [(n, 8) for n in range(1, 9)]
    assert "leads with" in said[-1][2]


@pytest.fixture(scope="module")
def classified(ray_cluster: object, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Higher is better; one family can be fitted, the other cannot."""
    search = {"trials": 6, "seed": 7, "space": {"logistic": {"C": -1.0}}}
    return sweep.run(
        classification({"families": ["logistic", "random_forest"], "search": search}),
        folder=tmp_path_factory.mktemp("classified") / "tune",
        label_selector={},
        start=[("random_forest", {"min_samples_leaf": 17})],
    )


def test_the_best_is_the_highest_where_higher_is_better(classified: Sweep) -> None:
    complete = [trial.score for trial in classified.leaderboard if trial.state == "complete"]
    assert classified.best.score == max(complete) > 0.5
    assert complete == sorted(complete, reverse=True)


def test_what_did_best_before_is_tried_after_the_defaults(classified: Sweep) -> None:
    by_id = {trial.id: trial for trial in classified.leaderboard}
    assert [by_id[id].family for id in ("0000", "0001")] == ["logistic", "random_forest"]
    assert by_id["0002"].params == {**by_id["0001"].params, "min_samples_leaf": 17}


def test_a_trial_that_fails_is_a_row_and_no_end(classified: Sweep) -> None:
    failed = [trial for trial in classified.leaderboard if trial.family == "logistic"]
    assert list(classified.leaderboard[-len(failed) :]) == failed
    assert {trial.state for trial in failed} == {"failed"}
    assert failed[0].error.startswith(
        "InvalidParameterError: The 'C' parameter of LogisticRegression must be"
    )


def test_ctrl_c_ends_the_sweep_and_leaves_what_a_resume_needs(ray_cluster: object, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(
            task({"search": {"trials": 50}}),
            folder=tmp_path / "tune",
            label_selector={},
            on_progress=lambda *_: signal.raise_signal(signal.SIGINT),
        )
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*")] == [Path("tune"), Path("tune", FILE)]
    assert signal.getsignal(signal.SIGINT) is before


def _trial(state: Any, score: float, error: str = "") -> Trial:
    return Trial("x", "ridge", {}, score, (score,), 0.0, state, error)


def test_without_a_complete_trial_the_reason_is_said() -> None:
    with pytest.raises(TrainingError, match="none of 1 trials was completed; the first failed with: boom"):
        _ = Sweep((_trial("failed", float("nan"), "boom"),)).best
    with pytest.raises(TrainingError, match="time_limit is too short"):
        _ = Sweep((_trial("stopped", 0.1),)).best


def test_trials_sample_no_more_rows_than_they_may() -> None:
    folds = sweep.encode_folds(task({"search": {"rows": 100}}))
    assert list(folds) == ["one_hot"]
    assert [len(fold.train.y) for fold in folds["one_hot"]] == [100, 100, 100]
    again = sweep.encode_folds(task({"search": {"rows": 100}}))
    assert (folds["one_hot"][0].train.x == again["one_hot"][0].train.x).all()


def test_every_trial_is_a_nested_run(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    experiment = tracking.prepare(uri, "demo", str(tmp_path / "artifacts"))
    assert tracking.prepare(uri, "demo", None) == experiment
    trials = [
        Trial("1", "ridge", {"alpha": 2.0}, 0.2, (0.1, 0.3), 1.5, "complete"),
        Trial("2", "lasso", {"alpha": 1.0}, float("nan"), (), 0.0, "failed", "boom"),
    ]
    with pytest.raises(KeyboardInterrupt), tracking.open_run(uri, experiment, "demo") as run:
        for trial in trials:
            run.log_trial(trial)
        raise KeyboardInterrupt
    client = MlflowClient(uri)
    assert client.get_run(run.id).info.status == "KILLED"
    nested = client.search_runs(
        [experiment], f"tags.mlflow.parentRunId = '{run.id}'", order_by=["params.family"]
    )
    assert [found.info.status for found in nested] == ["FAILED", "FINISHED"]
    assert nested[1].data.params == {"family": "ridge", "alpha": "2.0"}
    assert nested[1].data.metrics["score"] == 0.2
    steps = client.get_metric_history(nested[1].info.run_id, "fold_score")
    assert [(metric.step, metric.value) for metric in steps] == [(0, 0.1), (1, 0.3)]


def test_the_defaults_of_a_project_file_can_be_searched() -> None:
    assert task(Training().model_dump(by_alias=True, mode="json", exclude={"validation", "search"})).folds


def test_a_sample_has_each_class_by_its_share_or_says_that_it_is_too_small() -> None:
    made = classification({"search": {"rows": 300}})
    for fold, part in zip(sweep.encode_folds(made)["codes"], made.folds, strict=True):
        assert fold.train.y.mean() == pytest.approx(made.labels[part.train].mean(), abs=1 / 300)
    with pytest.raises(TrainingError, match=r"raise training\.search\.rows"):
        sweep.encode_folds(classification({"search": {"rows": 100}}, frame=_rare()))


def _rare() -> pl.DataFrame:
    made = classification().frame
    return made.with_columns(label=(pl.int_range(pl.len()) % 40 == 0).cast(pl.Float64))
