"""What is counted of a version on trial adds up, and a worse one is told in words."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_ray.monitoring.comparison import BUCKETS
from mlops_ray.monitoring.trial import ERRORS, OUTPUT, SLOW, Trial, bucket, worse

requests = st.tuples(
    st.sampled_from([f"meter-{n}" for n in range(40)]),
    st.fixed_dictionaries({ERRORS: st.sampled_from([0.0, 1.0]), OUTPUT: st.floats(-1e6, 1e6)}),
)


def counted(of: list[tuple[str, dict[str, float]]]) -> Trial:
    trial = Trial("release")
    for key, figures in of:
        trial.add(key, figures)
    return trial


def equal(one: Trial, other: Trial) -> bool:
    return one.id == other.id and all(
        np.allclose(mine, theirs)
        for name in {*one.figures, *other.figures}
        for mine, theirs in zip(
            vars(one.figures[name]).values(), vars(other.figures[name]).values(), strict=True
        )
    )


@given(st.lists(requests), st.lists(requests))
def test_counts_of_two_replicas_add_up_to_those_of_one(
    one: list[tuple[str, dict[str, float]]], other: list[tuple[str, dict[str, float]]]
) -> None:
    merged = counted(one)
    merged.merge(counted(other))
    assert equal(merged, counted(one + other))
    assert merged.requests == len(one) + len(other)


@given(st.lists(requests))
def test_what_is_written_is_read_again(of: list[tuple[str, dict[str, float]]]) -> None:
    trial = counted(of)
    read = Trial.from_json(json.loads(json.dumps(trial.to_json())))
    assert equal(read, trial)


def test_counts_of_another_release_are_not_added() -> None:
    with pytest.raises(ValueError, match="'one' and 'two'"):
        Trial("one").merge(Trial("two"))


def test_keys_are_spread_over_all_buckets_the_same_in_every_process() -> None:
    found = np.bincount([bucket(f"meter-{n}") for n in range(100 * BUCKETS)], minlength=BUCKETS)
    assert found.min() > 50
    assert bucket("meter-1") == 591


def beside(champion: dict[str, float], challenger: dict[str, float]) -> list[str]:
    """Thousands of requests of each side, with these means of ones and zeros, and of answers."""
    random, sides = np.random.default_rng(1), []
    for of in (champion, challenger):
        trial = Trial("release")
        for number in range(4_000):
            figures = {name: float(random.random() < of.get(name, 0.01)) for name in (ERRORS, SLOW)}
            trial.add(f"key-{number}", figures | {OUTPUT: 100 + 50 * random.normal(of.get(OUTPUT, 0.0))})
        sides.append(trial)
    return worse(*sides, allowed_output=0.5)


def test_nothing_is_said_of_an_equal_version_or_a_better_one() -> None:
    assert beside({}, {}) == []
    assert beside({ERRORS: 0.1, SLOW: 0.1}, {ERRORS: 0.0, SLOW: 0.0}) == []
    assert beside({}, {OUTPUT: 0.4}) == []
    assert worse(Trial("release"), Trial("release"), allowed_output=0.5) == []


@pytest.mark.parametrize(
    ("figure", "value", "said"),
    [
        (ERRORS, 0.05, r"errors: [45].\d\d % of the requests against"),
        (SLOW, 0.05, r"latency above the champion's p99: [45].\d\d % of the requests against"),
        (OUTPUT, -1.0, r"answers: moved by -[01].\d\d standard deviations"),
    ],
)
def test_what_is_worse_is_said_with_the_evidence(figure: str, value: float, said: str) -> None:
    (found,) = beside({}, {figure: value})
    assert re.match(said, found)
    assert "4,000 requests" in found
