"""The project file says what can be done, and the data are what it says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_ray import config

FILE = Path(__file__).parent.parent / "project.yaml"


def test_the_project_file_can_be_read_and_what_it_names_is_there(tmp_path: Path) -> None:
    project = config.load(FILE, {"MLOPS_STORAGE": str(tmp_path)})
    assert project.project == "project-name"
    assert project.target.source in project.sources


def test_the_data_are_what_the_project_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOPS_STORAGE", str(tmp_path))
    command = [sys.executable, "-m", "mlops_ray", "validate", str(FILE), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for report in json.loads(done.stdout).values():
        assert report["quarantined"] == 0
