"""One model behind real HTTP, as HAProxy puts it together: its replica and the gateway, without Ray."""

import contextlib
import os
import socket
import threading
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks import peers
from mlops_ray import keys
from mlops_ray.config import Batching
from mlops_ray.data.prediction_log import PredictionLog
from mlops_ray.keys import Keyring
from mlops_ray.monitoring.deltas import Outbox
from mlops_ray.registry import signing
from mlops_ray.registry.outcome import Outcome
from mlops_ray.registry.predictor import Predictor
from mlops_ray.serving.asgi import NO_WEBSOCKET, Application, Call, Receive, Reply, Scope, Send
from mlops_ray.serving.direct import Direct
from mlops_ray.serving.endpoint import PREFIX, Endpoint
from mlops_ray.serving.routes import Routes
from mlops_ray.serving.versions import Versions, loader
from mlops_ray.storage import Storage
from tests.registry.made import write
from tests.serving.packages import crown
from tests.serving.standin import PATIENT_MS

SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = signing.public(SIGNER)
#: Of a classification also the decision is answered.
OUTCOMES = {"regression": Outcome(clip=(0.2, 1.5)), "classification": Outcome(threshold=0.4)}
ROLES = ("predict", "label", "read", "admin")
#: What runs inside KServe's environment.
KSERVE = Path(peers.__file__).parent / "peer_scripts" / "kserve_client.py"
#: Fuzzing without an end in sight, on demand; else a few hundred examples, always the same.
LONG = bool(os.environ.get("MLOPS_WHOLE"))


@dataclass(frozen=True)
class Service(Application):
    """A released model, its two applications, the one that callers see, and the keys by role."""

    model: str
    storage: Storage
    endpoint: Endpoint
    routes: Routes
    keys: dict[str, str]
    predictor: Predictor

    def take(self, call: Call) -> Reply | Awaitable[Reply]:
        return self._of(call).take(call)

    def _of(self, call: Call) -> Application:
        """By prefix; Serve's proxies do no more."""
        mine, path = f"{PREFIX}/{self.model}", unquote(call.path)
        return self.endpoint if path == mine or path.startswith(f"{mine}/") else self.routes


def service(
    folder: Path, task: Any = "regression", hidden: frozenset[str] = frozenset(), **package: Any
) -> Service:
    """A linear model of task `task`, released as version 1; nobody may see values of `hidden`."""
    storage, name = Storage.open(str(folder)), f"demo-{task}"
    package = {"outcome": OUTCOMES[task], **package}
    packed = write(storage.path("packages", name), name=name, task=task, sign=SIGNER, **package)
    crown(storage, name, 1, packed)
    outbox, none = Outbox(name), frozenset[str]()
    load = loader(storage, str(storage.path("online.db")), none, frozenset({PUBLIC}), none, hidden)
    log = PredictionLog(storage, name, outbox.source)
    versions = Versions(storage, name, load, outbox, log, Batching(), hidden)
    versions.load()
    return Service(
        name,
        storage,
        Endpoint(name, versions, Keyring(storage), hidden, storage, p99_ms=PATIENT_MS, explains=True),
        Routes(storage, _snapshot),
        {role: keys.add(storage, role, role) for role in ROLES},
        Predictor.load(packed.folder, None, trusted=frozenset({PUBLIC})),
    )


async def _snapshot() -> dict[str, Any]:
    return {}


async def _none(scope: Scope, receive: Receive, send: Send) -> None:
    """In Serve's place."""
    assert scope["type"] == "websocket"
    await send(NO_WEBSOCKET)


@contextlib.contextmanager
def listening(app: Application) -> Iterator[str]:
    """The address at which an application is served, as replicas do."""

    class Protocol(Direct):
        def answering(self) -> Application:
            return app

    # Callers wait in the socket's queue until the server takes them.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(_none, http=Protocol, lifespan="off", log_level="critical")  # type: ignore[arg-type]
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def require_peer(name: str) -> None:
    """Without the environment of its own the test skips, or fails where all must be there."""
    if name in peers.REQUIREMENTS and peers.is_made(name):
        return
    message = f"{name}'s environment is not made: python -m benchmarks.peers {name}"
    if os.environ.get("MLOPS_REQUIRE_SERVERS"):
        pytest.fail(message)
    pytest.skip(message)
