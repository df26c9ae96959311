"""Inputs are found and opened wherever they lie, and known again when they have not changed."""

import bz2
import gzip
import http.server
import io
import lzma
import os
import re
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from mlops_ray.config import File, Source
from mlops_ray.data import inputs
from mlops_ray.data.inputs import find, fingerprint, kind, opened, shown
from mlops_ray.data.readers import reader
from mlops_ray.errors import DataError

from ..servers import PASSWORD, free_port, s3_store

CONTENT = b"".join(b"%d;%d\n" % (number, number * 7919 % 1009) for number in range(50_000))


def zipped(content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/x.csv", content)
    return packed.getvalue()


PACKED: dict[str, Any] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
    ".zip": zipped,
}


def source(*paths: str, **changes: Any) -> Source:
    return Source.model_validate(
        {"path": list(paths), "time": "none", "columns": {"a": {"type": "int"}}, **changes}
    )


def found(*paths: object, **changes: Any) -> list[str | None]:
    return [file.path for file in find(source(*map(str, paths), **changes), "s")]


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    with s3_store("bucket") as client:
        yield client


class _Pages(http.server.BaseHTTPRequestHandler):
    """Serves `PAGES`; a page named `cut` ends before it said it would."""

    def do_GET(self) -> None:
        content = PAGES.get(self.path.partition("?")[0])
        self.send_response(200 if content is not None else 404)
        length = len(content or b"") + (1000 if "cut" in self.path else 0)
        self.send_header("Content-Length", str(length))
        if "bare" not in self.path:
            self.send_header("ETag", f'"{hash(content)}"')
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *_: object) -> None:
        pass


PAGES: dict[str, bytes] = {}


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def read_all(path: str) -> bytes:
    parts = []
    with opened(path) as stream:
        while part := stream.read(100_000):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("end", PACKED)
def test_a_file_is_unpacked_by_its_name_wherever_it_lies(
    end: str, tmp_path: Path, store: Any, web: str
) -> None:
    packed = PACKED[end](CONTENT)
    path = tmp_path / f"x.csv{end}"
    path.write_bytes(packed)
    store.put_object(Bucket="bucket", Key=path.name, Body=packed)
    PAGES[f"/{path.name}"] = packed
    for place in (str(path), f"s3://bucket/{path.name}", f"{web}/{path.name}?signed=1"):
        assert read_all(place) == CONTENT
        assert kind(place) == ".csv"


@pytest.mark.parametrize("end", sorted(PACKED.keys() - {""}))
@pytest.mark.parametrize("kept", [0.5, 0.999])
def test_a_packed_file_that_is_cut_off_is_not_taken_for_a_whole_one(
    end: str, kept: float, tmp_path: Path
) -> None:
    packed = PACKED[end](CONTENT)
    (tmp_path / f"x{end}").write_bytes(packed[: int(len(packed) * kept)])
    with pytest.raises(inputs.UNREADABLE):
        read_all(str(tmp_path / f"x{end}"))


def test_several_parts_packed_one_after_the_other_are_one_file(tmp_path: Path) -> None:
    for end in PACKED.keys() - {"", ".zip"}:
        (tmp_path / f"x{end}").write_bytes(PACKED[end](b"a\n") + PACKED[end](b"b\n"))
        assert read_all(str(tmp_path / f"x{end}")) == b"a\nb\n"


NAMES = ("a/1.csv", "a/2.csv", "a/b/3.csv", "a/b/c/4.csv", "a/5.txt", "x[1].csv", "x1.csv")
GLOBS = {
    "a/*.csv": ["a/1.csv", "a/2.csv"],
    "a/**/*.csv": ["a/1.csv", "a/2.csv", "a/b/3.csv", "a/b/c/4.csv"],
    "a/?.csv": ["a/1.csv", "a/2.csv"],
    "a/[!2-9].*": ["a/1.csv"],
    "*/b/*.csv": ["a/b/3.csv"],
    "a/*": ["a/1.csv", "a/2.csv", "a/5.txt"],
    "x[1].csv": ["x[1].csv"],
    "x[0-9].csv": ["x1.csv"],
}


def test_globs_find_the_same_files_on_disk_and_in_a_store(tmp_path: Path, store: Any) -> None:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        store.put_object(Bucket="bucket", Key=f"globs/{name}", Body=b"")
    for pattern, names in GLOBS.items():
        assert found(tmp_path / pattern) == [str(tmp_path / name) for name in names]
        assert found(f"s3://bucket/globs/{pattern}") == [f"s3://bucket/globs/{name}" for name in names]


@pytest.mark.parametrize("place", ["disk", "store"])
def test_what_is_not_there_is_one_sentence_with_its_path(place: str, tmp_path: Path, store: Any) -> None:
    store.put_object(Bucket="bucket", Key="folder/x.csv", Body=b"")
    (tmp_path / "folder").mkdir()
    root = {"disk": str(tmp_path), "store": "s3://bucket"}[place]
    for path, says in {
        f"{root}/none.csv": "no such file",
        f"{root}/none/*.csv": "no such file",
        f"{root}/folder": "is a folder and no Delta table; name its files, e.g.",
    }.items():
        with pytest.raises(DataError, match=says) as error:
            found(path)
        assert "source 's': " in str(error.value)
        assert path in str(error.value)


def test_a_store_that_cannot_be_used_is_one_sentence_at_once(
    monkeypatch: pytest.MonkeyPatch, store: Any
) -> None:
    started = time.monotonic()
    for path, says in {
        "s3://nobucket/*.csv": "no such file",
        "ftp://host/x.csv": r"no files are read from ftp://; known here: s3, gs",
        "az://container/x.csv": "AZURE_STORAGE_ACCOUNT_NAME",
        "s3://me:s3cret@bucket/x.csv": "the address says who reads",
    }.items():
        with pytest.raises(DataError, match=says) as error:
            found(path)
        assert "\n" not in str(error.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(DataError, match="Could not connect to server") as error:
        found("s3://bucket/x.csv")
    assert PASSWORD not in str(error.value)
    assert time.monotonic() - started < 20


ADDRESSES = {
    "http://me:s3cret@127.0.0.1:1/x.csv?sig=t0ken": "http://127.0.0.1:1/x.csv?…",
    "https://127.0.0.1:1/x.csv?t0ken": "https://127.0.0.1:1/x.csv?…",
    "http://me:s3/cret@127.0.0.1:1/x.csv": "http://127.0.0.1:1/x.csv",
    "http://me:s3?cret@127.0.0.1:1/x.csv": "http://127.0.0.1:1/x.csv",
    "http://127.0.0.1:1/@me/x y.csv?sig=t0ken": "http://127.0.0.1:1/@me/x y.csv?…",
    "ftp://me:s3cret@host/x.csv": "ftp://host/x.csv",
    "azure://me:s3cret@host/x.csv": "azure://host/x.csv",
    "s3://me:s3/cret@bucket/x.csv": "s3://bucket/x.csv",
    "az://container/x.csv?sig=t0ken": "az://container/x.csv?…",
    "https:/me:s3cret@host/x.csv?sig=t0ken": "https:/host/x.csv?…",
    # What is no secret.
    "abfss://container@account.dfs.core.windows.net/x.csv": None,
    "s3://bucket/a@2:30/day-?.csv": None,
    "/data/a?b=c@d.csv": None,
}


@pytest.mark.parametrize("path", ADDRESSES)
def test_no_name_and_no_error_of_an_input_shows_what_may_be_secret_in_its_address(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    name = shown(File(path=path))
    assert name == (ADDRESSES[path] or path)
    # It may be written out twice.
    assert inputs.escaped(name) == name
    if ADDRESSES[path] is not None:
        with pytest.raises(DataError) as error:
            fingerprint(find(source(path), "s")[0])
        assert not re.search("s3|cret|t0ken", str(error.value).replace("s3:", "").replace("s3,", ""))


@pytest.mark.parametrize("connection", ["host=x password=s3cret", "postgres:/me:s3cret@h", "a=b://s3cret"])
def test_a_connection_that_is_no_address_is_not_shown(connection: str) -> None:
    assert (
        shown(File.model_validate({"sql": {"connection": connection, "query": "SELECT 1"}})) == "…: SELECT 1"
    )


def test_a_page_asked_for_something_else_is_another_one_though_its_name_is_the_same(web: str) -> None:
    PAGES["/pages.csv"] = b"aa"
    one, two = (File(path=f"{web}/pages.csv?page={number}") for number in (1, 2))
    assert shown(one) == shown(two)
    assert fingerprint(one) != fingerprint(two)


def test_a_table_in_a_folder_is_found_as_one_input(tmp_path: Path) -> None:
    pl.DataFrame({"a": [1]}).write_delta(tmp_path / "table")
    assert found(tmp_path / "table") == [str(tmp_path / "table")]
    assert found(tmp_path / "*") == [str(tmp_path / "table")]


def test_a_local_file_has_changed_when_and_only_when_its_content_has(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(CONTENT)
    before = fingerprint(File(path=str(path)))
    os.utime(path, (0, 0))
    path.rename(tmp_path / "y.csv")
    assert fingerprint(File(path=str(tmp_path / "y.csv"))) == before
    path.write_bytes(CONTENT[:-2] + b"9\n")
    assert fingerprint(File(path=str(path))) != before
    with pytest.raises(DataError, match="cannot be read"):
        fingerprint(File(path=str(tmp_path / "none")))


def test_an_object_has_changed_when_its_content_has(store: Any) -> None:
    marks = []
    for body in (b"aa", b"aa", b"ab"):
        store.put_object(Bucket="bucket", Key="mark.csv", Body=body)
        marks.append(fingerprint(File(path="s3://bucket/mark.csv")))
    assert marks[0] == marks[1] != marks[2]


def test_a_table_has_changed_when_its_version_has(tmp_path: Path, store: Any) -> None:
    from deltalake import write_deltalake

    rows = pl.DataFrame({"a": [1]})
    options = {"AWS_ALLOW_HTTP": "true"}
    for path in (str(tmp_path / "table"), "s3://bucket/table"):
        write_deltalake(path, rows, storage_options=options)
        before = fingerprint(File(path=path))
        assert fingerprint(File(path=path)) == before
        write_deltalake(path, rows, mode="append", storage_options=options)
        assert fingerprint(File(path=path)) != before


def test_a_page_has_changed_when_its_server_says_so_and_a_query_only_reading_tells(web: str) -> None:
    marks = []
    for PAGES["/mark.csv"] in (b"aa", b"aa", b"ab"):
        marks.append(fingerprint(File(path=f"{web}/mark.csv")))
    assert marks[0] == marks[1] != marks[2]
    PAGES["/bare.csv"] = b""
    assert fingerprint(File(path=f"{web}/bare.csv")) is None
    query: Any = {"connection": "sqlite:///x.db", "query": "SELECT 1"}
    assert fingerprint(File(sql=query)) is None


def test_a_page_that_breaks_off_or_is_not_there_is_an_error(web: str) -> None:
    PAGES["/cut.csv"] = CONTENT
    with pytest.raises(OSError, match="ended the file 1000 bytes too early"):
        read_all(f"{web}/cut.csv")
    with pytest.raises(DataError, match=r"none\.csv: cannot be read: HTTP Error 404"):
        fingerprint(File(path=f"{web}/none.csv"))
    with pytest.raises(OSError, match="the address says who reads"):
        opened(web.replace("//", "//me:s3cret@"))


def test_a_parquet_file_of_a_web_server_is_read(web: str, tmp_path: Path) -> None:
    pl.DataFrame({"a": range(100)}).write_parquet(tmp_path / "x.parquet")
    PAGES["/x.parquet"] = (tmp_path / "x.parquet").read_bytes()
    spec = source(f"{web}/x.parquet")
    (file,) = find(spec, "s")
    (block,) = reader(file, spec).blocks(["a"])
    assert block.frame["a"].to_list() == list(range(100))


@pytest.mark.parametrize(
    ("connection", "name"),
    [
        (
            f"postgresql://me:{PASSWORD.replace('?', '%3F')}@host:5432/db?sslmode=require",
            "postgresql://host:5432/db",
        ),
        (f"postgresql://me:{PASSWORD}@host/db", "postgresql://…"),
        ("postgresql:///db?host=/run&password=s3cret", "postgresql:///db"),
        ("sqlite:////tmp/x.db", "sqlite:////tmp/x.db"),
    ],
)
def test_a_query_is_called_after_its_database_and_words_and_nobody_s_password(
    connection: str, name: str
) -> None:
    query: Any = {"connection": connection, "query": f"SELECT *\n  FROM t WHERE {'x' * 100}"}
    title = shown(File(sql=query))
    assert title.startswith(f"{name}: SELECT * FROM t WHERE x")
    assert len(title) == 80
    assert shown(File(path="/data/x.csv")) == "/data/x.csv"


# ---------------------------------------------------------------- what a hostile input costs


def test_a_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.csv")).write_text("a\n1\n")
    with pytest.raises(DataError, match=r"\\udcff\.csv is not UTF-8; rename it"):
        found(tmp_path / "*.csv")


def test_signs_that_a_terminal_obeys_are_written_out_in_messages(tmp_path: Path) -> None:
    (tmp_path / "x\n\x1b[31m.csv").write_text("")
    (tmp_path / "y\n\x1b[31m.jsonl").write_text("")
    files = find(source(str(tmp_path / "*")), "s")
    assert [shown(file) for file in files] == [
        rf"{tmp_path}/x\n\x1b[31m.csv",
        rf"{tmp_path}/y\n\x1b[31m.jsonl",
    ]
    for file in files:
        with pytest.raises(DataError, match=r"\\x1b.*: the file is empty") as error:
            reader(file, source(str(file.path)))
        assert str(error.value).isprintable()
    with pytest.raises(DataError, match=r"no such file: none\\n"):
        found("none\n")


@pytest.mark.parametrize("name", ["pipe.csv", "zero.csv", "zero.csv.zip", "zero.parquet"])
def test_what_is_no_file_is_not_waited_for(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.startswith("pipe"):
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    file = File(path=str(path))
    for attempt in (
        lambda: found(path),
        lambda: found(tmp_path / "*"),
        lambda: fingerprint(file),
        lambda: reader(file, source(str(path))),
    ):
        with pytest.raises(DataError, match="is no regular file, but a pipe, a device or a socket"):
            attempt()


def test_what_asks_for_much_memory_to_be_unpacked_is_refused(tmp_path: Path) -> None:
    alone = bytearray(lzma.compress(CONTENT, lzma.FORMAT_ALONE))
    alone[1:5] = b"\xff" * 4
    (tmp_path / "alone.csv.xz").write_bytes(alone)
    (tmp_path / "fine.csv.xz").write_bytes(lzma.compress(CONTENT, preset=9))
    with zipfile.ZipFile(tmp_path / "x.csv.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.csv", CONTENT)
    assert read_all(str(tmp_path / "fine.csv.xz")) == CONTENT
    for name in ("alone.csv.xz", "x.csv.zip"):
        file = File(path=str(tmp_path / name))
        with pytest.raises(DataError, match=f"{name}: cannot be read"):
            reader(file, source(str(file.path)))


def test_xz_streams_follow_one_another_behind_zeros(tmp_path: Path) -> None:
    packed = lzma.compress(CONTENT) + b"\0" * 8 + lzma.compress(b"") + lzma.compress(CONTENT) + b"\0" * 4
    (tmp_path / "x.csv.xz").write_bytes(packed)
    assert read_all(str(tmp_path / "x.csv.xz")) == CONTENT * 2
    (tmp_path / "x.csv.xz").write_bytes(packed + b"no xz")
    with pytest.raises((lzma.LZMAError, EOFError)):
        read_all(str(tmp_path / "x.csv.xz"))
