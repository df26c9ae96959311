"""What a model costs and earns, planned and actual: the commands `cost`, `profit` and `prices import`.

capacity/MODEL/*.json   what was measured (`mlops_ray.cost.model.Capacity`)
cost/*.jsonl            what ran on which node, a line a minute (`mlops_ray.cost.actual`)
"""

import csv
import datetime as dt
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl

from mlops_ray import pages
from mlops_ray.cluster import meter
from mlops_ray.cluster.meter import priced
from mlops_ray.cluster.works import JOBS, in_words
from mlops_ray.config import Project, Recorded
from mlops_ray.cost import actual, exports, model, prices
from mlops_ray.cost import profit as profits
from mlops_ray.cost.actual import Share, Spent, Use
from mlops_ray.cost.exports import Asked
from mlops_ray.cost.model import HOURS_A_DAY, SECONDS_AN_HOUR, Capacity, Load, Plan, Wanted
from mlops_ray.cost.prices import PriceList, money
from mlops_ray.cost.profit import Costs, Worth
from mlops_ray.data import prediction_log
from mlops_ray.data.prediction_log import SHADOW
from mlops_ray.errors import ConfigError, DataError, NotFoundError, ReleaseError, UsageError
from mlops_ray.instants import DAY_S, from_micros
from mlops_ray.monitoring import callers, journal
from mlops_ray.pages import Bar, Block, Section, Table, number, page, share, when
from mlops_ray.registry import package as packages
from mlops_ray.serving import record
from mlops_ray.storage import Storage, replacing

CAPACITY = "capacity"
DAY_US = 86_400e6
#: Jobs that a bill names, those with most hours of nodes.
MOST_JOBS = 50
#: From which share of the answered rows on it is told that the prediction log lacks them.
LEAST_MISSED = 0.01
#: Entries that are no further apart follow each other: their ends are sums of fractions.
ROUNDING_S = 1e-3
#: How a bill shares out what it was to answer; the page of costs has no hours (monitoring.dashboard.parts).
BY_KEY = "Each key bears of an hour's cost its share of the rows; the dashboard reckons by the day."
HEAD = "Imported from {file} ({format}) by `mlops-ray prices import`; what an hour costs, without taxes."

Document = dict[str, Any]

# ---------------------------------------------------------------- what is known


def capacities(storage: Storage, name: str) -> list[Capacity]:
    """What was measured of a model; raises `DataError` for a file that is no such record."""
    found = []
    for path in sorted(storage.root.glob(f"{CAPACITY}/{name}/[!.]*.json")):
        try:
            found.append(Capacity.from_json(storage.read_json(*path.relative_to(storage.root).parts)))
        except (DataError, AttributeError) as error:
            what = error if isinstance(error, DataError) else "this is no record of a capacity"
            raise DataError(f"{what}; delete it, and measure again", file=str(path)) from None
    return found


def load(project: Project) -> Load:
    """The load that the project declares; raises `ConfigError` where it declares none."""
    said = project.cost.load
    if said is None:
        told = "no load is declared: say it in requests a second, e.g. load: 20"
        raise project.located(ConfigError(told, at=("cost", "load")))
    if isinstance(said, Recorded):
        return _recorded(Path(said.recorded))
    return model.daily(said) if isinstance(said, tuple) else model.flat(said)


def _recorded(file: Path) -> Load:
    """The load of a CSV file with the columns seconds and rate."""
    points: list[tuple[float, float]] = []
    try:
        for each in csv.DictReader(io.StringIO(read_text(file))):
            points.append((float(each["seconds"]), _rate(each["rate"])))
        return model.recorded(points)
    except (ValueError, KeyError, TypeError, OverflowError, csv.Error):
        told = "a recorded load has numbers in the columns seconds and rate"
        raise DataError(told, file=str(file), row=len(points) + 2) from None


def _rate(said: str) -> float:
    rate = float(said)
    if not 0 <= rate < math.inf:
        raise ValueError("no rate of requests")
    return rate


# ---------------------------------------------------------------- plans


def plan(
    project: Project, storage: Storage, *, estimate: bool = False, rate: float | None = None
) -> Document:
    """What the declared load would cost on each machine, the cheapest first; `Plan.to_json` and more.

    `{"model", "version", "load": {"mean", "peak"}, …, "notes"}`. With `estimate`, machines that were never
    measured are listed with what they would do if their cores were as fast. With a `rate`, requests/s at all
    times, it is asked what that would need instead, whatever `serving.replicas.max` is. Raises `ConfigError`
    where the project names no prices or load.
    """
    return _planned(project, storage, estimate=estimate, rate=rate)[1]


def _planned(
    project: Project, storage: Storage, *, estimate: bool = False, rate: float | None = None
) -> tuple[Plan, Document]:
    listed, notes = priced(project)
    hours = load(project) if rate is None else model.flat(rate)
    version, measured, told = _of_version(project, storage)
    asks = wanted(project) if rate is None else replace(wanted(project), most=None)
    known = measured + (_estimates(measured, listed, asks) if estimate else [])
    found = model.plan(hours, known, listed, asks)
    most, needed = project.serving.replicas.max, max(found.chosen.replicas) if found.chosen else 0
    if needed > most:
        told = [*told, f"serving.replicas.max is {most}: raise it to {needed} for this load"]
    asked = {"mean": model.mean(hours), "peak": max(hour.peak for hour in hours)}
    head = {"model": project.project, "version": version, "load": asked}
    return found, head | found.to_json() | {"notes": notes + told}


def _of_version(project: Project, storage: Storage) -> tuple[str | None, list[Capacity], list[str]]:
    """The version that a plan is of, what was measured of it, and what a person should know of that.

    It is the champion, else the one that was measured last.
    """
    known = capacities(storage, project.project)
    entry = record.read(storage, project.project).get("champion")
    live = entry and str(entry["version"])
    if not known:
        return live, [], [f"{project.project!r} was not measured yet: mlops-ray loadtest PROJECT.yaml"]
    if any(capacity.version == live for capacity in known):
        return live, [capacity for capacity in known if capacity.version == live], []
    last = max(known, key=lambda capacity: capacity.at).version
    notes = [f"version {live}, which is live, was not measured: this is of version {last}"] if live else []
    return last, [capacity for capacity in known if capacity.version == last], notes


def wanted(project: Project) -> Wanted:
    """What a plan of the project has to keep."""
    serving, cost = project.serving, project.cost
    return Wanted(
        serving.slo.p99_ms,
        serving.slo.error_rate,
        rows=cost.rows,
        safety=cost.safety,
        least=serving.replicas.min,
        most=serving.replicas.max,
        region=cost.region,
        spot=cost.spot,
    )


def _estimates(measured: Sequence[Capacity], listed: PriceList, wanted: Wanted) -> list[Capacity]:
    """The last that was measured without a GPU, scaled to each type of machine that was not measured."""
    known = {capacity.machine for capacity in measured}
    plain = [capacity for capacity in measured if not capacity.gpu]
    if not plain:
        return []
    last = max(plain, key=lambda capacity: capacity.at)
    types = {price.type: price for price in listed.of_region(wanted.region) if price.type not in known}
    return [model.scaled(last, price) for price in types.values()]


# ---------------------------------------------------------------- what was spent


def spent(project: Project, storage: Storage, begin: dt.datetime | None, end: dt.datetime | None) -> Document:
    """What was spent in [begin, end) on all that ran on the cluster, idle included.

    `{"from", "to", "hours", "currency", "total", "shares": [{"kind", "name", "machine", "spot", "node_hours",
    "reserved_hours", "cost"}], "versions": [{"model", "version", "predictions", "cost", "per_1000"}], "keys":
    …, "notes"}`; `cost` is `None` of machines without a price. `keys` are the versions by the names of the
    keys that asked ("key"), empty where none is known. Raises `DataError` where nothing was metered.
    """
    first, last = (edge.timestamp() if edge else other for edge, other in ((begin, 0.0), (end, math.inf)))
    entries = [entry for entry in meter.entries(storage, first, last) if first <= _middle(entry) < last]
    if not entries:
        raise DataError(
            "nothing was metered then: what runs is noted once a minute while a service is up whose project"
            " file has cost: {prices: …}; cost --plan says what one would cost"
        )
    listed, notes = priced(project)
    shares = actual.metered(entries, listed, project.cost.region)
    spans = _spans(entries)
    models = sorted({each.name for each in shares if each.kind == "model"})
    uses = {name: _uses(storage, name, spans) for name in models}
    notes += [note for name in models if (note := _unlogged(name, entries, uses[name]))]
    split = [actual.by_key(uses[name], _asked(storage, name)) for name in models]
    unpriced = sorted({each.machine for each in shares if each.cost is None})
    if unpriced:
        names = ", ".join(name or "machines that do not say their type (cost.machine)" for name in unpriced)
        notes.append(f"not counted, since the prices have none, or several, of them: {names}")
    return {
        "from": _iso(spans[0][0]),
        "to": _iso(spans[-1][1]),
        "hours": math.fsum(float(entry["seconds"]) for entry in entries) / SECONDS_AN_HOUR,
        "currency": listed.currency,
        "total": math.fsum(each.cost or 0.0 for each in shares),
        "shares": _totals(shares),
        "versions": [_told(each) for each in actual.by_version(shares, [*chain(*uses.values())])],
        "keys": _by_key(actual.by_version(shares, [*chain(*split)])),
        "notes": notes,
    }


def _middle(entry: Document) -> float:
    try:
        return float(entry["at"]) - float(entry["seconds"]) / 2
    except (KeyError, TypeError, ValueError):
        raise DataError("an entry of the journal of nodes does not say when it is of") from None


def _spans(entries: Sequence[Document]) -> list[tuple[float, float]]:
    """The times that were metered, from and until, in order: entries that follow each other are one."""
    spans: list[tuple[float, float]] = []
    for began, ended in sorted((float(e["at"]) - float(e["seconds"]), float(e["at"])) for e in entries):
        if spans and began <= spans[-1][1] + ROUNDING_S:
            spans[-1] = spans[-1][0], max(spans[-1][1], ended)
        else:
            spans.append((began, ended))
    return spans


def _uses(storage: Storage, name: str, spans: Sequence[tuple[float, float]]) -> list[Use]:
    """The rows that versions answered while it was metered, hour by hour; shadow copies are none."""
    edges = [(from_micros(int(a * 1e6)), from_micros(int(b * 1e6))) for a, b in spans]
    log = prediction_log.scan(prediction_log.files(storage, name, edges[0][0], edges[-1][1]))
    is_metered = pl.any_horizontal(pl.col("at").is_between(a, b, "left") for a, b in edges)
    asked = log.filter(pl.col("route") != SHADOW, is_metered)
    hour = pl.col("at").dt.truncate("1h").dt.epoch("s").alias("hour")
    counted = asked.group_by(hour, "model_version").agg(pl.len()).collect(engine="streaming")
    return [Use(at, name, version, actual.NOBODY, count) for at, version, count in sorted(counted.rows())]


def _unlogged(name: str, entries: Sequence[Document], uses: Sequence[Use]) -> str:
    """That more was answered than the prediction log has, in a sentence; empty where it has it all.

    >>> _unlogged("m", [{"answered": {"m": 60}}, {"answered": {"m": 40}}], [Use(0, "m", "3", "", 90)])
    '10 of 100 rows that m answered are not in its prediction log (not written yet, erased, or taken away):
     they are not counted here, and so 1,000 predictions cost less than this says'
    >>> _unlogged("m", [{"answered": {"m": 100}}, {}], [Use(0, "m", "3", "", 99)])
    ''
    """
    answered = sum(entry.get("answered", {}).get(name, 0) for entry in entries)
    missing = answered - round(sum(use.predictions for use in uses))
    # A minute that is counted may have begun before the period.
    if missing <= LEAST_MISSED * answered:
        return ""
    return (
        f"{missing:,} of {answered:,} rows that {name} answered are not in its prediction log (not written "
        "yet, erased, or taken away): they are not counted here, and so 1,000 predictions cost less than "
        "this says"
    )


def _asked(storage: Storage, name: str) -> callers.Asked:
    """The rows that versions answered by the names of keys, as the monitor counted them."""
    state = storage.read_json(journal.FOLDER, f"{name}.json") or {}
    return callers.asked(journal.read(storage, name, journal.TRAFFIC), state)


def _totals(shares: Sequence[Share]) -> list[Document]:
    """The shares of all hours together, the dearest first."""
    found: dict[tuple[Any, ...], list[Share]] = defaultdict(list)
    for each in _few(shares):
        found[each.kind, each.name, each.machine, each.spot].append(each)
    totals = [
        dict(zip(("kind", "name", "machine", "spot"), key, strict=True))
        | {
            "node_hours": math.fsum(each.node_hours for each in those),
            "reserved_hours": math.fsum(each.reserved_hours for each in those),
            "cost": None if those[0].cost is None else math.fsum(each.cost or 0.0 for each in those),
        }
        for key, those in found.items()
    ]
    return sorted(totals, key=lambda total: -(total["cost"] or 0.0))


def _few(shares: Sequence[Share]) -> Iterable[Share]:
    """The same, with as many jobs as people read: of those that had less nobody asks for the name."""
    hours: dict[str, float] = defaultdict(float)
    for each in shares:
        if each.kind == "job":
            hours[each.name] += each.node_hours
    few = meter.dearest(hours, MOST_JOBS)
    return (each if each.kind != "job" or each.name in few else each._replace(name=JOBS) for each in shares)


def _told(spent: Spent) -> Document:
    told = spent._asdict() | {"per_1000": spent.per_1000}
    del told["key"]
    return told


def _by_key(spent: Sequence[Spent]) -> list[Document]:
    """What each key's predictions have cost; nothing where no key is known."""
    is_known = any(each.key != actual.NOBODY for each in spent)
    return [_told(each) | {"key": each.key} for each in spent] if is_known else []


def _iso(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="seconds")


def html(found: Document) -> str:
    """What `spent` found as a page, whole in one file."""
    currency, whole = found["currency"], found["total"]
    predictions = sum(each["predictions"] for each in found["versions"])
    cost = math.fsum(each["cost"] for each in found["versions"])
    tiles = [
        ("Spent", money(whole, currency), f"in {pages.lasting(found['hours'] * SECONDS_AN_HOUR)}"),
        ("Predictions", f"{predictions:,.0f}", "rows that were answered"),
        (
            "1,000 predictions",
            _money(1000 * cost / predictions if predictions else None, currency),
            "idle included",
        ),
    ]
    bars = [
        Bar(
            _who(each),
            each["cost"] / whole,
            f"{money(each['cost'], currency)} ({share(each['cost'] / whole)})",
        )
        for each in found["shares"]
        if each["cost"]
    ]
    versions = Table(("model", "version", "predictions", "cost", "1,000 predictions"), version_rows(found))
    nodes = Table(("who", "machine", "node hours", "cost"), share_rows(found))
    by_key = Table(("key", *versions.head), key_rows(found))
    keys = [Section("By key", [Block(table=by_key, wide=True)], BY_KEY)]
    sections = [
        Section("The period", [Block(tiles=tiles, bars=bars, wide=True)]),
        Section("By version", [Block(table=versions, wide=True)], "An hour's cost by its predictions."),
        *(keys if found["keys"] else []),
        Section(
            "By machine", [Block(table=nodes, wide=True)], "What nobody reserves is borne by those who do."
        ),
    ]
    subtitle = f"{when(found['from'])} to {when(found['to'])} (UTC)"
    notes = [{"severity": "warning", "said": note} for note in found["notes"]]
    return page("Costs", subtitle, notes, sections)


def version_rows(found: Document) -> list[list[str]]:
    """The rows of the table of versions, as people read them."""
    return [_version_row(each, found["currency"]) for each in found["versions"]]


def key_rows(found: Document) -> list[list[str]]:
    """The rows of the table of keys: as those of versions, after the name of the key."""
    return [[each["key"] or "not known", *_version_row(each, found["currency"])] for each in found["keys"]]


def _version_row(each: Document, currency: str) -> list[str]:
    return [
        each["model"],
        each["version"] or "while nobody asked",
        f"{each['predictions']:,.0f}",
        money(each["cost"], currency),
        _money(each["per_1000"], currency),
    ]


def share_rows(found: Document) -> list[list[str]]:
    """The rows of the table of who had which machine."""
    return [
        [
            _who(each),
            (each["machine"] or "–") + " (spot)" * each["spot"],
            number(each["node_hours"]),
            _money(each["cost"], found["currency"]),
        ]
        for each in found["shares"]
    ]


def _who(share: Mapping[str, Any]) -> str:
    kind, name = str(share["kind"]), str(share["name"])
    return {"model": name, "job": in_words(name)}.get(kind, kind)


def _money(amount: float | None, currency: str) -> str:
    return "–" if amount is None else money(amount, currency)


# ---------------------------------------------------------------- profit


def profit(
    project: Project, storage: Storage, begin: dt.datetime | None, end: dt.datetime | None
) -> Document:
    """What the live version earns a day: by the plan, or, where a time is given, by what was spent then.

    `{"model", "version", "by", "currency", "predictions", "worth", "value", "serving", "training", "storage",
    "profit", "break_even_price", "break_even_volume", "notes"}`, amounts of a day, but `worth` and
    `break_even_price`, which are of a prediction. `break_even_volume` is `None` where no number of
    predictions earns anything.
    """
    worth = Worth.of(project.cost)
    if worth is None:
        example = "value_per_prediction: {amount: 0.002, currency: EUR}"
        said = f"it is not said what a prediction is worth, e.g. {example}"
        raise project.located(ConfigError(said, at=("cost",)))
    champion = record.read(storage, project.project).get("champion")
    if champion is None:
        raise ReleaseError(f"no version of {project.project!r} is live yet; `run` brings one up")
    version = str(champion["version"])
    metrics = packages.read(storage.root / champion["package"], digest=champion["digest"]).metrics
    is_actual = begin is not None or end is not None
    known = _actual(project, storage, version, begin, end) if is_actual else _by_plan(project, storage)
    predictions, serving, notes = known
    training, told = training_cost(project, storage, version)
    stored = storage_cost(project, storage)
    if stored is None:
        told.append("storage has no price (cost.storage), and costs nothing here")
    life = project.cost.training_life / DAY_US
    each, costs = worth.mean(metrics), Costs(serving, training or 0.0, life, stored or 0.0)
    volume = profits.break_even_volume(each, costs)
    price = profits.break_even_price(predictions, worth.each - each, costs)
    return {
        "model": project.project,
        "version": version,
        "by": "what was spent" if is_actual else "the plan",
        "currency": worth.currency,
        "predictions": predictions,
        "worth": each,
        "value": predictions * each,
        "serving": serving,
        "training": costs.training / costs.life_days,
        "storage": costs.storage,
        "profit": profits.profit(predictions, each, costs),
        "break_even_price": price if math.isfinite(price) else None,
        "break_even_volume": volume if math.isfinite(volume) else None,
        "notes": [*notes, *told],
    }


def training_cost(project: Project, storage: Storage, version: str) -> tuple[float | None, list[str]]:
    """What the search and the fit of a version have cost, `None` where that is not known, and why not."""
    # It imports MLflow, which takes seconds.
    from mlops_ray.cluster.loads import registry

    try:
        found = registry(project, storage).cost(project.project, int(version))
    except NotFoundError:
        found = None
    if found is None:
        return None, [f"version {version} was trained without prices: what that took costs nothing here"]
    if found["currency"] != project.cost.currency:
        in_, other = found["currency"], project.cost.currency
        return None, [f"training version {version} has cost {in_}, which is not counted here, in {other}"]
    return float(found["amount"]), []


def storage_cost(project: Project, storage: Storage) -> float | None:
    """What the storage's folder costs a day, borne by its models alike; `None` where it has no price."""
    price = project.cost.storage
    if price is None:
        return None
    return model.storage_a_day(storage.size(), price.amount) / max(1, len(record.names(storage)))


def _by_plan(project: Project, storage: Storage) -> tuple[float, float, list[str]]:
    """Predictions and cost of serving them, a day, as planned."""
    found, told = _planned(project, storage)
    if found.chosen is None:
        raise DataError(" ".join(found.said))
    assert found.chosen.capacity is not None
    predictions = told["load"]["mean"] * DAY_S * found.chosen.capacity.rows
    return predictions, found.chosen.per_day, told["notes"]


def _actual(
    project: Project, storage: Storage, version: str, begin: dt.datetime | None, end: dt.datetime | None
) -> tuple[float, float, list[str]]:
    """Predictions and cost of serving them, a day, as it was."""
    found = spent(project, storage, begin, end)
    if any(each["name"] == project.project and each["cost"] is None for each in found["shares"]):
        raise DataError(f"what serving has cost is not known: {found['notes'][-1]}")
    own = [v for v in found["versions"] if (v["model"], v["version"]) == (project.project, version)]
    days = found["hours"] / HOURS_A_DAY
    if not own or not days:
        raise DataError(f"version {version} of {project.project!r} answered nothing then")
    return own[0]["predictions"] / days, own[0]["cost"] / days, found["notes"]


# ---------------------------------------------------------------- prices


def read_text(file: Path) -> str:
    """The text of a file that is brought in; raises `DataError` where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", file=str(file)) from None
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text (byte {error.start})", file=str(file)) from None


def import_prices(format: str, file: Path, output: Path, asked: Asked, *, replace: bool = False) -> Document:
    """Writes the prices of an export into a file of prices: `{"output", "prices", "currency", "notes"}`.

    Raises `UsageError` where the file is there already, unless it is to be replaced.
    """
    if output.exists() and not replace:
        raise UsageError(f"{output} is there already: name another, or say --replace")
    found = exports.imported(format, read_text(file), asked)
    text = prices.text(found.prices, HEAD.format(file=file.name, format=format))
    save(output, text)
    count, currency = len(found.prices), found.prices[0].currency
    return {"output": str(output), "prices": count, "currency": currency, "notes": found.notes}


def save(file: Path, text: str) -> None:
    """Writes a file of text, whole or not at all; raises `UsageError` where it cannot be."""
    try:
        with replacing(file.absolute()) as made:
            made.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}") from None


def modified(file: Path) -> dt.date:
    """The day on which a file was written last; raises `DataError` where there is none."""
    try:
        return dt.datetime.fromtimestamp(file.stat().st_mtime, dt.UTC).date()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", file=str(file)) from None
