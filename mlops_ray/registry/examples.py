"""Made-up rows of features: from declared columns and known categories, never copied from data."""

import math
from typing import Any

import polars as pl

from mlops_ray.registry.encoder import DiscretePart, Encoder
from mlops_ray.schema import DTYPES, Column


def make(columns: tuple[Column, ...], encoder: Encoder) -> list[dict[str, Any]]:
    """Rows at the low end, in the middle, at the high end, and one where everything is missing."""
    discrete = (part for part in encoder.parts if isinstance(part, DiscretePart) and not part.hashed)
    known = {part.name: part.categories for part in discrete}
    rows = [{c.name: _example(c, known.get(c.name, ()), share) for c in columns} for share in (0.0, 0.5, 1.0)]
    return [*rows, {column.name: None for column in columns}]


def _example(column: Column, categories: tuple[Any, ...], share: float) -> Any:
    if column.is_discrete:
        return categories[math.floor(share * (len(categories) - 1))] if categories else None
    low = column.min if column.min is not None else (column.max or 0.0) - 1.0
    high = column.max if column.max is not None else low + 1.0
    value = low + share * (high - low)
    return round(value) if column.type == "int" else value


def frame(rows: list[dict[str, Any]], columns: tuple[Column, ...]) -> pl.DataFrame:
    """Rows of JSON values as a typed frame of these columns."""
    return pl.DataFrame(rows, schema={column.name: DTYPES[column.type] for column in columns})
