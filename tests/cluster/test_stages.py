"""A run does only what changed, and a stage that was not finished is done again."""

from typing import Any

import pytest

from mlops_ray.cluster.stages import Stages, alone
from mlops_ray.errors import StorageError
from mlops_ray.storage import Storage


class Watcher:
    def __init__(self) -> None:
        self.ended: list[tuple[str, float | None]] = []

    def begin(self, stage: str) -> None:
        pass

    def update(self, message: str) -> None:
        pass

    def end(self, stage: str, message: str, seconds: float | None) -> None:
        self.ended.append((stage, seconds))


def run(stages: Stages, made_from: Any, result: int, **kwargs: Any) -> int:
    return int(stages.run("s", made_from, lambda: {"n": result}, say=lambda r: str(r["n"]), **kwargs)["n"])


def test_an_unchanged_stage_is_not_done_again_and_says_so(storage: Storage) -> None:
    watcher = Watcher()
    assert run(Stages(storage, watcher), {"x": 1}, 1) == 1
    assert run(Stages(storage, watcher), {"x": 1}, 2) == 1
    assert [seconds is None for _, seconds in watcher.ended] == [False, True]


def test_a_stage_whose_input_changed_or_whose_result_is_gone_is_done_again(storage: Storage) -> None:
    assert run(Stages(storage), {"x": 1}, 1) == 1
    assert run(Stages(storage), {"x": 2}, 2) == 2
    assert run(Stages(storage), {"x": 2}, 3, still_there=lambda result: False) == 3


def test_a_stage_that_failed_leaves_no_record(storage: Storage) -> None:
    def fail() -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Stages(storage).run("s", 1, fail, say=str)
    assert run(Stages(storage), 1, 7) == 7


def test_two_runs_do_not_work_on_one_storage(storage: Storage) -> None:
    with alone(storage), pytest.raises(StorageError, match="another run works on"), alone(storage):
        pass
    with alone(storage):
        pass
