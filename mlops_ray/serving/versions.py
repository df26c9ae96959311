"""The versions of a model that a replica holds in memory, as the release document says.

A new package is loaded in a thread beside the one that answers; when it is whole, one reference is switched.
A package that cannot be loaded changes nothing.
"""

import asyncio
import gc
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from mlops_ray.config import Batching
from mlops_ray.data.counts import Counts
from mlops_ray.data.prediction_log import Entry, PredictionLog, Shape
from mlops_ray.data.rows import Rows, Table, together
from mlops_ray.errors import StorageError
from mlops_ray.features.online import OnlineStore
from mlops_ray.monitoring.deltas import PREDICTION, Outbox, Tally
from mlops_ray.registry.explain import Contributions
from mlops_ray.registry.models import Values
from mlops_ray.registry.package import Package
from mlops_ray.registry.predictor import Answer, Predictor
from mlops_ray.schema import Schema
from mlops_ray.serving import record
from mlops_ray.serving.batcher import Batcher, Part
from mlops_ray.serving.columns import Reader
from mlops_ray.serving.protocol import DECISION, LABEL, OUTPUT, outputs
from mlops_ray.storage import Storage

logger = logging.getLogger(__name__)


class Answering(Protocol):
    """What a loaded model must be able to do."""

    def predict(self, inputs: pl.DataFrame, /) -> Answer: ...

    def answer(self, asked: Table, /) -> Answer: ...

    def explain(self, features: pl.DataFrame, hidden: frozenset[str], /) -> Contributions: ...


@dataclass(frozen=True)
class Served:
    """A loaded version: how its requests are read, batched, answered and counted."""

    version: str
    digest: str
    request: Schema
    reference: Counts
    predictor: Answering
    #: Of a classification: from which answer on it counts as a yes.
    threshold: float | None = None
    #: And what no and yes are called.
    labels: tuple[str, str] | None = None
    #: Features that are no column of the request as it is, and those made of columns that nobody may see.
    features: tuple[str, ...] = ()
    hidden: frozenset[str] = frozenset()

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the model answers, by the names of the protocol."""
        return outputs(self.threshold, self.labels)

    def answers(self, values: Values) -> dict[str, npt.NDArray[Any] | list[str]]:
        """The outputs to a model's numbers, float64 (rows)."""
        found: dict[str, npt.NDArray[Any] | list[str]] = {OUTPUT: values}
        if self.threshold is not None:
            decisions = values >= self.threshold
            found[DECISION] = decisions
            if self.labels is not None:
                found[LABEL] = [self.labels[yes] for yes in decisions.tolist()]
        return found


Load = Callable[[dict[str, Any]], Served]


def loader(
    storage: Storage,
    online: str,
    functions: frozenset[str],
    trusted: frozenset[str],
    types: frozenset[str],
    hidden: frozenset[str] = frozenset(),
) -> Load:
    """How a version's entry in the release document becomes a loaded model, free to call these functions.

    One of the public keys `trusted` must have signed it; an estimator may hold these `types`; nobody may see
    values of `hidden` columns.
    """

    def load(entry: dict[str, Any]) -> Served:
        root = storage.root.resolve()
        folder = (root / entry["package"]).resolve()
        if not folder.is_relative_to(root):
            raise StorageError("the release names a package outside the storage")
        store, digest = OnlineStore(online), entry["digest"]
        predictor = Predictor.load(
            folder, store, digest=digest, functions=functions, trusted=trusted, types=types
        )
        package = predictor.package
        features = package.feature_set
        return Served(
            entry["version"],
            entry["digest"],
            features.request,
            reference(package),
            predictor,
            package.outcome.threshold,
            package.outcome.labels,
            tuple(name for name in features.names if name not in features.own_columns),
            features.made_of(hidden),
        )

    return load


def reference(package: Package) -> Counts:
    """The reference counts of the columns that serving can count: the features, and the prediction."""
    counts = Counts.from_json(package.reference)
    known = {*package.feature_set.names, PREDICTION}
    kept = [at for at, spec in enumerate(counts.specs) if spec.name in known]
    return Counts(tuple(counts.specs[at] for at in kept), [counts.cells[at] for at in kept], counts.rows)


class Live:
    """A version that answers: its reader, and the batcher in front of its predictor."""

    def __init__(
        self,
        served: Served,
        outbox: Outbox,
        log: PredictionLog,
        batching: Batching,
        hidden: frozenset[str],
        route: str = "champion",
    ) -> None:
        self.served = served
        self.version = served.version
        self.reader = Reader(served.request, hidden)
        self._outbox, self._log = outbox, log
        self._shape = Shape(served.version, route, served.threshold, served.features, hidden, served.hidden)
        self._rehearse()
        self._batcher = Batcher(
            self._work, batching.max_rows, batching.max_wait_ms / 1000, done=self._observe
        )

    def _rehearse(self) -> None:
        """Answers, counts and logs a row of nothing: what is done for the first time takes up to a second."""
        request = self.served.request
        nothing = together([Rows(request, [[None] for _ in request.columns])])
        self.served.predictor.predict(nothing.frame)
        answer = self.served.predictor.answer(nothing)
        tally = Tally.empty(self.served.reference.specs)
        tally.observe(answer.given, np.zeros(1))
        tally.to_json()
        self._log.rehearse(self._shape, Entry("", answer, 0, 1, 0, 0, 0))

    async def predict(self, rows: Rows, until: float | None, is_gone: Callable[[], bool]) -> Part:
        """The answer to a request's rows, alone or in a batch with others'; see `Batcher.submit`."""
        return await self._batcher.submit(rows, until=until, is_gone=is_gone)

    def _work(self, batch: Sequence[Rows]) -> Answer:
        return self.served.predictor.answer(together(batch))

    @property
    def tally(self) -> Tally:
        """Where this version is counted now."""
        return self._outbox.tally(self.version, self.served.reference.specs)

    def _observe(self, answer: Answer) -> None:
        tally = self.tally
        tally.traffic.batch_rows.update(len(answer.values))
        tally.observe(answer.given, answer.values)

    def log(self, part: Part, id: str, latency_us: int, size: int) -> None:
        """Takes an answered request, whose body had so many bytes, into the prediction log."""
        at_us = time.time_ns() // 1000
        self._log.add(self._shape, Entry(id, part.batch, part.start, part.stop, at_us, latency_us, size))


#: The longest pause between two tries to load a version that could not be loaded.
MOST_PAUSE_S = 30.0


class Versions:
    """The champion and the version before it; `poll` keeps them as the release document says."""

    def __init__(
        self,
        storage: Storage,
        model: str,
        load: Load,
        outbox: Outbox,
        log: PredictionLog,
        batching: Batching,
        hidden: frozenset[str],
    ) -> None:
        self._path = storage.path(record.FOLDER, f"{model}.json")
        self._storage, self._model, self._load = storage, model, load
        self._outbox, self._log, self._batching, self._hidden = outbox, log, batching, hidden
        self._live: dict[str, Live] = {}
        self._seen: tuple[int, int] | None = None
        self.champion: Live | None = None

    @property
    def loaded(self) -> list[str]:
        """The versions that can be asked for."""
        return list(self._live)

    def find(self, version: str | None) -> Live | None:
        """The version asked for, else the champion, if it is loaded."""
        return self.champion if version is None else self._live.get(version)

    def load(self) -> None:
        """Does what the release document says, in this thread; raises what loading raises."""
        entry = self._changed()
        if entry is not None:
            self._switch(self._made(entry))

    async def refresh(self) -> bool:
        """Does what the release document says, if it has changed; whether the champion is now another one.

        Raises what loading raises; the old champion then goes on.
        """
        entry = self._changed()
        if entry is None:
            return False
        self._switch(await asyncio.to_thread(self._made, entry))
        # A version that nobody can ask for any more is part of a cycle; its model is as large as the new one.
        await asyncio.to_thread(gc.collect)
        return True

    async def poll(self) -> None:
        """Refreshes again and again, until cancelled; a failure is logged and the champion stays."""
        pause_s = record.POLL_S
        while True:
            await asyncio.sleep(pause_s)
            try:
                await self.refresh()
                pause_s = record.POLL_S
            except Exception:  # whatever a package does, the poll goes on
                # It may have been the moment's fault: tried again, less and less often.
                self._seen, pause_s = None, min(2 * pause_s, MOST_PAUSE_S)
                logger.exception("%s: the new champion cannot be loaded; the old one goes on", self._model)

    def _changed(self) -> dict[str, Any] | None:
        """The champion's entry in the release document, if it is not the one that answers."""
        seen = _mark(self._path)
        if seen is None or seen == self._seen:
            return None
        entry: dict[str, Any] | None = record.read(self._storage, self._model).get("champion")
        self._seen = seen
        known = self.champion.served.digest if self.champion else None
        return entry if entry is not None and entry["digest"] != known else None

    def _made(self, entry: dict[str, Any]) -> Live:
        return Live(self._load(entry), self._outbox, self._log, self._batching, self._hidden)

    def _switch(self, live: Live) -> None:
        before, self.champion = self.champion, live
        self._live = {loaded.version: loaded for loaded in (before, live) if loaded is not None}


def _mark(path: Path) -> tuple[int, int] | None:
    """Changes with every replacement of the file; `None` where there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot look at {path}: {error.strerror}") from error
    return found.st_ino, found.st_mtime_ns
