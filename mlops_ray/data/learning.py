"""What can be learned of a target: columns that give it away, and whether more rows would help.

Trees and boosting learn quickly from some rows of a sample and are judged on others, later ones where there
is time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from mlops_ray.data.profile import View
from mlops_ray.data.report import Document
from mlops_ray.pages import cut, share, value
from mlops_ray.schema import Column

if TYPE_CHECKING:
    import pandas as pd

#: Rows that the learning curve, and each test for a leak, learn from and are judged on; bounds of their time.
LEARNED, LEARNED_VALUES, LEAK_ROWS, JUDGED_SHARE = 20_000, 250_000, 10_000, 0.25
#: Columns in the search for leaks; categories that are told apart in it, and classes of a target.
MOST_SUSPECTED, MOST_CATEGORIES, MOST_CLASSES = 200, 50, 10
#: From so large a share of the error that a single column takes away, out of sample, it is no mere feature.
LEAK = 0.98
#: Fewer rows teach nothing (config.Training.minimum_rows), nor does a rarer class (Imbalance.minimum_rows).
TOO_FEW, TOO_FEW_OF_CLASS = 100, 50
#: A fall of the error below this is noise of the sample.
HELPS = 0.02
#: Codes of categories that a model may learn from.
MOST_CODES = 200
OTHERS = "(others)"
#: Each size of the learning curve doubles the one before; smaller ones are repeated, for their noise.
SIZES, REPEATS = 5, 3
#: A probability that no class falls below.
LEAST_CHANCE = 1e-4

Numbers = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """Rows of known `_target`: `y` is the number, or the position of the class among `classes`.

    Categories are text, numbers are finite floats. `train` are positions of rows to learn from, `judged` of
    rows to judge on.
    """

    rows: pl.DataFrame
    time: str | None
    y: Numbers
    classes: tuple[str, ...]
    train: Rows
    judged: Rows
    seed: int

    @classmethod
    def of(
        cls, rows: pl.DataFrame, view: View, task: Literal["regression", "classification"], seed: int
    ) -> Self:
        classes: list[str] = []
        if task == "classification":
            classes, places = codes(rows["_target"], MOST_CLASSES, view.least)
            y = np.where(places < 0, len(classes), places).astype(float)
            classes += [OTHERS] if (places < 0).any() else []
        else:
            y = rows["_target"].to_numpy()
        return cls(rows, view.time, y, tuple(classes), *_split(rows, view, seed), seed)


def codes(values: pl.Series, most: int | None = None, least: int = 1) -> tuple[list[str], Rows]:
    """Categories, the commonest first, and of each value its place among them.

    The place of missing ones is -1, of those rarer than `least`, and of those beyond `most`.
    """
    counted = values.drop_nulls().alias("value").value_counts(name="rows")
    counted = counted.filter(pl.col("rows") >= least).sort("rows", "value", descending=[True, False])
    names = (counted if most is None else counted.head(most))["value"]
    places = values.cast(pl.Enum(names), strict=False).to_physical().cast(pl.Int64)
    return names.to_list(), places.fill_null(-1).to_numpy()


def _split(rows: pl.DataFrame, view: View, seed: int) -> tuple[Rows, Rows]:
    """Rows to learn from and later ones to judge on; without time those of other keys, else of chance."""
    chance = np.random.default_rng(seed).permutation(rows.height)
    if view.time is not None:
        at = rows[view.time].to_physical().fill_null(strategy="min").to_numpy()
    elif view.keys:
        key = rows.select(pl.struct(view.keys).rank("dense")).to_series().to_numpy()
        at = np.random.default_rng(seed).permutation(key.max(initial=0) + 1)[key]
    else:
        at = chance
    begin = np.sort(at)[int(len(at) * (1 - JUDGED_SHARE))] if len(at) else 0
    train, judged = chance[at[chance] < begin], chance[at[chance] >= begin]
    train, judged = (train, judged) if len(train) else (judged[1::2], judged[::2])
    return train, judged[:LEAK_ROWS]


# ---------------------------------------------------------------- columns that give the target away


def suspects(sample: Sample, columns: Sequence[Column]) -> Iterator[Document]:
    """Columns that know the target too well to have been known before it, with the evidence."""
    for column in columns[:MOST_SUSPECTED] if len(sample.train) >= TOO_FEW else ():
        said = _evidence(sample, column)
        if said is not None:
            yield {"column": column.name, "said": said}


def _evidence(sample: Sample, column: Column) -> str | None:
    pair = sample.rows.select(column.name, "_target").drop_nulls()
    sizes = {pair[column.name].n_unique(), pair["_target"].n_unique(), pair.n_unique()}
    if len(sizes) == 1 and 1 < min(sizes) <= min(MOST_CATEGORIES, pair.height / 2):
        return (
            f"each of its {min(sizes):,} values goes with one value of the target, and the other way around"
        )
    absent = sample.rows[column.name].is_null().to_numpy()
    enough = absent.sum() >= TOO_FEW_OF_CLASS
    if sample.classes and enough and _skill(absent.astype(float), sample) >= LEAK:
        label = max(range(len(sample.classes)), key=lambda code: absent[sample.y == code].mean())
        inside, outside = absent[sample.y == label].mean(), absent[sample.y != label].mean()
        of = f"class {value(cut(sample.classes[label]))}"
        return f"it is missing in {share(inside)} of the rows of {of}, in {share(outside)} of the others"
    skill = _skill(_feature(sample, column), sample)
    if skill >= LEAK:
        return f"alone it takes away {share(skill)} of the naive error, on rows that were not learned from"
    return None


def _feature(sample: Sample, column: Column) -> Numbers:
    """A column as numbers; categories by the mean of the target in the rows to learn from."""
    values = sample.rows[column.name]
    if not column.is_discrete:
        return values.to_numpy()
    names, places = codes(values)
    known = sample.train[places[sample.train] >= 0]
    rows = np.bincount(places[known], minlength=len(names) + 1)
    sums = np.bincount(places[known], sample.y[known], minlength=len(names) + 1)
    with np.errstate(all="ignore"):
        # The last is that of no name, at place -1.
        return (sums / rows)[places]


def _skill(x: Numbers, sample: Sample) -> float:
    """The share of the error of the best constant that a small tree over one column takes away."""
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    train, truth = sample.train[:LEAK_ROWS], sample.y[sample.judged]
    if np.isnan(x[train]).all():
        return 0.0
    kind = DecisionTreeClassifier if sample.classes else DecisionTreeRegressor
    tree = kind(max_leaf_nodes=256, min_samples_leaf=5, random_state=sample.seed)
    predicted = tree.fit(x[train, None], sample.y[train]).predict(x[sample.judged, None])
    if sample.classes:
        naive, error = 1 - np.bincount(truth.astype(int)).max() / len(truth), (predicted != truth).mean()
    else:
        naive, error = truth.var(), ((predicted - truth) ** 2).mean()
    return float(1 - error / naive) if naive > 0 else 0.0


# ---------------------------------------------------------------- enough rows to learn from?


def curve(sample: Sample, columns: Sequence[Column], known: int) -> Document:
    """The error by the number of rows learned from, beside that of the naive value, and what it says.

    The error is the root mean square, or the mean negative log likelihood of the class; the naive value the
    mean, or the shares of the classes, of all rows learned from. `known` rows of the table have a target.
    """
    metric = "log loss" if sample.classes else "root mean square error"
    facts: Document = {"metric": metric, "naive": None, "points": [], "verdict": "nothing"}
    if sample.rows.height < TOO_FEW:
        said = f"Too few rows to learn from: {sample.rows.height:,}, of {TOO_FEW} at least."
        return facts | {"verdict": "too few", "said": said}
    if len(np.unique(sample.y[sample.train])) < 2:
        return facts | {"said": "The target is the same in every row to learn from."}
    x = _features(sample, columns)
    if x.empty:
        return facts | {"said": "There is no column to learn from."}
    most = min(len(sample.train), LEARNED, max(LEARNED_VALUES // x.shape[1], TOO_FEW))
    for size in (most >> halvings for halvings in reversed(range(SIZES))):
        repeats = range(REPEATS if size < most else 1)
        errors = [_error(sample, x, np.roll(sample.train, size * repeat)[:size]) for repeat in repeats]
        facts["points"].append({"rows": size, "error": float(np.mean(errors))})
    facts["naive"] = _error(sample, x, sample.train[:most], is_naive=True)
    return facts | _said(facts, known)


def _said(facts: Document, known: int) -> Document:
    (before, last), naive = facts["points"][-2:], facts["naive"]
    fell = 1 - last["error"] / before["error"] if before["error"] else 0.0
    gain = 1 - last["error"] / naive if naive else 0.0
    learned = f"with {last['rows']:,} of {known:,} rows"
    better = f"{learned} it is {share(gain)} below that of the naive value."
    if gain < HELPS:
        return {"verdict": "no better", "said": f"No better than the naive value {learned}."}
    if fell >= HELPS:
        helps = f"More rows would still help: the error fell by {share(fell)} at the last doubling"
        return {"verdict": "helps", "said": f"{helps}; {better}"}
    flat = "Flat: more rows like these would hardly lower the error of a quick model"
    return {"verdict": "flat", "said": f"{flat}; {better}"}


def _features(sample: Sample, columns: Sequence[Column]) -> "pd.DataFrame":
    """What is learned from: columns as they are, and the hour (UTC) and weekday of the time."""
    given = []
    for column in columns:
        values = sample.rows[column.name]
        is_name = column.is_discrete
        given += [values.cast(pl.Enum(codes(values, MOST_CODES)[0]), strict=False) if is_name else values]
    if sample.time is not None:
        clock = sample.rows[sample.time].dt
        given += [clock.hour(), clock.weekday()]
    known = (values for values in given if values.null_count() < len(values))
    return pl.DataFrame([values.alias(str(place)) for place, values in enumerate(known)]).to_pandas()


def _error(sample: Sample, x: "pd.DataFrame", rows: Rows, *, is_naive: bool = False) -> float:
    """The error on the rows to judge on, of a quick model of these rows or of their naive value."""
    from sklearn import dummy, ensemble
    from threadpoolctl import threadpool_limits

    y, truth = sample.y[rows], sample.y[sample.judged]
    model: Any
    if is_naive or len(np.unique(y)) < 2:
        model = dummy.DummyClassifier() if sample.classes else dummy.DummyRegressor()
    else:
        boosting = "Classifier" if sample.classes else "Regressor"
        kind = getattr(ensemble, f"HistGradientBoosting{boosting}")
        model = kind(max_iter=50, early_stopping=False, random_state=sample.seed)
    # Threads of so small a model wait for each other, ten times as long where cores are busy otherwise.
    with threadpool_limits(1, user_api="openmp"):
        model.fit(x.iloc[rows], y)
        judge = model.predict_proba if sample.classes else model.predict
        predicted = judge(x.iloc[sample.judged])
    if not sample.classes:
        return float(np.sqrt(((predicted - truth) ** 2).mean()))
    chances = (predicted * (truth[:, None] == model.classes_)).sum(axis=1)
    return float(-np.log(np.maximum(chances, LEAST_CHANCE)).mean())
