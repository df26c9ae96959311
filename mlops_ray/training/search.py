"""What a sweep tries next and what it stops: decided by trials' numbers, never by the clock.

Trials run side by side and end in any order. So that a seed gives the same table on any cluster, however
busy, and after a restart:

- Trial n is suggested from the results of the trials up to n - `lag`, told in their order, and waits until
  these are known. More than `lag` trials hence never run at once.
- It is stopped by how it compares with those before n - `SLACK` that got as far. Until all of these did, it
  runs on; once it is known that it was to be stopped, what it did since counts no more.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import optuna

from mlops_ray.config.project import Search as SearchConfig
from mlops_ray.errors import TrainingError
from mlops_ray.storage import digest
from mlops_ray.training.leaderboard import Trial, mean
from mlops_ray.training.space import Point, Space, first, suggest

#: A trial goes on to the next folds if it is among the best third.
REDUCTION = 3
#: Until the sampler knows so many trials it draws at random, whatever it knows.
STARTUP = 10
#: With two trials at a time, those before the one before are mostly known.
SLACK = 1
#: A suggestion may lag behind by so many trials, or by this share of all: the sampler knows less, and as many
#: trials can run at once.
LEAST_LAG, LAG_SHARE = 8, 0.25

Loss = Callable[[float], float]


@dataclass(frozen=True)
class Suggestion:
    """What a trial is to try."""

    number: int
    family: str
    params: Mapping[str, Any]


@dataclass
class Halving:
    """Which trials are stopped, and after how many folds: asynchronous successive halving in a fixed order.

    After 1 fold, 3, 9, … a trial goes on if its mean loss is among the best third of those that got as far.
    Li et al., "A System for Massively Parallel Hyperparameter Tuning", 2020, of which this is the stopping
    variant.

    >>> halving = Halving(folds=3, loss=float)
    >>> for number, score in enumerate([1.0, 2.0, 9.0]):
    ...     halving.report(number, [score])
    >>> halving.stopped_after(0), halving.stopped_after(2)
    (None, 1)
    """

    folds: int
    loss: Loss
    _scores: dict[int, Sequence[float]] = field(default_factory=dict)
    _ended: set[int] = field(default_factory=set)
    _losses: dict[int, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rungs = [REDUCTION**power for power in range(self.folds)]
        self._losses = {rung: [] for rung in rungs if rung < self.folds}

    def report(self, number: int, scores: Sequence[float], *, ended: bool = False) -> None:
        """A trial's scores of its folds so far; where it `ended` there will be no more."""
        self._scores[number] = scores
        if ended:
            self._ended.add(number)
        for rung, losses in self._losses.items():
            while (loss := self._loss(len(losses), rung)) is not None:
                losses.append(loss)

    def stopped_after(self, number: int) -> int | None:
        """The folds after which a trial is stopped; `None` where it is not, or is not known to be yet."""
        return next((rung for rung in self._losses if self._stops(number, rung)), None)

    def _stops(self, number: int, rung: int) -> bool | None:
        """Whether a trial is stopped after so many folds; `None` where that is not known yet."""
        if len(self._scores[number]) < rung:
            return False if number in self._ended else None
        losses, count = self._losses[rung], max(0, number - SLACK)
        if len(losses) < count:
            return None
        peers = [loss for loss in losses[:count] if np.isfinite(loss)]
        own = self.loss(mean(self._scores[number][:rung]))
        return bool(peers) and own > float(np.percentile(peers, 100 / REDUCTION))

    def _loss(self, number: int, rung: int) -> float | None:
        """A trial's loss after so many folds, NaN where it does not get so far; `None` if not known yet."""
        if number not in self._scores:
            return None
        before = [self._stops(number, lower) for lower in self._losses if lower < rung]
        scores = self._scores[number]
        if any(before) or (len(scores) < rung and number in self._ended):
            return float("nan")
        return self.loss(mean(scores[:rung])) if len(scores) >= rung and None not in before else None


class Search:
    """The trials of a sweep in the order of their numbers; `on_settled` is called with each in that order.

    `known` are trials that ended before a restart: each takes the place of its suggestion.
    """

    def __init__(
        self,
        spaces: Mapping[str, Space],
        search: SearchConfig,
        *,
        folds: int,
        loss: Loss,
        on_settled: Callable[[Trial], None],
        start: Sequence[Point] = (),
        known: Mapping[int, Trial] | None = None,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        is_random = search.algorithm == "random"
        self._study = optuna.create_study(
            sampler=optuna.samplers.RandomSampler(search.seed)
            if is_random
            else optuna.samplers.TPESampler(seed=search.seed, n_startup_trials=STARTUP)
        )
        for point in first(spaces, start):
            self._study.enqueue_trial(point)
        self.total = search.trials
        self.lag = self.total if is_random else max(LEAST_LAG, int(self.total * LAG_SHARE))
        self._halving = Halving(folds if search.scheduler == "asha" else 1, loss)
        self._spaces, self._loss, self._on_settled = spaces, loss, on_settled
        self._known = dict(known or {})
        self._asked: list[optuna.trial.Trial] = []
        self._ended: dict[int, Trial | None] = {}
        self._settled: list[Trial | None] = []
        self._told = 0

    @property
    def is_exhausted(self) -> bool:
        """Whether all trials have been suggested."""
        return len(self._asked) == self.total

    @property
    def is_over(self) -> bool:
        """Whether all trials have ended."""
        return len(self._ended) == self.total

    def ask(self) -> Suggestion | None:
        """What to try next; `None` where that depends on a trial that has not ended, or nothing is left."""
        while (made := self._ask()) is not None and made.number in self._known:
            trial = self._known.pop(made.number)
            if digest([trial.family, trial.params]) != digest([made.family, made.params]):
                raise TrainingError(
                    f"trial {trial.id} of the search to resume tried something else than the same search "
                    "would now: a library has changed; train without --resume"
                )
            self.end(made.number, trial)
        return made

    def recall(self) -> None:
        """Takes the trials that are known, and nothing more is tried."""
        while self._known and self.ask() is not None:
            pass

    def _ask(self) -> Suggestion | None:
        number, settled = len(self._asked), len(self._settled)
        told = max(0, number - self.lag + 1)
        if self.is_exhausted or settled < told >= STARTUP:
            return None
        while self._told < min(told, settled):
            self._tell(self._asked[self._told], self._settled[self._told])
            self._told += 1
        self._asked.append(self._study.ask())
        return Suggestion(number, *suggest(self._asked[number], self._spaces))

    def _tell(self, asked: optuna.trial.Trial, trial: Trial | None) -> None:
        scores = trial.fold_scores if trial else ()
        for fold in range(len(scores)):
            asked.report(self._loss(mean(scores[: fold + 1])), fold)
        states = optuna.trial.TrialState
        if trial is not None and trial.state == "complete":
            self._study.tell(asked, self._loss(trial.score))
        else:
            is_stopped = trial is not None and trial.state == "stopped"
            self._study.tell(asked, state=states.PRUNED if is_stopped else states.FAIL)

    def is_stopped(self, number: int, scores: Sequence[float]) -> bool:
        """Whether a trial with these scores so far is to be stopped."""
        self._halving.report(number, scores)
        return self._halving.stopped_after(number) is not None

    def end(self, number: int, trial: Trial | None) -> None:
        """A trial has ended, by itself or stopped; `None`: it was cut off, and does not count."""
        self._ended[number] = trial
        self._halving.report(number, trial.fold_scores if trial else (), ended=True)
        while (next_ := len(self._settled)) in self._ended:
            settled = self._ended[next_]
            folds = self._halving.stopped_after(next_)
            if settled is not None and folds is not None:
                scores = settled.fold_scores[:folds]
                settled = replace(settled, fold_scores=scores, score=mean(scores), state="stopped", error="")
            self._settled.append(settled)
            if settled is not None:
                self._on_settled(settled)

    def close(self) -> None:
        """No more trials run: those that have not ended are cut off."""
        for number in range(len(self._asked)):
            if number not in self._ended:
                self.end(number, None)
