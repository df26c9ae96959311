"""The sweep on a real cluster: every family is tried, the best complete trial wins, a failure is a row."""

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from mlops_ray import placement
from mlops_ray.config import Training
from mlops_ray.cost.model import Places
from mlops_ray.errors import TrainingError
from mlops_ray.registry.models import Model
from mlops_ray.training import sweep, tracking
from mlops_ray.training.families import Family, How, Params, Sample
from mlops_ray.training.journal import CUT, FILE, Journal
from mlops_ray.training.leaderboard import NUMBER, Sweep, Trial
from mlops_ray.training.task import Task
from mlops_ray.training.trial import Setting, score
from tests.cost.cases import machine
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
    said: list[Any] = []
    told: list[Trial] = []
    found = sweep.run(
        task(_training()),
        folder=tmp_path_factory.mktemp("sweep") / "tune",
        label_selector={},
        on_progress=lambda *progress: said.append(progress),
        on_trial=told.append,
    )
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


@pytest.mark.parametrize(
    ("free", "grows", "told"),
    [(0.0, False, "services and other runs hold"), (0.0, True, "the autoscaler is asked"), (1.0, True, "")],
)
def test_a_sweep_that_has_to_wait_says_what_for(
    free: float, grows: bool, told: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(placement, "free", lambda _: [{"CPU": free}])
    monkeypatch.setattr(placement, "grows", lambda: grows)
    sweep._tell_of_waiting({"CPU": 1.0}, {})
    assert ("wait until a node has 1 CPU free" in caplog.text) == bool(told)
    assert told in caplog.text


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


#: Two trials at a time, at 1.8 EUR an hour each: 0.001 EUR a second together.
PRICED = Places(((machine(vcpu=2, per_hour=3.6), 2),), cpu=1)


def budget(amount: float, **search: Any) -> Task:
    return task({"search": {"trials": 100_000, "budget": {"amount": amount, "currency": "EUR"}, **search}})


@pytest.mark.parametrize(
    ("amount", "time_limit", "spent", "lasts"),
    [
        (0.05, None, 0.0, (50.0, "budget")),
        # What was spent before a restart counts.
        (0.05, None, 0.02, (30.0, "budget")),
        (0.05, None, 0.06, (-10.0, "budget")),
        # The smaller one of both holds.
        (0.05, "20s", 0.02, (20.0, "time_limit")),
        (0.05, "20s", 0.04, (10.0, "budget")),
    ],
)
def test_a_budget_lasts_as_long_as_it_pays_all_places(
    amount: float, time_limit: str | None, spent: float, lasts: tuple[float, str]
) -> None:
    more = {} if time_limit is None else {"time_limit": time_limit}
    seconds, limit = sweep._limit(budget(amount, **more), PRICED, spent)
    assert (pytest.approx(seconds), limit) == lasts


def test_a_search_ends_with_its_budget_and_says_what_was_spent(ray_cluster: object, tmp_path: Path) -> None:
    # So long that a busy machine gets to a trial.
    for amount in (0.002, 0.02, 0.1):
        found = sweep.run(budget(amount), folder=tmp_path / "tune", label_selector={}, priced=PRICED)
        assert found.ended_by == "budget"
        if found.leaderboard:
            break
    assert 0 < len(found.leaderboard) < 100_000
    costs = [trial.cost or 0.0 for trial in found.leaderboard]
    assert costs == pytest.approx([trial.seconds * 0.0005 for trial in found.leaderboard])
    assert found.spent is not None
    # Those that were cut off have cost something too; sums in another order differ in their last digits.
    assert found.spent >= sum(costs) * (1 - 1e-9) > 0


def test_a_search_without_prices_knows_no_costs(swept: tuple[Sweep, list[Any], list[Trial]]) -> None:
    found = swept[0]
    assert (found.ended_by, found.spent, {trial.cost for trial in found.leaderboard}) == ("", None, {None})
    with pytest.raises(TrainingError, match="nobody says what trials cost"):
        sweep.run(budget(1.0), folder=Path("none"), label_selector={})


def test_what_runs_is_counted_and_written_down_every_few_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial of a second costs 0.0005 EUR, also of one whose worker died, and which began again."""
    now = 100.0
    monkeypatch.setattr(sweep.time, "monotonic", lambda: now)
    journal = Journal.open(tmp_path, "x", [], resume=False)
    watch = sweep._Watch(budget(1.0), journal, lambda *_: None, lambda _: None, PRICED)
    watch.search = SimpleNamespace(is_over=False)  # type: ignore[assignment]
    first, second = (SimpleNamespace(config={NUMBER: number}) for number in (0, 1))
    told = []
    for seconds, happens in (
        (0, lambda: watch.on_trial_start(0, [], first)),
        (4, lambda: watch.on_trial_start(0, [], second)),
        (6, lambda: watch.on_trial_start(0, [], second)),
        (7, lambda: None),
        (7.1, watch.cut_off),
        (99, lambda: None),
    ):
        now = 100.0 + seconds
        happens()
        watch.on_step_end(0, [])
        written = json.loads((tmp_path / CUT).read_text())
        told.append((round(written["cut"] / 0.0005, 6), len(written["running"])))
    assert told == [(0, 1), (0, 1), (2, 2), (2, 2), (2, 2), (10.2, 0)]
    assert watch.spent == pytest.approx(10.2 * 0.0005)


def test_what_the_first_part_of_a_search_spent_is_not_there_for_the_second(
    ray_cluster: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tune"
    with pytest.raises(KeyboardInterrupt):
        sweep.run(
            budget(1000.0),
            folder=folder,
            label_selector={},
            priced=PRICED,
            # A second one would leave Tune no time to clean up.
            on_progress=lambda done, *_: signal.raise_signal(signal.SIGINT) if done == 1 else None,
        )
    lines = folder.joinpath(FILE).read_text().splitlines()[1:]
    ended = sum(json.loads(line)["cost"] for line in lines)
    cut = json.loads(folder.joinpath(CUT).read_text())
    # Whether one runs at that moment is up to the machine.
    spent = ended + cut["cut"] + sum(cut["running"].values())
    monkeypatch.setattr(sweep, "_tune", lambda *_: pytest.fail("it goes on"))
    again = sweep.run(budget(0.99 * spent), folder=folder, label_selector={}, priced=PRICED, resume=True)
    assert (len(again.leaderboard), again.ended_by) == (len(lines), "budget")
    assert again.spent == pytest.approx(spent)
    monkeypatch.setattr(sweep, "_tune", lambda *_: None)
    # More of it is no other search.
    more = sweep.run(budget(1000.0), folder=folder, label_selector={}, priced=PRICED, resume=True)
    assert more.spent == pytest.approx(spent)


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
    with pytest.raises(
        TrainingError, match=r"of 0 trials was completed; training\.search\.budget is too small"
    ):
        _ = Sweep((), "budget").best


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
