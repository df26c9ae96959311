"""A second oracle, at size: what plain SQL in DuckDB makes of the rows of a history, a join makes too."""

from dataclasses import dataclass

import duckdb
import numpy as np
import polars as pl
import pytest

from mlops_ray.config import Source
from mlops_ray.features.definitions import FeatureSet, Stored, ViewTable
from mlops_ray.features.history import AsOf, History, Snapshot
from mlops_ray.features.join import join
from mlops_ray.schema import INSTANT, Column, Schema

from .cases import clock_at, micros

ROWS, KEYS, ASKED = 100_000, 1_000, 20_000
#: Microseconds over which events are spread: so few that many rows share their time with others.
SPREAD = 400
#: When the three commits were, and as known at what is asked: after the second, at an instant between events.
COMMITS = (3_000, 4_000, 5_000)
KNOWN_AT, COMMITTED_AT = 250, COMMITS[1]
TTL, OVER = 30, 90
AGGREGATES = {
    "count": "count(*)",
    "sum": "sum(x)",
    "mean": "avg(x)",
    "min": "min(x)",
    "max": "max(x)",
    "std": "stddev_samp(x)",
}
TYPES = {
    "k": "int",
    "r": "int",
    "known": "datetime",
    "seq": "int",
    "gone": "bool",
    "x": "float",
    "s": "category",
}
VALUES = Column("x", "float"), Column("s", "category")


@dataclass(frozen=True)
class World:
    """Versions of rows in three commits, a spine, and the history that they were appended to."""

    versions: pl.DataFrame
    spine: pl.DataFrame
    snapshot: Snapshot
    row_id: str | None

    def features(self, strict: bool) -> FeatureSet:
        wanted = [
            Stored("latest", "s", ("k",), "x", "latest"),
            Stored("latest_text", "s", ("k",), "s", "latest"),
            Stored("latest_ttl", "s", ("k",), "x", "latest", ttl_us=TTL),
            *(Stored(agg, "s", ("k",), "x", "window", agg=agg, over_us=OVER) for agg in AGGREGATES),
        ]
        types = {"latest_text": "category", "count": "int"}
        columns = tuple(Column(f.name, types.get(f.name, "float")) for f in wanted)  # type: ignore[arg-type]
        request = Schema((Column("k", "int"), Column("t", "datetime")))
        return FeatureSet(request, columns, tuple(wanted), (), (self.snapshot.view,), 0, "t", strict=strict)

    def by_sql(self, strict: bool) -> pl.DataFrame:
        """The features as a textbook's SQL has them; times are plain numbers."""
        identity = "r" if self.row_id else "event"
        versions, spine = self.versions, self.spine.with_row_index("id")  # noqa: F841  # DuckDB finds them
        known = f"least(t, {KNOWN_AT})" if strict else KNOWN_AT
        query = f"""
            WITH known AS (
                SELECT id, t, v.*
                FROM spine JOIN versions v ON spine.k = v.k
                WHERE v.known <= {known} AND v.committed <= {COMMITTED_AT}
                QUALIFY row_number() OVER (PARTITION BY id, {identity} ORDER BY known DESC, seq DESC) = 1
            ),
            seen AS (SELECT * FROM known WHERE NOT gone AND event <= t),
            newest AS (
                SELECT * FROM seen
                QUALIFY row_number() OVER (
                    PARTITION BY id ORDER BY event DESC, known DESC, seq DESC, r DESC) = 1
            ),
            windows AS (
                SELECT id, {", ".join(f"{sql} AS {name}" for name, sql in AGGREGATES.items())}
                FROM seen WHERE event > t - {OVER} GROUP BY id
            )
            SELECT newest.x AS latest, newest.s AS latest_text,
                   CASE WHEN newest.event >= spine.t - {TTL} THEN newest.x END AS latest_ttl,
                   {", ".join(f"windows.{name}" for name in AGGREGATES if name != "count")},
                   coalesce(windows.count, 0) AS count
            FROM spine LEFT JOIN newest USING (id) LEFT JOIN windows USING (id) ORDER BY spine.id
        """
        return duckdb.sql(query).pl()


def drawn(generator: np.random.Generator, row_id: str | None) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Versions of rows in the order of their files, and a spine."""
    ids = generator.integers(0, 60, ROWS)
    # Without a row id, the event time tells rows apart: with so few of them there are many corrections.
    events = generator.integers(0, SPREAD if row_id else 60, ROWS) - SPREAD // 3
    versions = pl.DataFrame(
        {
            "k": generator.integers(0, KEYS, ROWS),
            "r": ids,
            "event": events,
            "known": events + generator.integers(-5, 200, ROWS),
            # Few numbers, so that times of knowing are shared, and every order of file and sequence occurs.
            "seq": generator.permutation(ROWS),
            "gone": generator.random(ROWS) < 0.05,
            "x": generator.normal(size=ROWS).round(3),
            "s": generator.choice(["a", "b", "ä"], ROWS),
            "committed": np.sort(generator.choice(COMMITS, ROWS)),
        }
    ).with_columns(
        x=pl.when(pl.Series(generator.random(ROWS) < 0.05)).then(None).otherwise("x"),
        s=pl.when(pl.Series(generator.random(ROWS) < 0.05)).then(None).otherwise("s"),
    )
    spine = pl.DataFrame(
        {
            "k": generator.integers(-5, KEYS + 5, ASKED),
            "t": generator.integers(-SPREAD // 2, SPREAD, ASKED),
        }
    ).with_columns(k=pl.when(pl.Series(generator.random(ASKED) < 0.01)).then(None).otherwise("k"))
    return versions, spine


@pytest.fixture(scope="module", params=[None, "r"], ids=["by event time", "by row id"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    versions, spine = drawn(np.random.default_rng(3), request.param)
    source = Source(
        path="x.csv",
        entity="k",
        event_time={"column": "event", "timezone": "UTC"},
        known_at={"column": "known"},
        row_id=request.param,
        sequence="seq",
        deleted="gone",
        columns={name: {"type": kind} for name, kind in TYPES.items()},
    )
    view = ViewTable("s", "s-1", ("k",), VALUES, None, (), request.param, back_loaded=True)
    history = History.of(tmp_path_factory.mktemp("duckdb"), view)
    rows = versions.rename({"event": "event_time"}).with_columns(pl.col("event_time", "known").cast(INSTANT))
    for at in COMMITS:
        with clock_at(at):
            history.append(rows.filter(pl.col("committed") == at).drop("committed"), source, str(at))
    snapshot = history.snapshot(AsOf(micros(KNOWN_AT), micros(COMMITTED_AT)))
    return World(versions, spine, snapshot, request.param)


@pytest.mark.parametrize("strict", [False, True], ids=["as known at K", "as known at P"])
@pytest.mark.parametrize("rows_a_task", [4_000_000, 2_000], ids=["whole", "in slices"])
def test_a_join_of_100_000_rows_is_what_sql_makes_of_them(
    world: World, strict: bool, rows_a_task: int
) -> None:
    asked = world.spine.with_columns(pl.col("t").cast(INSTANT))
    features = world.features(strict)
    found = join(asked, {"s": world.snapshot}, features, on_ray=False, rows_a_task=rows_a_task)
    expected = world.by_sql(strict).select(found.columns)
    assert found.height == expected.height == ASKED
    # Most of the spine has an answer, some has none, and some of it is too old.
    assert 0.5 < found["latest"].count() / ASKED < 0.98
    assert found["latest_ttl"].count() < found["latest"].count()
    for name in found.columns:
        assert found[name].is_null().equals(expected[name].is_null()), name
        if found.schema[name] == pl.String:
            assert found[name].equals(expected[name])
        else:
            # Sums may be taken in another order, and a deviation of equal values is not quite 0.
            np.testing.assert_allclose(
                found[name].to_numpy(), expected[name].to_numpy(), rtol=1e-9, atol=1e-9, err_msg=name
            )
