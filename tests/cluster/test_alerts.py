"""`mlops-ray alerts test` says of each route whether somebody would hear of an alarm."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlops_ray import cli
from mlops_ray.errors import ServiceError, UsageError
from tests import receivers
from tests.cluster.test_serve import PROJECT
from tests.servers import free_port


def tried(capsys: pytest.CaptureFixture[str], folder: Path, *alerts: dict[str, Any]) -> Any:
    """What the command says of a project with such alerts."""
    file = folder / "project.yaml"
    listen = {"serving": {"listen": {"url": "https://ml.example.org"}}}
    file.write_text(
        PROJECT + f"monitoring: {json.dumps({'alerts': alerts})}\nserving: {json.dumps(listen['serving'])}"
    )
    cli.app(["alerts", "test", str(file), "--json"], standalone_mode=False)
    return json.loads(capsys.readouterr().out)


def test_each_route_gets_a_test_that_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with receivers.web() as web, receivers.post() as post:
        mail = f"smtp://127.0.0.1:{post.port}/ops@example.org?tls=no"
        found = tried(capsys, tmp_path, {"webhook": web.url}, {"email": mail}, {"log": True})
    assert [(each["route"], each["works"]) for each in found] == [
        ("webhook", True),
        ("email", True),
        ("log", True),
    ]
    assert found[1]["to"] == f"ops@example.org by 127.0.0.1:{post.port}"
    (message,), (letter,) = web.got, post.got
    assert (message["status"], message["alerts"][0]["what"]) == ("event", "test")
    assert letter.text["subject"] == "[event] small: test"
    for text in (message["text"], letter.text.get_body(("plain",)).get_content(), caplog.text):  # type: ignore[union-attr]
        assert "nothing is wrong" in text
        assert "https://ml.example.org/dashboard#/models/small" in text


def test_a_route_that_does_not_work_fails_the_command_and_the_others_are_tried_all_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    nobody = f"http://ann:s3cret@127.0.0.1:{free_port()}/s3cret"
    with receivers.web() as web, pytest.raises(ServiceError, match="of an alarm by webhook, prometheus"):
        tried(capsys, tmp_path, {"webhook": nobody}, {"webhook": web.url}, {"prometheus": True})
    assert len(web.got) == 1
    said = capsys.readouterr().out
    assert [each["said"] for each in json.loads(said)] == [
        "not taken: Connection refused",
        "taken",
        "the service does not run: nothing answers there",
    ]
    assert "s3cret" not in said


def test_without_a_route_there_is_nothing_to_try(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for alerts in ((), ({"log": False},), ({"webhook": "${NOT_SET_ANYWHERE}"},)):
        with pytest.raises(UsageError, match="names no route that is on"):
            tried(capsys, tmp_path, *alerts)
    assert "${NOT_SET_ANYWHERE} is off" in capsys.readouterr().err
