"""Where work may run: the connected cluster's nodes by their labels, those that are there and may come.

Ray lets what no node may run wait, for ever and in silence; whoever asks here first is told at once. And it
tells nobody which types of nodes its autoscaler knows: `get_max_resources_from_cluster_config` of
ray/_private/state.py reads what no autoscaler of Ray writes. So it is asked for a node as trials will ask, by
a placement group; each of its turns it says which of those that wait no type of node could hold.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import ray
from ray.core.generated import autoscaler_pb2
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from mlops_ray.config import Policy
from mlops_ray.errors import ClusterError, PolicyError
from mlops_ray.policy import REGION, allowed_regions, label_selector

#: The resource that marks the head among a cluster's nodes.
HEAD = "node:__internal_head__"
#: An autoscaler takes a turn every five seconds; one that starts machines of a cloud may take longer.
TURN_S, POLL_S = 60.0, 0.1
#: What Ray says of a placement group that has its place.
PLACED = "CREATED"

#: What `ray.nodes` says of a node.
Node = dict[str, Any]


def living(selector: Mapping[str, str]) -> list[Node]:
    """The nodes that live and have the labels."""
    return [node for node in ray.nodes() if node["Alive"] and admits(selector, node["Labels"])]  # type: ignore[no-untyped-call]


def admits(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether labels meet all conditions of Ray: a value, `in(a,b)`, or either after `!`.

    >>> [admits({"region": "in(eu-de,eu-fr)"}, labels) for labels in ({"region": "eu-fr"}, {})]
    [True, False]
    >>> admits({"region": "!eu-de"}, {"region": "eu-de"}), admits({}, {})
    (False, True)
    """
    return all(_meets(condition, labels.get(key)) for key, condition in selector.items())


def _meets(condition: str, label: str | None) -> bool:
    values = condition.removeprefix("!").removeprefix("in(").removesuffix(")").split(",")
    return (label in values) != condition.startswith("!")


def fits(request: Mapping[str, float], resources: Mapping[str, float]) -> bool:
    """Whether a node with these resources has what is asked for.

    >>> fits({"CPU": 2}, {"CPU": 2.0}), fits({"CPU": 1, "GPU": 1}, {"CPU": 2.0}), fits({"GPU": 0}, {})
    (True, False, True)
    """
    return all(resources.get(name, 0.0) >= amount for name, amount in request.items())


def free(selector: Mapping[str, str]) -> list[Mapping[str, float]]:
    """What no one holds of each node that lives and has the labels."""
    available = ray._private.state.available_resources_per_node()  # type: ignore[no-untyped-call]
    return [available.get(node["NodeID"], {}) for node in living(selector)]


# ---------------------------------------------------------------- nodes that are not there yet


def grows() -> bool:
    """Whether the connected cluster has an autoscaler of version 2, as `ray up` and KubeRay have it."""
    return bool(_status().autoscaling_state.autoscaler_state_version > 0)


def comes(request: Mapping[str, float], label_selector: Mapping[str, str]) -> bool:
    """Whether the autoscaler, if there is one, brings a node with these resources and labels.

    It is asked to, and the answer comes with one of its turns, a few seconds later; one that says nothing for
    a minute is believed to be at work.
    """
    if not grows():
        return False
    selector: Any = [dict(label_selector)] if label_selector else None
    asked = placement_group([dict(request)], bundle_label_selector=selector)
    end, since = time.monotonic() + TURN_S, None
    try:
        while time.monotonic() < end:
            status = _status()
            seen, now = status.autoscaling_state, status.cluster_resource_state
            if since is not None and seen.last_seen_cluster_resource_state_version > since:
                return not _names(seen.infeasible_gang_resource_requests, asked)
            if since is None and _names(now.pending_gang_resource_requests, asked):
                since = now.cluster_resource_state_version
            elif placement_group_table(asked)["state"] == PLACED:
                return True
            time.sleep(POLL_S)
        return True
    finally:
        remove_placement_group(asked)


def _names(requests: Iterable[Any], asked: Any) -> bool:
    """Whether a placement group is among these."""
    return any(each.details.startswith(asked.id.hex()) for each in requests)


def _status() -> Any:
    """What the autoscaler said last, and what waits for it."""
    gcs, messages = cast(Any, ray._private.worker.global_worker).gcs_client, cast(Any, autoscaler_pb2)
    return messages.GetClusterStatusReply.FromString(gcs.get_cluster_status(timeout_s=TURN_S))


def has_room(selector: Mapping[str, str], request: Mapping[str, float]) -> bool:
    """Whether a node with the labels is large enough for what is asked, busy or not, or one comes that is."""
    return any(fits(request, node["Resources"]) for node in living(selector)) or comes(request, selector)


# ---------------------------------------------------------------- what policies ask


def here() -> str:
    """The id of the node that this process is of."""
    return str(ray.get_runtime_context().get_node_id())


def named(ids: Iterable[str]) -> list[dict[str, str | None]]:
    """Nodes of the cluster by their ids, also those that are gone: `{"node", "address", "region"}`.

    Of one that the cluster knows no more neither is known.
    """
    known = {node["NodeID"]: node for node in ray.nodes()}  # type: ignore[no-untyped-call]
    nodes = {id: known.get(id, {}) for id in sorted(set(ids) - {""})}
    return [
        {"node": id, "address": node.get("NodeManagerAddress"), "region": node.get("Labels", {}).get(REGION)}
        for id, node in nodes.items()
    ]


def replicas(application: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Of each replica of an application of Serve, as Serve tells of it, the node, and its deployment.

    One that waits for room has no node yet, and is none.

    >>> waits, runs = {"state": "STARTING"}, {"state": "RUNNING", "node_id": "a"}
    >>> [node for node, _ in replicas({"deployments": {"load": {"replicas": [waits, runs]}}})]
    ['a']
    """
    for deployment in application.get("deployments", {}).values():
        for replica in deployment["replicas"]:
            if node := replica.get("node_id"):
                yield node, deployment


def require(policies: Iterable[Policy]) -> None:
    """Raises `PolicyError` where the connected cluster may not work on rows under all these policies.

    Beside the nodes that work are this process', which puts down what they share, and the head: it hears what
    tasks say when they fail, and its front end passes requests on.
    """
    policies = list(policies)
    selector, regions = label_selector(policies), allowed_regions(policies) or ()
    if not selector:
        return
    allowed = living(selector)
    if not allowed:
        raise PolicyError(none(selector))
    own = here()
    of_process = {"the head of the cluster": _is_head, "what starts it": lambda n: n["NodeID"] == own}
    for what, is_it in of_process.items():
        for node in filter(is_it, living({})):
            if node not in allowed:
                region = node["Labels"].get(REGION)
                where = f"in {region}" if region else f"in no region: it has no label {REGION}"
                raise PolicyError(
                    f"rows may be in {', '.join(regions)} only, and {what} is the node"
                    f" {node['NodeManagerAddress']}, {where}"
                )


def _is_head(node: Node) -> bool:
    return HEAD in node["Resources"]


def require_room(selector: Mapping[str, str], request: Mapping[str, float]) -> None:
    """Raises `PolicyError` where what is asked has no room on nodes with the labels (`has_room`).

    Without labels it raises `ClusterError`.
    """
    if not has_room(selector, request):
        raise (PolicyError if REGION in selector else ClusterError)(none(selector, request))


def none(selector: Mapping[str, str], request: Mapping[str, float] | None = None) -> str:
    """That there is no such node, and how one is made.

    >>> print(none({"region": "in(eu-de,eu-fr)", "pool": "!gpu"}, {"CPU": 2.0}))
    no node of the cluster has the label region in (eu-de, eu-fr), the label pool other than gpu and 2 CPU, \
and rows may be on no other: start one, e.g. ray start --labels region=eu-de
    >>> print(none({}, {"CPU": 2.0, "GPU": 1.0}))
    no node of the cluster has 2 CPU and 1 GPU: start one, or ask for less
    """
    has = [f"the label {key} {_in_words(condition)}" for key, condition in selector.items()]
    has += [f"{amount:g} {name}" for name, amount in (request or {}).items() if amount]
    said = f"no node of the cluster has {', '.join(has[:-1])}{' and ' * bool(has[:-1])}{has[-1]}"
    wanted = [f"{key}={_first(value)}" for key, value in selector.items() if not value.startswith("!")]
    start = (
        f"start one, e.g. ray start --labels {','.join(wanted)}" if wanted else "start one, or ask for less"
    )
    return f"{said}{', and rows may be on no other' if REGION in selector else ''}: {start}"


def _in_words(condition: str) -> str:
    values = condition.removeprefix("!").replace("in(", "in (").replace(",", ", ")
    return f"other than {values.removeprefix('in ')}" if condition.startswith("!") else values


def _first(condition: str) -> str:
    return condition.removeprefix("in(").removesuffix(")").split(",")[0]
