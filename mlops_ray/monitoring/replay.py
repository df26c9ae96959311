"""A past period through the monitor, as if it were live: the same windows, looks, and alarms."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl

from mlops_ray.data import prediction_log
from mlops_ray.data.counts import Counts
from mlops_ray.data.labels import KNOWN_AT, LABEL
from mlops_ray.data.prediction_log import ASKED, FEATURE
from mlops_ray.instants import from_micros
from mlops_ray.monitoring import integrity, logged, looks, performance, seasons
from mlops_ray.monitoring.alarms import Alarms, Budget
from mlops_ray.monitoring.deltas import PREDICTION
from mlops_ray.monitoring.drift import MIN_ROWS
from mlops_ray.monitoring.looks import Evidence, Release
from mlops_ray.monitoring.quality import Labelled
from mlops_ray.monitoring.state import Closed
from mlops_ray.registry.models import Values

SECOND_US = 1_000_000


@dataclass(frozen=True)
class Replayed:
    """The looks, as the journal has them, and the alarms that they opened."""

    looks: list[dict[str, Any]]
    alarms: Alarms


def log(
    release: Release, rows: pl.DataFrame, predict: Callable[[pl.DataFrame], Values], delay_us: int
) -> pl.DataFrame:
    """What the prediction log of rows would hold that were asked for, each at its time, with what came true.

    `rows` have the columns of a request, every feature, and a label, which is known so long after the time
    that it is of. Sorted by when they were answered: the model's horizon before the time.
    """
    features, time = release.package.feature_set, pl.col(release.package.feature_set.time)
    asked = [pl.col(name).alias(ASKED + name) for name in features.request.names if name in rows.columns]
    given = [pl.col(name).alias(FEATURE + name) for name in features.names]
    answers = pl.Series(PREDICTION, predict(rows.select(features.names)))
    return rows.select(
        (time - pl.duration(microseconds=features.horizon_us)).alias("at"),
        answers,
        *asked,
        *given,
        pl.col(LABEL).cast(pl.Float64),
        (time + pl.duration(microseconds=delay_us)).alias(KNOWN_AT),
    ).sort("at", maintain_order=True)


def replay(
    release: Release,
    rows: pl.DataFrame,
    window_s: float,
    budget: Budget,
    learned: pl.DataFrame | None = None,
    tested: pl.DataFrame | None = None,
) -> Replayed:
    """What the monitor would have seen of a `log` whose rows were answered by one version, and done.

    `learned` are rows that the version was made from, where such could change places, `tested` those that it
    was tested on (`known`).
    """
    alarms = Alarms(float("-inf"))
    seen: list[dict[str, Any]] = []
    shown = _shown(release, rows)
    for window, inside in _windows(release, rows, window_s):
        looked_at = alarms.looked_at if seen else window.since
        true = _came(rows.filter(pl.col(LABEL).is_not_null()), looked_at, window.until)
        week = _sample(rows.filter(_between("at", window.until - seasons.WEEK_S, window.until)))
        share = budget.share(window.until - looked_at)
        sample = _sample(inside)
        whole = integrity.judge(window, sample, seen, why="a replay computes features itself")
        given = Evidence(sample, week, shown, Labelled(true, _sample(true)), whole, learned, tested)
        found = looks.judge(release, window, share, given)
        alarms.take(found.look, release.version)
        seen.append(looks.entry(window, found))
    return Replayed(seen, alarms)


def _shown(release: Release, rows: pl.DataFrame) -> list[str]:
    """The columns that people may see."""
    features = release.package.feature_set
    hidden = {c.name for c in (*features.columns, *features.request.columns) if c.hidden}
    return [name for name in rows.columns if name.removeprefix(ASKED).removeprefix(FEATURE) not in hidden]


def _sample(rows: pl.DataFrame) -> pl.DataFrame:
    return prediction_log.spread(rows.lazy(), performance.MOST_ROWS)


def _windows(release: Release, rows: pl.DataFrame, window_s: float) -> Iterator[tuple[Closed, pl.DataFrame]]:
    """The windows that close, each after its time and with rows enough, and their rows; as the state does."""
    if rows.is_empty():
        return
    at, last = (value.timestamp() for value in (rows["at"].min(), rows["at"].max()))  # type: ignore[union-attr]
    since = at
    while at <= last:
        at += window_s
        inside = rows.filter(_between("at", since, at))
        if inside.height >= MIN_ROWS:
            counts = Counts.empty(release.reference.specs)
            counts.update(logged.features(release.package, inside).with_columns(inside[PREDICTION]))
            yield Closed(release.version, since, at, counts), inside
            since = at


def _came(rows: pl.DataFrame, after: float, until: float) -> pl.DataFrame:
    """The rows whose label came in (after, until], as `labels.new` has them, of those that were answered."""
    first, last = (from_micros(int(at * SECOND_US)) for at in (after, until))
    return rows.filter(pl.col(KNOWN_AT) > first, pl.col(KNOWN_AT) <= last, pl.col("at") < last)


def _between(name: str, since: float, until: float) -> pl.Expr:
    ends = [from_micros(int(at * SECOND_US)) for at in (since, until)]
    return (pl.col(name) >= ends[0]) & (pl.col(name) < ends[1])
