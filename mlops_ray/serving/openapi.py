"""The HTTP interface as an OpenAPI page, made from what is released: each model's columns are in it.

What the page says of a request is read, and answered unless a row breaks a rule over several columns; much
that is written otherwise is read too. The dashboard, which is for people, is left out.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import mlops_ray
from mlops_ray.schema import Column, ColumnType, Schema
from mlops_ray.serving.documents import MAX_ROWS
from mlops_ray.serving.protocol import (
    BINARY_TYPE,
    CONTRIBUTIONS,
    DATATYPES,
    JSON_TYPES,
    OUTPUT,
    OUTPUT_TYPES,
)

Json = dict[str, Any]

JSON = JSON_TYPES[0]
_JSON_TYPES: dict[ColumnType, Json] = {
    "float": {"type": "number"},
    "int": {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    "bool": {"type": "boolean"},
    "string": {"type": "string"},
    "category": {"type": "string"},
    "datetime": {"type": "string", "format": "date-time"},
}
_ERRORS = {
    400: "The body is broken",
    401: "No key, or one that is not known",
    403: "The key's role does not allow this",
    404: "No such model, version or path",
    405: "Not for this method",
    408: "The body did not come in time",
    413: "Too large",
    415: "A content type, or an encoding, that is not read here",
    422: "A value is wrong; the message names row and column",
    429: "Too many requests; Retry-After says when to come back",
    500: "A defect of the service, never of the request",
    503: "Not there yet, or not now",
    504: "Not answered within X-Timeout-Ms",
}
_OPEN, _READING, _PREDICTING = (404, 405, 500), (401, 403, 404, 405, 429, 500, 503), tuple(_ERRORS)


def openapi(releases: Iterable[Mapping[str, Any]]) -> Json:
    """An OpenAPI 3.1 document of the gateway's paths and those of each released model."""
    paths: Json = {
        "/v2": {"get": _reading("The server", "Server")},
        "/v2/health/live": {"get": _open("Whether the service lives")},
        "/v2/health/ready": {"get": _open("Whether the service is ready")},
        "/v2/models": {"get": _reading("The models and their live versions", "Models")},
        "/openapi.json": {"get": _reading("This page", "Page")},
        "/metrics": {"get": _reading("Metrics for Prometheus", "Text", "read", "text/plain")},
    }
    schemas = dict(_SCHEMAS)
    for release in releases:
        model, champion = release["model"], release["champion"]
        request = Schema.from_json(champion["request"])
        outputs = champion.get("outputs", [OUTPUT])
        schemas[f"{model}.Infer"] = _infer_body(request, outputs)
        schemas[f"{model}.Invocations"] = _table_body(request)
        schemas[f"{model}.Labels"] = _labels_body(champion.get("task", "regression"))
        paths |= _model_paths(model)
    parts = {"schemas": schemas, "headers": _HEADERS, "parameters": _PARAMETERS}
    return {
        "openapi": "3.1.0",
        "info": {"title": "mlops_ray", "version": mlops_ray.__version__},
        "security": [{"key": []}],
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}, **parts},
    }


def _model_paths(model: str) -> Json:
    """The paths of the live version, and the same for a version by its name."""
    sent = {JSON: f"{model}.Infer", BINARY_TYPE: "Binary"}
    replies = {JSON: "Inferred", BINARY_TYPE: "Binary"}
    forms = {JSON: f"{model}.Invocations", "text/csv": "Text"}
    actions: Json = {
        "": {"get": _reading("The columns of the model", "Model")},
        "/ready": {"get": _open("Whether the model is ready")},
        "/infer": {
            "post": _predicting("Predict (Open Inference Protocol v2)", sent, replies, "HeaderLength")
        },
        "/invocations": {"post": _predicting("Predict (MLflow's forms)", forms, {JSON: "Predictions"})},
    }
    live = {f"/v2/models/{model}{action}": item for action, item in actions.items()}
    live[f"/v2/models/{model}/labels"] = {"post": _labelling(f"{model}.Labels")}
    return live | {
        f"/v2/models/{model}/versions/{{version}}{action}": {"parameters": [_VERSION], **item}
        for action, item in actions.items()
    }


# ---------------------------------------------------------------- what is sent


def _infer_body(request: Schema, outputs: list[str]) -> Json:
    inputs = _tuple([_input(column, _value(column, request)) for column in request.columns])
    wanted = _object("parameters", name={"enum": outputs}, parameters=_ref("Parameters"))
    optional: Json = {"id": _TEXT, "parameters": _ref("Parameters"), "outputs": _list(wanted)}
    body = _object(*optional, inputs=inputs, **optional)
    return body | {"description": "One input per column, in any order, each with a value for each row"}


def _input(column: Column, value: Json) -> Json:
    rows = {"type": "integer", "minimum": 1, "maximum": MAX_ROWS}
    return _object(
        name={"const": column.name},
        datatype={"const": DATATYPES[column.type]},
        shape=_tuple([rows], items={"const": 1}, maxItems=2),
        data=_list(value, minItems=1),
    )


def _table_body(request: Schema) -> Json:
    columns = {column.name: _value(column, request) for column in request.columns}
    record = _object(**columns)
    rows = _list(_tuple(list(columns.values()), items=False), minItems=1)
    records = _list(record, minItems=1)
    split = _object("index", columns={"const": list(columns)}, data=rows, index=_list({}))
    lists = _object(**{name: _list(value, minItems=1) for name, value in columns.items()})
    table = {"anyOf": [records, rows, lists, record]}
    forms: Json = {
        "dataframe_split": split,
        "dataframe_records": records,
        "instances": table,
        "inputs": table,
    }
    body = _object(*forms, "params", params=_ref("Parameters"), **forms)
    return body | {"oneOf": [{"required": [form]} for form in forms]}


def _labels_body(task: str) -> Json:
    """Labels by request; columns of the request stand for it where it was asked by entity and time."""
    label: Json = {"enum": [0, 1, True, False]} if task == "classification" else {"type": "number"}
    row = {"type": "integer", "minimum": 0, "maximum": MAX_ROWS}
    label_of = _object(request_id={"type": "string"}, row=row, label=label)
    return _object(labels=_list(label_of, minItems=1))


def _value(column: Column, request: Schema) -> Json:
    """What a column's value may be; of a hidden one, and where a value is only flagged, its type alone."""
    value = dict(_JSON_TYPES[column.type])
    if column.on_fail != "flag" and not column.hidden:
        pattern = None if column.pattern is None else f"^(?:{column.pattern})$"
        limits = {"minimum": column.min, "maximum": column.max, "enum": column.categories, "pattern": pattern}
        value |= {key: limit for key, limit in limits.items() if limit is not None}
    if not column.required:
        return {"anyOf": [value, {"type": "null"}]}
    # Words that stand for a missing value.
    return value | {"not": {"enum": list(request.null_values)}} if value["type"] == "string" else value


# ---------------------------------------------------------------- operations


def _predicting(summary: str, sent: dict[str, str], replies: dict[str, str], *more: str) -> Json:
    names = ["RequestId", "TimeoutMs", "RoutingKey", "ModelVersion", *more]
    return {
        "summary": summary,
        "description": "Needs a key of role: predict",
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in names],
        "requestBody": {"required": True, "content": _content(sent)},
        "responses": {"200": _response("Answered", replies), **_errors(_PREDICTING)},
    }


def _labelling(body: str) -> Json:
    return {
        "summary": "Tell what came true",
        "description": "Needs a key of role: label",
        "parameters": [{"$ref": "#/components/parameters/RequestId"}],
        "requestBody": {"required": True, "content": _content({JSON: body})},
        "responses": {"200": _response("Taken", {JSON: "Labelled"}), **_errors(_PREDICTING)},
    }


def _reading(summary: str, reply: str, roles: str = "predict, read", media_type: str = JSON) -> Json:
    return {
        "summary": summary,
        "description": f"Needs a key of role: {roles}",
        "responses": {"200": _response("Answered", {media_type: reply}), **_errors(_READING)},
    }


def _open(summary: str) -> Json:
    health = {"200": _response("Yes", {JSON: "Health"}), "503": _response("No", {JSON: "Health"})}
    said = {"summary": summary, "description": "Open to everybody, and says nothing else"}
    return {**said, "security": [], "responses": {**health, **_errors(_OPEN)}}


def _errors(statuses: Iterable[int]) -> Json:
    errors = {str(status): _response(_ERRORS[status], {JSON: "Error"}) for status in statuses}
    if "429" in errors:
        errors["429"]["headers"]["Retry-After"] = {"$ref": "#/components/headers/RetryAfter"}
    return errors


def _response(description: str, content: dict[str, str]) -> Json:
    headers = {"X-Request-ID": {"$ref": "#/components/headers/RequestId"}}
    return {"description": description, "headers": headers, "content": _content(content)}


def _content(schemas: dict[str, str]) -> Json:
    return {media_type: {"schema": _ref(name)} for media_type, name in schemas.items()}


def _ref(schema: str) -> Json:
    return {"$ref": f"#/components/schemas/{schema}"}


def _object(*optional: str, **properties: Json) -> Json:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def _list(items: Json, **more: int) -> Json:
    return {"type": "array", "items": items, **more}


def _tuple(first: list[Json], **more: Any) -> Json:
    return {"type": "array", "prefixItems": first, "minItems": len(first), **more}


# ---------------------------------------------------------------- parts that all models share

_TEXT: Json = {"type": "string"}
_FLAG: Json = {"type": "boolean"}
_COUNT: Json = {"type": "integer", "minimum": 0}
_MILLISECONDS: Json = {"type": "integer", "minimum": 1, "maximum": 600_000}
_NUMBERS = _list({"type": ["number", "null"]})
_WHO = {"model_name": _TEXT, "model_version": _TEXT, "id": _TEXT}
_COLUMN = _object(
    name=_TEXT,
    datatype={"enum": sorted({*DATATYPES.values(), *OUTPUT_TYPES.values()})},
    shape=_list({"type": "integer"}, minItems=1),
)
#: See `registry.explain.Contributions`.
_EXPLAINED = {"features": _list(_TEXT), "base": {"type": "number"}, "scale": _TEXT}
_OUTPUT = _object(
    *("data", "parameters"),
    **_COLUMN["properties"] | {"name": {"enum": list(OUTPUT_TYPES)}},
    data={"anyOf": [_NUMBERS, _list(_FLAG), _list(_TEXT)]},
    parameters=_object("binary_data_size", *_EXPLAINED, binary_data_size=_COUNT, **_EXPLAINED),
)
_SCHEMAS: Json = {
    "Text": _TEXT,
    "Binary": {"description": "JSON, of Inference-Header-Content-Length bytes, and then binary data"},
    "Error": _object("id", error=_TEXT, id=_TEXT),
    "Health": _object(live=_FLAG, ready=_FLAG),
    "Server": _object(name=_TEXT, version=_TEXT, extensions=_list(_TEXT)),
    "Labelled": _object(labels=_COUNT, id=_TEXT),
    "Models": _object(models=_list(_object(name=_TEXT, version=_TEXT, state=_TEXT))),
    "Page": {"type": "object"},
    "Model": _object(
        name=_TEXT, versions=_list(_TEXT), platform=_TEXT, inputs=_list(_COLUMN), outputs=_list(_COLUMN)
    ),
    "Parameters": _object(
        *("explain", "binary_data_output", "binary_data"),
        explain=_FLAG | {"description": "Whether the contributions to each prediction are wanted"},
        binary_data_output=_FLAG,
        binary_data=_FLAG,
    ),
    "Inferred": _object(**_WHO, outputs=_list(_OUTPUT)),
    "Predictions": _object(
        *("decisions", "labels", CONTRIBUTIONS),
        **_WHO,
        predictions=_NUMBERS,
        decisions=_list(_FLAG),
        labels=_list(_TEXT),
        contributions=_object(**_EXPLAINED, values=_list(_NUMBERS)),
    ),
}
_HEADERS: Json = {
    "RequestId": {"description": "The caller's, or one that was made", "schema": _TEXT},
    "RetryAfter": {"description": "Seconds", "schema": _COUNT},
}
_VERSION: Json = {"name": "version", "in": "path", "required": True, "schema": _TEXT}
_PARAMETERS: Json = {
    name: {"name": header, "in": "header", "description": description, "schema": schema}
    for name, header, description, schema in (
        ("RequestId", "X-Request-ID", "Comes back with the answer", _TEXT),
        ("TimeoutMs", "X-Timeout-Ms", "After so long nobody waits any more", _MILLISECONDS),
        ("RoutingKey", "X-Routing-Key", "The same key is answered by the same version", _TEXT),
        ("ModelVersion", "X-Model-Version", "This version alone; needs a key of role: admin", _TEXT),
        ("HeaderLength", "Inference-Header-Content-Length", "Bytes of JSON before binary data", _COUNT),
    )
}
