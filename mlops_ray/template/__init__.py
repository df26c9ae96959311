"""The project that `mlops-ray init` writes: the files below `files/`, with its own names in them."""

import json
import keyword
import re
import sys
from importlib import metadata
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from packaging.requirements import Requirement

from mlops_ray.config import TAKEN
from mlops_ray.errors import UsageError

DISTRIBUTION = "mlops_ray"
#: Characters of a name.
LONGEST = 63
NAME = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
#: What files are called here that are hidden there: packages leave hidden files out.
HIDDEN = ("gitignore", "github")
#: Folders that are empty at first.
EMPTY = (
    "data/external", "data/interim", "data/processed", "data/raw", "models", "notebooks", "reports/figures",
)  # fmt: skip


def write(name: str, folder: Path) -> list[Path]:
    """Writes a project of this name into a new folder, and returns its files.

    Raises `UsageError` for a name that no project, or no module, may have, and where there is something.
    """
    module = name.replace("-", "_")
    if not NAME.fullmatch(name) or "--" in name:
        raise UsageError(f"{name!r} is no name for a project: small letters, digits, dashes; e.g. shop-sales")
    if len(name) > LONGEST or name in TAKEN:
        raise UsageError(f"no project can be called {name!r:.80}; choose another name")
    folders = {place.split("/")[0] for place in EMPTY}
    if keyword.iskeyword(module) or module in (*folders, "tests", "references") or _is_there(module):
        raise UsageError(f"{name!r} would make a module {module!r}, which there is already; choose another")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists already and is not empty; choose another name or folder")
    words = {"project-name": name, "project_module": module, "mlops-ray-requirement": _requirement()}
    written = list(_copied(files(__name__) / "files", folder, module, words))
    for place in EMPTY:
        written.append(_put(folder / place / ".gitkeep", ""))
    return [*written, _put(folder / "constraints.txt", _constraints())]


def _is_there(module: str) -> bool:
    """Whether Python, or a package that is installed here, has a module of this name."""
    return module in sys.stdlib_module_names or module in metadata.packages_distributions()


def _copied(source: Traversable, folder: Path, module: str, words: dict[str, str]) -> "list[Path]":
    written = []
    for item in sorted(source.iterdir(), key=lambda item: item.name):
        name = f".{item.name}" if item.name in HIDDEN else module if item.name == "module" else item.name
        if item.is_dir() and item.name != "__pycache__":
            written += _copied(item, folder / name, module, words)
        elif item.is_file() and not item.name.endswith(".pyc"):
            text = item.read_text(encoding="utf-8")
            for word, meant in words.items():
                text = text.replace(word, meant)
            written.append(_put(folder / name, text))
    return written


def _put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _requirement() -> str:
    """What installs the package that runs here: its version, or the place that it was installed from [1].

    [1] PEP 610: `direct_url.json`.
    """
    found = metadata.distribution(DISTRIBUTION)
    origin = json.loads(found.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        return f"--editable {url2pathname(urlsplit(origin['url']).path)}"
    return f"{DISTRIBUTION} @ {origin['url']}" if "url" in origin else f"{DISTRIBUTION}=={found.version}"


def _constraints() -> str:
    """The versions of all that the package needs here, so that the project gets them too."""
    todo, versions = [DISTRIBUTION], dict[str, str]()
    while todo:
        for text in metadata.distribution(todo.pop()).requires or []:
            needed = Requirement(text)
            if needed.name in versions or (needed.marker and not _applies(needed)):
                continue
            try:
                versions[needed.name] = metadata.version(needed.name)
            except metadata.PackageNotFoundError:
                # An extra that nobody asked for.
                continue
            todo.append(needed.name)
    lines = [f"{name}=={version}" for name, version in sorted(versions.items())]
    return "\n".join(["# What the project was made with.", *lines, ""])


def _applies(needed: Requirement) -> bool:
    # Whatever extra brought what is installed here.
    return needed.marker is not None and ("extra" in str(needed.marker) or needed.marker.evaluate())
