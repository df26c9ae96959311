"""Who lives: the replicas that follow a model's release, and who reconciles, in small files below `release`.

    replicas/NAME/ID.json    what a replica holds in memory; touched while it lives, and gone with its end
    replicas/NAME/.ID.alive  locked for as long: its death is known at once on the same machine
    .reconciler              touched with every look at the storage

Elsewhere a replica that has said nothing for `DEAD_S` is dead: locks do not reach over every file system.
"""

import contextlib
import fcntl
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO

from mlops_ray.errors import StorageError
from mlops_ray.storage import Storage, locked

FOLDER = "release/replicas"
#: How often a replica says that it lives, and after which silence it does not.
ALIVE_S, DEAD_S = 1.0, 6.0
#: After which silence nobody reconciles; one that is just restarting is back sooner.
SILENT_S = 30.0
_RECONCILER = ("release", ".reconciler")
#: Tells one start of a machine from another, which no name does.
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Follower:
    """A replica: the turn of the release that it follows, what it holds by `record.key`, what did not load.

    `errors` are sentences by key; `silent_s` is how long ago it last said that it lives.
    """

    id: str
    turn: int = -1
    loaded: tuple[str, ...] = ()
    errors: Mapping[str, str] = field(default_factory=dict)
    is_alive: bool = True
    silent_s: float = 0.0


class Following:
    """What a replica says of itself, until `close`, or its death."""

    def __init__(self, storage: Storage, model: str, id: str) -> None:
        self._storage, self._model, self._id = storage, model, id
        self._life: IO[str] | None = None
        self._has_ended = False

    def say(self, turn: int, loaded: Sequence[str], errors: Mapping[str, str]) -> None:
        """Says what the replica holds; nothing after its end, whatever is still being loaded."""
        if self._has_ended:
            return
        if self._life is None:
            # Some file systems know no locks.
            with contextlib.suppress(OSError):
                self._life = locked(self._storage.path(FOLDER, self._model, _life(self._id)))
        machine = None if self._life is None else _machine()
        said = {"turn": turn, "loaded": list(loaded), "errors": dict(errors), "machine": machine}
        self._storage.write_json(said, FOLDER, self._model, f"{self._id}.json")

    def beat(self) -> bool:
        """Says that the replica lives; whether it had said before what it holds."""
        try:
            os.utime(self._storage.root.joinpath(FOLDER, self._model, f"{self._id}.json"))
        except FileNotFoundError:
            return False
        return True

    def close(self) -> None:
        """Says that the replica ends, as it should."""
        self._has_ended = True
        bury(self._storage, self._model, self._id)
        if self._life is not None:
            self._life.close()


def followers(storage: Storage, model: str) -> list[Follower]:
    """The replicas of a model that live, or died without a word, by id."""
    found = []
    for path in sorted(storage.root.joinpath(FOLDER, model).glob("[!.]*.json")):
        # One that ends takes its file with it.
        with contextlib.suppress(FileNotFoundError, StorageError, AttributeError, KeyError, TypeError):
            said = storage.read_json(FOLDER, model, path.name)
            silent_s = time.time() - path.stat().st_mtime
            is_alive = silent_s < DEAD_S and not _has_died(path, said)
            told = said["turn"], tuple(said["loaded"]), said["errors"]
            found.append(Follower(path.stem, *told, is_alive, silent_s))
    return found


def bury(storage: Storage, model: str, id: str) -> None:
    """Takes away what a replica said that died, or ends; safe to repeat."""
    # What is left of half of it is found again by the other half.
    for name in (_life(id), f"{id}.json"):
        storage.root.joinpath(FOLDER, model, name).unlink(missing_ok=True)


def _life(id: str) -> str:
    return f".{id}.alive"


def _has_died(path: Path, said: Mapping[str, object]) -> bool:
    """Whether the lock of a replica on this machine is nobody's any more."""
    if said.get("machine") is None or said["machine"] != _machine():
        return False
    try:
        with path.with_name(_life(path.stem)).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        # It is held; or gone, with a replica that ends.
        return False
    # One that ended just now has taken it away before.
    return path.exists()


def reconciles(storage: Storage) -> None:
    """Says that somebody looks for what was pushed."""
    storage.path(*_RECONCILER).touch()


def silent_s(storage: Storage) -> float:
    """For how long nobody has looked; infinity where nobody ever has."""
    try:
        return time.time() - storage.root.joinpath(*_RECONCILER).stat().st_mtime
    except FileNotFoundError:
        return math.inf


@cache
def _machine() -> str | None:
    try:
        return f"{platform.node()} {_BOOT.read_text().strip()}"
    except OSError:
        return None
