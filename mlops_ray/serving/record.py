"""What is live, and what was asked for: small documents below `STORAGE/release`.

    NAME.json              the release of a model: champion, the one before, challenger, what became of whom
    asked/NAME/ID.json     a push, a promotion, a rollback that nobody has taken up yet
    replicas/NAME/ID.json  what a replica holds in memory (heartbeats.py)
    seen/NAME.json         what the comparison of champion and challenger tells so far
    settings/NAME.json     how the reconciler loads a version of the model, and whom it tells

The reconciler alone replaces a release; replicas poll it, load beside what answers and switch a reference.
Nothing is deployed anew to change a model.
"""

import logging
import os
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from mlops_ray.errors import StorageError
from mlops_ray.registry.package import Package
from mlops_ray.serving.protocol import outputs
from mlops_ray.storage import PRIVATE, Storage

logger = logging.getLogger(__name__)

FOLDER = "release"
ASKED, SEEN, SETTINGS = (f"{FOLDER}/{name}" for name in ("asked", "seen", "settings"))
#: What versions earn beside the champion, written by who pushes them (cluster.profitable).
VERDICTS = "cost/verdicts"
FORMAT_VERSION = 2
#: How often replicas look at the release. A version is to be live everywhere within 2 s of its push, loading
#: included, and a rollback within 1.
POLL_S = 0.1

Document = dict[str, Any]
Wish = Literal["push", "promote", "rollback"]


def new(name: str) -> Document:
    """The release of a model of which nothing was pushed yet."""
    return {
        "format": FORMAT_VERSION,
        "model": name,
        "turn": 0,
        "champion": None,
        "previous": None,
        "challenger": None,
        "weight": 0.0,
        "shadow": 0.0,
        "history": [],
        "answers": {},
        "recorded": 0,
        "told": 0,
        "called": 0,
    }


def read(storage: Storage, name: str) -> Document:
    """The release of a model; empty where it has none.

    Raises `StorageError` for one of another format version.
    """
    document = storage.read_json(FOLDER, f"{name}.json") or {}
    if not document:
        return {}
    # Format 1 knew the champion and the one before it alone.
    if not isinstance(document, dict) or document.get("format") not in (1, FORMAT_VERSION):
        raise StorageError(
            f"the release of {name!r} is damaged, or not of format {FORMAT_VERSION}: put a copy of "
            f"{FOLDER}/{name}.json back, or update mlops_ray where a newer version wrote it"
        )
    champion = document.get("champion")
    if champion is not None and not (isinstance(champion, dict) and isinstance(champion.get("version"), str)):
        raise StorageError(f"the release of {name!r} is damaged: its champion has no version")
    return new(name) | document | {"model": name, "format": FORMAT_VERSION}


def write(storage: Storage, document: Document) -> Document:
    """Replaces the release of a model, which is returned."""
    storage.write_json(document, FOLDER, f"{document['model']}.json")
    return document


def read_all(storage: Storage) -> list[Document]:
    """The releases of all models that have a champion, by name; one that is damaged hides no other."""
    found = []
    for name in names(storage):
        try:
            document = read(storage, name)
        except StorageError:
            logger.exception("the release of %s is left out", name)
            continue
        if document.get("champion"):
            found.append(document)
    return found


def names(storage: Storage) -> list[str]:
    """The models that have a release, or of which something was pushed."""
    found = {path.stem for path in storage.root.glob(f"{FOLDER}/[!.]*.json")}
    return sorted(found | {path.name for path in storage.root.glob(f"{ASKED}/[!.]*")})


def key(entry: Document) -> str:
    """What tells one loaded version from another: a package may be registered twice."""
    return f"{entry['version']} {entry['digest']}"


def entry(storage: Storage, version: str, package: Package) -> dict[str, Any]:
    """What replicas need to load a version, and what the dashboard tells of it.

    Raises `StorageError` where the package lies outside the storage, where replicas could not read it.
    """
    root, folder = storage.root.resolve(), package.folder.resolve()
    if not folder.is_relative_to(root):
        raise StorageError(f"the package {folder} lies outside the storage {root}; put it below")
    features = package.feature_set
    return {
        "version": version,
        "package": str(folder.relative_to(root)),
        "digest": package.digest,
        "family": package.family,
        "task": package.task,
        "created_at": package.manifest["created_at"],
        "metrics": package.metrics,
        "baselines": package.baselines,
        "request": features.request.to_json(),
        "outputs": list(outputs(package.outcome.threshold, package.outcome.labels)),
    }


# ---------------------------------------------------------------- what was asked for


@dataclass(frozen=True)
class Ask:
    """What somebody wants of a model's release; of a push, how the version is to go live."""

    id: str
    what: Wish
    version: str | None = None
    by: str = ""
    release: dict[str, Any] | None = None


def ask(
    storage: Storage,
    name: str,
    what: Wish,
    version: int | None = None,
    *,
    by: str,
    release: dict[str, Any] | None = None,
) -> Ask:
    """Leaves a wish for the reconciler, which answers it in the release, under the id."""
    # Ids in the order of time, as far as clocks agree.
    id = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
    made = Ask(id, what, None if version is None else str(version), by, release)
    storage.write_json(asdict(made), ASKED, name, f"{made.id}.json")
    return made


def asked(storage: Storage, name: str, *, tidy: bool = False) -> list[Ask]:
    """What waits to be taken up, oldest first; where who asks is to `tidy`, what is no wish is put aside."""
    found = []
    for path in sorted(storage.root.joinpath(ASKED, name).glob("[!.]*.json")):
        try:
            read = storage.read_json(ASKED, name, path.name)
            # One that was just taken up is gone.
            if read is not None:
                found.append(_wish(path.stem, **read))
        except (StorageError, TypeError, ValueError) as error:
            if tidy:
                logger.error("%s is no wish (%s); it is put aside", path, error)
                path.replace(path.with_suffix(".damaged"))
    return found


def _wish(stem: str, **read: Any) -> Ask:
    made = Ask(**read)
    if made.id != stem or made.what not in get_args(Wish):
        raise ValueError("it asks for nothing that there is")
    return made


def forget(storage: Storage, name: str, id: str) -> None:
    """Takes a wish away that was taken up; safe to repeat."""
    storage.root.joinpath(ASKED, name, f"{id}.json").unlink(missing_ok=True)


# ---------------------------------------------------------------- how versions are loaded, and who is told


@dataclass(frozen=True)
class Settings:
    """What the reconciler must know of a model's project, as it was deployed.

    `tracking` is MLflow's address, `hooks` and `alerts` are those of the project file: all may hold
    passwords. The monitor reads the alerts, and which share of requests may fail. `explains`: callers may ask
    what each feature contributed.
    """

    tracking: str
    online: str
    functions: tuple[str, ...] = ()
    trusted: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    hooks: tuple[dict[str, Any], ...] = ()
    alerts: tuple[dict[str, Any], ...] = ()
    error_rate: float = 0.001
    explains: bool = False


def settle(storage: Storage, name: str, settings: Settings) -> None:
    """Writes the settings, readable by their owner alone."""
    storage.write_json(asdict(settings), SETTINGS, f"{name}.json", mode=PRIVATE)


def settings(storage: Storage, name: str) -> Settings | None:
    """The settings of a model; `None` where it was not deployed from this storage."""
    found = storage.read_json(SETTINGS, f"{name}.json")
    lists = {"functions", "trusted", "types", "hooks", "alerts"}
    read: dict[str, Any] = {key: tuple(found[key]) for key in lists.intersection(found or ())}
    return None if found is None else Settings(**found | read)


def mark(path: Path) -> tuple[int, int] | None:
    """Changes with every replacement of the file; `None` where there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot look at {path}: {error.strerror}") from error
    return found.st_ino, found.st_mtime_ns
