"""Where the online store keeps its records: SQLite, one file under `storage`, or a Redis server.

A shelf holds, for each table, what it says of itself and one record a key. A record carries the stamp of the
commit that it was made from and is replaced by one with a later stamp only, whoever writes it when.
"""

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import orjson

from mlops_ray.config import Project
from mlops_ray.errors import StorageError
from mlops_ray.storage import Storage, replacing

ONLINE = "online.db"
#: A reader that meets a writer waits; one transaction of the writer takes far less.
BUSY_S = 5.0
#: What a caller of a server waits for an answer.
TIMEOUT_S = 2.0
#: Digits of a stamp in front of a record in Redis, enough for microseconds until the year 2286.
STAMP = 16
#: Records that go to Redis in one round trip.
BATCH = 500

#: A key as text, the microseconds of its newest row, and its record.
Record = tuple[str, int, bytes]


class Shelf(Protocol):
    """What the online store asks of the place where its records lie."""

    def about(self, table: str) -> bytes | None:
        """What a table says of itself; `None` before the first write."""

    def get(self, table: str, keys: Sequence[str]) -> tuple[bytes | None, list[bytes | None]]:
        """What a table says of itself, and the records of the keys, in their order."""

    def put(
        self,
        table: str,
        about: bytes,
        stamp: int,
        records: Iterable[Record],
        expired: int | None,
        seen: bytes | None,
    ) -> bool:
        """Writes records, then what the table says of itself, unless what is there has a later stamp.

        Returns whether all is well: not where the table, no later, says something else of itself than was
        `seen`. Then it keeps saying that, though records may now hold less than the one who said it wants.
        Where the table says of itself that it was made from a later commit, nothing is written: what these
        records would tell is known there already. Records of earlier commits whose newest row is not after
        `expired` are dropped; those of this one may be another writer's, who keeps more.
        """

    def close(self) -> None: ...


def online_location(project: Project, storage: Storage) -> str:
    """Where a project's online store is: a server's address, by default a file of the storage.

    Storages may share a server: behind `#` stands which one's records are meant.
    """
    if project.online is None:
        return str(storage.path(ONLINE))
    return f"{project.online}#{_store_id(storage)}"


def _store_id(storage: Storage) -> str:
    """What tells the histories of this storage from those of others: made once, by whoever comes first."""
    path = storage.path("features", "id")
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
        return str(location)
    address, _, options = rest.partition("?")
    # An @ behind the question mark is part of a secret that nobody escaped.
    return f"{scheme}://…" if "@" in options else f"{scheme}://{address.partition('#')[0].rpartition('@')[2]}"


def open_shelf(location: str | Path) -> Shelf:
    """The shelf at a path, or at an address like `redis://host:6379/0`.

    Raises `StorageError` where it cannot be opened.
    """
    if str(location).startswith(("redis://", "rediss://", "unix://")):
        return RedisShelf(str(location))
    return SqliteShelf(Path(location))


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
SET stamp = ?3, newest = ?4, record = ?5 WHERE ?3 >= stamp
"""
_PUT_ABOUT = "INSERT OR REPLACE INTO shelves VALUES (?, ?, ?)"
_EXPIRE = "DELETE FROM records WHERE name = ? AND newest <= ? AND stamp < ?"
_GET_ABOUT = "SELECT about, stamp FROM shelves WHERE name = ?"
#: One statement sees one state of the file.
_GET = """
SELECT about, asked.key, record FROM shelves CROSS JOIN json_each(?2) AS asked
LEFT JOIN records ON records.name = shelves.name AND records.key = asked.value WHERE shelves.name = ?1
"""


class SqliteShelf:
    """Records in a SQLite file; a process opens its own."""

    def __init__(self, path: Path) -> None:
        self._where = f"the online store {path}"
        with self._answering():
            self._connection = sqlite3.connect(
                path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
            with closing(self._connection.cursor()) as cursor:
                cursor.execute("PRAGMA journal_mode=WAL")
                cursor.executescript(_CREATE)

    def about(self, table: str) -> bytes | None:
        with self._answering():
            found = self._connection.execute(_GET_ABOUT, (table,)).fetchone()
        return found[0] if found else None

    def get(self, table: str, keys: Sequence[str]) -> tuple[bytes | None, list[bytes | None]]:
        if not keys:
            return self.about(table), []
        with self._answering():
            found = self._connection.execute(_GET, (table, orjson.dumps(keys).decode())).fetchall()
        records = {place: record for _, place, record in found}
        return found[0][0] if found else None, [records.get(place) for place in range(len(keys))]

    def put(
        self,
        table: str,
        about: bytes,
        stamp: int,
        records: Iterable[Record],
        expired: int | None,
        seen: bytes | None,
    ) -> bool:
        with self._answering(), self._transaction() as cursor:
            there = cursor.execute(_GET_ABOUT, (table,)).fetchone()
            if there is not None and there[1] > stamp:
                return True
            if (there and there[0]) != seen:
                return False
            cursor.executemany(_PUT_RECORD, ((table, key, stamp, newest, r) for key, newest, r in records))
            if expired is not None:
                cursor.execute(_EXPIRE, (table, expired, stamp))
            cursor.execute(_PUT_ABOUT, (table, stamp, about))
        return True

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Cursor]:
        with closing(self._connection.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            try:
                yield cursor
            except BaseException:
                cursor.execute("ROLLBACK")
                raise
            cursor.execute("COMMIT")

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageError(f"{self._where} cannot be used: {error}") from error


#: Sets a record and its place in the order of newest rows, unless a later one, or a later table, is there.
_LUA_PUT = """
for _, there in ipairs({KEYS[1], KEYS[3]}) do
    local old = redis.call('GETRANGE', there, 0, 15)
    if old ~= '' and tonumber(old) > tonumber(string.sub(ARGV[1], 1, 16)) then return 0 end
end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[2], ARGV[2], KEYS[1])
return 1
"""

#: Sets what a table says of itself, unless it says something later, or else than the writer saw.
_LUA_PUT_ABOUT = """
local there = redis.call('GET', KEYS[1]) or ''
if there ~= '' and tonumber(string.sub(there, 1, 16)) > tonumber(string.sub(ARGV[1], 1, 16)) then return 1 end
if string.sub(there, 17) ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[1], ARGV[1])
return 1
"""

#: Drops records of earlier commits whose newest row has become too old, where the table says of itself what
#: this writer says: another may keep more.
_LUA_EXPIRE = """
if redis.call('GET', KEYS[2]) ~= ARGV[3] then return end
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])) do
    if (tonumber(redis.call('GETRANGE', name, 0, 15)) or 0) < tonumber(ARGV[2]) then
        redis.call('DEL', name)
        redis.call('ZREM', KEYS[1], name)
    end
end
"""


class RedisShelf:
    """Records in a Redis server, which several services and machines may share."""

    def __init__(self, location: str) -> None:
        url, _, space = location.partition("#")
        self._prefix = f"mlops:{space}:"
        try:
            import redis
        except ImportError:
            raise StorageError("online: redis://… needs the extra: pip install 'mlops_ray[redis]'") from None
        self._failures = redis.RedisError
        self._where = f"the online store {shown(url)}"
        try:
            self._client: Any = redis.Redis.from_url(
                url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
            )
        except ValueError:
            # Its message may quote a piece of the password.
            raise StorageError(f"{self._where} is no address; write e.g. redis://HOST:6379/0") from None
        with self._answering():
            self._put = self._client.register_script(_LUA_PUT)
            self._put_about = self._client.register_script(_LUA_PUT_ABOUT)
            self._expire = self._client.register_script(_LUA_EXPIRE)
            self._client.ping()

    def about(self, table: str) -> bytes | None:
        return self.get(table, [])[0]

    def get(self, table: str, keys: Sequence[str]) -> tuple[bytes | None, list[bytes | None]]:
        with self._answering():
            about, *records = self._client.mget(
                [self._whole(table), *(self._key(table, key) for key in keys)]
            )
        return about and about[STAMP:], [record and record[STAMP:] for record in records]

    def put(
        self,
        table: str,
        about: bytes,
        stamp: int,
        records: Iterable[Record],
        expired: int | None,
        seen: bytes | None,
    ) -> bool:
        written = f"{stamp:0{STAMP}d}".encode()
        order, whole = f"{self._whole(table)}:order", self._whole(table)
        with self._answering():
            pipe = self._client.pipeline(transaction=False)
            for key, newest, record in records:
                name = self._key(table, key)
                self._put(keys=[name, order, whole], args=[written + record, newest], client=pipe)
                if len(pipe) >= BATCH:
                    pipe.execute()
            # After the records: it promises what they hold. From then on no earlier record can come back.
            self._put_about(keys=[whole], args=[written + about, seen or b""], client=pipe)
            if expired is not None:
                self._expire(keys=[order, whole], args=[expired, stamp, written + about], client=pipe)
            *_, is_well = pipe.execute()[: None if expired is None else -1]
        return bool(is_well)

    def _whole(self, table: str) -> str:
        return self._prefix + table

    def _key(self, table: str, key: str) -> str:
        return f"{self._prefix}{table}:key:{key}"

    def close(self) -> None:
        self._client.close()

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except self._failures as error:
            raise StorageError(f"{self._where} does not answer: {error}") from error
