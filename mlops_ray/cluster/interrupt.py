"""Ctrl-C, whatever the process is doing.

Python raises `KeyboardInterrupt` in the main thread, which may sit in a call of Ray's that does not return,
or in a finaliser or an import that swallows it; and a driver whose calls were cut short may crash on shutting
down. What lies on disk is whole at any moment, so nothing has to be unwound: the process replaces itself by
one that stops the cluster and ends.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mlops_ray.cluster import local

#: What a shell expects of a command that Ctrl-C ended.
INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: What the main thread may take to close its MLflow run and to come to the end of its block.
GRACE_S = 4.0
#: How soon an interrupt that a finaliser swallowed is raised again.
AGAIN_S = 0.05
SHOW_CURSOR = "\x1b[?25h"


@contextlib.contextmanager
def stops(folder: Path | None) -> Iterator[None]:
    """Within the block, an interrupt stops the cluster that `folder` records, if any, and ends the process.

    `KeyboardInterrupt` unwinds the block first, unless that takes longer than `GRACE_S`.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    done, swallowed = threading.Event(), threading.Event()
    threading.Thread(target=_watch, args=(reader, folder, done, swallowed), daemon=True).start()
    hook, sys.unraisablehook = sys.unraisablehook, _notes(swallowed, sys.unraisablehook)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, _raise) for number in SIGNALS}
    try:
        yield
    except KeyboardInterrupt:
        _become_stop(folder)
    finally:
        done.set()
        sys.unraisablehook = hook
        signal.set_wakeup_fd(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _raise(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _notes(
    swallowed: threading.Event, hook: Callable[["sys.UnraisableHookArgs"], Any]
) -> Callable[["sys.UnraisableHookArgs"], Any]:
    """`hook`, but a `KeyboardInterrupt` that a finaliser swallowed is noted instead of printed."""

    def note(unraisable: "sys.UnraisableHookArgs") -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            swallowed.set()
        else:
            hook(unraisable)

    return note


def _watch(reader: int, folder: Path | None, done: threading.Event, swallowed: threading.Event) -> None:
    """Waits for a signal's number in the pipe, and then for the main thread."""
    while os.read(reader, 1)[0] not in SIGNALS:
        continue
    end, main = time.monotonic() + GRACE_S, threading.main_thread().ident
    assert main is not None
    while not done.wait(AGAIN_S):
        if time.monotonic() > end:
            _become_stop(folder)
        if swallowed.is_set():
            swallowed.clear()
            signal.pthread_kill(main, signal.SIGINT)


def _become_stop(folder: Path | None) -> None:
    """Replaces the process, with all its threads, by one that stops the cluster and hears no more signals."""
    for number in SIGNALS:
        with contextlib.suppress(ValueError):  # not the main thread: the new program does it again
            signal.signal(number, signal.SIG_IGN)
    if sys.stderr.isatty():
        sys.stderr.write(SHOW_CURSOR)
    sys.stdout.flush()
    sys.stderr.flush()
    arguments = [str(folder)] if folder else []
    os.execv(sys.executable, [sys.executable, "-P", "-m", "mlops_ray.cluster.interrupt", *arguments])  # noqa: S606 - our own


def main(folders: list[str]) -> None:
    """Stops the clusters that these folders record; the exit status is that of an interrupted command."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    for folder in folders:
        local.stop(Path(folder))
    sys.stderr.write("stopped\n")
    sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main(sys.argv[1:])
