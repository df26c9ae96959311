"""Writers at once lose nothing, and one that is killed leaves the old state or the new one."""

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from mlops_ray.errors import DataError
from mlops_ray.features.history import History
from mlops_ray.schema import INSTANT

from .writers import ROWS, SOURCE, VIEW, Writers, rows

COMMITS, KILLS = 30, 50


@pytest.fixture(scope="module")
def writers() -> Iterator[Writers]:
    with Writers.started() as started:
        yield started


def commits(folder: Path) -> pl.DataFrame:
    """The commits of a history in their order: whose, and which number of theirs; each must be whole."""
    try:
        snapshot = History.of(folder, VIEW).snapshot()
    except DataError:
        return pl.DataFrame(schema={"who": pl.String, "number": pl.Int64, "_known_at": INSTANT})
    files = [file for bucket in snapshot.buckets.values() for file in bucket.files]
    found = (
        pl.read_parquet(files, hive_partitioning=False)
        .group_by("_committed_at")
        .agg(
            pl.col("who").unique(),
            pl.col("number").unique(),
            pl.len(),
            pl.struct("k", "event_time").n_unique().alias("identities"),
            pl.col("_known_at").unique(),
            pl.col("_sequence").min().alias("first"),
            pl.col("_sequence").max().alias("last"),
        )
        .sort("_committed_at")
    )
    assert found["len"].to_list() == found["identities"].to_list() == [ROWS] * found.height
    assert found["_known_at"].list.len().unique().to_list() == [1]
    assert found["first"].to_list() == [ROWS * number for number in range(found.height)]
    assert (found["last"] - found["first"]).unique().to_list() == [ROWS - 1]
    return found.select(pl.col("who", "number").list.first(), pl.col("_known_at").list.first())


def test_two_writers_at_once_lose_nothing_and_commits_follow_one_another(
    writers: Writers, tmp_path: Path
) -> None:
    both = [{"do": "commit", "folder": str(tmp_path), "who": who, "count": COMMITS} for who in "ab"]
    merging = {"do": "maintain", "folder": str(tmp_path), "count": 10}
    assert writers.run(*both, merging)[:2] == [list(range(COMMITS))] * 2
    found = commits(tmp_path)
    for who in "ab":
        assert found.filter(pl.col("who") == who)["number"].to_list() == list(range(COMMITS))
    assert found.height == 2 * COMMITS
    assert found["_known_at"].is_unique().all()
    in_log = [entry for entry in DeltaTable(tmp_path / VIEW.table).history() if "mlops.commit" in entry]
    times = [entry["mlops.committed_at"] for entry in reversed(in_log)]
    assert times == sorted(set(times)), "the order of the log is that of the times"


def test_two_writers_of_the_same_commits_store_each_once(writers: Writers, tmp_path: Path) -> None:
    both = [
        {"do": "commit", "folder": str(tmp_path), "who": who, "count": COMMITS, "shared": "both"}
        for who in "ab"
    ]
    assert writers.run(*both) == [list(range(COMMITS))] * 2
    assert commits(tmp_path)["number"].to_list() == list(range(COMMITS))


def test_who_is_told_of_a_conflict_while_the_table_is_made_takes_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = DeltaTable.create

    def late(*args: Any, **named: Any) -> DeltaTable:
        create(*args, **named)
        raise CommitFailedError("Protocol changed since last commit")

    monkeypatch.setattr(DeltaTable, "create", late)
    assert History.of(tmp_path, VIEW).append(rows("a", 1), SOURCE, "one").id == "one"


@pytest.mark.parametrize("attempt", range(10))
def test_writers_that_make_the_table_at_the_same_moment_make_one(
    writers: Writers, tmp_path: Path, attempt: int
) -> None:
    writers.run(*({"do": "commit", "folder": str(tmp_path), "who": who, "count": 1} for who in "abc"))
    assert sorted(commits(tmp_path)["who"].to_list()) == ["a", "b", "c"]


def test_a_writer_killed_at_any_moment_leaves_what_it_acknowledged_and_at_most_one_commit_more(
    writers: Writers, tmp_path: Path
) -> None:
    generator = random.Random(5)
    begun = time.perf_counter()
    writers.wait(writers.start("commit", folder=str(tmp_path / "usual"), who="w", count=3))
    usual_s = time.perf_counter() - begun
    heard = unheard = 0
    for kill in range(KILLS):
        # Some are killed while they make the table, others beside a history that killed ones have left.
        folder, who = tmp_path / (f"new{kill}" if kill % 5 == 0 else "old"), f"w{kill}-"
        job = {"folder": str(folder), "who": who, "count": 3, "killed_after_s": generator.uniform(0, usual_s)}
        pid = writers.start("commit", **job)
        writers.wait(pid)
        acknowledged = writers.done.get(pid, [])
        mine = commits(folder).filter(pl.col("who") == who)["number"].to_list()
        assert mine in (acknowledged, [*acknowledged, len(acknowledged)])
        heard, unheard = heard + len(acknowledged), unheard + len(mine) - len(acknowledged)
        # Whoever comes next is not held up, and what is in already is not stored again.
        for number in range(len(mine) + 1):
            History.of(folder, VIEW).append(rows(who, number), SOURCE, f"{who}-{number}")
        mine = commits(folder).filter(pl.col("who") == who)["number"].to_list()
        assert mine == list(range(len(mine)))
    assert 0 < heard < 3 * KILLS
