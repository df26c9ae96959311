"""SQL expressions over columns, compiled once and run by Polars.

The same compiled expression runs over a partition of a million rows and over a request of three; nothing is
`eval`ed. What SQL cannot say is a Python function from columns to a column, named by its dotted path.
"""

import functools
import hashlib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from mlops_ray.errors import ConfigError, DataError, did_you_mean

#: The environment variable with the folder of the project file, in which its functions may stand.
SEARCH_PATH = "MLOPS_RAY_SEARCH_PATH"
#: Parts of an expression that read other rows than their own, by Polars' names of them.
ACROSS_ROWS = frozenset({
    "Agg", "Over", "Len", "Window", "Rolling", "Sort", "SortBy", "Filter", "Slice", "Gather", "Explode",
    "Range", "Quantile", "Correlation", "Rank", "Shift", "CumCount", "CumSum", "CumProd", "CumMin", "CumMax",
    "Diff", "PctChange", "Mode", "Unique", "Reverse", "Random",
})  # fmt: skip
#: Words that mean another value each time they are read.
CLOCK = re.compile(r"\b(NOW|CURRENT_\w+|LOCALTIME\w*|RANDOM)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Expression:
    """A SQL expression over columns: its text, the columns it reads, and how Polars computes it."""

    text: str
    columns: frozenset[str]
    polars: pl.Expr


def compile_sql(text: str) -> Expression:
    """The compiled form of a SQL expression.

    Raises `ConfigError` where the text is not one expression that Polars knows, or where it reads other rows
    than its own: a batch of n would then not equal n batches of one.

    >>> expression = compile_sql("load < 1.4 OR site = 'BL-H'")
    >>> sorted(expression.columns)
    ['load', 'site']
    >>> pl.DataFrame({"load": [2.0, 2.0], "site": ["BL-H", "G0"]}).select(x=expression.polars)["x"].to_list()
    [True, False]
    """
    try:
        compiled = pl.sql_expr(text)
        columns = frozenset(compiled.meta.root_names())
        parts = set(_parts(orjson.loads(compiled.meta.serialize(format="json"))))
    except pl.exceptions.PolarsError as error:
        raise ConfigError(f"not a SQL expression: {text!r} ({error})") from error
    if parts & ACROSS_ROWS:
        raise ConfigError(
            f"{text!r} reads other rows than its own: an aggregate or a window cannot stand here"
        )
    if not columns:
        raise ConfigError(f"{text!r} reads no column")
    if CLOCK.search(re.sub(r"'[^']*'|\"[^\"]*\"", "", text)):
        raise ConfigError(f"{text!r} is another value each time that it is computed")
    return Expression(text, columns, compiled)


def _parts(tree: Any) -> Iterator[str]:
    """The names of an expression's parts; what stands in literals and names of columns is none."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, list):
        for item in tree:
            yield from _parts(item)
    elif isinstance(tree, dict):
        for name, child in tree.items():
            yield name
            if name not in ("Literal", "Column"):
                yield from _parts(child)


def load_function(path: str) -> Callable[..., pl.Series]:
    """The Python function at a dotted path, which takes columns and returns a column of their length.

    Raises `ConfigError` where there is none. Called, it raises `DataError` with its name for whatever goes
    wrong in it, and for a result that is no such column.

    >>> load_function("operator.add")(pl.Series([1, 2]), pl.Series([3, 4])).to_list()
    [4, 6]
    >>> load_function("operator.ad")
    Traceback (most recent call last):
    mlops_ray.errors.ConfigError: the module 'operator' has no function 'ad'; did you mean 'add'?
    """
    module_name, _, name = path.rpartition(".")
    folder = os.environ.get(SEARCH_PATH)
    if folder is not None and folder not in sys.path:
        # Last: what lies beside a project file must not take the place of a library.
        sys.path.append(folder)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        # The module is the user's: importing it may raise anything.
        raise ConfigError(f"the module of {path!r} cannot be imported: {_one_line(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        hint = did_you_mean(name, [known for known, value in vars(module).items() if callable(value)])
        raise ConfigError(f"the module {module_name!r} has no function {name!r}{hint}")
    return functools.partial(_call, path, function)


def function_digest(path: str) -> str:
    """SHA-256 of the file that the function at a dotted path is written in.

    Raises `ConfigError` where there is no such function. One that is not written in Python has its path's.
    """
    function = load_function(path)
    assert isinstance(function, functools.partial)
    try:
        source = Path(inspect.getsourcefile(function.args[1]) or "").read_bytes()
    except (TypeError, OSError):
        source = path.encode()
    return hashlib.sha256(source).hexdigest()


def _call(path: str, function: Callable[..., object], *columns: pl.Series) -> pl.Series:
    try:
        result = function(*columns)
    except Exception as error:
        # The function is the user's: whatever it raises is a fault of the project, told by its name.
        raise DataError(f"the function {path} failed: {_one_line(error)}") from error
    if not isinstance(result, pl.Series):
        raise DataError(f"the function {path} returned a {type(result).__name__}, not a polars Series")
    if columns and len(result) != len(columns[0]):
        raise DataError(f"the function {path} returned {len(result)} values for {len(columns[0])} rows")
    return result


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
