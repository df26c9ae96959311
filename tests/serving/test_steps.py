"""A challenger's way: every step ends, what is worse goes back, what nobody asks is not promoted."""

from hypothesis import given
from hypothesis import strategies as st

from mlops_ray.config import CanaryStep, Release, Shadow
from mlops_ray.serving.steps import ENDS, Seen, Standing, after, forward, shadowed, weight

SECOND = 1_000_000
releases = st.builds(
    Release,
    shadow=st.none()
    | st.builds(Shadow, requests=st.integers(0, 50), max_wait=st.integers(1, 50).map("{}s".format)),
    canary=st.lists(
        st.floats(1, 100) | st.builds(CanaryStep, weight=st.floats(1, 100), requests=st.integers(1, 50)),
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
        if is_done:
            assert found == forward(standing, release)
        else:
            assert found == standing or found.reason


@given(releases, st.sampled_from(ENDS), st.sampled_from([GOOD, QUIET, WORSE]))
def test_what_has_ended_stays(release: Release, state: str, seen: Seen) -> None:
    standing = Standing(state)  # type: ignore[arg-type]
    assert after(standing, seen, release) == forward(standing, release) == standing


@given(releases)
def test_keys_and_copies_go_to_a_challenger_in_its_own_step_alone(release: Release) -> None:
    for standing in way(release, GOOD):
        assert (weight(standing, release) > 0) == (standing.state == "canary")
        assert (shadowed(standing) > 0) == (standing.state == "shadow")


def test_a_step_that_the_project_file_no_longer_names_is_the_last() -> None:
    assert weight(Standing("canary", 3), Release(canary=(5, 50))) == 50
