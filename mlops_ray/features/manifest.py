"""What the manifest of a training set says, as typed values: nothing of it is used before all of it is read.

A set is called by the hash of its manifest: of the question (definitions, what was known and stored when,
target or spine, policies), of the values that were found, and of the versions of what computed them.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, AwareDatetime, ConfigDict, Field, ValidationError

from mlops_ray.config import CALENDAR_KINDS, Aggregation, Feature, Model, Policy, Sql
from mlops_ray.errors import DataError, did_you_mean
from mlops_ray.expressions import compile_sql
from mlops_ray.features.definitions import NUMERIC, OF_ANYTHING, Computed, FeatureSet, Stored, ViewTable
from mlops_ray.features.history import AsOf
from mlops_ray.features.resample import aggregated_type
from mlops_ray.instants import EARLIEST, LATEST, MICROSECOND
from mlops_ray.storage import digest

#: Raised when the digests change, or what a manifest must say: no older one is then compared.
FORMAT = 2
#: No duration of a feature is longer than the calendar.
LONGEST_US = (LATEST - EARLIEST) // MICROSECOND
STORED, COMPUTED = ("latest", "value_at", "window"), ("expr", "function", *CALENDAR_KINDS)


def _in_utc(instant: datetime) -> datetime:
    try:
        return instant.astimezone(UTC)
    except OverflowError:
        raise ValueError("lies outside the calendar") from None


Instant = Annotated[AwareDatetime, AfterValidator(_in_utc)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Target(Model):
    """Which rows have a label, and how it is computed."""

    source: str
    expr: Sql
    where: Sql | None


class Question(Model):
    """What was asked of one history."""

    known_at: Instant
    committed_at: Instant
    table: ViewTable

    @property
    def as_of(self) -> AsOf:
        return AsOf(self.known_at, self.committed_at)


class Manifest(Model):
    """All that a training set is made from; what stands in the file for people only is not read."""

    model_config = ConfigDict(extra="ignore")

    file: str
    project: str = Field(pattern="^[a-z0-9-]+$")
    digest: Digest
    features: FeatureSet
    target: Target | None = None
    warm: Instant | None = None
    spine: str | None = Field(None, pattern=r"^spine-[0-9a-f]{12}\.parquet$")
    as_of: dict[str, Question]
    policies: dict[str, Policy]
    libraries: dict[str, str]


def name(document: dict[str, Any]) -> str:
    """What the Parquet file of a manifest is called; the manifest itself ends in `.json`."""
    sealed = {key: value for key, value in document.items() if key != "file"}
    return f"{document['project']}-{digest(sealed)[:12]}.parquet"


def parse(document: Any, file: str) -> Manifest:
    """The manifest in a JSON document, which was read from `file`.

    Raises `DataError` with what is wrong in it, or where it is not as it was written.
    """
    if not isinstance(document, dict) or "format" not in document:
        raise DataError(
            "names no format: it is no manifest of a training set, or one of an older version, whose digests "
            "are made otherwise; make the set anew, with `features get` or `run`",
            file=file,
        )
    if document["format"] != FORMAT:
        raise DataError(
            f"is of format {document['format']!r}; this version reads {FORMAT}: take the one that wrote it",
            file=file,
        )
    try:
        manifest = Manifest.model_validate(document)
    except ValidationError as error:
        raise DataError(f"the manifest is wrong at {_in_words(error)}", file=file) from error
    for fault in _faults(manifest):
        raise DataError(f"the manifest is wrong at {fault}", file=file)
    if manifest.file != name(document):
        raise DataError(
            f"was changed since it was written: its contents are those of {name(document)}, and it says "
            f"{manifest.file!r}; take the manifest as it was",
            file=file,
        )
    return manifest


def _in_words(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = [".".join(str(part) for part in first["loc"])] if first["loc"] else []
    said = "is missing" if first["type"] == "missing" else first["msg"].removeprefix("Value error, ")
    return ": ".join([*place, said])


def _faults(manifest: Manifest) -> Iterator[str]:
    """What no project file could have said: the place, and what is wrong; each relies on those before."""
    features, target = manifest.features, manifest.target
    if (target is None, manifest.warm is None) != ((manifest.spine is not None,) * 2):
        yield "target: say target and warm, or else spine"
    for source in [view.source for view in features.tables] + ([target.source] if target else []):
        if source not in manifest.as_of:
            yield f"as_of: the source {source!r} is missing"
    for source, question in manifest.as_of.items():
        yield from (f"as_of.{source}.table: {fault}" for fault in _table_faults(source, question.table))
    for view in features.tables:
        if view != manifest.as_of[view.source].table:
            yield f"features.tables: {view.source!r} is another table than as_of has"
    yield from (f"features: {fault}" for fault in _feature_faults(features))


def _table_faults(source: str, view: ViewTable) -> Iterator[str]:
    if view.source != source or view.table != f"{source}-{view.table[-12:]}" or "/" in view.table:
        yield f"{view.table!r} is no history of {source!r}"
    if view.every_us is None:
        return
    if view.every_us <= 0:
        yield "every_us: no time"
    for _, agg in view.aggregations:
        if agg not in get_args(Aggregation):
            yield f"aggregations: {agg!r} is unknown{did_you_mean(agg, get_args(Aggregation))}"
    if [of for of, _ in view.aggregations] != [column.name for column in view.columns]:
        yield "aggregations: of other columns than the table has"


def _feature_faults(features: FeatureSet) -> Iterator[str]:
    for part in (features, *features.stored, *features.tables):
        for key, value in vars(part).items():
            if key.endswith("_us") and value is not None and not 0 <= value <= LONGEST_US:
                yield f"{key}: {value} is no duration"
    request = {column.name: column.type for column in features.request.columns}
    if request.get(features.time) != "datetime":
        yield f"time: {features.time!r} is no time of the request"
    every: tuple[Stored | Computed, ...] = (*features.stored, *features.computed)
    if sorted(features.names) != sorted({feature.name for feature in every}):
        yield "columns: others than the features"
    for stored in features.stored:
        yield from (f"{stored.name}: {fault}" for fault in _stored_faults(stored, features, request))
    for computed in features.computed:
        yield from (f"{computed.name}: {fault}" for fault in _computed_faults(computed, request))


def _stored_faults(feature: Stored, features: FeatureSet, request: dict[str, Any]) -> Iterator[str]:
    view = next((view for view in features.tables if view.source == feature.source), None)
    if view is None:
        yield f"reads {feature.source!r}, which is none of the tables"
        return
    if feature.kind not in STORED:
        yield f"kind: {feature.kind!r} is unknown{did_you_mean(feature.kind, STORED)}"
    if len(feature.on) != len(view.keys) or not set(feature.on) <= set(request):
        yield f"on: {', '.join(feature.on)} are not the keys of {feature.source!r} in a request"
    of = next((column for column in view.columns if column.name == feature.of), None)
    if of is None:
        yield f"reads {feature.of!r}, which is no column of {feature.source!r}"
        return
    if feature.kind == "window":
        over = f"{feature.over_us}us"
        window = {"of": of.name, "agg": feature.agg, "over": over, "quantile": feature.quantile}
        yield from _project_faults({"window": window})
        if feature.agg not in OF_ANYTHING and of.type not in NUMERIC:
            yield f"{feature.agg} of {of.name!r}, which is of type {of.type}"
    elif feature.agg is not None:
        yield f"agg: a {feature.kind} has none"
    made = of.type if feature.agg is None else aggregated_type(feature.agg, of.type)
    if features.column(feature.name).type != made:
        yield f"is of type {made}, and not {features.column(feature.name).type}"


def _computed_faults(feature: Computed, request: dict[str, Any]) -> Iterator[str]:
    if feature.kind not in COMPUTED:
        yield f"kind: {feature.kind!r} is unknown{did_you_mean(feature.kind, COMPUTED)}"
        return
    said: Any = feature.argument
    if feature.kind == "function":
        said = {"path": feature.argument, "inputs": feature.inputs}
    zone = {"timezone": feature.timezone, "country": feature.country}
    yield from _project_faults({feature.kind: said, **zone})
    is_calendar = feature.kind in CALENDAR_KINDS
    if is_calendar and request.get(feature.argument) != "datetime":
        yield f"reads {feature.argument!r}, which is no time of a request"
    if abs(feature.shift_us) > LONGEST_US:
        yield f"shift_us: {feature.shift_us} is no duration"
    reads = compile_sql(feature.argument).columns if feature.kind == "expr" else feature.inputs
    for column in sorted(set(reads) - set(request)):
        yield f"reads {column!r}, which a request does not hold"


def _project_faults(said: dict[str, Any]) -> Iterator[str]:
    """What a project file that said this would be refused for."""
    try:
        Feature.model_validate(said)
    except ValidationError as error:
        yield _in_words(error)
