"""Residency and visibility: what may run where.

Every Ray call that touches a source's data asks `label_selector` here, and nowhere else, on which nodes it
may run; so that a border, once declared, holds for reading, training and serving alike.
"""

from collections.abc import Iterable

from mlops_ray.config import Policy

#: The label of a node that names its region.
REGION = "region"


def label_selector(policies: Iterable[Policy]) -> dict[str, str]:
    """The node labels that work on data under all these policies needs; empty where any node will do.

    >>> label_selector([Policy(allowed_regions=("eu-de", "eu-fr")), Policy()])
    {'region': 'in(eu-de,eu-fr)'}
    """
    bounded = [set(policy.allowed_regions) for policy in policies if policy.allowed_regions is not None]
    if not bounded:
        return {}
    return {REGION: f"in({','.join(sorted(set.intersection(*bounded)))})"}
