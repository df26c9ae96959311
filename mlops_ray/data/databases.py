"""Queries of SQLite and PostgreSQL: read as they stream in, by a session that can only read."""

import contextlib
import re
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, unquote, unquote_plus

import polars as pl

from mlops_ray.config import SqlQuery
from mlops_ray.data import delimited, inputs, values
from mlops_ray.errors import DataError, one_line

#: A secret that is shorter is part of many words.
SHORTEST_SECRET = 3
#: Types of PostgreSQL that come as what they are; the server writes the others as text.
TYPED = frozenset(
    {"bool", "int2", "int4", "int8", "float4", "float8", "text", "varchar", "bpchar", "name"}
    | {"date", "timestamp", "timestamptz"}
)


def opened(sql: SqlQuery, after: object | None) -> tuple[list[str], values.Frames]:
    """The columns of a query, and its rows; with `after`, those whose cursor is not before it."""
    return (_sqlite if sql.connection.startswith("sqlite:") else _postgres)(sql, after)


def _sqlite(sql: SqlQuery, after: object | None) -> tuple[list[str], values.Frames]:
    """By Python's own driver: ADBC's takes a column's type from the first rows, and ends at another one."""
    query, bound = sql.query, []
    if after is not None and sql.cursor is not None:
        value, column = _comparable(after, True), f"q.{_quoted(sql.cursor)}"
        kinds = "'text'" if isinstance(value, str) else "'integer', 'real'"
        # Values of other kinds lie before all others or behind them: they are read rather than missed.
        newer = f"{column} >= ? OR ({column} IS NOT NULL AND typeof({column}) NOT IN ({kinds}))"
        query = f"SELECT * FROM ({_bare(query)}) AS q WHERE {newer} ORDER BY {column}"  # noqa: S608
        bound = [value]

    def frames(wanted: Sequence[str]) -> Iterator[pl.DataFrame]:
        with _sqlite_session(sql.connection) as connection:
            rows = connection.execute(query, bound)
            places = [names.index(name) for name in wanted]
            while some := rows.fetchmany(max(1, values.ROWS // len(names))):
                columns = list(zip(*some, strict=True))
                yield pl.DataFrame([values.series(names[place], list(columns[place])) for place in places])

    with _sqlite_session(sql.connection) as connection:
        described = connection.execute(f"SELECT * FROM ({_bare(sql.query)}) LIMIT 0").description  # noqa: S608
        names = [column[0] for column in described]
    return names, frames


@contextlib.contextmanager
def _sqlite_session(connection: str) -> Iterator[sqlite3.Connection]:
    path = connection.removeprefix("sqlite:///")
    if path == connection or not Path(path).is_file():
        raise OSError(f"no such database file: {path}; a connection is sqlite:///FILE")
    with contextlib.closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)) as database:
        yield database


def _postgres(sql: SqlQuery, after: object | None) -> tuple[list[str], values.Frames]:
    rows = f"FROM ({_bare(sql.query)}) AS q"
    with _postgres_session(sql.connection) as cursor:
        cursor.execute(f"SELECT * {rows} LIMIT 0")
        schema = cursor.fetch_record_batch().schema
    kinds = {f.name: (f.metadata or {}).get(b"POSTGRESQL:type", b"").decode() for f in schema}

    def frames(wanted: Sequence[str]) -> Iterator[pl.DataFrame]:
        with _postgres_session(sql.connection) as cursor:
            newer = ""
            if after is not None and sql.cursor is not None:
                column, least = f"q.{_quoted(sql.cursor)}", _literal(cursor, after, kinds[sql.cursor])
                newer = f"WHERE {column} >= {least} ORDER BY {column}"
            asked = ", ".join(_asked(name, kinds[name]) for name in wanted)
            cursor.execute(f"SELECT {asked} {rows} {newer}")
            numerics = [name for name in wanted if kinds[name] == "numeric"]
            for batch in cursor.fetch_record_batch():
                yield values.without_ending_zeros(values.frame(batch), numerics)

    return schema.names, frames


@contextlib.contextmanager
def _postgres_session(connection: str) -> Iterator[Any]:
    """A cursor that can only read, in one transaction."""
    try:
        from adbc_driver_postgresql import dbapi  # type: ignore[import-untyped]
    except ImportError as error:
        raise DataError("databases need drivers; pip install 'mlops_ray[sql]'") from error
    address, secrets = _address(connection)
    size = {"adbc.postgresql.batch_size_hint_bytes": str(delimited.BLOCK_BYTES)}
    try:
        with dbapi.connect(address) as database, database.cursor(adbc_stmt_kwargs=size) as cursor:
            cursor.execute("SET TRANSACTION READ ONLY")
            yield cursor
    except (dbapi.Error, *inputs.UNREADABLE) as error:
        # The original would be shown with it, and holds them.
        raise OSError(_without(secrets, one_line(error))) from None


def _address(connection: str) -> tuple[str, list[str]]:
    """A connection as the driver takes it, and what of it stands in no message, the longest first."""
    scheme, _, rest = connection.partition("://")
    if scheme not in ("postgresql", "postgres"):
        raise OSError("a connection is sqlite:///FILE or postgresql://HOST/DATABASE, with USER@ before HOST")
    head, _, options = rest.partition("?")
    who, at, place = head.rpartition("@")
    if "@" in options:
        raise OSError("in a connection, a ? in the password is written %3F, and an @ behind the ? %40")
    user, colon, password = who.partition(":")
    given = dict(option.partition("=")[::2] for option in options.split("&"))
    # A password as a person writes it may have signs that would end it.
    who = user + colon + quote(unquote(password), safe="")
    if "connect_timeout" not in given:
        options += f"{'&' * bool(options)}connect_timeout={inputs.CONNECT_S}"
    address = f"{scheme}://{who}{at}{place}?{options}"
    hidden = [value for name, value in given.items() if unquote(name).lower().endswith("password")]
    forms = {form for secret in (password, *hidden) for form in _forms(secret)} - {""}
    return address, [connection, address, *sorted(forms, key=len, reverse=True)]


def _forms(secret: str) -> set[str]:
    """A secret in every way in which a driver may write it."""
    plain = {secret, unquote(secret), unquote_plus(secret)}
    encoded = {encode(form, safe="") for form in plain for encode in (quote, quote_plus)}
    return plain | encoded | {re.sub("%..", lambda code: code[0].lower(), form) for form in encoded}


def _without(secrets: list[str], text: str) -> str:
    for secret in secrets:
        if len(secret) < SHORTEST_SECRET and secret in text:
            return "the database cannot be read; what its driver says may hold the password"
        text = text.replace(secret, "…")
    return text


def _asked(name: str, kind: str) -> str:
    column = f"q.{_quoted(name)}"
    if kind in TYPED:
        return column
    # The type of an array is called after that of its values.
    return f"{f'to_json({column})' if kind.startswith('_') else column}::text AS {_quoted(name)}"


def _literal(cursor: Any, after: object, kind: str) -> str:
    """A value as a part of a query, written by the server: what is bound would not be streamed."""
    is_text = kind in ("text", "varchar", "bpchar", "name")
    if is_text and isinstance(after, int | float):
        raise OSError("the cursor is text, in which 9 comes after 10; cast it in the query")
    cursor.execute("SELECT quote_literal($1)", [str(_comparable(after, is_text))])
    return str(cursor.fetchone()[0])


def _comparable(after: object, is_text: bool) -> Any:
    """A stored value as a database compares it; of a time that is text there, a day before it in any zone."""
    if is_text and isinstance(after, datetime):
        return (after - timedelta(days=1)).date().isoformat()
    if isinstance(after, date):
        return after.isoformat()
    return after if isinstance(after, int | float | str) else str(after)


def _bare(query: str) -> str:
    """A query as a part of another one."""
    return f"\n{query.strip().rstrip(';')}\n"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
