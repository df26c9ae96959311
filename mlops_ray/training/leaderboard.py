"""What came of a sweep: its trials, in order."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mlops_ray.errors import TrainingError

#: Names in what a trial is given: its place among the suggestions, its family, the family's parameters.
NUMBER, FAMILY, PARAMS = "number", "family", "params"
#: Names in what it reports: the mean over the folds so far, each fold's score, seconds, microseconds for an
#: answer, why it failed.
SCORE, FOLDS, SECONDS, PREDICT_US, ERROR = "score", "folds", "seconds", "predict_us", "error"
#: And where it runs, by its node's id.
NODE = "node"

#: Ray adds a page of what may be the cause.
LONGEST_REASON = 200

State = Literal["complete", "stopped", "failed"]
#: What ends a sweep before all is tried, by its name in `training.search`.
Limit = Literal["", "time_limit", "budget"]
#: Which states come first.
PLACES: Mapping[str, int] = {"complete": 0, "stopped": 1, "failed": 2}


@dataclass(frozen=True)
class Trial:
    """What came of one trial.

    `id` is its number among the suggestions. `score` is the mean of `fold_scores`, which are fewer than the
    folds where the state is "stopped"; it is NaN and `error` says why where it is "failed". `seconds` are
    those of its fits, `predict_us` microseconds that its model takes for one row, `None` if it was not asked.
    `cost` is that of its seconds, `None` where no price is known. `node` is the id of the node it ended on.
    """

    id: str
    family: str
    params: Mapping[str, Any]
    score: float
    fold_scores: tuple[float, ...]
    seconds: float
    state: State
    error: str = ""
    predict_us: float | None = None
    cost: float | None = None
    node: str = field(default="", compare=False)


@dataclass(frozen=True)
class Sweep:
    """All trials, best first: complete ones by score, then stopped ones, then failed ones.

    `ended_by` is the limit of `training.search` that cut it off, if one did. `spent` is what trials have
    cost, also those that were cut off, `None` where no price is known.
    """

    leaderboard: tuple[Trial, ...]
    ended_by: Limit = ""
    spent: float | None = None

    @property
    def best(self) -> Trial:
        """The complete trial with the best score; raises `TrainingError` where none is complete."""
        if self.leaderboard and self.leaderboard[0].state == "complete":
            return self.leaderboard[0]
        errors = [trial.error for trial in self.leaderboard if trial.error]
        short = "budget is too small" if self.ended_by == "budget" else "time_limit is too short"
        why = f"the first failed with: {errors[0]}" if errors else f"training.search.{short}"
        raise TrainingError(f"none of {len(self.leaderboard)} trials was completed; {why}")


def mean(scores: Sequence[float]) -> float:
    """Of the folds' scores; NaN where there is none.

    >>> mean([1.0, 2.0])
    1.5
    """
    return sum(scores) / len(scores) if scores else float("nan")


def id_of(trial: Any) -> str:
    """The id of a trial, of Tune's own record of it."""
    return f"{trial.config[NUMBER]:04d}"


def read_trial(trial: Any, folds: int) -> Trial:
    """A trial as Tune's own record of it (`ray.tune.experiment.Trial`) says.

    One whose score is not a number fails, however it ended.
    """
    result, config = trial.last_result or {}, trial.config
    scores = tuple(itertools.takewhile(math.isfinite, result.get(FOLDS, ())))
    # Of a worker that was lost, and made up for, Tune's record keeps an error too.
    error = result.get(ERROR) or (_lost(trial) if trial.status == trial.ERROR else "")
    if not error and len(scores) < len(result.get(FOLDS, ())):
        error = f"its score on fold {len(scores) + 1} is not a number"
    state: State = "failed" if error else "complete" if len(scores) == folds else "stopped"
    return Trial(
        id=id_of(trial),
        family=config[FAMILY],
        params=dict(config[PARAMS]),
        score=float("nan") if error else mean(scores),
        fold_scores=scores,
        seconds=float(result.get(SECONDS, 0.0)),
        state=state,
        error=error,
        predict_us=result.get(PREDICT_US),
        node=result.get(NODE, ""),
    )


def _lost(trial: Any) -> str:
    """What became of a trial that could not tell by itself: the last line that Tune wrote of it."""
    name = trial.run_metadata.error_filename
    file = Path(trial.local_path, name) if name and trial.local_path else None
    lines = file.read_text().strip().splitlines() if file is not None and file.exists() else []
    return lines[-1][:LONGEST_REASON] if lines else "no reason was given"


def rank(trial: Trial, loss: Callable[[float], float]) -> tuple[int, int, float, str]:
    """The order of a leaderboard, best first: complete trials, then stopped ones, then failed ones."""
    value = 0.0 if trial.state == "failed" else loss(trial.score)
    return PLACES[trial.state], -len(trial.fold_scores), value, trial.id
