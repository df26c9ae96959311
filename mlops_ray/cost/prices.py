"""What machines cost an hour: a file of prices, each with its source and date.

currency: EUR
source: https://example.org/prices   # where the figures are from,
date: 2026-11-01                      # and when they were read there
region: eu-central                    # these three of every machine that does not say otherwise
machines:
  - {type: small, vcpu: 2, memory_gib: 8, per_hour: 0.1}
  - {type: graphic, vcpu: 8, memory_gib: 32, gpu: T4, gpus: 1, per_hour: 0.6, spot: true}
  - {type: desk, vcpu: 8, own: {purchase: 1752, years: 4, watts: 100, per_kwh: 0.3}}
"""

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from mlops_ray.config.project import Currency
from mlops_ray.config.reading import Origin, parse
from mlops_ray.config.values import Model, wrong
from mlops_ray.errors import DataError
from mlops_ray.pages import number

#: A year of 365 days.
HOURS_A_YEAR = 8760.0
#: How far clocks and time zones may be apart: a price of tomorrow is none of the future.
TOMORROW = dt.timedelta(days=1)
#: Machines that a list may hold, so that it can be read again (`config.reading.MOST_NODES`).
MOST_MACHINES = 5_000


@dataclass(frozen=True)
class Price:
    """A machine's price: `per_hour` of `currency`, as `source` had it at `date`.

    `gpu` is the model of its `gpus`, empty where the source does not say, as `memory_gib` is then 0. An empty
    `region` is any.
    """

    type: str
    vcpu: float
    memory_gib: float
    gpu: str
    gpus: int
    per_hour: float
    currency: str
    region: str
    spot: bool
    source: str
    date: dt.date


@dataclass(frozen=True)
class PriceList:
    """Prices of one currency, one at least; of a type in a region one, and one as spot.

    Raises `DataError` where they are not that.
    """

    prices: tuple[Price, ...]

    def __post_init__(self) -> None:
        currencies = sorted({price.currency for price in self.prices})
        if len(currencies) != 1:
            raise DataError(f"prices are of one currency, not of {' and '.join(currencies) or 'none'}")

    @property
    def currency(self) -> str:
        return self.prices[0].currency

    def find(self, type: str, region: str | None = None, spot: bool | None = None) -> tuple[Price, ...]:
        """The prices of a type, the cheapest first; without a region in all, without `spot` of both kinds."""
        found = [price for price in self.of_region(region) if price.type == type]
        chosen = (price for price in found if spot is None or price.spot == spot)
        return tuple(sorted(chosen, key=lambda price: price.per_hour))

    def of_region(self, region: str | None) -> tuple[Price, ...]:
        """The prices that count in a region: its own of a type; of one that has none there that of any.

        Without a region they are all.
        """
        if region is None:
            return self.prices
        own = {(price.type, price.spot) for price in self.prices if price.region == region}
        return tuple(
            price
            for price in self.prices
            if price.region == region or (not price.region and (price.type, price.spot) not in own)
        )

    def stale(self, today: dt.date, limit: dt.timedelta) -> tuple[Price, ...]:
        """The prices that are older than the limit, or of the future, which never get old."""
        return tuple(p for p in self.prices if not -TOMORROW <= today - p.date <= limit)


#: Sums of as many as there ever are stay numbers, whatever the currency.
MOST, LEAST = 1e12, 1e-9
Amount = Annotated[float, Field(ge=0, le=MOST, allow_inf_nan=False)]
Positive = Annotated[float, Field(ge=LEAST, le=MOST, allow_inf_nan=False)]


def _word(value: Any) -> Any:
    """A word as files and pages can show it; YAML reads a bare word of digits as a number."""
    said = str(value) if isinstance(value, int) else value
    if isinstance(said, str) and not said.isprintable():
        raise ValueError("holds a character that cannot be shown")
    return said


#: A type, a region, a source.
Word = Annotated[str, Field(max_length=200), BeforeValidator(_word)]


class Own(Model):
    """Hardware of one's own; its price stands for an hour in which it is used."""

    purchase: Amount
    years: float = Field(ge=0.01, le=100)
    """That it lasts."""
    watts: Amount
    """That it draws while it is used, cooling included."""
    per_kwh: Amount
    utilisation: float = Field(1, ge=1e-4, le=1)
    """The share of its hours in which it is used, which bear the price of all."""
    upkeep: float = Field(0, ge=0, le=100)
    """What a year of space, care and repair costs, as a share of the purchase."""

    @property
    def per_hour(self) -> float:
        """Purchase and upkeep over the hours of its life in which it is used, and the power of one.

        8,760 EUR for 4 years with 10 % upkeep are 12,264 EUR, over 17,520 hours 0.70 EUR, and 500 W at
        0.30 EUR a kWh 0.15 EUR an hour:

        >>> desk = Own(purchase=8760, years=4, watts=500, per_kwh=0.3, utilisation=0.5, upkeep=0.1)
        >>> round(desk.per_hour, 9)
        0.85
        """
        used = self.years * HOURS_A_YEAR * self.utilisation
        return self.purchase * (1 + self.upkeep * self.years) / used + self.watts / 1000 * self.per_kwh


class _Defaults(Model):
    """What is said once for all machines of a file, or by each."""

    currency: Currency | None = None
    source: Annotated[Word, Field(min_length=1)] | None = None
    date: dt.date | None = None
    region: Word | None = None


class _Machine(_Defaults):
    exactly_one = ("per_hour", "own")

    type: Annotated[Word, Field(min_length=1)]
    vcpu: Positive
    memory_gib: Amount = 0
    gpu: Word = ""
    gpus: int = Field(0, ge=0)
    per_hour: Positive | None = None
    own: Own | None = None
    spot: bool = False

    @model_validator(mode="after")
    def _counts(self) -> Self:
        if self.gpu and not self.gpus:
            raise wrong(f"{self.gpu} is there how often? say e.g. gpus: 1", "gpu")
        if self.own is not None and not self.own.per_hour:
            raise wrong("costs nothing: say its purchase or its power", "own")
        return self

    def price(self, of_all: _Defaults) -> Price:
        """With what is said of all; raises where something is said by neither."""
        said = {name: getattr(self, name) or getattr(of_all, name) for name in _Defaults.model_fields}
        for name in ("currency", "source", "date"):
            if said[name] is None:
                raise ValueError(f"no {name}: a price without it means nothing")
        per_hour = self.own.per_hour if self.own else self.per_hour
        assert per_hour is not None
        shape = (self.type, self.vcpu, self.memory_gib, self.gpu, self.gpus)
        return Price(
            *shape, per_hour, said["currency"], said["region"] or "", self.spot, said["source"], said["date"]
        )


class _File(_Defaults):
    machines: tuple[_Machine, ...] = Field(min_length=1)


def load(path: str | Path) -> PriceList:
    """The prices of a file; raises `ConfigError` in a sentence with file, line and entry."""
    tree, lines = parse(Path(path), "price list", "currency: EUR")
    origin = Origin(str(path), lines)
    try:
        file = _File.model_validate(tree)
    except ValidationError as error:
        raise origin.first_error(error) from None
    prices: dict[tuple[str, str, bool], Price] = {}
    for at, machine in enumerate(file.machines):
        place = ("machines", at)
        try:
            price = machine.price(file)
        except ValueError as error:
            raise origin.error(str(error), place) from None
        first = next(iter(prices.values()), price)
        if price.currency != first.currency:
            raise origin.error(
                f"{price.currency} beside {first.currency}: a list is of one currency, at your own rate",
                place,
            )
        if key(price) in prices:
            raise origin.error(f"a second price of {named(price)}; leave one out", place)
        prices[key(price)] = price
    return PriceList(tuple(prices.values()))


def key(price: Price) -> tuple[str, str, bool]:
    """What a list may hold one price of."""
    return price.type, price.region, price.spot


def named(price: Price) -> str:
    """What a machine is called in a sentence.

    >>> named(Price("a", 1, 1, "", 0, 1, "EUR", "here", True, "", dt.date(2026, 1, 1)))
    'a in here (spot)'
    """
    return price.type + f" in {price.region}" * bool(price.region) + " (spot)" * price.spot


def price(said: dict[str, Any]) -> Price:
    """One price of its words, as an entry of a file has them; raises `ValueError` with what is wrong."""
    try:
        return _Machine.model_validate(said).price(_Defaults())
    except ValidationError as error:
        detail = error.errors()[0]
        at = [*detail["loc"], *detail.get("ctx", {}).get("at", ())]
        message = detail["msg"].removeprefix("Value error, ")
        raise ValueError(": ".join([*map(str, at), message])) from None


def text(prices: Iterable[Price], head: str = "") -> str:
    """The file of these prices, cheapest first, which `load` reads again; `head` are its first comments.

    Raises `DataError` of none, of too many, of several currencies.
    """
    ordered = sorted(prices, key=lambda p: (p.region, p.per_hour, p.type, p.spot))
    if len(ordered) > MOST_MACHINES:
        raise DataError(f"{len(ordered):,} prices are more than {MOST_MACHINES:,}: choose a region")
    common: dict[str, Any] = {"currency": PriceList(tuple(ordered)).currency}
    for name in ("source", "date", "region"):
        found = {getattr(price, name) for price in ordered}
        common |= {name: found.pop()} if len(found) == 1 else {}
    lines = [f"# {line}" for line in head.splitlines()]
    lines += [yaml.safe_dump(common, sort_keys=False, allow_unicode=True).rstrip(), "machines:"]
    return "\n".join([*lines, *(f"  - {_flow(price, common)}" for price in ordered)]) + "\n"


def _flow(price: Price, common: dict[str, Any]) -> str:
    """An entry on one line: what it says beside what is said of all."""
    defaults = {"memory_gib": 0, "gpu": "", "gpus": 0, "region": "", "spot": False} | common
    said = {name: value for name, value in vars(price).items() if defaults.get(name) != value}
    return yaml.safe_dump(
        said, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6
    ).strip()


def money(amount: float, currency: str) -> str:
    """An amount as people read it.

    >>> money(0.00123, "EUR"), money(1234567.0, "USD"), money(-3.5, "EUR")
    ('0.00123 EUR', '1,234,567 USD', '-3.5 EUR')
    """
    return f"{number(float(amount))} {currency}"
