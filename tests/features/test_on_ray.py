"""A join on Ray gives the features that a join in this process gives, and the oracle."""

import pytest

from mlops_ray.features.join import join

from .cases import check, random_case


def test_on_ray_features_are_those_computed_here(
    ray_cluster: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    asked = 0
    for seed in range(12):
        case = random_case(seed)
        if not (case.versions and case.spine):
            continue
        asked += 1
        snapshots = {"s": case.delivered(tmp_path_factory.mktemp("ray")).snapshot(case.as_of)}
        for rows_a_task in (4_000_000, 5):
            here, there = (
                join(case.asked, snapshots, case.feature_set, on_ray=on_ray, rows_a_task=rows_a_task)
                for on_ray in (False, True)
            )
            assert there.equals(here)
            check(there, case)
    assert asked >= 8
