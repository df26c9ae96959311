"""How long a single node answers nobody when its ingress is killed: every HAProxy there is, five times.

A caller asks every hundredth of a second until it has an answer. Nothing is claimed: how soon Serve starts a
new one is Serve's. `--quick` kills twice.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks import ours
from benchmarks.load import Caller
from benchmarks.ours import Service
from benchmarks.report import finish

KILLS, QUICK_KILLS = 5, 2
PAUSE_S, REST_S = 0.01, 3.0
INGRESS = "haproxy"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two kills")
    kills = QUICK_KILLS if parser.parse_args().quick else KILLS
    with tempfile.TemporaryDirectory() as name:
        service = Service(Path(name, "ours"))
        with service.up() as url:
            rows = [kill(Caller(url, service.headers)) for _ in range(kills)]
    finish("ingress", rows, [])


def kill(caller: Caller) -> dict[str, Any]:
    """Kills the ingress; how many processes that were, how long nobody was answered, and what was tried."""
    asked, failed = ours.body(ours.asked()[0].tolist()), 0
    processes = [process for process in psutil.process_iter(["name"]) if process.info["name"] == INGRESS]
    if not processes:
        raise RuntimeError(f"no process {INGRESS} is there to be killed")
    begin = time.monotonic()
    for process in processes:
        process.kill()
    while not caller.answers(asked):
        failed += 1
        time.sleep(PAUSE_S)
    seconds = round(time.monotonic() - begin, 2)
    time.sleep(REST_S)
    caller.close()
    return {"processes": len(processes), "seconds": seconds, "failed": failed}


if __name__ == "__main__":
    main()
