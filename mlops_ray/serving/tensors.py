"""Tensors of the Open Inference Protocol v2 → columns: values in JSON, and the binary tensor extension."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlops_ray.errors import InvalidRowError, RequestError, did_you_mean
from mlops_ray.serving.documents import as_list, as_object, limit_rows, show

#: Characters of a name that an error shows, or looks for the nearest known one for.
SHORT = 40

_WIRE = {
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    "BOOL": np.dtype("u1"),
}
#: What values in JSON may be said to be; what they are is seen by themselves.
DATATYPES = frozenset({*_WIRE, "BYTES"})


def columns_of(document: Mapping[str, Any], binary: memoryview) -> dict[str, Sequence[Any]]:
    """The values of each input by its name; `binary` is what follows the JSON in the body."""
    columns: dict[str, Sequence[Any]] = {}
    for tensor in as_list(document.get("inputs"), "'inputs'"):
        name = as_object(tensor, "an input").get("name")
        if type(name) is not str or name in columns:
            raise RequestError(f"each input needs a name of its own, not {show(name)}")
        columns[name], binary = _tensor(name, tensor, binary)
    if len(binary):
        raise RequestError(f"{len(binary)} bytes follow the last binary input")
    return columns


def _tensor(name: str, tensor: dict[str, Any], binary: memoryview) -> tuple[Sequence[Any], memoryview]:
    """The values of one input, and the binary data that is left for the next."""
    rows, datatype = _rows(name, tensor.get("shape")), tensor.get("datatype")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        hint = did_you_mean(str(datatype)[:SHORT], DATATYPES)
        raise RequestError(f"input {show(name)}: no datatype {show(datatype)}{hint}")
    parameters = as_object(tensor.get("parameters") or {}, f"the parameters of {show(name)}")
    size = parameters.get("binary_data_size")
    if size is None:
        return _json_data(name, tensor.get("data"), rows), binary
    if type(size) is not int or not 0 <= size <= len(binary):
        raise RequestError(f"input {show(name)}: binary_data_size {show(size)} is not within the binary data")
    data = binary[:size]
    values = _bytes_data(name, data, rows) if datatype == "BYTES" else _raw_data(name, data, datatype, rows)
    return values, binary[size:]


def _rows(name: str, shape: Any) -> int:
    match shape:
        case [int(rows)] | [int(rows), 1] if type(rows) is int and rows >= 0 and type(shape[-1]) is int:
            limit_rows(rows)
            return rows
    raise RequestError(f"input {show(name)}: the shape must be [n] or [n, 1], n being the number of rows")


def _json_data(name: str, data: Any, rows: int) -> list[Any]:
    values = as_list(data, f"the data of input {show(name)}")
    if len(values) == rows and all(isinstance(value, list) and len(value) == 1 for value in values):
        values = [value[0] for value in values]
    if len(values) != rows:
        raise RequestError(f"input {show(name)}: {len(values)} values where the shape says {rows}")
    return values


def _raw_data(name: str, data: memoryview, datatype: str, rows: int) -> list[Any]:
    dtype = _WIRE[datatype]
    if len(data) != rows * dtype.itemsize:
        raise RequestError(f"input {show(name)}: {len(data)} bytes are not {rows} values of {datatype}")
    values = np.frombuffer(data, dtype)
    return (values != 0).tolist() if datatype == "BOOL" else values.tolist()  # type: ignore[no-any-return]


def _bytes_data(name: str, data: memoryview, rows: int) -> list[str]:
    """Each value is its length in four bytes, little-endian, and its bytes, which are UTF-8."""
    values: list[str] = []
    at = 0
    while at < len(data) and len(values) < rows:
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if end > len(data):
            break
        try:
            values.append(str(data[at + 4 : end], "utf-8"))
        except UnicodeDecodeError:
            raise InvalidRowError("the bytes are not UTF-8", row=len(values), column=name[:SHORT]) from None
        at = end
    if at != len(data) or len(values) != rows:
        raise RequestError(f"input {show(name)}: the binary data is not {rows} values of BYTES")
    return values
