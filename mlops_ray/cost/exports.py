"""Prices out of a file of somebody else's: a table of one's own, and the exports of the common clouds.

Each takes the text of a file to the prices that it has, of plain Linux machines by the hour, and says what it
left out. An export that does not tell a machine's size needs `shapes`.
"""

import csv
import datetime as dt
import io
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from operator import itemgetter
from typing import Any, NamedTuple

from mlops_ray.cost import prices
from mlops_ray.cost.prices import Price
from mlops_ray.errors import DataError, did_you_mean, one_line

#: The columns of a table of one's own.
COLUMNS = tuple(field.name for field in fields(Price))


class Shape(NamedTuple):
    """The size of a machine, where an export does not tell it."""

    vcpu: float
    memory_gib: float = 0
    gpu: str = ""
    gpus: int = 0


class Imported(NamedTuple):
    """The prices, and in sentences what is not among them."""

    prices: list[Price]
    notes: list[str]


@dataclass(frozen=True)
class Asked:
    """What is wanted of an export, and what it does not say itself.

    `region`: that alone; `currency`: of several, or of a table without; `date`: when it was had; `shapes` by
    type; `columns`: what a table calls ours.
    """

    date: dt.date
    source: str
    region: str | None = None
    currency: str | None = None
    shapes: Mapping[str, Shape] | None = None
    columns: Mapping[str, str] | None = None


def imported(format: str, text: str, asked: Asked) -> Imported:
    """The prices of an export, one at least; raises `DataError` for what is none."""
    if format not in FORMATS:
        raise DataError(f"no format {format!r}{did_you_mean(format, FORMATS)}")
    try:
        found = FORMATS[format](text, asked)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise DataError(f"an entry is of another form: {one_line(error)}", file=asked.source) from None
    if not found.prices:
        where = f" of the region {asked.region!r}" if asked.region else ""
        told = "; ".join([f"it has no price{where} of a plain Linux machine", *found.notes])
        raise DataError(told, file=asked.source)
    return Imported(_newest(found.prices), found.notes)


def _newest(found: Iterable[Price]) -> list[Price]:
    """Of several prices of one machine the last."""
    return list({prices.key(price): price for price in found}.values())


# ---------------------------------------------------------------- tables


def table(text: str, asked: Asked) -> Imported:
    """A CSV file with a machine a row, its columns called as ours are or as `columns` says.

    >>> asked = Asked(dt.date(2026, 11, 1), "mine.csv", currency="EUR", columns={"per_hour": "EUR/h"})
    >>> table("type,vcpu,EUR/h\\nsmall,2,0.1\\n", asked).prices[0].per_hour
    0.1
    """
    renamed = {theirs: ours for ours, theirs in (asked.columns or {}).items()}
    if unknown := sorted(set(renamed.values()).difference(COLUMNS)):
        raise DataError(f"no column {unknown[0]!r} is wanted{did_you_mean(unknown[0], COLUMNS)}")
    taken = set(renamed.values()).difference(renamed)
    defaults = {"date": asked.date, "source": asked.source, "currency": asked.currency}
    found: dict[tuple[str, str, bool], Price] = {}
    for row, theirs in enumerate(_rows(text, asked.source, renamed), start=2):
        # Another column that is called as ours is none of them where ours was named.
        named = {renamed.get(name, name): theirs[name] for name in theirs if name not in taken}
        own = {name: value.strip() for name, value in named.items()}
        try:
            each = prices.price(defaults | {n: v for n, v in own.items() if n in COLUMNS and v})
        except ValueError as error:
            raise DataError(str(error), file=asked.source, row=row) from None
        if found.setdefault(prices.key(each), each) != each:
            raise DataError(f"{prices.named(each)} has two prices", file=asked.source, row=row)
    return Imported([price for price in found.values() if asked.region in (None, price.region)], [])


def _rows(text: str, file: str, needed: Iterable[str]) -> Iterable[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(text), strict=True)
    try:
        named = reader.fieldnames or ()
        for name in needed:
            if name not in named:
                raise DataError(f"no column {name!r}{did_you_mean(name, named)}", file=file)
        for name in (*needed, *COLUMNS):
            if named.count(name) > 1:
                raise DataError(f"two columns are called {name!r}", file=file)
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    "has another number of columns than the header", file=file, row=reader.line_num
                )
            yield row
    except csv.Error as error:
        raise DataError(f"not CSV: {error}", file=file, row=reader.line_num) from None


def shapes(text: str, file: str) -> dict[str, Shape]:
    """The sizes of machines, by type, from CSV with the columns type, vcpu, memory_gib, gpu, gpus.

    >>> shapes("type,vcpu,memory_gib\\nn2-standard-4,4,16\\n", "s.csv")
    {'n2-standard-4': Shape(vcpu=4.0, memory_gib=16.0, gpu='', gpus=0)}
    """
    found = {}
    for row, said in enumerate(_rows(text, file, ("type", "vcpu")), start=2):
        try:
            numbers = float(said["vcpu"]), float(said.get("memory_gib") or 0)
            found[said["type"]] = Shape(*numbers, said.get("gpu") or "", int(said.get("gpus") or 0))
        except ValueError as error:
            raise DataError(str(error), file=file, row=row) from None
    return found


# ---------------------------------------------------------------- clouds


def aws(text: str, asked: Asked) -> Imported:
    """An offer file of the AWS price list (`offers/v1.0/aws/AmazonEC2/…/index.json`): on demand, no spot.

    It names no GPU, and its own date is that of the prices.
    """
    offer = _json(text, asked.source, "products", "terms")
    date = str(offer.get("publicationDate", asked.date))[:10]
    found = []
    for sku, product in offer["products"].items():
        about = product.get("attributes", {})
        region = about.get("regionCode") or about.get("location", "")
        if not _is_plain(about) or asked.region not in (None, region):
            continue
        rates = _rates(offer["terms"].get("OnDemand", {}).get(sku, {}), asked, sku)
        said = {"type": about["instanceType"], "vcpu": about.get("vcpu"), "region": region, "date": date}
        size = {"memory_gib": _gib(about.get("memory", "")), "gpus": about.get("gpu", 0)}
        for currency, per_hour in rates.items():
            told = said | size | {"currency": currency, "per_hour": per_hour, "source": asked.source}
            found.append(_checked(told, asked.source, f"sku {sku}"))
    return Imported(found, ["spot prices are not in it, nor which GPU a machine has"] if found else [])


def _is_plain(about: Mapping[str, str]) -> bool:
    """Whether it is Linux alone, on shared hardware, by the hour, not reserved ahead."""
    wanted = {
        "operatingSystem": "Linux",
        "tenancy": "Shared",
        "preInstalledSw": "NA",
        "capacitystatus": "Used",
    }
    is_ours = all(about.get(name) == value for name, value in wanted.items())
    return is_ours and "instanceType" in about and about.get("marketoption", "OnDemand") == "OnDemand"


def _rates(terms: Mapping[str, Any], asked: Asked, sku: str) -> dict[str, float]:
    """What an hour costs, in the one currency that is told or asked for."""
    found: dict[str, float] = {}
    for term in terms.values():
        for rate in term.get("priceDimensions", {}).values():
            if rate.get("unit") == "Hrs":
                found |= {name: float(value) for name, value in rate["pricePerUnit"].items()}
    if asked.currency:
        found = {name: value for name, value in found.items() if name == asked.currency}
    if len(found) > 1:
        told = " and ".join(sorted(found))
        raise DataError(f"sku {sku} is told in {told}: choose a currency", file=asked.source)
    return {name: value for name, value in found.items() if value > 0}


def _gib(said: str) -> float:
    """
    >>> _gib("1,952 GiB"), _gib("NA")
    (1952.0, 0.0)
    """
    match = re.match(r"([\d.,]+) GiB", said)
    return float(match[1].replace(",", "")) if match else 0.0


#: Family, vCPU, and where fewer of them are there to be used, how many, e.g. Standard_E4-2s_v5: names of
#: https://learn.microsoft.com/azure/virtual-machines/vm-naming-conventions
_AZURE = re.compile(r"(?:Standard|Basic)_(?P<family>[A-Z]+)(?P<vcpu>\d+)(?:-(?P<fewer>\d+))?")
#: The first series number their sizes instead: A, D and its second, and G; also as Promo, and D15 as D15i.
_NUMBERED = re.compile(r"(?:Standard|Basic)_(A(?!\d+_v2)|[DG])S?(\d+)i?(?:_v2)?(?:_Promo)?")
#: How many vCPU their sizes have, by the tables of
#: https://learn.microsoft.com/azure/virtual-machines/sizes-previous-gen
_VCPU = {
    "A": {0: 1, 1: 1, 2: 2, 3: 4, 4: 8, 5: 2, 6: 4, 7: 8, 8: 8, 9: 16, 10: 8, 11: 16},
    "D": {1: 1, 2: 2, 3: 4, 4: 8, 5: 16, 11: 2, 12: 4, 13: 8, 14: 16, 15: 20},
    "G": {1: 2, 2: 4, 3: 8, 4: 16, 5: 32},
}


def azure(text: str, asked: Asked) -> Imported:
    """What the Azure Retail Prices API answers (`{"Items": […]}`), one page or several joined.

    Its names tell vCPU, by themselves or by tables of the first series, but neither memory nor GPUs: machines
    with GPUs (N) need a shape, as does what is in no table. Of several prices of a machine the newest counts
    that had begun by the day that is asked for.
    """
    found: list[tuple[str, Price]] = []
    sizeless, of_other_days = set(), set()
    for item in _json(text, asked.source, "Items")["Items"]:
        if not _is_linux(item) or asked.region not in (None, item["armRegionName"]):
            continue
        if asked.currency not in (None, item["currencyCode"]):
            continue
        if not _is_of(asked.date, item):
            of_other_days.add(item["armSkuName"])
            continue
        size = _azure_shape(item["armSkuName"], asked.shapes or {})
        if size is None:
            sizeless.add(item["armSkuName"])
            continue
        about = {
            "type": item["armSkuName"],
            "region": item["armRegionName"],
            "spot": "Spot" in item["skuName"],
        }
        price = {"per_hour": item["retailPrice"], "currency": item["currencyCode"]}
        dated = {"source": asked.source, "date": asked.date}
        checked = _checked(about | size._asdict() | price | dated, asked.source, item["armSkuName"])
        found.append((str(item.get("effectiveStartDate") or ""), checked))
    ordered = [price for _, price in sorted(found, key=itemgetter(0))]
    if len(currencies := sorted({price.currency for price in ordered})) > 1:
        raise DataError(f"is told in {' and '.join(currencies)}: choose a currency", file=asked.source)
    unpriced = of_other_days.difference(sizeless, (price.type for price in ordered))
    notes = _left_out(sizeless, "their names tell no size (give it in --shapes)")
    return Imported(ordered, notes + _left_out(unpriced, f"they have no price of {asked.date} (--date)"))


def _is_of(date: dt.date, item: Mapping[str, Any]) -> bool:
    """Whether its price is that of a day: others have ended, or are to come."""
    begin, end = item.get("effectiveStartDate"), item.get("effectiveEndDate")
    return not (begin and _day(begin) > date) and not (end and _day(end) < date)


def _day(said: Any) -> dt.date:
    return dt.date.fromisoformat(str(said)[:10])


def _is_linux(item: Mapping[str, Any]) -> bool:
    product, sku = str(item.get("productName", "")), str(item.get("skuName", ""))
    others = (
        "Windows" in product,
        "Low Priority" in sku,
        product.startswith("Cloud"),
        not item.get("retailPrice"),
    )
    is_hourly = item.get("unitOfMeasure") == "1 Hour" and item.get("type") == "Consumption"
    is_machine = item.get("serviceName", "Virtual Machines") == "Virtual Machines" and item.get("armSkuName")
    is_first = item.get("isPrimaryMeterRegion", True)
    return bool(is_hourly and is_machine and is_first and not any(others))


def _azure_shape(type: str, shapes: Mapping[str, Shape]) -> Shape | None:
    match = _AZURE.match(type)
    if type in shapes or match is None or match["family"].startswith("N"):
        return shapes.get(type)
    if numbered := _NUMBERED.fullmatch(type):
        vcpu = _VCPU[numbered[1]].get(int(numbered[2]))
        return None if vcpu is None else Shape(vcpu)
    return Shape(float(match["fewer"] or match["vcpu"]))


def _left_out(types: Iterable[str], why: str) -> list[str]:
    named = sorted(types)
    more = f" and {len(named) - 5} more" if len(named) > 5 else ""
    return [f"left out, since {why}: {', '.join(named[:5])}{more}"] if named else []


#: What a SKU of the Compute Engine is called; custom sizes, sole tenancy and commitments are others.
_CORE = re.compile(
    r"(?P<spot>Spot Preemptible )?(?P<family>\w+) (?:(?:AMD|Arm|Predefined) )?"
    r"Instance (?P<part>Core|Ram) running"
)
_GPU = re.compile(r"(?P<gpu>.+) GPU (?P<spot>attached to Spot Preemptible VMs )?running")


def gcp(text: str, asked: Asked) -> Imported:
    """SKUs of the Cloud Billing Catalog (`{"skus": […]}`): of cores, GiB and GPUs.

    `shapes` say of what a type is made, their GPU called as there, e.g. Nvidia Tesla T4.
    """
    if not asked.shapes:
        raise DataError(
            "Google sells cores and memory: say of what machines are made (shapes)", file=asked.source
        )
    for type, shape in asked.shapes.items():
        # What is missing would be had for nothing.
        if not shape.memory_gib > 0:
            raise DataError(f"{type} has no memory_gib (shapes), which is paid apart", file=asked.source)
        if shape.gpus and not shape.gpu:
            raise DataError(f"{type} has gpus, but no gpu (shapes) to say which", file=asked.source)
    rates: dict[tuple[str, bool], dict[str, float]] = defaultdict(dict)
    currencies = set()
    for sku in _json(text, asked.source, "skus")["skus"]:
        part, spot = _part(sku)
        if part:
            currency, rate = _unit_price(sku, asked.source)
            currencies.add(currency)
            for region in sku.get("serviceRegions", ()):
                rates[region, spot][part] = rate
    if len(currencies) > 1:
        raise DataError(
            f"is told in {' and '.join(sorted(currencies))}: leave all but one", file=asked.source
        )
    found, sold = [], set()
    for (region, spot), each in rates.items():
        for type, shape in asked.shapes.items():
            per_hour = _assembled(type, shape, each)
            if per_hour is not None and asked.region in (None, region):
                about = {"type": type, "region": region, "spot": spot, "per_hour": per_hour}
                dated = {"currency": min(currencies), "source": asked.source, "date": asked.date}
                found.append(_checked(about | shape._asdict() | dated, asked.source, type))
                sold.add(type)
    why = (
        "they are not sold there, or their parts are called otherwise (write them into the file of prices by "
        "hand)"
    )
    return Imported(found, _left_out(set(asked.shapes) - sold, why))


def _part(sku: Mapping[str, Any]) -> tuple[str, bool]:
    """Of what a SKU is the price, e.g. 'N2 Core'; empty where machines are not made of it."""
    said, usage = str(sku.get("description", "")), sku.get("category", {}).get("usageType")
    core, gpu = _CORE.match(said), _GPU.match(said)
    if usage not in ("OnDemand", "Preemptible"):
        return "", False
    if core:
        return f"{core['family'].upper()} {core['part']}", bool(core["spot"])
    return (gpu["gpu"].lower(), bool(gpu["spot"])) if gpu else ("", False)


def _unit_price(sku: Mapping[str, Any], file: str) -> tuple[str, float]:
    """Currency and price of an hour; of tiers the last, since the first may be free."""
    try:
        unit = sku["pricingInfo"][-1]["pricingExpression"]["tieredRates"][-1]["unitPrice"]
        return unit["currencyCode"], int(unit.get("units") or 0) + unit.get("nanos", 0) / 1e9
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        raise DataError(f"the SKU {sku.get('skuId')} has no price", file=file) from None


def _assembled(type: str, shape: Shape, rates: Mapping[str, float]) -> float | None:
    """What a machine costs of its parts; `None` where one is not sold."""
    family = type.partition("-")[0].upper()
    parts = {f"{family} Core": shape.vcpu, f"{family} Ram": shape.memory_gib, shape.gpu.lower(): shape.gpus}
    needed = {part: count for part, count in parts.items() if part and count}
    if not all(rates.get(part) for part in needed):
        return None
    return sum(rates[part] * count for part, count in needed.items())


def _checked(said: dict[str, Any], file: str, what: str) -> Price:
    try:
        return prices.price(said)
    except ValueError as error:
        raise DataError(f"{what}: {error}", file=file) from None


def _json(text: str, file: str, *needed: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", file=file) from None
    for key in needed:
        if not isinstance(found, dict) or not isinstance(found.get(key), dict | list):
            raise DataError(f"is no such export: {key!r} is missing", file=file)
    return found


FORMATS: Mapping[str, Callable[[str, Asked], Imported]] = {
    "csv": table,
    "aws": aws,
    "azure": azure,
    "gcp": gcp,
}
