"""The first look at a table: its profile, what goes with what, and whether it can be learned from.

Beside the profile, everything is computed on one seeded sample of bounded size: a table of any length takes
about as long. Columns that nobody may see take no part in it.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from mlops_ray import pictures
from mlops_ray.data.profile import commonest, profile
from mlops_ray.data.report import (
    Document,
    columns_section,
    finding,
    missing_section,
    overview_section,
    profile_findings,
    ranked,
    shown,
    time_section,
    value_bars,
)
from mlops_ray.pages import Block, Kind, Section, Table, cut, number, page, share, value
from mlops_ray.schema import Column

#: Rows of the sample, fewer where columns are many: so many values in all.
SAMPLE, SAMPLE_VALUES = 50_000, 1_500_000
#: Rows that the learning curve, and each test for a leak, learn from and are judged on; bounds of their time.
LEARNED, LEARNED_VALUES, LEAK_ROWS, JUDGED_SHARE = 20_000, 250_000, 10_000, 0.25
#: Columns in a heat map, in pictures beside the target, and in the search for leaks.
MOST_RELATED, MOST_PICTURES, MOST_SUSPECTED = 24, 6, 200
#: A column that tells less than this of the target's variance is not drawn.
FAINT = 0.001
#: Parts of a column beside the target; categories that are told apart anywhere.
PARTS, MOST_CATEGORIES, MOST_CLASSES = 10, 50, 10
#: From so large a share of the error that a single column takes away, out of sample, it is no mere feature.
LEAK = 0.98
#: Two columns that say nearly the same.
SAME = 0.98
#: Fewer rows teach nothing (config.Training.minimum_rows), nor does a rarer class (Imbalance.minimum_rows).
TOO_FEW, TOO_FEW_OF_CLASS = 100, 50
#: A fall of the error below this is noise of the sample.
HELPS = 0.02
#: Codes of categories that a model may learn from, and rows that are previewed.
MOST_CODES, MOST_PREVIEWED = 200, 20
OTHERS = "(others)"
#: Each size of the learning curve doubles the one before; smaller ones are repeated, for their noise.
SIZES, REPEATS = 5, 3

Numbers = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Aim:
    """What is to be predicted of a row: `values` over its columns, and the class sought, if it is one."""

    values: pl.Expr
    task: Literal["regression", "classification"]
    positive: str | int | bool | None = None

    @property
    def columns(self) -> frozenset[str]:
        """The columns that it is computed from: the target itself."""
        return frozenset(self.values.meta.root_names())

    @property
    def label(self) -> pl.Expr:
        """The number, or the class as text; null where there is neither."""
        if self.task == "classification":
            return self.values.cast(pl.String)
        numbers = self.values.cast(pl.Float64)
        return pl.when(numbers.is_finite()).then(numbers)


@dataclass(frozen=True)
class _Sample:
    """Rows of known target: `y` is the number, or the position of the class among `classes`.

    `train` are positions of rows to learn from, `judged` of rows to judge on.
    """

    rows: pl.DataFrame
    time: str | None
    y: Numbers
    classes: tuple[str, ...]
    train: Rows
    judged: Rows
    seed: int


def explore(
    rows: pl.LazyFrame,
    columns: Sequence[Column],
    *,
    name: str,
    time: str | None,
    keys: Sequence[str] = (),
    target: Aim | None = None,
    hidden: frozenset[str] = frozenset(),
    minimum_count: int | None = None,
    preview: pl.DataFrame | None = None,
    seed: int = 0,
) -> Document:
    """The first look at a table as plain JSON: `findings`, `profile`, `correlation`, `target` and more.

    `rows`, `columns`, `time`, `keys`, `hidden` and `minimum_count` are those of `profile`; `preview` holds
    the rows that people may see. The same rows and seed give the same document.
    """
    seen = [column for column in columns if column.name not in hidden]
    secret = target is not None and bool(target.columns & hidden)
    aim = None if secret else target
    beside = [name for name in (time, *keys) if name is not None]
    sample = _sampled(rows, list(dict.fromkeys([*(c.name for c in seen), *beside])), aim, seed)
    document: Document = {
        "name": name,
        "seed": seed,
        "profile": profile(rows, columns, time=time, keys=keys, hidden=hidden, minimum_count=minimum_count),
        "duplicates": _duplicates(rows),
        "sample": sample.height,
        "correlation": _correlation(sample, [c for c in seen if not c.is_discrete and c.type != "datetime"]),
        "association": _association(sample, [c for c in seen if c.is_discrete]),
        "target": None,
        "preview": _preview(preview),
    }
    if aim is not None:
        known = _known(sample, aim, time, keys, minimum_count or 1, seed)
        document["target"] = _target(rows, known, seen, aim, keys, minimum_count or 1)
    found = [*profile_findings(document["profile"]), *_findings(document, secret=secret)]
    return {**document, "findings": ranked(found)}


def _duplicates(rows: pl.LazyFrame) -> int:
    """Rows that are in every column like one before."""
    hashed = rows.select(pl.struct(pl.all()).hash()).collect(engine="streaming").to_series()
    return len(hashed) - hashed.n_unique()


def _sampled(rows: pl.LazyFrame, names: Sequence[str], aim: Aim | None, seed: int) -> pl.DataFrame:
    """A uniform sample in the order of the rows; with an aim, of rows that have a target, `_target`."""
    if aim is not None:
        rows = rows.with_columns(_target=aim.label).filter(pl.col("_target").is_not_null())
        names = [*names, "_target"]
    total = rows.select(pl.len()).collect(engine="streaming").item()
    size = min(total, SAMPLE, SAMPLE_VALUES // max(len(names), 1))
    picked = pl.Series(
        np.random.default_rng(seed).choice(max(total, 1), size, replace=False), dtype=pl.UInt32
    )
    rows = rows.select(names).with_row_index("_at").filter(pl.col("_at").is_in(picked.implode()))
    return rows.collect(engine="streaming").sort("_at").drop("_at")


def _preview(rows: pl.DataFrame | None) -> Document | None:
    """Rows as text; what people may not see is masked or gone already (policy.py)."""
    if rows is None:
        return None
    rows = rows.head(MOST_PREVIEWED)
    texts = rows.with_columns(pl.selectors.datetime().dt.strftime("%F %T")).cast(pl.String)
    return {"columns": texts.columns, "rows": [list(row) for row in texts.rows()]}


# ---------------------------------------------------------------- columns beside each other


def _numbers(values: pl.Series) -> Numbers:
    numbers = values.cast(pl.Float64).to_numpy()
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _correlation(sample: pl.DataFrame, columns: Sequence[Column]) -> Document:
    """Spearman's rank correlation, of rows where both are known, by ranks among all that are known."""
    from scipy.stats import rankdata

    names = [c.name for c in columns if sample[c.name].n_unique() > 1][:MOST_RELATED]
    if len(names) < 2:
        return {"columns": [], "values": []}
    ranks = np.column_stack([rankdata(_numbers(sample[name]), nan_policy="omit") for name in names])
    known = (~np.isnan(ranks)).astype(float)
    ranks = np.where(known > 0, ranks / sample.height - 0.5, 0.0)
    rows, sums, squares = known.T @ known, ranks.T @ known, (ranks**2).T @ known
    with np.errstate(all="ignore"):
        spread = rows * squares - sums**2
        values = (rows * (ranks.T @ ranks) - sums * sums.T) / np.sqrt(spread * spread.T)
    return {"columns": names, "values": _matrix(values)}


def _association(sample: pl.DataFrame, columns: Sequence[Column]) -> Document:
    """Cramér's V of categories, corrected for its bias (Bergsma 2013, J. Korean Stat. Soc. 42)."""
    coded = {c.name: _codes(sample[c.name]) for c in columns}
    names = [name for name, codes in coded.items() if 1 < codes.max(initial=-1) + 1 <= MOST_CATEGORIES]
    names = names[:MOST_RELATED]
    if len(names) < 2:
        return {"columns": [], "values": []}
    values = np.eye(len(names))
    for i, j in itertools.combinations(range(len(names)), 2):
        values[i, j] = values[j, i] = _cramer(coded[names[i]], coded[names[j]])
    return {"columns": names, "values": _matrix(values)}


def _codes(values: pl.Series, most: int = 1_000_000, least: int = 1) -> Rows:
    """Categories as numbers, the commonest 0; -1 for missing and rarer ones, and those beyond `most`."""
    counted = (
        values.drop_nulls().value_counts(name="_rows").sort("_rows", values.name, descending=[True, False])
    )
    common = counted.filter(pl.col("_rows") >= least)[values.name].head(most)
    if common.is_empty():
        return np.full(len(values), -1)
    return values.replace_strict(common, range(len(common)), default=-1, return_dtype=pl.Int64).to_numpy()


def _cramer(a: Rows, b: Rows) -> float:
    known = (a >= 0) & (b >= 0)
    a, b = np.unique(a[known], return_inverse=True)[1], np.unique(b[known], return_inverse=True)[1]
    if not len(a) or not a.max() or not b.max():
        return np.nan
    r, k, n = a.max() + 1, b.max() + 1, len(a)
    table = np.bincount(a * k + b, minlength=r * k).reshape(r, k)
    expected = np.outer(table.sum(1), table.sum(0)) / n
    phi = ((table - expected) ** 2 / expected).sum() / n
    # One row a cell leaves nothing to compare with.
    room = min(r - (r - 1) ** 2 / max(n - 1, 1), k - (k - 1) ** 2 / max(n - 1, 1)) - 1
    return (
        float(np.sqrt(min(max(phi - (r - 1) * (k - 1) / max(n - 1, 1), 0) / room, 1))) if room > 0 else np.nan
    )


def _matrix(values: Numbers) -> list[list[float | None]]:
    return [[round(float(v), 4) if np.isfinite(v) else None for v in row] for row in values]


# ---------------------------------------------------------------- columns beside the target


def _target(
    rows: pl.LazyFrame, sample: _Sample, columns: Sequence[Column], aim: Aim, keys: Sequence[str], least: int
) -> Document:
    labels = rows.select(label=aim.label)
    total, known = labels.select(pl.len(), n=pl.col("label").count()).collect(engine="streaming").row(0)
    classes = _classes(labels) if aim.task == "classification" else []
    others = [c for c in columns if c.name not in aim.columns and c.type != "datetime"]
    suspects = list(_suspects(sample, [c for c in others if c.name not in keys]))
    suspected = {suspect["column"] for suspect in suspects}
    sought = _sought(aim, sample.classes)
    return {
        "task": aim.task,
        "rows": known,
        "missing": total - known,
        "classes": commonest(classes, known, least) if classes else None,
        "rare": [label if count >= least else None for label, count in classes if count < TOO_FEW_OF_CLASS],
        "sought": sought,
        "relations": _relations(sample, others, sought, least),
        "suspects": suspects,
        "learning": _learning(sample, [c for c in others if c.name not in suspected], known),
    }


def _classes(labels: pl.LazyFrame) -> list[tuple[str, int]]:
    """Classes with their rows, the commonest first."""
    counted = labels.drop_nulls().group_by("label").len().collect(engine="streaming")
    return sorted(counted.rows(), key=lambda pair: (-pair[1], pair[0]))


def _known(
    frame: pl.DataFrame, aim: Aim, time: str | None, keys: Sequence[str], least: int, seed: int
) -> _Sample:
    classes: tuple[str, ...] = ()
    y = frame["_target"]
    if aim.task == "classification":
        codes = _codes(y, MOST_CLASSES, least)
        names = dict(zip(codes.tolist(), y.to_list(), strict=True))
        classes = tuple(names[code] for code in sorted(names) if code >= 0)
        classes += (OTHERS,) if -1 in names else ()
        y = pl.Series(np.where(codes < 0, codes.max(initial=-1) + 1, codes))
    train, judged = _split(frame, time, keys, seed)
    return _Sample(frame, time, y.cast(pl.Float64).to_numpy(), classes, train, judged, seed)


def _split(frame: pl.DataFrame, time: str | None, keys: Sequence[str], seed: int) -> tuple[Rows, Rows]:
    """Rows to learn from and later ones to judge on; without time those of other keys, else of chance."""
    chance = np.random.default_rng(seed).permutation(frame.height)
    if time is not None:
        at = frame[time].to_physical().fill_null(strategy="min").to_numpy()
    elif keys:
        key = frame.select(pl.struct(keys).rank("dense")).to_series().to_numpy()
        at = np.random.default_rng(seed).permutation(key.max(initial=0) + 1)[key]
    else:
        at = chance
    begin = np.sort(at)[int(len(at) * (1 - JUDGED_SHARE))] if len(at) else 0
    train, judged = chance[at[chance] < begin], chance[at[chance] >= begin]
    return (train, judged) if len(train) else (judged[1::2], judged[::2])


def _sought(aim: Aim, classes: Sequence[str]) -> str | None:
    """The class whose share is shown: the one asked for, else the rarer of two, else the commonest."""
    if not classes:
        return None
    said = "true" if aim.positive is None else str(aim.positive)
    # A truth value, or a whole number in a column of floats.
    asked = {said, f"{said}.0", said.lower() if isinstance(aim.positive, bool) else said}
    return next(
        (label for label in classes if label in asked), classes[1] if len(classes) == 2 else classes[0]
    )


def _relations(sample: _Sample, columns: Sequence[Column], sought: str | None, least: int) -> list[Document]:
    """The mean of the target, or the share of the class sought, in parts of each column; strongest first.

    `strength` is the share of the variance between the parts, corrected for their number (epsilon squared,
    Kelley 1935, PNAS 21).
    """
    y = sample.y if sought is None else (sample.y == sample.classes.index(sought)).astype(float)
    found = [_relation(sample.rows[column.name], column, y, least) for column in columns]
    return sorted((relation for relation in found if relation), key=lambda relation: -relation["strength"])


def _relation(values: pl.Series, column: Column, y: Numbers, least: int) -> Document | None:
    labels, codes = _parts(values, column)
    codes = _folded(codes, len(labels), least)
    counts = np.bincount(codes, minlength=len(labels))
    with np.errstate(all="ignore"):
        means = np.bincount(codes, y, minlength=len(labels)) / counts
    kept = [part for part in range(len(labels)) if counts[part] >= least]
    if len(kept) < 2 or not y.std():
        return None
    between = float((counts[kept] * (means[kept] - y.mean()) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    strength = 1 - (1 - between) * (len(y) - 1) / max(len(y) - len(kept), 1)
    parts = [{"label": labels[i], "mean": float(means[i]), "rows": int(counts[i])} for i in kept]
    return {"column": column.name, "strength": round(max(strength, 0.0), 4), "parts": parts}


def _folded(codes: Rows, size: int, least: int) -> Rows:
    """Parts of fewer rows than `least` as one, with the next larger ones until it has enough: the others."""
    counts = np.bincount(codes, minlength=size)
    together: list[int] = []
    for part in np.argsort(counts, kind="stable").tolist():
        if counts[part] >= least and not 0 < counts[together].sum() < least:
            break
        together.append(part)
    return np.where(np.isin(codes, together), size - 2, codes)


def _parts(values: pl.Series, column: Column) -> tuple[list[str], Rows]:
    """Names of parts of a column, and the part of each row; the last two are other and missing values."""
    if column.is_discrete:
        codes = _codes(values, PARTS)
        first = dict(zip(codes[::-1].tolist(), values.reverse().to_list(), strict=True))
        labels = [value(str(first[code])) for code in range(codes.max(initial=-1) + 1)]
    else:
        labels, codes = _ranges(_numbers(values))
    missing = values.is_null().to_numpy() if column.is_discrete else np.isnan(_numbers(values))
    codes = np.where(codes < 0, len(labels), codes)
    return [*labels, OTHERS, "(missing)"], np.where(missing, len(labels) + 1, codes)


def _ranges(numbers: Numbers) -> tuple[list[str], Rows]:
    """Ranges of about as many rows, between numbers of three digits; few values are parts of their own."""
    known = numbers[~np.isnan(numbers)]
    found = np.unique(known)
    if len(found) <= PARTS:
        return [number(v) for v in found.tolist()], np.searchsorted(found, numbers)
    inner = np.quantile(known, np.arange(1, PARTS) / PARTS, method="inverted_cdf")
    edges = np.unique([float(f"{edge:.3g}") for edge in inner])
    marks = [number(edge) for edge in edges.tolist()]
    between = [f"{low} to {high}" for low, high in itertools.pairwise(marks)]
    return [f"≤ {marks[0]}", *between, f"> {marks[-1]}"], np.searchsorted(edges, numbers)


# ---------------------------------------------------------------- columns that give the target away


def _suspects(sample: _Sample, columns: Sequence[Column]) -> Iterator[Document]:
    """Columns that know the target too well to have been known before it, with the evidence."""
    for column in columns[:MOST_SUSPECTED] if len(sample.train) >= TOO_FEW else ():
        said = _evidence(sample, column)
        if said is not None:
            yield {"column": column.name, "said": said}


def _evidence(sample: _Sample, column: Column) -> str | None:
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
        of = value(cut(sample.classes[label]))
        return (
            f"it is missing in {share(inside)} of the rows of class {of}, in {share(outside)} of the others"
        )
    skill = _skill(_feature(sample, column), sample)
    if skill >= LEAK:
        return f"alone it takes away {share(skill)} of the naive error, on rows that were not learned from"
    return None


def _feature(sample: _Sample, column: Column) -> Numbers:
    """A column as numbers; categories by the mean of the target in the rows to learn from."""
    values = sample.rows[column.name]
    if not column.is_discrete:
        return _numbers(values)
    codes = _codes(values)
    known = sample.train[codes[sample.train] >= 0]
    rows = np.bincount(codes[known], minlength=codes.max(initial=0) + 1)
    sums = np.bincount(codes[known], sample.y[known], minlength=len(rows))
    with np.errstate(all="ignore"):
        return np.where(codes >= 0, (sums / rows)[codes], np.nan)


def _skill(x: Numbers, sample: _Sample) -> float:
    """The share of the error of the best constant that a small tree over one column takes away."""
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    train, judged = sample.train[:LEAK_ROWS], sample.judged[:LEAK_ROWS]
    if np.isnan(x[train]).all():
        return 0.0
    kind = DecisionTreeClassifier if sample.classes else DecisionTreeRegressor
    tree = kind(max_leaf_nodes=256, min_samples_leaf=5, random_state=sample.seed)
    predicted = tree.fit(x[train, None], sample.y[train]).predict(x[judged, None])
    truth = sample.y[judged]
    if sample.classes:
        naive, error = 1 - np.bincount(truth.astype(int)).max() / len(truth), (predicted != truth).mean()
    else:
        naive, error = truth.var(), ((predicted - truth) ** 2).mean()
    return float(1 - error / naive) if naive > 0 else 0.0


# ---------------------------------------------------------------- enough rows to learn from?


def _learning(sample: _Sample, columns: Sequence[Column], known: int) -> Document:
    """The error by the number of rows learned from, beside that of the naive value, and what it says.

    The error is the root mean square, or the mean negative log likelihood of the class; the naive value the
    mean, or the shares of the classes, of all rows learned from. `known` rows of the table have a target.
    """
    metric = "log loss" if sample.classes else "root mean square error"
    facts: Document = {"metric": metric, "naive": None, "points": [], "verdict": "too few"}
    if sample.rows.height < TOO_FEW:
        return facts | {"said": f"Too few rows to learn from: {sample.rows.height:,}, of {TOO_FEW} at least."}
    if len(np.unique(sample.y[sample.train])) < 2:
        return facts | {"verdict": "nothing", "said": "The target is the same in every row to learn from."}
    x, categorical = _features(sample, columns)
    if not x.shape[1]:
        return facts | {"verdict": "nothing", "said": "There is no column to learn from."}
    most = min(len(sample.train), LEARNED, max(LEARNED_VALUES // x.shape[1], TOO_FEW))
    sizes = [most >> halvings for halvings in reversed(range(SIZES))]
    errors = [_mean_error(x, sample, size, categorical, REPEATS if size < most else 1) for size in sizes]
    naive = _loss(sample, _constant(sample, sample.train[:most]))
    points = [{"rows": size, "error": error} for size, error in zip(sizes, errors, strict=True)]
    return facts | {"naive": naive, "points": points} | _said(sizes, errors, naive, known)


def _said(sizes: Sequence[int], errors: Sequence[float], naive: float, known: int) -> Document:
    fell = 1 - errors[-1] / errors[-2] if errors[-2] else 0.0
    gain = 1 - errors[-1] / naive if naive else 0.0
    learned = f"with {sizes[-1]:,} of {known:,} rows"
    if gain < HELPS:
        return {"verdict": "no better", "said": f"No better than the naive value {learned}."}
    better = f"{learned} it is {share(gain)} below that of the naive value"
    if fell >= HELPS:
        helps = f"More rows would still help: the error fell by {share(fell)} at the last doubling"
        return {"verdict": "helps", "said": f"{helps}; {better}."}
    return {
        "verdict": "flat",
        "said": f"Flat: more rows like these would hardly lower the error of a quick model; {better}.",
    }


def _features(sample: _Sample, columns: Sequence[Column]) -> tuple[Numbers, list[bool]]:
    """What is learned from: columns as they are, and the hour (UTC) and weekday of the time."""
    parts: list[tuple[Numbers, bool]] = []
    for column in columns:
        codes = _codes(sample.rows[column.name], MOST_CODES).astype(float) if column.is_discrete else None
        parts.append((_numbers(sample.rows[column.name]), False) if codes is None else (codes, True))
    if sample.time is not None:
        clock = sample.rows[sample.time].dt
        parts += [(_numbers(clock.hour()), False), (_numbers(clock.weekday()), False)]
    known = [(x, kind) for x, kind in parts if not np.isnan(x).all()]
    x = np.column_stack([x for x, _ in known]) if known else np.empty((sample.rows.height, 0))
    return np.where((x < 0) & np.array([kind for _, kind in known], bool), np.nan, x), [
        kind for _, kind in known
    ]


def _mean_error(x: Numbers, sample: _Sample, size: int, categorical: list[bool], repeats: int) -> float:
    picked = [np.roll(sample.train, repeat * size)[:size] for repeat in range(repeats)]
    return float(np.mean([_loss(sample, _predicted(x, sample, rows, categorical)) for rows in picked]))


def _predicted(x: Numbers, sample: _Sample, rows: Rows, categorical: list[bool]) -> Numbers:
    """Numbers, or a probability for each class, of the rows to judge on."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    if len(np.unique(sample.y[rows])) < 2:
        return _constant(sample, rows)
    kind = HistGradientBoostingClassifier if sample.classes else HistGradientBoostingRegressor
    model = kind(
        max_iter=50, early_stopping=False, categorical_features=categorical, random_state=sample.seed
    )
    judged = x[sample.judged[:LEAK_ROWS]]
    # Threads of so small a model wait for each other, ten times as long where cores are busy otherwise.
    with threadpool_limits(1, user_api="openmp"):
        model.fit(x[rows], sample.y[rows])
        predicted: Numbers = model.predict_proba(judged) if sample.classes else model.predict(judged)
    if not sample.classes:
        return predicted
    chances = np.zeros((len(judged), len(sample.classes)))
    chances[:, model.classes_.astype(int)] = predicted
    return chances


def _constant(sample: _Sample, rows: Rows) -> Numbers:
    if not sample.classes:
        return np.array(sample.y[rows].mean())
    counts = np.bincount(sample.y[rows].astype(int), minlength=len(sample.classes))
    return np.tile((counts + 1) / (counts + 1).sum(), (len(sample.judged[:LEAK_ROWS]), 1))


def _loss(sample: _Sample, predicted: Numbers) -> float:
    truth = sample.y[sample.judged[:LEAK_ROWS]]
    if not sample.classes:
        return float(np.sqrt(((predicted - truth) ** 2).mean()))
    # No class is impossible: one in ten thousand, and the rest share what is left.
    chances = np.clip(predicted, 1e-4, None)
    chances /= chances.sum(axis=1, keepdims=True)
    return float(-np.log(chances[np.arange(len(truth)), truth.astype(int)]).mean())


# ---------------------------------------------------------------- sentences


def _findings(document: Document, *, secret: bool) -> Iterator[Document]:
    if secret:
        yield finding(
            "note", "The target reads a column that the policy shows to nobody: nothing about it is shown."
        )
    if document["duplicates"]:
        count = document["duplicates"]
        yield finding(
            "warning", f"{count:,} row{'s are' if count > 1 else ' is'} in every column like one before."
        )
    for key, said in (("correlation", "rank correlation"), ("association", "Cramér’s V")):
        for a, b, amount in list(_same(document[key]))[:5]:
            yield finding("note", f"‘{cut(a)}’ and ‘{cut(b)}’ say nearly the same ({said} {amount:.2f}).")
    if document["target"] is not None:
        yield from _of_target(document["target"])


def _same(matrix: Document) -> Iterator[tuple[str, str, float]]:
    names, values = matrix["columns"], matrix["values"]
    for (i, a), (j, b) in itertools.combinations(enumerate(names), 2):
        if values[i][j] is not None and abs(values[i][j]) >= SAME:
            yield a, b, values[i][j]


def _of_target(target: Document) -> Iterator[Document]:
    for suspect in target["suspects"]:
        name = cut(suspect["column"])
        yield finding("problem", f"‘{name}’ may give the target away: {suspect['said']}.", suspect["column"])
    for label in target["rare"][:5]:
        which = "A class" if label is None else f"The class {value(cut(label))}"
        yield finding("problem", f"{which} has under {TOO_FEW_OF_CLASS} rows: too few to learn it.")
    if target["missing"]:
        yield finding("note", f"{target['missing']:,} rows have no target; {target['rows']:,} have one.")
    severities: dict[str, Kind] = {"helps": "note", "flat": "ok", "no better": "warning"}
    learning = target["learning"]
    yield finding(severities.get(learning["verdict"], "problem"), learning["said"])


# ---------------------------------------------------------------- the page


def explore_page(document: Document) -> str:
    """The page of a first look, from its JSON document alone."""
    profile, target = document["profile"], document["target"]
    tiles = ("Repeated rows", f"{document['duplicates']:,}", "in every column")
    sections = [
        overview_section(profile, tiles),
        _preview_section(document["preview"]),
        columns_section(profile),
    ]
    sections += [time_section(profile), missing_section(profile), _together_section(document)]
    if target is not None:
        sections += [_target_section(target), _learning_section(target)]
    subtitle = f"First look at {profile['rows']:,} rows, seed {document['seed']}"
    return page(document["name"], subtitle, shown(document["findings"]), sections)


def _preview_section(preview: Document | None) -> Section:
    if preview is None:
        return Section("Some rows", [])
    rows = [[value(cell) for cell in row] for row in preview["rows"]]
    table = Table([cut(name) for name in preview["columns"]], rows)
    return Section("Some rows", [Block(table=table, wide=True)])


def _together_section(document: Document) -> Section:
    names = (
        ("correlation", "Rank correlation", "Spearman’s, from -1 (red) to 1 (blue), of numbers."),
        ("association", "Association", "Cramér’s V, from 0 to 1, of categories."),
    )
    blocks = [
        Block(title, note=note, picture=pictures.heat_map(found["columns"], found["values"], title))
        for key, title, note in names
        if (found := document[key])["columns"]
    ]
    return Section("What goes with what", blocks, f"Of a sample of {document['sample']:,} rows.")


def _target_section(target: Document) -> Section:
    sought = target["sought"]
    classes = value_bars(target["classes"], target["rows"]) if target["classes"] else []
    blocks = [Block("Classes", bars=classes, wide=True)] if classes else []
    axis = "mean of the target" if sought is None else f"share of class {cut(value(sought), 22)}"
    drawn = [relation for relation in target["relations"] if relation["strength"] >= FAINT][:MOST_PICTURES]
    for relation in drawn:
        parts, name = relation["parts"], cut(relation["column"])
        labels, means, counts = ([part[key] for part in parts] for key in ("label", "mean", "rows"))
        mean = sum(part["mean"] * part["rows"] for part in parts) / sum(counts)
        picture = pictures.dots(labels, means, counts, mean, f"The target by {name}", axis)
        note = f"Explains {share(relation['strength'])} of the variance. At the right: rows."
        blocks += [Block(name, note=note, picture=picture)]
    note = "The columns that tell most of it; the dashed line is the mean of all rows."
    return Section("The target", blocks, note if drawn else "")


def _learning_section(target: Document) -> Section:
    learning, suspects = target["learning"], target["suspects"]
    names = ", ".join(cut(suspect["column"]) for suspect in suspects[:5]) + (", …" if suspects[5:] else "")
    left_out = f" Left out: {names}." if suspects else ""
    note = "A quick model of the columns as they are, with nothing tuned and no history." + left_out
    blocks = [Block(note=learning["said"], wide=True)]
    if learning["points"]:
        sizes, errors = ([point[key] for point in learning["points"]] for key in ("rows", "error"))
        title, metric, naive = "Error by rows learned from", learning["metric"], learning["naive"]
        rows = [[f"{size:,}", number(error)] for size, error in zip(sizes, errors, strict=True)]
        table = Table(["Rows", metric], [*rows, ["naive value", number(naive)]], frozenset({0, 1}))
        blocks = [Block(title, picture=pictures.curve(sizes, errors, naive, title, metric))]
        blocks += [Block(note=learning["said"], table=table)]
    return Section("Is it enough to learn from?", blocks, note)
