"""What a run is made with: Python, the libraries, and the state of the project's own folder in Git."""

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

    "none" where there is no commit, no Git, or no answer in time.
    """
    asked = ["git", *QUIET, "-C", str(folder), "status", "--porcelain=v2", "--branch", "--", "."]
    try:
        said = subprocess.run(asked, capture_output=True, timeout=GIT_S, check=True).stdout.decode()  # noqa: S603
    except (OSError, ValueError, subprocess.SubprocessError):
        return {"commit": NONE, "dirty": NONE}
    commit, *rest = said.removeprefix("# branch.oid ").splitlines()
    changed = any(not line.startswith("#") for line in rest)
    return {"commit": NONE if "(" in commit else commit, "dirty": str(changed).lower()}
