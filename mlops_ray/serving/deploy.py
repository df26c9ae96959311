"""Makes a project's model, its monitor and the gateway run on the connected cluster.

What runs is started anew only where code, resources or settings differ, since a deployment replaces all its
replicas. Which version answers is no matter of deployment: see `reconciler`.
"""

import contextlib
import hashlib
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ray
from ray import serve
from ray.experimental import internal_kv
from ray.serve.schema import ApplicationStatus

import mlops_ray
from mlops_ray import placement
from mlops_ray.config import Policy, Project
from mlops_ray.errors import ClusterError, PolicyError, StorageError
from mlops_ray.features.shelves import online_location, shown
from mlops_ray.monitoring import deltas, monitor
from mlops_ray.policy import allowed_regions, label_selector, machine_only
from mlops_ray.registry import estimator, signing
from mlops_ray.serving import gateway, reconciler, record, replica
from mlops_ray.serving.routes import READY
from mlops_ray.serving.rpc import Listener
from mlops_ray.storage import Storage, digest

#: What was deployed, by application, with the digest of what it was made of.
DEPLOYED = "deployed.json"
#: Where Ray's store says what is ours, and there, the storage whose service the cluster runs.
SPACE, OWNER = b"mlops_ray", b"service"
#: A replica loads in seconds; a machine that is busy training may take many times that.
READY_S = 120.0
POLL_S = 0.1
#: What stands for Serve's front end among applications: no project may be called so.
FRONT = ""
ANSWER_S = 2.0
#: What Serve says of a deployment that is as it should be.
HEALTHY = "HEALTHY"


@dataclass(frozen=True)
class Deployed:
    """What `deploy` did: the service's address, and the applications that it started, if any."""

    url: str
    started: tuple[str, ...]


def deploy(
    project: Project,
    storage: Storage,
    *,
    http_port: int,
    host: str = "127.0.0.1",
    reached: str = "127.0.0.1",
    listener: Listener | None = None,
    beside: Mapping[str, Callable[[str, dict[str, str]], serve.Application]] = MappingProxyType({}),
) -> Deployed:
    """Makes the model, the monitor and the gateway run on the connected cluster, and waits until they answer.

    Starts an application only where its digest of code, resources and settings differs from what runs. The
    model must have a champion, or a version of it was pushed, which is released first. Serve listens on
    `host`, and is asked at `reached`. `listener` is where the gateway speaks gRPC; `beside` are applications
    without a route that look after all models, each made from the storage and the labels of where it may run.
    Raises `ClusterError` where something does not come up, no node is large enough, or the first version is
    refused, or another storage's service runs there, `PolicyError` where no place is allowed for all models.
    """
    require_ours(storage)
    if project.project not in record.names(storage):
        raise StorageError(f"{project.project!r} has no version to serve; mlops-ray run trains one")
    settle(project, storage)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(http_options={"host": host, "port": http_port}, logging_config=replica.LOGGING)
    deployed, regions = _deployed(storage), _regions(project, storage)
    of_all, root = _selector_of_all(regions), str(storage.root)
    size, running = project.serving.resources, _running()
    placement.require_room(of_all | size.labels, {"CPU": size.cpu, "GPU": size.gpu})
    if project.project in running:
        project = begun(project)
    # What some model may not leave no other's replica draws its requests out of.
    wanted = applications(project, storage, of_all, of_all, listener)
    for name, build in beside.items():
        wanted[name] = Application(None, _digest(root, of_all), partial(build, root, of_all))
    known = deployed.get("digests", {})
    storage.write_json({"cluster": _cluster(), "digests": known, "regions": regions}, DEPLOYED)
    _require_fronts(label_selector(project.policies))
    claim(storage)
    changed = [name for name, app in wanted.items() if name not in running or known.get(name) != app.digest]
    _run({name: wanted[name] for name in changed})
    digests = known | {name: app.digest for name, app in wanted.items()}
    storage.write_json({"cluster": _cluster(), "digests": digests, "regions": regions}, DEPLOYED)
    url = f"http://{reached}:{http_port}"
    for path in (f"{replica.route(project.project)}/ready", READY):
        _wait_until_ready(url + path, lambda: _hopeless(storage, project.project))
    return Deployed(url, tuple(changed))


def require_ours(storage: Storage) -> None:
    """Raises `ClusterError` where the service that runs on the connected cluster is another storage's.

    Two cannot share it: each would have the gateway, the monitor and the reconciler to itself.
    """
    if gateway.APPLICATION not in serve.status().applications:
        return
    other = (internal_kv._internal_kv_get(OWNER, namespace=SPACE) or b"").decode()
    if other not in ("", _place(storage)):
        raise ClusterError(
            f"the service that runs on this cluster is that of the storage {other}, and a cluster runs one:"
            " mlops-ray down with a project file of that storage stops it; a project that says"
            f" storage: {other} too is served beside it, and any other wants a cluster of its own"
        )


def claim(storage: Storage) -> None:
    """Has the connected cluster know that the service which starts on it is this storage's."""
    internal_kv._internal_kv_put(OWNER, _place(storage).encode(), namespace=SPACE)


def _place(storage: Storage) -> str:
    return str(storage.root.resolve())


def begun(project: Project) -> Project:
    """A project whose model runs already: Serve keeps as many replicas as there are, and starts with none."""
    serving = project.serving
    replicas = serving.replicas.model_copy(update={"initial": None})
    return project.model_copy(update={"serving": serving.model_copy(update={"replicas": replicas})})


def where(project: Project, storage: Storage) -> dict[str, str]:
    """The labels of nodes on which a model's replicas may run beside those of this storage's other models."""
    return _selector_of_all(_regions(project, storage))


@contextlib.contextmanager
def lent(
    name: str, route: str, build: Callable[[], serve.Application], *, http_port: int, host: str, reached: str
) -> Iterator[str]:
    """Runs an application for the block beside what runs on the connected cluster; yields its address.

    Serve stays, and listens on `host`, as for whatever is deployed next; it is asked at `reached`. Raises
    `ClusterError` where the application does not come up.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(http_options={"host": host, "port": http_port}, logging_config=replica.LOGGING)
    url = f"http://{reached}:{http_port}{route}"
    try:
        _run({name: Application(route, "", build)})
        _wait_until_ready(f"{url}/ready", lambda: None)
        yield url
    finally:
        serve.delete(name)


def forget(name: str) -> None:
    """Ends an application of the connected cluster, where it runs; returns when nothing of it does."""
    if name in serve.status().applications:
        serve.delete(name)


def settle(project: Project, storage: Storage) -> None:
    """Has the reconciler load and tell as the project file says now; before a version is pushed with it."""
    settings = record.Settings(
        tracking_uri(project, storage),
        online_location(project, storage),
        tuple(sorted(project.functions)),
        tuple(sorted(signing.trusted(project, storage))),
        tuple(sorted(estimator.allowed(project))),
        tuple(hook.model_dump() for hook in project.release.hooks),
        tuple(alert.model_dump() for alert in project.monitoring.alerts),
        project.serving.slo.error_rate,
        project.serving.explain == "on_request",
    )
    record.settle(storage, project.project, settings)


def tracking_uri(project: Project, storage: Storage) -> str:
    """Where runs and versions are recorded: MLflow's address, by default a file of the storage."""
    return project.tracking or f"sqlite:///{storage.path('mlflow.db')}"


def _hopeless(storage: Storage, name: str) -> str | None:
    """Why there will be nothing to serve; `None` where there is a version, or one is on its way."""
    if record.asked(storage, name):
        return None
    document = record.read(storage, name) or record.new(name)
    if document["champion"] or document["challenger"]:
        return None
    last = document["history"][-1:] or [{"version": "none", "state": "there", "reason": ""}]
    return "version {version} is {state}: {reason}".format(**last[0])


@dataclass(frozen=True)
class Application:
    """What is to run: where it answers, if anywhere, a digest of what it is made of, and what makes it."""

    route: str | None
    digest: str
    build: Callable[[], serve.Application]


def _regions(project: Project, storage: Storage) -> dict[str, list[str] | None]:
    """The regions of each model that was deployed, and of this one."""
    own = {project.project: allowed_regions(project.policies)}
    return dict(_deployed(storage).get("regions", {})) | own


def _selector_of_all(regions: Mapping[str, list[str] | None]) -> dict[str, str]:
    """Where the monitor and the gateway may run, which see what is derived from the rows of all models."""
    bounded = [Policy(allowed_regions=tuple(names)) for names in regions.values() if names is not None]
    if bounded and not allowed_regions(bounded):
        raise PolicyError(
            f"the models {', '.join(sorted(regions))} share this storage, and there is no region in which all"
            " of them may be; give each border a storage of its own"
        )
    return label_selector(bounded)


def applications(
    project: Project,
    storage: Storage,
    selector: dict[str, str],
    of_all: dict[str, str],
    listener: Listener | None,
) -> dict[str, Application]:
    """What is to run. The order is that of starting: replicas tell the monitor what they count."""
    hidden = machine_only(project)
    root, name = str(storage.root), project.project
    # Where callers come in is no matter of a replica, nor with how many it began.
    serving = project.serving.model_dump(mode="json", exclude={"listen": True, "replicas": {"initial"}})
    watched = replica.watched(project)
    listens, alike = listener and asdict(listener), _digest(root, of_all)
    return {
        reconciler.APPLICATION: Application(None, alike, lambda: reconciler.deployment(root, of_all)),
        deltas.APPLICATION: Application(None, alike, lambda: monitor.deployment(root, of_all)),
        gateway.APPLICATION: Application(
            gateway.ROUTE, _digest(root, of_all, listens), lambda: gateway.deployment(root, of_all, listener)
        ),
        name: Application(
            replica.route(name),
            _digest(
                root,
                name,
                serving,
                watched,
                selector,
                sorted(hidden),
                shown(project.online or ""),
                sorted(project.functions),
                sorted(signing.trusted(project, storage)),
                sorted(estimator.allowed(project)),
            ),
            lambda: replica.deployment(project, storage, selector, hidden),
        ),
    }


def _run(applications: dict[str, Application]) -> None:
    if not applications:
        return
    targets = [
        serve.RunTarget(app.build(), name=name, route_prefix=app.route) for name, app in applications.items()
    ]
    try:
        serve.run_many(targets)
    except (RuntimeError, ray.exceptions.RayError) as error:
        raise ClusterError(f"the service does not start: {_why(applications) or error}") from error


def _why(applications: Iterable[str]) -> str:
    """The last lines of what Serve says of deployments that did not come up."""
    found = serve.status().applications
    messages = [
        f"{name}: {deployment.message.strip().splitlines()[-1]}"
        for name in applications
        if name in found
        for deployment in found[name].deployments.values()
        if deployment.status != HEALTHY and deployment.message.strip()
    ]
    return "; ".join(messages)


def _running() -> set[str]:
    applications = serve.status().applications
    return {name for name, app in applications.items() if app.status == ApplicationStatus.RUNNING}


def nodes() -> list[tuple[str, str]]:
    """Of each process of each application, and of Serve's front end (`FRONT`), the id of its node."""
    details = serve.context._get_global_client().get_serve_details()  # type: ignore[union-attr]
    found = [(FRONT, id) for id in details["proxies"]]
    for name, application in details["applications"].items():
        found += [(name, node) for node, _ in placement.replicas(application)]
    return found


def _require_fronts(selector: Mapping[str, str]) -> None:
    """Raises `PolicyError` where Serve's front end is on a node that may not pass these requests on.

    It is on the head, and wherever some replica runs.
    """
    allowed = {node["NodeID"] for node in placement.living(selector)}
    for node in placement.named(id for name, id in nodes() if name == FRONT and id not in allowed):
        raise PolicyError(
            f"the front end on the node {node['address']} would pass requests on, and rows may not be there:"
            " replicas of other models run on it. Serve those again (mlops-ray serve), which moves them to"
            " the same regions, and then this, half a minute later; or give each border a cluster of its own"
        )


def _digest(*settings: Any) -> str:
    return digest([code_digest(), *settings])


@lru_cache(maxsize=1)
def code_digest() -> str:
    """The digest of the package's code: a deployment runs what was there when it started."""
    digest = hashlib.sha256()
    folder = Path(mlops_ray.__file__).parent
    for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.html")]):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _deployed(storage: Storage) -> dict[str, Any]:
    """The digests of what this cluster runs, and where its models may be; of another cluster nothing."""
    document = storage.read_json(DEPLOYED)
    return document if document and document.get("cluster") == _cluster() else {}


def _cluster() -> str:
    """Identifies the cluster: its head's id is new with every start."""
    heads = [node["NodeID"] for node in ray.nodes() if placement.HEAD in node["Resources"]]  # type: ignore[no-untyped-call]
    return str(min(heads, default=""))


def _wait_until_ready(url: str, hopeless: Callable[[], str | None]) -> None:
    """Until HAProxy knows the replicas, and they hold a champion; running they are already."""
    end = time.monotonic() + READY_S
    while not _answers(url):
        if (said := hopeless()) is not None:
            raise ClusterError(f"nothing goes live: {said}")
        if time.monotonic() > end:
            raise ClusterError(f"{url} does not answer after {READY_S:.0f} s; see Serve's log")
        time.sleep(POLL_S)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_S) as reply:  # noqa: S310 - our own http address
            return bool(reply.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False
