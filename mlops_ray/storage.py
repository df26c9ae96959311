"""Where state lives: a folder, written atomically.

Whatever lies under `storage` is reached through a `Storage`, so that a reader sees the old or the new file
and never a mixture.
"""

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson

from mlops_ray import __version__
from mlops_ray.errors import StorageError

#: Files that hold secrets are readable by their owner alone.
PRIVATE = 0o600
#: What the reader of Delta tables takes for a part of an address.
FORBIDDEN = frozenset("%[]")
#: Raised when something in a storage is written in another way, which an older version would misread. What
#: has a format that its reader looks at, wherever it lies, needs none: packages, training sets, histories,
#: records online.
FORMAT, MARK = 1, "format.json"
#: Held by all that copy rows from one place of a storage to another, and alone by what erases rows.
ERASURE = "erasure.lock"


@dataclass(frozen=True)
class Storage:
    """The folder under which a project keeps its state."""

    root: Path

    @classmethod
    def open(cls, location: str, *, reads: bool = False) -> "Storage":
        """The storage at a location, its folder made where it is missing; who but `reads` need not write.

        Its format stands in it (`MARK`). One of an older format is read, and from then on of ours: what wrote
        it reads it no more. Raises `StorageError` where it cannot be written, and for one of a newer format.
        """
        if "://" in location:
            raise StorageError(f"storage {location!r}: object stores are not supported yet; name a folder")
        root = Path(location)
        forbidden = sorted(FORBIDDEN.intersection(str(root)))
        if forbidden:
            raise StorageError(
                f"the path of the storage folder {root} has {forbidden[0]!r}, which Delta tables do not bear;"
                " name another (storage: PATH)"
            )
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make the storage folder {root}: {error.strerror}") from error
        if not reads and not os.access(root, os.W_OK):
            raise StorageError(f"the storage folder {root} is not writable")
        opened = cls(root)
        opened._mark()
        return opened

    def _mark(self) -> None:
        """Has the storage be of our format, unless it is of a newer one."""
        found = self.read_json(MARK)
        # Before there were marks it was format 1.
        form = 1 if found is None else found.get("format") if isinstance(found, dict) else None
        if type(form) is not int:
            raise StorageError(
                f"{self.root / MARK} is damaged: it says no format; put a copy back, or, where no newer "
                "version of mlops_ray ran on this storage, delete it"
            )
        if form > FORMAT:
            raise StorageError(
                f"the storage folder {self.root} is of format {form}, of a newer version of mlops_ray; this "
                f"one, {__version__}, reads {FORMAT}: update it, or name another folder (storage: PATH)"
            )
        if found is None or form < FORMAT:
            # A full disk keeps nobody from reading: the next command marks it.
            with contextlib.suppress(OSError):
                self.write_json({"format": FORMAT}, MARK)

    def path(self, *parts: str) -> Path:
        """A path under the root; its parent folders are made."""
        path = self.root.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def read_json(self, *parts: str) -> Any:
        """The document, or `None` where there is none."""
        try:
            return orjson.loads(self.root.joinpath(*parts).read_bytes())
        except FileNotFoundError:
            return None
        except orjson.JSONDecodeError as error:
            raise StorageError(f"{self.root.joinpath(*parts)} is damaged: {error}") from error

    def size(self) -> int:
        """The bytes of all its files; one that goes meanwhile counts nothing."""
        found = 0
        for folder, _, names in os.walk(self.root):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    found += os.lstat(os.path.join(folder, name)).st_size
        return found

    def write_json(self, document: Any, *parts: str, mode: int = 0o644) -> None:
        """Replaces the document as a whole."""
        with replacing(self.path(*parts), mode=mode) as file:
            file.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY))

    @contextlib.contextmanager
    def steady(self, *, erases: bool = False) -> Iterator[None]:
        """Meanwhile no rows are erased; for who `erases`, none are copied that he would have to erase.

        Raises `StorageError` where the other is going on.
        """
        lock = locked(self.path(ERASURE), shared=not erases)
        if lock is None:
            goes_on = "features are being read" if erases else "rows are being erased"
            raise StorageError(f"{goes_on} in {self.root}; try again when that has ended")
        with lock:
            yield


def locked(path: Path, *, shared: bool = False) -> IO[str] | None:
    """The file, locked for as long as it is open, with others who share it; `None` where another has it.

    Raises `OSError` where the file system knows no locks.
    """
    file = path.open("w")
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if isinstance(error, BlockingIOError):
            return None
        raise
    return file


def digest(document: Any) -> str:
    """SHA-256 of plain data.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(orjson.dumps(document, option=orjson.OPT_SORT_KEYS)).hexdigest()


@contextlib.contextmanager
def replacing(path: Path, *, mode: int = 0o644) -> Iterator[Path]:
    """A new file beside `path` that takes its place at the end, whole or not at all."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    new = Path(name)
    try:
        yield new
        new.chmod(mode)
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
