"""The release of a model: what its document says after a push, a step, a rollback; documents in and out.

Every change of what answers is a turn, which the history tells: who, what, why, when. The document is written
before anything follows from it (reconciler.py), so that whoever dies, who comes after goes on from there.
"""

import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from mlops_ray.config import Release
from mlops_ray.errors import UsageError
from mlops_ray.pages import plain
from mlops_ray.serving import steps
from mlops_ray.serving.record import Ask, Document
from mlops_ray.serving.steps import Standing

#: Turns and answers that the document keeps.
HISTORY, ANSWERS = 200, 500
#: Characters of a reason.
MOST_SAID = 500
#: Versions are numbered from 1; a registry has no room for more digits.
VERSION = re.compile(r"[1-9]\d{0,8}")


def standing(document: Document) -> Standing | None:
    """Where the challenger stands; `None` where there is none."""
    found = document["challenger"]
    return None if found is None else Standing(found["state"], found["step"], found["reason"])


def settings(document: Document) -> Release:
    """How the challenger goes live: as the project file said when it was pushed."""
    return Release.model_validate(document["challenger"]["release"])


def pushed_at(document: Document) -> float:
    """When the challenger was pushed, seconds since the epoch, as far back as the history goes."""
    turn = document["challenger"]["turn"]
    first = next(each for each in document["history"] if each["turn"] >= turn)
    return datetime.fromisoformat(first["at"]).timestamp()


def taken(document: Document, ask: Ask, now: float) -> Document:
    """What was asked for is done, or not, which the answer says; the same again changes nothing."""
    if ask.id in document["answers"]:
        return document
    do = {"push": _pushed, "promote": _promoted, "rollback": _rolled_back}[ask.what]
    try:
        changed, answer = do(document, ask, now), {"done": True, "said": ""}
    except UsageError as error:
        changed, answer = document, {"done": False, "said": str(error)}
    answers = [*document["answers"].items(), (ask.id, answer)]
    return changed | {"answers": dict(answers[-ANSWERS:])}


def _pushed(document: Document, ask: Ask, now: float) -> Document:
    if not VERSION.fullmatch(ask.version or ""):
        raise UsageError(f"{ask.version!r} is no version")
    champion, going = document["champion"], document["challenger"]
    if champion is not None and champion["version"] == ask.version:
        return document
    if going is not None and going["version"] == ask.version:
        if going["release"] != (ask.release or {}):
            raise UsageError(
                f"version {ask.version} goes live already, by the steps that it was pushed with; for others, "
                "roll it back first"
            )
        return document
    if document["challenger"] is not None:
        superseded = Standing("inconclusive", reason=f"version {ask.version} was pushed")
        document = moved(document, superseded, now)
    challenger: dict[str, Any] = {
        "version": ask.version,
        "state": "registered",
        "step": 0,
        "reason": f"pushed by {ask.by}",
        "since": _iso(now),
        "at": now,
        "turn": document["turn"] + 1,
        "release": ask.release or {},
        "evidence": {},
        "dead": [],
    }
    return _noted(document | {"challenger": challenger}, challenger, now)


def _promoted(document: Document, ask: Ask, now: float) -> Document:
    at = standing(document)
    if at is None or ask.version != document["challenger"]["version"]:
        raise UsageError(f"version {ask.version} is no challenger; push it first")
    if at.state in ("registered", "verified"):
        raise UsageError(f"version {ask.version} is being verified and loaded; nobody can skip that")
    following = steps.forward(at, settings(document))
    return moved(document, replace(following, reason=f"{at.state} ended by {ask.by}"), now)


def _rolled_back(document: Document, ask: Ask, now: float) -> Document:
    reason = f"rolled back by {ask.by}"
    if document["challenger"] is not None:
        return moved(document, Standing("rolled_back", reason=reason), now)
    champion, previous = document["champion"], document["previous"]
    if champion is None or previous is None:
        raise UsageError(
            "there is no version to go back to: the one before the champion is kept until a rollback"
        )
    document = _noted(document, champion | {"state": "rolled_back", "reason": reason}, now)
    return crowned(document, previous | {"reason": reason}, None, now)


def delayed(document: Document, seconds: float) -> Document:
    """The challenger's step takes so much longer: nobody was there to answer, or to look."""
    challenger = document["challenger"]
    return document | {"challenger": challenger | {"at": challenger["at"] + seconds}}


def verified(document: Document, entry: dict[str, Any], now: float) -> Document:
    """The challenger, of which a process of its own found this, may be loaded by replicas."""
    document = document | {"challenger": document["challenger"] | entry}
    return moved(document, Standing("verified"), now)


def moved(document: Document, to: Standing, now: float, evidence: dict[str, float] | None = None) -> Document:
    """The challenger stands there now: it is champion, or goes on, or has ended.

    `evidence` is what its steps told so far, by figure.
    """
    challenger = document["challenger"] | {
        "state": to.state, "step": to.step, "reason": to.reason, "since": _iso(now), "at": now,
    }  # fmt: skip
    if evidence is not None:
        challenger["evidence"] = evidence
    if to.state == "champion":
        before = document["champion"]
        if before is not None:
            retired = before | {"state": "retired", "reason": f"version {challenger['version']} is champion"}
            document = _noted(document, retired, now)
        return crowned(document, _entry(challenger), before, now)
    document = _noted(document, challenger, now)
    if to.has_ended:
        return document | {"challenger": None, "weight": 0.0, "shadow": 0.0}
    release = Release.model_validate(challenger["release"])
    shares = {"weight": steps.weight(to, release), "shadow": steps.shadowed(to)}
    return document | {"challenger": challenger, **shares}


def crowned(document: Document, entry: Document, previous: Document | None, now: float) -> Document:
    """The version of this entry is champion at once; a rollback goes to `previous`, where there is one."""
    champion = {"reason": "", **entry, "state": "champion", "since": _iso(now)}
    document = document | {"champion": champion, "previous": previous}
    document |= {"challenger": None, "weight": 0.0, "shadow": 0.0}
    return _noted(document, champion, now)


#: What a challenger's entry says beside that of a version.
_OF_CHALLENGERS = ("step", "at", "turn", "release", "evidence", "dead")


def _entry(challenger: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in challenger.items() if key not in _OF_CHALLENGERS}


def _noted(document: Document, entry: dict[str, Any], now: float) -> Document:
    """Begins a turn, in which this happened to a version."""
    turn = document["turn"] + 1
    # What a package said of itself may be anything.
    reason = plain(str(entry.get("reason", "")))[:MOST_SAID]
    said = {"state": entry["state"], "step": entry.get("step", 0), "reason": reason}
    happened = {"turn": turn, "version": entry["version"], **said, "at": _iso(now)}
    return document | {"turn": turn, "history": [*document["history"], happened][-HISTORY:]}


def told(document: Document, turn: Document) -> Document:
    """What the audit record is told of a turn of the history: of which version, from where to where, and why.

    `before` and `after` are the state of the version, and who was champion.
    """
    earlier = [each for each in document["history"] if each["turn"] < turn["turn"]]
    states = [each["state"] for each in earlier if each["version"] == turn["version"]]
    champions = [each["version"] for each in earlier if each["state"] == "champion"]
    before = {"state": states[-1] if states else None, "champion": champions[-1] if champions else None}
    after = {"state": turn["state"], "champion": before["champion"]}
    if turn["state"] == "champion":
        after["champion"] = turn["version"]
    kept = {key: turn[key] for key in ("turn", "version", "step", "reason")}
    return {"model": document["model"], **kept, "turned_at": turn["at"], "before": before, "after": after}


def _iso(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).isoformat()
