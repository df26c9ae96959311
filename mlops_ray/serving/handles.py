"""Handles on Serve's deployments, asked for beside requests."""

import asyncio
from typing import Any

from ray import serve


class Handles:
    """What this process talks to other deployments by.

    Serve's controller is asked for each, which waits for ever where the head is gone: in one thread for each
    deployment, while requests go on.
    """

    def __init__(self) -> None:
        self._asked: dict[tuple[str, str], asyncio.Task[Any]] = {}

    def __contains__(self, deployment: tuple[str, str]) -> bool:
        return deployment in self._asked

    async def get(self, deployment: str, application: str) -> Any:
        """The handle; raises `RayServeException` where there is no such application."""
        asked = self._asked.get((deployment, application))
        if asked is None:
            asking = asyncio.to_thread(serve.get_deployment_handle, deployment, application)
            asked = self._asked[deployment, application] = asyncio.create_task(asking)
            asked.add_done_callback(lambda task: self._done(deployment, application, task))
        # Who waits no longer leaves it to those who do.
        return await asyncio.shield(asked)

    def drop(self, deployment: str, application: str) -> None:
        """Asks anew the next time."""
        self._asked.pop((deployment, application), None)

    def _done(self, deployment: str, application: str, task: asyncio.Task[Any]) -> None:
        # Its error is whose who waits; looked at here, it is not told of a second time where nobody does.
        if task.cancelled() or task.exception() is not None:
            self.drop(deployment, application)
