"""A challenger beside the champion in one replica: who is answered by whom, and what is counted of both."""

import asyncio
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from mlops_ray.data import labels, prediction_log
from mlops_ray.data.counts import Counts
from mlops_ray.errors import PackageError, RequestError
from mlops_ray.monitoring import outcomes
from mlops_ray.monitoring.outcomes import Scale
from mlops_ray.monitoring.sides import ERRORS, OUTPUT, SLOW, bucket
from mlops_ray.registry.explain import Contributions
from mlops_ray.registry.predictor import Answer
from mlops_ray.serving import contest, heartbeats, record
from mlops_ray.storage import Storage
from tests.serving.calls import Answered, call, call_async, run
from tests.serving.standin import MODEL, PATIENT_MS, ROW, InProcess, StandIn, served

#: Of answers around 50, which differ by about as much.
REFERENCE = Counts(
    served().reference.specs, [np.array([0, 50, 50, 0, 0]), np.array([0, 100, 0, 0])], rows=100
)
PATH = f"/v2/models/{MODEL}/invocations"
KEYS = [f"meter-{number}" for number in range(300)]


class Moved(StandIn):
    """Answers 1,000 more than the champion."""

    def predict(self, inputs: pl.DataFrame, /) -> Answer:
        answer = super().predict(inputs)
        return replace(answer, values=answer.values + 1_000)


class Failing(StandIn):
    """Breaks at every row but that of its rehearsal."""

    def predict(self, inputs: pl.DataFrame, /) -> Answer:
        if inputs["load"].is_null().all():
            return super().predict(inputs)
        raise ZeroDivisionError("secret")


class Hanging(StandIn):
    """Never answers a row until the end, but that of its rehearsal."""

    def __init__(self) -> None:
        super().__init__()
        self.end = threading.Event()

    def predict(self, inputs: pl.DataFrame, /) -> Answer:
        if not inputs["load"].is_null().all():
            self.end.wait()
        return super().predict(inputs)


class Refusing(StandIn):
    """Takes every row for a bad one."""

    def predict(self, inputs: pl.DataFrame, /) -> Answer:
        answer = super().predict(inputs)
        failed = pl.DataFrame(
            {
                "row": range(inputs.height),
                "column": "load",
                "rule": "max",
                "value": "1",
                "severity": "reject",
            },
            schema=answer.failures.schema,
        )
        return replace(answer, values=np.full(inputs.height, np.nan), failures=failed)


class Unexplained(StandIn):
    """Of a family that cannot tell what each feature contributes."""

    def explain(self, features: pl.DataFrame, hidden: frozenset[str], /) -> Contributions:
        raise RequestError("the family mlp gives no contributions")


class Replica(InProcess):
    def release(self, turn: int, **shares: float) -> None:
        champion, challenger = ({"version": v, "digest": f"digest {v}"} for v in ("1", "2"))
        named = {"champion": champion, "challenger": challenger, "turn": turn, **shares}
        record.write(self.storage, record.new(MODEL) | named)

    def ask(self, many: list[str], *, rest: bool = False, **more: Any) -> list[Answered]:
        """One request of each key, one after the other in one loop; `rest` waits for the copies."""

        async def all_of() -> list[Answered]:
            await self.follow()
            found = [await self.one(key, **more) for key in many]
            while rest and (going := self.versions.contest) and going._copying:
                await asyncio.sleep(0)
            return found

        return run(all_of())

    async def one(
        self, key: str, role: str = "predict", row: dict[str, Any] = ROW, **headers: str
    ) -> Answered:
        given = {"x-routing-key": key, "x-request-id": f"of-{key}"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        document = {"dataframe_records": [row]}
        return await call_async(
            self.endpoint, "POST", PATH, key=self.keys[role], json=document, headers=given
        )


def replica(storage: Storage, challenger: Any, *, p99_ms: float = PATIENT_MS) -> Replica:
    """A replica whose challenger is this one, or cannot be loaded, or only after this event."""

    def load(entry: dict[str, Any]) -> Any:
        if entry["version"] == "2" and isinstance(challenger, threading.Event):
            challenger.wait()
        if entry["version"] == "2" and isinstance(challenger, Exception):
            raise challenger
        is_one = entry["version"] == "2" and isinstance(challenger, StandIn)
        one = served(entry["version"], challenger if is_one else StandIn())
        return replace(one, reference=REFERENCE)

    return Replica(storage, load, p99_ms=p99_ms)


@pytest.fixture
def moved(storage: Storage) -> Replica:
    return replica(storage, Moved())


def version(reply: Answered) -> str:
    assert reply.status == 200
    return str(reply.json["model_version"])


def test_a_key_keeps_its_version_and_more_weight_moves_keys_one_way(moved: Replica) -> None:
    moved.release(1, weight=20.0)
    first, again = ([version(reply) for reply in moved.ask(KEYS)] for _ in range(2))
    assert first == again
    assert 0.1 < first.count("2") / len(KEYS) < 0.3
    moved.release(2, weight=60.0)
    later = [version(reply) for reply in moved.ask(KEYS)]
    assert all(now >= before for now, before in zip(later, first, strict=True))
    assert 0.5 < later.count("2") / len(KEYS) < 0.7


def test_without_a_key_a_request_goes_by_its_id(moved: Replica) -> None:
    moved.release(1, weight=50.0)

    async def both() -> list[str]:
        await moved.follow()
        path, key, body = PATH, moved.keys["predict"], {"dataframe_records": [ROW]}
        replies = [
            await call_async(moved.endpoint, "POST", path, key=key, json=body, headers={"x-request-id": id})
            for id in [f"id-{number}" for number in range(100)] * 2
        ]
        return [version(reply) for reply in replies]

    found = run(both())
    assert found[:100] == found[100:]
    assert set(found) == {"1", "2"}


def test_both_sides_are_counted_apart_and_answers_in_standard_deviations(moved: Replica) -> None:
    moved.release(1, weight=50.0)
    answered = [version(reply) for reply in moved.ask(KEYS)]
    champion, challenger = moved.outbox.sides(1)
    assert (champion.requests, challenger.requests) == (answered.count("1"), answered.count("2"))
    assert champion.figures[ERRORS].mean == challenger.figures[ERRORS].mean == 0
    mean, spread = contest.scale(REFERENCE)
    assert (mean, spread) == (50.0, 50.0)
    # The row of all requests is answered 13, and 1,013, which is simply far away.
    assert champion.figures[OUTPUT].mean == pytest.approx((13 - mean) / spread)
    assert challenger.figures[OUTPUT].mean == contest.FAR


@pytest.mark.parametrize("challenger", [Failing(), Refusing()])
def test_where_the_challenger_fails_the_champion_answers_and_the_error_counts(
    storage: Storage, challenger: StandIn
) -> None:
    failing = replica(storage, challenger)
    failing.release(1, weight=50.0)
    assert {version(reply) for reply in failing.ask(KEYS)} == {"1"}
    champion, challenged = failing.outbox.sides(1)
    assert champion.figures[ERRORS].mean == 0
    assert challenged.figures[ERRORS].mean == 1
    assert challenged.requests > 100


def test_where_the_challenger_cannot_explain_the_champion_does_and_the_error_counts(storage: Storage) -> None:
    unexplained = replica(storage, Unexplained())
    unexplained.release(1, weight=50.0)
    body = {"dataframe_records": [ROW], "params": {"explain": True}}

    async def why() -> list[Answered]:
        await unexplained.follow()
        key, asked = unexplained.keys["predict"], [{"x-routing-key": each} for each in KEYS[:50]]
        return [
            await call_async(unexplained.endpoint, "POST", PATH, key=key, json=body, headers=each)
            for each in asked
        ]

    replies = run(why())
    assert {version(reply) for reply in replies} == {"1"}
    assert all(reply.json["contributions"]["features"] == ["load", "hour"] for reply in replies)
    champion, challenged = unexplained.outbox.sides(1)
    assert champion.figures[ERRORS].mean == 0
    assert challenged.figures[ERRORS].mean == 1
    assert challenged.requests + champion.requests == 50


def test_a_challenger_that_hangs_is_waited_for_no_longer_than_any_caller_is_made_to(
    storage: Storage,
) -> None:
    challenger = Hanging()
    hanging = replica(storage, challenger, p99_ms=25.0)
    hanging.release(1, weight=99.0)

    async def answered() -> set[str]:
        await hanging.follow()
        try:
            return {version(await hanging.one(key)) for key in KEYS[:3]}
        finally:
            # The loop does not end before its threads do.
            challenger.end.set()

    assert run(answered()) == {"1"}
    assert hanging.outbox.sides(1)[1].figures[ERRORS].mean == 1


def test_callers_with_little_time_and_rows_of_nothing_tell_nothing_against_the_challenger(
    moved: Replica,
) -> None:
    moved.release(1, weight=50.0)
    late = moved.ask(KEYS[:20], x_timeout_ms="1")
    assert {reply.status for reply in late} <= {200, 429, 504}
    key, body = moved.keys["predict"], {"dataframe_records": []}
    for each in KEYS[:20]:
        headers = {"x-routing-key": each}
        assert call(moved.endpoint, "POST", PATH, key=key, json=body, headers=headers).status == 422
    for side in moved.outbox.sides(1):
        assert ERRORS not in side.figures or side.figures[ERRORS].total.sum() == 0


def test_while_a_challenger_is_loaded_what_is_live_is_followed(storage: Storage) -> None:
    is_loaded = threading.Event()
    slow = replica(storage, is_loaded)
    slow.release(1, weight=50.0)

    async def switched() -> list[str]:
        await slow.versions.refresh()
        document = record.read(storage, MODEL)
        other = {"version": "3", "digest": "digest 3"}
        record.write(storage, document | {"champion": other, "previous": document["champion"], "turn": 2})
        await slow.versions.refresh()
        followed = [version(await slow.one("meter-1"))]
        (told,) = heartbeats.followers(storage, MODEL)
        assert "2 digest 2" not in told.loaded
        is_loaded.set()
        await slow.versions.settled()
        (told,) = heartbeats.followers(storage, MODEL)
        return [*followed, *sorted(told.loaded)]

    assert run(switched()) == ["3", "1 digest 1", "2 digest 2", "3 digest 3"]


def test_where_the_champion_cannot_be_loaded_others_are(storage: Storage) -> None:
    """So that a good version can take its place."""
    broken = replica(storage, Moved())

    def load(entry: dict[str, Any]) -> Any:
        if entry["version"] == "1":
            raise PackageError("a file is missing")
        return served(entry["version"], Moved())

    broken.versions._load = load
    broken.release(1)

    async def tried() -> None:
        with pytest.raises(PackageError):
            await broken.versions.refresh()
        await broken.versions.settled()

    run(tried())
    (told,) = heartbeats.followers(storage, MODEL)
    assert told.loaded == ("2 digest 2",)


def test_a_champion_that_is_loaded_late_takes_its_place_beside_the_challenger(storage: Storage) -> None:
    late = replica(storage, Moved())
    load, is_away = late.versions._load, True

    def loaded(entry: dict[str, Any]) -> Any:
        if entry["version"] == "3" and is_away:
            raise PackageError("a file is missing")
        return load(entry)

    late.versions._load = loaded
    late.release(1)

    async def answered() -> list[str]:
        nonlocal is_away
        await late.follow()
        document = record.read(storage, MODEL)
        new = {"version": "3", "digest": "digest 3"}
        moved = {"champion": new, "previous": document["champion"], "turn": 2, "weight": 0.001}
        record.write(storage, document | moved)
        with pytest.raises(PackageError):
            await late.versions.refresh()
        await late.versions.settled()
        before = version(await late.one("meter-1"))
        # As the poll does it after a failure.
        late.versions._seen, is_away = None, False
        await late.follow()
        return [before, version(await late.one("meter-1"))]

    assert run(answered()) == ["1", "3"]


def test_a_row_that_is_bad_for_both_is_refused_and_tells_nothing_against_the_challenger(
    moved: Replica,
) -> None:
    moved.release(1, weight=50.0)
    assert {reply.status for reply in moved.ask(KEYS, row=ROW | {"load": -1})} == {422}
    assert moved.outbox.sides(1)[0].requests == moved.outbox.sides(1)[1].requests == 0


def compared(replica: Replica) -> list[tuple[Any, ...]]:
    """What the log tells of rows: their routes, their turns and the buckets of their keys."""
    replica.log.flush()
    rows = prediction_log.read(replica.storage, MODEL).select("request_id", "route", "turn", "key_bucket")
    return sorted(rows.collect().rows(), key=str)


def test_the_log_tells_turn_and_bucket_of_what_is_compared_alone(moved: Replica) -> None:
    moved.release(1)
    moved.ask(["one"], x_request_id="before")
    moved.release(2, shadow=100.0)
    moved.ask(["one"], rest=True, x_request_id="copied")
    moved.release(3, weight=100.0)
    moved.ask(["one"], x_request_id="tried")
    moved.ask(["one"], role="admin", x_request_id="wished", x_model_version="2")
    at = bucket("one")
    assert compared(moved) == [
        ("before", "champion", None, None),
        ("copied", "champion", 2, at),
        ("copied", "shadow", 2, at),
        ("tried", "challenger", 3, at),
        ("wished", "challenger", None, None),
    ]


@pytest.mark.parametrize("shares", [{"weight": 50.0}, {"shadow": 100.0}])
def test_labels_that_callers_send_tell_what_both_lose(moved: Replica, shares: dict[str, float]) -> None:
    moved.release(1, **shares)
    answered = moved.ask(KEYS[:40], rest=True)
    truth = [{"request_id": reply.json["id"], "label": 9.0} for reply in answered]
    path, key = f"/v2/models/{MODEL}/labels", moved.keys["label"]
    assert call(moved.endpoint, "POST", path, key=key, json={"labels": truth}).status == 200
    moved.log.flush()
    log = prediction_log.scan(prediction_log.since(moved.storage, MODEL, 0.0))
    known = [each.collect() for each in labels.scan(labels.since(moved.storage, MODEL, 0.0))]
    ((ours, theirs),) = outcomes.losses(log, known, "1", Scale("mae", 4.0, 1e9), after=0)
    # The champion answers 13 to every row, the challenger 1,013.
    assert (ours.mean, theirs.mean) == (1.0, 251.0)
    tried = [version(reply) for reply in answered].count("2")
    assert (ours.count, theirs.count) == ((40, 40) if "shadow" in shares else (40 - tried, tried))
    assert theirs.count > 5


def test_where_the_champion_steps_in_its_answer_is_not_compared(storage: Storage) -> None:
    failing = replica(storage, Failing())
    failing.release(1, weight=100.0)
    failing.ask(["one"], x_request_id="saved")
    assert compared(failing) == [("saved", "champion", None, None)]


@pytest.mark.parametrize("shares", [{"weight": 100.0}, {"shadow": 100.0}])
def test_who_asked_is_counted_once_whoever_answers(storage: Storage, shares: dict[str, float]) -> None:
    asked = replica(storage, Failing() if "weight" in shares else Moved())
    asked.release(1, **shares)
    asked.ask(KEYS[:3], rest=True)
    told = asked.outbox.delta()
    assert told is not None
    counted = {version: tally["keys"] for version, tally in told["versions"].items() if tally["keys"]}
    assert counted == {"1": {"predict": 3}}


def test_what_a_caller_does_wrong_is_nobodys_error(moved: Replica) -> None:
    moved.release(1, weight=50.0)
    run(moved.follow())
    assert call(moved.endpoint, "POST", PATH, key=moved.keys["predict"], body=b"{").status == 400
    assert moved.outbox.sides(1)[0].requests == moved.outbox.sides(1)[1].requests == 0


def test_an_admin_may_ask_for_a_version_and_nobody_else(moved: Replica) -> None:
    moved.release(1, weight=0.0, shadow=100.0)
    (reply,) = moved.ask(["meter-1"], role="admin", x_model_version="2")
    assert version(reply) == "2"
    assert [r.status for r in moved.ask(["meter-1"], x_model_version="2")] == [403]
    assert [r.status for r in moved.ask(["meter-1"], role="admin", x_model_version="9")] == [404]
    path, body = f"/v2/models/{MODEL}/versions/2/invocations", {"dataframe_records": [ROW]}
    for role, status in (("predict", 403), ("admin", 200)):
        assert call(moved.endpoint, "POST", path, key=moved.keys[role], json=body).status == status
    assert moved.outbox.sides(1)[1].requests == 0


def test_in_shadow_the_champion_answers_and_pairs_of_answers_are_compared(moved: Replica) -> None:
    moved.release(1, shadow=100.0)
    assert {version(reply) for reply in moved.ask(KEYS[:40], rest=True)} == {"1"}
    champion, challenger = moved.outbox.sides(1)
    assert champion.requests == challenger.requests == 40
    assert champion.figures[OUTPUT].mean == 0
    # All rows are the same, and so is what they are moved by.
    assert challenger.figures[OUTPUT].mean > 5
    assert challenger.figures[OUTPUT].variance == pytest.approx(0, abs=1e-9)
    moved.log.flush()
    routes = prediction_log.read(moved.storage, MODEL).group_by("route", "model_version").len().collect()
    assert sorted(routes.rows()) == [("champion", "1", 40), ("shadow", "2", 40)]


@pytest.mark.parametrize("challenger", [Failing(), Refusing()])
def test_in_shadow_a_challenger_that_fails_is_counted_and_no_caller_hears_of_it(
    storage: Storage, challenger: StandIn
) -> None:
    failing = replica(storage, challenger)
    failing.release(1, shadow=100.0)
    assert {version(reply) for reply in failing.ask(KEYS[:40], rest=True)} == {"1"}
    champion, challenged = failing.outbox.sides(1)
    assert (champion.figures[ERRORS].mean, challenged.figures[ERRORS].mean) == (0, 1)


def test_copies_that_are_too_many_are_dropped_and_nobody_waits(moved: Replica) -> None:
    moved.release(1, shadow=100.0)

    async def burst() -> int:
        await moved.follow()
        replies = await asyncio.gather(*(moved.one(key) for key in KEYS))
        assert {version(reply) for reply in replies} == {"1"}
        going = moved.versions.contest
        assert going is not None
        return len(going._copies)

    # Some are asked meanwhile.
    assert contest.MOST_COPIES - contest.TOGETHER <= run(burst()) <= contest.MOST_COPIES


def test_latency_is_compared_with_the_champions_p99_once_that_is_known(
    moved: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contest, "FIRST", 50)
    moved.release(1, weight=50.0)
    moved.ask(KEYS[:60])
    assert SLOW not in moved.outbox.sides(1)[1].figures
    moved.ask(KEYS)
    # It goes on in the next step.
    moved.release(2, weight=80.0)
    moved.ask(KEYS)
    champion, challenger = moved.outbox.sides(2)
    assert champion.figures[SLOW].count == champion.requests > 0
    assert challenger.figures[SLOW].count == challenger.requests > 0


def test_what_a_replica_holds_is_told_and_what_it_cannot_load_with_the_reason(storage: Storage) -> None:
    broken = replica(storage, PackageError("a file is missing"))
    broken.release(3, weight=50.0)
    assert {version(reply) for reply in broken.ask(KEYS)} == {"1"}
    (told,) = heartbeats.followers(storage, MODEL)
    assert (told.id, told.turn, told.loaded) == ("replica", 3, ("1 digest 1",))
    assert told.errors == {"2 digest 2": "a file is missing"}
    assert told.is_alive
    broken.versions.close()
    assert heartbeats.followers(storage, MODEL) == []


def test_before_the_first_version_is_champion_requests_are_told_to_wait(moved: Replica) -> None:
    """Another replica may have followed already."""
    moved.release(1)
    document = record.read(moved.storage, MODEL)
    record.write(moved.storage, document | {"champion": None})
    assert [reply.status for reply in moved.ask(["meter-1"])] == [503]
    assert moved.versions.loaded == ["2"]


def test_a_challenger_that_becomes_champion_is_a_change_of_reference(moved: Replica) -> None:
    moved.release(1, weight=50.0)
    moved.ask(KEYS[:1])
    held = moved.versions.challenger
    document = record.read(moved.storage, MODEL)
    promoted = {"champion": document["challenger"], "previous": document["champion"], "challenger": None}
    record.write(moved.storage, document | promoted | {"turn": 2, "weight": 0.0})
    assert {version(reply) for reply in moved.ask(KEYS)} == {"2"}
    assert moved.versions.champion is held
    assert moved.versions.contest is None
    assert sorted(moved.versions.loaded) == ["1", "2"]
