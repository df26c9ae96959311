"""What is live: a small document per model, `STORAGE/release/NAME.json`.

The driver replaces the document; replicas poll it, load the new package beside the old one and switch.
Nothing is deployed anew to change a model. The states are those of design/semantics.md, section 12: so far a
version goes from registered to champion, and the places of challenger and weight are empty.
"""

import logging
from datetime import UTC, datetime
from typing import Any

from mlops_ray.config import CALENDAR_KINDS
from mlops_ray.errors import StorageError
from mlops_ray.registry.package import Package
from mlops_ray.serving.protocol import outputs
from mlops_ray.storage import Storage

logger = logging.getLogger(__name__)

FOLDER = "release"
FORMAT_VERSION = 1
#: What a champion's entry has at least.
NAMED = ("version",)
#: How often replicas look at the document. A promotion is to be live everywhere within 2 s, loading included.
POLL_S = 0.5


def set_champion(storage: Storage, name: str, version: int, package: Package) -> dict[str, Any]:
    """Makes a version the champion, and returns the release document; safe to repeat.

    The champion before it stays loaded in the replicas until the next change. Raises `StorageError` where the
    package lies outside the storage, where replicas could not read it.
    """
    before = read(storage, name)
    champion = _entry(storage, version, package)
    known = before.get("champion") or {}
    if (known.get("version"), known.get("digest")) == (champion["version"], champion["digest"]):
        return before
    document = {
        "format": FORMAT_VERSION,
        "model": name,
        "champion": champion,
        "previous": known or None,
        "challenger": None,
        "weight": 0,
    }
    storage.write_json(document, FOLDER, f"{name}.json")
    return read(storage, name)


def read(storage: Storage, name: str) -> dict[str, Any]:
    """The release document of a model; empty where it has none.

    Raises `StorageError` for one of another format version.
    """
    document = storage.read_json(FOLDER, f"{name}.json") or {}
    if not document:
        return {}
    if not isinstance(document, dict) or document.get("format") != FORMAT_VERSION:
        raise StorageError(f"the release of {name!r} is damaged, or not of format {FORMAT_VERSION}")
    champion = document.get("champion")
    if not isinstance(champion, dict) or not all(isinstance(champion.get(key), str) for key in NAMED):
        raise StorageError(f"the release of {name!r} is damaged: it names no champion")
    return document | {"model": name}


def read_all(storage: Storage) -> list[dict[str, Any]]:
    """The release documents of all models, by name; one that is damaged hides no other."""
    folder = storage.path(FOLDER, "x").parent
    found = []
    for path in sorted(folder.glob("[!.]*.json")):
        try:
            found.append(read(storage, path.stem))
        except StorageError:
            logger.exception("%s is left out", path.name)
    return found


def _entry(storage: Storage, version: int, package: Package) -> dict[str, Any]:
    """What replicas need to load a version, and what the dashboard tells of it."""
    root, folder = storage.root.resolve(), package.folder.resolve()
    if not folder.is_relative_to(root):
        raise StorageError(f"the package {folder} lies outside the storage {root}; put it below")
    features = package.feature_set
    return {
        "version": str(version),
        "state": "champion",
        "since": datetime.now(UTC).isoformat(),
        "package": str(folder.relative_to(root)),
        "digest": package.digest,
        "family": package.family,
        "task": package.task,
        "created_at": package.manifest["created_at"],
        "metrics": package.metrics,
        "baselines": package.baselines,
        "request": features.request.to_json(),
        "outputs": list(outputs(package.outcome.threshold, package.outcome.labels)),
        "clock": [feature.name for feature in features.computed if feature.kind in CALENDAR_KINDS],
    }
