"""Requests in every form that we read, and how they are changed into others."""

import copy
import json
import struct
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, NamedTuple

from google.protobuf import json_format
from google.protobuf.message import DecodeError

from mlops_ray.serving.documents import MAX_DEPTH
from mlops_ray.serving.endpoint import INFER, INVOCATIONS, LABELS
from mlops_ray.serving.messages import message

#: A message of gRPC, whose body is the message.
GRPC = "grpc"
#: What requests hold in `lag`, a column that nobody may see: one of them, or in a shape.
CANARIES = ("canary", 31337.25, 31337 * 10**9, -31337)
MARKS = (b"canary", b"31337")
ROW = {"site": "a", "time": "2016-11-01T00:00:00Z", "lag": 31337.25, "hour": 7, "holiday": True}
NAMES = list(ROW)
#: The same with a value that is right.
RIGHT_ROW = ROW | {"lag": 1.0}
JSON = (b"content-type", b"application/json")
CSV = (b"content-type", b"text/csv")
LENGTH = b"inference-header-content-length"


class Sample(NamedTuple):
    """A request: what is asked of a model, headers by names in lower case, and the body."""

    action: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    @property
    def file(self) -> bytes:
        """As it is kept: the action, a line a header, an empty line, and the body."""
        lines = [self.action.encode(), *(b"%b: %b" % header for header in self.headers)]
        return b"%b\n\n%b" % (b"\n".join(lines), self.body)


def kept(data: bytes) -> Sample:
    """The request of a file."""
    head, _, body = data.partition(b"\n\n")
    action, *lines = head.split(b"\n")
    pairs = (line.partition(b": ") for line in lines)
    return Sample(action.decode(), tuple((name, value) for name, _, value in pairs), body)


# ---------------------------------------------------------------- requests that are whole


def tensor(name: str, value: Any, datatype: Any = "BYTES", shape: Any = (1,)) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape), "data": [value]}


def text(value: str) -> bytes:
    return struct.pack("<I", len(value.encode())) + value.encode()


def binary(row: dict[str, Any]) -> tuple[bytes, int]:
    """The row as binary tensors, and how long the JSON before them is."""
    return _binary({name: ("BYTES", text(str(value))) for name, value in row.items()})


def _binary(tensors: dict[str, tuple[str, bytes]]) -> tuple[bytes, int]:
    inputs = [
        {"name": name, "datatype": datatype, "shape": [1], "parameters": {"binary_data_size": len(data)}}
        for name, (datatype, data) in tensors.items()
    ]
    head = json.dumps({"inputs": inputs}).encode()
    return head + b"".join(data for _, data in tensors.values()), len(head)


def forms(row: dict[str, Any]) -> list[tuple[str, Any]]:
    """A row in each form of JSON."""
    values = list(row.values())
    return [
        (INFER, {"inputs": [tensor(name, value) for name, value in row.items()]}),
        (INVOCATIONS, {"dataframe_records": [row]}),
        (INVOCATIONS, {"dataframe_split": {"columns": list(row), "data": [values]}}),
        (INVOCATIONS, {"instances": [values]}),
        (INVOCATIONS, {"inputs": {name: [value] for name, value in row.items()}}),
        (INVOCATIONS, {"inputs": row}),
    ]


def seeds() -> list[Sample]:
    """Requests of every kind, of which all others are made: of a row that is right, and of two that hide."""
    rows = (RIGHT_ROW, ROW, ROW | {"lag": "canary"})
    documents = [form for row in rows for form in forms(row)]
    documents.append((INFER, _wanting(forms(RIGHT_ROW)[0][1])))
    samples = [Sample(action, (JSON,), json.dumps(document).encode()) for action, document in documents]
    for body, length in (*map(binary, rows), _binary(_TYPED)):
        samples.append(Sample(INFER, ((LENGTH, b"%d" % length),), body))
    for row in rows:
        lines = "".join(",".join(map(str, line)) + "\n" for line in (row, row.values()))
        samples.append(Sample(INVOCATIONS, (CSV,), lines.encode()))
    samples += [Sample(LABELS, (JSON,), json.dumps({"labels": labels}).encode()) for labels in _LABELS]
    samples.append(Sample(LABELS, (CSV,), b"request_id,row,label\nid-1,0,yes\n"))
    return samples + [Sample(GRPC, (), _message(row, is_raw)) for row in rows for is_raw in (False, True)]


def _wanting(document: dict[str, Any]) -> dict[str, Any]:
    """The document of a caller who says all that may be said."""
    own = {"name": "decision", "parameters": {"binary_data": True}}
    asked = {"id": "7", "parameters": {"binary_data_output": True}, "outputs": [{"name": "prediction"}, own]}
    return document | asked


#: Of the same columns, as a client of numpy sends them.
_TYPED = {
    "site": ("BYTES", text("a")),
    "time": ("INT64", struct.pack("<q", 1_477_958_400_000_000)),
    "lag": ("FP32", struct.pack("<f", 1.0)),
    "hour": ("UINT8", b"\x07"),
    "holiday": ("BOOL", b"\x01"),
}
_LABELS: list[Any] = [
    [{"request_id": "id-1", "row": 0, "label": True}, {"request_id": "id-2", "row": 1, "label": "no"}],
    {"request_id": ["id-1", "id-2"], "label": [1, 0]},
    [{"request_id": "id-1", "row": 0, "label": "canary"}],
    [{"site": "a", "time": "2016-11-01T00:00:00Z", "hour": 7, "holiday": True, "label": 1.0}],
]


def _message(row: dict[str, Any], is_raw: bool) -> bytes:
    """The row in a message of gRPC, its values raw or each in the field of its type."""
    request = message("ModelInferRequest")(model_name="m", model_version="1", id="7")
    request.parameters["binary_data_output"].bool_param = True
    request.outputs.add(name="prediction")
    for name, value in row.items():
        datatype, field, typed = "BYTES", "bytes_contents", str(value).encode()
        if not is_raw and not isinstance(value, str):
            datatype, field = _FIELDS[type(value)]
            typed = value
        added = request.inputs.add(name=name, datatype=datatype, shape=[1])
        if is_raw:
            request.raw_input_contents.append(text(str(value)))
        else:
            getattr(added.contents, field).append(typed)
    return request.SerializeToString()  # type: ignore[no-any-return]


_FIELDS = {
    float: ("FP64", "fp64_contents"),
    int: ("INT8", "int_contents"),
    bool: ("BOOL", "bool_contents"),
}


# ---------------------------------------------------------------- what is made of them

#: Bytes of a body; a larger one takes longer and shows no more.
MOST_BYTES = 16_384
#: What stands for something in JSON, CSV, UTF-8 or binary data, and is seldom made by chance.
WORDS = (
    *(b'"', b"{", b"}", b"[", b"]", b":", b",", b"\n", b"\r", b"\\", b"'", b"\0", b"\xff", b"\xef\xbb\xbf"),
    *(
        b"NaN",
        b"Infinity",
        b"-",
        b"e999",
        b"9" * 400,
        b"null",
        b"true",
        b"\\ud800",
        b"\\u0000",
        b"\xed\xa0\x80",
    ),
    *(struct.pack("<I", number) for number in (0, 1, 2**31, 2**32 - 1)),
    *(struct.pack("<d", number) for number in (float("nan"), float("inf"), 1e300)),
)
#: Deeper than anything that is read.
_DEEP = json.loads("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2))
VALUES: tuple[Any, ...] = (
    _DEEP,
    *(None, True, False, 0, -1, 1, 7.5, 2**31, 2**53 + 1, -(2**63), 2**63, 2**64 - 1, 10**30, 10**400),
    *(1e308, -0.0, 5e-324, float("nan"), float("inf"), [], {}, [[]], [None], [1, 2], {"a": 1}, [[1], [2]]),
    *("", " ", "a", "NaN", "null", "true", "1", "1e3", "-1", "\0", "\ud800", "é", "𝟙", "x" * 10_001),
    *("2016-11-01", "2016-11-01T00:00:00+25:00", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:60-23:59"),
    *("BYTES", "FP16", "FP32", "FP64", "INT8", "INT64", "UINT64", "BOOL", "prediction", "decision"),
)
#: Names of fields, beside those that the requests have already.
KEYS = (
    *("inputs", "outputs", "id", "parameters", "binary_data_size", "binary_data", "binary_data_output"),
    *("name", "datatype", "shape", "data", "params", "explain", "columns", "label", "labels", "request_id"),
    *("dataframe_split", "dataframe_records", "instances", "raw_input_contents", "contents", *NAMES),
)
HEADERS: dict[bytes, tuple[bytes, ...]] = {
    b"content-type": (
        *(b"application/json", b"text/csv", b"application/octet-stream", b"text/csv;charset=utf-16", b"a/b"),
    ),
    LENGTH: (b"0", b"1", b"-1", b"1e3", b"\xb2", b"99999999999999999999"),
    b"x-timeout-ms": (b"1", b"600000", b"600001", b"0", b"-1", b"\xb2"),
    b"x-request-id": (b"", b"id-1", b"x" * 200, b"\xa0", b"\xad"),
    b"content-encoding": (b"gzip", b"identity", b"br, gzip"),
    b"x-routing-key": (b"a",),
    b"x-model-version": (b"1", b"2", b"../1"),
    b"accept": (b"*/*", b"text/html"),
}
#: How much is taken out, and how much comes in: mostly little.
_SIZES = (0, 0, 1, 1, 2, 4, 8, 32)


def mutated(sample: Sample, other: Sample, random: Random) -> Sample:
    """The request changed in one to four places, at times by what another one has there."""
    changed = sample
    for _ in range(random.choice((1, 1, 2, 4))):
        changed = random.choice(_CHANGES)(changed, other, random)
    return changed if len(changed.body) <= MOST_BYTES else sample


def changed_bytes(data: bytes, other: bytes, random: Random, words: Sequence[bytes] = WORDS) -> bytes:
    """The bytes with a few at one place replaced: by none, by others, by a word, or by what is elsewhere."""
    start = random.randrange(len(data) + 1)
    end = start + random.choice(_SIZES)
    source, size = random.choice((data, other)), random.choice(_SIZES)
    at = random.randrange(len(source) + 1)
    pieces = (b"", random.randbytes(1), random.randbytes(size), random.choice(words), source[at : at + size])
    piece = random.choice(pieces)
    return data[:start] + piece + data[end:]


def _bytes(sample: Sample, other: Sample, random: Random) -> Sample:
    document, tail = _split(sample)
    if tail and random.random() < 0.5:
        return _joined(sample, document, changed_bytes(tail, other.body, random))
    return _joined(sample, changed_bytes(document, other.body, random), tail)


def _tree(sample: Sample, other: Sample, random: Random) -> Sample:
    """Changed as a document, so that it stays one; bytes where it is none."""
    document, tail = _split(sample)
    try:
        tree = _changed(_read(sample.action, document), other, random)
        return _joined(sample, _written(sample.action, tree), tail)
    except _NONE:
        return _bytes(sample, other, random)


#: What is raised for bytes that are no document, and for a document that is no message: of the latter, all.
_NONE = (
    *(ValueError, TypeError, AttributeError, ArithmeticError, LookupError, RuntimeError, SystemError),
    *(DecodeError, json_format.Error),
)


def _header(sample: Sample, other: Sample, random: Random) -> Sample:
    name = random.choice(list(HEADERS))
    left = tuple(header for header in sample.headers if header[0] != name)
    if random.random() < 0.2:
        return sample._replace(headers=left)
    value = random.choice(HEADERS[name])
    if random.random() < 0.5:
        before = dict(sample.headers).get(name, value)
        # What an HTTP server lets through.
        value = bytes(b for b in changed_bytes(before, value, random) if b >= 32 and b != 127).strip()
    return sample._replace(headers=(*left, (name, value)))


#: Documents are changed most, since a few changes make of bytes nothing that can be read.
_CHANGES = (_tree, _tree, _tree, _tree, _tree, _bytes, _bytes, _bytes, _header)


def _split(sample: Sample) -> tuple[bytes, bytes]:
    """The document of a body, and the binary data behind it."""
    length = dict(sample.headers).get(LENGTH, b"")
    at = int(length) if length.isdigit() and len(length) < 6 else len(sample.body)
    return sample.body[:at], sample.body[at:]


def _joined(sample: Sample, document: bytes, tail: bytes) -> Sample:
    """With another body; where the sample says how long its document is, it says so of this one."""
    length = b"%d" % len(document)
    headers = tuple((name, length if name == LENGTH else value) for name, value in sample.headers)
    return sample._replace(headers=headers, body=document + tail)


def _read(action: str, document: bytes) -> Any:
    if action == GRPC:
        request = message("ModelInferRequest").FromString(document)
        return json_format.MessageToDict(request, preserving_proto_field_name=True)
    return json.loads(document)


def _written(action: str, tree: Any) -> bytes:
    if action == GRPC:
        request = message("ModelInferRequest")()
        json_format.ParseDict(tree, request, ignore_unknown_fields=True)
        return request.SerializeToString()  # type: ignore[no-any-return]
    return json.dumps(tree).encode()


def _changed(tree: Any, other: Sample, random: Random) -> Any:
    """The document with one node replaced, doubled, put into a list, left out, or beside a new one."""
    places = list(_places(tree))
    if not places:
        return random.choice(VALUES)
    parent, key = random.choice(places)
    match random.randrange(7):
        case 0 | 1:
            parent[key] = random.choice(VALUES)
        case 2:
            parent[key] = random.choice(_nodes(other) or VALUES)
        case 3:
            parent[key] = [parent[key]]
        case 4:
            del parent[key]
        case 5 if isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        case _ if isinstance(parent, dict):
            parent[random.choice(KEYS)] = parent.pop(key) if random.random() < 0.3 else random.choice(VALUES)
    return tree


def _nodes(sample: Sample) -> list[Any]:
    """All nodes of a document but the root; none where it is no document."""
    try:
        tree = _read(sample.action, _split(sample)[0])
    except _NONE:
        return []
    return [parent[key] for parent, key in _places(tree)]


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Each node but the root, by what holds it and where."""
    left = [tree]
    while left:
        parent = left.pop()
        if isinstance(parent, dict | list):
            for key in parent if isinstance(parent, dict) else range(len(parent)):
                yield parent, key
                left.append(parent[key])


# ---------------------------------------------------------------- what an error may quote

#: Fields whose values an error may quote: they are no values of a row.
_QUOTED = ("name", "datatype", "id", "binary_data_size", "columns")


def quotable(sample: Sample) -> bytes:
    """All of a request that is no value of a row or a label: headers, names of columns, and the like."""
    headers = b" ".join(value for _, value in sample.headers)
    document, _ = _split(sample)
    try:
        names = " ".join(_names(_read(sample.action, document))).encode("utf-8", "replace")
    except _NONE:
        # Of a CSV the names; of what is none, nothing else is known.
        names = document.partition(b"\n")[0] if b"{" not in document[:8] else b""
    return headers + b" " + names


def _names(tree: Any, field: str = "") -> Iterator[str]:
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield name
            yield from _names(value, name)
    elif isinstance(tree, list):
        for value in tree:
            yield from _names(value, field)
    elif field in _QUOTED:
        yield str(tree)
