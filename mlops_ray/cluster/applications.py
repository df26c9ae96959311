"""What runs on a cluster, said as a config for `serve deploy`: the applications that `deploy` starts itself.

The config names them; `application` makes them, on the cluster, from the project file that is there.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from ray import serve

from mlops_ray import audit, config, placement
from mlops_ray.cluster import loop, looper, meter, service, sizing
from mlops_ray.cluster.head import HTTP_PORT
from mlops_ray.config import Project
from mlops_ray.errors import StorageError
from mlops_ray.expressions import SEARCH_PATH
from mlops_ray.monitoring import deltas
from mlops_ray.policy import label_selector, require_stores
from mlops_ray.serving import deploy, gateway, reconciler, replica
from mlops_ray.storage import Storage, digest

logger = logging.getLogger(__name__)

#: Of a project file, what no replica is made of: a change of these alone starts none anew.
APART = ("training", "release", "cost")


def application(args: Mapping[str, str]) -> serve.Application:
    """The application `name` of the project file `project`.

    With the reconciler's go the settings that it and others read from the storage.
    """
    project = config.load(args["project"])
    storage, name = Storage.open(project.storage), args["name"]
    placement.require(project.policies)
    require_stores(project, is_shared=True)
    selector = label_selector(project.policies)
    if name == looper.APPLICATION:
        return looper.deployment(str(storage.root), selector)
    if name == reconciler.APPLICATION:
        _settle(project, storage)
    elif name == gateway.APPLICATION:
        # The config is the whole cluster's, whatever ran there before.
        deploy.claim(storage)
    elif name == project.project:
        project = _sized(project, storage)
        if name in serve.status().applications:
            project = deploy.begun(project)
    return deploy.applications(project, storage, selector, selector, None)[name].build()


def _sized(project: Project, storage: Storage) -> Project:
    return sizing.sized(project, storage, lambda: looper.machines(project)).project


def _settle(project: Project, storage: Storage) -> None:
    about = {"model": project.project, "started": ["serve deploy"]}
    try:
        audit.settle(storage, project.project, project.audit.heads)
        audit.append(storage, "a model is served", audit.who(), about, is_done=True)
    except StorageError as error:
        # Serve builds it again when a head has died: nobody who waits for answers is to wait for a disk.
        logger.error("%s", error)
    deploy.settle(project, storage)
    loop.settle(project, storage)
    meter.settle(_sized(project, storage), storage)
    if project.serving.listen.url is not None:
        storage.write_json({"url": project.serving.listen.url}, service.ADDRESS)


def serve_config(project: Project, text: str, file: str) -> dict[str, Any]:
    """What `serve deploy` takes; `text` is what the project file says, `file` its path on the cluster.

    Serve makes an application anew when its arguments are others: the model's when what its replicas are made
    of is, and for any change the reconciler's, which costs no request.
    """
    said = yaml.safe_load(text)
    routes = {
        reconciler.APPLICATION: None,
        deltas.APPLICATION: None,
        gateway.APPLICATION: gateway.ROUTE,
        project.project: replica.route(project.project),
    }
    if loop.Settings.of(project) is not None or project.cost.prices is not None:
        routes[looper.APPLICATION] = None
    made_of = {
        reconciler.APPLICATION: {"made_of": short(said)},
        project.project: {"made_of": short({k: v for k, v in said.items() if k not in APART})},
    }
    # Functions of the project's own stand beside its file.
    found = {"runtime_env": {"env_vars": {SEARCH_PATH: str(Path(file).parent)}}} if project.functions else {}
    return {
        # Whichever node a request comes to has a front end.
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": HTTP_PORT},  # noqa: S104 - in the cluster's own network
        "logging_config": dict(replica.LOGGING),
        "applications": [
            {
                "name": name,
                "route_prefix": route,
                "import_path": f"{__name__}:{application.__name__}",
                "args": {"project": file, "name": name, **made_of.get(name, {})},
                **found,
            }
            for name, route in routes.items()
        ],
    }


def short(document: Any) -> str:
    """A digest of plain YAML, which knows dates."""
    return digest(yaml.safe_dump(document))[:10]
