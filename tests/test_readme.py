"""What README.md shows is what comes out."""

import io
import re
from pathlib import Path

import polars as pl
from polars.testing import assert_frame_equal

from mlops_ray import config
from mlops_ray.config import File
from mlops_ray.data.ingest import check_file
from mlops_ray.features.store import FeatureStore, read_spine
from mlops_ray.storage import Storage

from .conftest import ROOT


def blocks(language: str) -> list[str]:
    """The blocks of code in a language, in their order."""
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_example_of_the_feature_store_gives_the_answers_that_stand_below_it(tmp_path: Path) -> None:
    (project,) = blocks("yaml")
    orders, rows, answers = blocks("csv")
    for name, text in (("project.yaml", project), ("orders.csv", orders), ("rows.csv", rows)):
        (tmp_path / name).write_text(text)
    opened = config.load(tmp_path / "project.yaml", {})
    store = FeatureStore(opened, Storage.open(opened.storage))
    source = opened.sources["orders"]
    for verdict in check_file(File(path=str(tmp_path / "orders.csv")), source):
        assert verdict.valid.height == 4
        store.history("orders").append(verdict.valid, source, "first")
    made = store.get(read_spine(tmp_path / "rows.csv")).frame
    expected = pl.read_csv(io.StringIO(answers))
    found = made.select(expected.columns).with_columns(
        pl.col("at").dt.strftime("%Y-%m-%dT%H:%MZ"), pl.col("customer").cast(pl.String)
    )
    assert_frame_equal(found, expected, check_dtypes=False)
