"""A node that is taken away while it works on rows costs time, and nothing else: ingest, join and scoring.

The nodes are fakes on this machine (fakes.py), a CPU each. One of two is killed as soon as it works; what
comes out must be what comes out where nothing is lost.
"""

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from polars.testing import assert_frame_equal

from mlops_ray.cluster import scoring
from mlops_ray.cluster.stages import Silent, Stages
from mlops_ray.config import load
from mlops_ray.features.definitions import compile_features
from mlops_ray.features.history import History, read
from mlops_ray.features.join import join
from mlops_ray.features.resample import EVENT_TIME
from mlops_ray.features.store import FeatureStore
from mlops_ray.serving import score
from mlops_ray.storage import Storage
from tests import fakes
from tests.e2e.conftest import COMMAND
from tests.fakes import PATIENCE_S, Standing, until
from tests.serving import packages

pytestmark = pytest.mark.timeout(3 * PATIENCE_S)
FILES, ROWS = 60, 10_000
START = datetime(2016, 1, 1, tzinfo=UTC)
SOURCE = "table"
FEATURES = {
    "view": {"source": SOURCE, "features": {"mean": {"window": {"of": "load", "agg": "mean", "over": "2d"}}}}
}
#: Of the join; each takes long enough that a node can be lost while it is joined.
PIECES = 100
#: Of what is scored, a part each: so many are done when one of the nodes stops, and when it is lost.
SCORED, STOPPED_AT, LOST_AT = 10, 2, 5


@dataclass(frozen=True)
class Work:
    """A project on a cluster of two nodes, and commands that run on it."""

    cluster: Standing
    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "project.yaml"

    @property
    def storage(self) -> Storage:
        return Storage.open(str(self.folder / "storage"))

    def bereft(self, command: list[str], title: str, parts: Path | None = None) -> None:
        """Runs a command that loses a node on which a process calls itself so; then there are two again.

        Of one that writes `parts` these processes stop before: they have work in their hands, and go with it.
        """
        until(lambda: len(self.cluster.nodes()) == 2)
        running = subprocess.Popen(
            command,
            env=self.cluster.joined,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

        def ended() -> bool:
            return running.poll() is not None

        try:
            lost = until(lambda: ended() or (_are_done(parts, STOPPED_AT) and self._at_work(title)))
            if parts and not ended():
                for process in self.cluster.titled(lost, title):
                    process.suspend()
                until(lambda: ended() or _are_done(parts, LOST_AT))
            assert not ended(), f"it ended before a node was lost: {running.communicate()[1]}"
            self.cluster.kill(lost)
            _, told = running.communicate(timeout=PATIENCE_S)
        finally:
            running.kill()
            self.cluster.add(1)
        assert running.returncode == 0, told

    def run(self, *command: str) -> None:
        """Runs a command that loses nothing."""
        done = subprocess.run(command, env=self.cluster.joined, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def _at_work(self, title: str) -> str | None:
        return next((node for node in self.cluster.nodes() if self.cluster.titled(node, title)), None)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    folder = tmp_path_factory.mktemp("losses")
    (folder / "rows").mkdir()
    for number in range(FILES):
        made(number).write_csv(folder / "rows" / f"{number:02}.csv")
    said: dict[str, Any] = copy.deepcopy(packages.PROJECT) | {"storage": str(folder / "storage")}
    said["sources"][SOURCE]["path"] = "rows/*.csv"
    (folder / "scored.yaml").write_text(yaml.safe_dump(said))
    (folder / "project.yaml").write_text(yaml.safe_dump(said | {"features": FEATURES}))
    with fakes.standing(folder) as cluster:
        cluster.add(1)
        until(lambda: len(cluster.nodes()) == 1)
        cluster.add(1)
        yield Work(cluster, folder)


def made(number: int) -> pl.DataFrame:
    """Some rows of one site after the other."""
    times = [START + timedelta(minutes=number * ROWS + minute) for minute in range(ROWS)]
    loads = [float((7 * number + minute) % 900) for minute in range(ROWS)]
    rows = pl.DataFrame({"site": ["a", "b"] * (ROWS // 2), "time": times, "load": loads})
    return rows.with_columns(cost=2 * pl.col("load"), time=pl.col("time").dt.strftime("%Y-%m-%dT%H:%M:%SZ"))


def test_rows_that_a_lost_node_was_reading_are_stored_once(work: Work) -> None:
    work.bereft([COMMAND, "ingest", str(work.file), "--json"], "MapBatches")
    (view,) = compile_features(load(work.file)).tables
    stored = History.of(work.storage.root / "features", view).snapshot()
    found = read(stored, columns=["load"]).select("site", EVENT_TIME, "load").sort("site", EVENT_TIME)
    times = pl.col("time").str.to_datetime(time_unit="us", time_zone="UTC").alias(EVENT_TIME)
    given = pl.concat(map(made, range(FILES))).select("site", times, "load")
    assert_frame_equal(found, given.sort("site", EVENT_TIME), check_dtypes=False, categorical_as_str=True)


def test_features_that_a_lost_node_was_joining_are_those_of_one_process(work: Work) -> None:
    work.run(COMMAND, "ingest", str(work.file))
    work.bereft(_driver(joined, work.folder), "ray::answer")
    alone = pl.read_parquet(work.folder / "alone.parquet")
    assert alone["mean"].null_count() < alone.height
    assert_frame_equal(pl.read_parquet(work.folder / "joined.parquet"), alone, check_exact=True)


def test_rows_that_a_lost_node_was_scoring_are_answered_once(work: Work) -> None:
    answers = work.folder / "answers.parquet"
    work.bereft(_driver(scored, work.folder), "Scorer", score.parts_folder(answers))
    alone = pl.read_parquet(work.folder / "answered.parquet")
    assert alone["prediction"].null_count() < alone.height
    assert_frame_equal(pl.read_parquet(answers), alone, check_exact=True)


def _driver(function: Callable[[Path], None], folder: Path) -> list[str]:
    """A command that runs a function of this module as a driver of the cluster."""
    code = f"from pathlib import Path; from {__name__} import *; {function.__name__}(Path({str(folder)!r}))"
    return [sys.executable, "-c", code]


def _are_done(parts: Path | None, count: int) -> bool:
    """Whether so many parts are written, where any are."""
    return parts is None or len(list(parts.glob("[0-9]*"))) >= count


def joined(folder: Path) -> None:
    """The features of all rows, joined in many pieces on Ray, and in this process."""
    project = load(folder / "project.yaml")
    store = FeatureStore(project, Storage.open(project.storage))
    (view,) = store.features.tables
    rows = read(store.history(view.source).snapshot(), columns=["load"]).select("site", time=EVENT_TIME)
    run = partial(join, rows, store.snapshots(), store.features)
    run(on_ray=False).write_parquet(folder / "alone.parquet")
    with scoring.connected(project, store.storage, Stages(store.storage, Silent())):
        run(on_ray=True, rows_a_task=FILES * ROWS // PIECES).write_parquet(folder / "joined.parquet")


def scored(folder: Path) -> None:
    """The answers to some of the rows, of this process, and of Ray however few they are."""
    project = load(folder / "scored.yaml")
    storage = Storage.open(project.storage)
    packed = packages.write(storage.path("packed"), project, 2.0)
    packages.crown(storage, packages.NAME, 1, packed)
    run = partial(scoring.predict, project, storage, Silent(), str(folder / "rows" / "0?.csv"))
    run(folder / "answered.parquet")
    # Each file is read by a task of its own.
    score.SMALL_ROWS, score.parts.PART_ROWS = 0, 1
    said = run(folder / "answers.parquet")
    assert said["scored"] == said["rows"] == SCORED * ROWS
