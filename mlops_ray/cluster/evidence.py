"""Evidence of residency: on which nodes rows were worked on, for the audit record and for `status`."""

import contextlib
import json
import logging
import os
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mlops_ray import audit
from mlops_ray.config import Policy, Project
from mlops_ray.errors import safe
from mlops_ray.policy import HERE, REGION, allowed_regions
from mlops_ray.storage import Storage

#: Where the dashboard tells of Serve, and of the nodes.
SERVE, NODES = "api/serve/applications/", "api/v0/nodes?detail=1&limit=10000"
ANSWER_S = 5.0
#: Where is kept in which regions models may be (serving.deploy, which asks for more imports).
DEPLOYED = "deployed.json"

Document = dict[str, Any]

logger = logging.getLogger(__name__)


def tell(
    storage: Storage, policies: Iterable[Policy], what: str, about: Mapping[str, Any], ids: Iterable[str]
) -> None:
    """Has the audit record hear of work on rows that are bound to regions: to which, and where it was done.

    That is `here`, the region of this machine, and on `nodes`; `ids` are of nodes of the connected cluster.
    Of rows that may be anywhere nothing is told. Where an error is on its way already, one of telling is
    logged, and does not take its place.
    """
    under_way = sys.exception()
    try:
        if found := where(policies, ids):
            audit.append(storage, what, audit.who(), {**about, **found}, is_done=True)
    except Exception as error:
        if under_way is None:
            raise
        logger.error("%r is not in the audit record (%s)", what, safe(error))


@contextlib.contextmanager
def telling(
    storage: Storage, policies: Iterable[Policy], what: str, about: Mapping[str, Any]
) -> Iterator[set[str]]:
    """As `tell`, when the work has ended, well or not, of the ids that were put into the set by then."""
    ids = set[str]()
    try:
        yield ids
    finally:
        tell(storage, policies, what, about, ids)


def where(policies: Iterable[Policy], ids: Iterable[str]) -> Document:
    """What `tell` says of where rows that are bound to regions were worked on; empty of rows that are not."""
    regions, ids = allowed_regions(policies), set(ids)
    if regions is None:
        return {}
    nodes: list[dict[str, str | None]] = []
    if ids:
        from mlops_ray import placement

        nodes = placement.named(ids)
    return {"regions": regions, "here": os.environ.get(HERE), "nodes": nodes}


def serving(project: Project) -> set[str]:
    """The ids of the nodes that a model's requests pass: its replicas', and those of Serve's front end."""
    from mlops_ray.serving import deploy

    return {node for name, node in deploy.nodes() if name in (project.project, deploy.FRONT)}


def places(
    models: Iterable[str], regions: Mapping[str, list[str] | None], dashboard: str, token: str | None
) -> dict[str, Document]:
    """Of each model where its replicas run, and whether its rows may be there.

    `{"allowed", "nodes", "said"}`, the regions that its policy allows, `None` for all, each node with its
    region, how many replicas it has, and whether it `may`; `nodes` is `None` where the dashboard is silent.
    """
    try:
        applications = _asked(f"{dashboard}/{SERVE}", token)["applications"]
        known = _asked(f"{dashboard}/{NODES}", token)["data"]["result"]["result"]
        of_node = {node["node_id"]: node for node in known}
        return {name: _placed(applications.get(name, {}), of_node, regions.get(name)) for name in models}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        said = f"not known: the cluster's dashboard does not tell ({type(error).__name__})"
        return {name: {"allowed": regions.get(name), "nodes": None, "said": said} for name in models}


def _asked(url: str, token: str | None) -> Document:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    asked = urllib.request.Request(url, headers=headers)  # noqa: S310 - the address of our own cluster
    with urllib.request.urlopen(asked, timeout=ANSWER_S) as reply:  # noqa: S310
        return dict(json.load(reply))


def _placed(application: Document, known: Mapping[str, Document], allowed: list[str] | None) -> Document:
    from mlops_ray import placement

    counts = Counter(node for node, _ in placement.replicas(application))
    nodes = []
    for id, count in sorted(counts.items()):
        node = known.get(id, {})
        region = (node.get("labels") or {}).get(REGION)
        may = allowed is None or region in allowed
        address = node.get("node_ip", "")
        nodes.append({"node": id, "address": address, "region": region, "replicas": count, "may": may})
    return {"allowed": allowed, "nodes": nodes, "said": said(nodes, allowed)}


def said(nodes: Sequence[Mapping[str, Any]], allowed: list[str] | None) -> str:
    """Where replicas run, in words, and whether that is as the policy says.

    >>> nodes = [{"address": "10.0.0.7", "region": "eu-de", "replicas": 2, "may": True}]
    >>> print(said(nodes, ["eu-de"]))
    2 in eu-de, as they must be: rows may be in eu-de only
    >>> said([{**nodes[0], "region": None}], None)
    '2'
    >>> print(said([{**nodes[0], "region": None, "may": False}], ["eu-de"]))
    2 in no region. Not allowed, since rows may be in eu-de only: 10.0.0.7
    """
    counts: Counter[str] = Counter()
    for node in nodes:
        counts[node["region"] or "no region"] += node["replicas"]
    where = ", ".join(f"{count} in {region}" for region, count in sorted(counts.items())) or "none runs"
    if allowed is None:
        return where if any(node["region"] for node in nodes) else f"{counts.total()}"
    only = f"rows may be in {', '.join(allowed)} only"
    wrong = [node["address"] for node in nodes if not node["may"]]
    if wrong:
        return f"{where}. Not allowed, since {only}: {', '.join(wrong)}"
    return f"{where}, as they must be: {only}" if counts else f"{where}; {only}"


def recorded(storage: Storage) -> Mapping[str, list[str] | None]:
    """The regions of the models that were deployed, by name."""
    return dict((storage.read_json(DEPLOYED) or {}).get("regions", {}))
