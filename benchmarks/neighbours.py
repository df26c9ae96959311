"""What one more model costs a model: requests/s and p99 before a second one is started beside it, and after.

Both are of one service, with a replica each, and the second is asked nothing. `--quick`: two short rounds.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks import ours
from benchmarks.load import CONNECTIONS, Bench, ratio
from benchmarks.ours import Service
from benchmarks.report import Claim, finish

ROUNDS, SECONDS = 5, 5
QUICK_ROUNDS, QUICK_SECONDS = 2, 2
ALONE, BESIDE = "alone", "beside another"
#: Two replicas, and a trial that trains, on two cores.
RESOURCES = {"resources": {"cpu": 0.1}}
#: Of the requests/s, what must be left; the machine is not the same from minute to minute.
LIMIT = 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two rounds of two seconds")
    is_quick = parser.parse_args().quick
    rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if is_quick else (ROUNDS, SECONDS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        service = Service(folder / "ours", serving=RESOURCES)
        with service.up() as url:
            bench = Bench(folder, seconds, ours.asked(), ours.expected(service.model, ours.asked()))
            for state in (ALONE, BESIDE):
                if state == BESIDE:
                    Service(folder / "ours", "other", RESOURCES).run()
                target = {state: ours.target(bench, state, url, service)}
                for _ in range(rounds):
                    bench.measure(target)
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
