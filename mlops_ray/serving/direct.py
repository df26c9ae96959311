"""Requests go from a replica's HTTP server straight to our application.

Serve lets one add middleware (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH). Ours stands before all of its own
code, which takes 170 to 240 µs of each request for what we do ourselves: ids, queues, deadlines, disconnects,
metrics. Its control headers therefore do nothing here. Health checks go on to Serve, and so does all that
comes before our application is up; what had to wait at Serve's fallback proxy comes by way of Serve.
"""

from collections.abc import Awaitable, Callable

from starlette.middleware import Middleware

from mlops_ray.serving.asgi import NO_WEBSOCKET, REQUEST_ID, App, Message, Receive, Scope, Send, lifespan

#: Paths that are Serve's own.
OF_SERVE = b"/-/"

_answering: list[App] = []


def middlewares() -> list[Middleware]:
    """What Serve puts before its own code, in every process that it opens an HTTP port in."""
    return [Middleware(Direct)]


class Direct:
    """Sends HTTP requests to the application that answers in this process, if one does."""

    def __init__(self, app: App) -> None:
        self._serve = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # As it was sent: `/%2d/routes` is not Serve's.
        if _answering and scope["type"] == "http" and not scope.get("raw_path", b"").startswith(OF_SERVE):
            await _answering[0](scope, receive, send)
        else:
            await self._serve(scope, receive, send)


def by_serve(app: App, start: Callable[[], Awaitable[None]], stop: Callable[[], Awaitable[None]]) -> App:
    """The application as Serve is given it; from `start` on it answers directly, until the process ends.

    Serve adds X-Request-ID to what comes by way of it.
    """

    async def started() -> None:
        await start()
        _answering[:] = [app]

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await app(scope, receive, lambda message: send(_without_id(message)))
        elif scope["type"] == "websocket":
            await send(NO_WEBSOCKET)
        elif scope["type"] == "lifespan":
            await lifespan(receive, send, started, stop)

    return answered


def _without_id(message: Message) -> Message:
    if message["type"] != "http.response.start":
        return message
    kept = [(name, value) for name, value in message["headers"] if name != REQUEST_ID.encode()]
    return {**message, "headers": kept}
