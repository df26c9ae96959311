"""Batch scoring through Ray Data beside XGBoost's `inplace_predict`, once for every core.

Ours begins at Parquet files and ends at Parquet files, with the check of every row; the peer begins and ends
in memory: XGBoost on one thread over some of the same rows, as if every core did so and nothing was lost in
between. Answers are equal to the bit. `--quick` takes a tenth of the rows, of which Ray Data's fixed seconds
are half the time, and claims nothing of that.
"""

import argparse
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import xgboost

from benchmarks.measure import Grown, growth, in_new_process, repeat, shown, timed_run
from benchmarks.report import Claim, finish
from mlops_ray.cluster import head, local, scoring
from mlops_ray.cluster.stages import Silent
from mlops_ray.config import Project
from mlops_ray.data.counts import reference
from mlops_ray.features.definitions import compile_features
from mlops_ray.registry import package, signing
from mlops_ray.registry.boosters import XgboostModel
from mlops_ray.registry.encoder import Encoder
from mlops_ray.registry.outcome import Outcome
from mlops_ray.serving import record, release
from mlops_ray.serving import score as scores
from mlops_ray.storage import Storage

ROWS, QUICK_ROWS = 10_000_000, 1_000_000
#: Of the peer: it takes as long for each row.
PEER_ROWS, PEER_CHUNK = 500_000, 100_000
PAIRS, QUICK_PAIRS = 5, 3
SIZES = (1_000_000, 3_000_000, 10_000_000)
QUICK_SIZES = (100_000, 300_000, 1_000_000)
GROWTH_RUNS = 1
FILE_ROWS = 500_000
CPUS = 2
NAME, TABLE = "scored", "t.csv"
NOW = datetime(2026, 11, 1, tzinfo=UTC)
COLUMNS = [f"f{number}" for number in range(12)]
TREES, DEPTH, TRAINING_ROWS = 300, 6, 20_000
#: Of raw `inplace_predict` on all cores.
LIMIT_RATIO = 0.7
#: Ten times the rows take no more memory; garbage and the object store's fill make it vary.
LIMIT_MEMORY = 1.5
SAMPLE_S = 0.2

Rows = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows; no claim about the speed")
    options = parser.parse_args()
    size = QUICK_ROWS if options.quick else ROWS
    scores.SMALL_ROWS = 0
    os.environ.update(head.SETTINGS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        project, storage, booster = prepare(folder / "storage")
        sizes = QUICK_SIZES if options.quick else SIZES
        for count in sizes:
            write(folder / str(count), count)
        with cluster(storage):
            grown = [in_new_process(_grown, project, storage, folder / str(count), count) for count in sizes]
            pairs = QUICK_PAIRS if options.quick else PAIRS
            rows, claims = beside_xgboost(project, storage, booster, folder / str(size), size, pairs)
    memory = grown[-1].peak_bytes / grown[0].peak_bytes
    claims.append(Claim("memory of ten times the rows over that of one", memory, LIMIT_MEMORY))
    claims = claims[1:] if options.quick else claims
    finish("scoring", [*growth("ours, growing", grown), *rows], claims)


def document(root: Path) -> dict[str, Any]:
    """What a project file says of a model of so many numbers, whose state lies there."""
    columns = {name: {"type": "float", "min": -100, "max": 100} for name in (*COLUMNS, "label")}
    table = {"path": TABLE, "event_time": {"column": "time", "timezone": "UTC"}, "columns": columns}
    return {
        "project": NAME,
        "storage": str(root),
        "sources": {"table": table},
        "features": {"row": {"columns": COLUMNS}},
        "target": {"source": "table", "expr": "label", "task": "regression"},
    }


def prepare(root: Path) -> tuple[Project, Storage, xgboost.Booster]:
    """A project whose champion are so many trees, and they as XGBoost has them."""
    storage, project = Storage.open(str(root)), Project.model_validate(document(root))
    features = compile_features(project)
    frame = made(TRAINING_ROWS, 0)
    encoder = Encoder.fit(frame, features.columns, style="codes")
    labels = frame.select(pl.sum_horizontal(pl.col(COLUMNS[:4]).sin())).to_series().to_numpy()
    matrix = xgboost.DMatrix(encoder.transform(frame), labels)
    booster = xgboost.train({"max_depth": DEPTH, "eta": 0.1, "seed": 7}, matrix, TREES)
    packed = package.write(
        storage.path("artifacts", NAME),
        name=NAME,
        task="regression",
        family="xgboost",
        params={},
        model=XgboostModel(bytes(booster.save_raw("ubj"))),
        encoder=encoder,
        feature_set=features,
        target=project.target.model_dump(mode="json"),
        outcome=Outcome(),
        metrics={},
        baselines={},
        intervals={},
        origin={},
        training_set={},
        reference=reference(frame, features.columns, 7).to_json(),
        created_at=NOW,
        sign=signing.own_key(project, storage),
    )
    entry = record.entry(storage, "1", packed)
    record.write(storage, release.crowned(record.new(NAME), entry, None, time.time()))
    return project, storage, booster


def made(rows: int, seed: int) -> pl.DataFrame:
    values = np.random.default_rng(seed).normal(size=(len(COLUMNS), rows))
    return pl.DataFrame(dict(zip(COLUMNS, values, strict=True))).with_columns(time=pl.lit(NOW))


def write(folder: Path, rows: int) -> None:
    folder.mkdir()
    for number in range(max(1, rows // FILE_ROWS)):
        made(min(rows, FILE_ROWS), number + 1).write_parquet(folder / f"{number:03}.parquet")


@contextmanager
def cluster(storage: Storage) -> Iterator[None]:
    """The cluster of this storage, which scoring finds."""
    local.start(storage.root, cpus=CPUS, gpus=0)
    try:
        yield
    finally:
        local.stop(storage.root)


def score(project: Project, storage: Storage, given: Path) -> Path:
    """The folder of answers; those of the last time are gone."""
    output = given.with_name(f"{given.name}-answers")
    shutil.rmtree(output, ignore_errors=True)
    scoring.predict(project, storage, Silent(), str(given), output)
    return output


def answered(output: Path) -> int:
    """How many rows of a folder of answers have one."""
    rows = pl.scan_parquet(output / "*.parquet").filter(pl.col("error").is_null())
    return int(rows.select(pl.len()).collect().item())


def raw(booster: xgboost.Booster, chunks: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [booster.inplace_predict(chunk) for chunk in chunks]


def beside_xgboost(
    project: Project, storage: Storage, booster: xgboost.Booster, given: Path, size: int, pairs: int
) -> tuple[Rows, list[Claim]]:
    booster.set_param({"nthread": 1})
    first = pl.read_parquet(given / "000.parquet")
    matrix = first.select(COLUMNS).to_numpy().astype(np.float32)[:PEER_ROWS]
    chunks = [matrix[at : at + PEER_CHUNK] for at in range(0, len(matrix), PEER_CHUNK)]
    raw(booster, chunks)
    ours, theirs, ratios = list[float](), list[float](), list[float]()
    for _ in range(pairs):
        own_s, output = timed_run(partial(score, project, storage, given))
        peer_s, peer = timed_run(partial(raw, booster, chunks))
        whole_s = peer_s * size / len(matrix) / CPUS
        ours, theirs, ratios = [*ours, own_s], [*theirs, whole_s], [*ratios, whole_s / own_s]
    predicted = pl.scan_parquet(output / "*.parquet").head(len(matrix)).select("prediction")
    found = predicted.collect().to_series().to_numpy()
    differ = int((found.astype(np.float32) != np.concatenate(peer)).sum())
    missing = size - answered(output)
    ratio = float(np.median(ratios))
    rows = [
        shown("ours, from files to files", size, ours, ratio=ratio),
        shown(f"XGBoost in memory, {CPUS} cores", size, theirs),
    ]
    return rows, [
        Claim("ours over XGBoost's rows a second", ratio, LIMIT_RATIO, at_least=True),
        Claim("answers that differ from XGBoost's", differ, 0),
        Claim("rows without an answer", missing, 0),
    ]


def _grown(project: Project, storage: Storage, given: Path, size: int) -> Grown:
    """A size by a driver of its own, with the memory of all processes of the cluster and of the driver."""
    scores.SMALL_ROWS = 0
    with sampled(storage) as peak:
        seconds = repeat(partial(score, project, storage, given), GROWTH_RUNS)
    return Grown(size, seconds, max(peak))


@contextmanager
def sampled(storage: Storage) -> Iterator[list[int]]:
    """Bytes that this process and the cluster's hold beside the memory that they share, again and again."""
    found, over = [0], threading.Event()
    running = local.find(storage.root)
    assert running is not None

    def look() -> None:
        while not over.wait(SAMPLE_S):
            processes = [psutil.Process(), *local.carrying(running.marker)]
            found.append(sum(map(_private_bytes, processes)))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    yield found
    over.set()
    thread.join()


def _private_bytes(process: psutil.Process) -> int:
    try:
        memory = process.memory_info()
    except psutil.NoSuchProcess:
        return 0
    return int(memory.rss - memory.shared)


if __name__ == "__main__":
    main()
