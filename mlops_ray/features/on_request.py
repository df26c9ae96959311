"""Features of the request itself: SQL expressions, Python functions and the calendar.

The same expressions run over a training set and over a request of one row.
"""

from datetime import date
from functools import lru_cache

import holidays
import numpy as np
import polars as pl

from mlops_ray.errors import DataError, one_line
from mlops_ray.expressions import compile_sql, load_function
from mlops_ray.features.definitions import Computed
from mlops_ray.schema import DTYPES


def compute(feature: Computed, rows: pl.DataFrame) -> pl.Expr | pl.Series:
    """The feature over the rows of a request: an expression of their columns, or what a function returned.

    Raises `DataError` where a function of the user's fails, or returns values of another type than declared.

    >>> rows = pl.DataFrame({"km": [3.0, 8.0], "hours": [1.0, 2.0]})
    >>> rows.select(compute(Computed("speed", "expr", "km / hours"), rows)).to_series().to_list()
    [3.0, 4.0]
    """
    if feature.kind == "function":
        return _returned(feature, _function(feature.argument)(*(rows[name] for name in feature.inputs)))
    return _expression(feature, _years(rows[feature.argument]) if feature.kind == "holiday_of" else ())


_function = lru_cache(maxsize=256)(load_function)


def _returned(feature: Computed, values: pl.Series) -> pl.Series:
    """What a function returned, as the type that is declared for it."""
    if feature.type is None:
        return values
    try:
        return values.cast(DTYPES[feature.type])
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"the function {feature.argument} returned values of type {values.dtype} that are no "
            f"{feature.type}, as the feature {feature.name!r} is declared",
            said=f": {one_line(error)}",
        ) from error


@lru_cache(maxsize=1024)
def _expression(feature: Computed, years: tuple[int, ...]) -> pl.Expr:
    """The expression of a feature; for holidays, over times of these years."""
    if feature.kind == "expr":
        return compile_sql(feature.argument).polars
    time = pl.col(feature.argument)
    if feature.shift_us:
        time = time + pl.duration(microseconds=feature.shift_us)
    local = time.dt.convert_time_zone(feature.timezone)
    if feature.kind == "holiday_of":
        days = [day for year in years for day in public_holidays(feature.country, year)]
        return local.dt.date().is_in(days)
    parts = {"hour_of": local.dt.hour, "weekday_of": local.dt.weekday, "month_of": local.dt.month}
    return parts[feature.kind]()


def _years(times: pl.Series) -> tuple[int, ...]:
    """The years of instants, in any time zone."""
    micros = times.to_numpy()
    found = np.unique(micros[~np.isnat(micros)].astype("datetime64[Y]").astype(np.int64)) + 1970
    return tuple(sorted({year + near for year in found.tolist() for near in (-1, 0, 1)}))


@lru_cache(maxsize=4096)
def public_holidays(country: str | None, year: int) -> tuple[date, ...]:
    """Those of a country in a year.

    Made once a process: a calendar takes a millisecond, as much as all other features of a request.
    """
    return tuple(holidays.country_holidays(str(country), years=year))
