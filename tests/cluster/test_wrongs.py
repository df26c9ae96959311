"""Status says first what is wrong, in sentences, and nothing where nothing is."""

import logging
from typing import Any

import pytest

from mlops_ray.cluster import wrongs
from mlops_ray.data import error_log
from mlops_ray.errors import StorageError
from mlops_ray.storage import Storage

QUIET: dict[str, Any] = {"service": [], "commands": []}
MODEL: dict[str, Any] = {"name": "m", "alarms": [], "places": {"nodes": None}, "loop": None, "cost": None}


def document(**of_model: Any) -> dict[str, Any]:
    return {"monitor": True, "said": "", "models": [MODEL | of_model]}


@pytest.mark.parametrize(
    ("of_model", "said"),
    [
        ({}, []),
        (
            {"alarms": [{"resolved": None, "found": [{"evidence": "load moved"}, {"evidence": "mae rose"}]}]},
            ["m: an alarm is open: load moved; mae rose"],
        ),
        ({"alarms": [{"resolved": 1.0, "found": [{"evidence": "load moved"}]}]}, []),
        (
            {
                "places": {
                    "nodes": [{"address": "10.0.0.7", "may": False}, {"address": "10.0.0.8", "may": True}]
                }
            },
            ["m: replicas run where its rows may not be: 10.0.0.7"],
        ),
        (
            {"loop": {"retrainings": [{"ended": 2.0, "state": "failed", "said": "no rows"}]}},
            ["m: the last retraining failed: no rows"],
        ),
        ({"loop": {"retrainings": [{"ended": None, "state": "running", "said": "train"}]}}, []),
        (
            {"cost": {"held": "5 EUR are spent"}},
            ["m: no replica is added, and nothing is trained by itself: 5 EUR are spent"],
        ),
        ({"cost": {"held": ""}}, []),
        (
            {"lost_lately": 1_063},
            [
                "m: of the rows that were answered in the last day, 1,063 are missing from the prediction log"
                " (a process was killed before it wrote them, or they could not be written)"
            ],
        ),
        ({"lost_lately": 0}, []),
    ],
)
def test_what_is_wrong_with_a_model_is_a_sentence(of_model: dict[str, Any], said: list[str]) -> None:
    assert wrongs.wrong(document(**of_model), QUIET) == said


def test_what_is_wrong_with_the_service_comes_first() -> None:
    found = document(cost={"held": "spent"}) | {"monitor": False, "said": "nobody looks for pushes"}
    said = wrongs.wrong(found, QUIET)
    assert [each.split(" ")[0] for each in said] == ["nobody", "the", "m:"]


def test_errors_of_the_last_hour_are_told_and_older_ones_are_not(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert wrongs.lately(storage) == QUIET
    with monkeypatch.context() as before:
        before.setattr(error_log.time, "time", lambda: 1_000_000.0)
        before.setattr(error_log, "tidy", lambda _: None)
        error_log.tell(storage, "m", "ingest", StorageError("long ago"))
    assert wrongs.lately(storage) == QUIET
    error_log.tell(storage, "m", "ingest", StorageError("the store is away"))
    (said,) = wrongs.wrong(document(), wrongs.lately(storage))
    assert said.startswith("a command failed in the last hour, at ")
    assert said.endswith(" UTC (command, ingest): the store is away")
    error_log.tell(storage, "m", "train", StorageError("no room"))
    (said,) = wrongs.wrong(document(), wrongs.lately(storage))
    assert said.startswith("2 commands failed in the last hour, the last, at ")
    # Also of more than a page shows all are counted.
    for _ in range(299):
        error_log.tell(storage, "m", "train", StorageError("no room"))
    (said,) = wrongs.wrong(document(), wrongs.lately(storage))
    assert said.startswith("301 commands failed in the last hour, the last, at ")
    # What the service failed of is told apart from what somebody has mistyped.
    log = error_log.install(storage, "monitor")
    logging.getLogger("mlops_ray.monitoring.looks").error("a window cannot be looked at")
    logging.getLogger("mlops_ray").removeHandler(log)
    error_log._installed.clear()
    log.close()
    first, second = wrongs.wrong(document(), wrongs.lately(storage))
    assert first.startswith("an error was logged in the last hour, at ")
    assert first.endswith(": a window cannot be looked at")
    assert second == said
