"""Ten features of one entity from the online store: how long a request waits, from SQLite and from Redis.

A thousand entities, a row an hour for 31 days. Requests ask for the features now; the store's answers must be
those of the history. The Redis server is the benchmark's own. Batches are shown, with the exponent of time
against their rows. `--quick` reads less often.
"""

import argparse
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks import histories
from benchmarks.histories import KEY, SOURCE, TIME
from benchmarks.measure import MIB, exponent, peak_bytes
from benchmarks.report import Claim, finish
from mlops_ray.errors import StorageError
from mlops_ray.features.definitions import compile_features
from mlops_ray.features.history import Snapshot, read
from mlops_ray.features.lookup import point_in_time
from mlops_ray.features.materialize import materialize
from mlops_ray.features.online import OnlineStore
from mlops_ray.schema import INSTANT

ENTITIES, DAYS = 1000, 31
ROUNDS, READS, QUICK_READS = 5, 2000, 500
#: Reads before those that count.
WARM_UP_READS = 200
BATCHES = (32, 256)
BATCHES_A_ROUND = 100
SEED = 3
FEATURES: dict[str, dict[str, Any]] = {
    "load": {"latest": "load"},
    "price": {"latest": "price"},
    "load_1d": {"value_at": {"of": "load", "ago": "24h", "tolerance": "1h"}},
    "load_7d": {"value_at": {"of": "load", "ago": "168h", "tolerance": "1h"}},
    "price_1d": {"value_at": {"of": "price", "ago": "24h", "tolerance": "1h"}},
    "load_mean_30d": {"window": {"of": "load", "agg": "mean", "over": "30d"}},
    "load_max_7d": {"window": {"of": "load", "agg": "max", "over": "7d"}},
    "price_min_7d": {"window": {"of": "price", "agg": "min", "over": "7d"}},
    "rows_30d": {"window": {"of": "load", "agg": "count", "over": "30d"}},
    "price_std_30d": {"window": {"of": "price", "agg": "std", "over": "30d"}},
}
COLUMNS = ("load", "price")
PROJECT = histories.project(FEATURES, columns=COLUMNS)
FEATURE_SET = compile_features(PROJECT)
#: What a request can spare of its milliseconds for looking up features.
LIMITS_MS = {"SQLite": 0.5, "Redis": 1.0}
#: A server of its own starts in a few milliseconds.
START_S = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_READS} reads a round, not {READS}")
    reads = QUICK_READS if parser.parse_args().quick else READS
    with tempfile.TemporaryDirectory() as name, redis_server(Path(name)) as redis:
        snapshot = build(Path(name, "features"))
        stores = {"SQLite": OnlineStore(Path(name, "online.db")), "Redis": OnlineStore(redis)}
        for store in stores.values():
            materialize(store, FEATURE_SET, {SOURCE: snapshot})
        differ = {name: differing(store, snapshot) for name, store in stores.items()}
        rows, claims = measure(stores, reads)
    finish(
        "online",
        rows,
        [
            *claims,
            *(Claim(f"answers of {name} that differ from the history's", n, 0) for name, n in differ.items()),
        ],
    )


# ---------------------------------------------------------------- what is stored, and asked


def build(folder: Path) -> Snapshot:
    """Every entity's rows, one an hour up to the last full one."""
    generator = np.random.default_rng(SEED)
    last = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    hours = pl.datetime_range(last - timedelta(days=DAYS), last, "1h", time_unit="us", eager=True)
    rows = pl.DataFrame({KEY: entities()}).join(
        pl.DataFrame({"event_time": hours.cast(INSTANT)}), how="cross"
    )
    values = {name: generator.normal(100, 15, rows.height) for name in COLUMNS}
    history = histories.open_history(folder, PROJECT)
    history.append(rows.hstack(pl.DataFrame(values)), PROJECT.sources[SOURCE], "all")
    return history.snapshot()


def entities() -> list[str]:
    return [f"customer-{number:05d}" for number in range(ENTITIES)]


def asked(keys: list[str]) -> pl.DataFrame:
    """A request for the features of these entities now."""
    now = pl.Series(TIME, [datetime.now(UTC)], INSTANT)
    return pl.DataFrame([pl.Series(KEY, keys), now.new_from_index(0, len(keys))])


def differing(store: OnlineStore, snapshot: Snapshot) -> int:
    """How many features of all entities are not what the history says, to the bit."""
    rows = asked(entities())
    found, failures, _ = store.read(FEATURE_SET, rows)
    expected = point_in_time(rows, {SOURCE: read(snapshot)}, FEATURE_SET)
    differ = sum(int(found[name].ne_missing(expected[name]).sum()) for name in FEATURE_SET.names)
    # Every window and lag lies within the history: a missing feature would be compared with nothing.
    missing = int(expected.null_count().sum_horizontal().sum())
    return differ + failures.height + missing


# ---------------------------------------------------------------- reading


@dataclass(frozen=True)
class Round:
    """Microseconds of each read of a round."""

    micros: np.ndarray[Any, np.dtype[np.float64]]

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.micros, share))


def measure(stores: dict[str, OnlineStore], reads: int) -> tuple[list[dict[str, Any]], list[Claim]]:
    """Rounds of single rows and of batches, the stores in turn."""
    rounds: dict[tuple[str, int], list[Round]] = {(n, b): [] for n in stores for b in (1, *BATCHES)}
    for store in stores.values():
        one_round(store, 1, WARM_UP_READS)
    for _ in range(ROUNDS):
        for (name, batch), found in rounds.items():
            found.append(one_round(stores[name], batch, reads if batch == 1 else BATCHES_A_ROUND))
    rows = [shown(name, batch, found) for (name, batch), found in rounds.items()]
    for name in stores:
        mine = [row for row in rows if row["store"] == name]
        mine[-1]["exponent"] = exponent([r["batch"] for r in mine], [r["p50_us"] for r in mine])
    claims = [
        Claim(f"p99 of one row from {name}, ms", p99(rounds[name, 1]) / 1000, LIMITS_MS[name])
        for name in stores
    ]
    return rows, claims


def one_round(store: OnlineStore, batch: int, reads: int) -> Round:
    """Reads of so many different entities each, chosen at random.

    Requests are made beforehand: it is the server's work, and would come between one read and the next.
    """
    generator = np.random.default_rng(SEED)
    names = entities()
    chosen = (generator.choice(ENTITIES, batch, replace=False).tolist() for _ in range(reads))
    requests = [asked([names[at] for at in places]) for places in chosen]
    micros = np.empty(reads)
    for number, rows in enumerate(requests):
        begin = time.perf_counter_ns()
        store.read(FEATURE_SET, rows)
        micros[number] = (time.perf_counter_ns() - begin) / 1000
    return Round(micros)


def p99(rounds: list[Round]) -> float:
    """The median of the rounds' p99s, microseconds: what disturbs one round does not decide."""
    return statistics.median(r.percentile(99) for r in rounds)


def shown(name: str, batch: int, rounds: list[Round]) -> dict[str, Any]:
    p99s = [r.percentile(99) for r in rounds]
    return {
        "store": name,
        "batch": batch,
        "features": len(FEATURES),
        "p50_us": statistics.median(r.percentile(50) for r in rounds),
        "p99_us": p99(rounds),
        "p99_min_us": min(p99s),
        "p99_max_us": max(p99s),
        "peak_mib": round(peak_bytes() / MIB),
        "exponent": None,
    }


# ---------------------------------------------------------------- Redis


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """The address of a Redis server of our own, on loopback, which keeps nothing."""
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("redis-server is not installed; the benchmark needs one of its own")
    port = free_port()
    settings = [
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        str(folder),
    ]
    server = subprocess.Popen([program, *settings], stdout=subprocess.DEVNULL)
    try:
        url = f"redis://127.0.0.1:{port}/0"
        wait_for(server, url)
        yield url
    finally:
        server.terminate()
        server.wait()


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(server: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            return OnlineStore(url).close()
        except StorageError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


if __name__ == "__main__":
    main()
