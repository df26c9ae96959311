"""Requests go from a replica's HTTP server straight to our application.

Serve calls a function of ours in every process that opens an HTTP port (`middlewares`). It puts a protocol of
ours in uvicorn's place, which hands on what the parser found and writes the reply: without Serve's own code,
which takes 170 to 240 µs of each request for what we do ourselves (ids, queues, deadlines, disconnects,
metrics), and most of uvicorn's, which takes 30. Serve's control headers therefore do nothing here. Health
checks go on to Serve, and so does all that comes before our application is up; what had to wait at Serve's
fallback proxy comes by way of Serve.
"""

from collections.abc import Awaitable, Callable
from typing import Any, cast

import uvicorn.config
from starlette.middleware import Middleware
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from mlops_ray.serving.asgi import (
    NO_WEBSOCKET,
    REQUEST_ID,
    App,
    Application,
    Call,
    Message,
    Receive,
    Reply,
    Scope,
    Send,
    lifespan,
)

#: Paths that are Serve's own.
OF_SERVE = b"/-/"
#: Requests of one connection that may wait for each other; no proxy sends more than one.
MOST_PIPELINED = 2_500

_answering: list[Application] = []


def middlewares() -> list[Middleware]:
    """Puts our protocol where uvicorn looks for its own; Serve, which asks for middleware, gets none."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{Direct.__name__}"
    return []


class Direct(HttpToolsProtocol):
    """uvicorn's protocol, which hands requests to the application that answers in this process, if one does.

    Who comes in vain is refused when the head is there, which costs next to nothing.
    """

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if len(self.pipeline) > MOST_PIPELINED:
            self.transport.abort()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        is_idle = self.cycle is not None and self.cycle.response_complete and not self.pipeline
        if is_idle and self.timeout_keep_alive_task is None and not self.transport.is_closing():
            # It was answered before its body had come, which ended the wait for the next one.
            wait_s, end = self.timeout_keep_alive, self.timeout_keep_alive_handler
            self.timeout_keep_alive_task = self.loop.call_later(wait_s, end)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if self.transport.is_closing():
            return
        if any(name == b"upgrade" for name, _ in cycle.scope["headers"]):
            # The parser takes what follows for another protocol, and a body for the next request.
            cycle.keep_alive = False
        application = self.answering()
        # The path as it was sent: `/%2d/routes` is not Serve's.
        if application is None or cycle.scope["raw_path"].startswith(OF_SERVE):
            super()._start_asgi_task(cycle, app)
            return
        call = Call.of(cast(Scope, cycle.scope), cast(Receive, cycle.receive))
        taken = application.take(call)
        if isinstance(taken, Reply):
            if not self.pipeline and not self.flow.write_paused:
                self._send(cycle, taken, call)
                return
            # The end of one begins the next: of thousands that came at once each would call the next. And who
            # does not read replies waits, and is not read from meanwhile.
            taken = _made(taken)
        task = self.loop.create_task(self._answer(cycle, taken, call))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def answering(self) -> Application | None:
        """The application that answers here, if one does."""
        return _answering[0] if _answering else None

    async def _answer(self, cycle: RequestResponseCycle, taken: Awaitable[Reply], call: Call) -> None:
        try:
            reply = await taken
            if self.flow.write_paused and not cycle.disconnected:
                await self.flow.drain()
            self._send(cycle, reply, call)
        except BaseException:
            # There is no answer any more that the caller could wait for.
            self.transport.close()
            raise

    def _send(self, cycle: RequestResponseCycle, reply: Reply, call: Call) -> None:
        """Writes the reply at once, and ends the exchange as uvicorn does."""
        if cycle.disconnected or self.transport.is_closing():
            return
        # Who waits for a word before the body gets a reply instead, after which nothing can follow.
        cycle.keep_alive &= not cycle.waiting_for_100_continue
        headers = [*self.server_state.default_headers, *reply.headed(call.id)]
        if not cycle.keep_alive:
            headers.append((b"connection", b"close"))
        head = b"".join([b"%b: %b\r\n" % header for header in headers])
        body = b"" if call.method == "HEAD" else reply.body
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[reply.status], head, body))
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()


async def _made(reply: Reply) -> Reply:
    return reply


def by_serve(
    app: Application, start: Callable[[], Awaitable[None]], stop: Callable[[], Awaitable[None]]
) -> App:
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
