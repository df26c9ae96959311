"""The Serve application at /: not on the way of a prediction over HTTP; those over gRPC pass through."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, cast

import grpc  # type: ignore[import-untyped]
import orjson
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException

from mlops_ray.data import error_log
from mlops_ray.keys import Keyring
from mlops_ray.monitoring import deltas
from mlops_ray.policy import placed
from mlops_ray.serving import direct, record, rpc
from mlops_ray.serving.asgi import REQUEST_ID, Answered, App
from mlops_ray.serving.documents import show
from mlops_ray.serving.handles import Handles
from mlops_ray.serving.routes import Routes
from mlops_ray.storage import Storage

logger = logging.getLogger(__name__)

APPLICATION = "gateway"
ROUTE = "/"
#: A monitor that has just been killed is back within seconds; the page shows what it can meanwhile.
SNAPSHOT_S = 3.0
#: Whether it is there is asked with each page, which is to stay under a second.
PING_S = 0.5
#: Pages and scrapers, not predictions.
MAX_ONGOING_REQUESTS = 1_000
HEALTH_CHECK_S = 1.0
#: The longest that a call over gRPC waits for a replica, one that starts from zero included.
ANSWER_S = 60.0
#: What calls over gRPC get to end when this process does; other gateways take new ones.
GRACE_S = 2.0


class Gateway:
    """The process that serves `Routes`, and gRPC where it has a listener."""

    def __init__(self, storage_root: str, listener: rpc.Listener | None) -> None:
        self._storage, self._listener = Storage.open(storage_root), listener
        error_log.install(self._storage, "gateway")
        self._routes = Routes(self._storage, self._snapshot, self._ping)
        self._server: Any = None
        self._handles = Handles()

    def __serve_build_asgi_app__(self) -> App:
        """What Serve asks for the ASGI application."""

        return direct.by_serve(self._routes, self._start, self._stop)

    async def _snapshot(self) -> dict[str, Any]:
        async with asyncio.timeout(SNAPSHOT_S):
            return cast(dict[str, Any], await (await self._monitor()).snapshot.remote())

    async def _ping(self) -> bool:
        async with asyncio.timeout(PING_S):
            return cast(bool, await (await self._monitor()).ping.remote())

    async def _monitor(self) -> Any:
        return await self._handles.get(deltas.DEPLOYMENT, deltas.APPLICATION)

    async def _start(self) -> None:
        self._routes.warm()
        if self._listener is not None:
            self._server, _ = await rpc.start(self._listener, self._ask, Keyring(self._storage))

    async def _stop(self) -> None:
        if self._server is not None:
            await self._server.stop(GRACE_S)

    async def _ask(
        self, model: str, path: str, headers: dict[str, str], body: bytes = b"", method: str = "GET"
    ) -> Answered:
        """What a replica of the model answers, or this gateway where the model is empty."""
        if not model:
            return await self._routes.exchange(method, path, headers, body)
        try:
            async with asyncio.timeout(ANSWER_S):
                handle = await self._handle(model)
                if handle is None:
                    return _error(404, f"no model {show(model)} is deployed here")
                return await _answer(handle.call.remote(path, headers, body, method))
        except TimeoutError:
            return _away(504, model, f"no replica of {show(model)} answered within {ANSWER_S:.0f} s", headers)
        except (RayActorError, RayServeException, grpc.aio.AioRpcError):
            self._handles.drop(model, model)
            return _away(503, model, f"no replica of {show(model)} answered; send the request again", headers)

    async def _handle(self, model: str) -> Any:
        """A handle on the model's deployment; None where it has no release, or no application."""
        # Names of other applications, and those that a caller made up, are no models.
        if (model, model) not in self._handles and not await asyncio.to_thread(self._is_released, model):
            return None
        try:
            return await self._handles.get(model, model)
        except RayServeException:
            return None

    def _is_released(self, model: str) -> bool:
        return any(document["model"] == model for document in record.read_all(self._storage))


async def _answer(response: Any) -> Answered:
    """What a replica says; who waits no longer, or is gone, has it stop."""
    try:
        return cast(Answered, await response)
    except asyncio.CancelledError:
        response.cancel()
        raise


def _away(status: int, model: str, sentence: str, headers: Mapping[str, str]) -> Answered:
    """No replica can say it, so that the log hears of it here."""
    told = {"model": model, "status": status, "request": headers.get(REQUEST_ID, "")}
    logger.error("%s", sentence, extra=told)
    return _error(status, sentence)


def _error(status: int, sentence: str) -> Answered:
    return status, {}, orjson.dumps({"error": sentence})


def deployment(
    storage_root: str, label_selector: dict[str, str], listener: rpc.Listener | None = None
) -> serve.Application:
    """The gateway's application, to be run at `ROUTE`; without a listener it speaks no gRPC."""
    gateway = serve.deployment(
        name="Gateway",
        num_replicas=1,
        ray_actor_options=placed(label_selector, num_cpus=0),
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        health_check_period_s=HEALTH_CHECK_S,
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )(serve.ingress()(Gateway))
    return gateway.bind(storage_root, listener)
