"""Peers in environments of their own, since their pins conflict with ours: `python -m benchmarks.peers NAME`.

A script for a peer runs inside the peer's environment: it imports nothing of ours, and answers with JSON on
the last line that it prints.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

#: Servers load our model file with the version that wrote it; the package without GPUs is the same code, and
#: 300 MB smaller.
XGBOOST = ("xgboost-cpu==3.2.0", "numpy==2.4.6")
#: What each peer is made of: itself, and what decides its answers or its speed.
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "fastapi": ("fastapi==0.165.0", "pydantic==2.14.3", "uvicorn[standard]==0.54.0", *XGBOOST),
    # Its runtime asks for XGBoost by its full name.
    "mlserver": (
        "mlserver==1.7.1",
        "mlserver-xgboost==1.7.1",
        "fastapi==0.115.14",
        "pydantic==2.14.3",
        "uvicorn==0.54.0",
        "xgboost==3.2.0",
        "numpy==2.4.6",
    ),
    "litserve": (
        "litserve==0.2.19",
        "fastapi==0.165.0",
        "pydantic==2.14.3",
        "uvicorn[standard]==0.54.0",
        *XGBOOST,
    ),
    "bentoml": ("bentoml==1.4.39", "pydantic==2.14.3", "uvicorn==0.54.0", *XGBOOST),
    "mlflow": ("mlflow==3.17.2", "pandas==3.1.1", "pydantic==2.14.3", "uvicorn==0.54.0", *XGBOOST),
    "kserve": (
        "kserve==0.21.0",
        "fastapi==0.165.0",
        "httpx==0.28.1",
        "pydantic==2.14.4",
        "numpy==2.4.6",
        "pandas==2.3.3",
    ),
    "evidently": ("evidently==0.7.23", "pandas==2.3.3", "numpy==2.2.6"),
    "nannyml": ("nannyml==0.13.1", "statsmodels==0.15.0"),
    "feast": (
        "feast[duckdb]==0.67.0",
        "ibis-framework[duckdb]==12.0.0",
        "duckdb==2.0.1",
        "pandas==2.3.3",
        "pyarrow==26.0.1",
    ),
}
FOLDER = Path(__file__).parent.parent / ".peers"
#: No peer tells its makers that we run it.
QUIET = {
    "DO_NOT_TRACK": "1",
    "FEAST_USAGE": "False",
    "BENTOML_DO_NOT_TRACK": "True",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "NML_DISABLE_USAGE_LOGGING": "1",
}
#: Enough of what a failed script said to see the exception.
TAIL_CHARACTERS = 4000


def is_made(name: str) -> bool:
    """Whether the peer's environment stands, made from the pins above."""
    marker = FOLDER / name / ".pins"
    return marker.exists() and marker.read_text() == _digest(name)


def environment(name: str) -> Path:
    """The Python of a peer's environment, which is made where it is missing or its pins have changed.

    Raises `KeyError` for an unknown peer, `RuntimeError` where pip fails.
    """
    folder = FOLDER / name
    python = folder / "bin" / "python"
    FOLDER.mkdir(exist_ok=True)
    with Path(FOLDER, f"{name}.lock").open("w") as lock:
        # Whoever comes second waits for what the first one makes.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_made(name):
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, with_pip=True)
            # Everything stays inside the checkout: no cache in the home directory.
            pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-cache-dir", "--quiet"]
            _call([*pip, "install", *REQUIREMENTS[name]])
            (folder / ".pins").write_text(_digest(name))
    return python


def run(name: str, script: Path, *args: object) -> dict[str, Any]:
    """What a script prints as its last line, a JSON object, run in the peer's environment.

    Raises `RuntimeError` with the end of the script's standard error where it fails.
    """
    output = _call([str(environment(name)), str(script), *map(str, args)])
    answer: dict[str, Any] = json.loads(output.splitlines()[-1])
    return answer


def _call(command: list[str]) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=variables(), stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-TAIL_CHARACTERS:]}")
    return done.stdout


def variables() -> dict[str, str]:
    """The environment of what runs inside a peer's environment."""
    # Paths to our packages would let a peer import them.
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | QUIET


def _digest(name: str) -> str:
    pins = "\n".join((sys.version, *REQUIREMENTS[name]))
    return hashlib.sha256(pins.encode()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="+", choices=REQUIREMENTS, metavar="NAME", help=", ".join(REQUIREMENTS)
    )
    for name in parser.parse_args().names:
        print(environment(name))


if __name__ == "__main__":
    main()
