"""Whose rows were erased: a salted hash of each key, so that what is read again does not bring them back.

    features/_erased/SOURCE.json   {"salt", "keys": [{"columns", "hash", "at", "reason"}]}

No key stands there. Who may read the file can find out whether one that he thinks of was erased, not more: it
is readable by its owner alone.
"""

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from mlops_ray.errors import StorageError
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

    def add(self, key: Mapping[str, str], reason: str) -> None:
        """From now on rows of the key are kept out; one that is known already is not told twice."""
        if self.find(key) is not None:
            return
        document = self._read(make=True)
        entry = {"columns": list(key), "hash": self.hash(key), "at": datetime.now(UTC).isoformat()}
        self._write(document | {"keys": [*document["keys"], entry | {"reason": reason}]})

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
            texts = rows.select(as_text(rows[name]) for name in columns)
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


def _hash(salt: str, key: tuple[tuple[str, str | None], ...]) -> str:
    """Of a key, in whatever order its columns are named."""
    said = orjson.dumps(sorted(key, key=lambda pair: pair[0]))
    return hashlib.blake2b(said, key=bytes.fromhex(salt), digest_size=HASH_BYTES).hexdigest()
