"""The monitor: a Serve deployment that merges what replicas count, keeps it on disk, and answers questions.

It stands on no request's path. What it has acknowledged is on disk, so that it can be killed at any moment.
"""

import asyncio
import logging
import time
from typing import Any

import polars as pl
from ray import serve

from mlops_ray.data import prediction_log
from mlops_ray.errors import MlopsError, one_line
from mlops_ray.monitoring import looks
from mlops_ray.monitoring.deltas import DEPLOYMENT
from mlops_ray.monitoring.journal import FOLDER
from mlops_ray.monitoring.report import report
from mlops_ray.monitoring.state import ModelState
from mlops_ray.policy import placed
from mlops_ray.storage import Storage

#: Every replica has at most one delta on its way, every page one question.
MAX_ONGOING_REQUESTS = 1_000
#: How soon a dead monitor is noticed and started anew.
HEALTH_CHECK_S = 1.0
#: How often is looked for windows to close.
TEND_S = 5.0
#: How often the files of the prediction logs are joined.
COMPACT_S = 3600.0

logger = logging.getLogger(__name__)


class Monitor:
    """`record` takes deltas of replicas in, `snapshot` says what they amount to."""

    def __init__(self, storage_root: str) -> None:
        self._storage = Storage.open(storage_root)
        self._models = {state.model: state for state in _stored(self._storage)}
        self._unsaved: set[str] = set()
        self._one_at_a_time = asyncio.Lock()
        self._compacted_at = time.monotonic()
        self._compacting: asyncio.Task[None] | None = None
        # Serve constructs within its loop.
        self._tending = asyncio.get_running_loop().create_task(self._tend())

    async def record(self, delta: dict[str, Any]) -> int:
        """Stores a delta (`deltas.Outbox.delta`), acknowledges its number; the same again is harmless."""
        async with self._one_at_a_time:
            state = self._models.setdefault(delta["model"], ModelState(delta["model"]))
            # What comes after a window's time counts in the next.
            await self._close(state)
            if state.receive(delta, time.time()):
                self._unsaved.add(state.model)
            await self._save(state)
        if time.monotonic() - self._compacted_at > COMPACT_S:
            self._compacted_at = time.monotonic()
            self._compacting = asyncio.create_task(self._compact())
        return int(delta["sequence"])

    async def snapshot(self) -> dict[str, Any]:
        """The document of `report`, for each model by its name."""
        async with self._one_at_a_time:
            return {name: report(self._storage, state) for name, state in self._models.items()}

    async def _tend(self) -> None:
        """Closes windows whose time is over also while nobody asks for predictions."""
        while True:
            await asyncio.sleep(TEND_S)
            for state in list(self._models.values()):
                try:
                    async with self._one_at_a_time:
                        await self._close(state)
                        await self._save(state)
                except Exception as error:  # noqa: BLE001 - the next turn tries again
                    logger.error("the windows of %s do not close (%s)", state.model, one_line(error))

    async def _close(self, state: ModelState) -> None:
        """Closes the windows whose time is over, and looks at them; what fails is looked at again."""
        now = time.time()
        state.close(now)
        while state.unseen and now - (state.unseen[0][1].until or now) >= looks.SETTLED_S:
            self._unsaved.add(state.model)
            await asyncio.to_thread(looks.look_at, self._storage, state, *state.unseen[0])
            state.unseen.pop(0)

    async def _save(self, state: ModelState) -> None:
        if state.model in self._unsaved:
            await asyncio.to_thread(self._storage.write_json, state.to_json(), FOLDER, f"{state.model}.json")
            self._unsaved.discard(state.model)

    async def _compact(self) -> None:
        """Joins the small files of the prediction logs."""
        for name in list(self._models):
            try:
                await asyncio.to_thread(prediction_log.compact, self._storage, name)
            except (OSError, pl.exceptions.PolarsError) as error:
                logger.error("the prediction log of %s stays in small files: %s", name, one_line(error))


def deployment(storage_root: str, label_selector: dict[str, str]) -> serve.Application:
    """The monitor's application; it has no route, and one replica, which merges for all."""
    watcher = serve.deployment(
        name=DEPLOYMENT,
        num_replicas=1,
        ray_actor_options=placed(label_selector, num_cpus=0),
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        health_check_period_s=HEALTH_CHECK_S,
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )(Monitor)
    return watcher.bind(storage_root)


def _stored(storage: Storage) -> list[ModelState]:
    """What was on disk; a damaged document is set aside with a word, it must not keep the monitor down."""
    found = []
    for path in sorted(storage.path(FOLDER, "x").parent.glob("[!.]*.json")):
        try:
            found.append(ModelState.from_json(storage.read_json(FOLDER, path.name)))
        except (MlopsError, KeyError, TypeError, ValueError) as error:
            logger.error("%s cannot be read (%s); counting starts anew, the file is kept beside", path, error)
            path.replace(path.with_suffix(".damaged"))
    return found
