"""One HTTP request to an ASGI application of this process, for callers that come by another way."""

import asyncio
from collections.abc import Mapping
from urllib.parse import unquote

from mlops_ray.serving.asgi import App, Message

#: A status, headers by lower-case name, a body.
Answered = tuple[int, dict[str, str], bytes]


async def exchange(app: App, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answered:
    """The application's reply. `path` is percent-encoded as in a request line, header names lower-case."""
    requests = [{"type": "http.request", "body": body, "more_body": False}]
    replies: list[Message] = []

    async def receive() -> Message:
        # A caller that goes cancels this call, so nobody waits for a disconnect in vain.
        return requests.pop() if requests else await asyncio.get_running_loop().create_future()

    async def send(message: Message) -> None:
        replies.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode("latin-1"),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()],
    }
    await app(scope, receive, send)
    start, *parts = replies
    names = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in start["headers"]}
    return start["status"], names, b"".join(part.get("body", b"") for part in parts)
