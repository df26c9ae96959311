"""Lists of contents are CycloneDX, name what there is exactly, and say nothing of rows."""

import re
import subprocess
import sys
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import orjson
import pytest
import yaml
from sklearn.linear_model import Ridge

from mlops_ray import cli, sbom
from mlops_ray.registry import package
from mlops_ray.registry.encoder import Encoder
from mlops_ray.registry.models import KINDS, EstimatorModel
from mlops_ray.registry.package import Package
from mlops_ray.training.families import FAMILIES, How, Sample
from tests.conftest import ROOT
from tests.registry.made import COLUMNS, rows, write

SCHEMA = yaml.safe_load((ROOT / "tests" / "fixtures" / "cyclonedx.yaml").read_text())
#: A line of the lock: what is pinned on every machine, exactly.
PINNED = re.compile(r"^([a-z0-9-]+)==(\S+) \\$", re.MULTILINE)


def check(found: dict[str, Any]) -> None:
    """The schema, and what it cannot say: each part has a name of its own, and what is named is there."""
    jsonschema.validate(orjson.loads(orjson.dumps(found)), SCHEMA)
    parts = [found["metadata"]["component"], *found["components"]]
    refs = [part["bom-ref"] for part in parts]
    assert len(set(refs)) == len(refs)
    for edge in found["dependencies"]:
        assert {edge["ref"], *edge["dependsOn"]} <= set(refs)


def versions(found: dict[str, Any]) -> dict[str, str]:
    """By the normal name of each library its version."""
    parts = [part for part in found["components"] if part["type"] == "library"]
    return {part["purl"].split("/")[1].split("@")[0]: part["version"] for part in parts}


def requires(found: dict[str, Any], ref: str) -> list[str]:
    (edge,) = [edge for edge in found["dependencies"] if edge["ref"] == ref]
    return [name.partition("@")[0] for name in edge["dependsOn"]]


def test_the_environment_is_listed_with_the_versions_of_the_lock() -> None:
    found = sbom.environment()
    check(found)
    listed, lock = versions(found), dict(PINNED.findall((ROOT / "requirements.lock").read_text()))
    assert len(lock) > 100
    assert {name: listed.get(name) for name in lock} == lock


def test_the_environment_says_who_requires_what_also_by_an_extra() -> None:
    found = sbom.environment()
    ours = found["metadata"]["component"]
    assert (ours["name"], ours["version"]) == ("mlops_ray", version("mlops_ray"))
    assert {"pkg:pypi/ray", "pkg:pypi/polars"} <= set(requires(found, ours["bom-ref"]))
    # It asks for ray[serve], and Starlette is of that extra alone.
    assert "pkg:pypi/starlette" in requires(found, f"pkg:pypi/ray@{version('ray')}")


def test_licences_are_those_that_metadata_says() -> None:
    found = {part["name"]: part.get("licenses") for part in sbom.environment()["components"]}
    assert found["scikit-learn"] == [{"expression": "BSD-3-Clause"}]
    assert found["xgboost"] == [{"license": {"name": "Apache-2.0"}}]
    # Where the whole text stands in a licence's place its class says which it is.
    assert found["polars"] == [{"license": {"name": "MIT License"}}]
    assert found["skops"] is None, "it says but that somebody approves of it"


def test_a_package_lists_its_model_its_libraries_and_the_hash_of_its_data(tmp_path: Path) -> None:
    made = write(tmp_path / "demo")
    found = made.sbom
    assert found is not None
    check(found)
    model = found["metadata"]["component"]
    assert model["hashes"] == [{"alg": "SHA-256", "content": made.files["coefficients.json"]}]
    assert model["modelCard"]["modelParameters"] == {
        "approach": {"type": "supervised"},
        "task": "regression",
        "architectureFamily": "ridge",
        "modelArchitecture": "linear",
        "datasets": [{"ref": "training-set"}],
    }
    assert model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"] == [
        {
            "type": "mae",
            "value": "0.1",
            "slice": "test part",
            "confidenceInterval": {"lowerBound": "0.09", "upperBound": "0.11"},
        }
    ]
    # No row, and no column's name.
    assert [part for part in found["components"] if part["type"] == "data"] == [
        {
            "type": "data",
            "bom-ref": "training-set",
            "name": "training-set",
            "hashes": [{"alg": "SHA-256", "content": made.manifest["training_set"]["digest"]}],
            "data": [
                {"type": "dataset", "contents": {"properties": [{"name": "mlops_ray:rows", "value": "200"}]}}
            ],
        }
    ]
    listed = versions(found)
    assert {name: listed[name] for name in ("polars", "numpy")} == {
        "polars": version("polars"),
        "numpy": version("numpy"),
    }
    assert "ray" not in listed, "it needs none to be loaded"


#: Of each kind of model a family that makes it, and what fitted it, or is needed to read it again.
NEEDED = {
    "linear": ("ridge", set[str]()),
    "forest": ("random_forest", {"scikit-learn"}),
    "boosted": ("hist_gradient_boosting", {"scikit-learn"}),
    "network": ("mlp", {"scikit-learn"}),
    "xgboost": ("xgboost", {"xgboost", "scipy"}),
    "lightgbm": ("lightgbm", {"lightgbm", "scipy"}),
    "catboost": ("catboost", {"catboost"}),
    "estimator": ("", {"scikit-learn", "skops"}),
}


def packed(kind: str, folder: Path) -> Package:
    """The package of a fitted model of a kind."""
    family, labels = FAMILIES.get(NEEDED[kind][0]), (np.arange(200) % 2).astype(float)
    encoder = Encoder.fit(rows(200), COLUMNS, style=family.style if family else "one_hot")
    sample = Sample(encoder.transform(rows(200)), labels)
    if family is None:
        return write(folder, model=EstimatorModel.of(Ridge().fit(sample.x, labels)), encoder=encoder)
    params = {name: dimension.default for name, dimension in family.space.items()}
    fitted = family.fit(sample, params, How("mae", seed=7, cpus=1, task="regression"))
    return write(folder, model=fitted, encoder=encoder)


def test_of_every_kind_of_model_it_is_asked_what_it_lists() -> None:
    assert NEEDED.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", NEEDED)
def test_what_a_kind_of_model_needs_is_listed_with_all_that_leads_to(kind: str, tmp_path: Path) -> None:
    made = packed(kind, tmp_path / "demo")
    assert made.model.kind == kind
    assert made.sbom is not None
    check(made.sbom)
    listed, fitting = versions(made.sbom), {"scikit-learn", "skops", "xgboost", "lightgbm", "catboost"}
    assert NEEDED[kind][1] | {"numpy", "polars"} <= listed.keys()
    assert fitting & listed.keys() == fitting & NEEDED[kind][1]


LOADING = """
import sys
# What is not listed is not to be had; scikit-learn takes pandas and others where they are.
sys.modules.update(dict.fromkeys(sys.argv[2:]))
from pathlib import Path
from mlops_ray.registry.predictor import Predictor
Predictor.load(Path(sys.argv[1]), None)
"""


@pytest.mark.parametrize("kind", NEEDED)
def test_a_package_is_loaded_with_nothing_but_what_it_lists(kind: str, tmp_path: Path) -> None:
    made = packed(kind, tmp_path / "demo")
    assert made.sbom is not None
    listed, of = versions(made.sbom).keys() | {"mlops-ray"}, packages_distributions()
    normal = {name: {each.lower().replace("_", "-") for each in those} for name, those in of.items()}
    apart = sorted(name for name, those in normal.items() if not those & listed)
    assert {"ray", "mlflow"} <= set(apart)
    subprocess.run([sys.executable, "-c", LOADING, str(made.folder), *apart], check=True, cwd=ROOT)


def test_the_serial_number_is_that_of_the_contents(tmp_path: Path) -> None:
    one, same = write(tmp_path / "one").sbom, write(tmp_path / "two").sbom
    other = write(tmp_path / "three", metrics={"mae": 0.2}).sbom
    assert one is not None
    assert other is not None
    assert one == same
    assert one["serialNumber"] != other["serialNumber"]


def test_metrics_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    metrics = {"mae": 0.1, "rmse": float("nan")}
    found = write(tmp_path / "demo", metrics=metrics, intervals={"mae": (None, None)}).sbom
    assert found is not None
    check(found)
    told = found["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert told == [{"type": "mae", "value": "0.1", "slice": "test part"}]


def test_a_package_of_before_lists_were_made_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "demo").folder
    (folder / package.SBOM).unlink()
    listed = orjson.loads((folder / "digests.json").read_bytes())
    del listed["files"][package.SBOM]
    (folder / "digests.json").write_bytes(
        orjson.dumps(listed, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
    )
    found = package.read(folder)
    assert found.sbom is None
    assert found.model.kind == "linear"


def test_the_command_prints_the_list_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mlops-ray", "sbom"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert orjson.loads(capsys.readouterr().out) == orjson.loads(orjson.dumps(sbom.environment()))


def test_a_version_without_a_project_is_no_version_of_anything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mlops-ray", "sbom", "3"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "add its file, e.g. mlops-ray sbom 3 project.yaml" in capsys.readouterr().err
