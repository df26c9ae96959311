"""Our service with nothing counted and nothing logged: what monitoring and the prediction log cost."""

from typing import Any

from ray import serve

from benchmarks.ours import Service, beside
from mlops_ray.serving import endpoint, replica, versions

NAME = "unwatched"


class UnwatchedReplica(replica.Replica):
    """A replica of ours that forgets what it answered."""

    def __init__(self, *args: Any) -> None:
        versions.Live._observe = lambda *_: None  # type: ignore[assignment,method-assign]
        versions.Live.log = lambda *_: None  # type: ignore[assignment,method-assign]
        endpoint._counted = lambda _, reply, *__: reply  # type: ignore[assignment]
        super().__init__(*args)


def application(service: Service) -> serve.Application:
    """The service's application under another name, with the same champion."""
    return beside(service, NAME, UnwatchedReplica)
