"""A person's rows are erased from all that is kept, also where a run was killed; others' stay as they are."""

import errno
import io
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl
import pytest

from mlops_ray import audit, cli, config
from mlops_ray.cluster import erasure
from mlops_ray.cluster.erasure import Erasure
from mlops_ray.cluster.intake import Intake
from mlops_ray.cluster.stages import Stages, alone
from mlops_ray.config import Project
from mlops_ray.data import erasure as log_erasure
from mlops_ray.data import ingest, labels, prediction_log
from mlops_ray.data.prediction_log import Entry, PredictionLog, Shape
from mlops_ray.data.rows import Rows, Table, together
from mlops_ray.errors import WRONG_USE, DataError, MlopsError, StorageError, UsageError, safe
from mlops_ray.features import dataset
from mlops_ray.features import erasure as feature_erasure
from mlops_ray.features.history import History, read
from mlops_ray.features.online import OnlineStore
from mlops_ray.features.shelves import online_location
from mlops_ray.features.store import FeatureStore
from mlops_ray.instants import to_micros
from mlops_ray.storage import Storage, locked
from tests.security.canaries import found_in

PROJECT = """
project: people
sources:
  people:
    path: people.csv
    entity: person
    event_time: {column: time, timezone: UTC}
    columns:
      person: {type: category}
      name: {type: string}
      amount: {type: float, max: 90000}
    policy: {machine_only: name}
  visits:
    path: visits.csv
    entity: person
    event_time: {column: time, timezone: UTC}
    columns: {person: {type: category}, place: {type: category}}
features:
  past:
    source: people
    features:
      before: {value_at: {of: amount, ago: 2d}}
      sum_3d: {window: {of: amount, agg: sum, over: 3d}}
  seen: {source: visits, features: {visits_3d: {window: {of: place, agg: count, over: 3d}}}}
target: {source: people, expr: amount, horizon: 24h, task: regression}
"""
WHO, AMOUNT = "CANARYann", 87_654.25
#: Whom the rows are of, and what stands in no row but theirs, in all forms in which it may be written.
CANARIES = [WHO, "CANARYname", f"{AMOUNT}"]
OTHERS = [f"person {number}" for number in range(40)]
DAYS = 12
KEY = {"person": WHO}
REASON = "request 17"


def people(days: int = DAYS) -> str:
    lines = ["time,person,name,amount"]
    for day in range(1, days + 1):
        lines += [f"2026-01-{day:02d},{who},n{number},{number + day}" for number, who in enumerate(OTHERS)]
        lines.append(f"2026-01-{day:02d},{WHO},CANARYname,{AMOUNT}")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Answered:
    """What a predictor answered."""

    values: npt.NDArray[np.float64]
    asked: Table
    given: None = None
    watermark_us: int | None = None


@dataclass(frozen=True)
class World:
    """A project, and all that is kept of it."""

    folder: Path

    @property
    def project(self) -> Project:
        return config.load(self.folder / "project.yaml", {})

    @property
    def storage(self) -> Storage:
        return Storage.open(self.project.storage)

    @property
    def store(self) -> FeatureStore:
        return FeatureStore(self.project, self.storage)

    @property
    def intake(self) -> Intake:
        return Intake(self.store, self.storage, Stages(self.storage))

    @property
    def manifests(self) -> list[Path]:
        return sorted((self.storage.root / "datasets").glob("*.json"))

    def erasure(self, **given: Any) -> Erasure:
        asked = {"source": "people", "given": KEY, "reason": REASON} | given
        return Erasure.of(self.project, self.storage, **asked)

    def erase(self) -> dict[str, Any]:
        return self.erasure().run(lambda _: True)

    def others(self) -> dict[str, pl.DataFrame]:
        """All rows of others: of the history, sets, log and labels, and what the online store answers."""
        root, found = self.storage.root, {}
        files = [
            file
            for bucket in self.store.history("people").snapshot().buckets.values()
            for file in bucket.files
        ]
        found["history"] = pl.read_parquet(files, hive_partitioning=False)
        for manifest in self.manifests:
            found[manifest.stem] = pl.read_parquet(manifest.with_suffix(".parquet"))
        found = {name: rows.filter(pl.col("person") != WHO) for name, rows in found.items()}
        found["log"] = prediction_log.read(self.storage, "people").collect()
        found["log"] = found["log"].filter(~pl.col("request_id").str.starts_with("theirs"))
        (by_person,) = [
            rows for rows in labels.new(self.storage, "people") if "person" in rows.columns
        ]  # fmt: skip
        found["labels"] = by_person.filter(pl.col("person") != WHO)
        asked = pl.DataFrame(
            {"person": OTHERS, "time": [datetime(2026, 1, DAYS + 1, tzinfo=UTC)] * len(OTHERS)}
        )
        store = self.store.online()
        found["online"] = store.read(
            self.store.features, asked.cast({"time": pl.Datetime("us", "UTC")})
        ).features
        store.close()
        assert (root / "online.db").exists()
        return {name: rows.sort(pl.all()) for name, rows in found.items()}


def answered(world: World) -> None:
    """Rows of the log, of which some say whose they are where only machines read it, and labels of them."""
    schema = world.store.features.request
    log = PredictionLog(world.storage, "people", "replica")
    for number, hidden in enumerate([frozenset[str](), frozenset({"person"})]):
        who = [WHO, *OTHERS[:3]]
        at = to_micros(datetime(2026, 1, 9 + number, tzinfo=UTC))
        asked = {"person": who, "time": [at] * len(who)}
        batch = Answered(np.arange(4.0), together([Rows(schema, [asked[name] for name in schema.names])]))
        shape = Shape("1", "champion", hidden_asked=hidden)
        for row in range(len(who)):
            id = f"{'theirs' if row == 0 else 'other'} {number}.{row}"
            log.add(shape, Entry(id, batch, row, row + 1, 1_770_000_000_000_000, 1_000, 10))
        log.flush()
    log.close()
    by_id = {"request_id": ["theirs 0.0", "theirs 1.0", "other 0.1"], "label": [AMOUNT, AMOUNT, 2.0]}
    by_person = {"person": [WHO, OTHERS[0]], "time": ["2026-01-09T00:00Z"] * 2, "label": [AMOUNT, 1.0]}
    for given in (by_id, by_person):
        labels.write(world.storage, "people", labels.parse(pl.DataFrame(given), schema.columns, "regression"))


@pytest.fixture(scope="module", autouse=True)
def _without_ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest, "on_ray", lambda task, selector: task.parts(range(len(task.inputs))))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world with somebody in it."""
    folder = tmp_path_factory.mktemp("people")
    (folder / "project.yaml").write_text(PROJECT)
    visits = [f"2026-01-0{day},{who},here" for day in (3, 4) for who in OTHERS[:2]]
    (folder / "visits.csv").write_text("\n".join(["time,person,place", *visits]) + "\n")
    world = World(folder)
    # What is corrected later is superseded, and stays.
    for days in (DAYS - 2, DAYS):
        (folder / "people.csv").write_text(people(days))
        for source in ("people", "visits"):
            world.intake.ingest(source)
        world.store.materialize()
    world.intake.explore("people")
    made = world.store.build(world.store.snapshots())
    names = [*world.store.features.names, "label"]
    dataset.keep_tested(made, made.frame.select(names).with_columns(prediction=pl.lit(1.0)))
    spine = pl.DataFrame({"person": [OTHERS[1], WHO, OTHERS[2]], "time": ["2026-01-08T00:00Z"] * 3})
    world.store.get(spine)
    answered(world)
    return world


@pytest.fixture
def world(made: World, tmp_path: Path) -> World:
    return World(Path(shutil.copytree(made.folder, tmp_path / "world")))


def places(world: World) -> set[str]:
    """Where in the storage, by its first folder, something of theirs stands."""
    root = world.storage.root
    held = {path.relative_to(root).parts[0] for path in found_in(root, CANARIES)}
    number = struct.pack("<d", AMOUNT)
    return held | {path.name for path in root.glob("online.db*") if number in path.read_bytes()}


def check_erased(world: World, before: dict[str, pl.DataFrame]) -> None:
    assert places(world) == set()
    for name, rows in world.others().items():
        assert rows.equals(before[name]), name
    for manifest in world.manifests:
        made = dataset.rebuild(manifest)
        assert made.digest == made.manifest["superseded"][-1]["digest"] != made.manifest["digest"]
        assert made.manifest["superseded"][-1]["reason"] == REASON
    told = [entry for entry in audit.entries(world.storage) if entry["what"] == "erased"]
    assert audit.verify(world.storage)
    assert told[-1]["about"]["reason"] == REASON


def test_a_value_that_stands_everywhere_before_stands_nowhere_afterwards(world: World) -> None:
    kept_apart = {"features", "datasets", "predictions", "predictions_machine_only", "labels"}
    assert kept_apart | {"online.db", "reports", "pipeline.json"} <= places(world)
    before = world.others()
    found = world.erase()
    check_erased(world, before)
    assert found["erased"]
    assert found["history"] == DAYS
    assert (found["online"], found["predictions"], found["labels"]) == (1, 2, 3)
    assert found["training_sets"] == 2


def test_what_is_to_be_erased_is_said_first_and_without_consent_nothing_is_changed(world: World) -> None:
    before = {path: path.read_bytes() for path in world.storage.root.rglob("*") if path.is_file()}
    found = world.erasure().run(lambda _: False)
    assert not found["erased"]
    assert found["history"] == DAYS
    after = {path: path.read_bytes() for path in world.storage.root.rglob("*") if path.is_file()}
    assert {path for path in after if after[path] != before.get(path)} <= {
        world.storage.root / "pipeline.lock"
    } | {path for path in after if path.name.startswith("online.db")} | {
        path for path in after if path.name == prediction_log.LOCK
    }


def test_the_same_input_read_again_brings_nobody_back_and_says_how_many_were_left_out(world: World) -> None:
    world.erase()
    for days in (DAYS + 1, DAYS):
        (world.folder / "people.csv").write_text(people(days))
        world.intake.ingest("people")
        report = orjson.loads((world.storage.root / "reports" / "validation-people.json").read_bytes())
        assert report["erased"] == days
        assert report["rows_in"] == report["valid"] + report["filtered"] == days * (len(OTHERS) + 1)
        world.intake.explore("people")
        world.store.materialize()
        assert places(world) == set()
    newest = world.store.history("people").snapshot()
    assert read(newest).height == (DAYS + 1) * len(OTHERS)


def test_of_an_erasure_nobody_says_later_that_it_stored_rows(world: World) -> None:
    (world.folder / "project.yaml").write_text(PROJECT.replace("path: people.csv", "path: people*.csv"))
    header, *_, last = people(DAYS + 1).splitlines()
    (world.folder / "people2.csv").write_text(f"{header}\n{last}\n")
    world.intake.ingest("people")
    world.erase()
    (world.folder / "people2.csv").unlink()
    world.intake.ingest("people")
    *_, entry = audit.entries(world.storage)
    assert entry["what"] == "erased"


def test_a_source_that_is_defined_anew_does_not_bring_them_back_either(world: World) -> None:
    text = PROJECT.replace("max: 90000", "max: 100000")
    (world.folder / "project.yaml").write_text(text)
    world.intake.ingest("people")
    assert len(list((world.storage.root / "features").glob("people-*"))) == 2
    found = world.erase()
    assert found["history"] == 2 * DAYS, "of the history before, too"
    assert "features" not in places(world)
    (world.folder / "project.yaml").write_text(text.replace("max: 100000", "max: 110000"))
    world.intake.ingest("people")
    assert len(list((world.storage.root / "features").glob("people-*"))) == 3
    assert "features" not in places(world)


def test_a_source_whose_key_is_renamed_is_not_read_until_they_are_erased_by_its_new_name(
    world: World,
) -> None:
    world.erase()
    (world.folder / "project.yaml").write_text(PROJECT.replace("person", "member"))
    (world.folder / "people.csv").write_text(people(DAYS + 1).replace("time,person,", "time,member,"))
    for read_anew in (world.intake.ingest, world.intake.explore, world.intake.mine):
        with pytest.raises(
            DataError, match=r"would come back: it does not have the key any more .*person.*17"
        ):
            read_anew("people")
    assert world.intake.validate("people")["state"] == "refused"
    assert places(world) == set()
    assert world.erasure(given={"member": WHO}).run(lambda _: True)["erased"], "though it has no row yet"
    world.intake.ingest("people")
    report = orjson.loads((world.storage.root / "reports" / "validation-people.json").read_bytes())
    assert report["erased"] == DAYS + 1
    assert places(world) == set()


def test_what_a_killed_load_test_left_goes_and_what_one_needs_that_runs_is_named(world: World) -> None:
    asked = world.storage.path("loadtest", "tmpx", "predictions", "people", "a.parquet")
    pl.DataFrame({"request.person": [WHO]}).write_parquet(asked)
    with locked(world.storage.path("loadtest", ".lock")) or pytest.fail("it is held"):
        found = world.erase()
        assert any(note.startswith("a load test runs") and "loadtest/tmpx" in note for note in found["notes"])
        assert places(world) == {"loadtest"}
    assert not any("load test" in note for note in world.erase()["notes"])
    assert places(world) == set()


def test_a_load_test_that_has_laid_nothing_aside_yet_is_named_too(world: World) -> None:
    with locked(world.storage.path("loadtest", ".lock")) or pytest.fail("it is held"):
        notes = world.erase()["notes"]
    assert any(note.startswith("a load test runs") and "(loadtest)" in note for note in notes)


def test_what_killed_writers_had_begun_goes_at_once_or_is_named_until_nobody_can_be_writing_it(
    world: World,
) -> None:
    root = world.storage.root
    (history,) = root.glob("features/people-*")
    goes = [
        "reports/.quarantine-people.parquet.abcd",
        "reports/.validation-people.json.abcd",
        ".pipeline.json.abcd",
        "datasets/.people-1.parquet.abcd",
        "datasets/spine-1.parquet",
        f"features/{history.name}/{next(history.glob('*=*')).name}/begun.parquet",
    ]
    (day,) = (root / "predictions" / "people").glob("date=*")
    named = [day / ".a.parquet.abcd", root / "labels" / "people" / ".b.parquet.abcd"]
    listed = root / "monitor" / ".x.json.abcd"
    listed.parent.mkdir(exist_ok=True)
    for path in (*(root / name for name in goes), *named, listed):
        path.write_text(WHO)
    found = world.erase()
    assert [name for name in goes if (root / name).exists()] == []
    for path in named:
        assert any(str(path.relative_to(root)) in note and "an hour" in note for note in found["notes"])
    for path in (*named, listed):
        os.utime(path, (time.time() - 2 * log_erasure.LEFT_S,) * 2)
    found = world.erase()
    assert places(world) == {"monitor"}
    assert found["named_in"] == ["monitor/.x.json.abcd"]


def test_who_is_erased_again_is_not_asked_for_in_vain_and_nothing_changes(world: World) -> None:
    world.erase()
    before = world.others()
    again = world.erase()
    assert again["erased"]
    assert not any(again[name] for name in ("history", "online", "predictions", "labels", "training_sets"))
    check_erased(world, before)


def test_where_a_server_is_named_now_the_file_of_before_is_erased_too_and_other_servers_are_said(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (world.folder / "project.yaml").write_text(f"{PROJECT}online: redis://server:6379/0\n")
    monkeypatch.setattr(FeatureStore, "online", lambda _: OnlineStore(tmp_path / "server"))
    _, _, space = online_location(world.project, world.storage).partition("#")
    world.store.materialize()
    assert "online.db" in places(world)
    found = world.erase()
    assert found["online"] == 2, "of the file and of the server"
    assert places(world) == set()
    assert found_in(tmp_path / "server", [WHO]) == set()
    assert any(f"delete its keys mlops:{space}:*" in note for note in found["notes"])
    (world.folder / "project.yaml").write_text(PROJECT)
    assert any(space in note for note in world.erase()["notes"]), "also where no file names a server any more"


# ---------------------------------------------------------------- killed


class Killed(BaseException):
    """Nothing is done any more."""


def test_killed_after_any_step_and_run_again_it_ends_whole(made: World, tmp_path: Path) -> None:
    number = 0
    while True:
        world = World(Path(shutil.copytree(made.folder, tmp_path / str(number))))
        before = world.others()
        asked = world.erasure()
        steps = list(asked.steps(asked._found()))
        for step in steps[: number + 1]:
            step()
        if number == len(steps):
            break
        world.erase()
        check_erased(world, before)
        shutil.rmtree(world.folder)
        number += 1
    assert number > 8


def dies_after(original: Callable[..., Any]) -> Callable[..., Any]:
    def dies(*given: Any, **named: Any) -> Any:
        original(*given, **named)
        raise Killed

    return dies


def dies_at_a_set(original: Callable[..., Any]) -> Callable[..., Any]:
    def dies(path: Path, **named: Any) -> Any:
        if path.name.startswith("people-") and "tested" not in path.name:
            raise Killed
        return original(path, **named)

    return dies


def dies_before(_: Callable[..., Any]) -> Callable[..., Any]:
    def dies(*_: Any, **__: Any) -> Any:
        raise Killed

    return dies


WITHIN: dict[str, tuple[Any, str, Callable[[Callable[..., Any]], Callable[..., Any]]]] = {
    "before the commit": (History, "_take_out", dies_before),
    "after the commit": (History, "_take_out", dies_after),
    "after files were removed": (History, "_remove", dies_after),
    "after one file of the log or the labels": (log_erasure, "take_out", dies_after),
    "after the rows of a test": (feature_erasure, "_take_out_equal", dies_after),
    "after a new spine": (feature_erasure, "_without", dies_after),
    "between a manifest and its set": (feature_erasure, "replacing", dies_at_a_set),
}


@pytest.mark.parametrize("when", WITHIN)
def test_killed_within_a_step_and_run_again_it_ends_whole(
    when: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, how = WITHIN[when]
    before = world.others()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, name, how(getattr(owner, name)))
        world.erase()
    assert places(world) != set()
    world.erase()
    check_erased(world, before)
    assert not list((world.storage.root / "predictions").rglob("erasing*"))


# ---------------------------------------------------------------- what is said


def test_versions_that_learned_from_the_rows_are_named_also_by_who_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = [dataset.open_set(world.storage, f"{each.stem}.parquet").digest for each in world.manifests]
    versions = [
        {"version": number, "state": "champion", "champion": number == 2, "dataset": digest}
        for number, digest in enumerate([digests[0], "of another set"], 1)
    ]
    monkeypatch.setattr(erasure.Registry, "versions", lambda self, name: versions)
    for _ in range(2):
        found = world.erase()
        assert [each["version"] for each in found["versions"]] == [1]
        assert any("people 1 (champion) learned from these rows" in note for note in found["notes"])
    after = [dataset.open_set(world.storage, f"{each.stem}.parquet").digest for each in world.manifests]
    versions.append({"version": 3, "state": "registered", "champion": False, "dataset": after[0]})
    assert [each["version"] for each in world.erase()["versions"]] == [1], "the third learned nothing of them"


def test_files_that_name_the_key_and_are_kept_are_listed(world: World) -> None:
    kept = {
        "reports/model-people-1.html": f"<td>{WHO}</td>",
        "monitor/people.json": orjson.dumps({"cells": {WHO: 3}}).decode(),
        "reports/model-people-2.html": f"<td>{WHO}Other</td>",
    }
    for name, text in kept.items():
        world.storage.path(*name.split("/")).write_text(text)
    expected = ["monitor/people.json", "reports/model-people-1.html"]
    assert world.erasure().run(lambda _: False)["named_in"] == expected, "reports of the source are cleared"
    assert world.erase()["named_in"] == expected


def test_no_key_stands_in_the_audit_record_or_beside_the_history(world: World) -> None:
    world.erase()
    for top in ("audit", "features/_erased"):
        assert found_in(world.storage.root / top, [WHO]) == set()
    (told,) = [entry for entry in audit.entries(world.storage) if entry["what"] == "erased"]
    assert told["about"]["history"] == DAYS
    assert told["about"]["key"] == world.store.history("people").erased.hash(KEY)
    (kept,) = (world.storage.root / "features" / "_erased").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600


def test_what_cannot_be_recorded_is_not_done(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before = places(world)

    def full(*_: Any, **__: Any) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(audit, "append", full)
    with pytest.raises(StorageError, match="the disk is full"):
        world.erase()
    assert places(world) == before
    assert world.store.history("people").erased.find(KEY) is None


def test_what_was_done_and_cannot_be_recorded_is_said_to_be_done(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = audit._write

    def full(file: Any, line: dict[str, Any]) -> None:
        if line.get("what") == "erased":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, line)

    monkeypatch.setattr(audit, "_write", full)
    with pytest.raises(
        StorageError, match=r"^erased, but the audit record cannot be written: No space"
    ) as told:
        world.erase()
    assert "not done" not in str(told.value)
    assert places(world) == set()


WRONG: dict[str, tuple[dict[str, Any], type[MlopsError], str]] = {
    "a source": ({"source": "peple"}, UsageError, "no source 'peple'; did you mean 'people'"),
    "a column": (
        {"given": {"persn": WHO}},
        UsageError,
        "'persn' is no key of 'people'; did you mean 'person'",
    ),
    "a column that is no key": ({"given": {"name": "x"}}, UsageError, "'name' is no key of 'people'"),
    "no key": ({"given": {}}, UsageError, "say whose rows: --key person=VALUE"),
    "nobody": ({"given": {"person": "zoey"}}, DataError, "nothing was made of one: person=zoey"),
    "nobody of whom all is looked for": (
        {"given": {"person": "zoe"}},
        DataError,
        "made of one; the key is too short to be looked for in reports.*: person=zoe",
    ),
    "no reason": ({"reason": " "}, UsageError, "--reason is empty"),
    "a reason that tells in other letters": (
        {"reason": f"{WHO.upper()} asked"},
        UsageError,
        "--reason names whose rows they are",
    ),
    "a reason that tells": ({"reason": f"{WHO} asked"}, UsageError, "--reason names whose rows they are"),
}


def test_who_stands_in_a_first_look_alone_is_erased_from_it(world: World) -> None:
    shutil.rmtree(world.storage.root)
    world.intake.explore("people")
    assert places(world) == {"reports"}
    found = world.erase()
    assert found["reports"] == 2, "its page and its data"
    assert places(world) == set()
    world.intake.explore("people")
    assert places(world) == set(), "and is kept out from now on"


@pytest.mark.parametrize("what", WRONG)
def test_what_is_asked_wrongly_costs_a_sentence(what: str, world: World) -> None:
    given, kind, said = WRONG[what]
    with pytest.raises(kind, match=said):
        world.erasure(**given).run(lambda _: True)
    assert not (world.storage.root / "features" / "_erased").exists()


def test_the_error_log_does_not_name_who_was_not_found(world: World) -> None:
    with pytest.raises(DataError, match="person=zoe") as told:
        world.erasure(given={"person": "zoe"}).run(lambda _: True)
    assert "there is no row of 'people' with this key" in safe(told.value)
    assert "zoe" not in safe(told.value)


def test_others_may_work_while_a_person_is_asked_and_what_they_made_is_erased_too(world: World) -> None:
    def agrees(found: dict[str, Any]) -> bool:
        with alone(world.storage):
            spine = pl.DataFrame({"person": [WHO, OTHERS[3]], "time": ["2026-01-09T00:00Z"] * 2})
            world.store.get(spine)
        return True

    found = world.erasure().run(agrees)
    assert found["training_sets"] == 3
    assert places(world) == set()


def test_nobody_copies_rows_while_they_are_erased_nor_erases_them_while_they_are_copied(
    world: World, tmp_path: Path
) -> None:
    spine = pl.DataFrame({"person": [WHO], "time": ["2026-01-09T00:00Z"]})
    copying: list[Callable[[], Any]] = [
        lambda: world.store.get(spine),
        lambda: world.store.materialize(),
        lambda: world.store.export_feast(tmp_path / "feast"),
        lambda: dataset.rebuild(world.manifests[0]),
    ]
    before = world.manifests
    with world.storage.steady(erases=True):
        for copy in copying:
            with pytest.raises(StorageError, match="rows are being erased in"):
                copy()
    assert (world.manifests, (tmp_path / "feast").exists()) == (before, False)
    # Two may read, while nobody erases.
    with world.storage.steady(), pytest.raises(StorageError, match="features are being read in"):
        world.store.get(spine)
        world.erase()
    assert places(world) != set()


def test_files_that_come_and_go_or_cannot_be_read_end_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = world.storage.root
    for name in (".x.json.1", "goes.json"):
        world.storage.path("monitor", name).write_text(WHO)
    world.storage.path("reports", "damaged.parquet").write_bytes(b"none")
    open_ = Path.open

    def opens(path: Path, *given: Any, **named: Any) -> Any:
        if path.name == "goes.json":
            path.unlink()
        return open_(path, *given, **named)

    monkeypatch.setattr(Path, "open", opens)
    found = world.erase()
    assert not (root / "monitor" / "goes.json").exists()
    assert found["named_in"] == []
    (note,) = [note for note in found["notes"] if "could not be looked at" in note]
    assert note.startswith("reports/damaged.parquet")


@pytest.mark.parametrize(
    ("raised", "why"),
    [
        (DataError("it cannot be", said=": 'secret'"), "it cannot be"),
        (pl.exceptions.PanicException("secret"), "PanicException"),
    ],
)
def test_a_set_that_cannot_be_computed_anew_leaves_no_other_undone_and_is_named(
    raised: BaseException,
    why: str,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    left, whole = world.manifests
    supersede = feature_erasure.supersede

    def fails(storage: Storage, held: Any, *more: Any) -> None:
        if held.file == left:
            raise raised
        supersede(storage, held, *more)

    monkeypatch.setattr(feature_erasure, "supersede", fails)
    asked = ["--source", "people", "--key", f"person={WHO}", "--reason", REASON, "--yes"]
    monkeypatch.setattr("sys.argv", ["mlops-ray", "erase", str(world.folder / "project.yaml"), *asked])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    said = " ".join("".join(capsys.readouterr()).split())
    assert f"{left.stem}.parquet could not be computed anew and still holds the rows ({why})" in said
    assert found_in(world.storage.root / "features", CANARIES) == set()
    assert WHO not in pl.read_parquet(whole.with_suffix(".parquet"))["person"].to_list()
    *_, told = audit.entries(world.storage)
    assert (told["what"], told["about"]["sets_left"]) == ("erased", [f"{left.stem}.parquet"])
    monkeypatch.undo()
    assert world.erase()["left"] == {}
    assert places(world) == set()


def test_a_history_and_sets_of_a_time_with_other_keys_are_named(world: World) -> None:
    (before,) = (world.storage.root / "features").glob("people-*")
    (world.folder / "project.yaml").write_text(PROJECT.replace("person", "member"))
    (world.folder / "people.csv").write_text(people().replace("time,person,", "time,member,"))
    world.intake.ingest("people")
    found = world.erasure(given={"member": WHO}).run(lambda _: True)
    assert found["history"] == DAYS
    (note,) = [note for note in found["notes"] if "had other keys" in note]
    sets = [f"datasets/{each.stem}.parquet" for each in world.manifests]
    assert all(name in note for name in (f"features/{before.name}", *sets))
    with pytest.raises(DataError, match=f"had other keys .*{before.name}"):
        world.erasure(given={"member": "zoe"}).run(lambda _: True)


def test_a_reason_that_says_a_number_as_it_was_asked_for_tells_too(world: World) -> None:
    (world.folder / "project.yaml").write_text(
        PROJECT.replace("person: {type: category}", "person: {type: float}")
    )
    with pytest.raises(UsageError, match="--reason names whose rows they are"):
        world.erasure(given={"person": "7"}, reason="7 asked for it")


def test_models_of_which_nobody_knows_how_their_requests_call_somebody_are_named(world: World) -> None:
    assert not any("is not known" in note for note in world.erase()["notes"])
    for top, model in (("predictions", "gone"), ("labels", "gone"), ("predictions_machine_only", "apart")):
        world.storage.path(top, model, "date=2026-01-01", "x")
    said = "how requests of apart, gone call somebody is not known"
    assert any(said in note for note in world.erase()["notes"])
    with pytest.raises(DataError, match=said):
        world.erasure(given={"person": "nobody"}).run(lambda _: True)


def test_the_command_says_what_there_is_and_erases_by_yes_alone(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    def command(*more: str, status: int = 0) -> str:
        asked = ["--source", "people", "--key", f"person={WHO}", "--reason", REASON, *more]
        monkeypatch.setattr("sys.argv", ["mlops-ray", "erase", str(world.folder / "project.yaml"), *asked])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert (ended.value.code or 0) == status
        return capsys.readouterr().out

    # Nobody can be asked: a script must not take it for done.
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert "nothing was erased; --yes does it" in command(status=WRONG_USE)
    assert not orjson.loads(command("--json"))["erased"]
    assert "features" in places(world)
    assert command("--yes").splitlines()[-1] == "erased"
    assert places(world) == set()
    assert orjson.loads(command("--yes", "--json"))["history"] == 0


def test_where_another_source_tells_of_them_its_rows_stay_without_what_was_made_of_the_erased(
    world: World,
) -> None:
    with (world.folder / "visits.csv").open("a") as file:
        file.write(f"2026-01-07,{WHO},there\n")
    world.intake.ingest("visits")
    made = world.store.build(world.store.snapshots())
    theirs = pl.col("person") == WHO
    assert made.frame.filter(theirs)["visits_3d"].sum() == 3
    world.erasure(source="visits").run(lambda _: True)
    again = dataset.rebuild(made.path.with_suffix(".json"))
    assert again.frame.filter(theirs)["visits_3d"].to_list() == [0] * made.frame.filter(theirs).height
    assert again.frame.drop("visits_3d").equals(made.frame.drop("visits_3d"))
    assert again.frame.filter(~theirs).equals(made.frame.filter(~theirs))
    assert made.path.name not in world.erasure(source="visits").run(lambda _: False)["sets"], "it is done"
