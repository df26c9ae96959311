"""The functions that project.yaml names."""

from datetime import UTC, datetime

import polars as pl
from project_module.features import is_payday


def test_salaries_come_twice_a_month() -> None:
    # Midnight in Berlin is eleven in the evening before.
    days = pl.Series([datetime(2025, 1, day, 23, tzinfo=UTC) for day in (14, 15, 29)])
    assert is_payday(days).to_list() == [True, False, True]
