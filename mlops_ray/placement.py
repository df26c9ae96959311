"""Where work on rows may run: the connected cluster's nodes by their labels, as policy.py asks for them.

Ray lets what no node may run wait, for ever and in silence; whoever asks here first is told at once.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import ray
from ray.util import placement_group, remove_placement_group

from mlops_ray.config import Policy
from mlops_ray.errors import PolicyError
from mlops_ray.policy import REGION, allowed_regions, label_selector

#: The resource that marks the head among a cluster's nodes.
HEAD = "node:__internal_head__"
#: A cloud's machine is a node within two to five minutes; for a label that none of its types has none comes.
GROW_S = 600.0

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


def grown() -> Mapping[str, float]:
    """The resources that the cluster may come to have; of one that does not grow none are known."""
    return ray._private.state.state.get_max_resources_from_cluster_config() or {}


def here() -> str:
    """The id of the node that this process is of."""
    return str(ray.get_runtime_context().get_node_id())


def named(ids: Iterable[str]) -> list[dict[str, str | None]]:
    """Nodes of the cluster by their ids, also those that are gone: `{"node", "address", "region"}`."""
    known = {node["NodeID"]: node for node in ray.nodes()}  # type: ignore[no-untyped-call]
    return [
        {"node": id, "address": known[id]["NodeManagerAddress"], "region": known[id]["Labels"].get(REGION)}
        for id in sorted(known.keys() & set(ids))
    ]


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
        raise PolicyError(_none(selector))
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
    """Raises `PolicyError` where no node with the labels is large enough for what is asked, busy or not.

    Where the cluster grows by itself a node may yet come, of which only its autoscaler knows the labels: it
    is asked, and waited for. Without labels nothing is asked.
    """
    if not selector or any(fits(request, node["Resources"]) for node in living(selector)):
        return
    if not fits(request, grown()) or not _comes(selector, request, GROW_S):
        raise PolicyError(_none(selector, request))


def _comes(selector: Mapping[str, str], request: Mapping[str, float], within_s: float) -> bool:
    asked = placement_group([dict(request)], bundle_label_selector=[dict(selector)])
    try:
        return bool(asked.wait(within_s))
    finally:
        remove_placement_group(asked)


def _none(selector: Mapping[str, str], request: Mapping[str, float] | None = None) -> str:
    """That there is no such node, and how one is made.

    >>> print(_none({"region": "in(eu-de,eu-fr)"}, {"CPU": 2.0}))
    no node of the cluster has the label region in (eu-de, eu-fr) and 2 CPU, and rows may be on no other: \
start one, e.g. ray start --labels region=eu-de
    """
    labels = [
        f"{key} {condition.replace('in(', 'in (').replace(',', ', ')}" for key, condition in selector.items()
    ]
    sizes = [f"{amount:g} {name}" for name, amount in (request or {}).items() if amount]
    (key, condition), *_ = selector.items()
    example = condition.removeprefix("in(").removesuffix(")").split(",")[0]
    return (
        f"no node of the cluster has the label {' and '.join([*labels, *sizes])}, and rows may be on no"
        f" other: start one, e.g. ray start --labels {key}={example}"
    )
