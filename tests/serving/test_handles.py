"""How a process asks for handles on other deployments."""

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve
from ray.serve.exceptions import RayServeException

from mlops_ray.monitoring import deltas
from mlops_ray.serving import gateway, replica
from mlops_ray.serving.gateway import Gateway
from mlops_ray.serving.handles import Handles
from mlops_ray.serving.replica import Replica
from mlops_ray.storage import Storage


def _replica(_: Storage) -> Callable[[], Any]:
    made: Any = object.__new__(Replica)
    made._handles, made._outbox = Handles(), SimpleNamespace(delta=lambda: {"model": "m"})
    return made._flush  # type: ignore[no-any-return]


def _page(storage: Storage) -> Callable[[], Any]:
    return Gateway(str(storage.root), None)._snapshot


def _call(storage: Storage) -> Callable[[], Any]:
    made = Gateway(str(storage.root), None)
    made._is_released = lambda _: True  # type: ignore[method-assign]
    return lambda: made._ask("m", "/v2/models/m/infer", {})


@pytest.mark.parametrize("process", [_replica, _page, _call])
def test_a_controller_that_is_gone_holds_up_no_request(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, process: Callable[[Storage], Callable[[], Any]]
) -> None:
    """Who asks for a handle for the first time as the head goes waits for it, and nobody else does."""
    is_asked, has_gone_on, told = threading.Event(), threading.Event(), list[bool]()

    def handle(*_: object) -> Any:
        is_asked.set()
        told.append(has_gone_on.wait(10))
        raise LookupError("there is no controller")

    monkeypatch.setattr(serve, "get_deployment_handle", handle)
    ask = process(storage)

    async def asks() -> None:
        asking = asyncio.create_task(ask())
        await asyncio.to_thread(is_asked.wait, 10)
        has_gone_on.set()
        with pytest.raises(LookupError):
            await asking

    asyncio.run(asks())
    assert told == [True]


@pytest.mark.parametrize(
    ("process", "module", "limit"),
    [(_replica, replica, "ACKNOWLEDGE_S"), (_page, gateway, "SNAPSHOT_S"), (_call, gateway, "ANSWER_S")],
)
def test_a_controller_that_stays_away_is_waited_for_within_the_limit_by_one_thread(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, process: Any, module: Any, limit: str
) -> None:
    is_back, asked = threading.Event(), list[str]()

    def handle(deployment: str, *_: object) -> Any:
        asked.append(deployment)
        is_back.wait(10)
        raise LookupError("there is no controller")

    monkeypatch.setattr(serve, "get_deployment_handle", handle)
    monkeypatch.setattr(module, limit, 0.001)
    ask = process(storage)

    async def asks() -> list[Any]:
        said = [await asyncio.gather(ask(), return_exceptions=True) for _ in range(3)]
        is_back.set()
        return [each for (each,) in said]

    said = asyncio.run(asks())
    assert all(isinstance(each, TimeoutError) or each[0] == 504 for each in said)
    assert asked in (["m"], [deltas.DEPLOYMENT])


def test_a_deployment_that_was_not_there_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([RayServeException("not yet"), "a handle", "another"])

    def handle(*_: object) -> Any:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(serve, "get_deployment_handle", handle)

    async def asks() -> None:
        handles = Handles()
        with pytest.raises(RayServeException):
            await handles.get("d", "a")
        assert ("d", "a") not in handles
        assert await handles.get("d", "a") == await handles.get("d", "a") == "a handle"
        handles.drop("d", "a")
        assert await handles.get("d", "a") == "another"

    asyncio.run(asks())
