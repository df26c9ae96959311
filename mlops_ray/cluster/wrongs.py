"""What is wrong with a service, in sentences: what `status` says first."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

from mlops_ray.data import error_log
from mlops_ray.monitoring.dashboard.errors import Errors
from mlops_ray.monitoring.dashboard.spans import Span
from mlops_ray.storage import Storage

#: How long ago an error may have been logged to be told of, in seconds.
LATELY_S = 3_600

Document = Mapping[str, Any]


def wrong(found: Document, logged: Document) -> list[str]:
    """What is wrong with what is live, the service before its models; empty where nothing is known to be.

    `found` is the document of `service.status`, `logged` what the error log has of the last hour
    (`lately`).

    >>> model = {"name": "m", "alarms": [], "places": {"nodes": []}, "loop": None, "cost": None}
    >>> wrong({"monitor": False, "said": "", "models": [model]}, {"service": [], "commands": []})
    ['the monitor does not answer: nothing is counted meanwhile, and no alarm opens']
    """
    return [
        *_of_the_service(found, logged),
        *(said for each in found["models"] for said in _of_a_model(each)),
    ]


def lately(storage: Storage) -> dict[str, list[Document]]:
    """The last error that each process logged in the last hour, with the `count` of all that it did.

    The newest first: of the `service`, and of `commands`.
    """
    now, errors = time.time(), Errors(storage)
    span, asked = Span(now - LATELY_S, now, LATELY_S), {"level": "error"}
    found: dict[str, list[Document]] = {"service": [], "commands": []}
    for process in errors.search(span, asked)["by"]["process"]:
        logged = errors.search(span, asked | {"process": process})
        who = "commands" if process == error_log.COMMAND else "service"
        found[who].append({**logged["lines"][0], "count": logged["count"]})
    return {who: sorted(lines, key=lambda line: -line["at"]) for who, lines in found.items()}


def _of_the_service(found: Document, logged: Document) -> Iterator[str]:
    if found["said"]:
        yield found["said"]
    if found.get("monitor") is False:
        yield "the monitor does not answer: nothing is counted meanwhile, and no alarm opens"
    for who, one, many in (
        ("service", "an error was logged in the last hour", "errors were logged in the last hour, the last"),
        ("commands", "a command failed in the last hour", "commands failed in the last hour, the last"),
    ):
        if lines := logged[who]:
            last, count = lines[0], sum(line["count"] for line in lines)
            at = time.strftime("%H:%M:%S", time.gmtime(last["at"]))
            where = f"{last.get('process', '')}, {last['stage']}".strip(", ")
            begins = one if count == 1 else f"{count:,} {many}"
            yield f"{begins}, at {at} UTC ({where}): {last.get('said', '')}"


def _of_a_model(model: Document) -> Iterator[str]:
    name = model["name"]
    for episode in model["alarms"][:1]:
        if episode["resolved"] is None:
            found = "; ".join(each["evidence"] for each in episode["found"])
            yield f"{name}: an alarm is open: {found}"
    if lost := model.get("lost_lately"):
        yield (
            f"{name}: of the rows that were answered in the last day, {lost:,} are missing from the"
            " prediction log (a process was killed before it wrote them, or they could not be written)"
        )
    misplaced = [node["address"] for node in model["places"]["nodes"] or () if not node["may"]]
    if misplaced:
        yield f"{name}: replicas run where its rows may not be: {', '.join(misplaced)}"
    for last in ((model["loop"] or {}).get("retrainings") or [])[-1:]:
        if last["ended"] and last["state"] == "failed":
            yield f"{name}: the last retraining failed: {last['said']}"
    if (model["cost"] or {}).get("held"):
        yield f"{name}: no replica is added, and nothing is trained by itself: {model['cost']['held']}"
