"""A request to an application of this process, for callers that come by another way than HTTP."""

import asyncio
from collections.abc import Mapping

from mlops_ray.serving.asgi import REQUEST_ID, Application, Call, Message

#: A status, headers by lower-case name, a body.
Answered = tuple[int, dict[str, str], bytes]


async def exchange(
    app: Application, method: str, path: str, headers: Mapping[str, str], body: bytes
) -> Answered:
    """The application's reply. `path` is percent-encoded as in a request line, header names lower-case."""
    requests: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        # A caller that goes cancels this call, so nobody waits for a disconnect in vain.
        return requests.pop() if requests else await asyncio.get_running_loop().create_future()

    named = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    call = Call(method, path, named, receive)
    reply = await app.reply(call)
    return reply.status, {**reply.headers, REQUEST_ID: call.id}, reply.body
