"""What people are told of: troubles of models, and of them what a route has not said yet.

Plain data in, plain data out. A trouble goes on from `since` until `until`, or is an event, over as it
begins. It is told when it begins, when more is found, again after a while, and when it is over: once each,
which the id of each telling shows to who gets it twice. What waits together is one message.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import quote

from mlops_ray.monitoring.alarms import Alarms
from mlops_ray.monitoring.state import ModelState
from mlops_ray.pages import cut, plain
from mlops_ray.storage import digest

#: How long news wait for others, to be one message: what has one cause begins at about one time.
GROUP_WAIT_S = 30.0
#: What goes on is said again after a day, then after two more, four, ...: not forgotten, and no nuisance.
REMIND_S = 86_400.0
#: Episodes of a model, newest first, of which is told; one that many others have followed is history.
MOST_EPISODES = 20
#: What was told is known for so long, whether or not it is there: a document may not be readable just now. Of
#: what was over before nothing is told.
FORGET_S = 30 * 86_400.0
#: Findings of a trouble that a message shows, and troubles: e-mail is to be read, and servers refuse what is
#: too large. The rest of the findings is counted; the rest of the troubles is the next message.
MOST_FINDINGS, MOST_TOLD = 20, 50
#: What chance makes rarer is not put into a number.
RAREST = 1e-6

#: Errors are told of where they use up the allowed ones this many times too fast, for an hour and still in
#: the last minutes: a month's within two days (Google's Site Reliability Workbook, chapter 5).
FAST, LONG_MINUTES, SHORT_MINUTES = 14.4, 60, 5
#: Of fewer failed requests nobody is called; over is what has been slower for so many minutes.
LEAST_FAILED, OVER_MINUTES = 5, 15
#: What is lost within an hour after the last time that this was told is told with what follows.
LOST_EVERY_S = 3_600.0
#: Troubles with errors and losses that are remembered, of each model.
MOST_KEPT = 20

What = Literal["alarm", "errors", "lost", "release", "retraining", "budget", "test"]
Why = Literal["begun", "more", "reminder", "over", "happened"]
#: Of these there is no end to be told.
EVENTS: frozenset[What] = frozenset({"lost", "release", "retraining", "budget", "test"})
#: What became of a version that people should hear of: it is not live.
FAILED = ("rolled_back", "refused", "inconclusive")
#: The shares of a day's budget of which is told that they are spent.
SHARES = (0.8, 1.0)
#: What became of a retraining that pushed nothing, where it should have: of a version the release tells.
CAME_TO_NOTHING = {"failed": "failed", "refused": "came to nothing"}
#: The part of a model's page that shows it.
PLACES: dict[What, str] = {
    "alarm": "/alarms",
    "errors": "/errors",
    "release": "/releases",
    "retraining": "/alarms",
    "budget": "/costs",
}


@dataclass(frozen=True)
class Trouble:
    """Something that is wrong with a model, or was.

    `findings` are `{"about", "kind", "since", "evidence", "p", "harm"}`: `p` says how likely chance
    alone makes what was seen, and is `None` where no chance is in it. Times are seconds since the epoch;
    `until` is `None` while it goes on.
    """

    id: str
    model: str
    what: What
    version: str
    since: float
    until: float | None
    findings: tuple[dict[str, Any], ...]

    @property
    def is_over(self) -> bool:
        return self.until is not None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The trouble that `asdict` wrote."""
        return cls(**{**data, "findings": tuple(data["findings"])})


class Seen(NamedTuple):
    """What the monitor knows of a model now; `minutes` are (at, requests, failed) of the last hour."""

    model: str
    alarms: tuple[Trouble, ...] = ()
    minutes: tuple[tuple[int, int, int], ...] = ()


class Told(NamedTuple):
    """What a route has said of a trouble: about what, when last, how often, and that it is over."""

    about: tuple[str, ...]
    at: float
    times: int
    reminders: int
    is_over: bool


class News(NamedTuple):
    """What a route has not said of a trouble, for the so-manyth time."""

    trouble: Trouble
    why: Why
    number: int


# ---------------------------------------------------------------- troubles


def seen(state: ModelState, now: float) -> Seen:
    """What the state of a model says of its troubles."""
    minutes: dict[int, tuple[int, int]] = {}
    for watched in state.versions.values():
        for at, minute in watched.minutes.items():
            # Those to come were counted before the clock was set back.
            if now - 60 * LONG_MINUTES < at <= now:
                requests, failed = minutes.get(at, (0, 0))
                minutes[at] = (requests + minute.requests, failed + minute.failed)
    return Seen(
        state.model,
        tuple(of_alarms(state.model, state.alarms)),
        tuple((at, *counts) for at, counts in sorted(minutes.items())),
    )


def of_alarms(model: str, alarms: Alarms | None) -> list[Trouble]:
    """The newest episodes of a model."""
    return [
        Trouble(
            f"{model}/alarm/{iso(episode.opened)}",
            model,
            "alarm",
            episode.version,
            episode.opened,
            episode.resolved,
            tuple(_found(about, what) for about, what in episode.ranked),
        )
        for episode in (alarms.episodes[-MOST_EPISODES:] if alarms else [])
    ]


def _found(about: str, what: Mapping[str, Any]) -> dict[str, Any]:
    return _finding(about, what["kind"], what["evidence"], what["since"], what.get("p"), what["harm"])


def of_release(model: str, history: Iterable[Mapping[str, Any]]) -> list[Trouble]:
    """The turns of a model's release in which a version did not stay, or become, live."""
    return [_of_turn(model, turn) for turn in history if turn["state"] in FAILED]


def _of_turn(model: str, turn: Mapping[str, Any]) -> Trouble:
    at, version = datetime.fromisoformat(turn["at"]).timestamp(), turn["version"]
    said = f"version {version} is {turn['state'].replace('_', ' ')}: {turn['reason'] or 'no reason is known'}"
    found = _finding(f"version {version}", "release", said, at)
    return Trouble(f"{model}/release/{turn['turn']}", model, "release", version, at, at, (found,))


def of_retrainings(
    model: str, retrainings: Iterable[Mapping[str, Any]], history: Iterable[Mapping[str, Any]]
) -> list[Trouble]:
    """The retrainings of a model (`cluster.loop`) that pushed nothing: the alarm wants a person.

    What became of a version that was pushed, `of_release` says.
    """
    released = {turn["version"] for turn in history}
    return [
        _of_retraining(model, each)
        for each in retrainings
        if each["state"] in CAME_TO_NOTHING and str(each["version"]) not in released
    ]


def _of_retraining(model: str, ended: Mapping[str, Any]) -> Trouble:
    said = f"the retraining of {_minute(iso(ended['at']))} {CAME_TO_NOTHING[ended['state']]}: {ended['said']}"
    found = _finding("retraining", "retraining", said, ended["ended"])
    version = "" if ended["version"] is None else str(ended["version"])
    id, at = f"{model}/retraining/{ended['id']}", ended["ended"]
    return Trouble(id, model, "retraining", version, at, at, (found,))


def of_budget(cost: Mapping[str, Any]) -> list[Trouble]:
    """That most of the day's budget is spent, and that all of it is (`cluster.meter.document`)."""
    budget = cost.get("budget")
    if not budget:
        return []
    day = iso(cost["at"])[:10]
    return [
        _of_budget(cost, budget, share, f"{cost['model']}/budget/{day}/{share:g}")
        for share in SHARES
        if budget["spent"] >= share * budget["per_day"]
    ]


def _of_budget(cost: Mapping[str, Any], budget: Mapping[str, Any], share: float, id: str) -> Trouble:
    currency, at = cost["total"]["currency"], cost["at"]
    said = f"{budget['spent']:.4g} of {budget['per_day']:.4g} {currency} that may be spent a day are spent"
    if budget.get("jobs"):
        said += f", of which {budget['jobs']:.4g} {currency} by trainings and other jobs"
        each = [f"{name}: {amount:.4g} {currency}" for name, amount in budget.get("named", {}).items()]
        said += f" ({', '.join(each)})" if each else ""
    if share >= 1 and budget["holds"]:
        said += "; no replica is added, and nothing is trained by itself, before the next day (UTC)"
    found = _finding("budget", "budget", said, at)
    return Trouble(id, cost["model"], "budget", "", at, at, (found,))


def of_losses(
    kept: Sequence[Trouble], model: str, version: str, lost: int, before: int, now: float
) -> Trouble | None:
    """That rows are missing in the prediction log since it was `before`, unless that was told just now."""
    last = max((trouble.since for trouble in kept if trouble.what == "lost"), default=-LOST_EVERY_S)
    if lost <= before or abs(now - last) < LOST_EVERY_S:
        return None
    said = f"{lost - before:,} answered rows are not in the prediction log, {lost:,} in all"
    finding = _finding("prediction log", "log", said, now)
    return Trouble(f"{model}/lost/{lost}", model, "lost", version, now, now, (finding,))


def of_errors(going: Trouble | None, seen: Seen, version: str, allowed: float, now: float) -> Trouble | None:
    """That too many requests fail: as it begins, as it goes on, as it ends; `None` where nothing is wrong.

    `allowed` is the share that the project allows. What no replica got is not counted.
    """
    most = FAST * allowed
    hour, minutes, over = (
        _failed(seen, now, minutes) for minutes in (LONG_MINUTES, SHORT_MINUTES, OVER_MINUTES)
    )
    if going is not None and over.share <= most:
        return Trouble(**{**vars(going), "until": now})
    is_bad = hour.share > most and minutes.share > most and minutes.failed >= LEAST_FAILED
    if going is None and not is_bad:
        return None
    said = (
        f"{100 * hour.share:.3g} % of {hour.requests:,} requests failed in the last hour, "
        f"{100 * minutes.share:.3g} % of {minutes.requests:,} in the last {SHORT_MINUTES} minutes; "
        f"{100 * allowed:.3g} % is allowed"
    )
    since = now if going is None else going.since
    found = _finding("errors", "errors", said, since, harm=minutes.share)
    return Trouble(f"{seen.model}/errors/{iso(since)}", seen.model, "errors", version, since, None, (found,))


class _Failed(NamedTuple):
    requests: int
    failed: int

    @property
    def share(self) -> float:
        return self.failed / self.requests if self.requests else 0.0


def _failed(seen: Seen, now: float, minutes: int) -> _Failed:
    """The requests, and the failed ones, of the minutes that began since then."""
    known = [(requests, failed) for at, requests, failed in seen.minutes if at > now - 60 * minutes]
    return _Failed(sum(requests for requests, _ in known), sum(failed for _, failed in known))


def _finding(
    about: str, kind: str, evidence: str, since: float, p: float | None = None, harm: float = 1.0
) -> dict[str, Any]:
    said = {"about": about, "kind": kind, "since": iso(since), "evidence": plain(evidence)}
    # Those of a look may be numpy's.
    return said | {"p": None if p is None else float(p), "harm": float(harm)}


# ---------------------------------------------------------------- what is to be said


def news(troubles: Iterable[Trouble], told: Mapping[str, Told], since: float, now: float) -> list[News]:
    """What a route that is there `since` has not said yet, oldest trouble first.

    Of what was over before nothing is said.
    """
    found = []
    for trouble in sorted(troubles, key=lambda trouble: (trouble.since, trouble.id)):
        before = told.get(trouble.id)
        why = _first(trouble, max(since, now - FORGET_S)) if before is None else _next(trouble, before, now)
        if why is not None:
            found.append(News(trouble, why, 1 if before is None else before.times + 1))
    return found[:MOST_TOLD]


def _first(trouble: Trouble, since: float) -> Why | None:
    if trouble.until is not None and trouble.until < since:
        return None
    if trouble.what in EVENTS:
        return "happened"
    return "over" if trouble.is_over else "begun"


def _next(trouble: Trouble, before: Told, now: float) -> Why | None:
    if before.is_over:
        return None
    if trouble.is_over:
        return "over"
    if {what["about"] for what in trouble.findings} - {*before.about}:
        return "more"
    # What was told in times to come was so before the clock was set back.
    return "reminder" if abs(now - before.at) >= REMIND_S * 2**before.reminders else None


def said(
    news: Iterable[News], told: Mapping[str, Told], troubles: Iterable[Trouble], now: float
) -> dict[str, Told]:
    """What a route has said once these are; in the end what is no trouble any more is forgotten."""
    there = {trouble.id for trouble in troubles}
    kept = {id: what for id, what in told.items() if id in there or now - what.at < FORGET_S}
    for trouble, why, number in news:
        before = kept.get(trouble.id, Told((), now, 0, 0, is_over=False))
        about = {*before.about, *(what["about"] for what in trouble.findings)}
        again = before.reminders + (why == "reminder")
        kept[trouble.id] = Told(tuple(sorted(about)), now, number, again, trouble.is_over)
    return kept


# ---------------------------------------------------------------- messages


def message(news: Sequence[News], base: str, now: float) -> dict[str, Any]:
    """One message of all of them, as a webhook gets it; `base` is the address of the service.

    `{"id", "status", "at", "text", "alerts": [{"id", "status", "why", "what", "model", "version", "since",
    "until", "findings", "more", "link", "text"}]}`; a status is `firing`, `resolved`, or `event` of what is
    over as it begins. An id stands for what was said: who gets it again has it already.
    """
    alerts = [_alert(each, base) for each in news]
    statuses = [alert["status"] for alert in alerts]
    return {
        "id": digest([alert["id"] for alert in alerts])[:32],
        "status": next(status for status in ("firing", "event", "resolved") if status in statuses),
        "at": iso(now),
        "text": _text(alerts),
        "alerts": alerts,
    }


def brief(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message without what was found, which may quote callers: a receiver may refuse what they say."""
    counts = [alert["more"] + len(alert["findings"]) for alert in message["alerts"]]
    alerts = [
        _worded({**alert, "findings": [], "more": count})
        for alert, count in zip(message["alerts"], counts, strict=True)
    ]
    return {**message, "text": _text(alerts), "alerts": alerts}


def _text(alerts: Sequence[Mapping[str, Any]]) -> str:
    return "\n\n".join(alert["text"] for alert in alerts)


def _alert(each: News, base: str) -> dict[str, Any]:
    trouble, why, number = each
    link = f"{base}/dashboard#/models/{quote(trouble.model, safe='')}{PLACES.get(trouble.what, '')}"
    findings = list(trouble.findings[:MOST_FINDINGS])
    said: dict[str, Any] = {
        "id": f"{trouble.id}/{number}/{why}",
        "status": "event" if trouble.what in EVENTS else "resolved" if trouble.is_over else "firing",
        "why": why,
        "what": trouble.what,
        "model": trouble.model,
        "version": trouble.version,
        "since": iso(trouble.since),
        "until": None if trouble.until is None else iso(trouble.until),
        "findings": findings,
        "more": len(trouble.findings) - len(findings),
        "link": link,
    }
    return _worded(said)


def _worded(alert: dict[str, Any]) -> dict[str, Any]:
    text = [heading(alert), *(f"- {each}" for each in lines(alert)), alert["link"]]
    return alert | {"text": "\n".join(text)}


def heading(alert: Mapping[str, Any]) -> str:
    """What happened, of which model, since when.

    >>> heading({"status": "firing", "why": "reminder", "what": "alarm", "model": "m", "version": "3",
    ...          "since": "2026-11-01T00:00:00+00:00", "until": None})
    '[firing, reminder] m, version 3: alarm since 2026-11-01 00:00 UTC'
    """
    status = alert["status"] + {"reminder": ", reminder", "more": ", more was found"}.get(alert["why"], "")
    version = f", version {alert['version']}" if alert["version"] else ""
    if alert["status"] == "event":
        when = f"at {_minute(alert['since'])}"
    else:
        until = f", over at {_minute(alert['until'])}" if alert["until"] else ""
        when = f"since {_minute(alert['since'])}{until}"
    return f"[{status}] {alert['model']}{version}: {alert['what']} {when}"


def lines(alert: Mapping[str, Any]) -> list[str]:
    """What was found, and how sure that is; when, where that was later than the first.

    >>> later = {"evidence": "x is larger", "kind": "input", "p": 0.0005, "since": "2026-11-02T00:00:00"}
    >>> lines({"since": "2026-11-01T00:00:00", "findings": [later], "more": 2})
    ['x is larger (input; since 2026-11-02 00:00 UTC; by chance at most once in 2,000 looks)', 'and 2 more']
    """
    said = []
    for finding in alert["findings"]:
        later = [f"since {_minute(finding['since'])}"] if finding["since"] > alert["since"] else []
        said.append(f"{finding['evidence']} ({'; '.join([finding['kind'], *later, *sure(finding['p'])])})")
    more = f"and {alert['more']} more" if said else f"{alert['more']} that the page shows"
    return said + ([more] if alert["more"] else [])


def sure(p: float | None) -> list[str]:
    """How sure a finding is, in words; nothing where no chance is in it.

    >>> sure(0.01), sure(0.0), sure(None)
    (['by chance at most once in 100 looks'], ['by chance less than once in 1,000,000 looks'], [])
    """
    if p is None:
        return []
    often = f"at most once in {1 / p:,.0f}" if p >= RAREST else f"less than once in {1 / RAREST:,.0f}"
    return [f"by chance {often} looks"]


def subject(message: Mapping[str, Any]) -> str:
    """What a message is about, in one line of at most some 120 characters."""
    alerts = message["alerts"]
    models = list(dict.fromkeys(alert["model"] for alert in alerts))
    what = ", ".join(dict.fromkeys(alert["what"] for alert in alerts))
    who = models[0] if len(models) == 1 else f"{len(models)} models: {', '.join(models)}"
    return cut(plain(f"[{message['status']}] {who}: {what}"), 120)


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


def _minute(instant: str) -> str:
    return f"{instant[:10]} {instant[11:16]} UTC"


def trial(model: str, now: float) -> News:
    """What is sent over a route to see whether it works."""
    said = "this is a test: somebody tries where alerts go; nothing is wrong"
    found = _finding("test", "test", said, now, harm=0.0)
    return News(Trouble(f"{model}/test/{iso(now)}", model, "test", "", now, now, (found,)), "happened", 1)
