"""Labels from a file are taken in whole, or refused with the row that is wrong."""

from pathlib import Path

import polars as pl
import pytest

from mlops_ray import audit
from mlops_ray.cluster import truths
from mlops_ray.cluster.erasure import Erasure
from mlops_ray.data import labels
from mlops_ray.data.erased import Erased
from mlops_ray.errors import DataError, PolicyError, ReleaseError, StorageError
from mlops_ray.policy import HERE
from mlops_ray.storage import Storage
from tests.conftest import unrecordable
from tests.serving import packages

CSV = "site,time,label\na,2026-11-01T12:00:00Z,1.5\nb,2026-11-01T13:00:00+01:00,2\n"


def load(tmp_path: Path, name: str, content: str | None = CSV, **more: object) -> dict[str, object]:
    project, file = packages.project(tmp_path / "storage", **more), tmp_path / name
    if content is not None:
        file.write_text(content)
    return truths.load(project, Storage.open(project.storage), file)


@pytest.fixture
def live(tmp_path: Path) -> Path:
    project = packages.project(tmp_path / "storage")
    storage = Storage.open(project.storage)
    packed = packages.write(storage.path("packages", "one"), project, 2.0)
    packages.crown(storage, packages.NAME, 1, packed)
    return tmp_path


def stored(folder: Path) -> list[tuple[object, ...]]:
    found = labels.new(Storage.open(str(folder / "storage")), packages.NAME)
    return [row for frame in found for row in frame.select("site", "label").rows()]


def test_csv_and_parquet_are_taken_in_alike(live: Path) -> None:
    assert load(live, "truth.csv") == {"labels": 2, "by": ["site", "time"]}
    pl.read_csv(CSV.encode(), infer_schema=False).write_parquet(live / "truth.parquet")
    assert load(live, "truth.parquet", None)["labels"] == 2
    assert stored(live) == 2 * [("a", 1.5), ("b", 2.0)]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("truth.csv", CSV.replace("1.5", "much"), "truth.csv: row 1 of the labels: 'much' is not a number"),
        ("truth.csv", "a\n", "truth.csv: labels need a column 'label'; there are 'a'"),
        ("truth.csv", "", "truth.csv: cannot be read"),
        ("truth.parquet", CSV, "truth.parquet: cannot be read"),
        ("none.csv", None, "none.csv: cannot be read"),
    ],
)
def test_what_is_wrong_is_said_with_the_file_and_stores_nothing(
    live: Path, name: str, content: str | None, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        load(live, name, content)
    assert stored(live) == []


def test_labels_are_recorded_before_they_are_taken_in_and_are_not_where_that_cannot_be(live: Path) -> None:
    load(live, "truth.csv")
    storage = Storage.open(str(live / "storage"))
    (told,) = audit.entries(storage)
    assert (told["what"], told["by"]) == ("labels were loaded", audit.who())
    assert told["about"] == {"model": packages.NAME, "labels": 2, "by": ["site", "time"]}
    before = stored(live)
    unrecordable(storage)
    with pytest.raises(StorageError, match="audit record cannot be written"):
        load(live, "truth.csv")
    assert stored(live) == before


def test_labels_of_erased_rows_do_not_come_back_by_their_key_and_are_counted(live: Path) -> None:
    load(live, "truth.csv")
    project = packages.project(live / "storage")
    storage = Storage.open(project.storage)
    found = Erasure.of(project, storage, "table", {"site": "a"}, "request 17").run(lambda _: True)
    assert found["labels"] == 1
    assert load(live, "truth.csv") == {"labels": 1, "by": ["site", "time"], "erased": 1}
    assert stored(live) == 2 * [("b", 2.0)]
    *_, told = audit.entries(storage)
    assert told["about"] == {"model": packages.NAME, "labels": 1, "by": ["site", "time"], "erased": 1}


def test_whose_labels_are_is_told_by_what_requests_call_the_keys_of_each_source(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    table = packages.PROJECT["sources"]["table"]  # type: ignore[index]
    shops = table | {"entity": "shop", "columns": table["columns"] | {"shop": {"type": "int"}}}
    sold = table | {"columns": table["columns"] | {"seller": {"type": "int"}}}
    seen = {"source": "shops", "join_keys": {"seller": "shop"}, "features": {"newest": {"latest": "load"}}}
    project = packages.project(
        tmp_path,
        sources={"table": sold, "shops": shops},
        features=packages.PROJECT["features"] | {"seen": seen},  # type: ignore[operator]
    )
    whose = packages.write(storage.path("packages", "one"), project, 2.0).whose
    Erased.of(storage.root / "features", "shops").add({"shop": "7"}, "request 17", {"shop": "number"})
    Erased.of(storage.root / "features", "table").add({"site": "a"}, "request 17", {"site": "text"})
    for rows, left in {
        (("seller", (7, 8)),): 1,
        (("seller", (8, 8)), ("site", ("b", "a"))): 1,
        # No key of theirs, and of a request that nobody knows any more.
        (("shop", (7, 8)),): 2,
        (("request_id", ("7", "a")), ("row", (0, 0))): 2,
    }.items():
        given = pl.DataFrame(dict(rows)).with_columns(label=pl.lit(1.0))
        assert labels.without_erased(storage, given, whose).height == left, rows


def test_labels_of_a_model_that_never_answered_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="no version of 'rows' is live yet"):
        load(tmp_path, "truth.csv")


def test_labels_are_not_named_by_what_nobody_may_see(live: Path) -> None:
    source = packages.PROJECT["sources"]["table"] | {"policy": {"machine_only": ["site"]}}  # type: ignore[index]
    with pytest.raises(DataError, match="need the column 'request_id', or columns of the request: 'time'"):
        load(live, "truth.csv", CSV.replace("time", "when"), sources={"table": source})


def test_no_label_and_no_column_is_quoted_where_there_is_something_that_nobody_may_see(live: Path) -> None:
    source = packages.PROJECT["sources"]["table"] | {"policy": {"machine_only": ["cost"]}}  # type: ignore[index]
    for content, said in {
        CSV.replace("1.5", "much"): "row 1 of the labels is not a number",
        "much,2\n": "labels need a column 'label'",
        "label\n1,much\n": "cannot be read",
    }.items():
        with pytest.raises(DataError) as told:
            load(live, "truth.csv", content, sources={"table": source})
        assert str(told.value) == f"{live / 'truth.csv'}: {said}"


def test_truth_of_rows_of_a_region_is_taken_in_there_alone(
    live: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = packages.PROJECT["sources"]["table"] | {"policy": {"allowed_regions": "eu-de"}}  # type: ignore[index]
    bound = {"sources": {"table": source}}
    monkeypatch.setenv(HERE, "us-east")
    with pytest.raises(PolicyError, match=r"may be in eu-de only, and this machine is in us-east"):
        load(live, "truth.csv", **bound)
    monkeypatch.setenv(HERE, "eu-de")
    with pytest.raises(PolicyError, match=r"the store storage stands in us-east"):
        load(live, "truth.csv", **bound, regions={"storage": "us-east"})
    assert stored(live) == []
    assert load(live, "truth.csv", **bound)["labels"] == 2
