"""What `init` writes is a project that works as it is."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mlops_ray import template
from mlops_ray.errors import UsageError

BIN = Path(sys.executable).parent


def make(folder: Path, *targets: str) -> subprocess.CompletedProcess[str]:
    """Make with the environment that the tests run in, which is taken for made."""
    venv = BIN.parent
    command = ["make", f"VENV={venv}", "-o", f"{venv}/.installed", *targets]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new") / "shop-sales"
    template.write("shop-sales", folder)
    return folder


def test_the_layout_is_that_of_cookiecutter_data_science(project: Path) -> None:
    folders = {str(path.relative_to(project)) for path in project.rglob("*") if path.is_dir()}
    assert folders >= {
        "data/raw", "data/interim", "data/processed", "data/external", "models", "notebooks", "references",
        "reports/figures", "shop_sales", "tests", ".github/workflows",
    }  # fmt: skip
    for path in filter(Path.is_file, project.rglob("*")):
        assert not re.search(r"project[-_](name|module)|mlops-ray-requirement", path.read_text())


def test_its_own_tests_pass_and_know_a_broken_project_file(project: Path) -> None:
    done = make(project, "test")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
    file = project / "project.yaml"
    whole = file.read_text()
    try:
        file.write_text(whole.replace("column: day", "column: dax"))
        assert make(project, "test").returncode != 0
    finally:
        file.write_text(whole)


def test_the_workflow_calls_the_commands_that_there_are(project: Path) -> None:
    workflow = yaml.safe_load((project / ".github/workflows/release.yml").read_text())
    steps = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    targets = set((project / "Makefile").read_text().split(".PHONY:")[1].split("\n")[0].split())
    made = [step.splitlines()[-1].split() for step in steps]
    assert made == [["make", "test"], ["make", "release"]]
    assert {target for _, target in made} <= targets
    # What others may write into a run is no part of a command, and no command by itself.
    check = steps[1].splitlines()[0]
    for version, status in (("latest", 0), ("12", 0), ("", 2), ("1; touch x", 2), ("$(touch x)", 2)):
        done = subprocess.run(["sh", "-c", check], env={"VERSION": version}, capture_output=True)
        assert done.returncode == status, version
    assert not any("${{" in step for step in steps)


@pytest.mark.parametrize(
    "name",
    [
        "Shop",
        "shop--sales",
        "7shops",
        "class",
        "json",
        "mlops-ray",
        "",
        "../up",
        "gateway",
        "models",
        "polars",
        "x" * 64,
    ],
)
def test_a_name_that_makes_no_project_or_module_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        template.write(name, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        template.write("shop-sales", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
