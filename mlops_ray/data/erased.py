"""Whose rows were erased: a salted hash of each key, so that what is read again does not bring them back.

    _erased/SOURCE.json {"salt", "keys": [{"columns", "types", "hash", "instead_of", "at", "reason"}]}

`types` are the families of the columns' types; `instead_of` are the hashes of the same values by columns that
the source had before. No key stands there. Who may read the file can find out whether one that he thinks of
was erased, not more: it is readable by its owner alone.
"""

import hashlib
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce
from itertools import permutations, product
from operator import or_
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from mlops_ray.errors import DataError, StorageError
from mlops_ray.storage import PRIVATE, replacing

#: Beside the histories, and by the name of the source: a source that is defined anew has another history.
FOLDER = "_erased"
SALT_BYTES, HASH_BYTES = 32, 16
#: A column that stands beside rows for a moment.
THEIRS = "_theirs"


@dataclass(frozen=True)
class Erased:
    """The erased keys of a source, under the feature store's folder."""

    path: Path

    @classmethod
    def of(cls, features: Path, source: str) -> "Erased":
        return cls(features / FOLDER / f"{source}.json")

    def hash(self, key: Mapping[str, str]) -> str:
        """What stands for a key, the text of each of its columns; makes the salt where there is none yet."""
        return _hash(self._read(make=True)["salt"], tuple(key.items()))

    def find(self, key: Mapping[str, str]) -> dict[str, Any] | None:
        """What is said of a key that was erased; `None` of others."""
        if not self.path.exists():
            return None
        hashed = self.hash(key)
        return next((dict(entry) for entry in self._read()["keys"] if entry["hash"] == hashed), None)

    def of_other_columns(self, key: Mapping[str, str]) -> list[dict[str, Any]]:
        """What is said of keys with the same values by columns of other names."""
        if not self.path.exists():
            return []
        document = self._read()
        return [
            entry
            for entry in document["keys"]
            if set(entry["columns"]) != set(key)
            and any(
                _hash(document["salt"], tuple(zip(entry["columns"], values, strict=True))) == entry["hash"]
                for values in permutations(key.values())
                if len(values) == len(entry["columns"])
            )
        ]

    def add(self, key: Mapping[str, str], reason: str, types: Mapping[str, str]) -> None:
        """From now on rows of the key are kept out; one that is known already is not told twice.

        `types` are the families of its columns' types.
        """
        before = self.find(key)
        if before is not None and _fits(before, types):
            return
        document = self._read(make=True)
        entry = {
            "columns": list(key),
            "types": [types[name] for name in key],
            "hash": self.hash(key),
            "instead_of": [
                each["hash"] for each in [*self.of_other_columns(key), *([before] if before else [])]
            ],
            "at": datetime.now(UTC).isoformat(),
            "reason": reason,
        }
        # The newest first: it is what is found.
        self._write(document | {"keys": [entry, *document["keys"]]})

    def require_told(self, source: str, types: Mapping[str, str]) -> None:
        """Raises `DataError` where a source has columns of these families, and erased rows by others."""
        every = self._read()["keys"] if self.path.exists() else []
        by_these = [entry for entry in every if _fits(entry, types)]
        lost = [
            entry
            for entry in every
            if not _fits(entry, types) and not any(_is_same(entry, other) for other in by_these)
        ]
        if lost:
            named = sorted({", ".join(entry["columns"]) for entry in lost})
            reasons = sorted({entry["reason"] for entry in lost})
            raise DataError(
                f"rows of {source!r} that were erased would come back: it does not have the key any more by "
                f"which that was done ({'; '.join(named)}), or has it with another type, so nobody can tell "
                f"them of {len(lost):,} erased keys",
                said=f" (erased for {'; '.join(reasons)})",
                then="; erase each again by the keys that it has now, or take the entry of whom it has no "
                f"row any more out of {self.path}",
            )

    def without(self, rows: pl.DataFrame) -> pl.DataFrame:
        """These rows without those of erased keys."""
        return rows.filter(~self.are_theirs(rows)) if self.path.exists() else rows

    def are_theirs(self, rows: pl.DataFrame) -> pl.Series:
        """Which of the rows are of an erased key."""
        found = pl.repeat(False, rows.height, eager=True)
        if not self.path.exists():
            return found
        document = self._read()
        for columns in {tuple(entry["columns"]) for entry in document["keys"]}:
            if not set(columns) <= set(rows.columns):
                continue
            known = {entry["hash"] for entry in document["keys"] if tuple(entry["columns"]) == columns}
            for texts in map(pl.DataFrame, product(*(as_texts(rows[name]) for name in columns))):
                distinct = texts.unique(maintain_order=True)
                each = [
                    _hash(document["salt"], tuple(zip(columns, values, strict=True))) in known
                    for values in distinct.iter_rows()
                ]
                marked = distinct.with_columns(pl.Series(THEIRS, each, dtype=pl.Boolean))
                joined = texts.join(marked, on=columns, how="left", maintain_order="left", nulls_equal=True)
                found |= joined[THEIRS]
        return found

    def _read(self, *, make: bool = False) -> dict[str, Any]:
        if make and not self.path.exists():
            self._write({"salt": secrets.token_hex(SALT_BYTES), "keys": []})
        try:
            found = orjson.loads(self.path.read_bytes())
            return {"salt": str(found["salt"]), "keys": list(found["keys"])}
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            # Without it rows that were erased would come back.
            raise StorageError(
                f"{self.path}, which says whose rows were erased, is damaged; restore it"
            ) from error

    def _write(self, document: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path, mode=PRIVATE) as new:
            new.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))


def as_text(values: pl.Series) -> pl.Series:
    """Values as the text of a key; the two zeros of floating point are one.

    >>> as_text(pl.Series([0.0, -0.0, 1.5])).to_list(), as_text(pl.Series(["-0.0"])).to_list()
    (['0.0', '0.0', '1.5'], ['-0.0'])
    """
    plain = values.set(values == 0, 0.0) if values.dtype.is_float() else values
    return plain.cast(pl.String)


def as_texts(values: pl.Series) -> Iterator[pl.Series]:
    """Values as the text of a key, and numbers as it is where the column is of their other type.

    >>> [texts.to_list() for texts in as_texts(pl.Series([7.0, 7.5, None]))]
    [['7.0', '7.5', None], ['7', None, None]]
    """
    yield as_text(values)
    if values.dtype.is_numeric():
        other = values.cast(pl.Int64 if values.dtype.is_float() else pl.Float64, strict=False)
        yield as_text(other.set(other.cast(values.dtype, strict=False) != values, None))


def equal(values: pl.Series, text: str) -> pl.Series:
    """Whether each is the value that a key calls so.

    >>> equal(pl.Series([7.0, 7.5, None]), "7").to_list()
    [True, False, False]
    """
    return reduce(or_, (texts == text for texts in as_texts(values))).fill_null(False)


def family(dtype: pl.DataType) -> str:
    """What types have in common of which a value has the same key: `number`, `bool`, `datetime` or `text`.

    >>> family(pl.Int64()), family(pl.Float64()), family(pl.String())
    ('number', 'number', 'text')
    """
    if dtype.is_numeric():
        return "number"
    if dtype.is_temporal():
        return "datetime"
    return "bool" if dtype == pl.Boolean else "text"


def _fits(entry: Mapping[str, Any], types: Mapping[str, str]) -> bool:
    """Whether rows with columns of these families say whether they are of an erased key."""
    # Once the types were not kept.
    kinds = entry.get("types") or [types.get(name, "") for name in entry["columns"]]
    return all(types.get(name) == kind for name, kind in zip(entry["columns"], kinds, strict=True))


def _is_same(entry: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return entry["hash"] in other.get("instead_of", ()) or other["hash"] in entry.get("instead_of", ())


def _hash(salt: str, key: tuple[tuple[str, str | None], ...]) -> str:
    """Of a key, in whatever order its columns are named."""
    said = orjson.dumps(sorted(key, key=lambda pair: pair[0]))
    return hashlib.blake2b(said, key=bytes.fromhex(salt), digest_size=HASH_BYTES).hexdigest()
