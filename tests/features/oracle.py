"""Sections 1 to 4 of semantics.md read aloud: short, slow, and obviously right.

Plain Python over plain integers (microseconds since 1970), one spine row at a time, with no sorting trick, no
index and no shared state. It knows nothing of the code that it judges.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Version:
    """One row of a history: what was said of an identity, and when. The event time stands for a row id."""

    key: Key
    event: int
    known: int
    committed: int
    sequence: int
    values: Mapping[str, Any] = field(default_factory=dict)
    row_id: Any = None
    deleted: bool = False

    @property
    def identity(self) -> tuple[Any, ...]:
        return (self.key, self.event if self.row_id is None else self.row_id)

    @property
    def place(self) -> tuple[Any, ...]:
        """The order in which aggregates fold: event time, then row id."""
        return (self.event, 0 if self.row_id is None else self.row_id)

    @property
    def rank(self) -> tuple[Any, ...]:
        """Of two rows at one event time the later known counts, then the sequence, then the row id."""
        return (self.event, self.known, self.sequence, 0 if self.row_id is None else self.row_id)


@dataclass(frozen=True)
class Question:
    """As known at K among what was committed by C; strict questions are as known at P, row by row."""

    known_at: int
    committed_at: int
    strict: bool = False
    horizon: int = 0
    #: Length of the intervals that rows are resampled to, and the aggregate of each column.
    every: int | None = None
    aggregations: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Asked:
    """A feature: `latest`, `value_at` or `window` of a column."""

    of: str
    kind: str
    agg: str = ""
    ttl: int | None = None
    over: int = 0
    ago: int = 0
    tolerance: int = 0
    quantile: float | None = None


def in_force(versions: Iterable[Version], known_at: int, committed_at: int) -> list[Version]:
    """Of each identity the row greatest by (known_at, sequence), unless that row says deleted.

    Of two rows that neither tells apart, the one committed later counts, then the later in its file.
    """
    greatest: dict[Any, Version] = {}
    for row in versions:
        if row.known <= known_at and row.committed <= committed_at:
            other = greatest.get(row.identity)
            order = (row.known, row.sequence, row.committed)
            if other is None or order >= (other.known, other.sequence, other.committed):
                greatest[row.identity] = row
    return [row for row in greatest.values() if not row.deleted]


def resampled(rows: list[Version], every: int, aggregations: Iterable[tuple[str, str]]) -> list[Version]:
    """One row an interval that has rows: stamped with its end, known when its newest input was."""
    intervals: dict[Any, list[Version]] = {}
    for row in rows:
        intervals.setdefault((row.key, (row.event // every + 1) * every), []).append(row)
    made = []
    for (key, end), inputs in intervals.items():
        ordered = sorted(inputs, key=lambda row: row.place)
        values = {of: aggregate(agg, [row.values[of] for row in ordered]) for of, agg in aggregations}
        known, committed = max(row.known for row in inputs), max(row.committed for row in inputs)
        made.append(Version(key, end, known, committed, 0, values))
    return made


def table(versions: Iterable[Version], asked: Question, p: int) -> list[Version]:
    """What a view holds for a prediction at `p`."""
    known_at = min(p, asked.known_at) if asked.strict else asked.known_at
    rows = in_force(versions, known_at, asked.committed_at)
    return rows if asked.every is None else resampled(rows, asked.every, asked.aggregations)


def answer(versions: Iterable[Version], asked: Question, key: Key, target: int, feature: Asked) -> Any:
    """The feature's value for one row of the spine."""
    p = target - asked.horizon
    # A null key is nobody's, also not that of rows with a null key.
    mine = [row for row in table(versions, asked, p) if row.key == key and None not in key]
    if feature.kind == "window":
        inside = [row for row in mine if p - feature.over < row.event <= p]
        ordered = sorted(inside, key=lambda row: row.place)
        return aggregate(feature.agg, [row.values[feature.of] for row in ordered], feature.quantile)
    if feature.kind == "value_at":
        newest_at = target - feature.ago
        seen = [row for row in mine if newest_at - feature.tolerance <= row.event <= newest_at]
    else:
        oldest = -math.inf if feature.ttl is None else p - feature.ttl
        seen = [row for row in mine if oldest <= row.event <= p]
    return max(seen, key=lambda row: row.rank).values[feature.of] if seen else None


def aggregate(agg: str, values: list[Any], quantile: float | None = None) -> Any:
    """An aggregate of values in their order; `None` is a missing value, in and out."""
    if agg == "count":
        return len(values)
    if agg == "first":
        return values[0] if values else None
    if agg == "last":
        return values[-1] if values else None
    given = [value for value in values if value is not None]
    if not given:
        return None
    if agg == "distinct_count":
        return len(set(given))
    numbers = [float(value) for value in given]
    if agg == "sum":
        return sum(numbers)
    if agg == "mean":
        return sum(numbers) / len(numbers)
    if agg == "min":
        return min(numbers)
    if agg == "max":
        return max(numbers)
    if agg == "std":
        mean = sum(numbers) / len(numbers)
        squares = sum((number - mean) ** 2 for number in numbers)
        return math.sqrt(squares / (len(numbers) - 1)) if len(numbers) > 1 else None
    assert agg == "quantile"
    ranked, place = sorted(numbers), (0.5 if quantile is None else quantile) * (len(numbers) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (ranked[high] - ranked[low]) * (place - low)
