"""What two versions that a release compares lose, by labels that come late.

The prediction log tells of a row that was compared in which turn of the release it was answered, and in which
bucket its routing key is. A request's figure is the mean loss of its labelled rows, in times the mean loss of
the champion's reference. In shadow the two answers to one request are compared. Labels that came before the
day of the push are of other requests, or of what was true before it was asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import polars as pl

from mlops_ray.data import labels, prediction_log
from mlops_ray.data.labels import BY_REQUEST, LABEL
from mlops_ray.data.prediction_log import ASKED, BUCKET, SHADOW, TURN
from mlops_ray.monitoring.comparison import Sums
from mlops_ray.monitoring.losses import OF_ROW, Losses
from mlops_ray.registry import package as packages
from mlops_ray.storage import Storage

#: A request loses at most so many times what the rows of the worst labels do: few requests decide nothing.
#: Of the worst labels, since of a rare yes nearly all of the loss may be.
MOST_LOSS = 10.0

#: Rows of the log since the push that are read: of more, those of a half, a quarter, ... of the requests.
MOST_ROWS = 2**21

_IS_COPY = pl.col("route") == SHADOW


class Scale(NamedTuple):
    """The loss that is compared, the reference's mean of it, and the most of a request, in such means."""

    loss: str
    mean: float
    most: float

    @classmethod
    def of(cls, losses: Losses) -> Self | None:
        """`None` of a reference without a loss: nothing is times that."""
        mean = float(np.array(losses.shares) @ np.array(losses.realised))
        return cls(losses.loss, mean, MOST_LOSS * max(losses.realised) / mean) if mean > 0 else None


class Compared(NamedTuple):
    """What is asked for: the comparison with this champion (its entry in the release), in turns after `turn`.

    The first of them began at `since`, seconds since the epoch.
    """

    model: str
    champion: Mapping[str, Any]
    turn: int
    since: float


@dataclass(frozen=True)
class Known:
    """The losses of champion and challenger in each turn, and the files that they were read from."""

    files: tuple[Path, ...] = ()
    steps: list[tuple[Sums, Sums]] = field(default_factory=list)


def read(storage: Storage, of: Compared, before: Known) -> Known:
    """What is known now; the same as `before` where no file has come since, or there is nothing to compare.

    Raises what cannot be read: `OSError`, `ValueError`, `MlopsError`, polars' errors.
    """
    told = labels.since(storage, of.model, of.since)
    paths = prediction_log.since(storage, of.model, of.since) if told else []
    files = (*told, *paths)
    if not paths or files == before.files:
        return before
    champion = of.champion
    scale = _scale(storage.root / champion["package"], champion["digest"])
    if scale is None:
        return Known(files)
    came = labels.scan(told)
    keys = {ASKED + name for frame in came for name in frame.collect_schema().names()}
    log = prediction_log.scan(paths, keys)
    some = _some(log.select(pl.len()).collect().item())
    named = [frame.filter(some) if "request_id" in frame.collect_schema() else frame for frame in came]
    known = [frame.collect(engine="streaming") for frame in named]
    return Known(files, losses(log.filter(some), known, champion["version"], scale, of.turn))


def _some(rows: int) -> pl.Expr:
    """Which requests are looked at, the same on both sides; of more rows it is a part of what it was."""
    parts = 1
    while rows > parts * MOST_ROWS:
        parts *= 2
    return pl.lit(True) if parts == 1 else pl.col("request_id").hash(0) % parts == 0


@lru_cache(maxsize=8)
def _scale(folder: Path, digest: str) -> Scale | None:
    """That of a package, which never changes; `None` where it says nothing of its loss."""
    expected = packages.read(folder, digest=digest).expected or {}
    found = expected.get("losses")
    return Scale.of(Losses.from_json(found)) if found else None


def losses(
    log: pl.LazyFrame, told: Sequence[pl.DataFrame], champion: str, scale: Scale, after: int
) -> list[tuple[Sums, Sums]]:
    """Of champion and challenger in each turn of the log `after` this one, by its rows that have a label."""
    every = (_requests(log.filter(of), told, scale) for of in (~_IS_COPY, _IS_COPY))
    answers, copies = (requests.filter(pl.col(TURN) > after) for requests in every)
    is_ours = pl.col("model_version") == champion
    ours, theirs = answers.filter(is_ours), answers.filter(~is_ours)
    found = [_apart(*_of_turn(turn, ours, theirs)) for turn in _turns(theirs)]
    return found + [_pairs(*_of_turn(turn, ours, copies)) for turn in _turns(copies)]


def _requests(log: pl.LazyFrame, told: Sequence[pl.DataFrame], scale: Scale) -> pl.DataFrame:
    """The `figure` of each labelled request, by turn, version and bucket."""
    about = (TURN, "model_version", BUCKET)
    rows = labels.labelled(log, told, about)
    # Callers name requests: of two that have one name nobody knows whose the answer is, be it that only one
    # of them is compared.
    rows = rows.unique(BY_REQUEST, keep="none", maintain_order=True)
    with np.errstate(over="ignore"):
        loss = OF_ROW[scale.loss](rows[LABEL].to_numpy(), rows["prediction"].to_numpy())
    figure = pl.Series("figure", np.minimum(loss / scale.mean, scale.most))
    # An answer that is no number is an error, and counts as one.
    known = rows.with_columns(figure).filter(pl.col("figure").is_finite())
    return known.group_by("request_id", *about, maintain_order=True).agg(pl.col("figure").mean())


def _turns(requests: pl.DataFrame) -> list[int]:
    turns: list[int] = requests[TURN].unique().sort().to_list()
    return turns


def _of_turn(turn: int, *sides: pl.DataFrame) -> list[pl.DataFrame]:
    return [side.filter(pl.col(TURN) == turn) for side in sides]


def _apart(*sides: pl.DataFrame) -> tuple[Sums, Sums]:
    """Each side's own requests."""
    ours, theirs = (Sums.of(side[BUCKET].to_numpy(), side["figure"].to_numpy()) for side in sides)
    return ours, theirs


def _pairs(ours: pl.DataFrame, theirs: pl.DataFrame) -> tuple[Sums, Sums]:
    """Both answers to one request: the champion's all lose their mean, from which the challenger's differ."""
    pairs = ours.join(theirs, on="request_id", suffix="_theirs")
    buckets, mine = pairs[BUCKET].to_numpy(), pairs["figure"].to_numpy()
    usual = np.full(len(mine), mine.mean() if len(mine) else 0.0)
    return Sums.of(buckets, usual), Sums.of(buckets, usual + pairs["figure_theirs"].to_numpy() - mine)
