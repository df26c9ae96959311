"""The OpenAPI page is valid and says what the service does; no request made from it breaks anything."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from benchmarks import peers
from mlops_ray.schema import Column, Schema
from mlops_ray.serving.openapi import openapi
from tests.conftest import require_package
from tests.serving.calls import call
from tests.serving.live import KSERVE, LONG, Service, listening, require_peer, service

#: What a request made at random may get of a service that is well.
GOOD = {200, 400, 401, 403, 404, 405, 413, 415, 422, 429, 504}
BOUNDED = settings(
    max_examples=300 if LONG else 25,
    derandomize=not LONG,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Service:
    return service(tmp_path_factory.mktemp("openapi"), "classification")


@pytest.fixture(scope="module")
def url(served: Service) -> Iterator[str]:
    with listening(served) as address:
        yield address


@pytest.fixture(scope="module")
def session(served: Service) -> Iterator[requests.Session]:
    """Calls with an admin's key."""
    with requests.Session() as made:
        made.headers["authorization"] = f"Bearer {served.keys['admin']}"
        yield made


@pytest.fixture(scope="module")
def page(url: str, session: requests.Session) -> Any:
    return session.get(f"{url}/openapi.json").json()


ACTIONS = (("get", ""), ("get", "/ready"), ("post", "/infer"), ("post", "/invocations"))
OPERATIONS = [
    *(("get", path) for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models")),
    *(("get", path) for path in ("/openapi.json", "/metrics")),
    *((method, f"/v2/models/demo-classification{action}") for method, action in ACTIONS),
    ("post", "/v2/models/demo-classification/labels"),
    *((method, f"/v2/models/demo-classification/versions/{{version}}{action}") for method, action in ACTIONS),
]


def test_every_route_is_on_the_page_and_no_other(page: Any) -> None:
    verbs = {"get", "post", "put", "delete", "patch"}
    listed = [(method, path) for path, item in page["paths"].items() for method in item if method in verbs]
    assert listed == OPERATIONS


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_what_the_page_lists_is_there_and_says_whether_it_wants_a_key(
    method: str, path: str, url: str, page: Any, session: requests.Session
) -> None:
    address, operation = url + path.format(version="1"), page["paths"][path][method]
    assert session.request(method, address, data=b"{").status_code == (200 if method == "get" else 400)
    is_open = operation.get("security", page["security"]) == []
    assert requests.request(method, address).status_code == (200 if is_open else 401)


def test_every_route_says_what_it_does_and_who_may_ask() -> None:
    release = {"model": "m", "champion": {"request": Schema((Column("x", "float"),)).to_json()}}
    paths = openapi([release])["paths"]
    operations = [item[method] for item in paths.values() for method in item if method in ("get", "post")]
    assert len(operations) == len(OPERATIONS)
    for operation in operations:
        assert operation["summary"]
        who = "Open to everybody" if operation.get("security") == [] else "Needs a key of role"
        assert operation["description"].startswith(who)
        assert all(reply["description"] for reply in operation["responses"].values())


def test_values_of_hidden_columns_are_not_on_the_page() -> None:
    columns = [
        Column("site", "category", categories=("plainly",)),
        Column("name", "category", categories=("canary",), hidden=True),
        Column("age", "int", min=31337, hidden=True),
    ]
    release = {"model": "m", "champion": {"request": Schema(tuple(columns)).to_json()}}
    text = orjson.dumps(openapi([release])).decode()
    assert "plainly" in text
    assert "canary" not in text
    assert "31337" not in text


VALUES = {
    "site": ["a", "never seen", "", None, 7],
    "time": ["2016-11-01T00:00:00Z", "2016-11-01T00:00:00.5+01:00", None, True],
    "lag": [0, -1.5, 10, 10.5, None, "x"],
    "hour": [0, 7.0, 2**63 - 1, None, 1.5],
    "holiday": [True, None, 2],
}
rows = st.fixed_dictionaries({name: st.sampled_from(values[:3] + values) for name, values in VALUES.items()})


def bodies(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same rows in each form."""
    types = {"site": "BYTES", "time": "BYTES", "lag": "FP64", "hour": "INT64", "holiday": "BOOL"}
    columns = {name: [row[name] for row in rows] for name in VALUES}
    lists = [list(row.values()) for row in rows]
    return {
        "dataframe_records": {"dataframe_records": rows},
        "dataframe_split": {"dataframe_split": {"columns": list(VALUES), "data": lists}},
        "instances": {"instances": lists},
        "inputs": {"inputs": columns},
        "infer": {
            "inputs": [
                {"name": name, "datatype": types[name], "shape": [len(rows)], "data": values}
                for name, values in columns.items()
            ]
        },
    }


@pytest.mark.parametrize("form", bodies([]))
def test_what_the_page_allows_is_answered(form: str, served: Service, page: Any) -> None:
    action, kind = ("infer", "Infer") if form == "infer" else ("invocations", "Invocations")
    allows = Draft202012Validator(page | {"$ref": f"#/components/schemas/{served.model}.{kind}"}).is_valid
    answered: set[bool] = set()

    @BOUNDED
    @given(st.lists(rows, min_size=1, max_size=2))
    def check(rows: list[dict[str, Any]]) -> None:
        body = bodies(rows)[form]
        path = f"/v2/models/{served.model}/{action}"
        reply = call(served, "POST", path, key=served.keys["predict"], json=body)
        assert reply.status in (200, 422)
        assert reply.status == 200 or not allows(body), reply.body
        answered.add(reply.status == 200)

    check()
    assert answered == {True, False}


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("action", ["infer", "invocations"])
def test_an_explained_answer_is_on_the_page(action: str, binary: bool, served: Service, page: Any) -> None:
    rows = [{name: values[0] for name, values in VALUES.items()}] * 2
    asked = {"explain": True, "binary_data_output": binary}
    body = bodies(rows)["infer" if action == "infer" else "inputs"]
    body |= {"parameters": asked} if action == "infer" else {"params": asked}
    reply = call(served, "POST", f"/v2/models/{served.model}/{action}", key=served.keys["predict"], json=body)
    assert reply.status == 200, reply.body
    schema = {"$ref": f"#/components/schemas/{'Inferred' if action == 'infer' else 'Predictions'}"}
    length = reply.headers.get("inference-header-content-length")
    document = orjson.loads(reply.body[: int(length)] if length else reply.body)
    Draft202012Validator(page | schema).validate(document)
    assert b"contributions" in reply.body


# ---------------------------------------------------------------- requests that others make from the page


def fuzz(operation: Any, url: str, session: requests.Session, checks: list[Any], **more: Any) -> None:
    """Calls an operation with what fits its page, and with what does not, and checks each reply."""
    from schemathesis import GenerationMode

    modes = list(GenerationMode) if operation.body else [GenerationMode.POSITIVE]
    for mode in modes:

        @BOUNDED
        @given(operation.as_strategy(generation_mode=mode, **more))
        def check(case: Any) -> None:
            reply = case.call(base_url=url, session=session, timeout=30)
            is_ready = case.path.endswith("/ready") and reply.status_code == 503
            assert reply.status_code in GOOD or is_ready
            if checks:
                case.validate_response(reply, checks=checks)

        check()


@pytest.fixture(scope="module")
def ours(page: Any) -> Any:
    """Our page, which the meta-schema of OpenAPI 3.1 allows."""
    require_package("schemathesis")
    import schemathesis

    found = schemathesis.openapi.from_dict(page)
    found.validate()
    return found


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_whatever_is_made_from_the_page_gets_an_answer_that_is_on_the_page(
    method: str, path: str, ours: Any, url: str, session: requests.Session
) -> None:
    from schemathesis.specs.openapi import checks

    conformance = [
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_headers_conformance,
        checks.response_schema_conformance,
    ]
    fuzz(ours[path][method.upper()], url, session, conformance)


PROTOCOL = [
    ("get", "/v2"),
    ("get", "/v2/health/live"),
    ("get", "/v2/health/ready"),
    ("get", "/v2/models/{model_name}"),
    ("get", "/v2/models/{model_name}/ready"),
    ("get", "/v2/models/{model_name}/versions/{model_version}/ready"),
    ("post", "/v2/models/{model_name}/infer"),
]


def test_whatever_is_made_from_the_page_of_another_server_of_the_protocol_is_answered(
    served: Service, url: str, session: requests.Session
) -> None:
    require_package("schemathesis")
    require_peer("kserve")
    import schemathesis
    from schemathesis.specs.openapi import checks

    theirs = schemathesis.openapi.from_dict(peers.run("kserve", KSERVE, "openapi"))
    for method, path in PROTOCOL:
        named = {"path_parameters": {"model_name": served.model}} if "{" in path else {}
        # Of a model's readiness the protocol says the status alone.
        conformance = [] if "{" in path and path.endswith("/ready") else [checks.response_schema_conformance]
        fuzz(theirs[path][method.upper()], url, session, conformance, **named)
