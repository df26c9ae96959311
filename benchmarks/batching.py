"""Batches: our service with them, without (`max_rows: 1`), and with those of Ray Serve's `serve.batch`.

All three run on one cluster, from the same model, with all else on; they are measured in turn, and while one
is, the others are idle. `--quick` takes two short rounds.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import ours
from benchmarks.load import CONNECTIONS, Bench, ratio
from benchmarks.ours import Service
from benchmarks.report import Claim, finish

ROUNDS, SECONDS = 5, 5
QUICK_ROUNDS, QUICK_SECONDS = 2, 2
ON, OFF, THEIRS = "batches", "no batches", "serve.batch"
#: A replica of each, and a trial that trains, on two cores.
RESOURCES = {"resources": {"cpu": 0.1}, **ours.ONE}
#: What batches must bring where many wait, may cost where nobody does, and may lose against `serve.batch`.
LIMIT_MANY, LIMIT_ALONE, LIMIT_THEIRS = 1.5, 1.05, 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two rounds of two seconds")
    is_quick = parser.parse_args().quick
    rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if is_quick else (ROUNDS, SECONDS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        service = Service(folder / "ours", serving=RESOURCES)
        single = Service(folder / "ours", "single", {**RESOURCES, "batching": {"max_rows": 1}})
        with service.up() as url:
            urls = {
                ON: url,
                OFF: single.run(),
                THEIRS: ours.deploy(service, "benchmarks.servers.serve_batch"),
            }
            bench = Bench(folder, seconds, ours.asked(), ours.expected(service.model, ours.asked()))
            targets = {what: ours.target(bench, what, url, service) for what, url in urls.items()}
            for _ in range(rounds):
                bench.measure(targets)
    rows, claims = compared(bench)
    finish("batching", rows, claims)


def compared(bench: Bench) -> tuple[list[dict[str, Any]], list[Claim]]:
    def over(what: str, other: str, connections: int) -> float:
        return ratio(bench.of(ON, connections, what), bench.of(other, connections, what))

    worst = min(over("rate", THEIRS, connections) for connections in CONNECTIONS)
    return bench.table(), [
        Claim(
            "requests/s over those without batches, 16 connections", over("rate", OFF, 16), LIMIT_MANY, True
        ),
        Claim(
            "requests/s over those without batches, 64 connections", over("rate", OFF, 64), LIMIT_MANY, True
        ),
        Claim("p50 over that without batches, one connection", over("p50_ms", OFF, 1), LIMIT_ALONE),
        Claim("requests/s over serve.batch's, the worst of 1, 16, 64", worst, LIMIT_THEIRS, True),
        *bench.correct(),
    ]


if __name__ == "__main__":
    main()
