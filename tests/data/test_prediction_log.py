"""The prediction log: every answered row once, what nobody may see apart, and what is lost is counted."""

import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_ray.data import prediction_log
from mlops_ray.data.prediction_log import MACHINE, Entry, PredictionLog, Shape
from mlops_ray.data.rows import Rows, Table, together
from mlops_ray.schema import INSTANT, Column, Schema
from mlops_ray.storage import Storage

MODEL = "m"
SHAPE = Shape("7", "champion", features=("double",))
ASKED = Schema((Column("site", "category"), Column("age", "float")))
SIZE = 700
AT = 1_480_000_000_000_000


@dataclass(frozen=True)
class Answered:
    """What a predictor answered to a batch."""

    values: npt.NDArray[np.float64]
    asked: Table
    given: pl.DataFrame
    watermark_us: int | None = None


def batch(values: list[float], watermark_us: int | None = None) -> Answered:
    """Rows whose columns and features tell the answer."""
    features = pl.DataFrame({"age": values, "double": [2 * v for v in values]})
    asked = together([Rows(ASKED, [[f"s{v:g}" for v in values], values])])
    return Answered(np.array(values), asked, features, watermark_us)


def entry(id: str, of: Answered, start: int, stop: int) -> Entry:
    return Entry(id, of, start, stop, AT, 1_000, SIZE)


def read(storage: Storage) -> pl.DataFrame:
    return prediction_log.read(storage, MODEL).collect()


@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=5), min_size=1, max_size=6), st.randoms())
def test_each_answered_row_is_written_once_and_by_its_own_request(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]], random: Any
) -> None:
    storage = Storage.open(str(tmp_path_factory.mktemp("log")))
    log = PredictionLog(storage, MODEL, "r")
    entries, expected, value = [], [], 0.0
    for number, heights in enumerate(batches):
        values = [value + i for i in range(sum(heights))]
        value += len(values)
        of, start = batch(values), 0
        for place, height in enumerate(heights):
            id = f"{number}.{place}"
            entries.append(entry(id, of, start, start + height))
            expected += [(id, row, values[start + row]) for row in range(height)]
            start += height
    random.shuffle(entries)
    for each in entries:
        log.add(SHAPE, each)
        if random.random() < 0.2:
            log.flush()
    log.close()
    found = read(storage)
    assert sorted(found.select("request_id", "row", "prediction").rows()) == sorted(expected)
    assert (found["request.age"] == found["prediction"]).all()
    assert found["request.site"].str.strip_prefix("s").cast(pl.Float64).equals(found["prediction"])
    assert (found["feature.double"] == 2 * found["prediction"]).all()
    assert prediction_log.lost(storage, MODEL) == 0


def test_a_row_tells_version_route_time_latency_and_watermark(storage: Storage) -> None:
    log = PredictionLog(storage, MODEL, "r")
    log.add(
        Shape("7", "shadow", threshold=2.0, features=("double",)),
        entry("id", batch([1.0, 2.0], AT - 60_000_000), 0, 2),
    )
    log.add(SHAPE, entry("none", batch([5.0]), 0, 1))
    log.close()
    first, second, third = read(storage).sort("prediction").to_dicts()
    assert (first["model_version"], first["route"], first["latency_us"]) == ("7", "shadow", 1_000)
    assert (first["decision"], second["decision"], third["decision"]) == (False, True, None)
    stamps = pl.Series([AT, AT - 60_000_000]).cast(INSTANT).to_list()
    assert [first["at"], first["watermark"]] == stamps
    assert third["watermark"] is None


def test_what_a_release_compares_is_told_from_what_it_does_not(storage: Storage) -> None:
    log = PredictionLog(storage, MODEL, "r")
    for turn in (7, 8):
        compared = entry(f"of {turn}", batch([1.0, 2.0]), 0, 2)._replace(compared=(turn, 1_023))
        log.add(SHAPE, compared)
    log.add(SHAPE, entry("of none", batch([3.0]), 0, 1))
    log.close()
    paths = prediction_log.since(storage, MODEL, AT / 1e6)
    # Of a day before; and of a service that was older.
    assert prediction_log.since(storage, MODEL, AT / 1e6 + 2 * 86_400) == []
    paths.append(storage.path(prediction_log.FOLDER, "old", "one.parquet"))
    read(storage).drop("turn", "key_bucket").write_parquet(paths[-1])
    told = read(storage).select("request_id", "turn", "key_bucket").unique().sort("request_id")
    assert told.rows() == [("of 7", 7, 1_023), ("of 8", 8, 1_023), ("of none", None, None)]
    found = prediction_log.scan(paths).collect()
    assert found.filter(pl.col("turn") > 7)["request_id"].to_list() == ["of 8", "of 8"]
    assert found["turn"].null_count() == 1 + 5
    assert set(found.columns) == {*prediction_log.ABOUT}
    asked = next(name for name in read(storage).columns if name.startswith("request."))
    assert asked in prediction_log.scan(paths, [asked]).collect_schema()


def test_features_that_repeat_a_column_of_the_request_are_written_once(storage: Storage) -> None:
    log = PredictionLog(storage, MODEL, "r")
    log.add(SHAPE, entry("id", batch([1.0]), 0, 1))
    log.close()
    assert [name for name in read(storage).columns if "." in name] == [
        "request.site",
        "request.age",
        "feature.double",
    ]


def test_what_nobody_may_see_lies_apart_and_is_private(storage: Storage) -> None:
    hiding = Shape(
        "7",
        "champion",
        features=("age", "double"),
        hidden_asked=frozenset({"age"}),
        hidden_features=frozenset({"age", "double"}),
    )
    log = PredictionLog(storage, MODEL, "r")
    log.add(hiding, entry("id", batch([31.0]), 0, 1))
    log.close()
    assert [name for name in read(storage).columns if "." in name] == ["request.site"]
    (path,) = prediction_log.files(storage, MODEL, machine=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert pl.read_parquet(path).to_dicts() == [
        {"request_id": "id", "row": 0, "request.age": 31.0, "feature.age": 31.0, "feature.double": 62.0}
    ]


def test_what_is_beyond_the_bytes_that_may_wait_is_lost_and_counted(storage: Storage) -> None:
    log = PredictionLog(storage, MODEL, "r", most_waiting=3 * SIZE)
    for number in range(5):
        log.add(SHAPE, entry(str(number), batch([1.0]), 0, 1))
    assert prediction_log.lost(storage, MODEL) == 2
    assert log.flush() == 3
    log.add(SHAPE, entry("after", batch([1.0]), 0, 1))
    log.close()
    assert read(storage)["request_id"].sort().to_list() == ["0", "1", "2", "after"]
    assert prediction_log.lost(storage, MODEL) == 2


def test_what_the_disk_does_not_take_waits_and_is_written_later(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = PredictionLog(storage, MODEL, "r")
    log.add(SHAPE, entry("first", batch([1.0]), 0, 1))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(pl.DataFrame, "write_parquet", full)
        with pytest.raises(OSError, match="No space"):
            log.flush()
    log.add(SHAPE, entry("second", batch([2.0]), 0, 1))
    log.close()
    assert read(storage)["request_id"].to_list() == ["first", "second"]
    assert prediction_log.lost(storage, MODEL) == 0


def test_where_the_second_of_two_files_is_not_taken_the_first_is_not_written_again(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = PredictionLog(storage, MODEL, "r")
    log.add(SHAPE, entry("first", batch([1.0]), 0, 1))
    log.add(Shape("8", "champion"), entry("second", batch([2.0]), 0, 1))
    whole, calls = pl.DataFrame.write_parquet, []

    def once(frame: pl.DataFrame, *args: Any, **more: Any) -> None:
        calls.append(frame.height)
        if len(calls) == 2:
            raise pl.exceptions.ComputeError("something else")
        whole(frame, *args, **more)

    with monkeypatch.context() as patched:
        patched.setattr(pl.DataFrame, "write_parquet", once)
        with pytest.raises(pl.exceptions.ComputeError):
            log.flush()
    log.close()
    assert sorted(read(storage).select("request_id", "model_version").rows()) == [
        ("first", "7"),
        ("second", "8"),
    ]
    assert prediction_log.lost(storage, MODEL) == 0


KILLED = """
import os, signal, sys
from tests.data.test_prediction_log import MODEL, SHAPE, batch, entry
from mlops_ray.data.prediction_log import PredictionLog
from mlops_ray.storage import Storage
log = PredictionLog(Storage.open(sys.argv[1]), MODEL, "killed")
for number in range(5):
    log.add(SHAPE, entry(str(number), batch([1.0]), 0, 1))
log.flush()
for number in range(3):
    log.add(SHAPE, entry(f"late {number}", batch([1.0]), 0, 1))
print("ready", flush=True)
signal.pause()
"""


def test_after_a_hard_kill_the_rows_that_were_not_written_are_counted(storage: Storage) -> None:
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, "-c", KILLED, str(storage.root)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as replica:
        assert replica.stdout is not None
        assert replica.stdout.readline() == "ready\n"
        # While it lives, it may still write them.
        assert prediction_log.lost(storage, MODEL) == 0
        os.kill(replica.pid, signal.SIGKILL)
    assert prediction_log.lost(storage, MODEL) == 3
    assert [prediction_log.lost(storage, MODEL, time.time() + later) for later in (-60, 60)] == [3, 0]
    assert read(storage).height == 5


def written(storage: Storage, count: int) -> list[str]:
    log = PredictionLog(storage, MODEL, "r")
    for number in range(count):
        log.add(SHAPE, entry(str(number), batch([float(number)]), 0, 1))
        log.flush()
    log.close()
    return [str(number) for number in range(count)]


def test_small_files_become_a_large_one_with_the_same_rows(storage: Storage) -> None:
    ids = written(storage, 5)
    assert prediction_log.compact(storage, MODEL) == 0  # none is old
    assert prediction_log.compact(storage, MODEL, older_than_s=-1) == 5
    assert len(prediction_log.files(storage, MODEL)) == 1
    assert read(storage)["request_id"].sort().to_list() == ids
    assert prediction_log.compact(storage, MODEL, older_than_s=-1) == 0


def test_files_larger_than_fit_into_memory_are_left(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(storage, 4)
    size = max(path.stat().st_size for path in prediction_log.files(storage, MODEL))
    monkeypatch.setattr(prediction_log, "MOST_JOINED_BYTES", 2 * size)
    assert prediction_log.compact(storage, MODEL, older_than_s=-1) == 4
    assert len(prediction_log.files(storage, MODEL)) == 2


def test_a_kill_while_files_are_joined_doubles_no_row(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = written(storage, 3)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "unlink", killed)
        prediction_log.compact(storage, MODEL, older_than_s=-1)
    assert read(storage)["request_id"].sort().to_list() == ids
    assert prediction_log.compact(storage, MODEL, older_than_s=-1) == 3
    assert read(storage)["request_id"].sort().to_list() == ids


def test_a_model_without_predictions_has_no_log(storage: Storage) -> None:
    assert prediction_log.lost(storage, MODEL) == 0
    with pytest.raises(FileNotFoundError):
        prediction_log.read(storage, MODEL)


def test_the_folder_of_the_machine_is_no_part_of_the_one_that_people_read(storage: Storage) -> None:
    assert not Path(MACHINE).is_relative_to(prediction_log.FOLDER)
