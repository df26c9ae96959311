"""What people and CI do about releases: push a version, wait for what becomes of it, end a step, go back.

Whoever reaches the storage may ask; the service's reconciler answers. Nothing here needs Ray.
"""

import time
from typing import Any

from mlops_ray import audit
from mlops_ray.cluster import profitable
from mlops_ray.cluster.stages import Progress
from mlops_ray.config import Project
from mlops_ray.errors import ClusterError, ReleaseError, UsageError
from mlops_ray.serving import heartbeats, record
from mlops_ray.serving.record import Ask, Document, Wish
from mlops_ray.serving.release import VERSION
from mlops_ray.storage import Storage

#: What is asked for, in the audit record.
WISHES: dict[Wish, str] = {"push": "a push", "promote": "a promotion", "rollback": "a rollback"}
#: How often the release is looked at.
POLL_S = 0.05
#: Replicas follow a release within a fifth of a second, unless they are dying.
FOLLOW_S = 2 * heartbeats.DEAD_S
#: Where a version stands while a process of its own, and then the replicas, load it.
LOADING = ("registered", "verified")
#: Where it is on its way.
GOING_ON = (*LOADING, "shadow", "canary")
#: Where a version ends that does not go live.
SENT_BACK = ("refused", "rolled_back", "inconclusive")


def push(project: Project, storage: Storage, version: int) -> Ask:
    """Asks for a version to go live as the project file says, if it earns enough."""
    profitable.judge(project, storage, version)
    release = project.release.model_dump(mode="json", exclude={"hooks"})
    return _ask(storage, project.project, "push", version, release=release)


def version_of(project: Project, storage: Storage, said: str) -> int:
    """The version that a person, or CI, means: a number, or `latest`, which its gate must not have refused.

    Raises `UsageError` where it is none.
    """
    if VERSION.fullmatch(said):
        return int(said)
    if said != "latest":
        raise UsageError(f"{said!r} is no version: a number, or latest")
    from mlops_ray.cluster.pipeline import registered

    newest = registered(project, storage)[:1]
    if not newest:
        raise UsageError(f"no version of {project.project!r} is registered; mlops-ray train makes one")
    version, state, reason = (newest[0][key] for key in ("version", "state", "reason"))
    if state == "refused":
        raise ReleaseError(f"version {version} was refused: {reason}; push it by its number if you must")
    return int(version)


def pushed(
    project: Project, storage: Storage, progress: Progress, version: int, *, wait: bool = True
) -> dict[str, Any]:
    """Pushes a version and says what became of it: `{"version", "state", "reason", "seconds", "turns", …}`.

    `profit` is what it earns beside the champion, in a sentence, empty where nobody asks. Where it is not
    waited for, what was done so far. Raises `ClusterError` where no service takes it up.
    """
    begin = time.monotonic()
    asked = push(project, storage, version)
    document = _answered(project, storage, asked)
    if wait:
        document = followed(storage, project.project, progress, version)
    found = outcome(document, version) | {"profit": profitable.said(storage, project.project, version)}
    return found | {"seconds": round(time.monotonic() - begin, 2)}


def require_live(found: dict[str, Any]) -> None:
    """Raises `ReleaseError` where a version that was `pushed` does not go live."""
    if found["state"] in (*SENT_BACK, "unknown"):
        state = found["state"].replace("_", " ")
        raise ReleaseError(f"version {found['version']} is {state}: {found['reason']}")


def promote(project: Project, storage: Storage, version: int) -> dict[str, Any]:
    """Ends the present step of a challenger; where it stands then. Raises `UsageError` where it is none."""
    asked = _ask(storage, project.project, "promote", version)
    return outcome(_answered(project, storage, asked), version)


def rollback(project: Project, storage: Storage) -> dict[str, Any]:
    """Sends the challenger back, or where there is none the champion; what is live then.

    Raises `UsageError` where there is nothing to go back to.
    """
    asked = _ask(storage, project.project, "rollback")
    document = _followed_by_all(storage, _answered(project, storage, asked))
    gone = [turn for turn in document["history"] if turn["state"] == "rolled_back"][-1:]
    champion = document["champion"]
    return {"version": champion and champion["version"], "rolled_back": gone[0]["version"] if gone else None}


def followed(
    storage: Storage, name: str, progress: Progress, version: int, *, until_loaded: bool = False
) -> Document:
    """The release, when a pushed version has ended, or, `until_loaded`, has been taken up by replicas."""
    said = ""
    while True:
        # In this order: a wish that is gone has been taken up.
        waits = any(ask.version == str(version) for ask in record.asked(storage, name))
        document = record.read(storage, name) or record.new(name)
        found = outcome(document, version)
        if not waits and found["state"] not in (LOADING if until_loaded else GOING_ON):
            return _followed_by_all(storage, document)
        told = found["state"]
        if told in ("shadow", "canary") and (seen := storage.read_json(record.SEEN, f"{name}.json")):
            told += f" {found['step'] + 1} {seen.get('requests', 0):,} requests"
        if told != said:
            progress.update(told)
            said = told
        _require_reconciler(storage)
        time.sleep(POLL_S)


def _followed_by_all(storage: Storage, document: Document) -> Document:
    """The release, when every replica that lives follows it; one that is dying holds nobody up for long."""
    end = time.monotonic() + FOLLOW_S
    while time.monotonic() < end:
        alive = [each for each in heartbeats.followers(storage, document["model"]) if each.is_alive]
        if all(each.turn >= document["turn"] for each in alive):
            break
        time.sleep(POLL_S)
    return document


def outcome(document: Document, version: int) -> dict[str, Any]:
    """What the release says of a version last: where it stands, why, and its turns."""
    turns = [turn for turn in document["history"] if turn["version"] == str(version)]
    last = turns[-1] if turns else {"state": "unknown", "step": 0, "reason": "it was never pushed"}
    return {"version": version, **{k: last[k] for k in ("state", "step", "reason")}, "turns": turns}


def _ask(storage: Storage, name: str, what: Wish, version: int | None = None, **how: Any) -> Ask:
    """Leaves a wish of whoever gives this command, of which the audit record hears first.

    What goes back to what was good waits for no record.
    """
    by, told, is_urgent = audit.who(), f"{WISHES[what]} was asked for", what == "rollback"
    about = {"model": name, "version": version}
    if not is_urgent:
        audit.append(storage, told, by, about)
    asked = record.ask(storage, name, what, version, by=by, **how)
    if is_urgent:
        audit.append(storage, told, by, about, is_done=True)
    return asked


def _answered(project: Project, storage: Storage, asked: Ask) -> Document:
    """The release in which the wish was taken up; raises `UsageError` where it could not be done."""
    while True:
        waits = any(ask.id == asked.id for ask in record.asked(storage, project.project))
        document = record.read(storage, project.project)
        answer = (document.get("answers") or {}).get(asked.id)
        if answer is not None and not answer["done"]:
            raise UsageError(answer["said"])
        if answer is not None:
            return document
        if not waits:
            raise ClusterError("it was taken up, and the answer is gone; mlops-ray status tells more")
        _require_reconciler(storage)
        time.sleep(POLL_S)


def _require_reconciler(storage: Storage) -> None:
    silent_s = heartbeats.silent_s(storage)
    if silent_s > heartbeats.SILENT_S:
        raise ClusterError(
            "no service of this storage takes it up: start one (mlops-ray serve); until then it waits"
        )
