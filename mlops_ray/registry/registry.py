"""The registry: packages as versions of MLflow registered models, the alias `champion`, and each one's state.

MLflow holds names, versions and states; what a version is stands in its package, whose digest the registry
keeps: a folder that was changed in the artifact store is not the version that was registered.
"""

import contextlib
import json
import logging
import math
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import AnyType
from requests.exceptions import RequestException
from sqlalchemy.exc import SQLAlchemyError

from mlops_ray.config import ReleaseState
from mlops_ray.cost.model import Capacity
from mlops_ray.errors import NotFoundError, PackageError, StorageError, UsageError, one_line
from mlops_ray.registry import package as packages
from mlops_ray.registry.package import Package
from mlops_ray.registry.signing import Trusted
from mlops_ray.storage import Storage

CHAMPION = "champion"
REGISTERED = "registered"
#: The release states of a version.
STATES = get_args(ReleaseState)
#: Tags of a model version.
STATE, REASON, DIGEST, FOLDER = "mlops.state", "mlops.reason", "mlops.digest", "mlops.folder"
#: Tags that say what a version is, as `versions` tells it: the digest is that of its training set.
ABOUT = {name: f"mlops.{name}" for name in ("family", "metric", "value", "dataset", "signer")}
#: Of tags that each say what a replica of a version bears, a `cost.model.Capacity`.
CAPACITY = "mlops.capacity."
#: A tag that says what training a version has cost: {"amount", "currency"} and more.
COST = "mlops.cost"
#: MLflow copies a model's data into a folder of this name.
DATA = "data"
#: Where in it a package lies.
OWN_FOLDER = re.compile(rf"{DATA}(/(?!\.\.?$)[^/]+)?")
#: Where in a storage copies lie.
COPIES = ("artifacts", "versions")
SHA256 = re.compile("[0-9a-f]{64}")
#: A user and a password in an address.
SECRET = re.compile(r"//\S*@")
#: Types in a model's signature. MLflow has no whole number that may be missing: pandas makes a float of such.
MLFLOW_TYPES: dict[str, DataType | AnyType] = {
    "float": DataType.double,
    "int": AnyType(),  # type: ignore[no-untyped-call]
    "bool": DataType.boolean,
    "string": DataType.string,
    "category": DataType.string,
}


def is_there(tracking_uri: str) -> bool:
    """Whether there can be anything: a database that is a file is not made by looking."""
    path = tracking_uri.removeprefix("sqlite:///")
    return path == tracking_uri or Path(path).exists()


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Within, what MLflow does not do is a `StorageError`, which tells no password of its address."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, RequestException, ImportError) as error:
        said = SECRET.sub("//", one_line(error))
        raise StorageError(f"MLflow (tracking) does not do what it is asked: {said}") from None


class Registry:
    """The registered versions of models at a tracking address (`sqlite:///…`, `http://…`)."""

    def __init__(self, tracking_uri: str) -> None:
        # What a command prints is its own.
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        logging.getLogger("mlflow.store.model_registry").setLevel(logging.WARNING)
        self._uri = tracking_uri

    @cached_property
    def _client(self) -> MlflowClient:
        # It makes a database that is missing.
        return MlflowClient(self._uri, self._uri)

    @answering()
    def register(
        self,
        package: Package,
        *,
        run_id: str,
        metric: str | None = None,
        cost: Mapping[str, Any] | None = None,
    ) -> int:
        """Logs the package as an MLflow model of the run, registers it and returns its version.

        `metric` is the one that decides, `cost` what training it has cost, {"amount", "currency"}. The state
        is "registered". The logged model is loaded by `mlflow.pyfunc.load_model` and holds no pickle and no
        row of data.
        """
        logged, name = self._log(package, run_id), package.name
        self._make_model(name)
        tags = {
            STATE: REGISTERED,
            DIGEST: package.digest,
            FOLDER: f"{DATA}/{package.folder.name}",
            **_about(package, metric),
            **({} if cost is None else {COST: json.dumps(cost)}),
        }
        made = self._client.create_model_version(
            name, logged.model_uri, run_id, tags=tags, model_id=logged.model_id
        )
        return int(made.version)

    def _log(self, package: Package, run_id: str) -> Any:
        mlflow.set_tracking_uri(self._uri)
        with warnings.catch_warnings(), mlflow.start_run(run_id=run_id):
            # It asks for an example; ours is in the package, and MLflow's would start a server to try it.
            warnings.filterwarnings("ignore", message=".*input example", category=UserWarning)
            return mlflow.pyfunc.log_model(
                name="model",
                loader_module="mlops_ray.registry.package",
                data_path=str(package.folder),
                signature=_signature(package),
                pip_requirements=_requirements(package),
            )

    @answering()
    def versions(self, name: str) -> list[dict[str, Any]]:
        """Every version, newest first: version, state, reason, champion (bool), run_id, digest, created.

        And what its tags say of it, by the names of `ABOUT`, `None` where they do not; what training it has
        `cost`; its `capacities`, plain data, by machine and size.
        """
        if not is_there(self._uri):
            return []
        found = self._client.search_model_versions(f"name = '{name}'")
        champion = self.champion(name)
        listed = [
            {
                "version": int(version.version),
                "state": version.tags.get(STATE, REGISTERED),
                "reason": version.tags.get(REASON, ""),
                "champion": int(version.version) == champion,
                "run_id": version.run_id,
                "digest": version.tags.get(DIGEST),
                "created": datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(),
                **{name: version.tags.get(tag) for name, tag in ABOUT.items()},
                "value": _number(version.tags.get(ABOUT["value"])),
                "cost": _cost(version.tags.get(COST)),
                "capacities": _capacities(version.tags),
            }
            for version in found
        ]
        return sorted(listed, key=lambda version: -version["version"])

    @answering()
    def cost(self, name: str, version: int) -> dict[str, Any] | None:
        """What training a version has cost, {"amount", "currency"}; `None` where nobody wrote it down.

        Raises `NotFoundError` for a version that does not exist.
        """
        return _cost(self._tags(name, version).get(COST))

    @answering()
    def champion(self, name: str) -> int | None:
        """The version that the alias names; `None` where there is none."""
        if not is_there(self._uri):
            return None
        try:
            return int(self._client.get_model_version_by_alias(name, CHAMPION).version)
        except MlflowException as error:
            # A missing alias of a model that there is counts as a wrong parameter.
            if _is(error, RESOURCE_DOES_NOT_EXIST, INVALID_PARAMETER_VALUE):
                return None
            raise

    @answering()
    def set_champion(self, name: str, version: int) -> None:
        """Moves the alias; the version before it is "retired", unless it was sent back. Safe to repeat.

        Raises `NotFoundError` for a version that does not exist.
        """
        self._tags(name, version)
        before = self.champion(name)
        self._client.set_registered_model_alias(name, CHAMPION, str(version))
        self.set_state(name, version, CHAMPION)
        if before not in (None, version) and self._tags(name, before).get(STATE) == CHAMPION:
            self.set_state(name, before, "retired")

    @answering()
    def set_state(self, name: str, version: int, state: str, reason: str = "") -> None:
        """Records the release state of a version, one of `STATES`, and why.

        Raises `UsageError` for another state, `NotFoundError` for a version that does not exist.
        """
        if state not in STATES:
            raise UsageError(f"no release state {state!r}; there are {', '.join(STATES)}")
        self._tags(name, version)
        for tag, value in ((REASON, reason), (STATE, state)):
            self._client.set_model_version_tag(name, str(version), tag, value)

    @answering()
    def set_capacity(self, name: str, version: int, key: str, capacity: Capacity) -> None:
        """Keeps what a replica of a version bears, in the place of what was kept under the same key.

        Raises `NotFoundError` for a version that does not exist.
        """
        self._tags(name, version)
        said = json.dumps(capacity.to_json())
        self._client.set_model_version_tag(name, str(version), CAPACITY + key, said)

    @answering()
    def package_folder(self, name: str, version: int, into: Path | None = None) -> Path:
        """Where the version's package lies: in the artifact store if that is a local folder, else a copy.

        The copy is made in the folder `into`, by default in one that stays.

        Raises `NotFoundError` for a version that does not exist, `PackageError` where its package is gone.
        """
        folder = self._tags(name, version).get(FOLDER, DATA)
        if not OWN_FOLDER.fullmatch(folder):
            raise PackageError(f"the package of {name!r} version {version} is said to lie outside its place")
        try:
            uri = f"{self._client.get_model_version_download_uri(name, str(version))}/{folder}"
            is_local = urlsplit(uri).scheme in ("", "file")
            # Of what is local it would make a copy as well.
            place = None if into is None or is_local else str(into)
            return Path(mlflow.artifacts.download_artifacts(uri, dst_path=place, tracking_uri=self._uri))
        except RequestException:
            raise
        except (MlflowException, OSError) as error:
            gone = ErrorCode.Name(RESOURCE_DOES_NOT_EXIST)
            # Of several files that could not be had MLflow quotes what each was answered.
            if isinstance(error, MlflowException) and gone not in f"{error.error_code} {error}":
                raise
            raise PackageError(f"the artifact store has no package of {name!r} version {version}") from None

    def stored(self, storage: Storage, name: str, version: int) -> tuple[Path, str]:
        """The folder of a version's package within the storage, and the digest that it was registered with.

        It is copied where the artifact store keeps it elsewhere: replicas read the storage alone. Raises as
        `package_folder` does.
        """
        digest = self._tags(name, version).get(DIGEST, "")
        if not SHA256.fullmatch(digest):
            raise PackageError(f"the registry knows no digest of {name!r} version {version}")
        # By its digest: a copy of another package is not this one, whatever its number.
        copy = storage.path(*COPIES, f"{name}-{version}-{digest[:12]}")
        if copy.exists():
            return copy.resolve(), digest
        with tempfile.TemporaryDirectory(dir=copy.parent, prefix=f".{copy.name}.") as name_beside:
            beside = Path(name_beside).resolve()
            folder = self.package_folder(name, version, beside).resolve()
            if not folder.is_relative_to(beside):
                if folder.is_relative_to(storage.root.resolve()):
                    return folder, digest
                # A link stays one, which no package may hold.
                folder = shutil.copytree(folder, beside / "package", symlinks=True)
            try:
                folder.rename(copy)
            except OSError as error:
                # Another has brought it meanwhile.
                if not copy.exists():
                    raise StorageError(f"cannot keep a copy at {copy}: {error.strerror}") from error
        return copy.resolve(), digest

    def package(
        self, name: str, version: int, *, trusted: Trusted = None, types: frozenset[str] = frozenset()
    ) -> Package:
        """The version's package, which is the one that was registered, else `PackageError`.

        `trusted` and `types` as in `package.read`.
        """
        digest = self._tags(name, version).get(DIGEST, "")
        folder = self.package_folder(name, version)
        found = packages.read(folder, digest=digest, trusted=trusted, types=types)
        if found.name != name:
            raise PackageError(f"the package of {name!r} version {version} is one of {found.name!r}")
        return found

    @answering()
    def _tags(self, name: str, version: int) -> dict[str, str]:
        if not is_there(self._uri):
            raise NotFoundError(f"the registry has no version {version} of {name!r}: nothing is registered")
        try:
            return dict(self._client.get_model_version(name, str(version)).tags)
        except MlflowException as error:
            if not _is(error, RESOURCE_DOES_NOT_EXIST):
                raise
            raise NotFoundError(f"the registry has no version {version} of {name!r}") from error

    def _make_model(self, name: str) -> None:
        try:
            self._client.get_registered_model(name)
        except MlflowException as error:
            if not _is(error, RESOURCE_DOES_NOT_EXIST):
                raise
            self._client.create_registered_model(name)


def _about(package: Package, metric: str | None) -> dict[str, str]:
    """What a version's tags say of its package; MLflow keeps no empty ones."""
    said = {
        "family": package.family,
        "metric": metric,
        "value": package.metrics.get(metric or ""),
        "dataset": package.manifest.get("training_set", {}).get("digest"),
        "signer": package.signer,
    }
    return {ABOUT[name]: str(value) for name, value in said.items() if value is not None}


def _capacities(tags: Mapping[str, str]) -> list[dict[str, Any]]:
    found = []
    for key in sorted(tag for tag in tags if tag.startswith(CAPACITY)):
        # What others wrote there may be anything.
        with contextlib.suppress(ValueError, TypeError):
            found.append(Capacity.from_json(json.loads(tags[key])).to_json())
    return found


def _cost(said: str | None) -> dict[str, Any] | None:
    # What others wrote there may be anything.
    with contextlib.suppress(ValueError, TypeError, KeyError):
        found = json.loads(said or "")
        amount = float(found["amount"])
        if math.isfinite(amount):
            return {"amount": amount, "currency": str(found["currency"])}
    return None


def _number(said: str | None) -> float | None:
    try:
        return None if said is None else float(said)
    except ValueError:
        # What others wrote there may be anything.
        return None


def _is(error: MlflowException, *codes: int) -> bool:
    return error.error_code in map(ErrorCode.Name, codes)


def _signature(package: Package) -> ModelSignature:
    """The feature columns, each of which may be missing, and the answer."""
    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(MLFLOW_TYPES[c.type], c.name, required=False) for c in package.feature_set.columns
    ]
    return ModelSignature(Schema(inputs), Schema([ColSpec(DataType.double)]))


def _requirements(package: Package) -> list[str]:
    versions = {name: version for name, version in package.manifest["libraries"].items() if name != "python"}
    return [f"{name}=={version}" for name, version in sorted(versions.items())]
