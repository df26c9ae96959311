"""The feature store of a project: its definitions, histories, training sets and online store in one place."""

import csv
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from mlops_ray import audit
from mlops_ray.config import Project, duration_in_words
from mlops_ray.errors import DataError, UsageError, did_you_mean, first_line
from mlops_ray.features import dataset, feast
from mlops_ray.features.dataset import TrainingSet
from mlops_ray.features.definitions import (
    Computed,
    FeatureSet,
    Stored,
    ViewTable,
    compile_features,
    view_table,
)
from mlops_ray.features.feast import FeastView
from mlops_ray.features.history import History, Snapshot, read
from mlops_ray.features.materialize import materialize
from mlops_ray.features.online import About, OnlineStore
from mlops_ray.features.resample import KNOWN_AT, SEQUENCE
from mlops_ray.features.shelves import ONLINE, online_location
from mlops_ray.policy import require_here, require_stores
from mlops_ray.storage import Storage


@dataclass(frozen=True)
class FeatureStore:
    """What a project reads of the feature store; projects with the same storage share the same histories."""

    project: Project
    storage: Storage

    def __post_init__(self) -> None:
        """Raises `PolicyError` where this machine may not touch the rows."""
        require_here(self.project.policies)
        require_stores(self.project)

    @cached_property
    def features(self) -> FeatureSet:
        return compile_features(self.project)

    @cached_property
    def views(self) -> dict[str, ViewTable]:
        """The tables that the target and the features read, by source."""
        target = self.project.target.source
        views = {target: view_table(target, self.project.sources[target])}
        return views | {view.source: view for view in self.features.tables}

    def history(self, source: str) -> History:
        view = self.views.get(source) or view_table(source, self.project.sources[source])
        return History.of(self.storage.path("features", "x").parent, view)

    def snapshots(self, known_at: datetime | None = None) -> dict[str, Snapshot]:
        """The histories as they stand now, or as known at an instant; see `History.snapshot`."""
        commits = [self.history(name).newest for name in self.views]
        latest = max((commit.committed_at for commit in commits if commit), default=None)
        return {name: self.history(name).snapshot(known_at=known_at, latest=latest) for name in self.views}

    def online(self) -> OnlineStore:
        return OnlineStore(online_location(self.project, self.storage))

    def build(
        self, held: Mapping[str, Snapshot], on_node: Callable[[str], object] = lambda node: None
    ) -> TrainingSet:
        """The training set over these histories; see `dataset.build`."""
        return dataset.build(self.project, self.features, held, self.storage, on_node)

    def get(self, rows: pl.DataFrame, known_at: datetime | None = None) -> TrainingSet:
        """The features of a user's own rows, as known at an instant; see `dataset.get`."""
        with self.storage.steady():
            self._tell("features were asked for", rows.height)
            return dataset.get(self.project, self.features, rows, self.snapshots(known_at), self.storage)

    def materialize(self, held: Mapping[str, Snapshot] | None = None) -> dict[str, datetime]:
        """Brings the online store up to the histories; returns up to when each source is known to it."""
        with self.storage.steady(), closing(self.online()) as store:
            return materialize(store, self.features, held or self.snapshots())

    def list(self) -> list[dict[str, Any]]:
        """Every feature: what it is called, its type, what it is made of, and the hash of its definition."""
        types = {column.name: column.type for column in self.features.columns}
        every: tuple[Stored | Computed, ...] = (*self.features.stored, *self.features.computed)
        return [
            {
                "name": feature.name,
                "type": types[feature.name],
                "definition": in_words(feature),
                "identity": self.features.identity(feature.name)[:12],
            }
            for feature in every
        ]

    def describe(self, name: str) -> dict[str, Any]:
        """A feature, and the state of the history that it reads. Raises `UsageError` where there is none."""
        found = {feature["name"]: feature for feature in self.list()}
        if name not in found:
            raise UsageError(f"no feature is called {name!r}{did_you_mean(name, found)}")
        stored = next((f for f in self.features.stored if f.name == name), None)
        if stored is None:
            return found[name]
        history = self.history(stored.source)
        newest = history.newest
        about = self._about(self.views[stored.source])
        return found[name] | {
            "source": stored.source,
            "table": history.view.table,
            "keys": dict(zip(stored.on, history.view.keys, strict=True)),
            "row_versions": history.snapshot().rows if newest else 0,
            "committed_at": newest.committed_at.isoformat() if newest else None,
            "online_up_to": about.until.isoformat() if about else None,
        }

    def _tell(self, what: str, rows: int) -> None:
        """Has the audit record hear of rows that a person gets, before they are written."""
        about = {"project": self.project.project, "sources": [*self.views], "rows": rows}
        audit.append(self.storage, what, audit.who(), about)

    def _about(self, view: ViewTable) -> About | None:
        if self.project.online is None and not self.storage.path(ONLINE).exists():
            return None
        with closing(self.online()) as store:
            return store.about(view)

    def export_feast(self, folder: Path) -> dict[str, str]:
        """Writes a Feast repository with what Feast can say; returns the other features, with the reason."""
        with self.storage.steady():
            return self._exported(folder, self.snapshots())

    def _exported(self, folder: Path, held: Mapping[str, Snapshot]) -> dict[str, str]:
        self._tell("rows were exported", sum(snapshot.rows for snapshot in held.values()))
        views, rows = [], {}
        others = {f.name: f"{f.kind} of the request" for f in self.features.computed}
        for name, view in self.project.features.items():
            stored = [f for f in self.features.stored if f.name in view.features]
            others |= {f.name: f"a {f.kind}, not a latest value" for f in stored if f.kind != "latest"}
            latest = [f for f in stored if f.kind == "latest"]
            if latest:
                table = self.views[latest[0].source]
                keys = dict(zip(latest[0].on, table.keys, strict=True))
                views.append(FeastView(name, keys, tuple((f.name, f.of) for f in latest), view.ttl))
                found = read(held[table.source], columns=[f.of for f in latest])
                newest_last = [n for n in (KNOWN_AT, SEQUENCE, table.row_id) if n in found.columns]
                rows[name] = found.sort(newest_last, maintain_order=True).rename({KNOWN_AT: "known_at"})
        return feast.export(folder, self.project.project, views, rows, others)


def read_spine(path: Path) -> pl.DataFrame:
    """The rows of a user's spine: Parquet, or CSV as text, which the request's schema then types.

    Raises `DataError` where the file cannot be read, or has two columns of one name.
    """
    if path.is_dir():
        raise DataError("cannot be read: it is a folder; name one file", file=str(path))
    try:
        if path.suffix == ".parquet":
            return pl.read_parquet(path, glob=False, hive_partitioning=False)
        header = pl.read_csv(path, infer_schema=False, glob=False, has_header=False, n_rows=1)
        _require_unique(header.row(0), path)
        return pl.read_csv(path, infer_schema=False, glob=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        if isinstance(error, pl.exceptions.ComputeError) and path.suffix != ".parquet":
            _require_narrow(path)
        raise DataError(f"cannot be read: {first_line(error)}", file=str(path)) from error


def _require_unique(names: tuple[str | None, ...], path: Path) -> None:
    for name in names:
        if name is not None and names.count(name) > 1:
            raise DataError("stands twice in the header; name each column once", file=str(path), column=name)


def _require_narrow(path: Path) -> None:
    """Raises `DataError` with the first row of a CSV file that has more fields than its header."""
    with path.open(newline="", encoding="utf-8", errors="replace") as file, suppress(csv.Error):
        rows = csv.reader(file)
        width = len(next(rows, []))
        for number, fields in enumerate(rows, 1):
            if len(fields) > width > 0:
                raise DataError(
                    f"has {len(fields)} fields, and the header {width}; quote values that have commas",
                    file=str(path),
                    row=number,
                )


def in_words(feature: Stored | Computed) -> str:
    """What a feature is made of, as people read it."""
    if isinstance(feature, Computed):
        return _computed_in_words(feature)
    if feature.kind == "window":
        agg = feature.agg if feature.quantile is None else f"quantile {feature.quantile:g}"
        return f"{agg} of {feature.source}.{feature.of} over {duration_in_words(feature.over_us)}"
    if feature.kind == "value_at":
        older = f", or up to {duration_in_words(feature.tolerance_us)} older" if feature.tolerance_us else ""
        return f"{feature.source}.{feature.of} {duration_in_words(feature.ago_us)} before{older}"
    limit = f", at most {duration_in_words(feature.ttl_us)} old" if feature.ttl_us is not None else ""
    return f"latest {feature.source}.{feature.of}{limit}"


def _computed_in_words(feature: Computed) -> str:
    if feature.kind == "function":
        return f"{feature.argument}({', '.join(feature.inputs)})"
    if feature.kind == "expr":
        return f"expr({feature.argument})"
    country = f" of {feature.country}" if feature.country else ""
    return f"{feature.kind}({feature.argument}){country} in {feature.timezone}"
