"""Our service with a model that takes long: what it does is wait, so that two cores hold many replicas."""

import time
from collections.abc import Sequence
from typing import Any

from ray import serve

from benchmarks.ours import Service, beside
from mlops_ray.data.rows import Rows
from mlops_ray.registry.predictor import Answer
from mlops_ray.serving import replica, versions

NAME = "slow"
#: What a batch takes beside its requests, and each of them: benchmarks/autoscaling.py says why.
FIXED_S, EACH_S = 0.030, 0.045


class SlowReplica(replica.Replica):
    """A replica of ours whose model takes so long."""

    def __init__(self, *args: Any) -> None:
        answered = versions.Live.answer

        def slow(self: versions.Live, batch: Sequence[Rows]) -> Answer:
            time.sleep(FIXED_S + EACH_S * len(batch))
            return answered(self, batch)

        versions.Live.answer = slow  # type: ignore[method-assign]
        super().__init__(*args)


def application(service: Service) -> serve.Application:
    """The service's application under another name, with the same champion."""
    return beside(service, NAME, SlowReplica)
