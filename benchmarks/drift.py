"""A report of drift, a million rows of twelve columns against as many, beside Evidently and NannyML.

Ours begins with both frames in memory and ends with the statistics of every column. Beside it stands bare
counting: NumPy's histogram of each column of numbers, Polars' counts of each column of names. Both have their
cells already, as a service has those of its package; what it takes to make them besides, as the peers do, is
shown, and compared with theirs. Ours and the bare one are timed in turn; the peers, which take longer, once.
`--quick` takes a tenth of the rows, and no peer.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks import peers
from benchmarks.report import Claim, finish
from mlops_ray.data import counts
from mlops_ray.data.counts import BINS, Counts
from mlops_ray.monitoring.drift import compare
from mlops_ray.schema import Column

ROWS, QUICK_ROWS, ROUNDS = 1_000_000, 100_000, 7
NUMBERS, NAMES = 9, 3
SCRIPTS = Path(__file__).parent / "peer_scripts"
PEERS = {
    "Evidently 0.7.23": ("evidently", "evidently_report.py"),
    "NannyML 0.13.1": ("nannyml", "nannyml_report.py"),
}
#: Of bare counting, and of what Evidently took where the limit was set.
LIMIT, OVER_EVIDENTLY = 2.0, 80.0
MOVED = ("n0", "c0")


def frame(rows: int, seed: int, *, moved: bool) -> pl.DataFrame:
    """Normal and skewed numbers, and names of which some are rare; one of each has moved."""
    random = np.random.default_rng(seed)
    shares = 1 / np.arange(1, 31) ** 1.2
    columns: dict[str, Any] = {}
    for number in range(NUMBERS):
        values = random.normal(size=rows) if number % 2 == 0 else random.gamma(2.0, 2.0, rows)
        columns[f"n{number}"] = values + (0.3 if moved and f"n{number}" in MOVED else 0.0)
    for number in range(NAMES):
        weights = shares[::-1] if moved and f"c{number}" in MOVED else shares
        names = np.array([f"name-{at}" for at in range(30)])
        columns[f"c{number}"] = names[random.choice(30, rows, p=weights / weights.sum())]
    return pl.DataFrame(columns)


def report(reference: pl.DataFrame, current: pl.DataFrame, known: Counts) -> list[str]:
    """The columns that drifted; `known` has their cells."""
    ours, theirs = Counts.empty(known.specs), Counts.empty(known.specs)
    ours.update(reference)
    theirs.update(current)
    return [drift.column for drift in compare(ours, theirs) if drift.drifted]


def made(reference: pl.DataFrame, current: pl.DataFrame, columns: list[Column]) -> list[str]:
    """The same, with cells that are made of the reference as at the end of a training."""
    ours = counts.reference(reference, columns, 7)
    theirs = Counts.empty(ours.specs)
    theirs.update(current)
    return [drift.column for drift in compare(ours, theirs) if drift.drifted]


def bare(reference: pl.DataFrame, current: pl.DataFrame, bins: dict[str, Any]) -> int:
    """How many cells it counted."""
    cells = 0
    for of in (reference, current):
        for name in of.columns:
            if name in bins:
                cells += len(np.histogram(of[name].to_numpy(), bins[name])[0])
            else:
                cells += of[name].value_counts().height
    return cells


def timed(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, no peer")
    quick = parser.parse_args().quick
    rows = QUICK_ROWS if quick else ROWS
    reference, current = frame(rows, 1, moved=False), frame(rows, 2, moved=True)
    columns = [Column(name, "float" if name.startswith("n") else "category") for name in reference.columns]
    bins = {
        column.name: np.quantile(reference[column.name].to_numpy()[:10_000], np.linspace(0, 1, BINS + 1))
        for column in columns
        if column.type == "float"
    }
    known = counts.reference(reference, columns, 7)
    found = made(reference, current, columns)
    whole = float(np.median([timed(lambda: made(reference, current, columns)) for _ in range(ROUNDS)]))
    pairs = [
        (timed(lambda: report(reference, current, known)), timed(lambda: bare(reference, current, bins)))
        for _ in range(ROUNDS)
    ]
    ours, theirs = (float(np.median([pair[at] for pair in pairs])) for at in (0, 1))
    ratio = float(np.median([mine / other for mine, other in pairs]))
    shown = [
        {"what": "ours", "seconds": round(ours, 3)},
        {"what": "ours, cells made too", "seconds": round(whole, 3)},
        {"what": "bare counting", "seconds": round(theirs, 3)},
    ]
    claims = [
        Claim("ours over bare counting", ratio, LIMIT),
        Claim(
            "columns that moved and were not found, or found and not moved", len(set(found) ^ set(MOVED)), 0
        ),
    ]
    if not quick:
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder, name) for name in ("reference.parquet", "current.parquet")]
            for of, path in zip((reference, current), paths, strict=True):
                of.write_parquet(path)
            for name, (environment, script) in PEERS.items():
                seconds = peers.run(environment, SCRIPTS / script, *paths)["seconds"]
                shown.append({"what": name, "seconds": round(seconds, 2)})
                if environment == "evidently":
                    claims.append(
                        Claim(
                            "Evidently's seconds over ours with its cells",
                            seconds / whole,
                            OVER_EVIDENTLY,
                            at_least=True,
                        )
                    )
    finish("drift", shown, claims)


if __name__ == "__main__":
    main()
