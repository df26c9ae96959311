"""The point-in-time join over histories: features of each row as they were at its P = T - horizon.

Buckets of a history meet the rows of the spine whose keys lie in them; a bucket too large for the memory
given is taken in slices of time. Each such piece is one task, here or on Ray: the same function of plain
data, so that the answer depends neither on where it runs nor on how it was cut.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise

import numpy as np
import polars as pl

from mlops_ray.errors import ClusterError, one_line
from mlops_ray.features.commits import buckets_of
from mlops_ray.features.definitions import FeatureSet, Stored
from mlops_ray.features.history import Snapshot, read
from mlops_ray.features.lookup import Values, assemble, check_keys, read_features
from mlops_ray.features.resample import EVENT_TIME, KNOWN_AT, UNTIL
from mlops_ray.features.windows import Positions
from mlops_ray.instants import EARLIEST, LATEST, MICROSECOND

#: Rows of a history that one task holds at most: some hundred megabytes.
ROWS_A_TASK = 4_000_000
#: Rows that a task should have, to be worth its fixed cost; small buckets share one.
ROWS_WORTH_A_TASK = 400_000
#: Histories with more rows than this are joined on Ray, where a cluster is connected.
ROWS_IN_PROCESS = 50_000_000
#: Rows that are looked at to find where a large bucket is cut.
SAMPLE = 100_000

Interval = tuple[datetime, datetime]


def join(
    spine: pl.DataFrame,
    snapshots: Mapping[str, Snapshot],
    features: FeatureSet,
    *,
    on_ray: bool | None = None,
    selector: Mapping[str, str] | None = None,
    rows_a_task: int = ROWS_A_TASK,
    on_node: Callable[[str], object] = lambda node: None,
) -> pl.DataFrame:
    """One row a spine row, in the spine's order, with the columns `features.names`.

    `spine` has the columns of `features.request`; `snapshots` are the histories by source. Unknown and null
    keys give nulls. On Ray where `on_ray`, or, where that is not said, where the histories are large and a
    cluster is connected; `selector` names the nodes that may read them (policy.py), and `on_node` hears the
    ids of those that did, again and again. No task holds much more than `rows_a_task` rows of a history.
    Raises `DataError` where the type of a key differs between the two.
    """
    pieces = [
        piece
        for view, _, wanted in features.reads
        for piece in cut(spine, snapshots[view.source], wanted, features, rows_a_task)
    ]
    if on_ray is None:
        on_ray = sum(snapshot.rows for snapshot in snapshots.values()) > ROWS_IN_PROCESS and _is_connected()
    answers = (
        _on_ray(pieces, features, selector or {}, on_node)
        if on_ray
        else (answer(p, features) for p in pieces)
    )
    parts: dict[str, list[Values]] = {}
    places: dict[str, list[Positions]] = {}
    for piece, found in zip(pieces, answers, strict=True):
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
            places.setdefault(name, []).append(piece.rows)
    stored = {name: _in_order(parts[name], places[name]) for name in parts}
    return assemble(spine, stored, features)


def _in_order(parts: list[Values], places: list[Positions]) -> Values:
    """Values of the pieces at the places of their rows."""
    order = np.concatenate(places)
    if isinstance(parts[0], np.ndarray):
        whole = np.empty(len(order))
        whole[order] = np.concatenate(parts)
        return whole
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return pl.concat([part for part in parts if isinstance(part, pl.Series)]).gather(back)


def _on_ray(
    pieces: Iterable["Piece"],
    features: FeatureSet,
    selector: Mapping[str, str],
    on_node: Callable[[str], object],
) -> Iterator[dict[str, Values]]:
    import ray

    from mlops_ray import placement

    placement.require_room(selector, {"CPU": 1})
    task = ray.remote(_placed).options(
        num_cpus=1, name=answer.__name__, label_selector=dict(selector) or None
    )
    shared = ray.put(features)
    references = [task.remote(piece, shared) for piece in pieces]
    for reference in references:
        try:
            node, found = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            # What went wrong there, in its own words, not Ray's account of it.
            raise error.cause from error
        except ray.exceptions.RayError as error:
            raise ClusterError(f"a task of the join was lost: {one_line(error)[:200]}") from error
        on_node(node)
        yield found


def _placed(piece: "Piece", features: FeatureSet) -> tuple[str, dict[str, Values]]:
    """What a task of the join answers, and the id of the node that it ran on."""
    from mlops_ray import placement

    return placement.here(), answer(piece, features)


def _is_connected() -> bool:
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


# ---------------------------------------------------------------- pieces of work


@dataclass(frozen=True)
class Piece:
    """A task: rows of the spine, and the buckets, or the slice of one bucket, that they can see.

    `spine` has the keys and the target time, `rows` are the places of its rows in the whole. `edges` cut a
    bucket's time into slices, up to this one: its moments of prediction lie in (edges[-2], edges[-1]], or
    before where it is the first and after where it is the last. Empty where buckets are taken whole.
    """

    spine: pl.DataFrame
    rows: Positions
    snapshot: Snapshot
    buckets: tuple[int, ...]
    wanted: tuple[Stored, ...]
    edges: tuple[datetime, ...] = ()
    #: The keys of the buckets with the event time of their first row, where an older slice may be asked.
    begins: pl.DataFrame | None = None

    @property
    def is_unbounded(self) -> bool:
        """Whether a feature may read a row of any age."""
        return any(feature.is_unbounded for feature in self.wanted)

    def read(self, strict: bool, between: Interval | None = None) -> pl.DataFrame:
        columns = {feature.of for feature in self.wanted}
        return read(self.snapshot, self.buckets, columns=sorted(columns), strict=strict, between=between)


def answer(piece: Piece, features: FeatureSet) -> dict[str, Values]:
    """The features of a piece, by name: one value a row of its spine, in its order."""
    table = _slice(piece, features) if piece.edges else piece.read(features.strict)
    return read_features(piece.spine, table, piece.snapshot.view, piece.wanted, features)


def cut(
    spine: pl.DataFrame,
    snapshot: Snapshot,
    wanted: tuple[Stored, ...],
    features: FeatureSet,
    rows_a_task: int = ROWS_A_TASK,
) -> Iterator[Piece]:
    """The pieces that together read these features, of the same keys, once for every row of the spine."""
    keys, on = snapshot.view.keys, wanted[0].on
    asked = spine.select(features.time, *on)
    bucket = buckets_of(asked.with_columns(_as_keys(on, keys)), keys).to_numpy()
    # A key in a bucket without rows is unknown, wherever it is looked up.
    some = next(iter(snapshot.buckets))
    bucket = np.where(np.isin(bucket, list(snapshot.buckets)), bucket, some)
    for buckets in _groups(snapshot, min(rows_a_task, ROWS_WORTH_A_TASK)):
        rows = np.flatnonzero(np.isin(bucket, buckets))
        whole = Piece(asked[rows], rows, snapshot, buckets, wanted)
        total = sum(snapshot.buckets[b].rows for b in buckets)
        slices = -(-total // rows_a_task)
        yield from _sliced(whole, features, slices, total) if slices > 1 else [whole]


def _as_keys(on: Sequence[str], keys: Sequence[str]) -> list[pl.Expr]:
    """The columns of a spine that hold keys, called as in the table."""
    return [pl.col(name).alias(key) for name, key in zip(on, keys, strict=True)]


def _groups(snapshot: Snapshot, rows: int) -> Iterator[tuple[int, ...]]:
    """Buckets, next to each other as long as they have at most so many rows together."""
    group: list[int] = []
    total = 0
    for number, bucket in snapshot.buckets.items():
        if group and total + bucket.rows > rows:
            yield tuple(group)
            group, total = [], 0
        group.append(number)
        total += bucket.rows
    if group:
        yield tuple(group)


def _sliced(whole: Piece, features: FeatureSet, slices: int, total: int) -> Iterator[Piece]:
    """A piece that reads so many rows, cut so that each has about as many rows of the history."""
    files = [file for b in whole.buckets for file in whole.snapshot.buckets[b].files]
    history = pl.scan_parquet(files, hive_partitioning=False, glob=False)
    sample = history.select(EVENT_TIME).gather_every(max(1, total // SAMPLE)).collect()[EVENT_TIME].sort()
    inner = [sample[len(sample) * i // slices] for i in range(1, slices)]
    edges = sorted({EARLIEST, *inner, sample[-1]})
    first = pl.col(EVENT_TIME).min().alias("_begin")
    of_keys = history.group_by(*whole.snapshot.view.keys, _all=pl.lit(0)).agg(first)
    begins = of_keys.collect(engine="streaming") if whole.is_unbounded else None
    moment = whole.spine[features.time] - timedelta(microseconds=features.horizon_us)
    last = len(edges) - 2
    place = pl.Series(edges).search_sorted(moment, side="left").to_numpy().astype(np.int64) - 1
    place = np.clip(place, 0, last)
    for number in range(last + 1):
        rows = np.flatnonzero(place == number)
        # A spine without rows has features too, of no rows.
        if len(rows) or (whole.spine.is_empty() and number == last):
            ends = (*edges[: number + 1], edges[number + 1] if number < last else LATEST)
            yield replace(whole, spine=whole.spine[rows], rows=whole.rows[rows], edges=ends, begins=begins)


def _slice(piece: Piece, features: FeatureSet) -> pl.DataFrame:
    """The rows that a slice's features can see: those in reach, and for latest values the newest before."""
    reach = timedelta(microseconds=max(features.reach_us(feature) for feature in piece.wanted)) + MICROSECOND
    begin, end = piece.edges[-2:]
    edge = max(begin, EARLIEST + reach) - reach if len(piece.edges) > 2 else EARLIEST
    table = piece.read(features.strict, (edge, end))
    check_keys(piece.spine, table, piece.wanted[0].on, piece.snapshot.view.keys)
    if not piece.is_unbounded:
        return table
    view = piece.snapshot.view
    order = [name for name in (*view.keys, EVENT_TIME, view.row_id, KNOWN_AT) if name in table.columns]
    return pl.concat([table, *_older(piece, features, edge)]).sort(order)


def _older(piece: Piece, features: FeatureSet, edge: datetime) -> Iterator[pl.DataFrame]:
    """Of each key of the piece the newest row up to `edge` that is in force ever after, and what follows."""
    # Slices are read backwards until every key has one; never more than one is held.
    keys = piece.snapshot.view.keys
    # A table without keys is one series; a constant stands for its key.
    everywhere = pl.lit(0).alias("_all")
    by = ["_all", *keys]
    assert piece.begins is not None
    # A key that has nothing so old is not looked for.
    older = piece.begins.filter(pl.col("_begin") <= edge)
    pending = piece.spine.select(everywhere, *_as_keys(piece.wanted[0].on, keys)).unique()
    pending = pending.join(older, on=by, how="semi")
    for begin, end in reversed(list(pairwise(piece.edges))):
        if begin >= edge or pending.is_empty():
            continue
        rows = piece.read(features.strict, (begin, min(end, edge))).with_columns(everywhere)
        rows = rows.join(pending, on=by, how="semi", maintain_order="left")
        lasting = pl.col(UNTIL).is_null() & (pl.col(KNOWN_AT) <= edge) if features.strict else pl.lit(True)
        anchors = rows.filter(lasting).group_by(by).agg(pl.col(EVENT_TIME).max().alias("_anchor"))
        after = (pl.col(EVENT_TIME) >= pl.col("_anchor")).fill_null(True)
        yield rows.join(anchors, on=by, how="left").filter(after).drop("_all", "_anchor")
        pending = pending.join(anchors, on=by, how="anti")
