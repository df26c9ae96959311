"""What is sent comes in at real receivers, encrypted where it is to be, and an error shows no secret."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mlops_ray.data import error_log
from mlops_ray.monitoring import alarms, alerts
from mlops_ray.monitoring.alarms import Alarms, Finding
from mlops_ray.monitoring.alerts import News
from mlops_ray.monitoring.sending import Route, reason, send
from mlops_ray.storage import Storage
from tests import receivers
from tests.cluster import certificates

NOW = 1_800_000_000.0
SECRET = "s3cret/?#@:"
WRITTEN = "s3cret%2F%3F%23%40%3A"


def message(*models: str, evidence: str = "load is larger") -> dict[str, Any]:
    news = []
    for model in models or ("m",):
        state = Alarms(NOW - 1)
        finding = Finding("x", "input", 1e-4, True, evidence, 1.0)
        state.take(alarms.look(NOW, 0.01, [finding]), "3")
        news.append(News(alerts.of_alarms(model, state)[0], "begun", 1))
    return alerts.message(news, "http://ml.example.org:8000", NOW)


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A certificate of this machine that it trusts, and its key."""
    pair = certificates.write(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", pair[0])
    return pair


def fails(route: Route) -> str:
    with pytest.raises(Exception) as raised:
        send(route, message())
    said = reason(raised.value)
    assert "s3cret" not in said
    return said


# ------------------------------------------------------------ HTTP


def test_a_webhook_gets_the_message_as_json() -> None:
    with receivers.web() as there:
        send(Route("webhook", there.url), message("a", "b"))
    assert there.got == [message("a", "b")]
    assert there.heads[0]["content-type"] == "application/json"
    assert there.heads[0]["user-agent"].startswith("mlops_ray/")


def test_a_user_and_a_password_in_an_address_go_into_the_head() -> None:
    with receivers.web() as there:
        send(Route("webhook", there.url.replace("http://", f"http://ann:{WRITTEN}@")), message())
    assert there.heads[0]["authorization"] == "Basic YW5uOnMzY3JldC8/I0A6"
    assert there.heads[0]["host"] == there.url.split("/")[2]


@pytest.mark.parametrize("status", [500, 503, 404, 302, 307])
def test_what_is_not_taken_is_an_error_and_a_redirect_is_none_who_took_it(status: int) -> None:
    with receivers.web(status) as there:
        assert fails(Route("webhook", there.url)) == f"status {status}"
        assert there.got == []


def test_an_error_of_a_webhook_shows_nothing_of_its_address() -> None:
    with receivers.web() as there:
        port = int(there.url.split(":")[2].partition("/")[0])
    assert fails(Route("webhook", f"http://ann:s3cret@127.0.0.1:{port}/s3cret")) == "Connection refused"
    assert fails(Route("webhook", "http://h:s3cret/")) == "InvalidURL"
    assert "s3cret" not in Route("webhook", "https://ann:s3cret@host/s3cret?s3cret").shown()


# ------------------------------------------------------------ SMTP


def test_an_e_mail_comes_as_text_and_as_html_to_all_who_are_named() -> None:
    evidence = "<script>alert(1)</script> & größer"
    with receivers.post() as there:
        address = f"smtp://127.0.0.1:{there.port}/ops@example.org,boss@example.org?tls=no&from=ml@example.org"
        send(Route("email", address), message("a", "b", evidence=evidence))
    (letter,) = there.got
    assert (letter.sender, letter.to) == ("ml@example.org", ["ops@example.org", "boss@example.org"])
    assert letter.text["subject"] == "[firing] 2 models: a, b: alarm"
    assert letter.text["to"] == "ops@example.org, boss@example.org"
    assert letter.text["message-id"] == f"<{message('a', 'b')['id']}@mlops-ray>"
    assert letter.text["date"].datetime.timestamp() == NOW
    text, page = (letter.text.get_body((kind,)).get_content() for kind in ("plain", "html"))  # type: ignore[union-attr]
    assert text.replace("\r\n", "\n").rstrip() == message("a", "b", evidence=evidence)["text"]
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; größer (input; by chance" in page
    assert "<script" not in page
    assert re.findall(r'href="([^"]*)"', page) == [
        f"http://ml.example.org:8000/dashboard#/models/{model}/alarms" for model in "ab"
    ]


def test_a_password_goes_over_an_encrypted_line_alone(trusted: tuple[str, str]) -> None:
    users = {"ann@example.org": SECRET}
    for scheme, from_the_start in (("smtp", False), ("smtps", True)):
        with receivers.post(trusted, from_the_start=from_the_start, users=users) as there:
            address = f"{scheme}://ann%40example.org:{WRITTEN}@localhost:{there.port}/ops@example.org"
            send(Route("email", address), message())
        (letter,) = there.got
        assert (letter.user, letter.is_encrypted) == ("ann@example.org", True)
        assert letter.sender == "ann@example.org"


def test_a_server_that_does_not_encrypt_or_is_another_gets_nothing(
    trusted: tuple[str, str], tmp_path: Path
) -> None:
    address = f"smtp://ann:{WRITTEN}@localhost:{{}}/ops@example.org"
    with receivers.post() as plain:
        assert "with ?tls=no it would go in the clear" in fails(Route("email", address.format(plain.port)))
    other = certificates.write(tmp_path, "other")
    with receivers.post(other, users={"ann": SECRET}) as unknown:
        assert "certificate is not trusted" in fails(Route("email", address.format(unknown.port)))
    said = [*plain.dialogue, *unknown.dialogue]
    assert [line for line in said if "AUTH" in line or "MAIL" in line] == []


def test_what_an_smtp_server_refuses_is_an_error_that_shows_no_password(trusted: tuple[str, str]) -> None:
    with receivers.post(trusted, users={"ann": "other"}) as there:
        address = f"smtp://ann:{WRITTEN}@localhost:{there.port}/ops@example.org"
        # This server says the password itself.
        assert fails(Route("email", address)) == "status 535"
    with receivers.post(refuses=["ops@example.org"]) as there:
        assert fails(Route("email", f"smtp://127.0.0.1:{there.port}/ops@example.org?tls=no")) == "status 550"
    with receivers.post(busy=1) as there:
        assert fails(Route("email", f"smtp://127.0.0.1:{there.port}/ops@example.org?tls=no")) == "status 451"


def test_one_who_is_refused_keeps_it_from_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    with receivers.post(refuses=["gone@example.org"]) as there:
        address = f"smtp://127.0.0.1:{there.port}/gone@example.org,ops@example.org?tls=no"
        send(Route("email", address), message())
    assert [letter.to for letter in there.got] == [["ops@example.org"]]
    assert "refused by 1 of 2" in caplog.text


def test_what_was_taken_is_so_whatever_the_server_says_to_a_good_bye() -> None:
    for bye in ("421 I go", "no line of this protocol"):
        with receivers.post(bye=bye) as there:
            send(Route("email", f"smtp://127.0.0.1:{there.port}/ops@example.org?tls=no"), message())
        assert len(there.got) == 1


def test_nothing_ends_a_header(trusted: tuple[str, str]) -> None:
    said = message("m", evidence="a\r\nBcc: all@example.org\r\n.\r\nMAIL FROM:<x@y>")
    said["alerts"][0]["model"] = "m\r\nBcc: all@example.org"
    with receivers.post() as there:
        address = f"smtp://127.0.0.1:{there.port}/ops@example.org?tls=no"
        send(Route("email", address), said)
    (letter,) = there.got
    assert letter.text["bcc"] is None
    assert letter.text["subject"] == "[firing] m\\u000d\\u000aBcc: all@example.org: alarm"
    assert letter.to == ["ops@example.org"]


# ------------------------------------------------------------ the log


def test_the_log_gets_a_line_of_json_for_each_alert(caplog: pytest.LogCaptureFixture) -> None:
    send(Route("log"), message("a", "b"))
    lines = [json.loads(record.getMessage()) for record in caplog.records]
    assert [(line["model"], line["status"], line["message"]) for line in lines] == [
        (model, "firing", message("a", "b")["id"]) for model in "ab"
    ]
    assert all("\n" not in record.getMessage() for record in caplog.records)


def test_an_alert_in_the_log_quotes_what_was_found_and_the_log_of_errors_does_not_keep_it(
    storage: Storage,
) -> None:
    log = error_log.install(storage, "monitor")
    send(Route("log"), message("a", evidence="20 instead of 35.5 for annabel"))
    log.close()
    assert not list(storage.root.glob("errors/*"))
