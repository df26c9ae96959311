"""Calls an ASGI application in this process, as a server would, header for header."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import orjson

from mlops_ray.serving.asgi import App, Message


@dataclass(frozen=True)
class Answered:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


async def call_async(
    app: App,
    method: str,
    path: str,
    *,
    key: str | None = None,
    json: Any = None,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    parts: int = 1,
) -> Answered:
    """One request. `json` is sent with its content type, `body` with none; in so many `parts`."""
    given = {"x-request-id": "id-1"} | ({"content-type": "application/json"} if json is not None else {})
    given |= {"authorization": f"Bearer {key}"} if key is not None else {}
    given |= headers or {}
    data = orjson.dumps(json) if json is not None else body or b""
    step = max(1, -(-len(data) // parts))
    chunks = [data[at : at + step] for at in range(0, len(data), step)] or [b""]
    messages = [
        {"type": "http.request", "body": chunk, "more_body": at < len(chunks) - 1}
        for at, chunk in enumerate(chunks)
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path.replace("%2F", "/"),
        "raw_path": path.encode(),
        "query_string": path.partition("?")[2].encode(),
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }
    await app(scope, receive, send)
    start, *rest = sent
    names = {name.decode(): value.decode() for name, value in start["headers"]}
    return Answered(start["status"], names, b"".join(message["body"] for message in rest))


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(coroutine)


def call(app: App, method: str, path: str, **more: Any) -> Answered:
    """`call_async`, in a loop of its own."""
    return run(call_async(app, method, path, **more))  # type: ignore[no-any-return]
