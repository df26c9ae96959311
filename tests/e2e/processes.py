"""The processes of a cluster, of which this machine may have several, by what they call themselves."""

import psutil

from mlops_ray.cluster.local import LocalCluster


def replicas(cluster: LocalCluster, name: str) -> list[psutil.Process]:
    """The processes that answer for a model."""
    return titled(cluster, f"ray::ServeReplica:{name}:{name}")


def titled(cluster: LocalCluster, title: str) -> list[psutil.Process]:
    """Those whose titles have such a part, the oldest first."""
    found = [
        each
        for each in psutil.process_iter(["cmdline", "environ", "create_time"])
        if title in (each.info["cmdline"] or [""])[0]
    ]
    own = [each for each in found if cluster.marker in (each.info["environ"] or {}).values()]
    return sorted(own, key=lambda each: each.info["create_time"])
