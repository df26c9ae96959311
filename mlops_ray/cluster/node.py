"""A command as every process on a node of a cluster must be started.

`python -P -m mlops_ray.cluster.node ray start …` is what cluster.yaml says: the node runs with our settings,
and the region that it is labelled with is what our commands take for its own.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from mlops_ray.cluster.head import of_nodes
from mlops_ray.policy import HERE, REGION

#: Where the autoscaler says the labels of a node, as JSON; Ray reads them there.
LABELS = "RAY_OVERRIDE_LABELS"
#: `ray up` has one thread set for whatever it starts, which all workers would inherit.
THREADS = "OMP_NUM_THREADS"


def environment(before: Mapping[str, str]) -> dict[str, str]:
    """The environment of a node that is started in the environment `before`; our programs come first.

    >>> environment({LABELS: '{"region": "eu-de"}', "PATH": "/bin"})["MLOPS_REGION"]
    'eu-de'
    """
    region = json.loads(before.get(LABELS) or "{}").get(REGION)
    path = f"{Path(sys.executable).parent}{os.pathsep}{before.get('PATH', os.defpath)}"
    kept = {name: value for name, value in before.items() if name != THREADS}
    return kept | of_nodes() | {"PATH": path} | ({HERE: region} if region else {})


if __name__ == "__main__":
    os.execvpe(sys.argv[1], sys.argv[1:], environment(os.environ))  # noqa: S606 - what our own file says
