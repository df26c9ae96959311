"""The page's document, its sessions, and that nothing from outside becomes markup."""

import hashlib
import re

import pytest

from mlops_ray import keys
from mlops_ray.monitoring.dashboard import page
from mlops_ray.monitoring.dashboard.documents import overview
from mlops_ray.monitoring.dashboard.sessions import COOKIE, LIFETIME_S, Sessions
from mlops_ray.storage import Storage

RELEASE = {
    "model": "m",
    "champion": {
        **dict.fromkeys(("state", "since", "family", "task", "created_at"), "x"),
        "version": "2",
        "metrics": {"mae": 1.0},
        "baselines": {},
    },
    "previous": {"version": "1"},
}


def cookie(sessions: Sessions, name: str, now: float = 0.0) -> str:
    return sessions.cookie(name, now=now).partition(";")[0]


def test_a_session_ends_with_its_time_and_with_its_key(storage: Storage) -> None:
    keys.add(storage, "anna", "read")
    sessions = Sessions(storage)
    held = cookie(sessions, "anna")
    assert sessions.role(f"other=1; {held}", now=LIFETIME_S)
    assert not sessions.role(held, now=LIFETIME_S + 1)
    keys.revoke(storage, "anna")
    assert not sessions.role(held, now=1)


def test_gateways_share_sessions_across_restarts(storage: Storage) -> None:
    keys.add(storage, "anna", "admin")
    assert Sessions(storage).role(cookie(Sessions(storage), "anna"), now=1)


def test_a_session_is_no_use_for_another_role_or_name(storage: Storage) -> None:
    keys.add(storage, "bot", "predict")
    keys.add(storage, "anna", "read")
    sessions = Sessions(storage)
    assert not sessions.role(cookie(sessions, "bot"), now=1)
    _, until, signature = cookie(sessions, "bot").removeprefix(f"{COOKIE}=").split(".")
    forged = f"{COOKIE}={b'anna'.hex()}.{until}.{signature}"
    assert not sessions.role(forged, now=1)


@pytest.mark.parametrize(
    "header", ["", "x", f"{COOKIE}=", f"{COOKIE}=.", f"{COOKIE}=a.b.c", f"{COOKIE}=é", "\x00;=,"]
)
def test_a_broken_cookie_admits_nobody(storage: Storage, header: str) -> None:
    assert not Sessions(storage).role(header)


@pytest.mark.parametrize("name", [COOKIE, "other"])
def test_what_quotes_cost_does_not_grow_with_the_square_of_their_number(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    keys.add(storage, "anna", "read")
    # The function of CVE-2024-7592.
    monkeypatch.setattr("http.cookies._unquote", lambda text: pytest.fail(f"{len(text)} characters"))
    sessions = Sessions(storage)
    quotes = f'{name}="' + '\\"' * 30_000 + '"'
    assert not sessions.role(quotes)
    assert sessions.role(f"{quotes}; {cookie(sessions, 'anna')}", now=1)


def test_the_document_is_whole_without_traffic_and_without_the_monitor() -> None:
    for snapshot in ({}, None, {"m": {"versions": {}}}):
        document = overview([RELEASE], snapshot)
        assert document["monitor"] is (snapshot is not None)
        model = document["models"][0]
        assert (model["name"], model["version"], model["previous"], model["rows"]) == ("m", "2", "1", 0)


def test_the_document_has_the_rows_that_the_prediction_log_lacks() -> None:
    (model,) = overview([RELEASE], {"m": {"versions": {}, "lost": 63}})["models"]
    assert model["lost"] == 63


def test_the_page_asks_no_other_address_and_makes_no_markup_of_data() -> None:
    texts = {name: asset.plain.decode() for name, asset in page.assets().items()}
    texts["index.html"], texts["login.html"] = page.dashboard().decode(), page.login_form().decode()
    for name, text in texts.items():
        # The library says in a comment where it comes from; its licence says who made it.
        plain = re.sub(r"/\*!.*?\*/", "", text, flags=re.S) if name != "LICENSE.uplot" else ""
        outside = set(re.findall(r"(?:https?:)?//[\w-]+\.[\w.]+", plain))
        assert outside <= {"http://www.w3.org"}, name
        for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "style="):
            assert sink not in text, (name, sink)


def test_the_library_of_charts_is_the_one_that_its_makers_published() -> None:
    """uPlot 1.6.32, `dist/uPlot.iife.min.js` and `dist/uPlot.min.css` of the npm package, byte for byte."""
    digests = {
        "uplot.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
        "uplot.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    }
    for name, digest in digests.items():
        assert hashlib.sha256(page.assets()[name].plain).hexdigest() == digest
    assert b"MIT License" in page.assets()["LICENSE.uplot"].plain


def test_what_was_wrong_with_a_key_is_escaped() -> None:
    assert b"<b>" not in page.login_form("<b>")
