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
#: The one output of a model.
OUTPUT = "prediction"
OUTPUT_TYPE = "FP64"

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

    `binary` is how the output is wanted; `id` is the caller's, if one was given.
    """

    frame: pl.DataFrame
    id: str | None = None
    binary: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)


def decode_infer(
    reader: Reader, body: bytes, content_type: str | None, header_length: str | None = None
) -> Request:
    """The request of a v2 `infer` call; `header_length` is the header `Inference-Header-Content-Length`."""
    _media_type(content_type, (*JSON_TYPES, BINARY_TYPE))
    split = len(body) if header_length is None else _header_length(header_length, len(body))
    document = as_object(parse(body[:split]), "the body")
    parameters = as_object(document.get("parameters") or {}, "'parameters'")
    id, binary = _id(document), _wants_binary(document, parameters)
    columns = tensors.columns_of(document, memoryview(body)[split:])
    return Request(reader.frame(_limited(columns)), id, binary, parameters)


def decode_invocations(reader: Reader, body: bytes, content_type: str | None) -> Request:
    """The request of an MLflow call: `dataframe_split`, `dataframe_records`, `instances`, `inputs` or CSV."""
    if _media_type(content_type, (*JSON_TYPES, "text/csv")) == "text/csv":
        return Request(reader.frame(_limited(tables.from_csv(body))))
    document = as_object(parse(body), "the body")
    columns = tables.from_document(document, reader.schema.names)
    parameters = as_object(document.get("params") or {}, "'params'")
    return Request(reader.frame(_limited(columns)), None, False, parameters)


def encode_infer(
    request: Request, values: npt.NDArray[np.float64], *, model: str, version: str, id: str
) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of a v2 reply; NaN is null in JSON."""
    output: dict[str, Any] = {"name": OUTPUT, "datatype": OUTPUT_TYPE, "shape": [len(values)]}
    document = {"model_name": model, "model_version": version, "id": request.id or id, "outputs": [output]}
    if not request.binary:
        output["data"] = values
        return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), {"content-type": JSON_TYPES[0]}
    data = values.astype("<f8").tobytes()
    output["parameters"] = {"binary_data_size": len(data)}
    head = orjson.dumps(document)
    headers = {"content-type": BINARY_TYPE, "inference-header-content-length": str(len(head))}
    return head + data, headers


def encode_predictions(
    values: npt.NDArray[np.float64], *, model: str, version: str, id: str
) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of a reply in MLflow's form."""
    document = {"predictions": values, "model_name": model, "model_version": version, "id": id}
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


def _wants_binary(document: Mapping[str, Any], parameters: Mapping[str, Any]) -> bool:
    wanted = parameters.get("binary_data_output") is True
    for output in as_list(document.get("outputs") or [], "'outputs'"):
        name = as_object(output, "an output").get("name")
        if name != OUTPUT:
            raise RequestError(f"no output {show(name)}; the model has one, {OUTPUT!r}")
        own = as_object(output.get("parameters") or {}, f"the parameters of {name!r}").get("binary_data")
        wanted = own if isinstance(own, bool) else wanted
    return wanted
