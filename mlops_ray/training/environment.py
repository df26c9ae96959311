"""What a run is made with: Python, the libraries, and the state of the project's own folder in Git."""

import os
import platform
import subprocess
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from mlops_ray import __version__

#: What stands for a commit where there is none.
NONE = "none"
GIT_S = 5.0
#: Nothing is written, and no program started that a repository's settings name.
QUIET = ("--no-optional-locks", "-c", "core.fsmonitor=false")
#: Settings of the user and the machine, which do not come with a repository.
USERS = ("system", "global")


def environment(folder: Path) -> dict[str, Any]:
    """The versions of our code, of Python and of all that is installed, and `git_state` of the folder."""
    installed = {(found.metadata["Name"], found.version) for found in distributions()}
    return {
        "code": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "requirements": sorted(f"{name}=={version}" for name, version in installed),
        "git": git_state(folder),
    }


def git_state(folder: Path) -> dict[str, str]:
    """The `commit` of a folder, and whether it is `dirty`: whether anything in it was changed since.

    "none" where there is no commit, no Git, or no answer in time, and of what can only be told by a program
    that the repository names.
    """
    commit = (_git(folder, "rev-parse", "--verify", "--quiet", "HEAD") or NONE).strip()
    filters = _git(folder, "config", "--show-scope", "--name-only", "--get-regexp", r"^filter\.")
    if filters is None or not all(line.startswith(USERS) for line in filters.splitlines()):
        return {"commit": commit, "dirty": NONE}
    changed = _git(folder, "status", "--porcelain", "--ignore-submodules=dirty", "--", ".")
    return {"commit": commit, "dirty": NONE if changed is None else str(bool(changed)).lower()}


def _git(folder: Path, *asked: str) -> str | None:
    """What Git answers; `None` where it does not, or has no such thing."""
    command, nowhere = ["git", *QUIET, "-C", str(folder), *asked], {"GIT_ALLOW_PROTOCOL": "none"}
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, timeout=GIT_S, check=False, env=os.environ | nowhere
        )
        # Of `config` 1 says that nothing is set.
        fine = (0, 1) if asked[0] == "config" else (0,)
        return done.stdout.decode() if done.returncode in fine else None
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
