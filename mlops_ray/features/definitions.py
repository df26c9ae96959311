"""What the features of a project are: views over histories, and what is computed from the request itself.

A `FeatureSet` holds all that is needed to compute the features of a training row or of a request. It is plain
data with a digest, goes into the model's package, and is the only description of features that serving reads.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar, Literal

import polars as pl
from pydantic import ConfigDict, TypeAdapter

from mlops_ray.config import CALENDAR_KINDS, Feature, Lag, Project, Source, View
from mlops_ray.config.values import columns_of
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
    kind: Literal["latest", "value_at", "window"]
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
    def reads(self) -> frozenset[str]:
        """The columns of the request that it is made of."""
        if self.inputs:
            return frozenset(self.inputs)
        return compile_sql(self.argument).columns if self.kind == "expr" else frozenset({self.argument})

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
        """Plain data that `FeatureSet.from_json` reads again."""
        return {**asdict(self), "columns": Schema(self.columns).to_json()["columns"]}


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

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

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

    @cached_property
    def is_of_own_columns(self) -> bool:
        """Whether all features are columns of the request as they are, with the same types."""
        types = {column.name: column.type for column in self.request.columns}
        # Times of a resampled target are looked at besides.
        return self.every_us is None and all(
            c.name in self.own_columns and types.get(c.name) == c.type for c in self.columns
        )

    @property
    def clock(self) -> frozenset[str]:
        """Features that only tell the time."""
        return frozenset(feature.name for feature in self.computed if feature.kind in CALENDAR_KINDS)

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

    def made_of(self, columns: frozenset[str]) -> frozenset[str]:
        """The features whose values are made of any of these columns of sources and requests."""
        stored = {feature.name for feature in self.stored if feature.of in columns}
        return frozenset(stored | {feature.name for feature in self.computed if feature.reads & columns})

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
            **asdict(self),
            "request": self.request.to_json(),
            "columns": Schema(self.columns).to_json()["columns"],
            "tables": [table.to_json() for table in self.tables],
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> "FeatureSet":
        """The feature set that `to_json` wrote."""
        return _FEATURE_SET.validate_python(data)


_FEATURE_SET = TypeAdapter(FeatureSet)

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
    resample = source.resample
    if resample is None:
        columns = tuple(column for column in typed.values() if column.name not in source.entity)
    else:
        with _at("sources", name, "resample"):
            columns = tuple(_aggregated(typed[of], agg) for of, agg in resample.columns.items())
    return ViewTable(
        source=name,
        table=table_name(name, source),
        keys=source.entity,
        columns=columns,
        every_us=resample.every if resample else None,
        aggregations=tuple(resample.columns.items()) if resample else (),
        row_id=source.row_id,
        back_loaded=source.known_at is not None,
    )


def _aggregated(column: Column, agg: str) -> Column:
    """What an aggregate of a column is: `first` and `last` are one of its values, others a number."""
    if column.type not in NUMERIC and agg not in OF_ANYTHING:
        raise ConfigError(
            f"{agg} of {column.name!r}, which is of type {column.type}; "
            f"such a column has {', '.join(OF_ANYTHING)}"
        )
    return column if agg in PICKING else Column(column.name, aggregated_type(agg, column.type))


def compile_features(project: Project) -> FeatureSet:
    """The feature set of a project file.

    Raises `ConfigError` for what cannot be computed, naming the place in the file.
    """
    try:
        return _compiled(project)
    except ConfigError as error:
        raise project.located(error) from None


@contextmanager
def _at(*place: str) -> Iterator[None]:
    """What is wrong within is wrong at this place of the project file, a path of its keys."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(error.message, at=(*place, *error.at)) from error


@dataclass(frozen=True)
class _Defined:
    """A feature, its column, and the place in the project file where it is defined."""

    feature: Stored | Computed
    column: Column
    place: tuple[str, ...]


def _compiled(project: Project) -> FeatureSet:
    target = project.sources[project.target.source]
    if len(project.target.horizon) > 1:
        raise ConfigError("several horizons is not supported yet", at=("target",))
    if target.event_time is None:
        raise ConfigError("a target's source without event time is not supported yet", at=("target",))
    time = target.event_time.column or "time"
    sources = dict.fromkeys(view.source for view in project.features.values() if view.source)
    tables = {name: view_table(name, project.sources[name]) for name in sources}
    defined = [*_all_stored(project, tables), *_all_computed(project, time)]
    stored = tuple(d.feature for d in defined if isinstance(d.feature, Stored))
    computed = tuple(d.feature for d in defined if isinstance(d.feature, Computed))
    features = FeatureSet(
        request=_request_schema(target, time, stored, computed),
        columns=tuple(d.column for d in defined),
        stored=stored,
        computed=computed,
        tables=tuple(tables.values()),
        horizon_us=project.target.horizon[0],
        time=time,
        every_us=target.resample.every if target.resample else None,
        strict=project.target.known_at == "event",
    )
    hidden = frozenset(name for source in project.sources.values() for name in source.hidden)
    hidden |= features.made_of(hidden)
    columns = (replace(column, hidden=column.name in hidden) for column in features.columns)
    features = replace(features, columns=tuple(columns))
    _refuse_the_label(project, features.request)
    _refuse_taken_names(defined, features)
    return features


def _all_stored(project: Project, tables: Mapping[str, ViewTable]) -> Iterator[_Defined]:
    """The features of views with a source."""
    for view_name, view in project.features.items():
        if view.source is None:
            continue
        source = project.sources[view.source]
        with _at("features", view_name):
            on = _on(view, source, project.sources[project.target.source])
        for name, feature in view.features.items():
            place = ("features", view_name, "features", name)
            with _at(*place):
                stored = _stored(project, view.source, on, view.ttl, name, feature)
                column = _stored_column(stored, tables[view.source])
                _refuse_the_answer(project, stored)
            yield _Defined(stored, column, place)


def _all_computed(project: Project, time: str) -> Iterator[_Defined]:
    """The features of the request itself, a row's own columns included."""
    target = project.sources[project.target.source]
    types = {column.name: column.type for column in target.row_schema.columns} | {time: "datetime"}
    for view_name, view in project.features.items():
        for name in (*(view.columns or ()), *view.exclude):
            if name not in target.columns:
                hint = did_you_mean(name, target.columns)
                raise ConfigError(
                    f"{name!r} is no column of the target's source{hint}", at=("features", view_name)
                )
        own = [name for name in view.columns or () if name not in view.exclude]
        found = [("columns", name, Feature.model_construct(expr=column_sql(name))) for name in own]
        found += [("on_request", name, feature) for name, feature in (view.on_request or {}).items()]
        for part, name, feature in found:
            place = ("features", view_name, part, name)
            with _at(*place):
                computed = _computed(name, feature, target, time)
                column = _computed_column(computed, types)
            yield _Defined(computed, column, place)


def _refuse_taken_names(defined: list[_Defined], features: FeatureSet) -> None:
    """In a training set, features stand beside the request's columns and the label."""
    taken = {*features.request.names, LABEL} - features.own_columns
    for name, place in ((d.column.name, d.place) for d in defined):
        if features.names.count(name) > 1:
            raise ConfigError(f"{name!r} is defined twice", at=place)
        if name in taken:
            raise ConfigError(
                f"{name!r} is a column of the request, or the label; call it otherwise", at=place
            )


def _refuse_the_label(project: Project, request: Schema) -> None:
    """A request cannot hold what is to be predicted."""
    label = _made_of(compile_sql(project.target.expr).columns, project.sources[project.target.source])
    for name in sorted(label & set(request.names)):
        why = f"is made of {name!r}, which a request holds: who asks would know the answer"
        raise ConfigError(why, at=("target", "expr"))


def _refuse_the_answer(project: Project, feature: Stored) -> None:
    """A feature that looks at the target's own row, at T, would train a model to copy its answer."""
    target, source = project.target, project.sources[feature.source]
    own = project.sources[target.source]
    is_same = feature.source == target.source or (source.path, source.sql) == (own.path, own.sql)
    label = _made_of(compile_sql(target.expr).columns, own)
    reads_the_label = is_same and bool(_made_of(frozenset({feature.of}), source) & label)
    # Known when it was stored, a while after it happened, or when a column says: not yet at its own time.
    is_known_later = source.known_at is None or source.known_at.after_event != 0
    hides_itself = target.known_at == "event" and is_known_later
    # How long before T the newest row lies that it may read.
    newest_us = feature.ago_us if feature.kind == "value_at" else target.horizon[0]
    if reads_the_label and not (newest_us or hides_itself):
        raise ConfigError(
            f"reads {feature.of!r} up to T, and the target at T is made of it: the answer would be among its "
            "inputs. Say how far ahead is predicted (target.horizon), read an earlier value (value_at), or, "
            "where rows become known later than they happen, known_at: event at the target"
        )


def _made_of(columns: frozenset[str], source: Source) -> frozenset[str]:
    """These columns of a source, and those that they are derived from."""
    every = columns.union(*(columns_of(how) for name, how in source.derive.items() if name in columns))
    return columns if every == columns else _made_of(every, source)


def _stored(
    project: Project, source_name: str, on: tuple[str, ...], ttl_us: int | None, name: str, feature: Feature
) -> Stored:
    source = project.sources[source_name]
    if source.time is not None and feature.latest is None:
        raise ConfigError(f"{source_name!r} has no time, so it has latest values only")
    made = partial(Stored, name, source_name, on)
    if feature.latest is not None:
        return made(feature.latest, "latest", ttl_us=ttl_us)
    if (window := feature.window) is not None:
        return made(window.of, "window", agg=window.agg, over_us=window.over, quantile=window.quantile)
    if (at := feature.value_at) is not None:
        return made(at.of, "value_at", ago_us=at.ago, tolerance_us=at.tolerance)
    assert feature.lag is not None
    return made(feature.lag.of, "value_at", ago_us=_lag_us(feature.lag, project, source))


def _lag_us(lag: Lag, project: Project, source: Source) -> int:
    """A lag in rows as a duration, where rows are known by their order and come at equal distances."""
    every = source.event_time.every if source.event_time else None
    if every is None:
        raise ConfigError(
            "lag counts rows where order is time (event_time: {order: true, every: …}); elsewhere "
            "say value_at, e.g. {of: load, ago: 1d}"
        )
    if lag.rows * every < project.target.horizon[0]:
        raise ConfigError("looks past the moment of prediction: the lag is shorter than the horizon")
    return lag.rows * every


def _on(view: View, source: Source, target: Source) -> tuple[str, ...]:
    """What the keys of a view's table are called in a request: their own names, unless `join_keys` says."""
    names = {key: name for name, key in view.join_keys.items()}
    for key in names:
        if key not in source.entity:
            hint = did_you_mean(key, source.entity)
            raise ConfigError(f"{key!r} is no key of the view{hint}", at=("join_keys",))
    if len(names) < len(view.join_keys):
        raise ConfigError("two names for one key", at=("join_keys",))
    if source.time is not None and view.ttl is not None:
        raise ConfigError("a table without time has no age", at=("ttl",))
    on = tuple(names.get(key, key) for key in source.entity)
    for name, key in zip(on, source.entity, strict=True):
        if name not in target.columns:
            hint = did_you_mean(name, target.columns)
            raise ConfigError(
                f"the key {name!r} is no column of the target's source{hint} (join_keys: "
                f"{{NAME: {key}}} says what it is called there)"
            )
        there, here = target.columns[name].type, source.columns[key].type
        if DTYPES[there] != DTYPES[here]:
            raise ConfigError(f"the key {name!r} is {there} in the target's source and {here} here")
    return on


def _stored_column(feature: Stored, table: ViewTable) -> Column:
    of = next((c for c in table.columns if c.name == feature.of), None)
    if of is None:
        raise ConfigError(f"reads {feature.of!r}, which is a key, or left out by the resampling")
    made = of if feature.agg is None else _aggregated(of, feature.agg)
    # What the source's rows must be, its view's rows have been checked for; a feature may be missing.
    return Column(feature.name, made.type, categories=made.categories)


def _computed(name: str, feature: Feature, target: Source, time: str) -> Computed:
    if feature.expr is not None:
        return Computed(name, "expr", feature.expr)
    if (function := feature.function) is not None:
        code = function_digest(function.path)
        return Computed(name, "function", function.path, inputs=function.inputs, type=feature.type, code=code)
    kind = next(kind for kind in CALENDAR_KINDS if getattr(feature, kind) is not None)
    argument = getattr(feature, kind)
    times = [time, *(column for column, spec in target.columns.items() if spec.type == "datetime")]
    if argument not in times:
        raise ConfigError(
            f"{kind} reads {argument!r}, which is no time of a request; it has {', '.join(times)}"
        )
    zone = feature.timezone or (target.event_time and target.event_time.timezone) or "UTC"
    # A resampled row carries its interval's end; its calendar is that of the start.
    shift = -target.resample.every if target.resample and argument == time else 0
    return Computed(name, kind, argument, zone, feature.country, shift)


def _computed_column(feature: Computed, types: Mapping[str, ColumnType]) -> Column:
    """The column of a feature of a request, whose columns can have these types."""
    for name in sorted(feature.reads - types.keys()):
        raise ConfigError(f"reads {name!r}, which a request does not hold{did_you_mean(name, types)}")
    if feature.type is not None:
        return Column(feature.name, feature.type)
    if feature.kind != "expr":
        categories = CALENDAR_CATEGORIES.get(feature.kind)
        return Column(feature.name, "int" if categories else "bool", categories=categories)
    empty = pl.DataFrame(schema={name: DTYPES[type] for name, type in types.items()})
    try:
        dtype = empty.select(compile_sql(feature.argument).polars).dtypes[0]
    except pl.exceptions.PolarsError as error:
        raise ConfigError(str(error)) from error
    if dtype == pl.Boolean:
        return Column(feature.name, "bool")
    if dtype.is_integer():
        return Column(feature.name, "int")
    return Column(feature.name, "category" if dtype == pl.String else "float")


def _request_schema(
    target: Source, time: str, stored: tuple[Stored, ...], computed: tuple[Computed, ...]
) -> Schema:
    """The columns of a request: entity keys, target time, the keys of views, inputs of computed features."""
    known = {column.name: column for column in target.row_schema.columns}
    keys = dict.fromkeys([*target.entity, *(name for feature in stored for name in feature.on)])
    columns = {key: replace(known[key], required=key in target.entity) for key in keys}
    columns[time] = Column(time, "datetime", required=True)
    for feature in computed:
        columns |= {name: known[name] for name in sorted(feature.reads - columns.keys())}
    # A word that means nothing in the source's files means nothing in a request.
    words = target.row_schema
    return Schema(tuple(columns.values()), (), words.true_values, words.false_values, words.null_values)
