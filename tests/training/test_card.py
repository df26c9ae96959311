"""A card says what it was given, in HTML and in Markdown alike, and shows no value that is hidden."""

import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
from markdown_it import MarkdownIt

from mlops_ray.pages import number, plain
from mlops_ray.training import card, diagnosis, evaluate
from mlops_ray.training.card import Subject
from mlops_ray.training.diagnosis import Figure
from mlops_ray.training.environment import environment
from mlops_ray.training.leaderboard import Trial
from mlops_ray.training.task import Task
from tests.test_pages import NASTY, Parsed, assert_sound

from .made import classification, task

MANIFEST = {
    "rows": 2880,
    "from": "2016-01-01T00:00:00+00:00",
    "to": "2016-02-29T23:00:00+00:00",
    "digest": "ab" * 32,
}


#: What a search has tried: of two families, one that was stopped and one that failed.
TRIALS = (
    Trial("0002", "xgboost", {"n_estimators": 20}, 0.31, (0.3, 0.32), 30.0, "complete", cost=0.03),
    Trial("0000", "ridge", {}, 0.35, (0.35, 0.35), 1.5, "complete", cost=0.0015),
    Trial("0001", "xgboost", {"n_estimators": 9}, 0.4, (0.4,), 12.0, "stopped", cost=0.012),
    Trial("0003", "xgboost", {"n_estimators": 0}, float("nan"), (), 2.0, "failed", "no trees", cost=0.002),
)
#: What Markdown of a card is rendered to.
MARKS = {"h1", "h2", "h3", "p", "ul", "li", "strong", "table", "thead", "tbody", "tr", "th", "td", "img"}


def subject(made: Task, hidden: frozenset[str] = frozenset(), **changes: Any) -> Subject:
    fitted = evaluate.refit(made, "xgboost", {"n_estimators": 20}, cpus=1)
    rows = made.test.held_out
    frame, answers = made.frame[rows], fitted.predict(made.frame[rows])
    held = diagnosis.HeldOut(
        frame, made.times[rows], made.labels[rows], answers, made.blocks(rows), made.metric, 7
    )
    names = [column.name for column in made.columns]
    learned = [(100, 0.1, 0.3), (500, 0.15, 0.2)]
    given = {
        "project": "demo",
        "version": 3,
        "predicts": "load of meter, 24 hours ahead",
        "decision": "Yes from 0.31 on." if made.kind == "classification" else "",
        "model": {"family": "xgboost", "n_estimators": 20},
        "metric": made.metric,
        "report": evaluate.test(made, fitted, None),
        "diagnosis": diagnosis.diagnose(held, fitted.predict, names, hidden=hidden, learning=learned),
        "manifest": MANIFEST,
        "missing": {"site": 0.0, "yesterday": 0.4, "hour": 0.0},
        "environment": environment(Path(__file__).parent),
        "libraries": {"xgboost": "3.2.0"},
        "refused": ["it is too bold"],
        "trials": TRIALS,
        "cost": {"search": 0.07, "fit": 0.013, "currency": "EUR"},
    }
    return Subject(**{**given, **changes})


@pytest.fixture(scope="module", params=["regression", "classification"])
def made(request: pytest.FixtureRequest) -> Subject:
    return subject(classification() if request.param == "classification" else task({"families": ["xgboost"]}))


def shown(markdown: str) -> str:
    """What people see of Markdown."""
    rendered = Parsed(MarkdownIt("commonmark", {"xhtmlOut": False}).enable("table").render(markdown))
    assert set(rendered.tags) <= MARKS
    return rendered.text


def test_both_forms_say_the_same(made: Subject) -> None:
    files = card.files(made)
    page, text = assert_sound(files["card.html"]).text, shown(files["card.md"])
    report = made.report
    wanted = ["demo, version 3", "load of meter, 24 hours ahead", "it is too bold", "mlops-ray reproduce 3"]
    wanted += ["xgboost", "3.2.0", "ab" * 32, "2,880", "2016-02-29 23:00", made.environment["git"]["commit"]]
    wanted += ["yesterday is missing in 40 %", made.metric.about, made.decision]
    wanted += [number(value) for value in report.metrics.values()]
    wanted += [number(end) for interval in report.intervals.values() for end in interval]
    wanted += [f"{name} ({theirs['rows']:,} rows)" for name, theirs in report.baselines.items()]
    wanted += [number(theirs[made.metric.name]) for theirs in report.baselines.values()]
    for said in wanted:
        assert said in page
        assert said in text


def test_why_the_metric_fits_is_said_of_these_rows(made: Subject) -> None:
    text, mean = shown(card.files(made)["card.md"]), made.diagnosis.mean
    if made.metric.task == "classification":
        assert "the share of the positive class" in text
        assert f"{mean:.0%}".replace("%", " %") + " of the test rows are positive" in text
    else:
        assert f"in the label's unit. The mean label is {number(mean)}, against which" in text


def test_every_picture_is_a_file_that_stands_alone_and_is_in_both_forms(made: Subject) -> None:
    files = card.files(made)
    pictures = [name for name in files if name.endswith(".svg")]
    # An hour of ten days has too few rows to be a segment.
    wanted = {"importance", "over_time", "learning", "segment-1", "trials"}
    wanted |= (
        {"bias", "residuals"}
        if made.metric.task == "regression"
        else {"roc", "precision_recall", "calibration"}
    )
    assert {Path(name).stem for name in pictures} == wanted
    assert re.findall(r"!\[.*\]\((.*)\)", files["card.md"]) == pictures
    assert assert_sound(files["card.html"]).tags.count("svg") == len(pictures)
    for name in pictures:
        root = ElementTree.fromstring(files[name])
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root.get("aria-label")
        used = set(re.findall(r"var\((--\w+)\)", files[name]))
        assert used <= set(re.findall(r"(--\w+):", files[name]))


def test_the_data_behind_the_pictures_are_json(made: Subject) -> None:
    found = json.loads(json.dumps(card.files(made)["diagnosis.json"], allow_nan=False))
    assert found["metric"] == made.metric.name
    assert found["importance"][0].keys() == {"at", "value", "low", "high", "rows"}


def test_no_value_of_a_hidden_column_and_no_row_is_in_a_card() -> None:
    data = task().frame.with_columns(pl.concat_str(pl.lit("canary-"), "site").alias("site"))
    made = task({"families": ["xgboost"]}, frame=data)
    files = card.files(subject(made, frozenset({"site"})))
    text = json.dumps(files)
    assert "canary" not in text
    assert ">site</text>" in files["plots/importance.svg"]
    assert "canary" in json.dumps(card.files(subject(made)))


@pytest.mark.parametrize("text", NASTY)
def test_values_of_any_kind_stay_text(text: str, made: Subject) -> None:
    found = made.diagnosis
    worst = Figure(text, found.overall + 9, found.overall + 8, found.overall + 10, 50)
    if made.metric.better == "higher":
        worst = Figure(text, 0.01, 0.0, 0.02, 50)
    nasty = replace(made, diagnosis=replace(found, segments={text or "x": [worst]}), model={text: text})
    files = card.files(nasty)
    assert_sound(files["card.html"])
    seen = shown(files["card.md"])
    assert " ".join(plain(text).split()) in " ".join(seen.split())
    for name, content in files.items():
        if name.endswith(".svg"):
            ElementTree.fromstring(content)


def test_the_worst_segments_are_named_where_they_are_worse_by_more_than_chance(made: Subject) -> None:
    better = made.metric.better == "higher"
    found = replace(made.diagnosis, overall=0.5)
    worse, chance = ((0.2, 0.1, 0.3), (0.4, 0.3, 0.6)) if better else ((0.8, 0.7, 0.9), (0.6, 0.4, 0.7))
    segments = {
        "site": [Figure("bad", *worse, 40), Figure("unsure", *chance, 40), Figure("good", 0.5, 0.5, 0.5, 9)]
    }
    said = [text for _, text in card.findings(replace(made, diagnosis=replace(found, segments=segments)))]
    named = [text for text in said if text.startswith("Where ")]
    value = number(worse[0])
    assert named == [f"Where site is bad, {made.metric.name} is {value} (40 rows); over all it is 0.5."]


def test_a_lead_that_may_be_chance_is_called_so(made: Subject) -> None:
    report = replace(made.report, leads={"no_change": (0.1, 0.2), "champion": (-0.1, 0.2)})
    said = [(kind, text) for kind, text in card.findings(replace(made, report=report)) if "better" in text]
    assert [kind for kind, _ in said] == ["ok", "warning"]
    assert said[1][1].endswith("better than champion by -0.1 to 0.2 (95 %), which may be chance.")


def test_a_card_of_little_data_has_what_there_is(made: Subject) -> None:
    nothing = replace(
        made.diagnosis, importance=[], segments={"site": []}, over_time=[], by_answer=[], learning=[]
    )
    files = card.files(replace(made, diagnosis=nothing))
    drawn = {Path(name).stem for name in files if name.endswith(".svg")}
    whole = {"residuals"} if made.metric.task == "regression" else {"roc", "precision_recall"}
    assert drawn == whole | {"trials"}
    assert_sound(files["card.html"])


def test_what_the_rows_do_not_say_is_left_open(made: Subject) -> None:
    unknown, metric = float("nan"), made.metric.name
    report = replace(
        made.report,
        metrics=made.report.metrics | {metric: unknown},
        intervals=made.report.intervals | {metric: (unknown, unknown)},
        leads={"champion": (unknown, unknown)},
    )
    files = card.files(replace(made, report=report, diagnosis=replace(made.diagnosis, overall=unknown)))
    assert "nan" not in assert_sound(files["card.html"]).text
    assert f"{metric} – – to –" in " ".join(shown(files["card.md"]).split())
    assert [name for name in files if name.endswith(".svg")] == ["plots/trials.svg"]


def cells(page: str) -> list[list[str]]:
    """The rows of a page's last table."""
    (last,) = re.findall(r"<tbody>(?:(?!<tbody>).)*</tbody>(?!.*<tbody>)", page, re.S)
    rows = re.findall(r"<tr>(.*?)</tr>", last, re.S)
    return [
        [html.unescape(cell) for cell in re.findall(r"<td[^>]*><bdi>(.*?)</bdi></td>", row, re.S)]
        for row in rows
    ]


def test_each_trial_is_told_with_its_quality_and_its_cost(made: Subject) -> None:
    files = card.files(made)
    assert cells(files["card.html"]) == [
        ["1", "xgboost", "0.31", "2", "30 seconds", "0.03 EUR"],
        ["2", "ridge", "0.35", "2", "1.5 seconds", "0.0015 EUR"],
        ["3", "xgboost", "0.4", "1, stopped", "12 seconds", "0.012 EUR"],
        ["4", "xgboost", "failed", "0", "2 seconds", "0.002 EUR"],
    ]
    said = "4 trials cost 0.07 EUR, and the winner's fit on all rows 0.013 EUR."
    for text in (assert_sound(files["card.html"]).text, shown(files["card.md"])):
        assert said in text
    picture = files["plots/trials.svg"]
    # Of each family that has one a dot, and one that says which it is.
    assert picture.count('fill-opacity="0.8"') == 2 + 2
    assert "cost of fits, EUR" in picture


def test_where_nobody_knows_prices_trials_are_told_by_what_they_took(made: Subject) -> None:
    unpriced = tuple(replace(trial, cost=None) for trial in TRIALS)
    files = card.files(replace(made, trials=unpriced, cost=None))
    assert [len(row) for row in cells(files["card.html"])] == [5] * 4
    assert "The fits of 4 trials took 45.5 seconds" in assert_sound(files["card.html"]).text
    assert "seconds of fits" in files["plots/trials.svg"]


def test_of_many_trials_the_best_are_listed_and_of_none_nothing_is_said(made: Subject) -> None:
    page = card.files(replace(made, trials=TRIALS[:1] * 30))["card.html"]
    assert "The best 20 of 30 trials" in page
    assert len(cells(page)) == card.MOST_TRIED
    failed = card.files(replace(made, trials=TRIALS[3:]))
    assert "plots/trials.svg" not in failed
    assert "What was tried" in failed["card.html"]
    nothing = card.files(replace(made, trials=()))
    assert "What was tried" not in nothing["card.html"]
    assert "What was tried" not in nothing["card.md"]


def test_the_same_version_has_the_same_card(made: Subject) -> None:
    assert card.files(made) == card.files(made)
    assert np.isfinite(made.diagnosis.overall)
