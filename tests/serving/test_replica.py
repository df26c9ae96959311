"""What a replica does beside its requests."""

import asyncio

import polars as pl
import pytest

from mlops_ray.errors import safe
from mlops_ray.serving import replica
from mlops_ray.serving.replica import repeated
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
