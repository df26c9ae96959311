"""Servers of peers that stay, and stand still while somebody else is measured."""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks import peers


@dataclass(frozen=True)
class Server:
    """A peer's server: its processes, which stand still but within `awake`, so that they disturb nobody."""

    process: psutil.Popen
    log: Path

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Lets the processes run for the block."""
        self._each(psutil.Process.resume)
        try:
            yield
        finally:
            self._each(psutil.Process.suspend)

    def require_alive(self) -> None:
        """Raises `RuntimeError` with the end of the server's log where it has ended."""
        if self.process.poll() is not None:
            raise RuntimeError(f"a server has ended:\n{self.log.read_text()[-peers.TAIL_CHARACTERS :]}")

    def _each(self, do: Callable[[psutil.Process], None]) -> None:
        # Some put their workers into groups of their own: a signal to the group would miss these.
        for process in (self.process, *self.process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                do(process)

    def end(self) -> None:
        """Ends the processes, also those that stand still."""
        self._each(psutil.Process.kill)
        self.process.wait()


@contextmanager
def server(name: str, script: Path, *args: object, folder: Path) -> Iterator[Server]:
    """A server that a script in the peer's environment starts; it runs until its first `awake` ends."""
    python = peers.environment(name)
    variables = peers.variables()
    # What a package brings as a command is to be found, and one thread answers, as one replica of ours does:
    # several that wait for each other take longer for a row.
    variables |= {"PATH": f"{python.parent}{os.pathsep}{variables['PATH']}", "OMP_NUM_THREADS": "1"}
    command = [str(python), str(script), *map(str, args)]
    log = folder / "log"
    with log.open("wb") as file:
        started = Server(
            psutil.Popen(
                command, cwd=folder, env=variables, stdout=file, stderr=file, stdin=subprocess.DEVNULL
            ),
            log,
        )
    try:
        yield started
    finally:
        started.end()
