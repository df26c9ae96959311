"""What champion and challenger lose, by labels that come late and by rows that were compared alone."""

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from mlops_ray.data import labels, prediction_log
from mlops_ray.data.prediction_log import ABOUT
from mlops_ray.monitoring import outcomes
from mlops_ray.monitoring.comparison import Sums
from mlops_ray.monitoring.losses import Losses
from mlops_ray.monitoring.outcomes import Compared, Known, Scale
from mlops_ray.schema import Column
from mlops_ray.storage import Storage
from tests.serving import packages

NOW = datetime.now(UTC)
#: Of absolute errors, 2 in the mean.
SCALE = Scale("mae", 2.0, 50.0)
COLUMNS = (Column("site", "category"), Column("time", "datetime"))


@dataclass
class World:
    """The log and the labels of a model whose champion is version 1; `turn` is that of the comparison."""

    storage: Storage
    rows: list[dict[str, Any]] = field(default_factory=list)

    def answered(self, id: str, prediction: float, route: str = "champion", **more: Any) -> None:
        usual = {"at": NOW, "request_id": id, "row": 0, "route": route, "latency_us": 1, "turn": 5}
        usual |= {"model_version": "1" if route == "champion" else "2", "key_bucket": 3}
        self.rows.append(usual | {"prediction": prediction} | more)

    def write(self, name: str = "one") -> None:
        asked = {"request.site": pl.String(), "request.time": ABOUT["at"]}
        date = f"date={NOW:%Y-%m-%d}"
        path = self.storage.path(prediction_log.FOLDER, packages.NAME, date, f"{name}.parquet")
        pl.DataFrame(self.rows, schema=ABOUT | asked).write_parquet(path)

    def label(self, values: dict[str, float]) -> None:
        by_request = pl.DataFrame({"request_id": [*values], "label": [*values.values()]})
        labels.write(self.storage, packages.NAME, labels.parse(by_request, (), "regression"))

    def losses(self, scale: Scale = SCALE) -> list[tuple[Sums, Sums]]:
        self.write()
        paths = prediction_log.since(self.storage, packages.NAME, NOW.timestamp())
        log = prediction_log.scan(paths, ("request.site", "request.time"))
        return outcomes.losses(log, told(self.storage), "1", scale, after=4)

    def package(self, *, losses: bool) -> dict[str, str]:
        """The champion's entry in a release; its reference loses 4 in the mean, if anybody knows."""
        folder, project = self.storage.path("packages", "one"), packages.project(self.storage.root)
        known = Losses("mae", (), (1.0,), (4.0,), (4.0,), ((1.0,),)).to_json()
        packed = packages.write(folder, project, 1.0, expected={"losses": known} if losses else None)
        return {"version": "1", "package": "packages/one", "digest": packed.digest}

    def means(self, scale: Scale = SCALE) -> list[tuple[float, float, float, float]]:
        """Of each step, how many requests of both sides, and what they lose."""
        return [(ours.count, theirs.count, ours.mean, theirs.mean) for ours, theirs in self.losses(scale)]


def told(storage: Storage) -> list[pl.DataFrame]:
    return [each.collect() for each in labels.scan(labels.since(storage, packages.NAME, NOW.timestamp()))]


@pytest.fixture
def world(storage: Storage) -> World:
    return World(storage)


def test_each_side_is_measured_by_its_own_requests_of_each_turn(world: World) -> None:
    world.answered("a", 1.0, key_bucket=7)
    world.answered("b", 5.0, "challenger", key_bucket=9)
    world.answered("b", 3.0, "challenger", row=1, key_bucket=9)
    world.answered("c", 1.0, turn=6)
    world.answered("d", 8.0, "challenger", turn=6)
    # Not compared, of an earlier release, and without a label.
    world.answered("e", 99.0, "challenger", turn=None, key_bucket=None)
    world.answered("f", 99.0, "challenger", turn=4)
    world.answered("g", 99.0, "challenger")
    world.label({"a": 2.0, "c": 1.0, "d": 0.0, "e": 0.0, "f": 0.0})
    rows = pl.DataFrame({"request_id": ["b", "b"], "row": [0, 1], "label": [0.0, 0.0]})
    labels.write(world.storage, packages.NAME, labels.parse(rows, (), "regression"))
    # One figure a request: of b the mean of 5 / 2 and 3 / 2.
    assert world.means() == [(1, 1, 0.5, 2.0), (1, 1, 0.0, 4.0)]
    (ours, theirs), _ = world.losses()
    assert (ours.requests[7], theirs.requests[9], theirs.total[9]) == (1, 1, 2.0)


def test_in_shadow_the_two_answers_to_one_request_are_compared(world: World) -> None:
    for id, mine, theirs in (("a", 1.0, 2.0), ("b", 50.0, 52.0)):
        world.answered(id, mine)
        world.answered(id, theirs, "shadow")
    # Whom the challenger was not asked of says nothing.
    world.answered("c", 1_000.0)
    world.label({"a": 0.0, "b": 0.0, "c": 0.0})
    ((ours, theirs),) = world.losses()
    assert (ours.count, theirs.count, ours.mean) == (2, 2, 51 / 4)
    assert theirs.mean - ours.mean == pytest.approx(3 / 4)
    # Not how much requests lose, but by how much both lose differently, is what varies.
    assert (ours.variance, theirs.variance) == pytest.approx((0.0, 1 / 16))


def test_of_two_labels_the_later_wins_and_they_come_by_entity_and_time_too(world: World) -> None:
    noon = NOW.replace(microsecond=0)
    for number, route in enumerate(("champion", "challenger")):
        asked = {"request.site": "x", "request.time": noon + timedelta(hours=number)}
        world.answered(route, 4.0, route, **asked)
    by_entity = {"site": ["x", "x"], "time": [noon, noon + timedelta(hours=1)], "label": [4.0, 4.0]}
    labels.write(world.storage, packages.NAME, labels.parse(pl.DataFrame(by_entity), COLUMNS, "regression"))
    assert world.means() == [(1, 1, 0.0, 0.0)]
    world.label({"challenger": 0.0})
    assert world.means() == [(1, 1, 0.0, 2.0)]


def test_a_request_id_that_was_used_twice_is_left_out_on_whichever_side(world: World) -> None:
    for id in ("a", "twice"):
        world.answered(id, 2.0)
    for id in ("twice", "b"):
        world.answered(id, 9.0, "challenger")
    world.label({"a": 0.0, "b": 0.0, "twice": 0.0})
    assert world.means() == [(1, 1, 1.0, 4.5)]
    # Also where only one of both is compared: what came before the release, or by another way.
    world.answered("b", 2.0, turn=None, key_bucket=None)
    assert world.means() == []
    shadowed = World(world.storage)
    for id, answer in (("a", 2.0), ("b", 2.0), ("b", 3.0)):
        shadowed.answered(id, answer)
        shadowed.answered(id, 4.0, "shadow")
    assert [(ours.count, theirs.count) for ours, theirs in shadowed.losses()] == [(1, 1)]


def test_few_requests_decide_nothing_and_what_is_no_number_is_left_out(world: World) -> None:
    world.answered("a", 2.0)
    world.answered("b", 1e300, "challenger")
    world.answered("c", math.nan, "challenger")
    world.label({"a": 0.0, "b": 0.0, "c": 0.0})
    assert world.means() == [(1, 1, 1.0, 50.0)]
    # Squares beyond all numbers too.
    assert world.means(Scale("rmse", 2.0, 50.0)) == [(1, 1, 2.0, 50.0)]


def test_the_most_that_a_request_loses_is_far_beyond_the_worst_labels() -> None:
    """Of a rare yes nearly all of the loss may be: cut off, a version that sees none would be as good."""
    rare = Losses("brier", (0.5,), (0.99, 0.01), (0.0001, 0.98), (0.0, 0.0), ((1.0, 0.0), (1.0, 0.0)))
    scale = Scale.of(rare)
    assert scale.mean == pytest.approx(0.99 * 0.0001 + 0.01 * 0.98)
    assert scale.most * scale.mean == pytest.approx(9.8)
    assert Scale.of(Losses("mae", (), (1.0,), (0.0,), (0.0,), ((1.0,),))) is None


def test_of_very_many_rows_the_same_part_of_the_requests_is_read_on_both_sides(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"request {number}" for number in range(200)]
    for name in names:
        world.answered(name, 4.0)
        world.answered(name, 8.0, "shadow")
    world.write()
    world.label(dict.fromkeys(names, 0.0))
    champion = world.package(losses=True)
    of = Compared(packages.NAME, champion, 4, NOW.timestamp())
    counts = []
    for most in (400, 399, 199):
        monkeypatch.setattr(outcomes, "MOST_ROWS", most)
        ((ours, theirs),) = outcomes.read(world.storage, of, Known()).steps
        assert (ours.count, theirs.mean) == (theirs.count, 2.0)
        counts.append(ours.count)
    assert counts[0] == 200
    assert 60 < counts[1] < 140
    assert 25 < counts[2] < min(80, counts[1])


@pytest.mark.parametrize("losses", [True, False])
def test_files_are_read_where_new_ones_have_come_and_the_package_says_what_is_usual(
    world: World, losses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion = world.package(losses=losses)
    of = Compared(packages.NAME, champion, 4, NOW.timestamp())

    def read(before: Known) -> Known:
        return outcomes.read(world.storage, of, before)

    nothing = Known()
    assert read(nothing) is nothing
    world.answered("a", 4.0)
    world.answered("b", 8.0, "challenger")
    world.write()
    assert read(nothing) is nothing
    world.label({"a": 0.0, "b": 0.0})
    found = read(nothing)
    assert [(ours.mean, theirs.mean) for ours, theirs in found.steps] == ([(1.0, 2.0)] if losses else [])
    assert read(found) is found
    world.label({"b": 8.0})
    again = read(found)
    assert [(ours.mean, theirs.mean) for ours, theirs in again.steps] == ([(1.0, 0.0)] if losses else [])


def test_a_file_of_labels_that_cannot_be_read_is_told_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.label({"a": 1.0})
    (path,) = labels.since(world.storage, packages.NAME, NOW.timestamp())
    path.with_name("broken.parquet").write_bytes(b"no labels")
    for _ in range(3):
        (found,) = told(world.storage)
        assert found["label"].to_list() == [1.0]
    assert [record.getMessage().count("broken.parquet") for record in caplog.records] == [1]
