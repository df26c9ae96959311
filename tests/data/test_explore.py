"""The first look finds what gives the target away, says whether rows suffice, and shows nothing hidden."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import spearmanr

from mlops_ray.data.explore import FEWEST_RELATED, Aim, _association, _correlation, explore
from mlops_ray.data.explore_page import explore_page
from mlops_ray.data.profile import View
from mlops_ray.schema import INSTANT, Column
from tests.test_pages import NASTY, assert_sound

START = datetime(2016, 1, 1, tzinfo=UTC)
N = 1000
RNG = np.random.default_rng(0)
X, NOISE = RNG.normal(size=N), RNG.normal(size=N)
SICK = X + NOISE > 1.2
TABLE = pl.DataFrame(
    {
        "x": X,
        "noise": NOISE,
        "kind": RNG.choice(["a", "b", "c"], N),
        "sick": SICK,
        "diagnosis": np.where(SICK, "J06", "none"),
        "score": np.where(SICK, 100, 0) + RNG.normal(size=N),
        "discharged": np.where(SICK, RNG.normal(size=N), np.nan),
        "event_time": [START + timedelta(hours=hour) for hour in range(N)],
    },
    schema_overrides={"event_time": INSTANT},
).with_columns(pl.col("discharged").fill_nan(None))
TYPES: dict[str, Any] = {"kind": "category", "sick": "bool", "diagnosis": "category"}
AIM = Aim(pl.col("sick"), "classification", True)


def look(
    frame: pl.DataFrame, target: Aim | None = None, preview: pl.DataFrame | None = None, **says: Any
) -> dict[str, Any]:
    """The document of a first look, which is JSON without NaN and infinities."""
    columns = [Column(name, TYPES.get(name, "float")) for name in frame.columns if name != "event_time"]
    view = View(columns, time="event_time" if "event_time" in frame.columns else None, **says)
    preview = frame.head(0) if preview is None else preview
    found = explore(frame.lazy(), view, name="t", target=target, preview=preview, seed=7)
    return json.loads(json.dumps(found, allow_nan=False))  # type: ignore[no-any-return]


def said(document: dict[str, Any]) -> str:
    return " ".join(found["said"] for found in document["findings"])


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return look(TABLE, AIM)


def test_columns_that_give_the_target_away_are_named_and_honest_ones_are_not(whole: dict[str, Any]) -> None:
    suspects = {suspect["column"]: suspect["said"] for suspect in whole["target"]["suspects"]}
    assert set(suspects) == {"diagnosis", "score", "discharged"}
    assert suspects["diagnosis"].startswith("each of its 2 values goes with one value of the target")
    assert "100 % of the naive error" in suspects["score"]
    assert "missing in 100 % of the rows of class false, in 0 % of the others" in suspects["discharged"]
    named = {found["column"] for found in whole["findings"] if "give the target away" in found["said"]}
    assert named == set(suspects)


def test_a_column_of_the_target_is_no_suspect() -> None:
    target = look(TABLE.select("score", "x", "event_time"), Aim(pl.col("score") > 50, "classification"))[
        "target"
    ]
    assert target["suspects"] == []
    assert [relation["column"] for relation in target["relations"]] == ["x"]


def test_a_number_that_is_the_target_in_another_unit_is_a_suspect() -> None:
    frame = TABLE.select("x", "noise", kilo=pl.col("x") * 1000 + 3)
    assert [s["column"] for s in look(frame, Aim(pl.col("x"), "regression"))["target"]["suspects"]] == [
        "kilo"
    ]


def test_the_relation_to_the_target_is_a_plain_mean_by_part(whole: dict[str, Any]) -> None:
    kind = next(r for r in whole["target"]["relations"] if r["column"] == "kind")
    for part in kind["parts"]:
        rows = TABLE.filter(pl.col("kind") == part["label"])
        assert (part["rows"], part["mean"]) == (rows.height, pytest.approx(rows["sick"].mean()))
    strengths = [relation["strength"] for relation in whole["target"]["relations"]]
    assert strengths == sorted(strengths, reverse=True)
    assert kind["strength"] < 0.02
    for relation in whole["target"]["relations"]:
        assert sum(part["rows"] for part in relation["parts"]) == N


def test_the_balance_of_classes_is_that_of_all_rows(whole: dict[str, Any]) -> None:
    counted = {c["value"]: c["rows"] for c in whole["target"]["classes"]["top"]}
    assert counted == {"true": int(SICK.sum()), "false": N - int(SICK.sum())}
    assert whole["target"]["sought"] == "true"


def test_a_class_with_few_rows_is_said() -> None:
    frame = TABLE.head(90).select(
        "x", kind=pl.when(pl.int_range(90) < 12).then(pl.lit("scarce")).otherwise("kind")
    )
    target = Aim(pl.col("kind"), "classification")
    assert "The class scarce has under 50 rows" in said(look(frame, target))
    discreet = look(frame, target, minimum_count=20)
    assert "A class has under 50 rows" in said(discreet)
    assert "scarce" not in json.dumps(discreet)


RELATED: dict[str, Callable[[], pl.DataFrame]] = {
    "flat": lambda: pl.DataFrame(
        {"x": (x := RNG.normal(size=4000)), "y": np.sign(x) + RNG.normal(size=4000)}
    ),
    "no better": lambda: pl.DataFrame({"x": X, "y": NOISE}),
    "too few": lambda: pl.DataFrame({"x": X[:50], "y": X[:50]}),
    "nothing": lambda: pl.DataFrame({"x": X, "y": np.ones(N)}),
    "helps": lambda: pl.DataFrame({f"x{i}": RNG.normal(size=N) for i in range(6)}).with_columns(
        y=pl.sum_horizontal(pl.col("^x.$") ** 2)
    ),
}


@pytest.mark.parametrize("verdict", RELATED)
def test_the_learning_curve_says_whether_rows_suffice(verdict: str) -> None:
    frame = RELATED[verdict]()
    learning = look(frame, Aim(pl.col("y"), "regression"))["target"]["learning"]
    assert learning["verdict"] == verdict
    if verdict == "too few":
        assert "Too few rows to learn from: 50" in learning["said"]
    if verdict in ("helps", "flat"):
        assert learning["points"][-1]["error"] < learning["naive"]
        assert len(learning["points"]) == 5


def test_classes_are_learned_and_judged_on_later_rows(whole: dict[str, Any]) -> None:
    learning = whole["target"]["learning"]
    assert learning["metric"] == "log loss"
    assert learning["points"][-1]["rows"] == 750
    late = look(
        TABLE.select("x", "event_time", sick=pl.col("event_time") > START + timedelta(hours=750)), AIM
    )
    assert late["target"]["learning"]["verdict"] == "nothing"


def test_rows_of_a_key_are_never_on_both_sides() -> None:
    keyed = pl.DataFrame({"kind": np.repeat([f"k{i}" for i in range(100)], 10), "x": np.repeat(X[:100], 10)})
    frame = keyed.with_columns(id=pl.col("kind").str.slice(1).cast(pl.Float64))
    target = look(frame, Aim(pl.col("x"), "regression"), keys=["kind"])["target"]
    assert target["learning"]["verdict"] == "no better"
    assert target["learning"]["points"][-1]["rows"] % 10 == 0


def test_repeated_rows_are_counted_as_a_plain_set_does() -> None:
    rows = [(n % 7, None if n % 3 else 1.5, "a") for n in range(50)]
    frame = pl.DataFrame(rows, {"x": pl.Int64, "y": pl.Float64, "kind": pl.String}, orient="row")
    assert look(frame)["duplicates"] == len(rows) - len(set(rows))


def test_correlations_are_those_of_scipy() -> None:
    frame = pl.DataFrame({"a": X, "b": np.exp(X) + NOISE, "c": -(X**3)})
    found = look(frame)["correlation"]
    assert found["columns"] == ["a", "b", "c"]
    assert np.array(found["values"]) == pytest.approx(spearmanr(frame.to_numpy()).statistic, abs=1e-4)
    assert "‘a’ and ‘c’ say nearly the same (rank correlation -1.00)" in said(look(frame))


@pytest.mark.parametrize("rows", [FEWEST_RELATED - 1, FEWEST_RELATED])
def test_nothing_is_said_of_columns_that_few_rows_relate(rows: int) -> None:
    places = np.arange(rows)
    sample = pl.DataFrame({"a": places, "b": 2 * places, "c": places % 2, "d": places % 2})
    sample = sample.with_columns(pl.col("c", "d").cast(pl.String))
    for found in (_correlation(sample, ["a", "b"]), _association(sample, ["c", "d"])):
        assert (found["columns"] != []) == (rows >= FEWEST_RELATED)


def test_categories_that_have_nothing_to_do_with_each_other_are_not_associated(whole: dict[str, Any]) -> None:
    found = whole["association"]
    at = {name: place for place, name in enumerate(found["columns"])}
    assert found["values"][at["sick"]][at["diagnosis"]] == pytest.approx(1, abs=0.01)
    assert found["values"][at["kind"]][at["sick"]] < 0.1


def test_the_same_rows_and_seed_are_the_same_document_and_page(whole: dict[str, Any]) -> None:
    again = look(TABLE, AIM)
    assert again == whole
    assert explore_page(again) == explore_page(whole)


def test_a_table_larger_than_the_sample_is_sampled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlops_ray.data.explore.SAMPLE", 400)
    found = look(TABLE, AIM)
    assert (found["sample"], found["target"]["rows"]) == (400, N)
    parts = next(r["parts"] for r in found["target"]["relations"] if r["column"] == "x")
    assert sum(part["rows"] for part in parts) == 400


@pytest.mark.parametrize("name", ["kind", "score", "sick", "diagnosis"])
def test_what_is_hidden_is_in_no_document_and_on_no_page(name: str) -> None:
    frame = TABLE.head(400).with_columns(
        kind=pl.format("canary-{}", "kind"),
        diagnosis=pl.format("canary-{}", "diagnosis"),
        score=pl.lit(31337.25),
    )
    assert "canary" in explore_page(look(frame.head(90), preview=frame.head(3)))
    found = look(frame, AIM, hidden=frozenset({"kind", "score", "diagnosis", name}))
    page = explore_page(found)
    for text in (json.dumps(found), page):
        assert "canary" not in text
        assert "31337" not in text
        assert "31,337" not in text
    if name == "sick":
        assert found["target"] is None
        assert "nothing about it is shown" in said(found)


def test_with_a_minimum_no_part_has_fewer_rows() -> None:
    found = look(TABLE, AIM, minimum_count=120)["target"]
    assert found["relations"]
    for relation in found["relations"]:
        assert min(part["rows"] for part in relation["parts"]) >= 120
        assert sum(part["rows"] for part in relation["parts"]) == N


def test_the_page_shows_what_is_found_first(whole: dict[str, Any]) -> None:
    parsed = assert_sound(explore_page({**whole, "preview": look(TABLE, preview=TABLE.head(3))["preview"]}))
    order = ["give the target away", "Overview", "Columns", "Time", "Missing values", "What goes with what"]
    places = [parsed.text.index(words) for words in [*order, "The target", "Is it enough to learn from?"]]
    assert places == sorted(places)
    assert "1,000" in parsed.text
    assert "2016-01-01 00:00" in parsed.text


def test_a_page_of_hostile_names_and_values_is_sound() -> None:
    nasty = [text for text in NASTY if text.strip()]
    names = {f"{text} {place}": "category" for place, text in enumerate(nasty)}
    frame = pl.DataFrame({name: np.resize(NASTY, 90) for name in names}).with_columns(
        pl.Series("wide", [f"c{n}" for n in range(90)]), y=pl.Series(NOISE[:90])
    )
    columns = [*(Column(name, "category") for name in [*names, "wide"]), Column("y", "float")]
    for target in (Aim(pl.col("y"), "regression"), Aim(pl.col(nasty[0] + " 0"), "classification")):
        found = explore(frame.lazy(), View(columns), name=NASTY[1], target=target, preview=frame.head(12))
        assert_sound(explore_page(json.loads(json.dumps(found, allow_nan=False))))


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 130])
@pytest.mark.parametrize("task", ["regression", "classification"])
def test_small_tables_and_those_of_nothing_have_a_page(rows: int, task: Any) -> None:
    empty = pl.DataFrame(
        {"x": [None] * rows, "y": [1.0, None, 2.0, 3.0, 3.0][:rows] + [None] * max(rows - 5, 0)}
    )
    frame = empty.cast(pl.Float64).with_columns(kind=pl.lit("a"), event_time=pl.lit(START))
    assert_sound(explore_page(look(frame, Aim(pl.col("y"), task), keys=["kind"])))
    assert_sound(explore_page(look(frame.cast({"kind": pl.String}).head(rows), None)))
