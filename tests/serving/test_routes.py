"""The gateway's paths: open health, keys for the rest, nothing else; and the dashboard's login."""

import gzip
import re
from collections import Counter
from typing import Any

import polars as pl
import pytest

from mlops_ray import keys
from mlops_ray.cost.holds import FOLDER as COSTS
from mlops_ray.monitoring import journal
from mlops_ray.monitoring.dashboard import page
from mlops_ray.monitoring.state import Minute
from mlops_ray.serving.routes import Routes
from mlops_ray.storage import Storage
from tests.serving.calls import Answered, call
from tests.serving.standin import REQUEST

FORM = {"content-type": "application/x-www-form-urlencoded"}
CHAMPION = {
    "version": "3",
    "state": "champion",
    "since": "2026-11-01T00:00:00+00:00",
    "family": "xgboost",
    "task": "regression",
    "created_at": "2026-11-01T00:00:00+00:00",
    "metrics": {"relative_mae": 0.12},
    "baselines": {"last_season": {"relative_mae": 0.187}},
    "request": REQUEST.to_json(),
}
REPORT = {
    "traffic": {
        "requests": {"200": 2},
        "rejected": {"invalid_row": 1},
        "invalid": [["load", 'a"b\\', 1]],
        "request_us": {"cells": [0] * 17 + [2], "total": 3_000_000},
        "batch_rows": {"cells": [2] + [0] * 11, "total": 2},
    },
    "rows": 2,
    "latency": {"p50_us": 1000, "p99_us": 1000},
    "minutes": [],
    "window": {"since": 0.0, "until": None, "rows": 2},
    "drift": [{"column": "load", "psi_corrected": 0.5}],
}


class Gateway:
    def __init__(self, storage: Storage) -> None:
        self.storage, self.fails = storage, False
        storage.write_json({"format": 1, "model": "m", "champion": CHAMPION}, "release", "m.json")
        self.keys = {role: keys.add(storage, role, role) for role in ("predict", "label", "read", "admin")}
        self.routes = Routes(storage, self._snapshot)

    async def _snapshot(self) -> dict[str, Any]:
        if self.fails:
            raise TimeoutError
        return {"m": {"versions": {"3": REPORT}, "lost": 7, "alarms": [], "quality": {}}}

    def call(self, method: str, path: str, role: str | None = None, **more: Any) -> Answered:
        return call(self.routes, method, path, key=self.keys.get(role or ""), **more)

    def log_in(self, key: str) -> Answered:
        return self.call("POST", "/dashboard/login", body=f"key={key}".encode(), headers=FORM)


@pytest.fixture
def gateway(storage: Storage) -> Gateway:
    return Gateway(storage)


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready"])
def test_health_is_open_and_says_nothing_else(gateway: Gateway, path: str) -> None:
    reply = gateway.call("GET", path)
    assert (reply.status, reply.json) == (200, {"live": True, "ready": True})
    assert gateway.call("POST", path).status == 405


ROUTES = {
    "/v2": {"predict", "read", "admin"},
    "/v2/models": {"predict", "read", "admin"},
    "/openapi.json": {"predict", "read", "admin"},
    "/metrics": {"read", "admin"},
    "/dashboard": {"read", "admin"},
    "/dashboard/data.json": {"read", "admin"},
    "/dashboard/data/models": {"read", "admin"},
    "/dashboard/data/models/m": {"read", "admin"},
    "/dashboard/data/errors": {"read", "admin"},
    f"{page.ASSETS}/{page.digest()}/app.js": {"read", "admin"},
}


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("role", ["predict", "label", "read", "admin", None])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
def test_no_route_answers_without_a_key_of_its_role(
    gateway: Gateway, path: str, role: str | None, method: str
) -> None:
    status = gateway.call(method, path, role).status
    if role is None:
        assert status == 401
    elif role not in ROUTES[path]:
        assert status == 403
    else:
        assert status == (200 if method == "GET" else 405)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v2/",
        "/v2/models/nope/infer",
        "/v2//models",
        "/v2%2Fmodels",
        "/dashboard/nope",
        "/dashboard/data",
        "/dashboard/data/",
        "/dashboard/data/models/..",
        "/dashboard/data/models/%2e%2e%2fsecrets",
        "/dashboard/data/models/m%00",
        f"/dashboard/data/models/{'m' * 300}",
        f"{page.ASSETS}/{page.digest()}/../index.html",
        f"{page.ASSETS}/0123456789abcdef/app.js",
        "/v2/models/../models",
    ],
)
def test_everything_else_is_a_404_in_json(gateway: Gateway, path: str) -> None:
    reply = gateway.call("GET", path, "admin")
    assert reply.status == 404
    assert list(reply.json) == ["error"]


def test_who_begins_at_the_root_is_told_where_the_dashboard_is(gateway: Gateway) -> None:
    assert gateway.call("GET", "/", None).json == {
        "error": "there is nothing at '/'; the dashboard is at /dashboard"
    }


def test_the_models_are_listed_with_their_live_version(gateway: Gateway) -> None:
    models = gateway.call("GET", "/v2/models", "predict").json["models"]
    assert models == [{"name": "m", "version": "3", "state": "champion"}]


def test_openapi_names_each_models_columns(gateway: Gateway) -> None:
    page = gateway.call("GET", "/openapi.json", "predict").json
    assert "/v2/models/m/invocations" in page["paths"]
    rows = page["components"]["schemas"]["m.Invocations"]["properties"]["dataframe_records"]["items"]
    assert list(rows["properties"]) == list(REQUEST.names)


def test_metrics_have_the_names_that_interfaces_fix(gateway: Gateway) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    money: dict[str, Any] = {"amount": 1.5, "currency": "EUR"}
    spent = {"model": "m", "at": 1, "per_1000": None, "days": [], "total": money, "budget": None}
    spent["counted"] = money | {"answered": 30}
    gateway.storage.write_json(spent, COSTS, "m.json")
    text = gateway.call("GET", "/metrics", "read").body.decode()
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    of = (("model", "m"), ("version", "3"))
    labels = (("code", "200"), of[0], ("role", "champion"), of[1])
    assert samples["mlops_requests_total", *labels] == 2
    assert samples["mlops_request_seconds_count", *of] == 2
    assert samples["mlops_request_seconds_sum", *of] == 3.0
    assert samples["mlops_request_seconds_bucket", ("le", "10.0"), *of] == 0
    assert samples["mlops_batch_rows_bucket", ("le", "1.0"), *of] == 2
    assert samples["mlops_rejected_total", of[0], ("reason", "invalid_row"), of[1]] == 1
    assert samples["mlops_cost_total", ("currency", "EUR"), of[0]] == 1.5
    assert samples["mlops_cost_predictions_total", of[0]] == 30
    assert samples["mlops_drift_psi", ("column", "load"), ("model", "m")] == 0.5
    assert samples["mlops_invalid_values_total", ("column", "load"), of[0], ("rule", 'a"b\\'), of[1]] == 1


def test_no_session_no_key_gives_the_login_form_and_no_data(gateway: Gateway) -> None:
    reply = gateway.call("GET", "/dashboard")
    assert reply.status == 401
    assert b'action="/dashboard/login"' in reply.body
    assert b"data.json" not in reply.body
    assert gateway.call("GET", "/dashboard/data.json").status == 401


@pytest.mark.parametrize("role", ["read", "admin"])
def test_a_key_is_changed_for_a_cookie_that_holds_no_key(gateway: Gateway, role: str) -> None:
    reply = gateway.log_in(gateway.keys[role])
    assert (reply.status, reply.headers["location"]) == (303, "/dashboard")
    cookie, *attributes = reply.headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Strict", "Path=/dashboard"} <= set(attributes)
    assert gateway.keys[role] not in cookie
    data = gateway.call("GET", "/dashboard/data.json", headers={"cookie": cookie})
    assert data.json["models"][0]["name"] == "m"
    assert gateway.call("GET", "/metrics", headers={"cookie": cookie}).status == 401


@pytest.mark.parametrize("by", ["key", "session"])
@pytest.mark.parametrize("role", ["read", "admin"])
def test_the_names_of_callers_are_shown_to_admins_alone(gateway: Gateway, role: str, by: str) -> None:
    cost = {"at": 60.0, "days": [[0, 1.0, 5, {}, 0.0]], "total": {"amount": 1.0, "currency": "EUR"}}
    cost |= {"per_1000": None, "budget": None}
    gateway.storage.write_json(cost | {"model": "m"}, COSTS, "m.json")
    hour = Minute(0, keys=Counter({"a shop": 5})).entry("3")
    journal.append(gateway.storage, "m", journal.TRAFFIC, hour)
    cookie = gateway.log_in(gateway.keys[role]).headers["set-cookie"].partition(";")[0]
    more: dict[str, Any] = {"headers": {"cookie": cookie}} if by == "session" else {"role": role}
    found = gateway.call("GET", "/dashboard/data/models/m/costs?from=0&to=99", **more)
    told = [{"key": "a shop", "version": "3", "rows": 5.0, "cost": 1.0}]
    assert found.json["keys"] == (told if role == "admin" else None)
    for path in ("/metrics", "/dashboard/data.json", "/dashboard/data/models", "/dashboard/data/models/m"):
        assert b"a shop" not in gateway.call("GET", path, "admin").body


@pytest.mark.parametrize(("role", "status"), [("predict", 403), ("label", 403), ("nobody", 401)])
def test_other_keys_get_the_form_again_and_no_cookie(gateway: Gateway, role: str, status: int) -> None:
    reply = gateway.log_in(gateway.keys.get(role, "<script>alert(1)</script>"))
    assert reply.status == status
    assert "set-cookie" not in reply.headers
    assert b'role="alert"' in reply.body
    assert b"alert(1)" not in reply.body


def test_pages_run_no_script_but_their_own(gateway: Gateway) -> None:
    policy = gateway.call("GET", "/dashboard", "read").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_the_page_says_when_the_monitor_is_away(gateway: Gateway) -> None:
    assert gateway.call("GET", "/dashboard/data.json", "read").json["monitor"] is True
    gateway.fails = True
    document = gateway.call("GET", "/dashboard/data.json", "read").json
    assert document["monitor"] is False
    assert document["models"][0]["metrics"] == {"relative_mae": 0.12}
    assert gateway.call("GET", "/dashboard/data/models", "read").json["monitor"] is False


def test_metrics_are_not_there_while_the_monitor_is_away(gateway: Gateway) -> None:
    gateway.fails = True
    reply = gateway.call("GET", "/metrics", "read")
    assert (reply.status, reply.json["error"]) == (503, "the monitor does not answer; ask again")


def test_a_panic_is_answered_like_any_other_fault(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def panic(_documents: object) -> object:
        raise pl.exceptions.PanicException("at the disco")

    monkeypatch.setattr("mlops_ray.serving.routes.openapi", panic)
    reply = gateway.call("GET", "/openapi.json", "read")
    assert (reply.status, b"disco" in reply.body) == (500, False)


def test_more_parameters_than_are_read_are_refused(gateway: Gateway) -> None:
    for count, status in ((20, 200), (21, 400)):
        query = "&".join(f"a{number}=1" for number in range(count))
        assert gateway.call("GET", f"/dashboard/data/models?{query}", "read").status == status


def test_a_document_that_the_browser_has_is_not_sent_again(gateway: Gateway) -> None:
    first = gateway.call("GET", "/dashboard/data/models/m/releases", "read")
    tag = first.headers["etag"]
    again = gateway.call("GET", "/dashboard/data/models/m/releases", "read", headers={"if-none-match": tag})
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
    gateway.storage.write_json(
        {"format": 1, "model": "m", "champion": CHAMPION | {"version": "4"}}, "release", "m.json"
    )
    other = gateway.call("GET", "/dashboard/data/models/m/releases", "read", headers={"if-none-match": tag})
    assert (other.status, other.json["champion"]["version"]) == (200, "4")


@pytest.mark.parametrize("path", ["/dashboard/data/errors", f"{page.ASSETS}/{page.digest()}/app.js"])
def test_what_is_large_is_compressed_for_who_takes_it(gateway: Gateway, path: str) -> None:
    plain = gateway.call("GET", path, "read")
    packed = gateway.call("GET", path, "read", headers={"accept-encoding": "br, gzip"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body)[:50] == plain.body[:50]
    assert len(packed.body) < len(plain.body) / 2


def test_files_are_kept_for_good_at_an_address_that_says_what_they_are(gateway: Gateway) -> None:
    page_text = gateway.call("GET", "/dashboard", "read").body.decode()
    named = set(re.findall(r'(?:src|href)="(/[^"]*)"', page_text))
    assert len(named) > 5
    for path in named:
        reply = gateway.call("GET", path, "read")
        assert (reply.status, reply.headers["cache-control"]) == (200, "private, max-age=31536000, immutable")
    assert "no-store" in gateway.call("GET", "/dashboard", "read").headers["cache-control"]
