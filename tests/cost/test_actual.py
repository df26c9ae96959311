"""What was spent is shared out fairly, and to the last cent."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_ray.cost import actual
from mlops_ray.cost.actual import Share, Use
from mlops_ray.errors import DataError

from .cases import listed, machine

HOUR = 3600
#: An hour that begins at 36,000 seconds.
AT = 11 * HOUR
PRICES = listed(machine("small", 2, 0.1), machine("large", 8, 0.8), machine("large", 8, 0.2, spot=True))


def node(type: str = "large", cpus: float = 8, **more: Any) -> dict[str, Any]:
    return {
        "node": "n",
        "type": type,
        "cpus": cpus,
        "gpus": 0,
        "spot": False,
        "replicas": {},
        "jobs": {},
    } | more


def held(count: float, cpu: float = 1, gpu: float = 0) -> dict[str, float]:
    return {"count": count, "cpu": cpu, "gpu": gpu}


def entry(*nodes: dict[str, Any], at: float = AT, seconds: float = HOUR) -> dict[str, Any]:
    return {"at": at, "seconds": seconds, "nodes": list(nodes)}


def costs(*entries: dict[str, Any]) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = {}
    for share in actual.metered(entries, PRICES):
        key = share.kind, share.name
        found[key] = found.get(key, 0.0) + (share.cost or 0.0)
    return found


def test_a_node_is_shared_by_hand() -> None:
    """0.80 EUR for 8 CPUs: `a` has two replicas of one, `b` one of two, a sweep one task of one; three idle.

    Of five reserved CPUs two, two and one bear the whole: 0.32, 0.32 and 0.16 EUR.
    """
    replicas = {"a": held(2), "b": held(1, cpu=2)}
    found = costs(entry(node(replicas=replicas, jobs={"sweep": held(1)})))
    assert found == {
        ("model", "a"): pytest.approx(0.32),
        ("model", "b"): pytest.approx(0.32),
        ("job", "sweep"): pytest.approx(0.16),
    }


def test_who_reserves_the_gpu_bears_it() -> None:
    on = node(gpus=1, replicas={"a": held(1, cpu=1, gpu=1), "b": held(1, cpu=4)})
    assert costs(entry(on))["model", "a"] == pytest.approx(0.8 * 1 / 1.5)


def test_an_idle_node_is_borne_by_all_of_that_moment_and_an_idle_cluster_by_nobody() -> None:
    both = entry(node(replicas={"a": held(1)}), node("small", 2))
    assert costs(both) == {("model", "a"): pytest.approx(0.9)}
    assert costs(entry(node("small", 2))) == {("idle", ""): pytest.approx(0.1)}


def test_an_entry_counts_for_its_seconds_in_its_hour_and_spot_at_its_own_price() -> None:
    half = entry(node(spot=True, replicas={"a": held(2)}), seconds=1800)
    (share,) = actual.metered([half], PRICES)
    assert share == Share(10 * HOUR, "model", "a", "large", True, 0.5, 1.0, pytest.approx(0.1))


def test_a_machine_without_a_price_has_hours_and_no_cost() -> None:
    (share,) = actual.metered([entry(node("odd", replicas={"a": held(1)}))], PRICES)
    assert (share.node_hours, share.cost) == (1.0, None)
    two = listed(machine(region="eu"), machine(region="us", per_hour=0.2))
    on = [entry(node("small", 2, replicas={"a": held(1)}))]
    assert [actual.metered(on, two, region)[0].cost for region in (None, "us")] == [None, pytest.approx(0.2)]


names = st.sampled_from(["a", "b", "c"])
reservations = st.dictionaries(
    names,
    st.builds(held, st.integers(0, 9), cpu=st.floats(0, 16), gpu=st.sampled_from([0, 0.5, 1, 2])),
    max_size=3,
)
nodes = st.builds(
    node,
    st.sampled_from(["small", "large"]),
    cpus=st.integers(1, 16),
    gpus=st.integers(0, 2),
    replicas=reservations,
    jobs=reservations,
)
entries = st.lists(
    st.builds(
        lambda on, at: entry(*on, at=at, seconds=60), st.lists(nodes, max_size=4), st.integers(0, 10**5)
    ),
    max_size=5,
)


@given(entries)
def test_the_shares_add_up_to_the_bill(journal: list[dict[str, Any]]) -> None:
    rates = {"small": 0.1, "large": 0.8}
    bill = math.fsum(rates[on["type"]] * each["seconds"] / HOUR for each in journal for on in each["nodes"])
    shares = actual.metered(journal, PRICES)
    assert math.fsum(share.cost or 0.0 for share in shares) == pytest.approx(bill)
    uses = [Use(0, "a", "1", "", 5.0), Use(HOUR, "a", "2", "", 1.0)]
    models = math.fsum(share.cost or 0.0 for share in shares if share.kind == "model")
    assert math.fsum(spent.cost for spent in actual.by_version(shares, uses)) == pytest.approx(models)


@pytest.mark.parametrize(
    "wrong",
    [
        {"at": AT},
        {"at": AT, "seconds": -1, "nodes": []},
        {"at": AT, "seconds": math.nan, "nodes": []},
        {"at": AT, "seconds": 60, "nodes": [{"type": "small"}]},
        {"at": AT, "seconds": 60, "nodes": [node(replicas={"a": 3})]},
        {"at": math.inf, "seconds": 60, "nodes": []},
    ],
)
def test_a_damaged_entry_of_the_journal_is_an_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="an entry of the journal of nodes is damaged"):
        actual.metered([wrong], PRICES)


def share(hour: int, cost: float, name: str = "a") -> Share:
    return Share(hour * HOUR, "model", name, "small", False, 1.0, 1.0, cost)


def test_a_version_bears_each_hour_by_its_predictions_and_quiet_hours_as_all_together() -> None:
    """In hour 0 version 1 makes 300 of 400 predictions; in hour 1 version 2 all 400; in hour 2 nobody asks.

    Of 4, 2 and 8 EUR it bears 3, 0 and 300 / 800 of 8; version 2 the rest.
    """
    uses = [Use(0, "a", "1", "", 300), Use(0, "a", "2", "", 100), Use(HOUR, "a", "2", "", 400)]
    one, two = actual.by_version([share(0, 4), share(1, 2), share(2, 8)], uses)
    assert (one.version, one.predictions, one.cost) == ("1", 300, pytest.approx(6.0))
    assert (two.version, two.predictions, two.cost) == ("2", 500, pytest.approx(8.0))
    assert one.per_1000 == pytest.approx(20.0)


def test_callers_bear_what_their_keys_asked_for() -> None:
    uses = [Use(0, "a", "1", "web", 3), Use(0, "a", "1", "app", 1)]
    assert [(s.key, s.cost) for s in actual.by_version([share(0, 4)], uses)] == [("app", 1.0), ("web", 3.0)]


def test_of_a_model_that_nobody_asked_the_cost_is_of_no_version() -> None:
    (spent,) = actual.by_version([share(0, 4)], [Use(0, "other", "1", "", 0)])[:1]
    assert (spent.model, spent.version, spent.cost, spent.per_1000) == ("a", "", 4.0, None)
