"""From feature columns to the matrix a model reads, learned on training rows and kept as plain data.

Every output value depends on its own row only and is computed by element, so that n rows at once equal n
times one row, bit for bit.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from mlops_ray.errors import PackageError, TrainingError
from mlops_ray.schema import Column
from mlops_ray.storage import digest

Matrix = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]
Style = Literal["one_hot", "codes"]
Category = str | int | bool

#: A column of a one-hot matrix costs 4 bytes a row; rarer categories than so many count as unseen.
MOST_ONE_HOT = 256
#: What a matrix can hold; an amount beyond it would become an infinity, at which libraries stop.
LARGEST = float(np.finfo(np.float32).max)
#: The code of an unseen or missing category before it becomes zeros or NaN.
UNSEEN = -1


@dataclass(frozen=True)
class NumericPart:
    """An amount: `(value - center) / scale`, a missing value as `fill`, which is in the output's scale."""

    name: str
    center: float
    scale: float
    fill: float | None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)


@dataclass(frozen=True)
class DiscretePart:
    """One of `categories`: zeros and a one, or the category's position; see `Encoder`.

    Where they are `hashed`, a digest stands for each: it keeps values from eyes, and not from who guesses.
    """

    name: str
    categories: tuple[Category, ...]
    one_hot: bool
    hashed: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{self.name}={value}" for value in self.categories) if self.one_hot else (self.name,)

    @cached_property
    def _codes(self) -> dict[Category, int]:
        return {category: code for code, category in enumerate(self.categories)}

    def write(self, values: pl.Series, out: Matrix) -> None:
        known = hashed(self.name, values) if self.hashed else values
        found = map(self._codes.get, known.to_list(), repeat(UNSEEN))
        codes = np.fromiter(found, np.int64, count=len(values))
        if self.one_hot:
            rows = np.flatnonzero(codes != UNSEEN)
            out[rows, codes[rows]] = 1.0
        else:
            out[:, 0] = np.where(codes == UNSEEN, np.nan, codes)


def hashed(name: str, values: pl.Series) -> pl.Series:
    """What stands for each value of a column that nobody may see.

    >>> hashed("plan", pl.Series(["gold", None])).to_list()
    ['c5362b373e9f6402', None]
    """
    every = values.to_list()
    stands = {value: digest([name, value])[:16] for value in {*every} - {None}}
    return pl.Series(values.name, map(stands.get, every), dtype=pl.String)


Part = NumericPart | DiscretePart


@dataclass(frozen=True)
class Encoder:
    """How each feature becomes columns of the matrix.

    Style "one_hot", for linear models: a discrete column becomes one column a category, an unseen or missing
    one all zeros; an amount has the mean 0 and the standard deviation 1 over the training rows, a missing one
    is 0. Style "codes", for trees: a discrete column becomes its category's position, an unseen or missing
    one NaN; an amount stays as it is, a missing one NaN.
    """

    style: Style
    parts: tuple[Part, ...]

    @classmethod
    def fit(cls, frame: pl.DataFrame, columns: Sequence[Column], *, style: Style) -> Self:
        """The encoder of these columns, learned on `frame` alone.

        Raises `TrainingError` for a column that is an instant: a model can learn nothing from it that lasts.

        >>> columns = (Column("site", "category"), Column("load", "float"))
        >>> rows = pl.DataFrame({"site": ["b", "a", None], "load": [1.0, None, 3.0]})
        >>> Encoder.fit(rows, columns, style="one_hot").transform(rows).tolist()
        [[0.0, 1.0, -1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
        >>> Encoder.fit(rows, columns, style="codes").transform(rows).tolist()
        [[1.0, 1.0], [0.0, nan], [nan, 3.0]]
        """
        return cls(style, tuple(_fit_part(frame[column.name], column, style) for column in columns))

    @property
    def names(self) -> tuple[str, ...]:
        """The matrix's columns, in order."""
        return tuple(name for part in self.parts for name in part.names)

    @property
    def discrete(self) -> tuple[int, ...]:
        """The matrix's columns that are a category's position, which is a name, not an amount."""
        found = ((part, place) for part, place in zip(self.parts, self._places, strict=True))
        return tuple(
            place.start for part, place in found if isinstance(part, DiscretePart) and not part.one_hot
        )

    @cached_property
    def _places(self) -> tuple[slice, ...]:
        ends = np.cumsum([len(part.names) for part in self.parts]).tolist()
        return tuple(slice(start, end) for start, end in zip([0, *ends], ends, strict=False))

    def transform(self, frame: pl.DataFrame) -> Matrix:
        """The rows as a C-contiguous float32 matrix (rows × `len(names)`).

        `frame` has every column, with its declared type; others are not looked at.
        """
        matrix = np.zeros((frame.height, self._places[-1].stop if self.parts else 0), np.float32)
        for part, place in zip(self.parts, self._places, strict=True):
            if isinstance(part, DiscretePart):
                part.write(frame.get_column(part.name), matrix[:, place])
        amounts = self._amounts
        if amounts is not None:
            matrix[:, amounts.places] = amounts.scaled(frame)
        return matrix

    @cached_property
    def amounts(self) -> tuple[str, ...] | None:
        """The columns, where all are amounts and `transform_amounts` can be used."""
        found = self._amounts
        return found.names if found is not None and len(found.names) == len(self.parts) else None

    def transform_amounts(self, values: Values) -> Matrix:
        """`transform` of the columns `amounts`, float64 (rows, columns), NaN where a value is missing."""
        assert self._amounts is not None
        return self._amounts.scale_all(values).astype(np.float32)

    @cached_property
    def _amounts(self) -> "_Amounts | None":
        found = [
            (p, at.start)
            for p, at in zip(self.parts, self._places, strict=True)
            if isinstance(p, NumericPart)
        ]
        return _Amounts.of(*zip(*found, strict=True)) if found else None

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads again, to the bit."""
        return {"style": self.style, "columns": [_part_to_json(part) for part in self.parts]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The encoder that `to_json` wrote; raises `PackageError` where it is not one."""
        try:
            return cls(data["style"], tuple(_part_from_json(c, data["style"]) for c in data["columns"]))
        except (KeyError, TypeError, ValueError) as error:
            raise PackageError(f"encoder.json is not an encoder: {error!r}") from error


@dataclass(frozen=True)
class _Amounts:
    """All numeric parts together: of a request's few rows, each step of theirs costs as much as of one."""

    names: tuple[str, ...]
    places: npt.NDArray[np.int64]
    center: Values
    scale: Values
    fill: Values

    @classmethod
    def of(cls, parts: Sequence[NumericPart], places: Sequence[int]) -> Self:
        fills = [np.nan if part.fill is None else part.fill for part in parts]
        return cls(
            tuple(part.name for part in parts),
            np.array(places),
            np.array([part.center for part in parts]),
            np.array([part.scale for part in parts]),
            np.array(fills),
        )

    def scaled(self, frame: pl.DataFrame) -> Values:
        """Float64 (rows, parts); missing and infinite values are the part's `fill`."""
        numbers = np.empty((frame.height, len(self.names)))
        for at, name in enumerate(self.names):
            values = frame.get_column(name)
            numbers[:, at] = (values if values.dtype == pl.Float64 else values.cast(pl.Float64)).to_numpy()
        return self.scale_all(numbers)

    def scale_all(self, numbers: Values) -> Values:
        """`scaled` of the values themselves, float64 (rows, parts), NaN where one is missing."""
        # Beyond what float64 holds lies what float32 cannot hold either: it is clipped.
        with np.errstate(over="ignore"):
            scaled = np.clip((numbers - self.center) / self.scale, -LARGEST, LARGEST)
        return np.where(np.isfinite(numbers), scaled, self.fill)


def _fit_part(values: pl.Series, column: Column, style: Style) -> Part:
    if column.is_discrete:
        # Categories that the project file declares are no secret.
        hides = column.hidden and column.categories is None
        values = hashed(column.name, values) if hides else values
        return DiscretePart(column.name, _categories(values, column, style), style == "one_hot", hides)
    if column.type == "datetime":
        raise TrainingError(f"the feature {column.name!r} is an instant; use hour_of, weekday_of … of it")
    if style == "codes":
        return NumericPart(column.name, 0.0, 1.0, None)
    numbers = values.cast(pl.Float64).to_numpy()
    known = numbers[np.isfinite(numbers)]
    spread = float(known.std()) if known.size else 0.0
    # A column that never changes says nothing; any scale but 0 will do.
    return NumericPart(column.name, float(known.mean()) if known.size else 0.0, spread or 1.0, 0.0)


def _categories(values: pl.Series, column: Column, style: Style) -> tuple[Category, ...]:
    if column.categories is not None:
        return column.categories
    counts = Counter(values.drop_nulls().to_list())
    # Ties by name, so that the same rows give the same columns.
    ranked = sorted(counts, key=lambda category: (-counts[category], category))
    return tuple(sorted(ranked[:MOST_ONE_HOT] if style == "one_hot" else ranked))


def _part_to_json(part: Part) -> dict[str, Any]:
    if isinstance(part, DiscretePart):
        # Another key: who does not know of it must not take digests for categories.
        return {"name": part.name, "hashes" if part.hashed else "categories": list(part.categories)}
    return {"name": part.name, "center": part.center, "scale": part.scale, "fill": part.fill}


def _part_from_json(data: dict[str, Any], style: Style) -> Part:
    for key in ("categories", "hashes"):
        if key in data:
            return DiscretePart(data["name"], tuple(data[key]), style == "one_hot", key == "hashes")
    fill = None if data["fill"] is None else float(data["fill"])
    return NumericPart(data["name"], float(data["center"]), float(data["scale"]), fill)
