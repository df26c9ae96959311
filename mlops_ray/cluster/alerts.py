"""Tries where the alerts of a project go, since nobody trusts a way that nothing ever came by."""

import time
from typing import Any

from mlops_ray.cluster import joined, service
from mlops_ray.config import Project
from mlops_ray.errors import ClusterError, UsageError
from mlops_ray.monitoring import alerts, sending
from mlops_ray.storage import Storage


def tried(project: Project, storage: Storage) -> list[dict[str, Any]]:
    """`{"route", "to", "works", "said"}` of each route that the project declares, over which a test was sent.

    Raises `UsageError` where it declares none.
    """
    declared = [alert.model_dump(exclude_none=True) for alert in project.monitoring.alerts]
    found = [_sent(route, project, storage) for route in sending.routes(declared)]
    found += [_scraped(project, storage)] if any(alert.get("prometheus") for alert in declared) else []
    if not found:
        raise UsageError(
            "monitoring.alerts of the project file names no route that is on, e.g. - {log: true}"
        )
    return found


def _sent(route: sending.Route, project: Project, storage: Storage) -> dict[str, Any]:
    now = time.time()
    base = project.serving.listen.url or (storage.read_json(service.ADDRESS) or {}).get("url", "")
    message = alerts.message([alerts.trial(project.project, now)], base, now)
    try:
        sending.send(route, message)
    except Exception as error:  # noqa: BLE001 - whatever it is, is what is to be known
        return _outcome(route.kind, route.shown(), f"not taken: {sending.reason(error)}", works=False)
    if route.kind == "log":
        return _outcome(route.kind, "this command's stderr; the service's: its monitor's", "written")
    return _outcome(route.kind, route.shown(), "taken")


def _scraped(project: Project, storage: Storage) -> dict[str, Any]:
    """Prometheus asks by itself; whether there is something to be asked."""
    cluster = joined.found(project, storage)
    if cluster is None:
        said = "the service does not run: nothing answers there"
        return _outcome("prometheus", "/metrics", said, works=False)
    place = f"http://{cluster.host}:{cluster.http_port}/metrics"
    try:
        service.fetched(place, storage, service.STATUS_TIMEOUT_S)
    except ClusterError as error:
        return _outcome("prometheus", place, str(error), works=False)
    said = "it answers; that it is asked, Prometheus itself says (Status, Targets)"
    return _outcome("prometheus", place, said)


def _outcome(route: str, to: str, said: str, *, works: bool = True) -> dict[str, Any]:
    return {"route": route, "to": to, "works": works, "said": said}
