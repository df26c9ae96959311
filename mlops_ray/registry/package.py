"""What a version of a model is: a folder of plain files, and the digest of each.

    digests.json    format version and the SHA-256 of every other file
    signature.json  who signed digests.json, if anybody (signing.py)
    package.json    name, family, parameters, features, outcome, metrics, origin
    encoder.json    how features become the model's matrix
    reference.json  counts of the training rows' columns (data.counts), for the monitor
    expected.json   what the labelled rows of the test say of the model's quality (monitoring.performance)
    errors-*.ubj    of a regression: models of its errors, by metric
    seasons.parquet of entities in the course of time: what is usual of each (monitoring.seasons)
    examples.json   made-up rows of features with their answers
    sbom.cdx.json   what is inside, as CycloneDX lists it (mlops_ray.sbom)
    one model file  of a kind in `models.KINDS`

Nothing is parsed before its digest was compared; where a signature is asked for, nothing but the signature is
parsed before it was verified. No file can run code, and none is compressed. A file may have a second name
elsewhere (a hard link): each read compares the digest of what it read.
"""

import hashlib
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from importlib.metadata import version as library_version
from pathlib import Path
from typing import Any, cast, get_args

import orjson
import polars as pl
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mlops_ray.data.labels import Whose
from mlops_ray.errors import PackageError
from mlops_ray.features.definitions import FeatureSet
from mlops_ray.registry import examples, models, signing
from mlops_ray.registry.encoder import Encoder
from mlops_ray.registry.models import Model
from mlops_ray.registry.outcome import Outcome, TaskKind
from mlops_ray.registry.signing import Trusted

#: Raised when a reader of an older version would misread the folder.
FORMAT_VERSION = 3
DIGESTS, PACKAGE, ENCODER = "digests.json", "package.json", "encoder.json"
REFERENCE, EXAMPLES, SIGNATURE = "reference.json", "examples.json", "signature.json"
EXPECTED, ERRORS, SEASONS = "expected.json", "errors-{}.ubj", "seasons.parquet"
SBOM = "sbom.cdx.json"
#: What a package has at most, looked at before anything is read. Digests and signature are parsed before
#: anything vouches for them: six names and digests are under 1 kB.
MOST_FILES, MOST_BYTES = 16, 2 * 2**30
MOST_BYTES_OF = {DIGESTS: 65_536, SIGNATURE: 4_096} | dict.fromkeys(
    (PACKAGE, ENCODER, REFERENCE, EXAMPLES, EXPECTED, SEASONS, SBOM), 64 * 2**20
)
#: Where MLflow serves a package: public keys, types in models, and functions, that are trusted, by commas.
TRUSTED_KEYS, TRUSTED_TYPES = "MLOPS_TRUSTED_KEYS", "MLOPS_TRUSTED_TYPES"
TRUSTED_FUNCTIONS = "MLOPS_TRUSTED_FUNCTIONS"
#: How far an example's answer may be from the stored one: another processor adds in another order.
EXAMPLE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Package:
    """A folder whose files agree with its digests.

    `manifest` is package.json; `files` maps each file's name to its SHA-256; `digest` is the SHA-256 of
    digests.json and so stands for every byte of the folder. `signer` is the public key whose signature was
    verified, `None` where none was asked for; `types` are those that the operator lets an estimator hold.
    """

    folder: Path
    digest: str
    files: Mapping[str, str]
    manifest: Mapping[str, Any]
    signer: str | None = None
    types: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def family(self) -> str:
        return str(self.manifest["family"])

    @property
    def task(self) -> TaskKind:
        if self.manifest["task"] not in get_args(TaskKind):
            raise PackageError(f"the package {self.folder} does what is not known: {self.manifest['task']!r}")
        return cast(TaskKind, self.manifest["task"])

    @property
    def params(self) -> dict[str, Any]:
        """The family's parameters."""
        return dict(self.manifest["params"])

    @property
    def metrics(self) -> dict[str, float]:
        """The winner's errors on the test part."""
        return dict(self.manifest["metrics"])

    @property
    def baselines(self) -> dict[str, dict[str, float]]:
        """The errors of the naive forecasts on the test part."""
        return dict(self.manifest["baselines"])

    @property
    def origin(self) -> dict[str, Any]:
        """How it was trained: what `reproduce` needs beside the training set."""
        return dict(self.manifest["origin"])

    @cached_property
    def feature_set(self) -> FeatureSet:
        return FeatureSet.from_json(self.manifest["feature_set"])

    @property
    def whose(self) -> Whose:
        """Of whom its requests are: sources, and which of their keys a column of a request is."""
        features = self.feature_set
        looked_up = [(view.source, dict(zip(on, view.keys, strict=True))) for view, on, _ in features.reads]
        return (
            *looked_up,
            (self.manifest["target"]["source"], {name: name for name in features.request.names}),
        )

    @property
    def outcome(self) -> Outcome:
        try:
            return Outcome.from_json(self.manifest["outcome"])
        except (KeyError, TypeError, ValueError) as error:
            raise PackageError(f"the package {self.folder} says nothing usable of its outcome") from error

    @property
    def encoder(self) -> Encoder:
        return Encoder.from_json(self.document(ENCODER))

    @property
    def model(self) -> Model:
        kept = self.manifest["model"]
        return models.load(kept["kind"], self.contents(kept["file"]), self.types)

    @property
    def reference(self) -> dict[str, Any]:
        """What `data.counts.Counts.from_json` reads."""
        return dict(self.document(REFERENCE))

    @property
    def expected(self) -> dict[str, Any] | None:
        """What `monitoring.performance.Expected.from_json` reads; `None` in packages made before it was."""
        return dict(self.document(EXPECTED)) if EXPECTED in self.files else None

    @property
    def sbom(self) -> dict[str, Any] | None:
        """What is inside, as CycloneDX lists it (`mlops_ray.sbom`); `None` in packages made before it was."""
        return dict(self.document(SBOM)) if SBOM in self.files else None

    def errors(self, metric: str) -> bytes | None:
        """The model of its errors by which a metric is estimated, where there is one."""
        name = ERRORS.format(metric)
        return self.contents(name) if name in self.files else None

    @property
    def seasons(self) -> bytes | None:
        """What `monitoring.seasons.learn` made, as Parquet; `None` where rows could change places."""
        return self.contents(SEASONS) if SEASONS in self.files else None

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
    outcome: Outcome,
    metrics: Mapping[str, float],
    baselines: Mapping[str, Mapping[str, float]],
    intervals: Mapping[str, tuple[float, float]],
    origin: Mapping[str, Any],
    training_set: Mapping[str, Any],
    reference: Mapping[str, Any],
    created_at: datetime,
    sign: Ed25519PrivateKey | None = None,
    expected: Mapping[str, Any] | None = None,
    errors: Mapping[str, bytes] | None = None,
    seasons: bytes | None = None,
) -> Package:
    """Writes the folder, whole or not at all, replaces one that is there, and returns what `read` finds.

    `intervals` are those of the metrics; `origin` is what `reproduce` needs beside the training set;
    `training_set` is the manifest of the training set; `reference` the JSON of its columns' counts,
    `expected` that of its quality, `errors` the models of its errors by metric, `seasons` what is usual of
    its entities; `target` a description of what is predicted; `created_at` stands in the package as given.
    The examples are made from the declared columns and the encoder's categories, never copied from rows.
    `sign` is the key to sign with.

    Raises `PackageError` for a model of a kind that nobody could read again.
    """
    # Who reads packages, as replicas do, makes no lists.
    from mlops_ray import sbom

    if model.kind not in models.KINDS:
        raise PackageError(f"a model of the kind {model.kind!r} cannot be packed: nobody could read it again")
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
        "outcome": outcome.to_json(),
        "metrics": dict(metrics),
        "baselines": {key: dict(values) for key, values in baselines.items()},
        "intervals": {key: list(bounds) for key, bounds in intervals.items()},
        "origin": dict(origin),
        "training_set": dict(training_set),
        "libraries": libraries(model),
        "created_at": created_at.isoformat(),
    }
    model_file = model.to_bytes()
    contents = {
        PACKAGE: _dump(manifest),
        ENCODER: _dump(encoder.to_json()),
        REFERENCE: _dump(dict(reference)),
        EXAMPLES: _dump({"rows": rows, "answers": answers.tolist()}),
        model.file: model_file,
        **({EXPECTED: _dump(dict(expected))} if expected is not None else {}),
        **{ERRORS.format(metric): data for metric, data in (errors or {}).items()},
        **({SEASONS: seasons} if seasons is not None else {}),
        SBOM: _dump(sbom.of_model(manifest, _sha256(model_file), model.libraries)),
    }
    contents[DIGESTS] = _dump(
        {"format": FORMAT_VERSION, "files": {file: _sha256(data) for file, data in sorted(contents.items())}}
    )
    if sign is not None:
        contents[SIGNATURE] = _dump(signing.signature(sign, contents[DIGESTS]))
    _write_folder(folder, contents)
    return read(folder, trusted=None if sign is None else frozenset({signing.public(sign)}))


def read(
    folder: Path, *, digest: str | None = None, trusted: Trusted = None, types: frozenset[str] = frozenset()
) -> Package:
    """The package in a folder, every file compared with its digest before anything of it is parsed.

    `digest`, where it is known from elsewhere (the registry), must be the package's own. With `trusted`, one
    of these public keys must have signed it. `types` are those that an estimator may hold (`models.load`).
    Raises `PackageError` for a folder that is missing, of another format version, damaged, too large, not
    signed as asked, with a file too many or too few, or with anything in it that is not a plain file.
    """
    found = _plain_files(folder)
    if DIGESTS not in found:
        raise PackageError(f"{folder} is no model package: it has no {DIGESTS}")
    head = _read_file(folder / DIGESTS)
    if digest is not None and _sha256(head) != digest:
        raise PackageError(f"the package {folder} is not the one that was registered: its digest differs")
    signer = None if trusted is None else _signer(folder, found, head, trusted)
    files = _digests(head, folder)
    _compare_names(found - {DIGESTS, SIGNATURE}, set(files), folder)
    package = Package(folder, _sha256(head), files, {}, signer, types)
    for name in files:
        package.contents(name)
    return replace(package, manifest=package.document(PACKAGE))


def _plain_files(folder: Path) -> set[str]:
    if folder.is_symlink() or not folder.is_dir():
        raise PackageError(f"there is no model package at {folder}")
    sizes: dict[str, int] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_file(follow_symlinks=False):
                raise PackageError(f"the package {folder} holds {entry.name!r}, which is not a plain file")
            sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
            if sizes[entry.name] > MOST_BYTES_OF.get(entry.name, MOST_BYTES):
                raise PackageError(f"the package {folder} holds {entry.name!r}, which is too large")
            if len(sizes) > MOST_FILES or sum(sizes.values()) > MOST_BYTES:
                raise PackageError(
                    f"the package {folder} has over {MOST_FILES} files, or {MOST_BYTES:,} bytes"
                )
    return set(sizes)


def _signer(folder: Path, found: set[str], head: bytes, trusted: frozenset[str]) -> str:
    if SIGNATURE not in found:
        raise PackageError(f"the package {folder} is not signed")
    document = _parse(_read_file(folder / SIGNATURE), SIGNATURE)
    try:
        return signing.signer(document, head, trusted)
    except PackageError as error:
        raise PackageError(f"the package {folder} cannot be trusted: {error}") from None


def _digests(head: bytes, folder: Path) -> dict[str, str]:
    listed = _parse(head, DIGESTS)
    form = listed.get("format") if isinstance(listed, dict) else None
    if form != FORMAT_VERSION:
        is_newer = isinstance(form, int) and form > FORMAT_VERSION
        raise PackageError(
            f"the package {folder} has the format {form!r}; this version of mlops_ray reads {FORMAT_VERSION}"
            + (": update mlops_ray" if is_newer else ": train the version again")
        )
    files = listed.get("files")
    if not isinstance(files, dict) or not all(isinstance(value, str) for value in files.values()):
        raise PackageError(f"the package {folder} is damaged: {DIGESTS} lists no files")
    if _dump(listed) != head:
        # A key that stands there twice, which others may read otherwise.
        raise PackageError(f"the package {folder} is damaged: {DIGESTS} is not as it was written")
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
    """A plain file's bytes: whatever took its place, no link is followed and no pipe is waited for."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_BYTES_OF.get(path.name, MOST_BYTES):
                raise PackageError(f"{path} is not a plain file, or too large")
            return file.read(found.st_size)
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


def libraries(model: Model) -> dict[str, str]:
    """The versions of what a model's fit and answers depend on."""
    names = ("mlops_ray", "polars", *model.libraries)
    return {"python": platform.python_version()} | {name: library_version(name) for name in names}


def _load_pyfunc(data_path: str) -> Any:
    """MLflow's way in: an object whose `predict` answers a pandas frame of feature columns with numbers.

    MLflow itself reads who loads a model from the file MLmodel: who can change that file runs code wherever
    MLflow serves it. Our own services never read it.
    """
    from mlops_ray.registry.predictor import Predictor

    trusted, types = _listed(TRUSTED_KEYS), _listed(TRUSTED_TYPES) or frozenset()
    functions = _listed(TRUSTED_FUNCTIONS) or frozenset()
    return _Pyfunc(Predictor.load(Path(data_path), None, functions=functions, trusted=trusted, types=types))


def _listed(variable: str) -> frozenset[str] | None:
    """What an environment variable lists by commas; `None` where it is not set."""
    said = os.environ.get(variable)
    return None if said is None else frozenset(part.strip() for part in said.split(","))


class _Pyfunc:
    def __init__(self, predictor: Any) -> None:
        self._predictor = predictor

    def predict(self, frame: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Float64, one value a row of `frame`, a pandas frame of feature columns."""
        return self._predictor.predict_features(pl.from_pandas(frame))
