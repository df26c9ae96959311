"""A look at a window that has closed: its counts, its rows, and the labels that have come, beside what the
version's package refers to.
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from mlops_ray.data import labels, prediction_log
from mlops_ray.data.counts import Counts
from mlops_ray.data.prediction_log import ASKED, FEATURE, FLUSH_S
from mlops_ray.errors import MlopsError, one_line
from mlops_ray.monitoring import alarms, attribution, journal, performance, segments
from mlops_ray.monitoring.alarms import Episode, Finding, Look
from mlops_ray.monitoring.drift import Drift, compare
from mlops_ray.monitoring.losses import Split
from mlops_ray.monitoring.performance import Expected
from mlops_ray.monitoring.segments import Segment
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
    # What only machines may read is in the sample, and cuts nothing.
    shown = prediction_log.between(storage, of.model, window.version, *ends).collect_schema().names()
    quality, asked = _quality(storage, of.model, release, rows, shown, (of.looked_at, window.until))
    asked = findings(release, window.counts, drifts, rows) + asked
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
    storage: Storage,
    model: str,
    release: Release,
    rows: pl.DataFrame,
    shown: Collection[str],
    known: tuple[float, float],
) -> tuple[dict[str, Any], list[Finding]]:
    """The metrics of rows by estimate, those of labels that came between two instants, and what is worse.

    Segments are those of columns that are `shown`.
    """
    expected = release.expected
    if expected is None:
        return {}, []
    estimated, number, measured, labelled, split = {}, 0, {}, 0, None
    told: list[Segment] = []
    try:
        errors = _errors(release, expected, rows)
        estimated, number = _estimate(expected, rows, errors), rows.height
        told += expected.segments(_columns(expected, rows.select(shown)), _answers(rows), errors)
        reach = known[1] - LABELS_REACH_S, known[1]
        log = prediction_log.between(storage, model, release.version, *reach)
        cut_by = (place + name for name in expected.cuts for place in (FEATURE, ASKED))
        true = labels.labelled(log, labels.new(storage, model, *known), cut_by)
        measured, labelled = measure(expected, true), true.height
        if labelled:
            values = true[labels.LABEL].to_numpy(), _answers(true)
            told += expected.labelled_segments(_columns(expected, true), *values)
            split = _split(storage, model, release, expected, true, reach)
    except (MlopsError, OSError, ValueError, pl.exceptions.PolarsError) as error:
        # What can be known of the rest is not held up.
        logger.error("the quality of %s is not known (%s)", model, one_line(error))
    found = performance.realised(expected, measured, labelled)
    if split is not None:
        found = [
            replace(each, evidence=f"{each.evidence}; {split.sentence(expected.decides)}")
            if each.matters
            else each
            for each in found
        ]
    said = {
        "estimated": estimated,
        "rows": number,
        "realised": measured,
        "labelled": labelled,
        "reference": {
            how: {name: figure.value for name, figure in figures.items()}
            for how, figures in (("estimated", expected.estimated), ("realised", expected.measured))
        },
        "segments": segments.document(expected.decides, told),
        "split": split and split._asdict(),
    }
    asked = performance.findings(expected, estimated, number) + found
    return said, asked + segments.findings(expected.decides, told)


def _split(
    storage: Storage,
    model: str,
    release: Release,
    expected: Expected,
    true: pl.DataFrame,
    reach: tuple[float, float],
) -> Split | None:
    """What of the loss of labelled rows is what; what was expected of many of them, some say."""
    rows = true
    if expected.task == "regression":
        named = true.gather_every(max(1, true.height // performance.MOST_ROWS))
        rows = prediction_log.rows_of(storage, model, release.version, *reach, named)
    estimates = _estimate(expected, rows, _errors(release, expected, rows))
    return expected.split(true[labels.LABEL].to_numpy(), _answers(true), estimates)


def _columns(expected: Expected, rows: pl.DataFrame) -> dict[str, pl.Series]:
    """The columns that rows are cut by, as far as these have them."""
    at = {name: [p + name for p in (FEATURE, ASKED) if p + name in rows.columns] for name in expected.cuts}
    return {name: rows[places[0]] for name, places in at.items() if places}


def measure(expected: Expected, labelled: pl.DataFrame) -> dict[str, float]:
    """The metrics of predictions that have their labels; those left out that these rows do not tell."""
    if labelled.is_empty():
        return {}
    return expected.measure(labelled[labels.LABEL].to_numpy(), _answers(labelled))


def _answers(rows: pl.DataFrame) -> Values:
    return rows["prediction"].to_numpy()


def _estimate(expected: Expected, rows: pl.DataFrame, errors: dict[str, Values]) -> dict[str, float]:
    """The metrics that these rows of the log will have."""
    return {} if rows.is_empty() else expected.estimate(_answers(rows), errors)


def _errors(release: Release, expected: Expected, rows: pl.DataFrame) -> dict[str, Values]:
    """Of a regression's rows the errors that are expected of each, by metric."""
    errors: dict[str, Values] = {}
    if expected.task == "regression" and not rows.is_empty():
        matrix = release.package.encoder.transform(features(release.package, rows))
        inputs = performance.error_inputs(matrix, _answers(rows))
        for metric in expected.estimated:
            model = release.package.errors(metric)
            if model is not None:
                errors[metric] = Booster(model).predict(inputs).astype(np.float64)
    return errors


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
