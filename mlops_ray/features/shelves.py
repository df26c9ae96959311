"""Where the online store keeps its records: SQLite, one file under `storage`, or a Redis server.

A shelf holds, for each table, what it says of itself and one record a key, all `sealed`. They carry the stamp
of the commit that they were made from and are replaced by those with a later stamp only, whoever writes when.
"""

import contextlib
import os
import re
import secrets
import sqlite3
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from mlops_ray.config import Project
from mlops_ray.errors import StorageError
from mlops_ray.storage import Storage, replacing

ONLINE = "online.db"
#: The file that says what keys of this storage are called at a server.
ID = "features/id"
#: A reader that meets a writer waits; one transaction of the writer takes far less.
BUSY_S = 5.0
#: What a caller of a server waits for an answer.
TIMEOUT_S = 2.0
#: Digits of a stamp in front of a record, enough for microseconds until the year 2286.
STAMP = 16
#: What follows the stamp. It changes when what is stored gets another form: nobody reads another's.
FORMAT = b"mlr2"
#: Characters of stamp, format and checksum.
SEAL = STAMP + len(FORMAT) + 4
#: Records that go to Redis in one round trip.
BATCH = 500

#: What an address begins with.
SCHEMES = ("redis", "rediss", "unix")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]*)(:\d+)?")

#: A key as text, the microseconds of its newest row, and its record.
Record = tuple[str, int, bytes]


class Write(NamedTuple):
    """What a writer brings to a table: records, and what it says of itself then, made from a commit."""

    about: bytes
    stamp: int
    records: Iterable[Record]
    #: Records of earlier commits whose newest row is not after this are dropped.
    expired: int | None
    #: What the table said of itself when the writer looked.
    seen: bytes | None


def sealed(stamp: int, content: bytes) -> bytes:
    """What a shelf keeps of some content: a stamp, the format, a checksum, and the content."""
    return _seal(f"{stamp:0{STAMP}d}".encode(), content) + content


def opened(kept: bytes) -> bytes:
    """The content. Raises `ValueError` where it is damaged, or not what `sealed` makes."""
    content = kept[SEAL:]
    if kept[:SEAL] != _seal(kept[:STAMP], content):
        raise ValueError("damaged, or of another format")
    return content


def _seal(stamp: bytes, content: bytes) -> bytes:
    return stamp + FORMAT + zlib.crc32(content, zlib.crc32(stamp)).to_bytes(4, "big")


class Shelf(ABC):
    """What the online store asks of the place where its records lie, with any failures of its own.

    Where something lies that is none of ours, such as a list, b"" is found, which nobody sealed.
    """

    def __init__(self, where: str, failures: type[Exception], fault: str) -> None:
        self._where, self._failures, self._fault = f"the online store {where}", failures, fault

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except self._failures as error:
            raise StorageError(f"{self._where} {self._fault}: {error}") from error

    def about(self, table: str) -> bytes | None:
        """What a table says of itself; `None` before the first write."""
        return self.get(table, [])[0]

    @abstractmethod
    def get(self, table: str, keys: Sequence[str]) -> tuple[bytes | None, list[bytes | None]]:
        """What a table says of itself, and the records of the keys, in their order."""

    @abstractmethod
    def put(self, table: str, write: Write) -> bool:
        """Writes records, then what the table says of itself, unless what is there has a later stamp.

        Returns whether all is well: not where the table, no later, says something else of itself than was
        `seen`. Then it keeps saying that, though records may now hold less than the one who said it wants.
        Where the table says of itself that it was made from a later commit, nothing is written: what these
        records would tell is known there already. Records of earlier commits whose newest row is not after
        `expired` are dropped; those of this one may be another writer's, who keeps more.
        """

    @abstractmethod
    def forget(self, table: str, seen: bytes) -> None:
        """What a table says of itself is gone, if it is still what was `seen`: the table is written anew."""

    @abstractmethod
    def keys(self, table: str) -> Iterator[str]:
        """The keys of all records of a table, in no order."""

    @abstractmethod
    def erase(self, table: str, keys: Sequence[str]) -> None:
        """Removes records, and what the place still holds of them and of earlier ones; safe to repeat."""

    @abstractmethod
    def remedy(self, table: str) -> str:
        """How a person deletes all of a table."""

    @abstractmethod
    def close(self) -> None: ...


def online_location(project: Project, storage: Storage) -> str:
    """Where a project's online store is: a server's address, by default a file of the storage.

    Storages may share a server: behind `#` stands which one's records are meant.
    """
    if project.online is None:
        return str(storage.path(ONLINE).absolute())
    return f"{project.online}#{_store_id(storage)}"


def kept_at_servers(storage: Storage) -> str | None:
    """How the keys of a storage begin at servers; `None` where no project of it has named one."""
    path = storage.root / ID
    return _prefix(path.read_text()) if path.exists() else None


def _prefix(space: str) -> str:
    return f"mlops:{space}:"


def _store_id(storage: Storage) -> str:
    """What tells the histories of this storage from those of others: made once, by whoever comes first."""
    path = storage.path(ID)
    if not path.exists():
        mine = path.with_name(f"id-{secrets.token_hex(8)}")
        with replacing(mine) as new:
            new.write_text(mine.name)
        with contextlib.suppress(FileExistsError):
            os.link(mine, path)
        mine.unlink()
    return path.read_text()


def shown(location: str | Path) -> str:
    """A location for messages, without what may be a secret: a server's user, password and options.

    >>> shown("redis://user:secret@host:6379/0?password=other")
    'redis://host:6379/0'
    """
    scheme, is_url, rest = str(location).partition("://")
    if not is_url:
        return "…" if _lacks_scheme(str(location)) else str(location)
    place = re.split("[/?#]", rest, maxsplit=1)[0]
    host, path = place.rpartition("@")[2], re.split("[?#]", rest[len(place) :], maxsplit=1)[0]
    # Where a / ? # of a secret is not escaped, pieces of it stand anywhere.
    is_clear = scheme.lower() in SCHEMES and "@" not in rest[len(place) :] and _HOST.fullmatch(host)
    return f"{scheme if _SCHEME.fullmatch(scheme) else '…'}://{host + path if is_clear else '…'}"


def _lacks_scheme(location: str) -> bool:
    """Whether a location is rather a server's, like user:secret@host:6379, than a path."""
    return ":" in location.partition("/")[0]


def open_shelf(location: str | Path) -> Shelf:
    """The shelf at a path, or at an address like `redis://host:6379/0`.

    Raises `StorageError` where it cannot be opened.
    """
    if isinstance(location, Path):
        return SqliteShelf(location)
    scheme, is_url, _ = location.partition("://")
    if not is_url and not _lacks_scheme(location):
        return SqliteShelf(Path(location))
    if scheme.lower() not in SCHEMES or not is_url or shown(location).endswith("…"):
        raise StorageError(
            f"the online store {shown(location)} is no address: write a path, or redis://HOST:6379/0 (or "
            "rediss, unix), and in a user, password or option %2F for /, %3F for ?, %23 for #, %40 for @"
        )
    return RedisShelf(f"{scheme.lower()}{location[len(scheme) :]}")


_CREATE = """
CREATE TABLE IF NOT EXISTS shelves (
    name TEXT PRIMARY KEY, stamp INTEGER NOT NULL, about BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS records (
    name TEXT, key TEXT, stamp INTEGER NOT NULL, newest INTEGER NOT NULL, record BLOB NOT NULL,
    PRIMARY KEY (name, key)
);
"""
_PUT_RECORD = """
INSERT INTO records VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (name, key) DO UPDATE
SET stamp = ?3, newest = ?4, record = ?5 WHERE ?3 >= CAST(stamp AS INTEGER)
"""
_PUT_ABOUT = "INSERT OR REPLACE INTO shelves VALUES (?, ?, ?)"
_EXPIRE = "DELETE FROM records WHERE name = ? AND newest <= ? AND stamp < ?"
_GET_ABOUT = "SELECT about, CAST(stamp AS INTEGER) FROM shelves WHERE name = ?"
_KEYS = "SELECT key FROM records WHERE name = ?"
_ERASE = "DELETE FROM records WHERE name = ? AND key = ?"
_FORGET = ("DELETE FROM records WHERE name = ?", "DELETE FROM shelves WHERE name = ?")
#: One statement sees one state of the file.
_GET = """
SELECT about, asked.key, record FROM shelves CROSS JOIN json_each(?2) AS asked
LEFT JOIN records ON records.name = shelves.name AND records.key = asked.value WHERE shelves.name = ?1
"""


class SqliteShelf(Shelf):
    """Records in a SQLite file; a process opens its own."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), sqlite3.Error, "cannot be used")
        with self._answering():
            self._connection = sqlite3.connect(
                path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA journal_mode=WAL").close()
            self._connection.executescript(_CREATE).close()

    def _found(self, table: str) -> tuple[bytes | None, int]:
        """What a table says of itself, and its stamp; `None` before the first write."""
        found = self._connection.execute(_GET_ABOUT, (table,)).fetchone()
        return (_ours(found[0]), found[1]) if found else (None, 0)

    def get(self, table: str, keys: Sequence[str]) -> tuple[bytes | None, list[bytes | None]]:
        with self._answering():
            if not keys:
                return self._found(table)[0], []
            found = self._connection.execute(_GET, (table, orjson.dumps(keys).decode())).fetchall()
        records = {place: _ours(record) for _, place, record in found}
        return _ours(found[0][0]) if found else None, [records.get(place) for place in range(len(keys))]

    def put(self, table: str, write: Write) -> bool:
        stamp = write.stamp
        with self._transaction() as connection:
            about, there = self._found(table)
            if about is not None and there > stamp:
                return True
            if about != write.seen:
                return False
            rows = ((table, key, stamp, newest, record) for key, newest, record in write.records)
            connection.executemany(_PUT_RECORD, rows)
            if write.expired is not None:
                connection.execute(_EXPIRE, (table, write.expired, stamp))
            connection.execute(_PUT_ABOUT, (table, stamp, write.about))
        return True

    def forget(self, table: str, seen: bytes) -> None:
        with self._transaction() as connection:
            if self._found(table)[0] == seen:
                for statement in _FORGET:
                    connection.execute(statement, (table,))

    def keys(self, table: str) -> Iterator[str]:
        with self._answering():
            found = self._connection.execute(_KEYS, (table,)).fetchall()
        return (key for (key,) in found)

    def erase(self, table: str, keys: Sequence[str]) -> None:
        with self._answering():
            self._connection.execute("PRAGMA secure_delete=ON").close()
        with self._transaction() as connection:
            connection.executemany(_ERASE, ((table, key) for key in keys))
        # Earlier records of theirs lie in pages that are free, and in the log of what was written.
        with self._answering():
            self._connection.execute("VACUUM").close()
            is_read, *_ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if is_read:
            raise StorageError(
                f"{self._where} is being read all the time, and keeps what was erased; try again"
            )

    def remedy(self, table: str) -> str:
        return "delete the file"

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._answering():
            self._connection.execute("BEGIN IMMEDIATE")
            with self._connection as connection:
                yield connection


def _ours(value: Any) -> Any:
    """A value of a column, as `Shelf` says."""
    return value if value is None or isinstance(value, bytes) else b""


#: What means something else in a pattern of names.
_GLOB = re.compile(r"[\\*?\[\]]")

#: What all scripts begin with: the stamp of something; before all others where it is not of our format,
#: which nobody reads.
_LUA_STAMP = """
local function stamp(name)
    if redis.call('TYPE', name).ok ~= 'string' then return -math.huge end
    return tonumber(string.match(redis.call('GETRANGE', name, 0, END), '^(-?%d+)FORMAT$') or -math.huge)
end
""".replace("END", str(STAMP + len(FORMAT) - 1)).replace("FORMAT", FORMAT.decode())

#: Sets a record and its place in the order of newest rows, unless a later one, or a later table, is there.
_LUA_PUT = """
local mine = tonumber(string.sub(ARGV[1], 1, 16))
if stamp(KEYS[1]) > mine or stamp(KEYS[3]) > mine then return 0 end
if redis.call('TYPE', KEYS[2]).ok ~= 'zset' then redis.call('DEL', KEYS[2]) end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[2], ARGV[2], KEYS[1])
return 1
"""

#: Sets what a table says of itself, unless it says something later, or else than the writer saw.
_LUA_PUT_ABOUT = """
if stamp(KEYS[1]) > tonumber(string.sub(ARGV[1], 1, 16)) then return 1 end
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[1], ARGV[1])
return 1
"""

#: Drops records of earlier commits whose newest row has become too old, where the table says of itself what
#: this writer says: another may keep more.
_LUA_EXPIRE = """
if redis.call('GET', KEYS[2]) ~= ARGV[3] then return end
if redis.call('TYPE', KEYS[1]).ok ~= 'zset' then return end
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])) do
    if stamp(name) < tonumber(ARGV[2]) then
        redis.call('DEL', name)
        redis.call('ZREM', KEYS[1], name)
    end
end
"""

#: Deletes what a table says of itself where it is what was seen; of a key of another type nothing was.
_LUA_FORGET = """
if redis.call('TYPE', KEYS[1]).ok == 'string' and redis.call('GET', KEYS[1]) ~= ARGV[1] then return end
redis.call('DEL', KEYS[1])
"""


class RedisShelf(Shelf):
    """Records in a Redis server, which several services and machines may share."""

    def __init__(self, location: str) -> None:
        url, _, space = location.partition("#")
        self._prefix = _prefix(space)
        try:
            import redis
        except ImportError:
            raise StorageError("online: redis://… needs the extra: pip install 'mlops_ray[redis]'") from None
        super().__init__(shown(url), redis.RedisError, "does not answer")
        try:
            self._client: Any = redis.Redis.from_url(
                url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
            )
            # Records are bytes, whatever the address says.
            self._client.connection_pool.connection_kwargs["decode_responses"] = False
            with self._answering():
                self._client.ping()
        except (ValueError, TypeError):
            # Its message may quote a piece of the password.
            raise StorageError(
                f"{self._where} is no address, or has an option that is none; write e.g. redis://HOST:6379/0"
            ) from None
        scripts = (_LUA_STAMP + text for text in (_LUA_PUT, _LUA_PUT_ABOUT, _LUA_EXPIRE, _LUA_FORGET))
        self._put, self._put_about, self._expire, self._forget = map(self._client.register_script, scripts)

    def get(self, table: str, keys: Sequence[str]) -> tuple[bytes | None, list[bytes | None]]:
        names = [self._whole(table), *(self._key(table, key) for key in keys)]
        with self._answering():
            about, *records = self._marked(names, self._client.mget(names))
        return about, records

    def _marked(self, names: list[str], found: list[bytes | None]) -> list[bytes | None]:
        """What MGET found, and b"" where it passes over something that is no string."""
        absent = [at for at, value in enumerate(found) if value is None]
        if absent:
            pipe = self._client.pipeline(transaction=False)
            for at in absent:
                pipe.type(names[at])
            for at, kind in zip(absent, pipe.execute(), strict=True):
                # A string was written in the meantime.
                found[at] = None if kind in (b"none", b"string") else b""
        return found

    def put(self, table: str, write: Write) -> bool:
        order, whole = f"{self._whole(table)}:order", self._whole(table)
        about, stamp, records, expired, seen = write
        with self._answering():
            pipe = self._client.pipeline(transaction=False)
            for key, newest, record in records:
                self._put(keys=[self._key(table, key), order, whole], args=[record, newest], client=pipe)
                if len(pipe) >= BATCH:
                    pipe.execute()
            # After the records: it promises what they hold. From then on no earlier record can come back.
            self._put_about(keys=[whole], args=[about, seen or b""], client=pipe)
            if expired is not None:
                self._expire(keys=[order, whole], args=[expired, stamp, about], client=pipe)
            *_, is_well = pipe.execute()[: None if expired is None else -1]
        return bool(is_well)

    def forget(self, table: str, seen: bytes) -> None:
        with self._answering():
            self._forget(keys=[self._whole(table)], args=[seen])

    def keys(self, table: str) -> Iterator[str]:
        begin = self._key(table, "")
        with self._answering():
            for name in self._client.scan_iter(match=_GLOB.sub(r"\\\g<0>", begin) + "*", count=BATCH):
                yield name.decode().removeprefix(begin)

    def erase(self, table: str, keys: Sequence[str]) -> None:
        names = [self._key(table, key) for key in keys]
        with self._answering():
            for at in range(0, len(names), BATCH):
                self._client.delete(*names[at : at + BATCH])
                self._client.zrem(f"{self._whole(table)}:order", *names[at : at + BATCH])

    def remedy(self, table: str) -> str:
        return f"delete its keys {self._whole(table)}*"

    def _whole(self, table: str) -> str:
        return self._prefix + table

    def _key(self, table: str, key: str) -> str:
        return f"{self._whole(table)}:key:{key}"

    def close(self) -> None:
        self._client.close()
