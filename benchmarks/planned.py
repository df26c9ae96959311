"""What a plan says of a load, and what comes of it: its p99, and what 1,000 predictions cost.

The example is trained, and two replicas together are loaded until its objective breaks. The load that is
declared is more than one of them is planned to bear, so that a record that says too much would break the
objective. `cost --plan` chooses a machine for it from what was measured and from made-up prices, `run` gives
the replicas their size and their number, and the load is offered for ten minutes; all by the commands that a
user has. `--quick` offers it for two.
"""

import argparse
import contextlib
import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from benchmarks.report import Claim, finish
from mlops_ray.config.project import Cost
from mlops_ray.serving.loadtest import Objectives, p99
from mlops_ray.serving.offering import Offering, request

CONFIGS = Path(__file__).parent.parent / "configs"
EXAMPLE, PRICES = CONFIGS / "factory_load.yaml", CONFIGS / "prices.yaml"
COMMAND = str(Path(sys.executable).parent / "mlops-ray")
#: This machine, in the made-up prices; how many replicas share it, and how much of what so many are planned
#: to bear is asked of them.
MACHINE, REPLICAS, LOADED = "small", 2, 0.8
SECONDS, QUICK_SECONDS = 600, 120
#: Nodes are metered once a minute, so that a period begins and ends with one.
WARM_S = 70
AGREES, SAFETY = 0.15, Cost().safety


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two minutes of load")
    seconds = QUICK_SECONDS if parser.parse_args().quick else SECONDS
    with tempfile.TemporaryDirectory() as folder:
        file, slo = project(Path(folder), 1.0)
        try:
            # Nothing that is live is in the way of what is measured.
            asks(file, "train")
            loaded = asks(file, "loadtest", "--replicas", f"{REPLICAS}", "--version", "1")
            capacity = loaded["capacities"][0]
            rate = LOADED * REPLICAS * capacity["rate"] * SAFETY
            file, slo = project(Path(folder), rate)
            plan = asks(file, "cost", "--plan")
            live = asks(file, "run", "--detach")
            key = Path(folder, ".mlops", "local.key").read_text().strip()
            seen = offered(live, rate, slo, seconds, key)
            spent = asks(file, "cost", "--from", seen["from"], "--to", seen["to"])
        finally:
            subprocess.run([COMMAND, "down", str(file)], capture_output=True, check=True)
    chosen = plan["options"][plan["chosen"]]
    own = [each for each in spent["versions"] if (each["model"], each["version"]) == (plan["model"], "1")]
    actual = own[0]["per_1000"]
    row = {
        "machine": chosen["machine"],
        "measured": round(capacity["rate"]),
        "up to": round(capacity["high"]),
        "load": round(rate),
        "replicas": max(chosen["replicas"]),
        "p99_ms": seen["p99_ms"],
        "failed": seen["failed"],
        "planned per 1,000": chosen["per_1000"],
        "actual per 1,000": actual,
        "metered_s": round(3600 * spent["hours"]),
    }
    finish(
        "planned",
        [row],
        [
            Claim("replicas that were planned, less than two", REPLICAS - max(chosen["replicas"]), 0),
            Claim("p99 at the planned load, ms", seen["p99_ms"], slo.p99_ms),
            Claim("share that failed", seen["failed"], slo.error_rate),
            Claim("actual cost over planned, less 1", abs(actual / chosen["per_1000"] - 1), AGREES),
        ],
    )


def project(folder: Path, rate: float) -> tuple[Path, Objectives]:
    """The example, with prices and a load."""
    shutil.copy(PRICES, folder)
    document = yaml.safe_load(EXAMPLE.read_text())
    document["cost"] = {"prices": PRICES.name, "machine": MACHINE, "load": rate}
    document["serving"].setdefault("resources", {})["machine"] = "auto"
    file = folder / EXAMPLE.name
    file.write_text(yaml.safe_dump(document))
    slo = document["serving"]["slo"]
    return file, Objectives(slo["p99_ms"], slo["error_rate"])


def asks(file: Path, command: str, *more: str) -> dict[str, Any]:
    """What a command says; raises `RuntimeError` with its errors where it fails."""
    done = subprocess.run(
        [COMMAND, command, str(file), *more, "--json"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"mlops-ray {command} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def offered(live: dict[str, Any], rate: float, slo: Objectives, seconds: int, key: str) -> dict[str, Any]:
    """The load for so long, after it has come for a while; `from` and `to` are instants."""
    said = re.search(r"-d '(.*)'", live["curl"])
    assert said is not None
    url = f"{live['url']}/v2/models/{EXAMPLE.stem.replace('_', '-')}/infer"
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    took: Counter[int] = Counter()
    due = failed = 0
    with (
        Offering(url, [request(url, headers, said[1].encode())], slo) as process,
        contextlib.closing(process.offer(rate)) as coming,
    ):
        for _ in itertools.islice(coming, WARM_S):
            pass
        begin = datetime.now(UTC)
        for second in itertools.islice(coming, seconds):
            due, failed = due + second.due, failed + second.failed
            took += second.took
        end = datetime.now(UTC)
    return {"from": begin.isoformat(), "to": end.isoformat(), "p99_ms": p99([took]), "failed": failed / due}


if __name__ == "__main__":
    main()
