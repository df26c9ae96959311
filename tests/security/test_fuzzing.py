"""Whatever comes in: an answer or a 4xx in protocol form, in time, that tells nothing of hidden columns."""

import asyncio
import gzip
import itertools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mlops_ray.schema import Rule
from mlops_ray.serving.asgi import App, Message
from mlops_ray.serving.documents import MAX_BRACKETS, MAX_COLUMNS, MAX_DEPTH, MAX_ROWS
from mlops_ray.serving.protocol import MAX_BODY_BYTES
from tests.registry.made import FEATURES
from tests.security.samples import CANARIES, CSV, JSON, LENGTH, MARKS, NAMES, RIGHT_ROW, ROW, binary, forms
from tests.serving.live import LONG, Service, service

#: Far longer than an answer takes, and shorter than a hang.
LIMIT_S = 30.0
BOUNDED = settings(
    max_examples=2_000 if LONG else 150,
    derandomize=not LONG,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def hiding(tmp_path_factory: pytest.TempPathFactory) -> Service:
    """A model with a hidden column, and rules over it alone and with another one."""
    rules = (Rule("low", "lag < 9"), Rule("mixed", "lag < 8 OR hour > 23"))
    features = replace(FEATURES, request=replace(FEATURES.request, rules=rules))
    folder = tmp_path_factory.mktemp("hiding")
    return service(folder, "classification", frozenset({"lag"}), feature_set=features)


@dataclass(frozen=True)
class Answered:
    status: int
    headers: dict[bytes, bytes]
    body: bytes


async def _ask(
    app: App,
    method: str,
    path: bytes,
    headers: Sequence[tuple[bytes, bytes]],
    parts: Sequence[bytes],
    cut: bool = False,
    stalls: bool = False,
) -> Answered:
    messages: list[Message] = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    if not stalls:
        messages.append({"type": "http.disconnect"} if cut else {"type": "http.request", "body": b""})
    sent: list[Message] = []

    async def receive() -> Message:
        # Each part comes late: others are read meanwhile.
        await asyncio.sleep(0)
        if stalls and not messages:
            await asyncio.get_running_loop().create_future()
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path.decode("latin-1"),
        "raw_path": path,
        "query_string": b"",
        "headers": list(headers),
    }
    async with asyncio.timeout(LIMIT_S):
        await app(scope, receive, send)
    start, *rest = sent
    return Answered(start["status"], dict(start["headers"]), b"".join(part["body"] for part in rest))


def ask(
    at: Service,
    action: str,
    body: bytes | Sequence[bytes] = b"",
    *headers: tuple[bytes, bytes],
    method: str = "POST",
    **more: bool,
) -> Answered:
    """One request with a key; its answer is what an answer must be."""
    key = (b"authorization", f"Bearer {at.keys['predict']}".encode())
    path = f"/v2/models/{at.model}{action}".encode("latin-1")
    parts = [body] if isinstance(body, bytes) else body
    reply = asyncio.run(_ask(at, method, path, [*headers, key], parts, **more))
    check(reply)
    return reply


def check(reply: Answered) -> None:
    if reply.status == 200:
        return
    assert 400 <= reply.status < 500 or reply.status == 504, reply
    assert reply.headers[b"content-type"] == b"application/json"
    assert int(reply.headers[b"content-length"]) == len(reply.body)
    document = orjson.loads(reply.body)
    assert list(document) == ["error"]
    assert document["error"]
    assert len(document["error"]) < 1_000
    assert not any(mark in reply.body for mark in MARKS), reply.body


# ---------------------------------------------------------------- bodies that are whole, in every form


BINARY_BODY, BINARY_LENGTH = binary(RIGHT_ROW)
BINARY = (LENGTH, str(BINARY_LENGTH).encode())


def test_what_is_right_is_answered_by_the_same_service(hiding: Service) -> None:
    for action, document in forms(RIGHT_ROW):
        assert ask(hiding, action, json.dumps(document).encode(), JSON).status == 200
    assert ask(hiding, "/infer", BINARY_BODY, BINARY).status == 200
    lines = b"site,time,lag,hour,holiday\na,2016-11-01T00:00:00Z,1,7,true\n"
    assert ask(hiding, "/invocations", lines, CSV).status == 200


numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([10**400, -(10**30), 2**63, 2**64, -(2**63) - 1, 1e308, -0.0, 5e-324]),
)
scalars = st.one_of(
    st.none(), st.booleans(), numbers, st.text(max_size=8), st.sampled_from(["", "NaN", "\0"])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)
#: A canary, alone or inside of something.
hidden_values = st.sampled_from(CANARIES).flatmap(
    lambda value: st.sampled_from(
        [value, str(value), [value], [[value]], {"x": value}, f" {value} ", [value, 1]]
    )
)


@BOUNDED
@given(row=st.dictionaries(st.sampled_from(NAMES), values), lag=hidden_values, at=st.integers(0, 5))
def test_any_value_in_any_column_of_any_form(hiding: Service, row: dict[str, Any], lag: Any, at: int) -> None:
    action, document = forms(ROW | row | {"lag": lag})[at]
    # With NaN and the infinities, as Python writes them.
    ask(hiding, action, json.dumps(document).encode(), JSON)


parts_of_v2 = {
    "name": st.sampled_from(NAMES) | scalars,
    "datatype": st.sampled_from(["BYTES", "FP64", "INT64", "BOOL", "FP16", "fp64"]) | scalars,
    "shape": st.lists(st.integers(-1, 3) | scalars, max_size=3) | scalars,
    "data": hidden_values | values,
    "parameters": st.dictionaries(st.sampled_from(["binary_data_size", "binary_data"]), scalars) | values,
}


@BOUNDED
@given(
    st.lists(st.fixed_dictionaries({}, optional=parts_of_v2), max_size=6),
    st.dictionaries(st.sampled_from(["id", "parameters", "outputs", "more"]), values),
    st.none() | st.integers(-2, 400).map(str) | st.text(max_size=4),
    st.binary(max_size=30),
)
def test_any_tensors_and_any_length_of_the_json(
    hiding: Service, inputs: list[Any], more: dict[str, Any], length: str | None, tail: bytes
) -> None:
    body = json.dumps({"inputs": inputs, **more}).encode() + (tail if length is not None else b"")
    said = [] if length is None else [(BINARY[0], length.encode("utf-8", "replace"))]
    ask(hiding, "/infer", body, *said)


tables = st.one_of(
    values,
    hidden_values,
    st.lists(st.dictionaries(st.sampled_from(NAMES), values), max_size=3),
    st.fixed_dictionaries(
        {"columns": st.permutations(NAMES) | values, "data": st.lists(st.lists(hidden_values))}
    ),
)


@BOUNDED
@given(
    st.dictionaries(
        st.sampled_from(["dataframe_split", "dataframe_records", "instances", "inputs", "params"]), tables
    )
)
def test_any_table(hiding: Service, document: dict[str, Any]) -> None:
    ask(hiding, "/invocations", json.dumps(document).encode(), JSON)


# ---------------------------------------------------------------- bodies that were damaged on the way

WHOLE = [
    *((action, json.dumps(document).encode(), JSON) for action, document in forms(ROW)),
    ("/infer", binary(ROW)[0], (BINARY[0], str(binary(ROW)[1]).encode())),
    ("/invocations", b"site,time,lag,hour,holiday\na,2016-11-01T00:00:00Z,31337.25,7,true\n", CSV),
    ("/invocations", b"a,2016-11-01T00:00:00Z,canary,7,true\n" * 2, CSV),
]
edits = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 12), st.binary(max_size=6)), min_size=1, max_size=4
)


def damaged(body: bytes, changes: Sequence[tuple[float, int, bytes]]) -> bytes:
    """The body with some bytes at some places replaced by others; what is left of a canary is none."""
    for where, length, other in changes:
        start = int(where * len(body))
        body = body[:start] + other + body[start + length :]
    return body


@BOUNDED
@given(st.sampled_from(WHOLE), edits)
def test_any_damage_to_a_body(hiding: Service, whole: Any, changes: Any) -> None:
    action, body, header = whole
    ask(hiding, action, damaged(body, changes), header)


@BOUNDED
@given(
    st.binary(max_size=200), st.sampled_from(["/infer", "/invocations"]), st.sampled_from([JSON, CSV, BINARY])
)
@example(b"\xef\xbb\xbf{}", "/infer", JSON)
@example(b"\xff\xfe{\0}\0", "/infer", JSON)
@example('{"inputs": []}'.encode("utf-16"), "/infer", JSON)
@example('{"inputs": []}'.encode("utf-32"), "/infer", JSON)
@example(b'{"inputs": "\\ud800"}', "/infer", JSON)
@example(b'{"inputs": {"site": ["\\ud800", NaN]}}', "/invocations", JSON)
def test_any_bytes(hiding: Service, body: bytes, action: str, header: tuple[bytes, bytes]) -> None:
    ask(hiding, action, body, header)


@BOUNDED
@given(
    st.sampled_from(WHOLE),
    st.lists(st.integers(0, 400), max_size=6),
    st.booleans(),
    st.none() | st.integers(0, 999),
)
def test_a_body_in_any_pieces_cut_or_of_another_length_than_said(
    hiding: Service, whole: Any, places: list[int], cut: bool, length: int | None
) -> None:
    action, body, header = whole
    ends = [0, *sorted(min(place, len(body)) for place in places), len(body)]
    pieces = [body[start:end] for start, end in itertools.pairwise(ends)]
    said = [] if length is None else [(b"content-length", str(length).encode())]
    reply = ask(hiding, action, pieces, header, *said, cut=cut)
    assert not (cut and reply.status == 200)


@pytest.mark.parametrize("action", ["/infer", "/invocations"])
def test_a_body_that_stays_away_is_given_up(
    hiding: Service, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(hiding, action, b"{", JSON, (b"x-timeout-ms", b"50"), stalls=True).status == 504
    monkeypatch.setattr("mlops_ray.serving.endpoint.BODY_S", 0.05)
    assert ask(hiding, action, b"{", JSON, stalls=True).status == 408


# ---------------------------------------------------------------- headers

#: What an HTTP server lets through.
header_values = st.binary(max_size=24).map(
    lambda raw: bytes(b for b in raw if b >= 32 and b != 127)
) | st.sampled_from(
    [
        b"",
        b"gzip",
        b"gzip, br",
        b"identity",
        b"text/csv;charset=utf-16",
        b"application/json; x=y",
        b"-1",
        b"1e3",
        b"0",
    ]
)
header_names = st.sampled_from(
    [
        *(b"content-type", b"content-encoding", b"content-length", b"inference-header-content-length"),
        *(
            b"authorization",
            b"x-timeout-ms",
            b"x-request-id",
            b"x-routing-key",
            b"cookie",
            b"accept",
            b"range",
        ),
        *(
            b"transfer-encoding",
            b"expect",
            b"x-http-method-override",
            b"x-forwarded-for",
            b"serve-multiplexed-model-id",
        ),
    ]
)


@BOUNDED
@given(st.lists(st.tuples(header_names, header_values), max_size=6), st.sampled_from(WHOLE))
def test_any_headers(hiding: Service, headers: list[tuple[bytes, bytes]], whole: Any) -> None:
    action, body, _ = whole
    reply = ask(hiding, action, body, *headers)
    assert reply.status != 200 or b"authorization" not in dict(headers)


def test_a_body_in_an_encoding_is_not_unpacked(hiding: Service) -> None:
    body = gzip.compress(b'{"inputs": []}')
    assert ask(hiding, "/infer", body, JSON, (b"content-encoding", b"gzip")).status == 415
    assert ask(hiding, "/infer", body, JSON).status == 400


# ---------------------------------------------------------------- too much

TOO_MUCH = {
    "depth": (b"[" * (MAX_DEPTH + 2) + b"]" * (MAX_DEPTH + 2), {400}),
    "depth beyond the parser's": (b"[" * MAX_BRACKETS + b"]" * MAX_BRACKETS, {400}),
    "depth and NaN": (b"[" * (MAX_BRACKETS - 1) + b"NaN" + b"]" * (MAX_BRACKETS - 1), {400}),
    "depth of objects": (b'{"a":' * 20_000 + b"1" + b"}" * 20_000, {400}),
    "brackets": (b"[" + b"[]," * MAX_BRACKETS + b"[]]", {413}),
    "rows": (json.dumps({"inputs": {name: [1] * (MAX_ROWS + 1) for name in NAMES}}).encode(), {413}),
    "columns": (json.dumps({"inputs": {f"c{at}": 1 for at in range(MAX_COLUMNS + 1)}}).encode(), {413}),
    "digits": (b'{"inputs": {"site": ' + b"9" * 100_000 + b"}}", {400, 422}),
    "a text": (json.dumps({"inputs": ROW | {"site": "x" * 1_000_000, "lag": 1}}).encode(), {200, 422}),
    "a name": (json.dumps({"inputs": {"x" * 1_000_000: 1}}).encode(), {422}),
    "bytes": (b" " * (MAX_BODY_BYTES + 1), {413}),
}


@pytest.mark.parametrize("what", TOO_MUCH)
@pytest.mark.parametrize("action", ["/infer", "/invocations"])
def test_too_much_is_refused(hiding: Service, what: str, action: str) -> None:
    body, expected = TOO_MUCH[what]
    reply = ask(hiding, action, body, JSON)
    assert action == "/infer" or reply.status in expected, reply.body
    assert reply.status != 200 or 200 in expected


def test_a_body_that_is_too_long_is_refused_before_it_is_all_there(hiding: Service) -> None:
    length = (b"content-length", str(MAX_BODY_BYTES + 1).encode())
    assert ask(hiding, "/infer", [b"{"], JSON, length).status == 413
    endless = [b" " * (MAX_BODY_BYTES // 2)] * 3
    assert ask(hiding, "/infer", endless, JSON, cut=True).status == 413


# ---------------------------------------------------------------- a hidden column's value is told nowhere


def test_a_hidden_value_is_refused_and_shown_in_no_answer_and_no_log(
    hiding: Service, caplog: pytest.LogCaptureFixture
) -> None:
    refused = 0
    with caplog.at_level(logging.DEBUG):
        for lag in [*CANARIES, [31337], {"canary": 1}, True, "31337-01-01"]:
            for action, document in forms(ROW | {"lag": lag}):
                refused += ask(hiding, action, json.dumps(document).encode(), JSON).status == 422
        lines = b"site,time,lag,hour,holiday\na,2016-11-01T00:00:00Z,canary,7,true\n"
        refused += ask(hiding, "/invocations", lines, CSV).status == 422
        # Without the line of names the first row is taken for it.
        refused += ask(hiding, "/invocations", lines.partition(b"\n")[2] * 2, CSV).status == 422
        for rows in ([["a", "b"], ["canary", 31337]], ["canary"], "canary"):
            for form in ("instances", "inputs", "dataframe_split", "dataframe_records"):
                ask(hiding, "/invocations", json.dumps({form: rows}).encode(), JSON)
    assert refused > 40
    assert not any(mark.decode() in caplog.text for mark in MARKS)


@BOUNDED
@given(st.binary(max_size=30), st.sampled_from(["GET", "POST", "PUT", "BREW"]))
def test_any_path_below_the_model_and_beside_it(hiding: Service, rest: bytes, method: str) -> None:
    key = (b"authorization", f"Bearer {hiding.keys['admin']}".encode())
    for prefix in (f"/v2/models/{hiding.model}".encode(), b"", b"/v2", b"/dashboard/", b"/v2/models/"):
        path = b"/" + (prefix + rest).lstrip(b"/")
        reply = asyncio.run(_ask(hiding, method, path, [key], []))
        assert reply.status < 500
        assert reply.status < 400 or orjson.loads(reply.body)["error"]
