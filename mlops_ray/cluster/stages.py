"""The record of a run's stages: what was done, from what, so that only what changed is done again.

A stage is recorded after it is whole. Killing a run at any moment costs at most the stage that it was in.
"""

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from mlops_ray.errors import StorageError
from mlops_ray.storage import Storage, digest

FILE = "pipeline.json"
LOCK = "pipeline.lock"


class Progress(Protocol):
    """Who watches a run: a terminal, or nobody."""

    def begin(self, stage: str) -> None: ...

    def update(self, message: str) -> None: ...

    def end(self, stage: str, message: str, seconds: float | None) -> None:
        """`seconds` is `None` where nothing had changed."""


class Silent(Progress):
    """Nobody watches."""


@dataclass
class Stages:
    """Runs stages, skips what was done from the same input, and keeps the time of each."""

    storage: Storage
    progress: Progress = field(default_factory=Silent)
    seconds: dict[str, float] = field(default_factory=dict)
    unchanged: list[str] = field(default_factory=list)

    def run(
        self,
        name: str,
        made_from: Any,
        do: Callable[[], dict[str, Any]],
        *,
        say: Callable[[dict[str, Any]], str],
        still_there: Callable[[dict[str, Any]], bool] = lambda result: True,
        before: Callable[[], object] = lambda: None,
    ) -> dict[str, Any]:
        """The result of a stage, plain JSON: the recorded one where `made_from` is as it was, else a new one.

        `still_there` says whether what a recorded result names exists yet; `say` puts a result into words;
        `before` is called ahead of a stage that is done.
        """
        fingerprint = digest(made_from)
        known = self._record().get(name)
        if known is not None and known["fingerprint"] == fingerprint and still_there(known["result"]):
            self.progress.end(name, say(known["result"]), None)
            self.seconds[name] = 0.0
            self.unchanged.append(name)
            return dict(known["result"])
        before()
        with self.timed(name, say) as result:
            result |= orjson.loads(orjson.dumps(do(), option=orjson.OPT_SERIALIZE_NUMPY))
        record = self._record()
        record[name] = {"fingerprint": fingerprint, "result": result}
        self.storage.write_json(record, FILE)
        return result

    def _record(self) -> dict[str, Any]:
        try:
            return self.storage.read_json(FILE) or {}
        except StorageError as error:
            raise StorageError(f"{error}; delete it, and every stage is done again") from error

    @contextlib.contextmanager
    def timed(self, name: str, say: Callable[[dict[str, Any]], str]) -> Iterator[dict[str, Any]]:
        """A stage that is done every time; its result is what the caller puts into the dictionary."""
        begin = time.monotonic()
        result: dict[str, Any] = {}
        self.progress.begin(name)
        yield result
        self.seconds[name] = round(time.monotonic() - begin, 2)
        self.progress.end(name, say(result), self.seconds[name])


@contextlib.contextmanager
def alone(storage: Storage, *, wait: bool = False) -> Iterator[None]:
    """Holds the storage for one run; where another works on it, waits, or raises `StorageError`."""
    with storage.path(LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise StorageError(f"another run works on {storage.root}; wait for it, or stop it") from None
        yield
