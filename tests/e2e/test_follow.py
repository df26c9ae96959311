"""`ingest --follow`: what arrives while it runs is stored and readable online, and Ctrl-C ends it."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mlops_ray import config
from mlops_ray.cluster import local
from mlops_ray.features.store import FeatureStore
from mlops_ray.storage import Storage

from .conftest import COMMAND, clean_environment, processes_of

PROJECT = """
project: feed
sources:
  meter:
    path: feed/*.csv
    entity: site
    event_time: {column: time, timezone: UTC}
    columns: {site: {type: category}, load: {type: float}}
    policy: {allowed_regions: [eu-de]}
features:
  past: {source: meter, features: {newest: {latest: load}}}
target: {source: meter, expr: load, horizon: 1h, task: regression}
"""
HEADER = "time,site,load\n"
#: A cluster comes up in some seconds; what comes later does not come.
PATIENCE_S = 120


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "project.yaml").write_text(PROJECT)
    (tmp_path / "feed").mkdir()
    (tmp_path / "feed" / "1.csv").write_text(f"{HEADER}2020-01-01,a,1\n")
    return tmp_path


@pytest.fixture
def following(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The command, on a machine of the region to which the rows are bound."""
    process = subprocess.Popen(
        [COMMAND, "ingest", str(folder / "project.yaml"), "--follow", "--every", "0.1", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment() | {"MLOPS_REGION": "eu-de"},
        start_new_session=True,
    )
    watch = threading.Timer(PATIENCE_S, process.kill)
    watch.start()
    try:
        yield process
    finally:
        watch.cancel()
        process.kill()
        process.wait()
        # Where the test failed, its cluster outlives the command.
        local.stop(folder / ".mlops")


def said(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    return dict(json.loads(line))


def arrive(folder: Path, name: str, text: str) -> None:
    """As a feed should: written elsewhere, and there at once."""
    (folder / name).write_text(text)
    (folder / name).rename(folder / "feed" / name)


def newest(folder: Path) -> list[float | None]:
    """What the online store answers of site a and b."""
    project = config.load(folder / "project.yaml", {})
    store = FeatureStore(project, Storage.open(project.storage))
    bounds = store.online().bounds(store.features)
    assert bounds is not None
    rows = pl.DataFrame({"site": ["a", "b"], "time": [bounds[1]] * 2})
    return list(store.online().read(store.features, rows).features["newest"])


def test_what_arrives_is_stored_and_readable_online_a_bad_file_is_told_once_and_loses_nothing(
    folder: Path, following: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOPS_REGION", "eu-de")
    assert said(following)["rows_in"] == 1
    arrive(folder, "2.csv", f"{HEADER}2020-01-02,a,2\n2020-01-02,b,x\n")
    report = said(following)
    assert (report["source"], report["valid"], report["quarantined"]) == ("meter", 1, 1)
    arrive(folder, "3.csv", "nothing,of,it\n")
    error = said(following)
    assert "3.csv" in error["error"]
    # Who does not watch this terminal sees it too.
    (log,) = (folder / ".mlops" / "errors").glob("command-*.jsonl")
    (line,) = map(json.loads, log.read_text().splitlines())
    assert (line["stage"], line["process"], line["level"]) == ("ingest", "command", "error")
    arrive(folder, "4.csv", f"{HEADER}2020-01-04,b,4\n")
    (folder / "feed" / "3.csv").unlink()
    # Between two looks the bad file may have been told beside the new one; it is never told twice.
    report = said(following)
    assert report.get("valid") == 1, report
    assert newest(folder) == [2.0, 4.0]
    os.killpg(following.pid, signal.SIGINT)
    out, err = following.communicate(timeout=60)
    assert (out, following.returncode) == ("", 130), err
    assert "Traceback" not in err
    assert not processes_of(folder / ".mlops")
    assert not [path for path in (folder / ".mlops" / "staging").iterdir() if path.is_dir()]
