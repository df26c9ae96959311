"""The versions of a model that a replica holds in memory, as the release says.

A new package is loaded in a thread beside the one that answers; when it is whole, one reference is switched.
A package that cannot be loaded changes nothing, and the reconciler is told.
"""

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from mlops_ray.config import Batching
from mlops_ray.data.counts import Counts
from mlops_ray.data.error_log import DEFECTS
from mlops_ray.data.labels import Whose
from mlops_ray.data.prediction_log import CHAMPION, SHADOW, Entry, PredictionLog, Shape
from mlops_ray.data.rows import Rows, Table, together
from mlops_ray.errors import StorageError, one_line
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
from mlops_ray.serving.contest import Contest, Pace
from mlops_ray.serving.heartbeats import ALIVE_S, Following
from mlops_ray.serving.protocol import DECISION, LABEL, OUTPUT, outputs
from mlops_ray.serving.routing import Split
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
    #: Of whom its requests are (`Package.whose`).
    whose: Whose = ()

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
#: The longest pause between two tries to load a champion that could not be loaded.
MOST_PAUSE_S = 30.0
#: Batches of a version that is tried: nobody knows yet how long they hold others up.
FIRST_ASIDE = 20
#: Characters of a reason that is told of a version which cannot be loaded.
MOST_SAID = 500


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
            package.whose,
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
        aside: int = 0,
    ) -> None:
        """Its first batches are worked on `aside`, in a thread."""
        self.served = served
        self.version = served.version
        self.reader = Reader(served.request, hidden)
        self._outbox, self._log, self._hidden = outbox, log, hidden
        self._shapes: dict[str, Shape] = {}
        self._rehearse()
        self.batcher = Batcher(
            self.answer, batching.max_rows, batching.max_wait_ms / 1000, done=self._observe, aside=aside
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
        self._log.rehearse(self._shape(CHAMPION), Entry("", answer, 0, 1, 0, 0, 0))

    def _shape(self, route: str) -> Shape:
        if route not in self._shapes:
            served = self.served
            self._shapes[route] = Shape(
                served.version, route, served.threshold, served.features, self._hidden, served.hidden
            )
        return self._shapes[route]

    async def predict(self, rows: Rows, until: float | None, is_gone: Callable[[], bool]) -> Part:
        """The answer to a request's rows, alone or in a batch with others'; see `Batcher.submit`."""
        return await self.batcher.submit(rows, until=until, is_gone=is_gone)

    def answer(self, batch: Sequence[Rows]) -> Answer:
        """The answer to several requests' rows, or to copies of them, in any thread."""
        return self.served.predictor.answer(together(batch))

    def keep_copy(self, part: Part, id: str, latency_us: int, size: int, compared: tuple[int, int]) -> None:
        """Counts and logs the answer to the copy of a request."""
        self.tally.observe(part.features, part.values)
        self.log(part, id, latency_us, size, SHADOW, compared)

    @property
    def tally(self) -> Tally:
        """Where this version is counted now."""
        return self._outbox.tally(self.version, self.served.reference.specs)

    def _observe(self, answer: Answer) -> None:
        tally = self.tally
        tally.traffic.batch_rows.update(len(answer.values))
        tally.observe(answer.given, answer.values)

    def log(
        self,
        part: Part,
        id: str,
        latency_us: int,
        size: int,
        route: str = CHAMPION,
        compared: tuple[int, int] | None = None,
    ) -> None:
        """Takes an answered request, whose body had so many bytes, into the prediction log (see `Entry`)."""
        at_us = time.time_ns() // 1000
        entry = Entry(id, part.batch, part.start, part.stop, at_us, latency_us, size, compared)
        self._log.add(self._shape(route), entry)


class Versions:
    """The champion, the one before it and its challenger; `poll` keeps them as the release says.

    `contest` is what champion and challenger are compared in, where they are.
    """

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
        self._following = Following(storage, model, outbox.source)
        #: What is in memory by `record.key`, and what could not be, with the reason.
        self._held: dict[str, Live] = {}
        self._errors: dict[str, str] = {}
        self._seen: tuple[int, int] | None = None
        self._document = record.new(model)
        self._loading: dict[str, asyncio.Task[None]] = {}
        self.champion: Live | None = None
        self.challenger: Live | None = None
        self.contest: Contest | None = None

    @property
    def loaded(self) -> list[str]:
        """The versions that can be asked for."""
        return [live.version for live in self._held.values()]

    def find(self, version: str | None) -> Live | None:
        """The version asked for, else the champion, if it is loaded."""
        if version is None:
            return self.champion
        return next((live for live in self._held.values() if live.version == version), None)

    def load(self) -> None:
        """Loads the champion in this thread, if there is one; raises what loading raises."""
        entry = record.read(self._storage, self._model).get("champion")
        if entry is not None:
            self._switch(record.key(entry), self._made(entry))

    async def refresh(self) -> bool:
        """Does what the release says, if it has changed; whether the champion is now another one.

        Others are loaded beside, in tasks of their own (`settled`). What a champion's loading raises is
        raised, and the old champion goes on.
        """
        seen = record.mark(self._path)
        if seen is None or seen == self._seen:
            return False
        document, before = record.read(self._storage, self._model), self.champion
        self._document, self._seen = document, seen
        try:
            if (entry := document["champion"]) is not None:
                self._switch(record.key(entry), await self._live(entry))
        finally:
            for place in ("challenger", "previous"):
                self._try(document[place])
            await self._forget()
            self._follow()
        return self.champion is not before

    async def settled(self) -> None:
        """When all that is being loaded is there, or has failed."""
        while self._loading:
            await asyncio.gather(*self._loading.values())

    async def poll(self) -> None:
        """Refreshes again and again, until cancelled; a failure is logged and the champion stays."""
        pause_s = record.POLL_S
        while True:
            await asyncio.sleep(pause_s)
            try:
                await self.refresh()
                pause_s = record.POLL_S
            except DEFECTS:  # whatever a package does, the poll goes on
                # It may have been the moment's fault: tried again, less and less often.
                self._seen, pause_s = None, min(2 * pause_s, MOST_PAUSE_S)
                logger.exception("%s: the release cannot be followed; what answers goes on", self._model)

    async def beat(self) -> None:
        """Says again and again that this replica lives, until cancelled."""
        while True:
            await asyncio.sleep(ALIVE_S)
            try:
                if not self._following.beat():
                    self._tell()
            except OSError as error:
                logger.warning("%s: this replica cannot say that it lives (%s)", self._model, error.strerror)

    def close(self) -> None:
        """Says that this replica ends, as it should."""
        self._following.close()

    def _tell(self) -> None:
        """Says what this replica holds."""
        self._following.say(self._document["turn"], tuple(self._held), self._errors)

    def _made(self, entry: dict[str, Any], aside: int = 0) -> Live:
        return Live(self._load(entry), self._outbox, self._log, self._batching, self._hidden, aside)

    async def _live(self, entry: dict[str, Any]) -> Live:
        """The version of an entry, loaded in a thread where it is not held yet."""
        held = self._held.get(record.key(entry))
        return await asyncio.to_thread(self._made, entry) if held is None else held

    def _try(self, entry: dict[str, Any] | None) -> None:
        """Begins to load a version beside the champion, where it is not held, or has failed."""
        if entry is None or "digest" not in entry:
            return
        key = record.key(entry)
        if not {key} & (self._held.keys() | self._errors.keys() | self._loading.keys()):
            self._loading[key] = asyncio.get_running_loop().create_task(self._load_beside(key, entry))

    async def _load_beside(self, key: str, entry: dict[str, Any]) -> None:
        """Holds a version; of one that cannot be loaded it is told why."""
        try:
            self._held[key] = await asyncio.to_thread(self._made, entry, FIRST_ASIDE)
        except DEFECTS as error:  # whatever a package does, the champion goes on
            logger.exception("%s: version %s cannot be loaded", self._model, entry["version"])
            self._errors[key] = one_line(error)[:MOST_SAID] or type(error).__name__
        finally:
            del self._loading[key]
        # In one step of the loop: nobody finds what is held and has no place.
        self._follow()
        await self._forget()

    def _follow(self) -> None:
        """Has the versions that are held do what the release says of them, and says so."""
        self._compare(self._document)
        self._tell()

    def _switch(self, key: str, live: Live) -> None:
        self.champion = self._held[key] = live

    def _compare(self, document: dict[str, Any]) -> None:
        """Has champion and challenger compared, where the release says so and both are there."""
        entry, turn = document["challenger"], document["turn"]
        key = record.key(entry) if entry and "digest" in entry else ""
        self.challenger = self._held.get(key)
        split, before = Split(key, document["weight"], document["shadow"]), self.contest
        is_same = (
            before is not None and before.champion is self.champion and before.challenger is self.challenger
        )
        if self.champion is None or self.challenger is None or not (split.weight or split.shadow):
            self.contest = None
        elif before is None or before.turn != turn or not is_same:
            pace = before.pace if before is not None and is_same else Pace()
            sides = partial(self._outbox.sides, turn)
            self.contest = Contest(turn, split, self.champion, self.challenger, sides, pace)

    async def _forget(self) -> None:
        """Lets versions go that the release does not name any more."""
        places = [self._document[place] for place in ("champion", "previous", "challenger")]
        named = {record.key(entry) for entry in places if entry and "digest" in entry}
        named |= {key for key, live in self._held.items() if live is self.champion}
        self._errors = {key: said for key, said in self._errors.items() if key in named}
        gone = self._held.keys() - named
        self._held = {key: live for key, live in self._held.items() if key in named}
        if gone:
            # What nobody can ask for any more is part of a cycle; its model is as large as the new one.
            await asyncio.to_thread(gc.collect)
