"""Keys online: equal ones are one, whatever they look like, and a key with a null in it is nobody's."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mlops_ray.features.definitions import FeatureSet, ViewTable
from mlops_ray.features.history import AsOf, Bucket, Snapshot, read
from mlops_ray.features.lookup import point_in_time
from mlops_ray.features.materialize import materialize
from mlops_ray.features.online import OnlineStore
from mlops_ray.instants import LATEST, to_micros
from mlops_ray.schema import DTYPES, INSTANT, Column, ColumnType, Schema

from .test_online import COUNT, MICROSECOND, NOON, flagged
from .test_online import LATEST as NEWEST


def snapshot(folder: Path, type: ColumnType, keys: list[Any]) -> Snapshot:
    """A history with a row a microsecond up to noon, of these keys in turn: 1.0, 2.0 and so on."""
    view = ViewTable("s", "s-1", ("k",), (Column("x", "float"),), None, (), back_loaded=True)
    times = [NOON - (len(keys) - 1 - number) * MICROSECOND for number in range(len(keys))]
    rows = pl.DataFrame([pl.Series("k", keys).cast(DTYPES[type])]).with_columns(
        pl.Series("x", [1.0 + number for number in range(len(keys))]),
        pl.lit(0, pl.Int64).alias("_sequence"),
        pl.lit(False).alias("_deleted"),
        **{name: pl.Series(times, dtype=INSTANT) for name in ("event_time", "_known_at", "_committed_at")},
    )
    rows.write_parquet(folder / "rows.parquet")
    bucket = Bucket((str(folder / "rows.parquet"),), rows.height, times[0], NOON)
    return Snapshot(view, AsOf(NOON, NOON), True, {0: bucket})


def answers(
    place: str, held: Snapshot, type: ColumnType, keys: list[Any]
) -> tuple[list[tuple[Any, ...]], list[int]]:
    """Each key's newest value and number of rows, online as offline; and of which nothing is known."""
    request = Schema((Column("k", type), Column("t", "datetime")))
    columns = (Column("latest", "float"), Column("count", "int"))
    features = FeatureSet(request, columns, (NEWEST, COUNT), (), (held.view,), 0, "t")
    ask = pl.DataFrame([pl.Series("k", keys).cast(DTYPES[type])]).with_columns(
        pl.lit(NOON).cast(INSTANT).alias("t")
    )
    store = OnlineStore(place)
    materialize(store, features, {"s": held})
    found, failures, _ = store.read(features, ask)
    for row in range(ask.height):
        assert store.read(features, ask[row : row + 1])[0].rows() == [found.row(row)]
    assert found.equals(point_in_time(ask, {"s": read(held)}, features))
    store.close()
    return found.rows(), [row for row, _ in flagged(failures)]


def test_both_zeros_of_floating_point_are_one_key(place: str, tmp_path: Path) -> None:
    held = snapshot(tmp_path, "float", [-0.0, 0.0, 0.5, -0.0])
    found, unknown = answers(place, held, "float", [0.0, -0.0, 0.5])
    assert (found, unknown) == ([(4.0, 3), (4.0, 3), (3.0, 1)], [])


@pytest.mark.parametrize("type", ["category", "int", "float", "datetime"])
def test_a_null_key_is_nobody_s_though_there_are_rows_with_it(
    place: str, tmp_path: Path, type: ColumnType
) -> None:
    held = snapshot(tmp_path, type, [None, 7, None, 8])
    found, unknown = answers(place, held, type, [None, 7, 8, 9])
    assert (found, unknown) == ([(None, 0), (2.0, 1), (4.0, 1), (None, 0)], [0, 3])


def test_a_datetime_key_may_lie_outside_python_s_calendar(place: str, tmp_path: Path) -> None:
    last = to_micros(LATEST)
    years = [last + 1, -(10**17), 0, last + 2]
    held, strangers = snapshot(tmp_path, "datetime", years), [last, 1 - 10**17]
    found, unknown = answers(place, held, "datetime", [*years, *strangers])
    assert found == [(1.0, 1), (2.0, 1), (3.0, 1), (4.0, 1), (None, 0), (None, 0)]
    assert unknown == [4, 5]
