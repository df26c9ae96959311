"""What a version of a model is: a folder of plain files, and the digest of each.

    digests.json    format version and the SHA-256 of every other file: what a signature will be over
    package.json    name, family, parameters, features, post-processing, metrics, origin
    encoder.json    how features become the model's matrix
    reference.json  counts of the training rows' columns (data.counts), for the monitor
    examples.json   made-up rows of features with their answers
    one model file  of a kind in `models.KINDS`

Nothing is parsed before its digest was compared, no file can run code, none is compressed.
"""

import hashlib
import platform
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from importlib.metadata import version as library_version
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from mlops_ray.config import Postprocess
from mlops_ray.errors import PackageError
from mlops_ray.features.definitions import FeatureSet
from mlops_ray.registry import examples, models
from mlops_ray.registry.encoder import Encoder
from mlops_ray.registry.models import Model

#: Raised when a reader of an older version would misread the folder.
FORMAT_VERSION = 1
DIGESTS, PACKAGE, ENCODER = "digests.json", "package.json", "encoder.json"
REFERENCE, EXAMPLES = "reference.json", "examples.json"
#: `digests.json` is read before anything vouches for it: six names and digests are under 1 kB.
MOST_DIGESTS_BYTES = 65_536
#: How far an example's answer may be from the stored one: another processor adds in another order.
EXAMPLE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Package:
    """A folder whose files agree with its digests.

    `manifest` is package.json; `files` maps each file's name to its SHA-256; `digest` is the SHA-256 of
    digests.json and so stands for every byte of the folder.
    """

    folder: Path
    digest: str
    files: Mapping[str, str]
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def family(self) -> str:
        return str(self.manifest["family"])

    @property
    def task(self) -> str:
        return str(self.manifest["task"])

    @property
    def metrics(self) -> dict[str, float]:
        """The winner's errors on the test part."""
        return dict(self.manifest["metrics"])

    @property
    def baselines(self) -> dict[str, dict[str, float]]:
        """The errors of the naive forecasts on the test part."""
        return dict(self.manifest["baselines"])

    @cached_property
    def feature_set(self) -> FeatureSet:
        return FeatureSet.from_json(self.manifest["feature_set"])

    @property
    def postprocess(self) -> Postprocess:
        return Postprocess.model_validate(self.manifest["postprocess"])

    @property
    def encoder(self) -> Encoder:
        return Encoder.from_json(self.document(ENCODER))

    @property
    def model(self) -> Model:
        return models.load(self.manifest["model"]["kind"], self.contents(self.manifest["model"]["file"]))

    @property
    def reference(self) -> dict[str, Any]:
        """What `data.counts.Counts.from_json` reads."""
        return dict(self.document(REFERENCE))

    @property
    def examples(self) -> tuple[pl.DataFrame, list[float]]:
        """Made-up rows of the feature columns, and their answers before post-processing."""
        read = self.document(EXAMPLES)
        return examples.frame(read["rows"], self.feature_set.columns), list(read["answers"])

    def document(self, name: str) -> Any:
        """A JSON file of the folder, parsed."""
        return _parse(self.contents(name), name)

    def contents(self, name: str) -> bytes:
        """A file's bytes, which are those that its digest was made of, else `PackageError`."""
        if name not in self.files:
            raise PackageError(f"the package {self.folder} has no file {name!r}")
        data = _read_file(self.folder / name)
        if _sha256(data) != self.files[name]:
            raise PackageError(f"the package {self.folder} is damaged: {name} is not what its digest says")
        return data


def write(
    folder: Path,
    *,
    name: str,
    task: str,
    family: str,
    params: Mapping[str, Any],
    model: Model,
    encoder: Encoder,
    feature_set: FeatureSet,
    target: Mapping[str, Any],
    postprocess: Postprocess,
    metrics: Mapping[str, float],
    baselines: Mapping[str, Mapping[str, float]],
    training_set: Mapping[str, Any],
    reference: Mapping[str, Any],
    created_at: datetime,
) -> Package:
    """Writes the folder, whole or not at all, replaces one that is there, and returns what `read` finds.

    `training_set` is the manifest of the training set; `reference` the JSON of its columns' counts; `target`
    a description of what is predicted; `created_at` stands in the package as given. The examples are made
    from the declared columns and the encoder's categories, never copied from rows.
    """
    rows = examples.make(feature_set.columns, encoder)
    answers = model.predict(encoder.transform(examples.frame(rows, feature_set.columns)))
    manifest = {
        "name": name,
        "task": task,
        "family": family,
        "params": dict(params),
        "model": {"kind": model.kind, "file": model.file},
        "target": dict(target),
        "feature_set": feature_set.to_json(),
        "postprocess": postprocess.model_dump(mode="json"),
        "metrics": dict(metrics),
        "baselines": {key: dict(values) for key, values in baselines.items()},
        "training_set": dict(training_set),
        "libraries": _libraries(model),
        "created_at": created_at.isoformat(),
    }
    contents = {
        PACKAGE: _dump(manifest),
        ENCODER: _dump(encoder.to_json()),
        REFERENCE: _dump(dict(reference)),
        EXAMPLES: _dump({"rows": rows, "answers": answers.tolist()}),
        model.file: model.to_bytes(),
    }
    contents[DIGESTS] = _dump(
        {"format": FORMAT_VERSION, "files": {file: _sha256(data) for file, data in sorted(contents.items())}}
    )
    _write_folder(folder, contents)
    return read(folder)


def read(folder: Path, *, digest: str | None = None) -> Package:
    """The package in a folder, every file compared with its digest before anything of it is parsed.

    `digest`, where it is known from elsewhere (the registry), must be the package's own. Raises
    `PackageError` for a folder that is missing, of another format version, damaged, with a file too many or
    too few, or with anything in it that is not a plain file.
    """
    found = _plain_files(folder)
    if DIGESTS not in found:
        raise PackageError(f"{folder} is no model package: it has no {DIGESTS}")
    if (folder / DIGESTS).stat().st_size > MOST_DIGESTS_BYTES:
        raise PackageError(f"the package {folder} is damaged: its {DIGESTS} is too large")
    head = _read_file(folder / DIGESTS)
    if digest is not None and _sha256(head) != digest:
        raise PackageError(f"the package {folder} is not the one that was registered: its digest differs")
    files = _digests(head, folder)
    _compare_names(found - {DIGESTS}, set(files), folder)
    package = Package(folder, _sha256(head), files, {})
    for name in files:
        package.contents(name)
    return Package(folder, package.digest, files, package.document(PACKAGE))


def _plain_files(folder: Path) -> set[str]:
    if folder.is_symlink() or not folder.is_dir():
        raise PackageError(f"there is no model package at {folder}")
    entries = list(folder.iterdir())
    for entry in entries:
        if entry.is_symlink() or not entry.is_file():
            raise PackageError(f"the package {folder} holds {entry.name!r}, which is not a plain file")
    return {entry.name for entry in entries}


def _digests(head: bytes, folder: Path) -> dict[str, str]:
    listed = _parse(head, DIGESTS)
    form = listed.get("format") if isinstance(listed, dict) else None
    if form != FORMAT_VERSION:
        raise PackageError(
            f"the package {folder} has the format {form!r}; this version of mlops_ray reads {FORMAT_VERSION}"
        )
    files = listed.get("files")
    if not isinstance(files, dict) or not all(isinstance(value, str) for value in files.values()):
        raise PackageError(f"the package {folder} is damaged: {DIGESTS} lists no files")
    return files


def _compare_names(found: set[str], listed: set[str], folder: Path) -> None:
    if found - listed:
        raise PackageError(
            f"the package {folder} holds a file that it does not list: {min(found - listed)!r}"
        )
    missing = (listed | {PACKAGE}) - found
    if missing:
        raise PackageError(f"the package {folder} lacks the file {min(missing)!r}")


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PackageError(f"cannot read {path}: {error.strerror}") from error


def _parse(data: bytes, name: str) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise PackageError(f"the package's {name} is not JSON: {error}") from error


def _dump(document: Any) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        for name, data in contents.items():
            (new / name).write_bytes(data)
        new.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _libraries(model: Model) -> dict[str, str]:
    names = ("mlops_ray", "polars", *model.libraries)
    return {"python": platform.python_version()} | {name: library_version(name) for name in names}


def _load_pyfunc(data_path: str) -> Any:
    """MLflow's way in: an object whose `predict` answers a pandas frame of feature columns with numbers."""
    from mlops_ray.registry.predictor import Predictor

    return _Pyfunc(Predictor.load(Path(data_path), None))


class _Pyfunc:
    def __init__(self, predictor: Any) -> None:
        self._predictor = predictor

    def predict(self, frame: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Float64, one value a row of `frame`, a pandas frame of feature columns."""
        return self._predictor.predict_features(pl.from_pandas(frame))
