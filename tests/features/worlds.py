"""Feature sets over one or two tables whose histories grow by commits: what online stores are checked on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl
from hypothesis import assume
from hypothesis import strategies as st

from mlops_ray.features.commits import BEGINNING
from mlops_ray.features.definitions import FeatureSet, Stored, ViewTable
from mlops_ray.features.history import AsOf, Snapshot
from mlops_ray.features.join import join
from mlops_ray.instants import to_micros
from mlops_ray.schema import DTYPES, INSTANT, Column, ColumnType, Schema

from .cases import BASE, KEY_TYPES, SPAN, Case, cases, micros
from .oracle import Asked

#: An entity of whom nothing is known.
STRANGER: dict[str, Any] = {"k": "unknown", "l": 9}
#: What requests ask for: entities with rows, a stranger, and nobody.
ASKED: dict[str, list[Any]] = {"k": ["a", "b", STRANGER["k"], None], "l": [1, 2, STRANGER["l"], None]}
#: Long after everything.
DAYS = 10 * 86_400_000_000
START = to_micros(BEGINNING)


@dataclass(frozen=True)
class Table:
    """A table of a world: its history and features as a case has them, and how the case is seen."""

    case: Case
    source: str
    back_loaded: bool

    @cached_property
    def view(self) -> ViewTable:
        found = self.case.view
        # As `view_table` has it: a row's id is one of its columns.
        id_type: ColumnType = "int" if self.case.row_id == "int" else "string"
        columns = (*found.columns, Column("r", id_type)) if self.case.row_id else found.columns
        name = f"{self.source}-1"
        return replace(found, source=self.source, table=name, columns=columns, back_loaded=self.back_loaded)

    @property
    def stored(self) -> list[tuple[Stored, Column]]:
        """The features and their columns, with names that are the table's own."""
        found = self.case.feature_set
        names = [f"{self.source}_{stored.name}" for stored in found.stored]
        return [
            (replace(stored, name=name, source=self.source), replace(column, name=name))
            for name, stored, column in zip(names, found.stored, found.columns, strict=True)
        ]

    def snapshot(self, folder: Path, known_at: int) -> Snapshot:
        """The history after its newest commit up to `known_at`."""
        commit = micros(max(c for c in self.commits if c <= known_at))
        held = self.case.snapshot(folder)
        return Snapshot(self.view, AsOf(commit, commit), False, held.buckets)

    @property
    def commits(self) -> list[int]:
        return sorted({row.committed for row in self.case.versions})


@dataclass(frozen=True)
class World:
    """Tables, the features that read them, the horizon, and whether each P sees what was known then."""

    tables: tuple[Table, ...]
    horizon: int
    strict: bool

    @cached_property
    def features(self) -> FeatureSet:
        pairs = [pair for table in self.tables for pair in table.stored]
        keys = dict.fromkeys(key for table in self.tables for key in table.case.keys)
        request = Schema((*(Column(key, KEY_TYPES[key]) for key in keys), Column("t", "datetime")))
        return FeatureSet(
            request=request,
            columns=tuple(column for _, column in pairs),
            stored=tuple(stored for stored, _ in pairs),
            computed=(),
            tables=tuple(table.view for table in self.tables),
            horizon_us=self.horizon,
            time="t",
            strict=self.strict,
        )

    @property
    def commits(self) -> list[int]:
        """The moments at which something was stored, once all tables have a history."""
        begin = max(table.commits[0] for table in self.tables)
        return sorted({c for table in self.tables for c in table.commits if c >= begin} | {begin})

    def is_known(self, at: int) -> bool:
        """Whether every table has a row that is known after its newest commit up to a moment."""
        commits = [max(c for c in table.commits if c <= at) for table in self.tables]
        return all(
            any(row.known <= commit and row.committed <= commit for row in table.case.versions)
            for table, commit in zip(self.tables, commits, strict=True)
        )

    def snapshots(self, folder: Path, known_at: int) -> dict[str, Snapshot]:
        found = {}
        for table in self.tables:
            place = folder / table.source
            place.mkdir(exist_ok=True)
            found[table.source] = table.snapshot(place, known_at)
        return found

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(name for name in self.features.request.names if name != "t")

    def asked(self, times: Sequence[int]) -> pl.DataFrame:
        """A row for every combination of a time and of known, unknown and missing keys."""
        rows = list(product(times, *(ASKED[key] for key in self.keys)))
        schema = {"t": pl.Int64} | {key: DTYPES[KEY_TYPES[key]] for key in self.keys}
        return pl.DataFrame(rows, schema=schema, orient="row").with_columns(pl.col("t").cast(INSTANT))

    def times(self) -> Iterator[int]:
        """Target times on all edges of events and features, and long after them."""
        yield from range(BASE - 2, BASE + SPAN + 6)
        yield from (BASE + SPAN + 40, BASE + SPAN + DAYS)


def offline(asked: pl.DataFrame, snapshots: dict[str, Snapshot], features: FeatureSet) -> pl.DataFrame:
    return join(asked, snapshots, features, on_ray=False)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """One or two tables: live or back-loaded, some without time, some without keys, some resampled."""
    shape = draw(st.binary(min_size=5, max_size=5))
    drawn = [draw(cases()) for _ in range(1 + (shape[0] % 3 == 2))]
    assume(all(case.versions and case.features for case in drawn))
    tables = []
    for number, case in enumerate(drawn):
        if shape[1 + number] % 6 == 5:
            case = without_time(case)
        says_itself = any(row.known != row.committed for row in case.versions)
        tables.append(Table(case, "st"[number], says_itself or shape[3] % 2 == 1))
    return World(tuple(tables), min(case.question.horizon for case in drawn), strict=shape[4] % 2 == 1)


def without_time(case: Case) -> Case:
    """The same as a static table: rows of all times, told apart by their keys, and latest values alone."""
    names = {column.name for column in case.view.columns} if not case.question.every else set("xibsn")
    return replace(
        case,
        row_id=None,
        question=replace(case.question, every=None, aggregations=()),
        versions=tuple(replace(row, event=START, row_id=None) for row in case.versions),
        features=tuple(Asked(feature.of, "latest") for feature in case.features if feature.of in names),
    )
