"""The HTTP interface of the service as a whole: what is not about one model.

Deny by default: health is open, everything else wants a key, and what is not listed is a 404.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

import mlops_ray
from mlops_ray.errors import ForbiddenError, NotFoundError, SlowBodyError, UnauthorizedError
from mlops_ray.keys import Keyring, Role
from mlops_ray.monitoring.dashboard import page
from mlops_ray.monitoring.dashboard.documents import overview
from mlops_ray.monitoring.dashboard.sessions import Sessions
from mlops_ray.monitoring.metrics import CONTENT_TYPE, metrics_text
from mlops_ray.serving import record
from mlops_ray.serving.asgi import Application, Call, Reply, error_reply, json_reply
from mlops_ray.serving.endpoint import PLATFORM, PREFIX, SHOWN_PATH, authorize
from mlops_ray.serving.openapi import openapi
from mlops_ray.storage import Storage

READY = "/v2/health/ready"
#: A key has 43 characters; more than this is no login.
MAX_LOGIN_BYTES = 4_096
LOGIN_S = 10.0

Handler = Callable[[Call], Awaitable[Reply]]

logger = logging.getLogger(__name__)


class Routes(Application):
    """The gateway's paths. `snapshot` asks the monitor."""

    def __init__(self, storage: Storage, snapshot: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        self._storage, self._snapshot = storage, snapshot
        self._keyring, self._sessions = Keyring(storage), Sessions(storage)
        self._routes: dict[str, tuple[str, tuple[Role, ...], Handler]] = {
            "/v2": ("GET", ("predict", "read"), self._server),
            PREFIX: ("GET", ("predict", "read"), self._models),
            "/openapi.json": ("GET", ("predict", "read"), self._openapi),
            "/metrics": ("GET", ("read",), self._metrics),
        }

    def take(self, call: Call) -> Awaitable[Reply]:
        """What becomes the reply to one HTTP request."""
        return self._reply(call)

    async def _reply(self, call: Call) -> Reply:
        try:
            return await self._answer(call)
        except Exception as error:  # noqa: BLE001 - whatever happens, the caller gets an answer
            return error_reply(error, call)

    async def _answer(self, call: Call) -> Reply:
        if call.path in ("/v2/health/live", READY):
            call.allow("GET")
            return json_reply({"live": True, "ready": True})
        if call.path == "/dashboard" or call.path.startswith("/dashboard/"):
            return await self._dashboard(call)
        if call.path not in self._routes:
            raise NotFoundError(f"there is nothing at {call.path[:SHOWN_PATH]!r}")
        method, roles, handler = self._routes[call.path]
        authorize(self._keyring, call, *roles)
        call.allow(method)
        return await handler(call)

    async def _server(self, call: Call) -> Reply:
        return json_reply(
            {"name": PLATFORM, "version": mlops_ray.__version__, "extensions": ["binary_tensor_data"]}
        )

    async def _models(self, call: Call) -> Reply:
        models = [
            {"name": document["model"], "version": champion["version"], "state": champion["state"]}
            for document in record.read_all(self._storage)
            if (champion := document.get("champion"))
        ]
        return json_reply({"models": models})

    async def _openapi(self, call: Call) -> Reply:
        return json_reply(openapi(record.read_all(self._storage)))

    async def _metrics(self, call: Call) -> Reply:
        text = metrics_text(await self._snapshot(), record.read_all(self._storage))
        return Reply(200, text, {"content-type": CONTENT_TYPE})

    # The dashboard, for people: a login form where the others have a 401.

    async def _dashboard(self, call: Call) -> Reply:
        if call.path == "/dashboard/login":
            call.allow("POST")
            return await self._login(call)
        try:
            self._admit(call)
        except UnauthorizedError:
            if call.path != "/dashboard" or call.method != "GET":
                raise
            return Reply(401, page.login_form(), page.headers())
        call.allow("GET")
        if call.path == "/dashboard":
            return Reply(200, page.dashboard(), page.headers())
        if call.path == "/dashboard/data.json":
            return json_reply(await self._overview())
        raise NotFoundError(f"there is nothing at {call.path[:SHOWN_PATH]!r}")

    def _admit(self, call: Call) -> None:
        """Lets a session, or a key of role read, through."""
        if not self._sessions.admits(call.header("cookie") or ""):
            authorize(self._keyring, call, "read")

    async def _login(self, call: Call) -> Reply:
        try:
            async with asyncio.timeout(LOGIN_S):
                body = await call.body(MAX_LOGIN_BYTES)
        except TimeoutError:
            raise SlowBodyError(f"the form has not come within {LOGIN_S:.0f} s") from None
        form = parse_qs(body.decode("latin-1"))
        key = form.get("key", [""])[0].strip()
        try:
            name = self._keyring.authorize(f"Bearer {key}", "read").name
        except (UnauthorizedError, ForbiddenError) as error:
            return Reply(error.status, page.login_form(str(error)), page.headers())
        cookie = self._sessions.cookie(name)
        return Reply(303, b"", {**page.headers(), "location": "/dashboard", "set-cookie": cookie})

    async def _overview(self) -> dict[str, Any]:
        try:
            snapshot = await self._snapshot()
        except Exception as error:  # noqa: BLE001 - the page says that the monitor is away
            logger.warning("the monitor does not answer: %s", type(error).__name__)
            snapshot = None
        return overview(record.read_all(self._storage), snapshot)
