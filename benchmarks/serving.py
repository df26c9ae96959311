"""Single-row requests: ours with everything on, beside FastAPI, MLServer, LitServe, BentoML and MLflow.

All answer from the same model file, whose answers they must give. Ours is the command that users start, with
key, schema check, prediction log and monitoring; its rows are the heaviest to read, an input for each column.
In each round the peers are measured in turn, the others of them stopped by a signal, and then ours, which is
up for that time alone: a cluster that idles still takes of the machine. Beside ours stands Ray
Serve's own empty handler. `--quick` takes two rounds and two peers.
"""

import argparse
import contextlib
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ours, standing
from benchmarks.load import Bench, Caller, Rows, ratio
from benchmarks.ours import COLUMNS, Service
from benchmarks.report import Claim, finish
from mlops_ray.registry.booster import Booster

SERVERS = Path(__file__).parent / "servers"
OURS, EMPTY, UNWATCHED = "ours", "Ray Serve, empty handler", "ours, log and monitoring off"
ROUNDS, SECONDS = 5, 5
QUICK_ROUNDS, QUICK_SECONDS = 2, 2
#: At which connections what is promised is measured.
PROMISED = 16
LIMITS = {"fastapi": 2.0, "mlserver": 4.0, "mlflow": 35.0}
LIMIT_EMPTY = 1.3
#: Of the requests a second, what monitoring and log may take.
LIMIT_WATCHING = 0.05
#: MLflow's takes longest, 10 s on two busy cores.
START_S = 90.0
MODEL_CALLS = 2000


@dataclass(frozen=True)
class Peer:
    """How a peer is asked: by its own protocol, or by the Open Inference Protocol where it speaks it."""

    label: str
    path: str
    body: Callable[[list[float]], dict[str, Any]]
    answer: Callable[[Any], float]


def _tensor(row: list[float]) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, len(row)], "data": row}]}


PEERS = {
    "mlflow": Peer(
        "MLflow, models serve",
        "/invocations",
        lambda row: {"inputs": [row]},
        lambda reply: reply["predictions"][0],
    ),
    "bentoml": Peer("BentoML", "/predict", lambda row: {"row": row}, float),
    "litserve": Peer(
        "LitServe, batched", "/predict", lambda row: {"row": row}, lambda reply: reply["prediction"]
    ),
    "mlserver": Peer("MLServer, batched", "/v2/models/bench/infer", _tensor, ours.answer),
    # Last, so that ours is measured right after it.
    "fastapi": Peer(
        "FastAPI",
        "/predict",
        lambda row: dict(zip(COLUMNS, row, strict=True)),
        lambda reply: reply["prediction"],
    ),
}
QUICK_PEERS = ("mlserver", "fastapi")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two rounds of two seconds, two peers")
    is_quick = parser.parse_args().quick
    rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if is_quick else (ROUNDS, SECONDS)
    names = QUICK_PEERS if is_quick else tuple(PEERS)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        service = Service(Path(folder, "ours"), serving=ours.ONE)
        with service.up():
            model = service.model
        bench = Bench(Path(folder), seconds, ours.asked(), ours.expected(model, ours.asked()))
        servers = {name: stack.enter_context(started(name, model, bench)) for name in names}
        own_ms = own_time_ms(model, bench.rows)
        for _ in range(rounds):
            for name, (url, server) in servers.items():
                with server.awake():
                    bench.measure({PEERS[name].label: bench.target(name, url, PEERS[name].body)})
            with service.up() as url:
                measure_ours(service, url, bench)
        rows, claims = compared(bench, names, own_ms)
    finish("serving", rows, claims)


# ---------------------------------------------------------------- ours


def measure_ours(service: Service, url: str, bench: Bench) -> None:
    """Ours, beside it Ray Serve's empty handler, and ours without monitoring and log."""
    empty = ours.deploy(service, "benchmarks.servers.empty")
    targets = {
        OURS: ours.target(bench, OURS, url, service),
        EMPTY: bench.target(EMPTY, empty, ours.body),
    }
    other = ours.deploy(service, "benchmarks.servers.unwatched")
    targets[UNWATCHED] = ours.target(bench, UNWATCHED, other, service)
    bench.measure(targets)


def own_time_ms(model: Path, rows: Rows) -> float:
    """The median of what the model alone takes for one row, through the library's C interface."""
    booster = Booster(model.read_bytes())
    times = np.empty(MODEL_CALLS)
    for call in range(MODEL_CALLS):
        row = rows[call % len(rows)][None]
        begin = time.perf_counter_ns()
        booster.predict(row)
        times[call] = time.perf_counter_ns() - begin
    return float(np.median(times)) / 1e6


# ---------------------------------------------------------------- peers


@contextmanager
def started(name: str, model: Path, bench: Bench) -> Iterator[tuple[str, standing.Server]]:
    """The URL and the server of a peer that answers as the model does, and then stands still."""
    folder, port = bench.folder / name, free_port()
    folder.mkdir()
    peer, url = PEERS[name], f"http://127.0.0.1:{port}{PEERS[name].path}"
    with standing.server(name, SERVERS / f"{name}_app.py", model, port, folder=folder) as server:
        with server.awake():
            wait_for(server, url, peer.body(bench.rows[0].tolist()))
            bench.check(Caller(url), peer.body, peer.answer)
        yield url, server


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(server: standing.Server, url: str, body: dict[str, Any]) -> None:
    """Returns when the server answers a request with 200."""
    deadline, caller = time.monotonic() + START_S, Caller(url)
    while time.monotonic() < deadline:
        server.require_alive()
        if caller.answers(body):
            return caller.close()
        time.sleep(0.1)
    raise RuntimeError(f"{url} does not answer after {START_S:.0f} s; see {server.log}")


# ---------------------------------------------------------------- what came of it


def compared(bench: Bench, names: Sequence[str], own_ms: float) -> tuple[list[dict[str, Any]], list[Claim]]:
    """The table, and what is claimed of those that were measured."""
    rows = sorted(bench.table(), key=lambda row: -row["connections"])
    rows.append({**dict.fromkeys(rows[0]), "server": "the model alone", "connections": 1, "p50_ms": own_ms})
    mine = bench.of(OURS, PROMISED, "rate")
    claims = [
        Claim(
            f"requests/s over {PEERS[name].label}'s at {PROMISED} connections",
            ratio(mine, bench.of(PEERS[name].label, PROMISED, "rate")),
            LIMITS[name],
            at_least=True,
        )
        for name in names
        if name in LIMITS
    ]
    p99s = bench.of(OURS, PROMISED, "p99_ms"), bench.of(PEERS["fastapi"].label, PROMISED, "p99_ms")
    least = [empty + own_ms for empty in bench.of(EMPTY, 1, "p50_ms")]
    claims += [
        Claim(f"p99 over FastAPI's at {PROMISED} connections", ratio(*p99s), 1.0),
        Claim(
            "p50 at one connection over that of the empty handler and the model's own time",
            ratio(bench.of(OURS, 1, "p50_ms"), least),
            LIMIT_EMPTY,
        ),
    ]
    if bench.of(UNWATCHED, PROMISED, "rate"):
        cost = 1 - ratio(mine, bench.of(UNWATCHED, PROMISED, "rate"))
        claims.append(Claim("share of the requests/s that monitoring and log take", cost, LIMIT_WATCHING))
    return rows, [*claims, *bench.correct()]


if __name__ == "__main__":
    main()
