"""What a replica does beside its requests."""

import asyncio

import polars as pl
import pytest

from mlops_ray.errors import safe
from mlops_ray.serving.replica import repeated


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
