"""Where a model errs, and what it goes by: the plain data behind the pictures of its test part.

Nothing here tells of a single row: rows are counted by cells, and a group's figure is one of enough rows.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from mlops_ray.instants import from_micros
from mlops_ray.monitoring.segments import MISSING, MOST_VALUES, OTHERS, chosen
from mlops_ray.registry import bootstrap
from mlops_ray.registry.bootstrap import Blocks
from mlops_ray.registry.metrics import Function, Metric, average
from mlops_ray.registry.models import Values
from mlops_ray.training.splits import Instants, Rows

logger = logging.getLogger(__name__)

#: Of so many rows at least a group's figure is said.
LEAST = 30
#: Equal stretches of time; bins of equally many rows; cells of a histogram; points of a curve.
STRETCHES, BINS, CELLS, POINTS = 30, 10, 40, 200
#: The share of rows at either end that the outermost cells take in.
TAIL = 0.005
#: Shuffles of each column; rows, and values, that are shuffled at most: a bound of the time.
SHUFFLES, MOST_ROWS, MOST_SHUFFLED = 5, 4000, 100_000
#: Of more columns the first so many are weighed; each answer encodes all of them.
MOST_SHUFFLES = 250
#: Draws of a group's bootstrap, and rows in groups: fewer than for the test part as a whole, for there are
#: many groups.
DRAWS, MOST_SAMPLED = 60, 50_000
SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)
#: Rows that a learning curve is drawn from at most.
MOST_LEARNED = 50_000

Points = list[tuple[float, float]]
#: Rows learned from, the metric on them, and on validation rows.
Learned = tuple[int, float, float]
Names = Sequence[str | float]
Predict = Callable[[pl.DataFrame], Values]


@dataclass(frozen=True)
class Figure:
    """A value of so many rows, `at` a name, an instant (ISO) or a number; `low` to `high` holds 95 %."""

    at: str | float
    value: float
    low: float
    high: float
    rows: int

    def __iter__(self) -> Iterator[Any]:
        return iter((self.at, self.value, self.low, self.high, self.rows))


@dataclass(frozen=True)
class HeldOut:
    """The test rows in their order: columns, times, labels, answers, each one's block of a bootstrap.

    `metric` is the one that decides; nothing at all is said of fewer than `fewest` rows, and no metric of
    fewer than `least`.
    """

    frame: pl.DataFrame
    times: Instants
    labels: Values
    predictions: Values
    blocks: Blocks
    metric: Metric
    seed: int
    least: int = LEAST
    fewest: int = 0


@dataclass(frozen=True)
class Diagnosis:
    """What the test part shows; `overall` is the metric of all its rows, `mean` that of their labels.

    `importance` is by how much the metric worsens where a column is shuffled: the mean, the least and the
    most of the shuffles. `by_answer` is of bins of answers, at their mean: of a classification the share of
    positives, of a regression the mean residual, label minus answer. `curves` are, of a classification, "roc"
    (false and true positive rate) and "precision_recall" (recall and precision), of a regression "residuals"
    (edge and rows up to the next one).
    """

    metric: str
    overall: float
    mean: float
    importance: list[Figure]
    segments: dict[str, list[Figure]]
    over_time: list[Figure]
    by_answer: list[Figure]
    curves: dict[str, Points]
    learning: list[Learned]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def diagnose(
    held: HeldOut,
    predict: Predict,
    features: Sequence[str],
    segments: Iterable[str] = (),
    hidden: frozenset[str] = frozenset(),
    learning: Sequence[Learned] = (),
) -> Diagnosis:
    """What the test part shows; `predict` answers rows of `features`.

    `segments` are columns to cut by beside features of few values; `hidden` ones are not cut by.
    """
    labels, answers, metric, count = held.labels, held.predictions, held.metric, len(held.labels)
    rows = np.random.default_rng(held.seed).choice(count, min(count, MOST_SAMPLED), replace=False)
    # Metrics that sort are the faster where all is in order.
    rows = rows[np.argsort(-answers[rows], kind="stable")]
    frame, times, blocks = held.frame[rows], held.times[rows], held.blocks[rows]
    part = HeldOut(frame, times, labels[rows], answers[rows], blocks, metric, held.seed, held.least)
    cut_by = chosen(frame, segments, features, hidden)
    is_class = metric.task == "classification"
    off = 0 if is_class else 1
    return Diagnosis(
        metric.name,
        metric(labels, answers),
        float(labels.mean()),
        importance(part, predict, features),
        {name: by_group(part, *_segment(frame[name])) for name in cut_by},
        by_group(part, *_stretches(times, held.least)),
        by_group(part, *_bins(part.predictions), lambda y, said, w: average(y - off * said, w)),
        curves(labels, answers, held.fewest)
        if is_class
        else {"residuals": histogram(labels - answers, held.fewest)},
        [*learning],
    )


def histogram(values: Values, fewest: int = 0) -> Points:
    """Where each cell begins and its rows, the last one the end; the outermost take in what lies beyond.

    Cells of fewer rows than `fewest` are shown as empty.

    >>> histogram(np.array([0.0, 1.0, 1.0]))[-2:]
    [(0.97525..., 2.0), (1.0, 0.0)]
    """
    low, high = np.quantile(values, [TAIL, 1 - TAIL])
    # Cells of rounding errors are none.
    room = (abs(low) or 1.0) / 2 if high - low <= 1e-9 * max(abs(low), abs(high)) else 0.0
    counts, edges = np.histogram(values.clip(low, high), CELLS, (low - room, high + room))
    counts[counts < fewest] = 0
    return list(zip(edges.tolist(), [*counts.astype(float).tolist(), 0.0], strict=True))


def curves(labels: Values, answers: Values, fewest: int = 0) -> dict[str, Points]:
    """The ROC curve, from (0, 0) to (1, 1), and precision by recall, the surest answers first.

    They begin where `fewest` rows are told of.
    """
    order = np.argsort(-answers, kind="stable")
    last = np.flatnonzero(np.diff(answers[order], append=-np.inf))
    last = last[last + 1 >= min(fewest, len(answers))]
    said, hits = last + 1.0, np.cumsum(labels[order])[last]
    recall, alarms = hits / max(hits[-1], 1), (said - hits) / max(said[-1] - hits[-1], 1)
    kept = np.unique(np.linspace(0, len(last) - 1, POINTS).round().astype(np.int64))

    def points(x: Values, y: Values) -> Points:
        return list(zip(x[kept].tolist(), y[kept].tolist(), strict=True))

    return {"roc": [(0.0, 0.0), *points(alarms, recall)], "precision_recall": points(recall, hits / said)}


def importance(held: HeldOut, predict: Predict, features: Sequence[str]) -> list[Figure]:
    """By how much the metric worsens where a column is shuffled, the most important first.

    Permutation importance (Breiman, "Random Forests", 2001), on a sample of the rows. What another column
    tells as well is not missed.
    """
    random, metric = np.random.default_rng(held.seed), held.metric
    count = min(max(MOST_SHUFFLED // max(len(features), 1), LEAST), MOST_ROWS, len(held.labels))
    rows = random.choice(len(held.labels), count, replace=False)
    frame, labels, found = held.frame.select(features)[rows], held.labels[rows], []
    whole = metric.loss(metric(labels, predict(frame)))
    times = max(1, min(SHUFFLES, MOST_SHUFFLES // max(len(features), 1)))
    for name in features[:MOST_SHUFFLES]:
        mixed = (frame.with_columns(frame[name][random.permutation(count)]) for _ in range(times))
        worse = [metric.loss(metric(labels, predict(each))) - whole for each in mixed]
        found.append(Figure(name, float(np.mean(worse)), min(worse), max(worse), count))
    return sorted((each for each in found if np.isfinite(each.value)), key=lambda each: -each.value)


def _segment(column: pl.Series) -> tuple[Rows, list[str]]:
    """The segment of each row, and what they are called: numbers in their order, others by their rows."""
    counted = column.alias("value").value_counts(name="rows").sort("rows", "value", descending=[True, False])
    kept = counted["value"][:MOST_VALUES]
    values = (kept.sort(nulls_last=True) if column.dtype.is_numeric() else kept).to_list()
    places = {value: place for place, value in enumerate(values)}
    rows = np.array([places.get(value, len(values)) for value in column.to_list()], np.int64)
    return rows, [*(MISSING if value is None else str(value) for value in values), OTHERS]


def _stretches(times: Instants, least: int) -> tuple[Rows, list[str]]:
    """The stretch of time of each row, and when each begins; as many as have rows enough on average."""
    count = max(1, min(STRETCHES, len(times) // (2 * least)))
    edges = np.linspace(int(times.min()), int(times.max()) + 1, count + 1).astype(np.int64)
    places = np.searchsorted(edges, times, side="right") - 1
    return places, [from_micros(edge).isoformat() for edge in edges[:-1].tolist()]


def _bins(answers: Values) -> tuple[Rows, list[float]]:
    """The bin of each row, equally many rows in each and equal ones together; the mean answer of each."""
    bins = BINS * np.searchsorted(np.sort(answers), answers, side="left") // len(answers)
    sums, rows = np.bincount(bins, answers, minlength=BINS), np.bincount(bins, minlength=BINS)
    return bins, (sums / np.maximum(rows, 1)).tolist()


def by_group(held: HeldOut, groups: Rows, names: Names, function: Function | None = None) -> list[Figure]:
    """The metric, or another function, of each group of rows of which it says something, in their order."""
    says = function or held.metric
    places = {str(place): np.flatnonzero(groups == place) for place in range(len(names))}
    parts = {place: rows for place, rows in places.items() if len(rows) >= held.least}

    def figures(weights: Values) -> dict[str, float]:
        return {n: says(held.labels[r], held.predictions[r], weights[r]) for n, r in parts.items()}

    spans = bootstrap.intervals(held.blocks, held.seed, figures, DRAWS)
    values = {place: value for place, value in figures(np.ones(len(groups))).items() if np.isfinite(value)}
    return [Figure(names[int(n)], value, *spans[n], len(parts[n])) for n, value in values.items()]


def learning(rows: Rows, fit_score: Callable[[Rows], tuple[float, float]], seed: int) -> list[Learned]:
    """What is learned from a fifth of these rows, from two fifths, …, each share within the next.

    Of very many rows some are taken first. `fit_score` fits on rows and gives the metric on them and on
    validation rows.
    """
    mixed = np.random.default_rng(seed).permutation(rows)[:MOST_LEARNED]
    learned = []
    for share in SHARES:
        part = np.sort(mixed[: round(share * len(mixed))])
        try:
            learned.append((len(part), *fit_score(part)))
        except Exception as error:  # noqa: BLE001 - what cannot be learned from so few rows is no point
            logger.info("nothing was learned from %s rows: %s", len(part), type(error).__name__)
    return learned
