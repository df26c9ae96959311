"""A version takes the champion's place where it earns no less, surely; the sentence says why not."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mlops_ray import config
from mlops_ray.cost import profit
from mlops_ray.cost.profit import Compared, Costs, Difference, Values, Verdict, Version, Worth, errors, gate
from mlops_ray.errors import DataError
from mlops_ray.registry import metrics

PREDICTIONS = 10_000
CHAMPION = Version("1", 0.002, Costs(serving=2.0))
ROWS = 400


def paired(candidate: Values, champion: Values, blocks: Any = None) -> Difference:
    """Of the worth of both answers to the same rows: less of it is an error."""
    found = Compared.paired(-candidate[:, None], -champion[:, None], blocks)
    return found.difference(Worth("EUR", per_error=1.0))


def judged(
    more: float, serving: float, spread: float = 0.0, predictions: float = PREDICTIONS, margin: float = 0.01
) -> Verdict:
    """Of a candidate whose answers are worth so much more, with noise, and which costs so much a day."""
    noise = np.random.default_rng(1).normal(size=ROWS)
    champion = np.full(ROWS, CHAMPION.worth)
    candidate = champion + more + spread * (noise - noise.mean())
    difference = paired(candidate, champion)
    version = Version("2", CHAMPION.worth + more, Costs(serving=serving))
    return gate(version, CHAMPION, difference, predictions, "EUR", margin)


def test_better_by_a_hair_on_four_times_the_machine_is_refused_with_the_reason() -> None:
    """0.00001 EUR more for each of 10,000 predictions are 0.10 EUR a day; the machine costs 6 EUR more."""
    verdict = judged(0.00001, 8.0, spread=0.00001)
    assert verdict.refused
    assert verdict.more == pytest.approx(-5.9)
    assert verdict.said.startswith(
        "version 2 earns 5.9 EUR a day less than version 1: its answers are worth 0.1 EUR more, and it costs "
        "6 EUR more; with 95% confidence it earns at least 5.9"
    )
    assert verdict.said.endswith("and 0.18 EUR less would be allowed")


def test_one_that_earns_more_is_let_through_on_any_machine() -> None:
    verdict = judged(0.001, 8.0, spread=0.0001)
    assert not verdict.refused
    assert verdict.more == pytest.approx(4.0)
    assert "earns 4 EUR a day more" in verdict.said


def test_one_that_may_be_better_but_may_as_well_cost_money_is_refused() -> None:
    verdict = judged(0.0001, 2.0, spread=0.05)
    assert verdict.more > 0 > verdict.least
    assert verdict.refused


def test_an_equal_version_at_equal_cost_is_let_through_and_a_loss_within_the_margin_too() -> None:
    """The champion earns 18 EUR a day: 1 % of it are 0.18."""
    assert not judged(0.0, 2.0, margin=0.0).refused
    assert not judged(0.0, 2.17).refused
    assert judged(0.0, 2.19).refused


def test_a_champion_that_loses_money_allows_as_little() -> None:
    """At 500 predictions it earns 1 EUR and costs 2: a hundredth of that loss is allowed."""
    assert judged(0.0, 2.0, predictions=500).allowed == pytest.approx(0.01)
    assert judged(0.0, 2.02, predictions=500).refused


@given(st.floats(-1e-3, 1e-3), st.floats(0, 1e-3), st.floats(0, 20), st.floats(0, 20), st.floats(0, 1e-3))
def test_who_is_let_through_is_let_through_too_where_he_is_better_or_cheaper(
    more: float, spread: float, serving: float, saved: float, better: float
) -> None:
    first = judged(more, serving + saved, spread)
    second = judged(more + better, serving, spread)
    assert first.refused or not second.refused
    assert second.least >= first.least - 1e-9


def test_the_bound_holds_in_95_of_100_comparisons() -> None:
    random = np.random.default_rng(7)
    trials = 4000
    worse = [paired(row, np.zeros(12)).at_least() > 0 for row in random.normal(size=(trials, 12))]
    # Three standard deviations of a share of 5 % in so many trials.
    assert np.mean(worse) == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / trials))


def test_rows_of_one_block_are_not_taken_for_many() -> None:
    random, trials = np.random.default_rng(7), 1000
    blocks = np.repeat(np.arange(30), 10)
    days = random.normal(size=(trials, 30))
    apart, together = (
        np.mean([paired(day[blocks], np.zeros(300), by).at_least() > 0 for day in days])
        for by in (None, blocks)
    )
    assert together == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / trials))
    assert apart > 0.2


def test_a_mean_with_its_error_does_as_well_as_rows() -> None:
    rows = np.array([1.0, 2.0, 4.0, 8.0])
    found = paired(rows, np.zeros(4))
    assert found == Difference(rows.mean(), pytest.approx(rows.std(ddof=1) / 2), 3)


matrices = st.tuples(*[st.tuples(*[st.floats(-10, 10)] * 2)] * 2)


@given(matrices, st.integers(0, 10**6))
def test_what_answers_are_worth_may_be_said_when_they_are_compared_already(
    matrix: tuple[tuple[float, float], tuple[float, float]], seed: int
) -> None:
    """By the means and covariances of four kinds of answers it is what it is by the worth of each row."""
    random = np.random.default_rng(seed)
    labels, blocks = random.integers(0, 2, 60).astype(float), random.integers(0, 20, 60)
    answers, thresholds, worth = random.random((2, 60)), (0.5, 0.3), Worth("EUR", 1.0, matrix=matrix)
    sides = list(zip(answers, thresholds, strict=True))
    ours, theirs = (errors(labels, each, threshold) for each, threshold in sides)
    found, rows = Compared.paired(ours, theirs, blocks), [worth.rows(labels, *side) for side in sides]
    assert found.champions(worth) == pytest.approx(rows[1].mean(), abs=1e-9)
    # An error that cancels out is the root of a sum's last digit.
    assert found.difference(worth) == pytest.approx(paired(*rows, blocks), abs=1e-6)


def test_errors_of_one_kind_have_no_worth_by_what_the_other_costs() -> None:
    numbers, decisions = (errors(np.zeros(2), np.arange(2.0), threshold) for threshold in (None, 0.5))
    with pytest.raises(DataError, match="takes a threshold"):
        Compared.paired(numbers, numbers).difference(Worth("EUR", matrix=((0, 1), (10, 0))))
    with pytest.raises(DataError, match="is of numbers, and not of yes and no"):
        Compared.paired(decisions, decisions).difference(Worth("EUR", per_error=1.0))
    assert Compared.paired(decisions, decisions).difference(Worth("EUR", 1.0)) == (0.0, 0.0, 1)


@pytest.mark.parametrize(
    ("rows", "says"), [([], "0 rows"), ([1.0], "1 rows"), ([1.0, math.nan], "no number")]
)
def test_what_cannot_be_compared_is_an_error_and_no_verdict(rows: list[float], says: str) -> None:
    with pytest.raises(DataError, match=says):
        paired(np.array(rows), np.zeros(len(rows)))
    with pytest.raises(DataError, match="too few"):
        paired(np.arange(3.0), np.zeros(3), np.zeros(3, np.int64))


floats = st.lists(st.floats(-100, 100), min_size=1, max_size=50)


@given(floats, st.floats(0, 10), st.floats(0, 10))
def test_the_worth_that_metrics_tell_is_that_of_the_rows(
    labels: list[float], each: float, per_error: float
) -> None:
    said = np.array(labels)
    predictions = said + np.linspace(-1, 2, len(said))
    worth = Worth("EUR", each, per_error)
    known = metrics.score_all("regression", said, predictions)
    assert worth.mean(known) == pytest.approx(worth.rows(said, predictions).mean())


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=4, max_size=60))
def test_the_worth_that_metrics_of_decisions_tell_is_that_of_the_rows(rows: list[tuple[bool, bool]]) -> None:
    labels, yes = (np.array(column, np.float64) for column in zip(*rows, strict=True))
    assume((labels * yes).any() and (labels != yes).any())
    worth = Worth("EUR", 1.0, matrix=((-0.5, 1.0), (10.0, 0.25)))
    known = metrics.decided(labels, yes > 0, np.ones(len(labels)))
    assert worth.mean(known) == pytest.approx(worth.rows(labels, yes, 0.5).mean())


def test_where_the_quality_is_not_known_the_worth_is_not_guessed() -> None:
    with pytest.raises(DataError, match="the version's mae is not known"):
        Worth("EUR", 1.0, 0.5).mean({"rmse": 1.0})
    with pytest.raises(DataError, match="do not tell"):
        Worth("EUR", matrix=((0, 1), (10, 0))).mean({"accuracy": 1.0, "precision": 1.0, "recall": 1.0})
    with pytest.raises(DataError, match="takes a threshold"):
        Worth("EUR", matrix=((0, 1), (10, 0))).rows(np.zeros(1), np.zeros(1))
    assert Worth("EUR", 1.0).mean({}) == 1.0


@given(st.floats(1, 1e6), st.floats(1e-6, 10), st.floats(0.01, 1e4), st.floats(0, 1e4))
def test_at_the_price_and_the_volume_of_break_even_nothing_is_earned_and_nothing_lost(
    predictions: float, worth: float, serving: float, training: float
) -> None:
    costs = Costs(serving, training, 30)
    price = profit.break_even_price(predictions, 0.25, costs)
    assert profit.profit(predictions, price - 0.25, costs) == pytest.approx(0, abs=1e-6 * costs.per_day)
    volume = profit.break_even_volume(worth, costs)
    assert profit.profit(volume, worth, costs) == pytest.approx(0, abs=1e-6 * costs.per_day)


def test_what_a_project_says_is_what_an_answer_is_worth() -> None:
    euros = {"currency": "EUR"}
    said = config.Cost.model_validate(
        {
            "value_per_prediction": euros | {"amount": 0.002},
            "value": {"per_unit_of_error": euros | {"amount": 0.01}},
        }
    )
    assert Worth.of(said) == Worth("EUR", 0.002, 0.01)
    matrix = {"matrix": euros | {"costs": [[0, 1], [10, 0]]}}
    assert Worth.of(config.Cost.model_validate({"value": matrix})) == Worth("EUR", matrix=((0, 1), (10, 0)))
    assert Worth.of(config.Cost()) is None
