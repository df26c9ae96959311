"""The employment census: its files come out of the wheel as they are, and the project learns from them."""

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mlops_ray import config
from mlops_ray.config import Project
from mlops_ray.data import blocks, inputs
from mlops_ray.data.validate import Report
from mlops_ray.datasets import employment
from mlops_ray.errors import DataError
from mlops_ray.features.store import FeatureStore
from mlops_ray.storage import Storage

from ..conftest import ROOT

ANSWERS = {
    "SCHL": 25,
    "MAR": 6,
    "RELP": 18,
    "DIS": 3,
    "ESP": 9,
    "CIT": 6,
    "MIG": 4,
    "MIL": 5,
    "ANC": 5,
    "NATIVITY": 3,
    "DEAR": 3,
    "DEYE": 3,
    "DREM": 3,
    "SEX": 3,
    "RAC1P": 10,
}


def people(count: int = 400) -> pl.DataFrame:
    """The columns and types of employment_MA_reference.pq."""
    random = np.random.default_rng(7)
    age = random.integers(0, 95, count)
    answers = {
        name: pl.Series(random.integers(1, codes, count)).cast(pl.String).cast(pl.Categorical)
        for name, codes in ANSWERS.items()
    }
    employed = ((age > 17) & (age < 67)).astype(np.int64)
    return pl.DataFrame(
        {"id": np.arange(count), "AGEP": age.astype(np.float64)}
        | answers
        | {
            "employed": employed,
            "year": np.full(count, 2015),
            "prediction": employed,
            "predicted_probability": employed * 0.9,
        }
    )


def written(rows: pl.DataFrame) -> bytes:
    file = io.BytesIO()
    rows.write_parquet(file)
    return file.getvalue()


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What a wheel of the files' layout holds, of whose digests we know."""
    reference = people()
    analysis = reference.with_columns(pl.col("id") + 400, year=pl.lit(2016))
    made = {
        "employment_MA_reference.pq": written(reference),
        "employment_MA_analysis.pq": written(analysis.drop("employed")),
        "employment_MA_analysis_target.pq": written(analysis.select("id", "employed")),
    }
    assert made.keys() == employment.FILES.keys()
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in made.items()}
    monkeypatch.setattr(employment, "FILES", digests)
    return made


def wheel(folder: Path, files: dict[str, bytes]) -> Path:
    path, about = folder / "nannyml-0.13.1-py3-none-any.whl", "nannyml-0.13.1.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: nannyml\nVersion: 0.13.1\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        for name, content in files.items():
            archive.writestr(f"nannyml/datasets/data/{name}", content)
        archive.writestr("nannyml/datasets/data/other.pq", b"other")
    return path


def test_the_files_and_no_other_come_out_of_the_wheel(files: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "data" / "employment"
    for _ in range(2):
        found = employment.extract(wheel(tmp_path, files), folder)
        assert {path.name: path.read_bytes() for path in found} == files
        assert {path.name for path in folder.iterdir()} == files.keys()


@pytest.mark.parametrize("name", list(employment.FILES))
def test_a_file_with_other_contents_is_refused_and_nothing_is_written(
    name: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    changed = files | {name: files[name] + b"x"}
    with pytest.raises(DataError, match=f"{name} is not that of nannyml==0.13.1: its SHA-256 is another"):
        employment.extract(wheel(tmp_path, changed), tmp_path / "data")
    assert not (tmp_path / "data").exists()
    del changed[name]
    with pytest.raises(DataError, match=r"is not the wheel of nannyml==0.13.1: .*no item named"):
        employment.extract(wheel(tmp_path, changed), tmp_path / "data")


def test_what_is_no_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.whl").write_text("no zip")
    for name in ("a.whl", "absent.whl"):
        with pytest.raises(DataError, match=f"{name}: is not the wheel of"):
            employment.extract(tmp_path / name, tmp_path)


def test_the_wheel_comes_from_where_pip_is_told_to_look(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    with pytest.raises(DataError, match=r"pip cannot get nannyml==0.13.1: ERROR: No matching distribution"):
        employment.fetch(tmp_path / "data")
    wheel(tmp_path, files)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert {path.name: path.read_bytes() for path in employment.fetch(tmp_path / "data")} == files


@pytest.fixture
def project(files: dict[str, bytes], tmp_path: Path) -> Project:
    """The project file, with its data where its own lines put them."""
    (tmp_path / "configs").mkdir()
    copy = tmp_path / "configs" / "employment.yaml"
    copy.write_bytes((ROOT / "configs" / "employment.yaml").read_bytes())
    employment.extract(wheel(tmp_path, files), tmp_path / employment.FOLDER)
    return config.load(copy, {})


def test_the_project_learns_from_the_answers_of_every_person_and_from_no_prediction(project: Project) -> None:
    source, store = project.sources["census"], FeatureStore(project, Storage.open(project.storage))
    report = Report()
    for verdict in (v for file in inputs.find(source, "census") for v in blocks.check_file(file, source)):
        report.add(verdict)
        store.history("census").append(verdict.valid, source, "all")
    assert (report.rows_in, report.valid) == (400, 400)
    made = store.build(store.snapshots()).frame.sort("id")
    assert set(store.features.names) == {"AGEP", *ANSWERS}
    expected = people().select(
        pl.col("AGEP").cast(pl.Int64),
        *(pl.col(name).cast(pl.String) for name in ANSWERS),
        label=pl.col("employed").cast(pl.Float64),
    )
    assert made.select(expected.columns).equals(expected)


def test_without_its_files_the_project_says_which_is_missing(project: Project) -> None:
    source = project.sources["census"]
    assert source.path is not None
    Path(source.path[0].path or "").unlink()
    with pytest.raises(DataError, match=r"employment_MA_reference\.pq"):
        inputs.find(source, "census")
