"""What the features of a project are: views over histories, and what is computed from the request itself.

A `FeatureSet` holds all that is needed to compute the features of a training row or of a request. It is plain
data with a digest, goes into the model's package, and is the only description of features that serving reads.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import orjson
import polars as pl

from mlops_ray.config import CALENDAR_KINDS, Feature, Project, Source
from mlops_ray.errors import ConfigError, did_you_mean
from mlops_ray.expressions import compile_sql
from mlops_ray.schema import DTYPES, Column, ColumnType, Schema

#: The values that a calendar feature can take.
CALENDAR_CATEGORIES: dict[str, tuple[int, ...]] = {
    "hour_of": tuple(range(24)),
    "weekday_of": tuple(range(1, 8)),
    "month_of": tuple(range(1, 13)),
}


#: Column types that a feature of a history can have; they all become floats.
NUMERIC = ("float", "int", "bool")


@dataclass(frozen=True)
class Stored:
    """A feature that is read from a source's history.

    `kind` is `latest`, `value_at` or `window`; durations are microseconds. `ago_us` counts from the target
    time T, `over_us` from the moment of prediction P.
    """

    name: str
    source: str
    of: str
    kind: str
    agg: str | None = None
    ago_us: int = 0
    tolerance_us: int = 0
    over_us: int = 0
    quantile: float | None = None


@dataclass(frozen=True)
class Computed:
    """A feature of the request itself: `kind` of `argument` (a column, or SQL text)."""

    name: str
    kind: str
    argument: str
    timezone: str = "UTC"
    country: str | None = None
    #: What is added to the time first: minus an interval's length for rows stamped with their end.
    shift_us: int = 0


@dataclass(frozen=True)
class ViewTable:
    """The table that a view reads: a source's rows in force, resampled where the source says so."""

    source: str
    table: str
    keys: tuple[str, ...]
    columns: tuple[Column, ...]
    every_us: int | None
    aggregations: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class FeatureSet:
    """Everything needed to compute the features of a request or a training row."""

    request: Schema
    columns: tuple[Column, ...]
    stored: tuple[Stored, ...]
    computed: tuple[Computed, ...]
    tables: tuple[ViewTable, ...]
    horizon_us: int
    time: str
    #: Length of the target's intervals, where it is resampled: target times are the ends of such.
    every_us: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def lookback_us(self) -> int:
        """How far before P any feature reads."""
        return max((self._reach(feature) for feature in self.stored), default=0)

    def _reach(self, feature: Stored) -> int:
        return max(feature.over_us, feature.ago_us + feature.tolerance_us - self.horizon_us, 0)

    @cached_property
    def digest(self) -> str:
        """Identifies the definitions: equal for equal features, whatever project or file they stand in."""
        return hashlib.sha256(orjson.dumps(self.to_json(), option=orjson.OPT_SORT_KEYS)).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads again."""
        return {
            "request": self.request.to_json(),
            "columns": Schema(self.columns).to_json()["columns"],
            "stored": [vars(feature) for feature in self.stored],
            "computed": [vars(feature) for feature in self.computed],
            "tables": [
                {**vars(table), "columns": Schema(table.columns).to_json()["columns"]}
                for table in self.tables
            ],
            "horizon_us": self.horizon_us,
            "time": self.time,
            "every_us": self.every_us,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The feature set that `to_json` wrote."""
        return cls(
            request=Schema.from_json(data["request"]),
            columns=_columns(data["columns"]),
            stored=tuple(Stored(**feature) for feature in data["stored"]),
            computed=tuple(Computed(**feature) for feature in data["computed"]),
            tables=tuple(
                ViewTable(
                    **{
                        **table,
                        "keys": tuple(table["keys"]),
                        "columns": _columns(table["columns"]),
                        "aggregations": tuple(tuple(pair) for pair in table["aggregations"]),
                    }
                )
                for table in data["tables"]
            ),
            horizon_us=data["horizon_us"],
            time=data["time"],
            every_us=data["every_us"],
        )


def _columns(data: list[dict[str, Any]]) -> tuple[Column, ...]:
    return Schema.from_json(
        {"columns": data, "rules": [], "true_values": [], "false_values": [], "null_values": []}
    ).columns


def table_name(source_name: str, source: Source) -> str:
    """The name of a source's history: equal definitions share it, a changed one starts anew."""
    definition = source.model_dump(mode="json", exclude={"path", "policy"})
    digest = hashlib.sha256(orjson.dumps(definition, option=orjson.OPT_SORT_KEYS)).hexdigest()
    return f"{source_name}-{digest[:12]}"


def view_table(name: str, source: Source) -> ViewTable:
    """The table that views of a source, and its target, read."""
    resample = source.resample
    kept = set(resample.columns) if resample else set(source.columns) - set(source.entity)
    typed = {column.name: column for column in source.row_schema.columns}
    return ViewTable(
        source=name,
        table=table_name(name, source),
        keys=source.entity,
        columns=tuple(typed[column] for column in source.columns if column in kept),
        every_us=resample.every if resample else None,
        aggregations=tuple(resample.columns.items()) if resample else (),
    )


def compile_features(project: Project) -> FeatureSet:
    """The feature set of a project file.

    Raises `ConfigError` for what cannot be computed, naming the place in the file.
    """
    _refuse_unsupported(project)
    target = project.sources[project.target.source]
    time = (target.event_time.column if target.event_time else None) or "time"
    computed = tuple(
        _computed(f"features.{view_name}.{name}", name, feature, target)
        for view_name, view in project.features.items()
        for name, feature in (view.on_request or {}).items()
    )
    stored = tuple(
        _stored(project, str(view.source), name, feature)
        for view in project.features.values()
        for name, feature in view.features.items()
    )
    request = _request_schema(target, time, computed)
    _refuse_the_label(project, request)
    columns = [Column(f.name, "float") for f in stored] + [_computed_column(f, request) for f in computed]
    _unique([column.name for column in columns])
    sources = dict.fromkeys(view.source for view in project.features.values() if view.source)
    return FeatureSet(
        request=request,
        columns=tuple(columns),
        stored=stored,
        computed=computed,
        tables=tuple(view_table(name, project.sources[name]) for name in sources),
        horizon_us=project.target.horizon[0],
        time=time,
        every_us=target.resample.every if target.resample else None,
    )


def _refuse_unsupported(project: Project) -> None:
    asks = {
        "latest": any(f.latest for view in project.features.values() for f in view.features.values()),
        "exclude": any(view.exclude for view in project.features.values()),
        "target.label_known by a column": bool(
            project.target.label_known and project.target.label_known.column
        ),
        "several horizons": len(project.target.horizon) > 1,
        "target.known_at": project.target.known_at is not None,
        "target.where": project.target.where is not None,
        "target.transform": project.target.transform is not None,
        "a target's source without event time": project.sources[project.target.source].event_time is None,
        "ttl": any(view.ttl is not None for view in project.features.values()),
        "join_keys": any(view.join_keys for view in project.features.values()),
        "features from a row's own columns": any(view.columns for view in project.features.values()),
        "lag": any(f.lag for view in project.features.values() for f in view.features.values()),
        "function": any(
            f.function for view in project.features.values() for f in (view.on_request or {}).values()
        ),
    }
    for what, asked in asks.items():
        if asked:
            raise ConfigError(f"{what} is not supported yet")


def _refuse_the_label(project: Project, request: Schema) -> None:
    """A request cannot hold what is to be predicted."""
    label = compile_sql(project.target.expr).columns
    for name in sorted(label & set(request.names)):
        if project.target.horizon[0] > 0:
            raise ConfigError(f"a feature of the request reads {name!r}, which the target is made of")


def _unique(names: list[str]) -> None:
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ConfigError(f"features: {sorted(twice)[0]!r} is defined twice")


def _stored(project: Project, source: str, name: str, feature: Feature) -> Stored:
    of = feature.value_at or feature.window or feature.lag
    kind = project.sources[source].columns[of.of if of else str(feature.latest)].type
    if kind not in NUMERIC:
        raise ConfigError(
            f"feature {name!r} reads a column of type {kind}; only {', '.join(NUMERIC)} can be read yet"
        )
    if feature.value_at is not None:
        at = feature.value_at
        return Stored(name, source, at.of, "value_at", ago_us=at.ago, tolerance_us=at.tolerance)
    if feature.window is not None:
        window = feature.window
        return Stored(
            name, source, window.of, "window", agg=window.agg, over_us=window.over, quantile=window.quantile
        )
    assert feature.latest is not None
    return Stored(name, source, feature.latest, "latest")


def _computed(place: str, name: str, feature: Feature, target: Source) -> Computed:
    if feature.expr is not None:
        if name in target.entity and feature.expr != name:
            raise ConfigError(f"{place}: {name!r} is an entity key; call the feature otherwise")
        return Computed(name, "expr", feature.expr)
    kind = next(kind for kind in CALENDAR_KINDS if getattr(feature, kind) is not None)
    argument = getattr(feature, kind)
    time = (target.event_time.column if target.event_time else None) or "time"
    if argument != time:
        raise ConfigError(
            f"{place}: {kind} reads {argument!r}; only the target time {time!r} can be read yet"
        )
    zone = feature.timezone or (target.event_time.timezone if target.event_time else None) or "UTC"
    # A resampled row carries its interval's end; its calendar is that of the start.
    shift = -target.resample.every if target.resample else 0
    return Computed(name, kind, argument, zone, feature.country, shift)


def _request_schema(target: Source, time: str, computed: tuple[Computed, ...]) -> Schema:
    """The columns of a request: entity keys, target time, and the inputs of its computed features."""
    known = {column.name: column for column in target.row_schema.columns}
    columns = [Column(**{**vars(known[key]), "required": True}) for key in target.entity]
    columns.append(Column(time, "datetime", required=True))
    for feature in computed:
        inputs = compile_sql(feature.argument).columns if feature.kind == "expr" else {feature.argument}
        for name in sorted(inputs - {column.name for column in columns}):
            if name not in known:
                raise ConfigError(
                    f"feature {feature.name!r} reads {name!r}, which a request does not hold"
                    f"{did_you_mean(name, known)}"
                )
            columns.append(known[name])
    return Schema(tuple(columns))


def _computed_column(feature: Computed, request: Schema) -> Column:
    if feature.kind == "holiday_of":
        return Column(feature.name, "bool")
    if feature.kind in CALENDAR_CATEGORIES:
        return Column(feature.name, "int", categories=CALENDAR_CATEGORIES[feature.kind])
    empty = pl.DataFrame(schema={column.name: DTYPES[column.type] for column in request.columns})
    try:
        dtype = empty.select(pl.sql_expr(feature.argument)).dtypes[0]
    except pl.exceptions.PolarsError as error:
        raise ConfigError(f"feature {feature.name!r}: {error}") from error
    return Column(feature.name, _type_of(dtype))


def _type_of(dtype: pl.DataType) -> ColumnType:
    if dtype == pl.Boolean:
        return "bool"
    if dtype.is_integer():
        return "int"
    return "category" if dtype == pl.String else "float"
