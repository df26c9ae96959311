"""The audit record hears where rows that are bound to regions were worked on."""

from collections.abc import Iterable

import pytest

from mlops_ray import audit, placement
from mlops_ray.cluster import evidence
from mlops_ray.config import Policy
from mlops_ray.storage import Storage

BOUND = Policy(allowed_regions=("eu-de",))


def named(ids: Iterable[str]) -> list[dict[str, str | None]]:
    return [{"node": id, "address": "10.0.0.7", "region": "eu-de"} for id in sorted(ids)]


def test_work_that_ends_badly_is_told_of_too(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "named", named)
    with (
        pytest.raises(ZeroDivisionError),
        evidence.telling(storage, [BOUND], "rows were trained on", {"model": "load"}) as nodes,
    ):
        nodes.add("n1")
        raise ZeroDivisionError
    (entry,) = audit.entries(storage)
    assert (entry["what"], entry["about"]["model"], entry["about"]["regions"]) == (
        "rows were trained on", "load", ["eu-de"],
    )  # fmt: skip
    assert entry["about"]["nodes"] == named({"n1"})


def test_of_rows_that_may_be_anywhere_nothing_is_told(storage: Storage) -> None:
    with evidence.telling(storage, [Policy()], "rows were trained on", {"model": "load"}) as nodes:
        nodes.add("n1")
    assert list(audit.entries(storage)) == []
