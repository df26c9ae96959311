"""The record of a sweep that runs: each trial as it ended, on disk before the next begins."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from mlops_ray.errors import TrainingError
from mlops_ray.storage import replacing
from mlops_ray.training.leaderboard import Trial
from mlops_ray.training.space import Point

FILE = "trials.jsonl"
#: What trials have cost that did not end: those that were cut off before, and those that run.
CUT = "cut.json"


@dataclass(frozen=True)
class Journal:
    """The trials that ended, by number, and what the search was to start from.

    One line of JSON each, after a line that says of which search they are. `cut` is what trials have cost
    that were cut off before it was opened.
    """

    file: Path
    start: Sequence[Point]
    known: Mapping[int, Trial]
    cut: float = 0.0

    @classmethod
    def open(cls, folder: Path, fingerprint: str, start: Sequence[Point], *, resume: bool) -> "Journal":
        """A new journal, or the one that is there, with its own `start`.

        Raises `TrainingError` where none is there, or it is of another search.
        """
        file, known, cut = folder / FILE, list[Trial](), 0.0
        if resume:
            start, known = _read(file, fingerprint)
            cut = _cut(folder / CUT, {trial.id for trial in known})
        folder.mkdir(parents=True, exist_ok=True)
        # What a kill left of a last line goes.
        with replacing(file) as new:
            head = {"search": fingerprint, "start": start}
            new.write_bytes(b"".join(map(_line, [head, *map(asdict, known)])))
        return cls(file, start, {int(trial.id): trial for trial in known}, cut)

    def add(self, trial: Trial) -> None:
        """Writes a trial; when this returns it outlives a kill of this process and of the machine."""
        with self.file.open("ab") as file:
            file.write(_line(asdict(trial)))
            file.flush()
            os.fsync(file.fileno())

    def beat(self, cut: float, running: Mapping[str, float]) -> None:
        """Writes down what trials have cost that were `cut` off, and by their ids those that run."""
        with replacing(self.file.with_name(CUT)) as new:
            new.write_bytes(_line({"cut": cut, "running": running}))


def _cut(file: Path, ended: Collection[str]) -> float:
    """What trials have cost that did not end; of those that did their lines say it."""
    try:
        document = orjson.loads(file.read_bytes())
        running = (float(cost) for id, cost in document["running"].items() if id not in ended)
        return float(document["cut"]) + sum(running)
    except FileNotFoundError:
        return 0.0
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainingError(f"{file} is damaged: train without --resume") from error


def _read(file: Path, fingerprint: str) -> tuple[list[Point], list[Trial]]:
    if not file.exists():
        raise TrainingError("there is no search to resume: none was begun, or it is over; leave out --resume")
    try:
        first, *lines = file.read_bytes().split(b"\n")
        head = orjson.loads(first)
        # The last line is whole where another, empty one comes after it.
        start, trials = [(f, params) for f, params in head["start"]], [_trial(line) for line in lines[:-1]]
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{file} is damaged: train without --resume") from error
    if head["search"] != fingerprint:
        raise TrainingError(
            "the search to resume is another one: its data, families, metric or training.search were changed "
            "since; train without --resume"
        )
    return start, trials


def _trial(line: bytes) -> Trial:
    document = orjson.loads(line)
    # JSON has no tuples and no NaN.
    score = float("nan") if document["score"] is None else document["score"]
    return Trial(**{**document, "fold_scores": tuple(document["fold_scores"]), "score": score})


def _line(document: Mapping[str, Any]) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)
