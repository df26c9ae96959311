"""The HTTP interface of one model, below /v2/models/NAME: who may call, and what is answered."""

import time
from typing import Any

from mlops_ray.errors import ForbiddenError, InvalidRowError, NotFoundError, UnsupportedMediaTypeError
from mlops_ray.keys import Keyring, Role
from mlops_ray.serving import protocol
from mlops_ray.serving.asgi import Call, Receive, Reply, Scope, Send, error_reply, json_reply, send_reply
from mlops_ray.serving.refusals import invalid, refuse_rejected
from mlops_ray.serving.versions import Live, Versions

PREFIX = "/v2/models"
PLATFORM = "mlops_ray"
INFER, INVOCATIONS, READY, METADATA = "/infer", "/invocations", "/ready", ""


class Endpoint:
    """Answers the HTTP requests of a model. It adds no X-Request-ID: Serve does."""

    def __init__(self, model: str, versions: Versions, keyring: Keyring, hidden: frozenset[str]) -> None:
        self._model, self._versions = model, versions
        self._keyring, self._hidden = keyring, hidden
        self._prefix = f"{PREFIX}/{model}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One HTTP request, answered; those for a prediction are counted."""
        started = time.perf_counter_ns()
        call = Call(scope, receive)
        version, action = _split(call.path.removeprefix(self._prefix))
        live = self._versions.find(version)
        try:
            reply = await self._answer(call, live, action)
        except Exception as error:  # noqa: BLE001 - whatever happens, the caller gets an answer
            reply = error_reply(error, call)
        await send_reply(send, reply)
        if live is not None and action in (INFER, INVOCATIONS):
            _count(live, reply, (time.perf_counter_ns() - started) // 1000)

    async def _answer(self, call: Call, live: Live | None, action: str) -> Reply:
        if action == READY:
            call.allow("GET")
            return json_reply({"live": True, "ready": live is not None}, 200 if live else 503)
        authorize(self._keyring, call, "predict", *(("read",) if action == METADATA else ()))
        if action not in (METADATA, INFER, INVOCATIONS):
            raise NotFoundError(f"there is nothing at {call.path[:SHOWN_PATH]!r}")
        call.allow("GET" if action == METADATA else "POST")
        if live is None:
            return self._absent(call)
        return (
            json_reply(self._metadata(live))
            if action == METADATA
            else await self._predict(call, live, action)
        )

    def _absent(self, call: Call) -> Reply:
        if not self._versions.loaded:
            return json_reply({"error": "the model is not loaded yet", "id": call.id}, 503)
        raise NotFoundError(
            f"this version of {self._model!r} is not loaded; there is {self._versions.loaded}"
        )

    def _metadata(self, live: Live) -> dict[str, Any]:
        return {
            "name": self._model,
            "versions": self._versions.loaded,
            "platform": PLATFORM,
            "inputs": [
                {"name": column.name, "datatype": protocol.DATATYPES[column.type], "shape": [-1]}
                for column in live.served.request.columns
            ],
            "outputs": [
                {"name": name, "datatype": protocol.OUTPUT_TYPES[name], "shape": [-1]}
                for name in live.served.outputs
            ],
        }

    async def _predict(self, call: Call, live: Live, action: str) -> Reply:
        request = _decode(call, live, action, await _body(call))
        answer = await live.predict(request.frame)
        if answer.failures.height:
            live.tally.traffic.invalid.update(invalid(answer.failures))
            refuse_rejected(answer.failures, live.served.request, self._hidden)
        name = {"model": self._model, "version": live.version, "id": call.id}
        outputs: protocol.Outputs = {protocol.OUTPUT: answer.values}
        if live.served.threshold is not None:
            outputs = {**outputs, protocol.DECISION: answer.values >= live.served.threshold}
        if action == INFER:
            return Reply(200, *protocol.encode_infer(request, outputs, **name))
        return Reply(200, *protocol.encode_predictions(outputs, **name))


#: Characters of a path that an error shows.
SHOWN_PATH = 200


def authorize(keyring: Keyring, call: Call, *roles: Role) -> str:
    """The name of the caller, whose key has one of the roles (or is an admin's)."""
    for role in roles[:-1]:
        try:
            return keyring.authorize(call.headers.get("authorization"), role)
        except ForbiddenError:
            continue
    return keyring.authorize(call.headers.get("authorization"), roles[-1])


def _split(rest: str) -> tuple[str | None, str]:
    """The version that a path names, and what is asked of it.

    >>> _split("/versions/3/infer"), _split("/infer"), _split("/versions")
    (('3', '/infer'), (None, '/infer'), (None, '/versions'))
    """
    if not rest.startswith("/versions/"):
        return None, rest
    version, slash, action = rest.removeprefix("/versions/").partition("/")
    return version, slash + action


async def _body(call: Call) -> bytes:
    encoding = call.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMediaTypeError(
            f"the content encoding {encoding[:20]!r} is not read here; send it plain"
        )
    return await call.body(protocol.MAX_BODY_BYTES)


def _decode(call: Call, live: Live, action: str, body: bytes) -> protocol.Request:
    content_type = call.headers.get("content-type")
    try:
        if action == INVOCATIONS:
            return protocol.decode_invocations(live.reader, body, content_type)
        header_length = call.headers.get("inference-header-content-length")
        return protocol.decode_infer(
            live.reader, body, content_type, header_length, known=live.served.outputs
        )
    except InvalidRowError as error:
        if error.column is not None:
            rule = "missing_column" if error.row is None else "type"
            # Names that a caller made up are no columns of ours: they would be counted, and shown, for ever.
            known = error.column if error.column in live.served.request.names else ""
            live.tally.traffic.invalid[known, rule] += 1
        raise


def _count(live: Live, reply: Reply, took_us: int) -> None:
    traffic = live.tally.traffic
    traffic.requests[str(reply.status)] += 1
    traffic.request_us.update(took_us)
    if reply.rejected is not None:
        traffic.rejected[reply.rejected] += 1
