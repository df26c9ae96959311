"""Rows of requests as plain values: what a replica decodes, gathers and logs.

Of a few rows a list a column costs a fifth of a frame, so that a frame is made where one is needed, of all
rows that are there. What is kept for long is a table: few objects, whatever the number of rows, since Python
looks through all of them again and again for garbage.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, groupby
from typing import Any, Self

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
#: So many rows are worth packing: an object for each value takes up to ten times the memory, and what a burst
#: of such objects leaves is seldom given back, since some that live long come to lie among them.
MANY = 100


@dataclass(frozen=True, slots=True)
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
        return together([self]).frame


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of one or several requests, in their order.

    `floats` are the columns of type float (rows × columns, NaN where a value is missing), `others` all other
    columns, each a list or, packed, an array of Arrow's; both are in the schema's order.
    """

    schema: Schema
    height: int
    floats: Values
    others: Sequence[Sequence[Any]]

    @property
    def is_sound(self) -> bool:
        """Whether the schema's checks pass for certain; where not, `Schema.check` tells what fails.

        They are made of plain values: of packed ones it says no.
        """
        if self.height >= MANY and any(map(_is_packed, self.others)):
            return False
        return self.schema.is_sound(self.floats, self.others)

    def packed(self) -> Self:
        """The same rows in little memory, to be kept: many of them without an object for each value."""
        if self.height < MANY:
            return self
        return replace(self, others=list(map(_array, self.others, self.types)))

    @property
    def types(self) -> list[pa.DataType]:
        """What the `others` are in Arrow."""
        return [_ARROW[self.schema.columns[at].type] for at in self.schema.other_places]

    @property
    def frame(self) -> pl.DataFrame:
        """The rows as a frame with the declared types; a NaN is null."""
        # By way of Arrow, and all floats at once: as many series of Polars' own take ten times as long.
        flat, at = pa.array(self.floats.ravel("F"), from_pandas=True), count(step=self.height)
        others = iter(self.others)
        arrays = [
            flat.slice(next(at), self.height)
            if column.type == "float"
            else _array(next(others), _ARROW[column.type])
            for column in self.schema.columns
        ]
        return pl.DataFrame(pa.RecordBatch.from_arrays(arrays, self.schema.names))


def together(batch: Sequence[Rows]) -> Table:
    """All rows of requests of one schema."""
    schema = batch[0].schema
    columns = batch[0].values
    if len(batch) > 1:
        columns = [list(chain.from_iterable(of)) for of in zip(*(rows.values for rows in batch), strict=True)]
    height = len(columns[0]) if columns else 0
    floats = [columns[at] for at in schema.float_places]
    array = np.array(floats, np.float64).reshape(len(floats), height).T
    return Table(schema, height, array, [columns[at] for at in schema.other_places])


def joined(tables: Sequence[Table]) -> Table:
    """All rows of tables of one schema."""
    others = zip(*(table.others for table in tables), strict=True)
    return Table(
        tables[0].schema,
        sum(table.height for table in tables),
        np.concatenate([table.floats for table in tables]),
        [_joined(columns, dtype) for columns, dtype in zip(others, tables[0].types, strict=True)],
    )


def _joined(columns: Sequence[Sequence[Any]], dtype: pa.DataType) -> Sequence[Any]:
    if not any(map(_is_packed, columns)):
        return list(chain.from_iterable(columns))
    arrays: list[pa.Array] = []
    for is_packed, run in groupby(columns, _is_packed):
        if is_packed:
            arrays.extend(run)
        else:
            # One array of all lists in a row: one of each would cost as much every time.
            arrays.append(pa.array(list(chain.from_iterable(run)), dtype))
    return pa.concat_arrays(arrays)  # type: ignore[no-any-return]


def _is_packed(values: Sequence[Any]) -> bool:
    return isinstance(values, pa.Array)


def _array(values: Sequence[Any], dtype: pa.DataType) -> pa.Array:
    return values if _is_packed(values) else pa.array(values, dtype)
