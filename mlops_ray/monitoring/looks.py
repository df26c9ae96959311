"""A look at a window that has closed: its counts, its rows, and the labels that have come, beside what the
version's package refers to.
"""

import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from mlops_ray.data import labels, prediction_log
from mlops_ray.data.counts import Counts
from mlops_ray.data.prediction_log import ASKED, FEATURE, FLUSH_S
from mlops_ray.errors import MlopsError, one_line
from mlops_ray.monitoring import alarms, attribution, joint, journal, performance
from mlops_ray.monitoring.alarms import Episode, Finding, Look
from mlops_ray.monitoring.drift import Drift, compare
from mlops_ray.monitoring.performance import Expected
from mlops_ray.monitoring.state import Closed, ModelState, Outlook
from mlops_ray.registry import package as packages
from mlops_ray.registry.booster import Booster
from mlops_ray.registry.models import Values
from mlops_ray.registry.package import Package
from mlops_ray.schema import DTYPES
from mlops_ray.storage import Storage

#: Where the release of a model says which package a version is (written by serving.record).
RELEASES = "release"
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
    clock: frozenset[str]
    package: Package
    reference: Counts
    #: What its labelled rows say; `None` in a package that was made before they did.
    expected: Expected | None

    @property
    def has_seasons(self) -> bool:
        """Whether its rows are entities in the course of time, rather than rows that could change places."""
        return bool(self.package.feature_set.tables)


class Seen(NamedTuple):
    """What a look at a window of the live version found, the PSI of each column, and the quality."""

    look: Look
    columns: dict[str, float | None]
    quality: dict[str, Any]


def see(storage: Storage, of: Outlook, window: Closed) -> Seen | None:
    """Looks at a closed window; `None` of a version that is not live, which its release judges.

    It changes nothing, and what it costs is bounded by columns, by `performance.MOST_ROWS`, and by labels.
    """
    release = releases(storage, of.model).get(window.version)
    if release is None or not release.is_champion:
        return None
    share = of.budget.share(window.until - of.looked_at)
    drifts = compare(release.reference, window.counts, release.clock, share)
    ends = (window.since, window.until)
    rows = prediction_log.sample(storage, of.model, window.version, *ends, performance.MOST_ROWS)
    quality, asked = _quality(storage, of.model, release, rows, (of.looked_at, window.until))
    asked = findings(release, window.counts, drifts, rows) + asked
    if not release.has_seasons:
        known = features(release.package, rows)
        asked += joint.findings(storage.root, release.package, release.clock, rows.columns, known)
    columns = {drift.column: drift.psi_corrected for drift in drifts}
    return Seen(alarms.look(window.until, share, asked), columns, quality)


def settle(storage: Storage, state: ModelState, window: Closed, seen: Seen | None) -> Episode | None:
    """Writes down a window and what was seen of it, and takes it in; the episode that it opened, if any."""
    model, version = state.model, window.version
    entry: dict[str, Any] = {"version": version, "since": window.since, "until": window.until}
    journal.append(storage, model, journal.WINDOWS, entry | {"counts": window.counts.to_json()})
    going = state.alarms.open if state.alarms else None
    opened = None
    if seen is not None and state.alarms is not None:
        entry |= {"rows": window.counts.rows, "columns": seen.columns, "quality": seen.quality}
        journal.append(storage, model, journal.LOOKS, entry | seen.look.to_json())
        state.quality = seen.quality and {"version": version, "until": window.until, **seen.quality}
        opened = state.alarms.take(seen.look, version)
    state.unseen = [other for other in state.unseen if other is not window]
    if opened is not None:
        said = "; ".join(what["evidence"] for _, what in opened.ranked)
        logger.warning("alarm: %s, version %s: %s", model, version, said)
    if going is not None and going.resolved is not None:
        logger.warning("resolved: the alarm of %s, version %s", model, going.version)
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
            _amounts(rows, drift.column),
            has_seasons=release.has_seasons,
        )
        for drift in drifts
        if drift.untested is None
    ]


def _amounts(rows: pl.DataFrame, name: str) -> Values | None:
    """The values of a feature in the log, where they are numbers."""
    found = [
        p + name for p in (FEATURE, ASKED) if p + name in rows.columns and rows[p + name].dtype.is_numeric()
    ]
    return rows[found[0]].cast(pl.Float64).fill_null(float("nan")).to_numpy() if found else None


def _quality(
    storage: Storage, model: str, release: Release, rows: pl.DataFrame, known: tuple[float, float]
) -> tuple[dict[str, Any], list[Finding]]:
    """The metrics of rows by estimate, those of labels that came between two instants, and what is worse."""
    expected = release.expected
    if expected is None:
        return {}, []
    estimated, number, measured, labelled = {}, 0, {}, 0
    try:
        estimated, number = _estimate(release, expected, rows), rows.height
        reach = prediction_log.between(storage, model, release.version, known[1] - LABELS_REACH_S, known[1])
        true = labels.labelled(reach, labels.new(storage, model, *known))
        measured, labelled = measure(expected, true), true.height
    except (MlopsError, OSError, ValueError, pl.exceptions.PolarsError) as error:
        # What can be known of the rest is not held up.
        logger.error("the quality of %s is not known (%s)", model, one_line(error))
    told = {
        "estimated": estimated,
        "rows": number,
        "realised": measured,
        "labelled": labelled,
        "reference": {
            how: {name: figure.value for name, figure in figures.items()}
            for how, figures in (("estimated", expected.estimated), ("realised", expected.measured))
        },
    }
    asked = performance.findings(expected, estimated, number)
    return told, asked + performance.realised(expected, measured, labelled)


def measure(expected: Expected, labelled: pl.DataFrame) -> dict[str, float]:
    """The metrics of predictions that have their labels; those left out that these rows do not tell."""
    if labelled.is_empty():
        return {}
    return expected.measure(labelled[labels.LABEL].to_numpy(), labelled["prediction"].to_numpy())


def _estimate(release: Release, expected: Expected, rows: pl.DataFrame) -> dict[str, float]:
    """The metrics that these rows of the log will have."""
    if rows.is_empty():
        return {}
    answers = rows["prediction"].to_numpy()
    errors = {}
    if expected.task == "regression":
        matrix = release.package.encoder.transform(features(release.package, rows))
        inputs = performance.error_inputs(matrix, answers)
        for metric in expected.estimated:
            model = release.package.errors(metric)
            if model is not None:
                errors[metric] = Booster(model).predict(inputs).astype(np.float64)
    return expected.estimate(answers, errors)


def features(package: Package, rows: pl.DataFrame) -> pl.DataFrame:
    """The model's features as the log has them; those that it lacks are null."""
    columns = []
    for column in package.feature_set.columns:
        name = next((p + column.name for p in (FEATURE, ASKED) if p + column.name in rows.columns), None)
        dtype = DTYPES[column.type]
        value = pl.lit(None, dtype) if name is None else pl.col(name).cast(dtype)
        columns.append(value.alias(column.name))
    return rows.select(columns)


def releases(storage: Storage, model: str) -> dict[str, Release]:
    """By version: the champion, the one before it and a challenger, as far as their packages can be read."""
    document = storage.read_json(RELEASES, f"{model}.json") or {}
    found = {}
    for place in ("challenger", "previous", "champion"):
        entry = document.get(place)
        if entry:
            try:
                known = _known(storage.root / entry["package"], entry["digest"])
            except (OSError, MlopsError, ValueError, KeyError):
                continue
            version, clock = entry["version"], frozenset(entry["clock"])
            found[version] = Release(version, place == "champion", clock, *known)
    return found


@lru_cache(maxsize=8)
def _known(folder: Path, digest: str) -> tuple[Package, Counts, Expected | None]:
    """A package never changes, so it is read once; a replica, which answers by it, looks who signed it."""
    package = packages.read(folder, digest=digest)
    expected = package.expected
    known = None if expected is None else Expected.from_json(expected)
    return package, Counts.from_json(package.reference), known


def episodes(state: ModelState) -> list[dict[str, Any]]:
    """What people read of the episodes, the newest first; what was found stands in the order of its harm."""
    found = state.alarms.episodes if state.alarms else []
    return [
        {
            "version": episode.version,
            "opened": episode.opened,
            "resolved": episode.resolved,
            "found": [{"about": about, **what} for about, what in episode.ranked],
        }
        for episode in reversed(found)
    ]
