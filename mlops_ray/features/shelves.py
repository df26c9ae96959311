"""Where the online store keeps its records: SQLite, one file under `storage`, or a Redis server.

A shelf holds, for each table, what it says of itself and one record a key. A record carries the stamp of the
commit that it was made from and is replaced by one with a later stamp only, whoever writes it when.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

from mlops_ray.config import Project
from mlops_ray.errors import StorageError
from mlops_ray.storage import Storage

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
        self, table: str, about: bytes, stamp: int, records: Iterable[Record], expired: int | None
    ) -> None:
        """Writes records, then what the table says of itself, unless what is there has a later stamp.

        Records whose newest row is not after `expired` are dropped.
        """

    def close(self) -> None: ...


def online_location(project: Project, storage: Storage) -> str:
    """Where a project's online store is: a server's address, by default a file of the storage."""
    return project.online or str(storage.path(ONLINE))


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
_PUT_ABOUT = """
INSERT INTO shelves VALUES (?1, ?2, ?3) ON CONFLICT (name) DO UPDATE
SET stamp = ?2, about = ?3 WHERE ?2 >= stamp
"""
_GET = """
SELECT about, record FROM shelves LEFT JOIN records ON records.name = shelves.name AND key = ?2
WHERE shelves.name = ?1
"""


class SqliteShelf:
    """Records in a SQLite file; a process opens its own."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(
            path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
        )
        with closing(self._connection.cursor()) as cursor:
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.executescript(_CREATE)

    def about(self, table: str) -> bytes | None:
        return self.get(table, [""])[0]

    def get(self, table: str, keys: Sequence[str]) -> tuple[bytes | None, list[bytes | None]]:
        # One statement a key sees one state of the file.
        found = [self._connection.execute(_GET, (table, key)).fetchone() for key in keys]
        about = found[0][0] if found and found[0] else None
        return about, [row[1] if row else None for row in found]

    def put(
        self, table: str, about: bytes, stamp: int, records: Iterable[Record], expired: int | None
    ) -> None:
        with self._transaction() as cursor:
            cursor.executemany(_PUT_RECORD, ((table, key, stamp, newest, r) for key, newest, r in records))
            if expired is not None:
                cursor.execute("DELETE FROM records WHERE name = ? AND newest <= ?", (table, expired))
            cursor.execute(_PUT_ABOUT, (table, stamp, about))

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


#: Sets a record and its place in the order of newest rows, unless a later one is there.
_LUA_PUT = """
local old = redis.call('GETRANGE', KEYS[1], 0, 15)
if old ~= '' and tonumber(old) > tonumber(string.sub(ARGV[1], 1, 16)) then return 0 end
redis.call('SET', KEYS[1], ARGV[1])
if ARGV[2] ~= '' then redis.call('ZADD', KEYS[2], ARGV[2], KEYS[1]) end
return 1
"""

#: Drops the records whose newest row has become too old, in one step: nobody's new record is among them.
_LUA_EXPIRE = """
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])) do redis.call('DEL', name) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])
"""


class RedisShelf:
    """Records in a Redis server, which several services and machines may share."""

    def __init__(self, url: str) -> None:
        try:
            import redis
        except ImportError:
            raise StorageError("online: redis://… needs the extra: pip install 'mlops_ray[redis]'") from None
        self._failures = redis.RedisError
        self._client: Any = redis.Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
        )
        self._where = f"the online store {url.rpartition('@')[2]}"
        with self._answering():
            self._put = self._client.register_script(_LUA_PUT)
            self._expire = self._client.register_script(_LUA_EXPIRE)
            self._client.ping()

    def about(self, table: str) -> bytes | None:
        return self.get(table, [])[0]

    def get(self, table: str, keys: Sequence[str]) -> tuple[bytes | None, list[bytes | None]]:
        with self._answering():
            about, *records = self._client.mget([_about_key(table), *(_key(table, key) for key in keys)])
        return about and about[STAMP:], [record and record[STAMP:] for record in records]

    def put(
        self, table: str, about: bytes, stamp: int, records: Iterable[Record], expired: int | None
    ) -> None:
        written = f"{stamp:0{STAMP}d}".encode()
        order = f"mlops:{table}:order"
        with self._answering():
            pipe = self._client.pipeline(transaction=False)
            for key, newest, record in records:
                self._put(keys=[_key(table, key), order], args=[written + record, newest], client=pipe)
                if len(pipe) >= BATCH:
                    pipe.execute()
            if expired is not None:
                self._expire(keys=[order], args=[expired], client=pipe)
            # Last: it promises what the records hold.
            self._put(keys=[_about_key(table), order], args=[written + about, ""], client=pipe)
            pipe.execute()

    def close(self) -> None:
        self._client.close()

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except self._failures as error:
            raise StorageError(f"{self._where} does not answer: {error}") from error


def _key(table: str, key: str) -> str:
    return f"mlops:{table}:key:{key}"


def _about_key(table: str) -> str:
    return f"mlops:{table}"
