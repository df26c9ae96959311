"""The point-in-time join of a spine with a history five times as long, beside raw Polars, Feast and bare Ray.

All read the same rows, one in ten a correction, and must give the same answers. Ours and raw Polars begin at
the files of the history on disk and end at a column in memory. `--quick` takes a tenth of the rows, asks
Feast once to be shown, and claims nothing of it.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks import histories, peers, raw_polars
from benchmarks.histories import KEY, SOURCE, TIME, VALUE
from benchmarks.measure import Grown, alternate, growth, in_new_process, line, peak, repeat, shown, timed_run
from benchmarks.report import Claim, finish
from mlops_ray.cluster import local
from mlops_ray.features.commits import BUCKETS, buckets_of
from mlops_ray.features.definitions import compile_features
from mlops_ray.features.history import History, Snapshot
from mlops_ray.features.join import join

ROWS, QUICK_ROWS = 5_000_000, 500_000
#: Rows of the history for each of the spine.
SHARE = 5
PAIRS, QUICK_PAIRS = 7, 5
SIZES = (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
QUICK_SIZES = SIZES[:3]
GROWTH_RUNS = 3
CPUS = 2
#: Numbers of buckets that are joined on Ray, to tell its fixed cost from that of a bucket. All keep every CPU
#: busy: fewer would take as long.
BUCKET_COUNTS = (CPUS, 2 * CPUS, 4 * CPUS, BUCKETS)
FEAST = Path(peers.__file__).parent / "peer_scripts" / "feast_join.py"
PROJECT = histories.project({VALUE: {"latest": VALUE}})
FEATURES = compile_features(PROJECT)
#: "as fast as raw Polars" allows for what raw Polars does not do, and no more.
LIMIT_RATIO = 2.0
#: 1/80 of Feast.
LIMIT_FEAST = 1 / 80

Rows = list[dict[str, Any]]
Run = Callable[[], pl.Series]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows; no claim about Feast")
    parser.add_argument("--memory-gib", type=float, default=8.0, help="what Feast's DuckDB may use")
    options = parser.parse_args()
    size = QUICK_ROWS if options.quick else ROWS
    pairs = QUICK_PAIRS if options.quick else PAIRS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = grow(folder / "growing", QUICK_SIZES if options.quick else SIZES)
        claims: list[Claim] = []
        history = histories.build(folder / "features", PROJECT, size)
        spine = histories.spine(size // SHARE)
        for part in (
            in_process(history, spine, pairs),
            beside_feast(folder, spine, history, options.memory_gib, not options.quick),
            on_ray(folder, spine, history.snapshot(), pairs),
        ):
            rows, claims = [*rows, *part[0]], [*claims, *part[1]]
    finish("pit_join", rows, claims)


def ours(history: History, spine: pl.DataFrame) -> pl.Series:
    """From the files on disk: the snapshot is part of it."""
    return joined(spine, history.snapshot(), is_on_ray=False)


def joined(spine: pl.DataFrame, snapshot: Snapshot, is_on_ray: bool) -> pl.Series:
    return join(spine, {SOURCE: snapshot}, FEATURES, on_ray=is_on_ray)[VALUE]


def raw(history: History, spine: pl.DataFrame) -> pl.Series:
    return raw_polars.latest(histories.files(history.snapshot()), spine)


def in_process(history: History, spine: pl.DataFrame, pairs: int) -> tuple[Rows, list[Claim]]:
    size = history.snapshot().rows
    timed = alternate(partial(ours, history, spine), partial(raw, history, spine), pairs)
    rows = [
        shown("ours, in process", size, timed.ours, ratio=timed.ratio),
        shown("raw Polars", size, timed.theirs),
    ]
    return rows, [
        Claim("ours over raw Polars", timed.ratio, LIMIT_RATIO),
        Claim("answers that differ from raw Polars'", differing(*timed.answers), 0),
    ]


def differing(ours: pl.Series, theirs: pl.Series) -> int:
    """How many answers are not the same to the bit; a null is equal to a null alone."""
    if len(ours) != len(theirs):
        return max(len(ours), len(theirs))
    return int(ours.ne_missing(theirs).sum())


# ---------------------------------------------------------------- Feast


def beside_feast(
    folder: Path, spine: pl.DataFrame, history: History, memory_gib: float, is_claimed: bool
) -> tuple[Rows, list[Claim]]:
    """One run of Feast's, and ours right after it."""
    snapshot = history.snapshot()
    files = pl.scan_parquet(histories.files(snapshot), hive_partitioning=False)
    files.select(KEY, "event_time", VALUE, known_at="_known_at").sink_parquet(folder / "history.parquet")
    spine.rename({TIME: "event_time"}).write_parquet(folder / "spine.parquet")
    said = peers.run("feast", FEAST, folder, "--keys", KEY, "--memory-gib", memory_gib)
    seconds, answer = timed_run(partial(ours, history, spine))
    ratio = seconds / said["seconds"]
    differs = differing(answer, pl.read_parquet(folder / "result.parquet")[VALUE])
    name = f"Feast {said['feast']}, DuckDB {said['duckdb']}"
    rows = [
        shown(name, snapshot.rows, [said["seconds"]], peak_bytes=said["peak_bytes"]),
        shown("ours, after Feast", snapshot.rows, [seconds], ratio=ratio),
    ]
    claims = [Claim("answers that differ from Feast's", differs, 0)]
    return rows, [Claim("ours over Feast", ratio, LIMIT_FEAST), *claims] if is_claimed else claims


# ---------------------------------------------------------------- Ray


def on_ray(folder: Path, spine: pl.DataFrame, snapshot: Snapshot, pairs: int) -> tuple[Rows, list[Claim]]:
    """Ours on Ray beside tasks that do nothing but the join, and both over fewer and fewer buckets."""
    with cluster(folder / "cluster"):
        ours_there = our_tasks(spine, snapshot)
        first_s, _ = timed_run(ours_there)
        timed = alternate(ours_there, bare_tasks(spine, snapshot), pairs)
        size = snapshot.rows
        rows = [
            shown("ours on Ray, first call", size, [first_s]),
            shown("ours on Ray", size, timed.ours, ratio=timed.ratio),
            shown("Ray core tasks, the join alone", size, timed.theirs),
            *ray_costs("ours on Ray", our_tasks, spine, snapshot),
            *ray_costs("Ray core tasks", bare_tasks, spine, snapshot),
            shown(f"{BUCKETS} empty Ray tasks", 0, repeat(empty_tasks, pairs)),
        ]
    return rows, [
        Claim("ours on Ray over Ray core tasks", timed.ratio, LIMIT_RATIO),
        Claim("answers that differ from Ray core tasks'", differing(*timed.answers), 0),
    ]


@contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """A cluster of our own, connected."""
    started = local.start(folder, cpus=CPUS, gpus=0)
    try:
        local.connect(started)
        yield
    finally:
        import ray

        ray.shutdown()
        local.stop(folder)


def our_tasks(spine: pl.DataFrame, snapshot: Snapshot) -> Run:
    return partial(joined, spine, snapshot, is_on_ray=True)


def bare_tasks(spine: pl.DataFrame, snapshot: Snapshot) -> Run:
    """A run of one task a bucket, whose part of the spine lies in the object store already."""
    import ray

    task = ray.remote(_joined).options(num_cpus=1)
    parts = spine.with_row_index("place").with_columns(buckets_of(spine, [KEY]).alias("bucket"))
    laid_out = [
        (bucket.files, ray.put(parts.filter(pl.col("bucket") == number)))
        for number, bucket in snapshot.buckets.items()
    ]

    def run() -> pl.Series:
        found = ray.get([task.remote(files, part) for files, part in laid_out])
        return pl.concat(found).sort("place")[VALUE]

    return run


def _joined(files: Sequence[str], part: pl.DataFrame) -> pl.DataFrame:
    return pl.DataFrame([part["place"], raw_polars.latest(files, part)])


def empty_tasks() -> None:
    import ray

    task = ray.remote(_nothing).options(num_cpus=1)
    ray.get([task.remote() for _ in range(BUCKETS)])


def _nothing() -> None:
    return None


def ray_costs(
    what: str, tasks: Callable[[pl.DataFrame, Snapshot], Run], spine: pl.DataFrame, snapshot: Snapshot
) -> Rows:
    """What is spent anyway and for each bucket: a line through the medians over so many buckets."""
    medians = [
        statistics.median(repeat(tasks(*first_buckets(spine, snapshot, count)), GROWTH_RUNS))
        for count in BUCKET_COUNTS
    ]
    fixed_s, bucket_s = line(BUCKET_COUNTS, medians)
    size = snapshot.rows // BUCKETS
    return [shown(f"{what}: fixed", 0, [fixed_s]), shown(f"{what}: each bucket", size, [bucket_s])]


def first_buckets(spine: pl.DataFrame, snapshot: Snapshot, count: int) -> tuple[pl.DataFrame, Snapshot]:
    kept = dict(list(snapshot.buckets.items())[:count])
    return spine.filter(buckets_of(spine, [KEY]).is_in(list(kept))), replace(snapshot, buckets=kept)


# ---------------------------------------------------------------- growth


def grow(folder: Path, sizes: Sequence[int]) -> Rows:
    """Ours, each size in a process of its own."""
    for size in sizes:
        in_new_process(_build, folder / str(size), size)
    return growth("ours, growing", [in_new_process(_grown, folder / str(size), size) for size in sizes])


def _build(folder: Path, size: int) -> None:
    histories.build(folder, PROJECT, size)


def _grown(folder: Path, size: int) -> Grown:
    history = histories.open_history(folder, PROJECT)
    return peak(size, partial(ours, history, histories.spine(size // SHARE)), GROWTH_RUNS)


if __name__ == "__main__":
    main()
