"""Calls that pass through the gateway: what no replica answers is in the error log."""

import asyncio
import logging
from types import SimpleNamespace

import pytest
from ray import serve
from ray.serve.exceptions import RayServeException

from mlops_ray.data import error_log
from mlops_ray.serving.gateway import Gateway
from mlops_ray.storage import Storage


@pytest.mark.parametrize(("error", "status"), [(TimeoutError(), 504), (RayServeException(), 503)])
def test_what_no_replica_answers_is_logged(
    storage: Storage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    status: int,
) -> None:
    gateway = Gateway(str(storage.root), None)
    for log in error_log._installed:
        logging.getLogger("mlops_ray").removeHandler(log)
        log.close()
    error_log._installed.clear()

    async def answered() -> int:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_exception(error)
        handle = SimpleNamespace(call=SimpleNamespace(remote=lambda *_: future))
        monkeypatch.setattr(gateway, "_is_released", lambda _: True)
        monkeypatch.setattr(serve, "get_deployment_handle", lambda *_: handle)
        return (await gateway._ask("m", "/v2/models/m/infer", {"x-request-id": "r1"}))[0]

    assert asyncio.run(answered()) == status
    (record,) = caplog.records
    assert (record.__dict__["model"], record.__dict__["status"], record.__dict__["request"]) == (
        "m",
        status,
        "r1",
    )
