"""What becomes of a challenger next: a pure function of where it stands and of what was seen of it there.

    registered → verified → shadow → canary → champion → retired
                                   ↘ rolled_back · inconclusive      registered → refused

Shadow and the steps of the canary are those that the project file names. Each ends after its number of
requests, and a step of the canary after its time besides; a challenger that is found worse is sent back at
once; one of which too little was seen within the longest wait, or of too few keys to tell, is inconclusive,
which is no promotion unless the project says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mlops_ray.config import MICROSECONDS, CanaryStep, Release, ReleaseState

State = ReleaseState
#: Where a release has ended; a champion is retired by the next one.
ENDS: tuple[State, ...] = ("champion", "retired", "rolled_back", "refused", "inconclusive")
#: The requests that a step of the canary needs and how many times its time it may take, where none are named.
REQUESTS, PATIENCE = 100, 30
#: Of 100 keys, whose requests a challenger is asked besides.
SHADOWED = 100.0


@dataclass(frozen=True)
class Standing:
    """Where a challenger stands: its state, the step of the canary, why it is there."""

    state: State = "registered"
    step: int = 0
    reason: str = ""

    @property
    def has_ended(self) -> bool:
        return self.state in ENDS


@dataclass(frozen=True)
class Seen:
    """What was seen since the present step began: for how long, and how many requests of the challenger.

    `worse` are sentences, one for each thing in which it is found worse than the champion; `is_told` whether
    enough keys were seen to find anything.
    """

    seconds: float = 0.0
    requests: int = 0
    worse: Sequence[str] = ()
    is_told: bool = True


def after(standing: Standing, seen: Seen, release: Release, *, is_first: bool = False) -> Standing:
    """Where the challenger stands next; the same where it is to stay. `is_first`: there is no champion yet.

    A registered one is verified, or refused, by who loads it.

    >>> release = Release(canary=(10,))
    >>> verified = Standing("verified")
    >>> canary = after(verified, Seen(), release)
    >>> canary, after(canary, Seen(seconds=120, requests=5_000), release).state
    (Standing(state='canary', step=0, reason=''), 'champion')
    """
    if standing.has_ended or standing.state in ("registered", "verified"):
        return forward(standing, release, is_first=is_first)
    if seen.worse:
        return replace(standing, state="rolled_back", reason="; ".join(seen.worse))
    need = _need(standing, release)
    if need is None:
        # The project file was changed meanwhile, and names this step no more.
        return forward(standing, release)
    least_s, requests, most_s = need
    if seen.seconds >= least_s and seen.requests >= requests and seen.is_told:
        return forward(standing, release)
    if seen.seconds >= most_s:
        quiet = f"{seen.requests} of {requests} requests came within {most_s:.0f} s"
        quiet += "" if seen.is_told else ", of too few keys to compare"
        if release.when_quiet == "promote":
            return replace(forward(standing, release), reason=quiet)
        return replace(standing, state="inconclusive", reason=quiet)
    return standing


def forward(standing: Standing, release: Release, *, is_first: bool = False) -> Standing:
    """Where the challenger stands when the present step has ended well, or a person ends it.

    One that was not verified yet stays: nobody can end that.
    """
    if standing.has_ended or standing.state == "registered":
        return standing
    if standing.state == "verified" and release.shadow is not None and not is_first:
        return Standing("shadow")
    step = standing.step + 1 if standing.state == "canary" else 0
    return Standing("champion") if is_first or step >= len(release.canary) else Standing("canary", step)


def weight(standing: Standing, release: Release) -> float:
    """Of 100 keys, how many the challenger answers."""
    is_canary = standing.state == "canary" and bool(release.canary)
    return _step(release, standing.step).weight if is_canary else 0.0


def shadowed(standing: Standing) -> float:
    """Of 100 keys, whose requests the challenger is asked besides."""
    return SHADOWED if standing.state == "shadow" else 0.0


def compared(release: Release) -> int:
    """In how many steps champion and challenger are compared.

    >>> compared(Release(canary=(1, 10, 50)))
    3
    """
    return max(1, len(release.canary) + (release.shadow is not None))


def _step(release: Release, at: int) -> CanaryStep:
    # A project file that was changed meanwhile may name fewer.
    found = release.canary[min(at, len(release.canary) - 1)]
    return found if isinstance(found, CanaryStep) else CanaryStep(weight=found)


def _need(standing: Standing, release: Release) -> tuple[float, int, float] | None:
    """What a step takes: at least so many seconds, and so many requests; at most so many seconds."""
    per_step = release.per_step / MICROSECONDS["s"]
    if standing.state == "shadow" and release.shadow is not None:
        return 0.0, release.shadow.requests, release.shadow.max_wait / MICROSECONDS["s"]
    if standing.state == "canary" and release.canary:
        step = _step(release, standing.step)
        most = PATIENCE * per_step if step.max_wait is None else step.max_wait / MICROSECONDS["s"]
        return per_step, REQUESTS if step.requests is None else step.requests, max(most, per_step)
    return None
