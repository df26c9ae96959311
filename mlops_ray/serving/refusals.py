"""Failed checks of a request's rows → the one error its caller gets."""

from collections import Counter
from collections.abc import Collection
from typing import Any

import polars as pl

from mlops_ray.errors import InvalidRowError
from mlops_ray.schema import Schema
from mlops_ray.serving.documents import show


def refuse_rejected(failures: pl.DataFrame, schema: Schema, hidden: Collection[str] = ()) -> None:
    """Raises `InvalidRowError` for the first failed check that is not merely flagged."""
    if failures.height == 0:
        return
    rejected = failures.filter(pl.col("severity") != "flag")
    if rejected.height:
        failure = rejected.row(0, named=True)
        message = _sentence(failure, schema, hidden)
        raise InvalidRowError(message, row=failure["row"], column=failure["column"])


def invalid(failures: pl.DataFrame) -> Counter[tuple[str, str]]:
    """How often each (column, rule) failed; a rule over several columns stands under no column."""
    pairs = zip(failures["column"].to_list(), failures["rule"].to_list(), strict=True)
    return Counter((column or "", rule) for column, rule in pairs)


def _sentence(failure: dict[str, Any], schema: Schema, hidden: Collection[str]) -> str:
    given, known = failure["value"], ""
    is_hidden = failure["column"] in hidden or failure["column"] is None
    if failure["rule"] == "watermark" and given is not None:
        # Behind the time stands up to when which source is known; that may be the time of its newest row.
        given, _, known = given.partition("; ")
        known = "" if hidden else known
    value = "the value" if is_hidden or given is None else show(given)
    limits = {column.name: column for column in schema.columns}.get(failure["column"])
    match failure["rule"]:
        case "type":
            return f"{value} is not of the column's type" + (f", {limits.type}" if limits else "")
        case "required":
            return "a value is needed"
        case "missing_column":
            return "the column is missing"
        case "min" if limits:
            return f"{value} is below the least that is allowed" + ("" if is_hidden else f", {limits.min:g}")
        case "max" if limits:
            return f"{value} is above the most that is allowed" + ("" if is_hidden else f", {limits.max:g}")
        case "category":
            return f"{value} is none of the values that are allowed"
        case "pattern":
            return f"{value} is not written as it must be"
        case "watermark":
            known = f"{known} only," if known else "the data known so far ends"
            return (
                f"{value} cannot be predicted yet: {known} before the moment at which it would be predicted"
                " (past the watermark)"
            )
        case "off_grid":
            return f"{value} is not the end of one of the intervals in which the source is resampled"
        case "too_old":
            return f"{value} is older than what the online store keeps"
    return f"{value} breaks the rule {failure['rule']!r}"
