"""An interrupt reaches the command, whatever the process was doing when it came."""

import subprocess
import sys
import textwrap

import pytest

from mlops_ray.cluster.interrupt import INTERRUPTED

IN_A_FINALISER = """
    class Finalised:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)
            "".join([])  # the handler runs between two instructions: here

    Finalised()
    """
IN_A_WEAK_REFERENCE = """
    import weakref

    class Referred: ...

    referred = Referred()
    reference = weakref.ref(referred, lambda _: [signal.raise_signal(signal.SIGINT), "".join([])])
    del referred
    """
IN_A_CALL = "signal.raise_signal(signal.SIGINT)"
COMMAND = """
import signal, threading
from mlops_ray.cluster import interrupt

with interrupt.stops(None):
    try:
{body}
        threading.Event().wait(60)
    except KeyboardInterrupt:
        print("unwound")
        raise
"""


@pytest.mark.parametrize(
    "body",
    [IN_A_CALL, IN_A_FINALISER, IN_A_WEAK_REFERENCE],
    ids=["call", "finaliser", "weak reference"],
)
def test_an_interrupt_unwinds_the_command_even_where_a_finaliser_swallows_it(body: str) -> None:
    code = COMMAND.format(body=textwrap.indent(textwrap.dedent(body), " " * 8))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, "unwound\n", "stopped\n")


def test_another_error_in_a_finaliser_is_still_printed() -> None:
    body = """
    class Finalised:
        def __del__(self):
            raise ValueError("of a finaliser")

    Finalised()
    signal.raise_signal(signal.SIGINT)
    """
    code = COMMAND.format(body=textwrap.indent(textwrap.dedent(body), " " * 8))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "ValueError: of a finaliser" in done.stderr
