"""What the page asks for, as JSON documents: each made of what others wrote, in a time that does not grow.

Pictures get as many steps as they have room for, whatever lies behind them: of PSI the largest of a step's
windows, of a metric the mean. Nothing here is a row, and of columns for machines only there is no
distribution.
"""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from mlops_ray.cost import holds
from mlops_ray.data.counts import Counts
from mlops_ray.errors import MlopsError, NotFoundError
from mlops_ray.features.definitions import Computed, Stored
from mlops_ray.features.online import OnlineStore
from mlops_ray.features.shelves import ONLINE
from mlops_ray.features.store import in_words
from mlops_ray.instants import DAY_S, to_micros
from mlops_ray.monitoring import callers, journal, looks, period, report
from mlops_ray.monitoring.dashboard import parts, spans
from mlops_ray.monitoring.dashboard.errors import Errors
from mlops_ray.monitoring.dashboard.history import History
from mlops_ray.monitoring.dashboard.spans import Span
from mlops_ray.monitoring.drift import EFFECT_FLOOR, MIN_ROWS, compare
from mlops_ray.monitoring.looks import LOOP, RELEASES, SETTINGS, Release
from mlops_ray.monitoring.state import MINUTES, Watched
from mlops_ray.storage import Storage

#: Steps of the small pictures of the overview, and of a heat map.
SPARKS, CELLS = 60, 120
#: Columns of a heat map, those that moved most; there is a search for the others.
MOST_COLUMNS = 60
#: Windows whose counts are put together for one cell of a heat map.
MOST_MERGED = 800
#: Looks that are read whole for the segments that they wrote down, and the turns of a release that are told.
MOST_WHOLE, MOST_TURNS = 30, 200
#: Of the hours those that are read for the keys that asked: of one version and ten keys a year.
MOST_BYTES = 2**22
#: What a model can be called (`config.Project.project`), as long as a file of the name can be.
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,199}")
#: How long an online store that does not answer is not asked again: other pages wait meanwhile.
AWAY_S = 60.0
#: Documents of other parts: the runs of a model, what it costs.
RUNS = "runs"

Document = dict[str, Any]
Query = Mapping[str, str]


class Views:
    """The documents of a storage; one thread asks."""

    def __init__(self, storage: Storage) -> None:
        self._storage, self._history, self._errors = storage, History(storage), Errors(storage)
        self._away: dict[str, tuple[float, str]] = {}
        self._of_model: dict[str, Callable[[str, Query], Document]] = {
            "": self.model,
            "drift": self.drift,
            "column": self.column,
            "performance": self.performance,
            "alarms": self.alarms,
            "releases": self.releases,
            "features": self.features,
            "runs": self.runs,
            "costs": self.costs,
        }

    def answer(self, path: Sequence[str], query: Query, *, names: bool = False) -> Document:
        """The document at a path: `models`, `models/NAME`, `models/NAME/VIEW`, or `errors`.

        With the names of keys alone where `names` says so. Raises `NotFoundError` where there is none.
        """
        match list(path):
            case ["models"]:
                return self.models(query)
            case ["errors"]:
                return self._errors.search(spans.asked(query, cells=SPARKS), query)
            case ["models", name, *rest] if len(rest) < 2 and "".join(rest) in self._of_model:
                if not self._release(name):
                    raise NotFoundError("no model of this name is live here")
                found = self._of_model["".join(rest)](name, query)
                return found | {"keys": self._keys(name, query)} if names and rest == ["costs"] else found
        raise NotFoundError("there is no such part of the dashboard")

    # ---------------------------------------------------------------- all models

    def models(self, query: Query) -> Document:
        """A row for each model."""
        span = spans.asked(query, cells=SPARKS)
        names = sorted(path.stem for path in self._storage.root.glob(f"{RELEASES}/[!.]*.json"))
        found = [self._row(name, span) for name in names if self._release(name)]
        errors = self._errors.search(span, {"level": "error"})["count"]
        return {"since": span.since, "models": found, "errors": errors}

    def _row(self, name: str, span: Span) -> Document:
        release, state = self._release(name), self._state(name)
        champion, episodes = release["champion"], parts.episodes(state)
        latest = self._history.latest(name)
        return {
            "name": name,
            **{key: champion.get(key) for key in ("version", "state", "since", "family", "task")},
            "previous": (release.get("previous") or {}).get("version"),
            "challenger": parts.challenger(release),
            "traffic": self._traffic(name, state, span),
            "now": parts.per_second(state, time.time()),
            "alarm": parts.going(episodes),
            "alarms": sum(each["opened"] >= span.since for each in episodes),
            "drift": latest and parts.moved(latest),
            "quality": parts.quality(state),
            "cost": (self.cost(name) or {}).get("per_1000"),
        }

    # ---------------------------------------------------------------- one model

    def model(self, name: str, query: Query) -> Document:
        """What is known of a model at a glance: its traffic, its version, what was refused and why."""
        span = spans.asked(query)
        release, state = self._release(name), self._state(name)
        champion = release["champion"]
        watched = dict(state.get("versions", [])).get(champion["version"], {})
        counted = watched.get("traffic", {})
        invalid = [{"column": c, "rule": r, "count": n} for c, r, n in counted.get("invalid", [])]
        return self._row(name, span) | {
            "turns": [each for each in release.get("history", []) if parts.second(each["at"]) >= span.since],
            "metrics": champion.get("metrics", {}),
            "baselines": champion.get("baselines", {}),
            "rejected": counted.get("rejected", {}),
            "invalid": sorted(invalid, key=lambda each: -each["count"]),
            "watched": parts.watched(state),
            "has": {"costs": self.cost(name) is not None},
        }

    def drift(self, name: str, query: Query) -> Document:
        """PSI by column and step, the columns that moved most first; `q` looks for a name."""
        span = spans.asked(query, cells=CELLS)
        groups = parts.grouped(span, self._history.looks(name, span.since))
        sought = query.get("q", "").lower()
        # Looks of a version have the same columns: what is asked of each is asked once.
        named = dict.fromkeys(seen.columns for group in groups for seen in group.looks)
        columns = [c for c in dict.fromkeys(c for names in named for c in names) if sought in c.lower()]
        place = {column: at for at, column in enumerate(columns)}
        places = {names: np.array([place.get(column, -1) for column in names], int) for names in named}
        psi = np.full((len(groups), len(columns)), np.nan)
        found: list[set[str]] = []
        for row, group in zip(psi, groups, strict=True):
            for seen in group.looks:
                at = places[seen.columns]
                mine, known = at[at >= 0], at >= 0
                row[mine] = np.fmax(row[mine], np.frombuffer(seen.psi, np.float32)[known])
            found.append({column for seen in group.looks for column in seen.found})
        peaks = np.fmax.reduce(psi, axis=0, initial=-1.0)
        times = np.array([sum(column in names for names in found) for column in columns])
        tested = np.flatnonzero(np.isfinite(psi).any(axis=0))
        order = tested[np.lexsort((-peaks[tested], -times[tested]))][:MOST_COLUMNS].tolist()
        hidden, release = self._hidden(name), self._champion(name)
        return {
            "at": [[group.since, group.until] for group in groups],
            "windows": [len(group.looks) for group in groups],
            "rows": [sum(seen.rows for seen in group.looks) for group in groups],
            "columns": [
                {
                    "name": columns[at],
                    "psi": parts.rounded(psi[:, at]),
                    "found": [step for step, names in enumerate(found) if columns[at] in names],
                    "is_hidden": columns[at] in hidden,
                }
                for at in order
            ],
            "total": len(tested),
            "untested": sorted({*columns} - {columns[at] for at in tested.tolist()}),
            "has_seasons": release is not None and release.has_seasons,
            "floor": EFFECT_FLOOR,
            "outside": period.mean(seen.outside for group in groups for seen in group.looks),
            "open": self._open(name),
            "hidden": sorted(hidden),
        }

    def column(self, name: str, query: Query) -> Document:
        """The distribution of a column in the windows of a step, beside the reference."""
        column = query.get("column", "")
        if column in self._hidden(name):
            return {"column": column, "is_hidden": True}
        releases = looks.releases(self._storage, name)
        found = self._merged(name, *spans.ends(query)) if "from" in query else self._now(name)
        version, counts, ends, windows = found
        if counts is None or column not in counts.by_name:
            return {"column": column, "is_hidden": False, "labels": [], "windows": 0}
        spec, cells = counts.by_name[column]
        known = {
            "column": column,
            "is_hidden": False,
            "version": version,
            "windows": windows,
            "since": ends[0],
            "until": ends[1],
        }
        release = releases.get(version)
        if release is None or spec not in release.reference.specs:
            return known | {
                "kind": spec.kind,
                "labels": spec.labels,
                "current": report.shares(cells),
                "reference": None,
                "rows": counts.rows,
            }
        one = parts.only(release.reference, column), parts.only(counts, column)
        told = compare(*one, release.clock, exactly=False)
        return known | report.column(told[0], spec, one[0].cells[0], cells) | {"p_holm": None}

    def performance(self, name: str, query: Query) -> Document:
        """Each metric by estimate and by labels, step by step, with bands; the worst segments; the splits."""
        span = spans.asked(query)
        seen = self._history.looks(name, span.since)
        seen = [each for each in seen if each.until <= span.until]
        groups = parts.grouped(span, seen)
        releases = looks.releases(self._storage, name)
        metrics = dict.fromkeys(
            m for each in seen for how in ("estimated", "realised") for m in each.quality.get(how, {})
        )
        champion = self._champion(name)
        expected = champion.expected if champion else None
        last = [self._history.look(name, each) for each in seen[-MOST_WHOLE:]]
        return {
            "at": [[group.since, group.until] for group in groups],
            "metrics": {metric: parts.course(metric, groups, releases, expected) for metric in metrics},
            "decides": expected.decides if expected else next(iter(metrics), None),
            "within": parts.WITHIN,
            "labelled": [sum(each.quality.get("labelled", 0) for each in group.looks) for group in groups],
            "segments": period.segments(last)[: period.MOST_SEGMENTS],
            "splits": period.splits(last),
        }

    def alarms(self, name: str, query: Query) -> Document:
        """The episodes that went on in the span, the newest first, and what was looked at and spent."""
        span = spans.asked(query)
        state = self._state(name)
        episodes, seen = parts.episodes(state), self._history.looks(name, span.since)
        going = [
            e for e in episodes if e["opened"] <= span.until and (e["resolved"] or math.inf) >= span.since
        ]
        return {
            "alarms": [
                each
                | {
                    "found": [
                        what | {"said": period.KINDS.get(what["kind"], what["kind"])}
                        for what in each["found"]
                    ]
                }
                for each in going
            ],
            "total": len(episodes),
            "looks": len(seen),
            "rows": sum(each.rows for each in seen),
            "spent": sum(each.spent for each in seen),
            "watched": parts.watched(state),
            "last": seen[-1].until if seen else None,
            "loop": parts.loop(self.document(LOOP, name)),
        }

    def releases(self, name: str, query: Query) -> Document:
        """The turns of the release, the newest first, and how champion and challenger compare."""
        release = self._release(name)
        told = ("version", "state", "since", "family", "created_at", "metrics", "digest")
        return {
            **{
                side: found and {key: found.get(key) for key in told}
                for side in ("champion", "previous", "challenger")
                for found in [release.get(side)]
            },
            "step": parts.challenger(release),
            "evidence": (release.get("challenger") or {}).get("evidence") or {},
            "history": release.get("history", [])[-MOST_TURNS:][::-1],
            "loop": parts.loop(self.document(LOOP, name)),
        }

    def features(self, name: str, query: Query) -> Document:
        """What the live version reads: each feature, how fresh its source is, how it is served and drifts."""
        span = spans.asked(query)
        release = self._champion(name)
        if release is None:
            return {"features": [], "sources": [], "figures": {}}
        made, seen = release.package.feature_set, self._history.looks(name, span.since)
        psi = dict(zip(seen[-1].columns, seen[-1].psi, strict=True)) if seen else {}
        skew = period.skews(each.skew for each in seen)
        weigh = release.expected.importance if release.expected else {}
        every: dict[str, Stored | Computed] = {each.name: each for each in made.stored}
        every |= {each.name: each for each in made.computed}
        groups = parts.grouped(span, seen)
        return {
            "features": [
                {
                    "name": column.name,
                    "type": column.type,
                    "made_of": in_words(every[column.name]) if column.name in every else "the request",
                    "is_hidden": column.hidden,
                    "is_clock": column.name in release.clock,
                    "importance": weigh.get(column.name),
                    "psi": parts.number(psi.get(column.name)),
                    "skew": skew.get(column.name),
                }
                for column in made.columns
            ],
            "sources": self._sources(name, release),
            "at": [[group.since, group.until] for group in groups],
            "figures": {
                figure: {
                    "title": title,
                    "unit": unit,
                    "values": [
                        parts.number(period.mean(s.figures.get(figure) for s in group.looks))
                        for group in groups
                    ],
                }
                for figure, (title, unit) in period.FIGURES.items()
            },
        }

    def runs(self, name: str, query: Query) -> Document:
        """The jobs that learned, with their trials, as training wrote them down."""
        return {"runs": (self.document(RUNS, name) or {}).get("runs", [])}

    def costs(self, name: str, query: Query) -> Document:
        """What the model costs, as its owner wrote it down; `keys` are for some alone."""
        return {"cost": self.cost(name), "keys": None}

    def _keys(self, name: str, query: Query) -> list[Document]:
        """What versions answered to each key on the days of the span, and what of their cost that bears."""
        span = spans.asked(query)
        days = (self.cost(name) or {}).get("days", [])
        hours = journal.read(self._storage, name, journal.TRAFFIC, MOST_BYTES)
        known = callers.asked(hours, self._state(name))
        return parts.by_key([day for day in days if span.since < day[0] + DAY_S], known)

    # ---------------------------------------------------------------- what lies in the storage

    def document(self, folder: str, name: str) -> Any:
        try:
            return self._storage.read_json(folder, f"{name}.json")
        except (MlopsError, OSError):
            # The rest of the page is no worse for it.
            return None

    def cost(self, name: str) -> Document | None:
        """What the model costs; nothing of a damaged document."""
        return holds.checked(self.document(holds.FOLDER, name))

    def _release(self, name: str) -> Document:
        """The release; empty where the model has none, or nothing is live."""
        found = self.document(RELEASES, name) if NAME.fullmatch(name) else None
        return found if isinstance(found, dict) and isinstance(found.get("champion"), dict) else {}

    def _state(self, name: str) -> Document:
        found = self.document(journal.FOLDER, name)
        return found if isinstance(found, dict) else {}

    def _traffic(self, name: str, state: Document, span: Span) -> Document:
        """The traffic of a span: by the hour, of the last two by the minute."""
        minutes, going = parts.counted(state, "minutes"), parts.counted(state, "hours")
        if len(minutes) and span.since >= time.time() - MINUTES * 60:
            return spans.traffic(span, minutes)
        span = span.by_the_hour()
        known = self._history.traffic(name, span.since)
        # The monitor may have written an hour, and not have saved yet that it has.
        new = going[~np.isin(going[:, 0], known[:, 0])] if len(known) else going
        return spans.traffic(span, np.concatenate([known, new]))

    def _champion(self, name: str) -> Release | None:
        return looks.releases(self._storage, name).get(self._release(name)["champion"]["version"])

    def _hidden(self, name: str) -> frozenset[str]:
        """Features that only machines may read, of the versions that are at hand."""
        known = looks.releases(self._storage, name).values()
        return frozenset(c.name for release in known for c in release.package.feature_set.columns if c.hidden)

    def _now(self, name: str) -> tuple[str, Counts | None, tuple[float, float | None], int]:
        """The counts of the live version's window that says something."""
        version = self._release(name)["champion"]["version"]
        watched = dict(self._state(name).get("versions", [])).get(version)
        if watched is None:
            return version, None, (0.0, None), 0
        window = Watched.from_json(watched).judged()
        return version, window.counts, (window.since, window.until), 1

    def _open(self, name: str) -> Document | None:
        """How each column differs in the window that is open, from so many rows on."""
        version, counts, ends, _ = self._now(name)
        release = looks.releases(self._storage, name).get(version)
        if counts is None or release is None or counts.rows < MIN_ROWS or ends[1] is not None:
            return None
        drifts = compare(release.reference, counts, release.clock, exactly=False)
        found = {each.column: parts.number(each.psi_corrected) for each in drifts}
        return {"since": ends[0], "rows": counts.rows, "version": version, "psi": found}

    def _merged(
        self, name: str, since: float, until: float
    ) -> tuple[str, Counts | None, tuple[float, float | None], int]:
        """The counts of the windows that ended in (since, until], of the last one's version and cells."""
        inside = [w for w in self._history.windows(name, since) if since < w.until <= until]
        last, whole, count = None, None, 0
        for window in reversed(inside[-MOST_MERGED:]):
            counts = self._history.counts(name, window)
            if counts is None:
                continue
            if last is None or whole is None:
                last, whole = window, counts
            elif window.version != last.version or counts.specs != whole.specs:
                break
            else:
                whole.merge(counts)
            count, since = count + 1, window.since
        if last is None:
            return "", None, (since, until), 0
        return last.version, whole, (since, last.until), count

    def _sources(self, name: str, release: Release) -> list[Document]:
        """Up to when everything known of each source is in the online store, and how old it may be."""
        limits = self._state(name).get("fresh_s", {})
        settings = self.document(SETTINGS, name) or {}
        location = settings.get("online") or str(self._storage.root / ONLINE)
        marks, (until, said) = {}, self._away.pop(location, (0.0, ""))
        if time.monotonic() < until:
            self._away[location] = until, said
        elif "://" in location or self._storage.root.joinpath(location).exists():
            try:
                with closing(OnlineStore(location)) as store:
                    marks, said = store.watermarks(release.package.feature_set), ""
            except MlopsError as error:
                said = str(error)
                self._away[location] = time.monotonic() + AWAY_S, said
        return [
            {
                "source": view.source,
                "until": to_micros(marks[view.source]) / 1e6 if view.source in marks else None,
                "limit_s": limits.get(view.source),
                "said": said,
            }
            for view in {view.source: view for view in release.package.feature_set.tables}.values()
        ]
