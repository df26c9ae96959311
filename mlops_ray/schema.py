"""Column types, ranges, categories and rules: one compiled check for batches and for requests.

A batch of n rows and n requests of one row get the same verdicts, because both run through `Schema.check`.
"""

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from mlops_ray.expressions import Expression, compile_sql
from mlops_ray.instants import FIRST_US, LAST_US

ColumnType = Literal["float", "int", "bool", "string", "category", "datetime"]
Severity = Literal["reject", "flag", "stop"]

#: All instants are UTC microseconds.
INSTANT = pl.Datetime("us", "UTC")
#: Of finite numbers.
LARGEST = sys.float_info.max

DTYPES: dict[ColumnType, Any] = {
    "float": pl.Float64,
    "int": pl.Int64,
    "bool": pl.Boolean,
    "string": pl.String,
    "category": pl.String,
    "datetime": INSTANT,
}

#: Parts of a format that read seconds, with a literal 60 in their place.
SECOND_60 = {
    **dict.fromkeys(("%S", "%-S", "%_S", "%0S"), " 60"),
    "%T": "%H:%M: 60",
    "%X": "%H:%M: 60",
    "%r": "%I:%M: 60 %p",
    "%c": "%a %b %e %H:%M: 60 %Y",
    "%+": "%Y-%m-%dT%H:%M: 60%.f%:z",
}

#: Text that is a number's absence: NaN becomes null before rules.
NAN = ["NaN", "nan", "NAN"]

#: From so many rows on, several columns are worth several cores.
MANY_ROWS = 1_000
#: What stands for a value that people may not see.
WITHHELD = "…"

#: One failed check a row: `row` is the position in the checked frame.
FAILURES = {
    "row": pl.UInt32,
    "column": pl.String,
    "rule": pl.String,
    "value": pl.String,
    "severity": pl.String,
}
NO_FAILURES = pl.DataFrame(schema=FAILURES)


@dataclass(frozen=True)
class Column:
    """A column and what its values must be.

    `min` and `max` are inclusive. `categories`, where given, are all the values that may occur.
    `on_fail` is the severity of range, category, pattern and missing; a value of the wrong type always
    rejects its row. A `hidden` column's values stand in no failure.
    """

    name: str
    type: ColumnType
    required: bool = False
    min: float | None = None
    max: float | None = None
    categories: tuple[str | int, ...] | None = None
    pattern: str | None = None
    on_fail: Severity = "reject"
    hidden: bool = False

    @cached_property
    def known(self) -> frozenset[Any]:
        """What may stand in a column that declares its categories: they, or nothing."""
        return frozenset({*(self.categories or ()), None})

    @property
    def is_discrete(self) -> bool:
        """Whether the values are names or a known handful of numbers, rather than amounts."""
        return self.type in ("category", "string", "bool") or self.categories is not None


@dataclass(frozen=True)
class Rule:
    """A SQL condition over a row's columns that must hold."""

    name: str
    require: str
    on_fail: Severity = "reject"
    nulls: Literal["pass", "fail"] = "pass"

    @cached_property
    def expression(self) -> Expression:
        return compile_sql(self.require)


@dataclass(frozen=True)
class Schema:
    """The columns of a table and the rules that its rows keep."""

    columns: tuple[Column, ...]
    rules: tuple[Rule, ...] = ()
    true_values: tuple[str, ...] = ("true", "True", "TRUE", "1", "yes", "Yes")
    false_values: tuple[str, ...] = ("false", "False", "FALSE", "0", "no", "No")
    null_values: tuple[str, ...] = ("",)
    #: How text writes numbers: what stands before the fraction, and what groups the digits.
    decimal: str = "."
    thousands: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    def column(self, name: str) -> Column:
        """The column of this name; raises `KeyError` if there is none."""
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Column]:
        return {column.name: column for column in self.columns}

    def check(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The frame with declared types, and every check that failed.

        `frame` has the schema's columns (others are passed through untouched), as text or as values. The
        first result has the same rows in the same order; a value of the wrong type, NaN and an infinity are
        null in it. The second has one row a failed check, see `FAILURES`.

        >>> schema = Schema((Column("load", "float", max=1.5), Column("site", "category")))
        >>> typed, failures = schema.check(pl.DataFrame({"load": ["1", "x", "2"], "site": ["a", "a", "b"]}))
        >>> typed["load"].to_list()
        [1.0, None, 2.0]
        >>> failures.select("row", "column", "rule", "value").rows()
        [(1, 'load', 'type', 'x'), (2, 'load', 'max', '2.0')]
        """
        columns = self.typed(frame, self.columns)
        # A query costs a request more than all its checks.
        is_all = frame.columns == list(self.names)
        typed = pl.DataFrame(columns) if is_all else frame.with_columns(columns)
        return typed, self.failures(frame, typed)

    def typed(self, frame: pl.DataFrame, columns: Sequence[Column]) -> list[pl.Series]:
        """Columns of a frame with their types, like `cast`."""
        given = frame.schema
        text = [c.name for c in columns if c.type in ("float", "int") and given[c.name] == pl.String]
        # All at once, which is done on all cores; a request of a few rows is not worth the detour.
        if len(text) < 2 or frame.height < MANY_ROWS:
            return [self.cast(frame.get_column(column.name), column) for column in columns]
        types = {column.name: DTYPES[column.type] for column in columns}
        plain = frame.select(pl.col(name).cast(types[name], strict=False) for name in text)
        return [
            self._numbers(frame[c.name], plain[c.name]) if c.name in text else self.cast(frame[c.name], c)
            for c in columns
        ]

    def failures(self, frame: pl.DataFrame, typed: pl.DataFrame) -> pl.DataFrame:
        """Every check that failed over a frame, which comes with declared types too; see `FAILURES`."""
        given, values = ([of.get_column(name) for name in self.names] for of in (frame, typed))
        pairs = zip(self.columns, given, values, strict=True)
        found = [failed for of in pairs for failed in self._column_failures(*of)]
        found += [failed for rule in self.rules for failed in _rule_failures(typed, rule, self._hidden)]
        return _opened(found)

    def is_sound(self, floats: npt.NDArray[np.float64], others: Sequence[Sequence[Any]]) -> bool:
        """Whether typed values pass every check for certain: a look at few rows that costs less than `check`.

        `floats` are the columns of type float (rows × columns) with NaN for what is missing, `others` all
        others with None, in the schema's order. Where it says no, `check` says what fails, if anything does.

        >>> schema = Schema((Column("site", "category", categories=("a",)), Column("load", "float", min=0)))
        >>> [schema.is_sound(np.array([[load]]), [["a"]]) for load in (1.0, -1.0)]
        [True, False]
        """
        low, high, required = self._bounds
        if not self._is_simple or (floats < low).any() or (floats > high).any():
            return False
        if required is not None and np.isnan(floats[:, required]).any():
            return False
        return all(self._holds(self.columns[at], v) for at, v in zip(self.other_places, others, strict=True))

    @cached_property
    def float_places(self) -> list[int]:
        """Where the columns of type float stand among all."""
        return [at for at, column in enumerate(self.columns) if column.type == "float"]

    @cached_property
    def other_places(self) -> list[int]:
        """Where the columns of other types stand among all."""
        return [at for at, column in enumerate(self.columns) if column.type != "float"]

    def _holds(self, column: Column, values: Sequence[Any]) -> bool:
        if column.categories is not None and not column.known.issuperset(values):
            return False
        if column.type in ("string", "category") and not self._nulls.isdisjoint(values):
            return False
        return not (column.required and None in values)

    @cached_property
    def _nulls(self) -> frozenset[str]:
        return frozenset(self.null_values)

    @cached_property
    def _is_simple(self) -> bool:
        """Whether `is_sound` looks at all that is asked of the columns."""
        floats = [column for column in self.columns if column.type == "float"]
        others = [column for column in self.columns if column.type != "float"]
        return (
            not self.rules
            and all(column.pattern is None for column in self.columns)
            and all(column.categories is None for column in floats)
            and all(column.min is None and column.max is None for column in others)
        )

    @cached_property
    def _bounds(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any] | None]:
        """The least and the most of each column of type float, and which must be there, if any."""
        floats = [self.columns[at] for at in self.float_places]
        required = np.array([column.required for column in floats], np.bool_)
        return (
            np.array([max(-LARGEST, -LARGEST if column.min is None else column.min) for column in floats]),
            np.array([min(LARGEST, LARGEST if column.max is None else column.max) for column in floats]),
            required if required.any() else None,
        )

    @cached_property
    def _hidden(self) -> frozenset[str]:
        return frozenset(column.name for column in self.columns if column.hidden)

    def cast(self, values: pl.Series, column: Column) -> pl.Series:
        """Values with the type of their column; null where they are of another, NaN or an infinity."""
        if values.dtype == pl.String:
            if column.type in ("float", "int"):
                return self._numbers(values, values.cast(DTYPES[column.type], strict=False))
            stands_for_null = self._stands_for_null(values)
            # Mostly none does, and a text is dear to copy.
            values = values.set(stands_for_null, None) if stands_for_null.any() else values
            if column.type == "bool":
                return _read_bool(values, self.true_values, self.false_values)
            if column.type == "datetime":
                return read_iso(values)
        if column.type == "int" and values.dtype.is_float():
            values = values.set((values != values.round(0)).fill_null(False), None)
        if column.type in ("string", "category") and values.dtype.is_float():
            # An id read as 7.0 must not become another id than 7.
            values = values.cast(pl.String).str.replace(r"\.0$", "")
        if values.dtype.is_temporal() and column.type in ("float", "int"):
            # An instant or a duration is no number before somebody says its unit.
            return pl.repeat(None, len(values), dtype=DTYPES[column.type], eager=True).alias(values.name)
        is_typed = values.dtype == DTYPES[column.type]
        typed = values if is_typed else values.cast(DTYPES[column.type], strict=False)
        if column.type == "datetime":
            return in_calendar(typed)
        # Where the sum is finite each of them is, and one sum costs less than a look at each.
        if column.type == "float" and math.isfinite(typed.sum()):
            return typed
        return typed.set(~typed.is_finite().fill_null(True), None) if column.type == "float" else typed

    def _numbers(self, text: pl.Series, plain: pl.Series) -> pl.Series:
        """The numbers that text says, where most are plain ones: only the others are looked at closely."""
        dtype = plain.dtype
        if not (
            plain.null_count()
            or self._null_numbers
            or (dtype.is_float() and not plain.is_finite().all())
            or self.decimal != "."
            or self.thousands is not None
        ):
            return plain
        odd = ~plain.is_finite().fill_null(False) if dtype.is_float() else plain.is_null()
        if self._null_numbers:
            odd |= text.is_in(self._null_numbers).fill_null(False)
        if self.decimal != "." or self.thousands is not None:
            odd |= text.str.contains(r"[^0-9-]").fill_null(False)
        rows = odd.arg_true()
        if not len(rows):
            return plain
        exact = self._written_number(text.gather(rows)).cast(dtype, strict=False)
        if dtype.is_float():
            exact = exact.set(~exact.is_finite().fill_null(True), None)
        return exact if len(rows) == len(text) else plain.scatter(rows, exact)

    def _written_number(self, text: pl.Series) -> pl.Series:
        text = text.str.strip_chars().set(self._stands_for_null(text), None)
        if self.thousands is not None:
            # Groups are of three digits: 1.5 is no fifteen.
            group, point = re.escape(self.thousands), re.escape(self.decimal)
            grouped = text.str.contains(rf"^[+-]?\d{{1,3}}(?:{group}\d{{3}})+(?:{point}|$)").fill_null(False)
            has_any = text.str.contains(self.thousands, literal=True).fill_null(False)
            text = text.str.replace_all(self.thousands, "", literal=True).set(has_any & ~grouped, None)
        if self.decimal != ".":
            # Where a comma begins the fraction, a point is a mistake, and no second sign for it.
            text = text.set(text.str.contains(".", literal=True).fill_null(False), None)
            text = text.str.replace(self.decimal, ".", literal=True)
        return text

    @cached_property
    def _null_numbers(self) -> list[str]:
        words = pl.Series(self.null_values, dtype=pl.String)
        return words.filter(words.cast(pl.Float64, strict=False).is_not_null()).to_list()

    def _stands_for_null(self, text: pl.Series) -> pl.Series:
        if self.null_values == ("",):
            return (text == "").fill_null(False)
        return text.is_in(list(self.null_values)).fill_null(False)

    def _column_failures(self, column: Column, raw: pl.Series, values: pl.Series) -> list["_Failed"]:
        checks: list[tuple[str, pl.Series, pl.Series, Severity]] = []
        if values.null_count():
            missing = values.is_null().arg_true()
            given = self._is_given(raw.gather(missing), column)
            checks.append(("type", missing.filter(given), raw, "reject"))
            if column.required:
                checks.append(("required", missing.filter(~given), raw, column.on_fail))
        # The extremes tell quickly that no row is beyond them.
        if column.min is not None and _beyond(values.min(), column.min, -1):
            checks.append(("min", (values < column.min).arg_true(), values, column.on_fail))
        if column.max is not None and _beyond(values.max(), column.max, 1):
            checks.append(("max", (values > column.max).arg_true(), values, column.on_fail))
        if column.categories is not None:
            unseen = values.is_not_null() & ~values.is_in(list(column.categories))
            checks.append(("category", unseen.arg_true(), values, column.on_fail))
        if column.pattern is not None:
            mismatch = ~values.cast(pl.String).str.contains(f"^(?:{column.pattern})$")
            checks.append(("pattern", mismatch.arg_true(), values, column.on_fail))
        return [
            _Failed(column.name, rule, severity, rows, None if column.hidden else shown.gather(rows))
            for rule, rows, shown, severity in checks
            if len(rows)
        ]

    def _is_given(self, raw: pl.Series, column: Column) -> pl.Series:
        """Whether something stands where no value of the column's type was found."""
        given = raw.is_not_null()
        if raw.dtype == pl.String:
            nan = NAN if column.type in ("float", "int") else []
            given &= ~raw.str.strip_chars().is_in([*self.null_values, *nan])
        if raw.dtype.is_float():
            given &= ~raw.is_nan().fill_null(False)
        return given

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads again."""
        plain = asdict(self)
        # How a file is written is no matter of a request.
        del plain["decimal"], plain["thousands"]
        for column in plain["columns"]:
            # Said only where it says something: older versions wrote none.
            if not column["hidden"]:
                del column["hidden"]
        return plain

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The schema that `to_json` wrote."""
        columns = tuple(
            Column(**{**c, "categories": tuple(c["categories"]) if c["categories"] is not None else None})
            for c in data["columns"]
        )
        rules = tuple(Rule(**rule) for rule in data["rules"])
        words: Any = {key: tuple(data[key]) for key in ("true_values", "false_values", "null_values")}
        return cls(columns, rules, **words)


def read_iso(text: pl.Series) -> pl.Series:
    """The instants that ISO 8601 text names; null where it is none in the calendar, or carries no offset.

    >>> read_iso(pl.Series(["2016-01-01T01:00+01:00", "2016-01-01"])).dt.hour().to_list()
    [0, None]
    """
    plain = text.str.strip_chars().str.replace(" ", "T", literal=True).str.replace("Z$", "+0000")
    plain = plain.str.replace(r"([+-]\d{2}):(\d{2})$", "$1$2").str.replace(r"(T\d{2}:\d{2})([+-])", "$1:00$2")
    return read_stamps(plain, "%Y-%m-%dT%H:%M:%S%.f%z")


def read_stamps(text: pl.Series, format: str) -> pl.Series:
    """Stamps in microseconds, in UTC where the format reads an offset; null where there is none to read.

    >>> text = pl.Series(["2016-05-05 12:30:59", "2016-05-05 12:30:60", "0001-05-05 12:30:00"])
    >>> read_stamps(text, "%Y-%m-%d %H:%M:%S").is_null().to_list()
    [False, True, True]
    """
    stamps = text.str.strptime(pl.Datetime("us"), format, strict=False)
    sixty = re.sub("%[-_0]?.", lambda part: SECOND_60.get(part[0], part[0]), format)
    suspects = text.set(~text.str.contains("60", literal=True).fill_null(False), None)
    if sixty != format and suspects.null_count() < len(text):
        # A second 60 would be rolled over. It is one where the text still parses with 60 read as a literal.
        rolled = ("00 " + suspects).str.strptime(pl.Datetime("us"), f"%S {sixty}", strict=False)
        stamps = stamps.set(rolled.is_not_null(), None)
    return in_calendar(stamps)


def in_calendar(stamps: pl.Series) -> pl.Series:
    """Stamps in microseconds, null where they lie outside the years that data may hold (instants.py)."""
    micros = stamps.cast(pl.Int64)
    first, last = micros.min(), micros.max()
    if first is None or (first >= FIRST_US and last <= LAST_US):  # type: ignore[operator]
        return stamps
    return stamps.set(~stamps.to_physical().is_between(FIRST_US, LAST_US).fill_null(True), None)


def _beyond(extreme: Any, limit: float, sign: int) -> bool:
    return extreme is not None and bool(sign * extreme > sign * limit)


def _read_bool(values: pl.Series, true_values: tuple[str, ...], false_values: tuple[str, ...]) -> pl.Series:
    words = dict.fromkeys(true_values, True) | dict.fromkeys(false_values, False)
    return values.replace_strict(words, default=None, return_dtype=pl.Boolean)


def _rule_failures(typed: pl.DataFrame, rule: Rule, hidden: frozenset[str]) -> list["_Failed"]:
    holds = typed.select(holds=rule.expression.polars)["holds"].cast(pl.Boolean)
    # Three-valued logic: a rule that is unknown passes unless it says otherwise.
    rows = (~holds.fill_null(rule.nulls == "pass")).arg_true()
    if not len(rows):
        return []
    columns = sorted(rule.expression.columns)
    values = [pl.lit(WITHHELD) if name in hidden else pl.col(name).cast(pl.String) for name in columns]
    column = columns[0] if len(columns) == 1 else None
    named = [pl.lit(f"{n}=") + value.fill_null("null") for n, value in zip(columns, values, strict=True)]
    shown = values[0] if column else pl.concat_str(named, separator=", ")
    said = None if column in hidden else typed.select(columns)[rows].with_columns(_shown=shown)["_shown"]
    return [_Failed(column, rule.name, rule.on_fail, rows, said)]


@dataclass(frozen=True)
class _Failed:
    """A check that failed in some rows: their positions, and their values where people may see them."""

    column: str | None
    rule: str
    severity: Severity
    rows: pl.Series
    values: pl.Series | None


def _opened(found: Sequence[_Failed]) -> pl.DataFrame:
    """A row a failure, by the rows that failed; see `FAILURES`."""
    if not found:
        return NO_FAILURES
    # Opened to rows all at once: a frame for each check would cost more than the check.
    names = ("column", "rule", "severity")
    each = {name: [getattr(failed, name) for failed in found] for name in names}
    of = np.repeat(np.arange(len(found)), [len(failed.rows) for failed in found])
    failures = pl.DataFrame(each, schema={name: FAILURES[name] for name in names})[of].with_columns(
        pl.concat([failed.rows for failed in found]).cast(FAILURES["row"]).alias("row"),
        pl.concat([_as_text(failed) for failed in found]).alias("value"),
    )
    return failures.select(*FAILURES).sort("row", maintain_order=True)


def _as_text(failed: _Failed) -> pl.Series:
    values = failed.values
    if values is None:
        return pl.repeat(None, len(failed.rows), dtype=pl.String, eager=True)
    return values.dt.to_string() if values.dtype == pl.Duration else values.cast(pl.String)
