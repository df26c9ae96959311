"""Residency and visibility: what may run where, and what may be shown.

Every Ray call that touches a source's data asks `label_selector` here, and nowhere else, on which nodes it
may run; so that a border, once declared, holds for reading, training and serving alike.
"""

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any

import polars as pl

from mlops_ray.config import Policy, Project, Source
from mlops_ray.errors import ConfigError, DataError, PolicyError
from mlops_ray.expressions import compile_sql
from mlops_ray.schema import WITHHELD

#: The label of a node that names its region.
REGION = "region"
#: The environment variable that says where this machine, its disk and what it starts stand.
HERE = "MLOPS_REGION"


def label_selector(policies: Iterable[Policy]) -> dict[str, str]:
    """The node labels that work on data under all these policies needs; empty where any node will do.

    >>> label_selector([Policy(allowed_regions=("eu-de", "eu-fr")), Policy()])
    {'region': 'in(eu-de,eu-fr)'}
    """
    regions = allowed_regions(policies)
    return {} if regions is None else {REGION: f"in({','.join(regions)})"}


def placed(selector: Mapping[str, str], **resources: float) -> dict[str, Any]:
    """What Ray is asked for an actor of these resources that may run only on nodes with the labels.

    >>> placed({"region": "in(eu-de)"}, num_cpus=0)
    {'num_cpus': 0, 'label_selector': {'region': 'in(eu-de)'}}
    """
    return resources | ({"label_selector": dict(selector)} if selector else {})


def allowed_regions(policies: Iterable[Policy]) -> list[str] | None:
    """The regions that all these policies allow; `None` where none of them says."""
    bounded = [set(policy.allowed_regions) for policy in policies if policy.allowed_regions is not None]
    return sorted(set.intersection(*bounded)) if bounded else None


def require_here(policies: Iterable[Policy], region: str | None = None) -> None:
    """Raises `PolicyError` where this machine may not touch rows under all these policies.

    >>> require_here([Policy(allowed_regions="eu-de")], region="us-east")
    Traceback (most recent call last):
    mlops_ray.errors.PolicyError: rows may be in eu-de only, and this machine is in us-east (MLOPS_REGION)
    """
    here = region if region is not None else os.environ.get(HERE)
    for policy in policies:
        allowed = policy.allowed_regions
        if allowed is not None and here not in allowed:
            where = f"in {here} ({HERE})" if here else f"in no region that it knows of; set {HERE}"
            raise PolicyError(f"rows may be in {', '.join(allowed)} only, and this machine is {where}")


def require_stores(project: Project, *, is_shared: bool = False) -> None:
    """Raises `PolicyError` where a store stands where the project's rows may not be, or nobody says where.

    An address does not tell a region: the project says it. The storage's folder is this machine's own, unless
    it `is_shared` by others.
    """
    regions = allowed_regions(project.policies)
    if regions is None:
        return
    only = f"rows may be in {', '.join(regions)} only"
    for name, is_elsewhere in {
        "storage": is_shared,
        "tracking": project.tracking is not None,
        "online": project.online is not None,
    }.items():
        region: str | None = getattr(project.regions, name)
        if region is None and is_elsewhere:
            example = f"{{{name}: {regions[0]}}}"
            said = f"{only}, and nobody says where this store stands: say its region, e.g. {example}"
            raise project.located(ConfigError(said, at=("regions",)))
        if region is not None and region not in regions:
            raise PolicyError(f"{only}, and the store {name} stands in {region} (regions.{name})")


def curated(rows: pl.DataFrame, policy: Policy) -> pl.DataFrame:
    """The rows and values that people may see: without `machine_only` columns, masked, at most so many.

    Equal values of a column with the mask `hash` are equal within one call, and tell nothing else.

    >>> shown = {"rows": 1, "where": "age > 18", "mask": {"zip": "LEFT(zip, 2)"}}
    >>> policy = Policy(machine_only="name", curated=shown)
    >>> rows = pl.DataFrame({"name": ["a", "b", "c"], "age": [7, 20, 30], "zip": ["1234", "5678", "9999"]})
    >>> curated(rows, policy).rows(named=True)
    [{'age': 20, 'zip': '56'}]
    """
    shown = policy.curated
    if shown is not None:
        admitted = compile_sql(shown.where).polars.fill_null(False) if shown.where else pl.lit(True)
        rows = rows.filter(admitted).head(shown.rows)
        key = secrets.token_bytes(16)
        rows = rows.with_columns(_masked(name, how, key) for name, how in shown.mask.items())
    return rows.drop(policy.machine_only)


def _masked(name: str, how: str, key: bytes) -> pl.Expr:
    if how == "hide":
        return pl.lit(WITHHELD).alias(name)
    if how != "hash":
        return compile_sql(how).polars.alias(name)
    text = pl.col(name).cast(pl.String)
    return text.map_elements(
        lambda value: blake2b(value.encode(), key=key, digest_size=6).hexdigest(), return_dtype=pl.String
    ).alias(name)


def machine_only(project: Project) -> frozenset[str]:
    """The columns that only machines may read, of any source, and those that are derived from them."""
    return frozenset[str]().union(*(source.machine_only for source in project.sources.values()))


def withheld(row: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """A row of a source as people may see it who have asked for none: a sign stands for what they may not.

    Of a source with `curated` rows that is all but the time.

    >>> people = Source.model_validate(
    ...     {"path": "p.csv", "time": "none", "columns": {"name": {"type": "string"}, "age": {"type": "int"}}}
    ...     | {"policy": {"machine_only": "name"}}
    ... )
    >>> withheld({"name": "Ann", "age": 30}, people)
    {'name': '…', 'age': 30}
    """
    hidden = source.hidden
    if source.policy.curated is not None:
        hidden |= source.columns.keys() - (source.event_time.reads if source.event_time else set())
    return {name: WITHHELD if name in hidden else value for name, value in row.items()}


@contextlib.contextmanager
def quoting_nothing(policies: Iterable[Policy]) -> Iterator[None]:
    """Errors within quote no data where there is something that people may not see.

    >>> with quoting_nothing([Policy(machine_only="name")]):
    ...     raise DataError("row 3 is no name", said=": 'Ann'")
    Traceback (most recent call last):
    mlops_ray.errors.DataError: row 3 is no name
    """
    try:
        yield
    except DataError as error:
        raise (error.without_data() if any(policy.restricts for policy in policies) else error) from None
