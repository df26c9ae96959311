"""Our service, but for the batches: Ray Serve's own `serve.batch` makes them, around the same predictor."""

import itertools
from typing import Any

from ray import serve

from benchmarks.ours import Service, beside
from mlops_ray.data.rows import Rows
from mlops_ray.serving import replica, versions
from mlops_ray.serving.batcher import Batcher, Part

NAME = "serve-batch"
MAX_ROWS = 256


class Gathered(Batcher):
    """`Batcher` as a replica knows it. Deadlines are looked at when a request comes, and not again."""

    async def submit(self, rows: Rows, **_: Any) -> Part:
        part: Part = await self._gathered(rows)
        return part

    # It waits for nobody: with the 2 ms that ours may wait at most, one connection would wait each time.
    @serve.batch(max_batch_size=MAX_ROWS, batch_wait_timeout_s=0)
    async def _gathered(self, waiting: list[Rows]) -> list[Part]:
        answer = self.work(waiting)
        self.done(answer)
        stops = itertools.accumulate(rows.height for rows in waiting)
        return [Part(answer, stop - rows.height, stop) for rows, stop in zip(waiting, stops, strict=True)]


class GatheredReplica(replica.Replica):
    """A replica of ours that makes its batches so."""

    def __init__(self, *args: Any) -> None:
        versions.Batcher = Gathered  # type: ignore[attr-defined]
        super().__init__(*args)


def application(service: Service) -> serve.Application:
    """The service's application under another name, with the same champion."""
    return beside(service, NAME, GatheredReplica)
