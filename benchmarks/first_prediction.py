"""From a started cluster to the first prediction of `mlops-ray run` on the example, its sweep included.

Each run starts a cluster of its own in an empty folder; starting Ray is shown, and not counted.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import Claim, finish

EXAMPLE = Path(__file__).parent.parent / "configs" / "factory_load.yaml"
COMMAND = str(Path(sys.executable).parent / "mlops-ray")
RUNS, QUICK_RUNS = 5, 1
#: What a user waits for gladly once.
LIMIT_S = 90.0
#: A day-ahead model worth deploying.
LIMIT_RELATIVE_MAE = 0.124


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one run")
    rows = [run() for _ in range(QUICK_RUNS if parser.parse_args().quick else RUNS)]
    finish(
        "first_prediction",
        rows,
        [
            Claim(
                "median seconds from a started Ray", statistics.median(r["counted"] for r in rows), LIMIT_S
            ),
            Claim("worst error over mean load", max(r["relative_mae"] for r in rows), LIMIT_RELATIVE_MAE),
        ],
    )


def run() -> dict[str, Any]:
    """Seconds of each stage, and the winner's error."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "project.yaml")
        file.write_text(EXAMPLE.read_text())
        begin = time.monotonic()
        try:
            done = subprocess.run(
                [COMMAND, "run", str(file), "--detach", "--json"], capture_output=True, text=True, check=True
            )
            wall_s = time.monotonic() - begin
        finally:
            subprocess.run([COMMAND, "down", str(file)], capture_output=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    counted = sum(seconds for stage, seconds in result["seconds"].items() if stage != "ray")
    return {
        **result["seconds"],
        "counted": round(counted, 2),
        "command": round(wall_s, 2),
        "relative_mae": result["metrics"]["relative_mae"],
    }


if __name__ == "__main__":
    main()
