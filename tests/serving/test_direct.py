"""Requests reach our application before Serve's code, and Serve keeps what is its own."""

import asyncio
from collections.abc import Iterator
from urllib.parse import unquote

import pytest

from mlops_ray.serving import direct
from mlops_ray.serving.asgi import App, Message, Receive, Scope, Send

Reached = tuple[str, list[Message]]


async def nothing() -> None:
    """There is nothing to start."""


def answering(name: str, reached: list[str]) -> App:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(name)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", b"id")]})
        await send({"type": "http.response.body", "body": b""})

    return app


@pytest.fixture(autouse=True)
def none_answers() -> Iterator[None]:
    before = direct._answering[:]
    direct._answering.clear()
    yield
    direct._answering[:] = before


def call(app: App, path: str, type: str = "http") -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    asyncio.run(
        app({"type": type, "path": unquote(path), "raw_path": path.encode(), "headers": []}, receive, send)
    )  # type: ignore[arg-type]
    return sent


def start(app: App) -> None:
    """As Serve does, before the first request."""
    messages = [{"type": "lifespan.shutdown"}, {"type": "lifespan.startup"}]

    async def receive() -> Message:
        return messages.pop()

    async def send(message: Message) -> None:
        assert message["type"].endswith("complete")

    asyncio.run(app({"type": "lifespan"}, receive, send))  # type: ignore[arg-type]


def test_until_the_application_is_up_requests_are_serves() -> None:
    reached: list[str] = []
    middleware = direct.Direct(answering("serve", reached))
    call(middleware, "/v2/models/m/infer")
    start(direct.by_serve(answering("ours", reached), nothing, nothing))
    call(middleware, "/v2/models/m/infer")
    assert reached == ["serve", "ours"]


@pytest.mark.parametrize(
    ("path", "type"), [("/-/healthz", "http"), ("/-/routes", "http"), ("/v2", "websocket")]
)
def test_health_checks_and_what_is_not_http_go_on_to_serve(path: str, type: str) -> None:
    reached: list[str] = []
    start(direct.by_serve(answering("ours", reached), nothing, nothing))
    call(direct.Direct(answering("serve", reached)), path, type)
    assert reached == ["serve"]


@pytest.mark.parametrize("path", ["/%2d/routes", "/-%2Froutes", "/%2D/healthz", "//-/routes"])
def test_what_only_looks_like_a_path_of_serves_when_decoded_is_ours(path: str) -> None:
    reached: list[str] = []
    start(direct.by_serve(answering("ours", reached), nothing, nothing))
    call(direct.Direct(answering("serve", reached)), path)
    assert reached == ["ours"]


def test_a_request_that_comes_by_way_of_serve_gets_its_id_from_serve_alone() -> None:
    app = direct.by_serve(answering("ours", []), nothing, nothing)
    assert call(app, "/v2")[0]["headers"] == []
    assert call(app, "/v2", "websocket") == [{"type": "websocket.close", "code": 1008}]


def test_serve_is_given_the_middleware_by_every_cluster_of_ours() -> None:
    from ray._common.utils import import_attr

    from mlops_ray.cluster.head import SETTINGS

    (middleware,) = import_attr(SETTINGS["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"])()
    assert middleware.cls is direct.Direct
