"""The HTTP interface of the service as a whole: what is not about one model.

Deny by default: health is open, everything else wants a key, and what is not listed is a 404.
"""

import asyncio
import gzip
import hashlib
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote

import mlops_ray
from mlops_ray.data.error_log import DEFECTS
from mlops_ray.errors import (
    ForbiddenError,
    NotFoundError,
    RequestError,
    SlowBodyError,
    UnauthorizedError,
    safe,
)
from mlops_ray.keys import Keyring, Role
from mlops_ray.monitoring.dashboard import page
from mlops_ray.monitoring.dashboard.documents import overview
from mlops_ray.monitoring.dashboard.sessions import Sessions
from mlops_ray.monitoring.dashboard.views import Views
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
#: The paths of the page's documents, and of its files.
DATA, ASSETS = "/dashboard/data/", f"{page.ASSETS}/"
#: Parameters of a document that are read.
MOST_PARAMETERS = 20

Handler = Callable[[Call], Awaitable[Reply]]

logger = logging.getLogger(__name__)


class Routes(Application):
    """The gateway's paths. `snapshot` asks the monitor for all that it knows, `ping` whether it is there."""

    def __init__(
        self,
        storage: Storage,
        snapshot: Callable[[], Awaitable[dict[str, Any]]],
        ping: Callable[[], Awaitable[Any]] | None = None,
    ) -> None:
        self._storage, self._snapshot, self._ping = storage, snapshot, ping or snapshot
        self._views, self._viewing = Views(storage), ThreadPoolExecutor(1, "dashboard")
        self._keyring, self._sessions = Keyring(storage), Sessions(storage)
        self._routes: dict[str, tuple[str, tuple[Role, ...], Handler]] = {
            "/v2": ("GET", ("predict", "read"), self._server),
            PREFIX: ("GET", ("predict", "read"), self._models),
            "/openapi.json": ("GET", ("predict", "read"), self._openapi),
            "/metrics": ("GET", ("read",), self._metrics),
        }

    def warm(self) -> None:
        """Reads the journals that the first page shows, before anybody waits for them."""
        self._viewing.submit(self._views.answer, ["models"], {"period": "year"})

    async def take(self, call: Call) -> Reply:
        """The reply to one HTTP request."""
        try:
            return await self._answer(call)
        except DEFECTS as error:  # whatever happens, the caller gets an answer
            return error_reply(error, call)

    async def _answer(self, call: Call) -> Reply:
        if call.path in ("/v2/health/live", READY):
            call.allow("GET")
            return json_reply({"live": True, "ready": True})
        if call.path == "/dashboard" or call.path.startswith("/dashboard/"):
            return await self._dashboard(call)
        if call.path not in self._routes:
            # Where a person begins who knows the host alone.
            instead = "; the dashboard is at /dashboard" if call.path == "/" else ""
            raise NotFoundError(f"there is nothing at {call.path[:SHOWN_PATH]!r}{instead}")
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
        told = await self._answering(self._snapshot)
        if told is None:
            # Who scrapes is to see that nobody counts (MlopsDown).
            return json_reply({"error": "the monitor does not answer; ask again", "id": call.id}, 503)
        releases = record.read_all(self._storage)
        costs = [self._views.cost(release["model"]) for release in releases]
        text = metrics_text(told, releases, filter(None, costs))
        return Reply(200, text, {"content-type": CONTENT_TYPE})

    # The dashboard, for people: a login form where the others have a 401.

    async def _dashboard(self, call: Call) -> Reply:
        if call.path == "/dashboard/login":
            call.allow("POST")
            return await self._login(call)
        try:
            role = self._admit(call)
        except UnauthorizedError:
            if call.path != "/dashboard" or call.method != "GET":
                raise
            return Reply(401, page.login_form(), page.headers())
        call.allow("GET")
        if call.path == "/dashboard":
            return Reply(200, page.dashboard(), page.headers())
        if call.path == "/dashboard/data.json":
            return json_reply(await self._overview())
        if call.path.startswith(DATA):
            return await self._document(call, role)
        if call.path.startswith(ASSETS):
            return _asset(call)
        raise NotFoundError(f"there is nothing at {call.path[:SHOWN_PATH]!r}")

    def _admit(self, call: Call) -> str:
        """Lets a session, or a key of role read, through; the role of whose it is."""
        return self._sessions.role(call.header("cookie") or "") or authorize(self._keyring, call, "read").role

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

    async def _document(self, call: Call, role: str) -> Reply:
        """A document of the page; one that the browser has already is not sent again."""
        parts = [unquote(part) for part in call.path[len(DATA) :].split("/")]
        try:
            asked = dict(parse_qsl(call.query.decode("latin-1"), max_num_fields=MOST_PARAMETERS))
        except ValueError:
            raise RequestError(f"at most {MOST_PARAMETERS} parameters are read") from None
        # The names of callers are for those alone who may take their keys away.
        ask = partial(self._views.answer, parts, asked, names=role == "admin")
        found = asyncio.get_running_loop().run_in_executor(self._viewing, ask)
        if parts == ["models"]:
            is_there = await self._answering(self._ping)
            document = await found | {"monitor": is_there is not None}
        else:
            document = await found
        body = json_reply(document).body
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        headers = page.document_headers(tag)
        if tag in (call.header("if-none-match") or ""):
            return Reply(304, b"", headers)
        if len(body) >= page.LEAST_GZIPPED and _takes_gzip(call):
            headers["content-encoding"] = "gzip"
            body = await asyncio.to_thread(gzip.compress, body, page.OF_DOCUMENTS)
        return Reply(200, body, headers)

    async def _answering(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        """What the monitor answers; `None` where it does not, as the page says."""
        try:
            return await ask()
        except Exception as error:  # noqa: BLE001 - whatever it is, the rest can be shown
            logger.warning("the monitor does not answer: %s", safe(error))
            return None

    async def _overview(self) -> dict[str, Any]:
        return overview(record.read_all(self._storage), await self._answering(self._snapshot))


def _asset(call: Call) -> Reply:
    digest, _, name = call.path[len(ASSETS) :].partition("/")
    found = page.assets().get(name)
    if found is None or digest != page.digest():
        raise NotFoundError("there is no such file of this version of the dashboard")
    headers = page.asset_headers(found.type)
    if not _takes_gzip(call):
        return Reply(200, found.plain, headers)
    return Reply(200, found.gzipped, headers | {"content-encoding": "gzip"})


def _takes_gzip(call: Call) -> bool:
    return "gzip" in (call.header("accept-encoding") or "")
