"""Processes that bring an online store up to a history until they are done or killed; see `writers`."""

import os
import pickle
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import redis

from mlops_ray.features import shelves
from mlops_ray.features.materialize import materialize
from mlops_ray.features.online import OnlineStore
from mlops_ray.features.shelves import Record, Shelf, Write

from . import writers

#: The client is loaded once, before any fork.
_ = redis.Redis
#: Records that go to Redis at once here: fewer than ever, for more moments at which some are there.
BATCH = 20


class Dying:
    """A shelf whose writer kills itself when it has handed over so many records."""

    def __init__(self, shelf: Shelf, after: int) -> None:
        self._shelf, self._after = shelf, after
        self.about, self.get, self.close = shelf.about, shelf.get, shelf.close

    def put(self, table: str, write: Write) -> bool:
        return self._shelf.put(table, write._replace(records=self._some(write.records)))

    def _some(self, records: Iterable[Record]) -> Iterator[Record]:
        for number, record in enumerate(records):
            if number == self._after:
                os.kill(os.getpid(), signal.SIGKILL)
            yield record


def bring_up(say: Callable[[Any], None], *, place: str, what: str, dies_after: int | None = None) -> None:
    """Materialises features from snapshots, which lie pickled in a file."""
    shelves.BATCH = BATCH
    features, snapshots = pickle.loads(Path(what).read_bytes())
    store = OnlineStore(place)
    if dies_after is not None:
        store._shelf = Dying(store._shelf, dies_after)
    materialize(store, features, snapshots)
    say("all")


if __name__ == "__main__":
    writers.JOBS["materialize"] = bring_up
    writers.main()
