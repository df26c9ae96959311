"""The little of HTTP that our services share: a call, a reply, errors as replies.

An application of ours makes a `Reply` of a `Call`; it is a raw ASGI application besides, because a framework
costs a single-row request as much as the model does.
"""

import asyncio
import logging
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Self

import orjson

from mlops_ray.data import error_log
from mlops_ray.errors import (
    CallerGoneError,
    DataError,
    MethodNotAllowedError,
    MlopsError,
    OverloadedError,
    RequestError,
    StorageError,
    TooLargeError,
)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
#: A status, headers by lower-case name, a body.
Answered = tuple[int, dict[str, str], bytes]

JSON = {"content-type": "application/json"}
#: Nothing of ours speaks it; the server makes a 403 of this.
NO_WEBSOCKET: Message = {"type": "websocket.close", "code": 1008}
REQUEST_ID = "x-request-id"
#: Characters of a caller's request id; a longer one is not kept. Digits of a body's length that are read.
MOST_ID, MOST_LENGTH = 128, 18
#: Names of problems that monitoring counts: UnauthorizedError → unauthorized.
_WORD = re.compile(r"(?<!^)(?=[A-Z])")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reply:
    """What is sent back; `rejected` is the reason, where it is an error of the caller."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: JSON)
    rejected: str | None = None

    def headed(self, id: str) -> list[tuple[bytes, bytes]]:
        """All headers of the reply to the request of this id."""
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]
        return [
            *headers,
            (b"content-length", b"%d" % len(self.body)),
            (REQUEST_ID.encode(), id.encode("latin-1")),
        ]


class Call:
    """One HTTP request, its body still unread; `path` and `query` are percent-encoded, as they were sent."""

    __slots__ = ("_headers", "_id", "_receive", "method", "path", "query")

    def __init__(
        self,
        method: str,
        path: str,
        headers: Iterable[tuple[bytes, bytes]],
        receive: Receive,
        query: bytes = b"",
    ) -> None:
        """Of a header that comes twice the first counts; their names are in lower case."""
        self.method, self.path, self._receive, self.query = method, path, receive, query
        self._headers = dict(reversed([*headers]))
        self._id = ""

    @classmethod
    def of(cls, scope: Scope, receive: Receive) -> Self:
        """An encoded slash in the path is no slash, so that nothing is authorised by a decoded path."""
        raw = scope.get("raw_path")
        path = raw.partition(b"?")[0].decode("latin-1") if raw else str(scope["path"])
        return cls(scope["method"], path, scope["headers"], receive, scope.get("query_string", b""))

    def header(self, name: str) -> str | None:
        """A header by its name in lower case."""
        value = self._headers.get(name.encode())
        return None if value is None else value.decode("latin-1")

    @property
    def id(self) -> str:
        """The request id: the caller's, else a new one."""
        if not self._id:
            self._id = request_id(self.header(REQUEST_ID))
        return self._id

    @property
    def size(self) -> int:
        """The bytes of the body, as the head says; 0 where it does not."""
        length = self._headers.get(b"content-length", b"")
        return int(length[:MOST_LENGTH]) if length.isdigit() else 0

    def limit(self, most_bytes: int) -> None:
        """Raises `TooLargeError` where the head says that the body is larger."""
        if self.size > most_bytes:
            raise TooLargeError(f"the body has {self.size} bytes; at most {most_bytes} are read")

    # What uvicorn knows of a request stands in the object whose method `receive` is; others may not tell.

    def is_gone(self) -> bool:
        """Whether the caller has gone, as far as the server tells without being waited for."""
        known = getattr(self._receive, "__self__", None)
        transport = getattr(known, "transport", None)
        return bool(getattr(known, "disconnected", False)) or (
            transport is not None and transport.is_closing()
        )

    @property
    def is_whole(self) -> bool:
        """Whether all of the body is there, as far as the server tells."""
        return getattr(getattr(self._receive, "__self__", None), "more_body", True) is False

    def allow(self, *methods: str) -> None:
        """Raises `MethodNotAllowedError` where the method is none of these."""
        if self.method not in methods:
            raise MethodNotAllowedError(
                f"{self.method} is not allowed here; use {' or '.join(methods)}", allowed=methods
            )

    async def body(self, most_bytes: int) -> bytes:
        """The whole body; raises `TooLargeError` as soon as it is known to be larger than allowed."""
        self.limit(most_bytes)
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise CallerGoneError("the caller has gone before the body was whole")
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if size > most_bytes:
                raise TooLargeError(f"the body has more than {most_bytes} bytes")
        return parts[0] if len(parts) == 1 else b"".join(parts)


class Application:
    """Answers calls; an ASGI application."""

    def take(self, call: Call) -> Reply | Awaitable[Reply]:
        """The reply, where the head of the call tells it, else what becomes it; whatever happens."""
        raise NotImplementedError

    async def reply(self, call: Call) -> Reply:
        """The reply, whatever happens."""
        taken = self.take(call)
        return taken if isinstance(taken, Reply) else await taken

    async def exchange(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answered:
        """The reply to a request that comes by another way than HTTP.

        `path` is percent-encoded as in a request line, header names are in lower case.
        """
        requests: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            # A caller that goes cancels this call, so nobody waits for a disconnect in vain.
            return requests.pop() if requests else await asyncio.get_running_loop().create_future()

        named = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        call = Call(method, path, named, receive)
        reply = await self.reply(call)
        return reply.status, {**reply.headers, REQUEST_ID: call.id}, reply.body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One HTTP request."""
        call = Call.of(scope, receive)
        reply = await self.reply(call)
        await send({"type": "http.response.start", "status": reply.status, "headers": reply.headed(call.id)})
        await send({"type": "http.response.body", "body": reply.body})


def request_id(given: str | None) -> str:
    """The caller's id where it is one, else a new one."""
    given = given or ""
    return given if 0 < len(given) <= MOST_ID and given.isprintable() else os.urandom(16).hex()


def json_reply(document: Any, status: int = 200) -> Reply:
    """The document as JSON; numpy arrays are lists in it, NaN is null."""
    return Reply(status, orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY))


def error_reply(error: BaseException, call: Call, version: str = "") -> Reply:
    """The reply that an error is worth: ours by its status, any other a 500 that says nothing but the id.

    The error log hears of it; `version` is what was asked.
    """
    said_of = {"request": call.id, "version": version}
    if isinstance(error, RequestError):
        error_log.refuse(error.status, reason(error), error, **said_of)
        headers = dict(JSON)
        if error.status == 401:
            headers["www-authenticate"] = "Bearer"
        if isinstance(error, MethodNotAllowedError):
            headers["allow"] = ", ".join(error.allowed)
        if isinstance(error, OverloadedError):
            headers["retry-after"] = str(error.retry_after_s)
        body = orjson.dumps({"error": str(error).encode("utf-8", "replace").decode()})
        return Reply(error.status, body, headers, reason(error))
    if isinstance(error, StorageError):
        logger.error("request %s waits for a store: %s", call.id, error, extra={**said_of, "status": 503})
        said = {"error": "a store that the answer needs does not answer; ask again", "id": call.id}
        return Reply(503, orjson.dumps(said), {**JSON, "retry-after": "1"})
    name, told = type(error).__name__, {**said_of, "status": 500}
    logger.error("request %s failed: %s", call.id, name, exc_info=shown(error), extra=told)
    return json_reply({"error": "internal error", "id": call.id}, 500)


def reason(error: MlopsError) -> str:
    """A word for what a request was rejected for.

    >>> reason(TooLargeError("…"))
    'too_large'
    """
    if type(error) is RequestError:
        return "bad_request"
    return _WORD.sub("_", type(error).__name__.removesuffix("Error")).lower()


def shown(error: BaseException) -> BaseException:
    """What a log may show: of an error that is not ours no message, which may hold values of a request.

    Nor what one of ours quotes, and what it was raised from.
    """
    if isinstance(error, DataError):
        return error.without_data().with_traceback(error.__traceback__)
    if isinstance(error, MlopsError):
        return error
    return RuntimeError(type(error).__name__).with_traceback(error.__traceback__)


async def lifespan(
    receive: Receive, send: Send, start: Callable[[], Awaitable[None]], stop: Callable[[], Awaitable[None]]
) -> None:
    """The ASGI lifespan: `start` before the first request, `stop` after the last."""
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await start()
            await send({"type": "lifespan.startup.complete"})
        else:
            await stop()
            await send({"type": "lifespan.shutdown.complete"})
            return
