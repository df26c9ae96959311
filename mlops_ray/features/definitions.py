"""What the features of a project are: views over histories, and what is computed from the request itself.

A `FeatureSet` holds all that is needed to compute the features of a training row or of a request. It is plain
data with a digest, goes into the model's package, and is the only description of features that serving reads.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import polars as pl

from mlops_ray.config import CALENDAR_KINDS, Feature, Lag, Project, Source, View
from mlops_ray.errors import ConfigError, did_you_mean
from mlops_ray.expressions import column_sql, compile_sql, function_digest
from mlops_ray.features.resample import PICKING, aggregated_type
from mlops_ray.schema import DTYPES, Column, ColumnType, Schema
from mlops_ray.storage import digest

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
#: A path of keys in the project file.
Place = tuple[str, ...]
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

    def newest_us(self, horizon_us: int) -> int:
        """How long before T the newest row lies that it may read."""
        return self.ago_us if self.kind == "value_at" else horizon_us


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
        return self.kind == "expr" and self.argument in (self.name, column_sql(self.name))


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
        return digest(definition)

    @cached_property
    def digest(self) -> str:
        """Identifies the definitions: equal for equal features, whatever project or file they stand in."""
        return digest(self.to_json())

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


#: What a source says that changes no row of it.
NO_ROWS = ("path", "sql", "ingestion", "policy", "season", "checks")


def table_name(source_name: str, source: Source) -> str:
    """The name of a source's history: equal definitions share it, a changed one starts anew."""
    # What a new version of ours adds to the defaults, and what changes no row, must not start a history anew.
    definition = source.model_dump(mode="json", exclude=set(NO_ROWS), exclude_defaults=True)
    return f"{source_name}-{digest([FORMAT, definition])[:12]}"


def view_table(name: str, source: Source) -> ViewTable:
    """The table that views of a source, and its target, read."""
    typed = {column.name: column for column in source.row_schema.columns}
    if source.resample is not None:
        aggregations = tuple(source.resample.columns.items())
        for of, agg in aggregations:
            _require_number(("sources", name, "resample"), typed[of], agg)
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
    try:
        return _compiled(project)
    except ConfigError as error:
        raise project.located(error) from None


def _compiled(project: Project) -> FeatureSet:
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
    request = _request_schema(project, time, stored, computed)
    _refuse_the_label(project, request)
    columns = [_stored_column(f, tables[f.source], project) for f in stored]
    columns += [_computed_column(f, request, project) for f in computed]
    _unique([column.name for column in columns], project)
    _refuse_taken_names(columns, computed, request, project)
    for feature in stored:
        _refuse_the_answer(project, feature)
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
            raise ConfigError(f"{what} is not supported yet", at=("target",))


def _refuse_the_label(project: Project, request: Schema) -> None:
    """A request cannot hold what is to be predicted."""
    label = _made_of(compile_sql(project.target.expr).columns, project.sources[project.target.source])
    for name in sorted(label & set(request.names)):
        why = f"is made of {name!r}, which a feature of the request reads: nobody knows it when asking"
        raise ConfigError(why, at=("target", "expr"))


def _refuse_the_answer(project: Project, feature: Stored) -> None:
    """A feature that looks at the target's own row, at T, would train a model to copy its answer."""
    target, source = project.target, project.sources[feature.source]
    own = project.sources[target.source]
    is_same = feature.source == target.source or (source.path, source.sql) == (own.path, own.sql)
    label = _made_of(compile_sql(target.expr).columns, own)
    reads_the_label = is_same and bool(_made_of({feature.of}, source) & label)
    # Known when it was stored, a while after it happened, or when a column says: not yet at its own time.
    is_known_later = source.known_at is None or source.known_at.after_event != 0
    hides_itself = target.known_at == "event" and is_known_later
    if reads_the_label and not (feature.newest_us(target.horizon[0]) or hides_itself):
        raise ConfigError(
            f"reads {feature.of!r} up to T, and the target at T is made of it: the answer would be among its "
            "inputs. Say how far ahead is predicted (target.horizon), read an earlier value (value_at), or, "
            "where rows become known later than they happen, known_at: event at the target",
            at=_place_of(project, feature.name),
        )


def _made_of(columns: Iterable[str], source: Source) -> set[str]:
    """These columns of a source, and those that they are derived from."""
    found, pending = set[str](), set(columns)
    while pending - found:
        name = (pending - found).pop()
        found.add(name)
        how = source.derive.get(name)
        if how is not None:
            pending |= set(compile_sql(how).columns) if isinstance(how, str) else set(how.inputs)
    return found


def _place_of(project: Project, name: str) -> Place:
    """Where a feature is defined."""
    for view_name, view in project.features.items():
        for part in ("features", "on_request"):
            if name in (getattr(view, part) or {}):
                return "features", view_name, part, name
    return next(
        ("features", n, "columns") for n, view in project.features.items() if name in (view.columns or ())
    )


def _refuse_taken_names(
    columns: list[Column], computed: tuple[Computed, ...], request: Schema, project: Project
) -> None:
    """In a training set, features stand beside the request's columns and the label."""
    same = {feature.name for feature in computed if feature.is_own_column}
    for column in columns:
        if column.name in {*request.names, LABEL} - same:
            raise ConfigError(
                f"{column.name!r} is a column of the request, or the label; call it otherwise",
                at=_place_of(project, column.name),
            )


def _unique(names: list[str], project: Project) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{name!r} is defined twice", at=_place_of(project, name))


def _stored(project: Project, view_name: str, view: View, name: str, feature: Feature) -> Stored:
    place, source_name = ("features", view_name, "features", name), str(view.source)
    source = project.sources[source_name]
    on = _on(("features", view_name), view, source, project.sources[project.target.source])
    if source.time is not None and feature.latest is None:
        raise ConfigError(f"{source_name!r} has no time, so it has latest values only", at=place)
    if feature.latest is not None:
        return Stored(name, source_name, on, feature.latest, "latest", ttl_us=view.ttl)
    if feature.window is not None:
        window = feature.window
        columns = {column.name: column for column in view_table(source_name, source).columns}
        if window.of in columns:
            _require_number(place, columns[window.of], window.agg)
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


def _require_number(place: Place, column: Column, agg: str) -> None:
    if column.type not in NUMERIC and agg not in OF_ANYTHING:
        raise ConfigError(
            f"{agg} of {column.name!r}, which is of type {column.type}; "
            f"such a column has {', '.join(OF_ANYTHING)}",
            at=place,
        )


def _lag_us(place: Place, lag: Lag, project: Project, source: Source) -> int:
    """A lag in rows as a duration, where rows are known by their order and come at equal distances."""
    every = source.event_time.every if source.event_time else None
    if every is None:
        raise ConfigError(
            "lag counts rows where order is time (event_time: {order: true, every: …}); elsewhere "
            "say value_at, e.g. {of: load, ago: 1d}",
            at=place,
        )
    if lag.rows * every < project.target.horizon[0]:
        raise ConfigError(
            "looks past the moment of prediction: the lag is shorter than the horizon", at=place
        )
    return lag.rows * every


def _on(place: Place, view: View, source: Source, target: Source) -> tuple[str, ...]:
    """What the keys of a view's table are called in a request: their own names, unless `join_keys` says."""
    for name in view.join_keys.values():
        if name not in source.entity:
            raise ConfigError(
                f"{name!r} is no key of the view{did_you_mean(name, source.entity)}", at=(*place, "join_keys")
            )
    if len(set(view.join_keys.values())) < len(view.join_keys):
        raise ConfigError("two names for one key", at=(*place, "join_keys"))
    if source.time is not None and view.ttl is not None:
        raise ConfigError("a table without time has no age", at=(*place, "ttl"))
    names = {key: name for name, key in view.join_keys.items()}
    on = tuple(names.get(key, key) for key in source.entity)
    for name, key in zip(on, source.entity, strict=True):
        if name not in target.columns:
            hint = did_you_mean(name, target.columns)
            raise ConfigError(
                f"the key {name!r} is no column of the target's source{hint} (join_keys: "
                f"{{NAME: {key}}} says what it is called there)",
                at=place,
            )
        types = target.columns[name].type, source.columns[key].type
        if DTYPES[types[0]] != DTYPES[types[1]]:
            raise ConfigError(
                f"the key {name!r} is {types[0]} in the target's source and {types[1]} here", at=place
            )
    return on


def _stored_column(feature: Stored, table: ViewTable, project: Project) -> Column:
    of = next((c for c in table.columns if c.name == feature.of), None)
    if of is None:
        raise ConfigError(
            f"reads {feature.of!r}, which is a key, or left out by the resampling",
            at=_place_of(project, feature.name),
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
                f"{name!r} is no column of the target's source{did_you_mean(name, target.columns)}",
                at=("features", view_name),
            )
    found = [Computed(name, "expr", column_sql(name)) for name in own]
    return found + [
        _computed(("features", view_name, "on_request", name), name, feature, target)
        for name, feature in (view.on_request or {}).items()
    ]


def _computed(place: Place, name: str, feature: Feature, target: Source) -> Computed:
    if feature.expr is not None:
        if name in target.entity and feature.expr != name:
            raise ConfigError(f"{name!r} is an entity key; call the feature otherwise", at=place)
        return Computed(name, "expr", feature.expr)
    if feature.function is not None:
        function = feature.function
        code = function_digest(function.path)
        return Computed(name, "function", function.path, inputs=function.inputs, type=feature.type, code=code)
    kind = next(kind for kind in CALENDAR_KINDS if getattr(feature, kind) is not None)
    argument = getattr(feature, kind)
    time = (target.event_time.column if target.event_time else None) or "time"
    times = [time, *(column for column, spec in target.columns.items() if spec.type == "datetime")]
    if argument not in times:
        raise ConfigError(
            f"{kind} reads {argument!r}, which is no time of a request; it has {', '.join(times)}", at=place
        )
    zone = feature.timezone or (target.event_time.timezone if target.event_time else None) or "UTC"
    # A resampled row carries its interval's end; its calendar is that of the start.
    shift = -target.resample.every if target.resample and argument == time else 0
    return Computed(name, kind, argument, zone, feature.country, shift)


def _request_schema(
    project: Project, time: str, stored: tuple[Stored, ...], computed: tuple[Computed, ...]
) -> Schema:
    """The columns of a request: entity keys, target time, the keys of views, inputs of computed features."""
    target = project.sources[project.target.source]
    known = {column.name: column for column in target.row_schema.columns}
    keys = dict.fromkeys([*target.entity, *(name for feature in stored for name in feature.on)])
    columns = [Column(**{**vars(known[key]), "required": key in target.entity}) for key in keys]
    columns.append(Column(time, "datetime", required=True))
    for feature in computed:
        for name in sorted(_inputs(feature) - {column.name for column in columns}):
            if name not in known:
                raise ConfigError(
                    f"reads {name!r}, which a request does not hold{did_you_mean(name, known)}",
                    at=_place_of(project, feature.name),
                )
            columns.append(known[name])
    # A word that means nothing in the source's files means nothing in a request.
    words = target.row_schema
    return Schema(tuple(columns), (), words.true_values, words.false_values, words.null_values)


def _inputs(feature: Computed) -> set[str]:
    if feature.inputs:
        return set(feature.inputs)
    return set(compile_sql(feature.argument).columns) if feature.kind == "expr" else {feature.argument}


def _computed_column(feature: Computed, request: Schema, project: Project) -> Column:
    if feature.type is not None:
        return Column(feature.name, feature.type)
    if feature.kind == "holiday_of":
        return Column(feature.name, "bool")
    if feature.kind in CALENDAR_CATEGORIES:
        return Column(feature.name, "int", categories=CALENDAR_CATEGORIES[feature.kind])
    empty = pl.DataFrame(schema={column.name: DTYPES[column.type] for column in request.columns})
    try:
        dtype = empty.select(compile_sql(feature.argument).polars).dtypes[0]
    except pl.exceptions.PolarsError as error:
        raise ConfigError(str(error), at=_place_of(project, feature.name)) from error
    return Column(feature.name, _type_of(dtype))


def _type_of(dtype: pl.DataType) -> ColumnType:
    if dtype == pl.Boolean:
        return "bool"
    if dtype.is_integer():
        return "int"
    return "category" if dtype == pl.String else "float"
