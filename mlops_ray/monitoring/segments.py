"""Metrics of parts of the rows, each beside its own reference: one site whose model has become worse.

A column is cut into its commonest values, the others together, and what is missing. What is asked of a
column is one question: is the worst of its segments worse? Whoever picks the worst of many pays for it
(Bonferroni). Columns that nobody named are one question together.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from mlops_ray.data.counts import as_text
from mlops_ray.monitoring.alarms import Finding
from mlops_ray.monitoring.figures import Figure, finding, jackknifed, of_json, of_mean
from mlops_ray.registry.bootstrap import Blocks
from mlops_ray.registry.models import Values

#: Of so many rows at least a segment's figure is said: a site that tells every hour has 24 a day, and its
#: figure's skew, which is known, makes small ones right.
LEAST = 20
#: Values of a column that are segments of their own, the commonest; and columns that are cut.
MOST_VALUES, MOST_COLUMNS = 24, 8
OTHERS, MISSING = "(others)", "(missing)"
#: Rows of the reference that are cut: a bound of the time.
MOST_CUT = 30_000
#: Segments that a look writes down, the least likely ones.
MOST_TOLD = 40
#: What nobody named is asked of together.
FOUND = "the worst segment"

Places = npt.NDArray[np.int64]
HOW = ("estimated", "realised")


class Score(NamedTuple):
    """A metric of some rows: `of` those at some places, by their weights; NaN where they do not tell.

    `each` are the losses of all rows where the metric is their mean, or the root of it.
    """

    metric: str
    of: Callable[[Places, Values], float]
    each: Values | None = None

    def __call__(self, rows: Places) -> float:
        if self.each is None:
            return self.of(rows, np.ones(len(rows)))
        mean = float(self.each[rows].mean())
        return float(np.sqrt(max(mean, 0.0))) if self.metric == "rmse" else mean

    def figure(self, rows: Places, blocks: Blocks) -> Figure | None:
        """The metric of a reference's rows, and how much it varies; `None` where they do not say."""
        if self.each is None:
            return jackknifed(self.metric, blocks[rows], lambda weights: self.of(rows, weights))
        return of_mean(self.each[rows], blocks[rows], is_root=self.metric == "rmse")


class Asked(NamedTuple):
    """The columns to cut rows by, row by row; `named` by the user, and into values of `fewest` rows."""

    columns: pl.DataFrame
    named: frozenset[str] = frozenset()
    fewest: int = LEAST


@dataclass(frozen=True)
class Cut:
    """A column in segments: `values`, then the others, then what is missing, and the figures of each.

    A figure is `None` where the reference has too few rows, or does not tell it.
    """

    is_named: bool
    fewest: int
    values: tuple[str, ...]
    estimated: tuple[Figure | None, ...]
    realised: tuple[Figure | None, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.values, OTHERS, MISSING)

    def to_json(self) -> list[Any]:
        figures = [[each and list(vars(each).values()) for each in getattr(self, how)] for how in HOW]
        return [self.is_named, self.fewest, list(self.values), *figures]

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> Self:
        is_named, fewest, values, *figures = data
        read = (tuple(each and of_json(*each) for each in of) for of in figures)
        return cls(is_named, fewest, tuple(values), *read)


class Segment(NamedTuple):
    """A segment in a look: its rows' metric beside `reference`, and how likely chance makes it as bad."""

    column: str
    name: str
    is_named: bool
    how: str
    rows: int
    value: float
    reference: Figure
    p: float


def asked(
    frame: pl.DataFrame,
    named: Iterable[str],
    features: Iterable[str],
    hidden: Collection[str] = (),
    fewest: int = 0,
) -> Asked:
    """What labelled rows are cut by: the named columns, then features of few values; never by hidden ones.

    >>> rows = pl.DataFrame({"site": ["a", "b"], "load": [1.0, 2.0], "name": ["x", "y"]})
    >>> asked(rows, ["site"], ["load", "name"], {"name"}).columns.columns
    ['site', 'load']
    """
    lasting = frame.select(name for name in frame.columns if not frame[name].dtype.is_temporal())
    names = [*named]
    columns = lasting.select(chosen(lasting, names, features, hidden))
    return Asked(columns, frozenset(names) & {*columns.columns}, max(LEAST, fewest))


def chosen(
    frame: pl.DataFrame, named: Iterable[str], features: Iterable[str], hidden: Collection[str] = ()
) -> list[str]:
    """What rows are cut by, at most `MOST_COLUMNS`: the named columns, then features of few values."""
    few = (name for name in features if name in frame.columns and name not in hidden)
    few = (name for name in few if 2 <= frame[name].n_unique() <= MOST_VALUES)
    wanted = dict.fromkeys([*named, *few])
    return [name for name in wanted if name in frame.columns and name not in hidden][:MOST_COLUMNS]


def cut(by: Asked, blocks: Blocks, scores: Mapping[str, Score | None], seed: int = 0) -> dict[str, Cut]:
    """The segments of labelled rows by column; `scores` has the metric by `HOW` it is known."""
    count = by.columns.height
    some = np.sort(np.random.default_rng(seed).choice(count, min(count, MOST_CUT), replace=False))
    cuts = {}
    for column in by.columns[some]:
        values = _commonest(column, by.fewest)
        parts = [some[rows] for rows in _parts(places(column, values), len(values) + 2)]
        known = [rows if len(rows) >= by.fewest else None for rows in parts]
        estimated, realised = (
            tuple(score and (None if rows is None else score.figure(rows, blocks)) for rows in known)
            for score in map(scores.__getitem__, HOW)
        )
        cuts[column.name] = Cut(column.name in by.named, by.fewest, values, estimated, realised)
    return cuts


def places(column: pl.Series, values: Sequence[str]) -> Places:
    """The segment of each row: that of its value, after them the others, and what is missing.

    >>> places(pl.Series(["b", "z", None]), ("a", "b")).tolist()
    [1, 2, 3]
    """
    text, count = as_text(column), len(values)
    known = {value: place for place, value in enumerate(values)}
    found = np.full(len(text), count)
    if known:
        found = text.replace_strict(known, default=count, return_dtype=pl.Int64).fill_null(count).to_numpy()
    return np.where(text.is_null().to_numpy(), count + 1, found)


def look(cuts: Mapping[str, Cut], how: str, columns: Mapping[str, pl.Series], score: Score) -> list[Segment]:
    """The segments of a window's rows of which both they and the reference say something."""
    told = []
    for name, of in cuts.items():
        if name not in columns:
            continue
        parts = _parts(places(columns[name], of.values), len(of.values) + 2)
        for segment, rows, figure in zip(of.names, parts, getattr(of, how), strict=True):
            if figure is None or len(rows) < of.fewest:
                continue
            value = score(rows)
            if np.isfinite(value):
                p = figure.worse(score.metric, value, len(rows))
                told.append(Segment(name, segment, of.is_named, how, len(rows), value, figure, p))
    return told


def findings(metric: str, told: Sequence[Segment]) -> list[Finding]:
    """Is the worst segment worse? Asked of each named column, and of all others together.

    `p` is that of the worst, of as many `tests` as were compared.
    """

    def question(segment: Segment) -> tuple[str, str]:
        return segment.how, segment.column if segment.is_named else ""

    return [
        _worst(metric, column, list(of))
        for (_, column), of in groupby(sorted(told, key=question), key=question)
    ]


def _worst(metric: str, column: str, told: Sequence[Segment]) -> Finding:
    """The least likely of those that matter, one of so many tests."""
    answers = [(_finding(metric, each), each) for each in told]
    found, worst = min(answers, key=lambda answer: (not answer[0].matters, answer[0].p))
    where = f" where {worst.column} is {worst.name}"
    said = found.evidence.replace(" rows is ", f" rows{where} is ", 1)
    about = f"{found.about} by {column}" if column else f"{found.about} of {FOUND}"
    return replace(found, about=about, tests=len(told), evidence=said)


def document(metric: str, told: Sequence[Segment]) -> list[dict[str, Any]]:
    """The segments as a look writes them down, the least likely first, at most `MOST_TOLD`.

    `{"column", "value", "metric", "harm", "estimated": [metric, reference, rows], "realised": […]}`, as far
    as it is known; `harm` is by what share of itself the loss has grown.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for each in sorted(told, key=lambda each: each.p):
        head = {"column": each.column, "value": each.name, "metric": metric, "harm": -1.0}
        row = rows.setdefault((each.column, each.name), head)
        row[each.how] = [each.value, each.reference.value, each.rows]
        row["harm"] = max(row["harm"], _finding(metric, each).harm)
    return list(rows.values())[:MOST_TOLD]


def _finding(metric: str, of: Segment) -> Finding:
    return finding(metric, of.reference, of.value, of.rows, of.how)


def _commonest(column: pl.Series, fewest: int) -> tuple[str, ...]:
    """The values that are segments of their own; ties by name, so that the same rows give the same."""
    counted = as_text(column).drop_nulls().value_counts().iter_rows()
    ranked = sorted((-rows, value) for value, rows in counted if rows >= fewest)
    return tuple(value for _, value in ranked[:MOST_VALUES])


def _parts(at: Places, count: int) -> list[Places]:
    """The rows of each segment."""
    order = np.argsort(at, kind="stable")
    return np.split(order, np.searchsorted(at[order], np.arange(1, count)))
