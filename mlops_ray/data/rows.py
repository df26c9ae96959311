"""Rows of requests as plain values: what a replica decodes, gathers and logs.

Of a few rows a list a column costs a fifth of a frame, so that a frame is made where one is needed, of all
rows that are there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from mlops_ray.schema import ColumnType, Schema

_ARROW: dict[ColumnType, pa.DataType] = {
    "int": pa.int64(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "category": pa.string(),
    "datetime": pa.timestamp("us", "UTC"),
}
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """Rows of a request: for each column of the schema, in its order, a list of plain values.

    They are of the column's type; an instant is whole microseconds since 1970.
    """

    schema: Schema
    values: list[list[Any]]

    @property
    def height(self) -> int:
        return len(self.values[0]) if self.values else 0

    @property
    def frame(self) -> pl.DataFrame:
        """The rows as a frame with the declared types."""
        return together([self])


def together(batch: Sequence[Rows]) -> pl.DataFrame:
    """All rows of requests of one schema, in their order; a NaN is null."""
    schema = batch[0].schema
    columns = _columns(batch)
    height = len(columns[0]) if columns else 0
    # By way of Arrow, and all floats at once: as many series of Polars' own take ten times as long.
    flat, at = pa.array(_floats(schema, columns).ravel("F"), from_pandas=True), count(step=height)
    arrays = [
        flat.slice(next(at), height) if column.type == "float" else pa.array(values, _ARROW[column.type])
        for column, values in zip(schema.columns, columns, strict=True)
    ]
    return pl.DataFrame(pa.RecordBatch.from_arrays(arrays, schema.names))


def sound_amounts(batch: Sequence[Rows]) -> Values | None:
    """The columns of type float of all rows (rows × columns, NaN where a value is missing).

    `None` where any check of the schema may fail, or is not of one value alone: `Schema.check` then tells.
    """
    schema = batch[0].schema
    columns = _columns(batch)
    floats = _floats(schema, columns)
    return floats if schema.is_sound(columns, floats) else None


def _columns(batch: Sequence[Rows]) -> list[list[Any]]:
    if len(batch) == 1:
        return batch[0].values
    return [list(chain.from_iterable(of)) for of in zip(*(rows.values for rows in batch), strict=True)]


def _floats(schema: Schema, columns: list[list[Any]]) -> Values:
    height = len(columns[0]) if columns else 0
    pairs = zip(schema.columns, columns, strict=True)
    found = [values for column, values in pairs if column.type == "float"]
    return np.array(found, np.float64).reshape(len(found), height).T
