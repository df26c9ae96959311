"""A list of prices: every figure with its source and date, and a mistake in it with file and line."""

import datetime as dt
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_ray.cost import prices
from mlops_ray.cost.prices import Own, Price, PriceList
from mlops_ray.errors import ConfigError, DataError
from tests.conftest import ROOT

DAY = dt.date(2026, 11, 1)
SMALL = Price("small", 2, 8, "", 0, 0.1, "EUR", "here", False, "a list", DAY)
FILE = """\
currency: EUR
source: a list
date: 2026-11-01
machines:
  - {type: small, vcpu: 2, memory_gib: 8, per_hour: 0.1, region: here}
"""


def read(tmp_path: Path, text: str) -> PriceList:
    file = tmp_path / "prices.yaml"
    file.write_text(text)
    return prices.load(file)


def test_a_machine_has_what_is_said_of_all_where_it_says_nothing_else(tmp_path: Path) -> None:
    text = FILE + "  - {type: big, vcpu: 4, per_hour: 0.3, gpu: T4, gpus: 1, spot: true, date: 2026-10-01}\n"
    first, second = read(tmp_path, text).prices
    assert first == SMALL
    size = {"type": "big", "vcpu": 4, "memory_gib": 0, "gpu": "T4", "gpus": 1}
    assert second == replace(SMALL, **size, per_hour=0.3, region="", spot=True, date=dt.date(2026, 10, 1))


def test_the_example_list_says_that_it_is_none_of_real_offers() -> None:
    file = ROOT / "configs" / "prices.yaml"
    listed = prices.load(file)
    assert "EXAMPLE, made up by hand" in file.read_text().splitlines()[0]
    assert {price.source for price in listed.prices} == {"made-up example"}
    assert any(price.gpus for price in listed.prices)
    assert any(price.spot for price in listed.prices)


@pytest.mark.parametrize(
    ("wrong", "line", "says"),
    [
        ("  - {type: a, vcpu: 2}", 6, "machines.1: say exactly one of per_hour, own"),
        ("  - {type: a, vcpu: 2, per_hour: 0}", 6, "machines.1.per_hour: "),
        ("  - {type: a, vcpu: 2, per_hour: .nan}", 6, "machines.1.per_hour: "),
        ("  - {type: a, vcpus: 2, per_hour: 1}", 6, "machines.1: unknown key 'vcpus'; did you mean 'vcpu'?"),
        ("  - {type: a, vcpu: 2, per_hour: 1, gpu: T4}", 6, "machines.1.gpu: T4 is there how often?"),
        ("  - {type: a, vcpu: 2, own: {purchase: 0, years: 4, watts: 0, per_kwh: 0}}", 6, "costs nothing"),
        ("  - {type: a, vcpu: 2, per_hour: 1.0e+300}", 6, "machines.1.per_hour: "),
        ('  - {type: "a\\e[31m", vcpu: 2, per_hour: 1}', 6, "holds a character that cannot be shown"),
        (
            "  - {type: a, vcpu: 2, own: {purchase: 1, years: 1.0e-300, watts: 0, per_kwh: 0}}",
            6,
            "machines.1.own.years: ",
        ),
        (
            "  - {type: a, vcpu: 2, per_hour: 1, currency: USD}",
            6,
            "USD beside EUR: a list is of one currency",
        ),
        (
            "  - {type: small, vcpu: 4, per_hour: 2, region: here}",
            6,
            "machines.1: a second price of small in here; leave one out",
        ),
    ],
)
def test_a_mistake_is_one_sentence_with_file_line_and_entry(
    tmp_path: Path, wrong: str, line: int, says: str
) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, FILE + wrong + "\n")
    assert str(error.value).startswith(f"{tmp_path / 'prices.yaml'}:{line}: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["currency", "source", "date"])
def test_a_figure_without_currency_source_or_date_is_none(tmp_path: Path, name: str) -> None:
    text = "".join(line for line in FILE.splitlines(keepends=True) if not line.startswith(name))
    with pytest.raises(
        ConfigError, match=rf"yaml:4: machines.0: no {name}: a price without it means nothing"
    ):
        read(tmp_path, text)


def test_a_file_that_is_missing_or_no_list_says_what_it_should_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the price list"):
        prices.load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="a price list is a mapping that begins with currency: EUR"):
        read(tmp_path, "- 1")


def test_of_a_type_that_has_a_price_in_the_region_that_of_any_does_not_count() -> None:
    anywhere, there = replace(SMALL, region=""), replace(SMALL, region="there")
    spot, big = replace(anywhere, spot=True), replace(anywhere, type="big")
    listed = PriceList((anywhere, there, SMALL, spot, big))
    assert listed.of_region("here") == (SMALL, spot, big)
    assert listed.of_region("else") == (anywhere, spot, big)
    assert listed.of_region(None) == listed.prices


def test_an_old_price_and_one_of_the_future_are_stale() -> None:
    listed = PriceList((SMALL, replace(SMALL, type="old", date=dt.date(2026, 7, 1))))
    limit = dt.timedelta(days=90)
    assert [price.type for price in listed.stale(DAY, limit)] == ["old"]
    assert listed.stale(dt.date(2026, 9, 29), limit) == (SMALL,)
    assert listed.stale(dt.date(2026, 1, 1), limit) == listed.prices


def test_a_type_is_found_cheapest_first_in_its_region_or_in_any() -> None:
    spot = replace(SMALL, per_hour=0.03, spot=True)
    there = replace(SMALL, per_hour=0.05, region="there")
    own = replace(SMALL, per_hour=0.2, region="")
    listed = PriceList((SMALL, spot, there, own))
    assert listed.find("small") == (spot, there, SMALL, own)
    assert listed.find("small", "here") == (spot, SMALL)
    assert listed.find("small", "here", spot=False) == (SMALL,)
    assert listed.find("none") == ()


def test_prices_of_two_currencies_are_no_list() -> None:
    with pytest.raises(DataError, match="of one currency, not of EUR and USD"):
        PriceList((SMALL, replace(SMALL, currency="USD")))


def test_an_hour_of_own_hardware_that_stands_idle_half_of_the_time_bears_twice_its_purchase() -> None:
    busy = Own(purchase=1000, years=5, watts=0, per_kwh=1)
    assert replace_own(busy, utilisation=0.5).per_hour == pytest.approx(2 * busy.per_hour)
    # Power is drawn while it is used.
    assert replace_own(busy, purchase=0, watts=250, utilisation=0.5).per_hour == pytest.approx(0.25)


def replace_own(own: Own, **changes: float) -> Own:
    return Own.model_validate(own.model_dump() | changes)


words = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)
machines = st.builds(
    Price,
    type=words,
    vcpu=st.floats(0.25, 512),
    memory_gib=st.floats(0, 1e4),
    gpu=st.just("") | words,
    gpus=st.integers(1, 16),
    per_hour=st.floats(1e-6, 1e4),
    currency=st.just("EUR"),
    region=st.just("") | words,
    spot=st.booleans(),
    source=words,
    date=st.dates(dt.date(2000, 1, 1)),
)


@given(st.lists(machines, min_size=1, max_size=5, unique_by=lambda p: (p.type, p.region, p.spot)))
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, listed: list[Price]) -> None:
    file = tmp_path_factory.getbasetemp() / "written.yaml"
    file.write_text(prices.text(listed, "how it came here\nand when"), encoding="utf-8")
    found = prices.load(file)
    assert sorted(found.prices, key=repr) == sorted(listed, key=repr)


def test_more_prices_than_can_be_looked_through_are_not_written() -> None:
    many = [replace(SMALL, type=str(number)) for number in range(prices.MOST_MACHINES + 1)]
    with pytest.raises(DataError, match="5,001 prices are more than 5,000: choose a region"):
        prices.text(many)
