"""gRPC of the Open Inference Protocol: a stock client gets HTTP's answers; what is wrong has its code."""

import asyncio
import contextlib
import queue
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import orjson
import pytest
from tritonclient import grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from mlops_ray import keys
from mlops_ray.errors import UsageError
from mlops_ray.keys import Keyring
from mlops_ray.serving import messages, protocol, rpc
from mlops_ray.serving.asgi import Answered
from mlops_ray.serving.routes import Routes
from mlops_ray.serving.rpc import Listener
from mlops_ray.storage import Storage
from tests.conftest import require
from tests.serving.calls import call, run
from tests.serving.standin import MODEL, ROW, InProcess, served

PATIENCE_S = 30.0
LOADS = [1.5, 2.5, 40.0]
ANSWERS = [2 * load + 10 for load in LOADS]


async def nobody() -> dict[str, Any]:
    return {}


class Service(InProcess):
    """A model and a gateway in this process; `asked` are the requests that came from gRPC."""

    def __init__(self, storage: Storage) -> None:
        champion = {"version": "1", "digest": "digest 1"}
        storage.write_json({"format": 1, "champion": champion}, "release", f"{MODEL}.json")
        super().__init__(storage, lambda entry: served(entry["version"]))
        self.routes = Routes(storage, nobody)
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        run(self.follow())

    async def ask(
        self, model: str, path: str, headers: dict[str, str], body: bytes = b"", method: str = "GET"
    ) -> Answered:
        self.asked.append((path, headers, body))
        app = self.endpoint if model == MODEL else self.routes
        return await app.exchange(method, path, headers, body)

    @property
    def document(self) -> Any:
        """The JSON of the last request."""
        _, headers, body = self.asked[-1]
        return orjson.loads(body[: int(headers["inference-header-content-length"])])


@dataclass
class Fixed:
    """Answers every request alike; with no answer it waits to be cancelled."""

    answer: Answered | None = None
    came: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)

    async def __call__(self, *request: Any) -> Answered:
        self.came.set()
        if self.answer is not None:
            return self.answer
        try:
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


@contextlib.contextmanager
def listening(ask: Any, keyring: Keyring, **more: str) -> Iterator[str]:
    """The address of a server in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def on_loop(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(PATIENCE_S)

    try:
        server, port = on_loop(rpc.start(Listener("127.0.0.1", 0, **more), ask, keyring))
        yield f"127.0.0.1:{port}"
        on_loop(server.stop(0))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_S)
        loop.close()


@pytest.fixture
def service(storage: Storage) -> Service:
    return Service(storage)


@pytest.fixture
def address(service: Service) -> Iterator[str]:
    with listening(service.ask, service.keyring) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[triton.InferenceServerClient]:
    with contextlib.closing(triton.InferenceServerClient(address)) as client:
        yield client


@pytest.fixture
def key(service: Service) -> dict[str, str]:
    return {"authorization": f"Bearer {service.keys['predict']}"}


def tensors(loads: Any = LOADS) -> list[triton.InferInput]:
    """The inputs of a stock client, which sends them as raw contents."""
    kinds = {"site": object, "time": object, "n": np.int64, "open": np.bool_}
    others = {name: np.array([ROW[name]] * len(loads), dtype=kind) for name, kind in kinds.items()}
    inputs = []
    for name, values in {**others, "load": np.asarray(loads)}.items():
        inputs.append(triton.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype)))
        inputs[-1].set_data_from_numpy(values)
    return inputs


def typed(datatype: str = "FP64", **contents: Any) -> Any:
    """A request with typed contents, as other clients send them."""
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    given = {"load": (datatype, contents or {"fp64_contents": LOADS})}
    given |= {name: ("BYTES", {"bytes_contents": [ROW[name].encode()] * 3}) for name in ("site", "time")}
    given |= {"n": ("INT64", {"int64_contents": [1] * 3}), "open": ("BOOL", {"bool_contents": [True] * 3})}
    for name, (kind, values) in given.items():
        of = service_pb2.InferTensorContents(**values)
        request.inputs.add(name=name, datatype=kind, shape=[len(LOADS)], contents=of)
    return request


def infer(address: str, request: Any, key: dict[str, str], **more: Any) -> Any:
    with grpc.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return stub.ModelInfer(request, metadata=tuple(key.items()), timeout=PATIENCE_S, **more)


def refused(address: str, request: Any, key: dict[str, str]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        infer(address, request, key)
    return caught.value


def code(error: Any) -> str:
    """What a status is called, of either client's error."""
    status = error.status() if isinstance(error, InferenceServerException) else error.code()
    return str(status).removeprefix("StatusCode.")


@pytest.mark.parametrize("name", messages._FIELDS)
def test_field_numbers_and_types_are_those_of_the_public_definition(name: str) -> None:
    ours, theirs = (
        {
            field.name: (field.number, field.type, field.is_repeated,
                         getattr(field.message_type, "full_name", None),
                         getattr(field.containing_oneof, "name", None))
            for field in descriptor.fields
        }
        for descriptor in (
            messages.message(name).DESCRIPTOR,
            service_pb2.DESCRIPTOR.pool.FindMessageTypeByName(f"inference.{name}"),
        )
    )  # fmt: skip
    assert ours == theirs


def test_health_is_open_to_a_stock_client(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1")
    assert not client.is_model_ready(MODEL, "7")
    assert not client.is_model_ready("other")


def test_metadata_is_that_of_http_and_needs_a_key(
    client: triton.InferenceServerClient, service: Service, key: dict[str, str]
) -> None:
    http = call(service.endpoint, "GET", f"/v2/models/{MODEL}", key=service.keys["predict"]).json
    found = client.get_model_metadata(MODEL, headers=key, as_json=True)
    found["inputs"] = [tensor | {"shape": [int(n) for n in tensor["shape"]]} for tensor in found["inputs"]]
    found["outputs"] = [tensor | {"shape": [int(n) for n in tensor["shape"]]} for tensor in found["outputs"]]
    assert found == http
    server = client.get_server_metadata(headers=key)
    assert (server.name, list(server.extensions)) == ("mlops_ray", ["binary_tensor_data"])
    for ask in (client.get_server_metadata, lambda: client.get_model_metadata(MODEL)):
        with pytest.raises(InferenceServerException) as caught:
            ask()
        assert code(caught.value) == "UNAUTHENTICATED"


def test_a_stock_clients_prediction_names_version_and_id(
    client: triton.InferenceServerClient, service: Service, key: dict[str, str]
) -> None:
    wanted = [triton.InferRequestedOutput("prediction")]
    result = client.infer(MODEL, tensors(), "1", wanted, request_id="mine", headers=key)
    assert result.as_numpy("prediction").tolist() == ANSWERS
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == (MODEL, "1", "mine")
    assert service.asked[-1][0] == f"/v2/models/{MODEL}/versions/1/infer"


def test_raw_contents_typed_contents_and_http_give_the_same_bytes(
    client: triton.InferenceServerClient, address: str, service: Service, key: dict[str, str]
) -> None:
    rows = {"dataframe_records": [ROW | {"load": load} for load in LOADS]}
    path = f"/v2/models/{MODEL}/invocations"
    http = call(service.endpoint, "POST", path, key=service.keys["predict"], json=rows).json["predictions"]
    raw = client.infer(MODEL, tensors(), headers=key).as_numpy("prediction")
    contents = np.frombuffer(infer(address, typed(), key).raw_output_contents[0], "<f8")
    assert raw.tolist() == contents.tolist() == http


@pytest.mark.parametrize(
    ("datatype", "name"),
    [("FP32", "fp32"), ("INT8", "int"), ("INT16", "int"), ("INT32", "int"), ("INT64", "int64"),
     ("UINT8", "uint"), ("UINT16", "uint"), ("UINT32", "uint"), ("UINT64", "uint64")],
)  # fmt: skip
def test_each_datatype_has_its_typed_contents(
    address: str, key: dict[str, str], datatype: str, name: str
) -> None:
    response = infer(address, typed(datatype, **{f"{name}_contents": [1, 2, 3]}), key)
    assert np.frombuffer(response.raw_output_contents[0], "<f8").tolist() == [12, 14, 16]


def test_parameters_reach_the_core_with_their_types(
    client: triton.InferenceServerClient, service: Service, key: dict[str, str]
) -> None:
    given = {"explain": False, "text": "a", "n": 3}
    client.infer(MODEL, tensors(), headers=key, parameters=given)
    assert service.document["parameters"].items() >= given.items()


def test_contributions_come_with_what_they_are_of(address: str, key: dict[str, str]) -> None:
    request = typed()
    request.parameters["explain"].bool_param = True
    response = infer(address, request, key)
    (_, why), (_, values) = response.outputs, response.raw_output_contents
    assert (why.name, list(why.shape)) == ("contributions", [len(LOADS), 2])
    assert np.frombuffer(values, "<f8").tolist() == [part for load in LOADS for part in (2 * load, 10.0)]
    told = {name: value.WhichOneof("parameter_choice") for name, value in why.parameters.items()}
    assert told == {"features": "string_param", "base": "double_param", "scale": "string_param"}
    assert why.parameters["features"].string_param == '["load","hour"]'


def test_the_request_id_is_kept_or_made_and_comes_back(
    address: str, service: Service, key: dict[str, str]
) -> None:
    for given in ({"x-request-id": "r-1"}, {"x-request-id": "r" * 129}, {}):
        with grpc.insecure_channel(address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            response, done = stub.ModelInfer.with_call(typed(), metadata=tuple((key | given).items()))
        id = service.asked[-1][1]["x-request-id"]
        assert dict(done.trailing_metadata())["x-request-id"] == response.id == id
        assert id == "r-1" if given == {"x-request-id": "r-1"} else len(id) == 32


@pytest.mark.parametrize(
    ("header", "most"), [("5", 5), (None, 1000 * PATIENCE_S), ("999999999999999", 1000 * PATIENCE_S)]
)
def test_the_nearer_deadline_is_the_cores(
    address: str, service: Service, key: dict[str, str], header: str | None, most: int
) -> None:
    infer(address, typed(), key | ({"x-timeout-ms": header} if header else {}))
    # gRPC rounds a time up when it tells it, by at most a hundredth.
    assert 0 < int(service.asked[-1][1]["x-timeout-ms"]) <= 1.01 * most


def test_who_waits_longer_than_the_core_lets_anybody_is_answered(
    address: str, service: Service, key: dict[str, str]
) -> None:
    with grpc.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answered = stub.ModelInfer(typed(), metadata=tuple(key.items()), timeout=3600)
    assert answered.model_version == "1"
    assert service.asked[-1][1]["x-timeout-ms"] == "600000"


def test_what_is_no_header_of_ours_stays_outside(address: str, service: Service, key: dict[str, str]) -> None:
    forged = {"x-request-timeout-seconds": "9", "inference-header-content-length": "1", "content-type": "a/b"}
    infer(address, typed(), key | forged)
    headers = service.asked[-1][1]
    assert "x-request-timeout-seconds" not in headers
    assert headers["content-type"] == protocol.BINARY_TYPE


#: Of each call the roles beside admin's; of the others, everybody.
ALLOWED = {
    "ModelInfer": {"predict"},
    "ModelMetadata": {"predict", "read"},
    "ServerMetadata": {"predict", "read"},
}
OPEN = {"ServerLive", "ServerReady", "ModelReady"}
#: Who calls: nobody, somebody with a key that never was or is no more, and one of each role.
CALLERS = (None, "wrong", "revoked", "predict", "label", "read", "admin")
DENIED = {
    (method, who): "PERMISSION_DENIED" if who in CALLERS[3:] else "UNAUTHENTICATED"
    for method, roles in ALLOWED.items()
    for who in CALLERS
    if who not in {*roles, "admin"}
}


def metadata(service: Service, who: str | None) -> tuple[tuple[str, str], ...]:
    """The key of a caller, as it is sent."""
    held = {**service.keys, "wrong": "wrong"}
    if who == "revoked":
        held["revoked"] = keys.add(service.storage, "revoked", "admin")
        keys.revoke(service.storage, "revoked")
    return (("authorization", f"Bearer {held[who]}"),) if who else ()


def test_each_call_is_answered_to_its_roles(address: str, service: Service) -> None:
    assert rpc._PATHS.keys() == ALLOWED.keys() | OPEN
    answered = {(method, who) for method in rpc._PATHS for who in CALLERS} - DENIED.keys()
    with grpc.insecure_channel(address) as channel:
        for method, who in sorted(answered, key=str):
            ask = channel.unary_unary(f"/{messages.SERVICE}/{method}")
            # Of an empty message.
            found = ask.future(b"", metadata=metadata(service, who), timeout=PATIENCE_S)
            assert code(found) in ("OK", "NOT_FOUND", "INVALID_ARGUMENT"), (method, who)


@pytest.mark.parametrize(("method", "who"), DENIED)
def test_without_the_key_for_it_nothing_is_read_or_asked(
    address: str, service: Service, method: str, who: str | None
) -> None:
    given = metadata(service, who)
    never, over = queue.SimpleQueue[bytes](), b""
    with grpc.insecure_channel(address) as channel:
        asking = channel.stream_unary(f"/{messages.SERVICE}/{method}")
        with pytest.raises(grpc.RpcError) as caught:
            asking(iter(never.get, over), metadata=given, timeout=PATIENCE_S)
        never.put(over)
    assert code(caught.value) == DENIED[method, who]
    assert "key" in caught.value.details()
    assert service.asked == []


@pytest.mark.parametrize(
    ("status", "expected"),
    [(400, "INVALID_ARGUMENT"), (405, "INVALID_ARGUMENT"), (413, "INVALID_ARGUMENT"),
     (422, "INVALID_ARGUMENT"), (404, "NOT_FOUND"), (429, "RESOURCE_EXHAUSTED"), (503, "UNAVAILABLE"),
     (504, "DEADLINE_EXCEEDED"), (500, "INTERNAL")],
)  # fmt: skip
def test_each_status_has_its_code_and_its_sentence(
    service: Service, key: dict[str, str], status: int, expected: str
) -> None:
    ask = Fixed((status, {"retry-after": "2"}, orjson.dumps({"error": "a sentence", "id": "x"})))
    with listening(ask, service.keyring) as address:
        error = refused(address, typed(), key)
    assert code(error) == expected
    assert error.details() == ("internal error" if status == 500 else "a sentence")
    assert dict(error.trailing_metadata())["retry-after"] == "2"


def changed(**fields: Any) -> Any:
    request = typed()
    for name, value in fields.items():
        setattr(request.inputs[0], name, value)
    return request


def with_raw(count: int, *, clear: bool) -> Any:
    request = typed()
    request.raw_input_contents.extend([b""] * count)
    for tensor in request.inputs if clear else ():
        tensor.ClearField("contents")
    return request


WRONG = {
    "no model": (service_pb2.ModelInferRequest(), "names no model"),
    "no inputs": (service_pb2.ModelInferRequest(model_name=MODEL), "row"),
    "an unknown datatype": (changed(datatype="FP65"), "no datatype 'FP65'"),
    "half floats typed": (typed("FP16", fp32_contents=[1, 2, 3]), "FP16"),
    "contents of another type": (typed("FP64", int_contents=[1, 2, 3]), "0 bytes are not 3 values"),
    "a value beyond its type": (typed("INT8", int_contents=[1, 2, 300]), "too large for INT8"),
    "values that the shape lacks": (typed(fp64_contents=[1.0]), "8 bytes are not 3 values"),
    "too many values": (typed(fp64_contents=[1.0] * 10_001), "10001 rows"),
    "text that is none": (typed("BYTES", bytes_contents=[b"\xff"] * 3), "UTF-8"),
    "a value that is wrong": (typed("BYTES", bytes_contents=[b"x"] * 3), "row 0, column 'load'"),
    "too few raw contents": (with_raw(1, clear=True), "1 raw_input_contents for"),
    "raw and typed contents": (with_raw(len(ROW), clear=False), "beside raw_input_contents"),
    "empty raw contents": (with_raw(len(ROW), clear=True), "not 3 values"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_bad_request_is_an_invalid_argument_with_a_sentence(
    address: str, key: dict[str, str], what: str
) -> None:
    request, sentence = WRONG[what]
    error = refused(address, request, key)
    assert (code(error), sentence in error.details()) == ("INVALID_ARGUMENT", True), error.details()


def test_bytes_that_are_no_message_are_an_invalid_argument(address: str, key: dict[str, str]) -> None:
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{messages.SERVICE}/ModelInfer")(b"\xff\xff", metadata=tuple(key.items()))
    assert code(caught.value) == "INVALID_ARGUMENT"


class AbortedError(Exception):
    """A call that was refused: its code, sentence and trailing metadata."""


@dataclass
class Context:
    """A call with metadata that a stock client would not send; gRPC's core lets them in, but not out."""

    metadata: list[tuple[str, str]]

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return self.metadata

    def time_remaining(self) -> None:
        return None

    async def abort(self, *said: Any) -> None:
        raise AbortedError(*said)


def test_metadata_that_are_not_of_ascii_are_an_invalid_argument(
    service: Service, key: dict[str, str]
) -> None:
    async def messages_of() -> AsyncIterator[bytes]:
        yield typed().SerializeToString()

    named = Context([*key.items(), ("x-routing-key", "ключ"), ("x-request-id", "ключ")])
    with pytest.raises(AbortedError) as caught:
        run(rpc._serve("ModelInfer", service.ask, service.keyring, messages_of(), named))
    status, sentence, trailing = caught.value.args
    assert status is grpc.StatusCode.INVALID_ARGUMENT
    assert sentence == "the metadata 'x-routing-key' holds other characters than those of ASCII"
    assert all(value.isascii() for _, value in trailing)


def test_a_long_sentence_is_cut_to_what_clients_take(service: Service) -> None:
    ask = Fixed((400, {}, orjson.dumps({"error": "é\n" * 50_000})))
    with listening(ask, service.keyring) as address:
        error = refused(address, typed(), {"authorization": f"Bearer {service.keys['predict']}"})
    assert code(error) == "INVALID_ARGUMENT"
    assert len(error.details()) == rpc.MAX_DETAILS


def test_an_unknown_model_or_version_is_not_found(
    client: triton.InferenceServerClient, key: dict[str, str]
) -> None:
    for model, version in (("other", ""), (MODEL, "7"), ("../metrics", ""), (MODEL, "1/ready")):
        with pytest.raises(InferenceServerException) as caught:
            client.infer(model, tensors(), version, headers=key)
        assert code(caught.value) == "NOT_FOUND"


def test_a_failure_of_ours_says_nothing(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    async def fails(*request: Any) -> Answered:
        raise ZeroDivisionError(str(1 / 7))

    with listening(fails, service.keyring) as address:
        error = refused(address, typed(), {"authorization": f"Bearer {service.keys['predict']}"})
    assert (code(error), error.details()) == ("INTERNAL", "internal error")
    assert "ZeroDivisionError" in caplog.text
    assert str(1 / 7) not in caplog.text


def test_a_caller_that_cancels_cancels_the_call_to_the_replica(service: Service) -> None:
    ask = Fixed()
    key = (("authorization", f"Bearer {service.keys['predict']}"),)
    with listening(ask, service.keyring) as address, grpc.insecure_channel(address) as channel:
        pending = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer.future(typed(), metadata=key)
        assert ask.came.wait(PATIENCE_S)
        pending.cancel()
        assert ask.cancelled.wait(PATIENCE_S)


def test_a_deadline_that_passes_cancels_it_too(service: Service) -> None:
    ask = Fixed()
    headers = {"authorization": f"Bearer {service.keys['predict']}"}
    with listening(ask, service.keyring) as address:
        client = triton.InferenceServerClient(address)
        with contextlib.closing(client), pytest.raises(InferenceServerException) as caught:
            client.infer(MODEL, tensors(), headers=headers, client_timeout=0.5)
        assert code(caught.value) == "DEADLINE_EXCEEDED"
        assert ask.cancelled.wait(PATIENCE_S)


def test_other_methods_are_unimplemented(client: triton.InferenceServerClient, key: dict[str, str]) -> None:
    for method in (client.get_model_repository_index, client.get_trace_settings):
        with pytest.raises(InferenceServerException) as caught:
            method(headers=key)
        assert code(caught.value) == "UNIMPLEMENTED"


def test_a_message_over_the_limit_is_refused_and_one_of_a_whole_body_is_not(
    address: str, service: Service, key: dict[str, str]
) -> None:
    request = typed()
    request.parameters["padding"].string_param = "x" * (protocol.MAX_BODY_BYTES - 1_000_000)
    infer(address, request, key)
    asked = len(service.asked)
    request.parameters["padding"].string_param = "x" * rpc.MAX_MESSAGE_BYTES
    assert code(refused(address, request, key)) in ("RESOURCE_EXHAUSTED", "UNKNOWN")
    assert len(service.asked) == asked


def test_calls_beyond_the_bound_are_refused_at_once(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc, "MAX_CALLS", 1)
    ask = Fixed()
    key = {"authorization": f"Bearer {service.keys['predict']}"}
    with listening(ask, service.keyring) as address, grpc.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        pending = stub.ModelInfer.future(typed(), metadata=tuple(key.items()))
        assert ask.came.wait(PATIENCE_S)
        assert code(refused(address, typed(), key)) == "RESOURCE_EXHAUSTED"
        pending.cancel()


def test_with_a_certificate_it_speaks_tls_only(service: Service, tmp_path: Path) -> None:
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    subprocess.run(
        [require("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    with listening(service.ask, service.keyring, certificate=certificate, key=key) as address:
        client = triton.InferenceServerClient(address, ssl=True, root_certificates=certificate)
        with contextlib.closing(client):
            assert client.is_server_live()
        plain = triton.InferenceServerClient(address)
        with contextlib.closing(plain), pytest.raises(InferenceServerException) as caught:
            plain.is_server_live()
        assert code(caught.value) == "UNAVAILABLE"


def test_a_certificate_without_its_key_is_refused_not_ignored() -> None:
    with pytest.raises(UsageError):
        Listener("127.0.0.1", 0, certificate="certificate.pem")


def silent(address: str, method: str) -> tuple[grpc.Channel, Any]:
    """A call whose message does not come."""
    channel = grpc.insecure_channel(address)
    call = channel.stream_unary(f"/{rpc.SERVICE}/{method}")
    return channel, call.future(wait_for_ever())


def wait_for_ever() -> Iterator[bytes]:
    threading.Event().wait()
    yield b""


def test_health_of_the_server_waits_for_no_message(address: str) -> None:
    channel, call = silent(address, "ServerLive")
    assert messages.message("ServerLiveResponse").FromString(call.result(timeout=60)).live
    channel.close()


def test_who_asks_whether_a_model_is_ready_and_sends_nothing_keeps_nobody_out(
    address: str, key: dict[str, str], service: Service
) -> None:
    calls = [silent(address, "ModelReady") for _ in range(rpc.MOST_OPEN_READS + 3)]
    assert infer(address, typed(), key)
    codes = {code(call.exception(timeout=60)) for _, call in calls}
    assert codes == {"RESOURCE_EXHAUSTED", "INVALID_ARGUMENT"}
    for channel, _ in calls:
        channel.close()


def test_outputs_and_parameters_are_limited_as_inputs_are(address: str, key: dict[str, str]) -> None:
    many = typed()
    for _ in range(1_001):
        many.outputs.add()
    assert "1001 columns are more than 1000" in refused(address, many, key).details()
    many = typed()
    for number in range(1_001):
        many.parameters[str(number)].bool_param = True
    assert "1001 columns are more than 1000" in refused(address, many, key).details()
