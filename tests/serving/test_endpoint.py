"""A model's HTTP interface: who may call, what is answered, and that nothing of a caller's leaks or mixes."""

import asyncio
import contextlib
import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest

from mlops_ray import keys
from mlops_ray.data import error_log, labels, prediction_log
from mlops_ray.data.erased import Erased
from mlops_ray.errors import PackageError, RequestError, StorageError
from mlops_ray.keys import Keyring
from mlops_ray.serving import record, release, truth
from mlops_ray.serving.admission import LET_IN
from mlops_ray.serving.endpoint import MOST_BODIES, MOST_UNREAD, MOST_WHYS, SMALL_BYTES
from mlops_ray.storage import Storage
from tests.serving.calls import Answered, call, call_async, run
from tests.serving.standin import MODEL, ROW, InProcess, OfAmounts, StandIn, served

BASE = f"/v2/models/{MODEL}"
ANSWER = 2 * ROW["load"] + 10
RECORDS = {"dataframe_records": [ROW]}
INPUTS = [{"name": name, "shape": [1], "datatype": "BYTES", "data": [value]} for name, value in ROW.items()]


class Service(InProcess):
    """The document in its storage says what is live."""

    def release(self, version: str) -> None:
        document = record.read(self.storage, MODEL) or record.new(MODEL)
        champion = {"version": version, "digest": f"digest {version}"}
        record.write(self.storage, release.crowned(document, champion, document["champion"], 0.0))
        run(self.follow())

    def call(self, method: str, path: str, role: str | None = "predict", **more: Any) -> Answered:
        return call(self.endpoint, method, BASE + path, key=self.keys.get(role or ""), **more)

    @property
    def delta(self) -> dict[str, Any]:
        return self.outbox.delta()["versions"]  # type: ignore[index, no-any-return]


def load(entry: dict[str, Any]) -> Any:
    if entry["version"] == "broken":
        raise PackageError("the package is damaged")
    return served(entry["version"], StandIn())


@pytest.fixture
def empty(storage: Storage) -> Service:
    return Service(storage, load)


@pytest.fixture
def service(empty: Service) -> Service:
    empty.release("1")
    return empty


def test_a_prediction_says_which_version_answered_and_to_which_request(service: Service) -> None:
    reply = service.call("POST", "/invocations", json=RECORDS)
    assert reply.status == 200
    assert reply.json == {"predictions": [ANSWER], "model_name": MODEL, "model_version": "1", "id": "id-1"}
    assert reply.headers["x-request-id"] == "id-1"


def test_rows_are_counted_by_the_name_of_the_key_that_asked_and_none_that_were_refused(
    service: Service,
) -> None:
    for role, rows in (("predict", 2), ("predict", 3), ("admin", 1)):
        assert (
            service.call("POST", "/invocations", role, json={"dataframe_records": [ROW] * rows}).status == 200
        )
    service.call("POST", "/invocations", "read", json=RECORDS)
    service.call("POST", "/invocations", json={"dataframe_records": [{"load": "many"}]})
    delta = service.delta["1"]
    assert delta["keys"] == {"predict": 5, "admin": 1}
    assert not any(key in orjson.dumps(delta).decode() for key in service.keys.values())


def test_it_tells_what_came_and_what_it_took(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        service.call("POST", "/invocations", json=RECORDS)
    service.call("GET", "/ready", None)
    # What cannot be read is no request that says what one takes.
    service.call("POST", "/invocations", json={"dataframe_records": 1})
    told = service.endpoint.told()
    assert (told["arrived"], told["refused"], told["late"], told["batches"], told["rows"]) == (3, 0, 0, 3, 3)
    assert 0 < told["busy_s"] < 10
    # All of one size: what more would cost is not known.
    assert "fixed_s" not in told
    monkeypatch.setattr(service.endpoint._load, "late_s", 0.0)
    service.call("POST", "/invocations", json={"dataframe_records": [ROW, ROW]})
    admission = service.endpoint.admission
    for _ in range(200):
        admission.learn(LET_IN, LET_IN, admission.clock() - 0.25)
    for _ in range(LET_IN):
        admission.take(None, 1)
    assert service.call("POST", "/invocations", json=RECORDS, headers={"x-timeout-ms": "100"}).status == 429
    # Who waits for less than the objective is owed nothing: no caller brings replicas so.
    monkeypatch.setattr(service.endpoint._load, "late_s", 0.05)
    assert service.call("POST", "/invocations", json=RECORDS, headers={"x-timeout-ms": "1"}).status == 429
    told = service.endpoint.told()
    assert (told["arrived"], told["refused"], told["late"]) == (5, 1, 1)
    assert told["fixed_s"] >= 0


def test_a_request_without_an_id_gets_one(service: Service) -> None:
    for given in ("", "x" * 200):
        reply = service.call("POST", "/invocations", json=RECORDS, headers={"x-request-id": given})
        assert reply.json["id"] == reply.headers["x-request-id"]
        assert len(reply.json["id"]) == 32


def test_both_dialects_and_the_named_version_give_the_same_answer(service: Service) -> None:
    reply = service.call("POST", "/versions/1/infer", json={"inputs": INPUTS}, parts=7)
    assert reply.json["outputs"] == [
        {"name": "prediction", "datatype": "FP64", "shape": [1], "data": [ANSWER]}
    ]


@pytest.fixture
def classifier(service: Service) -> Service:
    """Answers of at least 13 count as a yes: a load of 1.5 has 13, one of 1.4 has 12.8."""
    service.versions.champion.served = replace(service.versions.champion.served, threshold=ANSWER)  # type: ignore[union-attr]
    return service


def test_a_classification_answers_with_the_number_and_the_decision(classifier: Service) -> None:
    rows = [ROW, ROW | {"load": 1.4}]
    reply = classifier.call("POST", "/invocations", json={"dataframe_records": rows}).json
    assert (reply["predictions"], reply["decisions"]) == ([13.0, 12.8], [True, False])
    outputs = classifier.call("POST", "/infer", json={"inputs": INPUTS}).json["outputs"]
    assert outputs[1] == {"name": "decision", "datatype": "BOOL", "shape": [1], "data": [True]}
    wanted = {"inputs": INPUTS, "outputs": [{"name": "decision"}]}
    (only,) = classifier.call("POST", "/infer", json=wanted).json["outputs"]
    assert only["name"] == "decision"
    described = classifier.call("GET", "", role="read").json["outputs"]
    assert [(output["name"], output["datatype"]) for output in described] == [
        ("prediction", "FP64"),
        ("decision", "BOOL"),
    ]


def test_a_regression_has_no_decision(service: Service) -> None:
    reply = service.call("POST", "/infer", json={"inputs": INPUTS, "outputs": [{"name": "decision"}]})
    assert (reply.status, reply.json["error"]) == (400, "no output 'decision'; the model has 'prediction'")


def test_metadata_lists_the_columns(service: Service) -> None:
    reply = service.call("GET", "", role="read").json
    assert [column["name"] for column in reply["inputs"]] == list(ROW)
    assert (reply["name"], reply["versions"]) == (MODEL, ["1"])


ROUTES = {
    ("GET", ""): {"predict", "read", "admin"},
    ("POST", "/infer"): {"predict", "admin"},
    ("POST", "/invocations"): {"predict", "admin"},
    ("GET", "/versions/1"): {"predict", "read", "admin"},
    ("POST", "/versions/1/infer"): {"predict", "admin"},
    ("POST", "/versions/9/infer"): {"predict", "admin"},
    ("GET", "/nothing"): {"predict", "admin"},
    ("DELETE", ""): {"predict", "read", "admin"},
    ("GET", "/infer"): {"predict", "admin"},
    ("PUT", "/versions/1/invocations"): {"predict", "admin"},
    ("GET", "/versions/"): {"predict", "read", "admin"},
    ("GET", "%2Finfer"): {"predict", "admin"},
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("role", ["predict", "label", "read", "admin", None, "wrong"])
def test_no_route_answers_without_a_key_of_its_role(
    service: Service, route: tuple[str, str], role: str | None
) -> None:
    service.keys["wrong"] = "wrong"
    reply = service.call(*route, role=role, json=RECORDS)
    if role is None or role == "wrong":
        assert reply.status == 401
    else:
        assert (reply.status == 403) == (role not in ROUTES[route])
    if reply.status in (401, 403):
        assert list(reply.json) == ["error"]


def test_a_revoked_key_is_refused(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "RELOAD_S", -1.0)
    assert service.call("GET", "").status == 200
    keys.revoke(service.storage, "predict")
    assert service.call("GET", "").status == 401


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/infer", 405),
        ("POST", "", 405),
        ("HEAD", "", 405),
        ("POST", "/ready", 405),
        ("GET", "/nothing", 404),
        ("POST", "/versions/9/infer", 404),
        ("POST", "/versions/1/labels", 404),
        ("GET", "/versions/1/versions/1", 404),
        ("POST", "%2Finfer", 404),
        ("POST", "/infer/", 404),
    ],
)
def test_what_is_not_there_is_a_404_or_a_405(service: Service, method: str, path: str, status: int) -> None:
    reply = service.call(method, path, json=RECORDS)
    assert reply.status == status
    assert list(reply.json) == ["error"]
    assert ("allow" in reply.headers) == (status == 405)


def test_ready_is_open_and_says_nothing_else(empty: Service) -> None:
    assert empty.call("GET", "/ready", role=None).status == 503
    empty.release("1")
    reply = empty.call("GET", "/ready", role=None)
    assert (reply.status, reply.json) == (200, {"live": True, "ready": True})
    reply = empty.call("GET", "/versions/9/ready", role=None)
    assert (reply.status, reply.json) == (404, {"error": "this version is not there"})


def test_a_model_that_is_not_loaded_yet_is_a_503(empty: Service) -> None:
    assert empty.call("POST", "/infer", json=RECORDS).status == 503


def test_bad_rows_are_a_422_that_names_row_and_column(service: Service) -> None:
    reply = service.call("POST", "/invocations", json={"dataframe_records": [ROW, ROW | {"load": -1}]})
    assert reply.status == 422
    assert reply.json["error"] == "row 1, column 'load': '-1.0' is below the least that is allowed, 0"
    reply = service.call("POST", "/invocations", json={"dataframe_records": [ROW | {"load": "x"}]})
    assert reply.json["error"] == "row 0, column 'load': 'x' is not a number"


def test_a_body_over_the_limit_is_a_413_and_takes_no_place_where_it_says_so(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlops_ray.serving.protocol.MAX_BODY_BYTES", 100)
    announced = service.call("POST", "/infer", headers={"content-length": "101"})
    assert announced.status == 413
    assert service.call("POST", "/infer", headers={"content-length": "9" * 40}).status == 413
    admission = service.endpoint.admission
    assert (admission.requests, admission.size, admission._seen) == (0, 0, 0)
    assert service.call("POST", "/infer", body=b" " * 101, parts=3).status == 413


@pytest.mark.parametrize(
    "headers",
    [{"content-type": "text/html"}, {"content-type": "application/json", "content-encoding": "gzip"}],
)
def test_another_media_type_or_encoding_is_a_415(service: Service, headers: dict[str, str]) -> None:
    assert service.call("POST", "/infer", body=b"{}", headers=headers).status == 415


def test_a_defect_is_a_500_that_shows_no_value_and_is_logged_without_one(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        reply = service.call("POST", "/invocations", json={"dataframe_records": [ROW | {"load": 666}]})
    assert (reply.status, reply.json) == (500, {"error": "internal error", "id": "id-1"})
    assert "id-1" in caplog.text
    assert "standin.py" in caplog.text
    assert "666" not in caplog.text


def test_errors_are_logged_with_request_version_stage_and_type_and_without_a_value(
    service: Service, storage: Storage
) -> None:
    log = error_log.install(storage, "replica", MODEL)
    try:
        service.call("POST", "/invocations", json={"dataframe_records": [ROW | {"load": 666}]})
        for _ in range(3):
            service.call("POST", "/invocations", json={"dataframe_records": [ROW | {"load": "very-secret"}]})
        service.call("POST", "/infer", "label", body=b"{}")
    finally:
        logging.getLogger("mlops_ray").removeHandler(log)
        error_log._installed.clear()
        log.close()
    text = b"".join(path.read_bytes() for path in storage.root.glob("errors/*.jsonl"))
    # A moment may have any digits.
    lines = [line | {"at": 0} for line in map(orjson.loads, text.splitlines())]
    assert "666" not in str(lines)
    assert "secret" not in str(lines)
    found = {line["type"]: line for line in lines}
    defect, refused, forbidden = (found[name] for name in ("ZeroDivisionError", "invalid_row", "forbidden"))
    told = {"model": MODEL, "version": "1", "request": "id-1", "stage": "predict", "status": 500}
    assert {key: defect[key] for key in told} == told
    assert (refused["status"], refused["count"], refused["version"]) == (422, 3, "1")
    assert (forbidden["status"], forbidden["stage"]) == (403, "admission")


@pytest.mark.parametrize("predictor", [StandIn, OfAmounts])
def test_concurrent_callers_get_their_own_rows(service: Service, predictor: Any) -> None:
    service.versions.champion.served = served("1", predictor())  # type: ignore[union-attr]

    async def one(load: int) -> Answered:
        body = {"dataframe_records": [ROW | {"load": load}]}
        return await call_async(
            service.endpoint, "POST", f"{BASE}/invocations", key=service.keys["predict"], json=body
        )

    async def everyone() -> list[Answered]:
        return await asyncio.gather(*(one(load if load % 7 else -load) for load in range(1, 300)))

    for load, reply in enumerate(run(everyone()), start=1):
        if load % 7:
            assert reply.json["predictions"] == [2 * load + 10]
        else:
            assert reply.status == 422
            assert f"'-{load}.0'" in reply.json["error"]


def test_the_champion_is_switched_and_the_last_one_stays_loaded(service: Service) -> None:
    service.release("2")
    assert service.call("POST", "/invocations", json=RECORDS).json["model_version"] == "2"
    assert service.call("POST", "/versions/1/invocations", json=RECORDS).json["model_version"] == "1"
    service.release("3")
    assert service.versions.loaded == ["2", "3"]


def test_a_package_that_cannot_be_loaded_leaves_the_champion_in_place(service: Service) -> None:
    with pytest.raises(PackageError):
        service.release("broken")
    assert service.call("POST", "/invocations", json=RECORDS).json["model_version"] == "1"
    assert run(service.versions.refresh()) is False  # nor is it tried again
    service.release("2")
    assert service.call("POST", "/invocations", json=RECORDS).json["model_version"] == "2"


def test_requests_and_invalid_values_are_counted_by_version(service: Service) -> None:
    service.call("POST", "/invocations", json=RECORDS)
    service.call("POST", "/invocations", json={"dataframe_records": [ROW | {"load": -1, "site": "z"}]})
    service.call("POST", "/invocations", json={"dataframe_records": [ROW | {"load": "x"}]})
    service.call("POST", "/invocations", json={"dataframe_records": [{"site": "a"}]})
    service.call("POST", "/infer", role=None)
    service.call("GET", "")
    service.call("GET", "/ready")
    counted = service.delta["1"]
    traffic = counted["traffic"]
    assert traffic["requests"] == {"200": 1, "422": 3, "401": 1}
    assert traffic["rejected"] == {"invalid_row": 3, "unauthorized": 1}
    assert sorted(traffic["invalid"]) == [
        ["load", "min", 1],
        ["load", "type", 1],
        ["site", "category", 1],
        ["time", "missing_column", 1],
    ]
    assert sum(traffic["request_us"]["cells"]) == 5
    assert counted["counts"]["rows"] == 1


# ---------------------------------------------------------------- who is let in


def test_a_request_that_cannot_meet_its_deadline_is_refused_as_it_comes(service: Service) -> None:
    admission = service.endpoint.admission
    for _ in range(200):
        admission.learn(2, 2, admission.clock() - 0.25)
    others = [admission.take(None, 1) for _ in range(2)]
    refused = service.call("POST", "/invocations", json=RECORDS, headers={"x-timeout-ms": "100"})
    assert (refused.status, refused.headers["retry-after"]) == (429, "1")
    assert "there are 100; ask again later" in refused.json["error"]
    assert service.call("POST", "/invocations", json=RECORDS, headers={"x-timeout-ms": "60000"}).status == 200
    others.pop().leave()
    # Who is the second is let in: so the service finds out that it has become faster.
    assert service.call("POST", "/invocations", json=RECORDS, headers={"x-timeout-ms": "100"}).status == 200
    others.pop().leave()
    assert (admission.requests, admission.size) == (0, 0)


def test_who_has_no_key_takes_no_place_and_learns_nothing_of_the_load(service: Service) -> None:
    admission = service.endpoint.admission
    for _ in range(200):
        admission.learn(2, 2, admission.clock() - 0.25)
    others = [admission.take(None, 1) for _ in range(2)]
    reply = service.call("POST", "/invocations", None, json=RECORDS, headers={"x-timeout-ms": "100"})
    assert (reply.status, service.endpoint.told()["arrived"]) == (401, 0)
    for place in others:
        place.leave()


@pytest.mark.parametrize("said", ["0", "-1", "1.5", "x", "", "²", "99999999999"])
def test_a_deadline_that_is_none_is_a_400(service: Service, said: str) -> None:
    reply = service.call("POST", "/invocations", json=RECORDS, headers={"x-timeout-ms": said})
    assert (reply.status, reply.json["error"]) == (
        400,
        "X-Timeout-Ms must be a whole number of milliseconds, from 1 to 600000",
    )


def test_a_request_that_waited_past_its_deadline_is_a_504(service: Service) -> None:
    service.endpoint.admission.clock = lambda: -1e9
    reply = service.call("POST", "/invocations", json=RECORDS, headers={"x-timeout-ms": "1"})
    assert (reply.status, reply.json) == (504, {"error": "there was no answer before the deadline"})


def test_a_store_that_does_not_answer_is_a_503_that_may_be_asked_again(service: Service) -> None:
    def away(_: Any) -> Any:
        raise StorageError("redis://secret does not answer")

    service.versions.champion.served.predictor.predict = away  # type: ignore[union-attr]
    reply = service.call("POST", "/invocations", json=RECORDS)
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")
    assert "secret" not in reply.json["error"]


def test_what_was_too_late_teaches_what_an_answer_takes(service: Service) -> None:
    admission, now = service.endpoint.admission, [0.0]
    admission.clock = lambda: now[0]
    for _ in range(400):
        place = admission.take(None, 1)
        now[0] += 0.3
        place.tells = True
        place.leave()
    others = [admission.take(None, 1) for _ in range(2)]
    refused = service.call("POST", "/invocations", json=RECORDS, headers={"x-timeout-ms": "200"})
    assert refused.status == 429
    for place in others:
        place.leave()


def test_a_key_that_asks_too_often_is_refused_and_counted_and_no_other_is(service: Service) -> None:
    service.keys["slow"] = keys.add(service.storage, "slow", "predict", rate=0.001)
    service.endpoint._keyring = Keyring(service.storage)
    statuses = [service.call("POST", "/invocations", "slow", json=RECORDS).status for _ in range(3)]
    assert statuses == [200, 429, 429]
    assert service.delta["1"]["traffic"]["rejected"] == {"overloaded": 2}
    assert service.call("POST", "/invocations", json=RECORDS).status == 200


# ---------------------------------------------------------------- what is kept


def test_every_answered_row_is_in_the_prediction_log(service: Service) -> None:
    rows = [ROW, ROW | {"load": 3.0}]
    service.call("POST", "/invocations", json={"dataframe_records": rows}, headers={"x-request-id": "first"})
    service.call("POST", "/invocations", json={"dataframe_records": [ROW | {"load": -1}]})
    service.release("2")
    service.call("POST", "/invocations", json=RECORDS, headers={"x-request-id": "second"})
    service.log.flush()
    found = prediction_log.read(service.storage, MODEL).sort("at", "row").collect()
    shown = found.select("request_id", "row", "model_version", "route", "prediction", "request.load")
    assert shown.rows() == [
        ("first", 0, "1", "champion", 13.0, 1.5),
        ("first", 1, "1", "champion", 16.0, 3.0),
        ("second", 0, "2", "champion", 13.0, 1.5),
    ]
    assert found["latency_us"].min() > 0  # type: ignore[operator]


# ---------------------------------------------------------------- why


def test_contributions_are_given_to_who_asks(service: Service) -> None:
    asked = {"inputs": INPUTS, "parameters": {"explain": True}}
    explained = service.call("POST", "/infer", json=asked).json["outputs"][1]
    assert explained == {
        "name": "contributions",
        "datatype": "FP64",
        "shape": [1, 2],
        "data": [3.0, 10.0],
        "parameters": {"features": ["load", "hour"], "base": 0.0, "scale": "answer"},
    }
    reply = service.call("POST", "/invocations", json=RECORDS | {"params": {"explain": True}}).json
    assert reply["contributions"] == {
        "features": ["load", "hour"],
        "base": 0.0,
        "scale": "answer",
        "values": [[3.0, 10.0]],
    }
    assert "contributions" not in service.call("POST", "/invocations", json=RECORDS).json


def test_no_request_has_more_rows_explained_than_others_can_wait_for(service: Service) -> None:
    many = {"dataframe_records": [ROW] * 257, "params": {"explain": True}}
    reply = service.call("POST", "/invocations", json=many)
    assert (reply.status, reply.json["error"]) == (413, "257 rows; at most 256 are explained at once")


def test_a_service_that_explains_nothing_says_so(service: Service) -> None:
    service.endpoint._explains = False
    reply = service.call("POST", "/invocations", json=RECORDS | {"params": {"explain": True}})
    assert reply.status == 400
    assert "explain: on_request" in reply.json["error"]


def test_so_many_explanations_may_wait_and_no_more(service: Service) -> None:
    begun, end = threading.Event(), threading.Event()
    predictor = service.versions.champion.served.predictor  # type: ignore[union-attr]
    explain = predictor.explain

    def slow(*given: Any) -> Any:
        begun.set()
        assert end.wait(60)
        return explain(*given)

    predictor.explain = slow
    asked = RECORDS | {"params": {"explain": True}}

    async def one(**headers: str) -> Answered:
        more: Any = {"key": service.keys["predict"], "json": asked, "headers": headers}
        return await call_async(service.endpoint, "POST", f"{BASE}/invocations", **more)

    async def everyone() -> tuple[list[Answered], Answered, Answered]:
        waiting = [asyncio.ensure_future(one()) for _ in range(MOST_WHYS - 1)]
        await asyncio.to_thread(begun.wait, 60)
        late = await one(**{"x-timeout-ms": "20"})
        waiting.append(asyncio.ensure_future(one()))
        while service.endpoint._whys.waiting < MOST_WHYS:
            await asyncio.sleep(0)
        refused = await one()
        # Nobody waits for them, and no replica is started for their sake.
        assert service.endpoint.admission.requests == 0
        end.set()
        return await asyncio.gather(*waiting), late, refused

    answered, late, refused = run(everyone())
    assert {reply.status for reply in answered} == {200}
    assert (late.status, refused.status) == (504, 429)
    assert service.endpoint.admission.requests == service.endpoint._whys.waiting == 0


def test_so_many_bodies_may_be_on_their_way_and_no_more(service: Service) -> None:
    service.endpoint._bodies = MOST_BODIES
    reply = service.call("POST", "/invocations", json=RECORDS)
    assert (reply.status, reply.headers["retry-after"]) == (429, "1")
    service.endpoint._bodies = 0
    assert service.call("POST", "/invocations", json=RECORDS).status == 200
    assert service.endpoint._bodies == 0


def test_a_large_body_is_read_as_a_small_one_is(service: Service) -> None:
    body = orjson.dumps(RECORDS) + b" " * SMALL_BYTES
    headers = {"content-type": "application/json"}
    reply = service.call("POST", "/invocations", body=body, headers=headers)
    assert reply.json["predictions"] == [ANSWER]
    wrong = orjson.dumps({"dataframe_records": [ROW | {"load": "x"}]}) + b" " * SMALL_BYTES
    assert service.call("POST", "/invocations", body=wrong, headers=headers).status == 422
    assert service.delta["1"]["traffic"]["invalid"] == [["load", "type", 1]]


#: A large body that asks for a prediction, and one of labels; each with its route and role.
LARGE = [
    ("/invocations", "predict", orjson.dumps(RECORDS) + b" " * SMALL_BYTES),
    ("/labels", "label", b'{"labels": [{"request_id": "a", "row": 0, "label": 1}]}' + b" " * SMALL_BYTES),
]


@pytest.mark.parametrize(("path", "role", "body"), LARGE)
def test_what_is_large_waits_no_longer_than_its_caller_and_no_more_of_it_than_there_is_room_for(
    service: Service, path: str, role: str, body: bytes
) -> None:
    begun, end = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert end.wait(60)

    async def one(**headers: str) -> Answered:
        headers |= {"content-type": "application/json"}
        more: Any = {"key": service.keys[role], "body": body, "headers": headers}
        return await call_async(service.endpoint, "POST", BASE + path, **more)

    async def everyone() -> tuple[Answered, Answered, Answered]:
        bulkhead = service.endpoint._large if role == "predict" else service.endpoint._labels
        # Another's, which is read just now.
        before = asyncio.ensure_future(bulkhead.run(slow, until=None, is_gone=lambda: False))
        await asyncio.to_thread(begun.wait, 60)
        late = await one(**{"x-timeout-ms": "20"})
        bulkhead.waiting += MOST_UNREAD - len(body)
        refused = await one()
        bulkhead.waiting -= MOST_UNREAD - len(body)
        waiting = asyncio.ensure_future(one())
        end.set()
        await before
        return await waiting, late, refused

    answered, late, refused = run(everyone())
    assert (answered.status, late.status, refused.status) == (200, 504, 429)
    assert refused.headers["retry-after"] == "1"
    assert service.endpoint.admission.requests == 0


def test_a_panic_of_a_library_is_a_500_for_the_row_that_it_panics_at_alone(service: Service) -> None:
    predictor = service.versions.champion.served.predictor  # type: ignore[union-attr]
    answer = predictor.answer

    def panics(asked: Any) -> Any:
        if (asked.frame["load"] == 77).any():
            raise pl.exceptions.PanicException("called `Option::unwrap()` on a `None` value")
        return answer(asked)

    predictor.answer = panics

    async def both() -> list[Answered]:
        asked = (
            call_async(
                service.endpoint,
                "POST",
                f"{BASE}/invocations",
                key=service.keys["predict"],
                json={"dataframe_records": [ROW | {"load": load}]},
            )
            for load in (1.5, 77)
        )
        async with asyncio.timeout(60):
            return await asyncio.gather(*asked)

    right, wrong = run(both())
    assert right.json["predictions"] == [ANSWER]
    assert (wrong.status, wrong.json["error"]) == (500, "internal error")
    assert service.endpoint.admission.requests == 0


@pytest.mark.parametrize("rows", [1, 2])
def test_a_text_that_is_no_name_any_more_is_a_422(service: Service, rows: int) -> None:
    inputs = [
        {"name": name, "shape": [rows], "datatype": "BYTES", "data": [value] * rows}
        for name, value in (ROW | {"site": "a" * 10_001}).items()
    ]
    reply = service.call("POST", "/infer", json={"inputs": inputs})
    assert (reply.status, reply.json["error"]) == (
        422,
        "row 0, column 'site': has 10001 characters; at most 10000 are read",
    )


def stored(service: Service) -> list[dict[str, Any]]:
    return [row for frame in labels.new(service.storage, MODEL) for row in frame.drop("known_at").to_dicts()]


def test_labels_are_on_disk_when_they_are_answered(service: Service) -> None:
    given = [{"request_id": "id-1", "label": 12.5}, {"request_id": "id-2", "row": None, "label": 3}]
    refused = service.call("POST", "/labels", "label", json={"labels": given})
    assert (refused.status, refused.json["error"]) == (422, "row 1 of the labels has no usable 'row'")
    given[1]["row"], given[0]["row"] = 1, 0
    for body in ({"labels": given}, {"labels": {name: [row[name] for row in given] for name in given[0]}}):
        reply = service.call("POST", "/labels", "label", json=body)
        assert (reply.status, reply.json["labels"]) == (200, 2)
    assert stored(service) == 2 * [
        {"request_id": "id-1", "row": 0, "label": 12.5},
        {"request_id": "id-2", "row": 1, "label": 3.0},
    ]


def test_labels_of_erased_rows_are_not_stored_and_the_answer_does_not_tell_whose_they_are(
    storage: Storage,
) -> None:
    service = Service(storage, lambda entry: replace(load(entry), whose=[("sites", {"site": "place"})]))
    service.release("1")
    Erased.of(storage.root / "features", "sites").add({"place": ROW["site"]}, "request 17", {"place": "text"})
    given = [{"site": site, "time": ROW["time"], "label": 1} for site in (ROW["site"], "another")]
    reply = service.call("POST", "/labels", "label", json={"labels": given})
    assert (reply.status, reply.json["labels"]) == (200, 2)
    assert [row["site"] for row in stored(service)] == ["another"]


def test_labels_for_which_the_disk_has_no_room_are_asked_for_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labels, "replacing", lambda *_, **how: contextlib.nullcontext(Path("/dev/full")))
    given = {"labels": [{"request_id": "id-1", "label": 12.5}]}
    reply = service.call("POST", "/labels", "label", json=given)
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")


def test_labels_come_as_csv_and_by_the_columns_of_the_request(service: Service) -> None:
    name = next(iter(ROW))
    body = f"{name},time,label\n{ROW[name]},2016-11-01T00:00:00Z,4.5\n".encode()
    reply = service.call("POST", "/labels", "label", body=body, headers={"content-type": "text/csv"})
    assert (reply.status, reply.json["labels"]) == (200, 1)
    assert [(row[name], row["label"]) for row in stored(service)] == [(ROW[name], 4.5)]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b'{"labels": []}', 400),
        (b'{"labels": [{}]}', 400),
        (b'{"labels": {"request_id": [], "label": []}}', 400),
        (b'{"labels": {' + b",".join(b'"a%d": [1]' % at for at in range(200)) + b"}}", 400),
        (b'{"labels": 7}', 400),
        (b'{"labels": [7]}', 400),
        (b'{"labels": [{"request_id": "a"}]}', 422),
        (b'{"labels": [{"label": 1}]}', 422),
        (b'{"labels": [{"request_id": "a", "label": "much"}]}', 422),
        (b'{"labels": [{"request_id": ["a"], "label": 1}]}', 422),
        (b'{"labels": {"request_id": ["a", "b"], "label": [1]}}', 400),
        (b'{"labels": {"request_id": 7, "label": 1}}', 400),
        (b'{"labels": [{"request_id": "a", "label": 1e999}]}', 400),
        (b'{"labels": [{"request_id": "a", "label": 1e300}]}', 422),
        (b'{"labels": [' + b",".join(b'{"a%d": 1}' % at for at in range(200)) + b"]}", 400),
        (b'{"labels": [' + b",".join([b'{"label": 1}'] * 100_001) + b"]}", 413),
        (b'{"labels": [{"open": "perhaps", "time": "2016-11-01T00:00:00Z", "label": 1}]}', 422),
        (b'{"labels": [{"n": 1.9, "time": "2016-11-01T00:00:00Z", "label": 1}]}', 422),
        (b'{"labels": [{"request_id": "a", "row": 99999999999999, "label": 1}]}', 422),
        (b'{"labels": [{"request_id": "a", "row": 1.5, "label": 1}]}', 422),
        (b'{"labels": [' + b",".join([b"{}"] * 100_001) + b"]}", 413),
        (b'{"labels": [{"request_id": "a", "label": "' + b"x" * 5_000 + b'"}]}', 422),
        (b'{"labels": [{"request_id": "a", "' + b"x" * 5_000 + b'": [1]}]}', 422),
        (b"request_id,label\n", 400),
        (b"'" * 5_000 + b",open\n1,2\n", 422),
        (b",".join(b"column%d" % at for at in range(1_000)) + b"\n" + b"1," * 999 + b"1\n", 400),
        (b"request_id,row,label\n" + b"a,0,1\n" * 100_001, 413),
        (b"request_id,row,label\na,0\n", 400),
        (b"label,label\n1,1\n", 400),
    ],
)
def test_what_is_no_label_is_refused_with_a_sentence_that_a_log_can_hold_and_stores_nothing(
    service: Service, body: bytes, status: int
) -> None:
    kind = "application/json" if body[:1] in (b"{", b"[") else "text/csv"
    reply = service.call("POST", "/labels", "label", body=body, headers={"content-type": kind})
    assert reply.status == status
    assert len(reply.json["error"]) < 1_000
    assert stored(service) == []


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b'{"labels": [' + b",".join([b"{}"] * 400_001) + b"]}", "application/json", 413),
        (b"," * 2**23 + b"\nx\n", "text/csv", 413),
        (b'"a\n"' + b"," * 2**23 + b"\nx\n", "text/csv", 413),
    ],
)
def test_of_labels_that_are_too_many_nothing_is_made(
    monkeypatch: pytest.MonkeyPatch, body: bytes, kind: str, status: int
) -> None:
    def made(*_: object, **__: object) -> None:
        raise AssertionError("a table was made of it")

    monkeypatch.setattr(pl, "read_csv", made)
    monkeypatch.setattr(pl, "DataFrame", made)
    monkeypatch.setattr(orjson, "loads", made)
    with pytest.raises(RequestError) as caught:
        truth.decode(body, kind)
    assert caught.value.status == status


@pytest.mark.parametrize(("role", "status"), [("predict", 403), ("read", 403), (None, 401), ("admin", 200)])
def test_labels_need_their_own_role(service: Service, role: str | None, status: int) -> None:
    reply = service.call("POST", "/labels", role, json={"labels": [{"request_id": "a", "label": 1}]})
    assert reply.status == status


def test_labels_cannot_be_named_by_what_nobody_may_see(service: Service) -> None:
    name = next(iter(ROW))
    service.endpoint._hidden = frozenset({name})
    reply = service.call("POST", "/labels", "label", json={"labels": [{name: ROW[name], "label": 1}]})
    assert reply.status == 422
    assert repr(name) not in reply.json["error"]
    assert stored(service) == []


def test_no_label_is_quoted_where_there_is_something_that_nobody_may_see(service: Service) -> None:
    for hidden in (frozenset[str](), frozenset({"hidden"})):
        service.endpoint._hidden = hidden
        reply = service.call(
            "POST", "/labels", "label", json={"labels": [{"request_id": "a", "label": "much"}]}
        )
        assert reply.status == 422
        assert ("much" in reply.json["error"]) == (not hidden)
