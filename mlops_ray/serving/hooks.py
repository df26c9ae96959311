"""What a project asks to be called when a release comes to a state: an address, or a command.

Each call is made at least once: a reconciler that dies between makes it again. One that fails is tried a few
times and then left, with a word in the log: the release does not wait for it.
"""

import json
import logging
import os
import shlex
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any

from mlops_ray.monitoring.sending import CALL_S, post, reason

#: How often a call is tried.
TRIES = 3

logger = logging.getLogger(__name__)


def call(hooks: Iterable[Mapping[str, Any]], event: Mapping[str, Any]) -> None:
    """Makes the calls that are asked for at the event's state; an event is model, version, state, reason, …

    An address gets it as JSON by POST. A command gets it as JSON on its standard input, and as MLOPS_MODEL,
    MLOPS_VERSION, MLOPS_STATE and MLOPS_REASON in its environment; no shell reads it.
    """
    for hook in hooks:
        if not hook["on"] or event["state"] in hook["on"]:
            _tried(hook, event)


def _tried(hook: Mapping[str, Any], event: Mapping[str, Any]) -> None:
    for number in range(TRIES):
        try:
            post(hook["webhook"], event) if hook["webhook"] else _run(hook["command"], event)
        except Exception as error:  # noqa: BLE001 - whatever it is, others are told
            # An address may hold a password, a command too, and so may what it said.
            kind, said = "webhook" if hook["webhook"] else "command", reason(error)
            if isinstance(error, subprocess.CalledProcessError):
                said = f"status {error.returncode}"
            logger.warning(
                "the %s for %s failed (%s), try %d of %d", kind, event["state"], said, number + 1, TRIES
            )
        else:
            return


def _run(command: str, event: Mapping[str, Any]) -> None:
    names = {f"MLOPS_{name.upper()}": str(event[name]) for name in ("model", "version", "state", "reason")}
    subprocess.run(  # noqa: S603 - a user's own command
        shlex.split(command),
        input=json.dumps(event),
        env=os.environ | names,
        text=True,
        capture_output=True,
        check=True,
        timeout=CALL_S,
    )
