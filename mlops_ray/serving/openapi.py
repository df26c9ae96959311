"""The HTTP interface as an OpenAPI page, made from what is released: each model's columns are in it."""

from collections.abc import Iterable, Mapping
from typing import Any

import mlops_ray
from mlops_ray.schema import ColumnType, Schema
from mlops_ray.serving.protocol import DATATYPES, OUTPUT_TYPES

_JSON_TYPES: dict[ColumnType, dict[str, Any]] = {
    "float": {"type": ["number", "null"]},
    "int": {"type": ["integer", "null"]},
    "bool": {"type": ["boolean", "null"]},
    "string": {"type": ["string", "null"]},
    "category": {"type": ["string", "null"]},
    "datetime": {"type": ["string", "null"], "format": "date-time"},
}
_ERRORS = {
    "400": "The body is broken",
    "401": "No key, or one that is not known",
    "403": "The key's role does not allow this",
    "404": "No such model, version or path",
    "405": "Not for this method",
    "413": "Too large",
    "415": "A content type that is not read here",
    "422": "A value is wrong; the message names row and column",
}


def openapi(releases: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """An OpenAPI 3.1 document of the gateway's paths and those of each released model."""
    paths: dict[str, Any] = {
        "/v2": {"get": _operation("The server", roles="any")},
        "/v2/health/live": {"get": _open("Whether the service lives")},
        "/v2/health/ready": {"get": _open("Whether the service is ready")},
        "/v2/models": {"get": _operation("The models", roles="any")},
        "/metrics": {"get": _operation("Metrics for Prometheus", roles="read", reply="text/plain")},
    }
    for release in releases:
        paths |= _model_paths(release["model"], Schema.from_json(release["champion"]["request"]))
    return {
        "openapi": "3.1.0",
        "info": {"title": "mlops_ray", "version": mlops_ray.__version__},
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": _object(error={"type": "string"}, required=["error"])},
        },
    }


def _model_paths(name: str, request: Schema) -> dict[str, Any]:
    base = f"/v2/models/{name}"
    infer, records = _infer_body(request), _records_body(request)
    return {
        base: {"get": _operation("The columns of the model", roles="predict, read")},
        f"{base}/ready": {"get": _open("Whether the model is ready")},
        f"{base}/infer": {
            "post": _operation("Predict (Open Inference Protocol v2)", roles="predict", body=infer)
        },
        f"{base}/invocations": {"post": _operation("Predict (MLflow's form)", roles="predict", body=records)},
    }


def _infer_body(request: Schema) -> dict[str, Any]:
    tensor = _object(
        name={"enum": list(request.names)},
        datatype={"enum": sorted({DATATYPES[column.type] for column in request.columns})},
        shape={"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1, "maxItems": 2},
        data={"type": "array"},
        required=["name", "datatype", "shape", "data"],
    )
    outputs = {"type": "array", "items": _object(name={"enum": list(OUTPUT_TYPES)}, required=["name"])}
    inputs = {"type": "array", "items": tensor, "minItems": len(request.columns)}
    return _object(id={"type": "string"}, inputs=inputs, outputs=outputs, required=["inputs"]) | {
        "description": f"One input per column, rows first; outputs {OUTPUT_TYPES}; a number is not decided"
    }


def _records_body(request: Schema) -> dict[str, Any]:
    columns = {column.name: _JSON_TYPES[column.type] for column in request.columns}
    record = {"type": "object", "properties": columns, "required": list(columns)}
    rows = {"type": "array", "items": record, "minItems": 1}
    return _object(dataframe_records=rows, required=["dataframe_records"])


def _operation(
    summary: str, *, roles: str, body: dict[str, Any] | None = None, reply: str = "application/json"
) -> dict[str, Any]:
    content = (
        {"requestBody": {"required": True, "content": {"application/json": {"schema": body}}}} if body else {}
    )
    return {
        "summary": summary,
        "description": f"Needs a key of role: {roles}",
        "security": [{"key": []}],
        **content,
        "responses": {"200": {"description": "Answered", "content": {reply: {}}}, **_errors()},
    }


def _open(summary: str) -> dict[str, Any]:
    return {
        "summary": summary,
        "security": [],
        "responses": {"200": {"description": "Yes"}, "503": {"description": "No"}},
    }


def _errors() -> dict[str, Any]:
    schema = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": text, "content": schema} for status, text in _ERRORS.items()}


def _object(*, required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required}
