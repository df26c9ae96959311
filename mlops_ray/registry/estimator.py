"""A scikit-learn estimator, fitted by a family of one's own, as skops keeps it: arrays and names of types.

Reading it makes objects, and only of types that skops trusts or the operator's project file names; what a
package says of types is never asked. It needs scikit-learn and skops, whose import takes seconds.
"""

import io
import json
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from mlops_ray.config import OwnFamily, Project
from mlops_ray.errors import TrainingError
from mlops_ray.expressions import load_function
from mlops_ray.registry.arrays import require_width
from mlops_ray.registry.encoder import Matrix, Values

#: Rows that an estimator is asked at once, never more nor fewer: how linear algebra adds depends on their
#: number. Processors add in eights or halves of it, so that all rows of a block are treated alike; in blocks
#: of 16, three of 60 estimators of scikit-learn did not treat them so.
BLOCK = 8
#: The part that says what is made of the others, and how each of those begins.
SCHEMA, ARRAY = "schema.json", b"\x93NUMPY"
#: Some 10 kB a tree.
MOST_SCHEMA_BYTES = 64 * 2**20


@dataclass(frozen=True, eq=False)
class EstimatorModel:
    """A fitted estimator: a classifier answers with the probability of its second class."""

    kind: ClassVar[str] = "estimator"
    file: ClassVar[str] = "estimator.skops"
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "scikit-learn", "skops")

    data: bytes
    estimator: Any

    @classmethod
    def of(cls, estimator: Any) -> Self:
        """The model of a fitted estimator; raises `TrainingError` where skops cannot keep it."""
        import skops.io

        try:
            data = _canonical(skops.io.dumps(estimator))
            _require_plain(data)
        except (ValueError, TypeError) as error:
            raise TrainingError(f"a fitted {type(estimator).__name__} cannot be kept: {error}") from error
        return cls(data, estimator)

    def predict(self, matrix: Matrix) -> Values:
        if hasattr(self.estimator, "n_features_in_"):
            require_width(matrix, self.estimator.n_features_in_)
        count = len(matrix)
        padded = np.concatenate([matrix, np.repeat(matrix[-1:], -count % BLOCK, axis=0)])
        answers = [self._answers(padded[at : at + BLOCK]) for at in range(0, count, BLOCK)]
        return np.concatenate([np.zeros(0), *answers])[:count]

    def _answers(self, block: Matrix) -> Values:
        if hasattr(self.estimator, "predict_proba"):
            return np.asarray(self.estimator.predict_proba(block)[:, 1], np.float64)
        return np.asarray(self.estimator.predict(block), np.float64).reshape(len(block))

    def to_bytes(self) -> bytes:
        return self.data

    @classmethod
    def from_bytes(cls, data: bytes, allowed: frozenset[str] = frozenset()) -> Self:
        """Raises `ValueError` for a type that neither skops trusts nor `allowed` names, or a strange file."""
        needed = types_in(data)
        if unknown := ", ".join(sorted(needed - allowed)):
            raise ValueError(f"it holds {unknown}, which the project file does not allow")
        import skops.io

        for path in needed:
            # What lies beside the project file is imported by way of this alone.
            load_class(path)
        estimator = skops.io.loads(data, trusted=sorted(needed))
        if not hasattr(estimator, "predict"):
            raise ValueError("it is no estimator")
        return cls(data, estimator)


def types_in(data: bytes) -> frozenset[str]:
    """The types in a model's file that skops does not trust by itself; nothing is made or imported for it."""
    _require_plain(data)
    import skops.io

    return frozenset(skops.io.get_untrusted_types(data=data))


def keeps_rows(data: bytes, x: Matrix) -> bool:
    """Whether a model's file holds a row that it was fitted on, or numbers for each of them."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = [np.load(io.BytesIO(archive.read(name))) for name in archive.namelist() if name != SCHEMA]
    return any(
        len(part) == len(x) or (part.shape[1:] == x.shape[1:] and bool((part[:, None] == x).all(-1).any()))
        for part in parts
        if part.ndim and part.dtype.kind == "f"
    )


def load_class(path: str) -> Any:
    """What stands at a dotted path, which may lie beside the project file; raises `ConfigError`."""
    load_function(path)
    module, _, name = path.rpartition(".")
    return getattr(sys.modules[module], name)


def allowed(project: Project) -> frozenset[str]:
    """The types that a package's model may hold: those the project file names, families of one's own too."""
    own = [family for family in project.training.families if isinstance(family, OwnFamily)]
    classes = [load_class(family.path) for family in own]
    return frozenset({*project.signing.trusted_types, *(f"{c.__module__}.{c.__name__}" for c in classes)})


def _canonical(data: bytes) -> bytes:
    """The file without the time and the addresses in memory that skops writes: equal models, equal bytes.

    What two objects share is then described for each.
    """
    buffer, parts = io.BytesIO(), {}
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        schema = json.loads(old.read(SCHEMA))
        for number, node in enumerate(_nodes(schema), 1):
            node["__id__"] = number
            if "file" in node:
                parts[f"{number}.npy"] = old.read(node["file"])
                node["file"] = f"{number}.npy"
        for name, content in (parts | {SCHEMA: json.dumps(schema).encode()}).items():
            # Its time is that of 1980.
            new.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def _require_plain(data: bytes) -> None:
    """Raises `ValueError` where the file is not of arrays and a schema, or would grow when it is read.

    It grows where parts are compressed or lie over each other, or where a part, or what the schema
    describes, is named a second time.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(part.file_size for part in archive.infolist()) > len(data):
            raise ValueError("its parts are larger than the file")
        sizes = {part.filename: part.file_size for part in archive.infolist()}
        if not 0 < sizes.pop(SCHEMA, 0) <= MOST_SCHEMA_BYTES:
            raise ValueError(f"it has no {SCHEMA}, or one that is too large")
        for name in sizes:
            if not archive.read(name).startswith(ARRAY):
                raise ValueError(f"its part {name!r} is no NumPy array")
        nodes = list(_nodes(json.loads(archive.read(SCHEMA))))
    for named in ([node.get("__id__") for node in nodes], [node["file"] for node in nodes if "file" in node]):
        if len(set(named)) < len(named):
            raise ValueError(f"its {SCHEMA} names something twice")


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """The objects that a schema describes, or refers to."""
    open = [tree]
    while open:
        found = open.pop()
        if isinstance(found, dict):
            # An attribute may be called so, and is then described by a mapping.
            if any(name in found and not isinstance(found[name], dict) for name in ("__loader__", "__id__")):
                yield found
            open += found.values()
        elif isinstance(found, list):
            open += found
