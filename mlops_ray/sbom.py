"""What is inside, as CycloneDX 1.6 lists it (https://cyclonedx.org): of the environment, and of a model.

The same contents are the same list, byte by byte: its serial number is made of the rest, and it has no time
but that of a model.
"""

import functools
import math
import platform
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from typing import Any
from urllib.parse import quote

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from mlops_ray.storage import digest

Json = dict[str, Any]
#: By the normal name of a library those that it requires.
Requires = Mapping[str, frozenset[str]]

#: The distribution that we are.
OURS = "mlops-ray"
#: What reading a package and answering takes, beside the libraries of the model's kind.
LOADS = (
    "cloudpickle",  # Polars imports it where it is there
    "cryptography",
    "holidays",
    "numpy",
    "orjson",
    "polars",
    "pyarrow",
    "pydantic",
    "pyyaml",
)
SCHEMA = "http://cyclonedx.org/schema/bom-1.6.schema.json"
#: How the parts of a model's list are called within it.
MODEL, TRAINING_SET = "model", "training-set"
#: What is longer than a name is the text of a licence.
MOST_OF_A_NAME = 80
#: What stands in a licence's place, and names none.
NO_LICENCE = frozenset({"", "OSI Approved", "UNKNOWN"})


def environment() -> Json:
    """All that is installed here: exact versions, licences where they are said, and what requires what.

    >>> found = environment()
    >>> found["bomFormat"], found["specVersion"], found["metadata"]["component"]["name"]
    ('CycloneDX', '1.6', 'mlops_ray')
    """
    names = {found.metadata["Name"] for found in distributions()}
    requires = _required(tuple(sorted(canonicalize_name(name) for name in names if name)))
    others = [_library(name) for name in sorted(requires) if name != OURS]
    return _list({"component": _library(OURS)}, [_python(), *others], _by_ref(requires))


def of_model(manifest: Mapping[str, Any], sha256: str, libraries: Iterable[str]) -> Json:
    """What a package is made of: the model, what loading it takes, and its training set, by its hash alone.

    `manifest` is package.json, `sha256` the digest of the model's file, `libraries` are those that its kind
    names. The hash of the training set, which is no part of the package, is that of its canonical values
    (`features.dataset.values_digest`). Raises `PackageNotFoundError` where a library is not installed.
    """
    loads = frozenset(filter(_is_installed, LOADS))
    needed = tuple(sorted(loads.union(map(canonicalize_name, libraries))))
    requires = {**_required(needed), OURS: loads}
    model = {
        "type": "machine-learning-model",
        "bom-ref": MODEL,
        "name": manifest["name"],
        "hashes": [_hash(sha256)],
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"},
                "task": manifest["task"],
                "architectureFamily": manifest["family"],
                "modelArchitecture": manifest["model"]["kind"],
                "datasets": [{"ref": TRAINING_SET}],
            },
            "quantitativeAnalysis": {"performanceMetrics": list(_metrics(manifest))},
        },
    }
    head = {"timestamp": manifest["created_at"], "component": model}
    parts = [_python(), *map(_library, sorted(requires)), _training_set(manifest["training_set"])]
    of_the_model = sorted([TRAINING_SET, *(_ref(name) for name in (OURS, *needed))])
    return _list(head, parts, {MODEL: of_the_model} | _by_ref(requires))


def _list(head: Json, parts: Sequence[Json], requires: Mapping[str, Sequence[str]]) -> Json:
    listed = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": head,
        "components": list(parts),
        "dependencies": [{"ref": ref, "dependsOn": list(requires[ref])} for ref in sorted(requires)],
    }
    number = uuid.uuid5(uuid.NAMESPACE_URL, f"{SCHEMA}#{digest(listed)}")
    return {"$schema": SCHEMA, "serialNumber": f"urn:uuid:{number}", **listed}


# ---------------------------------------------------------------- the model and its data


def _metrics(manifest: Mapping[str, Any]) -> Iterator[Json]:
    """The errors on the test part, with their intervals; what is no number is left out."""
    for name, value in sorted(manifest["metrics"].items()):
        low, high = manifest["intervals"].get(name, (None, None))
        if _is_number(value):
            told = {"type": name, "value": str(value), "slice": "test part"}
            bounds = {"lowerBound": str(low), "upperBound": str(high)}
            yield told | ({"confidenceInterval": bounds} if _is_number(low) and _is_number(high) else {})


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _training_set(recorded: Mapping[str, Any]) -> Json:
    """The data by hash and number of rows: not a row, and no name of a column."""
    rows = {"properties": [{"name": "mlops_ray:rows", "value": str(recorded.get("rows", 0))}]}
    name, hashed = recorded.get("file", TRAINING_SET), recorded.get("digest")
    return {
        "type": "data",
        "bom-ref": TRAINING_SET,
        "name": name,
        **({"hashes": [_hash(hashed)]} if hashed else {}),
        "data": [{"type": "dataset", "contents": rows}],
    }


def _hash(sha256: str) -> Json:
    return {"alg": "SHA-256", "content": sha256}


# ---------------------------------------------------------------- libraries


def _by_ref(requires: Requires) -> dict[str, list[str]]:
    return {_ref(name): sorted(map(_ref, others)) for name, others in requires.items()}


def _ref(name: str) -> str:
    return str(_library(name)["bom-ref"])


def _python() -> Json:
    name, version = platform.python_implementation(), platform.python_version()
    ref = f"pkg:generic/{name.lower()}@{quote(version, safe='')}"
    return {"type": "platform", "bom-ref": ref, "name": name, "version": version, "purl": ref}


@functools.cache
def _library(name: str) -> Json:
    """An installed library, as a component; it is named by its package URL."""
    found = distribution(name)
    purl = f"pkg:pypi/{name}@{quote(found.version, safe='')}"
    made = {"type": "library", "bom-ref": purl, "name": found.metadata["Name"], "version": found.version}
    licences = _licences(found)
    return made | {"purl": purl} | ({"licenses": licences} if licences else {})


def _licences(of: Distribution) -> list[Json]:
    """What metadata says: an expression of SPDX, else names as they stand there; nothing is guessed."""
    said = {key: of.metadata.get_all(key) or [] for key in ("License-Expression", "License", "Classifier")}
    if said["License-Expression"]:
        return [{"expression": said["License-Expression"][0]}]
    named = {text.strip() for text in said["License"]} - NO_LICENCE
    if not named or any("\n" in name or len(name) > MOST_OF_A_NAME for name in named):
        of_us = (text for text in said["Classifier"] if text.startswith("License ::"))
        named = {text.rpartition(" :: ")[2] for text in of_us} - NO_LICENCE
    return [{"license": {"name": name}} for name in sorted(named)]


@functools.cache
def _required(names: tuple[str, ...]) -> Requires:
    """What these libraries, and all that they lead to, require of what is installed.

    Raises `PackageNotFoundError` where one of `names` is not.
    """
    found: dict[str, set[str]] = {name: set() for name in names}
    ahead, seen = [(name, "") for name in names], set()
    while ahead:
        name, extra = here = ahead.pop()
        if here in seen:
            continue
        seen.add(here)
        for wanted in _requirements(name, extra):
            other = canonicalize_name(wanted.name)
            found.setdefault(other, set())
            # An extra may ask for another of the same library.
            found[name] |= {other} - {name}
            ahead += [(other, each) for each in ("", *wanted.extras)]
    return {name: frozenset(others) for name, others in found.items()}


def _requirements(name: str, extra: str) -> Iterator[Requirement]:
    """What a library requires here with an extra (or none), as far as it is installed."""
    for text in distribution(name).requires or ():
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            # Of old libraries some write what nobody reads any more.
            continue
        if (wanted.marker is None or wanted.marker.evaluate({"extra": extra})) and _is_installed(wanted.name):
            yield wanted


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
