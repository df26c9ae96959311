"""The search for the best family and parameters: Ray Tune over Optuna's TPE, stopped early by ASHA.

What is tried and what is stopped depends on the project file and the data alone (search.py): the same sweep
gives the same table, but for the times, on any cluster, also where workers died in it, and where its driver
was killed and it was resumed. The exceptions are `time_limit` and `budget`, which cut off whatever runs.
"""

import contextlib
import hashlib
import itertools
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune
from ray.exceptions import RayError, RayTaskError
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from mlops_ray import placement
from mlops_ray.config import MICROSECONDS
from mlops_ray.cost.model import Places
from mlops_ray.errors import MlopsError, PolicyError, TrainingError, first_line
from mlops_ray.placement import fits
from mlops_ray.policy import REGION
from mlops_ray.registry.encoder import Style
from mlops_ray.storage import digest
from mlops_ray.training import distributed, evaluate, families, own, space
from mlops_ray.training.evaluate import Fitted, Held
from mlops_ray.training.journal import Journal
from mlops_ray.training.leaderboard import (
    FAMILY,
    FOLDS,
    NUMBER,
    PARAMS,
    SCORE,
    Limit,
    Sweep,
    id_of,
    rank,
    read_trial,
)
from mlops_ray.training.leaderboard import Trial as Trial
from mlops_ray.training.search import Search
from mlops_ray.training.space import Point
from mlops_ray.training.splits import Rows, Split
from mlops_ray.training.task import Task
from mlops_ray.training.trial import RETRIES, Fold, Setting, Trainable, device, told

logger = logging.getLogger(__name__)

#: Rows of the positive class that a sample must have.
FEWEST = 20
#: Where a search runs, and what ends it, is none of what it finds: it goes on with others.
PLACED = {"search": {"resources": {"labels"}}}
LIMITS = {"search": PLACED["search"] | {"time_limit": True, "budget": True}}
#: How often it is written down what trials that run have cost: so much of them a kill makes free.
BEAT_S = 5.0
#: What Tune would otherwise do beside the search: write logs and states of its own, swallow Ctrl-C, print
#: tables.
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",
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
    resume: bool = False,
    start: Sequence[Point] = (),
    priced: Places | None = None,
) -> Sweep:
    """Searches on the Ray cluster that is connected; trials run on nodes with the labels of `label_selector`.

    First each family's defaults are tried, then what of `start` is in the space. `on_progress(done, total,
    message)` and `on_trial` are called in this process once for each trial, in the order of their numbers.

    Raises `TrainingError` for a search that cannot be, before it begins; a trial that fails is a row of the
    leaderboard. Ctrl-C ends the trials and raises `KeyboardInterrupt`. Until `forget` the folder keeps the
    trials that ended: with `resume` these are taken from there, told again, and the rest is run, from the
    same `start`, within a whole `time_limit` and what is left of a `budget`. Without it what is there is
    removed.

    `priced` says what trials cost, which a budget must know: it lasts as long as it pays all places.
    """
    if task.training.search.budget is not None and priced is None:
        raise TrainingError("training.search.budget: nobody says what trials cost")
    spaces, request, encoded = _spaces(task), resources(task, label_selector), encode_folds(task)
    _tell_of_waiting(request, label_selector)
    if not resume:
        forget(folder)
    journal = Journal.open(folder, fingerprint(task, encoded), start, resume=resume)
    watch = _Watch(task, journal, on_progress, on_trial, priced)
    search = watch.search = Search(
        spaces,
        task.training.search,
        folds=len(task.folds),
        loss=task.metric.loss,
        on_settled=watch.settled,
        start=journal.start,
        known=journal.known,
    )
    seconds, limit = _limit(task, priced, watch.spent)
    if len(journal.known) == search.total or (seconds is not None and seconds <= 0):
        search.recall()
    else:
        _tune(task, encoded, request, label_selector, watch, folder / "tune", seconds)
    watch.publish()
    ended_by: Limit = "" if search.is_over else limit
    search.close()
    leaderboard = sorted(watch.trials, key=partial(rank, loss=task.metric.loss))
    return Sweep(tuple(leaderboard), ended_by, None if priced is None else watch.spent)


def _limit(task: Task, priced: Places | None, spent: float) -> tuple[float | None, Limit]:
    """The seconds that a search may last from now on, and by which limit; `None` where there is none."""
    asked = task.training.search
    limits: list[tuple[float, Limit]] = []
    if asked.time_limit is not None:
        limits.append((asked.time_limit / MICROSECONDS["s"], "time_limit"))
    if asked.budget is not None and priced is not None:
        limits.append((priced.lasts(asked.budget.amount - spent), "budget"))
    return min(limits) if limits else (None, "")


def forget(folder: Path) -> None:
    """Removes what a search kept to be resumed."""
    shutil.rmtree(folder, ignore_errors=True)


def _tune(
    task: Task,
    encoded: Mapping[Style, list[Fold]],
    request: Mapping[str, float],
    label_selector: Mapping[str, str],
    watch: "_Watch",
    folder: Path,
    seconds: float | None,
) -> None:
    asked, search = task.training.search, watch.search
    places = _places(request, label_selector)
    setting = Setting(
        metric=task.training.metric,
        task=task.kind,
        seed=asked.seed,
        cpus=max(1, int(asked.resources.cpu)),
        outcome=task.outcome,
        report_every=1 if asked.scheduler == "asha" else len(task.folds),
        restricts=task.restricts,
    )
    with_data = tune.with_parameters(Trainable, folds=encoded, families=task.families, setting=setting)
    selector: dict[str, Any] = {"bundle_label_selector": [dict(label_selector)]} if label_selector else {}
    try:
        with _quiet(TUNE_MAX_PENDING_TRIALS_PG=str(max(2, places))), watch.interruptible():
            tune.run(
                with_data,
                name=folder.name,
                storage_path=str(folder.parent),
                metric=SCORE,
                mode=task.metric.mode,
                num_samples=search.total,
                search_alg=_Suggests(watch, task.metric.mode),
                scheduler=_Stops(search, places),
                callbacks=[watch],
                resources_per_trial=tune.PlacementGroupFactory([dict(request)], **selector),
                time_budget_s=seconds,
                max_failures=RETRIES,
                raise_on_failed_trial=False,
                reuse_actors=True,
                verbose=0,
            )
    except _OverError:
        pass
    except _InterruptedError:
        raise KeyboardInterrupt from None
    finally:
        watch.cut_off()
        shutil.rmtree(folder, ignore_errors=True)


def fit(
    task: Task,
    family: str,
    params: Mapping[str, Any],
    *,
    label_selector: Mapping[str, str],
    cpus: int | None = None,
) -> Fitted:
    """A family fitted on all rows, by a Ray task with a trial's resources on a node that may.

    `cpus` are the threads, by default as many as a trial has. It begins again where its worker dies. XGBoost
    is fitted by several workers where there is more data than a node should hold (distributed.py). Raises
    `TrainingError` where it cannot be fitted, or the worker dies again and again.
    """
    request = resources(task, label_selector)
    threads = max(1, int(request["CPU"]))
    if family == "xgboost":
        count = distributed.workers(task, [node["memory"] for node in _nodes(label_selector)])
        if count > (room := _places(request, label_selector)):
            raise TrainingError(
                f"training.search.workers is {count}, but the cluster has room for {room} with "
                f"training.search.resources: {request}"
            )
        if count > 1:
            spread = distributed.DistributedXgboost(count, request, label_selector, task.restricts)
            begin = time.monotonic()
            whole = evaluate.refit(task, family, params, cpus=threads, by=spread)
            held = Held(time.monotonic() - begin, count * request["CPU"], count * request.get("GPU", 0.0))
            return replace(whole, held=held)
    # As many as its threads, where a node has them.
    held_cpus, gpus = max(request["CPU"], min(cpus or 0, free_cpus(label_selector))), request.get("GPU", 0.0)
    refit = ray.remote(_refit).options(
        num_cpus=held_cpus,
        num_gpus=gpus,
        label_selector=dict(label_selector) or None,
        max_retries=RETRIES,
    )
    fitted = refit.remote(ray.put(task), family, params, cpus or threads, held_cpus, gpus)
    try:
        return ray.get(fitted)
    except RayTaskError as error:
        if isinstance(error.cause, MlopsError):
            raise error.cause from None
        said = told(error.cause, task.restricts)
        raise TrainingError(f"{family} could not be fitted on all rows: {said}") from None
    except RayError as error:
        raise TrainingError(
            f"the worker that fitted {family} on all rows died {RETRIES + 1} times; is there too "
            f"little memory? {first_line(error)}"
        ) from error
    except KeyboardInterrupt:
        ray.cancel(fitted, force=True)
        raise


def _refit(
    task: Task, family: str, params: Mapping[str, Any], cpus: int, held_cpus: float, gpus: float
) -> Fitted:
    begin = time.monotonic()
    fitted = evaluate.refit(task, family, params, cpus=cpus, device=device(task.families[family]))
    return replace(fitted, held=Held(time.monotonic() - begin, held_cpus, gpus), node=placement.here())


def resources(task: Task, label_selector: Mapping[str, str]) -> dict[str, float]:
    """What one trial asks of a node: CPUs, and GPUs where the search is to have some and can.

    What no node has an autoscaler is asked for, but for GPUs that are only preferred. Raises `TrainingError`
    where no node has the CPUs, or a GPU that is required, and none comes that does; `PolicyError` where none
    of those has the CPUs that the labels name.
    """
    search = task.training.search
    cpus, gpus = {"CPU": search.resources.cpu}, search.resources.gpu
    if search.gpu == "none" and gpus:
        raise TrainingError(
            f"training.search.resources.gpu is {gpus:g}, but training.search.gpu is none: say required, or "
            "preferred"
        )
    nodes = _nodes(label_selector)
    if search.gpu != "required" and not placement.has_room(label_selector, cpus):
        if label_selector:
            raise _refused(label_selector, cpus)
        raise TrainingError(
            f"no node of the cluster has the {cpus['CPU']:g} CPUs of training.search.resources"
        )
    if search.gpu == "none":
        return cpus
    both = cpus | {"GPU": gpus or 1.0}
    if not any("cuda" in family.devices for family in task.families.values()):
        why = "none of training.families computes on one; add e.g. xgboost"
    elif any(fits(both, node) for node in nodes) or (
        search.gpu == "required" and placement.has_room(label_selector, both)
    ):
        return both
    elif label_selector and search.gpu == "required":
        raise _refused(label_selector, both)
    elif not any("GPU" in node for node in nodes):
        why = "no node of the cluster has a GPU; start one, or say preferred"
    else:
        why = f"no node of the cluster has {both['CPU']:g} CPUs and {both['GPU']:g} GPUs (search.resources)"
    if search.gpu == "required":
        raise TrainingError(f"training.search.gpu is required, but {why}")
    return cpus


def _refused(label_selector: Mapping[str, str], request: Mapping[str, float]) -> MlopsError:
    """That no node with the labels has room for a trial."""
    kind = PolicyError if REGION in label_selector else TrainingError
    return kind(placement.none(label_selector, request))


def _tell_of_waiting(request: Mapping[str, float], label_selector: Mapping[str, str]) -> None:
    """Says what trials wait for, where they have to: Ray itself says nothing."""
    if not any(fits(request, node) for node in placement.free(label_selector)):
        asked = " and ".join(f"{count:g} {what}" for what, count in request.items())
        hold = "services and other runs hold the rest (serving.resources)"
        logger.warning(
            "trials wait until a node has %s free (training.search.resources); %s",
            asked,
            "the autoscaler is asked for one, which takes minutes" if placement.grows() else hold,
        )


def free_cpus(label_selector: Mapping[str, str]) -> int:
    """The most CPUs that no one holds on a node that lives and has the labels; at least one."""
    return max(1, int(max((node.get("CPU", 0.0) for node in placement.free(label_selector)), default=1.0)))


def _nodes(label_selector: Mapping[str, str]) -> list[Mapping[str, float]]:
    """The resources of each node that lives and has the labels."""
    return [node["Resources"] for node in placement.living(label_selector)]


def places(
    request: Mapping[str, float], label_selector: Mapping[str, str]
) -> list[tuple[Mapping[str, str], int]]:
    """The labels of each node on which trials find room, and how many at once, if nothing else does."""
    found = [
        (node["Labels"], int(min(node["Resources"].get(name, 0.0) // each for name, each in request.items())))
        for node in placement.living(label_selector)
    ]
    return [(labels, count) for labels, count in found if count]


def _places(request: Mapping[str, float], label_selector: Mapping[str, str]) -> int:
    """How many trials find room in the cluster at once, if nothing else does."""
    return sum(count for _, count in places(request, label_selector))


def encode_folds(task: Task) -> dict[Style, list[Fold]]:
    """Every fold, sampled and encoded in each style that a family of the task asks for.

    A sample is drawn at random, as large as `training.search.rows` says. The encoder of a fold is learned on
    its training rows alone.
    """
    styles = dict.fromkeys(family.style for family in task.families.values())
    search = task.training.search
    parts = [
        Split(*(_sample(task, rows, search.rows, search.seed) for rows in (part.train, part.held_out)))
        for part in task.folds
    ]
    return {style: [_encode(task, part, style) for part in parts] for style in styles}


def _sample(task: Task, rows: Rows, count: int, seed: int) -> Rows:
    """So many of these rows at random, in their order; of a classification each class by its share."""
    if len(rows) <= count:
        return rows
    random = np.random.default_rng(seed)
    if task.kind == "regression":
        return np.sort(random.choice(rows, count, replace=False))
    positive = task.labels[rows] > 0
    few = round(count * positive.mean())
    if few < FEWEST:
        raise TrainingError(
            f"of {count} rows that a trial is given, {few} would be positive, too few to tell trials apart: "
            "raise training.search.rows"
        )
    drawn = (
        random.choice(rows[side], number, replace=False)
        for side, number in ((positive, few), (~positive, count - few))
    )
    return np.sort(np.concatenate(list(drawn)))


def _encode(task: Task, part: Split, style: Style) -> Fold:
    encoder, train = task.encoded(part.train, style)
    return Fold(train, encoder.transform(task.frame[part.held_out]), task.labels[part.held_out])


def _spaces(task: Task) -> dict[str, space.Space]:
    found, search = task.families, task.training.search
    for name in search.space:
        if name not in found:
            raise TrainingError(f"training.search.space: {name!r} is none of training.families")
    if search.trials < len(found):
        raise TrainingError(
            f"training.search.trials is {search.trials}, fewer than the {len(found)} families to try"
        )
    return {
        name: space.narrowed(name, families.space(family, task.kind), search.space.get(name, {}))
        for name, family in found.items()
    }


def fingerprint(task: Task, encoded: Mapping[Style, Sequence[Fold]]) -> str:
    """What makes a search this one: what its trials get, and what it is told to try."""
    data = hashlib.blake2b()
    for fold in itertools.chain(*encoded.values()):
        for values in (fold.train.x, fold.train.y, fold.train.weights, fold.x_held_out, fold.y_held_out):
            data.update(b"" if values is None else np.ascontiguousarray(values).data)
    config = task.training.model_dump(mode="json", include={"families", "metric", "search"}, exclude=LIMITS)
    return digest([data.hexdigest(), config, own.code(task.training), task.kind, repr(task.outcome)])


class _Suggests(Searcher):
    """Tells Tune what to try."""

    def __init__(self, watch: "_Watch", mode: str) -> None:
        super().__init__(SCORE, mode)
        self._watch = watch

    def suggest(self, trial_id: str) -> Any:
        search = self._watch.search
        if (made := search.ask()) is None:
            self._watch.publish()
            made = search.ask()
        if made is None:
            return Searcher.FINISHED if search.is_exhausted else None
        return {NUMBER: made.number, FAMILY: made.family, PARAMS: dict(made.params)}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """`_Watch` tells."""

    def save(self, checkpoint_path: str) -> None:
        """Tune would restore it after a kill; the journal does."""


class _Stops(FIFOScheduler):
    """Tells Tune which trials to stop, and which takes a worker that has become free."""

    def __init__(self, search: Search, places: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._search, self._places, self._up = search, places, 0

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        stopped = self._search.is_stopped(trial.config[NUMBER], result[FOLDS])
        return TrialScheduler.STOP if stopped else TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        """A worker is lost; another one is on the way."""
        self._up = 0

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        """The one that waits longest, but while workers start the one that came last.

        For who waits longest a worker is on the way. If that trial took a free one instead, Tune would call
        the coming one back; where trials are shorter than a worker's start, as many here are, there would
        never be a second one.
        """
        trials = tune_controller.get_trials()
        self._up = max(self._up, sum(trial.status == TuneTrial.RUNNING for trial in trials))
        waiting = [trial for trial in trials if trial.status == TuneTrial.PENDING]
        return waiting[0 if self._up >= self._places else -1] if waiting else None


class _InterruptedError(Exception):
    """Ctrl-C in the driver: Tune cleans up after an `Exception`, not after a `KeyboardInterrupt`."""


class _OverError(Exception):
    """All trials have ended: Tune would now save a state, and read files of results that nobody wrote."""


class _Watch(tune.Callback):
    """Writes down what comes of the trials, and tells; ends the search after Ctrl-C."""

    search: Search

    def __init__(
        self,
        task: Task,
        journal: Journal,
        on_progress: OnProgress,
        on_trial: Callable[[Trial], None],
        priced: Places | None,
    ) -> None:
        self._task, self._journal, self._priced = task, journal, priced
        self._on_progress, self._on_trial = on_progress, on_trial
        self.trials: list[Trial] = []
        self._ended: list[tuple[int, TuneTrial]] = []
        self._interrupted = False
        #: When trials that run began, what trials have cost that ended or were cut off, and the last beat.
        self._began: dict[str, float] = {}
        self._ended_cost = sum(self._cost(trial) or 0.0 for trial in journal.known.values())
        self._cut_cost, self._beat_at = journal.cut, -BEAT_S

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

    def on_trial_start(self, iteration: int, trials: list[Any], trial: TuneTrial, **info: Any) -> None:
        # Where its worker died it begins again.
        self._cut_cost += self._running.get(id_of(trial), 0.0)
        self._began[id_of(trial)] = time.monotonic()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: TuneTrial, **info: Any) -> None:
        self._ended.append((iteration, trial))
        self._began.pop(id_of(trial), None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: TuneTrial, **info: Any) -> None:
        self.on_trial_complete(iteration, trials, trial)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Publishes a step after a trial has ended: its worker has the next trial by then.

        Not where it ends: of an error there Tune would make a failed trial.
        """
        if self._ended and self._ended[0][0] < iteration - 1:
            self.publish()
        if time.monotonic() - self._beat_at >= BEAT_S:
            self._beat()
        if self.search.is_over:
            raise _OverError

    @property
    def spent(self) -> float:
        """What trials have cost that ended, were cut off, or run; 0 where no price is known."""
        return self._ended_cost + self._cut_cost + sum(self._running.values())

    @property
    def _running(self) -> dict[str, float]:
        """By their ids what trials have cost that run."""
        now, priced = time.monotonic(), self._priced
        return {id: priced.cost(now - began) for id, began in self._began.items()} if priced else {}

    def _cost(self, trial: Trial) -> float | None:
        """What it cost when it ran; of one that nobody priced then, by the price now."""
        if trial.cost is not None or self._priced is None:
            return trial.cost
        return self._priced.cost(trial.seconds)

    def _beat(self) -> None:
        self._beat_at = time.monotonic()
        if self._priced is not None:
            self._journal.beat(self._cut_cost, self._running)

    def cut_off(self) -> None:
        """Trials that have not ended run no more."""
        self._beat()
        self._cut_cost += sum(self._running.values())
        self._began.clear()

    def publish(self) -> None:
        """Writes down the trials that have ended, and lets the search know."""
        ended, self._ended = self._ended, []
        for _, each in ended:
            made = read_trial(each, len(self._task.folds))
            made = replace(made, cost=self._cost(made))
            self._ended_cost += made.cost or 0.0
            self._journal.add(made)
            self.search.end(int(made.id), made)

    def settled(self, trial: Trial) -> None:
        """Takes a trial whose place in the table is certain."""
        self.trials.append(trial)
        self._on_trial(trial)
        complete = [made for made in self.trials if made.state == "complete"]
        best = min(complete, key=partial(rank, loss=self._task.metric.loss), default=None)
        leads = f"; {best.family} leads with {best.score:.4g}" if best else ""
        self._on_progress(len(self.trials), self.search.total, f"{trial.family} {trial.state}{leads}")


@contextlib.contextmanager
def _quiet(**more: str) -> Iterator[None]:
    """Tune without its own console output and signal handler; the environment is as before afterwards."""
    wanted = TUNE_ENVIRONMENT | more
    before = {name: os.environ.get(name) for name in wanted}
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train", "optuna")]
    levels = [logger.level for logger in loggers]
    os.environ.update(wanted)
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
