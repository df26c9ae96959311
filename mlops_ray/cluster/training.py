"""A project's model trained: searched for, fitted, tested, packed, registered; and again from its record."""

import io
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import polars as pl

from mlops_ray import audit
from mlops_ray.cluster import evidence, holdings, meter, profitable
from mlops_ray.cluster.stages import Progress, Silent
from mlops_ray.config import Policy, Postprocess, Project, Training
from mlops_ray.cost.actual import price_of
from mlops_ray.cost.model import Places, replica_price
from mlops_ray.cost.prices import Price, money
from mlops_ray.data import counts, prediction_log
from mlops_ray.errors import ConfigError, PackageError, StorageError, TrainingError
from mlops_ray.expressions import SEARCH_PATH
from mlops_ray.features import dataset
from mlops_ray.features.dataset import TrainingSet
from mlops_ray.features.definitions import LABEL, FeatureSet
from mlops_ray.monitoring import known, performance, seasons, segments, skew
from mlops_ray.monitoring.deltas import PREDICTION
from mlops_ray.monitoring.performance import Expected
from mlops_ray.policy import label_selector
from mlops_ray.registry import estimator, package, signing
from mlops_ray.registry.models import Values
from mlops_ray.registry.package import Package
from mlops_ray.registry.predictor import Predictor
from mlops_ray.registry.registry import Registry
from mlops_ray.schema import Column
from mlops_ray.serving import deploy
from mlops_ray.storage import Storage, replacing
from mlops_ray.training import card, evaluate, journal, runs, sweep, tracking
from mlops_ray.training.card import Subject
from mlops_ray.training.diagnosis import LEAST, Diagnosis, HeldOut, diagnose
from mlops_ray.training.environment import environment
from mlops_ray.training.evaluate import Fitted, Report
from mlops_ray.training.leaderboard import Sweep
from mlops_ray.training.space import Point
from mlops_ray.training.sweep import Trial
from mlops_ray.training.task import Task

#: How far a metric of a model that is trained again may be from the recorded one, as a share of it: other
#: processors add in another order, and threads in any.
REPRODUCED_WITHIN = 0.01
#: How it begins what is said where prices do not say what a trial costs.
UNKNOWN = "what a trial costs is not known"
#: And what where the champion's answers cannot be had.
UNCOMPARED = "is not compared: "
#: Lines of the audit record.
BEGUN, REGISTERED = "a training was begun", "a version was registered"
#: What a package says of its training set.
KEPT = ("file", "digest", "rows", "as_of", "policies")


class Trust(TypedDict):
    """What `package.read` is told of signers and types."""

    trusted: frozenset[str]
    types: frozenset[str]


def task(
    project: Project, features: FeatureSet, training_set: TrainingSet, test_from: datetime | None
) -> Task:
    """What is to be learned from a training set, as the project file says."""
    source = project.sources[project.target.source]
    return Task(
        frame=training_set.frame,
        columns=features.columns,
        keys=source.entity,
        time=features.time,
        kind=project.target.task,
        training=project.training,
        horizon_us=features.horizon_us,
        label_delay_us=project.label_delay,
        test_from=test_from,
        season_us=source.season,
        transform=project.target.transform,
        postprocess=project.serving.postprocess,
        restricts=_restricts(project.policies),
    )


def _restricts(policies: Iterable[Policy]) -> bool:
    """Whether there are values that not everybody may see."""
    return any(policy.restricts for policy in policies)


class _Champion(NamedTuple):
    """What the champion answered to the rows of the test part."""

    version: int
    answers: Values
    threshold: float | None


class _Tested(NamedTuple):
    """What a search has won, on the test part: its `answers` to those rows, and what they are worth."""

    task: Task
    fitted: Fitted
    answers: Values
    report: Report
    training_set: TrainingSet


@dataclass(frozen=True)
class Trainer:
    """Trains versions of a project's model into its registry; needs a connected Ray cluster.

    `experiment` gives the id of the project's experiment in MLflow.
    """

    project: Project
    storage: Storage
    features: FeatureSet
    registry: Registry
    tracking_uri: str
    experiment: Callable[[], str]
    progress: Progress = field(default_factory=Silent)

    def train(
        self, task: Task, training_set: TrainingSet, *, run_id: str | None = None, start: Sequence[Point] = ()
    ) -> dict[str, Any]:
        """Sweeps, fits and tests the winner, packs and registers it; what came of it, as JSON.

        With `run_id` a search that was `killed` goes on in its run; `start` is tried first after defaults.
        """
        name, metric = self.project.project, task.training.metric
        found, folder = environment(Path(os.environ.get(SEARCH_PATH) or ".")), self._folder
        # Before anything asks the registry: it may have to be made.
        experiment = self.experiment()
        champion, notes = self._champion(task)
        priced, told = self._priced(task)
        begun = tracking.open_run(self.tracking_uri, experiment, name, resume=run_id)
        with begun as run, holdings.training(name):
            about = {"model": name, "run": run.id, "dataset": training_set.manifest["digest"]}
            begins = about | {"resumed": run_id is not None}
            self._tell_untold(name)
            audit.append(self.storage, BEGUN, audit.who(), begins)
            if run_id is None:
                sweep.forget(folder)
                self.storage.write_json({"run": run.id}, *self._running)
                run.log_origin(training_set.manifest, metric, found)
            if priced is not None:
                run.set_tags({tracking.CURRENCY: priced.currency})
            policies = self.project.policies
            with evidence.telling(self.storage, policies, "rows were trained on", about) as nodes:

                def on_trial(trial: Trial) -> None:
                    nodes.add(trial.node)
                    run.log_trial(trial)

                swept = sweep.run(
                    task,
                    folder=folder,
                    label_selector=self._selector,
                    on_progress=lambda done, total, what: self.progress.update(
                        f"trial {done} of {total}: {what}"
                    ),
                    on_trial=on_trial,
                    resume=run_id is not None,
                    start=start,
                    priced=priced,
                )
                nodes.update(trial.node for trial in swept.leaderboard)
                told += _ended(swept, task, priced)
                run.log_leaderboard(swept.leaderboard)
                best, cpus = swept.best, sweep.free_cpus(self._selector)
                self.progress.update(f"fitting {best.family} on all training rows")
                fitted = sweep.fit(task, best.family, best.params, label_selector=self._selector, cpus=cpus)
                nodes.add(fitted.node)
            self.progress.update(f"testing {best.family}")
            report = evaluate.test(task, fitted, champion and champion.answers)
            refused = evaluate.gate(report, self.project.training.gate, task.metric)
            refused += [fitted.missed] if fitted.missed else []
            run.log_params({"family": best.family, **best.params})
            cost = _cost(swept, fitted, priced)
            run.log_metrics(report.metrics | ({tracking.COST: cost["amount"]} if cost else {}))
            answers = fitted.predict(task.frame[task.test.held_out])
            tested = _Tested(task, fitted, answers, report, training_set)
            diagnosis = self._diagnosed(tested)
            packed = self._pack(tested, diagnosis, cpus)
            self.progress.update("drawing the model card")
            subject = self._subject(tested, diagnosis, found, refused + notes)
            audit.require(self.storage)
            version = self.registry.register(packed, run_id=run.id, metric=metric, cost=cost)
            registered = about | {"version": version, "digest": packed.digest, "refused": refused}
            audit.append(self.storage, REGISTERED, audit.who(), registered, is_done=True)
            self._keep_worth(tested, champion, version)
            sweep.forget(folder)
            told_of = replace(subject, version=version, trials=swept.leaderboard, cost=cost)
            files = card.files(told_of)
            run.log_files(files)
            page = self.storage.path("reports", f"model-{name}-{version}.html")
            with replacing(page) as new:
                new.write_text(files["card.html"], "utf-8")
        try:
            runs.keep(self.storage, name, self.tracking_uri)
        except StorageError as error:
            # The version is registered, whatever the page may show.
            notes = [*notes, f"the dashboard does not show this run yet: {error}"]
        return {
            "version": version,
            "run_id": run.id,
            "family": best.family,
            "params": best.params,
            "leaderboard": [_row(trial) for trial in swept.leaderboard],
            "metrics": report.metrics,
            "intervals": report.intervals,
            "baselines": report.baselines,
            "refused": refused,
            "notes": [*notes, *told],
            "ended_by": swept.ended_by,
            "cost": cost,
            "card": str(page),
        }

    def _tell_untold(self, name: str) -> None:
        """Has the audit record hear of versions where a training that was cut off did not tell it."""
        runs, told = {}, set()
        for each in audit.entries(self.storage):
            if each["about"].get("model") == name and each["what"] == BEGUN:
                runs[each["about"]["run"]] = each["by"]
            elif each["about"].get("model") == name and each["what"] == REGISTERED:
                told.add((each["about"]["run"], each["about"]["version"]))
        for found in reversed(self.registry.versions(name)):
            if found["run_id"] in runs and (found["run_id"], found["version"]) not in told:
                about = {"model": name, "run": found["run_id"]}
                about |= {key: found[key] for key in ("version", "digest")}
                audit.append(self.storage, REGISTERED, runs[found["run_id"]], about, is_done=True)

    @property
    def _folder(self) -> Path:
        """Where a search keeps what it needs to be resumed."""
        return self.storage.path("sweep", self.project.project, "x").parent

    @property
    def _running(self) -> tuple[str, str]:
        """Where the run stands whose search is going on, or was killed."""
        return "training", f"{self.project.project}.json"

    def killed(self) -> str:
        """The id of the run whose search was killed; raises `TrainingError` where there is none."""
        document = self.storage.read_json(*self._running)
        if document is None or not (self._folder / journal.FILE).exists():
            raise TrainingError(
                "there is no search to resume: none was begun, or it is over; leave out --resume"
            )
        return str(document["run"])

    def won(self, like: str) -> Sequence[Point]:
        """What won in the runs likest to this one; raises `UsageError` where not exactly one is called so."""
        return runs.warm_start(runs.alike(tracking.recorded(self.tracking_uri), like))

    @property
    def trust(self) -> Trust:
        """Whose packages are read here, and what types a model in them may hold."""
        return {
            "trusted": signing.trusted(self.project, self.storage),
            "types": estimator.allowed(self.project),
        }

    @property
    def _selector(self) -> Mapping[str, str]:
        """Of the nodes that may see the rows, and where trials are to run."""
        return label_selector(self.project.policies) | self.project.training.search.resources.labels

    def _priced(self, task: Task) -> tuple[Places | None, list[str]]:
        """What trials cost, `None` where that is not known; and what a person should know of that.

        Raises `ConfigError` where the search has a budget and it is not known.
        """
        if self.project.cost.prices is None:
            return None, []
        listed, notes = meter.priced(self.project)
        request = sweep.resources(task, self._selector)
        cpu, gpu = request["CPU"], request.get("GPU", 0.0)
        machines, unknown, budget = list[tuple[Price, int]](), set[str](), task.training.search.budget
        for labels, count in sweep.places(request, self._selector):
            machine, spot = meter.type_of(labels, self.project.cost.machine or "")
            price = price_of(listed, machine, spot, self.project.cost.region)
            if price is None or math.isinf(replica_price(price, cpu, gpu)):
                unknown.add(machine or "a machine that does not say its type (cost.machine)")
            else:
                machines.append((price, count))
        if unknown or not machines:
            why = f"no price, or more than one, fits {', '.join(sorted(unknown))}"
            why = f"{UNKNOWN}: {why if unknown else 'no node has room for one yet'}"
            if budget is not None:
                raise self._budget(why)
            return None, [*notes, why]
        if budget is not None and budget.currency != listed.currency:
            raise self._budget(
                f"is in {budget.currency}, and the prices in {listed.currency}: say both in one"
            )
        return Places(tuple(machines), cpu, gpu), notes

    def _budget(self, said: str) -> ConfigError:
        return self.project.located(ConfigError(said, at=("training", "search", "budget")))

    def _keep_worth(self, tested: _Tested, champion: _Champion | None, version: int) -> None:
        """Writes down what the answers are worth beside the champion's, where the project says so."""
        task = tested.task
        rows = task.test.held_out
        if champion is not None:
            sides = tested.answers, champion.answers
            thresholds = tested.fitted.outcome.threshold, champion.threshold
            found = profitable.compared(
                self.project, task.labels[rows], *sides, task.blocks(rows), thresholds
            )
            if found is not None:
                profitable.keep(self.storage, self.project.project, version, champion.version, found)

    def _champion(self, task: Task) -> tuple[_Champion | None, list[str]]:
        """The champion's answers to the test rows, or in a sentence why it cannot be compared."""
        version = self.registry.champion(self.project.project)
        if version is None:
            return None, []
        why = f"the champion, version {version}, {UNCOMPARED}"
        try:
            predictor = self._predictor(version)
        except PackageError as error:
            return None, [f"{why}{error}"]
        packed = predictor.package
        if _meaning(packed.feature_set) != _meaning(self.features):
            return None, [f"{why}it has other features, which are not in this training set"]
        if asked(packed.manifest["target"]) != asked(self.project.target.model_dump(mode="json")):
            return None, [f"{why}it answers another question"]
        answers = predictor.predict_features(task.frame[task.test.held_out].select(self.features.names))
        return _Champion(version, answers, packed.outcome.threshold), []

    def _predictor(self, version: int) -> Predictor:
        """A registered version, signed by a key that is trusted here."""
        trust, functions = self.trust, self.project.functions
        packed = self.registry.package(self.project.project, version, **trust)
        return Predictor.load(packed.folder, None, digest=packed.digest, functions=functions, **trust)

    def _diagnosed(self, tested: _Tested) -> Diagnosis:
        """Where the model errs on the test rows, and what it goes by."""
        task, fitted, answers, *_ = tested
        rows, seed, fewest = task.test.held_out, task.training.search.seed, self._fewest
        held = HeldOut(
            task.frame[rows],
            task.times[rows],
            task.labels[rows],
            answers,
            task.blocks(rows),
            task.metric,
            seed,
            max(LEAST, fewest),
            fewest,
        )
        return diagnose(
            held,
            fitted.predict,
            self.features.names,
            self.project.monitoring.segments,
            self._hidden,
            evaluate.learned(task, fitted),
        )

    def _subject(
        self, tested: _Tested, diagnosis: Diagnosis, found: Mapping[str, Any], refused: list[str]
    ) -> Subject:
        """What the model card says, of no version yet."""
        task, fitted, _, report, training_set = tested
        known = task.frame[task.test.train].select(self.features.names)
        target = self.project.target
        return Subject(
            project=self.project.project,
            version=0,
            predicts=f"It predicts {target.expr} of {target.source}.",
            decision=_decision(task, fitted),
            model={"family": fitted.family, **fitted.params},
            metric=task.metric,
            report=report,
            diagnosis=diagnosis,
            manifest=training_set.manifest,
            missing={name: known[name].null_count() / known.height for name in known.columns},
            environment=found,
            libraries=package.libraries(fitted.model),
            refused=refused,
        )

    def _pack(self, tested: _Tested, diagnosis: Diagnosis, cpus: int) -> Package:
        task, fitted, answers, report, training_set = tested
        known = task.frame[task.test.train].select(self.features.names)
        # Cells of a column are made of its values.
        shown = (column for column in self.features.columns if not column.hidden)
        counted = counts.reference(known, tuple(shown), task.training.search.seed)
        held_out = task.frame[task.test.held_out]
        expected, errors = self._expected(task, fitted, held_out, answers)
        weighed = {str(each.at): each.value for each in diagnosis.importance}
        # Answers to rows that the model learned from would look too sure.
        answered = counts.reference(
            pl.DataFrame({PREDICTION: answers}), [Column(PREDICTION, "float")], task.training.search.seed
        )
        return package.write(
            self.storage.path("artifacts", "packages", self.project.project),
            name=self.project.project,
            task=task.kind,
            family=fitted.family,
            params=fitted.params,
            model=fitted.model,
            encoder=fitted.encoder,
            feature_set=self.features,
            target=self.project.target.model_dump(mode="json"),
            outcome=fitted.outcome,
            metrics=report.metrics,
            baselines=report.baselines,
            intervals=report.intervals,
            origin=_origin(task, cpus),
            training_set={k: training_set.manifest[k] for k in KEPT}
            | {"digest": training_set.digest}
            | self._kept(tested, held_out),
            reference=counted.beside(answered).to_json(),
            expected=replace(
                expected,
                importance=weighed,
                # Its cells end at labels of single rows.
                losses=None if task.restricts else expected.losses,
            ).to_json(),
            errors=errors,
            seasons=self._seasons(task, held_out, answers),
            created_at=datetime.now(UTC),
            sign=signing.own_key(self.project, self.storage),
        )

    def _kept(self, tested: _Tested, held_out: pl.DataFrame) -> dict[str, str]:
        """Where rows of the test lie with what was answered and what came true (monitoring.weighted)."""
        task, answers = tested.task, tested.answers
        if task.kind == "regression":
            return {}
        labels = pl.Series(LABEL, task.labels[task.test.held_out])
        rows = held_out.select(self.features.names).with_columns(labels, pl.Series(PREDICTION, answers))
        some = prediction_log.spread(rows.lazy(), known.MOST_TESTED)
        return {"tested": dataset.keep_tested(tested.training_set, some)}

    def _seasons(self, task: Task, held_out: pl.DataFrame, answers: Values) -> bytes | None:
        """What is usual of the entities, as Parquet; `None` where rows could change places."""
        watch = seasons.Watch.of(self.features, task.keys)
        if not self.features.tables or not seasons.recurs(watch, task.frame):
            return None
        if task.restricts:
            # Means of an entity's hours are those of a few rows.
            watch = watch._replace(lags_us={})
        usual = seasons.learn(watch, task.frame, held_out.with_columns(pl.Series(PREDICTION, answers)))
        made = io.BytesIO()
        usual.write_parquet(made)
        return made.getvalue()

    def _expected(
        self, task: Task, fitted: Fitted, held_out: pl.DataFrame, answers: Values
    ) -> tuple[Expected, dict[str, bytes]]:
        """What the labelled rows of the test say of the model's quality."""
        rows = task.test.held_out
        by = segments.asked(
            held_out,
            self.project.monitoring.segments,
            self.features.names,
            self._hidden,
            self._fewest,
        )
        return performance.expect(
            task.kind,
            task.training.metric,
            task.labels[rows],
            answers,
            task.blocks(rows),
            threshold=fitted.outcome.threshold,
            matrix=fitted.encoder.transform(held_out),
            seed=task.training.search.seed,
            by=by,
        )

    @property
    def _hidden(self) -> frozenset[str]:
        """Columns of which no value may be shown."""
        hidden = frozenset(name for source in self.project.sources.values() for name in source.hidden)
        return hidden | {column.name for column in self.features.columns if column.hidden}

    @property
    def _fewest(self) -> int:
        """Of fewer rows nothing at all is said, where something is hidden."""
        restricting = (policy for policy in self.project.policies if policy.restricts)
        return max((policy.minimum_count for policy in restricting), default=0)

    def reproduce(self, version: int) -> dict[str, Any]:
        """Trains a version again from its record and compares it with what was registered.

        Gives back the metrics of the test part then and now, whether each is within `REPRODUCED_WITHIN`,
        whether the model's file has the same bytes, and the largest difference of two answers. Raises what
        `dataset.rebuild` raises where its training set cannot be made again.
        """
        predictor = self._predictor(version)
        packed = predictor.package
        recorded = self.storage.path(dataset.FOLDER, packed.manifest["training_set"]["file"])
        # Those that it was made under, and today's.
        policies = [*skew.policies(packed), *self.project.policies]
        about = {"model": self.project.project, "version": version}
        with evidence.telling(self.storage, policies, "rows were joined", about) as nodes:
            training_set = dataset.rebuild(
                recorded.with_suffix(".json"), self.project.functions, self.project.policies, nodes.add
            )
        again, cpus = _task_of(packed, training_set, _restricts(policies))
        selector = {**self._selector, **label_selector(policies)}
        with (
            holdings.training(self.project.project),
            evidence.telling(self.storage, policies, "rows were trained on", about) as nodes,
        ):
            fitted = sweep.fit(again, packed.family, packed.params, label_selector=selector, cpus=cpus)
            nodes.add(fitted.node)
        held_out = again.test.held_out
        before, now = (by(again.frame[held_out]) for by in (predictor.predict_features, fitted.predict))
        scores = evaluate.scores(again, again.labels[held_out], now, fitted.outcome, np.ones(len(held_out)))
        pairs = {name: (value, scores[name]) for name, value in packed.metrics.items()}
        libraries = package.libraries(fitted.model)
        return {
            "version": version,
            "metrics": {name: {"recorded": was, "now": value} for name, (was, value) in pairs.items()},
            "within": all(_is_near(was, value) for was, value in pairs.values()),
            "same_file": fitted.model.to_bytes() == packed.model.to_bytes(),
            "largest_difference": float(np.abs(before - now).max()),
            "changed_libraries": {
                name: [was, libraries.get(name)]
                for name, was in packed.manifest["libraries"].items()
                if libraries.get(name) != was
            },
        }


def _decision(task: Task, fitted: Fitted) -> str:
    """When an answer counts as a yes, and what that was chosen for."""
    threshold = fitted.outcome.threshold
    if threshold is None:
        return ""
    wish = task.threshold.for_ if task.threshold else None
    said: Any = wish
    if wish is not None and not isinstance(wish, str):
        said = " ".join(f"{name} {value}" for name, value in wish.model_dump(exclude_none=True).items())
    return f"From {threshold:.4g} on the answer is yes" + (f", chosen for {said}." if said else ".")


def _is_near(recorded: float | None, now: float) -> bool:
    """Whether a metric is reproduced; one that the rows do not say is recorded as `None`."""
    if recorded is None or not np.isfinite(now):
        return recorded is None and not np.isfinite(now)
    return abs(now - recorded) <= REPRODUCED_WITHIN * max(abs(recorded), 1e-9)


def _origin(task: Task, cpus: int) -> dict[str, Any]:
    """What a model depends on beside the rows, its family and parameters; read by `_task_of`."""
    return {
        "training": task.training.model_dump(mode="json", by_alias=True, exclude=sweep.LIMITS),
        "keys": list(task.keys),
        "label_delay_us": task.label_delay_us,
        "test_from": task.test_from and task.test_from.isoformat(),
        "season_us": task.season_us,
        "transform": task.transform,
        "postprocess": task.postprocess.model_dump(mode="json"),
        "cpus": cpus,
        "code": deploy.code_digest(),
    }


def _task_of(packed: Package, training_set: TrainingSet, restricts: bool) -> tuple[Task, int]:
    """What a version was learned from, and with how many threads."""
    origin, features = packed.origin, packed.feature_set
    begin = origin["test_from"]
    again = Task(
        frame=training_set.frame,
        columns=features.columns,
        keys=tuple(origin["keys"]),
        time=features.time,
        kind=packed.task,
        training=Training.model_validate(origin["training"]),
        horizon_us=features.horizon_us,
        label_delay_us=origin["label_delay_us"],
        test_from=begin and datetime.fromisoformat(begin),
        season_us=origin["season_us"],
        transform=origin["transform"],
        postprocess=Postprocess.model_validate(origin["postprocess"]),
        restricts=restricts,
    )
    return again, origin["cpus"]


def _meaning(features: FeatureSet) -> tuple[Any, ...]:
    """What makes the features of two versions the same columns."""
    columns = [replace(column, hidden=False) for column in features.columns]
    return columns, features.stored, features.computed, features.horizon_us


def asked(target: Mapping[str, Any]) -> list[Any]:
    """What makes the answers of two versions answers to one question."""
    return [target.get(name) for name in ("expr", "where", "positive", "task", "horizon")]


def _ended(swept: Sweep, task: Task, priced: Places | None) -> list[str]:
    """That a limit ended a search, and what was spent until then."""
    if not swept.ended_by:
        return []
    asked, tried = task.training.search, len(swept.leaderboard)
    said = f"training.search.{swept.ended_by} ended the search after {tried} of {asked.trials} trials"
    if swept.spent is not None and priced is not None:
        of = f" of {money(asked.budget.amount, asked.budget.currency)}" if asked.budget else ""
        said += f"; {money(swept.spent, priced.currency)}{of} were spent"
    return [said]


def _cost(swept: Sweep, fitted: Fitted, priced: Places | None) -> dict[str, Any] | None:
    """What a version has cost, the search and the winner's fit; `None` where no price is known."""
    if priced is None or swept.spent is None or fitted.held is None:
        return None
    fit = priced.cost(*fitted.held)
    about = {"search": swept.spent, "fit": fit, "currency": priced.currency}
    return {"amount": swept.spent + fit, **about}


def _row(trial: Trial) -> dict[str, Any]:
    return {
        "family": trial.family,
        "params": dict(trial.params),
        "score": trial.score,
        "folds": list(trial.fold_scores),
        "seconds": trial.seconds,
        "predict_us": trial.predict_us,
        "cost": trial.cost,
        "state": trial.state,
        "error": trial.error,
    }
