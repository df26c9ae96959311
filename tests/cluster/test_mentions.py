"""A file that names somebody is found, in whatever way it writes the name."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest

from mlops_ray.cluster import mentions
from mlops_ray.pages import Bar, Block, Section, Table, cut, page

KEYS = ["plain", "O'Brien", 'the "tall" one', "A & B", "<none>", r"a\b c", "Zoë\tof", "1234567", "long " * 50]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_found_in_text_json_and_pages_and_not_within_a_longer_word(key: str, tmp_path: Path) -> None:
    block = Block("who", table=Table(["name"], [[cut(key)]]), bars=[Bar("share", 0.5, cut(key, 100))])
    given = {
        "a.html": page("A page", "", [], [Section("of a test", [block])]),
        "a.json": orjson.dumps({"cells": {key: 3}}).decode(),
        "a.txt": f"of {key}.",
        "ascii.json": json.dumps([key]),
    }
    for name, text in given.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "other.txt").write_text(f"x{key}x")
    assert mentions.named(tmp_path, sorted(tmp_path.iterdir()), [key]) == (sorted(given), [])


def test_a_large_file_is_looked_through_to_its_end_wherever_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mentions, "PIECE_BYTES", 32)
    for at in range(70):
        path = tmp_path / f"{at}.txt"
        path.write_text("é" * at + " ann-zoë " + "e" * (80 - at))
        assert mentions.named(tmp_path, [path], ["ann-zoë"]) == ([path.name], [])


@pytest.mark.parametrize("key", ["1234567", "1234567.0"])
def test_a_number_is_found_however_it_is_written(key: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for written in ("1234567", "1234567.0", "1,234,567"):
        path.write_text(f"{written} rows")
        assert mentions.named(tmp_path, [path], [key]) == ([path.name], [])


def test_of_tables_columns_of_any_type_are_looked_through(tmp_path: Path) -> None:
    columns = {
        "int": [12345, 1],
        "float": [12345.0, 1.5],
        "list": [["12345"], []],
        "struct": [{"a": 12345}, {"a": 1}],
        "category": pl.Series(["12345", "x"], dtype=pl.Categorical),
        "date": pl.Series([123456, 1], dtype=pl.Datetime("us")),
    }
    for name, values in columns.items():
        pl.DataFrame({name: values}).write_parquet(tmp_path / f"{name}.parquet")
    files = [tmp_path / f"{name}.parquet" for name in columns]
    for key in ("12345", "12345.0"):
        found, unread = mentions.named(tmp_path, files, [key])
        assert (found, unread) == ([f"{name}.parquet" for name in columns if name != "date"], [])


def database(path: Path, rows: list[tuple[object, ...]]) -> None:
    with closing(sqlite3.connect(path)) as made, made:
        made.execute('CREATE TABLE "the ""tags""" (key, value, run)')
        made.executemany('INSERT INTO "the ""tags""" VALUES (?, ?, ?)', rows)


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_found_in_a_database_of_which_a_row_stands_without_anything_between_its_columns(
    key: str, tmp_path: Path
) -> None:
    for name, value in {"whole": key, "sentence": f"rows of {key}", "within": f"x{key}x"}.items():
        database(tmp_path / f"{name}.db", [("segment", value, "a1b2c3")])
    expected = ["sentence.db", "whole.db"]
    assert mentions.named(tmp_path, sorted(tmp_path.iterdir()), [key]) == (expected, [])


def test_all_rows_of_a_database_are_looked_through_whatever_they_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mentions, "MOST_ROWS", 2)
    for number, value in enumerate([1234567, 1234567.0, b"of 1234567"]):
        database(tmp_path / f"{number}.db", [("a", None, "b")] * 4 + [("segment", value, "a1b2c3")])
    files = sorted(tmp_path.iterdir())
    assert mentions.named(tmp_path, files, ["1234567"]) == ([path.name for path in files], [])


def test_a_database_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(mentions.SQLITE + b"none")
    found, (note,) = mentions.named(tmp_path, [tmp_path / "a.db"], ["plain"])
    assert found == []
    assert note.startswith("a.db could not be looked at (DatabaseError)")


def test_a_table_that_a_library_panics_at_is_named_and_the_others_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = pl.read_parquet_schema

    def panics(path: Path) -> Any:
        if path.name == "a.parquet":
            raise pl.exceptions.PanicException("a value: plain")
        return read(path)

    monkeypatch.setattr(pl, "read_parquet_schema", panics)
    for name in ("a", "b"):
        pl.DataFrame({"who": ["plain"] * 9}).write_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "a.parquet").write_bytes(b"none")
    found, unread = mentions.named(tmp_path, sorted(tmp_path.iterdir()), ["plain"])
    assert found == ["b.parquet"]
    assert unread == [mentions.NOT_LOOKED_AT.format("a.parquet", "PanicException")]
