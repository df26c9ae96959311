"""Every format gives the same rows, each in its place, in bounded memory; what is broken is one sentence."""

import contextlib
import gzip
import json
import lzma
import random
import signal
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import polars as pl
import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from mlops_ray.config import Csv, File, Source
from mlops_ray.data import delimited, readers, values
from mlops_ray.data.delimited import Delimited
from mlops_ray.data.inputs import find, shown
from mlops_ray.data.readers import NOT_JSON, Reader, reader
from mlops_ray.errors import DataError

from ..conftest import require_package
from ..servers import PASSWORD, PostgresServer, postgres, s3_store

COLUMNS = {
    "id": "int",
    "site": "category",
    "load": "float",
    "on": "bool",
    "seen": "datetime",
    "note": "string",
}
NOON = datetime(2016, 6, 1, 12, 0, 0, 250_000, tzinfo=UTC)
ROWS: list[tuple[Any, ...]] = [
    (1, "Köln", 1 / 3, True, NOON, "a"),
    (-(2**53) - 1, "Zürich", -1e-12, False, NOON + timedelta(days=1), 'he said: "x; y"\nand z'),
    (3, "Köln", None, None, None, None),
    (4, "", 5.0, True, NOON, "007"),
]


def source(path: object = "x.csv", **changes: Any) -> Source:
    types = changes.pop("types", COLUMNS)
    said = {"path": str(path)} if "sql" not in changes else {}
    columns = {name: {"type": kind} for name, kind in types.items()}
    return Source.model_validate({**said, "time": "none", "columns": columns, **changes})


def open_(source: Source, after: object = None) -> Reader:
    (file,) = find(source, "s")
    return reader(file, source.of(file), after)


def rows_of(reader: Reader, *wanted: str) -> pl.DataFrame:
    """All rows with their places."""
    blocks = reader.blocks(wanted or reader.names)
    return pl.concat([block.frame for block in blocks], how="vertical_relaxed")


def refused_of(reader: Reader) -> list[tuple[Any, ...]]:
    return [row for block in reader.blocks(reader.names) for row in block.refused.rows()]


def typed(source: Source, after: object = None) -> list[tuple[Any, ...]]:
    """The rows with the types that the source declares, without those columns that only the file has."""
    opened, schema = open_(source, after), source.row_schema
    blocks = [block.frame for block in opened.blocks(schema.names)]
    cast = [frame.select(schema.cast(frame[c.name], c) for c in schema.columns) for frame in blocks]
    return [row for frame in cast for row in frame.rows()]


# ---------------------------------------------------------------- one table in every format


def write_csv(path: Path) -> dict[str, Any]:
    def word(value: Any) -> str:
        text = (
            "" if value is None else f"{value}".replace(".", ",") if isinstance(value, float) else said(value)
        )
        return '"' + text.replace('"', '""') + '"' if isinstance(value, str) else text

    lines = [";".join(COLUMNS), *(";".join(map(word, row)) for row in ROWS)]
    path.write_bytes("\r\n".join(lines).encode("latin-1"))
    return {"format": {"csv": {"delimiter": ";", "decimal": ",", "encoding": "latin-1"}}}


def said(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def write_tsv(path: Path) -> dict[str, Any]:
    frame().with_columns(seen=pl.col("seen").dt.strftime("%FT%T%.f%:z")).write_csv(path, separator="\t")
    return {}


def write_json_lines(path: Path) -> dict[str, Any]:
    lines = (
        json.dumps({name: v for name, v in zip(COLUMNS, row, strict=True) if v is not None}, default=said)
        for row in ROWS
    )
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return {}


def write_parquet(path: Path) -> dict[str, Any]:
    frame().write_parquet(path)
    return {}


def write_excel(path: Path) -> dict[str, Any]:
    require_package("openpyxl")
    require_package("fastexcel")
    import openpyxl

    book = openpyxl.Workbook()
    book.active.title = "notes"
    sheet = book.create_sheet("rows")
    for row in [["written by hand"], list(COLUMNS), *ROWS]:
        sheet.append([said(v) if isinstance(v, datetime) else v for v in row])
    # A number of Excel has no more digits.
    sheet["A4"] = str(ROWS[1][0])
    book.save(path)
    return {"format": {"excel": {"sheet": "rows", "skip_rows": 1}}}


def write_sqlite(path: Path) -> dict[str, Any]:
    connection = sqlite3.connect(path)
    connection.execute(f"CREATE TABLE t ({', '.join(f'{name!r}' for name in COLUMNS)})")
    rows = [[said(v) if isinstance(v, datetime) else v for v in row] for row in ROWS]
    connection.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?, ?)", rows)
    connection.commit()
    return {"sql": {"connection": f"sqlite:///{path}", "query": "SELECT * FROM t ORDER BY rowid;"}}


def write_delta(path: Path) -> dict[str, Any]:
    frame().head(2).write_delta(path)
    frame().tail(2).write_delta(path, mode="append")
    return {}


def frame() -> pl.DataFrame:
    types = (pl.Int64, pl.String, pl.Float64, pl.Boolean, pl.Datetime("us", "UTC"), pl.String)
    return pl.DataFrame(ROWS, schema=dict(zip(COLUMNS, types, strict=True)), orient="row")


WRITERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "x.csv": write_csv,
    "x.tsv": write_tsv,
    "x.jsonl.gz": write_json_lines,
    "x.parquet": write_parquet,
    "x.xlsx": write_excel,
    "x.db": write_sqlite,
    "table": write_delta,
}


#: An empty text stands for no value, unless a source says otherwise.
SAME = [tuple(None if value == "" else value for value in row) for row in ROWS]


@pytest.mark.parametrize("name", WRITERS)
def test_a_table_has_the_same_typed_rows_in_every_format(name: str, tmp_path: Path) -> None:
    spec = source(tmp_path / name, **WRITERS[name](tmp_path / name))
    assert typed(spec) == SAME
    opened = open_(spec)
    assert opened.names == list(COLUMNS)
    places = rows_of(opened).select("_file", "_row").rows()
    assert places == [(shown(find(spec, "s")[0]), number) for number in (1, 2, 3, 4)]


def test_rows_of_a_delta_table_come_in_the_order_of_its_commits_with_its_partitions(tmp_path: Path) -> None:
    for number in range(12):
        rows = pl.DataFrame({"a": [number], "part": [f"ü {number % 2}"]})
        rows.write_delta(tmp_path / "t", mode="append", delta_write_options={"partition_by": ["part"]})
    found = rows_of(open_(source(tmp_path / "t", types={"a": "int"})), "a", "part")
    assert found["a"].to_list() == list(range(12))
    assert found["part"].unique(maintain_order=True).to_list() == ["ü 0", "ü 1"]


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    with s3_store("rows") as client:
        yield client


@pytest.mark.parametrize("name", sorted(WRITERS.keys() - {"x.db"}))
def test_a_table_in_an_object_store_has_the_same_rows(name: str, tmp_path: Path, store: Any) -> None:
    path = tmp_path / name
    changes = WRITERS[name](path)
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            store.upload_file(str(file), "rows", str(file.relative_to(tmp_path)))
    here, there = (source(place, **changes) for place in (path, f"s3://rows/{name}"))
    assert typed(there) == typed(here)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres() as server:
        yield server


def query(server: PostgresServer, text: str, **changes: Any) -> Source:
    sql = {"connection": server.url(), "query": text, **changes.pop("sql", {})}
    return source(sql=sql, **changes)


def test_a_table_of_postgresql_has_the_same_rows(server: PostgresServer) -> None:
    types = 'id bigint, site text, load float8, "on" boolean, seen timestamptz, note text'

    def word(value: Any) -> str:
        return "NULL" if value is None else "'" + said(value).replace("'", "''") + "'"

    values = ", ".join(f"({', '.join(map(word, row))})" for row in ROWS)
    server.run(f"CREATE TABLE same ({types})", f"INSERT INTO same VALUES {values}")
    spec = query(server, "SELECT * FROM same")
    assert typed(spec) == SAME
    assert rows_of(open_(spec))["_file"][0] == f"{server.url().replace('owner@', '')}: SELECT * FROM same"


# ---------------------------------------------------------------- CSV

WORDS = [
    "a",
    "1",
    "2.5",
    "",
    "ü",
    '""',
    "x y",
    '"a\nb"',
    '"a,b"',
    '"q""q"',
    '5"x',
    '"',
    '"a"b',
    "\r",
    "x\r\n",
    "\ufeff",
]


def by_arrow(data: bytes, names: list[str]) -> tuple[list[tuple[Any, ...]], list[tuple[int, str]]]:
    """The oracle: the whole text at once by one thread, which knows the numbers of all rows."""
    aside: dict[int, str] = {}

    def put_aside(row: Any) -> str:
        aside[row.number] = f"{row.actual_columns} columns, not {len(names)}"
        return "skip"

    table = pa.csv.read_csv(
        pa.py_buffer(b",".join([b"x"] * len(names)) + b"\n" + data),
        pa.csv.ReadOptions(use_threads=False, block_size=len(data) + 1000, column_names=names),
        pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=put_aside),
        pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
    )
    numbers = [n for n in range(1, table.num_rows + len(aside) + 1) if n not in aside]
    rows = list(zip(*(table[name].to_pylist() for name in names), strict=True))
    placed = [(*row, number - 1) for row, number in zip(rows, numbers, strict=True)]
    return placed[1:], [(number - 1, said) for number, said in aside.items()]


@given(
    st.lists(st.lists(st.sampled_from(WORDS), max_size=5), max_size=25),
    st.integers(1, 4),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.sampled_from([3, 7, 20, 64, 1 << 20]),
)
def test_a_csv_file_is_the_same_rows_however_it_is_cut_and_by_whichever_parser(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[list[str]],
    width: int,
    end: str,
    whole: bool,
    size: int,
) -> None:
    # Half of all rows have the right width, and files of simple words go another way.
    rows = [(row * width)[:width] if row and len(row) % 2 else row for row in rows]
    text = end.join(map(",".join, rows)) + end * whole
    names = [f"c{number}" for number in range(width)]
    path = tmp_path_factory.getbasetemp() / "property.csv"
    path.write_text(",".join(names) + end + text, encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "BLOCK_BYTES", size)
        blocks = list(Delimited.open(str(path), Csv()).blocks(names))
    found = [row for block in blocks for row in block.frame.drop("_file").rows()]
    refused = [(number, said) for block in blocks for number, _, said in block.refused.rows()]
    assert (found, refused) == by_arrow(text.encode(), names)


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def csv_source(path: Path, **format: Any) -> Source:
    return source(path, format={"csv": format}, types={"a": "int"})


def test_rows_have_their_numbers_beside_long_and_short_ones_and_line_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 32)
    lines = ["note", "a,b", '1,"x\n\ny"', "2", "", "3,z", "4,z,z", '5,"', '"', "6,last"]
    path = write(tmp_path / "x.csv", "\n".join(lines))
    opened = open_(csv_source(path, skip_rows=1))
    assert rows_of(opened).select("a", "_row", "b").rows() == [
        ("1", 1, "x\n\ny"),
        ("3", 3, "z"),
        ("5", 5, "\n"),
        ("6", 6, "last"),
    ]
    assert refused_of(opened) == [
        (2, delimited.WRONG_WIDTH, "1 columns, not 2"),
        (4, delimited.WRONG_WIDTH, "3 columns, not 2"),
    ]
    assert rows_of(opened, "b").columns == ["b", "_file", "_row"]


TEXTS: dict[str, tuple[bytes, dict[str, Any]]] = {
    "byte order mark": (b"\xef\xbb\xbfa,b\n1,\xc3\xbc\n", {}),
    "utf-8-sig": (b"\xef\xbb\xbfa,b\n1,\xc3\xbc\n", {"encoding": "utf-8-sig"}),
    "utf-16": ("a,b\n1,ü\n".encode("utf-16"), {"encoding": "utf-16"}),
    "cp1252": (b"a,b\r\n1,\xfc\r\n", {"encoding": "cp1252"}),
    "no last line break": ("a,b\n1,ü".encode(), {}),
    "old Mac": ("a,b\r1,ü\r".encode(), {}),
    "other signs": ("a|b\n'1'|'ü'\n".encode(), {"delimiter": "|", "quote": "'"}),
    "no quotes": ("a\tb\n1\tü\n".encode(), {"delimiter": "\t", "quote": ""}),
    "no header": ("1,ü\n".encode(), {"names": ["a", "b"]}),
}


@pytest.mark.parametrize("what", TEXTS)
def test_text_is_read_in_every_encoding_and_dialect(what: str, tmp_path: Path) -> None:
    text, format = TEXTS[what]
    opened = open_(csv_source(write(tmp_path / "x.csv", text), **format))
    assert rows_of(opened).drop("_file").rows() == [("1", "ü", 1)]


def test_a_header_alone_is_no_row_a_thousand_columns_and_a_long_line_are_rows(tmp_path: Path) -> None:
    assert list(open_(csv_source(write(tmp_path / "none.csv", "a,b\n"))).blocks(["a"])) == []
    names = [f"c{number}" for number in range(1000)]
    wide = write(tmp_path / "wide.csv", ",".join(names) + "\n" + ",".join(map(str, range(1000))) + "\n")
    found = rows_of(open_(csv_source(wide)))
    assert found.select(names).row(0) == tuple(map(str, range(1000)))
    long = "x" * (3 * delimited.BLOCK_BYTES)
    found = rows_of(open_(csv_source(write(tmp_path / "long.csv", f"a,b\n1,{long}\n2,y\n"))))
    assert found["b"].str.len_bytes().to_list() == [len(long), 1]
    assert found["_row"].to_list() == [1, 2]


def test_a_quote_that_never_ends_is_found_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(delimited, "LONGEST_ROW_BYTES", 10_000)
    path = write(tmp_path / "x.csv", "a,b\n" + "1,2\n" * 600 + '3,"' + "4,5\n" * 9_000)
    with pytest.raises(
        DataError, match=r"after row 600: .* within 10000 bytes; are the format and its quote right\?"
    ):
        rows_of(open_(csv_source(path)))


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "utf-16"])
def test_bytes_that_are_no_text_are_told_with_about_their_row(encoding: str, tmp_path: Path) -> None:
    text = bytearray("a,b\n".encode(encoding) + "1,x\n".encode(encoding)[-8:] * 1_000_000)
    at = len(text) * 9 // 10 // 8 * 8
    text[at : at + 2] = b"\x00\xdc" if encoding == "utf-16" else b"\xff\xff"
    path = write(tmp_path / "x.csv", bytes(text))
    with pytest.raises(DataError) as error:
        rows_of(open_(csv_source(path, encoding=encoding)))
    assert str(error.value).startswith(f"{path}: not {encoding} text near row ")
    near = int(str(error.value).split("near row ")[1].split(" ")[0])
    assert abs(near - 900_000) < 10
    assert "say format.csv.encoding, e.g. latin-1" in str(error.value)


@pytest.mark.parametrize("sign", ["é", "\n"])
def test_a_delimiter_that_cannot_be_one_is_told(sign: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it is one ASCII character"):
        open_(csv_source(write(tmp_path / "x.csv", "a,b\n1,2\n"), delimiter=sign))


# ---------------------------------------------------------------- JSON lines


def json_lines(path: Path, *lines: str, **changes: Any) -> Reader:
    return open_(source(write(path / "x.jsonl", "\n".join(lines)), **{"types": {"a": "float"}, **changes}))


def test_json_values_come_as_what_they_are_or_as_text_where_they_are_mixed(tmp_path: Path) -> None:
    kinds = {
        "int": [1, -(2**63), None],
        "beyond": [2**63, 10**30, -1],
        "float": [0.1, 1e300, None],
        "both": [1, 2.5, 3],
        "large both": [2**53 + 1, 2.5, 3],
        "bool": [True, False, None],
        "mixed": [1, "x", True],
        "nested": [{"k": [1, None, 2.5]}, [], None],
        "text": ["", "ü", "\u0000"],
    }
    lines = [json.dumps({name: values[row] for name, values in kinds.items()}) for row in range(3)]
    found = rows_of(json_lines(tmp_path, *lines))
    assert found.select(*kinds).to_dict(as_series=False) == {
        **kinds,
        "beyond": [str(2**63), "1" + "0" * 30, "-1"],
        "both": ["1", "2.5", "3"],
        "large both": [str(2**53 + 1), "2.5", "3"],
        "float": ["0.1", "1e+300", None],
        "mixed": ["1", "x", "true"],
        "nested": ['{"k":[1,null,2.5]}', "[]", None],
    }


def test_json_numbers_keep_their_digits_in_a_column_of_text_and_are_floats_in_one_of_those(
    tmp_path: Path,
) -> None:
    digits, whole = "0.12345678901234567890", "123456789012345678901234567890"
    line = f'{{"a": {digits}, "b": {digits}, "c": 7.0, "d": {whole}}}'
    types = {"a": "float", "b": "string", "c": "category", "d": "string"}
    spec = source(write(tmp_path / "x.jsonl", line), types=types)
    assert typed(spec) == [(float(digits), digits, "7.0", whole)]


def test_a_line_that_is_no_object_is_refused_and_not_quoted_and_an_empty_one_counts(tmp_path: Path) -> None:
    lines = [
        '{"a": 1}',
        "",
        '{"a": 2',
        "[3]",
        "   ",
        '{"a": "\\ud800"}',
        "NaN",
        '{"a": NaN}',
        '{"b": -Infinity}',
    ]
    opened = json_lines(tmp_path, *lines)
    assert opened.names == ["a", "b"]
    assert rows_of(opened)["_row"].to_list() == [1, 8, 9]
    assert refused_of(opened) == [
        (number, NOT_JSON, f"line of {length} characters")
        for number, length in ((3, 7), (4, 3), (6, 15), (7, 3))
    ]
    with pytest.raises(DataError, match="no line is a JSON object"):
        json_lines(tmp_path, "[1,", "2]")


def test_a_key_that_comes_late_is_found_where_the_source_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 100)
    lines = [*['{"a": 1}'] * 1500, '{"late": 2, "other": 3}']
    opened = json_lines(tmp_path, *lines, types={"a": "int", "renamed": "int"}, rename={"late": "renamed"})
    assert opened.names == ["a", "late"]
    assert rows_of(opened).tail(1).select("a", "late", "_row").rows() == [(None, 2, 1501)]


# ---------------------------------------------------------------- Parquet, Excel, SQLite


def test_every_type_of_parquet_is_one_that_a_schema_casts(tmp_path: Path) -> None:
    instant = datetime(2016, 1, 1, 1, 2, 3, tzinfo=UTC)
    naive = instant.replace(tzinfo=None)
    columns: dict[str, tuple[pa.Array, str, Any]] = {
        "dictionary": (pa.array(["7", None]).dictionary_encode(), "float", 7.0),
        "decimal": (pa.array([Decimal("12345678901234567.50"), None]), "string", "12345678901234567.5"),
        "whole": (pa.array([Decimal("2.00"), None]), "int", 2),
        "wide": (pa.array([Decimal("1.5"), None], pa.decimal256(50, 3)), "float", 1.5),
        "date": (pa.array([date(2016, 1, 1), None]), "string", "2016-01-01"),
        **{
            f"in {unit}": (pa.array([instant, None], pa.timestamp(unit, zone)), "datetime", instant)
            for unit, zone in (("s", "Europe/Berlin"), ("ms", "+05:45"), ("us", "UTC"), ("ns", "UTC"))
        },
        "naive": (pa.array([naive, None]), "string", "2016-01-01 01:02:03.000000"),
        "large": (pa.array(["x", None], pa.large_string()), "category", "x"),
        "bytes": (pa.array([b"x", None]), "category", "x"),
        "other bytes": (pa.array([b"\xff\x00", None], pa.binary(2)), "string", "ff00"),
        "uuid": (pa.array([UUID(int=1).bytes, None], pa.uuid()), "string", str(UUID(int=1))),
        "list": (pa.array([[1, None], None]), "string", "[1,null]"),
        "struct": (pa.array([{"k": Decimal("1.5")}, None]), "string", '{"k":"1.5"}'),
        "unsigned": (pa.array([2**64 - 1, None], pa.uint64()), "string", str(2**64 - 1)),
        "half": (pa.array([1.5, None], pa.float16()), "float", 1.5),
        "null": (pa.nulls(2), "float", None),
    }
    table = pa.table({name: values for name, (values, _, _) in columns.items()})
    parquet.write_table(table, tmp_path / "x.parquet")
    spec = source(tmp_path / "x.parquet", types={name: kind for name, (_, kind, _) in columns.items()})
    expected = tuple(value for _, _, value in columns.values())
    assert typed(spec) == [expected, (None,) * len(columns)]


def test_cells_of_excel_keep_their_digits_dates_and_kinds(tmp_path: Path) -> None:
    path = tmp_path / "x.xlsx"
    write_excel(path)
    import openpyxl

    book = openpyxl.load_workbook(path)
    sheet = book.create_sheet("cells")
    for row in [
        (),
        ("a", None, "mixed"),
        (1 / 3, "unnamed", 1),
        (1e-12, None, "x"),
        (),
        (-1.5e-300, None, True),
        (12345678, None, datetime(2016, 1, 1, 1, 2, 3, 500_000)),
        ("0070", None, "=1/0"),
    ]:
        sheet.append(row)
    sheet["C8"].value, sheet["C8"].data_type = "#DIV/0!", "e"
    book.save(path)
    opened = open_(source(path, format={"excel": {"sheet": "cells"}}))
    assert opened.names == ["a", "mixed"]
    assert rows_of(opened).drop("_file").rows() == [
        ("0.3333333333333333", "1", 1),
        ("1e-12", "x", 2),
        ("-1.5e-300", "true", 4),
        ("12345678", "2016-01-01 01:02:03.500", 5),
        ("0070", None, 6),
    ]
    with pytest.raises(DataError, match=r"x\.xlsx: has no sheet 'rwos'; it has notes, rows, cells"):
        open_(source(path, format={"excel": {"sheet": "rwos"}}))


def test_what_is_not_installed_is_said_with_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("fastexcel", "adbc_driver_postgresql"):
        monkeypatch.setitem(sys.modules, module, None)
    write(tmp_path / "x.xlsx", "")
    with pytest.raises(DataError, match=r"pip install 'mlops_ray\[excel\]'"):
        open_(source(tmp_path / "x.xlsx"))
    with pytest.raises(DataError, match=r"pip install 'mlops_ray\[sql\]'"):
        open_(source(sql={"connection": "postgresql://host/db", "query": "SELECT 1"}))


def sqlite(path: Path, statement: str, query: str, **sql: Any) -> Source:
    connection = sqlite3.connect(path)
    connection.executescript(statement)
    connection.close()
    return source(sql={"connection": f"sqlite:///{path}", "query": query, **sql}, types={"a": "int"})


def test_values_of_other_types_in_a_column_of_sqlite_cost_nothing_but_their_rows(tmp_path: Path) -> None:
    made = """CREATE TABLE t (a, b);
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 70000)
        INSERT INTO t SELECT i, 'x' FROM n;
        INSERT INTO t VALUES ('x', 1.5), (x'ff', NULL);"""
    opened = open_(sqlite(tmp_path / "x.db", made, "SELECT * FROM t"))
    blocks = [block.frame for block in opened.blocks(["a"])]
    assert blocks[0]["a"].dtype == pl.Int64
    last = blocks[-1].tail(3)
    assert last.select("a", "_row").rows() == [("70000", 70_000), ("x", 70_001), ("ff", 70_002)]
    assert sum(frame.height for frame in blocks) == 70_002


def test_a_query_can_change_nothing(tmp_path: Path, server: PostgresServer) -> None:
    spec = sqlite(tmp_path / "x.db", "CREATE TABLE t (a)", "DELETE FROM t RETURNING a")
    with pytest.raises(DataError):
        rows_of(open_(spec))
    server.run(
        "CREATE TABLE kept AS SELECT 1 AS a",
        "CREATE FUNCTION spoil() RETURNS int LANGUAGE sql AS 'DELETE FROM kept RETURNING a'",
    )
    for text in (
        "SELECT spoil() AS a",
        "SELECT set_config('transaction_read_only', 'off', false), spoil() AS a",
        "DELETE FROM kept RETURNING a",
        "SELECT 1 AS a) AS q; DELETE FROM kept; SELECT * FROM (SELECT 1",
    ):
        with pytest.raises(DataError):
            rows_of(open_(query(server, text)))
    assert typed(query(server, "SELECT * FROM kept", types={"a": "int"})) == [(1,)]


AFTER: list[tuple[str, object, list[int]]] = [
    ("number", 4, [4, 5]),
    ("number", 4.5, [5]),
    ("instant", datetime(2016, 1, 4, tzinfo=UTC), [4, 5]),
    ("word", "w4", [4, 5]),
    ("word", "it's \\", [1, 2, 3, 4, 5]),
    # The day before, in whatever zone it was written.
    ("text", datetime(2016, 1, 4, tzinfo=UTC), [3, 4, 5]),
]


@pytest.mark.parametrize(("cursor", "after", "expected"), AFTER)
def test_rows_from_a_cursor_s_value_on_are_read_in_its_order(
    cursor: str, after: object, expected: list[int], tmp_path: Path, server: PostgresServer
) -> None:
    numbers = [3, 5, 1, 4, 2]
    values = ", ".join(
        f"({n}, '2016-01-0{n}T00:00:00Z', 'w{n}', '2016-01-0{n}T00:00:00+00:00')" for n in numbers
    )
    select = "SELECT * FROM news ORDER BY number DESC"
    names = "(number {}, instant {}, word text, text text)"
    made = f"CREATE TABLE news {names.format('int', 'text')}; INSERT INTO news VALUES {values};"
    here = sqlite(tmp_path / "x.db", made, select)
    server.run(
        "DROP TABLE IF EXISTS news",
        f"CREATE TABLE news {names.format('numeric', 'timestamptz')}",
        f"INSERT INTO news VALUES {values}",
    )
    for spec in (here, query(server, select)):
        sql = spec.inputs[0].sql
        assert sql is not None
        file = File(sql=sql.model_copy(update={"cursor": cursor}))
        is_text = spec is here and cursor == "instant"
        found = rows_of(reader(file, spec, after), "number")["number"].cast(pl.Int64).to_list()
        assert found == ([3, *expected] if is_text else expected)
        assert rows_of(reader(file, spec), "number")["number"].cast(pl.Int64).to_list() == [5, 4, 3, 2, 1]


# ---------------------------------------------------------------- PostgreSQL


def test_types_of_postgresql_come_as_what_they_are_or_as_text(server: PostgresServer) -> None:
    server.run("CREATE TYPE mood AS ENUM ('good', 'bad')")
    values: dict[str, tuple[str, Any]] = {
        "1::smallint": ("int", 1),
        "(2^40)::bigint": ("int", 2**40),
        "0.1::float8": ("float", 0.1),
        "12345678901234567890.1230::numeric": ("string", "12345678901234567890.123"),
        "2.00::numeric(10,2)": ("int", 2),
        "'NaN'::numeric": ("float", None),
        "true": ("bool", True),
        "'ü'::varchar(9)": ("category", "ü"),
        "date '2016-01-01'": ("string", "2016-01-01"),
        "timestamp '2016-01-01 01:02'": ("string", "2016-01-01 01:02:00.000000"),
        "timestamptz '2016-01-01 01:00+01'": ("datetime", datetime(2016, 1, 1, tzinfo=UTC)),
        "timestamptz 'infinity'": ("datetime", None),
        "time '01:02'": ("string", "01:02:00"),
        "interval '1 day'": ("string", "1 day"),
        """'{"k": [1, 2.50]}'::json""": ("string", '{"k": [1, 2.50]}'),
        """'{"k": 2.50}'::jsonb""": ("string", '{"k": 2.50}'),
        "'00000000-0000-0000-0000-000000000001'::uuid": ("string", str(UUID(int=1))),
        "'bad'::mood": ("category", "bad"),
        "ARRAY[1, NULL]": ("string", "[1,null]"),
        "ARRAY['x']": ("string", '["x"]'),
        "inet '10.0.0.1'": ("string", "10.0.0.1/32"),
        "'x'::bytea": ("string", r"\x78"),
    }
    names = [f'c"{number}' for number in range(len(values))]
    columns = ", ".join(f'{value} AS "c""{number}"' for number, value in enumerate(values))
    types = {name: kind for name, (kind, _) in zip(names, values.values(), strict=True)}
    assert typed(query(server, f"SELECT {columns}", types=types)) == [
        tuple(value for _, value in values.values())
    ]


CONNECTIONS = {
    "wrong password": (
        "postgresql://guest:WRONG@127.0.0.1:{port}/postgres",
        "password authentication failed",
    ),
    "unescaped password": ("postgresql://guest:{raw}@127.0.0.1:{port}/postgres", "is written %3F"),
    "no such database": (
        "postgresql://guest:{quoted}@127.0.0.1:{port}/none",
        'database "none" does not exist',
    ),
    "no such host": ("postgresql://guest:{quoted}@host.invalid/postgres", "could not translate host name"),
    "nobody listens": ("postgresql://guest:{quoted}@127.0.0.1:{free}/postgres", "Connection refused"),
    "password as an option": (
        "postgresql:///postgres?host=127.0.0.1&port={port}&user=guest&password=WRONG",
        "failed",
    ),
    "wrong query": (
        "postgresql://guest:{quoted}@127.0.0.1:{port}/postgres",
        'relation "none" does not exist',
    ),
    "not a connection": (
        "mysql://guest:{quoted}@127.0.0.1/postgres",
        "a connection is sqlite:///FILE or postgresql",
    ),
    "no such file": ("sqlite:////none/x.db", "no such database file: /none/x.db"),
}


@pytest.mark.parametrize("what", CONNECTIONS)
def test_a_database_that_cannot_be_read_is_one_sentence_without_the_password(
    what: str, server: PostgresServer
) -> None:
    connection, says = CONNECTIONS[what]
    filled = connection.format(port=server.port, free=1, raw=PASSWORD, quoted=quote(PASSWORD, safe=""))
    with pytest.raises(DataError) as error:
        open_(source(sql={"connection": filled, "query": "SELECT * FROM none"}))
    message = str(error.value)
    assert says in message
    assert message.startswith(filled.partition("://")[0])
    assert "\n" not in message
    for secret in (PASSWORD, quote(PASSWORD, safe=""), "WRONG", "p@ss", "w%rd"):
        assert secret not in message


def test_a_password_may_be_written_as_it_is_said(server: PostgresServer) -> None:
    spec = source(
        sql={
            # Of the signs in it only the ? must be written otherwise.
            "connection": server.url(f"guest:{PASSWORD.replace('?', '%3F')}"),
            "query": "SELECT 1 AS a",
        },
        types={"a": "int"},
    )
    assert typed(spec) == [(1,)]


@pytest.mark.parametrize("how", ["session", "server"])
def test_a_server_that_goes_away_is_told_with_the_row_behind_which_it_did(
    how: str, server: PostgresServer
) -> None:
    server.run(
        "CREATE TABLE IF NOT EXISTS long AS"
        " SELECT i AS a, repeat('x', 500) AS b FROM generate_series(1, 200000) i"
    )
    rows = 0
    with pytest.raises(DataError) as error:
        for block in open_(query(server, "SELECT * FROM long")).blocks(["a", "b"]):
            rows += block.frame.height
            if rows == block.frame.height:
                if how == "session":
                    server.run(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE query LIKE 'COPY%' AND pid <> pg_backend_pid()"
                    )
                else:
                    server.stop(signal.SIGQUIT)
    if how == "server":
        server.start()
    assert 0 < rows < 200_000
    assert f": cannot be read after row {rows}: " in str(error.value)
    assert str(error.value).startswith("postgresql://127.0.0.1")


# ---------------------------------------------------------------- what is broken


def damaged_csv() -> bytes:
    return b"a,b\n" + b"".join(b"%d,%d\n" % (n, random.Random(n).getrandbits(60)) for n in range(100_000))


BROKEN: dict[str, tuple[bytes, str]] = {
    "x.csv.gz": (gzip.compress(damaged_csv())[:-9], "cannot be read after row"),
    "x.csv.zst": (pa.compress(damaged_csv(), codec="zstd", asbytes=True)[:-9], "cannot be read after row"),
    "x.csv.xz": (lzma.compress(damaged_csv())[:-9], "cannot be read after row"),
    "x.jsonl.gz": (
        gzip.compress(b'{"a": 1, "b": "%s"}\n' % (b"x" * 90) * 100_000)[:-9],
        "cannot be read after row",
    ),
    "x.parquet": (b"PAR1" + b"x" * 100, "cannot be read: "),
    "x.xlsx": (b"PK\x03\x04" + b"x" * 100, "cannot be read: "),
    "empty.csv": (b"", "the file is empty"),
    "empty.jsonl": (b"", "the file is empty"),
    "empty.parquet": (b"", "cannot be read: "),
    "empty.xlsx": (b"", "cannot be read: "),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_sentence_with_its_name(name: str, tmp_path: Path) -> None:
    content, says = BROKEN[name]
    path = write(tmp_path / name, content)
    with pytest.raises(DataError) as error:
        rows_of(open_(source(path, types={"a": "int"})))
    assert str(error.value).startswith(f"{path}: {says}")
    assert "\n" not in str(error.value)


def test_a_parquet_file_or_database_that_is_cut_off_is_one_sentence(tmp_path: Path) -> None:
    numbers = pa.table({"a": [random.Random(number).random() for number in range(10_000)]})
    parquet.write_table(numbers, tmp_path / "x.parquet", write_page_checksum=True)
    whole = (tmp_path / "x.parquet").read_bytes()
    write(tmp_path / "x.parquet", whole[:1000] + b"\0" * 9000 + whole[10_000:])
    write(tmp_path / "x.db", "no database")
    for spec in (
        source(tmp_path / "x.parquet"),
        source(sql={"connection": f"sqlite:///{tmp_path / 'x.db'}", "query": "SELECT * FROM t"}),
    ):
        with pytest.raises(DataError, match="cannot be read"):
            rows_of(open_(spec))


# ---------------------------------------------------------------- what a hostile input costs


def workbook(path: Path, sheet: str) -> Path:
    """A workbook whose only sheet holds these rows of XML."""
    from openpyxl import Workbook

    book = Workbook()
    book.active.append(["id"])
    book.save(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = "xl/worksheets/sheet1.xml"
    head = parts[name].partition(b"<sheetData>")[0]
    parts[name] = head + f"<sheetData>{sheet}</sheetData></worksheet>".encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for part, data in parts.items():
            archive.writestr(part, data)
    return path


CELL = '<row r="1"><c r="A1" t="inlineStr"><is><t>id</t></is></c></row>'
SHEETS = {
    "a corner": (f'{CELL}<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>', "more than 50000000 cells"),
    "other words": (f"{CELL}<row r = '99999'><c s='0'\n r='XFD99999'><v>1</v></c></row>", "50000000 cells"),
    "no places": (f'{CELL}<row r="1048575"/><row>{"<c/>" * 60}</row>', "more than 50000000 cells"),
    "beyond": (f'{CELL}<row r="2"><c r="XFE2"><v>1</v></c></row>', "beyond XFD1048576"),
    "no row": (f'{CELL}<row r="1048577"><c r="A1048577"><v>1</v></c></row>', "beyond XFD1048576"),
    "far beyond": (f'{CELL}<row r="2"><c r="AAAAAA{"9" * 9000}"><v>1</v></c></row>', "beyond XFD1048576"),
}


@pytest.mark.parametrize("name", SHEETS)
def test_a_sheet_whose_cells_would_not_fit_is_refused_before_it_takes_memory(
    name: str, tmp_path: Path
) -> None:
    sheet, says = SHEETS[name]
    path = workbook(tmp_path / "x.xlsx", sheet)
    with pytest.raises(DataError, match=says) as error:
        open_(source(path))
    assert str(error.value).startswith(str(path))


def test_a_workbook_that_unpacks_to_more_than_it_may_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = workbook(tmp_path / "x.xlsx", CELL + " " * 5_000_000)
    assert open_(source(path)).names == ["id"]
    monkeypatch.setattr(readers, "BOOK_BYTES", 1 << 20)
    with pytest.raises(DataError, match="more than 1048576 bytes"):
        open_(source(path))


def no_text() -> pa.Array:
    ends = pa.array([0, 2, 4], pa.int32()).buffers()[1]
    return pa.Array.from_buffers(pa.string(), 2, [None, ends, pa.py_buffer(b"\xff\xfe\xc3\x28")])


NO_VALUES = {
    "day": pa.array([0, 2**31 - 1], pa.date32()),
    "text": no_text(),
    "texts": pa.ListArray.from_arrays([0, 1, 2], no_text()),
    "durations": pa.array([[2**62]] * 2, pa.list_(pa.duration("s"))),
}


@pytest.mark.parametrize("name", NO_VALUES)
def test_values_of_parquet_that_are_none_are_one_sentence(name: str, tmp_path: Path) -> None:
    parquet.write_table(pa.table({"id": NO_VALUES[name]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet: cannot be read after row 0"):
        rows_of(open_(source(tmp_path / "x.parquet")))


def test_times_without_end_and_durations_cost_no_more_than_their_rows(tmp_path: Path) -> None:
    columns: dict[str, tuple[pa.Array, str, list[Any]]] = {
        "long": (
            pa.array([0, 2**62, None], pa.timestamp("us", "UTC")),
            "datetime",
            [datetime(1970, 1, 1, tzinfo=UTC), None, None],
        ),
        "milli": (
            pa.array([0, -(2**62), None], pa.timestamp("ms")),
            "category",
            ["1970-01-01 00:00:00.000", str(-(2**62)), None],
        ),
        "time": (pa.array([1, 3600, None], pa.time32("s")), "category", ["00:00:01", "01:00:00", None]),
        "fine": (pa.array([1500000, 0, None], pa.time64("us")), "category", ["00:00:01.5", "00:00:00", None]),
        "span": (pa.array([1, -5, None], pa.duration("s")), "category", ["1 s", "-5 s", None]),
    }
    table = pa.table({name: values for name, (values, _, _) in columns.items()})
    parquet.write_table(table, tmp_path / "x.parquet")
    spec = source(tmp_path / "x.parquet", types={name: kind for name, (_, kind, _) in columns.items()})
    assert typed(spec) == list(zip(*(values for _, _, values in columns.values()), strict=True))


def write_repeated(path: Path, texts: pa.Array) -> None:
    if path.name == "table":
        pl.DataFrame({"id": pl.Series(texts)}).write_delta(path)
    else:
        parquet.write_table(pa.table({"id": texts}), path)


@pytest.mark.parametrize(
    ("name", "is_category"), [("x.parquet", False), ("x.parquet", True), ("table", False)]
)
def test_a_long_text_that_a_dictionary_repeats_is_decoded_for_few_rows_at_a_time(
    name: str, is_category: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "BATCH_BYTES", 1 << 20)
    decoded, sizes = values.decoded, list[int]()
    monkeypatch.setattr(
        values, "decoded", lambda batch: sizes.append(decoded(batch).nbytes) or decoded(batch)
    )
    texts = pa.array(["a"] * 100 + ["x" * 10_000] * 5_000 + ["b"] * 100)
    write_repeated(tmp_path / name, texts.dictionary_encode() if is_category else texts)
    frames = [block.frame for block in open_(source(tmp_path / name, types={"id": "string"})).blocks(["id"])]
    assert pl.concat(frames)["id"].to_list() == texts.to_pylist()
    assert max(sizes) <= 1.01 * (1 << 20)
    assert len(frames) < 60


def test_a_few_long_texts_make_no_small_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BATCH_BYTES", 1 << 20)
    write_repeated(tmp_path / "x.parquet", pa.array(["a", "x" * 5_000] + ["b"] * 9_998))
    (block,) = open_(source(tmp_path / "x.parquet", types={"id": "string"})).blocks(["id"])
    assert block.frame.height == 10_000


@pytest.mark.parametrize("name", ["x.parquet", "x.db", "x.csv.zip", "x.jsonl.zip", "x.xlsx.zip"])
def test_a_name_inside_a_file_that_is_no_text_is_one_sentence(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    changes: dict[str, Any] = {}
    if name == "x.db":
        changes = {"sql": {"connection": f"sqlite:///{path}", "query": "SELECT * FROM t"}}
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE t (zzzz)")
    elif name == "x.parquet":
        parquet.write_table(pa.table({"zzzz": [1]}), path, store_schema=False)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("zzzzé", "id\n1\n")
    path.write_bytes(path.read_bytes().replace(b"zzzz", b"\xff\xfezz"))
    # A connection is cut to so many characters.
    where = "sqlite:///" if name == "x.db" else rf"x\.{name.partition('.')[2]}"
    with pytest.raises(DataError, match=f"{where}.*cannot be read"):
        rows_of(open_(source(path, **changes)))


@pytest.mark.parametrize(("name", "text"), [("x.csv", "a,b\n1,2\n3,4\n"), ("x.jsonl", '{"a":1}\n{"a":2}\n')])
def test_rows_of_which_no_column_is_read_are_rows(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert [block.frame["_row"].to_list() for block in open_(source(tmp_path / name)).blocks([])] == [[1, 2]]


def test_json_that_is_nested_without_end_costs_its_line(tmp_path: Path) -> None:
    deep = ["[" * depth + "]" * depth for depth in (98, 101, 1000, 1020, 100_000)]
    lines = [f'{{"id": 1.5, "note": {text}, "more": {more}}}' for text in deep for more in ("1", "NaN")]
    digits = '{"id": 1.5, "note": %s}' % ("1" * 5000)
    opened = json_lines(tmp_path, *lines, digits, *['{"id": "a", "note": 1}'] * 2, "{}")
    assert rows_of(opened, "id", "note")["_row"].to_list() == [1, 2, 12, 13, 14]
    assert [row[:2] for row in refused_of(opened)] == [(number, NOT_JSON) for number in range(3, 12)]


@pytest.mark.parametrize("line", ["{}", "x", ""])
def test_many_short_lines_come_in_blocks_of_some(line: str, tmp_path: Path) -> None:
    opened = json_lines(tmp_path, '{"id": 1}', *[line] * 200_000)
    sizes = [block.frame.height + block.refused.height for block in opened.blocks(["id"])]
    assert max(sizes) <= readers.ROWS
    assert sum(sizes) == (200_001 if line else 1)


def test_a_json_lines_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"id": 1}\n{"id": 2}\n', encoding="utf-8-sig")
    assert rows_of(open_(source(tmp_path / "x.jsonl")), "id")["id"].to_list() == [1, 2]


HIDDEN = [
    "postgresql://me:p%40s^s%2Fw@[::1]x/db",
    "postgresql://me:p@s^sword@127.0.0.1:9/db",
    "postgresql://me:p^w1234@127.0.0.1:1:2/db",
    "postgresql://me:p%5Ew1234@127.0.0.1/db?bad=1&password=sec^ret",
    "postgresql://me:p^w1234@127.0.0.1:1/db%zz",
    "postgresql://me@127.0.0.1:1/db?sslpassword=hunter2&foo=1",
    "postgresql://me@127.0.0.1:1/db?password=hun+ter2&foo=1",
    "postgresql://me@[::1/db?password=hun%2Bter2",
    "postgresql://me:abc/def@127.0.0.1:1/db",
]


@pytest.mark.parametrize("connection", HIDDEN)
def test_no_error_of_a_database_holds_a_password_in_any_form(connection: str) -> None:
    with pytest.raises(DataError) as error:
        open_(source(sql={"connection": connection, "query": "SELECT 1"}))
    message = str(error.value).lower()
    for part in (
        "s^s",
        "s%5es",
        "p^w",
        "p%5ew",
        "sec^",
        "sec%5e",
        "hunter",
        "hun+",
        "hun ter",
        "hun%2b",
        "abc",
    ):
        assert part not in message


def test_a_short_password_is_not_cut_out_of_words() -> None:
    with pytest.raises(DataError, match="what its driver says may hold the password"):
        open_(source(sql={"connection": "postgresql://me:a@127.0.0.1:1/database", "query": "SELECT 1"}))


# ---------------------------------------------------------------- memory and imports

#: Reads inputs to their ends, and after each tells its rows and the most memory that the process ever had.
CHILD = """
import sys
from mlops_ray.config import Source
from mlops_ray.data.inputs import find
from mlops_ray.data.readers import reader
for said in sys.argv[1:]:
    source = Source.model_validate_json(said)
    (file,) = find(source, "s")
    opened = reader(file, source)
    rows = sum(block.frame.height for block in opened.blocks(opened.names))
    print(rows, next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
#: Bytes of the smaller input, beyond which no reader needs more; the larger one has three times as many.
SIZES = {"x.csv": 64 << 20, "x.jsonl": 24 << 20, "x.parquet": 24 << 20, "postgres": 24 << 20}


def write_much(path: Path, size: int) -> None:
    """A file of about so many bytes."""
    row = {"a": 123456.789, "b": "a word or two", "c": 17, "d": "x" * 250}
    if path.suffix == ".parquet":
        numbers = pl.int_range(size // 8, eager=True)
        # One row group, whose values hardly repeat.
        rows = pl.DataFrame({"a": numbers.hash(1).reinterpret(signed=True)})
        rows.write_parquet(path, row_group_size=len(numbers), compression="uncompressed")
        return
    line = ",".join(map(str, row.values())) if path.suffix == ".csv" else json.dumps(row)
    lines = f"{line}\n" * 1000
    with path.open("w") as file:
        file.write(",".join(row) + "\n" if path.suffix == ".csv" else "")
        file.writelines([lines] * (size // len(lines)))


@pytest.mark.parametrize("name", SIZES)
def test_memory_does_not_grow_with_the_input(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    sources = []
    for size in (SIZES[name], 3 * SIZES[name]):
        if name == "postgres":
            server = request.getfixturevalue("server")
            text = f"SELECT i AS a, repeat(md5(i::text), 8) AS b FROM generate_series(1, {size // 270}) i"
            sources.append(query(server, text, types={"a": "float"}))
        else:
            write_much(tmp_path / f"{size}{name}", size)
            sources.append(source(tmp_path / f"{size}{name}", types={"a": "float"}))
    child = [sys.executable, "-c", CHILD, *(spec.model_dump_json() for spec in sources)]
    made = subprocess.run(child, capture_output=True, text=True, check=True).stdout
    (few, before), (many, after) = (map(int, line.split()) for line in made.splitlines())
    assert many > 2.9 * few > SIZES[name] / 400
    assert (after - before) << 10 < SIZES[name]


def test_readers_import_nothing_heavy() -> None:
    heavy = (
        "ray",
        "pandas",
        "deltalake",
        "fastexcel",
        "adbc_driver_postgresql",
        "pyarrow.dataset",
        "pyarrow.fs",
    )
    code = f"import sys, mlops_ray.data.readers; print([m for m in {heavy} if m in sys.modules])"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout == "[]\n"
