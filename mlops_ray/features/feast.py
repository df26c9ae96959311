"""The exporter to Feast: a whole repository of the features that Feast can express, the plain latest values.

Feast's DuckDB store means the same by them as we do: of the rows with event time in [P - ttl, P] the greatest
event time, then the greatest known_at. What it cannot express is returned, and listed in the repository.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import polars as pl

from mlops_ray.errors import ConfigError, StorageError
from mlops_ray.schema import INSTANT
from mlops_ray.storage import Storage, replacing

TIMES = ("event_time", "known_at")
#: What Feast calls the type of a column, and the type of an entity.
TYPES: dict[pl.DataType, tuple[str, str]] = {
    pl.Float64(): ("Float64", "DOUBLE"),
    pl.Int64(): ("Int64", "INT64"),
    pl.Boolean(): ("Bool", "BOOL"),
    pl.String(): ("String", "STRING"),
    INSTANT: ("UnixTimestamp", "UNIX_TIMESTAMP"),
}
#: Columns that Feast's DuckDB store adds when it joins; it also drops every one that ends in `_y`.
RESERVED = (*TIMES, "event_timestamp", "event_expire_timestamp", "entity_row_id", "rn")


@dataclass(frozen=True)
class FeastView:
    """The plain latest values of a view.

    `join_keys` maps the spine's name of each key to the view's, `features` are pairs of a name and the column
    that it reads, `ttl_us` is how long a value counts, in microseconds; `None` is forever.
    """

    name: str
    join_keys: Mapping[str, str]
    features: tuple[tuple[str, str], ...]
    ttl_us: int | None = None


def export(
    folder: Path,
    project: str,
    views: Sequence[FeastView],
    rows: Mapping[str, pl.DataFrame],
    others: Mapping[str, str],
) -> dict[str, str]:
    """Writes the repository; returns the features that it lacks, each with the reason.

    Names of features are unique in a project. `rows` are each view's rows in force by its name: keys,
    `event_time`, `known_at` and columns of the types in `TYPES`, the winner of a tie last. `others` are
    features that are no plain latest values, each with what it is instead. Raises `ConfigError` for a name of
    a view or key that no Python variable can have, `StorageError` where the folder cannot be written.

    >>> from datetime import UTC, datetime
    >>> from tempfile import TemporaryDirectory
    >>> noon = pl.Series([datetime(2013, 1, 1, 12, tzinfo=UTC)], dtype=INSTANT)
    >>> rows = pl.DataFrame({"airport": ["EWR"], "event_time": noon, "known_at": noon, "temp": [39.0]})
    >>> weather = FeastView("weather", {"origin": "airport"}, (("temperature", "temp"),), 7_200_000_000)
    >>> with TemporaryDirectory() as folder:
    ...     export(Path(folder), "flights", [weather], {"weather": rows}, {"delay_7d": "a window"})
    {'delay_7d': 'a window'}
    """
    for name in (name for view in views for name in (view.name, *view.join_keys)):
        if not name.isidentifier():
            raise ConfigError(
                f"{name!r} cannot be exported, since views and keys become variables of a Python file; "
                "rename it to letters, digits and _"
            )
    lacking = {name: reason for view in views for name, reason in _refused(view)} | dict(others)
    # Feast refuses a view without features.
    kept = [view for view in views if not dict(view.features).keys() <= lacking.keys()]
    tables = {view.name: _table(view, rows[view.name], lacking) for view in kept}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {folder}: {error.strerror}") from error
    place = Storage(folder)
    for name, table in tables.items():
        with replacing(place.path("data", f"{name}.parquet")) as new:
            table.write_parquet(new)
    files = {
        "feature_store.yaml": _STORE.format(project=project.replace("-", "_")),
        "features.py": _definitions(project, kept, tables, lacking),
    }
    for name, text in files.items():
        with replacing(place.path(name)) as new:
            new.write_text(text, encoding="utf-8")
    return lacking


def _refused(view: FeastView) -> Iterator[tuple[str, str]]:
    # DuckDB's names have no case.
    taken = [name.lower() for name in (*RESERVED, *view.join_keys, *dict(view.features))]
    for name, _ in view.features:
        if view.ttl_us == 0:
            yield name, "a ttl of 0, which Feast takes for none"
        elif taken.count(name.lower()) > 1 or name.endswith("_y") or ":" in name:
            yield name, "a name that Feast keeps for itself, or cannot tell from another"


def _table(view: FeastView, rows: pl.DataFrame, lacking: Mapping[str, str]) -> pl.DataFrame:
    """Keys as the spine calls them, both times, the features; of rows alike in keys and times the last."""
    keys = [pl.col(key).alias(name) for name, key in view.join_keys.items()]
    features = [pl.col(column).alias(name) for name, column in view.features if name not in lacking]
    winners = rows.unique([*view.join_keys.values(), *TIMES], keep="last", maintain_order=True)
    return winners.select(*keys, *TIMES, *features).sort(*view.join_keys, *TIMES)


def _definitions(
    project: str,
    views: Sequence[FeastView],
    tables: Mapping[str, pl.DataFrame],
    lacking: Mapping[str, str],
) -> str:
    missing = "".join(
        f"#   {json.dumps(name, ensure_ascii=False)}: {reason}\n" for name, reason in lacking.items()
    )
    keys = {key: tables[view.name].schema[key] for view in views for key in view.join_keys}
    entities = [_ENTITY.format(name=key, type=TYPES[dtype][1]) for key, dtype in keys.items()]
    texts = [_view(view, tables[view.name].schema) for view in views]
    return "".join([_HEAD.format(project=project, missing=missing or "#   nothing\n"), *entities, *texts])


def _view(view: FeastView, schema: pl.Schema) -> str:
    ttl = None if view.ttl_us is None else timedelta(microseconds=view.ttl_us)
    return _VIEW.format(
        name=view.name,
        entities=", ".join(f"{key}_entity" for key in view.join_keys),
        ttl=repr(ttl).removeprefix("datetime."),
        fields="\n".join(
            f"        Field(name={json.dumps(name, ensure_ascii=False)}, dtype={TYPES[dtype][0]}),"
            for name, dtype in schema.items()
            if name not in TIMES
        ),
    )


# Feast's SQLite store takes no hyphen in a project's name.
_STORE = """\
project: "{project}"
provider: local
registry: data/registry.db
offline_store:
  type: duckdb
online_store:
  type: sqlite
  path: data/online.db
entity_key_serialization_version: 3
"""

_HEAD = """\
# The features of {project} for Feast 0.67 with feast[duckdb], exported by mlops-ray. Call `feast apply` here.
# A spine's event_timestamp is the moment of prediction: the target time less the horizon. The data are the
# rows in force at the export, without what they corrected. Feast cannot express, so these are not here:
{missing}
from datetime import timedelta
from pathlib import Path

from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Bool, Float64, Int64, String, UnixTimestamp

# Feast's DuckDB store would look for a relative path where it is called, not here.
DATA = Path(__file__).resolve().parent / "data"
"""

_ENTITY = """
{name}_entity = Entity(name="{name}", join_keys=["{name}"], value_type=ValueType.{type})
"""

_VIEW = """
{name}_source = FileSource(
    name="{name}",
    path=str(DATA / "{name}.parquet"),
    timestamp_field="event_time",
    created_timestamp_column="known_at",
)
{name}_view = FeatureView(
    name="{name}",
    entities=[{entities}],
    ttl={ttl},
    schema=[
{fields}
    ],
    source={name}_source,
)
"""
