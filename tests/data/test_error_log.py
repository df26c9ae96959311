"""The error log: every error is found there, no value of a row is, and no flood of them fills a disk."""

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest

from mlops_ray import cli
from mlops_ray.data import error_log
from mlops_ray.data.error_log import ErrorLog
from mlops_ray.errors import InvalidRowError, OverloadedError, StorageError, safe
from mlops_ray.registry.metrics import METRICS
from mlops_ray.serving.documents import show
from mlops_ray.storage import Storage
from tests.conftest import EXAMPLE

LOGGER = logging.getLogger("mlops_ray.monitoring.looks")


@pytest.fixture
def log(storage: Storage) -> Iterator[ErrorLog]:
    made = error_log.install(storage, "replica", "m")
    yield made
    logging.getLogger("mlops_ray").removeHandler(made)
    error_log._installed.clear()
    made.close()


def lines(storage: Storage) -> list[dict[str, Any]]:
    files = sorted(storage.root.glob(f"{error_log.FOLDER}/*.jsonl"))
    return [orjson.loads(line) for file in files for line in file.read_bytes().splitlines()]


def test_what_a_logger_is_told_is_a_line_with_stage_type_and_place(log: ErrorLog, storage: Storage) -> None:
    error = OSError(28, "full")
    LOGGER.error("a window is not looked at (%s)", safe(error), extra={"version": "3", "request": "r1"})
    log.flush()
    (line,) = lines(storage)
    assert {key: line[key] for key in ("model", "process", "level", "stage", "type")} == {
        "model": "m", "process": "replica", "level": "error", "stage": "monitor", "type": "OSError",
    }  # fmt: skip
    assert (line["version"], line["request"], line["count"]) == ("3", "r1", 1)
    assert abs(line["at"] - time.time()) < 60


def test_of_an_error_that_a_log_may_quote_the_type_is_kept(log: ErrorLog, storage: Storage) -> None:
    for error in (ValueError("secret"), StorageError("the store is away")):
        LOGGER.error("nothing is counted (%s)", safe(error))
    log.flush()
    told = [(line["type"], line["said"]) for line in lines(storage)]
    assert told == [
        ("ValueError", "nothing is counted (ValueError)"),
        ("StorageError", "nothing is counted (the store is away)"),
    ]


def test_a_traceback_says_the_stage_and_nothing_of_what_an_error_quotes(
    log: ErrorLog, storage: Storage
) -> None:
    class Broken:
        def __len__(self) -> int:
            raise ValueError("secret-4711 is no label")

    try:
        METRICS["mae"](Broken(), Broken())  # type: ignore[arg-type]
    except Exception as error:  # whatever it is, its sentence may quote what it was given
        logging.getLogger("mlops_ray.serving.asgi").error("request %s failed", "r1", exc_info=error)
    log.flush()
    (line,) = lines(storage)
    assert (line["stage"], line["where"].rpartition(":")[0]) == ("predict", "mlops_ray.registry.metrics")
    assert "secret" not in orjson.dumps(line).decode()


def test_callers_errors_are_counted_and_their_values_left_out(log: ErrorLog, storage: Storage) -> None:
    for row in range(70):
        error = InvalidRowError(f"'secret-{row}' is not a number", row=row, column="load")
        error_log.refuse(422, "invalid_row", error, f"r{row}", "2")
    error_log.refuse(429, "overloaded", OverloadedError("ask again later"), "r", "2")
    log.flush()
    assert lines(storage) == []  # they are gathered
    log.close()
    first, second = lines(storage)
    assert (first["type"], first["count"], first["status"], first["version"]) == ("invalid_row", 70, 422, "2")
    assert (first["request"], first["said"]) == ("r0", "row …, column …: … is not a number")
    assert (second["type"], second["stage"], second["said"]) == ("overloaded", "admission", "ask again later")


def test_a_flood_costs_few_lines_and_loses_no_count(log: ErrorLog, storage: Storage) -> None:
    for number in range(10_000):
        LOGGER.error("request %s failed", number)
    log.flush()
    found = lines(storage)
    # The thread may have written once or twice meanwhile.
    assert len(found) <= 20 * error_log.MOST_LINES
    log.close()
    assert sum(line["count"] for line in lines(storage)) == 10_000


def test_a_flood_of_many_kinds_loses_no_count(log: ErrorLog, storage: Storage) -> None:
    for number in range(1_000):
        logging.getLogger(f"mlops_ray.monitoring.of_{number % (2 * error_log.MOST_KINDS)}").error("failed")
    log.close()
    assert sum(line["count"] for line in lines(storage)) == 1_000


def test_files_are_turned_over_and_the_oldest_go(
    log: ErrorLog, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(error_log, "MOST_OF_A_FILE", 1_000)
    monkeypatch.setattr(error_log, "MOST_BYTES", 5_000)
    for number in range(100):
        # Each file has a name of its own by the millisecond.
        log._file = storage.path(error_log.FOLDER, f"replica-{number:03d}.jsonl")
        LOGGER.error("x" * 300)
        log.flush()
        log._write(b"")
    error_log.tidy(storage)
    sizes = [path.stat().st_size for path in storage.root.glob(f"{error_log.FOLDER}/*.jsonl")]
    assert 2_000 < sum(sizes) <= 5_000


def test_an_old_file_goes(log: ErrorLog, storage: Storage) -> None:
    old, new = (storage.path(error_log.FOLDER, f"{name}.jsonl") for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"{}\n")
    os.utime(old, (0, time.time() - error_log.KEPT_S - 60))
    error_log.tidy(storage)
    assert (old.exists(), new.exists()) == (False, True)


def test_a_process_that_dies_again_and_again_leaves_no_more_files_than_are_kept(
    log: ErrorLog, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(error_log, "MOST_FILES", 3)
    for number in range(6):
        path = storage.path(error_log.FOLDER, f"{number}.jsonl")
        path.write_bytes(b"{}\n")
        os.utime(path, (0, time.time() - 100 + number))
    error_log.tidy(storage)
    assert sorted(path.stem for path in storage.root.glob(f"{error_log.FOLDER}/*")) == ["3", "4", "5"]


def test_a_full_disk_hurts_nobody_and_loses_no_count(
    log: ErrorLog, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(lines: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(log, "_write", full)
        for number in range(2 * error_log.MOST_LINES):
            LOGGER.error("request %s failed", number)
        log._flushed()
    log._flushed()
    assert sum(line["count"] for line in lines(storage)) == 2 * error_log.MOST_LINES


def test_nobody_else_reads_the_files(log: ErrorLog, storage: Storage) -> None:
    LOGGER.error("one")
    log.flush()
    (path,) = storage.root.glob(f"{error_log.FOLDER}/*.jsonl")
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("row 3, column 'load': 'x' is not a number", "row …, column …: … is not a number"),
        ("-1.5e-3 is below the least that is allowed, 0", "… is below the least that is allowed, …"),
        ("'it\\'s' and \"that\" and 12:30:01", "… and … and …"),
        ("the model's 'x' and the caller's \"y\" are none", "the model's … and the caller's … are none"),
        (f"{show('secret…secret')}, {show('se…' * 50)} and {show(b'secret')}", "…, … and …"),
        ("True, None and nan", "…, … and …"),
        ("no key", "no key"),
    ],
)
def test_a_sentence_is_left_without_what_it_quotes(said: str, left: str) -> None:
    assert error_log.unquoted(said) == left


def failed(command: str, *more: str) -> None:
    """Runs a command that fails in this process."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.argv", ["mlops-ray", command, *more])
        with pytest.raises((SystemExit, RuntimeError, pl.exceptions.PanicException)):
            cli.main()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    file = tmp_path / "project.yaml"
    file.write_text(EXAMPLE.read_text())
    return file


def test_a_command_that_fails_is_a_line_with_the_id_of_its_job(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(error_log.JOB, '{"metadata": {"job_submission_id": "nightly"}}')
    failed("rollback", str(project))
    (line,) = lines(Storage(project.parent / ".mlops"))
    keys = ("process", "stage", "model", "run", "level", "count")
    assert [line[key] for key in keys] == ["command", "rollback", "factory-load", "nightly", "error", 1]
    assert line["where"].startswith("mlops_ray.")


@pytest.mark.parametrize("kind", [RuntimeError, pl.exceptions.PanicException])
def test_a_defect_of_ours_is_a_line_without_what_it_quotes(
    kind: type[BaseException], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise kind("of a row: secret")

    monkeypatch.setattr("mlops_ray.cluster.service.status", broken)
    failed("status", str(project))
    (line,) = lines(Storage(project.parent / ".mlops"))
    assert (line["stage"], line["type"], line["said"]) == ("status", kind.__name__, kind.__name__)
    assert len(line["run"]) == 12


def test_wrong_use_and_what_has_no_storage_are_no_lines(project: Path) -> None:
    failed("push", "newest", str(project))
    failed("status", str(project.with_name("none.yaml")))
    assert lines(Storage(project.parent / ".mlops")) == []


def test_lines_of_commands_are_bounded_and_their_owners_alone(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(error_log, "MOST_OF_A_FILE", 1_000)
    for _ in range(20):
        error_log.tell(storage, "m", "ingest", StorageError("the store is away"))
    (file,) = storage.root.glob(f"{error_log.FOLDER}/*")
    assert 1_000 <= file.stat().st_size < 1_500
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_full_disk_leaves_a_command_its_own_error(storage: Storage) -> None:
    storage.path(error_log.FOLDER).write_text("no folder")
    error_log.tell(storage, "m", "ingest", StorageError("the store is away"))
