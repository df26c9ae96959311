"""Features that SQL cannot say: functions from Polars columns to a column, named in `project.yaml`."""

import polars as pl

#: Salaries come at the end of the month and in its middle.
PAYDAYS = (15, 30)


def is_payday(day: pl.Series) -> pl.Series:
    """Whether salaries were paid on that day, as the shops count days; `day` is an instant in UTC."""
    return day.dt.convert_time_zone("Europe/Berlin").dt.day().is_in(PAYDAYS)
