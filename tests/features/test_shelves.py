"""Addresses of online stores: what is one, and that no message shows a secret of it."""

from pathlib import Path

import pytest

from mlops_ray.errors import StorageError
from mlops_ray.features.shelves import RedisShelf, SqliteShelf, Write, open_shelf, sealed, shown

from .conftest import RedisServer

#: A port on which nobody listens.
NOBODY_S = 1
WITH_SECRETS = [
    "redis://u:S3CRET#Zq9@127.0.0.1:{port}/0",
    "redis://u:S3CRET?Zq9@127.0.0.1:{port}/0",
    "redis://u:S3CRET/Zq9@127.0.0.1:{port}/0",
    "redis://u:S3CRET@Zq9@127.0.0.1:{port}/0",
    "redis://u:1234#Zq9@127.0.0.1:{port}/0",
    "redis://u:S3CRET[Zq9@127.0.0.1:{port}/0",
    "redis://u:S3CRET%zzZq9@127.0.0.1:{port}/0",
    "redis://u:S3CRET",
    "redis://u:S3CRET@127.0.0.1:none/0",
    "redis://u:S3CRET@127.0.0.1:99999/0",
    "redis://u:S3CRET@127.0.0.1:{port}/0?foo=Zq9",
    "redis://u:S3CRET@127.0.0.1:{port}/0?socket_timeout=Zq9",
    "redis://u:S3CRET@" + "a" * 70 + ".x:{port}/0",
    "redis://u:S3CRET@..:{port}/0",
    "REDIS://u:S3CRET@127.0.0.1:{port}/0",
    "unix://u:S3CRET@/nowhere.sock",
    "http://u:S3CRET@127.0.0.1:{port}/Zq9",
    "postgres://u:S3CRET@127.0.0.1/Zq9",
    "u:S3CRET@http://127.0.0.1",
    "u:S3CRET@127.0.0.1:{port}",
    ":S3CRET@127.0.0.1:{port}",
    "u:S3CRET/Zq9@127.0.0.1:{port}",
    "S3CRET@127.0.0.1:{port}",
]


@pytest.mark.parametrize("address", WITH_SECRETS)
def test_no_message_shows_a_secret_of_an_address(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    address = address.format(port=NOBODY_S)
    with pytest.raises(StorageError) as raised:
        open_shelf(address)
    for text in (str(raised.value), shown(address)):
        assert not any(secret in text for secret in ("S3CRET", "Zq9", "1234#"))
    assert not list(tmp_path.iterdir()), "no file has a secret for its name"


@pytest.mark.parametrize(
    ("address", "seen"),
    [
        ("http://user@host/path", "http://…"),
        ("postgres://localhost/0", "postgres://…"),
        ("HTTP://localhost", "HTTP://…"),
        ("localhost:6379", "…"),
        ("redis:/localhost", "…"),
    ],
)
def test_an_address_of_no_kind_that_we_know_is_refused_and_says_which_there_are(
    address: str, seen: str
) -> None:
    with pytest.raises(StorageError) as raised:
        open_shelf(address)
    message = str(raised.value)
    assert message.startswith(f"the online store {seen} is no address: write a path, or redis://HOST:6379/0")


def test_a_scheme_is_read_in_whatever_case(redis_server: RedisServer) -> None:
    shelf = open_shelf(redis_server.url.replace("redis", "REDIS"))
    assert isinstance(shelf, RedisShelf)
    shelf.close()


def test_records_are_bytes_whatever_an_address_says(redis_server: RedisServer) -> None:
    redis_server.empty()
    shelf = open_shelf(f"{redis_server.url}?decode_responses=true")
    about, record = sealed(1, b"\xff"), sealed(1, b"\xfe")
    assert shelf.put("t", Write(about, 1, [("a", 0, record)], None, None))
    assert shelf.get("t", ["a"]) == (about, [record])
    shelf.close()


def test_a_path_is_a_path_whatever_is_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "a:b@c").mkdir()
    path = tmp_path / "a:b@c" / "online.db"
    assert shown(path) == str(path)
    for location in (path, str(path)):
        shelf = open_shelf(location)
        assert isinstance(shelf, SqliteShelf)
        shelf.close()


@pytest.mark.parametrize(
    ("address", "seen"),
    [
        ("redis://user:secret@host:6379/0?password=other#id", "redis://host:6379/0"),
        ("rediss://[::1]:6379/0", "rediss://[::1]:6379/0"),
        ("unix://user:secret@/run/redis.sock?db=1", "unix:///run/redis.sock"),
        ("redis://user:se%40cret@host", "redis://host"),
    ],
)
def test_an_address_is_shown_without_user_password_and_options(address: str, seen: str) -> None:
    assert shown(address) == seen
