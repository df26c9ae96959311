"""Every model family, found by itself, keeps the same promises for every task that it does."""

import importlib.util
import io
import pickle
import pickletools
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest

from mlops_ray.config import OwnFamily
from mlops_ray.errors import TrainingError
from mlops_ray.registry import metrics, models
from mlops_ray.registry.boosters import MOST_CODES
from mlops_ray.registry.encoder import Encoder, Matrix
from mlops_ray.registry.metrics import Metric
from mlops_ray.registry.models import Model, Values
from mlops_ray.training import boost, families
from mlops_ray.training.families import EXTRAS, FAMILIES, LOG_LOSS, RIDGE, Family, How, Sample, TaskKind
from tests.registry.made import COLUMNS, rows

#: Processor seconds that the default parameters may take on 6,000 rows of four features.
QUICK_S = 20.0
#: Families that take a column of categories as names.
NATIVE = ("catboost", "hist_gradient_boosting", "lightgbm")
#: Families for which a row that counts twice is as two rows to the last digits, and not nearly.
EXACT = ("elasticnet", "lasso", "logistic", "ridge")
#: Of what makes a fit slow, little: these checks are about promises, not about errors.
FAST = {"n_estimators": 8, "max_iter": 8, "iterations": 8}
#: What decides in these checks, and of two answers tells the better.
METRICS: dict[TaskKind, str] = {"regression": "mae", "classification": "log_loss"}
PAIRS = [(name, task) for name in sorted(FAMILIES) for task in FAMILIES[name].tasks]


@dataclass(frozen=True)
class Case:
    """A family and one of the tasks that it does."""

    family: Family
    task: TaskKind

    @classmethod
    def of(cls, name: str, task: TaskKind) -> "Case":
        return cls(FAMILIES[name], task)

    @property
    def classifies(self) -> bool:
        return self.task == "classification"

    @property
    def metric(self) -> Metric:
        return metrics.find(METRICS[self.task], self.task)

    @property
    def encoder(self) -> Encoder:
        return Encoder.fit(rows(600), COLUMNS, style=self.family.style)

    def data(
        self, count: int = 600, seed: int = 7, steepness: float = 8.0, shift: float = 0.0
    ) -> tuple[Matrix, Values]:
        """A matrix and its labels; `steepness` and `shift` of the chance of a classification's label 1."""
        frame = rows(count, seed)
        amounts = (
            frame["lag"].fill_null(0.5).to_numpy()
            + frame["hour"].to_numpy() / 24
            + (frame["site"] == "a").fill_null(False).to_numpy()
        )
        if self.classifies:
            chance = 1 / (1 + np.exp(-(steepness * (amounts - 1.2) + shift)))
            amounts = np.random.default_rng(70 + seed).random(count) < chance
        return self.encoder.transform(frame), amounts.astype(np.float64)

    def params(self, fast: Mapping[str, Any] = FAST) -> dict[str, Any]:
        space = families.space(self.family, self.task)
        defaults = {name: dimension.default for name, dimension in space.items()}
        return defaults | {name: value for name, value in fast.items() if name in defaults}

    def fitted(self, x: Matrix, y: Values, **changes: Any) -> Model:
        given = {"metric": self.metric.name, "seed": 7, "cpus": 1, "task": self.task, **changes}
        params, discrete = given.pop("params", None), given.pop("discrete", self.encoder.discrete)
        sample = Sample(x, y, given.pop("weights", None), discrete)
        return self.family.fit(sample, self.params() if params is None else params, How(**given))

    @property
    def model(self) -> Model:
        """One fitted model for all the checks that only ask it."""
        return _model(self.family.name, self.task)


@cache
def _model(name: str, task: TaskKind) -> Model:
    case = Case(FAMILIES[name], task)
    return case.fitted(*case.data())


@pytest.fixture(params=PAIRS, ids="-".join)
def case(request: pytest.FixtureRequest) -> Case:
    name, task = request.param
    return Case(FAMILIES[name], task)


@pytest.fixture(params=[name for name, task in PAIRS if task == "classification"])
def classifier(request: pytest.FixtureRequest) -> Case:
    return Case(FAMILIES[request.param], "classification")


def _single(model: Model, x: Matrix) -> list[float]:
    return [model.predict(x[at : at + 1])[0] for at in range(len(x))]


def test_is_named_as_it_is_found(case: Case) -> None:
    assert FAMILIES[case.family.name] is case.family
    assert families.find([case.family.name], case.task) == {case.family.name: case.family}


def test_a_task_searches_what_the_family_has_or_its_own() -> None:
    assert set(LOG_LOSS) <= set(FAMILIES)
    assert families.space(RIDGE, "regression") == RIDGE.space
    lightgbm = FAMILIES["lightgbm"]
    assert set(families.space(lightgbm, "classification")) == {*lightgbm.space, "min_sum_hessian_in_leaf"}


def test_learns(case: Case) -> None:
    x, y = case.data(seed=8)
    constant = np.full(len(y), np.mean(y) if case.classifies else np.median(y))
    share = 0.8 if case.classifies else 0.7
    assert case.metric(y, case.model.predict(x)) < share * case.metric(y, constant)


def test_saved_and_loaded_gives_the_same_bits(case: Case) -> None:
    model = case.model
    loaded = models.load(model.kind, model.to_bytes())
    x, _ = case.data(seed=8)
    assert loaded.predict(x).tolist() == model.predict(x).tolist()
    assert loaded.to_bytes() == model.to_bytes()
    # A worker that fitted and tried it gives it to the driver.
    assert pickle.loads(pickle.dumps(loaded)).predict(x).tolist() == model.predict(x).tolist()


def test_n_rows_at_once_equal_n_times_one_row(case: Case) -> None:
    model = case.model
    x, _ = case.data(count=300, seed=8)
    assert model.predict(x).tolist() == _single(model, x)
    assert model.predict(x).dtype == np.float64
    assert model.predict(x[:0]).shape == (0,)


def test_missing_and_unseen_values_are_answered_alike_in_a_batch_and_alone(case: Case) -> None:
    encoder, model = case.encoder, case.model
    missing, unseen = rows(2).clear(1), rows(1).with_columns(site=np.array(["never seen"]))
    unknown = rows(1).with_columns(site=np.array([None], dtype=object)).cast({"site": unseen.schema["site"]})
    x = np.concatenate([encoder.transform(frame) for frame in (missing, unseen, unknown, rows(50))])
    answers = model.predict(x)
    assert np.isfinite(answers).all()
    assert answers.tolist() == _single(model, x)
    assert answers[1] == answers[2]


def test_a_category_of_which_training_rows_knew_nothing_is_answered(case: Case) -> None:
    x, y = case.data()
    known = x.copy()
    for at in case.encoder.discrete:
        # The upper half of the codes, and a missing one, come first in a question.
        known[:, at] = np.nan_to_num(known[:, at] // 2)
    model = case.fitted(known, y)
    assert np.isfinite(model.predict(x)).all()
    assert model.predict(x).tolist() == _single(model, x)


@pytest.mark.parametrize("categories", [30, 300])
def test_categories_are_names_and_not_amounts(case: Case, categories: int) -> None:
    """A label that alternates from code to code takes one split of names, and many of amounts."""
    if case.family.style == "one_hot":
        pytest.skip("sees no codes")
    codes = np.random.default_rng(7).integers(0, categories, 6000)
    x, y = codes.astype(np.float32)[:, None], (codes % 2).astype(np.float64)
    params = case.params()
    params |= {name: 3 for name in ("max_leaf_nodes", "num_leaves") if name in params}
    metric = case.metric.name if case.classifies else "rmse"
    errors = [
        np.abs(y - case.fitted(x, y, params=params, metric=metric, discrete=discrete).predict(x)).mean()
        for discrete in ((0,), ())
    ]
    if case.family.name in NATIVE and categories <= MOST_CODES:
        assert errors[0] < 0.9 * errors[1]
    else:
        assert errors[0] == errors[1]


@pytest.mark.filterwarnings("ignore:Using the fractional value")
@pytest.mark.parametrize(
    "shape",
    [
        "constant columns",
        "one column",
        "labels of 0",
        "labels of 1",
        "rare",
        "few",
        "missing columns",
        "missing",
    ],
)
def test_what_says_nothing_is_fitted_too(case: Case, shape: str) -> None:
    x, y = case.data(count=200)
    discrete: tuple[int, ...] = case.encoder.discrete
    if shape == "constant columns":
        x = np.ones_like(x)
    elif shape == "one column":
        x, discrete = x[:, :1].copy(), discrete[:1]
    elif shape.startswith("labels of"):
        y = np.full_like(y, float(shape[-1]))
    elif shape == "few":
        x, y = x[:5], np.arange(5.0) % 2
    elif shape == "rare":
        y = (np.arange(len(y)) == 7).astype(np.float64)
    elif case.family.style == "codes":
        x[:, : None if shape == "missing" else 2] = np.nan
    model = case.fitted(x, y, discrete=discrete)
    answers = model.predict(x)
    assert answers.tolist() == _single(model, x)
    assert models.load(model.kind, model.to_bytes()).predict(x).tolist() == answers.tolist()
    assert np.isfinite(answers).all()
    if case.classifies:
        assert ((answers >= 0) & (answers <= 1)).all()
    if shape.startswith("labels of"):
        assert answers == pytest.approx(y, abs=0 if case.classifies else 0.02)


def test_the_same_seed_gives_the_same_model(case: Case) -> None:
    assert case.fitted(*case.data()).to_bytes() == case.model.to_bytes()


def test_is_fitted_on_shared_memory_that_nobody_may_write(case: Case) -> None:
    x, y = case.data()
    weights = np.linspace(0.5, 1.5, len(y))
    before = case.fitted(x, y, weights=weights).to_bytes()
    x.flags.writeable = y.flags.writeable = weights.flags.writeable = False
    assert case.fitted(x, y, weights=weights).to_bytes() == before


def test_the_number_of_threads_does_not_change_the_answers(case: Case) -> None:
    x, y = case.data()
    one, two = (case.fitted(x, y, cpus=cpus) for cpus in (1, 2))
    assert two.predict(x) == pytest.approx(one.predict(x), abs=1e-5)


def test_every_metric_can_decide(case: Case) -> None:
    x, y = case.data(count=200)
    for metric in metrics.names(case.task):
        assert np.isfinite(case.fitted(x, y, metric=metric).predict(x)).all()


def test_a_row_that_counts_four_times_is_as_four_rows(case: Case) -> None:
    """Half of the rows, which nothing tells from the others, have a higher label."""
    (x, y), (unseen, _) = case.data(), case.data(seed=8)
    high = np.random.default_rng(70).random(len(y)) < 0.5
    y = np.where(high, 1.0, y) if case.classifies else y + high
    params = case.params(dict.fromkeys(FAST, 30))

    def answers(counts: Any) -> Values:
        weights = counts.astype(np.float64)
        return case.fitted(x, y, weights=weights, params=params).predict(unseen)

    weighted, counts = answers(np.where(high, 4, 1)), np.where(high, 4, 1)
    repeated = np.repeat(x, counts, axis=0), np.repeat(y, counts)
    as_rows = case.fitted(*repeated, params=params).predict(unseen)
    assert weighted.mean() - answers(np.where(high, 1, 4)).mean() > (0.2 if case.classifies else 0.4)
    if case.family.name in EXACT:
        assert weighted == pytest.approx(as_rows, abs=2e-3)
    else:
        assert weighted.mean() == pytest.approx(as_rows.mean(), abs=0.05 if case.classifies else 0.1)


def test_how_large_weights_are_together_does_not_change_what_a_forest_draws() -> None:
    case = Case(FAMILIES["random_forest"], "classification")
    x, y = case.data()
    weights = np.where(y > 0, 4.0, 1.0)
    few, many = (case.fitted(x, y, weights=weights * scale).to_bytes() for scale in (2**-10, 2**10))
    assert few == many == case.fitted(x, y, weights=weights).to_bytes()


def test_probabilities_mean_what_they_say(classifier: Case) -> None:
    model = classifier.fitted(*classifier.data(2000), params=classifier.params(dict.fromkeys(FAST, 80)))
    x, y = classifier.data(2000, seed=8)
    answers = model.predict(x)
    assert ((answers >= 0) & (answers <= 1)).all()
    assert answers.mean() == pytest.approx(y.mean(), abs=0.05)
    assert metrics.find("calibration_error", classifier.task)(y, answers) < 0.12


def test_a_rare_label_is_learned_by_the_defaults(classifier: Case) -> None:
    """Where 8 % have it, small leaves that are sure of themselves cost more than they tell."""
    rare: dict[str, Any] = {"steepness": 2.0, "shift": -3.0}
    x, y = classifier.data(2000, **rare)
    unseen, labels = classifier.data(2000, seed=8, **rare)
    answers = classifier.fitted(x, y, params=classifier.params({})).predict(unseen)
    constant = np.full(len(labels), y.mean())
    assert classifier.metric(labels, answers) < 0.95 * classifier.metric(labels, constant)


def test_a_gpu_is_asked_for_where_the_library_can_use_one(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here is none: what each library is given is looked at, and then fitted on the CPU."""
    import catboost

    asked: list[Any] = []
    fit, made = boost.fit, catboost.CatBoost

    def trained(x: Matrix, y: Values, weights: Any, params: dict[str, Any], rounds: int) -> bytes:
        asked.append(params["device"])
        return fit(x, y, weights, {**params, "device": "cpu"}, rounds)

    def make(params: dict[str, Any]) -> Any:
        asked.append((params.get("task_type"), params.get("devices")))
        return made({name: given for name, given in params.items() if name not in ("task_type", "devices")})

    monkeypatch.setattr(boost, "fit", trained)
    monkeypatch.setattr(catboost, "CatBoost", make)
    on_cpu, on_gpu = (case.fitted(*case.data(count=200), device=device) for device in ("cpu", "cuda"))
    wanted = {"xgboost": ["cpu", "cuda"], "catboost": [(None, None), ("GPU", "0")]}
    assert asked == wanted.get(case.family.name, [])
    assert case.family.devices == (("cpu", "cuda") if asked else ("cpu",))
    assert on_cpu.to_bytes() == on_gpu.to_bytes()


def test_the_file_is_no_pickle(case: Case) -> None:
    data = case.model.to_bytes()
    with pytest.raises(ValueError):
        list(pickletools.genops(io.BytesIO(data)))


def test_every_end_of_the_space_can_be_fitted(case: Case) -> None:
    x, y = case.data(count=200)
    for end in ("low", "high"):
        space = families.space(case.family, case.task)
        params = {name: getattr(dim, end, dim.default) for name, dim in space.items()} | {
            name: value for name, value in FAST.items() if name in space
        }
        assert np.isfinite(case.fitted(x, y, params=params).predict(x)).all()


def test_keeps_to_its_cpus_and_is_quick(case: Case) -> None:
    x, y = case.data(count=6000)
    _ = case.model  # the library's import
    begin, used = time.perf_counter(), time.process_time()
    case.fitted(x, y, params=case.params({}), cpus=1)
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

folder = pathlib.Path(sys.argv[1])
random = np.random.default_rng(7)
(x,) = (np.load(file) for file in folder.glob("*.npy"))

def read(kind, given):
    try:
        model = models.load(kind, given)
    except PackageError:
        return True
    try:
        model.predict(x)
    except (ValueError, IndexError):
        pass
    return False

def attack(kind, data):
    for share in (0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99):
        assert read(kind, data[: int(len(data) * share)]), share
    strange = [b"\\x80\\x04.", b"PK\\x03\\x04" + data, b"{}", b"[]", b"null", data[::-1]]
    strange += [bytes(len(data)), data[100:]]
    assert all(read(kind, given) for given in strange)
    for _ in range(FLIPS):
        changed = bytearray(data)
        for at in random.integers(0, len(data), 3):
            changed[at] = random.integers(256)
        read(kind, bytes(changed))

for file in sorted(folder.glob("*.model")):
    attack(file.name.split("-")[0], file.read_bytes())
print("survived")
"""
FLIPS = 150


def _write(cases: Iterable[Case], folder: Path) -> None:
    """Each case's model in a file that says its kind, and each style's matrix."""
    for case in cases:
        name = f"{case.model.kind}-{case.family.style}-{case.family.name}-{case.task}.model"
        (folder / name).write_bytes(case.model.to_bytes())
        np.save(folder / f"{case.family.style}.npy", case.data(count=20, seed=8)[0])


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_damaged_and_hostile_files_end_no_process(name: str, tmp_path: Path) -> None:
    _write([Case(FAMILIES[name], task) for task in FAMILIES[name].tasks], tmp_path)
    code = HOSTILE.replace("FLIPS", str(FLIPS))
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr[-2000:]


def test_no_family_answers_with_any_fitting_library(tmp_path: Path) -> None:
    _write([Case(FAMILIES[name], task) for name, task in PAIRS], tmp_path)
    code = (
        "import json, pathlib, sys, numpy as np; from mlops_ray.registry import models\n"
        "folder, loaded = pathlib.Path(sys.argv[1]), {}\n"
        "for file in folder.glob('*.model'):\n"
        "    kind, style, *_ = file.name.split('-')\n"
        "    models.load(kind, file.read_bytes()).predict(np.load(folder / f'{style}.npy'))\n"
        "    loaded[file.stem] = [m for m in ('sklearn', 'xgboost', 'lightgbm', 'catboost', 'pandas',"
        " 'scipy') if m in sys.modules]\n"
        "print(json.dumps(loaded))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    loaded = orjson.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert len(loaded) == len(PAIRS)
    assert not any(loaded.values()), loaded


@pytest.mark.parametrize("name", EXTRAS)
def test_a_library_that_is_not_installed_is_named_with_its_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == name else find(asked))
    with pytest.raises(TrainingError, match=rf"pip install 'mlops_ray\[{name}\]'"):
        families.find([name], "regression")
    with pytest.raises(TrainingError, match="is not installed"):
        case = Case(FAMILIES[name], "regression")
        case.fitted(*case.data())


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        (
            "ridge",
            "classification",
            "'ridge' predicts numbers; target.task is classification: use e.g. logis",
        ),
        ("logistic", "regression", "'logistic' predicts classes; target.task is regression: use e.g. ridge"),
        ("ridje", "regression", "there is no model family 'ridje'; did you mean 'ridge'?"),
    ],
)
def test_a_family_that_does_not_do_the_task_is_refused(name: str, task: TaskKind, message: str) -> None:
    with pytest.raises(TrainingError, match=message.replace("?", r"\?")):
        families.find(["xgboost", name], task)


def test_a_family_of_ones_own_goes_by_its_class_and_its_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    finder = SimpleNamespace(find_own=lambda own: {"my_models.Tabular": RIDGE}[own.path])
    monkeypatch.setattr("mlops_ray.training.own", finder, raising=False)
    wanted: list[str | OwnFamily] = [OwnFamily(path="my_models.Tabular"), "xgboost"]
    assert families.find(wanted, "regression") == {"Tabular": RIDGE, "xgboost": FAMILIES["xgboost"]}
    with pytest.raises(TrainingError, match="'Tabular' predicts numbers"):
        families.find(wanted, "classification")
