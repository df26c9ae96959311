"""What runs on which node, written down as it goes: what costs are made of.

    cost/DAY.jsonl             what ran, a line a minute (`mlops_ray.cost.actual.metered`), and `answered`:
                               by model the rows that replicas answered since the line before
    cost/MODEL.json            what a model costs, for the page, Prometheus and alerts
    cost/settings/MODEL.json   the prices that the model's project names, its machine and its budget
    cost/holds/MODEL.json      is there while the day's budget is spent: no more replicas, no retraining

`Meter` holds nothing that is not on disk but when it last looked, and may be killed at any moment: what ran
while nobody looked, for longer than a few minutes, is not counted.
"""

import datetime as dt
import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import orjson

from mlops_ray.cluster.works import ASIDE, JOBS, Work, held_by, in_words, is_of_another
from mlops_ray.config import Project, duration_in_words
from mlops_ray.cost import actual, holds, prices
from mlops_ray.cost.holds import FOLDER, HOLDS, SETTINGS, why
from mlops_ray.cost.model import replica_price
from mlops_ray.cost.prices import Price, PriceList, money, named
from mlops_ray.data import prediction_log
from mlops_ray.data.error_log import DEFECTS
from mlops_ray.errors import ConfigError, DataError, Once, StorageError, safe
from mlops_ray.instants import DAY_S
from mlops_ray.storage import Storage

#: How often is looked, and for how long after a look it is taken for granted that the same ran.
EVERY_S, LONGEST_S = 60.0, 180.0
#: What 1,000 predictions cost is said of the days that have begun in this time: today, and yesterday.
RECENT_S = 2 * DAY_S
#: Replicas that were seen in this time before a budget was spent run, whatever the last look has seen.
RAN_S = 600.0
FORMAT_VERSION = 1
#: Labels of a node that say its type in the prices, and that it may be taken away at any time.
MACHINE, MARKET, SPOT = "machine", "ray.io/market-type", "spot"
#: What is said of the type of a machine that may be taken away.
TAKEN = " (spot)"
#: Of a day's jobs so many are named, the dearest, and so many in a sentence; the rest are `JOBS`.
MOST_NAMED, MOST_SAID = 30, 3

Document = dict[str, Any]
logger = logging.getLogger(__name__)


class Node(NamedTuple):
    """A node of the cluster now: its labels, and the CPUs and GPUs that it has, and that nobody holds."""

    id: str
    labels: Mapping[str, str]
    cpus: float
    gpus: float
    free_cpus: float
    free_gpus: float


class Replica(NamedTuple):
    """A replica of a model, and what it holds of the node."""

    node: str
    model: str
    cpu: float
    gpu: float


class Cluster(Protocol):
    """What runs (RayCluster)."""

    def nodes(self) -> Sequence[Node]: ...

    def replicas(self) -> Sequence[Replica]: ...

    def works(self) -> Sequence[Work]: ...


@dataclass(frozen=True)
class Settings:
    """What a project says: its prices, the region, the type of machine of nodes that do not say theirs.

    `per_day` is the budget, of which `holds` says whether more is held back once it is spent; and there are
    to be `least` replicas. Prices that are older than `max_age_us` are told of. What a replica costs an hour
    and a prediction is worth are read by autoscaling (`mlops_ray.serving.autoscaling.worth`).
    """

    prices: tuple[Mapping[str, Any], ...]
    region: str | None
    machine: str
    per_day: float | None = None
    holds: bool = False
    least: int = 1
    max_age_us: int | None = None
    replica_per_hour: float | None = None
    value: float | None = None

    @property
    def listed(self) -> PriceList:
        return PriceList(tuple(_price(each) for each in self.prices))


def _price(said: Mapping[str, Any]) -> Price:
    return Price(**{**said, "date": dt.date.fromisoformat(said["date"])})


def priced(project: Project) -> tuple[PriceList, list[str]]:
    """The project's prices, and what a person should know of them; `ConfigError` where it names none.

    So it is where they are of another currency than the other amounts of the project.
    """
    at, cost = ("cost", "prices"), project.cost
    if cost.prices is None:
        said = "no prices are named: write them into a file (configs/prices.yaml shows how), or import them"
        raise project.located(ConfigError(said, at=at))
    found, other = prices.load(cost.prices), cost.currency
    if other not in (None, found.currency):
        said = f"are in {found.currency}, and what else is said of money in {other}: say both in one"
        raise project.located(ConfigError(said, at=at))
    return found, stale(found, cost.max_age, dt.datetime.now(dt.UTC).date())


def notes(project: Project) -> list[str]:
    """What who starts a service is to know of its prices."""
    return [] if project.cost.prices is None else priced(project)[1]


def stale(found: PriceList, limit_us: float, today: dt.date) -> list[str]:
    """That prices are older than a limit, in a sentence; empty where none is."""
    old = found.stale(today, dt.timedelta(microseconds=limit_us))
    if not old:
        return []
    worst = min(old, key=lambda price: price.date)
    limit = duration_in_words(int(limit_us))
    return [
        f"{len(old)} of {len(found.prices)} prices are older than {limit}, or of the future; "
        f"that of {named(worst)} is of {worst.date}"
    ]


def settle(project: Project, storage: Storage) -> bool:
    """Has the meter count by the prices that a project names; whether it names any.

    Raises `ConfigError` as `priced` does.
    """
    path = storage.path(SETTINGS, f"{project.project}.json")
    if project.cost.prices is None:
        path.unlink(missing_ok=True)
        # Nobody would end it.
        storage.path(HOLDS, path.name).unlink(missing_ok=True)
        return False
    listed, _ = priced(project)
    told = tuple(asdict(price) | {"date": price.date.isoformat()} for price in listed.prices)
    cost, budget, value = project.cost, project.cost.budget, project.cost.value_per_prediction
    said = Settings(
        told,
        cost.region,
        cost.machine or "",
        None if budget is None else budget.per_day.amount,
        budget is not None and budget.then == "hold",
        project.serving.replicas.min,
        cost.max_age,
        _replica_per_hour(project, listed),
        None if value is None else value.amount,
    )
    storage.write_json(asdict(said), SETTINGS, path.name)
    return True


def _replica_per_hour(project: Project, listed: PriceList) -> float | None:
    """What a replica costs; `None` where its type of machine is not known, or has no price."""
    resources, cost = project.serving.resources, project.cost
    machine = (cost.machine or "") if resources.machine == "auto" else resources.machine
    found = [actual.price_of(listed, machine, spot, cost.region) for spot in {cost.spot, False}]
    price = min((each for each in found if each is not None), key=lambda each: each.per_hour, default=None)
    per_hour = math.inf if price is None else replica_price(price, resources.cpu, resources.gpu)
    return per_hour if math.isfinite(per_hour) else None


# ---------------------------------------------------------------- a line of the journal


def entry(
    at: float,
    seconds: float,
    nodes: Sequence[Node],
    replicas: Sequence[Replica],
    machine: str,
    answered: Mapping[str, int],
    works: Sequence[Work] = (),
) -> Document:
    """What ran in the `seconds` up to `at`: a line of the journal. Nodes of no type are of `machine`.

    `works` names what is held beside `replicas`; what it does not name is of `JOBS`.

    >>> entry(60.0, 60.0, [Node("a", {}, 2, 0, 1, 0)], [Replica("a", "m", 1, 0)], "small", {})["nodes"]
    [{'type': 'small', 'spot': False, 'cpus': 2, 'gpus': 0,
      'replicas': {'m': {'count': 1, 'cpu': 1.0, 'gpu': 0.0}}, 'jobs': {}}]
    """
    on: dict[str, list[Replica]] = defaultdict(list)
    for replica in replicas:
        on[replica.node].append(replica)
    beside: dict[str, list[Work]] = defaultdict(list)
    for work in works:
        beside[work.node].append(work)
    told = [_node(node, on[node.id], beside[node.id], machine) for node in nodes]
    return {"at": at, "seconds": seconds, "nodes": told, "answered": dict(answered)}


def _node(node: Node, on: Sequence[Replica], works: Sequence[Work], machine: str) -> Document:
    cpu = node.cpus - node.free_cpus - math.fsum(each.cpu for each in on)
    gpu = node.gpus - node.free_gpus - math.fsum(each.gpu for each in on)
    type, spot = type_of(node.labels, machine)
    models = sorted({each.model for each in on})
    by_name = {name: _held([each for each in on if each.model == name]) for name in models}
    return {
        "type": type,
        "spot": spot,
        "cpus": node.cpus,
        "gpus": node.gpus,
        "replicas": {name: held for name, held in by_name.items() if ASIDE not in name},
        "jobs": {name: held for name, held in by_name.items() if ASIDE in name} | held_by(works, cpu, gpu),
    }


def type_of(labels: Mapping[str, str], machine: str) -> tuple[str, bool]:
    """A node's type, `machine` where its labels say none, and whether it may be taken away at any time."""
    return labels.get(MACHINE, machine), labels.get(MARKET) == SPOT


def _held(own: Sequence[Replica]) -> Document:
    """What replicas of a model hold, each on average: while their size is changed there are two."""
    count = len(own)
    return {
        "count": count,
        "cpu": math.fsum(each.cpu for each in own) / count,
        "gpu": math.fsum(each.gpu for each in own) / count,
    }


def append(storage: Storage, line: Document) -> None:
    """Adds a line to the journal of its day; one that a killed process has begun is no line."""
    path = journal_of(storage, line["at"])
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as file:
        ends = b"" if _is_ended(path) else b"\n"
        file.write(ends + orjson.dumps(line) + b"\n")


def journal_of(storage: Storage, at: float) -> Path:
    """The file of the day of an instant, UTC."""
    return storage.root / FOLDER / f"{dt.datetime.fromtimestamp(at, dt.UTC).date()}.jsonl"


def _is_ended(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(0, 2)
        if not file.tell():
            return True
        file.seek(-1, 2)
        return file.read() == b"\n"


def journal(path: Path, begin: int = 0) -> Iterator[Document]:
    """The lines of a day's journal from a byte on; one that was begun and not ended, or damaged, is none."""
    with path.open("rb") as lines:
        lines.seek(begin)
        for text in lines:
            try:
                line = orjson.loads(text)
            except orjson.JSONDecodeError:
                continue
            if _is_whole(line):
                yield line
            else:
                logger.error(
                    "a line of %s that ends at byte %d is damaged, and not counted", path, lines.tell()
                )


def _is_whole(line: Any) -> bool:
    """Whether a line says what ran when, and who was answered."""
    try:
        actual.check(line)
        return all(type(rows) is int and rows >= 0 for rows in line.get("answered", {}).values())
    except (DataError, AttributeError):
        return False


def entries(storage: Storage, begin: float = 0.0, end: float = math.inf) -> Iterator[Document]:
    """The lines of the days from `begin` to `end`, oldest first."""
    for path in sorted(storage.root.glob(f"{FOLDER}/[!.]*.jsonl")):
        try:
            day = dt.datetime.fromisoformat(path.stem).replace(tzinfo=dt.UTC).timestamp()
        except ValueError:
            continue
        # The first line of a day tells of the end of the day before, too.
        if begin - DAY_S < day < end + DAY_S:
            yield from journal(path)


# ---------------------------------------------------------------- what a model costs


class Day(NamedTuple):
    """What a model cost on a day, which begins at `at`, by type of machine, and the rows that it answered.

    `jobs` is what trials, and all else that ran beside replicas, cost on that day, but for what is known to
    be another model's; `named` says of it what was whose (works.py), as long as the day is told in full.
    """

    at: int
    cost: float
    answered: int
    parts: Mapping[str, float]
    jobs: float
    named: Mapping[str, float]

    @classmethod
    def of(cls, told: Sequence[Any]) -> "Day":
        """One that was written down, maybe before jobs were told apart."""
        return cls(*[*told, {}][: len(cls._fields)])

    @classmethod
    def empty(cls, at: int) -> "Day":
        return cls(at, 0.0, 0, {}, 0.0, {})

    @property
    def spent(self) -> float:
        """What counts against a budget: the model's replicas, its trainings, and jobs that may be anybody's.

        Of a job that is no training nobody knows for whom it runs: whoever has a budget bears it.
        """
        return self.cost + self.jobs


def day(lines: Sequence[Mapping[str, Any]], before: Day, model: str, settings: Settings) -> Day:
    """What more lines of a day say of a model, with what was counted before.

    A machine without a price costs nothing.
    """
    parts, named = (defaultdict(float, each) for each in (before.parts, before.named))
    for share in actual.metered(lines, settings.listed, settings.region):
        if (share.kind, share.name) == ("model", model):
            parts[share.machine + TAKEN * share.spot] += share.cost or 0.0
        elif share.kind == "job" and not is_of_another(share.name, model):
            named[share.name] += share.cost or 0.0
    answered = before.answered + sum(line.get("answered", {}).get(model, 0) for line in lines)
    jobs = math.fsum(named.values())
    return Day(before.at, math.fsum(parts.values()), answered, dict(parts), jobs, dearest(named, MOST_NAMED))


def dearest(named: Mapping[str, float], most: int) -> dict[str, float]:
    """So many of these jobs, the dearest first; the others are one, as those are of which no more is known.

    >>> dearest({"job a": 1.0, "job b": 3.0, "job c": 2.0, "jobs": 0.5}, 2)
    {'job b': 3.0, 'job c': 2.0, 'jobs': 1.5}
    """
    order = sorted(named.keys() - {JOBS}, key=lambda name: (-named[name], name))
    rest = [named[name] for name in (*order[most:], JOBS) if name in named]
    return {name: named[name] for name in order[:most]} | ({JOBS: math.fsum(rest)} if rest else {})


def document(
    model: str, days: Sequence[Day], settings: Settings, now: float, before: Mapping[str, Any]
) -> Document:
    """What the page and Prometheus say of a model, of its days, oldest first; `total` is of all of them.

    `counted` is the total as counters are: not less than `before`, where days cost less counted anew.
    1,000 predictions cost what was spent, today and yesterday, for those that were answered, idle included.
    """
    currency = settings.listed.currency
    recent = [each for each in days if now - RECENT_S < each.at <= now]
    today = next(each for each in days if each.at == now // DAY_S * DAY_S)
    cost, answered = math.fsum(each.cost for each in recent), sum(each.answered for each in recent)
    total = math.fsum(each.cost for each in days)
    parts, jobs = Counter[str](), Counter[str]()
    for each in recent:
        parts.update(each.parts)
        jobs.update(each.named)
    rates = {name: _price_of(settings, name) for name in parts}
    free = sorted(name for name, price in rates.items() if price is None)
    used = [price for price in rates.values() if price is not None]
    per_1000 = answered and {"amount": 1000 * cost / answered, "currency": currency, "since": recent[0].at}
    return {
        "format": FORMAT_VERSION,
        "model": model,
        "at": now,
        "per_1000": per_1000 or None,
        "answered": answered,
        "parts": [{"name": name, "amount": amount} for name, amount in sorted(parts.items())],
        "prices": sorted({f"{price.source}, {price.date}" for price in used}),
        "oldest": min((price.date.isoformat() for price in used), default=None),
        "notes": [*_notes(used, settings, now), *map(_unpriced, free)],
        "jobs": [
            {"name": in_words(name), "amount": each} for name, each in dearest(jobs, MOST_NAMED).items()
        ],
        "days": [[*each[:-1], each.named if each in recent else {}] for each in days],
        "total": {"amount": total, "currency": currency},
        "counted": {
            "amount": max(total, before.get("amount", 0.0) if before.get("currency") == currency else 0.0),
            "currency": currency,
            "answered": max(sum(each.answered for each in days), before.get("answered", 0)),
        },
        "budget": None
        if settings.per_day is None
        else {
            "per_day": settings.per_day,
            "spent": today.spent,
            "jobs": today.jobs,
            "named": _said(today),
            "holds": settings.holds,
        },
    }


def _said(today: Day) -> dict[str, float]:
    """The dearest jobs of a day that have a name, as a sentence tells them."""
    found = dearest(today.named, MOST_SAID).items()
    return {in_words(name): amount for name, amount in found if name != JOBS}


def _notes(used: Sequence[Price], settings: Settings, now: float) -> list[str]:
    """That prices by which it was counted are too old."""
    if not used or settings.max_age_us is None:
        return []
    return stale(PriceList(tuple(used)), settings.max_age_us, dt.datetime.fromtimestamp(now, dt.UTC).date())


def _unpriced(name: str) -> str:
    machine = name or "a machine that does not say its type (cost.machine)"
    return f"{machine} has no price, or several: what runs on it counts as nothing, for the budget too"


def _price_of(settings: Settings, name: str) -> Price | None:
    """The price of a part of a day."""
    return actual.price_of(settings.listed, name.removesuffix(TAKEN), name.endswith(TAKEN), settings.region)


def _spent(today: Day, per_day: float, settings: Settings) -> str:
    """That a budget is spent, and on what beside the model."""
    spent, allowed, jobs = (
        money(each, settings.listed.currency) for each in (today.spent, per_day, today.jobs)
    )
    each = [f"{name}: {money(amount, settings.listed.currency)}" for name, amount in _said(today).items()]
    of = f", of which {jobs} were trainings and other jobs" if today.jobs else ""
    of += f" ({', '.join(each)})" if each else ""
    return f"{spent} of {allowed} that cost.budget allows were spent on this day (UTC){of}"


def _ran(storage: Storage, model: str, now: float) -> int:
    """The most replicas of a model that were seen at once lately: one look may fall into a redeployment."""
    recent = (line for line in entries(storage, now - RAN_S, now) if now - RAN_S < line["at"] <= now)
    nodes = ([node.get("replicas", {}).get(model, {"count": 0}) for node in line["nodes"]] for line in recent)
    return max((sum(int(each["count"]) for each in on) for on in nodes), default=0)


def held(storage: Storage, model: str, now: float) -> str:
    """Why nothing more is to be spent on a model, in a sentence; empty where it may be."""
    return why(_hold_of(storage, model), now)


def _hold_of(storage: Storage, model: str) -> Any:
    """What is written of a model's hold; a damaged one is none, and is written anew if it has to be."""
    try:
        return storage.read_json(HOLDS, f"{model}.json")
    except StorageError:
        return None


# ---------------------------------------------------------------- doing it


@dataclass
class Meter:
    """`tick` writes a line where one is due, and what it comes to."""

    storage: Storage
    cluster: Cluster
    clock: Callable[[], float] = time.time
    _looked_at: float | None = None
    _answered: dict[str, int] = field(default_factory=dict)
    #: Of a model and a day, the settings by which it was counted, up to which byte of the journal, and what.
    _sums: dict[tuple[str, int], tuple[Settings, int, Day]] = field(default_factory=dict)
    #: What is wrong, and why jobs have no names.
    _wrong: Once = field(default_factory=Once)

    def tick(self) -> None:
        """What is wrong waits for the next look."""
        try:
            self._look()
            self._wrong.over("look")
        except DEFECTS as error:  # the next look tries again
            if self._wrong.is_news("look", said := safe(error)):
                logger.error("what runs is not metered (%s)", said)

    def _look(self) -> None:
        now, before = self.clock(), self._looked_at
        if before is not None and 0 <= now - before < EVERY_S:
            return
        named = settings(self.storage)
        counts = {model: prediction_log.answered(self.storage, model) for model in named}
        more = {model: max(0, count - self._answered.get(model, count)) for model, count in counts.items()}
        if before is None or now < before or not named:
            self._looked_at, self._answered = now, counts
            return
        # Of a cluster whose projects differ, nodes that do not say their type are of the first one's.
        machine = next((each.machine for each in named.values() if each.machine), "")
        nodes, replicas = self.cluster.nodes(), self.cluster.replicas()
        # What is counted is what that time has cost.
        seconds = min(now - before, LONGEST_S)
        more = {model: round(count * seconds / (now - before)) for model, count in more.items()}
        append(self.storage, entry(now, seconds, nodes, replicas, machine, more, self._works()))
        self._looked_at, self._answered = now, counts
        wrong = []
        for model, said in named.items():
            try:
                today = self._sum_up(model, said, now)
                self._hold(model, said, today, now)
            except DEFECTS as error:  # the other models are summed up all the same
                wrong.append(error)
        if wrong:
            raise wrong[0]

    def _works(self) -> Sequence[Work]:
        """What jobs hold, by name; where nobody says it they are counted all the same, without names."""
        try:
            found = self.cluster.works()
            self._wrong.over("names")
        except Exception as error:  # noqa: BLE001 - whatever Ray's store may raise
            if self._wrong.is_news("names", said := safe(error)):
                logger.warning("jobs are metered without their names (%s)", said)
            return ()
        return found

    def _hold(self, model: str, said: Settings, today: Day, now: float) -> None:
        """Has no replica started beyond those that ran, and nothing retrained, while the budget is spent."""
        path = self.storage.path(HOLDS, f"{model}.json")
        if not said.holds or said.per_day is None or today.spent < said.per_day:
            path.unlink(missing_ok=True)
            return
        # It ends also where nobody is left to end it; a budget that was changed is spent anew.
        known, of = _hold_of(self.storage, model), {"until": today.at + DAY_S, "per_day": said.per_day}
        if not isinstance(known, dict) or any(known.get(key) != value for key, value in of.items()):
            # Where none runs the first caller is answered all the same.
            most = max(said.least, _ran(self.storage, model, now), 1)
            hold = {"most_replicas": most, "why": _spent(today, said.per_day, said)}
            self.storage.write_json(of | hold, HOLDS, path.name)

    def _sum_up(self, model: str, said: Settings, now: float) -> Day:
        """Counts the days of which lines may not have been counted, today and that of the last time."""
        known = _document_of(self.storage, model)
        # What was counted in another currency is counted anew, as far as journals are there: nothing adds up.
        counted = known if known and known["total"]["currency"] == said.listed.currency else {}
        days = {each.at: each for each in map(Day.of, counted.get("days", []))}
        for at in {int(when // DAY_S * DAY_S) for when in (counted.get("at", now), now)} | self._days(
            counted
        ):
            days[at] = self._day(model, at, said)
        # A clock that was set back leaves days of the future: what is spent today is of this day.
        today = days.setdefault(began := int(now // DAY_S * DAY_S), Day.empty(began))
        ordered = [days[at] for at in sorted(days)]
        told = document(model, ordered, said, now, known.get("counted", {}))
        self.storage.write_json(told, FOLDER, f"{model}.json")
        return today

    def _days(self, known: Document) -> set[int]:
        """The days that are counted from the beginning: all, where what was counted is not known any more."""
        if known:
            return set()
        days = (path.stem for path in self.storage.root.glob(f"{FOLDER}/[!.]*.jsonl"))
        return {int(dt.datetime.fromisoformat(day).replace(tzinfo=dt.UTC).timestamp()) for day in days}

    def _day(self, model: str, at: int, said: Settings) -> Day:
        """What a day has cost: of the journal, what was added to it since the last time is read."""
        by, begin, found = self._sums.get((model, at), (None, 0, None))
        if by != said or found is None:
            begin, found = 0, Day.empty(at)
        path = journal_of(self.storage, at)
        if path.exists():
            end = path.stat().st_size
            found = day(list(journal(path, begin)), found, model, said)
            self._sums = {key: sum for key, sum in self._sums.items() if key[1] >= at - 2 * DAY_S}
            self._sums[model, at] = (said, end, found)
        return found


def _document_of(storage: Storage, model: str) -> Document:
    """What was written of a model's costs; nothing where that is damaged, or not there."""
    try:
        return holds.checked(storage.read_json(FOLDER, f"{model}.json")) or {}
    except StorageError:
        return {}


def settings(storage: Storage) -> dict[str, Settings]:
    """By model, what projects say that name prices; a file that is damaged is told, and left out."""
    found = {}
    for path in sorted(storage.root.joinpath(SETTINGS).glob("[!.]*.json")):
        try:
            said = storage.read_json(SETTINGS, path.name)
            if said is not None:
                found[path.stem] = Settings(**said | {"prices": tuple(said["prices"])})
        except (StorageError, TypeError, KeyError) as error:
            logger.error("%s is damaged (%s): mlops-ray serve writes it anew", path, safe(error))
    return found
