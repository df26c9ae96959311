"""Event times: from the stamps of a file to UTC microseconds (semantics.md section 1).

A naive stamp is read in a declared time zone. The hour that a clock change repeats is told apart by file
order; an instant that does not exist is refused, never rolled over.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from mlops_ray.config import EventTime
from mlops_ray.errors import DataError
from mlops_ray.instants import FIRST_US, LAST_US
from mlops_ray.schema import INSTANT, in_calendar, read_iso, read_stamps

UNPARSEABLE = "not_a_time"
NONEXISTENT = "nonexistent_time"
AMBIGUOUS = "ambiguous_time"
#: Whole numbers from here on are taken for times since 1970, in the unit by which they lie in 1973 to 5138.
EPOCHS = {10**8: "s", 10**11: "ms", 10**14: "us", 10**17: "ns"}
#: What stands in the columns of a time that lies in several.
PARTS = ("%Y", "%m", "%d", "%H", "%M")
#: Parts of a format that read a time of day.
TIME_OF_DAY = re.compile("%[-_0]?[HIklsTRXrc+]|%[:#]*z")


@dataclass
class Clock:
    """Reads the event times of one file, block after block in file order.

    `has_offsets` tells which kind of ISO stamps the file has, once one was read. `seen` remembers, for each
    entity, the last local stamp inside an hour that was repeated, and whether the second pass through it has
    begun; `newest` each entity's last row, `descent` where rows went back in time first, and `has_repeated`
    whether any stamp is a repeated one.

    >>> clock = Clock(EventTime(column="t", timezone="Europe/Berlin", ambiguous="infer"))
    >>> times, _ = clock.read(pl.DataFrame({"t": ["2016-10-30 02:30", "2016-10-30 02:00"]}), keys=())
    >>> times.dt.strftime("%H:%M").to_list()
    ['00:30', '01:00']
    """

    spec: EventTime
    has_offsets: bool | None = None
    seen: dict[tuple[object, ...], tuple[Any, bool]] = field(default_factory=dict)
    newest: pl.DataFrame | None = None
    descent: DataError | None = None
    has_repeated: bool = False

    def read(self, frame: pl.DataFrame, keys: Sequence[str]) -> tuple[pl.Series, pl.Series]:
        """The instants of a block (UTC, null where there is none), and the name of the problem with each.

        `keys` are the entity columns; rows of different entities may be interleaved in a file. Raises
        `DataError` where no stamp can be read without a time zone or unit that `spec` lacks, and where
        `ambiguous: infer` meets rows that are not in ascending order.
        """
        stamps = self._parse(frame)
        local, ambiguous = self._localize(stamps, frame, keys)
        instants = in_calendar(local.dt.convert_time_zone("UTC")).alias("event_time")
        if not instants.null_count():
            return instants, pl.repeat(None, len(instants), dtype=pl.String, eager=True).alias("problem")
        given = _given(frame, self.spec)
        unparseable = given & (stamps.is_null() | (local.is_not_null() & instants.is_null()))
        problems = pl.select(
            pl.when(unparseable)
            .then(pl.lit(UNPARSEABLE))
            .when(ambiguous)
            .then(pl.lit(AMBIGUOUS))
            .when(stamps.is_not_null() & local.is_null())
            .then(pl.lit(NONEXISTENT))
            .when(~given)
            .then(pl.lit("required"))
        ).to_series()
        return instants, problems.alias("problem")

    def _parse(self, frame: pl.DataFrame) -> pl.Series:
        """Stamps as written: naive, or with a zone where the text says one."""
        spec = self.spec
        if spec.columns is not None:
            parts = [pl.col(name).cast(pl.Int64, strict=False) for name in spec.columns]
            text = frame.select(pl.concat_str(parts, separator="-")).to_series()
            return read_stamps(text, "-".join(PARTS[: len(parts)]))
        assert spec.column is not None
        raw = frame[spec.column]
        if raw.dtype in (pl.Datetime, pl.Date):
            zone = getattr(raw.dtype, "time_zone", None)
            return in_calendar(raw.cast(pl.Datetime("us", zone), strict=False))
        if spec.unit is not None:
            return _from_number(raw, spec.unit)
        if spec.format is not None:
            return _exact(raw.cast(pl.String), spec.format)
        return self._iso(frame, raw.cast(pl.String).str.strip_chars())

    def _iso(self, frame: pl.DataFrame, text: pl.Series) -> pl.Series:
        """ISO 8601 text; all stamps of a file carry an offset, or none does: the first one tells."""
        stamps = {kind: read(text) for kind, read in _ISO.items() if self.has_offsets in (None, kind)}
        if self.has_offsets is None:
            first = {kind: read.is_not_null().arg_true().first() for kind, read in stamps.items()}
            found = {int(row): kind for kind, row in first.items() if isinstance(row, int)}
            if not found:
                self._refuse_numbers(frame, text)
                return stamps[False]
            self.has_offsets = found[min(found)]
        return stamps[self.has_offsets]

    def _refuse_numbers(self, frame: pl.DataFrame, text: pl.Series) -> None:
        """Raises `DataError` where all the stamps with which a file begins are numbers, which need a unit."""
        given = (text != "").fill_null(False).arg_true()
        numbers = text[given].cast(pl.Float64, strict=False).abs()
        if not (len(given) and (numbers.is_finite() & (numbers >= min(EPOCHS))).fill_null(False).all()):
            return
        unit = next(unit for least, unit in reversed(EPOCHS.items()) if numbers[0] >= least)
        raise self._error(
            frame,
            int(given[0]),
            f"the stamps are numbers; say event_time.unit, here perhaps unit: {unit}, or event_time.format",
            f" (the first is {text[given][0]})",
        )

    def _localize(
        self, stamps: pl.Series, frame: pl.DataFrame, keys: Sequence[str]
    ) -> tuple[pl.Series, pl.Series]:
        """Instants of stamps, and which of them a clock change makes ambiguous: none that names its zone."""
        zone = self.spec.timezone
        unambiguous = pl.repeat(False, len(stamps), eager=True)
        if stamps.dtype != pl.Datetime("us"):
            return stamps, unambiguous
        if stamps.is_null().all():
            return stamps.dt.replace_time_zone("UTC"), unambiguous
        if zone is None:
            row = int(stamps.is_not_null().arg_true()[0])
            raise self._error(
                frame,
                row,
                "the stamps carry no offset, and event_time names no timezone; add e.g. timezone: UTC",
                f" (the first is {stamps[row]!s})",
            )
        first = stamps.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
        second = stamps.dt.replace_time_zone(zone, ambiguous="latest", non_existent="null")
        repeated = (first != second).fill_null(False)
        if self.spec.ambiguous == "raise":
            return first.set(repeated, None), repeated
        self._require_ascending(first, second, frame, keys)
        is_second = self._second_pass(stamps, frame, keys, repeated)
        return first.zip_with(~is_second, second), unambiguous

    def _require_ascending(
        self, first: pl.Series, second: pl.Series, frame: pl.DataFrame, keys: Sequence[str]
    ) -> None:
        """Raises `DataError` where an entity's rows go back in time, in a file with repeated stamps."""
        # `first` and `second` are the two readings of each stamp. A row goes back where even its second lies
        # before the first of the row before.
        rows = frame.select(
            entity=pl.struct(keys) if keys else pl.lit(0),
            row=pl.int_range(pl.len(), dtype=pl.Int64),
            first=first,
            second=second,
        ).filter(pl.col("first").is_not_null())
        rows = rows if self.newest is None else pl.concat([self.newest, rows])
        back = rows.filter(pl.col("second") < pl.col("first").shift(1).over("entity"))
        if back.height and self.descent is None:
            self.descent = self._not_ascending(frame, int(back["row"][0]))
        self.newest = rows.group_by("entity").last()
        self.has_repeated = self.has_repeated or bool((first != second).any())
        if self.descent is not None and self.has_repeated:
            raise self.descent

    def _second_pass(
        self, stamps: pl.Series, frame: pl.DataFrame, keys: Sequence[str], repeated: pl.Series
    ) -> pl.Series:
        """Whether a repeated stamp lies in the hour's second pass: its entity's clock went back before it."""
        where = repeated.arg_true()
        entities = frame.select(keys)[where].rows() if keys else [()] * len(where)
        flags = []
        for row, entity, stamp in zip(where, entities, stamps.gather(where), strict=True):
            day = (*entity, stamp.date())
            last, second = self.seen.get(day, (None, False))
            if second and stamp < last:
                raise self._not_ascending(frame, row)
            second = second or (last is not None and stamp <= last)
            self.seen[day] = (stamp, second)
            flags.append(second)
        result = pl.repeat(False, len(stamps), dtype=pl.Boolean, eager=True)
        return result.scatter(where, flags) if flags else result

    def _not_ascending(self, frame: pl.DataFrame, row: int) -> DataError:
        return self._error(
            frame,
            row,
            "event_time.ambiguous: infer reads the hour that a clock change repeats by the order of rows, "
            "and here they go back in time; put the rows of each entity in ascending order",
        )

    def _error(self, frame: pl.DataFrame, row: int, message: str, said: str = "") -> DataError:
        """An error at a row of a block, with its place in the file where the block tells it."""
        file, number = (frame[n][row] if n in frame.columns else None for n in ("_file", "_row"))
        return DataError(message, file=file, row=number, column="+".join(columns_of(self.spec)), said=said)


def columns_of(spec: EventTime) -> tuple[str, ...]:
    """The columns of a file that its event times are read from."""
    return spec.columns or ((spec.column,) if spec.column else ())


def _given(frame: pl.DataFrame, spec: EventTime) -> pl.Series:
    return frame.select(
        pl.all_horizontal(
            pl.col(name).is_not_null() & (pl.col(name) != "" if frame[name].dtype == pl.String else True)
            for name in columns_of(spec)
        ).alias("given")
    )["given"]


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
    return in_calendar(micros.set(~is_reached, None).cast(INSTANT))


def _exact(raw: pl.Series, format: str) -> pl.Series:
    if TIME_OF_DAY.search(format):
        return read_stamps(raw, format)
    dates = raw.str.strptime(pl.Date, format, strict=False)
    return in_calendar(dates.cast(pl.Datetime("us"), strict=False))


def _naive_iso(text: pl.Series) -> pl.Series:
    """Naive stamps: whole seconds by the quick way, which reads nearly all, others by the slow one."""
    sample = text.drop_nulls().head(1).to_list()
    stamps = read_stamps(text, "%Y-%m-%dT%H:%M:%S" if sample and "T" in sample[0] else "%Y-%m-%d %H:%M:%S")
    others = (stamps.is_null() & text.is_not_null()).arg_true()
    if not len(others):
        return stamps
    exact = _exact_iso(text.gather(others))
    return exact if len(others) == len(text) else stamps.scatter(others, exact)


def _exact_iso(text: pl.Series) -> pl.Series:
    """Dates and minutes are whole seconds too."""
    text = text.str.replace(" ", "T", literal=True).str.replace(r"(?s)\A.{10}\z", "${0}T00:00:00")
    return read_stamps(text.str.replace(r"\A[^:]*:[^:]*\z", "${0}:00"), "%Y-%m-%dT%H:%M:%S%.f")


#: How ISO stamps are read: with an offset, and without.
_ISO = {True: read_iso, False: _naive_iso}
