"""Bytes ⇄ columns: the Open Inference Protocol v2 and MLflow's forms.

Pure functions of the body and its headers. Whatever is wrong with a body is a `RequestError` with a sentence:
400 for a broken protocol, 413, 415, 422 with row and column for a value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl

from mlops_ray.errors import InvalidRowError, RequestError, UnsupportedMediaTypeError
from mlops_ray.schema import ColumnType
from mlops_ray.serving import tables, tensors
from mlops_ray.serving.columns import Reader
from mlops_ray.serving.documents import as_list, as_object, limit_rows, parse, show

#: Ten thousand rows of a hundred numbers in JSON are 20 MB; more than that is batch scoring.
MAX_BODY_BYTES = 16 * 1024 * 1024
#: What a model answers: a number, which in a classification is the probability of a yes; and there, whether
#: it counts as a yes.
OUTPUT, DECISION = "prediction", "decision"
OUTPUT_TYPES = {OUTPUT: "FP64", DECISION: "BOOL"}
Outputs = Mapping[str, npt.NDArray[Any]]

#: What a column is called in the protocol.
DATATYPES: dict[ColumnType, str] = {
    "float": "FP64",
    "int": "INT64",
    "bool": "BOOL",
    "string": "BYTES",
    "category": "BYTES",
    "datetime": "BYTES",
}
JSON_TYPES = ("application/json", "application/vnd.mlflow.v3+json")
BINARY_TYPE = "application/octet-stream"


@dataclass(frozen=True)
class Request:
    """A decoded request: typed columns, and what the caller said besides.

    `outputs` are those that are wanted, and whether each as binary data; `id` is the caller's, if one was
    given.
    """

    frame: pl.DataFrame
    id: str | None = None
    outputs: Mapping[str, bool] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)


def decode_infer(
    reader: Reader,
    body: bytes,
    content_type: str | None,
    header_length: str | None = None,
    *,
    known: Sequence[str] = (OUTPUT,),
) -> Request:
    """The request of a v2 `infer` call; `header_length` is the header `Inference-Header-Content-Length`.

    `known` are the model's outputs.
    """
    _media_type(content_type, (*JSON_TYPES, BINARY_TYPE))
    split = len(body) if header_length is None else _header_length(header_length, len(body))
    document = as_object(parse(body[:split]), "the body")
    parameters = as_object(document.get("parameters") or {}, "'parameters'")
    id, outputs = _id(document), _outputs(document, parameters, known)
    columns = tensors.columns_of(document, memoryview(body)[split:])
    return Request(reader.frame(_limited(columns)), id, outputs, parameters)


def decode_invocations(reader: Reader, body: bytes, content_type: str | None) -> Request:
    """The request of an MLflow call: `dataframe_split`, `dataframe_records`, `instances`, `inputs` or CSV."""
    if _media_type(content_type, (*JSON_TYPES, "text/csv")) == "text/csv":
        return Request(reader.frame(_limited(tables.from_csv(body))))
    document = as_object(parse(body), "the body")
    columns = tables.from_document(document, reader.schema.names)
    parameters = as_object(document.get("params") or {}, "'params'")
    return Request(reader.frame(_limited(columns)), None, {}, parameters)


def encode_infer(
    request: Request, answers: Outputs, *, model: str, version: str, id: str
) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of a v2 reply with the outputs that are wanted; NaN is null in JSON."""
    outputs, data = [], b""
    for name, binary in request.outputs.items():
        output, own = _tensor(name, answers[name], binary)
        outputs.append(output)
        data += own
    document = {"model_name": model, "model_version": version, "id": request.id or id, "outputs": outputs}
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not any(request.outputs.values()):
        return head, {"content-type": JSON_TYPES[0]}
    headers = {"content-type": BINARY_TYPE, "inference-header-content-length": str(len(head))}
    return head + data, headers


def _tensor(name: str, values: npt.NDArray[Any], binary: bool) -> tuple[dict[str, Any], bytes]:
    """An output, and the bytes that follow the JSON for it."""
    output: dict[str, Any] = {"name": name, "datatype": OUTPUT_TYPES[name], "shape": [len(values)]}
    if not binary:
        return output | {"data": values}, b""
    data = values.astype("u1" if values.dtype == np.bool_ else "<f8").tobytes()
    return output | {"parameters": {"binary_data_size": len(data)}}, data


def encode_predictions(
    answers: Outputs, *, model: str, version: str, id: str
) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of a reply in MLflow's form."""
    outputs = {f"{name}s": values for name, values in answers.items()}
    document = {**outputs, "model_name": model, "model_version": version, "id": id}
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), {"content-type": JSON_TYPES[0]}


# ---------------------------------------------------------------- parts common to all forms


def _media_type(content_type: str | None, known: Sequence[str]) -> str:
    """The media type without its parameters; none at all is taken for the first known one."""
    given = (content_type or known[0]).partition(";")[0].strip().lower()
    if given not in known:
        raise UnsupportedMediaTypeError(
            f"the content type {show(given)} is not read here; send {', '.join(known)}"
        )
    return given


def _limited(columns: dict[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """The columns, which are all of one length within the limit."""
    lengths = {len(values) for values in columns.values()} or {0}
    if len(lengths) > 1:
        raise RequestError(f"the columns are not of one length: from {min(lengths)} to {max(lengths)} rows")
    rows = lengths.pop()
    limit_rows(rows)
    if rows == 0:
        raise InvalidRowError("the request has no rows")
    return columns


# ---------------------------------------------------------------- Open Inference Protocol v2


def _header_length(text: str, body_bytes: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) <= body_bytes):
        raise RequestError(f"Inference-Header-Content-Length {show(text)} is not a length within the body")
    return int(text)


def _id(document: Mapping[str, Any]) -> str | None:
    given = document.get("id")
    if given is not None and not isinstance(given, str):
        raise RequestError(f"'id' must be text, not {show(given)}")
    return given or None


def _outputs(
    document: Mapping[str, Any], parameters: Mapping[str, Any], known: Sequence[str]
) -> dict[str, bool]:
    """The outputs that are wanted, all where none is named, and whether each as binary data."""
    binary = parameters.get("binary_data_output") is True
    wanted: dict[str, bool] = {}
    for output in as_list(document.get("outputs") or [], "'outputs'"):
        name = as_object(output, "an output").get("name")
        if not isinstance(name, str) or name not in known:
            raise RequestError(f"no output {show(name)}; the model has {' and '.join(map(repr, known))}")
        own = as_object(output.get("parameters") or {}, f"the parameters of {name!r}").get("binary_data")
        wanted[name] = own if isinstance(own, bool) else binary
    return wanted or dict.fromkeys(known, binary)
