"""Where rows come from: files of this machine, of object stores and of web servers, found and opened.

What has a scheme (`s3://`, `gs://`, `az://`, `abfss://`, `http://`, `https://`) lies elsewhere; who may read
there is said by the environment, never by the address.
"""

import glob
import hashlib
import http.client
import io
import lzma
import os
import re
import shutil
import stat
import struct
import tempfile
import urllib.request
import zipfile
import zlib
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from mlops_ray.config import File, Source
from mlops_ray.errors import DataError, one_line

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
#: Endings that say how a file is packed, and not what is in it.
PACKED = frozenset({*COMPRESSIONS, ".xz", ".zip"})
#: What reading a damaged file, or one that is not there, raises.
UNREADABLE = (
    *(pa.ArrowException, OSError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    http.client.HTTPException,
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
#: What a query's rows are called after: enough to know it again.
NAME_CHARACTERS = 80
#: What unpacking a file may take: xz -9 needs a quarter of it.
UNPACK_BYTES = 256 << 20
#: Of a packed file, what is read at a time.
PACKED_BYTES = 1 << 16
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
            for path in paths:
                _require_file(path)
        except UNREADABLE as error:
            raise DataError(f"source {name!r}: {title}: {one_line(error)[:200]}") from error
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
        raise DataError(f"cannot be read: {one_line(error)[:200]}", file=escaped(path)) from error


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
    """A path for a message: what a terminal would not show as it is, is written out.

    >>> print(escaped("a\\nb.csv"))
    a\\nb.csv
    """
    if path.isprintable():
        return path
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in path)


def database(connection: str) -> str:
    """A connection without user, password and options."""
    scheme, _, rest = connection.partition("://")
    if scheme == "sqlite":
        return connection
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
    if not _scheme(path):
        _require_file(path)
        return pa.OSFile(path)
    if _scheme(path) not in WEB:
        store, inner = _store(path)
        return store.open_input_file(inner)
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    with _stream(path) as stream:
        shutil.copyfileobj(stream, copy)
    copy.seek(0)
    return copy


def is_delta(path: str) -> bool:
    """Whether a path is the folder of a Delta table."""
    if _scheme(path) in WEB:
        return False
    if not _scheme(path):
        return Path(path, "_delta_log").is_dir()
    store, inner = _store(path.rstrip("/") + "/_delta_log")
    return bool(store.get_file_info(inner).type == pa.fs.FileType.Directory)


def delta_table(path: str) -> Any:
    """The Delta table in a folder at its newest version; raises `OSError` where there is none."""
    import deltalake

    endpoint = _s3_endpoint() or ""
    options = {
        "connect_timeout": f"{CONNECT_S}s",
        "max_retries": str(TRIES),
        "retry_timeout": f"{SILENCE_S}s",
    }
    options |= {"AWS_ENDPOINT_URL": endpoint} if endpoint else {}
    options |= {"AWS_ALLOW_HTTP": "true"} if endpoint.startswith("http://") else {}
    try:
        return deltalake.DeltaTable(path, storage_options=options if _scheme(path) else None)
    except deltalake.exceptions.DeltaError as error:
        raise OSError(one_line(error)) from error


def _require_file(path: str) -> None:
    """Raises `OSError` for what of this machine has no end, or none yet, and for a name that is no text."""
    if _scheme(path):
        return
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise OSError(f"the name of {escaped(path)} is not UTF-8; rename it") from error
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(f"{escaped(path)} is no regular file, but a pipe, a device or a socket")


def _scheme(path: str) -> str:
    scheme, separator, _ = path.partition("://")
    return scheme.lower() if separator else ""


def _endings(path: str) -> list[str]:
    plain = urlsplit(path).path if _scheme(path) in WEB else path
    return [end.lower() for end in PurePosixPath(plain).suffixes]


def _is_plain_folder(path: str, source: Source) -> bool:
    if source.format is not None and source.format.delta is not None:
        return False
    if not _scheme(path):
        return Path(path).is_dir() and not is_delta(path)
    return _scheme(path) not in WEB and _is_folder(path) and not is_delta(path)


def _is_folder(path: str) -> bool:
    store, inner = _store(path)
    return bool(store.get_file_info(inner).type == pa.fs.FileType.Directory)


def _matches(path: str) -> list[str]:
    """The paths that a path or glob stands for; of a folder among others only a Delta table is one."""
    if _scheme(path) in WEB:
        return [path]
    if _scheme(path):
        return _objects(path)
    if Path(path).exists():
        return [path]
    found = sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else []
    return [match for match in found if not Path(match).is_dir() or is_delta(match)]


def _objects(path: str) -> list[str]:
    store, inner = _store(path)
    if store.get_file_info(inner).type != pa.fs.FileType.NotFound:
        return [path]
    if not glob.has_magic(inner):
        return []
    # From the last folder that stands fast; the container itself is never a pattern.
    base = inner[: inner.rfind("/", 0, re.search(r"[*?[]", inner).start())]  # type: ignore[union-attr]
    pattern = re.compile(WILD.sub(_meaning, inner))
    selector = pa.fs.FileSelector(base, recursive=True, allow_not_found=True)
    names = [info.path for info in store.get_file_info(selector) if info.is_file]
    prefix = path[: len(path) - len(inner.partition("/")[2])]
    return sorted(prefix + name.partition("/")[2] for name in names if pattern.fullmatch(name))


def _meaning(part: re.Match[str]) -> str:
    if len(part[0]) > 1 and part[0][0] == "[":
        return part[0].replace("\\", r"\\").replace("[!", "[^", 1)
    return MEANINGS.get(part[0]) or re.escape(part[0])


def _store(path: str) -> tuple[Any, str]:
    """The object store of an address, and the place in it, which begins with its bucket or container."""
    import pyarrow.fs as stores

    scheme, inner = _scheme(path), path.partition("://")[2]
    if scheme not in STORES:
        raise OSError(f"no files are read from {scheme}://; known here: {', '.join((*STORES, *WEB))}")
    container, _, key = inner.partition("/")
    if scheme == "abfss":
        container, _, host = container.partition("@")
        return _azure(stores, host.partition(".")[0]), f"{container}/{key}"
    if "@" in container:
        raise OSError("the address says who reads; give that by the environment (AWS_ACCESS_KEY_ID, …)")
    if scheme == "az":
        return _azure(stores, os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")), inner
    if scheme == "gs":
        return stores.GcsFileSystem(retry_time_limit=timedelta(seconds=CONNECT_S)), inner
    return _s3(stores, container), inner


def _azure(stores: Any, account: str) -> Any:
    if not account:
        raise OSError(
            "set AZURE_STORAGE_ACCOUNT_NAME, or write abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/…"
        )
    return stores.AzureFileSystem(account, account_key=os.environ.get("AZURE_STORAGE_ACCOUNT_KEY"))


def _s3(stores: Any, bucket: str) -> Any:
    endpoint = _s3_endpoint()
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None:
        region = "us-east-1" if endpoint else stores.resolve_s3_region(bucket)
    scheme, _, place = (endpoint or "https://").partition("://")
    return stores.S3FileSystem(
        region=region,
        scheme=scheme,
        endpoint_override=place.rstrip("/") or None,
        connect_timeout=CONNECT_S,
        request_timeout=SILENCE_S,
        retry_strategy=stores.AwsStandardS3RetryStrategy(max_attempts=TRIES),
    )


def _s3_endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _stream(path: str) -> Any:
    if not _scheme(path):
        _require_file(path)
        return pa.OSFile(path)
    if _scheme(path) in WEB:
        return pa.PythonFile(_Body(_called(path)), "r")
    store, inner = _store(path)
    return store.open_input_stream(inner, compression=None)


def _called(url: str) -> Any:
    if "@" in urlsplit(url).netloc:
        raise OSError("the address says who reads, which stands in every message; use one without it")
    return urllib.request.urlopen(url, timeout=SILENCE_S)  # noqa: S310 - http and https alone come here


class _Body(io.RawIOBase):
    """A web server's answer, which Python would take for whole where the connection breaks."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data: bytes = self.answer.read(size if size >= 0 else None)
        if not data and size and self.answer.length:
            raise OSError(f"the server ended the file {self.answer.length} bytes too early")
        return data

    def close(self) -> None:
        self.answer.close()
        super().close()


class _Xz(io.RawIOBase):
    """A file of xz, unpacked in bounded memory whatever it asks for."""

    def __init__(self, packed: Any) -> None:
        self.packed, self.rest = packed, b""
        self.begun, self.stream = False, self._new()

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=UNPACK_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        data = b""
        while not data:
            if self.stream.eof:
                # Another one may follow, behind zeros.
                self.rest = self.stream.unused_data
                self.begun, self.stream = False, self._new()
            if self.stream.needs_input and not self.rest:
                self.rest = self.packed.read(PACKED_BYTES)
                if not self.rest and self.begun:
                    raise EOFError("the file ends before its end")
                if not self.rest:
                    return 0
            if not self.begun:
                self.rest = self.rest.lstrip(b"\0")
                self.begun = bool(self.rest)
            if self.begun:
                data, self.rest = self.stream.decompress(self.rest, len(into)), b""
        into[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.packed.close()
        super().close()


def _headers_of(url: str) -> str | None:
    with _called(url) as answer:
        said = [answer.headers.get(name) for name in ("ETag", "Last-Modified", "Content-Length")]
    # A length alone stays while the content changes.
    return " ".join(filter(None, said)) if any(said[:2]) else None


def _object_of(path: str) -> str:
    store, inner = _store(path)
    with store.open_input_file(inner) as file:
        tag = (file.metadata() or {}).get("ETag", b"").decode()
    info = store.get_file_info(inner)
    return f"{info.size} bytes of {tag or info.mtime_ns}"


def _only_member(path: str) -> Any:
    """The one file that a zip file holds."""
    if not _scheme(path):
        _require_file(path)
    try:
        # Arrow's own file of this machine refuses the places that a damaged zip file names.
        with zipfile.ZipFile(path if not _scheme(path) else seekable(path)) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if len(members) != 1:
                raise DataError(
                    f"holds {len(members)} files; a zip file must hold exactly one", file=escaped(path)
                )
            if members[0].compress_type == zipfile.ZIP_LZMA:
                raise OSError("it is packed by LZMA, whose memory has no bound; pack it by deflate")
            return pa.PythonFile(archive.open(members[0]), "r")
    except (RuntimeError, ValueError, OverflowError, MemoryError, struct.error) as error:
        # It is encrypted, packed in a way that Python does not know, or its names or numbers are none.
        raise OSError(one_line(error)) from error
