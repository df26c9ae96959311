"""Reading and checking a CSV file of 5 M rows × 20 columns with ten checks, beside Polars doing it by hand.

Both begin with the file on disk and end with the valid rows as Parquet and the rejected ones in a table. By
hand means: `read_csv` with declared types, what does not parse becoming null, ten conditions, two filters; it
does not say which value of which column a row was rejected for, which ours does. Ours runs on Ray Data, on a
cluster that is up. Beside it: what the commit into the history takes, time and memory of the reading over a
decade of sizes, and what `explore` takes for its first look, each in a process of its own. `--quick` takes a
tenth of the rows, where Ray's fixed second weighs ten times as much.
"""

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.measure import Grown, alternate, growth, in_new_process, peak, repeat, shown
from benchmarks.report import Claim, finish
from mlops_ray.cluster import local
from mlops_ray.config import Source
from mlops_ray.data.inputs import find
from mlops_ray.features.commits import Batch, buckets_of
from mlops_ray.features.definitions import view_table
from mlops_ray.features.history import History

ROWS, QUICK_ROWS = 5_000_000, 500_000
SIZES, QUICK_SIZES = (500_000, 1_500_000, 5_000_000), (50_000, 150_000, 500_000)
PAIRS, RUNS = 5, 3
LIMIT_RATIO = 2.0
LIMIT_EXPLORE_GB = 2.0
FLOATS = [f"x{number}" for number in range(14)]
TIME = "%Y-%m-%d %H:%M:%S"
#: Of the values of a column, so many are no numbers.
DIRTY = 1e-4

COLUMNS: dict[str, Any] = {
    "key": {"type": "category"},
    **{name: {"type": "float"} for name in FLOATS},
    "kind": {"type": "category", "categories": ["alpha", "beta", "gamma"]},
    "side": {"type": "category"},
    "count": {"type": "int", "max": 98},
    "number": {"type": "int", "min": 0},
}
for _name in FLOATS[:4]:
    COLUMNS[_name] |= {"min": -4, "max": 4}


def source(path: Path) -> Source:
    """A table with ten checks: four ranges, a category, two bounds, the time, the key, and a rule."""
    return Source.model_validate(
        {
            "path": str(path),
            "entity": "key",
            "event_time": {"column": "time", "timezone": "UTC"},
            "columns": COLUMNS,
            "rules": [{"name": "apart", "require": "x0 < x1 + 6"}],
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows")
    is_quick = parser.parse_args().quick
    sizes = QUICK_SIZES if is_quick else SIZES
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in sizes:
            make(folder / f"{size}.csv", size)
        growing = [in_new_process(grown, folder, size) for size in sizes]
        looked = in_new_process(explored, folder, sizes[-1])
        try:
            local.connect(local.start(folder / "cluster"))
            beside, claims = beside_polars(folder, QUICK_ROWS if is_quick else ROWS)
        finally:
            local.stop(folder / "cluster")
    first_look = shown("explore, reading included", sizes[-1], looked.seconds, peak_bytes=looked.peak_bytes)
    claims.append(Claim("GB of memory that explore takes", looked.peak_bytes / 1e9, LIMIT_EXPLORE_GB))
    finish("ingest", [*beside, *growth("ours, in one process", growing), first_look], claims)


def make(path: Path, rows: int) -> None:
    """Rows in the order of time, a few of them dirty."""
    generator = np.random.default_rng(rows)
    seconds = np.sort(generator.integers(0, 365 * 86400, rows)).astype("timedelta64[s]")
    times = (np.datetime64("2016-01-01") + seconds).astype("datetime64[us]")
    frame = pl.DataFrame(
        {
            "time": pl.Series(times).dt.strftime(TIME),
            "key": [f"k{key}" for key in generator.integers(0, 10_000, rows)],
            **{name: np.round(generator.normal(size=rows), 4) for name in FLOATS},
            "kind": generator.choice(["alpha", "beta", "gamma"], rows),
            "side": generator.choice(["u", "v"], rows),
            "count": generator.integers(0, 100, rows),
            "number": generator.integers(0, 100_000, rows),
        }
    )
    dirty = pl.Series(generator.random(rows) < DIRTY)
    frame = frame.with_columns(
        pl.when(dirty).then(pl.lit("n/a")).otherwise(pl.col("x5").cast(pl.String)).alias("x5")
    )
    frame.write_csv(path)


def beside_polars(folder: Path, rows: int) -> tuple[list[dict[str, Any]], list[Claim]]:
    """Both sides in turn, equal verdicts, and the commit after it."""
    path = folder / f"{rows}.csv"
    pairs = alternate(partial(ours, path, folder), partial(by_hand, path, folder), PAIRS)
    assert pairs.answers[0] == pairs.answers[1], pairs.answers
    commits = repeat(partial(committed, path, folder), 1)
    table = [
        shown("Polars by hand", rows, pairs.theirs),
        shown("ours, on Ray Data", rows, pairs.ours, ratio=pairs.ratio),
        shown("ours, with the commit", rows, commits),
    ]
    rate = rows / statistics.median(pairs.ours)
    print(f"ours: {rate:,.0f} rows/s")
    return table, [Claim("time over Polars by hand", pairs.ratio, LIMIT_RATIO)]


# What imports Ray is imported late: Ray reads its settings, which the cluster makes, when it is imported.


def ours(path: Path, folder: Path) -> tuple[int, int]:
    """Numbers of valid and of rejected rows."""
    from mlops_ray.data.ingest import read, staging

    spec = source(path)
    with staging(spec, "rows", find(spec, "rows"), folder) as staged:
        read(staged, partial(buckets_of, keys=("key",)))
        staged.write_quarantine(folder / "quarantine.parquet")
        return staged.report.valid, staged.report.quarantined


def by_hand(path: Path, folder: Path) -> tuple[int, int]:
    """What a person would write with Polars."""
    types: dict[str, Any] = {"float": pl.Float64, "int": pl.Int64, "category": pl.String}
    schema = {"time": pl.String} | {name: types[spec["type"]] for name, spec in COLUMNS.items()}
    rows = pl.read_csv(path, schema=schema, ignore_errors=True, row_index_name="row")
    instant = pl.col("time").str.to_datetime(TIME, time_unit="us", strict=False).dt.replace_time_zone("UTC")
    rows = rows.with_columns(instant.alias("event_time"))
    checks = [
        pl.col("event_time").is_not_null(),
        pl.col("key").is_not_null(),
        *(pl.col(name).is_between(-4, 4) for name in FLOATS[:4]),
        pl.col("kind").is_in(["alpha", "beta", "gamma"]),
        pl.col("count") <= 98,
        pl.col("number") >= 0,
        pl.col("x0") < pl.col("x1") + 6,
    ]
    holds = pl.all_horizontal(checks) & pl.all_horizontal(pl.col(name).is_not_null() for name in FLOATS)
    rows = rows.with_columns(holds.fill_null(False).alias("holds"))
    valid, rejected = rows.filter("holds"), rows.filter(~pl.col("holds"))
    valid.write_parquet(folder / "valid.parquet", compression="uncompressed")
    rejected.write_parquet(folder / "rejected.parquet")
    return valid.height, rejected.height


def committed(path: Path, folder: Path) -> int:
    """Read, checked and stored in a new history."""
    from mlops_ray.data.ingest import read, staging

    spec = source(path)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        history = History.of(Path(name), view_table("rows", spec))
        with staging(spec, "rows", find(spec, "rows"), folder) as staged:
            read(staged, partial(buckets_of, keys=("key",)))
            return history.store(Batch(staged.chunks, staged.report.valid), spec, "1").version


def grown(folder: Path, rows: int) -> Grown:
    """Time and memory of the reading, in this process alone."""
    return peak(rows, partial(here, folder / f"{rows}.csv", folder), RUNS)


def explored(folder: Path, rows: int) -> Grown:
    """Time and memory of a first look with a target, in this process alone."""
    return peak(rows, partial(look, folder / f"{rows}.csv", folder), 1)


def look(path: Path, folder: Path) -> int:
    """Reads, and looks at what is valid."""
    from mlops_ray.data.explore import Aim, explore
    from mlops_ray.data.ingest import Task, staging
    from mlops_ray.data.validate import Report

    spec = source(path)
    with staging(spec, "rows", find(spec, "rows"), folder) as staged:
        task = Task(spec, tuple(staged.inputs), str(staged.folder), partial(buckets_of, keys=("key",)), {})
        for part in task.parts(range(len(staged.inputs))):
            staged.report.merge(Report.from_json(part["report"]))
            staged.parts += part["valid"]
        aim = Aim(pl.col("x0"), "regression")
        document = explore(staged.scan(), staged.view, name="rows", target=aim)
    return len(document["findings"])


def here(path: Path, folder: Path) -> int:
    """What a task of Ray does, without Ray."""
    from mlops_ray.data.ingest import Task, staging

    spec = source(path)
    with staging(spec, "rows", find(spec, "rows"), folder) as staged:
        task = Task(spec, tuple(staged.inputs), str(staged.folder), partial(buckets_of, keys=("key",)), {})
        return sum(len(part["valid"]) for part in task.parts(range(len(staged.inputs))))


if __name__ == "__main__":
    main()
