"""Workers and drivers that are killed in the middle of a sweep: its table is that of one left in peace.

Run as a script (`test_resume.py ADDRESS FOLDER [resume]`), this file is a driver that can be killed.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mlops_ray.errors import TrainingError
from mlops_ray.training import evaluate, families, own, sweep
from mlops_ray.training.families import CPU, Family, How, Params, Sample
from mlops_ray.training.journal import CUT, FILE, Journal
from mlops_ray.training.leaderboard import Sweep, Trial
from mlops_ray.training.task import Task
from tests.training.made import task

ROOT = Path(__file__).parent.parent.parent
PATIENCE_S = 120.0
SMALL = {"random_forest": {"n_estimators": 20}, "xgboost": {"n_estimators": 40}}
TRIALS = 14


def _task(**search: Any) -> Task:
    given = {"trials": TRIALS, "seed": 7, "space": SMALL, **search}
    return task({"families": ["ridge", "random_forest", "xgboost"], "search": given})


def _row(trial: Trial) -> list[Any]:
    """All but the seconds."""
    return [trial.id, trial.family, dict(trial.params), list(trial.fold_scores), trial.score, trial.state]


def _rows(found: Sweep) -> list[Any]:
    return [_row(trial) for trial in found.leaderboard]


def main(address: str, folder: Path, *, resume: bool) -> None:
    import ray

    ray.init(address, log_to_driver=False)
    told: list[Trial] = []
    found = sweep.run(
        _task(), folder=folder / "sweep", label_selector={}, on_trial=told.append, resume=resume
    )
    made = {"rows": _rows(found), "told": [trial.id for trial in told]}
    (folder / "made.json").write_text(json.dumps(made))


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: object, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("undisturbed") / "sweep"
    folder.mkdir()
    (folder / FILE).write_text("what an earlier search left")
    found = sweep.run(_task(), folder=folder, label_selector={})
    assert {trial.state for trial in found.leaderboard} == {"complete", "stopped"}
    return _rows(found)


def test_a_killed_driver_goes_on_to_the_same_table(undisturbed: list[Any], tmp_path: Path) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    journal = tmp_path / "sweep" / FILE
    for ended in (2, 8):
        driver = _driver(address, tmp_path, resume=ended > 2)
        until(lambda: journal.exists() and journal.read_bytes().count(b"\n") > ended)  # noqa: B023
        assert driver.poll() is None
        driver.kill()
        driver.wait()
    assert _driver(address, tmp_path, resume=True).wait(PATIENCE_S) == 0
    made = json.loads((tmp_path / "made.json").read_text())
    assert made["rows"] == undisturbed
    # Told are all, those from before the kills too, each once and in order.
    assert made["told"] == [f"{number:04d}" for number in range(TRIALS)]


def _driver(address: str, folder: Path, *, resume: bool) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, address, str(folder), *(["resume"] if resume else [])]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)})


@dataclass(frozen=True)
class Fragile:
    """Another family, but the process of its first `deaths` fits after the second is killed."""

    inner: Family
    folder: Path
    deaths: int
    devices: Any = CPU

    def __getattr__(self, name: str) -> Any:
        if name in ("name", "tasks", "style", "space"):
            return getattr(self.inner, name)
        raise AttributeError(name)

    def fit(self, sample: Sample, params: Params, how: How) -> Any:
        self.folder.joinpath(f"{time.time_ns()}-{os.getpid()}").touch()
        if 2 < len(list(self.folder.iterdir())) <= 2 + self.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner.fit(sample, params, how)


def test_a_killed_worker_changes_nothing(
    undisturbed: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = tmp_path / "fits"
    fits.mkdir()
    monkeypatch.setitem(families.FAMILIES, "xgboost", Fragile(families.FAMILIES["xgboost"], fits, deaths=1))
    found = sweep.run(_task(), folder=tmp_path / "sweep", label_selector={})
    assert _rows(found) == undisturbed


def test_a_trial_whose_worker_dies_every_time_fails(
    ray_cluster: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = tmp_path / "fits"
    fits.mkdir()
    monkeypatch.setattr(sweep, "RETRIES", 1)
    monkeypatch.setitem(families.FAMILIES, "ridge", Fragile(families.FAMILIES["ridge"], fits, deaths=99))
    found = sweep.run(task({"search": {"trials": 1}}), folder=tmp_path / "sweep", label_selector={})
    (trial,) = found.leaderboard
    assert trial.state == "failed"
    assert "died" in trial.error
    # Two, then the third kills; again, and the first kills.
    assert len(list(fits.iterdir())) == 4


def test_the_winners_fit_begins_again_where_its_worker_dies(
    ray_cluster: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _task()
    trial = Trial("0000", "ridge", {"alpha": 2.0}, 0.1, (0.1,), 1.0, "complete")
    fits = tmp_path / "fits"
    fits.mkdir()
    for number in range(2):
        (fits / str(number)).touch()
    before = evaluate.refit(whole, trial.family, trial.params, cpus=1)
    monkeypatch.setitem(families.FAMILIES, "ridge", Fragile(families.FAMILIES["ridge"], fits, deaths=1))
    after = sweep.fit(_task(), trial.family, trial.params, label_selector={})
    assert len(list(fits.iterdir())) == 4
    assert after.model.to_bytes() == before.model.to_bytes()
    assert after.predict(whole.frame[:5]).tolist() == before.predict(whole.frame[:5]).tolist()


def test_only_the_same_search_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = _task()
    folder = tmp_path / "sweep"
    with pytest.raises(TrainingError, match="there is no search to resume"):
        sweep.run(begun, folder=folder, label_selector={}, resume=True)
    Journal.open(folder, sweep.fingerprint(begun, sweep.encode_folds(begun)), [], resume=False)
    before = (folder / FILE).read_bytes()
    others = [
        _task(seed=8),
        _task(trials=20),
        task(frame=begun.frame.with_columns(label=begun.frame["label"] * 2)),
    ]
    for other in others:
        with pytest.raises(TrainingError, match="the search to resume is another one"):
            sweep.run(other, folder=folder, label_selector={}, resume=True)
    # Nor where the code of a family of one's own was changed.
    monkeypatch.setattr(own, "code", lambda training: {"mine.Model": "another digest"})
    with pytest.raises(TrainingError, match="the search to resume is another one"):
        sweep.run(begun, folder=folder, label_selector={}, resume=True)
    assert (folder / FILE).read_bytes() == before


def test_what_trials_had_cost_that_a_kill_cut_off_is_told_once(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, "x", [], resume=False)
    assert journal.cut == 0
    journal.beat(0.5, {"0000": 0.25, "0001": 1.0})
    # One that ended after that says itself what it cost.
    journal.add(Trial("0000", "ridge", {}, 0.1, (0.1,), 0.5, "complete", cost=0.3))
    again = Journal.open(tmp_path, "x", [], resume=True)
    assert (again.cut, again.known[0].cost) == (1.5, 0.3)
    for damaged in ("", "[]", '{"cut": 1}', '{"cut": null, "running": {}}'):
        (tmp_path / CUT).write_text(damaged)
        with pytest.raises(TrainingError, match=f"{CUT} is damaged: train without --resume"):
            Journal.open(tmp_path, "x", [], resume=True)


def test_more_time_is_no_other_search() -> None:
    encoded = sweep.encode_folds(_task())
    assert sweep.fingerprint(_task(), encoded) == sweep.fingerprint(_task(time_limit="10m"), encoded)


def test_a_journal_gives_back_what_was_written_and_forgets_half_a_line(tmp_path: Path) -> None:
    start = [("ridge", {"alpha": 3.0})]
    trials = [
        Trial("0000", "ridge", {"alpha": 0.1 + 0.2}, 1 / 3, (1 / 3, 1 / 3), 0.5, "complete"),
        Trial("0003", "lasso", {}, float("nan"), (), 0.1, "failed", "boom"),
    ]
    journal = Journal.open(tmp_path, "x", start, resume=False)
    for trial in trials:
        journal.add(trial)
    whole = journal.file.read_bytes()
    for length in range(whole.index(b"\n") + 1, len(whole) + 1):
        journal.file.write_bytes(whole[:length])
        again = Journal.open(tmp_path, "x", [], resume=True)
        assert again.start == start
        assert [repr(trial) for trial in again.known.values()] == [
            repr(trial) for trial in trials[: whole[:length].count(b"\n") - 1]
        ]
        again.add(trials[1])
        assert Journal.open(tmp_path, "x", [], resume=True).known[3].error == "boom"


@pytest.mark.parametrize("first", ["{", "[]", '{"search": "x"}', '{"search": "x", "start": [1]}', ""])
def test_a_journal_that_is_none_is_damaged(first: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(f"{first}\n")
    with pytest.raises(TrainingError, match="is damaged: train without --resume"):
        Journal.open(tmp_path, "x", [], resume=True)
    for line in ("{", "[]", '{"id": 1}', "null"):
        (tmp_path / FILE).write_text(f'{{"search": "x", "start": []}}\n{line}\n')
        with pytest.raises(TrainingError, match="is damaged"):
            Journal.open(tmp_path, "x", [], resume=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), resume="resume" in sys.argv[3:])
