"""As many replicas as the work needs, and one more where callers are turned away."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_ray.serving import autoscaling
from mlops_ray.serving.autoscaling import TARGET, Load, policy


def context(told: dict[str, dict[str, float]] | None, current: int = 2) -> Any:
    return SimpleNamespace(aggregated_metrics=told, current_num_replicas=current, target_num_replicas=current)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_with_the_replicas_that_are_needed_each_is_busy_at_most_as_much_as_it_may_be(
    busy: list[float],
) -> None:
    needed, _ = policy(context({"busy": dict(enumerate(busy)), "refused": {}}, len(busy)))  # type: ignore[arg-type]
    assert sum(busy) <= needed * TARGET + 1e-9
    assert needed == 0 or sum(busy) > (needed - 1) * TARGET - 1e-9


def test_where_callers_are_turned_away_there_is_one_more() -> None:
    assert policy(context({"busy": {"a": 0.1, "b": 0.1}, "refused": {"a": 0.5}}))[0] == 3


def test_before_anything_was_told_nothing_changes() -> None:
    assert policy(context(None))[0] == policy(context({}))[0] == 2


def test_a_replica_tells_how_busy_it_was_since_it_was_last_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=10.0, used=1.0)
    times = SimpleNamespace(monotonic=lambda: clock.now, process_time=lambda: clock.used)
    monkeypatch.setattr(autoscaling, "time", times)
    load = Load(cpus=2)
    clock.now, clock.used, load.refused = 12.0, 3.0, 6
    assert load.told() == {"busy": 0.5, "refused": 3.0}
    clock.now = 13.0
    assert load.told() == {"busy": 0.0, "refused": 0.0}
