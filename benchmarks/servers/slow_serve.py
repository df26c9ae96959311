"""The same slow model as Ray Serve's own users have it: its batches, its queues, its default policy."""

import time
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig

from benchmarks.ours import Service

NAME = "slow-serve"
FIXED_S, EACH_S = 0.030, 0.045


class Slow:
    """Answers after a batch's time, whatever is asked; a model blocks the process as this does."""

    # It waits for nobody, as ours does: what comes meanwhile is the next batch.
    @serve.batch(max_batch_size=256, batch_wait_timeout_s=0)
    async def _answers(self, asked: list[bytes]) -> list[dict[str, Any]]:
        time.sleep(FIXED_S + EACH_S * len(asked))
        return [{"outputs": []} for _ in asked]

    async def __call__(self, request: Any) -> dict[str, Any]:
        answer: dict[str, Any] = await self._answers(await request.body())
        return answer


def application(service: Service) -> serve.Application:
    """As many replicas at least and at most as ours, and all else by default."""
    bounds, resources = service.serving["replicas"], service.serving["resources"]
    return serve.deployment(
        name=NAME,
        autoscaling_config=AutoscalingConfig(min_replicas=bounds["min"], max_replicas=bounds["max"]),
        ray_actor_options={"num_cpus": resources["cpu"]},
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )(Slow).bind()
