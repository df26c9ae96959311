"""The fewest replicas with which the objective holds, soon when more come, gone when they pay no more."""

import itertools
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.serve._private.autoscaling_state import _resolve_policy_callable
from ray.serve._private.common import TimeStampedValue
from ray.serve.autoscaling_policy import _apply_autoscaling_config

from mlops_ray.serving import replica
from mlops_ray.serving.autoscaling import (
    AGE_S,
    COUNTED,
    FIXED_S,
    HOLD,
    IDLE,
    LEAST_TRUST,
    LOOK_S,
    MOST_HOLD_S,
    START_S,
    STEADY_S,
    TOLD,
    Autoscaler,
    Load,
    Policy,
    Told,
    hold_s,
    most_rate,
    p99_s,
)
from mlops_ray.storage import Storage
from tests.serving import packages

#: Of a model that takes 10 ms for a request, or 2 ms and 8 more for each of a batch.
EACH_S, TARGET_S = 0.01, 0.05
BEARS = most_rate(0.0, EACH_S, TARGET_S)
MODEL = "m"


class Service:
    """Replicas whose requests all take the same, which are told and looked at second by second."""

    def __init__(self, running: int = 1, max_rows: int = 1) -> None:
        self.autoscaler = Autoscaler(TARGET_S, max_rows)
        self.running = self.target = running
        self.told = Told(0.0)

    def look(self, rate: float, late: float = 0.0, refused: float = 0.0) -> int:
        """What is wanted after one more second with so many requests."""
        answered = rate - refused
        more = {"arrived": rate, "refused": refused, "late": late, "busy_s": answered * EACH_S}
        more |= {"batches": answered, "rows": answered}
        self.told = self.told.after(self.told.at + LOOK_S, more)
        self.target = self.autoscaler.look(self.told, None, self.running, self.target)
        return self.target

    def pass_by(self, seconds: float, rate: float) -> int:
        """So many seconds, in which what is wanted is there at once."""
        for _ in range(int(seconds)):
            self.running = self.look(rate)
        return self.target


def needed(rate: float) -> int:
    return math.ceil(rate / BEARS)


def rate_for(replicas: int, share: float = 0.95) -> float:
    """Requests/s of which so many replicas bear the share."""
    return share * replicas * BEARS


seconds = st.floats(0.0005, 0.5)


@given(st.floats(0, 0.2), seconds, st.floats(1.1, 100))
def test_a_replica_bears_as_much_as_the_objective_allows_and_no_less(
    fixed: float, each: float, times: float
) -> None:
    target = times * p99_s(0.0, fixed, each)
    rate = most_rate(fixed, each, target)
    assert p99_s(rate, fixed, each) <= target < p99_s(rate + 0.001 / each, fixed, each)


@given(st.floats(0, 0.2), seconds, st.floats(0.01, 10), st.floats(1, 3))
def test_a_looser_objective_or_a_faster_model_never_needs_more_replicas(
    fixed: float, each: float, target: float, times: float
) -> None:
    rate = most_rate(fixed, each, target)
    assert most_rate(fixed, each, times * target) >= rate
    assert most_rate(fixed, each / times, target) >= rate * (1 - 1e-3)


@settings(max_examples=20)
@given(st.floats(1, 2000))
def test_in_the_long_run_there_are_as_many_as_the_rate_needs(rate: float) -> None:
    service = Service()
    assert service.pass_by(STEADY_S + 60, rate) in {needed(rate * 0.999), needed(rate * 1.001)}


def test_at_rest_replicas_that_wait_for_work_start_no_others_and_go() -> None:
    service = Service(running=8)
    assert {service.look(0.0) for _ in range(int(hold_s(START_S)) + 1)} == {8}
    assert service.look(0.0) == 0  # Serve keeps the least that the project file says


def test_what_serve_has_started_for_a_first_caller_stays_until_it_is_known_who_that_was() -> None:
    service = Service()
    service.pass_by(2 * MOST_HOLD_S, 0.0)
    assert service.target == 0
    # Serve starts it; until it has, and has told, nobody is known to have come.
    service.running, service.target = 0, 1
    assert {service.look(0.0) for _ in range(int(hold_s(START_S)) + 1)} == {1}
    service.running = 1
    assert service.look(0.0) == 0


def test_one_request_a_minute_keeps_one_replica() -> None:
    service = Service()
    service.pass_by(2 * MOST_HOLD_S, 0.0)
    assert service.target == 0
    found = {service.look(float(second % 60 == 0)) for second in range(1200)}
    assert found == {1}


def test_when_many_come_at_once_enough_are_asked_for_within_four_seconds() -> None:
    service, many = Service(running=2), rate_for(10)
    service.pass_by(300, rate_for(2))
    assert [service.look(many) for _ in range(4)][-1] >= needed(0.9 * many)


def test_as_chance_has_it_nothing_is_started() -> None:
    service = Service(running=2)
    rate = rate_for(2)
    service.pass_by(300, rate)
    # For one second as many as come once in 40 seconds.
    assert service.look(rate + 2 * math.sqrt(rate)) == 2


def test_while_more_and_more_come_it_is_ahead_of_them() -> None:
    service, rate = Service(running=2), rate_for(2)
    service.pass_by(300, rate)
    for _ in range(60):
        rate += 4.0
        service.running = service.look(rate)
    assert service.autoscaler.rate() > rate


def test_who_is_turned_away_counts_as_one_who_comes() -> None:
    service = Service(running=1)
    service.pass_by(300, rate_for(1))
    found = [service.look(rate_for(5), refused=rate_for(4)) for _ in range(60)]
    assert found[3] >= needed(0.9 * rate_for(5))
    assert max(found) <= math.ceil(1.25 * needed(rate_for(5)))


def test_where_the_objective_is_missed_all_the_same_there_are_more_and_it_is_remembered() -> None:
    service = Service(running=4)
    rate = rate_for(4, 0.99)
    service.pass_by(300, rate)
    assert service.target == 4
    found = [service.look(rate, late=0.1 * rate) for _ in range(20)][-1]
    assert found > 4
    service.running = found
    # Also when those that were kept for a while have gone there is one more than was worked out.
    assert service.pass_by(hold_s(START_S) + STEADY_S, rate) == 5


def test_where_more_may_not_be_nothing_is_unlearned() -> None:
    service = Service(running=4)
    service.pass_by(300, rate_for(4))
    for _ in range(600):
        service.look(rate_for(4), late=rate_for(4))
        service.target = 4
    assert service.autoscaler.trust >= LEAST_TRUST
    service.pass_by(600, rate_for(4))
    assert service.target <= 8


def test_who_is_late_and_has_nothing_to_do_is_not_helped_by_others() -> None:
    service = Service(running=2)
    rate = 2 * (IDLE - 0.05) / EACH_S
    service.pass_by(300, rate)
    assert max(service.look(rate, late=rate) for _ in range(60)) == service.target


def test_while_others_are_on_their_way_no_more_are_asked_for() -> None:
    service = Service(running=2)
    service.pass_by(300, rate_for(2))
    found = [service.look(rate_for(6), late=rate_for(6)) for _ in range(60)]
    assert max(found) <= math.ceil(1.25 * needed(rate_for(6)))


def test_one_too_many_is_kept_for_what_its_start_is_worth_and_no_longer() -> None:
    service = Service(running=6)
    service.pass_by(400, rate_for(6))
    kept = 0
    while service.pass_by(1, rate_for(2)) == 6:
        kept += 1
    worth = hold_s(service.autoscaler.start_s)
    assert worth - 2 <= kept <= worth + STEADY_S
    assert service.pass_by(STEADY_S, rate_for(2)) == 2


@pytest.mark.parametrize(("value", "starts"), [(0.0, 1.0), (2e-6, 1 + 2e-6 * 3600), (1.0, math.inf)])
def test_one_too_many_is_kept_for_longer_the_more_its_predictions_are_worth(
    value: float, starts: float
) -> None:
    """At 1 EUR an hour; each request is of one row. Six replicas are idle from some moment on."""
    service = Service(running=6)
    service.autoscaler.money = (1.0, value)
    service.pass_by(400, rate_for(6))
    each = most_rate(service.autoscaler.fixed_s, service.autoscaler.each_s, TARGET_S)
    worth = 1 + (starts - 1) * each if math.isfinite(starts) else starts
    assert service.autoscaler.hold_s == pytest.approx(hold_s(START_S, worth), rel=0.05)
    kept = 0
    while service.pass_by(1, rate_for(2)) == 6:
        kept += 1
    assert service.autoscaler.hold_s - 2 <= kept <= service.autoscaler.hold_s + STEADY_S


def test_what_things_are_worth_is_read_where_the_project_says_both(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    policy = Policy(str(tmp_path), "m", 50.0, 256)

    def money(said: Any) -> tuple[float, float] | None:
        storage.write_json(said, "cost/settings", "m.json")
        return policy._money()

    assert policy._money() is None
    assert money({"replica_per_hour": 0.1, "value": 0.002}) == (0.1, 0.002)
    for damaged in ({"replica_per_hour": 0.1}, {"replica_per_hour": "a", "value": 1}, []):
        assert money(damaged) is None


@pytest.mark.parametrize("took", [5, 40, 120])
def test_what_a_start_takes_is_learned(took: int) -> None:
    service = Service(running=2)
    service.pass_by(100, 50.0)
    for times in range(1, 7):
        wanted, rate = service.target, 50.0 + 100.0 * times
        while service.look(rate) == wanted:
            pass
        for _ in range(took):
            service.look(rate)
        service.running = service.target
        service.pass_by(100, rate)
    assert service.autoscaler.start_s == pytest.approx(took, abs=0.2 * took + 2)
    assert hold_s(service.autoscaler.start_s) == min(HOLD * service.autoscaler.start_s, MOST_HOLD_S)


def test_what_batches_save_is_learned_and_makes_do_with_fewer() -> None:
    """Of 10 ms for a lone request 6 are for the batch: with two in each one takes 7."""
    autoscaler, told, rate, wanted = Autoscaler(TARGET_S, 256), Told(0.0), rate_for(10), 10
    for _ in range(1500):
        more = {"arrived": rate, "busy_s": rate * 0.007, "batches": rate / 2, "rows": rate}
        told = told.after(told.at + LOOK_S, more)
        wanted = autoscaler.look(told, 0.006, wanted, wanted)
    assert autoscaler.share == pytest.approx(0.6, abs=0.01)
    assert wanted == math.ceil(rate / most_rate(0.006, 0.004, TARGET_S)) < 10


def test_while_it_is_not_known_what_batches_save_it_is_tried() -> None:
    """With as many as would do without there never were two requests at once, and it were not learned."""
    one, many = (Service(max_rows=most).pass_by(600, rate_for(10)) for most in (1, 256))
    assert many < one == 10


def test_who_has_just_begun_to_look_takes_none_away() -> None:
    service = Service(running=9)
    assert {service.look(100.0) for _ in range(int(hold_s(START_S)) - 1)} == {9}


def test_where_no_number_holds_the_objective_there_are_not_ever_more() -> None:
    service = Service(running=1)
    service.autoscaler.target_s = EACH_S / 2
    assert service.pass_by(600, 50.0) <= 4


def wanted_at(lone: float, rate: float, share: float) -> int:
    """After some time, of a model whose lone p99 is so many times the objective."""
    each_s, fixed_s = (1 - share) * EACH_S, share * EACH_S
    autoscaler, told = Autoscaler(p99_s(0.0, fixed_s, each_s) / lone, share=share), Told(0.0)
    for _ in range(int(STEADY_S) + 2):
        busy = {"arrived": rate, "busy_s": rate * EACH_S, "batches": rate, "rows": rate}
        told = told.after(told.at + LOOK_S, busy)
        autoscaler.look(told, None, 0, 0)
    assert (autoscaler.fixed_s, autoscaler.each_s) == pytest.approx((fixed_s, each_s))
    return autoscaler.look(told, None, 0, 0)


LONE = [0.4, 0.5, *(0.8 + 0.02 * n for n in range(21)), 0.999, 0.9999, 1.0001]


@settings(max_examples=15)
@given(st.sampled_from([1.0, 20.0, 300.0]) | st.floats(0.5, 1000), st.floats(0, 0.8))
def test_where_a_lone_request_takes_nearly_all_of_the_objective_there_are_not_ever_more(
    rate: float, share: float
) -> None:
    """The tighter the more, but no more than so many that one always has nothing to do."""
    found = [wanted_at(lone, rate, share) for lone in sorted(LONE)]
    assert found == sorted(found)
    at_work = rate * EACH_S
    assert found[-1] <= max(found[1], math.ceil(at_work + 2.5 * math.sqrt(at_work) + 1))


# ---------------------------------------------------------------- as Serve asks


@pytest.fixture
def policy(storage: Storage) -> Policy:
    return Policy(str(storage.root), MODEL, 1000 * TARGET_S, 1)


def context(now: float, told: dict[str, dict[str, float]], running: int, target: int) -> Any:
    """What the controller hands over: what each replica told, by name."""
    series = {
        name: {each: [TimeStampedValue(now, counted[name])] for each, counted in told.items()}
        for name in TOLD
    }
    return SimpleNamespace(
        current_time=now, raw_metrics=series, current_num_replicas=running, target_num_replicas=target
    )


def counted(arrived: float, age_s: float = math.inf) -> dict[str, float]:
    values = (arrived, 0.0, 0.0, arrived * EACH_S, arrived, arrived)
    return dict(zip(COUNTED, values, strict=True)) | {FIXED_S: 0.0, AGE_S: age_s}


def asked(policy: Policy, rate: float, looks: int, running: int, begin: float = 0.0) -> Iterator[int]:
    """What the policy wants, second by second, of replicas that share so many requests."""
    target = running
    for second in range(looks):
        told = {f"r{each}": counted((begin + second) * rate / running) for each in range(running)}
        target, _ = policy(context(begin + second * LOOK_S, told, running, target))
        yield target


def test_the_replicas_counts_are_added_up(policy: Policy) -> None:
    assert list(asked(policy, rate_for(6), 100, running=3))[-1] == 6


@pytest.mark.parametrize("late", [0, 1, 5])
@pytest.mark.parametrize("unseen", [0, 3])
def test_of_a_controller_that_has_just_started_what_was_before_is_no_request(
    policy: Policy, unseen: int, late: int
) -> None:
    """Replicas have not told yet when it looks for the first time, and do not all tell at once."""
    for second in range(unseen + late + 100):
        told = {name: counted(1e6 + second, 1e5) for name in ("a", "b")[: 1 + (second >= unseen + late)]}
        assert policy(context(float(second), told if second >= unseen else {}, 2, 2))[0] == 2


def test_of_a_replica_that_has_just_started_all_counts(policy: Policy) -> None:
    for second in range(5):
        policy(context(float(second), {"a": counted(0.0)}, 1, 1))
    told = {"a": counted(0.0), "b": counted(rate_for(9), age_s=1.5)}
    found = [policy(context(float(second), told, 2, 2))[0] for second in range(5, 7)]
    assert found[-1] > 2


def test_a_replica_that_says_nothing_for_a_moment_is_not_new_after_it(policy: Policy) -> None:
    told = {"a": counted(1e6)}
    for second, seen in enumerate([told, {}, told, told, told]):
        assert policy(context(float(second), seen, 1, 1))[0] == 1


def test_between_two_looks_nothing_changes(policy: Policy) -> None:
    policy(context(0.0, {}, 1, 1))
    assert policy(context(0.1, {"a": counted(1e6)}, 1, 5))[0] == 5


@pytest.mark.parametrize("step_s", [-0.5, -30.0, -86_400.0, 90.0, 86_400.0])
def test_where_the_clock_is_set_nothing_changes_and_it_goes_on(policy: Policy, step_s: float) -> None:
    target, found = 2, []
    for second in range(200):
        now = float(second) + (step_s if second >= 100 else 0.0)
        came = rate_for(2) * min(second, 105) + rate_for(6) * max(second - 105, 0)
        target, _ = policy(context(now, {"a": counted(came)}, target, target))
        found.append(target)
    assert set(found[:105]) == {2}
    # As growth it may look like a quarter more.
    assert 6 <= found[110] <= max(found) <= 8


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, -1e9, "many", None])
@pytest.mark.parametrize("name", TOLD)
def test_odd_numbers_change_nothing_and_are_told_once(
    policy: Policy, name: str, odd: Any, caplog: pytest.LogCaptureFixture
) -> None:
    target, found = 2, []
    for second in range(200):
        told = {each: counted(second * rate_for(1)) for each in ("a", "b")}
        if second == 100:
            told["a"][name] = odd
        target, _ = policy(context(float(second), told, 2, target))
        found.append(target)
    assert set(found[:101]) == {2}
    # What was not told comes a second later.
    assert max(found) <= 3
    assert len(caplog.messages) <= 1


def test_a_look_that_fails_leaves_as_many_as_there_are(
    policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    for second in range(5):
        assert policy(context(float(second), {}, None, 3)) == (3, {})  # type: ignore[arg-type]
    assert caplog.messages == ["replicas of m: as many as before"]
    assert list(asked(policy, rate_for(6), 100, running=3, begin=5.0))[-1] == 6


def test_a_hold_ends_when_it_says(policy: Policy, storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    hold = {"most_replicas": 2, "why": "so", "until": 50.0}
    storage.write_json(hold, "cost", "holds", f"{MODEL}.json")
    with caplog.at_level(logging.WARNING):
        found = list(asked(policy, rate_for(9), 100, running=1))
    assert max(found[:50]) == 2
    assert found[-1] == 9
    assert caplog.messages == ["replicas of m: at most 2: so", "replicas of m: as many as are needed"]


def test_no_more_are_started_than_a_hold_allows_and_that_is_told_once(
    policy: Policy, storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    hold = {"most_replicas": 2, "why": "the day's budget is used up", "until": 1e6}
    storage.write_json(hold, "cost", "holds", f"{MODEL}.json")
    with caplog.at_level(logging.WARNING):
        assert list(asked(policy, rate_for(9), 100, running=1))[-1] == 2
        assert caplog.messages == ["replicas of m: at most 2: the day's budget is used up"]
        storage.path("cost", "holds", f"{MODEL}.json").unlink()
        assert list(asked(policy, rate_for(9), 100, running=1, begin=100.0))[-1] == 9
    assert caplog.messages[1:] == ["replicas of m: as many as are needed"]


UNTIL = b'{"most_replicas": 9, "why": "so", "until": "tomorrow"}'
FOR_GOOD = b'{"most_replicas": 1, "why": "so"}'


@pytest.mark.parametrize("written", [b"{", b"[1]", b'{"most_replicas": "two"}', UNTIL, FOR_GOOD])
def test_a_hold_that_is_damaged_lifts_none(
    written: bytes, policy: Policy, storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    hold = {"most_replicas": 2, "why": "so", "until": 1e6}
    storage.write_json(hold, "cost", "holds", f"{MODEL}.json")
    list(asked(policy, 400.0, 50, running=1))
    storage.path("cost", "holds", f"{MODEL}.json").write_bytes(written)
    assert list(asked(policy, 400.0, 50, running=1, begin=50.0))[-1] == 2
    assert len(caplog.messages) == 2
    assert "what it said before holds" in caplog.messages[1]


def test_a_damaged_hold_before_any_that_was_whole_holds_nothing_back(
    policy: Policy, storage: Storage
) -> None:
    storage.path("cost", "holds", f"{MODEL}.json").write_bytes(b"{")
    assert list(asked(policy, rate_for(9), 50, running=1))[-1] > 1


def test_serve_asks_our_policy_and_does_at_once_what_it_says(storage: Storage) -> None:
    serving = {"slo": {"p99_ms": 1000 * TARGET_S}, "replicas": {"max": 20}, "batching": {"max_rows": 1}}
    made = replica._scaled(packages.project(storage.root, serving=serving), storage)
    # As it reaches the controller: by value, from the deployment's configuration.
    ours = _apply_autoscaling_config(_resolve_policy_callable(made.policy))
    target = 1
    for second in range(6):
        seen = context(float(second), {"a": counted(rate_for(9) * second)}, 1, target)
        seen.config, seen.policy_state, seen.total_num_requests = made, {}, 0.0
        target, _ = ours(seen)
    assert target in {8, 9}
    assert made.metrics_interval_s == LOOK_S


def test_a_replica_tells_what_came_and_what_was_missed() -> None:
    load = Load(late_s=0.05, clock=lambda: 7.0)
    load.arrived, load.refused = 4, 1
    for took_s in (0.049, 0.051, 2.0):
        load.answered(took_s)
    counted = {"arrived": 4, "refused": 1, "late": 2, "busy_s": 1.5, "batches": 2, "rows": 30, "age_s": 0.0}
    assert load.told(1.5, 2, 30, 0.002) == counted | {"fixed_s": 0.002}
    assert load.told(1.5, 2, 30, None) == counted


def test_a_replica_is_as_old_as_what_it_counted() -> None:
    now = itertools.count(100.0, 10.0)
    load, ages = Load(late_s=0.05, clock=lambda: next(now)), []
    for load.arrived in (0, 0, 2, 2):
        ages.append(load.told(0.0, 0, 0, None)[AGE_S])
    assert ages == [0.0, 0.0, 10.0, 20.0]
