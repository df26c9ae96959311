"""Runs are told apart by what they learned from, ordered by what came of them, and shown as they are."""

import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mlops_ray import cli
from mlops_ray.errors import UsageError
from mlops_ray.storage import Storage
from mlops_ray.training import runs, tracking
from mlops_ray.training.leaderboard import Trial
from mlops_ray.training.tracking import Recorded
from tests.test_pages import NASTY, assert_sound
from tests.training.test_tracking import ENVIRONMENT, MANIFEST

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
COLUMNS = [{"name": name, "type": "float"} for name in ("a", "b", "c", "d")]


def job(number: int = 0, *, params: Any = None, score: float | None = 0.5, **tags: str) -> Recorded:
    """A finished job; later numbers began later."""
    own = {
        tracking.DATASET: "d" * 64,
        tracking.ROWS: "9000",
        tracking.COLUMNS: " ".join(tracking.column_digests(COLUMNS)),
        tracking.TARGET: "load",
        tracking.TASK: "regression",
        tracking.METRIC: "mae",
    }
    begin = BEGIN + timedelta(hours=number)
    metrics = {} if score is None else {"mae": score}
    given = {"family": "ridge", "alpha": 1.0} if params is None else params
    return Recorded(f"{number:032x}", "demo", None, "FINISHED", begin, 60.0, given, metrics, {**own, **tags})


def trial(of: Recorded, name: str, score: float | None, state: str = "complete", **params: Any) -> Recorded:
    metrics = {"seconds": 2.0, "folds": 3.0} | ({} if score is None else {"score": score})
    given = {"family": "ridge", "alpha": 1.0, **params}
    return replace(
        of, id=name * 32, parent=of.id, params=given, metrics=metrics, tags={tracking.STATE: state}
    )


def columns_tag(names: str) -> str:
    return " ".join(tracking.column_digests([{"name": name, "type": "float"} for name in names]))


def test_jobs_are_listed_newest_first_each_with_its_trials_best_first() -> None:
    new, old = job(2), job(1)
    found = [
        new,
        old,
        trial(old, "a", 0.3),
        trial(new, "b", 0.4),
        trial(new, "c", 0.2),
        trial(new, "d", 0.1, "stopped"),
        trial(new, "e", None),
    ]
    listed = runs.rows(found)
    # What was stopped has a score of some folds alone.
    assert [row["run"][-1] for row in listed] == ["2", "c", "b", "e", "d", "1", "a"]
    assert listed[0]["score"] == 0.5
    assert listed[1] == {
        "run": "c" * 32,
        "parent": new.id,
        "project": "demo",
        "started": "2026-01-01T02:00:00+00:00",
        "family": "ridge",
        "metric": "mae",
        "score": 0.2,
        "folds": 3,
        "seconds": 2.0,
        "cost": None,
        "currency": "",
        "predict_us": None,
        "state": "complete",
        "rows": 9000,
        "dataset": "d" * 64,
        "params": {"alpha": 1.0},
    }


def test_the_newest_jobs_are_kept_for_the_dashboard_with_their_trials(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, old = job(2), job(1)
    found = [new, old, trial(new, "a", 0.3), trial(old, "b", 0.4)]
    monkeypatch.setattr(tracking, "recorded", lambda uri, project: found)
    monkeypatch.setattr(runs, "MOST_JOBS", 1)
    assert len(runs.keep(storage, "demo", "sqlite:///x")) == 4
    kept = storage.read_json(runs.FOLDER, "demo.json")["runs"]
    assert [row["run"] for row in kept] == [new.id, "a" * 32]


def test_where_higher_is_better_the_highest_is_the_best() -> None:
    made = job(1, **{tracking.METRIC: "roc_auc", tracking.TASK: "classification"})
    listed = runs.rows([made, trial(made, "a", 0.7), trial(made, "b", 0.9)])
    assert [row["score"] for row in listed] == [None, 0.9, 0.7]


def test_likeness_is_of_data_then_of_columns_target_and_metric() -> None:
    one = job().tags
    other = {tracking.DATASET: "e" * 64}
    ladder = [
        job(**{tracking.METRIC: "rmse"}).tags,
        job(**other).tags,
        job(**other, **{tracking.METRIC: "rmse"}).tags,
        job(**other, **{tracking.COLUMNS: columns_tag("abcx")}).tags,
        job(**other, **{tracking.TARGET: "log(load)"}).tags,
        job(**other, **{tracking.COLUMNS: columns_tag("wxyz"), tracking.TARGET: "price"}).tags,
        job(**other, **{tracking.TASK: "classification"}).tags,
    ]
    found = [runs.similarity(one, each) for each in ladder]
    assert found == sorted(found, reverse=True)
    assert (found[0], found[-1]) == (1.0, 0.0)
    assert found[1] < 1
    # Three columns of five are in both.
    assert found[3] == pytest.approx(0.55 * 3 / 5 + 0.25 + 0.1)
    assert found == [runs.similarity(each, one) for each in ladder]


def test_a_column_of_another_type_is_another_column() -> None:
    ints = " ".join(tracking.column_digests([{**column, "type": "int"} for column in COLUMNS]))
    other = {tracking.DATASET: "e" * 64}
    assert runs.similarity(job().tags, job(**other, **{tracking.COLUMNS: ints}).tags) == pytest.approx(0.35)


def test_very_many_columns_fit_the_tag_and_are_as_alike_as_they_are() -> None:
    def wide(first: int) -> str:
        columns = [{"name": f"column {number}", "type": "float"} for number in range(first, first + 3000)]
        return " ".join(tracking.column_digests(columns))

    assert len(wide(0)) <= tracking.LONGEST_TAG
    found = runs.similarity(
        job(**{tracking.COLUMNS: wide(0)}).tags,
        job(**{tracking.DATASET: "e" * 64, tracking.COLUMNS: wide(1000)}).tags,
    )
    assert found == pytest.approx(0.55 * 0.5 + 0.35, abs=0.03)


def test_likest_runs_come_first_and_of_equally_alike_ones_the_best_of_the_metric() -> None:
    other = {tracking.DATASET: "e" * 64}
    jobs = [
        job(0, score=0.5),
        job(1, score=0.4),
        job(2, score=0.1, **{tracking.METRIC: "rmse"}),
        job(3, score=0.1, **other),
        job(4, **other, **{tracking.TASK: "classification"}),
    ]
    found = runs.alike(jobs, jobs[0].id)
    assert [(row["run"][-1], row["similarity"]) for row in found] == [
        ("1", 1.0),
        ("0", 1.0),
        ("2", 1.0),
        ("3", 0.9),
    ]


def test_a_run_is_named_by_the_beginning_of_its_id() -> None:
    jobs = [replace(job(), id="abc1"), replace(job(), id="abd2")]
    assert runs.alike(jobs, "abc")[0]["similarity"] == 1.0
    for name, count in (("ab", 2), ("x", 0)):
        with pytest.raises(UsageError, match=f"--like: {count} runs are called '{name}'"):
            runs.alike(jobs, name)


def test_a_search_begins_with_the_distinct_winners_of_the_likest_runs() -> None:
    params: list[Any] = [{"family": "ridge", "alpha": 1.0}, {"family": "ridge", "alpha": 1.0}, {}]
    params += [{"family": "ridge", "alpha": float(number)} for number in range(2, 9)]
    jobs = [job(n, params=given, score=None if not given else 0.1 * n) for n, given in enumerate(params)]
    begun = runs.warm_start(runs.alike(jobs, jobs[0].id))
    assert begun == [("ridge", {"alpha": 1.0}), ("ridge", {"alpha": 2.0}), ("ridge", {"alpha": 3.0})]


def test_the_page_draws_trials_of_one_training_set_and_metric_only() -> None:
    new, old = job(2), job(1, **{tracking.DATASET: "e" * 64})
    trials = [trial(new, name, 0.1 * n, alpha=float(n), solver="x") for n, name in enumerate("abc", 1)]
    other = trial(old, "f", 0.5, family="lasso")
    shown = runs.runs_page("demo", runs.rows([new, old, *trials, other]), [])
    parsed = assert_sound(shown)
    assert parsed.named == ["Seconds of fit", "ridge"]
    assert {"alpha", "solver", "mae"} <= set(parsed.words)
    assert "Microseconds an answer" not in shown
    timed = [replace(each, metrics={**each.metrics, "predict_us": 3.0}) for each in trials]
    assert (
        "Microseconds an answer" in assert_sound(runs.runs_page("demo", runs.rows([new, *timed]), [])).named
    )


def test_quality_is_drawn_against_money_where_it_is_known_in_one_currency() -> None:
    new, old = job(2, **{tracking.CURRENCY: "EUR"}), job(1, **{tracking.CURRENCY: "USD"})
    paid = [
        replace(each, metrics={**each.metrics, tracking.COST: cost})
        for each, cost in (
            (trial(new, "a", 0.1), 0.0123),
            (trial(new, "b", 0.2), 0.0456),
            (trial(old, "c", 0.3), 77.0),
        )
    ]
    listed = runs.rows([new, old, *paid])
    shown = runs.table(listed)
    at = list(shown.head).index("cost")
    assert [row[at] for row in shown.rows] == ["–", "0.0123 EUR", "0.0456 EUR", "–", "77 USD"]
    page = assert_sound(runs.runs_page("demo", listed, []))
    assert "Cost of fit" in page.named
    assert "cost of fit, EUR" in page.words
    tried = [row for row in listed if row["parent"]]
    euros = [row for row in tried if row["currency"] == "EUR"]
    assert runs._against("cost", {"ridge": tried}) == runs._against("cost", {"ridge": euros})
    free = runs.rows([new, trial(new, "a", 0.1)])
    assert "cost" not in runs.table(free).head
    assert "Cost of fit" not in runs.runs_page("demo", free, [])


def test_runs_without_trials_or_scores_are_listed() -> None:
    killed = replace(
        job(1, params={}, score=None), status="KILLED", tags={tracking.METRIC: "mae"}, seconds=None
    )
    listed = runs.rows([killed, trial(killed, "a", None, "failed")])
    assert [(row["state"], row["score"], row["rows"]) for row in listed] == [
        ("killed", None, 0),
        ("failed", None, 0),
    ]
    assert "killed" in assert_sound(runs.runs_page("demo", listed, [])).text
    assert_sound(runs.runs_page("demo", [], []))


@pytest.mark.parametrize("text", NASTY)
def test_parameters_of_any_kind_stay_text(text: str) -> None:
    made = job(1)
    trials = [
        trial(made, name, 0.1, solver=given, other=[given]) for name, given in (("a", text), ("b", "x"))
    ]
    like = runs.alike([replace(made, params={"family": text or "x", text: text})], made.id)
    assert_sound(runs.runs_page(text, runs.rows([made, *trials]), like))


PROJECT = """
project: demo
storage: state
sources:
  meter:
    path: none.csv
    entity: site
    event_time: {column: time}
    columns: {site: {type: category}, load: {type: float}}
features: {row: {on_request: {site: {expr: site}}}}
target: {source: meter, expr: load, task: regression}
"""


def _project(folder: Path) -> Path:
    (folder / "demo.yaml").write_text(PROJECT)
    return folder / "demo.yaml"


def test_the_command_compares_what_was_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"sqlite:///{Storage.open(str(tmp_path / 'state')).path('mlflow.db')}"
    experiment = tracking.prepare(uri, "demo", str(tmp_path / "artifacts"))
    for digest, alpha in (("d" * 64, 1.0), ("e" * 64, 2.0)):
        with tracking.open_run(uri, experiment, "demo") as run:
            run.log_origin(MANIFEST | {"digest": digest}, "mae", ENVIRONMENT)
            for number in range(3):
                params = {"alpha": alpha + number}
                run.log_trial(Trial(str(number), "ridge", params, 0.2 + number, (0.2,), 1.5, "complete"))
            run.log_params({"family": "ridge", "alpha": alpha})
            run.log_metrics({"mae": 0.1 * alpha})
    project = str(_project(tmp_path))
    found = json.loads(_command(capsys, project, "--json"))
    jobs = [row for row in found["runs"] if row["parent"] is None]
    assert [(row["params"], row["score"]) for row in jobs] == [({"alpha": 2.0}, 0.2), ({"alpha": 1.0}, 0.1)]
    assert [row["score"] for row in found["runs"][1:4]] == [0.2, 1.2, 2.2]
    assert found["runs"][1]["params"] == {"alpha": 2.0}
    assert_sound(Path(found["page"]).read_text())
    like = json.loads(_command(capsys, project, "--like", jobs[1]["run"][:12], "--json"))["alike"]
    assert [(row["run"], row["similarity"]) for row in like] == [(jobs[1]["run"], 1.0), (jobs[0]["run"], 0.9)]
    assert runs.warm_start(like) == [("ridge", {"alpha": 1.0}), ("ridge", {"alpha": 2.0})]
    text = _command(capsys, project)
    assert "similarity" not in text
    assert "runs.html" in text


def test_what_others_wrote_to_mlflow_stops_nobody() -> None:
    """A run that is not as ours are is shown as far as it can be, and is like nothing."""
    strange = [
        job(3, **{tracking.ROWS: "many", tracking.METRIC: "made_up"}),
        replace(job(4), tags={tracking.TASK: "regression", tracking.METRIC: "mae"}),
        replace(job(5), params={"family": ["x"]}),
        replace(job(6), params={}),
    ]
    own = [trial(each, name, 0.2) for each, name in zip(strange, "abcd", strict=True)]
    bare = [replace(trial(strange[0], name, 0.2), params={"family": "own"}) for name in "ef"]
    found = [job(1), *strange, *own, *bare]
    listed = runs.rows(found)
    assert [row["rows"] for row in listed if row["run"].endswith("3")] == [0]
    assert_sound(runs.runs_page("demo", listed, runs.alike(found, job(1).id)))
    assert_sound(runs.runs_page("demo", runs.rows([strange[2], *bare]), []))
    unknown = [trial(strange[0], name, 0.2, alpha=float(n)) for n, name in enumerate("gh")]
    assert_sound(runs.runs_page("demo", runs.rows([strange[0], *unknown]), []))
    with pytest.raises(UsageError, match="ended before it said what it learns from"):
        runs.alike(found, strange[1].id)


def test_a_driver_that_nobody_can_make_sense_of_is_not_gone() -> None:
    assert not any(map(tracking._is_gone, ("evil", "a b c", f"{os.uname().nodename} x 1.0", "")))


def test_text_of_others_steers_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli._print_table(["reason"], [["[/nope] \x1b]0;pwned\x07\x1b[2J"], ["[link=http://x]y[/link]"]])
    cli._print_fields({"said": "\x1b[2J"})
    cli._print_findings({"meter": {"findings": [{"said": "\x1b[2J"}]}})
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[/nope]" in out
    assert "[link=http://x]" in out


def test_looking_makes_no_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(_command(capsys, str(_project(tmp_path)), "--json"))["runs"] == []
    assert not (tmp_path / "state" / "mlflow.db").exists()


def _command(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    cli.app(["runs", *arguments], standalone_mode=False)
    return capsys.readouterr().out
