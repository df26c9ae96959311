"""Fuzzing that is guided by coverage finds what is planted, and nothing in our decoders and our server."""

import asyncio
import json
import os
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from polars.exceptions import PanicException

from mlops_ray.data import labels, rows
from mlops_ray.data.rows import Rows, together
from mlops_ray.errors import DeadlineError, InvalidRowError, RequestError, ServiceError
from mlops_ray.schema import Rule
from mlops_ray.serving import (
    admission,
    asgi,
    columns,
    documents,
    endpoint,
    protocol,
    rpc,
    tables,
    tensors,
    truth,
)
from mlops_ray.serving.asgi import Application, Call, Message, Reply
from mlops_ray.serving.columns import MOST_TEXT, Reader
from mlops_ray.serving.documents import INT64, MAX_ROWS
from mlops_ray.serving.endpoint import INFER, LABELS
from mlops_ray.serving.messages import message
from tests.registry.made import FEATURES, REQUEST
from tests.security import flood, guided, samples
from tests.security.flood import Server, alone, statuses_of, wrong_statuses
from tests.security.guided import Fuzzed, fuzz, lines_of, minimised, wrong
from tests.security.samples import GRPC, JSON, MARKS, NAMES, RIGHT_ROW, Sample, forms, kept, seeds
from tests.serving.live import LONG, listening, service

#: `make fuzz` says for how long, and how many requests over HTTP; else there are few inputs, the same ones.
SECONDS = float(os.environ.get("MLOPS_FUZZ_S", 3_600 if LONG else 0))
REQUESTS = int(os.environ.get("MLOPS_FUZZ_REQUESTS", 100_000 if LONG else 1_000))
INPUTS = 4_000
SEED = time.time_ns() if SECONDS else 7
pytestmark = pytest.mark.timeout(300 + 2 * SECONDS + REQUESTS / 20)
#: Whatever once was found, as small as it could be made; what is found is put here.
KEPT = Path(__file__).parents[1] / "fixtures" / "fuzz"
#: What stands for a server's key in requests that are kept as they were sent.
KEY = b"KEY"
#: The code that reads requests.
CODE = (protocol, documents, tensors, tables, columns, endpoint, rpc, truth, labels, asgi, admission, rows)
FILES = [str(module.__file__) for module in CODE]

# ---------------------------------------------------------------- what reads requests

#: Of these columns no value may be told.
LIVE: Any = SimpleNamespace(
    reader=Reader(REQUEST, frozenset(NAMES)),
    served=SimpleNamespace(
        request=REQUEST, threshold=0.5, labels=("stays", "goes"), outputs=("prediction", "decision", "label")
    ),
)
_PYTHON = {"float": float, "int": int, "bool": bool, "string": str, "category": str, "datetime": int}


def decode(sample: Sample) -> None:
    """Reads a request as a replica does, and looks at what comes of it."""
    call = Call("POST", sample.action, sample.headers, _nothing)
    admission.deadline(call.header(admission.TIMEOUT), 0.0)
    assert 0 < len(call.id) <= asgi.MOST_ID
    if sample.action == LABELS:
        kind = call.header("content-type") or ""
        found = endpoint._decode_labels(LIVE, sample.body, kind, frozenset({"lag"}))
        assert 0 < found.height <= truth.MOST_LABELS
    elif sample.action == GRPC:
        _decode_message(sample.body)
    else:
        sound(endpoint._decode(call, LIVE, sample.action, sample.body).rows)


def _decode_message(body: bytes) -> None:
    try:
        request = message("ModelInferRequest").FromString(body)
    except DecodeError:
        raise RequestError("as the gateway says it") from None
    headers, body = rpc.encode(request)
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    sound(endpoint._decode(Call("POST", INFER, pairs, _nothing), LIVE, INFER, body).rows)


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


def sound(decoded: Rows) -> None:
    """Rows are within the limits, each value of its column's type, and a batch can be made of them."""
    assert 0 < decoded.height <= MAX_ROWS
    for column, values in zip(REQUEST.columns, decoded.values, strict=True):
        assert len(values) == decoded.height
        for value in values:
            assert value is None or type(value) is _PYTHON[column.type]
            assert type(value) is not int or value in INT64
            assert type(value) is not str or len(value) <= MOST_TEXT
    table = together([decoded])
    assert table.is_sound in (True, False)
    assert table.frame.height == decoded.height


@pytest.mark.parametrize("seed", [seed for seed in seeds() if not any(mark in seed.body for mark in MARKS)])
def test_what_it_begins_with_is_read(seed: Sample) -> None:
    decode(seed)


# ---------------------------------------------------------------- what is planted is found


def planted(sample: Sample) -> None:
    """Fails at what is three changes away, each of which leads through other lines."""
    if sample.body[:1] != b"\xff":
        return
    if sample.body[1:2] != b"{":
        return
    if sample.body[2:3] != b"\0":
        return
    raise ZeroDivisionError


NEAR = [Sample(INFER, (), b"body")]
TRIES = 12_000


def test_a_fault_behind_several_steps_is_found_by_going_on_from_each_and_made_small() -> None:
    found = fuzz(planted, NEAR, [__file__], Random(9), inputs=TRIES).found
    assert list(found) == ["ZeroDivisionError test_guided planted"]
    assert minimised(planted, *found.values()).body == b"\xff{\0"
    assert fuzz(planted, NEAR, [__file__], Random(9), inputs=TRIES, is_guided=False).found == {}


def endless(sample: Sample) -> None:
    while sample:
        pass


def large(sample: Sample) -> None:
    sample.body.ljust(2 * guided.MOST_GROWTH_BYTES, b"x")


def raising(error: BaseException) -> Callable[[Sample], None]:
    def read(sample: Sample) -> None:
        raise error

    return read


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (endless, "TooSlowError test_guided endless"),
        (large, "memory"),
        (raising(ValueError("no")), "ValueError test_guided read"),
        (raising(PanicException("no")), "PanicException test_guided read"),
        (raising(ServiceError("away")), "ServiceError test_guided read"),
        (raising(DeadlineError("late")), "status 504 test_guided read"),
        (raising(RequestError("")), "sentence of no length test_guided read"),
        (raising(RequestError("x" * 1_000)), "endless sentence test_guided read"),
        (
            raising(InvalidRowError("'canary' is not a number", row=0, column="lag")),
            "hidden value told test_guided read",
        ),
        (raising(InvalidRowError("the value is not a number", row=0, column="lag")), ""),
        (lambda sample: None, ""),
    ],
)
def test_what_must_not_be_is_told(read: Callable[[Sample], None], said: str) -> None:
    assert wrong(read, Sample(INFER, (JSON,), json.dumps(HIDING).encode()), limit_s=0.5) == said


HIDING = forms(RIGHT_ROW | {"lag": "canary"})[0][1]


@pytest.mark.parametrize(
    ("sample", "is_told"),
    [
        (Sample(INFER, (JSON,), json.dumps(HIDING).encode()), True),
        (Sample(INFER, (JSON,), json.dumps({"inputs": [{"name": "canary"}]}).encode()), False),
        (Sample(INFER, (JSON,), json.dumps({"canary": 1}).encode()), False),
        (Sample(INFER, ((b"content-type", b"canary"),), b""), False),
        (Sample("/invocations", (samples.CSV,), b"lag\ncanary\n"), True),
        (Sample("/invocations", (samples.CSV,), b"canary\n1\n"), False),
        *((seed, True) for seed in seeds() if seed.action == GRPC and b"canary" in seed.body),
    ],
)
def test_a_hidden_value_is_one_that_is_the_name_of_nothing(sample: Sample, is_told: bool) -> None:
    assert bool(guided.wrongly_said("canary is unknown", sample)) is is_told


@pytest.mark.parametrize("seed", seeds())
def test_a_request_is_kept_as_it_is(seed: Sample) -> None:
    assert kept(seed.file) == seed


# ---------------------------------------------------------------- nothing is found


@pytest.fixture(scope="module")
def fuzzed() -> Fuzzed:
    return fuzz(
        decode,
        [*seeds(), *(kept(file.read_bytes()) for file in files("request"))],
        FILES,
        Random(SEED),
        **({"seconds": SECONDS} if SECONDS else {"inputs": INPUTS}),
    )


def files(kind: str) -> list[Path]:
    """What is kept: each a `request` to be read, or bytes to be sent as they are, as `http`."""
    return sorted(KEPT.glob(f"*.{kind}"))


def keep(why: str, kind: str, data: bytes) -> Path:
    path = KEPT / f"{re.sub(r'[^a-z0-9]+', '-', why.lower())}.{kind}"
    KEPT.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def test_no_decoder_fails_at_what_leads_to_new_code(
    fuzzed: Fuzzed, record_property: Callable[[str, object], None]
) -> None:
    found = [keep(why, "request", minimised(decode, each).file) for why, each in fuzzed.found.items()]
    row = {
        "decoders in process, inputs": f"{fuzzed.tried:,}",
        "a second": f"{fuzzed.tried / fuzzed.seconds:,.0f}",
        "lines at first": f"{lines_of(fuzzed.first):,}",
        "at last": f"{lines_of(fuzzed.arcs):,}",
        "steps from line to line at first": f"{len(fuzzed.first):,}",
        "at last ": f"{len(fuzzed.arcs):,}",
        "inputs that led to new ones": f"{len(fuzzed.corpus):,}",
        "faults": f"{len(found)}",
    }
    record_property("row", row)
    assert fuzzed.arcs > fuzzed.first
    assert not found, f"kept, to be mended: {[path.name for path in found]}"


@pytest.mark.parametrize("file", files("request"), ids=lambda file: file.stem)
def test_what_once_was_found_is_read_as_it_must_be(file: Path) -> None:
    assert wrong(decode, kept(file.read_bytes())) == ""


# ---------------------------------------------------------------- over HTTP

RIGHT = Sample(INFER, (JSON,), json.dumps(forms(RIGHT_ROW)[0][1]).encode())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model whose columns are all hidden, with rules over one of them and over two."""
    rules = (Rule("low", "lag < 9"), Rule("mixed", "lag < 8 OR hour > 23"))
    features = replace(FEATURES, request=replace(FEATURES.request, rules=rules))
    folder = tmp_path_factory.mktemp("fuzzed")
    answering = service(folder, "classification", frozenset(NAMES), feature_set=features)
    with listening(answering) as url:
        yield Server(url, answering.model, answering.keys["admin"])


def test_no_request_over_http_fails_hangs_or_gets_anothers_answer(
    server: Server, fuzzed: Fuzzed, record_property: Callable[[str, object], None]
) -> None:
    began = time.monotonic()
    seen = flood.flood(server, [each for each in fuzzed.corpus if each.action != GRPC], RIGHT, REQUESTS, SEED)
    seconds = time.monotonic() - began
    found = [keep(why, "http", raw.replace(server.key.encode(), KEY)) for why, raw in seen.found.items()]
    by: Counter[int] = Counter()
    for status, times in seen.statuses.items():
        by[status // 100] += times
    row = {
        "requests over HTTP": f"{seen.kinds.total():,}",
        "a second": f"{REQUESTS / seconds:,.0f}",
        "right ones, answered alike": f"{seen.kinds['right']:,}",
        "damaged with their heads": f"{seen.kinds['damaged']:,}",
        "2xx": f"{by[2]:,}",
        "4xx": f"{by[4]:,}",
        "504 by the caller's own deadline": f"{by[5]:,}",
        "faults": f"{len(found)}",
    }
    record_property("row", row)
    assert seen.kinds.total() == REQUESTS
    assert set(seen.kinds) == {"right", "damaged", "changed"}
    assert by[2]
    assert by[4]
    assert not found, f"kept, to be mended: {[path.name for path in found]}"


def test_to_be_told_to_go_on_is_no_fault_where_it_was_asked_for() -> None:
    assert wrong_statuses([100, 400], b"POST / HTTP/1.1\r\nExpect: 100-Continue\r\n\r\n") == ""
    assert "status 100" in wrong_statuses([100, 400], b"POST / HTTP/1.1\r\n\r\n")
    assert "status 500" in wrong_statuses([100, 500], b"POST / HTTP/1.1\r\nExpect: 100-continue\r\n\r\n")


@pytest.mark.parametrize("file", files("*"), ids=lambda file: file.stem)
def test_what_once_was_found_is_answered_as_it_must_be(file: Path, server: Server) -> None:
    data = file.read_bytes()
    raw = data.replace(KEY, server.key.encode()) if file.suffix == ".http" else server.raw(kept(data))
    assert all(status < 500 for status in statuses_of(alone(server, raw)))


@dataclass
class Faulty(Application):
    """Answers well, but for requests with a header, which get a reply that no request may get."""

    fault: Reply | None
    right: int = 0

    def take(self, call: Call) -> Reply | Awaitable[Reply]:
        if call.header("x-routing-key"):
            return self._gone(call) if self.fault is None else self.fault
        self.right += 1
        return Reply(200, b'{"outputs": [1]}')

    async def _gone(self, call: Call) -> Reply:
        while not call.is_gone():
            await asyncio.sleep(0)
        return Reply(200, b"")


def failing(status: int, **document: object) -> Reply:
    return Reply(status, json.dumps(document).encode())


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (failing(500, error="internal error"), "status 500"),
        (failing(503, error="away"), "status 503"),
        (failing(504, error="late"), "status 504"),
        (failing(422, error="31337.25 is not text"), "hidden value told"),
        (failing(422, error="x" * 1_000), "endless sentence"),
        (failing(422, error="wrong", more=1), "422 in another form"),
        (Reply(422, b"wrong", {"content-type": "text/plain"}), "422 as text/plain"),
        (None, "no reply: TimeoutError"),
    ],
)
def test_a_reply_that_must_not_be_is_found(
    fault: Reply | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flood, "LIMIT_S", 1.0 if fault is None else flood.LIMIT_S)
    monkeypatch.setattr(flood, "DAMAGED", 0.0)
    asking = RIGHT._replace(headers=((b"x-routing-key", b"a"),))
    with listening(Faulty(fault)) as url:
        seen = flood.flood(Server(url, "m", "key"), [asking], RIGHT, 16, SEED)
    assert list(seen.found) == [said]


def test_an_answer_that_is_another_one_is_found() -> None:
    class Changing(Faulty):
        def take(self, call: Call) -> Reply:
            self.right += 1
            return failing(200, outputs=[self.right > 1])

    with listening(Changing(None)) as url:
        seen = flood.flood(Server(url, "m", "key"), [RIGHT], RIGHT, 200, SEED)
    assert list(seen.found) == ["a right request got [True]"]
