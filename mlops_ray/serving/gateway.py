"""The Serve application at /. It is not on the way of a prediction."""

import asyncio
from typing import Any, cast

from ray import serve

from mlops_ray.monitoring import deltas
from mlops_ray.serving.asgi import NO_WEBSOCKET, App, Receive, Scope, Send, lifespan
from mlops_ray.serving.routes import Routes
from mlops_ray.storage import Storage

APPLICATION = "gateway"
ROUTE = "/"
#: A monitor that has just been killed is back within seconds; the page shows what it can meanwhile.
SNAPSHOT_S = 3.0
#: Pages and scrapers, not predictions.
MAX_ONGOING_REQUESTS = 1_000
HEALTH_CHECK_S = 1.0


class Gateway:
    """The process that serves `Routes`."""

    def __init__(self, storage_root: str) -> None:
        self._routes = Routes(Storage.open(storage_root), self._snapshot)
        self._monitor: Any = None

    def __serve_build_asgi_app__(self) -> App:
        """What Serve asks for the ASGI application."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                await self._routes(scope, receive, send)
            elif scope["type"] == "websocket":
                await send(NO_WEBSOCKET)
            elif scope["type"] == "lifespan":
                await lifespan(receive, send, _nothing, _nothing)

        return app

    async def _snapshot(self) -> dict[str, Any]:
        self._monitor = self._monitor or serve.get_deployment_handle(deltas.DEPLOYMENT, deltas.APPLICATION)
        async with asyncio.timeout(SNAPSHOT_S):
            return cast(dict[str, Any], await self._monitor.snapshot.remote())


async def _nothing() -> None:
    """There is nothing to start, and nothing to stop."""


def deployment(storage_root: str, label_selector: dict[str, str]) -> serve.Application:
    """The gateway's application, to be run at `ROUTE`."""
    options: dict[str, Any] = {
        "num_cpus": 0,
        **({"label_selector": label_selector} if label_selector else {}),
    }
    gateway = serve.deployment(
        name="Gateway",
        num_replicas=1,
        ray_actor_options=options,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        health_check_period_s=HEALTH_CHECK_S,
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )(serve.ingress()(Gateway))
    return gateway.bind(storage_root)
