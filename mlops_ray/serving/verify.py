"""A version is loaded and exercised in a process of its own before any replica touches it.

What it is given is plain JSON, and so is its answer.
"""

import json
import math
import re
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from mlops_ray.config import Batching
from mlops_ray.data.prediction_log import PredictionLog
from mlops_ray.errors import MlopsError, PackageError, one_line
from mlops_ray.monitoring.deltas import Outbox
from mlops_ray.registry.predictor import Predictor
from mlops_ray.schema import Schema
from mlops_ray.serving import record
from mlops_ray.serving.aside import Aside, DiedError
from mlops_ray.serving.contest import scale
from mlops_ray.serving.record import Settings
from mlops_ray.serving.versions import Live, loader
from mlops_ray.storage import Storage

#: A model loads in a second; one that takes longer than this holds every replica up that starts.
LOAD_S = 60.0
#: What takes longer to import than a version to load, and not every version needs.
IMPORTED = ("xgboost",)
#: What a version's figures, its family and its date may be called, and how many figures it may tell.
NAME, MOST_FIGURES = re.compile(r"[\w.:+@ -]{1,100}"), 100
#: Types of a request's column that take all that another takes.
_WIDER = {("int", "float"), ("category", "string"), ("string", "category")}


class Verifier:
    """Verifies versions, each in a process of its own, several at a time."""

    def __init__(self, load_s: float = LOAD_S) -> None:
        self._load_s, self._aside = load_s, Aside(__name__, IMPORTED)

    def verify(
        self, storage: Storage, model: str, version: str, package: Path, digest: str, settings: Settings
    ) -> dict[str, Any]:
        """The entry of a version (`record.entry`) that loads, and answers its own examples.

        Raises `PackageError` with the reason where it does not: its process said so, died, or took too long.
        """
        asked = {
            "storage": str(storage.root),
            "model": model,
            "version": version,
            "package": str(package),
            "digest": digest,
            "settings": asdict(settings),
        }
        try:
            found = json.loads(self._aside.ask(json.dumps(asked), self._load_s))
        except TimeoutError:
            raise PackageError(f"it was not loaded within {self._load_s:.0f} s") from None
        except DiedError as error:
            raise PackageError(f"the process that loaded it {error}") from None
        if "refused" in found:
            raise PackageError(str(found["refused"]))
        return dict(found["entry"])

    def close(self) -> None:
        """Ends the process that waits."""
        self._aside.close()


def incompatible(champion: Schema, challenger: Schema) -> str | None:
    """Why callers of the champion cannot go on with the challenger, in a sentence; `None` where they can.

    >>> from mlops_ray.schema import Column
    >>> site, load = Column("site", "category"), Column("load", "float")
    >>> incompatible(Schema((site,)), Schema((site, load)))
    "callers do not send 'load', which it asks for"
    >>> incompatible(Schema((site, load)), Schema((site,)))
    """
    sent = {column.name: column for column in champion.columns}
    for column in challenger.columns:
        if column.name not in sent:
            return f"callers do not send {column.name!r}, which it asks for"
        given = sent[column.name]
        if column.type != given.type and (given.type, column.type) not in _WIDER:
            return f"callers send {column.name!r} as {given.type}, and it asks for {column.type}"
        if column.required and not given.required:
            return f"callers may leave {column.name!r} empty, which it asks for"
    return None


def work(asked: str) -> str:
    """What the process does (see `aside`): the entry of the version that is asked for, or why it has none."""
    found: dict[str, Any]
    try:
        found = {"entry": _entry(**json.loads(asked))}
    except MlopsError as error:
        found = {"refused": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever a package does, it is refused with a word
        found = {"refused": f"it cannot be loaded: {one_line(error)}"}
    return json.dumps(found)


def _entry(
    storage: str, model: str, version: str, package: str, digest: str, settings: dict[str, Any]
) -> dict[str, Any]:
    """The entry of a version that can be loaded and exercised, as replicas do it."""
    opened, how = Storage.open(storage), Settings(**settings)
    sets = (frozenset(names) for names in (how.functions, how.trusted, how.types))
    served = loader(opened, how.online, *sets)({"version": version, "digest": digest, "package": package})
    with tempfile.TemporaryDirectory() as aside:
        # As replicas do it, to what they count and log.
        log = PredictionLog(Storage.open(aside), model, "verifies")
        Live(served, Outbox(model), log, Batching(), frozenset())
        scale(served.reference)
    predictor = cast(Predictor, served.predictor)
    if predictor.name != model:
        raise PackageError(f"the package is one of {predictor.name!r}")
    # All that is done to an answer, to the project's own functions.
    predictor.predict_features(predictor.package.examples[0])
    entry = record.entry(opened, version, predictor.package) | {"explains": predictor.explains}
    _require_tellable(entry)
    return entry


def _require_tellable(entry: dict[str, Any]) -> None:
    """Raises `PackageError` where pages, tags and logs could not show what a package says of itself."""
    figures = [entry["metrics"], *entry["baselines"].values()]
    if len(figures) > MOST_FIGURES or any(len(found) > MOST_FIGURES for found in figures):
        raise PackageError(f"it tells more than {MOST_FIGURES} figures of itself")
    numbers = [value for found in figures for value in found.values()]
    if not all(value is None or (type(value) in (int, float) and math.isfinite(value)) for value in numbers):
        raise PackageError("its metrics are no numbers")
    names = [name for found in (*figures, entry["baselines"]) for name in found]
    for text in (*names, entry["family"], entry["created_at"]):
        if not isinstance(text, str) or not NAME.fullmatch(text):
            raise PackageError(f"it says of itself {text!r:.60}, which is no name")
