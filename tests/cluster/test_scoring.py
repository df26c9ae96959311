"""The command `predict`: whose answers, and where they are computed."""

import gzip
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from mlops_ray.cluster import local, scoring
from mlops_ray.cluster.stages import Silent
from mlops_ray.config import Project
from mlops_ray.errors import DataError, NotFoundError, PolicyError, StorageError
from mlops_ray.registry.registry import Registry
from mlops_ray.storage import Storage
from mlops_ray.training import tracking
from tests.serving import packages

ROWS = "id,site,time,load\n" + "".join(f"{n},a,2016-11-02T10:00:00Z,{n}\n" for n in range(200)) + "x,z,,1\n"
ROOT = Path(__file__).parent.parent.parent


def document(storage: Storage, **table: Any) -> dict[str, Any]:
    """A project file, its source there: `Pipeline` wants that, and nothing is read from it."""
    source = storage.path("rows.csv")
    source.write_text("site,time,load,cost\n")
    made: dict[str, Any] = packages.PROJECT["sources"]["table"]  # type: ignore[index]
    sources = {"table": made | {"path": str(source), **table}}
    return packages.PROJECT | {"storage": str(storage.root), "sources": sources}


@pytest.fixture
def project(storage: Storage) -> Project:
    """Its champion is version 1, which answers the load."""
    made = Project.model_validate(document(storage))
    storage.path("project.yaml").write_text(yaml.safe_dump(document(storage)))
    storage.path("asked.csv").write_text(ROWS)
    champion = packages.write(storage.path("artifacts", "1"), made, 1.0)
    packages.crown(storage, made.project, 1, champion)
    return made


def predict(project: Project, storage: Storage, output: str, **how: Any) -> pl.DataFrame:
    given, to = storage.path("asked.csv"), storage.path(output)
    said = scoring.predict(project, storage, Silent(), str(given), to, **how)
    assert (said["rows"], said["errors"]) == (201, 1)
    return pl.read_parquet(to)


def test_the_champion_answers_and_what_is_small_starts_no_cluster(project: Project, storage: Storage) -> None:
    answers = predict(project, storage, "answers.parquet")
    assert answers["prediction"][:200].to_list() == pytest.approx(list(range(200)), abs=1e-4)
    assert answers["error"].to_list()[200] == "column 'site': 'z' is none of the values that are allowed"
    assert local.find(storage.root) is None
    assert not storage.path("cluster.json").exists()


def test_a_registered_version_answers_where_it_is_named(project: Project, storage: Storage) -> None:
    uri = f"sqlite:///{storage.path('mlflow.db')}"
    experiment = tracking.prepare(uri, project.project, str(storage.path("artifacts")))
    for number, factor in enumerate((1.0, 2.0), 1):
        with tracking.open_run(uri, experiment, f"run-{number}") as run:
            packed = packages.write(storage.path("made", str(number)), project, factor)
            assert Registry(uri).register(packed, run_id=run.id) == number
    answers = predict(project, storage, "answers.parquet", version=2)
    assert answers["prediction"][:200].to_list() == pytest.approx(list(range(0, 400, 2)), abs=1e-4)
    assert set(answers["model_version"]) == {"2"}
    with pytest.raises(NotFoundError, match="no version 3"):
        predict(project, storage, "other.parquet", version=3)


def test_without_a_champion_it_says_what_to_do(project: Project, storage: Storage) -> None:
    storage.path("release", "rows.json").unlink()
    with pytest.raises(StorageError, match="no champion; `run` makes one, or name --version"):
        predict(project, storage, "answers.parquet")


def test_rows_are_not_scored_where_they_may_not_be(project: Project, storage: Storage) -> None:
    bound = Project.model_validate(document(storage, policy={"allowed_regions": ["eu-de"]}))
    with pytest.raises(PolicyError, match="eu-de only"):
        predict(bound, storage, "answers.parquet")


def test_what_is_large_is_scored_on_a_cluster_that_is_stopped_again(
    project: Project, storage: Storage
) -> None:
    # Nobody knows how much is in a packed file.
    storage.path("asked.csv.gz").write_bytes(gzip.compress(ROWS.encode()))
    command = [sys.executable, "-m", "mlops_ray", "predict", str(storage.path("project.yaml")), "--json"]
    output = storage.path("on_ray.parquet")
    done = subprocess.run(
        [*command, "--input", str(storage.path("asked.csv.gz")), "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"rows": 201, "errors": 1' in done.stdout
    assert pl.read_parquet(output).equals(predict(project, storage, "answers.parquet"))
    assert local.find(storage.root) is None


def test_an_input_without_a_header_is_not_quoted_where_there_is_something_that_nobody_may_see(
    project: Project, storage: Storage
) -> None:
    for policy in ({}, {"machine_only": ["cost"]}):
        hiding = Project.model_validate(document(storage, policy=policy))
        storage.path("asked.csv").write_text("CANARYa,2016-11-02T10:00:00Z,5\nb,2016-11-02T10:00:00Z,6\n")
        with pytest.raises(DataError, match="column 'site': is missing; a request holds site") as told:
            predict(hiding, storage, "answers")
        assert ("CANARYa" in str(told.value)) == (not policy)
