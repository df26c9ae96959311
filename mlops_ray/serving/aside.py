"""Work in a process of its own, forked from one that waits with its imports done, which take seconds.

    who asks ─ socket ─▶ the one that waits ─ fork ─▶ one that watches ─ fork ─▶ one that works

Whatever happens to the one that works, who asked is told how it ended; and it ends when nobody asks any more.
"""

import contextlib
import gc
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

#: How long a process that is dying may take.
END_S = 1.0


class DiedError(Exception):
    """The process that worked did not come to an end of its own; the text says how it died, or ended.

    >>> str(DiedError.of(-11)), str(DiedError.of(3))
    ('died of SIGSEGV', 'ended with status 3')
    """

    @classmethod
    def of(cls, status: int) -> "DiedError":
        """How a process ended, by its exit status."""
        if status >= 0:
            return cls(f"ended with status {status}")
        with contextlib.suppress(ValueError):
            return cls(f"died of {signal.Signals(-status).name}")
        return cls(f"died of signal {-status}")


class Aside:
    """A process that waits for work; where somebody ended it, another waits in its place."""

    def __init__(self, module: str, imported: Sequence[str] = ()) -> None:
        """`module.work` makes the answer of what is asked, both text; `imported` is imported besides."""
        self._module, self._imported = module, imported
        self._lock = threading.Lock()
        self._start()

    @property
    def pid(self) -> int:
        """The process that waits."""
        return self._process.pid

    def ask(self, asked: str, within_s: float) -> str:
        """What `work` answers to a line of text, in a process of its own.

        Raises `DiedError` where that died, `TimeoutError` where it took too long and was ended.
        """
        process, status, said = self._ask(asked, within_s)
        if not status and _has_ended(process):
            # It took what was asked with it.
            _, status, said = self._ask(asked, within_s)
        if not status:
            raise DiedError("was ended")
        if int(status) != 0:
            raise DiedError.of(int(status))
        return said.decode()

    def close(self) -> None:
        """Ends the process that waits."""
        with self._lock:
            self._end()

    def _ask(self, asked: str, within_s: float) -> tuple[subprocess.Popen[bytes], bytes, bytes]:
        """Who was asked, the exit status and what was answered; both empty where nobody told."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                process = self._hand(theirs)
            ours.settimeout(within_s)
            with contextlib.suppress(ConnectionError), ours.makefile("rwb") as file:
                file.write(asked.encode() + b"\n")
                file.flush()
                return process, file.readline(), file.read()
        return process, b"", b""

    def _hand(self, end: socket.socket) -> subprocess.Popen[bytes]:
        with self._lock:
            try:
                socket.send_fds(self._control, [b"."], [end.fileno()])
            except ConnectionError:
                self._end()
                self._start()
                socket.send_fds(self._control, [b"."], [end.fileno()])
            return self._process

    def _start(self) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            # Not the caller's own __main__, which may be anything.
            code = [f"import {name}" for name in self._imported] + [
                f"from {__name__} import wait",
                f"from {self._module} import work",
                f"wait({theirs.fileno()}, work)",
            ]
            command = [sys.executable, "-c", "; ".join(code)]
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )

    def _end(self) -> None:
        self._control.close()
        self._process.kill()
        self._process.wait()


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_S)
    return process.returncode is not None


def wait(control: int, work: Callable[[str], str]) -> None:
    """Forks for every socket that comes through `control`, until nobody holds its other end."""
    # Nobody waits for those that watch; and who is interrupted ends what they started by its own end.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()
    with socket.socket(fileno=control) as asks:
        while (found := socket.recv_fds(asks, 1, 1))[0]:
            if os.fork() == 0:
                _watch(asks, socket.socket(fileno=found[1][0]), work)
            os.close(found[1][0])


def _watch(asks: socket.socket, end: socket.socket, work: Callable[[str], str]) -> NoReturn:
    """Has the work done by another process, and tells how that ended and what it answered."""
    try:
        asks.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        asked = end.makefile(encoding="utf-8").readline()
        # It stays open on one side for as long as the process lives.
        alive, life = os.pipe()
        with tempfile.TemporaryFile() as answer:
            process = os.fork()
            if process == 0:
                os.close(alive)
                end.close()
                _work(work, asked, answer.fileno())
            os.close(life)
            if end.fileno() in select.select([alive, end.fileno()], [], [])[0]:
                # Who asked has gone, or waits no longer.
                os.kill(process, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            answer.seek(0)
            with contextlib.suppress(ConnectionError):
                end.sendall(f"{status}\n".encode() + answer.read())
    except Exception:  # noqa: BLE001 - nobody is there to catch it
        traceback.print_exc()
    finally:
        os._exit(0)


def _work(work: Callable[[str], str], asked: str, answer: int) -> NoReturn:
    status = 1
    try:
        # What a library prints is no answer.
        os.dup2(2, 1)
        os.write(answer, work(asked).encode())
        status = 0
    except BaseException:  # noqa: BLE001 - as above
        traceback.print_exc()
    finally:
        os._exit(status)
