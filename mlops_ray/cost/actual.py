"""What was spent: node hours by who reserved them, and whose predictions they made.

The journal of nodes has what ran when. A node's price is shared among replicas and jobs in proportion to
what they reserve of it, so that they bear what nobody reserves; a node on which nothing is reserved is borne
by all of that moment, and by nobody where there is none. The shares add up to the bill.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from mlops_ray.cost.holds import LATEST_S
from mlops_ray.cost.model import SECONDS_AN_HOUR, reserved
from mlops_ray.cost.prices import Price, PriceList
from mlops_ray.errors import DataError

Kind = Literal["model", "job", "idle"]
#: What is reserved by nobody, and whose predictions nobody knows.
NOBODY = ""
#: In an entry of a node, what reserves.
KINDS: Mapping[str, Kind] = {"replicas": "model", "jobs": "job"}


class Share(NamedTuple):
    """What somebody had of a type of machine in an hour, which begins at `hour` (seconds since the epoch).

    `node_hours` are borne, `reserved_hours` those of replicas or tasks; `cost` is `None` without a price.
    """

    hour: int
    kind: Kind
    name: str
    machine: str
    spot: bool
    node_hours: float
    reserved_hours: float
    cost: float | None


class Use(NamedTuple):
    """Predictions of a version, for the key of a caller where that is known, from `since` on for an hour."""

    since: int
    model: str
    version: str
    key: str
    predictions: float


class Spent(NamedTuple):
    """What a version's predictions for a key have cost; of no version what was spent while nobody asked."""

    model: str
    version: str
    key: str
    predictions: float
    cost: float

    @property
    def per_1000(self) -> float | None:
        return 1000 * self.cost / self.predictions if self.predictions else None


@dataclass(frozen=True)
class _Reserved:
    """What one name reserves of a node: its share of it, and how many there are of it."""

    kind: Kind
    name: str
    share: float
    count: float


def metered(
    entries: Iterable[Mapping[str, Any]], prices: PriceList, region: str | None = None
) -> list[Share]:
    """Who had what, hour by hour, of the journal's entries.

    An entry is `{"at", "seconds", "nodes": [{"type", "cpus", "gpus", "spot", "replicas": {name: {"count",
    "cpu", "gpu"}}, "jobs": {…}}]}`: what ran in the `seconds` up to `at`. Raises `DataError` for another.
    """
    totals = _no_hours()
    for entry in entries:
        _add(totals, entry)
    rates = {(machine, spot): price_of(prices, machine, spot, region) for *_, machine, spot in totals}
    found = []
    for (hour, kind, name, machine, spot), (borne, held) in sorted(totals.items()):
        rate = rates[machine, spot]
        cost = None if rate is None else rate.per_hour * borne
        found.append(Share(hour, kind, name, machine, spot, borne, held, cost))
    return found


def check(entry: Any) -> None:
    """Raises `DataError` where this is no entry of the journal."""
    _add(_no_hours(), entry)


#: Node hours that are borne, and those reserved, by hour, kind, name, machine and whether it is spot.
Hours = dict[tuple[Any, ...], list[float]]


def _no_hours() -> Hours:
    return defaultdict(lambda: [0.0, 0.0])


def price_of(prices: PriceList, machine: str, spot: bool, region: str | None) -> Price | None:
    """The price of a type; of one that has several regions, and none is said, there is none."""
    found = prices.find(machine, region, spot)
    return found[0] if len(found) == 1 else None


def _add(totals: Hours, entry: Mapping[str, Any]) -> None:
    try:
        hours = float(entry["seconds"]) / SECONDS_AN_HOUR
        middle = float(entry["at"]) - float(entry["seconds"]) / 2
        if not (0 <= hours < math.inf and abs(middle) < LATEST_S):
            raise ValueError("no length of time")
        hour = math.floor(middle / SECONDS_AN_HOUR) * int(SECONDS_AN_HOUR)
        nodes = [(str(node["type"]), bool(node.get("spot")), _on(node)) for node in entry["nodes"]]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"an entry of the journal of nodes is damaged: {type(error).__name__}") from None
    everybody = [each for *_, on in nodes for each in on]
    for machine, spot, on in nodes:
        for each, share in _shared(on or everybody):
            total = totals[hour, each.kind, each.name, machine, spot]
            total[0] += hours * share
            total[1] += hours * each.count if on else 0.0


def _on(node: Mapping[str, Any]) -> list[_Reserved]:
    """Who reserves something of a node."""
    cpus, gpus = float(node["cpus"]), float(node.get("gpus", 0))
    found = []
    for where, kind in KINDS.items():
        for name, each in node.get(where, {}).items():
            count, cpu, gpu = float(each["count"]), float(each.get("cpu", 0)), float(each.get("gpu", 0))
            # Of what it says that it lacks a node was overbooked: it is all of it.
            share = count * min(reserved(cpu, gpu, cpus, gpus), 1.0)
            if share > 0:
                found.append(_Reserved(kind, name, share, count))
    return found


def _shared(on: Sequence[_Reserved]) -> Iterable[tuple[_Reserved, float]]:
    """The part that each bears; together they are 1."""
    whole = math.fsum(each.share for each in on)
    return [(each, each.share / whole) for each in on] or [(_Reserved("idle", NOBODY, 1.0, 0.0), 1.0)]


def by_key(uses: Iterable[Use], asked: Mapping[tuple[str, int], Mapping[str, int]]) -> list[Use]:
    """A model's uses split by the keys that asked, whose rows are known by version and hour.

    What is told at the end of an hour was counted in the next one; where nothing was, it is of no key.

    >>> by_key([Use(0, "m", "3", "", 90)], {("3", 0): {"shop": 2, "till": 1}})
    [Use(since=0, model='m', version='3', key='shop', predictions=60.0),
     Use(since=0, model='m', version='3', key='till', predictions=30.0)]
    """
    found = []
    for use in uses:
        hours = (use.since, use.since + int(SECONDS_AN_HOUR))
        told = (asked.get((use.version, hour), {}) for hour in hours)
        known = next((rows for rows in told if any(rows.values())), {NOBODY: 1})
        whole = sum(known.values())
        found += [use._replace(key=key, predictions=use.predictions * n / whole) for key, n in known.items()]
    return found


def by_version(shares: Iterable[Share], uses: Sequence[Use]) -> list[Spent]:
    """What predictions have cost, by model, version and key: each hour's cost by its predictions.

    Of an hour in which nobody asked, the cost is spread as that of all hours together.
    """
    costs: dict[tuple[str, int], float] = defaultdict(float)
    for share in shares:
        if share.kind == "model":
            costs[share.name, share.hour] += share.cost or 0.0
    by_hour: dict[tuple[str, int], list[Use]] = defaultdict(list)
    by_model: dict[str, list[Use]] = defaultdict(list)
    for use in uses:
        if use.predictions > 0:
            by_hour[use.model, use.since].append(use)
            by_model[use.model].append(use)
    spent: dict[tuple[str, str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for use in uses:
        spent[use.model, use.version, use.key][0] += use.predictions
    for (model, hour), cost in costs.items():
        those = by_hour.get((model, hour)) or by_model.get(model) or [Use(hour, model, NOBODY, NOBODY, 1.0)]
        whole = math.fsum(use.predictions for use in those)
        for use in those:
            spent[use.model, use.version, use.key][1] += cost * use.predictions / whole
    return [Spent(*key, predictions, cost) for key, (predictions, cost) in sorted(spent.items())]
