"""Every model family, found by itself, keeps the same promises."""

import io
import pickletools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from mlops_ray.registry import models
from mlops_ray.registry.encoder import Encoder, Matrix
from mlops_ray.registry.models import Model, Values
from mlops_ray.training import metrics
from mlops_ray.training.families import FAMILIES, Family
from tests.registry.made import COLUMNS, rows

#: Of what makes a fit slow, little: these checks are about promises, not about errors.
FAST = {"n_estimators": 8}


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


def _data(family: Family, count: int = 600, seed: int = 7) -> tuple[Matrix, Values]:
    frame = rows(count, seed)
    encoder = Encoder.fit(rows(600), COLUMNS, style=family.style)
    labels = (
        frame["lag"].fill_null(0.5).to_numpy()
        + frame["hour"].to_numpy() / 24
        + (frame["site"] == "a").fill_null(False).to_numpy()
    )
    return encoder.transform(frame), labels.astype(np.float64)


def _params(family: Family) -> Mapping[str, Any]:
    defaults = {name: dimension.default for name, dimension in family.space.items()}
    return defaults | {name: value for name, value in FAST.items() if name in defaults}


def _fit(family: Family, seed: int = 7) -> Model:
    x, y = _data(family)
    return family.fit(x, y, _params(family), metric="mae", seed=seed, cpus=1)


def test_is_named_as_it_is_found(family: Family) -> None:
    assert FAMILIES[family.name] is family


def test_learns(family: Family) -> None:
    x, y = _data(family, seed=8)
    assert metrics.mae(y, _fit(family).predict(x)) < 0.7 * metrics.mae(y, np.full(len(y), np.median(y)))


def test_saved_and_loaded_gives_the_same_bits(family: Family) -> None:
    model = _fit(family)
    loaded = models.load(model.kind, model.to_bytes())
    x, _ = _data(family, seed=8)
    assert loaded.predict(x).tolist() == model.predict(x).tolist()
    assert loaded.to_bytes() == model.to_bytes()


def test_n_rows_at_once_equal_n_times_one_row(family: Family) -> None:
    model = _fit(family)
    x, _ = _data(family, count=300, seed=8)
    single = [model.predict(x[at : at + 1])[0] for at in range(len(x))]
    assert model.predict(x).tolist() == single
    assert model.predict(x).dtype == np.float64
    assert model.predict(x[:0]).shape == (0,)


def test_rows_of_nothing_but_missing_and_unseen_values_are_answered(family: Family) -> None:
    encoder = Encoder.fit(rows(600), COLUMNS, style=family.style)
    frame = rows(2).clear(1)
    unseen = rows(1).with_columns(site=np.array(["never seen"]))
    for given in (frame, unseen):
        assert np.isfinite(_fit(family).predict(encoder.transform(given))).all()


def test_the_same_seed_gives_the_same_model(family: Family) -> None:
    assert _fit(family).to_bytes() == _fit(family).to_bytes()


def test_the_number_of_threads_does_not_change_the_answers(family: Family) -> None:
    x, y = _data(family)
    one, two = (family.fit(x, y, _params(family), metric="mae", seed=7, cpus=cpus) for cpus in (1, 2))
    assert two.predict(x) == pytest.approx(one.predict(x), abs=1e-5)


@pytest.mark.parametrize("metric", sorted(metrics.REGRESSION))
def test_every_metric_can_decide(family: Family, metric: str) -> None:
    x, y = _data(family, count=200)
    assert np.isfinite(family.fit(x, y, _params(family), metric=metric, seed=7, cpus=1).predict(x)).all()


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
        assert np.isfinite(family.fit(x, y, params, metric="mae", seed=7, cpus=1).predict(x)).all()
