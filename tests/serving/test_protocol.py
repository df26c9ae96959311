"""Bytes ⇄ columns, in every dialect, and nothing but sentences with a status 4xx for what is broken."""

import struct
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_ray.errors import (
    InvalidRowError,
    MlopsError,
    RequestError,
    TooLargeError,
    UnsupportedMediaTypeError,
)
from mlops_ray.serving import protocol
from mlops_ray.serving.columns import Reader
from mlops_ray.serving.documents import MAX_DEPTH, MAX_ROWS
from mlops_ray.serving.protocol import (
    decode_infer,
    decode_invocations,
    encode_infer,
    encode_predictions,
)
from tests.serving.standin import REQUEST, ROW

READER = Reader(REQUEST)
JSON = "application/json"
INSTANT = datetime(2016, 11, 2, 10, tzinfo=UTC)
EXPECTED = ("a", INSTANT, 1.5, 1, True)
MICROS = int(INSTANT.timestamp()) * 1_000_000


def tensor(name: str, datatype: str, data: list[Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [len(data)], "data": data} | more


def v2(**changed: dict[str, Any]) -> dict[str, Any]:
    tensors = {
        "site": tensor("site", "BYTES", ["a"]),
        "time": tensor("time", "BYTES", ["2016-11-02T10:00:00Z"]),
        "load": tensor("load", "FP64", [1.5]),
        "n": tensor("n", "INT64", [1]),
        "open": tensor("open", "BOOL", [True]),
    }
    return {"inputs": list((tensors | changed).values())}


def infer(document: Any) -> protocol.Request:
    return decode_infer(READER, orjson.dumps(document), JSON)


def invoke(document: Any) -> protocol.Request:
    return decode_invocations(READER, orjson.dumps(document), JSON)


def binary(parts: dict[str, tuple[str, bytes]], rows: int = 1) -> tuple[bytes, str]:
    inputs = [
        {"name": n, "datatype": t, "shape": [rows, 1], "parameters": {"binary_data_size": len(data)}}
        for n, (t, data) in parts.items()
    ]
    head = orjson.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}})
    return head + b"".join(data for _, data in parts.values()), str(len(head))


def text(*values: str) -> bytes:
    return b"".join(struct.pack("<I", len(v.encode())) + v.encode() for v in values)


BINARY = {
    "site": ("BYTES", text("a")),
    "time": ("INT64", struct.pack("<q", MICROS)),
    "load": ("FP64", struct.pack("<d", 1.5)),
    "n": ("INT32", struct.pack("<i", 1)),
    "open": ("BOOL", b"\1"),
}


def test_v2_json_becomes_typed_columns() -> None:
    request = infer(v2() | {"id": "mine"})
    assert request.rows.frame.rows() == [EXPECTED]
    assert request.rows.frame.columns == list(REQUEST.names)
    assert (request.id, request.outputs) == ("mine", {"prediction": False})


def test_v2_binary_becomes_the_same_columns() -> None:
    body, length = binary(BINARY)
    request = decode_infer(READER, body, "application/octet-stream", length)
    assert request.rows.frame.rows() == [EXPECTED]
    assert request.outputs == {"prediction": True}


@pytest.mark.parametrize(
    ("datatype", "dtype"),
    [("FP32", "<f4"), ("FP64", "<f8"), ("INT8", "<i1"), ("INT16", "<i2"), ("INT32", "<i4"), ("INT64", "<i8")],
)
def test_binary_numbers_of_every_width_are_read(datatype: str, dtype: str) -> None:
    parts = BINARY | {"load": (datatype, np.array([3], dtype).tobytes()), "n": ("UINT8", b"\7")}
    body, length = binary(parts)
    assert decode_infer(READER, body, None, length).rows.frame.select("load", "n").rows() == [(3.0, 7)]


@pytest.mark.parametrize(
    "document",
    [
        {"dataframe_records": [ROW]},
        {"dataframe_split": {"columns": list(ROW), "index": [0], "data": [list(ROW.values())]}},
        {"instances": [ROW]},
        {"instances": [list(ROW.values())]},
        {"inputs": {name: [value] for name, value in ROW.items()}},
        {"inputs": {name: [[value]] for name, value in ROW.items()}},
        {"inputs": ROW},
        {"inputs": [ROW]},
    ],
)
def test_every_form_of_mlflow_becomes_the_same_columns(document: Any) -> None:
    assert invoke(document).rows.frame.rows() == [EXPECTED]


def test_csv_becomes_the_same_columns() -> None:
    body = "\ufeffsite,time,load,n,open\r\na,2016-11-02T10:00:00Z,1.5,1,true\r\n".encode()
    request = decode_invocations(READER, body, "text/csv; charset=utf-8")
    assert request.rows.frame.rows() == [EXPECTED]


@pytest.mark.parametrize(
    "given_as",
    ["2016-11-02T10:00:00Z", "2016-11-02T11:00:00+01:00", "2016-11-02 10:00+00:00", MICROS, float(MICROS)],
)
def test_an_instant_is_text_with_an_offset_or_microseconds(given_as: Any) -> None:
    assert invoke({"instances": [ROW | {"time": given_as}]}).rows.frame["time"].to_list() == [INSTANT]


@pytest.mark.parametrize(
    "given_as",
    [
        *("2016-11-02T10:00:00", "2016-11-02", "soon", True, 1.5, [1], "2016-13-01T00:00:00Z"),
        *(2**63 - 1, -(2**63), 1e300, "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"),
    ],
)
def test_anything_else_is_no_instant(given_as: Any) -> None:
    with pytest.raises(InvalidRowError, match=r"row 1, column 'time': .* is not an instant"):
        invoke({"instances": [ROW, ROW | {"time": given_as}]})


@pytest.mark.parametrize("absent", [None, ""])
def test_null_stays_null_and_is_left_to_the_schema(absent: Any) -> None:
    frame = invoke(
        {"instances": [ROW | {"time": absent, "load": absent, "n": absent, "open": absent}]}
    ).rows.frame
    assert frame.rows() == [("a", None, None, None, None)]


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("load", 2, 2.0),
        ("load", " 2.5 ", 2.5),
        ("n", 7.0, 7),
        ("n", "7", 7),
        ("n", -(2**63), -(2**63)),
        ("open", "false", False),
        ("open", 1, True),
        ("site", 7, "7"),
        ("site", 7.0, "7"),
    ],
)
def test_values_are_read_as_their_column_says(column: str, value: Any, expected: Any) -> None:
    assert invoke({"instances": [ROW | {column: value}]}).rows.frame[column].to_list() == [expected]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("load", value) for value in ("x", True, [1], {"a": 1}, "1e999999")),
        *(("n", value) for value in (1.5, "1.5", 2**63, True, "")[:4]),
        *(("open", value) for value in (2, "maybe", 0.5)),
        *(("site", value) for value in ([], {})),
    ],
)
def test_a_value_of_another_type_is_refused_by_row_and_column(column: str, value: Any) -> None:
    with pytest.raises(InvalidRowError, match=f"row 1, column '{column}'") as raised:
        invoke({"instances": [ROW, ROW | {column: value}]})
    assert (raised.value.row, raised.value.column, raised.value.status) == (1, column, 422)


def test_a_hidden_columns_value_is_in_no_error() -> None:
    reader = Reader(REQUEST, frozenset({"load"}))
    with pytest.raises(InvalidRowError) as raised:
        decode_invocations(reader, orjson.dumps({"instances": [ROW | {"load": "canary"}]}), JSON)
    assert "canary" not in str(raised.value)


def test_a_missing_column_is_named_with_the_one_that_was_meant() -> None:
    row = {"siet" if name == "site" else name: value for name, value in ROW.items()}
    with pytest.raises(InvalidRowError, match=r"column 'site': is missing.*did you mean 'siet'") as raised:
        invoke({"inputs": row})
    assert raised.value.status == 422


def test_columns_that_nobody_asked_for_are_left_out() -> None:
    request = infer(v2(more=tensor("more", "BYTES", ["x"])))
    assert request.rows.frame.columns == list(REQUEST.names)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"inputs": {}}',
        b'{"inputs": [1]}',
        b'{"inputs": [], "parameters": 1}',
        b'{"id": 5, "inputs": []}',
        orjson.dumps({"inputs": [tensor("load", "FP64", [1.0], shape=[2])]}),
        orjson.dumps({"inputs": [tensor("load", "FP64", [1.0], shape=[1, 2])]}),
        orjson.dumps({"inputs": [tensor("load", "FP64", [1.0], shape=[True])]}),
        orjson.dumps({"inputs": [tensor("load", "FP64", [1.0], shape=[-1])]}),
        orjson.dumps({"inputs": [tensor("load", "FLOAT", [1.0])]}),
        orjson.dumps({"inputs": [tensor("load", "FP64", [1.0])] * 2}),
        orjson.dumps(v2(load=tensor("load", "FP64", [1.0, 2.0]))),
        orjson.dumps(v2() | {"outputs": [{"name": "other"}]}),
    ],
)
def test_a_broken_protocol_is_a_400(body: bytes) -> None:
    with pytest.raises(RequestError) as raised:
        decode_infer(READER, body, JSON)
    assert raised.value.status == 400


@pytest.mark.parametrize(
    ("parts", "length"),
    [
        ({"load": ("FP64", b"1234567")}, None),
        ({"load": ("FP64", b"12345678" * 2)}, None),
        ({"site": ("BYTES", b"\5\0\0\0abc")}, None),
        ({"site": ("BYTES", b"")}, None),
        ({"site": ("BYTES", text("a", "b"))}, None),
        ({}, "99999"),
        ({}, "-1"),
        ({}, "1e3"),
        ({}, "٣"),
        ({}, ""),
    ],
)
def test_broken_binary_data_is_a_400(parts: dict[str, Any], length: str | None) -> None:
    body, right = binary(BINARY | parts)
    with pytest.raises(RequestError) as raised:
        decode_infer(READER, body, None, right if length is None else length)
    assert raised.value.status == 400


def test_bytes_after_the_last_input_are_a_400() -> None:
    body, length = binary(BINARY)
    with pytest.raises(RequestError, match="1 bytes follow"):
        decode_infer(READER, body + b"x", None, length)


def test_bytes_that_are_not_utf8_are_a_422() -> None:
    body, length = binary(BINARY | {"site": ("BYTES", b"\1\0\0\0\xff")})
    with pytest.raises(InvalidRowError, match="row 0, column 'site'"):
        decode_infer(READER, body, None, length)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"instances": [], "inputs": []},
        {"dataframe_split": {"columns": ["site"], "data": [["a", "b"]]}},
        {"dataframe_split": {"columns": ["site", "site"], "data": []}},
        {"dataframe_split": {"columns": [1], "data": []}},
        {"dataframe_records": {"site": ["a"]}},
        {"dataframe_records": [1]},
        {"instances": 1},
        {"instances": [[1]]},
        {"inputs": {"site": ["a", "b"], "load": [1.0]}},
    ],
)
def test_a_broken_table_is_a_400(document: Any) -> None:
    with pytest.raises(RequestError) as raised:
        invoke(document)
    assert raised.value.status == 400


@pytest.mark.parametrize("body", [b"", b"a,a\n1,2\n", b"a,b\n1\n", b'a\n"x', b"\xff"])
def test_a_broken_csv_is_a_400(body: bytes) -> None:
    with pytest.raises(RequestError) as raised:
        decode_invocations(READER, body, "text/csv")
    assert raised.value.status == 400


def test_no_rows_is_a_422() -> None:
    with pytest.raises(InvalidRowError, match="no rows"):
        invoke({"dataframe_records": []})


def test_too_many_rows_are_a_413() -> None:
    with pytest.raises(TooLargeError, match=f"more than {MAX_ROWS}"):
        invoke({"inputs": {name: [value] * (MAX_ROWS + 1) for name, value in ROW.items()}})


def test_json_nested_too_deeply_is_a_400() -> None:
    for levels in (MAX_DEPTH + 1, 900, 200_000):
        nested = b"[" * levels + b"]" * levels
        with pytest.raises(RequestError):
            decode_infer(READER, b'{"inputs": [], "parameters": {"a": ' + nested + b"}}", JSON)


def test_many_rows_are_not_taken_for_depth() -> None:
    assert invoke({"dataframe_records": [ROW] * (MAX_DEPTH * 4)}).rows.frame.height == MAX_DEPTH * 4


@pytest.mark.parametrize("decode", [decode_infer, decode_invocations])
@pytest.mark.parametrize(
    "content_type", ["application/x-www-form-urlencoded", "text/plain", "image/png", "x"]
)
def test_another_content_type_is_a_415(decode: Any, content_type: str) -> None:
    with pytest.raises(UnsupportedMediaTypeError):
        decode(READER, b"{}", content_type)


FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.tuples(FINITE, st.booleans()), min_size=1), st.booleans(), st.booleans())
def test_what_is_encoded_is_what_a_client_reads_in_json_and_in_binary(
    said: list[tuple[float, bool]], first: bool, second: bool
) -> None:
    from tritonclient.http import InferResult

    numbers, decisions = zip(*said, strict=True)
    answers = {"prediction": np.array(numbers), "decision": np.array(decisions)}
    request = protocol.Request(infer(v2()).rows, 0, "mine", {"prediction": first, "decision": second})
    body, headers = encode_infer(request, answers, model="m", version="3", id="other")
    length = headers.get("inference-header-content-length")
    result = InferResult.from_response_body(body, header_length=int(length) if length else None)
    response = result.get_response()
    assert (response["model_name"], response["model_version"], response["id"]) == ("m", "3", "mine")
    for name, values in answers.items():
        assert result.as_numpy(name).tolist() == values.tolist()


def test_mlflow_replies_hold_predictions_and_the_version() -> None:
    request = invoke({"inputs": [["a", None, 1, 1, True]]})
    answers = {"prediction": np.array([0.5, np.nan])}
    body, _ = encode_predictions(request, answers, model="m", version="3", id="x")
    assert orjson.loads(body) == {
        "predictions": [0.5, None],
        "model_name": "m",
        "model_version": "3",
        "id": "x",
    }


# ---------------------------------------------------------------- whatever comes in, a 4xx comes out

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=6)
) | st.sampled_from([*ROW.values(), *ROW, "BYTES", "FP64", "INT64", 1, [1], [1, 1]])
keys = st.sampled_from(
    [
        *(*ROW, "inputs", "outputs", "parameters", "id", "name", "shape", "datatype", "data"),
        *("binary_data_size", "dataframe_split", "dataframe_records", "instances", "columns", "params"),
    ]
)
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=6),
    max_leaves=20,
)
content_types = st.sampled_from([JSON, "text/csv", None, "application/octet-stream", "", ";", "x/y"])
lengths = st.one_of(st.none(), st.integers(-2, 400).map(str), st.text(max_size=4))


def only_4xx(decode: Any, *args: Any) -> None:
    try:
        frame = decode(READER, *args).rows.frame
    except MlopsError as refused:
        error = refused
    else:
        assert frame.columns == list(REQUEST.names)
        return
    assert 400 <= error.status < 500
    assert len(str(error)) < 1_000


@settings(max_examples=400, deadline=None)
@given(documents, content_types, lengths, st.binary(max_size=40))
def test_any_json_and_any_bytes_after_it_get_an_answer_or_a_4xx(
    document: Any, content_type: str | None, length: str | None, tail: bytes
) -> None:
    body = orjson.dumps(document) + (tail if length is not None else b"")
    only_4xx(decode_infer, body, content_type, length)
    only_4xx(decode_invocations, body, content_type)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(list(ROW)), scalars | st.lists(scalars, max_size=2)))
def test_any_values_in_a_row_get_an_answer_or_a_4xx(values: dict[str, Any]) -> None:
    only_4xx(decode_invocations, orjson.dumps({"dataframe_records": [ROW | values]}), JSON)
    tensors = {name: tensor(name, "BYTES", [value]) for name, value in (ROW | values).items()}
    only_4xx(decode_infer, orjson.dumps({"inputs": list(tensors.values())}), JSON, None)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), content_types)
def test_any_bytes_get_a_4xx(body: bytes, content_type: str | None) -> None:
    only_4xx(decode_infer, body, content_type, None)
    only_4xx(decode_invocations, body, content_type)


@settings(max_examples=300, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            name: st.tuples(
                st.sampled_from(["BYTES", "FP32", "FP64", "INT8", "INT64", "BOOL"]), st.binary(max_size=20)
            )
            for name in ROW
        }
    ),
    st.integers(0, 3),
)
def test_any_binary_tensors_get_an_answer_or_a_4xx(parts: dict[str, Any], rows: int) -> None:
    body, length = binary(parts, rows)
    only_4xx(decode_infer, body, None, length)


HEAVY = {
    "a shape of too many rows": {"inputs": [{"name": "site", "datatype": "BYTES", "shape": [4_000_000]}]},
    "millions of lists": b'{"inputs": {"site": [' + b"[]," * 1_000_000 + b"[]]}}",
    "too many columns": {"inputs": {f"c{at}": [1] for at in range(2_000)}},
    "lines of a CSV": b"site\n" + b"a\n" * 1_000_000,
}


@pytest.mark.parametrize("what", HEAVY)
def test_a_body_that_is_too_much_is_refused_before_it_is_converted(what: str) -> None:
    body = HEAVY[what]
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    with pytest.raises(TooLargeError):
        if what == "a shape of too many rows":
            decode_infer(READER, data, JSON, None)
        else:
            decode_invocations(READER, data, "text/csv" if "CSV" in what else JSON)


# ---------------------------------------------------------------- the short way of a single row

#: What may stand for a value, and for the rest of an input.
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["a", "1.5", "", "true", "2016-11-02T10:00:00Z", "2016-11-02", "nan"])
)
odd_parts = st.sampled_from(
    [
        {},
        {"shape": [1, 1]},
        {"shape": [True]},
        {"shape": [1.0]},
        {"shape": [2]},
        {"shape": "1"},
        {"datatype": "FP99"},
        {"datatype": ["FP64"]},
        {"data": [[1.5]]},
        {"data": "a"},
        {"data": {"a": 1}},
        {"data": []},
        {"parameters": {}},
        {"parameters": {"binary_data_size": 0}},
        {"more": 1},
        {"name": "load"},
        {"name": 7},
    ]
)


@settings(max_examples=400)
@given(
    st.fixed_dictionaries({name: scalars | st.just(value) for name, value in ROW.items()}),
    st.dictionaries(st.sampled_from(sorted(ROW)), odd_parts, max_size=2),
    st.sampled_from(["", "site"]),
    st.booleans(),
)
def test_the_short_way_of_a_single_row_gives_what_the_long_one_gives(
    row: dict[str, Any], odd: dict[str, dict[str, Any]], missing: str, more: bool
) -> None:
    inputs = [
        tensor(name, "BYTES", [value]) | odd.get(name, {}) for name, value in row.items() if name != missing
    ]
    inputs += [tensor("other", "FP64", [1])] if more else []
    short = READER.one_row(inputs)
    if short is not None:
        long = READER.read(
            protocol._limited(protocol.tensors.columns_of({"inputs": inputs}, memoryview(b"")))
        )
        assert short == long
        assert [type(v) for (v,) in short.values] == [type(v) for (v,) in long.values]


def test_a_plain_single_row_goes_the_short_way() -> None:
    assert READER.one_row(v2()["inputs"]) == infer(v2()).rows
