"""Alarms cost what the budget allows, open once, and end when nothing differs any more."""

import json

import numpy as np
import pytest

from mlops_ray.monitoring.alarms import QUIET, Alarms, Budget
from mlops_ray.monitoring.drift import Drift

DAY = 86_400.0
BUDGET = Budget(1.0, 90 * DAY)


def drift(column: str, p_holm: float, *, drifted: bool = False) -> Drift:
    return Drift(column, 500, 10_000, p=p_holm, p_holm=p_holm, psi_corrected=0.2, drifted=drifted)


def test_looks_of_any_rhythm_spend_the_same_in_a_period() -> None:
    for looks in (90, 2_160, 7):
        alarms, spent = Alarms(0.0), 0.0
        for at in np.linspace(0, 90 * DAY, looks + 1)[1:]:
            share = alarms.share(at, BUDGET)
            alarms.look(at, share, [])
            spent += share
        assert spent == pytest.approx(1.0)
        assert sum(look.spent for look in alarms.looks) == pytest.approx(1.0)


def test_one_episode_is_open_at_a_time_and_gathers_what_is_found() -> None:
    alarms = Alarms(0.0)
    assert alarms.look(DAY, 0.01, [drift("x", 1.0), drift("y", 0.5)]) is None
    opened = alarms.look(2 * DAY, 0.01, [drift("x", 1e-6, drifted=True), drift("y", 0.5)])
    assert opened is alarms.open
    assert (
        alarms.look(3 * DAY, 0.01, [drift("x", 1e-6, drifted=True), drift("y", 1e-5, drifted=True)]) is None
    )
    assert opened is not None
    assert opened.columns == {"x": 2 * DAY, "y": 3 * DAY}
    assert len(alarms.episodes) == 1


def test_an_episode_is_over_when_nothing_has_differed_for_a_while_and_another_may_open() -> None:
    alarms, same = Alarms(0.0), [drift("x", 0.8)]
    alarms.look(DAY, 0.01, [drift("x", 1e-6, drifted=True)])
    alarms.look(2 * DAY, 0.01, same)
    # Not enough for an alarm, and more than nothing.
    alarms.look(3 * DAY, 0.01, [drift("x", 0.01)])
    for number in range(QUIET):
        assert alarms.open is not None
        # What was not looked at is not over.
        alarms.look((4 + number) * DAY, 0.01, [])
        assert alarms.open is not None
        alarms.look((4.5 + number) * DAY, 0.01, same)
    assert alarms.open is None
    assert alarms.episodes[0].resolved == (3.5 + QUIET) * DAY
    assert alarms.look(9 * DAY, 0.01, [drift("x", 1e-6, drifted=True)]) is alarms.episodes[1]


def test_what_was_tested_and_spent_can_be_read_back() -> None:
    alarms = Alarms(0.0)
    alarms.look(DAY, 0.01, [drift("x", 1e-6, drifted=True), drift("y", 0.5)])
    again = Alarms.from_json(json.loads(json.dumps(alarms.to_json())))
    assert again == alarms
    assert (again.looks[0].tests, again.looks[0].found) == ((("x", 1e-6), ("y", 0.5)), ("x",))
