"""Counts reach the monitor exactly once, whatever is killed, repeated or delayed on the way."""

from collections import Counter
from typing import Any

import numpy as np
import orjson
import polars as pl
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mlops_ray.data.counts import CountSpec
from mlops_ray.monitoring import deltas
from mlops_ray.monitoring.deltas import Outbox, Tally
from mlops_ray.monitoring.drift import MIN_ROWS
from mlops_ray.monitoring.sides import ERRORS, bucket
from mlops_ray.monitoring.state import MAX_VERSIONS, MINUTES, ModelState, counted

SPECS = (CountSpec("x", "numeric", edges=(0.0, 1.0)), CountSpec("prediction", "numeric", edges=(0.0, 1.0)))
DAY_S = 86_400.0


def answer(outbox: Outbox, version: str, rows: int, value: float = 0.5, key: str = "shop") -> None:
    tally = outbox.tally(version, SPECS)
    tally.keys[key] += rows
    tally.traffic.requests["200"] += 1
    tally.observe(pl.DataFrame({"x": [value] * rows}), np.full(rows, value))


def over_the_wire(delta: Any) -> Any:
    return orjson.loads(orjson.dumps(delta))


class ReplicasAndMonitor(RuleBasedStateMachine):
    """Two replicas and a monitor that is killed at any moment: it knows what it acknowledged, once."""

    def __init__(self) -> None:
        super().__init__()
        self.outboxes = [Outbox("m"), Outbox("m")]
        self.disk: Any = ModelState("m").to_json()
        self.monitor = ModelState("m")
        self.told: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()

    @rule(replica=st.integers(0, 1), version=st.sampled_from("12"), rows=st.integers(1, 700))
    def answers(self, replica: int, version: str, rows: int) -> None:
        answer(self.outboxes[replica], version, rows)
        self.answered[version] += rows

    @rule(
        replica=st.integers(0, 1),
        fate=st.sampled_from(["stored", "stored, then killed", "killed before it is stored", "reply lost"]),
    )
    def sends(self, replica: int, fate: str) -> None:
        delta = over_the_wire(self.outboxes[replica].delta())
        if delta is None:
            return
        self.monitor.receive(delta, 0.0)
        if fate != "killed before it is stored":
            self.disk = over_the_wire(self.monitor.to_json())
        if "killed" in fate:
            self.monitor = ModelState.from_json(over_the_wire(self.disk))
        if fate == "stored":
            self.outboxes[replica].acknowledge(delta["sequence"])

    @invariant()
    def nothing_is_counted_twice(self) -> None:
        for version, watched in self.monitor.versions.items():
            assert watched.rows <= self.answered[version]

    def teardown(self) -> None:
        for outbox in self.outboxes:
            for _ in range(2):
                if (delta := outbox.delta()) is not None:
                    self.monitor.receive(over_the_wire(delta), 0.0)
                    outbox.acknowledge(delta["sequence"])
        assert {v: w.rows for v, w in self.monitor.versions.items()} == dict(self.answered)
        assert all(w.window.counts.rows == w.rows for w in self.monitor.versions.values())
        asked = {v: sum((h.keys for h in w.hours), Counter()) for v, w in self.monitor.versions.items()}
        assert asked == {version: Counter({"shop": rows}) for version, rows in self.answered.items()}


ReplicasAndMonitor.TestCase.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)
TestCountsReachTheMonitorExactlyOnce = ReplicasAndMonitor.TestCase


def test_a_delta_is_repeated_until_it_is_acknowledged() -> None:
    outbox = Outbox("m")
    assert outbox.delta() is None
    answer(outbox, "1", 3)
    first = outbox.delta()
    answer(outbox, "1", 2)
    assert outbox.delta() is first
    outbox.acknowledge(first["sequence"] + 1)  # type: ignore[index]
    assert outbox.delta() is first
    outbox.acknowledge(first["sequence"])  # type: ignore[index]
    assert outbox.delta()["versions"]["1"]["counts"]["rows"] == 2  # type: ignore[index]


def test_rows_without_an_answer_are_not_counted() -> None:
    tally = Tally.empty(SPECS)
    tally.observe(pl.DataFrame({"x": [0.5, 9.0]}), np.array([0.5, np.nan]))
    tally.count()
    assert [cells.tolist() for cells in tally.counts.cells] == [[0, 1, 0, 0], [0, 1, 0, 0]]


def test_a_replica_keeps_few_uncounted_rows() -> None:
    tally = Tally.empty(SPECS)
    for _ in range(10 * deltas.COUNTED_TOGETHER):
        tally.observe(pl.DataFrame({"x": [0.5]}), np.array([0.5]))
        assert sum(len(values) for _, values in tally._uncounted) < deltas.COUNTED_TOGETHER
    tally.count()
    assert tally.counts.rows == 10 * deltas.COUNTED_TOGETHER


def told(state: ModelState, rows: int, now: float, version: str = "1") -> None:
    outbox = Outbox("m")
    answer(outbox, version, rows)
    assert state.receive(over_the_wire(outbox.delta()), now)


def test_sides_of_a_turn_are_counted_once_and_those_of_an_earlier_turn_no_more() -> None:
    state, outbox = ModelState("m"), Outbox("m")

    def compared(turn: int, requests: int) -> None:
        for number in range(requests):
            for side in outbox.sides(turn):
                side.add(bucket(f"key-{number}"), {ERRORS: 1.0})
        delta = over_the_wire(outbox.delta())
        for _ in range(2):
            state.receive(delta, 0.0)
        outbox.acknowledge(delta["sequence"])

    compared(3, 5)
    compared(3, 2)
    compared(2, 9)
    turn, sides = counted(over_the_wire(ModelState.from_json(over_the_wire(state.to_json())).to_json()))
    assert (turn, [side.requests for side in sides]) == (3, [7, 7])
    compared(4, 1)
    turn, sides = counted(state.to_json())
    assert (turn, [side.requests for side in sides]) == (4, [1, 1])
    assert counted({}) == (-1, None)


def test_a_window_closes_after_its_time_and_enough_rows() -> None:
    state = ModelState("m")
    told(state, MIN_ROWS - 1, now=0.0)
    told(state, 1, now=2 * DAY_S)
    assert state.versions["1"].last is None
    told(state, 5, now=2 * DAY_S + 1)
    watched = state.versions["1"]
    assert (watched.last.since, watched.last.until, watched.last.counts.rows) == (
        0.0,
        2 * DAY_S + 1,
        MIN_ROWS,
    )
    assert (watched.window.counts.rows, watched.rows) == (5, MIN_ROWS + 5)


def test_the_last_window_speaks_until_the_open_one_has_enough_rows() -> None:
    state = ModelState("m")
    told(state, MIN_ROWS, now=0.0)
    told(state, 1, now=DAY_S)
    watched = state.versions["1"]
    assert watched.judged() is watched.last
    told(state, MIN_ROWS, now=DAY_S + 1)
    assert watched.judged() is watched.window


def test_memory_does_not_grow_with_time_senders_or_versions() -> None:
    state = ModelState("m")
    for minute in range(3 * MINUTES):
        told(state, 1, now=minute * 60.0)
    for version in range(3 * MAX_VERSIONS):
        told(state, 1, now=10 * DAY_S, version=str(version))
    assert len(state.versions) == MAX_VERSIONS
    assert len(state.sources) == 3 * MAX_VERSIONS  # those of ten days ago are forgotten
    assert all(len(watched.minutes) <= MINUTES for watched in state.versions.values())
