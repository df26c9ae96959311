"""The first look at a table: its profile, what goes with what, and whether it can be learned from.

Beside the profile, everything is computed on one seeded sample of bounded size: a table of any length takes
about as long. Columns that nobody may see take no part in it.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from mlops_ray.data import learning
from mlops_ray.data.learning import Numbers, Rows, Sample, codes
from mlops_ray.data.profile import View, commonest, profile
from mlops_ray.data.report import Document, finding, profile_findings, ranked
from mlops_ray.pages import Kind, cut, number, value
from mlops_ray.schema import Column

#: Rows of the sample, fewer where columns are many: so many values in all.
SAMPLE, SAMPLE_VALUES = 50_000, 1_500_000
#: Columns in a heat map.
MOST_RELATED = 24
#: Parts of a column beside the target.
PARTS = 10
#: Rows in which both of two columns are known, below which nothing is said of them: chance relates those.
FEWEST_RELATED = 30
#: Two columns that say nearly the same.
SAME = 0.98
#: Rows that are previewed.
MOST_PREVIEWED = 20


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
        return self.values.cast(pl.String) if self.task == "classification" else _finite(self.values)


def _finite(values: pl.Expr) -> pl.Expr:
    numbers = values.cast(pl.Float64)
    return pl.when(numbers.is_finite()).then(numbers)


def explore(
    rows: pl.LazyFrame,
    view: View,
    *,
    name: str,
    preview: pl.DataFrame,
    target: Aim | None = None,
    seed: int = 0,
) -> Document:
    """The first look at a table as plain JSON: `findings`, `profile`, `correlation`, `target` and more.

    `preview` holds the rows that people may see. The same rows and seed give the same document.
    """
    seen = [column for column in view.columns if column.name not in view.hidden]
    is_secret = target is not None and bool(target.columns & view.hidden)
    aim = None if is_secret else target
    sample = _sampled(rows, view, seen, aim, seed)
    document: Document = {
        "name": name,
        "seed": seed,
        "profile": profile(rows, view),
        "duplicates": _duplicates(rows),
        "sample": sample.height,
        "correlation": _correlation(sample, [c.name for c in seen if _is_amount(c)]),
        "association": _association(sample, [c.name for c in seen if c.is_discrete]),
        "target": _target(rows, Sample.of(sample, view, aim.task, seed), seen, aim, view) if aim else None,
        "preview": _preview(preview),
    }
    found = [*profile_findings(document["profile"]), *_findings(document, is_secret=is_secret)]
    return {**document, "findings": ranked(found)}


def _is_amount(column: Column) -> bool:
    return not column.is_discrete and column.type != "datetime"


def _duplicates(rows: pl.LazyFrame) -> int:
    """Rows that are in every column like one before."""
    hashed = rows.select(pl.struct(pl.all()).hash()).collect(engine="streaming").to_series()
    return len(hashed) - hashed.n_unique()


def _sampled(
    rows: pl.LazyFrame, view: View, seen: Sequence[Column], aim: Aim | None, seed: int
) -> pl.DataFrame:
    """A uniform sample in the order of the rows; with an aim, of rows that have a target, `_target`."""
    # Categories are text, and numbers finite floats.
    names = [*(c.name for c in seen), *([] if view.time is None else [view.time]), *view.keys]
    if aim is not None:
        rows = rows.with_columns(_target=aim.label).filter(pl.col("_target").is_not_null())
        names.append("_target")
    names = list(dict.fromkeys(names))
    total = rows.select(pl.len()).collect(engine="streaming").item()
    size = min(total, SAMPLE, SAMPLE_VALUES // max(len(names), 1))
    picked = np.random.default_rng(seed).choice(max(total, 1), size, replace=False)
    at = pl.col("_at").is_in(pl.Series(picked, dtype=pl.UInt32).implode())
    sample = rows.select(names).with_row_index("_at").filter(at).collect(engine="streaming")
    texts = [pl.col(c.name).cast(pl.String) for c in seen if c.is_discrete]
    amounts = [_finite(pl.col(c.name)) for c in seen if _is_amount(c)]
    return sample.sort("_at").drop("_at").with_columns(*texts, *amounts)


def _preview(rows: pl.DataFrame) -> Document:
    """Rows as text; what people may not see is masked or gone already (policy.py)."""
    texts = rows.head(MOST_PREVIEWED).with_columns(pl.selectors.datetime().dt.strftime("%F %T"))
    texts = texts.cast(pl.String)
    return {"columns": texts.columns, "rows": [list(row) for row in texts.rows()]}


# ---------------------------------------------------------------- columns beside each other


def _correlation(sample: pl.DataFrame, names: Sequence[str]) -> Document:
    """Spearman's rank correlation, of rows where both are known, by ranks among all that are known."""
    names = [name for name in names if sample[name].n_unique() > 1][:MOST_RELATED]
    ranks = sample.select(names).select(pl.all().rank()).to_pandas()
    return _matrix(names, ranks.corr(min_periods=FEWEST_RELATED).to_numpy())


def _association(sample: pl.DataFrame, names: Sequence[str]) -> Document:
    """Cramér's V of categories, corrected for its bias (Bergsma 2013, J. Korean Stat. Soc. 42)."""
    coded = {name: codes(sample[name]) for name in names}
    names = [name for name in names if 1 < len(coded[name][0]) <= learning.MOST_CATEGORIES][:MOST_RELATED]
    values = np.eye(len(names))
    for (i, a), (j, b) in itertools.combinations(enumerate(names), 2):
        values[i, j] = values[j, i] = _cramer(coded[a][1], coded[b][1])
    return _matrix(names, values)


def _cramer(a: Rows, b: Rows) -> float:
    from scipy.stats.contingency import chi2_contingency, crosstab

    known = (a >= 0) & (b >= 0)
    if known.sum() < FEWEST_RELATED:
        return math.nan
    table = crosstab(a[known], b[known]).count
    (r, k), n = table.shape, table.sum()
    if min(r, k) < 2:
        return math.nan
    phi = chi2_contingency(table, correction=False).statistic / n
    # One row a cell leaves nothing to compare with.
    room = min(r - (r - 1) ** 2 / (n - 1), k - (k - 1) ** 2 / (n - 1)) - 1
    above = max(phi - (r - 1) * (k - 1) / (n - 1), 0)
    return math.sqrt(min(above / room, 1)) if room > 0 else math.nan


def _matrix(names: Sequence[str], values: Numbers) -> Document:
    if not np.isfinite(values[np.triu_indices(len(names), 1)]).any():
        return {"columns": [], "values": []}
    rows = [[round(v, 4) if math.isfinite(v) else None for v in row] for row in values.tolist()]
    return {"columns": names, "values": rows}


# ---------------------------------------------------------------- columns beside the target


def _target(rows: pl.LazyFrame, sample: Sample, columns: Sequence[Column], aim: Aim, view: View) -> Document:
    labels = rows.select(label=aim.label)
    total, known = labels.select(pl.len(), n=pl.col("label").count()).collect(engine="streaming").row(0)
    classes = _classes(labels) if aim.task == "classification" else []
    others = [c for c in columns if c.name not in aim.columns and c.type != "datetime"]
    found = list(learning.suspects(sample, [c for c in others if c.name not in view.keys]))
    honest = {c.name for c in others} - {suspect["column"] for suspect in found}
    sought = _sought(aim, sample.classes)
    few = [(label, count) for label, count in classes if count < learning.TOO_FEW_OF_CLASS]
    return {
        "task": aim.task,
        "rows": known,
        "missing": total - known,
        "classes": commonest(classes, known, view.least) if classes else None,
        "rare": [label if count >= view.least else None for label, count in few],
        "sought": sought,
        "relations": _relations(sample, others, sought, view.least),
        "suspects": found,
        "learning": learning.curve(sample, [c for c in others if c.name in honest], known),
    }


def _classes(labels: pl.LazyFrame) -> list[tuple[str, int]]:
    """Classes with their rows, the commonest first."""
    counted = labels.drop_nulls().group_by("label").len().collect(engine="streaming")
    return sorted(counted.rows(), key=lambda pair: (-pair[1], pair[0]))


def _sought(aim: Aim, classes: Sequence[str]) -> str | None:
    """The class whose share is shown: the one asked for, else the rarer of two, else the commonest."""
    if not classes:
        return None
    said = "true" if aim.positive is None else str(aim.positive)
    # A truth value, or a whole number in a column of floats.
    asked = {said, f"{said}.0", said.lower() if isinstance(aim.positive, bool) else said}
    usual = classes[1] if len(classes) == 2 else classes[0]
    return next((label for label in classes if label in asked), usual)


def _relations(sample: Sample, columns: Sequence[Column], sought: str | None, least: int) -> list[Document]:
    """The mean of the target, or the share of the class sought, in parts of each column; strongest first."""
    # `strength` is the share of the variance between the parts, corrected for their number (epsilon squared,
    # Kelley 1935, PNAS 21).
    y = sample.y if sought is None else (sample.y == sample.classes.index(sought)).astype(float)
    found = [_relation(sample.rows[column.name], column, y, least) for column in columns]
    return sorted((relation for relation in found if relation), key=lambda relation: -relation["strength"])


def _relation(values: pl.Series, column: Column, y: Numbers, least: int) -> Document | None:
    labels, places = _parts(values, column)
    places = _folded(places, len(labels), least)
    counts = np.bincount(places, minlength=len(labels))
    with np.errstate(all="ignore"):
        means = np.bincount(places, y, minlength=len(labels)) / counts
    kept = [part for part in range(len(labels)) if counts[part] >= least]
    if len(kept) < 2 or not y.std():
        return None
    between = float((counts[kept] * (means[kept] - y.mean()) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    strength = 1 - (1 - between) * (len(y) - 1) / max(len(y) - len(kept), 1)
    parts = [{"label": labels[i], "mean": float(means[i]), "rows": int(counts[i])} for i in kept]
    return {"column": column.name, "strength": round(max(strength, 0.0), 4), "parts": parts}


def _folded(places: Rows, size: int, least: int) -> Rows:
    """Parts of fewer rows than `least` as one, with the next larger ones until it has enough: the others."""
    counts = np.bincount(places, minlength=size)
    together: list[int] = []
    for part in np.argsort(counts, kind="stable").tolist():
        if counts[part] >= least and not 0 < counts[together].sum() < least:
            break
        together.append(part)
    return np.where(np.isin(places, together), size - 2, places)


def _parts(values: pl.Series, column: Column) -> tuple[list[str], Rows]:
    """Names of parts of a column, and the part of each row; the last two are other and missing values."""
    names, places = codes(values, PARTS) if column.is_discrete else _ranges(values.to_numpy())
    places = np.where(places < 0, len(names), places)
    labels = [*map(value, names), learning.OTHERS, "(missing)"]
    return labels, np.where(values.is_null().to_numpy(), len(names) + 1, places)


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


# ---------------------------------------------------------------- sentences


def _findings(document: Document, *, is_secret: bool) -> Iterator[Document]:
    if is_secret:
        said = "The target reads a column that the policy shows to nobody: nothing about it is shown."
        yield finding("note", said)
    if document["duplicates"]:
        count = document["duplicates"]
        are = "s are" if count > 1 else " is"
        yield finding("warning", f"{count:,} row{are} in every column like one before.")
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
        yield finding("problem", f"{which} has under {learning.TOO_FEW_OF_CLASS} rows: too few to learn it.")
    if target["missing"]:
        total = target["rows"] + target["missing"]
        yield finding("note", f"{target['missing']:,} of {total:,} rows have no target.")
    severities: dict[str, Kind] = {"helps": "note", "flat": "ok", "no better": "warning"}
    verdict = target["learning"]["verdict"]
    yield finding(severities.get(verdict, "problem"), target["learning"]["said"])
