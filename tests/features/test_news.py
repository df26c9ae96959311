"""What is stored of rows that may be stored already: only what says something new, whatever is read again."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_ray.config import Source
from mlops_ray.errors import StorageError
from mlops_ray.features.commits import Batch
from mlops_ray.features.definitions import view_table
from mlops_ray.features.history import History, read

from .cases import clock_at

#: Rows are (key, hour, id, value, deleted).
Row = tuple[str | None, int, str, float | None, bool]
BEGIN = datetime(2020, 1, 1, tzinfo=UTC)


def source(*, row_id: bool, back_loaded: bool) -> Source:
    says: dict[str, Any] = {"row_id": "id"} if row_id else {}
    says |= {"known_at": {"after_event": "1h"}} if back_loaded else {}
    columns = {
        "k": {"type": "category"},
        "id": {"type": "string"},
        "v": {"type": "float"},
        "gone": {"type": "bool"},
    }
    return Source.model_validate(
        {
            "path": "x.csv",
            "entity": "k",
            "event_time": {"column": "t", "timezone": "UTC"},
            "deleted": "gone",
            "columns": columns,
            **says,
        }
    )


def frame(rows: list[Row]) -> pl.DataFrame:
    return pl.DataFrame(
        [(BEGIN + timedelta(hours=hour), key, id, value, gone) for key, hour, id, value, gone in rows],
        schema={
            "event_time": pl.Datetime("us", "UTC"),
            "k": pl.String,
            "id": pl.String,
            "v": pl.Float64,
            "gone": pl.Boolean,
        },
        orient="row",
    )


def in_force(history: History) -> set[tuple[Any, ...]]:
    rows = read(history.snapshot())
    return set(rows.select("k", (pl.col("event_time") - BEGIN).dt.total_hours(), "id", "v").rows())


def stored(history: History) -> int:
    files = [str(file) for file in history.folder.glob("*/*.parquet")]
    return pl.scan_parquet(files, hive_partitioning=False).select(pl.len()).collect().item() if files else 0


rows = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", None]),
        st.integers(0, 2),
        st.sampled_from(["x", "y"]),
        st.sampled_from([0.0, 1.0, None]),
        st.booleans(),
    ),
    max_size=6,
)


@settings(max_examples=60)
@given(
    readings=st.lists(st.tuples(rows, st.booleans()), min_size=1, max_size=4),
    # A row id in a back-load has versions that are known at different times: test_point_in_time.py.
    declared=st.sampled_from([(False, False), (True, False), (False, True)]),
)
def test_what_is_in_force_is_what_was_read_and_nothing_is_stored_twice(
    tmp_path_factory: Any, readings: list[tuple[list[Row], bool]], declared: tuple[bool, bool]
) -> None:
    """Against a dictionary: the last row of an identity counts, and a whole reading takes the others back."""
    row_id, back_loaded = declared
    spec = source(row_id=row_id, back_loaded=back_loaded)
    history = History.of(tmp_path_factory.mktemp("history"), view_table("s", spec))
    expected: dict[Any, tuple[Any, ...]] = {}
    history.append(frame([]), spec, "first")
    for number, (read_now, is_whole) in enumerate(readings):
        before, count = dict(expected), stored(history)
        named = {}
        for key, hour, id, value, gone in read_now:
            named[(key, id if row_id else hour)] = None if gone else (key, hour, id, value)
        if is_whole:
            expected = {}
        for identity, row in named.items():
            expected.pop(identity, None)
            if row is not None:
                expected[identity] = row
        data = frame(read_now)
        batch = Batch(
            lambda data=data: [data],  # type: ignore[misc]
            data.height,
            inputs={"file": number},
            is_known=True,
            is_whole=is_whole,
        )
        history.store(batch, spec, str(number))
        changed = {k for k in expected.keys() | before.keys() if expected.get(k) != before.get(k)}
        assert stored(history) - count == len(changed)
        if not stored(history):
            continue
        assert in_force(history) == set(expected.values())
        history.store(batch, spec, f"{number} again")
        assert stored(history) - count == len(changed)


def test_rows_that_say_nothing_new_make_no_commit_and_what_was_read_is_remembered(tmp_path: Path) -> None:
    spec = source(row_id=False, back_loaded=False)
    history = History.of(tmp_path, view_table("s", spec))
    data = frame([("a", 0, "x", 1.0, False)])
    history.store(Batch(lambda: [data], 1, inputs={"file": 7}), spec, "1")
    assert history.inputs == {"file": 7}
    assert history.store(Batch(lambda: [data], 1, is_known=True), spec, "2").id == "1"
    assert history.store(Batch(lambda: [data], 1, inputs={"file": 8}, is_known=True), spec, "3").id == "3"
    history.store(Batch(lambda: [data], 1, inputs={"other": 1}, is_known=True), spec, "4")
    history.maintain(vacuum_hours=0)
    assert history.inputs == {"file": 8, "other": 1}
    assert history.store(Batch(lambda: [data], 1, inputs={"file": 8}), spec, "5").id == "4"
    assert stored(history) == 1


def test_a_commit_comes_in_pieces_that_are_made_anew_where_another_writer_was_faster(tmp_path: Path) -> None:
    spec = source(row_id=False, back_loaded=False)
    history = History.of(tmp_path, view_table("s", spec))
    pieces = [frame([("a", 0, "x", 1.0, False)]), frame([("b", 1, "y", 2.0, False)])]
    tries = []

    def chunks() -> list[pl.DataFrame]:
        tries.append(0)
        if len(tries) == 1:
            history.append(frame([("c", 0, "x", 9.0, False)]), spec, "faster")
        return pieces

    history.append(frame([("d", 5, "x", 0.0, False)]), spec, "first")
    history.store(Batch(chunks, 2), spec, "slower")
    assert len(tries) == 2
    assert in_force(history) == {
        ("a", 0, "x", 1.0), ("b", 1, "y", 2.0), ("c", 0, "x", 9.0), ("d", 5, "x", 0.0),
    }  # fmt: skip
    assert len(list(tmp_path.glob("*/*/*.parquet"))) == 4


def test_a_disk_that_is_full_is_said_and_a_commit_that_failed_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = source(row_id=False, back_loaded=False)
    history = History.of(tmp_path, view_table("s", spec))
    history.append(frame([("a", 0, "x", 1.0, False)]), spec, "first")
    before = sorted(tmp_path.rglob("*.parquet"))
    write, calls = pl.DataFrame.write_parquet, []

    def full_at_the_second(self: pl.DataFrame, *given: Any, **more: Any) -> None:
        calls.append(given)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        write(self, *given, **more)

    monkeypatch.setattr(pl.DataFrame, "write_parquet", full_at_the_second)
    with pytest.raises(StorageError, match="No space left on device") as told:
        history.append(frame([(key, 0, "x", 1.0, False) for key in "abc"]), spec, "second")
    assert str(tmp_path) in str(told.value)
    assert sorted(tmp_path.rglob("*.parquet")) == before
    assert history.commit == "first"


def test_what_two_writers_read_at_once_is_all_remembered_and_the_same_input_is_stored_once(
    tmp_path: Path,
) -> None:
    spec = source(row_id=False, back_loaded=False)
    history = History.of(tmp_path, view_table("s", spec))
    data = frame([("a", 0, "x", 1.0, False)])

    def while_another_commits(inputs: dict[str, int]) -> Any:
        def chunks() -> list[pl.DataFrame]:
            if not history.inputs.items() >= inputs.items():
                history.store(Batch(lambda: [data], 1, inputs=inputs), spec, str(inputs))
            return [data]

        return chunks

    with clock_at(100):
        history.append(data, spec, "first")
        history.store(Batch(while_another_commits({"b": 2}), 1, inputs={"a": 1}), spec, "second")
        assert history.inputs == {"a": 1, "b": 2}
        assert stored(history) == 3
        history.store(Batch(while_another_commits({"c": 3}), 1, inputs={"c": 3}), spec, "third")
    assert history.inputs == {"a": 1, "b": 2, "c": 3}
    assert stored(history) == 4
