"""No telemetry leaves: neither Ray nor MLflow tells its makers what a command, or a node, does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_ray.cluster import head, joined
from tests.conftest import EXAMPLE, ROOT

#: Runs a command that needs MLflow and no cluster; then says whether MLflow and Ray would tell anything.
COMMAND = """
import contextlib, sys
from mlops_ray import cli
sys.argv = ["mlops-ray", "models", sys.argv[1]]
with contextlib.suppress(SystemExit):
    cli.main()
from mlflow.telemetry import get_telemetry_client
from ray._common.usage import usage_lib
print("silent" if get_telemetry_client() is None and not usage_lib.usage_stats_enabled() else "tells")
"""


def test_a_command_tells_nobody_anything_also_where_it_starts_no_cluster(tmp_path: Path) -> None:
    file = tmp_path / "project.yaml"
    file.write_text(EXAMPLE.read_text())
    # By other variables MLflow knows that it is tested, and is silent then.
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = [sys.executable, "-c", COMMAND, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    assert done.stdout.split()[-1] == "silent"


@pytest.mark.parametrize("address", [None, "10.0.0.5:6379"])
def test_a_driver_and_every_process_of_a_cluster_tells_nobody_anything(
    address: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
    for name in head.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_ADDRESS", address) if address else monkeypatch.delenv(
        "RAY_ADDRESS", raising=False
    )
    joined.settle()
    ports = dict.fromkeys(head.OFFSETS, 1)
    for environment in (dict(os.environ), head.of_nodes(), head.environment(tmp_path, tmp_path, ports)):
        assert silent.items() <= environment.items()
