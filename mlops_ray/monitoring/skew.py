"""Are the features that were served those of the histories, computed again as in training?

A sample of the log's rows is computed from what each history knew when the row was answered. The log says up
to when all was known (the watermark), and when it was answered: what the history knew at any moment between
the two may have been served, since a store is brought up some time after a commit. A value that is none of
these, nor what the history says now, was never right. So data that come late, a store that lags behind, and
an answer that falls together with a commit are no skew.

Only features that are read from histories are looked at: others are made of the request by the same code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from mlops_ray.config import Policy
from mlops_ray.data.prediction_log import ASKED, FEATURE
from mlops_ray.features import history
from mlops_ray.features.commits import COMMITTED_AT, DELETED
from mlops_ray.features.definitions import FeatureSet, Stored, ViewTable
from mlops_ray.features.history import History, Snapshot
from mlops_ray.features.lookup import Values, read_features
from mlops_ray.features.resample import EVENT_TIME, KNOWN_AT
from mlops_ray.instants import EARLIEST, LATEST, MICROSECOND, to_micros
from mlops_ray.pages import cut, plain
from mlops_ray.policy import require_here
from mlops_ray.registry.package import Package
from mlops_ray.schema import INSTANT
from mlops_ray.storage import Storage

#: Rows that are computed again, drawn at random, lest a rhythm of the rows hide what is wrong: a fault of one
#: row in fifty is in two of them in 91 of 100 looks.
SAMPLE = 200
#: A replica and whoever commits may have clocks that differ by so much.
CLOCKS = timedelta(minutes=1)
#: Values differ that are further apart, relative to the larger one: a few roundings to float32 (2⁻²⁴ each).
RELATIVE = 1e-6
#: Rows of a history that are held at most, and how many when each counts as often as it is looked at:
#: together some hundred megabytes.
MOST_HELD, MOST_VERSIONS = 2_000_000, 500_000
#: A history of more rows is not looked through after each window: it takes seconds for each ten million.
MOST_ROWS = 50_000_000
#: Moments that every row is computed at: of the watermark, of the answer, and now. Others where none fits.
ENDS = 3

#: What is ours about a row of the log; no column of a user's begins so.
AT, WATERMARK, FROM, TO, SIZE = "_at", "_watermark", "_from", "_to", "_size"
ROW, ASK, AS_OF, SINCE, BEGIN, END = "_row", "_ask", "_as_of", "_since", "_earliest", "_latest"

Flags = npt.NDArray[np.bool_]


class Skew(NamedTuple):
    """A feature: of how many rows it was computed again, in how many it differs, and one of them in words."""

    column: str
    rows: int
    differ: int
    example: str = ""


def policies(package: Package) -> list[Policy]:
    """Those of the sources that a version was made from."""
    kept = package.manifest["training_set"].get("policies", {})
    return [Policy.model_validate(policy) for policy in kept.values()]


def snapshots(storage: Storage, package: Package) -> dict[str, Snapshot]:
    """The histories that a model's features are read from, by source, as they stand now.

    Raises `PolicyError` where this machine may not touch them, `DataError` where there is none.
    """
    require_here(policies(package))
    folder = storage.root / "features"
    return {view.source: History.of(folder, view).snapshot() for view in package.feature_set.tables}


def compare(
    features: FeatureSet,
    held: Mapping[str, Snapshot],
    rows: pl.DataFrame,
    hidden: frozenset[str] = frozenset(),
    clocks: timedelta = CLOCKS,
) -> list[Skew]:
    """The features that these rows of the log have from histories, beside those computed again.

    `hidden` are columns of the log whose values nobody may see. A row of which too little is known to say, or
    for which there is no room, is left out. Raises `StorageError` where a history cannot be read.
    """
    hidden |= {ASKED + column.name for column in features.request.columns if column.hidden}
    hidden |= {FEATURE + column.name for column in features.columns if column.hidden}
    asked = _asked(features, rows, hidden)
    found = []
    for view, on, wanted in features.reads:
        logged = tuple(feature for feature in wanted if FEATURE + feature.name in asked.columns)
        snapshot = held[view.source]
        if logged and not asked.is_empty() and snapshot.rows <= MOST_ROWS:
            found += _of_table(asked, _Table(snapshot, on, logged, features), hidden, clocks)
    return found


def _asked(features: FeatureSet, rows: pl.DataFrame, hidden: frozenset[str]) -> pl.DataFrame:
    """Some rows of the log, in no order: what was asked, as the features' keys and time are called."""
    names = dict.fromkeys([features.time, *(name for f in features.stored for name in f.on)])
    lacking = {"watermark", *(ASKED + name for name in names)} - set(rows.columns)
    if lacking or rows.is_empty():
        return pl.DataFrame()
    # A machine-only value that is not known stands there like one that is missing.
    needed = ["watermark", "at", "prediction", ASKED + features.time]
    needed += [ASKED + name for name in names if ASKED + name in hidden]
    some = rows.drop_nulls(needed).filter(pl.col("prediction").is_not_nan())
    some = some.sample(min(some.height, SAMPLE), shuffle=True, seed=0)
    request = features.request
    typed = [request.cast(some[ASKED + name], request.column(name)).alias(name) for name in names]
    served = [name for name in some.columns if name.startswith(FEATURE)]
    when = [pl.col("at").alias(AT), pl.col("watermark").alias(WATERMARK)]
    return some.select(*when, *served).hstack(typed).drop_nulls(features.time)


# ---------------------------------------------------------------- one table


@dataclass(frozen=True)
class _Table:
    """A history, what its keys are called in a request, and the features that are read by them."""

    snapshot: Snapshot
    on: tuple[str, ...]
    wanted: tuple[Stored, ...]
    features: FeatureSet

    @property
    def view(self) -> ViewTable:
        return self.snapshot.view

    @property
    def columns(self) -> list[str]:
        return sorted({feature.of for feature in self.wanted})

    @property
    def reach(self) -> timedelta | None:
        """How far before P rows lie that count, with the interval in which they do; `None`: of any age."""
        if any(feature.is_unbounded for feature in self.wanted):
            return None
        most = max(self.features.reach_us(feature) for feature in self.wanted)
        return timedelta(microseconds=most + (self.view.every_us or 0)) + MICROSECOND

    def versions(self, asked: pl.DataFrame) -> pl.LazyFrame:
        """All that was stored of the entities of these rows, as far as it counts, and since when it was."""
        first, last = asked[END].min(), asked[END].max()
        assert isinstance(first, datetime)
        assert isinstance(last, datetime)
        begin = EARLIEST if self.reach is None or first - EARLIEST < self.reach else first - self.reach
        rows = history.versions(self.snapshot, asked, self.columns, (begin, last))
        return rows.with_columns(pl.max_horizontal(KNOWN_AT, COMMITTED_AT).alias(SINCE))

    def values(self, asks: pl.DataFrame, versions: pl.DataFrame) -> dict[str, Values]:
        """The features of each of the asks, as the history stood at its `AS_OF`: by the code of training."""
        own = replace(self.view, keys=(ASK, *self.view.keys))
        pairs = asks.select(ASK, *self.view.keys, AS_OF, BEGIN, END)
        keys = list(self.view.keys)
        # In the order of their files, as training reads them.
        on = {"on": keys, "how": "inner"} if keys else {"how": "cross"}
        rows = pairs.join(versions, **on, maintain_order="left_right")
        rows = rows.filter(pl.col(SINCE) <= pl.col(AS_OF))
        counts = (pl.col(EVENT_TIME) > pl.col(BEGIN)).fill_null(True) & (pl.col(EVENT_TIME) <= pl.col(END))
        touched = rows.filter(counts).select(own.identity).unique()
        rows = rows.join(touched, on=list(own.identity), how="semi", nulls_equal=True, maintain_order="left")
        table = history.table(rows, own, self.columns, strict=self.features.strict)
        wanted = [replace(feature, on=own.keys) for feature in self.wanted]
        return read_features(asks, table, own, wanted, self.features)


def _of_table(asked: pl.DataFrame, of: _Table, hidden: frozenset[str], clocks: timedelta) -> list[Skew]:
    moment = pl.col(of.features.time) - timedelta(microseconds=of.features.horizon_us)
    keys = [pl.col(name).alias(key) for name, key in zip(of.on, of.view.keys, strict=True)]
    begin = pl.lit(None, INSTANT) if of.reach is None else moment - of.reach
    asked = asked.with_columns(*keys, begin.alias(BEGIN), moment.alias(END))
    asked, versions = _affordable(_between(asked, of, clocks), of)
    if asked.is_empty():
        return []
    asks = _at_ends(asked)
    values = of.values(asks, versions)
    place = asks[ROW].to_numpy()
    right = {f.name: _any(_same(asked, f, values[f.name], place), place, asked.height) for f in of.wanted}
    told = np.ones(asked.height, np.bool_)
    suspects = np.flatnonzero(~np.logical_and.reduce(list(right.values())))
    if len(suspects):
        more, told[suspects] = _at_others(asked[suspects], versions, of)
        if not more.is_empty():
            others = of.values(more, versions)
            places = suspects[more[ROW].to_numpy()]
            for feature in of.wanted:
                same = _same(asked, feature, others[feature.name], places)
                right[feature.name] |= _any(same, places, asked.height)
    # Of each row the second of the three: what was known when it was answered.
    then = {name: _at(found, np.arange(1, len(asks), ENDS)) for name, found in values.items()}
    return [_skew(asked, of, f.name, right[f.name], told, then[f.name], hidden) for f in of.wanted]


def _between(asked: pl.DataFrame, of: _Table, clocks: timedelta) -> pl.DataFrame:
    """The rows with the first and the last moment whose knowledge may have been served (`_from`, `_to`).

    Those are left out that were answered before the history began: it was made anew since.
    """
    watermark = asked[WATERMARK].min()
    assert isinstance(watermark, datetime)
    begin, least = _beginnings(of.snapshot, watermark)
    since = pl.lit(least).cast(INSTANT) if of.view.back_loaded else pl.col(WATERMARK)
    since = pl.min_horizontal(since, AT)
    until = pl.col(AT) + clocks
    return asked.with_columns(since.alias(FROM), until.alias(TO)).filter(pl.col(TO) >= begin)


def _beginnings(snapshot: Snapshot, watermark: datetime) -> tuple[datetime, datetime]:
    """When the first row was stored, and from when on everything that a back-load's clock had reached was.

    The clock of a back-load is that of its rows, and says nothing of when they came.
    """
    files = [file for bucket in snapshot.buckets.values() for file in bucket.files]
    rows = pl.scan_parquet(files, hive_partitioning=False, glob=False)
    since = pl.max_horizontal(KNOWN_AT, COMMITTED_AT)
    known = pl.col(KNOWN_AT)
    if not snapshot.view.back_loaded:
        begin = rows.select(pl.col(COMMITTED_AT).min()).collect().item()
        return begin, watermark
    steps = rows.select(pl.col(EVENT_TIME).unique().sort().diff().median()).collect().item() or timedelta()
    every = timedelta(microseconds=snapshot.view.every_us or 0)
    # A resampled table's clock is a step ahead of its newest row; the usual step may have been longer then.
    reached = pl.lit(watermark).cast(INSTANT) - (2 * max(steps, every) if every else timedelta())
    newest = since.filter(known >= pl.min_horizontal(reached, known.max())).min()
    begin, least = rows.select(pl.col(COMMITTED_AT).min(), newest.alias(SINCE)).collect().row(0)
    return begin, least


def _affordable(asked: pl.DataFrame, of: _Table) -> tuple[pl.DataFrame, pl.DataFrame]:
    """As many of the rows as there is room for, and all versions of what they read."""
    if asked.is_empty():
        return asked, pl.DataFrame()
    keys = list(of.view.keys)
    entities = asked.unique(keys, keep="first", maintain_order=True) if keys else asked.head(1)
    some = _sized(entities, of).filter(pl.col(SIZE).cum_sum() <= MOST_HELD)
    if some.is_empty():
        return asked.clear(), pl.DataFrame()
    if keys:
        asked = asked.join(some, on=keys, how="semi", nulls_equal=True, maintain_order="left")
    versions = _recent(asked, of.versions(asked).collect(), of)
    asked = _sized(asked, of, versions.lazy())
    return asked.filter(pl.col(SIZE).cum_sum() * ENDS <= MOST_VERSIONS), versions


def _sized(asked: pl.DataFrame, of: _Table, versions: pl.LazyFrame | None = None) -> pl.DataFrame:
    """The rows with the number of versions of their entity."""
    rows = of.versions(asked) if versions is None else versions
    if not of.view.keys:
        return asked.with_columns(pl.lit(rows.select(pl.len()).collect().item(), pl.Int64).alias(SIZE))
    sizes = rows.group_by(of.view.keys).agg(pl.len().cast(pl.Int64).alias(SIZE)).collect()
    return asked.join(sizes, on=list(of.view.keys), how="left", maintain_order="left").with_columns(
        pl.col(SIZE).fill_null(0)
    )


def _recent(asked: pl.DataFrame, versions: pl.DataFrame, of: _Table) -> pl.DataFrame:
    """Without what no latest value looks back to: it lies before a row that was in force at all moments."""
    if of.reach is not None:
        return versions
    keys, view, every = list(of.view.keys), of.view, timedelta(microseconds=of.view.every_us or 0)
    ends = [pl.col(END).min(), pl.col(FROM).min()]
    of_each = asked.group_by(keys).agg(ends) if keys else asked.select(ends)
    on: dict[str, Any] = {"on": keys, "how": "left"} if keys else {"how": "cross"}
    rows = versions.join(of_each, **on, maintain_order="left")
    lasts = (pl.len().over(view.identity) == 1) & ~pl.col(DELETED) & (pl.col(SINCE) <= pl.col(FROM))
    lasts &= pl.col(EVENT_TIME) + every <= pl.col(END)
    if of.features.strict:
        lasts &= pl.col(KNOWN_AT) <= pl.col(END)
    edge = pl.col(EVENT_TIME).filter(lasts).max()
    most = timedelta(microseconds=max(of.features.reach_us(feature) for feature in of.wanted))
    begin = pl.min_horizontal("_edge", pl.col(END) - most) - every
    rows = rows.with_columns((edge.over(keys) if keys else edge).alias("_edge"))
    counts = pl.col("_edge").is_null() | (pl.col(EVENT_TIME) >= begin)
    touched = rows.filter(counts).select(view.identity).unique()
    return versions.join(touched, on=list(view.identity), how="semi", nulls_equal=True, maintain_order="left")


def _at_ends(asked: pl.DataFrame) -> pl.DataFrame:
    """Each row three times: as known at the watermark, when it was answered, and now."""
    moments = pl.concat_list(FROM, TO, pl.lit(LATEST).cast(INSTANT)).alias(AS_OF)
    return asked.with_row_index(ROW).with_columns(moments).explode(AS_OF).with_row_index(ASK)


def _at_others(suspects: pl.DataFrame, versions: pl.DataFrame, of: _Table) -> tuple[pl.DataFrame, Flags]:
    """The rows once for each moment in between at which something of their entity changed.

    And which of the rows that is all of, since there is room.
    """
    keys = list(of.view.keys)
    rows = suspects.with_row_index(ROW)
    news = versions.select(*keys, pl.col(SINCE).alias(AS_OF)).unique()
    every = rows.join(news, on=keys, how="inner") if keys else rows.join(news, how="cross")
    every = every.filter(pl.col(AS_OF) > pl.col(FROM), pl.col(AS_OF) < pl.col(TO)).sort(ROW, AS_OF)
    cost = every.group_by(ROW).agg(pl.col(SIZE).sum()).sort(ROW)
    room = cost.filter(pl.col(SIZE).cum_sum() <= MOST_VERSIONS)
    told = np.ones(suspects.height, np.bool_)
    told[cost.join(room, on=ROW, how="anti")[ROW].to_numpy()] = False
    return every.join(room, on=ROW, how="semi", maintain_order="left").with_row_index(ASK), told


# ---------------------------------------------------------------- values


def _same(asked: pl.DataFrame, feature: Stored, found: Values, place: npt.NDArray[Any]) -> Flags:
    """Whether the values that were served, at these places, are those that were found."""
    served = asked[FEATURE + feature.name].gather(place)
    if isinstance(found, np.ndarray):
        numbers = served.cast(pl.Float64).fill_null(float("nan")).to_numpy()
        close: Flags = np.isclose(numbers, found, rtol=RELATIVE, atol=0.0, equal_nan=True)
        return close
    same: Flags = served.cast(found.dtype).eq_missing(found).to_numpy()
    return same


def _any(flags: Flags, place: npt.NDArray[Any], height: int) -> Flags:
    """Which places have a flag that is set."""
    found = np.zeros(height, np.bool_)
    found[place[flags]] = True
    return found


def _at(found: Values, places: npt.NDArray[np.int64]) -> list[Any]:
    return found[places].tolist() if isinstance(found, np.ndarray) else found.gather(places).to_list()


def _skew(
    asked: pl.DataFrame,
    of: _Table,
    name: str,
    right: Flags,
    told: Flags,
    then: Sequence[Any],
    hidden: frozenset[str],
) -> Skew:
    served = asked[FEATURE + name]
    if FEATURE + name in hidden:
        # Of two requests that have one name the log does not know which machine-only value is whose.
        told = told & served.is_not_null().to_numpy()
    wrong = np.flatnonzero(told & ~right)
    if not len(wrong) or FEATURE + name in hidden:
        return Skew(name, int(told.sum()), len(wrong))
    at = int(wrong[0])
    said = f"{_said(served[at])} instead of {_said(then[at])}"
    return Skew(name, int(told.sum()), len(wrong), said + _whose(asked, of, at, hidden))


def _whose(asked: pl.DataFrame, of: _Table, at: int, hidden: frozenset[str]) -> str:
    """Of which entity and time a row is, as far as that may be seen."""
    named = zip(of.on, of.view.keys, strict=True)
    keys = [_said(asked[key][at]) for name, key in named if ASKED + name not in hidden]
    text = f" for {', '.join(keys)}" if keys else ""
    if ASKED + of.features.time in hidden:
        return text
    return f"{text} at {asked[of.features.time][at]:%Y-%m-%dT%H:%M}"


def _said(value: Any) -> str:
    if value is None or value != value:
        return "nothing"
    return f"{value:.6g}" if isinstance(value, float) else plain(cut(str(value)))


def newest(held: Mapping[str, Snapshot]) -> dict[str, float]:
    """When the newest row of each source happened, in seconds since the epoch."""
    ends = {name: max(bucket.end for bucket in found.buckets.values()) for name, found in held.items()}
    return {name: to_micros(end) / 1e6 for name, end in ends.items()}
