"""A predictor answers each row by itself; a bad row fails alone."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_ray.data.rows import Rows, together
from mlops_ray.errors import PackageError
from mlops_ray.features.definitions import Computed, FeatureSet, ViewTable
from mlops_ray.features.online import Read
from mlops_ray.registry.encoder import Encoder
from mlops_ray.registry.models import ForestModel, LinearModel
from mlops_ray.registry.predictor import Amounts, Predictor
from mlops_ray.schema import FAILURES, Column, Schema
from mlops_ray.training.families import FAMILIES, How, Sample
from tests.registry.made import COLUMNS, FEATURES, linear, requests, rows, write


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("package") / "demo"
    write(folder)
    return Predictor.load(folder, None)


def test_n_rows_at_once_get_the_answers_of_n_times_one_row(predictor: Predictor) -> None:
    inputs = requests(40)
    single = [predictor.predict(inputs[at : at + 1]).values[0] for at in range(inputs.height)]
    assert predictor.predict(inputs).values.tolist() == single


def test_answers_lie_within_the_clip_and_are_the_models_own_between(predictor: Predictor) -> None:
    frame = rows(100)
    encoder = Encoder.fit(rows(200), COLUMNS, style="one_hot")
    expected = np.clip(linear(len(encoder.names)).predict(encoder.transform(frame)), 0.0, 1.5)
    assert predictor.predict_features(frame).tolist() == expected.tolist()
    assert 0.0 < expected.min() < expected.max() <= 1.5 or expected.min() == 0.0


def test_a_bad_row_fails_alone(predictor: Predictor) -> None:
    inputs = requests(4).with_columns(
        lag=pl.Series([0.5, 99.0, 0.5, 0.5]), site=pl.Series(["a", "b", None, "new"])
    )
    answer = predictor.predict(inputs)
    assert np.isnan(answer.values).tolist() == [False, True, True, False]
    assert answer.failures.select("row", "column", "rule").rows() == [
        (1, "lag", "max"),
        (2, "site", "required"),
    ]
    assert answer.features["lag"].to_list() == [0.5, None, None, 0.5]
    alone = predictor.predict(inputs[3:])
    assert answer.values[3] == alone.values[0]


def test_a_missing_column_fails_every_row_and_further_columns_do_not_matter(predictor: Predictor) -> None:
    inputs = requests(3)
    answer = predictor.predict(inputs.drop("lag", "hour"))
    assert np.isnan(answer.values).all()
    assert answer.features.height == 3
    assert answer.failures.schema == FAILURES
    assert answer.failures["rule"].unique().to_list() == ["missing_column"]
    assert sorted(answer.failures["column"]) == ["hour"] * 3 + ["lag"] * 3
    more = inputs.with_columns(extra=pl.lit("x"))
    assert predictor.predict(more).values.tolist() == predictor.predict(inputs).values.tolist()


def test_no_rows_get_no_answers(predictor: Predictor) -> None:
    answer = predictor.predict(requests(0))
    assert answer.values.shape == (0,)
    assert answer.features.columns == [column.name for column in COLUMNS]


class _Store:
    """An online store that refuses every second row it is asked for."""

    def read(self, feature_set: object, frame: pl.DataFrame) -> Read:
        late = list(range(1, frame.height, 2))
        failed = {"row": late, "column": "time", "rule": "watermark", "value": "x", "severity": "reject"}
        return Read(frame.select(FEATURES.names), pl.DataFrame(failed, schema=FAILURES), 7)


def test_rows_that_the_online_store_refuses_are_named_by_their_place_in_the_request(tmp_path: Path) -> None:
    write(tmp_path / "demo")
    predictor = Predictor.load(tmp_path / "demo", _Store())  # type: ignore[arg-type]
    inputs = requests(5).with_columns(site=pl.Series(["a", None, "a", "a", "a"]))
    answer = predictor.predict(inputs)
    assert answer.failures.select("row", "rule").rows() == [
        (1, "required"),
        (2, "watermark"),
        (4, "watermark"),
    ]
    assert np.isnan(answer.values).tolist() == [False, True, True, False, True]
    assert answer.features["site"].to_list() == ["a", None, None, "a", None]
    assert answer.watermark_us == 7


def test_a_model_that_answers_its_examples_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "demo")
    monkeypatch.setattr("mlops_ray.registry.models.LinearModel.predict", lambda self, x: np.full(len(x), 7.0))
    with pytest.raises(PackageError, match="does not answer its own examples"):
        Predictor.load(tmp_path / "demo", None)


AMOUNTS = FeatureSet(
    request=Schema((Column("time", "datetime"), *(Column(name, "float") for name in ("c", "a", "b")))),
    columns=(Column("a", "float"), Column("b", "float")),
    stored=(),
    computed=(Computed("a", "expr", "a"), Computed("b", "expr", "b")),
    tables=(),
    horizon_us=0,
    time="time",
)


@given(
    st.lists(st.tuples(*[st.none() | st.floats(-1e300, 1e300)] * 3), min_size=1, max_size=5),
    st.sampled_from(["one_hot", "codes"]),
)
def test_a_model_of_amounts_alone_answers_arrays_as_it_answers_frames(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float | None, ...]], style: Any
) -> None:
    learned = pl.DataFrame({"a": [1.0, 2.0, 4.0], "b": [0.5, None, -1.0]})
    encoder = Encoder.fit(learned, AMOUNTS.columns, style=style)
    folder = tmp_path_factory.mktemp("amounts") / "demo"
    model = LinearModel((0.5, -2.0), 0.25) if style == "one_hot" else ForestModel.constant(3.0)
    write(folder, feature_set=AMOUNTS, encoder=encoder, model=model)
    predictor = Predictor.load(folder, None)
    request = AMOUNTS.request
    columns = dict(zip("cab", map(list, zip(*rows, strict=True)), strict=True)) | {"time": [0] * len(rows)}
    asked = together([Rows(request, [columns[name] for name in request.names])])
    assert asked.is_sound
    given = predictor.answer(asked)
    assert isinstance(given.given, Amounts)
    by_frame = predictor.predict(asked.frame)
    assert given.values.tobytes() == by_frame.values.tobytes()
    assert given.features.select("a", "b").equals(by_frame.features)
    assert given.failures.equals(by_frame.failures)


def test_a_model_of_other_columns_too_is_given_a_frame(predictor: Predictor) -> None:
    frame = requests(1)
    request = predictor.package.feature_set.request
    typed, _ = request.check(frame)
    values = [typed[name].to_physical().to_list() for name in request.names]
    answer = predictor.answer(together([Rows(request, values)]))
    assert isinstance(answer.given, pl.DataFrame)
    assert answer.values.tobytes() == predictor.predict(frame).values.tobytes()


def test_features_with_history_need_a_store(tmp_path: Path) -> None:
    view = ViewTable("meter", "meter-1", ("site",), (COLUMNS[1],), None, ())
    write(tmp_path / "demo", feature_set=FEATURES.__class__(**{**vars(FEATURES), "tables": (view,)}))
    with pytest.raises(PackageError, match="need an online store"):
        Predictor.load(tmp_path / "demo", None).predict(requests(1))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_replica_imports_neither_mlflow_nor_ray_nor_pandas_nor_the_fitting_libraries(
    family: str, tmp_path: Path
) -> None:
    found, frame = FAMILIES[family], rows(200)
    task = found.tasks[-1]
    encoder = Encoder.fit(frame, COLUMNS, style=found.style)
    params = {name: dimension.default for name, dimension in found.space.items()}
    sample = Sample(encoder.transform(frame), (np.arange(200) % 2).astype(float))
    model = found.fit(sample, params, How("log_loss", seed=7, cpus=1, task=task))
    write(tmp_path / "demo", model=model, encoder=encoder)
    code = (
        "import sys, pathlib; from mlops_ray.registry.predictor import Predictor;"
        f"Predictor.load(pathlib.Path({str(tmp_path / 'demo')!r}), None);"
        "import json; print(json.dumps([m for m in"
        " ('mlflow', 'ray', 'pandas', 'sklearn', 'xgboost', 'optuna', 'scipy') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert orjson.loads(done.stdout) == []
