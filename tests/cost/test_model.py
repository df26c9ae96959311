"""A plan is the cheapest of what was measured, by arithmetic that another way of counting agrees with."""

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mlops_ray.cost import model
from mlops_ray.cost.model import Capacity, Hour, Option, Plan, Wanted, daily, flat, plan, recorded
from mlops_ray.errors import DataError

from .cases import SLO, WANTED, listed, machine, measured

COUNTS = st.integers(1, 16)
RATES = st.integers(1, 1000).map(float)
LOADS = st.lists(st.integers(0, 5000).map(float), min_size=24, max_size=24)


@st.composite
def fleets(draw: st.DrawFn) -> tuple[list[Any], list[Capacity]]:
    """Types of machines, each with a price and a replica that was measured on it, fitting or not."""
    machines, known = [], []
    for number in range(draw(st.integers(1, 4))):
        gpus = draw(st.integers(0, 2))
        price = draw(st.integers(1, 1000)) / 100
        machines.append(machine(f"m{number}", draw(COUNTS), price, gpu="T4" * bool(gpus), gpus=gpus))
        gpu = draw(st.sampled_from([0.0, 0.5, 1.0])) if gpus else 0.0
        known.append(measured(f"m{number}", draw(RATES), cpu=float(draw(st.integers(1, 4))), gpu=gpu))
    return machines, known


def cost(found: Plan) -> float:
    return found.chosen.per_day if found.chosen else math.inf


# ---------------------------------------------------------------- by hand


def test_a_flat_load_by_hand() -> None:
    """100 requests a second, 50 a replica, of which 70 % are planned with: 3 replicas of one CPU.

    Two fit on a node of 0.10 EUR an hour: 2 nodes, 0.20 EUR an hour, 4.80 EUR a day for 8.64 million.
    """
    found = plan(flat(100), [measured()], listed(machine()), replace(WANTED, safety=0.7))
    chosen = found.chosen
    assert (set(chosen.replicas), set(chosen.nodes)) == ({3}, {2})
    assert (chosen.per_hour, chosen.per_day) == (pytest.approx(0.2), pytest.approx(4.8))
    assert chosen.per_1000 == pytest.approx(4.8 / 8640)
    assert chosen.utilisation == pytest.approx(100 / 150)


def test_a_day_is_paid_hour_by_hour_as_its_load_asks() -> None:
    """12 hours of 10 requests a second need a node, 12 of 190 two: 12 · 0.1 + 12 · 0.2 EUR."""
    found = plan(daily([10] * 12 + [190] * 12), [measured()], listed(machine()), WANTED)
    assert found.chosen.nodes == (1,) * 12 + (2,) * 12
    assert cost(found) == pytest.approx(3.6)
    assert found.chosen.per_1000 == pytest.approx(1000 * 3.6 / (12 * 3600 * 200))


def test_predictions_are_rows_and_the_load_is_in_requests() -> None:
    of_ten = measured(rows=10.0)
    one, ten = (
        plan(flat(40), [each], listed(machine()), replace(WANTED, rows=each.rows)).chosen
        for each in (measured(), of_ten)
    )
    assert one.per_1000 == pytest.approx(10 * (ten.per_1000 or 0))


def test_planned_cost_of_1000_is_that_of_the_formula_at_its_utilisation() -> None:
    found = plan(flat(120), [measured(cpu=2.0)], listed(machine()), WANTED).chosen
    assert found.per_1000 == pytest.approx(model.per_1000(0.1, 50, found.utilisation))


def test_scaling_to_zero_pays_nothing_in_the_hours_in_which_nobody_asks() -> None:
    some = daily([0] * 23 + [10])
    assert cost(plan(some, [measured()], listed(machine()), WANTED)) == pytest.approx(0.1)
    assert cost(plan(some, [measured()], listed(machine()), replace(WANTED, least=1))) == pytest.approx(2.4)
    nothing = plan(flat(0), [measured()], listed(machine()), WANTED).chosen
    assert nothing.per_1000 is None


@pytest.mark.parametrize(
    ("cpu", "gpu", "held"),
    [
        (1, 0, 8),
        (3, 0, 2),
        (0.1, 0, 80),
        (1, 1, 2),
        (1, 0.5, 4),
        (1, 0.4, 4),
        (0.5, 0.6, 2),
        (9, 0, 0),
        (1, 3, 0),
    ],
)
def test_replicas_share_a_gpu_but_none_lies_on_two(cpu: float, gpu: float, held: int) -> None:
    assert model.fitting(machine(vcpu=8, gpu="T4", gpus=2), cpu, gpu) == held


def test_the_price_of_a_replica_is_that_of_the_larger_share() -> None:
    graphic = machine(vcpu=8, per_hour=0.8, gpu="T4", gpus=1)
    assert model.replica_price(graphic, 2, 0) == pytest.approx(0.2)
    assert model.replica_price(graphic, 1, 1) == pytest.approx(0.8)
    assert model.replica_price(machine(), 1, 1) == math.inf


# ---------------------------------------------------------------- always


def oracle(rates: list[float], machines: list[Any], known: list[Capacity]) -> float:
    """The least cost of a day, counted in whole numbers."""
    least = math.inf
    for price, capacity in zip(machines, known, strict=True):
        held = price.vcpu // int(capacity.cpu)
        if capacity.gpu:
            held = min(held, price.gpus * int(1 / capacity.gpu))
        if held:
            count = [-(-Fraction(rate) // Fraction(capacity.rate)) for rate in rates]
            least = min(least, price.per_hour * sum(-(-int(each) // int(held)) for each in count))
    return least


@given(fleets(), LOADS)
def test_the_plan_is_the_cheapest_there_is(
    fleet: tuple[list[Any], list[Capacity]], rates: list[float]
) -> None:
    machines, known = fleet
    found = plan(daily(rates), known, listed(*machines), WANTED)
    assert cost(found) == pytest.approx(oracle(rates, machines, known))


@given(fleets(), LOADS, LOADS)
def test_more_load_never_costs_less(
    fleet: tuple[list[Any], list[Capacity]], rates: list[float], more: list[float]
) -> None:
    machines, known = fleet
    wanted = replace(WANTED, most=100)
    larger = [rate + extra for rate, extra in zip(rates, more, strict=True)]
    costs = [cost(plan(daily(each), known, listed(*machines), wanted)) for each in (rates, larger)]
    assert costs[0] <= costs[1]


@given(fleets(), LOADS, st.floats(0.01, 0.99))
def test_a_cheaper_machine_of_equal_capacity_is_never_passed_over(
    fleet: tuple[list[Any], list[Capacity]], rates: list[float], share: float
) -> None:
    machines, known = fleet
    first = plan(daily(rates), known, listed(*machines), WANTED).chosen
    assume(first is not None and first.per_day > 0)
    twin = replace(first.price, type="twin", per_hour=first.price.per_hour * share)
    known = [*known, replace(first.capacity, machine="twin")]
    second = plan(daily(rates), known, listed(*machines, twin), WANTED).chosen
    assert second.price == twin


@given(fleets(), LOADS, st.floats(0.1, 1), st.integers(0, 3))
def test_replicas_are_as_few_as_hold_the_load_and_nodes_as_few_as_hold_them(
    fleet: tuple[list[Any], list[Capacity]], rates: list[float], safety: float, least: int
) -> None:
    machines, known = fleet
    wanted = replace(WANTED, safety=safety, least=least)
    for option in plan(daily(rates), known, listed(*machines), wanted).options:
        if option.refused:
            continue
        usable = option.capacity.rate * safety
        held = model.fitting(option.price, option.capacity.cpu, option.capacity.gpu)
        for rate, count, nodes in zip(rates, option.replicas, option.nodes, strict=True):
            assert count >= least
            assert count * usable >= rate * (1 - 1e-6)
            assert count == least or (count - 1) * usable < rate
            assert (nodes - 1) * held < count <= nodes * held


@given(st.integers(1, 5000), RATES, RATES, st.integers(1, 500), st.integers(1, 500))
def test_a_gpu_is_chosen_exactly_where_it_pays(
    load: int, cpu: float, gpu: float, cheap: int, dear: int
) -> None:
    machines = listed(machine("plain", 1, cheap / 100), machine("graphic", 1, dear / 100, gpu="T4", gpus=1))
    known = [measured("plain", cpu), measured("graphic", gpu, gpu=1.0)]
    found = plan(flat(load), known, machines, WANTED)
    nodes = [math.ceil(load / rate * (1 - 1e-9)) for rate in (cpu, gpu)]
    pays = nodes[1] * dear < nodes[0] * cheap
    costs = {option.price.type: option.per_day for option in found.options}
    if costs["plain"] != pytest.approx(costs["graphic"]):
        assert (found.chosen.price.type == "graphic") == pays
    else:
        assert not pays


# ---------------------------------------------------------------- what is not chosen


def refusal(capacity: Capacity, price: Any = None, wanted: Wanted = WANTED, load: float = 100) -> str:
    found = plan(flat(load), [capacity], listed(price or machine()), wanted)
    (option,) = found.options
    assert (found.chosen is None) == bool(option.refused)
    return option.refused


def test_what_does_not_keep_what_is_asked_for_is_refused_with_the_reason() -> None:
    assert refusal(measured()) == ""
    slower = measured(slo=SLO | {"p99_ms": 100.0})
    assert refusal(slower) == "measured for p99_ms 100 ms, and 50 ms is asked for"
    assert "error_rate nothing" in refusal(measured(slo={"p99_ms": 50.0}))
    assert refusal(measured(rows=100.0)) == "measured with 100 rows a request, and the load has 1"
    assert refusal(measured(cpu=4.0)) == "a replica of 4 CPU and 0 GPU does not fit on it"
    few = replace(WANTED, most=1)
    assert refusal(measured(), wanted=few) == "needs 2 replicas, and serving.replicas.max is 1"
    assert refusal(measured(), wanted=few, load=50) == ""
    spot = machine(spot=True)
    assert refusal(measured(), spot) == "may be taken away at any time (cost.spot: true allows it)"
    assert refusal(measured(), spot, replace(WANTED, spot=True)) == ""


def test_a_type_that_was_never_measured_is_listed_and_never_chosen_however_cheap() -> None:
    cheap = machine("cheap", per_hour=0.001)
    found = plan(flat(10), [measured()], listed(cheap, machine()), WANTED)
    assert found.chosen.price.type == "small"
    assert [(o.price.type, o.refused) for o in found.options[1:]] == [
        ("cheap", "not measured: run loadtest on it")
    ]
    assert found.said[-1] == "Not measured, so not chosen: cheap."
    nothing = plan(flat(10), [], listed(cheap), WANTED)
    assert nothing.chosen is None
    assert nothing.said[0] == "Nothing that was measured can be chosen."
    small = plan(flat(100), [measured()], listed(machine()), replace(WANTED, most=1))
    assert small.said == (
        "Nothing that was measured can be chosen: small: needs 2 replicas, and serving.replicas.max is 1.",
    )


def test_a_scaled_record_is_marked_an_estimate_with_its_cost_and_never_chosen() -> None:
    cheap = machine("cheap", per_hour=0.001)
    guess = model.scaled(measured(), cheap)
    found = plan(flat(10), [measured(), guess], listed(cheap, machine()), WANTED)
    assert found.chosen.price.type == "small"
    last = found.options[1]
    assert last.refused == "an estimate: measured on small, as if the cores of cheap were as fast"
    assert last.per_day == pytest.approx(0.024)
    assert found.to_json()["options"][1]["estimated"]
    guess = model.scaled(measured(at="2026-12-01T00:00:00+00:00"), cheap)
    real = plan(flat(10), [guess, measured("cheap")], listed(cheap, machine()), WANTED)
    assert real.chosen.price.type == "cheap"


def test_the_speed_of_one_gpu_says_nothing_of_another() -> None:
    with pytest.raises(DataError, match="measure there"):
        model.scaled(measured(gpu=1.0), machine("other", gpu="A100", gpus=1))


def test_of_two_records_of_one_size_the_newest_counts() -> None:
    old, new = measured(rate=1000, at="2026-10-01T00:00:00+00:00"), measured(rate=10)
    for known in ([old, new], [new, old]):
        found = plan(flat(20), known, listed(machine()), WANTED)
        assert [option.replicas[0] for option in found.options] == [2]


def test_machines_of_other_regions_are_not_planned_with() -> None:
    there, here = machine("there", region="us"), machine(region="eu")
    found = plan(flat(1), [measured(), measured("there")], listed(there, here), replace(WANTED, region="eu"))
    assert [option.price.type for option in found.options] == ["small"]


def test_the_reasons_tell_what_a_gpu_and_what_spot_would_cost() -> None:
    machines = listed(
        machine("plain", 1),
        machine("plain", 1, 0.03, spot=True),
        machine("graphic", 1, 0.6, gpu="T4", gpus=1),
    )
    known = [measured("plain", 50), measured("graphic", 400, gpu=1.0)]
    found = plan(flat(50), known, machines, WANTED)
    assert found.said == (
        "plain is the cheapest: at most 1 replicas of 1 CPU, 1 a node, 2.4 EUR a day.",
        "The cheapest with a GPU, graphic, costs 14.4 EUR a day.",
        "As spot, plain would cost 0.72 EUR a day, and may be taken away at any time.",
    )


# ---------------------------------------------------------------- loads and records


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=200), st.integers(1, 5000))
def test_a_recorded_load_loses_no_request_and_no_peak(rates: list[float], step: int) -> None:
    hours = recorded([(at * step, rate) for at, rate in enumerate(rates)])
    whole = len(rates) * step
    assert [hour.seconds for hour in hours] == [min(3600, whole - 3600 * at) for at in range(len(hours))]
    assert sum(hour.mean * hour.seconds for hour in hours) == pytest.approx(sum(rates) * step)
    assert max(hour.peak for hour in hours) == max(rates)
    assert all(hour.mean <= hour.peak * (1 + 1e-9) for hour in hours)


def test_replicas_are_for_the_peak_of_an_hour_and_1000_are_counted_by_its_mean() -> None:
    found = plan((Hour(10, 100),), [measured()], listed(machine()), WANTED).chosen
    assert found.replicas == (2,)
    assert found.per_1000 == pytest.approx(1000 * 0.1 / 36_000)
    # A day is 24 hours, however many were recorded.
    assert (found.per_hour, found.per_day) == (pytest.approx(0.1), pytest.approx(2.4))


def test_an_hour_that_is_cut_short_counts_for_as_long_as_it_lasts() -> None:
    """Two minutes of a hundred times as much, after an hour: 50 nodes, for a thirtieth of the time."""
    found = plan((Hour(50, 50), Hour(5000, 5000, 120.0)), [measured()], listed(machine()), WANTED).chosen
    assert found.nodes == (1, 50)
    paid, asked = 0.1 + 50 * 0.1 / 30, 50 * 3600 + 5000 * 120
    assert found.per_day == pytest.approx(24 * paid / (1 + 1 / 30))
    assert found.per_1000 == pytest.approx(1000 * paid / asked)


def test_a_record_of_many_years_is_refused_before_it_is_gone_through() -> None:
    with pytest.raises(DataError, match="400 days at most"):
        recorded([(0, 1), (1e12, 2)])


@pytest.mark.parametrize("points", [[], [(0, 1)], [(0, 1), (0, 2)], [(5, 1), (0, 2)]])
def test_a_record_whose_seconds_do_not_rise_is_no_load(points: list[tuple[float, float]]) -> None:
    with pytest.raises(DataError, match="their seconds rising"):
        recorded(points)


def test_a_capacity_is_read_as_it_was_written_and_a_damaged_one_refused() -> None:
    kept = measured(gpu=0.5, estimated="so")
    assert Capacity.from_json(kept.to_json()) == kept
    for change in (
        {"rate": "fast"},
        {"rate": 0.0},
        {"rows": 0},
        {"cpu": 0, "gpu": 0},
        {"speed": 1},
        {"slo": 3},
        {"slo": {"p99_ms": "x"}},
        {"max_rows": 0},
        {"max_rows": 10**10},
        {"cpu": 1e-9},
        {"rate": 1e-320, "high": 1.0},
        {"high": 10**400},
    ):
        with pytest.raises(DataError):
            Capacity.from_json(kept.to_json() | change)
    with pytest.raises(DataError, match="no record of a capacity"):
        Capacity.from_json({"model": "shop"})


def test_an_option_without_a_cost_is_plain_json() -> None:
    assert Option(machine(), refused="not measured").to_json()["per_day"] is None
