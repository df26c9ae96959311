"""Deny by default: every route, verb and role, at the gateway, at a model and at a replica's own port."""

import ast
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import pytest

from mlops_ray import keys
from mlops_ray.monitoring.dashboard import page
from mlops_ray.serving import endpoint, routes
from mlops_ray.serving.openapi import openapi
from tests.serving.calls import Answered, call
from tests.serving.live import ROLES, Service, listening, service

VERBS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "BREW", "get")
#: Who calls: nobody, somebody with a key that never was or is no more, and one of each role.
CALLERS = (None, "wrong", "revoked", *ROLES)
#: Of each route the one verb, and the roles beside admin's; of none of them, everybody.
OF_GATEWAY = {
    "/v2/health/live": ("GET", None),
    "/v2/health/ready": ("GET", None),
    "/v2": ("GET", {"predict", "read"}),
    "/v2/models": ("GET", {"predict", "read"}),
    "/openapi.json": ("GET", {"predict", "read"}),
    "/metrics": ("GET", {"read"}),
    "/dashboard": ("GET", {"read"}),
    "/dashboard/data.json": ("GET", {"read"}),
    "/dashboard/data/models": ("GET", {"read"}),
    "/dashboard/data/errors": ("GET", {"read"}),
    f"{page.ASSETS}/{page.digest()}/app.js": ("GET", {"read"}),
    "/dashboard/nothing": (None, {"read"}),
}
OF_MODEL = {
    f"{version}{action}": allowed
    for version in ("", "/versions/1")
    for action, allowed in {
        "/ready": ("GET", None),
        "": ("GET", {"predict", "read"}),
        "/infer": ("POST", {"predict"}),
        "/invocations": ("POST", {"predict"}),
        "/labels": ("POST" if not version else None, {"label"} if not version else {"predict"}),
        "/nothing": (None, {"predict"}),
    }.items()
}
BASE = "/v2/models/demo-regression"
ROUTES = OF_GATEWAY | {f"{BASE}{path}": allowed for path, allowed in OF_MODEL.items()}
ROW = {"site": "a", "time": "2016-11-01T00:00:00Z", "lag": 1, "hour": 1, "holiday": False}
TENSORS = [{"name": name, "datatype": "BYTES", "shape": [1], "data": [value]} for name, value in ROW.items()]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Service:
    made = service(tmp_path_factory.mktemp("access"))
    made.keys["wrong"] = "wrong"
    made.keys["revoked"] = keys.add(made.storage, "revoked", "admin")
    keys.revoke(made.storage, "revoked")
    return made


def ask(guarded: Service, verb: str, path: str, caller: str | None) -> Answered:
    return call(guarded, verb, path, key=guarded.keys[caller] if caller else None, json=body(path))


def body(path: str) -> dict[str, Any]:
    if path.endswith("/labels"):
        return {"labels": [{"request_id": "a", "label": 1}]}
    return {"inputs": TENSORS} if path.endswith("infer") else {"dataframe_records": [ROW]}


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("path", ROUTES)
def test_a_route_answers_its_verb_to_its_roles_and_nothing_else(
    guarded: Service, path: str, caller: str | None
) -> None:
    only, roles = ROUTES[path]
    for verb in VERBS:
        reply = ask(guarded, verb, path, caller)
        expected = 200 if verb == only else 404 if only is None else 405
        if roles is not None and (caller is None or caller not in ROLES):
            expected = 401
        elif roles is not None and caller not in {*roles, "admin"}:
            expected = 403
        if only is None and expected == 404 and path.startswith("/dashboard") and verb != "GET":
            expected = 405
        assert reply.status == expected, (verb, reply)
        if expected != 200 and b"<html" not in reply.body:
            assert list(reply.json) == ["error"]


def written(module: ModuleType) -> set[str]:
    """The paths, and parts of paths, that the code of a module writes out or names."""
    nodes = list(ast.walk(ast.parse(Path(str(module.__file__)).read_text())))
    texts = [node.value for node in nodes if isinstance(node, ast.Constant)]
    texts += [getattr(module, node.id, None) for node in nodes if isinstance(node, ast.Name)]
    return {text for text in texts if isinstance(text, str) and text.startswith("/")}


def test_the_code_knows_no_route_that_is_not_asked_for_here(guarded: Service) -> None:
    parts = {"/", "/dashboard/", page.ASSETS + "/", "/dashboard/data/", "/dashboard/login"}
    assert guarded.routes._routes.keys() <= OF_GATEWAY.keys()
    assert written(routes) - parts <= OF_GATEWAY.keys()
    assert written(endpoint) - {"/", "/versions/", "/v2/models"} <= OF_MODEL.keys()
    assert openapi([])["paths"].keys() == {path for path in OF_GATEWAY if not path.startswith("/dashboard")}


def test_a_page_asks_for_a_key_and_shows_nothing_before_it_is_there(guarded: Service) -> None:
    for verb in VERBS:
        reply = ask(guarded, verb, "/dashboard/login", None)
        assert reply.status == (401 if verb == "POST" else 405)
        assert "set-cookie" not in reply.headers


ODD = [
    *(
        "/",
        "//",
        "/v2/",
        "//v2",
        "/V2",
        "/v2//models",
        "/v2/models/",
        "/v2%2Fmodels",
        "/v2/models/..",
        "/./v2",
    ),
    *(
        "/v2/../v2",
        "/%76%32",
        "/v2/health/live/",
        "/v2/health//live",
        "/v2/health/LIVE",
        "/v2/health/live%00",
    ),
    *("/v2/health/live;x", "/v2/health/../models", "/metrics/", "/METRICS", "/%6detrics", "/openapi.json/"),
    *("/dashboard/../metrics", "/dashboard//data.json", "/dashboard/%2e%2e/metrics", "/docs", "/redoc"),
    *("/-/nothing", "/api/serve/applications/", "/static/app.js", "/favicon.ico", "/.env", "/keys.json"),
    *("/v2/models/DEMO-REGRESSION/infer", "/v2/models/nobody/infer", "http://evil/v2", "*", f"{BASE}x/infer"),
    *(
        f"{BASE}{rest}"
        for rest in (
            *("/", "//infer", "/infer/", "/INFER", "%2Finfer", "/%69nfer", "/infer;x=1", "/infer%3Fx"),
            *("/infer%00", "/infer\x7f", "/labels/", "/../demo-regression/infer", f"{BASE}/infer"),
            *("/versions", "/versions/", "/versions/1/", "/versions/1/versions/1/infer"),
            *("/versions/..%2F1/infer", "/ready/", "/ready/../infer", "/versions/1/ready/../infer"),
            *("/ready%2F..%2Finfer", "/versions/1%2Finfer", "/versions//infer", "/versions/2/infer"),
        )
    ),
]


@pytest.mark.parametrize("path", ODD)
def test_an_odd_path_is_no_other_one(guarded: Service, path: str) -> None:
    for verb in VERBS:
        for caller in (None, "wrong", "revoked", "label"):
            assert ask(guarded, verb, path, caller).status in (401, 403, 404, 405), (verb, caller)
        assert ask(guarded, verb, path, "admin").status in (404, 405), verb


#: Paths of others, and its own without what stands before them.
FOREIGN: list[Any] = [
    *(path for path in OF_GATEWAY if not path.startswith("/dashboard")),
    *("/v2/models/other", "/v2/models/other/ready", "/v2/models/other/infer", f"{BASE}x/ready", "/", "//"),
    *(path for path in OF_MODEL if path),
]


@pytest.mark.parametrize("path", FOREIGN)
def test_a_replica_s_port_answers_for_its_model_alone(guarded: Service, path: str) -> None:
    for verb in VERBS:
        for caller in CALLERS:
            key = guarded.keys[caller] if caller else None
            reply = call(guarded.endpoint, verb, path, key=key, json=body(path))
            assert reply.status in (401, 403, 404), (verb, caller, reply)


@pytest.mark.parametrize("path", [path for path, (_, roles) in ROUTES.items() if roles is not None])
def test_a_key_is_taken_from_its_header_and_from_nowhere_else(guarded: Service, path: str) -> None:
    only, _ = ROUTES[path]
    key = guarded.keys["admin"]
    for headers in (
        {"authorization": key},
        {"authorization": f"Basic {key}"},
        {"authorization": f"Bearer {key}x"},
        {"authorization": f"Bearer {key[:-1]}"},
        {"authorization": "Bearer"},
        {"authorization": "Bearer  "},
        {"authorization": f"Bearer {key.swapcase()}"},
        {"x-api-key": key, "proxy-authorization": f"Bearer {key}", "cookie": f"key={key}; session={key}"},
    ):
        assert call(guarded, only or "GET", path, headers=headers, json={}).status == 401, headers
    assert call(guarded, only or "GET", f"{path}?key={key}&access_token={key}", json={}).status == 401


# ---------------------------------------------------------------- over real HTTP


@pytest.fixture(scope="module")
def address(guarded: Service) -> Iterator[tuple[str, int]]:
    with listening(guarded) as url:
        parts = urlsplit(url)
        yield str(parts.hostname), int(parts.port or 0)


def send(address: tuple[str, int], line: str, *headers: str, body: str = "") -> int:
    """The status of the reply to a request, written as it stands."""
    said = [line, "Host: x", "Connection: close", f"Content-Length: {len(body)}", *headers, "", body]
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall("\r\n".join(said).encode("latin-1"))
        reply = connection.makefile("rb").readline()
    return int(reply.split()[1])


TARGETS = [
    *("/v2/models", "//v2/models", "/v2/health/../models", "/v2/health/live/../../models", "/V2/models"),
    *("http://x/v2/models", "http://x/metrics", f"http://x{BASE}", "*", f"{BASE}//infer", "/%2e%2e/metrics"),
    *("/metrics", "/dashboard/data.json", "/openapi.json", BASE, f"{BASE}/ready/../infer", f"{BASE}/infer"),
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("verb", ["GET", "HEAD", "POST", "OPTIONS", "TRACE", "DELETE", "PROPFIND", "BREW"])
def test_nothing_is_answered_without_a_key_however_it_is_asked(
    address: tuple[str, int], verb: str, target: str
) -> None:
    assert 400 <= send(address, f"{verb} {target} HTTP/1.1", body="{}") < 500


@pytest.mark.parametrize("path", ["/", "/v2", "/v2/health/live", f"{BASE}/infer", f"{BASE}/ready"])
def test_no_websocket_is_opened(address: tuple[str, int], guarded: Service, path: str) -> None:
    wanted = [
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    with socket.create_connection(address, timeout=30) as connection:
        said = [f"GET {path} HTTP/1.1", "Host: x", "Connection: Upgrade", *wanted]
        said += [f"Authorization: Bearer {guarded.keys['admin']}", "", ""]
        connection.sendall("\r\n".join(said).encode())
        assert int(connection.makefile("rb").readline().split()[1]) != 101


def test_with_a_key_the_same_way_leads_to_an_answer(address: tuple[str, int], guarded: Service) -> None:
    key = f"Authorization: Bearer {guarded.keys['predict']}"
    assert send(address, "GET /v2/models HTTP/1.1", key) == 200
    body = json.dumps({"inputs": TENSORS})
    assert send(address, f"POST {BASE}/infer HTTP/1.1", key, body=body) == 200
