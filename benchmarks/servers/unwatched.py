"""Our service with nothing counted and nothing logged: what monitoring and the prediction log cost."""

from typing import Any

from ray import serve

from benchmarks.ours import Service
from mlops_ray.config import load
from mlops_ray.serving import endpoint, record, replica, versions

NAME = "unwatched"


class UnwatchedReplica(replica.Replica):
    """A replica of ours that forgets what it answered."""

    def __init__(self, *args: Any) -> None:
        versions.Live._observe = lambda *_: None  # type: ignore[assignment,method-assign]
        versions.Live.log = lambda *_: None  # type: ignore[assignment,method-assign]
        endpoint._count = lambda *_: None  # type: ignore[assignment]
        super().__init__(*args)


def application(service: Service) -> serve.Application:
    """The service's application under another name, with the same champion."""
    storage = service.storage
    storage.write_json(record.read(storage, service.name) | {"model": NAME}, record.FOLDER, f"{NAME}.json")
    replica.Replica = UnwatchedReplica  # type: ignore[assignment,misc]
    project = load(service.file).model_copy(update={"project": NAME})
    return replica.deployment(project, storage, {}, frozenset())
