"""A look at a window that has closed: its counts, its rows, and the labels that have come, beside what the
version's package refers to.
"""

import io
import logging
from collections.abc import Collection
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from mlops_ray.data import labels, prediction_log
from mlops_ray.data.counts import Counts
from mlops_ray.data.prediction_log import FLUSH_S
from mlops_ray.errors import MlopsError, safe
from mlops_ray.monitoring import (
    alarms,
    attribution,
    integrity,
    joint,
    journal,
    known,
    logged,
    performance,
    quality,
    seasons,
)
from mlops_ray.monitoring.alarms import Alarms, Episode, Finding, Look
from mlops_ray.monitoring.drift import Drift, compare
from mlops_ray.monitoring.performance import Expected
from mlops_ray.monitoring.quality import Labelled
from mlops_ray.monitoring.seasons import Watch
from mlops_ray.monitoring.state import Closed, ModelState, Outlook
from mlops_ray.registry import package as packages
from mlops_ray.registry.package import Package
from mlops_ray.storage import Storage

#: Where the release of a model says which package a version is, and how its project is deployed (written by
#: serving.record); what the loop of retraining did (cluster.loop).
RELEASES, SETTINGS, LOOP = "release", "release/settings", "loop"
#: How long after its end a window is looked at: its last rows are in the log by then.
SETTLED_S = 2 * FLUSH_S
#: How far back a prediction may lie whose label comes.
LABELS_REACH_S = 60 * 86_400.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Release:
    """A version as the release document has it: whether it is live, and its package."""

    version: str
    is_champion: bool
    package: Package
    reference: Counts
    #: What its labelled rows say; `None` in a package that was made before they did.
    expected: Expected | None
    #: What is usual of its entities (`seasons.learn`), where its rows are a course of time.
    usual: pl.DataFrame | None = None

    @property
    def has_seasons(self) -> bool:
        """Whether its rows are entities in the course of time, rather than rows that could change places."""
        return self.usual is not None

    @property
    def clock(self) -> frozenset[str]:
        """Features that only tell the time: no drift is asked of them."""
        return self.package.feature_set.clock

    @property
    def watch(self) -> Watch:
        return Watch.of(self.package.feature_set, self.package.origin.get("keys", ()))


class Seen(NamedTuple):
    """What a look at a window of the live version found, the PSI of each column, and the quality.

    `integrity` says whether the data are whole (`integrity.figures`); `outside` is the share of the window's
    hours, of all entities and columns, that the reference does not know, `None` where it has no seasons.
    """

    look: Look
    columns: dict[str, float | None]
    quality: dict[str, Any]
    integrity: dict[str, Any]
    outside: float | None


class Evidence(NamedTuple):
    """What a look at a window has at hand beside its counts.

    `rows` are of its log, `week` those of the seven days up to its end, where the version has seasons, both
    at most about `performance.MOST_ROWS`; `shown` the columns of the log that people may see; `true` the rows
    whose label came since the last look; `whole` the figures of whether the data are whole, and what is asked
    of them (`integrity.see`); `learned` rows that the version was made from, where such could change places;
    `tested` those that it was tested on, where they are kept.
    """

    rows: pl.DataFrame
    week: pl.DataFrame
    shown: Collection[str]
    true: Labelled | None
    whole: tuple[dict[str, Any], list[Finding]]
    learned: pl.DataFrame | None
    tested: pl.DataFrame | None


def see(storage: Storage, of: Outlook, window: Closed) -> Seen | None:
    """Looks at a closed window; `None` of a version that is not live, which its release judges.

    It changes nothing, and what it costs is bounded by columns, by `performance.MOST_ROWS`, and by labels.
    """
    release = releases(storage, of.model).get(window.version)
    if release is None or not release.is_champion:
        return None
    share = of.budget.share(window.until - of.looked_at)
    ends = (window.since, window.until)
    rows = prediction_log.sample(storage, of.model, window.version, *ends, performance.MOST_ROWS)
    week = rows
    if release.usual is not None and window.until - window.since < seasons.WEEK_S:
        since = window.until - seasons.WEEK_S
        week = prediction_log.sample(
            storage, of.model, window.version, since, window.until, performance.MOST_ROWS
        )
    # What only machines may read is in the sample, and cuts nothing.
    log = prediction_log.between(storage, of.model, window.version, *ends).collect_schema().names()
    shown = [name for name in rows.columns if name in log]
    true = _labelled(storage, of.model, release, (of.looked_at, window.until))
    whole = integrity.see(storage, of, release.package, window, rows)
    learned = None if release.has_seasons else known.learned(storage.root, release.package)
    tested = known.tested(storage.root, release.package)
    return judge(release, window, share, Evidence(rows, week, shown, true, whole, learned, tested))


def judge(release: Release, window: Closed, share: float, given: Evidence) -> Seen:
    """What a window shows that may spend a share of the budget."""
    rows, (figures, faults) = given.rows, given.whole
    drifts = compare(release.reference, window.counts, release.clock, share)
    asked = findings(release, window.counts, drifts, rows.select(given.shown))
    outside, of_entities = _of_entities(release, share, given, datetime.fromtimestamp(window.until, UTC))
    asked += of_entities
    if given.learned is not None:
        of_model = logged.features(release.package, rows)
        asked += joint.findings(release.package, given.learned, rows.columns, of_model)
    asked = [_weighed(release, each) for each in asked]
    said: dict[str, Any] = {}
    if release.expected is not None:
        said, more = quality.judge(
            release.package, release.expected, rows, given.shown, given.true, given.tested
        )
        asked += more
    columns = {drift.column: drift.psi_corrected for drift in drifts}
    watches = release.usual is not None and not release.usual.is_empty()
    is_whole = bool(of_entities) or not watches
    look = alarms.look(window.until, share, asked + faults, is_whole=is_whole)
    return Seen(look, columns, said, figures, outside)


def _of_entities(
    release: Release, share: float, given: Evidence, until: datetime
) -> tuple[float | None, list[Finding]]:
    """The share of a window's hours outside the reference, and whether entities are as is usual of them.

    By what people may see.
    """
    if release.usual is None:
        return None, []
    watch = release.watch
    try:
        now, before = (
            logged.named(release.package, part.select(name for name in part.columns if name in given.shown))
            for part in (given.rows, given.week)
        )
        compared, outside = seasons.compare(watch, release.usual, now, before, until)
    except (ValueError, OverflowError, pl.exceptions.PolarsError) as error:
        # What can be known of the rest is not held up.
        logger.error("the entities of %s are not compared (%s)", release.package.name, safe(error))
        return None, []
    return outside, seasons.findings(watch, compared, share)


def _weighed(release: Release, found: Finding) -> Finding:
    """A column's drift does as much harm as the model makes of the column."""
    if release.expected is None or not found.column:
        return found
    return replace(found, harm=found.harm * release.expected.weight(found.column))


def entry(window: Closed, seen: Seen) -> dict[str, Any]:
    """The line of a look in the journal."""
    return {
        "version": window.version,
        "since": window.since,
        "until": window.until,
        "rows": window.counts.rows,
        "columns": seen.columns,
        "quality": seen.quality,
        "integrity": seen.integrity,
        "outside": seen.outside,
        **seen.look.to_json(),
    }


def settle(storage: Storage, state: ModelState, window: Closed, seen: Seen | None) -> Episode | None:
    """Writes down a window and what was seen of it, and takes it in; the episode that it opened, if any."""
    model, version = state.model, window.version
    ends = {"version": version, "since": window.since, "until": window.until}
    journal.append(storage, model, journal.WINDOWS, ends | {"counts": window.counts.to_json()})
    # What cannot be written down is not taken in, and is looked at again.
    taken = deepcopy(state.alarms)
    going = taken.open if taken else None
    opened = None
    if seen is not None and taken is not None:
        opened = taken.take(seen.look, version)
        ended = {} if going is None or going.resolved is None else {"resolved": vars(going)}
        journal.append(storage, model, journal.LOOKS, entry(window, seen) | ended)
        state.alarms = taken
        state.quality = seen.quality and {"version": version, "until": window.until, **seen.quality}
    state.unseen = [other for other in state.unseen if other is not window]
    if opened is not None:
        # What was found, and no evidence of it, which may quote rows.
        said = ", ".join(about for about, _ in opened.ranked)
        logger.warning("alarm: %s, version %s: %s", model, version, said)
    if going is not None and going.resolved is not None:
        logger.warning("resolved: the alarm of %s, version %s: %s", model, going.version, going.why)
    return opened


def findings(release: Release, current: Counts, drifts: list[Drift], rows: pl.DataFrame) -> list[Finding]:
    """The columns that were tested, each with what its difference looks like; `rows` are of the window.

    Of rows in the course of time only what no calendar makes is found: a night is not a year.
    """
    ours, theirs = release.reference.by_name, current.by_name
    return [
        attribution.finding(
            drift,
            *ours[drift.column],
            theirs[drift.column][1],
            logged.amounts(rows, drift.column),
            has_seasons=release.has_seasons,
        )
        for drift in drifts
        if drift.untested is None
    ]


def _labelled(storage: Storage, model: str, release: Release, known: tuple[float, float]) -> Labelled | None:
    """The rows of a version whose label came between two instants; `None` where they cannot be read."""
    if release.expected is None:
        return None
    ends = known[1] - LABELS_REACH_S, known[1]
    cut_by = [place + name for name in release.expected.cuts for place in logged.PLACES]
    try:
        log = prediction_log.between(storage, model, release.version, *ends)
        rows = labels.labelled(log, labels.new(storage, model, *known), cut_by)
        if release.expected.task == "classification":
            return Labelled(rows, rows)
        some = prediction_log.spread(rows.lazy(), performance.MOST_ROWS)
        return Labelled(rows, prediction_log.rows_of(storage, model, release.version, *ends, some))
    except (MlopsError, OSError, ValueError, pl.exceptions.PolarsError) as error:
        # What can be known of the rest is not held up.
        logger.error("the labels of %s are not known (%s)", model, safe(error))
        return None


def releases(storage: Storage, model: str) -> dict[str, Release]:
    """By version: the champion, the one before it and a challenger, as far as their packages can be read."""
    document = storage.read_json(RELEASES, f"{model}.json") or {}
    found = {}
    for place in ("challenger", "previous", "champion"):
        entry = document.get(place)
        if entry:
            version, folder = entry["version"], storage.root / entry["package"]
            try:
                found[version] = released(version, folder, entry["digest"], is_champion=place == "champion")
            except (OSError, MlopsError, ValueError, KeyError):
                continue
    return found


def released(version: str, folder: Path, digest: str, *, is_champion: bool = True) -> Release:
    """A version and what its package says; raises `PackageError` where that cannot be read."""
    return Release(version, is_champion, *_known(folder, digest))


#: Of so many models the live version, the one before it and a challenger: pages are about all of them.
@lru_cache(maxsize=64)
def _known(folder: Path, digest: str) -> tuple[Package, Counts, Expected | None, pl.DataFrame | None]:
    """A package never changes, so it is read once; a replica, which answers by it, looks who signed it."""
    package = packages.read(folder, digest=digest)
    expected = package.expected
    known = None if expected is None else Expected.from_json(expected)
    usual = None if package.seasons is None else pl.read_parquet(io.BytesIO(package.seasons))
    return package, Counts.from_json(package.reference), known, usual


def told(alarms: Alarms | None) -> list[dict[str, Any]]:
    """What people read of the episodes, the newest first; what was found stands in the order of its harm."""
    found = alarms.episodes if alarms else []
    return [
        {
            "version": episode.version,
            "opened": episode.opened,
            "resolved": episode.resolved,
            "why": episode.why,
            "found": [{"about": about, **what} for about, what in episode.ranked],
        }
        for episode in reversed(found)
    ]
