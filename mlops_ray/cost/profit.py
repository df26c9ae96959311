"""What a version earns: what its answers are worth, less what they cost; and whether another earns more.

    profit = predictions · value of one − (serving + training / its life + storage), a day

Versions are compared on the same rows, so that what both find hard or easy says nothing of them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
from scipy import stats

from mlops_ray import config
from mlops_ray.cost.prices import money
from mlops_ray.errors import DataError

#: How sure it is that a profit is no lower than its bound.
SURE = 0.95

Values = npt.NDArray[np.float64]
Matrix = tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Worth:
    """What an answer is worth, in `currency`: `each`, less what its error costs.

    That is `per_error` for each unit between prediction and label, or what `matrix` says, by what is (rows)
    and what was said (columns), no before yes.
    """

    currency: str
    each: float = 0.0
    per_error: float = 0.0
    matrix: Matrix | None = None

    @classmethod
    def of(cls, cost: config.Cost) -> Self | None:
        """As a project says; `None` where it says nothing."""
        each = cost.value_per_prediction
        error, matrix = (cost.value.per_unit_of_error, cost.value.matrix) if cost.value else (None, None)
        said = each or error or matrix
        if said is None:
            return None
        amounts = each.amount if each else 0.0, error.amount if error else 0.0
        return cls(said.currency, *amounts, matrix.costs if matrix else None)

    def rows(self, labels: Values, predictions: Values, threshold: float | None = None) -> Values:
        """The worth of each answer; of a classification by what it says at the threshold.

        >>> Worth("EUR", each=1.0, per_error=0.5).rows(np.array([3.0]), np.array([2.0])).tolist()
        [0.5]
        >>> alarm = Worth("EUR", matrix=((0, 1), (10, 0)))
        >>> alarm.rows(np.array([0.0, 1.0]), np.array([0.9, 0.1]), threshold=0.5).tolist()
        [-1.0, -10.0]
        """
        found = errors(labels, predictions, threshold)
        return np.asarray(self.each - found @ self.prices(found.shape[1]), np.float64)

    def prices(self, kinds: int) -> Values:
        """What each of so many kinds of `errors` costs; raises `DataError` where they are of the others."""
        said = [cost for row in self.matrix for cost in row] if self.matrix else [self.per_error]
        if not any(said):
            return np.zeros(kinds)
        if len(said) == kinds:
            return np.array(said, np.float64)
        if self.matrix:
            raise DataError("a matrix of costs is of yes and no: it takes a threshold")
        raise DataError("an amount for each unit of error is of numbers, and not of yes and no")

    def mean(self, metrics: Mapping[str, float]) -> float:
        """The worth of an answer on average, of a version with these metrics (`mae`, or those of decisions).

        Raises `DataError` where they do not tell it.

        >>> round(Worth("EUR", each=1.0, per_error=0.5).mean({"mae": 0.4}), 9)
        0.8
        """
        lost = self.per_error * _metric(metrics, "mae") if self.per_error else 0.0
        if self.matrix is not None:
            shares = confusion(*(_metric(metrics, name) for name in ("accuracy", "precision", "recall")))
            lost = sum(
                s * c
                for row, costs in zip(shares, self.matrix, strict=True)
                for s, c in zip(row, costs, strict=True)
            )
        return self.each - lost


def errors(labels: Values, predictions: Values, threshold: float | None) -> Values:
    """What is wrong with each answer, a column for each kind: how far it is from the label.

    With a threshold it is which of the four answers to yes and no it is, as `Worth.matrix` has them in order.

    >>> errors(np.array([3.0]), np.array([2.0]), None).tolist()
    [[1.0]]
    >>> errors(np.array([0.0, 1.0]), np.array([0.9, 0.1]), 0.5).tolist()
    [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]
    """
    if threshold is None:
        return np.asarray(np.abs(predictions - labels)[:, None], np.float64)
    kind = 2 * (labels > 0) + (predictions >= threshold)
    return np.asarray(kind[:, None] == np.arange(4), np.float64)


def _metric(metrics: Mapping[str, float], name: str) -> float:
    value = metrics.get(name, math.nan)
    if not math.isfinite(value):
        raise DataError(f"the version's {name} is not known, so neither is what its answers are worth")
    return value


def confusion(accuracy: float, precision: float, recall: float) -> Matrix:
    """The shares of answers by what is (rows) and what was said (columns), no before yes.

    With p the share of yes, recall r and precision q, hits are r·p and false alarms r·p·(1 / q − 1), so that
    1 − accuracy = p·(1 − r) + r·p·(1 / q − 1). Raises `DataError` where that does not tell p.

    Of ten rows are three yes, two of which are found, with one false alarm:

    >>> [[round(share, 9) for share in row] for row in confusion(0.8, 2 / 3, 2 / 3)]
    [[0.6, 0.1], [0.1, 0.2]]
    """
    wrong = 1 - recall + recall * (1 / precision - 1) if precision > 0 else 0.0
    if wrong <= 0:
        raise DataError("accuracy, precision and recall do not tell how many answers of each kind there are")
    real = (1 - accuracy) / wrong
    hits, alarms = recall * real, recall * real * (1 / precision - 1)
    return (1 - real - alarms, alarms), (real - hits, hits)


@dataclass(frozen=True)
class Costs:
    """What a version costs: `serving` and `storage` a day, and once its `training`, for `life_days`."""

    serving: float
    training: float = 0.0
    life_days: float = 30.0
    storage: float = 0.0

    @property
    def per_day(self) -> float:
        """
        >>> Costs(serving=4.0, training=60.0, life_days=30, storage=0.5).per_day
        6.5
        """
        return self.serving + self.training / self.life_days + self.storage


def profit(predictions: float, worth: float, costs: Costs) -> float:
    """What a version earns a day with so many predictions of a mean worth.

    >>> profit(10_000, 0.001, Costs(serving=4.0))
    6.0
    """
    return predictions * worth - costs.per_day


def break_even_price(predictions: float, lost: float, costs: Costs) -> float:
    """What a prediction must bring so that nothing is lost, where errors cost `lost` each on average.

    4 EUR a day over 10,000 predictions, whose errors cost 0.0001 EUR each:

    >>> round(break_even_price(10_000, 0.0001, Costs(serving=4.0)), 9)
    0.0005
    """
    return lost + (costs.per_day / predictions if predictions else math.inf)


def break_even_volume(worth: float, costs: Costs) -> float:
    """From how many predictions a day on it earns, at the same costs; infinite where they are worth nothing.

    >>> round(break_even_volume(0.001, Costs(serving=4.0)), 6), break_even_volume(0.0, Costs(4.0))
    (4000.0, inf)
    """
    return costs.per_day / worth if worth > 0 else math.inf


# ---------------------------------------------------------------- the gate


class Difference(NamedTuple):
    """By how much a candidate's answers are worth more on average than the champion's, and how sure that is.

    `error` is the standard error, with so many degrees of `freedom`.
    """

    mean: float
    error: float
    freedom: float

    def at_least(self) -> float:
        """The one-sided lower bound, with confidence `SURE`, by Student's distribution."""
        return self.mean - float(stats.t.ppf(SURE, self.freedom)) * self.error if self.error else self.mean


@dataclass(frozen=True)
class Compared:
    """Errors of a candidate's and the champion's answers to the same rows, whatever they cost.

    Of each kind (`errors`) there are so many on average of `theirs`, the champion's, and so many `more` of
    the candidate's; `spread` has the covariances of those means, with so many degrees of `freedom`.
    """

    theirs: tuple[float, ...]
    more: tuple[float, ...]
    spread: tuple[tuple[float, ...], ...]
    freedom: float

    @classmethod
    def paired(cls, ours: Values, theirs: Values, blocks: npt.NDArray[np.integer] | None = None) -> Self:
        """Of the `errors` of both answers to the same rows; rows of one block depend on each other.

        The spread is that of means of clusters (Liang and Zeger, "Longitudinal data analysis using
        generalized linear models", 1986). Raises `DataError` for fewer than two rows or blocks, or what is
        no number.

        >>> ours, theirs = np.array([[2.0], [3.0], [4.0]]), np.array([[1.0], [1.0], [1.0]])
        >>> Compared.paired(ours, theirs).difference(Worth("EUR", per_error=1.0))
        Difference(mean=-2.0, error=0.577..., freedom=2)
        """
        more = ours - theirs
        if not np.isfinite(more).all():
            raise DataError("how wrong an answer is is no number: its profit cannot be told")
        groups = np.arange(len(more)) if blocks is None else np.unique(blocks, return_inverse=True)[1]
        count = int(groups.max()) + 1 if len(more) else 0
        if count < 2:
            raise DataError(f"{count} rows or blocks of them are too few to tell whose profit is larger")
        sums = np.array([np.bincount(groups, kind - kind.mean()) for kind in more.T])
        spread = count / (count - 1) * (sums @ sums.T) / len(more) ** 2
        beside, difference = (tuple(each.mean(axis=0).tolist()) for each in (theirs, more))
        return cls(beside, difference, tuple(map(tuple, spread.tolist())), count - 1)

    def difference(self, worth: Worth) -> Difference:
        """By how much the candidate's answers are worth more; raises `DataError` as `Worth.prices` does."""
        prices = worth.prices(len(self.more))
        error = math.sqrt(max(0.0, float(prices @ self.spread @ prices)))
        return Difference(-float(prices @ self.more), error, self.freedom)

    def champions(self, worth: Worth) -> float:
        """What an answer of the champion's is worth on average."""
        return worth.each - float(worth.prices(len(self.theirs)) @ self.theirs)


@dataclass(frozen=True)
class Version:
    """A version on both sides of the gate: what it is called, what its answers are worth, and its costs."""

    name: str
    worth: float
    costs: Costs


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate is refused, and why in a sentence; amounts are of a day.

    `more` is its profit over the champion's, at least `least` with confidence `SURE`; less than −`allowed`
    is refused.
    """

    refused: bool
    said: str
    more: float
    least: float
    allowed: float


def gate(
    candidate: Version,
    champion: Version,
    difference: Difference,
    predictions: float,
    currency: str,
    margin: float = 0.01,
) -> Verdict:
    """Whether a candidate may take the champion's place by what it earns with so many predictions a day.

    It is refused where the lower bound of its profit over the champion's is below −`margin` of the champion's
    profit (of its loss, where it makes one).

    At 10,000 predictions a day an answer is worth 0.0001 EUR more, 1 EUR a day; four times the machine costs
    6 EUR more:

    >>> better, four = Difference(0.0001, 0.0, 99), Costs(serving=8.0)
    >>> gate(Version("2", 0.0021, four), Version("1", 0.002, Costs(2.0)), better, 10_000, "EUR").said
    'version 2 earns 5 EUR a day less than version 1:
     its answers are worth 1 EUR more, and it costs 6 EUR more'
    """
    worth, costs = predictions * difference.mean, candidate.costs.per_day - champion.costs.per_day
    more, least = worth - costs, predictions * difference.at_least() - costs
    allowed = margin * abs(profit(predictions, champion.worth, champion.costs))
    # What both are equal in must not be refused for the last digit of a sum.
    refused = least < -allowed - 1e-9 * max(abs(worth), abs(costs), allowed)
    said = (
        f"version {candidate.name} earns {_more(more, currency, 'a day ')} than version {champion.name}: its "
        f"answers are worth {_more(worth, currency)}, and it costs {_more(costs, currency)}"
    )
    if difference.error:
        said += (
            f"; with {SURE:.0%} confidence it earns at least {_more(least, currency)}, "
            f"and {money(allowed, currency)} less {'would be' if refused else 'is'} allowed"
        )
    return Verdict(refused, said, more, least, allowed)


def _more(amount: float, currency: str, per: str = "") -> str:
    return f"{money(abs(amount), currency)} {per}{'less' if amount < 0 else 'more'}"
