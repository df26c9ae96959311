"""A real Redis server of the session's own, and the two places where an online store can be."""

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis

from ..conftest import require
from ..servers import free_port

#: What a server says when it can be called.
READY = "Ready to accept connections"
#: Another program may take a port between our looking for a free one and the server's taking it.
TRIES = 5


@dataclass
class RedisServer:
    """A Redis server on a free port of this machine that keeps nothing on disk; with a password if given."""

    folder: Path
    password: str | None = None
    port: int = 0
    _process: subprocess.Popen[str] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        user = f"user:{self.password}@" if self.password else ""
        return f"redis://{user}127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Returns when the server answers: on the port that it had before, if any."""
        for _ in range(TRIES):
            port = self.port or free_port()
            process = subprocess.Popen(self._command(port), stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            if any(READY in line for line in process.stdout):
                self.port, self._process = port, process
                return
            process.wait()
        pytest.fail(f"redis-server did not start in {TRIES} tries")

    def _command(self, port: int) -> list[str]:
        options = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(self.folder)]
        options += ["--save", "", "--appendonly", "no"]
        if self.password:
            options += [
                "--user",
                "user",
                "on",
                f">{self.password}",
                "~*",
                "&*",
                "+@all",
                "--user",
                "default",
                "off",
            ]
        return [require("redis-server"), *options]

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def empty(self) -> None:
        with redis.Redis.from_url(self.url) as client:
            client.flushall()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


#: Makes the address of an online store that is still empty.
NewPlace = Callable[[Path], str]


@pytest.fixture(params=["sqlite", "redis"])
def new_place(request: pytest.FixtureRequest) -> NewPlace:
    """What gives the address of an empty online store of each kind; a folder is there for its file."""
    if request.param == "sqlite":
        return lambda folder: str(folder / "online.db")
    server: RedisServer = request.getfixturevalue("redis_server")

    def emptied(_: Path) -> str:
        server.empty()
        return server.url

    return emptied


@pytest.fixture
def place(new_place: NewPlace, tmp_path: Path) -> str:
    """The address of an empty online store of each kind."""
    return new_place(tmp_path)
