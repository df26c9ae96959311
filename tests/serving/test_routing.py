"""Keys keep their side, and a higher weight moves them one way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_ray.serving.routing import Split, place

KEYS = [f"meter-{number}" for number in range(20_000)]


@given(st.text(), st.text(), st.floats(0, 100), st.floats(0, 100))
def test_a_key_keeps_its_side_and_a_higher_weight_moves_it_only_toward_the_challenger(
    key: str, digest: str, weight: float, other: float
) -> None:
    lower, higher = sorted((weight, other))
    assert Split(digest, lower).tries(key) <= Split(digest, higher).tries(key)


@given(st.text())
def test_without_a_challenger_everybody_is_the_champions(key: str) -> None:
    split = Split(None, weight=100, shadow=100)
    assert not split.tries(key)
    assert not split.is_shadowed(key)


def test_as_many_keys_try_the_challenger_as_its_weight_says() -> None:
    for weight in (1, 10, 50):
        tries = sum(map(Split("digest", weight).tries, KEYS)) / len(KEYS)
        # Five standard deviations.
        assert abs(tries - weight / 100) < 5 * (weight / 100 * (1 - weight / 100) / len(KEYS)) ** 0.5


def test_another_challenger_is_tried_by_other_keys() -> None:
    first = {key for key in KEYS if Split("one", 10).tries(key)}
    second = {key for key in KEYS if Split("two", 10).tries(key)}
    assert len(first & second) < 0.02 * len(KEYS)


def test_who_is_shadowed_says_nothing_of_who_will_try() -> None:
    split = Split("digest", 10, shadow=10)
    both = sum(split.tries(key) and split.is_shadowed(key) for key in KEYS)
    assert 0.005 * len(KEYS) < both < 0.015 * len(KEYS)


def test_places_are_the_same_in_every_process_and_release_of_ours() -> None:
    assert place("meter-1", "digest") == pytest.approx(17.291377461)
