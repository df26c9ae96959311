"""Event times: from the stamps of a file to UTC microseconds (semantics.md section 1).

A naive stamp is read in a declared time zone. The hour that a clock change repeats is told apart by file
order; an instant that does not exist is refused, never rolled over.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from mlops_ray.config import EventTime
from mlops_ray.errors import DataError
from mlops_ray.schema import INSTANT, read_iso

#: The years 1 to 9999, in microseconds since 1970.
FIRST_US, LAST_US = -62_135_596_800_000_000, 253_402_300_799_999_999
UNPARSEABLE = "not_a_time"
NONEXISTENT = "nonexistent_time"
AMBIGUOUS = "ambiguous_time"


@dataclass
class Clock:
    """Reads the event times of one file, block after block in file order.

    `seen` remembers, for each entity, the last local stamp inside an hour that was repeated, and whether the
    second pass through it has begun.

    >>> clock = Clock(EventTime(column="t", timezone="Europe/Berlin", ambiguous="infer"))
    >>> stamps = ["2016-10-30 02:00", "2016-10-30 02:30", "2016-10-30 02:00", "2016-03-27 02:30", "x"]
    >>> times, problems = clock.read(pl.DataFrame({"t": stamps}), keys=())
    >>> times.dt.strftime("%H:%M").to_list()
    ['00:00', '00:30', '01:00', None, None]
    >>> problems.to_list()
    [None, None, None, 'nonexistent_time', 'not_a_time']
    """

    spec: EventTime
    seen: dict[tuple[object, ...], tuple[object, bool]] = field(default_factory=dict)

    def read(self, frame: pl.DataFrame, keys: Sequence[str]) -> tuple[pl.Series, pl.Series]:
        """The instants of a block (UTC, null where there is none), and the name of the problem with each.

        `keys` are the entity columns; rows of different entities may be interleaved in a file.
        """
        stamps = self._parse(frame)
        given = _given(frame, self.spec)
        unparseable = given & stamps.is_null()
        if isinstance(stamps.dtype, pl.Datetime) and stamps.dtype.time_zone is None:
            instants, ambiguous = self._localize(stamps, frame, keys)
        else:
            instants, ambiguous = (
                stamps.dt.convert_time_zone("UTC"),
                pl.repeat(False, len(stamps), eager=True),
            )
        nonexistent = stamps.is_not_null() & instants.is_null() & ~ambiguous
        problems = pl.select(
            pl.when(unparseable)
            .then(pl.lit(UNPARSEABLE))
            .when(ambiguous)
            .then(pl.lit(AMBIGUOUS))
            .when(nonexistent)
            .then(pl.lit(NONEXISTENT))
            .when(~given)
            .then(pl.lit("required"))
        ).to_series()
        return instants.cast(INSTANT).alias("event_time"), problems.alias("problem")

    def _parse(self, frame: pl.DataFrame) -> pl.Series:
        """Stamps as written: naive, or with a zone where the text says one."""
        spec = self.spec
        if spec.columns is not None:
            parts = [pl.col(name).cast(pl.Int64, strict=False) for name in spec.columns]
            return frame.select(pl.concat_str([p.cast(pl.String) for p in parts], separator="-").alias("t"))[
                "t"
            ].str.strptime(pl.Datetime("us"), _format_of_parts(len(parts)), strict=False)
        assert spec.column is not None
        raw = frame[spec.column]
        if isinstance(raw.dtype, pl.Datetime):
            return raw.dt.cast_time_unit("us")
        if raw.dtype == pl.Date:
            return raw.cast(pl.Datetime("us"))
        if spec.unit is not None:
            return _from_number(raw, spec.unit)
        if spec.format is not None:
            return _exact(raw.cast(pl.String), spec.format)
        return _iso(raw.cast(pl.String))

    def _localize(
        self, stamps: pl.Series, frame: pl.DataFrame, keys: Sequence[str]
    ) -> tuple[pl.Series, pl.Series]:
        """UTC instants of naive stamps, and which of them a clock change makes ambiguous."""
        zone = self.spec.timezone
        if zone is None:
            raise DataError(
                f"the stamps carry no offset (e.g. {stamps.drop_nulls().first()!s}) and event_time names no "
                "timezone; add e.g. timezone: Europe/Berlin",
                column=self.spec.column,
            )
        first = stamps.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
        second = stamps.dt.replace_time_zone(zone, ambiguous="latest", non_existent="null")
        repeated = (first != second).fill_null(False)
        if self.spec.ambiguous == "raise" or not repeated.any():
            instants = first.set(repeated, None)
            return instants.dt.convert_time_zone("UTC"), repeated
        is_second = self._second_pass(stamps, frame, keys, repeated)
        return first.zip_with(~is_second, second).dt.convert_time_zone("UTC"), pl.repeat(
            False, len(stamps), eager=True
        )

    def _second_pass(
        self, stamps: pl.Series, frame: pl.DataFrame, keys: Sequence[str], repeated: pl.Series
    ) -> pl.Series:
        """Whether a repeated stamp lies in the hour's second pass: its entity's clock went back before it."""
        where = repeated.arg_true()
        entities = frame.select(keys)[where].rows() if keys else [()] * len(where)
        flags = []
        for entity, stamp in zip(entities, stamps.gather(where), strict=True):
            day = (*entity, stamp.date())
            last, second = self.seen.get(day, (None, False))
            second = second or (last is not None and stamp <= last)
            self.seen[day] = (stamp, second)
            flags.append(second)
        result = pl.repeat(False, len(stamps), dtype=pl.Boolean, eager=True)
        return result.scatter(where, flags) if flags else result


def _given(frame: pl.DataFrame, spec: EventTime) -> pl.Series:
    columns = spec.columns or (spec.column,)
    return frame.select(
        pl.all_horizontal(
            pl.col(str(c)).is_not_null() & (pl.col(str(c)).cast(pl.String) != "") for c in columns
        ).alias("given")
    )["given"]


def _format_of_parts(count: int) -> str:
    return "-".join(("%Y", "%m", "%d", "%H", "%M")[:count])


def _from_number(raw: pl.Series, unit: str) -> pl.Series:
    """Whole numbers exactly, fractions to the nearest microsecond; nanoseconds are cut to microseconds."""
    raw = raw.str.strip_chars() if raw.dtype == pl.String else raw
    numbers, whole = raw.cast(pl.Float64, strict=False), raw.cast(pl.Int64, strict=False)
    is_whole = whole.is_not_null() & (numbers == numbers.floor()).fill_null(False)
    if unit == "ns":
        exact, nearest = whole // 1_000, (numbers / 1_000).floor()
    else:
        factor = {"s": 1_000_000, "ms": 1_000, "us": 1}[unit]
        exact, nearest = whole * factor, (numbers * factor).round(0)
    # Seconds that are milliseconds in truth lie beyond any calendar, and perhaps beyond 64 bits.
    is_reached = nearest.is_between(FIRST_US, LAST_US).fill_null(False)
    micros = exact.zip_with(is_whole, nearest.cast(pl.Int64, strict=False))
    return micros.set(~is_reached, None).cast(INSTANT)


def _exact(raw: pl.Series, format: str) -> pl.Series:
    dtype = pl.Datetime("us", "UTC") if "%z" in format else pl.Datetime("us")
    has_time = any(code in format for code in ("%H", "%I", "%T", "%R", "%s", "%z"))
    if not has_time:
        return raw.str.strptime(pl.Date, format, strict=False).cast(pl.Datetime("us"))
    return raw.str.strptime(dtype, format, strict=False)


def _iso(raw: pl.Series) -> pl.Series:
    """ISO 8601 text; all stamps of a column carry an offset, or none does."""
    text = raw.str.strip_chars().str.replace(" ", "T", literal=True)
    aware = text.str.contains(r"(?:Z|[+-]\d{2}:?\d{2})$")
    if aware.any():
        return read_iso(text)
    date_only = text.str.len_chars() == 10
    text = pl.select(pl.when(date_only).then(text + "T00:00:00").otherwise(text)).to_series()
    short = text.str.count_matches(":") == 1
    text = pl.select(pl.when(short).then(text + ":00").otherwise(text)).to_series()
    return text.str.strptime(pl.Datetime("us"), "%Y-%m-%dT%H:%M:%S%.f", strict=False)
