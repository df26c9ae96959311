"""Entities in the course of time: what one has in a window, beside what is usual of it at such a time.

A night is not a year, and the rows of a day are not independent. What an entity usually has at such an hour
of such a day (of the week, a public holiday, a working day between holidays) is taken off; how far the rest
may be from nothing say days of that kind, which lie a week apart, and whole weeks. Asked is about the window,
and about the seven days up to its end: a day that is odd once is no drift, and a week smooths what days vary.
Days of rest are not asked about by themselves, nor on one: what they show can wait for the week, and a day
when somebody is there. Faults of the data do not wait (`attribution`).

What entities have in common (the weather, the course of a year) is taken off each of them, and asked about
once: what one of them does alone is told the sooner, and what all do is told as that. It is the median of how
far each is from what is usual, in its own deviations of a day.
"""

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple, Self
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
from scipy import stats

from mlops_ray.config import CALENDAR_KINDS
from mlops_ray.features import on_request
from mlops_ray.features.definitions import FeatureSet, Stored
from mlops_ray.monitoring.alarms import Finding, Kind
from mlops_ray.monitoring.attribution import CONVERSIONS, MILD
from mlops_ray.monitoring.deltas import PREDICTION

#: Days of a kind, or weeks, from which on the reference says what is usual; with fewer it lies outside.
FEWEST = 4
#: A week is one with so many known days.
FEWEST_OF_A_WEEK = 4
WEEK_S = 7 * 86_400.0
#: Entities that are watched one by one: those of the most rows, at most; and columns times entities.
MOST_ENTITIES, MOST_SERIES = 200, 10_000
#: Of entities that have so many days, on average, the rows are a course of time, and could not change places.
RECURRING = 10
#: A difference matters from so many of the entity's own standard deviations on: what a PSI of 0.02 is.
FLOOR = 0.14
#: Of so many entities, at least, something can be in common.
PEERS = 5
#: Numbers are kept as 32 bits: of a constant so much of itself is no difference.
ROUNDING = 1e-5
#: Of an entity's hours that the reference must know, for them to be compared with it.
KNOWN = 0.5
#: Entities that a sentence names.
NAMED = 3
#: Public holidays so many days apart make holidays of the working days between them.
NEAR_DAYS = 7
#: What windows make of values that is of another kind than the values.
OTHER_AMOUNTS = ("count", "sum", "distinct_count", "std")

#: What is called a fault must be as unlikely as this; and entities' ratios to what is usual, how far apart.
FAULTY, ALIKE = 1e-3, 0.2

#: Names that stand beside those of features, which may be called anything.
ENTITY, TIME = "whose row", "time of the row"
#: How far from a look, beside a column's age, a time may lie that is asked for.
REACH = timedelta(days=400)
#: What all have in common stands as one entity more; no caller's is called so.
ALL = "(all)"
#: Days of the week are 1 (Monday) to 7.
SATURDAY, SUNDAY, HOLIDAY, BETWEEN = 6, 7, 8, 9
REST = (SUNDAY, HOLIDAY)
DAYS = (
    *("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    *("public holiday", "working day between holidays"),
)
SLOT = (ENTITY, "kind", "hour")
#: What `learn` gives.
USUAL = pl.Schema(
    {
        "column": pl.String(),
        ENTITY: pl.String(),
        "kind": pl.Int8(),
        "hours": pl.List(pl.Int8()),
        "means": pl.List(pl.Float32()),
        "day": pl.Float64(),
        "an_hour": pl.Float64(),
        "days": pl.Int32(),
        "week": pl.Float64(),
        "weeks": pl.Int32(),
        "unit": pl.Float64(),
        "within": pl.Float64(),
        "thin": pl.Float64(),
        "scale": pl.Float64(),
    }
)
#: What `compare` gives.
COMPARED = pl.Schema(
    {
        "column": pl.String(),
        ENTITY: pl.String(),
        "kind": pl.Int8(),
        "value": pl.Float64(),
        "expected": pl.Float64(),
        "alone": pl.Float64(),
        "spread": pl.Float64(),
        "blocks": pl.Int32(),
        "scale": pl.Float64(),
        "matters": pl.Boolean(),
        "p": pl.Float64(),
    }
)


@dataclass(frozen=True)
class Calendar:
    """What tells a day: the time zone, the country of its holidays, and what a row's time is shifted by."""

    timezone: str = "UTC"
    country: str | None = None
    shift_us: int = 0

    @classmethod
    def of(cls, features: FeatureSet) -> Self:
        """That of the model's own features of the calendar; UTC without holidays where it has none."""
        ours = [each for each in features.computed if each.kind in CALENDAR_KINDS]
        if not ours:
            return cls()
        countries = [each.country for each in ours if each.country is not None]
        return cls(ours[0].timezone, countries[0] if countries else None, ours[0].shift_us)

    def placed(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows with the local `date`, the `hour` and the `kind` of the day of their `TIME`.

        >>> from datetime import UTC, datetime
        >>> rows = pl.DataFrame({TIME: [datetime(2016, 10, 3, 23, tzinfo=UTC)]})
        >>> Calendar("Europe/Berlin", "DE").placed(rows).row(0)[1:]
        (datetime.date(2016, 10, 4), 1, 2)
        """
        local = (pl.col(TIME) + pl.duration(microseconds=self.shift_us)).dt.convert_time_zone(self.timezone)
        dated = rows.with_columns(local.dt.date().alias("date"), local.dt.hour().alias("hour"))
        kinds = self.kinds(dated["date"].unique().to_list())
        known = pl.DataFrame(
            {"date": kinds.keys(), "kind": kinds.values()}, {"date": pl.Date, "kind": pl.Int8}
        )
        return dated.join(known, "date", how="left", maintain_order="left")

    def kind(self, at: datetime) -> int:
        """What kind of day it is at an instant; no row's time, which may be the end of an interval."""
        day = at.astimezone(ZoneInfo(self.timezone)).date()
        return self.kinds([day])[day]

    def kinds(self, days: Sequence[date]) -> dict[date, int]:
        """What kind of day each is: 1 to 7 of the week, `HOLIDAY`, or `BETWEEN`.

        >>> fridays = [date(2016, 5, 6), date(2016, 5, 13)]  # the first is after Ascension Day
        >>> list(Calendar(country="DE").kinds(fridays).values())
        [9, 5]
        """
        years = {day.year + near for day in days for near in (-1, 0, 1)} if self.country else set()
        off = sorted(day for year in years for day in on_request.public_holidays(self.country, year))
        return {day: _kind(day, off) for day in days}


def _kind(day: date, off: Sequence[date]) -> int:
    at = bisect.bisect_left(off, day)
    if at < len(off) and off[at] == day:
        return HOLIDAY
    weekday = day.isoweekday()
    if weekday < SATURDAY and 0 < at < len(off):
        is_near = (off[at] - off[at - 1]).days <= NEAR_DAYS
        around = [day + timedelta(days=by) for by in (-1, 1)]
        if is_near or all(each.isoweekday() >= SATURDAY or each in off[at - 1 : at + 1] for each in around):
            return BETWEEN
    return weekday


class Watch(NamedTuple):
    """What is watched of rows: who they are of, their time, and the columns.

    `lags_us` is how long before a row's time a column's value is of, in microseconds.
    """

    keys: tuple[str, ...]
    time: str
    lags_us: Mapping[str, int]
    calendar: Calendar

    @classmethod
    def of(cls, features: FeatureSet, keys: Sequence[str]) -> Self:
        """What is watched of a model: nothing where people may not see who the entities are.

        Of what one column of a source is made into, the newest: the others say the same later.
        """
        hidden = {column.name for column in features.request.columns if column.hidden}
        shown = {c.name for c in features.columns if not (c.hidden or c.is_discrete or c.type == "datetime")}
        newest: dict[tuple[Any, ...], Stored] = {}
        for each in features.stored:
            if each.name in shown:
                mark = (each.source, each.on, each.of, each.agg if each.agg in OTHER_AMOUNTS else None)
                newest[mark] = min(newest.get(mark, each), each, key=lambda f: (f.over_us, f.ago_us))
        lags = {each.name: each.ago_us or features.horizon_us for each in newest.values()}
        lags |= {c.name: 0 for c in features.computed if c.name in shown - features.clock}
        watched = {} if hidden & set(keys) else lags | {PREDICTION: 0}
        return cls(tuple(keys), features.time, watched, Calendar.of(features))

    def entities(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows with one name of their entity, and their time; without keys all are of one."""
        parts = [pl.col(key).cast(pl.String) for key in self.keys]
        name = pl.concat_str(parts, separator=", ") if parts else pl.lit("all")
        known = [name for name in self.lags_us if name in rows.columns]
        named = rows.select(name.alias(ENTITY), pl.col(self.time).alias(TIME), *known)
        return named.filter(pl.col(ENTITY) != ALL)


def recurs(watch: Watch, rows: pl.DataFrame) -> bool:
    """Whether the entities of these rows come again, day after day."""
    days = watch.entities(rows).group_by(ENTITY).agg(pl.col(TIME).dt.date().n_unique().alias("days"))
    return bool(days.height) and days["days"].sum() / days.height >= RECURRING


def learn(watch: Watch, rows: pl.DataFrame, answered: pl.DataFrame, fewest: int = FEWEST) -> pl.DataFrame:
    """What is usual, by column, entity and kind of day, of no fewer days than `fewest`.

    `answered` are rows that the model did not learn from, with its `prediction`. Of the result, `means` are
    what the `hours` of such a day have; `an_hour`, `day` and `week` how far an hour, the mean of a day of
    this kind, and that of a week were from what the others have and all have in common (root mean square);
    `days` and `weeks` their numbers, `unit` how far days are with what is in common, `scale` the entity's
    standard deviation; `within` the variance of rows of one hour, `thin` one over their number. Of `ALL`,
    everything is in such units.
    """
    named, told = watch.entities(rows), watch.entities(answered)
    most = max(1, min(MOST_ENTITIES, MOST_SERIES // max(1, len(watch.lags_us))))
    counted = named[ENTITY].drop_nulls().value_counts().sort("count", ENTITY, descending=[True, False])
    kept = pl.col(ENTITY).is_in(counted[ENTITY][:most].implode())
    found = [pl.DataFrame(schema=USUAL)]
    for name in watch.lags_us:
        given = told if name == PREDICTION else named
        if name in given.columns:
            usual = _usual(_hours(watch, given.filter(kept), name), max(fewest, FEWEST))
            found.append(usual.with_columns(column=pl.lit(name)).select(*USUAL).cast(USUAL))
    return pl.concat(found)


def _usual(cells: pl.DataFrame, fewest: int) -> pl.DataFrame:
    count = pl.len().over(SLOT)
    others = (pl.col("value").sum().over(SLOT) - pl.col("value")) / (count - 1)
    left = cells.filter(count >= fewest).with_columns(rest=pl.col("value") - others)
    units = left.group_by(ENTITY, "date").agg(pl.col("rest").mean()).group_by(ENTITY).agg(unit=_size("rest"))
    left = left.join(units, ENTITY)
    of_all = _of_all(left)
    common = of_all.select("date", "hour", common="value")
    left = left.join(common, ["date", "hour"], how="left")
    left = left.with_columns(rest=pl.col("rest") - pl.col("common").fill_null(0.0) * pl.col("unit"))
    spreads = _spreads(pl.concat([left.select(of_all.columns), of_all.with_columns(value=pl.lit(0.0))]))
    own = _scales(cells).join(units, ENTITY)
    return spreads.join(pl.concat([own, _scale_of_all(own)]), ENTITY).sort(ENTITY, "kind")


def _of_all(cells: pl.DataFrame) -> pl.DataFrame:
    """What the entities have in common, hour by hour with enough of them, as cells of one entity."""
    of_each = cells.filter(pl.col("unit") > 0).with_columns(value=pl.col("rest") / pl.col("unit"))
    found = of_each.group_by("kind", "date", "hour").agg(pl.col("value", "n").median(), pl.len().alias("of"))
    found = found.filter(pl.col("of") >= PEERS)
    return found.select(pl.lit(ALL).alias(ENTITY), "kind", "date", "hour", "value", "n", rest="value")


def _scales(cells: pl.DataFrame) -> pl.DataFrame:
    """How much an entity varies, and rows of one hour of it."""
    more = pl.col("n") - 1
    within = ((pl.col("noise").fill_null(0.0) * more).sum() / more.sum()).fill_nan(0.0)
    return cells.group_by(ENTITY).agg(
        scale=pl.col("value").std(), within=within, thin=(1 / pl.col("n")).mean()
    )


def _scale_of_all(scales: pl.DataFrame) -> pl.DataFrame:
    """That of the middle entity, in its deviations of a day; no row where none varies.

    A median of so many varies by π / 2 as much as their mean does.
    """
    own = scales.filter(pl.col("unit") > 0)
    scale = (pl.col("scale") / pl.col("unit")).median()
    within = (pl.col("within") / pl.col("unit") ** 2).median() * (math.pi / 2) / pl.len()
    found = own.select(pl.lit(ALL).alias(ENTITY), scale, within, pl.col("thin").median(), unit=pl.lit(1.0))
    return found.unique().select(scales.columns)


def _spreads(left: pl.DataFrame) -> pl.DataFrame:
    """What hours usually have, and how far the `rest` of hours, days and weeks is from nothing."""
    rest = pl.col("rest").mean()
    days = left.group_by(ENTITY, "kind", "date").agg(rest).group_by(ENTITY, "kind")
    weeks = left.group_by(ENTITY, pl.col("date").dt.truncate("1w")).agg(
        rest, pl.col("date").n_unique().alias("of")
    )
    whole = weeks.filter(pl.col("of") >= FEWEST_OF_A_WEEK).group_by(ENTITY)
    slots = left.group_by(SLOT).agg(pl.col("value").mean()).sort(SLOT)
    means = slots.group_by(ENTITY, "kind").agg(hours=pl.col("hour"), means=pl.col("value"))
    return (
        means.join(days.agg(day=_size("rest"), days=pl.len()), [ENTITY, "kind"])
        .join(left.group_by(ENTITY, "kind").agg(an_hour=_size("rest")), [ENTITY, "kind"])
        .join(whole.agg(week=_size("rest"), weeks=pl.len()).filter(pl.col("weeks") >= FEWEST), ENTITY)
    )


def compare(
    watch: Watch, usual: pl.DataFrame, window: pl.DataFrame, week: pl.DataFrame, until: datetime
) -> tuple[pl.DataFrame, float]:
    """Each column of each entity beside what is usual, in a window `until` then and in seven days up to it.

    `value` and `expected` are means over its hours, `spread` how far such a time is from what is usual, over
    so many `blocks` of the reference; `alone` is what would be usual but for what all have in common, which
    `ALL` has. `kind` is the day that most of a window is, null of a week. `p` is how likely chance makes
    such a difference. Besides comes the share of the window's hours that lie *outside the reference*; an
    entity with more than `KNOWN` of such is left out.
    """
    now, before = (_near(watch, watch.entities(rows), until) for rows in (window, week))
    works = watch.calendar.kind(until) not in REST
    found, unknown, hours = [pl.DataFrame(schema=COMPARED)], 0, 0
    for name in watch.lags_us:
        if name in now.columns:
            of_column = usual.filter(column=name)
            beside = _beside(_hours(watch, now, name), of_column)
            own = beside.filter(pl.col(ENTITY) != ALL)
            unknown, hours = unknown + own["means"].null_count(), hours + own.height
            over = _beside(_hours(watch, before, name), of_column)
            day = _of_window(beside).filter(~pl.col("kind").is_in(REST))
            for part in (day, _of_week(over)) if works else ():
                judged = _judged(part).with_columns(column=pl.lit(name))
                found.append(judged.select(*COMPARED).cast(COMPARED))
    return pl.concat(found), unknown / max(hours, 1)


def _near(watch: Watch, rows: pl.DataFrame, until: datetime) -> pl.DataFrame:
    """Without the rows of times that nobody means; a calendar is made for each year that is asked for."""
    return rows.filter(pl.col(TIME) > until - REACH, pl.col(TIME) < until + REACH)


def _beside(cells: pl.DataFrame, usual: pl.DataFrame) -> pl.DataFrame:
    """Each hour with what is usual in it, null where nobody knows, and with what is in common then."""
    slots = usual.explode("hours", "means").rename({"hours": "hour"})
    slots = slots.with_columns(pl.col("means").cast(pl.Float64))
    found = cells.join(slots, SLOT, how="left").with_columns(rest=pl.col("value") - pl.col("means"))
    of_all = _of_all(found.drop_nulls("rest"))
    common = of_all.select("date", "hour", common="value")
    every = pl.concat([found, of_all.join(slots, SLOT)], how="diagonal")
    every = every.join(common, ["date", "hour"], how="left")
    shared = pl.col("common").fill_null(0.0) * pl.col("unit")
    shift = pl.when(pl.col(ENTITY) == ALL).then(0.0).otherwise(shared)
    return every.with_columns(is_known=pl.col("means").is_not_null(), expected=pl.col("means") + shift)


def _summed(beside: pl.DataFrame, *more: pl.Expr) -> pl.DataFrame:
    """Each entity as a whole, over the hours that are known."""
    known = beside.filter("is_known").group_by(ENTITY)
    sums = known.agg(
        pl.col("value").mean(),
        pl.col("expected").mean(),
        pl.col("means").mean().alias("alone"),
        pl.col("week", "weeks", "scale").first(),
        # Fewer rows in an hour than the reference has vary by more.
        (pl.col("within") * ((1 / pl.col("n")) - pl.col("thin"))).mean().clip(0, None).alias("thinner"),
        pl.len().cast(pl.Int64).alias("hours"),
        *more,
    )
    shares = beside.group_by(ENTITY).agg(pl.col("is_known").mean())
    return sums.join(shares, ENTITY).filter(pl.col("is_known") >= KNOWN).sort(ENTITY)


def _of_window(beside: pl.DataFrame) -> pl.DataFrame:
    """A day varies as days of its kind do, and no less than weeks: that one kind never did is no measure."""
    found = _summed(
        beside, pl.col("day", "an_hour").mean(), pl.col("days").min(), pl.col("kind").mode().min()
    )
    # The mean of a day varies as days do, that of one hour as hours do; what lies between, no less than where
    # hours that follow each other are alike.
    part = ((24 - pl.col("hours")) / 23).clip(0, 1)
    more = (pl.col("an_hour") ** 2 - pl.col("day") ** 2).clip(0, None) * part
    own = (pl.col("day") ** 2 + more).sqrt()
    return found.with_columns(
        spread=_wider(pl.max_horizontal(own, "week")), blocks=pl.min_horizontal("days", "weeks")
    )


def _of_week(beside: pl.DataFrame) -> pl.DataFrame:
    """Seven days, of which some are known."""
    found = _summed(beside, pl.col("date").n_unique().alias("of"))
    return found.filter(pl.col("of") >= FEWEST_OF_A_WEEK).with_columns(
        pl.lit(None, pl.Int8).alias("kind"), spread=_wider(pl.col("week")), blocks=pl.col("weeks")
    )


def _wider(spread: pl.Expr) -> pl.Expr:
    """A spread, by what few rows add."""
    return (spread**2 + pl.col("thinner") / pl.col("hours")).sqrt()


def _judged(found: pl.DataFrame) -> pl.DataFrame:
    value, expected, spread, scale, blocks = (
        found[name].cast(pl.Float64).to_numpy() for name in ("value", "expected", "spread", "scale", "blocks")
    )
    gap = np.abs(value - expected)
    matters = gap > np.maximum(np.nan_to_num(scale) * FLOOR, np.abs(expected) * ROUNDING)
    t = np.divide(gap, spread, out=np.full(len(gap), np.inf), where=spread > 0)
    # Who never saw a change in so many blocks knows no more of the next one (the rule of succession).
    tail = np.where(spread > 0, 2 * stats.t.sf(t, blocks - 1), 1 / (blocks + 1))
    p = np.where(matters & np.isfinite(spread), tail, 1.0)
    return found.with_columns(matters=pl.Series(matters, dtype=pl.Boolean), p=pl.Series(p, dtype=pl.Float64))


def findings(watch: Watch, compared: pl.DataFrame, spent: float) -> list[Finding]:
    """One for each column: is any entity unlike itself, and which; of as many `tests` as were made."""
    return [
        _finding(watch, str(name), found, spent)
        for (name,), found in compared.group_by("column", maintain_order=True)
    ]


def _finding(watch: Watch, name: str, found: pl.DataFrame, spent: float) -> Finding:
    # The window and the week of an entity are two tests.
    ordered = found.sort("p", maintain_order=True)
    worst = ordered.unique(ENTITY, keep="first", maintain_order=True)
    p, tests = float(worst["p"][0]), found.height
    about = f"{name} by {', '.join(watch.keys)}" if watch.keys else f"{name} for its time"
    kind: Kind = "prediction" if name == PREDICTION else "input"
    if not worst["matters"][0]:
        return Finding(about, kind, p, matters=False, tests=tests, column=name)
    is_odd = (pl.col("p") <= max(spent / tests, p)) & pl.col("matters")
    odd, fault = worst.filter(is_odd), _fault(ordered)
    if fault:
        odd = ordered.filter(is_odd & pl.col("kind").is_not_null()).with_columns(expected="alone")
        kind = "data"
    said = [_said(name, each) for each in odd[:NAMED].iter_rows(named=True)]
    said += [f"and {odd.height - NAMED} more"] if odd.height > NAMED else []
    # As PSI grows with a shift: by its square, in standard deviations; of the entities that have it.
    shifts = ((odd["value"] - odd["expected"]) / odd["scale"]).fill_nan(1.0).clip(-1e3, 1e3)
    harm = float((shifts**2).sum() / worst.height)
    return Finding(about, kind, p, True, "; ".join(fault + said), harm, tests=tests, column=name)


def _fault(found: pl.DataFrame) -> list[str]:
    """What makes a window's difference a fault of the data, in words: what no world does to all entities."""
    every = found.filter(pl.col("kind").is_not_null())
    window = every.filter(pl.col(ENTITY) != ALL)
    if not (every["matters"] & (every["p"] <= FAULTY)).any():
        return []
    if window["value"].n_unique() == 1 and window["alone"].n_unique() > 1:
        return ["it stands still"]
    ratios = window.filter(pl.col("alone") != 0).select(pl.col("value") / pl.col("alone")).to_series()
    middle = ratios.median() if len(ratios) >= FEWEST else None
    if not isinstance(middle, float) or not middle > 0 or (ratios / middle - 1).abs().median() > ALIKE:  # type: ignore[operator]
        return []
    factor = min((f for f, shift in CONVERSIONS if not shift), key=lambda f: abs(math.log(middle / f)))
    is_one = abs(math.log(middle / factor)) < ALIKE and not 1 / MILD < factor < MILD
    return [f"it is about {factor:.4g} times what is usual: another unit?"] if is_one else []


def _said(name: str, found: Mapping[str, Any]) -> str:
    usual = f"{found['expected']:.3g} is usual, give or take {found['spread']:.2g}"
    if found[ENTITY] == ALL:
        return _said_of_all(name, found)
    whose = f"{name} of {found[ENTITY]} is {found['value']:.3g}"
    if found["kind"] is None:
        return f"{whose} in seven days; {usual} (of {found['blocks']} weeks)"
    return f"{whose}; on a {DAYS[found['kind'] - 1]} {usual} (of {found['blocks']} such days)"


def _said_of_all(name: str, found: Mapping[str, Any]) -> str:
    way = "above" if found["value"] > 0 else "below"
    lies = f"{name} of all lies {abs(found['value']):.2g} of the deviations of a day {way} what is usual"
    when = "in seven days" if found["kind"] is None else f"on a {DAYS[found['kind'] - 1]}"
    return f"{lies}, {when}; give or take {found['spread']:.2g} (of {found['blocks']})"


def _hours(watch: Watch, named: pl.DataFrame, name: str) -> pl.DataFrame:
    """The mean of a column in each hour of each entity, by the time that its values are of.

    `n` are its rows, `noise` their variance. However often a row is asked for, it is one.
    """
    value = pl.col(name).cast(pl.Float64)
    value = pl.when(value.is_finite()).then(value)
    of = pl.col(TIME) - pl.duration(microseconds=watch.lags_us[name])
    rows = named.select(ENTITY, of.alias(TIME), value.alias("value")).drop_nulls()
    rows = rows.group_by(ENTITY, TIME).agg(pl.col("value").mean())
    of_hours = watch.calendar.placed(rows).group_by(*SLOT, "date")
    return of_hours.agg(pl.col("value").mean(), noise=pl.col("value").var(), n=pl.len().cast(pl.Float64))


def _size(name: str) -> pl.Expr:
    """The root of the mean square."""
    return (pl.col(name) ** 2).mean().sqrt()
