"""What people are told, and when: once each, together, again after a while, and when it is over."""

import json
from dataclasses import asdict, replace

import pytest

from mlops_ray.cluster.loop import Retraining
from mlops_ray.data.counts import Counts, Traffic
from mlops_ray.monitoring import alarms, alerts
from mlops_ray.monitoring.alarms import Alarms, Finding
from mlops_ray.monitoring.alerts import FORGET_S, REMIND_S, News, Seen, Told, Trouble
from mlops_ray.monitoring.state import Minute, ModelState, Watched, Window

DAY = 86_400.0
NOW = 1_800_000_000.0
MINUTE = 60.0


def finding(about: str, p: float = 1e-6, *, kind: str = "input") -> Finding:
    return Finding(about, kind, p, True, f"{about} differs", 0.5)  # type: ignore[arg-type]


def episode(*about: str, version: str = "3", at: float = NOW) -> Alarms:
    state = Alarms(at - DAY)
    state.take(alarms.look(at, 0.01, map(finding, about)), version)
    return state


def trouble(model: str = "m", since: float = NOW, until: float | None = None, *about: str) -> Trouble:
    (made,) = alerts.of_alarms(model, episode(*(about or ("x",)), at=since))
    return Trouble(**{**vars(made), "until": until})


class Route:
    """Says what is new at a time, and that it has said it."""

    def __init__(self, since: float = NOW) -> None:
        self.since, self.told = since, dict[str, Told]()

    def hears(self, at: float, *troubles: Trouble) -> list[tuple[str, str]]:
        news = alerts.news(troubles, self.told, self.since, at)
        self.told = alerts.said(news, self.told, troubles, at)
        return [(each.trouble.model, each.why) for each in news]


def test_a_trouble_is_told_when_it_begins_and_when_it_is_over_and_once_each() -> None:
    route = Route()
    for at in (1.0, 2.0):
        assert route.hears(NOW + at, trouble()) == ([("m", "begun")] if at == 1.0 else [])
    over = trouble("m", NOW, NOW + 10)
    assert [route.hears(NOW + at, over) for at in (11, 12)] == [[("m", "over")], []]
    # Nor a month later, nor where what says so could not be read for a while.
    assert route.hears(NOW + 60 * DAY) == []
    assert route.hears(NOW + 60 * DAY + 1, over) == []


def test_what_joins_is_told_and_what_is_only_seen_again_is_not() -> None:
    route = Route()
    state = episode("x")
    assert route.hears(NOW, *alerts.of_alarms("m", state)) == [("m", "begun")]
    state.take(alarms.look(NOW + DAY / 2, 0.01, [finding("x", 1e-9)]), "3")
    assert route.hears(NOW + DAY / 2, *alerts.of_alarms("m", state)) == []
    state.take(alarms.look(NOW + DAY * 0.6, 0.01, [finding("x"), finding("y")]), "3")
    (grown,) = alerts.of_alarms("m", state)
    (news,) = alerts.news([grown], route.told, NOW, NOW + DAY * 0.6)
    assert (news.why, news.number) == ("more", 2)
    text = alerts.message([news], "", NOW + DAY * 0.6)["text"]
    assert "more was found" in text
    assert "y differs (input; since " in text
    assert "x differs (input; by chance" in text


def test_what_goes_on_is_said_again_after_one_two_and_four_days() -> None:
    route, said = Route(), []
    for hour in range(24 * 20):
        if route.hears(NOW + hour * 3_600, trouble()):
            said.append(hour / 24)
    assert said == [0, 1, 3, 7, 15]
    assert REMIND_S == DAY


def test_a_new_route_hears_of_what_goes_on_and_not_of_what_is_history() -> None:
    route = Route(since=NOW + DAY)
    past, going = trouble("past", NOW, NOW + 5), trouble("going")
    assert route.hears(NOW + DAY, past, going) == [("going", "begun")]
    # What began and ended while nobody could tell is told all the same.
    assert route.hears(NOW + 3 * DAY, trouble("short", NOW + DAY, NOW + 2 * DAY)) == [("short", "over")]


def test_several_models_are_one_message_which_names_them() -> None:
    news = alerts.news([trouble("b"), trouble("a", NOW - 1), trouble("c", NOW - 2, NOW)], {}, NOW - DAY, NOW)
    made = alerts.message(news, "https://ml.example.org", NOW)
    assert [alert["model"] for alert in made["alerts"]] == ["c", "a", "b"]
    assert [alert["status"] for alert in made["alerts"]] == ["resolved", "firing", "firing"]
    assert made["status"] == "firing"
    assert alerts.subject(made) == "[firing] 3 models: c, a, b: alarm"
    assert made["text"].count("https://ml.example.org/dashboard#/models/") == 3


def test_an_alert_says_what_happened_since_when_how_sure_and_where_to_look() -> None:
    state = Alarms(NOW - DAY)
    found = [finding("load", 1e-4), finding("source meter", 0.0, kind="data")]
    state.take(alarms.look(NOW, 0.01, found), "3")
    (made,) = alerts.of_alarms("factory load/1", state)
    (alert,) = alerts.message([News(made, "begun", 1)], "http://h", NOW + 40)["alerts"]
    assert alert | {"text": ""} == {
        "id": "factory load/1/alarm/2027-01-15T08:00:00+00:00/1/begun",
        "status": "firing",
        "why": "begun",
        "what": "alarm",
        "model": "factory load/1",
        "version": "3",
        "since": "2027-01-15T08:00:00+00:00",
        "until": None,
        "findings": [
            {
                "about": about,
                "kind": kind,
                "since": "2027-01-15T08:00:00+00:00",
                "evidence": f"{about} differs",
                "p": pytest.approx(p),
                "harm": 0.5,
            }
            for about, kind, p in (("source meter", "data", 0.0), ("load", "input", 1e-4))
        ],
        "more": 0,
        "link": "http://h/dashboard#/models/factory%20load%2F1/alarms",
        "text": "",
    }
    assert alert["text"].splitlines() == [
        "[firing] factory load/1, version 3: alarm since 2027-01-15 08:00 UTC",
        "- source meter differs (data; by chance less than once in 1,000,000 looks)",
        "- load differs (input; by chance at most once in 10,000 looks)",
        "http://h/dashboard#/models/factory%20load%2F1/alarms",
    ]


def test_how_sure_is_that_of_the_look_that_found_it() -> None:
    state = episode("x")
    # It still matters, but this look, of few rows, is not sure.
    state.take(alarms.look(NOW + DAY, 0.01, [finding("x", 0.2)]), "3")
    (made,) = alerts.of_alarms("m", state)
    assert made.findings[0]["p"] == pytest.approx(1e-6)
    # Episodes that were opened before the look said so have none.
    del state.episodes[0].found["x"]["p"]
    assert alerts.of_alarms("m", state)[0].findings[0]["p"] is None


def test_the_same_news_have_the_same_ids_and_others_have_others() -> None:
    said = {}
    for why, number in (("begun", 1), ("more", 2), ("over", 3), ("reminder", 3)):
        made = [alerts.message([News(trouble(), why, number)], "", at)["id"] for at in (NOW, NOW + 9)]  # type: ignore[arg-type]
        assert made[0] == made[1]
        said[made[0]] = why
    assert len(said) == 4


def test_what_a_caller_wrote_breaks_no_line() -> None:
    state = Alarms(NOW - DAY)
    odd = Finding("x", "input", 1e-9, True, "new: 'a\r\nBcc: all@example.org\u202e'", 1.0)
    state.take(alarms.look(NOW, 0.01, [odd]), "3")
    (made,) = alerts.of_alarms("m", state)
    text = alerts.message([News(made, "begun", 1)], "", NOW)["text"]
    assert len(text.splitlines()) == 3
    assert text.isascii()


def test_of_very_much_a_message_shows_the_first() -> None:
    many = trouble("m", NOW, None, *(f"column {number}" for number in range(100)))
    (alert,) = alerts.message([News(many, "begun", 1)], "", NOW)["alerts"]
    assert (len(alert["findings"]), alert["more"]) == (alerts.MOST_FINDINGS, 100 - alerts.MOST_FINDINGS)
    assert "- and 80 more" in alert["text"]
    route = Route()
    models = [trouble(f"m{number:03}") for number in range(alerts.MOST_TOLD + 1)]
    assert [len(route.hears(NOW, *models)) for _ in range(3)] == [alerts.MOST_TOLD, 1, 0]


# ------------------------------------------------------------ releases, errors, losses


def test_a_version_that_does_not_go_live_is_an_event_with_the_reason() -> None:
    turns = [
        {"turn": 7, "version": "2", "state": "champion", "reason": "", "at": alerts.iso(NOW)},
        {"turn": 9, "version": "3", "state": "rolled_back", "reason": "errors: 4 %", "at": alerts.iso(NOW)},
    ]
    (made,) = alerts.of_release("m", turns)
    (alert,) = alerts.message([News(made, "happened", 1)], "", NOW)["alerts"]
    assert (alert["status"], alert["version"], alert["id"]) == ("event", "3", "m/release/9/1/happened")
    assert "- version 3 is rolled back: errors: 4 % (release)" in alert["text"]
    route = Route()
    assert [route.hears(NOW + days * DAY, made) for days in (0, 5)] == [[("m", "happened")], []]


def test_a_retraining_that_came_to_nothing_is_an_event_with_the_reason() -> None:
    asked = Retraining("retrain-m-1", NOW - 60, "mae is worse")
    became = [
        asked,
        replace(asked, state="releasing", version=3),
        replace(asked, state="unchanged", ended=NOW),
        # Of these the release tells.
        replace(asked, state="rolled_back", version=3, ended=NOW),
        replace(asked, state="refused", version=3, said="it is not signed", ended=NOW),
        replace(asked, state="failed", said="the job did not come to its end", ended=NOW),
        replace(asked, state="refused", version=4, said="mae is no better than that of version 3", ended=NOW),
    ]
    failed, refused = alerts.of_retrainings("m", map(asdict, became), [{"version": "3"}])
    for made, version, said in (
        (failed, "", "failed: the job did"),
        (refused, "4", "came to nothing: mae is"),
    ):
        (alert,) = alerts.message([News(made, "happened", 1)], "", NOW)["alerts"]
        assert (alert["status"], alert["version"], alert["id"]) == (
            "event",
            version,
            "m/retraining/retrain-m-1/1/happened",
        )
        assert f"- the retraining of {alerts.iso(NOW - 60)[:10]}" in alert["text"]
        assert said in alert["text"]


@pytest.mark.parametrize(("spent", "told"), [(7.9, []), (8.0, ["0.8"]), (10.5, ["0.8", "1"])])
def test_a_budget_is_told_of_as_it_runs_out_and_when_it_is_spent(spent: float, told: list[str]) -> None:
    cost = {"model": "m", "at": NOW, "total": {"amount": 99.0, "currency": "EUR"}}
    budget = {"per_day": 10.0, "spent": spent, "holds": True}
    made = alerts.of_budget(cost | {"budget": budget})
    assert [each.id for each in made] == [f"m/budget/{alerts.iso(NOW)[:10]}/{share}" for share in told]
    assert ["no replica is added" in str(each.findings) for each in made] == [share == "1" for share in told]
    assert not any("jobs" in str(each.findings) for each in made)
    (first, *_) = alerts.of_budget(cost | {"budget": budget | {"spent": 10.0, "jobs": 1.25}})
    assert "of which 1.25 EUR by trainings and other jobs'" in str(first.findings)
    named = {"spent": 10.0, "jobs": 1.25, "named": {"training m": 1.0, "job fit.py": 0.25}}
    (first, *_) = alerts.of_budget(cost | {"budget": budget | named})
    assert "other jobs (training m: 1 EUR, job fit.py: 0.25 EUR)'" in str(first.findings)
    assert alerts.of_budget(cost | {"budget": None}) == alerts.of_budget({}) == []


def minutes(*shares: float, requests: int = 100) -> Seen:
    """The traffic of the latest minutes, the newest last, of which such shares failed."""
    ends = range(len(shares), 0, -1)
    counts = (
        (int(NOW - 60 * ago + 1), requests, round(requests * s)) for ago, s in zip(ends, shares, strict=True)
    )
    return Seen("m", minutes=tuple(counts))


@pytest.mark.parametrize(
    ("shares", "is_told"),
    [
        ([0.0] * 60, False),
        ([0.001] * 60, False),
        ([0.02] * 60, True),
        # A burst is told once it has used up as much as an hour of too many.
        ([0.0] * 59 + [0.3], False),
        ([0.0] * 57 + [0.3] * 3, True),
        # What is over is none.
        ([0.3] * 50 + [0.0] * 10, False),
    ],
)
def test_errors_are_told_of_where_they_use_up_the_allowed_ones_too_fast(
    shares: list[float], is_told: bool
) -> None:
    made = alerts.of_errors(None, minutes(*shares), "3", 0.001, NOW)
    assert (made is not None) is is_told


def test_few_failed_requests_call_nobody() -> None:
    assert alerts.of_errors(None, minutes(*[0.5] * 2, requests=4), "3", 0.001, NOW) is None
    assert alerts.of_errors(None, minutes(*[0.5] * 5, requests=4), "3", 0.001, NOW) is not None


def test_errors_are_over_after_a_while_without_and_keep_their_name_until_then() -> None:
    begun = alerts.of_errors(None, minutes(*[0.1] * 60), "3", 0.001, NOW)
    assert begun.findings[0]["evidence"] == (
        "10 % of 6,000 requests failed in the last hour, 10 % of 500 in the last 5 minutes; 0.1 % is allowed"
    )
    later = alerts.of_errors(begun, minutes(*[0.1] * 50, *[0.0] * 10), "3", 0.001, NOW + 9)
    assert (later.id, later.is_over) == (begun.id, False)
    over = alerts.of_errors(later, minutes(*[0.1] * 40, *[0.0] * 20), "3", 0.001, NOW + 99)
    assert (over.id, over.until) == (begun.id, NOW + 99)


def test_rows_that_the_prediction_log_lost_are_told_with_their_number_at_most_once_an_hour() -> None:
    assert alerts.of_losses([], "m", "3", 5, 5, NOW) is None
    first = alerts.of_losses([], "m", "3", 1_205, 5, NOW)
    assert first.findings[0]["evidence"] == (
        "1,200 answered rows are not in the prediction log, 1,205 in all"
    )
    assert alerts.of_losses([first], "m", "3", 1_300, 1_205, NOW + 3_599) is None
    again = alerts.of_losses([first], "m", "3", 1_301, 1_205, NOW + 3_600)
    assert again.id != first.id


def test_what_was_counted_and_told_before_the_clock_was_set_back_is_of_no_later_time() -> None:
    ahead = NOW + 365 * DAY
    route = Route()
    assert route.hears(ahead, trouble("m", ahead)) == [("m", "begun")]
    assert route.hears(NOW, trouble("m", ahead)) == [("m", "reminder")]
    assert route.hears(NOW + 1, trouble("m", ahead)) == []
    lost = alerts.of_losses([], "m", "3", 5, 0, ahead)
    assert alerts.of_losses([lost], "m", "3", 9, 5, NOW) is not None
    state, watched = ModelState("m"), Watched(Traffic(), Window(NOW, Counts.empty(())))
    state.versions["3"] = watched
    watched.minutes |= {int(at): Minute(int(at), 100, 0, 100) for at in (NOW, ahead)}
    assert alerts.seen(state, NOW + 1).minutes == ((int(NOW), 100, 100),)


def test_troubles_can_be_read_back() -> None:
    made = alerts.of_losses([], "m", "3", 5, 0, NOW)
    assert Trouble.from_json(json.loads(json.dumps(vars(made)))) == made


def test_what_is_no_trouble_any_more_is_forgotten_in_the_end() -> None:
    route = Route()
    route.hears(NOW, trouble("a"), trouble("b"))
    route.hears(NOW + FORGET_S + 1, trouble("b"))
    assert [id.partition("/")[0] for id in route.told] == ["b"]
