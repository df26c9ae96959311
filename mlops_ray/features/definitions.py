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

from mlops_ray.config import CALENDAR_KINDS, Feature, Lag, Project, Source, View
from mlops_ray.errors import ConfigError, did_you_mean
from mlops_ray.expressions import compile_sql, function_digest
from mlops_ray.features.resample import PICKING, aggregated_type
from mlops_ray.schema import DTYPES, Column, ColumnType, Schema

#: The values that a calendar feature can take.
CALENDAR_CATEGORIES: dict[str, tuple[int, ...]] = {
    "hour_of": tuple(range(24)),
    "weekday_of": tuple(range(1, 8)),
    "month_of": tuple(range(1, 13)),
}


#: Column types that can be added up.
NUMERIC = ("float", "int", "bool")
#: Aggregates that need no number.
OF_ANYTHING = ("count", "first", "last", "distinct_count")
#: What a training set calls what is predicted.
LABEL = "label"
#: Part of a history's name: what lies on disk in another form is another table.
FORMAT = 2


@dataclass(frozen=True)
class Stored:
    """A feature that is read from a source's history.

    `on` are the names that the table's keys have in a request. `kind` is `latest`, `value_at` or `window`;
    durations are microseconds. `ago_us` counts from the target time T, `over_us` and `ttl_us` from the moment
    of prediction P.
    """

    name: str
    source: str
    on: tuple[str, ...]
    of: str
    kind: str
    agg: str | None = None
    ago_us: int = 0
    tolerance_us: int = 0
    over_us: int = 0
    quantile: float | None = None
    ttl_us: int | None = None

    @property
    def is_unbounded(self) -> bool:
        """Whether it reads a row however old."""
        return self.kind == "latest" and self.ttl_us is None


@dataclass(frozen=True)
class Computed:
    """A feature of the request itself: `kind` of `argument` (a column, SQL text, or a function's path)."""

    name: str
    kind: str
    argument: str
    timezone: str = "UTC"
    country: str | None = None
    #: What is added to the time first: minus an interval's length for rows stamped with their end.
    shift_us: int = 0
    #: The columns that a function is given, and the type of what it returns.
    inputs: tuple[str, ...] = ()
    type: ColumnType | None = None
    #: The digest of a function's source: another function under the same name is another feature.
    code: str | None = None

    @property
    def is_own_column(self) -> bool:
        """Whether the feature is the request's column of its name, as it is."""
        return self.kind == "expr" and self.argument.strip('"') == self.name


@dataclass(frozen=True)
class ViewTable:
    """The table that a view reads: a source's rows in force, resampled where the source says so."""

    source: str
    table: str
    keys: tuple[str, ...]
    columns: tuple[Column, ...]
    every_us: int | None
    aggregations: tuple[tuple[str, str], ...]
    #: The column that tells a key's rows apart; without one their event time does.
    row_id: str | None = None
    #: Whether the source says itself when a row became known: its clock is then that of its rows.
    back_loaded: bool = False

    @property
    def identity(self) -> tuple[str, ...]:
        """The columns that tell rows apart."""
        return (*self.keys, self.row_id or "event_time")

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads again."""
        return {**vars(self), "columns": Schema(self.columns).to_json()["columns"]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The table that `to_json` wrote."""
        return cls(
            **{
                **data,
                "keys": tuple(data["keys"]),
                "columns": _columns(data["columns"]),
                "aggregations": tuple(tuple(pair) for pair in data["aggregations"]),
            }
        )


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
    #: Whether a training row's features are as known at its own P, rather than as known at one instant.
    strict: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    def column(self, name: str) -> Column:
        """The column of a feature."""
        return self._columns[name]

    @cached_property
    def _columns(self) -> dict[str, Column]:
        return {column.name: column for column in self.columns}

    @cached_property
    def own_columns(self) -> frozenset[str]:
        """Features that are the request's column of their name, as it is."""
        return frozenset(feature.name for feature in self.computed if feature.is_own_column)

    def table_reach_us(self, source: str) -> int:
        """How far before P the features of a table read at most, but for latest values without ttl."""
        return self._reaches.get(source, 0)

    @cached_property
    def _reaches(self) -> dict[str, int]:
        return {
            view.source: max((self.reach_us(feature) for feature in self.of_table(view.source)), default=0)
            for view in self.tables
        }

    def reach_us(self, feature: Stored) -> int:
        """How far before P a feature reads; a latest value without ttl counts as 0."""
        return max(
            feature.over_us, feature.ago_us + feature.tolerance_us - self.horizon_us, feature.ttl_us or 0
        )

    def of_table(self, source: str) -> tuple[Stored, ...]:
        """The features that read a source's table."""
        return tuple(feature for feature in self.stored if feature.source == source)

    @cached_property
    def reads(self) -> tuple[tuple[ViewTable, tuple[str, ...], tuple[Stored, ...]], ...]:
        """What is read together: a table, what its keys are called in a request, and their features."""
        return tuple(
            (view, on, tuple(feature for feature in self.of_table(view.source) if feature.on == on))
            for view in self.tables
            for on in dict.fromkeys(feature.on for feature in self.of_table(view.source))
        )

    def identity(self, name: str) -> str:
        """The hash of one feature's definition: equal for equal features, whatever they are called."""
        every: tuple[Stored | Computed, ...] = (*self.stored, *self.computed)
        feature = next(f for f in every if f.name == name)
        definition = {**vars(feature), "name": None, "horizon_us": self.horizon_us}
        if isinstance(feature, Stored):
            definition |= {"source": next(t.table for t in self.tables if t.source == feature.source)}
        return _digest(definition)

    @cached_property
    def digest(self) -> str:
        """Identifies the definitions: equal for equal features, whatever project or file they stand in."""
        return _digest(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads again."""
        return {
            "request": self.request.to_json(),
            "columns": Schema(self.columns).to_json()["columns"],
            "stored": [vars(feature) for feature in self.stored],
            "computed": [vars(feature) for feature in self.computed],
            "tables": [table.to_json() for table in self.tables],
            "horizon_us": self.horizon_us,
            "time": self.time,
            "every_us": self.every_us,
            "strict": self.strict,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The feature set that `to_json` wrote."""
        return cls(
            request=Schema.from_json(data["request"]),
            columns=_columns(data["columns"]),
            stored=tuple(Stored(**{**feature, "on": tuple(feature["on"])}) for feature in data["stored"]),
            computed=tuple(Computed(**{**f, "inputs": tuple(f["inputs"])}) for f in data["computed"]),
            tables=tuple(ViewTable.from_json(table) for table in data["tables"]),
            horizon_us=data["horizon_us"],
            time=data["time"],
            every_us=data["every_us"],
            strict=data["strict"],
        )


def _columns(data: list[dict[str, Any]]) -> tuple[Column, ...]:
    return Schema.from_json(
        {"columns": data, "rules": [], "true_values": [], "false_values": [], "null_values": []}
    ).columns


def _digest(document: Any) -> str:
    return hashlib.sha256(orjson.dumps(document, option=orjson.OPT_SORT_KEYS)).hexdigest()


def table_name(source_name: str, source: Source) -> str:
    """The name of a source's history: equal definitions share it, a changed one starts anew."""
    # What a new version of ours adds to the defaults, and what changes no row, must not start a history anew.
    definition = source.model_dump(mode="json", exclude={"path", "policy", "season"}, exclude_defaults=True)
    return f"{source_name}-{_digest([FORMAT, definition])[:12]}"


def view_table(name: str, source: Source) -> ViewTable:
    """The table that views of a source, and its target, read."""
    typed = {column.name: column for column in source.row_schema.columns}
    if source.resample is not None:
        aggregations = tuple(source.resample.columns.items())
        for of, agg in aggregations:
            _require_number(f"sources.{name}.resample", typed[of], agg)
        columns = tuple(_aggregated(typed[of], agg) for of, agg in aggregations)
    else:
        aggregations = ()
        columns = tuple(column for column in typed.values() if column.name not in source.entity)
    return ViewTable(
        source=name,
        table=table_name(name, source),
        keys=source.entity,
        columns=columns,
        every_us=source.resample.every if source.resample else None,
        aggregations=aggregations,
        row_id=source.row_id,
        back_loaded=source.known_at is not None,
    )


def _aggregated(column: Column, agg: str) -> Column:
    """What an aggregate of a column is: `first` and `last` are one of its values, others a number."""
    return column if agg in PICKING else Column(column.name, aggregated_type(agg, column.type))


def compile_features(project: Project) -> FeatureSet:
    """The feature set of a project file.

    Raises `ConfigError` for what cannot be computed, naming the place in the file.
    """
    _refuse_unsupported(project)
    target = project.sources[project.target.source]
    time = (target.event_time.column if target.event_time else None) or "time"
    computed = tuple(feature for view in project.features.items() for feature in _of_request(*view, target))
    stored = tuple(
        _stored(project, view_name, view, name, feature)
        for view_name, view in project.features.items()
        for name, feature in view.features.items()
    )
    sources = dict.fromkeys(view.source for view in project.features.values() if view.source)
    tables = {name: view_table(name, project.sources[name]) for name in sources}
    request = _request_schema(target, time, stored, computed)
    _refuse_the_label(project, request)
    columns = [_stored_column(f, tables[f.source]) for f in stored]
    columns += [_computed_column(f, request) for f in computed]
    _unique([column.name for column in columns])
    _refuse_taken_names(columns, computed, request)
    return FeatureSet(
        request=request,
        columns=tuple(columns),
        stored=stored,
        computed=computed,
        tables=tuple(tables.values()),
        horizon_us=project.target.horizon[0],
        time=time,
        every_us=target.resample.every if target.resample else None,
        strict=project.target.known_at == "event",
    )


def _refuse_unsupported(project: Project) -> None:
    asks = {
        "several horizons": len(project.target.horizon) > 1,
        "a target's source without event time": project.sources[project.target.source].event_time is None,
    }
    for what, asked in asks.items():
        if asked:
            raise ConfigError(f"{what} is not supported yet")


def _refuse_the_label(project: Project, request: Schema) -> None:
    """A request cannot hold what is to be predicted."""
    label = compile_sql(project.target.expr).columns
    for name in sorted(label & set(request.names)):
        raise ConfigError(f"a feature of the request reads {name!r}, which the target is made of")


def _refuse_taken_names(columns: list[Column], computed: tuple[Computed, ...], request: Schema) -> None:
    """In a training set, features stand beside the request's columns and the label."""
    same = {feature.name for feature in computed if feature.is_own_column}
    for column in columns:
        if column.name in {*request.names, LABEL} - same:
            raise ConfigError(
                f"features: {column.name!r} is a column of the request, or the label; call it otherwise"
            )


def _unique(names: list[str]) -> None:
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ConfigError(f"features: {sorted(twice)[0]!r} is defined twice")


def _stored(project: Project, view_name: str, view: View, name: str, feature: Feature) -> Stored:
    place, source_name = f"features.{view_name}.{name}", str(view.source)
    source = project.sources[source_name]
    on = _on(f"features.{view_name}", view, source, project.sources[project.target.source])
    if source.time is not None and feature.latest is None:
        raise ConfigError(f"{place}: {source_name!r} has no time, so it has latest values only")
    if feature.latest is not None:
        return Stored(name, source_name, on, feature.latest, "latest", ttl_us=view.ttl)
    if feature.window is not None:
        window = feature.window
        columns = {column.name: column for column in view_table(source_name, source).columns}
        if window.of in columns:
            _require_number(place, columns[window.of], window.agg)
        if window.over == 0:
            raise ConfigError(f"{place}: a window over nothing")
        return Stored(
            name, source_name, on, window.of, "window",
            agg=window.agg, over_us=window.over, quantile=window.quantile,
        )  # fmt: skip
    if feature.value_at is not None:
        at = feature.value_at
        return Stored(name, source_name, on, at.of, "value_at", ago_us=at.ago, tolerance_us=at.tolerance)
    assert feature.lag is not None
    return Stored(
        name, source_name, on, feature.lag.of, "value_at", ago_us=_lag_us(place, feature.lag, project, source)
    )


def _require_number(place: str, column: Column, agg: str) -> None:
    if column.type not in NUMERIC and agg not in OF_ANYTHING:
        raise ConfigError(
            f"{place}: {agg} of {column.name!r}, which is of type {column.type}; "
            f"such a column has {', '.join(OF_ANYTHING)}"
        )


def _lag_us(place: str, lag: Lag, project: Project, source: Source) -> int:
    """A lag in rows as a duration, where rows are known by their order and come at equal distances."""
    every = source.event_time.every if source.event_time else None
    if every is None:
        raise ConfigError(f"{place}: lag counts rows, which needs event_time: {{order: true, every: …}}")
    if lag.rows * every < project.target.horizon[0]:
        raise ConfigError(
            f"{place}: looks past the moment of prediction: the lag is shorter than the horizon"
        )
    return lag.rows * every


def _on(place: str, view: View, source: Source, target: Source) -> tuple[str, ...]:
    """What the keys of a view's table are called in a request: their own names, unless `join_keys` says."""
    for name in view.join_keys.values():
        if name not in source.entity:
            raise ConfigError(
                f"{place}.join_keys: {name!r} is no key of the view{did_you_mean(name, source.entity)}"
            )
    if len(set(view.join_keys.values())) < len(view.join_keys):
        raise ConfigError(f"{place}.join_keys: two names for one key")
    if source.time is not None and view.ttl is not None:
        raise ConfigError(f"{place}.ttl: a table without time has no age")
    names = {key: name for name, key in view.join_keys.items()}
    on = tuple(names.get(key, key) for key in source.entity)
    for name, key in zip(on, source.entity, strict=True):
        if name not in target.columns:
            hint = did_you_mean(name, target.columns)
            raise ConfigError(
                f"{place}: the key {name!r} is no column of the target's source{hint} (join_keys: "
                f"{{NAME: {key}}} says what it is called there)"
            )
        types = target.columns[name].type, source.columns[key].type
        if DTYPES[types[0]] != DTYPES[types[1]]:
            raise ConfigError(
                f"{place}: the key {name!r} is {types[0]} in the target's source and {types[1]} here"
            )
    return on


def _stored_column(feature: Stored, table: ViewTable) -> Column:
    of = next((c for c in table.columns if c.name == feature.of), None)
    if of is None:
        raise ConfigError(
            f"feature {feature.name!r} reads {feature.of!r}, which is a key, or left out by the resampling"
        )
    made = of if feature.agg is None else _aggregated(of, feature.agg)
    # What the source's rows must be, its view's rows have been checked for; a feature may be missing.
    return Column(feature.name, made.type, categories=made.categories)


def _of_request(view_name: str, view: View, target: Source) -> list[Computed]:
    """The features that a view computes from the request, a row's own columns included."""
    own = [name for name in view.columns or () if name not in view.exclude]
    for name in (*own, *view.exclude):
        if name not in target.columns:
            raise ConfigError(
                f"features.{view_name}: {name!r} is no column of the target's source"
                f"{did_you_mean(name, target.columns)}"
            )
    found = [Computed(name, "expr", f'"{name}"') for name in own]
    return found + [
        _computed(f"features.{view_name}.{name}", name, feature, target)
        for name, feature in (view.on_request or {}).items()
    ]


def _computed(place: str, name: str, feature: Feature, target: Source) -> Computed:
    if feature.expr is not None:
        if name in target.entity and feature.expr != name:
            raise ConfigError(f"{place}: {name!r} is an entity key; call the feature otherwise")
        return Computed(name, "expr", feature.expr)
    if feature.function is not None:
        function = feature.function
        code = function_digest(function.path)
        return Computed(name, "function", function.path, inputs=function.inputs, type=feature.type, code=code)
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


def _request_schema(
    target: Source, time: str, stored: tuple[Stored, ...], computed: tuple[Computed, ...]
) -> Schema:
    """The columns of a request: entity keys, target time, the keys of views, inputs of computed features."""
    known = {column.name: column for column in target.row_schema.columns}
    keys = dict.fromkeys([*target.entity, *(name for feature in stored for name in feature.on)])
    columns = [Column(**{**vars(known[key]), "required": key in target.entity}) for key in keys]
    columns.append(Column(time, "datetime", required=True))
    for feature in computed:
        for name in sorted(_inputs(feature) - {column.name for column in columns}):
            if name not in known:
                raise ConfigError(
                    f"feature {feature.name!r} reads {name!r}, which a request does not hold"
                    f"{did_you_mean(name, known)}"
                )
            columns.append(known[name])
    return Schema(tuple(columns))


def _inputs(feature: Computed) -> set[str]:
    if feature.inputs:
        return set(feature.inputs)
    return set(compile_sql(feature.argument).columns) if feature.kind == "expr" else {feature.argument}


def _computed_column(feature: Computed, request: Schema) -> Column:
    if feature.type is not None:
        return Column(feature.name, feature.type)
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
