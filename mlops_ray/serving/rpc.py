"""The Open Inference Protocol v2 over gRPC: each call becomes the HTTP request that says the same.

It only translates. Keys, schema, admission, batches, counts and the log are those of the HTTP interface,
which `Ask` reaches.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import grpc  # type: ignore[import-untyped]
import numpy as np
import orjson
from google.protobuf.json_format import ParseDict  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from mlops_ray.errors import OverloadedError, RequestError, UsageError
from mlops_ray.keys import Keyring, Role
from mlops_ray.serving.admission import MOST_MS, TIMEOUT
from mlops_ray.serving.asgi import REQUEST_ID, Answered, request_id
from mlops_ray.serving.documents import limit_columns, limit_rows, show
from mlops_ray.serving.endpoint import INFER, METADATA, PREFIX, READY, ROUTING_KEY, VERSION
from mlops_ray.serving.messages import SERVICE, message
from mlops_ray.serving.protocol import BINARY_TYPE, MAX_BODY_BYTES

#: A message holds what a body does, and names and lengths besides.
MAX_MESSAGE_BYTES = MAX_BODY_BYTES + 1024 * 1024
#: Calls at a time; each may hold a message of that size. More are refused at once (RESOURCE_EXHAUSTED).
MAX_CALLS = 200
#: How long a caller may take to send its message, which holds one of those places.
READ_S = 30.0
#: Characters of an error's sentence: it travels in a header, where a client takes 8 kB.
MAX_DETAILS = 800
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", -1),  # an answer is bounded by the rows of its request
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.server_handshake_timeout_ms", 10_000),
    # Connections that are idle, or whose other end has vanished, go; a flood of pings ends its connection.
    ("grpc.max_connection_idle_ms", 600_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 2),
    # While one gateway replaces another, both listen.
    ("grpc.so_reuseport", 1),
)

#: Headers that callers may send as metadata.
HEADERS = ("authorization", REQUEST_ID, ROUTING_KEY, VERSION, TIMEOUT)

#: Any other status of a caller's mistake is INVALID_ARGUMENT, 413 too: sending it again does not help.
_CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
#: Where a datatype's values are in `InferTensorContents`, and how they are written in binary data.
_CONTENTS = {
    "BOOL": ("bool_contents", "u1"),
    **{f"INT{bits}": ("int_contents", f"<i{bits // 8}") for bits in (8, 16, 32)},
    "INT64": ("int64_contents", "<i8"),
    **{f"UINT{bits}": ("uint_contents", f"<u{bits // 8}") for bits in (8, 16, 32)},
    "UINT64": ("uint64_contents", "<u8"),
    "FP32": ("fp32_contents", "<f4"),
    "FP64": ("fp64_contents", "<f8"),
    "BYTES": ("bytes_contents", ""),
}

logger = logging.getLogger(__name__)


class Ask(Protocol):
    """Sends an HTTP request to a model's replica, or to the gateway itself where the model is empty."""

    def __call__(
        self, model: str, path: str, headers: dict[str, str], body: bytes = b"", method: str = "GET"
    ) -> Awaitable[Answered]: ...


@dataclass(frozen=True)
class Listener:
    """Where gRPC listens; with the paths of a certificate and its key (PEM) it speaks TLS only."""

    host: str
    port: int
    certificate: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) is not (self.key is None):
            raise UsageError("a certificate needs its key, and a key its certificate; give both or none")


async def start(listener: Listener, ask: Ask, keyring: Keyring) -> tuple[Any, int]:
    """The running server, to be stopped with `await server.stop(grace_s)`, and its port.

    Port 0 takes a free one. Raises `RuntimeError` where it cannot listen, `OSError` for unreadable files.
    """
    server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=MAX_CALLS)
    server.add_generic_rpc_handlers((_handlers(ask, keyring),))
    host = f"[{listener.host}]" if ":" in listener.host else listener.host
    address = f"{host}:{listener.port}"
    if listener.certificate is not None and listener.key is not None:
        pair = Path(listener.key).read_bytes(), Path(listener.certificate).read_bytes()
        port = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    else:
        port = server.add_insecure_port(address)
    await server.start()
    return server, port


# ---------------------------------------------------------------- calls

#: What is asked over HTTP for a method; gRPC answers all others with UNIMPLEMENTED.
_PATHS = {
    "ServerLive": "/v2/health/live",
    "ServerReady": "/v2/health/ready",
    "ServerMetadata": "/v2",
    "ModelReady": READY,
    "ModelMetadata": METADATA,
    "ModelInfer": INFER,
}
_INFER = "ModelInfer"
#: What needs a key, before anything of it is read.
_ROLES: dict[str, tuple[Role, ...]] = {
    _INFER: ("predict",),
    "ServerMetadata": ("predict", "read"),
    "ModelMetadata": ("predict", "read"),
}
#: Of the open methods one has a message that is read, of anybody: of so many at a time, and not for long.
_OPEN_READ = "ModelReady"
MOST_OPEN_READS, OPEN_READ_S = 8, 1.0
#: A model that is not there, or not yet, is no error where the question is whether it is ready.
_NOT_READY = (404, 503)


def _handlers(ask: Ask, keyring: Keyring) -> Any:
    # A call with one message is on the wire what a call with a stream of them is: taken as a stream, its key
    # is checked before the message is read, and a message that is broken is ours to answer.
    methods = {
        method: grpc.stream_unary_rpc_method_handler(partial(_serve, method, ask, keyring))
        for method in _PATHS
    }
    return grpc.method_handlers_generic_handler(SERVICE, methods)


async def _serve(
    method: str, ask: Ask, keyring: Keyring, messages: AsyncIterator[bytes], context: Any
) -> bytes:
    """One call, answered; a caller that cancels it cancels what was asked for it."""
    headers = _headers(context.invocation_metadata(), context.time_remaining())
    trailing = {REQUEST_ID: headers[REQUEST_ID]}
    try:
        if method in _ROLES:
            keyring.authorize(headers.get("authorization"), *_ROLES[method])
        request = await _read(method, messages)
        status, replied, body = await _forward(method, ask, request, headers)
        if status == 200 or (method == "ModelReady" and status in _NOT_READY):
            reply = decode(replied, body) if method == _INFER else _parse(f"{method}Response", body)
            context.set_trailing_metadata(tuple(trailing.items()))
            return reply.SerializeToString()  # type: ignore[no-any-return]
        details = str(orjson.loads(body)["error"]) if status != 500 else ""
        trailing |= {"retry-after": replied["retry-after"]} if "retry-after" in replied else {}
    except RequestError as error:
        status, details = error.status, str(error)
    except Exception as error:
        # The message may hold values of the request; the type and the traceback say enough.
        bare = RuntimeError(type(error).__name__).with_traceback(error.__traceback__)
        told = {"request": headers[REQUEST_ID], "status": 500}
        logger.error(
            "request %s failed: %s", headers[REQUEST_ID], type(error).__name__, exc_info=bare, extra=told
        )
        status, details = 500, ""
    await context.abort(_code(status), details[:MAX_DETAILS] or "internal error", tuple(trailing.items()))
    raise AssertionError("abort raises")


def _code(status: int) -> Any:
    other = grpc.StatusCode.INVALID_ARGUMENT if 400 <= status < 500 else grpc.StatusCode.INTERNAL
    return _CODES.get(status, other)


def _headers(metadata: Any, remaining_s: float | None) -> dict[str, str]:
    """The headers of the request: those that are metadata, a request id, the nearer of the two deadlines."""
    # Of a key that comes twice, the first.
    headers = {key: value for key, value in reversed(list(metadata or ())) if key in HEADERS}
    given_id = headers.get(REQUEST_ID, "")
    # It goes back in metadata, which are of ASCII alone.
    headers[REQUEST_ID] = request_id(given_id if given_id.isascii() else None)
    if remaining_s is not None:
        left_ms, given = min(max(1, int(remaining_s * 1000)), MOST_MS), headers.get(TIMEOUT, "")
        # What is no number is the core's to refuse.
        if not given or (given.isascii() and given.isdigit() and (len(given) > 12 or int(given) > left_ms)):
            headers[TIMEOUT] = str(left_ms)
    return headers


_open_reads = asyncio.Semaphore(MOST_OPEN_READS)


async def _read(method: str, messages: AsyncIterator[bytes]) -> Any:
    """The message of a call; of one about the server there is nothing to read."""
    if not method.startswith("Model"):
        return None
    if method != _OPEN_READ:
        return await _whole(method, messages, READ_S)
    if _open_reads.locked():
        raise OverloadedError("too many ask whether a model is ready; ask again")
    async with _open_reads:
        return await _whole(method, messages, OPEN_READ_S)


async def _whole(method: str, messages: AsyncIterator[bytes], within_s: float) -> Any:
    try:
        async with asyncio.timeout(within_s):
            return message(f"{method}Request").FromString(await anext(aiter(messages), b""))
    except DecodeError:
        raise RequestError(f"the message is no {method}Request of the Open Inference Protocol v2") from None
    except TimeoutError:
        raise RequestError(f"the message was not whole within {within_s:.0f} s") from None


async def _forward(method: str, ask: Ask, request: Any, headers: dict[str, str]) -> Answered:
    path = _PATHS[method]
    for name, value in headers.items():
        if not value.isascii():
            raise RequestError(f"the metadata {name!r} holds other characters than those of ASCII")
    if method == _INFER:
        own, body = encode(request)
        path = _path(request.model_name, request.model_version, path)
        return await ask(request.model_name, path, headers | own, body, "POST")
    if not method.startswith("Model"):
        return await ask("", path, headers)
    if not request.name:
        raise RequestError("the request names no model")
    return await ask(request.name, _path(request.name, request.version, path), headers)


def _path(model: str, version: str, action: str) -> str:
    """The path of a model; what a caller puts into a name stays in it.

    >>> _path("m", "", "/infer"), _path("m", "3/../4", "/infer")
    ('/v2/models/m/infer', '/v2/models/m/versions/3%2F..%2F4/infer')
    """
    versions = f"/versions/{quote(version, safe='')}" if version else ""
    return f"{PREFIX}/{quote(model, safe='')}{versions}{action}"


def _parse(name: str, body: bytes | dict[str, Any]) -> Any:
    """The message that has the fields of a JSON document; what it does not have is left out."""
    document = orjson.loads(body) if isinstance(body, bytes) else body
    return ParseDict(document, message(name)(), ignore_unknown_fields=True)


# ---------------------------------------------------------------- messages ⇄ bodies


def encode(request: Any) -> tuple[dict[str, str], bytes]:
    """The headers and the body of the v2 request with binary data that a `ModelInferRequest` says."""
    if not request.model_name:
        raise RequestError("the request names no model")
    for several in (request.inputs, request.outputs, request.parameters):
        limit_columns(several)
    raw, data = request.raw_input_contents, []
    if raw and len(raw) != len(request.inputs):
        raise RequestError(
            f"{len(raw)} raw_input_contents for {len(request.inputs)} inputs; send one for each"
        )
    inputs = []
    for at, tensor in enumerate(request.inputs):
        if raw and tensor.HasField("contents"):
            raise RequestError(f"input {show(tensor.name)} has contents beside raw_input_contents; send one")
        data.append(raw[at] if raw else _values(tensor))
        parameters = _parameters(tensor) | {"binary_data_size": len(data[-1])}
        shape = list(tensor.shape)
        inputs.append(
            {"name": tensor.name, "datatype": tensor.datatype, "shape": shape, "parameters": parameters}
        )
    document = {
        "id": request.id,
        "parameters": _parameters(request) | {"binary_data_output": True},
        "inputs": inputs,
        "outputs": [
            {"name": output.name, "parameters": _parameters(output) | {"binary_data": True}}
            for output in request.outputs
        ],
    }
    head = orjson.dumps(document)
    headers = {"content-type": BINARY_TYPE, "inference-header-content-length": str(len(head))}
    return headers, b"".join((head, *data))


def _parameters(of: Any) -> dict[str, Any]:
    limit_columns(of.parameters)
    return {
        name: getattr(value, choice) if (choice := value.WhichOneof("parameter_choice")) else None
        for name, value in of.parameters.items()
    }


def _values(tensor: Any) -> bytes:
    """The typed contents of an input, as binary data; none where the core is to say what is wrong."""
    if not tensor.HasField("contents") or tensor.datatype not in _CONTENTS:
        return b""
    values = getattr(tensor.contents, _CONTENTS[tensor.datatype][0])
    limit_rows(len(values))
    try:
        return _binary(tensor.datatype, list(values))
    except OverflowError:
        raise RequestError(f"input {show(tensor.name)}: a value is too large for {tensor.datatype}") from None


def _binary(datatype: str, values: list[Any]) -> bytes:
    """Values as binary data: numbers little-endian, texts each behind its length."""
    if datatype != "BYTES":
        return np.array(values, _CONTENTS[datatype][1]).tobytes()
    return b"".join(part for value in values for part in (len(value).to_bytes(4, "little"), value))


def decode(headers: Mapping[str, str], body: bytes) -> Any:
    """The `ModelInferResponse` that a v2 reply says, whose outputs are binary data, as raw contents."""
    split = int(headers["inference-header-content-length"])
    document, binary = orjson.loads(body[:split]), body[split:]
    given = [output.pop("parameters") for output in document["outputs"]]
    response = _parse("ModelInferResponse", document)
    for output, parameters in zip(response.outputs, given, strict=True):
        size = parameters.pop("binary_data_size")
        response.raw_output_contents.append(binary[:size])
        binary = binary[size:]
        for name, value in parameters.items():
            _set(output.parameters[name], value)
    return response


def _set(parameter: Any, value: Any) -> None:
    if isinstance(value, float):
        parameter.double_param = value
    else:
        parameter.string_param = value if isinstance(value, str) else orjson.dumps(value).decode()
