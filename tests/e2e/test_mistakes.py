"""A mistake costs one sentence, not a traceback, and leaves nothing half-written."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ..conftest import EXAMPLE
from .conftest import mlops, processes_of

DATA = "package://factory_load/load_profiles_2016.csv.gz"


def _replace(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new, 1)


#: What is wrong, the exit status, and what the sentence must say beside the file.
MISTAKES = {
    "a misspelt key": (_replace("delimiter", "delimeter"), 2, "project.yaml:7: sources.meter.format.csv"),
    "a missing file": (_replace(DATA, "absent.csv.gz"), 1, "no such file"),
    "a wrong delimiter": (_replace('delimiter: ";"', 'delimiter: ","'), 1, "is the delimiter right?"),
    "a column that does not exist": (_replace("column: time", "column: tiem"), 1, "did you mean 'time'?"),
    "a time zone left out": (_replace(", timezone: Europe/Berlin", ""), 2, "need timezone"),
    "what is not built yet": (
        _replace("task: regression}", "task: regression, label_known: {column: load}}"),
        2,
        "not supported yet",
    ),
    "prices that are not there": (
        _replace("serving:", "cost: {prices: absent.yaml}\nserving:"),
        2,
        "cannot read the price list",
    ),
    "a test part in the future": (_replace("2016-11-01", "2026-11-01"), 1, "test part"),
    "no storage": (_replace("sources:", "storage: /proc/none\nsources:"), 1, "/proc/none"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_one_sentence_and_leaves_nothing(what: str, tmp_path: Path) -> None:
    change, status, says = MISTAKES[what]
    file = tmp_path / "project.yaml"
    file.write_text(change(EXAMPLE.read_text()))
    done = mlops("run", file)
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == status
    assert says in sentence
    assert "Traceback" not in done.stderr + done.stdout
    assert not processes_of(tmp_path / ".mlops")
    assert not (tmp_path / ".mlops" / "release").exists()


@pytest.mark.parametrize("arguments", [["run"], ["run", "absent.yaml"], ["rnu", "x"], ["key", "add", "x"]])
def test_a_command_called_wrongly_ends_with_status_2(arguments: list[str], tmp_path: Path) -> None:
    done = mlops(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_down_and_status_of_what_never_ran_say_so(tmp_path: Path) -> None:
    (tmp_path / "project.yaml").write_text(EXAMPLE.read_text())
    assert "nothing was running" in mlops("down", tmp_path / "project.yaml").stdout
    assert "down" in mlops("status", tmp_path / "project.yaml").stdout
