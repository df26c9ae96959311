"""Do whole rows look like the reference's? What columns have to do with each other may change while each of
them stays as it was.

A model learns on one half of the rows to tell the window's from the reference's, and is asked about the other
half (Lopez-Paz and Oquab 2017, Revisiting classifier two-sample tests, ICLR). Of a row of each it takes the
right one for the window's as often as its AUC says: half of the time where nothing differs. It is for rows
that could change places; those of entities in the course of time differ by the hour.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

from mlops_ray.data import prediction_log
from mlops_ray.errors import MlopsError, safe
from mlops_ray.monitoring import known, logged
from mlops_ray.monitoring.alarms import Finding
from mlops_ray.monitoring.drift import EFFECT_FLOOR
from mlops_ray.registry.encoder import Matrix, Values
from mlops_ray.registry.package import Package

#: What a finding is about; no column is called so, which a request could name.
ABOUT = "whole rows"
#: A side says nothing before so many rows: half of them teach, half are asked about.
MIN_ROWS = 200
#: Rows of a side, and columns of the matrix, that are looked at: it takes a few seconds at most.
MOST_ROWS, MOST_COLUMNS = known.MOST_ROWS, 200
#: Small trees; a leaf weighs as much as 40 rows of the smaller side (each counts 1/4): fewer would be learned
#: by heart.
CLASSIFIER = {
    "objective": "binary:logistic",
    "tree_method": "hist",
    "max_depth": 3,
    "max_bin": 64,
    "eta": 0.1,
    "min_child_weight": 10,
    "nthread": 1,
    "seed": 0,
}
ROUNDS = 50
#: Pairs of columns of which the model is told what they do together.
MOST_PAIRS = 30
#: Columns that are named.
NAMED = 2
#: How many times as likely as beyond a normal distribution's end a sum of coins is beyond it, at most.
COINS = 1 / (4 * ndtr(-math.sqrt(2)))

#: Of the reference, and of the window.
Both = tuple[Matrix, Matrix]

logger = logging.getLogger(__name__)


def findings(
    package: Package, learned_from: pl.DataFrame, names: Sequence[str], features: pl.DataFrame
) -> list[Finding]:
    """Whether the rows of a window differ from those that a version was made from (`known.learned`).

    `features` are of the log's rows, whose columns are called `names`. Features that only tell the time are
    left out, and those that the log does not have.
    """
    encoder = logged.encoder(package, names)
    try:
        window = prediction_log.spread(features.lazy(), MOST_ROWS)
        sides = (each.select(part.name for part in encoder.parts) for each in (learned_from, window))
        ours, theirs = (encoder.transform(known.whole(each, package)) for each in sides)
        found = finding(ours, theirs, [part.name for part in encoder.parts for _ in part.names])
    except (MlopsError, OSError, ValueError, pl.exceptions.PolarsError) as error:
        # What can be known of the rest is not held up.
        logger.error("whether whole rows of %s differ is not known (%s)", package.name, safe(error))
        return []
    return [] if found is None else [found]


def finding(reference: Matrix, window: Matrix, names: Sequence[str], seed: int = 0) -> Finding | None:
    """Whether rows of a window are told from the reference's; `None` where either has too few, or no column.

    Both are encoded; `names` has the feature of each column of the matrix. The same rows give the same
    answer. Of rows that could change places `p` is never too small, however few they are. `harm` is the PSI
    of a normal column by which alone rows are told apart as well: it moves by d deviations where the AUC is
    Φ(d / √2), and its PSI is d². So the floor is that of a column, an AUC of 0.54.
    """
    if min(len(reference), len(window)) < MIN_ROWS or not names:
        return None
    taught, asked = _halves(reference, window, seed)
    inputs = _Inputs.of(*taught)
    scores, gains = learned(
        [inputs.of_rows(each) for each in taught], [inputs.of_rows(each) for each in asked]
    )
    ranks = rankdata(np.concatenate(scores))
    pairs = len(ranks) // 2
    further = ranks[pairs:] - ranks[:pairs]
    auc = 0.5 + float(further.sum()) / (2 * pairs**2)
    harm = _as_psi(auc, pairs)
    said = f"rows are told from the reference's with an AUC of {auc:.2f}"
    by = _most(gains, [[names[at] for at in made_of] for made_of in inputs.made_of])
    evidence = f"{said}, by {' and '.join(by)} first of all" if by else said
    return Finding(ABOUT, "joint", p_value(further), harm > EFFECT_FLOOR, evidence, harm)


def p_value(further: Values) -> float:
    """How likely the sum of these numbers is as large, were the sign of each a coin's; never too small.

    Where the rows of a pair could change places, which of both is the window's is a fair coin, whatever the
    model says of them. A sum of ± a is beyond x √(Σ a²) at most `COINS` times as often as a normal number is
    beyond x, however few and unequal the a are (Bentkus and Dzindzalieta 2015, A tight Gaussian bound for
    weighted sums of Rademacher random variables, Bernoulli 21, 1231-1237).

    >>> round(p_value(np.ones(2)), 6)  # both heads
    0.25
    """
    spread = math.sqrt(float(np.square(further).sum()))
    return min(1.0, float(COINS * ndtr(-further.sum() / spread))) if spread else 1.0


def _halves(reference: Matrix, window: Matrix, seed: int) -> tuple[Both, Both]:
    """The rows of both that teach, and those that are asked about, in pairs; which is which is drawn."""
    random = np.random.default_rng(seed)
    ours, theirs = (each[random.permutation(len(each))[:MOST_ROWS]] for each in (reference, window))
    pairs = min(len(ours), len(theirs)) // 2
    return (ours[pairs:], theirs[pairs:]), (ours[:pairs], theirs[:pairs])


@dataclass(frozen=True)
class _Inputs:
    """What the model is given: the columns `kept` of the matrix, and what `pairs` of these do together.

    Trees, which split by one column at a time, find it by luck where no column tells anything by itself.
    `known` are the values of each column, in order.
    """

    kept: npt.NDArray[np.int64]
    known: Matrix
    pairs: npt.NDArray[np.int64]

    @classmethod
    def of(cls, reference: Matrix, window: Matrix) -> Self:
        """Chosen on the rows that teach alone: the pairs whose rank correlations differ most."""
        rows = np.concatenate([reference, window])
        kept = liveliest(rows)
        alone = cls(kept, np.sort(rows[:, kept], axis=0), np.zeros((0, 2), np.int64))
        ours, theirs = (alone._ranks(each) for each in (reference, window))
        spread = np.sqrt((np.square(ours).mean(axis=0) + np.square(theirs).mean(axis=0)) / 2)
        moved = theirs.T @ theirs / len(theirs) - ours.T @ ours / len(ours)
        moved /= np.maximum(np.outer(spread, spread), 1e-12)
        first, second = np.triu_indices(len(kept), 1)
        most = np.argsort(-np.abs(moved[first, second]), kind="stable")[:MOST_PAIRS]
        return cls(kept, alone.known, np.column_stack([first[most], second[most]]))

    @property
    def made_of(self) -> list[list[int]]:
        """The columns of the matrix that each of the model's is made of."""
        alone = [[at] for at in self.kept.tolist()]
        return alone + [[int(self.kept[at]) for at in pair] for pair in self.pairs]

    def of_rows(self, rows: Matrix) -> Matrix:
        ranks = self._ranks(rows)
        return np.column_stack([rows[:, self.kept], ranks[:, self.pairs].prod(axis=2)]).astype(np.float32)

    def _ranks(self, rows: Matrix) -> Values:
        """Each value's rank among the known ones, from -1 to 1; 0 of a missing one."""
        found = np.zeros((len(rows), len(self.kept)))
        for at, column in enumerate(self.kept):
            values = rows[:, column]
            known = self.known[:, at][~np.isnan(self.known[:, at])]
            if len(known):
                below, up_to = (np.searchsorted(known, values, side) for side in ("left", "right"))
                found[:, at] = np.where(np.isnan(values), 0.0, (below + up_to) / len(known) - 1)
        return found


def liveliest(matrix: Matrix) -> npt.NDArray[np.int64]:
    """The columns that are looked at: of too many those in which most rows have something of their own."""
    if matrix.shape[1] <= MOST_COLUMNS:
        return np.arange(matrix.shape[1])
    values = np.nan_to_num(matrix, nan=np.inf)
    own = (values != np.quantile(values, 0.5, axis=0, method="lower")).sum(axis=0)
    return np.sort(np.argsort(-own, kind="stable")[:MOST_COLUMNS])


def learned(taught: Sequence[Matrix], asked: Sequence[Matrix]) -> tuple[list[Values], dict[int, float]]:
    """How much each row that is asked about looks like the window's, and what each column told of it.

    Of what teaches, the first are the reference's.
    """
    import xgboost

    sizes = [len(rows) for rows in taught]
    labels = np.repeat([0.0, 1.0], sizes)
    # Both sides weigh as much as the smaller.
    weights = np.repeat([min(sizes) / size for size in sizes], sizes)
    data = xgboost.DMatrix(np.concatenate(taught), labels, weight=weights, nthread=1)
    model: Any = xgboost.train(CLASSIFIER, data, num_boost_round=ROUNDS)
    scores = [model.predict(xgboost.DMatrix(rows, nthread=1), output_margin=True) for rows in asked]
    gains = model.get_score(importance_type="total_gain")
    return scores, {int(name.removeprefix("f")): gain for name, gain in gains.items()}


def _most(gains: dict[int, float], made_of: Sequence[Sequence[str]]) -> list[str]:
    """The features that told most, by all columns that are made of them."""
    told = {name: 0.0 for names in made_of for name in names}
    for at, gain in gains.items():
        for name in set(made_of[at]):
            told[name] += gain
    return [name for name in sorted(told, key=lambda name: -told[name])[:NAMED] if told[name]]


def _as_psi(auc: float, pairs: int) -> float:
    """The PSI of the normal column that moved as far; 0 where rows are told apart no better than by chance.

    >>> round(_as_psi(0.54, 2_500), 2), _as_psi(0.4, 2_500)
    (0.02, 0.0)
    """
    # However surely they are told apart, half a pair is not.
    most = 1 - 1 / (2 * pairs)
    return 2 * float(ndtri(min(max(auc, 0.5), most))) ** 2
