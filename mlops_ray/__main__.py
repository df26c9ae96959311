"""The command's first step, also as `python -m mlops_ray`."""

import os
import signal
from typing import Any

#: What a shell expects of a command that Ctrl-C ended.
INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    """Runs the command; an interrupt ends it at once, but where a cluster is at stake (cluster/interrupt.py).

    Not by the default action: Polars puts a handler of its own before it when it is imported, which would
    then swallow the signal.
    """
    for number in SIGNALS:
        signal.signal(number, _leave)
    from mlops_ray import cli

    cli.main()


def _leave(number: int, frame: Any) -> None:
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
