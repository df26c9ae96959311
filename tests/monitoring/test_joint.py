"""Rows of a window that differ from the reference's as wholes are found, and quiet ones as seldom as said."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from mlops_ray.data import prediction_log
from mlops_ray.data.counts import Counts, reference
from mlops_ray.features import dataset
from mlops_ray.monitoring import drift, joint, known, looks
from mlops_ray.monitoring.alarms import Alarms, Finding
from mlops_ray.monitoring.state import Closed, ModelState
from mlops_ray.registry.encoder import Encoder, Matrix
from mlops_ray.schema import Column
from mlops_ray.storage import Storage
from tests.monitoring.test_looks import DAY, NOW, answered
from tests.serving import packages

SET = "of-rows-0123456789ab.parquet"


def together(seed: int, rows: int, correlation: float = 0.0, columns: int = 3) -> Matrix:
    """Normal columns of which the first two have something to do with each other."""
    values = np.random.default_rng(seed).normal(size=(rows, columns))
    if correlation:
        values[:, 1] = correlation * values[:, 0] + np.sqrt(1 - correlation**2) * values[:, 1]
    return values.astype(np.float32)


def named(columns: int) -> list[str]:
    return [f"x{at}" for at in range(columns)]


def asked(ours: Matrix, theirs: Matrix) -> Finding:
    found = joint.finding(ours, theirs, named(ours.shape[1]))
    assert found is not None
    return found


# ---------------------------------------------------------------- how likely chance makes it


def tail(amounts: np.ndarray) -> np.ndarray:
    """How likely so much of these whole amounts, or more, falls on heads."""
    chances = np.ones(1)
    for amount in amounts:
        chances = np.pad(chances, (0, amount)) / 2 + np.pad(chances, (amount, 0)) / 2
    return np.cumsum(chances[::-1])[::-1]


@pytest.mark.parametrize(
    "amounts",
    [[1, 1], [1] * 30, [40] + [1] * 30, [2**at for at in range(12)], [3, 1, 4, 1, 5, 9, 2, 6], [*range(100)]],
)
def test_a_p_value_is_never_too_small_however_few_and_unequal_the_pairs(amounts: list[int]) -> None:
    exact, random = tail(np.array(amounts)), np.random.default_rng(1)
    for heads in np.linspace(0.5, 1.0, 200):
        signed = np.where(random.random(len(amounts)) < heads, amounts, np.negative(amounts))
        assert joint.p_value(signed.astype(float)) >= exact[signed[signed > 0].sum()] * (1 - 1e-9)


def test_a_p_value_is_little_too_large_far_out() -> None:
    amounts = np.arange(100)
    exact = tail(amounts)
    for least in (1e-3, 1e-5):
        total = 2 * int(np.argmax(exact < least)) - amounts.sum()
        # Signs that make this sum: of all heads the largest that still fit are turned.
        signed, beyond = amounts.astype(float), (amounts.sum() - total) // 2
        for at in reversed(range(100)):
            if amounts[at] <= beyond:
                signed[at], beyond = -signed[at], beyond - amounts[at]
        assert signed.sum() == total
        assert 1 < joint.p_value(signed) / least < 6


def test_numbers_that_are_all_nothing_tell_nothing() -> None:
    assert joint.p_value(np.zeros(5)) == 1.0


def by_means(taught: list[Matrix], wanted: list[Matrix]) -> tuple[list[np.ndarray], dict[int, float]]:
    """A model that is learned at once, and leans on what it saw as much as any."""
    apart = taught[1].mean(axis=0) - taught[0].mean(axis=0)
    return [rows @ apart for rows in wanted], {}


@pytest.mark.parametrize("values", ["normal", "few", "skewed"])
def test_quiet_windows_are_called_as_seldom_as_said(values: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "learned", by_means)
    random = np.random.default_rng(3)
    p_values = []
    for _ in range(700):
        rows = random.normal(size=(700, 2))
        if values == "few":
            rows = np.round(random.random((700, 2)) ** 4)
        if values == "skewed":
            rows = np.exp(2 * rows)
        p_values.append(asked(rows[:500].astype(np.float32), rows[500:].astype(np.float32)).p)
    for level in (0.3, 0.1, 0.01):
        # Four deviations of what may be seen of a share like this.
        assert np.mean(np.array(p_values) <= level) <= level + 4 * np.sqrt(level / 700), level
    assert min(p_values) > 1e-5


def test_quiet_windows_are_not_called_by_the_model_itself() -> None:
    found = [asked(together(seed, 1_000), together(900 + seed, 200 + 20 * seed)) for seed in range(40)]
    assert min(finding.p for finding in found) > 1e-3
    assert sum(finding.p <= 0.05 for finding in found) <= 5


# ---------------------------------------------------------------- what is found


def drifted(ours: Matrix, theirs: Matrix) -> set[str]:
    """The columns that the counts call, by themselves."""
    names = named(ours.shape[1])
    frames = [pl.DataFrame(rows.astype(float), schema=names) for rows in (ours, theirs)]
    known = reference(frames[0], [Column(name, "float") for name in names], seed=7)
    window = Counts.empty(known.specs)
    window.update(frames[1])
    return {found.column for found in drift.compare(known, window, alpha=0.01) if found.drifted}


@pytest.mark.parametrize(
    ("rows", "correlation", "columns"), [(500, 0.9, 3), (2_000, 0.5, 3), (2_000, 0.6, 60)]
)
def test_columns_that_have_something_else_to_do_with_each_other_are_found_where_none_has_moved(
    rows: int, correlation: float, columns: int
) -> None:
    ours, theirs = together(1, 10_000, columns=columns), together(2, rows, correlation, columns)
    assert drifted(ours, theirs) == set()
    found = asked(ours, theirs)
    assert (found.about, found.kind, found.matters) == ("whole rows", "joint", True)
    assert found.p < 1e-5
    assert found.evidence.startswith("rows are told from the reference's with an AUC of 0.")
    assert by(found) == {"x0", "x1"}


def by(found: Finding) -> set[str]:
    """The columns that it names."""
    return set(found.evidence.split(", by ")[1].removesuffix(" first of all").split(" and "))


def test_the_reference_is_not_told_from_itself() -> None:
    rows = together(1, 3_000, 0.5)
    for window in (rows, rows[::3]):
        assert asked(rows, window).p > 0.01
        assert not asked(rows, window).matters


def test_harm_is_that_of_a_column_that_moved_as_far_and_little_of_it_does_not_matter() -> None:
    ours = together(1, 5_000, columns=1)
    for shift, matters in ((0.05, False), (0.5, True), (1.0, True)):
        found = asked(ours, together(2, 5_000, columns=1) + np.float32(shift))
        assert found.harm == pytest.approx(shift**2, rel=0.25, abs=0.015)
        assert found.matters == matters
    apart = asked(ours, ours + 100)
    assert 1 < apart.harm < 100
    assert "an AUC of 1.00, by x0 first of all" in apart.evidence


def test_the_same_rows_give_the_same_answer() -> None:
    ours, theirs = together(1, 3_000), together(2, 1_000, 0.3)
    assert asked(ours, theirs) == asked(ours.copy(), theirs.copy())


def test_too_few_rows_or_no_columns_tell_nothing() -> None:
    rows = together(1, joint.MIN_ROWS)
    assert joint.finding(rows, rows, named(3)) is not None
    assert joint.finding(rows, rows[1:] + 9, named(3)) is None
    assert joint.finding(rows[1:] + 9, rows, named(3)) is None
    assert joint.finding(rows[:, :0], rows[:, :0], []) is None


def test_columns_that_stand_still_or_are_missing_are_borne() -> None:
    ours = together(1, 2_000, columns=4)
    ours[:, 2], ours[:, 3] = 7.0, np.nan
    ours[::2, 0] = np.nan
    assert asked(ours, ours[:900]).p > 0.01
    still = asked(ours[:, 2:], ours[:, 2:])
    assert (still.p, still.matters, still.harm) == (1.0, False, 0.0)
    assert still.evidence == "rows are told from the reference's with an AUC of 0.50"
    # Missing where the other is large: neither is missing oftener, nor larger.
    theirs = together(2, 1_000, columns=4)
    theirs[:, 2:] = ours[:1_000, 2:]
    theirs[theirs[:, 1] > 0, 0] = np.nan
    found = asked(ours, theirs)
    assert found.matters
    assert found.p < 1e-5
    assert by(found) == {"x0", "x1"}


@pytest.mark.parametrize("style", ["one_hot", "codes"])
def test_categories_are_told_by_their_features(style: Any) -> None:
    random = np.random.default_rng(1)
    columns = [Column(name, "category") for name in ("site", "plan", "way")]
    ours = pl.DataFrame({column.name: random.choice(list("abcd"), 6_000) for column in columns})
    theirs = ours[:2_000].with_columns(plan=pl.when(pl.col("way") != "b").then("site").otherwise("plan"))
    encoder = Encoder.fit(ours, columns, style=style)
    names = [part.name for part in encoder.parts for _ in part.names]
    quiet, found = (
        joint.finding(encoder.transform(ours[2_000:]), encoder.transform(each), names)
        for each in (ours[:2_000], theirs)
    )
    assert quiet.p > 0.01
    assert found.p < 1e-5
    assert by(found) == {"plan", "site"}


def test_of_too_many_columns_those_are_looked_at_that_vary() -> None:
    many = np.zeros((1_000, 2_000), np.float32)
    many[::500, ::2] = 1.0
    ours, theirs = many.copy(), many.copy()
    ours[:, 1_001:1_004], theirs[:, 1_001:1_004] = together(1, 1_000), together(2, 1_000, 0.9)
    assert by(asked(ours, theirs)) == {"x1001", "x1002"}


def test_what_comes_in_turns_is_sampled_evenly() -> None:
    """Of the log and of the training set: every n-th row would be of the same site."""
    rows = pl.DataFrame({"site": np.arange(21_000) % 21})
    sample = prediction_log.spread(rows.lazy(), 1_000)
    assert sample.height == 1_000
    assert sample["site"].n_unique() == 21
    assert sample["site"].value_counts()["count"].max() < 2 * 1_000 / 21
    assert prediction_log.spread(rows.lazy(), 1_000).equals(sample)
    assert prediction_log.spread(rows.lazy(), 21_000).equals(rows)


# ---------------------------------------------------------------- in a look


class Live:
    """A version of `load` and `site` that answers; its training set lies in the storage."""

    def __init__(self, folder: Path, **policy: Any) -> None:
        self.storage = Storage.open(str(folder))
        table = packages.PROJECT["sources"]["table"] | policy  # type: ignore[index]
        features = {
            "row": {"columns": ["load", "site"]},
            "clock": {"on_request": {"hour": {"hour_of": "time"}}},
        }
        project = packages.project(folder, features=features, sources={"table": table})
        path = self.storage.path("packages", "one")
        self.package = packages.write(path, project, 1.0, training_set={"file": SET, "rows": 4_000})
        packages.crown(self.storage, packages.NAME, 1, self.package)
        rows_of(0).write_parquet(self.storage.path(dataset.FOLDER, SET))
        self.state = ModelState(packages.NAME, alarms=Alarms(NOW))
        self.at = NOW

    def window(self, rows: pl.DataFrame) -> Closed:
        counts = Counts.empty(Counts.from_json(self.package.reference).specs)
        counts.update(rows.with_columns(prediction=pl.col("load")))
        told = {"prediction": rows["load"], "request.load": rows["load"]}
        answered(self.storage, self.at, told | {"request.site": rows["site"], "feature.hour": rows["hour"]})
        self.at += DAY
        return Closed("1", self.at - DAY, self.at, counts)

    def look(self, rows: pl.DataFrame) -> dict[str, Finding]:
        seen = looks.see(self.storage, self.state.outlook, self.window(rows))
        self.found = seen.look.found
        return {finding.about: finding for finding in seen.look.findings}


def rows_of(seed: int, *, tied: bool = False) -> pl.DataFrame:
    """Rows of a window or of the training set; where `tied`, large loads are all of one site."""
    random = np.random.default_rng(seed)
    loads = random.normal(50, 10, 4_000)
    sites = np.where(loads > 50 if tied else random.random(4_000) < 0.5, "a", "b")
    return pl.DataFrame({"load": loads, "site": sites, "hour": np.arange(4_000) % 24})


@pytest.fixture
def live(tmp_path: Path) -> Live:
    return Live(tmp_path)


def test_a_look_finds_rows_that_moved_where_no_column_did(live: Live) -> None:
    quiet = live.look(rows_of(1))
    assert live.found == ()
    assert quiet["whole rows"].p > 0.01
    tied = live.look(rows_of(2, tied=True))
    assert live.found == ("whole rows",)
    assert by(tied["whole rows"]) == {"load", "site"}
    assert tied.keys() == quiet.keys() >= {"load", "site", "prediction"}


def test_rows_of_another_hour_are_no_other_rows(live: Live) -> None:
    assert live.look(rows_of(1).with_columns(hour=3))["whole rows"].p > 0.01


def test_what_only_machines_may_read_is_looked_at_where_the_log_has_it(tmp_path: Path) -> None:
    """Of two requests of one name the log does not know which is whose; then it has no load."""
    live = Live(tmp_path, policy={"machine_only": ["load"]})

    def asked(rows: pl.DataFrame, *logged: str) -> Finding:
        features = rows.select(live.package.feature_set.names)
        learned = known.learned(live.storage.root, live.package)
        (found,) = joint.findings(live.package, learned, logged, features)
        return found

    tied = asked(rows_of(2, tied=True), "request.load", "request.site")
    assert tied.p < 1e-5
    assert by(tied) == {"load", "site"}
    unknown = pl.when(pl.int_range(pl.len()) % 3 > 0).then("load").alias("load")
    assert asked(rows_of(1).with_columns(unknown), "request.load", "request.site").p > 0.01
    # Where the log has none at all, the other columns are looked at.
    without = pl.lit(None, pl.Float64).alias("load")
    assert asked(rows_of(1).with_columns(without), "request.site").p > 0.01


def test_entities_in_the_course_of_time_are_not_asked(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks.Release, "has_seasons", True)
    assert "whole rows" not in live.look(rows_of(2, tied=True))


def test_where_the_training_set_is_gone_the_rest_is_asked_and_that_is_said_once(
    live: Live, caplog: pytest.LogCaptureFixture
) -> None:
    (live.storage.root / dataset.FOLDER / SET).unlink()
    for seed in (1, 2):
        found = live.look(rows_of(seed, tied=True))
        assert found.keys() >= {"load", "site", "prediction"}
        assert "whole rows" not in found
    assert caplog.text.count(f"not compared with the training set {SET}, which is gone") == 1


def test_a_training_set_that_cannot_be_read_holds_up_nothing(
    live: Live, caplog: pytest.LogCaptureFixture
) -> None:
    path = live.storage.root / dataset.FOLDER / SET
    rows = path.read_bytes()
    path.write_bytes(rows[:100])
    with caplog.at_level(logging.ERROR):
        assert live.look(rows_of(2, tied=True)).keys() >= {"load", "site", "prediction"}
    assert "the training set of rows cannot be read" in caplog.text
    # It is not remembered.
    path.write_bytes(rows)
    assert live.look(rows_of(2, tied=True))["whole rows"].matters
