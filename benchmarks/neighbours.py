"""What one more model costs a model: requests/s and p99 while the other's replica is stopped, and goes on.

Both are of one service, with a replica each, and the second is asked nothing. It is stopped (SIGSTOP) and
continued in turn: what changes on the machine meanwhile changes for both. `--quick`: two short rounds.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import ours
from benchmarks.load import CONNECTIONS, Bench, ratio
from benchmarks.ours import Service
from benchmarks.report import Claim, finish

ROUNDS, SECONDS = 5, 5
QUICK_ROUNDS, QUICK_SECONDS = 2, 2
ALONE, BESIDE, OTHER = "alone", "beside another", "other"
REST_S = 10.0
#: Two replicas, and a trial that trains, on two cores.
RESOURCES = {"resources": {"cpu": 0.1}, **ours.ONE}
#: Of the requests/s, what must be left; the machine is not the same from minute to minute.
LIMIT = 0.9


@contextmanager
def stopped(service: Service) -> Iterator[None]:
    """The other model's replica does nothing for the block, which must end before Serve takes it for dead."""
    others = ours.replicas(service, OTHER)
    if not others:
        raise RuntimeError(f"there is no replica of {OTHER}")
    for process in others:
        process.suspend()
    try:
        yield
    finally:
        for process in others:
            process.resume()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two rounds of two seconds")
    is_quick = parser.parse_args().quick
    rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if is_quick else (ROUNDS, SECONDS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        service = Service(folder / "ours", serving=RESOURCES)
        with service.up() as url:
            Service(folder / "ours", OTHER, RESOURCES).run()
            bench = Bench(folder, seconds, ours.asked(), ours.expected(service.model, ours.asked()))
            targets = {state: ours.target(bench, state, url, service) for state in (ALONE, BESIDE)}
            # What training has left behind comes to rest.
            time.sleep(REST_S)
            for _ in range(rounds):
                with stopped(service):
                    bench.measure({ALONE: targets[ALONE]})
                bench.measure({BESIDE: targets[BESIDE]})
    claims = [
        Claim(
            f"requests/s beside another model over those alone, {connections} connections",
            ratio(bench.of(BESIDE, connections, "rate"), bench.of(ALONE, connections, "rate")),
            LIMIT,
            at_least=True,
        )
        for connections in CONNECTIONS
    ]
    finish("neighbours", bench.table(), [*claims, *bench.correct()])


if __name__ == "__main__":
    main()
