"""Runs compared: jobs and their trials side by side; jobs that learned from the same data, or like it."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from mlops_ray import pictures
from mlops_ray.config import Project
from mlops_ray.cost.prices import money
from mlops_ray.errors import UsageError
from mlops_ray.pages import Block, Section, Table, cut, number, page, when
from mlops_ray.registry.metrics import METRICS
from mlops_ray.storage import Storage, replacing
from mlops_ray.training import tracking
from mlops_ray.training.leaderboard import PLACES
from mlops_ray.training.tracking import (
    COLUMNS,
    CURRENCY,
    DATASET,
    METRIC,
    MOST_COLUMNS,
    STATE,
    TARGET,
    TASK,
    Recorded,
)

#: What it counts for likeness that columns, target and metric agree; only the same data are wholly alike.
WEIGHTS = {COLUMNS: 0.55, TARGET: 0.25, METRIC: 0.1}
LIKENESS = {DATASET, *WEIGHTS}
#: Jobs that are less alike are not listed; of how many the best is where a search begins.
LEAST_ALIKE, MOST_BEGUN = 0.3, 3
#: What a trial costs: where it stands in a row, and in words.
COSTS = {"seconds": "seconds of fit", "cost": "cost of fit", "predict_us": "microseconds an answer"}
#: Where the runs lie for the dashboard, which asks no tracking store, and the jobs that it shows, the newest.
FOLDER, MOST_JOBS = "runs", 100
#: Digits by which people tell runs apart; what a table has of each.
SHORT = 8
SHOWN = ("run", "started", "family", "metric", "score", "folds", "seconds", "state", "rows", "dataset")

Row = dict[str, Any]


def look(project: Project, storage: Storage, tracking_uri: str, like: str | None) -> dict[str, Any]:
    """The `rows` of a project's runs, those `alike` one of them, and the file of the page that shows them."""
    path, uri = storage.path("reports", "runs.html"), tracking_uri
    listed = keep(storage, project.project, uri)
    likest = alike(tracking.recorded(uri), like) if like else []
    with replacing(path) as file:
        file.write_text(runs_page(project.project, listed, likest), "utf-8")
    return {"runs": listed, "alike": likest, "page": str(path)}


def keep(storage: Storage, project: str, tracking_uri: str) -> list[Row]:
    """The `rows` of a project's runs, of which the newest are written down for the dashboard."""
    listed = rows(tracking.recorded(tracking_uri, project))
    newest = {row["run"] for row in [row for row in listed if row["parent"] is None][:MOST_JOBS]}
    shown = [row for row in listed if (row["parent"] or row["run"]) in newest]
    at = datetime.now(UTC).isoformat(timespec="seconds")
    storage.write_json({"at": at, "runs": shown}, FOLDER, f"{project}.json")
    return listed


def rows(found: Sequence[Recorded]) -> list[Row]:
    """Jobs, the newest first, each followed by its trials in the order of its leaderboard.

    Of a job `score` is that of the test part, of a trial that of validation. `seconds` of a trial are those
    of its fits, `cost` what they cost in `currency`, `predict_us` microseconds for an answer, where they are
    known.
    """
    listed = []
    for job in (run for run in found if run.parent is None):
        trials = [_row(run, job) for run in found if run.parent == job.id]
        listed += [_row(job, job), *sorted(trials, key=_rank)]
    return listed


def _row(run: Recorded, job: Recorded) -> Row:
    metric, count, params = job.tags.get(METRIC, ""), job.tags.get(tracking.ROWS, ""), dict(run.params)
    # What others wrote to MLflow may be anything.
    metric = metric if metric in METRICS else ""
    return {
        "run": run.id,
        "parent": run.parent,
        "project": run.project,
        "started": run.started.isoformat(timespec="seconds"),
        "family": str(params.pop("family", "")),
        "metric": metric,
        "score": run.metrics.get("score" if run.parent else metric),
        "folds": int(run.metrics.get("folds", 0)),
        "seconds": run.metrics.get("seconds", run.seconds),
        "cost": run.metrics.get(tracking.COST),
        "currency": job.tags.get(CURRENCY, ""),
        "predict_us": run.metrics.get("predict_us"),
        "state": run.tags.get(STATE, run.status.lower()),
        "rows": int(count) if count.isascii() and count.isdecimal() else 0,
        "dataset": job.tags.get(DATASET, ""),
        "params": params,
    }


def _rank(row: Row) -> tuple[int, int, float]:
    """What orders a job's trials: a score on some folds says less than one on all."""
    return PLACES.get(row["state"], len(PLACES)), -row["folds"], _loss(row)


def _loss(row: Row) -> float:
    """What orders rows of one metric, the best first; those without a score are last."""
    metric, score = METRICS.get(row["metric"]), row["score"]
    return float("inf") if metric is None or score is None else metric.loss(score)


def similarity(one: Mapping[str, str], other: Mapping[str, str]) -> float:
    """How alike what two jobs learned from is, by their tags, from 0 to 1, which is the same data.

    Columns count by how many of them, with their types, are in both (Jaccard); of very many a sample.
    """
    if one.get(TASK) != other.get(TASK) or not other.keys() >= LIKENESS:
        return 0.0
    if one[DATASET] == other[DATASET]:
        return 1.0
    own, theirs = (set(tags[COLUMNS].split()) for tags in (one, other))
    union = sorted(own | theirs)[:MOST_COLUMNS]
    shares = {COLUMNS: len(own & theirs & {*union}) / max(len(union), 1)}
    return sum(weight * shares.get(tag, one[tag] == other[tag]) for tag, weight in WEIGHTS.items())


def alike(found: Sequence[Recorded], run: str) -> list[Row]:
    """The jobs like the one whose id begins so, itself among them, the likest first, with their `similarity`.

    Of equally alike ones those of its metric come first, by their score. Raises `UsageError` where no job, or
    more than one, is called so.
    """
    named = [job for job in found if job.id.startswith(run)]
    if len(named) != 1:
        raise UsageError(f"--like: {len(named)} runs are called {run!r}; `mlops-ray runs` lists them")
    tags = named[0].tags
    if not tags.keys() >= LIKENESS:
        raise UsageError(f"--like: the run {named[0].id} ended before it said what it learns from")
    listed = [_row(job, job) | {"similarity": round(similarity(tags, job.tags), 4)} for job in found]
    listed = [row for row in listed if row["similarity"] >= LEAST_ALIKE]
    return sorted(listed, key=lambda row: (-row["similarity"], row["metric"] != tags[METRIC], _loss(row)))


def warm_start(found: Sequence[Row]) -> list[tuple[str, dict[str, Any]]]:
    """Families and parameters to begin a search with: those that won in the likest jobs, each once."""
    won = {(r["family"], str(r["params"])): (r["family"], r["params"]) for r in found if r["family"]}
    return [*won.values()][:MOST_BEGUN]


def runs_page(project: str, listed: Sequence[Row], like: Sequence[Row]) -> str:
    """The page of `rows` and of those `alike`; pictures are of trials on the newest one's training set."""
    tried = [row for row in listed if row["parent"] and row["metric"] and row["score"] is not None]
    tried = [row for row in tried if all(row[key] == tried[0][key] for key in ("dataset", "metric"))]
    families = {n: [row for row in tried if row["family"] == n] for n in {row["family"]: 0 for row in tried}}
    costs = [key for key in COSTS if any(row[key] is not None for row in tried)]
    blocks = [_against(key, families) for key in costs]
    blocks += [_parallel(name, ts) for name, ts in families.items() if len(ts) > 1 and ts[0]["params"]]
    like_data, all_runs = Block(table=table(like), wide=True), Block(table=table(listed), wide=True)
    note = "Validation, on the newest training set alone; the deeper a line, the better."
    parts = [Section("Runs on like data", [like_data] if like else []), Section("All", [all_runs])]
    parts[1:1] = [Section("What was tried", blocks, note)]
    best = (
        f"The best of {len(tried):,} trials: {min(tried, key=_rank)['family']}." if tried else "No trial yet."
    )
    return page(f"Runs of {project}", f"{len(listed):,} runs", [{"severity": "note", "said": best}], parts)


def _against(cost: str, families: Mapping[str, Sequence[Row]]) -> Block:
    known = [row for trials in families.values() for row in trials if row[cost] is not None]
    # Amounts of another currency are no numbers beside these.
    currency = known[0]["currency"] if cost == "cost" else ""
    points = {
        name: [
            (row[cost], row["score"])
            for row in trials
            if row[cost] is not None and row["currency"] == (currency or row["currency"])
        ]
        for name, trials in families.items()
    }
    said = COSTS[cost] + f", {currency}" * bool(currency)
    title, metric = COSTS[cost].capitalize(), known[0]["metric"]
    return Block(title, picture=pictures.scatter(title, points, (said, metric)))


def _parallel(family: str, trials: Sequence[Row]) -> Block:
    names, metric = {name: 0 for row in trials for name in row["params"]}, METRICS[trials[0]["metric"]]
    columns = {name: [row["params"].get(name, "–") for row in trials] for name in names}
    columns[metric.name] = [row["score"] for row in trials]
    return Block(family, picture=pictures.parallel(family, columns, metric.better == "lower"), wide=True)


def table(listed: Sequence[Row]) -> Table:
    """Rows for people."""
    head = [*SHOWN, *(["similarity", "project"] if listed and "similarity" in listed[0] else [])]
    head += [*(["cost"] if any(row["cost"] is not None for row in listed) else []), "params"]
    cells = []
    for row in listed:
        short = {"run": "· " * bool(row["parent"]) + row["run"][:SHORT], "dataset": row["dataset"][:SHORT]}
        told = (f"{n}={number(v) if isinstance(v, float) else v}" for n, v in row["params"].items())
        short |= {"params": ", ".join(told)}
        # What a trial has of its job is said there.
        short |= dict.fromkeys(("metric", "rows", "dataset"), "") if row["parent"] else {}
        cost = None if row["cost"] is None else money(row["cost"], row["currency"])
        shown = row | short | {"started": when(row["started"]), "cost": cost}
        cells += [[cut(v) if isinstance(v, str) else number(v) for v in map(shown.get, head)]]
    return Table(head, cells, frozenset({4, 5, 6, 8} | {at for at, key in enumerate(head) if key == "cost"}))
