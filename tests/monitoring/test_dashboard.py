"""The page's document, its sessions, and that nothing from outside becomes markup."""

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
    assert sessions.admits(f"other=1; {held}", now=LIFETIME_S)
    assert not sessions.admits(held, now=LIFETIME_S + 1)
    keys.revoke(storage, "anna")
    assert not sessions.admits(held, now=1)


def test_gateways_share_sessions_across_restarts(storage: Storage) -> None:
    keys.add(storage, "anna", "admin")
    assert Sessions(storage).admits(cookie(Sessions(storage), "anna"), now=1)


def test_a_session_is_no_use_for_another_role_or_name(storage: Storage) -> None:
    keys.add(storage, "bot", "predict")
    keys.add(storage, "anna", "read")
    sessions = Sessions(storage)
    assert not sessions.admits(cookie(sessions, "bot"), now=1)
    _, until, signature = cookie(sessions, "bot").removeprefix(f"{COOKIE}=").split(".")
    forged = f"{COOKIE}={b'anna'.hex()}.{until}.{signature}"
    assert not sessions.admits(forged, now=1)


@pytest.mark.parametrize(
    "header", ["", "x", f"{COOKIE}=", f"{COOKIE}=.", f"{COOKIE}=a.b.c", f"{COOKIE}=é", "\x00;=,"]
)
def test_a_broken_cookie_admits_nobody(storage: Storage, header: str) -> None:
    assert not Sessions(storage).admits(header)


def test_the_document_is_whole_without_traffic_and_without_the_monitor() -> None:
    for snapshot in ({}, None, {"m": {"versions": {}}}):
        document = overview([RELEASE], snapshot)
        assert document["monitor"] is (snapshot is not None)
        model = document["models"][0]
        assert (model["name"], model["version"], model["previous"], model["rows"]) == ("m", "2", "1", 0)


def test_the_page_asks_no_other_address_and_makes_no_markup_of_data() -> None:
    text = page.dashboard().decode()
    outside = set(re.findall(r"(?:https?:)?//[\w.]+", text)) - {"http://www.w3.org"}
    assert outside == set()
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "style="):
        assert sink not in text


def test_what_was_wrong_with_a_key_is_escaped() -> None:
    assert b"<b>" not in page.login_form("<b>")
