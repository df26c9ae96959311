"""What was done, by whom and why: a record that is only ever added to, whose lines seal those before them.

    audit/000001.jsonl   {"number", "at", "by", "what", "about", "before", "digest"}, a line each
    audit/head.json      number and digest of the last line
    audit/places.json    by project, the file outside the storage that hears of each line (`audit.heads`)

`digest` is SHA-256 of the rest of a line, to which `before` belongs, the digest of the line before: whoever
changes a line, takes one out or moves it has to change all that follow, and the head. Who may write here can
do that; the file outside, with {"number", "digest", "at"} of each line, tells. Several processes may write.

No line holds a value of a row. What cannot be told is not done: it is told before it is done, or where what
is to be told is known afterwards only, it is asked before whether it could be (`require`).
"""

import contextlib
import errno
import os
import platform
import pwd
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import orjson

from mlops_ray.errors import StorageError
from mlops_ray.storage import Storage, digest, locked, replacing

FOLDER, HEAD, PLACES, LOCK = "audit", "head.json", "places.json", ".lock"
#: A segment that is so large is followed by another; whoever writes reads the last one.
SEGMENT_BYTES = 1 << 20

#: Who writes takes milliseconds; who holds the record for so long has stopped within, or waits for a disk.
WAIT_S, POLL_S = 10.0, 0.01

#: What the line says by which a place outside begins to hear of lines, or no longer does.
SETTLED = "another place hears of this record"

#: What is said of a file that we cannot have written.
RESTORE = "somebody has changed it: put a copy back"
#: What is refused to who may read alone.
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)

#: What every line has.
PARTS = frozenset({"number", "at", "by", "what", "about", "before", "digest"})

Entry = dict[str, Any]


def who() -> str:
    """Who gives a command: the account of this process, whatever its environment says, and the machine."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        # In a container whose user has no name.
        name = str(os.getuid())
    return f"{name} at {platform.node()}"


def append(storage: Storage, what: str, by: str, about: Mapping[str, Any], *, is_done: bool = False) -> Entry:
    """Adds a line, which is on disk when this returns: the plain data of `what` happened, and who did it.

    Raises `StorageError` where it cannot be written, here or at a place outside, and then there is none; what
    waits for no record `is_done` already, and the error says so.

    >>> import tempfile
    >>> storage = Storage.open(tempfile.mkdtemp())
    >>> append(storage, "a key was revoked", "ann at home", {"name": "web"})["number"], verify(storage)
    (1, 1)
    """
    try:
        with _writing(storage):
            return _added(storage, what, by, about)
    except StorageError as error:
        raise (StorageError(f"{what}, but {error}") if is_done else _undone(error)) from error


def require(storage: Storage) -> None:
    """Raises `StorageError` where no line could be added."""
    try:
        with _writing(storage), _reached(set(_places(storage).values())):
            _last(storage)
    except StorageError as error:
        raise _undone(error) from error


def _undone(error: StorageError) -> StorageError:
    return StorageError(f"{error}; what it cannot tell is not done")


def settle(storage: Storage, project: str, heads: str | None) -> None:
    """Has every line heard of at this place outside from now on; that it is another one is a line itself.

    Of that line both hear, the place that is left as far as it is there.
    """
    if _places(storage).get(project) == heads:
        return
    with _writing(storage):
        before = _places(storage).get(project)
        if before != heads:
            _added(storage, SETTLED, who(), {"project": project, "before": before, "after": heads})


def entries(storage: Storage) -> Iterator[Entry]:
    """The lines, oldest first; raises `StorageError` where one cannot be read."""
    for path, line in _lines(storage):
        yield _entry(path, line)


def verify(storage: Storage, heads: str | None = None) -> int:
    """How many lines the record has; raises `StorageError` where any was changed, moved or taken away.

    `heads` is the place outside with which it is compared.
    """
    return int(verified(storage, heads)["number"])


def verified(storage: Storage, heads: str | None = None) -> Entry:
    """Number and digest of the last line of a record that is whole; as `verify`."""
    # Nobody is between the record and the place outside meanwhile.
    with _reading(storage):
        head: Entry = _head(storage)
        found: Entry = {"number": 0, "digest": ""}
        left = set[int]()
        told = {"": {head["number"]: {head["digest"]}}}
        if heads is not None:
            told[f", as {heads} tells"] = _heard(heads)
        for path, line in _lines(storage):
            entry = _entry(path, line)
            found = _linked(entry, line, found, path)
            if entry["what"] == SETTLED and entry["about"].get("before") == heads:
                left.add(found["number"])
            for where, known in told.items():
                if not known.get(found["number"], set()) <= {found["digest"]}:
                    said = f"entry {found['number']} of the audit record is another than it was"
                    raise StorageError(f"{said}{where} ({FOLDER}/{path.name})")
    if found["number"] > 1 and not head["number"]:
        raise StorageError(f"{FOLDER}/{HEAD} is gone, which says how long the audit record is")
    for where, known in told.items():
        if found["number"] < (most := max(known, default=0)):
            said = f"the audit record was cut short: {found['number']} entries of {most} are there"
            raise StorageError(said + where)
        # The last writer may have been killed before it told the place outside.
        if where and found["number"] - most > 1:
            said = f"{heads} (audit.heads) was not told of the entries from {most + 1} on"
            raise StorageError(f"{said}: of those nobody knows whether they are the first ones")
        if where and (unheard := _unheard(known, left)):
            said = f"{heads} (audit.heads) was not told of entry {unheard}, and was of later ones"
            raise StorageError(f"{said}: nobody knows whether it is the first one")
    return found


def _unheard(heard: Iterable[int], left: set[int]) -> int | None:
    """The first line of which a place outside did not hear though it heard of others before and behind it.

    Where it was left, the last one before is that which says so: who but writes the storage cannot have had
    the place hear of it.
    """
    for before, after in pairwise(sorted(heard)):
        if after > before + 1 and before not in left:
            return before + 1
    return None


def _linked(entry: Entry, line: bytes, before: Entry, path: Path) -> Entry:
    """Number and digest of the line that follows another; raises `StorageError` where it does not."""
    number = before["number"] + 1
    sealed = {key: value for key, value in entry.items() if key != "digest"}
    if (entry["number"], entry["before"]) != (number, before["digest"]):
        raise StorageError(
            f"the audit record has a gap before entry {entry['number']} ({FOLDER}/{path.name})"
        )
    # The text is what people read: a name that is there twice would say two things.
    if entry["digest"] != digest(sealed) or orjson.dumps(entry) != line:
        raise StorageError(f"entry {number} of the audit record was changed ({FOLDER}/{path.name})")
    return {"number": number, "digest": entry["digest"]}


def _added(storage: Storage, what: str, by: str, about: Mapping[str, Any]) -> Entry:
    head, last = _head(storage), _last(storage)
    # Where lines are gone, or others than there were, the chain goes on from what was: the gap shows.
    before = last if last["number"] > head["number"] else head
    if last["number"] > head["number"]:
        # Who wrote it was killed before he told of it: at most one line is ever untold.
        with _reached(_hearing(storage, last["what"], last["about"])) as outside, _all_or_none(outside):
            _tell(storage, last, outside)
    with _reached(_hearing(storage, what, about)) as outside:
        entry = {
            "number": before["number"] + 1,
            "at": datetime.now(UTC).isoformat(),
            "by": by,
            "what": what,
            "about": dict(about),
            "before": before["digest"],
        }
        entry["digest"] = digest(entry)
        with _segment(storage).open("ab", buffering=0) as lines, _all_or_none([*outside, lines]):
            _write(lines, entry)
            _tell(storage, entry, outside)
        return entry


def _hearing(storage: Storage, what: str, about: Mapping[str, Any]) -> set[str]:
    """The places outside that hear of such a line."""
    if what != SETTLED:
        return set(_places(storage).values())
    hearing, left = set(_settled(storage, about).values()), about["before"]
    if left is not None:
        # It may be gone, which is then why it is left.
        with contextlib.suppress(OSError), _reached({left}):
            hearing.add(left)
    return hearing


def _settled(storage: Storage, about: Mapping[str, Any]) -> dict[str, str]:
    """The places as such a line has them."""
    places = _places(storage) | {about["project"]: about["after"]}
    return {project: place for project, place in places.items() if place is not None}


def _tell(storage: Storage, entry: Entry, outside: Iterable[IO[bytes]]) -> None:
    """Writes down, beside the record and outside, which line is its last, and where the next is heard of."""
    with contextlib.ExitStack() as replaced:
        # What needs room here comes first: a place outside may take nothing back.
        head = replaced.enter_context(replacing(storage.path(FOLDER, HEAD)))
        head.write_bytes(orjson.dumps({name: entry[name] for name in ("number", "digest")}))
        if entry["what"] == SETTLED:
            places = replaced.enter_context(replacing(storage.path(FOLDER, PLACES)))
            places.write_bytes(orjson.dumps(_settled(storage, entry["about"])))
        for file in outside:
            _write(file, {name: entry[name] for name in ("number", "digest", "at")})


def _write(file: IO[bytes], line: Entry) -> None:
    data = orjson.dumps(line) + b"\n"
    if file.write(data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
    os.fsync(file.fileno())


@contextlib.contextmanager
def _all_or_none(files: Sequence[IO[bytes]]) -> Iterator[None]:
    """Takes back what was added to files, from the first on, where it cannot be added to all.

    Where one outside takes nothing back the line stays, of which it heard: who writes next tells the others.
    """
    sizes = [file.seek(0, os.SEEK_END) for file in files]
    try:
        yield
    except (OSError, StorageError):
        with contextlib.suppress(OSError):
            for file, size in zip(files, sizes, strict=True):
                if file.seek(0, os.SEEK_END) > size:
                    file.truncate(size)
        raise


@contextlib.contextmanager
def _writing(storage: Storage) -> Iterator[None]:
    """The right to write, and what a disk refuses meanwhile as `StorageError`."""
    try:
        with _locked(storage.path(FOLDER, LOCK)):
            yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise StorageError(f"the audit record cannot be written: {error.strerror}{where}") from error


@contextlib.contextmanager
def _reading(storage: Storage) -> Iterator[None]:
    """Nobody writes meanwhile; who may not keep others from it, of a copy that only he reads, reads it so."""
    try:
        lock: contextlib.AbstractContextManager[Any] = _locked(storage.root / FOLDER / LOCK)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise StorageError(f"the audit record cannot be read: {error.strerror} ({LOCK})") from error
        lock = contextlib.nullcontext()
    with lock:
        yield


@contextlib.contextmanager
def _reached(places: Iterable[str]) -> Iterator[list[IO[bytes]]]:
    """The places outside, open: where one cannot be reached nothing is written."""
    with contextlib.ExitStack() as opened:
        yield [opened.enter_context(_outside(place)) for place in sorted(places)]


def _locked(path: Path) -> IO[str]:
    end = time.monotonic() + WAIT_S
    while (lock := locked(path)) is None:
        if time.monotonic() > end:
            raise OSError(errno.EAGAIN, f"another process has held it for {WAIT_S:g} s", str(path))
        time.sleep(POLL_S)
    return lock


@contextlib.contextmanager
def _outside(place: str) -> Iterator[IO[bytes]]:
    """The file of a place outside, whose folder is not made: it may be that of a disk that is missing."""
    with Path(place).open("a+b", buffering=0) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            # Whoever was killed within a line left it without an end.
            if file.read(1) != b"\n":
                file.write(b"\n")
        yield file


def _heard(place: str) -> dict[int, set[str]]:
    """The digests that a place outside has heard of, by the number of their line."""
    found: dict[int, set[str]] = {}
    try:
        lines = Path(place).read_bytes().split(b"\n")
    except OSError as error:
        raise StorageError(f"{place} (audit.heads) cannot be read: {error.strerror}") from error
    for line in lines:
        # What is no line was cut off: those behind it tell of the same.
        with contextlib.suppress(orjson.JSONDecodeError, TypeError, KeyError, ValueError):
            told = orjson.loads(line)
            found.setdefault(int(told["number"]), set()).add(str(told["digest"]))
    return found


def _places(storage: Storage) -> dict[str, str]:
    places = storage.read_json(FOLDER, PLACES)
    if places is None:
        return {}
    if not isinstance(places, dict) or not all(type(place) is str for place in places.values()):
        raise StorageError(f"{FOLDER}/{PLACES} is damaged: it names no files; {RESTORE}")
    return places


def _head(storage: Storage) -> Entry:
    head = storage.read_json(FOLDER, HEAD)
    if head is None:
        return {"number": 0, "digest": ""}
    if not isinstance(head, dict) or [type(head.get(name)) for name in ("number", "digest")] != [int, str]:
        raise StorageError(f"{FOLDER}/{HEAD} is damaged: it says no number and digest of a line; {RESTORE}")
    return head


def _last(storage: Storage) -> Entry:
    """The last line; what a writer that was killed had begun is taken away, which nobody was told of."""
    for path in reversed(_segments(storage)):
        *whole, rest = path.read_bytes().split(b"\n")
        if rest:
            os.truncate(path, path.stat().st_size - len(rest))
        if whole:
            return _entry(path, whole[-1])
    return {"number": 0, "digest": ""}


def _entry(path: Path, line: bytes) -> Entry:
    with contextlib.suppress(orjson.JSONDecodeError, TypeError, ValueError):
        entry = dict(orjson.loads(line))
        if entry.keys() >= PARTS and isinstance(entry["about"], dict):
            return entry
    raise _damaged(path, line)


def _damaged(path: Path, line: bytes) -> StorageError:
    return StorageError(f"{path} is damaged: {line[:60]!r} is no entry of the audit record")


def _lines(storage: Storage) -> Iterator[tuple[Path, bytes]]:
    """The text of each line and where it stands; raises `StorageError` for text behind a segment's last."""
    segments = _segments(storage)
    for path in segments:
        *whole, rest = path.read_bytes().split(b"\n")
        # At the end of the last one, what has no end yet is being written, or never was.
        if rest and path != segments[-1]:
            raise _damaged(path, rest)
        for line in whole:
            yield path, line


def _segment(storage: Storage) -> Path:
    """Where the next line goes."""
    found = _segments(storage)
    if found and found[-1].stat().st_size < SEGMENT_BYTES:
        return found[-1]
    return storage.path(FOLDER, f"{len(found) + 1:06}.jsonl")


def _segments(storage: Storage) -> list[Path]:
    return sorted(storage.root.joinpath(FOLDER).glob("[0-9]*.jsonl"))
