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

from mlops_ray.data.rows import Rows
from mlops_ray.errors import InvalidRowError, RequestError, UnsupportedMediaTypeError
from mlops_ray.registry.explain import Contributions
from mlops_ray.schema import ColumnType
from mlops_ray.serving import tables, tensors
from mlops_ray.serving.asgi import JSON
from mlops_ray.serving.columns import Reader
from mlops_ray.serving.documents import as_list, as_object, limit_rows, parse, show

#: Ten thousand rows of a hundred numbers in JSON are 20 MB; more than that is batch scoring.
MAX_BODY_BYTES = 16 * 1024 * 1024
#: What a model answers: a number, which in a classification is the probability of a yes; and there, whether
#: it counts as a yes, and what the project calls that. Who asks for it is told what each feature contributed.
OUTPUT, DECISION, LABEL, CONTRIBUTIONS = "prediction", "decision", "label", "contributions"
OUTPUT_TYPES = {OUTPUT: "FP64", DECISION: "BOOL", LABEL: "BYTES", CONTRIBUTIONS: "FP64"}
Outputs = Mapping[str, npt.NDArray[Any] | list[str]]


def outputs(threshold: float | None, labels: tuple[str, str] | None) -> tuple[str, ...]:
    """What a model answers, by name.

    >>> outputs(None, None), outputs(0.5, ("stays", "goes"))
    (('prediction',), ('prediction', 'decision', 'label'))
    """
    return (OUTPUT,) if threshold is None else (OUTPUT, DECISION, *(() if labels is None else (LABEL,)))


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
    """A decoded request: checked rows, and what the caller said besides.

    `size` are the bytes of its body, `outputs` those that are wanted, and whether each as binary data; `id`
    is the caller's, if one was given.
    """

    rows: Rows
    size: int
    id: str | None = None
    outputs: Mapping[str, bool] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def binary(self) -> bool:
        """Whether an output that nobody named is wanted as binary data."""
        return self.parameters.get("binary_data_output") is True


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
    rows = reader.one_row(document.get("inputs")) if split == len(body) else None
    if rows is None:
        columns = tensors.columns_of(document, memoryview(body)[split:])
        rows = reader.read(_limited(columns))
    return Request(rows, len(body), id, outputs, parameters)


def decode_invocations(reader: Reader, body: bytes, content_type: str | None) -> Request:
    """The request of an MLflow call: `dataframe_split`, `dataframe_records`, `instances`, `inputs` or CSV."""
    if _media_type(content_type, (*JSON_TYPES, "text/csv")) == "text/csv":
        return Request(reader.read(_limited(tables.from_csv(body))), len(body))
    document = as_object(parse(body), "the body")
    columns = tables.from_document(document, reader.schema.names)
    parameters = as_object(document.get("params") or {}, "'params'")
    return Request(reader.read(_limited(columns)), len(body), None, {}, parameters)


def encode_infer(
    request: Request,
    answers: Outputs,
    *,
    model: str,
    version: str,
    id: str,
    explained: Contributions | None = None,
) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of a v2 reply with the outputs that are wanted; NaN is null in JSON.

    Contributions are an output of rows × features, whose names, base and scale stand in its parameters.
    """
    outputs, data = [], b""
    for name, binary in request.outputs.items():
        output, own = _tensor(name, answers[name], binary)
        outputs.append(output)
        data += own
    if explained is not None:
        output, own = _tensor(CONTRIBUTIONS, explained.values, request.binary)
        outputs.append(output | {"parameters": output.get("parameters", {}) | explained.about})
        data += own
    document = {"model_name": model, "model_version": version, "id": request.id or id, "outputs": outputs}
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not data:
        return head, JSON
    headers = {"content-type": BINARY_TYPE, "inference-header-content-length": str(len(head))}
    return head + data, headers


def _tensor(name: str, values: npt.NDArray[Any] | list[str], binary: bool) -> tuple[dict[str, Any], bytes]:
    """An output, and the bytes that follow the JSON for it."""
    shape = [len(values)] if isinstance(values, list) else list(values.shape)
    output: dict[str, Any] = {"name": name, "datatype": OUTPUT_TYPES[name], "shape": shape}
    if not binary:
        flat = (
            values if isinstance(values, list) or values.ndim == 1 else np.ascontiguousarray(values).ravel()
        )
        return output | {"data": flat}, b""
    if isinstance(values, list):
        texts = [text.encode() for text in values]
        data = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    else:
        data = values.astype("u1" if values.dtype == np.bool_ else "<f8").tobytes()
    return output | {"parameters": {"binary_data_size": len(data)}}, data


def encode_predictions(
    request: Request,
    answers: Outputs,
    *,
    model: str,
    version: str,
    id: str,
    explained: Contributions | None = None,
) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of a reply in MLflow's form."""
    document: dict[str, Any] = {f"{name}s": values for name, values in answers.items()}
    if explained is not None:
        document[CONTRIBUTIONS] = explained.about | {"values": np.ascontiguousarray(explained.values)}
    document |= {"model_name": model, "model_version": version, "id": request.id or id}
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), JSON


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
