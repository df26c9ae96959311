"""A model's Serve deployment: raw ASGI in front of the loaded versions, HAProxy sends to it directly.

It imports neither MLflow nor pandas nor scikit-learn, unless a model needs it.
"""

import asyncio
import contextlib
import ctypes
import gc
import logging
import sys
import warnings
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from mlops_ray.config import MICROSECONDS, Project, Serving
from mlops_ray.data import error_log
from mlops_ray.data.error_log import DEFECTS
from mlops_ray.data.prediction_log import FLUSH_S, PredictionLog
from mlops_ray.errors import safe
from mlops_ray.features.shelves import online_location
from mlops_ray.keys import Keyring
from mlops_ray.monitoring import deltas
from mlops_ray.monitoring.alarms import Budget
from mlops_ray.monitoring.deltas import Outbox
from mlops_ray.policy import placed
from mlops_ray.registry import estimator, signing
from mlops_ray.serving import autoscaling, direct
from mlops_ray.serving.asgi import Answered, App
from mlops_ray.serving.endpoint import PREFIX, Endpoint
from mlops_ray.serving.handles import Handles
from mlops_ray.serving.versions import Versions, loader
from mlops_ray.storage import Storage

#: How often counts go to the monitor: what a killed replica had not sent yet is lost with it.
REPORT_S = 2.0
#: Between two slices of the prediction log, while which requests are answered.
PAUSE_S = 0.02
#: New objects until the youngest are looked through for garbage (a request makes a hundred), and how soon a
#: thread that writes makes way for the one that answers; by default 700, and 5 ms.
GC_NEW, SWITCH_S = 20_000, 0.001
#: Buffers of so many bytes are given back to the system as they are freed, and free memory at the end of a
#: heap when it is twice as much. What asyncio reads into has half of it each time, and stays in a heap.
LARGE_BYTES = 2**19
#: What glibc calls these settings.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: An acknowledgement takes milliseconds; a monitor that is just restarting gets the same delta again later.
ACKNOWLEDGE_S = 10.0
#: Serve's own limit: far above what our own queue admits, since a request waits for it before any of our code
#: runs, and Serve's refusal is plain text.
MAX_ONGOING_REQUESTS = 10_000
#: How soon a dead replica is noticed; at the default of 10 s requests hang for 13 s.
HEALTH_CHECK_S = 1.0
#: Serve keeps what replicas tell for so many looks: those of a moment may be missed.
LOOK_BACK = 5
UNCOUNTED = "the monitor took no counts (%s); they are sent again"
UNWRITTEN = "the prediction log cannot be written (%s); its rows wait"
LOGGING = {"log_level": "WARNING", "enable_access_log": False}

logger = logging.getLogger(__name__)


class Replica:
    """One process that answers a model's requests, from the release document in the storage."""

    def __init__(
        self,
        storage_root: str,
        model: str,
        serving: dict[str, Any],
        hidden: list[str],
        online: str,
        functions: list[str],
        trusted: list[str],
        types: list[str],
        watched: tuple[float, float, float, dict[str, float]],
    ) -> None:
        """Loads the champion, so that Serve sends nothing here before; a broken package ends the start.

        Where there is none yet, requests are told so until one is released.
        """
        storage, names = Storage.open(storage_root), frozenset(hidden)
        error_log.install(storage, "replica", model)
        settings = Serving.model_validate(serving)
        window_s, most, per_s, fresh_s = watched
        self._outbox = Outbox(model, window_s, Budget(most, per_s), fresh_s)
        self._log = PredictionLog(storage, model, self._outbox.source)
        load = loader(storage, online, frozenset(functions), frozenset(trusted), frozenset(types), names)
        self._versions = Versions(storage, model, load, self._outbox, self._log, settings.batching, names)
        self._endpoint = Endpoint(
            model,
            self._versions,
            Keyring(storage),
            names,
            storage,
            p99_ms=settings.slo.p99_ms,
            explains=settings.explain == "on_request",
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._handles = Handles()
        self._versions.load()

    def __serve_build_asgi_app__(self) -> App:
        """What Serve asks for the ASGI application."""

        return direct.by_serve(self._endpoint, self._start, self._stop)

    async def call(self, path: str, headers: dict[str, str], body: bytes, method: str = "POST") -> Answered:
        """What the endpoint answers to a request that comes through a handle: gRPC, from the gateway."""
        return await self._endpoint.exchange(method, path, headers, body)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve's controller hands to the policy of autoscaling.py."""
        return self._endpoint.told()

    async def _start(self) -> None:
        _favour_requests()
        _give_large_back()
        loop = asyncio.get_running_loop()
        work = (
            self._versions.poll(),
            self._versions.beat(),
            repeated(self._flush, REPORT_S, partial(logger.warning, UNCOUNTED)),
            repeated(self._write, FLUSH_S, partial(logger.error, UNWRITTEN)),
        )
        self._tasks = [loop.create_task(each) for each in work]

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._versions.close()
        # The log first: a monitor that hangs takes all the time that there is.
        await asyncio.to_thread(self._log.close)
        # An earlier delta may wait for its acknowledgement, and the newest counts behind it.
        with contextlib.suppress(Exception):
            while self._outbox.delta() is not None:
                await self._flush()

    async def _write(self) -> None:
        await asyncio.to_thread(self._log.flush, PAUSE_S)

    async def _flush(self) -> None:
        delta = self._outbox.delta()
        if delta is not None:
            async with asyncio.timeout(ACKNOWLEDGE_S):
                monitor = await self._handles.get(deltas.DEPLOYMENT, deltas.APPLICATION)
                self._outbox.acknowledge(await monitor.record.remote(delta))


async def repeated(act: Callable[[], Awaitable[None]], every_s: float, tell: Callable[[str], None]) -> None:
    """Does something every so often, off the path of requests, which go on whatever becomes of it."""
    while True:
        await asyncio.sleep(every_s)
        try:
            await act()
        except DEFECTS as error:
            tell(safe(error))


def _favour_requests() -> None:
    """Keeps the interpreter's own work off the path of requests."""
    # What is there now stays: looking through it for garbage stops everything for a tenth of a second.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_NEW, *gc.get_threshold()[1:])
    sys.setswitchinterval(SWITCH_S)


def _give_large_back() -> None:
    """Keeps the bodies of large requests out of the heaps, where the C library is glibc.

    By itself it learns from the first one to take them from there: each thread's heap grows to what it ever
    held at once, and small objects that live long keep it from shrinking.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, LARGE_BYTES)
        mallopt(_TRIM_THRESHOLD, 2 * LARGE_BYTES)


class Probe(Replica):
    """A replica under a load test: it does all that any other does, and no monitor hears of it."""

    async def _flush(self) -> None:
        delta = self._outbox.delta()
        if delta is not None:
            self._outbox.acknowledge(delta["sequence"])


def deployment(
    project: Project, storage: Storage, label_selector: dict[str, str], hidden: frozenset[str]
) -> serve.Application:
    """The model's application, to be run at `route(NAME)`; nobody may see values of `hidden` columns."""
    options = {"name": project.project, "autoscaling_config": _scaled(project, storage)}
    return _bound(Replica, project, storage, storage, label_selector, hidden, options)


def probe(
    project: Project,
    storage: Storage,
    aside: Storage,
    name: str,
    replicas: int,
    label_selector: dict[str, str],
    hidden: frozenset[str],
) -> serve.Application:
    """So many replicas of the model `name` of a storage `aside`, to be run at `route(name)`.

    They answer the keys of that storage and log into it; features they look up where all others do.
    """
    options = {"name": name, "num_replicas": replicas}
    return _bound(Probe, project, storage, aside, label_selector, hidden, options)


def _bound(
    kind: type[Replica],
    project: Project,
    storage: Storage,
    own: Storage,
    label_selector: dict[str, str],
    hidden: frozenset[str],
    options: dict[str, Any],
) -> serve.Application:
    """A replica's application, whose release, keys and log are in the storage `own`."""
    serving = project.serving
    asked = serving.resources
    resources = placed(label_selector | asked.labels, num_cpus=asked.cpu, num_gpus=asked.gpu)
    replica = serve.deployment(
        ray_actor_options=resources,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        health_check_period_s=HEALTH_CHECK_S,
        logging_config=LOGGING,
        **options,
    )(serve.ingress()(kind))
    return replica.bind(
        str(own.root),
        options["name"],
        serving.model_dump(mode="json"),
        sorted(hidden),
        online_location(project, storage),
        sorted(project.functions),
        sorted(signing.trusted(project, storage)),
        sorted(estimator.allowed(project)),
        watched(project),
    )


def _scaled(project: Project, storage: Storage) -> AutoscalingConfig:
    """Between its bounds our policy decides alone, and at once: it has reasons of its own to wait."""
    serving = project.serving
    asked = {
        "root": str(storage.root),
        "model": project.project,
        "p99_ms": serving.slo.p99_ms,
        "max_rows": serving.batching.max_rows,
    }
    with warnings.catch_warnings():
        # It is to be replaced by an environment variable, which Ray 2.60 does not read yet.
        warnings.filterwarnings("ignore", "The `metrics_interval_s`", DeprecationWarning)
        return AutoscalingConfig(
            min_replicas=serving.replicas.min,
            initial_replicas=serving.replicas.initial,
            max_replicas=serving.replicas.max,
            metrics_interval_s=autoscaling.LOOK_S,
            look_back_period_s=LOOK_BACK * autoscaling.LOOK_S,
            upscale_delay_s=0.0,
            downscale_delay_s=0.0,
            policy=AutoscalingPolicy(  # type: ignore[no-untyped-call]
                policy_function=autoscaling.Policy, policy_kwargs=asked
            ),
        )


def watched(project: Project) -> tuple[float, float, float, dict[str, float]]:
    """The seconds of a window, the false alarms that may be, in so many seconds, how old sources may be."""
    monitoring, second = project.monitoring, MICROSECONDS["s"]
    allowed = monitoring.false_alarms
    limits = {name: source.checks.freshness for name, source in project.sources.items()}
    fresh_s = {name: limit / second for name, limit in limits.items() if limit is not None}
    return monitoring.window / second, allowed.max, allowed.per / second, fresh_s


def route(model: str) -> str:
    """The path below which a model answers."""
    return f"{PREFIX}/{model}"
