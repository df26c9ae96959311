"""What `mlops-ray deploy --emit` writes: manifests for KubeRay, or the config of applications.py.

The state lies on a claim that all pods mount at `HOME`, and the project file is there: what it names relative
to itself is on the claim too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from mlops_ray import config
from mlops_ray.cluster.applications import serve_config, short
from mlops_ray.cluster.head import HTTP_PORT, of_nodes
from mlops_ray.cluster.meter import MACHINE, MARKET, SPOT
from mlops_ray.cluster.node import MACHINES
from mlops_ray.config import Project
from mlops_ray.errors import PolicyError, UsageError
from mlops_ray.expressions import SEARCH_PATH
from mlops_ray.policy import HERE, REGION, allowed_regions, require_stores

Document = dict[str, Any]

#: The first KubeRay that knows all that manifests say: a worker group's priority came with it.
VERSION = "1.7"
#: Where pods see the claim, and on it the project file.
HOME, FILE = "/mlops", "project.yaml"
#: KubeRay makes names longer by what it hangs on them; its own limit for a service is 47.
NAME_MAX = 40
#: A node takes minutes to come: one that went in less would have to come again.
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
GPU, ON_DEMAND = "nvidia.com/gpu", "on-demand"


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
    market: str = ON_DEMAND
    priority: int = 0


#: As many as cluster.yaml has, for the reasons that stand there; the head has a node of 4 CPUs and 16 GiB.
HEAD = Pool(0, 0, cpus=3, memory="13Gi")
POOLS = {"cpu": Pool(2, 8), "spot": Pool(0, 8, market=SPOT, priority=1), "gpu": Pool(0, 4, gpus=1)}


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
    how = f"`mlops-ray deploy --emit {emit}`"
    match emit:
        case "kuberay":
            how += f" for KubeRay {VERSION}"
            documents = manifests(project, text, place)
        case "serve-config":
            require_stores(project, is_shared=True)
            documents = {"serve.yaml": [serve_config(project, text, str(file.absolute()))]}
        case _:
            raise UsageError(f"--emit: {emit!r} is neither kuberay nor serve-config")
    head = f"# Written by {how}; see docs/cluster.md.\n"
    return {name: head + _yaml(of) for name, of in documents.items()}


def manifests(project: Project, text: str, place: Place) -> dict[str, list[Document]]:
    """The manifests by the names of their files; `text` is what the project file says.

    Raises `UsageError` for a project that a manifest cannot say, and `PolicyError` where rows may not be in
    the region.
    """
    _require_sayable(project, place)
    name = project.project
    said = f"{name}-{short(text)}"  # of another name when it says something else: pods are then made anew
    cluster, serving = _Cluster(name, said, place, NODE_LIVES), _Cluster(name, said, place, SERVES)
    job = {
        "entrypoint": f"mlops-ray train {HOME}/{FILE}",
        "shutdownAfterJobFinishes": True,
        "backoffLimit": 1,  # once more, with another cluster
        "rayClusterSpec": cluster.spec(),
    }
    service = {
        "serveConfigV2": _yaml([serve_config(project, text, f"{HOME}/{FILE}")]),
        "excludeHeadPodFromServeSvc": True,
        "rayClusterConfig": serving.spec(),
    }
    claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": CLAIM}}}
    return {
        "storage.yaml": [
            _manifest("v1", "PersistentVolumeClaim", name, spec=claim),
            _manifest("v1", "ConfigMap", said, data={FILE: text}),
        ],
        "raycluster.yaml": [_manifest("ray.io/v1", "RayCluster", name, spec=cluster.spec())],
        "rayjob.yaml": [_manifest("ray.io/v1", "RayJob", f"{name}-train", spec=job)],
        "rayservice.yaml": [_manifest("ray.io/v1", "RayService", name, spec=service)],
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
    allowed = allowed_regions(project.policies)
    if allowed is not None and place.region not in allowed:
        raise PolicyError(f"rows may be in {', '.join(allowed)} only: say which by --region")
    require_stores(project, is_shared=True)


@dataclass(frozen=True)
class _Cluster:
    """A cluster for a project, which the ConfigMap `said` has; workers take requests when `ready` answers."""

    name: str
    said: str
    place: Place
    ready: tuple[int, str]

    def spec(self) -> Document:
        password = {"valueFrom": {"secretKeyRef": {"name": f"{self.name}-redis", "key": "password"}}}
        return {
            "rayVersion": version("ray"),
            "authOptions": {"mode": "token", "secretName": f"{self.name}-ray"},
            "enableInTreeAutoscaling": True,
            "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": IDLE_S},
            "gcsFaultToleranceOptions": {"redisAddress": self.place.redis, "redisPassword": password},
            # No task and no model's replica runs there.
            "headGroupSpec": {
                "rayStartParams": {"num-cpus": "0"},
                **self._group("head", HEAD, "ray-head", HEAD_LIVES),
            },
            "workerGroupSpecs": [
                {
                    "groupName": pool,
                    "replicas": kind.least,
                    "minReplicas": kind.least,
                    "maxReplicas": kind.most,
                    "priority": kind.priority,
                    "rayStartParams": {},
                    **self._group(pool, kind, "ray-worker", self.ready),
                }
                for pool, kind in POOLS.items()
            ],
        }

    def _group(self, pool: str, kind: Pool, container: str, ready: tuple[int, str]) -> Document:
        """Pods that are nodes of Ray, on nodes of Kubernetes that are what the labels say."""
        region, machine = self.place.region, self.place.machines.get(pool)
        known = {"topology.kubernetes.io/region": region, "node.kubernetes.io/instance-type": machine}
        spec = {
            # Another pod is another node: a restarted one would be taken for the one that died.
            "restartPolicy": "Never",
            "securityContext": {"runAsNonRoot": True, "runAsUser": USER, "fsGroup": USER},
            "nodeSelector": _known(known),
            "tolerations": [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}] * min(kind.gpus, 1),
            "containers": [self._container(container, kind, ready)],
            "volumes": [
                {"name": "state", "persistentVolumeClaim": {"claimName": self.name}},
                {"name": "project", "configMap": {"name": self.said}},
            ],
        }
        labels = _known({REGION: region, "pool": pool, MACHINE: machine, MARKET: kind.market})
        return {"labels": labels, "template": {"spec": spec}}

    def _container(self, name: str, kind: Pool, ready: tuple[int, str]) -> Document:
        types = {machine for pool, machine in self.place.machines.items() if pool != "head"}
        told = _known({HERE: self.place.region, MACHINES: ",".join(sorted(types)) or None})
        environment = of_nodes() | {SEARCH_PATH: HOME} | told
        size = _known({"cpu": kind.cpus, "memory": kind.memory, GPU: kind.gpus or None})
        return {
            "name": name,
            "image": self.place.image,
            "env": [{"name": key, "value": value} for key, value in environment.items()],
            # What the project file names as ${VARIABLES}.
            "envFrom": [{"secretRef": {"name": f"{self.name}-env", "optional": True}}],
            "ports": [{"containerPort": number, "name": port} for port, number in PORTS.items()],
            "resources": {"requests": size, "limits": size},
            # A front end that is gone is sent nothing after ten seconds; one that hangs two minutes ends.
            "readinessProbe": _probe(ready, failures=5),
            "livenessProbe": _probe(NODE_LIVES, failures=60),
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [
                {"mountPath": HOME, "name": "state"},
                {"mountPath": f"{HOME}/{FILE}", "name": "project", "subPath": FILE},
            ],
        }


def _known(said: Mapping[str, Any]) -> Document:
    return {name: value for name, value in said.items() if value is not None}


def _probe(answers: tuple[int, str], failures: int) -> Document:
    port, path = answers
    return {"httpGet": {"port": port, "path": path}, "periodSeconds": 2, "failureThreshold": failures}


def _manifest(api: str, kind: str, name: str, **rest: Document) -> Document:
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name}, **rest}


class _Lines(yaml.SafeDumper):
    """Text of several lines as it stands, and nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Lines, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Lines.add_representer(str, _text)


def _yaml(documents: list[Document]) -> str:
    return yaml.dump_all(documents, Dumper=_Lines, sort_keys=False, width=100)
