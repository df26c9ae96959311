"""The monitor: a Serve deployment that merges what replicas count, keeps it on disk, and answers questions.

It stands on no request's path. What it has acknowledged is on disk, so that it can be killed at any moment.
"""

import asyncio
import logging
import time
from typing import Any

import polars as pl
from ray import serve

from mlops_ray.data import error_log, labels, prediction_log
from mlops_ray.data.error_log import DEFECTS
from mlops_ray.errors import MlopsError, Once, safe
from mlops_ray.monitoring import alerts, journal, looks
from mlops_ray.monitoring.alerting import Alerting
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
#: How often is looked for what people are to be told, and what became of what they were.
ALERT_S = 5.0
#: How often a look is tried that fails.
MOST_TRIES = 5
#: How often the files of the prediction logs are joined.
COMPACT_S = 3600.0

logger = logging.getLogger(__name__)


class Monitor:
    """`record` takes deltas of replicas in, `snapshot` says what they amount to."""

    def __init__(self, storage_root: str) -> None:
        self._storage = Storage.open(storage_root)
        error_log.install(self._storage, "monitor")
        self._models = {state.model: state for state in _stored(self._storage)}
        self._unsaved: set[str] = set()
        self._one_at_a_time = asyncio.Lock()
        self._compacted_at = time.monotonic()
        self._compacting: asyncio.Task[None] | None = None
        self._alerting = Alerting(self._storage)
        # Serve constructs within its loop.
        loop = asyncio.get_running_loop()
        self._tending, self._telling = loop.create_task(self._tend()), loop.create_task(self._tell())

    async def record(self, delta: dict[str, Any]) -> int:
        """Stores a delta (`deltas.Outbox.delta`), acknowledges its number; the same again is harmless."""
        async with self._one_at_a_time:
            state = self._models.setdefault(delta["model"], ModelState(delta["model"]))
            if state.receive(delta, time.time()):
                self._unsaved.add(state.model)
            await self._save(state)
        if time.monotonic() - self._compacted_at > COMPACT_S:
            self._compacted_at = time.monotonic()
            self._compacting = asyncio.create_task(self._compact())
        return int(delta["sequence"])

    async def ping(self) -> bool:
        """Whether there is somebody who counts."""
        return True

    async def snapshot(self) -> dict[str, Any]:
        """The document of `report`, for each model by its name."""
        async with self._one_at_a_time:
            return {
                name: report(self._storage, state) | {"alerts": self._alerting.counted(name)}
                for name, state in self._models.items()
            }

    async def _tend(self) -> None:
        """Closes windows also while nobody asks for predictions, and looks at those that have closed."""
        while True:
            await asyncio.sleep(TEND_S)
            for state in list(self._models.values()):
                try:
                    await self._keep(state)
                    await self._look(state)
                except DEFECTS as error:  # the next turn tries again
                    logger.error("the windows of %s are not looked at (%s)", state.model, safe(error))

    async def _keep(self, state: ModelState) -> None:
        """Writes the hours that are over into the journal; one that was written twice counts once."""
        async with self._one_at_a_time:
            over = state.hours(time.time())
            for version, hour in over:
                await asyncio.to_thread(
                    journal.append, self._storage, state.model, journal.TRAFFIC, hour.entry(version)
                )
                state.versions[version].hours.remove(hour)
            if over:
                self._unsaved.add(state.model)
                await self._save(state)

    async def _tell(self) -> None:
        """Has people told of what is wrong, and that it is over; what hinders it is said once."""
        wrong = Once()
        while True:
            await asyncio.sleep(ALERT_S)
            try:
                await self._alert()
                wrong.over("alerts")
            except DEFECTS as error:  # the next turn tries again
                if wrong.is_news("alerts", said := safe(error)):
                    logger.error("alerts do not go out (%s)", said)

    async def _alert(self) -> None:
        async with self._one_at_a_time:
            seen = [alerts.seen(state, time.time()) for state in self._models.values()]
        await asyncio.to_thread(self._alerting.tick, seen)

    async def _look(self, state: ModelState) -> None:
        """Looks at what has closed, one window after another; counts come in meanwhile.

        Those of a process that dies before it has saved are looked at again.
        """
        async with self._one_at_a_time:
            state.close(time.time())
            due = [window for window in state.unseen if time.time() - window.until >= looks.SETTLED_S]
        for window in due:
            try:
                seen = await asyncio.to_thread(looks.see, self._storage, state.outlook, window)
            except DEFECTS as error:  # one window that cannot be looked at holds up no other
                logger.error("a window of %s cannot be looked at (%s)", state.model, safe(error))
                window.tries += 1
                if window.tries < MOST_TRIES:
                    continue
                seen = None
            async with self._one_at_a_time:
                await asyncio.to_thread(looks.settle, self._storage, state, window, seen)
                self._unsaved.add(state.model)
                await self._save(state)

    async def _save(self, state: ModelState) -> None:
        if state.model in self._unsaved:
            await asyncio.to_thread(self._storage.write_json, state.to_json(), FOLDER, f"{state.model}.json")
            self._unsaved.discard(state.model)

    async def _compact(self) -> None:
        """Joins the small files of the prediction logs and of the labels."""
        for name in list(self._models):
            try:
                await asyncio.to_thread(prediction_log.compact, self._storage, name)
                await asyncio.to_thread(labels.compact, self._storage, name)
            except (OSError, pl.exceptions.PolarsError) as error:
                logger.error("the log and the labels of %s stay in small files: %s", name, safe(error))


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
            logger.error(
                "%s cannot be read (%s); counting starts anew, the file is kept beside", path, safe(error)
            )
            path.replace(path.with_suffix(".damaged"))
    return found
