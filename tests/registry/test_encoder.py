"""Encoders are plain data, learned on training rows alone, and treat every row by itself."""

from dataclasses import replace

import numpy as np
import orjson
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_ray.errors import PackageError, TrainingError
from mlops_ray.registry.encoder import MOST_ONE_HOT, Encoder, Style
from mlops_ray.schema import Column
from tests.registry.made import COLUMNS, rows

STYLES: tuple[Style, ...] = ("one_hot", "codes")


@pytest.mark.parametrize("style", STYLES)
def test_n_rows_at_once_equal_n_times_one_row(style: Style) -> None:
    frame = rows(50)
    encoder = Encoder.fit(frame, COLUMNS, style=style)
    single = np.concatenate([encoder.transform(frame[at : at + 1]) for at in range(frame.height)])
    assert np.array_equal(encoder.transform(frame), single, equal_nan=True)


@pytest.mark.parametrize("style", STYLES)
def test_json_gives_the_same_encoder_to_the_bit(style: Style) -> None:
    encoder = Encoder.fit(rows(50), COLUMNS, style=style)
    assert Encoder.from_json(orjson.loads(orjson.dumps(encoder.to_json()))) == encoder


@given(st.sampled_from(STYLES), st.text(), st.floats() | st.none())
def test_unseen_and_missing_values_do_not_crash(style: Style, site: str, lag: float | None) -> None:
    encoder = Encoder.fit(rows(50), COLUMNS, style=style)
    schema = {"site": pl.String, "lag": pl.Float64, "hour": pl.Int64, "holiday": pl.Boolean}
    frame = pl.DataFrame({"site": [site], "lag": [lag], "hour": [None], "holiday": [None]}, schema=schema)
    matrix = encoder.transform(frame)
    assert matrix.shape == (1, len(encoder.names))
    assert not np.isinf(matrix).any()
    assert style == "codes" or np.isfinite(matrix).all()


def test_codes_are_told_from_amounts() -> None:
    assert Encoder.fit(rows(50), COLUMNS, style="codes").discrete == (0, 2, 3)
    assert Encoder.fit(rows(50), COLUMNS, style="one_hot").discrete == ()


def test_one_hot_amounts_have_mean_0_and_deviation_1_over_the_training_rows() -> None:
    frame = rows(500)
    amounts = Encoder.fit(frame, (COLUMNS[1],), style="one_hot").transform(
        frame.filter(pl.col("lag").is_not_null())
    )
    assert amounts.mean() == pytest.approx(0, abs=1e-6)
    assert amounts.std() == pytest.approx(1, abs=1e-6)


def test_columns_that_never_change_or_are_never_known_are_harmless() -> None:
    frame = pl.DataFrame({"same": [2.0, 2.0], "never": [None, None]}, schema_overrides={"never": pl.Float64})
    columns = (Column("same", "float"), Column("never", "float"))
    assert Encoder.fit(frame, columns, style="one_hot").transform(frame).tolist() == [[0, 0], [0, 0]]


def test_an_id_column_does_not_become_a_column_a_value() -> None:
    frame = pl.DataFrame({"id": [f"{at:04}" for at in range(1000)]})
    assert len(Encoder.fit(frame, (Column("id", "string"),), style="one_hot").names) == MOST_ONE_HOT


def test_an_instant_as_a_feature_is_refused_in_a_sentence() -> None:
    frame = pl.DataFrame({"t": [None]}, schema={"t": pl.Datetime("us", "UTC")})
    with pytest.raises(TrainingError, match="'t' is an instant"):
        Encoder.fit(frame, (Column("t", "datetime"),), style="codes")


@pytest.mark.parametrize("style", STYLES)
def test_of_a_column_that_nobody_may_see_digests_are_kept_and_the_matrix_is_as_wide_as_of_others(
    style: Style,
) -> None:
    frame = pl.DataFrame({"plan": ["gold", "tin", None, "tin"], "n": [1, 2, 3, None]})
    hidden = (Column("plan", "category", hidden=True), Column("n", "category", hidden=True))
    known, secret = (Encoder.fit(frame, c, style=style) for c in ([*map(_shown, hidden)], hidden))
    unseen = pl.concat([frame, pl.DataFrame({"plan": ["lead"], "n": [9]})])
    assert secret.transform(unseen).shape == known.transform(unseen).shape
    matrix, unlike = secret.transform(unseen), [0, 1, 2]
    assert len({tuple(row) for row in np.nan_to_num(matrix, nan=-1.0)[unlike].tolist()}) == 3
    assert (
        matrix[1][: len(secret.parts[0].names)].tolist() == matrix[3][: len(secret.parts[0].names)].tolist()
    )
    written = orjson.dumps(secret.to_json())
    assert not [value for value in (b"gold", b"tin") if value in written]
    again = Encoder.from_json(orjson.loads(written))
    assert again == secret
    assert np.array_equal(again.transform(unseen), matrix, equal_nan=True)


def _shown(column: Column) -> Column:
    return replace(column, hidden=False)


def test_json_of_something_else_is_a_package_error() -> None:
    with pytest.raises(PackageError, match=r"encoder\.json is not an encoder"):
        Encoder.from_json({"style": "codes", "columns": [{"name": "x"}]})
