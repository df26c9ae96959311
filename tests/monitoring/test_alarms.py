"""Alarms cost what the budget allows, open once, and end when nothing differs any more."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mlops_ray.monitoring import alarms
from mlops_ray.monitoring.alarms import QUIET, Alarms, Budget, Finding

DAY = 86_400.0
BUDGET = Budget(1.0, 90 * DAY)


def asked(about: str, p: float, *, matters: bool = True, harm: float = 0.0, kind: str = "input") -> Finding:
    return Finding(about, kind, p, matters, f"{about} differs", harm)  # type: ignore[arg-type]


def looked(state: Alarms, at: float, *findings: Finding, version: str = "1") -> alarms.Episode | None:
    return state.take(alarms.look(at, 0.01, findings), version)


SAME, MOVED = asked("x", 0.8), asked("x", 1e-6)


def test_looks_of_any_rhythm_spend_the_same_in_a_period() -> None:
    for looks in (90, 2_160, 30):
        state, spent = Alarms(0.0), 0.0
        for at in np.linspace(0, 90 * DAY, looks + 1)[1:]:
            share = BUDGET.share(at - state.looked_at)
            state.take(alarms.look(at, share, []), "1")
            spent += share
        assert spent == pytest.approx(alarms.SPENT)


def test_what_chance_makes_often_is_no_alarm_however_long_the_window() -> None:
    assert BUDGET.share(45 * DAY) == alarms.MOST_SHARE


def test_all_that_a_look_asks_shares_what_it_spends() -> None:
    assert alarms.look(0.0, 0.01, [asked("x", 0.004)]).found == ("x",)
    assert alarms.look(0.0, 0.01, [asked("x", 0.004), asked("y", 0.9), asked("z", 0.9)]).found == ()
    # What is too small to matter is found by nobody, and costs its share all the same.
    assert alarms.look(0.0, 0.01, [asked("x", 0.004), *[asked("y", 0.9, matters=False)] * 2]).found == ()
    assert alarms.look(0.0, 0.01, [asked("x", 1e-9, matters=False)]).found == ()


def test_beside_what_was_found_stands_what_is_likely() -> None:
    look = alarms.look(0.0, 1e-4, [asked("x", 1e-9), asked("y", 0.01), asked("z", 0.6)])
    assert (look.found, look.listed) == (("x",), ("y",))


def test_what_is_said_of_a_finding_is_of_a_look_that_found_it_and_its_harm_is_the_latest() -> None:
    state = Alarms(0.0)
    looked(state, DAY, replace(MOVED, evidence="x is twice as much", harm=1.0))
    looked(state, 2 * DAY, replace(SAME, evidence="x is half as much again", harm=0.5))
    assert state.open is not None
    about = state.open.found["x"]
    assert (about["evidence"], about["p"], about["harm"]) == ("x is twice as much", 1e-6, 0.5)
    looked(state, 3 * DAY, replace(MOVED, evidence="x is three times as much", harm=2.0))
    about = state.open.found["x"]
    assert (about["evidence"], about["since"], about["harm"]) == ("x is three times as much", DAY, 2.0)


def test_one_episode_is_open_at_a_time_and_gathers_what_is_found() -> None:
    state = Alarms(0.0)
    assert looked(state, DAY, SAME) is None
    opened = looked(state, 2 * DAY, MOVED, asked("y", 0.5))
    assert opened is state.open
    assert looked(state, 3 * DAY, MOVED, asked("y", 1e-5)) is None
    assert {about: what["since"] for about, what in opened.found.items()} == {"x": 2 * DAY, "y": 3 * DAY}
    assert len(state.episodes) == 1


def test_faults_of_the_data_are_told_first_then_the_likelier_harm() -> None:
    state = Alarms(0.0)
    opened = looked(
        state, DAY, asked("a", 1e-6, harm=0.1), asked("b", 1e-6, harm=0.5), asked("c", 1e-6, kind="data")
    )
    assert [about for about, _ in opened.ranked] == ["c", "b", "a"]


def test_an_episode_is_over_when_nothing_has_differed_for_a_while_and_another_may_open() -> None:
    state = Alarms(0.0)
    looked(state, DAY, MOVED)
    looked(state, 2 * DAY, SAME)
    # Not enough for an alarm, and more than nothing.
    looked(state, 3 * DAY, asked("x", 0.03))
    for number in range(QUIET):
        assert state.open is not None
        # What was not looked at is not over.
        looked(state, (4 + number) * DAY)
        assert state.open is not None
        looked(state, (4.5 + number) * DAY, SAME)
    assert state.open is None
    assert state.episodes[0].resolved == (3.5 + QUIET) * DAY
    assert state.episodes[0].why == "2 looks in a row found no difference"
    assert looked(state, 9 * DAY, MOVED) is state.episodes[1]


def test_an_episode_ends_with_the_version_that_it_is_about() -> None:
    state = Alarms(0.0)
    looked(state, DAY, MOVED)
    assert looked(state, 2 * DAY, SAME, version="2") is None
    (episode,) = state.episodes
    assert (state.open, episode.resolved, episode.why) == (None, 2 * DAY, "version 2 is live")


def test_episodes_can_be_read_back() -> None:
    state = Alarms(0.0)
    looked(state, DAY, MOVED, asked("y", 0.5))
    assert Alarms.from_json(json.loads(json.dumps(state.to_json()))) == state


def test_a_look_that_did_not_ask_all_that_is_usual_ends_no_episode() -> None:
    kept, bad = Alarms(0.0), Finding("load by site", "input", 1e-9, matters=True, evidence="said")
    quiet = Finding("hour", "input", 0.9, matters=False)
    assert kept.take(alarms.look(1.0, 0.01, [bad, quiet]), "1") is not None
    for at in (2.0, 3.0, 4.0):
        kept.take(alarms.look(at, 0.01, [quiet], is_whole=False), "1")
    assert kept.open is not None
    for at in (5.0, 6.0):
        kept.take(alarms.look(at, 0.01, [quiet]), "1")
    assert kept.open is None


def test_of_several_tests_behind_a_finding_each_is_paid_for() -> None:
    one = Finding("load by site", "input", 1e-4, matters=True, tests=50)
    (asked, _) = alarms.look(1.0, 0.01, [one, Finding("x", "input", 0.5, matters=True)]).findings
    assert asked.p_holm == pytest.approx(51e-4)
    assert alarms.look(1.0, 0.005, [one]).found == ("load by site",)
    assert alarms.look(1.0, 0.0049, [one]).found == ()
