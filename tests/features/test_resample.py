"""Intervals whose rows become known one after the other: many versions, each of many rows."""

import subprocess
import sys

PEAK_MIB = 600
ROWS = 6000
CODE = f"""
import re
from pathlib import Path
import numpy as np
import polars as pl
from mlops_ray.features.resample import resample
from mlops_ray.schema import INSTANT, Column

DAY = 86_400_000_000
micros = pl.Series(np.arange({ROWS}) * 7_000_000)
rows = pl.DataFrame({{"k": ["a"] * {ROWS}, "event_time": micros.cast(INSTANT)}}).with_columns(
    (micros + DAY).cast(INSTANT).alias("_known_at"), pl.lit(None, INSTANT).alias("_until"), x=pl.lit(1.0)
)
found = resample(rows, ["k"], DAY, [("x", "sum")], [Column("x", "float")])
assert found["x"].to_list() == [float(n) for n in range(1, {ROWS} + 1)]
print(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def test_the_versions_of_a_long_interval_fit_into_little_memory() -> None:
    """All pairs of a version and its rows at once would take over 4 GB."""
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=300
    )
    assert int(done.stdout) / 1024 < PEAK_MIB
