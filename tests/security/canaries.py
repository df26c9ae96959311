"""Finds a value in whatever a program wrote: as it stands, compressed, in databases, tables and archives."""

import bz2
import gzip
import io
import lzma
import sqlite3
import zipfile
from collections.abc import Iterator
from pathlib import Path

import polars as pl


def found_in(folder: Path, canaries: list[str]) -> set[Path]:
    """The files below a folder in which one of the canaries stands."""
    return {
        path
        for path in folder.rglob("*")
        if path.is_file() and any(_has(text, canaries) for text in _texts(path))
    }


def _has(text: bytes, canaries: list[str]) -> bool:
    return any(
        canary.encode(encoding) in text
        for canary in canaries
        for encoding in ("utf-8", "utf-16-le", "utf-16-be")
    )


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
                        yield from _decoded(value) if isinstance(value, bytes) else ()


def _decoded(data: bytes) -> Iterator[bytes]:
    for magic, decode in {
        b"\x1f\x8b": gzip.decompress,
        b"BZh": bz2.decompress,
        b"\xfd7zXZ": lzma.decompress,
    }.items():
        if data.startswith(magic):
            text = decode(data)
            yield text
            yield from _decoded(text)
    if data.startswith(b"PAR1"):
        yield _table(pl.read_parquet(io.BytesIO(data)))
    if data.startswith(b"ARROW1"):
        yield _table(pl.read_ipc(io.BytesIO(data)))
    if data.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield archive.read(name)
                yield from _decoded(archive.read(name))


def _table(frame: pl.DataFrame) -> bytes:
    return frame.cast(pl.String, strict=False).write_csv().encode() if frame.width else b""
