"""The search that other tests go by finds a value in whatever form it was written."""

import bz2
import gzip
import io
import lzma
import sqlite3
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake

from .canaries import Canary, found_in

NAME, AMOUNT = "CANARYname", 71003.4711815
TEXT = f"a line about {NAME}, who has {AMOUNT} of them\n" * 20
ROWS = pl.DataFrame({"name": [NAME, "b"], "amount": [AMOUNT, 1.5]})


def zipped(data: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inside", data)
    return made.getvalue()


def parquet(rows: pl.DataFrame) -> bytes:
    made = io.BytesIO()
    rows.write_parquet(made, compression="zstd")
    return made.getvalue()


def arrow(rows: pl.DataFrame) -> bytes:
    made = io.BytesIO()
    rows.write_ipc(made, compression="lz4")
    return made.getvalue()


def sqlite(value: object) -> Callable[[Path], object]:
    def write(file: Path) -> None:
        with sqlite3.connect(file) as database:
            database.execute("CREATE TABLE t (x)")
            database.execute("INSERT INTO t VALUES (?)", (value,))

    return write


def nested() -> pl.DataFrame:
    return ROWS.select(pl.struct(pl.col("name"), pl.concat_list("amount").alias("amounts")).alias("each"))


def plain(data: bytes) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(data)


def checkpoint(file: Path) -> None:
    """Of a table whose files are gone: the bounds of its columns are all that is left."""
    folder = file.with_suffix(".delta")
    write_deltalake(folder, ROWS)
    DeltaTable(folder).create_checkpoint()
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.endswith(".checkpoint.parquet"):
            path.unlink()


#: Ways of writing, and what is to be found there.
WAYS: dict[str, tuple[Callable[[Path], object], Canary]] = {
    "as it is": (plain(TEXT.encode()), NAME),
    "in UTF-16": (plain(TEXT.encode("utf-16-be")), NAME),
    "gzip": (plain(gzip.compress(TEXT.encode())), NAME),
    "gzip of gzip": (plain(gzip.compress(gzip.compress(TEXT.encode()))), NAME),
    "bz2": (plain(bz2.compress(TEXT.encode())), NAME),
    "xz": (plain(lzma.compress(TEXT.encode())), NAME),
    "zip": (plain(zipped(TEXT.encode())), NAME),
    "a Parquet file in a zip": (plain(zipped(parquet(ROWS))), AMOUNT),
    "Parquet, a text": (plain(parquet(ROWS)), NAME),
    "Parquet, a number": (plain(parquet(ROWS)), AMOUNT),
    "Parquet, nested": (plain(parquet(nested())), NAME),
    "Parquet, a number that is nested": (plain(parquet(nested())), AMOUNT),
    "Parquet, bytes of gzip": (plain(parquet(pl.DataFrame({"x": [gzip.compress(TEXT.encode())]}))), NAME),
    "Arrow": (plain(arrow(ROWS)), AMOUNT),
    "SQLite, a text": (sqlite(NAME), NAME),
    "SQLite, a number": (sqlite(AMOUNT), AMOUNT),
    "SQLite, bytes on two pages": (sqlite(b" " * 4_091 * 3 + TEXT.encode()), NAME),
    "SQLite, bytes of Parquet": (sqlite(parquet(ROWS)), AMOUNT),
    "a checkpoint of Delta, a text": (checkpoint, NAME),
    "a checkpoint of Delta, a number": (checkpoint, AMOUNT),
    "a number as memory has it": (plain(b"abc" + struct.pack("<d", AMOUNT)), AMOUNT),
    "a number as networks have it": (plain(struct.pack(">d", AMOUNT)), AMOUNT),
    "a number, rounded": (plain(b'{"x": 71003.5}'), AMOUNT),
    "a number as people read it": (plain(b"<td>71,003.47</td>"), AMOUNT),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_value_is_found_however_it_was_written(way: str, tmp_path: Path) -> None:
    write, canary = WAYS[way]
    write(tmp_path / "file")
    (found,) = found_in(tmp_path, [canary])
    assert found.is_relative_to(tmp_path)
    other = "CANARYother" if isinstance(canary, str) else 71004.1234567
    assert found_in(tmp_path, [other]) == set()


@pytest.mark.parametrize("way", ["gzip", "gzip of gzip", "bz2", "xz", "zip"])
def test_what_is_compressed_is_not_found_as_it_stands(way: str, tmp_path: Path) -> None:
    """The control: without decoding the search would be blind."""
    write, canary = WAYS[way]
    write(tmp_path / "file")
    assert str(canary).encode() not in (tmp_path / "file").read_bytes()
