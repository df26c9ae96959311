"""Fitted models as plain data: what each kind is, its file, and how it answers.

No file of these can run code when it is read, and none is compressed, so that what is read is as large as the
file. A kind answers without the library that fitted it; only XGBoost's trees need its C library, without its
Python package, and an estimator of one's own needs scikit-learn. So a replica holds none of them in memory.
"""

from collections.abc import Callable
from typing import ClassVar, Protocol, Self

from mlops_ray.errors import PackageError, did_you_mean
from mlops_ray.registry.boosters import CatboostModel as CatboostModel
from mlops_ray.registry.boosters import LightgbmModel as LightgbmModel
from mlops_ray.registry.boosters import XgboostModel as XgboostModel
from mlops_ray.registry.encoder import Matrix
from mlops_ray.registry.encoder import Values as Values
from mlops_ray.registry.estimator import EstimatorModel as EstimatorModel
from mlops_ray.registry.linear import LinearModel as LinearModel
from mlops_ray.registry.network import NetworkModel as NetworkModel
from mlops_ray.registry.trees import NODE as NODE
from mlops_ray.registry.trees import BoostedModel as BoostedModel
from mlops_ray.registry.trees import ForestModel as ForestModel


class Model(Protocol):
    """A fitted model: answers float64 (rows) to an encoder's matrix, n rows as n times one row."""

    #: The name under which `KINDS` finds it, its file, and the libraries whose versions are recorded.
    kind: ClassVar[str]
    file: ClassVar[str]
    libraries: ClassVar[tuple[str, ...]]

    def predict(self, matrix: Matrix) -> Values: ...

    def to_bytes(self) -> bytes: ...

    @classmethod
    def from_bytes(cls, data: bytes) -> Self: ...


_ALL: tuple[type[Model], ...] = (
    LinearModel,
    ForestModel,
    BoostedModel,
    NetworkModel,
    XgboostModel,
    LightgbmModel,
    CatboostModel,
    EstimatorModel,
)
KINDS: dict[str, type[Model]] = {model.kind: model for model in _ALL}


def load(kind: str, data: bytes, allowed: frozenset[str] = frozenset()) -> Model:
    """The model of this kind from the bytes of its file; raises `PackageError` where they are none.

    `allowed` are the types that an estimator may hold beside those that skops trusts.
    """
    if kind not in KINDS:
        raise PackageError(f"the package's model is of an unknown kind {kind!r}{did_you_mean(kind, KINDS)}")
    read: Callable[[bytes], Model] = KINDS[kind].from_bytes
    try:
        return EstimatorModel.from_bytes(data, allowed) if kind == EstimatorModel.kind else read(data)
    except Exception as error:
        # Each library has errors of its own for a damaged file.
        raise PackageError(f"the package's {KINDS[kind].file} cannot be read: {error}") from error
