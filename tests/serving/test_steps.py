"""A challenger's way: every step ends, what is worse goes back, what nobody asks is not promoted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mlops_ray.config import CanaryStep, Release, Shadow
from mlops_ray.serving.steps import ENDS, Seen, Standing, after, forward, shadowed, weight

SECOND = 1_000_000
releases = st.builds(
    Release,
    shadow=st.none()
    | st.builds(Shadow, requests=st.integers(0, 50), max_wait=st.integers(1, 50).map("{}s".format)),
    canary=st.lists(
        st.floats(1, 99) | st.builds(CanaryStep, weight=st.floats(1, 99), requests=st.integers(1, 50)),
        max_size=4,
    ).map(tuple),
    per_step=st.integers(1, 20).map("{}s".format),
    when_quiet=st.sampled_from(["inconclusive", "promote"]),
)
GOOD = Seen(seconds=1e9, requests=10**9)
QUIET = Seen(seconds=1e9, requests=0)
WORSE = Seen(worse=("errors: 4 % against 1 %",))


def way(release: Release, seen: Seen, *, is_first: bool = False) -> list[Standing]:
    """Where a verified challenger stands, one place after the other, until it stays."""
    places = [Standing("verified")]
    while (following := after(places[-1], seen, release, is_first=is_first)) != places[-1]:
        places.append(following)
        assert len(places) < 20
    return places


@given(releases)
def test_a_release_is_written_and_read_again(release: Release) -> None:
    assert Release.model_validate_json(release.model_dump_json()) == release


@given(releases)
def test_a_good_version_goes_all_its_steps_and_becomes_champion(release: Release) -> None:
    places = way(release, GOOD)
    assert places[-1].state == "champion"
    assert [p.state for p in places].count("shadow") == (release.shadow is not None)
    assert [p.step for p in places if p.state == "canary"] == list(range(len(release.canary)))


@given(releases)
def test_the_first_version_goes_from_verified_to_champion(release: Release) -> None:
    assert [p.state for p in way(release, WORSE, is_first=True)] == ["verified", "champion"]


@given(releases)
def test_one_that_is_found_worse_goes_back_at_once_and_says_why(release: Release) -> None:
    places = way(release, WORSE)
    if release.shadow is None and not release.canary:
        # Nothing is looked at where the project asks for no step.
        assert places[-1].state == "champion"
    else:
        assert (len(places), places[-1].state) == (3, "rolled_back")
        assert places[-1].reason == "errors: 4 % against 1 %"


@given(releases)
def test_a_quiet_service_ends_as_inconclusive_or_as_the_project_says(release: Release) -> None:
    end = way(release, QUIET)[-1]
    is_asked = (release.shadow is not None and release.shadow.requests) or release.canary
    if release.when_quiet == "inconclusive" and is_asked:
        assert end.state == "inconclusive"
        assert end.reason.startswith("0 of ")
    else:
        assert end.state == "champion"


@given(releases, st.floats(0, 1e4), st.integers(0, 200))
def test_a_step_ends_after_its_time_and_its_requests_and_not_before(
    release: Release, seconds: float, requests: int
) -> None:
    for step, of in enumerate(release.canary):
        standing = Standing("canary", step)
        needed = of.requests if isinstance(of, CanaryStep) else 100
        is_done = seconds >= release.per_step / SECOND and requests >= (needed or 0)
        found = after(standing, Seen(seconds, requests), release)
        most = 30 * release.per_step / SECOND
        if is_done:
            assert found == forward(standing, release)
        elif seconds < most:
            assert found == standing
        else:
            assert found.reason


@given(releases, st.sampled_from(ENDS), st.sampled_from([GOOD, QUIET, WORSE]))
def test_what_has_ended_stays(release: Release, state: str, seen: Seen) -> None:
    standing = Standing(state)  # type: ignore[arg-type]
    assert after(standing, seen, release) == forward(standing, release) == standing


@given(releases)
def test_keys_and_copies_go_to_a_challenger_in_its_own_step_alone(release: Release) -> None:
    for standing in way(release, GOOD):
        assert (weight(standing, release) > 0) == (standing.state == "canary")
        assert (shadowed(standing) > 0) == (standing.state == "shadow")


def test_a_step_says_itself_how_many_requests_it_needs_and_how_long_it_may_wait() -> None:
    release = Release.model_validate(
        {"canary": [{"weight": 5, "requests": 7, "max_wait": "5m"}], "per_step": "1m"}
    )
    standing = Standing("canary")
    assert after(standing, Seen(seconds=60, requests=6), release) == standing
    assert after(standing, Seen(seconds=59, requests=7), release) == standing
    assert after(standing, Seen(seconds=60, requests=7), release).state == "champion"
    assert after(standing, Seen(seconds=299, requests=6), release) == standing
    end = after(standing, Seen(seconds=300, requests=6), release)
    assert (end.state, end.reason) == ("inconclusive", "6 of 7 requests came within 300 s")


def test_what_too_few_keys_were_seen_of_is_inconclusive_however_many_requests() -> None:
    release, standing = Release(canary=(10,)), Standing("canary")
    assert after(standing, Seen(seconds=200, requests=10**6, is_told=False), release) == standing
    end = after(standing, Seen(seconds=1e6, requests=10**6, is_told=False), release)
    assert end.state == "inconclusive"
    assert end.reason.endswith("of too few keys to compare")


def test_a_person_ends_a_step_and_never_skips_the_verification() -> None:
    release = Release.model_validate({"shadow": {}, "canary": [1, 10]})
    places = [Standing("verified")]
    while not places[-1].has_ended:
        places.append(forward(places[-1], release))
    assert [(p.state, p.step) for p in places[1:]] == [
        ("shadow", 0),
        ("canary", 0),
        ("canary", 1),
        ("champion", 0),
    ]
    for settings in (release, Release()):
        assert forward(Standing("registered"), settings) == Standing("registered")
        assert forward(Standing("verified"), settings, is_first=True) == Standing("champion")


def test_a_reason_is_of_its_own_step() -> None:
    release = Release.model_validate({"canary": [1, 10], "when_quiet": "promote"})
    second = after(Standing("canary"), QUIET, release)
    assert second.reason.startswith("0 of 100")
    assert after(second, GOOD, release) == Standing("champion")


def test_a_project_file_that_is_changed_meanwhile_stops_nobody() -> None:
    assert weight(Standing("canary", 3), Release(canary=(5, 50))) == 50
    assert weight(Standing("canary"), Release()) == 0
    for standing in (Standing("shadow"), Standing("canary")):
        assert after(standing, Seen(), Release()).state == "champion"
        assert after(standing, WORSE, Release()).state == "rolled_back"


@pytest.mark.parametrize("step", [0, 100, 150, {"weight": 100}])
def test_a_step_that_leaves_nobody_to_compare_with_is_refused(step: object) -> None:
    with pytest.raises(ValidationError):
        Release.model_validate({"canary": [10, step]})
