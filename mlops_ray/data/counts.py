"""Exact, mergeable counts: what the values of columns look like, and what happened to requests.

Counts merge by addition, so that those of replicas, of hours and of days add up to the same numbers as one
count of everything; their memory grows with the number of columns and never with the number of rows.
"""

import bisect
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from mlops_ray.schema import Column

#: Numeric columns are cut at 20 quantiles: fine enough for a shift of a tenth of a standard deviation, coarse
#: enough for the expected count of a bin in a window of 100 rows to be 5.
BINS = 20
#: Rarer categories than so many are counted as *other*: an id column must not cost memory by its values.
MAX_CATEGORIES = 200
#: As many numbers as the cache bears are sorted at a time.
SORTED_TOGETHER = 65_536
COUNTED_SINGLY = 4_096

Cells = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CountSpec:
    """How the values of one column are told apart.

    Numeric: `edges` e0 ≤ … ≤ ek make the cells below e0, [e0, e1], (e1, e2], … (ek-1, ek], above ek,
    missing. Categorical: one cell a category, other, missing. Missing is null or NaN.
    """

    name: str
    kind: Literal["numeric", "categorical"]
    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of each cell, for people.

        >>> CountSpec("load", "numeric", edges=(0.0, 0.5, 1.0)).labels
        ('< 0', '0 – 0.5', '0.5 – 1', '> 1', 'missing')
        """
        if self.kind == "categorical":
            return (*self.categories, "other", "missing")
        if not self.edges:
            return ("below", "above", "missing")
        marks = [f"{edge:.4g}" for edge in self.edges]
        bins = [f"{low} – {high}" for low, high in itertools.pairwise(marks)]
        return (f"< {marks[0]}", *bins, f"> {marks[-1]}", "missing")

    def count(self, values: pl.Series | Numbers) -> Cells:
        """How many of `values` fall into each cell.

        >>> sites = CountSpec("site", "categorical", categories=("a", "b"))
        >>> sites.count(pl.Series(["b", "z", None])).tolist()
        [0, 1, 1, 1]
        """
        if self.kind == "categorical":
            return self._count_categories(pl.Series(values))
        if isinstance(values, pl.Series):
            values = values.cast(pl.Float64).to_numpy()
        return self._count_numbers(values)

    def _count_numbers(self, numbers: Numbers) -> Cells:
        counted = np.zeros(self._size, np.int64)
        for at in range(0, len(numbers), SORTED_TOGETHER):
            # To sort some values and look for the ends among them is faster than the other way round.
            some = np.sort(numbers[at : at + SORTED_TOGETHER])
            # NaN is sorted behind all numbers, infinity included.
            below = np.searchsorted(some, self._limits, side="right")
            counted[: len(below)] += np.diff(below, prepend=0)
            counted[-1] += len(some) - below[-1]
        return counted

    @cached_property
    def _limits(self) -> Numbers:
        """The upper end of each cell of numbers; the first edge itself is of the cell above it."""
        ends = np.array(self.edges, np.float64)
        ends[:1] = np.nextafter(ends[:1], -np.inf)
        return np.append(ends, np.inf)

    @cached_property
    def _size(self) -> int:
        return len(self.labels)

    def _count_categories(self, values: pl.Series) -> Cells:
        text = as_text(values)
        # Few values are counted sooner one by one.
        many = len(text) > COUNTED_SINGLY
        found = Counter(dict(text.value_counts().iter_rows()) if many else text.to_list())
        missing = found.pop(None, 0)
        counted = [found.pop(category, 0) for category in self.categories]
        return np.array([*counted, sum(found.values()), missing], dtype=np.int64)


@dataclass
class Counts:
    """Counts of several columns: `cells[i]` belongs to `specs[i]`; `rows` is how many rows were counted."""

    specs: tuple[CountSpec, ...]
    cells: list[Cells]
    rows: int = 0

    @classmethod
    def empty(cls, specs: Sequence[CountSpec]) -> Self:
        return cls(tuple(specs), [np.zeros(len(spec.labels), np.int64) for spec in specs])

    @property
    def by_name(self) -> dict[str, tuple[CountSpec, Cells]]:
        """How each column is counted, and its counts."""
        return {spec.name: (spec, cells) for spec, cells in zip(self.specs, self.cells, strict=True)}

    def beside(self, other: Self) -> Self:
        """The columns of both; the rows are those of the first."""
        return type(self)((*self.specs, *other.specs), [*self.cells, *other.cells], self.rows)

    def update(self, frame: pl.DataFrame) -> None:
        """Adds the rows of `frame`, which has every counted column."""
        self.add({spec.name: frame[spec.name] for spec in self.specs}, frame.height)

    def add(self, columns: Mapping[str, pl.Series | Numbers], rows: int) -> None:
        """Adds so many rows of columns, every counted one among them; numbers are NaN where missing."""
        for spec, cells in zip(self.specs, self.cells, strict=True):
            cells += spec.count(columns[spec.name])
        self.rows += rows

    def merge(self, other: Self) -> None:
        """Adds the counts of `other`; raises `ValueError` where its cells are not the same."""
        if self.specs != other.specs:
            raise ValueError("counts of different cells cannot be merged")
        for mine, theirs in zip(self.cells, other.cells, strict=True):
            mine += theirs
        self.rows += other.rows

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads again, to the bit."""
        columns = [
            {"name": spec.name, "kind": spec.kind, "edges": list(spec.edges)}
            | {"categories": list(spec.categories), "counts": cells.tolist()}
            for spec, cells in zip(self.specs, self.cells, strict=True)
        ]
        return {"rows": self.rows, "columns": columns}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The counts that `to_json` wrote."""
        specs = tuple(
            CountSpec(c["name"], c["kind"], tuple(c["edges"]), tuple(c["categories"]))
            for c in data["columns"]
        )
        return cls(specs, [np.array(c["counts"], np.int64) for c in data["columns"]], data["rows"])


def reference(frame: pl.DataFrame, columns: Sequence[Column], seed: int) -> Counts:
    """The counts that later windows are compared with; columns of type datetime are left out.

    Bins and categories are chosen on one random half of the rows, and the counts are those of the other half:
    chosen and counted on the same rows, *other* would be empty by construction and every window an alarm.
    """
    is_first = np.zeros(frame.height, np.bool_)
    is_first[np.random.default_rng(seed).permutation(frame.height)[: frame.height // 2]] = True
    chosen_on, counted = frame.filter(is_first), frame.filter(~is_first)
    counts = Counts.empty([_spec(chosen_on[c.name], c) for c in columns if c.type != "datetime"])
    counts.update(counted)
    return counts


def _spec(values: pl.Series, column: Column) -> CountSpec:
    if not column.is_discrete:
        return CountSpec(column.name, "numeric", edges=_quantiles(values))
    if column.categories is not None and len(column.categories) <= MAX_CATEGORIES:
        return CountSpec(column.name, "categorical", categories=tuple(map(str, column.categories)))
    most = as_text(values).drop_nulls().value_counts().iter_rows()
    # Ties by name, so that the same rows give the same cells.
    ranked = sorted(most, key=lambda found: (-found[1], found[0]))[:MAX_CATEGORIES]
    return CountSpec(column.name, "categorical", categories=tuple(sorted(name for name, _ in ranked)))


def _quantiles(values: pl.Series) -> tuple[float, ...]:
    numbers = values.cast(pl.Float64).drop_nulls().drop_nans().to_numpy()
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return ()
    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, BINS + 1), method="inverted_cdf"))
    # One value alone is a bin of its own.
    return tuple(edges.tolist()) if len(edges) > 1 else (edges[0].item(),) * 2


def as_text(values: pl.Series) -> pl.Series:
    """Values as the names of categories; null where missing.

    >>> as_text(pl.Series([7.0, 0.5, float("nan")])).to_list()
    ['7', '0.5', None]
    """
    if values.dtype.is_float():
        # 7.0 and 7 are the same category.
        values = values.fill_nan(None)
        whole = values.cast(pl.Int64, strict=False)
        return whole.cast(pl.String).zip_with(whole == values, values.cast(pl.String))
    return values.cast(pl.String)


#: Microseconds; the upper ends of the cells of request times, closest around the usual objective of 50 ms.
REQUEST_US = (
    *(1_000, 2_000, 3_000, 5_000, 7_500, 10_000, 15_000, 25_000, 40_000, 50_000, 75_000, 100_000),
    *(250_000, 500_000, 1_000_000, 2_500_000, 10_000_000),
)
#: Rows of a batch, as the batcher made it.
BATCH_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096)


@dataclass
class Histogram:
    """Counts of whole amounts by fixed upper ends (inclusive), the last cell for all above, and their sum."""

    ends: tuple[int, ...]
    cells: list[int]
    total: int = 0

    @classmethod
    def empty(cls, ends: tuple[int, ...]) -> Self:
        return cls(ends, [0] * (len(ends) + 1))

    def update(self, amount: int) -> None:
        self.cells[bisect.bisect_left(self.ends, amount)] += 1
        self.total += amount

    def merge(self, other: Self) -> None:
        self.cells = [mine + theirs for mine, theirs in zip(self.cells, other.cells, strict=True)]
        self.total += other.total

    def quantile(self, share: float) -> int | None:
        """The upper end of the cell that holds the quantile; `None` where nothing was counted.

        >>> times = Histogram.empty((1_000, 2_000))
        >>> times.update(700); times.update(1_500)
        >>> times.quantile(0.99)
        2000
        """
        cumulated = list(itertools.accumulate(self.cells))
        cell = bisect.bisect_left(cumulated, share * cumulated[-1])
        return self.ends[min(cell, len(self.ends) - 1)] if cumulated[-1] else None


@dataclass
class Traffic:
    """What happened to the requests of one version.

    `requests` by HTTP status, `rejected` by reason, `invalid` values by (column, rule), the microseconds that
    requests took, the rows of batches.
    """

    requests: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    invalid: Counter[tuple[str, str]] = field(default_factory=Counter)
    request_us: Histogram = field(default_factory=lambda: Histogram.empty(REQUEST_US))
    batch_rows: Histogram = field(default_factory=lambda: Histogram.empty(BATCH_ROWS))

    def merge(self, other: Self) -> None:
        """Adds the counts of `other`."""
        self.requests.update(other.requests)
        self.rejected.update(other.rejected)
        self.invalid.update(other.invalid)
        self.request_us.merge(other.request_us)
        self.batch_rows.merge(other.batch_rows)

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads again."""
        return {
            "requests": dict(self.requests),
            "rejected": dict(self.rejected),
            "invalid": [[*key, count] for key, count in sorted(self.invalid.items())],
            "request_us": {"cells": self.request_us.cells, "total": self.request_us.total},
            "batch_rows": {"cells": self.batch_rows.cells, "total": self.batch_rows.total},
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The traffic that `to_json` wrote."""
        return cls(
            Counter(data["requests"]),
            Counter(data["rejected"]),
            Counter({(column, rule): count for column, rule, count in data["invalid"]}),
            Histogram(REQUEST_US, list(data["request_us"]["cells"]), data["request_us"]["total"]),
            Histogram(BATCH_ROWS, list(data["batch_rows"]["cells"]), data["batch_rows"]["total"]),
        )
