"""Processes that register a package, and are killed before one of their steps."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What a registration imports lazily is there before the first fork.
import mlflow.pyfunc
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
from sqlalchemy import event
from sqlalchemy.engine import Engine

from mlops_ray.registry import package
from mlops_ray.registry.registry import Registry
from tests.features import writers


class Steps:
    """Counts files that are written in a folder, and commits; kills this process before one of these."""

    def __init__(self, folder: str, last: int) -> None:
        self._folder, self._left, self._is_changed = folder, last, False
        sys.addaudithook(self._hear)
        event.listen(Engine, "before_cursor_execute", self._execute)
        event.listen(Engine, "commit", self._commit)

    def _hear(self, what: str, given: tuple[Any, ...]) -> None:
        if what == "open" and given[2] & os.O_WRONLY and str(given[0]).startswith(self._folder):
            self._step()

    def _execute(self, _connection: object, _cursor: object, statement: str, *_: object) -> None:
        self._is_changed |= not statement.lstrip().upper().startswith(("SELECT", "PRAGMA"))

    def _commit(self, _connection: object) -> None:
        if self._is_changed:
            self._is_changed = False
            self._step()

    def _step(self) -> None:
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)


def register(say: Callable[[Any], None], *, folder: str, packed: str, run: str, killed_before: int) -> None:
    """Registers a package of a run at the registry of a folder."""
    Steps(folder, killed_before)
    say(Registry(f"sqlite:///{folder}/mlflow.db").register(package.read(Path(packed)), run_id=run))


if __name__ == "__main__":
    writers.JOBS["register"] = register
    writers.main()
