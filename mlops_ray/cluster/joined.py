"""The cluster whose job this process is, if it is one: commands then use it, and start none of their own.

A job is told by `RAY_ADDRESS`, which Ray sets for a job's command, and people on a node may (`auto`). What
the environment says of Ray, its token above all, is the nodes' there, and left as it is.
"""

import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlops_ray.cluster import head, local
from mlops_ray.cluster.local import NAMESPACE, LocalCluster
from mlops_ray.config import File, Policy, Project, local_path
from mlops_ray.errors import ClusterError, ConfigError, PolicyError, StorageError, one_line
from mlops_ray.expressions import SEARCH_PATH
from mlops_ray.policy import REGION, allowed_regions, require_stores
from mlops_ray.storage import Storage

#: Where Ray keeps what was uploaded with a job, on each node for as long as somebody uses it.
UPLOADS = "runtime_resources"
#: A worker starts within seconds, many times that on a busy machine.
LOOK_S = 60.0
ANY = "0.0.0.0"  # noqa: S104 - is asked for; what is bound is the project's word
#: Without these, set on all nodes before Ray starts, Serve is another one than ours.
NEEDED = tuple(name for name in head.SETTINGS if name.startswith("RAY_SERVE_"))


def address(environ: Mapping[str, str] = os.environ) -> str | None:
    """Where this process' cluster is; `None` where it is of none.

    >>> address({"RAY_ADDRESS": "10.0.0.5:6379"}), address({"RAY_ADDRESS": "http://head:8265"}), address({})
    ('10.0.0.5:6379', None, None)
    """
    said = environ.get("RAY_ADDRESS", "")
    if said.startswith("ray://"):
        raise ClusterError(f"{said} (RAY_ADDRESS) takes no commands: run them as jobs, mlops-ray submit -- …")
    # By http jobs are submitted, and nothing else.
    return said if said and "://" not in said else None


def settle() -> None:
    """Sets what a process must have set before it imports ray to be a driver of a cluster of ours.

    On a cluster that others started, only that nothing is told to the makers of Ray and MLflow.
    """
    os.environ.update(head.SETTINGS if address() is None else head.SILENT)


def is_missing(storage: Storage) -> bool:
    """Whether a command on this storage has no cluster, and starts one."""
    return address() is None and local.find(storage.root) is None


def found(project: Project, storage: Storage) -> LocalCluster | None:
    """The cluster for commands on this storage: the one whose job this is, connected, else this machine's."""
    here, recorded = address(), local.recorded(storage.root)
    if here is None or (recorded is not None and recorded.address == here):
        return local.find(storage.root)
    return _joined(here, project, storage)


def require_lasting(project: Project) -> None:
    """Raises `ConfigError` where what is to last lies in the upload of this job, which goes with it; and
    `PolicyError` where rows do that are bound to regions, before this job has it on any other node.
    """
    if address() is None:
        return
    for name, source in project.sources.items():
        if source.policy.allowed_regions is not None and any(map(_is_uploaded, source.inputs)):
            raise PolicyError(
                f"rows of the source {name!r} may be in {', '.join(source.policy.allowed_regions)} only, and"
                " came with this job, whose upload Ray copies to nodes whatever their region: put them into a"
                " folder that the nodes see which may have them"
            )
    if UPLOADS in Path(project.storage).resolve().parts:
        raise ConfigError(
            f"{project.storage} is a copy for this job on one node, and would be lost with it: name a folder"
            " that every node sees, e.g. storage: /mnt/shared/" + project.project,
            file=project.file,
            at=("storage",),
        )
    if project.monitoring.retrain is not None and UPLOADS in Path(project.file or "").resolve().parts:
        raise ConfigError(
            "a retraining reads this file when the job is over, and its upload gone: put it, and what it"
            " names, into a folder that every node sees",
            file=project.file,
            at=("monitoring", "retrain"),
        )


def _is_uploaded(file: File) -> bool:
    path = local_path(file.path or file.sql.connection, Path())  # type: ignore[union-attr] # one of both is said
    return path is not None and UPLOADS in path.resolve().parts


def require_serving(project: Project, cluster: LocalCluster) -> None:
    """Raises `ClusterError` and `ConfigError` where a cluster that is not ours cannot serve as we do."""
    if cluster.marker:
        return
    listen = project.serving.listen
    if listen.port not in (None, cluster.http_port):
        raise ClusterError(
            f"Serve runs there on port {cluster.http_port}: for port {listen.port}, stop it"
            " (mlops-ray down, as a job), and run again"
        )
    _require_settings(cluster)
    if listen.certificate is not None:
        raise ConfigError(
            "on a cluster TLS ends in what stands in front of it, a load balancer or an ingress: leave out"
            " certificate and key, and say tls: elsewhere",
            file=project.file,
            at=("serving", "listen"),
        )
    if listen.host != ANY and not cluster.host.startswith("127."):
        raise ConfigError(
            f"{listen.host} lets no other node of the cluster in, and replicas run on any: say"
            f" {{host: {ANY}, tls: elsewhere}}, and keep all but what is in front of it out",
            file=project.file,
            at=("serving", "listen"),
        )
    if (at := _serves_at()) is not None and at.host != listen.host:
        raise ClusterError(
            f"Serve listens there on {at.host}: for {listen.host}, stop it (mlops-ray down, as a job), and"
            " run again"
        )


def require_lending(project: Project, cluster: LocalCluster) -> None:
    """Raises as `require_serving` where a load test's replicas cannot answer there, or a service would not.

    Where Serve lets all nodes in already it does so for them too, whatever the project file says of callers.
    """
    if cluster.marker:
        return
    if (at := _serves_at()) is not None and at.host == ANY:
        _require_settings(cluster)
    else:
        require_serving(project, cluster)


def _require_settings(cluster: LocalCluster) -> None:
    lacking = [f"{name}={head.SETTINGS[name]!r}" for name in NEEDED if name not in os.environ]
    if lacking:
        raise ClusterError(
            f"the nodes at {cluster.address} were started without {', '.join(lacking)}: Serve reads them when"
            " it starts, set them before `ray start` on every node (cluster.yaml does)"
        )


def binds(project: Project, cluster: LocalCluster) -> str:
    """The address at which Serve listens on a cluster, or will when it starts."""
    if cluster.marker:
        return head.LOOPBACK
    at = _serves_at()
    return str(at.host) if at is not None else project.serving.listen.host


def _serves_at() -> Any:
    """Host and port of Serve's front end on the connected cluster; `None` where Serve does not run yet."""
    from ray import serve

    client = serve.context._get_global_client(raise_if_no_controller_running=False)
    return client.http_config if client is not None else None


def _joined(at: str, project: Project, storage: Storage) -> LocalCluster:
    import ray

    from mlops_ray import placement

    # Python functions of the project stand beside its file.
    beside = {name: os.environ[name] for name in (SEARCH_PATH,) if name in os.environ}
    try:
        context: Any = ray.init(
            at,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.WARNING,
            runtime_env={"env_vars": beside} if beside else None,
            ignore_reinit_error=True,
        )
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ClusterError(f"cannot join the cluster at {at} (RAY_ADDRESS): {one_line(error)}") from error
    beyond = others(project.policies)
    require_stores(project, is_shared=bool(beyond) or placement.grows())
    require_seen(storage.root, beyond)
    listen, serves = project.serving.listen, _serves_at()
    gcs = context.address_info["gcs_address"]
    return LocalCluster(
        marker="",
        pid=0,
        address=gcs,
        dashboard=f"http://{context.dashboard_url}",
        http_port=serves.port if serves else listen.front_port or listen.port or head.HTTP_PORT,
        environment={},
        temp_dir="",
        host=gcs.rsplit(":", 1)[0],
    )


def others(policies: Iterable[Policy]) -> dict[str, str]:
    """The ids of the connected cluster's nodes that may work on such data, but for this one, by address."""
    import ray

    from mlops_ray import placement

    regions, here = allowed_regions(policies), ray.get_runtime_context().get_node_id()
    return {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in placement.living({})
        if node["NodeID"] != here
        if regions is None or node["Labels"].get(REGION) in regions
    }


def require_seen(folder: Path, nodes: Mapping[str, str]) -> None:
    """Raises `StorageError` where one of these nodes, addresses by ids, does not see what lies there.

    Of a node that is gone by then nothing is asked: no work comes to it.
    """
    if not nodes:
        return
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    from mlops_ray import placement

    def sees(id: str, answer: Any) -> bool:
        try:
            return bool(ray.get(answer, timeout=LOOK_S))
        except (TimeoutError, ray.exceptions.RayError) as error:
            if all(node["NodeID"] != id for node in placement.living({})):
                return True
            raise ClusterError(
                f"{nodes[id]} does not say whether it sees {folder}: {one_line(error)}"
            ) from error

    with tempfile.NamedTemporaryFile(dir=folder, prefix=".seen-") as file:
        look: Any = ray.remote(num_cpus=0)(lambda path: os.path.exists(path))
        asked = {id: look.options(scheduling_strategy=On(id, soft=False)).remote(file.name) for id in nodes}
        blind = [nodes[id] for id, answer in asked.items() if not sees(id, answer)]
    if blind:
        raise StorageError(
            f"{', '.join(sorted(blind))} do not see the storage {folder}: mount it on every node, under the"
            " same path"
        )
