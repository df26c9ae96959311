"""The same slow model as Ray Serve's own users have it: its batches, its queues, its default policy."""

import time

from ray import serve
from ray.serve.config import AutoscalingConfig
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.ours import Service

NAME = "slow-serve"
FIXED_S, EACH_S = 0.030, 0.045
BODY = b'{"outputs":[]}'


class Slow:
    """Answers after a batch's time, whatever is asked; a model blocks the process as this does."""

    # It waits for nobody, as ours does: what comes meanwhile is the next batch.
    @serve.batch(max_batch_size=256, batch_wait_timeout_s=0)
    async def _answers(self, asked: list[bytes]) -> list[bytes]:
        time.sleep(FIXED_S + EACH_S * len(asked))
        return [BODY for _ in asked]

    async def __call__(self, request: Request) -> Response:
        return Response(await self._answers(await request.body()), media_type="application/json")


def application(service: Service) -> serve.Application:
    """As many replicas at least and at most as ours, and all else by default."""
    bounds, resources = service.serving["replicas"], service.serving["resources"]
    return serve.deployment(
        name=NAME,
        autoscaling_config=AutoscalingConfig(min_replicas=bounds["min"], max_replicas=bounds["max"]),
        ray_actor_options={"num_cpus": resources["cpu"]},
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )(Slow).bind()
