"""What `mlops-ray deploy --emit` writes: manifests for KubeRay 1.6, and a config for `serve deploy`.

Both name `application`, which makes on the cluster what `serve` would start. The state lies on a claim that
all pods mount at `HOME`, and the project file is there: what it names relative to itself is on the claim too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from ray import serve

from mlops_ray import config
from mlops_ray.cluster import loop, looper, meter, service, sizing
from mlops_ray.cluster.head import HTTP_PORT, of_nodes
from mlops_ray.cluster.meter import MACHINE, MARKET, SPOT
from mlops_ray.config import Project
from mlops_ray.errors import PolicyError, UsageError
from mlops_ray.expressions import SEARCH_PATH
from mlops_ray.monitoring import deltas
from mlops_ray.policy import HERE, REGION, allowed_regions, label_selector
from mlops_ray.serving import deploy, gateway, reconciler, replica
from mlops_ray.storage import Storage, digest

Document = dict[str, Any]

#: Where pods see the claim, and on it the project file.
HOME = "/mlops"
PROJECT_FILE = f"{HOME}/project.yaml"
#: Of a project file, what no replica is made of: a change of the rest alone starts none anew.
APART = ("training", "release", "cost")
#: KubeRay makes names longer by what it hangs on them; its own limit for a service is 47.
NAME_MAX = 40
#: A node takes minutes to come, where none is kept; one that is left for less would come again at once.
IDLE_S = 600
#: State of one project: histories, versions, logs. Claims can grow.
CLAIM = "50Gi"
#: What the agent of a node, and Ray's dashboard on the head, answer without a token.
NODE_LIVES, HEAD_LIVES = (52365, "/api/local_raylet_healthz"), (8265, "/api/gcs_healthz")
#: What HAProxy answers on a node where it runs and has a replica to send to.
SERVES = (HTTP_PORT, "/-/healthz")
#: By these names KubeRay makes services of them.
PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "serve": HTTP_PORT}
#: Who the image's user is, and owns the claim.
USER = 1000
ON_DEMAND = "on-demand"


@dataclass(frozen=True)
class Pool:
    """Nodes of a kind, so many at least and at most; a pod of it has a node of 8 CPUs and 32 GiB to itself.

    Kubernetes' own processes and its reserves keep the rest of the node.
    """

    least: int
    most: int
    cpus: int = 7
    memory: str = "26Gi"
    gpus: int = 0
    spot: bool = False
    priority: int = 0


#: As many as cluster.yaml has, for the reasons that stand there; the head has a node of 4 CPUs and 16 GiB.
HEAD = Pool(0, 0, cpus=3, memory="13Gi")
POOLS = {
    "cpu": Pool(2, 8),
    "spot": Pool(0, 8, spot=True, priority=1),
    "gpu": Pool(0, 4, gpus=1),
}


@dataclass(frozen=True)
class Place:
    """Where it is to run: the image of pods, the Redis that keeps the head's state, the region.

    `machines` are the types of nodes by pool, and for the head by `head`, where that is to be said.
    """

    image: str
    redis: str = "redis:6379"
    region: str | None = None
    machines: Mapping[str, str] = field(default_factory=dict)


def emitted(emit: str, file: Path, place: Place) -> dict[str, str]:
    """The text of each file that `--emit` asks for, by its name."""
    project, text = config.load(file), file.read_text(encoding="utf-8")
    match emit:
        case "kuberay":
            documents = kuberay(project, text, place)
        case "serve-config":
            documents = {"serve.yaml": serve_config(project, text, str(file.absolute()))}
        case _:
            raise UsageError(f"--emit: {emit!r} is neither kuberay nor serve-config")
    head = f'# Written by `mlops-ray deploy --emit {emit}`; see "On a cluster" in README.md.\n'
    return {name: head + _yaml(document) for name, document in documents.items()}


def application(args: Mapping[str, str]) -> serve.Application:
    """The application `name` of the project file `project`, made on the cluster that is to run it.

    With the reconciler's go the settings that it and others read from the storage.
    """
    project = config.load(args["project"])
    storage, name = Storage.open(project.storage), args["name"]
    selector = label_selector(source.policy for source in project.sources.values())
    if name == looper.APPLICATION:
        return looper.deployment(str(storage.root), selector)
    if name == reconciler.APPLICATION:
        _settle(project, storage)
    elif name == project.project:
        project = sizing.sized(project, storage, lambda: looper.machines(project)).project
    return deploy.applications(project, storage, selector, selector, None)[name].build()


def _settle(project: Project, storage: Storage) -> None:
    deploy.settle(project, storage)
    loop.settle(project, storage)
    meter.settle(project, storage)
    if project.serving.listen.url is not None:
        storage.write_json({"url": project.serving.listen.url}, service.ADDRESS)


def serve_config(project: Project, text: str, file: str) -> Document:
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
        reconciler.APPLICATION: said,
        project.project: {key: value for key, value in said.items() if key not in APART},
    }
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
                "args": {"project": file, "name": name}
                | ({"made_of": _short(made_of[name])} if name in made_of else {}),
            }
            for name, route in routes.items()
        ],
    }


def _short(document: Any) -> str:
    """Plain YAML has dates, which JSON lacks."""
    return digest(yaml.safe_dump(document))[:10]


def kuberay(project: Project, text: str, place: Place) -> dict[str, Document | list[Document]]:
    """The manifests by the names of their files; `text` is what the project file says.

    Raises `UsageError` for a project that a manifest cannot say, and `PolicyError` where rows may not be in
    the region.
    """
    name = project.project
    _require_sayable(project, place)
    said = f"{name}-{_short(text)}"  # of another name when it says something else: pods are then made anew
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": said}}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}}
    claimed = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": CLAIM}}}
    cluster = _cluster(name, said, place, NODE_LIVES)
    config_text = _yaml(serve_config(project, text, PROJECT_FILE))
    return {
        "storage.yaml": [claim | {"spec": claimed}, config_map | {"data": {Path(PROJECT_FILE).name: text}}],
        "raycluster.yaml": _of_ray("RayCluster", name, cluster),
        "rayjob.yaml": _of_ray(
            "RayJob",
            f"{name}-train",
            {
                "entrypoint": f"mlops-ray train {PROJECT_FILE}",
                "shutdownAfterJobFinishes": True,
                "backoffLimit": 1,  # once more, with another cluster
                "rayClusterSpec": cluster,
            },
        ),
        "rayservice.yaml": _of_ray(
            "RayService",
            name,
            {
                "serveConfigV2": config_text,
                "excludeHeadPodFromServeSvc": True,
                "rayClusterConfig": _cluster(name, said, place, SERVES),
            },
        ),
    }


def _require_sayable(project: Project, place: Place) -> None:
    if len(project.project) > NAME_MAX or not project.project[0].isalpha():
        raise UsageError(
            f"KubeRay wants names of {NAME_MAX} signs at most that begin with a letter, not {project.project}"
        )
    if project.include:
        raise UsageError("a project for Kubernetes is one file: write what it includes into it")
    if unknown := place.machines.keys() - {"head", *POOLS}:
        raise UsageError(f"--machine: no pool {min(unknown)!r}; there are head, {', '.join(POOLS)}")
    allowed = allowed_regions(source.policy for source in project.sources.values())
    if allowed is not None and place.region not in allowed:
        raise PolicyError(f"rows may be in {', '.join(allowed)} only: say which by --region")


def _of_ray(kind: str, name: str, spec: Document) -> Document:
    return {"apiVersion": "ray.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def _cluster(name: str, said: str, place: Place, ready: tuple[int, str]) -> Document:
    """A cluster whose workers take requests when `ready` answers."""
    password = {"valueFrom": {"secretKeyRef": {"name": f"{name}-redis", "key": "password"}}}
    head = _pod("ray-head", name, said, place, "head", HEAD, HEAD_LIVES)
    return {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token", "secretName": f"{name}-ray"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": IDLE_S},
        "gcsFaultToleranceOptions": {"redisAddress": place.redis, "redisPassword": password},
        # No task and no replica runs there.
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0"},
            "labels": _labels(place, "head", HEAD),
            "template": head,
        },
        "workerGroupSpecs": [
            {
                "groupName": pool,
                "replicas": kind.least,
                "minReplicas": kind.least,
                "maxReplicas": kind.most,
                "priority": kind.priority,
                "rayStartParams": {},
                "labels": _labels(place, pool, kind),
                "template": _pod("ray-worker", name, said, place, pool, kind, ready),
            }
            for pool, kind in POOLS.items()
        ],
    }


def _labels(place: Place, pool: str, kind: Pool) -> dict[str, str]:
    known = {REGION: place.region, "pool": pool, MACHINE: place.machines.get(pool)}
    labels = {name: value for name, value in known.items() if value is not None}
    return labels | {MARKET: SPOT if kind.spot else ON_DEMAND}


def _pod(
    container: str, name: str, said: str, place: Place, pool: str, kind: Pool, ready: tuple[int, str]
) -> Document:
    """A pod that is a node of Ray; it lies on a node of Kubernetes that is what its labels say."""
    environment = of_nodes() | {SEARCH_PATH: HOME} | ({HERE: place.region} if place.region else {})
    size: Document = {"cpu": kind.cpus, "memory": kind.memory} | (
        {"nvidia.com/gpu": kind.gpus} if kind.gpus else {}
    )
    wanted = {"topology.kubernetes.io/region": place.region} | {
        "node.kubernetes.io/instance-type": place.machines.get(pool)
    }
    file = {"mountPath": PROJECT_FILE, "name": "project", "subPath": Path(PROJECT_FILE).name}
    spec = {
        # Another pod is another node: a restarted one would be taken for the one that died.
        "restartPolicy": "Never",
        "securityContext": {"runAsNonRoot": True, "runAsUser": USER, "fsGroup": USER},
        "nodeSelector": {label: value for label, value in wanted.items() if value is not None},
        "containers": [
            {
                "name": container,
                "image": place.image,
                "env": [{"name": key, "value": value} for key, value in environment.items()],
                # What the project file names as ${VARIABLES}.
                "envFrom": [{"secretRef": {"name": f"{name}-env", "optional": True}}],
                "ports": [{"containerPort": number, "name": port} for port, number in PORTS.items()],
                "resources": {"requests": size, "limits": size},
                "readinessProbe": _probe(ready, 5),
                "livenessProbe": _probe(NODE_LIVES, 60),
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": [{"mountPath": HOME, "name": "state"}, file],
            }
        ],
        "volumes": [
            {"name": "state", "persistentVolumeClaim": {"claimName": name}},
            {"name": "project", "configMap": {"name": said}},
        ],
    }
    gpu = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return {"spec": spec | ({"tolerations": gpu} if kind.gpus else {})}


def _probe(answers: tuple[int, str], failures: int) -> Document:
    """Asked every two seconds: a front end that is gone is sent nothing after ten, a node that hangs ends."""
    port, path = answers
    return {"httpGet": {"port": port, "path": path}, "periodSeconds": 2, "failureThreshold": failures}


class _Lines(yaml.SafeDumper):
    """Text of several lines as it stands."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Lines.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def _yaml(documents: Document | list[Document]) -> str:
    several = documents if isinstance(documents, list) else [documents]
    return yaml.dump_all(several, Dumper=_Lines, sort_keys=False, width=100)
