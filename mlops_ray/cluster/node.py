"""A command as every process on a node of a cluster must be started.

`python -P -m mlops_ray.cluster.node ray start …` is what cluster.yaml says: the node runs with our settings,
and the region that it is labelled with is what our commands take for its own. On the head they know, too,
which types of machines the autoscaler may bring.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from mlops_ray.cluster.head import of_nodes
from mlops_ray.cluster.meter import MACHINE
from mlops_ray.policy import HERE, REGION

#: Where the autoscaler says the labels of a node, as JSON; Ray reads them there.
LABELS = "RAY_OVERRIDE_LABELS"
#: `ray up` has one thread set for whatever it starts, which all workers would inherit.
THREADS = "OMP_NUM_THREADS"
#: The option of `ray start` that names the autoscaler's file; and the variable with the types that it says.
AUTOSCALING, MACHINES = "--autoscaling-config=", "MLOPS_MACHINES"


def environment(before: Mapping[str, str], command: Sequence[str] = ()) -> dict[str, str]:
    """The environment of a node that a command starts in the environment `before`; our programs come first.

    >>> environment({LABELS: '{"region": "eu-de"}', "PATH": "/bin"})["MLOPS_REGION"]
    'eu-de'
    """
    region = json.loads(before.get(LABELS) or "{}").get(REGION)
    path = f"{Path(sys.executable).parent}{os.pathsep}{before.get('PATH', os.defpath)}"
    kept = {name: value for name, value in before.items() if name != THREADS}
    files = [each.removeprefix(AUTOSCALING) for each in command if each.startswith(AUTOSCALING)]
    types = {MACHINES: ",".join(sorted(_types(Path(files[0]).expanduser())))} if files else {}
    return kept | of_nodes() | {"PATH": path} | ({HERE: region} if region else {}) | types


def _types(file: Path) -> set[str]:
    """The machines of an autoscaler's file that do work, as their labels say them."""
    kinds = yaml.safe_load(file.read_text()).get("available_node_types", {}).values()
    works = [kind for kind in kinds if any(kind["resources"].get(name) for name in ("CPU", "GPU"))]
    return {kind["labels"][MACHINE] for kind in works if MACHINE in kind.get("labels", {})}


def machines(environment: Mapping[str, str]) -> set[str]:
    """The types of machines that an autoscaler may bring; none that is known of elsewhere than on its head.

    >>> sorted(machines({MACHINES: "m7i.2xlarge,g6.2xlarge"})), machines({})
    (['g6.2xlarge', 'm7i.2xlarge'], set())
    """
    return set(filter(None, environment.get(MACHINES, "").split(",")))


if __name__ == "__main__":
    os.execvpe(sys.argv[1], sys.argv[1:], environment(os.environ, sys.argv[1:]))  # noqa: S606 - what our own file says
