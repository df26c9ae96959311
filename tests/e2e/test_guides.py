"""The guides of README.md lead where they say, as they stand there."""

import io
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ..conftest import ROOT
from .conftest import COMMAND, clean_environment, processes_of

TEXT = (ROOT / "README.md").read_text().partition("\n## Five guides\n")[2].partition("\n## ")[0]
#: By its title, each guide.
GUIDES = dict(re.findall(r"^### \d\. (.*?)\n(.*?)(?=^### |\Z)", TEXT, re.MULTILINE | re.DOTALL))
#: Its language, what it is called, and itself.
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: Where the guides find a service; where that is taken, `run` tells of another port.
SHOWN = "http://127.0.0.1:8000"


class Reader:
    """Somebody who copies what a guide says, block by block, into one terminal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answers: dict[str, str] = {}
        self._terminal = folder.parent / f"{folder.name}.terminal"
        self._address = SHOWN

    def follow(self, guide: str) -> None:
        """Saves its files, runs its commands, and finds what it shows in what they have said."""
        said = ""
        for language, name, text in BLOCK.findall(guide):
            if language == "sh":
                said = self.run(text)
            elif language == "text":
                require_shown(text, said)
            elif language != "bash":
                file = "." in name
                assert not file or f"`{name}`" in guide, f"a reader is not told that this is {name}"
                if file:
                    (self.folder / name).write_text(text)
                else:
                    self.answers[name] = text

    def run(self, commands: str) -> str:
        """What they say, of which none may fail."""
        before = f"source {self._terminal}\n" if self._terminal.exists() else ""
        # What a terminal knows between two blocks: its folder and its variables.
        after = f"(export -p; echo cd \"'$PWD'\") > {self._terminal}"
        path = os.pathsep.join((str(Path(COMMAND).parent), os.environ["PATH"]))
        done = subprocess.run(
            ["bash", "-c", f"{before}set -euo pipefail\n{commands.replace(SHOWN, self._address)}\n{after}"],
            cwd=self.folder,
            env=clean_environment() | {"PATH": path, "COLUMNS": "120"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}"
        self.folder = Path(self._terminal.read_text().splitlines()[-1].split("'")[1])
        if "--detach" in commands:
            status = self.run("mlops-ray status project.yaml --json")
            self._address = json.loads(status.splitlines()[-1])["url"]
        return done.stdout.replace(self._address, SHOWN)


def require_shown(shown: str, said: str) -> None:
    """All lines of what a guide shows are said, in their order; spaces count for one."""
    at = 0
    for line in shown.splitlines():
        words = (".*?".join(map(re.escape, word.split("…"))) for word in line.split())
        found = re.compile(r"\s+".join(words)).search(said, at)
        assert found is not None, f"{line}\nis not in\n{said[at:]}"
        at = found.end()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    folder = tmp_path / "empty"
    folder.mkdir()
    reader = Reader(folder)
    yield reader
    reader.run("mlops-ray down project.yaml")
    for storage in tmp_path.rglob("ray.token"):
        assert processes_of(storage.parent) == []


def test_a_reader_of_the_first_guide_has_his_own_data_checked_and_stored(reader: Reader) -> None:
    reader.follow(GUIDES["Your own data"])
    found = pl.read_parquet(reader.folder / ".mlops/reports/quarantine-stays.parquet").sort("_row")
    found = found.with_columns(pl.col("_file").str.split("/").list.last())
    expected = pl.read_csv(io.StringIO(reader.answers["quarantine"]))
    assert_frame_equal(found, expected, check_dtypes=False)


def test_a_reader_of_the_second_guide_gets_the_features_that_it_shows(reader: Reader) -> None:
    reader.follow(GUIDES["Features"])
    (manifest,) = (reader.folder / ".mlops/datasets").glob("*.json")
    expected = pl.read_csv(io.StringIO(reader.answers["answers"]))
    found = pl.read_parquet(manifest.with_suffix(".parquet"), columns=expected.columns).with_columns(
        pl.col("at").dt.strftime("%Y-%m-%dT%H:%MZ"), pl.col("customer").cast(pl.String)
    )
    assert_frame_equal(found, expected, check_dtypes=False)


def test_a_reader_of_the_others_serves_releases_watches_and_submits(reader: Reader) -> None:
    for title in ("Serving and release", "Monitoring", "A cluster"):
        reader.follow(GUIDES[title])
    written = {path.name for path in (reader.folder / "manifests").iterdir()}
    assert written == {"raycluster.yaml", "rayjob.yaml", "rayservice.yaml", "storage.yaml"}


def test_no_guide_is_left_unread() -> None:
    assert list(GUIDES) == [
        "Your own data", "Features", "Serving and release", "Monitoring", "A cluster",
    ]  # fmt: skip
