"""What a replica does beside its requests."""

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from ray import serve

from mlops_ray.errors import safe
from mlops_ray.serving import replica
from mlops_ray.serving.replica import Replica, repeated
from tests.conftest import ROOT


@pytest.mark.parametrize("raised", [OSError("no room"), pl.exceptions.PanicException("no room")])
def test_what_fails_beside_the_requests_is_told_and_done_again(raised: BaseException) -> None:
    told: list[str] = []
    acts = iter([raised, None, raised])

    async def act() -> None:
        if (error := next(acts, asyncio.CancelledError())) is not None:
            raise error

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(repeated(act, 0.0, told.append))
    assert told == [safe(raised)] * 2


def test_rows_wait_for_the_log_no_longer_than_the_docs_say() -> None:
    said = (ROOT / "docs" / "serving.md").read_text()
    assert "parquet` within five seconds" in said
    assert replica.FLUSH_S <= 5.0


def test_a_controller_that_is_gone_holds_up_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for the monitor for the first time as the head goes waits for it, and nobody else does."""
    has_gone_on, told = threading.Event(), list[bool]()

    def handle(*_: object) -> Any:
        told.append(has_gone_on.wait(10))
        raise LookupError("there is no monitor")

    made: Any = object.__new__(Replica)
    made._monitor, made._outbox = None, SimpleNamespace(delta=lambda: {"model": "m"})
    monkeypatch.setattr(serve, "get_deployment_handle", handle)

    async def flushes() -> None:
        flush = asyncio.create_task(made._flush())
        # One turn of the loop for it, and one for a request.
        await asyncio.sleep(0)
        has_gone_on.set()
        with pytest.raises(LookupError):
            await flush

    asyncio.run(flushes())
    assert told == [True]
