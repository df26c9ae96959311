"""Where rows come from: files of this machine, of object stores and of web servers, found and opened.

What has a scheme (`s3://`, `gs://`, `az://`, `abfss://`, `http://`, `https://`) lies elsewhere; who may read
there is said by the environment, never by the address.
"""

import contextlib
import glob
import hashlib
import http.client
import io
import lzma
import os
import re
import shutil
import sqlite3
import struct
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import polars as pl
import pyarrow as pa

from mlops_ray.config import File, Source
from mlops_ray.errors import DataError, one_line

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
#: Endings that say how a file is packed, and not what is in it.
PACKED = frozenset({*COMPRESSIONS, ".xz", ".zip"})
#: What reading an input raises that is damaged or not there, and a hostile one beyond.
UNREADABLE = (
    *(pa.ArrowException, OSError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(http.client.HTTPException, sqlite3.Error, UnicodeError),
    *(OverflowError, MemoryError, RecursionError, pl.exceptions.PanicException),
)
WEB = ("http", "https")
#: Where a place elsewhere is looked for; others are refused by name.
STORES = ("s3", "gs", "az", "abfss")
#: A store or server that does not take a call within it is down: they answer within a second.
CONNECT_S = 10
#: Silence in the midst of a file after which it is given up.
SILENCE_S = 60
#: How often a call is tried; with more, one to a store that is down takes minutes.
TRIES = 3
#: The same for Delta tables. Plain HTTP is used where the environment names such an address alone.
DELTA_OPTIONS = {
    "connect_timeout": f"{CONNECT_S}s",
    "max_retries": str(TRIES),
    "retry_timeout": f"{SILENCE_S}s",
    "allow_http": "true",
}
#: What a query's rows are called after: enough to know it again.
NAME_CHARACTERS = 80
#: What unpacking a file may take: xz -9 needs a quarter of it.
UNPACK_BYTES = 256 << 20
#: Of a packed file, what is read at a time.
PACKED_BYTES = 1 << 16
#: Who asks, in an address; its password may have a / of its own, where no port could stand.
_WHO = re.compile(r"(?<!abfss:/)(?<=:/)(/?)(?:[^/?\s]*|[^/\s[]*:(?!\d*(?:[/?#]|$))\S*)@")
#: What is asked of a web server, or of whatever takes NAME=VALUE; a ? alone may be one of a glob.
_ASKED = re.compile(r"(https?:/[^?\s]*\?|\?(?=\S*=))\S+", re.IGNORECASE)
#: The parts of a glob that mean more than themselves.
WILD = re.compile(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|.", re.DOTALL)
MEANINGS = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def find(source: Source, name: str) -> list[File]:
    """The files and queries of a source, globs resolved, each glob's files in order.

    Raises `DataError` for a path where there is none, and for a folder that is no Delta table.
    """
    found: list[File] = []
    for item in source.inputs:
        if item.path is None:
            found.append(item)
            continue
        title = escaped(item.path)
        try:
            paths = _matches(item.path)
        except UNREADABLE as error:
            raise DataError(f"source {name!r}: {title}: {why(error)}") from error
        if not paths:
            raise DataError(f"source {name!r}: no such file: {title}")
        if paths == [item.path] and _is_plain_folder(item.path, source.of(item)):
            hint = f"name its files, e.g. {title}/*.csv"
            raise DataError(f"source {name!r}: {title} is a folder and no Delta table; {hint}")
        found += [item.model_copy(update={"path": path}) for path in paths]
    return found


def fingerprint(file: File) -> str | None:
    """What tells a changed input from one that was read before; `None` where only reading it tells.

    Of a file its SHA-256, of a Delta table its version, elsewhere what the store or server says of it. Raises
    `DataError` where it is not there.
    """
    path = file.path
    if path is None:
        return None
    try:
        if is_delta(path):
            table = delta_table(path)
            return f"{table.metadata().id} version {table.version()}"
        if _scheme(path) in WEB:
            return _headers_of(path)
        if _scheme(path):
            return _object_of(path)
        _require_file(path)
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except UNREADABLE as error:
        raise DataError(f"cannot be read: {why(error)}", file=escaped(path)) from error


def shown(file: File) -> str:
    """What people know an input by: its path, or of a query the database, without who asks, and its words.

    >>> shown(File(sql={"connection": "postgresql://me:secret@host/db", "query": "SELECT 1"}))
    'postgresql://host/db: SELECT 1'
    """
    if file.sql is None:
        return escaped(str(file.path))
    words = " ".join(file.sql.query.split())
    return f"{database(file.sql.connection)}: {words}"[:NAME_CHARACTERS]


def escaped(path: str) -> str:
    """A path for a message: what may be secret in an address is left out, and what a terminal would not show
    as it is, is written out.

    >>> print(escaped("a\\nb.csv"), escaped("https://me:secret@host/a.csv?signature=secret"))
    a\\nb.csv https://host/a.csv?…
    """
    path = _without_secrets(path) if ":/" in path else path
    if path.isprintable():
        return path
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in path)


def _without_secrets(text: str) -> str:
    return _ASKED.sub(r"\1…", _WHO.sub(r"\1", text))


def database(connection: str) -> str:
    """A connection without user, password and options."""
    scheme, is_address, rest = connection.partition("://")
    if scheme == "sqlite":
        return connection
    if not (is_address and scheme.isalnum()):
        return "…"
    place, _, options = rest.partition("?")
    # Where the password has a ? of its own, nobody can tell what is what.
    return f"{scheme}://" + ("…" if "@" in options else place.rpartition("@")[2])


def kind(path: str) -> str:
    """The ending that says what is in a file, small, without that of a compression.

    >>> kind("s3://bucket/a.CSV.gz"), kind("https://host/b.jsonl?page=1"), kind("folder.d/c")
    ('.csv', '.jsonl', '')
    """
    return next((end for end in reversed(_endings(path)) if end not in PACKED), "")


def opened(path: str) -> Any:
    """The bytes of a file, decompressed by what it is called, as a stream to `read(n)` and close.

    Raises one of `UNREADABLE`, and `DataError` for a zip file that does not hold exactly one.
    """
    end = (_endings(path) or [""])[-1]
    if end == ".zip":
        return _only_member(path)
    raw = _stream(path)
    if end == ".xz":
        return io.BufferedReader(_Xz(raw), PACKED_BYTES)
    return pa.CompressedInputStream(raw, COMPRESSIONS[end]) if end in COMPRESSIONS else raw


def seekable(path: str) -> Any:
    """The bytes of a file as they lie there, to be read in any order."""
    if _scheme(path) not in WEB:
        system, inner = _system(path)
        return system.open_input_file(inner)
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    with _stream(path) as stream:
        shutil.copyfileobj(stream, copy)
    copy.seek(0)
    return copy


def is_delta(path: str) -> bool:
    """Whether a path is the folder of a Delta table."""
    return _is_folder(path.rstrip("/") + "/_delta_log")


def delta_table(path: str) -> Any:
    """The Delta table in a folder at its newest version; raises `OSError` where there is none."""
    import deltalake

    # Said, so that both ask the same server.
    options = DELTA_OPTIONS | ({"aws_endpoint_url": endpoint} if (endpoint := _s3_endpoint()) else {})
    with plainly(deltalake.exceptions.DeltaError):
        return deltalake.DeltaTable(path, storage_options=options if _scheme(path) else None)


def why(error: BaseException) -> str:
    """What one of `UNREADABLE` says, in one line, without what may be secret in an address."""
    return _without_secrets(one_line(error))[:200] or "it takes more memory than there is"


@contextlib.contextmanager
def plainly(*errors: type[Exception]) -> Iterator[None]:
    """Errors of a library as `OSError`, of one line."""
    try:
        yield
    except errors as error:
        raise OSError(one_line(error)) from error


def _require_file(path: str) -> None:
    """Raises `OSError` for what of this machine has no end, or none yet, and for a name that is no text."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise OSError(f"the name of {escaped(path)} is not UTF-8; rename it") from error
    place = Path(path)
    if place.exists() and not place.is_file() and not place.is_dir():
        raise OSError(f"{escaped(path)} is no regular file, but a pipe, a device or a socket")


def _scheme(path: str) -> str:
    scheme, separator, _ = path.partition("://")
    return scheme.lower() if separator else ""


def _endings(path: str) -> list[str]:
    plain = urlsplit(path).path if _scheme(path) in WEB else path
    return [end.lower() for end in PurePosixPath(plain).suffixes]


def _is_plain_folder(path: str, source: Source) -> bool:
    is_table = source.format is not None and source.format.delta is not None
    return not is_table and _is_folder(path) and not is_delta(path)


def _is_folder(path: str) -> bool:
    if _scheme(path) in WEB:
        return False
    system, inner = _system(path)
    return bool(system.get_file_info(inner).type == pa.fs.FileType.Directory)


def _matches(path: str) -> list[str]:
    """The paths that a path or glob stands for; of a folder among others only a Delta table is one."""
    if _scheme(path) in WEB:
        return [path]
    system, inner = _system(path)
    if system.get_file_info(inner).type != pa.fs.FileType.NotFound:
        return [path]
    if not glob.has_magic(inner):
        return []
    if _scheme(path):
        prefix = path[: len(path) - len(inner.partition("/")[2])]
        return sorted(prefix + name.partition("/")[2] for name in _objects(system, inner))
    found = sorted(glob.glob(path, recursive=True))
    for match in found:
        _require_file(match)
    return [match for match in found if not Path(match).is_dir() or is_delta(match)]


def _objects(store: Any, wild: str) -> list[str]:
    """The files of a store that a glob stands for."""
    # From the last folder that stands fast; the container itself is never a pattern.
    base = wild[: wild.rfind("/", 0, re.search(r"[*?[]", wild).start())]  # type: ignore[union-attr]
    pattern = re.compile(WILD.sub(_meaning, wild))
    selector = pa.fs.FileSelector(base, recursive=True, allow_not_found=True)
    files = (info.path for info in store.get_file_info(selector) if info.is_file)
    return [path for path in files if pattern.fullmatch(path)]


def _meaning(part: re.Match[str]) -> str:
    if len(part[0]) > 1 and part[0][0] == "[":
        return part[0].replace("\\", r"\\").replace("[!", "[^", 1)
    return MEANINGS.get(part[0]) or re.escape(part[0])


def _system(path: str) -> tuple[Any, str]:
    """The file system of a path, and the place in it: in a store it begins with the bucket or container."""
    import pyarrow.fs as systems

    scheme, inner = _scheme(path), path.partition("://")[2]
    if not scheme:
        _require_file(path)
        return systems.LocalFileSystem(), path
    if scheme not in STORES:
        raise OSError(f"no files are read from {scheme}://; known here: {', '.join((*STORES, *WEB))}")
    container, _, key = inner.partition("/")
    if scheme == "abfss":
        container, _, host = container.partition("@")
        return _azure(host.partition(".")[0]), f"{container}/{key}"
    if _WHO.search(path):
        raise OSError("the address says who reads; give that by the environment (AWS_ACCESS_KEY_ID, …)")
    if scheme == "az":
        return _azure(os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")), inner
    if scheme == "gs":
        return systems.GcsFileSystem(retry_time_limit=timedelta(seconds=CONNECT_S)), inner
    return _s3(container), inner


def _azure(account: str) -> Any:
    if not account:
        raise OSError(
            "set AZURE_STORAGE_ACCOUNT_NAME, or write abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/…"
        )
    return pa.fs.AzureFileSystem(account, account_key=os.environ.get("AZURE_STORAGE_ACCOUNT_KEY"))


def _s3(bucket: str) -> Any:
    endpoint = _s3_endpoint()
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None:
        region = "us-east-1" if endpoint else pa.fs.resolve_s3_region(bucket)
    scheme, _, place = (endpoint or "https://").partition("://")
    return pa.fs.S3FileSystem(
        region=region,
        scheme=scheme,
        endpoint_override=place.rstrip("/") or None,
        connect_timeout=CONNECT_S,
        request_timeout=SILENCE_S,
        retry_strategy=pa.fs.AwsStandardS3RetryStrategy(max_attempts=TRIES),
    )


def _s3_endpoint() -> str | None:
    # Arrow itself looks at neither.
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _stream(path: str) -> Any:
    if _scheme(path) in WEB:
        return pa.PythonFile(_Body(_called(path)), "r")
    system, inner = _system(path)
    return system.open_input_stream(inner, compression=None)


def _called(url: str) -> Any:
    if _WHO.search(url):
        raise OSError("the address says who reads; use one without it")
    return urllib.request.urlopen(url, timeout=SILENCE_S)  # noqa: S310 - http and https alone come here


class _Over(io.RawIOBase):
    """A stream over another one, which it closes."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.inner.close()
        super().close()


class _Body(_Over):
    """A web server's answer, which Python would take for whole where the connection breaks."""

    def read(self, size: int = -1) -> bytes:
        data: bytes = self.inner.read(size if size >= 0 else None)
        if not data and size and self.inner.length:
            raise OSError(f"the server ended the file {self.inner.length} bytes too early")
        return data


class _Xz(_Over):
    """A file of xz, unpacked in bounded memory whatever it asks for."""

    rest = b""
    stream: lzma.LZMADecompressor | None = None

    def readinto(self, into: Any) -> int:
        while True:
            if not self.rest and (self.stream is None or self.stream.needs_input):
                self.rest = self.inner.read(PACKED_BYTES)
                if not self.rest and self.stream is not None:
                    raise EOFError("the file ends before its end")
                if not self.rest:
                    return 0
            if self.stream is None:
                # Another one may follow, behind zeros.
                self.rest = self.rest.lstrip(b"\0")
                if not self.rest:
                    continue
                self.stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=UNPACK_BYTES)
            data, self.rest = self.stream.decompress(self.rest, len(into)), b""
            if self.stream.eof:
                self.rest, self.stream = self.stream.unused_data, None
            if data:
                into[: len(data)] = data
                return len(data)


def _headers_of(url: str) -> str | None:
    with _called(url) as answer:
        said = [answer.headers.get(name) for name in ("ETag", "Last-Modified", "Content-Length")]
    # A length alone stays while the content changes. What is asked does not stand in the name of an input.
    return " ".join([*filter(None, said), urlsplit(url).query]) if any(said[:2]) else None


def _object_of(path: str) -> str:
    system, inner = _system(path)
    with system.open_input_file(inner) as file:
        tag = (file.metadata() or {}).get("ETag", b"").decode()
    info = system.get_file_info(inner)
    return f"{info.size} bytes of {tag or info.mtime_ns}"


def _only_member(path: str) -> Any:
    """The one file that a zip file holds."""
    # It may be encrypted, packed in a way that Python does not know, or its names or numbers are none.
    with plainly(RuntimeError, ValueError, struct.error):
        _require_file(path)
        # Arrow's own file of this machine refuses the places that a damaged zip file names.
        with zipfile.ZipFile(seekable(path) if _scheme(path) else path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if len(members) != 1:
                raise DataError(
                    f"holds {len(members)} files; a zip file must hold exactly one", file=escaped(path)
                )
            if members[0].compress_type == zipfile.ZIP_LZMA:
                raise OSError("it is packed by LZMA, whose memory has no bound; pack it by deflate")
            return pa.PythonFile(archive.open(members[0]), "r")
