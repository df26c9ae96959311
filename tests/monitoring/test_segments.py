"""One part of the rows whose model has become worse is found and named; chance alone is not."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import chi2

from mlops_ray.data import labels as truths
from mlops_ray.data import prediction_log
from mlops_ray.data.counts import Counts
from mlops_ray.monitoring import figures, journal, looks, performance, period, segments
from mlops_ray.monitoring.alarms import Alarms, Finding
from mlops_ray.monitoring.performance import Expected
from mlops_ray.monitoring.state import Closed, ModelState
from mlops_ray.storage import Storage
from tests.monitoring.test_looks import DAY, NOW, answered
from tests.serving import packages

RANDOM = np.random.default_rng(8)
SITES = tuple("abcdefgh")


def of_sites(errors: np.ndarray, sites: np.ndarray, decides: str = "mae", **more: Any) -> Expected:
    """A regression's reference: these errors at these sites."""
    frame = pl.DataFrame({"site": sites})
    by = segments.asked(frame, ["site"], ["site"])
    more = {"blocks": np.arange(len(errors)), "by": by} | more
    return performance.expect("regression", decides, errors, np.zeros(len(errors)), **more)[0]


def cut_only(errors: np.ndarray, sites: np.ndarray, decides: str, blocks: np.ndarray) -> Expected:
    """The same without what nobody asks here."""
    by = segments.asked(pl.DataFrame({"site": sites}), ["site"], [])
    scores = {"estimated": None, "realised": performance._realised(decides, errors, np.zeros(len(errors)))}
    return Expected("regression", decides, {}, {}, cuts=segments.cut(by, blocks, scores))


def site_rows(each: int) -> np.ndarray:
    return np.tile(np.array(SITES), each)


def realised(of: Expected, errors: np.ndarray, sites: np.ndarray) -> list[Finding]:
    told = of.labelled_segments({"site": pl.Series(sites)}, errors, np.zeros(len(errors)))
    return segments.findings(of.decides, told)


@pytest.mark.parametrize("decides", ["mae", "rmse", "relative_mae"])
def test_a_site_whose_labels_have_changed_is_named_and_no_other(decides: str) -> None:
    of = of_sites(RANDOM.normal(0, 1, 8_000), site_rows(1_000), decides)
    sites, errors = site_rows(50), RANDOM.normal(0, 1, 400)
    (quiet,) = realised(of, errors, sites)
    assert quiet.p > 0.001
    if decides == "relative_mae":
        # An answer of 0 is always wrong by all of the label.
        assert quiet.p == 1.0
        return
    (found,) = realised(of, np.where(sites == "c", 2.5 * errors, errors), sites)
    assert (found.about, found.kind, found.matters) == (f"realised {decides} by site", "performance", True)
    assert found.p < 1e-6
    assert f"the realised {decides} of 50 rows where site is c is" in found.evidence
    assert found.harm > 0.8


def exponential(*shape: int) -> np.ndarray:
    return RANDOM.exponential(1, shape)


def absolute(*shape: int) -> np.ndarray:
    return np.abs(RANDOM.normal(0, 1, shape))


def square(*shape: int) -> np.ndarray:
    return np.square(RANDOM.normal(0, 1, shape))


@pytest.mark.parametrize("draw", [exponential, absolute, square])
@pytest.mark.parametrize(("reference", "rows"), [(5_000, 20), (500, 20), (500, 100)])
def test_chance_is_called_as_seldom_as_said_far_out_in_the_tail(draw: Any, reference: int, rows: int) -> None:
    """However skewed the losses are, and however few: of a mean of 20 of them normal p-values are a jest."""
    levels = np.array([1e-2, 1e-3, 1e-4])
    called = np.zeros(3)
    for _ in range(40):
        known = figures.of_mean(draw(reference), np.arange(reference))
        means = draw(5_000, rows).mean(axis=1)
        called += [(means > least_called(known, rows, level)).mean() for level in levels]
    # Of 200,000 windows; three deviations of chance, and half as much again where the reference is small.
    most = levels * (1.0 if reference == 5_000 else 1.5) + 3 * np.sqrt(levels / 200_000)
    assert (called / 40 <= most + 0.1 * levels).all()
    assert called[0] / 40 > 0.5 * levels[0]


def least_called(known: figures.Figure, rows: int, level: float) -> float:
    """The least mean of so many rows that is called at a level."""
    low, high = known.value, known.value + 100 * known.deviation_of(rows)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if known.worse("mae", middle, rows) > level else (low, middle)
    return high


def test_the_worst_of_several_pays_for_all_of_them() -> None:
    sites, p_values = site_rows(20), []
    for _ in range(10):
        of = cut_only(RANDOM.normal(0, 1, 4_000), site_rows(500), "mae", np.arange(4_000))
        p_values += [realised(of, RANDOM.normal(0, 1, 160), sites)[0].p_of_tests for _ in range(30)]
    called = np.array(p_values)
    assert (called <= 0.05).sum() <= 15 + 3 * 15**0.5
    assert (called <= 0.3).sum() >= 45
    assert (called == 1.0).any()


def test_the_tail_is_that_of_squares_where_losses_are_squares() -> None:
    known = figures.of_mean(square(200_000), np.arange(200_000))
    assert known.skew * 200_000**0.5 == pytest.approx(8**0.5, rel=0.1)
    for p in (1e-2, 1e-3, 1e-5):
        assert known.worse("brier", chi2.isf(p, 20) / 20, 20) == pytest.approx(p, rel=0.3)
    plain = figures.Figure(known.value, known.deviation, known.rows, known.freedom)
    assert plain.worse("brier", chi2.isf(1e-5, 20) / 20, 20) < 1e-8


def test_any_metric_varies_as_its_rows_do() -> None:
    """What is lacking without a block, also a group of them, says what a mean's rows say."""
    losses, blocks = square(3_000), np.arange(3_000) // 3
    plain = figures.of_mean(losses, blocks)
    any_ = figures.jackknifed("brier", blocks, lambda weights: float(np.average(losses, weights=weights)))
    assert (any_.value, any_.rows, any_.freedom) == pytest.approx((plain.value, plain.rows, plain.freedom))
    assert any_.deviation == pytest.approx(plain.deviation, rel=0.15)


def test_rows_of_one_day_are_one_day_also_of_a_site() -> None:
    """Errors of one day at one site have something in common; a window varies as days do."""
    called = 0
    sites = site_rows(24)
    for _ in range(40):
        size = np.exp(0.3 * RANDOM.normal(0, 1, (40, 8)))
        errors = (np.tile(size[:, None, :], (1, 24, 1)) * RANDOM.normal(0, 1, (40, 24, 8))).ravel()
        of = cut_only(errors, np.tile(sites, 40), "mae", np.arange(len(errors)) // len(sites))
        for _ in range(5):
            day = np.exp(0.3 * RANDOM.normal(0, 1, 8)) * RANDOM.normal(0, 1, (24, 8))
            called += realised(of, day.ravel(), sites)[0].p_of_tests <= 0.01
    # Three deviations above what is expected of 200.
    assert called <= 2 + 4


def test_a_segment_of_too_few_rows_is_not_asked() -> None:
    sites = np.append(site_rows(500), ["rare"] * (segments.LEAST - 1))
    of = of_sites(RANDOM.normal(0, 1, len(sites)), sites)
    few = segments.LEAST - 1
    assert realised(of, np.full(few, 100.0), np.full(few, "a")) == []
    assert len(realised(of, np.full(few + 1, 100.0), np.full(few + 1, "a"))) == 1
    # Nor one that the reference hardly had: it is among the others there, which were too few.
    assert realised(of, np.full(500, 100.0), np.full(500, "rare")) == []
    assert realised(of, np.full(500, 100.0), np.full(500, "new")) == []


def test_too_few_blocks_say_nothing() -> None:
    of = of_sites(RANDOM.normal(0, 1, 4_000), site_rows(500), blocks=np.arange(4_000) // 1_000)
    assert realised(of, np.full(400, 100.0), site_rows(50)) == []


def test_others_and_what_is_missing_are_segments_too() -> None:
    names = [f"s{n:02}" for n in range(segments.MOST_VALUES + 3)]
    sites = np.array([*names * 100, *[None] * 100], dtype=object)
    of = of_sites(RANDOM.normal(0, 1, len(sites)), sites)
    assert of.cuts["site"].names == (*names[: segments.MOST_VALUES], "(others)", "(missing)")
    errors = RANDOM.normal(0, 1, len(sites))
    for chosen, name in ((sites == None, "(missing)"), (sites == names[-1], "(others)")):  # noqa: E711
        (found,) = realised(of, np.where(chosen, 4 * errors, errors), sites)
        assert f"where site is {name} is" in found.evidence


def test_numbers_and_truths_are_cut_like_names_whatever_type_the_log_has() -> None:
    column = pl.Series("n", [1.0, 2.0, None, float("nan")])
    assert segments.places(column, ("1", "2")).tolist() == [0, 1, 3, 3]
    assert segments.places(column.head(2).cast(pl.Int64), ("1", "2")).tolist() == [0, 1]
    assert segments.places(pl.Series([True, False]), ("false", "true")).tolist() == [1, 0]
    assert segments.places(pl.Series(["x", None]), ()).tolist() == [0, 1]


def test_columns_that_nobody_named_are_one_question_and_hidden_ones_none() -> None:
    rows = 4_000
    frame = pl.DataFrame(
        {"site": site_rows(500), "name": site_rows(500), "load": RANDOM.normal(0, 1, rows)}
        | {f"kind_{n}": RANDOM.integers(0, 3, rows) for n in range(20)}
    )
    by = segments.asked(frame, ["site", "name"], frame.columns, {"name"})
    assert by.columns.columns == ["site", *(f"kind_{n}" for n in range(segments.MOST_COLUMNS - 1))]
    of = of_sites(RANDOM.normal(0, 1, rows), site_rows(500), by=by)
    assert "name" not in json.dumps(of.to_json())
    errors = np.where(frame["kind_2"] == 1, 3.0, 1.0) * RANDOM.normal(0, 1, rows)
    told = of.labelled_segments(frame.to_dict(), errors, np.zeros(rows))
    found = {each.about: each for each in segments.findings("mae", told)}
    assert set(found) == {"realised mae by site", "realised mae of the worst segment"}
    worst = found["realised mae of the worst segment"]
    assert "where kind_2 is 1 is" in worst.evidence
    assert worst.p < 1e-6


def test_of_what_is_restricted_no_small_group_is_named() -> None:
    sites = np.append(site_rows(500), ["small"] * 40)
    by = segments.asked(pl.DataFrame({"site": sites}), ["site"], [], fewest=60)
    of = of_sites(RANDOM.normal(0, 1, len(sites)), sites, by=by)
    assert "small" not in json.dumps(of.to_json())
    assert realised(of, np.full(59, 100.0), np.full(59, "a")) == []
    assert len(realised(of, np.full(60, 100.0), np.full(60, "a"))) == 1


def classified(rows: int, at: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    x = RANDOM.normal(at, 1.0, rows)
    return (RANDOM.random(rows) < 1 / (1 + np.exp(-2 * x))).astype(float), 1 / (1 + np.exp(-2 * x))


@pytest.mark.parametrize("decides", ["roc_auc", "average_precision", "log_loss", "brier"])
def test_a_classification_is_cut_by_estimate_and_by_labels(decides: str) -> None:
    labels, learned = classified(2_000)
    by = segments.asked(pl.DataFrame({"site": site_rows(250)}), ["site"], [])
    of, _ = performance.expect("classification", decides, labels, learned, np.arange(2_000), by=by)
    figure = of.cuts["site"].estimated[0]
    assert figure.value == pytest.approx(of.estimated[decides].value, abs=0.1)
    columns = {"site": pl.Series(site_rows(100))}
    labels, answers = classified(800)
    flipped = np.where(site_rows(100) == "f", 1 - labels, labels)
    (found,) = segments.findings(decides, of.labelled_segments(columns, flipped, answers))
    assert found.p < 1e-4
    assert "where site is f is" in found.evidence
    # An estimate knows answers alone, and those of the reference mean there what they mean here.
    columns = {"site": pl.Series(site_rows(250))}
    (estimated,) = segments.findings(decides, of.segments(columns, learned, {}))
    assert estimated.about == f"estimated {decides} by site"
    assert estimated.p > 0.3


def test_an_order_of_hardly_any_positives_is_not_asked_and_calibration_of_parts_never() -> None:
    labels, answers = classified(2_000)
    by = segments.asked(pl.DataFrame({"site": site_rows(250)}), ["site"], [])
    of, _ = performance.expect("classification", "roc_auc", labels, answers, np.arange(2_000), by=by)
    columns = {"site": pl.Series(["a"] * 100)}
    few = np.arange(100) < performance.LEAST_OF_A_CLASS - 1
    assert of.labelled_segments(columns, few.astype(float), 1 - few.astype(float)) == []
    few = np.arange(100) < performance.LEAST_OF_A_CLASS
    assert len(of.labelled_segments(columns, few.astype(float), 1 - few.astype(float))) == 1
    of, _ = performance.expect(
        "classification", "calibration_error", labels, answers, np.arange(2_000), by=by
    )
    assert of.cuts == {}


def test_a_window_without_the_column_is_asked_nothing() -> None:
    of = of_sites(RANDOM.normal(0, 1, 4_000), site_rows(500))
    assert of.labelled_segments({}, np.ones(100), np.zeros(100)) == []


def test_what_is_known_travels_as_json_and_older_packages_know_nothing_of_it() -> None:
    of = of_sites(RANDOM.normal(0, 1, 4_000), site_rows(500))
    data = json.loads(json.dumps(of.to_json()))
    assert Expected.from_json(data) == of
    older = {key: value for key, value in data.items() if key not in ("cuts", "losses")}
    older |= {how: {name: each[:4] for name, each in data[how].items()} for how in ("measured", "estimated")}
    known = Expected.from_json(older)
    assert (known.cuts, known.losses, known.measured) == ({}, None, of.measured)
    assert known.labelled_segments({"site": pl.Series(site_rows(50))}, np.ones(400), np.zeros(400)) == []


class Live:
    """A model that is live, of whose rows eight sites ask, with labels that lie 2 around its answers."""

    def __init__(self, folder: Path, hidden: tuple[str, ...] = (), *, old: bool = False) -> None:
        self.storage, project = Storage.open(str(folder)), packages.project(folder)
        frame, answers = asked(4_000), RANDOM.normal(50, 10, 4_000)
        plain = packages.write(self.storage.path("packages", "plain"), project, 1.0)
        expected, errors = performance.expect(
            "regression",
            "mae",
            answers + RANDOM.normal(0, 2, 4_000),
            answers,
            np.arange(4_000),
            matrix=plain.encoder.transform(frame.with_columns(amount=answers)),
            by=segments.asked(frame, ["site", "who"], ["half"], hidden),
        )
        told = expected.to_json()
        if old:
            del told["cuts"], told["losses"]
        path = self.storage.path("packages", "one")
        packed = packages.write(path, project, 1.0, expected=told, errors=errors)
        packages.crown(self.storage, packages.NAME, 1, packed)
        self.specs = looks._known(packed.folder, packed.digest)[1].specs
        self.state = ModelState(packages.NAME, alarms=Alarms(NOW))

    def look(self, day: int, hidden: tuple[str, ...] = ()) -> Any:
        """A day's rows, as counts and the log have them, looked at; columns may be for machines only."""
        at, count = NOW + day * DAY, 480
        rows, amounts = asked(count), RANDOM.normal(50, 10, count)
        counts = Counts.empty(self.specs)
        counts.update(rows.with_columns(amount=amounts, prediction=amounts))
        told = {"prediction": amounts, "feature.amount": amounts, "feature.hour": rows["hour"]}
        told |= {"request.site": rows["site"], "request.who": rows["who"], "feature.half": rows["half"]}
        answered(self.storage, at, told, hidden=["request." + name for name in hidden])
        window = Closed("1", at, at + DAY, counts)
        seen = looks.see(self.storage, self.state.outlook, window)
        return looks.settle(self.storage, self.state, window, seen)

    def label(self, day: int, monkeypatch: pytest.MonkeyPatch, site: str, times: float) -> None:
        """Labels of all rows so far, on a day; those of one site lie so many times as far away."""
        rows = prediction_log.read(self.storage, packages.NAME).collect()
        spread = np.where(rows["request.site"] == site, times, 1.0) * 2
        truth = rows["prediction"] + pl.Series(RANDOM.normal(0, 1, rows.height) * spread)
        monkeypatch.setattr(truths.time, "time", lambda: NOW + (day + 1) * DAY - 1)
        by = pl.DataFrame({"request_id": rows["request_id"], "row": rows["row"], "label": truth})
        truths.write(self.storage, packages.NAME, by)

    @property
    def seen(self) -> list[dict[str, Any]]:
        return journal.read(self.storage, packages.NAME, journal.LOOKS)


def asked(rows: int) -> pl.DataFrame:
    at = np.arange(rows)
    return pl.DataFrame(
        {"site": np.array(SITES)[at % 8], "who": np.array(["Ann", "Bob"])[at % 2], "half": at // 3 % 2}
        | {"hour": at % 24, "amount": np.full(rows, 50.0)}
    )


def test_a_look_names_the_site_and_says_what_of_the_loss_is_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = Live(tmp_path)
    assert live.look(0) is None
    (look,) = live.seen
    abouts = {finding["about"] for finding in look["findings"]}
    assert abouts >= {"estimated mae", "estimated mae by site", "estimated mae of the worst segment"}
    site = next(row for row in look["quality"]["segments"] if (row["column"], row["value"]) == ("site", "c"))
    assert site["estimated"] == [pytest.approx(1.6, abs=0.3), pytest.approx(1.6, abs=0.3), 60]
    assert "realised" not in site
    live.label(1, monkeypatch, "c", 5.0)
    opened = live.look(1)
    assert "where site is c is" in opened.found["realised mae by site"]["evidence"]
    said = opened.found["realised mae"]["evidence"]
    assert re.search(r"; of the rise of [\d.]+, .* by moved inputs, .* by another relation of the two", said)
    split = live.seen[-1]["quality"]["split"]
    whole = split["now"] - split["before"]
    assert split["inputs"] + split["labels"] + split["rest"] == pytest.approx(whole)
    assert split["rest"] > 0.8 * whole
    found = period.document(live.storage, packages.NAME, None, None)
    assert (found["segments"][0]["column"], found["segments"][0]["value"]) == ("site", "c")
    assert len(found["splits"]) == 1
    text = period.html(found)
    assert "site = c" in text
    assert "What the loss has grown by" in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert period.html(json.loads(json.dumps(found))) == text
    # It can be kept, and read again.
    again = ModelState.from_json(json.loads(json.dumps(live.state.to_json())))
    assert again.quality == live.state.quality


@pytest.mark.parametrize("when", ["as it was trained", "since then"])
def test_no_value_of_a_column_for_machines_only_is_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    live = Live(tmp_path, ("who",) if when == "as it was trained" else ())
    live.look(0, hidden=("who",))
    live.label(1, monkeypatch, "c", 5.0)
    live.look(1, hidden=("who",))
    assert {row["column"] for row in live.seen[-1]["quality"]["segments"]} >= {"site", "half"}
    assert not re.search("Ann|Bob", json.dumps(live.seen))


def test_a_package_from_before_is_looked_at_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = Live(tmp_path, old=True)
    live.look(0)
    live.label(1, monkeypatch, "c", 5.0)
    opened = live.look(1)
    assert list(opened.found) == ["realised mae"]
    assert "of the rise" not in opened.found["realised mae"]["evidence"]
    quality = live.seen[-1]["quality"]
    assert (quality["segments"], quality["split"]) == ([], None)
    text = period.html(period.document(live.storage, packages.NAME, None, None))
    assert "The worst segments" not in text
