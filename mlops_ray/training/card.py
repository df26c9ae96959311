"""The model card: what a version predicts, from what, how well and where not, and how it is made again.

After Mitchell et al., "Model Cards for Model Reporting" (2019). It holds no row of the data.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from mlops_ray import pictures
from mlops_ray.cost.prices import money
from mlops_ray.pages import Block, Kind, Section, Table, cut, lasting, number, page, plain, share, when
from mlops_ray.registry.metrics import Metric
from mlops_ray.training.diagnosis import Diagnosis
from mlops_ray.training.evaluate import Report
from mlops_ray.training.leaderboard import Trial

#: Features in a picture, the most important; segments and features that are named, the worst.
MOST_DRAWN, MOST_NAMED = 20, 3
#: Trials that a table lists, the best.
MOST_TRIED = 20
#: A feature of which more is missing is named.
MUCH_MISSING = 0.2
#: What Markdown takes for more than a letter.
SIGNS = re.compile(r"([\\`*_{}\[\]<>#|&~!$])")


@dataclass(frozen=True)
class Subject:
    """What a card is of.

    `predicts` says what, in words, and `decision` when a classification's answer counts as yes, and what that
    was chosen for; it is empty for a regression. `model` are family and parameters. `manifest` is the
    training set's; `missing` the share of missing values of each feature in it. `environment` is what
    `training.environment` found, `libraries` are the versions that the model depends on. `refused` says why
    the version may not go live. `trials` are those of the search, best first; `cost` is what they and the
    winner's fit have cost, `{"search", "fit", "currency"}`, `None` where no price is known.
    """

    project: str
    version: int
    predicts: str
    decision: str
    model: Mapping[str, Any]
    metric: Metric
    report: Report
    diagnosis: Diagnosis
    manifest: Mapping[str, Any]
    missing: Mapping[str, float]
    environment: Mapping[str, Any]
    libraries: Mapping[str, str]
    refused: Sequence[str]
    trials: Sequence[Trial] = ()
    cost: Mapping[str, Any] | None = None


def files(of: Subject) -> dict[str, Any]:
    """The card as HTML and as Markdown, its pictures, and the data behind them, by their names."""
    found = plots(of.diagnosis, of.metric) if math.isfinite(of.diagnosis.overall) else {}
    drawn = {f"plots/{name}.svg": block for name, block in found.items()}
    errs = Section("Where it errs", [*drawn.values()], "On the test rows; spans hold 95 %.")
    against = _against(of)
    drawn |= against
    tried = Section("What was tried", [*against.values(), *_tried(of)], _spent(of))
    title, subtitle = f"{of.project}, version {of.version}", f"Model card. {of.predicts}"
    said = [{"severity": kind, "said": text} for kind, text in findings(of)]
    parts = [*_sections(of), errs, *([tried] if of.trials else [])]
    notes = [f"- **{each['severity']}** {_text(each['said'])}" for each in said]
    text = [f"# {_text(title)}", _text(subtitle), "\n".join(notes), *_markdown(parts, iter(drawn))]
    svgs = {name: pictures.standalone(block.picture or Markup()) for name, block in drawn.items()}
    pages = {"card.html": page(title, subtitle, said, parts), "card.md": "\n\n".join(filter(None, text))}
    return {**svgs, **pages, "diagnosis.json": of.diagnosis.to_json()}


def findings(of: Subject) -> Iterator[tuple[Kind, str]]:
    """What to know first: how it compares, where it is worst, and what it cannot know."""
    found, metric, whole = of.diagnosis, of.metric, of.diagnosis.overall
    yield from (("problem", f"It may not go live: {reason}.") for reason in of.refused)
    for rival, (low, high) in of.report.leads.items():
        by = f"In {metric.name} better than {rival} by {_number(low)} to {_number(high)} (95 %)"
        yield ("ok", f"{by}.") if low > 0 else ("warning", f"{by}, which may be chance.")
    parts = [(column, figure) for column, figures in found.segments.items() for figure in figures]
    # Worse than all rows together by more than chance.
    worse = [(c, f) for c, f in parts if min(metric.loss(f.low), metric.loss(f.high)) > metric.loss(whole)]
    for column, figure in sorted(worse, key=lambda part: -metric.loss(part[1].value))[:MOST_NAMED]:
        said = f"{metric.name} is {_number(figure.value)} ({figure.rows:,} rows)"
        yield "warning", f"Where {column} is {figure.at}, {said}; over all it is {_number(whole)}."
    gone = sorted(((part, name) for name, part in of.missing.items() if part > MUCH_MISSING), reverse=True)
    for part, name in gone[:MOST_NAMED]:
        yield "note", f"{name} is missing in {share(part)} of the rows."
    yield "note", f"It was trained on {_period(of.manifest)}, and knows nothing else."


def _period(manifest: Mapping[str, Any]) -> str:
    return " to ".join(when(str(manifest[end])) for end in ("from", "to")) + " UTC"


def _why(of: Subject) -> str:
    """What the metric that decided tells, of these rows."""
    mean, value = of.diagnosis.mean, _number(of.diagnosis.overall)
    said = f"The mean label is {_number(mean)}, against which {value} is to be read"
    if of.metric.task == "classification":
        said = f"{share(mean)} of the test rows are positive: “no” would always be right in {share(1 - mean)}"
    return f"{of.metric.name} decided: {of.metric.about}. {said}."


def _sections(of: Subject) -> list[Section]:
    report, manifest, versions = of.report, of.manifest, of.environment
    rivals = {f"{name} ({theirs['rows']:,} rows)": theirs for name, theirs in report.baselines.items()}
    rows = [
        [name, _number(value), " to ".join(map(_number, report.intervals[name]))]
        + [_number(theirs.get(name)) for theirs in rivals.values()]
        for name, value in report.metrics.items()
    ]
    table = Table(["Metric", "This model", "95 %", *rivals], rows, frozenset(range(1, 3 + len(rivals))))
    data = {"Rows": f"{manifest['rows']:,}", "Test rows": f"{report.rows:,}", "Period": _period(manifest)}
    data |= {"Features": f"{len(of.missing):,}", "Digest": manifest["digest"]}
    again = {"Command": f"mlops-ray reproduce {of.version} PROJECT.yaml", "Commit": versions["git"]["commit"]}
    again |= {"Changed since": versions["git"]["dirty"], **of.libraries}
    facts = {"Model": of.model, "Data": data, "How to make it again": again}
    blocks = [Block(t, table=Table(["", ""], [[n, str(v)] for n, v in f.items()])) for t, f in facts.items()]
    quality = Block(note=_why(of), table=table, wide=True)
    return [Section("How good it is", [quality], of.decision), Section("What it is", blocks)]


def plots(found: Diagnosis, metric: Metric) -> dict[str, Block]:
    """The pictures of a diagnosis, by the names of their files."""
    name, whole, answers = metric.name, ("all rows", found.overall, found.overall), {"": found.by_answer}
    sides = {"validation": 2, "training": 1}
    learned = {side: [(point[0], point[at]) for point in found.learning] for side, at in sides.items()}
    made: dict[str, Block] = {}

    def add(key: str, title: str, draw: Callable[..., Markup], *what: Any) -> None:
        made[key] = Block(title, picture=draw(title, *what))

    top = found.importance[:MOST_DRAWN]
    add("importance", "Which features matter", pictures.whiskers, top, 0, f"{name} worsens by, if shuffled")
    if len(found.over_time) > 1:
        add("over_time", "Over time", pictures.lines, {"": found.over_time}, ("time", name), whole)
    add("learning", "By rows learned from", pictures.lines, learned, ("rows", name))
    for place, (column, figures) in enumerate(found.segments.items(), 1):
        add(f"segment-{place}", f"By {cut(column)}", pictures.whiskers, figures, found.overall, name)
    if metric.task == "classification":
        said, rates = [f.at for f in found.by_answer] or [0], ("false positive rate", "true positive rate")
        as_said, chance = ("as said", said[0], said[-1]), ("chance", found.mean, found.mean)
        add("calibration", "Calibration", pictures.lines, answers, ("probability", "positives"), as_said)
        add("roc", "ROC curve", pictures.lines, {"": found.curves["roc"]}, rates, ("chance", 0, 1))
        points, names = {"": found.curves["precision_recall"]}, ("recall", "precision")
        add("precision_recall", "Precision by recall", pictures.lines, points, names, chance)
    else:
        edges, rows = zip(*found.curves["residuals"], strict=True)
        add("residuals", "Label minus answer", lambda title: pictures.histogram(edges, rows[:-1], title))
        add("bias", "Label minus answer, by answer", pictures.lines, answers, ("answer", "mean"), ("", 0, 0))
    return {key: block for key, block in made.items() if block.picture}


def _tried(of: Subject) -> list[Block]:
    """The best trials, with what they cost, as a table."""
    rows = [_trial_row(place, trial, of.cost) for place, trial in enumerate(of.trials[:MOST_TRIED], 1)]
    head = ["", "Family", f"{of.metric.name}, validation", "Folds", "Fits"] + ["Cost"] * (of.cost is not None)
    of_all = (
        f"The best {len(rows)} of {len(of.trials):,} trials" if len(rows) < len(of.trials) else "All trials"
    )
    return [Block(f"{of_all}, the winner first", table=Table(head, rows, frozenset({2, 3, 4, 5})), wide=True)]


def _trial_row(place: int, trial: Trial, cost: Mapping[str, Any] | None) -> list[str]:
    score = "failed" if trial.state == "failed" else _number(trial.score)
    spent = [] if cost is None else ["–" if trial.cost is None else money(trial.cost, cost["currency"])]
    folds = str(len(trial.fold_scores)) + ", stopped" * (trial.state == "stopped")
    return [str(place), trial.family, score, folds, lasting(trial.seconds), *spent]


def _against(of: Subject) -> dict[str, Block]:
    """The picture of trials, by what they cost, or where that is not known by what they took, by its file."""
    whole = [trial for trial in of.trials if trial.state == "complete"]
    points: dict[str, list[tuple[float, float]]] = {trial.family: [] for trial in whole}
    for trial in whole:
        spent = trial.seconds if of.cost is None else trial.cost
        if spent is not None:
            points[trial.family].append((spent, trial.score))
    if not any(points.values()):
        return {}
    axis = "seconds of fits" if of.cost is None else f"cost of fits, {of.cost['currency']}"
    title = f"{of.metric.name} against cost"
    return {"plots/trials.svg": Block(title, picture=pictures.scatter(title, points, (axis, of.metric.name)))}


def _spent(of: Subject) -> str:
    """What the search came to; who stopped early has no dot, since its score is of fewer folds."""
    trials, cost = f"{len(of.trials):,} trials", of.cost
    drawn = "Dots are trials that were scored on all folds of the validation"
    if cost is None:
        took = lasting(sum(trial.seconds for trial in of.trials))
        return f"The fits of {trials} took {took}; what that costs is known where cost.prices is. {drawn}."
    search, fit = (money(cost[what], cost["currency"]) for what in ("search", "fit"))
    return f"{trials} cost {search}, and the winner's fit on all rows {fit}. {drawn}."


def _markdown(parts: Sequence[Section], svgs: Iterator[str]) -> Iterator[str]:
    """A page's sections as blocks of Markdown; of its pictures, in their order, the files."""
    for part in parts:
        yield from (f"## {_text(part.title)}", _text(part.note))
        for block in part.blocks:
            yield from (f"### {_text(block.title)}" if block.title else "", _text(block.note))
            yield f"![{_text(block.title)}]({next(svgs)})" if block.picture else ""
            yield "\n".join(f"- {_text(name)}: {_text(value)}" for name, value in block.facts)
            if block.table:
                rows = [[*map(_text, row)] for row in (block.table.head, *block.table.rows)]
                rows[1:1] = [["---"] * len(rows[0])]
                yield "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _number(value: float | None) -> str:
    """A number for people; a test part of one class, say, gives none."""
    return number(value if value is not None and math.isfinite(value) else None)


def _text(said: str) -> str:
    return SIGNS.sub(r"\\\1", plain(said))
