"""Every model family, found by itself, keeps the same promises."""

import importlib.util
import io
import pickletools
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from mlops_ray.errors import TrainingError
from mlops_ray.registry import models
from mlops_ray.registry.boosters import MOST_CODES
from mlops_ray.registry.encoder import Encoder, Matrix
from mlops_ray.registry.models import Model, Values
from mlops_ray.training import families, metrics
from mlops_ray.training.families import EXTRAS, FAMILIES, Family, How, Sample
from tests.registry.made import COLUMNS, rows

MAE = metrics.find("mae", "regression")
#: Processor seconds that the default parameters may take on 6,000 rows of four features.
QUICK_S = 20.0
#: Families that take a column of categories as names.
NATIVE = ("catboost", "hist_gradient_boosting", "lightgbm")
#: Of what makes a fit slow, little: these checks are about promises, not about errors.
FAST = {"n_estimators": 8, "max_iter": 8, "iterations": 8}


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


def _encoder(family: Family) -> Encoder:
    return Encoder.fit(rows(600), COLUMNS, style=family.style)


def _data(family: Family, count: int = 600, seed: int = 7) -> tuple[Matrix, Values]:
    frame, encoder = rows(count, seed), _encoder(family)
    labels = (
        frame["lag"].fill_null(0.5).to_numpy()
        + frame["hour"].to_numpy() / 24
        + (frame["site"] == "a").fill_null(False).to_numpy()
    )
    return encoder.transform(frame), labels.astype(np.float64)


def _params(family: Family) -> Mapping[str, Any]:
    defaults = {name: dimension.default for name, dimension in family.space.items()}
    return defaults | {name: value for name, value in FAST.items() if name in defaults}


def _fitted(family: Family, x: Matrix, y: Values, **changes: Any) -> Model:
    given = {"discrete": _encoder(family).discrete, "metric": "mae", "seed": 7, "cpus": 1, **changes}
    params, discrete = given.pop("params", None) or _params(family), given.pop("discrete")
    return family.fit(Sample(x, y, given.pop("weights", None), discrete), params, How(**given))


def _fit(family: Family, seed: int = 7) -> Model:
    return _fitted(family, *_data(family), seed=seed)


def _single(model: Model, x: Matrix) -> list[float]:
    return [model.predict(x[at : at + 1])[0] for at in range(len(x))]


def test_is_named_as_it_is_found(family: Family) -> None:
    assert FAMILIES[family.name] is family


def test_learns(family: Family) -> None:
    x, y = _data(family, seed=8)
    assert MAE(y, _fit(family).predict(x)) < 0.7 * MAE(y, np.full(len(y), np.median(y)))


def test_saved_and_loaded_gives_the_same_bits(family: Family) -> None:
    model = _fit(family)
    loaded = models.load(model.kind, model.to_bytes())
    x, _ = _data(family, seed=8)
    assert loaded.predict(x).tolist() == model.predict(x).tolist()
    assert loaded.to_bytes() == model.to_bytes()


def test_n_rows_at_once_equal_n_times_one_row(family: Family) -> None:
    model = _fit(family)
    x, _ = _data(family, count=300, seed=8)
    assert model.predict(x).tolist() == _single(model, x)
    assert model.predict(x).dtype == np.float64
    assert model.predict(x[:0]).shape == (0,)


def test_missing_and_unseen_values_are_answered_alike_in_a_batch_and_alone(family: Family) -> None:
    encoder, model = _encoder(family), _fit(family)
    missing, unseen = rows(2).clear(1), rows(1).with_columns(site=np.array(["never seen"]))
    unknown = rows(1).with_columns(site=np.array([None], dtype=object)).cast({"site": unseen.schema["site"]})
    x = np.concatenate([encoder.transform(frame) for frame in (missing, unseen, unknown, rows(50))])
    answers = model.predict(x)
    assert np.isfinite(answers).all()
    assert answers.tolist() == _single(model, x)
    assert answers[1] == answers[2]


def test_a_category_of_which_training_rows_knew_nothing_is_answered(family: Family) -> None:
    x, y = _data(family)
    known = x.copy()
    for at in _encoder(family).discrete:
        # The upper half of the codes, and a missing one, come first in a question.
        known[:, at] = np.nan_to_num(known[:, at] // 2)
    model = _fitted(family, known, y)
    assert np.isfinite(model.predict(x)).all()
    assert model.predict(x).tolist() == _single(model, x)


@pytest.mark.parametrize("categories", [30, 300])
def test_categories_are_names_and_not_amounts(family: Family, categories: int) -> None:
    """A label that alternates from code to code takes one split of names, and many of amounts."""
    if family.style == "one_hot":
        pytest.skip("sees no codes")
    codes = np.random.default_rng(7).integers(0, categories, 6000)
    x, y = codes.astype(np.float32)[:, None], (codes % 2).astype(np.float64)
    params = {**_params(family), **{n: 3 for n in ("max_leaf_nodes", "num_leaves") if n in family.space}}
    errors = [
        MAE(y, _fitted(family, x, y, params=params, metric="rmse", discrete=discrete).predict(x))
        for discrete in ((0,), ())
    ]
    if family.name in NATIVE and categories <= MOST_CODES:
        assert errors[0] < 0.9 * errors[1]
    else:
        assert errors[0] == errors[1]


@pytest.mark.parametrize(
    "shape", ["constant columns", "one column", "constant labels", "missing columns", "missing"]
)
def test_what_says_nothing_is_fitted_too(family: Family, shape: str) -> None:
    x, y = _data(family, count=200)
    discrete: tuple[int, ...] = _encoder(family).discrete
    if shape == "constant columns":
        x = np.ones_like(x)
    elif shape == "one column":
        x, discrete = x[:, :1].copy(), discrete[:1]
    elif shape == "constant labels":
        y = np.full_like(y, 0.25)
    elif family.style == "codes":
        x[:, : None if shape == "missing" else 2] = np.nan
    model = _fitted(family, x, y, discrete=discrete)
    answers = model.predict(x)
    assert answers.tolist() == _single(model, x)
    assert models.load(model.kind, model.to_bytes()).predict(x).tolist() == answers.tolist()
    assert np.isfinite(answers).all()
    if shape == "constant labels":
        assert answers == pytest.approx(0.25, abs=0.02)


def test_the_same_seed_gives_the_same_model(family: Family) -> None:
    assert _fit(family).to_bytes() == _fit(family).to_bytes()


def test_is_fitted_on_shared_memory_that_nobody_may_write(family: Family) -> None:
    x, y = _data(family)
    before = _fitted(family, x, y).to_bytes()
    x.flags.writeable = y.flags.writeable = False
    assert _fitted(family, x, y).to_bytes() == before


def test_the_number_of_threads_does_not_change_the_answers(family: Family) -> None:
    x, y = _data(family)
    one, two = (_fitted(family, x, y, cpus=cpus) for cpus in (1, 2))
    assert two.predict(x) == pytest.approx(one.predict(x), abs=1e-5)


@pytest.mark.parametrize("metric", metrics.names("regression"))
def test_every_metric_can_decide(family: Family, metric: str) -> None:
    x, y = _data(family, count=200)
    assert np.isfinite(_fitted(family, x, y, metric=metric).predict(x)).all()


def test_the_file_is_no_pickle(family: Family) -> None:
    data = _fit(family).to_bytes()
    with pytest.raises(ValueError):
        list(pickletools.genops(io.BytesIO(data)))


def test_every_end_of_the_space_can_be_fitted(family: Family) -> None:
    x, y = _data(family, count=200)
    for end in ("low", "high"):
        params = {name: getattr(dim, end, dim.default) for name, dim in family.space.items()} | {
            name: value for name, value in FAST.items() if name in family.space
        }
        assert np.isfinite(_fitted(family, x, y, params=params).predict(x)).all()


def test_keeps_to_its_cpus_and_is_quick(family: Family) -> None:
    x, y = _data(family, count=6000)
    params = {name: dimension.default for name, dimension in family.space.items()}
    _fit(family)  # the library's import
    begin, used = time.perf_counter(), time.process_time()
    _fitted(family, x, y, params=params, cpus=1)
    wall, cpu = time.perf_counter() - begin, time.process_time() - used
    assert cpu < 1.25 * wall + 0.1
    assert cpu < QUICK_S


#: Run where a crash of a library would end a child and not the tests. Each damaged file is refused, or is a
#: model that answers or refuses the matrix: the digest, not the reader, is what notices a changed number.
HOSTILE = """
import pathlib, sys
import numpy as np
from mlops_ray.errors import PackageError
from mlops_ray.registry import models

kind, folder = sys.argv[1], pathlib.Path(sys.argv[2])
data, x = (folder / "model").read_bytes(), np.load(folder / "x.npy")
random = np.random.default_rng(7)
refused = 0

def read(given):
    try:
        model = models.load(kind, given)
    except PackageError:
        return True
    try:
        model.predict(x)
    except (ValueError, IndexError):
        pass
    return False

for share in (0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99):
    assert read(data[: int(len(data) * share)]), share
strange = [b"\\x80\\x04.", b"PK\\x03\\x04" + data, b"{}", b"[]", b"null", data[::-1]]
strange += [bytes(len(data)), data[100:]]
assert all(map(read, strange))
for _ in range(FLIPS):
    changed = bytearray(data)
    for at in random.integers(0, len(data), 3):
        changed[at] = random.integers(256)
    read(bytes(changed))
print("survived")
"""
FLIPS = 150


def test_damaged_and_hostile_files_end_no_process(family: Family, tmp_path: Path) -> None:
    model = _fit(family)
    (tmp_path / "model").write_bytes(model.to_bytes())
    np.save(tmp_path / "x.npy", _data(family, count=20, seed=8)[0])
    code = HOSTILE.replace("FLIPS", str(FLIPS))
    command = [sys.executable, "-W", "ignore", "-c", code, model.kind, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr[-2000:]


def test_answers_without_any_fitting_library(family: Family, tmp_path: Path) -> None:
    model = _fit(family)
    (tmp_path / "model").write_bytes(model.to_bytes())
    np.save(tmp_path / "x.npy", _data(family, count=3, seed=8)[0])
    code = (
        "import json, pathlib, sys, numpy as np; from mlops_ray.registry import models;"
        "folder = pathlib.Path(sys.argv[2]);"
        "models.load(sys.argv[1], (folder / 'model').read_bytes()).predict(np.load(folder / 'x.npy'));"
        "print(json.dumps([m for m in ('sklearn', 'xgboost', 'lightgbm', 'catboost', 'pandas', 'scipy')"
        " if m in sys.modules]))"
    )
    command = [sys.executable, "-c", code, model.kind, str(tmp_path)]
    assert orjson.loads(subprocess.run(command, capture_output=True, check=True).stdout) == []


@pytest.mark.parametrize("name", EXTRAS)
def test_a_library_that_is_not_installed_is_named_with_its_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == name else find(asked))
    with pytest.raises(TrainingError, match=rf"pip install 'mlops_ray\[{name}\]'"):
        families.find([name])
    with pytest.raises(TrainingError, match="is not installed"):
        _fit(FAMILIES[name])
