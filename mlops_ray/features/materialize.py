"""Brings the online store up to what the history knows."""

from collections.abc import Mapping
from datetime import datetime

import polars as pl

from mlops_ray.errors import StorageError
from mlops_ray.features.commits import buckets_of
from mlops_ray.features.definitions import FeatureSet
from mlops_ray.features.history import Snapshot, changed_since, clock, read
from mlops_ray.features.online import About, OnlineStore
from mlops_ray.features.resample import UNTIL
from mlops_ray.instants import EARLIEST, LATEST, from_micros, to_micros

#: How often a writer tries again that another came before; each time it wants what that one keeps as well.
TRIES = 10
#: How much longer rows are kept than the newest moment's features need, in microseconds: with no horizon, a
#: back-load could otherwise be asked for its watermark alone. A day, since many sources come daily.
GRACE_US = 24 * 3_600_000_000


class OvertakenError(StorageError):
    """The store is of a later commit, and does not hold what is wanted."""


def materialize(
    store: OnlineStore, features: FeatureSet, snapshots: Mapping[str, Snapshot]
) -> dict[str, datetime]:
    """Takes in what the histories, by source, learned since the last time; returns `store.watermarks`.

    Only entities with new rows are written. What another version still reads stays: a store never keeps less
    than it did. One that cannot be read, being damaged or of another format, is written anew. Raises
    `OvertakenError`, or `StorageError` where others got in the way; try again.
    """
    clocks = {view.source: clock(snapshots[view.source]) for view in features.tables}
    for view in features.tables:
        _bring_up(store, snapshots[view.source], features, clocks)
    return store.watermarks(features)


def _bring_up(
    store: OnlineStore, snapshot: Snapshot, features: FeatureSet, clocks: Mapping[str, datetime]
) -> None:
    """Takes in what a history learned."""
    everything = to_micros(EARLIEST)
    since = to_micros(snapshot.as_of.committed_at)
    for _ in range(TRIES):
        old = store.renewable(snapshot.view)
        new = _about(snapshot, features, old, clocks)
        # What was written in vain, for less than another keeps, is written again.
        since = min(since, everything if old is None or _is_wider(new, old) else old.stamp)
        if store.write(snapshot.view, *_rows(snapshot, new, since), new, old):
            there = store.about(snapshot.view)
            if there is None or _is_wider(new, there):
                raise OvertakenError(
                    f"another wrote a later commit of {snapshot.view.source!r} to the online store, and less "
                    "of it than is wanted here; materialise again"
                )
            return
    raise StorageError(
        f"the online store is being written by others, who were faster {TRIES} times; try again"
    )


def _about(
    snapshot: Snapshot, features: FeatureSet, old: About | None, clocks: Mapping[str, datetime]
) -> About:
    """What the store will hold of a table."""
    # A request's moment of prediction lies up to a horizon before the last one that all tables know of, and
    # its features reach back from there. One microsecond more, since windows are open at their older end.
    view = snapshot.view
    wanted = features.of_table(view.source)
    # What was answered goes on being answered, though the usual step of a resampled source became shorter.
    watermark = max(to_micros(clocks[view.source]), old.watermark if old else to_micros(EARLIEST))
    # Live tables are asked up to now, however long ago they learned something; the clocks of back-loads hold.
    clocks_that_hold = [clocks[v.source] for v in features.tables if v.back_loaded]
    behind = max(0, watermark - to_micros(min(clocks_that_hold))) if clocks_that_hold else 0
    # A gap that grows with each commit must not have every record written again each time.
    behind = 1 << (behind - 1).bit_length() if behind else 0
    keep_us = behind + features.table_reach_us(view.source) + features.horizon_us + 1 + GRACE_US
    keep_us = max(keep_us, old.keep_us if old else 0)
    columns = {feature.of for feature in wanted} | set(old.columns if old else ())
    columns |= {UNTIL} if features.strict else set()
    return About(
        stamp=to_micros(min(snapshot.as_of.known_at, snapshot.as_of.committed_at)),
        watermark=watermark,
        oldest=max(watermark - keep_us, to_micros(EARLIEST)),
        columns=tuple(sorted(columns)),
        is_unbounded=any(f.is_unbounded for f in wanted) or (old is not None and old.is_unbounded),
        is_live=not view.back_loaded,
    )


def _is_wider(new: About, old: About) -> bool:
    """Whether records hold less than is now wanted of them."""
    return (
        not set(new.columns) <= set(old.columns)
        or new.keep_us > old.keep_us
        or (new.is_unbounded and not old.is_unbounded)
    )


def _rows(snapshot: Snapshot, about: About, since: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """All that the store keeps of the entities that learned something after the commit of `since`."""
    # And the keys of these entities: one that has no row any more, since all were deleted, is news too.
    view = snapshot.view
    oldest = from_micros(about.oldest)
    within = None if about.is_unbounded else (oldest, LATEST)
    strict = UNTIL in about.columns
    begin = from_micros(since)
    changed = changed_since(snapshot, begin)
    if begin == EARLIEST or not view.keys:
        return read(snapshot, columns=about.columns, strict=strict, between=within), changed
    buckets = buckets_of(changed, view.keys).unique().to_list() or [next(iter(snapshot.buckets))]
    rows = read(snapshot, buckets, columns=about.columns, strict=strict, between=within)
    return rows.join(changed, on=list(view.keys), how="semi", maintain_order="left"), changed
