"""SQL expressions over columns, compiled once and run by Polars.

The same compiled expression runs over a partition of a million rows and over a request of three; nothing is
`eval`ed. What SQL cannot say is a Python function from columns to a column, named by its dotted path.
"""

from dataclasses import dataclass

import polars as pl

from mlops_ray.errors import ConfigError


@dataclass(frozen=True)
class Expression:
    """A SQL expression over columns: its text, the columns it reads, and how Polars computes it."""

    text: str
    columns: frozenset[str]
    polars: pl.Expr


def compile_sql(text: str) -> Expression:
    """The compiled form of a SQL expression.

    Raises `ConfigError` where the text is not one expression that Polars knows.

    >>> expression = compile_sql("load < 1.4 OR site = 'BL-H'")
    >>> sorted(expression.columns)
    ['load', 'site']
    >>> pl.DataFrame({"load": [2.0, 2.0], "site": ["BL-H", "G0"]}).select(x=expression.polars)["x"].to_list()
    [True, False]
    """
    try:
        compiled = pl.sql_expr(text)
        columns = frozenset(compiled.meta.root_names())
    except pl.exceptions.PolarsError as error:
        raise ConfigError(f"not a SQL expression: {text!r} ({error})") from error
    return Expression(text, columns, compiled)
