"""A node of a cluster is gone under load, as a machine that is taken away: what it had in its hands is lost.

The nodes are fakes on this machine (tests.fakes): who asks for what is gone is refused at once, while a real
machine that is silent has to be given up first. It takes a minute, and `make chaos` alone has it.
"""

from collections.abc import Callable, Iterator

import pytest

from tests.chaos.service import MODEL, PATIENCE_S, Service, on_nodes, until
from tests.chaos.test_faults import IS_WHOLE, Fault, require_promised
from tests.e2e.load import Seen
from tests.fakes import Standing

pytestmark = [
    pytest.mark.timeout(10 * PATIENCE_S),
    pytest.mark.skipif(not IS_WHOLE, reason="make chaos has it"),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Standing]]:
    with on_nodes(tmp_path_factory.mktemp("nodes")) as made:
        yield made


def holding(cluster: Standing) -> list[str]:
    """The nodes on which replicas of the model are."""
    return [node for node in cluster.nodes() if cluster.titled(node, f":ServeReplica:{MODEL}:{MODEL}")]


def test_a_node_that_is_gone_costs_no_more_than_what_it_had_in_its_hands(
    served: tuple[Service, Standing], record_property: Callable[[str, object], None]
) -> None:
    service, cluster = served
    before = holding(cluster)
    assert len(before) == 2

    def strike(service: Service, _: Seen) -> None:
        cluster.kill(before[0])
        until(lambda: service.is_whole)

    # Its front end is gone with its replica; whoever asks again may have asked the one and then the other.
    fault = Fault("a node gone", strike, killed=2, is_balanced=True)
    require_promised(service, fault, record_property)
    # The replica has come again, on the node that had room.
    after = holding(cluster)
    assert before[0] not in cluster.nodes()
    assert before[1] in after
    assert len(after) == 2
