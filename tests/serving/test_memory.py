"""What a replica holds of requests: little of those that wait to be logged, nothing of those that failed."""

import asyncio
import ctypes
import gc
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from mlops_ray.serving.asgi import Call, Message
from mlops_ray.serving.documents import MAX_ROWS
from tests.serving import live
from tests.serving.calls import call_async

TIMES = 5
#: Objects that each row may leave: of each value that is kept as Python has it there would be one at least.
MOST_OBJECTS = 0.1


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> live.Service:
    return live.service(tmp_path_factory.mktemp("memory"))


@contextmanager
def leaving(most: float) -> Iterator[None]:
    """So many objects at most are there after the block that were not there before; none is looked for."""
    gc.collect()
    gc.disable()
    try:
        before = sys.getallocatedblocks()
        yield
        assert sys.getallocatedblocks() - before < most
    finally:
        gc.enable()


def records(count: int) -> dict[str, Any]:
    first = datetime(2016, 11, 2, tzinfo=UTC)
    times = [(first + timedelta(hours=hour)).isoformat() for hour in range(count)]
    rows = [{"site": "a", "time": at, "lag": 0.5, "hour": 7, "holiday": False} for at in times]
    return {"dataframe_records": rows}


class Gone:
    """A caller that has sent a request and does not wait for the answer, as uvicorn tells it."""

    disconnected, more_body = True, False

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def receive(self) -> Message:
        return {"type": "http.request", "body": self._body, "more_body": False}


async def statuses(service: live.Service, body: bytes, times: int) -> Sequence[int]:
    head = [(b"authorization", f"Bearer {service.keys['predict']}".encode())]
    path = f"/v2/models/{service.model}/invocations"
    asked = (Call("POST", path, head, Gone(body).receive) for _ in range(times))
    return [(await service.endpoint.reply(call)).status for call in asked]


def test_rows_that_wait_for_the_log_are_no_objects_each(service: live.Service) -> None:
    async def ask(times: int) -> None:
        path = f"/v2/models/{service.model}/invocations"
        for _ in range(times):
            key = service.keys["predict"]
            assert (await call_async(service.endpoint, "POST", path, key=key, json=asked)).status == 200

    asked = records(MAX_ROWS)
    asyncio.run(ask(1))
    with leaving(MOST_OBJECTS * TIMES * MAX_ROWS):
        asyncio.run(ask(TIMES))


def test_nothing_is_left_of_a_request_whose_caller_has_gone(service: live.Service) -> None:
    body, gone = orjson.dumps(records(1_000)), 499
    assert asyncio.run(statuses(service, body, 1)) == [gone]
    with leaving(MOST_OBJECTS * TIMES * 1_000):
        assert asyncio.run(statuses(service, body, TIMES)) == [gone] * TIMES


#: Says how many buffers of 16 MB lie outside the heaps, after others of that size have come and gone.
OUTSIDE = """
from mlops_ray.serving import replica
from tests.serving.test_memory import outside
replica._give_large_back()
for _ in range(3):
    bytearray(16 * 2**20)
before = outside()
kept = [bytearray(16 * 2**20) for _ in range(5)]
print(outside() - before)
"""


def outside() -> int:
    """Buffers that glibc has mapped on their own: `hblks` of its `mallinfo2`."""
    library = ctypes.CDLL(None)
    library.mallinfo2.restype = Mallinfo
    return int(library.mallinfo2().hblks)


MALLINFO = ("arena", "ordblks", "smblks", "hblks", "hblkhd")
MALLINFO += ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class Mallinfo(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_size_t) for name in MALLINFO)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no such setting")
def test_large_buffers_are_given_back_however_many_have_come_before() -> None:
    done = subprocess.run([sys.executable, "-c", OUTSIDE], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("5\n", 0), done.stderr
