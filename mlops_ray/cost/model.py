"""What a load costs on which machine, from what was measured and what machines cost.

A capacity says how many requests a second one replica answers within the objective (`Slo`) on a type of
machine. What was never measured is listed as such, and what was scaled from another machine as an estimate;
neither is ever chosen. Nodes are paid whole: what no replica reserves of them is paid too.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from operator import mul
from typing import Any, NamedTuple, Self

from mlops_ray.cost.prices import Price, PriceList, money, named
from mlops_ray.errors import DataError

SECONDS_AN_HOUR = 3600.0
HOURS_A_DAY = 24
#: Between them lies all that is measured: rates, CPUs, rows.
LEAST, MOST = 1e-3, 1e9
#: A plan goes through a load hour by hour.
LONGEST_LOAD_S = 400 * 86_400.0
#: A twelfth of a year, as clouds have it.
HOURS_A_MONTH = 730.0
BYTES_A_GIB = 2.0**30
#: By how much a quotient may miss a whole number: 0.3 / 0.1 is 2.9999999999999996.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Capacity:
    """How fast one replica of a version is on a type of machine, within an objective.

    It reserves `cpu` and `gpu`, and takes at most `max_rows` together. `rate` requests a second, of `rows`
    rows each, is the highest that was confirmed to hold the objective; the true limit is below `high`. Then
    99 of 100 took at most `p99_ms`, and the share `error_rate` failed. `slo` is {"p99_ms", "error_rate"};
    `on` says the processor, `at` when, ISO 8601; `estimated` is empty where it was measured, else says how it
    was scaled.
    """

    model: str
    version: str
    machine: str
    cpu: float
    gpu: float
    max_rows: int
    rate: float
    high: float
    rows: float
    p99_ms: float
    error_rate: float
    slo: Mapping[str, float]
    on: str
    at: str
    estimated: str = ""

    def __post_init__(self) -> None:
        if not (LEAST <= self.rate <= self.high <= MOST and LEAST <= self.rows <= MOST):
            raise DataError(f"a capacity of {self.model!r} says no rate below its bound, or no rows")
        held = self.cpu, self.gpu
        if not (all(each == 0 or LEAST <= each <= MOST for each in held) and any(held)):
            raise DataError(f"a capacity of {self.model!r} reserves neither a CPU nor a GPU")
        if not 1 <= self.max_rows <= MOST:
            raise DataError(f"a capacity of {self.model!r} says no number of rows of a batch")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Raises `DataError` for what `to_json` does not make."""
        types: dict[str, Any] = {field.name: field.type for field in fields(cls)}
        try:
            plain: dict[str, Any] = {
                name: types[name](value)
                if types[name] in (str, float, int)
                else {key: float(limit) for key, limit in value.items()}
                for name, value in data.items()
            }
            return cls(**plain)
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            raise DataError(f"this is no record of a capacity: {error}") from None


def scaled(capacity: Capacity, to: Price) -> Capacity:
    """The capacity on another machine, as if its cores were as fast: an estimate, marked as such.

    Raises `DataError` where the replica uses a GPU, whose speed another's does not tell.
    """
    if capacity.gpu:
        raise DataError(f"what {capacity.machine} does with its GPU says nothing of {to.type}: measure there")
    said = f"measured on {capacity.machine}, as if the cores of {to.type} were as fast"
    return replace(capacity, machine=to.type, estimated=said)


# ---------------------------------------------------------------- arithmetic


def reserved(cpu: float, gpu: float, cpus: float, gpus: float) -> float:
    """The share of a machine that a replica reserves: of its CPUs or of its GPUs, the larger.

    Where a replica needs what the machine lacks, it is infinite.

    >>> reserved(1, 0, cpus=8, gpus=1), reserved(1, 0.5, cpus=8, gpus=1)
    (0.125, 0.5)
    """
    pairs = [(asked, there) for asked, there in ((cpu, cpus), (gpu, gpus)) if asked > 0]
    return max((asked / there if there > 0 else math.inf for asked, there in pairs), default=0.0)


def replica_price(price: Price, cpu: float, gpu: float) -> float:
    """The price of a replica an hour: its reserved share of the machine's."""
    return price.per_hour * reserved(cpu, gpu, price.vcpu, price.gpus)


def fitting(price: Price, cpu: float, gpu: float) -> int:
    """How many replicas a machine holds at once. Several share a GPU, but none lies on parts of two."""
    by_cpu = _floor(price.vcpu / cpu) if cpu else math.inf
    by_gpu = math.inf if not gpu else price.gpus * _floor(1 / gpu) if gpu < 1 else _floor(price.gpus / gpu)
    return int(min(by_cpu, by_gpu))


def per_1000(per_hour: float, rate: float, utilisation: float = 1.0) -> float:
    """The cost of 1,000 predictions, at `rate` a second and an hourly price, used to this share.

    0.36 EUR an hour for 100 a second, half of the time, are 0.36 EUR for 180,000:

    >>> per_1000(0.36, 100, 0.5)
    0.002
    """
    return 1000 * per_hour / (SECONDS_AN_HOUR * rate * utilisation)


def replicas(peak: float, capacity: Capacity, safety: float, least: int = 0) -> int:
    """How many hold so many requests a second: each at most at the share `safety` of its highest rate."""
    return max(least, _ceil(peak / (capacity.rate * safety)))


def storage_a_day(size: float, per_gib_month: float) -> float:
    """The cost of a day of so many bytes, at the price of a GiB for a month of 730 hours.

    >>> round(storage_a_day(10 * 2**30, 0.0365), 9)
    0.012
    """
    return size / BYTES_A_GIB * per_gib_month * HOURS_A_DAY / HOURS_A_MONTH


def _floor(value: float) -> int:
    return math.floor(value * (1 + ROUNDING))


def _ceil(value: float) -> int:
    return math.ceil(value * (1 - ROUNDING))


# ---------------------------------------------------------------- trials


@dataclass(frozen=True)
class Places:
    """Where trials run: the prices of machines, and how many trials, of `cpu` and `gpu`, each holds at once.

    Where machines differ, a place costs what they do on average.

    Two trials at a time cost 0.05 EUR an hour each, and 0.02 EUR last 720 s:

    >>> from mlops_ray.cost import prices
    >>> said = {"currency": "EUR", "source": "a test", "date": "2026-11-01"}
    >>> small = prices.price({"type": "small", "vcpu": 2, "per_hour": 0.1} | said)
    >>> places = Places(((small, 2),), cpu=1)
    >>> round(places.lasts(0.02)), round(places.cost(720), 9), round(places.cost(720, cpu=2), 9)
    (720, 0.01, 0.02)
    """

    machines: tuple[tuple[Price, int], ...]
    cpu: float
    gpu: float = 0.0

    @property
    def currency(self) -> str:
        return self.machines[0][0].currency

    def lasts(self, amount: float) -> float:
        """The seconds for which an amount pays all places."""
        together = sum(count * replica_price(price, self.cpu, self.gpu) for price, count in self.machines)
        return SECONDS_AN_HOUR * amount / together

    def cost(self, seconds: float, cpu: float | None = None, gpu: float | None = None) -> float:
        """What so long in a place costs, or in a larger one."""
        asked = self.cpu if cpu is None else cpu, self.gpu if gpu is None else gpu
        together = sum(count * replica_price(price, *asked) for price, count in self.machines)
        return seconds / SECONDS_AN_HOUR * together / sum(count for _, count in self.machines)


# ---------------------------------------------------------------- loads


class Hour(NamedTuple):
    """The requests a second of an hour: on average, and at most; a record may end within one."""

    mean: float
    peak: float
    seconds: float = SECONDS_AN_HOUR


Load = tuple[Hour, ...]


def hours(load: Load) -> float:
    """How long a load lasts."""
    return sum(hour.seconds for hour in load) / SECONDS_AN_HOUR


def mean(load: Load) -> float:
    """Requests a second, at all times together.

    >>> mean((Hour(10, 10), Hour(1000, 1000, 120.0)))  # 36,000 in an hour, 120,000 in two minutes
    41.935...
    """
    return sum(hour.mean * hour.seconds for hour in load) / (SECONDS_AN_HOUR * hours(load))


def flat(rate: float) -> Load:
    """A day on which as many requests come at all times."""
    return (Hour(rate, rate),) * HOURS_A_DAY


def daily(rates: Sequence[float]) -> Load:
    """A day of so many requests a second in each of its hours."""
    return tuple(Hour(rate, rate) for rate in rates)


def recorded(points: Sequence[tuple[float, float]]) -> Load:
    """The hours of a record: pairs of a second and the rate from it on.

    The last holds as long as the one before. Raises `DataError` where seconds do not rise.

    >>> recorded([(0, 10), (1800, 30), (3600, 20), (5400, 20)])[0]
    Hour(mean=20.0, peak=30, seconds=3600)
    """
    if len(points) < 2 or not all(earlier[0] < later[0] for earlier, later in pairwise(points)):
        raise DataError("a recorded load is two points at least, their seconds rising")
    last = points[-1][0] * 2 - points[-2][0]
    if not last - points[0][0] <= LONGEST_LOAD_S:
        raise DataError(
            f"a recorded load lasts {LONGEST_LOAD_S / 86_400:g} days at most; seconds count from 0"
        )
    ends = [*(at for at, _ in points[1:]), last]
    hours: dict[int, list[tuple[float, float]]] = {}
    for (begin, rate), end in zip(points, ends, strict=True):
        while begin < end:
            hour = math.floor(begin / SECONDS_AN_HOUR)
            until = min(end, (hour + 1) * SECONDS_AN_HOUR)
            hours.setdefault(hour, []).append((until - begin, rate))
            begin = until
    return tuple(_hour(parts) for parts in hours.values())


def _hour(parts: Sequence[tuple[float, float]]) -> Hour:
    seconds = sum(length for length, _ in parts)
    mean = sum(length * rate for length, rate in parts) / seconds
    return Hour(mean, max(rate for _, rate in parts), seconds)


# ---------------------------------------------------------------- the plan


@dataclass(frozen=True)
class Wanted:
    """What a plan has to keep: the objective, and what the project says of replicas and machines.

    `rows` are those of a request of the load.
    """

    p99_ms: float
    error_rate: float
    rows: float = 1
    safety: float = 0.7
    least: int = 1
    most: int | None = None
    region: str | None = None
    spot: bool = False


@dataclass(frozen=True)
class Option:
    """A way to serve a load: replicas and nodes of a machine in each hour, and what that costs.

    `per_1000` is `None` where nothing is asked. `refused` says why it cannot be chosen, empty where it can.
    Without a capacity nothing was measured on this type.
    """

    price: Price
    capacity: Capacity | None = None
    replicas: tuple[int, ...] = ()
    nodes: tuple[int, ...] = ()
    per_day: float = math.inf
    per_1000: float | None = None
    utilisation: float = 0.0
    refused: str = ""

    @property
    def per_hour(self) -> float:
        return self.per_day / HOURS_A_DAY

    def to_json(self) -> dict[str, Any]:
        """A row of the plan as plain data; no cost where nothing was measured."""
        known = self.capacity is not None and math.isfinite(self.per_day)
        costs = {"per_hour": self.per_hour, "per_day": self.per_day, "per_1000": self.per_1000}
        return {
            "machine": self.price.type,
            "region": self.price.region,
            "spot": self.price.spot,
            "price": self.price.per_hour,
            "capacity": self.capacity and self.capacity.to_json(),
            "replicas": list(self.replicas),
            "nodes": list(self.nodes),
            **{name: value if known else None for name, value in costs.items()},
            "utilisation": self.utilisation,
            "estimated": self.capacity.estimated if self.capacity else "",
            "refused": self.refused,
        }


@dataclass(frozen=True)
class Plan:
    """All options, what can be chosen first and of that the cheapest; `chosen` is the first that can.

    `said` are the reasons, in sentences.
    """

    options: tuple[Option, ...]
    chosen: Option | None
    currency: str
    said: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        chosen = self.chosen and self.options.index(self.chosen)
        options = [option.to_json() for option in self.options]
        return {"currency": self.currency, "chosen": chosen, "options": options, "said": list(self.said)}


def plan(load: Load, capacities: Iterable[Capacity], prices: PriceList, wanted: Wanted) -> Plan:
    """Every way to serve a load within the objective, and the cheapest that was measured.

    Replicas of each hour are those of its highest rate. Records of one replica size are told apart by date:
    the newest counts, a measured one before an estimate.
    """
    newest: dict[tuple[Any, ...], Capacity] = {}
    for capacity in sorted(capacities, key=lambda c: (not c.estimated, c.at)):
        newest[capacity.machine, capacity.cpu, capacity.gpu, capacity.max_rows, capacity.rows] = capacity
    options = []
    for price in prices.of_region(wanted.region):
        own = [capacity for capacity in newest.values() if capacity.machine == price.type]
        options += [_option(load, capacity, price, wanted) for capacity in own]
        options += [] if own else [Option(price, refused="not measured: run loadtest on it")]
    ordered = tuple(sorted(options, key=_order))
    chosen = ordered[0] if ordered and not ordered[0].refused else None
    return Plan(ordered, chosen, prices.currency, tuple(_said(ordered, chosen, prices.currency)))


def _order(option: Option) -> tuple[Any, ...]:
    price = option.price
    return (
        bool(option.refused),
        option.capacity is None,
        option.per_day,
        price.spot,
        price.per_hour,
        price.type,
    )


def _option(load: Load, capacity: Capacity, price: Price, wanted: Wanted) -> Option:
    count = tuple(replicas(hour.peak, capacity, wanted.safety, wanted.least) for hour in load)
    refused = _refused(capacity, price, wanted, max(count, default=0))
    held = fitting(price, capacity.cpu, capacity.gpu)
    if not held:
        return Option(price, capacity, count, refused=refused)
    nodes = tuple(math.ceil(each / held) for each in count)
    lengths, asked = [hour.seconds / SECONDS_AN_HOUR for hour in load], mean(load)
    per_hour = price.per_hour * sum(map(mul, nodes, lengths)) / hours(load)
    able = capacity.rate * sum(map(mul, count, lengths)) / hours(load)
    return Option(
        price,
        capacity,
        count,
        nodes,
        per_hour * HOURS_A_DAY,
        per_1000(per_hour, asked * capacity.rows) if asked else None,
        asked / able if able else 0.0,
        refused,
    )


def _refused(capacity: Capacity, price: Price, wanted: Wanted, most: int) -> str:
    """Why an option cannot be chosen."""
    slo = capacity.slo
    if not fitting(price, capacity.cpu, capacity.gpu):
        return f"a replica of {capacity.cpu:g} CPU and {capacity.gpu:g} GPU does not fit on it"
    if capacity.estimated:
        return f"an estimate: {capacity.estimated}"
    if capacity.rows != wanted.rows:
        return f"measured with {capacity.rows:g} rows a request, and the load has {wanted.rows:g}"
    for name, most_allowed, unit in (("p99_ms", wanted.p99_ms, " ms"), ("error_rate", wanted.error_rate, "")):
        if slo.get(name, math.inf) > most_allowed:
            told = f"{slo[name]:g}{unit}" if name in slo else "nothing"
            return f"measured for {name} {told}, and {most_allowed:g}{unit} is asked for"
    if wanted.most is not None and most > wanted.most:
        return f"needs {most} replicas, and serving.replicas.max is {wanted.most}"
    if price.spot and not wanted.spot:
        return "may be taken away at any time (cost.spot: true allows it)"
    return ""


def _said(options: Sequence[Option], chosen: Option | None, currency: str) -> list[str]:
    """The reasons for the choice."""
    unknown = sorted({option.price.type for option in options if option.capacity is None})
    unmeasured = [f"Not measured, so not chosen: {', '.join(unknown)}."] if unknown else []
    if chosen is None:
        known = [f"{named(o.price)}: {o.refused}" for o in options if o.capacity is not None]
        return [
            f"Nothing that was measured can be chosen{': ' * bool(known)}{'; '.join(known)}.",
            *unmeasured,
        ]
    assert chosen.capacity is not None
    count = max(chosen.replicas, default=0)
    held = fitting(chosen.price, chosen.capacity.cpu, chosen.capacity.gpu)
    said = [
        f"{named(chosen.price)} is the cheapest: at most {count} replicas of {_size(chosen.capacity)}, "
        f"{held} a node, {money(chosen.per_day, currency)} a day."
    ]
    said += [
        f"The cheapest {'with' if other.price.gpus else 'without'} a GPU, {named(other.price)}, costs "
        f"{money(other.per_day, currency)} a day."
        for other in options
        if not other.refused and bool(other.price.gpus) != bool(chosen.price.gpus)
    ][:1]
    spots = [
        o for o in options if o.price.spot and o.refused.startswith("may be") and o.per_day < chosen.per_day
    ]
    if spots:
        said.append(
            f"As spot, {spots[0].price.type} would cost {money(spots[0].per_day, currency)} a day, "
            "and may be taken away at any time."
        )
    return said + unmeasured


def _size(capacity: Capacity) -> str:
    """
    >>> _size(Capacity("m", "1", "a", 1, 0.5, 256, 1, 1, 1, 1, 0, {}, "", ""))
    '1 CPU and 0.5 GPU'
    """
    parts = [
        f"{amount:g} {what}" for amount, what in ((capacity.cpu, "CPU"), (capacity.gpu, "GPU")) if amount
    ]
    return " and ".join(parts)
