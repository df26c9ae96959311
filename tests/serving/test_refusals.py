"""A request that is refused is told why, and shown nothing that is hidden."""

import polars as pl
import pytest

from mlops_ray.errors import InvalidRowError
from mlops_ray.schema import FAILURES, Column, Schema
from mlops_ray.serving.refusals import refuse_rejected

SCHEMA = Schema((Column("t", "datetime"), Column("load", "float", min=3, max=7)))


def refusal(value: str | None, hidden: tuple[str, ...] = ()) -> str:
    failure = {"row": [2], "column": "t", "rule": "watermark", "value": value, "severity": "reject"}
    with pytest.raises(InvalidRowError) as raised:
        refuse_rejected(pl.DataFrame(failure, schema=FAILURES), SCHEMA, hidden)
    return str(raised.value)


@pytest.mark.parametrize(
    ("rule", "limit"), [("min", "least that is allowed, 3"), ("max", "most that is allowed, 7")]
)
def test_the_limits_of_a_column_are_told_unless_nobody_may_see_it(rule: str, limit: str) -> None:
    """As the OpenAPI page does."""
    said = {}
    for hidden in ((), ("load",)):
        failure = {"row": [0], "column": "load", "rule": rule, "value": "99", "severity": "reject"}
        with pytest.raises(InvalidRowError) as raised:
            refuse_rejected(pl.DataFrame(failure, schema=FAILURES), SCHEMA, hidden)
        said[hidden] = str(raised.value).partition(" the ")[2]
    assert said[()] == limit
    assert said[("load",)].endswith(limit.partition(",")[0])


def test_a_time_past_the_watermark_is_told_up_to_when_a_source_is_known_where_nothing_is_hidden() -> None:
    value = "2017-01-02T00:00:00.000000Z; 'meter' is known up to 2017-01-01T23:00:00.000000Z"
    known = (
        "cannot be predicted yet: 'meter' is known up to 2017-01-01T23:00:00.000000Z only, before the moment "
        "at which it would be predicted (past the watermark)"
    )
    assert refusal(value) == f"row 2, column 't': '2017-01-02T00:00:00.000000Z' {known}"
    untold = "cannot be predicted yet: the data known so far ends before the moment at which it would be "
    untold += "predicted (past the watermark)"
    assert refusal(value, ("t",)) == f"row 2, column 't': the value {untold}"
    # What is hidden may be the time of the source.
    assert refusal(value, ("admitted",)) == f"row 2, column 't': '2017-01-02T00:00:00.000000Z' {untold}"


@pytest.mark.parametrize(("value", "seen"), [("x", "'x'"), (None, "the value")])
def test_a_time_past_the_watermark_of_no_source_is_refused_all_the_same(value: str | None, seen: str) -> None:
    assert refusal(value).startswith(
        f"row 2, column 't': {seen} cannot be predicted yet: the data known so far ends"
    )
