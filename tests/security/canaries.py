"""Finds a value in whatever a program wrote: as it stands, compressed, in databases, tables and archives."""

import bz2
import gzip
import io
import lzma
import os
import sqlite3
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

#: A text that nothing else holds, or a number.
Canary = str | float


def found_in(folder: Path, canaries: Sequence[Canary]) -> set[Path]:
    """The files below a folder in which one of the canaries stands."""
    return set[Path]().union(*each_found_in(folder, canaries).values())


def each_found_in(folder: Path, canaries: Sequence[Canary]) -> dict[Canary, set[Path]]:
    """The files below a folder in which each of the canaries stands; one that goes meanwhile has none."""
    forms = {canary: _forms(canary) for canary in canaries}
    found: dict[Canary, set[Path]] = {canary: set() for canary in canaries}
    # Unlike `rglob` it bears that a folder goes meanwhile.
    for path in [Path(at) / name for at, _, names in os.walk(folder) for name in names]:
        for canary in _held(path, forms) if path.is_file() else ():
            found[canary].add(path)
    return found


def _held(path: Path, forms: Mapping[Canary, Sequence[bytes]]) -> set[Canary]:
    held = set[Canary]()
    try:
        for text in _texts(path):
            held |= {canary for canary in forms.keys() - held if any(form in text for form in forms[canary])}
    except Exception:
        # What was being written, or was for a moment only, has another name now, or none.
        if path.exists():
            raise
    return held


def _forms(canary: Canary) -> list[bytes]:
    """What a canary looks like: a text in three encodings, a number also rounded and as memory has it."""
    if isinstance(canary, str):
        return [canary.encode(encoding) for encoding in ("utf-8", "utf-16-le", "utf-16-be")]
    said = [repr(canary), f"{canary:.6g}", f"{canary:,.2f}", f"{canary:.2f}"]
    return [text.encode() for text in said] + [struct.pack("<d", canary), struct.pack(">d", canary)]


def _texts(path: Path) -> Iterator[bytes]:
    """What a file holds, in every way that it can be read."""
    data = path.read_bytes()
    yield data
    yield from _decoded(data)
    if data.startswith(b"SQLite format 3"):
        with sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True) as database:
            for line in database.iterdump():
                yield line.encode()
            for (table,) in database.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table'"
            ).fetchall():
                for row in database.execute(f'SELECT * FROM "{table}"'):
                    for value in row:
                        yield from _inside(value)


def _decoded(data: bytes) -> Iterator[bytes]:
    for magic, decode in {
        b"\x1f\x8b": gzip.decompress,
        b"BZh": bz2.decompress,
        b"\xfd7zXZ": lzma.decompress,
    }.items():
        if data.startswith(magic):
            yield from _inside(decode(data))
    if data.startswith(b"PAR1"):
        yield from _cells(parquet.read_table(io.BytesIO(data)))
    if data.startswith(b"ARROW1"):
        yield from _cells(pa.ipc.open_file(io.BytesIO(data)).read_all())
    if data.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield from _inside(archive.read(name))


def _cells(table: pa.Table) -> Iterator[bytes]:
    """The values of a table, however they are nested."""
    for column in table.itercolumns():
        values = column.to_pylist()
        yield repr(values).encode()
        for value in values:
            yield from _inside(value)


def _inside(value: object) -> Iterator[bytes]:
    """Bytes of which something else may be made."""
    if isinstance(value, bytes):
        yield value
        yield from _decoded(value)
