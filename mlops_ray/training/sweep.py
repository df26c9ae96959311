"""The search for the best family and parameters: Ray Tune over Optuna's TPE, stopped early by ASHA."""

import contextlib
import functools
import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from mlops_ray.config import MICROSECONDS
from mlops_ray.errors import TrainingError
from mlops_ray.registry.encoder import Encoder, Style
from mlops_ray.training import families, space
from mlops_ray.training import trial as trials
from mlops_ray.training.families import Sample
from mlops_ray.training.leaderboard import SCORE, Sweep, rank, read_trial
from mlops_ray.training.leaderboard import Trial as Trial
from mlops_ray.training.splits import Rows, Split
from mlops_ray.training.task import Task
from mlops_ray.training.trial import Fold, Setting

#: Rows that a trial fits on, drawn at random from a fold's: enough to rank parameters, a fraction of the
#: time. The winner is fitted on all rows.
SWEEP_ROWS = 20_000
#: ASHA lets the best third go on to the next folds.
REDUCTION = 3
#: What Tune would otherwise do beside the search: write logs of its own, swallow Ctrl-C, print tables.
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}

OnProgress = Callable[[int, int, str], None]


def run(
    task: Task,
    *,
    folder: Path,
    label_selector: Mapping[str, str],
    on_progress: OnProgress = lambda done, total, message: None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> Sweep:
    """Searches on the Ray cluster that is connected; trials run on nodes with the labels of `label_selector`.

    `folder` is Tune's while it runs and gone afterwards. `on_progress(done, total, message)` and `on_trial`
    are called in this process after each trial. Raises `TrainingError` for a search that cannot be, before it
    begins; a trial that fails is a row of the leaderboard. Ctrl-C ends the trials and raises
    `KeyboardInterrupt`.
    """
    spaces = _spaces(task)
    watch = _Watch(task, on_progress, on_trial)
    search = task.training.search
    config = tune.TuneConfig(
        metric=SCORE,
        mode="min",
        num_samples=search.trials,
        search_alg=_searcher(task, spaces),
        scheduler=_scheduler(task),
        time_budget_s=None if search.time_limit is None else search.time_limit / MICROSECONDS["s"],
        reuse_actors=True,
    )
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with _quiet(), watch.interruptible():
            tuner = tune.Tuner(
                _trainable(task, label_selector),
                tune_config=config,
                run_config=tune.RunConfig(
                    name=folder.name, storage_path=str(folder.parent), callbacks=[watch], verbose=0
                ),
            )
            tuner.fit()
    except _InterruptedError:
        raise KeyboardInterrupt from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Sweep(tuple(sorted(watch.trials, key=rank)))


def encode_folds(task: Task, rows: int = SWEEP_ROWS) -> dict[Style, list[Fold]]:
    """Every fold, sampled and encoded in each style that a family of the task asks for.

    The encoder of a fold is learned on its training rows alone.
    """
    styles = dict.fromkeys(family.style for family in families.find(task.training.families).values())
    parts = [_sampled(part, rows, task.training.search.seed) for part in task.folds]
    return {style: [_encode(task, part, style) for part in parts] for style in styles}


def _sampled(part: Split, rows: int, seed: int) -> Split:
    return Split(_sample(part.train, rows, seed), _sample(part.held_out, rows, seed))


def _sample(rows: Rows, count: int, seed: int) -> Rows:
    if len(rows) <= count:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, count, replace=False))


def _encode(task: Task, part: Split, style: Style) -> Fold:
    train, held_out = task.frame[part.train], task.frame[part.held_out]
    encoder = Encoder.fit(train, task.columns, style=style)
    return Fold(
        Sample(encoder.transform(train), task.labels[part.train], discrete=encoder.discrete),
        encoder.transform(held_out),
        task.labels[part.held_out],
    )


def _spaces(task: Task) -> dict[str, space.Space]:
    found, search = families.find(task.training.families), task.training.search
    for name in search.space:
        if name not in found:
            raise TrainingError(f"training.search.space: {name!r} is none of training.families")
    if search.trials < len(found):
        raise TrainingError(
            f"training.search.trials is {search.trials}, fewer than the {len(found)} families to try"
        )
    return {
        name: space.narrowed(name, family.space, search.space.get(name, {})) for name, family in found.items()
    }


def _searcher(task: Task, spaces: Mapping[str, space.Space]) -> OptunaSearch:
    """Each family's default first, then what the sampler suggests."""
    search = task.training.search
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = (
        optuna.samplers.RandomSampler(seed=search.seed)
        if search.algorithm == "random"
        else optuna.samplers.TPESampler(seed=search.seed)
    )
    return OptunaSearch(
        # Tune saves its searcher: this must be a function that can be saved.
        space=functools.partial(space.suggest, spaces=spaces),
        metric=SCORE,
        mode="min",
        points_to_evaluate=space.defaults(spaces),
        sampler=sampler,
    )


def _scheduler(task: Task) -> TrialScheduler:
    if task.training.search.scheduler == "none":
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    return AsyncHyperBandScheduler(
        max_t=task.training.validation.folds, grace_period=1, reduction_factor=REDUCTION
    )


def _trainable(task: Task, label_selector: Mapping[str, str]) -> Any:
    search = task.training.search
    setting = Setting(
        metric=task.training.metric,
        task=task.kind,
        seed=search.seed,
        cpus=max(1, int(search.resources.cpu)),
        clip=task.clip,
    )
    bundle = {"CPU": search.resources.cpu}
    selector: dict[str, Any] = {"bundle_label_selector": [dict(label_selector)]} if label_selector else {}
    with_data = tune.with_parameters(trials.run, folds=encode_folds(task), setting=setting)
    return tune.with_resources(with_data, tune.PlacementGroupFactory([bundle], **selector))


class _InterruptedError(Exception):
    """Ctrl-C in the driver: Tune cleans up after an `Exception`, not after a `KeyboardInterrupt`."""


class _Watch(tune.Callback):
    """Collects what comes of the trials, and tells; ends the search after Ctrl-C."""

    def __init__(self, task: Task, on_progress: OnProgress, on_trial: Callable[[Trial], None]) -> None:
        self._folds = task.training.validation.folds
        self._total = task.training.search.trials
        self._on_progress, self._on_trial = on_progress, on_trial
        self.trials: list[Trial] = []
        self._interrupted = False

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune saves its callbacks with the search; what this one tells lives in this process."""
        return {}

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Ctrl-C is noted, and raised where Tune can clean up; a second one is raised at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, lambda *_: self._interrupt(before))
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _interrupt(self, before: Any) -> None:
        self._interrupted = True
        signal.signal(signal.SIGINT, before)

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self._interrupted:
            raise _InterruptedError

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._add(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._add(trial)

    def _add(self, trial: Any) -> None:
        made = read_trial(trial, self._folds)
        self.trials.append(made)
        self._on_trial(made)
        best = min((t for t in self.trials if t.state == "complete"), key=rank, default=None)
        leads = f"; {best.family} leads with {best.score:.4g}" if best else ""
        self._on_progress(len(self.trials), self._total, f"{made.family} {made.state}{leads}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Tune without its own console output and signal handler; the environment is as before afterwards."""
    before = {name: os.environ.get(name) for name in TUNE_ENVIRONMENT}
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train", "optuna")]
    levels = [logger.level for logger in loggers]
    os.environ.update(TUNE_ENVIRONMENT)
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
