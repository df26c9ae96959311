"""Labels find their rows, count once, and say what is wrong with them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from mlops_ray.data import error_log, labels
from mlops_ray.errors import DataError
from mlops_ray.schema import INSTANT, Column
from mlops_ray.storage import Storage

COLUMNS = (Column("site", "category"), Column("time", "datetime"), Column("load", "float"))
T = datetime(2026, 11, 1, 12, tzinfo=UTC)
PREDICTIONS = pl.DataFrame(
    {
        "request_id": ["a", "a", "b"],
        "row": pl.Series([0, 1, 0], dtype=pl.Int32),
        "prediction": [1.0, 2.0, 3.0],
        "request.site": ["north", "south", "north"],
        "request.time": pl.Series([T, T, T + timedelta(hours=1)], dtype=INSTANT),
    }
)


def stored(tmp_path: Path, *rows: dict[str, list]) -> list[pl.DataFrame]:  # type: ignore[type-arg]
    storage = Storage.open(str(tmp_path))
    for each in rows:
        labels.write(storage, "m", labels.parse(pl.DataFrame(each), COLUMNS, "regression"))
    return labels.new(storage, "m")


def found(tmp_path: Path, *rows: dict[str, list]) -> list[tuple]:  # type: ignore[type-arg]
    joined = labels.labelled(PREDICTIONS.lazy(), stored(tmp_path, *rows))
    return joined.select("request_id", "row", "label").sort("request_id", "row").rows()


def test_labels_by_request_find_their_rows(tmp_path: Path) -> None:
    by: dict[str, list] = {"request_id": ["a", "b", "nobody"], "row": [1, 0, 0]}  # type: ignore[type-arg]
    by["label"] = [2.5, 3.5, 9.0]
    assert found(tmp_path, by) == [("a", 1, 2.5), ("b", 0, 3.5)]


def test_a_request_of_one_row_needs_no_row(tmp_path: Path) -> None:
    assert found(tmp_path, {"request_id": ["b"], "label": [1.5]}) == [("b", 0, 1.5)]


def test_labels_by_entity_and_time_find_their_rows(tmp_path: Path) -> None:
    by = {"site": ["north", "south"], "time": ["2026-11-01T12:00:00Z", "2026-11-01T13:00:00+01:00"]}
    assert found(tmp_path, by | {"label": [0.5, 0.7]}) == [("a", 0, 0.5), ("a", 1, 0.7)]


def test_a_label_that_comes_again_counts_once_and_the_earlier_is_kept(tmp_path: Path) -> None:
    first, later = {"request_id": ["b"], "label": [1.0]}, {"request_id": ["b"], "label": [2.0]}
    by_entity = {"site": ["north"], "time": ["2026-11-01T13:00:00Z"], "label": [3.0]}
    assert found(tmp_path, first, later, later) == [("b", 0, 2.0)]
    assert found(tmp_path, by_entity) == [("b", 0, 3.0)]
    assert sum(frame.height for frame in labels.new(Storage.open(str(tmp_path)), "m")) == 4


def test_only_labels_that_came_after_an_instant_are_read(tmp_path: Path) -> None:
    stored(tmp_path, {"request_id": ["b"], "label": [1.0]})
    storage = Storage.open(str(tmp_path))
    (frame,) = labels.new(storage, "m")
    at = frame[labels.KNOWN_AT][0].timestamp()
    assert labels.new(storage, "m", at - 1)[0].height == 1
    assert labels.new(storage, "m", at + 1) == []


def test_a_label_that_came_before_is_not_new(tmp_path: Path) -> None:
    stored(tmp_path, {"request_id": ["b"], "label": [1.0]})
    storage = Storage.open(str(tmp_path))
    at = labels.new(storage, "m")[0][labels.KNOWN_AT][0].timestamp()
    stored(tmp_path, {"request_id": ["b", "a"], "label": [2.0, 3.0]})
    (frame,) = labels.new(storage, "m", at)
    assert frame["request_id"].to_list() == ["a"]


def test_two_requests_of_one_name_have_no_label_by_it(tmp_path: Path) -> None:
    twice = pl.concat([PREDICTIONS, PREDICTIONS.with_columns(pl.col("prediction") + 1)])
    assert labels.labelled(twice.lazy(), stored(tmp_path, {"request_id": ["b"], "label": [1.0]})).is_empty()
    by_entity = {"site": ["north"], "time": ["2026-11-01T13:00:00Z"], "label": [3.0]}
    folder = tmp_path / "other"
    assert labels.labelled(twice.lazy(), stored(folder, by_entity))["label"].to_list() == [3.0, 3.0]


def test_a_request_that_was_answered_twice_alike_has_its_label_once(tmp_path: Path) -> None:
    """A caller whose connection broke behind the answer asks again under the same id."""
    twice = pl.concat([PREDICTIONS, PREDICTIONS.with_columns(pl.col("request.site").str.to_uppercase())])
    told = stored(tmp_path, {"request_id": ["b"], "label": [1.0]})
    once = labels.labelled(twice.lazy(), told)
    assert once.select("request_id", "prediction", "label").rows() == [("b", 3.0, 1.0)]
    # Of another site, it was another request.
    assert labels.labelled(twice.lazy(), told, ["request.site"]).is_empty()


def test_a_day_that_has_passed_becomes_one_file_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labels.time, "time", lambda: T.timestamp())
    by_entity = {"site": ["north"], "time": ["2026-11-01T13:00:00Z"], "label": [3.0]}
    one, two = ({"request_id": [name], "label": [1.0]} for name in "ab")
    before = stored(tmp_path, one, two, by_entity)
    (day,) = tmp_path.glob("labels/m/date=*")
    (day / "damaged.parquet").write_bytes(b"none")
    storage = Storage.open(str(tmp_path))
    assert labels.compact(storage, "m") == 2
    assert len(list(day.glob("*.parquet"))) == 2 + 1
    after = labels.new(storage, "m")
    assert sorted(frame.height for frame in after) == sorted(frame.height for frame in before) == [1, 2]
    assert labels.compact(storage, "m") == 0


def test_labels_are_for_no_eyes_but_ours(tmp_path: Path) -> None:
    stored(tmp_path, {"request_id": ["b"], "label": [1.0]})
    (path,) = tmp_path.glob("labels/m/date=*/*.parquet")
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("given", "names", "values"),
    [
        ([True, False], None, [1.0, 0.0]),
        (["Yes", "no"], None, [1.0, 0.0]),
        ([1.0, 0.0], None, [1.0, 0.0]),
        (["goes", "stays"], ("stays", "goes"), [1.0, 0.0]),
    ],
)
def test_yes_and_no_are_read_as_they_are_called(
    given: list[object], names: tuple[str, str] | None, values: list[float]
) -> None:
    rows = pl.DataFrame({"request_id": ["a", "b"], "label": given})
    assert labels.parse(rows, COLUMNS, "classification", names)["label"].to_list() == values


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"request_id": ["a"]}, "need a column 'label'"),
        ({"label": [1.0]}, "need the column 'request_id', or columns of the request: 'site', 'time'"),
        ({"request_id": ["a", "b"], "label": ["1", "much"]}, "row 2 of the labels: 'much' is not a number"),
        ({"request_id": ["a", None], "label": [1.0, 2.0]}, "row 2 of the labels has no usable 'request_id'"),
        ({"site": ["a"], "label": [1.0]}, "labels by 'site' need 'time' too"),
        ({"request_id": ["a"], "label": [1e300]}, "row 1 of the labels: 1e\\+300 is not a number"),
        (
            {"load": [1.0], "label": [1.0]},
            "need the column 'request_id', or columns of the request: 'site', 'time'",
        ),
        *(
            (
                {"site": ["a", "a"], "time": [good, bad], "label": [1.0, 1.0]},
                "row 2 of the labels has no usable 'time'; a time is written with its offset, e.g. 2026",
            )
            for good, bad in [
                ("2026-11-01T00:00Z", "soon"),
                ("2026-11-01T00:00+01:00", "2026-11-01"),
                ("2026-11-01 00:00:00+0100", "2026-11-01 00:00:00"),
                ("2026-11-01T00:00:00.5Z", "03.02.2025"),
                ("2026-11-01T00:00:00Z", "02/03/2025"),
            ]
        ),
        *(
            (
                {"site": ["a"], "time": [no_instant], "label": [1.0]},
                "row 1 of the labels has no usable 'time'; a time",
            )
            for no_instant in (T.date(), T.replace(tzinfo=None))
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_row(rows: dict[str, list], said: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(DataError, match=said):
        labels.parse(pl.DataFrame(rows), COLUMNS, "regression")


def test_names_that_may_be_values_are_quoted_as_what_no_log_keeps() -> None:
    without_its_first_line = pl.DataFrame({"id-1": ["id-2"], "Miller": ["7.5"]})
    with pytest.raises(DataError) as refused:
        labels.parse(without_its_first_line, COLUMNS, "regression")
    assert "Miller" in str(refused.value)
    assert "Miller" not in error_log.unquoted(str(refused.value))
