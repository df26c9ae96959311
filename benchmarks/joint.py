"""Whole rows: how often quiet windows are called, and how soon a correlation is found that was not there.

Windows and references are drawn anew each time, normal columns and one of few values. `--quick` takes a
tenth of the runs, and claims nothing that needs more.
"""

import argparse
import itertools
import time
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.report import Claim, finish
from mlops_ray.monitoring import joint
from mlops_ray.registry.encoder import Matrix

RUNS, REFERENCE = 500, 5_000
ROWS = (200, 1_000, 5_000)
COLUMNS = (5, 20)
CORRELATIONS = (0.3, 0.5, 0.7, 0.9)
#: What a look a day may spend of one false alarm in 90 days, about; and a share that is seen in so many runs.
LEVELS = (0.01, 0.05)


def drawn(random: np.random.Generator, rows: int, columns: int, correlation: float = 0.0) -> Matrix:
    values = random.normal(size=(rows, columns))
    values[:, 1] = correlation * values[:, 0] + np.sqrt(1 - correlation**2) * values[:, 1]
    values[:, -1] = np.round(values[:, -1])
    return values.astype(np.float32)


def asked(rows: int, columns: int, correlation: float, runs: int) -> dict[str, Any]:
    """The share of the windows that are called, at each level, and the seconds that each took."""
    random = np.random.default_rng(rows + columns)
    names, p_values, began = [f"x{at}" for at in range(columns)], [], time.perf_counter()
    for _ in range(runs):
        ours, theirs = drawn(random, REFERENCE, columns), drawn(random, rows, columns, correlation)
        found = joint.finding(ours, theirs, names)
        assert found is not None
        p_values.append(found.p if found.matters else 1.0)
    called = {level: int((np.array(p_values) <= level).sum()) for level in LEVELS}
    return {
        "rows": rows,
        "columns": columns,
        "correlation": correlation,
        "runs": runs,
        **{f"called at {level}": round(number / runs, 4) for level, number in called.items()},
        "least p": min(p_values),
        "seconds": round((time.perf_counter() - began) / runs, 3),
        "called": called,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the runs")
    quick = parser.parse_args().quick
    runs = RUNS // 10 if quick else RUNS
    quiet = [asked(rows, columns, 0.0, runs) for rows, columns in itertools.product(ROWS, COLUMNS)]
    moved = [asked(*each, max(runs // 20, 10)) for each in itertools.product(ROWS, COLUMNS, CORRELATIONS)]
    claims = []
    for level in LEVELS[quick:]:
        number, of = sum(row["called"][level] for row in quiet), runs * len(quiet)
        # The largest share of which so few are seen in one of a hundred tries.
        bound = float(stats.beta.ppf(0.99, number + 1, of - number))
        claims.append(Claim(f"quiet windows called at {level}, upper 99 % bound", round(bound, 5), level))
    finish("joint", [{key: row[key] for key in row if key != "called"} for row in quiet + moved], claims)


if __name__ == "__main__":
    main()
