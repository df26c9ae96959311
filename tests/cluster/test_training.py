"""A classification trained on Ray from a file: what is registered, what MLflow has, and the same again."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import mlflow
import numpy as np
import orjson
import polars as pl
import pytest
import ray

from mlops_ray import audit, cli, config
from mlops_ray.cluster import costs, evidence, holdings, local, profitable, service, stages, training
from mlops_ray.cluster.pipeline import Pipeline, registered
from mlops_ray.cluster.stages import Progress, Silent
from mlops_ray.config import Policy
from mlops_ray.cost.model import Places
from mlops_ray.cost.prices import money
from mlops_ray.cost.profit import Compared, Worth
from mlops_ray.errors import ConfigError, PackageError, TrainingError, UsageError
from mlops_ray.features import dataset, join
from mlops_ray.monitoring import known, skew
from mlops_ray.monitoring.performance import Expected
from mlops_ray.policy import HERE
from mlops_ray.registry.predictor import Predictor
from mlops_ray.serving import record
from mlops_ray.storage import Storage
from mlops_ray.training import runs, tracking
from mlops_ray.training.leaderboard import Sweep, Trial
from mlops_ray.training.task import Task
from tests.cost.cases import machine
from tests.security.canaries import found_in
from tests.training import made

PROJECT = """
project: churn
sources:
  visits:
    path: visits.csv
    entity: customer
    event_time: {column: time, timezone: UTC}
    columns:
      customer: {type: category}
      spent: {type: float, min: 0}
      plan: {type: category}
      outcome: {type: category}
    policy: {machine_only: [plan]}
features:
  past: {source: visits, features: {before: {value_at: {of: spent, ago: 1d}}, had: {latest: plan}}}
target: {source: visits, expr: outcome, positive: left, horizon: 1d, task: classification}
training:
  families: [logistic, xgboost]
  search: {trials: 4, seed: 7, space: {xgboost: {n_estimators: 20}}}
  metric: average_precision
  validation: {by: time, test: {share: 20%}, folds: 2}
  imbalance: {weights: balanced, threshold: {for: {recall: 0.5}}}
  gate: {better_than: [naive, champion]}
monitoring: {segments: [customer]}
"""
#: The line of its search.
LINE = PROJECT[: PROJECT.index("search:")].count("\n") + 1
#: Values that nobody may see.
PLANS = ["plan-of-gold", "plan-of-tin"]


def visits(days: int = 60, customers: int = 40) -> str:
    """Who spent little the day before, or has no gold, is the likelier to leave."""
    random = np.random.default_rng(7)
    # The last of these is no amount that is possible.
    lines = ["customer,time,spent,plan,outcome", "c0,2016-01-01T00:00:00Z,-1,plan-of-tin,left"]
    spent, plans = random.random(customers), random.integers(0, 2, customers)
    for day in range(days):
        chance = np.where(spent < 0.3, 0.5, 0.05) + 0.3 * plans
        spent, plans = random.random(customers), random.integers(0, 2, customers)
        for each in range(customers):
            outcome = "left" if random.random() < chance[each] else "stayed"
            time = f"2016-{1 + day // 28:02d}-{1 + day % 28:02d}T12:00:00Z"
            lines.append(f"c{each},{time},{spent[each]:.4f},{PLANS[plans[each]]},{outcome}")
    return "\n".join(lines)


@dataclass
class Trained:
    """A project whose model was trained once."""

    folder: Path
    storage: Storage
    result: dict[str, Any]

    def pipeline(self, text: str = PROJECT, progress: Progress | None = None) -> Pipeline:
        (self.folder / "project.yaml").write_text(text)
        return Pipeline(config.load(self.folder / "project.yaml", {}), self.storage, progress or Silent())

    def forget(self) -> None:
        """Every stage is done again, whatever was done last."""
        (self.storage.root / stages.FILE).unlink(missing_ok=True)

    def train(self, text: str = PROJECT, progress: Progress | None = None, **how: Any) -> dict[str, Any]:
        made = self.pipeline(text, progress)
        return made.train(made.build(made.ingest()), **how)


@pytest.fixture(scope="module")
def trained(ray_cluster: object, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("churn")
    (folder / "visits.csv").write_text(visits())
    made = Trained(folder, Storage.open(str(folder / ".mlops")), {})
    made.result = made.train()
    return made


def test_the_winner_knows_more_than_the_share_and_reaches_its_recall(trained: Trained) -> None:
    found, metric = trained.result, "average_precision"
    assert found["refused"] == []
    (note,) = found["notes"]
    assert note.startswith("1 of the 2,401 rows of visits read last are in quarantine: see ")
    assert found["metrics"][metric] > 1.3 * found["baselines"]["prevalence"][metric]
    low, high = found["intervals"][metric]
    assert low < found["metrics"][metric] < high
    assert found["metrics"]["recall"] > 0.4
    assert "Model card" in Path(found["card"]).read_text()
    assert len(found["leaderboard"]) == 4
    scores = [trial["score"] for trial in found["leaderboard"] if trial["state"] == "complete"]
    assert scores == sorted(scores, reverse=True)


def test_the_version_is_listed_with_the_metric_that_decided(trained: Trained) -> None:
    made = trained.pipeline()
    (version,) = registered(made.project, trained.storage)
    assert (version["version"], version["state"], version["metric"]) == (1, "registered", "average_precision")


def test_the_training_and_the_version_that_came_of_it_are_recorded(trained: Trained) -> None:
    run, version = trained.result["run_id"], trained.result["version"]
    told = {
        each["what"]: (each["by"], each["about"])
        for each in audit.entries(trained.storage)
        if each["about"].get("run") == run
    }
    made = trained.pipeline()
    digest = made.build(made.ingest()).manifest["digest"]
    (listed,) = (each for each in registered(made.project, made.storage) if each["version"] == version)
    about = {"model": "churn", "run": run, "dataset": digest}
    assert told == {
        "a training was begun": (audit.who(), about | {"resumed": False}),
        "a version was registered": (
            audit.who(), about | {"version": version, "digest": listed["digest"], "refused": []},
        ),
    }  # fmt: skip


def test_it_is_the_same_when_it_is_trained_again_from_its_record(trained: Trained) -> None:
    found = trained.pipeline().trainer.reproduce(1)
    assert found["within"]
    assert found["same_file"]
    assert found["largest_difference"] == 0.0
    assert found["changed_libraries"] == {}
    assert set(found["metrics"]) == set(trained.result["metrics"])


def test_reproducing_tells_where_rows_were_joined_and_trained_on(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: dict[str, tuple[object, set[str]]] = {}

    def tell(_: object, policies: object, what: str, about: object, ids: Iterable[str]) -> None:
        heard[what] = about, set(ids)

    monkeypatch.setattr(evidence, "tell", tell)
    monkeypatch.setattr(join, "ROWS_IN_PROCESS", 0)
    trained.pipeline().trainer.reproduce(1)
    here = {"model": "churn", "version": 1}, {node["NodeID"] for node in ray.nodes()}
    assert heard == {"rows were joined": here, "rows were trained on": here}


def test_reproducing_keeps_to_the_policies_of_then_and_of_today(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def heard(*_: Any, label_selector: Any, **how: Any) -> None:
        asked.append(label_selector)
        raise ZeroDivisionError

    monkeypatch.setenv(HERE, "eu-de")
    monkeypatch.setattr(skew, "policies", lambda _: [Policy(allowed_regions=("eu-de", "eu-fr"))])
    monkeypatch.setattr(training.sweep, "fit", heard)
    joined = dataset.join
    monkeypatch.setattr(
        dataset, "join", lambda *a, selector, **how: asked.append(selector) or joined(*a, **how)
    )
    today = PROJECT.replace(
        "{machine_only: [plan]", "{machine_only: [plan], allowed_regions: [eu-de, us-east]"
    )
    with pytest.raises(ZeroDivisionError):
        trained.pipeline(today).trainer.reproduce(1)
    assert asked == [{"region": "in(eu-de,us-east)"}, {"region": "in(eu-de)"}]


def test_a_change_of_the_project_does_not_change_what_is_reproduced(trained: Trained) -> None:
    changed = PROJECT.replace("metric: average_precision", "metric: roc_auc").replace("left", "stayed")
    found = trained.pipeline(changed).trainer.reproduce(1)
    assert found["same_file"]


def test_what_was_answered_to_the_test_is_kept_beside_the_training_set(trained: Trained) -> None:
    packed = trained.pipeline().registry.package("churn", 1)
    tested = known.tested(trained.storage.root, packed)
    assert tested is not None
    assert set(tested.columns) == {*packed.feature_set.names, "prediction", "label"}
    measured = Expected.from_json(packed.expected or {}).measure(
        tested["label"].to_numpy(), tested["prediction"].to_numpy()
    )
    for metric, value in measured.items():
        assert value == pytest.approx(trained.result["metrics"][metric])


def test_mlflow_has_the_run_its_trials_and_the_card(trained: Trained) -> None:
    made = trained.pipeline()
    found = tracking.recorded(made.tracking_uri, "churn")
    (job,) = [run for run in found if run.parent is None]
    assert len([run for run in found if run.parent == job.id]) == 4
    assert job.status == "FINISHED"
    assert job.metrics["average_precision"] == trained.result["metrics"]["average_precision"]
    folder = Path(mlflow.artifacts.download_artifacts(run_id=job.id, tracking_uri=made.tracking_uri))
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert {
        "card.html",
        "card.md",
        "diagnosis.json",
        "leaderboard.csv",
        "training_set.json",
        "environment.json",
        "plots/calibration.svg",
        "plots/precision_recall.svg",
        "plots/roc.svg",
        "plots/importance.svg",
        "plots/learning.svg",
    } <= files
    diagnosis = orjson.loads((folder / "diagnosis.json").read_bytes())
    assert "customer" in diagnosis["segments"]
    # What is made of a machine's column is weighed, and none of its values is shown.
    assert "had" not in diagnosis["segments"]
    assert "had" in [figure["at"] for figure in diagnosis["importance"]]
    told = [path for path in folder.rglob("*") if path.suffix in (".html", ".md", ".svg", ".csv")]
    assert not [path for path in told if any(plan in path.read_text() for plan in PLANS)]


def test_no_value_that_nobody_may_see_is_in_a_package_or_in_mlflow(trained: Trained) -> None:
    """Though a feature shows it: found where rows are kept for machines, and in nothing that leaves."""
    kept = {path.relative_to(trained.storage.root).parts[0] for path in found_in(trained.storage.root, PLANS)}
    assert kept == {"features", "datasets", "online.db"}
    packed = trained.pipeline().registry.package("churn", 1)
    assert [spec["name"] for spec in packed.reference["columns"]] == ["before", "prediction"]
    assert {row["had"] for row in packed.document("examples.json")["rows"]} == {None}


def test_the_package_knows_its_segments_and_none_by_what_nobody_may_see(trained: Trained) -> None:
    known = Expected.from_json(trained.pipeline().registry.package("churn", 1).expected or {})
    assert set(known.cuts) == {"customer"}
    # Of each customer the test part has twelve days, which are too few; of all together it has enough.
    assert known.cuts["customer"].names == ("(others)", "(missing)")
    all_, missing = known.cuts["customer"].realised
    assert all_ is not None
    assert all_.rows > 400
    assert missing is None
    # Where something is hidden, cells of labels, which end at those of single rows, are not kept.
    assert known.losses is None


def test_a_package_of_another_signer_is_not_what_the_champion_is_compared_with(trained: Trained) -> None:
    made = trained.pipeline()
    other = Storage.open(str(trained.folder / "other"))
    object.__setattr__(made.trainer, "storage", other)
    with pytest.raises(PackageError, match="cannot be trusted"):
        made.trainer.reproduce(1)


def test_mlflow_s_loader_and_ours_give_the_same_answers(trained: Trained) -> None:
    made = trained.pipeline()
    packed = made.registry.package("churn", 1)
    rows = pl.DataFrame(
        {"before": [0.1, None, 0.9], "had": [PLANS[0], "never seen", None]},
        schema={"before": pl.Float64, "had": pl.String},
    ).select(packed.feature_set.names)
    ours = Predictor.load(packed.folder, None).predict_features(rows)
    mlflow.set_tracking_uri(made.tracking_uri)
    loaded = mlflow.pyfunc.load_model("models:/churn/1")
    assert loaded.predict(rows.to_pandas()).tolist() == ours.tolist()


def test_what_won_before_on_like_data_is_tried_first(trained: Trained) -> None:
    made = trained.pipeline()
    run = trained.result["run_id"]
    (first, *_) = runs.warm_start(runs.alike(tracking.recorded(made.tracking_uri), run))
    assert first == (trained.result["family"], trained.result["params"])
    text = PROJECT.replace("trials: 4", "trials: 3").replace(
        "families: [logistic, xgboost]", f"families: [{first[0]}]"
    )
    again = trained.train(text, start=made.trainer.won(run))
    assert first[1] in [trial["params"] for trial in again["leaderboard"]]


def test_a_tracking_server_holds_runs_versions_and_packages(trained: Trained, mlflow_server: str) -> None:
    text = PROJECT.replace("project: churn", f"project: churn-http\ntracking: {mlflow_server}")
    made = trained.pipeline(text)
    found = made.train(made.build(made.ingest()))
    folder, digest = made.registry.stored(trained.storage, "churn-http", found["version"])
    assert folder.is_relative_to(trained.storage.root)
    assert made.registry.stored(trained.storage, "churn-http", found["version"]) == (folder, digest)
    assert made.push(found) == found["version"]
    (asked,) = record.asked(trained.storage, "churn-http")
    assert (asked.what, asked.version) == ("push", str(found["version"]))
    assert len(tracking.recorded(mlflow_server, "churn-http")) == 5


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"resume": True}, TrainingError, "no search to resume"),
        ({"like": "0123"}, UsageError, "--like: 0 runs are called '0123'"),
    ],
)
def test_what_cannot_be_is_said_before_a_cluster_is_started(
    how: dict[str, Any], error: type[Exception], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project.yaml").write_text(PROJECT)
    (tmp_path / "visits.csv").write_text(visits(2))
    monkeypatch.setattr(local, "start", lambda *_, **__: pytest.fail("a cluster was started"))
    # It would end the connection that other tests use.
    monkeypatch.setattr(service, "_leave_cluster", lambda *_, **__: None)
    project = config.load(tmp_path / "project.yaml", {})
    storage = Storage.open(str(tmp_path / "other"))
    with pytest.raises(error, match=says):
        service.train(project, storage, Silent(), **how)
    assert not storage.path("mlflow.db").exists()


def test_what_nobody_may_see_counts_as_before_for_the_champion(trained: Trained) -> None:
    """To hide a column changes what is shown and no answer: the champion is compared all the same."""
    made, shown = trained.pipeline(), trained.pipeline(PROJECT.replace("policy: {machine_only: [plan]}", ""))
    made.registry.set_champion("churn", 1)
    training_set = made.build(made.ingest())
    task = training.task(made.project, made.features, training_set, None)
    assert task.restricts
    assert not training.task(shown.project, shown.features, training_set, None).restricts
    assert made.features != shown.features
    champion, notes = shown.trainer._champion(task)
    assert (champion is not None, notes) == (True, [])


def test_what_answers_are_worth_is_compared_with_the_champion_on_the_same_rows(trained: Trained) -> None:
    """Of two versions that answer the same one is worth as much as the other."""
    worth = "cost: {value: {matrix: {costs: [[0, 1], [10, 0]], currency: EUR}}}\n"
    made = trained.pipeline()
    made.registry.set_champion("churn", 1)
    trained.forget()
    again = trained.train(PROJECT + worth)
    found = trained.storage.read_json(profitable.WORTHS, "churn", f"{again['version']}.json")
    assert found["against"] == "1"
    compared, said = Compared(**found["errors"]), Worth("EUR", matrix=((0, 1), (10, 0)))
    assert compared.champions(said) < 0
    mean, error, freedom = compared.difference(said)
    assert mean == pytest.approx(0, abs=1e-9)
    assert error == pytest.approx(0, abs=1e-9)
    assert freedom > 1


class Looks(Silent):
    """Looks who holds something of the cluster whenever something is told."""

    def __init__(self) -> None:
        self.seen = set[str]()

    def update(self, message: str) -> None:
        self.seen |= {each.name for each in holdings.works()}


def test_what_a_training_holds_is_known_by_its_model_until_it_is_over(trained: Trained) -> None:
    looks = Looks()
    trained.train(PROJECT.replace("seed: 7", "seed: 8"), looks)
    assert looks.seen == {"training churn"}
    assert not any("training" in each.name for each in holdings.works())


def test_a_training_that_fails_says_all_the_same_on_which_nodes_rows_were(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, set[str]] = {}

    def tell(_: object, policies: object, what: str, about: object, ids: Iterable[str]) -> None:
        told[what] = set(ids)

    def fit(*_: object, **how: object) -> None:
        raise TrainingError("no memory")

    monkeypatch.setattr(evidence, "tell", tell)
    monkeypatch.setattr(training.sweep, "fit", fit)
    with pytest.raises(TrainingError, match="no memory"):
        trained.train(PROJECT.replace("seed: 7", "seed: 9"))
    assert told["rows were trained on"] == {node["NodeID"] for node in ray.nodes()}


def test_a_version_that_is_registered_is_recorded_whatever_ends_its_training(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recorded() -> set[tuple[str, int]]:
        told = [
            each["about"] for each in audit.entries(trained.storage) if each["what"] == training.REGISTERED
        ]
        return {(about["run"], about["version"]) for about in told}

    def unrecorded() -> list[int]:
        found = registered(trained.pipeline().project, trained.storage)
        return [each["version"] for each in found if (each["run_id"], each["version"]) not in recorded()]

    append = audit.append

    def killed(storage: Storage, what: str, *told: Any, **how: Any) -> Any:
        if what == training.REGISTERED:
            raise KeyboardInterrupt
        return append(storage, what, *told, **how)

    def full(*_: object, **__: object) -> NoReturn:
        raise OSError("no space left")

    seed = PROJECT.replace("seed: 7", "seed: 11")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training.audit, "append", killed)
        trained.train(seed)
    assert len(unrecorded()) == 1
    # The next one makes up for it.
    with monkeypatch.context() as patched, pytest.raises(OSError, match="no space"):
        patched.setattr(training.card, "files", full)
        trained.train(seed)
    assert unrecorded() == []


PRICED = """
cost: {prices: prices.yaml, machine: here, max_age: 36500d}
"""
PRICES = """
currency: EUR
source: a test
date: 2026-11-01
machines: [{type: here, vcpu: 4, per_hour: 3.6}]
"""


def test_what_training_costs_is_told_of_trials_the_run_and_the_version(trained: Trained) -> None:
    """A CPU is a quarter of the machine, 0.00025 EUR a second."""
    (trained.folder / "prices.yaml").write_text(PRICES)
    asked = "search: {trials: 4, budget: {amount: 50, currency: EUR}, "
    found = trained.train(PROJECT.replace("search: {trials: 4, ", asked) + PRICED)
    assert (found["ended_by"], len(found["leaderboard"])) == ("", 4)
    seconds = [trial["seconds"] for trial in found["leaderboard"]]
    assert [trial["cost"] for trial in found["leaderboard"]] == pytest.approx([s * 0.00025 for s in seconds])
    cost = found["cost"]
    assert cost["search"] == pytest.approx(sum(seconds) * 0.00025)
    assert cost["fit"] > 0
    assert (cost["amount"], cost["currency"]) == (cost["search"] + cost["fit"], "EUR")
    made = trained.pipeline(PROJECT + PRICED)
    version = made.registry.versions("churn")[0]
    assert version["version"] == found["version"]
    assert version["cost"] == {"amount": cost["amount"], "currency": "EUR"}
    job, *trials = [row for row in runs.rows(tracking.recorded(made.tracking_uri, "churn")) if row["cost"]]
    assert (job["run"], job["cost"], job["currency"]) == (found["run_id"], cost["amount"], "EUR")
    assert sorted(row["cost"] for row in trials) == sorted(trial["cost"] for trial in found["leaderboard"])
    page = Path(found["card"]).read_text()
    assert f"4 trials cost {money(cost['search'], 'EUR')}, and the winner's fit" in page.replace("&#39;", "'")
    assert all(money(trial["cost"], "EUR") in page for trial in found["leaderboard"])
    told, _ = costs.training_cost(made.project, trained.storage, str(found["version"]))
    # Nothing else says of which currency it is to be.
    assert told is None


def test_of_what_was_trained_before_prices_were_named_it_is_said_what_to_do(trained: Trained) -> None:
    (trained.folder / "prices.yaml").write_text(PRICES)
    trained.forget()
    before = trained.train()
    found = trained.train(PROJECT + PRICED)
    assert (found["version"], found["cost"]) == (before["version"], None)
    (told,) = {*found["notes"]} - {*before["notes"]}
    was = f"version {before['version']} was trained before this file said under cost what it says"
    assert told.startswith(
        f"{was}: what that took is not known, and counts as nothing. It is not trained again"
    )
    assert told.endswith("another training.search.seed has it trained again")
    assert trained.train()["notes"] == before["notes"]


@pytest.mark.parametrize("cost", [None, {"amount": 0.0312, "search": 0.03, "fit": 0.0012, "currency": "EUR"}])
def test_the_table_of_families_has_what_they_cost_where_that_is_known(
    cost: dict[str, Any] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = {"family": "ridge", "score": 0.5, "seconds": 2.0, "state": "complete", "folds": [0.5]}
    trials = [trial | {"cost": cost and each} for each in (0.01, 0.02)]
    empty: dict[str, Any] = {"baselines": {}, "metrics": {}, "refused": [], "notes": []}
    cli._print_trained("mae", {"leaderboard": trials, "family": "ridge", "card": "x", "cost": cost, **empty})
    out = capsys.readouterr().out
    assert ("cost, EUR" in out and "│ 0.03 " in out) is (cost is not None)
    assert ("cost       0.0312 EUR, of which the search 0.03" in out) is (cost is not None)


@pytest.mark.parametrize(
    ("prices", "cost", "says"),
    [
        (PRICES, PRICED.replace("here", "there"), "no price, or more than one, fits there"),
        (PRICES, PRICED.replace("machine: here, ", ""), "fits a machine that does not say its type"),
        (PRICES.replace("EUR", "USD"), PRICED, "is in EUR, and the prices in USD: say both in one"),
    ],
)
def test_a_budget_without_a_price_is_an_error_with_its_place_before_a_run_is_begun(
    trained: Trained, prices: str, cost: str, says: str
) -> None:
    (trained.folder / "prices.yaml").write_text(prices)
    asked = "search: {trials: 4, budget: {amount: 60, currency: EUR}, "
    before = len(tracking.recorded(trained.pipeline().tracking_uri, "churn"))
    with pytest.raises(
        ConfigError, match=rf"project.yaml:{LINE}: training.search.budget: .*{re.escape(says)}"
    ):
        trained.train(PROJECT.replace("search: {trials: 4, ", asked) + cost)
    assert len(tracking.recorded(trained.pipeline().tracking_uri, "churn")) == before
    if "USD" not in prices:
        priced, (note,) = trained.pipeline(PROJECT + cost).trainer._priced(_task(trained, PROJECT + cost))
        assert priced is None
        assert note.startswith("what a trial costs is not known: ")


def _task(trained: Trained, text: str) -> Task:
    made = trained.pipeline(text)
    return training.task(made.project, made.features, made.build(made.ingest()), None)


def test_a_limit_that_ended_a_search_is_told_with_what_was_spent() -> None:
    asked = {"trials": 40, "budget": {"amount": 0.5, "currency": "EUR"}}
    budgeted, free = made.task({"search": asked}), made.task({"search": {"trials": 40, "time_limit": "1s"}})
    priced = Places(((machine(), 2),), cpu=1)
    trial = Trial("0000", "ridge", {}, 0.1, (0.1,), 1.0, "complete", cost=0.4)
    assert training._ended(Sweep((trial,), "budget", 0.48), budgeted, priced) == [
        "training.search.budget ended the search after 1 of 40 trials; 0.48 EUR of 0.5 EUR were spent"
    ]
    assert training._ended(Sweep((trial,), "time_limit"), free, None) == [
        "training.search.time_limit ended the search after 1 of 40 trials"
    ]
    assert training._ended(Sweep((trial,), "", 0.4), budgeted, priced) == []
