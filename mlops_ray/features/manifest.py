"""What the manifest of a training set says, as typed values: nothing of it is used before all of it is read.

A set is called by the hash of its manifest: of the question (definitions, what was known and stored when,
target or spine, policies), of the values that were found, and of the versions of what computed them.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, ConfigDict, Field, ValidationError

from mlops_ray.config import Model, Policy, Sql
from mlops_ray.errors import DataError
from mlops_ray.features.definitions import FeatureSet, ViewTable
from mlops_ray.features.history import AsOf
from mlops_ray.storage import digest

#: Raised when the digests change, or what a manifest must say: no older one is then compared.
FORMAT = 2
#: What is appended to a manifest where rows of its set are erased.
SUPERSEDED = "superseded"


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
    task: str = "regression"
    positive: str | int | bool | None = None


class Question(Model):
    """What was asked of one history."""

    known_at: Instant
    committed_at: Instant
    table: ViewTable

    @property
    def as_of(self) -> AsOf:
        return AsOf(self.known_at, self.committed_at)


class Superseding(Model):
    """What a set became when rows of a key were erased; `key` stands for it (`erased.Erased.hash`)."""

    digest: Digest
    rows: int
    at: Instant
    reason: str
    key: str
    spine: str | None = Field(None, pattern=r"^spine-[0-9a-f]{12}\.parquet$")
    libraries: dict[str, str]


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
    superseded: tuple[Superseding, ...] = ()

    @property
    def newest_digest(self) -> str:
        """What the values hash to since rows were last erased."""
        return self.superseded[-1].digest if self.superseded else self.digest

    @property
    def newest_spine(self) -> str | None:
        """The rows that were asked, but for those that were erased."""
        return next((each.spine for each in reversed(self.superseded) if each.spine), self.spine)

    def asking(self, spine: str | None) -> "Manifest":
        """The same question of other rows of a user's, where such were asked."""
        return self.model_copy(update={"spine": spine, "superseded": ()}) if spine is not None else self

    @property
    def newest_libraries(self) -> dict[str, str]:
        """The versions of what computed the newest values."""
        return self.superseded[-1].libraries if self.superseded else self.libraries


def name(document: dict[str, Any]) -> str:
    """What the Parquet file of a manifest is called; the manifest itself ends in `.json`.

    Of what was erased later it says nothing: a set keeps its name.
    """
    sealed = {key: value for key, value in document.items() if key not in ("file", SUPERSEDED)}
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
    """What does not fit together: the place, and what is wrong there."""
    # The rest is not looked at: what is made of a manifest counts only where its digest is the recorded one.
    target = manifest.target
    if (target is None, manifest.warm is None) != ((manifest.spine is not None,) * 2):
        yield "target: say target and warm, or else spine"
    for source in [view.source for view in manifest.features.tables] + ([target.source] if target else []):
        if source not in manifest.as_of:
            yield f"as_of: the source {source!r} is missing"
    for source, question in manifest.as_of.items():
        folder = question.table.table
        if folder != f"{source}-{folder[-12:]}" or "/" in folder:
            yield f"as_of.{source}.table: {folder!r} is no history of {source!r}"
