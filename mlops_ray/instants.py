"""Instants as whole microseconds since 1970, as the calendar has them."""

from datetime import UTC, datetime, timedelta

EPOCH, MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
#: A day, UTC, in seconds.
DAY_S = 86_400
#: The ends of the calendar.
EARLIEST, LATEST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


def to_micros(instant: datetime) -> int:
    """
    >>> to_micros(datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC))
    -1000000
    """
    return (instant - EPOCH) // MICROSECOND


def from_micros(micros: int) -> datetime:
    """The instant in UTC. Raises `OverflowError` outside the calendar.

    >>> from_micros(-1_000_000).isoformat()
    '1969-12-31T23:59:59+00:00'
    """
    return EPOCH + int(micros) * MICROSECOND


#: The first and the last instant that data may hold, in microseconds since 1970: of the years 2 to 9998. The
#: year at either end is left for horizons, windows and zones: no later arithmetic leaves the calendar.
FIRST_US = to_micros(datetime(2, 1, 1, tzinfo=UTC))
LAST_US = to_micros(datetime(9999, 1, 1, tzinfo=UTC)) - 1
