"""A model's Serve deployment: raw ASGI in front of the loaded versions, HAProxy sends to it directly.

It imports neither MLflow nor pandas nor scikit-learn, unless a model needs it.
"""

import asyncio
import contextlib
import logging
from typing import Any

from ray import serve

from mlops_ray.config import Project, Serving
from mlops_ray.features.shelves import online_location
from mlops_ray.keys import Keyring
from mlops_ray.monitoring import deltas
from mlops_ray.monitoring.deltas import Outbox
from mlops_ray.registry import estimator, signing
from mlops_ray.serving.asgi import NO_WEBSOCKET, App, Receive, Scope, Send, lifespan
from mlops_ray.serving.endpoint import PREFIX, Endpoint
from mlops_ray.serving.versions import Versions, loader
from mlops_ray.storage import Storage

#: How often counts go to the monitor: what a killed replica had not sent yet is lost with it.
FLUSH_S = 2.0
#: An acknowledgement takes milliseconds; a monitor that is just restarting gets the same delta again later.
ACKNOWLEDGE_S = 10.0
#: Serve's own limit: far above what our own queue admits, since a request waits for it before any of our code
#: runs, and Serve's refusal is plain text.
MAX_ONGOING_REQUESTS = 10_000
#: How soon a dead replica is noticed; at the default of 10 s requests hang for 13 s.
HEALTH_CHECK_S = 1.0
LOGGING = {"log_level": "WARNING", "enable_access_log": False}

logger = logging.getLogger(__name__)


class Replica:
    """One process that answers a model's requests, from the release document in the storage."""

    def __init__(
        self,
        storage_root: str,
        model: str,
        serving: dict[str, Any],
        hidden: list[str],
        online: str,
        functions: list[str],
        trusted: list[str],
        types: list[str],
    ) -> None:
        """Loads the champion, so that Serve sends nothing here before; a broken package ends the start."""
        storage, names = Storage.open(storage_root), frozenset(hidden)
        batching = Serving.model_validate(serving).batching
        self._outbox = Outbox(model)
        load = loader(storage, online, frozenset(functions), frozenset(trusted), frozenset(types))
        self._versions = Versions(storage, model, load, self._outbox, batching, names)
        self._endpoint = Endpoint(model, self._versions, Keyring(storage), names)
        self._tasks: list[asyncio.Task[None]] = []
        self._monitor: Any = None
        self._versions.load()

    def __serve_build_asgi_app__(self) -> App:
        """What Serve asks for the ASGI application."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                await self._endpoint(scope, receive, send)
            elif scope["type"] == "websocket":
                await send(NO_WEBSOCKET)
            elif scope["type"] == "lifespan":
                await lifespan(receive, send, self._start, self._stop)

        return app

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._versions.poll()), loop.create_task(self._report())]

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        # An earlier delta may wait for its acknowledgement, and the newest counts behind it.
        with contextlib.suppress(Exception):
            while self._outbox.delta() is not None:
                await self._flush()

    async def _report(self) -> None:
        """Sends counts to the monitor, off the path of requests; what is not acknowledged is sent again."""
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                await self._flush()
            except Exception as error:  # noqa: BLE001 - requests are answered also where nobody counts them
                logger.warning("the monitor took no counts (%s); they are sent again", type(error).__name__)

    async def _flush(self) -> None:
        delta = self._outbox.delta()
        if delta is not None:
            self._monitor = self._monitor or serve.get_deployment_handle(
                deltas.DEPLOYMENT, deltas.APPLICATION
            )
            async with asyncio.timeout(ACKNOWLEDGE_S):
                self._outbox.acknowledge(await self._monitor.record.remote(delta))


def deployment(
    project: Project, storage: Storage, label_selector: dict[str, str], hidden: frozenset[str]
) -> serve.Application:
    """The model's application, to be run at `route(NAME)`; nobody may see values of `hidden` columns."""
    serving = project.serving
    options: dict[str, Any] = {
        "num_cpus": serving.resources.cpu,
        "num_gpus": serving.resources.gpu,
        **({"label_selector": label_selector} if label_selector else {}),
    }
    replica = serve.deployment(
        name=project.project,
        ray_actor_options=options,
        autoscaling_config={"min_replicas": serving.replicas.min, "max_replicas": serving.replicas.max},
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        health_check_period_s=HEALTH_CHECK_S,
        logging_config=LOGGING,
    )(serve.ingress()(Replica))
    return replica.bind(
        str(storage.root),
        project.project,
        serving.model_dump(mode="json"),
        sorted(hidden),
        online_location(project, storage),
        sorted(project.functions),
        sorted(signing.trusted(project, storage)),
        sorted(estimator.allowed(project)),
    )


def route(model: str) -> str:
    """The path below which a model answers."""
    return f"{PREFIX}/{model}"
