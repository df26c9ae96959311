"""What came of a sweep: its trials, in order."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlops_ray.errors import TrainingError

#: Names in what a trial reports: the mean over the folds so far, each fold's score, and the seconds spent.
SCORE, FOLDS, SECONDS = "score", "folds", "seconds"

State = Literal["complete", "stopped", "failed"]


@dataclass(frozen=True)
class Trial:
    """What came of one trial.

    `score` is the mean of `fold_scores`, which are fewer than the folds where the state is "stopped"; it is
    NaN and `error` says why where it is "failed".
    """

    id: str
    family: str
    params: Mapping[str, Any]
    score: float
    fold_scores: tuple[float, ...]
    seconds: float
    state: State
    error: str = ""


@dataclass(frozen=True)
class Sweep:
    """All trials, best first: complete ones by score, then stopped ones, then failed ones."""

    leaderboard: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The complete trial with the smallest score; raises `TrainingError` where none is complete."""
        if self.leaderboard and self.leaderboard[0].state == "complete":
            return self.leaderboard[0]
        errors = [trial.error for trial in self.leaderboard if trial.error]
        why = f"the first failed with: {errors[0]}" if errors else "training.search.time_limit is too short"
        raise TrainingError(f"none of {len(self.leaderboard)} trials was completed; {why}")


def read_trial(trial: Any, folds: int) -> Trial:
    """A trial as Tune's own record of it (`ray.tune.experiment.Trial`) says."""
    result, config = trial.last_result or {}, trial.config
    scores = tuple(result.get(FOLDS, ()))
    error = _error(trial)
    state: State = "complete" if len(scores) == folds else "failed" if error or not scores else "stopped"
    return Trial(
        id=trial.trial_id,
        family=config["family"],
        params=dict(config.get(config["family"], {})),
        score=float(result[SCORE]) if scores else float("nan"),
        fold_scores=scores,
        seconds=float(result.get(SECONDS, 0.0)),
        state=state,
        error=error,
    )


def _error(trial: Any) -> str:
    """The last line of the traceback that Tune wrote for a trial; empty where it wrote none."""
    name = trial.run_metadata.error_filename
    file = Path(trial.local_path, name) if name and trial.local_path else None
    lines = file.read_text().strip().splitlines() if file is not None and file.exists() else []
    return lines[-1] if lines else "" if name is None else "no reason was given"


def rank(trial: Trial) -> tuple[int, int, float, str]:
    order = {"complete": 0, "stopped": 1, "failed": 2}
    return order[trial.state], -len(trial.fold_scores), trial.score, trial.id
