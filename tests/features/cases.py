"""Histories, spines and features at random: small, so that edges are met and times collide.

A `Case` is plain Python (integers are microseconds since 1970, around an epoch before it); it is turned into
the oracle's words and into the store's.
"""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import strategies as st

from mlops_ray.config import Source
from mlops_ray.features import history
from mlops_ray.features.commits import buckets_of
from mlops_ray.features.definitions import FeatureSet, Stored, ViewTable
from mlops_ray.features.history import AsOf, Bucket, History, Snapshot
from mlops_ray.features.lookup import point_in_time
from mlops_ray.features.resample import aggregated_type
from mlops_ray.schema import DTYPES, INSTANT, Column, ColumnType, Schema

from . import oracle
from .oracle import Asked, Question, Version

#: Times are drawn from here on, so that they lie on both sides of 1970.
BASE = -7
#: How many microseconds events, commits and targets are spread over.
SPAN = 14
#: Later than any case.
FAR = BASE + 1000

TYPES: dict[str, ColumnType] = {"x": "float", "i": "int", "b": "bool", "s": "category", "n": "int"}
VALUES: dict[str, list[Any]] = {
    "x": [None, 1.0, 0.1, -0.2, 0.3, 2.0, -3.0],
    "i": [None, 0, 1, 1, -2, 5],
    "b": [None, True, False],
    "s": [None, "", "a", "b", "ä"],
    # Whole numbers that float64 does not tell apart.
    "n": [None, 2**53, 2**53 + 1, -(2**62), 7],
}
OF_ANYTHING = ("count", "first", "last", "distinct_count")
OF_NUMBERS = ("sum", "mean", "min", "max", "std", "quantile")
AGGREGATES = (*OF_NUMBERS, *OF_ANYTHING)
KEY_NAMES = ("k", "l")
#: Keys of the history, and what a spine asks for.
KEYS: dict[str, list[Any]] = {"k": ["a", "a", "a", "a", "a", "b"], "l": [1, 1, 1, 1, 1, 2]}
ASKED: dict[str, list[Any]] = {
    "k": [*"aaaaaaaaab", None, "unknown"],
    "l": [*[1] * 9, 2, None, 9],
}
KEY_TYPES: dict[str, ColumnType] = {"k": "category", "l": "int"}
ROW_IDS: dict[str, list[Any]] = {"int": [*range(-3, 9)], "str": [*"abcdefghijk", "é"]}


def micros(number: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=number)


def aggs_of(column: str) -> tuple[str, ...]:
    return AGGREGATES if column in ("x", "i", "b") else OF_ANYTHING


@dataclass(frozen=True)
class Case:
    """A history as rows in the order of their files, a question, features, and a spine of (key, target)."""

    keys: tuple[str, ...]
    row_id: str | None
    versions: tuple[Version, ...]
    question: Question
    features: tuple[Asked, ...]
    spine: tuple[tuple[tuple[Any, ...], int], ...]

    # ------------------------------------------------------------ in the oracle's words

    def expected(self) -> list[tuple[Any, ...]]:
        return [
            tuple(oracle.answer(self.versions, self.question, key, t, f) for f in self.features)
            for key, t in self.spine
        ]

    # ------------------------------------------------------------ in the store's words

    @property
    def view(self) -> ViewTable:
        q = self.question
        aggregations = q.aggregations if q.every else tuple((name, "first") for name in TYPES)
        columns = tuple(Column(name, aggregated_type(agg, TYPES[name])) for name, agg in aggregations)
        row_id = "r" if self.row_id else None
        return ViewTable("s", "s-1", self.keys, columns, q.every, q.aggregations, row_id)

    @property
    def feature_set(self) -> FeatureSet:
        view = self.view
        stored = tuple(
            Stored(
                f"f{number}", "s", self.keys, f.of, f.kind, f.agg or None,
                f.ago, f.tolerance, f.over, f.quantile, f.ttl,
            )
            for number, f in enumerate(self.features)
        )  # fmt: skip
        types = {column.name: column.type for column in view.columns}
        columns = tuple(
            Column(f.name, aggregated_type(f.agg, types[f.of]) if f.agg else types[f.of]) for f in stored
        )
        request = Schema((*(Column(key, KEY_TYPES[key]) for key in self.keys), Column("t", "datetime")))
        q = self.question
        return FeatureSet(request, columns, stored, (), (view,), q.horizon, "t", strict=q.strict)

    @property
    def asked(self) -> pl.DataFrame:
        """The spine."""
        data = {key: [row[0][at] for row in self.spine] for at, key in enumerate(self.keys)}
        schema = {key: DTYPES[KEY_TYPES[key]] for key in self.keys}
        times = pl.Series("t", [row[1] for row in self.spine], pl.Int64).cast(INSTANT)
        return pl.DataFrame(data, schema=schema).with_columns(times) if self.keys else times.to_frame()

    @property
    def frame(self) -> pl.DataFrame:
        """The rows of the history as they lie in its files."""
        rows = self.versions
        data: dict[str, pl.Series] = {
            key: pl.Series([row.key[at] for row in rows], dtype=DTYPES[KEY_TYPES[key]])
            for at, key in enumerate(self.keys)
        }
        if self.row_id:
            dtype = pl.Int64 if self.row_id == "int" else pl.String
            data["r"] = pl.Series([row.row_id for row in rows], dtype=dtype)
        for name, of in (("event_time", "event"), ("_known_at", "known"), ("_committed_at", "committed")):
            data[name] = pl.Series([getattr(row, of) for row in rows], dtype=pl.Int64).cast(INSTANT)
        data["_sequence"] = pl.Series([row.sequence for row in rows], dtype=pl.Int64)
        data["_deleted"] = pl.Series([row.deleted for row in rows], dtype=pl.Boolean)
        for name, kind in TYPES.items():
            data[name] = pl.Series([row.values[name] for row in rows], dtype=DTYPES[kind])
        return pl.DataFrame(data)

    @property
    def as_of(self) -> AsOf:
        return AsOf(micros(self.question.known_at), micros(self.question.committed_at))

    def snapshot(self, folder: Path, files: int = 1) -> Snapshot:
        """The history in files of a folder, as `History.snapshot` finds them, without a table."""
        frame = self.frame
        hashed = buckets_of(frame, self.keys)
        buckets = {}
        for number in sorted(set(hashed.to_list())):
            rows, paths = frame.filter(hashed == number), []
            for at in range(min(files, rows.height)):
                paths.append(str(folder / f"{number}-{at}.parquet"))
                rows.gather_every(files, at).write_parquet(paths[-1])
            times = rows["event_time"]
            buckets[number] = Bucket(tuple(paths), rows.height, times.min(), times.max())  # type: ignore[arg-type]
        if not buckets:
            frame.write_parquet(folder / "0.parquet")
            buckets = {0: Bucket((str(folder / "0.parquet"),), 0, micros(0), micros(0))}
        return Snapshot(self.view, self.as_of, False, buckets)

    def read(self, between: tuple[datetime, datetime] | None = None) -> pl.DataFrame:
        """The table that features read: all rows in one bucket, in a file that is in memory only."""
        frame = self.frame
        bucket = Bucket(("memory",), frame.height, micros(0), micros(0))
        snapshot = Snapshot(self.view, self.as_of, False, {0: bucket})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pl, "scan_parquet", lambda files, **_: frame.lazy())
            return history.read(snapshot, strict=self.question.strict, between=between)

    def found(self) -> pl.DataFrame:
        return point_in_time(self.asked, {"s": self.read()}, self.feature_set)

    @property
    def source(self) -> Source:
        """A source whose rows say themselves what a `Version` says; it declares `known_at` where it must."""
        columns = {name: {"type": kind} for name, kind in TYPES.items()}
        columns |= {key: {"type": KEY_TYPES[key]} for key in self.keys}
        columns |= {"known": {"type": "datetime"}, "seq": {"type": "int"}, "gone": {"type": "bool"}}
        named: dict[str, Any] = {"sequence": "seq", "deleted": "gone"}
        delays = {row.known - row.event for row in self.versions}
        if len(delays) == 1 and min(delays) >= 0:
            named["known_at"] = {"after_event": f"{min(delays) / 1e6:.6f}s"}
        elif any(row.known != row.committed for row in self.versions):
            named["known_at"] = {"column": "known"}
        if self.row_id:
            columns["r"] = {"type": "int" if self.row_id == "int" else "string"}
            named["row_id"] = "r"
        time = {"column": "time", "timezone": "UTC"}
        return Source(path="x.csv", entity=self.keys, event_time=time, columns=columns, **named)  # type: ignore[arg-type]

    @property
    def commits(self) -> dict[int, pl.DataFrame]:
        """What was committed when: rows as `History.append` takes them for `source`."""
        raw, number = self.raw, self.frame["_committed_at"].to_physical()
        return {at: raw.filter(number == at) for at in sorted(set(number.to_list()))}

    @property
    def raw(self) -> pl.DataFrame:
        """All rows as `History.append` takes them for `source`."""
        names = {"_known_at": "known", "_sequence": "seq", "_deleted": "gone"}
        return self.frame.drop("_committed_at").rename(names)

    def delivered(self, features: Path) -> History:
        """A history that each commit was appended to, at its time."""
        stored = History.of(features, self.view)
        for at, rows in self.commits.items():
            with clock_at(at):
                stored.append(rows, self.source, f"commit {at}")
        return stored


@contextmanager
def clock_at(number: int) -> Iterator[None]:
    """The clock that histories read stands still."""

    class Still(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return micros(number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history, "datetime", Still)
        yield


# ---------------------------------------------------------------- what a case is a case of

EDGES = ("P", "P - ttl", "P - W", "T - a", "T - a - t")
SITUATIONS = (
    *(f"event at {edge}{by}" for edge in EDGES for by in (" - 1", "", " + 1")),
    "known at K", "known at K + 1", "known at P, strict", "known at P + 1, strict",
    "committed at C", "committed after C", "late row before K", "late row after K",
    "correction first in file", "three versions or more", "out-of-order correction",
    "correction, then deletion", "deletion, then return", "moved event time",
    "two events at one key and time", "tie in event time", "nothing but the file's order tells apart",
    "duplicate spine rows", "null key", "unknown key", "two keys", "no key",
    "unsorted history", "empty history", "empty spine", "all too early", "before 1970", "across 1970",
    "null as latest value", "empty window", "several rows in a window", "latest value beyond its ttl",
    "interval corrected by a late row, strict", "interval that lost all its rows", "interval before 1970",
    *(f"{kind} as latest value" for kind in ("float", "int", "bool", "str")),
    *(f"{agg} of several" for agg in AGGREGATES),
)  # fmt: skip


def situations(case: Case) -> set[str]:
    """Which of `SITUATIONS` a case is, for a question that is really asked (a known key, an offered row)."""
    return {*_of_history(case), *_of_spine(case)}


def _of_history(case: Case) -> Iterator[str]:
    q, rows = case.question, case.versions
    yield from {0: ["no key"], 2: ["two keys"]}.get(len(case.keys), [])
    if not rows:
        yield "empty history"
    if [(r.key, r.event) for r in rows] != sorted((r.key, r.event) for r in rows):
        yield "unsorted history"
    if any(row.event < 0 for row in rows):
        yield "across 1970" if any(row.event >= 0 for row in rows) else "before 1970"
    for row in rows:
        if row.committed > q.committed_at:
            yield "committed after C"
        elif row.committed == q.committed_at:
            yield "committed at C"
        if 0 <= row.known - q.known_at < 2 and not q.strict:
            yield "known at K" if row.known == q.known_at else "known at K + 1"
    identities: dict[Any, list[Version]] = {}
    for row in rows:
        identities.setdefault(row.identity, []).append(row)
    for versions in identities.values():
        yield from _of_identity(versions)


def _of_identity(versions: list[Version]) -> Iterator[str]:
    """Of the versions of one identity, in the order of their files."""
    if len(versions) > 2:
        yield "three versions or more"
    for one, next_ in pairwise(versions):
        if one.committed == next_.committed:
            if (one.known, one.sequence) > (next_.known, next_.sequence):
                yield "correction first in file"
            if (one.known, one.sequence) == (next_.known, next_.sequence):
                yield "nothing but the file's order tells apart"
        elif one.known > next_.known:
            yield "out-of-order correction"
    ranked = sorted(versions, key=lambda row: (row.known, row.sequence))
    if len({row.event for row in versions}) > 1:
        yield "moved event time"
    gone = [row.deleted for row in ranked]
    if any(gone[at : at + 3] == [False, False, True] for at in range(len(gone))):
        yield "correction, then deletion"
    if any(gone[at : at + 2] == [True, False] for at in range(len(gone))):
        yield "deletion, then return"


def _of_spine(case: Case) -> Iterator[str]:
    q = case.question
    if not case.spine:
        yield "empty spine"
    if len(set(case.spine)) < len(case.spine):
        yield "duplicate spine rows"
    if case.spine and case.versions and max(t for _, t in case.spine) < min(r.event for r in case.versions):
        yield "all too early"
    for key, target in case.spine:
        p = target - q.horizon
        if None in key:
            yield "null key"
            continue
        stated = [row for row in case.versions if row.key == key]
        if not stated:
            yield "unknown key"
            continue
        for row in stated:
            if row.event <= p and row.known > row.event and not q.strict:
                yield "late row before K" if row.known <= q.known_at else "late row after K"
            if q.strict and 0 <= row.known - p < 2:
                yield "known at P, strict" if row.known == p else "known at P + 1, strict"
        mine = [row for row in oracle.table(case.versions, q, p) if row.key == key]
        yield from _of_intervals(q, p, stated, mine)
        seen = [row.event for row in mine if row.event <= p]
        if len(set(seen)) < len(seen):
            yield "two events at one key and time"
        if seen and seen.count(max(seen)) > 1:
            yield "tie in event time"
        for feature in case.features:
            yield from _of_feature(feature, target, p, mine)


def _of_intervals(q: Question, p: int, stated: list[Version], mine: list[Version]) -> Iterator[str]:
    if q.every is None:
        return
    if any(row.event < 0 for row in mine):
        yield "interval before 1970"
    if q.strict and any(row.event < row.known <= p for row in mine):
        yield "interval corrected by a late row, strict"
    ends = {(row.event // q.every + 1) * q.every for row in stated if row.known <= q.known_at}
    if any(end <= p for end in ends - {row.event for row in mine}):
        yield "interval that lost all its rows"


def _of_feature(feature: Asked, target: int, p: int, mine: list[Version]) -> Iterator[str]:
    edges = {"P": p}
    if feature.ttl is not None:
        edges["P - ttl"] = p - feature.ttl
    if feature.kind == "window":
        edges["P - W"] = p - feature.over
    if feature.kind == "value_at":
        edges["T - a"] = target - feature.ago
        edges["T - a - t"] = target - feature.ago - feature.tolerance
    for name, edge in edges.items():
        for by, sign in ((-1, " - 1"), (0, ""), (1, " + 1")):
            if any(row.event == edge + by for row in mine):
                yield f"event at {name}{sign}"
    seen = [row for row in mine if row.event <= p]
    if feature.kind == "window":
        inside = [row.values[feature.of] for row in seen if row.event > p - feature.over]
        if not inside:
            yield "empty window"
        elif len(set(inside) - {None}) > 1:
            yield "several rows in a window"
            yield f"{feature.agg} of several"
    elif feature.kind == "latest" and seen:
        newest = max(seen, key=lambda row: row.rank)
        value = newest.values[feature.of]
        if feature.ttl is not None and newest.event < p - feature.ttl:
            yield "latest value beyond its ttl"
        else:
            yield "null as latest value" if value is None else f"{type(value).__name__} as latest value"


# ---------------------------------------------------------------- drawing
# A case is drawn as one string of bytes, a byte a digit: those are even, which Hypothesis' numbers are not
# (most windows would be empty), quick, and they shrink: a row whose first byte is 0 is not there.

_SHAPE, _ROWS, _FEATURES, _SPINE = 24, (24, 13), (6, 6), (12, 4)
BYTES = _SHAPE + sum(count * width for count, width in (_ROWS, _FEATURES, _SPINE))


def _rows(data: bytes, size: tuple[int, int], limit: int) -> list[bytes]:
    """As many rows of a width as begin with a byte up to the limit, without that byte."""
    count, width = size
    rows = [data[width * number : width * (number + 1)] for number in range(count)]
    return [row[1:] for row in rows if 0 < row[0] <= limit]


def _of(choices: Sequence[Any], byte: int) -> Any:
    return choices[byte % len(choices)]


def cases(*, resampled: bool = True, tied: bool = True) -> st.SearchStrategy[Case]:
    """Cases. Where `tied`, two rows of an identity may be told apart by nothing but their order in a file."""
    drawn = st.binary(min_size=BYTES, max_size=BYTES)
    return drawn.map(lambda data: case_of(data, resampled=resampled, tied=tied))


def case_of(data: bytes, *, resampled: bool = True, tied: bool = True) -> Case:
    """The case that these `BYTES` bytes are."""
    shape, data = data[:_SHAPE], data[_SHAPE:]
    keys = KEY_NAMES[: _of([1, 1, 1, 1, 2, 0], shape[0])]
    row_id = _of([None, None, "int", "int", "str"], shape[1])
    every = _of([None, None, None, 1, 3, 7], shape[2]) if resampled else None
    aggregations = tuple((c, _of(aggs_of(c), b)) for c, b in zip(TYPES, shape[3:8], strict=True))
    commits = sorted({BASE - 3 + byte % (SPAN + 3) for byte in shape[8 : 8 + _of([1, 2, 3, 4], shape[12])]})
    how_known = _of(["commit", "commit", "column", "after"], shape[13])
    delay = shape[14] % 5
    versions = []
    for number, row in enumerate(_rows(data, _ROWS, _of([255, 128, 200, 50, 170, 12, 0, 220], shape[15]))):
        event, committed = BASE + row[0] % SPAN, _of(commits, row[1])
        when = {"commit": committed, "column": event + 3 * (row[2] % 4) - 2, "after": event + delay}
        versions.append(
            Version(
                key=tuple(_of(KEYS[name], byte) for name, byte in zip(keys, row[3:5], strict=False)),
                event=event,
                known=when[how_known],
                committed=committed,
                sequence=row[5] % 4 if tied else 100 * (row[5] % 4) + number,
                values={name: _of(VALUES[name], byte) for name, byte in zip(TYPES, row[6:11], strict=True)},
                row_id=_of(ROW_IDS[row_id], row[4]) if row_id else None,
                deleted=row[11] % 10 == 9,
            )
        )
    versions.sort(key=lambda row: row.committed)
    question = Question(
        known_at=_of([commits[-1], FAR, commits[-1], BASE + SPAN // 2, commits[-1], *commits], shape[16]),
        committed_at=_of([*[commits[-1]] * 6, *commits], shape[17]),
        strict=shape[18] % 2 == 1,
        horizon=_of([0, 0, 1, 3], shape[19]),
        every=every,
        aggregations=aggregations if every else (),
    )
    data = data[_ROWS[0] * _ROWS[1] :]
    features = tuple(_feature(row, question) for row in _rows(data, _FEATURES, 200)) or (
        Asked("x", "latest"),
    )
    data = data[_FEATURES[0] * _FEATURES[1] :]
    early = SPAN + 6 if shape[23] % 12 == 11 else 0
    spine = [
        _asked(keys, row, early) for row in _rows(data, _SPINE, _of([255, 128, 170, 30, 255, 0], shape[21]))
    ]
    return Case(keys, row_id, tuple(versions), question, features, tuple(spine + spine[: shape[22] % 3]))


def _asked(keys: Sequence[str], row: bytes, early: int) -> tuple[tuple[Any, ...], int]:
    time = BASE + _of([SPAN, *range(2, SPAN + 5), -2, 0, 1], row[0]) - early
    return tuple(_of(ASKED[name], byte) for name, byte in zip(keys, row[1:], strict=False)), time


def _feature(row: bytes, question: Question) -> Asked:
    kind, name, agg, length, further = row
    kind = _of(["window", "latest", "window", "ttl", "value_at", "window", "latest", "ttl"], kind)
    column, length = _of(list(TYPES), name), _of([7, 1, 2, 3, 4, 5, 0, 10, 15, 40], length)
    if kind == "latest":
        return Asked(column, "latest")
    if kind == "ttl":
        return Asked(column, "latest", ttl=length)
    if kind == "value_at":
        return Asked(column, "value_at", ago=question.horizon + length, tolerance=further % 5)
    agg = _of(AGGREGATES if _is_number(column, question) else OF_ANYTHING, agg)
    quantile = _of([0.5, 0.0, 0.25, 0.9, 1.0], further) if agg == "quantile" else None
    return Asked(column, "window", agg, over=max(length, 1), quantile=quantile)


def _is_number(name: str, question: Question) -> bool:
    """Whether a column, as its view has it, can be added up (and float64 holds it)."""
    agg = dict(question.aggregations).get(name, "first")
    return name != "n" and aggregated_type(agg, TYPES[name]) in ("float", "int", "bool")


def random_case(seed: int) -> Case:
    return case_of(random.Random(seed).randbytes(BYTES), tied=False)


def same(found: Any, expected: Any) -> bool:
    """Equal; for numbers with a fraction as far as the order of additions allows."""
    if isinstance(found, float) and expected is not None:
        return math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-9)
    return type(found) is type(expected) and found == expected


def check(found: pl.DataFrame, case: Case) -> None:
    expected = case.expected()
    assert found.height == len(expected)
    wrong = [
        (case.spine[row], case.features[column], value, right)
        for row, (values, rights) in enumerate(zip(found.rows(), expected, strict=True))
        for column, (value, right) in enumerate(zip(values, rights, strict=True))
        if not same(value, right)
    ]
    assert wrong == [], "(key, target), feature, found, expected"
